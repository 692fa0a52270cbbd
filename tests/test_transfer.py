"The encoder at its new home: what other libraries, other processes and other runtimes make of it"
import json, os, pickle, subprocess, sys

import numpy as np, onnxruntime, pytest, timm, torch
from torch import nn
from fastai.vision.all import CrossEntropyLossFlat, Normalize, load_learner, parent_label

from self_supervised.data.demo import digits, write_mnist_tiny
from self_supervised.data.arrays import tensor_dls
from self_supervised.data.images import image_dls
from self_supervised.evaluate.features import embed
from self_supervised.layers import FlatEncoder, copy_without_hooks, create_encoder
from self_supervised.record import record_of, remember
from self_supervised.surgery import bake_weights
from self_supervised.transfer.encoder_file import encoder_info, load_encoder, save_encoder
from self_supervised.transfer.finetune import class_learner, classifier, split_layers
from self_supervised.transfer.segment import segment_learner, segmenter, unet_body
from self_supervised.transfer.hub import save_hub_folder
from self_supervised.transfer.onnx import export_onnx
from self_supervised.transfer.retrieval import retrieval_index
from self_supervised.transfer.legacy import load_old
from self_supervised.vision.byol import byol_learner, create_byol_model, get_byol_aug_pipelines

STATS = ([.3],[.35])

@pytest.fixture(scope='module')
def x(): return digits()[0][:8]

@pytest.fixture
def dls():
    x,y,_ = digits()
    return tensor_dls(x[:60], y[:60], (torch.arange(40), torch.arange(40,60)), bs=20, seed=0)

def tiny(**kwargs):
    torch.manual_seed(0)
    net = create_encoder('tiny_resnet', n_in=1, pretrained=False, widths=(8,16), **kwargs)
    net.train()(digits()[0][:8])    # running statistics that are no longer those of a new network
    return net.eval()

def quiet(learn):
    learn.remove_cb(learn.progress) if hasattr(learn, 'progress') else None
    learn.logger = lambda *_: None
    return learn

def state(net): return {k:v.clone() for k,v in net.state_dict().items()}
def same(a, b): return a.keys()==b.keys() and all(torch.equal(a[k],b[k]) for k in a)

# A file

def test_a_process_without_this_library_reads_the_file(tmp_path):
    encoder = create_encoder('resnet10t', pretrained=False, n_in=1).eval()
    save_encoder(encoder, tmp_path/'e.safetensors', stats=STATS, size=32)
    torch.manual_seed(0); torch.save(pics := torch.rand(2,1,32,32), tmp_path/'x.pt')
    script = '''
import json, sys, timm, torch
from safetensors import safe_open
from safetensors.torch import load_file
sys.modules['self_supervised'] = None      # whoever imports it fails
with safe_open('e.safetensors', 'pt') as f: meta = json.loads(f.metadata()['self_supervised'])
net = timm.create_model(meta['spec']['arch'], in_chans=meta['spec']['n_in'], global_pool=meta['spec']['pool_type'], num_classes=0).eval()
net.load_state_dict(load_file('e.safetensors'))
with torch.no_grad(): torch.save(net(torch.load('x.pt')), 'y.pt')
print(json.dumps(meta))'''
    res = subprocess.run([sys.executable, '-c', script], cwd=tmp_path, capture_output=True, text=True)
    assert res.returncode==0, res.stderr
    with torch.no_grad(): assert torch.equal(torch.load(tmp_path/'y.pt'), encoder(pics))
    meta = json.loads(res.stdout.splitlines()[-1])
    assert (meta['size'],meta['stats']) == (32,[[.3],[.35]]) and {'spec','version'} <= meta.keys()

def test_an_encoder_of_landscapes_from_a_file_can_be_classified_with(tmp_path):
    "A file has (h,w) as a list, which is no key: every classifier on such a file ended in an error"
    torch.manual_seed(0)
    save_encoder(create_encoder('tiny_resnet', pretrained=False, n_in=1), tmp_path/'e.safetensors', size=(8,12), stats=None)
    net = load_encoder(tmp_path/'e.safetensors')
    assert record_of(net)['size']==(8,12)
    learn = class_learner(tensor_dls(torch.rand(8,1,8,12), torch.arange(8)%2, splits=(list(range(6)),[6,7]), bs=4), net, n_out=2)
    assert learn.model(torch.rand(2,1,8,12)).shape==(2,2)

