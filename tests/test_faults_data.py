"Nothing silent on the way of a picture: what is left out is counted, what is hidden is not seen, no scale is guessed, names are harmless"
import csv
import io
import json
import math
import os
import pickle
import subprocess
import sys
import tarfile
import types
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.transforms import RegexLabeller, parent_label
from fastai.torch_basics import using_attr
from fastcore.script import CliError
from PIL import EpsImagePlugin, Image, PngImagePlugin, TiffImagePlugin, features
from torch.utils.data import Subset

from self_supervised.cli.check import byol_check
from self_supervised.core import from_csv_cell, printable, to_csv_cell
from self_supervised.data import reading
from self_supervised.data.arrays import tensor_dls
from self_supervised.data.images import image_dls
from self_supervised.data.reading import BadPicture, load_reader, open_picture, parse_size
from self_supervised.data.skipped import Skipped, TooManyBad, check_pictures
from self_supervised.data.sources import known_labels, left_out_text, picture_files, picture_items, picture_suffixes

rng = np.random.default_rng(0)

def plain(x): return x.as_subclass(torch.Tensor)
def smooth(h=24, w=24):
    "An RGB picture (h,w,3) without edges, so that lossy formats keep it"
    y,x = np.mgrid[:h,:w]
    return np.stack([x*255/w, y*255/h, (x+y)*255/(w+h)], -1).astype(np.uint8)

@pytest.fixture(autouse=True)
def forget_remarks(): reading._warned.clear()

# K1: orientation

turns = {5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90}

@pytest.mark.parametrize('mode', ['L','P','RGB','RGBA','CMYK','I;16'])
@pytest.mark.parametrize('orientation', turns)
def test_a_tiff_with_its_sides_swapped_is_turned_whether_it_is_compressed_or_not(tmp_path, mode, orientation):
    "PIL maps an uncompressed one into memory with rows of the other length, which shreds it"
    grey = rng.integers(0, 256, (12,20), np.uint8)
    im = Image.fromarray(grey*np.uint16(257)) if mode=='I;16' else Image.fromarray(grey).convert(mode)
    want = open_picture(im.transpose(turns[orientation]))
    for compression in None,'tiff_lzw':
        exif = Image.Exif()
        exif[274] = orientation
        f = tmp_path/f'{compression}.tif'
        im.save(f, exif=exif, compression=compression)
        got = [open_picture(o) for o in (f, f.read_bytes(), Image.open(f))]
        for o in got: torch.testing.assert_close(o, want, msg=f'{mode} {orientation} {compression}')

# K1: colours under alpha

shape = np.zeros((24,24), bool)
shape[6:18,6:18] = True
hidden = {'black': np.zeros((24,24,3), np.uint8), 'noise': rng.integers(0, 256, (24,24,3), np.uint8), 'green': np.full((24,24,3), (0,255,0), np.uint8)}

def cut_out(under, grey=False):
    "RGBA with a shape in one colour, and other colours where nobody sees them"
    under = under[...,:1].repeat(3, -1) if grey else under
    rgb = np.where(shape[...,None], np.uint8(90) if grey else np.array([200,30,60], np.uint8), under)
    return Image.fromarray(np.dstack([rgb, shape.astype(np.uint8)*255]), 'RGBA')

def keyed(im, key):
    "Without alpha, one colour being transparent"
    a = np.asarray(im).copy()
    a[~shape] = (*key, 255)
    return Image.fromarray(a[...,:3])

def as_file(im, format, **kwargs):
    b = io.BytesIO()
    im.save(b, format, **kwargs)
    return b.getvalue()

def palette(im, key):
    "P with one transparent entry, of colour `key`"
    p = Image.new('P', im.size)
    p.putdata(np.asarray(shape, np.uint8).ravel().tolist())
    p.putpalette([*key, 200,30,60])
    return p

alpha_files = {
    'RGBA png': lambda u: as_file(cut_out(hidden[u]), 'PNG'),
    'RGBA tiff': lambda u: as_file(cut_out(hidden[u]), 'TIFF'),
    'RGBa': lambda u: cut_out(hidden[u]).convert('RGBa'),
    'webp': lambda u: as_file(cut_out(hidden[u]), 'WEBP', lossless=True, exact=True),
    'animated webp': lambda u: as_file(cut_out(hidden[u]), 'WEBP', save_all=True, append_images=[Image.new('RGBA', (24,24))], lossless=True, exact=True),
    'apng': lambda u: as_file(cut_out(hidden[u]), 'PNG', save_all=True, append_images=[Image.new('RGBA', (24,24))]),
    'P': lambda u: as_file(palette(cut_out(hidden[u]), hidden[u][0,0]), 'PNG', transparency=0),
    'P with alphas': lambda u: as_file(palette(cut_out(hidden[u]), hidden[u][0,0]), 'PNG', transparency=bytes([0,255])),
    'gif': lambda u: as_file(palette(cut_out(hidden[u]), hidden[u][0,0]), 'GIF', transparency=0),
    'PA': lambda u: cut_out_pa(hidden[u][0,0]),
    'RGB with tRNS': lambda u: as_file(keyed(cut_out(hidden[u]), hidden[u][0,0]), 'PNG', transparency=tuple(map(int, hidden[u][0,0]))),
    'jp2': lambda u: as_file(cut_out(hidden[u]), 'JPEG2000'),
    'tga': lambda u: as_file(cut_out(hidden[u]), 'TGA'),
    'ico': lambda u: as_file(cut_out(hidden[u]), 'ICO', sizes=[(24,24)]),
}
grey_files = {
    'LA': lambda u: as_file(cut_out(hidden[u], True).convert('LA'), 'PNG'),
    'La': lambda u: cut_out(hidden[u], True).convert('LA').convert('La'),
    'L with tRNS': lambda u: as_file(keyed(cut_out(hidden[u], True), hidden[u][0,0,:1].repeat(3)).convert('L'), 'PNG', transparency=int(hidden[u][0,0,0])),
    'I;16 with tRNS': lambda u: as_file(Image.fromarray(np.where(shape, 90*257, 257*int(hidden[u][0,0,0])).astype(np.uint16)), 'PNG', transparency=257*int(hidden[u][0,0,0])),
}

def cut_out_pa(key):
    im = palette(cut_out(hidden['black']), key).convert('PA')
    im.putalpha(Image.fromarray(shape.astype(np.uint8)*255))
    return im

@pytest.mark.parametrize('kind', alpha_files)
@pytest.mark.parametrize('n_in', [1,3])
def test_cut_outs_that_look_alike_are_read_alike(kind, n_in):
    "Whatever lies under alpha 0: white shows, the stated default"
    pictures = [plain(open_picture(lambda u=u: alpha_files[kind](u), n_in)) for u in hidden]
    for o in pictures[1:]: assert torch.equal(o, pictures[0])
    assert (pictures[0][:,0,0]==1).all() and torch.allclose(pictures[0][0,12,12], torch.tensor(200/255 if n_in==3 else (200*.299+30*.587+60*.114)/255), atol=.01)

@pytest.mark.skipif(not features.check('avif'), reason='PIL without AVIF')
def test_cut_outs_of_avif():
    "AVIF is lossy, so hidden colours reach a pixel or two over the border, and no further"
    pictures = [plain(open_picture(lambda u=u: as_file(cut_out(hidden[u]), 'AVIF', quality=100, subsampling='4:4:4'), 3)) for u in hidden]
    for o in pictures:
        assert (o[:,shape==0].min())>.98 and torch.allclose(o[:,12,12], torch.tensor([200,30,60])/255, atol=.02)
        torch.testing.assert_close(o[:,9:15,9:15], pictures[0][:,9:15,9:15], atol=.03, rtol=0)

@pytest.mark.parametrize('kind', grey_files)
@pytest.mark.parametrize('n_in', [1,3])
def test_grey_cut_outs_too(kind, n_in):
    pictures = [plain(open_picture(lambda u=u: grey_files[kind](u), n_in)) for u in hidden]
    for o in pictures[1:]: assert torch.equal(o, pictures[0])
    assert (pictures[0][:,0,0]==1).all() and torch.allclose(pictures[0][:,12,12], torch.tensor(90/255))

@pytest.mark.parametrize('ground,rgb', [('white',(1,1,1)), ('black',(0,0,0)), ('#ff0000',(1,0,0)), ((0,0,255),(0,0,1)), (51,(.2,.2,.2))])
def test_the_ground_is_an_option(ground, rgb, tmp_path):
    "Of the reading, of loaders, also for 16 bits and for half-transparent pixels"
    want = torch.tensor(rgb, dtype=torch.float32)
    for make in (alpha_files['RGBA png'], grey_files['I;16 with tRNS'], alpha_files['P']):
        x = plain(open_picture(lambda make=make: make('noise'), ground=ground))
        torch.testing.assert_close(x[:,0,0], want)
    half = Image.new('RGBA', (4,4), (0,0,0,128))
    torch.testing.assert_close(plain(open_picture(half, ground=ground))[:,0,0], want*127/255, atol=.01, rtol=0)
    for i in range(4): (tmp_path/f'{i}.png').write_bytes(alpha_files['RGBA png']('noise'))
    x, = image_dls(tmp_path, bs=4, valid=0., workers=0, ground=ground).one_batch()
    torch.testing.assert_close(plain(x.cpu())[0,:,0,0], want)

def test_sixteen_bit_colour_with_a_transparent_one():
    "The colour in tRNS has 16 bits, the pixels as PIL reads them 8"
    a = np.full((8,8,3), (0x8000,0x4000,0x1000), np.uint16)
    a[2:6,2:6] = 0xffff,0,0
    x = plain(open_picture(png16(a, clear=(0x8000,0x4000,0x1000))))
    assert (x[:,0,0]==1).all() and x[:,3,3].tolist()==[1,0,0]

def test_a_ground_that_is_no_colour():
    for bad in ('no colour', (1,2), (0,0,999), None):
        with pytest.raises(ValueError, match='is no colour'): open_picture(cut_out(hidden['black']), ground=bad)

# K1: scales

def png16(a, clear=None):
    "PNG with 16 bits per colour, which PIL does not write"
    def chunk(kind, b): return len(b).to_bytes(4, 'big')+kind+b+zlib.crc32(kind+b).to_bytes(4, 'big')
    rows = b''.join(b'\0'+r.astype('>u2').tobytes() for r in a)
    head = a.shape[1].to_bytes(4, 'big')+a.shape[0].to_bytes(4, 'big')+bytes([16,2,0,0,0])
    trns = chunk(b'tRNS', np.array(clear, '>u2').tobytes()) if clear else b''
    return b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', head)+trns+chunk(b'IDAT', zlib.compress(rows))+chunk(b'IEND', b'')

ramp = np.linspace(0, 1, 64)[None].repeat(16, 0)

def tiff(a, tags=(), **kwargs):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for k,v in dict(tags).items(): info[k] = v
    return as_file(Image.fromarray(a), 'TIFF', tiffinfo=info, **kwargs)

@pytest.mark.parametrize('top,dtype,tags', [(4095,'<u2',{}), (1023,'<u2',{}), (10000,'<u2',{}), (16383,'<u2',{}), (65535,'<i4',{}), (4095,'<i4',{}), (.0625,'<f4',{})])
@pytest.mark.parametrize('format', ['TIFF','PNG'])
def test_values_that_use_little_of_their_scale_are_remarked_on(top, dtype, tags, format, tmp_path):
    "Warned of once by `open_picture`; counted by byol_check, which says what to pass; and what it says helps"
    if format=='PNG' and dtype!='<u2': pytest.skip('not in PNG')
    data = as_file(Image.fromarray((ramp*top).astype(dtype)), format)
    with pytest.warns(UserWarning, match='pass full_scale') as seen: [open_picture(lambda: data) for _ in range(3)]
    assert len(seen)==1
    with warnings.catch_warnings(action='error'): x = plain(open_picture(lambda: data, 1, full_scale=top))
    assert (x[0]-torch.tensor(ramp)).abs().max()<.01

