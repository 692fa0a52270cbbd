"""Pictures a second from JPEG files to the finished step: this library beside lightly, byol-pytorch and the older self_supervised.

    python -m venv rivals && rivals/bin/pip install lightly byol-pytorch
    python -m venv older  && older/bin/pip install fastai timm kornia && older/bin/pip install --no-deps self-supervised
    python benchmarks/speed_files.py --lightly rivals/bin/python --byol-pytorch rivals/bin/python --older older/bin/python --out benchmarks/speed_files.json

Each trains a ResNet-18 as its own documentation writes it, in a process of its own, on the same files: 512 JPEG of 160 pixels, cut from
photographs. The processes take a step each in turn, the others wait; the loaders work in the process itself, so that nothing is read
ahead while another's step is measured. A system that is not named is left out. The first seconds (imports, first batches) do not count.
"""
import argparse, contextlib, copy, importlib.metadata as metadata, json, os, platform, statistics, subprocess, sys, tempfile, time, warnings
from pathlib import Path

def write_photos(folder, n=512, side=160):
    "Cut `n` JPEG files out of scikit-learn's two photographs"
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images
    rng,photos = np.random.default_rng(0),load_sample_images().images
    for i in range(n):
        im = photos[i%2]
        top,left = (rng.integers(s-side+1) for s in im.shape[:2])
        f = Path(folder)/str(i%2)/f'{i:04}.jpg'
        f.parent.mkdir(exist_ok=True)
        Image.fromarray(im[top:top+side, left:left+side]).save(f, quality=90)

# Each calls `turn` before its first step and after each: it answers how long the step took, reading and views included, and waits for the next turn

def lightly(folder, px, bs, fast, turn):
    "https://docs.lightly.ai/self-supervised-learning/examples/byol.html"
    import torch, torchvision
    from lightly.data import LightlyDataset
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
    class Model(torch.nn.Module):
        def __init__(self, backbone):
            super().__init__()
            self.backbone,self.projection_head,self.prediction_head = backbone,BYOLProjectionHead(512, 1024, 256),BYOLPredictionHead(256, 1024, 256)
            self.backbone_momentum,self.projection_head_momentum = copy.deepcopy(self.backbone),copy.deepcopy(self.projection_head)
            deactivate_requires_grad(self.backbone_momentum), deactivate_requires_grad(self.projection_head_momentum)
        def forward(self, x): return self.prediction_head(self.projection_head(self.backbone(x).flatten(start_dim=1)))
        def forward_momentum(self, x): return self.projection_head_momentum(self.backbone_momentum(x).flatten(start_dim=1)).detach()
    model = Model(torch.nn.Sequential(*list(torchvision.models.resnet18().children())[:-1]))
    dataset = LightlyDataset(folder, transform=BYOLTransform(BYOLView1Transform(input_size=px), BYOLView2Transform(input_size=px)))
    dl = torch.utils.data.DataLoader(dataset, batch_size=bs, shuffle=True, drop_last=True)
    criterion,opt = NegativeCosineSimilarity(),torch.optim.SGD(model.parameters(), lr=.06)
    turn()
    while True:
        for (x0,x1),*_ in dl:
            update_momentum(model.backbone, model.backbone_momentum, m=.99)
            update_momentum(model.projection_head, model.projection_head_momentum, m=.99)
            p0,z0 = model(x0),model.forward_momentum(x0)
            p1,z1 = model(x1),model.forward_momentum(x1)
            loss = .5*(criterion(p0, z1) + criterion(p1, z0))
            loss.backward(); opt.step(); opt.zero_grad()
            turn()

