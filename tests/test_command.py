"The command as a user types it, in a process of its own"
import csv, json, os, subprocess, sys
from pathlib import Path

import pytest, torch
from PIL import Image

from self_supervised.data import write_mnist_tiny
from self_supervised.transfer import load_encoder

def run(*args, cwd):
    code = "import sys; from self_supervised.pretrain import byol_pretrain; sys.argv[0] = 'byol_pretrain'; byol_pretrain()"
    script = Path(cwd)/'byol_pretrain'
    script.write_text(code)     # as pip writes it
    return subprocess.run([sys.executable, str(script), *map(str, args)], cwd=cwd, capture_output=True, text=True, env=os.environ|dict(MPLBACKEND='Agg'))

FILES = 'embedding.png encoder.safetensors history.csv settings.json views.png'.split()

def check_run(folder, epochs, shape):
    assert sorted(f.name for f in folder.iterdir()) == FILES
    assert all(Image.open(folder/f).size[0]>300 for f in ('views.png','embedding.png'))
    rows = list(csv.DictReader(open(folder/'history.csv')))
    assert len(rows)==epochs and all(0 <= float(r['train_loss']) <= 8 for r in rows)
    assert json.loads((folder/'settings.json').read_text())['versions']['torch'] == torch.__version__
    assert load_encoder(folder/'encoder.safetensors')(torch.rand(2, *shape)).ndim == 2

def test_digits(tmp_path):
    res = run('--epochs', 2, '--out', 'here', cwd=tmp_path)
    assert res.returncode==0, res.stderr
    check_run(tmp_path/'here', 2, (1,8,8))
    for words in ('train_loss', 'raw pixels', 'untrained encoder', 'trained encoder', '±', 'linear', 'kNN', "load_encoder('here/encoder.safetensors')"): assert words in res.stdout, words

def test_own_pictures_without_labels(tmp_path):
    write_mnist_tiny(tmp_path/'pics')
    res = run('pics', '--arch', 'tiny_resnet', '--size', 16, '--n_in', 1, '--bs', 32, '--epochs', 1, '--workers', 0, '--hidden_size', 32, '--projection_size', 16, '--unlabelled', cwd=tmp_path)
    assert res.returncode==0, res.stderr
    check_run(tmp_path/'runs'/'byol', 1, (1,16,16))
    assert 'No labels' in res.stdout and 'effective rank' in res.stdout

def test_own_pictures_with_labels(tmp_path):
    write_mnist_tiny(tmp_path/'pics')
    res = run('pics', '--arch', 'mobilenetv3_small_050', '--size', 32, '--bs', 32, '--epochs', 1, '--workers', 1, '--hidden_size', 32, '--projection_size', 16, cwd=tmp_path)
    assert res.returncode==0, res.stderr
    check_run(tmp_path/'runs'/'byol', 1, (3,32,32))
    assert 'held-out pictures with 5 labels a class' in res.stdout

def test_help(tmp_path):
    res = run('--help', cwd=tmp_path)
    assert res.returncode==0
    for option in 'arch size bs epochs lr workers seed out'.split(): assert f'--{option}' in res.stdout

@pytest.mark.parametrize('args,words', [
    (['nowhere'], ["nowhere", 'folder']),
    (['empty'], ["empty", '.png']),
    (['pics','--arch','resnet81'], ['resnet81', 'resnet18']),
    (['pics','--bs','5000'], ['5000', 'to train on']),
    (['pics','--n_in','2'], ['2', 'grey']),
    (['--m','1.5'], ['1.5', '[0,1]']),
    (['--epochs','0'], ['epochs=0']),
])
def test_one_line_for_what_is_wrong(tmp_path, args, words):
    write_mnist_tiny(tmp_path/'pics'); (tmp_path/'empty').mkdir()
    res = run(*args, '--workers', 0, cwd=tmp_path)
    assert res.returncode!=0 and 'Traceback' not in res.stderr
    last = res.stderr.strip().splitlines()[-1]
    assert last.startswith('byol_pretrain: ') and all(w in last for w in words), res.stderr

def test_a_broken_picture_is_named(tmp_path):
    write_mnist_tiny(tmp_path/'pics')
    (tmp_path/'pics'/'train'/'3'/'broken.png').write_bytes(b'no picture')
    res = run('pics', '--arch', 'tiny_resnet', '--size', 16, '--n_in', 1, '--bs', 32, '--epochs', 1, '--workers', 0, cwd=tmp_path)
    assert res.returncode!=0 and 'broken.png' in res.stderr
