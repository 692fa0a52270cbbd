"The commands: one way to say how pictures are read, what was held out is known later, an error or a warning is one line"
import csv, json, os, shutil, signal, subprocess, sys, tarfile, unicodedata, warnings
from functools import partial
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt, numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.data.transforms import parent_label
from fastcore.basics import AttrDict
from fastcore.script import CliError
from PIL import Image

from self_supervised.cli import check, embed, evaluate, finetune, options, pictures, predict, pretrain, run_folder
from self_supervised.cli.terminal import one_line_errors
from self_supervised.core import literal, write_atomic
from self_supervised.data.demo import write_mnist_tiny
from self_supervised.data.images import image_dls
from self_supervised.data.reading import open_picture
from self_supervised.layers import create_encoder
from self_supervised.plots import plot_embedding
from self_supervised.transfer.encoder_file import encoder_info, save_encoder
from self_supervised.transfer.weights import load_weights

ROOT = Path(__file__).parents[1]
SMALL = dict(arch='tiny_resnet', size=16, n_in=1, bs=32, epochs=1, workers=0, hidden_size=32, projection_size=16, progress=False)

def run(name, *args, cwd):
    "A command in a process of its own, from a script like that of pip"
    script = Path(cwd)/f'bin/{name}'
    script.parent.mkdir(exist_ok=True)
    room = name.removeprefix('byol_')
    script.write_text(f"import sys\nfrom self_supervised.cli.{room} import {name}\nif __name__ == '__main__': sys.exit({name}())\n")
    env = os.environ | dict(MPLBACKEND='Agg', PYTHONPATH=str(ROOT))
    return subprocess.run([sys.executable, script, *map(str, args)], cwd=cwd, capture_output=True, text=True, env=env)

@pytest.fixture
def here(tmp_path, monkeypatch):
    "Digits, in a folder that is the working directory"
    monkeypatch.chdir(tmp_path)
    write_mnist_tiny('pics')
    return tmp_path

@pytest.fixture
def encoder(here):
    torch.manual_seed(0)
    return save_encoder(create_encoder('tiny_resnet', pretrained=False, n_in=1), 'encoder.safetensors', size=8, stats=None)

def files_of(folder): return sorted(str(f) for f in Path(folder).rglob('*.png'))

# From Python

WRONG = ['ten', [1,2], {}, object(), float('nan'), 1+1j, b'x']
NUMBERS = dict(pretrain='seed workers minutes n_in bs epochs lr wd m hidden_size projection_size full_scale max_pixels max_bad', finetune='labels_per_class flip_p workers seed epochs patience part bs lr slower scratch_lr wd',
               embed='bs workers', evaluate='n draws bs workers seed seeds')
CALLS = dict(pretrain=pretrain.pretrain, finetune=finetune.finetune, embed=embed.embed_pictures, evaluate=evaluate.evaluate_pictures)

@pytest.mark.parametrize('name', CALLS)
def test_a_setting_of_another_type_is_refused_in_one_line(name, encoder):
    "Also those that come by `**settings`, and before a folder is made"
    given = (dict(path='pics', **SMALL), dict(encoder=encoder, path='pics'), dict(encoder=encoder, source='pics'), dict(encoder=encoder, path='pics'))[list(CALLS).index(name)]
    for setting in NUMBERS[name].split():
        for v in WRONG:
            with pytest.raises(ValueError) as e: CALLS[name](**given | {setting: v})
            message = str(e.value.args[0]).split('\n\t')[-1]
            assert message.startswith(f'{setting}=') and 'Pass' in message and '\n' not in message, message
    for v in (*WRONG[1:4], 3.5):
        for setting in ('norm','labels','arch','pool_type') if name=='pretrain' else ('labels',) if name in ('finetune','evaluate') else ():
            with pytest.raises(ValueError, match=f'{setting}=.*Pass'): CALLS[name](**given | {setting: v})
    assert not Path('runs').exists()

def test_paths_are_taken_where_text_is(encoder, monkeypatch):
    "Of labels, and of a part that is held out; settings are recorded as text"
    s = pretrain.complete_settings('pics', None, 0, False, False, None, None, labels=Path('l.csv'), holdout=Path('h.txt'), m=lambda pct: .9)
    assert (s.labels,s.holdout)==('l.csv','h.txt') and callable(s.m)
    for f in (finetune.finetune, evaluate.evaluate_pictures):
        with pytest.raises((ValueError,OSError)) as e: f(encoder, 'pics', valid=Path('nowhere'))
        assert 'nowhere' in str(e.value)

# The command line

COMMANDS = dict(byol_pretrain=pretrain.byol_pretrain, byol_embed=embed.byol_embed, byol_evaluate=evaluate.byol_evaluate, byol_check=check.byol_check, byol_predict=predict.byol_predict)

@pytest.mark.parametrize('name', COMMANDS)
def test_every_command_takes_the_options_of_reading(name):
    p = options.command_parser(COMMANDS[name])
    for o in 'ground full_scale max_pixels reader column folder suffixes max_bad version'.split(): assert f'--{o}' in p.names
    assert all('-' not in o.removeprefix('--') for o in p.names)    # spelled as in Python and in messages
    assert '(default: None)' not in p.format_help()

@pytest.mark.parametrize('name', COMMANDS)
def test_version(name, capsys):
    import self_supervised
    with pytest.raises(SystemExit) as e: options.command_parser(COMMANDS[name]).read(['--version'])
    assert not e.value.code and capsys.readouterr().out==f'self_supervised {self_supervised.__version__}\n'

@pytest.mark.parametrize('words,name,found', [(['pics','--out=~/x'],'out','/h/x'), (['pics','--out','~/x'],'out','/h/x'), (['pics','--init=~/a~b'],'init','/h/a~b'),
                                              (['~/pics'],'path',['/h/pics']), (['--','~/pics'],'path',['/h/pics']), (['a~','--out=./~'],'out','./~'), (['a~'],'path',['a~'])])
def test_a_home_that_the_shell_left_to_the_command(monkeypatch, words, name, found):
    "Shells leave the ~ in --out=~/x as it is, and a folder of that name was made"
    monkeypatch.setenv('HOME', '/h')
    assert parse(*words)[name]==found

def parse(*words): return options.command_parser(pretrain.byol_pretrain, ['path']).read(list(words))

@pytest.mark.parametrize('spelled', ['--hidden-size','--hidden_size'])
def test_both_spellings(spelled):
    assert parse(spelled, '7')==parse(f'{spelled}=7') and parse(spelled, '7')['hidden_size']==7
    assert parse('a-b_c', '--no-flip', 'd')['path']==['a-b_c','d'] and parse('--out', 'x-y')['out']=='x-y'

@pytest.mark.parametrize('words,said', [
    (['--proj','3'], '--proj is no option'), (['--hidden-sise','3'], '--hidden_size is'), (['--resum'], '--resume'),
    (['--bs','x'], "argument --bs: invalid int value: 'x'"), (['--bs'], 'expected one argument')])
def test_a_wrong_option_is_one_line(words, said, capsys):
    "An abbreviation is none: it would mean another option as soon as there is a second one that begins like it"
    with pytest.raises(SystemExit) as e: parse(*words)
    err = capsys.readouterr().err
    assert e.value.code==2 and err.count('\n')==1 and err.startswith('byol_pretrain: ') and said in err and '--help' in err, err

def test_options_are_not_forgotten_between_the_pictures():
    p = options.command_parser(embed.byol_embed)
    assert p.read(['e','a','--out','f.npz','b'])==p.read(['--out','f.npz','e','a','b'])==p.read(['e','--out=f.npz','a','b'])

@pytest.mark.parametrize('name,near', [('foo', 'bs'), ('hiden_size', 'Pass hidden_size.'), ('worker', 'workers'), ('max_bd', 'max_bad')])
def test_pretrain_refuses_unknown_settings(name, near, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f'{name}=3 is no setting') as e: pretrain.pretrain(**{name: 3})
    assert near in str(e.value) and not os.listdir()

# How pictures are read

def my_reader(path): return np.load(path)/7 if str(path).endswith('.npy') else Image.open(path)

def test_evaluation_sees_pictures_as_training_did(here, monkeypatch):
    "Transparent pictures on black: embedded so without being told; a ground of your own comes first"
    Path('clear').mkdir()
    for i in range(40): Image.fromarray(np.random.default_rng(i).integers(0, 255, (20,20,2), np.uint8), 'LA').save(f'clear/{i:02}.png')
    _,_,out = pretrain.pretrain('clear', 'out', ground='black', max_bad=.5, **SMALL)
    assert encoder_info(out/'encoder.safetensors')['reading']==dict(ground='black')
    settings = json.loads((out/'settings.json').read_text())['settings']
    assert (settings['ground'],settings['max_bad'])==('black',.5)
    net = embed.load_encoder(out/'encoder.safetensors')
    def features(ground):
        x = torch.stack([open_picture(f, 1, 16, ground=ground).as_subclass(torch.Tensor) for f in files_of('clear')])
        return embed.embed(net, x)[0]
    assert not torch.allclose(features('black'), features('white'), atol=1e-3)
    for asked,ground in (({},'black'), (dict(ground='white'),'white')):
        names,feats,bad = embed.embed_pictures(out, 'clear', workers=0, **asked)
        torch.testing.assert_close(feats, features(ground))
        assert names==files_of('clear') and not bad

def test_a_reader_is_named_and_never_loaded_because_a_file_names_it(here, monkeypatch):
    Path('mine.py').write_text('import numpy as np\ndef read(f): return np.load(f)\n')
    monkeypatch.syspath_prepend(here)
    Path('bands').mkdir()
    for i in range(40): np.save(f'bands/{i}.npy', np.random.default_rng(i).random((5,20,20), np.float32))
    how = SMALL | dict(n_in=5)
    _,_,out = pretrain.pretrain('bands', 'out', reader='mine:read', **how)
    names,feats,_ = embed.embed_pictures(out, ['bands/3.npy'], workers=0, reader='mine:read')
    assert names==['bands/3.npy'] and feats.isfinite().all()
    with pytest.raises(CliError, match="was trained on pictures that reader='mine:read' read. Pass that reader"):
        embed.byol_embed(str(out), 'bands', workers=0)
    with pytest.raises(CliError, match="'mine:nothing' cannot be imported"): check.byol_check('bands', reader='mine:nothing')
    with pytest.raises(CliError, match='out has no picture|has no picture'): check.byol_check('bands')
    check.byol_check('bands', reader='mine:read', n_in=5, workers=0)
    (out/'results.json').unlink()
    with pytest.raises(ValueError, match="reader='mine:read'"): pretrain.pretrain(out=out, resume=True, progress=False)

def test_a_file_cannot_make_others_read_all(here, encoder):
    save_encoder(embed.load_encoder(encoder), 'odd.safetensors', size=8, stats=None, reading=dict(max_pixels=10**12))
    with pytest.raises(ValueError, match='records reading='): embed.embed_pictures('odd.safetensors', 'pics', workers=0)

def test_full_scale_max_pixels_and_max_bad_through_the_commands(here, encoder, capsys):
    Path('wide').mkdir()
    for i in range(4): Image.fromarray(np.full((20,20), 4000, np.uint16)).save(f'wide/{i}.png')
    check.byol_check('wide', n_in=1, workers=0, full_scale=4095.)
    with pytest.raises(CliError, match='4 of 4 pictures'): check.byol_check('wide', n_in=1, workers=0, max_pixels=100)
    Path('wide/4.png').write_bytes(b'no picture')
    check.byol_check('wide', n_in=1, workers=0, max_bad=.3)
    assert '1 of 5 pictures cannot be read' in capsys.readouterr().out
    with pytest.raises(CliError, match='max_bad=0.1 allows'): embed.byol_embed(str(encoder), 'wide', workers=0, max_bad=.1)
    embed.byol_embed(str(encoder), ['wide'], workers=0, size='8,12', full_scale=4095.)
    assert 'left out wide/4.png: no kind of picture' in capsys.readouterr().err

def test_height_and_width(here):
    _,_,out = pretrain.pretrain('pics', 'out', **SMALL | dict(size='16,24'))
    assert encoder_info(out/'encoder.safetensors')['size']==[16,24] and Image.open(out/'views.png')
    for asked in ('16,24',(16,24)): assert run_folder.recorded_settings(out, {}, size=pretrain.parse_size(asked))['size']==[16,24]
    res = evaluate.evaluate_pictures(out, 'pics', draws=2, workers=0)
    assert 'Accuracy on 72' in res['title']

# What may be embedded

def test_what_byol_embed_takes(here, encoder):
    all_files = files_of('pics')
    some = files_of('pics/valid/3')
    Path('names.txt').write_text('\n'.join(some))
    Path('table.csv').write_text('\n'.join(['file,kind', *(f'{o},x' for o in some)]))
    for source,names in [(some[0],some[:1]), ([some[0]],some[:1]), (some,some), ('names.txt',some), ('pics',all_files), ('pics/valid/3/*.png',some),
                         (['pics/valid/3','pics/valid/7'],files_of('pics/valid')), (['pics/valid/3/*.png',*files_of('pics/valid/7')],files_of('pics/valid'))]:
        assert embed.embed_pictures(encoder, source, workers=0)[0]==names, source
    assert embed.embed_pictures(encoder, 'table.csv', workers=0, column='file')[0]==[f'./{o}' for o in some]

@pytest.mark.parametrize('source,said', [
    ('cat.jpg', "path='cat.jpg' is not an existing file or folder"),
    ('nowhere', "path='nowhere' is not an existing folder"),
    ('x/*.jpg', "path='x/*.jpg' fits no picture"),
    ('notes.md', "path='notes.md' is no picture, and no tar, csv or text file"),
    ('empty.txt', "path='empty.txt' has no line"),
    ('broken.png', "picture='broken.png' cannot be read (no kind of picture that PIL knows)"),
    ('shard.tar', "source='shard.tar' is not an uncompressed tar"),
    ('empty', "path='empty' has no picture in it or below"),
    ('table.csv', 'column=None must be one of'),
])
def test_what_it_does_not_take_is_one_line_with_its_cause(here, encoder, source, said):
    for name in ('notes.md','empty.txt','broken.png','shard.tar'): Path(name).write_text('' if name=='empty.txt' else 'text')
    Path('empty').mkdir()
    Path('table.csv').write_text('a,b\nx,y\n')
    with pytest.raises(CliError) as e: embed.byol_embed(str(encoder), [source], workers=0)
    assert str(e.value).startswith(f'byol_embed: {said}') and '\n' not in str(e.value) and not Path('features.npz').exists()

def test_an_encoder_that_is_none_is_named(here, encoder):
    for wrong,said in (('pics', "'pics' is a folder without encoder.safetensors"), ('nowhere', "'nowhere' is not a file"), (files_of('pics')[0], 'is not a whole safetensors file')):
        with pytest.raises(CliError, match=said): embed.byol_embed(wrong, 'pics', workers=0)

# Names

def test_names_cannot_reach_a_terminal_or_a_spreadsheet(here, encoder, capsys):
    bad = 'pics/\x1b[31mred\nline.png'
    Path(bad).write_bytes(b'no picture')
    embed.byol_embed(str(encoder), 'pics', workers=0)
    with pytest.raises(CliError): check.byol_check('pics', n_in=1, workers=0, out='bad.csv')
    with pytest.raises(CliError) as e: embed.byol_embed(str(encoder), bad, workers=0)
    said = ''.join(capsys.readouterr())+str(e.value)
    assert '\x1b' not in said and r'\x1b[31mred\nline.png' in said
    assert sum('left out' in o for o in said.splitlines())==1
    Path('=formula').mkdir()
    for i,f in enumerate(files_of('pics/valid/3')+files_of('pics/valid/7')): os.link(f, f'=formula/{i}.png')
    s = pretrain.AttrDict(path='.', unlabelled=True, seed=42, size=16, n_in=1, workers=0, holdout='=formula')
    pictures.write_held_out(here, s, pictures.folder_dls(s, pictures.run_pictures(s), 32))
    cells = [row[0] for row in csv.reader(open('held_out.csv'))]
    assert len(cells)>100 and all(o.startswith("'=formula") for o in cells)
    assert all(o.startswith('=formula/') for o in pictures.read_held_out(here))
    names = pictures.read_held_out(here)
    Path('held_out.csv').write_text(Path('held_out.csv').read_text(), encoding='utf-8-sig')   # as a spreadsheet writes it
    assert pictures.read_held_out(here)==names

