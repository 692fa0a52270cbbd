"""Damage checkpoints and encoder files in every way we can think of: each is refused, or read as what was saved, and a resume takes the one before.

    OMP_NUM_THREADS=1 python benchmarks/damaged.py --out benchmarks/damaged.json

A run on digits leaves two checkpoints. The newest is damaged 3,600 times and read each time, beside the older one, as a resume reads them; a
file that neither is refused nor holds what was saved would be another state, in silence. Encoder files are damaged 1,200 times.
"""
import argparse
import io
import json
import random
import tempfile
import time
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import torch
from torch import nn
from self_supervised.callback.checkpoint import Checkpoint, checkpoint_files, newest_checkpoint, read_checkpoint
from self_supervised.core import seed_everything
from self_supervised.data.arrays import tensor_dls
from self_supervised.data.demo import digits
from self_supervised.transfer.encoder_file import load_encoder, save_encoder
from self_supervised.vision.byol import byol_learner, create_byol_model, get_byol_aug_pipelines

def network():
    return nn.Sequential(nn.Conv2d(1,8,3,2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def train(folder):
    "Two epochs of four steps: a checkpoint after each"
    seed_everything(0)
    dls = tensor_dls(digits()[0][:64], bs=16, seed=0)
    augs = get_byol_aug_pipelines(8, jitter=False, bw=False, blur=False, solarize=False, stats=None)
    learn = byol_learner(dls, create_byol_model(network(), hidden_size=16, projection_size=8), augs)
    with learn.no_bar(), learn.no_logging(), redirect_stdout(io.StringIO()): learn.fit(2, cbs=Checkpoint(folder))

# Ways to damage bytes `b`, by a random generator `r`

def flip(b, places):
    b = bytearray(b)
    for p in places: b[p//8] ^= 1<<p%8
    return bytes(b)

def overwrite(b, at, new): return b[:at]+new+b[at+len(new):]

def one_bit(b, r): return flip(b, [r.randrange(8*len(b))])
def one_bit_at_the_end(b, r): return flip(b, [r.randrange(8*max(0, len(b)-8000), 8*len(b))])
def bits(b, r): return flip(b, [r.randrange(8*len(b)) for _ in range(r.randrange(2, 100))])
def one_byte(b, r): return overwrite(b, r.randrange(len(b)), bytes([r.randrange(256)]))
def cut(b, r): return b[:r.randrange(len(b))]
def cut_near_the_end(b, r): return b[:-r.randrange(1, 200)]
def without_the_beginning(b, r): return b[r.randrange(1, len(b)):]
def zeros(b, r): return overwrite(b, r.randrange(len(b)-1024), bytes(r.randrange(1, 1024)))
def zeros_to_the_end(b, r):
    n = r.randrange(1, len(b))
    return b[:n]+bytes(len(b)-n)
def noise(b, r): return overwrite(b, r.randrange(len(b)-1024), r.randbytes(r.randrange(1, 1024)))
def a_part_twice(b, r):
    n = r.randrange(len(b)-512)
    return b[:n+512]+b[n:]
def a_part_less(b, r):
    n = r.randrange(len(b)-512)
    return b[:n]+b[n+r.randrange(1, 512):]
def parts_swapped(b, r):
    i,j = sorted(r.sample(range(0, len(b)-512, 512), 2))
    return b[:i]+b[j:j+512]+b[i+512:j]+b[i:i+512]+b[j+512:]
def something_behind(b, r): return b+r.randbytes(r.randrange(1, 200))
def empty_or_other(b, r): return r.choice([b'', b'\0', bytes(len(b)), r.randbytes(len(b)), b'<html>404</html>'])

ways = {one_bit: 1000, one_bit_at_the_end: 500, bits: 400, one_byte: 200, cut: 200, cut_near_the_end: 200, without_the_beginning: 50, zeros: 200,
        zeros_to_the_end: 100, noise: 200, a_part_twice: 50, a_part_less: 100, parts_swapped: 150, something_behind: 50, empty_or_other: 20}

def saved(state):
    f = io.BytesIO()
    torch.save(state, f)
    return f.getvalue()

def without_parts(state, r):
    "A checkpoint that torch wrote, with a part missing or of another kind"
    where = state = dict(state)
    if r.random()<.4: where = state['position'] = dict(state['position'])
    k = r.choice([k for k in where if k not in ('facts','learner','callbacks')])
    if k!='trained' and r.random()<.5: del where[k]   # an older checkpoint does not have that one
    else: where[k] = r.choice(['x', b'', {1}]) if k=='best' else r.choice(['x', 1.5, b'', {1}])   # a number may be the best
    return saved(state)

def same(a, b):
    "Equal to the last bit?"
    if isinstance(a, torch.Tensor): return isinstance(b, torch.Tensor) and a.dtype==b.dtype and a.shape==b.shape and torch.equal(a, b)
    if isinstance(a, dict): return isinstance(b, dict) and a.keys()==b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list,tuple)): return type(a) is type(b) and len(a)==len(b) and all(map(same, a, b))
    return type(a) is type(b) and a==b

def count(way, n, damaged, read, want):
    "Damage a file `n` times and count what comes of it"
    row = dict(way=way, n=n, refused=0, without_effect=0, other=0, more_than_a_line=0)
    for _ in range(n):
        try: got = read(damaged())
        except ValueError as e:
            row['refused'] += 1
            row['more_than_a_line'] += len(str(e).splitlines())>1
        else: row['without_effect' if same(got, want) else 'other'] += 1
    return row

def checkpoints(scale, rng):
    "Rows of the table for checkpoints, and how often the one before was taken"
    with tempfile.TemporaryDirectory() as d:
        train(d)
        old,new = checkpoint_files(d)
        whole,was,before = new.read_bytes(),read_checkpoint(new),read_checkpoint(old)
        taken = []
        def read(b):
            new.write_bytes(b)
            newest = newest_checkpoint(d)
            if newest['position']==was['position']: return newest
            taken.append(same(newest, before))
            return read_checkpoint(new)   # raises
        jobs = [(w.__name__, n, lambda w=w: w(whole, rng)) for w,n in ways.items()]
        jobs.append(('without_parts', 180, lambda: without_parts(was, rng)))
        rows = [count(name, int(n*scale), damaged, read, was) for name,n,damaged in jobs]
    return rows,len(taken),sum(taken),len(whole)

def encoders(scale, rng):
    "Rows of the table for encoder files"
    with tempfile.TemporaryDirectory() as d:
        torch.manual_seed(0)
        file = save_encoder(network(), Path(d)/'e.safetensors', stats=[[.5],[.25]], size=8)
        def content(f):
            e = load_encoder(f, network())
            return dict(e.state_dict())|dict(meta=e.meta)
        def read(b):
            file.write_bytes(b)
            return content(file)
        whole,want = file.read_bytes(),content(file)
        return [count(w.__name__, int(n*scale/3), lambda w=w: w(whole, rng), read, want) for w,n in ways.items()],len(whole)

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--scale', type=float, default=1., help='part of the 3,600 and 1,200 files')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--out', help='JSON file to write')
    a = p.parse_args()
    warnings.filterwarnings('ignore')
    start = time.perf_counter()
    rng = random.Random(a.seed)
    rows,refused,taken,size = checkpoints(a.scale, rng)
    encoder_rows,encoder_size = encoders(a.scale, rng)
    res = dict(checkpoints=rows, bytes=size, one_before_taken=taken, of=refused, encoders=encoder_rows, encoder_bytes=encoder_size,
               total=sum(r['n'] for r in rows), other=sum(r['other'] for r in rows+encoder_rows), seed=a.seed,
               seconds=round(time.perf_counter()-start), torch=torch.__version__)
    print(json.dumps(res, indent=1))
    if a.out: Path(a.out).write_text(json.dumps(res, indent=1)+'\n')
    bad = res['other'] or taken!=refused or any(r['more_than_a_line'] for r in rows+encoder_rows)
    if bad: raise SystemExit('a damaged file was read as something else, or the one before it was not taken')

if __name__ == '__main__': main()
