"Views are the same whether an operation is computed for the pictures that drew it or, as on an accelerator, for all"
import math, pickle, sys
from collections import Counter
from functools import partial

import kornia.augmentation as K, kornia.enhance as KE, kornia.color as KC, kornia.filters as KF, kornia.geometry.transform as KG
import pytest, torch
import torch.nn.functional as F
from fastai.torch_core import TensorImage, set_seed
from fastai.vision.core import imagenet_stats
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from self_supervised.augmentations import (
    BicubicCrop, ColorJitter, NormalizeViews, PerImage, RandomFrames, compute_views, draw_views, get_batch_augs, send)
from self_supervised.core import checked
from self_supervised.vision.byol import digit_views, get_byol_aug_pipelines, small_views

def drawn(seed, aug, x, at_once=None):
    "The view of a seed, and a number drawn after it"
    if at_once is not None: aug.at_once = at_once
    set_seed(seed)
    return aug(x.clone()),torch.rand(1)

def always(**kw): return {f'{k}_p':1. for k in 'flip rotate jitter bw blur solarize'.split()} | kw

PICTURES = (24,3,40,52)
SETTINGS = {
    'published': (64, {}, PICTURES),
    'small': (32, small_views, PICTURES),
    'digits': (8, digit_views, (24,1,10,10)),
    'all of it': (32, always(rotate=True, stats=None), PICTURES),
    'wide': ((24,48), {}, PICTURES),
    'high': ((48,24), {}, PICTURES),
    'strong': (32, dict(jitter_s=1.5, jitter_p=1.), PICTURES),
    'any hue': (32, dict(jitter_s=(0,0,0,.5), jitter_p=1.), PICTURES),
    'two steps': (32, dict(jitter_s=(.4,.4,0,0)), PICTURES),
    'three steps': (32, dict(jitter_s=(.4,.4,0,.1)), PICTURES),
    'no light': (32, dict(jitter_s=(0,0,.2,.1)), PICTURES),
    'a pair': (32, dict(jitter_s=((.1,.2),.4,(-1.,3.),(-.1,.05)), jitter_p=1.), PICTURES),
    'once for all': (32, dict(same_on_batch=True, rotate=True), PICTURES),
    'spectrograms': ((24,48), dict(clip=False, jitter=False, bw=False, solarize=False, stats=None), (24,1,30,60)),
    'one picture': (32, {}, (1,3,40,40)),
    'no picture': (32, {}, (0,3,40,40)),
    'two channels': (32, dict(stats=(.5,.2)), (24,2,40,40)),
    'clips': (32, dict(rotate=True), (12,3,4,40,52)),
    'some frames': (32, dict(frames=(2,2)), (12,3,4,40,52)),
    'more': (32, dict(xtra_tfms=[K.RandomErasing(p=1.), partial(torch.mul, 2)]), PICTURES)}

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', SETTINGS)
def test_both_schedules_make_the_same_views_and_draw_as_much(name):
    size,kw,shape = SETTINGS[name]
    set_seed(0)
    x = torch.rand(shape)
    for i,aug in enumerate(get_byol_aug_pipelines(size, **kw)):
        for seed in range(3):
            (a,after_a),(b,after_b) = (drawn(seed+10*i, aug, x, o) for o in (False,True))
            assert a.shape==b.shape and a.dtype==b.dtype and b.is_contiguous()
            torch.testing.assert_close(a, b, atol=1e-5/min(imagenet_stats[1]), rtol=0)
            assert after_a==after_b

def test_a_picture_that_drew_nothing_stays_to_the_bit():
    "With numbers that change nothing, also black and white; a broken one breaks no other"
    x = torch.rand(16,3,32,32)
    x[0],x[1] = 0.,1.
    x[3,:,3,3] = float('nan')
    for f in get_batch_augs(32, **always(rotate=True, stats=None)).fs[1:]:
        f.p,f.choose = .5,lambda bs: torch.arange(4,bs)
        out = f.compute_all(x, *send([f.draw_all(x.shape)], x.device)[0])
        assert torch.equal(out[:3], x[:3]), f.name
        assert not out[3].isfinite().all() and out[4:].isfinite().all(), f.name
        assert not torch.equal(out[4:], x[4:]), f.name

def test_both_leave_the_input_and_other_tensor_classes_alone():
    x = torch.rand(8,3,40,40)
    given = x.clone()
    for aug in get_byol_aug_pipelines(32):
        aug.at_once = True
        aug(x)
        assert torch.equal(x, given)
        assert type(aug(TensorImage(x))) is TensorImage and type(aug(x)) is torch.Tensor
        assert torch.equal(drawn(1, aug, TensorImage(x))[0], drawn(1, pickle.loads(pickle.dumps(aug)), x, True)[0])

