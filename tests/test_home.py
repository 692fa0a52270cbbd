"A user's own pictures: the length of a run in minutes, an honest verdict, a run that mends itself, named views"
import csv, io, json, math, random, re, struct, tarfile, time, warnings, zlib
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastcore.basics import AttrDict
from PIL import Image
from sklearn.metrics import balanced_accuracy_score
from torch import nn

from self_supervised import budget
from self_supervised.augmentations import VIEWS, QuarterTurns, get_batch_augs, views_for
from self_supervised.callback.checkpoint import Checkpoint
from self_supervised.budget import Deadline, measure_pace
from self_supervised.cli import pretrain as cli
from self_supervised.cli.budget import Cost, choose, native_side, picture_cost
from self_supervised.cli.comparison import compare_parts
from self_supervised.cli.mend import Mend
from self_supervised.cli.embed import byol_embed
from self_supervised.cli.evaluate import part_to_test
from self_supervised.cli.pictures import labels_of, run_pictures, split_pictures
from self_supervised.cli.pretrain import (
    byol_pretrain, choose_views, complete_settings, normalise_as, pretrain, starting_encoder, within_minutes)
from self_supervised.cli.verdict import advice, difference, standing, verdict, verdict_text
from self_supervised.core import seed_everything
from self_supervised.data.arrays import tensor_dls
from self_supervised.data.demo import digits, write_mnist_tiny
from self_supervised.data.sources import picture_items
from self_supervised.evaluate.features import compare_features, embed
from self_supervised.fit import *
from self_supervised.layers import create_encoder
from self_supervised.recipes import warmup_cosine
from self_supervised.transfer.encoder_file import encoder_file, encoder_info, load_encoder, save_encoder
from self_supervised.vision.byol import BYOL, create_byol_model, digit_views, get_byol_aug_pipelines

SMALL = dict(arch='tiny_resnet', size=16, n_in=1, bs=32, workers=0, hidden_size=32, projection_size=16)

def learner(*cbs, bn=True, bs=128):
    x,y,splits = digits()
    seed_everything(0)
    dls = tensor_dls(x, None, splits, bs=bs, seed=0, device='cpu')
    seed_everything(0, dls)
    model = create_byol_model(create_encoder('tiny_resnet', pretrained=False, n_in=1, size=8), 64, 32, bn=bn)
    return Learner(dls, model, cbs=[BYOL(get_byol_aug_pipelines(8, **digit_views)), *cbs])

