"""The demo on a terminal: one screen that moves, or plain lines where there is no terminal."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from demo.scene import MEANING, DeviceScene, Fate, Scene
from simulator.report.words import sparkline

_FATE_STYLE = {
    Fate.COUNTED: "green",
    Fate.KILLED: "bold red",
    Fate.LATE: "yellow",
    Fate.OFFLINE: "magenta",
    Fate.ABANDONED: "grey50",
    Fate.ABSENT: "dim",
}
_DOING_STYLE = {
    "training": "cyan",
    "killed": "bold red",
    "no network": "magenta",
    "starting again": "blue",
    "starting": "blue",
    "done": "green",
}
_NEWS_LINES = 4


class View(Protocol):
    """Shows a scene, again and again."""

    def refresh(self) -> None:
        """The scene may have changed."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def open_view(scene: Scene, *, plain: bool) -> View:
    """The live screen on a terminal; else, or if asked for, lines."""
    console = Console()
    if plain or not console.is_terminal:
        return PlainView(scene)
    return LiveView(scene, console)


class PlainView:
    """One line when something begins, and one for every round."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._step = ""
        self._told_round = 0
        self._told_end = False

    def refresh(self) -> None:
        """Print what is new."""
        scene = self._scene
        while self._told_round < scene.closed_round_id:
            self._told_round += 1
            print(round_line(scene, self._told_round), flush=True)
        if scene.finished and scene.evaluating and not self._told_end:
            self._told_end = True
            print(f"final evaluation · {evaluation_words(scene)}", flush=True)
        if scene.step != self._step:
            self._step = scene.step
            if scene.step:
                print(f"{scene.step} ...", flush=True)

    def __enter__(self) -> Self:
        self.refresh()
        return self

    def __exit__(self, *_error: object) -> None:
        self.refresh()


class LiveView:
    """The screen."""

    def __init__(self, scene: Scene, console: Console) -> None:
        self._scene = scene
        self._live = Live(
            console=console, get_renderable=lambda: render(scene, console.width), auto_refresh=True
        )

    def refresh(self) -> None:
        """Nothing: the screen draws itself four times a second."""

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._live.stop()


def round_line(scene: Scene, round_id: int) -> str:
    """One finished round in words."""
    by_fate: dict[Fate, list[str]] = {fate: [] for fate in Fate}
    for device in scene.devices.values():
        by_fate[device.fates.get(round_id, Fate.ABSENT)].append(device.name.removeprefix("device-"))
    counted = len(by_fate[Fate.COUNTED])
    update_words = f"{counted} {'update' if counted == 1 else 'updates'}"
    abandoned = round_id in scene.abandoned
    parts = [f"round {round_id:2}", scene.abandonment(round_id) if abandoned else update_words]
    for fate, word in (
        (Fate.KILLED, "killed"),
        (Fate.LATE, "too late"),
        (Fate.OFFLINE, "no network"),
    ):
        if by_fate[fate]:
            parts.append(f"{word}: {' '.join(by_fate[fate])}")
    if scene.accuracies:
        parts.append(f"accuracy {scene.accuracies[-1]:.1%}")
    if scene.seconds_left is not None:
        parts.append(f"{scene.seconds_left:.0f} s left")
    return " · ".join(parts)


def evaluation_words(scene: Scene) -> str:
    """The devices' part after the last round."""
    return f"{scene.answers_count} of {len(scene.devices)} devices have run the final model"


def render(scene: Scene, width: int) -> RenderableType:
    """The whole screen."""
    title = (
        f"[bold]fedtide demo[/]  {len(scene.devices)} devices, each with images of two digits. "
        "No image leaves its device; together they learn all ten."
    )
    parts: list[RenderableType] = [Text.from_markup(title), _progress(scene, width)]
    parts += [_devices(scene, width), _legend(), _news(scene)]
    return Panel(Group(*parts), border_style="dim", padding=(0, 1))


def _progress(scene: Scene, width: int) -> Text:
    text = Text()
    if not scene.round_id:
        return text.append(f"{scene.step} ...", style="bold cyan")
    filled = round(20 * scene.rounds_done / max(1, scene.rounds_count))
    text.append(f"{scene.rounds_done} of {scene.rounds_count} rounds ", style="bold")
    text.append("━" * filled, style="green").append("━" * (20 - filled), style="dim")
    if scene.seconds_left is not None and not scene.evaluating:
        text.append(f"  about {scene.seconds_left:.0f} s left", style="cyan")
    if scene.finished:
        text.append(f"  {scene.step} ..." if scene.step else "  done", style="bold cyan")
    elif scene.evaluating:
        text.append("  final evaluation", style="bold cyan")
    if scene.accuracies:
        text.append("\nThe shared model reads ")
        text.append(f"{scene.accuracies[-1]:.1%}", style="bold green")
        text.append(" of unseen digits  ")
        text.append(sparkline(scene.accuracies, min(46, max(10, width - 60))), style="green")
    if scene.central is not None and scene.best_single is not None:
        text.append(
            f"\nTo compare: trained on all data in one place {scene.central:.1%}, "
            f"the best device alone {scene.best_single:.1%}",
            style="dim",
        )
    return text


def _devices(scene: Scene, width: int) -> Table:
    table = Table(box=None, padding=(0, 1), expand=False)
    for header in ("device", "digits", "runtime", "now", "its rounds"):
        table.add_column(header, header_style="dim", no_wrap=True)
    room = max(10, width - 58)
    for device in scene.devices.values():
        table.add_row(
            device.name.removeprefix("device-"),
            " ".join(map(str, device.digits)),
            device.runtime,
            _now(scene, device),
            _fates(device, scene.training_round_id, room),
        )
    return table


def _now(scene: Scene, device: DeviceScene) -> Text:
    doing = device.doing
    if device.held:
        return Text("slow link", style="yellow")
    if device.name in scene.accepted and doing in ("idle", "uploading", "training"):
        return Text("has run it" if scene.evaluating else "update is in", style="green")
    if doing == "idle":
        doing = "waiting"
    return Text(doing, style=_DOING_STYLE.get(doing, ""))


def _fates(device: DeviceScene, round_id: int, room: int) -> Text:
    text = Text()
    for number in range(max(1, round_id - room + 1), round_id + 1):
        fate = device.fates.get(number)
        text.append(fate.value if fate else " ", style=_FATE_STYLE[fate] if fate else "")
    return text


def _legend() -> Text:
    text = Text("Its update is  ", style="dim")
    for fate, meaning in MEANING.items():
        text.append(fate.value, style=_FATE_STYLE[fate]).append(f" {meaning}   ", style="dim")
    return text


def _news(scene: Scene) -> Text:
    lines = scene.news[-_NEWS_LINES:]
    return Text("\n".join(lines + [""] * (_NEWS_LINES - len(lines))), style="dim")
