"tests/accelerator.py in a process of its own: torch's autograd knows the devices that were there at its first backward pass, and no later one"
import os, subprocess, sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

root = Path(__file__).parents[1]

@pytest.mark.skipif(not hasattr(backend_registration, '_setup_privateuseone_for_python_backend'), reason='this torch has no devices written in Python')
def test_on_a_device_that_is_none():
    command = [sys.executable, '-m', 'pytest', '-q', '-n0', '-p', 'no:cacheprovider', 'tests/accelerator.py']
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(root), os.environ.get('PYTHONPATH', '')]), CUDA_VISIBLE_DEVICES='')
    ran = subprocess.run(command, cwd=root, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if ran.returncode or ' passed' not in ran.stdout: pytest.fail(ran.stdout[-8000:], pytrace=False)
