"""`fedtide client` on a machine whose /sys and /proc a test has made, and which it looks at often.

python -m tests.end_to_end.conditioned_client ROOT --config FILE
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from edge_client import condition_watch, conditions, runner, sensors
from fedtide import cli

if __name__ == "__main__":
    here = functools.partial(sensors.Sensors, root=Path(sys.argv[1]))
    runner.Sensors = here  # type: ignore[attr-defined, assignment]
    condition_watch.LOOK_S = condition_watch.FIRST_LOOK_S = 0.02
    conditions.SETTLE_MS = 0
    sys.exit(cli.main(["client", *sys.argv[2:]]))
