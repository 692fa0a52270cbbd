"""The step on an accelerator, rehearsed on a device that is none (`benchmarks/pretend.py`): it never waits, takes few launches and mixes no devices,
and what the guard promises holds there as on a CPU. `ACCELERATOR=cuda pytest tests/accelerator.py` asks a real one."""
import os, subprocess, sys, warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np, pytest, torch
from fastai.vision.all import Callback, CancelStepException, DataLoader, DataLoaders, GradientAccumulation, GradientClip
from torch import nn

from self_supervised.adamw import FusedAdamW
from self_supervised.callback.checkpoint import Checkpoint
from self_supervised.callback.guard import Guard, KeptBuffers
from self_supervised.callback.late import Late
from self_supervised.callback.probe import Probe
from self_supervised.callback.state import get_state
from self_supervised.data.demo import digits
from self_supervised.ema import ema_update
from self_supervised.lars import TorchLARS
from self_supervised.recipes import opt_funcs
from self_supervised.vision.byol import byol_learner, create_byol_model
from test_hazards import INF, NAN, Bad, Watch, conv_net, quiet, same, state

sys.path.insert(0, str(Path(__file__).parents[1]/'benchmarks'))
from launches import Stop, part_of
import pretend
from pretend import OnDevice, Pretend, register

NAME = os.environ.get('ACCELERATOR', pretend.NAME)
REAL = NAME!=pretend.NAME
if REAL:
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
else: register()   # torch's autograd knows the devices that were there at its first backward pass
counted = pytest.mark.skipif(REAL, reason='a real device counts nothing')
real = pytest.mark.skipif(not REAL, reason='needs ACCELERATOR=cuda')

def moved(net): return net.to(NAME) if REAL else pretend.moved(net)

class Views:
    "Two views without randomness, which may spoil the `i`-th batch that they see"
    def __init__(self, i=None): self.i,self.seen = i,0
    def __call__(self, x):
        self.seen += 1
        return x*.9 + .05*torch.linspace(0, 1, x.shape[-1], device=x.device) + (NAN if self.seen-1==self.i else 0)

def make(where, opt='lars', cbs=(), x=None, views=None, m=.9, n_batches=3, bs=16):
    "A learner on digits, on the CPU or on the device; its batches come in order"
    x = digits()[0][:n_batches*bs] if x is None else x
    dls = DataLoaders(DataLoader([(o,) for o in x], bs=bs, device=torch.device(where)), device=torch.device(where))
    torch.manual_seed(1)
    model = create_byol_model(conv_net(), hidden_size=16, projection_size=8)
    if where==NAME: model = moved(model)
    learn = byol_learner(dls, model, [views or Views(), lambda x: x], m=m, opt_func=opt_funcs[opt], lr=.1 if opt!='adamw' else 1e-3, cbs=list(cbs))
    if hasattr(learn, 'progress'): learn.remove_cb(learn.progress)
    learn.logger = lambda *_: None
    return learn

def place(where): return Pretend(part_of) if where==NAME and not REAL else nullcontext()

def on_host(v): return v.host if isinstance(v, OnDevice) else v.detach().cpu()

def host(states): return {k: on_host(v).clone() for k,v in states.items()}

both = pytest.mark.parametrize('where', ['cpu', NAME])
each_opt = pytest.mark.parametrize('opt', ['lars', 'sgd', 'adamw'])

# The budget

@counted
@pytest.mark.parametrize('also', ['nothing', 'bf16', 'clip', 'probe'])
@each_opt
def test_a_step_never_waits(opt, also):
    "No wait, no mixed devices, and at most 200 launches beside networks and views"
    x,y,_ = digits()
    cbs = dict(clip=[GradientClip()], probe=[Probe((x[:20],y[:20]), n=10)]).get(also, [])
    with Pretend(part_of) as device:
        learn = make(NAME, opt, cbs=[*cbs, Stop(device, 3)], n_batches=8)
        if also=='bf16': learn.to_bf16()
        quiet(learn.fit, 1)
    assert learn.guard.later and not device.waits and not device.mixed
    launches = device.by_part(device.launches)
    assert 20 < sum(n for k,n in launches.items() if k not in ('networks','views','backward')) < 200
    assert launches['networks'] > 20 and launches['backward'] > 20 and launches['views'] > 0

