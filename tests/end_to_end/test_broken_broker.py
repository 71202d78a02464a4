"""Who broke into the broker forges, replays, alters and moves messages, while real processes go on:
each is refused with a reason, and the books stay right."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest

from demo.local import wait_for
from fedtide.keys import new_key
from fedtide.messages import Chunk, Offer, Presence, Receipt, Status, Task, Welcome, encode
from fedtide.rollover import prepare_rollover
from fedtide.seal import seal
from tests import bundles
from tests.end_to_end.broken_broker import WAIT_S, Siege

FAR = 2**60
"""A number that goes beyond every mark."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(5)
    for name in ("alpha", "beta", "gamma", "copy"):
        x, y = rng.normal(size=(40, 8)).astype(np.float32), rng.integers(0, 3, 40)
        np.savez(folder / f"{name}.npz", x=x, y=y)
    return lambda name: folder / f"{name}.npz"


@pytest.fixture(scope="module")
def siege(tmp_path_factory: pytest.TempPathFactory, data: Callable[[str], Path]) -> Iterator[Siege]:
    folder = tmp_path_factory.mktemp("siege")
    with Siege(folder, bundles.build("tiny_mlp"), data) as siege:
        siege.wait_for_updates("alpha", "beta")
        yield siege


def test_a_forged_task(siege: Siege) -> None:
    topic = siege.topics.down("alpha")
    _, genuine = siege.intruder.newest(topic, Task)
    task = encode(msgspec.structs.replace(genuine, round_id=genuine.round_id + 1_000), "1")
    say = siege.intruder.say
    siege.refused_by("alpha", "seal missing", lambda: say(topic, task))
    forged = seal(topic, task, new_key(), FAR)
    siege.refused_by("alpha", "seal of an unknown key", lambda: say(topic, forged))
    by_a_member = seal(topic, task, siege.identity("beta").key, FAR)
    siege.refused_by("alpha", "seal of an unknown key", lambda: say(topic, by_a_member))
    siege.wait_for_updates("alpha", "beta")
    assert f"round {genuine.round_id + 1_000}:" not in siege.log("alpha")


def test_a_replayed_offer_and_a_replayed_task(siege: Siege) -> None:
    say, newest = siege.intruder.say, siege.intruder.newest
    up, down = siege.topics.up("alpha"), siege.topics.down("alpha")
    offered, _ = newest(up, Offer)
    siege.wait_for_updates("alpha", more=1)
    siege.refused_once_more("seal replayed", lambda: say(up, offered))
    task, _ = newest(down, Task)
    siege.wait_for_updates("alpha", more=1)
    siege.refused_by("alpha", "seal replayed", lambda: say(down, task))


def test_replays_after_both_sides_were_killed(siege: Siege) -> None:
    say, newest = siege.intruder.say, siege.intruder.newest
    up, down = siege.topics.up("alpha"), siege.topics.down("alpha")
    offered, offer = newest(up, Offer)
    receipt, _ = newest(down, Receipt)
    siege.wait_for_updates("alpha", more=1)
    for name in ("alpha", "coordinator"):
        siege.processes[name].kill()
    siege.processes["coordinator"].start()
    siege.wait_for_updates("beta", more=1)
    siege.refused_once_more("seal replayed", lambda: say(up, offered))
    heard = len(siege.intruder.heard)
    siege.processes["alpha"].start()
    newest(siege.topics.presence("alpha"), Presence, newer_than=heard)  # said once it listens
    siege.refused_by("alpha", "seal replayed", lambda: say(down, receipt))
    siege.wait_for_updates("alpha", "beta")
    update_id = offer.update.update_id
    rows = siege.query(f"SELECT COUNT(*) FROM updates WHERE update_id = '{update_id}'")
    assert rows == [(1,)]


def test_an_altered_chunk(siege: Siege) -> None:
    """A device that comes later finds the bundle's chunks altered: it asks, and gets the right
    ones."""
    _, welcome = siege.intruder.newest(siege.topics.down("alpha"), Welcome)
    topic = siege.topics.chunk(welcome.bundle.digest, 0)
    raw, chunk = siege.intruder.newest(topic, Chunk)
    altered = bytearray(raw)
    altered[-1] ^= 1
    siege.intruder.say(topic, bytes(altered), retain=True)
    wait_for(lambda: siege.intruder.heard[-1].payload != raw, "the altered chunk", WAIT_S)
    gamma = siege.add_device("gamma")
    siege.wait_for_log("gamma", "is refused: seal broken")
    assert chunk.digest == welcome.bundle.digest
    siege.wait_for_updates("gamma", more=1)
    gamma.stop()


def test_messages_on_another_devices_topic(siege: Siege) -> None:
    say, newest, topics = siege.intruder.say, siege.intruder.newest, siege.topics
    offered, _ = newest(topics.up("alpha"), Offer)
    siege.refused_once_more("seal of another key", lambda: say(topics.up("beta"), offered))
    task, _ = newest(topics.down("alpha"), Task)
    siege.refused_by("beta", "seal broken", lambda: say(topics.down("beta"), task))


def test_a_device_that_signs_as_another(siege: Siege) -> None:
    up = siege.topics.up("alpha")
    _, offer = siege.intruder.newest(up, Offer)
    forged = seal(up, encode(offer, "1"), siege.identity("beta").key, FAR)
    siege.refused_once_more("seal of another key", lambda: siege.intruder.say(up, forged))
    stranger = siege.topics.up("stranger")
    forged = seal(stranger, encode(offer, "1"), new_key(), FAR)
    siege.refused_once_more("seal of no member", lambda: siege.intruder.say(stranger, forged))


