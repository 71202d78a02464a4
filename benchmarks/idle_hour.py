"""What a device that has joined costs while nothing is asked of it, for an hour.

The true server and client over mutual TLS on the loopback, through a proxy that counts what the
line carries. The client has the bundle and no task: its federation waits for a second device. Both
directions are bytes of the TCP stream, TLS included, packets' headers not; bytes written are those
that the kernel gave to the disk for this process (/proc/PID/io).
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.measurement import pss_bytes, save
from demo.local import wait_for
from demo.proxy import Proxy
from tests.deployment import Deployment

_SETTLES_S = 60.0
_EVERY_S = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    minutes = parser.parse_args().minutes
    with (
        tempfile.TemporaryDirectory() as name,
        Deployment(Path(name), quorum=2, devices_min=2) as server,
        Proxy(server.port) as line,
    ):
        folder = server.join("pi")
        config, blobs = folder / "client.toml", folder / "state/blobs"
        config.write_text(re.sub(rf"\b{server.port}\b", str(line.port), config.read_text()))
        client = server.start_client(folder)
        wait_for(lambda: blobs.is_dir() and any(blobs.iterdir()), "the bundle", 60)
        process_id = client.process_id
        assert process_id is not None
        assert line.connections, "the client goes past the proxy"
        time.sleep(_SETTLES_S)
        figures, samples = watch(process_id, line, minutes)
        assert client.exit_code() is None, "the client ended"
    save("idle_hour", {"minutes": minutes, **figures}, samples)


def watch(
    process_id: int, line: Proxy, minutes: float
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Figures of the time from now on, and the memory every ten seconds."""
    processor_s, written, carried = (
        spent_s(process_id),
        written_bytes(process_id),
        dict(line.carried),
    )
    connections = line.connections
    pss = []
    end_s = time.monotonic() + minutes * 60
    while time.monotonic() < end_s:
        pss.append(round(pss_bytes(process_id) / 1e6, 1))
        time.sleep(min(_EVERY_S, max(0.0, end_s - time.monotonic())))
    figures = {
        "processor_s": round(spent_s(process_id) - processor_s, 2),
        "pss_median_mb": statistics.median(pss),
        "pss_max_mb": max(pss),
        "line_up_bytes": line.carried[True] - carried[True],
        "line_down_bytes": line.carried[False] - carried[False],
        "reconnections": line.connections - connections,
        "disk_written_bytes": written_bytes(process_id) - written,
        "threads": len(list(Path(f"/proc/{process_id}/task").iterdir())),
    }
    return figures, {"pss_mb": pss}


def spent_s(process_id: int) -> float:
    """Processor time of a process, user's and system's, in seconds."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def written_bytes(process_id: int) -> int:
    """What it has given to the disk."""
    text = Path(f"/proc/{process_id}/io").read_text()
    return int(re.findall(r"^write_bytes: (\d+)$", text, re.MULTILINE)[0])


if __name__ == "__main__":
    main()
