"""Inputs that are nearly right: bytes and values that differ from a valid one in a few places."""

from __future__ import annotations

import copy
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Literal

import msgspec

Grammar = Literal["bytes", "json", "msgpack"]
BYTES_MAX = 400_000
"""No input is larger, however often a part of it is repeated."""

_NUMBERS = (
    0, 1, 2, 7, 8, 127, 128, 255, 256, 16_383, 16_384, 65_535, 65_536,
    2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1,
)  # fmt: skip
_TOKENS = (
    b"\0", b"\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\x7f", b"\xc1", b"nan", b"inf", b"-1", b"1e999", b"9" * 400, b"[" * 2000,
    b'{"a":' * 500, b"../../etc/passwd", b"\n", b"\x1b[2J", b'"', b"\xed\xa0\x80", b"[[x]]",
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, *_NUMBERS[:-3], *(-n for n in _NUMBERS[1:-3]), 0.0, -0.0, 0.5, 1e300, 1e308,
    -1e308, 5e-324, "", "a", "a" * 65, "a" * 1001, "../x", "x\0y", "\u202e", "f32", "f16", "0" * 64,
    "f" * 64, [], {}, [[]], [[0, 1]], [[0, 2**53 - 1]], {"a": {}}, [None] * 2000,
)  # fmt: skip
_TEXTS = tuple(value for value in _VALUES if isinstance(value, str))


class Mutator:
    """Draws inputs for a decoder from valid ones."""

    def __init__(self, random: Random, grammar: Grammar) -> None:
        self._random = random
        self._grammar = grammar

    def draw(self, seeds: Sequence[bytes]) -> bytes:
        """One of the seeds, changed in one to four places; now and then, noise."""
        random = self._random
        content = random.choice(seeds)
        kind = random.random()
        if kind < 0.02:
            return random.randbytes(random.randrange(300))
        if self._grammar != "bytes" and kind < 0.6:
            content = self._changed_value(content)
        if self._grammar == "bytes" or kind > 0.5:
            for _ in range(random.randint(1, 4)):
                content = self._changed_bytes(content, seeds)
        return content[:BYTES_MAX]

    def _changed_bytes(self, content: bytes, seeds: Sequence[bytes]) -> bytes:
        random = self._random
        at = random.randint(0, len(content))
        size = random.choice((1, 2, 4, 8, 32, max(1, len(content) // 4)))
        before, after = content[:at], content[at:]
        match random.randrange(9):
            case 0 if after:
                return before + bytes([after[0] ^ (1 << random.randrange(8))]) + after[1:]
            case 1:
                return before + bytes([random.choice((0, 1, 0x7F, 0x80, 0xFF))]) + after[1:]
            case 2:
                return before
            case 3:
                return before + after[size:]
            case 4:
                return before + random.randbytes(random.randint(1, 8)) + after
            case 5:
                return before + random.choice(_TOKENS) + after
            case 6:
                return before + after[:size] * random.choice((2, 3, 50)) + after[size:]
            case 7:
                code = random.choice("<>") + random.choice("HIQ")
                width = struct.calcsize(code)
                number = random.choice(_NUMBERS) % (1 << 8 * width)
                return before + struct.pack(code, number) + after[width:]
            case _:
                other = random.choice(seeds)
                return before + other[random.randint(0, len(other)) :]

    def _changed_value(self, content: bytes) -> bytes:
        """The same document with one to three of its values replaced."""
        decode: Callable[[bytes], Any] = msgspec.msgpack.decode
        encode: Callable[[Any], bytes] = msgspec.msgpack.encode
        if self._grammar == "json":
            decode, encode = msgspec.json.decode, msgspec.json.encode
        try:
            value = copy.deepcopy(decode(content))
            for _ in range(self._random.randint(1, 3)):
                value = self._changed(value)
            return encode(value)
        except (ValueError, TypeError, RecursionError, msgspec.MsgspecError, OverflowError):
            return content  # a seed that is no document, or keys that cannot be written

    def _changed(self, value: Any) -> Any:
        random = self._random
        if isinstance(value, dict) and value and random.random() < 0.9:
            key = random.choice(list(value))
            match random.randrange(8):
                case 0:
                    del value[key]
                case 1:
                    value[random.choice(_TEXTS)] = value.pop(key)
                case _:
                    value[key] = self._changed(value[key])
            return value
        if isinstance(value, list) and value and random.random() < 0.9:
            index = random.randrange(len(value))
            match random.randrange(8):
                case 0:
                    del value[index]
                case 1:
                    value += value[index : index + 1] * random.choice((1, 1, 100))
                case 2:
                    random.shuffle(value)
                case _:
                    value[index] = self._changed(value[index])
            return value
        if isinstance(value, bytes) and random.random() < 0.8:
            return self._changed_bytes(value, (value,))
        if isinstance(value, int) and random.random() < 0.4:
            return value + random.choice((-1, 1))
        return copy.deepcopy(random.choice(_VALUES))