@pytest.mark.parametrize('name', ['$x_$', '_hidden', 'a$b', '\x1b[31m\n', '$$'])
def test_names_in_figures(name):
    ax = plot_embedding(torch.randn(20, 4), torch.arange(20)%2, vocab=[name,'other'])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        ax.figure.savefig(os.devnull, format='png')
    assert [t.get_text() for t in ax.get_legend().get_texts()]==[literal(name),'other']
    plt.close(ax.figure)

# What was held out

def test_classes_called_as_mathematics_end_no_run_and_figures_are_closed(here):
    for part in ('train','valid'): Path(f'pics/{part}/3').rename(f'pics/{part}/$x_$')
    before = plt.get_fignums()
    _,_,out = pretrain.pretrain('pics', 'out', **SMALL)
    assert (out/'embedding.png').is_file() and (out/'report.html').is_file() and plt.get_fignums()==before

@pytest.mark.parametrize('wrong', [dict(arch='resnet81'), dict(holdout='nowhere'), dict(bs=5000), dict(path='none'), dict(labels='none.csv'), dict(m=1.5)])
def test_a_start_that_failed_leaves_no_folder(here, wrong):
    with pytest.raises((ValueError,RuntimeError)): pretrain.pretrain(**dict(path='pics', out='a/b') | SMALL | wrong)
    assert not Path('a').exists()

@pytest.fixture(scope='module')
def judged(tmp_path_factory):
    "A run on digits with a third folder of three pictures, and an unreadable one"
    home,d = os.getcwd(),tmp_path_factory.mktemp('run')
    os.chdir(d)
    write_mnist_tiny('pics')
    Path('pics/train/rare').mkdir()
    for i,f in enumerate(files_of('pics/train/3')[:3]): os.link(f, f'pics/train/rare/{i}.png')
    Path('pics/train/3/broken.png').write_bytes(b'no picture')
    try: _,feats,_ = pretrain.pretrain('pics', 'out', **SMALL)
    finally: os.chdir(home)
    return d,feats

def test_labels_do_not_vanish_for_a_small_folder(judged):
    d,feats = judged
    x,y = feats['trained encoder'][1]
    res = json.loads((d/'out/results.json').read_text())
    assert set(y.tolist())=={0,1} and 'with 5 labels per class' in res['title']
    held = pictures.read_held_out(d/'out')
    assert not any('rare' in o for o in held) and len(held) in (len(x),len(x)+1)

def test_small_folders_are_named(here, capsys):
    items = [f'{c}/{i}.png' for c,n in dict(a=12, b=12, c=9).items() for i in range(n)]
    s = pretrain.AttrDict(path='.', unlabelled=False, seed=42)
    split = pictures.split_pictures(s, pictures.L(map(Path, items)))
    assert split.labels==['a']*12+['b']*12+[None]*9 and max(split.held)<24
    assert capsys.readouterr().out=="9 pictures of 1 label ('c') are trained on and left out of judging: a label needs 10\n"

def test_the_usual_split_is_that_of_image_dls(here):
    s = pretrain.AttrDict(path='pics', unlabelled=False, seed=7, size=28, n_in=1, workers=0)
    dls,ref = pictures.folder_dls(s, pictures.run_pictures(s), 32),image_dls('pics', 28, n_in=1, valid=.2, bs=32, seed=7, workers=0)
    assert list(dls.valid_ds.items)==list(ref.valid_ds.items) and list(dls.train_ds.items)==list(ref.train_ds.items)
    assert torch.equal(dls.one_batch()[0], ref.one_batch()[0])

@pytest.mark.parametrize('encoder', ['out','out/encoder.safetensors'])
def test_evaluation_tests_on_what_was_held_out(judged, encoder, monkeypatch, capsys):
    d,feats = judged
    monkeypatch.chdir(d)
    part = evaluate.part_to_test(Path('out'), 'pics', None, None, 1, {})
    assert [pictures.names_below('pics', part.items)[i] for i in part.held]==pictures.read_held_out('out')
    assert 'tested on the' in capsys.readouterr().out
    res = evaluate.evaluate_pictures(encoder, 'pics', draws=20, workers=0, seed=1)
    # the same part, and so the same figures as training printed
    want = json.loads((d/'out/results.json').read_text())
    assert res['title']==want['title']
    for row,mine in (('raw pixels','raw pixels'), ('trained encoder','encoder')):
        for kind in ('linear','kNN'): np.testing.assert_allclose(res['rows'][mine][kind]['mean'], want['rows'][row][kind]['mean'], atol=.01)

@pytest.mark.parametrize('path,said', [
    ('copy', "out was trained on 'pics', and this is 'copy': tested on the"), ('pics/train', 'that out held out, found by their names'),
    ('other', 'none of the'), (['pics'], 'tested on the')])
def test_evaluation_says_where_the_part_is_from(judged, path, said, monkeypatch, capsys):
    monkeypatch.chdir(judged[0])
    if not Path('copy').exists(): os.system('cp -r pics copy; mkdir other; cp -r pics/train/3 other/a; cp -r pics/train/7 other/b')
    part = evaluate.part_to_test(Path('out'), path, None, None, 1, {})
    assert said in capsys.readouterr().out
    assert part==.2 if path=='other' else 0<len(part.held)<len(part.train)

def test_a_part_that_is_named_comes_first(judged, monkeypatch, capsys):
    monkeypatch.chdir(judged[0])
    assert evaluate.part_to_test(Path('out'), 'pics', 'valid', None, 1, {})=='valid'
    assert capsys.readouterr().out.startswith("valid='valid': ")
    assert evaluate.part_to_test(Path('out'), 'pics', .5, None, 1, {})==.5 and 'some of the pictures may be among those that out was trained on' in capsys.readouterr().out

def split(**kw):
    s = pretrain.AttrDict(dict(path='pics', unlabelled=False, seed=42) | kw)
    got = pictures.split_pictures(s, pictures.run_pictures(s))
    names = pictures.names_below('pics', got.items)
    return got,{names[i] for i in got.held}

def test_what_may_be_held_out(here):
    valid = {str(Path(f).relative_to('pics')) for f in files_of('pics/valid')}
    assert split(holdout='valid')[1]==valid
    with pytest.warns(UserWarning, match="holdout='valdi, valid': no picture is in 'valdi'. Check the name"): assert split(holdout='valdi, valid')[1]==valid
    Path('names.txt').write_text('\n'.join(sorted(valid)[:5]))
    Path('names.csv').write_text('\n'.join(['name', *sorted(Path(o).name for o in valid)]))
    assert split(holdout='names.txt')[1]==set(sorted(valid)[:5]) and split(holdout='names.csv')[1]==valid
    assert not split(holdout='0')[1] and len(split(holdout='.5')[1])==181==len(split(holdout=.5)[1])
    for wrong in ('1','-1','nan','nowhere','train,valid'):
        with pytest.raises(ValueError, match='holdout='): split(holdout=wrong)
    Path('names.txt').write_text('nothing.png')
    with pytest.raises(ValueError, match='lists no picture of the source'): split(holdout='names.txt')

def test_labels_and_part_from_a_table(here):
    files = files_of('pics')
    rows = [(f, 'odd' if '/3/' in f else 'even', ('train','valid','other')[i%3]) for i,f in enumerate(files)]
    with open('t.csv', 'w') as f: csv.writer(f).writerows([('file','kind','part'),*rows])
    s = pretrain.AttrDict(path='t.csv', column='file', labels='kind', holdout='part', unlabelled=False, seed=1)
    got = pictures.split_pictures(s, pictures.run_pictures(s))
    def named(part): return [os.path.normpath(got.items[i]) for i in part]
    assert named(got.held)==files[1::3] and named(got.train)==files[::3]
    assert all(o==('odd' if '/3/' in os.fspath(f) else 'even') for o,f in zip(got.labels, got.items))

def test_labels_from_a_csv(here, capsys):
    "Folders named by chance, and the labels in a file; pictures without a row are trained on"
    files = files_of('pics')
    Path('flat').mkdir()
    for i,f in enumerate(files): os.link(f, f'flat/{i:03}.png')
    with open('l.csv', 'w') as f: csv.writer(f).writerows([('name','label','note'), *((f'{i:03}.png', 'three' if '/3/' in o else 'seven','') for i,o in enumerate(files) if i%10)])
    _,feats,out = pretrain.pretrain('flat', 'out', labels='l.csv', **SMALL)
    n = len(files)-len(files[::10])
    assert f'{len(files[::10])} pictures are trained on and left out of judging' in capsys.readouterr().out
    assert len(feats['raw pixels'][0][1])+len(feats['raw pixels'][1][1])==n
    res = evaluate.evaluate_pictures(out, 'flat', draws=2, workers=0)   # labels and part are those of the run
    assert res['title'].startswith(f"Accuracy on {len(feats['raw pixels'][1][1])} held-out")
    res = evaluate.evaluate_pictures(out, 'flat', draws=2, workers=0, valid=.5, labels='l.csv:label')
    assert 'labels per class' in res['title']
    with pytest.raises(ValueError, match='has the columns name, label, note'): evaluate.evaluate_pictures(out, 'flat', labels='l.csv:nothing', workers=0)

def test_training_on_everything(here):
    learn,feats,out = pretrain.pretrain('pics', 'out', holdout=0, **SMALL)
    assert len(learn.dls.train_ds)==362 and not len(learn.dls.valid_ds) and pictures.read_held_out(out)==[]
    assert feats['trained encoder'][0]==(None,None) and len(feats['trained encoder'][1][0])==362 and (out/'embedding.png').is_file()

# Names in lists and tables

def some_pictures(*names):
    for i,o in enumerate(names):
        Path(o).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (12,12,3), np.uint8)).save(o)

@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    "Labelled pictures in train, others of the same names in test; an encoder"
    monkeypatch.chdir(tmp_path)
    some_pictures(*(f'kaggle/{part}/{i}.png' for part in ('train','test') for i in range(24)))
    return save_encoder(create_encoder('tiny_resnet', pretrained=False), 'e.safetensors', size=12, stats=None)

def kind(i): return ('cat','dog')[i%2]
def table(file, name='{}.png', head='id,label', n=24, mark=',', encoding='utf-8', end=''):
    rows = ([head] if head else [])+[mark.join([name.format(i), kind(i)])+end for i in range(n)]
    Path(file).write_text('\n'.join(rows), encoding=encoding)
    return file
def labels(path='kaggle', labels='l.csv', **kw):
    s = pretrain.AttrDict(dict(path=path, labels=labels, unlabelled=False, seed=42, **kw))
    items = pictures.run_pictures(s)
    return dict(zip(pictures.names_below(path, items), pictures.labels_of(s, items)))
def held(names, path='kaggle/train', **kw):
    s = pretrain.AttrDict(dict(path=path, unlabelled=False, seed=42, holdout=names, **kw))
    got = pictures.split_pictures(s, pictures.run_pictures(s))
    return {pictures.names_below(path, got.items)[i] for i in got.held}

def test_a_file_name_of_several_pictures_is_refused(kaggle, tmp_path):
    "Pictures without a label got those of others of the same name, and 48 were trained on for 24"
    table('l.csv')
    said = r"labels='l.csv' names '0.png', which may be 'test/0.png' or 'train/0.png'. Write the path below the source"
    for f in (pretrain.pretrain, partial(finetune.finetune, kaggle), partial(evaluate.evaluate_pictures, kaggle)):
        with pytest.raises(ValueError, match=said) as e: f('kaggle', labels='l.csv')
        assert '\n' not in str(e.value)
    Path('h.txt').write_text('1.png')
    with pytest.raises(ValueError, match="holdout='h.txt' names '1.png', which may be"): held('h.txt', 'kaggle')
    want = {f'{part}/{i}.png': kind(i) if part=='train' else None for part in ('train','test') for i in range(24)}
    assert labels(labels=table('l.csv', 'train/{}.png'))==labels(labels=table('kaggle/train/l.csv'))==want
    assert labels('kaggle/train', table('l.csv'))=={f'{i}.png': kind(i) for i in range(24)}

@pytest.mark.parametrize('how', [dict(name='{}'), dict(name=' {}.png '), dict(name='train\\{}.png'), dict(name='train/{}'), dict(name='HERE/kaggle/train/{}.png'),
    dict(name='kaggle/train/{}.png'), dict(name='"{}.png"'), dict(head=''), dict(mark=';', head='id;label'), dict(file='l.tsv', mark='\t', head='id\tlabel'), dict(encoding='utf-8-sig'),
    dict(encoding='utf-16'), dict(head='id,label,', end=','), dict(mark=', '), dict(name='x,{}.png', head='n,id,label'), dict(file='L.CSV')], ids=str)
def test_how_names_may_be_written(how, kaggle, tmp_path):
    how = how | dict(name=how.get('name', '{}.png').replace('HERE', str(tmp_path)))
    file = table(how.pop('file', 'l.csv'), **how)
    source = 'kaggle' if how['name'].startswith('train') else 'kaggle/train'
    found = {Path(name).name: y for name,y in labels(source, file).items() if 'test' not in name}
    assert found=={f'{i}.png': kind(i) for i in range(24)}
    table(file, **how | dict(n=6))
    assert {Path(o).name for o in held(file, source)}=={f'{i}.png' for i in range(6)}

@pytest.mark.parametrize('content,said', [
    (b'', "labels='l.csv' is empty"), (b'id,label\n0.png,ch\xe4t\n', "labels='l.csv' is not UTF-8 text"), (b'id,label\n0.png,a,b\n', "labels='l.csv' has 3 cells in the row of '0.png', and 2 in its first"),
    (b'id,label\n0.png,cat\n1.png,dog\n0.png,dog\n', "gives '0.png' the labels 'cat' and 'dog'. Leave one row"), (b'id,label\n0.png,\n', 'labels no picture of the source'),
    (b'id,a,b\n0.png,1,2\n', 'has the columns id, a, b, and names of pictures in')])
def test_a_table_that_cannot_be_used_is_named_in_one_line(kaggle, content, said):
    Path('l.csv').write_bytes(content)
    with pytest.raises(ValueError) as e: labels('kaggle/train')
    assert said in str(e.value) and "labels='l.csv'" in str(e.value) and '\n' not in str(e.value)

def test_a_picture_listed_twice_is_in_one_part(kaggle):
    "It was trained on and tested on"
    names = [f'kaggle/train/{i}.png' for i in range(24)]
    with open('t.csv', 'w') as f: csv.writer(f).writerows([('name','label'), *[(o,kind(i)) for i,o in enumerate(names)]*2])
    for seed in range(5):
        s = pretrain.AttrDict(path='t.csv', column='name', labels='label', unlabelled=False, seed=seed)
        got = pictures.split_pictures(s, pictures.run_pictures(s))
        train,out = ({os.fspath(got.items[i]) for i in part} for part in (got.train,got.held))
        assert not train & out and len(train | out)==24 and len(got.items)==48
        items,label,part = evaluate.of_split(got)
        assert len(items)==24 and {os.fspath(items[i]) for i in part}==out
    items,label,part = evaluate.labelled_items('t.csv', 'label', .2, dict(column='name'))
    assert len(items)==24 and [label(o) for o in items]==[kind(i) for i in range(24)]
    with open('t.csv', 'a') as f: f.write(f'{names[0]},dog\n')
    with pytest.raises(ValueError, match="gives .*0.png' the labels 'cat' and 'dog'"): evaluate.labelled_items('t.csv', 'label', .2, dict(column='name'))

@pytest.mark.parametrize('source', ['p', '.', ['p'], 'p/**/*.png'])
def test_pictures_beside_the_folders_of_classes_have_no_label(tmp_path, monkeypatch, source, capsys):
    "They were a class of the folder's own name"
    monkeypatch.chdir(tmp_path)
    some_pictures(*(f'p/{c}/{i}.png' for c in ('cat','dog') for i in range(12)), *(f'p/{i}.png' for i in range(15)))
    if source=='.': monkeypatch.chdir('p')
    s = pretrain.AttrDict(path=source, unlabelled=False, seed=42)
    got = pictures.split_pictures(s, pictures.run_pictures(s))
    assert set(got.labels)=={'cat','dog',None} and got.labels.count(None)==15 and len(got.train)+len(got.held)==39
    assert capsys.readouterr().out=='15 pictures are trained on and left out of judging: they have no label\n'
    assert evaluate.labelled_pictures(source, 12, workers=0)[2]==['cat','dog']
    read = finetune.read_labels(source, pretrain.AttrDict(finetune.FINETUNE | dict(size=12, n_in=3, valid=.3, labels=None, labels_per_class=None, workers=0, seed=3, reading={})))
    assert read.vocab==['cat','dog'] and capsys.readouterr().out.count('15 of 39 pictures without a label: left out')==2
    assert pictures.labels_by_folder(['p/cat/0.png','p/cat /1.png'])==['cat','cat ']   # as the loaders' labels
    assert pictures.labels_by_folder(['p/0.png','p/1.png'])==['p','p'] and pictures.labels_by_folder(['a/0.png','b/0.png','b/c/0.png'])==['a','b','c']