def test_gradients_pass_through_both():
    x = torch.rand(6,3,24,24)
    x[0],x[1],x[2,:,:12] = 0.,1.,.3
    grads = []
    for at_once in (False,True):
        w = x.clone().requires_grad_()
        aug = get_batch_augs(24, **always(stats=None, jitter_s=.2))
        aug.at_once = at_once
        set_seed(3)
        aug(w).sum().backward()
        assert w.grad.isfinite().all()
        grads.append(w.grad)
    # Where a value is just at the end of the scale either side is right
    assert ((grads[0]-grads[1]).abs()<1e-3).float().mean()>.98

# Against another implementation, one picture at a time

def by_kornia(x, size, blur_p, solarize_p, sigmas=(.1,2.), amounts=(.4,.4,.2,.1)):
    "The published view with kornia's functions, drawing in the same order"
    def some(p): return (torch.rand(len(x))<p).nonzero().squeeze(1)
    set_seed(7)
    x = K.RandomResizedCrop((size,size), scale=(.08,1.), ratio=(3/4,4/3), resample='bicubic', align_corners=False)(x).clamp(0,1)
    for i in some(.5): x[i] = KG.hflip(x[i:i+1])[0]
    idx = some(.8)
    b,c,s,h = amounts
    drawn = [torch.empty(len(idx)).uniform_(*r) for r in ((-b,b), (1-c,1+c), (1-s,1+s), (-h,h))]
    orders = torch.rand(len(idx), 4).argsort(1)
    for row,i in enumerate(idx):
        for k in orders[row].tolist(): x[i] = step_by_kornia(k, x[i:i+1], drawn[k][row])[0]
    for i in some(.2): x[i] = KC.rgb_to_grayscale(x[i:i+1])[0]
    if blur_p<1:
        idx = some(blur_p)
    else: idx = torch.arange(len(x))
    for i,sigma in zip(idx, torch.rand(len(idx))*(sigmas[1]-sigmas[0])+sigmas[0]):
        taps = size//10//2*2+1
        x[i] = KF.gaussian_blur2d(x[i:i+1], (taps,taps), sigma.expand(1,2))[0]
    if solarize_p:
        for i in some(solarize_p): x[i] = KE.solarize(x[i:i+1], .5)[0]
    return x

def step_by_kornia(k, x, amount):
    if k==0: return KE.adjust_brightness(x, amount[None])
    if k==1: return (amount*x + (1-amount)*x.mean((-2,-1), keepdim=True)).clamp(0,1)
    if k==2: return KE.adjust_saturation(x, amount[None])
    return KE.adjust_hue(x, amount[None]*2*math.pi)

@pytest.mark.parametrize('view', [0,1])
@pytest.mark.parametrize('at_once', [False,True])
def test_a_published_view_is_what_kornia_makes_of_the_same_draws(view, at_once):
    set_seed(0)
    # Smooth, as photographs are: the place of a tap is a float32
    x = F.interpolate(torch.rand(32,3,8,8), 60, mode='bicubic').clamp(0,1)
    aug = get_byol_aug_pipelines(48, stats=None)[view]
    ours,after = drawn(7, aug, x, at_once)
    theirs = by_kornia(x.clone(), 48, (1.,.1)[view], (0.,.2)[view])
    close = (ours-theirs).abs()<1e-5
    # A value just at the middle of the scale may be solarized by one and not by the other: both give the middle
    assert close.all(), (ours-theirs).abs().max()

# Chance

def test_the_probabilities_are_those_of_the_arguments():
    "Drawn for all at once: four deviations of a binomial"
    set_seed(5)
    n,ps = 4000,dict(flip=.3, rotate=.25, jitter=.8, bw=.2, blur=.1, solarize=.4)
    aug = get_batch_augs(16, rotate=True, stats=None, **{f'{k}_p':p for k,p in ps.items()})
    shape = (n,3,16,16)
    crop,flip,turned,jitter,grey,blur,solarized = draw_views(aug.fs, shape)
    whole = torch.tensor([[0.,1.,0.],[1.,1.,1.],[0.,1.,0.],[0.,1.,0.],[1.,1.,1.],[0.,1.,0.]])
    hits = dict(flip=crop[0][-n:]>=32, rotate=turned[0], bw=grey[0], solarize=solarized[0]==1,
                jitter=(jitter[0]!=whole).flatten(1).any(1), blur=blur[0].view(n,3,-1)[:,0,1]<1)
    for k,p in ps.items(): assert abs(hits[k].float().mean()-p) <= 4*(p*(1-p)/n)**.5, k
    assert not flip
    # Independent of each other
    together = (hits['flip']&hits['bw']).float().mean()
    assert abs(together-.06) <= 4*(.06*.94/n)**.5

