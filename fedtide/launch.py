"""How one process of ours starts another: with the same packages, and without code of the current
folder, where a bundle may lie."""

from __future__ import annotations

import os
import sys


def module_command(module: str, *words: str, python: str | None = None) -> list[str]:
    """`python -m MODULE WORDS`; of this interpreter, if no other is named."""
    return [python or sys.executable, "-P", "-m", module, *words]


def module_environment(**more: str) -> dict[str, str]:
    """Ours and `more`, for a child of this interpreter that finds what we find."""
    path = os.pathsep.join(path for path in sys.path if path)
    return {**os.environ, **more, "PYTHONPATH": path}