def test_the_command_counts_them(tmp_path, capsys):
    for i in range(5): Image.fromarray((ramp*(4095 if i<3 else 65535)).astype(np.uint16)).save(tmp_path/f'{i}.png')
    byol_check(str(tmp_path), workers=0)
    out = capsys.readouterr().out
    assert f'3 of 5 pictures use less than a quarter of their scale, e.g. {tmp_path}/0.png: values reach 4095 of 65535: pass full_scale=4095' in out
    byol_check(str(tmp_path), workers=0, full_scale=65535)
    assert 'use less' in capsys.readouterr().out
    with pytest.raises(CliError, match='2 of 5'): byol_check(str(tmp_path), workers=0, full_scale=4095)
    assert 'values in [0,65535] are not in [0,4095]' in capsys.readouterr().out

@pytest.mark.parametrize('workers', [0,2])
def test_training_warns_once_whatever_the_number_of_workers_and_epochs(workers, tmp_path):
    for i in range(8): Image.fromarray((ramp*4095).astype(np.uint16)).save(tmp_path/f'{i}.png')
    dls = image_dls(tmp_path, n_in=1, bs=2, valid=0., workers=workers)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        for _ in range(3): list(dls.train)
    assert ['8 of 8 pictures use less' in str(o.message) for o in seen if 'quarter' in str(o.message)]==[True]
    assert not dls.skipped

@pytest.mark.parametrize('tags', [{341: 4095}, {281: 4095}])
def test_a_tiff_that_states_its_largest_value_is_believed(tags):
    with warnings.catch_warnings(action='error'):
        x = plain(open_picture(lambda: tiff((ramp*4095).astype(np.uint16), tags), 1))
    assert (x[0]-torch.tensor(ramp)).abs().max()<.001

def test_a_largest_value_that_was_measured_is_no_scale():
    "Two pictures of one camera keep their brightness"
    a,b = (plain(open_picture(lambda k=k: tiff((ramp*k).astype(np.uint16), {281: k}), 1)).max() for k in (60000, 30000))
    assert a>1.9*b

def test_twelve_bits_in_twelve_bits():
    "BitsPerSample of a TIFF"
    def packed(row):
        a = row.reshape(-1,2).astype(int)
        return np.stack([a[:,0]>>4, (a[:,0]&15)<<4 | a[:,1]>>8, a[:,1]&255], -1).astype(np.uint8).tobytes()
    rows = (ramp*4095).astype(np.uint16)
    data = b''.join(map(packed, rows))
    entries = [(256,4,64), (257,4,16), (258,3,12), (259,3,1), (262,3,1), (273,4,8), (277,3,1), (278,4,16), (279,4,len(data))]
    head = b'II*\0'+(8+len(data)).to_bytes(4, 'little')
    ifd = len(entries).to_bytes(2, 'little')+b''.join(t.to_bytes(2,'little')+k.to_bytes(2,'little')+(1).to_bytes(4,'little')+v.to_bytes(4,'little') for t,k,v in entries)
    x = plain(open_picture(lambda: head+data+ifd+bytes(4), 1))
    assert (x[0]-torch.tensor(ramp)).abs().max()<.001

def test_the_scale_does_not_depend_on_the_picture():
    "Integers of 32 bits: 60,000 and 70,000 are close"
    a,b = (plain(open_picture(lambda k=k: tiff(np.full((4,4), k, np.int32)), 1)).max() for k in (60_000, 70_000))
    assert .8<a/b<.9

def test_white_is_zero():
    "A TIFF may count down from white, with 16 bits as with 8"
    a = (ramp*65535).astype(np.uint16)
    b = bytearray(tiff(a))
    i = b.index((262).to_bytes(2, 'little')+(3).to_bytes(2, 'little')+(1).to_bytes(4, 'little'))
    b[i+8:i+10] = b'\0\0'
    x = plain(open_picture(lambda: bytes(b), 1))
    assert (x[0]-torch.tensor(1-ramp)).abs().max()<.001

@pytest.mark.parametrize('a,words', [
    ((ramp*255).astype(np.float32), r'values in \[0,255\] are not in \[0,1\].*full_scale=255'),
    ((ramp*4000).astype(np.float32), 'full_scale=4095'),
    ((ramp*4000-1000).astype(np.int32), r'values in \[-1000,3000\].*reader'),
    ((ramp*2-1).astype(np.float32), 'normalised'),
    (np.full((4,4), np.nan, np.float32), 'nan'),
])
def test_values_outside_say_what_may_be_the_matter(a, words):
    for f in (lambda: tiff(a), lambda: a):
        with pytest.raises(BadPicture, match=words) as e: open_picture(f, 1)
        assert '\n' not in str(e.value) and ('Repair' not in str(e.value) or 'nan' in words)

@pytest.mark.parametrize('top', [4095,10000,16383])
def test_sixteen_bit_colour_that_uses_little(tmp_path, top):
    "PIL keeps the upper 8 bits, so a scale of 12 leaves 4 of them: that is remarked on, and refused where asked for"
    a = (np.stack([ramp]*3, -1)*top).astype(np.uint16)
    (tmp_path/'a.png').write_bytes(png16(a))
    assert 'reader' in check_pictures(tmp_path, workers=0).dim[str(tmp_path/'a.png')]
    with pytest.raises(BadPicture, match='upper 8.*reader'): open_picture(tmp_path/'a.png', full_scale=4095)

# K2: left out

formats = {'jfif':'JPEG', 'jpe':'JPEG', 'avif':'AVIF', 'jp2':'JPEG2000', 'j2k':'JPEG2000', 'jpx':'JPEG2000', 'ico':'ICO', 'tga':'TGA', 'ppm':'PPM',
           'pnm':'PPM', 'dib':'DIB', 'webp':'WEBP', 'qoi':'QOI', 'pcx':'PCX', 'sgi':'SGI', 'bmp':'BMP', 'gif':'GIF', 'png':'PNG', 'tif':'TIFF', 'apng':'PNG', 'dds':'DDS', 'jpg':'JPEG'}

def test_whatever_pil_opens_counts_as_a_picture(tmp_path):
    "By its suffix, in any case; and is read"
    for suffix,format in formats.items(): Image.fromarray(smooth(32,32)).save(tmp_path/f'a.{suffix.upper()}', format)
    files = picture_files(tmp_path)
    assert {f.suffix[1:].lower() for f in files}==set(formats) and files.left_out=={}
    assert check_pictures(tmp_path, workers=0)=={}
    for f in files: assert (plain(open_picture(f, size=32)).permute(1,2,0)-torch.tensor(smooth(32,32))/255).abs().mean()<.06, f

def test_a_plugin_registered_later_counts(tmp_path, monkeypatch):
    "As pillow_heif does"
    for i in range(2): (tmp_path/f'{i}.heic').write_bytes(b'HEIF'+as_file(Image.fromarray(smooth()), 'PNG'))
    with pytest.raises(ValueError, match='there are 2 .heic'): picture_files(tmp_path)
    def opened(fp, filename):
        fp.seek(4)
        return PngImagePlugin.PngImageFile(io.BytesIO(fp.read()))
    monkeypatch.setattr(Image, 'ID', list(Image.ID))
    for o in ('OPEN','EXTENSION'): monkeypatch.setattr(Image, o, dict(getattr(Image, o)))
    Image.register_open('HEIF', opened, lambda prefix: prefix[:4]==b'HEIF')
    Image.register_extension('HEIF', '.heic')
    assert len(picture_files(tmp_path))==2 and check_pictures(tmp_path, workers=0)=={}

def beside(folder):
    for name in ('a.heic','b.HEIC','c.dcm','d.nii.gz','e.npy','f.mp4','notes','.DS_Store','.hidden.png'): (folder/name).write_bytes(b'x')
    return {'.heic':2, '.dcm':1, '.nii.gz':1, '.npy':1, '.mp4':1, 'without suffix':1, 'hidden .png':1}

def test_what_lies_beside_the_pictures_is_counted_and_named(tmp_path, capsys):
    "By picture_items, image_dls (once) and byol_check"
    (tmp_path/'deep').mkdir()
    for i in range(4): Image.fromarray(smooth()).save(tmp_path/'deep'/f'{i}.png')
    want = beside(tmp_path)
    assert picture_items(tmp_path).left_out==want==check_pictures(tmp_path, workers=0).left_out
    dls = image_dls(tmp_path, bs=2, valid=0., workers=0)
    for _ in range(2): list(dls.train)
    assert capsys.readouterr().out=='left out: 2 .heic, 1 .dcm, 1 .mp4, 1 .nii.gz, 1 .npy, 1 hidden .png, 1 without suffix\n'
    image_dls(picture_items(tmp_path), bs=2, valid=0., workers=0)     # listed before, as the commands do
    assert capsys.readouterr().out.count('left out: 2 .heic')==1
    byol_check(str(tmp_path), workers=0)
    assert 'left out: 2 .heic, 1 .dcm' in capsys.readouterr().out
    assert picture_items(str(tmp_path/'*')+'*/*.png').left_out=={}

def test_beside_and_in_tars(tmp_path):
    "Labels belong to their picture; other members and files beside shards do not"
    with tarfile.open(tmp_path/'0.tar', 'w') as t:
        for name,data in {'a.png':as_file(Image.fromarray(smooth()), 'PNG'), 'a.cls':b'1', 'b.heic':b'x', 'b.cls':b'1', '._a.png':b'x'}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    (tmp_path/'README.md').touch()
    items = picture_items(tmp_path)
    assert len(items)==1 and items.left_out=={'.heic':1, '.cls':1, 'hidden .png':1, '.md':1}

def test_a_folder_without_pictures_says_what_is_there(tmp_path):
    want = beside(tmp_path)
    with pytest.raises(ValueError, match=r'has no picture.*there are 2 \.heic.*reader') as e: picture_files(tmp_path)
    assert len(str(e.value))<500 and want

# K2: long pictures

def panorama(folder, n=1, turned=False):
    "100x1000, of which each column says where it is"
    a = np.linspace(0, 255, 1000)[None].repeat(100, 0).astype(np.uint8)
    for i in range(n): Image.fromarray(a.T if turned else a).save(folder/f'{i}.png')

def ends(dls, epochs):
    "Parts of the long side, in [0,1], that were seen"
    x = torch.stack([plain(b[0]) for _ in range(epochs) for b in dls.train])
    return x.min().item(),x.max().item(),x

@pytest.mark.parametrize('turned', [False,True])
@pytest.mark.parametrize('size', [32,(32,64)])
def test_every_part_of_a_panorama_is_seen_in_training(tmp_path, turned, size):
    panorama(tmp_path, 8, turned)
    dls = image_dls(tmp_path, size, n_in=1, bs=8, valid=0., workers=0, seed=0)
    low,high,x = ends(dls, 90)
    assert low<.02 and high>.98
    middle = image_dls(tmp_path, size, n_in=1, bs=8, valid=0., workers=0, square='middle')
    low,high,_ = ends(middle, 2)
    assert .35<low and high<.65                                          # what was all there was to see
    seen = torch.zeros(1000, dtype=torch.bool)
    for o in x.flatten(0,1): seen[int(o.min()*999):int(o.max()*999)+1] = True
    assert seen.float().mean()>.97

