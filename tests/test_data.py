"Rows 10, 12 and 29 of HAZARDS.md, and pictures from wherever they are: real files, real processes, real loaders"
import csv, io, multiprocessing, os, pickle, random, re, subprocess, sys, tarfile, warnings, zlib
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from fastai.data.transforms import parent_label
from fastai.distributed import DistributedDL
from fastai.learner import Learner, load_learner
from fastcore.script import CliError
from PIL import Image
from torch import nn

from benchmarks.bad_files import png, train, write_bad, write_good
from self_supervised.data.demo import digits
from self_supervised.data.images import image_dls
from self_supervised.data.skipped import Skipped, TooManyBad, check_pictures
from self_supervised.cli.check import byol_check
from self_supervised.data.sources import picture_files, picture_items
from self_supervised.data.reading import BadPicture, open_picture
from self_supervised.vision.byol import BYOL, create_byol_model, get_byol_aug_pipelines

pytestmark = pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning', 'ignore:Your generator is empty')

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "500 files, 24 of them bad, and which those are"
    path = tmp_path_factory.mktemp('pics')
    write_good(path, 476)
    return path, set(map(str, write_bad(path, 24)))

def batches(dls): return [b[0] for b in dls.train]

# Row 10

def sixteen_bit_rgb(f, a):
    "PIL reads but does not write these"
    rows = b''.join(b'\0'+r.astype('>u2').tobytes() for r in a)
    chunk = lambda kind, b: len(b).to_bytes(4, 'big')+kind+b+zlib.crc32(kind+b).to_bytes(4, 'big')
    f.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', a.shape[1].to_bytes(4, 'big')+a.shape[0].to_bytes(4, 'big')+bytes([16,2,0,0,0])) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b''))

@pytest.mark.parametrize('name,top,dtype', [('a.png',65535,'<u2'), ('a.tif',65535,'<u2'), ('a.tif',65535,'>u2'), ('a.tif',2**31-1,'<i4'), ('a.tif',1,'<f4'), ('a.pgm',65535,'<u2'), ('a.webp',255,'u1')])
def test_10_wide_pictures_keep_their_values(tmp_path, name, top, dtype):
    ramp = np.linspace(0, 1, 64)[None].repeat(48, 0)
    im = Image.fromarray((ramp*top).astype(dtype)) if dtype!='>u2' else Image.frombytes('I;16B', (64,48), (ramp*top).astype(dtype).tobytes())
    im.save(tmp_path/name, **({} if dtype!='u1' else dict(lossless=True)))
    for n_in in (1,3):
        x = open_picture(tmp_path/name, n_in)
        assert x.shape==(n_in,48,64) and x.dtype==torch.float32
        assert (x.as_subclass(torch.Tensor) - torch.tensor(ramp)).abs().max() < .01

def test_10_sixteen_bit_colour(tmp_path):
    a = (np.linspace(0, 1, 64)[None,:,None]*np.array([1,.5,.25])).repeat(48, 0)
    sixteen_bit_rgb(tmp_path/'a.png', (a*65535).astype(np.uint16))
    assert (open_picture(tmp_path/'a.png').permute(1,2,0).as_subclass(torch.Tensor) - torch.tensor(a)).abs().max() < .01

# Row 12

@pytest.mark.parametrize('workers', [0,2])
def test_12_training_reaches_its_end_and_names_exactly_the_bad_ones(folder, workers, capsys):
    path,bad = folder
    learn = train(path, workers, bs=50, epochs=2)                       # a BYOL fit
    assert len(learn.recorder.losses)==20 and all(0<l<8 for l in learn.recorder.losses)
    skipped = learn.dls.skipped
    assert set(skipped)==bad and len(skipped)==24 and all(skipped.values())
    rows = list(csv.reader(open(skipped.log, newline='')))
    assert len(rows)==24 and {r[0] for r in rows}==bad                  # each once, over two epochs and two workers
    said = [l for l in capsys.readouterr().out.splitlines() if 'cannot be read' in l]
    assert len(said)==1 and said[0].startswith('24 of 500 ') and str(skipped.log) in said[0]

