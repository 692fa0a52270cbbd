"Pictures that are kept in memory are those that would be read, and each file is decoded once"
import json, os, pickle, subprocess, sys
from itertools import count
from weakref import WeakSet

import numpy as np, pytest, torch
from fastai.data.load import SkipItemException
from fastai.data.transforms import Categorize, MultiCategorize, OneHotEncode, RegexLabeller, parent_label
from fasttransform import Transform
from PIL import Image

from benchmarks.bad_files import write_bad
from self_supervised.callback.distributed import RankDL
from self_supervised.callback.replay import SampleOrder
from self_supervised.cli.pretrain import pretrain
from self_supervised.data import reading, skipped
from self_supervised.data.arrays import tensor_dls
from self_supervised.data.demo import digits
from self_supervised.data.images import image_dls
from self_supervised.data.kept import Kept, kept_bytes
from self_supervised.data.reading import BadPicture, OpenPicture, PictureReader
from self_supervised.data.skipped import PictureData, PictureDL, picture_data

def write(folder, n=40, wide=False):
    x,y,_ = digits()
    for i in range(n):
        f = folder/str(y[i].item()%3)/f'{i:03}.{"jpg" if i%2 else "png"}'
        f.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((x[i,0]*255).byte().numpy()).resize((56,28) if wide else (28,28)).save(f)
    return folder

def epoch(dls): return [tuple(o.clone() for o in b) for b in dls.train]

def same(a, b): return len(a)==len(b) and all(torch.equal(x, y) for p,q in zip(a, b) for x,y in zip(p, q))

def test_batches_are_those_of_workers_bit_for_bit_and_bad_files_are_named_alike(tmp_path):
    "Square pictures: every epoch's order, labels and replacements"
    made = write_bad(write(tmp_path/'p'), 12)
    def loaders(**kw): return image_dls(tmp_path/'p', 24, n_in=1, label_func=parent_label, valid=0., bs=16, device='cpu', max_bad=.5, **kw)
    kept,read = loaders(keep=True),loaders(workers=0)
    for _ in range(3): assert same(epoch(kept), epoch(read))
    assert dict(kept.skipped)==dict(read.skipped) and len(kept.skipped) and set(kept.skipped)<=set(map(str, made))

def test_each_file_is_decoded_once(tmp_path, monkeypatch):
    seen = []
    was = reading._check_whole   # of each decoded file
    monkeypatch.setattr(reading, '_check_whole', lambda im, f: seen.append(f) or was(im, f))
    dls = image_dls(write(tmp_path), 24, bs=16, valid=.2, device='cpu', keep=True)
    for _ in range(4):
        epoch(dls)
        list(dls.valid)
    assert len(seen)==len(set(seen))==40

def test_each_epoch_cuts_at_another_place_and_as_without(tmp_path):
    "Along the long side; the places are the same to half a pixel"
    write(tmp_path, wide=True)
    kept,read = (image_dls(tmp_path, 28, n_in=1, bs=16, device='cpu', **kw) for kw in (dict(keep=True), dict(workers=0)))
    first,second = epoch(kept),epoch(kept)
    assert not same(first, second)
    for a,b in zip(first, epoch(read)): assert (a[0]-b[0]).abs().mean()<.03

def test_memory_is_bounded_also_for_a_picture_that_is_very_long(tmp_path):
    Image.new('L', (200_000,2), 99).save(tmp_path/'long.png')
    read = PictureReader(1, 64)
    kept = Kept(read)
    assert kept(tmp_path/'long.png').shape==(1,64,64) and kept.n_bytes==8*64*64
    assert kept_bytes([tmp_path/'long.png'], read)==8*64*64
    full = Kept(read, most=0)
    assert torch.equal(full(tmp_path/'long.png'), kept(tmp_path/'long.png')) and not full.pictures