@pytest.mark.parametrize('blank', ['', '  ', 'NaN'])
def test_a_blank_label_is_none(kaggle, blank, capsys):
    "By a table of its own and by --labels alike"
    with open('t.csv', 'w') as f: csv.writer(f).writerows([('name','label'), *((f'kaggle/train/{i}.png', blank if i%3==0 else kind(i)) for i in range(24))])
    want = [None if i%3==0 else kind(i) for i in range(24)]
    s = pretrain.AttrDict(path='t.csv', column='name', labels='label', unlabelled=False, seed=1)
    assert pictures.labels_of(s, pictures.run_pictures(s))==want
    assert [labels('kaggle/train', 't.csv')[f'{i}.png'] for i in range(24)]==want
    for path,given,how in (('t.csv','label',dict(column='name')), ('kaggle/train','t.csv',{})):
        items,label,_ = evaluate.labelled_items(path, given, .2, how)
        assert {label(o) for o in items}=={'cat','dog'} and capsys.readouterr().out=='8 of 24 pictures without a label: left out\n'
    given = None,float('nan'),np.float32('nan'),' cat ',np.int64(3),'None','-1','NaN'
    assert pictures.plain_labels(given)==[None,None,None,'cat',3,'None',None,None]
    assert pictures.plain_labels(['-1','1 '])==['-1','1']      # two classes

@pytest.mark.parametrize('begin', [b'', b'\xef\xbb\xbf'])
def test_a_list_of_names_holds_out_all_or_says_so(kaggle, begin):
    "A name that was not found was trained on"
    absolute = str(Path('kaggle/train/3.png').resolve()).encode()
    Path('h.txt').write_bytes(begin+b'0.png\r\n\r\n# mine\r\n"1.png"\r\nkaggle\\train\\2.png\r\n'+absolute)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert held('h.txt')=={f'{i}.png' for i in range(4)}
    Path('h.txt').write_bytes(begin+b'0.png\n1.png\n2.pgn\n3.png')
    with pytest.warns(UserWarning, match=r"holdout='h.txt' lists 1 name that fits no picture of the source: '2.pgn'\. List"): assert held('h.txt')=={'0.png','1.png','3.png'}
    Path('h.txt').write_text('\n'.join(f'{i}.png' for i in range(20, 40)))
    with pytest.raises(ValueError, match="holdout='h.txt' lists 16 names that fit no picture of the source: '24.png', .*, … *"): held('h.txt')
    for f in (finetune.finetune, evaluate.evaluate_pictures):
        with pytest.raises(ValueError, match="valid='h.txt' lists 16 names"): f(kaggle, 'kaggle/train', valid='h.txt', workers=0)

def test_labels_of_a_run_are_not_read_where_they_are_ambiguous(kaggle):
    "The run knew the names in one folder; here they are in two, and folders name the classes"
    names = pictures.run_pictures(pretrain.AttrDict(path='kaggle'))
    assert pictures.is_labelled(table('l.csv', 'train/{}.png'), 'kaggle', names) and not pictures.is_labelled(table('l.csv'), 'kaggle', names)

# One picture

def test_one_picture_in_memory_is_one_picture(kaggle):
    a = np.array(Image.open('kaggle/train/0.png'))
    _,want,_ = embed.embed_pictures(kaggle, 'kaggle/train/0.png', workers=0)
    data = Path('kaggle/train/0.png').read_bytes()
    for one in (a, torch.tensor(a), Image.fromarray(a), data, bytearray(data), memoryview(data), BytesIO(data), open('kaggle/train/0.png', 'rb'), [a], [data], a[None], torch.tensor(a).permute(2,0,1)[None]):
        names,feats,_ = embed.embed_pictures(kaggle, one, workers=0)
        assert names==['item 0']
        torch.testing.assert_close(feats, want)
    assert len(embed.embed_pictures(kaggle, a[...,0], workers=0)[0])==1 and len(embed.embed_pictures(kaggle, np.stack([a[...,0]]*5), workers=0)[0])==5
    for either in (torch.rand(3,12,12), a/255):
        with pytest.raises(ValueError, match=r'may be one picture or \d+. Pass source\[None\] for one, list\(source\) for several'): embed.embed_pictures(kaggle, either, workers=0)

def test_an_encoder_of_another_library_is_one_line(kaggle):
    torch.save(dict(state_dict=create_encoder('tiny_resnet', pretrained=False).state_dict(), epoch=1), 'lightly.ckpt')
    with pytest.raises(CliError) as e: embed.byol_embed('lightly.ckpt', 'kaggle/train')
    assert "'lightly.ckpt'" in str(e.value) and '`load_weights(path, encoder)`' in str(e.value) and '`save_encoder`' in str(e.value) and '\n' not in str(e.value)

# Size

def test_pictures_are_loaded_larger_than_their_views_where_they_have_the_pixels(here):
    def loaded(hw, size):
        Path('some').mkdir(exist_ok=True)
        for i in range(40): Image.effect_noise(hw[::-1], 50).save(f'some/{i}.png')
        s = pretrain.AttrDict(path='some', unlabelled=True, seed=42, size=size, n_in=1, workers=0)
        dls = pictures.folder_dls(s, pictures.run_pictures(s), 8)
        assert tuple(pictures.judged_dls(dls).one_batch()[0].shape[-2:])==((size,size) if isinstance(size, int) else size)
        return tuple(dls.one_batch()[0].shape[-2:])
    assert loaded((200,200), 32)==loaded((48,300), 32)==(48,48)
    assert loaded((40,60), 32)==(40,40) and loaded((32,100), 32)==loaded((20,20), 32)==(32,32)
    assert loaded((60,200), (16,32))==(24,48)

# Warnings

def test_a_warning_is_shown_once_and_those_of_others_never(here, capfd):
    def repeated():
        for _ in range(5): warnings.warn('ours')
        for o in ('The number of unique classes is greater than 50%', 'Palette images with Transparency expressed in bytes'): warnings.warn(o)
        warnings.warn('soon', FutureWarning)
    shown = []
    with warnings.catch_warnings():
        warnings.showwarning = lambda message,*args,**kw: shown.append(str(message))
        one_line_errors('byol_check', repeated)
    assert shown==['ours']

def test_an_error_is_one_line_and_a_mistake_of_ours_keeps_its_traceback():
    def ctrl_c(): raise KeyboardInterrupt
    def bad_name(): raise ValueError('path=\x1b[31m is wrong')
    with pytest.raises(CliError, match=r'path=\\x1b\[31m is wrong'): one_line_errors('byol_embed', bad_name)
    with pytest.raises(CliError, match='^byol_embed: stopped$'): one_line_errors('byol_embed', ctrl_c)
    with pytest.raises(CliError, match='^byol_pretrain: stopped; go on$'): one_line_errors('byol_pretrain', ctrl_c, stopped='stopped; go on')
    with pytest.raises(KeyError): one_line_errors('byol_embed', {}.__getitem__, 'a')

def test_processes(here, encoder):
    "As typed: a version, an option that is none, one picture; one label per class brings no warning of others"
    res = run('byol_embed', 'encoder.safetensors', files_of('pics')[0], '--n_workers', 0, cwd=here)
    assert res.returncode==2 and res.stderr=='byol_embed: --n_workers is no option, but --workers is. Run `byol_embed --help`\n'
    res = run('byol_evaluate', 'encoder.safetensors', 'pics', '--n', 1, '--draws', 3, '--workers', 2, cwd=here)
    assert res.returncode==0 and not res.stderr, res.stderr
    res = run('byol_embed', 'encoder.safetensors', files_of('pics')[0], '--workers', 1, cwd=here)
    assert res.returncode==0 and res.stdout.endswith('tiny_resnet for grey pictures of 8 px\nfeatures.npz: 1 picture, 256 features each\n') and not res.stderr

@pytest.mark.parametrize('n,word,text', [(1,'batch','1 batch'), (2,'batch','2 batches'), (2,'epoch','2 epochs'), (3,'class','3 classes'),
    (0,'picture','0 pictures'), (1200,'step','1,200 steps'), (2,'box','2 boxes')])
def test_words_in_their_number(n, word, text):
    from self_supervised.core import counted
    assert counted(n, word)==text

def test_two_tables_with_a_column_of_parts(here):
    "All pictures of the second were left out"
    files = files_of('pics')
    for name,some in (('a.csv',files[::2]), ('b.csv',files[1::2])):
        with open(name, 'w') as f: csv.writer(f).writerows([('file','part'), *((o, ('train','valid')[i%3==0]) for i,o in enumerate(some))])
    def parts(path):
        s = pretrain.AttrDict(path=path, column='file', holdout='part', unlabelled=False, seed=1)
        got = pictures.split_pictures(s, pictures.run_pictures(s))
        return [[os.path.normpath(got.items[i]) for i in part] for part in (got.train,got.held)]
    train,held = parts(['a.csv','b.csv'])
    assert sorted(train+held)==sorted(files) and sorted(held)==sorted([*files[::2][::3], *files[1::2][::3]])
    assert parts(['a.csv'])[1]==files[::2][::3]
    Path('b.csv').write_text('file\n'+files[1])
    with pytest.raises(ValueError, match="holdout='part' is no .* column of each table"): parts(['a.csv','b.csv'])

def test_labels_of_a_table_are_those_that_were_split(kaggle):
    "With blanks around them they were other classes, and a copy without one was a class"
    names = [f'kaggle/train/{i}.png' for i in range(24)]
    rows = [(o,f' {kind(i)}' if i%4 else kind(i)) for i,o in enumerate(names)]
    with open('t.csv', 'w') as f: csv.writer(f).writerows([('name','label'), *rows, (names[0],''), (names[1],'')])
    s = pretrain.AttrDict(path='t.csv', column='name', labels='label', unlabelled=False, seed=1, size=12, n_in=3, workers=0, keep=False)
    dls = pictures.folder_dls(s, pictures.run_pictures(s), 4)
    assert list(dls.vocab)==list(pictures.judged_dls(dls).vocab)==['cat','dog'] and len(dls.train_ds)+len(dls.valid_ds)==26

@pytest.mark.parametrize('word', ['train','Training'])
def test_a_table_that_names_both_parts_does_not_hold_out_both(kaggle, word):
    Path('h.csv').write_text('id,part\n'+''.join(f'{i}.png,{("valid",word)[i>3]}\n' for i in range(12)))
    with pytest.raises(ValueError, match="holdout='h.csv' has a column with '.*train.*each name in it would be held out. List"): held('h.csv')
    Path('h.csv').write_text('id,part\n'+''.join(f'{i}.png,valid\n' for i in range(4)))
    assert held('h.csv')=={f'{i}.png' for i in range(4)}

@pytest.mark.parametrize('form', ['NFC','NFD'])
def test_accents_of_another_form(kaggle, form):
    "A Mac writes é as two signs"
    from unicodedata import normalize
    for i in range(24): Path(f'kaggle/train/{i}.png').rename(normalize(form, f'kaggle/train/é{i}.png'))
    other = normalize('NFD' if form=='NFC' else 'NFC', 'é{}.png')
    assert set(labels('kaggle/train', table('l.csv', other)).values())=={'cat','dog'}
    assert len(held(table('h.csv', other, n=6)))==6

def test_labels_in_a_file_of_another_kind(kaggle):
    "The advice was for tars"
    table('l.txt')
    for f in (pretrain.pretrain, partial(finetune.finetune, kaggle), partial(evaluate.evaluate_pictures, kaggle)):
        with pytest.raises(ValueError, match="labels='l.txt' is no .csv or .tsv file. Save it as csv"): f('kaggle/train', labels='l.txt')

@pytest.mark.parametrize('source', ['d/t.csv','d/t.txt','d/pics/*/*/*.png','d/pics'])
def test_what_was_held_out_is_found_from_another_folder(here, source, monkeypatch, capsys):
    "It was 'none of the pictures is here', and pictures were tested on that were trained on"
    Path('d').mkdir()
    Path('pics').rename('d/pics')
    files = [o.removeprefix('d/') for o in files_of('d')]
    Path('d/t.csv').write_text('\n'.join(['name', *files]))
    Path('d/t.txt').write_text('\n'.join(files))
    pretrain.pretrain(source, 'out', **SMALL)
    names = pictures.read_held_out('out')
    assert len(names)==72
    Path('elsewhere').mkdir()
    monkeypatch.chdir('elsewhere')
    s = pretrain.AttrDict(path=f'../{source}')
    items = pictures.run_pictures(s)
    assert set(pictures.recorded_names(s.path, items, names, source))=={None,*names} and len(names)==72
    with open('labels.csv', 'w') as f: csv.writer(f).writerows([('name','label'), *((f'../d/{o}', o.split('/')[-2]) for o in files)])
    part = evaluate.part_to_test(Path('../out'), s.path, None, 'labels.csv', 1, {})
    assert len(part.held)==72 and 'tested on the 72 pictures' in capsys.readouterr().out

@pytest.mark.parametrize('source,options', [('pics/train pics/valid',{}), ('pics/*/*/*.png',{}), ('t.csv',{}), ('t.csv',dict(folder='pics'))], ids=str)
def test_what_a_run_on_a_list_held_out_is_found_from_another_folder(here, source, options, monkeypatch, capsys):
    "The names of a list begin at the working directory: from another one, pictures were tested on that were trained on"
    Path('lists').mkdir()
    table = ['name', *(os.path.relpath(f, 'pics' if options else 'lists') for f in files_of('pics'))]
    Path('lists/t.csv').write_text('\n'.join(table))
    paths = files_of('pics') if '*' in source else ['lists/t.csv'] if source=='t.csv' else source.split()   # as a shell expands them
    pretrain.pretrain(paths, 'out', **SMALL | options)
    names = pictures.read_held_out('out')
    Path('elsewhere').mkdir()
    monkeypatch.chdir('elsewhere')
    for path in ([f'../{o}' for o in paths] if len(paths)>1 else f'../{paths[0]}', '../pics', str(here/'pics')):
        Path('l.csv').write_text('name,label\n'+''.join(f'{f},{Path(f).parent.name}\n' for f in files_of('../pics')))
        how = evaluate.as_in_run(Path('../out'), path, {})
        part = evaluate.part_to_test(Path('../out'), path, None, 'l.csv', 1, how)
        assert len(part.held)==len(names)==72 and 'tested on the 72 pictures' in capsys.readouterr().out
        assert {os.path.realpath(part.items[i]) for i in part.held}=={os.path.realpath(here/o) for o in names} or not os.path.exists(here/names[0])

def test_names_without_suffix_and_titles(kaggle):
    "The first picture lost its label, or was trained on"
    for how in (dict(name='{}'), dict(name='x,{}'), dict(name=' {} ')):
        found = labels('kaggle/train', table('l.csv', head='', **how)+(':column 3' if how['name'][0]=='x' else ''))
        assert found=={f'{i}.png': kind(i) for i in range(24)}
        assert held(table('h.csv', head='', n=6, **how))=={f'{i}.png' for i in range(6)}
    # a title that is the name of a picture, too
    some_pictures('kaggle/train/id.png')
    for name in ('{}.png','train/{}.png'): assert labels('kaggle', table('l.csv', name.replace('{','train/{',1) if name[0]=='{' else name))['train/id.png'] is None

@pytest.mark.parametrize('index', ['','Unnamed: 0'])
def test_the_index_of_pandas_is_no_column_of_names(kaggle, index):
    "Names without suffix were numbers, so that each picture got the label of another one, and others were held out"
    order = np.random.default_rng(0).permutation(24).tolist()
    def written(file, head, row, n=24):
        Path(file).write_text('\n'.join([head, *(row(at,i) for at,i in enumerate(order[:n]))]))
        return file
    want = {f'{i}.png': kind(i) for i in range(24)}
    for title,name in dict(label='{}', species='{}', kind='{}.png').items():
        file = written('l.csv', f'{index},id,{title}', lambda at,i: f'{at},{name.format(i)},{kind(i)}')
        assert labels('kaggle/train', file)==want
    # names are the index of a series; a class may be called 3, as 3.png is
    assert labels('kaggle/train', written('l.csv', f'{index},label', lambda at,i: f'{i},{kind(i)}'))==want
    numbers = {f'{i}.png': str(i%3) for i in range(24)}
    assert labels('kaggle/train', written('l.csv', 'label,id', lambda at,i: f'{i%3},{i}'))==numbers
    assert labels('kaggle/train', written('l.csv', f'{index},label', lambda at,i: f'{i},{i%3}'))==numbers
    assert held(written('h.csv', f'{index},id', lambda at,i: f'{at},{i}', 6))=={f'{i}.png' for i in order[:6]}
    written('l.csv', 'row,id,label', lambda at,i: f'{at},{i},{kind(i)}')
    with pytest.raises(ValueError, match="l.csv' names pictures in 'row' and others in 'id', e.g. .* Leave one of the columns out"): labels('kaggle/train')

