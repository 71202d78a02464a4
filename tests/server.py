"""A server as `fedtide server init` makes it: below a folder, on free ports of the loopback.

Nothing of it is faked: Mosquitto and the registrar are the true programs.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from demo.brokers import HOST, START_S, free_port, mosquitto_path
from demo.local import wait_for_log
from demo.processes import Child
from fedtide.cli import main
from fedtide.config import BrokerConfig
from fedtide.errors import BrokerError
from fedtide.identity import load_identity, write_identity
from fedtide.inquiry import Inquiry
from fedtide.join_code import parse_join_code
from fedtide.keys import new_key, public_bytes
from fedtide.launch import module_command
from fedtide.topics import Topics
from registrar.layout import Layout
from registrar.office import Office, now_ms, opened

FEDERATION = "tides"
TOPICS = Topics(FEDERATION)
DEVICE_PYTHON = os.environ.get("FEDTIDE_DEVICE_PYTHON", sys.executable)
WAIT_S = 60.0


class Server:
    """The tree below `folder`; a context manager that runs its broker, and ends every process that
    was started here."""

    def __init__(self, folder: Path, *init: str) -> None:
        """`init`: more words for `fedtide server init`."""
        self.folder = folder
        self.port, self.local_port = free_port(), free_port()
        self.layout = Layout(folder / "root", system=False)
        self.identities = folder / "identities"
        self._children: list[Child] = []
        self.init(*init)
        conf = str(self.layout.mosquitto_conf)
        self.broker = self.child("broker", [mosquitto_path() or "mosquitto", "-c", conf])
        registrar = ("registrar", "--config", str(self.layout.registrar_toml))
        self.registrar = self.child("registrar", module_command("fedtide", *registrar))

    # ---- what its operator does ----

    def init(self, *more: str) -> str:
        """`fedtide server init`; what it says."""
        ports = ["--port", str(self.port), "--local-port", str(self.local_port), "--bind", HOST]
        where = ["--federation", FEDERATION, "--root", str(self.layout.root)]
        return told("server", "init", HOST, *where, *ports, *more)

    def device(self, *words: str) -> str:
        """`fedtide device ...`; what it says."""
        return told("device", *words, "--config", str(self.layout.registrar_toml))

    def add(self, device: str, *more: str) -> str:
        """`fedtide device add`; the join code."""
        return str(json.loads(self.device("add", device, "--json", *more))["code"])

    # ---- what the registrar does ----

    def office(self) -> AbstractContextManager[Office]:
        """What its commands and its service work with."""
        return opened(self.layout.registrar_toml)

    def admit(self, device: str) -> BrokerConfig:
        """Add a device and let it in, without a registrar's service and without a client; how it
        reaches the broker."""
        claim_id, key = parse_join_code(self.add(device)).claim, new_key()
        with self.office() as office:
            pem = office.authority.sign_device(device, key.public_key(), datetime.now(UTC))
            office.registry.admit(claim_id, public_bytes(key), pem, now_ms())
            office.enforce()
            ca = office.authority.certificate_pem
        write_identity(self.identities / device, key, pem, ca, b"")
        return self.access(self.identities / device)

    # ---- how to get in ----

    def access(self, identity: Path, *, local: bool = False) -> BrokerConfig:
        """How the owner of an identity's folder reaches the broker."""
        port = self.local_port if local else self.port
        config = BrokerConfig(host=HOST, port=port, reconnect_ms_max=1_000)
        return load_identity(identity).broker(config)

    @property
    def coordinator_access(self) -> BrokerConfig:
        """How the coordinator reaches the broker."""
        return self.access(self.layout.identity("coordinator"), local=True)

    @property
    def observer_access(self) -> BrokerConfig:
        """How a dashboard reaches the broker."""
        return self.access(self.layout.identity("observer"), local=True)

    # ---- its processes ----

    def child(self, name: str, command: Sequence[str]) -> Child:
        """A program that can be started, and ends with the server."""
        child = Child(name, command, self.folder / f"{name}.log")
        self._children.append(child)
        return child

    def run(self, name: str, *words: str, **environment: str) -> Child:
        """`fedtide WORDS` on a device's Python, started."""
        child = self.child(name, module_command("fedtide", *words, python=DEVICE_PYTHON))
        child.start(**environment)
        return child

    def start(self) -> None:
        """Start the broker, and return when it lets somebody in.

        Raises:
            BrokerError: it ended, or did not answer in time; with its log.
        """
        self.broker.start()
        try:
            with Inquiry(self.observer_access, "test") as inquiry:
                inquiry.connect(START_S)
        except BrokerError as exc:
            raise BrokerError(f"{exc}\n{self.broker.log()}") from exc

    def start_registrar(self) -> None:
        """Return when devices can join."""
        after = len(self.registrar.log())
        self.registrar.start()
        wait_for_log(self.registrar, "devices can join", WAIT_S, after)

    def stop(self) -> None:
        """End everything, what was started last first."""
        for child in reversed(self._children):
            child.stop()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
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
