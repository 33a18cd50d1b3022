"""Signals outside the main thread, hang-ups, and which signal counts if there are several."""

import signal
import threading

import pytest

from udaseg.signals import StopSignal


def test_another_thread_leaves_signals_as_they_are():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with StopSignal() as stop:
            seen.append((stop.stop_requested(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_terminal_that_closes_says_so_twice_and_ends_nothing_at_once(first):
    with StopSignal() as stop:
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGHUP)
        assert stop.stop_requested()
    assert stop.number == first


def test_under_nohup_a_closed_terminal_is_no_signal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.stop_requested()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("received", "counts"),
    [
        ((signal.SIGHUP,), signal.SIGHUP),
        ((signal.SIGINT, signal.SIGHUP), signal.SIGINT),
        ((signal.SIGHUP, signal.SIGTERM, signal.SIGINT), signal.SIGTERM),
    ],
)
def test_ranks_agree_on_one_signal_in_a_step_and_between_steps(monkeypatch, received, counts):
    ranks = [StopSignal() for _ in received]
    for rank, number in zip(ranks, received, strict=True):
        rank.number = number
    sums = sum(rank.received() for rank in ranks).tolist()
    monkeypatch.setattr("udaseg.signals.world_size", lambda: 2)
    monkeypatch.setattr("udaseg.signals.all_reduce_max", lambda _: max(received))
    for rank in ranks:
        assert rank.agree(sums)
        assert rank.number == counts
        assert rank.stop_requested()
        assert rank.number == counts