@pytest.mark.parametrize('option', [dict(init=''), dict(views='', no_flip=True), dict(path=''), dict(folder=''), dict(out='')])
def test_an_empty_option_of_a_shell_variable_that_is_not_set(here, option):
    "It was taken for none, and the run began from chance"
    with pytest.raises(CliError, match="=''") as e: pretrain.byol_pretrain(**dict(path=['pics'], arch='tiny_resnet', size='16', n_in=1, epochs=1, workers=0) | option)
    assert '\n' not in str(e.value)

def test_a_run_starts_from_the_folder_of_another(here):
    "The other commands took it; here, and in `load_weights`, it was 'not a file'"
    Path('run').mkdir()
    net = create_encoder('tiny_resnet', pretrained=False, n_in=1, norm='group')
    save_encoder(net, 'run/encoder.safetensors', size=8, stats=None)
    s = pretrain.complete_settings('pics', None, 0, False, False, None, None, init='run', size=16)
    assert (s.init,s.norm,s.n_in)==('run','group',1)
    for again in (pretrain.starting_encoder(s), load_weights('run', create_encoder('tiny_resnet', pretrained=False, n_in=1, norm='group'))):
        assert all(torch.equal(v, net.state_dict()[k]) for k,v in again.state_dict().items())
    args = dict(out='new', init='pics', **SMALL)
    with pytest.raises(FileNotFoundError, match="^init='pics' is a folder without encoder.safetensors. Pass a checkpoint, or the folder"): pretrain.pretrain('pics', **args)
    with pytest.raises(FileNotFoundError, match="^path='pics' is a folder without encoder.safetensors. Pass a checkpoint"): load_weights('pics', net)
    with pytest.raises(FileNotFoundError, match="^path='pics' is a folder without encoder.safetensors. Give one that"): encoder_info('pics')
    os.chdir('run')   # to a path, '' is the working directory
    with pytest.raises(FileNotFoundError, match="^encoder='' is not a file"): embed.embed_pictures('', '../pics')

@pytest.mark.parametrize('change,n', [(dict(seed=7),True), (dict(holdout='valid'),True), ('more',True), ('above',True), ('nothing',True), ('moved',True), ('list',True), ('copied',True), ('gone',True), ('strangers',0), ({},0),
                                      (dict(holdout='out/held_out.csv'),0), ('start',0), ('others',0)], ids=str)
def test_pictures_that_the_starting_weights_were_trained_on_are_no_test(here, monkeypatch, change, n):
    "With another seed, or with pictures added, most of those held out had been trained on by the first run; also where the pictures were moved or copied since"
    pretrain.pretrain('pics', 'out', **SMALL | (dict(holdout=0) if change=='nothing' else {}))
    path,init,how = 'pics','out',change if isinstance(change, dict) else {}
    if change=='more': shutil.copytree('pics/train', 'pics/more')
    if change=='above': path,how = '.',dict(seed=7)
    if change=='list': path = files_of('pics')[::-1]
    if change in ('others','copied','strangers'):
        shutil.copytree('pics', 'copy')
        path,how = 'copy',{} if change=='others' else dict(seed=7)
    if change=='strangers':   # of the same names
        for i,f in enumerate(files_of('copy')): Image.new('L', (28,28), i%250).save(f)
    if change=='gone':
        os.rename('pics', 'disk2')
        path,how = 'disk2',dict(seed=7)
    if change=='start':
        pretrain.pretrain('pics', 'second', init='out', **SMALL)
        init,how = 'second/start.safetensors',dict(seed=7)
    if change=='moved':
        Path('sub').mkdir()
        monkeypatch.chdir('sub')
        path,init,how = '../pics','../out',dict(seed=7)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter('always')
        *_,folder = pretrain.pretrain(path, 'new', init=init, **SMALL | how)
    told = [str(o.message) for o in found if 'may be among those' in str(o.message)]
    assert len(told)==bool(n), told
    if change=='nothing': assert 'It held out nothing: pass --holdout with pictures that it did not have' in told[0] and 'csv' not in told[0]
    if not n or change=='nothing': return
    first = pictures.recorded_names(path, (items := [Path(o) for o in files_of(path)] if isinstance(path, str) else path), pictures.read_held_out(init), '../pics' if change=='moved' else 'pics')
    names = pictures.read_held_out(folder)
    now = pictures.recorded_names(path, items, names, path)
    seen = sum(b is not None and a is None for a,b,o in zip(first, now, items) if 'more/' not in str(o))
    assert told[0].startswith(f'{seen} of {len(names)} held-out pictures') and f'--holdout {init}/held_out.csv' in told[0] or change=='more'
    assert any('may be among' in o for _,o in json.loads((folder/'results.json').read_text())['said'])

@pytest.mark.parametrize('strangers', [False,True])
def test_starting_weights_of_a_list_of_folders_that_moved(here, strangers):
    "Their record has whole paths, which are those of nothing now; pictures of the same names may be others"
    pretrain.pretrain(['pics/train','pics/valid'], 'out', **SMALL)
    os.rename('pics', 'disk2')
    if strangers:
        for i,f in enumerate(files_of('disk2')): Image.new('L', (28,28), i%250).save(f)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter('always')
        pretrain.pretrain(['disk2/train','disk2/valid'], 'new', init='out', **SMALL | dict(seed=7))
    assert any('may be among those' in str(o.message) for o in found) is not strangers

@pytest.mark.parametrize('endings', [('.jpg','.png'), ('.JPG','.webp'), ('.tif','.png')])
def test_a_picture_in_two_formats_is_in_one_part(here, endings):
    "Half of the held-out pictures were trained on in their other format; without their endings others have no name in common"
    Path('both').mkdir()
    for i,f in enumerate(files_of('pics')[:120]):
        for ending in endings: Image.open(f).save(f'both/{i}{ending}')
    s = pretrain.AttrDict(path='both', labels=None, unlabelled=False, holdout=.3, seed=1)
    got = pictures.split_pictures(s, pictures.run_pictures(s), tell=False)
    train,held = ({Path(got.items[i]).stem for i in part} for part in (got.train,got.held))
    assert train and held and not train & held
    for dls in (image_dls('both', 8, n_in=1, bs=4, workers=0, valid=.3), image_dls('both', 8, n_in=1, bs=4, workers=0, valid=.3, label_func=lambda o: int(o.stem)%2)):
        train,held = ({o.stem for o in ds.items} for ds in (dls.train_ds,dls.valid_ds))
        assert train and held and not train & held
    # Endings of no picture are a part of the name
    assert len(set(pictures._places([Path(f'both/IM.{i:04}') for i in range(100)])))==100

@pytest.mark.parametrize('change', [None,['pics',5],{'a': 1},5,'gone'], ids=str)
def test_a_damaged_record_of_the_starting_weights_ends_no_run(here, change):
    "The run whose weights are taken may have a settings.json that was changed by hand: the check of its pictures only warns"
    pretrain.pretrain('pics', 'out', **SMALL)
    record = json.loads(Path('out/settings.json').read_text())
    if change is None: del record['settings']['path']
    else: record['settings']['path'] = change
    Path('out/settings.json').write_text(json.dumps(record))
    *_,folder = pretrain.pretrain('pics', 'new', init='out', **SMALL | dict(seed=7))
    assert (folder/'results.json').exists()

def test_the_pictures_of_the_starting_weights_are_listed_once(here, monkeypatch):
    "A source of millions was listed again, also on resume; the warning of the first start is in the results of the resumed run, and in one line"
    pretrain.pretrain('pics', 'out\x1b', **SMALL)
    lists = []
    monkeypatch.setattr(pretrain, 'listed_pictures', lambda source, options: lists.append(source) or options_listed(source, options))
    options_listed = options.listed_pictures
    with pytest.warns(UserWarning, match='may be among those that out.x1b was') as found: interrupted(monkeypatch, './pics/', init='out\x1b', seed=7)
    told, = [str(o.message) for o in found if 'may be among those' in str(o.message)]
    assert told.isprintable() and not lists
    monkeypatch.setattr(pretrain, 'seen_before', None)
    with pytest.warns(UserWarning, match='may be among those'): pretrain.pretrain(out='run', resume=True, progress=False)
    assert [None,told] in json.loads(Path('run/results.json').read_text())['said']
    monkeypatch.undo()
    monkeypatch.chdir(here)
    # Other endings are other pictures
    monkeypatch.setattr(pretrain, 'listed_pictures', lambda source, options: lists.append(source) or options_listed(source, options))
    with pytest.warns(UserWarning, match='may be among those'): pretrain.pretrain('pics', 'third', init='out\x1b', **SMALL | dict(seed=7, suffixes='.png,.tif'))
    assert lists==['pics']

@pytest.mark.parametrize('arch', ['tiny_resnet','resnet18'])
def test_starting_weights_that_another_start_left_are_not_taken(here, monkeypatch, arch):
    "A start with --init that ended before its settings were written: the next run without took its weights for its own untrained ones when it was resumed"
    def leave():
        torch.manual_seed(1)
        save_encoder(create_encoder(arch, pretrained=False, n_in=1), 'run/start.safetensors', size=8, stats=None)
    Path('run').mkdir()
    leave()
    interrupted(monkeypatch, 'pics')
    assert not Path('run/start.safetensors').exists()
    leave()   # of an older run
    _,feats,_ = pretrain.pretrain(out='run', resume=True, progress=False)
    _,want,_ = pretrain.pretrain('pics', 'whole', **SMALL | dict(epochs=2))
    for name in want: torch.testing.assert_close(feats[name][1][0], want[name][1][0], rtol=0, atol=0)

def test_odd_findings_are_told_of_each_time(here, encoder):
    "In the second folder of a session they were not"
    for name in ('a','b'):
        Path(name).mkdir()
        for i in range(3): Image.fromarray(np.full((12,12), 4000, np.uint16)).save(f'{name}/{i}.png')
        with pytest.warns(UserWarning, match=f'3 of 3 pictures use less than a quarter of their scale, e.g. {name}/0.png'): embed.embed_pictures(encoder, name, workers=0)

@pytest.mark.parametrize('option', [dict(folder='pics'), dict(column='file'), dict(suffixes='.png'), dict(ground='white')])
def test_options_of_pictures_without_a_path(here, option):
    "`--folder pics` without a path trained on scikit-learn's digits"
    with pytest.raises(ValueError, match=f"{[*option][0]}='.*' is for pictures, and no path was passed"): pretrain.pretrain(epochs=1, progress=False, **option)
    with pytest.raises(ValueError, match=r'path=\[\] is an empty list'): pretrain.pretrain([], epochs=1, progress=False)

@pytest.mark.parametrize('views', [None,'photo'])
def test_the_first_line_comes_before_pictures_are_looked_for(here, monkeypatch, capsys, views):
    "Minutes passed in silence"
    def stopped(*args, **kw): raise RuntimeError('not yet')
    monkeypatch.setattr(pretrain, 'run_pictures', stopped)
    for path,said in ((['pics'], 'pics'), (['pics','a','b'], 'pics and 2 others')):
        with pytest.raises(CliError, match='not yet'): pretrain.byol_pretrain(path, views=views, epochs=1)
        assert capsys.readouterr().out==f'Looking for pictures in {said}\n'

def test_train_and_test_are_no_classes(tmp_path, monkeypatch):
    "Pictures without labels were judged by the part they lie in"
    monkeypatch.chdir(tmp_path)
    some_pictures(*(f'p/{part}/{i}.png' for part in ('train','test','Val') for i in range(12)))
    items = pictures.run_pictures(pretrain.AttrDict(path='p'))
    assert pictures.labels_by_folder(items)==[None]*36
    with pytest.raises(ValueError, match='has no picture with a label'): evaluate.labelled_pictures('p', 12, workers=0)
    assert pictures.labels_by_folder(['p/train/0.png','p/bus/1.png'])==['train','bus']   # vehicles

def test_a_part_beside_parts_with_classes_is_no_class(tmp_path, monkeypatch, capsys):
    "As on Kaggle: pictures of a test part without labels were a class of the name test"
    monkeypatch.chdir(tmp_path)
    some_pictures(*(f'p/train/{c}/{i}.png' for c in ('cat','dog') for i in range(12)), *(f'p/{o}/{i}.png' for o in ('Test','unlabeled') for i in range(12)))
    s = pretrain.AttrDict(path='p', unlabelled=False, seed=42)
    got = pictures.split_pictures(s, pictures.run_pictures(s))
    assert set(got.labels)=={'cat','dog',None} and got.labels.count(None)==24
    assert capsys.readouterr().out=='24 pictures are trained on and left out of judging: they have no label\n'
    assert evaluate.labelled_pictures('p', 12, workers=0)[2]==['cat','dog'] and '24 of 48 pictures without a label: left out' in capsys.readouterr().out
    def of(*folders): return pictures.labels_by_folder([f'{o}/0.png' for o in folders])
    assert of('p/train/cat', 'p/train', 'p/valid')==['cat',None,None] and of('p/car/unlabelled', 'p/bus')==[None,'bus']
    # a class of that name, beside others and in each part
    assert of('p/train', 'p/bus', 'p/bus/old')==['train','bus','old'] and of('p/test/train', 'p/test/bus', 'p/train/bus')==['train','bus','bus']
    assert of('/data/train/train', '/data/train/bus')==['train','bus']

def flat_tars(*names, n=12):
    for k,name in enumerate(names):
        with tarfile.open(name, 'w') as t:
            for i in range(n):
                some_pictures('one.png')
                t.add('one.png', f'{k}{i:03}.png')

def test_shards_are_no_classes(tmp_path, monkeypatch):
    "Which shard a picture lies in was what an encoder was judged by"
    monkeypatch.chdir(tmp_path)
    flat_tars('s-000.tar', 's-001.tar', 'cat.tar', 'dog.tar')
    with pytest.raises(ValueError, match='has no picture with a label.*or labels'): evaluate.labelled_pictures(['s-000.tar','s-001.tar'], 12, workers=0)
    assert evaluate.labelled_pictures(['cat.tar','dog.tar'], 12, workers=0)[2]==['cat.tar','dog.tar']
    def of(*tars): return pictures.labels_by_folder([f'{o}/0.png' for o in tars])
    assert of('0.tar', '3.tar')==[None]*2==of('a_1.tar', 'a_7.tar')==of('a1.tar', 'a2.tar') and of('s-0.tar/cat', 's-1.tar/dog')==['cat','dog']
    assert of('n01440764.tar', 'n01443537.tar')==['n01440764.tar','n01443537.tar']   # ImageNet

def test_a_classifier_learns_from_few_labels_also_beside_a_run(kaggle, tmp_path, monkeypatch, capsys):
    "Labels in a file with less than ten pictures were left out, and all of them together an empty source"
    monkeypatch.setattr(finetune, 'export_classifier', lambda *args: [])
    Path('run').mkdir()
    Path('e.safetensors').rename('run/encoder.safetensors')
    Path('run/held_out.csv').write_text('x.png\n')
    Path('run/settings.json').write_text(json.dumps(dict(settings=dict(path='elsewhere', views={}))))
    res,_ = finetune.finetune('run', 'kaggle/train', 'few', labels=table('l.csv', n=14), epochs=1, workers=0, progress=False)
    assert res['vocab']==['cat','dog'] and res['labels']+np.sum(res['confusion'])==14
    assert "10 pictures are left out: they have no label" in capsys.readouterr().out
    # to judge an encoder by, it is as in training
    with pytest.raises(ValueError, match='the source has no labels of two kinds.*or labels'): evaluate.evaluate_pictures('run', 'kaggle/train', labels='l.csv', workers=0)
    table('l.csv')
    Path('l.csv').write_text(Path('l.csv').read_text().replace('23.png,dog', '23.png,bird'))
    evaluate.evaluate_pictures('run', 'kaggle/train', labels='l.csv', workers=0, draws=2)
    assert "1 picture of 1 label ('bird') is left out: a label needs 10" in capsys.readouterr().out

