"""How a simulation gets on: a screen that moves, or rare lines where there is no terminal."""

from __future__ import annotations

import time
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from simulator.fleet.totals import Totals
from simulator.report.words import bytes_words, plural, sparkline, time_words

PLAIN_S = 30.0
"""A line at least this often, if anything happened."""
PLAIN_STEPS = 10
"""And so many on the way to the last round."""
_BAR = 20


class Progress(Protocol):
    """Shows runs while they go on. Several policies may be at it at the same time."""

    def begin(self, policy: str, rounds: int) -> None:
        """A policy sets out to do so many rounds."""

    def round(self, policy: str, totals: Totals) -> None:
        """A round was closed or abandoned, or a model was measured."""

    def end(self, policy: str, totals: Totals) -> None:
        """It is over."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


def open_progress(*, plain: bool = False) -> Progress:
    """The screen on a terminal; else, or if asked for, lines."""
    console = Console(stderr=True)
    return PlainProgress(console) if plain or not console.is_terminal else LiveProgress(console)


class _Run:
    """One policy on its way."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.began_s = time.monotonic()
        self.totals: Totals | None = None
        self.ended_s: float | None = None
        self.told_s = self.began_s
        self.told_steps = 0

    @property
    def done(self) -> int:
        """Rounds that made a model."""
        return 0 if self.totals is None else self.totals.rounds_done

    @property
    def accuracies(self) -> list[float]:
        """Of the models measured so far."""
        if self.totals is None:
            return []
        return [x.accuracy for x in self.totals.evaluations if x.accuracy is not None]

    def seconds(self) -> float:
        """Of real time."""
        return (self.ended_s or time.monotonic()) - self.began_s

    def words(self) -> list[str]:
        """What there is to say, the most important first."""
        totals = self.totals
        if totals is None:
            return ["starting"]
        # As the table: what follows the last model evaluates it.
        succeeded = totals.finished is not None and totals.finished.succeeded
        at_ms = totals.model_ms if succeeded else totals.at_ms
        words = [f"{time_words(at_ms)} of virtual time"]
        if self.accuracies:
            words.insert(0, self._accuracy_words(totals))
        if totals.rounds_abandoned:
            words.append(f"{plural(totals.rounds_abandoned, 'round')} abandoned")
        dropped = sum(totals.dropped.values())
        if dropped:
            words.append(plural(dropped, "dropout"))
        return [*words, bytes_words(totals.spent.down_bytes + totals.spent.up_bytes)]

    def _accuracy_words(self, totals: Totals) -> str:
        """The newest, and of which model: it is measured beside the next round."""
        newest = [x for x in totals.evaluations if x.accuracy is not None][-1]
        text = f"accuracy {newest.accuracy:.1%}"
        if newest.version == totals.model_version:
            return text
        return f"{text} after round {newest.version}" if newest.version else f"{text} untrained"


class PlainProgress:
    """See `open_progress`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._runs: dict[str, _Run] = {}

    def begin(self, policy: str, rounds: int) -> None:
        """A line."""
        self._runs[policy] = _Run(rounds)
        self._say(f"{policy}: {plural(rounds, 'round')} ...")

    def round(self, policy: str, totals: Totals) -> None:
        """A line now and then."""
        run = self._runs[policy]
        run.totals = totals
        steps, now = PLAIN_STEPS * run.done // max(1, run.rounds), time.monotonic()
        if run.done < run.rounds and (steps > run.told_steps or now - run.told_s >= PLAIN_S):
            run.told_steps, run.told_s = steps, now
            self._tell(policy, run)

    def end(self, policy: str, totals: Totals) -> None:
        """The last line."""
        run = self._runs[policy]
        run.totals = totals
        run.ended_s = time.monotonic()
        self._tell(policy, run)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        """Nothing is open."""

    def _tell(self, policy: str, run: _Run) -> None:
        words = [f"round {run.done} of {run.rounds}", *run.words(), f"{run.seconds():.1f} s"]
        self._say(f"{policy}: {' · '.join(words)}")

    def _say(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)


class LiveProgress:
    """See `open_progress`."""

    def __init__(self, console: Console) -> None:
        self._runs: dict[str, _Run] = {}
        self._live = Live(console=console, get_renderable=self.render, refresh_per_second=4)

    def begin(self, policy: str, rounds: int) -> None:
        """A row of the screen, which draws itself four times a second."""
        self._runs[policy] = _Run(rounds)

    def round(self, policy: str, totals: Totals) -> None:
        """It is seen when the screen is drawn again."""
        self._runs[policy].totals = totals

    def end(self, policy: str, totals: Totals) -> None:
        """Its clock stops."""
        run = self._runs[policy]
        run.totals, run.ended_s = totals, time.monotonic()

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._live.stop()

    def render(self) -> Table:
        """A row for each policy."""
        table = Table(box=None, padding=(0, 1), show_header=False, expand=True)
        for column in range(6):
            # The words give way, on a narrow terminal.
            table.add_column(no_wrap=True, overflow="ellipsis", ratio=1 if column == 4 else None)
        for policy, run in list(self._runs.items()):
            filled = min(_BAR, _BAR * run.done // max(1, run.rounds))
            bar = Text("━" * filled, style="green").append("━" * (_BAR - filled), style="dim")
            mark = Text("✓" if run.ended_s is not None else " ", style="green")
            line = Text(" · ".join(run.words()))
            if run.accuracies:
                bars = sparkline(run.accuracies, 16)
                line = Text.assemble((bars, "green"), " ", line)
            count = Text(f"{run.done}/{run.rounds}")
            seconds = Text(f"{run.seconds():.0f} s", style="dim")
            table.add_row(mark, Text(policy, style="bold"), bar, count, line, seconds)
        return table