def test_meta_travels_on(tmp_path, dls):
    e = load_encoder(save_encoder(tiny(), tmp_path/'a', stats=STATS, size=8))
    assert encoder_info(save_encoder(e, tmp_path/'b')) == encoder_info(tmp_path/'a')
    assert class_learner(dls, e, n_out=10).model.normalize.mean.item() == pytest.approx(.3)

@pytest.mark.parametrize('name', ['spec','version'])
def test_names_of_its_own_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f'{name}=1 is written by save_encoder'): save_encoder(tiny(), tmp_path/'a', **{name: 1})
    assert not (tmp_path/'a').exists()

def test_a_whole_model_is_no_encoder(tmp_path, dls):
    model = create_byol_model(tiny(), 8, 4)
    for f in (lambda: save_encoder(model, tmp_path/'a'), lambda: class_learner(dls, model, n_out=10, stats=None), lambda: save_hub_folder(model, tmp_path/'b', stats=None)):
        with pytest.raises(TypeError, match='Pass its .encoder'): f()

def test_files_of_another_kind_are_named(tmp_path, dls):
    "Row 27: both are named, and nothing is loaded"
    learn = quiet(class_learner(dls, tiny(), n_out=10, stats=None, path=tmp_path))
    learn.fit(1)
    file = learn.save('with_optimizer')
    with pytest.raises(ValueError, match='torch.save.*load_old.*load_weights.*lightly.*save_encoder'): load_encoder(file, encoder=tiny())
    net = create_encoder('resnet10t', pretrained=False, n_in=1); was = state(net)
    save_encoder(tiny(), tmp_path/'e')
    with pytest.raises(ValueError, match="'tiny_resnet', and the network is a ResNet \\('resnet10t'\\)"): load_encoder(tmp_path/'e', encoder=net)
    with pytest.raises(ValueError, match='another architecture'): load_old(file, net)
    assert same(was, state(net))

# timm

@pytest.mark.parametrize('arch,size,kw', [('resnet10t',32,{}), ('resnet10t',32,dict(pool_type='avg')), ('vit_tiny_patch16_224',32,dict(size=32, pool_type='avg'))])
def test_timm_reads_the_folder(tmp_path, arch, size, kw):
    encoder = create_encoder(arch, pretrained=False, n_in=1, **kw).eval()
    save_hub_folder(encoder, tmp_path/'hub', STATS, size)
    net = timm.create_model(f'local-dir:{tmp_path/"hub"}', pretrained=True)
    pics = torch.rand(2,1,size,size)
    assert torch.equal(embed(net, pics)[0], embed(encoder, pics)[0])
    cfg = timm.data.resolve_data_config(model=net)
    assert (tuple(cfg['input_size']),*cfg['mean'],*cfg['std']) == ((1,size,size),.3,.35)
    assert sorted(f.name for f in (tmp_path/'hub').iterdir()) == ['README.md','config.json','model.safetensors']
    head = timm.create_model(f'local-dir:{tmp_path/"hub"}', pretrained=True, num_classes=5)     # timm's own way on
    assert head(pics).shape==(2,5)

@pytest.mark.parametrize('kw', [dict(small_stem=True), dict(norm='group')])
def test_what_timm_cannot_build_is_no_folder(tmp_path, kw):
    "A small stem loads without an error into a network that strides: only its answers differ"
    with pytest.raises(ValueError, match='timm cannot build'): save_hub_folder(create_encoder('resnet10t', pretrained=False, **kw), tmp_path/'hub', None, 32)
    assert not (tmp_path/'hub').exists()

# A classifier

def test_pictures_are_normalised_once(dls, x):
    encoder,seen = tiny(),[]
    model = classifier(encoder, 10, STATS)
    model.encoder.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    model(x)
    assert torch.allclose(seen[0], (x-.3)/.35)
    dls.add_tfms([Normalize.from_stats(*STATS, cuda=False)], 'after_batch')
    with pytest.raises(ValueError, match='dls=.* normalises its batches'): class_learner(dls, encoder, n_out=10, stats=STATS)
    class_learner(dls, encoder, n_out=10, stats=None)

