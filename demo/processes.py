"""The demo's processes: started, killed and stopped one by one, each with a log of its own."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from demo.brokers import child_environment
from fedtide.errors import FedtideError

STOP_S = 10.0
"""Longest time that a process gets to end in good order."""


class ProcessError(FedtideError):
    """A process of the demo ended when nobody had planned it."""


class Child:
    """One process that can be started again. Its output goes to a log that is appended to."""

    def __init__(self, name: str, command: Sequence[str], log_path: Path) -> None:
        self.name = name
        self.log_path = log_path
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether it was started and not killed or stopped; it may have crashed since."""
        return self._process is not None

    def start(self, **environment: str) -> None:
        """Start it, unless it runs; `environment` is added to ours."""
        if self._process is not None:
            return
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.log_path.parent,
                env={**child_environment(), **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for us: we then stop them in order.
                start_new_session=True,
            )

    def kill(self) -> None:
        """End it as a power cut would."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def ask_to_stop(self) -> None:
        """Ask it to end; `stop` waits for it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def stop(self) -> int | None:
        """End it in good order, or else; its exit code, if it ran."""
        self.ask_to_stop()
        process, self._process = self._process, None
        if process is None:
            return None
        try:
            return process.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    @property
    def process_id(self) -> int | None:
        """Its process, while it runs."""
        return None if self._process is None else self._process.pid

    def exit_code(self) -> int | None:
        """Its exit code, once it has ended by itself."""
        return None if self._process is None else self._process.poll()

    def wait(self, timeout_s: float) -> int:
        """Its exit code.

        Raises:
            ProcessError: it did not end in time.
        """
        assert self._process is not None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ProcessError(f"{self.name} did not end within {timeout_s:g} s") from None

    def check(self, *, may_end: bool = False) -> None:
        """Nothing, as long as it is well.

        Raises:
            ProcessError: it ended, unless it may, and with code 0; with the end of its log.
        """
        code = self.exit_code()
        if code is None or (may_end and code == 0):
            return
        raise ProcessError(
            f"{self.name} ended with code {code}. The end of {self.log_path}:\n{self.log_tail()}"
        )

    def log(self) -> str:
        """All that it has said."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def log_tail(self, lines: int = 15) -> str:
        """The end of its log."""
        return "\n".join(self.log().splitlines()[-lines:])