def fit(learn, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn.fit_byol(*args, **kwargs)
    return learn

# ---- the verdict

def results(**accuracies):
    "A table by name: a number for all draws"
    rows = {name: dict(linear=dict(mean=v, all=[v]*5), kNN=dict(mean=v, all=[v]*5)) for name,v in accuracies.items()}
    return dict(rows=rows, measured=rows, chance=dict(accuracy=.1, balanced=.1), n_test=400)

FACTS = dict(steps=300, epochs=100, n_train=320, bs=64, lr=1e-3, m=.9, size=128, n_in=3, ranks=(150,21), loss=1.1)

@pytest.mark.parametrize('trained', [.1, .3, .45, .5])
def test_a_run_that_made_things_worse_is_not_praised(trained):
    v = verdict(results(pixels=.5, start=.5, trained=trained), FACTS)
    assert v['helped']=='no' and 'helped' not in v['headline'] and 1<=len(v['advice'])<=3

def test_a_short_run_is_not_blamed_on_its_views():
    "After few steps the loss is high whatever the views are; after many it is the views"
    def blamed(**facts): return any('views may be too strong' in o for o in advice(FACTS|dict(loss=3.)|facts, 9))
    assert not blamed(steps=300) and blamed(steps=5000) and not blamed(steps=5000, loss=1.)

def test_the_words_follow_the_numbers():
    rng = random.Random(0)
    for _ in range(300):
        p,s,t = (rng.random() for _ in range(3))
        v = verdict(results(pixels=p, start=s, trained=t), FACTS)
        spread = math.sqrt(s*(1-s)/400+t*(1-t)/400)
        if v['helped']=='yes': assert t>s and t>p-2*spread
        if t<s-spread: assert v['helped']=='no'
        assert ('no measurable difference' in v['headline']) == (abs(t-s)<=spread)

def test_the_measure_that_decides_is_named_first():
    "kNN improved and linear did not: the headline is about kNN, and all measures are named"
    both = results(pixels=.5, start=.5, trained=.5)
    both['rows']['trained'] = dict(linear=dict(mean=.5, all=[.5]*5), kNN=dict(mean=.7, all=[.7]*5))
    v = verdict(both, FACTS)
    assert v['helped']=='yes' and 'kNN accuracy 0.700' in v['headline'] and v['details'][0].startswith('linear accuracy 0.500')

def test_a_spread_is_that_of_draws_and_of_held_out_pictures():
    a,b = ([.5,.6,.7,.6],[.4,.5,.5,.6])
    d = difference(dict(mean=np.mean(a), all=a), dict(mean=np.mean(b), all=b), 200)
    diffs = np.subtract(a, b)
    held = np.mean(a)*(1-np.mean(a))/200+np.mean(b)*(1-np.mean(b))/200
    assert d['mean']==pytest.approx(diffs.mean()) and d['spread']==pytest.approx((diffs.var(ddof=1)+held)**.5)

def test_accuracies_are_those_of_compare_features_and_balanced_is_sklearns():
    torch.manual_seed(0)
    train_y = torch.arange(3).repeat(20)
    test_y = torch.tensor([0]*60+[1]*20+[2]*5)
    def feats(y, noise): return torch.nn.functional.one_hot(y, 3).float()+noise*torch.randn(len(y), 3)
    parts = {name: [(feats(train_y, k), train_y), (feats(test_y, k), test_y)] for name,k in dict(a=.3, b=.9).items()}
    res = compare_parts(parts, 5, 6)
    theirs = compare_features({k: (a[0],b[0]) for k,(a,b) in parts.items()}, train_y, test_y, n=5, draws=6)
    for o in theirs:
        assert res['rows'][o.name]['linear']['all']==pytest.approx(o.linear.all, abs=1e-7)
        assert res['rows'][o.name]['kNN']['all']==pytest.approx(o.knn.all, abs=1e-7)
        assert 'balanced linear' in res['rows'][o.name]        # classes of unequal size
    from self_supervised.cli.comparison import balanced_mean
    preds = torch.randint(3, test_y.shape)
    assert balanced_mean(preds==test_y, test_y)==pytest.approx(balanced_accuracy_score(test_y, preds))
    assert res['chance']==pytest.approx(dict(accuracy=60/85, balanced=1/3))

def test_advice_names_options_of_the_command():
    options = cli.byol_pretrain.__wrapped__.__code__.co_varnames
    for facts in (FACTS, FACTS|dict(collapsed=True), FACTS|dict(steps=5000, loss=3.), FACTS|dict(minutes=5)):
        for line in advice(facts, 9):
            assert all(o in options for o in __import__('re').findall(r'--(\w+)', line)), line

# ---- a run

def shortest(tmp_path, **kwargs):
    write_mnist_tiny(tmp_path/'pics')
    return pretrain(tmp_path/'pics', tmp_path/'out', progress=False, **SMALL | kwargs)

def test_every_value_that_is_used_is_recorded_and_the_report_begins_with_the_verdict(tmp_path):
    learn,_,out = shortest(tmp_path, epochs=2)
    s = json.loads((out/'settings.json').read_text())['settings']
    assert s['m']==learn.byol.sched(0.) and 0<max(learn.recorder.hps['lr'])<=s['lr']==1e-3
    res,page = json.loads((out/'results.json').read_text()),(out/'report.html').read_text()
    assert res['steps']==learn.train_iter and res['seconds']>0 and res['started'][:4].isdigit()
    body = page[page.index('<body>'):]
    assert res['verdict']['headline'] in body[:body.index('</h1>')].replace('&#39;', "'").replace('&#34;', '"')

def test_the_length_of_a_run_is_printed_before_it_begins(tmp_path, capsys):
    learn,_,_ = shortest(tmp_path, epochs=2)
    said = capsys.readouterr().out
    n = len(learn.dls.train_ds)
    assert re.match(rf'To measure with, 2 labels: 3, 7\n{n} pictures to train on, 2 epochs: {2*(n//32)} steps of 32 pictures at 16 px, about [\d.]+ (s|min|h) and [\d.]+ GB on this machine. --minutes 20 would', said)
    assert said.index('--minutes 20')<said.index('train_loss')

def test_the_command_ends_with_the_verdict(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    byol_pretrain(epochs=1)
    res = json.loads(Path('runs/digits/results.json').read_text())
    assert capsys.readouterr().out.rstrip().endswith(verdict_text(res['verdict']))

def test_the_digits_do_not_take_the_folder_of_your_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from self_supervised.cli.pretrain import _folder_of
    assert _folder_of(None, False)==_folder_of(None, True)=='runs/digits' and _folder_of('pics', False)==_folder_of('pics', True)=='runs/byol'
    (tmp_path/'runs/byol').mkdir(parents=True)
    assert _folder_of(None, False)=='runs/digits' and _folder_of(None, True)=='runs/byol'   # to resume, the path is in the record
    (tmp_path/'runs/digits').mkdir()
    with pytest.raises(ValueError, match='resume=True may mean runs/byol or runs/digits. Pass out'): _folder_of(None, True)

def test_a_verdict_names_accuracies_that_a_constant_answer_has():
    columns = 'linear','kNN','balanced linear','balanced kNN'
    rows = {name: {o: dict(mean=a, std=.01, all=[a,a+.01]) for o in columns} for name,a in (('raw pixels',.2),('untrained encoder',.21),('trained encoder',.3))}
    res = dict(title='', rows=rows, measured=rows, n=5, n_test=500, chance=dict(accuracy=.37, balanced=.1))
    said = ' '.join(verdict(res, FACTS)['details'])
    assert 'would score 0.370, balanced 0.100. That is above the accuracies here, as classes differ much in size: compare balanced accuracy' in said
    assert 'above the accuracies' not in ' '.join(verdict(res | dict(chance=dict(accuracy=.25, balanced=.1)), FACTS)['details'])
    # Classes of one size have no balanced columns, and their accuracy may lie below chance, too
    equal = {name: {o: cells[o] for o in ('linear','kNN')} for name,cells in rows.items()}
    assert 'differ much in size' not in ' '.join(verdict(res | dict(rows=equal, measured=equal), FACTS)['details'])

def test_two_lengths_are_refused_and_a_set_of_views_is_known(tmp_path):
    write_mnist_tiny(tmp_path/'pics')
    with pytest.raises(ValueError, match='are two lengths'): pretrain(tmp_path/'pics', tmp_path/'out', minutes=1, epochs=2)
    with pytest.raises(ValueError, match="Choose one of 'photo'"): pretrain(tmp_path/'pics', tmp_path/'out', views='no')
    assert not (tmp_path/'out').exists()

def test_an_old_run_keeps_its_settings():
    old = dict(path='p', seed=1, workers=0, pretrained=False, unlabelled=False, bf16=False, views=dict(stats=None), m=None, epochs=3)
    s = complete_settings(**old)
    assert (s.minutes,s.norm,s.m,s.epochs)==(None,None,None,3) and not s.get('steps')

# ---- minutes

def test_a_trial_leaves_nothing_behind():
    "The fit after it is the fit without it, to the last bit"
    def losses(trial):
        learn = learner()
        if trial: measure_pace(learn, learn.opt_func, .5)
        assert not hasattr(learn, 'lr_finder')
        fit(learn, 1, 'adamw', lr=1e-3, m=.9)
        return [o.item() for o in learn.recorder.losses]
    assert losses(True)==losses(False)

class Clock(Callback):
    "A clock of its own, by which each step takes as long as it is told"
    def __init__(self, *seconds): self.seconds,self.now,self.n = seconds,0.,0
    def perf_counter(self): return self.now
    def after_step(self):
        self.now += self.seconds[self.n%len(self.seconds)]
        self.n += 1

@pytest.mark.parametrize('steps,seconds', [(40,(1.,)), (40,(2.5,)), (40,(.5,)), (7,(1.,3.)), (3000,(1.,)), (1,(.5,)), (3,(.25,)), (2,(9.,*[.5]*500))])
def test_schedules_are_complete_at_the_deadline(steps, seconds, monkeypatch):
    "A plan of 40 seconds, and steps that take as long, longer or less: the fit ends then, rate and momentum at their ends"
    clock = Clock(*seconds)
    monkeypatch.setattr(budget, 'time', clock)
    deadline = Deadline(40., steps)
    learn = fit(learner(clock), math.ceil(steps/9), 'adamw', lr=1e-3, m=.9, warmup_epochs=0, cbs=deadline)
    rates = learn.recorder.hps['lr']
    assert deadline.pct==1 and learn.pct_train==1 and rates==sorted(rates, reverse=True) and rates[0]>.9e-3
    if steps!=7: assert 36<=clock.now<=44 and rates[-1]<.1e-3
    assert {len(o) for o in learn.recorder.values}=={len(learn.recorder.metric_names)-2}      # no row lacks a column

def test_without_delay_a_deadline_takes_the_steps_planned():
    learn = fit(learner(), 3, 'adamw', lr=1e-3, m=.9, cbs=Deadline(1e4, 20, slack=2.))
    assert learn.train_iter==20 and len(learn.recorder.values)==3
    assert {len(o) for o in learn.recorder.values}=={len(learn.recorder.metric_names)-2}      # no row lacks a column

class Stop(Callback):
    "Cut a fit after some steps, as Ctrl-C does"
    def __init__(self, at): self.at = at
    def after_batch(self):
        if self.training and self.train_iter==self.at: raise KeyboardInterrupt

def test_a_run_of_minutes_is_resumed_with_its_own_plan(tmp_path, monkeypatch):
    "The second process is three times as slow, and measures nothing: length, momentum and rates are those of the first"
    def process(step, *cbs):
        "A learner whose steps take so many seconds, by a clock of its own"
        clock = Clock(step)
        monkeypatch.setattr(budget, 'time', clock)
        monkeypatch.setattr('self_supervised.fit.measure_pace', lambda *_: budget.Pace(0., step))
        return learner(clock, Checkpoint(tmp_path, every=1), *cbs)
    with pytest.raises(KeyboardInterrupt): fit(process(1., Stop(5)), minutes=.5, recipe='adamw')
    learn = fit(process(3.), minutes=.5, recipe='adamw')
    assert learn.train_iter>5 and learn.pct_train==1
    with pytest.raises(ValueError, match='minutes=60 differs from the run to resume, which has minutes=0.5'):
        fit(learner(Checkpoint(tmp_path, every=1)), minutes=60, recipe='adamw')

def test_minutes_choose_a_length_and_are_kept_by_a_resume(tmp_path):
    _,_,out = shortest(tmp_path, minutes=.2)
    s = json.loads((out/'settings.json').read_text())['settings']
    assert s['minutes']==.2 and s['steps']>=1 and s['epochs']==math.ceil(s['steps']/9) and s['size']==16 and s['bs']==32
    assert (out/'encoder.safetensors').exists() and 'verdict' in json.loads((out/'results.json').read_text())
    (out/'results.json').unlink()
    _,_,again = pretrain(tmp_path/'pics', out, progress=False, resume=True)
    assert again==out and json.loads((out/'settings.json').read_text())['settings']==s

def test_more_time_is_never_a_smaller_picture():
    def cost(size, arch): return Cost((1e-6 if arch=='resnet18' else 2e-7)*size**2, .02, 1e6, 1e8)
    found = [choose(t, 4000, 500, cost) for t in range(10, 20_000, 500)]
    sizes,larger = [o['size'] for o in found],[o['arch']=='resnet18' for o in found]
    assert sizes==sorted(sizes) and sizes[0]==32 and sizes[-1]==128
    assert larger==sorted(larger) and not larger[0] and larger[-1]
    for native in (20,32,60,500):
        got = choose(1e5, 4000, native, cost)
        assert got['size']<=max(native, 8) and got['lr']==pytest.approx(1e-3*(got['bs']/128)**.5)

def test_measuring_a_cost_leaves_random_numbers():
    s = complete_settings(path='p', seed=None, workers=0, pretrained=False, unlabelled=False, bf16=False, views=None, arch='tiny_resnet', n_in=1, hidden_size=32)
    torch.manual_seed(3)
    a = torch.rand(4)
    torch.manual_seed(3)
    c = picture_cost(s, 16, 4)
    assert torch.equal(torch.rand(4), a) and c.picture>0 and c.bytes>4*16*16

def test_a_gpu_is_measured_with_many_pictures(monkeypatch):
    "As many as its memory holds"
    from self_supervised.cli import budget as module
    tried = []
    def measured(s, size, n):
        tried.append(n)
        if n>32: raise torch.OutOfMemoryError('full')
        return n
    monkeypatch.setattr(module, '_measured', measured)
    monkeypatch.setattr(module, 'default_device', lambda: torch.device('cuda'))
    assert picture_cost(AttrDict(bs=128), 64, 8)==32 and tried==[128,64,32]

def test_what_you_set_is_kept_and_the_rest_is_chosen_for_the_minutes(tmp_path, monkeypatch):
    "Network, heads and precision, too: a slow machine gets a small network with small heads"
    from self_supervised.cli import pretrain as module
    path = str(write_mnist_tiny(tmp_path))
    monkeypatch.setattr(module, 'computes_in_bfloat16', lambda device: True)
    monkeypatch.setattr(module, 'picture_cost', lambda s, size: Cost(1e-3, 1. if s.arch=='resnet18' else .01, 1e6, 1e8))
    def chosen(**kept):
        s = complete_settings(**dict(path=path, seed=None, workers=0, pretrained=False, unlabelled=False, bf16=None, views=None, minutes=2) | kept)
        within_minutes(s, run_pictures(s), kept)
        return s
    s = chosen()
    assert (s.arch,s.hidden_size,s.projection_size,s.bf16,s.epochs)==('tiny_convnet',512,128,True,100) and 'steps' not in s
    assert starting_encoder(s)(torch.rand(2,3,32,32)).shape==(2,256)
    assert chosen(minutes=100).arch=='resnet18'
    assert chosen(bf16=False).bf16 is False and chosen(hidden_size=77).hidden_size==77
    assert (chosen(arch='resnet34').arch,chosen(arch='resnet34').hidden_size)==('resnet34',4096)
    assert (chosen(pretrained=True).arch,chosen(pretrained=True).hidden_size)==('resnet18',512)
    # Weights of large pictures say little of small ones: those of 28 pixels are enlarged
    assert chosen().size<=28 and chosen(pretrained=True).size==96 and chosen(pretrained=True, size=24).size==24

# ---- collapse

class Alarm(Callback):
    "A collapse in each epoch, whatever the rate"
    def after_train(self): self.learn.health.ill['collapse'] = 'on purpose'

def test_a_collapsed_run_ends_with_the_last_good_network_and_says_so(capsys):
    seen = []
    learn = learner(Mend(on_change=seen.append), Alarm())
    was = {k: v.clone() for k,v in learn.model.state_dict().items()}
    fit(learn, 8, 'adamw', lr=4e-3, m=.9, warmup_epochs=0)
    mended = learn.mend.mended
    assert seen[-1]==mended and [o['lr'] for o in mended]==pytest.approx([2e-3,1e-3])
    assert [o['m'] for o in mended]==pytest.approx([.95,.975]) and learn.epoch<8
    for k,v in learn.model.state_dict().items(): assert torch.equal(v, learn.mend.good[k])
    if not learn.mend.good_epoch: assert all(torch.equal(was[k], v) for k,v in learn.model.state_dict().items())
    assert 'Collapsed' in capsys.readouterr().out

def test_a_healthy_run_is_not_touched_by_it():
    def losses(*cbs): return [o.item() for o in fit(learner(*cbs), 2, 'adamw', lr=4e-3, m=.95).recorder.losses]
    assert losses(Mend())==losses()

# ---- views

@pytest.mark.parametrize('name', VIEWS)
def test_what_a_kind_of_picture_forbids_does_not_happen(name):
    "A picture whose left, top and colour can be told, and the strongest views of it"
    kw = views_for(name) | dict(resize_scale=(1.,1.), resize_ratio=(1.,1.), stats=None, jitter=False, blur=False, solarize=False)
    x = torch.zeros(256,3,16,16)
    x[:, :, :, :8] += .5
    x[:, :, :4] += .25
    v = get_batch_augs(16, **kw)(x)
    left,right,top,bottom = v[..., :4].mean((1,2,3)),v[..., -4:].mean((1,2,3)),v[..., :4, :].mean((1,2,3)),v[..., -4:, :].mean((1,2,3))
    mirrored,turned = (right>left+.1).any().item(),(top<bottom-.05).any().item()
    assert turned==(views_for(name)['turn_p']>0)
    assert mirrored==(views_for(name)['flip_p']>0 or views_for(name)['turn_p']>0)

def test_quarter_turns_lose_nothing():
    x = torch.rand(64,3,7,7)
    assert torch.equal(QuarterTurns()(x).flatten(2).sort(2).values, x.flatten(2).sort(2).values)
    wide = torch.rand(8,1,4,6)
    assert torch.equal(QuarterTurns()(wide), wide.rot90(2, (-2,-1)))

# ---- as it is typed

def settings_for(**kwargs):
    return complete_settings(**dict(path='p', seed=None, workers=0, pretrained=False, unlabelled=False, bf16=False, views=None) | SMALL | kwargs)

def test_minutes_keep_a_size_as_it_is_typed_and_a_batch_that_fits(tmp_path):
    path = str(write_mnist_tiny(tmp_path))
    for size,kept in (('16',16), ('16,24',(16,24))):
        s = settings_for(path=path, size=size, minutes=1)
        within_minutes(s, run_pictures(s), dict(size=size))
        assert s.size==kept and s.bs==128
    for holdout in ('.9','valid'):
        s = settings_for(path=path, minutes=1, holdout=holdout)
        items = run_pictures(s)
        within_minutes(s, items, {})
        assert 2<=s.bs<=len(split_pictures(s, items).train)

def test_a_cost_is_measured_at_any_size_and_with_the_norm_asked_for(monkeypatch):
    s = settings_for(norm='group')
    assert picture_cost(s, (16,24), 4).bytes>picture_cost(s, 16, 4).bytes
    seen = []
    forward = nn.GroupNorm.forward
    monkeypatch.setattr(nn.GroupNorm, 'forward', lambda self, x: seen.append(self) or forward(self, x))
    picture_cost(s, 16, 4)
    assert seen

def test_numbers_of_numpy_are_recorded_as_numbers():
    s = settings_for(epochs=np.int64(3), lr=np.float32(.5), bs=torch.tensor(8))
    assert json.loads(json.dumps([s.epochs,s.lr,s.bs]))==[3,.5,8]

def test_views_normalise_as_the_starting_weights_expect(tmp_path):
    stats = [[.3],[.2]]
    file = save_encoder(create_encoder('tiny_resnet', pretrained=False, n_in=1), tmp_path/'e.safetensors', stats=stats, size=16)
    def views(**kwargs):
        s = settings_for(init=str(file), **kwargs)
        normalise_as(s, starting_encoder(s))
        return s.views['stats']
    assert views()==stats and views(views=dict(stats=None)) is None
    with pytest.raises(FileNotFoundError, match=r"init='no.pth' is not a file. Pass a checkpoint"): pretrain(tmp_path, tmp_path/'out', init='no.pth')

def test_weights_of_a_known_network_are_normalised_as_timm_states(tmp_path):
    "For a file that does not tell it"
    torch.save(create_encoder('tf_efficientnet_lite0', pretrained=False).state_dict(), tmp_path/'lite0.pth')
    s = settings_for(init=str(tmp_path/'lite0.pth'), arch='tf_efficientnet_lite0', n_in=3, size=32)
    normalise_as(s, starting_encoder(s))
    assert s.views['stats']==((.5,.5,.5),(.5,.5,.5))

@pytest.fixture
def weights(tmp_path):
    "A file of weights, and pictures to train on"
    net = create_encoder('tiny_resnet', pretrained=False, n_in=1)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d): nn.init.uniform_(m.running_mean)
    return save_encoder(net, tmp_path/'weights.safetensors', size=8, stats=None),write_mnist_tiny(tmp_path/'pics')

def buffers(net): return {k: v.clone() for k,v in net.named_buffers() if 'running' in k}

@pytest.mark.parametrize('slower,kept', [(None,True), (1.,False)])
def test_published_weights_are_trained_gently(slower, kept, weights, tmp_path):
    "The heads first, then a tenth of the rate, their own statistics of batchnorm, also in the target; and they are kept as they were"
    file,pics = weights
    rates = []
    class Rates(Callback):
        def before_step(self): rates.append([h['lr'] for h in self.opt.hypers])
    with pytest.MonkeyPatch.context() as m, redirect_stdout(io.StringIO()):
        own = cli.run_learner
        m.setattr(cli, 'run_learner', lambda *args: own(*args).add_cb(Rates()))
        learn,_,out = pretrain(pics, tmp_path/'run', init=file, size=8, bs=8, epochs=1, hidden_size=16, projection_size=8,
                               slower=slower, workers=0, progress=False)
    start,trained = load_encoder(file),learn.model.encoder
    assert all(len(o)==(2 if kept else 1) for o in rates)
    if kept:
        first = math.ceil(.4*len(rates))
        assert all(a==0<b or not b for a,b in rates[:first]) and all(b==pytest.approx(10*a) for a,b in rates[first:])
    for net in (trained,learn.model.target.encoder):
        assert all(torch.equal(v, buffers(net)[k]) for k,v in buffers(start).items())==kept
    assert not all(torch.equal(a, b) for a,b in zip(start.parameters(), trained.parameters()))
    assert any(v.any() for k,v in buffers(learn.model.projector).items() if 'mean' in k)   # new layers learn theirs
    x = torch.rand(4,1,8,8)
    assert torch.equal(embed(load_encoder(out/'start.safetensors'), x)[0], embed(start, x)[0])
    assert json.loads((out/'settings.json').read_text())['settings']['slower']==(10 if kept else 1)

def test_a_fit_warns_of_no_name():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        learn = learner()
        with learn.no_bar(), learn.no_logging(): learn.fit_byol(1, 'adamw', lr=1e-3, m=.9)
    assert not [o for o in seen if 'shadowing' in str(o.message)]

def test_labels_of_a_file_that_names_no_picture_are_refused(tmp_path):
    path = write_mnist_tiny(tmp_path/'pics')
    (tmp_path/'l.csv').write_text('name,label\nother.png,a\n')
    s = settings_for(path=str(path), labels=str(tmp_path/'l.csv'))
    with pytest.raises(ValueError, match='labels no picture of the source, which has e.g.'): labels_of(s, run_pictures(s))

def test_the_labels_of_a_run_are_not_those_of_other_pictures(tmp_path):
    "Folders name the classes there"
    path,run = write_mnist_tiny(tmp_path/'pics'),tmp_path/'run'
    run.mkdir()
    (tmp_path/'l.csv').write_text('name,label\nelsewhere.png,a\n')
    recorded = dict(path='elsewhere', labels=str(tmp_path/'l.csv'), views={})
    (run/'settings.json').write_text(json.dumps(dict(settings=recorded)))
    (run/'held_out.csv').write_text('elsewhere.png\n')
    assert part_to_test(run, str(path), None, None, 42, {})==.2
    recorded['labels'] = 'cls'
    (run/'settings.json').write_text(json.dumps(dict(settings=recorded)))
    assert part_to_test(run, str(path), None, None, 42, {})==.2

def test_advice_fits_the_run():
    lines = ' '.join(advice(FACTS | dict(init='file.pth'), 9))
    assert '--pretrained' not in lines and 'start.safetensors' in lines and 'start.safetensors' not in ' '.join(advice(FACTS, 9))
    # Published weights need fewer steps, and larger pictures
    few = ' '.join(advice(FACTS | dict(init='file.pth', steps=50, size=96), 9))
    assert '100 are a fair start' in few and '--size' not in few and 'fair start' not in ' '.join(advice(FACTS | dict(init='file.pth', steps=200), 9))
    after = FACTS | dict(collapsed=True, mended=[dict(lr=5e-4, m=.95), dict(lr=2.5e-4, m=.975)])
    assert '--lr 0.00013 --m 0.9938' in advice(after)[0]
    # 100 steps in 60 of 120 seconds: 1,000 take 600 seconds, and a minute to measure
    assert '--minutes 11' in advice(FACTS | dict(steps=100, minutes=2, training=60.))[0]
    assert advice(FACTS | dict(steps=1))[0].startswith('1 step is few')
    # A few steps do not tell the pace of a thousand, and their rank falls in good runs
    assert advice(FACTS | dict(steps=9, minutes=1, training=30., ranks=(74,33)))[0].endswith('--minutes 20, or train on smaller pictures: --size 64')
    assert not any('few directions' in o for o in advice(FACTS | dict(steps=9, ranks=(74,33)), 9))
    assert any('few directions' in o for o in advice(FACTS | dict(steps=2000, ranks=(74,33)), 9))

COLOURS = dict(jitter=False, bw=False, solarize=False)

@pytest.mark.parametrize('typed, off', [({}, {}), (dict(no_colour=True), COLOURS), (dict(no_flip=True), dict(flip_p=0.)),
                                        (dict(no_flip=True, no_colour=True), COLOURS | dict(flip_p=0.))])
def test_what_must_not_change_is_switched_off_in_any_set_of_views(typed, off, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(cli, 'pretrain', lambda *_, views, **__: seen.append(views) or (None,None,tmp_path))
    monkeypatch.setattr(cli, '_print_summary', lambda _: None)
    for named in ({}, dict(views='symbols')): byol_pretrain(['pics'], **typed, **named)
    assert (seen[0] or {})==off and (seen[1]==views_for('symbols') | off if off else seen[1]=='symbols')
    path = str(_flat(tmp_path/'p'))
    s = settings_for(path=path, n_in=3, views=off or None)
    choose_views(s, run_pictures(s))
    assert s.views.items()>=(views_for('symbols') | off).items()

def test_an_estimate_is_measured_on_the_threads_of_the_run(tmp_path, monkeypatch):
    "Tiny pictures train on one: on two, which wait for each other, the estimate was a hundred times too long"
    seen = {}
    monkeypatch.setattr(cli, 'picture_cost', lambda s, size, n=16: seen.setdefault(size, torch.get_num_threads()) and Cost(1e-3, 0., 1., 1.))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for size in (8,32):
            s = settings_for(path=str(write_mnist_tiny(tmp_path/str(size))), size=size, n_in=1, minutes=1)
            within_minutes(s, run_pictures(s), dict(size=size))
    finally: torch.set_num_threads(threads)
    assert seen=={8: 1, 32: 2}

def test_grey_pictures_bring_no_warning_of_colours(tmp_path):
    "By the command, which knows the channels; the views are the same to the bit"
    for views in (None, views_for('symbols'), dict(jitter_s=(.1,.2,.3,.1)), dict(jitter=False)):
        s = settings_for(path='p', n_in=1, views=views)
        given = s.views | {k: (views or {}).get(k, v) for k,v in dict(bw=True, jitter_s=.5).items()}
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            x = torch.rand(32,1,24,24)
            torch.manual_seed(0)
            got = [aug(x) for aug in get_byol_aug_pipelines(16, **s.views)]
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            torch.manual_seed(0)
            want = [aug(x) for aug in get_byol_aug_pipelines(16, **given)]
        assert all(torch.equal(a, b) for a,b in zip(got, want))

def test_pages_read_pictures_as_the_encoder_does(tmp_path, monkeypatch):
    path,seen = write_mnist_tiny(tmp_path/'pics'),[]
    encoder = save_encoder(create_encoder('tiny_resnet', pretrained=False, n_in=1), tmp_path/'e.safetensors', stats=None, size=16, reading=dict(ground='black'))
    monkeypatch.setattr('self_supervised.cli.neighbors.thumbnail', lambda item, **how: seen.append(how) or '')
    byol_embed(str(encoder), [str(path/'valid')], out=str(tmp_path/'f.npz'), workers=0, neighbors=True)
    assert seen and all(o==dict(ground='black') for o in seen)

def test_features_that_were_there_are_named_and_a_run_s_folder_is_an_encoder(tmp_path, capsys):
    "For `load_encoder` as for the commands; and the labels of a run are printed, since folders may be named after something else"
    path = write_mnist_tiny(tmp_path/'pics')
    pretrain(path, tmp_path/'run', progress=False, epochs=1, **SMALL)
    assert 'To measure with, 2 labels: 3, 7' in capsys.readouterr().out
    assert encoder_info(tmp_path/'run')==encoder_info(tmp_path/'run/encoder.safetensors')
    a,b = (load_encoder(tmp_path/o).state_dict() for o in ('run','run/encoder.safetensors'))
    assert all(torch.equal(a[k], b[k]) for k in a)
    with pytest.raises(FileNotFoundError, match='or the folder of a finished run'): load_encoder(tmp_path)
    for again in (False, True):
        byol_embed(str(tmp_path/'run'), [str(path/'valid/3')], out=str(tmp_path/'f.npz'), workers=0)
        assert ('f.npz was there already, and is replaced' in capsys.readouterr().out)==again

def test_an_encoder_that_is_not_there_is_named_as_it_is_called(tmp_path):
    for name,problem in (('no.safetensors','is not a file'), ('.','is a folder without encoder.safetensors')):
        with pytest.raises(FileNotFoundError, match=f"^encoder='{re.escape(str(tmp_path/name))}' {problem}. Give one"): encoder_file(tmp_path/name)

def test_a_single_picture_held_out_does_not_end_a_run_without_a_verdict(tmp_path):
    files = sorted((write_mnist_tiny(tmp_path/'pics')/'train/3').glob('*.png'))[:5]
    _,_,out = pretrain([str(o) for o in files], tmp_path/'out', progress=False, epochs=1, **SMALL | dict(bs=4))
    assert 'verdict' in json.loads((out/'results.json').read_text()) and (out/'report.html').is_file()

def test_pictures_that_are_no_squares_are_trained_on(tmp_path):
    _,_,out = shortest(tmp_path, epochs=1, size='12,16')
    assert json.loads((out/'settings.json').read_text())['settings']['size']==[12,16] and (out/'encoder.safetensors').is_file()

def test_any_file_may_be_among_those_that_tell_the_size(tmp_path):
    "A bomb, EPS under another name and what is no picture: the rest is looked at, also in a tar"
    for i in range(5): Image.new('L', (40+i,50)).save(tmp_path/f'{i}.png')
    with tarfile.open(tmp_path/'all.tar', 'w') as tar:
        for i in range(5): tar.add(tmp_path/f'{i}.png', f'{i}.png')
    assert native_side(picture_items(tmp_path/'all.tar'))==42
    (tmp_path/'all.tar').unlink()
    header = struct.pack('>IIBBBBB', 60000, 60000, 8, 0, 0, 0, 0)
    parts = [(b'IHDR',header), (b'IDAT',zlib.compress(b'0')), (b'IEND',b'')]
    chunks = [struct.pack('>I', len(d))+k+d+struct.pack('>I', zlib.crc32(k+d)) for k,d in parts]
    (tmp_path/'bomb.png').write_bytes(b'\x89PNG\r\n\x1a\n'+b''.join(chunks))
    (tmp_path/'eps.png').write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n')
    (tmp_path/'text.png').write_text('no picture')
    assert native_side(picture_items(tmp_path)) in (42,43)

def _letterbox(folder):
    "Photographs with bars, or cut out on white: few pixels, and many colours"
    rng = np.random.default_rng(0)
    for i in range(20):
        im = Image.new('RGB', (48,48), 'white' if i%2 else 'black')
        im.paste(Image.fromarray(rng.integers(0, 256, (5,5,3), dtype=np.uint8)).resize((48,32), Image.Resampling.BICUBIC), (0,8))
        folder.mkdir(exist_ok=True)
        im.save(folder/f'{i}.png')
    return folder

def test_photographs_with_bars_or_cut_out_are_no_drawings(tmp_path):
    from self_supervised.cli.pictures import kind_of
    from self_supervised.data.sources import picture_items
    assert kind_of(picture_items(_letterbox(tmp_path/'p')))=='photo'

def test_without_mirrors_views_still_follow_the_look(tmp_path):
    kw = dict(arch='tiny_resnet', size=16, bs=8, epochs=1, hidden_size=32, projection_size=16, progress=False)
    cli._pretrain(str(_flat(tmp_path/'p')), tmp_path/'a', None, dict(flip_p=0.), bf16=False, **kw)
    assert json.loads((tmp_path/'a'/'settings.json').read_text())['settings']['views']['resize_scale']==[.5,1.]

def _flat(folder, n=20, grey=False, noise=False, kind='png'):
    "Drawings on a white ground, or smooth noise as of photographs"
    rng = np.random.default_rng(0)
    for i in range(n):
        im = Image.fromarray(rng.integers(0, 256, (5,5,3), dtype=np.uint8)).resize((48,48), Image.Resampling.BICUBIC)
        if not noise: im = Image.composite(im, Image.new('RGB', (48,48), 'white'), Image.new('L', (48,48)).point(lambda _: 0))
        if not noise: im.paste((200,10*i,60), (5+i,8,25,40-i))
        f = folder/str(i%2)/f'{i}.{kind}'
        f.parent.mkdir(parents=True, exist_ok=True)
        (im.convert('L') if grey else im).save(f)
    return folder

@pytest.mark.parametrize('how, kind', [({}, 'symbols'), (dict(kind='jpg'), 'symbols'), (dict(grey=True), 'symbols'), (dict(noise=True), 'photo'),
                                       (dict(noise=True, kind='jpg'), 'photo'), (dict(noise=True, grey=True), 'grey')])
def test_views_follow_the_look_of_the_pictures_unless_you_name_them(tmp_path, how, kind, capsys):
    "Drawings lie on a ground of one colour; what is chosen is printed, recorded and used"
    path = str(_flat(tmp_path/'p', **how))
    s = settings_for(path=path, n_in=3)
    choose_views(s, run_pictures(s))
    assert {k: s.views[k] for k in views_for(kind)}==views_for(kind) if kind!='photo' else set(s.views)=={'stats'}
    assert f'Views for {kind}, as ' in capsys.readouterr().out
    if how: return
    kw = dict(arch='tiny_resnet', size=16, bs=8, epochs=1, hidden_size=32, projection_size=16, progress=False)
    pretrain(path, tmp_path/'a', **kw)
    pretrain(path, tmp_path/'b', views='photo', **kw)
    used = [json.loads((tmp_path/o/'settings.json').read_text())['settings']['views'] for o in 'ab']
    assert used[0]['flip_p']==0 and used[1]['flip_p']==.5

# ---- the rate after a collapse

def test_after_a_collapse_the_rate_is_really_half():
    "It was printed and recorded as half; the schedule, which comes later in a batch, had set it back"
    class Rates(Callback):
        order = 100
        def before_fit(self): self.seen = {}
        def before_step(self): self.seen.setdefault(self.epoch, []).append((self.opt.hypers[-1]['lr'],self.pct_train))
    learn = fit(learner(Mend(), Rates(), Alarm()), 4, 'adamw', lr=4e-3, m=.9, warmup_epochs=1)
    starts = [o['epoch'] for o in learn.mend.mended]
    assert starts==[1,2] and [o['lr'] for o in learn.mend.mended]==pytest.approx([2e-3,1e-3])
    want = warmup_cosine(4e-3, 1/4)
    for epoch,rates in learn.rates.seen.items():
        part = .5**sum(epoch>=o for o in starts)
        assert [o for o,_ in rates]==pytest.approx([want(pct)*part for _,pct in rates])
