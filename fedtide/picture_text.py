"""A snapshot of a federation in lines of text. Pure."""

from __future__ import annotations

from typing import NamedTuple

from fedtide.messages import Status
from fedtide.picture import DeviceNow, Snapshot

_PHASES = {
    "waiting": "waiting for devices",
    "collecting": "collecting updates",
    "aggregating": "averaging",
    "backing_off": "pausing after an abandoned round",
    "finished": "finished",
}
_GONE = "the coordinator is gone; this is what it said last"
_SILENT = (
    "the coordinator's status was not heard: this user may not read it (the broker's access list "
    "lets coordinator and observer), or no coordinator has run here yet"
)


_UNVERIFIED = (
    "not verified: what devices say of themselves; only the coordinator's configuration knows "
    "their keys"
)


class Row(NamedTuple):
    """One device."""

    device: str
    doing: str
    answer: str
    heard: str


def headline(snapshot: Snapshot) -> list[str]:
    """The federation and its round, one thing a line."""
    here = {"online": "coordinator online", "offline": "coordinator OFFLINE"}
    said = [f"{snapshot.federation} · {here.get(snapshot.coordinator, 'coordinator unknown')}"]
    if snapshot.refused_count:
        said.append(
            f"LEFT OUT: {snapshot.refused_count} messages without a valid seal, the newest on "
            f"{snapshot.refused_newest}"
        )
    if snapshot.verified == "coordinator" and any(d.phase != "unknown" for d in snapshot.devices):
        said.append(_UNVERIFIED)
    status = snapshot.status
    if status is None:
        return [*said, _SILENT]
    if snapshot.coordinator == "offline":
        said.append(_GONE)
    said.append(_round(snapshot, status))
    if status.reason:
        said.append(f"because: {status.reason}")
    said.append(_quality(status))
    counts = [f"{status.online_count} online"]
    if status.phase in ("collecting", "aggregating"):
        counts += [f"{status.cohort_count} invited", f"{status.accepted_count} accepted"]
    for name in ("declined", "rejected", "quarantined"):
        count = getattr(status, f"{name}_count")
        if count:
            counts.append(f"{count} {name}")
    return [*said, f"devices: {', '.join(counts)}"]


def _round(snapshot: Snapshot, status: Status) -> str:
    words = [_PHASES.get(status.phase, status.phase)]
    if status.kind == "evaluate" and status.phase != "finished":
        words.append("final evaluation")
    else:
        done = f"{status.rounds_done} of {status.rounds_count} rounds done"
        words.append(f"round {status.round_id} ({done})")
    if status.mode != "synchronous":
        words.append(f"{status.mode} mode")
    if status.wanted and status.phase == "collecting":
        words.append(f"closes with {status.wanted} updates, counts with {status.quorum}")
    if snapshot.deadline_ms is not None:
        most = "at most " if snapshot.deadline_at_most else ""
        words.append(f"deadline in {most}{duration(snapshot.deadline_ms)}")
    return " · ".join(words)


def _quality(status: Status) -> str:
    words = [f"model {status.model_version}"]
    if status.loss is not None:
        words.append(f"loss {status.loss:.4f}")
    if status.accuracy is not None:
        words.append(f"accuracy {status.accuracy:.1%}")
    return " · ".join(words)


def rows(snapshot: Snapshot) -> list[Row]:
    """Devices, those of the cohort first."""
    devices = sorted(snapshot.devices, key=lambda device: (not device.invited, device.device))
    return [Row(d.device, _doing(d), _answer(d), _heard(d)) for d in devices]


def _doing(device: DeviceNow) -> str:
    round_words = f" round {device.round_id}" if device.phase in ("training", "fetching") else ""
    reason = f": {device.doing}" if device.doing else ""
    return f"{device.phase}{round_words}{reason}"


def _answer(device: DeviceNow) -> str:
    if device.quarantined:
        return "quarantined"
    if not device.invited:
        return ""
    return "invited" if device.answer == "none" else device.answer


def _heard(device: DeviceNow) -> str:
    if device.heard_ms is None:
        return ""
    least = "at least " if device.heard_at_least else ""
    return f"heard {least}{duration(device.heard_ms)} ago"


def as_lines(snapshot: Snapshot, *, aligned: bool = True) -> list[str]:
    """Everything, for a log or a pipe; not `aligned`, a device's line depends on no other's."""
    table = rows(snapshot)
    widths = [max((len(row[column]) for row in table), default=0) for column in range(3)]
    if not aligned:
        widths = [0, 0, 0]
    lines = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row.heard])
        for row in table
    ]
    return [*headline(snapshot), *(f"  {line.rstrip()}" for line in lines)]


def duration(milliseconds: int) -> str:
    """Like a person says it: 0.4 s, 12 s, 3 min 20 s, 5 h 2 min, 3 d 4 h."""
    seconds = milliseconds / 1000
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for large, small, size, unit in (("min", "s", 60, 1), ("h", "min", 3600, 60)):
        if whole < size * (60 if large == "min" else 48):
            if whole < size:
                return f"{whole} s"
            rest = whole % size // unit
            return f"{whole // size} {large}" + (f" {rest} {small}" if rest else "")
    days, hours = divmod(whole // 3600, 24)
    return f"{days} d" + (f" {hours} h" if hours else "")