@pytest.mark.parametrize('workers', [0,2])
def test_the_cuts_follow_from_the_seed(tmp_path, workers):
    "Not from the number of workers; they change from epoch to epoch; validation sees the middle"
    panorama(tmp_path, 20)
    def runs(seed, w):
        dls = image_dls(tmp_path, 16, n_in=1, bs=4, valid=.2, workers=w, seed=seed)
        return [torch.stack([plain(b[0]) for b in dls.train]) for _ in range(2)],[plain(b[0]) for b in dls.valid]
    (a,b),valid = runs(1, 0)
    (c,d),_ = runs(1, workers)
    assert torch.equal(a, c) and torch.equal(b, d) and not torch.equal(a, b) and not torch.equal(a, runs(2, 0)[0][0])
    for x in valid: assert (x-plain(open_picture(tmp_path/'0.png', 1, 16))).abs().max()==0

def test_cutting_leaves_the_order_and_other_loaders_alone(tmp_path):
    "The same order as with the middle, and loaders that do not shuffle or predict read the middle, also in between"
    for i in range(12):
        a = np.linspace(0, 127, 100)[None].repeat(10, 0)+10*i
        Image.fromarray(a.astype(np.uint8)).save(tmp_path/f'{i:02}.png')
    both = [image_dls(tmp_path, 8, n_in=1, bs=3, valid=0., workers=0, square=o) for o in ('random','middle')]
    for dls in both: dls.train.randomize()
    assert list(both[0].train.get_idxs())==list(both[1].train.get_idxs())
    dls = both[0]
    middle = torch.stack([plain(open_picture(f, 1, 8)) for f in picture_files(tmp_path)])
    def in_order(): return torch.cat([plain(b[0]) for b in dls.train.new(shuffle=False, drop_last=False)])
    for _ in dls.train: assert torch.equal(in_order(), middle)
    assert torch.equal(torch.cat([plain(b[0]) for b in dls.test_dl(list(picture_files(tmp_path)))]), middle)
    assert pickle.loads(pickle.dumps(dls.train)).square=='random'
    with pytest.raises(ValueError, match="square='left'"): image_dls(tmp_path, 8, square='left')

def test_pictures_of_the_size_asked_for_are_what_they_were(tmp_path):
    for i in range(4): Image.fromarray(rng.integers(0, 256, (16,16), np.uint8)).save(tmp_path/f'{i}.png')
    a,b = (next(iter(image_dls(tmp_path, 16, n_in=1, bs=4, valid=0., workers=0, square=o).train))[0] for o in ('random','middle'))
    assert torch.equal(a, b)

@pytest.mark.parametrize('text,size', [('64',64), ('24,48',(24,48)), ('24x48',(24,48)), ((24,48),(24,48)), ([24,48],(24,48)), (np.int64(64),64), (None,None), (64,64)])
def test_sizes_in_any_form(text, size): assert parse_size(text)==size

def test_a_size_that_is_none():
    for bad in ('a', '1,2,3', 0, '0', (3,-1), 2.5, ''):
        with pytest.raises(ValueError, match='size='): parse_size(bad)
    with pytest.raises(ValueError, match='more pixels'): open_picture(np.zeros((8,8), np.uint8), size=10**7)

def test_the_command_takes_height_and_width(tmp_path, capsys):
    panorama(tmp_path)
    for size in ('24,48', '24x48', 32): byol_check(str(tmp_path), size=size, workers=0)
    with pytest.raises(CliError, match='size='): byol_check(str(tmp_path), size='24,48,3')

# K3: types, sizes, layouts

colour = smooth(20, 30)
floats = (colour/255).astype(np.float32)
layouts = {
    'hwc bytes': colour, 'chw bytes': colour.transpose(2,0,1), 'hwc floats': floats, 'chw floats': floats.transpose(2,0,1), 'doubles': floats.astype(np.float64),
    'halves': floats.astype(np.float16), 'chw tensor': torch.tensor(floats).permute(2,0,1), 'hwc tensor': torch.tensor(colour), 'bf16': torch.tensor(floats).bfloat16(),
    '16 bits': (floats.astype(np.float64)*65535).round().astype(np.uint16), 'PIL': Image.fromarray(colour), 'with gradient': torch.tensor(floats, requires_grad=True),
    'rgb of a tuple': None}

@pytest.mark.parametrize('kind', layouts)
@pytest.mark.parametrize('n_in', [1,3])
@pytest.mark.parametrize('size', [None,16])
def test_layouts_are_one_another(kind, n_in, size):
    a = Image.fromarray(colour) if layouts[kind] is None else layouts[kind]
    x = open_picture(picture_items([(a,1)] if layouts[kind] is None else [a])[0], n_in, size)
    want = plain(open_picture(Image.fromarray(colour), n_in, size))
    assert x.dtype==torch.float32 and x.shape==want.shape
    assert (plain(x)-want).abs().max()<.012

@pytest.mark.parametrize('a', [colour[...,0], colour[...,:1], colour[None,...,0], floats[...,:1], torch.tensor(floats[None,...,0]), colour[...,0]>100])
def test_grey_in_any_layout(a):
    "(h,w), (h,w,1), (1,h,w), masks"
    want = torch.tensor(colour[...,0]/255) if np.asarray(a).dtype!=bool else torch.tensor(colour[...,0]>100).float()
    for n_in in (1,3):
        x = plain(open_picture(picture_items([a])[0], n_in))
        assert x.shape==(n_in,20,30) and (x[0]-want).abs().max()<1e-3

@pytest.mark.parametrize('a,n_in,words', [
    (np.zeros((20,30,4), np.uint8), 3, r'shape \(20, 30, 4\).*n_in'), (np.zeros((2,20,30,3)), 3, 'one at a time'), (np.arange(600).reshape(20,30), 1, 'int64.*full_scale=1023'),
    (np.zeros((20,30), complex), 1, 'complex'), (np.zeros((20,30,3), np.uint8), 5, 'n_in=3'), ('text', 3, 'there is no file'), (None, 3, 'NoneType'), (np.zeros((0,3)), 1, 'no pixels')])
def test_arrays_that_are_no_pictures(a, n_in, words):
    with pytest.raises(ValueError, match=words) as e: open_picture((lambda: a), n_in) if n_in!=5 else open_picture(a, n_in)
    assert '\n' not in str(e.value)

def test_any_number_of_channels_in_memory():
    "Also in lists, with a size"
    a = rng.random((13,20,30)).astype(np.float32)
    x, = image_dls([a, a.transpose(1,2,0)], 16, n_in=13, bs=2, valid=0., workers=0, square='middle').one_batch()
    assert x.shape==(2,13,16,16) and torch.equal(x[0], x[1])
    assert torch.equal(plain(open_picture(a, 13)), torch.tensor(a))

class Torchvision:
    "Pictures, labels and names as torchvision keeps them"
    classes = ['cat','dog']
    def __init__(self, transform): self.transform,self.targets = transform,[i%2 for i in range(8)]
    def __len__(self): return 8
    def __getitem__(self, i):
        if i>=8: raise IndexError
        return self.transform(Image.fromarray(np.full((8,8,3), 30*i, np.uint8))),self.targets[i]

def to_tensor(im): return torch.tensor(np.asarray(im)/255, dtype=torch.float32).permute(2,0,1)

@pytest.mark.parametrize('transform', [to_tensor, lambda im: im, np.asarray], ids=['tensor','PIL','array'])
@pytest.mark.parametrize('label', ['targets',1,np.int64(1)], ids=str)
@pytest.mark.parametrize('subset', [False,True])
def test_data_sets_of_torchvision_and_their_labels(transform, label, subset):
    "By attribute or by place, of a subset too; words where there are words"
    data = Torchvision(transform)
    if subset: data = Subset(data, [7,6,5,4,3,2])
    dls = image_dls(data, n_in=3, bs=4, valid=0., workers=0, label_func=label)
    assert list(dls.vocab)==['cat','dog']
    for x,y in dls.train:
        assert torch.equal((plain(x)[:,0,0,0]*255/30).round().long()%2, plain(y))
    assert len(image_dls(data, bs=4, valid=0., workers=0).one_batch())==1
    with pytest.raises(ValueError, match="label_func='labels' is no list"): image_dls(data, bs=4, label_func='labels')

def test_real_torchvision():
    "With ToTensor, as in every tutorial"
    tv = pytest.importorskip('torchvision')
    data = tv.datasets.FakeData(8, (3,12,12), 2, tv.transforms.ToTensor())
    x,y = image_dls(data, bs=4, valid=0., workers=0, label_func=1).one_batch()
    assert x.shape==(4,3,12,12) and len(y)==4

class HF:
    "A data set of Hugging Face's with a transform: rows are what the transform makes of them"
    column_names = ['image','label']
    features = dict(image=types.SimpleNamespace(decode=True), label=types.SimpleNamespace(int2str=lambda i: 'ab'[i]))
    def __init__(self, transform=None): self.transform = transform
    @property
    def format(self): return dict(type='custom' if self.transform else None)
    def with_format(self, kind): return HF()
    def cast_column(self, *args): raise AssertionError('the transform needs decoded pictures')
    def __len__(self): return 8
    def __getitem__(self, i):
        if isinstance(i, str): return [k%2 for k in range(8)]
        return self.transform(dict(image=Image.fromarray(np.full((8,8,3), 30*i, np.uint8)), label=i%2))
class ImageFeature: decode = True
ImageFeature.__name__ = 'Image'
HF.features['image'] = ImageFeature()

@pytest.mark.parametrize('transform,column', [
    (lambda row: row | dict(image=row['image'].convert('RGB')), None),
    (lambda row: dict(pixel_values=to_tensor(row['image'].convert('RGB')), label=row['label']), None),
    (lambda row: dict(pixels=np.asarray(row['image']), label=row['label']), 'pixels')])
def test_rows_of_a_transform(transform, column):
    "`with_transform` of Hugging Face"
    dls = image_dls(HF(transform), column=column, bs=4, valid=0., workers=0, label_func='label')
    assert list(dls.vocab)==['a','b']
    for x,y in dls.train: assert torch.equal((plain(x)[:,0,0,0]*255/30).round().long()%2, plain(y))

def test_a_damaged_row_says_nothing_of_the_labels():
    "The first row of a class was read at once, and ended the call"
    def damaged(row):
        if np.asarray(row['image'])[0,0,0]==30: raise OSError('damaged')
        return row
    assert list(image_dls(HF(damaged), bs=4, valid=0., workers=0, label_func='label', max_bad=.2).vocab)==['a','b']

def test_rows_of_lists_are_told_how_to_become_arrays():
    "`Array2D` and `Array3D` of Hugging Face come as lists; the advice was to repair or remove the pictures"
    data = HF(lambda row: dict(image=np.asarray(row['image']).tolist()))
    with pytest.raises(ValueError, match=r"no picture, but list. Pass arrays, e.g. data.with_format\('numpy'\)"):
        image_dls(data, bs=4, valid=0., workers=0).one_batch()

def test_labels_that_a_transform_changes():
    "Those of the data below were taken, without a word"
    def is_b(row): return dict(image=row['image'], label=torch.tensor(int(row['label'])+10))
    assert list(image_dls(HF(is_b), bs=4, valid=0., workers=0, label_func='label').vocab)==[10,11]
    def words(row): return dict(image=row['image'], label='xy'[int(row['label'])])
    assert list(image_dls(HF(words), bs=4, valid=0., workers=0, label_func='label').vocab)==['x','y']

