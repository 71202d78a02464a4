"""Why a round stands still and what to do: a function of facts. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from coordinator.config import RoundsConfig
from coordinator.round_state import RoundState
from fedtide.checkup import Finding, ok, problem, warning
from fedtide.picture_text import duration

NAMED_MAX = 20
"""Devices with a finding of their own; beyond it only how many there are."""
STALLED_MS = 30_000
"""An upload without a new block for this long is worth a look."""
_WAITS = "waits: "
"""So begins what a device says that waits for its own conditions."""
SAMPLES_MIN = 3
"""Answers that are needed before anything is said of the deadline."""


class DeviceFacts(NamedTuple):
    """What is known of one device."""

    device_id: str
    heard_ms: int | None = None
    """Since its first hello of its last stay; None: it has never said hello."""
    phase: str = ""
    """Of its newest Presence; empty: there is none."""
    doing: str = ""
    answer: str = ""
    """To its task of the open round; empty: not invited, `none`: not answered."""
    answer_reason: str = ""
    quarantined_ms: int = 0
    quarantined_because: str = ""
    deadline_ms: int | None = None
    """Its own (buffered mode)."""
    task_round: int = 0
    """Of the task that it was given last."""
    revoked: bool = False
    """It is a member no more."""
    newly_invited: bool = False
    """It had another task, or none, a moment ago."""


class Facts(NamedTuple):
    """What is known of a federation."""

    state: RoundState
    rounds: RoundsConfig
    running: bool
    """A coordinator's process holds the state folder."""
    beacon: Literal["online", "offline", "unknown"] = "unknown"
    reachable: bool = True
    """The broker, by us."""
    deadline_ms: int | None = None
    devices: tuple[DeviceFacts, ...] = ()
    """All that are known or invited, sorted."""
    answered_ms: tuple[int, ...] = ()
    """From a round's opening to the arrival of an update, late ones too, of the newest rounds."""
    late_count: int = 0
    """Of those, how many came after their round."""
    declines: tuple[str, ...] = ()
    """Reasons of the newest declines."""
    upload_quiet_ms: int | None = None
    """Since any block of any update came; None: none is on its way."""
    twins_refused: int = 0
    """Hellos of a second installation under a name in use, ever."""


def diagnose(facts: Facts) -> list[Finding]:
    """What stands in the way, the federation's troubles before those of single devices."""
    return [
        *_coordinator(facts),
        *_round(facts),
        *_buffer(facts),
        *_deadline(facts),
        *_declines(facts),
        *_devices(facts),
    ]


def seem_idle(facts: Facts) -> dict[str, int]:
    """Devices that were invited and do nothing about it, with their task's round.

    Database and presences are read at different moments, and a fast round may pass between them:
    so each is a suspicion, until it is seen twice (`confirmed`).
    """
    return {
        device.device_id: device.task_round
        for device in facts.devices
        if device.answer == "none" and device.phase == "idle"
    }


def confirmed(facts: Facts, suspects: Mapping[str, int]) -> Facts:
    """What is known after a second look: idle is who was so with the same task at the first."""
    seen = seem_idle(facts)
    return facts._replace(
        devices=tuple(
            device._replace(
                newly_invited=device.device_id in seen
                and suspects.get(device.device_id) != device.task_round
            )
            for device in facts.devices
        )
    )


def _coordinator(facts: Facts) -> Iterator[Finding]:
    started = facts.state.round_id > 0 or bool(facts.devices)
    start = "start it: fedtide coordinator --config FILE"
    if facts.state.phase == "finished":
        todo = "" if facts.running else "raise rounds.count and start it again to go on"
        yield Finding("ok", f"the federation has finished: {facts.state.reason}", todo)
    elif facts.running and facts.reachable and facts.beacon != "online":
        yield problem(
            "the coordinator's process runs, but its beacon is not at the broker: it has no link, "
            "or may not write there",
            "look at its log; compare its [broker] with this file's",
        )
    elif not facts.running and facts.beacon == "online":
        yield warning(
            "a coordinator of this federation is online, but none holds this state folder",
            "it runs elsewhere, or with another state_dir (two for one federation must not be), "
            "or has died a moment ago: ask again",
        )
    elif not facts.running and started:
        yield problem("the coordinator is not running: no round can go on", start)
    elif not facts.running:
        yield warning("the coordinator is not running, and has not yet heard a device", start)
    else:
        yield ok("the coordinator is running")


def _round(facts: Facts) -> Iterator[Finding]:
    state, rounds = facts.state, facts.rounds
    if state.phase == "waiting" and state.rounds_done < rounds.count:
        yield from _waiting(facts)
    elif state.phase == "collecting" and state.kind == "train":
        yield from _collecting(facts)
    elif state.phase == "collecting":
        yield ok(f"the devices evaluate the final model: {state.reason}")
    elif state.phase == "aggregating":
        yield ok(f"round {state.round_id}: {state.reason}")
    elif state.phase == "backing_off":
        yield warning(
            f"round {state.round_id} was abandoned, {state.abandoned_in_a_row} in a row "
            f"(it gives up at {rounds.abandoned_max}): {state.reason}",
            "the next one opens by itself; the findings below say what stood in the way",
        )


