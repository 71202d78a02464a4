"""How long to wait before the next attempt to connect, judged by how the last link ended.

Nothing here knows MQTT, a clock or a socket.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Literal, NamedTuple

SHORTEST_S = 0.5
STABLE_S = 10.0
"""A link that lived this long, and twice as long as the last pause, resets the back-off; or one
that carried a block, unless it ended within this time and without a word. Two clients of one name,
who cut each other off (Mosquitto does not say why), thus do so ever more rarely; but on a bad line,
where blocks get through, no pause is longer than this."""
TAKEOVERS_MAX, TAKEOVERS_WITHIN_S = 3, 60.0
"""So many links lost to another client of our name within this time: somebody must give way."""
GIVE_WAY_S = 300.0
"""And so must whoever shows a certificate that the broker does not take."""

How = Literal["told", "silently", "taken over", "unwelcome"]
"""With a reason; without a word; by another client of our name; for what we are, so that another
attempt ends the same way unless somebody does something."""


class Ended(NamedTuple):
    """How a link, or the attempt at one, ended."""

    at_s: float
    up_since_s: float | None
    """None: it never was up."""
    carried: bool = False
    """A block at least."""
    how: How = "told"


class BackOff:
    """See the module."""

    def __init__(self) -> None:
        self._delay_s = SHORTEST_S
        self._takeovers: deque[float] = deque(maxlen=TAKEOVERS_MAX)
        self.lived = False
        """Whether the last link was one to rely on."""

    def pause_s(self, ended: Ended, most_s: float) -> float:
        """Seconds until the next attempt, with jitter; at most `most_s`, but for who must give
        way."""
        age_s = 0.0 if ended.up_since_s is None else ended.at_s - ended.up_since_s
        carried = ended.up_since_s is not None and ended.carried
        cut_off = ended.how == "silently" and age_s < STABLE_S
        self.lived = age_s > max(STABLE_S, 2 * self._delay_s) or (carried and not cut_off)
        most_s = min(most_s, STABLE_S) if carried else most_s
        self._delay_s = SHORTEST_S if self.lived else min(self._delay_s * 2, most_s)
        if ended.how == "unwelcome" or (
            ended.how == "taken over" and self._happens_too_often(ended.at_s)
        ):
            return random.uniform(1.0, 1.5) * GIVE_WAY_S  # noqa: S311
        return random.uniform(0.5, 1.0) * self._delay_s  # noqa: S311

    def _happens_too_often(self, at_s: float) -> bool:
        self._takeovers.append(at_s)
        first_s = self._takeovers[0]
        return len(self._takeovers) == TAKEOVERS_MAX and at_s - first_s < TAKEOVERS_WITHIN_S
