"plots: a map of the features shows what it was given, or draws nothing"
import re

import matplotlib; matplotlib.use('Agg')
import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest, torch
import torchvision.transforms.v2 as T
import torch.nn.functional as F

from fasttransform import Pipeline

from self_supervised.augmentations import PerImage
from self_supervised.data.demo import digits
from self_supervised.image_ops import to_picture
from self_supervised.plots import _pca, _spaced, decode_view, draw_shares, plot_embedding, plot_neighbors

X,Y,_ = digits()
PIXELS = X.flatten(1)
NANS = PIXELS[:50].clone()
NANS[3,0] = float('nan')

@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close('all')

def test_a_map_has_a_legend_of_up_to_twenty_classes():
    ax = plot_embedding(PIXELS[:50])
    assert ax.get_legend() is None
    assert plot_embedding(PIXELS[:50], Y[:50], ax=ax, vocab=[f'digit {i}' for i in range(10)]) is ax
    assert [t.get_text() for t in ax.get_legend().get_texts()][:2]==['digit 0','digit 1']
    assert plot_embedding(PIXELS[:50], [f'n{i}' for i in range(50)]).get_legend() is None

def test_thumbnails_may_have_colours_and_are_drawn_once_where_points_are_equal():
    plot_embedding(PIXELS[:50], ['a','b']*25, images=torch.rand(50,3,8,8))
    legend = plot_embedding(PIXELS[:50], [0,None]*25).get_legend()   # some without a label: an error of NumPy
    assert [o.get_text() for o in legend.get_texts()]==['0','None']
    assert len(_spaced(np.zeros((50,2))))==1

@pytest.mark.parametrize('wrong,words', [
    (dict(feats=PIXELS[:1]), 'feats.shape=(1, 64) must be (n,nf) with n of 2 or more'),
    (dict(feats=NANS), 'feats must be finite, and 1 of 50 rows hold NaN'),
    (dict(feats=PIXELS[:50], labels=Y[:49]), 'len(labels)=49 does not match 50 features'),
    (dict(feats=PIXELS[:50], images=X[:40]), 'len(images)=40 does not match 50 features')])
def test_what_cannot_be_mapped_is_refused_and_leaves_no_empty_figure(wrong, words):
    plt.close('all')
    with pytest.raises(ValueError, match=re.escape(words)): plot_embedding(**wrong)
    assert plt.get_fignums()==[]

def test_the_components_are_those_of_an_svd():
    "Whatever their signs"
    points,share = _pca(PIXELS)
    u = F.normalize(PIXELS).double()
    u = u-u.mean(0)
    q = (u@torch.linalg.svd(u, full_matrices=False)[2][:2].T).numpy()
    assert np.allclose(abs(points), abs(q), rtol=0, atol=1e-3)
    assert np.allclose(share, (q**2).sum(0)/(u**2).sum().item(), rtol=0, atol=1e-4)

def test_a_label_has_its_own_name_where_others_do_not_occur():
    "The names moved up: of pictures with labels 0 and 2, the latter had the name of 1"
    def names(labels, vocab):
        ax = plot_embedding(torch.rand(4,3), labels, vocab=vocab)
        return [o.get_text() for o in ax.get_legend().get_texts()]
    assert names(torch.tensor([0,2,2,0]), ['cat','dog','fox'])==['cat','fox']
    assert names([True,True,True,False], ['no','yes'])==['no','yes'] and names([1.,1.,2.,2.], list('abc'))==['b','c']
    assert names([10,20,20,10], ['ten','twenty'])==['ten','twenty'] and names(list('xyyx'), ['X','Y'])==['X','Y']
    with pytest.raises(ValueError, match='does not name 4 labels'): names(list('wxyz'), ['a','b'])
    assert names(list('cddc'), ['b','c','d'])==['c','d']   # names were taken for the first ones of vocab
    assert names(list('cddc'), ['d','c'])==['c','d'] and names(list('azza'), ['a','b'])==['a','z']
    plt.close('all')

@pytest.mark.parametrize('shape', [(3,5,7), (1,5,7), (3,4,5,7)])
def test_bytes_are_drawn_as_they_are(shape):
    "`in_memory` reads bytes, and they were drawn all white"
    x = torch.randint(0, 256, shape, dtype=torch.uint8)
    assert np.allclose(to_picture(x), to_picture(x/255))
    assert np.allclose(plot_neighbors(PIXELS[:9], (255*X[:9]).byte(), [0], k=2)[0,1].images[0].get_array().max(), 1)

def test_frames_follow_labels_by_place():
    "A column of pandas was asked by its index, which may have another order"
    def framed(labels): return [[o.spines['left'].get_visible() for o in row] for row in plot_neighbors(PIXELS[:30], X[:30], range(4), labels=labels)]
    turned = pd.Series(Y[:30].tolist(), index=range(29, -1, -1))
    assert framed(turned)==framed(Y[:30]) and framed(turned.rename(str))==framed(Y[:30])

@pytest.mark.parametrize('factor', [2.**80, 2.**-80])
def test_drawings_do_not_depend_on_the_scale_of_features(factor):
    "Squares of 1e24 are not in float32: all points were one, all cosines 0"
    def cosines(feats): return [o.get_title() for o in plot_neighbors(feats, X[:40], [3], k=5)[0]]
    assert cosines(PIXELS[:40]*factor)==cosines(PIXELS[:40])
    assert np.allclose(_pca(PIXELS[:40]*factor)[0], _pca(PIXELS[:40])[0], atol=1e-5)

def test_views_normalised_by_other_libraries_are_drawn_as_they_were():
    x = torch.rand(4, 3, 8, 8)
    for aug in T.Normalize([.5,.4,.3], [.1,.2,.3]), T.Compose([T.Normalize([.5]*3, [.1]*3)]): torch.testing.assert_close(decode_view(aug, aug(x)), x)
    assert torch.equal(decode_view(torch.flip, x), x)

def test_each_of_two_steps_of_one_name_has_a_bar():
    "The first was lost"
    def mirror(x): return x.flip(-1)
    flip,still = PerImage(mirror, 1.),PerImage(mirror, 0.)
    assert draw_shares(Pipeline([flip,still,flip], split_idx=0), X[:9])==dict(mirror=(1.,1.)) | {'mirror 2':(0.,0.), 'mirror 3':(1.,1.)}