@pytest.mark.parametrize('former', [STATS, None])
def test_a_classifier_on_pictures_that_the_loader_normalises_records_how(tmp_path, x, former):
    "The error above advises stats=None: the encoder was then recorded as one for pictures in [0,1]"
    write_mnist_tiny(tmp_path/'p')
    data = image_dls(tmp_path/'p', 12, n_in=1, label_func=parent_label, bs=8, device='cpu', workers=0)
    data.add_tfms([Normalize.from_stats([.4],[.2], cuda=False)], 'after_batch')
    encoder = tiny()
    remember(encoder, stats=former)
    net = quiet(class_learner(data, encoder, stats=None)).model.encoder.eval()
    assert record_of(net)['stats']==[[.4],[.2]] and record_of(encoder)['stats']==former
    save_encoder(net, tmp_path/'e')
    want = net((x-.4)/.2)
    for o in (net, load_encoder(tmp_path/'e')): assert torch.allclose(embed(o, x)[0], want, atol=1e-4)

def test_a_classifier_on_pictures_that_someone_normalised_records_nothing(x):
    "With the advice to pass stats; pictures in [0,1], or of any range in training, are as the record tells"
    y = torch.arange(8)%2
    encoder = tiny()
    remember(encoder, stats=STATS)
    with pytest.warns(UserWarning, match='do not tell how they were normalised.* Pass stats='):
        net = class_learner(tensor_dls((x-.3)/.35, y, bs=4), encoder, n_out=2, stats=None).model.encoder
    assert 'stats' not in record_of(net)
    assert record_of(class_learner(tensor_dls(x, y, bs=4), encoder, n_out=2, stats=None).model.encoder)['stats'] is None
    remember(encoder, any_range=True)
    assert record_of(class_learner(tensor_dls(9*x, y, bs=4), encoder, n_out=2, stats=None).model.encoder)['stats'] is None

def test_the_encoder_passed_in_stays(dls):
    encoder = tiny(); was = state(encoder)
    learn = quiet(class_learner(dls, encoder, n_out=10, stats=STATS))
    learn.fine_tune(1, 1e-2)
    assert same(was, state(encoder)) and not same(was, state(learn.model.encoder))

def test_frozen_means_frozen(dls):
    learn = quiet(class_learner(dls, tiny(), n_out=10, stats=STATS, train_bn=False))
    was = state(learn.model.encoder)
    learn.fit(1, 1e-2)
    convs = [n for n,m in learn.model.encoder.named_modules() if isinstance(m, nn.Conv2d)]
    assert all(torch.equal(was[f'{n}.weight'], learn.model.encoder.get_submodule(n).weight) for n in convs)

@pytest.mark.parametrize('net', ['resnet18','vit_tiny_patch16_224','tiny_resnet'])
def test_groups_hold_every_parameter_once(net):
    model = nn.Sequential()
    model.encoder,model.head = create_encoder(net, pretrained=False),nn.Linear(2,2)
    groups = split_layers(model)
    assert sorted(id(p) for g in groups for p in g) == sorted(map(id, model.parameters())) and all(map(len, groups))
    if net=='resnet18':      # where fastai cuts it
        assert [id(p) for p in groups[0]] == [id(p) for n,p in model.encoder.named_parameters() if n.startswith(('conv1','bn1','layer1','layer2'))]

def test_predict_export_and_get_preds_agree(tmp_path):
    write_mnist_tiny(tmp_path/'pics')
    dls = image_dls(tmp_path/'pics', n_in=1, label_func=parent_label, valid='valid', bs=32, workers=0)
    learn = quiet(class_learner(dls, tiny(), stats=STATS, path=tmp_path))
    learn.fine_tune(1, 3e-2)
    preds,targs = learn.get_preds()
    file = dls.valid_ds.items[3]
    label,i,probs = learn.predict(file)
    assert label==learn.dls.vocab[i] and torch.allclose(probs, preds[3], atol=1e-6)
    learn.export('c.pkl')
    again = load_learner(tmp_path/'c.pkl')
    assert torch.allclose(again.predict(file)[2], preds[3], atol=1e-6)
    assert torch.allclose(again.get_preds(dl=again.dls.test_dl(dls.valid_ds.items))[0], preds, atol=1e-6)

