"""What holds in every run, checked from outside the engine: on the events alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from simulator.fleet import events
from simulator.fleet.events import Event


def violations(history: Iterable[Event]) -> list[str]:
    """What is wrong with a run; empty: nothing."""
    found = list(history)
    checks = (
        time_goes_on,
        nobody_works_while_off,
        one_training_at_once,
        work_has_an_order,
        conserved,
    )
    return [text for check in checks for text in check(found)]


def time_goes_on(history: list[Event]) -> Iterator[str]:
    """But for measurements, which come when they are known."""
    at_ms = 0
    for event in history:
        if not isinstance(event, events.Evaluated):
            if event.at_ms < at_ms:
                yield f"{event} comes after {at_ms} ms"
            at_ms = event.at_ms


def nobody_works_while_off(history: list[Event]) -> Iterator[str]:
    """Nor comes twice without having gone."""
    on: set[int] = set()
    for event in history:
        match event:
            case events.On(device=device):
                if device in on:
                    yield f"{event}: it was on"
                on.add(device)
            case events.Off(device=device):
                if device not in on:
                    yield f"{event}: it was off"
                on.discard(device)
            case _:
                device = getattr(event, "device", -1)
                if device >= 0 and device not in on:
                    yield f"{event}: it was off"


def one_training_at_once(history: list[Event]) -> Iterator[str]:
    """Of each device, and it ends before the device is off."""
    training: set[int] = set()
    for event in history:
        match event:
            case events.TrainingBegan(device=device) | events.Off(device=device):
                if device in training:
                    yield f"{event}: it was training"
                if isinstance(event, events.TrainingBegan):
                    training.add(device)
            case events.TrainingEnded(device=device):
                if device not in training:
                    yield f"{event}: it was not training"
                training.discard(device)
            case _:
                pass


def work_has_an_order(history: list[Event]) -> Iterator[str]:
    """A device is asked, trains, uploads."""
    asked: set[tuple[int, int]] = set()
    trained: set[tuple[int, int]] = set()
    for event in history:
        match event:
            case events.Invited(round_id=round_id, devices=devices):
                asked |= {(device, round_id) for device in devices}
            case events.TaskGiven(device=device, round_id=round_id):
                if (device, round_id) not in asked:
                    yield f"{event}: nobody asked"
            case events.TrainingEnded(device=device, round_id=round_id, done=True):
                trained.add((device, round_id))
            case events.UploadBegan(device=device, round_id=round_id):
                if (device, round_id) not in trained:
                    yield f"{event}: it has not trained"
            case _:
                pass


def conserved(history: list[Event]) -> Iterator[str]:
    """What is accepted has arrived, and counts once at the most, in a round that makes a model."""
    arrived: set[tuple[int, int]] = set()
    evaluations: set[int] = set()
    accepted: set[tuple[int, int]] = set()
    waiting: set[tuple[int, int]] = set()
    closed = 0
    for event in history:
        match event:
            case events.RoundOpened(round_id=round_id, kind="evaluate"):
                evaluations.add(round_id)
            case events.UploadEnded(device=device, round_id=round_id, whole=True):
                arrived.add((device, round_id))
            case events.Verdict(device=device, round_id=round_id, verdict="accepted"):
                task = device, round_id
                if task not in arrived and round_id not in evaluations:
                    yield f"{event}: it has not arrived"
                if task in accepted:
                    yield f"{event}: for the second time"
                accepted.add(task)
                waiting.add(task)
            case events.RoundClosed(round_id=closed, parts=parts):
                tasks = {(part.device, part.round_id) for part in parts}
                if len(tasks) != len(parts) or not tasks <= waiting:
                    yield f"round {closed}: what counts is not what was accepted"
                waiting -= tasks
            case events.RoundAbandoned(lost=lost):
                waiting -= set(lost)
            case events.ModelMade(round_id=round_id):
                if round_id != closed:
                    yield f"{event}: that round did not close"
            case _:
                pass
