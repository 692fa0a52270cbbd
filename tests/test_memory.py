"""A fit on a CPU keeps the memory that its steps free, and returns it when it ends, however it ends."""
import json, os, platform, subprocess, sys

import pytest, torch
from fastai.callback.core import Callback, CancelFitException
from torch import nn

from self_supervised import memory
from self_supervised.data import digits, tensor_dls
from self_supervised.vision import byol
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
    monkeypatch.setattr(byol, 'keep_memory', lambda on=True: res.append(on) or True)
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
    assert calls[-1] is False

def test_nothing_is_touched_where_it_cannot_be(monkeypatch):
    "Another C library, or thresholds that somebody chose: nothing is returned either, since nothing was kept"
    asked = []
    monkeypatch.setattr(byol, 'keep_memory', lambda on=True: asked.append(on) or False)
    fit(learner())
    assert asked==[True]

@pytest.mark.skipif(platform.libc_ver()[0]!='glibc' or memory.chosen_outside(), reason="not glibc's allocator as it comes")
def test_steps_of_a_fit_ask_the_system_for_nothing():
    "The whole way in a process of its own: page faults (4 kB each) from the fourth step on; without it there are some thousands a step"
    program = '''
import json, resource, torch
from fastai.callback.core import Callback
from self_supervised.data import tensor_dls
from self_supervised.layers import create_encoder
from self_supervised.vision.byol import byol_learner, create_byol_model, get_byol_aug_pipelines
class Faults(Callback):
    order,seen = 1000,[]
    def after_batch(self): self.seen.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
dls = tensor_dls(torch.zeros(192, 3, 64, 64), bs=32, seed=0, device='cpu')
learn = byol_learner(dls, create_byol_model(create_encoder('resnet18', pretrained=False)), get_byol_aug_pipelines(64), cbs=Faults())
with learn.no_bar(), learn.no_logging(): learn.fit(1)
print(json.dumps(Faults.seen))
'''
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', program], capture_output=True, text=True, check=True, env=os.environ | {'OMP_NUM_THREADS':'1'})
    seen = json.loads(out.stdout.splitlines()[-1])
    assert len(seen)==6 and (seen[-1]-seen[2])/3 < 1500, seen
