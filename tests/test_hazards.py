"""What breaks self-supervised training in fastai, a test for each row; the number is the row's in the documentation's table.

Each test fails on a straightforward callback: one that copies the model in `before_fit`, keeps the copy to itself, makes its views
after `CastToTensor` and moves the target in every `after_step`."""
import copy, pickle, re, warnings
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np, pytest, torch
from torch import nn
from fastai.vision.all import (Adam, Callback, CancelStepException, CutMix, DataLoaders, Datasets, Dice, F1Score, GradientAccumulation, GradientClip, Interpretation, L,
                               Learner, MixUp, OptimWrapper, SaveModelCallback, TensorImage, ValueMetric, accuracy, error_rate, get_random_states,
                               load_learner, params, set_seed)
from fastai.callback.fp16 import MixedPrecision
from fastcore.nbio import read_nb
from fasttransform import Pipeline, Transform

from self_supervised.core import warn_once
from self_supervised.augmentations import get_batch_augs
from self_supervised.core import seed_everything
from self_supervised.data.demo import digits
from self_supervised.data.arrays import tensor_dls
from self_supervised.ema import constant_momentum, ema_update
from self_supervised.callback.ranks import any_rank
from self_supervised.callback.guard import Guard
from self_supervised.layers import create_encoder, create_mlp_encoder, num_features
from self_supervised.lars import LARS
from self_supervised.recipes import recipes
from self_supervised.fit import byol_splitter
from self_supervised.vision.byol import BYOL, BYOLModel, byol_learner, byol_loss, create_byol_model, get_byol_aug_pipelines

GREY = dict(jitter=False, bw=False, blur=False, solarize=False, stats=None)

class Nudge(Transform):
    "A transform that dispatches on the picture's type, as fastai's do, and cannot be overlooked"
    def encodes(self, x:TensorImage): return x*0+.5

def conv_net(n_in=1):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(n_in,8,3,2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def make(bs=16, n=64, size=8, net=None, augs=None, dls=None, cbs=(), **kwargs):
    "A learner on real digits, small enough for a step to cost milliseconds"
    x,y,_ = digits()
    byol_kw = {k:kwargs.pop(k) for k in ('m',) if k in kwargs}
    dls = dls or tensor_dls(x[:n], y[:n], (torch.arange(n-16), torch.arange(n-16,n)), bs=bs, seed=0)
    torch.manual_seed(1)
    model = kwargs.pop('learn_model', None) or create_byol_model(net or conv_net(), hidden_size=16, projection_size=8)
    augs = augs or get_byol_aug_pipelines(size, flip_p=0., **GREY)
    learn = byol_learner(dls, model, augs, cbs=cbs, **byol_kw, **kwargs)
    learn.remove_cb(learn.progress) if hasattr(learn, 'progress') else None
    learn.logger = lambda *_: None
    return learn

def weights(net): return torch.cat([p.detach().flatten() for p in net.parameters()]).clone()
def state(net): return {k:v.clone() for k,v in net.state_dict().items()}
def same(a, b): return a.keys()==b.keys() and all(torch.equal(a[k],b[k]) for k in a)

# Row 1

def test_01_type_dispatched_transforms_take_effect():
    seen = []
    class Look(Callback):
        order = MixedPrecision.order+1
        def before_batch(self): seen.append((type(self.xb[0]), self.xb[0].unique().tolist()))
    learn = make(augs=[Pipeline([Nudge()], split_idx=0)]*2, cbs=[Look()])
    learn.fit(1)
    assert set(map(str, seen)) == {str((torch.Tensor, [.5]))}

def test_01_normalisation_takes_effect():
    learn = make(augs=get_byol_aug_pipelines(8, flip_p=0., **(GREY|dict(stats=([0.],[.01])))))
    learn.dls.one_batch(); learn._split(learn.dls.one_batch()); learn('before_fit'); learn('before_batch')
    assert all(v.max()>50 for v in learn.xb)

# Rows 2 and 3

def test_02_target_survives_every_entrance():
    learn = make(m=.9)
    learn.fit(1)
    target,online = weights(learn.model.target),weights(learn.model.online)
    assert not torch.equal(target, online)
    learn.validate(); learn.get_preds(); learn.summary(); learn.fit(0)
    assert torch.equal(target, weights(learn.model.target))
    learn.model.reset_target()
    assert torch.equal(online, weights(learn.model.target))

def test_03_target_is_saved_loaded_and_exported(tmp_path):
    learn = make(m=.9, path=tmp_path)
    learn.fit(1)
    was = state(learn.model)
    learn.save('a'); learn.export('a.pkl')
    learn.fit(1)
    assert not same(was, state(learn.model))
    assert same(was, state(learn.load('a').model))
    assert same(was, state(load_learner(tmp_path/'a.pkl').model))

def test_03_rollback_takes_the_target_along(tmp_path):
    kept = {}
    class Keep(Callback):
        order = SaveModelCallback.order+1
        def after_epoch(self): kept[self.epoch] = state(self.model)
    learn = make(m=.9, path=tmp_path)
    learn.fit(3, cbs=[SaveModelCallback(monitor='valid_loss'), Keep()])
    best = min(range(3), key=lambda i: learn.recorder.values[i][1])
    assert same(kept[best], state(learn.model)) and any(k.startswith('target.') for k in kept[best])

# Row 6

NAN,INF = float('nan'),float('inf')

class Bad(Callback):
    "Spoil training batches, by their place in the fit, where `how` says: in 'inputs', 'loss' or 'gradients'"
    order,run_valid = -5,False
    def __init__(self, places, how='inputs', value=NAN): self.places,self.how,self.value = places,how,value
    def hit(self, how): return how==self.how and self.train_iter in self.places
    def before_batch(self):
        if self.hit('inputs'): self.xb[0][3,0,2,2] = self.value
    def before_backward(self):
        if self.hit('loss'): self.learn.loss_grad = self.loss_grad*self.value
    def after_backward(self):
        if self.hit('gradients'): next(self.model.online.parameters()).grad[0] = self.value

class Watch(Callback):
    "Which training batches changed anything at all in the model?"
    order,run_valid = -20,False
    def before_fit(self): self.changed = []
    def before_batch(self): self.was = state(self.model)
    def after_batch(self): self.changed.append(not same(self.was, state(self.model)))

def batches_dls(batches):
    "Loaders of exactly these batches"
    return DataLoaders(torch.utils.data.DataLoader([(b,) for b in batches], batch_size=None), device='cpu')

def quiet(f, *args, **kwargs):
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); return f(*args, **kwargs)

