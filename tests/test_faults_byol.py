"BYOL's callback, `fit_byol` and logging, as users combine them: each test names its law; nothing is left out in silence, nothing ends late"
import math, random, re, sys, types, warnings
from copy import deepcopy
from functools import partial
from itertools import permutations

import matplotlib; matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import (
    Callback, CancelBatchException, CancelEpochException, CancelFitException, CancelStepException, CancelTrainException,
    CancelValidException, FetchPredsCallback)
from fastai.callback.data import PartialDL
from fastai.callback import fp16
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import CSVLogger, ProgressCallback, ShowGraphCallback
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from fastai.callback.training import BnFreeze, GradientAccumulation, ShortEpochCallback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader as FastLoader
from fastai.learner import Learner, ValueMetric
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import SGD, Adam
from fastcore.foundation import L
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from self_supervised.augmentations import BicubicCrop, PerImage, get_batch_augs
from self_supervised.callback.checkpoint import Checkpoint
from self_supervised.callback.gentle import HeadsFirst, encoder_splitter
from self_supervised.callback.guard import Guard
from self_supervised.callback.health import Health
from self_supervised.callback.probe import Probe
from self_supervised.callback.put_back import autocast_depth
from self_supervised.core import seed_everything, warn_once
from self_supervised.data.arrays import tensor_dls
from self_supervised.ema import cosine_momentum, ema_update
from self_supervised.evaluate.features import embed
from self_supervised.fit import batch_size
from self_supervised.lars import LARS
from self_supervised.layers import ClipEncoder, PoolFlat, create_encoder
from self_supervised.record import record_of
from self_supervised.recipes import Recipe, byol_recipe
from self_supervised.surgery import to_group_norm
from self_supervised.transfer.encoder_file import load_encoder, save_encoder
from self_supervised.vision.byol import (
    BYOL, BYOLLoss, byol_learner, byol_loss, create_byol_model, create_simsiam_model, digit_views, get_byol_aug_pipelines)

pytestmark = pytest.mark.filterwarnings('ignore:batchnorm sees')
NAN,INF = float('nan'),float('inf')
N,BS,SIDE = 32,8,8
X = torch.rand(N,1,SIDE,SIDE, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N)%4

def model(n_in=1, encoder=None, create=create_byol_model):
    "A small network, the same each time"
    torch.manual_seed(0)
    return create(encoder or create_encoder('tiny_resnet', n_in=n_in, pretrained=False), hidden_size=16, projection_size=8)

def noisy(x): return x+.05*torch.randn_like(x)
AUGS = [noisy,noisy]
def dls(n_valid=0, x=X, y=None, bs=BS): return tensor_dls(x, y, splits=(range(len(x)-n_valid), range(len(x)-n_valid, len(x))), bs=bs, seed=0)
def learner(data=None, augs=AUGS, net=None, path='.', **kwargs):
    seed_everything(0)
    learn = byol_learner(dls() if data is None else data, net or model(), augs, path=path, **kwargs)
    learn.remove_cbs(ProgressCallback)
    learn.logger = lambda *_: None
    return learn

def quiet(f, *args, **kwargs):
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); return f(*args, **kwargs)

def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.state_dict().values()])

# A loss of your own

class Mine:
    "Mean of negative cosines, and how often it was asked, in training and without gradients"
    def __init__(self): self.calls = []
    def __call__(self, preds, *targs):
        assert isinstance(preds, tuple) and len(preds)==len(targs) and not any(t.requires_grad for t in targs)
        self.calls.append(torch.is_grad_enabled())
        return -sum(F.cosine_similarity(q, z).mean() for q,z in zip(preds, targs))/len(targs)

HOW = dict(byol_learner=lambda mine,data: byol_learner(data, model(), AUGS, loss_func=mine),
           learner=lambda mine,data: Learner(data, model(), loss_func=mine, cbs=BYOL(AUGS)),
           added=lambda mine,data: Learner(data, model(), loss_func=mine).add_cb(BYOL(AUGS)))

@pytest.mark.parametrize('how', HOW)
def test_a_loss_of_your_own_is_the_one_that_trains(how, tmp_path):
    "However it is passed: in training, validation and `lr_find`; the losses on record are its own, and it comes back with the callback's removal"
    mine = Mine()
    learn = HOW[how](mine, dls(n_valid=BS))
    learn.path = tmp_path
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, lr=1e-3)
        assert mine.calls==[True]*3+[False]
        assert all(-1<=l<=1 for l in learn.recorder.losses) and -1<=learn.recorder.values[-1][1]<=1
        learn.validate(); assert mine.calls[4:]==[False]
        learn.lr_find(num_it=3, show_plot=False, suggest_funcs=()); assert len(mine.calls)>5
    learn.remove_cb(BYOL)
    if how!='byol_learner': assert learn.loss_func is mine

def test_a_loss_of_your_own_decides_the_gradients():
    "A run on 2·`byol_loss` with half the rate ends where a run on `byol_loss` ends; a loss of 0 leaves weights where they are"
    def run(loss, lr, **kw):
        learn = learner(loss_func=loss, **kw); learn.opt_func = partial(LARS, exclude_adapt=lambda p: True); quiet(learn.fit, 1, lr=lr)
        return torch.cat([p.detach().flatten() for p in learn.model.online.parameters()])
    base = run(None, 1e-2)
    assert torch.equal(run(byol_loss, 1e-2), base)
    assert torch.allclose(run(lambda p,*t: 2*byol_loss(p,*t), .5e-2), base, atol=1e-6)
    start = torch.cat([p.detach().flatten() for p in model().online.parameters()])
    assert torch.equal(run(lambda p,*t: 0*byol_loss(p,*t), 1e-2), start) and not torch.equal(base, start)

def test_a_loss_of_your_own_leaves_model_loss_alone():
    "`model.loss` is byol_loss, whatever the learner trains with"
    learn = learner(loss_func=Mine())
    v = X[:4],X[4:8]
    with torch.no_grad(): assert torch.allclose(learn.model.loss(*v), byol_loss(learn.model(*v), *reversed(learn.model.project(*v))))

def test_a_loss_of_your_own_gives_losses_of_single_items():
    "fastai asks for them with `reduction='none'`"
    learn = learner(dls(n_valid=BS), loss_func=lambda preds, *targs, reduction='mean': byol_loss(preds, *targs, reduction=reduction))
    *_,losses = learn.get_preds(with_loss=True)
    assert losses.shape==(BS,)

@pytest.mark.parametrize('loss', [CrossEntropyLossFlat(), nn.MSELoss(), F.mse_loss, partial(F.cross_entropy, label_smoothing=.1)], ids=['fastai','module','function','partial'])
def test_a_loss_for_labels_is_refused_or_named(loss):
    "`byol_learner` refuses it; a `Learner`, of which fastai demands a loss, trains with byol_loss and says so"
    with pytest.raises(TypeError, match='compares predictions with labels'): byol_learner(dls(), model(), AUGS, loss_func=loss)
    warn_once.cache_clear()
    with pytest.warns(UserWarning, match='compares predictions with labels.*byol_loss is used'):
        learn = Learner(dls(), model(), loss_func=loss, cbs=BYOL(AUGS))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert 0<learn.recorder.losses[0]<8 and repr(learn.loss_func)=='byol_loss'

def test_the_loss_that_data_brings_is_left_out_in_silence():
    "Labelled data offers cross-entropy; nobody typed it"
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        learn = Learner(dls(y=Y), model(), cbs=BYOL(AUGS))
    assert repr(learn.loss_func)=='byol_loss'

# Ready views

class Views(Dataset):
    "Two views of each picture, drawn when they are asked for, in one of several forms"
    def __init__(self, form, x=X, y=Y): self.form,self.x,self.y = form,x,y
    def __len__(self): return len(self.x)
    def __getitem__(self, i):
        v = [noisy(self.x[i]),noisy(self.x[i])]
        return FORMS[self.form](v, self.y[i], f'{i}.png')

FORMS = {'(x0,x1)': lambda v,y,name: tuple(v),
         '(x0,x1,y)': lambda v,y,name: (*v,y),
         '((x0,x1),y)': lambda v,y,name: (v,y),
         '((x0,x1),y,name)': lambda v,y,name: (v,y,name),
         '[x0,x1]': lambda v,y,name: v,
         '([x0,x1],)': lambda v,y,name: (v,),
         'dict of two': lambda v,y,name: dict(view1=v[0], view2=v[1], label=y, name=name),
         'dict of a list': lambda v,y,name: dict(name=name, views=v, label=y),
         '(dict,y)': lambda v,y,name: (dict(a=v[0], b=v[1]), y)}
LABELLED = [k for k in FORMS if 'y' in k or 'dict of' in k]

def ready(form, n_valid=1, **kwargs):
    "Loaders of torch that bring the views"
    load = partial(DataLoader, batch_size=BS, **kwargs)
    return DataLoaders(load(Views(form), shuffle=True, drop_last=True), *[load(Views(form)) for _ in range(n_valid)], device='cpu')

class Seen(Callback):
    "What the model got"
    order = 100
    def before_fit(self): self.xs,self.labels = [],[]
    def before_batch(self): self.xs.append(self.xb); self.labels.append(self.learn.byol.labels)

@pytest.mark.parametrize('form', FORMS)
def test_ready_views_are_the_views(form):
    "Both reach the model, in the order the loader brings them, and nothing is drawn of them; labels are no views"
    learn = learner(ready(form), None, cbs=(seen := Seen()))
    seed_everything(3); learn.fit(1, lr=1e-3)
    seed_everything(3)
    for b,got in zip(learn.dls.train, seen.xs):
        views = [o for o in flat(b) if o.is_floating_point()]
        assert len(got)==2 and all(torch.equal(a, v) for a,v in zip(got, views))
    assert len(learn.recorder.losses)==N//BS
    if form in LABELLED: assert any(isinstance(o, torch.Tensor) and o.dtype==torch.int64 for o in seen.labels[0])

def flat(b):
    "Tensors of a batch"
    if isinstance(b, torch.Tensor): return [b]
    if isinstance(b, dict): b = list(b.values())
    return [t for o in b if not isinstance(o, str) for t in flat(o)]

@pytest.mark.parametrize('form', FORMS)
def test_everything_works_on_ready_views(form, tmp_path):
    "`show`, `validate`, `lr_find`, `get_preds`, health, guard and `embed`; a learner without the callback is as it was"
    learn = learner(ready(form), None, path=tmp_path)
    with learn.no_bar():
        assert learn.byol.show(2).shape==(2,2)
        learn.fit_byol(2, 'adamw')
        assert np.isfinite(learn.recorder.values).all() and learn.health.rows
        assert np.isfinite(learn.validate()).all()
        learn.lr_find(num_it=3, show_plot=False, suggest_funcs=())
        preds,targs = learn.get_preds(dl=learn.dls.valid)[:2]
        assert preds[0].shape==(N,8)
        assert learn.byol.show(3).shape==(3,2)
    plt.close('all')
    feats,labels = embed(learn.model.encoder, learn.dls.valid)
    assert len(feats)==N
    assert (labels is not None)==(form in LABELLED) and (labels is None or torch.equal(labels, Y))
    learn.remove_cb(BYOL)
    assert '_split' not in vars(learn)

@pytest.mark.parametrize('form', ['(x0,x1)', 'dict of two', '((x0,x1),y,name)'])
def test_the_guard_sees_both_ready_views(form):
    "NaN in the second view alone leaves the batch out, before it does harm"
    data = ready(form, 0)
    data.train.dataset.x = X.clone()
    bad = learner(DataLoaders([spoiled(b, i==1) for i,b in enumerate(data.train)], device='cpu'), None)
    quiet(bad.fit, 1, lr=1e-3)
    assert bad.guard.skipped==[(0,1,'inputs')] and torch.isfinite(weights(bad)).all()

def spoiled(b, bad):
    if not bad: return b
    flat(b)[1][0,0,0,0] = NAN
    return b

@pytest.mark.parametrize('form', LABELLED)
def test_probes_take_labels_beside_ready_views(form):
    "The learner's own data is probed with its first view and label; another set as ever"
    learn = learner(ready(form), None, cbs=Probe(n=N, every=1))
    quiet(learn.fit, 1, lr=1e-3)
    assert 0<=learn.recorder.values[-1][-1]<=1
    learn = learner(ready('(x0,x1)'), None, cbs=Probe((X,Y), (X,Y)))
    quiet(learn.fit, 1, lr=1e-3)

