"""Shakespeare's plays by speaking role: characters and words to predict.

McMahan et al. 2016, §3: a client for each speaking role with at least two lines, the first 80% of
its lines to train on, the last 20% (rounded up to at least one line) to test. From the plays of
github.com/TheMITTech/shakespeare, beside what the paper has (its plays' edition is not known, and
speakers are told apart differently):

                            here         paper
    roles                   1,239        1,146
    training characters     3,428,839    3,564,579
    test characters         867,431      870,014
    training lines          85,443
    the same for each role  69           about 74 examples: u = 7.4 at B = 10 and E = 1

Characters count the ends of lines.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from fedtide.dataset import Examples
from fedtide.errors import DataError
from simulator.learning.datasets.files import AGAIN, missing, read_compressed

FILE = "shakespeare_by_role.jsonl.gz"
BYTES_MAX = 1 << 26
"""Of its content, of which there are 5 MB."""

PADDING, OTHER, START, END = range(4)
CHARACTERS = (
    "\n\r !\"#$%&'()*,-./0123456789:;?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[]_abcdefghijklmnopqrstuvwxyz"
)
"""The 86 that occur in Shakespeare and Dickens, as in TensorFlow Federated; with the four marks
above they are the 90 of the model. Character i has index 4 + i."""
UNROLL_CHARACTERS = 80

WORDS = 10_000
UNROLL_WORDS = 10
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*|[0-9]+|[.,:;!?]|--")

Tokens = NDArray[np.uint8] | NDArray[np.uint16]

IGNORED = -100
"""The label that token_cross_entropy and its accuracy leave out."""


class Role(msgspec.Struct, frozen=True):
    """One line of the file."""

    play: str
    role: str
    lines: Annotated[list[str], msgspec.Meta(min_length=1)]


class Split(NamedTuple):
    """The lines of every role that has two or more."""

    training: list[list[str]]
    test: list[list[str]]


class Sequences:
    """Token sequences of any length, kept end to end, cut into windows of `unroll` on demand.

    Window w of tokens t[0 .. n] has x = t[w*unroll : (w+1)*unroll] and as labels the tokens that
    follow each. The last window is shorter: padding in x, `IGNORED` in the labels.
    """

    def __init__(self, tokens: Tokens, lengths: Sequence[int], unroll: int) -> None:
        self._unroll, self._tokens = unroll, tokens
        length = np.array(lengths, np.int64)
        end = np.cumsum(length)
        windows = -(-np.maximum(length - 1, 0) // unroll)
        self.sequence = np.repeat(np.arange(len(length)), windows)
        """int64[n], which sequence each window is of."""
        place = np.arange(len(self.sequence)) - np.repeat(np.cumsum(windows) - windows, windows)
        self._start = np.repeat(end - length, windows) + place * unroll
        self._last = np.repeat(end - 1, windows)  # this token is a label only

    def examples(self, indices: NDArray[np.int64]) -> Examples:
        """x and y int64[k, unroll]."""
        places = self._start[indices][:, None] + np.arange(self._unroll)
        there = places < self._last[indices][:, None]
        x = self._tokens.take(places, mode="clip").astype(np.int64)
        y = self._tokens.take(places + 1, mode="clip").astype(np.int64)
        x[~there], y[~there] = PADDING, IGNORED
        return Examples(x, y)

    def __len__(self) -> int:
        """Windows."""
        return len(self.sequence)


class _Text:
    """What characters and words have in common: examples with a role each, and no class."""

    labels = None
    _training: Sequences
    _test: Sequences
    groups: NDArray[np.int64]

    def __len__(self) -> int:
        """Training examples."""
        return len(self._training)

    def examples(self, indices: NDArray[np.int64], seed: int = 0) -> Examples:  # noqa: ARG002
        """Training examples, made anew."""
        return self._training.examples(indices)

    @cached_property
    def test(self) -> Examples:
        """The last 20% of every role's lines."""
        return self._test.examples(np.arange(len(self._test)))


