"""One policy of a scenario, from its settings to its record; and again, to compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from fedtide import __version__
from fedtide.config import explained
from fedtide.errors import ConfigError, FedtideError
from simulator.fleet.conditions import Conditions
from simulator.fleet.engine import run
from simulator.fleet.environment import other_packages, packages
from simulator.fleet.events import Event
from simulator.fleet.inputs import differing, input_digests
from simulator.fleet.learning import Learning
from simulator.fleet.record import Header, Recorder, Sink, lines, read_header, read_record
from simulator.fleet.scenario import Policy, Scenario, coordinator_config, policies
from simulator.fleet.world import BUNDLE_BYTES, Sizes, World

if TYPE_CHECKING:
    from simulator.learning.workers import Where

OpenSink = Callable[[Header], AbstractContextManager[Sink]]


class DifferentRunError(FedtideError):
    """A run is not the one that was recorded."""


def run_policy(
    scenario: Scenario,
    policy: Policy,
    open_sink: OpenSink,
    *,
    workers: Where = 1,
    models_folder: Path | None = None,
) -> None:
    """Run one policy to its end; `open_sink` is given the header of its record.

    Raises:
        FedtideError: of the scenario, its data, the disk.
    """
    conditions = Conditions(scenario)
    with _learning_of(scenario, policy, conditions, workers, models_folder) as (
        learning,
        examples,
        parameters,
        bundle_bytes,
    ):
        config = coordinator_config(scenario, policy)
        sizes = Sizes.of(parameters, config, bundle_bytes)
        with open_sink(_header(scenario, policy, sizes)) as sink:
            world = World(conditions, config, sizes, sink.write, examples)
            run(world, scenario.hours_max, learning)


@contextmanager
def _learning_of(
    scenario: Scenario,
    policy: Policy,
    conditions: Conditions,
    workers: Where,
    folder: Path | None,
) -> Iterator[tuple[Learning | None, Callable[[int], int] | None, int, int]]:
    if scenario.learning.kind == "modelled":
        yield None, None, conditions.parameters, BUNDLE_BYTES
        return
    from simulator.fleet.real_learning import real_learning

    with real_learning(scenario, policy, workers, folder) as lesson:
        sizes = lesson.examples
        yield lesson.learning, sizes.__getitem__, lesson.parameters, lesson.bundle_bytes


def _header(scenario: Scenario, policy: Policy, sizes: Sizes) -> Header:
    return Header(
        scenario=as_recorded(scenario),
        seed=scenario.seed,
        policy=policy.name,
        devices=scenario.fleet.devices,
        rounds=policy.rounds.count,
        learning=scenario.learning.kind,
        model_bytes=sizes.model,
        bundle_bytes=sizes.bundle,
        fedtide=__version__,
        packages=packages() if scenario.learning.kind == "real" else {},
        inputs=input_digests(scenario),
    )


def as_recorded(scenario: Scenario) -> dict[str, Any]:
    """As a record holds it: what is as by default, too, for defaults may change.

    (`omit_defaults` would also depend on which process the values come from: it asks for identity.)
    """
    raw = _plain(scenario)
    assert isinstance(raw, dict)
    return raw


def _plain(value: Any) -> Any:
    match value:
        case msgspec.Struct():
            fields = msgspec.structs.fields(value)
            return {field.encode_name: _plain(getattr(value, field.name)) for field in fields}
        case dict():
            return {key: _plain(entry) for key, entry in value.items()}
        case list() | tuple():
            return [_plain(entry) for entry in value]
        case Path():
            return str(value)
        case _:
            return value


def scenario_from(raw: dict[str, Any], where: str) -> Scenario:
    """A scenario as a record holds it.

    Raises:
        ConfigError: it is none, or one of another version of this program.
    """

    def decode(wanted: type, value: Any) -> Any:
        if wanted is Path and isinstance(value, str):
            return Path(value)
        raise ValueError("Expected a path")

    try:
        return msgspec.convert(raw, Scenario, dec_hook=decode)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"{where}: {explained(str(exc), raw, Scenario)}") from exc


class _Comparison:
    """A sink that knows what has to come."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = lines(path)
        self._encoder = msgspec.json.Encoder()
        self._header = read_header(path)
        self.recorder = Recorder(None, self._header)
        self.events = 0

    def write(self, event: Event) -> None:
        """This happens now.

        Raises:
            DifferentRunError: something else was recorded.
        """
        line = self._encoder.encode(event)
        recorded = next(self._lines, None)
        if recorded is not None and recorded != line:
            raise self._different(recorded, line)
        self.recorder.write(event)
        self.events += recorded is not None

    def end(self) -> None:
        """Nothing more happens.

        Raises:
            DifferentRunError: more was recorded, or less by a run that was not interrupted.
            DamagedError: the record's end is not that of its events.
        """
        recorded = next(self._lines, None)
        if recorded is not None:
            raise self._different(recorded, b"the end")
        record = read_record(self._path)
        if record.complete and record.digest != self.recorder.digest:
            raise self._different(b"the end", b"more")

    def _different(self, recorded: bytes, line: bytes) -> DifferentRunError:
        why = "was changed, or made by another version of this program"
        other = other_packages(self._header.packages)
        if other:
            why = f"was made {other}: what is measured may differ in its last digits"
        return DifferentRunError(
            f"event {self.events + 1:,} is another one\n"
            f"  recorded: {_shown(recorded)}\n  now:      {_shown(line)}",
            hint=f"{str(self._path)!r} {why}",
        )


def _shown(line: bytes) -> str:
    text = line.decode("utf-8", "replace")
    return text if len(text) <= 200 else text[:200] + " …"


class Replayed(NamedTuple):
    """What was compared, and is the same."""

    events: int
    digest: str
    complete: bool
    """Whether the record has its end."""


def replay(path: Path, workers: Where = 1) -> Replayed:
    """Run what was recorded again and compare event by event.

    A record of an interrupted run is compared as far as it goes.

    Raises:
        DifferentRunError: a file of the scenario that differs, or the first event.
        ConfigError: the scenario is none of this version, or a file of it has gone.
        StateError: the record cannot be read.
    """
    header = read_header(path)
    scenario = scenario_from(header.scenario, f"the scenario in {str(path)!r}")
    policy = next((p for p in policies(scenario) if p.name == header.policy), None)
    if policy is None:
        raise ConfigError(f"the scenario in {str(path)!r} has no policy {header.policy!r}")
    changed = differing(header.inputs, input_digests(scenario))
    if changed:
        raise DifferentRunError(
            f"the file of {', '.join(changed)} is not that which {str(path)!r} was recorded with",
            hint="a replay needs what was there then: its SHA-256 is in the record's first line",
        )
    comparison = _Comparison(path)

    @contextmanager
    def sink(_header: Header) -> Iterator[Sink]:
        yield comparison

    run_policy(scenario, policy, sink, workers=workers)
    comparison.end()
    complete = read_record(path).complete
    return Replayed(comparison.events, comparison.recorder.digest, complete)
