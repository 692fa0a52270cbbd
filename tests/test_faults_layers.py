"Features come from the right axis, views keep the range of their data, and names and habits of other libraries work"
import warnings
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import SimpleNamespace

import pytest
import timm
import torch
import torchvision
from torch import nn
from fastai.vision.models import xresnet

from self_supervised.augmentations import BicubicCrop, get_batch_augs, get_kornia_batch_augs, get_multi_aug_pipelines
from self_supervised.core import seed_everything
from self_supervised.ema import ema_update
from self_supervised.layers import (
    ClipEncoder, FlatEncoder, LayerEncoder, Unflattenable, create_encoder, create_fastai_encoder, create_mlp_encoder,
    create_mlp_module, create_timm_encoder, num_features, tiny_resnet)
from self_supervised.vision.byol import (
    BYOLModel, byol_learner, byol_loss, create_byol_model, create_simsiam_model, get_byol_aug_pipelines)

pytestmark = pytest.mark.filterwarnings('ignore')

# Pooling: the independent computation

def pixels(raw, layout, prefix=0):
    "(bs,n,c) of what a network returned, written out for each layout"
    if layout=='map': return torch.stack([o.reshape(len(o), -1).T for o in raw])
    if layout=='tokens': return raw[:, prefix:]
    return raw.reshape(len(raw), -1, raw.shape[-1])

def pooled(raw, layout, prefix, pool):
    p = pixels(raw, layout, prefix)
    mean,most = p.sum(1)/p.shape[1],p.max(1).values
    return dict(avg=mean, fast=mean, max=most, avgmax=(mean+most)/2, catavgmax=torch.cat([mean,most], 1))[pool]

def raw_of(net, layer, x):
    "What `layer` returns for `x`, by a hook of its own"
    found = []
    hook = net.get_submodule(layer).register_forward_hook(lambda m,i,o: found.append(o))
    with torch.no_grad(): net(x)
    hook.remove()
    return found[0]

# name, options, side, layer, layout, tokens in front, width
short = dict(depth=2)
stages = dict(depths=(1,1,1,1))
by_layer = [
    ('test_vit', dict(img_size=32), 32, 'norm', 'tokens', 1, 64),
    ('vit_tiny_patch16_224', dict(img_size=64), 64, 'norm', 'tokens', 1, 192),
    ('vit_tiny_patch16_224', short | dict(img_size=48), 48, 'patch_embed', 'tokens', 0, 192),
    ('vit_tiny_patch16_224', short | dict(img_size=(32,64)), (32,64), 'blocks.1.mlp', 'tokens', 1, 192),
    ('deit_tiny_distilled_patch16_224', short | dict(img_size=48), 48, 'norm', 'tokens', 2, 192),
    ('deit3_small_patch16_224', short | dict(img_size=48), 48, 'blocks.0', 'tokens', 1, 384),
    ('vit_small_patch14_reg4_dinov2', short | dict(img_size=56), 56, 'norm', 'tokens', 5, 384),
    ('eva02_tiny_patch14_224', short | dict(img_size=56), 56, 'blocks.1', 'tokens', 1, 192),
    ('xcit_nano_12_p16_224', short, 64, 'blocks.1', 'tokens', 0, 128),
    ('xcit_nano_12_p16_224', short, 64, 'norm', 'tokens', 1, 128),
    ('cait_xxs24_224', short | dict(img_size=64), 64, 'blocks.1', 'tokens', 0, 192),
    ('cait_xxs24_224', short | dict(img_size=64), 64, 'norm', 'tokens', 1, 192),
    ('convit_tiny', short | dict(img_size=64), 64, 'norm', 'tokens', 0, 192),
    ('tnt_s_patch16_224', short, 224, 'norm', 'tokens', 1, 384),
    ('levit_128s', dict(img_size=64), 64, 'stages.0', 'tokens', 0, 128),
    ('hiera_tiny_224', dict(stages=(1,1,1,1)), 224, 'blocks.2', 'tokens', 0, 384),
    ('mixer_s32_224', dict(img_size=64), 64, 'norm', 'tokens', 0, 512),
    ('twins_svt_small', stages | dict(img_size=64), 64, 'norm', 'tokens', 0, 512),
    ('pvt_v2_b0', {}, 64, 'stages.2.norm', 'tokens', 0, 160),
    ('pvt_v2_b0', {}, 64, 'stages.2', 'map', 0, 160),
    ('swin_tiny_patch4_window7_224', stages | dict(img_size=64), 64, 'layers.2', 'channels_last', 0, 384),
    ('swin_tiny_patch4_window7_224', stages | dict(img_size=64), 64, 'norm', 'channels_last', 0, 768),
    ('swin_tiny_patch4_window7_224', stages | dict(img_size=64), 64, 'patch_embed.proj', 'map', 0, 96),
    ('swinv2_cr_tiny_ns_224', stages | dict(img_size=64, window_size=2), 64, 'stages.2', 'map', 0, 384),
    ('nest_tiny', dict(img_size=64), 64, 'norm', 'channels_last', 0, 384),
    ('sequencer2d_s', dict(img_size=64, layers=(1,1,1,1)), 64, 'norm', 'channels_last', 0, 384),
    ('mambaout_femto', stages, 64, 'stages.1', 'channels_last', 0, 96),
    ('poolformer_s12', {}, 64, 'stages.1', 'map', 0, 128),
    ('test_convnext', {}, 64, 'stages.1', 'map', 0, 32),
    ('convnextv2_atto', stages, 64, 'stages.1.blocks.0.mlp', 'map', 0, 80),
    ('mobilevit_xxs', {}, 64, 'stages.3', 'map', 0, 64),
    ('edgenext_xx_small', {}, 64, 'stages.2', 'map', 0, 88),
    ('davit_tiny', stages, 64, 'stages.2', 'map', 0, 384),
    ('efficientvit_b0', {}, 64, 'stages.2', 'map', 0, 64),
    ('ghostnet_050', {}, 64, 'blocks.3', 'map', 0, 20),
    ('regnetx_002', {}, 64, 's2', 'map', 0, 56),
    ('test_resnet', {}, 64, 'layer2', 'map', 0, None)]

