"""What a reader of bytes is to the fuzz campaign."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tests.hostile.mutation import Grammar

Read = Callable[[bytes], str]


class Decoder(NamedTuple):
    """One reader of bytes, and valid inputs for it."""

    seeds: tuple[bytes, ...]
    read: Read
    grammar: Grammar = "bytes"
