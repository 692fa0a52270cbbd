"What happens to files: two owners, damage of every kind, a full disk, a signal at the wrong moment, other data"
import errno
import io
import json
import os
import pty
import random
import resource
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections import Counter, defaultdict, deque
from contextlib import redirect_stdout
from functools import partial, wraps
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.training import GradientAccumulation, GradientClip, ShortEpochCallback
from fastai.vision.all import (
    Adam, Brightness, Callback, CancelFitException, CSVLogger, DataLoader, DataLoaders, EarlyStoppingCallback, ImageDataLoaders, Learner, Normalize,
    ProgressCallback, ReduceLROnPlateau, Resize, ValueMetric, aug_transforms, parent_label)
from fastcore.script import CliError
from fasttransform import Pipeline
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader as TorchDL
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from self_supervised import fit as fit_room   # brings `Learner.fit_byol`
from self_supervised.augmentations import get_multi_aug_pipelines
from self_supervised.callback import checkpoint_file
from self_supervised.callback.checkpoint import Checkpoint, Due, checkpoint_files, newest_checkpoint, read_checkpoint
from self_supervised.callback.checkpoint_file import write_sealed
from self_supervised.callback.state import pack, unpack
from self_supervised.cli import pretrain as pretrain_room
from self_supervised.cli.pictures import read_held_out
from self_supervised.cli.pretrain import pretrain
from self_supervised.cli.report import write_report
from self_supervised.cli.run_folder import free_folder, recorded_settings
from self_supervised.cli.terminal import History, steady_output
from self_supervised.core import seed_everything
from self_supervised.data.arrays import tensor_dls
from self_supervised.data.demo import digits, write_mnist_tiny
from self_supervised.facts import Texts, as_made, codes_of, data_facts, described, steps_of
from self_supervised.data.images import image_dls
from self_supervised.data.reading import open_picture
from self_supervised.data.skipped import Skipped
from self_supervised.data.sources import picture_items
from self_supervised.layers import create_encoder
from self_supervised.owner import OWNER, claim, release
from self_supervised.record import record_of
from self_supervised.transfer.encoder_file import encoder_info, load_encoder, save_encoder
from self_supervised.vision.byol import byol_learner, create_byol_model, get_byol_aug_pipelines
import test_checkpoint
from test_checkpoint import Kill, Noisy, Signal, assert_same, assert_survives, fit, flat, in_child, make, outcome
from test_distributed import TORCHRUN, check_same, launch
from test_hazards import quiet

pytestmark = [pytest.mark.filterwarnings('ignore')]
HERE = Path(__file__).parent
STEPS = 6

def said(f, *args, **kwargs):
    "Messages of the warnings of a call"
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        f(*args, **kwargs)
    return [str(w.message) for w in ws]

def one_line(e): return str(e.value.args[0]).split('\n\t')[-1]

# R1. Two owners

def owner_in_another_process(folder, seconds=60):
    "A process that claims a folder and lives until it is killed"
    code = f'import sys,time; sys.path.insert(0, {str(HERE.parent)!r})\n' \
           f'from self_supervised.owner import claim\nprint(repr(claim({str(folder)!r})), flush=True); time.sleep({seconds})'
    p = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code], stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline()=="''\n"
    return p

def test_a_folder_has_one_owner_and_a_dead_one_has_none(tmp_path):
    p = owner_in_another_process(tmp_path/'a')
    words = claim(tmp_path/'a')
    assert f'process {p.pid} on ' in words and 'which started at 20' in words and '\n' not in words
    p.kill()
    p.wait()
    assert (tmp_path/'a'/OWNER).exists() and claim(tmp_path/'a')==''
    release(tmp_path/'a')
    assert not any((tmp_path/'a').iterdir())

@pytest.mark.parametrize('left', [b'', b'{"pid": 1', b'[]', b'{"pid": 1, "host": "x", "start": "then"}'])
def test_a_claim_of_a_dead_process_is_taken_over_whatever_it_says(tmp_path, left):
    "Also with the number of a process that lives"
    (tmp_path/OWNER).write_bytes(left)
    assert claim(tmp_path)==''
    assert json.loads((tmp_path/OWNER).read_text())['pid']==os.getpid()
    release(tmp_path)

def test_of_many_that_come_at_once_one_gets_it(tmp_path):
    "Claimed atomically: 8 processes, 5 folders, one owner of each"
    def all_of_them():
        start = time.time()+.3
        for i in range(5):
            while time.time()<start+.05*i: pass
            if not claim(tmp_path/str(i)): (tmp_path/f'{i}.{os.getpid()}').touch()
        (tmp_path/f'done{os.getpid()}').touch()
        while len([*tmp_path.glob('done*')])<8: time.sleep(.01)   # who ends gives its folders away
    pids = []
    for _ in range(8):
        pids.append(os.fork())
        if not pids[-1]:
            all_of_them()
            os._exit(0)
    for p in pids: os.waitpid(p, 0)
    assert [len([*tmp_path.glob(f'{i}.*')]) for i in range(5)]==[1]*5

def test_another_thread_is_another_owner(tmp_path):
    import threading
    go,found = threading.Event(),threading.Event()
    def other():
        claim(tmp_path/'a')
        found.set()
        go.wait()
    t = threading.Thread(target=other)
    t.start()
    found.wait()
    assert 'another thread' in claim(tmp_path/'a')
    go.set()
    t.join()
    assert claim(tmp_path/'a')==''
    release(tmp_path/'a')

def test_a_second_writer_of_checkpoints_is_refused(tmp_path):
    "In one line with the process and its start, before anything of the first is touched"
    p = owner_in_another_process(tmp_path/'ck')
    (tmp_path/'ck'/'.fit000-step000000001.pt.half').touch()
    with pytest.raises(ValueError) as e: fit(tmp_path)
    p.kill()
    p.wait()
    message = one_line(e)
    assert '\n' not in message and f'process {p.pid} on' in message and 'started at' in message and 'another folder' in message
    assert (tmp_path/'ck'/'.fit000-step000000001.pt.half').exists()
    fit(tmp_path, epochs=1)
    assert not (tmp_path/'ck'/OWNER).exists() and len(checkpoint_files(tmp_path/'ck'))==2

def test_a_fit_that_failed_does_not_keep_the_folder_from_its_own_process(tmp_path):
    class Fail(Callback):
        def after_batch(self): raise RuntimeError('on purpose')
    learn = make(tmp_path, cbs=[Checkpoint(tmp_path/'ck'), Fail()])
    with pytest.raises(RuntimeError), redirect_stdout(io.StringIO()): learn.fit(1)
    fit(tmp_path, epochs=1)

def tiny_run(out, **kwargs):
    "A run of the digits, as small as it gets"
    with redirect_stdout(io.StringIO()) as printed:
        got = pretrain(out=out, epochs=1, hidden_size=16, projection_size=8, progress=False, **kwargs)
    return *got,printed.getvalue()

def test_two_runs_that_start_at_once_go_to_two_folders(tmp_path):
    "0.3 s apart, long before the first has written its settings"
    code = f"import sys; sys.path.insert(0, {str(HERE.parent)!r})\nfrom self_supervised.cli.pretrain import byol_pretrain\n" \
           f"byol_pretrain(epochs=2, out='run', hidden_size=16, projection_size=8)"
    ps = []
    for _ in range(2):
        ps.append(subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code], cwd=tmp_path, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        time.sleep(.3)
    out = [p.communicate(timeout=300)[0] for p in ps]
    assert [p.returncode for p in ps]==[0,0], out
    assert sorted(o.name for o in tmp_path.iterdir())==['run','run-2']
    for o in tmp_path.iterdir():
        assert len((o/'history.csv').read_text().splitlines())==3 and not (o/OWNER).exists()
    assert sum('is in use by process' in o or 'holds a run already' in o for o in out)==1

def test_a_run_at_work_is_not_resumed_by_another(tmp_path):
    out = tiny_run(tmp_path/'run')[2]
    (out/'results.json').unlink()
    was = {f.name: f.read_bytes() for f in out.iterdir() if f.is_file()}
    p = owner_in_another_process(out)
    with pytest.raises(ValueError, match=f'is in use by process {p.pid} on .*, which started at'): tiny_run(out, resume=True)
    p.kill()
    p.wait()
    assert {f.name: f.read_bytes() for f in out.iterdir() if f.is_file() and f.name!=OWNER}=={k: v for k,v in was.items()}
    tiny_run(out, resume=True)

# R5. Nothing stays behind

@pytest.mark.parametrize('where,error', [('create_encoder', RuntimeError('no such weights')), ('plan', KeyboardInterrupt()),
                                         ('digit_dls', OSError('gone')), ('run_learner', ValueError('too wide'))])
def test_a_start_that_failed_leaves_no_folder(tmp_path, monkeypatch, where, error):
    def fail(*args, **kwargs): raise error
    monkeypatch.setattr(pretrain_room, where, fail)
    with pytest.raises(type(error)): tiny_run(tmp_path/'runs'/'deep'/'run')
    assert not any(tmp_path.iterdir())

def test_a_folder_that_was_there_stays(tmp_path, monkeypatch):
    def fail(*args, **kwargs): raise RuntimeError()
    monkeypatch.setattr(pretrain_room, 'create_encoder', fail)
    (tmp_path/'run').mkdir()
    with pytest.raises(RuntimeError): tiny_run(tmp_path/'run')
    assert (tmp_path/'run').is_dir() and not any((tmp_path/'run').iterdir())

# R2. Damage

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A run of two epochs with its last two checkpoints"
    path = tmp_path_factory.mktemp('run')
    fit(path, epochs=2)
    return path

