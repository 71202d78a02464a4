"""`fedtide status` and `fedtide doctor` at a real Mosquitto, with access lists good and bad."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import msgspec
import numpy as np
import pytest

from demo.brokers import COORDINATOR, OBSERVER, Broker, find_broker
from demo.local import LocalFederation, access_table, toml, wait_for
from fedtide import broker_check, cli, status_command
from fedtide.config import BrokerConfig
from fedtide.inquiry import Inquiry
from fedtide.messages import (
    AnyMessage,
    Beacon,
    Decline,
    Envelope,
    Hello,
    Presence,
    Problem,
    Status,
    Task,
    Want,
    decode,
    encode,
)
from fedtide.topics import Topics
from fedtide.transport import Delivered, Received
from tests import bundles

TOPICS = Topics("tides")


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Broker]:
    with Broker(find_broker("mosquitto"), tmp_path / "broker", (COORDINATOR, "alpha")) as running:
        yield running


def retain(access: BrokerConfig, *messages: tuple[str, AnyMessage]) -> None:
    with Inquiry(access, "test") as speaker:
        speaker.connect(10)
        for topic, message in messages:
            token = speaker.link.publish(topic, encode(message, "1"), retain=True)
            assert any(isinstance(e, Delivered) and e.token == token for e in speaker.events(10))


def flags(access: BrokerConfig, federation: str = "tides") -> list[str]:
    return [
        *("--federation", federation, "--host", access.host, "--port", str(access.port)),
        *("--username", str(access.username), "--password-file", str(access.password_file)),
    ]


def test_status_once(
    mosquitto: Broker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_command, "FIRST_S", 1.0)
    observer = flags(mosquitto.access(OBSERVER))
    assert cli.main(["status", "--once", *observer]) == 6
    assert "nothing is known to the broker of a federation 'tides'" in capsys.readouterr().err
    retain(
        mosquitto.access(COORDINATOR),
        (TOPICS.beacon, Beacon(True, "s")),
        (TOPICS.status, Status("collecting", 3, 5, 2, ("alpha",), deadline_ms=9_000)),
        (TOPICS.presence("alpha"), Presence(True, "training", 3, "epoch 2 of 5")),
    )
    assert cli.main(["status", "--once", *observer]) == 0
    said = capsys.readouterr().out
    assert "tides · coordinator online" in said
    assert "deadline in at most" in said
    assert "alpha  training round 3: epoch 2 of 5  invited" in said
    assert cli.main(["status", "--once", "--json", *observer]) == 0
    assert json.loads(capsys.readouterr().out)["devices"][0]["phase"] == "training"
    # A device may read the beacon, and nothing of others: that is said.
    device = flags(mosquitto.access("alpha"))
    assert cli.main(["status", "--once", *device]) == 0
    assert "this user may not read it" in capsys.readouterr().out
    # A misspelt name of the federation.
    assert cli.main(["status", "--once", *flags(mosquitto.access("alpha"), "tidse")]) == 6
    assert "coordinators are or were there for: tides" in capsys.readouterr().err
    wrong = msgspec.structs.replace(
        mosquitto.access(OBSERVER), password_file=mosquitto.password_file("alpha")
    )
    assert cli.main(["status", "--once", *flags(wrong)]) == 6
    assert "refuses the connection" in capsys.readouterr().err


# ---- doctor ----


def coordinator_toml(folder: Path, broker: Broker, **access: object) -> Path:
    path = folder / "coordinator.toml"
    config = {
        "federation": "tides",
        "bundle": str(bundles.build("tiny_mlp")),
        "state_dir": str(folder / "state"),
        "rounds": {"cohort_size": 2},
        "broker": {**access_table(broker, COORDINATOR), **access},
    }
    path.write_text(toml(config))
    return path


def client_toml(folder: Path, broker: Broker, federation: str = "tides") -> Path:
    path = folder / "client.toml"
    np.savez(folder / "data.npz", x=np.zeros((4, 8), np.float32), y=np.zeros(4, np.int64))
    config = {
        "federation": federation,
        "device": "alpha",
        "state_dir": str(folder / "alpha"),
        "data": {"path": str(folder / "data.npz")},
        "broker": access_table(broker, "alpha"),
    }
    path.write_text(toml(config))
    return path


def doctor(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code, and every finding with what to do, one a line."""
    code = cli.main(["doctor", "--json", str(path)])
    told = json.loads(capsys.readouterr().out)
    assert code == (8 if told["problems"] else 0)
    return code, "\n".join(f"{f['level']}: {f['what']} -> {f['todo']}" for f in told["findings"])


