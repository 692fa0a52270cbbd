"`learn.to_fast()`: the laws of training hold with all of it on (the demo's ways of a run: saved, loaded, killed and resumed, several processes)"
from copy import deepcopy

import torch, pytest
from fastai.vision.all import Callback, ChannelsLast, GradientAccumulation, Learner, MixedPrecision, load_learner, set_seed
from torch import nn

from self_supervised.callback import fast, graphs
from self_supervised.cli import pretrain as room
from self_supervised.callback.checkpoint import Checkpoint
from self_supervised.data.arrays import tensor_dls
from self_supervised.data.demo import digits
from self_supervised.vision.byol import byol_learner, create_byol_model
from test_hazards import make as any_learner
from test_hazards import conv_net, quiet, same, state

def make(cbs=()):
    set_seed(0)
    model = create_byol_model(conv_net(), hidden_size=32, projection_size=16)
    dls = tensor_dls(digits()[0][:96], bs=32, seed=0)
    learn = byol_learner(dls, model, [lambda x: x*.9, lambda x: x.roll(1, 2)], m=.9, cbs=list(cbs))
    if hasattr(learn, 'progress'): learn.remove_cb(learn.progress)
    learn.logger = lambda *_: None
    return learn

def added(learn): return {type(cb) for cb in learn.cbs}&{ChannelsLast,MixedPrecision}

@pytest.mark.parametrize('able', [True, False])
def test_what_the_device_has(able, monkeypatch, capsys):
    monkeypatch.setattr(fast, 'computes_in_bfloat16', lambda device: able)
    learn = make().to_fast()
    assert added(learn)==({ChannelsLast,MixedPrecision} if able else {ChannelsLast})
    assert capsys.readouterr().out==f"Fast on cpu: channels last{', bfloat16' if able else ''}\n"
    n = len(learn.cbs)
    assert len(learn.to_fast().cbs)==n                                              # twice is once
    assert added(make().to_fast(bf16=False))=={ChannelsLast}
    assert added(make().to_fast(bf16=True))=={ChannelsLast,MixedPrecision}
    flat = Learner(tensor_dls(torch.rand(8,4), bs=4), nn.Linear(4,4), loss_func=nn.MSELoss())
    assert added(flat.to_fast(bf16=False))==set()                                   # no convolution to gain from it
    assert 'nothing' in capsys.readouterr().out.splitlines()[-1]

def test_a_precision_of_its_own_stays():
    learn = make().to_fp16()
    assert [cb.amp_mode.value for cb in learn.to_fast()._grab_cbs(MixedPrecision)]==['fp16']
    with pytest.raises(ValueError, match='to_fp32'): learn.to_fast(bf16=True)

def test_channels_last_and_compiled_change_no_number_beyond_rounding():
    "And health still hears the projector of compiled networks"
    runs = [make(), make().to_fast(bf16=False), make().to_fast(bf16=False, compile='eager')]
    for learn in runs: set_seed(1); quiet(learn.fit_byol, 2, 'lars')
    a,b,c = (state(learn.model) for learn in runs)
    assert all(torch.allclose(a[k], b[k], atol=1e-4) and torch.allclose(a[k], c[k], atol=1e-4) for k in a)
    rows = [learn.health.rows[-1] for learn in runs]
    assert rows[0].keys()==rows[1].keys()==rows[2].keys() and all(r['spread']==pytest.approx(rows[0]['spread'], abs=1e-3) for r in rows)

def test_bfloat16_is_that_of_the_passes_alone():
    learn = make().to_fast(bf16=True)
    seen = []
    class Seen(Callback):
        def after_loss(self): seen.append((self.pred[0].dtype, self.loss_grad.dtype))
    quiet(learn.fit, 1, cbs=Seen())
    assert {p.dtype for p in learn.model.state_dict().values() if p.is_floating_point()}=={torch.float32}
    assert {o[1] for o in seen}=={torch.float32}
    assert all(v.dtype==torch.float32 for s in learn.opt.state.values() for v in s.values() if isinstance(v, torch.Tensor) and v.ndim)

