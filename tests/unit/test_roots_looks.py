"""What root asks about a service is looked at with the service's rights: what runs there, such as
the function of a device's owner, runs as who the service is, and what the service cannot read is
told as that."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from registrar.layout import Layout
from tests.bundles import build
from tests.server import told

SOMEBODY = 65534
pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")


def _started_by(python: str) -> list[str]:
    """How that one runs this fedtide, with what is installed for ours."""
    packages = f"{Path(__file__).parents[2]}:{sysconfig.get_path('platlib')}"
    return ["env", f"PYTHONPATH={packages}", python, "-P", "-m", "fedtide"]


@pytest.fixture(scope="module")
def fedtide() -> list[str]:
    """How fedtide is started by whoever it is. A Python of root's own nobody else can read: then
    the system's runs what is installed for it."""
    for python in (sys.executable, "/usr/bin/python3"):
        started = _started_by(python)
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run([*started, "--version"], user=SOMEBODY, capture_output=True, check=True)
            return started
    pytest.skip("no Python here is one that everybody can run")


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that everybody may look into; pytest's own lies where nobody else gets."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def run_as_root(fedtide: Sequence[str], *words: str) -> str:
    """What a command says, in a process of its own: who has become somebody else stays so."""
    done = subprocess.run(
        [*fedtide, *words], capture_output=True, text=True, timeout=60, check=False
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
def test_the_owners_function_does_not_run_as_root(
    fedtide: list[str], folder: Path, words: tuple[str, ...]
) -> None:
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
    assert "the data can be read" in run_as_root(fedtide, *words, config)
    assert (folder / "out" / "ids").read_text() == str((SOMEBODY,) * 3)
    assert not (folder / "out" / "root").exists()


@pytest.mark.parametrize("words", COMMANDS)
def test_data_that_only_root_can_read_are_a_problem(
    fedtide: list[str], folder: Path, words: tuple[str, ...]
) -> None:
    np.savez(folder / "data.npz", x=np.zeros((4, 2), "f4"), y=np.zeros(4, "i8"))
    config = client(folder, f'path = "{folder}/data.npz"')
    assert "the data can be read" in run_as_root(fedtide, *words, config)
    (folder / "data.npz").chmod(0o600)
    assert "Permission denied" in run_as_root(fedtide, *words, config)


def test_the_coordinators_folder_is_looked_at_as_the_coordinator(
    fedtide: list[str], folder: Path
) -> None:
    layout = Layout(folder / "root", system=False)
    told("server", "init", "127.0.0.1", "--federation", "f", "--root", str(layout.root))
    home, identity = layout.home("coordinator"), layout.identity("coordinator")
    for path in (home, *home.rglob("*")):
        os.chown(path, SOMEBODY, SOMEBODY)
    toml, state = str(layout.coordinator_toml), str(home / "state")
    assert "the certificate of 'coordinator' is valid until" in run_as_root(fedtide, "doctor", toml)
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
        assert "Permission denied" in run_as_root(fedtide, *words), words


def test_who_is_root_already_is_told_whom_to_let_in(fedtide: list[str], folder: Path) -> None:
    config = client(folder, f'path = "{folder}/data.npz"')
    (folder / "home" / "state").mkdir(mode=0)
    said = run_as_root(fedtide, "client", "check-data", "--config", config)
    assert f"let this user (id {SOMEBODY}) use it" in said


def test_a_bundle_that_only_root_can_read_is_enough(fedtide: list[str], folder: Path) -> None:
    np.savez(folder / "data.npz", x=np.zeros((4, 8), "f4"), y=np.zeros(4, "i8"))
    config = client(folder, f'path = "{folder}/data.npz"')
    bundle = shutil.copytree(build("tiny_mlp"), folder / "closed" / "bundle")
    bundle.parent.chmod(0o700)
    said = run_as_root(fedtide, "client", "check-data", "--config", config, "--bundle", str(bundle))
    assert "the data fit the model" in said


def test_a_python_that_only_root_can_read_is_named(folder: Path) -> None:
    """Else what it imports later is said not to be installed."""
    library = Path(os.__file__)
    try:
        subprocess.run(["test", "-r", library], user=SOMEBODY, check=True)
    except subprocess.CalledProcessError:
        pass
    else:
        pytest.skip("everybody can read this Python")
    config = client(folder, f'path = "{folder}/data.npz"')
    said = run_as_root(_started_by(sys.executable), "client", "check-data", "--config", config)
    assert f"cannot read {str(library)!r} of the Python that runs this" in said
