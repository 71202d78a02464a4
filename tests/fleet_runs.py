"""Run records without an engine: a small fleet whose rounds are drawn by lot."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from simulator.fleet import events as e
from simulator.fleet.events import Event
from simulator.fleet.record import Header, Record, Recorder, read_record

MODEL_BYTES = 800_000
PROFILES = ("pi-zero-2w", "pi-4", "phone-fast")
_SLOWNESS = {"pi-zero-2w": 12.0, "pi-4": 4.0, "phone-fast": 1.0}


def header(policy: str = "default", **changes: Any) -> Header:
    """Of a scenario with little in it."""
    values: dict[str, Any] = {
        "scenario": {"name": "small", "fleet": {"devices": 10}},
        "seed": 1,
        "policy": policy,
        "devices": 10,
        "rounds": 5,
        "learning": "modelled",
        "model_bytes": MODEL_BYTES,
        "bundle_bytes": 0,
        "fedtide": "1.0",
    }
    return Header(**(values | changes))


def record_of(path: Path, first: Header, *events: Event, cut: bool = False) -> Record:
    """The record of these events; cut: of a run that was interrupted after them."""
    recorder = Recorder(path, first)
    with suppress(InterruptedError), recorder:
        for event in events:
            recorder.write(event)
        if cut:
            raise InterruptedError
    return read_record(path)


def profiles_of(devices: int) -> list[str]:
    """A profile for each device."""
    return [PROFILES[device % len(PROFILES)] for device in range(devices)]


def work_of(history: Iterable[Event]) -> tuple[int, int]:
    """Milliseconds of training in all, and in updates that are in a model: another account than
    that of `simulator.report`."""
    spent_ms = counted_ms = 0
    began_ms: dict[int, int] = {}
    kept_ms: Counter[tuple[int, int]] = Counter()
    parts: tuple[e.Counted, ...] = ()
    for event in history:
        match event:
            case e.TrainingBegan(at_ms=at_ms, device=device):
                began_ms[device] = at_ms
            case e.TrainingEnded(at_ms=at_ms, device=device, round_id=round_id, lost_ms=lost_ms):
                took_ms = at_ms - began_ms.pop(device)
                spent_ms += took_ms
                kept_ms[device, round_id] += took_ms - lost_ms
            case e.RoundClosed(parts=parts):
                pass
            case e.ModelMade():
                counted_ms += sum(kept_ms.pop((part.device, part.round_id), 0) for part in parts)
            case _:
                pass
    return spent_ms, counted_ms


def random_run(
    path: Path,
    first: Header,
    *,
    cohort: int = 6,
    wanted: int = 6,
    collect_ms: int = 60_000,
    quorum: int = 1,
    learns: float | None = None,
    drop_rate: float = 0.1,
    cut: bool = False,
) -> Record:
    """Synchronous rounds over a fleet of three profiles; `learns`: how fast accuracy grows."""
    random = Random(f"{first.policy}/{first.seed}")
    out: list[Event] = []
    names = profiles_of(first.devices)
    now = version = 0
    free_at = [0] * first.devices
    out.extend(e.On(0, device) for device in range(first.devices))
    if learns is not None:
        out.append(e.Evaluated(0, 0, 2.3, 0.1))
    for round_id in range(1, first.rounds + 1):
        online = [device for device in range(first.devices) if free_at[device] <= now]
        members = sorted(random.sample(online, min(cohort, len(online))))
        out.append(e.RoundOpened(now, round_id, "train", version, wanted, quorum, len(online)))
        out.append(e.Invited(now, round_id, tuple(members)))
        later: list[Event] = []
        accepted: list[tuple[int, int]] = []
        for device in members:
            later += _task(random, now, device, round_id, version, names[device], drop_rate)
        arrivals = sorted(
            (x.at_ms, x.device) for x in later if isinstance(x, e.UploadEnded) and x.whole
        )
        in_time = [x for x in arrivals if x[0] <= now + collect_ms][:wanted]
        closed = in_time[-1][0] if len(in_time) == wanted else now + collect_ms
        accepted = in_time
        for at_ms, device in arrivals:
            good = (at_ms, device) in accepted
            verdict = ("accepted", "in time") if good else ("discarded", "late")
            later.append(e.Verdict(at_ms, device, round_id, *verdict))  # type: ignore[arg-type]
        for event in later:
            if not isinstance(event, e.TaskGiven):
                free_at[event.device] = max(free_at[event.device], event.at_ms + 1)  # type: ignore[union-attr]
        if len(accepted) >= quorum:
            version += 1
            parts = tuple(e.Counted(device, round_id, 600) for _, device in sorted(accepted))
            later.append(e.RoundClosed(closed, round_id, parts))
            later.append(e.ModelMade(closed, version, round_id))
            if learns is not None:
                grown = 1 - math.exp(-learns * version)
                noise = random.uniform(-0.01, 0.01)
                later.append(
                    e.Evaluated(closed, version, 2.3 * (1 - grown), 0.1 + 0.86 * grown + noise)
                )
        else:
            lost = tuple((device, round_id) for _, device in accepted)
            later.append(e.RoundAbandoned(closed, round_id, "too few", lost))
        out += later
        now = closed + 500
    # Stable: what belongs to one moment keeps its order.
    out.sort(key=lambda event: event.at_ms)
    done = version == first.rounds
    if not cut:
        out.append(
            e.Finished(max(x.at_ms for x in out), "all rounds are done" if done else "time", done)
        )
    return record_of(path, first, *out, cut=cut)


def _task(
    random: Random, now: int, device: int, round_id: int, version: int, profile: str, rate: float
) -> list[Event]:
    """Everything that one device does about a task."""
    slowness = _SLOWNESS[profile] * math.exp(random.gauss(0, 0.4))
    at = now + random.randrange(50, 400)
    events: list[Event] = [e.TaskGiven(at, device, round_id, version)]
    events.append(e.DownloadBegan(at, device, MODEL_BYTES))
    at += int(800 * slowness)
    events.append(e.DownloadEnded(at, device, MODEL_BYTES))
    events.append(e.TrainingBegan(at, device, round_id))
    train = int(3_000 * slowness)
    if random.random() < rate:
        at += train // 2
        events.append(e.TrainingEnded(at, device, round_id, 1, 30, False))
        events.append(e.DroppedOut(at, device, round_id, "training", False))
        events.append(e.Off(at, device, "power cut"))
        back = at + random.randrange(5_000, 60_000)
        return [*events, e.On(back, device)]
    at += train
    events.append(e.TrainingEnded(at, device, round_id, 5, 300))
    events.append(e.UploadBegan(at, device, round_id, MODEL_BYTES))
    at += int(1_200 * slowness)
    if random.random() < rate / 2:
        events.append(e.UploadEnded(at, device, round_id, MODEL_BYTES // 3, False))
        events.append(e.DroppedOut(at, device, round_id, "upload", False))
        return [*events, e.Off(at, device, "power cut"), e.On(at + 30_000, device)]
    return [*events, e.UploadEnded(at, device, round_id, MODEL_BYTES)]
