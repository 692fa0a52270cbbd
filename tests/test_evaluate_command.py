"byol_evaluate and byol_embed as a user types them, each in a process of its own; what else they refuse is on page 52"
import json, os, shutil, subprocess, sys, tomllib
from pathlib import Path

import numpy as np, pytest, torch

from self_supervised.data.demo import write_mnist_tiny
from self_supervised.evaluate.features import embed
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
    assert res.returncode==0 and res.stdout=='features.npz: 30 pictures, 256 features each\n', res.stderr
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
