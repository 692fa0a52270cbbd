"""A device that is none: its tensors lie on `pretend:0`, compute on the CPU, and every operation on them is noted.

It shows without a GPU what a step asks of one: launches (operations that are no views), waits of the host for the device, and operations that
mix tensors of both, which CUDA refuses.

    with Pretend() as device:
        moved(net)(x.to('pretend')).sum().backward()
    print(sum(device.launches.values()), device.waits, device.mixed)

A copy to the host that is asked not to wait (`non_blocking=True`) holds garbage until an event that was recorded after it, or the device, is
waited for: what is read too early is wrong here, as it may be there.
Limits: an operation counts once, however many kernels it takes; tensors of other classes (fastai's) cannot lie on the device.
"""
import sys
from collections import Counter

import torch
from torch import Tensor
from torch.utils._foreach_utils import _foreach_supported_types
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from self_supervised.core import fused_devices

NAME = 'pretend'
FREE = {'detach','lift_fresh','_unsafe_view','is_pinned','empty','empty_like','empty_strided','new_empty','new_empty_strided','_reshape_alias',
        'alias','_nested_view_from_buffer','is_same_size'}
WAITS = {'_local_scalar_dense','nonzero','is_nonzero','equal','masked_select','_unique2','unique_consecutive','unique_dim','allclose','bincount'}
COPIES = {'_to_copy','copy_','_foreach_copy_'}

class OnDevice(Tensor):
    "A tensor that says it is on the device"
    @staticmethod
    def __new__(cls, host):
        return torch.Tensor._make_wrapper_subclass(cls, host.shape, strides=host.stride(), storage_offset=host.storage_offset(),
                                                   dtype=host.dtype, device=f'{NAME}:0', requires_grad=host.requires_grad)
    def __init__(self, host): self.host = host
    def __repr__(self): return f'OnDevice({self.host})'
    @classmethod
    def __torch_dispatch__(cls, f, types, args=(), kwargs=None): return run(f, args, kwargs or {})

class Event:
    "A mark in the work of the device: when it is reached, the copies asked for before it have arrived"
    def __init__(self, *_, **__): self.mark = None
    def record(self, *_): self.mark = len(_on_their_way)
    def synchronize(self): _arrive(self.mark)
    def query(self): return True

class Module(_DummyBackendModule):
    "`torch.pretend`"
    Event = Event
    def synchronize(self, *_): _arrive(None)
    def get_amp_supported_dtype(self): return [torch.bfloat16,torch.float16]
    def get_rng_state(self, *_): return torch.get_rng_state()
    def set_rng_state(self, *_): pass

_on_their_way = []   # (tensor on the host, what it will hold), None where it has arrived
_log = None          # the `Pretend` that is entered

def _arrive(mark):
    for i,copy in enumerate(_on_their_way[:mark]):
        if copy: copy[0].copy_(copy[1])
        _on_their_way[i] = None

def _late(value):
    "A tensor on the host that holds garbage until `value` arrives"
    res = torch.full_like(value, float('nan') if value.is_floating_point() else 99 if value.dtype!=torch.bool else True)
    _on_their_way.append((res, value.clone()))
    return res

def _is_to_host(name, args, kwargs):
    if name=='copy_': return not isinstance(args[0], OnDevice)
    device = kwargs.get('device')
    return name=='_to_copy' and device is not None and torch.device(device).type=='cpu'

def _is_mixed(name, on, host):
    if name in COPIES or not on: return False
    if name.startswith(('index','_index','_unsafe_index')): return False   # indices may lie on the host
    return any(o.dim() for o in host)

def _has_flags(args): return any(isinstance(o, Tensor) and o.dtype in (torch.bool, torch.uint8) for o in tree_leaves(args[1:]))

def _is_view(f): return any(r.alias_info is not None and not r.alias_info.is_write for r in f._schema.returns)

