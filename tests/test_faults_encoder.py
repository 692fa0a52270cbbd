"An encoder knows how its pictures were prepared, and everything asks it; its file can be read, or is not written"
import inspect, json, struct, warnings
from copy import deepcopy
from functools import partial
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import fastai.callback.schedule  # noqa: F401, gives `Learner` its `lr_find`
import numpy as np, pytest, timm, torch
from fastai.callback.core import Callback
from fastai.data.transforms import Normalize, parent_label
from fastai.learner import Learner
from fastcore.script import CliError
from fastai.vision.core import PILImage, imagenet_stats
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader as TorchLoader, Subset, TensorDataset

from self_supervised import layers
from self_supervised.augmentations import NormalizeViews, get_batch_augs
from self_supervised.callback.probe import Probe
from self_supervised.cli.embed import byol_embed, embed_pictures, encoder_settings
from self_supervised.cli import finetune as room
from self_supervised.cli.evaluate import evaluate_pictures, published_protocols
from self_supervised.cli.comparison import features_of_parts
from self_supervised.cli.pretrain import pretrain
from self_supervised.core import warn_once
from self_supervised.data.arrays import tensor_dls
from self_supervised.data.demo import digits
from self_supervised.data.images import image_dls
from self_supervised.data.reading import open_picture
from self_supervised.data.skipped import reading_of
from self_supervised.evaluate.features import effective_rank, embed, knn_accuracy, linear_accuracy, mean_cosine, spread, untrained
from self_supervised.evaluate.labelled import in_memory
from self_supervised.evaluate.protocols import evaluate_encoder, fine_tuned, finetune_eval, linear_bank, linear_eval
from self_supervised.layers import ClipEncoder, FlatEncoder, LayerEncoder, create_encoder
from self_supervised.record import record_of, recorded_stats, remember, views_stats
from self_supervised.transfer.encoder_file import encoder_info, load_encoder, save_encoder
from self_supervised.transfer.finetune import class_learner, classifier, linear_on
from self_supervised.transfer.hub import save_hub_folder
from self_supervised.transfer.legacy import load_old
from self_supervised.transfer.onnx import export_onnx
from self_supervised.transfer.segment import segment_learner, segmenter
from self_supervised.transfer.weights import load_weights
from self_supervised.vision.byol import BYOL, byol_learner, create_byol_model, create_simsiam_model, embeddings, get_byol_aug_pipelines

GREY = dict(flip_p=0., jitter=False, bw=False, blur=False, solarize=False)
STATS = [[.3],[.35]]
X,Y,(TRAIN,TEST) = digits()

def tiny(stats=STATS, n_in=1, **kwargs):
    "A small encoder, with a record unless `stats` is False"
    torch.manual_seed(0)
    net = create_encoder('tiny_resnet', n_in=n_in, pretrained=False, widths=(8,16), **kwargs).eval()
    for b in net.modules():
        if isinstance(b, nn.BatchNorm2d): b.running_mean.normal_(); b.running_var.uniform_(.5, 2)
    if stats is not False: remember(net, stats=stats, n_in=n_in, size=8)
    return net

def learner(stats=STATS, cbs=None, model=None, augs=None, n=64, **kwargs):
    torch.manual_seed(0)
    model = model or create_byol_model(tiny(False), hidden_size=16, projection_size=8)
    augs = augs or get_byol_aug_pipelines(8, stats=stats, **GREY)
    learn = byol_learner(tensor_dls(X[:n+32], Y[:n+32], (range(n), range(n,n+32)), bs=32, seed=0, device='cpu'), model, augs, cbs=cbs, **kwargs)
    learn.remove_cb(learn.progress); learn.logger = lambda *_: None
    return learn

def one_line(e, *words):
    assert '\n' not in str(e.value)
    for o in words: assert o in str(e.value)

# K1: who writes the record

def test_training_records_what_the_views_did():
    "After a fit the live encoder knows statistics, size and channels, as plain values; so does the target's"
    learn = learner()
    learn.fit(1)
    assert learn.model.encoder.meta==dict(stats=STATS, size=8, n_in=1)==learn.model.target.encoder.meta
    json.dumps(learn.model.encoder.meta)

@pytest.mark.parametrize('size,recorded', [(8,8), ((8,12),[8,12]), ((12,12),12)])
def test_the_size_is_that_of_the_views(size, recorded):
    learn = learner(augs=get_byol_aug_pipelines(size, stats=None, **GREY))
    learn.fit(1)
    meta = json.loads(json.dumps(learn.model.encoder.meta))
    assert meta['size']==recorded and meta['stats'] is None

def test_simsiam_records_too():
    learn = learner(model=create_simsiam_model(tiny(False), hidden_size=16, projection_size=8, predictor_size=4))
    learn.fit(1)
    assert learn.model.encoder.meta['stats']==STATS

def test_a_second_fit_with_other_views_records_anew():
    learn = learner()
    learn.fit(1)
    learn.byol.augs = get_byol_aug_pipelines(8, stats=(.5,.25), **GREY)
    learn.fit(1)
    assert learn.model.encoder.meta['stats']==[[.5],[.25]]

def test_lr_find_leaves_the_record():
    "It trains nothing, so published statistics stay"
    encoder = tiny(([.1],[.9]))
    learn = learner(model=create_byol_model(encoder, 16, 8))
    learn.lr_find(num_it=4, show_plot=False)
    assert encoder.meta['stats']==([.1],[.9])

def test_weights_that_are_loaded_into_a_learner_find_its_record(tmp_path):
    "`learn.load` carries no record; the learner has one"
    learn = learner(path=tmp_path)
    learn.fit(1)
    learn.save('m')
    again = learner(path=tmp_path).load('m')
    assert torch.equal(embed(again.model.encoder, X[:40])[0], embed(learn.model.encoder, X[:40])[0])

@pytest.mark.parametrize('create', [create_byol_model, create_simsiam_model])
def test_weights_of_a_run_that_are_loaded_were_not_trained_as_published_ones(create, tmp_path):
    "In a new process the record of the published weights, with which the run had begun, stayed"
    def published(**kwargs): return learner(model=create(tiny(([.1],[.9])), 16, 8), path=tmp_path, **kwargs)
    learn = published()
    learn.fit(1)
    learn.save('m')
    again = published()
    again.lr_find(num_it=4, show_plot=False)
    assert again.model.encoder.meta['stats']==([.1],[.9])
    again.load('m')
    assert again.model.encoder.meta['stats']==STATS
    assert torch.equal(embed(again.model.encoder, X[:40])[0], embed(learn.model.encoder, X[:40])[0])
    if create is create_byol_model: assert torch.equal(embed(again.model.target.encoder, X[:40])[0], embed(learn.model.target.encoder, X[:40])[0])
    ready = published()
    ready.remove_cb(BYOL); ready.add_cb(BYOL())   # the loader brings the views
    ready.load('m'); assert 'stats' not in record_of(ready.model.encoder)

def test_a_resumed_run_records_too(tmp_path):
    "The process that goes on makes its encoder anew"
    from self_supervised.callback.checkpoint import Checkpoint
    class Stop(Callback):
        def after_batch(self):
            if self.training and self.epoch==1: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): learner(cbs=[Checkpoint(tmp_path, every=1), Stop()]).fit(2)
    learn = learner(cbs=[Checkpoint(tmp_path, every=1)])
    learn.fit(2)
    assert learn.model.encoder.meta==dict(stats=STATS, size=8, n_in=1)

def fastai_normalize(): return Normalize.from_stats([.3],[.35], cuda=False)
def torchvision_normalize():
    from torchvision import transforms as T
    return T.Compose([T.RandomHorizontalFlip(), T.Normalize([.3],[.35])])
def torchvision_v2():
    from torchvision.transforms import v2
    return v2.Compose([v2.RandomHorizontalFlip(), v2.Normalize([.3],[.35])])
def kornia_normalize():
    import kornia.augmentation as K
    return nn.Sequential(K.RandomHorizontalFlip(), K.Normalize(torch.tensor([.3]), torch.tensor([.35])))

@pytest.mark.parametrize('make', [lambda: NormalizeViews(.3,.35), lambda: get_batch_augs(8, stats=STATS, **GREY), fastai_normalize,
                                  torchvision_normalize, torchvision_v2, kornia_normalize])
def test_every_kind_of_normalising_pipeline_is_understood(make):
    assert views_stats([make()]*2)==STATS

def test_a_pipeline_that_does_not_normalise_records_that():
    assert views_stats([lambda x: x]*2) is None and views_stats([get_batch_augs(8, stats=None, **GREY)]) is None

def test_views_that_are_normalised_differently_are_named():
    with pytest.warns(UserWarning, match='different statistics'): assert views_stats([NormalizeViews(.3,.35), lambda x: x])==STATS

def test_recorded_numbers_are_those_that_were_written_and_computed_with():
    "0.485, not its float32 neighbour; and in float32 the same bit for bit"
    recorded = views_stats([get_batch_augs(8)])
    assert recorded==[list(o) for o in imagenet_stats]
    assert torch.equal(torch.tensor(recorded[0]), get_batch_augs(8).fs[-1].mean)

# Published weights, without the network

@pytest.mark.parametrize('n_in,stats', [(3,[[.485,.456,.406],[.229,.224,.225]]), (1,[[.449],[.226]])])
def test_published_timm_weights_bring_their_statistics(monkeypatch, n_in, stats):
    make = layers.timm.create_model
    monkeypatch.setattr(layers.timm, 'create_model', lambda *a, pretrained, **kw: make(*a, pretrained=False, **kw))
    meta = record_of(create_encoder('resnet10t', n_in=n_in))
    assert np.allclose(meta['stats'], stats, atol=1e-6) and meta['n_in']==n_in
    assert record_of(create_encoder('resnet10t', pretrained=False))=={}
    assert record_of(create_encoder('resnet10t', layer='layer2'))['n_in']==3   # through the wrapper

def test_published_torchvision_weights_bring_their_statistics(monkeypatch):
    get = layers.torchvision.models.get_model
    monkeypatch.setattr(layers.torchvision.models, 'get_model', lambda name, **kw: get(name, **kw|dict(weights=None)))
    assert record_of(create_encoder('squeezenet1_1'))['stats']==[list(o) for o in imagenet_stats]

# K1: who asks it

CLIP = torch.stack([X[:8]]*2, 2)
wrappers = dict(deepcopy=deepcopy, compiled=partial(torch.compile, backend='eager'), parallel=nn.DataParallel, averaged=AveragedModel,
                flat=FlatEncoder, layer=lambda e: LayerEncoder(e, -1), chain=lambda e: nn.Sequential(e, nn.Identity()),
                model=lambda e: create_byol_model(e, 16, 8))

@pytest.mark.parametrize('wrap', wrappers.values(), ids=wrappers)
def test_a_wrapper_finds_the_record(wrap):
    e = tiny()
    assert recorded_stats(wrap(e))==STATS
    assert torch.equal(embed(wrap(e), X[:8])[0], embed(wrap(e), X[:8], stats=STATS)[0])
    assert not torch.equal(embed(wrap(e), X[:8])[0], embed(wrap(e), X[:8], stats=None)[0])

def test_clips_are_prepared_as_their_frames():
    assert torch.equal(embed(ClipEncoder(tiny()), CLIP)[0], embed(ClipEncoder(tiny()), CLIP, STATS)[0])

def test_a_network_that_normalises_by_itself_is_given_pictures_in_0_1():
    net = classifier(tiny(), 10)
    assert recorded_stats(net) is None
    assert torch.equal(embed(net, X[:8])[0], net.eval()(X[:8]).detach())

