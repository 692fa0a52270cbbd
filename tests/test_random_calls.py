"Public functions with whatever a user may pass: right, or one line of this library's own that says what is wrong"
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import self_supervised.all as lib
from benchmarks.random_calls import Anything, attempt, prepare, refusal, run, table_of
from self_supervised import augmentations, image_ops, layers
from self_supervised.core import write_atomic
from self_supervised.data import reading, sources
from self_supervised.evaluate import features, protocols
from self_supervised.transfer import finetune

@pytest.mark.parametrize('first', range(0, 1500, 300))
def test_each_call_is_right_or_refused_in_one_line(first):
    "The first 1,500 of the 100,000 of `benchmarks/random_calls.py`"
    rows = run(300, first=first)
    assert not {k: row['smallest'] for k,row in table_of(rows).items() if row['fault']}
    counts = Counter(r[3] for r in rows)
    assert counts['right']>60 and counts['refused']>60

def test_a_call_is_the_same_each_time(tmp_path, monkeypatch):
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert [attempt(i)[:3] for i in (3,14)]==[attempt(i)[:3] for i in (3,14)]

# One case of each kind that the calls have found, with the beginning of what is said
net = nn.Sequential(nn.Conv2d(1,4,3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
x,feats,y = torch.rand(4,1,8,8),torch.rand(6,3),torch.arange(6)%2
def once_on(make, x): return make()(x)
refused = {
    # A slice is no list of settings
    'noise=slice': (lambda: lib.get_vector_aug_pipelines(noise=slice(None)), 'noise=slice'),
    'flip_p=slice': (lambda: lib.get_multi_aug_pipelines(1, 8, flip_p=slice(None)), 'flip_p=slice'),
    'aug_pipelines=slice': (lambda: lib.BYOL(slice(None)), 'aug_pipelines=slice'),
    'size=slice': (lambda: lib.get_batch_augs(slice(None)), 'size=slice'),
    'frames=slice': (lambda: lib.get_batch_augs(8, frames=slice(None)), 'frames=slice'),
    # An array or a tensor is neither true nor false, and no name
    'same_on_batch=tensor': (lambda: augmentations.RandomFrames(2, same_on_batch=torch.ones(2,3)), 'same_on_batch=Tensor'),
    'health=tensor': (lambda: lib.BYOL([len,len], health=torch.ones(2)), 'health='),
    'norm=tensor': (lambda: lib.create_mlp_module(4, 4, 4, norm=torch.ones(2,3)), 'norm=Tensor'),
    'pool_type=array': (lambda: layers.PoolFlat(np.array(['avg','max'])), 'pool_type='),
    'size=empty': (lambda: layers.num_features(net, size=torch.tensor([])), r'size=\[\]'),
    'solarize_p=empty': (lambda: lib.get_byol_aug_pipelines(8, solarize_p=(0.,torch.tensor([]))), r'solarize_p=Tensor'),
    'act=text': (lambda: lib.create_mlp_module(4, 4, 4, act='x'), "act='x'"),
    # No real number
    'p=complex': (lambda: augmentations.PerImage(len, p=1j), 'p=1j'),
    'bw_p=complex': (lambda: lib.get_batch_augs(8, bw_p=1j), 'bw_p=1j'),
    'ground=inf': (lambda: reading.open_picture(Image.new('RGB', (8,8)), ground=(np.inf,2,3)), 'ground='),
    'ground=1.5': (lambda: reading.open_picture(Image.new('RGB', (8,8)), ground=(1.5,2,3)), 'ground='),
    'size=.5': (lambda: reading.open_picture(Image.new('RGB', (8,8)), size=(.5,1.)), 'size='),
    # What a network does not take
    'embed linear': (lambda: lib.embed(nn.Linear(2,2), x), 'encoder=Linear'),
    'embed empty': (lambda: lib.embed(net, x[...,:0]), 'encoder=Sequential'),
    'channels': (lambda: once_on(lambda: finetune.NormalizeInput(([.5]*3,[.25]*3), 3), x), r'x.shape=\(4, 1, 8, 8\)'),
    'one channel': (lambda: once_on(lambda: finetune.NormalizeInput((.5,.25), 1), x.expand(-1,3,-1,-1)), r'x.shape=\(4, 3, 8, 8\)'),
    # Pairs that would be broadcast, labels that are none, places that are not there
    'byol_loss': (lambda: lib.byol_loss((feats[None],feats), feats[None], feats), 'preds'),
    'knn_protocol': (lambda: protocols.knn_protocol(torch.tensor(3.), y, feats, y), 'train_x.shape'),
    'linear_probe': (lambda: protocols.linear_probe(feats[:2], y, feats, y), 'train_y'),
    'linear_bank x': (lambda: protocols.linear_bank(net, Anything(), y), r'x=Anything\(\)'),
    'linear_bank y': (lambda: protocols.linear_bank(net, x, y[:4]-1), 'y=-1'),
    'feats of a number': (lambda: lib.compare_features({'a': 1}, y, y), r"feats\['a'\]=1"),
    'valid beyond numbers': (lambda: lib.image_dls([Image.new('L', (8,8))]*9, 8, valid=10**400), 'valid='),
    'a model without weights': (lambda: lib.byol_learner(lib.tensor_dls(x, bs=2), nn.Identity(), [len,len]), 'model=Identity'),
    'a tensor for an encoder': (lambda: lib.create_byol_model(torch.zeros(2,1,8,8)), 'encoder=Tensor'),
    'label': (lambda: sources.picture_items([(1,2),(3,4)], label=7), 'label_func=7'),
    'label of array': (lambda: sources.picture_items(np.array([True,False]), label=2), 'label_func=2'),
}

@pytest.mark.parametrize('case', refused)
def test_a_case_of_each_kind_is_refused(case):
    call,given = refused[case]
    with pytest.raises((ValueError,TypeError), match=f'^{given}') as e: call()
    assert not refusal(e.value) and len(str(e.value))<300

def test_numbers_of_any_kind_are_numbers():
    a,b = (lib.get_batch_augs(8, flip_p=p, resize_scale=s, blur_s=s, jitter_s=j)
           for p,s,j in ((Fraction(1,2),np.array([.5,1.]),torch.tensor(.5)), (.5,(.5,1.),.5)))
    x = torch.rand(4,3,8,8)
    assert torch.equal(*(seeded(aug, x) for aug in (a,b)))
    assert layers.num_features(net, size=np.array([8,9]))==layers.num_features(net, size=torch.tensor([8,9]))==4
    assert abs(lib.byol_loss(torch.ones(3,2), torch.ones(3,2)))<1e-6

def seeded(aug, x):
    torch.manual_seed(0)
    return aug(x)

def test_saturation_is_finite_in_half_precision():
    "Black has no saturation; in float16 1e-8 is 0, and 0/0 was NaN"
    x = torch.rand(4,3,8,8)
    x[:,:,:4] = 0.
    for factor in (0.,.5,2.):
        want = image_ops.adjust_saturation(x.half().float(), torch.full((4,), factor))
        got = image_ops.adjust_saturation(x.half(), torch.full((4,), factor))
        assert (got.float()-want).abs().max()<4e-3

@pytest.mark.parametrize('name', ['', '.', 'folder', 'file/x', 'file/x/y'])
def test_no_file_is_written_where_none_can_be(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('folder').mkdir()
    Path('file').write_text('here')
    writers = (lambda f: write_atomic(f, b'x'), lambda f: lib.save_encoder(net, f), lambda f: lib.export_onnx(net, f, 8, 1))
    for write in writers:
        with pytest.raises(ValueError, match=r'^path=.*(is a folder|is no folder\))\. Name a file'): write(name)
    assert sorted(o.name for o in tmp_path.rglob('*'))==['file','folder'] and Path('file').read_text()=='here'

def test_no_penalty_is_a_penalty_that_vanishes():
    "C=inf is legal in scikit-learn: the limit of ever larger C"
    g = torch.Generator().manual_seed(0)
    x,y = torch.randn(60,3,generator=g),torch.arange(60)%3
    preds = [features.linear_predict(x, y, x, C) for C in (np.inf,1e8)]
    assert torch.equal(*preds)
    assert lib.linear_accuracy(x, y, x, y, C=np.inf)==(preds[0]==y).double().mean()
    for C in (-np.inf, np.nan, 0, '1'):
        with pytest.raises(ValueError, match='^C='): lib.linear_accuracy(x, y, x, y, C=C)

def test_clips_and_series_are_normalised_along_their_channels():
    n = finetune.NormalizeInput(([.1,.2,.3],[1.,2.,4.]), 3)
    want = lambda x: torch.stack([(o-m)/s for o,m,s in zip(x.unbind(1), (.1,.2,.3), (1.,2.,4.))], 1)
    for shape in ((2,3,8,8), (2,3,4,8,8), (2,3,3,8,8), (2,3,9)):
        x = torch.rand(shape)
        assert torch.allclose(n(x), want(x))