@pytest.mark.parametrize('opt_func', [Adam, LARS, partial(LARS, exclude_adapt=None, wd=.1), recipes[-1].opt_func])
@pytest.mark.parametrize('value', [NAN, INF, -INF])
@pytest.mark.parametrize('how', ['inputs', 'loss', 'gradients'])
def test_06_a_bad_batch_leaves_no_trace(how, value, opt_func, capsys):
    "Online network, target, and batchnorm's statistics of both are what they were, and the others train; LARS is asked for the norms it takes"
    learn = make(cbs=[Bad([0,4], how, value), watch := Watch()], m=.9, opt_func=opt_func, lr=.1)
    quiet(learn.fit, 2)                                            # 3 batches an epoch
    assert watch.changed == [False,True,True,True,False,True]
    assert learn.guard.skipped == [(0,0,how),(1,1,how)]
    assert f'Guard skipped 2 of 6 batches: {how} 2 (epoch 0 batch 0, epoch 1 batch 1)' in capsys.readouterr().out
    assert torch.stack(learn.recorder.losses).isfinite().all() and np.isfinite(learn.recorder.values).all()
    assert len(learn.recorder.losses) == len(learn.byol.momenta) == (6 if how=='gradients' else 4)   # it has a loss and only the step is left out

@pytest.mark.parametrize('where', ['a bias', 'a scale', 'the predictor'])
def test_06_lars_shows_the_norms_of_all_gradients(where):
    "Also of what it leaves as it is, and of every group; and a guard that is gone judges no longer"
    def ps(model): return [p for p in model.online.parameters() if p.ndim==1] if where!='the predictor' else list(model.predictor.parameters())
    class Spoil(Callback):
        def after_backward(self):
            if self.train_iter==1: ps(self.model)[0 if where!='a scale' else 1].grad[-1] = NAN
    learn = make(cbs=[Spoil(), watch := Watch()], opt_func=LARS, splitter=byol_splitter, lr=.1)
    quiet(learn.fit, 1)
    assert watch.changed == [True,False,True] and learn.guard.skipped == [(0,1,'gradients')]
    momenta = [v for s in learn.opt.opt.state.values() for v in s.values()]
    assert momenta and all(v.isfinite().all() for v in momenta)
    assert learn.opt.opt.judge is None
    learn.remove_cb(learn.guard)
    ps(learn.model)[0].grad = torch.full_like(ps(learn.model)[0], NAN); learn.opt.step()
    assert not ps(learn.model)[0].isfinite().all()

def test_06_lars_is_judged_in_a_fit_only():
    "However it ends: 10 in a row, `lr_find` that diverges, a step that somebody else cancels"
    learn = make(cbs=[Bad(range(99), 'gradients')], opt_func=LARS, lr=.1)
    with pytest.raises(ValueError, match='in a row'): quiet(learn.fit, 9)
    assert learn.opt.opt.judge is None
    learn = make(cbs=[Bad(range(20,99), 'gradients')], opt_func=LARS, lr=.1)
    quiet(learn.lr_find, num_it=40, show_plot=False)
    assert learn.opt.opt.judge is None
    class Cancel(Callback):
        order = 99
        def before_step(self): raise CancelStepException()
    learn = make(cbs=[Cancel()], opt_func=LARS, lr=.1)
    quiet(learn.fit, 1)
    assert learn.opt.opt.judge is None

@pytest.mark.parametrize('opt_func', [Adam, LARS])
def test_06_gradients_too_large_to_be_clipped(opt_func):
    "Finite each, their norm is not, and clipping makes all of them 0: no step, rather than one of nothing but momentum and decay"
    class Huge(Callback):
        def after_backward(self):
            if self.train_iter==1:
                for p in self.model.parameters(): p.grad = None if p.grad is None else torch.full_like(p, 1e20)
    learn = make(cbs=[Huge(), GradientClip(), watch := Watch()], opt_func=opt_func, lr=.1)
    quiet(learn.fit, 1)
    assert watch.changed == [True,False,True] and learn.guard.skipped == [(0,1,'gradients')]

@pytest.mark.parametrize('cbs', [lambda: GradientClip(), lambda: GradientAccumulation(16), lambda: MixedPrecision('bf16')])
def test_06_lars_beside_what_else_touches_gradients(cbs):
    learn = make(cbs=[Bad([1], 'gradients'), cbs(), watch := Watch()], opt_func=LARS, lr=.1)
    quiet(learn.fit, 1)
    assert watch.changed == [True,False,True] and learn.guard.skipped == [(0,1,'gradients')]

def test_06_a_step_left_out_is_not_measured():
    "Health measures one step in the middle of an epoch: the next one that was taken"
    learn = make(cbs=[Bad([1], 'gradients')], opt_func=LARS, lr=.1)
    quiet(learn.fit, 1)
    assert learn.health.rows[-1]['update'] > 0

def test_06_views_that_are_not_finite():
    "A pipeline that divides by 0: batchnorm has seen them already, and forgets"
    calls = []
    def aug(x): return x + (NAN if len(calls)==4 else 0)*(calls.append(1) or 1)
    learn = make(augs=[aug, lambda x: x], cbs=[watch := Watch()])
    quiet(learn.fit, 2)
    assert watch.changed.count(False)==1 and [w for *_,w in learn.guard.skipped]==['views']

def test_06_the_others_train_as_if_it_had_not_been_there():
    "A run with a bad batch between two good ones equals the run without"
    x,_,_ = digits()
    def run(n):
        batches = [x[:16],x[16:32],x[32:48]]
        if n==4: batches.insert(1, x[48:64].clone()); batches[1][5] = NAN
        learn = make(dls=batches_dls(batches), m=lambda pct: .5, augs=[lambda o: o, lambda o: o+.1])
        quiet(learn.fit, 1, .1)
        return state(learn.model),torch.stack(learn.recorder.losses)
    (a,la),(b,lb) = run(3),run(4)
    assert same(a, b) and torch.equal(la, lb)

def test_06_it_stops_after_n_in_a_row():
    for how in ('inputs','loss','gradients'):
        learn = make(cbs=[Bad(range(1,99), how), Guard(n=3)])
        with pytest.raises(ValueError) as e: quiet(learn.fit, 5)
        one_line(e, 'epoch 1, batch 0', '3 in a row', how, {'inputs':'isfinite', 'loss':'Lower lr', 'gradients':'GradientClip'}[how])
        assert all(p.isfinite().all() for p in learn.model.state_dict().values())
    learn = make(cbs=[Bad([0,1,3,4,6,7,9,10]), Guard(n=3)])          # never three in a row
    quiet(learn.fit, 5)
    assert len(learn.guard.skipped)==8