def test_the_encoder_of_a_classifier_records_what_that_used():
    assert classifier(tiny(), 10, stats=(.5,.2)).encoder.meta['stats']==[[.5],[.2]]

def test_a_network_of_ones_own_around_an_encoder_is_warned_of():
    "Nothing tells what stands before the part that has a record"
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = tiny()
        def forward(self, x): return self.backbone(x)
    with pytest.warns(UserWarning, match='Mine holds an encoder'): embed(Mine(), X[:4])

IMAGES = (X[:60],Y[:60])
FAST = dict(seeds=(0,), epochs=1, bs=64)
def scores(res): return {k: e.accuracy.all for k,e in res.items()} if isinstance(res, dict) else res.accuracy.all
def weights(net): return torch.cat([p.detach().flatten() for p in net.state_dict().values()])
def dls(): return tensor_dls(X[:40], Y[:40], bs=20, seed=0, device='cpu')
def masks(): return tensor_dls(torch.rand(8,1,32,32, generator=torch.Generator().manual_seed(0)), torch.zeros(8,32,32).long(), bs=4, device='cpu')
def resnet():
    torch.manual_seed(0)
    net = create_encoder('resnet10t', pretrained=False, n_in=1).eval()
    remember(net, stats=STATS)
    return net
def seeded(f):
    torch.manual_seed(0)
    return f()
def hub(stats, folder):
    save_hub_folder(resnet(), folder, **stats)
    return json.loads((folder/'config.json').read_text())

# Every function that embeds, evaluates or classifies: (default, with the stats passed, in [0,1])
asks = dict(
    embed=lambda kw, d: embed(tiny(), X[:40], **kw)[0],
    embed_loader=lambda kw, d: embed(tiny(), dls().train, **kw)[0],
    embeddings=lambda kw, d: torch.cat(embeddings(seeded(lambda: create_byol_model(tiny(), 16, 8)), X[:20], **kw)[:2], 1),
    linear_bank=lambda kw, d: weights(linear_bank(tiny(), *IMAGES, lrs=(.1,), epochs=1, **kw)),
    linear_eval=lambda kw, d: scores(linear_eval(tiny(), (X[TRAIN],Y[TRAIN]), (X[TEST],Y[TEST]), lrs=(.3,), **FAST, **kw)),
    fine_tuned=lambda kw, d: weights(fine_tuned(tiny(), *IMAGES, epochs=1, **kw)),
    finetune_eval=lambda kw, d: scores(finetune_eval(tiny(), (X[TRAIN],Y[TRAIN]), (X[TEST],Y[TEST]), .3, .1, **FAST|dict(epochs=8), **kw)),
    evaluate_encoder=lambda kw, d: evaluate_encoder(tiny(), (X[:300],Y[:300]), IMAGES, seeds=(0,), linear=False, finetune=False, **kw)['rows'],
    classifier=lambda kw, d: seeded(lambda: classifier(tiny(), 10, **kw)).eval()(X[:8]),
    class_learner=lambda kw, d: weights(seeded(lambda: class_learner(dls(), tiny(), n_out=10, **kw)).model),
    segmenter=lambda kw, d: weights(seeded(lambda: segmenter(resnet(), 2, 32, **kw))),
    segment_learner=lambda kw, d: weights(seeded(lambda: segment_learner(masks(), resnet(), 2, loss_func=nn.CrossEntropyLoss(), **kw)).model),
    hub=lambda kw, d: hub(kw, d/str(len(list(d.iterdir())))),
    judge=lambda kw, d: features_of_parts(tiny(), tensor_dls(X[:60], Y[:60], (range(40),range(40,60)), bs=20), **kw)[1][0],
)

def same(a, b): return torch.equal(a, b) if isinstance(a, torch.Tensor) else a==b

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', asks)
def test_the_record_is_used_by_default(name, tmp_path):
    "Equal, bit for bit, to the result with the right statistics passed; other than in [0,1]"
    default,passed,unit = (asks[name](kw, tmp_path) for kw in ({}, dict(stats=STATS), dict(stats=None)))
    assert same(default, passed) and not same(default, unit)

@pytest.mark.parametrize('f', [embed, embeddings, linear_bank, linear_eval, fine_tuned, finetune_eval, evaluate_encoder, classifier, class_learner,
                               segmenter, segment_learner, save_hub_folder, Probe, features_of_parts, published_protocols])
def test_there_is_one_default(f): assert inspect.signature(f).parameters['stats'].default=='recorded'

def test_without_a_record_pictures_stay_in_0_1():
    "In all functions but those that make something to keep, which refuse"
    assert torch.equal(embed(tiny(False), X[:9])[0], embed(tiny(False), X[:9], stats=None)[0])
    assert same(weights(fine_tuned(tiny(False), *IMAGES, epochs=1)), weights(fine_tuned(tiny(False), *IMAGES, epochs=1, stats=None)))
    for f in (lambda: classifier(tiny(False), 10), lambda: class_learner(dls(), tiny(False), 10), lambda: segmenter(tiny(False), 2, 32)):
        with pytest.raises(ValueError, match="stats='recorded' finds no record"): f()

def test_the_probe_sees_what_training_sees():
    "Its 'views' is the same as the record"
    probes = [Probe(n=40, stats=o) for o in ('recorded','views',STATS,None)]
    learn = learner(cbs=probes)
    learn.fit(1)
    a,b,c,d = [p._embed('x', (X[:30],Y[:30]))[0] for p in probes]
    assert torch.equal(a, b) and torch.equal(a, c) and not torch.equal(a, d)
    with pytest.raises(ValueError, match="stats='imagenet'"): Probe(stats='imagenet')

def test_index_and_query_agree_through_a_file(tmp_path):
    "Features of the live encoder and of its file, both without a word about statistics, find each other"
    learn = learner(n=96)
    learn.fit(2)
    file = save_encoder(learn.model.encoder, tmp_path/'e')
    index,query = embed(learn.model.encoder, X[:200])[0],embed(load_encoder(file), X[:200])[0]
    assert torch.equal(index, query) and torch.equal(query, embed(load_encoder(file), X[:200], stats=STATS)[0])
    assert knn_accuracy(index, Y[:200], query, Y[:200], k=1)==1.
    assert encoder_info(file)['stats']==STATS and encoder_info(file)['size']==8 and encoder_info(file)['n_in']==1

def test_what_is_passed_to_save_wins(tmp_path):
    assert encoder_info(save_encoder(tiny(), tmp_path/'e', stats=None))['stats'] is None

def test_an_untrained_twin_is_prepared_alike():
    assert untrained(tiny()).meta==tiny().meta

def test_each_of_several_encoders_has_its_own_record():
    nets = [tiny(),tiny(([.5],[.1]))]
    args = dict(seeds=(0,), linear=False, finetune=False)
    data = (X[:300],Y[:300]),IMAGES
    both = evaluate_encoder(nets, *data, **args|dict(seeds=(0,1)))['rows']['encoder']['kNN 20']['all']
    assert both==[evaluate_encoder(n, *data, stats=s, **args)['rows']['encoder']['kNN 20'] for n,s in zip(nets, (STATS,([.5],[.1])))]

def test_old_weights_are_not_prepared_like_those_they_replaced(tmp_path):
    net = tiny()
    torch.save(net.state_dict(), tmp_path/'old.pth')
    assert 'stats' not in record_of(load_old(tmp_path/'old.pth', net))

def test_onnx_takes_the_record_along(tmp_path):
    import onnxruntime
    export_onnx(tiny(), tmp_path/'e.onnx', 8)
    meta = onnxruntime.InferenceSession(tmp_path/'e.onnx', providers=['CPUExecutionProvider']).get_modelmeta().custom_metadata_map
    assert json.loads(meta['self_supervised'])['stats']==STATS

@pytest.mark.parametrize('wrap,shape', [(ClipEncoder, (10,3,2,12,12)), (lambda e: nn.Sequential(e, nn.Linear(16,4)), (10,3,12,12)),
                                        (lambda e: FlatEncoder(nn.Sequential(e, nn.Linear(16,4))), (10,3,12,12))])
@pytest.mark.parametrize('was', [{}, dict(stats=[[.1]*3,[.1]*3], n_in=3)])
def test_an_encoder_trained_inside_of_another_knows_its_pictures(wrap, shape, was, tmp_path):
    "It kept the record of the weights before, or none, and its file told of none"
    e = create_encoder('tiny_resnet', pretrained=False, widths=(8,))
    remember(e, **was)
    learn = byol_learner(tensor_dls(torch.rand(shape), bs=5), create_byol_model(wrap(e), 8, 4), get_byol_aug_pipelines(12, stats=[[.4]*3,[.2]*3]))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert record_of(e)==dict(stats=[[.4]*3,[.2]*3], size=12, n_in=3)
    x = torch.rand(3, 3, 12, 12)
    read = load_encoder(save_encoder(e, tmp_path/'e.safetensors'))
    for net in e,read: torch.testing.assert_close(embed(net, x)[0], embed(e, (x-.4)/.2, None)[0])

def test_a_loader_that_normalises_is_not_normalised_twice(folder):
    "Where its Normalize acts, which it does not on plain tensors"
    e = tiny([[.3]*3,[.35]*3], n_in=3)
    want = embed(e, image_dls(folder, 16, bs=4, workers=0, device='cpu').train)[0]
    d = image_dls(folder, 16, bs=4, workers=0, device='cpu')
    d.train.after_batch.add(Normalize.from_stats([.3]*3, [.35]*3, cuda=False))
    with pytest.warns(UserWarning, match='normalises its batches'): got = embed(e, d.train)[0]
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(embed(e, d.train, stats=([.3]*3,[.35]*3))[0], want)   # nor where they are passed
    plain = dls()
    plain.train.after_batch.add(fastai_normalize())
    assert torch.equal(embed(tiny(), plain.train)[0], embed(tiny(), X[:40])[0])

def test_pictures_that_are_normalised_already_are_warned_of():
    with pytest.warns(UserWarning, match='The pictures span'): embed(tiny(), (X[:8]-.3)/.35)

# R3

@pytest.mark.parametrize('stats', [(.5,0.), (.5,1e-40), (.5,-1.), (float('nan'),1.), (.5,float('inf')), (.5,), .5, ([.5],[0.]), [], 'imagenet'])
def test_statistics_that_cannot_be_divided_by_are_refused(stats):
    for net in (tiny(), tiny(False), nn.Flatten()):
        with pytest.raises(ValueError, match='stats='): embed(net, X[:4], stats=stats)

@pytest.mark.parametrize('stats', [np.array([[.3],[.35]]), torch.tensor([[.3],[.35]]), (np.float64(.3),np.float32(.35)), (.3,.35)])
def test_statistics_of_any_type_are_taken(stats, tmp_path):
    assert torch.equal(embed(tiny(), X[:4], stats=stats)[0], embed(tiny(), X[:4])[0])
    assert torch.allclose(classifier(tiny(), 10, stats).normalize.mean, torch.tensor(.3))
    assert torch.equal(embed(load_encoder(save_encoder(tiny(), tmp_path/'e', stats=stats)), X[:4])[0], embed(tiny(), X[:4])[0])

# K3: pictures and encoders of any type

@pytest.mark.parametrize('make', [lambda x: x.numpy(), lambda x: x.double(), lambda x: x.double().numpy(), lambda x: (x,), lambda x: [x],
                                  lambda x: [x.numpy()], lambda x: [(x,Y[:8].numpy())], lambda x: (x.numpy(),Y[:8].numpy())])