@pytest.mark.parametrize('name,size', [('noise.jpg',96), ('wide.png',32), ('wide.png',(32,40)), ('wide.png',None)])
def test_what_is_kept_is_what_would_be_read_at_a_place_of_whole_pixels(tmp_path, name, size):
    "And the second time it is the same bit for bit"
    noise = np.random.default_rng(0).integers(0, 256, (12,16,3), dtype=np.uint8)
    Image.fromarray(noise).resize((640,480), Image.Resampling.BICUBIC).save(tmp_path/'noise.jpg')
    Image.fromarray(np.tile(np.linspace(0, 255, 300).astype(np.uint8), (100,1))).save(tmp_path/'wide.png')
    f,read = tmp_path/name,PictureReader(3, size)
    kept = Kept(read)
    for at in (0,.3,1):
        first = kept(f, at)
        long,cut = max(kept.pictures[str(f)].shape[1:]),max(first.shape[1:])
        place = round(at*(long-cut))/max(long-cut, 1) if size else at
        whole = read(f, place)
        assert first.shape==whole.shape and (first-whole).abs().mean()<.005
        assert torch.equal(kept(f, at), first) and torch.equal(kept(f, place), first)

def test_a_square_picture_is_kept_as_it_is_read(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50,50,3), dtype=np.uint8)).save(tmp_path/'square.png')
    read = PictureReader(3, 96)
    assert torch.equal(Kept(read)(tmp_path/'square.png', .2), read(tmp_path/'square.png', .2))

def test_pictures_are_kept_as_long_as_there_is_room(tmp_path):
    files = sorted(write(tmp_path, 3, wide=True).rglob('*.*'))
    kept = Kept(PictureReader(3, 28), most=3*28*56)
    assert kept.n_bytes==0
    for f in files: kept(f)
    assert len(kept.pictures)==1

@pytest.mark.parametrize('rank', [0,1])
def test_a_process_reads_its_own_part_alone(tmp_path, rank):
    "Each of two processes read ahead in the order of both"
    dls = image_dls(write(tmp_path), 24, bs=4, valid=0., device='cpu', keep=True)
    part = RankDL(dls.train, rank=rank, world_size=2)
    for _ in range(2):
        kept = dls.train_ds.opener.read
        kept._clear()
        assert len([*part])==5
        mine = {os.fspath(dls.train_ds.items[i]) for i in part._DataLoader__idxs}
        assert len(mine)==20 and set(kept.pictures)==mine and not kept.coming

@pytest.mark.parametrize('keep', [True, False])
def test_a_batch_takes_no_more_of_the_order_than_it_needs(tmp_path, keep):
    "A checkpoint counts the items taken: a run that was cut would go on after those that were only read ahead"
    dls = image_dls(write(tmp_path), 24, bs=4, valid=0., device='cpu', keep=keep, workers=None if keep else 0)
    order = SampleOrder(dls.train, lambda: None)
    order.begin()
    for n,_ in enumerate(dls.train, 1): assert order.taken==4*n

def test_what_is_not_kept_is_still_read_ahead(tmp_path):
    files = sorted(write(tmp_path).rglob('*.*'))
    kept = Kept(PictureReader(1, 24), most=0, ahead=4)
    kept.follow(files)
    assert len(kept.coming)==4
    for f in files: assert torch.equal(kept(f), kept.read(f))
    assert not kept.coming

def test_pictures_do_not_travel_with_a_copy(tmp_path):
    f = sorted(write(tmp_path, 2).rglob('*.*'))[0]
    kept = Kept(PictureReader(1, 24))
    kept.follow([f]); kept(f)
    again = pickle.loads(pickle.dumps(kept))
    assert not again.pictures and torch.equal(again(f), kept(f))

def test_wide_values_and_arrays_are_kept_or_passed_on(tmp_path):
    Image.fromarray(np.linspace(0, 65535, 600).reshape(20,30).astype(np.uint16)).save(tmp_path/'a.png')
    read = PictureReader(1, 20)
    kept = Kept(read)
    assert kept(tmp_path/'a.png').dtype==torch.float32
    torch.testing.assert_close(kept(tmp_path/'a.png').as_subclass(torch.Tensor), read(tmp_path/'a.png').as_subclass(torch.Tensor), atol=1e-4, rtol=0)
    a = np.zeros((20,30,1), np.uint8)
    assert torch.equal(kept(a), read(a))

