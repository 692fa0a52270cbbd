"byol_finetune, byol_embed --neighbors and byol_pretrain --init, as a user types them, beside independent references"
import csv, html.parser, json, os, pickle, re, subprocess, sys, tarfile, tomllib, warnings
from argparse import Namespace
from io import BytesIO
from types import SimpleNamespace
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch, torchvision
from fastai.callback.core import Callback
from fastai.learner import Learner, load_learner
from fastai.vision.core import imagenet_stats
from fastcore.basics import AttrDict
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, confusion_matrix
from torch import nn

from self_supervised.cli import evaluate as evaluate_room, finetune as room
from self_supervised.cli.evaluate import evaluate_pictures
from self_supervised.cli.finetune import FINETUNE, KeepBest, compared, confusion, draw_labels, finetune, measured, read_labels, train_classifier
from self_supervised.cli.embed import byol_embed
from self_supervised.cli.predict import predict_pictures
from self_supervised.cli.neighbors import near_duplicates, nearest_of_all, outliers
from self_supervised.data.arrays import tensor_dls
from self_supervised.data.demo import write_mnist_tiny
from self_supervised.data.reading import open_picture
from self_supervised.evaluate.features import embed, linear_accuracy
from self_supervised.layers import create_encoder
from self_supervised.record import record_of, stats_lists
from self_supervised.transfer.encoder_file import load_encoder, save_encoder
from self_supervised.transfer.weights import load_weights

SCRIPTS = tomllib.loads((Path(__file__).parents[1]/'pyproject.toml').read_text())['project']['scripts']
pytestmark = pytest.mark.filterwarnings('ignore')

def run(command, *args, cwd):
    "Run a command by the script that pip makes of its entry in pyproject.toml"
    module,name = SCRIPTS[command].split(':')
    script = Path(cwd).parent/command
    script.write_text(f"import sys\nfrom {module} import {name}\nif __name__ == '__main__': sys.exit({name}())\n")
    env = os.environ|dict(OMP_NUM_THREADS='1', MPLBACKEND='Agg', PYTHONPATH=str(Path(__file__).parents[1]))
    return subprocess.run([sys.executable, script, *map(str, args)], cwd=cwd, capture_output=True, text=True, env=env)

class Page(html.parser.HTMLParser):
    "Sources, figures and tags of a page"
    def __init__(self, file):
        super().__init__()
        self.sources,self.tags,self.links,self.text = [],[],[],''
        self.feed(Path(file).read_text(encoding='utf-8'))
    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name,value in attrs:
            if name=='src': self.sources.append(value)
            if name=='href': self.links.append(value)
    def handle_data(self, data): self.text += data

def is_self_contained(page):
    return not page.links and 'script' not in page.tags and page.sources and all(o.startswith('data:image/') for o in page.sources)

@pytest.fixture(scope='module')
def here(tmp_path_factory):
    "Digits in folders, one with a name that a page could obey, and an encoder"
    d = tmp_path_factory.mktemp('digits')/'work'
    write_mnist_tiny(d/'pics')
    torch.manual_seed(0)
    net = create_encoder('tiny_resnet', pretrained=False, n_in=1, widths=(8,16))
    save_encoder(net, d/'encoder.safetensors', size=8, stats=[[.3],[.35]])
    for part in ('train','valid'): (d/'pics'/part/'7').rename(d/'pics'/part/'<b>$x_7')
    return d

@pytest.fixture(scope='module')
def done(here):
    res = run('byol_finetune', 'encoder.safetensors', 'pics', '--valid', 'valid', '--labels-per-class', 10, '--compare', '--epochs', 3, '--no-flip', '--workers', 0, cwd=here)
    assert res.returncode==0, res.stderr
    return res,here/'runs/classifier'

def test_files(done):
    res,out = done
    assert 'shadowing' not in res.stdout+res.stderr
    assert sorted(o.name for o in out.iterdir())==['classifier.onnx','export.pkl','report.html','results.json','settings.json']
    assert json.loads((out/'settings.json').read_text())['settings']['labels_per_class']==10
    assert not re.search(r'[\x00-\x09\x0b-\x1f█]', res.stdout)   # no bars where there is no terminal
    for words in ('20 labels to train on for 3 epochs','linear on frozen features','fine-tuned','from scratch','balanced accuracy','points','load_learner'): assert words in res.stdout, words

def test_predicts_a_name_a_path_and_a_picture_as_it_was_measured(here, done):
    "The exported learner on files, beside results.json: accuracy, balanced accuracy and confusion by scikit-learn"
    results = json.loads((done[1]/'results.json').read_text())
    learn = load_learner(done[1]/'export.pkl')
    files = sorted((here/'pics/valid').rglob('*.png'))
    truth = [f.parent.name for f in files]
    with learn.no_bar(), learn.no_logging():
        probs,_ = learn.get_preds(dl=learn.dls.test_dl(files))
        for f in files[:2]+files[-2:]:
            words = {str(learn.predict(o)[0]) for o in (str(f), f, Image.open(f))}
            assert words=={results['vocab'][probs[files.index(f)].argmax()]}
    said = [results['vocab'][i] for i in probs.argmax(1)]
    row = results['rows']['fine-tuned']
    assert row['accuracy']==pytest.approx(np.mean(np.array(said)==np.array(truth)))
    assert row['balanced accuracy']==pytest.approx(balanced_accuracy_score(truth, said))
    assert results['confusion']==confusion_matrix(truth, said, labels=results['vocab']).tolist()
    worst = results['top_losses'][0]
    i = [str(f.relative_to(here)) for f in files].index(worst['name'])
    losses = -probs.log()[range(len(files)),[results['vocab'].index(o) for o in truth]]
    assert losses[i]==pytest.approx(losses.max().item(), rel=1e-3) and worst['loss']==pytest.approx(losses[i].item(), rel=1e-3)