vision = torchvision.models
def tv_vit(): return vision.VisionTransformer(32, 16, 2, 2, 64, 64)
def tv_swin(): return vision.SwinTransformer([4,4], 24, [1,1], [2,2], [4,4])
def tv_convnext():
    return vision.ConvNeXt([vision.convnext.CNBlockConfig(16, 32, 1), vision.convnext.CNBlockConfig(32, None, 1)])

own = [
    (tv_vit, 32, 'encoder.ln', 'tokens', 1, 64),
    (tv_vit, 32, 'encoder.layers.encoder_layer_0', 'tokens', 1, 64),
    (tv_swin, 64, 'features.1', 'channels_last', 0, 24),
    (tv_swin, 64, 'norm', 'channels_last', 0, 48),
    (tv_swin, 64, 'permute', 'map', 0, 48),
    (tv_convnext, 64, 'features.1', 'map', 0, 16),
    (tv_convnext, 64, 'features.1.0.block.4', 'channels_last', 0, 64),
    (vision.squeezenet1_1, 64, 'features', 'map', 0, 512),
    (vision.shufflenet_v2_x0_5, 64, 'stage3', 'map', 0, 96),
    (vision.alexnet, 64, 'avgpool', 'map', 0, 256),
    (partial(vision.vgg11, num_classes=2), 32, 'avgpool', 'map', 0, 512),
    (xresnet.xresnet18, 64, '6', 'map', 0, 256)]

def check_layer(make, side, layer, layout, prefix, nf):
    seed_everything(0)
    net = make().eval()
    x = torch.rand(2, 3, *([side]*2 if isinstance(side, int) else side))
    raw = raw_of(net, layer, x)
    for pool in ('avg', 'max', 'avgmax', 'catavgmax'):
        enc = create_encoder(net, layer=layer, pool_type=pool, size=side)
        want = pooled(raw, layout, prefix, pool)
        with torch.no_grad(): got = enc(x)
        assert nf is None or want.shape[1]==nf*(1+(pool=='catavgmax'))
        assert got.shape==want.shape and num_features(enc, size=side)==want.shape[1]
        assert torch.allclose(got, want, atol=1e-5)
        if pool=='avg': assert (enc.layout,enc.prefix_tokens)==(layout,prefix)
    with torch.no_grad(): assert torch.equal(LayerEncoder(net, layer, None)(x), raw.flatten(1))
    with torch.no_grad(): dense = LayerEncoder(net, layer, False)(x)
    assert torch.allclose(dense.flatten(2).transpose(1,2), pixels(raw, layout, prefix), atol=1e-5)

@pytest.mark.parametrize('name,kw,side,layer,layout,prefix,nf', by_layer, ids=lambda o: o if isinstance(o, str) else '')
def test_a_layer_of_timm_is_pooled_over_its_pixels(name, kw, side, layer, layout, prefix, nf):
    "Number and values of the features are those of a computation written out for the layout"
    check_layer(partial(timm.create_model, name, num_classes=0, **kw), side, layer, layout, prefix, nf)

@pytest.mark.parametrize('make,side,layer,layout,prefix,nf', own, ids=lambda o: o if isinstance(o, str) else '')
def test_a_layer_of_other_libraries_is_pooled_over_its_pixels(make, side, layer, layout, prefix, nf):
    "The same for torchvision and fastai"
    check_layer(make, side, layer, layout, prefix, nf)

