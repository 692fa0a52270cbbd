"""What a rewrite must not lose: arguments that were right stay right, loaders of any kind train, numbers stay the same"""
import warnings

import numpy as np, pytest, torch
from fastai.basics import Callback, DataLoader, DataLoaders, Learner, noop
from fastai.callback.schedule import ParamScheduler
from fastcore.foundation import L
from torch import nn

from self_supervised.augmentations import BicubicCrop, PerImage, QuarterTurns, Views, get_batch_augs
from self_supervised.callback.health import Health, Latest, plot_health
from self_supervised.callback.probe import Probe
from self_supervised.core import checked, tensor_of
from self_supervised.evaluate.protocols import finetune_eval, linear_eval, linear_probe
from self_supervised.image_ops import resize_boxes
from self_supervised.layers import tiny_resnet
from self_supervised.vision.byol import BYOL, create_byol_model, get_byol_aug_pipelines
from test_hazards import quiet

X = torch.rand(64,3,16,16, generator=torch.Generator().manual_seed(0))

def learner(train, **kw):
    torch.manual_seed(0)
    model = create_byol_model(tiny_resnet(widths=(8,)), hidden_size=16, projection_size=8)
    return Learner(DataLoaders(train), model, loss_func=noop, cbs=BYOL(get_byol_aug_pipelines(16)), **kw)

# Arguments

@pytest.mark.parametrize('columns', ['spread', ['spread'], L('spread'), (o for o in ['spread']), {'spread': 1}.keys()])
def test_health_takes_a_name_or_several(columns): assert Health(columns).columns==('spread',)

def test_one_of_several_is_enough():
    health = Health('spread')
    health.rows = [dict(spread=1.)]
    plot_health(health, 'spread')
    assert Probe(methods='knn').columns==('knn_accuracy',)

def test_one_rate_and_one_seed():
    x,y = X[:40],torch.arange(40)%2
    few = dict(epochs=1, bs=20)
    assert len(linear_eval(tiny_resnet(widths=(8,)), (x,y), (x,y), lrs=.1, seeds=0, **few).chosen)==1
    assert list(finetune_eval(tiny_resnet(widths=(8,)), (x,y), (x,y), fractions=.5, lrs=.1, seeds=0, **few))==[.5]
    f = x.mean((2,3))
    assert linear_probe(f, y, f, y, seeds=(i for i in range(2)))==linear_probe(f, y, f, y, seeds=range(2))

def test_a_device_may_be_a_number():
    @checked
    def f(device:str|torch.device='cpu'): return device
    for bad in (True, 99, 'nowhere'):
        with pytest.raises(TypeError, match='a device that is there'): f(bad)
    if torch.cuda.is_available(): assert f(0)==torch.device('cuda', 0)

@pytest.mark.parametrize('mode', ['r', 'r+', 'c'])
def test_a_mapped_file_stays_a_file(tmp_path, mode):
    "It may be larger than memory"
    np.save(tmp_path/'x.npy', X.numpy())
    a = np.load(tmp_path/'x.npy', mmap_mode=mode)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        t = tensor_of('x', a[8:])
    assert t.data_ptr()==a[8:].ctypes.data and torch.equal(t, X[8:])
    assert torch.equal(tensor_of('x', a[::-1]), X.flip(0))
    a = np.asarray(X.numpy())
    a.flags.writeable = False
    assert tensor_of('x', a).data_ptr()!=a.ctypes.data   # what can be copied is safe

# Views

@pytest.mark.parametrize('op', [lambda x: x[:,:1], lambda x: torch.cat((x,x), 1)])
@pytest.mark.parametrize('at_once', [False, True])
def test_an_operation_may_change_the_channels(op, at_once):
    assert torch.equal(PerImage(op, p=1)(X, split_idx=0), op(X))
    aug = get_batch_augs(16, xtra_tfms=[PerImage(op, p=1)], stats=None)
    aug.at_once = at_once
    assert aug(X).shape[1]==op(X).shape[1]