@pytest.fixture
def table(tmp_path):
    (tmp_path/'pics').mkdir()
    for i in range(10): Image.fromarray(np.full((8,8), 20*i, np.uint8)).save(tmp_path/'pics'/f'{i:02}.png')
    return pd.DataFrame(dict(name=[f'{i:02}' for i in range(10)], kind=[f'k{i%2}' for i in range(10)], split=['valid' if i>7 else 'train' for i in range(10)], is_valid=[i>7 for i in range(10)]))

@pytest.mark.parametrize('names', [lambda s: s, lambda s: s+'.png', lambda s: s.astype(int)+10_000], ids=['without suffix','relative','numbers'])
@pytest.mark.parametrize('as_csv', [False,True])
def test_tables_of_names_in_a_folder(tmp_path, table, names, as_csv):
    "With a base folder, completed by their suffix; a csv file is a table of texts (007 stays)"
    table['name'] = names(table.name)
    if table.name.dtype.kind=='i':
        for f in list((tmp_path/'pics').iterdir()): f.rename(f.with_name(f'{int(f.stem)+10_000}.png'))
    source = table
    if as_csv:
        table.to_csv(tmp_path/'t.csv', index=False)
        source = tmp_path/'t.csv'
    dls = image_dls(source, n_in=1, bs=2, column='name', label_func='kind', folder=tmp_path/'pics', valid='split', workers=0)
    assert len(dls.train_ds)==8 and [round(x.max().item()*255) for x,_ in dls.valid_ds]==[160,180]
    for x,y in dls.train: assert torch.equal((plain(x)[:,0,0,0]*255/20).round().long()%2, plain(y))

@pytest.mark.parametrize('valid', ['split','is_valid','as words','numbers','mask','numpy mask','tensor','positions','numpy positions','negative'])
def test_what_is_held_out(tmp_path, table, valid):
    "A column, a boolean mask, or positions of any integer type; with a check beforehand, too"
    table['numbers'] = table.is_valid.astype(int)
    table['as words'] = table.is_valid.map(str)
    how = {'mask': table.is_valid, 'numpy mask': table.is_valid.to_numpy(), 'tensor': torch.tensor(table.is_valid.to_numpy()), 'positions': [8,9],
           'numpy positions': np.array([8,9], np.int32), 'negative': [-1,-2]}.get(valid, valid)
    (tmp_path/'pics'/'03.png').write_bytes(b'bad')
    for check in (False,True):
        dls = image_dls(table, n_in=1, bs=2, column='name', folder=tmp_path/'pics', valid=how, workers=0, check=check, max_bad=.2)
        assert [os.fspath(o)[-6:] for o in dls.valid_ds.items]==['08.png','09.png'] and len(dls.train_ds)==8-check

@pytest.mark.parametrize('valid,words', [([0,99], 'goes from 0 to 99'), (np.array([True]*3), 'does not fit 10 items'), ([.5,.2], 'no list of positions'), ('kind', "is a column with 'k0', 'k1'"), ('none', 'no column')])
def test_what_cannot_be_held_out(tmp_path, table, valid, words):
    with pytest.raises(ValueError, match=words): image_dls(table, column='name', folder=tmp_path/'pics', valid=valid, bs=2)

def test_rows_of_neither_part_are_named(tmp_path, table, capsys):
    table.loc[0,'split'] = 'test'
    assert len(image_dls(table, n_in=1, column='name', folder=tmp_path/'pics', valid='split', bs=2).train_ds)==7
    assert "left out: 1 rows, of which 'split' says 'test'" in capsys.readouterr().out

@pytest.mark.parametrize('part', [np.float32(.2), np.float64(.2), .2])
@pytest.mark.parametrize('seed', [1, np.int64(1), np.uint8(1), torch.tensor(1)])
def test_numbers_of_numpy(tmp_path, table, part, seed):
    dls = image_dls(tmp_path/'pics', np.int64(8), n_in=np.int64(1), bs=np.int64(2), valid=part, seed=seed, workers=0)
    assert torch.equal(next(iter(dls.train))[0], next(iter(image_dls(tmp_path/'pics', 8, n_in=1, bs=2, valid=.2, seed=1, workers=0).train))[0])

def test_a_file_that_is_not_there_says_where_it_was_looked_for(tmp_path, table):
    "And advises the folder, not to repair it"
    with pytest.raises(BadPicture, match='there is no file') as e: open_picture('nowhere/a.png')
    assert os.path.abspath('nowhere/a.png') in str(e.value) and 'folder' in str(e.value) and 'Repair' not in str(e.value)
    with pytest.raises(TooManyBad, match='there is no file') as e: image_dls(table, column='name', bs=2, workers=0, valid=0.).one_batch()
    assert 'Repair' not in str(e.value) and 'folder' in str(e.value)

def test_two_files_of_one_name(tmp_path, table):
    Image.new('L', (8,8)).save(tmp_path/'pics'/'03.jpg')
    with pytest.raises(ValueError, match='may be'): picture_items(table, 'name', folder=tmp_path/'pics')

def test_other_forms_of_paths(tmp_path, table, monkeypatch):
    "One picture, a pattern, a text file of names"
    pics = tmp_path/'pics'
    (tmp_path/'names.txt').write_text('pics/03.png\n\npics/05\n')
    assert picture_items(pics/'03.png')==[pics/'03.png']
    assert picture_items(str(pics/'0[2-4].*')).map(lambda o: o.name)==['02.png','03.png','04.png']
    assert picture_items(tmp_path/'names.txt').map(lambda o: o.name)==['03.png','05.png']
    for behind in (' 0', ',0', '\t0', ', cat', ' ; 1', '\tcats/black'):
        (tmp_path/'labelled.txt').write_text(f'pics/03.png{behind}\npics/05.png{behind}\n')
        with pytest.raises(ValueError, match='has labels after the names.*csv'): picture_items(tmp_path/'labelled.txt')
    with pytest.raises(ValueError, match='fits no picture'): picture_items(str(pics/'*.gif'))

def many_bands(f): return np.load(f)

