"byol_evaluate and byol_embed: as a user types them, each in a process of its own; and from Python, where that is enough"
import json, os, re, shutil, subprocess, sys, tomllib
from pathlib import Path

import numpy as np, pytest, torch
from fastcore.script import CliError

from self_supervised.cli.embed import _finite, embed_pictures, write_features
from self_supervised.cli.evaluate import byol_evaluate, evaluate_pictures, labelled_pictures
from self_supervised.core import check_place
from self_supervised.data.demo import write_mnist_tiny
from self_supervised.evaluate import protocols
from self_supervised.evaluate.features import embed
from self_supervised.evaluate.labelled import in_memory
from self_supervised.layers import create_encoder
from self_supervised.data.reading import open_picture
from self_supervised.transfer.encoder_file import load_encoder, save_encoder

SCRIPTS = tomllib.loads((Path(__file__).parents[1]/'pyproject.toml').read_text())['project']['scripts']

def run(command, *args, cwd):
    "Run a command by the script that pip makes of its entry in pyproject.toml"
    room,name = SCRIPTS[command].split(':')
    script = Path(cwd).parent/command
    script.write_text(f"import sys\nfrom {room} import {name}\nif __name__ == '__main__': sys.exit({name}())\n")
    return subprocess.run([sys.executable, script, *map(str, args)], cwd=cwd, capture_output=True, text=True, env=os.environ|dict(OMP_NUM_THREADS='1', PYTHONPATH=str(Path(__file__).parents[1])))

@pytest.fixture(scope='module')
def here(tmp_path_factory):
    "Digits, an encoder, and one that diverged; few: 30 pictures, fewer than a batch; odd: a class that is held out whole"
    d = tmp_path_factory.mktemp('digits')
    write_mnist_tiny(d/'pics')
    torch.manual_seed(0)
    net = create_encoder('tiny_resnet', pretrained=False, n_in=1)
    save_encoder(net, d/'encoder.safetensors', size=8, stats=None)
    next(net.parameters()).data.fill_(float('nan'))
    save_encoder(net, d/'ill.safetensors', size=8, stats=None)
    for to,frm,n in [('few/3','train/3',15), ('few/7','train/7',15), ('odd/train/3','train/3',9), ('odd/train/7','train/7',9), ('odd/valid/owl','valid/7',5)]:
        (d/to).mkdir(parents=True)
        for f in sorted((d/'pics'/frm).iterdir())[:n]: shutil.copy(f, d/to)
    return d

@pytest.mark.parametrize('command,options', [
    ('byol_evaluate', {'--draws': 'Number of random draws of the labels', '--valid': 'Part to test on', '--full': 'all published protocols', '--bs': 'Batch size', '--out': 'json'}),
    ('byol_embed', {'--out': '.npz', '--size': 'pixels', '--bs': 'Batch size', '--workers': 'Number of processes that read'})])
def test_help(command, options, tmp_path):
    res = run(command, '--help', cwd=tmp_path)
    text = ' '.join(res.stdout.split())
    assert res.returncode==0 and not res.stderr, res.stderr
    for option,doc in options.items(): assert option in text and doc in text, (option, doc)

def test_evaluate_fewer_pictures_than_a_batch(here):
    res = run('byol_evaluate', 'encoder.safetensors', 'few', '--draws', 3, '--workers', 0, '--out', 'new/res.json', cwd=here)
    assert res.returncode==0 and 'Traceback' not in res.stderr, res.stderr
    written = json.loads((here/'new/res.json').read_text())
    assert list(written['rows'])==['raw pixels','untrained encoder','encoder'] and len(written['rows']['encoder']['kNN']['all'])==3
    assert 'Accuracy on 6 held-out pictures with 5 labels per class' in res.stdout and f"{written['rows']['encoder']['kNN']['mean']:.3f}" in res.stdout
    assert '\r' not in res.stdout and '%' not in res.stdout   # no bar where there is no terminal

