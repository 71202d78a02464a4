"""Every wheel that the client needs on a device: another processor's, another Python's."""

from __future__ import annotations

import email
import hashlib
import io
import platform
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from fedtide.errors import ConfigError

_GLIBC_OLDEST, _GLIBC = 17, 36
"""2.17 is what manylinux2014 means; 2.36 is what Debian 12 has."""


class Target(NamedTuple):
    """What a wheel has to fit."""

    python: str
    """As 3.11."""
    machine: str
    """As `uname -m` says it."""

    def markers(self, extra: str = "") -> dict[str, str]:
        """For a requirement's condition (PEP 508). pip takes its own Python's instead."""
        return {
            "extra": extra,
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_system": "Linux",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
        }


class Wheel(NamedTuple):
    """One wheel's file."""

    file_name: str
    content: bytes

    @property
    def name(self) -> str:
        """The distribution's, normalised."""
        return parse_wheel_filename(self.file_name)[0]

    @property
    def version(self) -> str:
        """The distribution's."""
        return str(parse_wheel_filename(self.file_name)[1])

    @property
    def sha256(self) -> str:
        """Of the file, as package indexes name it."""
        return hashlib.sha256(self.content).hexdigest()

    def requirements(self) -> list[Requirement]:
        """What it says that it needs."""
        with zipfile.ZipFile(io.BytesIO(self.content)) as archive:
            found = [n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n)]
            metadata = email.message_from_bytes(archive.read(found[0]))
        return [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]

    def installed_bytes(self) -> int:
        """Of its files, unpacked.

        Raises:
            ConfigError: it has files for other places than Python's packages.
        """
        with zipfile.ZipFile(io.BytesIO(self.content)) as archive:
            members = archive.infolist()
        for member in members:
            if ".data/" in member.filename:
                raise ConfigError(
                    f"the wheel {self.file_name} wants to install {member.filename!r}, and the "
                    "installer unpacks Python packages only",
                    hint="tell fedtide's developers",
                )
        return sum(member.file_size for member in members)

    def glibc_minor(self) -> int:
        """The least y of glibc 2.y that it runs on; 0: any."""
        found = [int(y) for y in re.findall(r"manylinux_2_(\d+)_", self.file_name)]
        return min([*found, _GLIBC_OLDEST] if "manylinux2014" in self.file_name else found or [0])


def download(
    own: Wheel,
    target: Target,
    folder: Path,
    source: Path | None = None,
    extras: Sequence[str] = ("client",),
) -> list[Wheel]:
    """Our wheel and those that its `extras` need, for `target`, by name; files go to `folder`.

    pip takes them from where this machine's pip is told to, or from the folder `source` alone.

    Raises:
        ConfigError: pip is not there or did not find a wheel; its own words are told.
    """
    (folder / own.file_name).write_bytes(own.content)
    platforms = [f"manylinux_2_{y}_{target.machine}" for y in range(_GLIBC, _GLIBC_OLDEST - 1, -1)]
    platforms.append(f"manylinux2014_{target.machine}")
    command = [
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download"),
        *("--quiet", "--only-binary=:all:", "--implementation=cp", "--dest", str(folder)),
        f"--python-version={target.python}",
        *(f"--platform={platform}" for platform in platforms),
        *(("--no-index", f"--find-links={source}") if source else ()),
        f"{folder / own.file_name}[{','.join(extras)}]",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
        raise ConfigError(
            f"pip found no wheels of the client for Python {target.python} on {target.machine}:\n"
            + "\n".join(said[-6:]),
            hint="put them into that folder (pip download)"
            if source
            else "is the package index reachable? --wheels FOLDER takes wheels from a folder",
        )
    wheels = [Wheel(path.name, path.read_bytes()) for path in sorted(folder.glob("*.whl"))]
    check_complete(wheels, target, extras)
    return wheels


def check_complete(
    wheels: Iterable[Wheel], target: Target, extras: Sequence[str] = ("client",)
) -> None:
    """Make sure that nothing is missing there.

    Raises:
        ConfigError: pip, which judges conditions by the Python that it runs in, left one out.
    """
    known = {wheel.name: wheel for wheel in wheels}
    todo: list[tuple[str, Sequence[str]]] = [("fedtide", extras)]
    done = set()
    while todo:
        name, extras = todo.pop()
        for requirement in known[canonicalize_name(name)].requirements():
            if requirement.marker is not None and not any(
                requirement.marker.evaluate(target.markers(extra)) for extra in (*extras, "")
            ):
                continue
            wheel = known.get(canonicalize_name(requirement.name))
            if wheel is None or wheel.version not in requirement.specifier:
                raise ConfigError(
                    f"{name} needs {requirement} on Python {target.python}, and pip, which judges "
                    f"by its own Python {platform.python_version()}, left it out",
                    hint=f"run this command in an environment of Python {target.python}",
                )
            step = (wheel.name, tuple(requirement.extras))
            if step not in done:
                done.add(step)
                todo.append(step)
