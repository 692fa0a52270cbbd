"Laws of the views that the page of augmentations does not show: orders of colour changes, and clips"
import pickle, warnings

import kornia.augmentation as K, pytest, torch
from fastai.torch_core import set_seed
from fastai.vision.core import imagenet_stats
from sklearn.datasets import load_sample_images

from self_supervised.augmentations import ColorJitter, PerImage, RandomFrames, get_batch_augs
from self_supervised.core import warn_once
from self_supervised.vision.byol import get_byol_aug_pipelines

def fixed(**amounts):
    "A jitter of these amounts, and nothing else"
    still = dict(brightness=0, contrast=0, saturation=0, hue=0)
    return ColorJitter(**(still | {k:(v,v) for k,v in amounts.items()}))

def n_different(x): return len({tuple(o.flatten().tolist()) for o in x})

@pytest.fixture(scope='module')
def photos():
    "Two photographs (2,3,400,400) in [0,1]"
    return torch.stack([torch.tensor(o).permute(2,0,1)[:, :400, 100:500]/255 for o in load_sample_images().images])

@pytest.fixture
def moving(photos):
    "Two clips (2,3,5,300,300)"
    return torch.stack([photos[..., 10*i:10*i+300, 20*i:20*i+300] for i in range(5)], 2)

# Colour

def test_each_image_has_an_order_of_its_own():
    "With a strong jitter, 64 copies with the same amounts still come out in several ways"
    set_seed(0)
    same = torch.rand(1,3,8,8).expand(64,-1,-1,-1)
    outs = fixed(brightness=.3, contrast=1.6, saturation=.5, hue=.2)(same)
    assert len({tuple(o.flatten().mul(1e4).round().tolist()) for o in outs}) > 10
    one = ColorJitter(same_on_batch=True)(same)
    torch.testing.assert_close(one, one[:1].expand_as(one))

def test_a_grey_picture_has_no_hue():
    grey = torch.rand(4,1,8,8)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert torch.equal(fixed(hue=.2)(grey), grey)

@pytest.mark.parametrize('kw', [{}, dict(brightness=0, hue=0), dict(brightness=0, contrast=0, saturation=0)])
def test_each_image_is_changed_as_if_it_were_alone(kw):
    "It takes its own steps, with its own amounts, and comes back to its place"
    x,jitter = torch.rand(23,3,8,8),ColorJitter(**kw)
    set_seed(3)
    out = jitter(x)
    set_seed(3)
    amounts = {k: torch.empty(23).uniform_(*r) for k,r in jitter.ranges.items()}
    names = list(amounts)
    order = torch.rand(23, len(amounts)).argsort(1)
    for i,want in enumerate(x.split(1)):
        for k in order[i].tolist(): want = jitter.steps[names[k]][0](want, amounts[names[k]][i:i+1])
        assert (out[i:i+1]-want).abs().max() <= 1e-6

def test_a_jitter_leaves_its_input_alone_has_gradients_and_takes_empty_batches():
    x = torch.rand(7,3,8,8)
    given = x.clone()
    ColorJitter()(x)
    assert torch.equal(x, given)
    for n in (0,1): assert ColorJitter()(x[:n]).shape==x[:n].shape
    w = x.clone().requires_grad_()
    ColorJitter()(w).sum().backward()
    assert w.grad.isfinite().all()

# Clips

def test_equal_clips_get_different_views_and_are_left_alone(moving):
    set_seed(2)
    same = moving[:1].expand(32,-1,-1,-1,-1).clone()
    before = same.clone()
    assert n_different(get_batch_augs(16, frames=3)(same))==32
    assert n_different(get_batch_augs(16, frames=3, same_on_batch=True)(same))==1
    assert torch.equal(same, before)

def test_decode_inverts_the_normalisation_of_clips(photos):
    off = dict(jitter=False, bw=False, blur=False, solarize=False, resize_scale=(1.,1.), resize_ratio=(1.,1.), flip_p=0.)
    norm = get_batch_augs(64, **off, stats=imagenet_stats)
    still = photos[:, :, None, :64, :64].expand(-1,-1,3,-1,-1)
    torch.testing.assert_close(norm.decode(norm(still)), still, atol=1e-3, rtol=0)

