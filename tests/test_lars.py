"LARS: exclusions, degenerate norms, memory layouts, and what it has to do with fastai's and torch's machinery"
import copy, pickle
from functools import partial

import pytest, torch
from torch import nn
from fastai.callback import schedule   # brings `fit_one_cycle`
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.torch_core import set_seed

from self_supervised.lars import LARS, TorchLARS, bias_or_norm, norm_taker, trust_ratio

def learner(path, opt_func=LARS, **kwargs):
    "A small regression, the same in each call"
    set_seed(0)
    xs = torch.randn(64,4)
    items = list(zip(xs, xs @ torch.randn(4,2)))
    dls = DataLoaders(DataLoader(items, bs=8, shuffle=False), DataLoader(items[:8], bs=8))
    net = nn.Sequential(nn.Linear(4,8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8,2))
    return Learner(dls, net, loss_func=nn.MSELoss(), opt_func=opt_func, path=path, **kwargs)

def fit(learn, epochs, method='fit', **kwargs):
    with learn.no_bar(), learn.no_logging(): getattr(learn, method)(epochs, **kwargs)

def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])

def with_opt(*args, **kwargs):
    "A learner that has its optimizer already"
    learn = learner(*args, **kwargs)
    learn.create_opt()
    return learn

def test_decay_without_adaptation_is_sgd():
    "Up to float32 rounding: the two exclusions are independent"
    torch.manual_seed(0)
    a = nn.Sequential(nn.Conv2d(3,8,3), nn.BatchNorm2d(8), nn.Conv2d(8,4,3))
    b = copy.deepcopy(a)
    oa = LARS(a.parameters(), lr=.1, wd=.01, exclude_wd=None, exclude_adapt=lambda p: True)
    ob = torch.optim.SGD(b.parameters(), lr=.1, momentum=.9, weight_decay=.01, foreach=False)
    for _ in range(5):
        x = torch.randn(4,3,9,9)
        for m,o in ((a,oa),(b,ob)):
            o.zero_grad()
            m(x).pow(2).mean().backward()
            o.step()
    for p,q in zip(a.parameters(), b.parameters()): torch.testing.assert_close(p, q, atol=1e-6, rtol=0)

def test_a_length_of_zero_adapts_by_1():
    "Of a weight or a gradient; nothing divides by zero"
    ratio = trust_ratio(torch.tensor([0.,2.,2.,0.]), torch.tensor([3.,0.,4.,0.]), .5)
    assert torch.equal(ratio, torch.tensor([1.,1.,.25,1.]))
    for w,g in ((0.,1.),(1.,0.),(0.,0.)):
        p = nn.Parameter(torch.full((2,2), w))
        p.grad = torch.full((2,2), g)
        LARS([p], lr=.1).step()
        torch.testing.assert_close(p.data, torch.full((2,2), w-.1*g), atol=1e-5, rtol=0)

def test_parameters_without_gradient_and_gradients_stay():
    p,q = nn.Parameter(torch.ones(2,2)),nn.Parameter(torch.ones(2,2))
    p.grad = g = torch.ones(2,2)
    LARS([p,q], lr=.1, wd=.1).step()
    assert torch.equal(q, torch.ones(2,2)) and p.grad is g and torch.equal(g, torch.ones(2,2))

LAYOUTS = {'channels last': lambda t: t.to(memory_format=torch.channels_last), 'transposed': lambda t: t.transpose(0,3),
           'every second column': lambda t: t[...,::2]}

@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('kwargs', [{}, dict(wd=.1), dict(exclude_adapt=lambda p: True)], ids=['plain','decay','no adaptation'])
def test_any_memory_layout(layout, kwargs):
    torch.manual_seed(0)
    t = LAYOUTS[layout](torch.randn(4,3,6,6))
    g = torch.randn(t.shape)
    p,q = nn.Parameter(t),nn.Parameter(t.clone(memory_format=torch.contiguous_format))
    for w in (p,q):
        opt = LARS([w], lr=.1, **kwargs)
        for _ in range(2):
            w.grad = g.clone()
            opt.step()
    torch.testing.assert_close(p.data, q.data, atol=1e-6, rtol=0)

