"plots: a map of the features shows what it was given, or draws nothing"
import re

import matplotlib; matplotlib.use('Agg')
import matplotlib.pyplot as plt, numpy as np, pytest, torch
import torch.nn.functional as F

from self_supervised.data.demo import digits
from self_supervised.plots import _pca, _spaced, plot_embedding

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
    with pytest.raises(ValueError, match='does not name 4 labels'): names(list('abcd'), ['a','b'])
    plt.close('all')
