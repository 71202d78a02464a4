"""`fedtide doctor client.toml`: this device, its data, its broker, and who answers there.

It disturbs nobody: the state is read only, and the coordinator is asked for a blob that it cannot
have, which it answers and which makes no device known to it. The link has a name of its own; where
the broker gives a device one connection only and its client has it, there is no link.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from edge_client.condition_check import check_conditions
from edge_client.config import ClientConfig
from edge_client.data import FIRST_ROWS, NoExamplesError, Problems, open_source
from edge_client.durable import Durable
from edge_client.holdings import stored_bundle
from edge_client.linking import with_name
from edge_client.saved_session import STATE_NAME, SavedSession
from edge_client.trainers.opening import available_runtimes
from fedtide.access import CLIENT_TELLS, Access, Entrance, entrance, is_taken
from fedtide.broker_check import Probe, check_access, forbidden
from fedtide.checkup import Finding, examine, failed, ok, problem, warning
from fedtide.config import load_config
from fedtide.errors import DamagedError, FedtideError
from fedtide.generations import Generations
from fedtide.host_check import check_clock, check_folder, is_locked
from fedtide.identity_check import check_identity, check_refused
from fedtide.inquiry import Inquiry
from fedtide.messages import Envelope, Problem, Want, decode, encode
from fedtide.ownership import become_owner_of
from fedtide.picture import Picture
from fedtide.picture_text import duration
from fedtide.topics import Topics

LISTEN_S = 0.5
UPDATE_OLD_S = 86_400
MODEL_UNKNOWN_BYTES = 50_000_000
"""Room that is asked for while no bundle is here to tell how much it takes."""


def check(path: Path, seconds: float) -> Iterator[Finding]:
    """Everything; takes at most `seconds`, and little more."""
    try:
        given = load_config(path, ClientConfig)
        become_owner_of(given.state_dir)
        config = with_name(given)
    except FedtideError as exc:
        yield failed(exc)
        return
    yield ok(f"{str(path)!r} is the configuration of device {config.device!r}")
    until_s = time.monotonic() + 0.9 * seconds
    groups = [
        ("this device", lambda: _device(config)),
        ("its conditions", lambda: check_conditions(config.conditions, config.state_dir)),
        ("the data", lambda: _data(config)),
        ("the broker", lambda: _broker(config, _entrance(given), until_s)),
    ]
    yield from examine(groups, seconds)


# ---- this device ----


def _device(config: ClientConfig) -> Iterator[Finding]:
    yield from check_clock(config.state_dir)
    if config.identity is not None:
        yield from check_identity(config.identity, Topics(config.federation))
    running = is_locked(config.state_dir)
    yield ok("its client is running" if running else "its client is not running now")
    bundle = stored_bundle(config.state_dir)
    needed = MODEL_UNKNOWN_BYTES if bundle is None else 4 * bundle.manifest.shared_bytes
    yield from check_folder(config.state_dir, needed, "a bundle, two models and an update")
    yield from _runtime(config)
    if config.state_dir.is_dir():
        try:
            Generations(config.state_dir / STATE_NAME).load()
        except DamagedError as exc:
            yield warning(
                str(exc.args[0]),
                "the client starts afresh by itself; updates without a receipt are lost. "
                "If it happens again, replace the disk (or SD card)",
            )
            return
        saved = SavedSession(config.state_dir, config.federation, config.device)
        yield from _outbox(config, saved.load())


def _runtime(config: ClientConfig) -> Iterator[Finding]:
    runtimes, wanted = available_runtimes(), config.training.runtime
    if not runtimes or (wanted != "auto" and wanted not in runtimes):
        name = "onnxruntime" if wanted == "auto" else f"runtime {wanted!r}"
        yield problem(f"{name} is not installed here", "pip install 'fedtide[client]'")
        return
    try:
        import onnxruntime
    except Exception as exc:  # noqa: BLE001 - a broken installation raises what it likes
        yield problem(f"onnxruntime cannot be imported: {exc}", "install it again")
        return
    yield ok(f"onnxruntime {onnxruntime.__version__} for {', '.join(runtimes)}")


def _outbox(config: ClientConfig, durable: Durable) -> Iterator[Finding]:
    if durable.task is not None:
        yield ok(f"it is at work on round {durable.task.round_id}")
    if durable.declined_because:
        yield warning(
            f"it declined round {durable.answered_round}: {durable.declined_because}",
            "its log says more; it is asked again in the next round",
        )
    if not durable.outbox:
        yield ok("no update waits for a receipt")
    for update in durable.outbox:
        age_s = 0.0
        if update.blob is not None:
            path = config.state_dir / "blobs" / update.blob.digest
            if not path.exists():
                yield problem(f"the update of round {update.round_id} is gone from the disk", "")
                continue
            age_s = max(0.0, time.time() - path.stat().st_mtime)
        said = (
            f"the update of round {update.round_id} waits for a receipt "
            f"since {duration(round(age_s * 1000))}"
        )
        if age_s > UPDATE_OLD_S:
            yield warning(said, "it goes out when client, broker and coordinator are up: see below")
        else:
            yield ok(said)


def _data(config: ClientConfig) -> Iterator[Finding]:
    source, bundle = open_source(config.data), stored_bundle(config.state_dir)
    source.stamp()
    if bundle is None:
        try:
            seen = source.describe(Problems(), FIRST_ROWS)
        except NoExamplesError as exc:
            yield warning(
                str(exc.args[0]), "nothing, if they are still to come: it is looked again"
            )
            return
        notes = "".join(f"; {seen[name]}" for name in ("partly", "header") if name in seen)
        yield ok(f"the data can be read{notes}; whether they fit is known when a bundle is here")
        return
    data = source.load(bundle.manifest, Problems()).dataset
    held_out = 0 if data.held_out is None else len(data.held_out.x)
    yield ok(
        f"{len(data.training.x):,} examples to train on and {held_out:,} held out, "
        f"which fit bundle {bundle.manifest.name!r}"
    )


# ---- the broker ----


def _entrance(given: ClientConfig) -> Entrance:
    return entrance(Access(given.federation, given.broker, given.identity))


def _broker(config: ClientConfig, way: Entrance, until_s: float) -> Iterator[Finding]:
    for finding in check_access(config.broker):
        yield finding
        if finding.level == "problem":
            return
    if not is_taken(config.identity):
        for finding in _from_within(config, way, until_s):
            # A client that starts meanwhile ends our link: what we miss then says nothing.
            if finding.level != "ok" and is_taken(config.identity):
                break
            yield finding
        else:
            return
    yield ok(
        "what goes on at the broker is not tried: the client that runs here has this device's one "
        f"connection, and tells how it is ({CLIENT_TELLS})"
    )


def _from_within(config: ClientConfig, way: Entrance, until_s: float) -> Iterator[Finding]:
    """What only a link of this device's can tell."""
    picture = Picture(config.federation, way.verified)
    with Inquiry(config.broker, "doctor", sealer=way.sealer) as inquiry:
        probe = Probe(inquiry, picture, until_s)
        for finding in probe.enter():
            yield finding
            if finding.level == "problem":
                return
        probe.hear(LISTEN_S)
        yield from _coordinator(config, probe, picture)
        topics = Topics(config.federation)
        # Empty and not retained: it says nothing to anybody, and removes nothing.
        presence = probe.trip(topics.presence(config.device), b"", hear=False)
        if presence.refused:
            topic = topics.presence(config.device)
            yield forbidden(_user(config), "publish on", topic, presence.refused)
        # Of no upload, and so ignored by the coordinator.
        stray = probe.chunk()
        large = probe.trip(topics.up(config.device), stray, hear=False)
        if large.confirmed:
            yield ok(f"the broker takes a message of {len(stray):,} bytes")
        elif large.lost:
            yield problem(
                f"a message of {len(stray):,} bytes ends the connection: {large.lost}",
                "raise the broker's packet limit (Mosquitto: max_packet_size)",
            )
        elif not large.refused:
            yield warning(
                f"a message of {len(stray):,} bytes is not confirmed in time: the link is slow",
                "nothing, if this is known: transfers adapt and go on where they were",
            )
        yield from check_refused(picture.snapshot(0))


