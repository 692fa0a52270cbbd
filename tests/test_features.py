"evaluate.features against definitions written out in numpy; any kind of loader gives the same features"
import re

import numpy as np, pytest, torch
from fastai.vision.core import TensorImageBW
from torch import nn
from torch.utils.data import DataLoader as TorchDL, TensorDataset

from self_supervised.data.arrays import tensor_dls
from self_supervised.data.demo import digits
from self_supervised.evaluate.features import (Accuracy, Pixels, compare_features, effective_rank, embed, few_label_accuracy, label_draws,
                                               mean_cosine, spread, untrained)
from self_supervised.layers import create_encoder

X,Y,(TRAIN,TEST) = digits()
PIXELS = X.flatten(1)
SETS = PIXELS[TRAIN],Y[TRAIN],PIXELS[TEST],Y[TEST]

@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1,32,3,padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())

def close(a, b, eps=1e-5): torch.testing.assert_close(torch.as_tensor(a).double(), torch.as_tensor(b).double(), rtol=0, atol=eps)

# From pictures to features

@pytest.mark.parametrize('source,labelled', [
    (lambda x, y: TorchDL(TensorDataset(x, y), batch_size=100), True),
    (lambda x, y: TorchDL(x, batch_size=100), False),
    (lambda x, y: x, False),
    (lambda x, y: (x,), False),
    (lambda x, y: [(x, y)], True),
    (lambda x, y: (x*255).byte(), False),
    (lambda x, y: tensor_dls(X, splits=(TRAIN,TEST)).train, False),
    (lambda x, y: tensor_dls(X, Y, (TRAIN,TEST), bs=64, seed=0).train.new(bs=7), True)],
    ids='torch unlabelled tensor tuple batches bytes fastai other_bs'.split())
def test_every_kind_of_loader_gives_the_same_features(net, source, labelled):
    x,y = X[TRAIN],Y[TRAIN]
    source = source(x, y)
    feats,labels = embed(net, source)
    is_bytes = getattr(source, 'dtype', None)==torch.uint8
    close(feats, embed(net, (x, y))[0], eps=.005 if is_bytes else 1e-5)
    assert (labels is not None)==labelled and (not labelled or torch.equal(torch.as_tensor(labels).long(), y))

def test_a_torch_loader_that_shuffles_is_read_in_order_and_keeps_its_generator(net):
    dl = TorchDL(TensorDataset(X[TRAIN], Y[TRAIN]), batch_size=100, shuffle=True, generator=torch.Generator().manual_seed(1))
    before = dl.generator.get_state()
    assert torch.equal(embed(net, dl)[1], Y[TRAIN]) and torch.equal(dl.generator.get_state(), before)

def test_pictures_are_normalised_as_the_views_are(net):
    "Also typed tensors of fastai, whose features are plain"
    x = X[TRAIN]
    assert type(embed(net, [(TensorImageBW(x),)])[0]) is torch.Tensor
    close(embed(net, x, stats=(.1,.3))[0], embed(net, (x-.1)/.3)[0])
    close(embed(nn.Flatten(), torch.ones(2,3,1,1), stats=([0,.5,1],[1,.5,.1]))[0], [[1.,1,0]]*2)

@pytest.mark.parametrize('what,words', [
    (lambda net: embed(net[:4], X[:4]), 'encoder=Sequential returns (4, 32, 2, 2)'),
    (lambda net: embed(net, []), 'dl has no batch'),
    (lambda net: embed(net, X[:4], stats=([0,0,0],[1,1,1])), 'has 3 entries for pictures of 1 channels')])
def test_after_an_error_a_network_in_train_mode_is_back_in_it(net, what, words):
    with pytest.raises(ValueError, match=re.escape(words)): what(net.train())
    assert all(m.training for m in net.modules())

# With few labels

