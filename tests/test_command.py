"The command as a user types it, in a process of its own"
import csv, json, os, re, signal, subprocess, sys, tarfile
from pathlib import Path

import pytest, torch
from fastai.callback.channelslast import ChannelsLast
from fastcore.script import CliError
from matplotlib.offsetbox import AnnotationBbox
from PIL import Image

from self_supervised.cli import pretrain, run_folder
from self_supervised.data import sources
from self_supervised.data.demo import write_mnist_tiny
from self_supervised.cli.pretrain import byol_pretrain
from self_supervised.transfer.encoder_file import load_encoder

COMMAND = Path(sys.executable).with_name('byol_pretrain')       # as pip installs it

def run(*args, cwd):
    return subprocess.run([COMMAND, *map(str, args)], cwd=cwd, capture_output=True, text=True, env=os.environ|dict(MPLBACKEND='Agg'))

FILES = 'checkpoints embedding.png encoder.safetensors history.csv neighbors.png report.html results.json settings.json views.png'.split()

def check_run(folder, epochs, shape):
    own = ['held_out.csv'] if json.loads((folder/'settings.json').read_text())['settings']['path'] else []
    assert sorted(f.name for f in folder.iterdir()) == sorted(FILES+own)   # the digits have a test part of their own
    assert all(Image.open(folder/f).size[0]>300 for f in ('views.png','embedding.png'))
    rows = list(csv.DictReader(open(folder/'history.csv')))
    assert len(rows)==epochs and all(0 <= float(r['train_loss']) <= 8 for r in rows)
    assert json.loads((folder/'settings.json').read_text())['versions']['torch'] == torch.__version__
    assert load_encoder(folder/'encoder.safetensors')(torch.rand(2, *shape)).ndim == 2

def test_digits(tmp_path):
    res = run('--epochs', 2, '--out', 'here', cwd=tmp_path)
    assert res.returncode==0, res.stderr
    check_run(tmp_path/'here', 2, (1,8,8))
    for words in ('train_loss', 'raw pixels', 'untrained encoder', 'trained encoder', '±', 'linear', 'kNN', "load_encoder('here/encoder.safetensors')"): assert words in res.stdout, words
    # into a file or a pipe: the rows of the table, and neither bar nor control character
    assert re.findall(r'(?m)^(epoch|\d+)  .*\d\d:\d\d$|^(epoch)  .*time$', res.stdout)==[('','epoch'),('0',''),('1','')]
    assert not re.search(r'[\x00-\x09\x0b-\x1f█]', res.stdout)

def test_own_pictures_without_labels(tmp_path):
    write_mnist_tiny(tmp_path/'pics')
    res = run('pics', '--arch', 'tiny_resnet', '--size', 16, '--n-in', 1, '--bs', 32, '--epochs', 1, '--workers', 0, '--hidden-size', 32, '--projection-size', 16, '--unlabelled', cwd=tmp_path)
    assert res.returncode==0, res.stderr
    check_run(tmp_path/'runs'/'byol', 1, (1,16,16))
    assert 'No labels' in res.stdout and 'effective rank' in res.stdout

def test_own_pictures_with_labels(tmp_path):
    write_mnist_tiny(tmp_path/'pics')
    res = run('pics', '--arch', 'mobilenetv3_small_050', '--size', 32, '--bs', 32, '--epochs', 1, '--workers', 1, '--hidden-size', 32, '--projection-size', 16, cwd=tmp_path)
    assert res.returncode==0, res.stderr
    check_run(tmp_path/'runs'/'byol', 1, (3,32,32))
    assert 'held-out pictures with 5 labels per class' in res.stdout
    # what others than `Health` warned of is in the report, and each a line on stderr
    said = [message for epoch,message in json.loads((tmp_path/'runs/byol/results.json').read_text())['said'] if epoch is None]
    assert any('--bs 128' in o and '--norm group' in o for o in said) and all(f'byol_pretrain: {o}\n' in res.stderr for o in said), (said, res.stderr)
    assert 'warnings.warn' not in res.stderr and 'UserWarning' not in res.stderr
    assert said[0] in (tmp_path/'runs/byol/report.html').read_text()

def test_a_bad_file_does_not_end_the_run(tmp_path):
    write_mnist_tiny(tmp_path/'pics')
    (tmp_path/'pics'/'train'/'3'/'broken.png').write_bytes(b'no picture')
    res = run('pics', '--arch', 'tiny_resnet', '--size', 16, '--n-in', 1, '--bs', 32, '--epochs', 1, '--workers', 0, '--hidden-size', 32, '--projection-size', 16, cwd=tmp_path)
    assert res.returncode==0, res.stderr
    out = tmp_path/'runs'/'byol'
    assert res.stdout.count('1 of 363 pictures cannot be read')==1 and [r[0] for r in csv.reader(open(out/'skipped.csv'))]==['pics/train/3/broken.png']
    (out/'skipped.csv').unlink()
    check_run(out, 1, (1,16,16))

