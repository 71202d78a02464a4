"""`fedtide simulate`: a scenario's policies, side by side (docs/simulate.md)."""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedtide.errors import ConfigError, DamagedError
from fedtide.files import locked
from simulator.fleet import events
from simulator.fleet.conditions import Conditions
from simulator.fleet.policy_run import as_recorded, replay, run_policy, scenario_from
from simulator.fleet.record import Header, Record, Recorder, Sink, read_record
from simulator.fleet.scenario import Policy, Scenario, policies, read_scenario
from simulator.results import (
    REPORT_FILE,
    SUMMARY_FILE,
    claim,
    is_recorded,
    models_folder,
    record_path,
)
from simulator.side_by_side import side_by_side, usable_cores

if TYPE_CHECKING:
    from simulator.learning.workers import Where
    from simulator.report.progress import Progress

_PACKAGES = ("rich", "matplotlib", "jinja2")
"""That the table and the report need."""
_EPILOG = """\
for example:
  fedtide simulate examples/scenarios/first.toml --out /tmp/first
  fedtide simulate examples/scenarios/night.toml --policy cohorts-of-20 --rounds 10
  fedtide simulate --replay /tmp/first/wait.jsonl.gz

exit codes: 0 all policies came to their end, also where rounds were abandoned; 1 a replay differs,
or what was learned is not finite or cannot be encoded; 2 scenario, flag or package; 3 bundle;
4 data are missing, damaged or do not fit; 5 the export of a model failed; 7 the folder is damaged,
full or in use; 130 interrupted: the same command goes on"""
_TOLD = (events.RoundClosed, events.RoundAbandoned, events.ModelMade, events.Evaluated)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare flags."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument(
        "scenario", type=Path, nargs="?", metavar="SCENARIO.toml", help="see docs/simulate.md"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="another fleet, other mishaps")
    parser.add_argument("--devices", type=int, metavar="N", help="another size of the fleet")
    parser.add_argument("--rounds", type=int, metavar="N", help="of every policy")
    parser.add_argument("--hours", type=float, metavar="H", help="virtual hours, at most")
    parser.add_argument(
        "--policy", action="append", metavar="NAME", help="only this one; may be given again"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="records, summary, report (simulated/NAME)"
    )
    learners = parser.add_mutually_exclusive_group()
    learners.add_argument(
        "--workers", type=int, metavar="N", help="processes that learn (as many as cores)"
    )
    learners.add_argument("--ray", metavar="HOST:PORT", help="the nodes of this Ray cluster learn")
    parser.add_argument("--target", type=float, metavar="SHARE", help="accuracy to compare at")
    parser.add_argument("--force", action="store_true", help="begin anew in a folder of others")
    parser.add_argument("--plain", action="store_true", help="lines instead of a live screen")
    parser.add_argument(
        "--replay", type=Path, metavar="RECORD", help="run a record again and compare"
    )


def run(parsed: argparse.Namespace) -> int:
    """Run the policies, or a record again."""
    # Ctrl-C must work even where it was inherited as ignored, as in a shell's background job.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    where: Where = _workers(parsed.workers) if parsed.ray is None else parsed.ray
    if parsed.replay is not None:
        _check_replay(parsed)
        return _replay(parsed.replay, where)
    if parsed.scenario is None:
        raise ConfigError(
            "no scenario is given", hint="fedtide simulate examples/scenarios/first.toml"
        )
    if parsed.target is not None and not 0 < parsed.target <= 1:
        raise ConfigError(f"--target is {parsed.target:g}, expected a share between 0 and 1")
    scenario = _changed(read_scenario(parsed.scenario), parsed)
    if parsed.ray and scenario.learning.kind == "modelled":
        raise ConfigError(
            '--ray is given, and learning.kind is "modelled": a cluster has nothing to do',
            hint="leave --ray out; policies run side by side on this machine's cores",
        )
    chosen = _chosen(scenario, parsed.policy)
    _check_packages()
    conditions = Conditions(scenario)  # refuses what is wrong before there is a folder
    out: Path = parsed.out or Path("simulated") / scenario.name
    if parsed.target is not None and scenario.learning.kind == "modelled":
        raise ConfigError(
            '--target is given, and learning.kind is "modelled": there is no accuracy',
            hint="leave --target out",
        )
    with locked(out, "simulation"):
        for name, why in claim(out, scenario, chosen, force=parsed.force).items():
            print(
                f"fedtide: policy {name!r} {why} in {str(out)!r}: it is run anew", file=sys.stderr
            )
        try:
            _run_all(scenario, chosen, out, where, plain=parsed.plain)
        except KeyboardInterrupt:
            left = [policy for policy in chosen if _has_begun(record_path(out, policy.name))]
            if left:
                _report(conditions, left, out, parsed.target)
            told = f"interrupted; what was recorded is in {str(out)!r}"
            print(f"fedtide: {told}, and the same command goes on from it", file=sys.stderr)
            return 130
        _report(conditions, chosen, out, parsed.target)
    return 0


def _check_replay(parsed: argparse.Namespace) -> None:
    """A record says itself what was run."""
    if parsed.scenario is not None:
        raise ConfigError("give a scenario or --replay, not both")
    others = ("seed", "devices", "rounds", "hours", "policy", "out", "target", "force")
    given = [name for name in others if getattr(parsed, name) not in (None, False)]
    if given:
        flags = ", ".join(f"--{name}" for name in given)
        raise ConfigError(
            f"--replay goes without {flags}: it runs what was recorded, as it was recorded",
            hint="to run it otherwise give the scenario",
        )


