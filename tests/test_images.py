"Pictures as batches (data.images): one seed one run, and unlabelled pictures train"
import pytest
import torch
from fastai.learner import Learner
from torch import nn

from self_supervised.data.arrays import no_labels, tensor_dls
from self_supervised.data.demo import digits, write_mnist_tiny
from self_supervised.data.images import image_dls
from self_supervised.vision.byol import BYOL, create_byol_model, get_byol_aug_pipelines

@pytest.fixture(scope='module')
def path(tmp_path_factory): return write_mnist_tiny(tmp_path_factory.mktemp('pics')/'mnist_tiny')

def sums(path, seed, workers=0):
    "One number per picture of an epoch, in its order"
    dls = image_dls(path, n_in=1, bs=32, workers=workers, seed=seed)
    return torch.stack([b[0].flatten(1).sum(1) for b in dls.train])

def test_the_order_follows_from_the_seed(path):
    "In this process or with workers"
    assert torch.equal(sums(path, 1), sums(path, 1)) and not torch.equal(sums(path, 1), sums(path, 2))
    assert torch.equal(sums(path, 1), sums(path, 1, workers=2))

def test_building_loaders_leaves_the_random_state_alone(path):
    state = torch.get_rng_state()
    image_dls(path, n_in=1, bs=32)
    assert torch.equal(torch.get_rng_state(), state)

def test_without_labels_a_learner_can_be_built(path):
    "And fastai's own callbacks find no y"
    learn = Learner(image_dls(path, n_in=1, bs=32, workers=0), nn.Flatten())
    assert learn.loss_func is no_labels
    assert learn._split(learn.dls.one_batch()) is None and learn.yb==()

def loaders(kind, path):
    if kind=='arrays': return tensor_dls(digits(28)[0][:250], bs=100)
    return image_dls(path, n_in=1, bs=100, workers=0, valid=.1 if kind=='held out' else 0.)

@pytest.mark.parametrize('kind', ['held out','all','arrays'])
def test_unlabelled_pictures_train(path, kind):
    dls = loaders(kind, path)
    net = nn.Sequential(nn.Conv2d(1,4,3,stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    model = create_byol_model(net, hidden_size=8, projection_size=4, n_in=1, size=28)
    learn = Learner(dls, model, cbs=BYOL(get_byol_aug_pipelines(28, stats=None)))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert len(learn.recorder.losses)==len(dls.train) and 0<learn.recorder.losses[-1]<8