def byol_pytorch(folder, px, bs, fast, turn):
    "https://github.com/lucidrains/byol-pytorch, README and the loader of its examples/lightning/train.py"
    import torch
    from byol_pytorch import BYOL
    from PIL import Image
    from torchvision import models, transforms as T
    class Images(torch.utils.data.Dataset):
        def __init__(self):
            self.paths = sorted(Path(folder).rglob('*.jpg'))
            self.transform = T.Compose([T.Resize(px), T.CenterCrop(px), T.ToTensor()])
        def __len__(self): return len(self.paths)
        def __getitem__(self, i): return self.transform(Image.open(self.paths[i]).convert('RGB'))
    learner = BYOL(models.resnet18(), image_size=px, hidden_layer='avgpool')
    opt = torch.optim.Adam(learner.parameters(), lr=3e-4)
    dl = torch.utils.data.DataLoader(Images(), batch_size=bs, shuffle=True, drop_last=True)
    turn()
    while True:
        for images in dl:
            loss = learner(images)
            opt.zero_grad(); loss.backward(); opt.step()
            learner.update_moving_average()
            turn()

def fit(make, turn):
    "Steps of a fastai `Learner`, in its own `fit`"
    from fastai.callback.core import Callback
    class Turn(Callback):
        order,run_valid = 1000,False
        def before_train(self):
            if not self.epoch: turn()
        def after_batch(self): turn()
    learn = make(Turn())
    with learn.no_bar(), learn.no_logging(): learn.fit(10**6)

def older(folder, px, bs, fast, turn):
    "https://keremturgutlu.github.io/self_supervised/14%20-%20byol.html, with its timm encoder"
    from fastai.vision.all import DataLoaders, Datasets, IntToFloatTensor, Learner, PILImage, Resize, ToTensor, get_image_files, noop
    from self_supervised.layers import create_timm_encoder
    from self_supervised.vision.byol import BYOL, create_byol_model, get_byol_aug_pipelines
    def make(turns):
        tds = Datasets(get_image_files(folder), [PILImage.create], splits=[range(512),[]])
        dls = tds.dataloaders(bs=bs, after_item=[Resize(px), ToTensor(), IntToFloatTensor()], device='cpu', num_workers=0)
        model = create_byol_model(create_timm_encoder('resnet18', pretrained=False), hidden_size=2048, projection_size=128)
        # `noop` until the callback brings its own loss: today's fastai wants one
        return Learner(dls, model, loss_func=noop, cbs=[BYOL(aug_pipelines=get_byol_aug_pipelines(size=px, rotate=True, jitter=True, bw=True, blur=True)), turns])
    fit(make, turn)