def test_a_run_without_labels_says_what_evaluation_needs(kaggle, capsys):
    "It was 'source=L is empty'"
    flat_tars('s.tar')
    Path('run').mkdir()
    Path('e.safetensors').rename('run/encoder.safetensors')
    Path('run/held_out.csv').write_text('0003.png\n')
    Path('run/settings.json').write_text(json.dumps(dict(settings=dict(path='s.tar', views={}))))
    for f in (evaluate.evaluate_pictures, finetune.finetune):
        with pytest.raises(ValueError, match='the source has no labels of two kinds.*or labels'): f('run', 's.tar', workers=0)

def test_the_pictures_of_a_run_are_found_as_in_training(here, monkeypatch):
    "Masks beside the pictures, which the run had left out, were labelled pictures to learn from"
    monkeypatch.setattr(finetune, 'export_classifier', lambda *args: [])
    for f in files_of('pics'): Image.new('L', (28,28)).save(Path(f).with_suffix('.bmp'))
    pretrain.pretrain('pics', 'out', suffixes='.png', **SMALL)
    seen = []
    was = evaluate.image_dls
    def noted(source, *args, **kwargs):
        seen.extend(source)
        return was(source, *args, **kwargs)
    monkeypatch.setattr(evaluate, 'image_dls', noted)
    monkeypatch.setattr(finetune, 'image_dls', noted)
    evaluate.evaluate_pictures('out', 'pics', draws=2, workers=0)
    finetune.finetune('out', 'pics', 'tuned', epochs=1, workers=0, progress=False)
    assert len(seen)>=2*362 and {Path(o).suffix for o in seen}=={'.png'}
    assert evaluate.as_in_run(Path('out'), 'elsewhere', {})=={} and evaluate.as_in_run(Path('out'), 'pics', dict(suffixes='*'))==dict(suffixes='*')

def test_the_source_of_a_run_is_recognised_from_another_working_directory(here, monkeypatch, capsys):
    "A relative path was looked for from where the command ran: suffixes, column, folder and labels of the run were lost"
    for f in files_of('pics'): Image.new('L', (28,28)).save(Path(f).with_suffix('.bmp'))
    rows = [(f, f'kind {Path(f).parent.name}') for f in files_of('pics')]
    Path('l.csv').write_text('name,kind\n'+''.join(f'{a},{b}\n' for a,b in rows))
    def seen(run, path, **options):
        capsys.readouterr()
        options |= evaluate.as_in_run(Path(run), path, options)
        labels = evaluate.labels_to_use(Path(run), path, None, options)
        part = evaluate.part_to_test(Path(run), path, None, labels, 42, options)
        return options,sorted(map(os.path.realpath, part.items)),set(part.labels),len(part.held),capsys.readouterr().out
    pretrain.pretrain('pics', 'out', suffixes='.png', labels='l.csv:kind', **SMALL)
    *want,out = seen('out', 'pics')
    assert want[0]==dict(suffixes='.png') and want[2]=={'kind 3','kind 7'} and 'trained on' not in out
    Path('other/pics/train').mkdir(parents=True)   # of the same name from there
    monkeypatch.chdir('other')
    for path in ('../pics', str(here/'pics')):
        *got,out = seen('../out', path)
        assert got==want and 'trained on' not in out, out
    assert evaluate.as_in_run(Path('../out'), 'pics', {}) in ({},dict(suffixes='.png'))
    # the whole project was copied, or moved
    shutil.copytree(here/'pics', here/'copy/pics')
    for o in ('out','l.csv'): (shutil.copytree if o=='out' else shutil.copy)(here/o, here/'copy'/o)
    monkeypatch.chdir(here/'copy')
    *got,_ = seen('out', 'pics')
    assert (got[0],got[2:])==(want[0],want[2:]) and all(str(here/'copy') in o for o in got[1])
    # a list of files, and one in a csv file that names a folder
    monkeypatch.chdir(here)
    Path('names.csv').write_text('id,file\n'+''.join(f'{i},{Path(f).relative_to("pics")}\n' for i,f in enumerate(files_of('pics'))))
    pretrain.pretrain('names.csv', 'table', column='file', folder='pics', **SMALL)
    options = evaluate.as_in_run(Path('table'), 'names.csv', {})
    assert options==dict(column='file', folder='pics')
    monkeypatch.chdir('other')
    assert evaluate.as_in_run(Path('../table'), '../names.csv', {})==dict(column='file', folder=str(here/'pics'))

def test_an_encoder_in_the_folder_of_another_run_is_not_tested_on_what_that_run_held_out(here, monkeypatch, capsys):
    "It may have been trained on these pictures: a copy under another name, or in place of the run's own"
    monkeypatch.setattr(finetune, 'export_classifier', lambda *args: [])
    for name,seed in (('a',1),('b',2),('same',1)): pretrain.pretrain('pics', name, seed=seed, **SMALL)
    shutil.copytree('a', 'replaced')
    shutil.copy('b/encoder.safetensors', 'a/other.safetensors')
    shutil.copy('b/encoder.safetensors', 'replaced/encoder.safetensors')
    save_encoder(create_encoder('tiny_resnet', pretrained=False, n_in=1), 'a/mine.safetensors', size=16, stats=None)
    tune = partial(finetune.finetune, out='tuned', epochs=1, progress=False)
    for file in ('a/other.safetensors','replaced/encoder.safetensors','a/mine.safetensors'):
        for f in (partial(evaluate.evaluate_pictures, draws=1), tune):
            capsys.readouterr()
            with pytest.warns(UserWarning, match=f'{file} was not written by the run in its folder, so a fifth drawn by chance is tested. Move it'): f(file, 'pics', workers=0)
            assert 'that a held out' not in capsys.readouterr().out
    # the run's own, also under another name; and one that was trained on the same pictures
    shutil.copy('a/encoder.safetensors', 'a/best.safetensors')
    shutil.copy('same/encoder.safetensors', 'a/same.safetensors')
    shutil.move('a', 'moved')
    pretrain.pretrain('pics', 'after', init='moved', seed=3, **{k: v for k,v in SMALL.items() if k!='arch'})
    for file in ('moved/encoder.safetensors','moved/best.safetensors','moved/same.safetensors','after/start.safetensors','after/encoder.safetensors'):
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            assert evaluate.run_of(Path(file))==Path(file).parent
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*not written by the run')
        evaluate.evaluate_pictures('replaced', 'pics', draws=1, workers=0, valid='valid')

def test_an_encoder_that_was_saved_again_is_tested_on_what_its_run_held_out(here, capsys):
    "By `save_encoder`, from the learner that the run returned"
    learn,_,out = pretrain.pretrain('pics', 'a', **SMALL)
    save_encoder(learn.model.encoder, out/'mine.safetensors', size=16)
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*not written by the run')
        evaluate.evaluate_pictures(out/'mine.safetensors', 'pics', draws=1, workers=0)
    assert 'pictures that a held out' in capsys.readouterr().out

def test_minutes_of_grey_pictures_from_weights(here, encoder):
    "Views without statistics of their own had the three channels of ImageNet's, and the run did not start"
    s = pretrain.complete_settings('pics', None, 0, False, False, None, None, minutes=.1, init=str(encoder), size=16)
    pretrain.within_minutes(s, pictures.run_pictures(s), dict(size=16))
    assert (s.n_in,s.arch)==(1,'tiny_resnet') and 'stats' not in s.views

def test_a_run_that_starts_from_a_file_makes_the_network_of_the_file(here):
    "Of its arguments it took the name and the channels: group norm was an error, other pooling another encoder"
    net = create_encoder('tiny_resnet', pretrained=False, n_in=1, norm='group', pool_type='avg')
    save_encoder(net, 'group.safetensors', size=8, stats=None)
    for minutes in (None,.1):
        s = pretrain.complete_settings('pics', None, 0, False, False, None, None, minutes=minutes, init='group.safetensors', size=16)
        if minutes: pretrain.within_minutes(s, pictures.run_pictures(s), dict(size=16))
        got = pretrain.starting_encoder(s)
        assert (s.norm,s.pool_type)==('group','avg') and all(torch.equal(v, net.state_dict()[k]) for k,v in got.state_dict().items())
        assert embed.embed(got, torch.rand(2,1,16,16), None)[0].shape==embed.embed(net, torch.rand(2,1,16,16), None)[0].shape

def test_weights_that_fit_another_network_are_named(here):
    "A stem without strides has the same weights as one with them"
    net = create_encoder('resnet10t', pretrained=False, small_stem=True)
    save_encoder(net, 'small.safetensors', size=32, stats=None)
    with pytest.warns(UserWarning, match='small.safetensors were trained in a network with small_stem=True, and this one has small_stem=False'):
        load_weights('small.safetensors', create_encoder('resnet10t', pretrained=False))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load_weights('small.safetensors', create_encoder('resnet10t', pretrained=False, small_stem=True, pool_type='avg', n_in=1))

def test_a_test_part_that_is_learned_from_is_named(tmp_path, monkeypatch):
    "With valid='valid' the pictures in test were labelled pictures to train on, in silence"
    monkeypatch.chdir(tmp_path)
    some_pictures(*(f'p/{part}/{c}/{i}.png' for part in ('train','valid','test') for c in ('cat','dog') for i in range(3)))
    how = dict(size=12, bs=2, workers=0)
    for call in (lambda valid: image_dls('p', label_func=parent_label, valid=valid, **how), lambda valid: evaluate.labelled_pictures('p', 12, valid=valid, workers=0)):
        with pytest.warns(UserWarning, match="valid='valid' holds out that folder alone: the 6 pictures in 'test' are learned from"): call('valid')
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            call('test')
            image_dls('p', valid='valid', **how)   # without labels nothing is learned of them

def test_held_out_names_with_accents_are_found_in_a_copy(tmp_path, monkeypatch):
    "Written by a Mac as two signs, they were taken for pictures to learn from"
    monkeypatch.chdir(tmp_path)
    names = [unicodedata.normalize('NFC', f'{c}/é{i}.png') for c in 'ab' for i in range(4)]
    there = [unicodedata.normalize('NFD', o) for o in names]
    assert set(names).isdisjoint(there)
    for held,items in ((names[:3],there), (there[:3],names)):
        assert [o is not None for o in pictures.recorded_names('copy', [f'copy/{o}' for o in items], held, 'pics')]==[True]*3+[False]*5

@pytest.mark.parametrize('labels', [None,'l.csv'])
def test_the_part_that_a_run_held_out_may_be_all_there_is(kaggle, labels, capsys, monkeypatch):
    "`byol_evaluate RUN data/test` ended with 'the source has no labels', and they were all there"
    monkeypatch.setattr(finetune, 'export_classifier', lambda *args: [])
    some_pictures(*(f'd/{part}/{c}/{i}.png' for part in ('train','test') for c in ('cat','dog') for i in range(15)))
    Path('run').mkdir()
    Path('e.safetensors').rename('run/encoder.safetensors')
    files = [o.removeprefix('d/') for o in files_of('d/test')]
    Path('run/held_out.csv').write_text('\n'.join(files))
    Path('run/settings.json').write_text(json.dumps(dict(settings=dict(path='d', views={}, holdout='test'))))
    Path('l.csv').write_text('\n'.join(['name,label', *(f'd/{o},{o.split("/")[1]}' for o in files)]))
    for f in (partial(evaluate.evaluate_pictures, draws=2), partial(finetune.finetune, epochs=1, progress=False)):
        f('run', 'd/test', labels=labels, workers=0)
        said = 'the 30 pictures that run held out have all the labels here, and others are needed to learn from: a part is drawn by chance'
        assert said in capsys.readouterr().out
    evaluate.evaluate_pictures('run', 'd', labels=labels, workers=0, draws=2)
    assert ('a part is drawn' in capsys.readouterr().out)==(labels is not None)   # the file has none for the others

def test_a_part_without_labels_is_no_test(kaggle):
    "It was to be larger"
    some_pictures(*(f'd/train/{c}/{i}.png' for c in ('cat','dog') for i in range(6)), *(f'd/test/{i}.png' for i in range(6)))
    for f in (evaluate.evaluate_pictures, finetune.finetune):
        with pytest.raises(ValueError, match="valid='test' holds out no picture with a label"): f(kaggle, 'd', valid='test', workers=0)

@pytest.mark.parametrize('f', [evaluate.evaluate_pictures, finetune.finetune])
def test_a_part_to_test_on_is_named_by_its_option(kaggle, f):
    "With labels in a file byol_evaluate complained of a holdout, which is no option of it"
    table('l.csv', 'train/{}.png')
    with pytest.raises(ValueError, match="valid='nope' is no part.*valid=0.2"): f(kaggle, 'kaggle', valid='nope', labels='l.csv', workers=0)

@pytest.mark.parametrize('valid', [None,.3,'valid','part'])
def test_a_classifier_has_the_labels_of_the_run_whatever_is_tested(here, valid):
    "With valid, folder names were its classes, though the run and byol_evaluate had those of the file"
    rows = [(f, f'kind {i%3}', Path(f).parts[1]) for i,f in enumerate(files_of('pics'))]
    with open('t.csv', 'w') as f: csv.writer(f).writerows([('name','kind','part'), *rows])
    source,how = ('t.csv',dict(labels='kind', column='name')) if valid=='part' else ('pics',dict(labels='t.csv:kind'))
    pretrain.pretrain(source, 'out', **SMALL | how)
    want = {f'kind {i}' for i in range(3)}
    results,folder = finetune.finetune('out', source, 'c', valid=valid, epochs=1, workers=0, progress=False)
    assert set(results['vocab'])==want and sum(map(sum, results['confusion']))>60
    assert json.loads((folder/'settings.json').read_text())['settings']['labels']==how['labels']   # it was null
    # those that you name come first
    Path('l.csv').write_text('name,label\n'+''.join(f'{f},{len(f)%2}{i%2}\n' for i,f in enumerate(files_of('pics'))))
    results,_ = finetune.finetune('out', source, 'd', valid=valid, labels='l.csv', epochs=1, workers=0, progress=False)
    assert not set(results['vocab']) & want

def test_a_class_that_no_test_picture_has_is_learned_all_the_same(here):
    "Chance had held out none of its few pictures: the classifier did not know it, and byol_evaluate drew other labels than the run"
    Path('pics/train/rare').mkdir()
    for i in range(12): Image.new('L', (28,28), 20*i).save(f'pics/train/rare/{i}.png')
    Path('h.txt').write_text('\n'.join(f for f in files_of('pics') if 'valid' in f))
    _,_,out = pretrain.pretrain('pics', 'out', holdout='h.txt', **SMALL)
    results,_ = finetune.finetune('out', 'pics', 'c', epochs=1, workers=0, progress=False)
    assert results['vocab']==['3','7','rare'] and sum(results['confusion'][2])==0
    want,res = json.loads((out/'results.json').read_text()),evaluate.evaluate_pictures('out', 'pics', draws=20, workers=0)
    assert res['rows']['raw pixels']['linear']['mean']==pytest.approx(want['rows']['raw pixels']['linear']['mean'], abs=.01)

def test_names_in_a_table_of_labels_that_are_no_picture_are_told_of(here, capsys):
    "They were passed over in silence, as a misspelt name is"
    rows = ''.join(f'{f},{Path(f).parent.name}\n' for f in files_of('pics'))
    Path('l.csv').write_text('name,label\n'+rows)
    found = pictures.labels_by_name('l.csv', 'pics', files_of('pics'))
    Path('l.csv').write_text('name,label\n'+rows+'pics/gone.png,3\n')
    assert not capsys.readouterr().out
    assert pictures.labels_by_name('l.csv', 'pics', files_of('pics'))==found
    assert capsys.readouterr().out=="labels='l.csv' has 1 name that fits no picture here, e.g. 'pics/gone.png'\n"

@pytest.mark.parametrize('gone', [False,True])
def test_starting_weights_of_other_pictures_of_the_same_names_bring_no_warning(here, gone):
    "Two data sets with numbered files: held-out pictures were told to have changed"
    pretrain.pretrain('pics', 'run', **SMALL)
    os.system('cp -r pics other')
    for i,f in enumerate(files_of('other')): Image.fromarray(np.random.default_rng(i).integers(0, 255, (28,28), np.uint8)).save(f)
    if gone: os.rename('pics', 'elsewhere')
    for seed in 42,7:
        s = pretrain.AttrDict(path='other', init='run', unlabelled=False, seed=seed, holdout=.2)
        listed = pictures.run_pictures(s)
        held = [listed[i] for i in pictures.split_pictures(s, listed).held]
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            assert pretrain.seen_before(s, held, listed)==0

