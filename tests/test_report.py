"cli.report: the page names what it could not read, and shows the rest"
import json
import warnings

import matplotlib; matplotlib.use('Agg')
import matplotlib.pyplot as plt
import pytest

from self_supervised.cli.report import write_report
from self_supervised.data.demo import digits
from self_supervised.plots import show_views

HISTORY = 'epoch,train_loss,valid_loss,knn_accuracy,spread,time\n0,3.2,1.3,,0.48,00:02\n1,2.1,1.1,0.71,0.62,00:02\n'
RESULTS = dict(title='Accuracy from 5 labels per class', said=[], rows={
    'raw pixels': dict(linear=dict(mean=.856, std=.021)), 'trained encoder': dict(linear=dict(mean=.936, std=.016), rank=12.)})
SETTINGS = dict(command='byol_pretrain', settings=dict(epochs=3, views=dict(flip_p=0.)), versions=dict(torch='2.15'))

@pytest.fixture
def run(tmp_path):
    "The folder of a run, with a picture"
    (tmp_path/'history.csv').write_text(HISTORY)
    (tmp_path/'results.json').write_text(json.dumps(RESULTS))
    (tmp_path/'settings.json').write_text(json.dumps(SETTINGS))
    x = digits()[0][:2]
    show_views(x, [x])[0,0].figure.savefig(tmp_path/'views.png')
    plt.close('all')
    return tmp_path

BROKEN = {
    'settings.json': (b'{"command": ', b'[]', b'\xff\xfe', b'{"settings": 3}', b''),
    'results.json': (b'{', b'{}', b'null', b'{"title": "t", "rows": {"a": 3}}', b'{"title": "t", "rows": {}, "said": [1]}',
                     b'{"title": "t", "rows": {}, "verdict": 3}', b'{"title": "t", "rows": {}, "started": 3}'),
    'history.csv': (b'epoch,train_loss\n0,\xff\n',)}

@pytest.mark.parametrize('name,content', [(name,o) for name,contents in BROKEN.items() for o in contents])
def test_a_file_that_cannot_be_read_is_named_and_the_rest_is_there(run, name, content):
    (run/name).write_bytes(content)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter('always')
        page = write_report(run).read_text()
    assert f'<code>{name}</code> cannot be read' in page and 'alt="Views"' in page
    assert len(found)==1 and name in str(found[0].message) and '\n' not in str(found[0].message)

def test_what_is_not_there_is_left_out(tmp_path):
    (tmp_path/'empty').mkdir()
    assert '<h1>empty</h1>' in write_report(tmp_path/'empty').read_text()
    with pytest.raises(FileNotFoundError, match='is no folder. Pass one that byol_pretrain wrote'): write_report(tmp_path/'none')
