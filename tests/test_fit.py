"`fit_byol`: what it takes from you, from the learner and from the recipe; and what `check_recipe` warns of"
import copy, warnings
from dataclasses import replace
from functools import partial

import pytest, torch
from torch import nn
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.schedule import ParamScheduler, SchedCos   # brings `fit_one_cycle`, too
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import SGD, Adam, OptimWrapper
from fastai.torch_core import set_seed

from self_supervised.fit import batch_size, byol_splitter, check_recipe
from self_supervised.lars import LARS
from self_supervised.recipes import adapt_none, byol_recipe, warmup_cosine

def learner(opt_func=LARS, model=None, bs=8, **kwargs):
    "A small regression, the same in each call"
    set_seed(1)
    xs = torch.randn(64,4)
    items = list(zip(xs, xs @ torch.randn(4,2)))
    dls = DataLoaders(DataLoader(items, bs=bs, shuffle=False), DataLoader(items[:8], bs=8))
    return Learner(dls, model or nn.Linear(4,2), loss_func=nn.MSELoss(), opt_func=opt_func, **kwargs)

class Parts(nn.Module):
    "The parts of a BYOL model, for numbers"
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(4,8)
        self.projector = nn.Sequential(nn.Linear(8,8), nn.BatchNorm1d(8))
        self.predictor = nn.Linear(8,2)
        self.target = copy.deepcopy(self.encoder).requires_grad_(False)
    def forward(self, x): return self.predictor(self.projector(self.encoder(x)))

class BYOL(Callback):
    "All that `fit_byol` asks of the real one"
    given = sched = None

def parts(**kwargs):
    set_seed(2)
    return learner(model=Parts(), cbs=BYOL(), **kwargs)

def fit(learn, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn.fit_byol(*args, **kwargs)
    return learn

def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])

def n_warnings(opt_func, lr=None, bs=128, bn=True, **kwargs):
    "What `check_recipe` finds, with an optimizer"
    model = nn.Sequential(nn.Linear(4,8), nn.BatchNorm1d(8) if bn else nn.LayerNorm(8), nn.Linear(8,2))
    learn = learner(opt_func, model, bs=bs, **kwargs)
    learn.create_opt()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return len(check_recipe(learn, lr))

def test_a_learner_is_warned_once():
    learn = learner(Adam, nn.Sequential(nn.Linear(4,8), nn.BatchNorm1d(8)), lr=.2)
    learn.create_opt()
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        for _ in range(2): check_recipe(learn)
    said = [str(w.message) for w in ws]
    assert len(said)==2 and 'made for LARS' in said[0] and 'sees 8 pictures' in said[1]
    assert not any('\n' in o for o in said)

def test_rates_for_lars():
    assert [n_warnings(Adam, lr) for lr in (1e-3, .05, 3.2, None)] == [0,1,1,0]
    assert n_warnings(LARS, 3.2)==0 and n_warnings(partial(OptimWrapper, opt=torch.optim.AdamW), 3.2)==1
    assert n_warnings(Adam, cbs=ParamScheduler({'lr': warmup_cosine(3.2,.1)}))==1   # the rate a scheduler will reach

def test_small_batches(): assert n_warnings(LARS, 3.2, bs=127)==1 and n_warnings(LARS, 3.2, bs=8, bn=False)==0

def test_nothing_to_warn_of_without_an_optimizer(): assert check_recipe(learner(bs=128))==[]

def test_a_recipe_of_your_own():
    mine = replace(byol_recipe(1000, 256), lr=.7, warmup=.5, m=SchedCos(.5,.6), source='me')
    learn = fit(parts(), 1, mine)
    assert max(learn.recorder.hps['lr']) == pytest.approx(.7, abs=1e-5) and learn.byol.sched(0.)==.5

def test_the_momentum_byol_was_given_stays_unless_the_call_says_otherwise():
    learn = parts()
    learn.byol.given = .5
    assert fit(learn, 1).byol.sched(0.)==.5
    assert fit(learn, 1, m=.7).byol.sched(0.) == pytest.approx(.7)

def test_an_optimizer_of_your_own(): assert not isinstance(fit(parts(), 1, opt_func=SGD, lr=.01).opt, LARS)

def test_rates_for_groups():
    learn = fit(parts(splitter=byol_splitter), 2, lr=[.1,.2], warmup_epochs=0)
    assert learn.recorder.hps['lr'][0] == pytest.approx(.2, abs=1e-5)
    fit(parts(splitter=byol_splitter), 2, lr=slice(.1,.2))
    assert [len(o) for o in byol_splitter(learn.model)] == [6,2]

def test_the_learners_own_lars_stays_and_is_kept():
    "From call to call; made anew when asked"
    learn = fit(parts(opt_func=partial(LARS, eta=.02)), 1)
    opt = learn.opt
    assert opt.hypers[0]['eta']==.02
    assert fit(learn, 1).opt is opt
    assert fit(learn, 1, reset_opt=True).opt is not opt