SMALL = dict(arch='tiny_resnet', size=16, n_in=1, bs=32, epochs=1, workers=0, hidden_size=32, projection_size=16)

def write_tars(folder):
    "The pictures of `write_mnist_tiny` in two shards"
    files = sorted(write_mnist_tiny(folder/'pics').rglob('*.png'))
    (folder/'tars').mkdir()
    for name,some in (('a',files[::2]), ('b',files[1::2])):
        with tarfile.open(folder/f'tars/{name}.tar', 'w') as t:
            for f in some: t.add(f, f.relative_to(folder/'pics'))

@pytest.mark.parametrize('source', ['tars/a.tar','tars',['tars/a.tar','tars/b.tar']], ids=['tar','folder','list'])
def test_tars(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    write_tars(tmp_path)
    learn,_,out = pretrain.pretrain(source, progress=False, **SMALL)
    assert [len(o.dataset) for o in learn.dls]==([145,36] if source=='tars/a.tar' else [290,72])
    check_run(out, 1, (1,16,16))
    assert 'No labels found (a tar' in json.loads((out/'results.json').read_text())['title']
    assert run_folder.recorded_settings(out, {}, path=source)['path']==source          # and so it can be resumed

def test_the_folder_is_walked_once_and_the_map_has_pictures(tmp_path, monkeypatch):
    write_mnist_tiny(tmp_path/'pics')
    walks,walk = [],sources._walk
    monkeypatch.setattr(sources, '_walk', lambda path: walks.append(path) or walk(path))
    thumbs,plot = [],run_folder.plot_embedding
    def kept(*args, **kwargs):
        ax = plot(*args, **kwargs)
        thumbs.extend(o for o in ax.artists if isinstance(o, AnnotationBbox))
        return ax
    monkeypatch.setattr(run_folder, 'plot_embedding', kept)
    pretrain.pretrain(tmp_path/'pics', tmp_path/'out', progress=False, **SMALL)
    assert walks==[tmp_path/'pics'] and len(thumbs)>10

def losses(folder): return [r['train_loss'] for r in csv.DictReader(open(folder/'history.csv'))]

@pytest.mark.parametrize('bf16,progress', [(False,False), (True,True)])
def test_goes_on_with_the_settings_it_has(tmp_path, monkeypatch, bf16, progress):
    "Stopped by SIGTERM in a process of its own, at a step, and resumed: the log and the encoder are those of a run that was not"
    monkeypatch.chdir(tmp_path)
    kw = dict(epochs=2, hidden_size=64, seed=3, bf16=bf16, progress=progress, views=dict(rotate_deg=10))
    pretrain.pretrain(out='whole', **kw)
    def stop(self):
        if self.training and self.train_iter==12: signal.raise_signal(signal.SIGTERM)
    pid = os.fork()
    if not pid:
        ChannelsLast.after_batch = stop   # in this process only
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        pretrain.pretrain(out='stopped', **kw)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])==-signal.SIGTERM and not Path('stopped/encoder.safetensors').exists()
    for wrong,word in [(dict(epochs=3), 'epochs=2'), (dict(seed=1), 'seed=3'), (dict(no_flip=True, out='nowhere'), 'holds no run')]:
        with pytest.raises(CliError, match=word): byol_pretrain(**dict(out='stopped', resume=True) | wrong)
    pretrain.pretrain(out='stopped', resume=True, progress=progress)
    assert losses(tmp_path/'stopped')==losses(tmp_path/'whole')
    a,b = (load_encoder(f'{o}/encoder.safetensors').state_dict() for o in ('whole','stopped'))
    assert all(torch.equal(a[k], b[k]) for k in a)

def test_help(tmp_path):
    res = run('--help', cwd=tmp_path)
    assert res.returncode==0
    for option in 'arch size bs epochs lr workers seed out'.split(): assert f'--{option}' in res.stdout

def test_one_line_and_an_exit_code_for_what_is_wrong(tmp_path):
    res = run('nowhere', cwd=tmp_path)
    assert res.returncode==1 and 'Traceback' not in res.stderr
    assert res.stderr.strip().splitlines() == ["byol_pretrain: path='nowhere' is not an existing folder. Pass a folder with pictures in it."]
    assert not list(tmp_path.iterdir())     # said before a folder is made

