"""What a step costs beside the work of its networks: step, views, moving average, memory, growth with batch, size, workers and processes.

    python benchmarks/speed.py --out benchmarks/speed.json
    python benchmarks/speed.py --device cuda --out benchmarks/speed-cuda.json

The bare step is what no BYOL can do without, on views that lie ready: two passes of the online network forward and backward, two of the
target forward, the loss, one step of the optimizer, one of the moving average. The other is `Learner.fit`, with everything that comes
with `BYOL`: loader, views, guard, health. Both train in one process, a batch each in turn, so that whatever else the machine does meets
both (freed memory that is kept as well, on a CPU); each figure is a median, of steps and of three rounds (`ratios`). Pictures lie in memory, a quarter larger than the views (`speed_files.py` and the parts `kept` and `workers` begin with files).
"""
import argparse, json, os, resource, statistics, subprocess, sys, tempfile, time, warnings
from contextlib import nullcontext
from functools import partial

import fastai, kornia, torch
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.fp16 import MixedPrecision
from fastai.torch_core import num_distrib, rank_distrib
from self_supervised.data.arrays import tensor_dls
from self_supervised.data.images import image_dls
from self_supervised.ema import ema_update
from self_supervised.layers import create_encoder
from self_supervised.callback import put_back
from self_supervised.callback.cpu_memory import keep_memory
from self_supervised.callback.graphs import GraphedPasses
from self_supervised.lars import LARS
from self_supervised.recipes import opt_funcs
from self_supervised.fit import byol_splitter
from self_supervised.vision import byol
from self_supervised.vision.byol import byol_learner, create_byol_model, get_byol_aug_pipelines
from machine import machine
from speed_files import write_photos

# name: channels-last?, bfloat16?
settings = {'float32': (False,False), 'float32, channels-last': (True,False), 'bfloat16, channels-last': (True,True)}
# The learner has CUDA graphs, too; the bare step launches what it does, one by one
GRAPHS = 'bfloat16, channels-last, graphs'
settings[GRAPHS] = settings['bfloat16, channels-last']
# recipe: the optimizer of a bare step, from torch where it has one
bare_opts = dict(lars=LARS, sgd=partial(torch.optim.SGD, momentum=.9, weight_decay=1e-4, fused=True), adamw=partial(torch.optim.AdamW, weight_decay=1e-2, fused=True))
steps = dict(cpu =[('resnet18', px, 64, o, opt) for px in (64,128) for opt in bare_opts for o in settings if o!=GRAPHS and (opt!='sgd' or o=='float32, channels-last')],
             cuda=[('resnet50', 224, 256, o, 'lars') for o in ('bfloat16, channels-last', GRAPHS)] + [('resnet50', 224, 256, GRAPHS, 'adamw')] +
                  [('resnet18', 32, bs, GRAPHS, opt) for bs in (256,512) for opt in bare_opts] + [('resnet18', 32, 512, 'bfloat16, channels-last', 'sgd')])
tiny = [('tiny_resnet', 32, 16, 'float32, channels-last', opt) for opt in bare_opts]   # to try the command
growth = [('resnet18', px, bs, 'float32, channels-last', 'lars') for px,bs in ((48,64),(64,32),(64,64),(64,128),(96,64))]

def model_of(arch, px, device, channels_last):
    "Network with the published heads; for pictures of 32 pixels with the stem that keeps their resolution"
    torch.manual_seed(0)
    model = create_byol_model(create_encoder(arch, pretrained=False, pool_type='avg', small_stem=px<=32 and arch!='tiny_resnet')).to(device)
    return model.to(memory_format=torch.channels_last) if channels_last else model