def test_06_the_guard_comes_with_the_callback_and_one_of_your_own_replaces_it():
    for cbs,n in (([],10), ([Guard(2)],2)):
        learn = make(cbs=[Bad(range(99)), *cbs])
        with pytest.raises(ValueError, match=f'{n} in a row'): quiet(learn.fit, 99)
    learn = make()
    learn.remove_cb(BYOL)
    assert not any(isinstance(cb, Guard) for cb in learn.cbs)
    learn = make()
    learn.add_cb(BYOL(learn.byol.augs)); learn.remove_cb(learn.byol)
    with pytest.raises(ValueError, match='1 or more'): Guard(0)

def test_06_bad_validation_batches_are_reported_and_keep_their_places(capsys):
    x,y,_ = digits()
    x = x[:64].clone(); x[60] = NAN
    learn = make(dls=tensor_dls(x, splits=(torch.arange(48), torch.arange(48,64)), bs=16))
    learn.fit(1)
    assert '1 batch held out' in capsys.readouterr().out and np.isnan(learn.recorder.values[0][1]) and not learn.guard.skipped
    assert len(learn.get_preds()[0][0]) == 16

# Rows 7 and 18

class Cancel(Callback):
    "Cancel every step but the first, as mixed precision does when gradients overflow"
    order = MixedPrecision.order
    def before_step(self):
        if self.train_iter: raise CancelStepException()

def test_07_cancelled_steps_do_not_move_the_target():
    calls = []
    learn = make(m=lambda pct: calls.append(pct) or .5, cbs=[Cancel()])
    before = weights(learn.model.target)
    learn.fit(1, lr=.1)
    after,online = weights(learn.model.target),weights(learn.model.online)
    assert torch.allclose(after, before.lerp(online, .5), atol=1e-7)     # once, not three times

def test_07_accumulated_batches_move_the_target_once_a_step():
    class Count(Callback):
        order,n,moved = BYOL.order+1,0,0
        def before_batch(self): self.was = weights(self.model.target)
        def after_step(self): self.n += 1
        def after_batch(self): self.moved += not torch.equal(self.was, weights(self.model.target))
    count = Count()
    learn = make(m=.5, bs=8, cbs=[GradientAccumulation(16), count])
    learn.fit(2, lr=.1)
    assert count.n == count.moved == 6    # 48 pictures twice, 16 a step

def test_07_accumulated_batches_read_the_schedule_where_the_step_begins():
    "The k-th of K steps is at k/K, however many batches it is made of (arXiv:2006.07733, section 3.3)"
    used = []
    class Look(Callback):
        order = BYOL.order-1
        def before_step(self): used.append(self.learn.byol.m)
    make(m=lambda pct: pct, bs=8, cbs=[GradientAccumulation(16), Look()]).fit(2, lr=.1)
    assert used == pytest.approx([k/6 for k in range(6)])

@pytest.mark.parametrize('how', ['inputs', 'loss'])
def test_07_a_bad_batch_among_accumulated_ones(how):
    "The gradients of the good ones stay, and the next one fills the step"
    x,_,_ = digits()
    def run(spoil):
        batches = list(x[:32].split(8)); batches.insert(1, x[32:40])
        if not spoil: batches.pop(1)
        learn = make(dls=batches_dls(batches), m=lambda pct: .5, augs=[lambda o: o, lambda o: o+.1], cbs=[GradientAccumulation(16), Bad([1] if spoil else [], how)])
        quiet(learn.fit, 1, .1)
        return state(learn.model),len(learn.guard.skipped)
    (a,na),(b,nb) = run(False),run(True)
    assert same(a, b) and (na,nb)==(0,1)

class ScaledCPU(MixedPrecision):
    "fastai's MixedPrecision with autocast and a loss scaler that work on the CPU"
    def before_fit(self):
        self.autocast,self.scales,self.dtypes,self.steps = torch.autocast('cpu', dtype=torch.bfloat16),[],[],0
        self.learn.scaler = torch.amp.GradScaler('cpu', init_scale=16.)
    def after_pred(self): self.dtypes.append(self.pred[0].dtype); super().after_pred()
    def step(self): super().step(); self.steps += 1
    def after_step(self): super().after_step(); self.last = self.learn.scaler.get_scale()

@pytest.mark.parametrize('how', ['inputs', 'loss', 'gradients'])
def test_18_no_batch_is_cancelled_inside_autocast(how):
    learn = make(cbs=[Bad([0,4], how), amp := ScaledCPU(), watch := Watch()], m=.5)
    target = weights(learn.model.target)
    quiet(learn.fit, 2, .01)
    assert not torch.is_autocast_enabled('cpu') and set(amp.dtypes)=={torch.bfloat16}
    why = 'overflow' if how=='gradients' else how                  # that is the scaler's business, and goes on record
    assert learn.guard.skipped == [(0,0,why),(1,1,why)]
    assert amp.last == (4. if how=='gradients' else 16.)
    assert amp.steps==4 and not torch.equal(target, weights(learn.model.target))

def test_18_a_loss_scale_below_1_ends_the_run():
    learn = make(cbs=[Bad(range(99), 'gradients'), ScaledCPU()])
    with pytest.raises(ValueError) as e: quiet(learn.fit, 9)
    one_line(e, 'overflow', 'to_bf16', 'Lower lr')

# Row 9

@pytest.mark.parametrize('opt_func', [Adam, partial(OptimWrapper, opt=torch.optim.AdamW), LARS])
@pytest.mark.parametrize('fitted', [False, True])
def test_09_lr_find_leaves_no_trace(opt_func, fitted, tmp_path):
    "Weights, target, optimizer, random numbers, order of the loader, momenta: with it and without it a run is the same"
    def run(find):
        learn = make(opt_func=opt_func, path=tmp_path, m=.9); seed_everything(0, learn.dls)
        if fitted: learn.fit(1, 1e-2)
        was = everything(learn)
        if find: learn.lr_find(end_lr=1e-1, num_it=8, show_plot=False)
        assert differing(everything(learn), was) == []
        learn.fit_one_cycle(2, 1e-2)
        return everything(learn) | plain_values(dict(losses=learn.recorder.losses, opt=learn.opt.state_dict()))
    assert differing(run(True), run(False)) == []

