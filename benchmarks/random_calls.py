"""Call the public functions with whatever a user may pass: each call is right, or one line says what is wrong with it.

    OMP_NUM_THREADS=1 python benchmarks/random_calls.py --out benchmarks/random_calls.json

Every argument has values that are right. A call takes those, and puts something else in the place of some: numbers of numpy, arrays, lists,
tuples, masks, None, paths, text, negative, zero, huge and nan numbers, tensors of other types and shapes, empty ones. A call is *right* if what
it returns passes the law of its function: an independent computation where there is a short one, else shape and finiteness. It is *refused*
by a ValueError, TypeError or one of their kind, in one line of this library's grammar. All else is a *fault*: other errors, good arguments
that are refused, a changed input, a changed random state (but where a function draws), a call that takes a minute.

Call number i is the same in each run: `python benchmarks/random_calls.py --call 1234` shows it.
"""
import argparse
import copy
import json
import math
import os
import pickle
import random
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from fractions import Fraction
from inspect import Parameter, signature
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from fastai.tabular.all import Categorify, Normalize, TabularPandas
from machine import machine
from PIL import Image
from torch import Tensor, nn

import self_supervised.all as lib
from self_supervised import augmentations, image_ops, layers, plots, recipes, surgery
from self_supervised.callback import checkpoint, cpu_memory
from self_supervised.cli import embed as cli_embed, report
from self_supervised.data import arrays, images, reading, skipped, sources, tables
from self_supervised.evaluate import features, labelled, protocols
from self_supervised.transfer import finetune, segment
from self_supervised.vision import byol

ROOMS = [lib, augmentations, image_ops, layers, plots, recipes, surgery, cpu_memory, checkpoint, cli_embed, report, arrays, images, reading, skipped,
         sources, tables, features, labelled, protocols, finetune, segment, byol]
SECONDS = 60   # that a call may take
calls = {}     # name → Call

class Wrong(Exception): "A result that is against the law of its function"

def must(true, what='law'):
    if not bool(true): raise Wrong(what)

# Values. A good one is made anew for each call, from a random generator

N,NF,BS,SIZE = 30,6,4,8

def gen(r): return torch.Generator().manual_seed(r.randrange(2**31))
def pics(c): return lambda r: torch.rand(BS, c, SIZE, SIZE, generator=gen(r))
def feats(n=N, d=NF): return lambda r: torch.randn(n, d, generator=gen(r))
def labels(n=N): return lambda r: torch.arange(n)%3
def picture(r): return torch.rand(3, SIZE, SIZE, generator=gen(r))
def one_of(*values): return lambda r: copy.deepcopy(r.choice(values))
def ints(lo, hi): return lambda r: r.randint(lo, hi)
def floats(lo, hi): return lambda r: r.uniform(lo, hi)
def const(f): return lambda r: f()
p = one_of(0, 0., .3, 1, 1.)
flag = one_of(True, False)
stats = one_of(None, (.5, .25), ([.5], [.25]), (torch.tensor([.5]), torch.tensor([.25])))
seed = one_of(0, 1, 42, 2**31)
size = one_of(SIZE, (6,9), [5,5], 16)

