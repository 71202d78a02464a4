"""The session machine: one life of a task, and how its waits grow."""

from __future__ import annotations

from typing import Literal

import msgspec
import pytest

from edge_client.durable import Durable
from edge_client.outbox import OFFERS_VAIN_MAX, OUTBOX_MAX
from edge_client.session_events import (
    DropTask,
    ForgetUpdate,
    Heard,
    Linked,
    Note,
    Prefetch,
    PrepareTask,
    Say,
    SayHello,
    SendBlocks,
    StartTask,
    Stopped,
    TaskDone,
    TaskFailed,
    TaskPrepared,
    TimeReached,
    Unlinked,
    UpdateLost,
)
from edge_client.session_machine import (
    HELLO_RETRY_MS,
    RESTARTS_MAX,
    resume,
    step,
)
from edge_client.session_state import State, next_deadline_at_ms, presence
from fedtide.messages import (
    Beacon,
    Decline,
    Envelope,
    Offer,
    Presence,
    Receipt,
    Want,
    Welcome,
    decode,
    encode,
)
from tests.property.test_session_machine import MANIFEST, MODEL, task_of, update_of

TASK, UPDATE = task_of(1), update_of(task_of(1))
WELCOME = Welcome(MANIFEST, MODEL, 0, 7, 30_000)


def live(state: State, *events: object, at_ms: int = 1_000) -> tuple[tuple[object, ...], State]:
    """The commands of the last event, and the state after all of them."""
    commands: tuple[object, ...] = ()
    for event in events:
        commands, state = step(state, event, at_ms)  # type: ignore[arg-type]
    return commands, state


WELCOMED = live(State(), Linked(), Heard(WELCOME))[1]
OWING = live(WELCOMED, Heard(TASK), TaskPrepared("run", 1), TaskDone(UPDATE))[1]


def test_a_whole_life() -> None:
    commands, state = live(State(), Linked())
    assert commands == (SayHello(),)
    commands, state = live(state, Heard(WELCOME))
    assert commands == (Prefetch(WELCOME),)
    commands, state = live(state, Heard(TASK))
    assert commands == (PrepareTask(TASK),)
    assert (state.phase, state.durable.task) == ("fetching", TASK)
    commands, state = live(state, TaskPrepared("run", 1))
    assert (commands, state.phase) == ((StartTask(TASK),), "training")
    commands, state = live(state, TaskDone(UPDATE))
    assert (commands, state.phase) == ((Say(Offer(UPDATE)),), "idle")
    assert state.durable == Durable(outbox=(UPDATE,), run_id="run", answered_round=1)
    want = Want("0" * 63 + "1", ((0, 1),))
    commands, state = live(state, Heard(want))
    assert commands == (SendBlocks(UPDATE, ((0, 1),)),)
    receipt = Receipt(UPDATE.update_id, "accepted")
    commands, state = live(state, Heard(receipt))
    assert commands == (ForgetUpdate(UPDATE, receipt),)
    assert (state.durable.outbox, state.offers) == ((), {})
    assert live(state, Heard(TASK)) == ((), state)


def test_a_newer_task_replaces_the_one_at_hand() -> None:
    training = live(WELCOMED, Heard(TASK), TaskPrepared("run", 1))[1]
    commands, state = live(training, Heard(task_of(2)))
    assert commands == (DropTask(1), PrepareTask(task_of(2)))
    assert live(state, Heard(TASK)) == ((), state)
    commands, _ = live(state, TaskDone(UPDATE))
    assert commands == (ForgetUpdate(UPDATE, None),)


def test_a_new_run_begins_to_count_again() -> None:
    commands, state = live(OWING, Heard(task_of(1, "second")))
    assert commands == (PrepareTask(task_of(1, "second")),)
    assert state.durable.outbox == (UPDATE,)
    assert (state.durable.run_id, state.durable.answered_round) == ("second", 0)