def flip(b, places):
    b = bytearray(b)
    for p in places: b[p//8] ^= 1<<p%8
    return bytes(b)

def saved(state):
    f = io.BytesIO()
    torch.save(state, f)
    return f.getvalue()

def wrong(state, *path, to=...):
    "A checkpoint without one of its parts, or with another there; with a right digest it would be read"
    state = dict(state)
    where = state
    for k in path[:-1]:
        where[k] = dict(where[k])
        where = where[k]
    if to is ...: del where[path[-1]]
    else: where[path[-1]] = to
    return saved(state)

damages = dict(
    empty=lambda b,s,r: b'',
    one_byte=lambda b,s,r: b[:1],
    cut_early=lambda b,s,r: b[:r.randrange(4, 4000)],
    cut_late=lambda b,s,r: b[:-r.randrange(200, 3000)],
    zeros=lambda b,s,r: bytes(len(b)),
    zeros_at_the_end=lambda b,s,r: b[:-4096]+bytes(4096),
    zeros_within=lambda b,s,r: b[:4096]+bytes(4096)+b[8192:],
    one_bit=lambda b,s,r: flip(b, [r.randrange(8*len(b)-1000)]),
    bits=lambda b,s,r: flip(b, [r.randrange(8*len(b)) for _ in range(20)]),
    text=lambda b,s,r: b'<html>404</html>',
    pickle_of_others=lambda b,s,r: saved([1,2]),
    number=lambda b,s,r: saved(3),
    no_format=lambda b,s,r: wrong(s, 'format'),
    no_version=lambda b,s,r: wrong(s, 'version'),
    later_version=lambda b,s,r: wrong(s, 'version', to=9),
    version_in_words=lambda b,s,r: wrong(s, 'version', to='1'),
    no_position=lambda b,s,r: wrong(s, 'position'),
    no_batch=lambda b,s,r: wrong(s, 'position', 'batch'),
    position_in_words=lambda b,s,r: wrong(s, 'position', 'step', to='7'),
    no_model=lambda b,s,r: wrong(s, 'model'),
    model_is_a_list=lambda b,s,r: wrong(s, 'model', to=[]),
    no_opt=lambda b,s,r: wrong(s, 'opt'),
    no_rng=lambda b,s,r: wrong(s, 'rng', to=[]),
    rng_without_now=lambda b,s,r: wrong(s, 'rng', to=[dict(start=None)]),
    rng_is_a_number=lambda b,s,r: wrong(s, 'rng', to=1.5),
    rng_of_numbers=lambda b,s,r: wrong(s, 'rng', to=[1.5]),
    no_best=lambda b,s,r: wrong(s, 'best'),
    best_in_words=lambda b,s,r: wrong(s, 'best', to='x'),
    flags_in_words=lambda b,s,r: wrong(s, 'trained', to='x'),
    flags_are_numbers=lambda b,s,r: wrong(s, 'trained', to=[1.5]),
    nothing_but_the_name=lambda b,s,r: saved(dict(format=s['format'])))

@pytest.mark.parametrize('kind', damages)
def test_a_damaged_newest_is_refused_and_the_one_before_taken(run, tmp_path, kind):
    "Whatever torch raises over it: one line, and the run goes on from the older one"
    old,new = checkpoint_files(run/'ck')
    (tmp_path/old.name).write_bytes(old.read_bytes())
    b = damages[kind](new.read_bytes(), read_checkpoint(new), random.Random(0))
    file = tmp_path/new.name
    file.write_bytes(b)
    with pytest.raises(ValueError) as e: read_checkpoint(file)
    assert len(str(e.value).splitlines())==1
    messages = said(lambda: newest_checkpoint(tmp_path))
    assert len(messages)==1 and '\n' not in messages[0] and 'The checkpoint before it is read instead' in messages[0]
    assert_same(flat(newest_checkpoint(tmp_path)['model']), flat(read_checkpoint(old)['model']))

def test_a_folder_where_a_file_should_be(run, tmp_path):
    old,new = checkpoint_files(run/'ck')
    (tmp_path/old.name).write_bytes(old.read_bytes())
    (tmp_path/new.name).mkdir()
    assert newest_checkpoint(tmp_path)['position']['step']==int(old.name[-5:-3])

def test_no_flipped_bit_loads_as_another_state(run, tmp_path):
    "Refused, or without effect: 300 single bits, a third of them in the directory of the archive"
    file = checkpoint_files(run/'ck')[-1]
    b,want = file.read_bytes(),flat(read_checkpoint(file))
    r = random.Random(1)
    for i in range(300):
        (tmp_path/'x.pt').write_bytes(flip(b, [r.randrange(8*len(b)) if i%3 else r.randrange(8*len(b)-80000, 8*len(b))]))
        try: got = read_checkpoint(tmp_path/'x.pt')
        except ValueError: continue
        assert_same(flat(got), want)

def test_an_older_file_without_a_digest_still_loads_and_its_bits_are_looked_at(run, tmp_path):
    state = read_checkpoint(checkpoint_files(run/'ck')[-1])
    b = saved(state)
    (tmp_path/'x.pt').write_bytes(b)
    assert_same(flat(read_checkpoint(tmp_path/'x.pt')), flat(state))
    place = b.index(state['model']['online.encoder.0.weight'].numpy().tobytes())
    (tmp_path/'x.pt').write_bytes(flip(b, [8*place+17]))
    with pytest.raises(ValueError, match='not a whole checkpoint'): read_checkpoint(tmp_path/'x.pt')

def test_a_run_goes_on_from_the_one_before_to_the_same_end_and_keeps_it(tmp_path):
    "Damaged files are not counted among those to keep"
    in_child(fit, tmp_path/'a', cbs=[Kill('after_batch', 8)])
    checkpoint_files(tmp_path/'a'/'ck')[-1].write_bytes(b'')
    class Look(Callback):
        order = 2000
        def after_batch(self):
            if self.train_iter==7 and self.training: seen.append(whole(tmp_path/'a'/'ck'))
    def whole(folder): return [f.name for f in checkpoint_files(folder) if f.stat().st_size]
    seen = []
    got = outcome(fit(tmp_path/'a', cbs=[Look()]))
    assert_same(got, outcome(fit(tmp_path/'b')))

def test_fewer_are_kept_never_more_than_asked_and_damage_behind_does_not_count(tmp_path):
    from self_supervised.callback.checkpoint_file import FORMAT, VERSION, write_checkpoint
    state = dict(format=FORMAT, version=VERSION, best=None, facts={}, model={}, opt={}, grads=[], learner={}, metrics=[],
                 callbacks={}, rng=[dict(now={}, start=None)], position=dict(fit=0, epoch=0, batch=1, step=0, finished=False))
    (tmp_path/'fit000-step000000009.pt').write_bytes(b'')
    for step in (1,2,3):
        state['position']['step'] = step
        write_checkpoint(tmp_path, state, keep=1, best=False)
        assert newest_checkpoint(tmp_path)['position']['step']==step
    assert [f.name[-5:-3] for f in checkpoint_files(tmp_path)]==['03','09']

def test_best_is_refused_when_damaged(tmp_path):
    learn = make(tmp_path, metrics=ValueMetric(lambda: 1., 'probe'))
    with redirect_stdout(io.StringIO()): learn.fit(1, cbs=Checkpoint(tmp_path/'ck', monitor='probe'))
    best = tmp_path/'ck'/'best.pt'
    b = best.read_bytes()
    best.write_bytes(flip(b, [8*2000+1]))
    with pytest.raises(ValueError, match='not a whole checkpoint'): read_checkpoint(best)

def test_what_says_nothing_about_the_file_is_raised_as_it_is(run, tmp_path, monkeypatch):
    "A file that is missing, and a device that is full, are no damage"
    with pytest.raises(FileNotFoundError): read_checkpoint(tmp_path/'x.pt')
    def full(*args, **kwargs): raise torch.OutOfMemoryError('CUDA out of memory')
    monkeypatch.setattr(torch, 'load', full)
    with pytest.raises(torch.OutOfMemoryError): newest_checkpoint(run/'ck')

# Encoder files

@pytest.fixture(scope='module')
def encoder(tmp_path_factory):
    file = tmp_path_factory.mktemp('encoder')/'e.safetensors'
    net = nn.Sequential(nn.Conv2d(1,4,3), nn.BatchNorm2d(4), nn.Conv2d(4,4,3).bfloat16())
    return save_encoder(net, file, stats=[[.5],[.25]], size=8)

def new_net(): return nn.Sequential(nn.Conv2d(1,4,3), nn.BatchNorm2d(4), nn.Conv2d(4,4,3).bfloat16())

def test_no_flipped_bit_of_an_encoder_file_loads_as_another(encoder, tmp_path):
    "Weights, names and what is recorded: every bit of the header, and 300 of the rest"
    b = encoder.read_bytes()
    want = flat(load_encoder(encoder, new_net()).state_dict())
    head = 8+int.from_bytes(b[:8], 'little')
    r,loaded = random.Random(0),0
    for p in [*range(0, 8*head, 3), *(r.randrange(8*head, 8*len(b)) for _ in range(300))]:
        (tmp_path/'x').write_bytes(flip(b, [p]))
        try: got = load_encoder(tmp_path/'x', new_net())
        except (ValueError, TypeError) as e:
            assert len(str(e).splitlines())==1
            continue
        loaded += 1
        assert_same(flat(got.state_dict()), want)
        assert got.meta==dict(stats=[[.5],[.25]], size=8), (p//8, b[p//8-9:p//8+9])
    assert loaded<20   # bits of padding

@pytest.mark.parametrize('n', [0, 5, 8, 100, -1])
def test_a_cut_encoder_file_is_refused(encoder, tmp_path, n):
    (tmp_path/'x').write_bytes(encoder.read_bytes()[:n])
    with pytest.raises(ValueError, match='not a whole safetensors file'): load_encoder(tmp_path/'x', new_net())

def test_older_encoder_files_and_those_of_others_still_load(encoder, tmp_path):
    from safetensors.torch import load_file, save_file
    weights = load_file(encoder)
    text = json.dumps(dict(spec=None, version='0.1', size=8))
    for metadata in (dict(self_supervised=text), dict(self_supervised=text, format='pt'), dict(format='pt', other='x'), None):
        save_file(weights, tmp_path/'x', metadata)
        assert load_encoder(tmp_path/'x', new_net()).meta==(dict(size=8) if metadata and 'self_supervised' in metadata else dict(weights_from='x'))
    assert encoder_info(encoder).keys()=={'spec','version','stats','size'}

# The same run, or its change is named

def net_of(width=4, extra=False):
    layers = [nn.Conv2d(1,width,3,2), nn.BatchNorm2d(width), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(width, width)) if extra else nn.Sequential(*layers)

def small(cbs=(), x=None, y=None, bs=16, splits=None, net=None, heads=None, seed=0, size=8, n_views=2, loss=None, lr=None, **views):
    "A learner of two batches an epoch"
    seed_everything(seed)
    digits_x,digits_y,_ = digits()
    dls = tensor_dls(digits_x[:32] if x is None else x, digits_y[:32] if y is None else y, splits, bs=bs, seed=seed)
    kw = dict(jitter=False, bw=False, blur=False, solarize=False, stats=None) | views
    model = create_byol_model(net or net_of(), **dict(hidden_size=8, projection_size=4) | (heads or {}))
    augs = get_byol_aug_pipelines(size, **kw) if n_views==2 else get_multi_aug_pipelines(n_views, size, **kw)
    return byol_learner(dls, model, augs, loss_func=loss, cbs=[*cbs])

def go(learn, folder, epochs=2, **kwargs):
    with learn.no_bar(), learn.no_logging(), redirect_stdout(io.StringIO()): learn.fit(epochs, cbs=Checkpoint(folder, **kwargs))

X,Y,_ = digits()

@pytest.mark.parametrize('kwargs,words', [
    (dict(cbs=[MixedPrecision('bf16')]), ['callbacks', 'MixedPrecision', 'bf16']),
    (dict(cbs=[GradientClip(1.)]), ['callbacks', 'GradientClip(max_norm=1.0']),
    (dict(cbs=[GradientAccumulation(32)]), ['callbacks', 'GradientAccumulation(n_acc=32)']),
    (dict(x=X[32:64]), ['other data', 'contents', '32 of 32']),
    (dict(y=Y[:32].clone().index_fill_(0, torch.tensor(3), 9-Y[3].item())), ['other data', 'labels']),
    (dict(flip_p=.1), ['operation 2 of view 1', 'p=0.1']),
    (dict(resize_scale=(.9,1.)), ['operation 1 of view 1', 'scale=(0.9, 1.0)']),
    (dict(stats=([.5],[.5])), ['operation', 'no operation 3', 'NormalizeViews', '0.5']),
])
def test_another_run_is_refused_and_the_difference_named(tmp_path, kwargs, words):
    "Callbacks that change training, the data, and the views belong to what must be the same"
    go(small(), tmp_path)
    with pytest.raises(ValueError) as e: go(small(**kwargs), tmp_path)
    message = one_line(e)
    assert '\n' not in message and all(w in message for w in words), message

def fitted(learn, folder, method='fit', epochs=2, **kwargs):
    "A fit by one of the methods of a learner"
    with learn.no_bar(), learn.no_logging(), redirect_stdout(io.StringIO()): getattr(learn, method)(epochs, cbs=Checkpoint(folder), **kwargs)

class Steady(Callback):
    "One of a user's own, which changes nothing"

def reordered(x): return x[[1,0,*range(2,32)]]
def squared(preds, *targs, **_): return sum((p-t).square().mean() for p,t in zip(preds, targs))

# What is changed → arguments of `small`, and of the fit; and a word of what is said
changes = {
    'pictures':             (dict(x=X[32:64]), {}, 'other data'),
    'fewer pictures':       (dict(x=X[:16], y=Y[:16]), {}, 'pictures 32'),
    'order of pictures':    (dict(x=reordered(X[:32])), {}, 'contents of 2 of 32'),
    'labels':               (dict(y=9-Y[:32]), {}, 'labels'),
    'split':                (dict(splits=(range(16,32), range(16))), {}, 'pictures 32'),
    'batch size':           (dict(bs=8), {}, 'batch'),
    'size of views':        (dict(size=6), {}, 'operation'),
    'a view more':          (dict(n_views=3), {}, 'view'),
    'probability of a flip':(dict(flip_p=.1), {}, 'p=0.1'),
    'crops':                (dict(resize_scale=(.9,1.)), {}, 'scale'),
    'normalisation':        (dict(stats=([.5],[.5])), {}, 'operation'),
    'network':              (dict(net=net_of(6)), {}, 'model'),
    'a layer more':         (dict(net=net_of(extra=True)), {}, 'parameters'),
    'heads':                (dict(heads=dict(hidden_size=12)), {}, 'model'),
    'a deeper head':        (dict(heads=dict(nlayers=3)), {}, 'parameters'),
    'loss':                 (dict(loss=squared), {}, 'loss'),
    'precision':            (dict(cbs=[MixedPrecision('bf16')]), {}, 'bf16'),
    'a callback more':      (dict(cbs=[GradientClip(1.)]), {}, 'GradientClip'),
    'accumulation':         (dict(cbs=[GradientAccumulation(32)]), {}, 'GradientAccumulation'),
    'epochs':               ({}, dict(epochs=3), 'epochs'),
    'optimizer':            ({}, dict(recipe='sgd'), 'optimizer'),
    'learning rate':        ({}, dict(lr=.5), 'learning rate'),
    'weight decay':         ({}, dict(wd=.5), 'weight decay'),
    'momentum':             ({}, dict(m=.5), 'schedule'),
    'warm-up':              ({}, dict(warmup_epochs=1), 'schedule'),
    'recipe':               ({}, dict(recipe='lars', lr=None), 'optimizer')}

@pytest.mark.parametrize('name', changes)
def test_a_run_is_not_resumed_as_another_without_a_word(tmp_path, name):
    "Refused, with what differs; what may change, such as the order or a few pictures, is warned of"
    made,asked,word = changes[name]
    kw = dict(method='fit_byol', recipe='adamw', lr=1e-3)
    fitted(small(), tmp_path, **kw)
    try: messages = said(fitted, small(**made), tmp_path, **kw | asked)
    except ValueError as e: messages = [str(e).split('\n\t')[-1]]
    assert any(word in m and len(m.splitlines())==1 for m in messages), messages

def test_what_does_not_matter_does_not_keep_a_run_from_going_on(tmp_path):
    "A callback that changes nothing, another way to save"
    fitted(small(), tmp_path, 'fit_byol', recipe='adamw', lr=1e-3)
    messages = said(fitted, small(cbs=[Steady()]), tmp_path, 'fit_byol', recipe='adamw', lr=1e-3)
    assert not [m for m in messages if 'holds' in m]

@pytest.mark.parametrize('cb', [MixedPrecision, partial(GradientClip, 1.), partial(GradientAccumulation, 32)])
def test_a_callback_that_is_missing_or_set_otherwise_is_named(tmp_path, cb):
    go(small([cb()]), tmp_path)
    go(small([cb()]), tmp_path)   # the same is welcome
    with pytest.raises(ValueError, match='callbacks'): go(small(), tmp_path)

def test_some_contents_that_changed_are_warned_of(tmp_path):
    "A picture that was repaired does not cost the run"
    x = X[:32].clone()
    go(small(x=x), tmp_path)
    x[3] = 0
    messages = said(go, small(x=x), tmp_path)
    assert any('contents of 1 of 32 pictures' in m for m in messages)

def test_a_checkpoint_that_says_nothing_of_its_data_goes_on(tmp_path):
    go(small(), tmp_path)
    file = checkpoint_files(tmp_path)[-1]
    state = read_checkpoint(file)
    state['facts'] = {k: v for k,v in state['facts'].items() if k not in ('data','callbacks') and 'view' not in k}
    torch.save(state, file)
    go(small(), tmp_path)

def scaled(by, power=1): return lambda x: x*by**power

class Cutout(Callback):
    "One of a user's own that changes pictures"
    def __init__(self, size=2): self.size = size
    def before_batch(self): self.learn.xb = (self.x.clone(),)

@pytest.mark.parametrize('was,now,word', [
    (lambda: scaled(.9), lambda: scaled(.8), '0.8'), (lambda: scaled(.9), lambda: scaled(.9, 2), '2'),
    (lambda: lambda x: x*.9, lambda: lambda x: x*.8, '0.8'), (lambda: lambda x, by=.9: x*by, lambda: lambda x, by=.8: x*by, '0.8'),
    (lambda: partial(torch.mul, other=.9), lambda: partial(torch.mul, other=.8), '0.8'),
    (lambda: Times(.9).apply, lambda: Times(.8).apply, '0.8')])
def test_functions_that_were_given_other_values_are_other_views(was, now, word, tmp_path):
    "By capture, by default, in their text, or by the object they belong to"
    def learn(f):
        learn = small()
        learn.byol.augs = [f, lambda x: x]
        return learn
    go(learn(was()), tmp_path)
    go(learn(was()), tmp_path)   # the same is welcome
    with pytest.raises(ValueError, match='operation 1 of view 1') as e: go(learn(now()), tmp_path)
    assert word in one_line(e)

class Times:
    def __init__(self, by): self.by,self.seen = by,0
    def apply(self, x):
        self.seen += 1
        return x*self.by

def test_a_function_that_calls_itself_or_captures_what_changes_is_described():
    seen = []
    def f(x): return f(x) if seen else 1.5
    text = described(f)
    seen.append(2)
    assert described(f)==text and '1.5' in text

@pytest.mark.parametrize('was,now', [([], [Cutout()]), ([Cutout()], []), ([Cutout(2)], [Cutout(3)])])
def test_callbacks_of_your_own_that_act_before_the_step_are_named(was, now, tmp_path):
    "Warned of: whether they change training is not known"
    go(small(cbs=was), tmp_path)
    messages = [m for m in said(go, small(cbs=now), tmp_path) if 'of your own' in m]
    assert len(messages)==1 and 'Cutout(size=' in messages[0]
    assert not any('of your own' in m for m in said(go, small(cbs=was), tmp_path))

def fewer(f): return np.full((1,8,8), .5, np.float32)
def other(f): return np.full((1,8,8), .25, np.float32)

def own_loader(pics, size, **kw): return ImageDataLoaders.from_folder(pics, valid_pct=.2, seed=0, item_tfms=Resize(size), bs=4, num_workers=0, **kw)

@pytest.mark.parametrize('how,was,now,word', [
    ('image_dls', dict(ground='white'), dict(ground='black'), '(0, 0, 0)'), ('image_dls', {}, dict(full_scale=4095), '4095'),
    ('image_dls', dict(reader=fewer), dict(reader=other), 'other'), ('image_dls', dict(size=8), dict(size=10), '10'),
    ('image_dls', {}, dict(keep=True), None), ('image_dls', {}, dict(max_pixels=10**7), None),
    ('fastai', dict(size=8), dict(size=10), '10')])
def test_pictures_that_are_read_otherwise_are_other_data(pics, how, was, now, word, tmp_path):
    "Background, depth, reader and size, also of fastai's loaders; where they are kept is a warning, as below"
    def learn(size=8, **kw):
        dls = image_dls(pics, size, n_in=1, bs=4, workers=0, seed=0, **kw) if how=='image_dls' else own_loader(pics, size)
        seed_everything(0, dls)
        views = [lambda x: x[:,:1,:8,:8], lambda x: x[:,:1,:8,:8].flip(-1)]
        return byol_learner(dls, create_byol_model(net_of(), hidden_size=8, projection_size=4), views)
    go(learn(**was), tmp_path/'ck')
    if word is None: return go(learn(**now), tmp_path/'ck')
    if how=='fastai': return one_warning(said(go, learn(**now), tmp_path/'ck'), word)
    with pytest.raises(ValueError, match='reading by OpenPicture') as e: go(learn(**now), tmp_path/'ck')
    assert word in one_line(e)

@pytest.mark.parametrize('size', [8, None])
@pytest.mark.parametrize('kept', [True, False])
def test_a_run_that_goes_on_with_pictures_from_another_place_is_warned_of(kept, size, tmp_path):
    "The long side in memory is rounded before the cut, so wide pictures differ by half a pixel; uncut ones do not"
    for i in range(12): Image.fromarray(np.random.default_rng(i).integers(0, 256, (8,11), dtype=np.uint8)).save(tmp_path/f'{i}.png')
    def learn(keep):
        dls = image_dls(tmp_path, size, n_in=1, bs=4, workers=0, seed=0, valid=0., keep=keep)
        views = [lambda x: x[:,:1,:8,:8], lambda x: x[:,:1,:8,:8].flip(-1)]
        return byol_learner(dls, create_byol_model(net_of(), hidden_size=8, projection_size=4), views)
    go(learn(kept), tmp_path/'ck')
    def warned(keep): return [m for m in said(go, learn(keep), tmp_path/'ck') if 'keep=' in m]
    assert not warned(kept)
    found = warned(not kept)
    assert len(found)==bool(size) and all(f'began with keep={kept}' in m and f'Pass keep={kept} to repeat' in m for m in found)

def one_warning(messages, *words):
    found = [m for m in messages if 'steps of the loader' in m]
    assert len(found)==1 and all(w in found[0] for w in words), messages

@pytest.mark.parametrize('was,now,word', [
    (dict(batch_tfms=aug_transforms(max_rotate=10)), dict(batch_tfms=aug_transforms(max_rotate=45)), '45'),
    (dict(batch_tfms=[lambda x: x*.9]), dict(batch_tfms=[lambda x: x*.8]), '0.8'),
    (dict(batch_tfms=[partial(torch.mul, other=.9)]), dict(batch_tfms=[partial(torch.mul, other=.8)]), '0.8'),
    (dict(batch_tfms=Brightness(.2)), dict(batch_tfms=Brightness(.6)), '0.6')])
def test_transforms_of_a_fastai_loader_are_named(pics, was, now, word, tmp_path):
    "Warned of: some learn from random batches, as `Normalize()` does. Used before, they are the same"
    def learn(**kw):
        dls = own_loader(pics, 8, **kw)
        seed_everything(0, dls)
        dls.one_batch()
        return byol_learner(dls, create_byol_model(net_of(), hidden_size=8, projection_size=4), [lambda x: x[:,:1,:8,:8]]*2)
    go(learn(**was), tmp_path/'ck')
    assert not [m for m in said(go, learn(**was), tmp_path/'ck') if 'steps of the loader' in m]
    one_warning(said(go, learn(**now), tmp_path/'ck'), word)

def test_what_normalize_learned_from_a_batch_does_not_end_a_run(pics, tmp_path):
    def learn(seed):
        seed_everything(seed)
        dls = own_loader(pics, 8, batch_tfms=[Normalize()])
        return byol_learner(dls, create_byol_model(net_of(), hidden_size=8, projection_size=4), [lambda x: x[:,:1,:8,:8]]*2)
    go(learn(0), tmp_path/'ck')
    one_warning(said(go, learn(1), tmp_path/'ck'), 'Normalize')

class Interrupt(Callback):
    order = 2000
    def after_batch(self):
        if self.train_iter==2: raise KeyboardInterrupt

class Counts:
    def __init__(self, p): self.p,self.seen = p,0
    def __call__(self, x):
        self.seen += 1
        return x*self.p

def counted(p):
    n = 0
    def view(x):
        nonlocal n
        n += 1
        return x*p
    return view

@pytest.mark.parametrize('view', [lambda: Counts(.9), lambda: counted(.9), lambda: Counts(.9).__call__])
def test_views_that_change_as_they_work_do_not_end_a_script_of_two_fits(view, tmp_path):
    "Killed in its second fit and run again, it goes on; another view is refused all the same"
    def script(view, *cbs):
        learn,keep = small(),Checkpoint(tmp_path, every=1)
        learn.byol.augs = [view, lambda x: x]
        with learn.no_bar(), learn.no_logging(), redirect_stdout(io.StringIO()):
            learn.fit(1, cbs=keep)
            learn.fit(2, cbs=[keep, *cbs])
    with pytest.raises(KeyboardInterrupt): script(view(), Interrupt())
    script(view())
    with pytest.raises(ValueError, match='operation 1 of view 1'): script(lambda x: x*.5)

def test_a_checkpoint_that_names_functions_alone_goes_on(tmp_path):
    "As those did that were written before functions were described"
    def learn():
        learn = small()
        learn.byol.augs = [lambda x: x*.9, lambda x: x]
        return learn
    go(learn(), tmp_path)
    file = checkpoint_files(tmp_path)[-1]
    state = read_checkpoint(file)
    state['facts'] = {k: v.partition('(')[0] if k.startswith('operation') else v for k,v in state['facts'].items() if k not in ('steps of the loader','callbacks of your own')}
    torch.save(state, file)
    go(learn(), tmp_path)

def test_an_older_checkpoint_of_a_stream_is_not_that_of_a_folder(tmp_path):
    "Only functions are compared loosely with it"
    go(small(), tmp_path)
    file = checkpoint_files(tmp_path)[-1]
    state = read_checkpoint(file)
    state['facts'] = {k: v for k,v in state['facts'].items() if k not in ('steps of the loader','callbacks of your own')} | {'pictures': None}
    torch.save(state, file)
    with pytest.raises(ValueError, match='pictures None, and this one has pictures 32'): go(small(), tmp_path)

def test_a_transform_of_torchvision_belongs_to_the_data(pics):
    def steps(size): return [as_made(o) for o in steps_of(torch.utils.data.DataLoader(ImageFolder(pics, T.Compose([T.Resize(size), T.ToTensor()])), batch_size=4))]
    assert steps(8)==steps(8)!=steps(10) and 'size=10' in steps(10)[0]

@pytest.fixture
def pics(tmp_path):
    for i in range(12):
        f = tmp_path/'pics'/'ab'[i%2]/f'{i}.png'
        f.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((X[i,0]*255).byte().numpy()).save(f)
    return tmp_path/'pics'

def facts_of(source, **kwargs): return data_facts(image_dls(source, 8, n_in=1, bs=4, workers=0, valid=0., **kwargs).train.dataset)

def move(pics): (pics/'a'/'0.png').rename(pics/'b'/'0.png')
def rename(pics): (pics/'a'/'0.png').rename(pics/'a'/'00.png')
def replace(pics):
    for f in pics.rglob('*.png'): Image.new('L', (40,40), 77).save(f)

@pytest.mark.parametrize('change,kinds', [(move, {'names'}), (rename, {'names'}), (replace, {'contents'})])
@pytest.mark.parametrize('label_func', [None, parent_label])
def test_facts_of_files_change_with_the_files(pics, change, kinds, label_func):
    was = facts_of(pics, label_func=label_func)
    assert facts_of(pics, label_func=label_func)==was
    change(pics)
    now = facts_of(pics, label_func=label_func)
    assert kinds<={k for k in was if was[k]!=now[k]}<={*kinds,'contents'}   # in another order there are others

def test_facts_do_not_depend_on_where_the_folder_lies(pics):
    was = facts_of(pics)
    pics.rename(pics.with_name('elsewhere'))
    assert facts_of(pics.with_name('elsewhere'))==was

def test_labels_of_a_function_or_a_table_are_facts(pics):
    import pandas as pd
    files = sorted(pics.rglob('*.png'))
    def table(i): return pd.DataFrame(dict(path=[str(f) for f in files], label=['x' if (k%2)^(k==i) else 'y' for k in range(12)]))
    def by_function(i): return facts_of(files, label_func=lambda f: 'x' if (int(f.stem)%2)^(int(f.stem)==i) else 'y')
    def by_table(i): return facts_of(table(i), column='path', label_func='label')
    for make_facts in (by_function, by_table):
        was = make_facts(None)
        assert make_facts(None)==was and {k for k,v in make_facts(5).items() if v!=was[k]}=={'labels'}

# Divergence

class Diverge(Callback):
    "Weights that break in a step, so that all losses after it are not finite"
    order = 500
    def __init__(self, step, to=float('nan')): self.step,self.to = step,to
    def after_step(self):
        if self.train_iter==self.step-1:
            with torch.no_grad(): [p for p in self.model.parameters() if p.requires_grad][0].fill_(self.to)

@pytest.mark.parametrize('to', [float('nan'), float('inf'), 3e38])
@pytest.mark.parametrize('settings', [dict(every=1, keep=2), dict(every=1, keep=1), dict(minutes=0, keep=2), dict(every=2, keep=2), dict(keep=2)])
def test_a_divergence_leaves_a_good_checkpoint(tmp_path, to, settings):
    "The weights of one of those that are left are finite, and of before the step that broke them"
    learn = make(tmp_path)
    step = 6 if 'every' in settings or 'minutes' in settings else STEPS+3
    with pytest.raises(Exception, match='in a row'), redirect_stdout(io.StringIO()):
        learn.fit(5, cbs=[Checkpoint(tmp_path/'ck', **settings), Diverge(step, to)])
    good = [s for s in map(read_checkpoint, checkpoint_files(tmp_path/'ck')) if s['position']['step']<step]
    if settings['keep']==1 and to==3e38: return   # finite, and known to be bad only when nothing else is left
    assert good and all(v.isfinite().all() and v.abs().max()<1e6 for s in good for v in s['model'].values())
    assert all(v.isfinite().all() for f in checkpoint_files(tmp_path/'ck') for v in read_checkpoint(f)['model'].values())

class Bad(Callback):
    "Inputs that are not finite in some batches"
    order = -100
    def __init__(self, steps): self.steps = steps
    def before_batch(self):
        if self.training and self.train_iter in self.steps: self.learn.xb = (self.xb[0]*float('nan'),)

def test_a_few_bad_batches_cost_no_exactness_and_files_are_tidied_afterwards(tmp_path):
    bad = partial(Bad, {3,4,5})
    want = outcome(fit(tmp_path/'whole', learner_cbs=[bad]))
    assert in_child(fit, tmp_path/'killed', cbs=[Kill('after_batch', 5)], learner_cbs=[bad])==-signal.SIGKILL
    assert [f.name[-5:-3] for f in checkpoint_files(tmp_path/'killed'/'ck')]==['02','03']
    got = outcome(fit(tmp_path/'killed', learner_cbs=[bad]))
    assert_same(got, want)
    assert len(checkpoint_files(tmp_path/'killed'/'ck'))==2

def test_a_signal_does_not_wait_for_better_steps(tmp_path):
    def run():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        fit(tmp_path, every=None, cbs=[Signal(signal.SIGTERM, 4)], learner_cbs=[partial(Bad, {4,5})])
    assert in_child(run)==-signal.SIGTERM
    assert newest_checkpoint(tmp_path/'ck')['position']['step']==5

# The best

@pytest.mark.parametrize('values,best', [([float('nan'), .5, .7, .6], 3), ([float('nan')]*3+[.1], 4), ([.3, float('nan'), .2, .4], 4),
                                         ([float('inf'), .5, .4, .3], 2), ([None, .5, .4, .6], 4)])
def test_nan_is_never_the_best(tmp_path, values, best):
    it = iter(values)
    learn = make(tmp_path, metrics=ValueMetric(lambda: next(it), 'probe'))
    with redirect_stdout(io.StringIO()): learn.fit(4, cbs=Checkpoint(tmp_path/'ck', monitor='probe'))
    assert read_checkpoint(tmp_path/'ck'/'best.pt')['position']['epoch']==best

# Signals

class InSave(Callback):
    "A signal in the save of a step"
    def __init__(self, signum, step): self.signum,self.step = signum,step
    def before_fit(self):
        import self_supervised.callback.checkpoint as room
        write = room.write_checkpoint
        def noisy(folder, state, *args):
            write(folder, state, *args)
            if state['position']['step']==self.step: signal.raise_signal(self.signum)
        room.write_checkpoint = noisy

@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('every', [None, 1])
def test_a_signal_in_the_last_save_of_a_fit_is_not_forgotten(tmp_path, signum, every):
    def run():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try: fit(tmp_path, epochs=2, every=every, cbs=[InSave(signum, 2*STEPS)])
        except KeyboardInterrupt: os._exit(7)
    assert in_child(run)==(7 if signum==signal.SIGINT else -signal.SIGTERM)
    assert newest_checkpoint(tmp_path/'ck')['position']['step']==2*STEPS

GROUP = '''
import os, signal, sys, time
sys.path[:0] = [{root!r}, {tests!r}]
import test_checkpoint as t
from torch.utils.data import DataLoader as TorchDL
from fastai.data.core import DataLoaders
for s in (signal.SIGTERM, signal.SIGHUP): signal.signal(s, signal.SIG_DFL)
class Slow(t.Noisy):
    def __getitem__(self, i):
        time.sleep(.01)
        return super().__getitem__(i)
if {kind!r}=='persistent':
    t.loaders = lambda kind, bs=16: DataLoaders(*[TorchDL(Slow(), bs, shuffle=s, num_workers=2, persistent_workers=True) for s in (True,False)])
learn = t.make({path!r}, {kind!r})
if {kind!r}=='persistent': next(iter(learn.dls.train))   # its workers are there before the fit
class Tell(t.Callback):
    def before_batch(self):
        if self.train_iter=={step} and self.training: print('now', flush=True)
        time.sleep(.1)
learn.fit(4, cbs=[t.Checkpoint({path!r}+'/ck'), Tell()])
'''

@pytest.mark.parametrize('kind,signum', [('2',signal.SIGTERM), ('torch2',signal.SIGTERM), ('persistent',signal.SIGTERM), ('2',signal.SIGHUP)])
@pytest.mark.parametrize('step', [2, STEPS+1])
def test_a_signal_to_the_group_saves_before_workers_end_the_run(tmp_path, kind, signum, step):
    "As systemd, Slurm and a terminal that closes send it: to the learner and its workers"
    code = GROUP.format(root=str(HERE.parent), tests=str(HERE), path=str(tmp_path), kind=kind, step=step)
    p = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while 'now' not in (line := p.stdout.readline()): assert line, p.stderr.read()
    time.sleep(.02)
    os.killpg(p.pid, signum)
    err = p.communicate(timeout=60)[1]
    assert p.returncode==-signum, err[-2000:]
    assert newest_checkpoint(tmp_path/'ck')['position']['step'] in (step+1, step+2)

def test_workers_are_as_torch_has_them_outside_of_a_fit(tmp_path):
    from torch.utils.data._utils import signal_handling
    was = signal_handling._set_worker_signal_handlers
    fit(tmp_path, epochs=1)
    assert signal_handling._set_worker_signal_handlers is was

# The list of what was skipped

@pytest.mark.parametrize('half', [b'b.png,', b'b.png', b'"b', b'b.png,"half a', b'"two\nli', b'b.png,reason\r', b',,,', b'\xff\xfe,"'])
def test_half_a_row_is_passed_over(tmp_path, half):
    "Left by a kill or a full disk, at the end or with whole rows behind it"
    log = tmp_path/'log.csv'
    s = Skipped(100, 1., log)
    s.add('a.png', 'empty')
    with open(log, 'ab') as f: f.write(half)
    assert set(s)=={'a.png'}
    s.add('two\nlines "c".png', 'cut, "really"')
    s.add('d.png', 'empty')
    with open(log, 'ab') as f: f.write(half)
    s.add('e.png', 'empty')
    other = Skipped.__new__(Skipped)
    other.__dict__.update(s.__dict__, found={}, n_read=0)
    want = {'a.png': 'empty', 'two\nlines "c".png': 'cut, "really"', 'd.png': 'empty', 'e.png': 'empty'}
    assert {k: v for k,v in s.items() if k in want}==want=={k: v for k,v in other.items() if k in want}
    assert set(other)-set(want) <= {'b.png'} and set(s)==set(other)

def test_many_halves_take_no_time(tmp_path):
    log = tmp_path/'log.csv'
    s = Skipped(10**6, 1., log)
    log.write_bytes(b''.join(b'x%d.png,"half\n' % i + b'y%d.png,empty\r\n' % i for i in range(20_000)))
    start = time.perf_counter()
    assert len(s)==20_000 and time.perf_counter()-start<20

def full_disk(log, n): resource.setrlimit(resource.RLIMIT_FSIZE, (n, resource.RLIM_INFINITY))

@pytest.mark.parametrize('n', [0, 3, 20])
def test_a_full_disk_and_a_bad_picture_do_not_end_training(tmp_path, pics, n):
    "Warned of, and another picture takes its place; a part of a row that was written harms nobody"
    for i in (0,1): (pics/'a'/f'bad{i}.png').write_bytes(b'')
    def train():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        dls = image_dls(pics, 8, n_in=1, bs=7, workers=0, valid=0., max_bad=.5, log=tmp_path/'skipped.csv')
        full_disk(None, n)
        with redirect_stdout(io.StringIO()): messages = said(lambda: [b for _ in range(3) for b in dls.train])
        full_disk(None, resource.RLIM_INFINITY)
        assert len([m for m in messages if 'was not written' in m])==2, messages
        assert {Path(o).name for o in dls.skipped}=={'bad0.png','bad1.png'}
        dls.skipped.add('later.png', 'empty')
        assert 'later.png' in set(dls.skipped)
    def run():
        try: train()
        except BaseException:
            full_disk(None, resource.RLIM_INFINITY)
            raise
    assert in_child(run)==0

def test_too_many_are_too_many_on_a_full_disk_as_well(tmp_path):
    def run():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        s = Skipped(10, .1, tmp_path/'log.csv')
        full_disk(None, 0)
        s.add('a.png', 'empty')
        with pytest.raises(ValueError, match='2 of 10'): s.add('b.png', 'empty')
    assert in_child(run)==0

# The same end

class Same:
    "Items that draw nothing"
    def __len__(self): return 96
    def __getitem__(self, i): return (X[i],)

@pytest.mark.parametrize('items', [Noisy, Same])
@pytest.mark.parametrize('make_loader', [TorchDL, DataLoader])
def test_workers_that_are_kept_over_epochs(tmp_path, monkeypatch, items, make_loader):
    "Killed in the second epoch and resumed: the order and the random numbers of workers are those of a run that was not"
    def persistent(kind, bs=16):
        return DataLoaders(*[make_loader(items(), bs, shuffle=s, num_workers=2, persistent_workers=True) for s in (True,False)])
    monkeypatch.setattr(test_checkpoint, 'loaders', persistent)
    assert_survives(tmp_path, [Kill('after_batch', STEPS+3)], kind='torch2' if make_loader is TorchDL else '2')

def test_four_ranks_go_on_to_the_same_end(tmp_path):
    "To the last bit, from the middle of an epoch; and parameters that take no part do no harm"
    launch([*TORCHRUN[:-1], '4'], tmp_path, 'resumed', 'unused')
    for r in range(4):
        res = torch.load(tmp_path/f'resumed-{r}.pt')
        assert all(torch.equal(v, res['whole'][k]) for k,v in res['resumed'].items())
    check_same([torch.load(tmp_path/f'unused-{r}.pt') for r in range(4)])

# ---- what a fresh reviewer found

def test_arrays_of_bytes_are_read_as_they_are():
    "Lists of arrays, and a reader that returns them (cv2, imageio)"
    a = np.random.default_rng(0).integers(0, 256, (20,16,16,3), dtype=np.uint8)
    x, = image_dls(list(a), 16, bs=4, workers=0, valid=0.).train.one_batch()
    assert x.shape==(4,3,16,16)
    want = torch.from_numpy(a[0]).permute(2,0,1)/255
    assert torch.equal(open_picture(a[0]), want)
    assert torch.equal(open_picture('any.bin', reader=lambda f: a[0]), want)

@pytest.mark.parametrize('how', ['bmp','array','npy'])
def test_pictures_replaced_by_others_of_the_same_size_are_another_data_set(how, tmp_path):
    "Every file of some formats has the same size"
    def facts(seed):
        a = np.random.default_rng(seed).integers(0, 256, (12,8,8), dtype=np.uint8)
        if how=='array': return facts_of(list(a))
        for i,o in enumerate(a):
            if how=='npy': np.save(tmp_path/f'{i}.npy', o)
            else: Image.fromarray(o).save(tmp_path/f'{i}.bmp')
        return facts_of(tmp_path, **(dict(reader=np.load, suffixes='.npy') if how=='npy' else {}))
    was = facts(0)
    assert facts(0)==was and facts(1)!=was

@pytest.mark.parametrize('name', ['features','column_names','format'])
def test_a_table_may_name_its_columns_as_it_likes(name, pics):
    import pandas as pd
    files = sorted(map(str, pics.rglob('*.png')))[:8]
    df = pd.DataFrame({name: range(len(files)), 'picture': files})
    assert len(picture_items(df, 'picture'))==len(files)

@pytest.mark.parametrize('change', ['pooling', 'activation'])
def test_other_layers_without_weights_are_another_network(change, tmp_path):
    def network(pool=nn.AdaptiveAvgPool2d, act=nn.ReLU):
        return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), act(), pool(1), nn.Flatten())
    def learner(**layers):
        seed_everything(0)
        model = create_byol_model(network(**layers), 16, 8, n_in=1, size=8)
        learn = byol_learner(tensor_dls(digits()[0][:64], bs=16, seed=0), model, [lambda x: x*.9]*2, m=.9)
        learn.add_cb(Checkpoint(tmp_path/'c'))
        return learn
    class Stop(Callback):
        def after_epoch(self):
            if self.epoch: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): quiet(learner().fit, 3, 1e-3, cbs=Stop())
    other = dict(pooling=dict(pool=nn.AdaptiveMaxPool2d), activation=dict(act=nn.GELU))[change]
    with pytest.raises(ValueError, match='layers without weights differ'): quiet(learner(**other).fit, 3, 1e-3)
    quiet(learner().fit, 3, 1e-3)