def test_wd_bn_bias_decays_all():
    learn = fit(parts(wd_bn_bias=True), 1)
    assert all(learn.opt.opt._decays(p) for p in learn.model.encoder.parameters())

def test_a_run_that_is_cut_equals_one_that_is_not():
    "Bit for bit"
    class Cut(Callback):
        def before_epoch(self):
            if self.epoch==2: raise CancelFitException()
    whole,first = fit(parts(), 4),parts()
    fit(first, 4, cbs=Cut())
    fit(first, 4, start_epoch=2)
    assert torch.equal(weights(whole), weights(first))

@pytest.mark.parametrize('kwargs,said', [
    (dict(epochs=0), 'epochs=0 must be above 0'), (dict(epochs=2.5), 'epochs=2.5 must be a whole'),
    (dict(epochs=2, m=1.2), 'm=1.2 is not a momentum'), (dict(epochs=2, recipe='lamb'), "recipe='lamb'"),
    (dict(epochs=2, lr=-1.), 'lr=-1.0 must be 0 or more'), (dict(epochs=2, wd=-1.), 'wd=-1.0'),
    (dict(epochs=2, lr=[.1,.2,.3]), '3 rates for'), (dict(epochs=2, recipe='simsiam'), 'without a target'),
    (dict(epochs=2, warmup_epochs=2), 'warmup_epochs=2 must be in [0,2)'), (dict(epochs=2, start_epoch=2), 'nothing of epochs=2')])
def test_what_cannot_be_meant(kwargs, said):
    with pytest.raises(ValueError) as e: fit(parts(), **kwargs)
    assert said in str(e.value) and '\n' not in str(e.value)

def test_byol_is_needed_and_may_come_with_the_fit():
    with pytest.raises(ValueError, match='no BYOL callback'): fit(learner(), 1)
    cb = BYOL()
    fit(learner(model=Parts()), 1, cbs=cb)
    assert callable(cb.sched)

def test_frozen_groups_stay():
    learn = parts(splitter=byol_splitter, opt_func=LARS)
    learn.freeze()
    was = learn.model.encoder.weight.detach().clone()
    fit(learn, 2)
    assert torch.equal(learn.model.encoder.weight, was)
    learn.unfreeze()
    fit(learn, 2)
    assert not torch.equal(learn.model.encoder.weight, was)

def test_accumulated_gradients_count_as_one_batch():
    assert batch_size(parts())==8 and batch_size(parts(), GradientAccumulation(20))==24

def test_a_plain_loop():
    p = nn.Parameter(torch.ones(2,2))
    opt,sched = LARS([p], lr=1.),warmup_cosine(1., .1)
    for k in range(10):
        opt.set_hyper('lr', sched(k/10))
        p.pow(2).sum().backward()
        opt.step()
        opt.zero_grad()
    assert p.max()<1

def test_rates_for_adam():
    "`fit_one_cycle(3, 1e-3)` after `fit_byol` trains by LARS still, which hardly moves at such a rate; `validate` is no fit"
    assert [n_warnings(LARS, lr) for lr in (1e-3, .01, 3.2, 0.)]==[1,0,0,0]
    sgd = byol_recipe(10, 64, 'sgd').opt_func
    assert n_warnings(sgd, 1e-3)==0 and n_warnings(LARS, cbs=ParamScheduler({'lr': warmup_cosine(1e-3,.1)}), lr=None)==1
    learn = learner(LARS, lr=1e-3)
    learn.create_opt()
    with learn.lock: assert check_recipe(learn)==[]

def test_the_momentum_that_a_schedule_left_is_not_the_recipes():
    "`fit_one_cycle` raises it to .95, and an optimizer that is kept kept it"
    learn = parts(opt_func=LARS)
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings(action='ignore'): learn.fit_one_cycle(1, .1)
    opt = learn.opt
    assert opt.hypers[0]['mom']!=.9
    assert fit(learn, 1).opt is opt and opt.hypers[0]['mom']==.9
    own = parts(opt_func=partial(LARS, mom=.8))
    for _ in range(2): assert fit(own, 1).opt.hypers[0]['mom']==.8

# What a call before left in the learner

@pytest.mark.parametrize('before', ['sgd','adamw'])
def test_lars_after_another_recipe_is_lars(before, capsys):
    "SGD is made of LARS, and was taken for a LARS of the learner's own: its rates without its adaptation"
    learn = fit(fit(parts(), 1, before), 1, 'lars')
    assert learn.opt.opt.exclude_adapt is not adapt_none and learn.opt_func is LARS
    assert capsys.readouterr().out.splitlines()[-1].startswith('LARS')
    assert fit(learn, 1, 'sgd').opt.opt.exclude_adapt is adapt_none

def test_lars_for_a_model_without_a_target():
    learn = parts(); learn.model.target = None
    fit(fit(learn, 1), 1, 'lars')
    assert learn.opt.opt.exclude_adapt is not adapt_none