def test_predict_as_a_user_types_it(here, done):
    "Beside results.json and fastai's own predictions; what cannot be read is named"
    results = json.loads((done[1]/'results.json').read_text())
    assert 'byol_predict runs/classifier my/pictures' in done[0].stdout and 'byol_predict runs/classifier my/pictures' in (done[1]/'report.html').read_text()
    bad = here/'pics/valid/3/broken.png'
    bad.write_bytes(b'nothing')
    res = run('byol_predict', 'runs/classifier', 'pics/valid', '--workers', 0, '--out', 'new/p.csv', cwd=here)
    bad.unlink()
    assert res.returncode==0 and 'left out pics/valid/3/broken.png: no kind of picture' in res.stderr and not re.search('pickle|█', res.stdout+res.stderr), res.stderr
    with open(here/'new/p.csv', newline='') as f: (*titles,),*rows = csv.reader(f)
    assert titles==['name','label','probability'] and len(rows)==len(list((here/'pics/valid').rglob('*.png')))
    right = [Path(name).parent.name==label for name,label,_ in rows]
    assert np.mean(right)==pytest.approx(results['rows']['fine-tuned']['accuracy'])
    learn = load_learner(done[1]/'export.pkl')
    with learn.no_bar(), learn.no_logging(): probs,_ = learn.get_preds(dl=learn.dls.test_dl([here/name for name,*_ in rows]))
    assert [label for _,label,_ in rows]==[learn.dls.vocab[i] for i in probs.argmax(1)]
    np.testing.assert_allclose([float(p) for *_,p in rows], probs.max(1).values, atol=6e-5)
    n = {o: sum(label==o for _,label,_ in rows) for o in learn.dls.vocab}
    assert all(f'{label} ({k})' in res.stdout for label,k in n.items() if k)

def test_predict_reads_as_in_training(here, tmp_path, monkeypatch):
    "A reader of your own, channels, height and width, and the ground come with the classifier"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path('mine.py').write_text('import numpy as np\ndef read(f): return np.load(f)\n')
    rng = np.random.default_rng(0)
    for i in range(24):
        Path(f'pics/{i%2}').mkdir(parents=True, exist_ok=True)
        np.save(f'pics/{i%2}/{i}.npy', rng.random((12,20,5), np.float32)*(.2+.6*(i%2)))
    net = create_encoder('tiny_resnet', pretrained=False, n_in=5, widths=(8,16))
    save_encoder(net, 'e.safetensors', size=(8,12), stats=None, reading=dict(reader='mine:read'))
    from mine import read
    _,out = room.finetune('e.safetensors', 'pics', 'c', reader=read, suffixes='.npy', workers=0, progress=False, epochs=2)
    names,probs,vocab,bad = predict_pictures(out, 'pics', suffixes='.npy', workers=0)
    learn = load_learner('c/export.pkl')
    with learn.no_bar(): want = torch.stack([learn.predict(o)[2] for o in names])
    assert vocab==['0','1'] and not bad and len(names)==24
    np.testing.assert_allclose(probs, want, atol=1e-5)
    # A command has no module of yours on its path
    res = run('byol_predict', 'c', 'pics', '--suffixes', '.npy', '--workers', 0, cwd=tmp_path)
    assert res.returncode and res.stderr.count('\n')==1 and "No module named 'mine'" in res.stderr and 'the reader of your own' in res.stderr, res.stderr
    res = run('byol_predict', 'c', 'pics', '--suffixes', '.npy', '--workers', 0, '--reader', 'mine:read', cwd=tmp_path)
    assert res.returncode==0 and '24 pictures' in res.stdout, res.stderr

@pytest.mark.parametrize('args,words', [
    (['encoder.safetensors','pics'], "classifier='encoder.safetensors' holds no classifier of"), (['pics','pics'], "classifier='pics' has no export.pkl. Pass the folder that"),
    (['runs/classifier','pics','--out','p.txt'], 'must end in .csv'), (['nowhere','pics'], 'is not a file'), (['runs/classifier','nothing'], "'nothing' is not an existing"),
    (['other.pkl','pics'], "holds no classifier of"), (['learner.pkl','pics'], 'holds no classifier of'), (['cut.pkl','pics'], 'cannot be read')])
def test_predict_in_one_line(here, done, args, words):
    torch.save(dict(a=1), here/'other.pkl')
    Learner(tensor_dls(torch.rand(8,1,8,8), bs=4), nn.Conv2d(1,2,3), loss_func=nn.CrossEntropyLoss()).export(here/'learner.pkl')
    (here/'cut.pkl').write_bytes((done[1]/'export.pkl').read_bytes()[:5000])
    res = run('byol_predict', *args, '--workers', 0, cwd=here)
    assert res.returncode==1 and res.stderr.count('\n')==1 and res.stderr.startswith('byol_predict: ') and words in res.stderr, res.stderr

