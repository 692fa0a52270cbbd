"""A run that is killed and goes on ends with the bits of the one that nobody touched. Every kill is a real SIGKILL of a process of its own;
the moment is exact (this step, half of this file), so that nothing here depends on time. `benchmarks/kill_and_resume.py` has random ones."""
import errno, io, os, pickle, random, resource, signal, subprocess, sys, warnings
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np, pytest, torch
from torch import nn
from torch.utils.data import DataLoader as TorchDL
from fastai.callback.training import GradientAccumulation
from fastai.vision.all import (Adam, AvgMetric, Callback, CancelFitException, CSVLogger, DataLoader, DataLoaders, EarlyStoppingCallback, L, Learner,
                               ProgressCallback, ReduceLROnPlateau, SaveModelCallback, SkipItemException, TerminateOnNaNCallback, ValueMetric)

import self_supervised.callback.checkpoint_file as checkpoint_file
from self_supervised.callback.state import pack, unpack
from self_supervised.callback.checkpoint import Checkpoint, checkpoint_files, newest_checkpoint, read_checkpoint
from self_supervised.core import seed_everything
from self_supervised.data.demo import digits
from self_supervised.data.arrays import tensor_dls
from self_supervised.owner import release
from self_supervised.vision.byol import byol_learner, create_byol_model, get_byol_aug_pipelines

pytestmark = [pytest.mark.filterwarnings('ignore:batchnorm sees'), pytest.mark.filterwarnings('ignore:.*fork'), pytest.mark.filterwarnings('ignore:lr=')]
X,Y,_ = digits()
STEPS = 6   # a training epoch

class Noisy:
    "Items that draw from all three generators, and some that are left out of their batch"
    def __init__(self, skip=0.): self.skip = skip
    def __len__(self): return 96
    def __getitem__(self, i):
        if torch.rand(())<self.skip: raise SkipItemException()
        return (X[i]*random.uniform(.9,1) + float(np.random.rand())*.01 + torch.rand(1,8,8)*.01,)

def loaders(kind, bs=16):
    if kind=='uint8': return tensor_dls((X[:112]*255).byte(), torch.arange(112), (range(96), range(96,112)), bs=bs, seed=0)
    if kind=='tensor': return tensor_dls(X[:112], None, (range(96), range(96,112)), bs=bs, seed=0)
    if kind.startswith('torch'): return DataLoaders(*[TorchDL(Noisy(), bs, shuffle=s, num_workers=int(kind[-1])) for s in (True,False)])
    return DataLoaders(*[DataLoader(Noisy(.1 if kind=='skip' else 0.), bs=bs, shuffle=s, num_workers=2 if kind=='2' else 0) for s in (True,False)])

