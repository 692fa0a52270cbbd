"""Kill runs with SIGKILL at random moments, start them again each time, and compare their ends with that of a run nobody touched.

    OMP_NUM_THREADS=1 python benchmarks/kill_and_resume.py --out benchmarks/kill_and_resume.json

Every start is a new process that builds everything from nothing, forked from this one, which has imported the libraries (that takes longer
than the runs) and computed nothing. A moment is drawn evenly from half the time that a whole run takes: building, reading the checkpoint, the
batches behind where there are workers, training, validating, saving. The run saves after every batch, so that some moments lie in a save:
those leave half a file. A run is killed three times and then let alone; several ranks die together, or one first and the others after it,
as `torchrun` ends them. Compared are weights, target, optimizer, losses, rows, schedules, the log and the random state, of every rank
(rows and log: of the first).
"""
import argparse
import json
import os
import platform
import random
import signal
import socket
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import numpy as np
import torch
from fastai.callback.progress import CSVLogger
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.torch_core import default_device, rank_distrib
from machine import machine
from self_supervised import fit   # brings `Learner.fit_byol`
from self_supervised.callback import distributed   # brings `Learner.distrib_ctx`
from self_supervised.callback.checkpoint import Checkpoint
from self_supervised.callback.state import pack
from self_supervised.core import seed_everything, write_atomic
from self_supervised.data.demo import digits
from self_supervised.vision.byol import byol_learner, create_byol_model, get_byol_aug_pipelines
from torch import nn

@dataclass
class Kind:
    "One row of the table"
    loader: str        # 'fastai' or 'torch'
    workers: int = 0   # Processes that read
    kept: bool = False # Are they kept over epochs?
    ranks: int = 1     # Processes that train
    runs: int = 25     # Runs that end, each of which was killed
    fast: bool = False # With `to_fast`: channels-last, bfloat16, networks through the compiler?

    def __str__(self): return f"{self.loader} {self.workers} workers{', kept'*self.kept}, {self.ranks} ranks{', fast'*self.fast}"

KINDS = [Kind('fastai', runs=30), Kind('fastai', 2), Kind('fastai', 2, kept=True), Kind('torch', runs=30), Kind('torch', 2),
         Kind('torch', 2, kept=True, runs=30), Kind('fastai', ranks=2), Kind('torch', 2, kept=True, ranks=2), Kind('fastai', ranks=4, runs=15)]
KILLS = 3   # of a run

# The run

class Items:
    "Digits that draw from all three generators"
    def __init__(self): self.x = digits()[0]
    def __len__(self): return 128
    def __getitem__(self, i):
        return (self.x[i]*random.uniform(.9,1) + float(np.random.rand())*.01 + torch.rand(1,8,8)*.01,)

def loader(kind, shuffle):
    kw = dict(shuffle=shuffle, num_workers=kind.workers, persistent_workers=kind.kept, drop_last=shuffle)
    if kind.loader=='fastai': return DataLoader(Items(), bs=16, **kw)
    return torch.utils.data.DataLoader(Items(), batch_size=16, **kw)

def train(folder, kind, epochs):
    "The run: BYOL on digits, items and views that draw, an optimizer with state, a log"
    seed_everything(0)
    dls = DataLoaders(*[loader(kind, s) for s in (True,False)])
    seed_everything(1, dls if kind.loader=='fastai' else None)
    net = nn.Sequential(nn.Conv2d(1,8,3,2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    augs = get_byol_aug_pipelines(8, jitter=False, bw=False, blur=False, solarize=False, stats=None)
    learn = byol_learner(dls, create_byol_model(net, hidden_size=32, projection_size=16), augs, cbs=CSVLogger(), path=folder)
    learn.remove_cb(learn.progress)
    if kind.fast: learn.to_fast(bf16=True, compile='eager')
    with learn.distrib_ctx() if kind.ranks>1 else nullcontext():
        learn.fit_byol(epochs, cbs=Checkpoint(folder/'checkpoints', every=1))
    return learn

def save_outcome(learn, file):
    "All that the run leaves"
    r = learn.recorder
    csv = Path(learn.path)/'history.csv'
    log = [row.rpartition(',')[0] for row in csv.read_text().splitlines()] if csv.exists() else []     # without the clock
    out = dict(model=dict(learn.model.state_dict()), opt=learn.opt.state_dict(), losses=r.losses, iters=r.iters, hps=r.hps,
               momenta=learn.byol.momenta, log=log, draws=[random.random(), float(np.random.rand()), torch.rand(1)])
    if not rank_distrib(): out['rows'] = r.values   # a resumed rank has those of rank 0, which alone are printed and logged
    write_atomic(file, lambda f: torch.save(pack(out), f))

def same(a, b):
    "Equal to the last bit?"
    if isinstance(a, torch.Tensor): return torch.equal(a, b)
    if isinstance(a, dict): return a.keys()==b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list,tuple)): return len(a)==len(b) and all(map(same, a, b))
    return a==b

# Processes

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def start(folder, kind, epochs):
    "The processes of a run, one per rank, each the leader of a group with its workers"
    folder.mkdir(exist_ok=True)
    port,pids = free_port(),[]
    for rank in range(kind.ranks):
        pids.append(os.fork())
        if not pids[-1]: run(folder, kind, epochs, rank, port)
    return pids