def net(r, n_in=1):
    with torch.random.fork_rng():
        torch.manual_seed(r.randrange(100))
        return nn.Sequential(nn.Conv2d(n_in,4,3,2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
def encoder(r):
    with torch.random.fork_rng():
        torch.manual_seed(r.randrange(100))
        return layers.create_encoder('tiny_resnet', pretrained=False, n_in=1, widths=(4,8), size=SIZE)
def model(r):
    with torch.random.fork_rng(): return lib.create_byol_model(net(r), 8, 4, n_in=1, size=SIZE)
def colour_net(r): return net(r, 3)

# Anything but. `odd_number` and `odd_array` change a good value a little, `anything` replaces it

def odd_number(v, r):
    return r.choice([lambda: -v, lambda: 0, lambda: v+.5, lambda: float(v), lambda: int(v), lambda: np.float64(v), lambda: np.float32(v),
        lambda: np.int64(v), lambda: np.uint8(abs(int(v))%256), lambda: torch.tensor(v), lambda: np.array(v), lambda: [v], lambda: (v,v), lambda: str(v),
        lambda: v*10**12, lambda: 10**400, lambda: float('nan'), lambda: math.inf, lambda: -math.inf, lambda: Fraction(1,3), lambda: complex(v),
        lambda: torch.tensor([v,v]), lambda: np.array([v,v,v]), lambda: bool(v), lambda: None, lambda: 1e-300])()

def odd_array(v, r):
    t = torch.as_tensor(v)
    spoilt = t.clone()
    if t.is_floating_point() and t.numel(): spoilt.view(-1)[r.randrange(t.numel())] = r.choice([math.nan, math.inf, -math.inf, 1e30, -1.])
    return r.choice([lambda: spoilt, lambda: t.numpy(), lambda: t.tolist(), lambda: tuple(t), lambda: list(t.numpy()), lambda: t.double(), lambda: t.half(),
        lambda: t.bfloat16(), lambda: (t*100).byte(), lambda: t.long(), lambda: t.int(), lambda: t>t.float().mean(), lambda: t.to(torch.complex64),
        lambda: t[:0], lambda: t[:1], lambda: t[0], lambda: t[None], lambda: t[...,None], lambda: t[...,:0], lambda: t.flatten(), lambda: t.mT if t.ndim>1 else t,
        lambda: t.numpy().astype(object), lambda: t.numpy().astype(str), lambda: t.float().requires_grad_(), lambda: t*0, lambda: t*1e30, lambda: t*-1,
        lambda: t.numpy()[::-1], lambda: t.numpy().astype('>f4')])()

class Anything:
    "An object of a user's own"
    def __repr__(self): return 'Anything()'

def anything(r):
    return r.choice([lambda: None, lambda: -1, lambda: 0, lambda: 1, lambda: 2, lambda: 7, lambda: 10**12, lambda: True, lambda: False, lambda: .5, lambda: -.5,
        lambda: 1e30, lambda: math.nan, lambda: math.inf, lambda: 'x', lambda: '', lambda: 'a\nb', lambda: b'x', list, lambda: (), dict, lambda: set(),
        lambda: [1,2], lambda: (.5,1.), lambda: (1.,.5), lambda: (None,None), lambda: ['a','b'], lambda: [[1],[1,2]], lambda: {'a': 1}, lambda: np.int64(3),
        lambda: np.float32(.25), lambda: np.bool_(True), lambda: np.array([]), lambda: np.array([.1,.9]), lambda: np.array([True,False]), lambda: np.zeros((2,3)),
        lambda: torch.tensor(3), lambda: torch.tensor([]), lambda: torch.zeros(2,3), lambda: torch.zeros(2,1,8,8), lambda: Path('nowhere'), lambda: Path('.'),
        lambda: 'nowhere/at/all', lambda: Anything(), lambda: int, lambda: len, lambda: range(3), lambda: iter([1,2]), lambda: nn.Linear(2,2), lambda: nn.Identity(),
        lambda: slice(None), lambda: Fraction(1,2), lambda: np.datetime64('2020-01-01'), lambda: np.array(['a','b']), lambda: np.nan])()

def replaced(v, r):
    "Something else for a good value"
    try: return other(v, r)
    except (TypeError, ValueError, RuntimeError): return anything(r)   # a change that this value does not take

def other(v, r):
    if isinstance(v, (Tensor,np.ndarray)) and r.random()<.75: return odd_array(v, r)
    if isinstance(v, (int,float)) and not isinstance(v, bool) and r.random()<.6: return odd_number(v, r)
    if isinstance(v, (tuple,list)) and v and r.random()<.5:
        some = list(v)
        some[r.randrange(len(v))] = anything(r)
        return type(v)(some) if isinstance(v, (list,tuple)) and type(v) in (list,tuple) else some
    if isinstance(v, Path) and r.random()<.5: return r.choice([str(v), str(v).encode(), v/'nowhere', v.parent, f'{v}\n', [v], [str(v)], v.name])
    return anything(r)

# Calls

def needed(f):
    "Names of arguments that have no default"
    return {q.name for q in signature(f).parameters.values() if q.default is Parameter.empty} if f else set()

def of_the_library(name):
    "The public function of this name, or None"
    return next((getattr(m, name) for m in ROOMS if hasattr(m, name)), None)

class Call:
    "A function, what may be passed to it, and what must come of it"
    def __init__(self, f, args, weight, draws, changes, fixed):
        self.f = f              # calls the function, looks at the result
        self.args = args        # name → makes a good value
        self.weight = weight    # how often it is called, next to others
        self.draws = draws      # may it move the random state?
        self.changes = changes  # names of arguments that it changes in place
        self.fixed = fixed      # names of those that the library's function does not take
        self.needed = needed(f) | needed(of_the_library(f.__name__))

def call(weight=1., draws=False, changes=(), fixed=(), **args):
    "Register a function under its own name"
    def register(f):
        calls[f.__name__.rstrip('_')] = Call(f, args, weight, draws, changes, fixed)
        return f
    return register

def prepared(call, r):
    "Arguments by name, and the names of those that are odd"
    kw = {k: make(r) for k,make in call.args.items() if k in call.needed or r.random()<.5}
    n = min(len(kw), r.choices([0,1,2,3], [.15,.55,.2,.1])[0])
    odd = r.sample([k for k in sorted(kw) if k not in call.fixed], min(n, sum(k not in call.fixed for k in kw)))
    for k in odd: kw[k] = replaced(kw[k], r)
    return kw,sorted(odd)

def frozen(o):
    "All of `o`, as bytes to compare"
    if isinstance(o, nn.Module): return [o.training, {k: frozen(v) for k,v in o.state_dict().items()}]
    if isinstance(o, Tensor):
        if o.is_meta or o.is_sparse: return str(o.shape)
        return (str(o.dtype), tuple(o.shape), o.requires_grad, o.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes() if o.numel() else b'')
    if isinstance(o, np.ndarray): return (str(o.dtype), o.shape, repr(o.tolist()) if o.dtype==object else o.tobytes())
    if isinstance(o, (list,tuple)): return [type(o).__name__, *map(frozen, o)]
    if isinstance(o, dict): return {k: frozen(v) for k,v in o.items()}
    return repr(o) if isinstance(o, (int,float,str,bytes,type(None),Path)) else type(o).__name__

def states(): return random.getstate(),pickle.dumps(np.random.get_state()),torch.get_rng_state().numpy().tobytes()

PLAIN = (ValueError, TypeError, FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError, ImportError, NotImplementedError)
# What was passed, what is wrong with it; what to do, in a sentence of its own
GRAMMAR = re.compile(r'\S.{8,}[.?!:)] [A-Z`].{4,}[.)`]$', re.S)

def refusal(e):
    "'' for an error of this library's own, else what is wrong with it"
    message = str(e)
    if not isinstance(e, PLAIN) or isinstance(e, (UnicodeError, IndexError, KeyError)): return 'is of an inner class'
    frames = traceback.extract_tb(e.__traceback__)
    if 'self_supervised' not in frames[-1].filename: return f'comes from {Path(frames[-1].filename).name}'
    lines = [o for o in message.splitlines() if not o.startswith('Exception occured in')]
    if len(lines)!=1: return f'has {len(lines)} lines'
    if not GRAMMAR.match(lines[0].strip()): return 'says not what to do'
    return 'is too long' if len(lines[0])>700 else ''

forks = 0
def fork(true=os.fork):
    "In place of `os.fork`: a call that starts many processes would be the end of the machine"
    global forks
    forks += 1
    if forks>16: raise Wrong('starts processes without end')
    return true()

def alarm(*_): raise TimeoutError(f'the call takes over {SECONDS} s')

def short(o, n=70):
    "A value in a few words"
    if isinstance(o, (Tensor,np.ndarray)) and math.prod(o.shape)>4: text = f'{type(o).__name__}{tuple(o.shape)} {o.dtype}'
    elif isinstance(o, nn.Module): text = type(o).__name__
    else: text = ' '.join(repr(o).split())
    return text if len(text)<=n else text[:n-1]+'…'

def attempt(number, seed=0, only=None):
    "Make call `number`: its function, arguments in words, outcome ('right', 'refused' or 'fault'), and what was said"
    r = random.Random(f'{seed}:{number}')
    names = only or sorted(calls)
    name = r.choices(names, [calls[n].weight for n in names])[0]
    c = calls[name]
    for f in (random.seed, np.random.seed, torch.manual_seed): f(r.randrange(2**31))
    kw,odd = prepared(c, r)
    said = f"{name}({', '.join(f'{k}={short(v)}' for k,v in kw.items())})"
    before = {k: frozen(v) for k,v in kw.items() if k not in c.changes and not callable(getattr(v, '__next__', None))}
    state = states()
    global forks
    forks = 0
    signal.signal(signal.SIGALRM, alarm)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            c.f(**kw)
        outcome,why = 'right',''
    except Exception as e:
        why = refusal(e)
        outcome,why = ('fault', f'{type(e).__name__} {why}: {e}') if why else ('refused', str(e))
        if isinstance(e, Wrong): why = f'the result is against the law: {e}'
        if outcome=='refused' and not odd: outcome,why = 'fault',f'good arguments are refused: {why}'
    finally:
        signal.alarm(0)
        plt.close('all')
    changed = [k for k,v in before.items() if frozen(kw[k])!=v]
    if changed and outcome!='fault': outcome,why = 'fault',f"changes {', '.join(changed)}"
    if not c.draws and states()!=state and outcome!='fault': outcome,why = 'fault','moves the random state'
    return name,said,outcome,' '.join(why.split())[:400],len(odd)

# Laws

def as_t(x, dtype=torch.float64):
    "An array, tensor or list, read by NumPy in float64"
    if isinstance(x, Tensor): x = x.detach().double().numpy()
    elif isinstance(x, (list,tuple)) and x and isinstance(x[0], Tensor): x = [o.detach().double().numpy() for o in x]
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64)).to(dtype)
def near(a, b, tol=1e-3):
    a,b = as_t(a),as_t(b)
    must(a.shape==b.shape, f'shape {tuple(a.shape)} instead of {tuple(b.shape)}')
    both = a.isfinite() & b.isfinite()
    must(((a-b).abs()<=tol*(1+b.abs()))[both].all() and (a.isfinite()==b.isfinite()).all(), 'another value')