def test_arrays_and_other_precisions_are_taken(make):
    assert torch.equal(embed(tiny(), make(X[:8]))[0], embed(tiny(), X[:8])[0])

def test_bytes_are_scaled():
    u = (X[:8]*255).round().byte()
    for o in (u, u.numpy()): assert torch.equal(embed(tiny(), o)[0], embed(tiny(), u.float()/255)[0])

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
def test_an_encoder_of_another_precision_is_fed_its_own(dtype):
    f = embed(tiny().to(dtype), X[:8])[0]
    assert f.dtype==torch.float32
    torch.testing.assert_close(f, embed(tiny(), X[:8])[0], rtol=.1, atol=.1)

@pytest.mark.parametrize('x,words', [
    (X[0], 'is one picture'), (X[0].numpy(), 'is one picture'), (torch.rand(3,8,8), 'is one picture'),
    (torch.rand(4,3,8,8), 'takes 1 channels'), (torch.rand(4,8,8,1), 'movedim'), ((X[:4]*255).int(), 'must be uint8'),
    ('cat.jpg', 'is a path'), (Path('cat.jpg'), 'is a path'), (['a.jpg'], 'is a path'), (dict(x=X), 'is no batch of pictures')])
def test_what_is_no_batch_for_this_encoder_is_named(x, words):
    for e in (tiny(), tiny(False), tiny(None)):
        with pytest.raises((ValueError,TypeError)) as err: embed(e, x)
        one_line(err, words)

def test_features_of_parts_of_pictures_are_refused():
    "(c,h,w) through layers that take it: three rows for one picture, or one row for two"
    class Lines(nn.Module):
        def forward(self, x): return x.flatten(0, 1).flatten(1)
    with pytest.raises(ValueError, match='and \\(bs,nf\\) is needed'): embed(Lines(), torch.rand(2,3,4,4))

def test_several_loaders_are_refused():
    with pytest.raises(ValueError, match='holds several loaders'): embed(tiny(), dls())

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    d = tmp_path_factory.mktemp('pictures')
    g = np.random.default_rng(0)
    for c in 'ab':
        (d/c).mkdir()
        for i in range(6): Image.fromarray(g.integers(0, 256, (16,16,3), dtype=np.uint8)).save(d/c/f'{i}.png')
    return d

def from_folder(d): return image_dls(d, 16, label_func=parent_label, bs=4, workers=0, device='cpu')
def from_frame(d):
    import pandas as pd
    files = sorted(d.glob('*/*.png'))
    return image_dls(pd.DataFrame(dict(file=list(map(str, files)), kind=[f.parent.name for f in files])), 16, label_func='kind', column='file', bs=4, workers=0, device='cpu')
def from_tar(d):
    import tarfile
    with tarfile.open(d/'x.tar', 'w') as t:
        for f in sorted(d.glob('*/*.png')):
            for name,data in ((f'{f.parent.name}{f.stem}.png', f.read_bytes()), (f'{f.parent.name}{f.stem}.cls', b'ab'[:1] if f.parent.name=='a' else b'b')):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                t.addfile(info, BytesIO(data))
    return image_dls(d/'x.tar', 16, label_func='cls', bs=4, workers=0, device='cpu')
def from_hf(d):
    import datasets
    files = sorted(d.glob('*/*.png'))
    ds = datasets.Dataset.from_dict(dict(image=list(map(str, files)), label=[f.parent.name for f in files])).cast_column('image', datasets.Image())
    return image_dls(ds, 16, label_func='label', bs=4, workers=0, device='cpu')

kinds = dict(Path=lambda f: f, str=str, PIL=Image.open, PILImage=PILImage.create, numpy=lambda f: np.array(Image.open(f)), bytes=lambda f: f.read_bytes(),
             file=lambda f: f.open('rb'), memory=lambda f: BytesIO(f.read_bytes()), bytearray=lambda f: bytearray(f.read_bytes()),
             view=lambda f: memoryview(f.read_bytes()),
             tensor=lambda f: torch.tensor(np.array(Image.open(f))).permute(2,0,1), floats=lambda f: torch.tensor(np.array(Image.open(f))).permute(2,0,1)/255)

@pytest.mark.parametrize('source', [from_folder, from_frame, from_tar, from_hf])
def test_a_trained_learner_predicts_from_every_kind_of_picture(folder, source):
    "Path, str, PIL, PILImage, numpy, bytes, tensor: whatever it was trained from"
    if source is from_hf: pytest.importorskip('datasets')
    learn = class_learner(source(folder), tiny(([.5]*3,[.2]*3), n_in=3))
    learn.remove_cb(learn.progress)
    files = sorted(folder.glob('*/*.png'))[:3]
    want = learn.model.eval()(torch.stack([torch.tensor(np.array(Image.open(f))).permute(2,0,1)/255 for f in files])).softmax(1)
    for name,make in kinds.items():
        items = [make(f) for f in files]
        torch.testing.assert_close(learn.get_preds(dl=learn.dls.test_dl(items))[0], want.detach(), msg=name)
        torch.testing.assert_close(learn.predict(items[0])[2], want[0].detach(), msg=name)

def test_data_of_pretraining_takes_every_kind_too(folder):
    d = image_dls(folder, 16, bs=4, workers=0, device='cpu')
    f = next(folder.glob('*/*.png'))
    first = [next(iter(d.test_dl([make(f)])))[0] for make in kinds.values()]
    assert all(torch.equal(o, first[0]) for o in first)

# K5: a file that was written can be read

def weight_norm_old(e):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        nn.utils.weight_norm(e[0][0])
    return e
def weight_norm(e):
    nn.utils.parametrizations.weight_norm(e[0][0])
    return e
def spectral_norm(e):
    nn.utils.parametrizations.spectral_norm(e[0][0])
    return e
def spectral_norm_old(e):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        nn.utils.spectral_norm(e[0][0])
    return e
def compiled_inside(e):
    e[1] = torch.compile(e[1], backend='eager')
    return e
def parallel_inside(e):
    e[1] = nn.DataParallel(e[1])
    return e
def strided(e):
    w = e[0][0].weight
    w.data = w.data.permute(1,0,2,3).contiguous().permute(1,0,2,3)
    return e.to(memory_format=torch.channels_last)
ways = dict(compiled=partial(torch.compile, backend='eager'), parallel=nn.DataParallel, averaged=AveragedModel, compiled_inside=compiled_inside,
            parallel_inside=parallel_inside, both=lambda e: nn.DataParallel(torch.compile(e, backend='eager')), weight_norm=weight_norm,
            weight_norm_old=weight_norm_old, spectral_norm=spectral_norm, spectral_norm_old=spectral_norm_old, strided=strided, plain=lambda e: e)

@pytest.mark.parametrize('way', ways)
@pytest.mark.parametrize('norm', [None,'group'])
def test_a_wrapped_encoder_comes_back_from_its_file(way, norm, tmp_path):
    "Same features, same record, without the network at hand; training flags and weights of the original stay"
    if norm and 'norm' in way: pytest.skip('standardised already')
    e = ways[way](tiny(norm=norm))
    want = embed(e, X[:8])[0]
    again = load_encoder(save_encoder(e, tmp_path/'e'))
    torch.testing.assert_close(embed(again, X[:8])[0], want)
    torch.testing.assert_close(embed(e, X[:8])[0], want)
    assert again.meta==tiny().meta

@pytest.mark.parametrize('way', ['compiled','parallel','averaged'])
def test_a_wrapped_network_is_filled_from_a_file(way, tmp_path):
    file = save_encoder(tiny(), tmp_path/'e')
    net = ways[way](create_encoder('tiny_resnet', n_in=1, pretrained=False, widths=(8,16)))
    torch.testing.assert_close(embed(load_encoder(file, encoder=net), X[:8])[0], embed(tiny(), X[:8])[0])

def test_tied_and_half_weights_come_back(tmp_path):
    torch.testing.assert_close(embed(load_encoder(save_encoder(tiny().bfloat16(), tmp_path/'e')), X[:8])[0], embed(tiny(), X[:8])[0], rtol=.1, atol=.1)
    def net():
        tied = nn.Sequential(nn.Flatten(), nn.Linear(64,64), nn.Linear(64,64))
        tied[2].weight = tied[1].weight
        return tied
    own = net()
    assert torch.equal(embed(load_encoder(save_encoder(own, tmp_path/'t'), encoder=net()), X[:8])[0], embed(own, X[:8])[0])

def test_a_changed_network_is_saved_and_named(tmp_path):
    "Its file can be read into a network like it; nothing claims to know how to build it"
    def changed():
        e = tiny()
        e.add_module('more', nn.BatchNorm1d(16))
        return e
    with pytest.warns(UserWarning, match='load_encoder\\(path, encoder=net\\)'): file = save_encoder(changed(), tmp_path/'e')
    with pytest.raises(ValueError, match='does not describe its network'): load_encoder(file)
    assert load_encoder(file, encoder=changed()).meta==tiny().meta

# Changes that leave names and shapes of weights as they are

def made(arch='resnet18', **kw):
    e = create_encoder(arch, pretrained=False, pool_type='avg', **kw).eval()
    for m in e.modules():
        if isinstance(m, nn.BatchNorm2d): m.weight.data.fill_(1)   # timm starts the last of a block at 0
    return e
def no_pooling(e): e.maxpool = nn.Identity()
def no_stride(e): e.conv1.stride = (1,1)
def other_eps(e): [setattr(m, 'eps', .1) for m in e.modules() if isinstance(m, nn.BatchNorm2d)]
def other_act(e): [e.set_submodule(n, nn.SiLU()) for n,m in [*e.named_modules()] if isinstance(m, nn.ReLU)]
def other_pool(e): e.global_pool = layers.PoolFlat('max')
def dilated(e): [vars(m).update(dilation=(2,2), padding=(2,2)) for m in e.layer4.modules() if isinstance(m, nn.Conv2d) and m.kernel_size==(3,3)]
def hooked(e): e.register_forward_hook(lambda m, x, out: nn.functional.normalize(out))
def ceiled(e): e.maxpool.ceil_mode = True

@pytest.mark.parametrize('change', [no_pooling, no_stride, other_eps, other_act, other_pool, dilated, hooked, ceiled])
def test_a_change_without_weights_is_noticed(change, tmp_path):
    "Stem of CIFAR, activations, pooling: the file did not describe them, and features changed on the way through it"
    e = made()
    change(e)
    remember(e, stats=None, size=25)
    state,rng = deepcopy(e.train().state_dict()),torch.get_rng_state()
    e.layer1.eval()
    flags = [m.training for m in e.modules()]
    with pytest.warns(UserWarning, match='returns other features.*load_encoder\\(path, encoder=net\\)'): file = save_encoder(e, tmp_path/'e')
    assert encoder_info(file)['spec'] is None and '\n' not in str(encoder_info(file))
    assert torch.equal(torch.get_rng_state(), rng) and flags==[m.training for m in e.modules()]
    assert all(torch.equal(v, state[k]) for k,v in e.state_dict().items())
    again = made()
    change(again)
    x = torch.rand(2, 3, 25, 25)
    assert torch.equal(embed(load_encoder(file, encoder=again), x)[0], embed(e, x)[0])
    with pytest.raises(ValueError, match='does not describe its network'): load_encoder(file)

