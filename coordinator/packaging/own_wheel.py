"""The wheel of the fedtide that is installed here, made again from its files.

What pip or pipx installed is a wheel that was unpacked, and its RECORD names every file with its
digest. So the server needs neither a copy of the repository nor the wheel that it came from, and
a file that was changed since is noticed instead of being sent to a fleet.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import io
import zipfile
from pathlib import Path, PurePosixPath

from coordinator.packaging.archive import write_archive
from fedtide.errors import ConfigError

_BY_THE_INSTALLER = {
    "RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json", "uv_build.json",
}  # fmt: skip
"""In the folder of metadata, but not of the wheel: they tell how it came here."""
_HINT = "name a wheel: --wheel FILE; in a copy of the repository `make wheel` makes one in dist/"


def own_wheel(distribution: importlib.metadata.Distribution | None = None) -> tuple[str, bytes]:
    """File name and content of our wheel.

    Raises:
        ConfigError: fedtide runs from a copy of its repository, or its files were changed.
    """
    found = distribution or importlib.metadata.distribution("fedtide")
    members = dict(sorted(_files(found).items())) if found.read_text("RECORD") else {}
    if "fedtide/__init__.py" not in members:
        raise ConfigError("this fedtide was not installed from a wheel", hint=_HINT)
    name = f"fedtide-{found.version}"
    if (metadata := f"{name}.dist-info/METADATA") not in members:
        raise ConfigError(f"the installed fedtide has no file {metadata!r}", hint=_HINT)
    return f"{name}-py3-none-any.whl", pack_wheel(name, members)


def pack_wheel(name: str, members: dict[str, bytes]) -> bytes:
    """The wheel NAME-VERSION of `members`, with its RECORD."""
    record = f"{name}.dist-info/RECORD"
    lines = [f"{path},{_digest(raw)},{len(raw)}" for path, raw in members.items()]
    content = "\n".join([*lines, f"{record},,", ""]).encode()
    file = io.BytesIO()
    write_archive(file, {**members, record: content}, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def _files(distribution: importlib.metadata.Distribution) -> dict[str, bytes]:
    members = {}
    for path in distribution.files or ():
        outside = path.is_absolute() or ".." in path.parts  # a script, made where it was installed
        if outside or "__pycache__" in path.parts or _is_installers(path):
            continue
        try:
            raw = Path(str(path.locate())).read_bytes()
        except OSError as exc:
            raise ConfigError(
                f"the installed fedtide lacks its file {str(path)!r}: {exc.strerror or exc}",
                hint="install fedtide again",
            ) from exc
        if path.hash is not None and f"{path.hash.mode}={path.hash.value}" != _digest(raw):
            raise ConfigError(
                f"the installed file {str(path)!r} was changed since it was installed",
                hint="install fedtide again, so that devices get what was released",
            )
        members[path.as_posix()] = raw
    return members


def _is_installers(path: PurePosixPath) -> bool:
    return path.parent.name.endswith(".dist-info") and path.name in _BY_THE_INSTALLER


def _digest(raw: bytes) -> str:
    """As RECORD has it."""
    encoded = base64.urlsafe_b64encode(hashlib.sha256(raw).digest()).decode().rstrip("=")
    return f"sha256={encoded}"
