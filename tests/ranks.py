"What each process of test_distributed.py does: `torchrun tests/ranks.py FOLDER NAME…` writes what came out of each to FOLDER/NAME-RANK.pt"
import sys, tarfile, warnings
from contextlib import redirect_stdout, suppress
from collections import namedtuple
from copy import deepcopy
from io import BytesIO, StringIO
from pathlib import Path

import torch
import torch.distributed as dist
from PIL import Image
from torch import nn
from fastai.callback.core import Callback
from fastai.callback.progress import CSVLogger
from fastai.callback.training import GradientAccumulation
from fastai.callback import schedule   # brings `fit_one_cycle`
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.torch_core import default_device, num_distrib, rank_distrib

from self_supervised.callback.checkpoint import Checkpoint
from self_supervised.core import seed_everything
from self_supervised.data.demo import digits
from self_supervised.data.arrays import TensorDL, tensor_dls
from self_supervised.data.images import image_dls
from self_supervised.callback.distributed import join_ranks
from self_supervised.layers import LayerEncoder, create_encoder
from self_supervised.lars import LARS
from self_supervised.cli.pretrain import byol_pretrain
from self_supervised.callback.health import Health
from self_supervised.callback.ranks import once
from self_supervised.vision.byol import BYOL, byol_learner, create_byol_model, create_simsiam_model, get_byol_aug_pipelines

N,BS = 640,32       # pictures, and what one of two processes sees of them a step: 10 steps an epoch
X = digits()[0][:N]