@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('kw', [dict(arch='resnet10t'), dict(arch='xresnet18', norm='group'), dict(arch='test_vit', size=32), dict(arch='shufflenet_v2_x0_5'),
                                dict(arch='resnet10t', layer='layer3'), dict(arch='resnet10t', drop_path_rate=.2, small_stem=True)])
def test_an_unchanged_encoder_is_described(kw, dtype, tmp_path, recwarn):
    "In every precision"
    e = made(**kw).to(dtype)
    assert encoder_info(save_encoder(e, tmp_path/'e', size=32))['spec']['arch']==kw['arch']
    assert not [o for o in recwarn if 'describe' in str(o.message)]

@pytest.mark.parametrize('size', [None, np.int64(25), [25,32], (25,25), 3000])
def test_a_changed_encoder_is_noticed_at_any_size(size, tmp_path):
    e = made('resnet10t')
    assert encoder_info(save_encoder(e, tmp_path/'e', size=size))['spec']
    e.maxpool = nn.Identity()
    with pytest.warns(UserWarning, match='returns other features'): save_encoder(e, tmp_path/'e', size=size)

def test_broken_weights_are_kept_with_their_description(tmp_path, recwarn):
    e = tiny()
    e[0][0].weight.data[0] = float('nan')
    assert encoder_info(save_encoder(e, tmp_path/'e'))['spec'] and not recwarn

def test_a_compiled_encoder_is_not_compiled_for_its_file(tmp_path):
    seen = []
    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward
    e = tiny()
    e.compile(backend=backend)
    assert encoder_info(save_encoder(e, tmp_path/'e'))['spec'] and not seen

@pytest.mark.parametrize('arch', ['resnet18','resnet18d','xresnet18'])
@pytest.mark.parametrize('wrap', [lambda e: e, nn.DataParallel])
def test_our_own_surgery_is_described(arch, wrap, tmp_path):
    "Small stem, channels and group norm after `create_encoder`: the file is of the changed network"
    from self_supervised.surgery import adapt_input, shrink_stem, to_group_norm
    first = made(arch)
    e = deepcopy(first)
    shrink_stem(wrap(e))
    adapt_input(wrap(e), 2)
    to_group_norm(wrap(e))
    assert first.spec['small_stem'] is False
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        again = load_encoder(save_encoder(e, tmp_path/'e'))
    assert (again.spec['small_stem'],again.spec['n_in'],again.spec['norm'])==(True,2,'group')
    x = torch.rand(2, 2, 32, 32)
    torch.testing.assert_close(embed(again, x)[0], embed(e, x)[0])
    with pytest.warns(UserWarning, match='create_encoder made any more'): assert encoder_info(save_encoder(to_group_norm(made(arch), 1), tmp_path/'g'))['spec'] is None

@pytest.mark.parametrize('arch,kw', [('xresnet18',dict(act_cls=nn.SiLU)), ('resnet10t',dict(norm_layer=nn.BatchNorm2d)), ('resnet10t',dict(act_layer=partial(nn.ReLU)))])
def test_an_argument_that_is_no_text_does_not_stop_the_save(arch, kw, tmp_path):
    "A class, a function: weights and record are written, the description is not"
    e = made(arch, **kw)
    remember(e, stats=STATS, n_in=3)
    with pytest.warns(UserWarning, match=f'{next(iter(kw))}=.*cannot be written as text. So the file') as w: file = save_encoder(e, tmp_path/'e')
    assert len(w)==1 and encoder_info(file)['spec'] is None and encoder_info(file)['stats']==STATS
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(embed(load_encoder(file, encoder=made(arch, **kw)), x)[0], embed(e, x)[0])

def test_saving_draws_no_random_number(tmp_path):
    torch.manual_seed(1)
    want = torch.rand(1)
    torch.manual_seed(1)
    save_encoder(tiny_made, tmp_path/'e')
    assert torch.equal(torch.rand(1), want)
tiny_made = tiny()

def test_a_bad_save_leaves_the_old_file(tmp_path):
    file = save_encoder(tiny(), tmp_path/'e')
    before = file.read_bytes()
    for bad in (dict(stats=(.5,0.)), dict(size=10**7), dict(stats='imagenet'), dict(n_in='one'), dict(extra=nn.Flatten())):
        with pytest.raises((ValueError,TypeError)) as e: save_encoder(tiny(), file, **bad)
        one_line(e)
        assert file.read_bytes()==before

# R4: files from elsewhere

def with_meta(path, change):
    "Write the file of `tiny()` with its metadata changed"
    data = save_encoder(tiny(), path).read_bytes()
    n, = struct.unpack('<Q', data[:8])
    header = json.loads(data[8:8+n])
    meta = change(json.loads(header['__metadata__']['self_supervised']))
    header['__metadata__']['self_supervised'] = meta if isinstance(meta, str) else json.dumps(meta)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack('<Q', len(text))+text+data[8+n:])
    return path

