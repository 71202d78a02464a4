"""What goes wrong: kinds of faults, each drawn for a seed or absent from it (swarm testing,
Groce et al. 2012), each with a generator of its own, until everything heals.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from simulator.agenda import generator
from simulator.faults import hostile
from simulator.faults.coordinator import Coordinator
from simulator.faults.device import Device
from simulator.faults.process import Process
from simulator.faults.settings import PACKET_LIMITS

if TYPE_CHECKING:
    from simulator.faults.broker import Memory
    from simulator.faults.world import World

DAY_MS = 86_400_000


class Faults:
    """The faults of one seed."""

    def __init__(self, world: World, kinds: frozenset[str] | None = None) -> None:
        rng = generator(world.seed, "faults")
        drawn = {kind for kind in KINDS if rng.random() < 0.5}
        self.kinds = sorted(drawn if kinds is None else kinds)
        self.severity = rng.choice((0.3, 1.0, 3.0))
        self.heal_after_ms = rng.choice((3_000, 10_000, 30_000, 60_000))
        self._world = world
        self._healed = False
        self._guests: list[Process] = []
        self._leaving: list[Device] = []

    def begin(self) -> None:
        """Plan everything."""
        for kind in self.kinds:
            self._world.counts[f"drawn: {kind}"] += 1
            KINDS[kind](self, generator(self._world.seed, "fault", kind))

    def heal(self) -> None:
        """From now on nothing fails, and everybody that lives is up."""
        self._healed = True
        world = self._world
        world.weather.clear()
        if world.broker.up and world.broker.packet_bytes_max < PACKET_LIMITS[0]:
            world.broker.crash("all")
        if not world.broker.up:
            world.broker.restart(max(world.broker.packet_bytes_max, PACKET_LIMITS[0]))
        for process in world.processes():
            process.link.heal()
            process.cut_after = process.disk_error = None
            process.restart_ms = 500
        for guest in self._guests:
            self._see_off(guest)
        for device in self._leaving:
            device.gone = True
            device.crash("leaves for good")
        for device in world.devices:
            device.slow_factor, device.declining, device.twist = 1, 0.0, None
        world.coordinator.jobs_lost = 0.0
        for process in (world.coordinator, *world.devices):
            process.boot()

    # ---- how faults come ----

    def _again_and_again(
        self, rng: random.Random, mean_ms: int, action: Callable[[random.Random], None]
    ) -> None:
        agenda = self._world.agenda

        def act() -> None:
            if not self._healed:
                action(rng)
                agenda.after(rng.expovariate(self.severity / mean_ms), act)

        agenda.after(rng.expovariate(self.severity / mean_ms), act)

    def _any_device(self, rng: random.Random) -> Device:
        return rng.choice(self._world.devices)

    def _any_process(self, rng: random.Random) -> Process:
        return rng.choice([*self._world.devices, self._world.coordinator])

    # ---- messages ----

    def _drop(self, rng: random.Random) -> None:
        self._world.weather.drop = rng.choice((0.01, 0.1, 0.4))

    def _duplicate(self, rng: random.Random) -> None:
        self._world.weather.duplicate = rng.choice((0.02, 0.3))

    def _reorder(self, rng: random.Random) -> None:
        self._world.weather.reorder = rng.choice((0.02, 0.3))

    def _delay(self, rng: random.Random) -> None:
        weather, collect_ms = self._world.weather, self._world.settings.config.rounds.collect_ms
        weather.delay = rng.choice((0.01, 0.1))
        weather.delay_ms_max = rng.choice((3_000, 3 * collect_ms))

    def _qos0_loss(self, rng: random.Random) -> None:
        self._world.weather.qos0_loss = rng.choice((0.05, 0.5))

    def _small_queue(self, rng: random.Random) -> None:
        self._world.weather.queue_max = rng.choice((2, 5, 20))

    def _will_lost(self, rng: random.Random) -> None:
        self._world.weather.will_lost = rng.choice((0.5, 1.0))

    def _will_late(self, rng: random.Random) -> None:
        self._world.weather.will_delay_ms = rng.choice((3_000, 30_000))

    # ---- links ----

    def _cut(self, rng: random.Random) -> None:
        def cut(rng: random.Random) -> None:
            self._world.happened("fault: cut")
            self._any_process(rng).link.cut(rng.choice((0, 1_000, 20_000)))

        self._again_and_again(rng, 8_000, cut)

    def _partition(self, rng: random.Random) -> None:
        def partition(rng: random.Random) -> None:
            self._world.happened("fault: partition")
            link = self._any_process(rng).link
            link.block(rng.choice(("up", "down")), rng.choice((1_000, 10_000, 100_000)))

        self._again_and_again(rng, 15_000, partition)

    # ---- broker ----

    def _broker_crash(self, rng: random.Random) -> None:
        memories: tuple[Memory, ...] = ("all", "saved", "nothing")
        broker, agenda = self._world.broker, self._world.agenda

        def crash(rng: random.Random) -> None:
            if broker.up:
                memory = rng.choice(memories)
                self._world.happened(f"fault: broker crash, keeps {memory}")
                broker.crash(memory)
                limit = broker.packet_bytes_max
                if rng.random() < 0.5:
                    limit = rng.choice((*PACKET_LIMITS, 9_000))
                agenda.after(rng.choice((100, 5_000, 20_000)), restart, limit)

        def restart(limit: int) -> None:
            if not broker.up:
                broker.restart(limit)

        self._again_and_again(rng, 5_000, lambda _: broker.save())
        self._again_and_again(rng, 25_000, crash)

    def _broker_forgets(self, rng: random.Random) -> None:
        def forget(rng: random.Random) -> None:
            retained = self._world.broker.retained
            for topic in list(retained):
                if rng.random() < 0.3:
                    self._world.happened("fault: retained message lost or wrong")
                    other = rng.choice(list(retained.values()))
                    if rng.random() < 0.5 or "/blob/" not in topic:
                        del retained[topic]
                    else:
                        retained[topic] = other

        self._again_and_again(rng, 10_000, forget)

    # ---- processes ----

    def _device_crash(self, rng: random.Random) -> None:
        def crash(rng: random.Random) -> None:
            self._world.happened("fault: device crash")
            self._any_device(rng).crash("kill -9", half_open=rng.random() < 0.3)

        self._again_and_again(rng, 15_000, crash)

    def _device_step(self, rng: random.Random) -> None:
        self._at_steps(rng, "device", self._any_device)

    def _coordinator_crash(self, rng: random.Random) -> None:
        def crash(rng: random.Random) -> None:
            self._world.happened("fault: coordinator crash")
            self._world.coordinator.crash("kill -9", half_open=rng.random() < 0.3)

        self._again_and_again(rng, 20_000, crash)

    def _coordinator_step(self, rng: random.Random) -> None:
        self._at_steps(rng, "coordinator", lambda _: self._world.coordinator)

    def _at_steps(
        self, rng: random.Random, name: str, choose: Callable[[random.Random], Process]
    ) -> None:
        def arm(rng: random.Random) -> None:
            process = choose(rng)
            if process.alive and process.cut_after is None:
                self._world.happened(f"fault: {name} dies at a step")
                process.cut_after = rng.choice((1, 2, 5, 20, rng.randint(1, 60)))

        self._again_and_again(rng, 10_000, arm)

    def _crash_loop(self, rng: random.Random) -> None:
        agenda = self._world.agenda

        def loop(rng: random.Random) -> None:
            process = self._any_process(rng)
            self._world.happened("fault: crash loop")
            for number in range(rng.randint(2, 6)):
                agenda.after(number * 700 + 1, hit, process, rng.choice((1, 3, 8)))

        def hit(process: Process, steps: int) -> None:
            if not self._healed:
                process.boot()
                process.cut_after = steps

        self._again_and_again(rng, 30_000, loop)

    def _device_disk(self, rng: random.Random) -> None:
        self._disk(rng, self._any_device)

    def _coordinator_disk(self, rng: random.Random) -> None:
        self._disk(rng, lambda _: self._world.coordinator)

    def _disk(self, rng: random.Random, choose: Callable[[random.Random], Process]) -> None:
        def fill(rng: random.Random) -> None:
            process = choose(rng)
            process.disk_error = rng.choice((errno.ENOSPC, errno.EIO))
            process.disk_error_after = rng.choice((0, 1, 5))
            self._world.agenda.after(rng.choice((500, 10_000)), free, process)

        def free(process: Process) -> None:
            process.disk_error = None

        self._again_and_again(rng, 25_000, fill)

    def _clocks(self, rng: random.Random) -> None:
        """Each life of a process begins with another clock."""
        offsets = (0, 3_600_000, -500_000, 400 * DAY_MS)
        self._world.clock_of = lambda _: rng.choice(offsets)

    def _straggler(self, rng: random.Random) -> None:
        for device in self._world.devices:
            if rng.random() < 0.4:
                self._world.happened("fault: straggler")
                device.slow_factor = rng.choice((10, 100, 10_000))

    def _decline(self, rng: random.Random) -> None:
        for device in self._world.devices:
            if rng.random() < 0.4:
                device.declining = rng.choice((0.3, 1.0))

    def _leave(self, rng: random.Random) -> None:
        def leave(device: Device) -> None:
            if not self._healed:
                self._world.happened("fault: device leaves for good")
                device.gone = True
                device.crash("leaves for good")

        for device in self._world.devices[1:]:
            if rng.random() < 0.3:
                self._world.agenda.after(rng.randrange(60_000), leave, device)

    def _job_lost(self, rng: random.Random) -> None:
        self._world.coordinator.jobs_lost = rng.choice((0.2, 1.0))

    def _rot(self, rng: random.Random) -> None:
        """Content of updates that wait for their round to close changes on the disk."""

        def rot(rng: random.Random) -> None:
            world = self._world
            digests = world.checks.waiting_contents(world.coordinator)
            if digests and world.coordinator.alive:
                world.happened("fault: stored update rots")
                digest = rng.choice(digests)
                world.rotten.add(digest)
                path = world.coordinator.folder / "blobs" / digest
                if path.exists():
                    path.write_bytes(b"\xff" + path.read_bytes()[1:])

        self._again_and_again(rng, 10_000, rot)

    # ---- hostile, and two of a kind ----

    def _hostile_update(self, rng: random.Random) -> None:
        device = self._any_device(rng)
        name = rng.choice(sorted(hostile.TWISTS))
        self._world.happened(f"fault: hostile update, {name}")
        device.twist, device.hostile = hostile.TWISTS[name], True
        self._leaving.append(device)

    def _hostile_words(self, rng: random.Random) -> None:
        device = self._any_device(rng)
        topic = self._world.topics.up(device.device_id)
        device.hostile = device.garbles = True

        def speak(rng: random.Random) -> None:
            self._world.happened("fault: hostile words")
            for _ in range(rng.choice((1, 5))):
                device.link.publish(topic, hostile.junk(rng, self._world.overheard))

        self._again_and_again(rng, 3_000, speak)

    def _twin(self, rng: random.Random) -> None:
        original = self._any_device(rng)
        guest = Device(self._world, original.settings, "-twin")
        self._guests.append(guest)
        self._world.agenda.after(rng.randrange(20_000), self._invite, guest)

    def _second_coordinator(self, rng: random.Random) -> None:
        world = self._world
        folder = world.folder / "second"
        speed = world.settings.coordinator_speed
        guest = Coordinator(world, "second", world.settings.config, folder, speed)
        self._guests.append(guest)
        world.agenda.after(rng.randrange(20_000), self._invite, guest)

    def _invite(self, guest: Process) -> None:
        if not self._healed:
            self._world.happened("fault: two of a kind")
            self._world.guests.append(guest)
            guest.boot()
            self._world.agenda.after(20_000, self._see_off, guest)

    def _see_off(self, guest: Process) -> None:
        guest.gone = True
        if guest.alive:
            guest.end("a guest leaves")


KINDS: dict[str, Callable[[Faults, random.Random], None]] = {
    method.__name__.lstrip("_"): method
    for method in (
        Faults._drop,
        Faults._duplicate,
        Faults._reorder,
        Faults._delay,
        Faults._qos0_loss,
        Faults._small_queue,
        Faults._will_lost,
        Faults._will_late,
        Faults._cut,
        Faults._partition,
        Faults._broker_crash,
        Faults._broker_forgets,
        Faults._device_crash,
        Faults._device_step,
        Faults._coordinator_crash,
        Faults._coordinator_step,
        Faults._crash_loop,
        Faults._device_disk,
        Faults._coordinator_disk,
        Faults._clocks,
        Faults._straggler,
        Faults._decline,
        Faults._leave,
        Faults._job_lost,
        Faults._rot,
        Faults._hostile_update,
        Faults._hostile_words,
        Faults._twin,
        Faults._second_coordinator,
    )
}