def is_share(a): must(isinstance(a, float) and 0<=a<=1, f'{a} is no share')
def is_finite(*ts): must(all(t.isfinite().all() for t in ts), 'not finite')
def hw(size):
    sides = [int(o) for o in size] if np.ndim(size) else [int(size)]
    return tuple(sides*2 if len(sides)==1 else sides)
def has_sides(v, size):
    "Has a view the size asked for? What is left of an iterator does not say"
    return hasattr(size, '__next__') or tuple(v.shape[-2:])==hw(size)
def views(aug, x):
    "Views to look at; fastai's transforms take the entries of a tuple one by one"
    v = aug(x)
    return [] if isinstance(x, tuple) else [v]
def unit(z): return as_t(z)/as_t(z).norm(dim=1, keepdim=True).clamp(min=1e-12)

# Features

@call(2, train_x=feats(), train_y=labels(), test_x=feats(10), k=ints(1,N), T=floats(.05,1), chunk=one_of(None, 3, 100))
def knn_predict(train_x, train_y, test_x, **kw):
    got = lib.knn_predict(train_x, train_y, test_x, **kw)
    y = as_t(train_y, torch.int64)
    must(got.shape==(len(test_x),) and set(got.tolist())<=set(y.tolist()), 'other labels')
    if kw.get('k')==1: must((y[(unit(test_x)@unit(train_x).T).argmax(1)]==got).all() or len(set(map(str, unit(train_x).tolist())))<len(train_x), 'not the nearest')

sets = dict(train_x=feats(), train_y=labels(), test_x=feats(10), test_y=labels(10))

@call(1, **sets, k=ints(1,N), T=floats(.05,1), chunk=one_of(None, 3))
def knn_accuracy(train_x, train_y, test_x, test_y, **kw):
    got = lib.knn_accuracy(train_x, train_y, test_x, test_y, **kw)
    preds = lib.knn_predict(train_x, train_y, test_x, **kw)
    near(got, (preds==as_t(test_y)).double().mean())

@call(.03, **sets, C=floats(.01,10))
def linear_accuracy(**kw): is_share(lib.linear_accuracy(**kw))

@call(.01, **sets, n=ints(1,10), draws=ints(1,2), method=one_of('linear','knn'), seed=seed)
def few_label_accuracy(n=5, draws=2, **kw):
    got = lib.few_label_accuracy(**kw, n=n, draws=draws)
    must(len(got.all)==draws and abs(got.mean-sum(got.all)/draws)<1e-6, 'not the mean')

@call(.01, feats=lambda r: {'a': (feats()(r), feats(10)(r)), 'b': (feats()(r), feats(10)(r))}, train_y=labels(), test_y=labels(10), n=ints(1,10), draws=ints(1,2), seed=seed)
def compare_features(draws=2, **kw): must(all(len(o.linear.all)==draws for o in lib.compare_features(**kw, draws=draws)))

@call(1, y=labels(), n=ints(1,10), draws=ints(1,4), seed=seed)
def label_draws(y, n=5, draws=10, seed=0):
    got = features.label_draws(y, n, draws, seed)
    y = as_t(y).numpy()
    must(len(got)==draws and all((np.unique(y[i.numpy()], return_counts=True)[1]==n).all() for i in got), 'not n of each class')

@call(1, z=feats())
def spread(z):
    got = features.spread(z)
    if as_t(z).abs().max()<1e15: near(got, unit(z).std(0).mean()*unit(z).shape[1]**.5)

@call(1, z=feats())
def mean_cosine(z):
    got,u = lib.mean_cosine(z),unit(z)
    if as_t(z).abs().max()<1e15: near(got, ((u@u.T).sum()-(u*u).sum())/(len(u)*(len(u)-1)))   # beyond, squares overflow in float32

