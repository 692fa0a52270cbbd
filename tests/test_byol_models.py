"Models of BYOL and SimSiam: features and projections of an encoder that keeps its map, and a target that is the online network"
import io, warnings
from contextlib import redirect_stdout

import pytest, torch
from torch import nn

from self_supervised import fit # noqa: F401  (brings `Learner.fit_byol`)
from self_supervised.data.arrays import tensor_dls
from self_supervised.data.demo import digits
from self_supervised.ema import ema_update
from self_supervised.lars import LARS
from self_supervised.layers import create_encoder, create_mlp_module
from self_supervised.vision.byol import BYOLModel, byol_learner, byol_loss, create_byol_model, create_simsiam_model, embeddings

def tiny(**kwargs): return create_encoder('tiny_resnet', pretrained=False, n_in=1, **kwargs)

class Two(nn.Module):
    def forward(self, x): return [x,x]

class Lists(nn.Module):
    def __init__(self):
        super().__init__()
        self.a,self.b = nn.Conv2d(3,4,3),Two()
    def forward(self, x): return self.b(self.a(x))[0]

def test_embeddings_of_maps():
    "The projection is the head's, the features are the map's mean"
    dense = BYOLModel(tiny(pool_type=False), create_mlp_module(128, 16, 8, bn=True, pool=True), create_mlp_module(8, 16, 8, bn=True))
    b = torch.rand(5,1,8,8)
    z,f,_ = embeddings(dense, b)
    dense.eval()
    with torch.no_grad():
        torch.testing.assert_close(z, dense.project(b)[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(f, dense(b).mean((2,3)), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r'len\(views\)=1 must be 2 or more'): dense.loss(b)

@pytest.mark.parametrize('make,words', [
    (lambda: create_simsiam_model('resnet18'), 'is no nn.Module'),
    (lambda: create_byol_model('resnet18'), r"encoder='resnet18' is no nn.Module. Pass create_encoder\('resnet18'\)"),
    (lambda: create_byol_model(tiny(), predictor_size=0), '1 or more'),
    (lambda: create_byol_model(create_encoder(Lists(), layer='b')), 'a list, which cannot be flattened')])
def test_what_no_model_can_be_made_of(make, words):
    with pytest.raises((ValueError,TypeError), match=words): make()

def test_simsiam_passes_each_view_once_and_stops_gradients():
    "Loss, gradients and projections equal the formula of arXiv:2011.10566, written out"
    torch.manual_seed(0)
    net = create_simsiam_model(tiny(), 128, 128, 32).train()
    passes,(v1,v2) = [],(torch.rand(8,1,8,8),torch.rand(8,1,8,8))
    hook = net.encoder.register_forward_hook(lambda *_: passes.append(1))
    loss = net.loss(v1, v2)
    hook.remove()
    assert len(passes)==2 and net.passed==() and net.target is None and not any(k.startswith('target') for k in net.state_dict())
    with torch.no_grad():
        z1,z2 = net.online(v1),net.online(v2)
        torch.testing.assert_close(net.project(v1)[0], z1, atol=1e-5, rtol=0)      # asked alone it looks for itself
    torch.testing.assert_close(loss, byol_loss((net.predictor(z1),net.predictor(z2)), z2, z1), atol=1e-4, rtol=0)
    weight = net.projector[0].weight
    grads, = torch.autograd.grad(net.loss(v1, v2), weight)
    through, = torch.autograd.grad(byol_loss(net(v1, v2), net.online(v2), net.online(v1)), weight)
    assert not torch.allclose(grads, through, atol=1e-6)

def test_a_plain_loop_trains():
    "One object holds all, with every default; the loss falls and the target follows"
    torch.manual_seed(0)
    net = create_byol_model(tiny()).train()
    views = torch.rand(16,1,8,8),torch.rand(16,1,8,8)
    opt = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=.05)
    was,losses = next(net.target.parameters()).clone(),[]
    for _ in range(10):
        losses.append(loss := net.loss(*views))
        loss.backward()
        opt.step()
        opt.zero_grad()
        ema_update(net.target, net.online, .9)
    assert losses[-1]<losses[0] and not torch.equal(was, next(net.target.parameters()))

def test_a_rate_of_300_leaves_nothing_that_is_not_finite():
    torch.manual_seed(0)
    learn = byol_learner(tensor_dls(digits()[0][:64], bs=16, seed=0), create_byol_model(tiny(), 16, 8), [lambda x: x*.9, lambda x: x.flip(-1)], opt_func=LARS, lr=300.)
    with warnings.catch_warnings(), learn.no_bar(), learn.no_logging(), redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        try: learn.fit(4)
        except ValueError as e: assert 'in a row' in str(e)   # the guard ends a fit that has diverged for good
    assert all(v.isfinite().all() for v in learn.model.state_dict().values())

def test_a_loader_of_torch_alone_is_enough():
    dl = torch.utils.data.DataLoader([(o,) for o in digits()[0][:32]], batch_size=16)
    learn = byol_learner(dl, create_byol_model(tiny(), 16, 8), [lambda x: x*.9]*2)
    was = next(learn.model.encoder.parameters()).clone()
    with warnings.catch_warnings(), learn.no_bar(), learn.no_logging(), redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        learn.fit_byol(1)
    assert not torch.equal(was, next(learn.model.encoder.parameters()))

def test_the_printed_choice_tells_which_settings_are_yours(capsys):
    learn = byol_learner(tensor_dls(digits()[0][:64], bs=16, seed=0), create_byol_model(tiny(), 16, 8), [lambda x: x*.9]*2)
    def printed(**settings):
        with warnings.catch_warnings(), learn.no_bar(), learn.no_logging():
            warnings.simplefilter('ignore')
            learn.fit_byol(1, 'adamw', **settings)
        return capsys.readouterr().out
    assert 'batch 16; from digits' in printed()
    assert 'batch 16; lr as passed, the rest from digits' in printed(lr=.001)
    assert 'batch 16; lr, m as passed, the rest from digits' in printed(lr=.001, m=.99)
    assert printed(lr=.001, m=.99, wd=.1).strip().endswith('batch 16')

def test_a_small_batch_is_named_with_the_options_of_the_command():
    learn = byol_learner(tensor_dls(digits()[0][:64], bs=16, seed=0), create_byol_model(tiny(), 16, 8), [lambda x: x]*2)
    with pytest.warns(UserWarning, match='--bs 128.*--norm group'), learn.no_bar(), learn.no_logging(): learn.fit_byol(1)
