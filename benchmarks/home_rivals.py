"""What a user may pick instead of `byol_pretrain FOLDER --minutes 20`, on the same folders, in the same minutes, on one core

    python3 -m venv rivals && rivals/bin/pip install lightly==1.6.0 lightly-train==0.18.0 fastai timm kornia
    python -m benchmarks.home_rivals folders --minutes 20 --seeds 0 --systems lightly lightly-train --python rivals/bin/python
    python -m benchmarks.home_rivals --table

`folders` holds those of `benchmarks.home_folders`; benchmarks/home.json holds our runs. Each rival trains in a process of its own, on
the pictures that `byol_pretrain` would train on (without their labels; those that it holds out are not there), from the same starting weights
of the network and at the size of picture that it chose on that folder. The minutes count from the start of the process to its saved weights.
They are the processor's, of one thread, so that nothing that runs beside takes any of them.

* lightly: the BYOL example for plain torch of its documentation, with its batch of 256, heads, SGD at .06, and momentum .996 to 1. The number
  of epochs, which the momentum follows, is the one that fits into the minutes. Up to 32 px without blur, as the example; above with its default
* lightly-train: `lightly_train.pretrain` with method simclr (distillation has to fetch a teacher; a step of dino, with eight views, takes long)
  and its defaults; a trial run within the minutes finds the number of epochs, and the documented `image_size` is ours instead of 224
* both read pictures in the training process, which is what lightly-train chooses on one core

`--size` trains them on another size, e.g. 224, their default. The minutes of `byol_pretrain` contain its measuring and drawing, half a minute;
those of the rivals do not. All are judged by the same code: 5 labels per class, 20 draws, the pictures that `byol_pretrain` held out. A run
that stands in the JSON is not repeated.
"""
import argparse
import importlib.metadata as metadata
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from copy import deepcopy
from pathlib import Path

import torch
from torch import nn

here = Path(__file__).resolve()
SAVING = 2   # seconds at the end, for saving

# In the rivals' Python. Each trains `net`, and answers what is to be recorded

def lightly(net, job, left):
    "As the BYOL example of its documentation"
    from lightly.data import LightlyDataset
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
    from lightly.utils.scheduler import cosine_schedule
    views = dict(input_size=job['size']) | (dict(gaussian_blur=0.) if job['size']<=32 else {})
    data = LightlyDataset(job['pictures'], transform=BYOLTransform(BYOLView1Transform(**views), BYOLView2Transform(**views)))
    bs = min(256, len(data))
    dl = torch.utils.data.DataLoader(data, batch_size=bs, shuffle=True, drop_last=True)
    projector,predictor = BYOLProjectionHead(width(net, job['size']), 1024, 256),BYOLPredictionHead(256, 1024, 256)
    slow_net,slow_projector = deepcopy(net),deepcopy(projector)
    deactivate_requires_grad(slow_net), deactivate_requires_grad(slow_projector)
    criterion = NegativeCosineSimilarity()
    opt = torch.optim.SGD(nn.ModuleList([net, projector, predictor]).parameters(), lr=.06)
    losses,steps,epochs,begun = [],0,1000,time.process_time()
    while len(losses)<epochs and left()>0:
        m,sum_ = cosine_schedule(len(losses), epochs, .996, 1),[]
        for (x0,x1),_,_ in dl:
            update_momentum(net, slow_net, m=m)
            update_momentum(projector, slow_projector, m=m)
            p0,p1 = predictor(projector(net(x0))),predictor(projector(net(x1)))
            with torch.no_grad(): z0,z1 = slow_projector(slow_net(x0)),slow_projector(slow_net(x1))
            loss = .5*(criterion(p0, z1) + criterion(p1, z0))
            sum_.append(loss.item())
            loss.backward(), opt.step(), opt.zero_grad()
            steps += 1
            if left()<=0: break
        losses.append(sum(sum_)/len(sum_))
        epochs = len(losses)+int(left()/(time.process_time()-begun)*len(losses))
    return dict(method='byol', epochs=len(losses), steps=steps, bs=bs, loss=[losses[0],losses[-1]],
                call=f'examples/pytorch/byol.py: batch_size={bs}, SGD(lr=.06), epochs={epochs}, both views {views}')

class Wrapped(nn.Module):
    "An encoder as lightly-train wants it"
    def __init__(self, net, nf): super().__init__(); self.net,self.nf = net,nf
    def forward_features(self, x): return dict(features=self.net(x)[...,None,None])
    def forward_pool(self, x): return dict(pooled_features=x['features'])
    def feature_dim(self): return self.nf
    def get_model(self): return self.net