def spec(**kw): return lambda meta: meta | dict(spec=meta['spec'] | kw)
def top(**kw): return lambda meta: meta | kw
def vit_spec(**kw): return lambda meta: meta | dict(spec=dict(arch='vit_tiny_patch16_224', n_in=1, pool_type='avg', size=32) | kw)
hostile = dict(
    size=top(size=10**7), size_pair=top(size=[10**4,10**4]), size_text=top(size='large'), size_negative=top(size=-1), size_bool=top(size=True),
    size_three=top(size=[8,8,8]), n_in=top(n_in=10**9), n_in_text=top(n_in='3'), stats_zero=top(stats=[[.5],[0]]), stats_text=top(stats='imagenet'),
    stats_number=top(stats=.5), stats_dict=top(stats={'mean': 0}), spec_size=vit_spec(size=10**7), spec_large=vit_spec(size=10**6), spec_size_text=vit_spec(size='x'),
    depth=vit_spec(depth=10**6), deep=vit_spec(depth=10**9), wide=vit_spec(embed_dim=10**6), wider=spec(widths=[10**5,10**5]), channels=spec(n_in=10**6), channels_text=spec(n_in='x'),
    unknown=spec(arch='no_such_net'), number=spec(arch=3), argument=spec(no_such_argument=1), pool=spec(pool_type='no'), long=spec(arch='a'*10**6),
    spec_list=top(spec=['tiny_resnet']), spec_text=top(spec='tiny_resnet'), list=lambda m: [m], text=lambda m: 'x', string=lambda m: '"tiny"', number_meta=lambda m: '3',
    null=lambda m: 'null', nested=lambda m: '['*100_000)

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', hostile)
def test_a_hostile_file_ends_in_one_line(name, tmp_path):
    "With little memory, in little time"
    import resource
    file = with_meta(tmp_path/'e.safetensors', hostile[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError) as e: load_encoder(file)
    one_line(e, 'path=')
    assert len(str(e.value))<1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before<600_000   # kB
    if name.partition('_')[0] in ('size','list','stats'):
        with pytest.raises(ValueError): encoder_info(file)

def test_an_encoder_of_four_channels_is_refused_by_the_commands(folder, tmp_path):
    file = save_encoder(tiny(None, n_in=4), tmp_path/'e')
    with pytest.raises(ValueError) as e: embed_pictures(file, folder, workers=0)
    one_line(e, 'n_in=4')
    with pytest.raises(CliError) as e: byol_embed(str(file), str(folder), out=str(tmp_path/'f.npz'), workers=0)
    one_line(e, 'n_in=4')
    assert not (tmp_path/'f.npz').exists()

def test_commands_use_the_recorded_size_and_channels(tmp_path):
    assert encoder_settings(save_encoder(tiny(), tmp_path/'e'))[1:]==(8,STATS)
    assert encoder_settings(save_encoder(tiny(), tmp_path/'e'), 16)[1]==16

def test_damaged_bytes_never_run_or_hang(tmp_path):
    "Single changed bytes of the header: an error of one line, or a file that loads"
    file = save_encoder(tiny(), tmp_path/'e')
    data = file.read_bytes()
    for i in range(0, 600, 7):
        file.write_bytes(data[:i]+bytes([data[i]^1])+data[i+1:])
        try: load_encoder(file)
        except (ValueError,TypeError) as e: assert '\n' not in str(e)

def _mine(norm):
    class Mine:
        def __init__(self): self.norm = norm
        def __call__(self, x): return self.norm(x)
    return Mine()

@pytest.mark.parametrize('how', ['own class', 'closure', 'partial', 'xtra_tfms'])
def test_a_normalisation_inside_of_a_view_of_your_own_is_recorded(how):
    "A torchvision `Normalize` wherever a user may put it"
    from functools import partial
    from torchvision.transforms import v2
    from torchvision.transforms.functional import normalize
    from self_supervised.record import views_stats
    norm = v2.Normalize([.5,.4,.3], [.2,.2,.1])
    compose = v2.Compose([v2.RandomHorizontalFlip(), norm])
    view = {'own class': _mine(compose), 'closure': lambda x: compose(x), 'partial': partial(normalize, mean=[.5,.4,.3], std=[.2,.2,.1]),
            'xtra_tfms': get_byol_aug_pipelines(16, stats=None, xtra_tfms=norm)[0]}[how]
    assert views_stats([view, view])==[[.5,.4,.3],[.2,.2,.1]]

MOVE,SCALE = .3,.35
def _hidden(aug): return lambda x: (aug(x)-MOVE)/SCALE

def _after(learn):
    "Messages of a fit, and of embedding the pictures it trained on"
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        learn.fit(1)
        embed(learn.model.encoder, X[:8])
    return [str(o.message) for o in seen]

def test_a_normalisation_that_nothing_states_is_not_recorded_as_none():
    "A function that reads globals: its views are seen, and the record stays empty, also one that was written before"
    learn = learner(augs=[_hidden(o) for o in get_byol_aug_pipelines(8, stats=None, **GREY)])
    assert any('nothing tells how they were normalised' in o for o in _after(learn))
    assert record_of(learn.model.encoder)==dict(size=8, n_in=1)

def test_ready_views_that_are_normalised_are_named():
    views = [((x-MOVE)/SCALE, (x.flip(-1)-MOVE)/SCALE) for x in X[:64].split(32)]
    from fastai.data.core import DataLoaders
    model = create_byol_model(tiny(False), hidden_size=16, projection_size=8)
    learn = byol_learner(DataLoaders(views, views), model, None)
    learn.remove_cb(learn.progress); learn.logger = lambda *_: None
    assert any('nothing tells how they were normalised' in o for o in _after(learn))

def test_views_in_0_1_are_recorded_as_that():
    learn = learner(augs=get_byol_aug_pipelines(8, stats=None, **GREY))
    assert not any('span' in o for o in _after(learn)) and record_of(learn.model.encoder)['stats'] is None

@pytest.mark.parametrize('stats', [None, (0.,4.)])
def test_data_of_any_range_needs_no_warning(stats):
    learn = learner(augs=get_byol_aug_pipelines(8, stats=stats, clip=False, **GREY))
    learn.dls = tensor_dls(9*X[:64]-4, Y[:64], bs=32, device='cpu')
    with warnings.catch_warnings():
        warnings.filterwarnings('error', '.*span.*')
        learn.fit(1)
        embed(learn.model.encoder, 9*X[:8]-4)

def test_two_normalisations_of_one_view_are_recorded_together_and_named():
    view = get_batch_augs(8, stats=STATS, xtra_tfms=NormalizeViews(.5,.25), resize_scale=(1.,1.), resize_ratio=(1.,1.), flip_p=0, jitter=False,
                          bw=False, blur=False, solarize=False)
    with pytest.warns(UserWarning, match='normalised 2 times'): mean,std = views_stats([view])
    torch.testing.assert_close((X[:4]-mean[0])/std[0], view(X[:4]), atol=1e-5, rtol=1e-5)

@pytest.mark.parametrize('stats', [STATS, None])
@pytest.mark.parametrize('scale, fix', [(255, 'Divide them by 255'), (1/255, 'Divide by 255 once')])
def test_bytes_as_floats_and_a_second_division_are_told_apart(stats, scale, fix):
    with pytest.warns(UserWarning, match=fix): embed(tiny(stats), X[:40]*scale)
    learn = learner()
    learn.dls = tensor_dls(X[:64]*scale, Y[:64], bs=32, device='cpu')
    with pytest.warns(UserWarning, match=fix): learn.fit(1)

@pytest.mark.parametrize('how', [dict(shuffle=True), dict(drop_last=True), dict(shuffle=True, drop_last=True)])
def test_a_torch_loader_is_read_in_order_and_to_its_end(how):
    "Features belong to the pictures of the data set, whatever the loader does in training"
    from torch.utils.data import DataLoader, TensorDataset
    feats,labels = embed(tiny(), DataLoader(TensorDataset(X[:67], Y[:67]), 16, **how))
    torch.testing.assert_close(feats, embed(tiny(), X[:67])[0])
    assert torch.equal(labels, Y[:67].long())

def test_a_sampler_of_your_own_is_kept():
    from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset
    dl = DataLoader(TensorDataset(X[:64], Y[:64]), 16, sampler=SubsetRandomSampler([3,5,7]))
    assert sorted(embed(tiny(), dl)[1].tolist())==sorted(Y[[3,5,7]].tolist())

def test_a_loader_class_of_your_own_is_left_as_it_is():
    from torch.utils.data import DataLoader, TensorDataset
    class Bytes(DataLoader):
        def __iter__(self): return ((x/255,) for x, in super().__iter__())
    assert torch.allclose(embed(tiny(), Bytes(TensorDataset(255*X[:64]), 16, drop_last=True))[0], embed(tiny(), X[:64])[0], atol=1e-5)

def test_a_normalisation_held_beside_its_inverse_is_the_one_recorded():
    from torchvision.transforms import v2
    class Held(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm,self.denorm = v2.Normalize([.3],[.35]),v2.Normalize([-.3/.35],[1/.35])
    assert views_stats([Held()]*2)==STATS

def test_unclipped_crops_overshoot_without_an_alarm():
    augs = get_byol_aug_pipelines(8, stats=None, clip=False, **GREY)
    learn = learner(augs=augs)
    learn.dls = tensor_dls((X[:64]>.5).float(), Y[:64], bs=32, device='cpu')
    assert not any('nothing tells' in o for o in _after(learn)) and record_of(learn.model.encoder)['stats'] is None

# Data, hooks, wrappers and weights that a call took in silence for others

def test_pictures_and_labels_that_do_not_belong_together_are_refused():
    "The shorter one cut the other at a batch; a third tensor was dropped"
    for n in (256,40,599):
        with pytest.raises(ValueError, match=f'y has {n} labels for the 600 rows of x'): embed(tiny(), (X[:600],Y[:n]))
    with pytest.raises(ValueError, match='dl of 3 parts is no pair'): embed(tiny(), (X[:9],X[:9],X[:9]))

class InPlace(nn.Module):
    "Normalises its input in place"
    def __init__(self):
        super().__init__()
        self.net = tiny(False)
    def forward(self, x): return self.net(x.sub_(.5).mul_(2))

@pytest.mark.parametrize('kind', [lambda x: x, lambda x: x.numpy(), lambda x: (x,), lambda x: [x]])
def test_embed_leaves_the_pictures_as_they_are(kind):
    x = X[:8].clone()
    want = embed(InPlace(), kind(x), None)[0]
    assert torch.equal(x, X[:8]) and torch.equal(embed(InPlace(), kind(x), None)[0], want)

def test_an_encoder_wrapped_for_several_processes_embeds_without_them(tmp_path):
    "Its wrapper sends buffers to the others, which may be elsewhere"
    import torch.distributed as dist
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        e = nn.parallel.DistributedDataParallel(tiny())
        e.forward = lambda *_: pytest.fail('asks the other processes')
        torch.testing.assert_close(embed(e, X[:8])[0], embed(tiny(), X[:8])[0])
    finally: dist.destroy_process_group()

def test_a_network_of_timm_without_a_record_is_named():
    "Its weights may be published ones, which were trained on normalised pictures"
    net = layers.timm.create_model('test_resnet', num_classes=0)
    with pytest.warns(UserWarning, match='has no record of how .* pass stats=\\(\\(0.5, 0.5, 0.5\\)'): embed(net, torch.rand(2,3,32,32))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        embed(net, torch.rand(2,3,32,32), stats=None)
        embed(create_encoder('test_resnet', pretrained=False), torch.rand(2,3,32,32))

def stem_of_cifar(e): e.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
def compiled_block(e): e.layer2 = torch.compile(e.layer2, backend='eager')

@pytest.mark.parametrize('change', [no_pooling, no_stride, other_eps, other_act, other_pool, dilated, ceiled, compiled_block])
@pytest.mark.parametrize('wrap', [lambda e: e, nn.DataParallel])
def test_the_untrained_network_has_the_changes_of_the_encoder(change, wrap):
    "It was the one that the description tells"
    from fastai.torch_core import no_random
    e = made()
    change(e)
    with no_random(3): want = create_encoder('resnet18', pretrained=False, pool_type='avg')
    change(want)
    x = torch.rand(2, 3, 65, 65)
    torch.testing.assert_close(embed(untrained(wrap(e), 3), x)[0], embed(want, x)[0])

def test_layers_of_ones_own_are_untrained_too():
    e = made()
    stem_of_cifar(e)
    e.maxpool = nn.Identity()
    u = untrained(e)
    assert u.conv1.weight.shape==e.conv1.weight.shape and u(torch.rand(2,3,32,32)).shape==(2,512)
    assert not any(torch.equal(p, q) for p,q in zip(u.parameters(), e.parameters()) if p.ndim>1)
    assert torch.equal(u.conv1.weight, untrained(e).conv1.weight)

def test_weights_that_cannot_be_made_anew_are_named():
    with pytest.warns(UserWarning, match='was changed after create_encoder made it'): u = untrained(weight_norm(tiny()))
    assert torch.equal(u[0][0].weight, untrained(tiny())[0][0].weight)

RGB = [[.4,.5,.6],[.2,.25,.3]]

@pytest.mark.parametrize('n_in,stats', [(1,[[.5],[.25]]), (4,[[.5],[.25]]), (3,RGB)])
@pytest.mark.parametrize('how', ['adapt_input','wrapped','load_weights'])
def test_the_record_follows_the_channels(how, n_in, stats, tmp_path):
    "It kept the channels and statistics of before: no file could be embedded with, or one with other statistics"
    from self_supervised.surgery import adapt_input
    e = tiny(RGB, n_in=3)
    file = save_encoder(e, tmp_path/'rgb')
    if how=='load_weights': e = load_weights(file, tiny(False, n_in=n_in))
    else: adapt_input(nn.DataParallel(e) if how=='wrapped' else e, n_in)
    assert record_of(e)['n_in']==n_in and np.allclose(record_of(e)['stats'], stats)
    again = load_encoder(save_encoder(e, tmp_path/'e'))
    assert encoder_settings(tmp_path/'e')[0]['n_in']==n_in and embed(again, torch.rand(2,n_in,8,8))[0].shape==(2,32)

def filled(seed, **kw):
    e = tiny(False, **kw)
    torch.manual_seed(seed)
    for p in e.parameters(): nn.init.normal_(p)
    return e

@pytest.mark.parametrize('names,taken,named', [
    (('depth','rgb'), 0, True), (('rgb','depth'), 0, True), (('encoder_k','encoder_q'), 1, False), (('key_encoder','encoder'), 1, False),
    (('model_ema','model'), 1, False), (('semantic','momentum_net'), 0, False), (('backbone','backbone_avg'), 0, False)])
def test_of_two_networks_of_a_file_the_choice_is_named(names, taken, named, tmp_path):
    "Unless one of them is known to follow the other"
    nets = [filled(i) for i in range(2)]
    torch.save(nn.ModuleDict(dict(zip(names, nets))).state_dict(), tmp_path/'two.pth')
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        e = load_weights(tmp_path/'two.pth', tiny(False))
    assert torch.equal(e[0][0].weight, nets[taken][0][0].weight)
    assert any('holds several networks that fit' in str(o.message) for o in seen)==named

def test_one_network_under_two_names_is_no_choice(tmp_path, recwarn):
    e = filled(0)
    torch.save(nn.ModuleDict(dict(backbone=e, module=nn.ModuleDict(dict(backbone=e)))).state_dict(), tmp_path/'one.pth')
    load_weights(tmp_path/'one.pth', tiny(False))
    assert not [o for o in recwarn if 'several networks' in str(o.message)]

def test_a_part_of_a_deeper_network_is_not_loaded(tmp_path):
    "Its first layers have all weights of a shallower one; a classifier behind it is left out as ever"
    torch.save(create_encoder('tiny_resnet', n_in=1, pretrained=False, widths=(8,16,32)).state_dict(), tmp_path/'deep.pth')
    with pytest.raises(ValueError, match='differ, e.g. .3.'): load_weights(tmp_path/'deep.pth', tiny(False))
    whole = nn.Sequential(*filled(1).children(), nn.Linear(32, 10))
    torch.save(whole.state_dict(), tmp_path/'classifier.pth')
    assert torch.equal(load_weights(tmp_path/'classifier.pth', tiny(False))[0][0].weight, whole[0][0].weight)

class Placed(nn.Module):
    "Position embeddings (1,h,w,c) before its convolution, as SAM"
    def __init__(self, h, w):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.ones(1,h,w,6))
        self.conv = nn.Conv2d(3,6,4,4)
    def forward(self, x): return (self.conv(x).permute(0,2,3,1)+self.pos_embed).mean((1,2))

def test_only_the_first_convolution_is_fitted_to_channels(tmp_path):
    torch.save(Placed(8,8).state_dict(), tmp_path/'sam.pth')
    with pytest.raises(ValueError, match="differ, e.g. 'pos_embed'"): load_weights(tmp_path/'sam.pth', Placed(4,8))

def test_weights_are_loaded_into_encoders(tmp_path):
    "A whole model would keep the record of its former weights"
    torch.save(create_byol_model(tiny(), 16, 8).state_dict(), tmp_path/'m.pth')
    with pytest.raises(TypeError, match='Pass its .encoder'): load_weights(tmp_path/'m.pth', create_byol_model(tiny(), 16, 8))

@pytest.mark.parametrize('wrap', [nn.DataParallel, partial(torch.compile, backend='eager')])
def test_old_weights_fill_wrapped_networks(wrap, tmp_path):
    torch.save(filled(2).state_dict(), tmp_path/'old.pth')
    e = tiny(False)
    assert type(load_old(tmp_path/'old.pth', wrap(e))) is type(wrap(e)) and torch.equal(e[0][0].weight, filled(2)[0][0].weight)
    torch.save(create_byol_model(filled(3), 16, 8).state_dict(), tmp_path/'model.pth')
    model = create_byol_model(tiny(False), 16, 8)
    torch.save({k: v for k,v in create_byol_model(filled(3), 16, 8).online.state_dict().items()} |
               {f'predictor.{k}': v for k,v in model.predictor.state_dict().items()}, tmp_path/'model.pth')
    load_old(tmp_path/'model.pth', nn.DataParallel(model))
    assert torch.equal(model.target[0][0][0].weight, filled(3)[0][0].weight)

def test_loading_draws_no_random_number(tmp_path):
    file = save_encoder(tiny(), tmp_path/'e')
    torch.manual_seed(1)
    want = torch.rand(1)
    torch.manual_seed(1)
    load_encoder(file)
    assert torch.equal(torch.rand(1), want)

def test_a_network_may_have_an_attribute_called_online(tmp_path):
    e = tiny(False)
    e.online = True
    assert embed(e, X[:4])[0].shape==(4,32) and classifier(e, 3, None)(X[:4]).shape==(4,3)
    save_encoder(e, tmp_path/'e')

# Hooks that change an output

def unit_length(m, inputs, out): return nn.functional.normalize(out)

def test_a_hook_that_changes_the_output_is_copied(tmp_path):
    "The target, the classifier and the exported file computed another function in silence; hooks that look on are not copied"
    import onnxruntime
    e,seen = tiny(),[]
    e.register_forward_hook(unit_length)
    want = embed(e, X[:8])[0]
    assert torch.allclose(want.norm(dim=1), torch.ones(8))
    for net in (create_byol_model(e, 16, 8).target.encoder, classifier(e, 3).encoder, untrained(e)):
        torch.testing.assert_close(embed(net, X[:8])[0].norm(dim=1), torch.ones(8))
    torch.testing.assert_close(embed(classifier(e, 3).encoder, X[:8])[0], want)
    export_onnx(e, tmp_path/'e.onnx', 8)
    out, = onnxruntime.InferenceSession(tmp_path/'e.onnx').run(None, {'x': ((X[:8]-.3)/.35).numpy()})
    torch.testing.assert_close(torch.tensor(out), want, atol=1e-5, rtol=1e-5)
    e = tiny()
    e.register_forward_hook(lambda *_: seen.append(1))
    target = create_byol_model(e, 16, 8).target
    seen.clear()
    target(X[:4])
    assert not seen

# Half precision

def test_classifiers_and_segmenters_of_half_precision_encoders():
    "They ended in the first batch, or were told that the network is no chain of layers"
    c = classifier(tiny().bfloat16(), 10).eval()
    torch.testing.assert_close(c(X[:4]), c.float()(X[:4]))
    assert c.encoder[0][0].weight.dtype==torch.float32
    e = resnet().bfloat16()
    assert segmenter(e, 2, 32)(torch.rand(2,1,32,32)).shape==(2,2,32,32) and next(e.parameters()).dtype==torch.bfloat16
    from self_supervised.transfer.segment import unet_body
    assert unet_body(e, 64)(torch.rand(2,1,64,64).bfloat16()).shape==(2,512,2,2)

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_a_hub_folder_of_another_precision(dtype, tmp_path):
    "It was told that timm cannot build the network"
    save_hub_folder(resnet().to(dtype), tmp_path/'hub', size=32)
    net = layers.timm.create_model(f'local-dir:{tmp_path/"hub"}', pretrained=True)
    torch.testing.assert_close(embed(net, torch.ones(2,1,32,32), None)[0], embed(resnet(), torch.ones(2,1,32,32), None)[0], rtol=.1, atol=.1)

def test_a_card_of_your_own_stays(tmp_path):
    (tmp_path/'hub').mkdir()
    (tmp_path/'hub/README.md').write_text('mine')
    save_hub_folder(resnet(), tmp_path/'hub', size=32)
    assert (tmp_path/'hub/README.md').read_text()=='mine' and (tmp_path/'hub/config.json').exists()

# Labels

def masked(value, dtype=torch.long, **kwargs):
    y = torch.zeros(8,32,32, dtype=dtype)
    y[:,0] = value
    d = tensor_dls(torch.rand(8,1,32,32, generator=torch.Generator().manual_seed(0)), y, bs=4, device='cpu')
    learn = segment_learner(d, tiny(), 2, **kwargs)
    learn.remove_cb(learn.progress)
    learn.logger = lambda *_: None
    return learn

def test_masks_find_their_loss():
    "The default compared the columns of the picture with its classes"
    learn = masked(1)
    learn.fit(1)
    assert np.isfinite(learn.recorder.losses[-1]) and learn.loss_func.axis==1

@pytest.mark.parametrize('value', [255,2])
def test_classes_that_the_model_does_not_have_are_named(value):
    "On a GPU such a label ends the process; fastai's loss can leave them out"
    from fastai.losses import CrossEntropyLossFlat
    with pytest.raises(ValueError, match=f'labels hold \\[{value}\\].*axis=1, ignore_index={value}') as e: masked(value)
    one_line(e, 'n_out=2')
    learn = masked(value, loss_func=CrossEntropyLossFlat(axis=1, ignore_index=value))
    learn.fit(1)
    assert np.isfinite(learn.recorder.losses[-1])
    d = tensor_dls(X[:40], Y[:40]+1, bs=40, device='cpu')
    with pytest.raises(ValueError, match='labels hold \\[10\\].*from 0 to 9, pass n_out=11') as e: class_learner(d, tiny(), 10)
    one_line(e)
    class_learner(d, tiny(), 11)

def test_several_labels_per_picture_start_no_linear_head():
    from fastai.losses import BCEWithLogitsLossFlat
    from self_supervised.transfer.finetune import start_head
    d = tensor_dls(X[:40], torch.rand(40,3).round(), bs=20, device='cpu')
    with pytest.raises(ValueError, match='must be \\(n,\\)') as e: start_head(class_learner(d, tiny(), 3, loss_func=BCEWithLogitsLossFlat()))
    one_line(e)

@pytest.mark.parametrize('make', [lambda: tiny(pool_type=False), lambda: create_encoder('resnet10t', pretrained=False, n_in=1, pool_type=False)])
def test_a_classifier_of_maps_is_refused(make):
    with pytest.raises(ValueError, match='the classifier takes vectors \\(bs,nf\\). Pass create_encoder\\(net\\)') as e: classifier(make(), 10, None)
    one_line(e)

@pytest.mark.parametrize('kind', ['random','in order'])
def test_a_batch_sampler_of_torch_is_read_in_order_and_to_its_end(kind):
    "It was passed for a whole loader's options, and dropped the last pictures"
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset
    data = TensorDataset(X[:67], Y[:67])
    order = RandomSampler(data) if kind=='random' else SequentialSampler(data)
    feats,labels = embed(tiny(), DataLoader(data, batch_sampler=BatchSampler(order, 16, drop_last=True)))
    torch.testing.assert_close(feats, embed(tiny(), X[:67])[0])
    assert torch.equal(labels, Y[:67].long())

def test_the_body_of_a_wrapped_network_is_that_of_the_network():
    "It was empty"
    from self_supervised.transfer.segment import unet_body
    x = torch.rand(2,1,64,64)
    torch.testing.assert_close(unet_body(nn.DataParallel(tiny()), 64)(x), unet_body(tiny(), 64)(x))
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = resnet()
        def forward(self, x): return self.backbone(x)
    with pytest.raises(ValueError, match='no chain of layers') as e: unet_body(Mine(), 64)
    one_line(e)

def test_a_flattened_map_is_as_wide_as_at_the_recorded_size():
    net = nn.Sequential(nn.Conv2d(1,4,3,2), nn.ReLU(), nn.Flatten())
    remember(net, stats=STATS, size=8, n_in=1)
    assert class_learner(dls(), net, 10).model(X[:4]).shape==(4,10)
    assert classifier(ClipEncoder(tiny()), 3)(CLIP).shape==(8,3)

# ONNX

def test_the_file_for_onnx_tells_the_size_it_takes(tmp_path):
    import onnxruntime
    export_onnx(tiny(), tmp_path/'e.onnx', (16,24))
    meta = onnxruntime.InferenceSession(tmp_path/'e.onnx').get_modelmeta().custom_metadata_map
    assert json.loads(meta['self_supervised'])['size']==[16,24] and tiny().meta['size']==8

def test_networks_that_settle_with_their_first_input_are_exported(tmp_path):
    for net in (FlatEncoder(nn.Sequential(nn.Conv2d(1,4,3)), 'avg'), segmenter(tiny(), 2, (32,40))):
        assert export_onnx(net, tmp_path/'e.onnx', (32,40))<1e-3
    class Dict(nn.Conv2d):
        def forward(self, x): return dict(out=super().forward(x))
    with pytest.raises(ValueError, match='returns a dict, and a file has one output') as e: export_onnx(Dict(1,4,3), tmp_path/'d.onnx', 8)
    one_line(e)

@pytest.mark.parametrize('arch', ['resnet10t','mobilenetv3_small_050'])
@pytest.mark.parametrize('size', [32, (24,48)])
def test_timm_prepares_pictures_as_training_did(arch, size, tmp_path):
    "It enlarged them, and cut a part of the middle that the architecture was published with"
    net = create_encoder(arch, pretrained=False).eval()
    remember(net, stats=[list(o) for o in imagenet_stats], size=size, n_in=3)
    cfg = timm.data.resolve_data_config(model=timm.create_model(f"local-dir:{save_hub_folder(net, tmp_path/'hub')}", pretrained=True))
    rng = np.random.default_rng(0)
    im = Image.fromarray(rng.integers(0, 256, (9,11,3), np.uint8)).resize((96,64), Image.Resampling.BICUBIC)
    mean,std = (torch.tensor(o)[:,None,None] for o in imagenet_stats)
    got = timm.data.create_transform(**cfg)(im)*std+mean
    assert (got-open_picture(im, size=size)).abs().mean()<.01, cfg

def test_a_file_that_does_not_tell_its_normalisation_is_named_by_every_call(tmp_path, monkeypatch):
    "The commands took pictures in [0,1] in silence, and so did `embed` after `load_old` and for a file of others"
    monkeypatch.chdir(tmp_path)
    for c in 'ab':
        for i in range(10):
            Path('pics', c).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8,8), 20*i+(c=='b'), np.uint8)).save(f'pics/{c}/{i}.png')
    torch.save(tiny().state_dict(), 'others.pth')
    save_encoder(load_weights('others.pth', tiny(False)), 'e.safetensors', size=8)
    said = 'weights come from others.pth, which does not tell how its pictures were normalised'
    monkeypatch.setattr(room, 'export_classifier', lambda *args: [])
    for call in (lambda: embed_pictures('e.safetensors', 'pics', workers=0), lambda: evaluate_pictures('e.safetensors', 'pics', draws=2, workers=0),
                 lambda: room.finetune('e.safetensors', 'pics', epochs=1, workers=0, progress=False)):
        warn_once.cache_clear()
        with pytest.warns(UserWarning, match=said): call()
    torch.save(tiny().state_dict(), 'old.pth')
    save_file(tiny().state_dict(), 'plain.safetensors')
    for name,net in (('old.pth', load_old('old.pth', tiny())), ('plain.safetensors', load_encoder('plain.safetensors', tiny()))):
        with pytest.warns(UserWarning, match=f'weights come from {name}'): embed(net, X[:4])

