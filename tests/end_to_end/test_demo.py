"""The demo itself: short runs, for what a long one would hide."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from demo.brokers import child_environment

DEADLINE_S = 300.0
StartDemo = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start_demo(tmp_path: Path) -> Iterator[StartDemo]:
    """Starts a demo with these flags, which ends with the test."""
    started = []

    def start(*flags: str) -> subprocess.Popen[str]:
        demo = subprocess.Popen(
            [sys.executable, "-m", "fedtide", "demo", "--plain", "--out", str(tmp_path), *flags],
            env=child_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(demo)
        return demo

    yield start
    for demo in started:
        demo.terminate()
        demo.communicate(timeout=DEADLINE_S)


def children_of(out: Path) -> list[int]:
    """Processes whose command line names a file of this run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if f"{out}/demo-run/".encode() in command:
                found.append(int(entry.name))
    return found


def wait_for_a_round(demo: subprocess.Popen[str]) -> None:
    assert demo.stdout is not None
    for line in demo.stdout:
        if line.startswith("round  1"):
            return
    pytest.fail(f"no round came: {demo.communicate()[1]}")


@pytest.mark.parametrize("broker", ["mosquitto", pytest.param("amqtt", marks=pytest.mark.slow)])
def test_a_short_run_writes_everything_it_promises(
    tmp_path: Path, start_demo: StartDemo, broker: str
) -> None:
    demo = start_demo("--rounds", "8", "--broker", broker, "--no-faults")
    said, errors = demo.communicate(timeout=DEADLINE_S)
    figures = json.loads((tmp_path / "demo.json").read_text())
    assert figures["rounds"] == 8, errors
    assert figures["accuracy"] > figures["best_single_accuracy"]
    assert figures["inference_accuracy"] == pytest.approx(figures["accuracy"], abs=0.005)
    assert len(figures["accuracy_by_round"]) == 1 + 8 + figures["abandoned"]
    assert broker in figures["versions"]
    assert {"mosquitto", "amqtt"} - {broker} - set(figures["versions"])
    assert (figures["dropouts"], figures["broker"]) == (0, broker)
    page = (tmp_path / "demo.html").read_text()
    assert page.count("<svg") == 4
    assert "<script" not in page
    assert demo.returncode == (0 if "failed" not in errors else 1)
    assert "8 rounds" in said
    assert said.count("abandoned, ") == figures["abandoned"]
    assert "final evaluation · " in said
    assert children_of(tmp_path) == []


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_an_interrupt_leaves_no_process_behind(
    tmp_path: Path, start_demo: StartDemo, number: signal.Signals
) -> None:
    demo = start_demo()
    wait_for_a_round(demo)
    assert len(children_of(tmp_path)) >= 8
    demo.send_signal(number)
    _, errors = demo.communicate(timeout=DEADLINE_S)
    assert demo.returncode == 130
    assert "interrupted" in errors
    assert children_of(tmp_path) == []


def test_a_crash_that_nobody_planned_is_shown_with_its_log(
    tmp_path: Path, start_demo: StartDemo
) -> None:
    demo = start_demo("--no-faults")
    wait_for_a_round(demo)
    victim = next(
        process
        for process in children_of(tmp_path)
        if b"device-06.toml" in Path(f"/proc/{process}/cmdline").read_bytes()
    )
    os.kill(victim, signal.SIGKILL)
    killed_at_s = time.monotonic()
    _, errors = demo.communicate(timeout=DEADLINE_S)
    assert demo.returncode == 1
    assert "device-06 ended with code -9" in errors
    assert "device-06.log" in errors
    assert time.monotonic() - killed_at_s < 30
    assert children_of(tmp_path) == []