def everything(learn):
    "All that a fit could go on from"
    rng = get_random_states()
    return plain_values(dict(model=state(learn.model), momenta=list(learn.byol.momenta), m=[learn.byol.sched(o) for o in (0,.5,1)], order=[dl.rng.getstate() for dl in learn.dls.loaders],
                rng=[rng['random_state'],list(rng['numpy_state'][1]),rng['torch_state']],
                opt=learn.opt.state_dict()['state'] if learn.opt and learn.byol.momenta else None))

def plain_values(o):
    "`o` as numbers: an optimizer changes its tensors in place"
    if isinstance(o, torch.Tensor): return o.tolist()
    if isinstance(o, dict): return {k:plain_values(v) for k,v in o.items()}
    return [plain_values(v) for v in o] if isinstance(o, (list,tuple,L)) else o

def differing(a, b): return sorted(k for k in a|b if a.get(k)!=b.get(k))

def test_09_lr_find_ends_where_training_diverges_and_passes_over_bad_inputs(tmp_path):
    for how,places in (('loss',range(20,99)), ('gradients',range(20,99)), ('inputs',[0,7])):
        learn = make(cbs=[Bad(places, how)], path=tmp_path)
        was = state(learn.model)
        found = quiet(learn.lr_find, num_it=40, show_plot=False)
        assert found.valley>0 and same(was, state(learn.model)) and len(learn.recorder.losses) in (20,21,38)

# Row 14

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_14_target_of_a_half_precision_network_arrives(dtype):
    m = BYOLModel(nn.Linear(4,4).to(dtype), nn.Linear(4,4).to(dtype), nn.Linear(4,4).to(dtype))
    assert {p.dtype for p in m.target.parameters()} == {torch.float32}
    with torch.no_grad():
        for t,o in zip(m.target.parameters(), m.online.parameters()): t.zero_(), o.fill_(1)
    for _ in range(2000): ema_update(m.target, m.online, .996)
    assert all((p>.999).all() for p in m.target.parameters())

def test_14_a_target_made_half_precision_is_refused():
    m = create_byol_model(conv_net(), 8, 4).bfloat16()
    with pytest.raises(TypeError, match='float32'): ema_update(m.target, m.online, .996)

# Row 17

class CPUAutocast(Callback):
    "fastai's MixedPrecision, for the CPU"
    order = MixedPrecision.order
    def before_batch(self):
        self.autocast = torch.autocast('cpu', dtype=torch.bfloat16); self.autocast.__enter__()
    def after_pred(self): self.dtypes = [o.dtype for o in (*self.pred, *self.yb)]
    def after_loss(self): self.autocast.__exit__(None, None, None)

def test_17_target_runs_inside_autocast_and_the_loss_in_float32():
    views = []
    learn = make(cbs=[amp := CPUAutocast()])
    learn.model.online.register_forward_pre_hook(lambda m,x: views.append(x[0].dtype))
    learn.fit(1)
    assert set(amp.dtypes) == {torch.bfloat16}              # predictions and targets both
    assert set(views) == {torch.float32}                    # views as they were drawn
    q = [torch.randn(4,8).bfloat16() for _ in range(2)]
    assert byol_loss(q, *q).dtype == torch.float32
    assert {p.dtype for p in learn.model.parameters()} == {torch.float32}

# Row 19

def test_19_half_precision_on_the_cpu_is_said_once():
    warn_once.cache_clear()
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        for _ in range(2): make().to_fp16().fit(1)
    said = [str(o.message) for o in w if 'to_fp16() is for CUDA' in str(o.message)]
    assert len(said)==1 and 'cpu' in said[0] and 'float32' in said[0] and 'to_bf16()' in said[0]

class Passes(Callback):
    "Note the precision in which the networks answer"
    def before_fit(self):
        self.seen = dict(online=[], target=[])
        self.hooks = [getattr(self.model, k).register_forward_hook(lambda m,x,z,k=k: self.seen[k].append((x[0].dtype, z.dtype))) for k in self.seen]
    def after_fit(self):
        for h in self.hooks: h.remove()

@pytest.mark.parametrize('how', ['to_bf16', 'to_channelslast'])
def test_19_bfloat16_is_what_it_says_on_the_cpu_too(how):
    learn = make(cbs=[look := Passes()], m=.5)
    start,target = weights(learn.model),weights(learn.model.target)
    getattr(learn, how)(**({} if how=='to_bf16' else dict(amp_mode='bf16')))
    with warnings.catch_warnings(record=True) as w: learn.fit(1, .01)
    assert not any('Disabling autocast' in str(o.message) for o in w)                                 # fastai's own is, and ours is not
    half = torch.float32,torch.bfloat16                                                               # views as they were drawn
    assert set(look.seen['target'])=={half} and look.seen['online'].count(half)==2*4                  # the others: is this what the network expects?
    assert {p.dtype for p in learn.model.parameters()}=={torch.float32} and weights(learn.model).isfinite().all()
    assert not torch.equal(start, weights(learn.model)) and not torch.equal(target, weights(learn.model.target))
    x,_ = learn.dls.one_batch()
    assert learn.model.project(x, x)[0].dtype==torch.float32==learn.model(x).dtype                    # lent for the fit alone
    learn.remove_cb(MixedPrecision)
    learn.fit(1)
    assert set(look.seen['online'])=={(torch.float32, torch.float32)}

def test_19_an_interrupted_fit_leaves_no_autocast_behind():
    class Interrupt(Callback):
        def after_pred(self): raise KeyboardInterrupt
    def trained():
        set_seed(0)
        learn = make(m=.5).to_bf16(); learn.fit(2, .01)
        return state(learn.model)
    before,learn = trained(),make(cbs=[Interrupt()]).to_bf16()
    with pytest.raises(KeyboardInterrupt): learn.fit(1)
    assert not torch.is_autocast_enabled('cpu')
    assert same(before, trained())      # fastai's context is still open: weights that it had cast would not be cast again
    x,_ = learn.dls.one_batch()
    assert learn.model.encoder(x).dtype==torch.float32