def test_a_fresh_installation_is_well_and_nothing_is_left_behind(
    mosquitto: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for protocol in ("5", "3.1.1"):
        path = coordinator_toml(tmp_path, mosquitto, protocol=protocol)
        code, said = doctor(path, capsys)
        assert code == 0, said
        assert "ok: messages arrive on every topic that a coordinator needs" in said
        assert "ok: a message of 114,854 bytes arrives" in said
    with Inquiry(mosquitto.access(OBSERVER), "test") as observer:
        observer.connect(10)
        observer.listen(["fedtide/#"])
        assert not [event for event in observer.events(0.3) if isinstance(event, Received)]
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("rules", "protocol", "said"),
    [
        ("topic read fedtide/#", "5", "may not publish on fedtide/1/tides/down/+: Not authorized"),
        # The broker grants the subscription, and confirms what it drops: only the trip tells.
        ("topic read fedtide/#", "3.1.1", "may not read fedtide/1/tides/up/+: messages there do"),
        (
            "topic write fedtide/#",
            "5",
            "may not read fedtide/1/tides/presence/+: messages there do",
        ),
        ("topic write fedtide/#", "5", "a retained message was not there for whoever came later"),
    ],
)
def test_an_access_list_that_forbids(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    rules: str,
    protocol: str,
    said: str,
) -> None:
    monkeypatch.setattr(broker_check, "TRIP_S", 1.0)  # what does not come is waited for
    monkeypatch.setattr(broker_check, "ARRIVAL_S", 0.3)
    broker = Broker(find_broker("mosquitto"), tmp_path / "broker", (COORDINATOR,))
    # Without the pattern that lets the probe's answers through.
    (broker.folder / "acl").write_text(f"user {COORDINATOR}\n{rules}\nuser {OBSERVER}\n{rules}\n")
    with broker:
        code, found = doctor(coordinator_toml(tmp_path, broker, protocol=protocol), capsys)
    assert code == 8
    assert said in found
    assert "access list" in found


@pytest.mark.parametrize(
    ("key", "level", "said"),
    [
        ("max_packet_size 10000", "problem", "the broker takes packets of 10000 bytes at most"),
        ("max_packet_size 50000", "warning", "limit of 50,000 bytes makes transfers slower"),
        ("message_size_limit 50000", "problem", "a message of 114,854 bytes"),
    ],
)
def test_a_broker_with_small_packets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, level: str, said: str
) -> None:
    broker = Broker(find_broker("mosquitto"), tmp_path / "broker", (COORDINATOR,))
    config = broker.folder / "mosquitto.conf"
    kept = [line for line in config.read_text().splitlines() if "max_packet_size" not in line]
    config.write_text("\n".join([*kept, key, ""]))
    with broker:
        code, found = doctor(coordinator_toml(tmp_path, broker), capsys)
    assert code == (8 if level == "problem" else 0)
    assert [x for x in found.split("\n") if x.startswith(level) and said in x], found