def test_the_smallest_input_of_the_fault():
    "create_encoder('vit_tiny_patch16_224', size=64, layer='norm') gave 34 features, Swin 4"
    kw = dict(pretrained=False, size=64)
    assert num_features(create_encoder('vit_tiny_patch16_224', layer='norm', pool_type='avg', **kw))==192
    assert num_features(create_encoder('vit_tiny_patch16_224', layer='norm', **kw))==2*192
    assert num_features(create_encoder('swin_tiny_patch4_window7_224', layer='layers.0', pool_type='avg', **kw))==96

# By name: `features(net, x)` → (map, layout, prefix, what follows the pooling)
named = [
    ('test_resnet', {}, 64, 'map', 0, lambda net: nn.Identity()),
    ('regnetx_002', {}, 64, 'map', 0, lambda net: nn.Identity()),
    ('test_efficientnet', {}, 64, 'map', 0, lambda net: nn.Identity()),
    ('mobilevit_xxs', {}, 64, 'map', 0, lambda net: nn.Identity()),
    ('swin_tiny_patch4_window7_224', dict(size=64), 64, 'channels_last', 0, lambda net: nn.Identity()),
    ('poolformer_s12', {}, 64, 'map', 0, lambda net: net.head.norm),
    ('vit_tiny_patch16_224', dict(size=48, depth=2), 48, 'tokens', 1, lambda net: net.fc_norm),
    ('vit_small_patch14_reg4_dinov2', dict(size=56, depth=2), 56, 'tokens', 5, lambda net: net.fc_norm),
    ('deit_tiny_distilled_patch16_224', dict(size=48, depth=2), 48, 'tokens', 2, lambda net: net.fc_norm)]

@pytest.mark.parametrize('pool', ['avg', 'max', 'avgmax', 'catavgmax'])
@pytest.mark.parametrize('name,kw,side,layout,prefix,tail', named, ids=lambda o: o if isinstance(o, str) else '')
def test_a_network_by_name_is_pooled_over_its_pixels(name, kw, side, layout, prefix, tail, pool):
    "What the name gives is the pooling of its own last map; one that keeps its own pooling says so"
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        enc = create_encoder(name, pretrained=False, pool_type=pool, **kw).eval()
    kept = any('keeps its own pooling' in str(o.message) for o in w)
    x = torch.rand(2, 3, side, side)
    with torch.no_grad():
        got = enc(x)
        assert got.shape==(2, num_features(enc))
        if kept: return
        want = pooled(enc.forward_features(x), layout, prefix, pool)
        want = tail(enc)(want[...,None,None] if layout=='map' else want).flatten(1)
    assert torch.allclose(got, want, atol=1e-5)

@pytest.mark.parametrize('pool', ['avg', 'max', 'avgmax', 'catavgmax'])
def test_xresnet_and_ours_by_name(pool):
    "fastai's networks and `tiny_resnet` end in a pooling of their last map"
    x = torch.rand(2,3,64,64)
    for enc in (create_encoder('xresnet18', pretrained=False, pool_type=pool).eval(), tiny_resnet(pool_type=pool).eval()):
        with torch.no_grad(): assert torch.allclose(enc(x), pooled(enc[:-1](x), 'map', 0, pool), atol=1e-6)

# Networks in the style of Hugging Face

class Output(OrderedDict):
    "A dictionary with attributes, as transformers' ModelOutput"
    def __getattr__(self, k): return self[k]

@dataclass
class Answer:
    last_hidden_state: torch.Tensor
    pooler_output: torch.Tensor = None

Pair = namedtuple('Pair', 'last_hidden_state hidden_states')

class HFViT(nn.Module):
    "Patches by a convolution, a class token, one block, LayerNorm, a pooler; one size unless `any_size`"
    def __init__(self, form, d=12, any_size=False, registers=0, cls='cls_token'):
        super().__init__()
        self.config = SimpleNamespace(hidden_size=d)
        self.proj = nn.Conv2d(3, d, 8, 8)
        setattr(self, cls, nn.Parameter(torch.randn(1,1,d)))
        if registers: self.register_tokens = nn.Parameter(torch.randn(1,registers,d))
        self.cls,self.registers,self.any_size,self.form = cls,registers,any_size,form
        self.pos = nn.Parameter(torch.randn(1,16+1+registers,d))
        self.block = nn.TransformerEncoderLayer(d, 2, d, 0., batch_first=True)
        self.layernorm = nn.LayerNorm(d)
        self.pooler = nn.Linear(d, d)
    def forward(self, x):
        t = self.proj(x).flatten(2).transpose(1,2)
        front = [getattr(self, self.cls).expand(len(x), -1, -1)]
        if self.registers: front.append(self.register_tokens.expand(len(x), -1, -1))
        t = torch.cat([*front, t], 1)
        if not self.any_size: t = t + self.pos
        t = self.layernorm(self.block(t))
        return self.form(t, self.pooler(t[:,0]))