def test_19_bfloat16_has_the_loss_and_the_gradient_of_float32_nearly():
    x,_,_ = digits(8)
    torch.manual_seed(0)
    model = create_byol_model(create_encoder('tiny_resnet', n_in=1, pretrained=False), 64, 32)
    views = [aug(x[:256]) for aug in get_byol_aug_pipelines(8, flip_p=0., **GREY)]
    found = []
    for autocast in (nullcontext, partial(torch.autocast, 'cpu', torch.bfloat16)):
        model.precision = autocast
        loss = model.loss(*views)
        model.zero_grad(); loss.backward()
        found.append((loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    (l32,g32),(l16,g16) = found
    assert 0<abs(l32-l16)<.01 and loss.dtype==torch.float32
    assert .95<torch.cosine_similarity(g32, g16, dim=0)<1

# Row 24

def test_24_unfreeze_with_a_splitter_of_everything_leaves_the_target_alone():
    learn = make(splitter=params, m=.5)
    learn.create_opt(); learn.unfreeze()
    learn.fit(1, lr=.1)
    targs = set(learn.model.target.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in targs)
    assert not any(p in targs for ps in learn.opt.param_lists for p in ps)
    assert all(p.requires_grad for p in learn.model.online.parameters())

def test_24_torch_optimizers_too():
    learn = make(splitter=params, opt_func=partial(OptimWrapper, opt=torch.optim.SGD))
    learn.unfreeze(); learn.fit(1)
    targs = set(learn.model.target.parameters())
    assert not any(p in targs for g in learn.opt.opt.param_groups for p in g['params'])

# Row 25

def test_25_the_former_loss_comes_back():
    mine = nn.MSELoss()
    learn = make()
    learn = quiet(Learner, learn.dls, learn.model, loss_func=mine, cbs=BYOL(learn.byol.augs))   # as fastai demands one where labels give none
    learn.remove_cb(learn.progress); learn.logger = lambda *_: None
    assert learn.loss_func is not mine
    learn.fit(1)
    learn.remove_cb(BYOL)
    assert learn.loss_func is mine and not hasattr(learn, 'byol')

def test_25_losses_of_single_items():
    learn = make()
    learn.fit(1)
    preds,targs,losses = learn.get_preds(with_loss=True)
    assert losses.shape == (16,) and learn.loss_func.reduction == 'mean'
    assert torch.allclose(losses, byol_loss(preds, *targs, reduction='none'), atol=1e-5)
    assert Interpretation.from_learner(learn).losses.shape == (16,)

# Row 26

def test_26_one_batch_gives_features_and_predictions_explain_themselves():
    learn = make()
    assert learn.model(torch.rand(3,1,8,8)).shape == (3,8)
    for call in (lambda: learn.show_results(), lambda: learn.get_preds(with_decoded=True)):
        with pytest.raises(TypeError, match='embed'): call()

def test_26_predict_and_tta_explain_themselves():
    x,_,_ = digits()
    dls = Datasets(list(range(32)), [[lambda i: TensorImage(x[i])]], splits=[list(range(16)), list(range(16,32))]).dataloaders(bs=16, device='cpu')
    learn = make(dls=dls)
    for call in (lambda: learn.predict(3), lambda: learn.tta(n=1)):
        with pytest.raises(TypeError, match='embed'), learn.no_bar(): call()

# Row 30

@pytest.mark.parametrize('mix', [MixUp, CutMix])
def test_30_mixed_labels_are_refused_before_the_first_batch(mix):
    for where in ('learner','fit'):
        learn = make(cbs=[mix()] if where=='learner' else [])
        was = state(learn.model)
        with pytest.raises(TypeError) as e: learn.fit(1, cbs=[mix()] if where=='fit' else [])
        one_line(e, mix.__name__, 'labels', 'out')
        assert same(was, state(learn.model))

@pytest.mark.parametrize('metric,name', [(accuracy,'accuracy'), (partial(accuracy, axis=1),'accuracy'), (error_rate,'error_rate'), (F1Score(),'f1_score'), (Dice(),'dice')])
def test_30_metrics_of_labels_are_refused_before_the_first_batch(metric, name):
    learn = make(metrics=metric)
    was = state(learn.model)
    with pytest.raises(TypeError) as e: learn.fit(1)
    one_line(e, f'metrics={name}', 'knn_accuracy', 'metrics=[]')
    assert same(was, state(learn.model))

def test_30_metrics_of_two_views_are_welcome():
    def alignment(preds, *targs): return torch.cosine_similarity(preds[0], targs[0]).mean()
    learn = make(metrics=[alignment, ValueMetric(lambda: 1., 'one')])
    learn.fit(1)
    row = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[0]))
    assert -1 <= row['alignment'] <= 1 and row['one'] == 1

# Row 31

def test_31_data_for_training_only():
    x,_,_ = digits()
    learn = make(dls=DataLoaders(tensor_dls(x[:32], bs=16).train))
    learn.fit(2)
    assert len(learn.recorder.losses) == 4 and len(learn.dls.loaders) == 1

def test_31_data_without_labels():
    x,_,_ = digits()
    learn = make(dls=tensor_dls(x[:48], splits=(torch.arange(32), torch.arange(32,48)), bs=16))
    learn.fit(1)
    assert len(learn.recorder.values[0]) == 2 + len(learn.health.columns)   # the losses, and health

def test_31_unlabelled_fastai_datasets():
    x,_,_ = digits()
    dls = Datasets(list(range(48)), [[lambda i: TensorImage(x[i])]], splits=[list(range(32)), list(range(32,48))]).dataloaders(bs=16, device='cpu')
    learn = make(dls=dls)
    learn.fit(1)
    assert len(learn.recorder.losses) == 2

@pytest.mark.parametrize('labelled', [True, False])
def test_31_plain_torch_loaders(labelled):
    x,y,_ = digits()
    ds = torch.utils.data.TensorDataset(*((x[:48], y[:48]) if labelled else (x[:48],)))
    dl = torch.utils.data.DataLoader(ds, batch_size=16)
    learn = make(dls=DataLoaders(dl, dl))
    learn.fit(1)
    assert len(learn.recorder.losses) == 3
    learn.validate()
    assert learn.byol.show(2) is not None

# Row 32

def test_32_uint8_is_the_same_as_floats():
    x,_,_ = digits()
    def losses(x):
        learn = make(dls=tensor_dls(x, bs=16, seed=0)); seed_everything(0, learn.dls)
        learn.fit(1)
        return learn.recorder.losses
    u8 = (x[:32]*255).round().byte()
    assert torch.allclose(torch.stack(losses(u8)), torch.stack(losses(u8.float()/255)), atol=1e-5)

def test_32_uint8_batches_of_any_loader():
    x,_,_ = digits()
    dl = torch.utils.data.DataLoader(torch.utils.data.TensorDataset((x[:32]*255).byte()), batch_size=16)
    learn = make(dls=DataLoaders(dl, dl))
    learn.fit(1)
    assert torch.stack(learn.recorder.losses).isfinite().all()

