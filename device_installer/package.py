"""The archive that the installer came in, and whether it suits this machine."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import struct
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from device_installer.telling import Refused

FORMAT = 1


class Package:
    """The archive that this program came in."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as exc:
            raise self._damaged(exc) from None
        self._raw_manifest = self._read("manifest.json")
        self.manifest: dict[str, Any] = json.loads(self._raw_manifest)
        if self.manifest["format"] != FORMAT:
            raise Refused("the file is of another format than its installer", "make it again")
        self.python = "{}.{}".format(*sys.version_info)
        pythons = self.manifest["pythons"]
        if self.python not in pythons:
            raise Refused(
                f"this file is for Python {' and '.join(pythons)}, and this is {self.python}",
                "64-bit Raspberry Pi OS 12 has 3.11 and 13 has 3.13; else, on the server: "
                f"fedtide server package --python {self.python}",
            )
        self.content: dict[str, Any] = pythons[self.python]

    def _read(self, member: str) -> bytes:
        try:
            return self._archive.read(member)
        except (OSError, KeyError, zipfile.BadZipFile) as exc:
            raise self._damaged(exc) from None

    def _damaged(self, exc: Exception) -> Refused:
        return Refused(
            f"{str(self._path)!r} is not the whole of an installer's file: {exc}",
            "run the file that `fedtide server package` made: sudo sh FILE",
        )

    @property
    def name(self) -> str:
        """Of the version: other wheels, or another Python, are another one."""
        digest = hashlib.sha256(self._raw_manifest).hexdigest()[:8]
        tag = self.python.replace(".", "")
        return f"{self.manifest['version']}-cp{tag}-{digest}"

    def check_machine(self) -> None:
        """Refuse a machine on which the wheels do not run."""
        machine, wanted = platform.machine(), self.manifest["machine"]
        if machine != wanted:
            raise Refused(
                f"this file is for {wanted}, and this machine is {machine}",
                f"on the server: fedtide server package --arch {machine}"
                if machine in ("aarch64", "x86_64")
                else "fedtide needs a 64-bit system: Raspberry Pi OS (64-bit), on a Pi 3 or newer",
            )
        if struct.calcsize("P") != 8:
            raise Refused(
                "the kernel is a 64-bit one, but the system's programs are 32-bit ones",
                "install Raspberry Pi OS (64-bit); the 32-bit one brings this kernel, too",
            )
        least = self.content["glibc_minor"]
        found = _glibc_minor()
        if found is None or found < least:
            raise Refused(
                f"this file needs glibc 2.{least}; here is {'none' if found is None else found}",
                "64-bit Raspberry Pi OS 12 or newer has it; Alpine Linux has another C library",
            )

    def wheels(self) -> Iterator[tuple[dict[str, str], zipfile.ZipFile]]:
        """What is said of a wheel, and the wheel, which is what is said."""
        for described in self.content["wheels"]:
            raw = self._read(f"wheels/{described['file']}")
            if hashlib.sha256(raw).hexdigest() != described["sha256"]:
                raise Refused(f"{described['file']} in the file is damaged", "copy the file again")
            yield described, zipfile.ZipFile(io.BytesIO(raw))

    def verify(self) -> None:
        """Refuse a file that is damaged, or whose wheels write elsewhere than they should."""
        total = 0
        for described, wheel in self.wheels():
            for member in wheel.infolist():
                parts = member.filename.split("/")
                is_link = member.external_attr >> 28 == 0xA
                if not parts[0] or ".." in parts or parts[0].endswith(".data") or is_link:
                    raise Refused(
                        f"{described['file']} has a member {member.filename!r}, which is no file "
                        "of a Python package",
                        "do not use this file; make it again from wheels that you trust",
                    )
                total += member.file_size
        if total != self.content["installed_bytes"]:
            raise Refused(f"the wheels hold {total} bytes, not what is said", "make the file again")


def _glibc_minor() -> int | None:
    try:
        return int((os.confstr("CS_GNU_LIBC_VERSION") or "").split(".")[1])
    except (ValueError, IndexError):
        return None
