"""Signals outside the main thread."""

import signal
import threading

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