def as_output(t, v): return Output(last_hidden_state=t, pooler_output=v)
def as_dict(t, v): return dict(pooler_output=v, last_hidden_state=t, hidden_states=(t,t))
def as_namespace(t, v): return SimpleNamespace(last_hidden_state=t, pooler_output=v)
def as_named_tuple(t, v): return Pair(t, (t,t))
def as_single(t, v): return (t,)
def as_tensor(t, v): return t

forms = [as_output, as_dict, Answer, as_namespace, as_named_tuple, as_single, as_tensor]

@pytest.mark.parametrize('pool', ['avg', 'catavgmax'])
@pytest.mark.parametrize('options', [{}, dict(any_size=True), dict(registers=3), dict(any_size=True, registers=2),
                                     dict(cls='class_token'), dict(cls='front'), dict(any_size=True, cls='front'),
                                     dict(d=18), dict(d=16, registers=0)], ids=str)
@pytest.mark.parametrize('form', forms)
def test_outputs_of_hugging_face(form, options, pool):
    "Tokens of patches are pooled, in whatever they come, of any width and with any tokens in front"
    seed_everything(0)
    net = HFViT(form, **options).eval()
    x = torch.rand(2,3,32,32)
    prefix = 1 + options.get('registers', 0)
    with torch.no_grad():
        t = net(x)
        t = t if isinstance(t, torch.Tensor) else t[0] if isinstance(t, tuple) else (t if isinstance(t, dict) else vars(t))['last_hidden_state']
        if options.get('cls')=='front' and not options.get('any_size'):
            with pytest.raises(Unflattenable, match='prefix_tokens'): FlatEncoder(net, pool)(x)
            enc = create_encoder(net, pool_type=pool, size=32, prefix_tokens=1)
        elif options.get('cls')=='front': enc = create_encoder(net, pool_type=pool, size=32, prefix_tokens=1)
        else: enc = create_encoder(net, pool_type=pool, size=32)
        want = pooled(t, 'tokens', prefix, pool)
        assert torch.allclose(enc(x), want, atol=1e-6)
        assert num_features(enc, size=32)==want.shape[1]
        assert torch.allclose(create_encoder(net, layer='layernorm', pool_type=pool, prefix_tokens=prefix)(x), want, atol=1e-6)

def test_none_takes_the_vector_of_hugging_face():
    "pool_type=None is the network's own way: its pooler"
    net = HFViT(as_output).eval()
    x = torch.rand(2,3,32,32)
    assert torch.equal(create_encoder(net, pool_type=None, size=32)(x), net(x).pooler_output)

class Maps(nn.Module):
    def __init__(self, form, c=8):
        super().__init__()
        self.conv,self.form = nn.Conv2d(3, c, 3, padding=1),form
    def forward(self, x): return self.form(self.conv(x))

@pytest.mark.parametrize('form', [
    lambda m: m, lambda m: dict(out=m, aux=m), lambda m: dict(features=m), lambda m: (m,None), lambda m: [m],
    lambda m: m.permute(0,2,3,1), lambda m: m.flatten(2).transpose(1,2), lambda m: m.flatten(2)])
def test_any_form_of_a_map_is_measured(form):
    "Map, dictionary, tuple, channels last, tokens, flattened map: the same features"
    net = Maps(form).eval()
    x = torch.rand(2,3,8,8)   # as many channels as rows
    want = net.conv(x).mean((2,3))
    for enc in (FlatEncoder(net), create_encoder(net, pool_type='avg')): assert torch.allclose(enc(x), want, atol=1e-6)
    if isinstance(net(x), torch.Tensor): assert num_features(net)==8

@pytest.mark.parametrize('form', [lambda m: (m,m), lambda m: dict(a=m, b=m), lambda m: [[m],[m]], lambda m: m.mean(), lambda m: None])
def test_outputs_that_cannot_be_told_apart_are_refused(form):
    "Several tensors without a known name, none, or a number"
    with pytest.raises(Unflattenable, match='cannot be flattened'): FlatEncoder(Maps(form))(torch.rand(2,3,8,8))

def test_what_cannot_be_known_is_asked():
    "A fixed size and nothing that tells: an error with both readings and the option, which then counts"
    class Mute(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(3*64, 6*5))
        def forward(self, x): return (x.flatten(1)@self.w).view(-1, 6, 5)
    x = torch.rand(2,3,8,8)
    with pytest.raises(Unflattenable, match=r"\(1, 6, 5\), and the channels may be 6 \(a map\) or 5 \(tokens\). Pass layout='map' or layout='tokens'"):
        FlatEncoder(Mute())(x)
    assert FlatEncoder(Mute(), layout='map')(x).shape==(2,6)
    assert FlatEncoder(Mute(), layout='tokens', prefix_tokens=0)(x).shape==(2,5)
    assert FlatEncoder(Mute(), layout='channels_last')(x).shape==(2,5)
    with pytest.raises(ValueError, match="layout='rows' is not known"): FlatEncoder(Mute(), layout='rows')
    with pytest.raises(ValueError, match='does not go with'): FlatEncoder(Mute(), layout='map', prefix_tokens=1)
    with pytest.raises(ValueError, match='has no effect on resnet18'): create_encoder('resnet18', pretrained=False, layout='map')

