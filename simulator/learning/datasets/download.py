"""Fetching data sets from their own addresses, checked by SHA-256, only when asked to.

The sums of MNIST and of the plays were computed from the files; that of CIFAR-10's archive is the
one that several projects name for it (its authors give an MD5).
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fedtide.errors import DataError
from fedtide.files import disk_errors_of, write_atomically
from simulator.learning.datasets.cifar10 import BINARY_FOLDER, TEST_FILE, TRAINING_FILES
from simulator.learning.datasets.plays import encode_plays
from simulator.learning.datasets.shakespeare import FILE as PLAYS_FILE

Say = Callable[[str], None]

MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
MNIST_SUMS = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""Of the uncompressed files: compressed ones differ from mirror to mirror."""
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_SUM = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
PLAYS_URL = "https://github.com/TheMITTech/shakespeare/archive/6b82db852c7322dd33e95db347f0ddfc812c6409.tar.gz"
PLAYS_SUM = "a68ce925e5059b25494454eff93b0326150f15086bf281f921b6215ad49f8f18"
"""Of the uncompressed lines by role: GitHub does not promise the same archive for ever."""

BYTES_MAX = 1 << 28
"""Of a file: CIFAR-10's archive has 170 MB."""
TIMEOUT_S = 60.0
_PIECE_BYTES = 1 << 20


def download(name: str, data_dir: Path, say: Say) -> None:
    """Fetch what `data_dir` lacks of a data set. `say` gets lines of progress.

    What is there is left as it is, damaged or not.

    Raises:
        DataError: it cannot be fetched, or is not what it should be.
        StateError: the disk is full, read-only or failing.
    """
    fetchers = {"mnist": _mnist, "cifar10": _cifar10, "digits": _nothing}
    fetchers.get(name, _plays)(data_dir, say)


def _nothing(_data_dir: Path, say: Say) -> None:
    say("it comes with fedtide: there is nothing to fetch")


def _mnist(data_dir: Path, say: Say) -> None:
    folder = _folder(data_dir / "mnist")
    for name, expected in MNIST_SUMS.items():
        if (folder / name).exists() or (folder / f"{name}.gz").exists():
            continue
        _mnist_file(folder / name, expected, say)


def _mnist_file(path: Path, expected: str, say: Say) -> None:
    """From the first mirror that has it."""
    reasons = []
    for mirror in MNIST_MIRRORS:
        try:
            return _mnist_file_from(f"{mirror}{path.name}.gz", path, expected, say)
        except DataError as exc:
            reasons.append(exc)
    raise DataError("\n".join(Exception.__str__(exc) for exc in reasons), hint=reasons[0].hint)


def _mnist_file_from(url: str, path: Path, expected: str, say: Say) -> None:
    with _fetched(url, path.parent, say) as (file, _), _unpacking(url):
        content = gzip.GzipFile(fileobj=file).read(BYTES_MAX)
        _check(url, hashlib.sha256(content).hexdigest(), expected)
        write_atomically(path, content)


def _cifar10(data_dir: Path, say: Say) -> None:
    folder = _folder(data_dir / BINARY_FOLDER)
    wanted = {name for name in (*TRAINING_FILES, TEST_FILE) if not (folder / name).exists()}
    if not wanted:
        return
    with _fetched(CIFAR10_URL, folder, say) as (file, digest), _unpacking(CIFAR10_URL):
        _check(CIFAR10_URL, digest, CIFAR10_SUM)
        for path, content in _members(file):
            if Path(path).name in wanted:
                write_atomically(folder / Path(path).name, content)


def _plays(data_dir: Path, say: Say) -> None:
    path = _folder(data_dir) / PLAYS_FILE
    if path.exists():
        return
    with _fetched(PLAYS_URL, data_dir, say) as (file, _), _unpacking(PLAYS_URL):
        parts = ((member.split("/"), content) for member, content in _members(file))
        pages = {
            part[1]: content.decode("latin-1")
            for part, content in parts
            if len(part) == 3 and part[2] == "full.html"  # <commit>/<play>/full.html
        }
        content = encode_plays(pages)
        _check(f"the plays of {PLAYS_URL}", hashlib.sha256(content).hexdigest(), PLAYS_SUM)
        write_atomically(path, gzip.compress(content, mtime=0))


def _members(file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """Path and content of each regular file in an archive; nothing is written anywhere."""
    unpacked = 0
    with tarfile.open(fileobj=file, mode="r:gz") as archive:
        for member in archive:
            unpacked += member.size
            if unpacked > 2 * BYTES_MAX:
                raise ValueError(f"it unpacks to more than {2 * BYTES_MAX:,} bytes")
            reader = archive.extractfile(member) if member.isfile() else None
            if reader is not None:
                yield member.name, reader.read()


@contextmanager
def _fetched(url: str, folder: Path, say: Say) -> Iterator[tuple[IO[bytes], str]]:
    """What is at `url`, as a file that goes away, and its SHA-256."""
    with disk_errors_of(folder):
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed below
    with file:
        digest = hashlib.sha256()
        for piece in _pieces(url, say):
            digest.update(piece)
            with disk_errors_of(folder):
                file.write(piece)
        file.seek(0)
        yield file, digest.hexdigest()


def _pieces(url: str, say: Say) -> Iterator[bytes]:
    if not url.startswith(("https://", "http://")):
        raise ValueError(url)
    hint = "try again later, or put the files there yourself (docs/simulate.md, Data)"
    there, told = 0, 0
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310 - checked above
            said = int(answer.headers.get("Content-Length") or 0)
            say(f"{url} ({f'{said:,} bytes' if said else 'of unknown size'})")
            while piece := answer.read(_PIECE_BYTES):
                there += len(piece)
                if there > BYTES_MAX:
                    raise DataError(f"{url} has more than {BYTES_MAX:,} bytes", hint=hint)
                if said > 10 * _PIECE_BYTES and 10 * there // said > told:
                    told = 10 * there // said
                    say(f"  {there / 1e6:.0f} of {said / 1e6:.0f} MB")
                yield piece
    except (OSError, http.client.HTTPException, ValueError) as exc:
        if isinstance(exc, urllib.error.HTTPError):
            exc.close()
        raise DataError(f"{url} cannot be fetched: {exc}", hint=hint) from exc
    if there < said:
        raise DataError(f"{url} ended after {there:,} of {said:,} bytes", hint=hint)


@contextmanager
def _unpacking(url: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError, ValueError, tarfile.TarError, zlib.error) as exc:
        raise DataError(f"{url} is damaged: {exc}", hint="try again later") from exc


def _check(what: str, digest: str, expected: str) -> None:
    if digest != expected:
        raise DataError(
            f"{what} has the SHA-256 {digest}, expected {expected}; nothing was kept",
            hint="try again later; if it stays so, what is offered there has changed",
        )


def _folder(path: Path) -> Path:
    with disk_errors_of(path.parent):
        path.mkdir(parents=True, exist_ok=True)
    return path