@pytest.mark.parametrize('c', [1, 2, 4, 13])
def test_clips_of_any_number_of_channels(c):
    warn_once.cache_clear()
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        out = get_batch_augs(16, frames=(2,3), stats=None, jitter_p=1., bw_p=1.)(torch.rand(4,c,6,20,20))
    assert out.shape==(4,c,2,16,16)
    assert len(w)==2 and all(f'have {c} channel' in str(o.message) for o in w)

def test_an_operation_that_needs_rgb_gets_the_frames_of_clips(moving):
    op = PerImage(K.ColorJiggle(.2,.2,.2,.1), colour=True)
    assert get_batch_augs(16, xtra_tfms=[op])(moving).shape==(2,3,5,16,16)

def test_clips_pickle_and_wrong_shapes_are_named(moving):
    aug = pickle.loads(pickle.dumps(get_batch_augs(16, frames=3)))
    torch.manual_seed(3)
    assert aug(moving).shape==(2,3,3,16,16)
    with pytest.raises(ValueError, match='frames=0 must be a whole number, 1 or more'): RandomFrames(0)
    with pytest.raises(ValueError, match=r'\(4, 7\) is no batch of pictures or clips. Pass pictures \(bs,c,h,w\) or clips'):
        get_batch_augs(16)(torch.rand(4,7))

@pytest.mark.parametrize('at_once', [False, True])
def test_views_are_computed_in_float32_under_autocast(photos, at_once):
    "In a loop of your own the views may stand inside of the context"
    aug = get_byol_aug_pipelines(16, jitter_p=.5, blur_p=.5, solarize_p=.5)[0]
    aug.at_once = at_once
    torch.manual_seed(0)
    want = aug(photos)
    torch.manual_seed(0)
    with torch.autocast('cpu', torch.bfloat16): got = aug(photos)
    assert got.dtype==torch.float32 and torch.equal(got, want)

@pytest.mark.parametrize('at_once', [False,True])
def test_pictures_of_another_range_are_named_in_a_loop_of_your_own(at_once):
    "Bytes as floats became white, without a word; BYOL looks itself, and data of any range is allowed"
    def said(x, n=2, **kw):
        warn_once.cache_clear()
        aug = get_batch_augs(8, stats=None, jitter=False, solarize=False, blur=False, bw=False, **kw); aug.at_once = at_once
        with warnings.catch_warnings(record=True) as ws:
            warnings.simplefilter('always')
            for _ in range(n): aug(x)
        return [str(w.message) for w in ws]
    x = torch.rand(4,3,8,8)
    found = said(255*x); assert len(found)==1 and 'clip to [0, 1]: values outside are lost. Divide pictures of bytes by 255' in found[0]
    assert len(said(2*x-1))==1 and not said(x) and not said(255*x, clip=False) and not said(x[:0])

@pytest.mark.parametrize('s', [1.5, 2., (.4,1.6,.2,.1)])
def test_a_strong_jitter_turns_no_light_into_dark(s):
    "A contrast below 0 made a negative of some pictures"
    steps = get_batch_augs(8, jitter_s=s, stats=None).fs
    jitter = next(o.op for o in steps if isinstance(getattr(o, 'op', None), ColorJitter))
    assert jitter.ranges['contrast'][0]==0 and jitter.ranges['contrast'][1]>2 and jitter.ranges['saturation'][0]>=0 and jitter.ranges['brightness'][0]<0
    ramp = torch.linspace(0,1,64).view(1,1,8,8).expand(200,1,8,8)
    views = ColorJitter(0, s[1] if isinstance(s, tuple) else .8*s, 0, 0)(ramp).flatten(1)
    assert (views[:,-1]>=views[:,0]).all()
    assert ColorJitter(contrast=(-.5,2.)).ranges['contrast']==(-.5,2.) and ColorJitter().ranges['contrast']==(.6,1.4)
