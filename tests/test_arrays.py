"Arrays as batches (data.arrays): dtypes, devices, labels or none, drawing, and loaders made anew"
import warnings

import matplotlib.pyplot as plt
import pytest
import torch
from fastai.callback.progress import no_bar   # noqa: F401, gives `Learner` its `no_bar`
from fastai.learner import Learner, load_learner
from fasttransform import Transform
from torch import nn

from self_supervised.data.arrays import TensorDL, tensor_dls
from self_supervised.data.demo import digits

@pytest.fixture(scope='module')
def data(): return digits()

@pytest.fixture(scope='module')
def uint8(data): return (data[0]*255).byte()

@pytest.mark.parametrize('form', [list, torch.Tensor.clone, torch.Tensor.numpy], ids=['list','tensor','array'])
def test_new_pictures_may_come_as_a_list_a_tensor_or_an_array(form):
    x = torch.rand(12,3,8,8)
    dls = tensor_dls(x, torch.arange(12)%3, bs=4, device='cpu')
    new = torch.rand(7,3,8,8)
    got = [b for b in dls.test_dl(form(new))]
    assert [len(b) for b in got]==[1,1] and torch.equal(torch.cat([x for x, in got]), new)

@pytest.mark.parametrize('splits', [None, (range(60), range(60,100))])
@pytest.mark.filterwarnings('ignore:load_learner')
def test_a_learner_with_or_without_a_validation_part_is_exported(data, splits, tmp_path):
    learn = Learner(tensor_dls(data[0][:100], data[1][:100], splits, bs=32), small_net())
    learn.export(tmp_path/'learner.pkl')
    again = load_learner(tmp_path/'learner.pkl')
    with again.no_bar(): probs = again.predict(data[0][0])[-1]
    assert torch.allclose(probs, learn.model.cpu()(data[0][:1]).softmax(1)[0], atol=1e-6)

@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_a_batch_goes_to_its_device_as_it_is_stored(uint8, device, monkeypatch):
    "Of uint8 a quarter of the bytes"
    from self_supervised.data import arrays
    sent = []
    def noted(t, where):
        sent.append((t.dtype, str(where)))
        return real(t, where)
    real = arrays.sent
    monkeypatch.setattr(arrays, 'sent', noted)
    x,y = arrays.TensorData(uint8, torch.arange(len(uint8))).take([0,1], device)
    assert (torch.uint8,device) in sent and x.dtype==torch.float32 and {x.device.type,y.device.type}=={device}

def small_net(): return nn.Sequential(nn.Flatten(), nn.Linear(64,2))

def test_uint8_leaves_as_floats_in_0_1(uint8):
    a,b = (next(iter(tensor_dls(o, bs=64, seed=0).train))[0] for o in (uint8, uint8.float()/255))
    torch.testing.assert_close(a, b)
    assert tensor_dls(uint8.numpy()).one_batch()[0].dtype==torch.float32

def test_nothing_is_copied(data, uint8):
    dls = tensor_dls(uint8, data[1], bs=64, seed=0, device='cpu')
    assert dls.train_ds.x is dls.valid_ds.x and dls.train_ds.x.data_ptr()==uint8.data_ptr()
    assert (dls.train.n, len(dls.train), dls.n_inp, dls.bs, str(dls.device))==(1797, 1797//64, 1, 64, 'cpu')
    new = dls.train.new(bs=1000, shuffle=False, drop_last=False)
    assert [len(b[0]) for b in new]==[1000,797]

def test_batches_are_made_where_the_pictures_are(uint8):
    assert str(tensor_dls(uint8.to('meta'), bs=64).device)=='meta'

def test_drawing_leaves_the_order_alone(data, uint8):
    "And knows grey, colour and more channels"
    dls = tensor_dls(uint8, data[1], bs=64, seed=0, device='cpu')
    for c in (1,2,3,5): tensor_dls(uint8.repeat(1,c,1,1), data[1], bs=64).show_batch(max_n=2)
    state = dls.train.rng.getstate()
    dls.show_batch(dls.one_batch(), max_n=4)
    dls.train.rng.setstate(state)
    dls.show_batch()
    plt.close('all')
    assert dls.train.rng.getstate()==state

def test_without_labels(data):
    "A batch is (x,) and a Learner can be built; an error says what is missing once a loss is computed"
    dls = tensor_dls(data[0], bs=64)
    assert len(dls.one_batch())==1 and dls.n_inp==1
    with pytest.raises(ValueError, match='the data has no labels'): Learner(dls, small_net()).loss_func(data[0])

def test_nothing_to_validate_on_is_no_error(data):
    learn = Learner(tensor_dls(data[0], bs=64), small_net(), loss_func=lambda p: p.square().mean())
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert learn.train_iter==28

def test_as_fastai_makes_new_loaders_of_it(data):
    x,y,splits = data
    new = tensor_dls(x, y, splits, bs=64).train.new(shuffle=False, drop_last=False)
    assert torch.equal(torch.cat([b[1] for b in new]), y[splits[0]])

class _OneByOne(TensorDL):
    def create_item(self, i): return tuple(2+o for o in super().create_item(i))

@pytest.mark.parametrize('change', [
    lambda dl: dl.new(after_item=Transform(lambda o: 2+o)), lambda dl: dl.new(before_batch=lambda b: [tuple(2+o for o in i) for i in b]),
    lambda dl: dl.new(cls=_OneByOne), lambda dl: dl.new(create_batch=lambda b: (2+torch.stack([o[0] for o in b]),))], ids=range(4))
def test_a_transform_of_single_items_and_a_method_of_yours_are_not_passed_over(change):
    dl = change(tensor_dls(torch.rand(16,1,4,4), torch.arange(16), bs=4).train)
    assert all(b[0].shape==(4,1,4,4) and b[0].min()>=2 for b in dl)

def test_items_in_both_parts_are_named():
    "They were validated on without a word"
    x = torch.rand(12, 3)
    with pytest.warns(UserWarning, match='3 items of 5 to validate on are trained on, too'): dls = tensor_dls(x, splits=(range(10), [7,8,-3,10,11]), bs=2)
    assert len(dls.train_ds)==10 and len(dls.valid_ds)==5
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for splits in ([0,0,1,1],[2,3]), (range(12),[]), None: tensor_dls(x, splits=splits, bs=2)