def test_a_reader_of_your_own(tmp_path, capsys, monkeypatch):
    "13 bands from .npy files, through all that reads; by name in the command"
    a = rng.random((13,20,30)).astype(np.float32)
    for i in range(4): np.save(tmp_path/f'{i}.npy', a if i%2 else a.transpose(1,2,0))
    dls = image_dls(tmp_path, 16, n_in=13, bs=2, valid=0., workers=2, reader=many_bands)
    assert dls.one_batch()[0].shape==(2,13,16,16) and not dls.skipped
    assert torch.equal(plain(open_picture(tmp_path/'0.npy', 13, reader=np.load)), torch.tensor(a))
    (tmp_path/'my_reader.py').write_text('import numpy as np\ndef read(f): return np.load(f)\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    byol_check(str(tmp_path), n_in=13, workers=0, reader='my_reader:read', suffixes='.npy')
    assert capsys.readouterr().out=='left out: 1 .py\nAll 4 pictures can be read\n'
    for bad in ('my_reader', 'my_reader:none', 'nowhere:read', 'my_reader:np'):
        with pytest.raises(ValueError, match='reader='): load_reader(bad)
    with pytest.raises(CliError, match='n_in=13 must be 1'): byol_check(str(tmp_path), n_in=13, suffixes='.npy')

@pytest.mark.parametrize('answer', [lambda im: im, np.asarray, lambda im: torch.tensor(np.asarray(im)), lambda im: (np.asarray(im)/255).transpose(2,0,1)], ids=['PIL','array','tensor','floats'])
def test_a_reader_returns_whatever_a_picture_can_be(tmp_path, answer):
    Image.fromarray(colour).save(tmp_path/'a.png')
    x = open_picture(tmp_path/'a.png', reader=lambda f: answer(Image.open(f)))
    assert (plain(x)-torch.tensor(colour/255).permute(2,0,1)).abs().max()<1e-6

def test_a_reader_gets_the_bytes_of_what_is_in_a_tar(tmp_path):
    b = io.BytesIO()
    np.save(b, floats)
    with tarfile.open(tmp_path/'a.tar', 'w') as t:
        info = tarfile.TarInfo('a.npy')
        info.size = len(b.getvalue())
        t.addfile(info, io.BytesIO(b.getvalue()))
    x = open_picture(picture_items(tmp_path/'a.tar', 'npy')[0], reader=lambda o: np.load(io.BytesIO(o)))
    assert torch.equal(plain(x), torch.tensor(floats).permute(2,0,1))

def test_an_error_of_the_reader_names_the_picture(tmp_path):
    for i in range(4): Image.fromarray(colour).save(tmp_path/f'{i}.png')
    def broken(f): raise RuntimeError('cannot\nread it')
    assert set(check_pictures(tmp_path, workers=0, reader=broken).values())=={'cannot'}
    with pytest.raises(ValueError, match='reader=3 is no function'): image_dls(tmp_path, reader=3)

def bands_tiff(n, extra=None, bits=8):
    "A TIFF of `n` bands as remote sensing writes it; PIL does not"
    data = bytes(8*8*n*bits//8)
    entries = [(256,3,1,8), (257,3,1,8), (258,3,n,None), (259,3,1,1), (262,3,1,2 if n>=3 else 1), (273,4,1,8), (277,3,1,n), (278,3,1,8), (279,4,1,len(data))]
    if extra is not None: entries.append((338,3,1,extra))
    at = 8+len(data)
    ifd_size = 2+12*len(entries)+4
    value = at+ifd_size if n>2 else int.from_bytes(bits.to_bytes(2,'little')*n, 'little')
    rows = b''.join(t.to_bytes(2,'little')+k.to_bytes(2,'little')+c.to_bytes(4,'little')+(value if v is None else v).to_bytes(4,'little') for t,k,c,v in entries)
    return b'II*\0'+at.to_bytes(4,'little')+data+len(entries).to_bytes(2,'little')+rows+bytes(4)+bits.to_bytes(2,'little')*n

@pytest.mark.parametrize('n,extra,bits', [(4,0,8), (4,None,8), (4,0,16), (13,None,8), (13,None,16), (2,0,8)])
def test_a_band_is_never_dropped_in_silence(n, extra, bits):
    "Nor taken for alpha where the file does not say so"
    with pytest.raises(BadPicture, match='bands.*reader'): open_picture(lambda: bands_tiff(n, extra, bits))

@pytest.mark.parametrize('n,extra', [(3,None), (4,2), (4,1)])
def test_bands_that_are_colours_are_read(n, extra): assert open_picture(lambda: bands_tiff(n, extra)).shape==(3,8,8)

# K4: likely causes

@pytest.mark.parametrize('x,words', [
    (np.zeros((20,16,16,3), np.uint8), r'channels last.*permute\(0,3,1,2\)'), (torch.zeros(20,16,16,1), 'channels last'), (np.zeros((20,32,32,4), np.float32), 'channels last'),
    (np.full((20,3,16,16), 200, np.float32), 'Divide by 255'), (rng.integers(0, 256, (20,1,16,16)).astype(np.float64), 'Divide by 255')])
def test_arrays_of_another_layout_or_range(x, words):
    with pytest.raises(ValueError, match=words): tensor_dls(x, bs=4)

@pytest.mark.parametrize('x', [torch.rand(20,3,16,16), torch.randn(20,1,16,16)*10, torch.zeros(20,8), torch.rand(20,5,4,3), torch.rand(20,3,4,8,8), torch.zeros(20,64,100,1), torch.rand(20,3,3,3)])
def test_other_arrays_stay_welcome(x): assert len(tensor_dls(x, bs=4).one_batch()[0])==4

@pytest.mark.parametrize('mask', [lambda m: m, lambda m: m.numpy(), lambda m: m.tolist(), lambda m: m.nonzero()[:,0].numpy().astype(np.int32)])
def test_masks_and_numpy_integers_as_splits(mask):
    x = torch.arange(10.)[:,None]
    held = x[:,0]>7
    dls = tensor_dls(x, splits=(mask(~held),mask(held)), bs=np.int64(2), seed=np.int64(3))
    assert dls.valid.one_batch()[0].flatten().tolist()==[8,9] and len(dls.train_ds)==8
    for bad in ((mask(held),), (held[:3],held), ([99],[0]), ([.5],[0])):
        with pytest.raises(ValueError, match='splits'): tensor_dls(x, splits=bad, bs=1)

# R4: hostile files and names

@pytest.mark.parametrize('suffix', ['.png','.jpg','.tiff','.eps'])
def test_eps_starts_no_program(tmp_path, suffix, monkeypatch):
    "Whatever it calls itself, in a file or in bytes"
    def started(*args, **kwargs): raise AssertionError('Ghostscript was started')
    monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', started)
    b = as_file(Image.fromarray(colour), 'EPS')
    (tmp_path/f'a{suffix}').write_bytes(b)
    for f in (tmp_path/f'a{suffix}', lambda: b, lambda: dict(bytes=b)):
        with pytest.raises(BadPicture, match='no kind of picture that PIL knows'): open_picture(f)
    assert '.eps' not in picture_suffixes() and '.wmf' not in picture_suffixes()

@pytest.mark.parametrize('limit,ok', [(399,False), (400,True), (None,True)])
def test_the_pixel_limit_is_an_option(tmp_path, limit, ok, capsys):
    "Of files, and of PIL images"
    Image.new('L', (20,20)).save(tmp_path/'a.png')
    for f in (tmp_path/'a.png', Image.new('L', (20,20))):
        if ok: assert open_picture(f, max_pixels=limit).shape==(3,20,20)
        else:
            with pytest.raises(BadPicture, match='20x20 pixels are more than max_pixels=399'): open_picture(f, max_pixels=limit)
    if ok: byol_check(str(tmp_path), workers=0, max_pixels=limit)
    else:
        with pytest.raises(CliError): byol_check(str(tmp_path), workers=0, max_pixels=limit)

def test_the_limit_can_be_raised_above_pils(tmp_path, monkeypatch):
    "Without a warning of PIL's, and without a trace in its settings"
    Image.new('L', (100,100)).save(tmp_path/'a.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    with warnings.catch_warnings(action='error'):   # nor one of a file left open
        assert open_picture(tmp_path/'a.png', 1, 8, max_pixels=10_000).shape==(1,8,8)
        with pytest.raises(BadPicture, match='max_pixels=1000'): open_picture(tmp_path/'a.png', 1, 8)
    assert Image.MAX_IMAGE_PIXELS==1000

def test_memory_is_bounded_by_the_limit(tmp_path):
    "The stated bound: 16 bytes per pixel above what is there, at a size"
    Image.new('RGBA', (4000,4000)).save(tmp_path/'a.png')
    script = f'''
import resource, sys
from self_supervised.data.reading import open_picture
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
open_picture({str(tmp_path/'a.png')!r}, 3, 64)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before)*1024/4000**2)'''
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', script], capture_output=True, text=True, cwd=os.path.dirname(os.path.dirname(__file__)))
    assert float(res.stdout)<18, res.stdout+res.stderr

odd_names = ['\x1b[31mred\x1b[0m.png', 'two\nlines.png', '\rback.png', '\u202egnp.exe.png', 'bell\x07.png', os.fsdecode(b'latin\xe9.png'), '=1+1.png', '+x.png', '-x.png', '@x.png', "'quoted.png", '＝1.png', 'plain.png']

@pytest.fixture
def oddly_named(tmp_path):
    for o in odd_names: (tmp_path/o).write_bytes(b'bad')
    for i in range(3): Image.fromarray(colour).save(tmp_path/f'good{i}.png')
    return tmp_path

def is_harmless(text): return all(o.isprintable() for line in text.split('\n') for o in line)

def test_names_reach_no_terminal_as_they_are(oddly_named, capsys):
    "Of byol_check, the list in a notebook, reports, errors and warnings"
    with pytest.raises(CliError) as e: byol_check(str(oddly_named), workers=0)
    out = capsys.readouterr().out
    assert is_harmless(out) and is_harmless(str(e.value)) and len(out.splitlines())==len(odd_names)
    dls = image_dls(oddly_named, bs=2, valid=0., workers=0, max_bad=1, log=oddly_named/'log\x1b[0m.csv')
    list(dls.train)
    assert is_harmless(repr(dls.skipped)) and is_harmless(capsys.readouterr().out)
    for o in odd_names:
        with pytest.raises(BadPicture) as e: open_picture(oddly_named/o)
        assert is_harmless(str(e.value))
    Image.fromarray((ramp*4095).astype(np.uint16)).save(oddly_named/'\x1b[0mdim.png')
    with pytest.warns(UserWarning) as seen: open_picture(oddly_named/'\x1b[0mdim.png')
    assert all(is_harmless(str(o.message)) for o in seen)
    (oddly_named/'a.\x1b[31m').touch()
    byol_check_text = left_out_text(picture_files(oddly_named).left_out)
    assert is_harmless(byol_check_text) and '.\\x1b[31m' in byol_check_text

@pytest.mark.parametrize('name', odd_names)
def test_csv_cells_are_no_formulas_and_are_read_back(name, tmp_path):
    cell = to_csv_cell(name)
    assert cell[0] not in '=+-@\t\r＝＋－＠' and from_csv_cell(cell)==name and is_harmless(printable(name))
    s = Skipped(10, 1., tmp_path/'log.csv')
    s.add(name, '=cmd')
    again = pickle.loads(pickle.dumps(s))
    again.found,again.n_read = {},0
    assert dict(again)=={name:'=cmd'}
    rows = list(csv.reader(open(s.log, newline='', errors='surrogateescape')))
    assert rows==[[cell,"'=cmd"]]

def test_the_list_of_byol_check_is_no_formula(oddly_named, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(oddly_named)
    out = tmp_path_factory.mktemp('out')/'bad.csv'
    with pytest.raises(CliError): byol_check('.', workers=0, out=str(out))
    rows = list(csv.reader(open(out, newline='', errors='surrogateescape')))
    assert {from_csv_cell(o[0]) for o in rows}==set(odd_names)
    assert not any(o[0].startswith(tuple('=+-@')) for o in rows)

def test_half_a_row_and_a_full_disk(tmp_path, monkeypatch):
    "A kill while the list was written costs a row; a full disk costs the file and not the run"
    s = Skipped(10, 1., tmp_path/'log.csv')
    s.add('a.png', 'empty')
    with open(s.log, 'ab') as f: f.write(b'b.pn')
    assert dict(s)=={'a.png':'empty'}
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'write', full)
    with pytest.warns(UserWarning, match='No space left'): s.add('c.png', 'empty')
    assert 'c.png' in s and len(s)==2

@pytest.mark.parametrize('workers', [0,2])
def test_pils_palette_warning_is_not_repeated(workers, tmp_path):
    "Not once per worker and epoch: it does not come, since such pictures are read with their alpha"
    script = f'''
import warnings
from self_supervised.data.images import image_dls
dls = image_dls({str(tmp_path)!r}, bs=2, valid=0., workers={workers})
for _ in range(3): list(dls.train)'''
    for i in range(8): (tmp_path/f'{i}.png').write_bytes(alpha_files['P with alphas']('noise'))
    res = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, cwd=os.path.dirname(os.path.dirname(__file__)))
    assert res.returncode==0 and 'Palette' not in res.stderr, res.stderr

@pytest.mark.parametrize('workers', [0,2])
def test_a_warning_of_pils_comes_at_most_once(workers, tmp_path):
    "Here of EXIF that is cut off"
    for i in range(8): (tmp_path/f'{i}.jpg').write_bytes(as_file(Image.fromarray(colour), 'JPEG', exif=b'Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01'))
    script = f'''
from self_supervised.data.images import image_dls
from self_supervised.data.skipped import check_pictures
dls = image_dls({str(tmp_path)!r}, bs=2, valid=0., workers={workers})
for _ in range(3): list(dls.train)'''
    res = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, cwd=os.path.dirname(os.path.dirname(__file__)))
    assert res.returncode==0 and res.stderr.count('EXIF')<=1, res.stderr

def test_the_command_says_nothing_of_other_libraries(tmp_path):
    "No FutureWarning of torch's, no warning of PIL's"
    (tmp_path/'a.png').write_bytes(alpha_files['P with alphas']('noise'))
    script = f"from self_supervised.cli.check import byol_check; byol_check({str(tmp_path)!r})"
    res = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, cwd=os.path.dirname(os.path.dirname(__file__)))
    assert (res.stdout,res.stderr)==('All 1 picture can be read\n', '')

def test_a_dictionary_with_an_id_beside_the_label():
    from self_supervised.data.batches import picture_and_label
    x,i,y = torch.rand(4,3,8,8),torch.arange(4),torch.tensor([7,7,8,8])
    for k in ('label','labels','target','targets','y'):
        assert torch.equal(picture_and_label({'image':x, 'id':i, k:y})[1], y)
    assert len(picture_and_label(dict(image=x, id=i)))==1

@pytest.mark.parametrize('kind', ['tif','gif','webp','png'])
def test_pages_that_are_not_read_are_counted_and_named(tmp_path, kind):
    "A stack of a microscope, an animation: one picture of it is trained on, which is said once, by training and by the check"
    pages = [Image.fromarray(np.full((12,12), 60*i+20, np.uint8)) for i in range(4)]
    for i in range(8): pages[i%4].copy().save(tmp_path/f'{i}.png')
    pages[0].save(tmp_path/f'stack.{kind}', save_all=True, append_images=pages[1:])
    with pytest.warns(UserWarning, match='1 of 9 pictures has several pages, e.g. .*stack.*4 pages, of which the first is read'):
        list(image_dls(tmp_path, 8, n_in=1, bs=8, valid=0., workers=0, device='cpu').train)
    found = check_pictures(tmp_path, 8, 1, workers=0)
    assert not found and not found.dim and [*found.remarks]==[str(tmp_path/f'stack.{kind}')]

@pytest.mark.parametrize('kind', ['tif','gif'])
def test_a_damaged_page_behind_the_first_is_no_matter(tmp_path, kind):
    "Whatever reads the first page without a look at the others reads it with one"
    pages = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (12,12), dtype=np.uint8)) for i in range(4)]
    pages[0].save(tmp_path/f'a.{kind}', save_all=True, append_images=pages[1:])
    data = (tmp_path/f'a.{kind}').read_bytes()
    for n in range(20, len(data), 7):
        (tmp_path/f'b.{kind}').write_bytes(data[:n])
        read = []
        for note in (None, lambda o: None):
            try: read.append(reading.PictureReader(1, 8)(tmp_path/f'b.{kind}', note=note))
            except BadPicture: read.append(None)
        assert (read[0] is None)==(read[1] is None) and (read[0] is None or torch.equal(*read))

