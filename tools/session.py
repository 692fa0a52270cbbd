"""The first picture of the README: a session from a folder of photographs to a classifier, drawn from its own results

    byol_pretrain photos --minutes 20 --out runs/photos
    byol_finetune runs/photos photos --labels-per-class 10 --compare --out runs/classifier
    python tools/session.py photos runs/photos runs/classifier

`photos` has a folder per class, as the guide "Your photographs" writes them. Nothing is chosen by hand:
pictures and queries are drawn by a seed.
"""
import argparse
import json
import random
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from self_supervised.cli.pictures import read_held_out
from self_supervised.data.reading import open_picture
from self_supervised.evaluate.features import embed
from self_supervised.transfer.encoder_file import load_encoder

OUT = Path(__file__).resolve().parents[1]/'nbs/images/session.png'
BLUE,GREY,RED = '#1f77b4','#b8b8b8','#d62728'

def grid(fig, spec, rows, cols):
    "Axes without ticks"
    inner = spec.subgridspec(rows, cols, wspace=.06, hspace=.06)
    axes = [[fig.add_subplot(inner[r,c]) for c in range(cols)] for r in range(rows)]
    for ax in sum(axes, []):
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    return axes

def picture(ax, x, wrong=False):
    ax.imshow(x.permute(1,2,0).numpy(), interpolation='bicubic')
    if wrong: ax.spines[:].set(visible=True, color=RED, linewidth=2)

def bars(ax, rows, title):
    "Accuracies in percent, the last one in blue"
    names,values = zip(*rows)
    made = ax.barh(names, [100*v for v in values], color=[GREY]*(len(rows)-1)+[BLUE], height=.62)
    ax.bar_label(made, fmt='%.1f %%', padding=4, fontsize=9)
    ax.invert_yaxis()
    ax.set_title(title, fontsize=9, loc='left')
    ax.set(xlim=(0,50), xticks=[])
    ax.tick_params(axis='y', length=0, labelsize=9)
    for side in ('top','right','bottom'): ax.spines[side].set_visible(False)

def draw(folder, run, classifier, seed=0, n=5):
    "The folder, the neighbours that the encoder finds, and what a classifier gains"
    files = sorted(folder.rglob('*.png'))
    held = {Path(o).name for o in read_held_out(run)}
    x = torch.stack([open_picture(f).as_subclass(torch.Tensor) for f in files])
    feats = torch.nn.functional.normalize(embed(load_encoder(run), x)[0])
    rng = random.Random(seed)
    fig = plt.figure(figsize=(11,4.3), dpi=110)
    outer = fig.add_gridspec(1, 3, width_ratios=[1,1.12,1.05], wspace=.16, left=.01, right=.985, top=.78, bottom=.03)
    heads = [(f'1. A folder: {len(files):,} photographs', 'no labels'),
             ('2. An encoder: 20 minutes of one core', 'byol_pretrain photos --minutes 20 --out runs/photos'),
             ('3. A classifier from few labels', 'byol_finetune runs/photos photos \\\n    --labels-per-class 10 --compare')]
    for x0,(head,command) in zip((.01,.335,.69), heads):
        fig.text(x0, .94, head, fontsize=11, weight='bold')
        family = 'monospace' if command.startswith('byol') else None
        fig.text(x0, .915, command, fontsize=8, family=family, color='#444444', va='top')
    shown = rng.sample(range(len(files)), 36)
    for ax,i in zip(sum(grid(fig, outer[0], 6, 6), []), shown): picture(ax, x[i])
    queries = rng.sample([i for i,f in enumerate(files) if f.name in held], n)
    for r,(axes,q) in enumerate(zip(grid(fig, outer[1], n, 6), queries)):
        near = (feats@feats[q]).topk(6).indices.tolist()
        picture(axes[0], x[q])
        others = [i for i in near if i!=q]
        for ax,i in zip(axes[1:], others): picture(ax, x[i], files[i].parent!=files[q].parent)
        if r: continue
        axes[0].set_title('query', fontsize=9)
        axes[3].set_title('nearest by its features (red: another class)', fontsize=9)
    right = outer[2].subgridspec(2, 1, hspace=.42)
    rows = json.loads((run/'results.json').read_text())['rows']
    tuned = json.loads((classifier/'results.json').read_text())['rows']
    of_run = [(name, rows[name]['linear']['mean']) for name in ('raw pixels','untrained encoder','trained encoder')]
    bars(fig.add_subplot(right[0]), of_run, 'linear, 5 labels per class')
    of_labels = [(name.replace('on ', 'on\n'), tuned[name]['accuracy']) for name in ('from scratch','linear on frozen features','fine-tuned')]
    bars(fig.add_subplot(right[1]), of_labels, '10 labels per class')
    box = [ax.get_position() for ax in fig.axes[-2:]]
    for ax,b in zip(fig.axes[-2:], box): ax.set_position([b.x0+.11, b.y0, b.width-.11, b.height])
    return fig

if __name__=='__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ('folder','run','classifier'): parser.add_argument(name, type=Path)
    parser.add_argument('--out', type=Path, default=OUT)
    args = parser.parse_args()
    draw(args.folder, args.run, args.classifier).savefig(args.out)
