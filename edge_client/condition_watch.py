"""Looks at this machine again and again, and says when its conditions begin or cease to hold."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from edge_client.conditions import ConditionsConfig, Verdict, examine, judge
from edge_client.sensors import Sensors
from edge_client.session_events import ConditionsJudged

_log = logging.getLogger(__name__)

LOOK_S = 5.0
"""Between two looks; a processor that gets too hot does so within this time."""
FIRST_LOOK_S = 1.0
"""Until the first: a load is of the time between."""
_NOT_YET = "its conditions are being looked at"


class ConditionWatch:
    """In a thread of its own: to ask NetworkManager may take a while. `report` only enqueues."""

    def __init__(
        self,
        config: ConditionsConfig,
        sensors: Sensors,
        report: Callable[[ConditionsJudged], None],
    ) -> None:
        self._config = config
        self._sensors = sensors
        self._report = report
        self._stopped = threading.Event()
        asked_for = config != ConditionsConfig(throttled=config.throttled)
        flags = config.throttled == "auto" and sensors.throttled() is not None
        self._needed = asked_for or flags or config.throttled == "wait"
        self.first = ConditionsJudged(*(_NOT_YET, _NOT_YET) if self._needed else ("", ""))
        """What holds until the first look."""

    def start(self) -> None:
        """Begin to look, if there is anything to look at."""
        if self._needed:
            threading.Thread(target=self._run, name="conditions", daemon=True).start()

    def stop(self) -> None:
        """Stop for good; a question to NetworkManager is not waited for."""
        self._stopped.set()

    def _run(self) -> None:
        verdict, told, pause_s = Verdict(), self.first, FIRST_LOOK_S
        while not self._stopped.wait(pause_s):
            pause_s = LOOK_S
            try:
                verdict = self._look(verdict, first=told is self.first)
                now = ConditionsJudged(verdict.training, verdict.transfers)
            except Exception:  # noqa: BLE001 - who asked for a protection has it, even of a bug
                _log.exception("the conditions of this device cannot be judged")
                now = ConditionsJudged("its conditions cannot be judged: its own log says more", "")
            if now != told:
                self._report(now)
                told = now

    def _look(self, before: Verdict, *, first: bool) -> Verdict:
        readings = self._sensors.read()
        if first:
            for condition in examine(readings, self._config):
                if condition.met is None:
                    _log.warning("%s: tasks wait for it", condition.text)
        verdict = judge(readings, self._config, before, time.monotonic_ns() // 1_000_000)
        if set(verdict.held) != set(before.held):
            reasons = "; ".join(held.text for held in verdict.held.values())
            _log.info("%s", f"waits: {reasons}" if reasons else "its conditions hold")
        return verdict
