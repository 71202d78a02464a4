"""`fedtide server package`: one file that installs the client on a device without internet."""

from __future__ import annotations

import argparse
import hashlib
import re
import tempfile
from pathlib import Path

from packaging.utils import InvalidWheelFilename

from coordinator.packaging.own_wheel import own_wheel
from coordinator.packaging.run_file import make_run_file
from coordinator.packaging.wheels import Target, Wheel, download
from fedtide.errors import ConfigError
from fedtide.files import disk_errors_of, require_place, write_atomically

MACHINES = ("aarch64", "x86_64")
PYTHONS = ("3.11", "3.13")
"""Of Raspberry Pi OS 12 and 13."""
EXTRAS = ("images",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare flags."""
    parser.add_argument(
        "--arch",
        choices=MACHINES,
        default=MACHINES[0],
        help="of the devices (default: %(default)s)",
    )
    parser.add_argument(
        "--python",
        action="append",
        metavar="X.Y",
        help="of the devices; several times for several (default: 3.11 and 3.13)",
    )
    parser.add_argument(
        "--with",
        dest="extras",
        action="append",
        choices=EXTRAS,
        default=[],
        help="what some devices need beside: Pillow, for data in folders of images",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file to be written")
    parser.add_argument(
        "--wheel", type=Path, metavar="FILE", help="another fedtide than the one that runs here"
    )
    parser.add_argument(
        "--wheels", type=Path, metavar="FOLDER", help="take wheels from there, from no index"
    )


def run(parsed: argparse.Namespace) -> int:
    """Make the file."""
    own = _own(parsed.wheel)
    pythons = list(dict.fromkeys(parsed.python or PYTHONS))
    for python in pythons:
        if re.fullmatch(r"3\.\d{1,2}", python) is None:
            raise ConfigError(f"--python {python!r} is no version of Python", hint="as in 3.11")
    if parsed.wheels is not None and not parsed.wheels.is_dir():
        raise ConfigError(
            f"--wheels {str(parsed.wheels)!r}: there is no such folder", hint="name one of wheels"
        )
    extras = list(dict.fromkeys(parsed.extras))
    path = parsed.out or _file_of(own.version, parsed.arch, pythons, extras)
    _check_writable(path)  # before minutes of fetching
    wheels_of = {}
    for python in pythons:
        print(f"wheels for Python {python} on {parsed.arch} ...", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            target = Target(python, parsed.arch)
            wheels_of[python] = download(
                own, target, Path(folder), parsed.wheels, ("client", *extras)
            )
        for wheel in wheels_of[python]:
            print(f"  {wheel.name} {wheel.version}  {len(wheel.content) / 1e6:.1f} MB")
    content, manifest = make_run_file(own.version, parsed.arch, wheels_of)
    with disk_errors_of(path.parent):
        write_atomically(path, content)
    for python, described in manifest["pythons"].items():
        print(f"installed on Python {python}: {described['installed_bytes'] / 1e6:.0f} MB")
    print(f"{path}: {len(content) / 1e6:.1f} MB, SHA-256 {hashlib.sha256(content).hexdigest()}")
    print(f"on the device, as root: sh {path.name}")
    return 0


def _file_of(version: str, machine: str, pythons: list[str], extras: list[str]) -> Path:
    """Named after all that it is for, as a wheel is."""
    tags = ".".join(f"cp{python.replace('.', '')}" for python in pythons)
    return Path(f"{'-'.join(('fedtide-client', *extras, version, tags, machine))}.run")


def _check_writable(path: Path) -> None:
    """Raises ConfigError, StateError: no file can be written there."""
    require_place(path)
    with disk_errors_of(path.parent), tempfile.TemporaryFile(dir=path.parent):
        pass


def _own(path: Path | None) -> Wheel:
    if path is None:
        return Wheel(*own_wheel())
    try:
        wheel = Wheel(path.name, path.read_bytes())
        if wheel.name == "fedtide":
            return wheel
    except (OSError, InvalidWheelFilename) as exc:
        raise ConfigError(f"--wheel {str(path)!r}: {exc}", hint="`make wheel` makes one") from exc
    raise ConfigError(f"--wheel {path.name!r} is not a wheel of fedtide", hint="see --wheel --help")