@pytest.mark.parametrize('recipe', ['lars','adamw'])
def test_what_is_unfrozen_by_hand_is_trained(recipe):
    "Heads first, then all: the optimizer of the first fit did not hold the encoder"
    learn = parts(); e = learn.model.encoder.requires_grad_(False)
    was = e.weight.detach().clone()
    fit(learn, 2, recipe); assert torch.equal(e.weight, was)
    e.requires_grad_(True)
    fit(learn, 2, recipe); assert not torch.equal(e.weight, was)
    assert not set(learn.model.target.parameters()) & set(learn.opt.all_params().itemgot(0))

@pytest.mark.parametrize('change', ['model','part'])
def test_a_model_that_was_changed_is_trained(change):
    learn = fit(parts(), 2)
    if change=='model': learn.model = Parts()
    else: learn.model.encoder = nn.Linear(4,8)
    was = learn.model.encoder.weight.detach().clone()
    assert not torch.equal(fit(learn, 2).model.encoder.weight, was)

def test_an_optimizer_that_holds_all_is_kept():
    "Its state goes on; a target that was unfrozen by mistake is no reason for another"
    learn = fit(parts(), 2); opt = learn.opt
    learn.model.requires_grad_(True)
    assert fit(learn, 2).opt is opt

def test_the_rates_are_those_of_the_optimizer(capsys):
    "Yours without a recipe: LARS's rates collapse Adam, and plain SGD without a word"
    for f,opt in ((Adam,'adamw'), (SGD,'sgd'), (partial(OptimWrapper, opt=torch.optim.AdamW),'adamw'), (partial(LARS, eta=.02),'lars')):
        learn = fit(parts(), 4, opt_func=f)
        assert max(learn.recorder.hps['lr'])==byol_recipe(4, 8, opt, 64).lr, f
    assert max(fit(parts(), 4, 'lars', opt_func=SGD).recorder.hps['lr'])==byol_recipe(4, 8, 'lars', 64).lr

def test_what_the_learner_was_given_is_used(capsys):
    "Optimizer and weight decay, as in every other fit; a recipe by name, and fastai's default, are no wish of yours"
    learn = fit(parts(opt_func=SGD, wd=.3), 4)
    assert learn.opt_func is SGD and learn.opt.hypers[0]['wd']==.3 and max(learn.recorder.hps['lr'])==byol_recipe(4, 8, 'sgd', 64).lr
    assert 'wd as passed' in capsys.readouterr().out
    assert fit(learn, 1, wd=.1).opt.hypers[0]['wd']==.1
    assert fit(learn, 1, 'lars').opt_func is LARS and fit(parts(opt_func=Adam), 1).opt_func is LARS

def test_an_optimizer_of_torch_is_refused_with_the_way_to_wrap_it():
    with pytest.raises(TypeError, match=r"opt_func=AdamW is torch's.*partial\(OptimWrapper, opt=torch.optim.AdamW\)"): parts(opt_func=torch.optim.AdamW).fit_byol(1)

@pytest.mark.parametrize('there,here', [('adamw','lars'), ('lars','adamw'), ('sgd','adamw')])
def test_the_state_of_another_optimizer_is_not_loaded(there, here, tmp_path):
    "torch took it, and the next fit ended with `missing argument: 'eta'` or `KeyError: 'betas'`"
    learn = fit(parts(path=tmp_path), 1, there)
    learn.save('m')
    fit(learn, 1, here)
    with pytest.warns(UserWarning, match='Could not load the optimizer state'): learn.load('m')
    fit(learn, 1, here); learn.save('m'); assert not [w for w in warned(learn.load, 'm') if 'optimizer' in w]

def warned(f, *args):
    with warnings.catch_warnings(record=True) as found: warnings.simplefilter('always'); f(*args)
    return [str(w.message) for w in found]

def test_the_momentum_of_a_run_within_an_epoch():
    "It is that for its steps, not for those of the whole epoch, in which the target would hardly move"
    assert byol_recipe(1, 128, n_items=10**6).m>.99 and byol_recipe(1, 128, n_items=10**6, n_steps=400).m==.9
    with pytest.raises(ValueError, match='n_steps=0'): byol_recipe(1, n_steps=0)
    learn = parts(bs=2); learn.dls.train = DataLoader(list(learn.dls.train.dataset)*40, bs=2)
    assert byol_recipe(1, 2, n_items=64*40).m>.95
    for kwargs in (dict(steps=50), dict(steps=25, cbs=GradientAccumulation(4))): assert fit(learn, **kwargs).byol.sched(0)==.9
    assert fit(learn, steps=1280).byol.sched(0)==byol_recipe(1, 2, n_items=64*40).m

@pytest.mark.parametrize('lr,bs,n', [(2e-3,128,1), (5e-3,128,1), (.01,128,0), (2e-3,8,0), (.01,512,1), (.02,4096,0)])
def test_a_rate_found_for_adam_is_too_low_for_lars(lr, bs, n):
    "`lr_find` before the first fit looks for Adam's; a twentieth of the published rate hardly learns"
    assert n_warnings(LARS, lr, bs=bs, bn=False)==n