class NoWaits(Callback):
    "From the fourth step to the seventh a wait is an error"
    order = 2000
    def after_batch(self):
        if self.train_iter in (3,6): torch.cuda.set_sync_debug_mode('error' if self.train_iter==3 else 'default')

@real
@pytest.mark.parametrize('also', ['nothing', 'bf16', 'accumulated'])
@each_opt
def test_a_real_step_never_waits(opt, also):
    "Its batches lie on the device: fastai waits when it sends one there"
    learn = make(NAME, opt, x=digits()[0][:128].to(NAME), cbs=[NoWaits(), *([GradientAccumulation(32)] if also=='accumulated' else [])], n_batches=8)
    if also=='bf16': learn.to_bf16()
    try: quiet(learn.fit, 1)
    finally: torch.cuda.set_sync_debug_mode('default')
    assert learn.guard.later

class Recorded(Callback):
    "Were the passes recorded, and how often?"
    order = 2000
    def __init__(self): self.able,self.n = [],()
    def after_batch(self):
        passes = self.graphed_passes.passes
        self.able.append(passes.able)
        self.n = len(passes.online),len(passes.targets)

@real
@pytest.mark.parametrize('also', ['nothing', 'bf16', 'accumulated'])
@each_opt
def test_real_graphs_train_as_launches_do(opt, also):
    "Weights, statistics, what is left out, and what health has heard; added gradients are computed by launches"
    def run(graphs):
        cbs = [Bad([4], 'loss'), *([GradientAccumulation(32)] if also=='accumulated' else [])]
        learn = make(NAME, opt, cbs=cbs, n_batches=8).to_fast(bf16=also=='bf16', graphs=graphs)
        if graphs: learn.add_cb(seen := Recorded())
        first = host(state(learn.model))
        # At a small rate: at others the rounding of bfloat16 alone leads elsewhere within 16 steps
        quiet(learn.fit, 2, **(dict(lr=1e-3) if also=='bf16' else {}))
        if graphs: assert seen.able==[True]*16 and seen.n==(1,1)
        assert 'forward' not in vars(learn.model)
        return learn,first,host(state(learn.model))
    (a,first,sa),(b,_,sb) = run(False),run(True)
    noise = ('.0.bias','running_mean') if opt=='adamw' else ()
    keys = [k for k in sa if not k.endswith(noise)]
    if also=='bf16':
        weights = [k for k in keys if not k.endswith(('.0.bias','running_mean','running_var','num_batches_tracked'))]
        was,one,other = (torch.cat([s[k].float().flatten() for k in weights]) for s in (first, sa, sb))
        assert torch.cosine_similarity(one-was, other-was, dim=0)>.98
    else: assert all(torch.allclose(sa[k].float(), sb[k].float(), atol=1e-3) for k in keys)
    assert a.guard.skipped==b.guard.skipped and a.health.rows[-1]['spread']==pytest.approx(b.health.rows[-1]['spread'], abs=1e-2)

class Asks(nn.Module):
    "Dropout, and a question to the device, which no graph can hold"
    def __init__(self, net): super().__init__(); self.net,self.drop = net,nn.Dropout(.1)
    def forward(self, x): return self.drop(self.net(x))*float(x.mean()>-9)

@real
def test_real_passes_that_cannot_be_recorded_are_launched():
    "With the same weights as without graphs, and random numbers go on"
    def run(graphs):
        dls = DataLoaders(DataLoader([(o,) for o in digits()[0][:64]], bs=16, device=torch.device(NAME)), device=torch.device(NAME))
        torch.manual_seed(1)
        model = moved(create_byol_model(Asks(conv_net()), hidden_size=16, projection_size=8, n_in=1, size=8))
        learn = byol_learner(dls, model, [Views(), lambda x: x], m=.9, lr=.1).to_fast(bf16=False, graphs=graphs)
        quiet(learn.fit, 2)
        return host(state(learn.model))
    a,b = run(False),run(True)
    assert all(torch.allclose(a[k].float(), b[k].float(), atol=1e-3) for k in a)

