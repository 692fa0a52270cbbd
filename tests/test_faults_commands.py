"The commands: one way to say how pictures are read, what was held out is known later, an error or a warning is one line"
import csv, json, os, subprocess, sys, warnings
from pathlib import Path

import matplotlib.pyplot as plt, numpy as np, pytest, torch
from fastcore.script import CliError
from PIL import Image

from self_supervised.cli import check, embed, evaluate, finetune, options, pictures, pretrain, run_folder
from self_supervised.cli.terminal import one_line_errors
from self_supervised.core import literal
from self_supervised.data.demo import write_mnist_tiny
from self_supervised.data.images import image_dls
from self_supervised.data.reading import open_picture
from self_supervised.layers import create_encoder
from self_supervised.plots import plot_embedding
from self_supervised.transfer.encoder_file import encoder_info, save_encoder

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

COMMANDS = dict(byol_pretrain=pretrain.byol_pretrain, byol_embed=embed.byol_embed, byol_evaluate=evaluate.byol_evaluate, byol_check=check.byol_check)

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
    items = ['a/1.png']*12+['b/1.png']*12+['c/1.png']*9
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
    assert evaluate.part_to_test(Path('out'), 'pics', 'valid', None, 1, {})=='valid' and evaluate.part_to_test(Path('out'), 'pics', .5, None, 1, {})==.5
    assert not capsys.readouterr().out

def split(**kw):
    s = pretrain.AttrDict(dict(path='pics', unlabelled=False, seed=42) | kw)
    got = pictures.split_pictures(s, pictures.run_pictures(s))
    names = pictures.names_below('pics', got.items)
    return got,{names[i] for i in got.held}

def test_what_may_be_held_out(here):
    valid = {str(Path(f).relative_to('pics')) for f in files_of('pics/valid')}
    assert split(holdout='valid')[1]==valid==split(holdout='nothing, valid')[1]
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
    assert res.returncode==0 and res.stdout=='features.npz: 1 picture, 256 features each\n' and not res.stderr

@pytest.mark.parametrize('n,word,text', [(1,'batch','1 batch'), (2,'batch','2 batches'), (2,'epoch','2 epochs'), (3,'class','3 classes'),
    (0,'picture','0 pictures'), (1200,'step','1,200 steps'), (2,'box','2 boxes')])
def test_words_in_their_number(n, word, text):
    from self_supervised.core import counted
    assert counted(n, word)==text