# ---- what a second reviewer found

def shifted(x): return (x-.5)/.25   # of which nothing tells
def clean(x): return x*.9

@pytest.mark.parametrize('views,scale,known', [(clean, 1., dict(stats=None, n_in=1, size=8)), (shifted, 1., dict(n_in=1, size=8)),
                                               (None, 1., dict(stats=[[.5],[.25]], n_in=1, size=8)),
                                               ('vectors', 5., dict(stats=None, any_range=True, n_in=64))])
@pytest.mark.parametrize('killed', [False, True])
def test_the_record_of_an_encoder_is_resumed(views, scale, known, killed, tmp_path):
    "Of a fit that is over, and of one that was stopped in its last epoch: neither looks at a first batch"
    def train(*cbs):
        seed_everything(0)
        x = digits()[0][:64]*scale
        net = nn.Linear(64, 8) if views=='vectors' else create_encoder('tiny_resnet', pretrained=False, n_in=1)
        augs = [clean]*2 if views=='vectors' else [views]*2 if views else get_byol_aug_pipelines(8, jitter=False, bw=False, stats=([.5],[.25]))
        model = create_byol_model(net, 16, 8, **({} if views=='vectors' else dict(n_in=1, size=8)))
        learn = byol_learner(tensor_dls(x.flatten(1) if views=='vectors' else x, bs=16, seed=0), model, augs, cbs=[Checkpoint(tmp_path/'ck', every=3), *cbs])
        with redirect_stdout(io.StringIO()), learn.no_bar(): quiet(learn.fit, 2, 1e-3)
        assert record_of(model.target.encoder)==record_of(net)
        return record_of(net)
    def is_known(record): return {k: v for k,v in record.items() if k in ('stats','n_in','size','any_range')}==known
    if killed: assert in_child(train, Kill('after_batch', 7))==-signal.SIGKILL
    else: assert is_known(train())
    assert is_known(train())