def make(path, kind='tensor', cbs=(), **kwargs):
    "A learner on real digits; the random state is set as a script would set it"
    seed_everything(0)
    Path(path).mkdir(parents=True, exist_ok=True)
    dls = loaders(kind)
    seed_everything(1, dls if not kind.startswith('torch') else None)
    net = nn.Sequential(nn.Conv2d(1,8,3,2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    augs = get_byol_aug_pipelines(8, jitter=False, bw=False, blur=False, solarize=False, stats=None)
    learn = byol_learner(dls, create_byol_model(net, hidden_size=16, projection_size=8), augs, cbs=[CSVLogger(), *cbs], path=path, **kwargs)
    learn.remove_cb(ProgressCallback)
    return learn

class Kill(Callback):
    "SIGKILL at an event after so many steps"
    order = 2000
    def __init__(self, event, step): setattr(self, event, partial(self._at, step))
    def _at(self, step):
        if self.train_iter==step: os.kill(os.getpid(), signal.SIGKILL)

class KillInSave(Callback):
    "SIGKILL when half of the file of a step is written"
    order = 999
    def __init__(self, step): self.step = step
    def after_batch(self):
        if self.train_iter==self.step: checkpoint_file.torch = HalfWritten()

class HalfWritten:
    def __getattr__(self, k): return getattr(torch, k)
    def save(self, state, f):
        whole = io.BytesIO()
        torch.save(state, whole)
        f.write(whole.getvalue()[:whole.tell()//2]); f.flush()
        os.kill(os.getpid(), signal.SIGKILL)

def fit(path, method='fit_byol', kind='tensor', epochs=3, cbs=(), every=1, learner_cbs=(), **kwargs):
    learn = make(path, kind, cbs=[c() for c in learner_cbs], **kwargs)
    with redirect_stdout(io.StringIO()): getattr(learn, method)(epochs, cbs=[Checkpoint(Path(path)/'ck', every=every), *cbs])
    return learn

def in_child(f, *args, **kwargs):
    "Exit status of a process that runs `f`"
    pid = os.fork()
    if not pid:
        try: f(*args, **kwargs)
        except BaseException as e: print(repr(e), file=sys.stderr); os._exit(99)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def outcome(learn):
    "All that a run leaves: weights and target, optimizer, gradients, losses, rows, schedules, momenta, the log"
    r = learn.recorder
    log = [','.join(row.split(',')[:-1]) for row in (Path(learn.path)/'history.csv').read_text().splitlines()]    # without the clock
    return flat([learn.model.state_dict(), learn.opt.state_dict(), [p.grad for p in learn.model.parameters()], r.losses, r.values, r.iters, r.lrs,
                 getattr(r, 'hps', None), learn.byol.momenta, learn.train_iter, learn.pct_train, log, random.random(), np.random.rand(), torch.rand(1)])

def flat(o):
    if isinstance(o, dict): return [v for k in o for v in [k,*flat(o[k])]]
    return [v for k in o for v in flat(k)] if isinstance(o, (list,tuple,L)) else [o]

def assert_same(a, b):
    assert len(a)==len(b)
    for i,(x,y) in enumerate(zip(a, b)): assert torch.equal(x,y) if isinstance(x, torch.Tensor) else x==y, f'value {i}: {x} is not {y}'

def assert_survives(tmp_path, kills, **kwargs):
    want = outcome(fit(tmp_path/'whole', **kwargs))
    for cb in kills: assert in_child(fit, tmp_path/'killed', cbs=[cb], **kwargs)==-signal.SIGKILL
    assert_same(outcome(fit(tmp_path/'killed', **kwargs)), want)

# Killed

kills = [Kill('after_batch', 3), KillInSave(STEPS+2), Kill('after_batch', STEPS+2), Kill('before_validate', 2*STEPS), Kill('after_epoch', 2*STEPS)]

@pytest.mark.parametrize('kind', ['tensor', '0', '2'])
def test_killed_in_epochs_saves_and_validation(tmp_path, kind): assert_survives(tmp_path, kills, kind=kind)

@pytest.mark.parametrize('method,kind', [('fit','0'), ('fit_one_cycle','2'), ('fit_flat_cos','tensor')])
def test_killed_in_each_fit(tmp_path, method, kind): assert_survives(tmp_path, [Kill('after_batch', STEPS+2)], method=method, kind=kind, epochs=2)

@pytest.mark.parametrize('kind', ['skip', 'torch0', 'torch2', 'uint8'])
def test_killed_with_other_loaders(tmp_path, kind): assert_survives(tmp_path, [Kill('after_batch', STEPS+3)], kind=kind, epochs=2)

def test_killed_between_saves(tmp_path): assert_survives(tmp_path, [Kill('after_batch', STEPS+3), Kill('after_batch', 2*STEPS+5)], every=4)

def test_epochs_alone(tmp_path): assert_survives(tmp_path, [Kill('after_batch', STEPS+3)], every=None)

def test_order_is_entered_without_reading(tmp_path):
    "Without workers what is behind is not read again"
    in_child(fit, tmp_path, kind='0', cbs=[Kill('after_batch', 4)])
    read,get = [],Noisy.__getitem__
    Noisy.__getitem__ = lambda self, i: (read.append(i), get(self, i))[1]
    try: fit(tmp_path, kind='0', epochs=3)
    finally: Noisy.__getitem__ = get
    assert len(read)==3*96 - 4*16 + 3*96

# What callbacks hold

class Late(Callback):
    "Comes after the checkpoint in each event, begins with the fit, and counts what it saw"
    order = 1001
    def before_fit(self): self.clock,self.seen,self.drawn = object(),0,torch.rand(1).item()
    def before_epoch(self): self.clock
    def after_batch(self): self.seen += bool(self.clock) and self.training

@pytest.mark.parametrize('step', [3, STEPS+2, 2*STEPS])
def test_a_callback_behind_the_checkpoint_begins_the_fit_too(tmp_path, step):
    "It was switched off before its `before_fit`, where whole epochs are behind, and failed at the first step"
    def run(path, *cbs):
        late = Late()
        return outcome(fit(path, cbs=[late, *cbs])), (late.seen,late.drawn)
    want = run(tmp_path/'whole')
    assert in_child(run, tmp_path/'killed', Kill('after_batch', step))==-signal.SIGKILL
    have = run(tmp_path/'killed')
    assert_same(have[0], want[0])
    assert have[1]==want[1] and want[1][0]==3*STEPS

def test_gradients_in_the_middle_of_an_accumulation(tmp_path):
    assert_survives(tmp_path, [Kill('after_batch', 2), Kill('after_batch', STEPS+1)], learner_cbs=[partial(GradientAccumulation, 48)])

@pytest.mark.parametrize('opt_func', [Adam, None])
def test_gradients_of_either_kind_of_optimizer(tmp_path, opt_func):
    kw = dict(opt_func=opt_func) if opt_func else {}
    assert_survives(tmp_path, [Kill('after_batch', 4)], method='fit', epochs=2, learner_cbs=[partial(GradientAccumulation, 32)], **kw)

def test_trackers_remember(tmp_path):
    trackers = [partial(SaveModelCallback, 'valid_loss'), partial(ReduceLROnPlateau, 'valid_loss', patience=1), partial(EarlyStoppingCallback, 'valid_loss', min_delta=9., patience=3)]
    kw = dict(method='fit', epochs=8, learner_cbs=trackers)
    assert_survives(tmp_path, [Kill('after_epoch', 2*STEPS), Kill('after_batch', 2*STEPS+3)], **kw)
    learn = fit(tmp_path/'killed', **kw)        # stopped early, and finished it is
    assert len(learn.recorder.values)<8 and learn.train_iter==len(learn.recorder.losses)
    assert newest_checkpoint(tmp_path/'killed'/'ck')['position']['finished']

class Average(Callback):
    "One with a state of its own kind, said by the two methods"
    def before_fit(self): self.total = {}
    def before_train(self): torch.rand(1)   # comes again when an epoch is entered again
    def after_batch(self): self.total[None] = self.total.get(None, 0)+self.loss.item()
    def state_dict(self): return dict(total=self.total[None])
    def load_state_dict(self, state): self.total = {None: state['total']}

class Slow(Callback):
    "A network in an attribute"
    def before_fit(self): self.net = nn.Linear(2,2, bias=False); nn.init.zeros_(self.net.weight)
    def after_batch(self):
        if self.training: self.net.weight.data += self.loss.detach()

def test_callbacks_of_ones_own(tmp_path):
    def get(learn): return [learn.average.total[None], learn.slow.net.weight, *learn.model.parameters()]
    kw = dict(learner_cbs=[Average, Slow], kind='2')
    want = get(fit(tmp_path/'whole', **kw))
    assert in_child(fit, tmp_path/'killed', cbs=[Kill('after_batch', STEPS+3)], **kw)==-9
    assert_same(get(fit(tmp_path/'killed', **kw)), want)

@dataclass
class Kept:
    "Values of a callback"
    n:int = 0
    names:list = field(default_factory=list)

class Counted(Callback):
    "A counter under the name of its argument, and values in objects of their own"
    def __init__(self, count=0, rate=.1, label='a'):
        self.count,self.rate,self.label = count,rate,label
        self.kept,self.plain = Kept(),SimpleNamespace(total=0.)
    def after_step(self):
        self.count += 1; self.rate *= .9
        self.kept.n += 2; self.kept.names.append(self.count)
        self.plain.total += self.learn.loss.item()

def test_numbers_under_the_names_of_arguments_go_on(tmp_path):
    "They were settings, and began anew; objects that only hold values were left out"
    def get(learn): cb = learn.counted; return cb.count,cb.rate,cb.kept,cb.plain
    kw = dict(learner_cbs=[Counted], kind='2')
    want = get(fit(tmp_path/'whole', **kw))
    assert in_child(fit, tmp_path/'killed', cbs=[Kill('after_batch', STEPS+3)], **kw)==-9
    state = read_checkpoint(checkpoint_files(tmp_path/'killed'/'ck')[-1])['callbacks']['counted']
    assert {'count','rate','kept','plain'}<=state.keys() and 'label' not in state
    assert get(fit(tmp_path/'killed', **kw))==want

def test_a_number_that_changed_before_an_earlier_kill_goes_on(tmp_path):
    "It is the same at the beginning of the second process and at its end"
    kw = dict(learner_cbs=[Once], kind='2')
    for n in (3,5): assert in_child(fit, tmp_path, cbs=[Kill('after_batch', n)], **kw)==-9
    assert fit(tmp_path, **kw).once.rate==.05

class Once(Callback):
    def __init__(self, rate=.1): self.rate = rate
    def after_step(self):
        if self.train_iter==1: self.rate /= 2

def test_a_setting_that_a_run_does_not_change_is_that_of_now(tmp_path):
    "And a file changes numbers only"
    from self_supervised.callback.state import get_state, set_state
    cb = Counted(3, .5)
    assert not {'count','rate','label'} & get_state(cb).keys()
    set_state(cb, dict(count='/etc', label='b', rate=.25))
    assert (cb.count,cb.label,cb.rate)==(3,'a',.25)

class Scaler:
    "What a gradient scaler is to a checkpoint"
    def __init__(self): self.scale = 1.
    def state_dict(self): return dict(scale=self.scale)
    def load_state_dict(self, state): self.scale = state['scale']

class Scaled(Callback):
    def before_fit(self): self.learn.scaler = Scaler()
    def after_step(self): self.learn.scaler.scale *= .5

def test_scaler(tmp_path):
    assert in_child(fit, tmp_path, cbs=[Kill('after_batch', STEPS+3)], learner_cbs=[Scaled])==-9
    assert fit(tmp_path, learner_cbs=[Scaled]).scaler.scale==.5**(3*STEPS)

# Several processes

class Ranks(Callback):
    "Data of its own for each process, and the mean of their gradients, in place of fastai's trainer"
    order,name = -20,'distributed_trainer'
    def before_fit(self): seed_everything(5+int(os.environ['RANK']), self.dls)
    def before_step(self):
        for p in self.model.parameters():
            if p.grad is not None: torch.distributed.all_reduce(p.grad)

def rank(path, r, port, cbs):
    os.environ.update(RANK=str(r), LOCAL_RANK=str(r), WORLD_SIZE='2')
    torch.distributed.init_process_group('gloo', init_method=f'file://{port}', rank=r, world_size=2)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    learn = make(path/str(r), cbs=[Ranks()])
    with redirect_stdout(io.StringIO()): learn.fit(3, cbs=[Checkpoint(path/'ck', every=2), *cbs.get(r, [])])
    torch.save(pack([list(learn.model.parameters()), learn.recorder.losses, random.random(), torch.rand(1)]), path/f'{r}.pt')

def ranks(path, name, **cbs):
    "Exit statuses of two processes that train together"
    path.mkdir(exist_ok=True)
    pids = []
    for r in (0,1):
        pids.append(os.fork())
        if not pids[-1]:
            try: rank(path, r, path/name, {int(k[1:]): v for k,v in cbs.items()})
            except BaseException as e: print(repr(e)[-300:], file=sys.stderr); os._exit(99)
            os._exit(0)
    return [os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in pids]

def test_two_processes_save_and_stop_together(tmp_path):
    assert ranks(tmp_path/'whole', 'a')==[0,0]
    assert ranks(tmp_path/'killed', 'a', r1=[Kill('after_batch', 5)])[1]==-signal.SIGKILL
    assert ranks(tmp_path/'killed', 'b', r1=[Signal(signal.SIGTERM, STEPS+2)])==[-signal.SIGTERM]*2     # only one of them was told
    assert newest_checkpoint(tmp_path/'killed'/'ck')['position']['step']==STEPS+3
    assert ranks(tmp_path/'killed', 'c')==[0,0]
    for r in '01': assert_same(*(flat(unpack(torch.load(tmp_path/o/f'{r}.pt', weights_only=True))) for o in ('killed','whole')))

# Nothing else is changed

def test_saving_changes_nothing(tmp_path):
    bare = make(tmp_path/'bare')
    with redirect_stdout(io.StringIO()): bare.fit_byol(3)
    want = outcome(bare)    # draws at the end: a number that a save had taken would be missed
    assert_same(outcome(fit(tmp_path/'saved')), want)

def test_the_learner_is_left_as_found(tmp_path):
    learn = make(tmp_path)
    learn.dls.train.one_batch()     # which leaves an attribute
    was = set(vars(learn)),set(vars(learn.dls.train)),[signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    class Fail(Callback):
        def after_batch(self): raise RuntimeError('on purpose')
    with pytest.raises(RuntimeError), redirect_stdout(io.StringIO()): learn.fit(1, cbs=[Checkpoint(tmp_path/'ck'), Fail()])
    now = set(vars(learn)),set(vars(learn.dls.train)),[signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    assert now[1:]==was[1:] and all(cb.run for cb in learn.cbs)

def test_progress_bars_count_what_is_behind(tmp_path):
    in_child(fit, tmp_path, every=1, cbs=[Kill('after_batch', STEPS+2)])
    learn = make(tmp_path)
    learn.add_cb(ProgressCallback())
    with redirect_stdout(io.StringIO()) as out: learn.fit_byol(3, cbs=Checkpoint(tmp_path/'ck', every=1))
    assert 'Epoch 3/3' in out.getvalue() and '100.00% [6/6' in out.getvalue()

def test_only_fits_are_saved(tmp_path):
    learn = make(tmp_path, cbs=[Checkpoint(tmp_path/'ck')])
    with redirect_stdout(io.StringIO()): learn.validate(); learn.get_preds(); learn.lr_find(num_it=3, show_plot=False, stop_div=False); learn.summary()
    assert not checkpoint_files(tmp_path/'ck')

def test_fits_in_a_row(tmp_path):
    def two(path, cbs=()):
        learn = make(path, cbs=[Checkpoint(path/'ck', every=2), *cbs])
        with redirect_stdout(io.StringIO()): learn.fit_one_cycle(1); learn.fit(2)
        return learn
    class KillSecond(Kill):
        def _at(self, step):
            if self.n_epoch==2: super()._at(step)
    want = outcome(two(tmp_path/'whole'))
    assert in_child(two, tmp_path/'killed', cbs=[Kill('after_batch', 3)])==-9
    assert in_child(two, tmp_path/'killed', cbs=[KillSecond('after_batch', STEPS+1)])==-9
    assert_same(outcome(two(tmp_path/'killed')), want)

def test_finished(tmp_path):
    want = outcome(fit(tmp_path))
    assert_same(outcome(fit(tmp_path)), want)

# The disk

def test_disk_full(tmp_path):
    "A limit on the size of files is a full disk that a test may have"
    def limited():
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
        class Full(Callback):
            def after_batch(self):
                if self.training and self.train_iter==STEPS+2: limit()
        with warnings.catch_warnings(record=True) as ws:
            warnings.simplefilter('always')
            fit(tmp_path/'full', cbs=[Full()])
        said = [str(w.message) for w in ws if 'not written' in str(w.message)]
        assert said[0]=="fit000-step000000008.pt was not written (File too large). Training goes on, and fit000-step000000007.pt is the newest checkpoint in " + repr(str(tmp_path/'full'/'ck')) + '. Free some space.', said[0]
        assert len(said)==2*STEPS-1+1   # each save said so, that of the end too
    assert in_child(limited)==0
    assert [f.name for f in sorted((tmp_path/'full'/'ck').iterdir())] == ['fit000-step000000006.pt', 'fit000-step000000007.pt']  # and no halves
    assert_same(outcome(fit(tmp_path/'full')), outcome(fit(tmp_path/'whole')))

def test_a_kill_in_a_save_leaves_whole_files(tmp_path):
    assert in_child(fit, tmp_path, cbs=[KillInSave(4)])==-signal.SIGKILL
    assert [read_checkpoint(f)['position']['step'] for f in checkpoint_files(tmp_path/'ck')]==[2,3] and any((tmp_path/'ck').glob('.*.pt.*'))
    fit(tmp_path, epochs=3)
    assert not any((tmp_path/'ck').glob('.*'))    # the half is gone

def test_tensors_of_a_gpu_are_read(tmp_path, monkeypatch):
    "A file whose storages say that they were on a GPU goes to the device that is asked for"
    import torch.serialization
    with monkeypatch.context() as m:
        m.setattr(torch.serialization, 'location_tag', lambda storage: 'cuda:0')
        with open(tmp_path/'a.pt', 'w+b') as f: checkpoint_file.write_sealed(dict(x=torch.arange(3)), f)
    seen = checkpoint_file._load(tmp_path/'a.pt', 'cpu')
    assert torch.equal(seen['x'], torch.arange(3)) and seen['x'].device.type=='cpu'

def test_a_damaged_file_is_passed_over(tmp_path):
    in_child(fit, tmp_path/'a', cbs=[Kill('after_batch', 4)])
    last = checkpoint_files(tmp_path/'a'/'ck')[-1]
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.warns(UserWarning, match='is not a whole checkpoint'): got = outcome(fit(tmp_path/'a'))
    assert_same(got, outcome(fit(tmp_path/'b')))

def test_keeps_the_newest_and_the_best(tmp_path):
    values = iter([.1, .9, .3, .2])
    learn = make(tmp_path, metrics=ValueMetric(lambda: next(values), 'probe'))
    with redirect_stdout(io.StringIO()): learn.fit(4, cbs=Checkpoint(tmp_path/'ck', keep=3, monitor='probe'))
    assert [f.name for f in sorted((tmp_path/'ck').iterdir())] == ['best.pt', *(f'fit000-step{i*STEPS:09}.pt' for i in (2,3,4))]
    assert read_checkpoint(tmp_path/'ck'/'best.pt')['position']['epoch']==2

# Signals

class Signal(Callback):
    def __init__(self, signum, step, during=True): self.signum,self.step,self.during = signum,step,during
    def before_batch(self):
        if self.train_iter==self.step and self.training==self.during: signal.raise_signal(self.signum)

@pytest.mark.parametrize('signum,training,step', [(signal.SIGTERM,True,STEPS+2), (signal.SIGINT,True,STEPS+2), (signal.SIGTERM,False,2*STEPS)])
def test_signals_save_first(tmp_path, signum, training, step):
    def run():
        signal.signal(signal.SIGTERM, signal.SIG_DFL), signal.signal(signal.SIGINT, signal.default_int_handler)
        try: fit(tmp_path/'a', every=None, cbs=[Signal(signum, step, training)])
        except KeyboardInterrupt: os._exit(7 if signal.getsignal(signal.SIGINT) is signal.default_int_handler else 8)
    assert in_child(run)==(7 if signum==signal.SIGINT else -signal.SIGTERM)
    at = newest_checkpoint(tmp_path/'a'/'ck')['position']
    assert at['step']==step+training and at['batch']==(step%STEPS+1 if training else STEPS)
    assert_same(outcome(fit(tmp_path/'a', every=None)), outcome(fit(tmp_path/'b', every=None)))

def test_a_signal_after_a_fit_that_failed_is_not_swallowed(tmp_path):
    def run():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        learn = make(tmp_path, cbs=[Checkpoint(tmp_path/'ck')])
        class Fail(Callback):
            def after_batch(self): raise RuntimeError('on purpose')
        try: learn.fit(1, cbs=Fail())
        except RuntimeError: pass
        try: signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt: os._exit(7)
    with redirect_stdout(io.StringIO()): assert in_child(run)==7

# What is refused

class Evil:
    def __reduce__(self): return os.mkdir, (self.path,)

def test_code_is_not_run(tmp_path):
    evil = Evil(); evil.path = str(tmp_path/'it ran')
    (tmp_path/'ck').mkdir()
    file = tmp_path/'ck'/'fit000-step000000001.pt'
    torch.save(dict(format=checkpoint_file.FORMAT, evil=evil), file)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match='more than tensors and plain values') as e: fit(tmp_path)
    assert '\n' not in str(e.value.args[0]).split('\n\t')[-1] and not (tmp_path/'it ran').exists()
    torch.load(file, weights_only=False)
    assert (tmp_path/'it ran').exists()     # it would have

def test_files_of_other_programs(tmp_path):
    torch.save(dict(model={}), tmp_path/'other.pt')
    with pytest.raises(ValueError, match='another program'): read_checkpoint(tmp_path/'other.pt')
    (tmp_path/'other.pt').write_bytes(b'no checkpoint')
    with pytest.raises(ValueError, match='not a whole checkpoint'): read_checkpoint(tmp_path/'other.pt')

@pytest.fixture
def run(tmp_path):
    "A folder with the last two of three checkpoints, the first of them the best, and what is in the last"
    folder = tmp_path/'run'
    checkpoint_file.find_checkpoint(folder, 0, resume=True, device='cpu')   # makes the folder
    state = dict(format=checkpoint_file.FORMAT, version=checkpoint_file.VERSION, best=None, facts={}, model={}, opt={}, grads=[], learner={},
                 metrics=[], callbacks={}, rng=[dict(now={}, start=None)])
    for step in (10,20,30):
        state['position'] = dict(fit=0, epoch=0, batch=step, step=step, finished=False)
        checkpoint_file.write_checkpoint(folder, state, keep=2, best=step==20)
    yield folder,state
    release(folder)

def test_a_fit_finds_its_own_checkpoints_and_the_best_is_whole(run):
    folder,_ = run
    assert read_checkpoint(folder/'best.pt')['position']['step']==20
    assert checkpoint_file._fit_of(folder/'fit012-step000000001.pt')==12
    assert checkpoint_file.find_checkpoint(folder, 1, False, 'cpu')=={}

def test_a_cut_an_empty_and_a_later_file(run):
    folder,state = run
    last = checkpoint_files(folder)[-1]
    last.write_bytes(last.read_bytes()[:100])
    with pytest.warns(UserWarning, match='is not a whole checkpoint'): assert newest_checkpoint(folder)['position']['step']==20
    last.write_bytes(b'')
    with pytest.raises(ValueError, match='is not a whole checkpoint'): read_checkpoint(last)
    torch.save(state | dict(version=2), last)
    with pytest.raises(ValueError, match='later version of this library. Update it'): read_checkpoint(last)

def test_a_missing_part_is_named(run):
    wrong,(_,state) = checkpoint_file._wrong_part,run
    assert wrong(state)==''
    for part in checkpoint_file._parts: assert wrong({k: v for k,v in state.items() if k!=part})==f'{part!r} is missing or wrong'
    assert wrong(state | dict(position=dict(fit=0)))=="'epoch' is missing or wrong"
    assert wrong(state | dict(rng=[]))=="'now' is missing or wrong"

def test_half_written_files_are_deleted_when_a_folder_is_opened(run):
    folder,_ = run
    (folder/'.fit000-step000000040.pt.x').touch()
    assert checkpoint_file._open_folder(folder)==checkpoint_files(folder)
    assert len([*folder.iterdir()])==4   # two checkpoints, the best, and the owner's

def test_a_mistake_is_not_taken_for_a_full_disk(run):
    folder,state = run
    with pytest.raises((AttributeError,pickle.PicklingError)): checkpoint_file.write_checkpoint(folder, state | dict(more=lambda: 0), keep=2, best=False)

def test_a_file_changes_no_settings(tmp_path):
    "Paths above all: what is written goes where this process says"
    in_child(fit, tmp_path, cbs=[Kill('after_batch', 4)])
    file = checkpoint_files(tmp_path/'ck')[-1]
    state = read_checkpoint(file)
    state['callbacks']['csv_logger']['fname'] = '../../elsewhere.csv'
    state['learner']['path'] = '../..'
    torch.save(state, file)
    learn = fit(tmp_path)
    assert learn.csv_logger.fname==Path('history.csv') and learn.path==tmp_path

@pytest.mark.parametrize('kwargs,words', [
    (dict(epochs=4), ['epochs 3', 'epochs 4']),
    (dict(method='fit_one_cycle'), ['optimizer', 'TorchLARS']),
    (dict(kind='2'), ['workers 0', 'workers 2']),
])
def test_another_fit_is_refused(tmp_path, kwargs, words):
    in_child(fit, tmp_path, cbs=[Kill('after_batch', 2)])
    with pytest.raises(ValueError) as e: fit(tmp_path, **kwargs)
    message = str(e.value.args[0]).split('\n\t')[-1]
    assert '\n' not in message and all(w in message for w in words) and 'another folder' in message, message

def test_another_model_is_refused(tmp_path):
    in_child(fit, tmp_path, cbs=[Kill('after_batch', 2)])
    file = checkpoint_files(tmp_path/'ck')[-1]
    state = read_checkpoint(file)
    state['model']['online.encoder.0.weight'] = torch.zeros(9,1,3,3)
    torch.save(state, file)
    with pytest.raises(ValueError, match=r"1 weights differ, e.g. 'online.encoder.0.weight', of shape \(9, 1, 3, 3\) there and of shape \(8, 1, 3, 3\) here"): fit(tmp_path)

def test_a_used_folder_is_refused_without_resume(tmp_path):
    fit(tmp_path, epochs=1)
    with pytest.raises(ValueError, match='resume=False'): make(tmp_path).fit(1, cbs=Checkpoint(tmp_path/'ck', resume=False))

def test_an_unknown_monitor_is_refused_before_the_first_epoch(tmp_path):
    with pytest.raises(ValueError, match="monitor='knn' must be one of train_loss, valid_loss"): make(tmp_path).fit(1, cbs=Checkpoint(tmp_path/'ck', monitor='knn'))

@pytest.mark.parametrize('kwargs', [dict(every=0), dict(minutes=-1), dict(keep=0)])
def test_settings(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))+'=.* must be'): Checkpoint('x', **kwargs)

def test_two_checkpoints_are_refused(tmp_path):
    learn = make(tmp_path)
    with pytest.raises(ValueError, match='two Checkpoint callbacks'): learn.fit(1, cbs=[Checkpoint(tmp_path/'a'), Checkpoint(tmp_path/'b')])

def a_full_disk(path):
    from self_supervised.cli.terminal import History
    learn = make(path)
    learn.remove_cbs(CSVLogger)
    learn.add_cb(History('history.csv'))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    class Full(Callback):
        def before_epoch(self):
            if self.epoch==1: resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        def after_fit(self): resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    with pytest.warns(UserWarning, match='A row of history.csv was not written'), redirect_stdout(io.StringIO()): learn.fit(3, cbs=[Checkpoint(path/'ck'), Full()])
    assert len(learn.recorder.values)==3

def test_a_table_stays_until_a_fit_has_a_row(tmp_path):
    "A resume that was refused, or of a fit that a deadline had ended, emptied it"
    from self_supervised.budget import Deadline
    from self_supervised.cli.terminal import History
    def go(folder, epochs=2, cbs=()):
        learn = make(folder)
        learn.remove_cbs(CSVLogger)
        learn.add_cb(History('history.csv'))
        with redirect_stdout(io.StringIO()): learn.fit(epochs, cbs=[Checkpoint(folder/'ck', every=1), *cbs])
        return (folder/'history.csv').read_text()
    table = go(tmp_path)
    assert len(table.splitlines())==3
    with pytest.raises(ValueError, match='Ask for the same'): go(tmp_path, 3)
    assert (tmp_path/'history.csv').read_text()==table
    assert go(tmp_path)==table
    def in_time(): return go(tmp_path/'in_time', 3, [Deadline(1e4, 9)])
    table = in_time()
    assert len(table.splitlines())>2 and in_time()==table

def test_a_table_goes_on_after_its_fit_was_cut_again_and_again(tmp_path):
    "Also where a checkpoint was made before the first row of a process, and where the file is gone"
    from self_supervised.cli.terminal import History
    class Cut(Callback):
        order = 2000
        def __init__(self, step): self.step = step
        def after_batch(self):
            if self.train_iter==self.step: raise KeyboardInterrupt
    def go(folder, cbs=()):
        learn = make(folder)
        learn.remove_cbs(CSVLogger)
        learn.add_cb(History('history.csv'))
        with redirect_stdout(io.StringIO()): learn.fit(3, cbs=[Checkpoint(folder/'ck', every=1), *cbs])
    go(tmp_path/'whole')
    for step in (9,10,11,14,15):   # six steps an epoch
        with pytest.raises(KeyboardInterrupt): go(tmp_path/'cut', [Cut(step)])
        if step==11: (tmp_path/'cut/history.csv').unlink()
    go(tmp_path/'cut')
    rows = [[row.rpartition(',')[0] for row in (tmp_path/o/'history.csv').read_text().splitlines()] for o in ('whole','cut')]   # without the clock
    assert len(rows[0])==4 and rows[0]==rows[1]

def test_a_full_disk_costs_the_log_a_row_and_not_the_run(tmp_path): assert in_child(a_full_disk, tmp_path)==0