def test_onnx_says_the_same(here, done):
    ort = pytest.importorskip('onnxruntime')
    session = ort.InferenceSession(done[1]/'classifier.onnx')
    labels = json.loads(session.get_modelmeta().custom_metadata_map['self_supervised'])['labels']
    learn = load_learner(done[1]/'export.pkl')
    assert labels==list(learn.dls.vocab)
    files = sorted((here/'pics/valid').rglob('*.png'))[::20]
    x = torch.stack([torch.Tensor(open_picture(f, 1, 8)) for f in files])
    with torch.no_grad(): want = learn.model.eval()(x)
    np.testing.assert_allclose(session.run(None, {'x': x.numpy()})[0], want, rtol=1e-3, atol=1e-3)

def test_the_linear_row_is_linear_accuracy(here, done):
    "From the labels that the settings name, drawn once more"
    s = AttrDict(json.loads((done[1]/'settings.json').read_text())['settings'])
    parts = room.read_labels(here/'pics', AttrDict(s | dict(workers=0)))
    net = load_encoder(here/'encoder.safetensors')
    x,y = (torch.cat(o) for o in zip(*(embed(net, o) for o in (parts.train,parts.stop))))
    test_x,test_y = embed(net, parts.test)
    row = json.loads((done[1]/'results.json').read_text())['rows']['linear on frozen features']
    assert row['accuracy']==pytest.approx(linear_accuracy(x, y, test_x, test_y))

def test_the_report_needs_nothing_else_and_obeys_no_name(done):
    page = Page(done[1]/'report.html')
    assert is_self_contained(page) and '<b>$x_7' in page.text
    for words in ('Confusion matrix','Top losses','from scratch','balanced accuracy','load_learner'): assert words in page.text, words
    assert page.tags.count('figure')==24

def test_the_test_part_is_never_trained_on_and_parts_do_not_overlap(here, monkeypatch):
    monkeypatch.chdir(here)
    s = AttrDict(FINETUNE | dict(size=8, n_in=1, valid=.3, labels=None, labels_per_class=None, workers=0, seed=3, reading={}))
    parts = room.read_labels('pics', s)
    train,stop = ([str(o) for o in dl.dataset.items] for dl in parts.dls)
    test = [str(o) for o in parts.items]
    assert len({*train,*stop,*test})==len(train)+len(stop)+len(test)==362
    for (x,y),files in zip((parts.train,parts.stop,parts.test), (train,stop,test)):
        assert [Path(o).parent.name for o in files]==[parts.vocab[i] for i in y]
        want = torch.Tensor(open_picture(files[-1], 1, 8))
        torch.testing.assert_close(x[-1].float()/(255 if x.dtype==torch.uint8 else 1), want, atol=1/255, rtol=0)

def test_labels_are_drawn_by_class():
    y = torch.tensor([0]*20+[1]*7+[2]*11)
    drawn = [draw_labels(y, 5, ['a','b','c'], seed) for seed in (0,0,1)]
    assert all(y[o].bincount().tolist()==[5,5,5] and o.tolist()==sorted(set(o.tolist())) for o in drawn)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert torch.equal(draw_labels(y, None, ['a','b','c'], 0), torch.arange(38))
    with pytest.raises(ValueError, match="labels_per_class=8 is more than the 7 pictures of 'b'"): draw_labels(y, 8, ['a','b','c'], 0)

def test_the_best_epoch_is_kept_and_the_fit_stops():
    "A held-out loss that is told beforehand: the weights are those of its lowest, and `patience` epochs follow"
    learn = SimpleNamespace(model=nn.Linear(1,1), recorder=SimpleNamespace(values=[]))
    best = KeepBest(2, start=1.)
    best.learn = learn
    for losses,kept,stops in (([.9,.5,.7,.6],2,4), ([1.2,1.1],0,2), ([float('nan')]*2,0,2), ([.9,.8,.7],3,None)):
        learn.model.weight.data.fill_(0.)
        best.before_fit()
        stopped = None
        for i,loss in enumerate(losses):
            learn.epoch = i
            learn.model.weight.data.fill_(i+1.)
            learn.recorder.values.append([0,loss])
            try: best.after_epoch()
            except Exception as e: stopped = i+1
            if stopped: break
        best.after_fit()
        assert (best.epochs,stopped)==(kept,stops) and learn.model.weight.item()==kept

def test_measures_are_those_of_scikit_learn():
    g = torch.Generator().manual_seed(0)
    y = torch.cat([torch.zeros(50), torch.ones(9), torch.full((3,), 2.)]).long()
    out = torch.randn(62, 4, generator=g)
    pred = out.argmax(1)
    got = measured(out, y)
    assert got['accuracy']==pytest.approx((pred==y).double().mean().item())
    assert got['balanced accuracy']==pytest.approx(np.mean([(pred[y==c]==c).double().mean() for c in range(3)]))
    assert confusion(out, y).tolist()==confusion_matrix(y, pred, labels=range(4)).tolist()

@pytest.mark.parametrize('right,other,word', [(90,60,'better'), (60,90,'worse'), (60,61,'about as good'), (60,60,'about as good')])
def test_the_verdict_counts_chance(right, other, word):
    y = torch.zeros(100).long()
    a,b = (torch.stack([torch.arange(100)<n, torch.arange(100)>=n], 1).float() for n in (right,other))
    assert word in compared(a, b, y, 'the other')