def test_a_failure_is_declined_and_declined_again_when_asked_again() -> None:
    commands, state = live(WELCOMED, Heard(TASK), TaskFailed("run", 1, "no data"))
    decline = Say(Decline("run", 1, "no data"))
    assert commands == (Note("round 1 is declined: no data"), decline)
    assert (state.phase, state.durable.task) == ("idle", None)
    assert live(state, Heard(TASK)) == ((decline,), state)


@pytest.mark.parametrize(
    "event",
    [TaskPrepared("run", 1), TaskPrepared("run", 9), TaskFailed("run", 9, ""), TimeReached()],
)
def test_what_does_not_apply_changes_nothing(event: object) -> None:
    assert live(WELCOMED, event) == ((), WELCOMED)


def test_what_an_older_run_reports_does_not_touch_the_round_of_the_same_number() -> None:
    state = live(WELCOMED, Heard(task_of(1, "second")))[1]
    assert live(state, TaskPrepared("run", 1)) == ((), state)
    assert live(state, TaskFailed("run", 1, "of the old run")) == ((), state)
    assert live(state, TaskPrepared("second", 1))[1].phase == "training"


def test_a_long_reason_is_cut_once_and_stays_the_same() -> None:
    """Said again from what is stored, it was too long for the wire."""
    commands, state = live(WELCOMED, Heard(TASK), TaskFailed("run", 1, "x" * 5_000))
    decline = Decline("run", 1, "x" * 1_000)
    assert commands[-1] == Say(decline)
    assert live(state, Heard(TASK))[0] == (Say(decline),)
    assert decode(encode(decline, "1")) == Envelope(1, "1", decline)


def test_a_coordinator_that_was_gone_is_greeted_although_its_session_is_the_same() -> None:
    state = live(WELCOMED, Heard(Beacon(True, "one")))[1]
    assert live(state, Heard(Beacon(True, "one")))[0] == ()
    commands, state = live(state, Heard(Beacon(False, "one")), Heard(Beacon(True, "one")))
    assert commands == (SayHello(),)


def test_hellos_are_repeated_ever_more_slowly() -> None:
    state, at_ms, pauses = live(State(), Linked())[1], 1_000, []
    for _ in range(7):
        deadline = next_deadline_at_ms(state)
        assert deadline is not None
        pauses.append(deadline - at_ms)
        at_ms = deadline
        commands, state = live(state, TimeReached(), at_ms=at_ms)
        assert commands == (SayHello(),)
    assert pauses == [HELLO_RETRY_MS * 2**tries for tries in range(5)] + [60_000, 60_000]


def test_offers_wait_for_a_welcome_and_then_grow_slower() -> None:
    cut = live(OWING, Unlinked("cut"))[1]
    assert next_deadline_at_ms(cut) is None
    commands, state = live(cut, Linked(), at_ms=2_000)
    assert commands == (SayHello(),)
    commands, state = live(state, Heard(WELCOME), at_ms=2_100)
    assert commands[0] == Say(Offer(UPDATE))
    assert next_deadline_at_ms(state) == 5_100
    commands, state = live(state, TimeReached(), at_ms=5_100)
    assert commands == (Say(Offer(UPDATE)),)
    assert next_deadline_at_ms(state) == 11_100


def test_a_silent_coordinator_stops_the_offers() -> None:
    """One hello without an answer may be a lost message; two say that nobody listens."""
    state = OWING
    for _ in range(40):
        deadline = next_deadline_at_ms(state)
        assert deadline is not None
        state = live(state, TimeReached(), at_ms=deadline)[1]
    assert not state.welcomed
    assert presence(state, sending=False) == Presence(True, "uploading", 1, "1 in the outbox")


