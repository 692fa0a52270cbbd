"""Health and probes: what is known to collapse is named within three epochs, what is sound is left in peace, and nobody else notices either

Each test fails on a naive callback: thresholds of the spread alone, a second pass through the network, `.item()` in every step, probes that draw from the training's generator."""
import contextlib, io, random, re, warnings

import numpy as np
import pytest, torch
from torch import nn
from torch.utils.data import DataLoader as TorchLoader, TensorDataset
from fastai.vision.all import (Callback, CancelTrainException, DataLoaders, EarlyStoppingCallback, Learner, ReduceLROnPlateau, SaveModelCallback)

from self_supervised.callback.state import get_state, set_state
from self_supervised.core import seed_everything
from self_supervised.data.batches import picture_and_label
from self_supervised.data.arrays import TensorData, TensorDL, tensor_dls
from self_supervised.evaluate.labelled import labelled_parts
from self_supervised.layers import ClipEncoder, create_encoder, create_mlp_encoder, create_mlp_module
from self_supervised.callback import health
from self_supervised.callback.health import Health, Latest, projection_metrics, symptoms
from self_supervised.callback.probe import Probe
from self_supervised.data.tables import get_vector_aug_pipelines
from self_supervised.vision.byol import BYOL, BYOLModel, create_byol_model, get_byol_aug_pipelines

from zoo import base, broken, create, group_norm, simsiam, x, y, zoo_learner

torch.set_num_threads(1)
GREY = dict(flip_p=0., jitter=False, bw=False, blur=False, solarize=False, stats=None)

# The zoo: one thing broken at a time (zoo.py)

@contextlib.contextmanager
def listening(start='epoch'):
    "The warnings of `Health`, or others, and no output"
    said = []
    with warnings.catch_warnings(record=True) as w, contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter('always')
        yield said
    said += [str(o.message) for o in w if str(o.message).startswith(start)]

def watched(make, seed=31, stop=3, symptom=None, bs=64, epochs=12, recipe='adamw', **kwargs):
    "Of a seed that chose no limit"
    learn = zoo_learner(make, seed, bs, stop, symptom)
    with learn.no_bar(), learn.no_logging(), listening() as said: learn.fit_byol(epochs, recipe, **kwargs)
    return learn,said

sound = {'adamw': (create, base), 'lars': (create, dict(bs=128, recipe='lars')), 'sgd': (create, dict(bs=128, recipe='sgd')),
         'simsiam': (simsiam, dict(bs=128, recipe='simsiam')), 'group norm, 16': (group_norm, dict(bs=16, epochs=6, lr=6e-3, m=.99))}

@pytest.mark.parametrize('name', broken)
def test_what_is_broken_is_named_within_three_epochs(name):
    make,kwargs,symptom,cause = broken[name]
    learn,said = watched(make, symptom=symptom, **kwargs)
    assert symptom in learn.health.ill and any(cause in o for o in said), said
    assert len(said)==len(learn.health.ill), 'each symptom once'
    assert not any('\n' in o for o in said)
    assert ('Adam' in ''.join(said))==('Adam' in name), 'and the optimizer that there is'
    assert said==[f'epoch {e}: {m}' for e,m in learn.health.said], 'and kept for a report'

@pytest.mark.parametrize('name', sound)
def test_what_is_sound_is_left_in_peace(name):
    "Six epochs: of group norm the whole of a run that ends narrow. Whole runs of all: the table of the page"
    make,kwargs = sound[name]
    learn,said = watched(make, stop=6, **kwargs)
    assert not said and not learn.health.ill and learn.health.said==[]

# The rules, on figures noted from whole runs

def rows(spreads, ranks, feature_ranks): return [dict(spread=s, mean_cosine=1-s*s, rank=r, feature_rank=f, update=.005) for s,r,f in zip(spreads, ranks, feature_ranks)]
def found(spreads, ranks, feature_ranks):
    before,*after = rows(spreads, ranks, feature_ranks)
    return set().union(*(symptoms(after[:i+1], before) for i in range(len(after))))

def test_a_sound_run_may_begin_narrow():
    "Group norm, 16 pictures a step: three seeds"
    assert not found((.49,.097,.141,.213,.336,.505), (34,45,39,33,28,23), (131,128,128,125,124,121))
    assert not found((.47,.088,.093,.125,.188,.285), (33,45,44,39,33,28), (125,124,124,119,118,117))
    assert not found((.48,.090,.088,.125,.188,.285), (33,45,44,39,33,28), (125,124,124,119,118,117))   # falls once more, with all its directions

