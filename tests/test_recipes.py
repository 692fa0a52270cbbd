"The table of recipes and what it is scaled to"
import pytest

from self_supervised.recipes import byol_recipe, recipes, warmup_cosine

@pytest.mark.parametrize('row', recipes, ids=lambda r: f'{r.data}-{r.opt}-{r.epochs}-{r.bs}')
def test_a_published_row_is_its_own_recipe(row):
    "Its peak is the authors' base*bs/256, and the rule for the momentum leaves it alone; ours follow the length of the run"
    got = byol_recipe(row.epochs, row.bs, row.opt, row.n_items)
    m = 1-40/(row.epochs*row.n_items/row.bs) if row.source=='measured here' else row.m or 0.
    want = [row.lr, row.wd, m, min(row.warmup, row.epochs/4)]
    assert [got.lr, got.wd, got.m or 0., got.warmup] == pytest.approx(want, abs=1e-3)
    if row.opt!='adamw': assert row.lr == pytest.approx(row.base_lr*row.bs/256, abs=1e-5)

def test_learning_rates():
    assert byol_recipe(1000, 4096).lr == .2*16 and byol_recipe(1000, 256, n_items=9469).lr == 2.
    assert byol_recipe(100, 1024, 'adamw').lr == pytest.approx(2*byol_recipe(100, 256, 'adamw').lr, abs=1e-5)

def test_simsiam_has_the_published_step_on_our_loss():
    "The published .1 and 1e-4"
    r = byol_recipe(100, 512, 'simsiam')
    assert (r.lr, r.wd) == (.1/4, 1e-4*4)

def test_warmup_is_a_quarter_of_a_short_run(): assert [byol_recipe(e).warmup for e in (1,8,40,1000)] == [.25,2,10,10]

@pytest.mark.parametrize('kwargs,said', [
    (dict(epochs=0), 'epochs=0 must be above 0'), (dict(epochs=-3), 'epochs=-3 must be above 0'), (dict(epochs=1, bs=0), 'bs=0 must be'),
    (dict(epochs=1, n_items=0), 'n_items=0 must be'), (dict(epochs=1, opt='rmsprop'), "opt='rmsprop' is not known. Choose one of 'lars', 'sgd'")])
def test_a_run_without_a_recipe(kwargs, said):
    with pytest.raises(ValueError, match=said): byol_recipe(**kwargs)

def test_a_warmup_is_shorter_than_the_run():
    with pytest.raises(ValueError, match='warmup_pct=1.0 must be in'): warmup_cosine(1., 1.)

@pytest.mark.parametrize('opt', ['lars','sgd','adamw'])
@pytest.mark.parametrize('n_items', [None, 1_281_167])
def test_a_large_batch_leaves_a_target_that_remembers(opt, n_items):
    "The scaling rule alone gives 0.08 for AdamW at a batch of 4096"
    for bs in (16,256,1024,4096,32768): assert .9<=byol_recipe(100, bs, opt, n_items).m<1

def test_a_target_of_more_pictures_remembers_no_ten_times_less():
    "Across the rows of AdamW: by the scaling rule alone byol-pytorch's 0.99 at batch 16 was 0.92 at 128, and 30,000 pictures had 0.996"
    memory = [1/(1-byol_recipe(100, 128, 'adamw', n).m) for n in (1000,3000,10_000,30_000,50_000,100_000,1_000_000)]
    assert memory[:4]==sorted(memory[:4]) and min(memory[3:])>max(memory)/10