def test_a_bad_picture_raises_each_time(tmp_path):
    (tmp_path/'a.png').write_bytes(b'no picture')
    kept = Kept(PictureReader(1, 20))
    for _ in range(2):
        kept.follow([tmp_path/'a.png'])
        with pytest.raises(BadPicture, match='a.png'): kept(tmp_path/'a.png')

def one_at_a_time(dls, monkeypatch):
    "The loaders with a batch made of single items"
    monkeypatch.setattr(PictureData, 'batch', lambda *args: None)
    return dls

@pytest.mark.parametrize('label', [None, parent_label])
@pytest.mark.parametrize('wide,size,n_in', [(False,24,1), (True,28,3), (True,(20,30),1), (False,None,3)])
def test_a_batch_made_as_a_whole_is_the_one_of_single_items(tmp_path, monkeypatch, wide, size, n_in, label):
    "Values, types, order, places and labels, of training and validation, also of the incomplete last batch"
    write(tmp_path, wide=wide)
    def loaders(): return image_dls(tmp_path, size, n_in=n_in, label_func=label, valid=.3, bs=8, device='cpu', keep=True, seed=3)
    def run(dls): return [[list(dls.train), list(dls.valid)] for _ in range(4)]
    calls = []
    was = Kept.batch
    monkeypatch.setattr(Kept, 'batch', lambda *args: calls.append(was(*args) is not None) or was(*args))
    whole = run(loaders())
    assert not any(calls[:5]) and sum(calls)>=10   # the first epoch reads, and some pictures come later: training drops the rest of an epoch
    single = run(one_at_a_time(loaders(), monkeypatch))
    for a,b in zip(whole, single):
        for p,q in zip(a, b):
            assert [len(o[0]) for o in p]==[len(o[0]) for o in q]
            assert same(p, q) and all(list(map(type, x))==list(map(type, y)) and type(x) is type(y) for x,y in zip(p, q))

def test_a_transform_of_single_items_sees_them(tmp_path):
    for name in ('after_item','before_batch'):
        dls = image_dls(write(tmp_path), 24, bs=8, valid=0., device='cpu', keep=True)
        seen = []
        getattr(dls.train, name).add(Transform(lambda o: seen.append(1) or o))
        for _ in range(2): epoch(dls)
        assert len(seen)==2*(40 if name=='after_item' else 5), name

@pytest.mark.parametrize('y_tfms', [[parent_label], [parent_label, Categorize()], [lambda f: [f.stem[:1]], MultiCategorize(), OneHotEncode()]])
def test_labels_of_all_kinds_come_with_a_batch_made_as_a_whole(tmp_path, monkeypatch, y_tfms):
    "Words, classes, several classes; and those of a function that was added later"
    files = sorted(write(tmp_path).rglob('*.*'))
    def run(data):
        dls = data.dataloaders(bs=8, num_workers=0, dl_type=PictureDL, shuffle=False, device='cpu')
        first = [list(dls.train) for _ in range(2)]
        data.tls[1].tfms.add(Transform(lambda y: y))
        return [*first, list(dls.train)]
    def data(): return picture_data(files, [list(range(40)), []], Kept(PictureReader(1, 24)), [*y_tfms])
    whole = run(data())
    monkeypatch.setattr(PictureData, 'batch', lambda *args: None)
    for a,b in zip(whole, run(data())):
        for (x,y),(p,q) in zip(a, b):
            assert torch.equal(x, p) and type(y) is type(q) and (torch.equal(y, q) if isinstance(y, torch.Tensor) else list(y)==list(q))