# Labels: one rule for pictures without one, in all sources

class STL(torch.utils.data.Dataset):
    "As torchvision's STL10: -1 marks unlabelled pictures"
    classes = ['airplane','bird','truck']
    def __init__(self): self.labels = np.array([0,1,2,-1]*3)
    def __len__(self): return 12
    def __getitem__(self, i): return Image.fromarray(colour),self.labels[i]

class Remapped(STL):
    "Its items have other numbers than its list"
    def __getitem__(self, i): return Image.fromarray(colour),int(self.labels[i]==2)

class Named(STL):
    "It names a `target_transform`, and keeps no list"
    def __init__(self): self.target_transform = lambda y: y%2
    def __getitem__(self, i): return Image.fromarray(colour),self.target_transform(i)

loading = dict(size=8, bs=1, valid=0., workers=0, device='cpu')

def labels_in(source, label_func, **kw):
    "Label → number of pictures to train on"
    dls = image_dls(source, label_func=label_func, **loading | kw)
    return Counter(dls.vocab[int(y)] for y in dls.train.new(shuffle=False, drop_last=False, bs=99).one_batch()[1])

def words(folder, n=12):
    "`n` pictures cat_0.png, dog_1.png, …"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder/f"{['cat','dog'][i%2]}_{i}.png" for i in range(n)]
    for f in files: Image.fromarray(colour).save(f)
    return files

def write_tar(path, members):
    "Name → bytes, or name → TarInfo of a link"
    with tarfile.open(path, 'w') as t:
        for name,o in members.items():
            info = o if isinstance(o, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name,info.size = name,0 if info is o else len(o)
            t.addfile(info, None if info is o else io.BytesIO(o))
    return path

def link(kind, target):
    info = tarfile.TarInfo()
    info.type,info.linkname = kind,target
    return info

png = as_file(Image.fromarray(smooth()), 'PNG')

@pytest.mark.parametrize('label', ['labels',1])
def test_minus_one_is_no_class(label, capsys):
    assert labels_in(STL(), label)==dict(airplane=3, bird=3, truck=3)
    assert 'left out: 3 pictures without a label, e.g. item 3' in capsys.readouterr().out
    assert labels_in(Subset(STL(), range(8)), label)==dict(airplane=2, bird=2, truck=2)
    data = STL()
    data.labels[:] = -1
    with pytest.raises(ValueError, match='gives no picture a label.*None to train without'): labels_in(data, label)

def test_changed_numbers_do_not_get_the_words_of_others():
    assert labels_in(Remapped(), 1)=={0:9, 1:3}
    assert labels_in(Named(), 1)=={0:6, 1:6}
    data = STL()
    data.ages = [30,40,50]*4
    assert labels_in(data, 'ages')=={30:4, 40:4, 50:4}

def test_minus_one_and_one_are_two_classes():
    "As in CelebA and for support vector machines"
    assert known_labels([-1,1,-1])==[-1,1,-1] and known_labels(['-1','1'])==['-1','1'] and known_labels([1.,-1.,math.nan])==[1.,-1.,None]
    assert known_labels([-1,0,1])==[None,0,1] and known_labels(['-1','a'])==[None,'a'] and known_labels([-1,-1])==[None,None]
    assert known_labels([None,pd.NA,pd.NaT,'',' ','x',False,0])==[None]*5+['x',False,0]

def test_a_blank_label_is_no_class_in_any_source(tmp_path, capsys):
    files = words(tmp_path/'pics')
    y = [None,'cat','dog']*4
    want = dict(cat=4, dog=4)
    frame = pd.DataFrame(dict(name=files, label=y))
    (tmp_path/'a.csv').write_text('name,label\n'+''.join(f'{f},{o or [""," "][i%2]}\n' for i,(f,o) in enumerate(zip(files, y))))
    tar = {f'{i}.{k}': v for i,o in enumerate(y) for k,v in dict(png=png, cls=(o or ' ').encode(), json=json.dumps(dict(a=o)).encode()).items()}
    for source,kw in ((frame, dict(column='name', label_func='label')), (str(tmp_path/'a.csv'), dict(column='name', label_func='label')),
                      (frame.assign(label=frame.label.astype('string')), dict(column='name', label_func='label')),
                      (files, dict(label_func=dict(zip(files, y)).get)), (files, dict(label_func=y)), (tmp_path/'pics', dict(label_func=y)),
                      (write_tar(tmp_path/'a.tar', tar), dict(label_func='cls')), (tmp_path/'a.tar', dict(label_func='json.a'))):
        assert labels_in(source, **kw)==want
        assert capsys.readouterr().out.count('left out: 4 pictures without a label')==1
    # positions and rows stay those of the source
    dls = image_dls(files, 8, bs=1, workers=0, label_func=y, valid=[0,1,2], check=True)
    assert [o.name for o in dls.valid_ds.items]==['dog_1.png','cat_2.png'] and len(dls.train_ds)==6

def test_a_function_of_labels_gets_a_path_in_any_source(tmp_path):
    "Also fastai's: the name is that of the file, not of the tar with it"
    files = words(tmp_path/'pics'/'train')
    with tarfile.open(tmp_path/'a.tar', 'w') as t: t.add(tmp_path/'pics', 'pics')
    frame = pd.DataFrame(dict(f=list(map(str, files))))
    regex = RegexLabeller(r'^(.+)_\d+.png$')
    for source in (tmp_path/'pics', tmp_path/'a.tar', frame, files):
        for label in (lambda o: o.name.split('_')[0], using_attr(regex, 'name'), RegexLabeller(r'/([a-z]+)_\d+.png$'), lambda o: o.stem[:3],
                      lambda o: str(o).split('/')[-1][:3], lambda o: o.with_suffix('').name[:3]):
            assert labels_in(source, label)==dict(cat=6, dog=6)
        assert labels_in(source, lambda o: o.parent.name)==labels_in(source, parent_label)==dict(train=12)
    o = picture_items(tmp_path/'a.tar')[0]
    again = pickle.loads(pickle.dumps(o))
    assert again.parts==Path(o).parts and again.suffix=='.png' and str(again)==os.fspath(o) and not hasattr(again, 'ndim')

def test_a_list_of_labels_and_what_is_none(tmp_path):
    files = words(tmp_path/'pics')
    for y in ([0,1]*6, np.arange(12)%2, torch.arange(12)%2, pd.Series([0,1]*6)): assert labels_in(files, y)=={0:6, 1:6}
    for y,text in (([0]*11, 'has 11 labels, and there are 12 pictures'), ({'a':1}, 'is no function, name or list.*lambda'), (1.5, 'is no function'),
                   (lambda o: ['a'], 'a label is one word or number')):
        with pytest.raises(ValueError, match=text) as e: labels_in(files, y)
        assert '\n' not in str(e.value)

@pytest.mark.parametrize('name', ['item_tfms','batch_tfms','path'])
def test_an_argument_of_fastais_loaders(tmp_path, name):
    words(tmp_path)
    with pytest.raises(TypeError, match=f'{name}=.* is no argument of image_dls. Pass .*size' if name!='path' else 'help.image_dls') as e:
        image_dls(tmp_path, **{name:[1]})
    assert '\n' not in str(e.value)

# Tars

def test_tars_beside_pictures_hide_none(tmp_path, capsys):
    "A backup, the archive that the folder came in, annotations: counted as left out"
    files = words(tmp_path/'images')
    write_tar(tmp_path/'backup.tar', {'0.png':png})
    write_tar(tmp_path/'annotations.tar', {'0.xml':b'x'})
    with tarfile.open(tmp_path/'images.tar.gz', 'w:gz') as t: t.add(tmp_path/'images', 'images')
    items = picture_items(tmp_path)
    assert items==sorted(files) and items.left_out=={'.tar':2, '.tar.gz':1}
    byol_check(str(tmp_path), workers=0)
    assert 'All 12 pictures can be read' in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"label_func='cls' names.*\*\.tar"): picture_items(tmp_path, label='cls')
    assert len(picture_items(str(tmp_path/'b*.tar')))==1
    # a folder of shards alone, also with a hidden thumbnail and a text in it
    (tmp_path/'shards'/'.thumbs').mkdir(parents=True)
    for name in ('.thumbs/1.png','README.md','index.json'): (tmp_path/'shards'/name).write_bytes(png)
    for i in range(2): write_tar(tmp_path/'shards'/f'{i}.tar', {'0.png':png})
    for kw in ({}, dict(any_file=True)): assert len(picture_items(tmp_path/'shards', **kw))==2
    assert picture_items(tmp_path/'shards').left_out=={'hidden .png':1, '.md':1, '.json':1}

def test_hidden_folders_are_counted(tmp_path):
    "In a folder as in a tar; a linked one is read under the name that is not hidden"
    files = words(tmp_path/'data'/'pics', 4)
    words(tmp_path/'data'/'.cache'/'deep', 2)
    words(tmp_path/'data'/'.store', 3)
    (tmp_path/'data'/'.cache'/'notes.txt').touch()
    assert picture_items(tmp_path/'data').left_out=={'hidden .png':5}
    (tmp_path/'data'/'z').symlink_to('.store')
    items = picture_items(tmp_path/'data')
    assert len(items)==7 and items.left_out=={'hidden .png':2}
    with tarfile.open(tmp_path/'a.tar', 'w') as t: t.add(tmp_path/'data', '.')
    items = picture_items(tmp_path/'a.tar')
    assert [o.name for o in items]==sorted(f.name for f in files) and items.left_out=={'hidden .png':5, 'without suffix (a link to no file of the tar)':1}
    (tmp_path/'.home').mkdir()
    assert len(picture_items((tmp_path/'data').rename(tmp_path/'.home'/'data')))==7   # what lies above a source is no matter

def test_links_in_a_tar_are_followed_or_counted(tmp_path):
    hard,soft = tarfile.LNKTYPE,tarfile.SYMTYPE
    tar = write_tar(tmp_path/'a.tar', {
        'x/0.png':png, 'x/hard.png':link(hard, 'x/0.png'), 'x/soft.png':link(soft, '0.png'), 'blob':png, 'y/1.png':link(soft, '../blob'),
        'y/1.cls':link(soft, '../cat'), 'cat':b'cat', 'x/0.cls':b'dog', 'x/hard.cls':link(hard, 'x/0.cls'),
        'out.png':link(soft, '/etc/x.png'), 'circle.png':link(soft, 'circle.png')})
    items = picture_items(tar, label='cls')
    assert [(str(o.relative_to(tar)),o.label) for o in items]==[('x/0.png','dog'), ('x/hard.png','dog'), ('y/1.png','cat')]
    assert check_pictures(tar, workers=0)=={} and all(o.where()==png for o in items)
    assert items.left_out=={'.png (a link to no file of the tar)':2, 'without suffix':2}

@pytest.mark.parametrize('label,member,text', [
    ('json.species', {'0.json':b'{'}, "0.json' in .* JSON"), ('json.species', {'0.json':b'[1]'}, None), ('cls', {'0.cls':b'ch\xe4t'}, "0.cls' in .* UTF-8"),
    ('json.species', {'0.json':b'{"kind": 1}'}, None), ('cls', {'v1.0_a.png':png, 'v1.0_a.cls':b'x'}, 'has no v1.cls.*WebDataset.*first dot')])