def test_a_comparison_is_what_its_functions_return():
    encoder = create_encoder('tiny_resnet', pretrained=False, n_in=1, widths=(32,64))
    chance = torch.randn(len(X), 64, generator=torch.Generator().manual_seed(0))
    feats = {name: embed(o, X)[0] for name,o in {'raw pixels': Pixels(), 'untrained network': untrained(encoder)}.items()} | dict(noise=chance)
    table = compare_features({name: (f[TRAIN],f[TEST]) for name,f in feats.items()}, Y[TRAIN], Y[TEST])
    assert list(table.itemgot(0))==list(feats) and table[0].linear==few_label_accuracy(*SETS)
    assert table[0].linear.mean>.75 and table[2].linear.mean<.2

def test_rows_of_a_comparison_see_the_same_draws():
    "One set of features under two names gives one set of values, whatever their scale"
    a = SETS
    same = compare_features({'a': (a[0],a[2]), 'b': (a[0]*1000,a[2]*1000)}, a[1], a[3], draws=3)
    close(same[0].linear.all, same[1].linear.all, eps=.004)
    assert same[0].knn.all==same[1].knn.all

def test_draws_are_balanced_and_follow_from_their_seed():
    for d in label_draws(SETS[1], 5, 4): assert SETS[1][d].bincount().tolist()==[5]*10
    def drawn(*args, **kw): return torch.stack(label_draws(Y, *args, **kw))
    assert torch.equal(drawn(5, 4), drawn(5, 4)) and not torch.equal(drawn(5, 1), drawn(5, 1, seed=1))

def test_an_accuracy_is_printed_with_its_spread_and_may_be_of_your_own_method():
    assert str(Accuracy(.9, .01, [.9]))=='0.900 ± 0.010'
    assert few_label_accuracy(*SETS, draws=1, method=lambda *a: .5)==(.5, 0., [.5])

def test_an_untrained_network_follows_from_its_seed_and_is_in_the_mode_of_the_encoder():
    encoder = create_encoder('tiny_resnet', pretrained=False, n_in=1, widths=(32,64))
    assert all(torch.equal(p, q) for p,q in zip(untrained(encoder, 1).parameters(), untrained(encoder, 1).parameters()))
    assert not untrained(encoder.eval()).training
    with pytest.raises(ValueError, match='encoder=Flatten does not record how it was made'): untrained(nn.Flatten())

# Health

def projections():
    g = torch.Generator().manual_seed(0)
    z = torch.randn(2000, 128, generator=g)
    return {'gaussian': z, 'half collapsed': z+8*z[:1]/z[0].norm()*2**.5, 'four directions': z[:,:4]@torch.randn(4, 128, generator=g),
            'pixels': PIXELS, 'two': PIXELS[:2]}

@pytest.mark.parametrize('name', projections())
def test_health_is_what_the_definitions_say(name):
    "Written in numpy, in double precision"
    v = projections()[name]
    u = v.double().numpy()
    w = u/np.linalg.norm(u, axis=1, keepdims=True)
    close(spread(v), w.std(0, ddof=1).mean()*np.sqrt(w.shape[1]), eps=1e-4)
    cosines = (w@w.T)[~np.eye(len(w), dtype=bool)]
    close(mean_cosine(v), cosines.mean())
    s = np.linalg.svd(u-u.mean(0), compute_uv=False)
    p = s[s>s[0]*1e-6]/s[s>s[0]*1e-6].sum()
    close(effective_rank(v), np.exp(-(p*np.log(p)).sum()), eps=1e-2)

def test_health_of_what_is_spread_out_collapsed_a_line_and_a_simplex():
    z,const = projections()['gaussian'],torch.full((2000,128), .1)
    close(spread(z), 1, eps=.02)
    close(mean_cosine(z), 0, eps=.005)
    close(spread(const), 0)
    close(mean_cosine(const), 1)
    assert effective_rank(const)==0 and effective_rank(const/0*0).isnan()
    assert 1<=effective_rank(torch.arange(9.)[:,None]*torch.ones(5))<1.001
    close(effective_rank(torch.eye(64)), 63, eps=1e-2)   # every direction but one

@pytest.mark.parametrize('f', [spread, mean_cosine, effective_rank])
def test_health_of_half_precision_and_without_a_graph(f):
    z = projections()['gaussian']
    close(f(z.half().requires_grad_()), f(z), eps=.1)
    assert not f(z.clone().requires_grad_()).requires_grad
