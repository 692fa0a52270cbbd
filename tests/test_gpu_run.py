"benchmarks/gpu_run.py: nothing of the quarter of an hour is lost by a stage that fails, and pieces make the whole"
import json, sys
from argparse import Namespace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]/'benchmarks'))
import gpu_run

def make(tmp_path, **kwargs):
    args = dict(work=tmp_path/'work', out=tmp_path/'out', rehearse=True, minutes=5., data=tmp_path/'data', piece=None, wheels=None, file_mb=.001, laws=None, home_minutes=1., levers=gpu_run.LEVERS)
    return gpu_run.Run(Namespace(**args | kwargs))

def test_pieces_make_the_whole(tmp_path, capsys):
    package = tmp_path/'cifar'/'package'
    package.mkdir(parents=True)
    for i in range(6): (package/f'data_batch_{i}.png').write_bytes(bytes([i])*700_000)
    (package/'train_lables.json').write_text('[1]')
    (package/'package.json').write_text('{}')
    gpu_run.divide(tmp_path/'cifar', tmp_path/'pieces', 1.5)
    pieces = sorted((tmp_path/'pieces').iterdir())
    assert len(pieces)==3 and all(sum(o.stat().st_size for o in p.iterdir())<=1.5*2**20 for p in pieces)
    for p in pieces: make(tmp_path, piece=p).stage('data')
    there = {o.name: o.read_bytes() for o in (tmp_path/'data'/'package').iterdir()}
    assert there=={o.name: o.read_bytes() for o in package.iterdir() if o.name!='package.json'}
    said = json.loads((tmp_path/'out'/'gpu_run.json').read_text())
    assert said['data']['ok'] and len(said['data']['earlier_seconds'])==3 and said['rehearsed'] is True

def test_a_stage_that_fails_is_on_record_and_the_next_one_runs(tmp_path, monkeypatch):
    def broken(self): raise ValueError('no such thing')
    def slow(self): self.call('-c', 'import time; time.sleep(60)')
    monkeypatch.setattr(gpu_run.Run, 'laws', broken)
    monkeypatch.setattr(gpu_run.Run, 'steps', slow)
    monkeypatch.setattr(gpu_run, 'LIMITS', gpu_run.LIMITS | dict(steps=.2))
    run = make(tmp_path)
    for name in ('laws','steps','data'): run.stage(name)
    found = json.loads((tmp_path/'out'/'gpu_run.json').read_text())
    assert [found[k]['ok'] for k in ('laws','steps','data')]==[False,False,True]
    assert 'no such thing' in found['laws']['why'] and 'cut after' in found['steps']['why']
    again = make(tmp_path, out=tmp_path/'other')   # the next command knows what was found
    again.stage('data')
    assert json.loads((tmp_path/'other'/'gpu_run.json').read_text())['laws']==found['laws']

def test_the_fastest_lever_trains_for_the_minutes_that_are_left(tmp_path):
    run = make(tmp_path, rehearse=False, minutes=8.5)
    row = lambda lever, bs, ms: dict(lever=lever, bs=bs, ms=ms)
    run.res['levers'] = dict(rows=[row('plain', 256, 40.), row('plain', 512, 50.), dict(lever='searched', why='broken'), row('compiled', 512, 30.)])
    plan = run._plan()
    assert (plan['step_ms'],plan['bs'],plan['lever'])==(30.,512,'compiled') and 7<plan['minutes']<7.3
    run.res['levers']['rows'].append(row('searched', 256, 16.))   # somewhat slower, but a small batch learns more from a picture
    assert run._plan()['bs']==256
    run.res = {}
    assert run._plan()['lever']=='searched'

def test_the_encoder_comes_back_in_parts(tmp_path):
    run = make(tmp_path)
    folder = tmp_path/'work'/'runs'/'a'
    folder.mkdir(parents=True)
    (folder/'encoder.safetensors').write_bytes(content := bytes(range(256))*20)
    run.res['train'] = dict(run='a')
    run.stage('back')
    parts = sorted((tmp_path/'out').glob('encoder.*'), key=lambda o: int(o.suffix[1:]))
    assert b''.join(o.read_bytes() for o in parts)==content and max(o.stat().st_size for o in parts)<=.001*2**20

def test_without_a_gpu_it_says_what_to_do(tmp_path, monkeypatch):
    import torch
    if torch.cuda.is_available(): pytest.skip('there is a GPU')
    monkeypatch.setattr(gpu_run, 'LIMITS', dict(wheels=600))
    run = make(tmp_path, rehearse=False, minutes=60.)
    run.stage('wheels')
    assert '--rehearse' in run.res['wheels']['why']
