"""Train an encoder on a folder of pictures, without labels. Copy this file and change what you need.

    python train.py PICTURES --out runs/mine
    torchrun --nproc-per-node 2 train.py PICTURES --out runs/mine   # a process per GPU; needs `pip install accelerate`

A run that was stopped or killed goes on from its last checkpoint when you start the same command again.
"""
from contextlib import nullcontext
from pathlib import Path

from fastai.vision.all import ChannelsLast, imagenet_stats, num_distrib, parent_label, rank_distrib
from fastcore.script import call_parse, store_true

import self_supervised.fit  # gives `Learner` its `fit_byol`  # noqa: F401
from self_supervised.callback.checkpoint import Checkpoint
from self_supervised.core import seed_everything
from self_supervised.data.images import image_dls
from self_supervised.evaluate.features import effective_rank, embed, knn_accuracy
from self_supervised.layers import create_encoder
from self_supervised.transfer.encoder_file import save_encoder
from self_supervised.vision.byol import byol_learner, create_byol_model, get_byol_aug_pipelines

def report(encoder, dls, labels):
    "Print what the features of held-out pictures are worth"
    feats,classes = embed(encoder, dls.valid, stats=imagenet_stats)
    if labels:
        train_feats,train_classes = embed(encoder, dls.train, stats=imagenet_stats)
        accuracy = knn_accuracy(train_feats, train_classes, feats, classes)
        print(f'kNN accuracy on {len(feats)} held-out pictures: {accuracy:.3f}')
    else:
        rank = effective_rank(feats).item()
        print(f'effective rank of the features of {len(feats)} held-out pictures: {rank:.1f} (1 means collapsed)')

@call_parse
def main(
    pictures:str, # Folder of pictures, searched to the bottom
    out:str='runs/mine', # Folder for checkpoints and the trained encoder
    arch:str='resnet18', # Network: a timm, fastai or torchvision name
    size:int=128, # Side of the pictures, pixels
    bs:int=128, # Batch size of all processes together
    epochs:int=100, # Times to see all pictures
    recipe:str='adamw', # 'adamw', or for batches of 1024 and more on many GPUs 'lars', as published
    lr:float=None, # Peak learning rate; by default 1e-3 for AdamW, and the published one for LARS
    workers:int=None, # Processes that read pictures; one per core by default
    seed:int=42, # Seed of weights, views and order
    bf16:store_true=False, # Train in bfloat16
    fast:store_true=False, # Train in bfloat16 if the GPU or processor computes in it
    labels:store_true=False, # Folders are named after classes: measure accuracy at the end (never used to train)
):
    "Train an encoder with BYOL and save it"
    processes = num_distrib() or 1
    if processes>1:
        from self_supervised.callback.distributed import join_ranks
        join_ranks()
    seed_everything(seed)
    out = Path(out)
    dls = image_dls(pictures, size, label_func=parent_label if labels else None, valid=.1, bs=bs//processes,
                    workers=workers, seed=seed, log=out/'skipped.csv')
    encoder = create_encoder(arch, pretrained=False, size=size)
    model = create_byol_model(encoder, size=size)
    views = get_byol_aug_pipelines(size, stats=imagenet_stats)  # text and digits: add flip_p=0
    learn = byol_learner(dls, model, views, path=out, cbs=[ChannelsLast(), Checkpoint(out/'checkpoints')])
    if bf16 or fast: learn.to_fast(bf16=bf16 or None)

    with learn.distrib_ctx() if processes>1 else nullcontext():
        if recipe=='adamw': learn.fit_byol(epochs, 'adamw', lr=lr or 1e-3, wd=.01)
        else: learn.fit_byol(epochs, recipe, lr=lr)
    if rank_distrib(): return  # the first process writes and reports
    file = save_encoder(learn.model.encoder, out/'encoder.safetensors', stats=imagenet_stats, size=size)
    report(learn.model.encoder, dls, labels)
    print(f"load it again: load_encoder('{file}')")