def test_a_checkpoint_without_the_record_goes_on(tmp_path):
    "An older one"
    want = outcome(fit(tmp_path, epochs=1))
    for f in checkpoint_files(tmp_path/'ck'):
        state = read_checkpoint(f)
        assert state['callbacks']['byol'].pop('kept')
        with open(f, 'wb+') as file: write_sealed(state, file)
    assert_same(outcome(fit(tmp_path, epochs=1)), want)

@pytest.mark.parametrize('name', ['checkpoints/fit000-step000000005.pt', 'checkpoints/best.pt', 'encoder.safetensors', 'results.json', 'settings.json',
                                  'held_out.csv', 'history.csv', 'report.html', 'export.pkl', 'classifier.onnx', 'views.png'])
def test_a_folder_with_a_part_of_a_run_holds_a_run(name, tmp_path, capsys):
    (tmp_path/'run'/name).parent.mkdir(parents=True)
    (tmp_path/'run'/name).touch()
    # Files of other names may be yours
    what = 'a run' if name.endswith('.pt') or name in ('encoder.safetensors','results.json','settings.json') else name
    assert free_folder(tmp_path/'run')==tmp_path/'run-2' and f'/run holds {what} already: ' in capsys.readouterr().out
    (tmp_path/'run'/name).unlink()
    assert free_folder(tmp_path/'run')==tmp_path/'run'
    for o in ('run','run-2'): release(tmp_path/o)

