"""What a series of stop signals asks for."""

from __future__ import annotations

import signal

from ciuic_dist.loop.signals import ECHO, STOP_SIGNALS, Requests, StopRequest


def test_a_signal_passed_on_by_several_is_one_request_and_a_later_one_is_another() -> None:
    requests = Requests()
    assert not requests.made
    assert [requests.hear(at) for at in (10.0, 10.1, 10.0 + ECHO, 10.1 + ECHO, 20.0)] == [False] * 3 + [True] * 2
    assert requests.made


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(each) for each in STOP_SIGNALS]
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1