@call(1, z=feats())
def effective_rank(z):
    got,z = lib.effective_rank(z),as_t(z)
    must(got.isnan() == (not z.isfinite().all()) or z.abs().max()>1e20, 'NaN for numbers, or a number for NaN')
    if got.isfinite(): must(0<=got<=min(len(z)-1, z.shape[1])+1e-3, f'{got} is no rank')

@call(.7, encoder=net, dl=pics(1), stats=one_of(None, 'recorded', (.5,.25), ([.5],[.25])), bs=one_of(1,3,256), device=one_of(None,'cpu'))
def embed(encoder, dl, stats='recorded', **kw):
    f,y = lib.embed(encoder, dl, stats=stats, **kw)
    must(y is None and f.dtype==torch.float32 and f.ndim==2, 'other types')
    if isinstance(dl, Tensor) and isinstance(encoder, nn.Sequential) and dl.dtype==torch.float32 and not hasattr(stats, '__next__'):
        mean,std = (0,1) if stats is None or isinstance(stats, str) else (as_t(o, torch.float32).view(-1)[0] for o in stats)
        with torch.no_grad(): near(f, copy.deepcopy(encoder).eval()((dl.detach()-mean)/std))

@call(.3, encoder=encoder, seed=seed)
def untrained(**kw): must(features.untrained(**kw) is not kw['encoder'])

@call(.3, fixed=['encoder'], encoder=net, x=pics(1))
def embed_labels(encoder, x):
    y = torch.arange(len(x) if hasattr(x, '__len__') and getattr(x, 'ndim', 1) else 3)
    must((lib.embed(encoder, (x, y))[1]==y).all())

# Moments and recipes

@call(1, changes=['target'], target=net, online=net, m=floats(0,1))
def ema_update(target, online, m=.996):
    was = [q.detach().clone() for q in target.parameters()] if isinstance(target, nn.Module) else []
    lib.ema_update(target, online, m)
    if isinstance(online, nn.Module):
        for a,b,q in zip(was, online.parameters(), target.parameters()): near(q, float(m)*a+(1-float(m))*b)

@call(1, fixed=['pct'], m=p, end=p, cycles=floats(.5,3), pct=p)
def cosine_momentum(pct, m=.996, end=1., cycles=1.):
    got = lib.cosine_momentum(m, end, cycles)(pct)
    m,end,cycles = float(m),float(end),float(cycles)
    must(abs(got-(end-(end-m)*(math.cos(math.pi*pct*cycles)+1)/2))<1e-6 and 0<=got<=1, f'{got}')

@call(1, m=p)
def constant_momentum(m): must(abs(lib.constant_momentum(m)(.3)-m)<1e-9)

@call(1, fixed=['pct'], lr=floats(1e-4,10), warmup_pct=floats(0,.5), pct=p)
def warmup_cosine(lr, pct, **kw): must(0<=recipes.warmup_cosine(lr, **kw)(pct)<=lr, 'above the peak')

@call(1, epochs=ints(1,1000), bs=ints(2,4096), opt=one_of('lars','sgd','adamw','simsiam'), n_items=one_of(None, 100, 50_000))
def byol_recipe(epochs, **kw):
    r = lib.byol_recipe(epochs, **kw)
    must(r.lr>0 and math.isfinite(r.lr) and r.epochs==epochs and 0<=r.warmup<=epochs and (r.m is None or 0<=r.m<=1), repr(r))

@call(.7, fixed=['x'], lr=floats(.01,1), mom=floats(0,.99), wd=floats(0,.1), eta=floats(1e-4,.1), x=pics(1))
def LARS(lr, x, **kw):
    n = net(random.Random(0))
    opt = lib.LARS([list(n.parameters())], lr, **kw)
    n(x.float()).sum().backward()
    opt.step()
    if torch.as_tensor(x).isfinite().all() and (not x.numel() or x.abs().max()<1e6): is_finite(*n.parameters())

@call(.7, lr=floats(.01,1), momentum=floats(0,.99), weight_decay=floats(0,.1), eta=floats(1e-4,.1))
def TorchLARS(lr, **kw):
    from self_supervised.lars import TorchLARS
    n = nn.Linear(3,2)
    opt = TorchLARS(n.parameters(), lr, **kw)
    n(torch.ones(2,3)).sum().backward()
    opt.step()
    is_finite(*n.parameters())
calls['TorchLARS'].draws = True

@call(.5, model=model)
def byol_splitter(model): must(sum(len(list(g)) for g in lib.byol_splitter(model))>0)

# Arrays and tables

@call(2, x=pics(1), y=one_of(None, torch.arange(BS), np.arange(BS), list(range(BS)), torch.tensor([.5]*BS)),
      splits=one_of(None, (range(3),[3]), (np.array([0,1]),np.array([2,3])), ([True,True,False,False],[False,False,True,True]), [torch.arange(2),torch.arange(2,4)]),
      bs=one_of(1,2), seed=one_of(0,1,np.int64(3)), device=one_of(None,'cpu',torch.device('cpu')), draws=True)
def tensor_dls(x, y=None, splits=None, bs=2, seed=0, device=None):
    dls = lib.tensor_dls(x, y, splits, bs, seed, device)
    got = [b for _ in range(2) for b in dls.train]
    must(len(got)>0 and len(got)==2*len(dls.train) and all(len(b[0])==bs for b in got), 'other batches')
    if splits is None and bs==1 and isinstance(x, Tensor) and x.dtype==torch.float32: near(torch.cat([b[0] for b in got[:len(x)]]).sum(), x.detach().sum(), 1e-3)

@call(1, idxs=one_of([0,1], np.array([2,-1]), torch.tensor([1]), [True,False,True], np.array([True,False,False]), range(3)), fixed=['name'], n=const(lambda: 3), name=const(lambda: 'idxs'))
def positions(idxs, n, name):
    got = arrays.positions(idxs, n, name)
    must(got.dtype==torch.long and all(0<=i<n for i in got.tolist()), 'out of range')
    if n==3 and name=='idxs' and not isinstance(idxs, (dict,set)) and not hasattr(idxs, '__next__'): must(np.arange(3)[np.asarray(list(idxs), dtype=np.asarray(list(idxs)).dtype if len(idxs) else int)].tolist()==got.tolist(), 'others')