def test_a_run_that_is_not_finished_is_named(here):
    "It was a folder without an encoder"
    Path('run/checkpoints').mkdir(parents=True)
    for f in (evaluate.evaluate_pictures, finetune.finetune, embed.embed_pictures):
        with pytest.raises(FileNotFoundError, match="'run' holds a run that is not finished. Go on with `byol_pretrain --resume --out run`"): f('run', 'pics')

def test_commands_say_what_an_encoder_is_for(here, encoder, capsys):
    "An encoder of grey digits measured stamps in colour, and no line told of it"
    for info,want in ((dict(size=8), 'grey pictures of 8 px'), (dict(size=(16,24)), 'grey pictures of 16x24 px'), ({}, 'grey pictures')):
        save_encoder(create_encoder('tiny_resnet', n_in=1, pretrained=False), 'e.safetensors', **info)
        embed.tell_encoder('e.safetensors')
        assert capsys.readouterr().out==f'e.safetensors: tiny_resnet for {want}\n'

@pytest.mark.parametrize('source', ['pics/*/*/*.png','l.csv','l.txt','pics','list'])
@pytest.mark.parametrize('holdout', [.2,'valid','h.txt'])
def test_links_to_a_picture_are_on_its_side_of_the_split(here, source, holdout):
    "A pattern, a table and a list took a link to a picture for another one: trained on by one name, and tested on by the other"
    Path('pics/valid/all').mkdir()
    files = files_of('pics')
    for i,f in enumerate(files): os.symlink(os.path.abspath(f), f'pics/valid/all/{i:03}.png')
    if holdout=='valid': holdout = 'pics/valid/7'
    Path('h.txt').write_text('\n'.join(f'pics/valid/all/{i:03}.png' for i in range(40)))
    every = files_of('pics')
    Path('l.csv').write_text('name\n'+'\n'.join(every))
    Path('l.txt').write_text('\n'.join(every))
    s = pretrain.AttrDict(path=every if source=='list' else source, labels=None, unlabelled=True, seed=42, holdout=holdout)
    items = pictures.run_pictures(s)
    assert len(items)==(len(files) if source in ('pics','pics/*/*/*.png') else 2*len(files))
    split = pictures.split_pictures(s, items)
    train,held = ({os.path.realpath(split.items[i]) for i in part} for part in (split.train,split.held))
    assert held and not train & held and len(train | held)==len(files)
    if holdout=='h.txt': assert held=={os.path.realpath(f) for f in files[:40]}

@pytest.mark.parametrize('how', ['column','names','paths'])
def test_links_to_one_file_of_a_store_have_labels_of_their_own(here, how):
    "DVC, git-annex and the cache of Hugging Face keep equal pictures once: two names of one file with two labels in a table were refused"
    Path('store').mkdir()
    Path('data').mkdir()
    rows = ['name,kind']
    for i,f in enumerate(files_of('pics')[:20]):
        shutil.copy(f, f'store/{i:03}')
        for kind in 'ab':
            os.symlink(os.path.abspath(f'store/{i:03}'), f'data/{kind}{i:03}.png')
            rows.append(f'data/{kind}{i:03}.png,{kind}' if how!='names' else f'{kind}{i:03}.png,{kind}')
    Path('l.csv').write_text('\n'.join(rows))
    every = files_of('data')
    s = pretrain.AttrDict(path='l.csv' if how=='column' else every, column='name' if how=='column' else None, labels='kind' if how=='column' else 'l.csv', unlabelled=False, seed=42, holdout=.2)
    if how=='paths': s.path = [os.path.abspath(o) for o in every]
    items = pictures.run_pictures(s)
    assert pictures.labels_of(s, items)==[Path(o).name[0] for o in items] and len(items)==40
    split = pictures.split_pictures(s, items)
    train,held = ({os.path.realpath(split.items[i]) for i in part} for part in (split.train,split.held))
    assert held and not train & held

def test_a_part_of_links_to_a_pool_is_held_out_by_its_path(here):
    Path('farm/train').mkdir(parents=True)
    Path('farm/valid').mkdir()
    for i,f in enumerate(files_of('pics')[:40]): os.symlink(os.path.abspath(f), f'farm/{"valid" if i%4==0 else "train"}/{i}.png')
    for path,holdout in (('farm','farm/valid'), ('farm','valid'), ('farm/*/*.png','farm/valid/')):
        s = pretrain.AttrDict(path=path, labels=None, unlabelled=True, seed=42, holdout=holdout)
        split = pictures.split_pictures(s, pictures.run_pictures(s))
        assert {Path(split.items[i]).parent.name for i in split.held}=={'valid'} and len(split.held)==10

def test_figures_of_a_run_are_no_pictures(here, capsys):
    "`cd pics; byol_pretrain .`: the next command took the figures in runs/byol for pictures"
    for folder,source in (('pics','.'),('.','**/*.png')):
        os.chdir(here/folder)
        before = options.listed_pictures(source, {})
        pretrain.pretrain(source, 'runs/byol', **SMALL)
        drawn = sorted(str(o.relative_to('runs/byol')) for o in Path('runs/byol').rglob('*.png'))
        assert drawn==['embedding.png','neighbors.png','views.png']
        items = options.listed_pictures(source, {})
        assert list(items)==list(before) and items.left_out['.png of a run']>=3
        assert len(image_dls(source, n_in=1, bs=8, workers=0, label_func=parent_label).vocab)==2
        assert options.listed_pictures('runs/byol/views.png', {})==[Path('runs/byol/views.png')]
    Path('pics/views.png').write_bytes(Path('pics/train/3').glob('*.png').__next__().read_bytes())   # beside no settings
    assert Path('pics/views.png') in options.listed_pictures('pics', {})

def test_an_encoder_that_was_moved_knows_whether_its_views_were_mirrored(here, monkeypatch):
    "A file of its own was taken for one of mirrored pictures: letters and digits were trained on mirrored"
    class Reached(Exception): pass
    def stop(*args, flip_p, **kwargs): raise Reached(flip_p)
    for o in (finetune,evaluate): monkeypatch.setattr(o, 'crop_and_flip', stop)
    first,_,out = pretrain.pretrain('pics', views=dict(flip_p=0.), **SMALL)
    pretrain.pretrain('pics', init=out/'encoder.safetensors', out='again', **{k: v for k,v in SMALL.items() if k!='arch'})
    for file,flip_p in ((out/'encoder.safetensors',0.), (Path('again/encoder.safetensors'),.5), (Path('again/start.safetensors'),.5)):
        moved = file.rename('moved.safetensors')
        for f in (partial(finetune.finetune, progress=False), partial(evaluate.evaluate_pictures, full=True, draws=1, seeds=1)):
            with pytest.raises(Reached) as e: f(moved, 'pics', workers=0)
            assert e.value.args==(flip_p,)

def test_a_part_is_named_by_its_path_as_well(tmp_path, monkeypatch):
    "A shell completes `--holdout data/valid/`, which was 'no folder with pictures in it'"
    monkeypatch.chdir(tmp_path)
    some_pictures(*(f'd/{part}/{c}/{i}.png' for part in ('train','valid') for c in ('cat','dog') for i in range(3)))
    want = {f'valid/{c}/{i}.png' for c in ('cat','dog') for i in range(3)}
    for name in ('valid','d/valid','d/valid/','./d/valid', str(tmp_path/'d/valid')): assert held(name, 'd')==want
    assert held('d/valid/cat,d/valid/dog', 'd')==want and len(held('d/valid/cat', 'd'))==3
    monkeypatch.chdir('d')
    assert held('valid/', '../d')==want
    assert [*map(len, evaluate.labelled_items('.', None, 'valid/', {})[::2])]==[12,6]
    with pytest.raises(ValueError, match="holdout='nowhere/' is no part"): held('nowhere/', '.')

# A disk that is full at the end

def no_room(f, data): raise OSError(28, 'No space left on device')

def test_a_full_disk_at_the_end_does_not_take_what_was_measured(here, encoder, monkeypatch, capsys):
    "The table, the list and the accuracies are printed, the error names the file and what to do, and what was there before stays whole"
    import self_supervised.core as core
    for name in 'e.json','c.csv': Path(name).write_text('before')
    monkeypatch.setattr(core, '_write_through', no_room)
    full = r"^byol_{}: {} cannot be written \(No space left on device\)\. Free some space\.$"
    with pytest.raises(CliError, match=full.format('evaluate', 'e.json')): evaluate.byol_evaluate(encoder, ['pics'], workers=0, out='e.json')
    assert 'untrained encoder' in capsys.readouterr().out
    Path('pics/broken.png').write_bytes(b'no picture')
    with pytest.raises(CliError, match=full.format('check', 'c.csv')): check.byol_check(['pics'], n_in=1, workers=0, out='c.csv')
    assert 'broken.png: ' in capsys.readouterr().out
    with pytest.raises(CliError, match=full.format('embed', 'f.npz')): embed.byol_embed(encoder, ['pics'], workers=0, out='f.npz')
    assert Path('e.json').read_text()==Path('c.csv').read_text()=='before'

def test_a_classifier_that_was_not_written_is_not_offered(here, encoder, monkeypatch, capsys):
    "Nothing fits on the disk after training: the accuracies are printed, and the command fails without telling how to load what is not there"
    def full(*args, **kwargs): raise OSError(28, 'No space left on device')
    monkeypatch.setattr('fastai.learner.Learner.export', full)
    monkeypatch.setattr(finetune, 'export_onnx', full)
    monkeypatch.setattr(finetune, 'write_atomic', full)
    with pytest.raises(CliError, match='^byol_finetune: c lacks export.pkl, the classifier: see the message above$'):
        finetune.byol_finetune(encoder, 'pics', out='c', epochs=1, labels_per_class=4, workers=0)
    out = capsys.readouterr().out
    assert 'balanced accuracy' in out and 'load_learner' not in out
    for name in 'results.json','report.html','export.pkl','classifier.onnx': assert out.count(f'{name} is not written: ')==1

@pytest.mark.parametrize('fails', [False,True])
def test_the_results_of_a_classifier_are_written_once(here, encoder, monkeypatch, fails):
    "Before the classifier is, and again only if that has something to add"
    def wrong(*args, **kwargs): raise RuntimeError('cannot be pickled')
    if fails: monkeypatch.setattr('fastai.learner.Learner.export', wrong)
    written = []
    def note(path, data):
        written.append(Path(path).name)
        return write_atomic(path, data)
    monkeypatch.setattr(finetune, 'write_atomic', note)
    results,_ = finetune.finetune(encoder, 'pics', out='c', epochs=1, labels_per_class=4, workers=0, progress=False)
    assert written==['results.json']*(1+fails)+['report.html']
    assert json.loads(Path('c/results.json').read_text())['said']==results['said']
    assert ('export.pkl is not written: cannot be pickled' in results['said'])==fails

def test_the_page_of_a_classifier_that_was_not_written_does_not_offer_it(here, encoder, monkeypatch):
    def full(*args, **kwargs): raise OSError(28, 'No space left on device')
    monkeypatch.setattr('fastai.learner.Learner.export', full)
    _,out = finetune.finetune(encoder, 'pics', out='c', epochs=1, labels_per_class=4, workers=0, progress=False)
    assert 'load_learner' not in (out/'report.html').read_text()

def test_a_file_that_is_read_is_not_replaced(here, encoder):
    "byol_check list.csv --out list.csv would have taken the table of the user's labels"
    Path('list.csv').write_text('name,label\n'+''.join(f'{f},{Path(f).parent.name}\n' for f in files_of('pics')))
    before = Path('list.csv').read_bytes(),Path(encoder).read_bytes()
    for call in (partial(check.byol_check, ['list.csv'], n_in=1, column='name', workers=0, out='./list.csv'),
                 partial(evaluate.byol_evaluate, encoder, ['list.csv'], column='name', labels='label', workers=0, out=here/'list.csv'),
                 partial(evaluate.byol_evaluate, encoder, ['pics'], labels='list.csv:label', workers=0, out='list.csv'),
                 partial(evaluate.byol_evaluate, encoder, ['pics'], workers=0, out=str(encoder))):
        with pytest.raises(CliError, match='is read, and would be replaced'): call()
    Path('enc.npz').write_bytes(before[1])
    with pytest.raises(CliError, match='is read, and would be replaced'): embed.byol_embed('enc.npz', ['pics'], out='enc.npz')
    assert (Path('list.csv').read_bytes(),Path(encoder).read_bytes())==before

def test_the_encoder_of_a_folder_that_is_named_is_not_replaced(here, encoder):
    Path('run').mkdir()
    file = Path(shutil.copy(encoder, 'run/encoder.safetensors'))
    before = file.read_bytes()
    with pytest.raises(CliError, match='is read, and would be replaced'): evaluate.byol_evaluate('run', ['pics'], workers=0, out=str(file))
    Path('other').mkdir()
    os.symlink(here/'f.npz', 'other/encoder.safetensors')
    file.rename('f.npz')
    with pytest.raises(CliError, match='is read, and would be replaced'): embed.byol_embed('other', ['pics'], workers=0, out='f.npz')
    assert Path('f.npz').read_bytes()==before
    for call in (evaluate.byol_evaluate, embed.byol_embed):
        with pytest.raises(CliError, match="'none' is not a file"): call('none', ['pics'], out='new.npz')

@pytest.mark.parametrize('source', ['pics',['pics'],Path('pics'),'pics/*/*/*.png','list.csv'])
def test_a_picture_of_the_source_is_not_replaced(here, encoder, source):
    first = files_of('pics')[0]
    Path('list.csv').write_text('name\n'+''.join(f'{f}\n' for f in files_of('pics')))
    with pytest.raises(ValueError, match='is a picture, and would be replaced'): options.check_out(first, source, encoder)
    os.symlink(here/first, 'link.json')
    with pytest.raises(ValueError, match='is a picture, and would be replaced'): options.check_out('link.json', source, encoder)
    with tarfile.open('pics/a.tar', 'w') as f: f.add(first)
    with pytest.raises(ValueError, match='is a tar, and would be replaced'): options.check_out('pics/a.tar', source, encoder)
    Path('pics/c.csv').write_text('before')
    for out in ('pics/c.csv','pics/new.csv'): options.check_out(out, source, encoder)

@pytest.mark.parametrize('source', ['pics',['pics'],'pics/*/*.np[yz]','list.csv',['pics/train/cat.npz']])
@pytest.mark.parametrize('how', [dict(suffixes='.npy,.npz'), dict(suffixes='*'), dict(reader='numpy:load')], ids=str)
def test_an_array_that_is_read_as_a_picture_is_not_replaced(here, encoder, source, how):
    "With --suffixes .npz, --out pics/train/cat.npz would have replaced a picture by features"
    array = Path('pics/train/cat.npz')
    array.parent.mkdir(exist_ok=True)
    np.savez(array, np.zeros((8,8)))
    Path('list.csv').write_text(f'name\n{array}\n')
    before = array.read_bytes()
    calls = [partial(embed.byol_embed, encoder, source), partial(check.byol_check, source), partial(evaluate.byol_evaluate, encoder, source)]
    for call in calls:
        with pytest.raises(CliError, match="cat.npz' is .*, and would be replaced"): call(workers=0, out=str(array), **how)
    assert array.read_bytes()==before
    assert options.check_out('pics/new.npz', source, encoder, options=how)==Path('pics/new.npz')

def test_a_file_of_a_run_is_not_replaced(here, encoder):
    "byol_evaluate run pics --out run/results.json took the verdict of the run; check and embed took other files"
    Path('run').mkdir()
    kept = dict.fromkeys(options.RUN_FILES, 'of the run') | {'settings.json': '{"settings": {}}'}
    for o,text in kept.items(): Path(f'run/{o}').write_text(text)
    os.symlink('run/report.html', 'page.html')
    calls = [(partial(evaluate.byol_evaluate, encoder, ['pics']), ('results.json','settings.json')),
             (partial(check.byol_check, ['pics'], n_in=1), ('skipped.csv','held_out.csv','history.csv')),
             (partial(embed.byol_embed, encoder, ['pics'], neighbors=True), ('report.npz',))]
    for call,names in calls:
        for name in names:
            with pytest.raises(CliError, match='is written by the run in that folder'): call(workers=0, out=f'run/{name}')
    with pytest.raises(CliError, match='is written by the run in that folder'): calls[2][0](workers=0, out='page.npz')
    assert {o: Path(f'run/{o}').read_text() for o in kept}==kept and not Path('run/report.npz').exists()
    # other names, and a folder without a run
    embed.byol_embed(encoder, ['pics'], workers=0, out='run/report.npz')
    Path('results.json').write_text('of an evaluation')
    evaluate.byol_evaluate(encoder, ['pics'], workers=0, draws=2, out='results.json')
    assert 'rows' in json.loads(Path('results.json').read_text())

