"A user's way in one test: a folder without labels → pretrain → ten labels a class → a better classifier than from scratch → ONNX → the same answers"
import io
from contextlib import redirect_stdout

import onnxruntime, pytest, torch
from PIL import Image
from fastai.vision.all import Callback, CancelValidException, parent_label

from self_supervised.core import seed_everything
from self_supervised.data.demo import digits
from self_supervised.data.images import image_dls
from self_supervised.evaluate.features import label_draws
from self_supervised.layers import create_encoder
from self_supervised.cli.pretrain import DIGITS, DIGIT_VIEWS, pretrain
from self_supervised.transfer.encoder_file import encoder_info, load_encoder
from self_supervised.transfer.finetune import class_learner
from self_supervised.transfer.onnx import export_onnx

X,Y,(TRAIN,TEST) = digits()

def write(idxs, folder, labelled):
    "Pictures as PNG files, in a folder per label or all in one"
    for i in idxs.tolist():
        f = folder/(str(Y[i].item()) if labelled else '.')/f'{i:04}.png'
        f.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((X[i,0]*255).round().byte().numpy()).save(f)

class Unseen(Callback):
    "The test pictures are looked at once, after training"
    def before_validate(self): raise CancelValidException

def learner(folder, encoder, seed, **kwargs):
    seed_everything(seed)
    dls = image_dls(folder, n_in=1, label_func=parent_label, valid='test', bs=20, workers=0, seed=seed)
    encoder = encoder or create_encoder('tiny_resnet', n_in=1, pretrained=False)
    learn = class_learner(dls, encoder, stats=None, **kwargs)
    learn.remove_cb(learn.progress); learn.logger = lambda *_: None
    return learn

def fine_tuned(folder, encoder, seed):
    learn = learner(folder, encoder, seed)
    learn.fine_tune(19, 3e-2, cbs=Unseen())
    return learn

def from_scratch(folder, seed):
    "The epochs and the rate that were best for it on pictures held out from training (nbs/tutorial.journey.ipynb): twice its rival's epochs"
    learn = learner(folder, None, seed)
    learn.unfreeze()
    learn.fit_one_cycle(40, 1e-2, cbs=Unseen())
    return learn

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "Pretrained on 1,201 pictures in one folder, none of them labelled"
    d = tmp_path_factory.mktemp('journey')
    write(TRAIN, d/'unlabelled', labelled=False)
    with redirect_stdout(io.StringIO()): _,feats,out = pretrain(d/'unlabelled', d/'runs/byol', workers=0, views=DIGIT_VIEWS, **DIGITS)
    assert feats['trained encoder'][0] == (None,None)      # it knew no labels
    return d,out

def test_from_a_folder_to_a_classifier(run):
    d,out = run
    encoder = load_encoder(out/'encoder.safetensors')
    assert encoder_info(out/'encoder.safetensors')['size'] == 8

    page = (out/'report.html').read_text()
    for said in ('No labels', 'effective rank', 'Nearest neighbours', 'rotate_deg', 'data:image/png;base64,'): assert said in page, said

    write(TEST, d/'test', labelled=True)
    gains = []
    for draw,idxs in enumerate(label_draws(Y[TRAIN], n=10, draws=3)):
        folder = d/f'labels-{draw}'
        write(TRAIN[idxs], folder/'train', labelled=True)
        (folder/'test').symlink_to(d/'test')
        learn = fine_tuned(folder, encoder, draw)
        assert (len(learn.dls.train_ds),len(learn.dls.valid_ds)) == (100,len(TEST))
        gains.append(learn.validate()[1]-from_scratch(folder, draw).validate()[1])
    gains = torch.tensor(gains)
    print(f'better than from scratch by {gains.mean():.3f} ± {gains.std():.3f}')
    assert gains.mean() > .01 and gains.mean() > 2*gains.std()/len(gains)**.5   # stated: .023 ± .005 over five draws

    learn.export(d/'classifier.pkl')
    assert export_onnx(learn.model, d/'classifier.onnx', 8, labels=list(learn.dls.vocab)) < 1e-4
    answers = onnxruntime.InferenceSession(d/'classifier.onnx').run(None, {'x': torch.stack([x for x,_ in learn.dls.valid_ds]).numpy()})[0]
    preds,_ = learn.get_preds()
    assert torch.equal(torch.from_numpy(answers).argmax(1), preds.argmax(1))
    assert learn.predict(learn.dls.valid_ds.items[0])[0] == learn.dls.vocab[answers[0].argmax()]
