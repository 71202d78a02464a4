"""A disk that is full for one moment, at any of a device's writes: a short wait, nothing more."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

from edge_client.room import ROOM_MS
from fedtide import failpoints
from fedtide.failpoints import Step
from simulator.faults.fake_learning import fake_bundle
from tests.federation import Federation

SMALL = 500
STEPS: tuple[Step, ...] = ("disk: write", "disk: rename")


@pytest.fixture(autouse=True)
def small_and_silent() -> Iterator[None]:
    with (
        mock.patch("tests.federation.ELEMENTS", SMALL),
        mock.patch("tests.federation.fake_bundle", partial(fake_bundle, SMALL)),
    ):
        yield
    failpoints.listen(None)


class FullOnce:
    """No room at the n-th step that is reached while a device fetches."""

    def __init__(self, step: Step, number: int) -> None:
        self._step, self._left = step, number
        self.armed = False

    def __call__(self, step: Step) -> None:
        if self.armed and step == self._step:
            self._left -= 1
            if self._left == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @property
    def happened(self) -> bool:
        return self._left <= 0


@pytest.mark.parametrize("step", STEPS)
def test_a_download_goes_on_when_there_is_room_again(tmp_path: Path, step: Step) -> None:
    """At the first, second ... write of every blob until none is left to fail."""
    for number in range(1, 100):
        full = FullOnce(step, number)
        failpoints.listen(full)
        federation = Federation(tmp_path / str(number), count=3, cohort_size=1, collect_ms=60_000)
        federation.add("d")
        fetching = federation.devices["d"].session._fetching
        go_on, chunk = fetching._go_on, fetching.chunk

        def armed(method, *args, full=full, **named):  # type: ignore[no-untyped-def]
            full.armed = True
            try:
                return method(*args, **named)
            finally:
                full.armed = False

        began_ms = federation.now_ms
        with (
            mock.patch.object(fetching, "_go_on", partial(armed, go_on)),
            mock.patch.object(fetching, "chunk", partial(armed, chunk)),
        ):
            federation.run(federation.finished)
        assert federation.now_ms - began_ms <= 2 * ROOM_MS, f"{step} number {number}"
        federation.kill_coordinator()
        if not full.happened:
            break
    assert number > 3
