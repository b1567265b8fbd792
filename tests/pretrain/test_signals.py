from __future__ import annotations

import os
import signal

import pytest

from pretrain.signals import STOP_SIGNALS, StopFlag


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_each_signal_sets_the_flag_and_handlers_are_restored(number):
    before = signal.getsignal(number)
    with StopFlag() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.reason == signal.Signals(number).name
    assert signal.getsignal(number) == before