@pytest.mark.parametrize('kwargs,words', [
    (dict(path='empty'), ['empty', '.png']), (dict(path='pics/train/3/103.png'), ['103.png', '1 picture', 'Pass 4 or more']),
    (dict(path='pics', arch='resnet81'), ['resnet81', 'resnet18']),
    (dict(path='pics', bs=5000), ['5000', 'to train on']),
    (dict(path='pics', n_in=2), ['2', 'grey']),
    (dict(m=1.5), ['1.5', '[0,1]']),
    (dict(epochs=0), ['epochs=0']),
    (dict(path='broken', arch='tiny_resnet', size=16, n_in=1, bs=32, epochs=1), ['broken', 'max_bad', '.png']),
])
def test_one_line_for_what_is_wrong(tmp_path, monkeypatch, kwargs, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'empty').mkdir()
    for path in {'pics','broken'} & {str(o).split('/')[0] for o in kwargs.values()}: write_mnist_tiny(path)
    if kwargs.get('path')=='broken':
        for i in range(50): Path(f'broken/train/3/broken{i}.png').write_bytes(b'no picture')
    with pytest.raises(CliError) as e: byol_pretrain(**kwargs, workers=0)
    message = str(e.value)
    assert message.startswith('byol_pretrain: ') and '\n' not in message and all(w in message for w in words), message

def test_a_second_run_says_where_it_goes_and_resume_does_not_take_the_wrong_one(tmp_path, capsys):
    for name,done in (('byol', True), ('byol-2', False)):
        (tmp_path/name).mkdir()
        (tmp_path/name/'settings.json').write_text('{"settings": {"views": {}}}')
        if done: (tmp_path/name/'results.json').touch()
    assert run_folder.free_folder(tmp_path/'byol')==tmp_path/'byol-3'
    assert capsys.readouterr().out==f"{tmp_path/'byol'} holds a run already: this one goes to {tmp_path/'byol-3'}\n"
    with pytest.raises(ValueError, match='is finished, and .*byol-2 is not. Pass --out .*byol-2'): run_folder.recorded_settings(tmp_path/'byol', {})
    assert run_folder.recorded_settings(tmp_path/'byol-2', {})=={'views': {}}

def test_a_resume_of_another_path_names_the_run_of_that_path(tmp_path):
    "`byol_pretrain photos` went to the next free folder; `byol_pretrain photos --resume` looks into the first"
    always = dict.fromkeys(('seed','workers','pretrained','unlabelled','bf16'))
    for name,path in (('byol', None), ('byol-2', 'photos'), ('byol-3', 'stamps')):
        (tmp_path/name).mkdir()
        (tmp_path/name/'settings.json').write_text(json.dumps(dict(settings=dict(always, views={}, path=path))))
        (tmp_path/name/'results.json').touch()
    for path,fix in (('photos', f"Pass --out {tmp_path/'byol-2'}, a run of that path"), ('fonts', 'Leave path out')):
        with pytest.raises(ValueError, match=f'path={path!r} differs .*{fix}'): run_folder.recorded_settings(tmp_path/'byol', {}, **always|dict(path=path))

# K5: contradictions, empty texts, and the advice of an interrupt

@pytest.mark.parametrize('kwargs, words', [
    (dict(bf16=True, no_bf16=True), 'no_bf16 contradicts bf16'), (dict(fast=True, no_bf16=True), 'no_bf16 contradicts fast'),
    (dict(unlabelled=True, labels='l.csv', path=['p']), 'and unlabelled contradict each other'), (dict(labels='l.csv'), 'no path was passed'),
    (dict(holdout='valid'), 'no path was passed'), (dict(out=''), "out='' is an empty text"), (dict(path=['']), "path='' is an empty text")])
def test_what_contradicts_or_names_nothing_is_refused(kwargs, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CliError) as e: byol_pretrain(**kwargs)
    assert words in str(e.value) and '\n' not in str(e.value) and not list(tmp_path.iterdir())

def test_after_an_interrupt_the_run_that_was_stopped_is_named(tmp_path, monkeypatch):
    "It may lie in another folder than the one that was asked for, whose name has blanks"
    from self_supervised.cli import pretrain as room
    monkeypatch.chdir(tmp_path)
    (tmp_path/'two runs').mkdir()
    (tmp_path/'two runs/settings.json').write_text('{}')
    def stop(folder): raise KeyboardInterrupt
    monkeypatch.setattr(room, 'fit_run', lambda *_: stop(0))
    kw = dict(arch='tiny_resnet', size=8, bs=128, epochs=1, hidden_size=16, projection_size=8, out='two runs')
    with pytest.raises(CliError, match="go on with `byol_pretrain --resume --out 'two runs-2'`"): room.byol_pretrain(**kw)
    monkeypatch.setattr(room, 'check_settings', lambda _: stop(0))
    with pytest.raises(CliError, match='stopped before the run began'): room.byol_pretrain(**kw)
