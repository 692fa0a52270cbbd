"""Time and memory of `knn_predict` beside a plain matrix product of the same size.

    OMP_NUM_THREADS=1 python benchmarks/knn.py --out benchmarks/knn.json

Both take turns in one process: what `knn_predict` answers, and the similarities alone, in chunks of the same number of rows. Each
figure is a median. `cpu` is the processor time of the process, which does not count the wait for a processor that others hold.
Peak memory is what a fresh process takes on top of the features while it predicts. `agree` counts, of `of` random queries, those
to which the formula written out in NumPy, in double precision and with a stable sort, gives the same label as `knn_predict`.
"""
import argparse, json, os, statistics, subprocess, sys, time

import numpy as np, torch, torch.nn.functional as F
from self_supervised.evaluate.features import knn_predict
from machine import machine

def data(n, m, nf):
    "Features in 100 clusters, with their labels"
    g = torch.Generator().manual_seed(0)
    centres,y = torch.randn(100, nf, generator=g), torch.randint(0, 100, (n+m,), generator=g)
    x = centres[y] + 3*torch.randn(n+m, nf, generator=g)
    return x[:n], y[:n], x[n:]

def product(train_x, test_x, rows):
    "The similarities alone, one chunk at a time"
    for x in test_x.split(rows): x @ train_x.T

def clocked(f):
    "Wall and processor time of `f()`, seconds"
    wall,cpu = time.perf_counter(),time.process_time()
    f()
    return time.perf_counter()-wall, time.process_time()-cpu

def peak(n, m, nf, k):
    "What `knn_predict` takes on top of the features at its worst, MB, in a process of its own (Linux)"
    code = f"""import sys; sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r}); import knn
def status(k): return next(int(l.split()[1])/1024 for l in open('/proc/self/status') if l.startswith(k))
a = knn.data({n}, {m}, {nf})
open('/proc/self/clear_refs', 'w').write('5')   # the peak so far is forgotten
before = status('VmRSS'); knn.knn_predict(*a, k={k}); print(status('VmHWM')-before)"""
    return float(subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True).stdout.split()[-1])

def brute(train_x, train_y, test_x, k, T=.07):
    "The definition, one query at a time (arXiv:1805.01978, section 3.4)"
    a,b = (o.double().numpy() for o in (train_x, test_x))
    a,y = a/np.linalg.norm(a, axis=1, keepdims=True),train_y.numpy()
    for q in b:
        s = a@(q/np.linalg.norm(q))
        i = np.argsort(-s, kind='stable')[:k]
        yield int(np.bincount(y[i], weights=np.exp(s[i]/T)).argmax())

def agreement(train_x, train_y, test_x, k, checked):
    "Predictions among `checked` drawn ones that are those of `brute`"
    i = torch.randperm(len(test_x), generator=torch.Generator().manual_seed(1))[:checked]
    preds = knn_predict(train_x, train_y, test_x, k=k)[i]   # of all queries at once, as timed
    return dict(agree=sum(p==b for p,b in zip(preds.tolist(), brute(train_x, train_y, test_x[i], k))), of=len(i))

def measure(n, m, nf, k, repeats, checked):
    "One row of the table"
    train_x,train_y,test_x = data(n, m, nf)
    fs = dict(product=lambda: product(F.normalize(train_x), F.normalize(test_x), max(1, 2**25//n)), knn=lambda: knn_predict(train_x, train_y, test_x, k=k))
    times = dict(product=[], knn=[])
    for i in range(repeats+1):
        for o in sorted(fs, reverse=i%2):   # who begins changes from turn to turn
            t = clocked(fs[o])
            if i: times[o].append(t)
    med = {(o,c): statistics.median(t[j] for t in ts) for o,ts in times.items() for j,c in enumerate(('wall','cpu'))}
    return dict(train=n, test=m, nf=nf, k=k, repeats=repeats, **agreement(train_x, train_y, test_x, k, checked), **{f'{o}_{c}_s': round(v, 3) for (o,c),v in med.items()},
                ratio=round(med['knn','wall']/med['product','wall'], 3), cpu_ratio=round(med['knn','cpu']/med['product','cpu'], 3),
                cpu_ratios=[round(a[1]/b[1], 3) for a,b in zip(times['knn'], times['product'])],
                peak_mb=round(peak(n, m, nf, k), 1), all_similarities_mb=round(4*n*m/2**20, 1))

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--train', type=int, default=50_000)
    p.add_argument('--test', type=int, default=5_000)
    p.add_argument('--repeats', type=int, default=5)
    p.add_argument('--checked', type=int, default=300, help='queries held against brute force')
    p.add_argument('--out', help='JSON file to write')
    args = p.parse_args()
    res = dict(machine=machine(),
               command='python benchmarks/knn.py ' + ' '.join(sys.argv[1:]), rows=[])
    print('| neighbours | queries | features | k | product, s | kNN, s | ratio | ratio, processor time | peak, MB | all similarities, MB | agree with brute force |', '|'+'---|'*11, sep='\n', flush=True)
    for k in (20, 200):
        r = measure(args.train, args.test, 512, k, args.repeats, args.checked)
        res['rows'].append(r)
        print(f"| {r['train']} | {r['test']} | {r['nf']} | {k} | {r['product_wall_s']} | {r['knn_wall_s']} | {r['ratio']:.2f} | {r['cpu_ratio']:.2f} | {r['peak_mb']:.0f} | {r['all_similarities_mb']:.0f} | {r['agree']} of {r['of']} |", flush=True)
    res['machine']['load_after'] = [round(o, 2) for o in os.getloadavg()]
    if args.out:
        with open(args.out, 'w') as f: json.dump(res, f, indent=1); f.write('\n')
    if any(r['agree']<r['of'] for r in res['rows']): sys.exit('knn_predict and brute force disagree')

if __name__ == '__main__': main()
