"Laws of the views of rows that the page of tables does not show"
import pickle

import pandas as pd, pytest, torch
from fastai.tabular.core import Categorify, FillMissing, Normalize, TabularPandas
from fastai.torch_core import TensorBase
from sklearn.datasets import load_diabetes

from self_supervised.core import plain
from self_supervised.data.tables import get_vector_aug_pipelines, get_vector_augs, table_dls

none = dict(noise=0., dropout_p=0., swap_p=0.)

@pytest.fixture(scope='module')
def rows():
    "Standardised rows (442,10)"
    x = torch.tensor(load_diabetes(scaled=False).data, dtype=torch.float32)
    return (x-x.mean(0))/x.std(0)

def drawn(seed, aug, x):
    torch.manual_seed(seed)
    return aug(x)

@pytest.mark.parametrize('kw', [dict(noise=.1), dict(dropout_p=.5)])
def test_equal_rows_get_different_views_and_are_left_alone(rows, kw):
    torch.manual_seed(0)
    same = rows[:1].repeat(32,4)
    before = same.clone()
    view = get_vector_augs(**(none|kw))(same)
    assert len({tuple(o.tolist()) for o in view})==32
    assert torch.equal(same, before)

def test_a_swap_gives_equal_rows_back_and_a_row_alone(rows):
    swap = get_vector_augs(swap_p=1.)
    same = rows[:1].repeat(32,4)
    assert torch.equal(swap(same), same)
    assert torch.equal(swap(rows[:1]), rows[:1])

def test_every_other_row_is_a_source():
    torch.manual_seed(0)
    few = torch.arange(4)[:,None].expand(4,6000)
    for i,view in enumerate(get_vector_augs(swap_p=1.)(few)):
        share = view.bincount(minlength=4)/6000
        assert share[i]==0
        for j in {0,1,2,3}-{i}: assert abs(share[j]-1/3) <= 3*(1/3*2/3/6000)**.5

def test_types_stay(rows):
    typed = plain(drawn(1, get_vector_augs(), TensorBase(rows)))
    torch.testing.assert_close(typed, drawn(1, get_vector_augs(), rows))
    assert get_vector_augs(noise=.1, dropout_p=.1)(rows.bfloat16()).dtype==torch.bfloat16

def test_no_amounts_change_nothing_and_a_pipeline_pickles(rows):
    assert torch.equal(get_vector_augs(**none)(rows), rows)
    again = pickle.loads(pickle.dumps(get_vector_augs()))
    assert torch.equal(drawn(0, again, rows), drawn(0, get_vector_augs(), rows))
    assert (again(rows)!=rows).any()

def test_what_cannot_be_meant_is_named():
    with pytest.raises(ValueError, match='p=1.5 is not a probability'): get_vector_augs(swap_p=1.5)
    with pytest.raises(ValueError, match='noise=-1 must be 0 or more'): get_vector_augs(noise=-1)
    with pytest.raises(ValueError, match=r'Pass rows of a table \(bs,c\)'): get_vector_augs()(torch.rand(2,3,8,8))
    with pytest.raises(ValueError, match=r'noise=\(0, 0.1, 0.2\) has 3 entries for 2 views'): get_vector_aug_pipelines(noise=(0,.1,.2))

def test_several_targets_are_all_labels():
    "The first was taken in silence"
    import pandas as pd
    from fastai.tabular.all import RegressionBlock, TabularPandas
    from self_supervised.data.tables import table_rows
    df = pd.DataFrame(dict(a=[0.,1.,2.], b=[3.,4.,5.], c=[6.,7.,8.]))
    _,y = table_rows(TabularPandas(df, cont_names=['a'], y_names=['b','c'], y_block=RegressionBlock()))
    assert y.tolist()==[[3,6],[4,7],[5,8]]
    assert table_rows(TabularPandas(df, cont_names=['a'], y_names='c', y_block=RegressionBlock()))[1].tolist()==[6,7,8]

def test_columns_of_what_was_missing_need_no_categories():
    "`FillMissing` adds a column of True and False among the categories, which only `Categorify` numbers"
    frame = pd.DataFrame(dict(a=[.5, float('nan')]*10, b=range(20), kind=list('xy')*10))
    def rows(procs, **kwargs): return table_dls(TabularPandas(frame, procs, cont_names=['a','b'], **kwargs), bs=20)
    dls = rows([FillMissing, Normalize])
    assert dls.widths==[1,1,1]
    x, = dls.train.new(shuffle=False).one_batch()
    assert torch.equal(x[:,0], torch.tensor([0.,1.]*10)) and x.isfinite().all()
    assert rows([FillMissing, Categorify, Normalize]).widths==[3,1,1]
    with pytest.raises(ValueError, match="column 'kind' has categories without numbers. Add Categorify to procs"): rows([FillMissing], cat_names=['kind'])