@pytest.mark.parametrize('n', [0,1,3])
def test_tokens_of_any_name_are_counted_where_pictures_of_two_sizes_tell(n):
    "They stay as many as they are while those of the patches grow, and a convolution shows how many these are"
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, 12, 8, 8)
            self.mine = nn.Parameter(torch.randn(1, n, 12))
        def forward(self, x):
            tokens = self.patches(x).flatten(2).transpose(1, 2)
            return torch.cat([self.mine.expand(len(x), -1, -1), tokens], 1)
    net,x = Named(),torch.rand(2,3,32,32)
    encoder = create_encoder(net, pool_type='avg').eval()
    assert encoder.prefix_tokens==n
    torch.testing.assert_close(encoder(x), net.patches(x).mean((2,3)))

def test_an_axis_that_is_not_the_batch_is_refused():
    "Windows of Swin, and (tokens,bs,c) of older transformers"
    net = timm.create_model('swin_tiny_patch4_window7_224', num_classes=0, img_size=64, depths=(1,1,1,1))
    with pytest.raises(Unflattenable, match='first axis is not the batch'):
        create_encoder(net, layer='layers.0.blocks.0.attn')
    with pytest.raises(Unflattenable, match='first axis is not the batch'):
        FlatEncoder(Maps(lambda m: m.flatten(2).permute(2,0,1)))(torch.rand(2,3,8,8))

def test_finding_out_changes_nothing():
    "Weights, buffers, flags and the random state are as before the first input"
    net = nn.Sequential(nn.Conv2d(3,8,3), nn.BatchNorm2d(8), nn.Dropout2d(.5)).train()
    before = {k:v.clone() for k,v in net.state_dict().items()}
    rng = torch.get_rng_state()
    enc = create_encoder(net)
    assert torch.equal(torch.get_rng_state(), rng) and all(m.training for m in net.modules())
    assert all(torch.equal(v, before[k]) for k,v in net.state_dict().items())
    assert not any(m._forward_hooks for m in enc.modules())
    assert set(enc.state_dict())=={f'net.{k}' for k in before}

def test_series_and_clips():
    "(bs,c,t), (bs,c,t,h,w) and channels last of clips"
    series = nn.Sequential(nn.Conv1d(2,7,3,padding=1), nn.ReLU())
    x = torch.rand(2,2,32)
    assert torch.allclose(create_encoder(series, n_in=2, pool_type='avg')(x), series(x).mean(2), atol=1e-6)
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv3d(3,6,3,2,1)
        def forward(self, x): return self.conv(x).movedim(1,-1)
    clips = torch.rand(2,3,4,16,16)
    net = Last()
    assert torch.allclose(create_encoder(net, pool_type='max')(clips), net(clips).amax((1,2,3)))
    frames = ClipEncoder(Maps(lambda m: dict(out=m.mean((2,3)))))
    assert frames(clips).shape==(2,8) and num_features(frames)==8

def test_copies_keep_the_layout():
    "A target network pools as its online network does; `spec` holds what was passed"
    enc = create_encoder('vit_tiny_patch16_224', pretrained=False, size=32, depth=1, layer='norm', pool_type='avg',
                         layout='tokens', prefix_tokens=1)
    assert (enc.spec['layout'],enc.spec['prefix_tokens'])==('tokens',1)
    again = create_encoder(**enc.spec, pretrained=False).eval()
    again.load_state_dict(enc.state_dict())
    x = torch.rand(2,3,32,32)
    assert torch.equal(again(x), enc.eval()(x))
    model = create_byol_model(enc, 16, 8, size=32)
    assert model.online[1][0].in_features==192
    model.loss(x, x.flip(3)).backward()

# Encoders that a projector cannot use

@pytest.mark.parametrize('create', [create_byol_model, create_simsiam_model])
@pytest.mark.parametrize('form', [lambda m: m, lambda m: dict(out=m), lambda m: dict(out=m.mean((2,3))), lambda m: (m.mean((2,3)),),
                                  lambda m: m.permute(0,2,3,1), lambda m: m.flatten(2).transpose(1,2)])
def test_maps_and_dictionaries_are_refused_at_construction(form, create):
    "Not at the first loss; wrapped they train"
    with pytest.raises(ValueError, match=r'the projector takes vectors \(bs,nf\)'): create(Maps(form), 16, 8)
    x = torch.rand(4,3,16,16)
    create(create_encoder(Maps(form), pool_type='avg'), 16, 8).loss(x, x.flip(3)).backward()

