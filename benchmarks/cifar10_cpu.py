"""Four libraries, one small network, the same pictures and steps, on one core: what are their features worth, and what did they cost?

    python -m benchmarks.cifar10_cpu                                  # every run that has no JSON yet, about a minute and a half each
    python -m benchmarks.cifar10_cpu --only ours lightly --seeds 0    # some of them
    python -m benchmarks.cifar10_cpu --table                          # what there is, as tables

Each run trains `cifar10_systems.small_net` for 6 epochs of 78 steps of 128 on 10,000 fixed training pictures, in a process of its own, and
leaves a JSON in benchmarks/cifar10_cpu/. The evaluation is the same code for all: features of clean pictures, normalised as in training,
kNN (k=200, T=.1) and a logistic regression whose penalty is chosen on a part of the 10,000. Settings were chosen on 5,000 other training
pictures, which the curves show; the test batch is met once, by the weights of the last step. Each library runs in the Python that `--python`
names for it: `python -m venv rivals && rivals/bin/pip install lightly==1.6.0 byol-pytorch==0.9.1`, and for the older self_supervised
`pip install --no-deps --target older self-supervised==1.0.4`, named by `--older`, whose package has the name of ours.
"""
import argparse, json, os, subprocess, sys, tempfile
from pathlib import Path

import numpy as np, torch
from fastai.vision.core import imagenet_stats
from self_supervised import __version__
from self_supervised.evaluate.features import embed, knn_accuracy
from self_supervised.evaluate.protocols import linear_probe
from self_supervised.vision.byol import small_views

from benchmarks.cifar10 import draw_parts, load, machine, write
from benchmarks.cifar10_systems import small_net

here = Path(__file__).parent
N,EPOCHS,BS = 10_000,6,128

# name: (system, arguments of `cifar10_systems.ours`)
BEST = dict(recipe='adamw', views=small_views)     # rate, decay and momentum are the recipe's
def but(**changes): return 'ours',BEST | changes
def views(**changes): return but(views=BEST['views'] | changes)
RUNS = {
    'untrained': ('untrained', {}), 'lightly': ('lightly', {}), 'byol-pytorch': ('byol-pytorch', {}), 'older': ('older', {}), 'ours': ('ours', BEST),
    'tau 0': but(variant='tau 0'), 'tau 1': but(variant='tau 1'), 'no predictor': but(variant='no predictor'),
    'crop only': views(flip_p=0., jitter=False, bw=False, solarize=False), 'no colour': views(jitter=False, bw=False, solarize=False),
    'joint batchnorm': but(variant='joint batchnorm'), 'published views': but(views={}), 'LARS': but(recipe='lars', lr=4., wd=1e-6, m=.9), 'SGD': but(recipe='sgd', lr=.1, wd=5e-4, m=.9),
    # Their loss is a fourth of ours: rate and decay of 'CIFAR-10, sgd' in the table of recipes are theirs
    "lightly's settings": ('ours', dict(recipe='sgd', lr=.015, wd=2e-3, variant='tau .99', warmup_epochs=0, hidden_size=1024, projection_size=256, views=dict(blur=False))),
}
LABELS = dict(older='older self_supervised', ours='this library')
RIVALS = 'lightly','byol-pytorch','older'

def train(name, seed, pictures, python, older):
    "Weights after each epoch, losses, time, settings and versions of a run, which is a process of its own"
    system,options = RUNS[name]
    with tempfile.TemporaryDirectory() as tmp:
        paths = [older] if name == 'older' else [] if name in RIVALS else [str(here.parent)]
        env = os.environ | dict(PYTHONPATH=os.pathsep.join(paths), OMP_NUM_THREADS='1')
        cmd = [python if name in RIVALS else sys.executable, '-W', 'ignore', here/'cifar10_systems.py', system, '--pictures', pictures, '--out', f'{tmp}/out.pt', '--seed', seed,
               '--epochs', EPOCHS, '--bs', BS, '--options', json.dumps(options)]
        subprocess.run(list(map(str, cmd)), env=env, check=True, stdout=subprocess.DEVNULL)
        return torch.load(f'{tmp}/out.pt', weights_only=True)

