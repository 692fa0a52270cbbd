"""Does it help few-label kNN to subtract the mean of the features? Raw pixels, the network as it started, and trained, on folders of pictures.

    python -m benchmarks.centred folders runs --out benchmarks/centred.json

`runs/NAME` is a run of `byol_pretrain folders/NAME`. Each row: kNN accuracy in percent from 5 labels per class on the pictures that the run held
out, mean over 20 draws, of the features as they are and without the mean of all training features, which needs no labels. Beside them the mean
cosine of two training pictures, and linear accuracy.
"""
import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from self_supervised.cli.embed import encoder_settings
from self_supervised.cli.evaluate import labelled_pictures, part_to_test
from self_supervised.evaluate.features import Pixels, embed, knn_accuracy, label_draws, linear_predict, untrained
from self_supervised.transfer.encoder_file import load_encoder

from benchmarks.machine import machine

def accuracies(train, y, test, test_y, draws=20):
    "Percent of the held-out pictures that are labelled right, the mean over draws of 5 labels per class"
    mean = train.mean(0)
    unit = F.normalize(train)
    drawn = label_draws(y, min(5, y.bincount().min().item()), draws)
    def percent(f): return round(100*sum(map(f, drawn))/len(drawn), 1)
    def knn(i, mean): return knn_accuracy(train[i]-mean, y[i], test-mean, test_y, min(20, len(i)))
    return dict(cosine=round((unit.mean(0)**2).sum().item(), 3),   # of two pictures, on average
                knn=percent(lambda i: knn(i, 0)), knn_centred=percent(lambda i: knn(i, mean)),
                linear=percent(lambda i: (linear_predict(train[i], y[i], test)==test_y).float().mean().item()))

def measure(folder, run):
    file = run/'encoder.safetensors'
    net = load_encoder(file)
    spec,size,stats = encoder_settings(file, None)
    train,test,_ = labelled_pictures(folder, size, spec['n_in'], part_to_test(run, folder, None, None, 42, {}), workers=0)
    rows = {'raw pixels':(Pixels(),None), 'untrained':(untrained(net, 42),stats), 'trained':(net,stats)}
    return {name: accuracies(*embed(o, train, s), *embed(o, test, s)) for name,(o,s) in rows.items()}

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('folders', type=Path)
    p.add_argument('runs', type=Path)
    p.add_argument('--out', type=Path, required=True, help='JSON file to write')
    args = p.parse_args()
    res = dict(machine=machine(), command='python -m benchmarks.centred folders runs --out benchmarks/centred.json', folders={})
    for run in sorted(o for o in args.runs.iterdir() if (args.folders/o.name).is_dir()):
        res['folders'][run.name] = measure(args.folders/run.name, run)
        print(run.name, res['folders'][run.name], flush=True)
        args.out.write_text(json.dumps(res, indent=1)+'\n')

if __name__ == '__main__': main()
