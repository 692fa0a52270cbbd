"""BYOL on top of published weights: which way of training on spoils them, and which makes them better?

    python -m benchmarks.gentle folders/stamps lite0.pth --size 64 --steps 100
    python -m benchmarks.gentle --table

`folders` is written by `benchmarks.home_folders`, the weights by `benchmarks.published_weights`. Each way trains for the same number of steps, with
the settings of `byol_pretrain`, and is judged as there: 5 labels per class, 20 draws, on the fifth of the pictures that was held out.

* like new: encoder and heads at one rate
* slower: the encoder at a tenth of the rate
* kept: and with the statistics of batchnorm that came with the weights (`KeepBatchNorm`)
* gentle: and heads first (`HeadsFirst`), as `byol_pretrain --init` trains
"""
import argparse
import json
import sys
import tempfile
from copy import deepcopy
from pathlib import Path

from benchmarks.home import accuracies
from benchmarks.machine import machine
from benchmarks.published_weights import ARCH
from self_supervised.callback.gentle import HeadsFirst, KeepBatchNorm
from self_supervised.cli.comparison import compare_parts, features_of_parts
from self_supervised.cli.pictures import folder_dls, judged_dls, run_pictures
from self_supervised.cli.pretrain import choose_views, complete_settings, normalise_as, run_learner, starting_encoder
from self_supervised.core import seed_everything
from self_supervised.evaluate.features import Pixels

# Way → the encoder's rate is lr/slower, and the callbacks that it goes without
WAYS = {'like new': (1.,()), 'slower': (10.,(KeepBatchNorm,HeadsFirst)), 'kept': (10.,(HeadsFirst,)), 'gentle': (10.,())}

def run(folder, weights, way, size, steps, bs, pool):
    "Train and judge"
    slower,without = WAYS[way]
    row = dict(folder=folder.name, way=way, size=size, steps=steps, bs=bs, pool=pool, machine=machine())
    s = complete_settings(str(folder), 0, 0, False, False, True, None, init=str(weights), arch=ARCH, size=size, bs=bs,
                          hidden_size=512, projection_size=128, pool_type=pool, slower=slower)
    items = run_pictures(s)
    choose_views(s, items)
    seed_everything(s.seed)
    dls = folder_dls(s, items, s.bs)
    encoder = starting_encoder(s)
    normalise_as(s, encoder)
    start = deepcopy(encoder)
    with tempfile.TemporaryDirectory() as out:
        learn = run_learner(s, dls, encoder, Path(out), False)
        learn.remove_cbs([cb for cb in learn.cbs if isinstance(cb, without)])
        learn.fit_byol(steps=steps, recipe='adamw', lr=[s.lr/slower,s.lr] if slower>1 else s.lr, wd=s.wd)
    judged = judged_dls(dls)
    feats = {'raw pixels': features_of_parts(Pixels(), judged, None)}
    feats |= {k: features_of_parts(o, judged, s.views['stats']) for k,o in {'starting weights': start, 'trained encoder': encoder}.items()}
    return row | dict(ranks=[learn.health.before['rank'],learn.health.rows[-1]['rank']], five=accuracies(compare_parts(feats)))

def table(rows):
    "One line per run"
    print('| folder, size, steps | way | linear: start, trained | kNN: start, trained |\n|---|---|---|---|')
    for r in rows:
        _,start,trained = r['five'].values()
        cells = ' | '.join(f"{start[k][0]:.3f}, {trained[k][0]:.3f}" for k in ('linear','kNN'))
        print(f"| {r['folder']}, {r['size']} px, {r['steps']} of {r['bs']} | {r['way']} | {cells} |")

if __name__=='__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, nargs='?')
    parser.add_argument('weights', type=Path, nargs='?')
    parser.add_argument('--size', type=int, default=96)
    parser.add_argument('--steps', type=int, default=100)
    parser.add_argument('--bs', type=int, default=64)
    parser.add_argument('--pool', default='avg')
    parser.add_argument('--ways', nargs='*', choices=WAYS, default=list(WAYS))
    parser.add_argument('--out', type=Path, default=Path(__file__).with_suffix('.json'))
    parser.add_argument('--table', action='store_true', help='print what is there')
    args = parser.parse_args()
    rows = json.loads(args.out.read_text()) if args.out.exists() else []
    if args.table: sys.exit(table(rows))
    for way in args.ways:
        key = dict(folder=args.folder.name, way=way, size=args.size, steps=args.steps, bs=args.bs, pool=args.pool)
        if any(key.items()<=r.items() for r in rows): continue
        rows.append(run(args.folder, args.weights, way, args.size, args.steps, args.bs, args.pool))
        args.out.write_text(json.dumps(rows, indent=1))
        table(rows[-1:])
