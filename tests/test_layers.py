"What the page of layers only shows in part: small stems of every kind of ResNet, and what is said where there is none"
import pytest, torch, torchvision
from torch import nn

from self_supervised.layers import create_encoder, num_features
from self_supervised.surgery import shrink_stem

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
