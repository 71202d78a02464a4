"""Tests leave the process as they found it."""

from __future__ import annotations

import signal


def test_one_sets_a_handler() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def test_and_the_next_does_not_have_it() -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