def bare_step(arch, px, bs, setting, device, opt='lars'):
    "A function that takes a step on views that lie ready"
    channels_last,bf16 = settings[setting]
    model = model_of(arch, px, device, channels_last)
    if bf16: model.precision = partial(torch.autocast, device, torch.bfloat16)
    opt = bare_opts[opt]([p for ps in byol_splitter(model) for p in ps], lr=rates[opt])
    views = [torch.randn(bs, 3, px, px, device=device) for _ in range(2)]
    def step():
        loss = model.loss(*views)
        loss.backward(); opt.step(); opt.zero_grad()
        ema_update(model.target, model.online, .99)
    return step

rates = dict(lars=.1, sgd=.1, adamw=1e-3)

def learner(arch, px, bs, setting, device, n=512, cbs=(), opt='lars'):
    "A `Learner` with `BYOL` as it comes, and the optimizer of a recipe"
    channels_last,bf16 = settings[setting]
    x = torch.randint(256, (max(n, 2*bs), 3, px*5//4, px*5//4), dtype=torch.uint8, device=device)
    dls = tensor_dls(x, bs=bs, seed=0, device=device)
    cbs = [*cbs, *([ChannelsLast()] if channels_last else []), *([MixedPrecision('bf16')] if bf16 else []), *([GraphedPasses()] if setting==GRAPHS else [])]
    return byol_learner(dls, model_of(arch, px, device, False), get_byol_aug_pipelines(px), opt_func=opt_funcs[opt], lr=rates[opt], cbs=cbs)

def now(device):
    "Wall and processor time, seconds; work handed to a GPU is waited for"
    if device=='cuda': torch.cuda.synchronize()
    return torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)

class Turns(Callback):
    "After each batch of the learner a bare step, and a look at the clock around both"
    order,run_valid = 1000,False
    def __init__(self, bare, n, warmup, device): self.bare,self.n,self.warmup,self.device,self.times = bare,n,warmup,device,[]
    def before_train(self): self.start = now(self.device)
    def after_batch(self):
        mine = now(self.device)-self.start
        start = now(self.device)
        self.bare()
        self.times.append((mine, now(self.device)-start))
        if len(self.times)==self.n+self.warmup: raise CancelFitException
        self.start = now(self.device)

def fit_quietly(learn, epochs=1000):
    with warnings.catch_warnings(), learn.no_bar(), learn.no_logging():
        warnings.simplefilter('ignore')
        learn.fit(epochs)

def median(ts): return statistics.median(t.item() for t in ts)

def step_row(arch, px, bs, setting, opt, device, n, warmup=3):
    "Step of the learner and bare step, in turns"
    turns = Turns(bare_step(arch, px, bs, setting, device, opt), n, warmup, device)
    fit_quietly(learner(arch, px, bs, setting, device, cbs=[turns], opt=opt))
    mine,bare = (torch.stack(ts)[warmup:] for ts in zip(*turns.times))
    return dict(arch=arch, px=px, bs=bs, setting=setting, recipe=opt, n=n, bare_ms=round(1000*median(bare[:,0]), 1), fit_ms=round(1000*median(mine[:,0]), 1),
                ratio=round(median(mine[:,0])/median(bare[:,0]), 3), cpu_ratio=round(median(mine[:,1])/median(bare[:,1]), 3),
                bare_pictures_a_second=round(bs/median(bare[:,0]), 1), fit_pictures_a_second=round(bs/median(mine[:,0]), 1))

def in_rounds(row, cases, device, n, repeats=3):
    "After each round, of each case the row with the median ratio so far, and the ratios of all rounds: what else the machine does changes within minutes, and not all of it meets both sides alike"
    rounds = [[] for _ in cases]
    for _ in range(repeats):
        for o,rows in zip(cases, rounds):
            rows.append(row(*o, device, n))
            print(rows[-1], flush=True)
        yield [sorted(rows, key=lambda r: r['ratio'])[len(rows)//2] | dict(ratios=sorted(r['ratio'] for r in rows)) for rows in rounds]

def in_turns(fs, n, device, warmup=2, make=None):
    "Median milliseconds of each of `fs`, taken in turns; what `make` answers is their argument, and making it is not timed"
    times = {k:[] for k in fs}
    for i in range(n+warmup):
        for k,f in fs.items():
            given = [make(k)] if make else []
            start = now(device)
            f(*given)
            times[k].append((now(device)-start)[0])
    return {k: round(1000*median(ts[warmup:]), 2) for k,ts in times.items()}

def views_row(px, bs, device, n):
    "Each operation of the two pipelines on a batch that the ones before it made; with freed memory kept, as in a fit"
    keep_memory()
    x = torch.rand(bs, 3, px*5//4, px*5//4, device=device)
    rows = {}
    for i,pipe in enumerate(get_byol_aug_pipelines(px)):
        given,y = {'all': x},x
        for f in pipe.fs:
            given[f.name] = y
            y = f(y.clone(), split_idx=0)
        fs = {'all': pipe, **{f.name: partial(f, split_idx=0) for f in pipe.fs}}
        rows[f'view {i+1}'] = in_turns(fs, n, device, make=lambda k: given[k].clone())   # some write into their batch
    return dict(px=px, bs=bs, ms=rows)

def average_row(arch, device, n):
    "The moving average beside a plain copy of as many bytes"
    model = model_of(arch, 224, device, False)
    flat = torch.cat([p.detach().flatten() for p in model.online.parameters()])
    into = torch.empty_like(flat)
    ms = in_turns(dict(average=lambda: ema_update(model.target, model.online, .99), copy=lambda: into.copy_(flat)), n, device)
    return dict(arch=arch, mb=round(flat.numel()*4/1e6, 1), ms=ms, ratio=round(ms['average']/ms['copy'], 3))

def peak(what, px, bs, setting, device, n=6):
    "In a process of its own: most memory held at once, MB, and how much of it came after the imports"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
    if what=='bare':
        step = bare_step('resnet18', px, bs, setting, device)
        for _ in range(n): step()
    else: fit_quietly(learner('resnet18', px, bs, setting, device, n=n*bs), 1)
    mb = torch.cuda.max_memory_allocated()/2**20 if device=='cuda' else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
    print(json.dumps(dict(mb=round(mb), own=round(mb if device=='cuda' else mb-before))))

def memory_row(px, bs, setting, device):
    def child(what): return json.loads(subprocess.run([sys.executable, __file__, '--child', what, str(px), str(bs), setting, '--device', device],
                                                      check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    bare,fit = child('bare'),child('fit')
    return dict(px=px, bs=bs, setting=setting, bare_mb=bare['mb'], fit_mb=fit['mb'], ratio=round(fit['mb']/bare['mb'], 3), ratio_without_imports=round(fit['own']/bare['own'], 3))

class Clock(Callback):
    "Look at the clock after each batch, and stop after `n`"
    order,run_valid = 1000,False
    def __init__(self, n, device): self.n,self.device,self.times = n,device,[]
    def after_batch(self):
        self.times.append(now(self.device)[0].item())
        if len(self.times)==self.n: raise CancelFitException

def rate(folder, px, bs, workers, kept, n, device, warmup=3):
    "Pictures a second from JPEG files to the step, of all processes that train together: the mean over `n` steps in the middle of an epoch, when readers have as much ahead of them at the end as at the start"
    from self_supervised.callback.distributed import join_ranks   # needs accelerate
    if not kept: put_back.keep_memory = lambda on=True: False
    join_ranks()
    bs //= num_distrib() or 1
    dls = image_dls(folder, px*5//4, bs=bs, valid=0., workers=workers, device=device)
    clock = Clock(n+warmup+1, device)
    learn = byol_learner(dls, model_of('resnet18', px, device, False), get_byol_aug_pipelines(px), opt_func=LARS, lr=.1, cbs=[clock, ChannelsLast()])
    with learn.distrib_ctx() if num_distrib()>1 else nullcontext(): fit_quietly(learn)
    steps = clock.times[warmup:]
    if not rank_distrib(): print(json.dumps((num_distrib() or 1)*bs*(len(steps)-1)/(steps[-1]-steps[0])))

def rate_rows(cases, bs, device, n, repeats=3):
    "`rate` of each of `cases` (px, workers, processes, kept): each a run of its own, all in turns; the batch is shared out"
    rates = {k:[] for k in cases}
    with tempfile.TemporaryDirectory() as folder:
        write_photos(folder, bs*(n+20))   # readers go on after the last step that is timed
        for _ in range(repeats):
            for px,workers,processes,kept in cases:
                launch = ['-m','torch.distributed.run','--standalone',f'--nproc_per_node={processes}'] if processes>1 else []
                env = os.environ | ({'OMP_NUM_THREADS':str(max(1, os.cpu_count()//processes))} if processes>1 else {})
                out = subprocess.run([sys.executable, *launch, __file__, '--rate', folder, *map(str, (px, bs, workers, int(kept), n)), '--device', device],
                                     check=True, capture_output=True, text=True, env=env)
                rates[px,workers,processes,kept].append(json.loads(out.stdout.splitlines()[-1]))
    for k,rs in rates.items():
        yield dict(zip(('px','workers','processes','kept'), k)) | dict(bs=bs, pictures_a_second=round(statistics.median(rs), 1), runs=[round(r, 1) for r in rs])

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--device', default='cpu', choices=('cpu','cuda'))
    p.add_argument('--n', type=int, default=20, help='steps to time, of each')
    p.add_argument('--rounds', type=int, default=3, help='of steps and averages: a row is the one with the median ratio')
    p.add_argument('--tiny', action='store_true', help='tiny networks, to try the command')
    p.add_argument('--only', nargs='*', default=['step','views','average','memory','growth','kept','workers'])
    p.add_argument('--out', help='JSON file to write; parts that are not run stay as they are')
    p.add_argument('--child', nargs=4, help=argparse.SUPPRESS)
    p.add_argument('--rate', nargs=6, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child: return peak(args.child[0], *map(int, args.child[1:3]), args.child[3], args.device)
    if args.rate: return rate(args.rate[0], *map(int, args.rate[1:]), args.device)
    d,res = args.device,{}
    if args.out and os.path.exists(args.out):
        with open(args.out) as f: res = json.load(f)
    res |= dict(machine=machine(d, fastai=fastai.__version__, kornia=kornia.__version__), command='python benchmarks/speed.py' + (f' --out {args.out}' if args.out else ''))
    def so_far(rows):
        done = []
        for row in rows:
            done.append(row)
            yield done
    def note(part, tables):
        if part not in args.only: return
        for rows in tables:
            res[part] = rows
            print(part, rows[-1], flush=True)
            if args.out:
                with open(args.out, 'w') as f: json.dump(res, f, indent=1); f.write('\n')
    bs = 8 if args.tiny else 64 if d=='cpu' else 256
    sizes = (32,) if args.tiny else (32,64,128) if d=='cpu' else (32,224)
    note('average', in_rounds(average_row, [('tiny_resnet',)] if args.tiny else [('resnet18',), ('resnet50',)], d, 5*args.n, args.rounds))
    note('views',   so_far(views_row(px, bs, d, args.n) for px in sizes))
    note('memory',  so_far(memory_row(px, bs, o, d) for px in ((64,128) if d=='cpu' else (32,224)) for o in ('float32','bfloat16, channels-last')))
    note('step',    in_rounds(step_row, tiny if args.tiny else steps[d], d, args.n, args.rounds))
    note('kept',    so_far(rate_rows([(px,0,1,o) for px in (64,128) for o in (True,False)] if d=='cpu' else [], bs, d, args.n//2)))
    note('workers', so_far(rate_rows([*((64,o,1,True) for o in (0,1,2,4)), *([(64,0,2,True)] if d=='cpu' else [])], bs, d, args.n//2)))
    note('growth',  so_far(step_row(*o, d, max(10, args.n//2)) for o in growth))

if __name__ == '__main__': main()
