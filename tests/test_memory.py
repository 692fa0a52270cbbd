"""A fit on a CPU keeps the memory that its steps free, and returns it when it ends; that of an interrupted fit is returned when the next begins."""
import json, os, subprocess, sys

import pytest, torch
from fastai.callback.core import Callback, CancelFitException
from torch import nn

from self_supervised.callback import cpu_memory as memory, put_back
from self_supervised.data.demo import digits
from self_supervised.data.arrays import tensor_dls
from self_supervised.vision.byol import byol_learner, create_byol_model, get_byol_aug_pipelines

class Stop(Callback):
    def __init__(self, how): self.how = how
    def after_pred(self): raise self.how

def learner(*cbs):
    x = digits()[0][:64]
    net = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    learn = byol_learner(tensor_dls(x, bs=16, seed=0, device='cpu'), create_byol_model(net, hidden_size=16, projection_size=8),
                         get_byol_aug_pipelines(8, jitter=False, bw=False, blur=False, solarize=False, stats=None), cbs=cbs)
    return learn

def fit(learn):
    with learn.no_bar(), learn.no_logging(): learn.fit(1)

@pytest.fixture
def calls(monkeypatch):
    "What was asked of the allocator"
    res = []
    monkeypatch.setattr(put_back, 'keep_memory', lambda on=True: res.append(on) or True)
    return res

def test_kept_for_the_fit_and_returned(calls):
    fit(learner())
    assert calls==[True,False]

def test_returned_when_a_callback_ends_the_fit(calls):
    fit(learner(Stop(CancelFitException)))
    assert calls==[True,False]

def test_an_interrupted_fit_returns_it_with_the_next(calls):
    learn = learner(Stop(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): fit(learn)
    assert calls==[True]
    learn.remove_cb(Stop)
    fit(learn)
    assert calls==[True, False, True, False]

def test_a_fit_that_ends_before_it_began_is_no_error(calls):
    class First(Callback):
        order = -100
        def before_fit(self): raise CancelFitException
    fit(learner(First()))
    assert calls==[]

def test_nothing_is_touched_where_it_cannot_be(monkeypatch):
    "Another C library, or thresholds that somebody chose: nothing is returned either, since nothing was kept"
    asked = []
    monkeypatch.setattr(put_back, 'keep_memory', lambda on=True: asked.append(on) or False)
    fit(learner())
    assert asked==[True]

PROGRAM = '''
import json, resource, sys, torch
from fastai.callback.core import Callback
from self_supervised.data.arrays import tensor_dls
from self_supervised.layers import create_encoder
from self_supervised.callback import put_back
from self_supervised.vision import byol
if sys.argv[1]=='off': put_back.keep_memory = lambda on=True: False
class Faults(Callback):
    order,seen = 1000,[]
    def after_batch(self): self.seen.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
dls = tensor_dls(torch.zeros(192, 3, 64, 64), bs=32, seed=0, device='cpu')
learn = byol.byol_learner(dls, byol.create_byol_model(create_encoder('resnet18', pretrained=False)), byol.get_byol_aug_pipelines(64), cbs=Faults())
with learn.no_bar(), learn.no_logging(): learn.fit(1)
print(json.dumps(Faults.seen))
'''

def faults_a_step(how):
    "Page faults (4 kB each) a step, from the fourth on, of a fit in a process of its own"
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', PROGRAM, how], capture_output=True, text=True, check=True, env=os.environ | {'OMP_NUM_THREADS':'1'})
    seen = json.loads(out.stdout.splitlines()[-1])
    assert len(seen)==6
    return (seen[-1]-seen[2])/3

@pytest.mark.skipif(not memory.has_glibc() or memory.chosen_outside(), reason="not glibc's allocator as it comes")
def test_steps_of_a_fit_ask_the_system_for_little():
    off = faults_a_step('off')
    if off<6000: pytest.skip(f'{off:.0f} page faults a step as it comes: nothing to save on this machine')
    assert faults_a_step('on')<off/3