def one_line(error, *words):
    "The message is one line (after fastai's own first line that names the callback) and says `words`"
    msg = str(error.value).split('\t')[-1]
    assert '\n' not in msg and all(w in msg for w in words), msg

def test_32_channels_that_do_not_fit():
    learn = make(net=conv_net(3))
    with pytest.raises(ValueError) as e: learn.fit(1)
    one_line(e, '1 channels', '(16, 1, 8, 8)', 'takes 3', 'n_in=1')

def test_32_wrong_dtype_and_shape():
    x,_,_ = digits()
    for bad,err,words in ((x[:32].long(), TypeError, ['int64','uint8']), (x[:32,0], ValueError, ['(16, 8, 8)','(bs,c,h,w)'])):
        dl = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(bad), batch_size=16)
        with pytest.raises(err) as e: make(dls=DataLoaders(dl, dl)).fit(1)
        one_line(e, *words)

def test_32_data_that_does_not_fill_a_batch():
    x,_,_ = digits()
    dl = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x[:10]), batch_size=16, drop_last=True)
    with pytest.raises(ValueError) as e: make(dls=DataLoaders(dl, dl)).fit(1)
    one_line(e, '10 pictures', 'bs=16', 'bs=10')

def test_16_a_batch_of_one():
    x,_,_ = digits()
    dl = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x[:4]), batch_size=1)
    with pytest.raises(ValueError) as e: make(dls=DataLoaders(dl, dl)).fit(1)
    one_line(e, '1 picture', 'bs=2')

def test_32_pipelines_and_model_that_do_not_fit():
    for augs in (get_byol_aug_pipelines(8)[:1], get_batch_augs(8)):
        with pytest.raises(ValueError) as e: BYOL(augs)
        one_line(e, 'aug_pipelines', 'get_byol_aug_pipelines')
    x,y,_ = digits()
    learn = Learner(tensor_dls(x[:32], y[:32], bs=16), conv_net(), cbs=BYOL(get_byol_aug_pipelines(8, **GREY)))
    with pytest.raises(TypeError) as e: learn.fit(1)
    one_line(e, 'Sequential', 'create_byol_model')

# Row 33

def test_33_pictures_outside_0_1_are_noticed_once():
    x,_,_ = digits()
    learn = make(dls=tensor_dls((x[:32]-.5)/.3, bs=16))
    with pytest.warns(UserWarning, match=r'span \[-1.67, 1.67\]') as w: learn.fit(2), learn.fit(1), learn.validate(dl=learn.dls.train)
    assert sum('span' in str(o.message) for o in w) == 1

# Row 34

@pytest.mark.parametrize('c', [1, 2, 4, 13])
def test_34_any_number_of_channels_trains(c):
    x,_,_ = digits()
    learn = make(dls=tensor_dls(x[:32].repeat(1,c,1,1), bs=16), net=conv_net(c), augs=get_byol_aug_pipelines(8, stats=None))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore'); learn.fit(1)
    assert torch.stack(learn.recorder.losses).isfinite().all()

def test_34_stats_must_fit():
    learn = make(augs=get_byol_aug_pipelines(8, jitter=False, bw=False))
    with pytest.raises(ValueError) as e: learn.fit(1)
    one_line(e, 'stats=', 'has 3 entries', 'pictures of 1 channels', 'stats=None')

# Row 35

