"evaluate.protocols: what cannot be measured has no accuracy, and one table holds all that can"
import re, warnings
from functools import partial

import pytest, torch
import torch.nn.functional as F
from fastcore.basics import noop
from torch import nn
from torch.utils.data import DataLoader as TorchDL, TensorDataset

from self_supervised.cli.report import as_text
from self_supervised.data.arrays import tensor_dls
from self_supervised.data.demo import digits
from self_supervised.evaluate.features import Pixels, embed, knn_accuracy, untrained
from self_supervised.evaluate.protocols import crop_and_flip, evaluate_encoder, finetune_eval, knn_protocol, linear_bank, linear_eval
from self_supervised.layers import create_encoder

X,Y,(TRN,TST) = digits()
TRAIN,TEST = (X[TRN],Y[TRN]),(X[TST],Y[TST])
N,M = len(TRN),len(TST)
NAN,INF = float('nan'),float('inf')
VIEWS = crop_and_flip(8, resize_scale=(.6,1.), flip_p=0.)   # a mirrored digit is no digit
SHORT = dict(views=VIEWS, epochs=1, bs=128, seeds=(0,))

@pytest.fixture
def net():
    torch.manual_seed(0)
    return create_encoder('tiny_resnet', pretrained=False, n_in=1, widths=(16,32))

def from_files(x, y): return TorchDL(TensorDataset(x, y), batch_size=50)
def in_memory(x, y): return x,y
def spoiled(at, value):
    "The pictures, with one value of one of them exchanged"
    x = X.clone()
    x[at] = value
    return x

class Odd(nn.Module):
    "An encoder that overflows on one picture"
    def __init__(self, net, odd):
        super().__init__()
        self.net = net
        self.odd = odd
        self.spec = net.spec
    def forward(self, x): return self.net(x).masked_fill((x==self.odd).flatten(1).all(1)[:,None], INF)

def refused(words, f, *args, **kwargs):
    with pytest.raises((ValueError,TypeError), match=re.escape(words)): f(*args, **kwargs)

both = pytest.mark.parametrize('f', [partial(linear_eval, **SHORT), partial(finetune_eval, fractions=.1, **SHORT)], ids=['linear','finetune'])

# One picture, feature or label that is not finite would give the accuracy of class 0

@both
@pytest.mark.parametrize('kind', [in_memory, from_files])
def test_a_picture_that_is_not_finite_is_named(net, f, kind):
    ill = spoiled((TRN[3],0,0,0), NAN)
    refused(f'train has NaN or inf in 1 of {N} pictures, e.g. number 3.', f, net, kind(ill[TRN], Y[TRN]), TEST)
    ill = spoiled((TST[7],0,5,5), INF)
    refused(f'test has NaN or inf in 1 of {M} pictures, e.g. number 7.', f, net, TRAIN, kind(ill[TST], Y[TST]))

@both
def test_features_that_are_not_finite_are_counted(net, f):
    rows = 'features of the test pictures must be finite, and {} of {} rows hold NaN or inf'
    refused(rows.format(1, M), f, Odd(net, X[TST[3]]), TRAIN, TEST)
    next(net.parameters()).data.fill_(NAN)
    refused(rows.format(M, M), f, net, TRAIN, TEST)

def test_features_of_augmented_pictures_are_looked_at_too(net):
    words = 'features of the augmented train pictures must be finite, and 1 of 128 rows hold NaN or inf'
    refused(words, linear_bank, Odd(net, X[TRN[3]]), *TRAIN, views=noop, epochs=1, bs=128)

@both
def test_a_rate_that_diverges_has_no_accuracy(net, f):
    refused('lrs=(1e+38,) ends in NaN or inf: training at 1e+38, the best of them', f, net, TRAIN, TEST, lrs=1e38)

# Arguments

@both
@pytest.mark.parametrize('wrong,words', [(dict(lrs=()), 'lrs=() must hold one'), (dict(seeds=()), 'seeds=() must hold one'),
                                         (dict(epochs=0), 'epochs=0 must be 1 or more')])
def test_there_is_something_to_try(net, f, wrong, words): refused(words, f, net, TRAIN, TEST, **wrong)

@both
def test_data_must_be_one_labelled_part(net, f):
    refused('train=DataLoaders holds several loaders. Pass train=dls.train', f, net, tensor_dls(*TRAIN), TEST)
    refused('test=dls.valid', f, net, TRAIN, tensor_dls(*TEST))
    shape = 'must have one label per picture, and they are of shape ({}, 10)'
    refused(f'train {shape.format(N)}', f, net, (X[TRN],F.one_hot(Y[TRN])), TEST)
    refused(f'test {shape.format(M)}', f, net, TRAIN, (X[TST],F.one_hot(Y[TST])))
    refused('test must have a finite number as label of each picture', f, net, TRAIN, (X[TST],Y[TST].float().log().log()))

