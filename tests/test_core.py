"core: what the checks of arguments take and refuse"
import re

import numpy as np, pytest, torch

from self_supervised.core import check_at_least, check_one_of, check_p, check_stats, check_whole, check_workers, first_line, invalid, per_channel

@pytest.mark.parametrize('check', [
    lambda: check_workers(None),
    lambda: check_workers(0),
    lambda: check_at_least(1, bs=None, size=(1,2)),
    lambda: check_at_least(0, workers=0),
    lambda: check_one_of([None,'group'], norm=None),
    lambda: check_p(True, 'x')])
def test_what_is_right_passes(check): check()

nan = float('nan')

@pytest.mark.parametrize('check,values,words', [
    (check_workers, [10**6], 'workers=1000000 must be 0 to 1024'),
    (lambda o: check_at_least(1, size=o), [(0,1), (1,0), 'x'], 'must be 1 or more'),
    (lambda o: check_whole(1, n=o), [True, 1.5, '2', None], 'whole number'),
    (lambda o: check_p(o, 'x'), [-.1, 1.1, '.5', None, nan], 'probability'),
    (check_stats, [.5, (.5,), (.5,0.), (.5,nan), ('a','b'), ([.5],[1.,0.])], '(mean,std)')])
def test_what_is_wrong_is_refused(check, values, words):
    for o in values:
        with pytest.raises((ValueError,TypeError), match=re.escape(words)): check(o)

def test_none_changes_nothing_and_one_number_is_for_all_channels():
    assert [o.tolist() for o in per_channel(None, 3)]==[[0.],[1.]]
    assert per_channel(([.1,.2],.5), 2)[0].shape==(2,)
    with pytest.raises(ValueError, match='has 2 entries for pictures of 3 channels'): per_channel(([.1,.2],.5), 3)

PAIR = np.array([[.1,.2],[.3,.4]])

@pytest.mark.parametrize('stats', [
    PAIR,
    PAIR[:,::-1].copy()[:,::-1],
    np.broadcast_to(PAIR, (2,2)),
    torch.tensor(PAIR),
    torch.tensor(PAIR).view(2,1,2,1,1).requires_grad_(),
    tuple(torch.tensor(PAIR)),
    map(np.array, PAIR),
    (o for o in PAIR.tolist())], ids='array backwards broadcast tensor shaped tuple map generator'.split())
def test_statistics_of_any_form_are_those_of_a_pair(stats):
    "Whatever their shape, strides or type"
    assert torch.equal(torch.stack(per_channel(stats, 2)), torch.tensor(PAIR).float())

def test_the_first_line_and_the_kind_of_an_error():
    assert first_line(ValueError('a\nb'))=='a' and first_line(KeyError())=='KeyError'
    assert type(invalid('x', 'is bad', 'Pass y', TypeError)) is TypeError
