"A picture whose file ends before its last pixel is named as unreadable, also where PIL reads it without a word; a good one never is"
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from self_supervised.data.images import check_pictures
from self_supervised.data.reading import BadPicture, open_picture

END = b'\xff\xd9'

def scene(n=96):
    "Noise on a slope: every part of its data matters"
    g = np.random.default_rng(0)
    rows,columns = np.mgrid[:n,:n]/n
    a = np.stack([np.sin(9*columns+5*rows), np.cos(7*columns), np.sin(20*rows)], -1)*80+128+g.normal(0, 25, (n,n,3))
    return a.clip(0, 255).astype('uint8')

def jpeg(a, **kw):
    f = io.BytesIO()
    Image.fromarray(a).save(f, 'JPEG', **kw)
    return f.getvalue()

def chunk(kind, data): return struct.pack('>I', len(data))+kind+data+struct.pack('>I', zlib.crc32(kind+data))
def png(a, rows):
    "A PNG that says it has all rows of `a`, and holds the first ones"
    h,w,c = a.shape
    head = struct.pack('>IIBBBBB', w, h, 8, {1:0, 3:2, 4:6}[c], 0, 0, 0)
    data = zlib.compress(b''.join(b'\0'+row.tobytes() for row in a[:rows]))
    return b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', head)+chunk(b'IDAT', data)+chunk(b'IEND', b'')

def reads_in_silence(data):
    with Image.open(io.BytesIO(data)) as im: return im.load() is not None

@pytest.mark.parametrize('size', [None,24])
@pytest.mark.parametrize('kw', [{}, dict(quality=95), dict(optimize=True), dict(restart_marker_rows=1), dict(subsampling=0), dict(progressive=True)], ids=str)
def test_a_jpeg_that_ends_early_is_unreadable(kw, size):
    data = jpeg(scene(), **kw)
    open_picture(data, size=size)
    for part in (.3,.5,.9) if not kw.get('progressive') else (.2,.4):   # later scans add fine detail only
        k = int(part*len(data))
        cases = dict(cut=data[:k], ended=data[:k]+END, zeros=data[:k]+bytes(len(data)-k), zeros_ended=data[:k]+bytes(len(data)-k-2)+END)
        for name,bad in cases.items():
            with pytest.raises(BadPicture) as e: open_picture(bad, size=size)
            assert 'ends before the picture' in str(e.value) or not reads(bad), name
    assert reads_in_silence(data[:len(data)//3]+END)   # by PIL: so the test is worth something

def reads(data):
    try: return reads_in_silence(data)
    except Exception: return False

@pytest.mark.parametrize('channels', [1,3,4])
def test_a_png_with_fewer_rows_is_unreadable(channels):
    a = np.concatenate([scene(), scene()], -1)[...,:channels]|1
    open_picture(png(a, 96))
    for rows in (95,48,1):
        assert reads_in_silence(png(a, rows))
        with pytest.raises(BadPicture, match='ends before the picture'): open_picture(png(a, rows))

@pytest.mark.parametrize('value', [0,128,255])
@pytest.mark.parametrize('channels', [1,3])
def test_good_pictures_are_read_whatever_their_last_rows_are(value, channels):
    "Grey, black and white below, as what is missing looks; bytes behind the end; a thumbnail with an end of its own"
    flat = np.full((40,56,channels), value, 'uint8')
    half = scene()[:40,:56,:channels].copy()
    half[20:] = value
    exif = Image.Exif()
    exif[0x010e] = 'an end within: \xff\xd9'
    for a in (flat,half):
        a = a[...,0] if channels==1 else a
        for kw in ({}, dict(optimize=True), dict(progressive=True), dict(progressive=True, optimize=True), dict(quality=100), dict(restart_marker_rows=1), dict(exif=exif)):
            data = jpeg(a, **kw)
            for good in (data, data+b'behind', data+bytes(99), data[:-2]+b'\xff\xff'+END, data+jpeg(a)[:300]):
                for size in (None,8): assert open_picture(good, channels, size).shape[0]==channels
        for interlace in (0,1):
            f = io.BytesIO()
            Image.fromarray(a).save(f, 'PNG', interlace=interlace)
            open_picture(f.getvalue(), channels)

def test_such_files_are_named_and_counted(tmp_path):
    data = jpeg(scene())
    for i in range(4): (tmp_path/f'good{i}.jpg').write_bytes(data)
    (tmp_path/'cut.jpg').write_bytes(data[:len(data)//2]+END)
    (tmp_path/'rows.png').write_bytes(png(scene(), 40))
    bad = check_pictures(tmp_path, workers=0)
    assert {o.rpartition('/')[2]: reason for o,reason in bad.items()}==dict.fromkeys(['cut.jpg','rows.png'], 'the file ends before the picture does') and bad.n==6

@pytest.mark.parametrize('progressive', [False, True])
def test_a_picture_above_the_limit_is_never_decoded_in_full(progressive, monkeypatch):
    "A large JPEG is decoded at the scale needed; a progressive one cannot be, and is refused"
    from self_supervised.data import reading
    b = io.BytesIO()
    Image.new('L', (400,400), 128).save(b, 'JPEG', progressive=progressive)
    looked = []
    monkeypatch.setattr(reading, '_check_whole', lambda im, f: looked.append(im.size))
    if progressive:
        with pytest.raises(BadPicture, match='max_pixels=40000'): open_picture(b.getvalue(), 1, 16, max_pixels=40_000)
    else: assert open_picture(b.getvalue(), 1, 16, max_pixels=40_000).shape==(1,16,16)
    assert not looked
    open_picture(b.getvalue(), 1, 16)
    assert len(looked)==1

@pytest.mark.parametrize('kw', [dict(progressive=True), dict(progressive=True, quality=95, subsampling=0)], ids=str)
def test_a_progressive_picture_cut_between_its_scans_is_noticed(kw):
    "The scans so far are whole, and make a picture without its detail"
    data = jpeg(scene(), **kw)
    scans = [i for i in range(len(data)-1) if data[i:i+2]==b'\xff\xda']
    assert len(scans)>5
    for i in scans[1:]:
        for cut in (i, i+2, i+12):   # before the scan, in its header, at its data
            for size in (None,32):
                with pytest.raises(BadPicture, match='ends before|truncated|broken|cannot'): open_picture(data[:cut], size=size)
    assert open_picture(data).shape==(3,96,96)

@pytest.mark.parametrize('kind', [0,2])
def test_an_interlaced_picture_cut_between_its_passes_is_noticed(kind):
    "By hand, since PIL writes none: seven passes, of which the first make a picture of blocks"
    a = scene(64)[...,:1 if kind==0 else 3]
    passes = [b''.join(b'\0'+row.tobytes() for row in a[y::dy,x::dx]) for x,y,dx,dy in ((0,0,8,8), (4,0,8,8), (0,4,4,8), (2,0,4,4), (0,2,2,4), (1,0,2,2), (0,1,1,2))]
    head = chunk(b'IHDR', struct.pack('>IIBBBBB', 64, 64, 8, kind, 0, 0, 1))
    def made(n): return b'\x89PNG\r\n\x1a\n'+head+chunk(b'IDAT', zlib.compress(b''.join(passes[:n])))+chunk(b'IEND', b'')
    whole = open_picture(made(7), 1 if kind==0 else 3)
    assert np.allclose(whole.numpy().transpose(1,2,0), a/255, atol=1e-6)
    for n in range(1, 7):
        with pytest.raises(BadPicture): open_picture(made(n))
