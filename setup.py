"Hand setuptools the facts of settings.ini and the version; pyproject.toml has the rest"
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup, find_packages

parser = ConfigParser(delimiters=['='], interpolation=None) # `:` and `%` are plain characters in a requirement
parser.read('settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']

setup(
    # Read, not imported: building must not need torch
    version=re.search(r'^__version__ = "(.+)"', Path('self_supervised/__init__.py').read_text(encoding='utf-8'), re.M)[1],
    packages=find_packages(include=['self_supervised', 'self_supervised.*']),
    package_data={'self_supervised': ['py.typed']},
    description=cfg['description'],
    keywords=cfg['keywords'].split(),
    author=cfg['author'],
    license_expression=cfg['license'],
    classifiers=[f"Development Status :: {cfg['status']}"],
    install_requires=cfg['requirements'].split(),
    extras_require={o: cfg[f'{o}_requirements'].split() for o in ('dev','docs','onnx','distributed')},
)
