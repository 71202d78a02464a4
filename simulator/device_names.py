"""What simulated devices are called. Cohorts are drawn by names: real devices that are to have the
same cohorts are called the same."""

from __future__ import annotations

_PREFIX = "device-"


def device_name(index: int) -> str:
    """Of a device by its index in the partition."""
    return f"{_PREFIX}{index:05}"


def index_of(name: str) -> int:
    """What `device_name` made that name of."""
    return int(name.removeprefix(_PREFIX))