def test_12_batches_are_full_and_the_same_with_any_number_of_workers(folder):
    runs = [batches(image_dls(folder[0], 16, n_in=1, bs=48, workers=w, seed=1)) for w in (0,2)]
    for run in runs: assert [len(b) for b in run]==[48]*(450//48)
    for a,*others in zip(*runs): assert all(torch.equal(a, b) for b in others)

def test_12_the_same_in_each_epoch(folder):
    a,b = ({tuple(o.flatten().tolist()) for x in batches(dls) for o in x} for dls in [image_dls(folder[0], n_in=1, bs=50, workers=0, valid=0.)]*2)
    assert a==b

@pytest.mark.parametrize('workers', [0,2])
def test_12_a_label_goes_with_its_picture(tmp_path, workers):
    for i in range(40):
        (tmp_path/str(i%4)).mkdir(exist_ok=True)
        Image.new('L', (8,8), 60*(i%4)).save(tmp_path/str(i%4)/f'{i}.png')
    for i in range(4): (tmp_path/str(i)/'a.png').write_bytes(b'bad')    # each class has a bad one, and the very first file is one
    dls = image_dls(tmp_path, n_in=1, bs=4, workers=workers, label_func=parent_label, valid=0.)
    for x,y in dls.train: assert torch.equal((x.amax((1,2,3))*255/60).round().long(), y.as_subclass(torch.Tensor))
    assert len(dls.skipped)==4

def test_12_validation_counts_too(folder):
    dls = image_dls(folder[0], n_in=1, bs=50, workers=0, valid=.5)
    held = {str(f) for f in dls.valid_ds.items} & folder[1]
    assert held and [len(b[0]) for b in dls.valid]==[50]*5 and set(dls.skipped) & held==held

@pytest.mark.parametrize('workers', [0,2])
@pytest.mark.parametrize('max_bad,n', [(0,1), (.02,11)])
def test_12_too_many_stop_the_run(folder, workers, max_bad, n):
    dls = image_dls(folder[0], n_in=1, bs=50, workers=workers, max_bad=max_bad)
    said = rf'(\d+) of 500 pictures cannot be read, more than max_bad={max_bad}'
    with pytest.raises(TooManyBad, match=said) as e: batches(dls), batches(dls)
    found = int(re.search(said, str(e.value))[1])
    assert found==n if workers==0 else found>=n                         # a worker that has read ahead may have found more
    assert any(o in str(e.value) for o in folder[1])

def test_12_nothing_but_bad_ones_end_too(tmp_path):
    for i in range(20): (tmp_path/f'{i}.png').touch()
    with pytest.raises(TooManyBad): batches(image_dls(tmp_path, bs=4, workers=0))
    with pytest.raises(TooManyBad, match='byol_check'): batches(image_dls(tmp_path, bs=4, workers=0, max_bad=1))

@pytest.mark.parametrize('workers', [0,2])
def test_12_a_check_before_finds_what_training_would_skip(folder, workers):
    path,bad = folder
    found = check_pictures(path, n_in=1, workers=workers)
    assert set(found)==bad and not any('\n' in o or o=='' for o in found.values())
    dls = image_dls(path, n_in=1, bs=50, workers=workers, valid=0., check=True)
    assert set(dls.skipped)==bad and len(dls.train_ds)==476 and not set(map(str, dls.train_ds.items)) & bad
    with pytest.raises(TooManyBad): image_dls(path, n_in=1, bs=50, workers=workers, check=True, max_bad=.01)

def test_12_processes_write_one_list(tmp_path):
    "Names that csv, lines and encodings could stumble over, from four processes at once"
    log,odd = tmp_path/'new'/'log.csv',['a,b.png', 'two\nlines.png', 'quote".png', os.fsdecode(b'latin\xe9.png'), 'ünï.png']
    s = Skipped(10_000, 1., log)
    context = multiprocessing.get_context('fork')
    jobs = [context.Process(target=lambda k=k: [s.add(o, 'a "reason",\nof two lines') for o in odd+[f'{k}-{i}.png' for i in range(50)]]) for k in range(4)]
    for o in jobs: o.start()
    for o in jobs: o.join()
    assert set(s)=={*odd, *(f'{k}-{i}.png' for k in range(4) for i in range(50))} and set(s.values())=={'a "reason", of two lines'}
    assert len(Skipped(10, 1., log))==0                                  # begun anew

def test_12_a_name_is_written_once(tmp_path):
    a = Skipped(10, 1., tmp_path/'log.csv')
    b = pickle.loads(pickle.dumps(a))                                     # as a worker has it
    for o in (a,b,a): o.add('x.png', 'empty')
    b.add('y.png', 'cut')
    assert [r[0] for r in csv.reader(open(a.log, newline=''))]==['x.png','y.png']==list(a)

def test_12_damage_nobody_foresaw(tmp_path):
    "Bytes changed by chance in files of every kind: a picture, or an error that names the file"
    im,rng = Image.fromarray((digits(32)[0][0,0]*255).byte().numpy()),random.Random(0)
    bad = 0
    for ext,kw in dict(jpg={}, png={}, gif={}, bmp={}, tiff=dict(compression='tiff_lzw'), webp={}, pgm={}).items():
        im.save(tmp_path/f'a.{ext}', **kw)
        whole = (tmp_path/f'a.{ext}').read_bytes()
        for i in range(60):
            b = bytearray(whole)
            for _ in range(rng.randint(1, 8)): b[rng.randrange(min(len(b), 200 if i%2 else 10**6))] = rng.randrange(256)
            (tmp_path/f'b.{ext}').write_bytes(b[:rng.randint(1, len(b))] if i%3==0 else b)
            with warnings.catch_warnings(action='ignore'):
                try: x = open_picture(tmp_path/f'b.{ext}', 1, 16)
                except BadPicture as e: bad += 1; assert str(e).startswith(f"picture={str(tmp_path/f'b.{ext}')!r} ") and '\n' not in str(e)
                else: assert x.shape==(1,16,16) and x.isfinite().all()
    assert bad>80

def test_12_test_data_names_the_bad_file_instead_of_another(folder):
    "Predictions belong to files, so nothing takes another's place there"
    dls = image_dls(folder[0], n_in=1, bs=50, workers=0)
    good = [f for f in picture_files(folder[0]) if str(f) not in folder[1]]
    assert dls.test_dl(good[:3]).one_batch()[0].shape==(3,1,32,32)
    bad = sorted(folder[1])[0]
    with pytest.raises(BadPicture, match=Path(bad).name): dls.test_dl([good[0], Path(bad)]).one_batch()

# Row 29

def test_29_links_in_circles(tmp_path):
    for i in range(8):
        f = tmp_path/'abcd'[i%4]/f'{i}.png'
        f.parent.mkdir(exist_ok=True)
        Image.new('L', (4,4)).save(f)
    for d in 'abcd': (tmp_path/d/'up').symlink_to(tmp_path, target_is_directory=True)
    (tmp_path/'a'/'again.png').symlink_to(tmp_path/'b'/'1.png')
    (tmp_path/'z').symlink_to(tmp_path/'a', target_is_directory=True)
    files = picture_files(tmp_path)
    assert len(files)==8 and len({os.path.realpath(f) for f in files})==8
    assert len(picture_files(tmp_path/'z'))==8                            # from a link, too
    (tmp_path/'a'/'self.png').symlink_to('self.png')                      # leads to itself
    assert len(picture_files(tmp_path))==9 and list(check_pictures(tmp_path, workers=0))==[str(tmp_path/'a'/'self.png')]

def test_29_two_links_to_nowhere_are_two_bad_files(tmp_path):
    for o in 'ab': (tmp_path/f'{o}.png').symlink_to('nowhere.png')
    assert len(check_pictures(tmp_path, workers=0))==2

def test_29_a_pipe_does_not_wait(tmp_path):
    Image.new('L', (4,4)).save(tmp_path/'a.png'); os.mkfifo(tmp_path/'b.png')
    assert list(check_pictures(tmp_path, workers=0))==[str(tmp_path/'b.png')]

def test_29_pixel_limit(tmp_path, monkeypatch):
    (tmp_path/'bomb.png').write_bytes(png(10_000, 10_000, zlib.compress(bytes(10_001*10_000))))     # whole: only the limit stops it
    with pytest.raises(BadPicture, match='10000x10000 pixels are more than'): open_picture(tmp_path/'bomb.png', 1, 8)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    Image.new('L', (10,10)).save(tmp_path/'a.png'); Image.new('L', (10,12)).save(tmp_path/'b.png')
    assert list(check_pictures(tmp_path/'..'/tmp_path.name, n_in=1, workers=0, size=8))[0].endswith('b.png')
    Image.new('L', (96,96)).save(tmp_path/'c.jpg')                        # decoded at an eighth it is small
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 12*12)
    with warnings.catch_warnings(action='ignore'):
        monkeypatch.setattr(Image, '_decompression_bomb_check', lambda size: None)
        assert open_picture(tmp_path/'c.jpg', 1, 12).shape==(1,12,12)
        with pytest.raises(BadPicture, match='96x96'): open_picture(tmp_path/'c.jpg', 1)

