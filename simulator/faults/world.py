"""One seed: a federation, its faults, its healing, and what became of it."""

from __future__ import annotations

import hashlib
import logging
import random
import re
import shutil
import sqlite3
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from fedtide.bundle import sha256_hex
from fedtide.failpoints import Step
from fedtide.messages import BlobRef
from fedtide.topics import Topics
from simulator.agenda import Agenda, generator
from simulator.faults.broker import Broker
from simulator.faults.checks import Checks
from simulator.faults.coordinator import Coordinator
from simulator.faults.device import Device
from simulator.faults.kinds import Faults
from simulator.faults.process import Process
from simulator.faults.seams import replaced
from simulator.faults.settings import Settings, draw_settings
from simulator.faults.weather import Weather

Kind = Literal["crash", "safety", "liveness"]
OVERHEARD_MAX = 50
EVENTS_MAX = 60_000
BACK_MS = 150_000
"""Until every device must be back after healing: the longest pauses of link and hello, and some."""


class Failure(NamedTuple):
    """A promise that was broken."""

    kind: Kind
    text: str
    at_ms: int


class Outcome(NamedTuple):
    """What became of a seed."""

    seed: int
    failure: Failure | None
    ended: str
    digest: str
    """SHA-256 of the transcript."""
    counts: dict[str, int]
    reached: dict[str, int]
    """Durable steps of each process."""
    virtual_ms: int
    events: int


