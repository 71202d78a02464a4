"""The packages that compute what is learned: others give other last bits."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import packages_distributions, version

_MODULES = ("numpy", "onnxruntime")
"""That what is learned depends on, to the last bit."""


@cache  # it reads what is said of every distribution that is installed
def packages() -> dict[str, str]:
    """Versions by distribution: several bring `onnxruntime`, and not the same one."""
    known = packages_distributions()
    names = {name for module in _MODULES for name in known.get(module, ())}
    return {name: version(name) for name in sorted(names)}


def other_packages(recorded: Mapping[str, str]) -> str:
    """What a record was made with and what is here, if that is not the same; else empty."""
    if not recorded or recorded == (here := packages()):  # without learning nothing is recorded
        return ""
    return f"with {_said(recorded, here)}, and here is {_said(here, recorded)}"


def _said(these: Mapping[str, str], others: Mapping[str, str]) -> str:
    return " and ".join(f"{k} {v}" for k, v in these.items() if others.get(k) != v) or "less"