def test_a_projector_that_pools_takes_maps_only():
    "pool=True averages (bs,nf,h,w); channels last are refused, because it would average another axis"
    x = torch.rand(4,3,16,16)
    create_byol_model(Maps(lambda m: m), 16, 8, pool=True).online(x)
    create_byol_model(FlatEncoder(Maps(lambda m: m.permute(0,2,3,1)), False), 16, 8, pool=True).online(x)
    for form in (lambda m: m.permute(0,2,3,1), lambda m: dict(out=m)):
        with pytest.raises(ValueError, match='the projector takes vectors'): create_byol_model(Maps(form), 16, 8, pool=True)
    swin = create_encoder('swin_tiny_patch4_window7_224', pretrained=False, size=64, depths=(1,1,1,1), pool_type=False)
    with pytest.raises(ValueError, match='the projector takes vectors'): create_byol_model(swin, 16, 8, pool=True)

# Views of every type

class Two(nn.Module):
    "An encoder of two inputs in a list, as SlowFast; or of a dict"
    def __init__(self):
        super().__init__()
        self.a,self.b = nn.Linear(5,6),nn.Linear(5,6)
    def forward(self, v):
        a,b = v.values() if isinstance(v, dict) else v
        return self.a(a)+self.b(b)

def heads(encoder, nf): return BYOLModel(encoder, create_mlp_module(nf, 8, 4), create_mlp_module(4, 8, 4))

@pytest.mark.parametrize('kind', ['list', 'tuple', 'dict', 'integers', 'double', 'half'])
def test_what_the_model_takes_the_loss_takes(kind):
    "`model.loss(v,v)` works on whatever `model(v,v)` works on"
    v = torch.rand(4,5)
    many = dict(list=[v,v], tuple=(v,v), dict=dict(slow=v, fast=v))
    if kind in many: model,v = heads(Two(), 6),many[kind]
    if kind=='integers': model,v = heads(nn.Sequential(nn.Embedding(9,3), nn.Flatten()), 15),torch.randint(9, (4,5))
    if kind=='double': model,v = heads(nn.Linear(5,6), 6).double(),v.double()
    if kind=='half': model,v = heads(nn.Linear(5,6), 6).bfloat16(),v.bfloat16()
    if kind=='half': model.reset_target()
    qs = model(v, v)
    loss = model.loss(v, v)
    assert loss.isfinite() and len(qs)==2
    loss.backward()

def test_double_precision_is_kept():
    "A target in float64 projects in float64"
    model = heads(nn.Linear(5,6), 6).double()
    v = torch.rand(4,5).double()
    z, = model.project(v)
    assert z.dtype==torch.float64 and torch.equal(z, model.target(v))

@pytest.mark.parametrize('z', [(1,8), (6,1), (8,), (6,7)])
def test_a_loss_of_other_shapes_is_refused(z):
    "(6,d) against (1,d) was broadcast"
    with pytest.raises(ValueError, match='differ in shape'): byol_loss(torch.randn(6,8), torch.randn(z))

# Range and shape of the views

off = dict(jitter=False, bw=False, blur=False, solarize=False, flip_p=0., stats=None)

@pytest.mark.parametrize('shift,scale', [(0.,1.), (-40.,20.), (0.,1000.)], ids=['log-mel', 'decibels', 'counts'])
@pytest.mark.parametrize('shape', [(4,1,24,48), (2,3,5,24,24)], ids=['picture', 'clip'])
def test_clip_false_keeps_the_range(shape, shift, scale):
    "Nothing of data in another range is lost; the default clips as before"
    x = torch.randn(shape)*scale+shift
    kw = off | dict(resize_scale=(1.,1.), resize_ratio=(shape[-1]/shape[-2],)*2)
    aug = get_batch_augs(shape[-2:], clip=False, **kw)
    assert torch.allclose(aug(x), x, rtol=1e-4, atol=1e-3*scale)
    clipped = get_batch_augs(shape[-2:], **kw)(x)
    assert 0<=clipped.min() and clipped.max()<=1
    both = get_byol_aug_pipelines(24, clip=False, jitter=False, solarize=False, bw=False, stats=None)
    assert all(aug(x).abs().max()>scale for aug in both)

def test_operations_that_clip_are_refused_together_with_clip_false():
    "jitter and solarize work in [0,1]; switched off in any way they are no hindrance"
    with pytest.raises(ValueError, match='clip=False does not go with jitter and solarize'): get_batch_augs(24, clip=False)
    with pytest.raises(ValueError, match='Pass solarize=False'): get_batch_augs(24, clip=False, jitter=False)
    get_batch_augs(24, clip=False, jitter_p=0., solarize_p=0.)
    get_batch_augs(24, clip=False, jitter_s=0, solarize=False)

@pytest.mark.parametrize('clip', [True, False])
def test_the_warning_names_the_option_and_is_given_only_where_something_is_lost(clip):
    "check_range: a pipeline that keeps the range needs no warning"
    from self_supervised.data.arrays import tensor_dls
    kw = off | dict(clip=clip)
    encoder = tiny_resnet(1)
    model = create_byol_model(encoder, 16, 8, norm='group')
    learn = byol_learner(tensor_dls(torch.randn(16,1,16,16), bs=8), model, get_multi_aug_pipelines(2, 16, **kw))
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
    lost = [str(o.message) for o in w if 'are lost' in str(o.message)]
    assert bool(lost)==clip and all('clip=False' in o for o in lost)

