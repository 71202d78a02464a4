"""The fuzz campaign: every decoder gets inputs that are nearly right, for as long as one likes.

    python -m tests.hostile.fuzz --minutes 60        (or: make fuzz MINUTES=60)

In turns of some seconds, each in a process of its own. A finding is an exception that the decoder
does not declare, more than `SECONDS_MAX` for one input, more than `BYTES_MAX` of memory, or the
death of the process. Its input lies in build/fuzz/findings, and

    python -m tests.hostile.fuzz --again FILE...     reads such files once more

A turn's inputs follow from its number alone, so a campaign that is stopped goes on where it was
(`--fresh`: from the start). Inputs that led to an answer not seen before are mutated further.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import mmap
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import tracemalloc
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from benchmarks.measurement import save
from tests.hostile.decoder import Decoder, Read
from tests.hostile.decoders import DECODERS
from tests.hostile.mutation import Mutator

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("FEDTIDE_FUZZ_FOLDER", ROOT / "build" / "fuzz"))
TURN_S = 20.0
SECONDS_MAX = 10.0
"""For one input. The slowest takes milliseconds."""
BYTES_MAX = 64_000_000
"""For one input: far above what any of these small ones can need."""
PROCESS_BYTES_MAX = 2 * 1024**3
"""A process that asks for more is refused it, so that a bomb ends one process and no machine."""
CORPUS_MAX = 400
_CURRENT_BYTES = 1 << 20


class Finding(NamedTuple):
    """What one input did."""

    kind: str
    """"crash", "hang" or "memory"."""
    place: str
    """The same for inputs that show the same fault."""
    details: str


class HangError(BaseException):
    """An input takes too long. No decoder may swallow it: not an `Exception`."""


def examine(read: Read, content: bytes) -> tuple[str, int, Finding | None]:
    """One input: the answer, the most memory in use meanwhile in bytes, and what is wrong."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    signal.setitimer(signal.ITIMER_REAL, SECONDS_MAX)
    finding, answer = None, ""
    try:
        answer = read(content)
    except (Exception, HangError) as exc:
        frames = [
            f
            for f in traceback.extract_tb(exc.__traceback__)
            if str(ROOT / "tests") not in f.filename
        ]
        place = f"{type(exc).__name__} at " + (
            f"{Path(frames[-1].filename).name}:{frames[-1].name}"
            if frames
            else "the reader's check"
        )
        kind = "hang" if isinstance(exc, HangError) else "crash"
        finding = Finding(kind, place, "".join(traceback.format_exception(exc)))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    used = tracemalloc.get_traced_memory()[1] - before
    if finding is None and used > BYTES_MAX:
        finding = Finding("memory", shape(answer), f"{used:,} bytes: {answer}")
    return answer, used, finding


def shape(answer: str) -> str:
    """An answer without its numbers and names."""
    return re.sub(r"[0-9a-f]{8,}|[\d,.]+|'[^']*'|`[^`]*`", "#", answer)[:100]


class Campaign(NamedTuple):
    """One turn of one decoder."""

    inputs: int
    answers: int
    largest_bytes: int
    findings: list[tuple[Finding, bytes]]


def turn(
    decoder: Decoder,
    number: int,
    *,
    seconds: float = math.inf,
    inputs_max: float = math.inf,
    current: mmap.mmap | None = None,
) -> Campaign:
    """Inputs for so long, or so many of them; `current` holds the one that is being read."""

    def too_long(*_: object) -> None:
        raise HangError

    signal.signal(signal.SIGALRM, too_long)
    mutator = Mutator(Random(number), decoder.grammar)
    corpus = list(decoder.seeds)
    answers: set[str] = set()
    largest, inputs = 0, 0
    findings: dict[tuple[str, str], tuple[Finding, bytes]] = {}
    was_tracing = tracemalloc.is_tracing()
    tracemalloc.start()
    ends_s = time.monotonic() + seconds
    try:
        while time.monotonic() < ends_s and inputs < inputs_max:
            # Every seed as it is, first: what is right must be read.
            content = corpus[inputs] if inputs < len(decoder.seeds) else mutator.draw(corpus)
            if current is not None:
                current[:8] = len(content).to_bytes(8, "little")
                current[8 : 8 + len(content)] = content
            answer, used, finding = examine(decoder.read, content)
            inputs += 1
            largest = max(largest, used)
            if finding is not None:
                findings.setdefault((finding.kind, finding.place), (finding, content))
            elif (seen := shape(answer)) not in answers:
                answers.add(seen)
                if len(corpus) < CORPUS_MAX:
                    corpus.append(content)
    finally:
        if not was_tracing:
            tracemalloc.stop()
    return Campaign(inputs, len(answers), largest, list(findings.values()))


def in_this_process(name: str, number: int, seconds: float, current_path: Path) -> None:
    """A turn, as a child of the campaign: its result is one line of JSON."""
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_DATA, (PROCESS_BYTES_MAX, PROCESS_BYTES_MAX))
    memory = Path("/dev/shm")  # state is fsynced at every step: not on a disk, where there is one
    with (
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder,
        current_path.open("r+b") as file,
        mmap.mmap(file.fileno(), _CURRENT_BYTES) as current,
    ):
        done = turn(DECODERS[name](Path(folder)), number, seconds=seconds, current=current)
    for finding, content in done.findings:
        keep(name, finding, content)
    kinds = Counter(finding.kind for finding, _ in done.findings)
    found = [[finding.kind, finding.place] for finding, _ in done.findings]
    print(json.dumps({**done._asdict(), "findings": found, "kinds": kinds}))