def test_two_devices_with_one_identity(siege: Siege) -> None:
    """Who started last is heard. The other is refused, and told; nothing counts twice."""
    siege.copy_identity("beta", "copy")
    after = len(siege.log("beta"))
    siege.refused_once_more("seal replayed", lambda: siege.add_device("copy"))
    siege.wait_for_log("beta", "somebody repeats it, or uses a copy of this identity", after)
    siege.wait_for_log("beta", "another client named 'tides/beta'", after)
    siege.wait_for_updates("alpha")
    for name in ("copy", "beta"):
        siege.processes[name].stop()
    siege.processes["beta"].start()
    siege.wait_for_updates("alpha", "beta")


def fedtide(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedtide", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_status_and_doctor_look_without_disturbing(siege: Siege) -> None:
    status = fedtide("status", "--once", siege.config("coordinator"))
    assert "coordinator online" in status.stdout, status.stdout + status.stderr
    assert "alpha" in status.stdout
    assert "not verified" not in status.stdout
    for name, told in (
        ("alpha", "ok      what goes on at the broker is not tried"),
        ("coordinator", "ok      messages arrive on every topic that a coordinator needs"),
    ):
        doctor = fedtide("doctor", siege.config(name))
        assert told in doctor.stdout, doctor.stdout + doctor.stderr
        assert f"certificate of '{name}' is valid until" in doctor.stdout
        assert "it knows key set 1 of the coordinator" in doctor.stdout
    siege.wait_for_updates("alpha", "beta")
    siege.processes["alpha"].stop()
    status = fedtide("status", "--once", siege.config("alpha"))
    assert "not verified: what devices say of themselves" in status.stdout, status.stderr
    doctor = fedtide("doctor", siege.config("alpha"))
    assert "ok      the coordinator answers this device" in doctor.stdout, doctor.stdout
    siege.processes["alpha"].start()
    siege.wait_for_updates("alpha", "beta")


@pytest.mark.slow
def test_what_is_forged_for_people_is_left_out(siege: Siege) -> None:
    status, presence = siege.topics.status, siege.topics.presence("alpha")
    siege.processes["alpha"].stop()
    siege.intruder.say(presence, encode(Presence(True, "training", 7), "1"), retain=True)
    shown = fedtide("status", "--once", siege.config("coordinator")).stdout
    assert "LEFT OUT: 1 messages without a valid seal, the newest on presence/alpha" in shown
    assert "training round 7" not in shown
    genuine, _ = siege.intruder.newest(status, Status)
    moved = siege.topics.beacon
    siege.intruder.say(moved, genuine, retain=True)
    doctor = fedtide("doctor", siege.config("alpha")).stdout
    assert "messages at the broker have no valid seal; the newest on" in doctor
    siege.processes["alpha"].start()
    siege.wait_for_updates("alpha", "beta")


def test_who_is_revoked_is_heard_no_more(siege: Siege) -> None:
    siege.add_device("gamma")
    siege.wait_for_updates("gamma", more=1)
    before = siege.count("refused: seal of no member")
    siege.revoke("gamma")
    wait_for(lambda: siege.count("refused: seal of no member") > before, "gamma's refusal", WAIT_S)
    accepted, told = siege.accepted("gamma"), len(siege.intruder.heard)
    siege.wait_for_updates("alpha", "beta")
    assert siege.accepted("gamma") == accepted
    since = {event.topic for event in siege.intruder.heard[told:]}
    assert siege.topics.up("alpha") in since
    assert siege.topics.down("gamma") not in since
    siege.processes["gamma"].stop()


def test_the_coordinators_key_is_changed_while_a_device_is_away(siege: Siege) -> None:
    say, topics = siege.intruder.say, siege.topics
    old_key = siege.authority.coordinator
    old_set = siege.authority.key_set()
    siege.processes["beta"].stop()
    siege.processes["coordinator"].stop()
    folder = siege.identity("coordinator").folder
    prepare_rollover(
        folder,
        topics,
        siege.authority.key,
        siege.authority.pem,
        lambda key: siege.authority.certify("coordinator", key),
    )
    at = len(siege.intruder.heard)
    siege.processes["coordinator"].start()
    siege.wait_for_updates("alpha")
    siege.processes["beta"].start()
    siege.wait_for_updates("alpha", "beta")
    _, task = siege.intruder.newest(topics.down("beta"), Task, newer_than=at)
    forged = encode(msgspec.structs.replace(task, round_id=task.round_id + 1_000), "1")
    for name in ("alpha", "beta"):
        topic = topics.down(name)
        old = partial(say, topic, seal(topic, forged, old_key, FAR))
        siege.refused_by(name, "seal of an unknown key", old)
        siege.refused_by(name, "seal stale", partial(say, topics.keys, old_set, retain=True))
    after = len(siege.log("beta"))
    siege.processes["beta"].kill()  # and it still knows, whatever lies at the broker
    siege.processes["beta"].start()
    siege.wait_for_log("beta", "is refused: seal stale", after)
    siege.refused_by("beta", "seal of an unknown key", old)
    siege.wait_for_updates("alpha", "beta")


def test_and_the_books_are_right(siege: Siege) -> None:
    for name, child in siege.processes.items():
        assert "Traceback" not in siege.log(name), siege.log(name)
        child.stop()
    verify = fedtide("models", "verify", "--state-dir", siege.folder / "coordinator")
    assert verify.returncode == 0, verify.stdout + verify.stderr
