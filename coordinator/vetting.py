"""Vetting: what an update must satisfy before it counts.

A verdict is data, never an exception. Each has a name from a short list, and is counted under it.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from coordinator.aggregation import norm_of
from coordinator.config import CoordinatorConfig, VettingConfig
from coordinator.records import Standing, Terms
from coordinator.round_state import RoundState, unwelcome
from fedtide.messages import Receipt, Update
from fedtide.vectors import decode_vector, encoded_bytes

Name = Literal[
    "in time",
    "late",
    "foreign",
    "uninvited",
    "second",
    "kind",
    "model",
    "examples",
    "steps",
    "encoding",
    "length",
    "digest",
    "value",
    "norm",
    "replay",
    "repeated",
]


class Verdict(NamedTuple):
    """What becomes of an update, and why."""

    verdict: Literal["accepted", "discarded", "rejected"]
    name: Name
    reason: str = ""
    norm: float | None = None
    """L2 norm of the delta, where it was computed."""

    def receipt(self, update: Update) -> Receipt:
        """What the device is told."""
        return Receipt(update.update_id, self.verdict, self.reason[:1000])


class Known(NamedTuple):
    """What the store knows about an update's device and task."""

    terms: Terms | None
    """Of the task; None: this device was never given it."""
    answered: bool
    """Whether there is a verdict already."""


def admit(
    update: Update, device_id: str, state: RoundState, config: CoordinatorConfig, known: Known
) -> Verdict | None:
    """The verdict on an update of this run that the state alone gives. None: it is welcome."""
    version = 0 if known.terms is None else known.terms.base_version
    round_id = update.round_id
    kind = update.kind if known.terms is None else known.terms.kind
    reason = unwelcome(state, config.rounds, device_id, round_id, version, kind)
    if reason:
        return Verdict("discarded", "late" if round_id <= state.round_id else "uninvited", reason)
    if known.terms is None:
        reason = f"{device_id} was not invited to round {round_id}"
        return Verdict("discarded", "uninvited", reason)
    if known.answered:
        return Verdict("discarded", "second", f"{device_id} has already answered round {round_id}")
    return None


def misfit(
    update: Update, terms: Terms, model_digest: str, elements: int, vetting: VettingConfig
) -> Verdict | None:
    """Why the header of an admitted update is unacceptable; checked before any allocation."""

    def reject(name: Name, reason: str) -> Verdict:
        return Verdict("rejected", name, reason)

    if update.kind != terms.kind:
        return reject("kind", f"the task was to {terms.kind}, this is to {update.kind}")
    if update.model != model_digest:
        begin = f"it starts from model {update.model[:12]}, not from {model_digest[:12]}"
        return reject("model", begin)
    if update.kind == "evaluate":
        return None if update.blob is None else reject("length", "an evaluation has no blob")
    if update.examples < 1:
        return reject("examples", "it was trained on no examples")
    if update.examples > vetting.examples_max:
        most = f"at most {vetting.examples_max:,} are believed"
        return reject("examples", f"it says {update.examples:,} examples; {most}")
    steps_max = terms.plan.steps_for(update.examples)
    if terms.weights == "fednova" and not 1 <= update.steps <= steps_max:
        asked = f"the plan makes 1 to {steps_max:,} of {update.examples:,} examples"
        return reject("steps", f"it says {update.steps:,} optimizer steps; {asked}")
    if update.encoding != terms.encoding:
        asked = f"the task asked for {terms.encoding}"
        return reject("encoding", f"it is encoded as {update.encoding}, {asked}")
    expected = encoded_bytes(elements, terms.encoding)
    if update.blob is None or update.blob.size_bytes != expected:
        size = 0 if update.blob is None else update.blob.size_bytes
        return reject("length", f"it has {size:,} bytes, expected {expected:,}")
    return None


def examine(content: bytes, update: Update, elements: int, terms: Terms) -> Verdict:
    """The verdict on the content: its length, its values, its norm beside those of others."""
    try:
        norm = norm_of(decode_vector(content, update.encoding, elements))
    except ValueError as exc:
        return Verdict("rejected", "value", str(exc))
    factor, reference = terms.norm_factor, terms.norm_reference
    if factor and reference and norm > factor * reference:
        usual = f"{norm / reference:.3g} times the median {reference:.3g} of the cohort before"
        reason = f"its norm {norm:.3g} is {usual}; at most {factor:g} times is believed"
        return Verdict("rejected", "norm", reason, norm)
    return Verdict("accepted", "in time", norm=norm)


def next_standing(
    standing: Standing, verdict: Verdict, at_ms: int, vetting: VettingConfig
) -> Standing:
    """A device's standing after this verdict: discards are no strikes, work that counts clears.

    It ends no quarantine: an update that was on its way says nothing of the next.
    """
    if verdict.verdict == "discarded":
        return standing
    if verdict.verdict == "accepted":
        return standing._replace(strikes=0) if standing.until_ms > at_ms else Standing()
    strikes = standing.strikes + 1
    if strikes < vetting.strikes_max or vetting.quarantine_ms == 0:
        return Standing(strikes, standing.until_ms, verdict.reason[:200])
    return Standing(0, at_ms + vetting.quarantine_ms, verdict.reason[:200])


def quarantine_notice(standing: Standing, at_ms: int, vetting: VettingConfig) -> str:
    """Why a device is not invited now; empty: it may be."""
    # A clock that was set back must not make it longer than it was meant to be.
    left_ms = min(standing.until_ms - at_ms, vetting.quarantine_ms)
    if left_ms <= 0:
        return ""
    minutes = math.ceil(left_ms / 60_000)
    return f"in quarantine, not invited for {minutes} min: {standing.reason}"
