"""The coordinator's process, until its loop runs."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from coordinator import runner
from fedtide.errors import DataError
from tests.federation import Federation


def test_a_start_that_hangs_can_be_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nobody looks into the inbox, a signal has to do what it does by itself."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]

    def opened(*_: object) -> None:
        assert [signal.getsignal(number) for number in numbers] == before
        raise DataError("it was opened")

    federation = Federation(tmp_path)
    monkeypatch.setattr(runner, "_open_store", opened)
    with pytest.raises(DataError, match="it was opened"):
        runner._run(federation.config, None, federation.bundle, federation.store)