@pytest.mark.parametrize('args,words', [
    (('encoder.safetensors','nowhere'), "path='nowhere' is not an existing folder"),
    (('nothing.safetensors','pics'), "is not a file"),
    (('encoder.safetensors','pics/train/3'), 'has one class'),
    (('encoder.safetensors','pics','--labels-per-class',1), 'labels_per_class=1 must be a whole number, 2 or more'),
    (('encoder.safetensors','pics','--labels-per-class',1000), 'labels_per_class=1000 is more than the'),
    (('encoder.safetensors','pics','--valid','2'), 'valid=2 must be in (0,1)'),
    (('encoder.safetensors','pics','--lr','0'), 'lr=0.0 must be above 0')])
def test_one_line_and_an_exit_code_for_what_is_wrong(here, args, words):
    res = run('byol_finetune', *args, '--workers', 0, '--out', 'wrong/run', cwd=here)
    assert res.returncode==1 and res.stderr.count('\n')==1 and res.stderr.startswith('byol_finetune: ') and words in res.stderr, res.stderr
    assert not (here/'wrong').exists()

def test_without_onnx_the_rest_is_written(here, monkeypatch):
    monkeypatch.chdir(here)
    monkeypatch.setitem(sys.modules, 'onnx', None)
    results,out = finetune('encoder.safetensors', 'pics', 'no_onnx', labels_per_class=4, epochs=1, workers=0, flip_p=0., progress=False)
    assert (out/'export.pkl').exists() and not (out/'classifier.onnx').exists()
    assert any("pip install '.[onnx]'" in o for o in results['said'])
    assert "pip install '.[onnx]'" in Page(out/'report.html').text

def test_a_folder_in_use_is_left_alone(here, done, monkeypatch):
    monkeypatch.chdir(here)
    was = {f.name: f.read_bytes() for f in done[1].iterdir()}
    _,out = finetune('encoder.safetensors', 'pics', done[1], labels_per_class=4, epochs=1, workers=0, progress=False)
    assert out.name=='classifier-2' and was=={f.name: f.read_bytes() for f in done[1].iterdir()}

# Neighbours

def test_neighbors_page(here):
    "A copy that was saved again is found beside its original, noise among the outliers; the page holds all it shows"
    folder = here/'near'
    for i,f in enumerate(sorted((here/'pics/train').rglob('*.png'))[:60]):
        folder.mkdir(exist_ok=True)
        Image.open(f).save(folder/f'{i}.png')
    Image.open(folder/'7.png').save(folder/'<script>alert(1)<\x1b[31m>.png', compress_level=1)
    Image.fromarray(np.random.default_rng(0).choice([0,255], (28,28)).astype(np.uint8)).save(folder/'noise.png')
    res = run('byol_embed', 'encoder.safetensors', 'near', '--neighbors', '--workers', 0, cwd=here)
    assert res.returncode==0, res.stderr
    assert 'features.html: 1 group of near duplicates' in res.stdout, res.stdout
    page = Page(here/'features.html')
    assert is_self_contained(page) and page.tags.count('figure')==2+12 and len(page.sources)==14
    assert 'near/7.png' in page.text and 'near/<script>alert(1)<\\x1b[31m>.png' in page.text and 'near/noise.png' in page.text
    assert '\x1b' not in (here/'features.html').read_text()

def test_nearest_groups_and_outliers_against_a_plain_loop():
    g = torch.Generator().manual_seed(1)
    f = torch.randn(40, 16, generator=g)
    f[7] = f[3]+1e-4
    f[21] = f[7]*2-f.mean(0)*0+1e-4
    d,i = nearest_of_all(f, 5, chunk=100)
    c = nn.functional.normalize((f-f.mean(0)).double())
    for row in range(40):
        want = sorted((1-(c[row]@c[o]).item(),o) for o in range(40) if o!=row)[:5]
        np.testing.assert_allclose(d[row], [max(o,0) for o,_ in want], atol=1e-12)
    assert [3,7] in [o[:2] for o in near_duplicates(d, i)] and all(len(o)>1 for o in near_duplicates(d, i))
    far = outliers(d, 3)
    assert [o for o,_ in far]==sorted(range(40), key=lambda o: -d[o].mean())[:3] and far[0][1]>=far[1][1]>=far[2][1]

# Starting weights

class Config:
    "A class that a reader does not know"
    def __init__(self): self.lr = .1

def checkpoints(d):
    "The same ResNet-18 as five libraries write it: name of the file → the weights it holds"
    torch.manual_seed(1)
    net,other = torchvision.models.resnet18(),torchvision.models.resnet18()
    trunk,average = (nn.Sequential(*list(o.children())[:-1]) for o in (net,other))
    parts = nn.ModuleDict(dict(backbone_momentum=average, backbone=trunk, projection_head=nn.Linear(512,8)))
    lightning = dict(epoch=1, global_step=9, callbacks={Config: dict(best=torch.tensor(1.))}, hyper_parameters=Namespace(path=Path('x'), cfg=Config()))
    torch.save(lightning | dict(state_dict=parts.state_dict()), d/'lightly.ckpt')
    solo = {f'backbone.{k}': v for k,v in net.state_dict().items() if not k.startswith('fc')}
    solo |= {f'momentum_backbone.{k}': v for k,v in other.state_dict().items() if not k.startswith('fc')}
    torch.save(lightning | dict(state_dict=solo | {'classifier.weight': torch.rand(10,512)}), d/'solo.ckpt')
    torch.save(net.state_dict(), d/'timm.pth')
    torch.save(dict(model={f'module.encoder_q.{k}': v for k,v in net.state_dict().items()}, optimizer=dict(state={0: dict(exp_avg=torch.rand(3))})), d/'moco.pth')
    torch.save(dict(student={f'backbone.{k}': v for k,v in net.state_dict().items()}, teacher={f'backbone.{k}': v for k,v in other.state_dict().items()}), d/'dino.pth')
    from safetensors.torch import save_file
    save_file({k: v.clone() for k,v in net.state_dict().items()}, d/'timm.safetensors')
    ours = create_encoder('resnet18', pretrained=False)
    ours.load_state_dict({k: v for k,v in net.state_dict().items() if not k.startswith('fc')})
    save_encoder(ours, d/'ours.safetensors', size=64, stats=None)
    return net

