"""A federation under virtual time: coordinator, devices, and one agenda (docs/simulate.md)."""

from __future__ import annotations

from simulator.agenda import START_MS
from simulator.fleet.coordinator import Coordinator
from simulator.fleet.device import Device
from simulator.fleet.events import Finished
from simulator.fleet.learning import Learning, Modelled
from simulator.fleet.world import World


def run(world: World, hours_max: float, learning: Learning | None = None) -> Finished:
    """Run a federation to its end, or until so many virtual hours are over."""
    coordinator = Coordinator(world, learning or Modelled())
    devices = [Device(i, world, coordinator) for i in range(len(world.conditions))]
    coordinator.start(devices)
    for device in devices:
        device.plan_return()
    until_ms = START_MS + round(hours_max * 3_600_000)
    agenda = world.agenda
    while coordinator.finished is None and agenda.step(until_ms):
        pass
    for device in devices:
        if device.on:
            device.stop()
    coordinator.settle()
    if coordinator.finished is None:
        reason = f"{hours_max:g} virtual hours are over: {coordinator.state.reason}"
        finished = Finished(world.now_ms, reason, succeeded=False)
    else:
        told = coordinator.finished
        finished = Finished(world.now_ms, told.reason, told.succeeded)
    world.write(finished)
    return finished