def test_a_short_sound_run_may_end_narrow():
    "Group norm in 6 epochs: the spread rests where the schedule ends, and the accuracy has risen, .820 → .859 and .820 → .848"
    assert not found((.50,.070,.091,.147,.197,.232,.227), (28,38,33,28,24.3,23.0,22.8), (131,127,125,124,122,122,122))
    assert not found((.43,.056,.043,.053,.070,.080,.083), (26,39,43,40,36,33,33), (127,126,126,125,122,121,120))

def test_a_collapse_is_found_whatever_its_pace():
    flat = (60,)*9
    assert 'collapse' in found((.75,.299,.099), (52,42,25), flat)               # no predictor
    assert 'collapse' in found((.9,.9,.49,.47,.45,.43), (30,30,29,28,26,25), flat)   # slowly, from wide
    assert 'collapse' in found((.9,.1,.1,.1), (30,5,5,5), flat)                 # at once: nothing is left to fall
    assert 'collapse' in found((.9,.01,.01), (30,40,40), flat)                  # a point, and noise around it
    assert not found((.9,.1,.6), (30,5,20), flat)

def test_few_directions_are_found_where_the_spread_is_wide():
    "No norm, 16 pictures a step: the spread comes back, the features do not"
    assert 'few directions' in found((.41,.45,.52,.58), (15,5,4,3.6), (77,16,17,17))

def test_not_finite_is_said(): assert symptoms(rows([float('nan')], [3.], [4.]), rows([.9], [30.], [90.])[0]).keys() == {'not finite'}

def test_few_rows_and_small_projections_are_no_collapse():
    torch.manual_seed(0)
    for n,d in ((4,64), (8,8), (100,4)):
        learn = tiny(n=max(n,8), bs=min(n,8), d=d)
        with listening() as said: learn.fit(3, 1e-3)
        assert not said

@pytest.mark.parametrize('batches', [1,40])
def test_an_epoch_that_was_cut_is_not_judged_by_its_few_pictures(batches):
    "Sixteen pictures have fifteen directions at most: the last epoch of a run with a deadline was warned of"
    class Cut(Callback):
        def before_batch(self):
            if self.epoch==1 and self.iter==batches: raise CancelTrainException
    learn = zoo_learner(create, 31, 16)
    with learn.no_bar(), learn.no_logging(), listening() as said: learn.fit_byol(cbs=Cut(), **dict(recipe='adamw') | base | dict(epochs=2))
    assert len(learn.health.rows)==2 and not said
    assert learn.health.judged is learn.health.rows[batches>1]   # a report tells the ranks of this one

def test_latest_keeps_the_latest_rows():
    kept = Latest(5)
    for i in range(4): kept.add(torch.full((3,2), float(i)), torch.full((3,1), float(i)))
    a,b = kept.rows()
    assert sorted(b.flatten().tolist()) == [2.,2.,3.,3.,3.] and torch.equal(a[:,:1], b)
    kept = Latest(2); kept.add(torch.arange(6.)[:,None]); assert sorted(kept.rows()[0].flatten().tolist()) == [4.,5.]
    kept = Latest(9); kept.add(torch.arange(3.)[:,None]); assert len(kept.rows()[0]) == 3

# Nobody else notices

def conv_net(n_in=1):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(n_in,8,3,2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def tiny(n=64, bs=16, d=8, dls=None, net=None, augs=None, cbs=(), health=True, y=y, **kwargs):
    "A learner on real digits that takes milliseconds"
    dls = dls or tensor_dls(x[:n+32], None if y is None else y[:n+32], (torch.arange(n), torch.arange(n,n+32)), bs=bs, seed=0)
    seed_everything(1)
    model = create_byol_model(net or conv_net(), hidden_size=16, projection_size=d)
    learn = Learner(dls, model, cbs=[BYOL(augs or get_byol_aug_pipelines(8, **GREY), health=health), *cbs], **kwargs)
    learn.remove_cb(learn.progress) if hasattr(learn, 'progress') else None
    learn.logger = lambda *_: None
    return learn

def weights(learn): return {k:v.clone() for k,v in learn.model.state_dict().items()}
def same(a, b): return all(torch.equal(a[k], b[k]) for k in a)

def test_training_is_the_same_to_the_last_bit(capsys):
    res = []
    for health,cbs in ((False,[]), (True,[]), (True,[Probe()])):
        learn = tiny(health=health, cbs=cbs)
        learn.fit(3); res.append((weights(learn), torch.rand(1), random.random()))
    assert all(same(res[0][0], o[0]) and o[1:]==res[0][1:] for o in res[1:])

def passes(health):
    learn,n = tiny(health=health),[]
    learn.fit(1)
    hook = learn.model.encoder.register_forward_hook(lambda *_: n.append(1))
    learn.fit(2); hook.remove()
    return len(n)

def test_health_takes_no_pass_of_its_own(): assert passes(True)==passes(False)

class Waits(Callback):
    "Count in training how often the host waits for a figure of the device"
    order = 1000
    def before_train(self): self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]); self.profile.start()
    def after_batch(self):
        if not self.training or self.iter<self.n_iter-1: return
        self.profile.stop()
        self.n = sum(e.count for e in self.profile.key_averages() if e.key in ('aten::item','aten::_local_scalar_dense','aten::nonzero','aten::equal'))

