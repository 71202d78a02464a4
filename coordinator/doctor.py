"""`fedtide doctor coordinator.toml`: the coordinator's host, its broker, and why a round waits.

It disturbs nobody: the store is read only, the link has a name of its own, and what it says on the
federation's topics is what a running coordinator ignores.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from coordinator.config import CoordinatorConfig
from coordinator.database import require_own
from coordinator.diagnosis import DeviceFacts, Facts, confirmed, diagnose, seem_idle
from coordinator.inquest import Known, damage, read_store, upload_quiet_ms
from coordinator.linking import ROLE
from coordinator.plans import check_against
from coordinator.round_state import RoundState
from coordinator.voice import UNJUDGED
from fedtide.access import Access, entrance
from fedtide.broker_check import Probe, Trip, check_access, forbidden
from fedtide.bundle import open_bundle_dir, sha256_hex
from fedtide.checkup import Finding, examine, failed, ok, problem, warning
from fedtide.config import load_config
from fedtide.dataset import load_dataset
from fedtide.errors import FedtideError
from fedtide.files import open_regular
from fedtide.host_check import check_clock, check_folder, is_locked
from fedtide.identity_check import check_identity, check_refused
from fedtide.inquiry import Inquiry
from fedtide.members import Members
from fedtide.messages import Problem, encode
from fedtide.ownership import become_owner_of
from fedtide.picture import Picture
from fedtide.topics import Topics

LISTEN_S = 0.5
"""For what is retained: it comes at once."""
AGAIN_S = 1.5
"""Between two looks at what does not fit together."""
ROUNDS_OF_ROOM = 10


def check(path: Path, seconds: float) -> Iterator[Finding]:
    """Everything; takes at most `seconds`, and little more."""
    try:
        config = load_config(path, CoordinatorConfig)
        become_owner_of(config.state_dir)
        case = _Case(config, time.monotonic() + 0.9 * seconds)
    except FedtideError as exc:
        yield failed(exc)
        return
    yield ok(f"{str(path)!r} is a coordinator's configuration")
    groups = [("this machine", case.host), ("the broker", case.broker)]
    yield from examine(groups, seconds)
    if not case.unreadable:
        facts = case.facts()
        suspects = seem_idle(facts)
        if suspects and case.look_again():
            facts = confirmed(case.facts(), suspects)
        yield from diagnose(facts)


class _Case:
    """What the checks find out for the diagnosis."""

    def __init__(self, config: CoordinatorConfig, until_s: float) -> None:
        self._config = config
        self._until_s = until_s
        self._known: Known | None = None
        self._way = entrance(
            Access(config.federation, config.broker, config.identity, config.members)
        )
        self._picture = Picture(config.federation, self._way.verified)
        self._topics = Topics(config.federation)
        self._reached = False
        self.unreadable = False

    # ---- this machine ----

    def host(self) -> Iterator[Finding]:
        """Bundle, state, disk, clock."""
        config = self._config
        yield from check_clock(config.state_dir)
        if config.identity is not None:
            yield from check_identity(config.identity, self._topics)
        model_bytes, bundle_digest = 0, ""
        try:
            bundle = open_bundle_dir(config.bundle)
            for name in bundle.manifest.files:
                bundle.read(name)
        except FedtideError as exc:
            yield failed(exc)
        else:
            model_bytes, bundle_digest = bundle.manifest.shared_bytes, bundle.digest
            yield ok(f"bundle {str(config.bundle)!r} is intact, model of {model_bytes:,} bytes")
            try:
                check_against(config, bundle.manifest)
                if config.evaluation.data is not None:
                    tests = load_dataset(config.evaluation.data, bundle.manifest).training
                    yield ok(f"{len(tests.x):,} examples to judge models on, which fit the bundle")
            except FedtideError as exc:
                yield failed(exc)
        rounds = config.rounds
        size = rounds.buffer_size if rounds.mode == "buffered" else rounds.cohort_size
        size = size or rounds.quorum
        each = model_bytes // (2 if config.encoding == "f16" else 1)
        needed = ROUNDS_OF_ROOM * (model_bytes + size * each)
        what = f"{ROUNDS_OF_ROOM} rounds of {size} updates"
        yield from check_folder(config.state_dir, needed, what)
        yield from self._state(bundle_digest)

    def _state(self, bundle_digest: str) -> Iterator[Finding]:
        folder = self._config.state_dir
        if not (folder / "coordinator.db").exists():
            try:
                require_own(folder)
            except FedtideError as exc:
                yield failed(exc)
                return
            if (folder / "blobs").is_dir() and any((folder / "blobs").iterdir()):
                yield problem(
                    f"the database of {str(folder)!r} is gone, its models are there",
                    "restore the state folder from a backup, or give the federation a new one",
                )
                return
            yield ok("there is no state yet: the first start makes it")
            return
        try:
            known = self._known = read_store(folder)
            damaged = damage(folder)
        except FedtideError as exc:
            self.unreadable = True
            yield failed(exc)
            return
        if damaged:
            yield problem(
                f"the database in {str(folder)!r} is damaged: {damaged}",
                "stop the coordinator and restore the state folder from a backup",
            )
        for what, theirs, ours in (
            ("bundle", known.bundle[:12], bundle_digest[:12]),
            ("federation", known.federation, self._config.federation),
        ):
            if theirs and ours and theirs != ours:
                yield problem(
                    f"the state in {str(folder)!r} belongs to {what} {theirs}, not to {ours}",
                    f"give this {what} a state_dir of its own",
                )
        yield from self._newest_model(known, damaged)
        if known.state.rounds_done and not known.judged and self._config.evaluation.data is None:
            yield warning(UNJUDGED, "set one of the two; both are for models to come")

    def _newest_model(self, known: Known, damaged: str) -> Iterator[Finding]:
        if not known.model_digest:
            return
        try:
            with open_regular(self._config.state_dir / "blobs" / known.model_digest) as file:
                content = file.read()
        except OSError as exc:
            content, damaged = b"", str(exc.strerror)
        if sha256_hex(content) != known.model_digest:
            yield problem(
                f"model {known.state.model_version} is gone or damaged"
                + (f": {damaged}" if damaged else ""),
                "restore the state folder from a backup: devices cannot fetch it",
            )
        elif not damaged:
            yield ok(f"the state is intact, model {known.state.model_version} is its newest")

    # ---- the broker ----

    def broker(self) -> Iterator[Finding]:
        """Reach it, enter, and try every permission that a coordinator needs."""
        for finding in check_access(self._way.broker):
            yield finding
            if finding.level == "problem":
                return
        with Inquiry(self._way.broker, "doctor", sealer=self._way.sealer) as inquiry:
            probe = Probe(inquiry, self._picture, self._until_s)
            for finding in probe.enter():
                yield finding
                if finding.level == "problem":
                    return
            probe.hear(LISTEN_S)
            self._reached = True
            yield from self._permissions(probe)
            yield from check_refused(self._picture.snapshot(0))

    def _permissions(self, probe: Probe) -> Iterator[Finding]:
        topics, name, found = self._topics, probe.device_id, 0
        harmless = encode(Problem("doctor", "a probe of fedtide doctor"), name)
        # Of no upload, and so ignored by a coordinator that hears it.
        stray = probe.chunk()
        trips = [
            (topics.up(name), "up", probe.trip(topics.up(name), probe.chunk(1)), True),
            (topics.presence(name), "presence", probe.trip(topics.presence(name), b""), True),
            (topics.down(name), "down", probe.trip(topics.down(name), harmless), False),
        ]
        for topic, kind, trip, must_hear in trips:
            for finding in self._judged(topic, kind, trip, probe, must_hear=must_hear):
                found += 1
                yield finding
        retained = probe.retained_trip(topics.chunk(sha256_hex(name.encode()), 0), harmless)
        if retained.refused:
            yield forbidden(self._user, "publish on", f"{topics.root}/blob/#", retained.refused)
        elif retained.arrived is None:
            yield problem(
                "a retained message was not there for whoever came later",
                "let the broker retain messages (Mosquitto: retain_available true), and let this "
                f"user read and write {topics.root}/blob/#",
            )
        elif not found:
            yield ok("messages arrive on every topic that a coordinator needs; some are retained")
        large = probe.trip(topics.down(name), stray)
        if not large.confirmed and not large.refused:
            why = large.lost or "it was not confirmed in time"
            yield problem(
                f"a message of {len(stray):,} bytes does not get through: {why}",
                "raise the broker's packet limit (Mosquitto: max_packet_size, message_size_limit)",
            )
        elif large.confirmed and large.arrived is None and trips[2][2].arrived is not None:
            yield problem(
                f"the broker confirms a message of {len(stray):,} bytes and drops it",
                "raise its message size limit (Mosquitto: message_size_limit 0, max_packet_size)",
            )
        elif large.arrived is not None:
            yield ok(f"a message of {len(stray):,} bytes arrives")

    @property
    def _user(self) -> str | None:
        return ROLE if self._config.identity is not None else self._config.broker.username

    def _judged(
        self, topic: str, kind: str, trip: Trip, probe: Probe, *, must_hear: bool
    ) -> Iterator[Finding]:
        """What is wrong with a topic. A coordinator reads `up` and `presence`, writes the rest."""
        pattern = f"{self._topics.root}/{kind}/+"
        if trip.arrived is not None:
            return
        if trip.lost:
            yield problem(f"the link was lost while {kind!r} was tried: {trip.lost}", "ask again")
        elif trip.refused and must_hear:
            yield warning(
                f"whether messages on {pattern} arrive could not be tried: this user may not "
                "publish there (and need not)",
                "look below whether devices are heard",
            )
        elif trip.refused:
            yield forbidden(self._user, "publish on", pattern, trip.refused)
        elif not trip.confirmed:
            yield problem(f"the broker does not confirm a message on {topic}", "look at its log")
        elif must_hear:
            yield forbidden(self._user, "read", pattern, "messages there do not arrive")
        elif not probe.mqtt_5:
            yield warning(
                f"whether this user may publish on {pattern} could not be found out",
                "brokers tell over MQTT 5 only",
            )

    # ---- the diagnosis ----

    def _members(self) -> Members | None:
        try:
            return Members.of(self._config.members)
        except FedtideError:  # who enters the broker is told of it
            return None

    def look_again(self) -> bool:
        """Presences and then the database, a moment later; False: that could not be done."""
        left_s = self._until_s - time.monotonic()
        if left_s <= AGAIN_S:
            return False
        try:
            with Inquiry(self._way.broker, "doctor", sealer=self._way.sealer) as inquiry:
                probe = Probe(inquiry, self._picture, self._until_s)
                if any(finding.level == "problem" for finding in probe.enter()):
                    return False
                probe.hear(AGAIN_S)
            self._known = read_store(self._config.state_dir)
        except FedtideError:
            return False
        return True

    def facts(self) -> Facts:
        """What is known by now."""
        known, picture = self._known, self._picture
        now_ms = time.time_ns() // 1_000_000
        state = RoundState() if known is None else known.state
        snapshot = picture.snapshot(time.monotonic_ns() // 1_000_000)
        left = None if state.deadline_at_ms is None else max(0, state.deadline_at_ms - now_ms)
        return Facts(
            state=state,
            rounds=self._config.rounds,
            running=is_locked(self._config.state_dir),
            beacon=snapshot.coordinator,
            reachable=self._reached,
            deadline_ms=left,
            devices=_devices(state, known, picture, now_ms, self._members()),
            answered_ms=() if known is None else known.answered_ms,
            late_count=0 if known is None else known.late_count,
            declines=() if known is None else tuple(known.declines.values()),
            twins_refused=0 if known is None else known.twins_refused,
            upload_quiet_ms=upload_quiet_ms(self._config.state_dir),
        )


def _devices(
    state: RoundState,
    known: Known | None,
    picture: Picture,
    now_ms: int,
    members: Members | None,
) -> tuple[DeviceFacts, ...]:
    answers = {member.device_id: member for member in state.cohort}
    heard = {} if known is None else known.heard_at_ms
    standings = {} if known is None else known.standings
    devices = []
    for name in sorted({*answers, *heard, *standings, *picture.device_ids()}):
        presence = picture.presence(name)
        until_ms, because = standings.get(name, (0, ""))
        verdict = "" if known is None else known.verdicts.get(name, ("", ""))[1]
        answer = answers[name].answer if name in answers else ""
        if answer == "declined" and known is not None:
            verdict = known.declines.get(name, "")
        devices.append(
            DeviceFacts(
                device_id=name,
                heard_ms=max(0, now_ms - heard[name]) if name in heard else None,
                phase="" if presence is None else presence.phase,
                doing="" if presence is None else presence.reason,
                answer=answer,
                task_round=answers[name].round_id if name in answers else 0,
                answer_reason=verdict,
                quarantined_ms=max(0, until_ms - now_ms),
                quarantined_because=because,
                revoked=members is not None and members.has_revoked(name),
            )
        )
    return tuple(devices)