def test_embed(here):
    res = run('byol_embed', 'encoder.safetensors', 'few', '--workers', 0, cwd=here)
    assert res.returncode==0 and res.stdout.endswith('tiny_resnet for grey pictures of 8 px\nfeatures.npz: 30 pictures, 256 features each\n'), res.stderr
    with np.load(here/'features.npz') as d: names,feats = d['names'],d['features']
    x = torch.stack([open_picture(here/o, 1, 8).as_subclass(torch.Tensor) for o in names])
    torch.testing.assert_close(torch.as_tensor(feats), embed(load_encoder(here/'encoder.safetensors'), x)[0])

@pytest.mark.parametrize('command,args,words', [
    ('byol_evaluate', ('encoder.safetensors', 'odd', '--valid', 'valid'), ["'owl'", 'is left to train on']),
    ('byol_embed', ('ill.safetensors', 'few', '--out', 'ill.npz'), ['must be finite, and 30 of 30 rows hold NaN or inf', 'few/3/']),
    ('byol_embed', ('encoder.safetensors', 'nowhere', '--out', 'encoder.safetensors/f.npz'), ["out='encoder.safetensors/f.npz' cannot be written"])])   # before the pictures are looked for
def test_one_line_and_an_exit_code_for_what_is_wrong(here, command, args, words):
    res = run(command, *args, '--workers', 0, cwd=here)
    assert res.returncode==1 and res.stderr.count('\n')==1 and res.stderr.startswith(f'{command}: ') and all(o in res.stderr for o in words), res.stderr
    assert not (here/'ill.npz').exists()

def test_each_warning_is_one_line_that_names_its_network(here):
    "Two epochs: the best rate is at an end of the sweep, for both seeds"
    res = run('byol_evaluate', 'encoder.safetensors', 'pics', '--valid', 'valid', '--draws', 2, '--workers', 0, '--full', '--seeds', 2, '--epochs', 2, cwd=here)
    assert res.returncode==0, res.stderr
    lines = [o for o in res.stderr.splitlines() if 'torch.jit' not in o]
    assert lines and all(o.startswith(('byol_evaluate: raw pixels, ','byol_evaluate: untrained encoder, ','byol_evaluate: encoder, ')) for o in lines), res.stderr
    assert any(', linear: lr=' in o for o in lines) and len(set(lines))==len(lines)

# From Python

@pytest.fixture(scope='module')
def room(tmp_path_factory):
    "362 digits and a broken file; two encoders of pictures of 28 pixels, `ill` with NaN"
    d = tmp_path_factory.mktemp('room')
    write_mnist_tiny(d/'pics')
    (d/'pics/train/3/broken.png').write_bytes(b'no picture')
    torch.manual_seed(0)
    net = create_encoder('tiny_resnet', pretrained=False, n_in=1)
    save_encoder(net, d/'encoder.safetensors', size=28, stats=None)
    save_encoder(net, d/'plain.safetensors')
    next(net.parameters()).data.fill_(float('nan'))
    save_encoder(net, d/'ill.safetensors', size=28, stats=None)
    return d

def folder_of(room, to, **counts):
    "A folder of the first pictures of each class; a class shows the digit that its name ends in"
    for c,n in counts.items():
        (to/c).mkdir(parents=True)
        files = sorted(o for o in (room/'pics/train'/c[-1]).glob('*.png') if o.name!='broken.png')
        for f in files[:n]: shutil.copy(f, to/c)
    return to

def refused(words, f, *args, **kwargs):
    with pytest.raises((ValueError,TypeError,OSError,CliError), match=re.escape(words)): f(*args, **kwargs)

# byol_embed

@pytest.fixture(scope='module')
def embedded(room): return embed_pictures(room/'encoder.safetensors', room/'pics', workers=0)

def test_each_row_belongs_to_its_name(room, embedded):
    names,feats,bad = embedded
    assert (len(names),tuple(feats.shape),[Path(o).name for o in bad])==(362,(362,256),['broken.png'])
    x = open_picture(names[-1], 1, 28).as_subclass(torch.Tensor)[None]
    torch.testing.assert_close(feats[-1:], embed(load_encoder(room/'encoder.safetensors'), x)[0], rtol=0, atol=1e-5)