@call(.1, size=one_of(None, 8, 16), mode=one_of('bicubic','nearest','bilinear'))
def digits(size=None, **kw):
    x,y,_ = lib.digits(size, **kw)
    must(x.shape==(1797,1,*(hw(size) if size is not None else (8,8))) and 0<=x.min() and x.max()<=1 and y.shape==(1797,), f'{tuple(x.shape)}')

@call(1, draws=True, x=feats(), n=ints(1,3), noise=floats(0,.5), dropout_p=p, swap_p=p, widths=one_of(None, [1]*NF, [3,1,1,1]))
def get_vector_aug_pipelines(x, **kw):
    for aug in lib.get_vector_aug_pipelines(**kw):
        v = aug(x)
        if not isinstance(x, Tensor): continue   # without operations it is handed on
        must(v.shape==x.shape, 'another shape')
        if x.isfinite().all() and x.is_floating_point() and (not x.numel() or x.abs().max()<1e6): is_finite(v)

def table(r):
    import pandas as pd
    g = np.random.default_rng(r.randrange(100))
    df = pd.DataFrame(dict(a=list('xyz')*4, b=g.normal(size=12), y=[0,1]*6))
    return TabularPandas(df, [Categorify, Normalize], ['a'], ['b'], 'y', splits=(list(range(8)),list(range(8,12))))

@call(.02, draws=True, to=table, bs=one_of(1,2,8), seed=seed, device=one_of(None,'cpu'))
def table_dls(to, bs=2, **kw): must(next(iter(lib.table_dls(to, bs, **kw).train))[0].ndim==2)

# Views

@call(1, draws=True, x=pics(3), size=size, rotate=flag, jitter=flag, bw=flag, blur=flag, solarize=flag, resize_scale=one_of((.08,1.), (.5,.5), [.2,.9]),
      resize_ratio=one_of(None, (.5,2.)), rotate_deg=floats(0,180), jitter_s=floats(0,1), jitter_p=p, bw_p=p, blur_p=p, solarize_p=p, flip_p=p,
      stats=one_of(None, (.5,.25), ([.5]*3,[.25]*3)))
def get_batch_augs(x, size, **kw):
    for v in views(lib.get_batch_augs(size, **kw), x):
        must(v.shape[:2]==x.shape[:2] and has_sides(v, size), f'views {tuple(v.shape)}')
        if torch.as_tensor(x).isfinite().all() and (not x.numel() or x.abs().max()<1e6): is_finite(v)

@call(.7, draws=True, x=pics(3), size=size, blur_p=one_of((1.,.1), .5), solarize_p=one_of((0.,.2), 0), jitter=flag, stats=one_of(None, (.5,.25)))
def get_byol_aug_pipelines(x, size, **kw):
    for aug in lib.get_byol_aug_pipelines(size, **kw): must(all(has_sides(v, size) for v in views(aug, x)))

@call(.5, draws=True, x=pics(3), n=ints(1,3), size=size, flip_p=one_of(.5, 0, 1))
def get_multi_aug_pipelines(x, n, size, **kw):
    got = lib.get_multi_aug_pipelines(n, size, **kw)
    must(len(got)==n and all(has_sides(v, size) for aug in got for v in views(aug, x)))

@call(.5, x=pics(3), factor=lambda r: torch.rand(BS))
def adjust_contrast(**kw): must(image_ops.adjust_contrast(**kw).shape==as_t(kw['x']).shape)
@call(.5, x=pics(3), factor=lambda r: torch.rand(BS))
def adjust_saturation(**kw): must(image_ops.adjust_saturation(**kw).shape==as_t(kw['x']).shape)
@call(.5, x=pics(3), turns=lambda r: torch.rand(BS))
def adjust_hue(**kw): must(image_ops.adjust_hue(**kw).shape==as_t(kw['x']).shape)
@call(.5, size=size)
def blur_kernel(size): must(image_ops.blur_kernel(size)%2==1)
@call(.7, x=picture)
def to_picture(x): must(image_ops.to_picture(x).ndim in (1,2,3))
@call(.5, draws=True, x=pics(3), brightness=floats(0,.5), contrast=floats(0,.5), saturation=floats(0,.5), hue=floats(0,.5), same_on_batch=flag)
def ColorJitter(x, **kw): must(augmentations.ColorJitter(**kw)(x).shape==x.shape)
@call(.5, x=pics(3), mean=one_of(.5, [.5]*3, torch.tensor([.5]*3)), std=one_of(.25, [.25]*3))
def NormalizeViews(x, mean, std):
    for v in views(lambda x: augmentations.NormalizeViews(mean, std)(x, split_idx=0), x): must(v.shape==x.shape)
@call(.7, draws=True, x=pics(3), size=size, scale=one_of((.08,1.), (.5,1)), ratio=one_of(None, (.75,1.33)), same_on_batch=flag, clip=flag)
def BicubicCrop(x, size, **kw):
    v = augmentations.BicubicCrop(size, **kw)(x)
    must(v.shape[:2]==x.shape[:2] and has_sides(v, size))
@call(.5, draws=True, x=lambda r: torch.rand(2,3,6,8,8), n=ints(1,3), stride=ints(1,2), same_on_batch=flag)
def RandomFrames(x, n, **kw):
    for v in views(lambda x: augmentations.RandomFrames(n, **kw)(x, split_idx=0), x): must(v.shape[2]==n)

# Networks

@call(.1, draws=True, arch=one_of('tiny_resnet'), pretrained=const(lambda: False), n_in=ints(1,4), pool_type=one_of('catavgmax','avg','max',None), size=one_of(None,8,(8,9)), widths=one_of((4,8), [4]), norm=one_of(None,'group'))
def create_encoder(arch, n_in=3, **kw):
    e = lib.create_encoder(arch, n_in=n_in, **{'widths': (4,8), 'pretrained': False, **kw})
    f = e(torch.rand(2, n_in, 8, 8))
    must(f.ndim==2 or kw.get('pool_type', 1) in (None, False), f'features {tuple(f.shape)}')
    if f.ndim==2: must(layers.num_features(e)==f.shape[1], 'another number of features')