class ShakespeareCharacters(_Text):
    """x int64[n, 80] characters, y int64[n, 80] those that follow; groups: the role.

    An example is a line: x begins with `START`, the labels end with `END`, then comes padding, for
    no line has more than 74 characters. That is how the paper is read here: its model "after
    reading each character in a line, predicts the next character", its 866,578 parameters fit 256
    bytes and two marks, and its expected updates (u = 1.5 at B = 50, 7.4 at B = 10) give about 74
    examples a role, where there are 69 lines and 35 sequences of 80 characters a role.

    With `cut="sequence"`, the name shakespeare_sequences: a role's lines joined by line breaks and
    cut every 80 characters. The same characters in half the examples, hardly any padding.
    """

    def __init__(self, data_dir: Path, cut: Literal["line", "sequence"] = "line") -> None:
        self.name = "shakespeare" if cut == "line" else "shakespeare_sequences"
        self._cut = cut
        split = read_roles(data_dir, self.name)
        self._training, self.groups = self._windows(split.training)
        self._test, _ = self._windows(split.test)

    @property
    def about(self) -> str:
        """One line for people."""
        unit = "lines" if self._cut == "line" else f"sequences of {UNROLL_CHARACTERS} characters"
        roles = int(self.groups.max()) + 1
        return f"Shakespeare's plays, {len(self):,} {unit} to train on, of {roles:,} speaking roles"

    def _windows(self, roles: list[list[str]]) -> tuple[Sequences, NDArray[np.int64]]:
        whole = self._cut == "sequence"
        units = [["\n".join(lines)] if whole else lines for lines in roles]
        windows = _character_sequences([text for texts in units for text in texts])
        role = np.repeat(np.arange(len(units)), [len(texts) for texts in units])
        return windows, role[windows.sequence]


class ShakespeareWords(_Text):
    """x int64[n, 10] words, y int64[n, 10] those that follow; groups: the role.

    A stand-in for the paper's 10 million posts of a social network, which nobody else has: other
    accuracies are to be expected. Words are in lower case, punctuation marks count as words; the
    vocabulary is the 9,999 most frequent of the training lines, and 0 is all others and the start.
    A role's lines are one sequence, cut every 10 words.
    """

    name = "shakespeare_words"

    def __init__(self, data_dir: Path) -> None:
        split = read_roles(data_dir, self.name)
        training, test = _words(split.training), _words(split.test)
        counts = Counter(word for role in training for word in role)
        frequent = sorted(counts, key=lambda word: (-counts[word], word))[: WORDS - 1]
        self.vocabulary = {word: index for index, word in enumerate(frequent, start=1)}
        self._training, self._test = self._windows(training), self._windows(test)
        self.groups = self._training.sequence

    @property
    def about(self) -> str:
        """One line for people."""
        return (
            f"the words of Shakespeare's plays (a stand-in for the paper's posts), {len(self):,} "
            f"sequences of {UNROLL_WORDS} to train on, of {int(self.groups.max()) + 1:,} roles"
        )

    def _windows(self, roles: list[list[str]]) -> Sequences:
        of = self.vocabulary
        tokens = [of.get(word, 0) for role in roles for word in ("", *role)]
        lengths = [len(role) + 1 for role in roles]
        return Sequences(np.array(tokens, np.uint16), lengths, UNROLL_WORDS)


def read_roles(data_dir: Path, name: str = "shakespeare") -> Split:
    """The roles with two lines or more, each split by time.

    Raises:
        DataError: the file is missing or damaged.
    """
    path = data_dir / FILE
    try:
        content = read_compressed(path, BYTES_MAX)
    except FileNotFoundError as exc:
        raise missing(name, path, data_dir) from exc
    roles = [lines for lines in _lines_of_roles(path, content) if len(lines) >= 2]
    if not roles:
        raise DataError(f"{str(path)!r} has no role with two lines or more", hint=AGAIN)
    cuts = [len(lines) - -(-len(lines) // 5) for lines in roles]
    return Split(
        [lines[:cut] for lines, cut in zip(roles, cuts, strict=True)],
        [lines[cut:] for lines, cut in zip(roles, cuts, strict=True)],
    )


def _lines_of_roles(path: Path, content: bytes) -> Iterable[list[str]]:
    decoder = msgspec.json.Decoder(Role)
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            yield decoder.decode(line).lines
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise DataError(
                f'{str(path)!r}, line {number:,}: {exc}; expected {{"play": text, "role": text, '
                '"lines": [text, ...]}',
                hint=AGAIN,
            ) from exc


_INDICES = np.full(256, OTHER, np.uint8)
_INDICES[np.frombuffer(CHARACTERS.encode(), np.uint8)] = 4 + np.arange(len(CHARACTERS))


def _character_sequences(texts: list[str]) -> Sequences:
    """Each text between START and END."""
    together = "".join(f"\0{text}\0" for text in texts).encode("utf-32-le", "surrogatepass")
    tokens = _INDICES[np.minimum(np.frombuffer(together, "<u4"), 255)]
    lengths = [len(text) + 2 for text in texts]
    end = np.cumsum(lengths)
    tokens[end - lengths], tokens[end - 1] = START, END
    return Sequences(tokens, lengths, UNROLL_CHARACTERS)


def _words(roles: Sequence[Sequence[str]]) -> list[list[str]]:
    return [_WORD.findall("\n".join(lines).lower()) for lines in roles]