def test_a_file_of_numpy_has_what_was_written(embedded, tmp_path):
    names,feats,_ = embedded
    with np.load(write_features(names, feats, tmp_path/'f.npz')) as d:
        assert d['names'].tolist()==names and (d['features']==feats.numpy()).all()

def test_a_file_of_parquet_has_what_was_written(embedded, tmp_path):
    names,feats,_ = embedded
    try: import pyarrow.parquet as pq
    except ImportError: return refused('needs pyarrow', write_features, names, feats, tmp_path/'f.parquet')
    table = pq.read_table(write_features(names, feats, tmp_path/'f.parquet'))
    columns = [table[f'f{i}'].to_numpy() for i in range(feats.shape[1])]
    assert table['name'].to_pylist()==names and (np.stack(columns, 1)==feats.numpy()).all()

def test_features_that_are_not_finite_are_left_out_and_named(room):
    "Of one picture; of all, by an encoder that diverged, none are left"
    kept,feats,bad = _finite(['a','b','c'], torch.tensor([[1.,2],[3,float('inf')],[5,6]]), {}, 'features', 'Train it again')
    assert (kept,feats.tolist(),bad)==(['a','c'],[[1.,2],[5,6]],{'b': 'its features are NaN or inf'})
    refused('must be finite, and 362 of 362 rows hold NaN or inf', embed_pictures, room/'ill.safetensors', room/'pics', workers=0)

def test_what_cannot_be_embedded_or_written_is_refused(room, embedded, tmp_path):
    file,pics = room/'encoder.safetensors',room/'pics'
    (tmp_path/'a.png').write_bytes(b'')
    refused("out='f.csv' must end in .npz or .parquet", write_features, *embedded[:2], 'f.csv')
    refused('Pass size, e.g. size=224', embed_pictures, room/'plain.safetensors', pics)
    refused('has 1 picture, and none can be read', embed_pictures, file, tmp_path, workers=0)
    for wrong in (dict(bs=0), dict(workers=-1), dict(size=0)): refused(' must be ', embed_pictures, file, pics, **wrong)
    places = (tmp_path,'is a folder'), ('/dev/null/f.npz','/dev/null is no folder'), ('/proc/f.npz','cannot be written')
    for out,why in places: refused(why, check_place, out)

# byol_evaluate

SMALL = dict(draws=3, workers=0, size=8)

@pytest.mark.filterwarnings('ignore')
def test_full_adds_columns_and_changes_none(room, tmp_path, capsys):
    file,pics = room/'encoder.safetensors',room/'pics'
    how = SMALL | dict(draws=5, valid='valid')
    byol_evaluate(str(file), str(pics), **how, full=True, seeds=2, epochs=2, no_flip=True, out=str(tmp_path/'res.json'))
    assert ' min for 2 seeds' in capsys.readouterr().out
    res = json.loads((tmp_path/'res.json').read_text())
    assert list(res['rows'])==['raw pixels','untrained encoder','encoder']==list(res['chosen'])
    assert list(res['rows']['encoder'])==['linear','kNN','all: kNN 20','all: kNN 200','all: probe','all: linear','1%','10%']
    assert '1%' not in res['rows']['raw pixels']
    short = evaluate_pictures(file, pics, **how)
    assert 'chosen' not in short
    for k,v in short['rows'].items(): assert {c: res['rows'][k][c] for c in v}==v

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('e', [RuntimeError('no memory'), KeyboardInterrupt()])
def test_full_keeps_what_was_measured_before_an_error(room, tmp_path, capsys, monkeypatch, e):
    "An error in the last protocol, or Ctrl-C, lost the table and all protocols before it"
    was,calls = protocols.finetune_eval,[]
    def second_fails(*args, **kwargs):
        calls.append(1)
        if len(calls)==2: raise e
        return was(*args, **kwargs)
    monkeypatch.setattr(protocols, 'finetune_eval', second_fails)
    out = tmp_path/'res.json'
    with pytest.raises(CliError, match='no memory|stopped'): byol_evaluate(str(room/'encoder.safetensors'), str(room/'pics'), **SMALL, valid='valid', full=True, seeds=1, epochs=1, out=str(out))
    rows,text = json.loads(out.read_text())['rows'],capsys.readouterr().out
    assert list(rows['encoder'])==['linear','kNN','all: kNN 20','all: kNN 200','all: probe','all: linear'] and '10%' in rows['untrained encoder']
    assert text.count('all: linear')==1 and f"{rows['encoder']['all: linear']:.3f}" in text.splitlines()[-1]