@pytest.mark.parametrize('error', [OSError,KeyboardInterrupt])
def test_a_start_without_settings_leaves_its_folder_free(error, tmp_path, monkeypatch):
    "The list of those held out is written before; it made the folder a run's, and the next run went to another"
    monkeypatch.chdir(tmp_path)
    write_mnist_tiny('pics')
    def fail(*args): raise error('disk full')
    how = dict(arch='tiny_resnet', size=16, n_in=1, bs=32, epochs=1, workers=0, hidden_size=32, projection_size=16, progress=False)
    with monkeypatch.context() as m, pytest.raises(error):
        m.setattr(pretrain_room, 'write_settings', fail)
        pretrain('pics', 'run', **how)
    assert not Path('run').exists()
    assert pretrain('pics', 'run', **how)[2]==Path('run') and read_held_out('run')

@pytest.mark.parametrize('out', ['.','../run','../run/.','./'])
def test_the_working_directory_may_hold_a_run(out, tmp_path, monkeypatch):
    "A folder without a name has no second one: ValueError"
    (tmp_path/'run').mkdir()
    (tmp_path/'run/settings.json').touch()
    monkeypatch.chdir(tmp_path/'run')
    free = free_folder(out)
    assert os.path.samefile(free, tmp_path/'run-2')
    release(free)

