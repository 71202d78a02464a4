"""The file that installs the client: whose wheels, for whom, and always the same bytes."""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from coordinator.packaging import command
from coordinator.packaging.own_wheel import own_wheel
from coordinator.packaging.run_file import make_run_file
from coordinator.packaging.wheels import Target, Wheel, check_complete, download
from fedtide.cli import main
from fedtide.errors import ConfigError
from tests.offline_files import MACHINE, PYTHON, make_client, make_wheel

TARGET = Target(PYTHON, MACHINE)


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A folder of wheels."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    for wheel in (make_wheel("needed", "2.5", {"needed.py": ""}), make_wheel("other", "1.0", {})):
        (folder / wheel.file_name).write_bytes(wheel.content)
    return folder


def save(wheel: Wheel, folder: Path) -> Path:
    path = folder / wheel.file_name
    path.write_bytes(wheel.content)
    return path


def test_made_twice_from_the_same_wheels_it_is_the_same(
    shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = make_client("1.0", "", ("needed >=2 ; extra == 'client'", "other; extra == 'export'"))
    wheel, out = save(client, tmp_path), tmp_path / "client.run"
    words = ["server", "package", "--wheel", str(wheel), "--wheels", str(shelf), "--out", str(out)]
    assert main([*words, "--python", PYTHON, "--arch", "x86_64"]) == 0
    said, first = capsys.readouterr().out, out.read_bytes()
    with zipfile.ZipFile(out) as archive:
        names = archive.namelist()
    assert "wheels/needed-2.5-py3-none-any.whl" in names
    assert "wheels/other-1.0-py3-none-any.whl" not in names
    assert said.splitlines()[-2].endswith(hashlib.sha256(first).hexdigest())
    out.unlink()
    assert main([*words, "--python", PYTHON, "--arch", "x86_64"]) == 0
    assert out.read_bytes() == first


def test_with_images_its_wheel_is_there_and_the_name_says_what_the_file_is_for(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client("1.0", "", ("needed; extra == 'client'", "other; extra == 'images'"))
    monkeypatch.chdir(tmp_path)
    words = ["server", "package", "--wheel", str(save(client, tmp_path)), "--wheels", str(shelf)]
    assert main([*words, "--python", PYTHON, "--arch", "x86_64", "--with", "images"]) == 0
    tag = f"cp{PYTHON.replace('.', '')}"
    with zipfile.ZipFile(f"fedtide-client-images-1.0-{tag}-x86_64.run") as archive:
        assert "wheels/other-1.0-py3-none-any.whl" in archive.namelist()
    assert main([*words, "--python", PYTHON, "--arch", "x86_64"]) == 0
    with zipfile.ZipFile(f"fedtide-client-1.0-{tag}-x86_64.run") as archive:
        assert "wheels/other-1.0-py3-none-any.whl" not in archive.namelist()


@pytest.mark.parametrize("out", ["absent/client.run", "folder"])
def test_where_no_file_can_be_written_nothing_is_fetched(
    out: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    wheel = save(make_client("1.0"), tmp_path)
    assert main(["server", "package", "--wheel", str(wheel), "--out", out]) == 2
    said = capsys.readouterr()
    assert f"--out {out!r}" in said.err
    assert "hint: " in said.err
    assert "wheels for" not in said.out


def test_several_pythons_share_what_is_the_same() -> None:
    one, two = (make_wheel("needed", version, {}) for version in ("1.0", "2.0"))
    client = make_client("1.0")
    content, manifest = make_run_file(
        "1.0", MACHINE, {"3.13": [client, two], "3.11": [client, one]}
    )
    assert list(manifest["pythons"]) == ["3.11", "3.13"]
    again, _ = make_run_file("1.0", MACHINE, {"3.11": [one, client], "3.13": [two, client]})
    assert content == again
    assert content.count(b"wheels/fedtide-1.0-py3-none-any.whlPK") == 2, "once, and the index"


def test_a_wheel_that_is_nowhere_is_a_message_with_what_pip_said(
    shelf: Path, tmp_path: Path
) -> None:
    client = make_client("1.0", "", ("missing; extra == 'client'",))
    folder = tmp_path / "down"
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"(?s)no wheels of the client.*missing"):
        download(client, TARGET, folder, shelf)


def test_what_only_the_devices_python_needs_is_not_forgotten() -> None:
    """pip leaves it out: it judges a condition by the Python that it runs in."""
    old = make_client("1.0", "", ("needed; extra == 'client' and python_version == '3.99'",))
    check_complete([old], TARGET)
    with pytest.raises(ConfigError, match=r"needs needed.* on Python 3\.99"):
        check_complete([old], Target("3.99", MACHINE))
    deep = make_wheel("needed", "1.0", {}, ("deeper; platform_machine == 'vax'",))
    client = make_client("1.0", "", ("needed; extra == 'client'",))
    check_complete([client, deep], TARGET)
    with pytest.raises(ConfigError, match="needed needs deeper"):
        check_complete([client, deep], Target(PYTHON, "vax"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--wheel", "none.whl"], "No such file"),
        (["--wheel", "README.md"], "Invalid wheel filename"),
        (["--python", "three"], "no version of Python"),
        (["--wheels", "/nowhere"], "--wheels '/nowhere': there is no such folder"),
    ],
)
def test_a_wrong_flag_is_a_message(
    flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = save(make_client("1.0"), tmp_path)
    before = [] if "--wheel" in flags else ["--wheel", str(wheel)]
    assert main(["server", "package", *before, *flags]) == 2
    assert said in capsys.readouterr().err


def test_a_wheel_of_something_else_is_refused(tmp_path: Path) -> None:
    path = save(make_wheel("other", "1.0", {}), tmp_path)
    with pytest.raises(ConfigError, match="not a wheel of fedtide"):
        command._own(path)


# ---- our own wheel, from what is installed ----


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """site-packages with our client, as pip installs it."""
    wheel = save(make_client("1.0"), tmp_path)
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--no-index", "--target", site, wheel], check=True)
    return site


def distribution(site: Path) -> importlib.metadata.Distribution:
    (found,) = importlib.metadata.distributions(name="fedtide", path=[str(site)])
    return found


def test_our_wheel_is_made_again_from_what_is_installed(installed: Path, tmp_path: Path) -> None:
    name, content = own_wheel(distribution(installed))
    assert name == "fedtide-1.0-py3-none-any.whl"
    path = save(Wheel(name, content), tmp_path)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert archive.testzip() is None
    assert not [
        n for n in names if n.endswith((".pyc", "INSTALLER", "REQUESTED", "direct_url.json"))
    ]
    assert "device_installer/__main__.py" in names
    # What is made from it is what it was made from.
    again = tmp_path / "again"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--no-index", "--target", again, path], check=True)
    assert own_wheel(distribution(again))[1] == content


def test_an_installed_file_that_was_changed_is_noticed(installed: Path) -> None:
    (installed / "fedtide/__init__.py").write_text("import evil\n")
    with pytest.raises(ConfigError, match=r"'fedtide/__init__\.py' was changed"):
        own_wheel(distribution(installed))


def test_an_installed_file_that_is_gone_is_noticed(installed: Path) -> None:
    shutil.rmtree(installed / "edge_client")
    with pytest.raises(ConfigError, match="lacks its file 'edge_client"):
        own_wheel(distribution(installed))


def test_a_copy_of_the_repository_says_how_to_make_a_wheel(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = tmp_path / "fedtide.egg-info"
    metadata.mkdir()
    (metadata / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: fedtide\nVersion: 1.0\n")
    with pytest.raises(ConfigError) as caught:
        own_wheel(distribution(tmp_path))
    assert "make wheel" in str(caught.value)