@pytest.mark.parametrize('same', [False, True])
@pytest.mark.parametrize('p', [.5, 1.])
@pytest.mark.parametrize('make', [lambda same: BicubicCrop(16, same_on_batch=same), QuarterTurns])
@pytest.mark.parametrize('shape', [(12,3,16,16), (12,3,2,16,16), (0,3,16,16)])
def test_at_once_is_one_by_one(make, same, p, shape):
    "The same random numbers, and the same pictures: those that are not drawn stay to the bit"
    x = torch.rand(shape)
    def run(at_once):
        torch.manual_seed(1)
        pipeline = Views([PerImage(make(same), p=p)], split_idx=0)
        pipeline.at_once = at_once
        return pipeline(x),torch.rand(1)
    (a,ra),(b,rb) = run(False),run(True)
    assert torch.equal(ra, rb) and torch.equal(a, b)

def test_quarter_turns_at_once_of_views_that_are_not_square():
    x = torch.rand(9,3,8,12)
    aug = Views([PerImage(QuarterTurns(), p=.5)], split_idx=0)
    res = []
    for aug.at_once in (False, True):
        torch.manual_seed(2)
        res.append(aug(x))
    assert torch.equal(*res) and not torch.equal(res[0], x)

@pytest.mark.parametrize('x0,y0,x1,y1', [(.5,0,9,9), (0,0,16,9), (-1,0,9,9), (0,0,9,20), (9,0,3,9), (0,float('nan'),9,9)])
def test_a_box_is_within_its_picture(x0, y0, x1, y1):
    "A box beyond the border took pixels of the next picture"
    boxes = torch.tensor([[[x0,y0],[x1,y0],[x1,y1],[x0,y1]]], dtype=torch.float32)
    with pytest.raises(ValueError, match='whole pixels inside of pictures of 16 x 16'): resize_boxes(X[:1], boxes, (8,8))
    whole = torch.tensor([[[0,0],[15,0],[15,15],[0,15]]])
    assert torch.equal(resize_boxes(X[:1], whole, (16,16)), X[:1])

# Loaders, and batches that are left out

class Bare:
    "A loader that has nothing but what is needed"
    def __len__(self): return 4
    def __iter__(self): return iter((x,) for x in X.split(16))

@pytest.mark.parametrize('train', [Bare(), [(x,) for x in X.split(16)]])
def test_a_loader_without_a_data_set(train):
    with warnings.catch_warnings():
        warnings.simplefilter('error')   # fastai's `noop` is no loss for labels
        learn = learner(train)
    quiet(learn.fit, 1, 1e-3)
    assert len(learn.recorder.losses)==4 and repr(learn.loss_func)=='byol_loss'

@pytest.mark.parametrize('i', [3, 15])
def test_a_bad_picture_among_bare_tensors(i):
    "fastai splits such a batch into all but the last picture, and the last"
    x = X.clone()
    x[i] = torch.nan
    learn = learner(DataLoader(x, bs=16))
    with pytest.warns(UserWarning, match=f'inputs {i} of 16 not finite'): learn.fit(1, 1e-3)
    assert learn.byol.guard.skipped==[(0,0,'inputs')]

def test_nothing_is_shadowed():
    "fastai warns of an attribute of a callback that the learner has, too: here `buffers` of its model"
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        learner(DataLoader(X, bs=16)).fit(1, 1e-3)
    assert not [w for w in ws if 'shadowing' in str(w.message)]

def test_rows_of_a_batch_that_is_left_out():
    kept = Latest(8)
    kept.add(torch.rand(4,3))
    kept.leave_out(0)
    assert len(kept)==0 and kept.rows()[0].shape==(0,3)
    kept.add(torch.rand(3,3))
    kept.leave_out(0)
    kept.add(good := torch.rand(2,3))
    again = Latest(8)
    again.load_state_dict(kept.state_dict())
    for o in (kept, again): assert len(o)==2 and sorted(o.rows()[0].tolist())==sorted(good.tolist())

# Schedules

def test_steps_go_on_where_a_run_was_cut():
    "As epochs do: the schedule is that of the whole run"
    def shown(**kw):
        rates = []
        class Note(Callback):
            order = ParamScheduler.order+1
            def before_batch(self): rates.append((self.pct_train, self.opt.hypers[0]['lr'], self.learn.byol.m))
        quiet(learner(DataLoader(X, bs=16)).fit_byol, cbs=Note(), **kw)
        return rates
    whole = shown(steps=14)
    assert len(whole)==14
    np.testing.assert_allclose(shown(steps=14, start_epoch=2), whole[8:], rtol=1e-6)
