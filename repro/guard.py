"""Ends processes whose starter is gone, however it went: even SIGKILL closes a pipe."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Self

from demo.brokers import child_environment
from fedtide.launch import module_command


class Guard:
    """A process that watches over this one, as long as it is entered."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            module_command("repro.guard"),
            env=child_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        return self

    def watch(self, process_id: int | None) -> None:
        """End this child of ours, too."""
        if process_id is not None and self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.write(b"%d\n" % process_id)
                self._process.stdin.flush()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._process.kill()  # before its pipe closes: those it watches are ended by now
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()


def main() -> None:
    """Read process ids until whoever says them is gone; then ask all of them to end."""
    for word in sys.stdin.read().split():
        with suppress(ProcessLookupError):
            os.kill(int(word), signal.SIGTERM)


if __name__ == "__main__":
    main()
