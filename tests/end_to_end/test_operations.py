"""`fedtide status` and `fedtide doctor` at a real Mosquitto, with access lists good and bad."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from demo.brokers import COORDINATOR, OBSERVER, Broker, find_broker
from fedtide import cli, status_command
from fedtide.config import BrokerConfig
from fedtide.inquiry import Inquiry
from fedtide.messages import AnyMessage, Beacon, Presence, Status, encode
from fedtide.topics import Topics
from fedtide.transport import Delivered

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