def test_init_reads_what_other_libraries_write(tmp_path):
    net = checkpoints(tmp_path)
    want = {k: v for k,v in net.state_dict().items() if not k.startswith('fc')}
    for name in ('lightly.ckpt','solo.ckpt','timm.pth','moco.pth','dino.pth','timm.safetensors','ours.safetensors'):
        got = load_weights(tmp_path/name, create_encoder('resnet18', pretrained=False)).state_dict()
        assert got.keys()==want.keys() and all(torch.equal(got[k], want[k]) for k in want), name
    grey = load_weights(tmp_path/'solo.ckpt', create_encoder('resnet18', pretrained=False, n_in=1))
    torch.testing.assert_close(grey.conv1.weight, net.conv1.weight.sum(1, keepdim=True))

def make_folder(path): os.mkdir(path)

def test_weights_that_do_not_tell_their_normalisation_are_named(tmp_path):
    "Where features are computed, until it is known"
    checkpoints(tmp_path)
    dl = tensor_dls(torch.rand(8,3,32,32), bs=4).train
    net = load_weights(tmp_path/'solo.ckpt', create_encoder('resnet18', pretrained=False))
    with pytest.warns(UserWarning, match='weights come from solo.ckpt.*load_weights.*imagenet_stats.*stats=None'): embed(net, dl)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        plain = embed(net, dl, stats=None)[0]
        told = load_weights(tmp_path/'solo.ckpt', create_encoder('resnet18', pretrained=False), stats=imagenet_stats)
        assert record_of(told)['stats']==stats_lists(imagenet_stats)
        assert not torch.allclose(embed(told, dl)[0], plain)
        torch.testing.assert_close(embed(told, dl)[0], embed(net, dl, stats=imagenet_stats)[0])
        embed(load_weights(tmp_path/'ours.safetensors', create_encoder('resnet18', pretrained=False)), dl)
    with pytest.raises(ValueError, match='std'): load_weights(tmp_path/'solo.ckpt', net, stats=(.5,0))

class Evil:
    call = make_folder
    def __reduce__(self): return Evil.call,(str(Evil.folder),)

def test_init_runs_no_code_of_a_file(tmp_path, monkeypatch):
    Evil.folder = tmp_path/'made'
    net = create_encoder('resnet18', pretrained=False)
    torch.save(dict(state_dict=net.state_dict(), hyper_parameters=Evil()), tmp_path/'evil.ckpt')
    other = load_weights(tmp_path/'evil.ckpt', create_encoder('resnet18', pretrained=False))
    assert torch.equal(other.conv1.weight, net.conv1.weight) and not Evil.folder.exists()
    (tmp_path/'plain.pth').write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match='holds no plain weights'): load_weights(tmp_path/'plain.pth', net)
    monkeypatch.setattr(Evil, 'call', os.mkdir)
    torch.save(dict(state_dict=net.state_dict(), hyper_parameters=Evil()), tmp_path/'evil.ckpt')
    with pytest.raises(ValueError, match='reading it would run posix.mkdir'): load_weights(tmp_path/'evil.ckpt', net)
    assert not Evil.folder.exists()

@pytest.mark.parametrize('make,words', [
    (lambda: torchvision.models.resnet34(), "'layer1.2.bn1.bias', of shape (64,) in the file and missing in the network"),
    (lambda: nn.Sequential(*list(torchvision.models.resnet18().children())[:6]), "missing in the file"),
    (lambda: nn.Linear(2,2), "holds no ResNet ('resnet18')")], ids=['more','less','other'])
def test_init_refuses_what_does_not_fit_and_changes_nothing(tmp_path, make, words):
    torch.save(make().state_dict(), tmp_path/'x.pth')
    net = create_encoder('resnet18', pretrained=False)
    was = {k: v.clone() for k,v in net.state_dict().items()}
    with pytest.raises(ValueError) as e: load_weights(tmp_path/'x.pth', net)
    assert words in str(e.value) and '\n' not in str(e.value)
    assert all(torch.equal(v, was[k]) for k,v in net.state_dict().items())

def test_pretrain_starts_from_a_file(here):
    "At a rate of almost nothing the encoder that comes out is the one that went in; the file says which network it is"
    args = ('pics', '--init', 'encoder.safetensors', '--size', 16, '--bs', 32, '--epochs', 1, '--lr', 1e-12, '--wd', 0, '--hidden-size', 32, '--projection-size', 16, '--workers', 0, '--out', 'started')
    net = create_encoder('tiny_resnet', pretrained=False, n_in=1)
    save_encoder(net, here/'encoder0.safetensors', size=8, stats=None)
    res = run('byol_pretrain', *args[:2], 'encoder0.safetensors', *args[3:], cwd=here)
    assert res.returncode==0 and 'starts from the weights in encoder0.safetensors' in res.stdout, res.stderr
    out = load_encoder(here/'started/encoder.safetensors')
    for (k,p),q in zip(out.named_parameters(), net.parameters()): torch.testing.assert_close(p, q, atol=1e-6, rtol=0)
    settings = json.loads((here/'started/settings.json').read_text())['settings']
    assert (settings['init'],settings['arch'],settings['n_in'])==('encoder0.safetensors','tiny_resnet',1)

