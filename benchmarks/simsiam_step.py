"""Step time of SimSiam beside BYOL's: forward, loss, backward, optimizer step and, for BYOL, the target's update.

    OMP_NUM_THREADS=1 python benchmarks/simsiam_step.py --out benchmarks/simsiam_step.json

Both take their steps in turns, in one process, on the same encoder and the same two views (made before: they cost the same), so that
whatever else the machine does meets both. Each figure is a median. `cpu` is the processor time of the process, which does
not count the wait for a processor that others hold.
"""
import argparse, json, os, statistics, sys, time

import torch
from self_supervised.ema import ema_update
from self_supervised.layers import create_encoder
from self_supervised.lars import LARS
from self_supervised.recipes import opt_funcs
from self_supervised.fit import byol_splitter
from self_supervised.vision.byol import create_byol_model, create_simsiam_model
from machine import machine

encoders = dict(
    resnet18    = dict(arch='resnet18',    n_in=3, size=64, bs=64),
    tiny_resnet = dict(arch='tiny_resnet', n_in=1, size=8,  bs=128))

# (encoder, which heads): heads of BYOL, heads of SimSiam, optimizer of SimSiam
published = dict(hidden_size=4096, projection_size=256), dict(hidden_size=2048, projection_size=2048, predictor_size=512)
small     = dict(hidden_size=256,  projection_size=64),  dict(hidden_size=128,  projection_size=128,  predictor_size=32)
setups = [
    ('resnet18',    'published, each its own', *published, 'simsiam'),
    ('resnet18',    "BYOL's for both",         published[0], None, 'lars'),
    ('tiny_resnet', 'small, each its own',     *small, 'simsiam'),
    ('tiny_resnet', "BYOL's small for both",   small[0], None, 'lars'),
    ('tiny_resnet', 'published, each its own', *published, 'simsiam'),
]

def make(encoder, byol_heads, simsiam_heads, opt, device):
    "Models and optimizers of the two, their encoders with equal weights"
    def enc():
        torch.manual_seed(0)
        return create_encoder(encoder['arch'], pretrained=False, n_in=encoder['n_in'], pool_type='avg')
    byol = create_byol_model(enc(), **byol_heads)
    siam = create_simsiam_model(enc(), **simsiam_heads) if simsiam_heads else create_byol_model(enc(), **byol_heads, use_momentum=False)
    opts = dict(byol=LARS, simsiam=opt_funcs[opt])
    return {k: (m, opts[k](list(byol_splitter(m)), lr=1e-3)) for k,m in dict(byol=byol.to(device), simsiam=siam.to(device)).items()}

def step(model, opt, v1, v2):
    "One step of training, as a `Learner` with `BYOL` takes it"
    loss = model.loss(v1, v2)
    loss.backward(); opt.step(); opt.zero_grad()
    if model.target is not None: ema_update(model.target, model.online, .99)

def clocked(f, device):
    "Wall and processor time of `f()`, seconds"
    if device == 'cuda': torch.cuda.synchronize()
    wall,cpu = time.perf_counter(),time.process_time()
    f()
    if device == 'cuda': torch.cuda.synchronize()
    return time.perf_counter()-wall, time.process_time()-cpu

def measure(name, heads, byol_heads, simsiam_heads, opt, device, n, warmup):
    "One row of the table: median milliseconds of either, and the ratios"
    e = encoders[name]
    two = make(e, byol_heads, simsiam_heads, opt, device)
    v1,v2 = (torch.rand(e['bs'], e['n_in'], e['size'], e['size'], device=device) for _ in range(2))
    times = dict(byol=[], simsiam=[])
    for i in range(warmup+n):
        for k in sorted(two, reverse=i%2): # who begins changes from turn to turn
            t = clocked(lambda: step(*two[k], v1, v2), device)
            if i >= warmup: times[k].append(t)
    med = {(k,c): statistics.median(t[j] for t in ts) for k,ts in times.items() for j,c in enumerate(('wall','cpu'))}
    return dict(encoder=name, px=e['size'], bs=e['bs'], heads=heads, n=n, **{f'{k}_{c}_ms': round(1000*v, 2) for (k,c),v in med.items()},
                ratio=round(med['simsiam','wall']/med['byol','wall'], 3), cpu_ratio=round(med['simsiam','cpu']/med['byol','cpu'], 3),
                ratios=[round(s[0]/b[0], 3) for s,b in zip(times['simsiam'], times['byol'])])

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--n', type=int, default=15, help='steps to time, of each')
    p.add_argument('--warmup', type=int, default=3, help='steps before, of each')
    p.add_argument('--device', default='cpu', choices=('cpu','cuda'))
    p.add_argument('--only', help='one of the encoders')
    p.add_argument('--out', help='JSON file to write')
    args = p.parse_args()
    if args.n < 10: p.error(f'--n {args.n}: a median wants 10 steps or more')
    res = dict(machine=machine(args.device), command='python benchmarks/simsiam_step.py ' + ' '.join(sys.argv[1:]), rows=[])
    print('| encoder | px | batch | heads | BYOL, ms | SimSiam, ms | ratio | ratio, processor time |', '|---|---|---|---|---|---|---|---|', sep='\n', flush=True)
    for s in setups:
        if args.only not in (None, s[0]): continue
        r = measure(*s, args.device, args.n, args.warmup)
        res['rows'].append(r)
        print(f"| {r['encoder']} | {r['px']} | {r['bs']} | {r['heads']} | {r['byol_wall_ms']:.1f} | {r['simsiam_wall_ms']:.1f} | {r['ratio']:.2f} | {r['cpu_ratio']:.2f} |", flush=True)
    res['machine']['load_after'] = [round(o, 2) for o in os.getloadavg()]
    print({k:v for k,v in res['machine'].items()})
    if args.out:
        with open(args.out, 'w') as f: json.dump(res, f, indent=1); f.write('\n')

if __name__ == '__main__': main()