@real
@pytest.mark.parametrize('graphs', [False,True])
def test_a_real_run_goes_on(graphs, tmp_path):
    "Killed and resumed on the device, it ends as if it had not been"
    class Kill(Callback):
        order = 2000
        def after_batch(self):
            if self.train_iter==4: raise KeyboardInterrupt
    def run(folder, *cbs):
        learn = make(NAME, cbs=cbs).to_fast(bf16=False, graphs=graphs)
        quiet(learn.fit, 3, cbs=Checkpoint(tmp_path/folder, every=2))
        return host(state(learn.model)),learn.recorder.losses
    a,la = run('whole')
    with pytest.raises(KeyboardInterrupt): run('cut', Kill())
    b,lb = run('cut')
    assert all(torch.allclose(a[k].float(), b[k].float(), atol=1e-6) for k in a) and len(la)==len(lb)

@counted
def test_a_wait_and_a_mix_are_seen():
    "The rehearsal itself: what it must not overlook"
    with Pretend(part_of) as device:
        x = torch.rand(4,2).to(NAME)
        for f in (lambda: x.sum().item(), lambda: bool((x>0).all()), lambda: x[x>.5], lambda: x.cpu(), lambda: x.nonzero()):
            device.waits.clear(); f()
            assert device.waits
        device.waits.clear()
        late = x.to('cpu', non_blocking=True)
        assert late.isnan().all() and not device.waits       # what is read too early is garbage
        torch.pretend.synchronize()
        assert torch.equal(late, x.cpu()) and not device.mixed
        x + torch.rand(4,2)
    assert device.mixed

def test_a_step_that_others_cancel():
    "It does not move the target"
    def run(where):
        with place(where):
            learn = make(where, cbs=[Cancel(), Bad([1], 'loss')], n_batches=6)
            quiet(learn.fit, 1)
            return host(state(learn.model)),learn.guard.skipped
    (a,na),(b,nb) = run('cpu'),run(NAME)
    assert na==nb==[(0,1,'loss')] and all(torch.allclose(a[k].float(), b[k].float(), atol=1e-5) for k in a)

class Cancel(Callback):
    order = 99
    def before_step(self):
        if self.train_iter%2: raise CancelStepException()

# Accumulated gradients

@counted
@pytest.mark.parametrize('at', [4, 5])
@each_opt
def test_a_step_over_several_batches_never_waits(opt, at):
    "Neither where a batch is added nor where the step is taken; where no batch is bad, all is as on a CPU, to rounding"
    def run(where, cbs=()):
        with place(where) as device:
            learn = make(where, opt, cbs=[GradientAccumulation(32), *cbs, *([Stop(device, at)] if device and at else [])], n_batches=8)
            quiet(learn.fit, 1)
            return host(state(learn.model)),learn,device
    _,learn,device = run(NAME)
    launches = device.by_part(device.launches)
    assert learn.guard.later and not device.waits and not device.mixed
    assert sum(n for k,n in launches.items() if k not in ('networks','views','backward')) < 200
    at = 0
    (a,la,_),(b,lb,_) = run('cpu'),run(NAME)
    noise = ('.0.bias','running_mean') if opt=='adamw' else ()   # as in `test_the_same_training_as_on_a_cpu`
    assert all(k.endswith(noise) or torch.allclose(a[k].float(), b[k].float(), atol=1e-4) for k in a)
    assert la.byol.momenta==lb.byol.momenta and len(la.byol.momenta)==4
    assert torch.allclose(torch.stack(la.recorder.losses), torch.stack(lb.recorder.losses), atol=1e-5)

class Steps(GradientAccumulation):
    "A step after so many pictures, another number for each batch"
    def __init__(self, ns): self.ns = ns
    def before_batch(self): self.n_acc = self.ns[self.train_iter]