@pytest.mark.parametrize('make_it', [os.mkfifo, lambda path: socket.socket(socket.AF_UNIX).bind(path), lambda path: os.symlink('/dev/zero', path), os.mkdir])
def test_facts_wait_for_no_pipe_or_device(make_it, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_it('a.png')
    class Items: items = ['a.png', str(HERE/'conftest.py')]
    def look():
        contents = data_facts(Items())['contents']
        assert contents[0]==-1!=contents[1]
        os._exit(5)
    pid = os.fork()
    if not pid:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
        try: look()
        finally: os._exit(6)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])==5

# Outputs

def broken_output(encoding='utf-8'):
    "A pipe that nobody reads"
    read,write = os.pipe()
    os.close(read)
    return open(write, 'w', encoding=encoding)

def test_a_command_goes_on_without_its_output(monkeypatch):
    "Both streams, whatever the letters, and what is left in a buffer at the end"
    out,err = broken_output('ascii'),broken_output()
    monkeypatch.setattr(sys, 'stdout', out)
    monkeypatch.setattr(sys, 'stderr', err)
    with steady_output('byol_x'):
        for i in range(3000): print('猫', i, flush=i%2==0)
        print('warned', file=sys.stderr)
    assert sys.stdout is out and sys.stderr is err
    out.close()

@pytest.mark.parametrize('encoding,text', [('ascii', r'\u2192 \u732b \udce9 ok'), ('latin-1', r'\u2192 \u732b \udce9 ok'), ('utf-8', '→ 猫 \\udce9 ok')])
def test_letters_that_an_output_does_not_know_are_escaped(encoding, text, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'stdout', open(tmp_path/'log', 'w', encoding=encoding))
    with steady_output('byol_x'): print('→ 猫 \udce9 ok')
    assert (tmp_path/'log').read_text(encoding).strip()==text

def test_a_full_disk_is_told_at_the_end_and_a_closed_output_is_none(monkeypatch):
    monkeypatch.setattr(sys, 'stdout', open('/dev/full', 'w'))
    done = []
    with pytest.raises(CliError, match=r'^byol_x: some lines were not printed \(No space left on device\)\. Free some space\.$'), steady_output('byol_x'):
        print('a')
        done.append(1)
    assert done
    monkeypatch.setattr(sys, 'stdout', None)
    with steady_output('byol_x'): print('a'), sys.stdout.isatty()

def test_the_command_itself_trains_into_a_closed_pipe(tmp_path):
    "With an arrow in its recipe, in ASCII"
    env = os.environ | dict(PYTHONIOENCODING='ascii', MPLBACKEND='Agg')
    with broken_output() as out:
        res = subprocess.run([Path(sys.executable).with_name('byol_pretrain'), *'--epochs 1 --hidden_size 16 --projection_size 8 --out run'.split()],
                             cwd=tmp_path, stdout=out, stderr=subprocess.PIPE, text=True, env=env)
    assert res.returncode==0 and 'Error' not in res.stderr and 'not written' not in res.stderr, res.stderr
    assert {'encoder.safetensors','report.html'}<={f.name for f in (tmp_path/'run').iterdir()} and checkpoint_files(tmp_path/'run'/'checkpoints')

def test_an_output_that_fails_is_not_taken_for_the_file(tmp_path):
    class Rows(History):
        old_logger = lambda self, log: print(*log, file=broken, flush=True)
        file = open(tmp_path/'h.csv', 'w')
    broken = broken_output()
    rows = Rows()
    with warnings.catch_warnings(), pytest.raises(BrokenPipeError):
        warnings.simplefilter('error')
        rows._write_line([1,2.])
    assert (tmp_path/'h.csv').read_text()=='1,2.0\n'
    with pytest.raises(BrokenPipeError): broken.close()
    shown = []
    rows.old_logger,rows.file = shown.append,open('/dev/full', 'w')
    message, = said(rows._write_line, [2,3.])
    assert '(No space left on device). Training goes on. Free some space.' in message and shown==[[2,3.]]

# A terminal that closes

def test_a_terminal_that_closes_saves_first(tmp_path):
    "As at the end of an ssh connection, with a bar that is drawn in it"
    class Tell(Callback):
        def before_batch(self):
            if self.training and self.train_iter==2: print('now', flush=True)
            time.sleep(.05)
    pid,terminal = pty.fork()
    if not pid:
        try:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            sys.stdout,sys.stderr = open(1, 'w'),open(2, 'w')
            learn = make(tmp_path)
            learn.add_cb(ProgressCallback())
            learn.fit(50, cbs=[Checkpoint(tmp_path/'ck', minutes=60), Tell()])
        finally: os._exit(99)
    seen = b''
    while b'now' not in seen: seen += os.read(terminal, 1000)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])==-signal.SIGHUP
    assert newest_checkpoint(tmp_path/'ck')['position']['step']>=3

def test_a_signal_inside_of_a_print_saves_first(tmp_path):
    "Where no other print can begin: that of the notice went through `print`, and ended the run"
    class Interrupted(io.FileIO):
        def write(self, data):
            if b'now' in bytes(data): signal.raise_signal(signal.SIGTERM)
            return super().write(data)
    class Tell(Callback):
        def before_batch(self):
            if self.training and self.train_iter==2: print('now', flush=True)
    def run():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        learn = make(tmp_path)
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(Interrupted(tmp_path/'log', 'w')))
        learn.fit(5, cbs=[Checkpoint(tmp_path/'ck'), Tell()])
    assert in_child(run)==-signal.SIGTERM and newest_checkpoint(tmp_path/'ck')['position']['step']==3
    assert 'SIGTERM: saving after this step' in (tmp_path/'log').read_text()

def test_nohup_goes_on(tmp_path):
    def run():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        fit(tmp_path, epochs=1, cbs=[Signal(signal.SIGHUP, 2)])
    assert in_child(run)==0 and newest_checkpoint(tmp_path/'ck')['position']['step']==STEPS

def test_a_save_by_the_clock_ends_nothing(tmp_path):
    "SIGHUP has number 1"
    due = Due(None, 0)
    assert [due.wish(n) for n in (0, signal.SIGHUP, signal.SIGTERM)]==[(0,True),(signal.SIGHUP,True),(signal.SIGTERM,True)]
    due.minutes = 60
    assert [due.wish(n) for n in (0, signal.SIGHUP)]==[(0,False),(signal.SIGHUP,True)]

# A folder that changes under a run

def test_a_run_whose_folder_is_renamed_keeps_its_encoder(tmp_path, monkeypatch):
    train = pretrain_room.fit_run
    def renamed(learn, *args):
        res = train(learn, *args)
        (tmp_path/'run').rename(tmp_path/'other')
        return res
    monkeypatch.setattr(pretrain_room, 'fit_run', renamed)
    with redirect_stdout(io.StringIO()): pretrain(out=tmp_path/'run', epochs=1, hidden_size=16, projection_size=8, progress=False)
    load_encoder(tmp_path/'run'/'encoder.safetensors')
    last = (tmp_path/'other'/'history.csv').read_text().splitlines()[-1].split(',')
    assert json.loads((tmp_path/'run'/'results.json').read_text())['loss']==float(last[1])

def refuses(*args, **kwargs): raise PermissionError(errno.EACCES, 'Permission denied')

def test_a_folder_that_became_read_only_ends_no_run(tmp_path, monkeypatch):
    claim(tmp_path/'a')
    with monkeypatch.context() as m:
        m.setattr(Path, 'unlink', refuses)
        release(tmp_path/'a')
    p = owner_in_another_process(tmp_path/'a')   # it was released, although its file is there
    p.kill()
    p.wait()
    monkeypatch.setattr(checkpoint_file, 'write_atomic', refuses)
    messages = [o for o in said(fit, tmp_path, epochs=1, every=None) if 'not written' in o]
    for o in messages: assert '(Permission denied). Training goes on' in o and o.endswith('Make its folder writable, e.g. by chmod u+w.')
    assert messages

# What is the same

@pytest.fixture
def recorded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for o in ('run','pics'): Path(o).mkdir()
    settings = dict(path='pics', seed=1, workers=0, pretrained=False, unlabelled=False, bf16=False, size=16, keep=None, graphs=True,
                    labels='a.csv:kind', views=dict(flip_p=.5))
    def write(**changes): Path('run/settings.json').write_text(json.dumps(dict(settings=settings|changes)))
    write()
    return write

@pytest.mark.parametrize('was,asked', [({}, dict(size='16')), ({}, dict(size=16)), (dict(size=[16,24]), dict(size='16x24')), ({}, dict(path='pics/')),
                                       ({}, dict(path='./pics')), ({}, dict(path=None)), ({}, dict(labels='./a.csv:kind')),
                                       (dict(path=['pics','b']), dict(path=['pics/','b'])),
                                       (dict(holdout=.2), dict(holdout='0.2')), (dict(keep=False), dict(keep=False)), (dict(bf16=True), dict(bf16=None))])
def test_the_same_in_other_words_is_resumed(was, asked, recorded):
    recorded(**was)
    assert recorded_settings('run', {}, **asked)['seed']==1
    assert 'path' in was or recorded_settings('run', {}, path=os.path.abspath('pics'))

@pytest.mark.parametrize('asked,views', [(dict(size='24'), {}), (dict(path='other'), {}), (dict(keep=False), {}), (dict(graphs=False), {}),
                                         (dict(pretrained=True), {}), (dict(labels='a.csv'), {}), ({}, dict(jitter=False)), ({}, dict(flip_p=0.))])
def test_what_differs_is_refused(asked, views, recorded):
    name, = asked or views
    with pytest.raises(ValueError, match=f"^{name}=.* differs from the run in 'run', which has {name}=.*Leave {name} out"):
        recorded_settings('run', views, **asked)

def test_float32_that_is_asked_for_is_refused_by_a_run_in_bfloat16(recorded, monkeypatch):
    "--no_bf16 went on in bfloat16, in silence"
    recorded(bf16=True)
    with pytest.raises(ValueError, match="bf16=False differs from the run in 'run', which has bf16=True"): recorded_settings('run', {}, bf16=False)
    got = []
    monkeypatch.setattr(pretrain_room, 'pretrain', lambda *_, bf16, **__: got.append(bf16))
    for asked in (dict(bf16=False), dict(bf16=True), dict(bf16=False, no_bf16=True)): pretrain_room._pretrain(None, 'run', None, False, **asked)
    assert got==[None,True,False]