class World:
    """See the module."""

    def __init__(
        self, seed: int, folder: Path, *, kinds: frozenset[str] | None = None, tell: bool = False
    ) -> None:
        self.seed = seed
        self.folder = folder
        self.agenda = Agenda()
        self.weather = Weather()
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.failure: Failure | None = None
        self.running: Process | None = None
        self.overheard: list[bytes] = []
        self.rotten: set[str] = set()
        self.lines: list[str] = []
        self._tell = tell
        self.clock_of: Callable[[random.Random], int] = lambda _: 0
        self.broker = Broker(self.agenda, self.weather, generator(seed, "broker"), self.happened)
        self.settings: Settings = draw_settings(generator(seed, "settings"), folder)
        self.broker.packet_bytes_max = self.settings.packet_bytes_max
        self.topics = Topics(self.settings.config.federation)
        self.checks = Checks(self)
        self.coordinator_names = frozenset({"coordinator", "second"})
        self.coordinator = Coordinator(
            self,
            "coordinator",
            self.settings.config,
            folder / "coordinator",
            self.settings.coordinator_speed,
        )
        self.devices = [Device(self, settings) for settings in self.settings.devices]
        self.guests: list[Process] = []
        self.faults = Faults(self, kinds)

    def processes(self) -> list[Process]:
        """All of them."""
        return [self.coordinator, *self.devices, *self.guests]

    # ---- what the parts tell ----

    def note(self, name: str, text: str) -> None:
        """A line of the transcript."""
        line = f"{self.agenda.now_ms} {name} {text}"
        self.lines.append(line)
        if self._tell:
            print(line)

    def happened(self, what: str) -> None:
        """A fault."""
        self.counts[what if what.startswith("fault") else f"fault: {what}"] += 1

    def seen(self, kind: str, text: str) -> None:
        """Something whose coverage matters, without names and numbers."""
        self.counts[f"{kind}: {re.sub(r'[0-9a-f]{12,}|[0-9][0-9,.]*', '#', text)}"] += 1

    def said(self, process: Process, topic: str, payload: bytes) -> None:
        """A process said something."""
        self.note(process.name, f"{topic[20:]} {len(payload)} {zlib.crc32(payload):08x}")
        if "/up/" in topic and len(self.overheard) < OVERHEARD_MAX:
            self.overheard.append(payload)
        self.checks.said(process, topic, payload)

    def fail(self, kind: Kind, text: str) -> None:
        """A promise is broken; the first one ends the simulation."""
        if self.failure is None:
            self.failure = Failure(kind, text, self.agenda.now_ms)
            self.note("world", f"{kind} {text}")

    def ref_of(self, content: bytes) -> BlobRef:
        """The name of a content."""
        return BlobRef(sha256_hex(content), len(content))

    def _reached(self, step: Step) -> None:
        if self.running is not None:
            self.counts[f"step: {step}"] += 1
            self.running.step_reached(step)

    def _committed(self, database: sqlite3.Connection) -> None:
        if self.running is not None:
            self.checks.committed(self.running, database)

    def _stepped(self, what: str) -> None:
        self.counts[what] += 1

    # ---- running ----

    def run(self) -> Outcome:
        """From the first boot to the end."""
        with replaced(
            self.seed, lambda: self.agenda.now_ms, self._reached, self._committed, self._stepped
        ):
            if not self._tell:
                logging.disable(logging.CRITICAL)
            self.coordinator.boot()
            for device in self.devices:
                self.agenda.after(device.rng.randrange(2_000), device.boot)
            self.faults.begin()
            self._run_until(self.agenda.now_ms + self.faults.heal_after_ms)
            self._heal_and_demand_progress()
            self._wind_down()
        text = "\n".join(self.lines)
        return Outcome(
            self.seed,
            self.failure,
            self.coordinator.finished,
            hashlib.sha256(text.encode()).hexdigest(),
            dict(self.counts),
            {process.name: process.reached for process in self.processes()},
            self.agenda.now_ms,
            self.agenda.steps,
        )

    def _run_until(self, until_ms: int) -> None:
        agenda, coordinator = self.agenda, self.coordinator
        while self.failure is None and not coordinator.succeeded and agenda.step(until_ms):
            self._count_events()

    def _heal_and_demand_progress(self) -> None:
        """Faults stop; now it must finish, or stop for the reason that it gives."""
        if self.failure is not None or self.coordinator.succeeded:
            return
        self.note("world", "heals")
        self.faults.heal()
        back_ms = BACK_MS + 2 * self.settings.config.hello_ms
        self.agenda.after(
            back_ms, self._demand_everybody, self.agenda.now_ms, self.coordinator.life
        )
        for _ in range(5):  # one that gives up before everybody can be back is started again
            if self._finishes_within(self._bound_ms()):
                return
        if self.failure is None:
            self.fail(
                "liveness", f"not finished {self._bound_ms()} ms after healing: {self._why()}"
            )

    def _finishes_within(self, limit_ms: int) -> bool:
        """Whether it succeeds, or rightly says that too few devices are left."""
        coordinator, until_ms = self.coordinator, self.agenda.now_ms + limit_ms
        coordinator.finished = ""
        coordinator.boot()
        while self.failure is None and not coordinator.finished and self.agenda.step(until_ms):
            self._count_events()
        return coordinator.succeeded or (coordinator.finished != "" and self._too_few())

    def _demand_everybody(self, healed_at_ms: int, life: int) -> None:
        """Long after healing, every device must have been welcomed."""
        if not self.coordinator.alive or self.coordinator.life > life + 1:
            return
        for device in self.devices:
            if device.alive and self.checks.welcomed_at_ms(device) < healed_at_ms:
                self.fail("liveness", f"not back: {device.name} is not welcomed after healing")

    def _count_events(self) -> None:
        if self.agenda.steps > EVENTS_MAX:
            self.fail("liveness", f"storm: {EVENTS_MAX} events and no end")

    def _too_few(self) -> bool:
        rounds = self.settings.config.rounds
        here = sum(not device.gone for device in self.devices)
        return here < max(rounds.devices_min, rounds.quorum)

    def _bound_ms(self) -> int:
        """Every wait there is, once (to reconnect, repeat, back off), and each round twice."""
        rounds = self.settings.config.rounds
        waits_ms = 60_000 * 6 + rounds.devices_wait_ms + 3 * self.settings.config.hello_ms
        return waits_ms + 2 * (rounds.count + 1) * (rounds.collect_ms + 60_000)

    def _why(self) -> str:
        service = self.coordinator.service
        state = service._state
        return f"{state.phase}, round {state.round_id}: {state.reason}"

    def _wind_down(self) -> None:
        if self.failure is None:
            until_ms = self.agenda.now_ms + 3_000
            while self.failure is None and self.agenda.step(until_ms):
                pass
        for process in self.processes():
            if process.alive:
                process.gone = True
                process.crash("the end")
            if isinstance(process, Coordinator):
                self.checks.at_the_end(process)


def simulate(
    seed: int,
    *,
    kinds: frozenset[str] | None = None,
    tell: bool = False,
    prepare: Callable[[World], None] = lambda _: None,
) -> Outcome:
    """Run one seed in a folder of its own, in memory where the system offers that.

    `kinds`: these faults instead of those drawn; `prepare` may change the world before it begins.
    """
    shm = Path("/dev/shm")  # noqa: S108
    folder = Path(tempfile.mkdtemp(prefix="fedtide-", dir=shm if shm.is_dir() else None))
    try:
        world = World(seed, folder, kinds=kinds, tell=tell)
        prepare(world)
        return world.run()
    finally:
        shutil.rmtree(folder)
