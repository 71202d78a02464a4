"""Named steps at which a test lets the program die, stand still, or find its disk failing.

`reach(step)` marks a step and costs one comparison unless somebody listens. A test of real
processes arms steps of a child by its environment, the simulator listens in-process:

    FEDTIDE_FAILPOINTS="client: update written=kill@2; disk: write=ENOSPC@5+"

`=ACTION@N` acts when the step is reached for the N-th time (1 if left out), `@N+` each time from
then on. Actions: `kill` (SIGKILL), `stop` (SIGSTOP), or the name of an errno to raise.
"""

from __future__ import annotations

import errno
import os
import signal
from collections import Counter
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

from fedtide.errors import ConfigError

Step = Literal[
    "disk: write",
    "disk: sync",
    "disk: rename",
    "disk: remove",
    "disk: commit",
    "join: key made",
    "join: request said",
    "join: answer heard",
    "join: identity written",
    "join: configuration written",
    "join: tested",
    "renewal: former name kept",
    "renewal: certificate stored",
    "client: resumed",
    "client: hello",
    "client: task accepted",
    "client: chunk stored",
    "client: blob fetched",
    "client: task prepared",
    "client: training started",
    "client: progress saved",
    "client: training ended",
    "client: update written",
    "client: update stored",
    "client: offer",
    "client: decline",
    "client: chunk sent",
    "client: receipt heard",
    "client: receipt stored",
    "client: update removed",
    "coordinator: resumed",
    "coordinator: round opened",
    "coordinator: task said",
    "coordinator: chunk stored",
    "coordinator: update kept",
    "coordinator: verdict committed",
    "coordinator: receipt said",
    "coordinator: round closed",
    "coordinator: round abandoned",
    "coordinator: aggregate computed",
    "coordinator: model written",
    "coordinator: model committed",
    "coordinator: model offered",
    "coordinator: chunk published",
    "coordinator: finished",
]
STEPS: tuple[Step, ...] = get_args(Step)
VARIABLE = "FEDTIDE_FAILPOINTS"

Listener = Callable[[Step], None]
_listener: Listener | None = None


def reach(step: Step) -> None:
    """This step is about to follow from what came before it.

    Raises:
        OSError: a test wants the disk to fail here.
    """
    if _listener is not None:
        _listener(step)


def listen(listener: Listener | None) -> None:
    """From now on this hears of every step; None: nobody does."""
    global _listener  # noqa: PLW0603 - one process, one fault plan
    _listener = listener


class Armed(NamedTuple):
    """One step and what shall happen there."""

    step: Step
    action: str
    first: int
    for_ever: bool


def parse(text: str) -> tuple[Armed, ...]:
    """The armed steps that `text` names.

    Raises:
        ConfigError: there is no such step or action.
    """
    return tuple(_parse_one(part.strip()) for part in text.split(";") if part.strip())


def arm_from_environment() -> None:
    """Arm this process by `FEDTIDE_FAILPOINTS`, if that is set.

    Raises:
        ConfigError: it names a step or action that does not exist.
    """
    armed = parse(os.environ.get(VARIABLE, ""))
    if armed:
        listen(_Executor(armed))


class _Executor:
    def __init__(self, armed: tuple[Armed, ...]) -> None:
        self._armed = armed
        self._reached: Counter[Step] = Counter()

    def __call__(self, step: Step) -> None:
        self._reached[step] += 1
        times = self._reached[step]
        for one in self._armed:
            if one.step == step and (times == one.first or (one.for_ever and times > one.first)):
                _act(one.action, step)


def _act(action: str, step: Step) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        code = getattr(errno, action)
        raise OSError(code, f"{os.strerror(code)} (failpoint {step!r})")


def _parse_one(text: str) -> Armed:
    name, _, rest = text.rpartition("=")
    action, _, times = rest.partition("@")
    for_ever = times.endswith("+")
    count = times.removesuffix("+") or "1"
    step = next((step for step in STEPS if step == name.strip()), None)
    known = action in ("kill", "stop") or isinstance(getattr(errno, action, None), int)
    if step is None or not known or not count.isdecimal() or int(count) < 1:
        raise ConfigError(
            f"{VARIABLE} has {text!r}, expected STEP=ACTION@TIMES such as 'disk: write=ENOSPC@3'",
            hint=f"steps: {', '.join(STEPS)}; actions: kill, stop, or the name of an errno",
        )
    return Armed(step, action, int(count), for_ever)
