"""A long run on one process: does anything grow, does any step get slower?

    OMP_NUM_THREADS=1 python benchmarks/long_run.py --out benchmarks/long_run.json

Trains a tiny network with `BYOL` on digits, with everything that is on by default (views, guard, recorder, validation at the end of each
epoch, momentum on record) and a csv log, and notes at even distances the resident memory, the objects that Python tracks, and the time of
a step. fastai's recorder keeps a tensor for each batch; a second, shorter run empties it after each epoch, and shows what else grows.
"""
import argparse, gc, json, os, platform, statistics, sys, tempfile, time, warnings
from functools import partial

import torch
from torch import nn
from fastai.callback.core import Callback
from fastai.callback.progress import CSVLogger, ProgressCallback
from self_supervised import __version__
from self_supervised.core import seed_everything
from self_supervised.data.demo import digits
from self_supervised.data.arrays import tensor_dls
from self_supervised.vision.byol import byol_learner, create_byol_model, get_byol_aug_pipelines

def rss():
    "Resident memory of this process, MB"
    with open('/proc/self/statm') as f: return int(f.read().split()[1])*os.sysconf('SC_PAGE_SIZE')/2**20

class Watch(Callback):
    "Note memory, objects and the median time of a step, every `every` steps"
    order,run_valid = 1000,False
    def __init__(self, every, save): self.every,self.save,self.rows,self.times = every,save,[],[]
    def before_batch(self): self.cpu,self.wall = time.process_time(),time.perf_counter()
    def after_batch(self):
        self.times.append((time.process_time()-self.cpu, time.perf_counter()-self.wall))
        n = self.train_iter
        if n%self.every: return
        cpu,wall = (round(1000*statistics.median(o), 3) for o in zip(*self.times))
        self.times = []
        gc.collect()
        self.rows.append(dict(step=n, rss_mb=round(rss(), 2), objects=len(gc.get_objects()), cpu_ms=cpu, wall_ms=wall))
        print(self.rows[-1], flush=True)
        self.save(self.rows)

class EmptyRecorder(Callback):
    "Forget what is kept of each batch"
    def after_epoch(self):
        for o in (self.recorder.losses, self.recorder.lrs, self.learn.byol.momenta): o.clear()

def make(bs, every, path, cbs, save=lambda rows: None):
    "The learner to watch"
    x,_,_ = digits()
    dls = tensor_dls(x, splits=(torch.arange(1600), torch.arange(1600,1797)), bs=bs)
    seed_everything(0, dls)
    net = nn.Sequential(nn.Conv2d(1,16,3,2,1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16,32,3,2,1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    views = dict(flip_p=0., rotate=True, jitter=False, bw=False, blur=False, solarize=False, resize_scale=(.6,1.), stats=None)
    learn = byol_learner(dls, create_byol_model(net, hidden_size=64, projection_size=32), get_byol_aug_pipelines(8, **views), path=path, cbs=[CSVLogger(), watch := Watch(every, save), *cbs])
    learn.remove_cb(ProgressCallback)
    return learn,watch

def slope(rows, key):
    "Least-squares growth of `key` per 1000 steps"
    return round(1000*statistics.linear_regression([r['step'] for r in rows], [r[key] for r in rows]).slope, 4)

def run(steps, bs, cbs, save):
    "Train for `steps`, note 20 times what it takes, and `save` each time: a run that is cut leaves its figures"
    with tempfile.TemporaryDirectory() as path:
        learn,_ = make(bs, steps//20, path, cbs, lambda rows: save(summary(rows, learn)))
        with learn.no_logging(): learn.fit(-(-steps//len(learn.dls.train)), 1e-3)

def summary(rows, learn):
    "Growth from the fourth note on, when allocators have warmed up"
    late,res = rows[3:],dict(steps=rows[-1]['step'])
    if len(late)>1: res |= {f'{k}_per_1000': slope(late, k) for k in ('rss_mb','objects','cpu_ms')}
    return res | dict(losses=len(learn.recorder.losses), momenta=len(learn.byol.momenta), skipped=len(learn.guard.skipped),
                      loss=round(float(learn.smooth_loss), 4), rows=list(rows))

def machine():
    "What the figures depend on"
    def cpu():
        try: return next(l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name'))
        except (OSError, StopIteration): return platform.processor()
    return dict(device=cpu(), cores=os.cpu_count(), threads=torch.get_num_threads(), load=[round(o, 2) for o in os.getloadavg()], system=platform.system(),
                python=platform.python_version(), torch=torch.__version__, self_supervised=__version__)

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--steps', type=int, default=20_000)
    p.add_argument('--steps-emptied', type=int, default=5000, help='steps of the second run, with an empty recorder')
    p.add_argument('--bs', type=int, default=32)
    p.add_argument('--out', help='JSON file to write')
    args = p.parse_args()
    if min(args.steps, args.steps_emptied) < 400: p.error('a slope wants 400 steps or more')
    warnings.simplefilter('ignore')
    res = dict(machine=machine(), command='python benchmarks/long_run.py '+' '.join(sys.argv[1:]))
    def save(name, figures):
        res[name] = figures
        res['machine']['load_after'] = machine()['load']
        if args.out:
            with open(args.out, 'w') as f: json.dump(res, f, indent=1); f.write('\n')
    run(args.steps, args.bs, [], partial(save, 'everything_on'))
    run(args.steps_emptied, args.bs, [EmptyRecorder()], partial(save, 'recorder_emptied'))
    for name in ('everything_on','recorder_emptied'): print(name, {k:v for k,v in res[name].items() if k!='rows'})

if __name__ == '__main__': main()