def test_the_oldest_update_is_given_up_when_the_outbox_is_full() -> None:
    state = live(State(), Linked(), Heard(WELCOME))[1]
    for round_id in range(1, OUTBOX_MAX + 2):
        task = task_of(round_id)
        commands, state = live(
            state, Heard(task), TaskPrepared("run", round_id), TaskDone(update_of(task))
        )
    assert ForgetUpdate(UPDATE, None) in commands
    assert len(state.durable.outbox) == OUTBOX_MAX
    assert state.durable.outbox[0].round_id == 2


def test_a_restart_goes_on_and_a_loop_of_restarts_ends() -> None:
    durable = Durable(task=TASK, run_id="run")
    for restarts in range(RESTARTS_MAX):
        commands, state = resume(durable)
        assert commands == (PrepareTask(TASK),)
        assert state.durable == msgspec.structs.replace(durable, restarts=restarts + 1)
        durable = state.durable
    commands, state = resume(durable)
    assert commands[-1] == Say(
        Decline(
            "run", 1, f"the client went down {RESTARTS_MAX + 1} times without getting any further"
        )
    )
    assert state.durable.task is None
    assert resume(Durable(outbox=(UPDATE,))) == ((), State(durable=Durable(outbox=(UPDATE,))))


def test_stopping_in_good_order_is_no_crash() -> None:
    """A device that is updated or rebooted every day gets its task done."""
    durable = Durable(task=TASK, run_id="run", restarts=RESTARTS_MAX - 1)
    for _ in range(RESTARTS_MAX + 1):
        commands, state = resume(durable)
        assert commands == (PrepareTask(TASK),)
        durable = live(state, Stopped())[1].durable
    assert durable.restarts == RESTARTS_MAX - 1, "what crashed before is not forgotten"
    assert live(State(), Stopped()) == ((), State())


def test_a_link_that_never_lives_for_the_whole_share_says_hello_in_the_end() -> None:
    durable = Durable(federation="f", device="device-1")
    welcome = msgspec.structs.replace(WELCOME, spread_ms=200_000)
    state = live(State(durable=durable), Linked(), Heard(welcome), Unlinked("broker gone"))[1]
    assert state.spread_ms == 200_000, "pauses of a link that was welcome spread as said"
    life_ms, said = 500, []
    for _ in range(10):
        state = live(state, Linked(), at_ms=0)[1]
        said.append((next_deadline_at_ms(state) or 0) <= life_ms)
        state = live(state, Unlinked("cut"), Unlinked("no broker"))[1]
    assert said[0] is False
    assert said[-1] is True


def test_presence_says_what_is_waited_for() -> None:
    assert presence(State(), sending=False).reason == "waiting for the coordinator"
    assert presence(WELCOMED, sending=False).reason == "waiting for a task"
    fetching = live(WELCOMED, Heard(TASK))[1]
    assert presence(fetching, sending=False).reason == "fetching model and bundle"


def test_the_outbox_is_bounded_by_bytes_but_for_the_newest() -> None:
    """Each of these updates has 100 bytes."""
    state = live(State(outbox_bytes_max=250), Linked(), Heard(WELCOME))[1]
    for round_id in range(1, 5):
        task = task_of(round_id)
        events = (Heard(task), TaskPrepared("run", round_id), TaskDone(update_of(task)))
        state = live(state, *events)[1]
    assert [update.round_id for update in state.durable.outbox] == [3, 4]
    state = msgspec.structs.replace(state, outbox_bytes_max=1)
    events = (Heard(task_of(5)), TaskPrepared("run", 5), TaskDone(update_of(task_of(5))))
    commands, state = live(state, *events)
    assert [update.round_id for update in state.durable.outbox] == [5]
    given_up = [c.update.round_id for c in commands if isinstance(c, ForgetUpdate)]
    assert given_up == [3, 4]


def test_an_update_whose_content_is_gone_is_made_again() -> None:
    commands, state = live(OWING, UpdateLost(UPDATE.update_id))
    assert ForgetUpdate(UPDATE, None) in commands
    assert (state.durable.outbox, state.offers) == ((), {})
    assert live(state, Heard(TASK))[0] == (PrepareTask(TASK),)
    assert live(state, UpdateLost("unknown")) == ((), state)


