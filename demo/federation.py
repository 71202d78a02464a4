"""The demo's director: starts the federation, watches it as anybody may, and makes things go wrong.

It holds no secret of the coordinator or of a device: what it knows comes from the public status
and presence topics. Faults are real: SIGKILL, sockets that break, an uplink that stands still.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from queue import Empty, SimpleQueue

from demo.brokers import COORDINATOR, OBSERVER, Broker, write_private
from demo.data import DEVICES, Split
from demo.faults import FaultPlan
from demo.outcome import count_answers
from demo.prepare import (
    COLLECT_MS,
    FEDERATION,
    Runtime,
    Settings,
    client_toml,
    coordinator_toml,
)
from demo.processes import Child, ProcessError
from demo.proxy import Proxy
from demo.scene import Scene
from fedtide.launch import module_command
from fedtide.messages import Envelope, Presence, Status, decode
from fedtide.mqtt import MqttTransport
from fedtide.topics import Topics
from fedtide.transport import Connected, LinkEvent, Received

_TICK_S = 0.1
"""How often the view moves and the processes are looked at when nothing happens."""


class Federation:
    """Broker's clients, faults and scene of one run. A context manager that stops everything."""

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        split: Split,
        runtimes: dict[str, Runtime],
        plan: FaultPlan,
        scene: Scene,
    ) -> None:
        self._settings = settings
        self._scene = scene
        self._plan = plan
        self._broker = broker
        self._topics = Topics(FEDERATION)
        self._events: SimpleQueue[LinkEvent] = SimpleQueue()
        self._link = MqttTransport(broker.access(OBSERVER), OBSERVER, self._events.put)
        self._proxies = {device: Proxy(broker.port) for device in split.devices}
        self._stack = ExitStack()
        self._back: dict[str, int] = {}
        self._ended = False
        self._started_s = 0.0
        self._first_round_s: float | None = None
        self.kills_count = 0
        folder = settings.folder
        self._coordinator = _fedtide("coordinator", sys.executable, settings)
        write_private(folder / "coordinator.toml", coordinator_toml(settings, broker))
        self._devices: dict[str, Child] = {}
        for device, runtime in runtimes.items():
            python = sys.executable if runtime == "ort_training" else settings.device_python
            port = self._proxies[device].port
            text = client_toml(settings, broker, device, port, runtime)
            write_private(folder / f"{device}.toml", text)
            self._devices[device] = _fedtide(device, python, settings)

    def __enter__(self) -> Federation:
        with ExitStack() as stack:
            for proxy in self._proxies.values():
                stack.enter_context(proxy)
            stack.callback(self._stop_all)
            stack.callback(self._link.stop)
            self._link.start()
            self._coordinator.start()
            for child in self._devices.values():
                child.start()
            self._stack = stack.pop_all()
        self._started_s = time.monotonic()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def run(self, refresh: Callable[[], None]) -> None:
        """Until the coordinator has finished.

        Raises:
            ProcessError: a process ended when nobody had planned it, or the end never came.
        """
        self._scene.step = "federated training"
        limit_s = 60 + 3 * self._settings.rounds * COLLECT_MS / 1000
        while not self._ended:
            with suppress(Empty):
                self._heard(self._events.get(timeout=_TICK_S))
            self._look_after_processes()
            if time.monotonic() - self._started_s > limit_s:
                raise ProcessError(
                    f"the federation did not finish within {limit_s:g} s; "
                    f"the end of {self._coordinator.log_path}:\n{self._coordinator.log_tail()}"
                )
            self._estimate()
            refresh()
        self._scene.answers_count = count_answers(self._settings.folder / COORDINATOR)
        self._scene.finish()
        refresh()

    def _look_after_processes(self) -> None:
        self._coordinator.check(may_end=True)
        self._ended = self._coordinator.exit_code() == 0
        for child in self._devices.values():
            child.check()

    def _estimate(self) -> None:
        done = self._scene.rounds_done
        if done >= 2 and self._first_round_s is not None:
            pace_s = (time.monotonic() - self._first_round_s) / done
            self._scene.seconds_left = pace_s * (self._settings.rounds - done)

    # ---- what is heard ----

    def _heard(self, event: LinkEvent) -> None:
        if isinstance(event, Connected):
            self._link.subscribe([self._topics.status, self._topics.presence("+")])
        if not isinstance(event, Received):
            return
        envelope = decode(event.payload)
        if not isinstance(envelope, Envelope):
            return
        match envelope.body:
            case Status() as status:
                self._status(status)
            case Presence() as presence:
                device = self._topics.device_of(event.topic)
                if device in self._devices:
                    self._presence(device, presence)
            case _:
                pass

    def _status(self, status: Status) -> None:
        new_round = status.round_id > self._scene.round_id
        if new_round:
            self._release_late()
        self._scene.status(status)
        if new_round:
            if self._first_round_s is None:
                self._first_round_s = time.monotonic()
            self._open_round(status.round_id)
        if status.phase == "waiting" or self._scene.evaluating:
            # For devices, that is; with no round to open, those away would stay away.
            self._bring_back(sys.maxsize)

    def _presence(self, device: str, presence: Presence) -> None:
        round_id = presence.round_id
        if presence.phase == "training" and self._devices[device].running:
            faults = self._plan.of(round_id)
            if device in faults.killed and device not in self._back:
                if round_id == self._scene.round_id:
                    self._kill(device, round_id, faults.killed[device])
                return
            held = self._scene.devices[device].held
            if device == faults.late and round_id == self._scene.round_id and not held:
                self._proxies[device].hold_uplink()
                self._scene.slowed(device, round_id)
        self._scene.presence(device, presence)

    # ---- what goes wrong ----

    def _kill(self, device: str, round_id: int, back: int) -> None:
        self._devices[device].kill()
        self._back[device] = back
        self.kills_count += 1
        self._scene.killed(device, round_id)

    def _open_round(self, round_id: int) -> None:
        faults = self._plan.of(round_id)
        self._bring_back(round_id)
        for device in DEVICES:
            if device == faults.offline:
                self._proxies[device].cut()
                self._scene.cut_off(device, round_id)
            elif self._scene.devices[device].offline:
                self._proxies[device].heal()
                self._scene.healed(device)

    def _bring_back(self, round_id: int) -> None:
        """Start those who died and were to come back by this round."""
        for device, back in list(self._back.items()):
            if back <= round_id:
                del self._back[device]
                self._devices[device].start()
                self._scene.restarted(device)

    def _release_late(self) -> None:
        for name, device in self._scene.devices.items():
            if device.held:
                self._proxies[name].release_uplink()
                self._scene.hastened(name)

    def _stop_all(self) -> None:
        children = [self._coordinator, *self._devices.values()]
        for child in children:
            child.ask_to_stop()
        for child in children:
            child.stop()


def _fedtide(role: str, python: str, settings: Settings) -> Child:
    command = "coordinator" if role == "coordinator" else "client"
    config = settings.folder / f"{role}.toml"
    return Child(
        role,
        module_command("fedtide", command, "--config", str(config), python=python),
        settings.folder / f"{role}.log",
    )