@pytest.fixture
def clear(tmp_path, monkeypatch):
    "Transparent pictures, two classes"
    monkeypatch.chdir(tmp_path)
    for i in range(40):
        Path(f'clear/{i%2}').mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (12,12,2), np.uint8), 'LA').save(f'clear/{i%2}/{i:02}.png')

def my_reader(path): return Image.open(path).convert('L')

@pytest.mark.parametrize('keep', [False,True])
def test_how_pictures_were_read_is_recorded_by_training(clear, keep):
    "It was by `byol_pretrain` alone: pictures trained on black were embedded on white, in silence"
    how = dict(size=8, n_in=1, bs=8, workers=None if keep else 0, keep=keep)
    dls = image_dls('clear', **how, ground='black')
    learn = byol_learner(dls, create_byol_model(tiny(False), hidden_size=16, projection_size=8), get_byol_aug_pipelines(8, stats=STATS, **GREY))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    net = learn.model.encoder
    assert net.meta['reading']==dict(ground='#000000') and 'reading' in learn.byol.kept.state_dict()
    save_encoder(net, 'e.safetensors')
    read = embed_pictures('e.safetensors', 'clear', workers=0)[1]
    torch.testing.assert_close(read, embed(net, image_dls('clear', **how, ground='black', valid=0.).train)[0], atol=1e-4, rtol=1e-4)
    said = "was trained on pictures read with ground='#000000', and these are read with ground='white'"
    white = image_dls('clear', **how, label_func=parent_label)
    for call in (lambda: embed(net, white.train), lambda: class_learner(white, net)):
        warn_once.cache_clear()
        with pytest.warns(UserWarning, match=said): call()
    assert class_learner(white, net).model.encoder.meta['reading']=={} and net.meta['reading']==dict(ground='#000000')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        embed(net, image_dls('clear', **how, ground=(0,0,0)).train)