def test_health_does_not_wait_for_the_device():
    n = []
    for health in (False, Health(n=32)):
        learn = tiny(health=health, cbs=[Waits()])
        learn.fit(1); n.append(learn.waits.n)
    assert n[0]==n[1]

def test_a_copy_of_the_model_has_no_hook():
    "Also one taken while training: fastai's own moving averages and `reset_target` take one"
    seen = []
    class Copy(Callback):
        def after_step(self): seen.append(sum(len(m._forward_hooks) for m in self.model.modules()))
    learn = tiny(cbs=[Copy()]); learn.fit(1)
    assert seen and not any(seen)

def test_removal_leaves_the_learner_as_found():
    learn = tiny(health=False); cbs,metrics = list(learn.cbs),list(learn.metrics)
    for cb in Health(), Probe(methods=('knn',)):
        learn.add_cb(cb)
        with contextlib.redirect_stdout(io.StringIO()): learn.fit(1)
        assert list(learn.metrics)==metrics
        learn.remove_cb(cb); assert list(learn.cbs)==cbs and cb.learn is None
    learn = tiny(); learn.remove_cb(BYOL)
    assert not learn._grab_cbs(Health) and not learn._grab_cbs(BYOL)

class Interrupt(Callback):
    def after_step(self): raise KeyboardInterrupt

def test_an_interrupted_fit_leaves_nothing_double():
    learn = tiny()
    with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=Interrupt())
    learn.remove_cbs(Interrupt); learn.fit(1)
    names = list(learn.recorder.metric_names); assert len(names)==len(set(names)) and not list(learn.metrics)
    with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=Interrupt())
    learn.remove_cb(BYOL); assert not list(learn.metrics)

def test_lr_find_is_not_watched(tmp_path, capsys):
    probe = Probe(); learn = tiny(cbs=[probe], path=tmp_path)
    with listening() as said: learn.lr_find(end_lr=1e3, num_it=30, show_plot=False, stop_div=False)
    assert not said and not learn.health.rows and learn.health.before is None and probe.before is None and not probe.seconds
    learn.fit(1); assert len(learn.health.rows)==1

def test_get_preds_is_not_watched():
    learn = tiny(); learn.fit(1); latest = dict(learn.health.latest)
    learn.get_preds(); assert learn.health.latest==latest and learn.health.run

def test_a_checkpoint_keeps_what_was_said_and_no_clock():
    a,b = (tiny(cbs=[Probe(labelled)]) for _ in range(2))
    with listening(): b.fit(1, 1e-4)
    with listening() as said: a.fit(1, 1e3)
    assert said and [f'epoch {e}: {m}' for e,m in a.health.said]==said
    for k in ('health','probe'): set_state(getattr(b, k), get_state(getattr(a, k)))
    assert b.health.said==a.health.said and b.probe.share==a.probe.share and 'spent' not in get_state(a.probe)

# The table

def test_the_latest_health_wins():
    mine = Health(columns=('spread','distance'))
    for kwargs in (dict(cbs=[mine]), dict(health=mine)):
        learn = tiny(**kwargs)
        assert list(learn._grab_cbs(Health))==[mine] and learn.health is mine
        learn.fit(1); assert list(learn.recorder.metric_names)[3:5]==['spread','distance'] and len(learn.recorder.values[0])==4
        learn.remove_cb(mine)

def test_columns_are_those_asked_for():
    with pytest.raises(ValueError, match="columns='loss' is not known. Choose one of 'spread'"): Health(columns=('loss',))
    learn = tiny(health=Health(columns=('update','distance','momentum','lr'))); learn.fit(2, 1e-3)
    u,d,m,lr = learn.recorder.values[-1][2:]
    assert 0<u<.5 and 0<d<.5 and m==learn.byol.momenta[-1] and lr==1e-3

def test_trackers_take_the_figures(tmp_path, capsys):
    saved = []
    class Watch(SaveModelCallback):
        def _save(self, name): saved.append(self.epoch); super()._save(name)
    learn = tiny(cbs=[Probe(every=2)], path=tmp_path)
    learn.fit(6, cbs=[Watch(monitor='knn_accuracy'), EarlyStoppingCallback('linear_accuracy', patience=6), ReduceLROnPlateau('rank', patience=2)])
    assert saved and all(e%2==1 for e in saved)    # only what was measured is chosen
    best = max(o[-2] for o in learn.recorder.values if o[-2]==o[-2])
    assert learn.validate()[-2]==best and len(learn.recorder.values)<=6
    learn = tiny(cbs=[Probe()], path=tmp_path)
    learn.fit(20, 0., cbs=EarlyStoppingCallback('rank', comp=lambda a,b: a>2*b, patience=2)); assert len(learn.recorder.values)==3