def test_a_fleet_that_comes_back_spreads_its_hellos() -> None:
    spread_ms, at_ms = 20_000, 50_000
    waits = []
    for number in range(200):
        durable = Durable(federation="f", device=f"device-{number}")
        welcome = msgspec.structs.replace(WELCOME, spread_ms=spread_ms)
        state = live(State(durable=durable), Linked(), Heard(welcome))[1]
        commands, state = live(state, Unlinked("broker gone"), Linked(), at_ms=at_ms)
        assert commands == (), "not at once"
        deadline = next_deadline_at_ms(state)
        assert deadline is not None
        waits.append(deadline - at_ms)
        assert live(state, TimeReached(), at_ms=deadline)[0] == (SayHello(),)
        after = live(state, Heard(Beacon(True, "new")), at_ms=at_ms)[1]
        again = next_deadline_at_ms(after)
        assert again is not None
        assert 0 <= again - at_ms < spread_ms, "the same for a coordinator that comes back"
    assert 0 <= min(waits) < 1_000
    assert spread_ms - 1_000 < max(waits) < spread_ms


def test_a_notice_is_what_the_device_waits_for() -> None:
    noticed = msgspec.structs.replace(WELCOME, notice="another installation uses this name")
    commands, state = live(State(), Linked(), Heard(noticed))
    assert Note("the coordinator says: another installation uses this name") in commands
    assert presence(state, sending=False).reason == "another installation uses this name"
    assert Note not in map(type, live(state, Heard(noticed))[0]), "once is enough"
    assert presence(live(state, Heard(WELCOME))[1], sending=False).reason == "waiting for a task"


def test_a_link_that_stays_away_is_noted_once() -> None:
    """The same every minute would fill the log of a device that is offline for weeks."""
    commands, state = live(WELCOMED, Unlinked("no broker at b:1", 1_500))
    assert commands == (Note("no broker at b:1; trying again in 2 s"),)
    commands, state = live(state, Unlinked("no broker at b:1", 60_000))
    assert commands == ()
    assert live(state, Unlinked("refused", 60_000))[0] == (Note("refused; trying again in 60 s"),)


# ---- several updates in the outbox ----


def finish(state: State, *round_ids: int, at_ms: int = 1_000) -> tuple[tuple[object, ...], State]:
    """Do these rounds; the commands of the last."""
    commands: tuple[object, ...] = ()
    for round_id in round_ids:
        task = task_of(round_id)
        events = (Heard(task), TaskPrepared("run", round_id), TaskDone(update_of(task)))
        commands, state = live(state, *events, at_ms=at_ms)
    return commands, state


def want(round_id: int) -> Heard:
    """The coordinator asks for a block of this round's update."""
    return Heard(Want(f"{round_id:064x}", ((0, 1),)))


Verdict = Literal["accepted", "rejected"]


def receipt_for(round_id: int, verdict: Verdict = "accepted") -> Heard:
    """The last word on this round's update."""
    return Heard(Receipt(f"run-{round_id}", verdict))


def offered(commands: tuple[object, ...]) -> list[int]:
    """Rounds of the updates that are offered."""
    offers = (c.message for c in commands if isinstance(c, Say))
    return [offer.update.round_id for offer in offers if isinstance(offer, Offer)]


def back(state: State, at_ms: int = 1_000) -> tuple[list[int], State]:
    """A new link; what is offered on it, and the state."""
    commands, state = live(state, Linked(), Heard(WELCOME), at_ms=at_ms)
    return offered(commands), state


