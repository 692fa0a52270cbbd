"""Whatever a user brings, training goes on from it or one line says what is wrong: never a wrong result in silence.

Each test draws many cases (the same ones in each run, see `profile`). An outcome is either training (a finite loss, weights moved) or an
error of this library's own: a ValueError or TypeError of one line that names what it saw. Anything else, an IndexError from deep inside
or weights that stand still, fails."""
import io, os, random, warnings
from pathlib import Path

import numpy as np, pytest, torch
from fastai.vision.all import DataLoaders, Learner
from hypothesis import HealthCheck, example, given, settings, strategies as st
from PIL import Image
from torch import nn

from self_supervised.augmentations import get_batch_augs
from self_supervised.data.arrays import tensor_dls
from self_supervised.data.images import image_dls
from self_supervised.data.reading import open_picture
from self_supervised.vision.byol import BYOL, byol_learner, create_byol_model, get_byol_aug_pipelines

# The same cases each time; `FUZZ=1000 pytest tests/test_fuzz.py` draws as many new ones
settings.register_profile('same', max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
settings.register_profile('new', max_examples=int(os.environ.get('FUZZ', 1)), deadline=None, database=None, suppress_health_check=list(HealthCheck))
settings.load_profile('new' if 'FUZZ' in os.environ else 'same')

def net(n_in):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(n_in,4,3,2,1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def ours(e):
    "The message of an error, which is one line after fastai's own first one that names the callback"
    assert isinstance(e, (ValueError, TypeError)) or 'nothing was trained' in str(e), repr(e)
    lines = str(e).splitlines()
    if lines[0].startswith('Exception occured in'): lines = lines[1:]
    assert len(lines)==1, e
    # ours say what to do, in a sentence of its own at the end
    line = lines[0].strip()
    assert line.endswith('.'), e
    verbs = 'pass set give repair leave build lower look choose make call convert'.split()
    assert any(v+' ' in line.lower() for v in verbs), e
    return line

def outcome(make):
    "'trains', or the message that says why not"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        try:
            learn = make()
            before = torch.cat([p.detach().flatten() for p in learn.model.online.parameters()]).clone()
            with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
        except Exception as e: return ours(e),[]
    after = torch.cat([p.detach().flatten() for p in learn.model.online.parameters()])
    # Everything that may be trained on has been, or was reported
    n,skipped = len(learn.dls.train),len(learn.guard.skipped)
    assert len(learn.recorder.losses)==n-skipped and all(o.isfinite() for o in learn.recorder.losses)
    assert all(o.isfinite().all() for o in learn.model.state_dict().values())
    assert torch.equal(before, after) == (skipped==n)
    return 'trains',[str(o.message) for o in said]

dtypes = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int64, torch.int32, torch.bool, torch.complex64]
grey = dict(jitter=False, bw=False, stats=None)

@given(st.lists(st.integers(1,9), min_size=0, max_size=5), st.sampled_from(dtypes), st.integers(1,4), st.integers(2,5), st.booleans())
@example([3,8,8], torch.float32, 3, 2, True)
def test_any_array(shape, dtype, n_in, bs, labelled):
    "Arrays of any shape and type, for a network with `n_in` channels"
    g = torch.Generator().manual_seed(0)
    x = (torch.rand(6, *shape, generator=g)*(1 if dtype.is_floating_point or dtype.is_complex else 255)).to(dtype)
    res,_ = outcome(lambda: byol_learner(tensor_dls(x, torch.arange(6) if labelled else None, bs=bs), create_byol_model(net(n_in), 8, 4), get_byol_aug_pipelines(8, **grey)))
    fits = len(shape)==3 and shape[0]==n_in and (dtype.is_floating_point or dtype==torch.uint8)
    assert (res=='trains') == fits, (res, tuple(x.shape), dtype, n_in)

@given(st.integers(1,40), st.integers(1,40), st.integers(1,40), st.integers(1,40), st.sampled_from([1,3]))
def test_any_size(h, w, vh, vw, c):
    "Pictures of any size, views of any other, down to one pixel"
    x = torch.rand(4,c,h,w)
    res,_ = outcome(lambda: byol_learner(tensor_dls(x, bs=2), create_byol_model(net(c), 8, 4), get_byol_aug_pipelines((vh,vw), stats=None)))
    assert res=='trains' or 'view' in res or 'size' in res, (res,h,w,vh,vw)

@given(st.lists(st.tuples(st.integers(0,11), st.sampled_from([float('nan'), float('inf'), -float('inf'), 1e30, -1e30, 3e38])), min_size=1, max_size=6),
       st.sampled_from([torch.float32, torch.float64, torch.float16]))
def test_numbers_that_are_none(spots, dtype):
    "Bad pixels anywhere: their batches are skipped or, finite and huge, clipped with a warning"
    x = torch.rand(12,1,8,8).to(dtype)
    for i,v in spots: x[i,0,i%8,(3*i)%8] = v
    res,said = outcome(lambda: byol_learner(tensor_dls(x, bs=4, seed=0), create_byol_model(net(1), 8, 4), get_byol_aug_pipelines(8, **grey)))
    if 'nothing was trained' in res:   # each of the three batches had a bad picture
        assert (~x.float().isfinite()).flatten(1).any(1).sum()>=3
        return
    assert res=='trains'
    if not x.float().isfinite().all(): assert any('not finite' in o for o in said)

@given(st.sampled_from([0,1,2,3,7,16,1000,-1]), st.sampled_from([0,1,2,3,8,17]), st.booleans())
def test_any_number_of_pictures(bs, n, drop_last):
    "Batches larger than the data, of one, of none"
    x = torch.rand(n,1,8,8)
    def dls():
        if bs<1: return tensor_dls(x, bs=bs)
        dl = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=bs, drop_last=drop_last)
        return DataLoaders(dl, dl)
    res,_ = outcome(lambda: byol_learner(dls(), create_byol_model(net(1), 8, 4), get_byol_aug_pipelines(8, **grey)))
    last = n%bs if bs>0 and not drop_last else 0
    fits = bs>1 and (n//bs>0 or last>1) and last!=1
    assert (res=='trains') == fits, (res, bs, n, drop_last)

anything = st.one_of(st.none(), st.integers(-3,300), st.floats(-2,2), st.sampled_from([float('nan'), float('inf'), 'x', '', True, (), (.5,), (0.,1.), (1.,.5), [.1,.2,.3], (None,None)]))
names = 'rotate rotate_deg rotate_p resize_scale resize_ratio jitter_s jitter_p bw_p blur_s blur_p solarize_p flip_p stats size frames'.split()

@settings(max_examples=3*settings.default.max_examples)
@given(st.sampled_from(names), anything)
@example('resize_scale', (1.,.5))
@example('blur_s', 1e-300)
@example('stats', (.5,0.))
@example('size', 1)
def test_any_argument_of_the_views(name, value):
    "A view's argument is refused when the pipeline is made or at the first batch, or it trains"
    kw = dict(size=8, stats=None, solarize_p=.2) | {name:value}
    res,_ = outcome(lambda: byol_learner(tensor_dls(torch.rand(4,3,8,8), bs=2), create_byol_model(net(3), 8, 4), get_byol_aug_pipelines(**kw)))
    assert res=='trains' or name.split('_')[0] in res or 'probability' in res, (res, name, value)

@given(st.sampled_from('m hidden_size projection_size nlayers predictor_size'.split()), anything)
@example('hidden_size', None)
@example('hidden_size', True)
@example('m', 'x')
def test_any_argument_of_the_method(name, value):
    "Momentum, widths, number of layers"
    kw = {name:value}
    def make():
        model = create_byol_model(net(1), **(dict(hidden_size=8, projection_size=4) | {k:v for k,v in kw.items() if k!='m'}))
        return byol_learner(tensor_dls(torch.rand(4,1,8,8), bs=2), model, get_byol_aug_pipelines(8, **grey), m=kw.get('m'))
    res,_ = outcome(make)
    assert res=='trains' or name.split('_')[0] in res or 'momentum' in res or 'hidden_size=' in res, (res, name, value)

# Files

def files():
    "Real pictures, one of each kind, as bytes"
    rng = np.random.default_rng(0)
    x = (np.add.outer(np.arange(20), np.arange(24))*5 + rng.integers(0, 40, (20,24))).clip(0,255).astype(np.uint8)
    rgb,res = np.stack([x, x[::-1], x[:,::-1]], -1),{}
    for name,im,fmt,kw in (('rgb.png', Image.fromarray(rgb), 'PNG', {}), ('grey.png', Image.fromarray(x), 'PNG', {}), ('deep.png', Image.fromarray(x.astype(np.uint16)*257), 'PNG', {}),
                           ('palette.png', Image.fromarray(rgb).quantize(16), 'PNG', {}), ('alpha.png', Image.fromarray(np.dstack([rgb, x])), 'PNG', {}),
                           ('rgb.jpg', Image.fromarray(rgb), 'JPEG', {}), ('progressive.jpg', Image.fromarray(rgb), 'JPEG', dict(progressive=True)),
                           ('cmyk.jpg', Image.fromarray(rgb).convert('CMYK'), 'JPEG', {}), ('p.gif', Image.fromarray(x), 'GIF', {}), ('rgb.tif', Image.fromarray(rgb), 'TIFF', {}),
                           ('rgb.webp', Image.fromarray(rgb), 'WEBP', {}), ('rgb.bmp', Image.fromarray(rgb), 'BMP', {})):
        im.save(f := io.BytesIO(), fmt, **kw); res[name] = f.getvalue()
    return res

FILES = files()

def mutate(data, rng):
    "Flip, cut, insert, repeat or overwrite some bytes"
    data = bytearray(data)
    for _ in range(rng.randint(1,4)):
        i,how = rng.randrange(len(data) or 1),rng.randrange(6)
        if   how==0 and data: data[i] ^= 1<<rng.randrange(8)
        elif how==1: del data[i:]
        elif how==2: del data[i:i+rng.randint(1,20)]
        elif how==3: data[i:i] = rng.randbytes(rng.randint(1,20))
        elif how==4: data[i:i+4] = rng.choice([b'\xff'*4, b'\0'*4, b'\x7f\xff\xff\xff', b'\0\1\0\0'])
        else: data[i:i] = data[i:i+rng.randint(1,40)]
    return bytes(data)

@settings(max_examples=12*settings.default.max_examples)
@given(st.sampled_from(sorted(FILES)), st.integers(0,2**31), st.sampled_from([1,3]), st.sampled_from([None,8,(5,9)]))
def test_any_bytes_are_a_picture_or_an_error_that_names_the_file(tmp_path_factory, name, seed, n_in, size):
    f = tmp_path_factory.getbasetemp()/name
    f.write_bytes(mutate(FILES[name], random.Random(seed)))
    try:
        with warnings.catch_warnings(): warnings.simplefilter('ignore'); x = open_picture(f, n_in, size)
    except Exception as e:
        assert isinstance(e, ValueError) and str(f) in str(e) and '\n' not in str(e), repr(e)
        return
    assert x.dtype==torch.float32 and x.shape[0]==n_in and x.isfinite().all() and 0<=x.min() and x.max()<=1
    if size: assert tuple(x.shape[1:]) == ((size,size) if isinstance(size, int) else size)

@settings(max_examples=10)
@given(st.lists(st.tuples(st.sampled_from(sorted(FILES)), st.integers(0,2**31)), min_size=0, max_size=4))
def test_any_folder_trains_or_names_the_file(tmp_path_factory, spoilt):
    "A folder of good pictures with spoilt ones among them"
    path = tmp_path_factory.mktemp('pics')
    for i in range(6): (path/f'good{i}.png').write_bytes(FILES['rgb.png'])
    for i,(name,seed) in enumerate(spoilt): (path/f'{i}{name}').write_bytes(mutate(FILES[name], random.Random(seed)))
    views = get_byol_aug_pipelines(8, stats=None)
    res,_ = outcome(lambda: byol_learner(image_dls(path, size=8, bs=2, valid=0, workers=0, device='cpu'), create_byol_model(net(3), 8, 4), views))
    assert res=='trains' or any(f'{i}{name}' in res for i,(name,_) in enumerate(spoilt)), res