@pytest.mark.parametrize('text', ['{"python.linting": true}','[1]','{"settings": [1]}','{"settings": {}','\xff',None])
def test_settings_of_another_program_make_no_run(here, encoder, text):
    "With a settings.json of an editor in the working directory, the second `byol_evaluate … --out results.json` was refused"
    if text is None: Path('settings.json').mkdir()
    else: Path('settings.json').write_text(text, encoding='latin-1')
    Path('results.json').write_text('of an evaluation')
    assert options.check_out('results.json', 'pics', encoder)==Path('results.json')

@pytest.mark.parametrize('name', ['history.csv','held_out.csv','report.html','export.pkl'])
def test_a_file_with_the_name_of_a_file_of_a_run_is_not_replaced(here, encoder, name):
    "fastai writes history.csv and export.pkl, and a list of pictures to hold out may be called held_out.csv"
    Path('mine').mkdir()
    Path(f'mine/{name}').write_text('name\n'+'\n'.join(files_of('pics/valid')))
    before = Path(f'mine/{name}').read_bytes()
    how = dict(holdout=f'mine/{name}') if name=='held_out.csv' else {}
    *_,out = pretrain.pretrain('pics', 'mine', **SMALL | how)
    assert out==Path('mine-2') and Path(f'mine/{name}').read_bytes()==before

@pytest.mark.parametrize('out', ['pics','pics/','./pics'])
def test_a_run_is_not_written_among_the_pictures(here, encoder, out):
    "Its figures and checkpoints lay among the user's photographs"
    before = sorted(os.walk('pics'))
    for call in (partial(pretrain.pretrain, 'pics', epochs=1), partial(pretrain.pretrain, ['pics'], epochs=1), partial(finetune.finetune, encoder, 'pics')):
        with pytest.raises(ValueError, match='is the folder of the pictures'): call(out=out, workers=0, progress=False)
    assert sorted(os.walk('pics'))==before

@pytest.mark.parametrize('name', ['l.txt','l.csv'])
def test_a_picture_without_suffix_in_a_list_is_not_replaced(here, name):
    Path('pics/0001').write_bytes(Path(files_of('pics')[0]).read_bytes())
    Path(name).write_text('name\n'*name.endswith('csv')+'pics/0001\n')
    with pytest.raises(CliError, match='is among the files that are read'): check.byol_check([name], n_in=1, workers=0, out='pics/0001')
    assert Path('pics/0001').read_bytes()

# A file that is no regular one

def test_a_link_stays_a_link(here):
    "Also one to a file that is not there yet"
    Path('elsewhere').mkdir()
    os.symlink('elsewhere/c.csv', 'c.csv')
    for data in (b'1',b'2'):
        assert write_atomic('c.csv', data)==Path('c.csv')
        assert Path('c.csv').is_symlink() and Path('elsewhere/c.csv').read_bytes()==data
    assert os.listdir('elsewhere')==['c.csv']
    check.byol_check(['pics'], n_in=1, workers=0, out='c.csv')
    assert Path('c.csv').is_symlink()

def test_a_device_stays_a_device(here, encoder, monkeypatch):
    "Replaced by a regular file in /dev, it would be lost to the whole machine; others may not write there at all"
    # never on the machine's own: a pipe is no regular file either
    os.mkfifo('pipe')
    def use(call):
        reader = os.open('pipe', os.O_RDONLY | os.O_NONBLOCK)
        try:
            call()
            assert Path('pipe').is_fifo()
            return os.read(reader, 100)
        finally: os.close(reader)
    assert use(lambda: write_atomic('pipe', b'text'))==b'text'
    assert use(lambda: write_atomic('pipe', lambda f: f.write(b'text')))==b'text'
    os.symlink('pipe', 'out')
    Path('pics/broken.png').write_bytes(b'no picture')
    assert b'broken.png' in use(lambda: check.byol_check(['pics'], n_in=1, workers=0, max_bad=.5, out='out'))
    os.chmod('pipe', 0o600)
    def nowhere(*args, **kwargs): raise OSError(13, 'Permission denied')
    monkeypatch.setattr('tempfile.TemporaryFile', nowhere)   # in /dev
    assert options.check_out('out', 'pics')==Path('out')
    with pytest.raises(ValueError, match='cannot be written'): options.check_out('new', 'pics')

# Pictures that have moved

class CtrlC(Callback):
    "Ctrl-C in the third step"
    def after_batch(self):
        if self.training and self.train_iter==3: signal.raise_signal(signal.SIGINT)

def interrupted(monkeypatch, path, **settings):
    "Begin a run of two epochs, and end it in the third step"
    whole = pretrain.run_learner
    def cut(*args):
        learn = whole(*args)
        learn.add_cb(CtrlC())
        return learn
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(pretrain, 'run_learner', cut)
        pretrain.pretrain(path, 'run', **SMALL | dict(epochs=2) | settings)

def test_a_run_goes_on_if_the_list_of_those_held_out_has_moved_too(here, monkeypatch, capsys):
    "From another working directory, and it is recorded as seen from there"
    Path('test.txt').write_text('\n'.join(Path(f).name for f in files_of('pics/valid')[:20]))
    interrupted(monkeypatch, 'pics', holdout='test.txt')
    Path('new').mkdir()
    Path('pics').rename('new/pictures')
    Path('test.txt').rename('new/held.txt')
    monkeypatch.chdir('new')
    asked = dict(path=str(here/'new/pictures'), holdout='../new/held.txt')
    learn,_,_ = pretrain.pretrain(out='../run', resume=True, progress=False, **asked)
    out = capsys.readouterr().out
    assert 'going on with epoch' in out and out.count('takes its place')==2 and len(learn.dls.valid_ds)==20
    now = json.loads(Path('../run/settings.json').read_text())
    assert now['cwd']==os.getcwd() and now['settings'] | asked==now['settings']

@pytest.mark.parametrize('sources', [['a','b'], '.', '[ab]/*/*.png'])
def test_a_run_on_relative_sources_goes_on_from_another_folder(here, monkeypatch, capsys, sources):
    "Their names have no common folder there and one here, and the resume was refused as one of other pictures"
    for old,new in (('train','a'), ('valid','b')): Path('pics',old).rename(new)
    Path('pics').rmdir()
    interrupted(monkeypatch, sources)
    Path('sub').mkdir()
    monkeypatch.chdir('sub')
    pretrain.pretrain(out='../run', resume=True, progress=False)
    assert 'going on with epoch' in capsys.readouterr().out

def test_a_run_goes_on_with_pictures_that_have_moved(here, monkeypatch, capsys):
    "Also from another working directory, where a relative path names nothing; other pictures are refused"
    interrupted(monkeypatch, 'pics')
    assert list(Path('run/checkpoints').glob('*.pt'))
    first = json.loads(Path('run/settings.json').read_text()) | dict(command='the first', device='of the first', versions={})
    Path('run/settings.json').write_text(json.dumps(first))
    Path('elsewhere').mkdir()
    Path('pics').rename('elsewhere/moved')
    write_mnist_tiny('other')
    next(Path('other').rglob('*.png')).unlink()
    with pytest.raises(ValueError, match="^path='pics' is not an existing folder"): pretrain.pretrain(out='run', resume=True, progress=False)
    with pytest.raises(ValueError, match='path=.nowhere. differs from the run'): pretrain.pretrain('nowhere', 'run', resume=True, progress=False)
    with pytest.raises(ValueError, match='holds a fit'): pretrain.pretrain('other', 'run', resume=True, progress=False)
    learn,_,_ = pretrain.pretrain('elsewhere/moved', 'run', resume=True, progress=False)
    said = capsys.readouterr().out
    assert "path: 'pics' is gone, and 'elsewhere/moved' takes its place" in said and 'going on with epoch' in said
    assert run_folder.read_settings(Path('run/settings.json'))['path']=='elsewhere/moved'
    # How the run was started is not lost
    assert json.loads(Path('run/settings.json').read_text())==first | dict(settings=first['settings'] | dict(path='elsewhere/moved'))
    assert learn.train_iter==2*len(learn.dls.train)
    # What is there is not replaced
    with pytest.raises(ValueError, match="path='other' differs from the run in 'run'"): pretrain.pretrain('other', 'run', resume=True, progress=False)

@pytest.mark.parametrize('name,was,now,moved', [
    ('path',['a','b'],['pics','other'],True), ('path',['pics','b'],['pics','other'],True), ('path',['pics','b'],['pics','nowhere'],False),
    ('path',['a','b'],['other'],False), ('path',['a','pics'],['other','l.csv'],False), ('path','pics/**/*.png','other',False), ('path','p*s','other',False), ('path','a','p*s',True),
    ('init','a.pt','l.csv',True), ('init',None,'l.csv',False), ('labels','a.csv:kind','l.csv:kind',True), ('labels','a.csv:kind','l.csv:other',False),
    ('labels','a.csv:kind','column',False), ('holdout','a','pics',False), ('holdout','a.txt','l.csv',True), ('holdout','gone/valid','other/',True),
    ('holdout',.2,'l.csv',False), ('holdout','0.2','l.csv',False), ('holdout','a.txt',.2,False), ('holdout','valid,test','l.csv',False),
    ('holdout','l.csv','other/',False), ('seed','a.txt','l.csv',False)])
def test_a_place_has_moved_if_it_is_gone_and_the_new_one_is_there(name, was, now, moved, here):
    Path('other').mkdir()
    Path('l.csv').write_text('name,kind\n')
    assert run_folder._has_moved(name, now, was)==moved

@pytest.mark.parametrize('now', ['same','other','gone','torch'])
def test_a_run_is_resumed_with_the_weights_that_it_started_from(here, monkeypatch, now):
    "The file may be that of a training which goes on: its new weights were measured as the start, and took the place of start.safetensors"
    def save(seed):
        torch.manual_seed(seed)
        return save_encoder(create_encoder('tiny_resnet', pretrained=False, n_in=1), 'latest.safetensors', size=8, stats=([.2],[.3]))
    init = str(save(0))
    if now=='torch':
        torch.save(dict(state_dict=create_encoder('tiny_resnet', pretrained=False, n_in=1).state_dict()), 'latest.pth')
        init = 'latest.pth'
    kept = Path(init).read_bytes()
    interrupted(monkeypatch, 'pics', init=init)
    before = Path('run/start.safetensors').read_bytes()
    if now=='other': save(1)
    if now in ('gone','torch'): Path(init).unlink()
    learn,feats,_ = pretrain.pretrain(out='run', resume=True, progress=False)
    assert Path('run/start.safetensors').read_bytes()==before
    Path(init).write_bytes(kept)
    whole,want,_ = pretrain.pretrain('pics', 'whole', init=init, **SMALL | dict(epochs=2))
    for name in want: torch.testing.assert_close(feats[name][1][0], want[name][1][0], rtol=0, atol=0)
    assert encoder_info('run')==encoder_info('whole')
    assert pretrain.record_of(learn.model.encoder).items()>=pretrain.record_of(whole.model.encoder).items()

def test_a_change_of_the_settings_keeps_the_record_of_the_start(here, monkeypatch):
    "After a collapse as well, and if the record is gone there is a new one"
    run = Path('run')
    run.mkdir()
    first = dict(command='the first', cwd=str(here), settings=dict(path='pics', labels='l.csv', holdout=.2, views={}))
    def read(): return json.loads((here/'run/settings.json').read_text())
    def write(): (here/'run/settings.json').write_text(json.dumps(first))
    write()
    pretrain._note(run, AttrDict(first['settings']), [1])
    assert read()==first | dict(settings=first['settings'] | dict(mended=[1]))
    (here/'run/settings.json').unlink()
    pretrain._note(run, AttrDict(first['settings']), [1])
    assert read()['settings']['mended']==[1]
    # Settings as seen from another folder: nothing has moved; then one has, and all are written as seen from there
    write()
    Path('other').mkdir()
    monkeypatch.chdir('other')
    seen = dict(path=str(here/'pics'), labels=str(here/'l.csv'), holdout='0.2', seed=3)
    run_folder.record_moved(here/'run', seen)
    assert read()==first
    run_folder.record_moved(here/'run', seen | dict(path='new'))
    assert read()==first | dict(cwd=os.getcwd(), settings=first['settings'] | dict(path='new', labels=str(here/'l.csv'), holdout='0.2'))

def test_a_pattern_is_recognised_from_another_working_directory(here, monkeypatch):
    "Folders at any depth below `**`"
    record = dict(cwd=str(here), settings=dict(path='pics/**/*.png', views={}))
    Path('run').mkdir()
    Path('run/settings.json').write_text(json.dumps(record))
    Path('other').mkdir()
    monkeypatch.chdir('other')
    assert run_folder.settings_for(here/'run', 'x')['path']==str(here/'pics/**/*.png')

@pytest.mark.parametrize('asked,found,printed', [
    (dict(path='{here}/pics'), dict(path='{here}/pics'), ''), (dict(path='../pics'), dict(path='{here}/pics'), ''),
    ({}, dict(path='{here}/pics', labels='{here}/l.csv:kind', holdout='{here}/names', init='{here}/a.pt'), ''),
    (dict(labels='../l.csv:kind', holdout='../names'), dict(labels='{here}/l.csv:kind'), ''),
    (dict(init='new.pt'), dict(init='new.pt'), "init: '{here}/b.pt' is gone, and 'new.pt' takes its place\n"),
    (dict(path='pics'), dict(path='pics', labels='l.csv:kind'), '')])
def test_a_run_is_resumed_from_another_working_directory(asked, found, printed, here, monkeypatch, capsys):
    "What it calls `pics` lies in the folder where it was started, also if there is another `pics` here"
    def at(o): return o.format(here=here)
    for o in ('a.pt','names'): Path(o).touch()
    Path('l.csv').write_text('name,kind\n')
    settings = dict(path='pics', labels='l.csv:kind', holdout='names', init='b.pt' if printed else 'a.pt', views={},
                    seed=1, workers=0, pretrained=False, unlabelled=False, bf16=False)
    Path('run').mkdir()
    Path('run/settings.json').write_text(json.dumps(dict(cwd=str(here), settings=settings)))
    Path('other/pics').mkdir(parents=True)
    Path('other/new.pt').touch()
    monkeypatch.chdir('other')
    got = run_folder.recorded_settings('../run', {}, **{k: at(o) for k,o in asked.items()})
    assert {k: got[k] for k in found}=={k: at(o) for k,o in found.items()} and capsys.readouterr().out==at(printed)
    with pytest.raises(ValueError, match='path=.nowhere. differs from the run .*has path=.*/pics'):
        run_folder.recorded_settings('../run', {}, path='nowhere')
    Path('../run/results.json').touch()
    Path('../run-2').mkdir()
    shutil.copy('../run/settings.json', '../run-2/settings.json')
    Path('../run-2/results.json').touch()
    changed = dict(settings, path='other')
    Path('../run/settings.json').write_text(json.dumps(dict(cwd=str(here), settings=changed)))
    with pytest.raises(ValueError, match='run-2, a run of that path'): run_folder.recorded_settings('../run', {}, path=str(here/'pics'))

def test_a_name_that_begins_with_a_dash_can_be_passed(here, encoder):
    "After --, as in other programs"
    Path('pics').rename('-pics')
    read = options.command_parser(embed.byol_embed).read
    assert read(['--bs', '8', '--', str(encoder), '-pics', 'b'])['path']==['./-pics','b']
    assert read([str(encoder), '--', '-pics'])['bs']==64
    p = run('byol_embed', encoder, '--workers', 0, '--', '-pics', cwd=here)
    assert p.returncode==0 and 'features each' in p.stdout, p.stderr

# A held-out part of one label

def few_of_two(folder, n=12):
    for label in 'ab':
        Path(folder, label).mkdir(parents=True)
        for i in range(n): Image.new('L', (16,16), 9*i if label=='a' else 255-9*i).save(Path(folder, label, f'{i:02}{label}.png'))

def test_pictures_of_one_label_are_not_held_out_alone(here):
    "By chance a fifth of 24 pictures has one label in some of the splits: any classifier that knows it scores 1"
    few_of_two('two')
    for seed in range(150):
        s = pictures.split_pictures(AttrDict(path='two', unlabelled=False, seed=seed), pictures.run_pictures(AttrDict(path='two')), tell=False)
        assert {s.labels[i] for i in s.held}=={'a','b'} and len(s.held)==4

