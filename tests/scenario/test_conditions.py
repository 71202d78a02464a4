"""Devices that train only when their own conditions hold, and a coordinator that heeds that."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec
import pytest

from edge_client.session_events import ConditionsJudged
from edge_client.session_state import ALL_HOLD
from fedtide.messages import Chunk, Envelope, Hello, Presence, decode
from tests.federation import Device, Federation
from tests.scenario.test_slow_uploads import accepted

HOT = ConditionsJudged("71 °C, trains again below 65 °C", "")
METERED = ConditionsJudged("", "the link over wwan0 is metered")


def become(device: Device, judged: ConditionsJudged) -> None:
    device.session.task_event(judged, device.federation.now_ms)
    device.federation.settle()


def presence_of(federation: Federation, device_id: str) -> Presence:
    """As it lies at the broker."""
    payload = federation.broker.retained[federation.topics.presence(device_id)]
    envelope = decode(payload)
    assert isinstance(envelope, Envelope)
    assert isinstance(envelope.body, Presence)
    return envelope.body


def test_a_training_is_paused_and_goes_on_and_its_update_counts(tmp_path: Path) -> None:
    federation = Federation(tmp_path, count=1, devices_min=2, cohort_size=2, collect_ms=600_000)
    federation.add("a", "b")
    b = federation.devices["b"]
    b.runner.held = True
    federation.run(lambda: b.runner.pending is not None)
    become(b, HOT)
    assert b.runner.paused
    federation.now_ms += 1_000
    federation.run(lambda: presence_of(federation, "b").reason.startswith("waits"), 10_000)
    told = presence_of(federation, "b")
    assert (told.phase, told.round_id) == ("training", 1)
    assert told.reason == "waits: 71 °C, trains again below 65 °C"
    assert federation.reason().startswith("collecting: 1 of 2 updates are here; waiting for b")
    federation.now_ms += 300_000
    b.runner.held = False
    become(b, ALL_HOLD)
    federation.run(federation.finished)
    assert accepted(federation.store, "b") == [1]


def test_who_is_not_ready_is_not_invited(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    federation = Federation(tmp_path, count=2, devices_min=2, cohort_size=3)
    federation.add("a", "b", "c")
    c = federation.devices["c"]
    c.session.task_event(HOT, federation.now_ms)  # before it has said hello
    federation.run(federation.finished)
    assert federation.store.load_state().online == ("a", "b")
    assert [len(accepted(federation.store, name)) for name in "abc"] == [2, 2, 0]
    assert "c takes no tasks now: 71 °C, trains again below 65 °C" in caplog.text
    assert "declines" not in caplog.text
    assert c.runner.checked, "it has the bundle, and is ready when its conditions are"


def test_who_becomes_unready_is_invited_no_more_and_again_when_it_is_ready(tmp_path: Path) -> None:
    federation = Federation(tmp_path, count=2, devices_min=3, cohort_size=2)
    federation.add("a", "b")
    federation.run(lambda: federation.store.load_state().online == ("a", "b"))
    b = federation.devices["b"]
    for judged, online in ((HOT, ("a",)), (METERED, ("a",)), (ALL_HOLD, ("a", "b"))):
        become(b, judged)
        b.session.time_reached(federation.now_ms)
        federation.settle()
        assert federation.service._state.online == online


def test_a_fleet_that_is_too_hot_is_waited_for_and_told(tmp_path: Path) -> None:
    federation = Federation(tmp_path, count=1, devices_min=1, cohort_size=1)
    federation.add("a")
    device = federation.devices["a"]
    device.session.task_event(HOT, federation.now_ms)
    federation.settle()
    federation.run(lambda: federation.reason() == "waiting: 0 of 1 devices are online")
    assert presence_of(federation, "a").reason == "waits: 71 °C, trains again below 65 °C"
    federation.now_ms += 3_600_000
    become(device, ALL_HOLD)
    federation.run(federation.finished, limit_ms=60_000)


def test_a_coordinator_that_does_not_know_of_conditions_hears_no_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An earlier one invites whoever says hello; and a task may cross with the hello."""

    def earlier(payload: bytes) -> object:
        envelope = decode(payload)
        if isinstance(envelope, Envelope) and isinstance(envelope.body, Hello):
            body = msgspec.structs.replace(envelope.body, unready="")
            return msgspec.structs.replace(envelope, body=body)
        return envelope

    monkeypatch.setattr("coordinator.service.decode", earlier)
    federation = Federation(
        tmp_path, count=1, devices_min=2, cohort_size=2, quorum=1, collect_ms=600_000
    )
    federation.add("a", "b")
    federation.devices["b"].session.task_event(HOT, federation.now_ms)
    federation.run(federation.finished, limit_ms=60_000)
    assert accepted(federation.store, "a") == [1]
    assert accepted(federation.store, "b") == []
    assert "b declines round 1: not now: 71 °C, trains again below 65 °C" in caplog.text


def test_nothing_is_fetched_or_sent_over_a_metered_link(tmp_path: Path) -> None:
    federation = Federation(tmp_path, count=1, devices_min=1, cohort_size=1, collect_ms=600_000)
    federation.add("a")
    device = federation.devices["a"]
    device.runner.held = True
    federation.run(lambda: device.runner.pending is not None)
    chunks: list[Chunk] = []
    publish = device.link.publish

    def watched(topic: str, payload: bytes, *, retain: bool = False) -> int | None:
        envelope = decode(payload) if payload else None
        if isinstance(envelope, Envelope) and isinstance(envelope.body, Chunk):
            chunks.append(envelope.body)
        return publish(topic, payload, retain=retain)

    device.link.publish = watched  # type: ignore[method-assign]
    become(device, METERED)
    assert not device.runner.paused, "training needs no link"
    device.runner.finish()
    for _ in range(20):
        federation.now_ms += 10_000
        federation.service.time_reached(federation.now_ms)
        device.session.time_reached(federation.now_ms)
        federation.settle()
    assert chunks == []
    assert presence_of(federation, "a").reason == "waits: the link over wwan0 is metered"
    become(device, ALL_HOLD)
    federation.run(federation.finished)
    assert chunks
    assert accepted(federation.store, "a") == [1]


def test_a_download_stops_where_it_is_and_goes_on(tmp_path: Path) -> None:
    federation = Federation(tmp_path, count=1, devices_min=1, cohort_size=1, collect_ms=600_000)
    federation.add("a")
    device = federation.devices["a"]
    subscribe = device.link.subscribe

    def metered_by_now(filters: Sequence[str], *, confirm: bool = True) -> None:
        """The first chunk is asked for; before it comes, the link is another."""
        if any("/blob/" in name for name in filters):
            device.link.subscribe = subscribe  # type: ignore[method-assign]
            gets_metered = partial(device.session.task_event, METERED, federation.now_ms)
            federation.queue.appendleft(gets_metered)
        subscribe(filters, confirm=confirm)

    device.link.subscribe = metered_by_now  # type: ignore[method-assign]
    # The answer to its first hello comes after the news, and must not put off the second.
    federation.run(lambda: METERED.transfers in device.session.waits.texts()[0], 1_000)
    federation.run(lambda: not federation.service._state.online, 1_000)
    for _ in range(20):
        federation.now_ms += 10_000
        device.session.time_reached(federation.now_ms)
        federation.service.time_reached(federation.now_ms)
        federation.settle()
    assert not any(device.session.blobs.digests())
    become(device, ALL_HOLD)
    federation.run(federation.finished)
    assert len(accepted(federation.store, "a")) == 1