# Sources

def shards(path, files, n):
    "Deal `files` to `n` tars with a label beside each"
    path.mkdir()
    for k in range(n):
        with tarfile.open(path/f'{k}.tar', 'w') as t:
            for f in files[k::n]:
                t.add(f, f'{f.parent.name}/{f.name}')
                info = tarfile.TarInfo(f'{f.parent.name}/{f.stem}.cls'); info.size = len(f.parent.name)
                t.addfile(info, io.BytesIO(f.parent.name.encode()))
    return path

class Column:
    "Stand-in for a feature of Hugging Face's"
    def __init__(self, names=None): self.names = names
    def int2str(self, i): return self.names[i]

class Image_:
    def __init__(self, decode=True): self.decode = decode
Image_.__name__ = 'Image'

class HF:
    "Stand-in for a data set of Hugging Face's: decodes unless told not to"
    def __init__(self, rows, names, decode=True): self.rows,self.names,self.features = rows,names,dict(image=Image_(decode), label=Column(names), id=None)
    column_names = ['image','label','id']
    def __len__(self): return len(self.rows)
    def cast_column(self, k, feature): return HF(self.rows, self.names, feature.decode)
    def select_columns(self, ks): assert ks==['image']; return self
    def __getitem__(self, i):
        if i=='label': return [r['label'] for r in self.rows]
        assert not self.features['image'].decode, 'the picture would be decoded in full'
        return self.rows[i]

