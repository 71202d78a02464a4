"""The outbox: whose turn it is to be offered, and what is given up when there is no more place.

The coordinator collects one upload of each device, and the offer of another drops what has arrived
of it. So one update with content is offered at a time: the newest, which counts most, until the
coordinator has asked for one. That one stays until its receipt: nothing newer takes its place, nor
is it given up, nor, once another waits beside it, does a restart change it. Otherwise a device that
learns faster than it sends would begin ever new uploads and end none. Evaluations have no content
and go along.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from msgspec import Struct

from fedtide.messages import Update

OUTBOX_MAX = 16
"""Updates that wait for a receipt; beyond it the oldest is given up."""
OUTBOX_BYTES_MAX = 1_000_000_000
"""Of the updates that wait for a receipt, but for the newest and the one that is being uploaded,
which always have their place: both were on the disk before anything could be given up."""
OFFER_RETRY_MS = 3_000
OFFERS_VAIN_MAX = 8
"""An update whose offers lead to nothing so often, four minutes, lets others go before it: one that
no broker carries, or no coordinator understands, must not keep back the rest for ever."""
RETRY_MS_MAX = 60_000


class Wait(Struct, frozen=True):
    """Something said to the coordinator, to be said again at `at_ms` if nothing comes."""

    at_ms: int
    tries: int = 0

    def later(self, now_ms: int, first_ms: int) -> Wait:
        """The next, longer wait."""
        return Wait(now_ms + min(first_ms * 2**self.tries, RETRY_MS_MAX), self.tries + 1)


AT_ONCE = Wait(0)
"""Of an update that has not been offered."""
Offers = Mapping[str, Wait]
"""Updates by id, and when to offer them again."""


class Due(NamedTuple):
    """What `due` returns."""

    updates: tuple[Update, ...]
    offers: dict[str, Wait]


def turn(outbox: tuple[Update, ...], uploading: str, offers: Offers) -> Update | None:
    """The one update with content that may be offered and sent; `uploading`: that was asked for."""
    contents = [update for update in outbox if update.blob is not None]
    vain = [_wait(offers, update).tries // (OFFERS_VAIN_MAX + 1) for update in contents]
    first = [update for update, times in zip(contents, vain, strict=True) if times == min(vain)]
    asked_for = (update for update in first if update.update_id == uploading)
    return next(asked_for, first[-1] if first else None)


def due(outbox: tuple[Update, ...], uploading: str, offers: Offers, at_ms: int) -> Due:
    """The updates to be offered now, and the waits that begin with it."""
    updates, waits = [], dict(offers)
    candidates = [update for update in outbox if update.blob is None]
    while (current := turn(outbox, uploading, waits)) is not None:
        wait = _wait(waits, current)
        if wait.at_ms > at_ms or wait.tries % (OFFERS_VAIN_MAX + 1) < OFFERS_VAIN_MAX:
            candidates.append(current)
            break
        waits[current.update_id] = Wait(wait.at_ms, wait.tries + 1)  # others go before it
    for update in candidates:
        wait = _wait(waits, update)
        if wait.at_ms <= at_ms:
            updates.append(update)
            waits[update.update_id] = wait.later(at_ms, OFFER_RETRY_MS)
    return Due(tuple(updates), waits)


def deadlines_at_ms(outbox: tuple[Update, ...], uploading: str, offers: Offers) -> list[int]:
    """When to look for what is `due`; an update whose turn has not come has no deadline."""
    current = turn(outbox, uploading, offers)
    offered = (update for update in outbox if update.blob is None or update is current)
    return [_wait(offers, update).at_ms for update in offered]


def given_up(outbox: tuple[Update, ...], uploading: str, bytes_max: int) -> tuple[Update, ...]:
    """The oldest updates, for which there is no place."""
    lasting = [old for old in outbox if old is outbox[-1] or old.update_id == uploading]
    others = [old for old in outbox if old not in lasting]
    count, size_bytes = len(lasting), sum(map(_size_bytes, lasting))
    for kept, update in enumerate(reversed(others)):
        size_bytes += _size_bytes(update)
        if count + kept == OUTBOX_MAX or size_bytes > bytes_max:
            return tuple(others[: len(others) - kept])
    return ()


def _size_bytes(update: Update) -> int:
    return 0 if update.blob is None else update.blob.size_bytes


def _wait(offers: Offers, update: Update) -> Wait:
    return offers.get(update.update_id, AT_ONCE)