def _loaders(dls):
    "Other loaders of the same pictures"
    yield dls.test_dl(sorted(Path('clear').rglob('*.png')))
    yield TorchLoader(Subset(dls.train_ds, [0,1,2,3]), batch_size=2, collate_fn=lambda b: (torch.stack([o[0] for o in b]),))
    yield TorchLoader(Subset(Subset(dls.train_ds, [0,1,2,3]), [0,1]), batch_size=2, collate_fn=lambda b: (torch.stack([o[0] for o in b]),))

@pytest.mark.parametrize('i', range(3))
def test_a_loader_made_of_another_tells_how_it_reads_pictures(clear, i):
    "`dls.test_dl`, and torch's `Subset`: pictures trained on black were embedded on white, in silence"
    how = dict(size=8, n_in=1, bs=2, workers=0, label_func=parent_label)
    net = tiny()
    remember(net, reading=dict(ground='#000000'))
    white,black = ([*_loaders(image_dls('clear', **how, ground=o))][i] for o in ('white','black'))
    warn_once.cache_clear()
    with pytest.warns(UserWarning, match="read with ground='white'"): embed(net, white)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        embed(net, black)
    assert reading_of(black)==dict(ground='#000000')

@pytest.fixture
def normalising(clear):
    "Loaders that normalise, as those of fastai's examples do, and the same without"
    def dls(): return image_dls('clear', 8, n_in=1, bs=10, workers=0, label_func=parent_label, valid=.3, seed=1, device='cpu')
    with_it = dls()
    with_it.add_tfms([Normalize.from_stats([.4],[.2], cuda=False)], 'after_batch')
    return with_it,dls()

def _recording(net):
    "Note the pictures that a network sees"
    seen = []
    net.register_forward_pre_hook(lambda m, a: seen.append(a[0].clone()))
    return seen

def test_pictures_that_the_loader_normalises_are_not_normalised_again(normalising):
    "A `Probe` and `evaluate_encoder` did, in silence: they passed the recorded statistics on as if they were yours"
    dls,raw = normalising
    model = create_byol_model(tiny(([.4],[.2])), hidden_size=16, projection_size=8)
    seen = _recording(model.encoder)
    def pictures(f):
        seen.clear()
        warn_once.cache_clear()
        f()
        return torch.cat(seen)
    probe = Probe(dls.train, dls.valid)
    probe.learn = SimpleNamespace(model=model)
    again = Probe(raw.train, raw.valid)
    again.learn = probe.learn
    with pytest.warns(UserWarning, match='The loader normalises'): a = pictures(probe.measure)
    torch.testing.assert_close(a, pictures(again.measure))
    with warnings.catch_warnings():   # a batch of it alone does not tell
        warnings.simplefilter('error')
        warn_once.cache_clear()
        probe._look()
    def rows(dls): return evaluate_encoder(model.encoder, dls.train, dls.valid, seeds=(0,), linear=False, finetune=False)
    with pytest.warns(UserWarning, match='The loader normalises'): a = pictures(lambda: rows(dls))
    torch.testing.assert_close(a, pictures(lambda: rows(raw)))

@pytest.mark.parametrize('f', [linear_eval, finetune_eval, evaluate_encoder])
def test_protocols_with_views_refuse_a_loader_that_normalises(normalising, f):
    "Their crops cut normalised pictures to [0,1]"
    dls,raw = normalising
    for parts,name in (((dls.train,raw.valid),'train'), ((raw.train,dls.valid),'test')):
        with pytest.raises(ValueError, match=f'{name} normalises its batches, so they would be normalised twice. Leave Normalize out'): f(tiny(([.4],[.2])), *parts, seeds=(0,))
    with pytest.raises(ValueError, match='normalises'): f(tiny(None), dls.train, dls.valid, seeds=(0,), stats=None)

def test_protocols_take_normalised_pictures_with_views_for_them(normalising):
    dls,_ = normalising
    assert linear_eval(tiny(None), dls.train, dls.valid, lrs=(.1,), seeds=(0,), stats=None, views=lambda x: x, epochs=1).accuracy.mean>=0

@pytest.mark.parametrize('f', [linear_eval, finetune_eval])
def test_protocols_warn_of_pictures_outside_the_unit_range(f):
    "As `embed` does"
    x,y = torch.rand(30,1,8,8)*4-2,torch.arange(30)%2
    warn_once.cache_clear()
    with pytest.warns(UserWarning, match='The pictures span'), pytest.raises(ZeroDivisionError):
        f(tiny(([.4],[.2])), (x,y), (x,y), views=lambda x: 1/0, seeds=(0,), epochs=1)

def test_a_reader_that_training_had_is_missed(clear):
    "Only the command refused to read without it; a reader has its name in another module as well"
    how = dict(size=8, n_in=1, bs=2, workers=0)
    net = tiny()
    remember(net, reading=dict(reader='elsewhere:my_reader'))
    warn_once.cache_clear()
    with pytest.warns(UserWarning, match="reader='elsewhere:my_reader', and these are read with reader=None. Pass that function"):
        embed(net, image_dls('clear', **how).train)
    with pytest.warns(UserWarning, match='reader='): embed(net, image_dls('clear', **how, reader=Image.open).train)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        embed(net, image_dls('clear', **how, reader=my_reader).train)
        remember(net, reading={})
        embed(net, image_dls('clear', **how, reader=my_reader).train)   # of files of another kind
    # trained on, it is an encoder of other pictures
    for other,want in ((image_dls('clear', **how, reader=my_reader), dict(reader=f'{__name__}:my_reader')), (image_dls('clear', **how), {}), (tensor_dls(X[:64], bs=8), None)):
        learn = byol_learner(other, create_byol_model(net, hidden_size=16, projection_size=8), get_byol_aug_pipelines(8, stats=STATS, **GREY))
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
        assert learn.model.encoder.meta.get('reading')==want

def test_a_run_that_starts_from_a_file_reads_as_that_says(clear):
    "It read on white, and its own file said black, which the file it started from was trained on"
    save_encoder(create_encoder('tiny_resnet', pretrained=False, n_in=1), 'black.safetensors', size=8, stats=None, reading=dict(ground='black'))
    how = dict(size=8, bs=8, epochs=1, workers=0, hidden_size=16, projection_size=8, progress=False, init='black.safetensors')
    for asked,want in (({},'black'), (dict(ground='white'),'white')):
        learn,_,out = pretrain('clear', f'out_{want}', **how, **asked)
        assert encoder_info(out/'encoder.safetensors')['reading']==dict(ground=want)
        assert learn.dls.train_ds.opener.read.ground==((0,0,0) if want=='black' else (255,255,255))

# Records of weights that came with one

def ready(views=None):
    "A learner on ready views in [0,1], and an encoder whose weights expect normalised pictures"
    from fastai.data.core import DataLoaders
    data = [(x, x.flip(-1)) for x in X[:64].split(32)] if views is None else views
    learn = byol_learner(DataLoaders(data, data), create_byol_model(tiny(STATS), hidden_size=16, projection_size=8), None)
    learn.remove_cb(learn.progress); learn.logger = lambda *_: None
    return learn

@pytest.mark.parametrize('before', [None, 'lr_find', 'validate'])
def test_ready_views_in_0_1_are_recorded_as_that(before, tmp_path):
    "The record of the weights that training began with stayed, and `embed` normalised what training had not"
    learn = ready(); learn.path = tmp_path
    was = dict(record_of(learn.model.encoder))
    assert was['stats']
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        if before=='lr_find': learn.lr_find(num_it=6, show_plot=False)
        if before=='validate': learn.validate()
        assert record_of(learn.model.encoder)==was
        learn.fit(1)
    for net in (learn.model.online, learn.model.target): assert record_of(net.encoder)['stats'] is None

@pytest.mark.parametrize('find', [False,True])
def test_what_a_first_batch_shows_is_recorded_after_a_search(find, tmp_path):
    "`lr_find` had seen the first batch, and recorded nothing"
    learn = learner(augs=get_byol_aug_pipelines(8, stats=None, clip=False, **GREY)); learn.path = tmp_path
    learn.dls = tensor_dls(9*X[:64]-4, Y[:64], bs=32, device='cpu')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        if find: learn.lr_find(num_it=6, show_plot=False); assert 'any_range' not in record_of(learn.model.encoder)
        learn.fit(1)
    assert record_of(learn.model.encoder)['any_range']

def test_the_recorded_size_is_that_of_the_large_views():
    "Whichever comes first"
    augs = get_byol_aug_pipelines(8, stats=None, **GREY)
    small = get_byol_aug_pipelines(4, stats=None, **GREY)
    for a in ([*small,*augs], [*augs,*small]):
        learn = learner(augs=a)
        with warnings.catch_warnings(): warnings.simplefilter('ignore'); learn.fit(1)
        assert record_of(learn.model.encoder)['size']==8

def test_a_loop_of_your_own_hears_that_nothing_is_recorded():
    "`embed` took pictures in [0,1] for views that were normalised, and the other way round; a record that fits needs no warning"
    def said(stats, view, *how):
        model = create_byol_model(tiny(stats), hidden_size=16, projection_size=8)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter('always')
            for _ in range(2): model.loss(view, view.flip(-1))
        return [str(o.message) for o in seen]
    x = X[:8]; normal = (x-MOVE)/SCALE
    for stats,view,words in ((False, normal, 'does not record'), (None, normal, 'records stats=None'), (STATS, x, 'are in [0, 1]')):
        found = said(stats, view)
        assert len(found)==1 and words in found[0] and 'remember(model.encoder, stats=views_stats(augs))' in found[0]
    for stats,view in ((STATS, normal), (None, x), (False, x)): assert not said(stats, view)
    model = create_byol_model(tiny(False), hidden_size=16, projection_size=8).eval()
    with warnings.catch_warnings(): warnings.simplefilter('error'); model.loss(normal, normal)