def test_stop_keeps_the_row_that_says_why():
    learn = tiny(health=Health(stop=True))
    with listening() as said: learn.fit(6, 1e3)
    assert said and len(learn.recorder.values)==len(learn.health.rows)<6
    learn = tiny(health=Health(stop=True))
    with listening() as said: learn.fit(4, 1e-4)
    assert not said and len(learn.recorder.values)==4

def test_validate_shows_the_figures_of_the_held_out_part(capsys):
    learn = tiny(cbs=[Probe()]); learn.fit(2)
    rows,before = list(learn.health.rows),learn.health.before
    a,b = learn.validate(),learn.validate()
    assert a==b and len(a)==7 and all(v==v for v in a) and a[1]!=rows[-1]['spread']
    assert learn.health.rows==rows and learn.health.before is before
    assert learn.probe.latest==learn.probe.measure()

# Probes

def test_probe_is_that_of_the_functions(capsys):
    from self_supervised.evaluate.features import embed, knn_accuracy, linear_accuracy
    learn = tiny(n=200, cbs=[Probe(stats=(.5,.25))]); enc = learn.model.encoder
    def now(): return [f(*embed(enc, x[:200], stats=(.5,.25))[:1], y[:200], *embed(enc, x[200:232], stats=(.5,.25))[:1], y[200:232]) for f in (knn_accuracy, linear_accuracy)]
    before = now(); learn.fit(1)
    assert list(learn.probe.before.values())==before and learn.recorder.values[-1][-2:]==now()
    assert 'Before training: knn accuracy' in (learn.fit(1), capsys.readouterr().out)[1] or learn.probe.seconds

def test_probe_normalises_as_the_views_do(capsys):
    learn = tiny(augs=get_byol_aug_pipelines(8, **GREY|dict(stats=([.3],[.2]))), cbs=[Probe()])
    for learn,(mean,std) in ((learn,(.3,.2)),(tiny(cbs=[Probe()]),(0,1))):
        seen = []
        hook = learn.model.encoder.register_forward_pre_hook(lambda m, a: seen.append(a[0].clone()))
        learn.probe.measure()
        hook.remove()
        with learn.probe._parts() as parts: raw = [picture_and_label(b)[0] for _,o in parts for b in (o if not isinstance(o, tuple) else [o])]
        torch.testing.assert_close(torch.cat(seen), (torch.cat(raw)-mean)/std)

def test_probe_every_n_epochs(capsys):
    learn = tiny(cbs=[Probe(every=3, methods=('knn',))]); learn.fit(7)
    col = [o[-1] for o in learn.recorder.values]
    assert [v!=v for v in col]==[True,True]+[False]*5 and col[2]==col[3]==col[4] and len(learn.probe.seconds)==1+3   # before, 2, 5 and the last

labelled = x[300:380],y[300:380]
loaders = dict(tensors=labelled, fastai=TensorDL(TensorData(*labelled), bs=32, shuffle=True, drop_last=True),
               torch=TorchLoader(TensorDataset(*labelled), batch_size=32, shuffle=True))

@pytest.mark.parametrize('kind', loaders)
def test_unlabelled_training_with_labels_from_elsewhere(kind, capsys):
    "Train-only and unlabelled, and the same figures from every kind of loader"
    learn = tiny(dls=tensor_dls(x[:64], bs=16, seed=0), cbs=[Probe(loaders[kind])])
    learn.fit(1)
    ref = tiny(dls=tensor_dls(x[:64], bs=16, seed=0), cbs=[Probe(labelled)]); ref.fit(1)
    assert learn.recorder.values[-1][2:]==ref.recorder.values[-1][2:]
    assert learn.probe.counts==(54,26)

def test_bytes_are_probed_as_the_pictures_they_are(capsys):
    "The same figures from uint8 and from what it stands for, in training and in the probe"
    xu = (x[:380]*255).byte()
    rows = []
    for o in (xu, xu.float()/255):
        learn = tiny(dls=tensor_dls(o[:300], y[:300], (torch.arange(268), torch.arange(268,300)), bs=16, seed=0), cbs=[Probe((o[300:],y[300:380]))])
        learn.fit(1)
        rows.append(learn.recorder.values[-1])
    assert rows[0]==rows[1]