def test_probes_without_labels_say_so():
    "A second view is no label"
    with pytest.raises(ValueError, match='has no labels to evaluate with'): learner(ready('(x0,x1)'), None, cbs=Probe()).fit(1)

def test_a_run_on_ready_views_resumes_exactly(tmp_path):
    "Cut in the middle of an epoch and gone on with: weights and losses are those of the run that was not cut"
    def run(folder, cut=None):
        stop = [Stop(cut)] if cut else []
        learn = learner(ready('((x0,x1),y,name)'), None, cbs=[Checkpoint(tmp_path/folder, every=1), *stop])
        quiet(learn.fit, 2, lr=1e-3)
        return learn
    whole = run('a')
    with pytest.raises(KeyboardInterrupt): run('b', 6)
    again = run('b')
    assert torch.equal(weights(again), weights(whole)) and torch.equal(torch.stack(again.recorder.losses), torch.stack(whole.recorder.losses))

class Stop(Callback):
    order = 2000
    def __init__(self, at): self.at = at
    def after_batch(self):
        if self.training and self.train_iter==self.at: raise KeyboardInterrupt

@pytest.mark.parametrize('form', ['(x0,x1)', '((x0,x1),y)', 'dict of two', '[x0,x1]'])
def test_pipelines_with_ready_views_are_refused(form):
    "It would train on the first view alone"
    with pytest.raises(ValueError, match='others are pictures too.*aug_pipelines=None'): learner(ready(form)).fit(1)

def test_data_that_states_its_labels_may_have_pictures_as_labels():
    "A tensor of the same shape that the data calls a label is one; it is said"
    with pytest.warns(UserWarning, match='a label of the shape of its pictures'): learner(tensor_dls(X, X, bs=BS)).fit(1)

def test_without_pipelines_and_views_the_reason_is_given():
    "A loader of single pictures needs pipelines"
    for data in (dls(), dls(y=Y), DataLoaders(DataLoader(TensorDataset(X,Y), batch_size=BS), device='cpu')):
        with pytest.raises(ValueError, match='needs a loader of ready views'): learner(data, None).fit(1)
        with pytest.raises(ValueError, match='needs a loader of ready views'): learner(data, None).byol.show()

def test_ready_views_may_be_bytes_clips_series_rows_and_crops_of_two_sizes():
    "As pipelines may make any of them"
    def fit(views, net):
        learn = learner(DataLoaders([tuple(views)]*2, device='cpu'), None, net)
        quiet(learn.fit, 1, lr=1e-3)
        assert len(learn.recorder.losses)==2 and len(learn.byol.show(2))==2
        plt.close('all')
    fit([(X*255).byte()]*2, model())
    fit([torch.rand(4,2,20)]*2, model(encoder=series_net()))
    fit([torch.rand(4,6)]*2, model(encoder=nn.Linear(6,5)))
    fit([torch.rand(4,1,3,8,8)]*2, model(encoder=clip_net()))
    fit([torch.rand(4,1,s,s) for s in (16,16,8,8,8)], model())

@pytest.mark.parametrize('batch', [dict(video=torch.rand(4,1,3,8,8), audio=torch.rand(4,100), label=torch.arange(4), name=['a']*4),
                                   dict(audio=torch.rand(4,100), video=torch.rand(4,1,3,8,8))])
def test_dictionaries_of_clips_are_taken_with_pipelines_too(batch):
    "PyTorchVideo's form: the tensor of most dimensions is looked at"
    learn = learner(DataLoaders([batch]*2, device='cpu'), net=model(encoder=clip_net()), cbs=(seen := Seen()))
    quiet(learn.fit, 1, lr=1e-3)
    assert all(v.shape==(4,1,3,8,8) for v in seen.xs[0])

