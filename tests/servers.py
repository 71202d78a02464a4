"""A server as `fedtide server init` makes it: in a folder, on the loopback, with Mosquitto."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from demo.brokers import HOST, START_S, child_environment, free_port, mosquitto_path
from fedtide.cli import main
from fedtide.config import BrokerConfig
from fedtide.errors import BrokerError
from fedtide.identity import load_identity, write_identity
from fedtide.inquiry import Inquiry
from fedtide.join_code import JoinCode, parse_join_code
from fedtide.keys import new_key, public_bytes
from fedtide.topics import Topics
from registrar.layout import Layout
from registrar.office import now_ms, opened

FEDERATION = "tides"


class Server:
    """The tree under `folder`; a context manager that runs its broker."""

    def __init__(self, folder: Path) -> None:
        self.topics = Topics(FEDERATION)
        self.port, self.local_port = free_port(), free_port()
        self.layout = Layout(folder / "root", system=False)
        self.identities = folder / "identities"
        self.log_path = folder / "broker.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.init()

    def init(self, *more: str) -> str:
        """`fedtide server init`; what it says."""
        ports = ["--port", str(self.port), "--local-port", str(self.local_port), "--bind", HOST]
        where = ["--federation", FEDERATION, "--root", str(self.layout.root)]
        return told("server", "init", HOST, *where, *ports, *more)

    def device_command(self, *words: str) -> str:
        """`fedtide device ...`; what it says."""
        return told("device", *words, "--config", str(self.layout.registrar_toml))

    def add(self, device: str, *more: str) -> JoinCode:
        """`fedtide device add`; the join code."""
        said: dict[str, Any] = json.loads(self.device_command("add", device, "--json", *more))
        return parse_join_code(said["code"])

    def join(self, device: str) -> BrokerConfig:
        """Add a device and let it join, as the registrar does it; how it reaches the broker."""
        claim_id, key = self.add(device).claim, new_key()
        with opened(self.layout.registrar_toml) as office:
            pem = office.authority.sign_device(device, key.public_key(), datetime.now(UTC))
            office.registry.admit(claim_id, public_bytes(key), pem, now_ms())
            office.enforce()
            ca = office.authority.certificate_pem
        write_identity(self.identities / device, key, pem, ca, b"")
        return self.access(self.identities / device)

    def access(self, identity: Path, *, local: bool = False) -> BrokerConfig:
        """How the owner of an identity's folder reaches the broker."""
        config = BrokerConfig(
            host=HOST,
            port=self.local_port if local else self.port,
            reconnect_ms_max=1_000,
        )
        return load_identity(identity).broker(config)

    @property
    def coordinator(self) -> BrokerConfig:
        """How the coordinator reaches the broker."""
        return self.access(self.layout.identity("coordinator"), local=True)

    @property
    def process_id(self) -> int:
        """The broker's, while it runs."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the broker, and return when it lets somebody in.

        Raises:
            BrokerError: it ended, or did not answer in time; with its log.
        """
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [mosquitto_path() or "mosquitto", "-c", str(self.layout.mosquitto_conf)],
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            observer = self.access(self.layout.identity("observer"), local=True)
            with Inquiry(observer, "test") as inquiry:
                inquiry.connect(START_S)
        except BrokerError as exc:
            self.stop()
            raise BrokerError(f"{exc}\n{self.log_path.read_text(errors='replace')}") from exc

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End the broker."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait(timeout=START_S)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def told(*words: str, code: int = 0) -> str:
    """What a command says; it must succeed, or end with `code`."""
    said, complained = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
        ended = main(words)
    assert ended == code, complained.getvalue()
    return said.getvalue()


def refused(*words: str) -> str:
    """What a command complains of; it must fail, and not by a traceback."""
    complained = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(complained):
        try:
            code: object = main(words)
        except SystemExit as exc:  # argparse's way
            code = exc.code
    assert code in (2, 3, 6, 7), complained.getvalue()
    return complained.getvalue()


def listening(process_id: int) -> set[tuple[str, int]]:
    """Where a process listens by TCP, as the kernel tells: hexadecimal address and port."""
    folder = Path(f"/proc/{process_id}")
    inodes = set()
    for link in (folder / "fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(link))  # noqa: PTH115 - it names no file
    found = set()
    for table in ("tcp", "tcp6"):
        for line in (folder / "net" / table).read_text().splitlines()[1:]:
            fields = line.split()
            address, port = fields[1].split(":")
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                found.add((address, int(port, 16)))
    return found