def test_predict_on_data_in_memory(dls, x):
    learn = quiet(class_learner(dls, tiny(), n_out=10, stats=STATS))
    with torch.no_grad(): want = learn.model.eval()(x[:1]).softmax(-1)[0]
    assert torch.allclose(learn.predict(x[0])[-1], want, atol=1e-6)

@pytest.mark.parametrize('kwargs,words', [
    (dict(stats='recorded'), "stats='recorded' .*the encoder does not state"), (dict(stats='imagenet'), "stats='imagenet' is not known"),
    (dict(stats=([.5]*3,[.2]*3)), 'stats=.* has 3 entries for pictures of 1 channels'), (dict(n_out=None), 'n_out=None .*the loaders have none that tell the number of classes')])
def test_one_line_for_what_is_wrong(dls, kwargs, words):
    with pytest.raises(ValueError, match=words) as e: class_learner(dls, tiny(), **(dict(n_out=10, stats=STATS)|kwargs))
    assert '\n' not in str(e.value)

def test_grey_pictures_for_a_colour_encoder_are_refused(dls):
    "Statistics of three channels would spread one channel over three, and nobody would notice"
    with pytest.raises(ValueError, match='1 channels.*takes 3'): class_learner(dls, create_encoder('tiny_resnet', pretrained=False), n_out=10, stats=(.5,.2))

def test_pictures_out_of_range_are_told(dls):
    x,y,_ = digits()
    with pytest.warns(UserWarning, match='expects \\[0, 1\\]'): class_learner(tensor_dls(x[:40]*4-2, y[:40], bs=20), tiny(), n_out=10, stats=STATS)

# A segmenter

@pytest.mark.parametrize('arch,kw', [('resnet18',{}), ('convnext_atto',{}), ('xresnet18',{}), ('tiny_resnet',{}), ('resnet18',dict(small_stem=True))])
def test_body_is_the_encoder_without_its_pooling(arch, kw):
    encoder = create_encoder(arch, pretrained=False, pool_type='avg', **kw).eval()
    pics = torch.rand(2,3,64,64)
    with torch.no_grad(): maps,feats = unet_body(encoder, 64)(pics),encoder(pics)
    assert maps.ndim==4 and maps.shape[1]==feats.shape[1]
    if arch!='convnext_atto': assert torch.allclose(maps.mean((2,3)), feats, atol=1e-5)    # its norm is behind the pooling

def test_body_of_ones_own_network():
    net = nn.Sequential(nn.Conv2d(1,4,3,2,1), nn.ReLU(), nn.Conv2d(4,8,3,2,1))
    assert unet_body(FlatEncoder(net, 'avg'), 32)(torch.rand(1,1,32,32)).shape == (1,8,8,8)

class Crossed(nn.Module):
    "Its layers in the order of definition run, and mean something else"
    def __init__(self):
        super().__init__()
        self.b,self.a,self.pool = nn.Conv2d(1,1,3,padding=1),nn.Conv2d(1,1,3,padding=1),nn.AdaptiveAvgPool2d(1)
    def forward(self, x): return self.pool(self.b(self.a(x).relu())).flatten(1)

def test_no_chain_is_no_body():
    for net in (Crossed(), create_encoder('vit_tiny_patch16_224', pretrained=False, n_in=1, size=32, pool_type='avg')):
        with pytest.raises(ValueError, match='no chain of layers'): unet_body(net, 32)

def test_segmenter_trains_saves_and_exports(tmp_path):
    x = digits(16)[0][:40]
    dls = tensor_dls(x, (x[:,0]>.5).long(), (torch.arange(30), torch.arange(30,40)), bs=10, seed=0)
    encoder = tiny(); was = state(encoder)
    learn = quiet(segment_learner(dls, encoder, n_out=2, stats=STATS, loss_func=CrossEntropyLossFlat(axis=1), path=tmp_path))
    assert [len(g)>0 for g in learn.splitter(learn.model)] == [True]*3
    before = learn.validate()[0]
    learn.fine_tune(3, 1e-2)
    assert learn.validate()[0]<before and same(was, state(encoder))
    preds = learn.get_preds()[0]
    assert preds.shape==(10,2,16,16)
    learn.export('s.pkl')
    assert torch.allclose(load_learner(tmp_path/'s.pkl').get_preds(dl=dls.valid)[0], preds, atol=1e-6)