def run(f, args, kwargs):
    "Compute on the CPU what was asked of the device"
    name = f.overloadpacket.__name__
    to_host = _is_to_host(name, args, kwargs)
    if _log is not None: _log.note(f, name, args, kwargs, to_host)
    def inner(o):
        if isinstance(o, OnDevice): return o.host
        return torch.device('cpu') if isinstance(o, torch.device) and o.type==NAME else o
    leaves,spec = tree_flatten((args, kwargs))
    in_args,in_kwargs = tree_unflatten([inner(o) for o in leaves], spec)
    if name=='_to_copy': in_kwargs.pop('pin_memory', None)
    out = f(*in_args, **in_kwargs)
    if to_host and name=='_to_copy': return _late(out) if kwargs.get('non_blocking') else out
    if f._schema.is_mutable: return _given_back(f, args, kwargs, out)
    return tree_map(lambda o: OnDevice(o) if isinstance(o, Tensor) and not isinstance(o, OnDevice) else o, out)

def _given_back(f, args, kwargs, out):
    "What was written into is the answer, as the very object that was passed"
    named = dict(zip([a.name for a in f._schema.arguments], args)) | kwargs
    res = [next((named[a.name] for a in f._schema.arguments if r.alias_info and a.alias_info and a.alias_info.before_set==r.alias_info.before_set), None)
           for r in f._schema.returns]
    if all(o is None for o in res): return tree_map(lambda o: OnDevice(o) if isinstance(o, Tensor) else o, out)
    return res[0] if len(res)==1 else tuple(res)

class Pretend(TorchDispatchMode):
    "Inside, there is a device called 'pretend'; its work is noted by part: a function of the stack's files and functions"
    def __init__(self, part_of=None):
        super().__init__()
        register()
        self.part_of = part_of or (lambda file, function: None)
        self.launches,self.waits,self.mixed = Counter(),Counter(),Counter()   # (part, operation) or (part, operation, place) → how often

    def __enter__(self):
        global _log
        _log = self
        return super().__enter__()

    def __exit__(self, *args):
        global _log
        _log = None
        return super().__exit__(*args)

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        device = kwargs.get('device')
        here = device is not None and torch.device(device).type==NAME
        if here or any(isinstance(o, OnDevice) for o in tree_leaves((args, kwargs))): return run(f, args, kwargs)
        return f(*args, **kwargs)

    def note(self, f, name, args, kwargs, to_host):
        tensors = [o for o in tree_leaves((args, kwargs)) if isinstance(o, Tensor)]
        on,host = [o for o in tensors if isinstance(o, OnDevice)],[o for o in tensors if not isinstance(o, OnDevice)]
        part,place = self.where()
        if _is_mixed(name, on, host): self.mixed[part,name,place] += 1
        blocks = to_host and not (kwargs.get('non_blocking') or (name=='copy_' and len(args)>2 and args[2]))
        if name in WAITS or blocks or (name.startswith('index') and _has_flags(args)): self.waits[part,name,place] += 1
        if name not in FREE and not _is_view(f): self.launches[part,name] += 1

    def where(self):
        "The part of the innermost function that belongs to one, and its place; backward passes have none"
        frame = sys._getframe(1)
        while frame:
            code = frame.f_code
            part = self.part_of(code.co_filename, code.co_name)
            if part: return part,f"{code.co_filename.rpartition('/')[2]}:{frame.f_lineno}"
            frame = frame.f_back
        return 'backward',''

    def by_part(self, counts): # Part → how often
        res = Counter()
        for (part,*_),n in counts.items(): res[part] += n
        return res

def register():
    "Let torch know the device, once"
    if hasattr(torch, NAME): return
    _setup_privateuseone_for_python_backend(NAME, Module())
    fused_devices.add(NAME)
    _foreach_supported_types.append(OnDevice)   # torch treats them as it treats tensors on a GPU
    _library.append(torch.library.Library('_', 'IMPL', 'AutocastPrivateUse1'))
    _library[0].fallback(torch.library.fallthrough_kernel)
    _library.append(torch.library.Library('aten', 'IMPL', 'AutocastPrivateUse1'))
    for op in (torch.ops.aten.conv2d, torch.ops.aten.linear): _library[1].impl(op.default.name(), _in_low_precision(op.default))

_library = []   # a kernel lives as long as its library

def _in_low_precision(op):
    "`op` as autocast calls it"
    def call(*args, **kwargs):
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
            dtype = torch.get_autocast_dtype(NAME)
            return op(*[o.to(dtype) if isinstance(o, Tensor) and o.is_floating_point() else o for o in args], **kwargs)
    return call

def moved(net):
    "Move a network to the device. It gets new parameters: old ones cannot become tensors of another class"
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try: return net.to(NAME)
    finally: torch.__future__.set_overwrite_module_params_on_conversion(False)