def series_net(): return nn.Sequential(nn.Conv1d(2,6,3), nn.BatchNorm1d(6), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
def clip_net(): return nn.Sequential(nn.Conv3d(1,6,3,padding=1), nn.BatchNorm3d(6), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten())

# Loaders that state no batch size

class Stream(IterableDataset):
    "Ready batches, without an index; of a length only if asked"
    def __iter__(self): return iter(TensorDataset(X)[i:i+BS] for i in range(0, N, BS))

class WebLike(DataLoader):
    "webdataset's: batches come from the data set, the length is stated"
    def __len__(self): return N//BS

class Foreign:
    "No loader of torch's, only batches and a length"
    def __iter__(self): return iter([(X[i:i+BS],) for i in range(0, N, BS)])
    def __len__(self): return N//BS

LOADERS = {'batch_sampler': lambda: DataLoader(TensorDataset(X), batch_sampler=torch.utils.data.BatchSampler(torch.utils.data.RandomSampler(range(N)), BS, True)),
           'own batch_sampler': lambda: DataLoader(TensorDataset(X), batch_sampler=[list(range(i, i+BS)) for i in range(0, N, BS)]),
           'web': lambda: WebLike(Stream(), batch_size=None),
           'list of batches': lambda: [(X[i:i+BS],) for i in range(0, N, BS)],
           'list of tensors': lambda: [X[i:i+BS] for i in range(0, N, BS)],
           'another loader': Foreign}

@pytest.mark.parametrize('recipe', ['lars', 'sgd', 'adamw'])
@pytest.mark.parametrize('kind', LOADERS)
def test_the_batch_size_is_found_where_none_is_stated(kind, recipe, capsys):
    "From the first batch; the recipe is that of a loader which states it, and the whole run is trained"
    learn = learner(DataLoaders(LOADERS[kind](), device='cpu'))
    assert batch_size(learn)==BS
    learn.fit_byol(2, recipe)
    said = byol_recipe(2, BS, recipe, N)
    assert f'batch {BS};' in capsys.readouterr().out and max(learn.recorder.hps['lr'])==pytest.approx(said.lr) or recipe!='lars'
    assert len(learn.recorder.losses)==2*N//BS

def test_looking_for_the_batch_size_moves_no_random_number():
    "Order of the loader and the process's random state are those of a run that was not looked at"
    g = torch.Generator().manual_seed(1)
    learn = learner(DataLoaders(DataLoader(TensorDataset(X), batch_sampler=[[0,1],[2,3]], generator=g), device='cpu'))
    was = torch.get_rng_state(),g.get_state()
    assert batch_size(learn)==2
    assert torch.equal(torch.get_rng_state(), was[0]) and torch.equal(g.get_state(), was[1])

def test_accumulated_gradients_count_where_no_batch_size_is_stated():
    "Three batches of 8 make a step of 24 pictures"
    learn = learner(DataLoaders(LOADERS['web'](), device='cpu'), cbs=GradientAccumulation(3*BS))
    assert batch_size(learn)==3*BS

def test_a_loader_without_a_length_is_refused_in_one_line():
    "fastai's own error has no name in it"
    learn = learner(DataLoaders(DataLoader(Stream(), batch_size=None), device='cpu'))
    for fit in (learn.fit, learn.fit_byol, partial(learn.fit_byol, None, steps=3)):
        with pytest.raises(TypeError, match='states no length'): fit() if isinstance(fit, partial) else fit(1)

def test_an_empty_loader_is_refused_in_one_line():
    "Also one without a data set"
    with pytest.raises(ValueError, match='do not fill one batch'): learner(DataLoaders([], device='cpu')).fit(1)

# Steps instead of epochs

@pytest.mark.parametrize('steps', [1, 3, 4, 5, 10])
@pytest.mark.parametrize('recipe', ['lars', 'adamw'])
def test_a_number_of_steps(steps, recipe):
    "The optimizer takes so many, and rate and momentum reach their end with the last; each begun epoch has its row"
    learn = learner(dls(n_valid=BS, x=torch.cat([X,X[:BS]])), cbs=(count := Count()))
    learn.fit_byol(steps=steps, recipe=recipe)
    pcts = [i/steps for i in range(steps)]
    assert count.taken==steps==len(learn.recorder.losses)==len(learn.byol.momenta)
    assert count.pcts==pytest.approx(pcts) and learn.pct_train==pytest.approx(1.)
    assert len(learn.recorder.values)==math.ceil(steps/(N//BS)) and np.isfinite(learn.recorder.values).all()
    assert learn.byol.momenta==[learn.byol.sched(p) for p in count.pcts]

class Count(Callback):
    order = 200
    def before_fit(self): self.taken,self.pcts = 0,[]
    def before_batch(self):
        if self.training: self.pcts.append(self.pct_train)
    def after_step(self): self.taken += 1

def test_steps_are_those_of_the_optimizer():
    "With two batches accumulated, 3 steps are 6 batches"
    learn = learner(cbs=[GradientAccumulation(2*BS), count := Count()])
    learn.fit_byol(steps=3)
    assert count.taken==3==len(learn.byol.momenta) and len(learn.recorder.losses)==6

def test_whole_epochs_in_steps_are_the_same_run():
    "Eight steps are two epochs of four"
    a = learner(); a.fit_byol(2)
    b = learner(); b.fit_byol(steps=2*N//BS)
    assert torch.allclose(weights(a), weights(b), atol=1e-7) and a.byol.momenta==pytest.approx(b.byol.momenta)

def test_a_run_of_steps_resumes_exactly(tmp_path):
    "Cut in its second epoch, and gone on with"
    def run(folder, cut=None):
        learn = learner(cbs=[Checkpoint(tmp_path/folder, every=1), *([Stop(cut)] if cut else [])])
        quiet(learn.fit_byol, steps=7)
        return learn
    whole = run('a')
    with pytest.raises(KeyboardInterrupt): run('b', 5)
    again = run('b')
    assert torch.equal(weights(again), weights(whole)) and again.byol.momenta==whole.byol.momenta and again.pct_train==1.

@pytest.mark.parametrize('kw', [dict(), dict(epochs=2, steps=3), dict(steps=0), dict(steps=1.5), dict(steps=True)])
def test_a_run_has_one_length(kw):
    "Epochs or steps, whole and above 0"
    with pytest.raises(ValueError, match='steps|epochs'): learner().fit_byol(**kw)

# Series, clips and rows

KINDS = {'series': (torch.rand(N,2,20), series_net), 'clips': (torch.rand(N,1,3,8,8), clip_net), 'rows': (torch.rand(N,6), lambda: nn.Linear(6,5))}

@pytest.mark.parametrize('kind', KINDS)
def test_series_clips_and_rows_go_all_the_way(kind, tmp_path):
    "Training, health, probe, guard, validation, drawing, features, saving and loading: where network and views take them"
    x,net = KINDS[kind]
    torch.manual_seed(0)
    learn = learner(dls(BS, x, Y), net=model(encoder=net()), path=tmp_path, cbs=[Probe((x,Y), (x,Y)), Checkpoint(tmp_path/'c')])
    with learn.no_bar():
        assert learn.byol.show(2).shape==(2,3)
        quiet(learn.fit_byol, 1, 'adamw'); learn.validate(); learn.lr_find(num_it=3, show_plot=False, suggest_funcs=())
        assert learn.byol.show(2).shape==(2,3)
    plt.close('all')
    f,y = embed(learn.model.encoder, learn.dls.valid)
    assert len(f)==BS and torch.equal(y, Y[-BS:])
    save_encoder(learn.model.encoder, tmp_path/'e.pth')
    got = embed(load_encoder(tmp_path/'e.pth', net()), x)[0]
    assert torch.allclose(got, embed(learn.model.encoder, x)[0])

@pytest.mark.parametrize('ready', [False, True])
def test_series_may_have_any_range(ready):
    "Sound, or what a sensor measured: no warning of pictures, and none of values that are lost, while training or embedding"
    x = 3*torch.randn(N,2,20)
    views = None if ready else [lambda o: o+.1*torch.randn_like(o)]*2
    batches = [(x[:BS],x[:BS]+.1)]*2 if ready else tensor_dls(x, bs=BS)
    learn = byol_learner(batches, model(encoder=series_net()), views)
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        with learn.no_bar(), learn.no_logging(): learn.fit_byol(1, 'adamw')
        embed(learn.model.encoder, x)
    assert not [str(o.message) for o in w if re.search('span|pictures are', str(o.message))]

def test_the_spread_of_series_is_an_independent_number():
    "Features of a series are those of the network asked by hand"
    x,net = KINDS['series']
    enc = create_encoder(series_net())
    assert torch.allclose(embed(enc, x)[0], enc.eval()(x), atol=1e-6)
    maps = nn.Conv1d(2,6,3)
    assert create_encoder(maps)(x).shape[0]==N

def test_pictures_without_a_channel_are_told_from_series():
    "(bs,h,w) for a network of pictures: the message names both causes"
    with pytest.raises(ValueError, match=r'are series.*x\[:,None\]'): learner(tensor_dls(X[:,0], bs=BS)).fit(1)

def test_a_picture_is_no_batch():
    "One dimension, or six, is nothing that views are made of"
    for shape in ((N,), (N,1,1,1,1,1)):
        with pytest.raises(ValueError, match='is no batch of pictures, clips, series or vectors'): learner(tensor_dls(torch.rand(shape), bs=BS)).fit(1)

# Numbers

@pytest.mark.parametrize('kw', [dict(lr=NAN), dict(lr=INF), dict(lr=-INF), dict(lr=np.float64(NAN)), dict(lr=slice(NAN)), dict(lr=slice(1e-3,INF)), dict(lr=[NAN,1.]),
                                dict(wd=NAN), dict(wd=INF), dict(wd=np.float32('inf')), dict(lr='0.1'), dict(lr=True), dict(m=NAN), dict(m=INF), dict(warmup_epochs=NAN),
                                dict(warmup_epochs=INF), dict(epochs=NAN), dict(epochs=INF), dict(epochs=True), dict(epochs=2.5), dict(epochs=np.float64(2))], ids=str)
def test_numbers_that_train_nothing_are_refused_before_anything_changes(kw):
    "In one line, with the name of the argument; no weight and no optimizer is made"
    learn = learner()
    with pytest.raises((ValueError,TypeError), match=next(iter(kw)).partition('_')[0]) as e: learn.fit_byol(**{'epochs':2, **kw})
    assert '\n' not in str(e.value) and not hasattr(learn.recorder, 'losses')

NUMBERS = [np.float64, np.float32, torch.tensor, np.array]
@pytest.mark.parametrize('kind', NUMBERS, ids=lambda o: o.__name__)
def test_numbers_of_numpy_and_torch_are_numbers(kind):
    "Everywhere a number goes: rate, decay, momentum, warm-up; the run is that of Python's numbers"
    def run(f):
        learn = learner()
        learn.fit_byol(2, lr=f(.25), wd=f(.5), m=f(.5), warmup_epochs=f(.5))
        learn.fit_byol(2, lr=[f(.25)])
        learn.fit_byol(2, 'adamw', lr=slice(f(.25)), m=cosine_momentum(f(.5), f(1.)))
        return weights(learn),learn.byol.momenta
    (a,ma),(b,mb) = run(kind),run(float)
    assert torch.equal(a, b) and ma==mb

@pytest.mark.parametrize('kind', [np.int64, np.int32, np.uint8, torch.tensor, np.array], ids=lambda o: o.__name__)
def test_whole_numbers_of_numpy_are_whole_numbers(kind):
    "Epochs, steps, seeds, batch sizes, of fits, recipes and callbacks"
    def run(f):
        seed_everything(f(3))
        data = tensor_dls(X, splits=(range(24), range(24,32)), bs=8, seed=f(3))
        seed_everything(f(3), data)
        learn = byol_learner(data, model(), cbs=[Probe((X,Y), (X,Y), seed=0)], aug_pipelines=AUGS)
        learn.remove_cb(BYOL); learn.add_cb(BYOL(AUGS, seed=f(5)))
        with learn.no_bar(), learn.no_logging():
            quiet(learn.fit_byol, f(2)); quiet(learn.fit_byol, steps=f(2)); learn.byol.show(2, seed=f(1))
        plt.close('all')
        return weights(learn),byol_recipe(f(10), f(64), 'lars', f(100)).lr,learn.recorder.values[-1]
    (a,la,va),(b,lb,vb) = run(kind),run(int)
    assert torch.equal(a, b) and la==lb and list(va)==list(vb)

@pytest.mark.parametrize('kind', NUMBERS, ids=lambda o: o.__name__)
def test_optimizers_and_averages_take_numbers_of_numpy(kind):
    "LARS, its hyper-parameters set later, `ema_update`, `BYOL(m=)`, a recipe of one's own"
    def run(f):
        torch.manual_seed(0)
        a,b = nn.Linear(4,4),nn.Linear(4,4)
        opt = LARS(a.parameters(), lr=f(.5), mom=f(.5), wd=f(.25), eta=f(.125))
        a(torch.ones(2,4)).sum().backward(); opt.step()
        ema_update(b.requires_grad_(False), a, f(.5))
        learn = learner(); learn.byol.m = f(.75)
        return torch.cat([p.detach().flatten() for p in (*a.parameters(), *b.parameters())]),learn.byol.m,BYOL(AUGS, m=f(.5)).sched(0.)
    (a,*ma),(b,*mb) = run(kind),run(float)
    assert torch.equal(a, b) and ma==mb

@pytest.mark.parametrize('lr', [NAN, INF, -1., np.float32('nan')])
def test_lars_refuses_rates_that_are_none(lr):
    "Infinite and NaN, besides negative ones"
    with pytest.raises(ValueError, match='lr'): LARS(nn.Linear(2,2).parameters(), lr=lr)

def test_masks_are_splits():
    "Boolean masks, of NumPy, torch or Python, choose what positions choose"
    mask = np.arange(N)%4>0
    for m in (mask, torch.as_tensor(mask), mask.tolist()):
        data = tensor_dls(X, splits=(m, ~mask), bs=BS)
        assert data.train_ds.idxs.tolist()==np.flatnonzero(mask).tolist() and len(data.valid_ds)==N//4

@pytest.mark.parametrize('n', [1, 3])
@pytest.mark.parametrize('how', ['inputs', 'loss', 'gradients'])
def test_a_run_in_which_every_batch_was_skipped_ends_with_an_error(n, how):
    "Fewer than the guard's row of ten: nothing was trained, and that is no success"
    class Spoil(Callback):
        order = -100
        def after_pred(self):
            if how=='loss' and self.training: self.learn.pred = tuple(p*NAN for p in self.pred)
        def after_backward(self):
            if how=='gradients': next(p for p in self.model.parameters() if p.grad is not None).grad.fill_(NAN)
    x = X[:n*BS].clone()
    if how=='inputs': x[:] = NAN
    learn = learner(dls(x=x), augs=[lambda x: x.clone()]*2, cbs=Spoil())
    was = weights(learn).clone()
    for fit in (partial(learn.fit, 2), partial(learn.fit_byol, 2)):
        with pytest.raises(RuntimeError, match=f'{2*n} batches were all skipped'): quiet(fit)
    assert torch.equal(weights(learn), was) and not learn.byol.at_hand and len(learn.dls.loaders)==2

def test_a_guard_of_your_own_says_so_too():
    "It replaces the one that BYOL brings"
    learn = learner(dls(x=X[:8]*NAN), augs=[lambda x: x.clone()]*2, cbs=Guard(n=50))
    with pytest.raises(RuntimeError, match='2 batches were all skipped'): quiet(learn.fit, 2)

def test_a_run_with_one_good_batch_ends_well():
    "The report says the rest"
    x = X[:2*BS].clone(); x[0] = NAN
    learn = learner(dls(x=x)); quiet(learn.fit, 1)
    assert len(learn.guard.skipped)==1 and len(learn.recorder.losses)==1

# Logging

class Writer:
    "Stands in for TensorBoard's `SummaryWriter` where it is not installed, as strict about numbers as that is"
    made = []
    def __init__(self, log_dir=None): self.scalars,self.graphs = [],0; Writer.made.append(self)
    def add_scalar(self, tag, value, step=None):
        self.scalars.append((tag, float(value.item() if hasattr(value, 'item') else value), step))
    def add_graph(self, model, *xb):
        with warnings.catch_warnings(): warnings.simplefilter('ignore'); torch.jit.trace(model, xb, strict=False)
        self.graphs += 1
    def close(self): pass

class Run(types.ModuleType):
    "Stands in for wandb"
    def __init__(self):
        super().__init__('wandb'); self.rows = []
        self.run = types.SimpleNamespace(step=0, summary={}, name='run')
        self.config = types.SimpleNamespace(update=lambda *a, **k: None)
    def log(self, row, step=None): self.rows.append((dict(row), step))
    def watch(self, *a, **k): pass

@pytest.fixture
def tensorboard(monkeypatch):
    "fastai's callback, its writer replaced by one that keeps what it is given"
    if not has('tensorboard'):
        monkeypatch.setitem(sys.modules, 'tensorboard', types.ModuleType('tensorboard'))
        stub = types.ModuleType('torch.utils.tensorboard'); stub.SummaryWriter = Writer
        monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', stub)
    import fastai.callback.tensorboard as tb
    monkeypatch.setattr(tb, 'SummaryWriter', Writer)
    Writer.made.clear()
    return tb.TensorBoardCallback

@pytest.fixture
def wandb(monkeypatch):
    "fastai's callback, and what it has logged"
    run = Run()
    monkeypatch.setitem(sys.modules, 'wandb', run)
    sys.modules.pop('fastai.callback.wandb', None)
    import fastai.callback.wandb as w
    monkeypatch.setattr(w, 'wandb', run)
    return w.WandbCallback,run

def has(name):
    from importlib.util import find_spec
    return find_spec(name) is not None

RECIPES = ['lars', 'sgd', 'adamw', 'simsiam']
COLUMNS = {'valid_loss','spread','mean_cosine','rank','feature_rank','knn_accuracy','linear_accuracy'}
DATA = {'train only': lambda: tensor_dls(X, bs=BS), 'with validation': lambda: dls(BS), 'labelled': lambda: dls(BS, y=Y),
        'one loader': lambda: DataLoaders(DataLoader(TensorDataset(X), batch_size=BS), device='cpu'),
        'ready': lambda: ready('((x0,x1),y)')}

def logged(recipe, data, cb, path, **kwargs):
    learn = learner(DATA[data](), None if data=='ready' else AUGS, model(create=create_simsiam_model if recipe=='simsiam' else create_byol_model), path,
                    cbs=Probe((X,Y), (X,Y)))
    quiet(learn.fit_byol, 2, recipe, cbs=cb, **kwargs)
    return learn

@pytest.mark.parametrize('data', DATA)
@pytest.mark.parametrize('recipe', RECIPES)
def test_tensorboard_logs_every_recipe(recipe, data, tensorboard, tmp_path):
    "With the callback's defaults: losses, hyper-parameters and each column of the table, health and probe among them"
    learn = logged(recipe, data, tensorboard(log_dir=tmp_path), tmp_path)
    writer, = Writer.made
    tags = {t for t,*_ in writer.scalars}
    has_valid = len(learn.dls.loaders)>1 and len(learn.dls.valid)>0
    assert tags>=COLUMNS-(set() if has_valid else {'valid_loss'}) | {'train_loss','lr_0','wd_0'}
    assert len(learn.recorder.values)==2 and len({s for t,_,s in writer.scalars if t=='spread'})==2
    spread = [v for t,v,_ in writer.scalars if t=='spread']
    assert spread==pytest.approx([r['spread'] for r in learn.health.rows]) and all(math.isfinite(v) for v in spread)
    rates = [v for t,v,_ in writer.scalars if t=='lr_0']
    assert set(learn.recorder.hps['lr'])&set(rates) or recipe=='simsiam'

@pytest.mark.parametrize('data', DATA)
@pytest.mark.parametrize('recipe', RECIPES)
def test_wandb_logs_every_recipe(recipe, data, wandb, tmp_path, capsys):
    "With the callback's defaults: no prediction is fetched, and every column is logged"
    cls,run = wandb
    learn = logged(recipe, data, cls(), tmp_path)
    keys = {k for row,_ in run.rows for k in row}
    assert keys>=COLUMNS|{'train_loss','raw_loss','lr_0','wd_0'}
    assert None not in [row[k] for row,_ in run.rows for k in row if k!='valid_loss']
    assert not learn._grab_cbs(FetchPredsCallback) and 'not able' not in capsys.readouterr().out

@pytest.mark.parametrize('data', DATA)
@pytest.mark.parametrize('recipe', RECIPES)
def test_csv_logs_every_recipe(recipe, data, tmp_path):
    "A row per epoch, a column for each of the table's"
    learn = logged(recipe, data, CSVLogger('log.csv'), tmp_path)
    head,*rows = [o.split(',') for o in (tmp_path/'log.csv').read_text().split()]
    assert COLUMNS<=set(head) and len(rows)==2 and all(len(r)==len(head) for r in rows)
    assert [float(r[head.index('spread')]) for r in rows]==pytest.approx([r['spread'] for r in learn.health.rows])

def test_real_tensorboard_reads_what_was_logged(tmp_path):
    "Where it is installed: the file of the run holds the values"
    pytest.importorskip('tensorboard'); tb = pytest.importorskip('fastai.callback.tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    learn = logged('adamw', 'train only', tb.TensorBoardCallback(log_dir=tmp_path), tmp_path)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [e.value for e in events.Scalars('spread')]==pytest.approx([r['spread'] for r in learn.health.rows])
    assert events.Graph().node

def test_left_out_predictions_are_named(tensorboard, tmp_path):
    "The default logs them; it is said once that there are none"
    warn_once.cache_clear()
    learn = learner(path=tmp_path)
    with pytest.warns(UserWarning, match='logs no predictions'): learn.fit_byol(1, cbs=tensorboard(log_dir=tmp_path))
    warn_once.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        learn.fit_byol(1, cbs=tensorboard(log_dir=tmp_path, log_preds=False))

def test_decoded_predictions_are_refused_before_the_first_batch():
    "They would end the run after its first epoch"
    learn = learner(dls(BS))
    with pytest.raises(TypeError, match='with_decoded=False'): learn.fit(1, cbs=FetchPredsCallback(with_decoded=True))
    learn.fit(1, cbs=(fetch := FetchPredsCallback()))
    assert fetch.preds[0][0].shape==(BS,8)

@pytest.mark.parametrize('recipe', RECIPES)
def test_hyper_parameters_are_numbers(recipe):
    "Of every recipe: loggers plot them"
    net = model(create=create_simsiam_model if recipe=='simsiam' else create_byol_model)
    learn = learner(net=net); learn.fit_byol(1, recipe)
    assert all(isinstance(v, (int,float)) for h in learn.opt.hypers for v in h.values())

# Drawing views at any moment

def shows(learn, n=2):
    "A row for each picture, a column for each view, besides the picture"
    axes = learn.byol.show(n); plt.close('all')
    assert axes.shape==(n, 3 if learn.byol.augs else 2)

class Raise(Callback):
    "Raise once"
    def __init__(self, event, e, order): self.event,self.e,self.order,self.done = event,e,order,False
    def __call__(self, event):
        if event!=self.event or self.done: return
        self.done = True
        raise self.e

CUTS = [CancelFitException, CancelEpochException, CancelTrainException, CancelBatchException, CancelStepException, KeyboardInterrupt, RuntimeError]
EVENTS = [('before_fit',-50), ('before_train',100), ('before_batch',-50), ('before_batch',100), ('after_pred',100), ('before_step',100), ('after_batch',-50), ('after_epoch',100)]

@pytest.mark.parametrize('augs', [AUGS, None], ids=['pipelines','ready'])
@pytest.mark.parametrize('e', CUTS, ids=lambda e: e.__name__)
def test_views_are_drawn_after_a_fit_that_was_cut_anywhere(e, augs):
    "In any event, by any exception: the next call draws, and so does the one after the next fit"
    for event,order in EVENTS:
        learn = learner(dls() if augs else ready('(x0,x1)'), augs)
        try: quiet(learn.fit, 1, lr=1e-3, cbs=Raise(event, e, order))
        except BaseException as err: assert isinstance(err, e), (event, err)
        shows(learn, 1)
    learn.fit(1, lr=1e-3); shows(learn)

@pytest.mark.parametrize('e', CUTS, ids=lambda e: e.__name__)
def test_half_precision_ends_with_a_fit_that_was_cut_anywhere(e, monkeypatch):
    "fastai leaves its autocast after the loss: of a batch cut before, all later passes of the process would be in bfloat16, as on a GPU"
    monkeypatch.setattr(fp16, 'autocast', lambda _, dtype: torch.autocast('cpu', dtype))
    for event,order in EVENTS:
        learn = learner(dls()).to_bf16()
        try: quiet(learn.fit, 1, lr=1e-3, cbs=Raise(event, e, order))
        except BaseException as err: assert isinstance(err, e), (event, err)
        assert not autocast_depth() and not torch.is_autocast_enabled('cpu'), (event, order)
        learn.fit(1, lr=1e-3)
        assert not autocast_depth() and 'one_batch' not in vars(learn)

@pytest.mark.parametrize('augs', [AUGS, None], ids=['pipelines','ready'])
def test_views_are_drawn_in_every_event(augs):
    "Before, in, between and after batches; training does not notice"
    class Look(Callback):
        order = 100
        def __call__(self, event): shows(self.learn, 1)
    def run(*cbs):
        learn = learner(dls(BS, x=X[:3*BS]) if augs else ready('(x0,x1)', 0), augs)
        learn.fit(1, lr=1e-3, cbs=cbs)
        return weights(learn)
    assert torch.equal(run(Look()), run())

def test_views_are_drawn_after_short_epochs_and_after_load(tmp_path):
    "The older library's page cuts an epoch and draws"
    learn = learner(path=tmp_path)
    learn.fit(1, lr=1e-3, cbs=ShortEpochCallback(.001)); shows(learn)
    learn.save('m'); learn.load('m'); shows(learn)
    with learn.no_bar(): learn.lr_find(num_it=2, show_plot=False, suggest_funcs=())
    shows(learn); learn.validate(); shows(learn)

# Many crops

CROPS = [partial(lambda x,s: F.interpolate(noisy(x), (s,s)), s=s) for s in (8,8,4,4,4,4)]

def by_hand(net, views, n_large):
    "Mean over the pairs whose target is a large view, twice: independent of `cross` and `byol_loss`"
    qs,zs = net(*views),net.project(*views)
    ds = [(F.normalize(qs[i])-F.normalize(zs[j])).square().sum(1).mean() for i,j in permutations(range(len(views)), 2) if j<n_large]
    return 2*sum(ds)/len(ds)

@pytest.mark.parametrize('create', [create_byol_model, create_simsiam_model])
def test_small_crops_are_no_targets(create):
    "2+4 crops: 10 pairs, the mean times two, in the learner and in `model.loss`; at most 8, as with two views"
    net = model(create=create).eval()
    torch.manual_seed(0)
    views = tuple(aug(X[:8]) for aug in CROPS)
    with torch.no_grad(): want = by_hand(net, views, 2)
    assert net.loss(*views).item()==pytest.approx(want.item(), rel=1e-5)
    learn = learner(augs=CROPS, net=model(create=create), cbs=(seen := Pairs()))
    learn.fit(1, lr=1e-4)
    assert all(0<=l<=8 for l in learn.recorder.losses) and seen.n==(10,10)

class Pairs(Callback):
    order = 100
    def after_pred(self): self.n = len(self.pred),len(self.yb)

def test_three_views_of_one_size_are_all_targets():
    "Six pairs, their mean times two"
    net = model().eval()
    views = tuple(noisy(X[:8]) for _ in range(3))
    with torch.no_grad(): assert net.loss(*views).item()==pytest.approx(by_hand(net, views, 3).item(), rel=1e-5)

def test_two_views_of_two_sizes_are_both_targets():
    "As in the published loss"
    net = model().eval()
    views = noisy(X[:8]),F.interpolate(noisy(X[:8]), (4,4))
    with torch.no_grad(): assert net.loss(*views).item()==pytest.approx(by_hand(net, views, 2).item(), rel=1e-5)

def test_two_views_are_what_they_were():
    "To the bit: the sum over both pairs, in no other order"
    net = model().eval()
    v = noisy(X[:8]),noisy(X[:8])
    with torch.no_grad():
        (q1,q2),(z1,z2) = net(*v),net.project(*v)
        assert torch.equal(net.loss(*v), byol_loss((q1,q2), z2, z1)) and torch.equal(BYOLLoss()((q1,q2), z2, z1), byol_loss((q1,q2), z2, z1))

def test_targets_of_small_crops_are_not_computed():
    "The target sees the large views alone"
    net = model(); seen = []
    net.target.register_forward_pre_hook(lambda m,i: seen.append(i[0].shape[-1]))
    net.loss(*(aug(X[:8]) for aug in CROPS))
    assert seen==[8,8]

# Small things

@pytest.mark.parametrize('n', [1, 2, 3])
def test_momenta_have_an_entry_per_step(n):
    "With n batches accumulated: as many as the target has moved, each that of the step's first batch"
    class Moves(Callback):
        order = 100
        def before_fit(self): self.n,self.was,self.firsts,self.i = 0,self.t(),[],0
        def t(self): return next(self.learn.model.target.parameters()).clone()
        def before_batch(self):
            if self.i%n==0: self.firsts.append(self.learn.pct_train)
            self.i += 1
        def after_batch(self): self.n,self.was = self.n+(not torch.equal(self.was, self.t())),self.t()
    learn = learner(dls(x=torch.cat([X,X[:16]])), cbs=[GradientAccumulation(n*BS), moves := Moves()], )
    learn.byol.m = cosine_momentum(.5)
    learn.fit(2, lr=1e-2)
    assert len(learn.byol.momenta)==moves.n==12//n
    assert learn.byol.momenta==pytest.approx([cosine_momentum(.5)(p) for p in moves.firsts[:12//n]])

def test_the_way_of_the_target_counts_steps():
    "Health's judgement of a target that stands still: (1-m) times the steps of the run, accumulated or not"
    for n in (1,2):
        learn = learner(cbs=[GradientAccumulation(n*BS)]); learn.byol.m = .75; learn.fit(3, lr=1e-2)
        assert learn.health.rows[-1]['way']==pytest.approx(.25*3*(N//BS)/n)

@pytest.mark.parametrize('data', [d for d in DATA if d!='ready'])
def test_a_fit_without_validation_warns_of_nothing(data):
    "fastprogress's 'Your generator is empty' came with every epoch"
    learn = byol_learner(DATA[data](), model(), AUGS)
    learn.logger = lambda *_: None
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        learn.fit(1, lr=1e-3)
    assert not [w for w in ws if 'generator' in str(w.message)]

def test_completion_offers_what_a_user_calls():
    "`learn.byol.` and a tab: no events, nothing of fastai's"
    names = [o for o in dir(learner().byol) if not o.startswith('_')]
    assert {'show','views','m','momenta','guard','augs'}<=set(names) and len(names)<=12
    assert all(hasattr(learner().byol, o) for o in names)

# Batches that are dictionaries, and parts beside the pictures

V = torch.rand(N,1,SIDE,SIDE, generator=torch.Generator().manual_seed(1))
DICTS = {'mask first': lambda x,v,i,y,name: dict(mask=v, image=x, label=y),
         'mask last': lambda x,v,i,y,name: dict(image=x, image_mask=v, label=y),
         'target picture': lambda x,v,i,y,name: dict(target=v, input=x, cls=y),
         'cifar': lambda x,v,i,y,name: dict(idx=i, img=x, coarse_label=i, fine_label=y),
         'camel': lambda x,v,i,y,name: dict(ImageId=i, pixelValues=x, depthMap=v, speciesId=y),
         'category': lambda x,v,i,y,name: dict(image_id=i, image=x, path=name, category=y),
         'thermal': lambda x,v,i,y,name: dict(thermal=v, rgb=x, targets=y),
         'unknown': lambda x,v,i,y,name: dict(heatmap=v, leaf=x, file_index=i, breed=y),
         'features': lambda x,v,i,y,name: dict(image_embedding=v.flatten(1), image=x, label_name=name, y=y),
         '(x,dict)': lambda x,v,i,y,name: (x, dict(id=i, labels=y)),
         '(x,name,y)': lambda x,v,i,y,name: (x, name, y),
         '(x,list)': lambda x,v,i,y,name: (x, y.tolist())}

def batches_as(form, y=Y):
    at = torch.arange(N)
    return [form(X[i], V[i], i, y[i], [f'{o}.png' for o in i.tolist()]) for i in at.split(BS)]

@pytest.mark.parametrize('form', DICTS)
def test_the_names_in_a_batch_tell_pictures_and_labels(form):
    "`embed` and the training look at the pictures, not at a mask; the labels are no ids and no names of files"
    y = Y.flip(0)
    data = batches_as(DICTS[form], y)
    net = model()
    feats,labels = embed(net.encoder, data)
    assert torch.allclose(feats, embed(net.encoder, X)[0], atol=1e-6) and torch.equal(labels, y)
    if '(' in form or 'target' in form: return
    learn = learner(DataLoaders(data, device='cpu'), [torch.clone]*2, net, cbs=(seen := Seen()))
    quiet(learn.fit, 1, lr=1e-3)
    assert all(torch.equal(v, X[i*BS:(i+1)*BS]) for i,b in enumerate(seen.xs) for v in b)

@pytest.mark.parametrize('form', [lambda x,v,i,y,name: (x, name), lambda x,v,i,y,name: (x, None), lambda x,v,i,y,name: (x, [None]*len(x)),
                                  lambda x,v,i,y,name: dict(image=x, id=i, path=name), lambda x,v,i,y,name: (x, dict(id=i)), lambda x,v,i,y,name: (x, dict(name=name))])
def test_names_and_ids_are_no_labels(form):
    "Nor is None: features come without labels"
    feats,labels = embed(model().encoder, batches_as(form))
    assert feats.shape[0]==N and labels is None

def test_a_pair_without_labels_is_pictures_alone():
    "(x,None); an error about labels names y"
    net = model().encoder
    feats,labels = embed(net, (X,None))
    assert labels is None and torch.equal(feats, embed(net, X)[0])
    with pytest.raises(ValueError, match='^y='): embed(net, (X,['cat']*N))

@pytest.mark.parametrize('form', [lambda x,v,i,y,name: dict(foo=x, bar=v), lambda x,v,i,y,name: dict(foo=x, bar=v.repeat(1,2,1,1)), lambda x,v,i,y,name: (dict(foo=x, bar=v), y)])
def test_a_dictionary_that_tells_no_pictures_is_refused(form):
    "One line with the keys, and the fix"
    with pytest.raises(ValueError, match=r"keys \['foo', 'bar'\].*collate_fn that returns \(x,y\)") as e: embed(model().encoder, batches_as(form))
    assert '\n' not in str(e.value)

def test_labels_that_names_do_not_tell_are_named():
    "Two of equal right: features without labels, and a warning"
    warn_once.cache_clear()
    with pytest.warns(UserWarning, match=r"\['age', 'sex'\] may be its labels"): feats,labels = embed(model().encoder, batches_as(lambda x,v,i,y,name: dict(image=x, age=i, sex=y)))
    assert labels is None

def test_a_mask_is_no_second_view():
    "With aug_pipelines=None it was trained on as one"
    with pytest.raises(ValueError, match='needs a loader of ready views'): learner(DataLoaders(batches_as(lambda x,v,i,y,name: dict(image=x, mask=v)), device='cpu'), None).fit(1)

@pytest.mark.parametrize('form', [lambda x,v,i,y,name: (i, x, y), lambda x,v,i,y,name: (name, x, y)], ids=['index','names'])
@pytest.mark.parametrize('augs', [AUGS, None], ids=['pipelines','ready'])
def test_pictures_that_do_not_come_first_are_named(form, augs):
    "In `embed` and in training: where they are, and what to do"
    data = batches_as(form)
    with pytest.raises(ValueError, match='pictures in part 1.*must come first'): embed(model().encoder, data)
    with pytest.raises(ValueError, match='pictures in part 1.*must come first'): quiet(learner(DataLoaders(data, device='cpu'), augs).fit, 1)

# Known before the first step, or named by its cause

def test_a_frozen_encoder_is_named():
    "Frozen by hand, or by fastai but for batchnorm: it ended well, with the encoder as it was"
    e = model().encoder.requires_grad_(False)
    with pytest.warns(UserWarning, match='the encoder is frozen: 0 of its .*requires_grad_'): learner(net=model(encoder=e)).fit(1)
    for m in e.modules():
        if isinstance(m, nn.BatchNorm2d): m.requires_grad_(True)
    n = sum(p.numel() for p in e.parameters() if p.requires_grad)
    assert n
    with pytest.warns(UserWarning, match=f'frozen: {n:,} of its .*those of norms and biases'): learner(net=model(encoder=e)).fit(1)

def test_an_encoder_of_class_learner_is_named_as_frozen():
    "It comes frozen, and `unfreeze` trains it"
    from self_supervised.transfer.finetune import class_learner
    clf = class_learner(dls(BS, y=Y), model().encoder, stats=None, n_out=4)
    with pytest.warns(UserWarning, match='the encoder is frozen'): learner(net=model(encoder=clf.model.encoder)).fit(1)
    clf.unfreeze()
    said = quiet_of('frozen', learner(net=model(encoder=clf.model.encoder)).fit, 1)
    assert not said

def quiet_of(text, f, *args, **kwargs):
    "Warnings with `text`"
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always'); f(*args, **kwargs)
    return [str(w.message) for w in ws if text in str(w.message)]

def test_early_layers_may_be_frozen():
    "A choice, which needs no warning"
    net = model(); next(net.encoder.parameters()).requires_grad_(False)
    assert not quiet_of('frozen', learner(net=net).fit, 1)

@pytest.mark.parametrize('stats', [None, (.5,.5), ([.5]*3,[.2]*3)], ids=str)
@pytest.mark.parametrize('kind', ['floats','bytes','wide'])
def test_channels_that_come_last_are_named(kind, stats):
    "A torch loader's (bs,h,w,c), with pipelines that normalise or not"
    x = torch.rand(16,12,20 if kind=='wide' else 12,3)
    if kind=='bytes': x = (x*255).byte()
    data = DataLoaders(DataLoader(TensorDataset(x, torch.arange(16)), batch_size=8), device='cpu')
    with pytest.raises(ValueError, match=r'3 channels last.*x\.permute\(0,3,1,2\)') as e: quiet(learner(data, get_byol_aug_pipelines(8, stats=stats), model(3)).fit, 1)
    assert 'n_in=12' not in str(e.value)

def test_ready_views_and_classifiers_name_channels_that_come_last():
    "The same cause, elsewhere"
    from self_supervised.transfer.finetune import class_learner
    x = torch.rand(16,12,12,3)
    with pytest.raises(ValueError, match=r'x\.permute\(0,3,1,2\)'): quiet(learner(DataLoaders([(x,x.clone())], device='cpu'), None, model(3)).fit, 1)
    data = DataLoaders(DataLoader(TensorDataset(x, torch.arange(16)%2), batch_size=8), device='cpu')
    with pytest.raises(ValueError, match=r'x\.permute\(0,3,1,2\)'): class_learner(data, model(3).encoder, 2, stats=None)

def test_a_network_may_take_channels_last():
    "It is asked before it is refused"
    class Last(nn.Module):
        def __init__(self): super().__init__(); self.c = nn.Conv2d(3,6,3)
        def forward(self, x): return self.c(x.permute(0,3,1,2)).mean((2,3))
    data = DataLoaders([torch.rand(8,12,12,3)]*2, device='cpu')
    learn = learner(data, AUGS, create_byol_model(Last(), 16, 8, n_in=12, size=(12,3)))
    quiet(learn.fit, 1); assert len(learn.recorder.losses)==2

@pytest.mark.parametrize('hi,fix', [(255,'by 255[.]'), (4095,'by 4095, if they have 12 bits'), (65535,'by 65535, if they have 16 bits'), (10,'by the largest value'),
                                    (1e6,'by the largest value'), (2,'Leave Normalize out')])
def test_the_range_of_pictures_names_its_cause(hi, fix):
    "In training and in `embed`"
    x = X*hi
    assert [o for o in quiet_of('the pictures span', learner(dls(x=x), get_byol_aug_pipelines(SIDE, stats=None)).fit, 1) if re.search(fix, o)]
    if hi==2: return
    warn_once.cache_clear()
    encoder = model().encoder; encoder.meta = dict(stats=None)
    with pytest.warns(UserWarning, match=fix): embed(encoder, x)

def test_a_range_of_both_signs_names_its_cause():
    "Hounsfield units are not normalised pictures, which are within a few units of 0"
    from self_supervised.data.batches import outside_unit
    assert 'smallest and the largest' in outside_unit(X*4095-1024).fix and outside_unit((X-.5)/.2).fix is None

@pytest.mark.parametrize('kind', [torch.bfloat16, torch.half, torch.double])
def test_an_encoder_of_another_type_is_named(kind):
    "It was advised to wrap its maps"
    e = model().encoder
    net = model(encoder=e); e.to(kind)
    with pytest.raises(ValueError, match=f"holds weights of type {str(kind)[6:]}.*encoder.float") as err: learner(net=net).fit(1)
    assert 'Wrap' not in str(err.value)

@pytest.mark.parametrize('size,fix', [(64,'size=64'), ((32,64), r'size=\(32, 64\)')])
def test_a_transformer_of_another_size_is_named(size, fix):
    "The size to build it with"
    pytest.importorskip('timm')
    e = create_encoder('vit_tiny_patch16_224', pretrained=False, depth=1)
    h,w = size if isinstance(size, tuple) else (size,size)
    learn = learner(DataLoaders([torch.rand(4,3,h,w)], device='cpu'), AUGS, create_byol_model(e, 8, 8))
    with pytest.raises(ValueError, match=rf'create_encoder\(\.\.\., {fix}\)') as err: quiet(learn.fit, 1)
    assert 'Wrap' not in str(err.value)

@pytest.mark.parametrize('bs', [8, 16])
@pytest.mark.parametrize('load', [partial(DataLoader), partial(DataLoader, shuffle=True)], ids=['in order','shuffled'])
def test_a_last_batch_of_one_picture_is_refused_before_the_fit(load, bs):
    "17 pictures: it ended the first epoch"
    x = torch.cat([X,X])[:17]
    data = lambda **kw: DataLoaders(load(TensorDataset(x), batch_size=bs, **kw), device='cpu')
    learn = learner(data(), cbs=(seen := Seen()))
    with pytest.raises(ValueError, match=f'bs={bs} leaves one picture for the last batch.*drop_last=True'): learn.fit(1)
    assert not getattr(seen, 'xs', None)
    learner(data(drop_last=True)).fit(1)
    fast = DataLoaders(FastLoader(TensorDataset(x), bs=bs), device='cpu')
    with pytest.raises(ValueError, match='leaves one picture'): learner(fast).fit(1)

@pytest.mark.parametrize('views', [1, 2])
@pytest.mark.parametrize('kind', ['stream','batch sampler'])
def test_a_stream_may_end_with_one_picture(kind, views):
    "Only its number of batches is known before: the epoch ended with an error, and its work was lost"
    both = [torch.rand(17,*X.shape[1:]) for _ in range(views)]
    data = OneByOne(*both) if kind=='stream' else TensorDataset(*both)
    how = dict(batch_size=8) if kind=='stream' else dict(batch_sampler=torch.utils.data.BatchSampler(range(17), 8, False))
    learn = learner(DataLoaders(DataLoader(data, **how), device='cpu'), AUGS if views==1 else None, cbs=(seen := Seen()))
    with pytest.warns(UserWarning, match='One picture is left for the last batch.*drop_last=True'): learn.fit(2)
    assert len(learn.recorder.losses)==4 and np.isfinite(learn.recorder.losses).all()
    assert [len(x) for xs in seen.xs for x in xs]==[8]*8
    first = learner(DataLoaders(DataLoader(OneByOne(both[0][:1]), batch_size=8), device='cpu'))
    with pytest.raises(ValueError, match='holds 1 picture, and batchnorm compares at least two'): first.fit(1)

class OneByOne(IterableDataset):
    "A stream of the rows of tensors"
    def __init__(self, *rows): self.rows = rows
    def __iter__(self): return iter(zip(*self.rows))
    def __len__(self): return len(self.rows[0])

def test_a_last_batch_of_one_picture_needs_no_batchnorm_to_be_trained():
    "Group norm compares nothing"
    net = model(encoder=nn.Sequential(nn.Conv2d(1,6,3), nn.GroupNorm(2,6), nn.AdaptiveAvgPool2d(1), nn.Flatten()), create=partial(create_byol_model, bn=False))
    learn = learner(DataLoaders(DataLoader(TensorDataset(X[:17]), batch_size=8), device='cpu'), net=net)
    quiet(learn.fit, 1); assert len(learn.recorder.losses)==3

# Classifiers

def pairs(y): return DataLoaders(*[FastLoader(list(zip(X, y)), bs=BS)]*2, device='cpu')

@pytest.mark.parametrize('kind', ['classes','several','numbers','own'])
def test_the_metric_of_a_classifier_follows_its_loss(kind):
    "`accuracy` for several labels ended a run at validation, and was 0 for numbers"
    from fastai.losses import BCEWithLogitsLossFlat, MSELossFlat
    from fastai.metrics import accuracy
    from self_supervised.transfer.finetune import class_learner
    y,loss,n_out = dict(classes=(Y,CrossEntropyLossFlat(),4), several=(F.one_hot(Y).float(),BCEWithLogitsLossFlat(),4), numbers=(Y.float(),MSELossFlat(),1),
                        own=(F.one_hot(Y).float(),F.binary_cross_entropy_with_logits,4))[kind]
    learn = class_learner(pairs(y), model().encoder, n_out, stats=None, loss_func=loss)
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1)
    preds,targs = learn.get_preds(act=lambda o: o) if kind!='own' else learn.get_preds()
    want = {'classes': lambda: (preds.argmax(1)==Y).float().mean(), 'numbers': lambda: (preds[:,0]-Y).square().mean()}.get(kind, lambda: ((preds>0)==y).float().mean())()
    assert learn.validate()[1]==pytest.approx(want.item(), rel=1e-4)
    assert [m.name for m in learn.metrics]==[dict(classes='accuracy', numbers='mse').get(kind, 'accuracy_multi')]
    assert not class_learner(pairs(y), model().encoder, n_out, stats=None, loss_func=loss, metrics=None).metrics
    assert [m.name for m in class_learner(pairs(y), model().encoder, n_out, stats=None, loss_func=loss, metrics=[accuracy]).metrics]==['accuracy']
    with pytest.raises(ValueError, match="metrics='acc' is not known"): class_learner(pairs(y), model().encoder, n_out, stats=None, loss_func=loss, metrics='acc')

def test_batches_that_a_classifier_cannot_take_are_refused():
    "Two pictures per item, names beside them, dictionaries: it ended in the first step"
    from self_supervised.transfer.finetune import class_learner
    make = lambda *parts: DataLoaders(DataLoader(TensorDataset(*parts), batch_size=BS), device='cpu')
    for data,problem in ((make(X,X.clone(),Y), 'brings 2 inputs'), (make(X,Y,Y), 'brings 2 inputs'),
                         (DataLoaders([dict(image=X, label=Y)], device='cpu'), 'brings batches of type dict')):
        with pytest.raises(ValueError, match=problem): class_learner(data, model().encoder, 4, stats=None, metrics=None, loss_func=CrossEntropyLossFlat())
    data = make(X,Y,Y); data.n_inp = 1
    class_learner(data, model().encoder, 4, stats=None, loss_func=CrossEntropyLossFlat())

@pytest.mark.parametrize('size', [12, (12,20)])
def test_an_encoder_records_the_size_that_it_is_fine_tuned_at(size):
    "It kept that of pretraining, which `byol_embed` takes; the original keeps its own"
    from self_supervised.transfer.finetune import class_learner
    e = model().encoder; e.meta = dict(stats=None, size=SIDE)
    h,w = size if isinstance(size, tuple) else (size,size)
    learn = class_learner(tensor_dls(torch.rand(8,1,h,w), Y[:8], bs=4), e, 4)
    assert learn.model.encoder.meta['size']==size and e.meta['size']==SIDE

BYTES = (127.5,127.5), ([123.,116.,103.],[58.,57.,57.])

@pytest.mark.parametrize('stats', BYTES, ids=str)
def test_statistics_of_bytes_do_not_go_with_pictures_in_the_unit_range(stats):
    "All views had the mean -1: refused where views are in [0,1], named in `embed` and for classifiers"
    from self_supervised.transfer.finetune import class_learner
    with pytest.raises(ValueError, match='stats=.* are those of pictures in 0..255.*Divide mean and std by 255'): get_byol_aug_pipelines(8, stats=stats)
    get_byol_aug_pipelines(8, stats=stats, clip=False, jitter=False, solarize=False)
    x,e = X.repeat(1,3,1,1),model(3).encoder
    for f in (lambda: embed(e, x, stats=stats), lambda: class_learner(tensor_dls(x, Y, bs=BS), e, 4, stats=stats)):
        warn_once.cache_clear()
        with pytest.warns(UserWarning, match='those of pictures in 0..255'): f()
    warn_once.cache_clear()
    assert not quiet_of('those of pictures', embed, e, x*255, stats=stats)

# Views and targets that were taken for others in silence

def small(**kwargs):
    torch.manual_seed(0)
    return create_encoder('tiny_resnet', pretrained=False, n_in=1, widths=(8,16), **kwargs)

def told(learn, text, lr=None):
    "Warnings of a fit with `text`"
    with warnings.catch_warnings(record=True) as w, learn.no_bar(), learn.no_logging():
        warnings.simplefilter('always')
        learn.fit(1, lr)
    return [str(o.message) for o in w if text in str(o.message)]

def learner_of(model, augs=None, x=X[:32], **kwargs):
    return byol_learner(tensor_dls(x, bs=16, seed=0, device='cpu'), model, augs or get_byol_aug_pipelines(8, **digit_views), **kwargs)

def test_views_that_are_the_same_are_named():
    "Of a pipeline that leaves its random transforms out, and of a loader that brings one picture twice"
    from fasttransform import Pipeline
    same = [Pipeline([PerImage(BicubicCrop(8))]) for _ in range(2)]
    assert told(learner_of(create_byol_model(small(), 16, 8), same), 'are the same, so there is nothing to learn')
    twice = DataLoaders([(x,x.clone()) for x in X[:32].split(16)])
    assert told(byol_learner(twice, create_byol_model(small(), 16, 8), None), 'are the same, so there is nothing to learn')
    right = [Pipeline([PerImage(BicubicCrop(8))], split_idx=0) for _ in range(2)]
    assert not told(learner_of(create_byol_model(small(), 16, 8), right), 'are the same')

def test_transforms_of_torchvision_that_draw_once_per_batch_are_named():
    "All pictures of a batch got one crop; a function that draws for each picture needs no warning"
    from torchvision.transforms import v2
    crop = v2.RandomResizedCrop(8, scale=(.3,1.))
    for i,op in enumerate([crop, v2.Compose([v2.Identity(), crop]), nn.Sequential(crop)]):
        warn_once.cache_clear()
        with pytest.warns(UserWarning, match='draws once per batch'): BYOL([op,op])
    warn_once.cache_clear()
    with pytest.warns(UserWarning, match='draws once per batch'): get_byol_aug_pipelines(8, xtra_tfms=v2.RandomErasing(1.))
    warn_once.cache_clear()
    each = lambda x: torch.stack([crop(o) for o in x])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        BYOL([each,each])
        get_byol_aug_pipelines(8, xtra_tfms=v2.Normalize([.5],[.5]))

class Shifts(nn.Module):
    "Changes its input in place"
    def __init__(self):
        super().__init__()
        self.net = small()
    def forward(self, x): return self.net(x.sub_(.5).mul_(2))

def test_an_encoder_that_changes_its_input_is_refused():
    "The target got another view than the online network, or the first step ended in an error of autograd"
    augs = get_byol_aug_pipelines(8, **digit_views | dict(stats=(.3,.35)))
    for a in (augs,None):
        dls = tensor_dls(X[:32], bs=16, device='cpu') if a else DataLoaders([(x-.3,x.flip(-1)-.3) for x in X[:32].split(16)])
        with pytest.raises(ValueError, match='changes its input in place'): told(byol_learner(dls, create_byol_model(Shifts(), 16, 8, n_in=1, size=8), a), '')

def equal(a, b): return all(torch.equal(p, q) for p,q in zip(a.parameters(), b.parameters()))

def late(kind, model, tmp_path):
    "Give the encoder of a model other weights"
    from self_supervised.transfer.encoder_file import load_encoder, save_encoder
    from self_supervised.transfer.weights import load_weights
    other = small()
    for p in other.parameters(): nn.init.normal_(p, .1, .1)
    if kind=='state': model.encoder.load_state_dict(other.state_dict())
    else: dict(file=load_encoder, weights=load_weights)[kind](save_encoder(other, tmp_path/'e'), encoder=model.encoder)

@pytest.mark.parametrize('kind', ['state','file','weights'])
@pytest.mark.parametrize('find', [False,True])
def test_weights_that_come_after_the_model_reach_the_target(kind, find, tmp_path):
    "The online network began with pretrained weights, and its target with random ones"
    model = create_byol_model(small(), 16, 8)
    late(kind, model, tmp_path)
    assert not equal(model.online, model.target)
    learn = learner_of(model, path=tmp_path, opt_func=partial(SGD))
    was = deepcopy(model.state_dict())
    with learn.no_bar(), learn.no_logging(): learn.validate(dl=learn.dls.train)
    assert all(torch.equal(was[k], v) for k,v in model.state_dict().items()), 'validate changes nothing'
    if find:
        with learn.no_bar(): learn.lr_find(num_it=3, show_plot=False, suggest_funcs=None)
    told(learn, '', 0.)
    assert equal(model.online, model.target)

def test_a_target_of_its_own_stays(tmp_path):
    "One that has moved, was loaded, or was set"
    model = create_byol_model(small(), 16, 8)
    learn = learner_of(model, m=.5, opt_func=partial(SGD), path=tmp_path)
    told(learn, '', .1)
    learn.save('m')
    was = deepcopy(model.target.state_dict())
    assert not equal(model.online, model.target)
    again = create_byol_model(small(), 16, 8)
    for net in (model, deepcopy(model), again):
        learn = learner_of(net, m=1., opt_func=partial(SGD), path=tmp_path)
        if net is again: learn.load('m', with_opt=False)
        told(learn, '', 0.)
        assert all(torch.equal(was[k], v) for k,v in net.target.named_parameters())
    mine = create_byol_model(small(), 16, 8)
    for p in mine.target.parameters(): nn.init.normal_(p)
    was = deepcopy(mine.target.state_dict())
    told(learner_of(mine, m=1., opt_func=partial(SGD)), '', 0.)
    assert all(torch.equal(was[k], v) for k,v in mine.target.named_parameters())

def test_a_target_that_never_moves_stays_over_two_fits():
    model = create_byol_model(small(), 16, 8)
    was = deepcopy(dict(model.target.named_parameters()))
    learn = learner_of(model, m=1., opt_func=partial(SGD))
    for _ in range(2): told(learn, '', .1)
    assert all(torch.equal(was[k], v) for k,v in model.target.named_parameters()) and not equal(model.online, model.target)

@pytest.mark.parametrize('change', [to_group_norm, lambda e: setattr(e[0][0], 'stride', (2,2)), lambda e: setattr(e, '3', PoolFlat('max'))])
def test_an_online_network_that_was_changed_is_named(change):
    "Its weights have the shapes of the target's, which is another network"
    model = create_byol_model(small(pool_type='avg'), 16, 8)
    change(model.encoder)
    text = 'the online network has other layers than its target'
    assert told(learner_of(model), text)
    model.reset_target()
    assert not told(learner_of(model), text)
    compiled = create_byol_model(small(), 16, 8)
    compiled.online.encoder = torch.compile(compiled.encoder, backend='eager')
    assert not told(learner_of(compiled), text)

def test_projections_of_simsiam_are_those_of_its_weights():
    "Not those of a pass before the step, or in another mode"
    v,w = X[:8].clone(),X[8:16].clone()
    for change in ('weights','mode'):
        model = create_simsiam_model(small(), 16, 8, 4).train()
        model(v, w)
        if change=='mode': model.eval()
        else:
            with torch.no_grad(): [p.mul_(1.1) for p in model.parameters()]
        with torch.no_grad(): want = deepcopy(model).online(v)
        torch.testing.assert_close(model.project(v, w)[0], want)

def test_features_that_are_there_are_used():
    "As CUDA graphs do"
    model = create_byol_model(small(), 16, 8).eval()
    v,w = X[:8],X[8:16]
    for a,b in zip(model(v, w), model(v, w, feats=(model.encoder(v),model.encoder(w)))): assert torch.equal(a, b)

@pytest.mark.parametrize('keys,named', [(('scan','dose'),True), (('first','second'),True), (('view1','view2'),False), (('image1','image2'),False), (('a','b'),False)])
def test_views_of_unknown_names_are_named(keys, named):
    "Two tensors of one shape trained as two views, whatever they were"
    warn_once.cache_clear()
    batches = [dict(zip(keys, (x,x.flip(-1)))) for x in X[:32].split(16)]
    assert bool(told(byol_learner(DataLoaders(batches), create_byol_model(small(), 16, 8), None), 'are taken as views of the same pictures'))==named

# Another fit, other data

def test_other_data_is_looked_at_anew():
    "After a fit on good pictures, those of another range were trained on without a word; the same are not looked at again"
    learn = learner(dls(x=X), augs=get_byol_aug_pipelines(SIDE, jitter=False, bw=False, blur=False, solarize=False, stats=None))
    quiet(learn.fit, 1)
    learn.dls = dls(x=(X*2-1)*3)
    with pytest.warns(UserWarning, match=r'span \[-') as w: learn.fit(1), learn.fit(1)
    assert sum('span' in str(o.message) for o in w)==1
    learn.byol.augs = [lambda x: x[:,:,:4]]*2
    learn.dls = dls(x=X.expand(-1,2,-1,-1))
    with pytest.raises(ValueError, match='takes 1 channels'): quiet(learn.fit, 1)

@pytest.mark.parametrize('cb,words', [
    (SaveModelCallback, "SaveModelCallback(monitor='valid_loss')"), (EarlyStoppingCallback, "EarlyStoppingCallback(monitor='valid_loss')"),
    (ReduceLROnPlateau, 'watches held-out data'), (ShowGraphCallback, 'ShowGraphCallback draws'), (partial(SaveModelCallback, 'mine'), "monitor='mine'"),
    (lambda: Checkpoint('ck', monitor='valid_loss'), "monitor='valid_loss' watches")])
def test_what_watches_a_validation_is_refused_before_the_first_batch_where_there_is_none(cb, words, tmp_path, monkeypatch):
    "It failed on None after the first epoch"
    monkeypatch.chdir(tmp_path)
    def mine(preds, *targs): return preds[0].mean()
    learn = learner(metrics=mine, path=tmp_path)
    learn.add_cb(ProgressCallback())
    with pytest.raises(ValueError) as e, learn.no_logging(): quiet(learn.fit, 1, cbs=cb())
    assert words in str(e.value) and learn.train_iter==0
    with learn.no_logging(): quiet(learn.fit, 1, cbs=[SaveModelCallback('spread'), EarlyStoppingCallback('train_loss'), SaveModelCallback(every_epoch=True, fname='e')])
    held = learner(dls(n_valid=8), path=tmp_path)
    quiet(held.fit, 1, cbs=[SaveModelCallback(), Checkpoint(tmp_path/'ck', monitor='valid_loss')])
    assert (tmp_path/'ck'/'best.pt').exists()

@pytest.mark.parametrize('monitor', ['accuraccy', 'time', 'epoch'])
@pytest.mark.parametrize('kind', [SaveModelCallback, EarlyStoppingCallback, ReduceLROnPlateau, partial(Checkpoint, 'ck')])
def test_an_unknown_monitor_is_an_error_that_lists_the_known(kind, monitor, tmp_path, monkeypatch):
    "It was fastai's 'tuple index out of range'; and 'time', a column without a value, failed after the first epoch"
    monkeypatch.chdir(tmp_path)
    learn = learner(dls(n_valid=8), path=tmp_path, cbs=Probe(*[(X[:16],Y[:16])]*2))
    with pytest.raises(ValueError, match=f"monitor='{monitor}'.* must be one of train_loss, valid_loss, .*spread.*knn_accuracy") as e: quiet(learn.fit, 2, 1e-3, cbs=kind(monitor=monitor))
    assert "'time'" not in str(e.value).partition('must be')[2] and ' time' not in str(e.value).partition('must be')[2] and learn.train_iter==0
    quiet(learn.fit, 1, 1e-3, cbs=kind(monitor='knn_accuracy'))

def test_a_column_that_a_callback_of_yours_adds_can_be_watched(tmp_path):
    class Mine(Callback):
        def before_fit(self): self.learn.metrics = [*self.learn.metrics, ValueMetric(lambda: 1., 'mine')]
    quiet(learner(path=tmp_path).fit, 1, 1e-3, cbs=[Mine(), EarlyStoppingCallback('mine')])
    own = learner(path=tmp_path); own.recorder.train_metrics = True
    with pytest.raises(ValueError, match="must be one of train_loss, train_spread, .*valid_loss, valid_spread"): quiet(own.fit, 1, 1e-3, cbs=EarlyStoppingCallback('spread'))
    quiet(own.fit, 1, 1e-3, cbs=EarlyStoppingCallback('train_loss'))

@pytest.mark.parametrize('data', ['tensors', 'web'])
def test_gradients_that_never_make_a_step_are_refused(data):
    "`GradientAccumulation` beyond the pictures of a fit moved nothing, without a word; beyond an epoch it is named"
    def fit(n_acc, epochs, call=None):
        learn = learner(DataLoaders(LOADERS['web'](), device='cpu') if data=='web' else dls(), cbs=GradientAccumulation(n_acc))
        told = quiet_of('pictures of an epoch', call or learn.fit, *([learn] if call else []), epochs, 1e-3)
        return learn,told
    n = len(fit(1, 1)[0].dls.train)*BS
    assert fit(n, 1)[1]==[] and len(fit(n, 2)[0].byol.momenta)==2
    learn,told = fit(2*n, 4)
    assert len(learn.byol.momenta)==2 and len(told)==1 and f'GradientAccumulation(n_acc={2*n}) ' in told[0]
    for call in (None, lambda learn, epochs, lr: learn.fit_byol(epochs, 'adamw', lr=lr), lambda learn, *_: learn.lr_find(num_it=4, show_plot=False, suggest_funcs=())):
        with pytest.raises(ValueError, match=rf'GradientAccumulation\(n_acc={9*n}\) is more than the [0-9]+ pictures of this fit'): fit(9*n, 3, call)

@pytest.mark.parametrize('cbs', [list, lambda: [ShortEpochCallback()], lambda: [GradientAccumulation(3*BS)]])
@pytest.mark.parametrize('how', ['fit', 'fit_byol', 'lr_find'])
def test_a_learner_can_be_copied_after_a_fit(how, cbs, tmp_path):
    "The last loss kept its graph, which torch does not copy; the copy trains as the original does, and by itself"
    learn = learner(path=tmp_path, cbs=cbs())
    quiet(*dict(fit=(learn.fit, 1, 1e-3), fit_byol=(learn.fit_byol, 1, 'adamw'), lr_find=(partial(learn.lr_find, num_it=4, show_plot=False, suggest_funcs=()),))[how])
    again,was = deepcopy(learn),weights(learn)
    assert again.byol.learn is again and torch.equal(weights(again), was)
    ends = []
    for o in (again,learn):
        seed_everything(3, o.dls)
        assert torch.equal(weights(learn), was)
        quiet(o.fit, 1, 1e-2)
        ends.append(weights(o))
    assert torch.equal(*ends) and not torch.equal(ends[0], was)

class Sampled(FastLoader):
    def sample(self): return iter(random.sample(range(N), N))

SET = TensorDataset(X)
ROWS = [(x,) for x in X]
UNSHUFFLED = {'torch': lambda: DataLoader(SET, BS), 'fastai': lambda: FastLoader(ROWS, bs=BS), 'new': lambda: dls().train.new(shuffle=False),
              'sampler': lambda: DataLoader(SET, BS, sampler=torch.utils.data.SequentialSampler(SET)),
              'batches': lambda: DataLoader(SET, batch_sampler=torch.utils.data.BatchSampler(torch.utils.data.SequentialSampler(SET), BS, False)),
              'items': lambda: DataLoaders.from_dsets(ROWS, bs=BS, shuffle=False, device='cpu').train}
OTHERS = LOADERS | {'torch': lambda: DataLoader(SET, BS, shuffle=True), 'fastai': lambda: FastLoader(ROWS, bs=BS, shuffle=True),
                    'sampler': lambda: DataLoader(SET, BS, sampler=torch.utils.data.SubsetRandomSampler(range(N))),
                    'own order': lambda: FastLoader(ROWS, bs=BS, get_idxs=lambda: torch.randperm(N).tolist()), 'own sample': lambda: Sampled(ROWS, bs=BS),
                    'part': lambda: PartialDL(ROWS, bs=BS, partial_n=2*BS, shuffle=False), 'one batch': lambda: DataLoader(SET, N)}

@pytest.mark.parametrize('kind', UNSHUFFLED)
def test_a_training_loader_that_does_not_shuffle_is_named(kind):
    "Each epoch had the same batches, of one class each in sorted folders, without a word"
    learn = learner(DataLoaders(UNSHUFFLED[kind](), device='cpu'))
    found = quiet_of('does not shuffle', learn.fit, 2, 1e-3)
    assert len(found)==1 and 'Pass shuffle=True' in found[0]
    assert not quiet_of('does not shuffle', learn.lr_find, num_it=3, show_plot=False, suggest_funcs=()) and not quiet_of('does not shuffle', learn.validate, dl=learn.dls.train)

@pytest.mark.parametrize('kind', OTHERS)
def test_streams_and_loaders_with_an_order_of_their_own_are_left_in_peace(kind):
    assert not quiet_of('does not shuffle', learner(DataLoaders(OTHERS[kind](), device='cpu')).fit_byol, 1, 'adamw')

# What the optimizer holds

def test_weights_that_the_optimizer_does_not_hold_are_named():
    "They were never trained: unfrozen by hand after the first fit, by a callback, or in a model that was changed"
    learn = learner(); e = learn.model.encoder.requires_grad_(False)
    with pytest.warns(UserWarning, match=r'encoder.requires_grad_\(True\), and then learn.create_opt\(\)'): learn.fit(1)
    e.requires_grad_(True)
    with pytest.warns(UserWarning, match='does not hold .* weights that are to train'): learn.fit(1)
    learn.create_opt(); was = weights_of(e)
    assert not quiet_of('does not hold', learn.fit, 1, 1e-2) and not torch.equal(weights_of(e), was)
    class Unfreeze(Callback):
        def before_epoch(self):
            if self.epoch==1: e.requires_grad_(True)
    e.requires_grad_(False); learn.create_opt()
    assert len(quiet_of('does not hold', learn.fit, 3, cbs=Unfreeze()))==1

def weights_of(net): return torch.cat([p.detach().flatten().clone() for p in net.parameters()])

def test_an_optimizer_of_another_model_is_refused():
    learn = learner(); quiet(learn.fit, 1)
    learn.model = model()
    with pytest.raises(RuntimeError, match=r'holds no weight of learn.model.*learn.create_opt\(\)'): quiet(learn.fit, 1)
    was = weights_of(learn.model); quiet(learn.fit_byol, 1); assert not torch.equal(weights_of(learn.model), was)

def test_what_a_splitter_leaves_out_is_a_choice():
    "As are groups that are frozen, and a target that was unfrozen by mistake"
    heads = learner(); heads.splitter = lambda m: L(list(m.predictor.parameters()), list(m.projector.parameters()))
    assert not quiet_of('does not hold', heads.fit, 1)
    learn = learner(); learn.splitter = lambda m: L(list(m.online.parameters()), list(m.predictor.parameters()))
    learn.freeze()
    assert quiet_of(r'learn.unfreeze()', learn.fit, 1) and not quiet_of('does not hold', learn.fit, 1)
    learn.unfreeze(); learn.model.requires_grad_(True)
    assert not quiet_of('does not hold', learn.fit, 1)

# Callbacks that choose an epoch, or a rate

@pytest.mark.parametrize('make,words', [
    (SaveModelCallback, "SaveModelCallback(monitor='valid_loss')"), (partial(EarlyStoppingCallback, 'train_loss'), "EarlyStoppingCallback(monitor='train_loss')"),
    (partial(SaveModelCallback, 'mean_cosine'), "monitor='mean_cosine'"), (partial(EarlyStoppingCallback, 'spread', comp=np.less), "monitor='spread'"),
    (lambda: Checkpoint('ck', monitor='valid_loss'), "Checkpoint(monitor='valid_loss')")])
def test_what_takes_the_collapsed_epoch_for_the_best_is_named(make, words, tmp_path, monkeypatch):
    "fastai's defaults: the epoch of the lowest loss was loaded at the end"
    monkeypatch.chdir(tmp_path)
    found = quiet_of('takes the most collapsed epoch for the best', learner(dls(BS), path=tmp_path).fit, 1, cbs=make())
    assert len(found)==1 and words in found[0] and 'Probe' in found[0]

def test_what_chooses_well_is_left_in_peace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cbs = [SaveModelCallback('spread'), EarlyStoppingCallback('rank', patience=9), SaveModelCallback(every_epoch=True, fname='e'), SaveModelCallback(at_end=True, fname='a'),
           EarlyStoppingCallback('mean_cosine', comp=np.less, patience=9), Checkpoint('ck', monitor='mean_cosine')]
    learn = learner(dls(BS), path=tmp_path)
    assert not quiet_of('collapsed epoch', learn.fit, 1, cbs=cbs)
    learn.add_cb(SaveModelCallback()); assert not quiet_of('collapsed epoch', learn.lr_find, num_it=6, show_plot=False)

def test_the_best_mean_cosine_is_the_smallest():
    from self_supervised.callback.checkpoint import BestValue
    assert BestValue('mean_cosine', None).comp(.1, .9) and BestValue('spread', None).comp(.9, .1) and BestValue('valid_loss', None).comp(.1, .9)

@pytest.mark.parametrize('recipe', ['lars','sgd','adamw'])
def test_a_rate_that_a_callback_lowers_is_lower(recipe, capsys):
    "The rate was set in a copy: `ReduceLROnPlateau` did nothing, without a word"
    learn = learner(opt_func=byol_recipe(10, 8, recipe).opt_func)
    quiet(learn.fit, 4, .1, cbs=ReduceLROnPlateau('spread', comp=lambda a,b: False, patience=2))
    assert learn.opt.hypers[-1]['lr']==pytest.approx(.001) and learn.opt.opt.param_groups[0]['lr']==pytest.approx(.001)
    assert 'reducing lr' in capsys.readouterr().out
    h = learn.opt.hypers[0]; h['mom'] = .5
    assert learn.opt.hypers[0]['mom']==.5 and set(h)==set(learn.opt.hypers[0])
    assert dict(deepcopy(h))==dict(h)

def test_a_rate_that_a_schedule_sets_again_is_named():
    cb = partial(ReduceLROnPlateau, 'spread')
    for f in (learner().fit_byol, learner().fit_one_cycle): assert quiet_of('ReduceLROnPlateau has no effect', f, 1, cbs=cb())
    assert not quiet_of('no effect', learner().fit, 1, cbs=cb())

@pytest.mark.parametrize('stats', [None, (.5,.5), ([.5]*3,[.2]*3)], ids=str)
@pytest.mark.parametrize('make', [lambda: ClipEncoder(create_encoder('tiny_resnet', pretrained=False)), lambda: nn.Sequential(nn.Conv3d(3,8,3), PoolFlat())])
def test_frames_before_channels_are_named(make, stats):
    "(bs,t,c,h,w), as torchvision and Hugging Face read clips: the advice was an encoder of 16 channels"
    x = torch.rand(8,16,3,12,12)
    with pytest.raises(ValueError, match=r'3 channels behind its frames.*\(bs,c,t,h,w\).*x\.transpose\(1,2\)'):
        quiet(learner(tensor_dls(x, bs=4), get_byol_aug_pipelines(8, stats=stats), create_byol_model(make(), 16, 8)).fit, 1)
    with pytest.raises(ValueError, match=r'x\.transpose\(1, 2\)'): embed(make(), x)
    quiet(learner(tensor_dls(x.transpose(1,2), bs=4), get_byol_aug_pipelines(8, stats=stats), create_byol_model(make(), 16, 8)).fit, 1)
    assert len(embed(make(), x.transpose(1,2))[0])==8

def test_views_of_numpy_are_float32():
    "They are float64, and the advice was about maps and clips"
    def by_numpy(x): return torch.from_numpy(x.numpy().astype('float64')*.9+.01*np.random.rand(*x.shape))
    learn = learner(augs=[by_numpy]*2); quiet(learn.fit, 1)
    assert {v.dtype for v in learn.byol.views(X[:4])}=={torch.float32} and learn.recorder.losses

# Columns, rates and gradients, by habits of fastai's users

@pytest.mark.parametrize('make', [partial(SaveModelCallback, 'spread'), partial(EarlyStoppingCallback, 'rank'), partial(ReduceLROnPlateau, 'knn_accuracy')])
def test_what_watches_a_column_of_ours_lets_lr_find_get_preds_and_minutes_be(make, tmp_path):
    "The column was missing there, and fastai ended with `tuple index out of range`"
    learn = learner(dls(BS), path=tmp_path, cbs=[make(), Probe((X[:20],Y[:20]))])
    quiet(learn.lr_find, num_it=3, show_plot=False, suggest_funcs=None); assert not list(learn.metrics)
    learn.get_preds(); assert not list(learn.metrics) and not learn.health.rows and not learn.probe.seconds
    quiet(learn.fit_byol, minutes=.005); assert learn.health.rows and not list(learn.metrics)

@pytest.mark.parametrize('opt_func', [Adam, SGD, LARS])
def test_an_interrupted_step_is_no_part_of_the_next_fit(opt_func):
    "Its gradients were added to the next step, and moved weights that were frozen since"
    class Stop(Callback):
        def after_backward(self):
            if self.train_iter: raise KeyboardInterrupt
    learn = learner(opt_func=opt_func, wd=.1)
    with pytest.raises(KeyboardInterrupt): quiet(learn.fit, 1, .1, cbs=Stop())
    assert learn.model.encoder(X) is not None and any(p.grad is not None for p in learn.model.encoder.parameters())
    was = weights_of(learn.model.encoder.requires_grad_(False))
    quiet(learn.fit, 1, .1); assert torch.equal(weights_of(learn.model.encoder), was)

@pytest.mark.parametrize('fit', [lambda learn: learn.fit(5, 1e-3), lambda learn: learn.fit_byol(5, 'adamw', lr=1e-3, cbs=GradientAccumulation(2*BS))])
def test_the_encoder_rests_and_then_learns_with_and_without_a_schedule(fit):
    "A fit without a schedule left its rate at 0 to the end"
    moved = []
    class Watch(Callback):
        def before_fit(self): self.was = weights_of(self.learn.model.encoder)
        def after_epoch(self):
            now = weights_of(self.learn.model.encoder)
            moved.append(not torch.equal(now, self.was))
            self.was = now
    learn = learner(splitter=encoder_splitter, cbs=[HeadsFirst(), Watch()])
    quiet(fit, learn); assert moved==[False, False, True, True, True] and len({h['lr'] for h in learn.opt.hypers})==1

class ReadsBeside(Callback):
    "Draw views and embed pictures after the second batch of an epoch"
    order = 500
    def __init__(self, on): self.on,self.seen = on,[]
    def after_batch(self):
        if not self.training: return
        self.seen.append((self.epoch, self.iter))
        if not self.on or self.iter!=1: return
        self.learn.byol.show(1)
        plt.close('all')
        embed(self.model.encoder, self.dls.train)

def test_an_epoch_of_a_torch_loader_that_keeps_its_workers_is_not_begun_anew_by_what_reads_beside_it():
    class Kept(DataLoader): "One of your own is read as it is"
    def run(on):
        torch.manual_seed(0)
        dl = Kept(TensorDataset(torch.rand(32,3,8,8), torch.arange(32)), batch_size=8, shuffle=True, num_workers=1, persistent_workers=True)
        net = create_encoder('tiny_resnet', pretrained=False, widths=(4,8))
        learn = byol_learner(dl, create_byol_model(net, 16, 8), get_byol_aug_pipelines(8), cbs=ReadsBeside(on))
        with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-3)
        return learn.reads_beside.seen
    assert run(True)==run(False)==[(e,i) for e in range(2) for i in range(4)]

def test_a_model_that_is_filled_from_a_state_dict_does_not_know_its_normalisation():
    def make(): return create_byol_model(create_encoder('tiny_resnet', pretrained=False, widths=(4,8)), 16, 8)
    model = make()
    model.load_state_dict(make().state_dict())
    warn_once.cache_clear()
    with pytest.warns(UserWarning, match='come from a state dict'): embed(model.encoder, torch.rand(4,3,16,16))
    dls = tensor_dls(torch.rand(16,3,16,16), bs=8)
    Learner(dls, model, cbs=BYOL(get_byol_aug_pipelines(16)))
    assert record_of(model.encoder)['stats']   # the learner's views tell

# Batchnorms that rest

class Rested(Callback):
    "Put batchnorms without a gradient in eval mode, as many scripts do"
    def before_train(self):
        for m in self.model.modules():
            if isinstance(m, nn.BatchNorm2d) and not m.weight.requires_grad: m.eval()

@pytest.mark.parametrize('rests', [BnFreeze, Rested])
def test_batchnorms_of_the_target_rest_where_those_of_the_online_network_do(rests):
    "None of the target's has a gradient: they were all left at their first statistics"
    assert torch.equal(weights(quiet_fit(learner(cbs=rests()))), weights(quiet_fit(learner())))
    learn = learner(cbs=rests())
    first = [next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d)) for net in (learn.model.online, learn.model.target)]
    for p in first[0].parameters(): p.requires_grad_(False)
    quiet_fit(learn)
    assert all(torch.equal(m.running_mean, torch.zeros_like(m.running_mean)) for m in first)
    others = [m for m in learn.model.target.modules() if isinstance(m, nn.BatchNorm2d)][1:]
    assert all(m.running_mean.any() for m in others)

def test_a_target_that_you_put_in_eval_mode_stays_there():
    class Still(Callback):
        def before_train(self): self.model.target.eval()
    learn = learner(cbs=Still())
    quiet_fit(learn)
    assert not any(m.running_mean.any() for m in learn.model.target.modules() if isinstance(m, nn.BatchNorm2d))

def quiet_fit(learn):
    quiet(learn.fit, 2, lr=1e-3)
    return learn

# K3: batches of arrays

def arrays(dl):
    "The batches of a loader in a list, with arrays in place of tensors"
    return [tuple(o.numpy() for o in b) for b in dl]

def trained_on(batches, augs=AUGS):
    seed_everything(1)
    learn = learner(DataLoaders(batches, batches[:1]), augs)
    quiet(learn.fit_byol, 2, 'adamw')
    return weights(learn)

@pytest.mark.parametrize('augs', [AUGS, None])
def test_batches_of_arrays_are_trained_on_as_those_of_tensors(augs, capsys):
    data = TensorDataset(X, X.flip(3), Y) if augs is None else TensorDataset(X, Y)
    tensors = [*DataLoader(data, BS)]
    for kind,b in dict(tuples=arrays(tensors), lists=[list(o) for o in arrays(tensors)], turned=[tuple(np.ascontiguousarray(o[::-1])[::-1] for o in b) for b in arrays(tensors)],
                       dicts=[dict(zip(('image1','image2','label') if augs is None else ('image','label'), o)) for o in arrays(tensors)]).items():
        assert torch.equal(trained_on(b, augs), trained_on(tensors, augs)), kind
    if augs is not None: assert torch.equal(trained_on([o[0].numpy() for o in tensors]), trained_on(tensors))

# K3: data of another range than [0,1]

@pytest.mark.parametrize('at_hand', [True, False])
def test_data_of_another_range_is_drawn_whole(at_hand):
    "Spectrograms (clip=False) were clamped to [0,1]: half of them was black. So were pictures that the loader had normalised"
    x = torch.randn(8, 1, 12, 12)
    whole = get_batch_augs(12, resize_scale=(1,1), resize_ratio=(1,1), flip_p=0., jitter=False, bw=False, blur=False, solarize=False, clip=False, stats=([.5],[2.]))
    learn = byol_learner(tensor_dls(x, bs=8), model(n_in=1), [whole,lambda x: x.flip(-1)])
    if at_hand: learn.byol.pictures,learn.byol.at_hand = x,tuple(aug(x.clone()) for aug in learn.byol.augs)
    axes = learn.byol.show(8)
    a,b,c = (torch.stack([torch.as_tensor(np.asarray(row[i].images[0].get_array())) for row in axes]) for i in range(3))
    assert (a.min(),a.max())==(0,1)
    torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(c, a.flip(-1))
    if at_hand: torch.testing.assert_close(a, ((x-x.min())/(x.max()-x.min()))[:,0])
    learn.byol.augs = [get_batch_augs(12, stats=None, jitter=False, bw=False)]*2   # clip, and lose it
    learn.byol.at_hand = ()
    axes = learn.byol.show(8, seed=0)
    assert np.mean([np.asarray(row[0].images[0].get_array())==0 for row in axes])>.4