# ONNX

def test_onnx_answers_as_torch_does(tmp_path, x):
    model = classifier(tiny(norm='group'), 10, STATS).eval()
    with torch.no_grad(): want = model(x)
    assert export_onnx(model, tmp_path/'m.onnx', 8, labels=list('0123456789')) < 1e-4
    session = onnxruntime.InferenceSession(tmp_path/'m.onnx')
    for n in (1,8): assert torch.allclose(torch.from_numpy(session.run(None, {'x': x[:n].numpy()})[0]), want[:n], atol=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map['self_supervised'])['labels'] == list('0123456789')
    assert [f.name for f in tmp_path.iterdir()] == ['m.onnx']      # no second file with the weights
    with torch.no_grad(): assert torch.equal(model(x), want)       # standardised weights and all

def test_baking_a_copy_leaves_the_original(x):
    "`remove_parametrizations` takes the weight off a class that copies share; a target network is such a copy"
    model = create_byol_model(tiny(norm='group'), 8, 4, norm='group').eval()
    with torch.no_grad(): want = model.target(x)
    bake_weights(model.online)
    with torch.no_grad(): assert torch.equal(model.target(x), want)

def test_no_file_beyond_the_tolerance(tmp_path):
    net = nn.Sequential(nn.Conv2d(1,2,3), nn.Flatten())
    with pytest.raises(ValueError, match='tol=-1'): export_onnx(net, tmp_path/'m.onnx', 8, tol=-1)
    assert not list(tmp_path.iterdir())

def test_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(ImportError, match=r"pip install '\.\[onnx\]'"): export_onnx(tiny(), tmp_path/'m.onnx', 8)

# Neighbours

def test_neighbours_are_the_nearest_in_cosine():
    torch.manual_seed(0)
    feats = torch.randn(50,6)
    dist,idxs = retrieval_index(feats).kneighbors(feats[:5], 4)
    for factor in 2.**80,2.**-40: assert np.array_equal(retrieval_index(feats*factor).kneighbors(feats[:5]*factor, 4)[1], idxs)
    sims = nn.functional.normalize(feats[:5]) @ nn.functional.normalize(feats).T
    assert torch.equal(torch.from_numpy(idxs), sims.topk(4).indices) and torch.allclose(1-torch.from_numpy(dist).float(), sims.topk(4).values, atol=1e-5)

def test_features_that_hold_nan_are_not_indexed():
    feats = torch.randn(50,6); feats[3,0] = float('nan')
    with pytest.raises(ValueError, match='feats must be finite, and 1 of 50 rows hold NaN or inf') as e: retrieval_index(feats)
    assert '\n' not in str(e.value)

# Older checkpoints

class Payload:
    def __reduce__(self): return os.mkdir, ('ran',)

def test_nothing_in_an_old_file_is_run(tmp_path, monkeypatch):
    "Row 28"
    monkeypatch.chdir(tmp_path)
    torch.save(dict(model={'encoder.0.weight': Payload()}, opt={}), 'bad.pth')
    (tmp_path/'old.pth').write_bytes(pickle.dumps({'encoder.0.weight': Payload()}, protocol=2))
    for f in ('bad.pth','old.pth'):
        with pytest.raises(ValueError, match="holds no plain weights.*mkdir") as e: load_old(f, tiny())
        assert '\n' not in str(e.value)
    assert not (tmp_path/'ran').exists()

@pytest.fixture(scope='module')
def old_resnet():
    "A model as the older library built it on torchvision's ResNet-18, by fastai's own `create_body`"
    import torchvision
    from fastai.layers import AdaptiveConcatPool2d, Flatten
    from fastai.vision.learner import create_body
    from self_supervised.layers import create_mlp_module
    torch.manual_seed(0)
    encoder = nn.Sequential(*create_body(torchvision.models.resnet18(), 1, False), AdaptiveConcatPool2d(), Flatten())
    heads = {k: create_mlp_module(n, 32, 16, bn=True, bias_out=True) for k,n in (('projector',1024), ('predictor',16))}
    model = nn.ModuleDict(dict(encoder=encoder, **heads))
    model.encoder(torch.rand(4,1,32,32))
    return model.eval()

