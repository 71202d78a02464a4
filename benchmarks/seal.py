"""What does a seal cost? Sealing and opening a small message and a chunk, and what goes with it.

Median processor time of one message: of the signature alone, of `SealedTransport.publish` (number,
signature, hand-over), and of what a receiver does (open, find the key, verify, mark). Numbers are
reserved and marks kept on a disk as in a client: the marks of tasks, wants and receipts are synced
one by one, all others only remembered.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

from benchmarks.measurement import save
from coordinator.marks import Marks
from coordinator.trust import MemberTrust
from edge_client.trust import DeviceTrust
from fedtide.files import write_atomically
from fedtide.keys import public_bytes
from fedtide.limits import BLOCK_BYTES
from fedtide.members import Members
from fedtide.memory import MemoryBroker, MemoryTransport
from fedtide.messages import Receipt, encode
from fedtide.seal import OVERHEAD_BYTES, Sealed, is_sealed_by, open_sealed, seal
from fedtide.sealed_transport import SealedTransport
from fedtide.sequence import Sequence
from fedtide.topics import Topics
from fedtide.transport import LinkEvent, Received
from tests.identities import Authority

TIMES = 200
SIZES = {"400 B": 400, "64 KiB chunk": 4 * BLOCK_BYTES}


def main() -> None:
    topics, authority = Topics("tides"), Authority("tides")
    samples: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        device = authority.identity(folder / "alpha", "alpha")
        coordinator = authority.identity(folder / "coordinator", "coordinator")
        key = public_bytes(device.key)
        members = folder / "members.json"
        write_atomically(members, f'{{"devices": {{"alpha": {{"key": "{key.hex()}"}}}}}}'.encode())
        trust = MemberTrust(topics, Members(members), Marks({}), coordinator.key_set())
        up, down = topics.up("alpha"), topics.down("alpha")
        broker, heard = MemoryBroker(), list[LinkEvent]()
        link = SealedTransport(
            lambda deliver, will: MemoryTransport(broker, deliver, will),
            heard.append,
            None,
            topics,
            device.key,
            Sequence(device.folder).take,
            DeviceTrust(topics, device),
        )
        link.start()
        for label, size in SIZES.items():
            message, numbers = bytes(size), count(1 + size * 2**40)
            raw = seal(up, message, device.key, 1)
            coming = iter([seal(up, message, device.key, next(numbers)) for _ in range(TIMES + 1)])
            samples |= {
                f"{label}: sign": timed(lambda: seal(up, message, device.key, 1)),  # noqa: B023
                f"{label}: verify": timed(lambda: is_sealed_by(key, up, opened(raw))),  # noqa: B023
                f"{label}: a device publishes": timed(lambda: link.publish(up, message)),  # noqa: B023
                f"{label}: the coordinator hears": timed(
                    lambda: trust.objection(up, opened(next(coming)))  # noqa: B023
                ),
            }
        receipt = encode(Receipt("u" * 24, "accepted"), "1")
        receipts = [seal(down, receipt, coordinator.key, n) for n in range(1, TIMES + 2)]
        link.subscribe([down])
        heard.clear()
        wall_s = time.monotonic()
        for raw in receipts:
            broker.route(down, raw, retain=False)
        wall_s = time.monotonic() - wall_s
        assert sum(isinstance(event, Received) for event in heard) == len(receipts)
    figures = {name: round(statistics.median(times), 4) for name, times in samples.items()}
    figures["receipt heard by a device, marked on disk, wall"] = round(
        1000 * wall_s / len(receipts), 4
    )
    save("seal", {"overhead_bytes": OVERHEAD_BYTES, "median_ms": figures}, samples)


def opened(raw: bytes) -> Sealed:
    sealed = open_sealed(raw)
    assert sealed is not None
    return sealed


def timed(call: Callable[[], object]) -> list[float]:
    """Processor milliseconds of each call but the first."""
    call()
    times = []
    for _ in range(TIMES):
        begin_ns = time.process_time_ns()
        call()
        times.append(round((time.process_time_ns() - begin_ns) / 1e6, 4))
    return times


if __name__ == "__main__":
    main()
