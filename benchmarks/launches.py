"""What a step asks of an accelerator, counted without one: launches, waits and mixed devices, by part.

    python benchmarks/launches.py --out benchmarks/launches.json

Trains on the pretend device of `pretend.py` and counts one normal step: the third of an epoch, without the looks at the first batch, and without the one
step per epoch that `Health` measures. 'networks' are all passes of online network, target and predictor, forward and backward, with the loss and the gradients' way.
A launch takes the host 4 to 8 µs, and the device waits for the host where the launches of a step take longer than its kernels.
"""
import argparse, json, os, tempfile, warnings
from functools import partial

import fastai, torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.training import GradientAccumulation
from self_supervised.callback.checkpoint import Checkpoint
from self_supervised.callback.probe import Probe
from self_supervised.data.arrays import tensor_dls
from self_supervised.layers import create_encoder
from self_supervised.vision.byol import byol_learner, create_byol_model, get_byol_aug_pipelines, small_views
from machine import machine
from pretend import NAME, Pretend, moved

FILES = {'augmentations':'views', 'operations':'views', 'image_ops':'views', 'kornia':'views', 'guard':'guard', 'late':'guard', 'ranks':'guard', 'health':'health', 'probe':'probe', 'evaluate':'probe',
         'checkpoint':'checkpoint', 'checkpoint_file':'checkpoint', 'state':'checkpoint', 'replay':'checkpoint',
         'lars':'optimizer', 'adamw':'optimizer', 'ema':'moving average', 'layers':'networks', 'timm':'networks', 'checks':'views', 'fastai':'fastai'}
# Of commit c87f5ee: 32 px, before the step was shaped for an accelerator; a part that is not here was not counted alone
BEFORE = {'32 px, lars':  dict(launches=1696, waits=3, of_it=dict(networks=750, views=667, guard=124)),
          '32 px, sgd':   dict(launches=1656, waits=3, of_it=dict(networks=750, views=667, guard=124)),
          '32 px, adamw': dict(launches=1774, waits=4, of_it=dict(networks=750, views=667, guard=124))}
FUNCTIONS = {'_copy_for':'views', 'before_batch':'views', 'views':'views'}   # of BYOL's own module

def part_of(file, function):
    "The part that a function belongs to; None where its caller says"
    *folders,name = file.removesuffix('.py').split('/')
    if name=='byol': return FUNCTIONS.get(function, 'networks')
    if 'self_supervised' in folders: return FILES.get(name) or FILES.get(folders[-1])
    if 'optim' in folders and name!='swa_utils': return 'optimizer'
    return next((FILES[o] for o in ('kornia','timm','fastai') if o in folders), None)

class Stop(Callback):
    "Count from the end of one step to the end of the next, `at` steps into the fit"
    order,run_valid = 2000,False
    def __init__(self, device, at): self.device,self.at = device,at
    def after_batch(self):
        if self.train_iter==self.at:
            for counts in (self.device.launches, self.device.waits, self.device.mixed): counts.clear()
        if self.train_iter>self.at: raise CancelFitException

def setting(px, bs, bf16=False, accumulate=False, arch=None):
    "A learner on the device"
    torch.manual_seed(0)
    small = px<=64
    model = create_byol_model(create_encoder(arch or ('resnet18' if small else 'resnet50'), pretrained=False, pool_type='avg', small_stem=small))
    dls = tensor_dls(torch.rand(8*bs, 3, px, px), bs=bs, device=torch.device(NAME))
    # As functions: fastai would make tensors of its own classes
    views = [partial(_plain_views, pipe) for pipe in get_byol_aug_pipelines(px, **(small_views if small else {}))]
    learn = byol_learner(dls, moved(model), views)
    learn.remove_cb(learn.progress) if hasattr(learn, 'progress') else None
    if bf16: learn.to_bf16()
    if accumulate: learn.add_cb(GradientAccumulation(2*bs))
    return learn

def _plain_views(pipe, x): return pipe(x)

def row(px, bs, recipe, cbs=(), at=2, **kwargs):
    "Counts of one step"
    with Pretend(part_of) as device, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn = setting(px, bs, **kwargs)
        with learn.no_logging(): learn.fit_byol(2, recipe, cbs=[Stop(device, at), *cbs])
    return counts(device)

def counts(device):
    "What was noted, as plain values"
    launches = device.by_part(device.launches)
    launches['networks'] += launches.pop('backward', 0)
    def places(noted): return {' '.join(k): n for k,n in sorted(noted.items())}
    rest = {k:n for k,n in launches.items() if k not in ('networks','views')}
    return dict(launches=sum(launches.values()), of_it=dict(launches.most_common()), beside_networks_and_views=sum(rest.values()),
                waits=sum(device.waits.values()), waits_at=places(device.waits), mixed=sum(device.mixed.values()), mixed_at=places(device.mixed))

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--out', help='JSON file to write')
    p.add_argument('--only', nargs='*', help='rows to count; the others stay as they are')
    args = p.parse_args()
    cases = {f'{px} px, {recipe}': dict(px=px, bs=bs, recipe=recipe) for px,bs in ((32,8),(224,2)) for recipe in ('lars','sgd','adamw')}
    small = cases['32 px, lars']
    cases['32 px, lars, bfloat16'] = small | dict(bf16=True)
    for recipe in ('sgd','adamw'): cases[f'32 px, {recipe}, bfloat16'] = cases[f'32 px, {recipe}'] | dict(bf16=True)
    cases['224 px, lars, bfloat16'] = cases['224 px, lars'] | dict(bf16=True)
    for recipe in ('lars','sgd','adamw'):
        case = cases[f'32 px, {recipe}'] | dict(accumulate=True)
        cases[f'32 px, {recipe}, first batch of two'] = case | dict(at=2)
        cases[f'32 px, {recipe}, second batch of two, and the step'] = case | dict(at=3)
    cases['32 px, lars, probe'] = small | dict(cbs=[Probe((torch.rand(16,3,32,32), torch.arange(16)%2), n=8)])
    with tempfile.TemporaryDirectory() as folder:
        cases['32 px, lars, checkpoint in the step'] = small | dict(cbs=[Checkpoint(folder, every=1)])
        if args.only and args.out and os.path.exists(args.out):
            with open(args.out) as f: res = json.load(f)
        else: res = dict(machine=machine('cpu', fastai=fastai.__version__), command='python benchmarks/launches.py', before=BEFORE, rows={})
        for name,case in cases.items():
            if args.only and name not in args.only: continue
            res['rows'][name] = row(**case)
            print(name, res['rows'][name], flush=True)
            if not args.out: continue
            with open(args.out, 'w') as f: json.dump(res, f, indent=1); f.write('\n')

if __name__ == '__main__': main()
