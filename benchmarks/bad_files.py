"""A folder of 2,000 pictures of which some are bad, each in a way of its own: does training reach its end, and does it report exactly those?

    OMP_NUM_THREADS=1 python benchmarks/bad_files.py --out benchmarks/bad_files.json

The pictures are scikit-learn's digits at 32 pixels, half of them PNG and half JPEG, under ten folders. Training is BYOL at 16 pixels with a small
ResNet through `image_dls`, as it comes: nothing was checked before. Every second run reads the same folder without the bad files. The memory that
reading the bad ones takes is measured in a process of its own, and must stay below what a picture at the limit, `Image.MAX_IMAGE_PIXELS`, may take.
"""
import argparse, gzip, json, os, resource, struct, sys, tempfile, time, warnings, zipfile, zlib
from io import BytesIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import fastai, numpy as np, PIL
from PIL import Image
from fastai.learner import Learner
from machine import machine
from self_supervised import fit # brings `Learner.fit_byol`
from self_supervised.data.demo import digits
from self_supervised.data.images import image_dls
from self_supervised.data.reading import BadPicture, open_picture
from self_supervised.data.skipped import check_pictures
from self_supervised.layers import create_encoder
from self_supervised.vision.byol import BYOL, create_byol_model, get_byol_aug_pipelines

def chunk(kind, b): return len(b).to_bytes(4, 'big') + kind + b + zlib.crc32(kind+b).to_bytes(4, 'big')
def png(w, h, data): return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', w.to_bytes(4, 'big')+h.to_bytes(4, 'big')+bytes([8,0,0,0,0])) + chunk(b'IDAT', data) + chunk(b'IEND', b'')

