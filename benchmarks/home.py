"""`byol_pretrain FOLDER --minutes 20` on several folders of real pictures: does training pay, and is it over in time?

    python -m benchmarks.home folders --minutes 20 --seeds 0 1 2 --out benchmarks/home.json
    python -m benchmarks.home --table benchmarks/home.json

`folders` holds a folder of pictures each, as `benchmarks.home_folders` writes them. Each run is the command in a process of its own, with no
option but its length and seed; no other run beside it. What it says of itself is recorded (settings, accuracies with 5 labels per class on the
fifth of the pictures that it held out, verdict), then `byol_evaluate --n 10` on the same held-out pictures. A run that stands in the JSON is
not repeated: the runs may be made in several sittings, and each states the load of the machine at its start.

    python -m benchmarks.home folders --minutes 5 --seeds 0 --finetune 0 1 2
    python -m benchmarks.home --finetuned benchmarks/home.json

With `--finetune`, each run is followed by `byol_finetune RUN FOLDER --labels-per-class 10 --compare`, once for each seed, which draws the labels.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import machine

KEPT = 'size bs epochs lr m steps n_train loss ranks collapsed mended'.split()

def command(name, *args):
    "Run a command of this library; returns what it printed"
    env = os.environ | dict(PYTHONWARNINGS='ignore', PYTHONPATH=str(Path(__file__).resolve().parents[1]))
    done = subprocess.run([Path(sys.executable).with_name(f'byol_{name}'), *map(str, args)], env=env, capture_output=True, text=True)
    if done.returncode: raise RuntimeError(f'byol_{name} {args}: {done.stderr[-2000:]}')
    return done.stdout

def accuracies(results):
    "Row → column → mean and std"
    return {row: {column: [round(o['mean'], 4), round(o['std'], 4)] for column,o in cells.items()}
            for row,cells in results['measured'].items()}

def finetuned(run, folder, seeds, out):
    "Classifier → its accuracy for each seed: 10 labels per class, tested on the pictures that the run held out"
    rows = {}
    for seed in seeds:
        command('finetune', run, folder, '--labels-per-class', 10, '--compare', '--seed', seed, '--out', f'{out}/{seed}')
        for name,cells in json.loads(Path(f'{out}/{seed}/results.json').read_text())['rows'].items():
            rows.setdefault(name, []).append(round(cells['accuracy'], 4))
    return rows

def run(folder, minutes, seed, extra=(), finetune=()):
    "Train and evaluate"
    row = dict(folder=folder.name, minutes=minutes, seed=seed, extra=list(extra), machine=machine())
    with tempfile.TemporaryDirectory() as tmp:
        out = Path(tmp)/'run'
        begun = time.perf_counter()
        said = command('pretrain', folder, '--minutes', minutes, '--seed', seed, '--out', out, *extra)
        row['seconds'] = round(time.perf_counter()-begun, 1)
        results = json.loads((out/'results.json').read_text())
        settings = json.loads((out/'settings.json').read_text())['settings']
        command('evaluate', out, folder, '--n', 10, '--out', f'{tmp}/ten.json')
        ten = json.loads(Path(f'{tmp}/ten.json').read_text())
        if finetune: row['finetuned'] = finetuned(out, folder, finetune, f'{tmp}/classifiers')
    row |= {k: results.get(k, settings.get(k)) for k in KEPT} | dict(arch=settings['arch'])
    row |= dict(five=accuracies(results), ten=accuracies(ten) if 'measured' in ten else ten, chance=results['chance'])
    verdict = results['verdict']
    return row | dict(helped=verdict['helped'], headline=verdict['headline'], advice=verdict['advice'], planned=_planned(said))

def _planned(said):
    "The command's own line about its length"
    return next((o for o in said.splitlines() if re.search(r'steps? of .* s, about', o)), None)

def above(row):
    "Points that trained features are above pixels and above the start: by linear accuracy, by kNN"
    pixels,start,trained = row['five'].values()
    return [', '.join(f'{100*(trained[k][0]-o[k][0]):+.1f}' for o in (pixels,start)) for k in ('linear','kNN')]

def table(rows):
    "One line per run"
    print('| folder | seed | minutes (taken) | network, size, steps | linear above pixels, start | kNN above pixels, start | helped |\n|---|---|---|---|---|---|---|')
    for r in sorted(rows, key=lambda r: (r['folder'],r['minutes'],r['seed'])):
        print(f"| {r['folder']} | {r['seed']} | {r['minutes']:g} ({r['seconds']/60:.1f}) | {r['arch']}, {r['size']} px, {r['steps']} | "
              f"{' | '.join(above(r))} | {r['helped']} |")

def table_finetuned(rows):
    "One line per run with classifiers: mean of the seeds, and the gain of each over the same network from scratch"
    print('| folder | minutes | linear on frozen features | fine-tuned | from scratch | fine-tuned above scratch, each draw |\n|---|---|---|---|---|---|')
    for r in rows:
        if 'finetuned' not in r: continue
        means = ' | '.join(f'{sum(o)/len(o):.3f}' for o in r['finetuned'].values())
        gains = ', '.join(f'{100*(a-b):+.1f}' for a,b in zip(r['finetuned']['fine-tuned'], r['finetuned']['from scratch']))
        print(f"| {r['folder']} | {r['minutes']:g} | {means} | {gains} |")

if __name__=='__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folders', type=Path, nargs='?', help='holds a folder of pictures each')
    parser.add_argument('--minutes', type=float, default=20)
    parser.add_argument('--seeds', type=int, nargs='*', default=[0,1,2])
    parser.add_argument('--only', nargs='*', help='names of folders')
    parser.add_argument('--finetune', type=int, nargs='*', default=[], metavar='SEED', help='train classifiers on each encoder, too')
    parser.add_argument('--extra', nargs=argparse.REMAINDER, default=[], help='options of byol_pretrain, the last of all')
    parser.add_argument('--out', type=Path, default=Path(__file__).with_suffix('.json'))
    parser.add_argument('--table', type=Path, help='print what is there')
    parser.add_argument('--finetuned', type=Path, help='print the classifiers that are there')
    args = parser.parse_args()
    if args.table: sys.exit(table(json.loads(args.table.read_text())))
    if args.finetuned: sys.exit(table_finetuned(json.loads(args.finetuned.read_text())))
    rows = json.loads(args.out.read_text()) if args.out.exists() else []
    for seed in args.seeds:
        for folder in sorted(o for o in args.folders.iterdir() if o.is_dir() and (not args.only or o.name in args.only)):
            key = (folder.name,args.minutes,seed,args.extra)
            there = [r for r in rows if (r['folder'],r['minutes'],r['seed'],r['extra'])==key]
            if any(not args.finetune or 'finetuned' in r for r in there): continue
            rows.append(run(folder, args.minutes, seed, args.extra, args.finetune))
            args.out.write_text(json.dumps(rows, indent=1))
            table(rows[-1:])
