"""Memory of a command and all of its processes, sampled while it runs."""

from __future__ import annotations

import os
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType

MARK = "FEDTIDE_BENCHMARK_MARK"


class MemoryPeak:
    """The largest sum of PSS, and of RSS, over every process with this object's environment.

    Processes are found by a variable that they inherit, so one whose parent ended is seen, too.
    Memory that several share counts once in PSS, and once for each of them in RSS. Peaks shorter
    than a sample are missed.
    """

    def __init__(self, every_s: float = 0.1) -> None:
        self.pss_bytes = self.rss_bytes = self.processes = self.samples = 0
        self._every_s = every_s
        self._token = uuid.uuid4().hex
        self._known: dict[str, bool] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def environment(self) -> dict[str, str]:
        """Of the command to be watched."""
        return {**os.environ, MARK: self._token}

    def __enter__(self) -> MemoryPeak:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            started_s = time.monotonic()
            self._sample()
            # No more than half of the time: reading is work for the kernel.
            self._stop.wait(max(self._every_s, time.monotonic() - started_s))

    def _sample(self) -> None:
        pss = rss = processes = 0
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit() or not self._is_ours(folder):
                continue
            try:
                lines = (folder / "smaps_rollup").read_text().splitlines()
            except OSError:  # it ended meanwhile
                continue
            sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
            pss += sizes.get("Pss", 0) * 1024
            rss += sizes.get("Rss", 0) * 1024
            processes += 1
        self.samples += 1
        self.pss_bytes = max(self.pss_bytes, pss)
        self.rss_bytes = max(self.rss_bytes, rss)
        self.processes = max(self.processes, processes)

    def _is_ours(self, folder: Path) -> bool:
        known = self._known.get(folder.name)
        if known is None:
            try:
                environ = (folder / "environ").read_bytes()
            except OSError:
                return False
            known = f"{MARK}={self._token}".encode() in environ
            if known or environ:  # a process that is about to begin has none yet
                self._known[folder.name] = known
        return known