@pytest.mark.parametrize('clip', [False,True])
def test_pictures_that_the_loader_normalises_are_embedded_alike(folder, clip):
    "Views of any range, without a normalisation of their own: `embed` took pictures in [0,1] as they are"
    stats = [[.3]*3,[.35]*3]
    def dls(): return image_dls(folder, 16, bs=4, workers=0, device='cpu', seed=0)
    d = dls(); d.train.after_batch.add(Normalize.from_stats(*stats, cuda=False))
    model = create_byol_model(tiny(False, 3), hidden_size=16, projection_size=8)
    learn = byol_learner(d, model, get_byol_aug_pipelines(8, stats=None, clip=clip, **GREY))
    learn.remove_cb(learn.progress); learn.logger = lambda *_: None
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn.fit(1)
        if clip: return   # values are lost, which is an alarm of its own
        torch.testing.assert_close(torch.tensor(record_of(model.encoder)['stats']), torch.tensor(stats))
        torch.testing.assert_close(embed(model.encoder, dls().train)[0], embed(model.encoder, d.train)[0])

class Patches(nn.Module):
    "A transformer's way to begin: patches of four by four pixels, and a linear layer on each"
    def __init__(self, n_in=3):
        super().__init__()
        self.norm = nn.LayerNorm(16*n_in)
        self.lin = nn.Linear(16*n_in, 12)
    def forward(self, x): return self.lin(self.norm(nn.functional.unfold(x, 4, stride=4).transpose(1,2))).mean(1)

class Unshuffled(nn.Module):
    def __init__(self, n_in=3):
        super().__init__()
        self.net = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4*n_in, 12, 3, padding=1))
    def forward(self, x): return self.net(x).mean((2,3))

class Recurrent(nn.Module):
    def __init__(self, n_in=3):
        super().__init__()
        self.rnn = nn.GRU(n_in, 20, batch_first=True)
        self.lin = nn.Linear(20, 12)
    def forward(self, x): return self.lin(self.rnn(x.transpose(1,2))[1][-1])

class Alone(nn.GRU):
    "No layer tells the channels of its input"
    def __init__(self, n_in=3): super().__init__(n_in, 12, batch_first=True)
    def forward(self, x): return super().forward(x.transpose(1,2))[1][-1]

@pytest.mark.parametrize('make,shape', [(Patches,(16,16)), (Unshuffled,(16,16)), (Recurrent,(10,)), (Alone,(10,))])
def test_an_encoder_whose_first_layer_has_other_channels_than_the_picture_is_fine_tuned(make, shape, tmp_path):
    x,y = torch.rand(32,3,*shape),torch.arange(32)%2
    dls = tensor_dls(x, y, splits=(range(16),range(16,32)), bs=8)
    model = create_byol_model(make(), 16, 8, n_in=3, size=shape)
    augs = get_byol_aug_pipelines(16) if len(shape)==2 else [lambda x: x+.1*torch.randn_like(x)]*2
    learn = Learner(dls, model, cbs=BYOL(augs))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    e = model.encoder
    classes = class_learner(dls, e, n_out=2)
    with classes.no_bar(), classes.no_logging(): classes.fit(1, 1e-3)
    assert classes.model(x).shape==(32,2)
    want = e.eval()(x if len(shape)==1 else (x-torch.tensor(imagenet_stats[0]).view(3,1,1))/torch.tensor(imagenet_stats[1]).view(3,1,1))
    assert torch.allclose(embed(e, x)[0], want, atol=1e-5)
    tuned = fine_tuned(e, x, y, epochs=1, views=lambda x: x)
    assert tuned(x).shape==(32,2)

def test_a_network_by_name_that_unshuffles_pixels_is_fine_tuned():
    e = create_encoder('tresnet_m', pretrained=False, pool_type='avg')
    remember(e, stats=[list(o) for o in imagenet_stats])
    assert classifier(e, 2)(torch.rand(2,3,64,64)).shape==(2,2)

def test_maps_of_a_network_that_looks_at_patches_are_pooled():
    net = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 7, 3, padding=1))
    assert create_encoder(net, pool_type='avg')(torch.rand(2,3,16,16)).shape==(2,7)
    four = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(16, 7, 3, padding=1))
    assert create_encoder(four, n_in=4, pool_type='avg')(torch.rand(2,4,16,16)).shape==(2,7)

@pytest.mark.parametrize('layer', [None, 'layer3'])
def test_a_file_describes_an_encoder_that_began_with_local_or_hub_weights(tmp_path, layer):
    torch.save(timm.create_model('resnet10t', pretrained=False).state_dict(), tmp_path/'own.pth')
    make = partial(create_encoder, 'resnet10t', pool_type='avg', layer=layer)
    local = make(pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path/'own.pth')))
    of_hub = make(pretrained=False)
    of_hub.spec['arch'] = 'hf-hub:timm/resnet10t.c3_in1k'   # as create_encoder names it when the hub can be reached
    x = torch.rand(2,3,64,64)
    for e in (local, of_hub):
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            again = load_encoder(save_encoder(e, tmp_path/'e.safetensors', stats=None))
        assert torch.allclose(again(x), e.eval()(x), atol=1e-5)

@pytest.mark.parametrize('through_file', [False, True])
def test_layers_cut_from_an_encoder_are_known_to_see_normalised_pictures(tmp_path, through_file):
    e = tiny()
    if through_file: e = load_encoder(save_encoder(e, tmp_path/'e.safetensors'))
    for cut in (nn.Sequential(e[:-1], layers.PoolFlat()), nn.Sequential(*[*e.children()][:-2], layers.PoolFlat())):
        torch.testing.assert_close(embed(cut, X[:4])[0], embed(cut, (X[:4]-.3)/.35, None)[0])
    warn_once.cache_clear()
    single = nn.Sequential(*[m for m in e.modules() if isinstance(m, nn.Conv2d)][:1], layers.PoolFlat())   # is no network with a record
    with pytest.warns(UserWarning, match='layers of one'): embed(single, X[:4])
    remember(e, stats=None)
    warn_once.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        embed(nn.Sequential(e[:-1], layers.PoolFlat()), X[:4])

# K3: types of pictures and labels

def turned(a):
    "The same numbers in an array with a negative stride, as of x[:, ::-1]"
    return np.ascontiguousarray(a[::-1])[::-1]

wide = np.random.default_rng(0).random((24,3,12,12)).astype('f4')
classes = np.arange(24)%2
same_pictures = dict(turned=turned(wide), big_endian=wide.astype('>f4'), double=wide.astype('f8'), with_graph=torch.tensor(wide)*torch.ones(1, requires_grad=True),
                     listed=list(torch.tensor(wide)))
same_classes = dict(uint16=classes.astype('u2'), uint32=classes.astype('u4'), uint64=classes.astype('u8'), bool=classes>0, turned=turned(classes), big_endian=classes.astype('>i8'))

def fine_tuned_on(x, y):
    "The probabilities of a classifier after an epoch of each kind"
    torch.manual_seed(0)
    learn = class_learner(tensor_dls(x, y, splits=(range(16), range(16,24)), bs=8, seed=0, device='cpu'), tiny(([.5]*3,[.2]*3), n_in=3), n_out=2)
    learn.remove_cb(learn.progress)
    with learn.no_logging(): learn.fine_tune(1)
    return learn.get_preds()[0],learn.predict(x[0])[2]

def test_a_classifier_takes_pictures_and_classes_of_every_type():
    want,first = fine_tuned_on(wide, classes)
    for kind,x,y in [*((k, o, classes) for k,o in same_pictures.items()), *((k, wide, o) for k,o in same_classes.items())]:
        got,one = fine_tuned_on(x, y)
        torch.testing.assert_close(got, want, msg=kind)
        torch.testing.assert_close(one, first, msg=kind)

def test_protocols_take_pictures_and_classes_of_every_type():
    encoder = tiny(([.5]*3,[.2]*3), n_in=3)
    test = wide[:8],classes[:8]
    def measured(train):
        how = dict(seeds=(0,), lrs=.1, epochs=1, bs=8)
        linear = linear_eval(encoder, train, test, **how).accuracy.mean
        tuned = finetune_eval(encoder, train, test, fractions=.5, **how)[.5].accuracy.mean
        knn = knn_accuracy(*embed(encoder, in_memory(train)), *embed(encoder, test), k=3)
        return linear,tuned,knn
    want = measured((wide, classes))
    for kind,x in same_pictures.items(): assert measured((x, classes))==pytest.approx(want), kind
    for kind,y in same_classes.items(): assert measured((wide, y))==pytest.approx(want), kind
    assert measured([torch.tensor(wide), torch.tensor(classes)])==pytest.approx(want)   # as `next(iter(loader))` of torch

def test_a_batch_of_a_torch_loader_is_embedded_with_its_labels():
    encoder = tiny(n_in=3)
    batch = next(iter(TorchLoader(TensorDataset(torch.tensor(wide), torch.tensor(classes)), 24)))
    assert isinstance(batch, list)
    want = embed(encoder, (wide, classes))
    for o in batch,[wide, classes]:
        got = embed(encoder, o)
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
    assert embed(encoder, [torch.tensor(wide[:12]), torch.tensor(wide[12:])])[1] is None   # two batches

def test_batches_of_arrays_of_every_layout_are_embedded():
    encoder = tiny(n_in=3)
    want = embed(encoder, (wide, classes))
    for x,y in ((turned(wide), classes), (wide.astype('>f4'), classes.astype('>i8')), (wide, turned(classes))):
        got = embed(encoder, [(x[:12], y[:12]), (x[12:], y[12:])])
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])

# K1: a network of TorchScript keeps no record

@pytest.mark.parametrize('make', [lambda e: torch.jit.trace(e, torch.rand(2,3,12,12)), lambda e: torch.jit.freeze(torch.jit.trace(e, torch.rand(2,3,12,12)))])
def test_a_network_of_torchscript_is_named_and_takes_a_record(make):
    stats = [[.5]*3,[.2]*3]
    encoder = tiny(stats, n_in=3)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')   # torch calls it deprecated
        script = make(encoder)
    want = embed(encoder, wide)[0]
    warn_once.cache_clear()
    with pytest.warns(UserWarning, match='keeps no record of how its pictures were normalised'): embed(script, wide)
    torch.testing.assert_close(embed(script, wide, stats)[0], want)
    remember(script, **record_of(encoder))
    torch.testing.assert_close(embed(script, wide)[0], want)

# R3: features whose squares float32 does not hold

@pytest.mark.parametrize('factor', [2.**80, 2.**-80])
def test_measures_of_features_do_not_depend_on_their_scale(factor):
    "A diverged encoder returns 1e24, which is finite: its directions were taken for none"
    g = torch.Generator().manual_seed(0)
    y = torch.arange(60)%3
    x = torch.randn(60, 5, generator=g)+y[:,None]
    data = x[:40],y[:40],x[40:],y[40:]
    scaled = x[:40]*factor,y[:40],x[40:]*factor,y[40:]
    assert knn_accuracy(*scaled, k=5)==knn_accuracy(*data, k=5)
    assert linear_accuracy(*scaled)==linear_accuracy(*data)
    head,same = linear_on(*data[:2], 3),linear_on(*scaled[:2], 3)   # the start of a classifier
    torch.testing.assert_close(same(scaled[2]), head(data[2]), rtol=1e-3, atol=1e-3)
    for measure in spread,mean_cosine,effective_rank: torch.testing.assert_close(measure(x*factor), measure(x), msg=measure.__name__)
    rows = torch.where(torch.arange(60)[:,None]%2==0, factor, 1.)   # some rows alone
    for measure in spread,mean_cosine: assert torch.equal(measure(x*rows), measure(x))
    assert torch.equal(spread(torch.zeros(3,2)), torch.zeros(()))