def test_one_update_is_offered_at_a_time_the_newest_first() -> None:
    state = finish(State(), 1, 2, 3)[1]
    rounds, state = back(state)
    assert rounds == [3]
    assert next_deadline_at_ms(state) == 4_000, "those whose turn has not come have no deadline"
    verdicts: tuple[tuple[int, Verdict], ...] = ((3, "accepted"), (2, "rejected"))
    for round_id, verdict in verdicts:
        commands, state = live(state, want(round_id), receipt_for(round_id, verdict))
        assert offered(commands) == [round_id - 1], "the next one at once, whatever the verdict"
    assert [update.round_id for update in state.durable.outbox] == [1]


def test_what_was_asked_for_stays_until_its_receipt() -> None:
    """Not newer ones, not a new link, not a restart of either side takes its place."""
    state = live(OWING, want(1))[1]
    commands, state = finish(state, 2, 3)
    assert offered(commands) == []
    assert live(state, want(3)) == ((), live(state, want(3))[1]), "an answer to nothing it offers"
    assert back(state)[0] == [1]
    assert back(resume(state.durable).state)[0] == [1]
    other = live(state, Heard(Beacon(True, "other")), TimeReached())[0]
    assert offered(other) == [1]
    commands, state = live(state, receipt_for(1))
    assert offered(commands) == [3]
    assert state.durable.uploading == ""
    assert back(resume(state.durable).state)[0] == [3]


def test_a_receipt_for_another_one_changes_no_turn() -> None:
    state = finish(live(OWING, want(1))[1], 2, 3)[1]
    commands, state = live(state, receipt_for(3))
    assert commands == (ForgetUpdate(update_of(task_of(3)), Receipt("run-3", "accepted")),)
    assert back(state)[0] == [1]


def test_an_evaluation_goes_along() -> None:
    evaluation = msgspec.structs.replace(update_of(task_of(2)), kind="evaluate", blob=None)
    state = live(OWING, want(1), Heard(task_of(2)), TaskPrepared("run", 2))[1]
    commands, state = live(state, TaskDone(evaluation))
    assert offered(commands) == [2]
    assert sorted(back(state)[0]) == [1, 2]


def test_what_is_being_uploaded_is_not_given_up() -> None:
    commands, state = finish(live(OWING, want(1))[1], *range(2, OUTBOX_MAX + 2))
    assert commands == (ForgetUpdate(update_of(task_of(2)), None),)
    assert [u.round_id for u in state.durable.outbox] == [1, *range(3, OUTBOX_MAX + 2)]
    state = live(State(outbox_bytes_max=150), Linked(), Heard(WELCOME))[1]
    state = finish(state, 1)[1]
    state = finish(live(state, want(1))[1], 2, 3)[1]
    assert [u.round_id for u in state.durable.outbox] == [1, 3]


def test_what_was_given_up_wakes_nobody() -> None:
    """Its offer stayed due for ever."""
    state = finish(WELCOMED, *range(1, OUTBOX_MAX + 2))[1]
    assert set(state.offers) <= {update.update_id for update in state.durable.outbox}
    deadline = next_deadline_at_ms(state)
    assert deadline is not None
    assert deadline > 1_000


def test_an_update_that_nobody_answers_lets_the_others_go_before_it() -> None:
    """A broker may carry no offer of that size."""
    rounds, state = back(finish(State(), 1, 2)[1])
    for _ in range(3 * OFFERS_VAIN_MAX):
        deadline = next_deadline_at_ms(state)
        assert deadline is not None
        commands, state = live(state, TimeReached(), at_ms=deadline)
        rounds += offered(commands)
        if 1 in rounds:
            break
        state = live(state, Heard(WELCOME), at_ms=deadline)[1]  # each hello has its answer
    assert rounds == [2] * OFFERS_VAIN_MAX + [1]
    commands, state = live(state, want(1), receipt_for(1), at_ms=400_000)
    assert offered(commands) == [2], "and then has its turn again"
    assert offered(live(finish(state, 3, at_ms=400_000)[1], want(3), at_ms=400_000)[0]) == []