def test_pictures_are_the_same_in_memory_and_from_files_in_any_batches(room):
    train,test,vocab = labelled_pictures(room/'pics', 8, 1, 'valid', workers=0)
    disk = labelled_pictures(room/'pics', 8, 1, 'valid', bs=7, workers=0, fits=0)
    assert not isinstance(disk[0], tuple)
    for a,b in zip((train,test), disk):
        for x,y in zip(a, in_memory(b), strict=True): assert torch.equal(x, y)
    assert (train[0].dtype,len(train[0]),len(test[0]),vocab)==(torch.uint8,242,120,['3','7'])

@pytest.mark.filterwarnings('ignore')
def test_a_small_folder_leaves_out_what_it_is_too_small_for(room, tmp_path, capsys):
    "Fewer pictures than a batch; too few for 1 % and for 200 neighbours"
    res = evaluate_pictures(room/'encoder.safetensors', folder_of(room, tmp_path, c3=20, c7=20), **SMALL, full=True, seeds=1, epochs=1)
    columns = [o for o in res['rows']['encoder'] if not o.startswith('balanced')]
    assert columns==['linear','kNN','all: kNN 20','all: probe','all: linear','10%']
    said = capsys.readouterr().out
    assert '1% of 32 labels is fewer than one for each of the 2 classes' in said and 'kNN 200: there are 32 pictures' in said

def test_a_class_needs_pictures_to_train_on(room, tmp_path):
    file = room/'encoder.safetensors'
    rare = folder_of(room, tmp_path/'rare', **{'train/c3': 9, 'train/c7': 9, 'train/x3': 1, 'valid/c3': 3, 'valid/c7': 3})
    refused("the class 'x3' has 1 picture to train on", evaluate_pictures, file, rare, **SMALL, full=True, valid='valid')
    refused('labels are the names of folders', evaluate_pictures, file, folder_of(room, tmp_path/'one', c3=20), workers=0)
    split = folder_of(room, tmp_path/'split', **{'train/c3': 9, 'train/c7': 9, 'valid/c3': 3, 'valid/owl7': 3})
    refused("no picture of 'owl7' is left to train on", labelled_pictures, split, 8, 1, 'valid', workers=0)

@pytest.mark.parametrize('wrong,words', [
    (dict(encoder='none.safetensors'), "'none.safetensors' is not a file"),
    (dict(encoder='ill.safetensors'), 'encoder: features of '),
    (dict(path='nowhere'), "'nowhere'"),
    (dict(out='/proc/res.json'), 'cannot be written'),
    *((dict([(o,0)]), f'{o}=0 must be 1 or more') for o in ('draws','n','bs','size')),
    (dict(workers=-1), 'workers=-1 must be'),
    *((dict([(o,0)], full=True), f'{o}=0 must be') for o in ('seeds','epochs')),
    (dict(valid='nowhere'), 'nowhere'),
    *((dict(valid=o), f'valid={o} must be in (0,1)') for o in ('0','1','nan')),
    (dict(valid='.001'), 'holds out none')], ids=lambda o: o if isinstance(o, str) else '')
def test_the_command_ends_with_one_line_for_what_is_wrong(room, monkeypatch, wrong, words):
    monkeypatch.chdir(room)
    refused(words, byol_evaluate, **dict(encoder='encoder.safetensors', path='pics', workers=0) | wrong)
