"""The record of a run: a header, a line for each event, and what they add up to.

JSON lines, gzip if the name ends in `.gz`: the header (`Header`), the events
(`simulator.fleet.events`), and a last line (`Trailer`) with their number and digest, which an
interrupted run has not. The digest is the SHA-256 of the events' lines: a function of scenario,
seed and policy, whatever wrote them and wherever they lie.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple, Protocol, cast

import msgspec
from msgspec import Meta, Struct

from fedtide.errors import DamagedError, StateError
from fedtide.files import disk_errors_of
from fedtide.measures import Natural
from simulator.fleet.events import Event, Invited, RoundAbandoned, RoundClosed
from simulator.fleet.totals import Totals

BUFFER_LINES = 10_000
LINE_BYTES_MAX = 64 * 1024 * 1024
"""Of a closed round with 10,000 updates it takes 0.4 MB; more than this is no line of ours."""


class Header(Struct, frozen=True, forbid_unknown_fields=True):
    """What was run."""

    scenario: dict[str, Any]
    """As it was read, command-line flags included."""
    seed: Natural
    policy: str
    devices: Annotated[int, Meta(ge=1)]
    rounds: Annotated[int, Meta(ge=0)]
    """Asked for."""
    learning: Literal["modelled", "real"]
    model_bytes: Natural
    bundle_bytes: Natural
    fedtide: str
    """Version of the program."""
    packages: dict[str, str] = {}
    """Versions of what the learned bits depend on."""
    inputs: dict[str, str] | None = None
    """SHA-256 of the files that the scenario names, by key; None: not known, of an older record."""
    record: Literal[1] = 1
    """Version of this format."""


def policy_entry(scenario: dict[str, Any], name: str) -> dict[str, Any]:
    """What a scenario, as it is recorded, says of this policy alone."""
    entries = (entry for entry in scenario.get("policy") or () if entry["name"] == name)
    return next(entries, {"name": name, "rounds": {}, "plan": {}})


class Trailer(Struct, frozen=True, array_like=True, tag="end"):
    """The last line of a run that was not interrupted."""

    events: Natural
    digest: str
    """SHA-256 of the events' lines, each with its line feed."""


class Sink(Protocol):
    """Whatever hears the events of a run."""

    def write(self, event: Event) -> None:
        """This has happened."""


class Recorder:
    """Writes a record, or (without a path) only its digest and totals. A context manager: a run
    that ends by an exception leaves what there is, readable."""

    def __init__(self, path: Path | None, header: Header) -> None:
        """Replaces what is at `path`.

        Raises:
            StateError: the folder cannot be written.
        """
        self.totals = Totals(header.devices)
        self._digest = hashlib.sha256()
        self._encoder = msgspec.json.Encoder()
        self._lines: list[bytes] = []
        self._path = path
        self._file: BinaryIO | None = None
        if path is not None:
            with disk_errors_of(path.parent):
                self._file = _open_to_write(path)
                self._file.write(self._encoder.encode(header) + b"\n")

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: object, _error: object, _traceback: object) -> None:
        if kind is None:
            self.close()
            return
        try:
            self._flush()
            if self._file is not None:
                self._file.close()
        except (OSError, StateError):
            pass  # what stopped the run is told

    def write(self, event: Event) -> None:
        """This has happened.

        Raises:
            StateError: the disk is full or failing.
        """
        self.totals.observe(event)
        self._lines.append(self._encoder.encode(event))
        if len(self._lines) >= BUFFER_LINES:
            self._flush()

    def close(self) -> None:
        """The run is over.

        Raises:
            StateError: the disk is full or failing.
        """
        self._flush()
        if self._path is not None and self._file is not None:
            with disk_errors_of(self._path.parent):
                trailer = Trailer(self.totals.events, self.digest)
                self._file.write(self._encoder.encode(trailer) + b"\n")
                self._file.close()

    @property
    def digest(self) -> str:
        """Of all events so far."""
        self._flush()
        return self._digest.hexdigest()

    def _flush(self) -> None:
        if not self._lines:
            return
        raw = b"\n".join(self._lines) + b"\n"
        self._lines.clear()
        self._digest.update(raw)
        if self._file is not None and self._path is not None:
            with disk_errors_of(self._path.parent):
                self._file.write(raw)