@pytest.mark.parametrize('args,words', [
    (('--init','encoder.safetensors','--arch','resnet18'), "the network is a ResNet ('resnet18'): 100 of 120 weights differ"),
    (('--init','nothing.ckpt'), 'is not a file'),
    (('--init','encoder.safetensors','--pretrained'), 'two places to start from')])
def test_pretrain_names_what_does_not_fit(here, args, words):
    res = run('byol_pretrain', 'pics', *args, '--size', 16, '--bs', 32, '--workers', 0, '--out', 'wrong/run', cwd=here)
    assert res.returncode==1 and res.stderr.count('\n')==1 and words in res.stderr, res.stderr
    assert not (here/'wrong').exists()

@pytest.mark.parametrize('valid', [.3, 'valid'])
def test_labels_from_a_file(here, valid, monkeypatch, capsys):
    "Names and labels in a csv file; a picture without one is left out, and the exported classifier knows the words"
    monkeypatch.chdir(here)
    files = sorted(o.relative_to('pics') for o in Path('pics').rglob('*.png'))
    rows = [(o, 'three' if o.parent.name=='3' else 'seven') for o in files[1:]]
    with open('labels.csv', 'w', newline='') as f: csv.writer(f).writerows([('name','label'), *rows])
    results,out = finetune('encoder.safetensors', 'pics', f'by_file_{valid}', labels='labels.csv', valid=valid, epochs=1, workers=0, progress=False)
    assert results['vocab']==['seven','three'] and f'1 of {len(files)} pictures without a label: left out' in capsys.readouterr().out
    n = sum(map(sum, results['confusion']))
    assert n+results['labels']==len(files)-1
    if valid=='valid': assert n==sum(o.parts[0]=='valid' for o in files[1:])
    learn = load_learner(out/'export.pkl')
    with learn.no_bar(): assert learn.predict(here/'pics'/files[1])[0] in ('three','seven')
    with pytest.raises(ValueError, match='labels no picture'):
        Path('others.csv').write_text('name,label\nx.png,a\n')
        finetune('encoder.safetensors', 'pics', 'none', labels='others.csv', workers=0, progress=False)

@pytest.mark.parametrize('labels', ['folders', 'csv'])
def test_a_run_is_tested_on_the_pictures_it_held_out(labels, here, tmp_path, monkeypatch, capsys):
    "Not on some that it was trained on; its own labels are used as well"
    monkeypatch.chdir(here)
    monkeypatch.setattr(room, 'export_classifier', lambda *args: [])   # it takes long, and is tested elsewhere
    names = sorted(str(o.relative_to(here/'pics')) for o in (here/'pics').rglob('*.png'))
    held = names[::7]
    run = tmp_path/'run'
    run.mkdir()
    (run/'encoder.safetensors').write_bytes((here/'encoder.safetensors').read_bytes())
    (run/'held_out.csv').write_text(''.join(f'{o}\n' for o in held))
    own = None
    if labels=='csv':
        own = str(tmp_path/'labels.csv')
        Path(own).write_text('name,label\n'+''.join(f"{o},{'three' if '/3/' in o else 'seven'}\n" for o in names))
    (run/'settings.json').write_text(json.dumps(dict(settings=dict(path='pics', labels=own, views={}))))
    res,folder = finetune(run, 'pics', out=tmp_path/'out', epochs=1, workers=0, progress=False)
    said = capsys.readouterr().out
    assert f'tested on the {len(held)} pictures that {run} held out' in said
    assert np.sum(res['confusion'])==len(held) and res['labels']==len(names)-len(held)
    assert {Path(o['name']).resolve() for o in res['top_losses']} <= {(here/'pics'/o).resolve() for o in held}
    if own: assert res['vocab']==['seven','three']
    res,_ = finetune(run, 'pics', out=tmp_path/'chosen', valid='valid', epochs=1, workers=0, progress=False)
    assert np.sum(res['confusion'])==sum(o.startswith('valid/') for o in names)   # what is asked for goes first
    n = sum(o.startswith('valid/') for o in set(names)-set(held))
    assert f"valid='valid': {n} of 120 pictures may be among those that {run} was trained on. Leave" in capsys.readouterr().out
    res,_ = finetune(here/'encoder.safetensors', 'pics', out=tmp_path/'plain', epochs=1, workers=0, progress=False)
    assert np.sum(res['confusion'])==int(.2*len(names)) and 'held out' not in capsys.readouterr().out.partition('labels to train on')[0]