def _waiting(facts: Facts) -> Iterator[Finding]:
    state, rounds = facts.state, facts.rounds
    needed = max(rounds.devices_min, rounds.quorum)
    blind = _blind(facts)
    if blind:
        yield warning(f"how many devices are online is unknown while {blind}", "see above")
        return
    online = len(state.online)
    if online >= needed:
        return
    known = [device for device in facts.devices if device.heard_ms is not None]
    told = f"no round can open: {online} of {needed} devices are online"
    if not known:
        yield warning(f"{told}, and none has ever said hello", "start the devices' clients")
        return
    if len(known) < needed:
        yield problem(
            f"{told}, and only {len(known)} {'has' if len(known) == 1 else 'have'} ever said hello",
            f"start more devices, or lower rounds.devices_min ({rounds.devices_min}) and "
            f"rounds.quorum ({rounds.quorum})",
        )
        return
    away = sorted(
        (d for d in known if d.device_id not in state.online and not d.quarantined_ms),
        key=lambda d: d.heard_ms or 0,
    )
    yield problem(f"{told}; known and not here: {_named(away)}", "start them, or see below")


def _blind(facts: Facts) -> str:
    """Why it is not known who is online: only the coordinator hears that, and at the broker."""
    if not facts.reachable:
        return "the broker cannot be reached"
    if not facts.running:
        stopped = facts.beacon != "online"
        return "the coordinator is stopped: start it" if stopped else "it runs elsewhere"
    return "" if facts.beacon == "online" else "the coordinator has no link"


def _buffer(facts: Facts) -> Iterator[Finding]:
    """A round takes one update of each device: a larger buffer is full only with late ones."""
    rounds, online = facts.rounds, len(facts.state.online)
    if rounds.mode != "buffered" or facts.state.phase == "finished" or _blind(facts):
        return
    if 0 < online < rounds.buffer_size:
        yield warning(
            f"rounds.buffer_size {rounds.buffer_size} exceeds the {online} devices that are "
            f"online: each model waits rounds.collect_ms ({duration(rounds.collect_ms)})",
            f"set rounds.buffer_size to {max(online, rounds.quorum)} or less, or start more "
            "devices",
        )


def _collecting(facts: Facts) -> Iterator[Finding]:
    state, rounds = facts.state, facts.rounds
    at_work = sum(member.answer == "none" for member in state.cohort)
    accepted = sum(member.answer == "accepted" for member in state.cohort)
    here = accepted + len(state.carried)
    told = f"round {state.round_id}: {here} of {state.wanted} updates, {at_work} devices at work"
    left = "" if facts.deadline_ms is None else f", {duration(facts.deadline_ms)} left"
    if state.buffered:  # places are given to others again and again
        yield ok(f"{told}, in the buffered mode")
    elif here + at_work < state.quorum:
        yield problem(
            f"{told}: the quorum of {state.quorum} is out of reach, the round will be abandoned",
            "the findings on the devices say why they are out",
        )
    elif here + at_work < state.wanted:
        yield warning(
            f"{told}{left}: the {state.wanted} wanted are out of reach, so it closes at its "
            f"deadline or when all have answered (it counts with {state.quorum})",
            "",
        )
    else:
        yield ok(f"{told}{left}")
    if rounds.cohort_size is not None and not state.buffered and state.wanted < rounds.cohort_size:
        yield warning(
            f"rounds.cohort_size is {rounds.cohort_size}, but the round opened with fewer devices "
            f"online: it asks for {state.wanted} updates",
            "start more devices, or set rounds.devices_min to wait for them",
        )


