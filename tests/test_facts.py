"What a checkpoint remembers of data, views and loaders"
from functools import partial
from pathlib import Path

import pytest, torch
from fastai.data.core import Datasets
from fastai.imports import noop
from torch.utils.data import Subset, TensorDataset

from self_supervised.data.arrays import tensor_dls
from self_supervised.facts import as_made, data_facts, described, n_changed
from self_supervised.vision.byol import get_byol_aug_pipelines

X,Y = torch.rand(10,1,2,2),torch.arange(10)

def facts(x=X, y=Y): return data_facts(tensor_dls(x, y, (range(8), range(8,10)), bs=2).train.dataset)

def differing(a, b): return [k for k in a if a[k]!=b[k]]

def test_objects_are_described_without_places_in_memory():
    assert described([1, None, 'x', {'a': Path}])=="(1, None, 'x', (a=Path))"
    crop = get_byol_aug_pipelines(8, resize_scale=(.5,1.))[0].fs[0]
    assert 'scale=(0.5, 1.0)' in described(crop) and ' at 0x' not in described(crop)
    assert described(partial(max, default=1))=='max(args=(), default=1)'

def test_labels_and_contents_of_arrays():
    a,other = facts(),Y.clone()
    other[3] = 9
    assert sorted(a)==['contents','labels'] and len(a['contents'])==8 and data_facts(range(4))=={}
    assert differing(a, facts(y=other))==['labels'] and differing(a, facts(X.flip(0)))==['contents']
    assert n_changed(a['contents'], facts(X.flip(0))['contents'])==8

def test_a_function_that_labels_otherwise():
    def labelled(f): return data_facts(Datasets(['a/b.png','c/d.png'], [[noop], [f]]))
    assert labelled(lambda o: 1)['labels']!=labelled(lambda o: len(o[0])+ord(o[0]))['labels']

def test_another_part():
    data = TensorDataset(X)
    assert data_facts(Subset(data, [1,2]))!=data_facts(Subset(data, [1,3]))

def test_as_made_leaves_out_what_work_changed():
    class Counted:
        def __init__(self, p): self.p,self.seen = p,0
    o = Counted(.5)
    was = as_made(o)
    o.seen = 3
    assert as_made(o)==was=='Counted(p=0.5)'

def test_rows_of_a_data_frame(tmp_path):
    "fastai's `from_df` and `from_csv`: a checkpoint ended with KeyError 0"
    import pandas as pd
    from fastai.vision.all import ImageDataLoaders
    from PIL import Image
    def facts(labels, names=range(12), **kw):
        for i in range(12): Image.new('L', (8,8), 20*i).save(tmp_path/f'{i}.png')
        df = pd.DataFrame(dict(name=[f'{i}.png' for i in names], label=labels), index=range(5, 17))
        return data_facts(ImageDataLoaders.from_df(df, tmp_path, bs=2, num_workers=0, seed=1, **kw).train_ds)
    was = facts(['a','b']*6)
    assert sorted(was)==['contents','labels','names'] and len(was['contents'])==10 and facts(['a','b']*6)==was
    assert differing(was, facts(['b','a']*6))==['labels']
    assert differing(was, facts(['a','b']*6, names=range(11, -1, -1)))==['names','contents']
    assert differing(was, facts(['a','b']*6, fn_col='name', label_col='label'))==[]
