"The same eight pictures from eight sources (data.sources), as data.reading reads them"
import io
import json
import pickle
import tarfile

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.transforms import parent_label
from PIL import Image

from self_supervised.data.reading import BadPicture, open_picture
from self_supervised.data.sources import picture_files, picture_items

@pytest.fixture
def files(tmp_path):
    "Eight pictures in four folders"
    for i in range(8):
        f = tmp_path/'deep'/'abcd'[i%4]/f'{i}.png'
        f.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4,4), 30*i, np.uint8)).save(f)
    return picture_files(tmp_path/'deep')

@pytest.fixture
def shards(tmp_path, files):
    "The same in two shards, with labels beside them"
    (tmp_path/'shards').mkdir()
    paths = [tmp_path/'shards'/f'{k}.tar' for k in range(2)]
    for k,path in enumerate(paths):
        with tarfile.open(path, 'w') as t:
            for f in files[k::2]:
                t.add(f, f'{f.parent.name}/{f.name}')
                for ext,text in dict(cls=f.parent.name, json=json.dumps(dict(letter=f.parent.name))).items():
                    info = tarfile.TarInfo(f'{f.parent.name}/{f.stem}.{ext}')
                    info.size = len(text)
                    t.addfile(info, io.BytesIO(text.encode()))
    return paths

@pytest.fixture
def sources(tmp_path, files, shards):
    df = pd.DataFrame(dict(file=[str(f) for f in files], letter=[f.parent.name for f in files]))
    rows = [dict(image=dict(bytes=f.read_bytes(), path=None), letter=f.parent.name) for f in files]
    return {'folder':           picture_items(tmp_path/'deep'),
            'list of paths':    picture_items(files),
            'PIL images':       picture_items([Image.open(f) for f in files]),
            'data frame':       picture_items(df, 'file', 'letter'),
            'bytes in a frame': picture_items(pd.DataFrame(rows), 'image', 'letter'),
            'rows':             picture_items(rows, 'image', 'letter'),
            'tar':              picture_items(shards[0], label='cls') + picture_items(shards[1], label='json.letter'),
            'folder of tars':   picture_items(tmp_path/'shards')}

def test_the_same_pixels(sources):
    means = {k: sorted(open_picture(o, 1).mean().item() for o in items) for k,items in sources.items()}
    for k,v in means.items(): assert v==means['folder'], k

def test_labels(sources, files):
    assert [o.label for o in sources['data frame']]==[f.parent.name for f in files]
    # fastai's functions of a path work on a name
    assert [parent_label(o) for o in sources['tar']]==[o.label for o in sources['tar']]

def test_items_travel_to_workers(sources):
    "However these are started"
    for items in sources.values():
        assert torch.equal(open_picture(pickle.loads(pickle.dumps(items[3])), 1), open_picture(items[3], 1))

def test_a_shard_cut_off_is_noticed_at_the_picture_that_is_missing(shards):
    items = picture_items(shards[0])
    shards[0].write_bytes(shards[0].read_bytes()[:1000])
    with pytest.raises(BadPicture, match='the shard ends after'): open_picture(items[-1])
