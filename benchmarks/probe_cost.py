"""What `Probe` and `Health` cost at their default settings, as shares of an epoch on 5,000 pictures.

    OMP_NUM_THREADS=1 python benchmarks/probe_cost.py --out benchmarks/probe_cost.json

The digits, drawn again up to 5,000 and enlarged; batch 64, one thread. Everything is processor time of the process, which does not count the
wait for a processor that others hold: the training between two events, each call of `Probe.measure`, each call that training makes of
`Health`. All are medians over epochs. An epoch trains a few of its 78 steps, and the whole is reckoned from them. The probe is
that of a whole epoch: two labelled sets of 5,000 pictures are offered, and it takes what its defaults take. Loading and decoding are not in it:
the pictures are in memory. The validation part, which would make the epoch longer, neither.
"""
import argparse, json, os, statistics, sys, time
from functools import wraps

import torch, torch.nn.functional as F
from fastcore.basics import noop
from fastai.callback.core import Callback
from fastai.learner import Learner
from self_supervised.core import seed_everything
from self_supervised.data.demo import digits
from self_supervised.data.arrays import tensor_dls
from self_supervised.layers import create_encoder
from self_supervised.callback.probe import Probe
from self_supervised.vision.byol import BYOL, create_byol_model, get_byol_aug_pipelines
from machine import machine

N,BS = 5000,64
networks = dict(resnet18=dict(px=64, steps=6, hidden_size=4096, projection_size=256), tiny_resnet=dict(px=32, steps=12, hidden_size=512, projection_size=64),
                tiny_resnet_16=dict(px=16, steps=39, hidden_size=512, projection_size=64))
each_step = 'before_batch','_keep','after_pred','after_batch'
each_epoch = 'before_epoch','before_train','before_step','after_step','after_train','after_validate'   # the two of a step work in one of them

def pictures(px, seed):
    "5,000 digits, each about three times over, and their labels"
    x,y,_ = digits()
    i = torch.randint(len(x), (N,), generator=torch.Generator().manual_seed(seed))
    return F.interpolate(x[i], size=(px,px), mode='bilinear'), y[i]

def timed(f, seconds):
    "`f`, its processor time added to the last of `seconds`"
    @wraps(f)
    def g(*args, **kwargs):
        t = time.process_time()
        try: return f(*args, **kwargs)
        finally: seconds[-1] += time.process_time()-t
    return g

class Clock(Callback):
    "First of all callbacks: begins the time of an epoch's training, and a new entry of every list"
    order = -1000
    def __init__(self, lists, train): self.lists,self.train = lists,train
    def before_train(self):
        for o in self.lists: o.append(0.)
        self.train.append(-time.process_time())

class Stop(Callback):
    "Last of all: ends it"
    order = 1000
    def __init__(self, train): self.train = train
    def after_train(self): self.train[-1] += time.process_time()

def measure(arch, px, steps, epochs, **heads):
    "One row of the table"
    seed_everything(0)
    x,y = pictures(px, 0)
    encoder = create_encoder(arch, pretrained=False, n_in=1)
    probe,lists = Probe((x,y), pictures(px, 1)),{k: [] for k in ('probe',*each_step,*each_epoch)}
    learn = Learner(tensor_dls(x[:steps*BS], bs=BS, seed=0), create_byol_model(encoder, size=px, **heads), cbs=[BYOL(get_byol_aug_pipelines(px, stats=None)), probe])
    learn.logger = noop
    for k in each_step+each_epoch:
        if hasattr(type(learn.health), k): setattr(learn.health, k, timed(getattr(learn.health, k), lists[k]))
    for o in lists.values(): o.append(0.)   # before the first epoch
    probe.measure = timed(probe.measure, lists['probe'])
    train = []
    with learn.no_bar(): learn.fit(epochs, 1e-3, cbs=[Clock(list(lists.values()), train), Stop(train)])
    def med(k): return statistics.median(lists[k][2:])   # the first epoch warms up, and has the probe before training
    step = statistics.median(train[1:])/steps
    epoch = step*(N//BS)
    a,b = sum(map(med, each_step))/steps,sum(map(med, each_epoch))
    return dict(network=arch, px=px, batch=BS, n=probe.n, every=probe.every, steps=steps, epochs=epochs, step_ms=round(1e3*step, 1), epoch_s=round(epoch, 2),
                probe_s=round(med('probe'), 3), probe_percent=round(100*med('probe')/epoch, 2), probes_percent=[round(100*o/epoch, 2) for o in lists['probe'][2:]],
                health_step_ms=round(1e3*a, 3), health_epoch_ms=round(1e3*b, 1), health_percent=round(100*(a*(N//BS)+b)/epoch, 2))

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--epochs', type=int, default=4, help='3 or more; the first is not counted')
    p.add_argument('--networks', nargs='+', choices=networks, default=list(networks))
    p.add_argument('--out', help='JSON file to write')
    args = p.parse_args()
    torch.set_num_threads(1)
    res = dict(machine=machine(),
               command=' '.join(['python benchmarks/probe_cost.py', *sys.argv[1:]]), rows=[])
    print('| network | px | step, ms | epoch, s | probe, s | of the epoch, % | health, ms a step | health, ms an epoch besides | of the epoch, % |', '|'+'---|'*9, sep='\n', flush=True)
    for name in args.networks:
        r = measure(name.removesuffix('_16'), epochs=args.epochs, **networks[name])
        res['rows'].append(r)
        print(f"| {r['network']} | {r['px']} | {r['step_ms']} | {r['epoch_s']} | {r['probe_s']} | {r['probe_percent']} | {r['health_step_ms']} | {r['health_epoch_ms']} | {r['health_percent']} |", flush=True)
    res['machine']['load_after'] = [round(o, 2) for o in os.getloadavg()]
    if args.out:
        with open(args.out, 'w') as f: json.dump(res, f, indent=1); f.write('\n')

if __name__ == '__main__': main()