@pytest.mark.parametrize('prefers', ['as it is', 'tuned'])
def test_the_held_out_labels_choose_between_the_encoder_as_it_is_and_tuned(prefers, here, tmp_path, monkeypatch):
    "Fine-tuning may spoil a good encoder; the one that stays is a linear classifier on it"
    monkeypatch.chdir(here)
    monkeypatch.setattr(room, 'FEW', 1)   # so that there are held-out labels
    monkeypatch.setattr(room, 'export_classifier', lambda *args: [])
    nets = []
    def accuracy(model, part):
        nets.append(model)
        return float(len(nets)==(1 if prefers=='as it is' else 2))
    monkeypatch.setattr(room, '_accuracy', accuracy)
    monkeypatch.setattr(room, '_loss', lambda *args: 1e9)   # each epoch is better
    trained,own = [],room.train_classifier
    monkeypatch.setattr(room, 'train_classifier', lambda *args, **kw: trained.append(own(*args, **kw)) or trained[-1])
    res,_ = finetune('encoder.safetensors', 'pics', out=tmp_path/'out', labels_per_class=6, epochs=1, workers=0, progress=False)
    assert len(nets)==2 and res['epochs']==(0 if prefers=='as it is' else 1)
    assert len(list(csv.DictReader(open(tmp_path/'out/history.csv'))))==1 and '<h2>Training</h2>' in (tmp_path/'out/report.html').read_text()
    assert res['verdict'][0].startswith('The classifier is linear')==(prefers=='as it is')
    was,now = load_encoder('encoder.safetensors'),trained[-1].model.encoder
    assert all(torch.equal(a, b) for a,b in zip(was.parameters(), now.parameters()))==(prefers=='as it is')

def test_few_labels_are_all_trained_on_to_the_end(here, tmp_path, monkeypatch):
    "Also from scratch: what stops by two labels per class stops anywhere, and then either looks better than it is"
    monkeypatch.chdir(here)
    monkeypatch.setattr(room, 'export_classifier', lambda *args: [])
    trained,fits = [],[]
    class Steps(Callback):
        def after_fit(self): fits.append((self.epoch+1, self.opt.hypers[0]['lr'], len(self.dls.train_ds)))
    monkeypatch.setattr(room, '_callbacks', lambda *args: [Steps()])
    own = room.train_classifier
    monkeypatch.setattr(room, 'train_classifier', lambda *args, **kw: trained.append(own(*args, **kw)) or trained[-1])
    res,_ = finetune('encoder.safetensors', 'pics', out=tmp_path/'out', labels_per_class=6, epochs=3, compare=True, workers=0, progress=False)
    assert res['labels']==12 and res['epochs']==3 and [o.epochs for o in trained]==[3,3] and len(fits)==2
    for epochs,lr,n in fits: assert epochs==3 and lr<1e-4 and n%12==0   # the end of the schedule, and each picture equally often

@pytest.mark.parametrize('asked, recorded, used', [(None, True, 0.), (.3, True, .3), (None, False, .5)])
def test_a_classifier_mirrors_its_pictures_as_the_run_did(asked, recorded, used, here, tmp_path, monkeypatch):
    "A mirrored b is a d: what the views never mirrored, a classifier does not either"
    class Reached(Exception): pass
    def stop(*args, flip_p, **kwargs): raise Reached(flip_p)
    monkeypatch.chdir(here)
    monkeypatch.setattr(room, 'crop_and_flip', stop)
    monkeypatch.setattr(evaluate_room, 'crop_and_flip', stop)
    (tmp_path/'encoder.safetensors').write_bytes((here/'encoder.safetensors').read_bytes())
    if recorded:
        (tmp_path/'held_out.csv').write_text(''.join(f'{o}\n' for o in sorted((here/'pics').rglob('*.png'))[::7]))
        (tmp_path/'settings.json').write_text(json.dumps(dict(settings=dict(path='pics', views=dict(flip_p=0.)))))
    with pytest.raises(Reached) as tuned: finetune(tmp_path, 'pics', out=tmp_path/'out', flip_p=asked, workers=0, progress=False)
    with pytest.raises(Reached) as probed:
        evaluate_pictures(tmp_path, 'pics', full=True, seeds=1, epochs=1, flip_p=asked, workers=0)
    assert tuned.value.args==probed.value.args==(used,)

@pytest.mark.parametrize('full', ['export.pkl','classifier.onnx'])
def test_a_full_disk_costs_a_file_and_not_the_measurement(here, full, monkeypatch, tmp_path):
    "`results.json` is whole, the file that did not fit is not there, and a line says why"
    def fill(path):
        Path(path).write_bytes(b'half')
        raise OSError(28, 'No space left on device')
    if full=='export.pkl': monkeypatch.setattr('fastai.learner.Learner.export', lambda self, name: fill(self.path/name))
    else: monkeypatch.setattr(room, 'export_onnx', lambda model, path, *_, **__: fill(path.with_name('.part')))
    monkeypatch.chdir(here)
    res,out = finetune('encoder.safetensors', 'pics', tmp_path/'out', epochs=1, labels_per_class=4, workers=0, progress=False)
    assert any(o.startswith(f'{full} is not written: ') and 'No space left' in o for o in res['said'])
    assert json.loads((out/'results.json').read_text())['rows'] and (out/'report.html').exists() and not (out/full).exists()
    assert not [o for o in out.iterdir() if o.name.startswith('.export')]

def test_names_that_are_no_text_reach_the_pages(here, tmp_path, monkeypatch):
    "Bytes of a file system that are not UTF-8, in the names of a class and of the folder"
    monkeypatch.chdir(tmp_path)
    write_mnist_tiny(tmp_path/'p\udce9cs')
    for part in ('train','valid'): (tmp_path/'p\udce9cs'/part/'7').rename(tmp_path/'p\udce9cs'/part/'s\udce9pt')
    res,out = finetune(here/'encoder.safetensors', 'p\udce9cs', tmp_path/'o\udce9t', valid='valid', epochs=1, labels_per_class=4, workers=0, progress=False)
    assert rb's\udce9pt' in (out/'report.html').read_bytes() and len(res['vocab'])==2
    byol_embed(str(here/'encoder.safetensors'), ['p\udce9cs/valid'], out=str(tmp_path/'f.npz'), workers=0, neighbors=True)
    assert rb's\udce9pt' in (tmp_path/'f.html').read_bytes()

