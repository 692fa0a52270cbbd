"""One small network, trained by each of four libraries as its own documentation says, on the same pictures for as many steps.

    python benchmarks/cifar10_systems.py lightly --pictures train.npy --out run.pt --seed 0

Needs torch, numpy and the library in question only, so that each can run in an environment of its own; `cifar10_cpu.py` starts it and
evaluates what it writes: the network's weights after every epoch, the losses, the time, and the versions. Pictures are (n,32,32,3)
uint8. Processor time counts loading, views, forward, backward, optimizer and target; not imports, not saving.
"""
import argparse, copy, importlib.metadata as metadata, json, platform, sys, time

import numpy as np
import torch
from torch import nn

def small_net(seed):
    "The network of all: (bs,3,32,32) → (bs,192), with the same first weights for a seed"
    torch.manual_seed(seed)
    def block(a, b, stride): return nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True)
    return nn.Sequential(*block(3,24,2), *block(24,48,2), *block(48,96,2), *block(96,192,1), nn.AdaptiveAvgPool2d(1), nn.Flatten())

class Clock:
    "Processor and wall time spent inside, and the mean loss and the weights at the end of each epoch"
    def __init__(self, net): self.net,self.cpu,self.wall,self.losses,self.weights,self.sum = net,0.,0.,[],[],[]
    def __enter__(self): self.began = time.process_time(),time.perf_counter(); return self
    def __exit__(self, *_):
        cpu,wall = self.began
        self.cpu += time.process_time()-cpu
        self.wall += time.perf_counter()-wall
    def loss(self, l): self.sum.append(l.detach())
    def epoch(self):
        self.__exit__()
        self.losses.append(torch.stack(self.sum).mean().item())
        self.sum = []
        self.weights.append(copy.deepcopy(self.net.state_dict()))
        self.__enter__()

# Each trains `net` and answers its settings

def lightly(x, net, epochs, bs, clock):
    "As lightly's CIFAR-10 benchmark: its own loader, views of PIL pictures, heads, optimizer and rate"
    from lightly.data import LightlyDataset
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
    from PIL import Image
    views = BYOLTransform(BYOLView1Transform(input_size=32, gaussian_blur=0.), BYOLView2Transform(input_size=32, gaussian_blur=0.))
    class Pictures(torch.utils.data.Dataset):
        def __len__(self): return len(x)
        def __getitem__(self, i): return views(Image.fromarray(x[i])),0
    dl = torch.utils.data.DataLoader(Pictures(), batch_size=bs, shuffle=True, drop_last=True)
    projector,predictor = BYOLProjectionHead(192, 1024, 256),BYOLPredictionHead(256, 1024, 256)
    slow_net,slow_projector = copy.deepcopy(net),copy.deepcopy(projector)
    deactivate_requires_grad(slow_net), deactivate_requires_grad(slow_projector)
    criterion,lr = NegativeCosineSimilarity(),6e-2*bs/128
    opt = torch.optim.SGD([*net.parameters(), *projector.parameters(), *predictor.parameters()], lr=lr, momentum=.9, weight_decay=5e-4)
    sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, epochs)
    with clock:
        for _ in range(epochs):
            for (x0,x1),_ in dl:
                update_momentum(net, slow_net, m=.99)
                update_momentum(projector, slow_projector, m=.99)
                p0,p1 = predictor(projector(net(x0))),predictor(projector(net(x1)))
                with torch.no_grad(): z0,z1 = slow_projector(slow_net(x0)),slow_projector(slow_net(x1))
                loss = .5*(criterion(p0, z1) + criterion(p1, z0))
                clock.loss(4+4*loss)                 # in the unit of the others: 0 when parallel, 4 at random
                loss.backward(); opt.step(); opt.zero_grad()
            sched.step()
            clock.epoch()
    return dict(source="lightly's cifar10_benchmark.py", optimizer='SGD', lr=lr, momentum=.9, wd=5e-4, schedule='cosine, per epoch', m=.99, heads=[1024,256],
                views='BYOLTransform(input_size=32, gaussian_blur=0)'), ['lightly']

