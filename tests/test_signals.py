"Handlers of signals come and go with a fit: in a main thread, which a notebook under test has not"
import os
import signal
import threading

import fastai.callback.progress  # brings `Learner.no_bar`
import pytest
import torch
from fastai.callback.core import Callback
from fastai.test_utils import synth_learner

from self_supervised.callback.signals import Signals

@pytest.fixture
def interrupt():
    "Ctrl-C as Python has it"
    was = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, was)

def added():
    "A callback with a learner"
    return synth_learner().recorder

def test_a_signal_outside_of_a_fit_is_not_swallowed(interrupt):
    signals = Signals(added())
    signals.listen()
    assert signal.getsignal(signal.SIGINT)==signals._heard
    with pytest.raises(KeyboardInterrupt): signal.raise_signal(signal.SIGINT)
    assert not signals.noted and signal.getsignal(signal.SIGINT) is interrupt

def test_the_first_is_noted_and_the_second_does_not_wait(interrupt):
    class Twice(Callback):
        def before_batch(self):
            signal.raise_signal(signal.SIGINT)
            assert signals.noted==signal.SIGINT and signal.getsignal(signal.SIGINT) is interrupt
            signal.raise_signal(signal.SIGINT)
    learn = synth_learner(cbs=Twice())
    signals = Signals(learn.twice)
    signals.listen()
    with pytest.raises(KeyboardInterrupt), learn.no_bar(): learn.fit(1)
    signals.close()

def test_one_that_is_survived_is_listened_for_again(interrupt):
    signals = Signals(added())
    signals.noted = signal.SIGINT
    with pytest.raises(KeyboardInterrupt): signals.end(signal.SIGINT)
    assert not signals.former
    signal.signal(signal.SIGINT, lambda *_: None)
    signals.end(signal.SIGINT)
    assert not signals.noted and signal.getsignal(signal.SIGINT)==signals._heard
    signals.close()

def test_what_is_ignored_stays_ignored(interrupt):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signals = Signals(added())
    signals.listen()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN and signal.SIGINT not in signals.former
    signals.close()

def test_other_threads_have_no_handlers():
    signals = Signals(added())
    thread = threading.Thread(target=signals.listen)
    thread.start()
    thread.join()
    assert signals.former=={}

def test_a_worker_does_not_answer(interrupt):
    signals = Signals(added())
    signals.listen()
    pid = os.fork()
    if not pid:
        torch.set_num_threads(1)
        signal.raise_signal(signal.SIGINT)
        os._exit(7 if signals.former and not signals.noted else 8)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])==7
    signals.close()