def _replay(path: Path, where: Where) -> int:
    replayed = replay(path, where)
    print(f"{replayed.events:,} events, the same as recorded; digest {replayed.digest}")
    if not replayed.complete:
        print("the record is incomplete: it has no end, and was compared as far as it goes")
    return 0


def _check_packages() -> None:
    """Before hours are spent on what could not be shown."""
    for name in _PACKAGES:
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _workers(given: int | None) -> int:
    if given is None:
        return usable_cores()
    if given < 1:
        raise ConfigError(f"--workers is {given}, expected 1 or more")
    return given


def _changed(scenario: Scenario, parsed: argparse.Namespace) -> Scenario:
    """As the flags say.

    Raises:
        ConfigError: what they say is impossible.
    """
    raw = as_recorded(scenario)
    flags = []
    if parsed.seed is not None:
        raw["seed"] = raw["rounds"]["seed"] = parsed.seed
        _of_every_policy(raw, "seed")
        flags.append(f"--seed {parsed.seed}")
    if parsed.devices is not None:
        raw["fleet"]["devices"] = parsed.devices
        flags.append(f"--devices {parsed.devices}")
    if parsed.hours is not None:
        raw["hours_max"] = parsed.hours
        flags.append(f"--hours {parsed.hours:g}")
    if parsed.rounds is not None:
        raw["rounds"]["count"] = parsed.rounds
        _of_every_policy(raw, "count")
        flags.append(f"--rounds {parsed.rounds}")
    if not flags:
        return scenario
    changed = scenario_from(raw, f"with {' '.join(flags)}")
    policies(changed)
    return changed


def _of_every_policy(raw: dict[str, Any], key: str) -> None:
    """What a flag says of [rounds], no policy says otherwise."""
    for policy in raw["policy"]:
        policy["rounds"].pop(key, None)


def _chosen(scenario: Scenario, names: Sequence[str] | None) -> list[Policy]:
    known = {policy.name: policy for policy in policies(scenario)}
    for name in names or ():
        if name not in known:
            raise ConfigError(f"--policy {name!r} is none of this scenario's: {', '.join(known)}")
    return [policy for name, policy in known.items() if not names or name in names]


def _run_all(
    scenario: Scenario, chosen: list[Policy], out: Path, where: Where, *, plain: bool
) -> None:
    """Those that are not recorded yet; side by side where nothing is learned."""
    from simulator.report import open_progress

    processes = where if isinstance(where, int) and scenario.learning.kind == "modelled" else 1
    at_once = min(processes, len(chosen))
    if "fork" not in multiprocessing.get_all_start_methods():
        at_once = 1
    with open_progress(plain=plain) as progress:
        if at_once == 1:
            for policy in chosen:
                _run_one(scenario, policy, out, where, progress)
            return
        for policy in chosen:
            progress.begin(policy.name, policy.rounds.count)

        def alone(policy: Policy) -> None:
            _run_one(scenario, policy, out, 1, None)

        with closing(side_by_side(alone, chosen, at_once)) as done:
            for policy in done:
                progress.end(policy.name, read_record(record_path(out, policy.name)).totals)


def _run_one(
    scenario: Scenario, policy: Policy, out: Path, where: Where, progress: Progress | None
) -> None:
    path = record_path(out, policy.name)

    @contextmanager
    def sink(header: Header) -> Iterator[Sink]:
        with Recorder(path, header) as recorder:
            yield recorder if progress is None else _Told(recorder, policy.name, progress)

    if progress is not None:
        progress.begin(policy.name, policy.rounds.count)
    if not is_recorded(path, scenario, policy):
        folder = models_folder(out, policy.name)
        run_policy(scenario, policy, sink, workers=where, models_folder=folder)
    if progress is not None:
        progress.end(policy.name, read_record(path).totals)


def _has_begun(path: Path) -> bool:
    """Whether something can be told of an interrupted run."""
    try:
        return path.exists() and read_record(path).totals.events > 0
    except DamagedError:
        return False


class _Told:
    """A recorder with somebody who watches."""

    def __init__(self, recorder: Recorder, policy: str, progress: Progress) -> None:
        self._recorder, self._policy, self._progress = recorder, policy, progress

    def write(self, event: events.Event) -> None:
        """This has happened."""
        self._recorder.write(event)
        if isinstance(event, _TOLD):
            self._progress.round(self._policy, self._recorder.totals)


def _report(conditions: Conditions, chosen: list[Policy], out: Path, target: float | None) -> None:
    from simulator.report import print_summary, summarise, write_report, write_summary

    records = [read_record(record_path(out, policy.name)) for policy in chosen]
    profiles = [conditions.traits(device).profile for device in range(len(conditions))]
    summary = summarise(records, profiles, target)
    write_summary(summary, out / SUMMARY_FILE)
    write_report(summary, records, out / REPORT_FILE, profiles)
    print_summary(summary)
    for line in _where(out, records):
        print(line)


def _where(out: Path, records: list[Record]) -> Iterator[str]:
    yield f"report: {out / REPORT_FILE}"
    for record in records:
        yield f"{record.header.policy}: {record.path} · digest {record.digest[:16]}"