def test_a_table_in_memory_with_labels(here, tmp_path, monkeypatch):
    "Comparing it with an empty text was an error: the truth value of a DataFrame is ambiguous"
    monkeypatch.chdir(here)
    monkeypatch.setattr(room, 'export_classifier', lambda *args: [])
    files = sorted(map(str, Path('pics/valid').rglob('*.png')))
    df = pd.DataFrame(dict(file=files, kind=['odd' if '/3/' in o else 'even' for o in files]))
    res,_ = finetune('encoder.safetensors', df, tmp_path/'out', labels='kind', column='file', valid=.3, epochs=1, workers=0, progress=False)
    assert res['vocab']==['even','odd'] and res['labels']+np.sum(res['confusion'])==len(files)
    with pytest.raises(ValueError, match="path=''.*is an empty text"): finetune('encoder.safetensors', '')

@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError])
def test_a_comparison_that_is_stopped_does_not_lose_the_classifier(here, tmp_path, monkeypatch, error):
    "It was written after the same network had been trained from scratch"
    monkeypatch.chdir(here)
    written = []
    def stop(*args): raise error
    monkeypatch.setattr(room, 'untrained', stop)
    monkeypatch.setattr(room, 'export_classifier', lambda *args: written.append('export') or ['a file is missing'])
    with pytest.raises(error): finetune('encoder.safetensors', 'pics', tmp_path/'out', compare=True, valid='valid', labels_per_class=5, epochs=1, workers=0, progress=False)
    res = json.loads((tmp_path/'out/results.json').read_text())
    assert list(res['rows'])==['linear on frozen features','fine-tuned'] and (tmp_path/'out/report.html').is_file() and written==['export']
    monkeypatch.undo()
    monkeypatch.chdir(here)
    monkeypatch.setattr(room, 'export_classifier', lambda *args: ['a file is missing'])
    res,out = finetune('encoder.safetensors', 'pics', tmp_path/'whole', compare=True, valid='valid', labels_per_class=5, epochs=1, workers=0, progress=False)
    assert list(res['rows'])[-1]=='from scratch' and 'from scratch' in (out/'report.html').read_text() and res['said'].count('a file is missing')==1
    assert json.loads((out/'results.json').read_text())['rows'].keys()==res['rows'].keys() and len(res['verdict'])==2

def test_pictures_of_one_sample_are_on_one_side_of_the_part_to_stop_by(tmp_path, monkeypatch):
    "Chance drew them singly: training stopped, and was compared, by samples that it had learned from"
    monkeypatch.chdir(tmp_path)
    one = BytesIO()
    Image.new('L', (12,12)).save(one, 'png')
    with tarfile.open('s.tar', 'w') as t:
        for i in range(60):
            for o in ('left','right'):
                info = tarfile.TarInfo(f'{"ab"[i%2]}/{i:03}.{o}.png')
                info.size = len(one.getvalue())
                t.addfile(info, BytesIO(one.getvalue()))
    s = AttrDict(FINETUNE | dict(n_in=1, size=12, workers=0, seed=1, reading={}, labels=None, valid=.2, labels_per_class=None))
    parts = read_labels('s.tar', s)
    samples = [{Path(o).name.split('.')[0] for o in ds.items} for ds in (parts.dls.train_ds,parts.dls.valid_ds)]
    assert not samples[0] & samples[1] and .15<len(samples[1])/len(samples[0] | samples[1])<.25
    assert len(parts.stop[1])==2*len(samples[1]) and len(parts.train[1])==2*len(samples[0])
    for i in range(60):   # a picture in two formats
        Path(f'pics/{"ab"[i%2]}').mkdir(parents=True, exist_ok=True)
        for ending in ('png','jpg'): Image.new('L', (12,12)).save(f'pics/{"ab"[i%2]}/{i}.{ending}')
    parts = read_labels('pics', s)
    samples = [{Path(o).stem for o in items} for items in (parts.dls.train_ds.items, parts.dls.valid_ds.items, parts.items)]
    assert all(samples) and sum(map(len, samples))==60==len(set().union(*samples))
    few = [Path(o) for o in ('a/1.png','a/1.jpg','b/2.png','b/2.jpg')]
    with pytest.raises(ValueError, match='one sample of each class outside the test part, and none to stop by'): room._drawn_to_stop(few, torch.tensor([0,0,1,1]), s)

def test_a_classifier_of_pictures_that_are_not_square(here, tmp_path, monkeypatch):
    "The size of two sides in an encoder's file ended every fine-tuning, after the labels were read, with: unhashable type: 'list'"
    monkeypatch.setattr(room, 'export_classifier', lambda *args: [])
    net = create_encoder('tiny_resnet', pretrained=False, n_in=1)
    e = save_encoder(net, tmp_path/'e.safetensors', size=(8,16), n_in=1, stats=None)
    results,_ = finetune(e, here/'pics', tmp_path/'c', epochs=1, workers=0, progress=False)
    assert record_of(load_encoder(e))['size']==(8,16) and sum(map(sum, results['confusion']))>10
