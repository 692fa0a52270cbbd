"What the page of layers only shows in part: small stems of every kind of ResNet, and what is said where there is none"
from copy import deepcopy
from functools import partial

import pytest, timm, torch, torchvision
from torch import nn
from torch.optim.swa_utils import AveragedModel

from self_supervised.layers import ClipEncoder, FlatEncoder, LayerEncoder, PoolFlat, create_encoder, input_channels, num_features
from self_supervised.surgery import shrink_stem
from self_supervised.vision.byol import create_byol_model

def first_conv(net): return next(m for m in net.modules() if isinstance(m, nn.Conv2d))

def small_stem(kind):
    "A ResNet-18 with a small stem, made in one of three ways: by name for a number of channels, of a network, up to a layer"
    if isinstance(kind, int): return create_encoder('resnet18', pretrained=False, n_in=kind, pool_type='avg', small_stem=True)
    resnet = torchvision.models.resnet18()
    if kind=='layer': return create_encoder(resnet, layer='avgpool', small_stem=True)
    resnet.fc = nn.Identity()
    return shrink_stem(resnet)

@pytest.mark.parametrize('kind', [3, 1, 5, 'network', 'layer'])
def test_a_small_stem_keeps_the_resolution(kind):
    net = small_stem(kind)
    n_in = kind if isinstance(kind, int) else 3
    # torchvision's 11,689,512 less the classifier and the difference of the first filters
    n = sum(p.numel() for k,p in net.named_parameters() if not k.startswith('net.fc'))
    assert n==11_168_832 + 64*9*(n_in-3)
    conv = first_conv(net)
    assert (conv.kernel_size, conv.stride, conv.padding)==((3,3),(1,1),(1,1))
    assert not any(isinstance(m, nn.MaxPool2d) for m in net.modules())

    # every pixel of the picture counts, and the first filters learn
    x = torch.rand(2,n_in,32,32, requires_grad=True)
    out = net(x)
    assert out.shape==(2,512)
    out.sum().backward()
    assert conv.weight.grad.abs().sum()>0 and (x.grad.abs().flatten(1).sum(1)>0).all()

    # stages at strides 1, 2, 4, 8 of the picture
    sides = []
    def note(m, inputs, out): sides.append(out.shape[-1])
    for k,m in net.named_modules():
        if k.split('.')[-1] in ('layer1','layer2','layer3','layer4'): m.register_forward_hook(note)
    net.eval()(x)
    assert sides==[32,16,8,4]

@pytest.mark.parametrize('arch', ['convnext_atto', 'vgg11', 'mobilenetv3_small_050', 'regnety_002'])
def test_networks_without_such_a_stem_are_refused(arch):
    with pytest.raises(ValueError) as e: create_encoder(arch, pretrained=False, small_stem=True)
    text = str(e.value)
    assert '\n' not in text and text.startswith('small_stem=True does not suit ')
    assert text.endswith('Choose a resnet or xresnet, or pass small_stem=False.')

def test_tiny_convnet_keeps_an_eighth_of_the_side_and_counts_its_features():
    from self_supervised.layers import tiny_convnet
    assert tiny_convnet(3, pool_type=False)(torch.rand(2,3,32,32)).shape==(2,256,4,4)
    for pool,nf in (('avg',256), ('catavgmax',512)):
        net = create_encoder('tiny_convnet', False, 1, pool)
        assert net(torch.rand(2,1,40,24)).shape==(2,nf) and num_features(net)==nf
    with pytest.raises(ValueError, match='widths'): tiny_convnet(widths=())

# Networks with extra heads in training mode

def heads(name, size):
    torch.manual_seed(0)
    return getattr(torchvision.models, name)(weights=None, init_weights=False).eval(),torch.rand(2, 3, size, size)

@pytest.mark.parametrize('name,size', [('googlenet',64), ('inception_v3',299)])
def test_extra_heads_of_training_mode_are_left_out(name, size):
    "The main output alone in both modes, of the network itself; its batchnorms saw nothing meanwhile"
    net,x = heads(name, size)
    state,rng = deepcopy(net.state_dict()),torch.get_rng_state()
    e = create_encoder(net)
    assert all(torch.equal(v, state[k]) for k,v in net.state_dict().items()) and not net.training and torch.equal(rng, torch.get_rng_state())
    assert num_features(e)==1000 and torch.equal(e(x), net(x))
    twin = deepcopy(net).train()
    torch.manual_seed(1)
    want = twin(x).logits
    torch.manual_seed(1)
    assert torch.equal(e.train()(x), want)
    model = create_byol_model(e, 8, 4, size=size)
    model.train().loss(x, x).backward()
    assert net.fc.weight.grad.abs().sum()>0
    with pytest.raises(ValueError, match='in training mode, and the projector takes vectors \\(bs,nf\\). Pass create_encoder\\(net\\)'): create_byol_model(net, 8, 4, size=size)

class Deep(nn.Module):
    "Deep supervision: a plain tuple in training mode, of which none is named"
    def __init__(self):
        super().__init__()
        self.body,self.extra = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),nn.Linear(8, 5)
    def forward(self, x):
        f = self.body(x)
        return (f,self.extra(f)) if self.training else f