def test_a_label_in_a_tar_that_cannot_be_read(tmp_path, label, member, text):
    "One line with the member and the fix; a missing one is no label, unless all are"
    tar = {'0.png':png, '0.cls':b'x', '0.json':b'{"species": "x"}'} | member
    if text is None:
        write_tar(tmp_path/'a.tar', tar)
        with pytest.raises(ValueError, match='must name a field.*0.json'): picture_items(tmp_path/'a.tar', label=label)
        write_tar(tmp_path/'a.tar', tar | {'1.png':png, '1.json':b'\xef\xbb\xbf{"species": "x"}', '2.png':png})
        assert [o.label for o in picture_items(tmp_path/'a.tar', label=label)]==[None,'x',None]
        return
    write_tar(tmp_path/'a.tar', tar)
    with pytest.raises(ValueError, match=text) as e: picture_items(tmp_path/'a.tar', label=label)
    assert '\n' not in str(e.value)

# csv and text files

def test_a_csv_file_without_header_loses_no_picture(tmp_path):
    files = words(tmp_path)
    (tmp_path/'a.csv').write_text('\n'.join(f.name for f in files))
    assert [o.name for o in picture_items(tmp_path/'a.csv')]==[f.name for f in files]
    for name in ('cat_0.png','elsewhere/x.png'):
        (tmp_path/'b.csv').write_text(f'{name},cat\ncat_2.png,cat\n')
        with pytest.raises(ValueError, match=f"b.csv' has no header: .*{name}.*name,label") as e: picture_items(tmp_path/'b.csv')
        assert '\n' not in str(e.value)

@pytest.mark.parametrize('sep', [',',';','\t'])
@pytest.mark.parametrize('end', ['','sep'])
def test_csv_files_of_any_separator(tmp_path, sep, end):
    files = words(tmp_path)
    end = sep if end else ''
    (tmp_path/'a.csv').write_text(f'name{sep}label\n'+''.join(f'{f.name}{sep}00{i%2}{end}\n' for i,f in enumerate(files)), encoding='utf-8-sig')
    with warnings.catch_warnings(action='error'): assert labels_in(tmp_path/'a.csv', 'label', column='name')=={'000':6, '001':6}

@pytest.mark.parametrize('data,said', [('name,label\ncat_0.png,chät'.encode('latin-1'), "a.csv' is not UTF-8 text. Save it as UTF-8"), (b'', "a.csv' is empty"),
    (b'name,label\na,b\na,b,c,d\n', "a.csv' has 4 cells in the row of 'a', and 2 in its first"), ('name,label\n'.encode('utf-16'), 'is empty. Pass pictures')])
def test_a_csv_file_that_cannot_be_read_is_named(tmp_path, data, said):
    (tmp_path/'a.csv').write_bytes(data)
    with pytest.raises(ValueError, match=said) as e: picture_items(tmp_path/'a.csv', 'name', label='label')
    assert '\n' not in str(e.value)

def test_a_list_of_names_with_a_byte_order_mark(tmp_path):
    files = words(tmp_path)
    (tmp_path/'names.txt').write_text('\n'.join(f.name for f in files), encoding='utf-8-sig')
    assert picture_items(tmp_path/'names.txt')==files

@pytest.mark.parametrize('text,said', [
    ('name,label\n{0},cat\n{1},"dog\n{2},cat\n', 'is no table .*Close each quote'), ('name,label\n{0},cat,x\n{1},dog,x\n', "has 3 cells in the row of '.*cat_0.png', and 2 in its first"),
    ('name,label,label\n{0},cat,dog\n{1},dog,cat\n', "'label' is the name of several columns")], ids=['quote','cells','titles'])
def test_a_table_that_hides_rows_or_cells_is_refused(tmp_path, text, said):
    "A quote that is not closed hid the rows below it, and a cell too many moved the columns"
    (tmp_path/'a.csv').write_text(text.format(*words(tmp_path)))
    with pytest.raises(ValueError, match=said) as e: picture_items(tmp_path/'a.csv', 'name', 'label')
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('name,sep,encoding', [('a.csv',';','utf-16'), ('a.TSV','\t','utf-8'), ('a.tsv','\t','utf-8-sig'), ('a.csv','\t','utf-16')])
def test_tables_as_spreadsheets_save_them(tmp_path, name, sep, encoding):
    files = words(tmp_path/'pics')
    rows = [('name','label, or none'), *((f'pics/{f.name}', f.name[:3]) for f in files)]
    (tmp_path/name).write_text('\r\n'.join(map(sep.join, rows)), encoding=encoding)
    assert labels_in(tmp_path/name, 'label, or none', column='name')==dict(cat=6, dog=6)
    (tmp_path/'names.txt').write_text('\r\n'.join(o for o,_ in rows[1:]), encoding=encoding)
    assert picture_items(tmp_path/'names.txt')==files

@pytest.mark.parametrize('sep', list(';,\t|'))
def test_quotes_after_a_blank(tmp_path, sep):
    "As written by hand: the quotes stayed part of the label, and a separator in them cut it"
    files = words(tmp_path/'pics')
    first = 'sep=|\n' if sep=='|' else ''
    (tmp_path/'a.csv').write_text(first+f'name{sep} "label"\n'+''.join(f'"pics/{f.name}"{sep} "{f.name[:3]}{sep} black"\n' for f in files))
    assert labels_in(tmp_path/'a.csv', 'label', column='name')=={f'cat{sep} black':6, f'dog{sep} black':6}
    # Words behind a quote, and quotes inside of one, are parts of the cell
    (tmp_path/'c.csv').write_text(first+f'name{sep}label\npics/{files[0].name}{sep} "big" cat\npics/{files[1].name}{sep}"see{sep} ""here""{sep} ok"\n')
    assert labels_in(tmp_path/'c.csv', 'label', column='name')=={' "big" cat':1, f'see{sep} "here"{sep} ok':1}
    # Elsewhere a name may begin with a blank
    files[0].rename(files[0].with_name(' 1.png'))
    (tmp_path/'b.csv').write_text(first+f'name{sep}label\n 1.png{sep}cat\n{files[1].name}{sep}dog\n')
    assert labels_in(tmp_path/'b.csv', 'label', column='name', folder=tmp_path/'pics')==dict(cat=1, dog=1)

@pytest.mark.parametrize('sep', list(';,\t|'))
@pytest.mark.parametrize('first', ['sep={}\r\n', '"sep={}"\n', 'SEP={}\r'])
def test_a_first_line_that_names_the_separator_for_excel(tmp_path, first, sep):
    "As exports for Excel begin; the table was refused for its second line, which has more cells than this one"
    files = words(tmp_path/'pics')
    (tmp_path/'a.csv').write_text(first.format(sep)+f'name{sep}label\n'+''.join(f'{f}{sep}{i%2}\n' for i,f in enumerate(files)), encoding='utf-8-sig', newline='')
    items = picture_items(tmp_path/'a.csv', 'name', 'label')
    assert [(str(o),o.label) for o in items]==[(str(f),f'{i%2}') for i,f in enumerate(files)]

def test_a_csv_file_without_titles_and_suffixes_loses_no_picture(tmp_path):
    files = words(tmp_path)
    (tmp_path/'a.csv').write_text('\n'.join(f.stem for f in files))
    assert [o.name for o in picture_items(tmp_path/'a.csv')]==[f.name for f in files]
    (tmp_path/'b.csv').write_text('\n'.join(f'{f.name[:3]},{f.stem}' for f in files))
    with pytest.raises(ValueError, match="b.csv' has no header: .*cat_0.*name,label"): picture_items(tmp_path/'b.csv')
    # a title that is the name of a picture, too
    Image.fromarray(colour).save(tmp_path/'label.png')
    (tmp_path/'c.csv').write_text('name,label\n'+'\n'.join(f'{f.stem},{f.name[:3]}' for f in files))
    assert labels_in(tmp_path/'c.csv', 'label', column='name')==dict(cat=6, dog=6)

@pytest.mark.parametrize('folder', [None,'pics'])
def test_a_row_without_a_name_is_one_bad_picture(tmp_path, folder, monkeypatch):
    "All others lost their folder and were not completed"
    monkeypatch.chdir(tmp_path)
    files = [f.name for f in words(Path('pics'))]
    names = [o if folder else f'pics/{o}' for o in files]
    for none in (None, math.nan, pd.NA):
        frame = pd.DataFrame(dict(name=[*names[:3], none, names[4].removesuffix('.png'), *names[5:]]))
        assert list(check_pictures(frame, column='name', folder=folder, workers=0))==['row 3']

def test_a_folder_of_the_name_is_no_picture(tmp_path):
    words(tmp_path)
    (tmp_path/'cat_0').mkdir()
    assert picture_items([tmp_path/'cat_0', tmp_path/'dog_1'])==[tmp_path/'cat_0.png', tmp_path/'dog_1.png']

def test_folders_that_fit_a_pattern_are_counted(tmp_path):
    "Their pictures were left out in silence"
    files = words(tmp_path, 2)
    words(tmp_path/'a', 3)
    words(tmp_path/'b', 1)
    items = picture_items(f'{tmp_path}/*')
    assert items==files and items.left_out=={'folders':2} and left_out_text(items.left_out)=='2 folders'
    items = picture_items(f'{tmp_path}/**')
    assert len(items)==6 and items.left_out=={}

@pytest.mark.parametrize('take', [picture_items, check_pictures, image_dls])
def test_an_empty_text_is_no_folder(tmp_path, take, monkeypatch):
    "As of a shell variable that is not set; it was the current folder"
    words(tmp_path)
    monkeypatch.chdir(tmp_path)
    for wrong in (dict(source=''), dict(source='.', folder='')):
        with pytest.raises(ValueError, match="='' is an empty text. Pass a path"): take(**wrong)

