"""A folder of 10,000 pictures of which 200 are bad, in twelve ways: does training reach its end, does it report exactly those, and what does that cost?

    OMP_NUM_THREADS=1 python benchmarks/bad_files.py --out benchmarks/bad_files.json

The pictures are scikit-learn's digits at 32 pixels, half of them PNG and half JPEG, under ten folders. Training is BYOL at 16 pixels with a small
ResNet through `image_dls`, as it comes: nothing was checked before. Every second run reads the same folder without the bad files.
"""
import argparse, json, os, platform, sys, tempfile, time, warnings, zlib
from pathlib import Path

import fastai, numpy as np, PIL, torch
from PIL import Image
from fastai.learner import Learner
from self_supervised import __version__
from self_supervised import fit # brings `Learner.fit_byol`
from self_supervised.data.demo import digits
from self_supervised.data.images import image_dls
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

def write_good(folder, n):
    "Write `n` digits of 32 pixels under `folder`"
    x,y,_ = digits(32)
    for i in range(n):
        f = folder/str(y[i%len(y)].item())/f"{i:05}.{'jpg' if i%2 else 'png'}"
        f.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((x[i%len(y),0]*255).byte().numpy()).save(f)

def write_bad(folder, n):
    "Write `n` bad files under `folder`, of each way in turn; answer which is bad in which"
    im = Image.fromarray((digits(32)[0][0,0]*255).byte().numpy())
    made = {}
    for i in range(n):
        way = list(ways)[i%len(ways)]
        ext,write = ways[way]
        f = folder/str(i%10)/f'bad{i:03}.{ext}'
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

def machine():
    "What the figures depend on"
    cpu = next((l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name')), '') if os.path.exists('/proc/cpuinfo') else platform.processor()
    return dict(cpu=cpu, cores=os.cpu_count(), threads=torch.get_num_threads(), load=[round(o, 2) for o in os.getloadavg()], system=platform.system(),
                python=platform.python_version(), torch=torch.__version__, fastai=fastai.__version__, pillow=PIL.__version__, self_supervised=__version__)

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--n', type=int, default=10_000, help='files in all')
    p.add_argument('--bad', type=int, default=200, help='of them bad')
    p.add_argument('--bs', type=int, default=100, help='divides --n: what fills no batch is not read')
    p.add_argument('--epochs', type=int, default=2)
    p.add_argument('--out', help='JSON file to write')
    args = p.parse_args()
    warnings.simplefilter('ignore', Image.DecompressionBombWarning)
    res = dict(machine=machine(), command='python benchmarks/bad_files.py ' + ' '.join(sys.argv[1:]), n=args.n, bad=args.bad, ways=list(ways), bs=args.bs, epochs=args.epochs, rows=[])
    def clocked(f):
        start = time.perf_counter()
        return f(), round(time.perf_counter()-start, 1)
    with tempfile.TemporaryDirectory() as tmp:
        good,bad = Path(tmp)/'good',Path(tmp)/'bad'
        write_good(good, args.n); write_good(bad, args.n-args.bad)
        made = set(map(str, write_bad(bad, args.bad)))
        found,seconds = clocked(lambda: check_pictures(bad, n_in=1, workers=2))
        res['check'] = dict(seconds=seconds, found=len(found), exactly=set(found)==made)
        print('check', res['check'], flush=True)
        for workers in (0,2):
            for name,folder in dict(good=good, bad=bad).items():
                learn,seconds = clocked(lambda: train(folder, workers, args.bs, args.epochs))
                skipped = set(learn.dls.skipped)
                row = dict(folder=name, workers=workers, seconds=seconds, steps=len(learn.recorder.losses), steps_due=args.n//args.bs*args.epochs,
                           reported=len(skipped), exactly=skipped==(made if name=='bad' else set()), last_loss=learn.recorder.losses[-1].item())
                res['rows'].append(row)
                print(row, flush=True)
    if args.out:
        with open(args.out, 'w') as f: json.dump(res, f, indent=1); f.write('\n')

if __name__ == '__main__': main()
