"""The coordinator without threads, clock or sockets: events in, calls on its ports out.

Ports are the transport, the store and `start_job` (which runs an `AggregateJob` anywhere and feeds
its result back through `job_done`). The runner drives it in real time, tests in virtual time. One
incoming event is one transaction; what it causes outside happens after the commit, and can be
derived again from the committed state.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from coordinator.aggregate_job import AggregateJob, JobFailed, JobResult
from coordinator.config import CoordinatorConfig
from coordinator.fleet import TWIN_REFUSED, Fleet, twin_notice
from coordinator.intake import Intake
from coordinator.invitations import Invitations
from coordinator.ledger import Ledger
from coordinator.publishing import Publisher
from coordinator.revocations import Revocations
from coordinator.round_machine import (
    AbandonRound,
    AggregateRound,
    AggregationFailed,
    Command,
    DeviceArrived,
    DeviceLeft,
    Event,
    FinishFederation,
    InviteDevices,
    Restarted,
    RoundAggregated,
    RoundState,
    TaskDeclined,
    TimeReached,
)
from coordinator.round_state import few
from coordinator.store import Store
from coordinator.supply import Supply
from coordinator.vetting import quarantine_notice
from coordinator.voice import UNJUDGED, Voice, doing
from fedtide.bundle import Bundle
from fedtide.failpoints import reach
from fedtide.limits import DEVICES_MAX
from fedtide.measures import quality
from fedtide.members import Members
from fedtide.messages import (
    Chunk,
    Decline,
    Hello,
    Malformed,
    Offer,
    Presence,
    Want,
    decode,
)
from fedtide.objections import NO_MEMBER, UNNUMBERED
from fedtide.topics import Topics
from fedtide.transport import (
    Connected,
    Delivered,
    Disconnected,
    LinkEvent,
    Received,
    Transport,
    Unsealed,
)

_log = logging.getLogger(__name__)

LATELY_MS = 86_400_000
"""A device whose newest arrival was before is not expected back with the others."""


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
        members: Members | None = None,
    ) -> None:
        self._config = config
        self._bundle = bundle
        self._store = store
        self._link = link
        self._start_job = start_job
        self._topics = Topics(config.federation)
        self._voice = Voice(link, self._topics, session)
        self._ledger = Ledger(store, config)
        self._publisher = Publisher(store.blobs, link, self._topics)
        self._supply = Supply(bundle, store, self._ledger, self._publisher, config.rounds)
        shared = bundle.manifest.shared_count
        self._intake = Intake(config, shared, store, self._ledger, self._voice)
        self._fleet = Fleet(session, config.hello_ms, DEVICES_MAX)
        self._invitations = Invitations(
            self._ledger, self._supply, self._publisher, self._fleet, self._voice
        )
        self._revocations = Revocations(members)
        self._connected, self._told = False, ""
        self._published: RoundState | None = None
        self.finished: FinishFederation | None = None

    # ---- start ----

    def start(self, at_ms: int) -> None:
        """Go on where the last life of this store ended."""
        self._supply.offer()
        # Those that stayed all the time said hello long ago; they are online as of the last commit.
        lately = self._store.devices_since(at_ms - LATELY_MS)
        self._fleet.expect(max(lately, len(self._state.online)))
        self._apply(Restarted(), at_ms)
        if self.finished is not None:
            more = f"raise rounds.count above {self._config.rounds.count} to go on from here"
            _log.info("this federation was finished before: %s", more)
        reach("coordinator: resumed")

    @property
    def _state(self) -> RoundState:
        return self._ledger.state

    # ---- time ----

    def next_deadline_at_ms(self) -> int | None:
        """When to call `time_reached`, whatever else happens."""
        state, write_at_ms = self._state, self._ledger.write_at_ms
        others = (self._fleet.next_deadline_at_ms(), self._revocations.deadline_at_ms(state))
        deadlines = (state.deadline_at_ms, write_at_ms, *others)
        return min((at_ms for at_ms in deadlines if at_ms is not None), default=None)

    def time_reached(self, at_ms: int) -> None:
        """Let time pass: deadlines of the round, and devices that fell silent."""
        self._voice.time_reached(at_ms)
        gone: list[Event] = [DeviceLeft(device_id) for device_id in self._fleet.silent(at_ms)]
        for event in gone + self._revocations.events(self._state, at_ms):
            self._apply(event, at_ms)
        if self._state.deadline_at_ms is not None and at_ms >= self._state.deadline_at_ms:
            self._apply(TimeReached(), at_ms)
        self._ledger.write_presence(at_ms)

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
                self._publisher.connected(packet_bytes_max)
                self._supply.withdraw_past()
                self._voice.beacon(online=True)
                self._publish_status(at_ms)
            case Disconnected(reason):
                _log.warning("%s; trying again", reason)
                self._connected = False
                self._publisher.link_lost()
            case Delivered(token, refused, waited_ms):
                if refused is not None:
                    _log.warning("the broker refuses a message: %s; check its ACL", refused)
                self._publisher.delivered(token, waited_ms)
            case Received(topic, payload, retained):
                # What a device says is never retained: a copy that lies at the broker says nothing.
                if not (retained and topic.startswith(self._topics.up(""))):
                    self._received(topic, payload, at_ms)
            case Unsealed():
                self._unsealed(event, at_ms)
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
            gone = isinstance(envelope.body, Presence) and not envelope.body.online
            if gone and self._fleet.left(device_id, at_ms):
                self._apply(DeviceLeft(device_id), at_ms)
            return
        self._fleet.heard(device_id, at_ms)
        match envelope.body:
            case Hello() as hello:
                self._hello(device_id, hello, at_ms)
            case Offer(update):
                self._perform(self._intake.offer(device_id, update, at_ms), at_ms)
            case Chunk() as chunk:
                self._chunk(device_id, envelope.id, chunk, at_ms)
            case Want() as want:
                if not self._publisher.repeat(want, at_ms):
                    self._refuse(device_id, envelope.id, f"not on offer: blob {want.digest[:12]}")
            case Decline() as decline:
                self._decline(device_id, decline, at_ms)
            case other:
                kind = type(other).__name__.lower()
                self._refuse(device_id, envelope.id, f"a device does not say {kind!r}")

    def _refuse(self, device_id: str, regarding: str, reason: str) -> None:
        """A bad message is data: counted (by what stands before the colon), logged, answered."""
        _log.warning("message from %s refused: %s", device_id, reason)
        self._store.count(f"refused: {reason.split(':', maxsplit=1)[0][:60]}")
        self._voice.problem(device_id, regarding, reason)

    def _unsealed(self, event: Unsealed, at_ms: int) -> None:
        """Nobody said it who may speak there. Whoever is a member no more is gone, and no longer
        told anything: the link sees to that."""
        device_id = self._topics.device_of(event.topic)
        if device_id is None:
            return
        if event.reason == UNNUMBERED:
            self._voice.problem(device_id, event.regarding, event.reason)
            return
        self._refuse(device_id, event.regarding, event.reason)
        if event.reason == NO_MEMBER and self._fleet.left(device_id, at_ms):
            self._apply(DeviceLeft(device_id), at_ms)

    # ---- what devices say ----

    def _hello(self, device_id: str, hello: Hello, at_ms: int) -> None:
        arrival = self._fleet.hello(device_id, hello.installation, at_ms)
        if arrival == "full":
            self._refuse(device_id, "", f"too many devices: {DEVICES_MAX} are online")
            return
        if arrival == "twin":
            notice = twin_notice(device_id, hello.installation)
        else:
            standing = self._store.standing(device_id)
            notice = quarantine_notice(standing, at_ms, self._config.vetting)
        self._invitations.welcome(device_id, notice)
        if arrival == "twin":
            _log.warning("%s: %s", device_id, notice)
            self._store.count(TWIN_REFUSED)
            return
        if arrival == "new":
            self._ledger.heard(device_id, hello, at_ms)
            runtimes = "/".join(hello.runtimes)
            _log.info("%s is online: fedtide %s, %s", device_id, hello.version, runtimes)
        if self._state.phase == "collecting" and self._state.task_of(device_id) is not None:
            self._invitations.invite((device_id,), at_ms)
        online = self._state.is_online(device_id)
        if hello.unready and (online or arrival == "new"):
            _log.info("%s takes no tasks now: %s", device_id, hello.unready)
        if online and hello.unready:
            self._apply(DeviceLeft(device_id), at_ms)
        elif not (online or notice or hello.unready):
            self._apply(DeviceArrived(device_id), at_ms)

    def _decline(self, device_id: str, decline: Decline, at_ms: int) -> None:
        ours = decline.run_id == self._ledger.run_id
        label = self._label(decline.round_id) if ours else "a round of another run"
        _log.warning("%s declines %s: %s", device_id, label, decline.reason)
        if ours:
            self._apply(TaskDeclined(decline.round_id, device_id, decline.reason[:300]), at_ms)

    def _chunk(self, device_id: str, message_id: str, chunk: Chunk, at_ms: int) -> None:
        result = self._intake.chunk(device_id, chunk, at_ms)
        if isinstance(result, str):
            self._refuse(device_id, message_id, f"unusable: {result}")
        else:
            self._perform(result, at_ms)

    # ---- rounds ----

    def job_done(self, result: JobResult, at_ms: int) -> None:
        """An aggregate is on disk, or cannot be made."""
        if isinstance(result, JobFailed):
            self._apply(AggregationFailed(result.round_id, result.reason), at_ms)
            return
        commands = self._ledger.add_model(result, at_ms)
        model = self._ledger.newest_model()
        if model.ref != result.model:
            return
        reach("coordinator: model committed")
        _log.info("model %d%s", model.version, quality(model.metrics))
        self._supply.offer()
        reach("coordinator: model offered")
        self._supply.discard_old(self._config.history.rounds_kept)
        self._perform(commands, at_ms)

    def _apply(self, event: Event, at_ms: int) -> None:
        self._perform(self._ledger.apply(event, at_ms), at_ms)

    def _perform(self, commands: tuple[Command, ...], at_ms: int) -> None:
        """Effects of committed commands; every one may be repeated."""
        for command in commands:
            match command:
                case InviteDevices(device_ids):
                    reach("coordinator: round opened")
                    verb = "inviting" if self._state.kind == "train" else "asking"
                    label = self._label(self._state.round_id)
                    _log.info("%s: %s %s", label, verb, few(device_ids))
                    self._intake.begin_round(self._state.round_id)
                    self._invitations.invite(device_ids, at_ms)
                case AggregateRound(round_id, kind, _):
                    reach("coordinator: round closed")
                    self._aggregate(round_id, kind == "train", at_ms)
                case AbandonRound(round_id, reason):
                    reach("coordinator: round abandoned")
                    _log.warning("%s is abandoned: %s", self._label(round_id), reason)
                case FinishFederation() as finish:
                    reach("coordinator: finished")
                    self.finished = finish
        if self._connected and self._state is not self._published:
            self._publish_status(at_ms)

    def _label(self, round_id: int) -> str:
        """What people call it: after the last round there is one more in which nobody trains."""
        if round_id == self._state.round_id and self._state.kind == "evaluate":
            return f"final evaluation of model {self._state.model_version}"
        return f"round {round_id}"

    def _aggregate(self, round_id: int, train: bool, at_ms: int) -> None:
        judged = self._ledger.newest_model()
        if judged.held_out is not None:
            _log.info(
                "model %d on %d held-out examples of the devices%s",
                judged.version,
                judged.held_out.examples,
                quality(judged.held_out),
            )
        if not train:
            if not judged.judged.examples:
                _log.warning(UNJUDGED)
            self._apply(RoundAggregated(round_id), at_ms)
            return
        self._start_job(self._ledger.job(self._bundle.manifest.shared_count))

    # ---- speaking ----

    def goodbye(self) -> int | None:
        """Tell everybody that the coordinator goes away; the token of that message."""
        return self._voice.beacon(online=False)

    def doing(self) -> str:
        """For people: the round, and what is being waited for."""
        return doing(self._state, self._config.rounds.count, connected=self._connected)

    def _publish_status(self, at_ms: int) -> None:
        state, model = self._state, self._ledger.newest_model()
        self._published = state
        if state.phase in ("waiting", "backing_off") and state.reason != self._told:
            _log.info("waiting: %s", state.reason)
        self._told = state.reason
        count, heard_at_ms = self._config.rounds.count, self._fleet.heard_at_ms
        quarantined = self._store.quarantined(at_ms)
        self._voice.status(state, model, count, at_ms, quarantined, heard_at_ms)