@pytest.mark.parametrize('at', [0,100,148,156,257,300])
def test_a_tar_with_a_damaged_header_is_refused(tmp_path, at):
    "The files after it were lost in silence"
    tar = write_tar(tmp_path/'a.tar', {f'{i}.png': png for i in range(6)})
    data = bytearray(tar.read_bytes())
    place = [m.offset for m in tarfile.open(tar)][3]
    data[place+at] ^= 0x15
    tar.write_bytes(data)
    with pytest.raises(ValueError, match=r'a.tar.*goes on after 3 files: a damaged header') as e: picture_items(tar)
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('end', [0,100,1024,5000])
def test_the_end_of_a_tar(tmp_path, end):
    "With no zeros, half a block of them, the usual two blocks, and more; a header that is cut is damage"
    tar = write_tar(tmp_path/'a.tar', {f'{i}.png': png for i in range(3)})
    with tarfile.open(tar) as t: last = list(t)[-1]
    stop = last.offset_data+-(-last.size//512)*512
    whole = tar.read_bytes()[:stop]
    tar.write_bytes(whole+bytes(end))
    assert len(picture_items(tar))==3
    tar.write_bytes(whole+whole[:200])
    with pytest.raises(ValueError, match='goes on after 3 files'): picture_items(tar)
    tar.write_bytes(whole+bytes(1024)+whole+bytes(1024))   # `cat a.tar b.tar`
    with pytest.raises(ValueError, match='goes on after 3 files.* several tars in one file'): picture_items(tar)

def test_a_folder_in_a_list_is_named_as_one(tmp_path):
    words(tmp_path/'a')
    with pytest.raises(BadPicture, match=r'a folder\). Pass the pictures in it, e.g. picture_files'): open_picture(tmp_path/'a')

@pytest.mark.parametrize('name', ['is_train','train','isTrain','is_training_image','Train'])
@pytest.mark.parametrize('form', [bool,int,str,float])
def test_a_column_of_training_rows_is_no_column_of_held_out_ones(tmp_path, table, name, form):
    "True in `is_train` held the row out: trained on the test part, and tested on the training part"
    table[name] = (~table.is_valid).map(form)
    dls = image_dls(table, n_in=1, bs=2, column='name', folder=tmp_path/'pics', valid=name, workers=0)
    assert [os.fspath(o)[-6:] for o in dls.valid_ds.items]==['08.png','09.png'] and len(dls.train_ds)==8

def test_other_names_of_such_columns(tmp_path, table):
    how = dict(n_in=1, bs=2, column='name', folder=tmp_path/'pics', workers=0)
    table['strain'] = table['is_test'] = table.is_valid
    table['is_training'] = table.split
    for name in ('strain','is_test','is_training'): assert len(image_dls(table, valid=name, **how).valid_ds)==2
    table['train_or_test'] = table.is_valid
    with pytest.raises(ValueError, match="valid='train_or_test' says train and valid.*Write 'train' and 'valid'"): image_dls(table, valid='train_or_test', **how)

@pytest.mark.parametrize('check', [False,True])
def test_rows_of_one_picture_are_in_one_part(tmp_path, table, check):
    "A table with a row per box was split by row: the same picture was trained on and tested on"
    once = image_dls(table, n_in=1, bs=2, column='name', folder=tmp_path/'pics', valid=.3, workers=0, check=check)
    rows = pd.concat([table,table.assign(kind='other'),table[::2]], ignore_index=True)
    for seed in range(5):
        dls = image_dls(rows, n_in=1, bs=2, column='name', label_func='kind', folder=tmp_path/'pics', valid=.3, seed=seed, workers=0, check=check)
        train,valid = ({os.fspath(o) for o in dl.items} for dl in (dls.train_ds,dls.valid_ds))
        assert not train & valid and len(train | valid)==10 and len(dls.train_ds)+len(dls.valid_ds)==25 and valid
    again = image_dls(table, n_in=1, bs=2, column='name', folder=tmp_path/'pics', valid=.3, workers=0, check=check)
    assert [*map(os.fspath, again.valid_ds.items)]==[*map(os.fspath, once.valid_ds.items)] and len(once.valid_ds)==3

@pytest.mark.parametrize('form', [int,float,str])
def test_folds_are_no_parts(tmp_path, table, form):
    "Of five folds the first was trained on, the second held out, and the others were left out"
    table['fold'] = [form(i%5) for i in range(len(table))]
    how = dict(n_in=1, bs=2, column='name', folder=tmp_path/'pics', workers=0)
    with pytest.raises(ValueError, match="valid='fold' is a column with '0.*'4.*Write 'train' and 'valid'"): image_dls(table, valid='fold', **how)
    table['fold'] = (table.fold.map(float)==1).map(form)
    assert len(image_dls(table, valid='fold', **how).valid_ds)==2
    table['fold'] = table.fold.where(table.index!=0)   # an empty cell is in no part
    assert len(image_dls(table, valid='fold', **how).train_ds)==7

@pytest.mark.parametrize('seed', [42,0,1])
def test_chance_holds_out_no_class_as_a_whole(tmp_path, seed):
    "With few pictures of many classes the call ended with an error, for most seeds"
    rows = pd.DataFrame(dict(name=[f'{i}.png' for i in range(200)], kind=[f'k{i//2}' for i in range(200)]))
    for o in rows.name: Image.new('L', (4,4)).save(tmp_path/o)
    how = dict(column='name', folder=tmp_path, valid=.3, seed=seed, workers=0, bs=2)
    for table in (rows, pd.concat([rows,rows.assign(kind='all')], ignore_index=True)):
        dls,plain = image_dls(table, label_func='kind', **how),image_dls(table, **how)
        train,held = ({os.fspath(o) for o in dl.items} for dl in (dls.train_ds,dls.valid_ds))
        assert {o.label for o in dls.train_ds.items}==set(table.kind) and not train & held
        was = {os.fspath(o) for o in plain.valid_ds.items}
        assert held<was and len(was-held)==len({o[1] for o in rows.values if all(os.fspath(tmp_path/n) in was for n in rows.name[rows.kind==o[1]])})
    whole = image_dls(rows, label_func=lambda o: 'ab'[int(o.stem)%2], **how)   # every class is there: the part is as without labels
    assert [*map(os.fspath, whole.valid_ds.items)]==[*map(os.fspath, image_dls(rows, **how).valid_ds.items)]
    with pytest.raises(ValueError, match='valid holds out a class as a whole'): image_dls(rows, label_func='kind', **how | dict(valid=[0,1]))

def test_both_parts_of_a_splitter_are_refused_in_one_line(tmp_path, table):
    "Of different lengths they ended in an error of NumPy"
    with pytest.raises(ValueError, match=r'valid=.* is no list of positions. Pass the positions of one part'):
        image_dls(table, n_in=1, bs=2, column='name', folder=tmp_path/'pics', valid=([0,1,2],[3]), workers=0)

@pytest.mark.parametrize('ends', [('jpg','left.png'),('png','a.png','b.png')])
def test_pictures_of_one_sample_of_a_tar_stay_together(tmp_path, ends):
    "One of them was trained on, and another of the same sample was tested on"
    members = {f'{i%3}/{i:03}.{end}': png for i in range(30) for end in ends} | {f'{i%3}/{i:03}.cls': b'%d' % (i%3) for i in range(30)}
    tar = write_tar(tmp_path/'0.tar', members)
    for valid,label in ((.3,'cls'),(.3,None),(.97,'cls')):
        dls = image_dls(tar, 8, label_func=label, valid=valid, bs=3, workers=0)
        train,held = ({str(o)[:-len(o.name)]+o.name[:3] for o in part.items} for part in (dls.train_ds,dls.valid_ds))
        assert train and held and not train & held and len(train)+len(held)==30

def test_a_dot_before_a_number_does_not_make_one_sample(tmp_path):
    "All of scan.001.png, scan.002.png, … are no single sample"
    tar = write_tar(tmp_path/'0.tar', {f'scan.{i:03}.png': png for i in range(30)})
    dls = image_dls(tar, 8, valid=.3, bs=3, workers=0)
    assert (len(dls.train_ds),len(dls.valid_ds))==(21,9)

def test_numbers_behind_a_dot_in_class_folders_do_not_make_samples(tmp_path):
    "Fewer numbers than folders: each folder was taken for one sample, and the held-out part was empty"
    tar = write_tar(tmp_path/'0.tar', {f'c{k:02}/scan.{i:03}.png': png for k in range(20) for i in range(15)})
    dls = image_dls(tar, 8, label_func=parent_label, valid=.2, bs=3, workers=0)
    assert (len(dls.train_ds),len(dls.valid_ds))==(240,60)

# K3: rows and labels in other containers

class Rows(torch.utils.data.Dataset):
    "A data set whose items are made by a function of the index"
    def __init__(self, make): self.make = make
    def __len__(self): return 12
    def __getitem__(self, i): return self.make(i)

def shade(i): return np.full((8,8,3), 20*i, np.uint8)
def shades(dls):
    "Shade of each picture → its label"
    found = {}
    for dl in dls.train.new(shuffle=False, drop_last=False),dls.valid:
        for x,y in dl: found |= {round(o.mean().item()*255/20): dls.vocab[k] for o,k in zip(x, y)}
    return found

even = ['odd' if i%2 else 'even' for i in range(12)]
how = dict(bs=2, workers=0, device='cpu', valid=[0,1])

@pytest.mark.parametrize('wrap', [lambda o: o, lambda o: Subset(o, range(12)), lambda o: torch.utils.data.ConcatDataset([o])])
def test_a_data_set_of_dictionaries_has_labels(wrap):
    rows = wrap(Rows(lambda i: dict(picture=shade(i), kind=even[i], part='valid' if i<2 else 'train')))
    assert shades(image_dls(rows, column='picture', label_func='kind', **how))==dict(enumerate(even))
    assert image_dls(rows, column='picture', **how|dict(valid='part')).valid.n==2

def test_pairs_may_be_lists_or_rows_of_a_table(tmp_path):
    pairs = [[shade(i), kind] for i,kind in enumerate(even)]
    for i,(a,_) in enumerate(pairs): Image.fromarray(a).save(tmp_path/f'{i}.png')
    named = [[str(tmp_path/f'{i}.png'), kind] for i,kind in enumerate(even)]
    for source in pairs,Rows(pairs.__getitem__),named,pd.DataFrame(named).values:
        assert shades(image_dls(source, label_func=1, **how))==dict(enumerate(even))

def test_labels_and_masks_of_another_index_are_refused(tmp_path):
    for i in range(12): Image.fromarray(shade(i)).save(tmp_path/f'{i}.png')
    frame = pd.DataFrame(dict(name=[f'{i}.png' for i in range(12)], kind=even))
    mixed = frame.sample(frac=1, random_state=0)
    mine = dict(how, folder=tmp_path)
    for names in mixed.name,mixed[['name']]:
        assert shades(image_dls(names, label_func=mixed.kind, **mine))==dict(enumerate(even))
        with pytest.raises(ValueError, match='label_func=Series of shape .* has another index than the source. Pass .*reindex'):
            image_dls(names, label_func=frame.kind, **mine)
        with pytest.raises(ValueError, match='valid=Series of shape .* has another index'):
            image_dls(names, **mine|dict(valid=pd.Series(frame.index<2, frame.index)))
    files = [tmp_path/name for name in frame.name]
    by_name = pd.Series(even, frame.name)
    with pytest.raises(ValueError, match='names the pictures in another order than the source, in which it would be taken. Pass it in that order, or label_func.to_numpy'):
        image_dls(files[::-1], label_func=by_name, **how)
    for labels in by_name,by_name.loc[[o.name for o in files]],lambda o: by_name[o.name]:
        assert shades(image_dls(files, label_func=labels, **how))==dict(enumerate(even))
    # An index of other names says nothing about the pictures
    named = pd.Series(even, [f'id_{i}' for i in range(12)])
    for source in files,[str(o) for o in files],[Image.open(o) for o in files],np.stack([shade(i) for i in range(12)]):
        assert shades(image_dls(source, label_func=named, **how))==dict(enumerate(even))
    part = frame.iloc[::-1]   # as of scikit-learn's `train_test_split`, which keeps the numbers of the rows
    assert shades(image_dls(files[::-1], label_func=part.kind, **how))==dict(enumerate(even))

def test_labels_that_make_no_classes_are_named():
    pictures = [shade(i) for i in range(12)]
    with pytest.raises(ValueError, match="label_func gives 'odd' and 0, which have no order"): image_dls(pictures, label_func=[0,'odd']*6, **how)
    with pytest.raises(ValueError, match=r'label_func gives tensor\(0\), and a label is one word or number'):
        image_dls(pictures, label_func=lambda o: torch.tensor(0), **how)
    with pytest.raises(ValueError, match=r"label_func gives \('a', 1\), and a label is one word or number"):
        image_dls(pictures, label_func=lambda o: ('a',1), **how)

def test_a_source_of_another_kind_says_what_to_pass(tmp_path):
    Image.fromarray(shade(1)).save(tmp_path/'a.png')
    for source in tmp_path.glob("*.png"),{tmp_path/"a.png"}:
        with pytest.raises(ValueError, match=r'Pass a list of its items, e.g. sorted\(folder.glob'): picture_items(source)
    with pytest.raises(ValueError, match='source=bytes .*Pass os.fsdecode'): picture_items(os.fsencode(tmp_path))