ways = dict(float32=dict(bf16=False), bfloat16=dict(bf16=True), compiled=dict(bf16=True, compile='eager'))

@pytest.mark.parametrize('recipe', ['lars', 'adamw'])
@pytest.mark.parametrize('way', list(ways))
def test_killed_and_resumed_it_ends_the_same_to_the_bit(way, recipe, tmp_path):
    class Kill(Callback):
        order = 2000
        def after_batch(self):
            if self.train_iter==4: raise KeyboardInterrupt
    def run(folder, cbs=()):
        learn = make().to_fast(**ways[way])
        quiet(learn.fit_byol, 3, recipe, cbs=[Checkpoint(tmp_path/folder, every=2), *cbs])
        return learn
    whole = run('whole')
    with pytest.raises(KeyboardInterrupt): run('cut', [Kill()])
    resumed = run('cut')
    assert same(state(whole.model), state(resumed.model)) and whole.recorder.losses and resumed.health.rows[-1]==whole.health.rows[-1]

def test_a_run_goes_on_with_nothing_else(tmp_path):
    quiet(make().to_fast(bf16=True).fit_byol, 2, 'adamw', cbs=Checkpoint(tmp_path))
    for other in (make(), make().to_fast(bf16=False), make().to_fast(bf16=True, compile='eager')):
        with pytest.raises(ValueError, match='holds a fit with'): quiet(other.fit_byol, 2, 'adamw', cbs=Checkpoint(tmp_path))

def test_saved_loaded_and_exported(tmp_path):
    "The names are the same, so another learner reads them; what was exported is fastai's plain learner"
    learn = any_learner(m=.5).to_fast(bf16=True, compile='eager')
    quiet(learn.fit, 1, .01)
    learn.save(tmp_path/'model')
    other = any_learner().to_fast(bf16=True)
    other.load(tmp_path/'model')
    assert same(state(learn.model), state(other.model))
    learn.export(tmp_path/'export.pkl')
    again = load_learner(tmp_path/'export.pkl')
    assert added(again)==set() and same(state(again.model), state(learn.model))     # fastai's `load_learner` takes them off
    assert added(quiet(again.to_fast, bf16=True))==added(learn)

def test_accumulated():
    learns = [make([GradientAccumulation(64)]).to_fast(bf16=bf16) for bf16 in (False,True)]
    for learn in learns: set_seed(1); quiet(learn.fit_byol, 1, 'lars', lr=.1)
    (a,b) = (torch.cat([p.flatten() for p in learn.model.online.parameters()]) for learn in learns)
    assert not torch.equal(a, b) and (a-b).norm()<.01*a.norm()

def test_in_a_terminal(monkeypatch):
    "`byol_pretrain --fast` is `--bf16` where the machine computes in it"
    got = []
    monkeypatch.setattr(room, 'pretrain', lambda *_, bf16, **__: got.append(bf16))
    for able in (True, False):
        monkeypatch.setattr(room, 'computes_in_bfloat16', lambda device: able)
        for asked in (dict(), dict(fast=True), dict(fast=True, bf16=True)): room._pretrain(None, 'out', None, False, **dict(bf16=False) | asked)
    assert got==[None,True,True, None,None,True]   # None: float32, or as a resumed run has it

def test_a_network_of_pictures_and_clips_keeps_its_order_in_memory():
    "torch has channels-last for 4 dimensions and for 5, and none for a network with both"
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.clips = nn.Conv3d(1, 4, 3, padding=1)
            self.pictures = nn.Conv2d(4, 4, 3, padding=1)
        def forward(self, x): return self.pictures(self.clips(x).mean(2)).mean((2,3))
    model = create_byol_model(Both(), 16, 8)
    learn = byol_learner(tensor_dls(torch.rand(32,1,4,8,8), bs=16), model, [lambda x: x*.9]*2, m=.9)
    quiet(learn.to_fast(bf16=False).fit, 1)
    assert not added(learn)