def split_of(path, **settings):
    s = AttrDict(dict(path=path, unlabelled=False) | settings)
    return pictures.split_pictures(s, pictures.run_pictures(s), tell=False, fewest=2)

def test_chance_that_finds_one_label_alone_says_so(here):
    many = AttrDict(path='x', holdout=1e-4, seed=0),[Path(f'{i}.png') for i in range(20002)],['a']*20000+['b']*2,{'a','b'}
    with pytest.warns(UserWarning, match='holds out 2 pictures with fewer than two labels, so .*Hold out a larger part') as said: held = pictures._held(*many, 'holdout')[2]
    assert len(said)==1 and sum(held)==2
    few_of_two('two')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        split_of('two', seed=0, holdout=.3)

def test_a_draw_is_judged_with_the_copies_that_follow_the_first_picture(here):
    "A second name of a picture goes where the first goes, which may leave one label again"
    items = [Path(f'a/{i}.png') for i in range(12)] + [Path(f'b/{i%2}.png') for i in range(40)]
    labels = ['a']*12+['b']*40
    for seed in range(60):
        held = pictures._held(AttrDict(path='.', holdout=.2, seed=seed), items, labels, {'a','b'}, 'holdout')[2]
        assert {o for o,out in zip(labels, held) if out}=={'a','b'}
        assert len({o for o,out in zip(items, held) if out} & {o for o,out in zip(items, held) if not out})==0

def test_a_run_that_held_out_one_label_is_evaluated_on_a_part_drawn_by_chance(here, encoder, capsys):
    few_of_two('two')
    Path('run').mkdir()
    Path(encoder).rename('run/encoder.safetensors')
    Path('run/held_out.csv').write_text(''.join(f'a/{i:02}a.png\n' for i in range(4)))
    Path('run/settings.json').write_text(json.dumps(dict(settings=dict(path='two', views={}))))
    rows = evaluate.evaluate_pictures('run', 'two', n=2, workers=0)['rows']
    assert 'the 4 pictures that run held out have fewer than two labels in common with the training part: a part is drawn by chance' in capsys.readouterr().out
    assert rows
    assert finetune.finetune('run', 'two', 'c', epochs=1, labels_per_class=2, workers=0, progress=False)[0]['vocab']==['a','b']

def test_a_run_on_a_tar_of_folders_is_judged_by_their_names(here):
    "As with --valid; its pictures were left out for want of a label, and the message asked for folders"
    with tarfile.open('pics.tar', 'w') as t: t.add('pics/train', arcname='.')
    pretrain.pretrain('pics.tar', 'run', **SMALL)
    held = Path('run/held_out.csv').read_text().split()
    res = evaluate.evaluate_pictures('run', 'pics.tar', draws=2, workers=0)
    assert res['n_test']==len(held)>20

def test_pictures_of_one_sample_of_a_tar_are_held_out_together(tmp_path, monkeypatch):
    "A run tested on samples of which it had trained on another picture"
    monkeypatch.chdir(tmp_path)
    some_pictures('one.png')
    ends = 'jpg','left.png'
    with tarfile.open('a.tar', 'w') as t:
        for i in range(30):
            for end in ends: t.add('one.png', f'{i:03}.{end}')
    Path('names.txt').write_text('\n'.join(f'{i:03}.jpg' for i in range(6)))
    for holdout,n in ((.3,None),('names.txt',12)):
        s = pretrain.AttrDict(path='a.tar', unlabelled=False, seed=42, holdout=holdout)
        got = pictures.split_pictures(s, pictures.run_pictures(s))
        train,held = ({got.items[i].name[:3] for i in part} for part in (got.train,got.held))
        assert held and not train & held and len(train)+len(held)==30
        if n: assert len(got.held)==n

def test_a_folder_of_the_same_name_in_other_signs_is_not_held_out():
    "Of é as one sign and é as two signs in one source, pictures that were trained on were tested on: 15 of the 12 held out"
    items = [unicodedata.normalize(form, f'pics/é/{i}.png') for form in ('NFC','NFD') for i in range(4)]
    held = [items[i].removeprefix('pics/') for i in (0,5,6)]
    assert [o is not None for o in pictures.recorded_names('pics', items, held, 'pics')]==[i in (0,5,6) for i in range(8)]

def renumbered(folder):
    "Delete the first picture of each folder, and number the others anew"
    for o in sorted({Path(f).parent for f in files_of(folder)}):
        names = files_of(o)
        os.remove(names[0])
        for was,name in zip(names[1:], names): os.rename(was, name)

def changed_since(f, *args, **how):
    "The warning that held-out pictures are others now; None without one"
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        f(*args, **how)
    return next((str(o.message) for o in seen if 'have changed since' in str(o.message)), None)

@pytest.mark.parametrize('source', ['pics','pics.tar','pics/*/*/*.png'])
def test_held_out_names_that_are_other_pictures_now_are_told_of(here, source):
    "After one was deleted and the others were numbered anew, a run was tested on pictures it had trained on, in silence"
    def packed():
        if source=='pics.tar':
            with tarfile.open('pics.tar', 'w') as t: t.add('pics', arcname='.')
    packed()
    pretrain.pretrain(source, 'run', **SMALL)
    def test(): return evaluate.part_to_test(Path('run'), source, None, None, 42, {})
    def begin():
        s = pretrain.AttrDict(path=source, init='run', unlabelled=False, seed=42, holdout='run/held_out.csv')
        listed = pictures.run_pictures(s)
        return pretrain.seen_before(s, [listed[i] for i in pictures.split_pictures(s, listed).held], listed)
    assert changed_since(test) is None and changed_since(begin) is None
    renumbered('pics')
    packed()
    for f in (test, begin):
        n,_,of,*_ = changed_since(f).split()
        assert 50<int(n)<=int(of)==72

def test_a_tar_of_the_same_pictures_has_not_changed(here):
    "Nor their copy in another folder"
    with tarfile.open('pics.tar', 'w') as t: t.add('pics', arcname='.')
    shutil.copytree('pics', 'copy')
    pretrain.pretrain('pics', 'run', **SMALL)
    def test(): assert len(evaluate.part_to_test(Path('run'), source, None, None, 42, {}).held)==72
    for source in ('pics.tar','copy'): assert changed_since(test) is None

def test_a_list_of_held_out_names_alone_is_enough(here):
    "As older runs wrote it"
    pretrain.pretrain('pics', 'run', **SMALL)
    Path('run/held_out.csv').write_text(''.join(f'{o}\n' for o in pictures.read_held_out('run')))
    def test(): return evaluate.part_to_test(Path('run'), 'pics', None, None, 42, {})
    assert changed_since(test) is None and len(test().held)==72

def test_code_that_a_command_prints_runs_whatever_the_folder_is_called(tmp_path, monkeypatch, capsys):
    "A folder such as `Ann's run` ended the text in the middle"
    monkeypatch.chdir(tmp_path)
    folder = Path("Ann's run")
    folder.mkdir()
    for name in ('results.json','export.pkl'): (folder/name).write_text('{}')
    for module in (pretrain, finetune): monkeypatch.setattr(module, 'as_text', lambda *args: '')
    monkeypatch.setattr(finetune, 'finetune', lambda *args, **how: (dict(rows={}, verdict=[], said=[]), folder))
    monkeypatch.setattr(finetune, 'tell_encoder', lambda encoder: None)
    pretrain._print_summary(folder)
    finetune.byol_finetune('encoder', 'pics')
    lines = [o.strip() for o in capsys.readouterr().out.splitlines() if '.safetensors' in o and 'load' in o or 'predict(' in o]
    assert len(lines)==2
    for line in lines: compile(line, 'printed', 'exec')

@pytest.mark.parametrize('labels', [None,'l.csv'])
def test_a_part_drawn_by_chance_of_the_pictures_of_a_run_is_told_of(here, labels, capsys):
    "It was tested on what the run had trained on, in silence, although a part that was held out is there"
    files = [os.path.relpath(f, 'pics') for f in files_of('pics')]
    if labels: Path(labels).write_text('name,label\n'+''.join(f'{f},{Path(f).parent.name}\n' for f in files))
    shutil.copytree('pics', 'other')
    pretrain.pretrain('pics', 'run', **SMALL | dict(labels=labels))
    def told(valid, path='pics'):
        capsys.readouterr()
        evaluate.part_to_test(Path('run'), path, valid, None, 42, {})
        out = [capsys.readouterr().out]
        finetune._part_of_run(Path('run'), path, AttrDict(valid=valid, labels=None, seed=42, reading={}))
        return ['some of the pictures may be among those that run was trained on. Leave valid out to test on the pictures that run held out.' in o for o in (*out, capsys.readouterr().out)]
    assert told(.3)==[True]*2
    assert told(None)==told('valid')==told(.3, 'other')==[False]*2

def seen_by_a_classifier(monkeypatch, run, path):
    "Names of the pictures to learn from, and of those to test on"
    monkeypatch.setattr(finetune, 'export_classifier', lambda *args: [])
    parts = []
    def noted(*args, **how):
        dls = image_dls(*args, **how)
        parts.append([sorted(os.path.normpath(o) for o in ds.items) for ds in (dls.train_ds,dls.valid_ds)])
        return dls
    monkeypatch.setattr(finetune, 'image_dls', noted)
    finetune.finetune(run, path, 'c', epochs=1, workers=0, progress=False)
    return parts[0]

def test_rows_of_no_part_are_not_learned_from_beside_a_run(here, monkeypatch, capsys):
    "The rows that the column of parts called test were labelled pictures to learn from, in silence"
    rows = [(f, f'kind {Path(f).parent.name}', ('train','valid','test')[i%3]) for i,f in enumerate(files_of('pics'))]
    with open('t.csv', 'w') as f: csv.writer(f).writerows([('file','kind','part'), *rows])
    pretrain.pretrain('t.csv', 'out', column='file', labels='kind', holdout='part', **SMALL)
    capsys.readouterr()
    want = [sorted(name for name,_,part in rows if part==o) for o in ('train','valid')]
    assert seen_by_a_classifier(monkeypatch, 'out', 't.csv')==want
    assert "left out: 120 rows, of which 'part' says 'test'" in capsys.readouterr().out
    part = evaluate.part_to_test(Path('out'), 't.csv', None, 'kind', 42, dict(column='file'))
    assert sorted(os.path.normpath(part.items[i]) for i in part.train)==want[0]
    # another table that has one of the parts alone
    for one in ('valid','train'):
        with open('some.csv', 'w') as f: csv.writer(f).writerows([('file','kind','part'), *(row for row in rows if row[2]==one)])
        capsys.readouterr()
        evaluate.part_to_test(Path('out'), 'some.csv', None, 'kind', 42, dict(column='file'))
        assert 'drawn by chance' in capsys.readouterr().out
    # a folder of that name came before the column
    s = AttrDict(path='pics')
    assert pictures.in_both_parts(s, pictures.run_pictures(s), 'valid')==list(range(362))==pictures.in_both_parts(s, pictures.run_pictures(s), .2)

def test_a_test_part_that_is_learned_from_beside_a_run_is_named(here, monkeypatch):
    "The run held out valid, and the classifier learned the labels of test without the warning that --valid valid brings"
    shutil.copytree('pics/valid', 'pics/test')
    for i in range(20): Image.new('L', (28,28), 9*i).save(f'pics/test/{i}.png')   # without a label
    pretrain.pretrain('pics', 'out', holdout='valid', **SMALL)
    n = len(files_of('pics/valid'))
    said = f"holdout='valid' of out holds out that folder alone: the {n} pictures in 'test' are learned from"
    with pytest.warns(UserWarning, match=said): assert len(seen_by_a_classifier(monkeypatch, 'out', 'pics')[1])==n
    with pytest.warns(UserWarning, match=f'the {n} pictures'): evaluate.labelled_pictures('pics', 12, valid='valid', workers=0)
    pretrain.pretrain('pics', 'chance', **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        evaluate.part_to_test(Path('chance'), 'pics', None, None, 42, {})

def test_tars_called_after_parts_are_no_classes(tmp_path, monkeypatch):
    "Without --labels an encoder was judged by, and a classifier made for, the shard that a picture lies in: val or test"
    monkeypatch.chdir(tmp_path)
    Path('s').mkdir()
    flat_tars(*(f's/{o}.tar' for o in ('train-0000','train-0001','val-0000','test-0000')))
    for path in ('s', ['s/val-0000.tar','s/test-0000.tar'], ['s/train-0000.tar','s/train-0001.tar','s/val-0000.tar']):
        with pytest.raises(ValueError, match='has no picture with a label.*or labels'): evaluate.labelled_pictures(path, 12, workers=0)
    def of(*tars): return pictures.labels_by_folder([f's/{o}/0.png' for o in tars])
    assert of('train.tar', 'test.tar')==[None]*2==of('imagenet-train-000.tar', 'imagenet-val-000.tar')==of('train', 'val.tar')
    assert of('train.tar/cat', 'train.tar/dog', 'test.tar')==['cat','dog',None]   # as on Kaggle
    assert of('train.tar', 'bus.tar')==['train.tar','bus.tar'] and of('latest.tar', 'contest.tar')==['latest.tar','contest.tar']

def test_labels_of_a_run_are_those_of_another_table_or_tar_too(here, monkeypatch, capsys):
    "They were the names of folders, in silence: of cameras, say"
    def source(name, begin):
        with open(f'{name}.csv', 'w') as f: csv.writer(f).writerows([('file','kind'), *((o, f'kind {i%2}') for i,o in enumerate(files_of('pics')) if begin in o)])
        with tarfile.open(f'{name}.tar', 'w') as t:
            for i,o in enumerate(files_of('pics')):
                if begin not in o: continue
                t.add(o, o)
                info = tarfile.TarInfo(str(Path(o).with_suffix('.cls')))
                info.size = 6
                t.addfile(info, BytesIO(f'kind {i%2}'.encode()))
    source('a', 'pics')
    source('b', 'pics/train')
    for kind,labels,how in (('csv','kind',dict(column='file')), ('tar','cls',{})):
        pretrain.pretrain(f'a.{kind}', kind, labels=labels, **how, **SMALL)
        capsys.readouterr()
        assert evaluate.labels_to_use(Path(kind), f'b.{kind}', None, how)==labels and not capsys.readouterr().out
        assert evaluate.labels_to_use(Path(kind), 'pics', None, {}) is None
        assert f"labels='{labels}' of the run is not here: folders name the labels" in capsys.readouterr().out
        res,_ = finetune.finetune(kind, f'b.{kind}', 'c', valid=.3, epochs=1, workers=0, progress=False, **how)
        assert res['vocab']==['kind 0','kind 1']

def test_a_named_part_that_a_run_was_trained_on_is_told_of(here, capsys):
    "--valid valid after a run that had held out another part was tested in silence on pictures that it had seen"
    valid = [os.path.relpath(f, 'pics') for f in files_of('pics/valid')]
    Path('h.txt').write_text('\n'.join(valid))
    for out,how in (('chance',{}), ('named',dict(holdout='valid')), ('listed',dict(holdout='h.txt'))): pretrain.pretrain('pics', out, **SMALL | how)
    shutil.copytree('pics', 'other')
    def told(run, part, path='pics'):
        capsys.readouterr()
        evaluate.part_to_test(Path(run), path, part, None, 42, {})
        out = [capsys.readouterr().out]
        finetune._part_of_run(Path(run), path, AttrDict(valid=part, labels=None, seed=42, reading={}))
        out.append(capsys.readouterr().out)
        assert out[0]==out[1]
        return out[0]
    n = len(set(valid)-set(pictures.read_held_out('chance')))
    for part in ('valid','h.txt','pics/valid'):
        assert f'valid={part!r}: {n} of {len(valid)} pictures may be among those that chance was trained on. Leave' in told('chance', part)
        assert not told('named', part) and not told('listed', part)
    assert '242 of 242 pictures may be' in told('named', 'train') and not told('chance', 'valid', 'other')
    pretrain.pretrain('pics', 'all', **SMALL | dict(holdout=0))
    assert told('all', 'valid')=="valid='valid': 120 of 120 pictures may be among those that all was trained on.\n" and 'some of the pictures' in told('all', .2)
    # those that were held out are gone
    for o in valid: Path('pics', o).unlink()
    evaluate.part_to_test(Path('named'), 'pics', None, None, 42, {})
    assert "none of the 120 pictures that named held out is in 'pics' now" in capsys.readouterr().out
