"""What installs the client on a device: each way for it to be wrong, stopped, damaged or misled."""

from __future__ import annotations

import os
import platform
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.packaging.run_file import make_run_file
from coordinator.packaging.wheels import Wheel
from device_installer import __main__ as installer
from device_installer import trial
from device_installer.layout import Layout
from device_installer.package import Package
from device_installer.telling import Refused
from tests.offline_files import (
    MACHINE,
    PYTHON,
    make_client,
    make_file,
    make_python,
    make_systemd,
    make_wheel,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    return {
        "1.0": make_file(folder, "1.0"),
        "2.0": make_file(folder, "2.0"),
        "3.0": make_file(folder, "3.0"),
        "bad": make_file(folder, "9.0", "sys.exit('no module of that name')"),
    }


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_python(tmp_path_factory.mktemp("path") / "bin")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "device"
    folder.mkdir()
    return folder


@pytest.fixture
def systemd(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A device on which the service runs version 1.0."""
    commands = make_systemd(tmp_path / "systemd", root)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setattr(trial, "_SETTLES_S", 0)
    return Layout(root)


def run(file: Path, python: Path, *words: str, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{path}{python}:/usr/sbin:/usr/bin:/sbin:/bin"}
    return subprocess.run(
        ["sh", str(file), *words], env=environment, capture_output=True, text=True, check=False
    )


def install(file: Path, layout: Layout) -> None:
    installer.install(Package(file), layout, 5)


def version_of(root: Path) -> str:
    """What the device's command says; its Python, without the rest of the device."""
    done = subprocess.run(
        [root / "opt/fedtide/fedtide"], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def tree(root: Path) -> list[str]:
    """Names of everything, without what Python compiles."""
    return sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if "__pycache__" not in path.parts
    )


# ---- the plain way ----


def test_installed_updated_taken_back_and_removed(
    files: dict[str, Path], python: Path, root: Path
) -> None:
    before = tree(root)
    for file, version in (("1.0", "1.0"), ("2.0", "2.0"), ("3.0", "3.0"), ("2.0", "2.0")):
        done = run(files[file], python, "--root", str(root))
        assert done.returncode == 0, done.stderr
        assert version_of(root) == f"fedtide {version}"
    layout = Layout(root)
    names = sorted(path.name[:3] for path in layout.versions.iterdir())
    assert names == ["2.0", "3.0"], "the one in use and the one before it"
    assert layout.previous.readlink().name.startswith("3.0")
    assert layout.command.readlink() == Path("/opt/fedtide/fedtide")
    done = run(files["2.0"], python, "--root", str(root), "--uninstall")
    assert done.returncode == 0, done.stderr
    assert [
        path for path in tree(root) if path not in ("usr", "usr/local", "usr/local/bin", "opt")
    ] == before


def test_what_is_uninstalled_before_leaving_says_what_is_kept_and_how_it_goes(
    files: dict[str, Path], python: Path, root: Path
) -> None:
    assert run(files["1.0"], python, "--root", str(root)).returncode == 0
    config = root / "etc/fedtide/client.toml"
    config.parent.mkdir(parents=True)
    config.touch()
    done = run(files["1.0"], python, "--root", str(root), "--uninstall")
    assert done.returncode == 0, done.stderr
    assert "the service fedtide-client.service, which is off now, and its user" in done.stdout
    assert "to go on with it: install again, then sudo systemctl enable --now" in done.stdout
    assert "install again, then fedtide device leave, then uninstall" in done.stdout
    assert config.exists()


def test_what_is_installed_can_be_read_and_run_by_everybody(
    files: dict[str, Path], python: Path, root: Path
) -> None:
    mask = os.umask(0o077)
    try:
        assert run(files["1.0"], python, "--root", str(root)).returncode == 0
    finally:
        os.umask(mask)
    for path in (root / "opt").rglob("*"):
        mode = path.lstat().st_mode
        assert path.is_symlink() or mode & 0o444 == 0o444, path
        assert not path.is_dir() or mode & 0o111 == 0o111, path


def test_the_same_file_again_changes_nothing(
    files: dict[str, Path], python: Path, root: Path
) -> None:
    run(files["1.0"], python, "--root", str(root))
    before = tree(root)
    assert run(files["1.0"], python, "--root", str(root)).returncode == 0
    assert tree(root) == before


def test_a_version_that_was_damaged_is_mended_by_its_file(
    files: dict[str, Path], root: Path
) -> None:
    layout = Layout(root)
    install(files["1.0"], layout)
    shutil.rmtree(layout.current.resolve() / "lib")
    install(files["1.0"], layout)
    assert version_of(root) == "fedtide 1.0"
    assert len(list(layout.versions.iterdir())) == 1


def test_one_installer_at_a_time(files: dict[str, Path], python: Path, root: Path) -> None:
    with installer._locked(Layout(root)):
        done = run(files["1.0"], python, "--root", str(root))
    assert (done.returncode, "another installer" in done.stderr) == (2, True)


def test_a_command_of_others_is_left_alone(
    files: dict[str, Path], python: Path, root: Path
) -> None:
    (root / "usr/local/bin").mkdir(parents=True)
    (root / "usr/local/bin/fedtide").write_text("pip's")
    before = tree(root)
    done = run(files["1.0"], python, "--root", str(root))
    assert done.returncode == 2
    assert "there is another" in done.stderr
    assert [path for path in tree(root) if path != "opt"] == before
    run(files["1.0"], python, "--root", str(root), "--uninstall")
    assert [path for path in tree(root) if path != "opt"] == before


def test_nothing_is_installed_or_removed_on_a_server(
    files: dict[str, Path], python: Path, root: Path
) -> None:
    for path in ("usr/local/bin/fedtide", "etc/fedtide/registrar.toml"):
        (root / path).parent.mkdir(parents=True)
        (root / path).write_text("the server's")
    before = tree(root)
    done = run(files["1.0"], python, "--root", str(root))
    assert done.returncode == 2
    assert "this machine is a server" in done.stderr
    assert "uninstall" not in done.stderr
    assert [path for path in tree(root) if path != "opt"] == before


# ---- the wrong machine ----


def refusal(file: Path, root: Path) -> str:
    with pytest.raises(Refused) as caught:
        install(file, Layout(root))
    assert not (root / "opt/fedtide/current").exists()
    return f"{caught.value} {caught.value.hint}"


def test_another_processor(
    files: dict[str, Path], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64" if MACHINE == "x86_64" else "x86_64")
    assert "--arch" in refusal(files["1.0"], root)
    monkeypatch.setattr(platform, "machine", lambda: "armv7l")
    assert "64-bit" in refusal(files["1.0"], root)


def test_32_bit_programs_on_a_64_bit_kernel(
    files: dict[str, Path], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(struct, "calcsize", lambda _: 4)
    assert "32-bit ones" in refusal(files["1.0"], root)


@pytest.mark.parametrize("libc", [None, "glibc 2.10"])
def test_another_c_library(
    libc: str | None, root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wheel = make_wheel("compiled", "1.0", {"compiled/__init__.py": ""})
    wheel = wheel._replace(file_name=f"compiled-1.0-py3-none-manylinux_2_28_{MACHINE}.whl")
    file = make_file(tmp_path, "1.0", "", wheel)
    monkeypatch.setattr(os, "confstr", lambda _: libc)
    assert "glibc 2.28" in refusal(file, root)


@pytest.mark.parametrize("version", ["3.9.2", "4.0.0"])
def test_another_python(version: str, files: dict[str, Path], tmp_path: Path, root: Path) -> None:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    fake = bin_folder / "python3"
    fake.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo Python {version} || echo {version[:3]}\n'
    )
    fake.chmod(0o755)
    (bin_folder / f"python{PYTHON}").symlink_to("/bin/false")
    done = run(files["1.0"], bin_folder, "--root", str(root))
    assert done.returncode == 2
    assert f"Python {version}" in done.stderr
    assert list(root.iterdir()) == []


def test_no_room(files: dict[str, Path], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000_000))
    assert "10 MB are free" in refusal(files["1.0"], root)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may")
def test_not_root(files: dict[str, Path], python: Path) -> None:
    done = run(files["1.0"], python)
    assert (done.returncode, "sudo sh" in done.stderr) == (2, True)


# ---- the wrong file ----


def test_every_damage_to_the_file_is_noticed_before_anything_is_changed(
    files: dict[str, Path], python: Path, tmp_path: Path, root: Path
) -> None:
    raw = files["1.0"].read_bytes()
    start = raw.index(b"PK\x03\x04")
    damaged = {
        "cut off": raw[:-100],
        "half": raw[: len(raw) // 2],
        "the script alone": raw[:start],
        "longer": raw + b"x",
        "a byte of the archive": raw[: start + 500] + b"\x00" + raw[start + 501 :],
        "the last byte": raw[:-1] + b"x",
        "digest": raw[:start].replace(b"] ||\n  fail", b"0] ||\n  fail") + raw[start:],
    }
    file = tmp_path / "damaged.run"
    for name, content in damaged.items():
        file.write_bytes(content)
        done = run(file, python, "--root", str(root))
        assert done.returncode == 2, name
        assert "fedtide: error: the file is" in done.stderr, name
        assert list(root.iterdir()) == [], name
        # By Python alone, without the script's checks: a message as well, or what is intact.
        by_python = subprocess.run(
            [python / "python3", "-I", "-c", _BY_PYTHON, str(file), "--root", str(root)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "Traceback" not in by_python.stderr, name
        shutil.rmtree(root / "opt", ignore_errors=True)
        shutil.rmtree(root / "usr", ignore_errors=True)


_BY_PYTHON = (
    "import sys; sys.argv = sys.argv[1:]; "
    f"sys.path.insert(0, {str(Path(installer.__file__).parent.parent)!r}); "
    "from device_installer.__main__ import main; sys.exit(main())"
)


@pytest.mark.parametrize(
    "member", ["../outside", "/etc/passwd", "a/../../outside", "x-1.data/scripts/sh"]
)
def test_a_wheel_that_writes_elsewhere_is_refused(
    member: str, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = make_wheel("hostile", "1.0", {member: "x", "hostile/__init__.py": ""})
    wheels = [make_client("1.0"), hostile]
    monkeypatch.setattr(Wheel, "installed_bytes", lambda _: 0)  # which would not pack the last one
    content, _ = make_run_file("1.0", MACHINE, {PYTHON: wheels})
    file = tmp_path / "hostile.run"
    file.write_bytes(content)
    assert "no file of a Python package" in refusal(file, root)
    assert not (tmp_path / "outside").exists()


def test_a_wheel_that_holds_more_than_is_told_is_refused(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Wheel, "installed_bytes", lambda _: 1)
        file = make_file(tmp_path, "1.0")
    assert "not what is said" in refusal(file, root)


def test_a_wheel_that_is_not_the_one_told_of_is_refused(tmp_path: Path, root: Path) -> None:
    file = make_file(tmp_path, "1.0")
    package = Package(file)
    package.content["wheels"][0]["sha256"] = "0" * 64
    with pytest.raises(Refused, match="is damaged"):
        installer.install(package, Layout(root), 5)


def test_a_client_that_does_not_run_here_changes_nothing(
    files: dict[str, Path], python: Path, root: Path
) -> None:
    run(files["1.0"], python, "--root", str(root))
    before = tree(root)
    done = run(files["bad"], python, "--root", str(root))
    assert done.returncode == 8
    assert "no module of that name" in done.stderr
    assert tree(root) == before


# ---- a service that has to come up ----


def running(layout: Layout) -> str:
    return (layout.root / "runs").read_text()[:3]


def test_an_update_is_tried_by_the_service_first(files: dict[str, Path], systemd: Layout) -> None:
    install(files["1.0"], systemd)
    assert running(systemd) == "1.0"
    install(files["2.0"], systemd)
    assert running(systemd) == "2.0"
    assert version_of(systemd.root) == "fedtide 2.0"
    assert not systemd.drop_in.exists()
    assert not systemd.trial.exists()
    calls = (systemd.root / "calls").read_text().splitlines()
    assert calls[-2:] == ["stop fedtide-trial.timer", "is-active fedtide-client.service"]


def test_a_version_with_which_the_service_does_not_come_up_is_taken_back(
    files: dict[str, Path], systemd: Layout
) -> None:
    install(files["1.0"], systemd)
    before = tree(systemd.home)
    (systemd.root / "fails").write_text("2.0")
    with pytest.raises(Refused, match=r"did not come up .*\n?.*it said why") as caught:
        install(files["2.0"], systemd)
    assert caught.value.exit_code == 8
    assert running(systemd) == "1.0"
    assert version_of(systemd.root) == "fedtide 1.0"
    assert tree(systemd.home) == before
    assert not systemd.drop_in.exists()


def test_a_service_that_ends_soon_after_it_came_up_is_taken_back(
    files: dict[str, Path], systemd: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(files["1.0"], systemd)
    monkeypatch.setattr(trial, "_SETTLES_S", 1)
    (systemd.root / "fails").write_text("")
    real = trial.systemd

    def ends(*command: str, timeout_s: float = 90) -> subprocess.CompletedProcess[str]:
        done = real(*command, timeout_s=timeout_s)
        if command[:2] == ("systemctl", "start") and running(systemd) == "2.0":
            (systemd.root / "active").write_text("failed\n")
        return done

    monkeypatch.setattr(trial, "systemd", ends)
    with pytest.raises(Refused, match="it ended within"):
        install(files["2.0"], systemd)
    assert running(systemd) == "1.0"


def test_a_state_that_the_new_version_rewrote_is_given_back(
    files: dict[str, Path], systemd: Layout
) -> None:
    install(files["1.0"], systemd)
    (systemd.root / "fails").write_text("2.0")
    (systemd.root / "migrates").write_text("2.0")
    with pytest.raises(Refused):
        install(files["2.0"], systemd)
    assert running(systemd) == "1.0"
    assert (systemd.state / "session.0").read_text() == "1"


def test_a_service_that_was_stopped_on_purpose_stays_so(
    files: dict[str, Path], systemd: Layout
) -> None:
    install(files["1.0"], systemd)
    (systemd.root / "active").write_text("inactive\n")
    (systemd.root / "runs").write_text("")
    install(files["2.0"], systemd)
    assert running(systemd) == ""
    assert version_of(systemd.root) == "fedtide 2.0"


def test_a_service_that_is_off_is_told_and_how_it_is_turned_on(
    files: dict[str, Path], systemd: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after uninstalling: that turns it off."""
    install(files["1.0"], systemd)
    assert "is off" not in capsys.readouterr().out
    systemd.config.parent.mkdir()
    systemd.config.touch()
    installer.uninstall(systemd, purge=False)
    (systemd.root / "active").write_text("inactive\n")
    capsys.readouterr()
    install(files["1.0"], systemd)
    told = (
        "is off; to have it run, now and at each boot: sudo systemctl enable --now fedtide-client"
    )
    assert told in capsys.readouterr().out
    systemd.unit.unlink()
    install(files["2.0"], systemd)
    assert "is off" not in capsys.readouterr().out, "nobody has joined yet"


# ---- stopped in the middle ----

_KILLED = """
import os, signal, sys
at, file, root = int(sys.argv[1]), sys.argv[2], sys.argv[3]
sys.path.insert(0, file)
sys.argv = [file, "--root", root, "--come-up-s", "5"]
from device_installer import trial
from device_installer.__main__ import main
trial._SETTLES_S = 0
seen = 0
CHANGES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.symlink", "os.chmod",
           "subprocess.Popen", "os.chown", "shutil.rmtree"}
def hook(event, arguments):
    global seen
    written = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_ACCMODE
    if event in CHANGES or written:
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
code = main()
print("changes", seen)
sys.exit(code)
"""
"""Ends at the n-th change to the disk or the n-th start of a program."""


def killed_at(number: int, file: Path, root: Path, python: Path, path: str) -> int:
    done = subprocess.run(
        [python / "python3", "-I", "-c", _KILLED, str(number), str(file), str(root)],
        env={"PATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return int(done.stdout.rsplit("changes", 1)[1])
    assert done.returncode == -9, done.stderr
    return 0


def kills(step: int) -> Iterator[int]:
    yield from range(1, 10_000, step)


@pytest.mark.parametrize("step", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_anywhere_the_old_version_works_and_a_repetition_ends_well(
    step: int, files: dict[str, Path], python: Path, systemd: Layout, tmp_path: Path
) -> None:
    path = f"{tmp_path / 'systemd'}:{python}:/usr/bin:/bin"
    install(files["1.0"], systemd)
    copy = tmp_path / "copy"
    shutil.copytree(systemd.root, copy, symlinks=True)
    clean: list[str] | None = None
    for number in kills(step):
        (systemd.root / "fails").write_text("2.0" if number // step % 3 == 0 else "")
        ended = killed_at(number, files["2.0"], systemd.root, python, path)
        if ended:
            break
        # What systemd's timer does, or nothing: the next installer.
        if number // step % 2:
            trial.end_trial(systemd, 5)
            assert running(systemd) in ("1.0", "2.0"), number
            assert (systemd.root / "active").read_text() == "active\n", number
        assert version_of(systemd.root) in ("fedtide 1.0", "fedtide 2.0"), number
        (systemd.root / "fails").write_text("")
        install(files["2.0"], systemd)
        assert version_of(systemd.root) == "fedtide 2.0", number
        if clean is None:
            clean = tree(systemd.home)
        assert tree(systemd.home) == clean, number
        shutil.rmtree(systemd.root)
        shutil.copytree(copy, systemd.root, symlinks=True)
    else:
        pytest.fail("it never came to its end")
    assert number > 20


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_disk_that_fills_up_leaves_the_old_version(
    files: dict[str, Path], python: Path, root: Path, tmp_path: Path
) -> None:
    size = 1_300_000
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", root],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("may not mount")
    try:
        wheel = make_wheel("large", "1.0", {"large/__init__.py": "", "large/x": "0" * size})
        large = make_file(tmp_path, "2.0", "", wheel)
        layout = Layout(root)
        monkey = pytest.MonkeyPatch()
        with monkey.context() as patch:
            patch.setattr(installer, "_ROOM", (0.0, 0))
            install(files["1.0"], layout)
            before = tree(root)
            with pytest.raises(OSError, match="No space"):
                install(large, layout)
        assert tree(root) == before
        assert version_of(root) == "fedtide 1.0"
        done = run(large, python, "--root", str(root))
        assert (done.returncode, "MB are free" in done.stderr) == (7, True)
    finally:
        subprocess.run(["umount", root], check=True)
