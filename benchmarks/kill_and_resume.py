"""Kill a run with SIGKILL at random moments, start it again each time, and compare its end with that of a run nobody touched.

    OMP_NUM_THREADS=1 python benchmarks/kill_and_resume.py --out benchmarks/kill_and_resume.json

Every start is a new process that builds everything from nothing, forked from this one, which has imported the libraries (that takes longer
than the runs) and computed nothing. A moment is drawn evenly from the first seconds of the process: building, reading the checkpoint and, with
workers, the batches behind, training, validating, saving. The run saves after every batch, so that some moments lie in a save: those leave
half a file. A run that ends before all kills are done is compared, and another one begun.
"""
import argparse, json, os, platform, random, signal, sys, tempfile, time, warnings
from pathlib import Path

import numpy as np, torch
from torch import nn
from fastai.callback.progress import CSVLogger
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from self_supervised import fit   # brings `Learner.fit_byol`
from self_supervised.callback.state import pack
from self_supervised.callback.checkpoint import Checkpoint
from self_supervised.core import seed_everything
from self_supervised.data.demo import digits
from self_supervised.core import write_atomic
from self_supervised.vision.byol import byol_learner, create_byol_model, get_byol_aug_pipelines

class Items:
    "Digits that draw from all three generators"
    def __init__(self): self.x = digits()[0]
    def __len__(self): return 256
    def __getitem__(self, i): return (self.x[i]*random.uniform(.9,1) + float(np.random.rand())*.01 + torch.rand(1,8,8)*.01,)

def loader(workers, kept, shuffle):
    "fastai's, or torch's with workers that are kept over epochs"
    if not kept: return DataLoader(Items(), bs=16, shuffle=shuffle, num_workers=workers)
    return torch.utils.data.DataLoader(Items(), batch_size=16, shuffle=shuffle, num_workers=workers, persistent_workers=True)

def fit(folder, workers, epochs, kept=False):
    "The run: BYOL on digits, items and views that draw, an optimizer with state, a log"
    seed_everything(0)
    dls = DataLoaders(*[loader(workers, kept, s) for s in (True,False)])
    seed_everything(1, None if kept else dls)
    net = nn.Sequential(nn.Conv2d(1,32,3,2), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    augs = get_byol_aug_pipelines(8, jitter=False, bw=False, blur=False, solarize=False, stats=None)
    learn = byol_learner(dls, create_byol_model(net, hidden_size=256, projection_size=64), augs, cbs=CSVLogger(), path=folder)
    learn.remove_cb(learn.progress)
    learn.fit_byol(epochs, cbs=Checkpoint(folder/'checkpoints', every=1))
    save_outcome(learn, folder/'outcome.pt')

def save_outcome(learn, file):
    "All that the run leaves"
    r = learn.recorder
    log = [row.rpartition(',')[0] for row in (Path(learn.path)/'history.csv').read_text().splitlines()]     # without the clock
    out = dict(model=dict(learn.model.state_dict()), opt=learn.opt.state_dict(), losses=r.losses, rows=r.values, iters=r.iters, hps=r.hps, momenta=learn.byol.momenta,
               log=log, draws=[random.random(), float(np.random.rand()), torch.rand(1)])
    write_atomic(file, lambda f: torch.save(pack(out), f))

def same(a, b):
    "Equal to the last bit?"
    if isinstance(a, torch.Tensor): return torch.equal(a, b)
    if isinstance(a, dict): return a.keys()==b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list,tuple)): return len(a)==len(b) and all(map(same, a, b))
    return a==b

def start(folder, workers, epochs, kept):
    "A process with the run in it"
    folder.mkdir(exist_ok=True)
    pid = os.fork()
    if pid: return pid
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    warnings.filterwarnings('ignore')
    try: fit(folder, workers, epochs, kept)
    except BaseException as e: print(repr(e), file=sys.stderr); os._exit(1)
    os._exit(0)

def end(pid, delay=None):
    "Wait for a process, `delay` seconds at most: then it is killed. Was it?"
    until = time.monotonic()+(delay or 1e9)
    while time.monotonic()<until:
        if any(res := os.waitpid(pid, os.WNOHANG)): break
        time.sleep(.002)
    else:
        os.kill(pid, signal.SIGKILL)
        res = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(res[1])
    if code not in (0, -signal.SIGKILL): sys.exit(f'the run failed with {code}')
    return code!=0

def measure(root, workers, kept, kills, epochs, seconds, rng):
    "One row of the table"
    t = time.perf_counter()
    end(start(root/'whole', workers, epochs, kept))
    whole = torch.load(root/'whole'/'outcome.pt', weights_only=True)
    done,in_save,runs,equal,i = 0,0,0,True,0
    while done<kills or not (root/f'run{i}'/'outcome.pt').exists():
        killed = end(start(root/f'run{i}', workers, epochs, kept), rng.uniform(0, seconds) if done<kills else None)
        done,in_save = done+killed, in_save+(killed and any((root/f'run{i}'/'checkpoints').glob('.*.pt.*')))
        if (root/f'run{i}'/'outcome.pt').exists():
            runs,equal = runs+1, equal and same(whole, torch.load(root/f'run{i}'/'outcome.pt', weights_only=True))
            if done<kills: i += 1
        print(f'workers {workers}{" kept"*kept}: {done} kills, {in_save} in a save, {runs} runs ended, equal: {equal}', flush=True)
    return dict(workers=workers, kept=kept, kills=done, in_a_save=in_save, runs=runs, steps=len(whole['momenta']['value']), tensors=len(whole['model']), equal=equal, seconds=round(time.perf_counter()-t))

def main():
    p = argparse.ArgumentParser()
    p.add_argument('--kills', type=int, default=30)
    p.add_argument('--epochs', type=int, default=12, help='16 batches each')
    p.add_argument('--seconds', type=float, default=3., help='latest moment of a kill after the start of its process')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--workers', type=int, nargs='*', default=[0,2])
    p.add_argument('--kept', type=int, nargs='*', default=[2], help='workers of torch loaders that keep them over epochs')
    p.add_argument('--out')
    a = p.parse_args()
    rows = []
    for w,kept in [*((w,False) for w in a.workers), *((w,True) for w in a.kept)]:
        with tempfile.TemporaryDirectory() as d: rows.append(measure(Path(d), w, kept, a.kills, a.epochs, a.seconds, random.Random(a.seed)))
    res = dict(rows=rows, torch=torch.__version__, python=platform.python_version(), machine=platform.machine(), threads=torch.get_num_threads(), seed=a.seed)
    print(json.dumps(res, indent=1))
    if a.out: Path(a.out).write_text(json.dumps(res, indent=1)+'\n')
    if not all(r['equal'] for r in rows): sys.exit('a run that was killed ended differently')

if __name__ == '__main__': main()
