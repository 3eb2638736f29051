"""A command is stopped by the first signal, and later ones leave its end alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from prefect.exceptions import TerminationSignal

from flows.stopping import one_sigterm, stopped_once

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("first", SIGNALS)
def test_only_the_first_signal_interrupts(first: signal.Signals) -> None:
    cleaned = []

    def work() -> None:
        try:
            os.kill(os.getpid(), first)
        finally:
            for number in SIGNALS:
                os.kill(os.getpid(), number)
                cleaned.append(number)

    with pytest.raises(KeyboardInterrupt), stopped_once():
        work()
    os.kill(os.getpid(), first)  # while Python ends
    assert cleaned == list(SIGNALS)


def test_an_interrupt_that_a_library_turns_into_its_own_error_is_one_again() -> None:
    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt as error:
            raise ValueError("cannot be serialised") from error

    with pytest.raises(KeyboardInterrupt), stopped_once():
        work()
    with pytest.raises(ValueError, match="its own"), stopped_once():
        raise ValueError("its own")


def test_a_job_under_nohup_outlives_its_terminal() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stopped_once():
        os.kill(os.getpid(), signal.SIGHUP)


def test_handlers_come_back_where_nothing_was_stopped() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with stopped_once():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_flow_that_ends_by_sigterm_is_not_disturbed_by_another() -> None:
    def prefects(number: int, frame: object) -> None:
        raise TerminationSignal(number)

    signal.signal(signal.SIGTERM, prefects)
    with pytest.raises(TerminationSignal), one_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    signal.signal(signal.SIGTERM, prefects)
    with one_sigterm():
        pass
    assert signal.getsignal(signal.SIGTERM) is prefects