def features(weights, *parts):
    "Features of clean pictures, and labels, of each of `parts`"
    net = small_net(0)
    net.load_state_dict(weights)
    return sum((embed(net, o, imagenet_stats) for o in parts), ())

def judge(data):
    "kNN and linear accuracy of features (train_x, train_y, x, y)"
    linear = linear_probe(*data, Cs=(.01,.1,1.,10.), seeds=(0,))
    return dict(knn=knn_accuracy(*data, k=200, T=.1), linear=linear.accuracy.mean, C=linear.chosen[0])

def run(name, seed, cifar, python, older):
    "Train and evaluate: what goes into the JSON"
    rest,held = draw_parts()
    fit,held,test = *((cifar.x[i], cifar.y[i]) for i in (rest[:N], held)),(cifar.test_x, cifar.test_y)
    with tempfile.TemporaryDirectory() as tmp:
        np.save(f'{tmp}/x.npy', fit[0].permute(0,2,3,1).numpy())
        out = train(name, seed, f'{tmp}/x.npy', python, older)
    curve = [knn_accuracy(*features(w, fit, held), k=200, T=.1) for w in out['weights']]
    last = out['weights'][-1]
    return dict(name=name, seed=seed, n=N, epochs=EPOCHS, bs=BS, steps=EPOCHS*(N//BS), settings=out['settings'], losses=out['losses'], held_knn=curve,
                held=judge(features(last, fit, held)), test=judge(features(last, fit, test)), cpu_s=round(out['cpu_s'], 1), wall_s=round(out['wall_s'], 1),
                versions=out['versions'] | dict(self_supervised=__version__), machine=machine())

def results(folder=here/'cifar10_cpu'):
    "All runs there are: name → list of dicts, by seed"
    res = {}
    for f in sorted(folder.glob('*.json')): res.setdefault((r := json.loads(f.read_text()))['name'], []).append(r)
    return {k: sorted(res[k], key=lambda r: r['seed']) for k in RUNS if k in res}

def mean_std(vs):
    t = torch.tensor(list(vs), dtype=torch.float64)
    return t.mean().item(),t.std(correction=int(len(t) > 1)).item()

def rows(res, names=RUNS):
    "Lines of a table of the runs called `names`"
    yield from ('| run | seeds | kNN 200, test | linear, test | kNN 200, held out | processor time, s |', '|---|---|---|---|---|---|')
    pm = lambda vs: '{:.1f} ± {:.1f}'.format(*(100*o for o in mean_std(vs)))
    for k in names:
        if k not in res: continue
        rs = res[k]
        yield f"| {LABELS.get(k, k)} | {len(rs)} | {pm(r['test']['knn'] for r in rs)} | {pm(r['test']['linear'] for r in rs)} | {pm(r['held']['knn'] for r in rs)} | {'{:.0f} ± {:.0f}'.format(*mean_std(r['cpu_s'] for r in rs))} |"

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--data', help="folder with CIFAR-10; fastai's data folder by default")
    p.add_argument('--only', nargs='+', choices=RUNS, default=list(RUNS))
    p.add_argument('--seeds', nargs='+', type=int, default=[0,1,2])
    p.add_argument('--python', default=sys.executable, help='Python that has lightly, byol-pytorch, and what the older library needs')
    p.add_argument('--older', default='older', help='folder with the older self_supervised')
    p.add_argument('--out', type=Path, default=here/'cifar10_cpu', help='folder for the JSONs')
    p.add_argument('--table', action='store_true', help='only print what there is')
    args = p.parse_args()
    if not args.table:
        torch.set_num_threads(1)
        cifar = load(args.data)
        for seed in args.seeds:
            for name in args.only:
                file = args.out/f"{name.replace(' ', '_')}-{seed}.json".replace("'", '')
                if file.exists(): continue
                write(file, run(name, seed, cifar, args.python, str(Path(args.older).resolve())))
                print(*list(rows({name: [json.loads(file.read_text())]}))[2:], flush=True)
    print(*rows(results(args.out)), sep='\n')

if __name__ == '__main__': main()
