"""What root asks about a service is looked at with the service's rights: what runs there, such as
the function of a device's owner, runs as who the service is, and what the service cannot read is
told as that."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedtide.launch import module_command, module_environment
from registrar.layout import Layout
from tests.server import told

SOMEBODY = 65534
pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")


@pytest.fixture(scope="module", autouse=True)
def _interpreter() -> None:
    """One of root's own cannot be read by anybody else."""
    words = [sys.executable, "-c", "import numpy, fedtide"]
    try:
        subprocess.run(words, user=SOMEBODY, env=module_environment(), check=True)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("this Python is root's own")


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that everybody may look into; pytest's own lies where nobody else gets."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def run_as_root(*words: str) -> str:
    """What a command says, in a process of its own: who has become somebody else stays so."""
    done = subprocess.run(
        module_command("fedtide", *words),
        capture_output=True,
        text=True,
        timeout=60,
        env=module_environment(),
        check=False,
    )
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert "this is a bug" not in said
    return said


def client(folder: Path, data: str) -> str:
    """The configuration of a client that is somebody's."""
    home = folder / "home"
    home.mkdir(mode=0o700)
    os.chown(home, SOMEBODY, SOMEBODY)
    config = folder / "client.toml"
    config.write_text(
        f'federation = "f"\ndevice = "d"\nstate_dir = "{home}/state"\n'
        f'[broker]\nhost = "127.0.0.1"\nport = 1\n[data]\n{data}\n'
    )
    return str(config)


COMMANDS = (("doctor",), ("client", "check-data", "--config"))


@pytest.mark.parametrize("words", COMMANDS)
def test_the_owners_function_does_not_run_as_root(folder: Path, words: tuple[str, ...]) -> None:
    (folder / "out").mkdir()
    (folder / "out").chmod(0o777)
    (folder / "function.py").write_text(
        "import os\nimport numpy as np\n\ndef data():\n"
        f"    open({str(folder / 'out' / 'ids')!r}, 'w').write(str(os.getresuid()))\n"
        "    try:\n        os.setuid(0)\n"
        f"        open({str(folder / 'out' / 'root')!r}, 'w')\n"
        "    except PermissionError:\n        pass\n"
        "    return np.zeros((4, 2), 'f4'), np.zeros(4, 'i8')\n"
    )
    config = client(folder, f'function = "{folder}/function.py:data"')
    assert "the data can be read" in run_as_root(*words, config)
    assert (folder / "out" / "ids").read_text() == str((SOMEBODY,) * 3)
    assert not (folder / "out" / "root").exists()


@pytest.mark.parametrize("words", COMMANDS)
def test_data_that_only_root_can_read_are_a_problem(folder: Path, words: tuple[str, ...]) -> None:
    np.savez(folder / "data.npz", x=np.zeros((4, 2), "f4"), y=np.zeros(4, "i8"))
    config = client(folder, f'path = "{folder}/data.npz"')
    assert "the data can be read" in run_as_root(*words, config)
    (folder / "data.npz").chmod(0o600)
    assert "Permission denied" in run_as_root(*words, config)


def test_the_coordinators_folder_is_looked_at_as_the_coordinator(folder: Path) -> None:
    layout = Layout(folder / "root", system=False)
    told("server", "init", "127.0.0.1", "--federation", "f", "--root", str(layout.root))
    home, identity = layout.home("coordinator"), layout.identity("coordinator")
    for path in (home, *home.rglob("*")):
        os.chown(path, SOMEBODY, SOMEBODY)
    toml, state = str(layout.coordinator_toml), str(home / "state")
    assert "the certificate of 'coordinator' is valid until" in run_as_root("doctor", toml)
    hidden = folder / "hidden"
    hidden.mkdir(mode=0o700)
    (identity / "key.pem").rename(hidden / "key.pem")
    (identity / "key.pem").symlink_to(hidden / "key.pem")
    (hidden / "coordinator.db").touch()
    (home / "state").mkdir(exist_ok=True)
    (home / "state" / "coordinator.db").symlink_to(hidden / "coordinator.db")
    for words in (
        ("doctor", toml),
        ("status", toml, "--once"),
        ("models", "list", "--state-dir", state),
    ):
        assert "Permission denied" in run_as_root(*words), words