def lightly_train(net, job, left):
    "Its function, with as many epochs as fit into the minutes"
    import lightly_train
    n = sum(1 for o in Path(job['pictures']).rglob('*') if o.is_file())
    bs,nf = min(128, n),width(net, job['size'])
    def run(net, out, seconds, epochs):
        "When its steps ended, and the losses"
        ends = []
        next(net.parameters()).register_post_accumulate_grad_hook(lambda _: ends.append(time.process_time()))
        args = dict(method='simclr', epochs=epochs, batch_size=bs, num_workers=0, seed=job['seed'],
                    transform_args=dict(image_size=(job['size'],job['size'])), trainer_args=dict(max_time=dict(seconds=round(seconds, 1))))
        lightly_train.pretrain(out=out, data=job['pictures'], model=Wrapped(net, nf), **args)
        logged = map(json.loads, (Path(out)/'metrics.jsonl').read_text().splitlines())
        return ends,[o['train_loss'] for o in logged if 'train_loss' in o],args
    ends,_,_ = run(deepcopy(net), f"{job['out']}-trial", max(.05*left(), 5), 'auto')
    if len(ends)<2: raise RuntimeError('The trial, a twentieth of the minutes, is too short for two steps')
    epoch = (ends[-1]-ends[0])/(len(ends)-1)*(n//bs)
    starting = 2   # seconds, now that all is imported
    epochs = max(1, int((left()-starting)/epoch))
    ends,losses,args = run(net, f"{job['out']}-run", 4*left(), epochs)
    return dict(method='simclr', epochs=round(len(ends)/(n//bs), 2), steps=len(ends), bs=bs, loss=[losses[0],losses[-1]],
                call=f'lightly_train.pretrain(out, data, model={job["arch"]}, {", ".join(f"{k}={v}" for k,v in args.items())})')

SYSTEMS = {'lightly': lightly, 'lightly-train': lightly_train}

def width(net, size):
    "Number of features"
    with torch.no_grad(): return deepcopy(net).eval()(torch.zeros(1, 3, size, size)).shape[1]

def train(file):
    "Train as `file` says, and save weights and record beside it"
    from lightly.transforms.utils import IMAGENET_NORMALIZE as stats   # of both
    job = torch.load(file, weights_only=False)
    torch.manual_seed(job['seed'])
    def left(): return 60*job['minutes']-SAVING-time.process_time()
    net = job['net'].train()
    done = SYSTEMS[job['system']](net, job, left)
    versions = {k: metadata.version(k) for k in ('lightly','lightly-train','torch','torchvision')}
    torch.save(done | dict(weights=net.state_dict(), stats=(stats['mean'],stats['std']), versions=versions), job['out'])

# In this library's Python

def as_ours(folder, minutes, seed):
    "Settings, pictures and starting weights of `byol_pretrain`, by its run of about that length on this folder"
    from self_supervised.cli.budget import with_network
    from self_supervised.cli.pictures import run_pictures
    from self_supervised.cli.pretrain import complete_settings, normalise_as
    runs = [r for r in json.loads(here.with_name('home.json').read_text()) if r['folder']==folder.name and not r['extra']]
    ours = min(runs, key=lambda r: (abs(r['minutes']-minutes),abs(r['seed']-seed)))
    s = complete_settings(str(folder), seed, None, False, False, False, None, size=ours['size'], bs=ours['bs'])
    s = with_network(s, ours['arch'], {})
    return s,run_pictures(s)

def loaders(s, items):
    "Its loaders and, as they were seeded, its network"
    from self_supervised.cli.pictures import folder_dls
    from self_supervised.cli.pretrain import starting_encoder
    from self_supervised.core import seed_everything
    seed_everything(s.seed)
    return folder_dls(s, items, s.bs),starting_encoder(s)

def link(paths, folder, out):
    "Make a folder of links to pictures"
    for o in map(Path, paths):
        to = out/o.relative_to(folder)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.symlink_to(o.resolve())
    return str(out)

def run(system, folder, minutes, seed, size, python):
    "Train and judge"
    from benchmarks.home import accuracies
    from benchmarks.machine import machine
    from self_supervised.cli.comparison import compare_parts, features_of_parts
    from self_supervised.cli.pictures import judged_dls
    from self_supervised.evaluate.features import Pixels
    s,items = as_ours(folder, minutes, seed)
    dls,net = loaders(s, items)
    size = size or s.size
    row = dict(size=size, arch=s.arch, n_train=len(dls.train_ds),
               machine=machine(), command=shlex.join(['python','-m','benchmarks.home_rivals',*sys.argv[1:]]))
    with tempfile.TemporaryDirectory() as tmp:
        job = dict(net=net, system=system, size=size, seed=seed, arch=s.arch, out=f'{tmp}/out',
                   pictures=link(dls.train_ds.items, folder, Path(tmp)/'pictures'), minutes=minutes)
        torch.save(job, f'{tmp}/job')
        row |= timed([python, '-W', 'ignore', here, '--job', f'{tmp}/job'], tmp)
        done = torch.load(f'{tmp}/out', weights_only=True)
    trained,stats = deepcopy(net),done.pop('stats')
    trained.load_state_dict(done.pop('weights'))
    judged = judged_dls(dls)
    feats = {'raw pixels': features_of_parts(Pixels(), judged, None)}
    if size!=s.size: judged = judged_dls(loaders(type(s)(s | dict(size=size)), items)[0])
    feats |= {k: features_of_parts(o, judged, stats) for k,o in {'untrained encoder': net, 'trained encoder': trained}.items()}
    return row | done | dict(five=accuracies(compare_parts(feats)))

def timed(args, tmp):
    "Run a command on one thread; its seconds, and those of the processor"
    # It would report its use to a server
    env = os.environ | dict(PYTHONPATH=str(here.parents[1]), OMP_NUM_THREADS='1', LIGHTLY_TRAIN_EVENTS_DISABLED='1', LIGHTLY_TRAIN_CACHE_DIR=f'{tmp}/cache')
    def cpu(): return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    begun,used = time.perf_counter(),cpu()
    done = subprocess.run(list(map(str, args)), env=env, capture_output=True, text=True)
    if done.returncode: raise RuntimeError(f'{args}: {done.stderr[-3000:]}')
    return dict(seconds=round(time.perf_counter()-begun, 1), cpu=round(cpu()-used, 1))

def table(rows):
    "One line per run, ours beside the rivals'"
    from benchmarks.home import above
    wanted = {(r['folder'],r['minutes'],r['seed']) for r in rows}
    ours = [r | dict(system='byol_pretrain') for r in json.loads(here.with_name('home.json').read_text())
            if not r['extra'] and (r['folder'],r['minutes'],r['seed']) in wanted]
    print('| folder | seed | minutes (taken, of rivals by the processor) | system | network, size | steps | linear above pixels, start | kNN above pixels, start |')
    print('|---|---|---|---|---|---|---|---|')
    for r in sorted(ours+rows, key=lambda r: (r['folder'],r['minutes'],r['seed'],r['system'],r['size'])):
        system = ' '.join([r['system'], r.get('method', '')]).strip()
        print(f"| {r['folder']} | {r['seed']} | {r['minutes']:g} ({r.get('cpu', r['seconds'])/60:.1f}) | {system} | {r['arch']}, {r['size']} px | "
              f"{r['steps']} of {r['bs']} | {' | '.join(above(r))} |")

if __name__=='__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folders', type=Path, nargs='?', help='holds a folder of pictures each')
    parser.add_argument('--minutes', type=float, default=20)
    parser.add_argument('--seeds', type=int, nargs='*', default=[0])
    parser.add_argument('--only', nargs='*', help='names of folders')
    parser.add_argument('--systems', nargs='*', choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument('--size', type=int, help='side of the pictures in pixels, instead of that of `byol_pretrain`')
    parser.add_argument('--python', default=sys.executable, help="the rivals' Python")
    parser.add_argument('--out', type=Path, default=here.with_suffix('.json'))
    parser.add_argument('--table', action='store_true', help='print what is there')
    parser.add_argument('--job', help='of one run, in the other Python')
    args = parser.parse_args()
    if args.job: sys.exit(train(args.job))
    rows = json.loads(args.out.read_text()) if args.out.exists() else []
    if args.table: sys.exit(table(rows))
    for seed in args.seeds:
        for folder in sorted(o for o in args.folders.iterdir() if o.is_dir() and (not args.only or o.name in args.only)):
            for system in args.systems:
                key = dict(system=system, folder=folder.name, minutes=args.minutes, seed=seed, asked_size=args.size)
                if any(key.items()<=r.items() for r in rows): continue
                rows.append(key | run(system, folder, args.minutes, seed, args.size, args.python))
                args.out.write_text(json.dumps(rows, indent=1))
                table(rows[-1:])