def small_augs(): return get_byol_aug_pipelines(8, resize_scale=(.6,1.), rotate=True, flip_p=0., jitter=False, bw=False, blur=False, solarize=False, stats=None)
def fixed_augs(): return [lambda x: x.roll(1, 2)*.9, lambda x: x.transpose(2,3)*.8+.1]   # the same views of a picture whoever draws them
def tiny(norm='batch'): return create_byol_model(nn.Sequential(nn.Conv2d(1,8,3,2,bias=norm!='batch'), norm2d(norm), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
                                                 hidden_size=32, projection_size=16, bn=norm=='batch', n_in=1, size=8)
def norm2d(norm): return nn.BatchNorm2d(8) if norm=='batch' else nn.Identity()

class Seen(Callback):
    "Keep the loss and the first view of each training batch"
    order = 50
    def before_fit(self): self.losses,self.views,self.pictures = [],[],[]
    def after_pred(self):
        if self.training: self.views.append(self.xb[0][:2].clone())
    def before_batch(self):
        if self.training: self.pictures.append(self.learn.byol.pictures.clone())
    def after_loss(self):
        if self.training: self.losses.append(self.loss.detach().clone())

class Spoil(Callback):
    "One bad picture on one rank, in one batch"
    order = BYOL.order-5   # before the guard
    def before_batch(self):
        if self.training and self.train_iter==4 and rank_distrib()==num_distrib()-1: self.learn.xb = (self.x.clone().index_fill_(0, torch.tensor([3]), float('nan')),)

class JointDL(TensorDL):
    "One process that sees a step what `parts` processes see, in the order they see it in"
    parts = 2
    def get_idxs(self):
        idxs = super().get_idxs()
        n,bs = len(idxs)//self.parts,self.bs//self.parts
        return [i for k in range(n//bs) for r in range(self.parts) for i in idxs[r*n+k*bs:r*n+(k+1)*bs]]

def learner(model, augs, bs=BS, cbs=(), splits=None, **kwargs):
    dls = tensor_dls(X, splits=splits, bs=bs, seed=1, device='cpu')
    return Learner(dls, model, cbs=[BYOL(augs, m=.9), Seen(), *cbs], **kwargs)

def result(learn, **more):
    opt = [{k: v for k,v in s.items() if isinstance(v, torch.Tensor)} for s in learn.opt.opt.state.values()] if hasattr(learn.opt, 'opt') else []
    return dict(model=deepcopy(learn.model.state_dict()), opt=opt, losses=learn.seen.losses, logged=list(learn.recorder.losses), views=learn.seen.views, **more)

def train(model, augs, epochs=5, lr=.05, where=None, **kwargs):
    "Train in as many processes as were started"
    learn = learner(model, augs, opt_func=LARS, path=where, **kwargs)
    seed_everything(1, learn.dls)
    with learn.no_bar(), learn.no_logging(): fit(learn, epochs, lr)
    return learn

def fit(learn, epochs, lr):
    if num_distrib()<2: return learn.fit(epochs, lr)
    with learn.distrib_ctx(): learn.fit(epochs, lr)


def split(): return torch.arange(N-100),torch.arange(N-100, N)

def as_it_comes(out):
    torch.manual_seed(100+rank_distrib())      # a network of its own on each rank, and the same dice
    model = tiny()
    learn = train(model, small_augs(), splits=split(), epochs=6, bs=32)   # 8 steps an epoch
    res = result(learn, pictures=learn.seen.pictures, pct=learn.pct_train, view_of_one=small_augs()[0](X[:1]))   # drawn with the dice that the training left
    with learn.distrib_ctx(), learn.no_bar(): valid = [learn.validate()[0] for _ in range(2)]
    return res | dict(valid=valid, untouched=all(torch.equal(v, res['model'][k]) for k,v in model.state_dict().items()), wrapped=type(learn.model).__name__,
                      n_loaders=len(learn.dls.loaders), cbs=[cb.name for cb in learn.cbs])

def joint(out, **kwargs):
    torch.manual_seed(0)
    return result(train(tiny('none'), fixed_augs(), **kwargs))

def joint_alone(out):
    "The same in one process"
    import self_supervised.data.arrays as data
    data.TensorDL = JointDL
    return joint(out, bs=2*BS)

def accumulated(out): return joint(out, bs=BS//2, cbs=[GradientAccumulation(BS)])

def bad_batch(out):
    torch.manual_seed(0)
    learn = train(tiny(), small_augs(), epochs=1, cbs=[Spoil()])
    return result(learn, skipped=len(learn.guard.skipped))

class Die(Callback):
    order = Checkpoint.order+1
    def after_batch(self):
        if self.training and self.train_iter==14: raise KeyboardInterrupt()

def resumed(out):
    "A run that dies between two checkpoints, and goes on; and one that does not. Rank 0 alone has the open file of the log"
    def run(folder, *cbs):
        torch.manual_seed(5)
        folder.mkdir(exist_ok=True)
        learn = learner(tiny(), small_augs(), opt_func=LARS, cbs=[Checkpoint(folder, every=4), CSVLogger(), *cbs], path=folder)
        seed_everything(1, learn.dls)
        with suppress(KeyboardInterrupt), learn.no_bar(), learn.no_logging(), redirect_stdout(StringIO()): fit(learn, 3, .05)
        return learn
    whole,_ = run(out/'whole'),run(out/'cut', Die())
    resumed = run(out/'cut').model.state_dict()
    log = [[row.rpartition(',')[0] for row in (out/f/'history.csv').read_text().splitlines()] for f in ('whole','cut')]   # without the clock
    return dict(whole=whole.model.state_dict(), resumed=resumed, log=log)

def write_shards(out):
    "Three tars of 32 pictures each"
    for s in range(3):
        with tarfile.open(out/f's{s}.tar', 'w') as tar:
            for i in range(32*s, 32*s+32):
                f = BytesIO()
                Image.fromarray((X[i,0]*255).byte().numpy()).save(f, 'png')
                info = tarfile.TarInfo(f'{i:04}.png')
                info.size = f.tell()
                f.seek(0)
                tar.addfile(info, f)

def tars(out):
    "Pictures of three tar shards, read by workers: which of them are this rank's"
    join_ranks()
    once(write_shards, out)
    dls = image_dls(sorted(out.glob('s*.tar')), n_in=1, bs=8, valid=0., workers=2, device='cpu', seed=3)
    learn = Learner(dls, tiny(), cbs=[BYOL(small_augs()), Seen()], opt_func=LARS)
    with learn.no_bar(), learn.no_logging(), learn.distrib_ctx(): learn.fit(1, .05)
    return result(learn, read={tuple(p.flatten().tolist()) for b in learn.seen.pictures for p in b})

def unused(out):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1,8,3,2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8,10))
    return result(train(create_byol_model(LayerEncoder(net, layer=3), hidden_size=32, projection_size=16, bn=False, n_in=1, size=8), fixed_augs(), epochs=1))

def simsiam(out):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1,8,3,2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return result(train(create_simsiam_model(net, 32, 16, 8, n_in=1, size=8), small_augs(), epochs=1))

Heads = namedtuple('Heads', 'logits aux')
class TwoHeads(nn.Module):
    "Returns the output of an extra head, too, in training mode, as GoogLeNet and Inception"
    def __init__(self):
        super().__init__()
        self.body,self.pool = nn.Sequential(nn.Conv2d(1,8,3,2), nn.BatchNorm2d(8), nn.ReLU()),nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc,self.aux = nn.Linear(8,10),nn.Sequential(nn.Conv2d(8,4,1), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(10))
    def forward(self, x):
        f = self.body(x)
        out = self.fc(self.pool(f))
        return Heads(out, self.aux(f)) if self.training else out

def extra_heads(out):
    torch.manual_seed(0)
    net = TwoHeads()
    net(X[:4])
    return result(train(create_byol_model(create_encoder(net, n_in=1, size=8), hidden_size=32, projection_size=16, bn=False, n_in=1, size=8), fixed_augs(), epochs=1))

def files(out):
    "Each rank has a folder, and writes nothing there unless it is the first"
    own = out/f'files-{rank_distrib()}'
    own.mkdir()
    learn = train(tiny(), small_augs(), epochs=1, where=own, cbs=[CSVLogger()])
    learn.save('after')
    return dict(files=sorted(str(f.relative_to(own)) for f in own.rglob('*') if f.is_file()))

def command(out):
    byol_pretrain(epochs=1, bs=128, out=str(out/'run'))
    return dict(folders=sorted(f.name for f in out.glob('run*')), files=sorted(f.name for f in (out/'run').iterdir()))

class Shards(torch.utils.data.IterableDataset):
    "What this rank has on its disk: the last has less than the others"
    def __init__(self): self.x = X[rank_distrib()::num_distrib()][:160-40*(rank_distrib()==num_distrib()-1)]
    def __len__(self): return len(self.x)
    def __iter__(self): return iter(self.x)

def stream(out):
    torch.manual_seed(0)
    dls = DataLoaders(torch.utils.data.DataLoader(Shards(), batch_size=BS, drop_last=True))
    learn = byol_learner(dls, tiny(), small_augs(), cbs=Seen(), opt_func=LARS)
    with learn.no_bar(), learn.no_logging(), learn.distrib_ctx(): learn.fit_one_cycle(2, .05)
    return result(learn, n_loaders=len(learn.dls.loaders))

class Louder(Callback):
    "Projections that hardly differ, on one rank alone"
    order = BYOL.order-5
    def before_batch(self):
        if rank_distrib(): self.learn.xb = (self.x*1e-3,)

def watched(out):
    "What each rank's watch has seen, where the pictures of one rank are nearly all the same; it stops all of them or none"
    torch.manual_seed(0)
    learn = train(tiny(), [lambda x: x, lambda x: x*.9], epochs=3, cbs=[Louder()])
    rows = list(learn.health.rows)
    learn.health.stop = True
    learn.health.ill = {}
    stopped = train(tiny(), [lambda x: x, lambda x: x*.9], epochs=8, cbs=[Louder(), Health(stop=True)])
    return dict(rows=rows, before=learn.health.before, n=len(stopped.health.rows))

def joint4(out): return joint(out, bs=BS//2)

def main(out, *names):
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1), default_device(False)
    out = Path(out)
    for name in names: torch.save(globals()[name](out), out/f'{name}-{rank_distrib()}.pt')
    if dist.is_initialized(): dist.destroy_process_group()

if __name__=='__main__': main(*sys.argv[1:])
