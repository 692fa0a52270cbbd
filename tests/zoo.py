"""What is known to break BYOL, one thing at a time, and what is known to be healthy: for nbs/44_callback.health.ipynb and test_monitor.py"""
from functools import partial

from torch import nn
from fastai.vision.all import Callback, CancelFitException, Learner, Recorder

from self_supervised.core import seed_everything
from self_supervised.data.demo import digits
from self_supervised.data.arrays import tensor_dls
from self_supervised.ema import constant_momentum
from self_supervised.layers import create_encoder
from self_supervised.recipes import byol_recipe
from self_supervised.vision.byol import (
    BYOL, BYOLModel, create_byol_model, create_simsiam_model, digit_views, get_byol_aug_pipelines)

x,y,(train,test) = digits()

# Models

def create(norm='batch'):
    "Batchnorm, as published"
    encoder = create_encoder('tiny_resnet', pretrained=False, n_in=1)
    if norm is None:
        for name,m in list(encoder.named_modules()):
            if isinstance(m, nn.BatchNorm2d): encoder.set_submodule(name, nn.Identity())
    return create_byol_model(encoder, 512, 64, bn=False, norm=norm, size=8)

def without_norm():
    "Nothing normalises, neither encoder nor heads"
    return create(norm=None)

def without_predictor():
    "The identity instead of a predictor"
    model = create()
    model.predictor = nn.Identity()
    return model

class Leaky(BYOLModel):
    "Lets gradients into the target: the online network's own projections"
    def project(self, *views): return tuple(self.online(v) for v in views)

def leaky():
    "The target is the online network, and has gradients"
    model = create()
    return Leaky(model.encoder, model.projector, model.predictor)

def group_norm():
    "Group norm, as in the tutorial on small batches"
    encoder = create_encoder('tiny_resnet', pretrained=False, n_in=1, norm='group')
    return create_byol_model(encoder, 512, 64, norm='group', size=8)

def simsiam():
    "SimSiam: no target network"
    return create_simsiam_model(create_encoder('tiny_resnet', pretrained=False, n_in=1), 512, 512, 128, n_in=1, size=8)

# Runs: a model and the settings of `fit_byol`; of what is broken also the symptom, and words of its likely cause

base = dict(epochs=12, recipe='adamw', lr=4e-3, m=.95)
lars_rate = byol_recipe(12, 64, 'lars', len(train)).lr
broken = {
    'no predictor, tau 0': (without_predictor, base|dict(m=constant_momentum(0.)), 'collapse', 'predictor has no weights'),
    'no stop-gradient':    (leaky, base, 'collapse', 'carry gradients'),
    'no norm':             (without_norm, base, 'collapse', 'no layer normalises'),
    'tau 1':               (create, base|dict(m=constant_momentum(1.)), 'standing target', 'pass m='),
    "Adam at LARS's rate": (create, base|dict(lr=lars_rate), 'large steps', 'learning rate')}
healthy = {
    'AdamW':              (create, base),
    'LARS':               (create, dict(bs=128, epochs=8, recipe='lars')),
    'SGD':                (create, dict(bs=128, epochs=8, recipe='sgd')),
    'SimSiam':            (simsiam, dict(bs=128, epochs=8, recipe='simsiam')),
    'group norm, 16':     (group_norm, dict(bs=16, epochs=20, recipe='adamw', lr=6e-3, m=.99)),
    'the same, 6 epochs': (group_norm, dict(bs=16, epochs=6, recipe='adamw', lr=6e-3, m=.99))}

class StopAt(Callback):
    "End a fit after `n` epochs, or with what was waited for, the schedule of a longer one running"
    order = Recorder.order+1
    def __init__(self, n, symptom=None):
        self.n = n
        self.symptom = symptom
    def after_epoch(self):
        if self.epoch+1>=self.n or self.symptom in self.learn.health.ill: raise CancelFitException()

def zoo_learner(make, seed, bs=64, stop=None, symptom=None):
    "A learner on the digits that stops after `stop` epochs, or with `symptom`"
    seed_everything(seed)
    cbs = [StopAt(stop, symptom)] if stop else []
    byol = BYOL(get_byol_aug_pipelines(8, **digit_views))
    return Learner(tensor_dls(x[train], bs=bs, seed=seed), make(), cbs=[byol, *cbs])
