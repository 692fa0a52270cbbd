"examples/train.py as a user starts it: alone, killed and started again, on two processes"
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from self_supervised.callback.checkpoint import checkpoint_files
from self_supervised.data.demo import write_mnist_tiny
from self_supervised.transfer.encoder_file import load_encoder

ROOT = Path(__file__).parents[1]
ONE = [sys.executable]
TWO = [sys.executable, *'-m torch.distributed.run --standalone --nproc-per-node 2'.split()]

@pytest.fixture(scope='module')
def pictures(tmp_path_factory): return write_mnist_tiny(tmp_path_factory.mktemp('examples')/'pictures')

def start(python, *args):
    "Start the script on tiny pictures"
    env = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='', MPLBACKEND='agg')
    small = '--arch tiny_resnet --size 28 --bs 64 --workers 0'.split()
    return subprocess.Popen([*python, ROOT/'examples'/'train.py', *args, *small], env=env, start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

def finish(process, timeout=300):
    "Wait for the script, and return what it printed; nothing is left running"
    try: printed,_ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f'the script hangs: {process.communicate()[0][-2000:]}')
    assert process.returncode==0, printed[-4000:]
    return printed

@pytest.fixture(scope='module')
def alone(pictures):
    "The folder of a run that nothing stops, and what it printed"
    out = pictures.parent/'alone'
    return out,finish(start(ONE, pictures, '--out', out, '--epochs', '2', '--labels'))

def test_a_run_saves_its_encoder_and_reports_knn(alone):
    out,printed = alone
    assert 'kNN accuracy on ' in printed and f"load_encoder('{out/'encoder.safetensors'}')" in printed
    encoder = load_encoder(out/'encoder.safetensors')
    assert encoder.meta['size']==28 and len(encoder.meta['stats'])==2
    assert encoder(torch.rand(2,3,28,28)).isfinite().all()

def test_a_killed_run_goes_on_to_the_same_end(alone, pictures):
    out = pictures.parent/'killed'
    command = [pictures, '--out', out, '--epochs', '2', '--labels']
    process = start(ONE, *command)
    end = time.monotonic()+300
    while not checkpoint_files(out/'checkpoints') and process.poll() is None and time.monotonic()<end: time.sleep(.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode==-signal.SIGKILL and not (out/'encoder.safetensors').exists()
    assert 'going on with epoch' in finish(start(ONE, *command))
    want,got = (load_file(o/'encoder.safetensors') for o in (alone[0], out))
    assert all(torch.equal(v, got[k]) for k,v in want.items())

def test_two_processes_without_labels_in_bfloat16(pictures):
    out = pictures.parent/'two'
    printed = finish(start(TWO, pictures, '--out', out, '--epochs', '1', '--bf16'))
    assert printed.count('effective rank of the features of ')==1
    assert all(v.isfinite().all() for v in load_file(out/'encoder.safetensors').values() if v.is_floating_point())