def _deadline(facts: Facts) -> Iterator[Finding]:
    """Whether `collect_ms` suits the times in which devices have answered."""
    times = sorted(facts.answered_ms)
    if len(times) < SAMPLES_MIN:
        return
    collect_ms = facts.rounds.collect_ms
    slow = times[min(len(times) - 1, len(times) * 9 // 10)]
    advice = -(-slow * 3 // 2 // 10_000) * 10_000
    if facts.late_count * 5 >= len(times) or slow > collect_ms:
        yield problem(
            f"the deadline is too short: {facts.late_count} of the newest {len(times)} updates "
            f"came late, nine of ten came within {duration(slow)}, rounds.collect_ms allows "
            f"{duration(collect_ms)}",
            f"set rounds.collect_ms to {max(advice, collect_ms + 10_000)} or more",
        )
    elif slow * 5 > collect_ms * 4:
        yield warning(
            f"the deadline is tight: nine of ten updates came within {duration(slow)} of "
            f"{duration(collect_ms)}",
            f"set rounds.collect_ms to {max(advice, collect_ms + 10_000)}",
        )


def _declines(facts: Facts) -> Iterator[Finding]:
    """Whether everybody declines, and why."""
    declined = [device for device in facts.devices if device.answer == "declined"]
    invited = [device for device in facts.devices if device.answer]
    reasons = Counter(reason for reason in facts.declines if reason)
    common, count = next(iter(reasons.most_common(1)), ("", 0))
    if len(invited) > 1 and len(declined) == len(invited):
        because = f", most of them because: {common}" if common else ""
        yield problem(
            f"all {len(invited)} devices of round {facts.state.round_id} decline{because}",
            "the bundle or the plan does not suit the devices: correct it rather than them",
        )
    elif count >= SAMPLES_MIN:
        yield warning(f"{count} of the newest declines have one reason: {common}", "")


def _devices(facts: Facts) -> Iterator[Finding]:
    """One finding for each device that is waited for or in trouble."""
    if facts.twins_refused:
        yield Finding(
            "ok",
            f"a second installation under a name in use was refused {facts.twins_refused} times "
            "so far",
            "if the number grows, the coordinator's log names it: give each device its own name",
        )
    found = [finding for device in facts.devices for finding in _device(device, facts)]
    found.sort(key=lambda finding: ("problem", "warning", "ok").index(finding.level))
    yield from found[:NAMED_MAX]
    if len(found) > NAMED_MAX:
        yield warning(f"... and {len(found) - NAMED_MAX} more devices", "see fedtide status")


def _device(device: DeviceFacts, facts: Facts) -> Iterator[Finding]:
    name, doing = device.device_id, f": {device.doing}" if device.doing else ""
    if device.revoked:
        if device.answer:
            yield warning(
                f"{name} is revoked: nothing from it counts, and no round waits for it",
                f"nothing; or let it in again: fedtide device add {name}",
            )
        return
    says = device.doing if device.phase != "offline" else ""
    if "another installation uses the name" in says:
        yield warning(f"{name}: {says}", "give each device a name, and a state_dir, of its own")
    if device.quarantined_ms:
        yield warning(
            f"{name} is quarantined for {duration(device.quarantined_ms)}: "
            f"{device.quarantined_because}",
            "look at its data and its clock; it is invited again by itself",
        )
    if device.answer == "declined":
        reason = device.answer_reason or device.doing or "no reason is known"
        yield warning(f"{name} declines: {reason}", f"on {name}: fedtide doctor client.toml")
    elif device.answer == "rejected":
        yield warning(f"{name}: its update was rejected: {device.answer_reason}", "")
    elif device.answer == "silent":
        yield warning(f"{name} took too long and has lost its place; its update may still come")
    elif "the disk is full" in says:
        yield warning(f"{name}: {says}", f"free space on {name}; it goes on by itself")
    elif device.answer == "none":
        yield from _awaited(device, facts, doing)


def _awaited(device: DeviceFacts, facts: Facts, doing: str) -> Iterator[Finding]:
    """A device whose update is waited for."""
    name, there = device.device_id, f"on {device.device_id}: fedtide doctor client.toml"
    if not facts.reachable:
        yield warning(f"{name} was invited; what it does is not known without the broker", "")
    elif device.phase == "offline":
        how = device.doing or "power or link were lost"
        yield warning(
            f"{name} was invited and is offline ({how})",
            f"start its client; its update counts if it comes before the deadline. Else {there}",
        )
    elif not device.phase:
        yield warning(
            f"{name} was invited; the broker knows no presence of it, so it may not write it",
            f"give it the right to write presence/{name}; {there}",
        )
    elif device.doing.startswith(_WAITS):
        yield warning(
            f"{name} was invited and {device.doing}",
            f"nothing, if its [conditions] are as they should be: it goes on by itself. {there}",
        )
    elif device.phase == "uploading" and (facts.upload_quiet_ms or 0) > STALLED_MS:
        yield warning(
            f"{name} is uploading{doing}, but no block has come for "
            f"{duration(facts.upload_quiet_ms or 0)}",
            f"its link is down or very slow, or the broker drops its messages; {there}",
        )
    elif device.phase == "idle" and device.newly_invited:
        yield ok(f"{name} has just been invited")
    elif device.phase == "idle":
        yield warning(
            f"{name} was invited and does nothing about it{doing}",
            "its task is sent again with its next hello; if that does not help, " + there,
        )
    else:
        yield ok(f"{name} is {device.phase}{doing}")


def _named(devices: Sequence[DeviceFacts]) -> str:
    words = [f"{d.device_id} ({_away(d)})" for d in devices[:5]]
    more = f" and {len(devices) - 5} more" if len(devices) > 5 else ""
    return ", ".join(words) + more or "none"


def _away(device: DeviceFacts) -> str:
    said = duration(device.heard_ms or 0)
    told = device.phase == "offline" or device.doing.startswith(_WAITS)
    why = f"; {device.doing}" if told and device.doing else ""
    return f"came last {said} ago{why}"