def test_pictures_alone_are_refused(net):
    refused('train=list must be a labelled loader or a pair (x,y)', linear_eval, net, [X[TRN]], TEST)
    refused('test has no labels', linear_eval, net, TRAIN, TorchDL(X[TST]))

def test_one_fraction_rate_and_seed_may_be_given_as_numbers(net):
    refused('fractions=() must hold one', finetune_eval, net, TRAIN, TEST, fractions=())
    how = dict(views=VIEWS, epochs=1, bs=128)
    one = finetune_eval(net, TRAIN, TEST, fractions=.1, lrs=.1, seeds=0, **how)
    assert one==finetune_eval(net, TRAIN, TEST, fractions=(.1,), lrs=(.1,), seeds=(0,), **how)

# All of them in one table

def few(i): return X[i[::3]],Y[i[::3]]   # a third of the pictures

@pytest.fixture
def loaders():
    dls = tensor_dls(X, Y, (TRN[::3],TST[::3]), bs=64, seed=0, device='cpu')
    return dls.train,dls.valid

@pytest.mark.filterwarnings('ignore')
def test_the_table_has_a_row_per_network_and_a_column_per_protocol(net, loaders):
    "Raw pixels have no layers to fine-tune; weights and batchnorms stay as they were"
    before = {k: v.clone() for k,v in net.state_dict().items()}
    linear,finetune = dict(epochs=2, bs=64, lrs=(.1,1.)),dict(epochs=2, lrs=(.1,), fractions=(.1,))
    res = evaluate_encoder(net, *loaders, views=VIEWS, seeds=(0,1), linear=linear, finetune=finetune)
    rows,chosen = res['rows'],res['chosen']['encoder']
    assert list(rows)==['raw pixels','untrained encoder','encoder'] and '10%' not in rows['raw pixels']
    assert list(rows['encoder'])==['kNN 20','kNN 200','probe','linear','10%']
    assert [len(chosen[o]) for o in ('probe','linear','10%')]==[2]*3
    assert rows['encoder']['kNN 20']==knn_accuracy(*embed(net, few(TRN)), *embed(net, few(TST)), k=20, T=.07)
    assert len(as_text(res).splitlines())==5
    assert all(torch.equal(v, before[k]) for k,v in net.state_dict().items())

def test_several_encoders_share_the_seeds(net, loaders):
    only_features = dict(seeds=(0,1), linear=False, finetune=False)
    one = evaluate_encoder(net, *loaders, **only_features)['rows']['encoder']['kNN 20']
    two = evaluate_encoder([net,untrained(net, 5)], *loaders, **only_features)['rows']['encoder']['kNN 20']['all']
    assert two[0]==one and len(set(two))==2
    refused('must be as many as there are encoders, 2', evaluate_encoder, [net,net], TRAIN, TEST, seeds=(0,))

def test_a_warning_names_network_and_protocol_and_comes_once_for_all_seeds(net, loaders):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter('always')
        evaluate_encoder(net, *loaders, views=VIEWS, seeds=(0,1), linear=dict(epochs=1, bs=64, lrs=(1e-9,1e-8)), finetune=False)
    said = [str(o.message) for o in found]
    for o in ('raw pixels','untrained encoder','encoder'): assert any(m.startswith(f'{o}, linear: lr=1e-0') for m in said), said
    assert len(set(said))==len(said)

def test_settings_with_more_neighbours_than_pictures_are_left_out(): assert knn_protocol(*[torch.eye(3), torch.arange(3)]*2)=={}

def test_a_loader_with_batches_of_its_own_sampler(net):
    "It states no batch size, and single pictures were passed for batches"
    from torch.utils.data import BatchSampler, SequentialSampler
    def batched(x, y): return TorchDL(TensorDataset(x, y), batch_sampler=BatchSampler(SequentialSampler(x), 50, False))
    want,got = (linear_eval(net, kind(*TRAIN), kind(*TEST), lrs=1., **SHORT) for kind in (from_files, batched))
    assert got.accuracy.all==want.accuracy.all

def test_pictures_of_several_sizes_are_named(net):
    from self_supervised.evaluate.labelled import in_memory
    class Sizes(torch.utils.data.Dataset):
        def __len__(self): return 8
        def __getitem__(self, i): return torch.rand(1, 8+4*(i>3), 8),i%2
    mixed = TorchDL(Sizes(), batch_size=4)
    for f,name in ((in_memory,'data'), (partial(linear_eval, net, test=TEST, **SHORT),'train'), (partial(finetune_eval, net, TRAIN, **SHORT),'test')):
        refused(f'{name} has pictures of several shapes, e.g. (1, 8, 8) and (1, 12, 8). Cut them to one size', f, mixed)