def test_old_checkpoint_of_learn_save_answers_as_it_did(tmp_path, old_resnet):
    "With the optimizer's state: fastai's list, NumPy's numbers. fastai pools maximum first, timm average first"
    from fastai.learner import Learner
    learn = quiet(Learner(tensor_dls(torch.rand(4,1,32,32), bs=2), old_resnet, loss_func=lambda p: p, path=tmp_path))
    learn.create_opt()
    learn.opt.set_hypers(lr=[np.float64(.1)])    # what a schedule leaves there
    file = learn.save('old')
    model = load_old(file, create_byol_model(create_encoder('resnet18', pretrained=False, n_in=1), 32, 16, bias_out=True)).eval()
    pics = torch.rand(3,1,64,64)     # a last map of 2×2: on one pixel the maximum is the average
    with torch.no_grad():
        want = old_resnet.predictor(old_resnet.projector(old_resnet.encoder(pics)))
        assert torch.allclose(model(pics, pics)[0], want, atol=1e-5)
        assert torch.allclose(model.project(pics)[0], old_resnet.projector(old_resnet.encoder(pics)), atol=1e-5)

def test_old_names_of_timm_and_xresnet_load(tmp_path, x):
    for arch in ('resnet10t','xresnet18'):
        encoder = create_encoder(arch, pretrained=False, n_in=1).eval()
        torch.save(encoder.state_dict(), tmp_path/'e.pth')
        torch.save({f'module.encoder.{k}':v for k,v in encoder.state_dict().items()}, tmp_path/'m.pth')
        pics = torch.rand(2,1,32,32)
        for f in ('e.pth','m.pth'): assert torch.equal(embed(load_old(tmp_path/f, create_encoder(arch, pretrained=False, n_in=1)), pics)[0], embed(encoder, pics)[0])

def test_missing_bias_is_named(tmp_path, old_resnet):
    torch.save(old_resnet.state_dict(), tmp_path/'m.pth')
    model = create_byol_model(create_encoder('resnet18', pretrained=False, n_in=1), 32, 16); was = state(model)
    with pytest.raises(ValueError, match='bias_out=True'): load_old(tmp_path/'m.pth', model)
    assert same(was, state(model))

@pytest.mark.parametrize('start', ['file','published','old'])
def test_pretraining_starts_from_weights_that_are_there(tmp_path, start):
    "`pretrained=True` without a network: timm reads the weights of the name from a file instead"
    encoder = create_encoder('resnet10t', pretrained=False, n_in=1, pool_type='avg').eval()
    save_encoder(encoder, tmp_path/'e.safetensors', stats=STATS)
    torch.save(encoder.state_dict(), tmp_path/'e.pth')
    net = dict(file      = lambda: load_encoder(tmp_path/'e.safetensors'),
               published = lambda: create_encoder('resnet10t', pretrained=True, n_in=1, pool_type='avg', pretrained_cfg_overlay=dict(file=str(tmp_path/'e.safetensors'), num_classes=0, input_size=(1,32,32))),
               old       = lambda: load_old(tmp_path/'e.pth', create_encoder('resnet10t', pretrained=False, n_in=1, pool_type='avg')))[start]()
    assert same(state(encoder), state(net))
    x,_,_ = digits(16)
    learn = quiet(byol_learner(tensor_dls(x[:32], bs=16), create_byol_model(net, 8, 4), get_byol_aug_pipelines(16, jitter=False, bw=False, stats=STATS)))
    learn.fit(1, 1e-3)
    assert not same(state(encoder), state(learn.model.encoder)) and all(v.isfinite().all() for v in state(learn.model).values())

def test_a_segmenter_is_copied_after_training():
    "fastai's hooks keep a part of the last pass, and torch copies no tensor with a graph: export_onnx failed where the data had no validation part"
    net = segmenter(create_encoder('tiny_resnet', pretrained=False, n_in=1, widths=(8,16)), 2, 16, stats=None)
    x = torch.rand(2, 1, 16, 16)
    net(x).sum().backward()
    torch.testing.assert_close(copy_without_hooks(net).eval()(x), net.eval()(x))
