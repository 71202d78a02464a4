"""What the coordinator's state costs in a round of many devices: each answer writes it anew.

    python -m benchmarks.state_bytes 1000 4000

In memory: the machine and the encoder, without the database and its disk.
"""

from __future__ import annotations

import sys
import time

import msgspec

from coordinator.config import RoundsConfig
from coordinator.round_machine import DeviceArrived, RoundState, UpdateAccepted, step


def main() -> None:
    """One line for each size of cohort."""
    for devices in map(int, sys.argv[1:] or ("1000", "4000")):
        config = RoundsConfig(cohort_size=devices, quorum=devices, devices_min=devices)
        names = tuple(f"device-{number:05d}" for number in range(devices))
        state = RoundState(round_id=6, rounds_done=6, model_version=6, online=names[:-1])
        state = step(state, DeviceArrived(names[-1]), 0, config).state
        total_bytes, encoding_s = 0, 0.0
        for number, name in enumerate(names):
            event = UpdateAccepted(state.round_id, name, f"{number:024x}", 6)
            state = step(state, event, 1, config).state
            begin_s = time.perf_counter()
            total_bytes += len(msgspec.json.encode(state))
            encoding_s += time.perf_counter() - begin_s
        assert state.phase == "aggregating", state
        print(f"{devices} answers: {total_bytes / 1e6:.0f} MB of state in {encoding_s:.2f} s")


if __name__ == "__main__":
    main()