def test_each_order_is_as_likely():
    "The places of the steps tell the order, up to hue and saturation next to each other"
    set_seed(6)
    n = 4800
    jitter = ColorJitter(brightness=(.1,.2), contrast=(1.1,1.2), saturation=(1.1,1.2), hue=(.01,.05))
    numbers, = jitter.spread(jitter.draw((n,3,8,8)), torch.arange(n), (n,3,8,8))
    light = numbers[:, [0,2,3,5]]
    bright,contrast = ((light[...,i]!=v).float().argmax(1) for i,v in ((0,0.),(1,1.)))
    share = (bright<contrast).float().mean()
    assert abs(share-.5) <= 4*(.25/n)**.5
    colour = numbers[:, [1,4]]
    for i in (1,2): assert ((colour[...,i]!=1).sum(1)==1).all()
    apart = ((colour[...,1]!=1).float().argmax(1) != (colour[...,2]!=1).float().argmax(1)).float().mean()
    assert 0<apart<1

# What an accelerator sees. 'meta' is a device without data: whatever waits for a value there is an error

class Launches(TorchDispatchMode):
    "Counts operations on a device other than the CPU, views aside"
    def __init__(self):
        super().__init__()
        self.n = Counter()
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        out = f(*args, **(kwargs or {}))
        there = any(isinstance(o, torch.Tensor) and o.device.type!='cpu' for o in tree_leaves((args, kwargs, out)))
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in f._schema.returns)
        if there and not view and f.overloadpacket.__name__ not in ('detach','_unsafe_view','lift_fresh'):
            self.n[f.overloadpacket.__name__] += 1
        return out

BUDGET = {'published 224': (224, {}), 'photos 64': (64, {}), 'small': (32, small_views), 'digits': (8, digit_views)}

@pytest.mark.parametrize('name', BUDGET)
def test_a_view_takes_at_most_60_launches_one_copy_and_no_wait(name):
    size,kw = BUDGET[name]
    x = torch.rand(4, 1 if name=='digits' else 3, size*5//4, size*5//4).to('meta')
    for aug in get_byol_aug_pipelines(size, **kw):
        aug(x)   # what is the same for every batch is there afterwards
        with Launches() as count, torch.no_grad(): y = aug(x)
        assert y.device.type=='meta'
        assert sum(count.n.values())<=60, count.n
        assert count.n['_to_copy']+count.n['copy_']==1, count.n
        assert not {'index','nonzero','_local_scalar_dense','masked_select'} & set(count.n)

def test_the_numbers_of_all_operations_travel_in_one_tensor():
    x = torch.rand(6,3,20,20)
    aug = get_batch_augs(16, **always(rotate=True))
    numbers = draw_views(aug.fs, x.shape)
    there = send(numbers, torch.device('cpu'))
    for a,b in zip(tree_leaves(numbers), tree_leaves(there)): assert a.dtype==b.dtype and torch.equal(a, b)
    assert len({o.untyped_storage().data_ptr() for o in tree_leaves(there)})==1

@pytest.mark.parametrize('kw', [{}, small_views, dict(rotate=True)])
def test_compiled_it_is_one_graph_for_all_batches_and_equal(kw):
    from torch._dynamo.testing import CompileCounterWithBackend
    torch._dynamo.reset()
    x = torch.rand(8,3,40,40)
    aug = get_byol_aug_pipelines(32, **kw)[1]
    graphs = CompileCounterWithBackend('aot_eager')
    compiled = torch.compile(partial(compute_views, list(aug.fs)), backend=graphs, fullgraph=True, dynamic=False)
    for seed in range(3):
        set_seed(seed)
        numbers = send(draw_views(aug.fs, x.shape), x.device)
        torch.testing.assert_close(compiled(x, numbers), compute_views(aug.fs, x, numbers), atol=1e-5, rtol=0)
    assert graphs.frame_count==1

def test_what_compiles_checks_no_arguments():
    "torch 2.7 cannot follow a check into a graph; a view of our own operations calls none"
    checks,called = checked(lambda: 0).__code__,set()
    x = torch.rand(8,3,40,40)
    for aug in get_byol_aug_pipelines(32, **always(rotate=True)):
        numbers = draw_views(aug.fs, x.shape)
        sys.setprofile(lambda frame, *_: called.add(frame.f_code))
        try: compute_views(aug.fs, x, numbers)
        finally: sys.setprofile(None)
    assert compute_views.__code__ in called and checks not in called
