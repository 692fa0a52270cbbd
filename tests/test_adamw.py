"AdamW in one kernel: the formula of the paper, whatever the order of weights, gradients and states in memory"
from functools import partial

import pytest, torch
from fastai.vision.all import Learner, OptimWrapper, params
from torch import nn

from self_supervised.adamw import FusedAdamW
from self_supervised.core import laid_out_like, same_layout, seed_everything
from self_supervised.data.demo import digits
from self_supervised.recipes import opt_funcs
from test_hazards import make, quiet

LAST = torch.channels_last
HYPERS = dict(lr=.1, weight_decay=.1, betas=(.9,.99), eps=1e-8)

def by_hand(p, grads, lr, weight_decay, betas, eps):
    "AdamW (arXiv:1711.05101, algorithm 2), in float64"
    p = p.double()
    m,v = torch.zeros_like(p),torch.zeros_like(p)
    for t,g in enumerate(grads, 1):
        p = p*(1-lr*weight_decay)
        m = betas[0]*m + (1-betas[0])*g.double()
        v = betas[1]*v + (1-betas[1])*g.double()**2
        p = p - lr*(m/(1-betas[0]**t))/((v/(1-betas[1]**t)).sqrt()+eps)
    return p

def tensors(shape=(4,3,2,2), n=3):
    torch.manual_seed(0)
    p,*grads = torch.randn(n+1, *shape)
    return p,grads

def put(t, form): return t.clone(memory_format=LAST) if form=='last' else t.clone(memory_format=torch.contiguous_format) if form=='first' else t.transpose(0, 1).contiguous().transpose(0, 1)

def steps(opt_class, p, grads, form, grad_form, **kwargs):
    p = nn.Parameter(put(p, form))
    opt = opt_class([p], **HYPERS, **kwargs)
    for g in grads: p.grad = put(g, grad_form); opt.step()
    return p.detach()

@pytest.mark.parametrize('grad_form', ['first','last','turned'])
@pytest.mark.parametrize('form', ['first','last','turned'])
def test_the_formula_in_any_order(form, grad_form):
    p,grads = tensors()
    assert torch.allclose(steps(FusedAdamW, p, grads, form, grad_form).double(), by_hand(p, grads, **HYPERS), atol=1e-6)

def test_torchs_own_fused_kernel_is_silently_wrong():
    "The reason for all this. Where torch has learned to look, this test says so and `FusedAdamW` can go"
    p,grads = tensors()
    off = (steps(torch.optim.AdamW, p, grads, 'last', 'first', fused=True)-by_hand(p, grads, **HYPERS)).abs().max()
    if off<1e-6: pytest.skip(f'torch {torch.__version__} looks at strides')
    assert off>.1

def test_orders_that_are_the_same():
    "1×1 kernels have other strides channels-last, and the same order"
    x = torch.randn(5,4,1,1)
    assert x.stride()!=x.to(memory_format=LAST).stride() and same_layout(x, x.to(memory_format=LAST))
    y = torch.randn(5,4,2,2)
    assert not same_layout(y, y.to(memory_format=LAST)) and laid_out_like(y, y) is y
    assert torch.equal(laid_out_like(y.to(memory_format=LAST), y), y)

def test_weights_with_gaps_in_memory():
    p,grads = tensors((4,3))
    wide = nn.Parameter(torch.stack([p, p+9], -1)[...,0])      # every other number
    opt = FusedAdamW([wide], **HYPERS)
    for g in grads: wide.grad = g; opt.step()
    assert torch.allclose(wide.double(), by_hand(p, grads, **HYPERS), atol=1e-6)
    assert opt.param_groups[0]['fused'] is False

def test_a_state_of_torchs_goes_on_fused():
    "Also one whose averages lie in another order, and whose count of steps lies elsewhere"
    p,grads = tensors()
    a = nn.Parameter(p.clone())
    old = torch.optim.AdamW([a], **HYPERS)
    for g in grads[:2]: a.grad = g.clone(); old.step()
    b = nn.Parameter(a.detach().clone(memory_format=LAST))
    new = FusedAdamW([b], lr=9.)
    new.load_state_dict(old.state_dict())
    b.grad = grads[2].clone(memory_format=LAST); new.step()
    assert torch.allclose(b.double(), by_hand(p, grads, **HYPERS), atol=1e-6) and new.param_groups[0]['fused'] is True

def test_a_closure_computes_the_gradient_of_this_step():
    p,grads = tensors((4,3), 1)
    q = nn.Parameter(p.clone())
    opt = FusedAdamW([q], **HYPERS)
    def closure():
        opt.zero_grad(); loss = (q*grads[0]).sum(); loss.backward()
        return loss
    assert opt.step(closure).item()==pytest.approx((p*grads[0]).sum().item(), rel=1e-5)
    assert torch.allclose(q.double(), by_hand(p, grads, **HYPERS), atol=1e-6)

def test_groups_freezing_and_hypers_as_fastai_knows_them():
    net = nn.Sequential(nn.Linear(2,3), nn.Linear(3,1))
    opt = partial(OptimWrapper, opt=FusedAdamW)([params(net[0]), params(net[1])], lr=.1)
    opt.set_hyper('lr', slice(.1, 1.)); opt.set_hyper('wd', .5)
    assert [h['lr'] for h in opt.hypers]==pytest.approx([.1,1.]) and [h['wd'] for h in opt.hypers]==[.5,.5]
    opt.freeze_to(1)
    was = [p.detach().clone() for p in net.parameters()]
    net(torch.randn(4,2)).sum().backward(); opt.step()
    assert [torch.equal(a, b) for a,b in zip(was, net.parameters())]==[True,True,False,False]

def test_a_recipe_trains_fused_and_as_torchs_does(tmp_path):
    "`fit_byol(…, 'adamw')`; a learner that was saved with torch's AdamW goes on"
    def run(opt_func=None):
        learn = make(m=.9, path=tmp_path)
        seed_everything(0, learn.dls)
        quiet(learn.fit_byol, 2, 'adamw', lr=1e-3, opt_func=opt_func)
        return learn
    x = digits()[0][:16]
    def outputs(learn): return torch.cat(learn.model.eval()(x, x))   # biases before a batchnorm go anywhere
    a,b = run(partial(OptimWrapper, opt=torch.optim.AdamW)),run()
    assert b.opt.opt.param_groups[0]['fused'] is True and isinstance(b.opt.opt, FusedAdamW)
    assert torch.allclose(outputs(a), outputs(b), atol=1e-3)
    a.save('old')
    c = make(m=.9, path=tmp_path, opt_func=opt_funcs['adamw'])
    c.load('old')
    for o in (a,c):
        seed_everything(0, o.dls)
        quiet(o.fit, 1, 1e-3)
    assert torch.allclose(outputs(a), outputs(c), atol=1e-3)