def _user(config: ClientConfig) -> str | None:
    """Who the broker takes us for."""
    return config.broker.username if config.identity is None else config.device


def _coordinator(config: ClientConfig, probe: Probe, picture: Picture) -> Iterator[Finding]:
    """Whether anybody of this federation is there, and answers this device."""
    topics, user = Topics(config.federation), _user(config)
    question = encode(Want(secrets.token_hex(32), ((0, 1),)), probe.device_id)
    trip = probe.trip(
        topics.up(config.device),
        question,
        at=topics.down(config.device),
        # What the running client is told comes there as well.
        is_it=lambda content: _answers(content, probe.device_id),
    )
    snapshot = picture.snapshot(time.monotonic_ns() // 1_000_000)
    others = ", ".join(snapshot.others)
    if trip.refused:
        yield forbidden(user, "publish on", topics.up(config.device), trip.refused)
    elif trip.arrived is not None:
        yield ok("the coordinator answers this device")
    elif snapshot.coordinator == "online":
        yield problem(
            "the coordinator is online but does not answer this device",
            f"let user {user!r} write {topics.up(config.device)} and read "
            f"{topics.down(config.device)} in the broker's access list; its name must be the "
            "device's. Else look at the coordinator: fedtide doctor coordinator.toml",
        )
    elif snapshot.coordinator == "offline":
        yield problem(
            f"the coordinator of {config.federation!r} is gone, or has finished; "
            "updates wait for it",
            "start it; the client goes on by itself",
        )
    elif others:
        near = get_close_matches(config.federation, snapshot.others, 1)
        guess = f"; did you mean {near[0]!r}?" if near else ""
        yield problem(
            f"no coordinator of a federation {config.federation!r} has ever been at this broker, "
            f"but of: {others}",
            f"correct `federation`{guess}",
        )
    else:
        yield problem(
            f"no coordinator of {config.federation!r} is known to this broker",
            "start it, correct `federation`, or let this user read "
            f"{topics.beacon} in the broker's access list",
        )


def _answers(payload: bytes, message_id: str) -> bool:
    envelope = decode(payload)
    body = envelope.body if isinstance(envelope, Envelope) else None
    return isinstance(body, Problem) and body.regarding == message_id