@pytest.mark.parametrize('text', ['[]', '"a"', '{"settings": []}', '{"settings": {"views": null}}', '{"settings": null}',
                                  '{"settings": {"views": {}}}', '{"settings": {"views": []}}', '{"set', ''])
def test_a_damaged_record_is_named_in_one_line(text, recorded):
    Path('run/settings.json').write_text(text)
    with pytest.raises(ValueError, match="^out='run' holds no whole record of a run, but a settings.json .*Put the file back") as e:
        pretrain(out='run', resume=True)
    assert '\n' not in str(e.value)

def test_a_name_that_is_no_text_gets_a_report(tmp_path):
    "Bytes of a file system that are not UTF-8"
    folder = tmp_path/'r\udce9p'
    folder.mkdir()
    (folder/'settings.json').write_text(json.dumps(dict(command='byol_pretrain r\udce9p', settings=dict(path='r\udce9p', views={}))))
    page = write_report(folder).read_bytes()
    assert page.count(rb'r\udce9p')>=2

# Callbacks, functions and data of your own

class Holding(Callback):
    "State of kinds that are more than numbers and lists"
    def before_fit(self):
        self.seen,self.last,self.by,self.n = set(),deque(maxlen=3),defaultdict(list),Counter()
        self.dice,self.drawn = [random.Random(1), np.random.default_rng(1), np.random.RandomState(1), torch.Generator().manual_seed(1)],[]
        self.python,self.numpy,self.old,self.torch = self.dice
    def after_batch(self):
        if not self.training: return
        i = self.train_iter
        self.seen.add(i), self.last.append(i), self.by[i%2].append(i), self.n.update([i%3])
        self.drawn.append((self.python.random(), float(self.numpy.random()), float(self.old.rand()), torch.rand(1, generator=self.torch).item()))

def test_a_set_of_another_kind_is_no_plain_value():
    "It was written under a name that nothing could read back"
    class Ordered(set): pass
    for o in ({1}, frozenset({1}), deque([1])): assert unpack(pack(o))==o
    with pytest.raises((TypeError,ValueError), match='Ordered'): pack(Ordered())

def test_sets_counters_and_generators_of_a_callback_go_on(tmp_path):
    "Left out in silence before; a `defaultdict` came back as a dictionary and ended the resumed run"
    def state(learn):
        cb = learn.holding
        return [cb.seen, list(cb.last), cb.last.maxlen, dict(cb.by), cb.by['new'], cb.n, cb.n['new'], cb.drawn]
    want = state(fit(tmp_path/'whole', learner_cbs=[Holding]))
    assert in_child(fit, tmp_path/'cut', cbs=[Kill('after_batch', STEPS+2)], learner_cbs=[Holding])==-signal.SIGKILL
    assert state(fit(tmp_path/'cut', learner_cbs=[Holding]))==want

class Drawing(Noisy):
    "Items that draw from a generator of the data set itself"
    def __init__(self): super().__init__(); self.rng_of_mine,self.scale = np.random.default_rng(0),torch.tensor(1.)
    def __getitem__(self, i): return (super().__getitem__(i)[0]*(1-.1*float(self.rng_of_mine.random())),)

def test_a_generator_in_a_data_set_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(test_checkpoint, 'Noisy', Drawing)
    monkeypatch.setattr(test_checkpoint, 'loaders', lambda kind, bs=16: DataLoaders(*[DataLoader(Drawing(), bs=bs, shuffle=s, num_workers=0) for s in (True,False)]))
    assert_survives(tmp_path, [Kill('after_batch', STEPS+3)], kind='0', epochs=2)

class Thaw(Callback):
    def before_epoch(self):
        if self.epoch==1: self.learn.unfreeze()

class SetMomentum(Callback):
    def before_epoch(self):
        if self.epoch==1: self.learn.byol.m = .3

@pytest.mark.parametrize('cb', [Thaw, SetMomentum])
def test_what_a_callback_changed_once_stays_changed(tmp_path, cb):
    "Layers that were unfrozen, and a momentum that was set, in an epoch that a resumed run does not repeat"
    def run(path, *cbs):
        learn = make(path, cbs=[cb()], splitter=fit_room.byol_splitter)
        learn.freeze()
        with redirect_stdout(io.StringIO()): learn.fit(3, cbs=[Checkpoint(path/'ck', every=1), *cbs])
        return outcome(learn)
    want = run(tmp_path/'whole')
    assert in_child(run, tmp_path/'cut', Kill('after_batch', 2*STEPS+2))==-signal.SIGKILL
    assert_same(run(tmp_path/'cut'), want)

def rolled(x): return x.roll(1, -1)
def rolled_by_2(x): return x.roll(2, -1)
rolled_by_2.__qualname__ = 'rolled'
def as_is(x): return x

class Sized(torch.utils.data.Dataset):
    "A data set of one's own, with a setting"
    def __init__(self, files, side=8): self.names,self.side = list(files),side
    def __len__(self): return len(self.names)
    def __getitem__(self, i):
        with Image.open(self.names[i]) as im: return torch.tensor(np.asarray(im)/255., dtype=torch.float32)[None,:self.side]

def sized(side=8, **kw): return lambda files: DataLoaders(TorchDL(Sized(files, side), 4, shuffle=False))

class Between(Callback):
    def __init__(self, at=1): self.at = at
    def before_train(self): pass

# What differs → arguments of `changed_learner` in the first run and in the second; a word of the warning or error
later = {
    'a whole number in a view': (dict(view=rolled), dict(view=rolled_by_2), 'the code of rolled'),
    'a setting of the data set': (dict(side=8), dict(side=7), 'side=7'),
    'its pictures': ({}, dict(other=True), 'other data'),
    'a callback between batches': ({}, dict(cbs=[Between()]), 'Between(at=1)'),
    'a tracker': (dict(cbs=[partial(ReduceLROnPlateau, 'train_loss', factor=10.)]), dict(cbs=[partial(ReduceLROnPlateau, 'train_loss', factor=2.)]), 'factor=2.0'),
    'a tracker more': ({}, dict(cbs=[partial(EarlyStoppingCallback, 'train_loss', patience=9)]), 'EarlyStoppingCallback'),
    'the optimizer\'s arguments': (dict(opt_func=partial(Adam, mom=.9)), dict(opt_func=partial(Adam, mom=.5)), 'mom=0.5'),
    'frozen layers': ({}, dict(frozen=True), 'tensors to train'),
    'the type of weights': ({}, dict(double=True), 'types of weights'),
    'columns of the table': ({}, dict(metrics=ValueMetric(lambda: 1., 'probe')), 'probe')}