class Record(NamedTuple):
    """What `read_record` found."""

    path: Path
    header: Header
    totals: Totals
    digest: str
    complete: bool
    """False: the run was interrupted, or is still going on."""

    def events(self) -> Iterator[Event]:
        """All of them again, one in memory at a time."""
        for line in lines(self.path, self.totals.events):
            yield _event_decoder.decode(line)


_header_decoder = msgspec.json.Decoder(Header)
_event_decoder = msgspec.json.Decoder(Event)
_trailer_decoder = msgspec.json.Decoder(Trailer)
_TRAILER_BEGINS = b'["end",'


def read_record(path: Path) -> Record:
    """Read and check a record.

    Raises:
        StateError: it cannot be read.
        DamagedError: it is no record of a run, or one that was changed or cut.
    """
    with _opened(path) as file:
        header = _header(path, _next_line(path, file))
        totals, digest, number = Totals(header.devices), hashlib.sha256(), 1
        while line := _next_line(path, file):
            number += 1
            if line.startswith(_TRAILER_BEGINS):
                trailer = _trailer(path, number, line)
                if trailer != Trailer(totals.events, digest.hexdigest()):
                    raise _damaged(path, "its events are not those that were recorded")
                if file.read(1):
                    raise _damaged(path, f"something follows its end in line {number}")
                return Record(path, header, totals, trailer.digest, complete=True)
            if not line.endswith(b"\n"):
                break  # an interrupted run's last line
            digest.update(line)
            try:
                event = _event_decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as exc:
                raise _damaged(path, f"line {number}: {exc}") from exc
            if max(_devices_of(event), default=0) >= header.devices:
                raise _damaged(path, f"line {number} names a device that is not there")
            totals.observe(event)
        return Record(path, header, totals, digest.hexdigest(), complete=False)


def read_header(path: Path) -> Header:
    """What was run, without a look at what came of it.

    Raises:
        StateError: it cannot be read.
        DamagedError: it is no record of a run.
    """
    with _opened(path) as file:
        return _header(path, _next_line(path, file))


def lines(path: Path, count: int | None = None) -> Iterator[bytes]:
    """The events' lines, `count` of them or all, without their line feeds.

    Raises:
        StateError: it cannot be read.
    """
    with _opened(path) as file:
        _next_line(path, file)
        number = 0
        while (count is None or number < count) and (line := _next_line(path, file)):
            if line.startswith(_TRAILER_BEGINS) or not line.endswith(b"\n"):
                return
            number += 1
            yield line[:-1]


def _devices_of(event: Event) -> Iterable[int]:
    match event:
        case Invited(devices=devices):
            return devices
        case RoundClosed(parts=parts):
            return (part.device for part in parts)
        case RoundAbandoned(lost=lost):
            return (device for device, _ in lost)
        case _:
            return (getattr(event, "device", 0),)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if packed else path.open("rb") as file:
            yield cast(BinaryIO, file)
    except OSError as exc:  # gzip.BadGzipFile is one
        raise StateError(
            f"the record {str(path)!r} cannot be read: {exc.strerror or exc}",
            hint="it is what `fedtide simulate --out` writes: <policy>.jsonl.gz",
        ) from exc


def _next_line(path: Path, file: BinaryIO) -> bytes:
    """Empty at the end, also at that of a file that was cut."""
    try:
        return file.readline(LINE_BYTES_MAX)
    except EOFError:
        return b""
    except (zlib.error, gzip.BadGzipFile) as exc:
        raise _damaged(path, str(exc)) from exc


def _open_to_write(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        # Of the time nothing is written: the same run is the same file.
        return cast(BinaryIO, gzip.GzipFile(path, "wb", 1, mtime=0))
    return path.open("wb")


def _header(path: Path, line: bytes) -> Header:
    try:
        return _header_decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise _damaged(path, f"its first line is no header: {exc}") from exc


def _trailer(path: Path, number: int, line: bytes) -> Trailer:
    try:
        return _trailer_decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise _damaged(path, f"line {number}: {exc}") from exc


def _damaged(path: Path, why: str) -> DamagedError:
    return DamagedError(
        f"{str(path)!r} is no intact record of a run: {why}",
        hint="run the scenario again: the same seed gives the same record",
    )
