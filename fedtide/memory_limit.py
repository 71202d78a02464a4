"""A ceiling for this process's memory: the last line behind the scan of ONNX files.

With it a graph that asks for too much gets an error from the allocator, which onnxruntime reports
and which becomes a declined task; without it the kernel ends some process on the device.
`RLIMIT_DATA` counts what a process can write and shares with none; onnxruntime's limits of its
own arena do not see what it computes while it loads a graph (measured: 1.20 takes gigabytes).
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

_M_MMAP_THRESHOLD = -3
"""Of <malloc.h>."""
_SHARE = 0.8
"""Of the memory that there is: the rest is the system's."""


def limit_memory(bytes_max: int | None = None) -> int | None:
    """Let this process have `bytes_max`, by default most of what the machine or container has.

    Returns the limit, None where the system has no such limits (anything but Linux). A limit that
    was set before and is lower stays.
    """
    if sys.platform != "linux":
        return None
    import resource

    wanted = int(_SHARE * available_bytes()) if bytes_max is None else bytes_max
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    known = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    limit = min([wanted, *known])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    return limit


def return_large_blocks() -> None:
    """Let every block of 64 KiB or more, a chunk's too, go back to the system when it is freed.

    glibc does so by default only until the first is freed, and then keeps room for others like it,
    with holes: a process that handles one update after the other grows with their number.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 16)


def available_bytes() -> int:
    """Memory of the machine, or of the container or service if that has less."""
    import os

    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in limit_files():
        try:
            found.append(int(file.read_text()))
        except (OSError, ValueError):  # absent, or "max"
            continue
    return min(found)


def limit_files(root: Path = Path("/")) -> Iterator[Path]:
    """Where limits of this process stand: of its control group and those above (cgroups(7))."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        group = base / path.strip("/")
        yield from (
            folder / name for folder in (group, *group.parents) if folder.is_relative_to(base)
        )
