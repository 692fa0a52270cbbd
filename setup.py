"Hand the facts of settings.ini to setuptools"
from configparser import ConfigParser
from setuptools import setup

cfg = ConfigParser(delimiters=['='], interpolation=None)
cfg.read('settings.ini', encoding='utf-8')