def spans(size, x_shape, **kw):
    "Mean part of width and of height that the crops of a view span"
    seed_everything(0)
    h,w = x_shape[-2:]
    boxes = BicubicCrop(size, **kw).boxes(torch.Size(x_shape), False)['src']
    return ((boxes[:,1,0]-boxes[:,0,0]+1)/w).mean().item(),((boxes[:,2,1]-boxes[:,1,1]+1)/h).mean().item()

@pytest.mark.parametrize('size', [(24,48), (48,24), (16,128)])
def test_the_default_ratio_is_that_of_the_view(size):
    "A crop of .9 to 1 of the area of a picture of the view's shape spans it in both directions"
    w,h = spans(size, (512,1,*size), scale=(.9,1.))
    assert min(w,h)>.85
    assert min(spans(size, (512,1,*size), scale=(.9,1.), ratio=(3/4,4/3)))<.7   # as it was

def test_square_views_are_as_before():
    "To the bit, whatever the default is called"
    x = torch.rand(8,3,40,56)
    for size in (7, 32, 224):
        views = []
        for kw in ({}, dict(ratio=(3/4,4/3))):
            torch.manual_seed(0)
            views.append(BicubicCrop(size, **kw)(x))
        assert torch.equal(*views)

# Names and habits of other libraries

def test_names_of_the_older_library():
    "An alias where the meaning is the same, else an error that names the replacement"
    augs = import_module('self_supervised.augmentations')
    assert get_kornia_batch_augs is get_batch_augs and create_timm_encoder is create_encoder
    for name,new in dict(get_torchvision_batch_augs='same_on_batch=True', get_fastai_batch_augs='resize_scale', RandomGaussianBlur='blur_s').items():
        assert name in augs.__all__
        with pytest.raises(TypeError, match=new) as e: getattr(augs, name)(64, jitter=True)
        assert '\n' not in str(e.value)
    with pytest.raises(TypeError, match=r"create_encoder\('xresnet34'\)"): create_fastai_encoder(xresnet.xresnet34, n_in=3)
    augs.assert_aug_pipelines(get_byol_aug_pipelines(16))
    with pytest.raises(TypeError, match='is no list of callables'): augs.assert_aug_pipelines(5)

@pytest.mark.parametrize('nested', [False, True])
def test_ema_of_dictionaries(nested):
    "Edifice's parameters: the same numbers as for networks, m=.996 by default"
    t,o = dict(w=torch.ones(3), b=torch.zeros(2)),dict(b=torch.ones(2), w=torch.zeros(3))
    if nested: t,o = dict(layer=t),dict(layer=o)
    ema_update(t, o)
    t = t['layer'] if nested else t
    assert torch.allclose(t['w'], torch.full((3,), .996)) and torch.allclose(t['b'], torch.full((2,), .004))

def test_ema_of_a_dictionary_that_differs_is_refused():
    "Other keys, other shapes, integers, half precision"
    with pytest.raises(ValueError, match='differ in 2 keys'): ema_update(dict(a=torch.ones(1)), dict(b=torch.ones(1)))
    with pytest.raises(ValueError, match='shapes differ'): ema_update(dict(a=torch.ones(1)), dict(a=torch.ones(2)))
    with pytest.raises(TypeError, match='no floating point'): ema_update(dict(a=torch.ones(1).long()), dict(a=torch.ones(1)))
    with pytest.raises(TypeError, match='stand still'): ema_update(dict(a=torch.ones(1).half()), dict(a=torch.ones(1)))

def test_ema_default_for_networks():
    "Networks and dictionaries of their parameters give the same"
    a,b = nn.Linear(3,2),nn.Linear(3,2)
    want = [.996*p+.004*q for p,q in zip(a.parameters(), b.parameters())]
    ema_update(dict(a.named_parameters()), b)
    assert all(torch.allclose(p, w) for p,w in zip(a.parameters(), want))

class Scaled(nn.Module):
    def __init__(self, nf):
        super().__init__()
        self.nf = nf
    def forward(self, x): return x/x.shape[1]

@pytest.mark.parametrize('norm', [nn.BatchNorm1d, nn.LayerNorm, nn.SyncBatchNorm, partial(nn.GroupNorm, 4), Scaled])
def test_any_callable_is_a_norm(norm):
    "In heads, models and encoders of vectors; on the output without scale and shift"
    head = create_mlp_module(8, 16, 4, norm=norm, norm_out=True)
    want = norm(16)
    assert type(head[1]) is type(want) and type(head[-1]) is type(norm(4))
    assert getattr(head[-1], 'weight', None) is None and not list(head[-1].parameters())
    assert head.eval()(torch.rand(6,8)).shape==(6,4)
    assert type(create_mlp_encoder(8, 4, 16, norm=norm)[2]) is type(want)
    model = create_byol_model(tiny_resnet(1), 16, 8, norm=norm)
    assert type(model.projector[1]) is type(model.predictor[1]) is type(want)

