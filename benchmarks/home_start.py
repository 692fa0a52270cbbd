"""How long `byol_pretrain FOLDER` takes until its first step, and what an epoch takes beside its steps

    python -m benchmarks.home_start folders/photos folders/small --repeats 3
    python -m benchmarks.home_start --table

Each run is the command in a process of its own: as it is, and with `--minutes 20`. The clock starts before the process. In the first runs of a
folder its files may not be in the memory of the machine yet ("cold" when the folder is new). An epoch is taken apart by two callbacks, the first
and the last of all: its steps (views, networks, optimizer, and those of its validation), reading, and the rest (health, checkpoint, printing).
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

here = Path(__file__).resolve()
WAYS = {'as it is': [], '--minutes 20': ['--minutes','20']}
EPOCHS = 6   # of which the first, with its first launches, does not count

def watch(room, begun, epochs, args):
    "In the process: print seconds to the first step and, after some epochs, milliseconds by part; end"
    from fastai.callback.core import Callback
    parts,rows,now = defaultdict(float),[],[0.,'rest']

    def mark(name):
        t = time.perf_counter()
        parts[now[1]] += t-now[0]
        now[:] = t,name

    class First(Callback):
        order = -10_000
        def before_epoch(self): parts.clear(), now.__setitem__(slice(None), (time.perf_counter(),'rest'))
        def before_batch(self): mark('steps' if self.training else 'steps of validation')
        def after_train(self): mark('rest')
        def after_validate(self): mark('rest')

    class Last(Callback):
        order = 10_000
        def before_train(self): mark('reading')
        def before_validate(self): mark('reading')
        def after_step(self):
            if rows: return
            rows.append(time.time()-begun)
            if not epochs: end()
        def after_batch(self): mark('reading')
        def after_epoch(self):
            mark('rest')
            rows.append({k: round(1000*v, 1) for k,v in parts.items()})
            if len(rows)>epochs: end()

    def end():
        print('\n'+json.dumps(rows), flush=True)
        os._exit(0)

    own = room.fit_run   # after the steps that only measure how long one takes
    room.fit_run = lambda learn,*a: own(learn.add_cbs([First(),Last()]), *a)
    sys.argv = ['byol_pretrain',*args]

def run(folder, way, epochs):
    "Seconds to the first step, and the parts of each epoch in milliseconds"
    with tempfile.TemporaryDirectory() as tmp:
        args = [str(folder),*WAYS[way],'--out',f'{tmp}/run']
        env = os.environ | dict(PYTHONPATH=str(here.parents[1]), PYTHONWARNINGS='ignore')
        done = subprocess.run([sys.executable,here,'--job',json.dumps([time.time(), epochs, args])], env=env, capture_output=True, text=True)
    if done.returncode: raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])

def beside(parts):
    "What the rest takes of the steps"
    steps = parts['steps']+parts.get('steps of validation', 0)
    return (sum(parts.values())-steps)/steps

def table(rows):
    "One line per folder and way"
    print('| folder | pictures | way | seconds to the first step, each run | an epoch: ms of steps, of validation, reading, rest | beside its steps |')
    print('|---|---|---|---|---|---|')
    for r in rows:
        e = r['epoch']
        epoch = ', '.join(f"{e.get(k, 0):.0f}" for k in ('steps','steps of validation','reading','rest')) if e else ''
        print(f"| {r['folder']} | {r['pictures']} | {r['way']} | {', '.join(f'{s:.1f}' for s in r['first'])} | {epoch} | "
              f"{f'{100*beside(e):.0f} %' if e else ''} |")

if __name__=='__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folders', type=Path, nargs='*', help='of pictures')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--out', type=Path, default=here.with_suffix('.json'))
    parser.add_argument('--table', action='store_true', help='print what is there')
    parser.add_argument('--job', help='of one run, in its process')
    args = parser.parse_args()
    if args.job:
        from self_supervised.cli import pretrain as room
        watch(room, *json.loads(args.job))
        room.byol_pretrain()   # reads its options as a script does, which is one that is called here
    if args.table: sys.exit(table(json.loads(args.out.read_text())))
    from benchmarks.machine import machine
    from self_supervised.data.sources import picture_files
    rows = []
    for folder in args.folders:
        n = len(picture_files(folder))
        for way in WAYS:
            # An epoch of few and small pictures is where reading and callbacks weigh most
            runs = [run(folder, way, EPOCHS if n<1000 and WAYS[way] else 0) for _ in range(args.repeats)]
            names = runs[0][2].keys() if len(runs[0])>2 else ()
            epoch = {k: round(median(e[k] for r in runs for e in r[2:]), 1) for k in names}
            rows.append(dict(folder=folder.name, pictures=n, way=way, first=[round(r[0], 1) for r in runs], epoch=epoch, machine=machine()))
            table(rows[-1:])
    args.out.write_text(json.dumps(rows, indent=1))