@each_opt
@pytest.mark.parametrize('how', ['inputs', 'loss', 'views'])
@pytest.mark.parametrize('bad', [[0], [1], [2,3]])
def test_a_step_is_the_mean_over_its_good_batches(bad, how, opt):
    "As on a CPU, if the bad ones had not been there; and no step where none is good"
    if how=='views' and len(bad)>1: return
    x = digits()[0][:96]
    def run(where):
        good = [b for i,b in enumerate(x.split(16)) if where==NAME or i not in bad]
        ns = [32]*6 if where==NAME else [16 if i//2 in {o//2 for o in bad} else 32 for i in range(6) if i not in bad]
        with place(where):
            views = Views(bad[0] if where==NAME and how=='views' else None)
            learn = make(where, opt, x=torch.cat(good), m=lambda pct: .5, views=views, cbs=[Steps(ns), *([Bad(bad, how)] if where==NAME and how!='views' else [])])
            quiet(learn.fit, 1)
            moments = {f'{i}{k}': v.clone() for i,s in enumerate(learn.opt.opt.state.values()) for k,v in s.items()}
            return host(state(learn.model)),host(moments),learn
    (a,sa,la),(b,sb,lb) = run('cpu'),run(NAME)
    noise = ('.0.bias','running_mean') if opt=='adamw' else ()
    assert all(k.endswith(noise) or torch.allclose(a[k].float(), b[k].float(), atol=1e-4) for k in a)
    assert sa.keys()==sb.keys() and all(torch.allclose(sa[k].float(), sb[k].float(), atol=1e-3) for k in sa)
    assert lb.guard.skipped==[(0,i,how) for i in bad] and lb.guard.n_summed==0
    assert torch.allclose(torch.stack(la.recorder.losses), torch.stack(lb.recorder.losses), atol=1e-5)

@both
def test_gradients_that_are_not_finite_take_the_whole_step(where):
    with place(where):
        learn = make(where, cbs=[GradientAccumulation(32), Bad([2], 'gradients'), watch := Watch()], n_batches=6)
        weights = lambda: host({k: p.detach() for k,p in learn.model.named_parameters()})
        seen = []
        learn.add_cb(Noted(lambda: seen.append(weights())))
        quiet(learn.fit, 1)
    assert learn.guard.skipped==[(0,3,'gradients')]
    assert same(seen[1], seen[3]) and not same(seen[3], seen[5]) and all(v.isfinite().all() for v in state(learn.model).values())

class Noted(Callback):
    def __init__(self, f): self.f = f
    def after_batch(self): self.f()

@both
def test_bad_steps_in_a_row_end_the_fit_also_where_batches_are_added(where):
    with place(where):
        learn = make(where, cbs=[GradientAccumulation(32), Bad([1,3,5], 'gradients'), Guard(n=3)], n_batches=8)
        with pytest.raises(ValueError, match='gradients not finite, 3 in a row'): quiet(learn.fit, 1)

def test_a_checkpoint_between_two_batches_of_a_step():
    "It has how many pictures are in the sum, and how many of them are good"
    with place(NAME):
        learn = make(NAME, cbs=[GradientAccumulation(64), Bad([5], 'loss')], n_batches=7)
        quiet(learn.fit, 1)
        saved = get_state(learn.guard)
    assert saved['n_summed']==48 and on_host(saved['n_good'])==32

# Several processes

@counted
def test_ranks_agree_and_nobody_waits(tmp_path):
    "Two real processes, one on a bad batch: both leave it out, learn why, and neither has waited for its device"
    command = [sys.executable, __file__, str(tmp_path)]
    ran = [subprocess.Popen([*command, str(r)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ|dict(OMP_NUM_THREADS='1')) for r in (0,1)]
    try: said = [p.communicate(timeout=200)[0] for p in ran]
    finally: [p.kill() for p in ran]
    assert [p.returncode for p in ran]==[0,0], said
    got = [torch.load(tmp_path/f'{r}.pt') for r in (0,1)]
    for one in got:
        assert one['changed']==[True,False,True,True] and one['skipped']==[(0,1,'loss')]
        assert one['summed']==[(0,2,'inputs')] and one['hosts']==[True,False,True]
        assert not one['waits']

@real
def test_two_processes_on_one_card(tmp_path):
    "One of them on a bad batch: both leave it out, and learn why"
    command = [sys.executable, __file__, str(tmp_path)]
    ran = [subprocess.Popen([*command, str(r)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for r in (0,1)]
    try: said = [p.communicate(timeout=100)[0] for p in ran]
    finally: [p.kill() for p in ran]
    assert [p.returncode for p in ran]==[0,0], said
    a,b = (torch.load(tmp_path/f'{r}.pt') for r in (0,1))
    for one in (a,b):
        assert one['changed']==[True,False,True,True] and one['skipped']==[(0,1,'loss')]
        assert one['summed']==[(0,2,'inputs')]

def _hosts_meet(dist, ranks, rank):
    "As under nccl: hosts meet in a group of their own, and never on the device"
    backend = dist.get_backend
    ranks.GPU = 'cpu'
    dist.get_backend = lambda group=None: 'nccl' if group is None else backend(group)
    return [ranks.any_rank(bool(rank)), ranks.any_rank(False), ranks.gather(rank)==[0,1] and ranks.once(lambda: rank)==0]

def one_of_two(folder, rank):
    "What each process does"
    import torch.distributed as dist
    from self_supervised.callback import ranks
    rank = int(rank)
    dist.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2)
    ranks.late_backends.add('gloo')   # computes on the CPU, as the device does
    with place(NAME) as device:
        learn = make(NAME, cbs=[watch := Watch(), *([Bad([1], 'loss')] if rank else [])], n_batches=4)
        quiet(learn.fit, 1)
        other = make(NAME, cbs=[GradientAccumulation(32), *([Bad([2], 'inputs')] if rank else [])], n_batches=4)
        quiet(other.fit, 1)
        if not REAL:
            last = make(NAME, cbs=[Stop(device, 3)], n_batches=8)
            quiet(last.fit, 1)
        waits = {} if REAL else dict(device.waits)
    hosts = None if REAL else _hosts_meet(dist, ranks, rank)
    torch.save(dict(changed=watch.changed, skipped=learn.guard.skipped, summed=other.guard.skipped, waits=waits, hosts=hosts), f'{folder}/{rank}.pt')
    dist.destroy_process_group()

# The guard's promises, on both

@each_opt
@pytest.mark.parametrize('value', [NAN, INF])
@pytest.mark.parametrize('how', ['inputs', 'loss', 'gradients'])
def test_a_bad_batch_leaves_no_trace(how, value, opt, capsys, where=NAME):
    "As in test_hazards.py, where it is the CPU's"
    with place(where):
        learn = make(where, opt, cbs=[Bad([0,4], how, value), watch := Watch()])
        quiet(learn.fit, 2)
        assert all(v.isfinite().all() for s in learn.opt.opt.state.values() for v in s.values())
        if opt=='adamw': assert {s['step'].item() for s in learn.opt.opt.state.values()}=={4}
    assert watch.changed == [False,True,True,True,False,True]
    assert learn.guard.skipped == [(0,0,how),(1,1,how)]
    assert f'Guard skipped 2 of 6 batches: {how} 2 (epoch 0 batch 0, epoch 1 batch 1)' in capsys.readouterr().out
    assert torch.stack(learn.recorder.losses).isfinite().all() and np.isfinite([v[0] for v in learn.recorder.values]).all()
    assert len(learn.recorder.losses) == len(learn.recorder.lrs) == len(learn.byol.momenta) == (6 if how=='gradients' else 4)
    assert learn.recorder.iters == ([3,6] if how=='gradients' else [2,4])
    assert all(np.isfinite(list(row.values())).all() for row in learn.health.rows)

@both
@each_opt
@pytest.mark.parametrize('how', ['inputs', 'loss', 'views'])
def test_the_others_train_as_if_it_had_not_been_there(how, opt, where):
    x = digits()[0]
    def run(n):
        batches = list(x[:48].split(16))
        if n==4: batches.insert(1, x[48:64])
        with place(where):
            learn = make(where, opt, x=torch.cat(batches), m=lambda pct: .5, cbs=[Bad([1], how)] if n==4 else [], views=Views(1 if n==4 and how=='views' else None))
            quiet(learn.fit, 1)
            moments = [v.clone() for s in learn.opt.opt.state.values() for v in s.values()]
            return host(state(learn.model)),learn.recorder.losses,host(dict(enumerate(moments))),learn.guard.skipped,learn.health.rows[-1]
    (a,la,sa,na,ha),(b,lb,sb,nb,hb) = run(3),run(4)
    assert same(a, b) and torch.equal(torch.stack(la), torch.stack(lb)) and same(sa, sb) and (na,nb)==([],[(0,1,how)])
    if how=='inputs' or where==NAME: assert ha['spread']==pytest.approx(hb['spread'], abs=1e-5)   # its projections are not looked at either

@both
def test_an_infinite_running_variance(where):
    "Pixels of 1e25 and a loss that is finite: only batchnorm's statistics show it, and for good"
    x = digits()[0][:48].clone()
    x[16:32] *= 1e25
    with place(where):
        learn = make(where, x=x, cbs=[watch := Watch()])
        quiet(learn.fit, 1)
        assert all(v.isfinite().all() for v in state(learn.model).values())
    assert watch.changed==[True,False,True] and learn.guard.skipped==[(0,1,'statistics')]

@both
def test_a_buffer_that_was_infinite_before_is_nobodys_fault(where):
    with place(where):
        learn = make(where)
        learn.model.online.encoder.register_buffer('mask', torch.tensor([0.,-INF]).to(where))
        quiet(learn.fit, 1)
    assert not learn.guard.skipped

@both
def test_it_stops_after_n_in_a_row(where):
    with place(where):
        for how in ('inputs','loss','gradients'):
            learn = make(where, cbs=[Bad(range(1,99), how), Guard(n=3)])
            with pytest.raises(ValueError, match=f'epoch 1, batch 0: .*{"inputs 3 of 16" if how=="inputs" else how} not finite, 3 in a row'): quiet(learn.fit, 5)
            assert all(p.isfinite().all() for p in learn.model.state_dict().values())
        learn = make(where, cbs=[Bad([0,1,3,4,6,7,9,10]), Guard(n=3)])          # never three in a row
        quiet(learn.fit, 5)
    assert len(learn.guard.skipped)==8

@both
def test_the_first_is_warned_of(where):
    with place(where), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        make(where, cbs=[Bad([1,2])]).fit(1)
    said = [str(w.message) for w in said if 'skipped' in str(w.message)]
    assert len(said)==1 and said[0].startswith('epoch 0, batch 1: inputs 3 of 16 not finite; skipped.')

# The same numbers as on a CPU

@pytest.mark.parametrize('also', ['nothing', 'clip'])
@each_opt
def test_the_same_training_as_on_a_cpu(opt, also):
    class Shown(Callback):
        order = 61
        def __init__(self): self.shown = []
        def after_batch(self):
            if self.training: self.shown.append(self.learn.smooth_loss.item())
    def run(where):
        with place(where):
            learn = make(where, opt, cbs=[shown := Shown(), *([GradientClip()] if also=='clip' else [])])
            quiet(learn.fit_byol, 3, opt, lr=.05 if opt!='adamw' else 1e-3)
            return learn,host(state(learn.model)),shown.shown
    (a,sa,pa),(b,sb,pb) = run('cpu'),run(NAME)
    assert b.guard.later and not a.guard.later
    # AdamW takes a step of its full size along the rounding errors that are the gradient of a bias before a batchnorm
    noise = ('.0.bias','running_mean') if opt=='adamw' else ()
    for k in sa: assert k.endswith(noise) or torch.allclose(sa[k].float(), sb[k].float(), atol=1e-4), k
    assert torch.allclose(torch.stack(a.recorder.losses), torch.stack(b.recorder.losses), atol=1e-5)
    assert a.recorder.lrs==b.recorder.lrs and a.recorder.iters==b.recorder.iters and a.byol.momenta==b.byol.momenta
    assert pb[0]==pytest.approx(pa[0], abs=1e-5) and pb[2:]==pytest.approx(pa[1:-1], abs=1e-4)   # a step later, the first at once
    assert a.recorder.losses[0].device==b.recorder.losses[0].device

def test_the_recorder_averages_as_fastais_does():
    "From the losses of the batches, by fastai's own formula"
    raw = []
    class Raw(Callback):
        order = -50
        def after_loss(self): raw.append(on_host(self.loss).clone())
    with place(NAME):
        learn = make(NAME, cbs=[Raw()])
        quiet(learn.fit, 2)
    val = torch.tensor(0.)
    for i,loss in enumerate(raw):
        val = torch.lerp(loss, val, .98)
        assert torch.equal(learn.recorder.losses[i], val/(1-.98**(i+1)))

# The pieces

@both
@pytest.mark.parametrize('opt_class', [TorchLARS, FusedAdamW])
@pytest.mark.parametrize('gaps', [False, True])
def test_a_flag_leaves_a_step_out(opt_class, gaps, where):
    "With the fused kernel on the device, without it by asking: weights, averages and counts stay"
    with place(where):
        torch.manual_seed(0)
        w = torch.randn(4,3,2)[...,0] if gaps else torch.randn(4,3)
        p = nn.Parameter(w.to(where))
        opt = opt_class([p], lr=.1)
        for bad in (0., 1., 0., 1.):
            was = [p.detach().clone(), *(v.clone() for v in opt.state.get(p, {}).values())]
            p.grad = torch.full((4,3), NAN if bad else 1.).to(where)
            opt.found_inf = torch.tensor(bad).to(where)
            opt.step()
            now = [p.detach(), *opt.state.get(p, {}).values()]
            assert (len(was)==len(now) and all(torch.equal(a, b) for a,b in zip(was, now)))==bool(bad)
        opt.found_inf = None
        opt.step()
        assert not p.isfinite().all()

@both
@pytest.mark.parametrize('skip', [False, True])
def test_a_flag_holds_the_average(skip, where):
    with place(where):
        torch.manual_seed(0)
        a,b = (nn.Linear(3,2) for _ in range(2))
        want = {k: v.clone() if skip else .9*v + .1*dict(b.named_parameters())[k].detach() for k,v in a.state_dict().items()}
        if where==NAME: a,b = moved(a),moved(b)
        ema_update(a, b, .9, torch.tensor(skip).to(where))
        got = host(a.state_dict())
    assert all(torch.allclose(want[k], got[k], atol=1e-6) for k in want) and (not skip or same(want, got))

@both
@pytest.mark.parametrize('bad', [False, True])
def test_buffers_go_back_whatever_is_in_them(bad, where):
    with place(where):
        net = nn.Module()
        for i,t in enumerate([torch.randn(3), torch.tensor(7), torch.randn(2,2).bfloat16(), torch.tensor([True,False]), torch.tensor([NAN,INF,-0.]), torch.empty(0), torch.randn(2).double()]):
            net.register_buffer(f'b{i}', t.to(where))
        was = host(net.state_dict())
        kept = KeptBuffers()
        for _ in range(2):   # the memory of the copies is used again
            kept.keep(net)
            for b in net.buffers(): b.fill_(NAN if b.is_floating_point() else 1)
            assert kept.spoilt()
            kept.put_back_where(torch.tensor(bad).to(where))
            now = host(net.state_dict())
            assert all(torch.equal(a.nan_to_num(5.), b.nan_to_num(5.)) for a,b in zip(was.values(), now.values()))==bad
            if not bad: break

@counted
def test_late_numbers_wait_until_they_are_there():
    with Pretend() as device:
        late = Late(torch.tensor([1.,2.]).to(NAME), why='test')
        assert late.tensors[0].isnan().all()
        assert late.read()[0].tolist()==[1.,2.] and late.note.why=='test' and not device.waits

@counted
def test_a_checkpoint_has_all_that_was_late(tmp_path):
    "Saved in the middle of an epoch, on the device: recorder, momenta and record are those of a run on a CPU"
    def run(where):
        with place(where):
            learn = make(where, cbs=[Bad([1])], n_batches=4)
            quiet(learn.fit, 1, cbs=[Checkpoint(tmp_path/where, every=2)])
            return learn
    a,b = run('cpu'),run(NAME)
    assert a.guard.skipped==b.guard.skipped and len(a.recorder.losses)==len(b.recorder.losses)==3

if __name__=='__main__': one_of_two(*sys.argv[1:])
