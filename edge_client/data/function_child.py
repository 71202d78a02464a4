"""The process in which a function of the owner's own runs: its arrays go to standard output, all
that it prints to standard error.

One byte: how many arrays; then each as an .npy of version 1.0.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
"""Of <sys/prctl.h>."""
FAILED_EXIT_CODE, UNUSABLE_EXIT_CODE = 3, 4
"""Of a function that is not there or raises, and of one that returns something else than examples;
the traceback has been printed."""


def main(words: list[str]) -> int:
    """Call `FILE.py:NAME` or `MODULE:NAME` (words[0]) with words[1:], and write what it returns."""
    _end_with_the_client()
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    code = FAILED_EXIT_CODE
    try:
        returned = _function(words[0])(*words[1:])
        code = UNUSABLE_EXIT_CODE
        arrays = _arrays(returned)
    except (Exception, KeyboardInterrupt) as exc:  # noqa: BLE001 - is told
        own = [frame for frame in traceback.extract_tb(exc.__traceback__) if _owns(frame.filename)]
        lines = traceback.format_list(own) + traceback.format_exception_only(exc)
        print("".join(lines), file=sys.stderr, end="", flush=True)
        return code
    import numpy as np

    with out:
        out.write(bytes([len(arrays)]))
        for array in arrays:
            np.lib.format.write_array_header_1_0(
                out, np.lib.format.header_data_from_array_1_0(array)
            )
            out.write(array.reshape(-1).view(np.uint8).data)  # numpy's own would seek
    return 0


def _end_with_the_client() -> None:
    """A function that hangs must not outlive who called it (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _function(target: str) -> Callable[..., Any]:
    place, _, name = target.rpartition(":")
    if place.endswith(".py"):
        path = Path(place)
        sys.path.insert(0, str(path.parent))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{place} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(Path(place).name)
    function = getattr(module, name, None)
    if not callable(function):
        raise TypeError(f"{place} has no function {name!r}")
    found: Callable[..., Any] = function
    return found


def _arrays(returned: Any) -> list[Any]:
    import numpy as np

    from fedtide.dataset import Dataset

    if isinstance(returned, Dataset):
        pairs = [returned.training, *([returned.held_out] if returned.held_out else [])]
        parts = [part for pair in pairs for part in pair]
    elif isinstance(returned, tuple | list) and len(returned) == 2:
        parts = list(returned)
    else:
        raise TypeError(f"it returns {type(returned).__name__}, not x and y")
    arrays = [np.ascontiguousarray(part) for part in parts]
    for array in arrays:
        if array.dtype.kind not in "fiub":
            raise TypeError(f"it returns an array of {array.dtype}, not of numbers")
    return arrays


def _owns(filename: str) -> bool:
    return filename != __file__ and not filename.startswith("<frozen")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