def cut(f, im, kind):
    im.save(f, kind)
    f.write_bytes(f.read_bytes()[:-f.stat().st_size//2])

def other_compression(f, im):
    "A TIFF whose header names a way of packing that does not exist"
    im.save(f, 'TIFF')
    b = f.read_bytes()
    tag = (259).to_bytes(2, 'little') + (3).to_bytes(2, 'little') + (1).to_bytes(4, 'little')
    i = b.index(tag) + len(tag)
    f.write_bytes(b[:i] + (64999).to_bytes(2, 'little') + b[i+2:])

# way: ending of the file, and how it is made from a path and a good picture
ways = {
    'empty':                    ('jpg',  lambda f,im: f.touch()),
    'truncated JPEG':           ('jpg',  lambda f,im: cut(f, im, 'JPEG')),
    'truncated PNG':            ('png',  lambda f,im: cut(f, im, 'PNG')),
    'text':                     ('jpg',  lambda f,im: f.write_text('<html>404 Not Found</html>')),
    'noise':                    ('png',  lambda f,im: f.write_bytes(np.random.default_rng(0).bytes(500))),
    'link that leads nowhere':  ('png',  lambda f,im: f.symlink_to('nowhere.png')),
    'zero pixels':              ('png',  lambda f,im: f.write_bytes(png(0, 0, zlib.compress(b'')))),
    'bomb of 10,000² pixels':   ('png',  lambda f,im: f.write_bytes(png(10_000, 10_000, zlib.compress(bytes(10_001*100))))),
    'NaN':                      ('tiff', lambda f,im: Image.fromarray(np.full((32,32), np.nan, np.float32)).save(f)),
    'damaged data':             ('png',  lambda f,im: f.write_bytes(png(32, 32, b'\x78\x9c' + b'\xff'*50))),
    'unknown compression':      ('tiff', other_compression),
    'no frame':                 ('gif',  lambda f,im: f.write_bytes(b'GIF89a' + bytes([32,0,32,0,0,0,0]) + b';'))}

def jpeg(im, **kw): return as_bytes(im.convert('RGB'), 'JPEG', **kw)

def as_bytes(im, kind, **kw):
    im.save(f := BytesIO(), kind, **kw)
    return f.getvalue()

def marker(b, code):
    "Place of a segment of a JPEG"
    return b.index(bytes([0xff, code]))

def put(b, at, new): return b[:at]+new+b[at+len(new):]

def head(**kw):
    "IHDR of a PNG of 32 pixels, with some of it set otherwise"
    v = dict(w=32, h=32, depth=8, colour=0, compression=0, filter=0, interlace=0) | kw
    return v['w'].to_bytes(4, 'big')+v['h'].to_bytes(4, 'big')+bytes([v[k] for k in ('depth','colour','compression','filter','interlace')])

PNG = b'\x89PNG\r\n\x1a\n'
ROWS = zlib.compress(bytes(33*32))
END = chunk(b'IEND', b'')
def png_with(ihdr=None, data=ROWS, before=b'', end=END): return PNG + chunk(b'IHDR', head() if ihdr is None else ihdr) + before + chunk(b'IDAT', data) + end

def tiff(data=bytes(1024), end=b'', **kw):
    "A grey TIFF of 32 pixels, with some tags set otherwise; None leaves one out"
    tags = {256: 32, 257: 32, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 32, 279: len(data)} | {int(k[1:]): v for k,v in kw.items()}
    tags = {k: v for k,v in sorted(tags.items()) if v is not None}
    ifd = len(tags).to_bytes(2, 'little') + b''.join(struct.pack('<HHII', k, 4, 1, v) for k,v in tags.items()) + bytes(4)
    return b'II*\0' + (8+len(data)).to_bytes(4, 'little') + data + ifd + end

def bmp(im, at, value, n=4): return put(as_bytes(im, 'BMP'), at, value.to_bytes(n, 'little'))

def gif(im, at, new): return put(as_bytes(im, 'GIF'), at, new)

def half(b): return b[:len(b)//2]

def floats(value): return lambda f,im: Image.fromarray(np.full((32,32), value, np.float32)).save(f)

def written(make):
    "Write what `make` returns for a good picture"
    return lambda f,im: f.write_bytes(make(im))

def hole(f, im):
    "A gigabyte of zeros that takes no room on the disk"
    with open(f, 'wb') as o: o.truncate(2**30)

def archive(im):
    with zipfile.ZipFile(f := BytesIO(), 'w') as z: z.writestr('a.png', as_bytes(im, 'PNG'))
    return f.getvalue()

def array(im):
    np.save(f := BytesIO(), np.asarray(im))
    return f.getvalue()

# The rest: by format, then what is no picture at all
ways |= {
    'JPEG: its first two bytes':    ('jpg',  written(lambda im: jpeg(im)[:2])),
    'JPEG: cut in the header':      ('jpg',  written(lambda im: jpeg(im)[:100])),
    'JPEG: no scan':                ('jpg',  written(lambda im: jpeg(im)[:marker(jpeg(im), 0xda)])),
    'JPEG: no size':                ('jpg',  written(lambda im: (b := jpeg(im))[:marker(b, 0xc0)] + b[marker(b, 0xda):])),
    'JPEG: height 0':               ('jpg',  written(lambda im: put(b := jpeg(im), marker(b, 0xc0)+5, b'\0\0'))),
    'JPEG: width 0':                ('jpg',  written(lambda im: put(b := jpeg(im), marker(b, 0xc0)+7, b'\0\0'))),
    'JPEG: 5 components':           ('jpg',  written(lambda im: put(b := jpeg(im), marker(b, 0xc0)+9, b'\5'))),
    'JPEG: 99 bits':                ('jpg',  written(lambda im: put(b := jpeg(im), marker(b, 0xc0)+4, b'\x63'))),
    'JPEG: lossless':               ('jpg',  written(lambda im: put(b := jpeg(im), marker(b, 0xc0), b'\xff\xc3'))),
    'JPEG: sampling 0':             ('jpg',  written(lambda im: put(b := jpeg(im), marker(b, 0xc0)+11, b'\0'))),
    'JPEG: Huffman table too full': ('jpg',  written(lambda im: put(b := jpeg(im), marker(b, 0xc4)+5, b'\xff'*16))),
    'JPEG: progressive, cut':       ('jpg',  written(lambda im: half(jpeg(im, progressive=True)))),
    'PNG: its signature':           ('png',  written(lambda im: PNG)),
    'PNG: no header':               ('png',  written(lambda im: PNG + chunk(b'IDAT', ROWS) + END)),
    'PNG: short header':            ('png',  written(lambda im: png_with(head()[:9]))),
    'PNG: width 0':                 ('png',  written(lambda im: png_with(head(w=0)))),
    'PNG: height 0':                ('png',  written(lambda im: png_with(head(h=0)))),
    'PNG: 3 bits':                  ('png',  written(lambda im: png_with(head(depth=3)))),
    'PNG: colour type 5':           ('png',  written(lambda im: png_with(head(colour=5)))),
    'PNG: filter method 1':         ('png',  written(lambda im: png_with(head(filter=1)))),
    'PNG: palette without palette': ('png',  written(lambda im: png_with(head(colour=3)))),
    'PNG: no data':                 ('png',  written(lambda im: PNG + chunk(b'IHDR', head()) + END)),
    'PNG: empty data':              ('png',  written(lambda im: png_with(data=b''))),
    'PNG: row filter 9':            ('png',  written(lambda im: png_with(data=zlib.compress((b'\x09'+bytes(32))*32)))),
    'PNG: wrong checksum of header':('png',  written(lambda im: put(png_with(), 29, b'\1\2\3\4'))),
    'PNG: text of 200 MB':          ('png',  written(lambda im: png_with(before=chunk(b'zTXt', b'a\0\0'+zlib.compress(bytes(200_000_000), 9))))),
    'PNG: 60,000² pixels, 4 colours':('png', written(lambda im: png_with(head(w=60_000, h=60_000, depth=2), zlib.compress(bytes(15_001*100))))),
    'TIFF: infinite':               ('tiff', floats(np.inf)),
    'TIFF: one pixel NaN':          ('tiff', lambda f,im: Image.fromarray(np.pad(np.full((1,1), np.nan, np.float32), ((0,31),(0,31)))).save(f)),
    'TIFF: its first bytes':        ('tiff', written(lambda im: b'II*\0')),
    'TIFF: directory behind the end':('tiff',written(lambda im: put(tiff(), 4, (10**6).to_bytes(4, 'little')))),
    'TIFF: empty directory':        ('tiff', written(lambda im: b'II*\0' + (8).to_bytes(4, 'little') + bytes(6))),
    'TIFF: no width':               ('tiff', written(lambda im: tiff(t256=None))),
    'TIFF: height 0':               ('tiff', written(lambda im: tiff(t257=0))),
    'TIFF: no place of the data':   ('tiff', written(lambda im: tiff(t273=None, t279=None))),
    'TIFF: data behind the end':    ('tiff', written(lambda im: tiff(t273=10**6))),
    'TIFF: 7 bits':                 ('tiff', written(lambda im: tiff(t258=7))),
    'TIFF: photometric 99':         ('tiff', written(lambda im: tiff(t262=99))),
    'TIFF: deflated, damaged':      ('tiff', written(lambda im: tiff(b'\x78\x9c'+b'\xff'*200, t259=8))),
    'TIFF: LZW, damaged':           ('tiff', written(lambda im: tiff(b'\xff'*200, t259=5))),
    'TIFF: 5 bands':                ('tiff', written(lambda im: tiff(bytes(5*1024), t277=5, t262=1))),
    'TIFF: complex numbers':        ('tiff', written(lambda im: tiff(bytes(8*1024), t258=64, t339=6))),
    'TIFF: bomb of 50,000² pixels': ('tiff', written(lambda im: tiff(t256=50_000, t257=50_000))),
    'GIF: its header':              ('gif',  written(lambda im: as_bytes(im, 'GIF')[:13])),
    'GIF: cut':                     ('gif',  written(lambda im: half(as_bytes(im, 'GIF')))),
    'GIF: size 0':                  ('gif',  written(lambda im: b'GIF89a' + bytes(7) + b';')),
    'BMP: its header':              ('bmp',  written(lambda im: as_bytes(im, 'BMP')[:20])),
    'BMP: cut':                     ('bmp',  written(lambda im: half(as_bytes(im, 'BMP')))),
    'BMP: 5 bits':                  ('bmp',  written(lambda im: bmp(im, 28, 5, 2))),
    'BMP: compression 9':           ('bmp',  written(lambda im: bmp(im, 30, 9))),
    'BMP: bomb':                    ('bmp',  written(lambda im: put(bmp(im, 18, 50_000), 22, (50_000).to_bytes(4, 'little')))),
    'WebP: its header':             ('webp', written(lambda im: as_bytes(im, 'WEBP')[:16])),
    'WebP: cut':                    ('webp', written(lambda im: half(as_bytes(im, 'WEBP')))),
    'PPM: size in words':           ('ppm',  written(lambda im: b'P5 ten 32 255\n'+bytes(1024))),
    'PPM: cut':                     ('pgm',  written(lambda im: b'P5 32 32 255\n'+bytes(500))),
    'PPM: largest value 0':         ('pgm',  written(lambda im: b'P5 32 32 0\n'+bytes(1024))),
    'JPEG 2000: cut':               ('jp2',  written(lambda im: half(as_bytes(im, 'JPEG2000')))),
    'HEIC without its plugin':      ('png',  written(lambda im: b'\0\0\0\x18ftypheic'+bytes(100))),
    'a PDF':                        ('png',  written(lambda im: b'%PDF-1.7\n1 0 obj\n')),
    'a PostScript program':         ('png',  written(lambda im: b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\nshowpage\n')),
    'a zip of pictures':            ('png',  written(archive)),
    'a picture, gzipped':           ('png',  written(lambda im: gzip.compress(as_bytes(im, 'PNG')))),
    'an array of NumPy':            ('png',  written(array)),
    'text in UTF-16':               ('jpg',  written(lambda im: 'no picture'.encode('utf-16'))),
    'a gigabyte of zeros':          ('jpg',  hole),
    'a link to itself':             ('png',  lambda f,im: f.symlink_to(f.name)),
    'a link to an endless file':    ('png',  lambda f,im: f.symlink_to('/dev/zero')),
    'PNG: half of the rows':        ('png',  written(lambda im: png_with(data=zlib.compress(bytes(33*16))))),
    'a pipe that nobody writes':    ('png',  lambda f,im: os.mkfifo(f))}

# Decoders take such a file for whole: the rest of the picture is grey, and nothing tells
unnoticeable = {
    'JPEG: 65,000² pixels, of which 32² are there':('jpg',  written(lambda im: put(b := jpeg(im), marker(b, 0xc0)+5, (65000).to_bytes(2, 'big')*2)))}

def write_good(folder, n):
    "Write `n` digits of 32 pixels under `folder`"
    x,y,_ = digits(32)
    for i in range(n):
        f = folder/str(y[i%len(y)].item())/f"{i:05}.{'jpg' if i%2 else 'png'}"
        f.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((x[i%len(y),0]*255).byte().numpy()).save(f)

def write_bad(folder, n, ways=ways):
    "Write `n` bad files under `folder`, of each way in turn; answer which is bad in which"
    im = Image.fromarray((digits(32)[0][0,0]*255).byte().numpy())
    made = {}
    for i in range(n):
        way = list(ways)[i%len(ways)]
        ext,write = ways[way]
        f = folder/str(i%10)/f'bad{i:03}.{ext}'
        f.parent.mkdir(parents=True, exist_ok=True)
        write(f, im)
        made[f] = way
    return made

def train(folder, workers, bs, epochs):
    "Learner after a short run over all of `folder`"
    dls = image_dls(folder, 16, n_in=1, bs=bs, workers=workers, valid=0., seed=0, device='cpu')
    model = create_byol_model(create_encoder('tiny_resnet', pretrained=False, n_in=1, widths=(8,16)), 64, 16, size=16)
    learn = Learner(dls, model, cbs=BYOL(get_byol_aug_pipelines(16, jitter=False, bw=False, blur=False, solarize=False, stats=None)))
    with learn.no_bar(), learn.no_logging(): learn.fit_byol(epochs, 'adamw', lr=1e-3, warmup_epochs=.1)
    return learn

def peak(paths):
    "Memory in MB that reading `paths` one after the other takes at most, beyond what the process had: in a process of its own"
    r,w = os.pipe()
    if not (pid := os.fork()):
        was = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for f in paths:
            try: open_picture(f, 1, 16)
            except BadPicture: pass
        os.write(w, str((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-was)//1024).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    return int(os.read(r, 100))

def one_line(reason): return bool(reason.strip()) and len(reason.splitlines())==1 and reason.isprintable()

def check(folder, made):
    "What `check_pictures` says of the folder"
    start = time.perf_counter()
    found = check_pictures(folder, n_in=1, workers=2)
    ways_of = {str(f): way for f,way in made.items()}
    return dict(seconds=round(time.perf_counter()-start, 1), found=len(found), exactly=set(found)==set(ways_of),
                unnoticed=sorted(ways_of[f] for f in set(ways_of)-set(found)), named_wrongly=sorted(set(found)-set(ways_of)),
                one_line=all(map(one_line, found.values())), reasons={ways_of[f]: why for f,why in found.items() if f in ways_of})

def training(name, folder, workers, bad, n, a):
    "A row: what training on the folder did"
    start = time.perf_counter()
    learn = train(folder, workers, a.bs, a.epochs)
    skipped = dict(learn.dls.skipped)
    return dict(folder=name, workers=workers, seconds=round(time.perf_counter()-start, 1), steps=len(learn.recorder.losses), steps_due=n//a.bs*a.epochs,
                reported=len(skipped), exactly=set(skipped)==bad, one_line=all(map(one_line, skipped.values())), last_loss=learn.recorder.losses[-1].item())

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--n', type=int, default=2000, help='files in all')
    p.add_argument('--bad', type=int, default=len(ways), help='of them bad, in each of the ways in turn')
    p.add_argument('--bs', type=int, default=100, help='divides --n: what fills no batch is not read')
    p.add_argument('--epochs', type=int, default=2)
    p.add_argument('--out', help='JSON file to write')
    a = p.parse_args()
    warnings.simplefilter('ignore')
    res = dict(machine=machine(fastai=fastai.__version__, pillow=PIL.__version__), command='python benchmarks/bad_files.py ' + ' '.join(sys.argv[1:]),
               n=a.n, bad=a.bad, ways=len(ways), bs=a.bs, epochs=a.epochs)
    with tempfile.TemporaryDirectory() as tmp:
        good,bad = Path(tmp)/'good',Path(tmp)/'bad'
        write_good(good, a.n); write_good(bad, a.n-a.bad)
        made = write_bad(bad, a.bad)
        res['peak_mb'] = peak(made)
        res['limit_mb'] = 4*Image.MAX_IMAGE_PIXELS//2**20
        res['check'] = check(bad, made)
        others = write_bad(Path(tmp)/'others', len(unnoticeable), unnoticeable)
        res['unnoticeable'] = {way: open_picture(f, 1, 16).shape==(1,16,16) for f,way in others.items()}
        print('peak', res['peak_mb'], 'MB;', {k: v for k,v in res['check'].items() if k!='reasons'}, flush=True)
        res['rows'] = []
        for workers in (0,2):
            for name,folder in dict(good=good, bad=bad).items():
                res['rows'].append(training(name, folder, workers, set(map(str, made)) if name=='bad' else set(), a.n, a))
                print(res['rows'][-1], flush=True)
    if a.out: Path(a.out).write_text(json.dumps(res, indent=1, ensure_ascii=False)+'\n')
    fine = res['check']['exactly'] and res['check']['one_line'] and res['peak_mb']<res['limit_mb']
    if not fine or not all(r['exactly'] and r['one_line'] and r['steps']==r['steps_due'] for r in res['rows']): sys.exit('not as it should be')

if __name__ == '__main__': main()