def test_rates_in_any_order_and_twice(net):
    "The accuracy of one rate was taken for that of another"
    want = finetune_eval(net, TRAIN, TEST, fractions=.1, lrs=(1e-6,.1,.3), **SHORT)[.1]
    for lrs in ((.1,1e-6,.3), (1e-6,1e-6,.1,.1,.3), [.3,.1,1e-6]):
        got = finetune_eval(net, TRAIN, TEST, fractions=.1, lrs=lrs, **SHORT)[.1]
        assert got.chosen==want.chosen and got.accuracy.all==want.accuracy.all
    for name in ('lrs','fractions'):
        with pytest.raises(TypeError, match=f"{name}='' must be a number"): finetune_eval(net, TRAIN, TEST, **SHORT | {name: (.1,'')})

@pytest.mark.parametrize('both', [None,True])
def test_true_is_the_default_of_a_protocol(net, both, monkeypatch):
    from self_supervised.evaluate import protocols
    for name in ('_by_linear','_by_finetuning'): monkeypatch.setattr(protocols, name, lambda *args, **kw: {'made': protocols.Evaluated(protocols.Accuracy.of([1.]), [])})
    assert 'made' in evaluate_encoder(net, TRAIN, TEST, linear=both, finetune=both, seeds=(0,))['rows']['encoder']

def test_two_loaders_that_number_their_classes_otherwise(net, tmp_path):
    "A class that is missing in the test folder shifted the numbers of all behind it, and the accuracy was that of chance"
    from fastai.data.transforms import parent_label
    from PIL import Image
    from self_supervised.data.images import image_dls
    from self_supervised.evaluate.labelled import labelled_parts
    for part,names in dict(train='ant bee cat', test='bee cat', begin='ant bee').items():
        for name in names.split():
            (tmp_path/part/name).mkdir(parents=True)
            for i in range(9): Image.effect_noise((8,8), 50).save(tmp_path/part/name/f'{i}.png')
    def loader(part): return image_dls(tmp_path/part, 8, n_in=1, label_func=parent_label, valid=0., bs=1, workers=0, device='cpu').train
    said = "test numbers its classes otherwise than train: 0 is 'bee', and 'ant' in train. Make both loaders of one data set"
    quick = dict(linear=False, finetune=False, seeds=(0,))
    for f in (partial(linear_eval, net, **SHORT), partial(finetune_eval, net, **SHORT), partial(evaluate_encoder, net, **quick), partial(labelled_parts, n=20)):
        refused(said, f, loader('train'), loader('test'))
    evaluate_encoder(net, loader('train'), loader('begin'), **quick)   # the numbers agree
    class Folder(TensorDataset): pass
    def torch_loader(classes):
        data = Folder(*TRAIN)
        data.classes = classes
        return TorchDL(torch.utils.data.Subset(data, range(60)), batch_size=30)
    digit = [*'0123456789']
    evaluate_encoder(net, torch_loader(digit), torch_loader(digit), **quick)
    refused("3 is 'three', and '3' in train", evaluate_encoder, net, torch_loader(digit), torch_loader(digit[:3]+['three']), **quick)

def test_few_labels_hold_every_class():
    "A class of two pictures had one held out and none to fine-tune on"
    from self_supervised.evaluate import protocols
    y = torch.tensor([0]*40+[1]*40+[2]*2)
    rest,held = protocols.draw_part(y, .1, 0)
    for fraction in (.01,.1,.5):
        few = protocols._few_of(y, rest, fraction/.9, 0)
        assert set(y[few].tolist())=={0,1,2} and not set(few.tolist()) & set(held.tolist()) and few.equal(few.unique())
    assert len(protocols._few_of(y, rest, .1/.9, 0))==4+4+1

@pytest.mark.parametrize('shape', [(40,), (3,50), (40,50), (3,2,8,40)])
def test_rows_of_tables_series_and_clips_are_compared_with_themselves(shape):
    "The mean of neighbouring rows, series and frames is none of them, and of tables there was none"
    x = torch.rand(9, *shape)
    sides = [min(o, 32) for o in shape[1:]]
    want = x
    for i,side in enumerate(sides, 2):   # one dimension after the other
        want = F.adaptive_avg_pool1d(want.movedim(i, -1).flatten(0, -2)[None], side)[0].unflatten(0, want.movedim(i, -1).shape[:-1]).movedim(-1, i)
    torch.testing.assert_close(Pixels()(x), want.flatten(1))

def test_each_fraction_of_labels_has_a_column(net):
    "0.4 and 0.6 % were both called 0 % and 1 %, and of two that round to one the first was lost"
    tune = dict(fractions=(.1,.104,.005), epochs=1, lrs=(.1,), bs=128)
    table = evaluate_encoder(net, TRAIN, TEST, views=VIEWS, seeds=(0,), linear=False, finetune=tune, stats=None)
    assert list(table['rows']['encoder'])[-3:]==['10%','10.4%','0.5%']