@pytest.mark.parametrize('kwargs,said', [(dict(lr=-1.), 'lr=-1.0 must be 0 or more'), (dict(lr=.1, mom=1.), 'mom=1.0 must be in'),
                                         (dict(lr=.1, wd=-1.), 'wd=-1.0 must be 0 or more'), (dict(lr=.1, eta=0.), 'eta=0.0 must be above 0')])
def test_hyper_parameters_out_of_range(kwargs, said):
    with pytest.raises(ValueError, match=said): LARS([nn.Parameter(torch.ones(2,2))], **kwargs)

def test_the_state_counts(tmp_path):
    "Without the optimizer's state the second half of a run differs: that they agree with it is no empty statement"
    whole,first,bare = (learner(tmp_path) for _ in range(3))
    fit(whole, 4, lr=.5, wd=1e-4)
    fit(first, 2, lr=.5, wd=1e-4)
    first.save('half')
    bare.load('half', with_opt=False)
    fit(bare, 2, lr=.5, wd=1e-4)
    assert not torch.equal(weights(whole), weights(bare))

def test_one_cycle_and_copies(tmp_path):
    "One cycle schedules momentum too and leaves numpy numbers in the hyper-parameters; copies keep exclusions and marks"
    learn = learner(tmp_path)
    fit(learn, 1, 'fit_one_cycle', lr_max=1.)
    learn.save('one')
    learn.load('one')
    for twin in (copy.deepcopy(learn.opt), pickle.loads(pickle.dumps(learn.opt))):
        assert twin.opt.exclude_wd is bias_or_norm and twin.opt.marks is twin.state
        twin.step()

def test_a_weight_that_fastai_marks_is_not_decayed(tmp_path):
    learn = with_opt(tmp_path, wd=.1)
    w = learn.model[0].weight
    learn.opt.state[w]['do_wd'] = False
    decays = learn.opt.opt._decays
    assert not decays(w) and decays(learn.model[3].weight) and not decays(learn.model[1].weight)

def test_what_decays(tmp_path):
    "`wd_bn_bias=True` with `exclude_wd=None` decays all; without it fastai's marks leave out biases and norms"
    def decayed(**kwargs):
        learn = with_opt(tmp_path, partial(LARS, exclude_wd=None), **kwargs)
        return [learn.opt.opt._decays(p) for p in learn.model.parameters()]
    assert all(decayed(wd_bn_bias=True))
    assert decayed() == [True,False,False,False,True,False]

def test_torchs_machinery():
    "A schedule, a closure, and the gradient scaler, which must unscale before the norms are taken"
    opt = TorchLARS([nn.Parameter(torch.ones(2,2))], lr=1.)
    torch.optim.lr_scheduler.LambdaLR(opt, lambda i: .5)
    assert opt.param_groups[0]['lr']==.5 and not hasattr(opt, '_step_supports_amp_scaling')
    assert LARS([nn.Parameter(torch.ones(1))], lr=1.).opt.step(lambda: 3)==3

def test_norms_are_shown_once_and_before_anything_moves():
    "Of all gradients, adapted or not, to the judge of this step alone; a judge that raises leaves the weights"
    w,b = nn.Parameter(torch.ones(2,2)),nn.Parameter(torch.ones(2))
    w.grad,b.grad = torch.full((2,2), 2.),torch.full((2,), 3.)
    opt,seen = LARS([w,b], lr=.1),[]
    taker = norm_taker(opt)
    def refuse(norms):
        seen.append(torch.stack(norms))
        raise RuntimeError('no')
    taker.show_norms_to(refuse)
    with pytest.raises(RuntimeError, match='no'): opt.step()
    torch.testing.assert_close(seen[0].sort().values, torch.tensor([4., 18.**.5]))
    assert torch.equal(w, torch.ones(2,2)) and torch.equal(b, torch.ones(2)) and taker.judge is None
    opt.step()
    assert len(seen)==1 and not torch.equal(w, torch.ones(2,2))
    taker.show_norms_to(print)
    assert copy.deepcopy(taker).judge is None and norm_taker(None) is None
    assert norm_taker(torch.optim.SGD([w], lr=.1)) is None