def byol_pytorch(x, net, epochs, bs, clock):
    "As byol-pytorch's README: its own views, heads and target; Adam at 3e-4"
    from byol_pytorch import BYOL
    learner = BYOL(net, image_size=32, hidden_layer=-1)
    opt = torch.optim.Adam(learner.parameters(), lr=3e-4)
    x = torch.tensor(x).permute(0,3,1,2).contiguous()
    with clock:
        for _ in range(epochs):
            for i in torch.randperm(len(x)).split(bs)[:len(x)//bs]:
                loss = learner(x[i].float()/255)
                clock.loss(loss)
                opt.zero_grad(); loss.backward(); opt.step()
                learner.update_moving_average()
            clock.epoch()
    return dict(source="byol-pytorch's README", optimizer='Adam', lr=3e-4, schedule='constant', m=.99, heads=[4096,256],
                views='its default: drawn once per batch'), ['byol-pytorch']

def older(x, net, epochs, bs, clock):
    "As the README of the older self_supervised: `fit_flat_cos(epochs, 1e-2)` with fastai's Adam, heads 2048 and 128, its views"
    from fastai.vision.all import Callback, DataLoaders, Learner, TensorCategory, TensorImage, noop
    from self_supervised.vision.byol import BYOL, create_byol_model, get_byol_aug_pipelines
    x = torch.tensor(x).permute(0,3,1,2).contiguous()
    items = [(TensorImage(o.float()/255), TensorCategory(0)) for o in x]
    dls = DataLoaders.from_dsets(items, [], bs=bs, num_workers=0, device='cpu', shuffle=True, drop_last=True)
    class Watch(Callback):
        order,run_valid = 1000,False
        def after_batch(self): clock.loss(self.loss)
        def after_train(self): clock.epoch()
    model = create_byol_model(net, hidden_size=2048, projection_size=128)
    # `noop` until the callback brings its own loss: today's fastai wants one
    learn = Learner(dls, model, loss_func=noop, cbs=[BYOL(aug_pipelines=get_byol_aug_pipelines(size=32)), Watch()])
    learn.dls.loaders[1:] = [[]]
    with clock, learn.no_bar(), learn.no_logging(): learn.fit_flat_cos(epochs, 1e-2)
    return dict(source='README of self-supervised 1.0.4', optimizer="fastai's Adam", lr=1e-2, schedule='flat, then cosine', m=.999, heads=[2048,128],
                views='get_byol_aug_pipelines(size=32): one crop for the whole batch, no solarization'), ['self-supervised','fastai','kornia']

def ours(x, net, epochs, bs, clock, recipe='sgd', lr=None, wd=None, m=None, warmup_epochs=None, hidden_size=512, projection_size=128, views={}, variant=None, seed=0):
    "This library; `variant` takes a part of the method away"
    from fastai.callback.core import Callback
    from self_supervised.core import seed_everything
    from self_supervised.data.arrays import tensor_dls
    from self_supervised.ema import constant_momentum
    from self_supervised.vision.byol import BYOLModel, byol_learner, create_byol_model, get_byol_aug_pipelines
    class Joint(BYOLModel):
        "Both views through each batchnorm at once, as no one should"
        def forward(self, *views): return self.predictor(self.online(torch.cat(views))).chunk(len(views)) if len(views)>1 else super().forward(*views)
        def project(self, *views):
            with torch.no_grad(): return self.target(torch.cat(views)).chunk(len(views))
    class Watch(Callback):
        order,run_valid = 1000,False
        def after_batch(self): clock.loss(self.loss)
        def after_train(self): clock.epoch()
    dls = tensor_dls(torch.tensor(x).permute(0,3,1,2).contiguous(), bs=bs, seed=seed, device='cpu')
    seed_everything(seed, dls)
    model = create_byol_model(net, hidden_size=hidden_size, projection_size=projection_size)
    if variant == 'no predictor': model = BYOLModel(net, model.projector, nn.Identity())
    if variant == 'joint batchnorm': model = Joint(net, model.projector, model.predictor)
    learn = byol_learner(dls, model, get_byol_aug_pipelines(32, **views), cbs=Watch())
    fixed = {'tau 0': 0., 'tau .99': .99, 'tau 1': 1.}
    with clock, learn.no_bar(), learn.no_logging():
        learn.fit_byol(epochs, recipe, lr=lr, wd=wd, m=constant_momentum(fixed[variant]) if variant in fixed else m, warmup_epochs=warmup_epochs)
    return dict(source='this library', optimizer=recipe, lr=max(learn.recorder.hps['lr']), wd=wd, m=[learn.byol.momenta[0], learn.byol.momenta[-1]], heads=[hidden_size,projection_size], views=views, variant=variant), ['fastai','kornia']

def untrained(x, net, epochs, bs, clock):
    "The network as it begins"
    with clock:
        for _ in range(epochs): clock.loss(torch.tensor(4.)), clock.epoch()
    return dict(source='first weights'), []

systems = {'untrained':untrained, 'lightly':lightly, 'byol-pytorch':byol_pytorch, 'older':older, 'ours':ours}

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('system', choices=systems)
    p.add_argument('--pictures', required=True, help='npy file, (n,32,32,3) uint8')
    p.add_argument('--out', required=True, help='file for weights and figures')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--epochs', type=int, default=6)
    p.add_argument('--bs', type=int, default=128)
    p.add_argument('--options', default='{}', help='JSON: arguments of `ours`')
    args = p.parse_args()
    options = json.loads(args.options)
    if args.system == 'ours': options['seed'] = args.seed
    net = small_net(args.seed)
    clock = Clock(net)
    settings,packages = systems[args.system](np.load(args.pictures), net, args.epochs, args.bs, clock, **options)
    versions = {k: metadata.version(k) for k in ['torch', 'torchvision', *packages]} | dict(python=platform.python_version())
    torch.save(dict(weights=clock.weights, losses=clock.losses, cpu_s=clock.cpu, wall_s=clock.wall, settings=settings, versions=versions, threads=torch.get_num_threads()), args.out)

if __name__ == '__main__': main()
