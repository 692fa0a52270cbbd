"What figures depend on: noted beside the figures of `python benchmarks/….py`"
import os, platform

import torch
from self_supervised import __version__

def cpu():
    "Name of the processor"
    try: return next(l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name'))
    except (OSError, StopIteration): return platform.processor()

def machine(device='cpu', **versions):
    "Device, threads, load and versions, as they go into a JSON; `versions` are of packages beside torch"
    return dict(device=torch.cuda.get_device_name() if device=='cuda' else cpu(), cores=os.cpu_count(), threads=torch.get_num_threads(),
                load_before=[round(o, 2) for o in os.getloadavg()], system=platform.system(), python=platform.python_version(),
                torch=torch.__version__, **versions, self_supervised=__version__)