def real_hf(rows, names):
    datasets = pytest.importorskip('datasets')
    feats = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names), id=datasets.Value('int64'))
    table = datasets.table.InMemoryTable(datasets.table.pa.Table.from_pylist(rows, schema=feats.arrow_schema))
    return datasets.Dataset(table, info=datasets.DatasetInfo(features=feats), fingerprint='x')   # given, since to compute one fails with some dill (0.4.1)

@pytest.fixture(scope='module')
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp('good')
    write_good(path, 120)
    return picture_files(path)

def source(kind, files, tmp_path):
    names = sorted({f.parent.name for f in files})
    rows = [dict(image=dict(bytes=f.read_bytes(), path=None), label=names.index(f.parent.name), id=i) for i,f in enumerate(files)]
    df = pd.DataFrame(dict(file=[str(f) for f in files], label=[f.parent.name for f in files]))
    return dict(folder=lambda: (files[0].parent.parent, parent_label, None), list=lambda: (list(map(str, files)), parent_label, None), frame=lambda: (df, 'label', 'file'),
                frame_of_bytes=lambda: (pd.DataFrame(rows), 'label', 'image'), series=lambda: (df['file'], parent_label, None), hf=lambda: (HF(rows, names), 'label', None),
                real_hf=lambda: (real_hf(rows, names), 'label', None), tar=lambda: (shards(tmp_path/'s', files, 1)/'0.tar', 'cls', None))[kind]()

@pytest.mark.parametrize('kind', 'list frame frame_of_bytes series hf real_hf tar'.split())
def test_sources_are_one_another(good, tmp_path, kind):
    def data(kind, labelled, workers=0):
        src,label,column = source(kind, good, tmp_path/kind) if kind!='tar' else source(kind, good, tmp_path)
        return image_dls(src, 32, n_in=1, bs=20, label_func=label if labelled else None, column=column, workers=workers, seed=3)
    a,b = data('folder', True),data(kind, True)
    assert list(a.vocab)==list(map(str, b.vocab)) and len(a.valid_ds)==len(b.valid_ds)==12
    for o,p in zip(a.train, b.train): assert torch.equal(o[0], p[0]) and torch.equal(o[1], p[1])
    if kind=='tar': (tmp_path/'s'/'0.tar').unlink(); (tmp_path/'s').rmdir()
    unlabelled = data(kind, False, workers=2)                             # items reach the workers
    for o,p in zip(data('folder', False).train, unlabelled.train): assert len(p)==1 and torch.equal(o[0], p[0])
    assert pickle.loads(pickle.dumps(unlabelled.train)).one_batch()[0].shape==(20,1,32,32)   # also where workers are started anew

def test_shards_train(good, tmp_path):
    "Shuffled exactly over shards, split over workers, with a bad member and a cut shard"
    path = shards(tmp_path/'s', good, 3)
    b = (path/'2.tar').read_bytes()
    i = b.index(b'\x89PNG'); (path/'2.tar').write_bytes(b[:i]+b'xxxx'+b[i+4:])
    dls = image_dls(path, n_in=1, bs=20, workers=2, valid=0.)
    first,second = batches(dls),batches(dls)
    assert len(first)==6 and len(dls.skipped)==1 and list(dls.skipped)[0].startswith(str(path/'2.tar'))
    mixed = {Path(o).parent.parent.name for o in [dls.train_ds.items[i] for i in random.Random(0).sample(range(120), 20)]}
    assert mixed=={'0.tar','1.tar','2.tar'} and not torch.equal(first[0], second[0])
    learn = train(path, 2, 20, 1)
    assert len(learn.recorder.losses)==6