def test_one_method_or_column_is_a_tuple_of_one(capsys):
    learn = tiny(health=Health(columns='spread'), cbs=[Probe(methods='knn')]); learn.fit(1)
    assert list(learn.recorder.metric_names)[3:-1]==['spread','knn_accuracy']

def test_a_health_says_what_it_cannot_do():
    for n in (1, 50., '50'):
        with pytest.raises(ValueError, match=re.escape(f'n={n!r} must be a whole number, 2 or more')): Health(n=n)

@pytest.mark.parametrize('make,odd', [
    (Health, dict(columns=7)), (Health, dict(columns=slice(None))), (Health, dict(columns=[torch.ones(3)])), (Health, dict(stop='x')),
    (Probe, dict(T='0.18')), (Probe, dict(T=np.datetime64('2020-01-01'))), (Probe, dict(T=torch.ones(2))), (Probe, dict(T=None)),
    (Probe, dict(methods=7)), (Probe, dict(methods=torch.zeros(2,1,8,8))), (Probe, dict(methods=('knn',torch.zeros(2,1,8,8))))])
def test_what_is_of_another_type_is_refused_in_one_short_line(make, odd):
    name, = odd
    with pytest.raises(ValueError, match=f'^{name}=.*Choose|^{name}=.*Pass|^{name}=.*Leave out') as e: make(**odd)
    assert '\n' not in str(e.value) and len(str(e.value))<200

def test_a_probe_says_what_it_cannot_do():
    for stats in ('imagenet', .5, (.5,), (.5,.2,.1), ('a','b')):
        with pytest.raises(ValueError, match=re.escape(f'stats={stats!r} must be a pair of finite numbers. Pass (mean,std)')) as e: Probe(stats=stats)
        assert '\n' not in str(e.value)
    for name,v in dict(n=50., every=2.5, seed='a').items():
        with pytest.raises(ValueError, match=re.escape(f'{name}={v!r} must be a whole number')): Probe(**{name:v})
    with pytest.raises(ValueError, match='k=5.0 must be a whole number'): Probe(k=5.)
    with pytest.raises(ValueError, match="methods="): Probe(methods=('svm',))
    with pytest.raises(ValueError, match="every=0"): Probe(every=0)

# Probes of what is no labelled set

def probed(**kwargs):
    learn = tiny(dls=tensor_dls(x[:64], bs=16, seed=0), cbs=[Probe(**kwargs)])
    learn.fit(1)
    return learn.probe

X,Y = x[300:380],y[300:380]
natural = dict(tuple=(X,Y), list=[X,Y], numpy=(X.numpy(),Y.numpy()), float64=(X.numpy().astype('float64'),Y.numpy().astype('int32')), bools=(X,Y>4), uint8=((X*255).byte(),Y.to(torch.uint8)))

@pytest.mark.parametrize('kind', natural)
def test_what_is_natural_is_taken(kind, capsys):
    ref,got = probed(train=(X,Y>4) if kind=='bools' else (X,Y)),probed(train=natural[kind])
    assert got.counts==ref.counts==(54,26)
    if kind!='uint8': assert got.latest==ref.latest and got.before==ref.before

def loader(*ts): return TorchLoader(TensorDataset(*ts), batch_size=16)
class Named(TensorDataset):
    "Labels that are names"
    def __getitem__(self, i): return self.tensors[0][i],f'digit {self.tensors[1][i]}'
class Stream(torch.utils.data.IterableDataset):
    def __iter__(self): return iter(zip(X, Y))

bad_sources = {
    'no labels':      (dict(train=X), r'train=Tensor must be a labelled loader or a pair \(x,y\)'),
    'array alone':    (dict(train=X.numpy()), 'train=ndarray must be'),
    'a path':         (dict(train='labels.csv'), 'train=str must be'),
    'three things':   (dict(train=(X,Y,Y)), 'train=tuple must be'),
    'a data set':     (dict(train=TensorDataset(X,Y)), 'train=TensorDataset must be a labelled loader'),
    'DataLoaders':    (dict(train=tensor_dls(X, bs=16)), 'holds several loaders. Pass train=dls.train, test=dls.valid'),
    'no length':      (dict(train=TorchLoader(Stream())), 'must have a length'),
    'list of pictures': (dict(train=([*X[:-1], X[-1,:,:4]],Y)), 'Use torch.stack for a list, number the classes'),
    'names':          (dict(train=(X,[f'digit {i}' for i in Y])), 'number the classes'),
    'one-hot':        (dict(train=(X,nn.functional.one_hot(Y))), r'shape \(80, 10\). Pass y.argmax\(1\)'),
    'column':         (dict(train=(X,Y[:,None])), r'y.flatten\(\)'),
    'floats':         (dict(train=(X,Y.float())), 'integer labels, and they are float32. Pass y.long'),
    'too few labels': (dict(train=(X,Y[:-1])), r'train\[1\] has 79 labels for the 80 rows of train\[0\]'),
    'empty':          (dict(train=(X[:0],Y[:0])), 'train=tuple must hold pictures, and is empty'),
    'one class':      (dict(train=(X,torch.full_like(Y, 7))), 'two classes or more, and all 80 are of class 7'),
    'test, no labels': (dict(train=(X,Y), test=X), 'test=Tensor must be'),
    'test, floats':   (dict(train=(X,Y), test=(X,Y.float())), 'test must have integer labels'),
    'k > pictures':   (dict(train=(X,Y), k=81), 'k=81 must be 1 to 80'),
    'k > n':          (dict(n=50, k=51), 'k=51 must be 1 to 50'),
    'k = 0':          (dict(k=0), 'k=0 must be 1 to 500'),
    'T = 0':          (dict(T=0.), 'T=0.0 must be above 0'),
    'unknown classes': (dict(train=(X[Y<5],Y[Y<5]), test=(X,Y)), r'test must have only classes that train has, and 36 of its 80 pictures are of others, e.g. \d. Split so that both have all'),
}

