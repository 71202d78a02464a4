"""The coordinator without threads, clock or sockets: events in, calls on its ports out.

Ports are the transport, the store and `start_job` (which runs an `AggregateJob` anywhere and feeds
its result back through `job_done`). The runner drives it in real time, the simulator in virtual
time. One incoming event is one transaction; what it causes outside happens after the commit, and
can be derived again from the committed state.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from itertools import count

import msgspec

from coordinator.aggregate_job import Aggregated, AggregateJob
from coordinator.config import CoordinatorConfig
from coordinator.publishing import Publisher
from coordinator.round_machine import (
    AbandonRound,
    AggregateRound,
    Command,
    DeviceArrived,
    DeviceLeft,
    Event,
    FinishFederation,
    InviteDevices,
    Restarted,
    RoundAggregated,
    TaskDeclined,
    TimeReached,
    UpdateAccepted,
    UpdateRejected,
    step,
)
from coordinator.store import Model, Store
from coordinator.uploads import Uploads
from coordinator.vetting import admit, defect, misfit
from fedtide.bundle import Bundle
from fedtide.errors import BrokerError, BundleError
from fedtide.manifest import MANIFEST_NAME, runtime_files
from fedtide.messages import (
    Beacon,
    BlobRef,
    Chunk,
    Decline,
    Hello,
    Malformed,
    Metrics,
    Offer,
    Presence,
    Problem,
    Receipt,
    Status,
    Task,
    ToDevice,
    Update,
    Want,
    Welcome,
    decode,
    encode,
)
from fedtide.plan import Plan
from fedtide.topics import Topics
from fedtide.transport import Connected, Delivered, Disconnected, LinkEvent, Received, Transport

_log = logging.getLogger(__name__)

SILENCES_MAX = 3
"""A device that misses this many hellos counts as gone."""


class Service:
    """See the module."""

    def __init__(
        self,
        config: CoordinatorConfig,
        bundle: Bundle,
        store: Store,
        link: Transport,
        start_job: Callable[[AggregateJob], None],
        session: str,
    ) -> None:
        self._config = config
        self._bundle = bundle
        self._store = store
        self._link = link
        self._start_job = start_job
        self._session = session
        self._topics = Topics(config.federation)
        self._publisher = Publisher(store.blobs, link, self._topics)
        self._uploads = Uploads(store.blobs)
        self._message_ids = count(1)
        self._heard_at_ms: dict[str, int] = {}
        self._connected = False
        self.finished: FinishFederation | None = None
        self._adopt_bundle()
        self._state = store.load_state()
        self._run_id = store.fact("run_id") or ""

    # ---- start ----

    def _adopt_bundle(self) -> None:
        """Put the bundle's files and the initial model where devices can fetch them."""
        manifest = self._bundle.manifest
        put, read = self._store.blobs.put, self._bundle.read
        self._bundle_ref = put(self._bundle.fetch(MANIFEST_NAME))
        if self._bundle_ref.digest != self._bundle.digest:
            raise BundleError("the bundle's manifest changed while it was being read")
        self._bundle_blobs = [self._bundle_ref, *(put(read(p)) for p in runtime_files(manifest))]
        put(read(manifest.inference))  # for `fedtide models export`

    def start(self, at_ms: int) -> None:
        """Go on where the last life of this store ended."""
        self._publisher.offer([*self._bundle_blobs, self._model().ref])
        self._apply(Restarted(), at_ms)

    def _model(self) -> Model:
        model = self._store.model(self._state.model_version)
        assert model is not None, "every version up to the state's is committed with it"
        return model

    # ---- time ----

    def next_deadline_at_ms(self) -> int | None:
        """When to call `time_reached`, whatever else happens."""
        silent = min(self._heard_at_ms.values(), default=None)
        deadlines = [
            at_ms
            for at_ms in (
                self._state.deadline_at_ms,
                None if silent is None else silent + SILENCES_MAX * self._config.hello_ms,
            )
            if at_ms is not None
        ]
        return min(deadlines, default=None)

    def time_reached(self, at_ms: int) -> None:
        """Let time pass: deadlines of the round, and devices that fell silent."""
        for device_id, heard in sorted(self._heard_at_ms.items()):
            if at_ms - heard >= SILENCES_MAX * self._config.hello_ms:
                del self._heard_at_ms[device_id]
                self._apply(DeviceLeft(device_id), at_ms)
        if self._state.deadline_at_ms is not None and at_ms >= self._state.deadline_at_ms:
            self._apply(TimeReached(), at_ms)

    # ---- link ----

    def link_event(self, event: LinkEvent, at_ms: int) -> None:
        """Something happened on the link.

        Raises:
            BrokerError: the broker's packet limit cannot carry the protocol.
            StateError: the disk is full or failing.
        """
        match event:
            case Connected(protocol, packet_bytes_max):
                _log.info("connected over %s", protocol)
                self._connected = True
                root = self._topics
                self._link.subscribe([root.up("+"), root.presence("+")])
                if not self._publisher.connected(packet_bytes_max):
                    raise BrokerError(
                        f"the broker takes packets of {packet_bytes_max} bytes at most",
                        hint="raise its limit (Mosquitto: max_packet_size) to 20,000 or more",
                    )
                self._announce(self._topics.beacon, Beacon(online=True, session=self._session))
                self._publish_status(at_ms)
            case Disconnected(reason):
                _log.warning("%s; trying again", reason)
                self._connected = False
                self._publisher.link_lost()
            case Delivered(token):
                self._publisher.delivered(token)
            case Received(topic, payload):
                self._received(topic, payload, at_ms)
            case _:
                pass

    def _received(self, topic: str, payload: bytes, at_ms: int) -> None:
        device_id = self._topics.device_of(topic)
        if device_id is None or (not payload and topic == self._topics.presence(device_id)):
            return
        envelope = decode(payload)
        if isinstance(envelope, Malformed):
            self._refuse(device_id, envelope.regarding, f"malformed: {envelope.reason}")
            return
        if topic == self._topics.presence(device_id):
            if isinstance(envelope.body, Presence) and not envelope.body.online:
                self._heard_at_ms.pop(device_id, None)
                self._apply(DeviceLeft(device_id), at_ms)
            return
        if device_id in self._heard_at_ms:
            self._heard_at_ms[device_id] = at_ms
        match envelope.body:
            case Hello() as hello:
                self._hello(device_id, hello, at_ms)
            case Offer(update):
                self._offer(device_id, update, at_ms)
            case Chunk() as chunk:
                self._chunk(device_id, envelope.id, chunk, at_ms)
            case Want() as want:
                if not self._publisher.repeat(want, at_ms):
                    self._refuse(device_id, envelope.id, f"not on offer: blob {want.digest[:12]}")
            case Decline(round_id, reason):
                _log.warning("%s declines round %d: %s", device_id, round_id, reason)
                self._apply(TaskDeclined(round_id, device_id), at_ms)
            case other:
                kind = type(other).__name__.lower()
                self._refuse(device_id, envelope.id, f"a device does not say {kind!r}")

    def _refuse(self, device_id: str, regarding: str, reason: str) -> None:
        """A bad message is data: counted (by what stands before the colon), logged, answered."""
        _log.warning("message from %s refused: %s", device_id, reason)
        with self._store.transaction():
            self._store.count(f"refused: {reason.split(':', maxsplit=1)[0][:60]}")
        self._say(device_id, Problem(regarding, reason[:1000]))

    # ---- what devices say ----

    def _hello(self, device_id: str, hello: Hello, at_ms: int) -> None:
        new = device_id not in self._heard_at_ms
        self._heard_at_ms[device_id] = at_ms
        model = self._model()
        self._say(
            device_id,
            Welcome(
                bundle=self._bundle_ref,
                model=model.ref,
                model_version=model.version,
                chunk_blocks=self._publisher.chunk_blocks,
                hello_ms=self._config.hello_ms,
            ),
        )
        if new:
            with self._store.transaction():
                self._store.heard(device_id, msgspec.json.encode(hello).decode(), at_ms)
            _log.info(
                "%s is online: fedtide %s, %s, %d examples",
                device_id,
                hello.version,
                "/".join(hello.runtimes),
                hello.examples,
            )
        member = self._state.member(device_id)
        if self._state.phase == "collecting" and member and member.answer == "none":
            self._invite((device_id,), at_ms)
        if new:
            self._apply(DeviceArrived(device_id), at_ms)

    def _offer(self, device_id: str, update: Update, at_ms: int) -> None:
        known = self._store.receipt(update.update_id, device_id)
        if known is not None:
            self._say(device_id, known)  # what followed from it was committed with it
            return
        receipt = admit(update, device_id, self._state, self._run_id)
        if receipt is not None:
            self._conclude(device_id, update, receipt, at_ms)
            return
        elements = self._bundle.manifest.elements_count
        model, encoding = self._model().ref, self._config.encoding
        reason = misfit(update, self._state, model.digest, encoding, elements)
        if reason is not None:
            self._conclude(device_id, update, Receipt(update.update_id, "rejected", reason), at_ms)
            return
        if update.blob is None:
            self._conclude(device_id, update, Receipt(update.update_id, "accepted"), at_ms)
            return
        missing = self._uploads.expect(device_id, update)
        if missing:
            self._say(device_id, Want(update.blob.digest, tuple(missing)))
        else:
            self._complete(device_id, update, at_ms)

    def _chunk(self, device_id: str, message_id: str, chunk: Chunk, at_ms: int) -> None:
        result = self._uploads.arrived(device_id, chunk)
        if isinstance(result, str):
            self._refuse(device_id, message_id, f"unusable: {result}")
        elif result is not None:
            late = admit(result, device_id, self._state, self._run_id)
            if late is None:
                self._complete(device_id, result, at_ms)
            else:
                self._conclude(device_id, result, late, at_ms)

    def _complete(self, device_id: str, update: Update, at_ms: int) -> None:
        """All blocks of an update are here: check it, and say so."""
        assert update.blob is not None
        content = self._uploads.finish(device_id, update)
        if content is None:
            # Damaged on the way: ask for all of it again.
            missing = self._uploads.expect(device_id, update)
            self._say(device_id, Want(update.blob.digest, tuple(missing)))
            return
        reason = content if isinstance(content, str) else None
        if isinstance(content, bytes):
            reason = defect(content, update, self._bundle.manifest.elements_count)
        verdict = Receipt(update.update_id, "accepted")
        if reason is not None:
            verdict = Receipt(update.update_id, "rejected", reason)
            self._store.blobs.discard(update.blob.digest)
        self._conclude(device_id, update, verdict, at_ms)

    def _conclude(self, device_id: str, update: Update, receipt: Receipt, at_ms: int) -> None:
        """Commit a verdict, then tell the device; accepted updates enter the round."""
        event: Event | None = None
        if update.run_id == self._run_id and receipt.verdict == "accepted":
            event = UpdateAccepted(update.round_id, device_id, update.update_id)
        elif update.run_id == self._run_id and receipt.verdict == "rejected":
            event = UpdateRejected(update.round_id, device_id)
        if receipt.verdict != "accepted":
            _log.warning(
                "%s: update of round %d %s: %s",
                device_id,
                update.round_id,
                receipt.verdict,
                receipt.reason,
            )
        commands: tuple[Command, ...] = ()
        with self._store.transaction():
            self._store.save_verdict(update, device_id, receipt, at_ms)
            if event is not None:
                commands = self._commit(event, at_ms)
        self._say(device_id, receipt)
        self._perform(commands, at_ms)

    # ---- rounds ----

    def job_done(self, result: Aggregated, at_ms: int) -> None:
        """The aggregate of a round is on disk."""
        if self._state.phase != "aggregating" or result.round_id != self._state.round_id:
            return
        with self._store.transaction():
            version = self._state.model_version + 1
            self._store.add_model(version, result.model, result.round_id, at_ms)
            if result.metrics is not None:
                self._store.set_metrics(version, result.metrics, held_out=False)
            commands = self._commit(RoundAggregated(result.round_id), at_ms)
        self._log_model(version)
        self._publisher.offer([*self._bundle_blobs, self._model().ref])
        self._perform(commands, at_ms)

    def _apply(self, event: Event, at_ms: int) -> None:
        with self._store.transaction():
            commands = self._commit(event, at_ms)
        self._perform(commands, at_ms)

    def _commit(self, event: Event, at_ms: int) -> tuple[Command, ...]:
        """One transition inside a transaction: log, state, and the records that follow."""
        before = self._state
        commands, after = step(before, event, at_ms, self._config.rounds)
        if after == before and not commands:
            return ()
        self._store.save_event(event, after, at_ms)
        if isinstance(event, RoundAggregated):
            self._store.close_round(event.round_id, at_ms, None)
        for command in commands:
            if isinstance(command, AbandonRound):
                self._store.close_round(command.round_id, at_ms, command)
            elif isinstance(command, AggregateRound) and before.phase == "collecting":
                self._record_held_out(command, before.model_version)
        if after.round_id != before.round_id:
            self._store.open_round(after, at_ms)
        self._state = after
        return commands

    def _record_held_out(self, command: AggregateRound, version: int) -> None:
        """Each update says how the model it started from does on its device's held-out data."""
        parts = [u.held_out for u in self._store.updates(command.round_id) if u.held_out]
        corrects = [part.correct for part in parts if part.correct is not None]
        total = Metrics(
            sum(part.examples for part in parts),
            sum(part.loss_sum for part in parts),
            sum(corrects) if len(corrects) == len(parts) else None,
        )
        self._store.set_metrics(version, total, held_out=True)

    def _perform(self, commands: tuple[Command, ...], at_ms: int) -> None:
        """Effects of committed commands; every one may be repeated."""
        for command in commands:
            match command:
                case InviteDevices(device_ids):
                    _log.info("round %d: inviting %s", self._state.round_id, ", ".join(device_ids))
                    self._uploads.begin_round(self._state.round_id)
                    self._invite(device_ids, at_ms)
                case AggregateRound(round_id, kind):
                    self._aggregate(round_id, kind == "train", at_ms)
                case AbandonRound(round_id, reason):
                    _log.warning("round %d is abandoned: %s", round_id, reason)
                case FinishFederation() as finish:
                    self.finished = finish
        if commands or self._connected:
            self._publish_status(at_ms)

    def _aggregate(self, round_id: int, train: bool, at_ms: int) -> None:
        if not train:
            self._apply(RoundAggregated(round_id), at_ms)
            return
        self._start_job(
            AggregateJob(
                round_id,
                self._model().ref,
                tuple(self._store.updates(round_id)),
                self._bundle.manifest.elements_count,
            )
        )

    def _invite(self, device_ids: tuple[str, ...], at_ms: int) -> None:
        state, model = self._state, self._model()
        left_ms = max(0, (state.deadline_at_ms or at_ms) - at_ms)
        task = Task(
            run_id=self._run_id,
            round_id=state.round_id,
            kind=state.kind,
            bundle=self._bundle_ref,
            model=model.ref,
            model_version=model.version,
            chunk_blocks=self._publisher.chunk_blocks,
            plan=self._plan(state.round_id),
            encoding=self._config.encoding,
            deadline_ms=left_ms,
        )
        for device_id in device_ids:
            self._say(device_id, task)

    def _plan(self, round_id: int) -> Plan:
        """The round's plan: each round shuffles anew, from the configured seeds."""
        seed = (self._config.plan.seed + self._config.rounds.seed + round_id) % 2**53
        return msgspec.structs.replace(self._config.plan, seed=seed)

    # ---- speaking ----

    def _say(self, device_id: str, message: ToDevice) -> None:
        payload = encode(message, f"{self._session}.{next(self._message_ids)}")
        self._link.publish(self._topics.down(device_id), payload)

    def goodbye(self) -> int | None:
        """Tell everybody that the coordinator goes away; the token of that message."""
        return self._announce(self._topics.beacon, Beacon(online=False, session=self._session))

    def _announce(self, topic: str, message: Beacon | Status) -> int | None:
        payload = encode(message, f"{self._session}.{next(self._message_ids)}")
        return self._link.publish(topic, payload, retain=True)

    def _publish_status(self, at_ms: int) -> None:
        state, model = self._state, self._model()
        left_ms = 0 if state.deadline_at_ms is None else max(0, state.deadline_at_ms - at_ms)
        status = Status(
            phase=state.phase,
            round_id=state.round_id,
            rounds_count=self._config.rounds.count,
            model_version=state.model_version,
            cohort=tuple(member.device_id for member in state.cohort),
            accepted=tuple(member.device_id for member in state.accepted()),
            deadline_ms=left_ms,
            reason=state.reason[:1000],
            loss=model.loss if model.loss is not None else model.held_out_loss,
            accuracy=model.accuracy if model.accuracy is not None else model.held_out_accuracy,
        )
        self._announce(self._topics.status, status)

    def _log_model(self, version: int) -> None:
        model = self._store.model(version)
        assert model is not None
        if model.accuracy is not None:
            _log.info("model %d: accuracy %.4f, loss %.4f", version, model.accuracy, model.loss)
        elif model.loss is not None:
            _log.info("model %d: loss %.4f", version, model.loss)
        else:
            _log.info("model %d is made", version)


def begin_run(store: Store, bundle: Bundle, federation: str, initial: BlobRef, at_ms: int) -> None:
    """First start of a store: bind it to a bundle and record the initial model as version 0."""
    if store.fact("bundle") is not None:
        return
    with store.transaction():
        store.set_fact("run_id", uuid.uuid4().hex[:16])
        store.set_fact("bundle", bundle.digest)
        store.set_fact("federation", federation)
        store.add_model(0, initial, 0, at_ms)
