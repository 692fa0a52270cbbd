"""Health and worth of what several processes train, beside one process with the joint batch: batchnorm sees half of it, and its statistics are not shared.

    OMP_NUM_THREADS=1 python benchmarks/ranks_health.py --out benchmarks/ranks_health.json

starts itself under torchrun for the runs on two processes. Digits, `tiny_resnet`, batch 128 in all, AdamW, one run a seed.
"""
import argparse, json, os, platform, statistics, subprocess, sys, tempfile
from contextlib import nullcontext
from pathlib import Path

import torch
from fastai.torch_core import default_device, num_distrib, rank_distrib
from self_supervised import __version__
from self_supervised.core import seed_everything
from self_supervised.data.demo import digits
from self_supervised.data.arrays import tensor_dls
from self_supervised.evaluate.features import effective_rank, knn_accuracy, spread
from self_supervised.layers import create_encoder
from self_supervised import fit   # brings `fit_byol`
from self_supervised.vision.byol import byol_learner, create_byol_model, embeddings, get_byol_aug_pipelines

def train(seed, epochs, bs=128):
    "One run: the figures of its end"
    seed_everything(seed)
    x,y,splits = digits()
    model = create_byol_model(create_encoder('tiny_resnet', n_in=1, pretrained=False), hidden_size=512, projection_size=64)
    augs = get_byol_aug_pipelines(8, resize_scale=(.6,1.), flip_p=0., rotate=True, rotate_deg=20, rotate_p=.8, jitter=False, bw=False, blur=False, solarize=False, stats=None)
    learn = byol_learner(tensor_dls(x, splits=splits, bs=bs//(num_distrib() or 1), seed=seed), model, augs)
    with learn.no_bar(), learn.no_logging(), learn.distrib_ctx() if num_distrib()>1 else nullcontext(): learn.fit_byol(epochs, 'adamw', lr=4e-3, m=.95)
    (_,train_x,train_y),(z,test_x,test_y) = (embeddings(model, (x[i],y[i])) for i in splits)
    return dict(loss=torch.stack(learn.recorder.losses)[-9:].mean().item(), spread=float(spread(z)), effective_rank=float(effective_rank(z)), knn=knn_accuracy(train_x, train_y, test_x, test_y))

def runs(seeds, epochs, out):
    torch.set_num_threads(1), default_device(False)
    res = [train(s, epochs) for s in seeds]
    if not rank_distrib(): Path(out).write_text(json.dumps(res))

def main():
    p = argparse.ArgumentParser()
    p.add_argument('--seeds', type=int, nargs='+', default=[1,2,3]); p.add_argument('--epochs', type=int, default=12); p.add_argument('--out'); p.add_argument('--inside', action='store_true')
    a = p.parse_args()
    if a.inside: return runs(a.seeds, a.epochs, a.out)
    args,res = [__file__, '--inside', '--seeds', *map(str, a.seeds), '--epochs', str(a.epochs), '--out'],{}
    with tempfile.TemporaryDirectory() as d:
        for n,launcher in {1: [], 2: '-m torch.distributed.run --standalone --nproc-per-node 2'.split()}.items():
            subprocess.run([sys.executable, '-W', 'ignore', *launcher, *args, f'{d}/{n}'], check=True)
            rows = json.loads(Path(f'{d}/{n}').read_text())
            res[n] = {k: dict(mean=statistics.mean(r[k] for r in rows), std=statistics.stdev(r[k] for r in rows), all=[r[k] for r in rows]) for k in rows[0]}
    text = json.dumps(dict(processes=res, seeds=a.seeds, epochs=a.epochs, versions=dict(torch=torch.__version__, self_supervised=__version__), machine=platform.machine()), indent=1)
    Path(a.out).write_text(text) if a.out else print(text)

if __name__=='__main__': main()
