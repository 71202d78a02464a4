"""A Python function of the owner's own, run in a process of its own: it may fail, hang or crash,
and its memory is given back when it ends."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import selectors
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Hashable
from itertools import count
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_client.data import Loaded, Problems, file_stamp
from edge_client.data.arrays import array_text, from_arrays
from edge_client.data.collector import check_room
from edge_client.data.config import DataConfig
from edge_client.data.function_child import FAILED_EXIT_CODE, UNUSABLE_EXIT_CODE
from fedtide.dataset import Dataset, fit_examples
from fedtide.errors import DataError
from fedtide.launch import module_command, module_environment
from fedtide.manifest import Manifest

AnyArray = NDArray[np.generic]
_log = logging.getLogger(__name__)
_LINES_MAX, _LINE_CHARS_MAX = 40, 500
"""Of what the function prints: its last lines go to the log."""
_END_S = 2.0
"""For a process to end that has nothing more to say."""
_NAMES = ("x", "y", "x_held_out", "y_held_out")
_RETURNS = "it has to return x and y, two arrays of numbers"
_TOLD = {
    FAILED_EXIT_CODE: ("failed", "correct it, or data.function, which names it; the log has more"),
    UNUSABLE_EXIT_CODE: ("returns what cannot be used", _RETURNS),
}


class _Failure(NamedTuple):
    what: str
    hint: str
    says_why: bool = False
    """The last line that it has printed."""


class UserFunction:
    """See the module."""

    def __init__(self, config: DataConfig) -> None:
        assert config.function is not None
        self._config, self._function = config, config.function
        self._file, _, _ = str(self._function).rpartition(":")
        self._calls = count()

    def stamp(self) -> Hashable:
        """Of the function's file and what it reads; where that is not known, always another."""
        stamps: list[Hashable] = []
        if self._file.endswith(".py"):
            stamps.append(file_stamp(Path(self._file), "function"))
        path = self._config.path
        stamps.append(next(self._calls) if path is None else file_stamp(path))
        return tuple(stamps)

    def describe(self, problems: Problems, rows_max: int | None = None) -> dict[str, Any]:
        """What it returns."""
        del problems, rows_max  # arrays are taken whole or not at all
        arrays = self._called().items()
        return {"arrays": {name: array_text(a.shape, a.dtype) for name, a in arrays}}

    def load(self, manifest: Manifest, problems: Problems) -> Loaded:
        """Call it, and check what it returns."""
        del problems  # arrays are taken whole or not at all
        arrays, config = self._called(), self._config
        pairs = []
        for names in (_NAMES[:2], _NAMES[2:])[: len(arrays) // 2]:
            x, y = (arrays[name] for name in names)
            pairs.append(
                fit_examples(
                    x, y, manifest, config.where, names=(names[0], names[1]), divisor=config.divisor
                )
            )
        return from_arrays(Dataset(pairs[0], pairs[1] if len(pairs) > 1 else None), config)

    def _called(self) -> dict[str, AnyArray]:
        """What the function returned: two arrays, or four.

        Raises:
            DataError: it failed, took too long, or returned something else.
        """
        words = [str(self._function)] + ([str(self._config.path)] if self._config.path else [])
        until_s = time.monotonic() + self._config.time_ms_max / 1000
        try:
            child = subprocess.Popen(
                module_command("edge_client.data.function_child", *words),
                env=module_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as exc:
            raise DataError(f"{self._config.where} cannot be started: {exc}") from exc
        assert child.stdout is not None
        assert child.stderr is not None
        printed: deque[str] = deque(maxlen=_LINES_MAX)
        listener = threading.Thread(target=_listen, args=(child.stderr, printed), daemon=True)
        listener.start()
        try:
            arrays, failure = self._answer(child, child.stdout, until_s)
        finally:
            _end(child)
            listener.join(_END_S)
            child.stdout.close()
        lines = list(printed.copy())  # what it has started may still print
        for line in lines:
            _log.log(logging.ERROR if failure else logging.INFO, "%s: %s", self._config.where, line)
        if failure:
            last = f": {lines[-1]}" if lines and failure.says_why else ""
            raise DataError(f"{self._config.where} {failure.what}{last}", hint=failure.hint)
        return arrays

    def _answer(
        self, child: subprocess.Popen[bytes], stdout: IO[bytes], until_s: float
    ) -> tuple[dict[str, AnyArray], _Failure | None]:
        """The arrays, and what went wrong.

        Raises:
            DataError: they are too many for the memory.
        """
        arrays: dict[str, AnyArray] = {}
        try:
            with contextlib.suppress(EOFError):
                arrays = _read_arrays(_Pipe(stdout, until_s), self._config.where)
            code = child.wait(max(_END_S, until_s - time.monotonic()))
        except (TimeoutError, subprocess.TimeoutExpired):
            limit = f"{self._config.time_ms_max:,} ms"
            return {}, _Failure(f"does not end within {limit}", "raise data.time_ms_max")
        except ValueError as exc:
            return {}, _Failure(f"returns what cannot be used: {exc}", _RETURNS)
        return arrays, None if arrays and not code else _ending(code)


class _Pipe:
    """What a process writes, as a file that is read until a deadline."""

    def __init__(self, stream: IO[bytes], until_s: float) -> None:
        self._fd, self._until_s = stream.fileno(), until_s
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._fd, selectors.EVENT_READ)

    def readinto(self, view: memoryview) -> None:
        """Fill it.

        Raises:
            EOFError: the process has ended before.
            TimeoutError: it did not in time.
        """
        while view:
            if not self._selector.select(max(0.0, self._until_s - time.monotonic())):
                raise TimeoutError
            got = os.readv(self._fd, [view])
            if not got:
                raise EOFError
            view = view[got:]

    def read(self, size: int) -> bytes:
        """So many bytes."""
        buffer = bytearray(size)
        self.readinto(memoryview(buffer))
        return bytes(buffer)

    def close(self) -> None:
        """The process may go on."""
        self._selector.close()


def _read_arrays(pipe: _Pipe, source: str) -> dict[str, AnyArray]:
    try:
        arrays: dict[str, AnyArray] = {}
        for name in _NAMES[: pipe.read(1)[0]]:
            np.lib.format.read_magic(pipe)  # type: ignore[arg-type]
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(pipe)  # type: ignore[arg-type]
            if fortran or dtype.hasobject:
                raise ValueError(f"{name} holds {dtype}")
            check_room(math.prod(shape) * dtype.itemsize, source)
            arrays[name] = np.zeros(shape, dtype)
            pipe.readinto(arrays[name].reshape(-1).view(np.uint8).data)
        return arrays
    finally:
        pipe.close()


def _listen(stream: IO[bytes], printed: deque[str]) -> None:
    with stream:
        while line := stream.readline(_LINE_CHARS_MAX):
            printed.append(line.decode(errors="replace").rstrip())


def _end(child: subprocess.Popen[bytes]) -> None:
    """If it has not ended: with whatever it started."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _ending(code: int) -> _Failure:
    if code in _TOLD:
        return _Failure(*_TOLD[code], says_why=True)
    if code < 0:
        hint = "call it by hand to see why; signal 9 is often a lack of memory"
        return _Failure(f"ended its process (signal {-code})", hint)
    return _Failure(f"ended its process (exit code {code})", "it has to return, not to exit")
