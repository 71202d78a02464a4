"""A simulated device: the production session machine, and a model of its shell.

Of the shell (`edge_client.session`) is modelled what takes time or carries bytes: fetching,
training with its saved epochs, uploads that go on where they broke off. A device that is off is
like one whose power was cut: what is durable stays, an unfinished epoch and what was on the line
are lost. It comes back by a start of the client, and it never says goodbye.

What a device repeats because it may have been lost (hellos, offers) is never due here: nothing is
lost on these links. So a device without anything to do costs no event.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from edge_client import session_events as orders
from edge_client.durable import Durable
from edge_client.session_machine import resume, step
from edge_client.session_state import State
from fedtide.limits import BLOCK_BYTES
from fedtide.messages import BlobRef, Decline, Offer, Task, ToDevice, Update
from simulator.agenda import START_MS
from simulator.device_names import device_name
from simulator.fleet import events
from simulator.fleet.activities import Download, Training, Upload
from simulator.fleet.availability import FOREVER_MS
from simulator.fleet.dropouts import Dropout, Phase
from simulator.fleet.world import World

if TYPE_CHECKING:
    from simulator.fleet.coordinator import Coordinator

PHASE_NAMES: dict[Phase, events.Phase] = {
    "before_download": "before download",
    "in_training": "training",
    "before_upload": "before upload",
    "during_upload": "upload",
}


class Device:
    """See the module."""

    __slots__ = (
        "_bundle_left",
        "_coordinator",
        "_cuts",
        "_download",
        "_held",
        "_interval",
        "_intervals",
        "_partial",
        "_round_id",
        "_slow_factor",
        "_training",
        "_uploads",
        "_world",
        "index",
        "life",
        "name",
        "on",
        "state",
    )

    def __init__(self, index: int, world: World, coordinator: Coordinator) -> None:
        self.index = index
        self.name = device_name(index)
        self.state = State(durable=Durable(federation=world.config.federation, device=self.name))
        self.on = False
        self.life = 0
        """Number of times that it was switched on: what was planned in an earlier one is void."""
        self._world = world
        self._coordinator = coordinator
        self._intervals = world.conditions.presence(index)
        self._interval = (0, 0)
        self._bundle_left = world.sizes.bundle
        self._held = -1
        """Version of the model on its disk."""
        self._partial = (-1, 0)
        """Version of the model that is on its disk in part, and how many bytes of it."""
        self._round_id = 0
        """Of the newest task taken up."""
        self._slow_factor = 1.0
        """Of that task."""
        self._cuts: dict[int, Dropout] = {}
        """By round: the power cut that its task still has before it, whatever interrupts it."""
        self._download: Download | None = None
        self._training: Training | None = None
        self._uploads: deque[Upload] = deque()
        """The first is on its way."""

    # ---- on and off ----

    def plan_return(self, earliest_ms: int = 0) -> None:
        """Come back when it is available, not before `earliest_ms` (since the start)."""
        while self._interval[1] <= earliest_ms:
            interval = next(self._intervals, None)
            if interval is None:
                return
            self._interval = interval
        self._world.agenda.at(START_MS + max(earliest_ms, self._interval[0]), self._switch_on)

    def _switch_on(self) -> None:
        self.on = True
        self.life += 1
        self._world.write(events.On(self._world.now_ms, self.index))
        until_ms = self._interval[1]
        if until_ms < FOREVER_MS:
            self._world.agenda.at(START_MS + until_ms, self._leave, self.life)
        commands, self.state = resume(self.state.durable)
        self._perform(commands)
        if self.on:
            self.apply(orders.Linked())

    def _leave(self, life: int) -> None:
        if self.on and life == self.life:
            self._switch_off("away")
            self.plan_return(self._world.now_ms)

    def _switch_off(self, why: events.Absence) -> None:
        self.stop()
        self.on = False
        self._world.write(events.Off(self._world.now_ms, self.index, why))
        self.state = State(durable=self.state.durable)
        self._coordinator.vanished(self)

    def _power_cut(self, round_id: int, life: int) -> None:
        """The task's fate."""
        if not self.on or life != self.life or round_id not in self._cuts:
            return
        cut = self._cuts.pop(round_id)
        now_ms, back_ms = self._world.now_ms, cut.back_after_ms
        self.stop()
        phase, returns = PHASE_NAMES[cut.phase], back_ms is not None
        self._world.write(events.DroppedOut(now_ms, self.index, round_id, phase, returns))
        self._switch_off("power cut")
        if back_ms is not None:
            self.plan_return(now_ms + back_ms)

    def stop(self) -> None:
        """Whatever is under way breaks off; what is on the disk stays."""
        if self._download is not None:
            self._stop_download(self._download)
        if self._training is not None:
            self._stop_training(self._training)
        if self._uploads:
            self._stop_uploads(self._uploads[0])

    # ---- the machine ----

    def hear(self, message: ToDevice) -> None:
        """The coordinator says this; who is off hears nothing."""
        if self.on:
            self.apply(orders.Heard(message))

    def apply(self, event: orders.Event) -> None:
        """One step of the machine, and what it orders."""
        commands, self.state = step(self.state, event, self._world.agenda.now_ms)
        self._perform(commands)

    def _perform(self, commands: tuple[orders.Command, ...]) -> None:
        for command in commands:
            match command:
                case orders.SayHello():
                    self._coordinator.hello(self)
                case orders.Say(message):
                    self._say(message)
                case orders.Prefetch():
                    self._fetch(self._held)  # so, of the bundle what is not here
                case orders.PrepareTask(task):
                    self._prepare(task)
                case orders.StartTask(task):
                    self._start(task)
                case orders.DropTask(round_id):
                    self._cuts.pop(round_id, None)
                    if self._training is not None:
                        self._stop_training(self._training)
                    now_ms = self._world.now_ms
                    self._world.write(events.GivenUp(now_ms, self.index, round_id))
                case orders.SendBlocks(update, missing):
                    self._send(update, missing[0][0] if missing else 0)
                case _:
                    pass  # notes, and forgetting what needs no room here

    def _say(self, message: Offer | Decline) -> None:
        if not self.state.connected:
            return
        if isinstance(message, Decline):
            now_ms, round_id = self._world.now_ms, message.round_id
            self._world.write(events.Declined(now_ms, self.index, round_id, message.reason))
            self._coordinator.decline(self, message)
        elif all(upload.update is not message.update for upload in self._uploads):
            self._coordinator.offer(self, message.update)

    # ---- fetching ----

    def _prepare(self, task: Task) -> None:
        """A task is taken up, or taken up again after a start."""
        round_id = task.round_id
        if round_id != self._round_id:
            self._round_id = round_id
            self._world.write(
                events.TaskGiven(self._world.now_ms, self.index, round_id, task.model_version)
            )
            self._meet_fate(task)
        if self._has_cut(round_id, "before_download"):
            # Once all that is said at this moment has been heard.
            self._world.agenda.after(0, self._power_cut, round_id, self.life)
        elif self._missing_bytes(task.model_version):
            self._fetch(task.model_version)
        else:
            self.apply(orders.TaskPrepared(task.run_id, task.round_id))

    def _meet_fate(self, task: Task) -> None:
        waiting = {update.round_id for update in self.state.durable.outbox}
        self._cuts = {key: cut for key, cut in self._cuts.items() if key in waiting}
        self._slow_factor = 1.0
        if task.kind == "train":
            self._slow_factor, cut = self._world.conditions.fate(self.index, task.round_id)
            if cut is not None:
                self._cuts[task.round_id] = cut

    def _has_cut(self, round_id: int, phase: Phase) -> bool:
        """Whether the task is still to be cut short in this phase."""
        cut = self._cuts.get(round_id)
        return cut is not None and cut.phase == phase

    def _missing_bytes(self, version: int) -> int:
        if version == self._held:
            return self._bundle_left
        here = self._partial[1] if self._partial[0] == version else 0
        return self._bundle_left + self._world.sizes.model - here

    def _fetch(self, version: int) -> None:
        """The bundle and this model, unless they are here or on their way; one of the bundle
        alone goes on, and the model is fetched after it."""
        if self._download is not None:
            if self._download.version in (version, self._held):
                return
            self._stop_download(self._download)
        missing = self._missing_bytes(version)
        if not missing:
            return
        world = self._world
        takes_ms = world.transfer_ms(self.index, missing, up=False)
        self._download = Download(version, missing, world.now_ms, takes_ms)
        world.write(events.DownloadBegan(world.now_ms, self.index, missing))
        world.agenda.after(takes_ms, self._downloaded, self._download)

    def _downloaded(self, download: Download) -> None:
        if download is not self._download:
            return
        self._download, self._held, self._bundle_left = None, download.version, 0
        self._world.write(events.DownloadEnded(self._world.now_ms, self.index, download.bytes))
        task = self.state.durable.task
        if self.state.durable.restarts:
            self.apply(orders.BlocksArrived())
        if self.state.phase != "fetching" or task is None:
            return
        if self._missing_bytes(task.model_version):
            self._fetch(task.model_version)
        else:
            self.apply(orders.TaskPrepared(task.run_id, task.round_id))

    def _stop_download(self, download: Download) -> None:
        """The blocks that have come stay on the disk, the bundle's first."""
        self._download = None
        here = _share(download.bytes, self._world.now_ms - download.began_ms, download.takes_ms)
        self._world.write(events.DownloadEnded(self._world.now_ms, self.index, here, whole=False))
        of_bundle = min(here, self._bundle_left)
        self._bundle_left -= of_bundle
        if download.version != self._held:
            version, before = self._partial
            before = before if version == download.version else 0
            self._partial = download.version, before + here - of_bundle
        if here and self.state.durable.restarts:
            self.apply(orders.BlocksArrived())

    # ---- training ----

    def _start(self, task: Task) -> None:
        world = self._world
        if task.kind == "evaluate":  # simulated devices hold no data back
            self.apply(orders.TaskDone(self._update(task, steps=0, training_ms=0)))
            return
        work = world.work(self.index, task.plan, self._slow_factor)
        epochs_before = self.state.durable.epochs_saved
        before_ms = epochs_before * work.epoch_ms
        world.write(events.TrainingBegan(world.now_ms, self.index, task.round_id, epochs_before))
        self._training = Training(task, work, world.now_ms, epochs_before)
        left_ms = max(1, round(work.ms - before_ms))
        cut = self._cuts.get(task.round_id)
        if cut is not None and cut.phase == "in_training":
            at_ms = cut.fraction * work.ms
            if cut.epoch is not None:
                epoch = min(cut.epoch, max(1, round(work.ms / work.epoch_ms)))
                at_ms = (epoch - 1 + cut.fraction) * work.epoch_ms
            wait_ms = max(0, min(int(at_ms - before_ms), left_ms - 1))
            world.agenda.after(wait_ms, self._power_cut, task.round_id, self.life)
        world.agenda.after(left_ms, self._trained, self._training)

    def _trained(self, training: Training) -> None:
        if training is not self._training:
            return
        self._training = None
        task, work, world = training.task, training.work, self._world
        epochs = min(task.plan.epochs, work.steps // work.steps_in_epoch)
        world.write(
            events.TrainingEnded(world.now_ms, self.index, task.round_id, epochs, work.steps)
        )
        update = self._update(task, work.steps, round(work.ms))
        if self._has_cut(task.round_id, "before_upload"):
            # It is durable, and nothing has been said of it.
            done = orders.TaskDone(update)
            self.state = step(self.state, done, world.agenda.now_ms).state
            self._power_cut(task.round_id, self.life)
        else:
            self.apply(orders.TaskDone(update))

    def _stop_training(self, training: Training) -> None:
        """What was not saved has to be done again."""
        self._training = None
        task, work, world = training.task, training.work, self._world
        took_ms = world.now_ms - training.began_ms
        saved = training.epochs_saved(took_ms)
        epochs = training.epochs_before + saved
        lost_ms = min(took_ms, max(0, round(took_ms - saved * work.epoch_ms)))
        steps = min(work.steps, epochs * work.steps_in_epoch)
        world.write(
            events.TrainingEnded(
                world.now_ms, self.index, task.round_id, epochs, steps, False, lost_ms
            )
        )
        self.apply(orders.EpochsSaved(task.run_id, task.round_id, epochs))

    def _update(self, task: Task, steps: int, training_ms: int) -> Update:
        trains = task.kind == "train"
        name = f"{self.index}-{task.round_id}"
        return Update(
            update_id=name,
            run_id=task.run_id,
            round_id=task.round_id,
            kind=task.kind,
            model=task.model.digest,
            examples=self._world.examples(self.index),
            blob=BlobRef(name, self._world.sizes.update) if trains else None,
            encoding=task.encoding,
            steps=steps,
            training_ms=training_ms,
        )

    # ---- uploads ----

    def _send(self, update: Update, blocks_there: int) -> None:
        assert update.blob is not None
        upload = Upload(update, update.blob.size_bytes - blocks_there * BLOCK_BYTES)
        self._uploads.append(upload)
        if len(self._uploads) == 1:
            self._begin_upload(upload)

    def _begin_upload(self, upload: Upload) -> None:
        world, round_id = self._world, upload.update.round_id
        upload.began_ms = world.now_ms
        upload.takes_ms = world.transfer_ms(self.index, upload.bytes, up=True)
        world.write(events.UploadBegan(world.now_ms, self.index, round_id, upload.bytes))
        cut = self._cuts.get(round_id)
        if cut is not None and cut.phase == "during_upload":
            wait_ms = min(int(cut.fraction * upload.takes_ms), upload.takes_ms - 1)
            world.agenda.after(wait_ms, self._power_cut, round_id, self.life)
        world.agenda.after(upload.takes_ms, self._uploaded, upload)

    def _uploaded(self, upload: Upload) -> None:
        if not self._uploads or upload is not self._uploads[0]:
            return
        self._uploads.popleft()
        now_ms, round_id = self._world.now_ms, upload.update.round_id
        self._world.write(events.UploadEnded(now_ms, self.index, round_id, upload.bytes))
        self._coordinator.arrived(self, upload.update)
        if self._uploads:
            self._begin_upload(self._uploads[0])

    def _stop_uploads(self, upload: Upload) -> None:
        """The blocks that have arrived stay at the coordinator."""
        self._uploads.clear()
        now_ms, update = self._world.now_ms, upload.update
        there = _share(upload.bytes, now_ms - upload.began_ms, upload.takes_ms)
        self._world.write(
            events.UploadEnded(now_ms, self.index, update.round_id, there, whole=False)
        )
        self._coordinator.arrived_in_part(self, update, there // BLOCK_BYTES)


def _share(size_bytes: int, passed_ms: int, takes_ms: int) -> int:
    """Whole blocks that were carried by then."""
    return size_bytes * passed_ms // takes_ms // BLOCK_BYTES * BLOCK_BYTES