def test_a_device_without_its_coordinator(
    mosquitto: Broker,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(broker_check, "TRIP_S", 1.0)  # what does not come is waited for
    code, found = doctor(client_toml(tmp_path, mosquitto), capsys)
    assert code == 8
    assert "no coordinator of 'tides' is known to this broker" in found
    retain(mosquitto.access(COORDINATOR), (TOPICS.beacon, Beacon(True, "s")))
    # What is told to the running client is no answer to the question, nor the end of the wait.
    with Inquiry(mosquitto.access(COORDINATOR), "test") as busy:
        busy.connect(10)
        for answers, said in (
            (True, "answers this"),
            (False, "is online but does not answer this"),
        ):
            found = _doctored(busy, tmp_path, mosquitto, capsys, answers=answers)
            assert f"the coordinator {said} device" in found
    code, found = doctor(client_toml(tmp_path, mosquitto, "tidse"), capsys)
    assert "no coordinator of a federation 'tidse' has ever been at this broker" in found
    assert "did you mean 'tides'?" in found
    path = client_toml(tmp_path, mosquitto)
    path.write_text(path.read_text().replace("alpha.password", f"{OBSERVER}.password"))
    code, found = doctor(path, capsys)
    assert code == 8
    assert "refuses the connection" in found


def test_a_round_that_stands_still(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One device uploads and is cut off, one declines; a real coordinator; nothing is disturbed."""
    kind = find_broker("mosquitto")
    with (
        Broker(kind, tmp_path / "broker", (COORDINATOR, "alpha", "beta")) as broker,
        LocalFederation(tmp_path / "run", broker, "tides") as local,
    ):
        rounds = {"cohort_size": 2, "devices_min": 2, "quorum": 2, "collect_ms": 600_000}
        local.add_coordinator(bundles.build("tiny_mlp"), rounds=rounds).start()
        path = tmp_path / "run" / f"{COORDINATOR}.toml"
        task = say_hello(broker, "alpha", "beta")
        decline = Decline(task.run_id, task.round_id, "there is no data file")
        retain(
            broker.access("alpha"),
            (TOPICS.presence("alpha"), Presence(True, "uploading", 1, "34 of 102 blocks")),
        )
        with Inquiry(broker.access("beta"), "test") as beta:
            beta.connect(10)
            beta.link.publish(TOPICS.up("beta"), encode(decline, "d"))
            list(beta.events(0.2))
        before = rows(local)
        code, found = doctor(path, capsys)
        assert code == 8
        assert "problem: round 1: 0 of 2 updates, 1 devices at work: the quorum of 2" in found
        assert "warning: beta declines: there is no data file" in found
        assert "ok: alpha is uploading: 34 of 102 blocks" in found
        (local.state_dir / "partial" / ("ab" * 32)).write_bytes(b"")
        monkeypatch.setattr("coordinator.diagnosis.STALLED_MS", -1)
        code, found = doctor(path, capsys)
        assert "warning: alpha is uploading: 34 of 102 blocks, but no block has come for" in found
        idle = (TOPICS.presence("alpha"), Presence(True, "idle", 1, "waiting for a task"))
        retain(broker.access("alpha"), idle)
        code, found = doctor(path, capsys)
        assert "warning: alpha was invited and does nothing about it" in found  # at two looks
        # A device's doctor is answered, under its name, while its client may be running.
        code, found = doctor(client_toml(tmp_path, broker), capsys)
        assert code == 0, found
        assert "ok: the coordinator answers this device" in found
        assert rows(local) == before, "the doctor has changed something"
        local.coordinator.kill()
        wait_for(lambda: not local.coordinator.running, "the end", 10)
        retain(broker.access(COORDINATOR), (TOPICS.beacon, Beacon(False, "s")))  # its will
        code, found = doctor(path, capsys)
        assert "problem: the coordinator is not running: no round can go on" in found


def _doctored(
    busy: Inquiry,
    folder: Path,
    broker: Broker,
    capsys: pytest.CaptureFixture[str],
    *,
    answers: bool,
) -> str:
    """What the device's doctor finds where another is told something, and then it, if at all."""
    done = threading.Event()

    def answer() -> None:
        while not done.is_set():
            event = busy.next_event(0.1)
            asked = decode(event.payload) if isinstance(event, Received) else None
            if isinstance(asked, Envelope) and isinstance(asked.body, Want):
                for regarding in ("another", asked.id) if answers else ("another",):
                    told = encode(Problem(regarding, "no such blob"), "p")
                    busy.link.publish(TOPICS.down("alpha"), told)

    busy.listen([TOPICS.up("alpha")])
    thread = threading.Thread(target=answer)
    thread.start()
    try:
        return doctor(client_toml(folder, broker), capsys)[1]
    finally:
        done.set()
        thread.join(5)


def say_hello(broker: Broker, *devices: str) -> Task:
    """Each device says hello and leaves; the task that the last one gets."""
    for device in devices:
        with Inquiry(broker.access(device), "test") as link:
            link.connect(10)
            link.listen([TOPICS.down(device), TOPICS.beacon])
            for event in link.events(20):
                body = getattr(decode(event.payload), "body", None) if _came(event) else None
                if isinstance(body, Beacon):
                    hello = Hello("0", ("portable",), 4, ("f32",))
                    link.link.publish(TOPICS.up(device), encode(hello, "h"))
                elif isinstance(body, Task):
                    return body
                elif body is not None and device != devices[-1]:
                    break
    raise AssertionError("no task came")


def _came(event: object) -> TypeGuard[Received]:
    return isinstance(event, Received)


def rows(local: LocalFederation) -> list[tuple[object, ...]]:
    """What the coordinator knows of devices and rounds."""
    database = sqlite3.connect(f"file:{local.state_dir}/coordinator.db?mode=ro", uri=True)
    try:
        found: list[tuple[object, ...]] = []
        for table in ("devices", "rounds", "updates", "events"):
            found += database.execute(f"SELECT * FROM {table}").fetchall()
    finally:
        database.close()
    return found
