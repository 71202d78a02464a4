"""The file itself: a shell script that checks what follows it, and an archive that Python runs."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from coordinator.packaging.archive import write_archive
from coordinator.packaging.wheels import Wheel

FORMAT = 1
_DIGITS = 12
"""Of the numbers in the script, so that its own length does not depend on them."""
_MAIN = b"import sys\n\nfrom device_installer.__main__ import main\n\nsys.exit(main())\n"


def make_run_file(
    version: str, machine: str, wheels_of: Mapping[str, Sequence[Wheel]]
) -> tuple[bytes, dict[str, Any]]:
    """The file for a device of kind `machine`, and what it says of itself: wheels by the Python
    (as 3.11) that they are for. The same wheels make the same bytes."""
    pythons = sorted(wheels_of, key=lambda python: [int(part) for part in python.split(".")])
    manifest = {
        "format": FORMAT,
        "version": version,
        "machine": machine,
        "pythons": {python: _describe(wheels_of[python]) for python in pythons},
    }
    members = {
        "__main__.py": _MAIN,
        "manifest.json": json.dumps(manifest, indent=1).encode(),
        **_installer(wheels_of[pythons[0]]),
    }
    wheels = {wheel.file_name: wheel for several in wheels_of.values() for wheel in several}
    members |= {f"wheels/{name}": wheels[name].content for name in sorted(wheels)}
    archive = io.BytesIO()
    write_archive(archive, members)
    content = archive.getvalue()
    stub = files("coordinator.packaging").joinpath("stub.sh").read_text()
    fixed = {
        "VERSION": version,
        "MACHINE": machine,
        "PYTHONS": " ".join(pythons),
        "COMMANDS": " ".join(f"python{python}" for python in reversed(pythons)),
        "DIGEST": hashlib.sha256(content).hexdigest(),
    }
    for name, value in fixed.items():
        stub = stub.replace(f"@{name}@", value)
    for name in ("BYTES", "START"):  # numbers of blanks and digits: as long as they will be
        stub = stub.replace(f"@{name}@", f"@{name}@".ljust(_DIGITS))
    start = len(stub.encode())
    for name, number in (("BYTES", start + len(content)), ("START", start + 1)):
        stub = stub.replace(f"@{name}@".ljust(_DIGITS), str(number).ljust(_DIGITS))
    return stub.encode() + content, manifest


def _installer(wheels: Sequence[Wheel]) -> dict[str, bytes]:
    """The installer's modules: those of the version that it installs."""
    own = next(wheel for wheel in wheels if wheel.name == "fedtide")
    with zipfile.ZipFile(io.BytesIO(own.content)) as archive:
        names = sorted(n for n in archive.namelist() if n.startswith("device_installer/"))
        return {name: archive.read(name) for name in names}


def _describe(wheels: Sequence[Wheel]) -> dict[str, Any]:
    return {
        "glibc_minor": max(wheel.glibc_minor() for wheel in wheels),
        "installed_bytes": sum(wheel.installed_bytes() for wheel in wheels),
        "wheels": [
            {"file": w.file_name, "name": w.name, "version": w.version, "sha256": w.sha256}
            for w in sorted(wheels, key=lambda wheel: wheel.file_name)
        ],
    }
