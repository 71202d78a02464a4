"""What a worker answers to its master: a result, or what was raised instead."""

from __future__ import annotations

import traceback

import msgspec

from fedtide.errors import FedtideError
from fedtide.vectors import Vector
from simulator.learning.learner import Evaluate, Learned, Learner, Measured, Train

Work = Train | Evaluate
Reply = Learned | Measured


class Failed(msgspec.Struct, frozen=True, tag=True):
    """What was raised."""

    text: str
    exit_code: int


class Worked(msgspec.Struct, frozen=True, tag=True):
    """One of the two."""

    learned: Learned | None = None
    measured: Measured | None = None


Answer = Worked | Failed


def perform(learner: Learner, work: Work, vector: Vector) -> Answer:
    """Do it. Whatever is raised is an answer: a worker that dies of it could not say why."""
    try:
        if isinstance(work, Train):
            return Worked(learned=learner.train(work, vector))
        return Worked(measured=learner.evaluate(work, vector))
    except FedtideError as exc:
        return Failed(str(exc), exc.exit_code)
    except BaseException as exc:  # noqa: BLE001
        what = name_of(work)
        where = traceback.extract_tb(exc.__traceback__)[-1]
        last_line = traceback.format_exception_only(exc)[-1].strip()
        text = f"{what} failed: {last_line} ({where.filename}, line {where.lineno})"
        return Failed(text, FedtideError.exit_code)


def name_of(work: Work) -> str:
    """For a person."""
    return f"training device {work.device}" if isinstance(work, Train) else "an evaluation"


def error_of(failed: Failed) -> FedtideError:
    """As it was raised."""
    error = FedtideError(failed.text)
    error.exit_code = failed.exit_code
    return error


def reply_of(answer: Answer) -> Reply:
    """What was asked for.

    Raises:
        FedtideError: what was raised instead.
    """
    if isinstance(answer, Failed):
        raise error_of(answer)
    reply = answer.learned or answer.measured
    assert reply is not None
    return reply