def test_labels_of_several_shapes_come_in_batches_of_one(tmp_path):
    files = sorted(write(tmp_path, 8).rglob('*.*'))
    data = picture_data(files, [list(range(8)), []], Kept(PictureReader(1, 24)), [lambda f: torch.ones(1+int(f.stem), 4)])
    dl = data.dataloaders(bs=1, num_workers=0, dl_type=PictureDL, shuffle=False, device='cpu').train
    for _ in range(2): assert sorted(tuple(y.shape) for _,y in dl)==[(1,1+i,4) for i in range(8)]

def test_a_learner_that_was_exported_earlier_finds_its_check():
    "It was in another module"
    assert pickle.loads(b'cself_supervised.data.images\n_one_size\n.') is skipped.one_size

def test_labels_follow_a_transform_that_was_added(tmp_path):
    dls = image_dls(write(tmp_path), 24, label_func=parent_label, bs=8, valid=0., device='cpu', keep=True)
    for _ in range(2): epoch(dls)
    n = count()
    dls.train_ds.tls[1].tfms.add(Transform(lambda y: y*0+next(n), order=99))   # another answer each time
    assert torch.cat([y for _ in range(2) for _,y in epoch(dls)]).tolist()==list(range(80))

def test_a_method_of_a_dictionary_gives_labels(tmp_path):
    "It tells no module"
    known = {f: f.parent.name for f in write(tmp_path).rglob('*.*')}
    assert len(image_dls(tmp_path, 24, label_func=known.get, bs=8, keep=True).vocab)==3

@pytest.mark.parametrize('keep', [True, False])
def test_labels_follow_a_function_that_changes_its_mind(tmp_path, keep):
    "Labels that were corrected, or guessed anew, between two fits"
    known = {f.name: f.parent.name for f in write(tmp_path).rglob('*.*')}
    dls = image_dls(tmp_path, 24, label_func=lambda f: known[f.name], bs=8, valid=0., device='cpu', keep=keep, workers=None if keep else 0)
    for _ in range(2): assert len(torch.cat([y for _,y in epoch(dls)]).unique())==3
    known |= dict.fromkeys(known, '2')
    assert torch.cat([y for _,y in epoch(dls)]).tolist()==[2]*40

@pytest.mark.parametrize('keep', [True, False])
@pytest.mark.parametrize('order', [torch.arange, np.arange, lambda n: list(torch.arange(n)), lambda n: list(np.arange(n))])
def test_an_order_of_yours_may_be_numbers_of_torch_or_numpy(tmp_path, keep, order):
    "As a weighted draw returns them; two labels per batch of two, so that a pair of places is no place in a table"
    files = sorted(write(tmp_path, 8).rglob('*.*'))
    read = PictureReader(1, 24)
    label = [RegexLabeller(r'(\d)\.'), lambda o: [o], MultiCategorize(), OneHotEncode()]
    data = picture_data(files, [list(range(8)), []], Kept(read) if keep else read, label)
    data.skipped = skipped.Skipped(8)   # which asks `Random` for others
    dl = data.dataloaders(bs=2, num_workers=0, dl_type=PictureDL, shuffle=True, device='cpu').train
    dl.get_idxs = lambda: order(8)
    for _ in range(2):
        xs,ys = map(torch.cat, zip(*dl))
        assert torch.equal(xs, torch.stack([read(f) for f in files])) and ys.argmax(1).tolist()==[int(f.stem) for f in files]
    x,_,_ = digits()
    dl = tensor_dls(x[:8], torch.arange(8), bs=2).train
    dl.get_idxs = lambda: order(8)
    assert torch.cat([y for _,y in dl]).tolist()==list(range(8))

class _Doubled(PictureDL):
    def do_item(self, i): return tuple(2+o for o in super().do_item(i))

class _OwnItem(PictureData):
    def item(self, i, draw=None): return tuple(2+o for o in super().item(i, draw))

class _OwnIndex(PictureData):
    def __getitem__(self, i): return tuple(2+o for o in super().__getitem__(i))