def run(folder, kind, epochs, rank, port):
    "What a process does"
    try:
        os.setpgid(0, 0)
        own = folder if kind.ranks==1 else folder/f'rank{rank}'   # for what a process leaves; the checkpoints are shared
        own.mkdir(exist_ok=True)
        for no,file in ((1,os.devnull), (2,own/'stderr.txt')): os.dup2(os.open(file, os.O_WRONLY|os.O_CREAT|os.O_TRUNC), no)
        warnings.filterwarnings('ignore')
        default_device(False)
        if kind.ranks>1: os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(kind.ranks), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
        save_outcome(train(folder, kind, epochs), folder/f'outcome{rank}.pt')
    except BaseException as e:
        print(repr(e), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)

def kill(pids, apart):
    "End processes and their workers by SIGKILL: the first, and the others `apart` seconds later"
    for i,pid in enumerate(pids):
        if i==1: time.sleep(apart)
        try: os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError: os.kill(pid, signal.SIGKILL)   # it has not made its group yet

def end(pids, moment=None, apart=0.):
    "Wait for processes, until `moment` at most: then they are killed. Were they?"
    left,codes = list(pids),{}
    until = time.monotonic()+(moment or 600)
    while left and time.monotonic()<until and not any(codes.values()):
        for p in list(left):
            if not any(res := os.waitpid(p, os.WNOHANG)): continue
            codes[p] = os.waitstatus_to_exitcode(res[1])
            left.remove(p)
        time.sleep(.002)
    failed = {p: c for p,c in codes.items() if c}
    kill(left, apart)
    killed = [os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in left]
    if failed or (left and moment is None): raise RuntimeError(f'a process ended with {[*failed.values()] or "nothing for 10 minutes"}')
    return bool(killed)

def outcomes(folder, kind):
    "What each rank left, or None"
    files = [folder/f'outcome{r}.pt' for r in range(kind.ranks)]
    return [torch.load(f, weights_only=True) for f in files] if all(f.exists() for f in files) else None

# The table

def one_run(folder, kind, epochs, seconds, rng):
    "Kills of one run, how many of them lay in a save, and its end"
    kills = in_save = 0
    while not (res := outcomes(folder, kind)):
        for f in folder.glob('outcome*.pt'): f.unlink()   # one rank was through, another not
        moment = rng.uniform(0, seconds) if kills<KILLS else None
        apart = rng.choice([0., rng.uniform(0, .1)])
        if not end(start(folder, kind, epochs), moment, apart): continue
        kills += 1
        in_save += any((folder/'checkpoints').glob('.*.pt.*'))
    return kills,in_save,res

def measure(root, kind, epochs, rng, until):
    "One row of the table"
    begin = time.perf_counter()
    end(start(root/'whole', kind, epochs))
    seconds,whole = time.perf_counter()-begin,outcomes(root/'whole', kind)
    row = asdict(kind)|dict(runs=0, kills=0, in_a_save=0, other=0, failed=[], steps=len(whole[0]['momenta']['value']), tensors=len(whole[0]['model']))
    for i in range(kind.runs):
        if time.time()>until: break
        folder = root/f'run{i}'
        try: kills,in_save,res = one_run(folder, kind, epochs, .5*seconds, rng)
        except RuntimeError as e:
            said = [f.read_text()[-500:] for f in sorted(folder.rglob('stderr.txt'))]
            row['failed'].append(dict(run=i, error=str(e), said=said))
            continue
        for k,n in dict(runs=1, kills=kills, in_a_save=in_save, other=not same(whole, res)).items(): row[k] += int(n)
    row['seconds'] = round(time.perf_counter()-begin)
    print(kind, {k: row[k] for k in ('runs','kills','in_a_save','other','failed','seconds')}, flush=True)
    return row

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--scale', type=float, default=1., help='part of the 230 runs')
    p.add_argument('--epochs', type=int, default=4, help='8 batches each; fewer per rank where there are several')
    p.add_argument('--minutes', type=float, default=1e6, help='begin no run after so many minutes')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--fast', action='store_true', help='with `to_fast`, all of it that a CPU has')
    p.add_argument('--only', type=int, nargs='*', help='rows of the table, by number')
    p.add_argument('--out', help='JSON file to write')
    a = p.parse_args()
    digits()   # read once, by this process
    if a.fast: import torch._dynamo   # once, as the others: it takes longer than a run
    res = dict(machine=machine(), command='python benchmarks/kill_and_resume.py '+' '.join(sys.argv[1:]), seed=a.seed, rows=[])
    until,rng = time.time()+60*a.minutes,random.Random(a.seed)
    for i,kind in enumerate(KINDS):
        if a.only and i not in a.only: continue
        kind.runs = max(1, round(a.scale*kind.runs))
        kind.fast = a.fast
        with tempfile.TemporaryDirectory() as d: res['rows'].append(measure(Path(d), kind, a.epochs, rng, until))
        total = {k: sum(r[k] for r in res['rows']) for k in ('runs','kills','in_a_save','other')}
        res['total'] = total | dict(failed=sum(len(r['failed']) for r in res['rows']))
        if a.out: Path(a.out).write_text(json.dumps(res, indent=1)+'\n')
    print(res['total'])
    if res['total']['other'] or res['total']['failed']: sys.exit('a run that was killed ended differently, or failed')

if __name__ == '__main__': main()
