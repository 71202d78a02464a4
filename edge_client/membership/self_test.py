"""What a device that has just joined tries out, end to end: the doctor's checks.

The link with the new certificate, an answer of the coordinator's, the data, the disk, the runtime.
Nothing that is wrong undoes the joining: the client that starts next tells it, too, and waits.
"""

from __future__ import annotations

from collections.abc import Callable

from edge_client.doctor import check
from edge_client.membership.layout import Layout
from fedtide import units
from fedtide.checkup import SECONDS
from fedtide.host_check import is_locked


def self_test(layout: Layout, say: Callable[[str], None], unit: str = "") -> int:
    """Try it out, and say what comes of it; as the service of `unit` would find it, if there is
    one: its sandbox shows other folders than those that a user sees. 0: the client can run."""
    if is_locked(layout.state):
        say("its client is running, so nothing is tried out beside it")
        return 0
    if unit:
        return units.try_out(unit, "doctor", str(layout.config))
    problems = 0
    for finding in check(layout.config, SECONDS):
        sign = {"ok": "ok     ", "warning": "WARNING", "problem": "PROBLEM"}[finding.level]
        say(f"{sign} {finding.what}")
        if finding.todo:
            say(f"        -> {finding.todo}")
        problems += finding.level == "problem"
    if problems:
        say(f"{problems} problems; `fedtide doctor {layout.config}` looks again")
    return problems