# CUDA graphs; tests/accelerator.py records real ones

@pytest.fixture
def on_cpu(monkeypatch):
    "Graphs as they are recorded and replayed, with launches in their place; counts the recordings"
    recorded = []
    def passes(compute, views):
        recorded.append(len(views))
        for _ in range(3): compute(*views)                                          # trial passes change statistics
        static = list(views)
        def replay(*new):
            for s,v in zip(static, new): s.copy_(v)
            return tuple(z.clone() for z in compute(*static))
        return replay
    monkeypatch.setattr(graphs, 'GPU', 'cpu')
    monkeypatch.setattr(graphs.GraphedModel, '_record_encoders', lambda self, views: passes(graphs.Encoders(self.model), views))
    monkeypatch.setattr(graphs.GraphedModel, '_record_target', lambda self, views: passes(torch.no_grad()(lambda *vs: type(self.model).project(self.model, *vs)), views))
    return recorded

class Counted(graphs.GraphedPasses):
    "Keeps the number of replays"
    name = 'graphed_passes'
    n = 0
    def after_batch(self):
        self.n = self.passes.n_replayed
        super().after_batch()

@pytest.mark.parametrize('opt', ['lars', 'adamw', 'fastai'])
@pytest.mark.parametrize('also', ['nothing', 'accumulated', 'frozen', 'bf16'])
def test_replayed_passes_train_as_launched_ones(opt, also, on_cpu):
    "To the bit, statistics, health and validation included; each batch of training is replayed, unless it is added to others"
    def run(*graphed):
        set_seed(0)
        model = create_byol_model(conv_net(), hidden_size=32, projection_size=16)
        if also=='frozen': next(model.online.parameters()).requires_grad_(False)
        dls = tensor_dls(digits()[0][:120], splits=(range(96), range(96,120)), bs=32, seed=0)
        cbs = [*graphed, *([GradientAccumulation(64)] if also in ('accumulated','frozen') else [])]
        learn = byol_learner(dls, model, [lambda x: x*.9, lambda x: x.roll(1, 2)], m=.9, cbs=cbs)
        if also=='bf16': learn.to_bf16()
        if opt=='fastai': quiet(learn.fit, 2, 1e-3)
        else: quiet(learn.fit_byol, 2, opt)
        return learn
    a,b = run(),run(counted := Counted())
    assert same(state(a.model), state(b.model)) and a.health.rows==b.health.rows and a.recorder.values==b.recorder.values
    assert on_cpu==[2,2] and not {'forward','project'}&set(vars(b.model))
    # Encoder and target, 3 batches in each of 2 epochs; the first of every two where they are added up
    assert counted.n==2*(6 if also in ('nothing','bf16') else 3)

@pytest.mark.parametrize('outer', [True, False])
def test_passes_are_recorded_in_the_precision_of_the_learner(outer, on_cpu):
    "Which for fastai on a GPU is the autocast around the batch"
    model = make().model.train()
    views = torch.rand(8,1,8,8),torch.rand(8,1,8,8)
    with torch.autocast('cpu', torch.bfloat16, enabled=outer):
        launched = tuple(model.encoder(v) for v in views),model.project(*views)
        passes = graphs.GraphedModel(model)
        replayed = passes._replay(passes.online, passes._record_encoders, model.encoder, views),passes.project(*views)
    assert [[o.dtype for o in os] for os in replayed]==[[o.dtype for o in os] for os in launched]