@pytest.mark.parametrize('name', bad_sources)
def test_a_bad_source_is_named_when_the_probe_is_made(name):
    kwargs,message = bad_sources[name]
    with pytest.raises(ValueError, match=message) as e: Probe(**kwargs)
    assert '\n' not in str(e.value)

nans = X.clone(); nans[::2,0,0,0] = float('nan')
bad_reads = {
    'no labels':     (dict(train=loader(X)), 'train has no labels to evaluate with'),
    'fastai, no labels': (dict(train=TensorDL(TensorData(X), bs=16)), 'train has no labels to evaluate with'),
    "learner's own": (dict(), r"the learner's data \(train part\) has no labels to evaluate with. Pass labelled pictures: train="),
    "learner's train, test given": (dict(test=(X,Y)), r"the learner's data \(train part\) has no labels"),
    'one-hot':       (dict(train=loader(X, nn.functional.one_hot(Y))), r'train must have one label per picture, and they are of shape \(16, 10\)'),
    'floats':        (dict(train=loader(X, Y.float())), 'train must have integer labels'),
    'names':         (dict(train=TorchLoader(Named(X, Y), batch_size=16)), 'has no labels to evaluate with.*with numbers y'),
    'test, no labels': (dict(train=(X,Y), test=loader(X)), 'test has no labels to evaluate with'),
    'two pictures':  (dict(train=(X[:2],Y[:2])), 'train=2 pictures must be 3 or more'),
    'one class':     (dict(train=loader(X, torch.full_like(Y, 7))), 'train must hold two classes or more, and all 54 are of class 7'),
    'k > pictures':  (dict(train=loader(X, Y), k=60), 'k=60 must be 1 to 54'),
    'NaN':           (dict(train=(nans,Y)), 'features of train must be finite, and 27 of 54 rows hold NaN or inf'),
    'unknown classes': (dict(train=loader(X[Y<5], Y[Y<5]), test=loader(X, Y)), r'test must have only classes that train has, and 36 of its 80 pictures are of others, e.g. \d. Split'),
    'no class in common': (dict(train=loader(X[Y<5], Y[Y<5]), test=(X[Y>4],Y[Y>4]), n=20), 'test must have only classes that train has, and 20 of its 20 pictures are of others'),
    'colour':        (dict(train=(X.repeat(1,3,1,1),Y)), r'train holds pictures of shape \(3, 8, 8\), which the encoder does not take \(.*\). Pass them as it is trained, \(n,c,h,w\)'),
    'no channel':    (dict(train=(X[:,0],Y)), r'train holds pictures of shape \(8, 8\), which'),
    'vectors':       (dict(train=(X.flatten(1),Y)), r'train holds pictures of shape \(64,\), which'),
    'test, colour':  (dict(train=(X,Y), test=loader(X.repeat(1,3,1,1), Y)), r'test holds pictures of shape \(3, 8, 8\), which'),
    'stats':         (dict(train=(X,Y), stats=((.5,.5,.5),(.2,.2,.2))), 'has 3 entries for pictures of 1 channels'),
}

@pytest.mark.parametrize('name', bad_reads)
def test_what_only_reading_shows_is_named_before_the_first_step(name, capsys):
    kwargs,message = bad_reads[name]
    steps = []
    class Count(Callback):
        def after_step(self): steps.append(1)
    learn = tiny(dls=tensor_dls(x[:64], bs=16, seed=0), cbs=[Probe(**kwargs), Count()])
    with pytest.raises(ValueError, match=message) as e: learn.fit(2)
    assert not steps and len(str(e.value).splitlines())<=2   # fastai puts a line above, with the callback and the event

