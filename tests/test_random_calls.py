"Public functions with whatever a user may pass: right, or one line of this library's own that says what is wrong"
from collections import Counter

import pytest

from benchmarks.random_calls import attempt, prepare, run, table_of

@pytest.mark.parametrize('first', range(0, 1500, 300))
def test_each_call_is_right_or_refused_in_one_line(first):
    "The first 1,500 of the 100,000 of `benchmarks/random_calls.py`"
    rows = run(300, first=first)
    assert not {k: row['smallest'] for k,row in table_of(rows).items() if row['fault']}
    counts = Counter(r[3] for r in rows)
    assert counts['right']>60 and counts['refused']>60

def test_a_call_is_the_same_each_time(tmp_path, monkeypatch):
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert [attempt(i)[:3] for i in (3,14)]==[attempt(i)[:3] for i in (3,14)]
