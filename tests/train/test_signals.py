"""SIGTERM and SIGINT: the first is a flag, a second Ctrl-C is at once, and the old handlers come back."""

from __future__ import annotations

import signal

import pytest

from seq2seq_jax.errors import Terminated
from seq2seq_jax.train.signals import StopSignal

NUMBERS = (signal.SIGTERM, signal.SIGINT)


def test_without_a_signal_nothing_is_asked_for():
    with StopSignal() as stop:
        assert not stop.requested
        stop.check("anywhere")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_a_flag_until_it_is_checked(number, code):
    with StopSignal() as stop:
        signal.raise_signal(number)
        assert stop.requested
        with pytest.raises(Terminated, match="at step 7") as ended:
            stop.check("at step 7")
    assert ended.value.exit_code == code


def test_a_second_ctrl_c_interrupts_at_once_but_a_second_sigterm_does_not():
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.number == signal.SIGTERM
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.number == signal.SIGINT


def test_the_old_handlers_come_back_even_after_an_error():
    before = [signal.getsignal(number) for number in NUMBERS]
    with pytest.raises(RuntimeError), StopSignal():
        assert [signal.getsignal(number) for number in NUMBERS] != before
        raise RuntimeError
    assert [signal.getsignal(number) for number in NUMBERS] == before