def test_35_one_seed_repeats_a_run():
    x,_,_ = digits()
    def run(seed):
        set_seed(torch.seed()%2**31)       # whatever came before, the making of the loaders included
        dls = Datasets(list(range(48)), [[lambda i: TensorImage(x[i])]], splits=[list(range(32)), list(range(32,48))]).dataloaders(bs=16, device='cpu')
        seed_everything(seed, dls)
        net = nn.Sequential(nn.Conv2d(1,8,3,2), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        learn = byol_learner(dls, create_byol_model(net, 16, 8), get_byol_aug_pipelines(8, **GREY))
        with learn.no_bar(), learn.no_logging(): learn.fit(2)
        return torch.stack(learn.recorder.losses), weights(learn.model)
    (a,wa),(b,wb),(c,_) = run(7),run(7),run(8)
    assert torch.equal(a, b) and torch.equal(wa, wb) and not torch.equal(a, c)

# Row 36

def test_36_hooks_are_not_copied():
    calls,net = [],conv_net()
    net[0].register_forward_hook(lambda *a: calls.append(1))
    model = create_byol_model(net, 8, 4); calls.clear()
    model.project(torch.rand(2,1,8,8))
    assert not calls
    model(torch.rand(2,1,8,8))
    assert calls

# Row 37

@pytest.mark.parametrize('name,kw', [('resnet18',{}), ('vit_tiny_patch16_224',dict(size=64)), ('convnext_atto',dict(n_in=4))])
def test_37_asking_for_the_width_changes_nothing(name, kw):
    net = create_encoder(name, pretrained=False, **kw).train()
    was,rng = state(net),torch.get_rng_state()
    nf = num_features(net)
    assert same(was, state(net)) and all(m.training for m in net.modules()) and torch.equal(rng, torch.get_rng_state())
    size,c = kw.get('size', 64),kw.get('n_in', 3)
    assert net.eval()(torch.rand(2,c,size,size)).shape == (2,nf)

# The laws

def test_law_target_is_not_trained():
    learn = make(m=.5)
    learn.fit(1, lr=.1)
    targs = set(learn.model.target.parameters())
    assert not any(p in targs for ps in learn.opt.param_lists for p in ps)
    assert not any(p.requires_grad or p.grad is not None for p in targs)

def test_law_target_batchnorms_keep_statistics_of_their_own():
    learn = make(m=1.)
    before = weights(learn.model.target)
    learn.fit(1, lr=.1)
    assert torch.equal(before, weights(learn.model.target))                     # m=1: the weights stand still
    stats = [m.running_mean for m in learn.model.target.modules() if hasattr(m, 'running_mean')]
    assert stats and all(s.abs().sum()>0 for s in stats)                        # and it still saw the data, in train mode

def test_law_each_view_is_a_pass_of_its_own():
    m = create_byol_model(conv_net(), 16, 8)
    v1,v2 = torch.rand(8,1,8,8),torch.rand(8,1,8,8)*3
    q1,q2 = m(v1,v2)
    assert torch.allclose(q1, m(v1,v1)[0], atol=1e-5)           # the other view does not reach it through a batchnorm

def test_law_accumulation_equals_one_large_batch():
    "Up to batchnorm: with none in it, four batches of 8 step as one of 32"
    x,_,_ = digits()
    def step(bs, cbs):
        torch.manual_seed(0)
        model = BYOLModel(nn.Sequential(nn.Conv2d(1,8,8), nn.Flatten(), nn.Tanh()), nn.Linear(8,8), nn.Linear(8,8))
        dls = tensor_dls(x[:32], bs=bs); dls.train.shuffle = False
        learn = Learner(dls, model, cbs=[BYOL([lambda x: x+.1, lambda x: x*.9], m=constant_momentum(.5)), *cbs], opt_func=partial(OptimWrapper, opt=torch.optim.SGD))
        with learn.no_bar(), learn.no_logging(): learn.fit(1, lr=.1)
        return weights(model)
    assert torch.allclose(step(32, []), step(8, [GradientAccumulation(32)]), atol=1e-6)

def test_law_validate_changes_nothing():
    learn = make(m=.9)
    learn.fit(1)
    was,rng = state(learn.model),torch.get_rng_state()
    a,b = learn.validate(),learn.validate()
    assert a == b and same(was, state(learn.model)) and torch.equal(rng, torch.get_rng_state())

def test_law_validation_size_does_not_change_training():
    def losses(n_valid):
        x,_,_ = digits()
        learn = make(dls=tensor_dls(x[:96], splits=(torch.arange(32), torch.arange(32,32+n_valid)), bs=16)); seed_everything(0, learn.dls)
        learn.fit(2)
        return torch.stack(learn.recorder.losses)
    assert torch.equal(losses(16), losses(64))

def test_law_input_is_untouched():
    learn = make(augs=[lambda x: x.mul_(0), lambda x: x.add_(1)])
    learn._split(learn.dls.one_batch()); learn('before_fit')
    x = learn.xb[0].clone()
    learn('before_batch')
    assert torch.equal(learn.byol.pictures, x) and (learn.xb[1]>=1).all() and learn.xb[1].max()>1

def test_law_removing_the_callback_leaves_the_learner_as_found():
    learn = make()
    byol = learn.byol
    learn.remove_cb(byol)
    found = {k for k in vars(learn)}, learn.loss_func, len(learn.cbs)
    learn.add_cb(byol); learn.remove_cb(byol)
    assert ({k for k in vars(learn)}, learn.loss_func, len(learn.cbs)) == found

def test_law_show_does_not_disturb_training():
    def losses(look):
        learn = make(); seed_everything(0, learn.dls)
        class Show(Callback):
            def after_batch(self):
                if look: self.learn.byol.show(2)
        learn.fit(2, cbs=Show())
        return torch.stack(learn.recorder.losses)
    import matplotlib.pyplot as plt
    a,b = losses(True),losses(False)
    plt.close('all')
    assert torch.equal(a, b)

def test_law_a_fit_leaves_no_gradients():
    "fastai's optimizers decay what has a gradient, be it zero and its layer frozen since"
    learn = make(opt_func=partial(Adam, wd=.1))
    learn.fit(1)
    assert all(p.grad is None for p in learn.model.parameters())
    encoder = learn.model.encoder.requires_grad_(False)
    was = weights(encoder)
    x,y,_ = digits()
    Learner(tensor_dls(x[:64], y[:64], bs=16), nn.Sequential(encoder, nn.Linear(8,10)), nn.CrossEntropyLoss(), opt_func=partial(Adam, wd=.1)).fit(1)
    assert torch.equal(weights(encoder), was)

def test_law_show_between_fits_does_not_disturb_training():
    def losses(look):
        learn = make(); seed_everything(0, learn.dls)
        learn.fit(1)
        if look: learn.byol.show(2); learn.byol.show(2, seed=0)
        learn.fit(1)
        return torch.stack(learn.recorder.losses)
    import matplotlib.pyplot as plt
    a,b = losses(True),losses(False)
    plt.close('all')
    assert torch.equal(a, b)

def test_two_callbacks_are_refused():
    learn = make()
    learn.add_cb(BYOL(learn.byol.augs))
    with pytest.raises(ValueError) as e: learn.fit(1)
    one_line(e, '2 BYOL callbacks', 'remove_cb')

def test_11_a_loader_of_bare_tensors_loses_no_picture():
    x,_,_ = digits()
    seen = []
    class Look(Callback):
        order = BYOL.order+1
        def before_batch(self): seen.append(len(self.xb[0]))
    dl = torch.utils.data.DataLoader(x[:32], batch_size=16)
    make(dls=DataLoaders(dl, dl), cbs=[Look()]).fit(1)
    assert seen == [16]*4

def test_an_interrupted_fit_leaves_a_learner_that_works(tmp_path):
    class Stop(Callback):
        def before_validate(self): raise KeyboardInterrupt
    x,_,_ = digits()
    learn = make(dls=DataLoaders(tensor_dls(x[:32], bs=16).train), path=tmp_path)
    with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=Stop())
    learn.fit(1); learn.export('a.pkl')
    assert len(learn.dls.loaders)==1 and learn.byol.validation.states is None

def test_a_seed_after_an_interruption_counts(tmp_path):
    "The random numbers that an interrupted validation had set aside do not come back over it"
    class Stop(Callback):
        def after_batch(self):
            if not self.training: raise KeyboardInterrupt
    def losses(stop):
        learn = make()
        if stop:
            with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=Stop())
        torch.manual_seed(1); learn.model.load_state_dict(create_byol_model(conv_net(), hidden_size=16, projection_size=8).state_dict())
        seed_everything(0, learn.dls)
        learn.fit(1, reset_opt=True)
        return torch.stack(learn.recorder.losses)
    assert torch.equal(losses(True), losses(False))

def test_names_do_not_shadow_fastai():
    import fastai.vision.all as F
    from self_supervised import augmentations, layers
    from self_supervised.vision import byol
    for m in (augmentations, layers, byol): assert not set(m.__all__) & set(vars(F)), m