def changed_learner(pics, view=as_is, side=8, other=False, cbs=(), opt_func=Adam, frozen=False, double=False, metrics=None):
    files = sorted(pics.rglob('*.png'))[:8]
    seed_everything(0)
    model = create_byol_model(nn.Sequential(nn.Conv2d(1,4,3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), hidden_size=8, projection_size=4, bn=False)
    if other: files = sorted(pics.rglob('*.png'))[4:12]
    learn = byol_learner(sized(side)(files), model.double() if double else model, [view, as_is], cbs=[cb() if isinstance(cb, partial) else cb for cb in cbs],
                         opt_func=opt_func, metrics=metrics, splitter=fit_room.byol_splitter)
    if frozen: learn.freeze()
    return learn

@pytest.mark.parametrize('name', later)
def test_a_later_difference_is_named(pics, tmp_path, name):
    "And the same is welcome without a word"
    was,now,word = later[name]
    go(changed_learner(pics, **was), tmp_path/'ck')
    quiet_words = [m for m in said(go, changed_learner(pics, **was), tmp_path/'ck') if 'ck' in m]
    assert not quiet_words
    try: messages = said(go, changed_learner(pics, **now), tmp_path/'ck')
    except (ValueError, RuntimeError) as e: messages = [str(e).split('\n\t')[-1]]
    assert any(word in m and 'ck' in m and len(m.splitlines())==1 for m in messages), messages

def test_an_older_checkpoint_without_these_facts_goes_on(pics, tmp_path):
    go(changed_learner(pics), tmp_path/'ck')
    file = checkpoint_files(tmp_path/'ck')[-1]
    state = read_checkpoint(file)
    state['facts'] = {k: v for k,v in state['facts'].items() if k not in checkpoint_file._later} | dict(data={})
    state.pop('trained')
    torch.save(state, file)
    assert not [m for m in said(go, changed_learner(pics, metrics=ValueMetric(lambda: 1., 'probe')), tmp_path/'ck') if 'ck' in m]

def test_code_is_compared_in_one_version_of_python_and_without_its_words():
    def f(x):
        "A word"
        return x[:3]
    was = codes_of([f])
    def f(x):
        "Another"
        # and a line more
        return x[:3]
    assert codes_of([f])==was and sys.version.startswith(was['python'])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        checkpoint_file._warn_of_code(dict(python='3.1', codes={'f': ['a']}), dict(python='3.2', codes={'f': ['b']}), '')

def test_another_number_of_steps_in_as_many_epochs_is_refused(tmp_path):
    def run(n):
        learn = make(tmp_path)
        with redirect_stdout(io.StringIO()): learn.fit_byol(steps=n, cbs=Checkpoint(tmp_path/'ck'))
    run(2*STEPS+2)
    run(2*STEPS+2)
    with pytest.raises(ValueError, match=f'number of steps {2*STEPS+2}, and this one has number of steps {2*STEPS+5}'): run(2*STEPS+5)

# Several fits

class KillLast(Kill):
    "In the last fit of a script"
    def _at(self, step):
        if self.n_epoch==3: super()._at(step)

def three_fits(path, *cbs, fits=(1,2,3)):
    "Saves the network after each fit, and the log of each"
    learn,keep = make(path).remove_cb(CSVLogger),Checkpoint(path/'ck', every=2)
    with redirect_stdout(io.StringIO()):
        for i,n in enumerate(fits):
            learn.fit(n, cbs=[keep, CSVLogger(f'{i}.csv'), *cbs])
            learn.save(f'after-{i}', with_opt=False)
    return learn

def test_between_two_fits_the_network_is_as_the_first_left_it(tmp_path):
    "It was untrained there, when a script was resumed in a later fit, and what was saved there before was overwritten"
    def end(learn): return flat([learn.model.state_dict(), learn.recorder.losses, learn.byol.momenta, torch.rand(1)])
    want = end(three_fits(tmp_path/'whole'))
    assert in_child(three_fits, tmp_path/'cut', KillLast('after_batch', STEPS+2))==-signal.SIGKILL
    assert_same(end(three_fits(tmp_path/'cut')), want)
    for i in range(3):
        a,b = (torch.load(tmp_path/o/'models'/f'after-{i}.pth') for o in ('whole','cut'))
        assert all(torch.equal(a[k], b[k]) for k in a)
        a,b = ([row.rpartition(',')[0] for row in (tmp_path/o/f'{i}.csv').read_text().splitlines()] for o in ('whole','cut'))
        assert a==b and len(a)>1

def test_an_end_that_is_not_kept_is_said(tmp_path):
    assert in_child(three_fits, tmp_path, KillLast('after_batch', STEPS+2), fits=(1,1,1,3))==-signal.SIGKILL
    assert len(checkpoint_files(tmp_path/'ck'))==4
    messages = [m for m in said(three_fits, tmp_path, fits=(1,1,1,3)) if 'does not hold the end' in m]
    assert len(messages)==1 and 'of fit 1, which is over' in messages[0]

# Fits that do not begin, or not well

def test_a_trial_that_was_broken_off_leaves_a_fit_that_is_saved_and_watched(tmp_path):
    class Fail(Callback):
        def after_batch(self): raise RuntimeError('on purpose')
    learn = make(tmp_path, cbs=[Checkpoint(tmp_path/'ck')])
    learn.add_cb(Fail())
    with pytest.raises(RuntimeError), redirect_stdout(io.StringIO()): learn.lr_find(num_it=3, show_plot=False)
    learn.remove_cb(Fail)
    with redirect_stdout(io.StringIO()): learn.fit(1)
    assert checkpoint_files(tmp_path/'ck') and learn.health.rows and 'spread' in learn.recorder.metric_names

@pytest.mark.parametrize('event', ['before_fit', 'before_epoch', 'before_train'])
def test_a_fit_that_is_cancelled_before_its_first_batch_saves_nothing(tmp_path, event):
    learn = make(tmp_path, cbs=[Checkpoint(tmp_path/'ck', monitor='spread')]).remove_cb(CSVLogger)
    def cancel(): raise CancelFitException
    cb = Callback()
    setattr(cb, event, cancel)
    with redirect_stdout(io.StringIO()):
        learn.fit(1, cbs=cb), learn.fit(0)
        assert not checkpoint_files(tmp_path/'ck')
        learn.fit(1), learn.fit(1, cbs=cb)
    assert len(checkpoint_files(tmp_path/'ck'))==1

@pytest.mark.parametrize('kw,cbs', [(dict(start_epoch=2), []), ({}, [ShortEpochCallback(.5)]), ({}, [ShortEpochCallback(.5, short_valid=False)])])
def test_an_epoch_without_a_whole_row_has_no_best(tmp_path, kw, cbs):
    "Columns are missing where `ShortEpochCallback` cuts, and the next one was taken"
    learn = make(tmp_path)
    with redirect_stdout(io.StringIO()): learn.fit(3, cbs=[Checkpoint(tmp_path/'ck', monitor='spread'), *cbs], **kw)
    assert (tmp_path/'ck'/'best.pt').exists()==bool(kw)

def test_a_learner_with_a_checkpoint_is_exported_without_its_state(tmp_path):
    def size(*cbs):
        learn = make(tmp_path, cbs=cbs).remove_cb(CSVLogger)
        with redirect_stdout(io.StringIO()): learn.fit(1)
        learn.export()
        return (tmp_path/'export.pkl').stat().st_size
    assert size(Checkpoint(tmp_path/'ck'))<1.2*size()

def test_texts_of_a_copy_are_of_its_objects():
    texts = Texts()
    a,b = partial(max, default=1),partial(max, default=2)
    texts(a)
    texts.known = {id(b): texts.known[id(a)]}   # as after a copy, when another object has got the number
    assert texts(b)==described(b)!=described(a)

def wrapped_fit(path):
    "As MLflow's autologging wraps it"
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    own = Learner.fit
    Learner.fit = wraps(own)(lambda *args, **kwargs: own(*args, **kwargs))
    fit(path, every=None, cbs=[Signal(signal.SIGTERM, STEPS+2)])

def test_a_signal_saves_where_another_library_has_wrapped_fit(tmp_path):
    assert in_child(wrapped_fit, tmp_path)==-signal.SIGTERM
    assert newest_checkpoint(tmp_path/'ck')['position']['step']==STEPS+3

PRETRAIN = '''
import sys
sys.path.insert(0, {root!r})
from self_supervised.cli.pretrain import pretrain
pretrain(out='run', epochs=1, hidden_size=16, projection_size=8)
'''

def test_pretrain_in_a_script_of_ones_own_goes_on_without_its_output(tmp_path):
    with broken_output() as out:
        res = subprocess.run([sys.executable, '-W', 'ignore', '-c', PRETRAIN.format(root=str(HERE.parent))], cwd=tmp_path, stdout=out, stderr=subprocess.PIPE,
                             text=True, env=os.environ | dict(MPLBACKEND='Agg'))
    assert res.returncode==0 and 'Error' not in res.stderr, res.stderr
    assert (tmp_path/'run'/'report.html').exists()

def test_lines_lost_in_a_function_are_warned_of(monkeypatch):
    monkeypatch.setattr(sys, 'stdout', open('/dev/full', 'w'))
    def lines():
        with steady_output(): print('a')
    assert said(lines)==['some lines were not printed (No space left on device). Free some space.']
    with pytest.raises(CliError), steady_output('byol_x'): lines()   # inside of a command that tells it

def test_pictures_that_came_before_the_first_checkpoint_are_in_the_record(tmp_path, pics, monkeypatch):
    "Killed before its first save, and resumed on more pictures: the list of those held out was that of the first start"
    def ends(*args, **kwargs): raise KeyboardInterrupt
    kw = dict(out=tmp_path/'run', arch='tiny_resnet', size=8, bs=4, epochs=1, hidden_size=16, projection_size=8, progress=False)
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt), redirect_stdout(io.StringIO()):
        m.setattr(pretrain_room, 'fit_run', ends)
        pretrain(pics, **kw)
    for f in list(pics.rglob('*.png')): Image.open(f).rotate(90).save(f.with_stem(f'new{f.stem}'))
    with redirect_stdout(io.StringIO()): learn,*_ = pretrain(pics, resume=True, out=tmp_path/'run', progress=False)
    assert {Path(o).name for o in read_held_out(tmp_path/'run')}=={Path(o).name for o in learn.dls.valid_ds.items}

@pytest.mark.parametrize('error', [KeyboardInterrupt, MemoryError])
def test_what_was_trained_is_there_before_it_is_measured(tmp_path, monkeypatch, error):
    "A run that ends in measuring, for want of memory or of pictures, had written no encoder"
    monkeypatch.chdir(tmp_path)
    def fail(*args): raise error
    monkeypatch.setattr(pretrain_room, '_measure', fail)
    with pytest.raises(error): pretrain(None, 'out', epochs=1, bs=64, progress=False)
    assert encoder_info('out/encoder.safetensors')['size']==8 and not Path('out/results.json').exists()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    was = load_encoder('out/encoder.safetensors').state_dict()
    pretrain(None, 'out', resume=True, progress=False)
    got = load_encoder('out/encoder.safetensors').state_dict()
    assert Path('out/results.json').exists() and all(torch.equal(v, was[k]) for k,v in got.items())

RNG = np.random.default_rng(5)
def noisy(x): return x+.1*torch.from_numpy(RNG.normal(size=x.shape)).float()

class OwnNoise(nn.Module):
    "A layer with a generator of its own"
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)
    def forward(self, x): return x*(torch.rand(x.shape, generator=self.generator)>.2)

class PrivateNoise(OwnNoise):
    "A layer that hides it"
    def __init__(self):
        super().__init__()
        self._drawn = vars(self).pop('generator')
    def forward(self, x): return x*(torch.rand(x.shape, generator=self._drawn)>.2)

class ModuleNoise:
    "A view that draws from a generator of its module"
    def __call__(self, x): return x+.1*float(RNG.normal())

class LateNoise(nn.Module):
    "A view that makes one for each size when it comes"
    def __init__(self):
        super().__init__()
        self.made = {}
    def forward(self, x): return x+.1*torch.randn(x.shape, generator=self.made.setdefault(x.shape, torch.Generator()))

class SlotNoise:
    "A view without a dictionary of its attributes"
    __slots__ = ('rng','__private')
    def __init__(self):
        self.rng = np.random.default_rng(9)
        self.__private = random.Random(2)
    def __call__(self, x): return x+.1*float(self.rng.normal())+.1*self.__private.random()

class Dimmed:
    def __init__(self): self.settings = dict(rng=random.Random(3))
    def __call__(self, x): return x*(.5+self.settings['rng'].random()/2)

class Around:
    def __init__(self): self.rng = random.Random(4)
    def __call__(self): return self.rng.random()

class Called:
    "A view that calls a function, which calls another, which draws"
    def __call__(self, x): return x+.1*amount()
def amount(): return deeper()/2
def deeper(): return float(RNG.normal())+AROUND()

def with_generator(kind):
    "Views, layers and the step of a loader that draw from a generator which a module, an object or a closure holds"
    g = np.random.default_rng(7)
    def in_closure(x): return x+.1*float(g.normal())
    def by_default(x, g=random.Random(5)): return x+.1*g.random()
    views = dict(beside=[noisy]*2, closure=[in_closure, lambda x: x], partial=[partial(lambda o,x: o(x), Dimmed()), lambda x: x],
                 default=[by_default, lambda x: x], module=[ModuleNoise(), lambda x: x],
                 slots=[SlotNoise(), lambda x: x], called=[Called(), lambda x: amount()+x], late=[LateNoise(), Dimmed()],
                 xtra=get_multi_aug_pipelines(2, 8, jitter=False, bw=False, blur=False, solarize=False, stats=None, xtra_tfms=Dimmed()))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1,8,3,2), nn.ReLU(), dict(layer=OwnNoise, private=PrivateNoise).get(kind, nn.Identity)(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    dls = tensor_dls(digits()[0][:64], bs=16, seed=0)
    if kind=='loader': dls.train.after_batch = Pipeline([Dimmed()])
    learn = byol_learner(dls, create_byol_model(net, 16, 8), views.get(kind, [lambda x: x+.1*torch.randn_like(x)]*2))
    learn.remove_cb(ProgressCallback)
    return learn

class Interrupted(Callback):
    order = 2000
    def after_batch(self):
        if self.train_iter==6: raise KeyboardInterrupt

def test_a_generator_that_is_made_late_takes_no_other_s_place(tmp_path):
    "The resume ended in a TypeError: a generator of Python was given the state of one of torch"
    def run(*cbs):
        learn = with_generator('late')
        with redirect_stdout(io.StringIO()), learn.no_logging(): learn.fit(3, 1e-2, cbs=cbs)
    with pytest.raises(KeyboardInterrupt): run(Checkpoint(tmp_path), Interrupted())
    with pytest.warns(UserWarning, match='1 random generator in your views, layers or loss, e.g. .* cannot go on'): run(Checkpoint(tmp_path))

@pytest.mark.parametrize('every', [1, None])
@pytest.mark.parametrize('kind', ['beside','closure','partial','default','module','slots','called','xtra','layer','private','loader'])
def test_a_generator_in_views_layers_and_transforms_goes_on(tmp_path, kind, every):
    def run(*cbs):
        global AROUND,RNG
        RNG = np.random.default_rng(5)
        AROUND = Around()
        seed_everything(1)
        learn = with_generator(kind)
        try:
            with redirect_stdout(io.StringIO()), learn.no_logging(): learn.fit(3, 1e-2, cbs=cbs)
        except KeyboardInterrupt:
            for cb in cbs: learn.remove_cb(cb)
        return learn.model.state_dict()
    want = run()
    run(Checkpoint(tmp_path, every=every), Interrupted())
    got = run(Checkpoint(tmp_path, every=every))
    assert all(torch.equal(v, got[k]) for k,v in want.items())
