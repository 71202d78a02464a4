"""Why a message is not heard. What stands before a colon is its kind, to be counted by."""

from __future__ import annotations

MISSING = "seal missing"
UNKNOWN = "seal of an unknown key: it is none of the coordinator's"
NO_MEMBER = "seal of no member"
OF_ANOTHER = "seal of another key: not the one that is registered for this device"
BROKEN = "seal broken: the message was altered, or made for another topic"
REPLAYED = "seal replayed"
UNNUMBERED = "seal without a number: it is answered, and nothing follows from it"
"""A doctor's question, beside the client that counts."""
STALE = "seal stale"
NO_AUTHORITY = "seal of no authority"
NOT_KEPT = "seal not kept"
"""It would be believed, and the disk has no room to remember that it was heard."""


def replayed(number: int, newest: int) -> str:
    """Heard before, or overtaken."""
    return (
        f"{REPLAYED}: its number is {number}, and {newest} was heard already; "
        "somebody repeats it, or uses a copy of this identity"
    )
