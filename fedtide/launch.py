"""How one process of ours starts another: with the same packages, and without code of the current
folder, where a bundle may lie."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_OURS = str(Path(__file__).resolve().parent.parent)


def module_command(module: str, *words: str, python: str | None = None) -> list[str]:
    """`python -m MODULE WORDS`; of this interpreter, if no other is named."""
    return [python or sys.executable, "-P", "-m", module, *words]


def module_environment(**more: str) -> dict[str, str]:
    """Ours and `more`, for a child of this interpreter that finds what we find.

    Our own packages come first: beside a user's model, whose folder is on the path while it is
    loaded, there may be a folder `export` or `demo`.
    """
    paths = dict.fromkeys([_OURS, *filter(None, sys.path)])
    return {**os.environ, **more, "PYTHONPATH": os.pathsep.join(paths)}