def test_a_draw_without_some_classes_is_no_error_and_is_said_once(capsys):
    "Of many classes 500 pictures hold not all: a larger n would"
    with listening('test must have') as said: got = probed(train=(X,Y), test=(X[:70],Y[:70]), n=8)
    assert got.counts==(8,8) and len(said)==1 and 'Pass a larger n' in said[0], said
    with listening('test must have') as said: got = probed(train=(X[:12],Y[:12]))
    assert got.counts==(8,4) and len(said)==1 and 'more pictures of each class' in said[0], said

def test_an_encoder_that_diverges_is_named(capsys):
    class Break(Callback):
        def after_train(self):
            with torch.no_grad(): next(self.model.encoder.parameters()).fill_(float('nan'))
    with pytest.raises(ValueError, match='features of train must be finite, and 54 of 54 rows hold NaN or inf'): tiny(cbs=[Probe((X,Y)), Break()], health=False).fit(1)

def test_few_pictures_are_enough_for_the_defaults(capsys):
    "Two to learn from, one to be tested on"
    two = torch.stack([x[y==0][0], x[y==1][0]]),torch.tensor([0,1])
    assert probed(train=two, test=(x[y==0][1:2],y[y==0][1:2])).counts==(2,1)
    assert probed(train=(x[:30],y[:30]), k=20, methods=('knn',)).counts==(20,10)

# What it costs

def test_the_default_bounds_the_cost():
    "A picture to train on takes the time of about eight passes forward, two of six and the way back; 5 % of 5,000 are 2,000 passes, and half of them is room"
    parts = labelled_parts((torch.zeros(4000,1),torch.arange(4000)%10), (torch.zeros(1000,1),torch.arange(1000)%10), Probe().n)
    assert sum(len(o) for o,_ in parts) <= 1000

def test_the_cost_is_printed_once_beside_the_epoch(capsys):
    learn = tiny(cbs=[Probe(every=2)]); learn.fit(4)
    lines = [o for o in capsys.readouterr().out.splitlines() if o.startswith('Probe: ')]
    assert len(lines)==1 and re.match(r'Probe: \S+ s, \S+ % of an epoch, every 2 epochs', lines[0]) and learn.probe.share>0
    learn.fit(1); assert 'Probe' not in capsys.readouterr().out

@pytest.mark.parametrize('every,seconds,line', [(1, .3, '0.3 s, 3 % of an epoch'), (1, 2., '2 s, 20 % of an epoch: every=4 keeps it under 5 % of the training'), (5, 2., '2 s, 20 % of an epoch, every 5 epochs')])
def test_a_dear_probe_names_its_cure(every, seconds, line, capsys):
    learn = tiny(cbs=[Probe(every=every)]); learn.probe.seconds = [seconds]
    learn.probe._account(10.)
    assert capsys.readouterr().out==f'Probe: {line}\n'

def test_probe_on_plain_torch_loaders(capsys):
    dls = DataLoaders(TorchLoader(TensorDataset(x[:64], y[:64]), batch_size=16, drop_last=True), TorchLoader(TensorDataset(x[64:96], y[64:96]), batch_size=16))
    learn = tiny(dls=dls, cbs=[Probe()], loss_func=nn.CrossEntropyLoss()); learn.fit(1)
    assert learn.probe.counts==(64,32) and learn.recorder.values[-1][-1]==learn.recorder.values[-1][-1]

def test_the_cost_is_bounded_and_classes_are_mixed():
    order = y.argsort(); dl = TensorDL(TensorData(x[order], y[order]), bs=64)
    (_,a),(_,b) = labelled_parts((x[order],y[order]), None, 100)
    assert len(a)==100 and len(b)==50 and len(a.unique())==len(b.unique())==10
    for part,n in zip(labelled_parts(dl, None, 100), (100,50)): assert sum(len(o[1]) for o in part)==n
    ids = [torch.cat([b[0].flatten(1) for b in p]) for p in labelled_parts(TensorDL(TensorData(torch.arange(90.)[:,None], y[:90]), bs=8), None, 1000)]
    assert sorted(torch.cat(ids).flatten().tolist())==list(range(90))     # nothing in both parts

@pytest.mark.parametrize('kind', ('clips','vectors'))
def test_clips_and_vectors(kind, capsys):
    data = x[:64,:,None].repeat(1,1,3,1,1) if kind=='clips' else x[:64].flatten(1)
    net  = ClipEncoder(conv_net()) if kind=='clips' else create_mlp_encoder(64, 32)
    augs = get_byol_aug_pipelines(8, **GREY) if kind=='clips' else get_vector_aug_pipelines(2)
    learn = tiny(dls=tensor_dls(data, y[:64], (torch.arange(48), torch.arange(48,64)), bs=16, seed=0), net=net, augs=augs, cbs=[Probe()])
    learn.fit(1); assert all(v==v for v in learn.recorder.values[-1])

