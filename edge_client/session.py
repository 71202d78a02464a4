"""The client without threads, clock or sockets: the session machine and its ports.

Ports are the transport, the state folder and `trainer` (which does a task anywhere and feeds the
result back through `task_event`). The runner drives it in real time, tests in virtual
time. The machine's durable state is written before any command of the same step runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from edge_client import session_events as events
from edge_client.durable import Durable
from edge_client.fetching import Fetching
from edge_client.holdings import discard_unneeded, held_bundle, is_intact
from edge_client.outbox import OUTBOX_BYTES_MAX
from edge_client.progress import SavedProgress
from edge_client.room import Room
from edge_client.saved_session import SavedSession, new_installation
from edge_client.session_events import Command, Event, Heard
from edge_client.session_machine import resume, step
from edge_client.session_state import (
    ALL_HOLD,
    TEXT_CHARS_MAX,
    State,
    next_deadline_at_ms,
    presence,
)
from edge_client.speaking import Speaking, hello_of
from edge_client.supplies import Supplies
from edge_client.task_runner import TaskRunner
from edge_client.waits import Waits, doing, waits_of
from fedtide.blobs import BlobStore
from fedtide.errors import FedtideError, StateError
from fedtide.failpoints import reach
from fedtide.messages import (
    Beacon,
    BlobRef,
    Chunk,
    Envelope,
    Offer,
    Range,
    Receipt,
    Task,
    ToDevice,
    Update,
    Want,
    Welcome,
    decode,
)
from fedtide.sending import ChunkSender, chunk_blocks_for
from fedtide.topics import Topics
from fedtide.transport import (
    Arriving,
    Connected,
    Delivered,
    Disconnected,
    LinkEvent,
    Received,
    Transport,
    Unsealed,
)

_log = logging.getLogger(__name__)


class Session:
    """See the module."""

    def __init__(
        self,
        device_id: str,
        topics: Topics,
        folder: Path,
        link: Transport,
        runner: TaskRunner,
        *,
        outbox_bytes_max: int = OUTBOX_BYTES_MAX,
        conditions: events.ConditionsJudged = ALL_HOLD,
        new_installation: Callable[[], str] = new_installation,
    ) -> None:
        self._device_id = device_id
        self._topics = topics
        self._link = link
        self._runner = runner
        self._outbox_bytes_max = outbox_bytes_max
        self._conditions = conditions
        self._saved = SavedSession(folder, topics.federation, device_id, new_installation)
        self._progress = SavedProgress(folder)
        self.blobs = BlobStore(folder)
        self._speaking = Speaking(link, topics, device_id)
        self._sender = ChunkSender(self._speaking.publish)
        self._fetching = Fetching(self.blobs, link, topics)
        self._supplies = Supplies(self.blobs, self._fetching, runner)
        self.waits = Waits()
        self.doing = ""
        """For people: what the device does or waits for."""
        self._unsaved: list[Event] = []
        self._room = Room()
        self._state = State()

    @property
    def idle(self) -> bool:
        """Whether no task is at work, and no update waits for its receipt."""
        return self._state.durable.task is None and not self._state.durable.outbox

    @property
    def welcomed(self) -> bool:
        """Whether the coordinator answers on this connection."""
        return self._state.welcomed

    def start(self, at_ms: int) -> None:
        """Go on where the last life of this device ended.

        Raises:
            StateError: the disk is full or failing; the saved state is of another version or
                another device's.
        """
        commands, self._state = resume(self._saved.load(), self._outbox_bytes_max, self._conditions)
        self._saved.save(self._state.durable)
        reach("client: resumed")
        if self._state.durable.task is None:
            self._progress.remove()
        for update in self._state.durable.outbox:
            if update.blob is not None and not is_intact(self.blobs, update.blob):
                self._apply(events.UpdateLost(update.update_id), at_ms)
        self._perform(commands, at_ms)
        self._observe(at_ms)

    def next_deadline_at_ms(self) -> int | None:
        """When to call `time_reached`, whatever else happens."""
        deadlines = [
            next_deadline_at_ms(self._state),
            self.waits.deadline_at_ms(),
            self._speaking.deadline_at_ms(),
        ]
        if self._state.connected:
            deadlines.append(self._fetching.deadline_at_ms())
        if self._unsaved:
            deadlines.append(self._room.retry_at_ms or 0)
        return min((at_ms for at_ms in deadlines if at_ms is not None), default=None)

    def time_reached(self, at_ms: int) -> None:
        """Let time pass.

        Raises:
            StateError: the disk is failing.
        """
        fetch_at_ms = self._fetching.deadline_at_ms()
        if self._state.connected and fetch_at_ms is not None and fetch_at_ms <= at_ms:
            want = self._fetching.time_reached(at_ms)
            if want is not None:
                self._speaking.publish(want)
            if self._fetching.finished():
                self._pursue(at_ms)
        room_at_ms = self._room.retry_at_ms
        if self._unsaved and (room_at_ms is None or room_at_ms <= at_ms):
            self._save_what_waits(at_ms)
        deadline = next_deadline_at_ms(self._state)
        if deadline is not None and deadline <= at_ms:
            self._apply(events.TimeReached(), at_ms)
        self._observe(at_ms)

    def _observe(self, at_ms: int) -> None:
        """Tell the log what has been waited for too long, and all what this device does."""
        steps = self._runner.steps_count
        waits = waits_of(self._state, self._fetching.wait(), steps, unsaved=bool(self._unsaved))
        self.waits.observe(waits, at_ms)
        for text in self.waits.noticed(at_ms):
            _log.info("%s", text)
        for text in self.waits.overdue(at_ms):
            _log.warning("%s", text)
        now = presence(self._state, sending=self._sender.busy())
        self.doing = doing(now, waits)
        if told := self.waits.told():
            now = msgspec.structs.replace(now, reason="; ".join(told)[:TEXT_CHARS_MAX])
        self._speaking.announce(now, at_ms, connected=self._state.connected)

    def link_event(self, event: LinkEvent, at_ms: int) -> None:
        """Something happened on the link.

        Raises:
            BrokerError: the broker's packet limit cannot carry the protocol.
            StateError: the disk is failing.
        """
        match event:
            case Connected(protocol, packet_bytes_max):
                _log.info("connected over %s", protocol)
                self._sender.chunk_blocks = chunk_blocks_for(packet_bytes_max)
                self._link.subscribe([self._topics.down(self._device_id), self._topics.beacon])
                self._speaking.link_up(at_ms)
                self._apply(events.Linked(), at_ms)
                if self._fetching.start(at_ms, again=True):
                    self._pursue(at_ms)
            case Disconnected(reason, retry_ms):
                self._sender.link_lost()
                self._apply(events.Unlinked(reason, retry_ms), at_ms)
            case Delivered(token, refused, waited_ms):
                if refused is not None:
                    _log.warning("the broker refuses a message: %s", refused)
                sent = self._sender.delivered(token, waited_ms)
                self._lose_unreadable(at_ms)
                if sent is not None:
                    # As if the coordinator missed nothing: the wait for its receipt begins now.
                    self._apply(Heard(Want(sent, ())), at_ms)
                self._observe(at_ms)
            case Arriving():
                self._fetching.arriving(at_ms)
            case Received(topic, payload):
                self._received(topic, payload, at_ms)
            case Unsealed(topic, reason):
                self._refused(topic, reason)
            case _:
                pass

    def task_event(self, event: Event, at_ms: int) -> None:
        """The runner says something of its task, this device's conditions have changed, or the
        client is asked to stop."""
        self._apply(event, at_ms)

    def _received(self, topic: str, payload: bytes, at_ms: int) -> None:
        envelope = decode(payload)
        if not isinstance(envelope, Envelope):
            self._refused(topic, envelope.reason)
            return
        body = envelope.body
        if isinstance(body, Chunk):
            self._chunk(body, at_ms)
        elif isinstance(body, ToDevice):
            if isinstance(body, Receipt):
                reach("client: receipt heard")
            if isinstance(body, Beacon) and not body.online:
                self._sender.pause()
            self._apply(Heard(body), at_ms)

    def _refused(self, topic: str, reason: str) -> None:
        _log.warning("a message on %s is refused: %s", topic, reason)

    def _chunk(self, chunk: Chunk, at_ms: int) -> None:
        before = self._fetching.news
        finished = self._fetching.chunk(chunk, at_ms)
        if self._fetching.news > before and self._state.durable.restarts:
            self._apply(events.BlocksArrived(), at_ms)
        if finished:
            self._pursue(at_ms)

    def _pursue(self, at_ms: int) -> None:
        """Fetch what is needed, the next of it when a blob is here."""
        event = self._supplies.pursue(self._state, at_ms)
        if event is not None:
            if isinstance(event, events.TaskPrepared):
                reach("client: task prepared")
            self._apply(event, at_ms)

    def _apply(self, event: Event, at_ms: int) -> None:
        before = self._state.durable
        commands, after = step(self._state, event, at_ms)
        if self._unsaved and isinstance(event, Heard) and after.durable != before:
            # What happened here comes first: a newer task would give up a finished update.
            self._save_what_waits(at_ms)
            if self._unsaved:
                return
            before = self._state.durable
            commands, after = step(self._state, event, at_ms)
        if after.durable != before and not self._save(after.durable, event, at_ms):
            return
        self._state = after
        if after.durable != before and isinstance(event, events.TaskDone):
            reach("client: update stored")
        if before.task is not None and after.durable.task != before.task:
            self._progress.remove()
        self._perform(commands, at_ms)
        self._observe(at_ms)

    def _save_what_waits(self, at_ms: int) -> None:
        """Apply what there was no room for, in its order, as far as there is room now."""
        unsaved, self._unsaved = self._unsaved, []
        while unsaved and not self._unsaved:
            self._apply(unsaved.pop(0), at_ms)
        self._unsaved += unsaved

    def _save(self, durable: Durable, event: Event, at_ms: int) -> bool:
        """Whether it is on disk. If there is no room, what we heard was not heard, and will be said
        again; what happened on this device is kept until it can be saved.

        Raises:
            StateError: the disk is failing.
        """
        try:
            self._saved.save(durable)
        except StateError as exc:
            self._room.missing(exc, at_ms)
            if not isinstance(event, Heard):
                self._unsaved.append(event)
            return False
        self._room.found()
        return True

    def _perform(self, commands: tuple[Command, ...], at_ms: int) -> None:
        for command in commands:
            match command:
                case events.SayHello():
                    reach("client: hello")
                    holds = self._supplies.held()
                    self._speaking.publish(hello_of(self._runner, self._state, holds))
                case events.Say(Offer(Update(blob=BlobRef(digest)))) if self._sender.busy(digest):
                    self._apply(Heard(Want(digest, ())), at_ms)  # as if said, and answered
                case events.Say(message):
                    reach("client: offer" if isinstance(message, Offer) else "client: decline")
                    self._speaking.publish(message)
                case events.Prefetch(named) | events.PrepareTask(named):
                    self._want(named, at_ms)
                case events.StartTask(task):
                    self._start_task(task, at_ms)
                case events.Adapt():
                    self._adapt(at_ms)
                case events.DropTask(round_id):
                    _log.info("round %d is overtaken by a newer one", round_id)
                    self._runner.drop()
                case events.SendBlocks(update, missing):
                    self._send(update, missing, at_ms)
                case events.ForgetUpdate(update, receipt):
                    self._forget(update.blob, update.round_id, receipt)
                case events.Note(text):
                    _log.info("%s", text)

    def _want(self, named: Welcome | Task, at_ms: int) -> None:
        if isinstance(named, Task):
            reach("client: task accepted")
        self._supplies.want(named)
        self._pursue(at_ms)

    def _adapt(self, at_ms: int) -> None:
        """Conditions of this device begin or cease to hold."""
        self._runner.pause(bool(self._state.training_held))
        if self._state.transfers_held:
            self._sender.pause()
        self._pursue(at_ms)

    def _send(self, update: Update, missing: tuple[Range, ...], at_ms: int) -> None:
        if update.blob is not None:
            self._sender.send(update.blob, self.blobs.path(update.blob.digest), missing)
            self._lose_unreadable(at_ms)

    def _lose_unreadable(self, at_ms: int) -> None:
        """To offer again what cannot be sent would never end."""
        unreadable = self._sender.take_unreadable()
        for update in self._state.durable.outbox:
            if update.blob is not None and update.blob.digest in unreadable:
                self._apply(events.UpdateLost(update.update_id), at_ms)

    def _start_task(self, task: Task, at_ms: int) -> None:
        try:
            bundle = held_bundle(self.blobs, task.bundle)
            model = self.blobs.read(task.model.digest)
        except (FedtideError, OSError) as exc:
            _log.error("round %d: what was fetched is gone: %s", task.round_id, exc)
            reason = "what was fetched is gone from the disk"
            self._apply(events.TaskFailed(task.run_id, task.round_id, reason), at_ms)
            return
        discard_unneeded(self.blobs, task.model, bundle, self._state.durable.outbox)
        _log.info("round %d: %s from model %d", task.round_id, task.kind, task.model_version)
        self._runner.start(task, bundle, model)

    def _forget(self, blob: BlobRef | None, round_id: int, receipt: Receipt | None) -> None:
        reach("client: receipt stored")
        if receipt is None:
            _log.warning("round %d: the update is given up", round_id)
        else:
            because = f": {receipt.reason}" if receipt.reason else ""
            _log.info("round %d: the update is %s%s", round_id, receipt.verdict, because)
        if blob is not None:
            if any(update.blob == blob for update in self._state.durable.outbox):
                return  # another update has the same bits
            self._sender.forget(blob.digest)
            self.blobs.discard(blob.digest)
            reach("client: update removed")

    def goodbye(self, reason: str = "stopped") -> int | None:
        """Say that this device goes away; the token of its delivery, None: there is no link."""
        return self._speaking.goodbye(reason)