@call(.4, draws=True, n_in=ints(1,4), widths=one_of((4,8), [4]), pool_type=one_of('avg','max','catavgmax',None))
def tiny_resnet(n_in=3, widths=(4,), **kw): is_finite(layers.tiny_resnet(n_in, widths, **kw)(torch.rand(2,n_in,8,8)))

@call(.7, draws=True, dim=ints(1,8), hidden_size=one_of(4, [4,5]), projection_size=ints(1,8), bn=flag, nlayers=one_of(2), norm=one_of(None,'batch','layer'), norm_out=flag, bias_out=flag)
def create_mlp_module(dim, hidden_size, projection_size, **kw):
    if isinstance(hidden_size, list): kw.pop('nlayers', None)
    must(lib.create_mlp_module(dim, hidden_size, projection_size, **kw)(torch.rand(3,dim)).shape==(3,projection_size))

@call(.7, draws=True, n_in=ints(1,8), n_out=ints(1,8), hidden_size=one_of(4, [4,5]), norm=one_of('layer','batch',None))
def create_mlp_encoder(n_in, n_out=256, **kw): must(lib.create_mlp_encoder(n_in, n_out, **kw)(torch.rand(3,n_in)).shape==(3,n_out))

@call(.7, draws=True, nf=ints(1,8), n_out=ints(1,8), lin_ftrs=one_of(None, [4], [4,3]), ps=floats(0,.9), use_bn=flag)
def create_cls_module(nf, n_out, **kw): must(lib.create_cls_module(nf, n_out, **kw)(torch.rand(3,nf)).shape==(3,n_out))

@call(.5, encoder=net)
def input_channels(encoder): must(layers.input_channels(encoder)==1 or not isinstance(encoder, nn.Sequential))
@call(.5, encoder=net)
def input_dims(encoder): must(layers.input_dims(encoder)==2 or not isinstance(encoder, nn.Sequential))
@call(.5, encoder=net, n_in=one_of(None,1), size=one_of(None,8,(8,9)))
def num_features(**kw): must(layers.num_features(**kw)==4 or not isinstance(kw['encoder'], nn.Sequential))

@call(.5, draws=True, changes=['net'], net=colour_net, n_in=ints(1,6))
def adapt_input(net, n_in):
    got = lib.adapt_input(net, n_in)
    if isinstance(got, nn.Sequential): is_finite(got.eval()(torch.rand(2,n_in,8,8)))
@call(.5, draws=True, changes=['model'], model=net, groups=one_of(None,1,2,4), standardize=flag)
def to_group_norm(**kw): must(not any(isinstance(m, nn.BatchNorm2d) for m in lib.to_group_norm(**kw).modules()))
@call(.3, draws=True, changes=['model'], model=net)
def bake_weights(model): surgery.bake_weights(model)
@call(.3, draws=True, changes=['encoder'], encoder=encoder, on=flag)
def checkpoint_activations(**kw): lib.checkpoint_activations(**kw)
@call(.5, changes=['net'], net=encoder, layer=one_of(0, -1, '0'), pool=one_of(None,'avg','max'))
def LayerEncoder(net, layer, **kw): must(lib.LayerEncoder(net, layer, **kw)(torch.rand(2,1,8,8)).ndim>=2)
calls['LayerEncoder'].draws = True
@call(.4, draws=True, changes=['encoder'], encoder=net, pool=one_of('mean','max'))
def ClipEncoder(encoder, **kw):
    e = lib.ClipEncoder(encoder, **kw)
    if isinstance(encoder, nn.Sequential): must(e(torch.rand(2,1,3,8,8)).shape==(2,4))
@call(.4, draws=True, fixed=['x'], pool_type=one_of('avg','max','catavgmax'), x=pics(3))
def PoolFlat(pool_type, x): must(layers.PoolFlat(pool_type)(x).shape==(len(x),x.shape[1]*(2 if pool_type=='catavgmax' else 1)))

# BYOL

z4 = feats(4,5)
@call(1, pred=z4, targ=z4, pred2=z4, targ2=z4, reduction=one_of('mean','none','sum'))
def byol_loss(pred, targ, pred2, targ2, reduction='mean'):
    got = lib.byol_loss((pred,pred2), targ, targ2, reduction=reduction)
    each = sum((unit(a)-unit(b)).square().sum(1) for a,b in ((pred,targ),(pred2,targ2)))
    if all(isinstance(o, Tensor) and o.dtype==torch.float32 and o.isfinite().all() and o.abs().max()<1e15 for o in (pred,pred2,targ,targ2)) and all(as_t(o).norm(dim=1).min()>1e-3 for o in (pred,pred2,targ,targ2)): near(got, dict(mean=each.mean(), none=each, sum=each.sum())[reduction])

heads = dict(encoder=net, hidden_size=one_of(8,16), projection_size=one_of(4,8), nlayers=one_of(2,3), n_in=one_of(None,1), size=one_of(None,8))
def two_views(encoder):
    "Of what the encoder takes: vectors for a linear layer, else pictures"
    x = torch.rand(4,encoder.in_features) if isinstance(encoder, nn.Linear) else torch.rand(4,1,8,8)
    return x,x
@call(.1, draws=True, changes=['encoder'], **heads, bn=flag, predictor_size=one_of(None,8), use_momentum=flag)
def create_byol_model(**kw):
    m = lib.create_byol_model(**{'hidden_size': 8, 'projection_size': 4, **kw})
    is_finite(m.loss(*two_views(kw['encoder'])))
@call(.1, draws=True, changes=['encoder'], **heads, predictor_size=one_of(4,8), norm=one_of('batch','layer'))
def create_simsiam_model(**kw):
    m = lib.create_simsiam_model(**{'hidden_size': 8, 'projection_size': 4, 'predictor_size': 4, **kw})
    is_finite(m.loss(*two_views(kw['encoder'])))