def test_encoders_that_keep_their_map():
    encoder = create_encoder('tiny_resnet', pretrained=False, n_in=1, widths=(8,16), pool_type=False)
    model = BYOLModel(encoder, create_mlp_module(16, 32, 16, bn=True, pool=True), create_mlp_module(16, 32, 16, bn=True))
    learn = Learner(tensor_dls(x[:256], bs=64), model, cbs=BYOL(get_byol_aug_pipelines(8, **GREY)))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert 1 <= learn.health.rows[-1]['feature_rank'] <= 16

# A slow shrink, as on 320 grey faces: spread .85 → .65, mean cosine .15 → .47, rank of the projections 150 → 21, features as good as before

def shrunk(cosine, rank, n=512, d=256):
    "Projections with a mean cosine and a number of directions, beside the one they have in common"
    g = torch.Generator().manual_seed(0)
    z = torch.randn(n, d-1, generator=g)
    z[:, rank:] = 0
    z = nn.functional.normalize(z, dim=1)*(1-cosine)**.5
    return torch.cat([z, torch.full((n,1), cosine**.5)], 1) @ torch.linalg.qr(torch.randn(d, d, generator=g))[0]

def slow_shrink():
    torch.manual_seed(0)
    feats = torch.randn(512, 128)
    before,*rows = [projection_metrics(feats, shrunk(c, r)) for c,r in ((.15,200), (.2,120), (.3,60), (.4,26), (.45,24), (.47,23))]
    return before,[o | dict(update=.005) for o in rows]

def test_a_slow_shrink_is_named(monkeypatch):
    "It is wide enough to be no collapse; named once it has lasted two epochs"
    before,rows = slow_shrink()
    assert all(o['spread']>.6 for o in rows) and rows[-1]['rank']<.2*before['rank']
    found = [list(symptoms(rows[:i+1], before)) for i in range(len(rows))]
    assert found[0]==found[1]==[] and found[-1]==['shrinking'] and sum(map(bool, found))>=1
    assert re.search(r'the projections shrink: spread 0\.\d\d of 0\.\d\d, rank \d+ of \d+ in the first steps', symptoms(rows, before)['shrinking'])
    monkeypatch.setitem(health.limits, 'rank_few', 0.)   # switched off
    assert not symptoms(rows, before)

def test_a_slow_shrink_is_warned_of_in_training(monkeypatch):
    "By the callback, with a cause and a cure"
    learn = tiny(n=64, bs=16)
    before,rows = slow_shrink()
    it = iter(rows)
    learn.health.before = before
    monkeypatch.setattr(Health, '_metrics', lambda self: next(it) | dict(lr=1e-3))
    with listening() as said: learn.fit(5, 1e-3)
    assert len(said)==1 and 'the projections shrink' in said[0] and 'raise m' in said[0]

def test_the_watch_comes_back_after_one_of_your_own():
    "A `Health` for one fit took its place, and no later fit was watched"
    learn = tiny(); watch = learn.health
    learn.fit(1, cbs=Health(columns='update', stop=True))
    assert list(learn.recorder.metric_names)[3]=='update'
    learn.fit(1)
    assert list(learn._grab_cbs(Health))==[watch] and learn.health is watch and list(learn.recorder.metric_names)[3:7]==['spread','mean_cosine','rank','feature_rank']
    assert len(watch.rows)==1 and len(learn.recorder.values[0])==6 and not learn.metrics
    learn.remove_cb(learn.health); learn.fit(1); assert not learn._grab_cbs(Health)

def test_projections_that_are_equal_from_the_start_are_a_collapse():
    "A dead network ended the run with a division by zero"
    dead = [dict(spread=0., mean_cosine=0., rank=0., feature_rank=0., update=0.)]*2
    assert 'collapse' in symptoms(dead, dict(rank=0., feature_rank=0.))

def test_another_network_has_a_beginning_of_its_own():
    "Callbacks of one list watched two learners, and compared the second network with the first steps of the first"
    probe,health = Probe(labelled),Health(n=16)
    def fit(learn): learn.fit(1); return probe.before,health.before,health.first
    first = fit(tiny(cbs=[probe,health]))
    learn = tiny(cbs=[probe,health]); second = fit(learn)
    assert all(a is not b for a,b in zip(first, second)) and len(probe.seconds)==4
    assert all(a is b for a,b in zip(second, fit(learn)))   # the same network goes on
    learn.model = tiny().model; learn.create_opt()
    assert all(a is not b for a,b in zip(second, fit(learn)))