def test_a_callable_is_the_named_norm():
    "The same numbers as by name"
    out = []
    for norm in ('batch', nn.BatchNorm1d):
        seed_everything(0)
        out.append(create_mlp_module(8, 16, 4, norm=norm, norm_out=True)(torch.linspace(0, 1, 48).view(6,8)))
    assert torch.equal(*out)

def test_blocks_of_minerva():
    "Norm, activation and bias of each hidden layer for itself: ProjectionHead([(8,16,bn,relu),(16,12,None,gelu),(12,4)])"
    head = create_mlp_module(8, [16,12], 4, norm=['batch',None], act=[nn.ReLU,nn.GELU], bias=[False,True])
    assert [type(o).__name__ for o in head]==['Linear','BatchNorm1d','ReLU','Linear','GELU','Linear']
    assert [o.bias is not None for o in head if isinstance(o, nn.Linear)]==[False,True,False]
    assert [type(o).__name__ for o in create_mlp_module(8, 16, 4, act=None)]==['Linear','Linear']
    prelu = nn.PReLU()
    acts = [o for o in create_mlp_module(8, [16,12], 4, act=prelu) if isinstance(o, nn.PReLU)]
    assert len(set(map(id, acts)) | {id(prelu)})==3
    create_byol_model(tiny_resnet(1), 16, 8, act=nn.GELU, bias=False)
    for name,v in dict(norm=['batch'], act=[nn.ReLU], bias=[True]*3).items():
        with pytest.raises(ValueError, match='entries for 2 hidden layers'): create_mlp_module(8, [16,12], 4, **{name:v})
    with pytest.raises(ValueError, match="norm='instance' is not known"): create_mlp_module(8, 16, 4, norm='instance')

# Surgery in any order, and on networks of any build

@pytest.mark.parametrize('arch', ['resnet18', 'resnet18d', 'xresnet18'])
def test_surgery_after_standardised_weights(arch):
    "Channels and stem change, and weights stay standardised, as in the other order"
    from self_supervised.surgery import StandardizedWeight, adapt_input, shrink_stem, to_group_norm
    for first in (adapt, shrink_stem):
        nets = []
        for steps in ((first,to_group_norm), (to_group_norm,first)):
            seed_everything(0)
            net = create_encoder(arch, pretrained=False)
            for f in steps:
                seed_everything(1)
                f(net)
            nets.append(net.eval())
        a,b = nets
        x = torch.rand(2, 4 if first is adapt else 3, 64, 64)
        assert list(a.state_dict())==list(b.state_dict()) and a.spec==b.spec
        torch.testing.assert_close(a(x), b(x))
        assert sum(isinstance(m, StandardizedWeight) for m in a.modules())==sum(isinstance(m, StandardizedWeight) for m in b.modules())

def adapt(net):
    from self_supervised.surgery import adapt_input
    return adapt_input(net, 4)

def test_surgery_keeps_how_a_convolution_pads():
    "Padding of another mode, and training flags"
    from self_supervised.surgery import adapt_input, shrink_stem
    net = nn.Sequential(nn.Conv2d(3, 4, 5, padding=2, padding_mode='circular'), nn.Flatten()).eval()
    x = torch.rand(2,1,9,9)
    want = net(x.expand(-1,3,-1,-1))
    torch.testing.assert_close(adapt_input(net, 1)(x), want)
    assert not net[0].training
    stem = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1, padding_mode='reflect'), nn.MaxPool2d(2)).eval()
    want = nn.functional.conv2d(nn.functional.pad(x, (1,)*4, 'reflect'), stem[0].weight, stem[0].bias)
    torch.testing.assert_close(shrink_stem(stem)(x), want)

def test_a_batchnorm_in_two_places_is_replaced_in_both():
    from self_supervised.surgery import batchnorms, to_group_norm
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv,self.a = nn.Conv2d(3,8,3),nn.BatchNorm2d(8)
            self.b = self.a
        def forward(self, x): return self.b(self.a(self.conv(x)))
    net = to_group_norm(Shared())
    assert net.a is net.b and not any(isinstance(m, batchnorms) for m in net.modules())

def test_views_do_not_depend_on_the_default_type():
    x,views = torch.rand(4,3,21,19),[]
    for dtype in (torch.float64, torch.float32):
        torch.set_default_dtype(dtype)
        try:
            seed_everything(0)
            views.append([aug(x) for aug in get_byol_aug_pipelines(8)])
        finally: torch.set_default_dtype(torch.float32)
    assert all(v.dtype==torch.float32 and v.shape==(4,3,8,8) for vs in views for v in vs)