class _OwnOpener(OpenPicture):
    def encodes(self, f): return 2+self.read(f, self.at)

def _plus(items): return [tuple(2+o for o in item) for item in items]

def _own_data(cls):
    def change(dl):
        dl.dataset.__class__ = cls
        return dl
    return change

def _set(**methods):
    def change(dl):
        for name,f in methods.items(): setattr(dl, name, f)
        return dl
    return change

def _own_opener(dl):
    dl.dataset.tls[0].tfms.fs[0] = _OwnOpener(dl.dataset.opener.read)
    return dl

@pytest.mark.parametrize('change', [
    lambda dl: dl.new(cls=_Doubled), lambda dl: dl.new(create_item=lambda i: tuple(2+o for o in dl.dataset[i or 0])),
    _set(after_item=lambda o: (2+o[0],)), _set(before_batch=_plus), _set(create_batch=lambda b: (2+torch.stack([o[0] for o in b]),)),
    _own_data(_OwnItem), _own_data(_OwnIndex), _own_opener], ids=range(8))
def test_what_you_replace_of_a_loader_or_its_data_is_asked_for_each_batch(tmp_path, change):
    "Also when all pictures are in memory"
    dl = change(image_dls(write(tmp_path), 24, bs=8, valid=0., device='cpu', keep=True).train)
    for _ in range(3): assert min(b[0].min() for b in dl)>=2

def test_an_item_that_is_skipped_in_fastais_way_is_left_out(tmp_path):
    dl = image_dls(write(tmp_path), 24, bs=8, valid=0., label_func=lambda o: o.stem, device='cpu', keep=True).train
    def odd(y):
        if int(y)%2: return y
        raise SkipItemException
    dl.dataset.tls[1].tfms.add(Transform(odd))
    for _ in range(3): assert sorted(o.item() for _,y in dl for o in y)==[*range(1, 40, 2)]

def test_a_batch_may_be_one_item(tmp_path):
    dl = image_dls(write(tmp_path), 24, n_in=1, bs=8, valid=0., label_func=parent_label, device='cpu', keep=True).train
    assert next(iter(dl.new(bs=None, drop_last=False)))[0].shape==(1,24,24)

def test_pictures_that_are_not_alike_or_not_all_kept_make_batches_as_before(tmp_path, monkeypatch):
    "8 and 16 bits together; room for some only"
    write(tmp_path, 16)
    Image.fromarray(np.linspace(0, 65535, 28*28).reshape(28,28).astype(np.uint16)).save(tmp_path/'deep.png')
    def run(dls): return [epoch(dls) for _ in range(3)]
    for most in (2**20, 5*24*24):
        loaders = [image_dls(tmp_path, 24, n_in=1, bs=4, valid=0., device='cpu', keep=True, seed=1) for _ in range(2)]
        for dls in loaders: dls.train_ds.opener.read.most = most
        a = run(loaders[0])
        with monkeypatch.context() as m: b = run(one_at_a_time(loaders[1], m))
        assert all(map(same, a, b))

def test_pictures_of_several_sizes_are_refused_in_words_also_from_memory(tmp_path):
    for i,n in enumerate((20,20,24,20)): Image.new('RGB', (n,n)).save(tmp_path/f'{i}.png')
    dls = image_dls(tmp_path, bs=4, valid=0., device='cpu', keep=True)
    for _ in range(2):
        with pytest.raises(ValueError, match='needs pictures of one size'): epoch(dls)

def test_no_thread_of_ours_imports_what_reads_pictures(tmp_path):
    """A process that is forked while another thread imports a module waits for it for ever.

    Pillow imports its formats when they are first asked for. In a process of its own, since here they are imported"""
    files = [os.fspath(f) for f in write(tmp_path, 8).rglob('*.*')]
    script = f"""
import threading
from fasttransform import Transform
from PIL import Image
was,late = Image.init,[]
def init():
    if Image._initialized<2 and threading.current_thread() is not threading.main_thread(): late.append(1)
    return was()
Image.init = init
from self_supervised.data.kept import Kept
from self_supervised.data.reading import PictureReader
kept = Kept(PictureReader(1, 24))
kept.follow({files!r})
for f in {files!r}: kept(f)
print(Image._initialized, len(late))"""
    assert subprocess.run([sys.executable, '-W', 'ignore', '-c', script], capture_output=True, text=True, check=True).stdout.split()==['2','0']