def test_ranks_share_the_pictures_of_shards(good, tmp_path):
    "fastai's distributed loader, on both ranks in turn; what one rank tells the other is the order, here the same anyway"
    class Here(DistributedDL):
        def _broadcast(self, t, rank): return t
    path = shards(tmp_path/'s', good, 3)
    parts = [[b[0] for b in Here(image_dls(path, n_in=1, bs=20, workers=0, valid=0.).train, rank=r, world_size=2)] for r in range(2)]
    seen = [{tuple(o.flatten().tolist()) for b in p for o in b} for p in parts]
    assert [sum(map(len, p)) for p in parts]==[60,60] and len(seen[0]|seen[1])==len({tuple(open_picture(f, 1).flatten().tolist()) for f in good})

def test_parts_held_out(good):
    df = pd.DataFrame(dict(file=[str(f) for f in good]))
    dls = image_dls(df, n_in=1, bs=20, workers=0, valid=[5,7])
    assert [os.fspath(o) for o in dls.valid_ds.items]==[str(good[5]), str(good[7])] and len(dls.train_ds)==118

def test_a_labelled_learner_is_exported(good, tmp_path):
    dls = image_dls(good[0].parent.parent, n_in=1, bs=20, workers=0, label_func=parent_label)
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(1024, dls.c)), path=tmp_path)
    learn.export()
    with warnings.catch_warnings(action='ignore'): loaded = load_learner(tmp_path/'export.pkl')
    with loaded.no_bar(): assert loaded.predict(good[0])[0]==learn.dls.vocab[int(loaded.predict(good[0])[1])]

@pytest.mark.parametrize('src,kw,words', [
    (lambda: pd.DataFrame(dict(a=['x'], b=['y'])), {}, "column=None must be one of a, b"),
    (lambda: pd.DataFrame(dict(a=['x'], b=['y'])), dict(column='c'), "column='c' must be one of a, b"),
    (lambda: pd.DataFrame(dict(a=['x'], b=['y'])), dict(column='a', label_func='d'), "label_func='d' must be a column"),
    (lambda: (i for i in range(3)), {}, "generator cannot be indexed"),
    (lambda: dict(train=[1], test=[2]), {}, "source['train']"),
    (lambda: [], {}, 'is empty'),
    (lambda: ['a.png'], dict(label_func='cls'), "label_func='cls' names a part of a table"),
    (lambda: ['a.png'], dict(max_bad=2), "max_bad=2 must be in [0,1]"),
    (lambda: ['none.tar'], {}, 'not an uncompressed tar'),
])
def test_one_line_for_what_is_wrong(src, kw, words):
    with pytest.raises(ValueError) as e: image_dls(src(), bs=1, workers=0, **kw)
    assert words in str(e.value) and '\n' not in str(e.value)

# The command, as pip installs it

def check(*args, cwd):
    script = 'import sys; from self_supervised.cli.check import byol_check; sys.exit(byol_check())'
    (cwd/'byol_check').write_text(script)
    return subprocess.run([sys.executable, cwd/'byol_check', *map(str, args)], cwd=cwd, capture_output=True, text=True)

def test_check_command(folder, good, tmp_path):
    path,bad = folder
    res = check(path, '--n-in', 1, '--workers', 2, '--out', 'bad.csv', cwd=tmp_path)
    lines = res.stdout.strip().splitlines()
    assert res.returncode==1 and len(lines)==24 and all(l.startswith(tuple(bad)) for l in lines), res.stdout+res.stderr
    assert [l for l in res.stderr.splitlines() if l.startswith('byol_check')]==['byol_check: 24 of 500 pictures cannot be read'] and 'Traceback' not in res.stderr
    assert {r[0] for r in csv.reader(open(tmp_path/'bad.csv', newline=''))}==bad

def test_check_command_when_all_is_well(good, tmp_path, capsys):
    byol_check(str(good[0].parent.parent), workers=0)
    assert capsys.readouterr().out=='All 120 pictures can be read\n'
    with pytest.raises(CliError, match='is not an existing folder'): byol_check(str(tmp_path/'nowhere'))