def test_momentum_can_be_read_and_set_while_training():
    learn = make(m=.9)
    class Set(Callback):
        def before_epoch(self):
            if self.epoch==1: self.learn.byol.m = .25
    learn.fit(2, cbs=Set())
    n = len(learn.recorder.losses)
    assert len(learn.byol.momenta) == n and learn.byol.momenta[0] == pytest.approx(.9) and learn.byol.momenta[-1] == .25
    assert learn.byol.momenta[:n//2] == sorted(learn.byol.momenta[:n//2])

def test_more_than_two_views_are_all_ordered_pairs():
    augs = get_byol_aug_pipelines(8, flip_p=0., **GREY)
    learn = make(augs=[*augs, augs[0]])
    class Pairs(Callback):
        order = MixedPrecision.order
        def after_pred(self): self.n = len(self.pred),len(self.yb)
    learn.fit(1, cbs=[pairs := Pairs()])
    assert pairs.n == (6,6)

def test_callback_and_model_pickle():
    learn = make()
    aug = pickle.loads(pickle.dumps(learn.byol.augs))
    torch.manual_seed(0); a = aug[0](torch.ones(4,1,8,8))
    torch.manual_seed(0); b = learn.byol.augs[0](torch.ones(4,1,8,8))
    assert torch.equal(a, b)
    copy.deepcopy(learn.model)

def test_a_second_input_is_noticed():
    x = digits()[0][:32]
    dls = DataLoaders.from_dsets([(a,b,0) for a,b in zip(x,x)], bs=16, device='cpu')
    dls.n_inp = 2
    with pytest.warns(UserWarning, match='2 inputs and the views are made of the first'): make(dls=dls).fit(1)

def test_views_of_vectors_are_drawn_as_they_are():
    "Rows of a table have any range, and are not clipped to that of pictures"
    x = torch.randn(32,6)*5
    model = create_byol_model(nn.Linear(6,8), 16, 8)
    learn = byol_learner(tensor_dls(x, bs=16), model, [lambda o: o, lambda o: o])
    axes = learn.byol.show(2)
    assert min(abs(ax.lines[0].get_ydata()).max() for ax in axes[:,1:].flat) > 2

def test_rows_and_clips_for_an_encoder_of_pictures_are_not_told_to_change_channels():
    for x in (torch.rand(32,8), torch.rand(32,3,2,8,8)):
        with pytest.raises(ValueError, match='cannot take views') as e: byol_learner(tensor_dls(x, bs=16), create_byol_model(conv_net(), 16, 8), [lambda o: o]*2).fit(1)
        assert 'n_in' not in str(e.value)

def test_pictures_for_an_encoder_of_vectors_are_refused():
    model = create_byol_model(create_mlp_encoder(8, 16, 16), 16, 8, bn=False, norm='layer')
    with pytest.raises(ValueError, match='(bs,d) is needed'.replace('(','.').replace(')','.')): make(augs=[lambda o: o]*2, learn_model=model).fit(1)

# torch.compile: in place, so that names of parameters stay

def test_a_compiled_network_trains_saves_loads_and_is_copied(tmp_path):
    plain,compiled = make(m=.5),make(m=.5)
    for net in (compiled.model.online, compiled.model.predictor, compiled.model.target): net.compile(backend='eager')
    for learn in (plain,compiled): set_seed(0); learn.fit(2, .01)
    assert same(state(plain.model), state(compiled.model))                    # the same names, and the same numbers
    compiled.save(tmp_path/'model'); compiled.export(tmp_path/'export.pkl')
    again = make(); again.load(tmp_path/'model', with_opt=False)
    assert same(state(again.model), state(load_learner(tmp_path/'export.pkl').model))
    copied = copy.deepcopy(compiled.model).eval(); again.model.eval()
    x,_ = compiled.dls.one_batch()
    assert torch.equal(copied.project(x, x)[0], again.model.project(x, x)[0])

# The documentation's table

def test_the_table_is_complete_and_what_it_names_exists():
    "37 rows that say what happens, and 37 with the tests or pages that show it"
    here = Path(__file__).parent
    nbs = here.parent/'nbs'
    text = '\n'.join(c.source for c in read_nb(nbs/'hazards.ipynb').cells if c.cell_type=='markdown')
    cells = [re.split(r'\s*\|\s*', l.strip('| ')) for l in text.splitlines() if re.match(r'\| \d', l)]
    told,shown = ({int(r[0]): ' '.join(r[1:]) for r in cells if len(r)==n} for n in (3,2))
    assert list(shown)==sorted(told)==list(range(1,38)) and len(cells)==2*37
    tests = '\n'.join(f.read_text(encoding='utf-8') for f in here.glob('test_*.py'))
    for n,row in shown.items():
        names,links = re.findall(r'`(test_\w+)`', row),re.findall(r'\]\((\w[^)]*)\)', row)
        assert names+links, n
        assert all(re.search(rf'^def {o}\(', tests, re.M) for o in names), (n, names)
        assert all((nbs/o).exists() for o in links), (n, links)

@pytest.mark.parametrize('event', ['before_fit','before_batch','after_pred','before_step','after_batch'])
@pytest.mark.parametrize('opt_func', [Adam,LARS])
def test_09_lr_find_that_is_broken_off_leaves_no_trace(event, opt_func, tmp_path):
    "fastai puts the weights back at the end of the fit alone: the next fit went on from those of the highest rate"
    def stop(self):
        if event=='before_fit' or self.train_iter==5: raise KeyboardInterrupt
    learn = make(opt_func=opt_func, path=tmp_path, m=.9); seed_everything(0, learn.dls)
    learn.fit(1, 1e-2)
    was,opt = everything(learn),plain_values(learn.opt.state_dict())
    with pytest.raises(KeyboardInterrupt):
        with learn.added_cbs(type('Stop', (Callback,), {event: stop, 'order': 99})()): learn.lr_find(start_lr=1e-1, num_it=20, show_plot=False)
    assert differing(everything(learn), was)==[]
    assert plain_values(learn.opt.state_dict()['state'])==opt['state'] and not any((tmp_path/'models').glob('tmp*'))
    assert 'remove_cb' not in vars(learn) and not hasattr(learn, 'lr_finder')
    quiet(learn.fit_one_cycle, 1, 1e-2)

def test_09_a_trial_of_minutes_that_is_broken_off_leaves_no_trace(tmp_path):
    class Stop(Callback):
        def after_step(self):
            if self.train_iter==3: raise KeyboardInterrupt
    learn = make(opt_func=LARS, path=tmp_path, m=.9); seed_everything(0, learn.dls)
    was = everything(learn)
    with pytest.raises(KeyboardInterrupt): quiet(with_stop, learn, Stop())
    assert differing(everything(learn), was)==[] and learn.opt is None

def with_stop(learn, cb):
    with learn.added_cbs(cb): learn.fit_byol(minutes=1)