def test_two_ways_to_read_ahead_are_refused(tmp_path):
    with pytest.raises(ValueError, match='two ways'): image_dls(write(tmp_path), 24, bs=8, keep=True, workers=2)

SMALL = dict(arch='tiny_resnet', size=16, n_in=1, bs=16, epochs=1, hidden_size=32, projection_size=16, progress=False, views=dict(blur=False, jitter=False, bw=False))

@pytest.mark.parametrize('given, keep', [({}, True), (dict(workers=1), False), (dict(keep=False), False)])
def test_a_run_keeps_pictures_unless_told_otherwise_and_records_it(tmp_path, given, keep):
    pretrain(write(tmp_path/'p'), tmp_path/'run', **SMALL | given)
    assert json.loads((tmp_path/'run'/'settings.json').read_text())['settings']['keep'] is keep

def test_a_forked_worker_reads_by_itself(tmp_path):
    "Threads do not survive a fork, and what they were reading never comes"
    dls = image_dls(write(tmp_path), 24, bs=8, valid=0., device='cpu', keep=True)
    dls.one_batch()
    assert len(list(dls.train.new(num_workers=1)))==5

def test_items_of_two_sources_with_one_name_stay_apart():
    "Arrays of a list are all called item 0, item 1, ..."
    from self_supervised.data.sources import picture_items
    def arrays(*values): return [np.full((24,24), v, np.uint8) for v in values]
    dls = image_dls(arrays(*range(40)), 24, n_in=1, bs=8, valid=.2, device='cpu', keep=True)
    epoch(dls)
    x = torch.cat([b[0] for b in dls.test_dl(picture_items(arrays(*[200]*8)))])
    assert (255*x).round().unique().tolist()==[200]

def test_what_an_interrupted_epoch_left_does_not_stop_the_reading_ahead(tmp_path):
    files = sorted(write(tmp_path).rglob('*.*'))
    kept = Kept(PictureReader(1, 24), most=0, ahead=4)
    kept.follow(files[:10])
    kept.follow(files[20:])
    assert [*kept.coming]==[str(f) for f in files[20:24]]

def test_a_transform_that_writes_does_not_change_what_is_kept(tmp_path):
    Image.fromarray(np.linspace(0, 65535, 600).reshape(20,30).astype(np.uint16)).save(tmp_path/'a.png')
    for size in (20, None):
        kept = Kept(PictureReader(1, size))
        kept(tmp_path/'a.png').zero_()
        assert kept(tmp_path/'a.png').max()>0

def test_loaders_share_the_memory(tmp_path, monkeypatch):
    "The one that was not used for longest makes room"
    write(tmp_path, n=30)
    a,b,c = (image_dls(tmp_path, 16, n_in=1, valid=0., bs=10, device='cpu', keep=True) for _ in range(3))
    keeps = [dls.train_ds.opener.read for dls in (a,b,c)]
    monkeypatch.setattr(Kept, 'alive', WeakSet(keeps))   # others may not be collected yet
    for k in keeps: k.most = 60*16*16
    for dls in (a,b,a,c): epoch(dls)
    assert [len(k.pictures) for k in keeps]==[30,0,30] and [k.n_bytes for k in keeps]==[30*16*16,0,30*16*16]
    epoch(b)   # none of the others waits for longer than it
    assert [len(k.pictures) for k in keeps]==[30,0,30]
    epoch(b)
    assert [len(k.pictures) for k in keeps]==[0,30,30]
    del b,dls
    assert len(epoch(c))==3