def test_what_cannot_be_recorded_is_launched(on_cpu, monkeypatch):
    "And statistics are what they were"
    def broken(self, views):
        graphs.Encoders(self.model)(*views)
        raise RuntimeError('operation not permitted when stream is capturing')
    monkeypatch.setattr(graphs.GraphedModel, '_record_encoders', broken)
    a,b = make(),make([graphs.GraphedPasses()])
    quiet(a.fit_byol, 1, 'lars')
    with pytest.warns(UserWarning, match='could not be recorded .operation not permitted.*one by one') as said: b.fit_byol(1, 'lars')
    assert len([o for o in said if 'recorded' in str(o.message)])==1 and same(state(a.model), state(b.model))

def test_weights_that_move_or_are_frozen_are_recorded_anew(on_cpu):
    model = make().model.train()
    passes,views = graphs.GraphedModel(model),(torch.rand(8,1,8,8),)*2
    for change in (lambda: None, lambda: model.reset_target(), lambda: next(model.target.parameters()).requires_grad_(True), lambda: None):
        change()
        passes.project(*views)
    assert len(on_cpu)==3 and passes.n_replayed==4

@pytest.mark.parametrize('hook', [lambda net: net[0].register_forward_hook(lambda *_: None), lambda net: net[0].register_full_backward_pre_hook(lambda *_: None),
                                  lambda net: net[0].register_full_backward_hook(lambda *_: None), lambda net: net[0].weight.register_hook(lambda g: g*2)])
def test_encoders_with_hooks_are_launched(hook, on_cpu):
    "A replay would leave them out, or call one of a gradient twice"
    model = make().model.train()
    passes,views = graphs.GraphedModel(model),(torch.rand(8,1,8,8),)*2
    handle = hook(model.encoder)
    passes.forward(*views)
    assert not on_cpu
    handle.remove()
    passes.forward(*views)
    assert on_cpu==[2]

def test_buffers_that_were_replaced_are_recorded_anew(on_cpu):
    model = make().model.train()
    passes,views = graphs.GraphedModel(model),(torch.rand(8,1,8,8),)*2
    for _ in range(2): passes.project(*views)
    norm = next(m for m in model.target.modules() if getattr(m, 'running_mean', None) is not None)
    norm.running_mean = norm.running_mean.clone()
    passes.project(*views)
    assert len(on_cpu)==2

def test_hooks_are_called(on_cpu):
    "As often as without graphs, and by launches"
    def run(*cbs):
        learn,seen = make(cbs),[]
        learn.model.encoder[0].register_forward_hook(lambda *_: seen.append('online'))
        learn.model.target[0].register_forward_pre_hook(lambda *_: seen.append('target'))
        quiet(learn.fit_byol, 1, 'lars')
        return learn,seen
    (a,sa),(b,sb) = run(),run(graphs.GraphedPasses())
    assert sa==sb and {'online','target'}<=set(sa) and same(state(a.model), state(b.model))

def test_a_cut_fit_leaves_a_learner_that_is_exported(on_cpu, tmp_path):
    class Kill(Callback):
        def after_batch(self): raise KeyboardInterrupt
    learn = make([graphs.GraphedPasses()])
    with pytest.raises(KeyboardInterrupt): quiet(learn.fit, 1, cbs=Kill())
    copy = deepcopy(learn.model)
    assert same(state(copy), state(learn.model)) and not copy.forward.__self__.able
    torch.save(learn.model, tmp_path/'model.pt')

def test_a_cut_fit_leaves_the_models_own_passes_to_the_next(on_cpu):
    class Kill(Callback):
        def after_batch(self): raise KeyboardInterrupt
    learn = make([graphs.GraphedPasses()])
    with pytest.raises(KeyboardInterrupt): quiet(learn.fit, 1, cbs=Kill())
    learn.remove_cbs(graphs.GraphedPasses)
    assert not {'forward','project'}&set(vars(learn.model))

def test_without_a_gpu_there_is_nothing_to_record(capsys):
    learn = make().to_fast(bf16=False, graphs=True)
    assert not learn._grab_cbs(graphs.GraphedPasses) and 'graphs' not in capsys.readouterr().out
