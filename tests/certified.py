"""A server as `fedtide server init` makes it, for tests: Mosquitto and registrar, on the loopback.

Nothing of it is faked: the processes are the real ones, on free ports.
"""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from demo.brokers import HOST, child_environment, free_port, mosquitto_path
from fedtide.cli import main
from fedtide.config import load_config
from fedtide.identity import Identity, load_identity
from fedtide.join_code import parse_join_code, write_join_code
from fedtide.launch import module_command
from fedtide.topics import Topics
from registrar.authority import Authority
from registrar.config import RegistrarConfig
from registrar.layout import Layout
from registrar.registry import Registry

FEDERATION = "tides"
TOPICS = Topics(FEDERATION)
WAIT_S = 30.0


def now_ms() -> int:
    """The time of day."""
    return time.time_ns() // 1_000_000


class Process:
    """A child of the test's, with a log."""

    def __init__(
        self,
        command: list[str],
        log: Path,
        environment: dict[str, str] | None = None,
        umask: int = -1,
    ) -> None:
        self.log = log
        with log.open("ab") as file:
            self.popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**child_environment(), **(environment or {})},
                start_new_session=True,
                umask=umask,
            )

    def says(self, text: str, seconds: float = WAIT_S) -> None:
        """Wait until the log holds `text`."""
        wait_for(lambda: text in self.text(), f"{text!r} in:\n", self.text, self.popen, seconds)

    def text(self) -> str:
        """The log."""
        return self.log.read_text(errors="replace")

    def stop(self) -> int:
        """In good order; the exit code."""
        if self.popen.poll() is None:
            self.popen.terminate()
        return self.popen.wait(timeout=WAIT_S)

    def kill(self) -> None:
        """Without a word."""
        self.popen.kill()
        self.popen.wait(timeout=WAIT_S)


def wait_for(
    happened: Callable[[], bool],
    what: str,
    shown: Callable[[], str] = lambda: "",
    process: subprocess.Popen[bytes] | None = None,
    seconds: float = WAIT_S,
) -> None:
    """Until it has happened; AssertionError after `seconds`, or when `process` has ended."""
    deadline_s = time.monotonic() + seconds
    while not happened():
        ended = process is not None and process.poll() is not None
        if (ended and not happened()) or time.monotonic() > deadline_s:
            raise AssertionError(f"waited for {what}{shown()}")
        time.sleep(0.05)


class Server:
    """See the module. A context manager that stops what it has started."""

    def __init__(self, folder: Path, *, registrar: bool = True) -> None:
        self._with_registrar = registrar
        self.layout, self.port = Layout(folder, system=False), free_port()
        self.folder = folder
        words = ["server", "init", HOST, "--federation", FEDERATION, "--bind", HOST]
        words += ["--root", str(folder), "--port", str(self.port)]
        fedtide(*words, "--local-port", str(free_port()))
        self.authority = Authority.open(self.config.authority)
        self.registry = Registry(self.config.state_dir)
        self.processes: list[Process] = []

    @property
    def config(self) -> RegistrarConfig:
        """The registrar's."""
        return load_config(self.layout.registrar_toml, RegistrarConfig)

    def identity(self, role: Literal["coordinator", "registrar", "observer"]) -> Identity:
        """One of the server's own."""
        return load_identity(self.layout.identity(role))

    def __enter__(self) -> Self:
        self.start_broker()
        if self._with_registrar:
            self.start_registrar()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in reversed(self.processes):
            process.kill()
        self.registry.close()

    def start_broker(self) -> Process:
        """Mosquitto, listening."""
        command = [mosquitto_path() or "mosquitto", "-c", str(self.layout.mosquitto_conf)]
        self.broker = self._started(command, "broker.log")
        wait_for(self._answers, "the broker", self.broker.text, self.broker.popen)
        return self.broker

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((HOST, self.port)) == 0

    def start_registrar(self) -> Process:
        """The registrar, connected."""
        words = ("registrar", "--config", str(self.layout.registrar_toml))
        self.registrar = self._started(module_command("fedtide", *words), "registrar.log")
        self.registrar.says("devices can join")
        return self.registrar

    def run(
        self,
        name: str,
        *words: str,
        python: str = sys.executable,
        environment: dict[str, str] | None = None,
        umask: int = -1,
    ) -> Process:
        """`fedtide WORDS` in a process of its own."""
        command = module_command("fedtide", *words, python=python)
        return self._started(command, f"{name}.log", environment, umask)

    def add(self, device: str) -> str:
        """The join code for a device."""
        return str(self.device("add", device)["code"])

    def device(self, action: str, *words: str) -> dict[str, Any]:
        """What `fedtide device ACTION WORDS` says."""
        config = str(self.layout.registrar_toml)
        said = fedtide("device", action, *words, "--json", "--config", config)
        told: dict[str, Any] = json.loads(said)
        assert not told.get("undone"), told
        return told

    def add_expired(self, device: str) -> str:
        """A join code that was good until five seconds ago."""
        code = parse_join_code(self.add(device))
        key = Ed25519PrivateKey.from_private_bytes(code.key)
        over = datetime.now(UTC) - timedelta(seconds=5)
        pem = self.authority.sign_claim(code.claim, key.public_key(), over, over)
        der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
        return write_join_code(msgspec.structs.replace(code, certificate=der))

    def _started(
        self,
        command: list[str],
        log: str,
        environment: dict[str, str] | None = None,
        umask: int = -1,
    ) -> Process:
        process = Process(command, self.folder / log, environment, umask)
        self.processes.append(process)
        return process


def fedtide(*words: str) -> str:
    """What the command prints; it has to succeed."""
    out = io.StringIO()
    with redirect_stdout(out):
        assert main(list(words)) == 0
    return out.getvalue()