def keep(name: str, finding: Finding, content: bytes) -> None:
    """Write a failing input, and what it did, where a person finds it."""
    folder = FOLDER / "findings"
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(f"{finding.kind} {finding.place}".encode()).hexdigest()[:8]
    path = folder / f"{name.replace(' ', '-')}.{finding.kind}.{digest}.bin"
    path.write_bytes(content)
    path.with_suffix(".txt").write_text(f"{finding.place}\n\n{finding.details}")


def run_turn(name: str, number: int, seconds: float) -> dict[str, Any]:
    """A turn in a process of its own; its death is a finding, too."""
    current = FOLDER / "current"
    current.write_bytes(bytes(_CURRENT_BYTES))
    command = [sys.executable, "-m", "tests.hostile.fuzz", "--turn", name, "--number", str(number)]
    command += ["--seconds", str(seconds), "--current", str(current)]
    child = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        out, errors = child.communicate(timeout=seconds + 60 + 2 * SECONDS_MAX)
        kind, place = "crash", f"the process ended with code {child.returncode}"
    except subprocess.TimeoutExpired:
        child.kill()
        out, errors = child.communicate()
        kind, place = "hang", "the process did not come back"
    if child.returncode == 0:
        result: dict[str, Any] = json.loads(out.splitlines()[-1])
        return result
    raw = current.read_bytes()
    content = raw[8 : 8 + int.from_bytes(raw[:8], "little")]
    keep(name, Finding(kind, place, errors[-4000:]), content)
    return {
        "inputs": 0, "answers": 0, "largest_bytes": 0,
        "findings": [[kind, place]], "kinds": {kind: 1},
    }  # fmt: skip


def run_campaign(minutes: float, names: list[str], *, fresh: bool) -> int:
    """All decoders in turns; the exit code."""
    if fresh:
        shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    state_path = FOLDER / "state.json"
    state: dict[str, Any] = {"turns": 0, "seconds": 0.0, "decoders": {}}
    if state_path.exists():
        state = json.loads(state_path.read_text())
    ends_s = time.monotonic() + 60 * minutes
    while time.monotonic() < ends_s:
        for name in names:
            seconds = min(TURN_S, max(1.0, 60 * minutes / len(names)))
            started = time.monotonic()
            result = run_turn(name, state["turns"], seconds)
            state["turns"] += 1
            state["seconds"] += time.monotonic() - started
            entry = state["decoders"].setdefault(
                name, {"inputs": 0, "answers": 0, "largest_bytes": 0, "findings": []}
            )
            entry["inputs"] += result["inputs"]
            for key in ("answers", "largest_bytes"):
                entry[key] = max(entry[key], result[key])
            entry["findings"] += [f for f in result["findings"] if f not in entry["findings"]]
            beside = state_path.with_suffix(".new")
            beside.write_text(json.dumps(state))
            beside.replace(state_path)
            print(f"{name}: {json.dumps(result)}", flush=True)
            if time.monotonic() >= ends_s:
                break
    return report(state)


def report(state: dict[str, Any]) -> int:
    """Write results/fuzz.json; 1 if there was a finding."""
    decoders = state["decoders"]
    every = [kind for entry in decoders.values() for kind, _ in entry["findings"]]
    largest = max(decoders, key=lambda name: decoders[name]["largest_bytes"])
    figures = {
        "minutes": round(state["seconds"] / 60, 1),
        "inputs": sum(entry["inputs"] for entry in decoders.values()),
        "crashes": every.count("crash"),
        "hangs": every.count("hang"),
        "beyond_64_mb": every.count("memory"),
        "largest_allocation_mb": round(decoders[largest]["largest_bytes"] / 1e6, 1),
        "largest_allocation_by": largest,
        "decoders": {
            name: {
                "inputs": entry["inputs"],
                "kinds_of_answers": entry["answers"],
                "largest_mb": round(entry["largest_bytes"] / 1e6, 2),
                "findings": entry["findings"],
            }
            for name, entry in sorted(decoders.items())
        },
    }
    save("fuzz", figures, {})
    return 1 if every else 0


def read_again(paths: list[Path]) -> int:
    """What kept inputs do now."""
    failed = 0
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(HangError()))
    for path in paths:
        name = path.name.split(".")[0].replace("-", " ")
        with tempfile.TemporaryDirectory() as folder:
            decoder = DECODERS[name](Path(folder))
            tracemalloc.start()
            answer, used, finding = examine(decoder.read, path.read_bytes())
            tracemalloc.stop()
        print(f"{path.name}: {used:,} bytes, {answer if finding is None else finding.details}")
        failed += finding is not None
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--decoders", default=",".join(DECODERS), help="comma-separated")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs did")
    parser.add_argument("--again", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--turn", help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=TURN_S, help=argparse.SUPPRESS)
    parser.add_argument("--current", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.again:
        return read_again(options.again)
    if options.turn is not None:
        in_this_process(options.turn, options.number, options.seconds, options.current)
        return 0
    return run_campaign(options.minutes, options.decoders.split(","), fresh=options.fresh)


if __name__ == "__main__":
    sys.exit(main())
