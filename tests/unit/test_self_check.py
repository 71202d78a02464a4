"""What the installer asks a new version before it takes over."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_client.durable import Durable
from edge_client.saved_session import STATE_NAME, SavedSession
from edge_client.self_check import main
from fedtide.generations import Generations
from tests.identities import Authority

CONFIG = """
federation = "example"
device = "pi-1"
state_dir = "{state}"
[data]
path = "data.npz"
[broker]
host = "localhost"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "client.toml"
    path.write_text(CONFIG.format(state=tmp_path / "state"))
    return path


def test_it_says_what_runs_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "onnxruntime 1" in capsys.readouterr().out


def test_a_configuration_and_a_state_that_it_understands(config: Path, tmp_path: Path) -> None:
    assert main(["--config", str(config)]) == 0
    assert not (tmp_path / "state").exists(), "nothing is written"
    (tmp_path / "state").mkdir()
    saved = SavedSession(tmp_path / "state", "example", "pi-1")
    saved.save(Durable(federation="example", device="pi-1"))
    assert main(["--config", str(config)]) == 0


def test_a_configuration_that_it_does_not_understand(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text("of_the_future = 1\n" + config.read_text())
    assert main(["--config", str(config)]) == 2
    assert "of_the_future" in capsys.readouterr().err


def test_a_state_that_it_does_not_understand(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "state").mkdir()
    Generations(tmp_path / "state" / STATE_NAME).save(b'{"of_the_future": 1, "installation": 2}')
    assert main(["--config", str(config)]) == 7
    assert "not of this version" in capsys.readouterr().err


def test_the_state_of_a_device_that_has_joined(config: Path, tmp_path: Path) -> None:
    """Its name is the certificate's; without that, the state would be another device's."""
    Authority().identity(tmp_path / "identity", "pi-1")
    named = config.read_text().replace('device = "pi-1"', f'identity = "{tmp_path / "identity"}"')
    config.write_text(named)
    (tmp_path / "state").mkdir()
    saved = SavedSession(tmp_path / "state", "example", "pi-1")
    saved.save(Durable(federation="example", device="pi-1"))
    assert main(["--config", str(config)]) == 0
