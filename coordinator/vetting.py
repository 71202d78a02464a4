"""Vetting: what an update must satisfy before it counts.

A verdict is data, never an exception.
"""

from __future__ import annotations

from coordinator.round_machine import RoundState
from fedtide.messages import Encoding, Receipt, Update
from fedtide.vectors import decode_vector, encoded_bytes


def admit(update: Update, device_id: str, state: RoundState, run_id: str) -> Receipt | None:
    """The verdict on an update that can be given without its content. None: it is welcome."""
    if update.run_id != run_id:
        return _discard(update, "it belongs to another run of this federation")
    if update.round_id > state.round_id:
        return _discard(update, f"round {update.round_id} has not been opened")
    if update.round_id < state.round_id or state.phase != "collecting":
        return _discard(update, f"late: round {update.round_id} has closed")
    member = state.member(device_id)
    if member is None:
        return _discard(update, f"{device_id} was not invited to round {update.round_id}")
    if member.answer != "none":
        return _discard(update, f"{device_id} has already answered round {update.round_id}")
    return None


def misfit(
    update: Update, state: RoundState, model_digest: str, encoding: Encoding, elements: int
) -> str | None:
    """Why the header of an admitted update is unacceptable; checked before any allocation."""
    if update.kind != state.kind:
        return f"the task was to {state.kind}, this is to {update.kind}"
    if update.model != model_digest:
        return f"it starts from model {update.model[:12]}, not from {model_digest[:12]}"
    if update.kind == "evaluate":
        return None if update.blob is None else "an evaluation has no blob"
    if update.examples < 1:
        return "it was trained on no examples"
    if update.encoding != encoding:
        return f"it is encoded as {update.encoding}, the task asked for {encoding}"
    expected = encoded_bytes(elements, encoding)
    if update.blob is None or update.blob.size_bytes != expected:
        size = 0 if update.blob is None else update.blob.size_bytes
        return f"it has {size:,} bytes, expected {expected:,}"
    return None


def defect(content: bytes, update: Update, elements: int) -> str | None:
    """Why the content of an update is unacceptable: length, or a value that is not finite."""
    try:
        decode_vector(content, update.encoding, elements)
    except ValueError as exc:
        return str(exc)
    return None


def _discard(update: Update, reason: str) -> Receipt:
    return Receipt(update.update_id, "discarded", reason)