@call(.1, draws=True, changes=['model'], fixed=['model','v1','v2'], model=model, v1=pics(1), v2=pics(1))
def BYOLModel_loss(model, v1, v2): is_finite(model.loss(v1, v2)) if all(torch.as_tensor(v).isfinite().all() for v in (v1,v2)) else model.loss(v1, v2)
@call(.04, draws=True, changes=['model'], model=model, x=pics(1), m=one_of(None,.9,.99), aug_pipelines=lambda r: lib.get_byol_aug_pipelines(8, jitter=False, bw=False, blur=False, solarize=False, stats=None))
def byol_learner(model, x, aug_pipelines, **kw):
    learn = lib.byol_learner(lib.tensor_dls(x, bs=2, seed=0, device='cpu'), model, aug_pipelines, **kw)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    must(len(learn.recorder.losses)==len(x)//2 or not torch.as_tensor(x).isfinite().all() or torch.as_tensor(x).abs().max()>1e4, 'other steps')
@call(.5, aug_pipelines=lambda r: lib.get_byol_aug_pipelines(8), m=one_of(None,.9, 0, 1), print_augs=const(lambda: False), seed=seed, health=flag)
def BYOL(**kw): lib.BYOL(**kw)
@call(.5, n=ints(1,20))
def Guard(**kw): lib.Guard(**kw)
@call(.5, columns=one_of(('spread',), ('spread','rank')), stop=flag, n=ints(2,100))
def Health(**kw): lib.Health(**kw)
@call(.5, train=one_of(None), test=one_of(None), methods=one_of(('knn',), ('knn','linear')), every=ints(1,5), n=ints(5,100), stats=one_of('recorded',None,(.5,.25)), k=one_of(None,5), T=floats(.01,1), seed=seed)
def Probe(**kw): lib.Probe(**kw)

# Files

here = None   # a folder of this process: pictures, an encoder, a run
def in_here(*names): return lambda r: Path(r.choice(names))
def fresh(r): return Path('new')/f'{r.randrange(10**9)}'

def prepare(folder):
    "Write what calls read"
    global here
    here = Path(folder)
    for i in range(6):
        f = here/'pics'/'ab'[i%2]/f'{i}.png'
        f.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((lib.digits()[0][i,0]*255).byte().numpy()).save(f)
    (here/'pics'/'a'/'note.txt').write_text('no picture')
    (here/'empty').mkdir()
    (here/'pics'/'a'/'bad.png').write_bytes(b'bad')
    lib.save_encoder(encoder(random.Random(0)), here/'encoder.safetensors', stats=([.5],[.25]), size=8)

@call(.5, path=in_here('new'), every=one_of(None,1,5), minutes=one_of(None,0,5,.5), keep=ints(1,4), monitor=one_of(None,'valid_loss'), resume=flag)
def Checkpoint(**kw): lib.Checkpoint(**kw)
@call(.3, path=in_here('pics','empty'))
def checkpoint_files(path): must(list(checkpoint.checkpoint_files(path))==[])
@call(.3, path=in_here('pics','empty'), device=one_of('cpu'))
def newest_checkpoint(**kw): must(not checkpoint.newest_checkpoint(**kw))
@call(.5, path=in_here('pics','pics/a'), suffixes=one_of(None, ['.png'], ('png',)))
def picture_files(path, **kw): must(len(sources.picture_files(path, **kw)) in (4,7), 'another number')
@call(.5, source=one_of(None), label=one_of(None))
def picture_items(source, **kw): sources.picture_items(source if source is not None else Path('pics'), **kw)
@call(1, f=in_here('pics/a/0.png','pics/b/1.png'), n_in=one_of(1,3), size=one_of(None, 8, (9,7), [4,5]), ground=one_of('white','black','#ff0000',(1,2,3)), full_scale=one_of(None, 255), max_pixels=one_of(None, 10**6))
def open_picture(f, n_in=3, size=None, **kw):
    x = reading.open_picture(f, n_in, size, **kw)
    must(x.dtype==torch.float32 and x.shape==(n_in, *(hw(size) if size is not None else x.shape[1:])) and 0<=x.min() and x.max()<=1, f'{tuple(x.shape)} {x.dtype}')
@call(.05, source=in_here('pics'), size=one_of(None,8,(8,9)), n_in=one_of(1,3), workers=one_of(0), progress=const(lambda: False))
def check_pictures(source, **kw):
    bad = lib.check_pictures(source, **{'workers': 0, **kw})
    if isinstance(source, Path) and source==Path('pics'): must([Path(f).name for f in bad]==['bad.png'], list(bad))
@call(.05, draws=True, source=in_here('pics/b','pics'), size=one_of(8,(8,9)), n_in=one_of(1,3), valid=one_of(0., .3, .5), bs=one_of(1,2), workers=one_of(0), seed=seed, max_bad=one_of(.5, 1.), square=one_of('random','middle'))
def image_dls(source, size=8, n_in=3, bs=2, **kw):
    dls = lib.image_dls(source, size, n_in, bs=bs, **{'workers': 0, 'device': 'cpu', 'max_bad': .5, **kw})
    must(next(iter(dls.train))[0].shape[:2]==(bs,n_in))
@call(.3, encoder=encoder, path=fresh, stats=stats, size=one_of(8, (8,9)))
def save_encoder(encoder, path, **kw):
    f = lib.save_encoder(encoder, path, **kw)
    got = lib.load_encoder(f)
    must(all(torch.equal(v, got.state_dict()[k]) for k,v in encoder.state_dict().items()), 'other weights')
calls['save_encoder'].draws = True
@call(.3, draws=True, path=in_here('encoder.safetensors'), device=one_of(None,'cpu'))
def load_encoder(**kw): is_finite(lib.load_encoder(**kw)(torch.rand(2,1,8,8)))
@call(.5, path=in_here('encoder.safetensors'))
def encoder_info(path): must('spec' in lib.encoder_info(path))
@call(.1, draws=True, encoder=net, n_out=ints(1,5), stats=one_of(None,([.5],[.25])), lin_ftrs=one_of(None,[4]), ps=floats(0,.5), use_bn=flag)
def classifier(encoder, n_out, stats=None, **kw):
    c = finetune.classifier(encoder, n_out, stats, **kw)
    if isinstance(encoder, nn.Sequential): must(c(torch.rand(3,1,8,8)).shape==(3,n_out))
@call(.5, fixed=['x','n_in'], stats=stats, n_in=one_of(1), x=pics(1))
def NormalizeInput(stats, n_in, x): must(finetune.NormalizeInput(stats, n_in)(x).shape==x.shape)
@call(.3, names=one_of(list('abc')), feats=feats(3), out=lambda r: fresh(r).with_suffix(r.choice(['.npz','.npz'])))
def write_features(**kw): must(Path(cli_embed.write_features(**kw)).exists())

# Protocols

@call(.5, y=labels(), part=floats(.1,.6), seed=seed)
def draw_part(y, **kw):
    a,b = protocols.draw_part(y, **kw)
    must(sorted([*a.tolist(),*b.tolist()])==list(range(len(y))), 'not each once')
@call(.05, **sets)
def knn_protocol(**kw): must(all(0<=v<=1 for v in protocols.knn_protocol(**kw).values()))
@call(.005, **sets, seeds=one_of((0,), [0,1]), Cs=one_of((.1,1.)), part=floats(.1,.4))
def linear_probe(**kw): is_share(float(protocols.linear_probe(**{'seeds': (0,), 'Cs': (.1,1.), **kw}).accuracy.mean))
@call(.005, draws=True, encoder=net, x=pics(1), y=lambda r: torch.arange(BS)%2, lrs=one_of((.1,), [.1,1.]), epochs=one_of(1,2), bs=one_of(2,1024), seed=seed, stats=one_of('recorded',None))
def linear_bank(**kw): protocols.linear_bank(**{'epochs': 1, **kw})

# Plots

@call(.005, feats=feats(6), labels=one_of(None, list('aabbcc'), [0,0,1,1,2,2]), images=one_of(None), s=floats(1,20), method=one_of('pca'))
def plot_embedding(**kw): must(lib.plot_embedding(**kw) is not None)
@call(.005, feats=feats(4), images=pics(1), idxs=one_of([0,1], torch.tensor([2])), k=ints(1,3), labels=one_of(None,[0,0,1,1]))
def plot_neighbors(k=3, **kw): lib.plot_neighbors(k=k, **kw)
@call(.005, x=pics(1), views=lambda r: [pics(1)(r), pics(1)(r)], titles=one_of(None, ['x','v1','v2']))
def show_views(**kw): lib.show_views(**kw)
@call(.005, draws=True, fixed=['augs'], x=pics(3), augs=lambda r: lib.get_byol_aug_pipelines(8, blur=False))
def plot_draws(**kw): lib.plot_draws(**kw)
@call(.3, fixed=['on'], on=flag)
def keep_memory(on=True): cpu_memory.keep_memory(on); cpu_memory.keep_memory(False)
@call(.3, draws=True, seed=seed)
def seed_everything(seed): lib.seed_everything(seed)

def table_of(rows):
    "By function: calls, right, refused, faults, and of the faults the ones with the fewest odd arguments"
    res = {}
    for number,name,said,outcome,why,n_odd in rows:
        row = res.setdefault(name, dict(calls=0, right=0, refused=0, fault=0, smallest={}))
        row['calls'] += 1
        row[outcome] += 1
        if outcome!='fault': continue
        kind = re.sub(r"[\d.]+|'[^']*'", '·', why)[:60]
        if kind not in row['smallest'] or (n_odd,len(said))<row['smallest'][kind][:2]: row['smallest'][kind] = (n_odd, len(said), number, said, why)
    for row in res.values(): row['smallest'] = [dict(call=o[2], said=o[3], why=o[4]) for o in sorted(row['smallest'].values())]
    return dict(sorted(res.items()))

def run(n, seed=0, first=0, only=None, every=5000, note=lambda rows: None):
    "Rows of `n` calls from number `first` on; `note` is called with those so far after each `every`"
    rows = []
    os.fork,true = fork,os.fork
    with tempfile.TemporaryDirectory() as d:
        prepare(d)
        was = os.getcwd()
        os.chdir(d)   # paths that are drawn are relative to it
        try:
            for i in range(first, first+n):
                rows.append((i, *attempt(i, seed, only)))
                if len(rows)%every==0: note(rows)
        finally:
            os.chdir(was)
            os.fork = true
    return rows

def summary(rows, **facts):
    "What goes into the JSON"
    by_name = table_of(rows)
    return facts|dict(calls=len(rows), **{k: sum(r[3]==k for r in rows) for k in ('right','refused','fault')}, functions=len(by_name), by_function=by_name)

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--n', type=int, default=100_000)
    p.add_argument('--first', type=int, default=0)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--only', nargs='*', help='functions')
    p.add_argument('--call', type=int, help='make this call alone')
    p.add_argument('--out', help='JSON file to write, also while it runs')
    a = p.parse_args()
    if a.call is not None: a.first,a.n = a.call,1
    start,facts = time.time(),dict(machine=machine(), command='python benchmarks/random_calls.py '+' '.join(sys.argv[1:]), seed=a.seed)
    out = None if a.out is None else Path(a.out).resolve()
    def note(rows):
        res = summary(rows, **facts, seconds=round(time.time()-start))
        if out: out.write_text(json.dumps(res, indent=1, ensure_ascii=False)+'\n')
        return res
    res = note(run(a.n, a.seed, a.first, a.only, note=note))
    for name,row in res['by_function'].items():
        print(f"{name:28}{row['calls']:7}{row['right']:7}{row['refused']:7}{row['fault']:7}")
        for o in row['smallest'][:8]: print(f"      {o['call']}: {o['said'][:230]}\n          {o['why'][:260]}")
    print({k: res.get(k, 0) for k in ('calls','right','refused','fault')}, res['seconds'], 's')
    if res.get('fault'): sys.exit('there are faults')

if __name__ == '__main__': main()