def test_heads_without_a_name_are_refused_before_training():
    e = create_encoder(Deep())
    assert num_features(e)==8
    with pytest.raises(ValueError, match='Deep returns a tuple in training mode, and .* Choose a layer') as err: create_byol_model(e, 8, 4)
    assert '\n' not in str(err.value)
    create_byol_model(create_encoder(Deep(), layer='body'), 8, 4).train().loss(*torch.rand(2, 2, 3, 8, 8)).backward()

# Names of timm whose patches are made by several convolutions

@pytest.mark.parametrize('pool_type', ['avg',None])
def test_xcit_by_name(pool_type):
    torch.manual_seed(0)
    e = create_encoder('xcit_nano_12_p16_224', pretrained=False, pool_type=pool_type, depth=1).eval()
    net = timm.create_model('xcit_nano_12_p16_224', depth=1, num_classes=0).eval()
    net.load_state_dict(e.state_dict())
    x = torch.rand(2, 3, 224, 224)
    tokens = net.forward_features(x)
    assert num_features(e)==128==tokens.shape[2] and tokens.shape[1]==1+14*14
    torch.testing.assert_close(e(x), tokens[:,1:].mean(1) if pool_type else tokens[:,0])

# Wrappers of torch

def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3)).eval()

never = partial(torch.compile, backend=lambda graph, inputs: pytest.fail('compiled'))
eager = partial(torch.compile, backend='eager')

@pytest.mark.parametrize('wrap', [nn.DataParallel, AveragedModel, eager, lambda o: nn.DataParallel(eager(o))])
def test_a_wrapper_is_looked_through(wrap):
    "Maps are pooled, layers found, widths read, as without it; the wrapper itself goes on computing"
    x = torch.rand(2, 3, 16, 16)
    want = small()(x).mean((2,3))
    e = create_encoder(wrap(small()), pool_type='avg')
    assert isinstance(e, FlatEncoder) and num_features(e)==6
    torch.testing.assert_close(e(x), want)
    assert num_features(wrap(small()))==6 and input_channels(wrap(small()))==3
    for layer in ('0',0): torch.testing.assert_close(create_encoder(wrap(small()), layer=layer, pool_type='avg')(x), small()[0](x).mean((2,3)))
    torch.testing.assert_close(LayerEncoder(wrap(small()), '0', 'avg')(x), small()[0](x).mean((2,3)))
    vectors = wrap(create_encoder(small(), pool_type='avg'))
    assert create_encoder(vectors) is vectors and num_features(vectors)==6 and num_features(ClipEncoder(vectors))==6
    create_byol_model(vectors, 8, 4).train().loss(x, x).backward()
    with pytest.raises(ValueError, match='returns \\(1, 6, .*Pass create_encoder'): create_byol_model(wrap(small()), 8, 4)
    with pytest.raises(ValueError, match="layer='9' is not in Sequential"): create_encoder(wrap(small()), layer='9')

def test_a_compiled_network_is_not_compiled_to_look_at_it():
    assert num_features(never(small()))==6
    assert isinstance(create_encoder(never(small())), FlatEncoder) and num_features(nn.Sequential(never(small()), PoolFlat()))==6

# Networks that are not whole yet, and recurrent ones

@pytest.mark.parametrize('use', [create_encoder, num_features, input_channels, FlatEncoder, partial(create_encoder, layer=0), ClipEncoder, lambda o: create_byol_model(o, 8, 4)])
def test_a_lazy_layer_is_refused_and_left_alone(use):
    net = nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d())
    with pytest.raises(ValueError, match='LazyConv2d') as err: num_features(use(net))
    assert '\n' not in str(err.value) and 'net(torch.rand(2,3,64,64))' in str(err.value)
    net(torch.rand(2, 3, 16, 16))
    assert net[0].in_channels==3 and num_features(create_encoder(net, pool_type='avg'))==8

class Rows(nn.Module):
    "A recurrent network over the rows of a picture, or of its map"
    def __init__(self, kind=nn.GRU, conv=False, first=True, n_in=3):
        super().__init__()
        self.conv = nn.Conv2d(n_in, 8, 8, 8) if conv else nn.Identity()
        self.rows = kind(64 if conv else n_in*64, 64, batch_first=True)
        self.first = first
    def forward(self, x):
        out = self.rows(self.conv(x).permute(0,2,1,3).flatten(2))
        return out[0] if self.first else out

def test_a_recurrent_network_is_pooled_over_its_rows():
    "Its width is the last axis, also where the number of rows is that of the channels before"
    for kind,conv in ((nn.GRU,True), (nn.LSTM,True), (nn.GRU,False), (partial(nn.GRU, bidirectional=True),True)):
        net = Rows(kind, conv).eval()
        x = torch.rand(2, 3, 64, 64)
        e = create_encoder(net, pool_type='avg')
        torch.testing.assert_close(e(x), net(x).mean(1))
        assert num_features(e, n_in=3)==net(x).shape[2]

@pytest.mark.parametrize('net,n_in', [(Rows(nn.LSTM, first=False),3), (Rows(nn.LSTM, True, False),3), (nn.LSTM(5, 16, batch_first=True),5), (Rows(first=False, n_in=2),2)])
def test_a_recurrent_network_with_its_state_is_refused(net, n_in):
    with pytest.raises(TypeError, match='returns a tuple, which cannot be flattened .*: it holds [23] tensors. Choose a layer') as err: create_encoder(net, n_in=n_in)
    assert '\n' not in str(err.value)
