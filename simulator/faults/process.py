"""A simulated process: lives that follow each other on one state folder, and how each may end.

What production code raises here ends the life as it would end the process: a `FedtideError` is a
message to the operator and the supervisor starts it again, anything else is a traceback and fails
the simulation.
"""

from __future__ import annotations

import errno
import random
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fedtide.errors import FedtideError
from fedtide.failpoints import Step
from fedtide.transport import LinkEvent
from simulator.agenda import generator
from simulator.faults.link import SimulatedLink, Speed
from simulator.faults.seams import PowerCut

if TYPE_CHECKING:
    from simulator.faults.world import World

SPINS_MAX = 20
"""Wake-ups in a row that leave the deadline in the past."""
DISK_STEPS = frozenset({"disk: write", "disk: sync", "disk: commit"})


class Process(ABC):
    """See the module."""

    def __init__(self, world: World, name: str, client_id: str, folder: Path, speed: Speed) -> None:
        self.world = world
        self.name = name
        self.folder = folder
        self.rng: random.Random = generator(world.seed, "process", name)
        self.hostile = False
        """It offers what it did not learn."""
        self.garbles = False
        """It says what contradicts itself."""
        self.link = SimulatedLink(
            world.agenda,
            world.broker,
            world.weather,
            generator(world.seed, "link", name),
            client_id,
            speed,
            self._said,
            world.happened,
        )
        self.alive = False
        self.life = 0
        self.gone = False
        """For good."""
        self.clock_offset_ms = 0
        self.cut_after: int | None = None
        """Durable steps until the power is cut."""
        self.cuts: list[int] = []
        """The same for each of the next lives."""
        self.reached = 0
        """Durable steps in all lives."""
        self.disk_error: int | None = None
        self.disk_error_after = 0
        """Durable steps that still succeed."""
        self.restart_ms = 2_000
        self._wake_at_ms: int | None = None
        self._spins = 0

    # ---- what production offers ----

    @abstractmethod
    def _start(self) -> None:
        """Begin a life on the folder."""

    @abstractmethod
    def _link_event(self, event: LinkEvent, at_ms: int) -> None: ...

    @abstractmethod
    def _time_reached(self, at_ms: int) -> None: ...

    @abstractmethod
    def _next_deadline_at_ms(self) -> int | None: ...

    @abstractmethod
    def _stopped(self) -> None:
        """The life has ended: let go of what the operating system would close."""

    @abstractmethod
    def _observed(self) -> None:
        """Something happened in this process: look at what it left."""

    # ---- lives ----

    def now_ms(self) -> int:
        """What this process's own clock says."""
        return self.world.agenda.now_ms + self.clock_offset_ms

    def boot(self) -> None:
        """Start, unless it runs or has left."""
        if self.alive or self.gone:
            return
        self.life += 1
        self.alive = True
        if self.cuts:
            self.cut_after = self.cuts.pop(0)
        self.clock_offset_ms = self.world.clock_of(self.rng)
        self._wake_at_ms = None
        self.world.note(self.name, "boots")
        life = self.life
        self.enter(life, self._begin, life)

    def _begin(self, life: int) -> None:
        self.link.boot(lambda event: self.enter(life, self._heard, event), None)
        self._start()
        self.link.start()

    def _heard(self, event: LinkEvent) -> None:
        self._link_event(event, self.now_ms())

    def crash(self, why: str, *, half_open: bool = False, back_after_ms: int | None = None) -> None:
        """kill -9 or a power cut."""
        if not self.alive:
            return
        self.world.note(self.name, f"crashes: {why}")
        self.alive = False
        self.cut_after = None
        self.link.power_off(half_open=half_open)
        self._stopped()
        if back_after_ms is None:
            back_after_ms = self.rng.choice((100, 2_000, 20_000))
        self.world.agenda.after(back_after_ms, self.boot)

    def end(self, why: str) -> None:
        """The process ends by itself, in good order."""
        self.world.note(self.name, f"ends: {why}")
        self.alive = False
        self.cut_after = None
        self.link.stop()
        self._stopped()

    def enter(self, life: int, action: Callable[..., None], *arguments: object) -> None:
        """Run production code of one life."""
        if not self.alive or life != self.life:
            return
        world = self.world
        world.running = self
        try:
            action(*arguments)
            self._time_reached(self.now_ms())
        except PowerCut as cut:
            world.running = None
            self.crash(str(cut))
        except FedtideError as exc:
            world.running = None
            world.errors[type(exc).__name__] += 1
            self._goodbye(str(exc).replace(str(world.folder), ""))
        except Exception:  # noqa: BLE001 - a traceback is what is looked for
            world.running = None
            world.fail("crash", f"{self.name}: {traceback.format_exc()}")
        world.running = None
        if self.alive:
            self._schedule()
        self._observed()

    def _goodbye(self, why: str) -> None:
        self.end(why)
        self.world.agenda.after(self.restart_ms, self.boot)

    def _schedule(self) -> None:
        deadline = self._next_deadline_at_ms()
        if deadline is None:
            self._wake_at_ms = None
            return
        at_ms = deadline - self.clock_offset_ms
        late = at_ms <= self.world.agenda.now_ms
        self._spins = self._spins + 1 if late else 0
        if self._spins > SPINS_MAX:
            self.world.fail("liveness", f"busy loop: {self.name} is woken again and again")
        at_ms = max(at_ms, self.world.agenda.now_ms + 1)
        if at_ms != self._wake_at_ms:
            self._wake_at_ms = at_ms
            self.world.agenda.at(at_ms, self._wake, self.life, at_ms)

    def _wake(self, life: int, at_ms: int) -> None:
        if life == self.life and at_ms == self._wake_at_ms:
            self._wake_at_ms = None
            self.enter(life, lambda: None)

    # ---- seams ----

    def step_reached(self, step: Step) -> None:
        """A durable step of this process.

        Raises:
            PowerCut: a fault plan wants it to end here.
            OSError: its disk is full or failing.
        """
        self.reached += 1
        if self.cut_after is not None:
            self.cut_after -= 1
            if self.cut_after <= 0:
                raise PowerCut(f"at {step!r}")
        if self.disk_error is not None and step in DISK_STEPS:
            self.disk_error_after -= 1
            if self.disk_error_after >= 0:
                return
            self.world.happened(f"disk: {errno.errorcode[self.disk_error]}")
            raise OSError(self.disk_error, "simulated")

    def _said(self, topic: str, payload: bytes) -> None:
        self.world.said(self, topic, payload)