def ours(folder, px, bs, fast, turn):
    "README: pictures are read a quarter larger than the views; `fast` adds `to_channelslast`, and one thing more"
    from self_supervised.data.images import image_dls
    from self_supervised.layers import create_encoder
    from self_supervised.lars import LARS
    from self_supervised.vision.byol import byol_learner, create_byol_model, get_byol_aug_pipelines
    from fastai.callback.channelslast import ChannelsLast
    def make(turns):
        dls = image_dls(folder, px*5//4, bs=bs, valid=0., workers=0, device='cpu', keep='kept' in (fast or ''))
        model = create_byol_model(create_encoder('resnet18', pretrained=False, pool_type='avg'), hidden_size=1024 if 'narrow' in (fast or '') else 4096)
        learn = byol_learner(dls, model, get_byol_aug_pipelines(px), opt_func=LARS, lr=.1, cbs=turns)
        if fast: learn.to_channelslast(use_amp=fast=='bfloat16', amp_mode='bf16')
        return learn
    fit(make, turn)

FAST = dict(float32='float32', narrow='float32, heads of 1024', kept='float32, pictures kept',
            narrow_kept='float32, heads of 1024, pictures kept', bfloat16='bfloat16')
systems = {'ours':ours, 'lightly':lightly, 'byol-pytorch':byol_pytorch, 'older':older}
packages = {'ours':'self-supervised', 'older':'self-supervised'}

class Turn:
    "Answer how long the last step took, wall and processor seconds, and wait for a line before the next"
    def __init__(self, answers): self.answers,self.start = answers,None
    def __call__(self):
        if self.start: print(json.dumps((time.perf_counter()-self.start[0], time.process_time()-self.start[1])), file=self.answers, flush=True)
        if not sys.stdin.readline(): sys.exit()
        self.start = time.perf_counter(),time.process_time()

def serve(system, folder, px, bs, fast):
    "Train until nobody asks for another step"
    import torch
    warnings.simplefilter('ignore')
    answers,sys.stdout = sys.stdout,sys.stderr    # whatever a library prints is no answer
    names = [packages.get(system, system), 'torch', *(['fastai','kornia','timm'] if system in packages else [])]
    print(json.dumps({k: metadata.version(k) for k in names} | dict(python=platform.python_version(), threads=torch.get_num_threads())), file=answers, flush=True)
    systems[system](folder, px, bs, fast, Turn(answers))

def race(runners, n, warmup):
    "`n` steps of each of `runners`, a process each, in turns: seconds, wall and processor"
    times = {k:[] for k in runners}
    for i in range(n+warmup):
        for k,p in runners.items():
            with contextlib.suppress(BrokenPipeError): p.stdin.write('\n'); p.stdin.flush()
            answer = p.stdout.readline()
            if not answer: raise RuntimeError(f'{k} has ended: run it alone to see why (--serve {k})')
            if i>=warmup: times[k].append(json.loads(answer))
    return times

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for k in systems: p.add_argument(f'--{k}', default=sys.executable if k=='ours' else None, metavar='PYTHON', help='interpreter that has it')
    p.add_argument('--older-path', help='folder with the older package, put before all others in its process')
    p.add_argument('--n', type=int, default=20, help='steps to time, of each')
    p.add_argument('--warmup', type=int, default=9, help='steps before: more than an epoch, so that nothing is read for the row that keeps its pictures')
    p.add_argument('--bs', type=int, default=64)
    p.add_argument('--px', type=int, nargs='*', default=[64,128])
    p.add_argument('--out', help='JSON file to write; rows of other --px stay as they are')
    p.add_argument('--serve', choices=systems, help=argparse.SUPPRESS)
    p.add_argument('--folder', help=argparse.SUPPRESS)
    p.add_argument('--fast', choices=FAST, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.serve: return serve(args.serve, args.folder, args.px[0], args.bs, args.fast)
    res = dict(command='python benchmarks/speed_files.py', load_before=[round(o, 2) for o in os.getloadavg()], cores=os.cpu_count(), bs=args.bs, n=args.n, versions={}, rows=[])
    if args.out and os.path.exists(args.out):
        with open(args.out) as f: res['rows'] = [r for r in json.load(f)['rows'] if r['px'] not in args.px]
    with tempfile.TemporaryDirectory() as folder:
        write_photos(folder)
        for px in args.px:
            runners = {}
            for k,fast in [*((k, None) for k in systems), *(('ours',o) for o in FAST)]:
                name = f'{k}, channels-last, {FAST[fast]}' if fast else k
                python = getattr(args, k.replace('-', '_'))
                if not python: continue
                env = os.environ | ({'PYTHONPATH':args.older_path} if k=='older' and args.older_path else {})
                command = [python, __file__, '--serve', k, '--folder', folder, '--px', str(px), '--bs', str(args.bs), *(['--fast', fast] if fast else [])]
                runners[name] = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
                res['versions'][k] = json.loads(runners[name].stdout.readline() or '{}')
            try: times = race(runners, args.n, args.warmup)
            finally:
                for r in runners.values(): r.kill()
            for k,ts in times.items():
                wall,cpu = (statistics.median(o) for o in zip(*ts))
                res['rows'].append(dict(px=px, system=k, ms=round(1000*wall, 1), cpu_ms=round(1000*cpu, 1), pictures_a_second=round(args.bs/wall, 1)))
                print(res['rows'][-1], flush=True)
    res['rows'].sort(key=lambda r: r['px'])
    if args.out:
        with open(args.out, 'w') as f: json.dump(res, f, indent=1); f.write('\n')

if __name__ == '__main__': main()
