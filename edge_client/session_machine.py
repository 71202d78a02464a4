"""The session machine: what this device does about what it hears. Pure, like the coordinator's.

    idle -> fetching -> training -> (outbox) -> idle

Fetching, training and the outbox go on whatever the link does. `Durable` is what must survive a
power cut; the shell writes it before it runs any command of the same step. A task is identified by
its run and round; hearing it twice is normal. An update leaves the outbox on the coordinator's
receipt and on nothing else.
"""

from __future__ import annotations

import hashlib

import msgspec

from edge_client.durable import Durable
from edge_client.outbox import (
    OFFER_RETRY_MS,
    OUTBOX_BYTES_MAX,
    Wait,
    due,
    given_up,
    turn,
)
from edge_client.session_events import (
    Adapt,
    BlocksArrived,
    Command,
    ConditionsJudged,
    DropTask,
    EpochsSaved,
    Event,
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
    TaskHeld,
    TaskPrepared,
    TimeReached,
    Unlinked,
    UpdateLost,
)
from edge_client.session_state import ALL_HOLD, TEXT_CHARS_MAX, State, Step
from fedtide.messages import (
    Beacon,
    Decline,
    Offer,
    Problem,
    Range,
    Receipt,
    Task,
    ToDevice,
    Update,
    Want,
    Welcome,
)

RESTARTS_MAX = 3
"""A task that brings the client down more often is declined: the loop must end."""
HELLO_RETRY_MS = 3_000


def step(state: State, event: Event, at_ms: int) -> Step:
    """One transition."""
    match event:
        case Linked():
            return _greet(_with(state, connected=True, welcomed=False, offers={}), at_ms)
        case Unlinked(reason, retry_ms):
            news = state.connected or reason != state.link_reason
            note = Note(f"{reason}; trying again in {max(1, round(retry_ms / 1000))} s")
            # A link that never lives for this device's share must not keep it from its hello.
            spread_ms = state.spread_ms >> (state.connected and not state.welcomed)
            state = _with(state, connected=False, welcomed=False, hello=None, spread_ms=spread_ms)
            return Step((note,) * news, _with(state, link_reason=reason, retry_ms=retry_ms))
        case Heard(message):
            return _heard(state, message, at_ms)
        case BlocksArrived() | Stopped():
            return Step((), _no_crash(state, event))
        case ConditionsJudged(training, transfers):
            return _judged(state, training, transfers, at_ms)
        case TaskPrepared(run_id, round_id):
            return _start(state, run_id, round_id)
        case EpochsSaved(run_id, round_id, epochs):
            return _progressed(state, run_id, round_id, epochs)
        case TaskHeld(run_id, round_id, reason):
            held = _task_at_hand(state, run_id, round_id) is not None
            return Step((), _with(state, reason=reason) if held else state)
        case TaskDone(update):
            return _done(state, update, at_ms)
        case TaskFailed(run_id, round_id, reason, logged):
            return _failed(state, run_id, round_id, reason, logged=logged)
        case UpdateLost(update_id):
            return _lost(state, update_id, at_ms)
        case TimeReached():
            return _time(state, at_ms)


def resume(
    durable: Durable,
    outbox_bytes_max: int = OUTBOX_BYTES_MAX,
    conditions: ConditionsJudged = ALL_HOLD,
) -> Step:
    """The first step after a start: go on with the task that was accepted."""
    state = State(
        durable=durable,
        uploading=durable.uploading,
        outbox_bytes_max=outbox_bytes_max,
        training_held=conditions.training,
        transfers_held=conditions.transfers,
    )
    if durable.task is None:
        return Step((), state)
    task = durable.task
    if durable.restarts >= RESTARTS_MAX:
        reason = f"the client went down {durable.restarts + 1} times without getting any further"
        return _failed(state, task.run_id, task.round_id, reason)
    state = _keep(_with(state, phase="fetching"), restarts=durable.restarts + 1)
    return Step((PrepareTask(task),), state)


def _heard(state: State, message: ToDevice, at_ms: int) -> Step:
    match message:
        case Beacon(online=False):
            return Step((), _with(state, coordinator_session="", coordinator_gone=True))
        case Beacon(session=session):
            state = _with(state, coordinator_gone=False)
            if session != state.coordinator_session and state.connected:
                # What was sent while nobody listened is lost: this one will say what it misses.
                return _greet(_with(state, coordinator_session=session, offers={}), at_ms)
            return Step((), state)
        case Welcome() as welcome:
            hello = Wait(at_ms + welcome.hello_ms)
            if bool(state.held) != state.unready_said and state.hello is not None:
                hello = state.hello  # it answers the hello before the news
            news = bool(welcome.notice) and welcome.notice != state.notice
            notes = (Note(f"the coordinator says: {welcome.notice}"),) if news else ()
            state = _with(
                state,
                welcomed=True,
                hello=hello,
                hello_ms=welcome.hello_ms,
                spread_ms=welcome.spread_ms,
                notice=welcome.notice,
            )
            commands, state = _offer_due(state, at_ms)
            prefetch = () if state.durable.task else (Prefetch(welcome),)
            return Step((*notes, *commands, *prefetch), state)
        case Task() as task:
            return _task(state, task, at_ms)
        case Want(digest, missing):
            return _want(state, digest, missing, at_ms)
        case Receipt() as receipt:
            return _receipt(state, receipt, at_ms)
        case Problem(regarding, reason):
            return Step(
                (Note(f"the coordinator could not use message {regarding}: {reason}"),), state
            )


def _task(state: State, task: Task, at_ms: int) -> Step:
    durable = state.durable
    same_run = task.run_id == durable.run_id
    if same_run and task.round_id <= durable.answered_round:
        if durable.declined_because and task.round_id == durable.answered_round:
            return Step(
                (Say(Decline(task.run_id, task.round_id, durable.declined_because)),), state
            )
        return _offer_due(state, at_ms)
    current = durable.task
    if current is not None and same_run and task.round_id <= current.round_id:
        return Step((), state)
    dropped = () if current is None else (DropTask(current.round_id),)
    if state.held:
        commands, state = _decline(state, task, f"not now: {state.held}")
        return Step((*dropped, *commands), _with(state, reason=""))
    durable = msgspec.structs.replace(
        durable,
        task=task,
        restarts=0,
        epochs_saved=0,
        run_id=task.run_id,
        answered_round=durable.answered_round if same_run else 0,
        declined_because="",
    )
    state = _with(state, durable=durable, phase="fetching", reason="fetching model and bundle")
    return Step((*dropped, PrepareTask(task)), state)


def _start(state: State, run_id: str, round_id: int) -> Step:
    task = _task_at_hand(state, run_id, round_id)
    if task is None or state.phase != "fetching" or state.training_held:
        return Step((), state)
    return Step((StartTask(task),), _with(state, phase="training", reason=""))


def _no_crash(state: State, event: BlocksArrived | Stopped) -> State:
    """This life is none of a loop of crashes, or ends in good order."""
    if isinstance(event, Stopped):
        return _keep(state, restarts=max(0, state.durable.restarts - 1))
    return _keep(state, restarts=0) if state.phase == "fetching" else state


def _progressed(state: State, run_id: str, round_id: int, epochs: int) -> Step:
    """A life that gets further than all before it is none of a loop of crashes."""
    if _task_at_hand(state, run_id, round_id) is None or epochs <= state.durable.epochs_saved:
        return Step((), state)
    return Step((), _keep(state, epochs_saved=epochs, restarts=0))


def _done(state: State, update: Update, at_ms: int) -> Step:
    if _task_at_hand(state, update.run_id, update.round_id) is None:
        return Step((ForgetUpdate(update, None),), state)
    outbox = (*state.durable.outbox, update)
    gone = given_up(outbox, state.uploading, state.outbox_bytes_max)
    state = _owe(state, tuple(old for old in outbox if old not in gone))
    state = _keep(state, task=None, restarts=0, epochs_saved=0, answered_round=update.round_id)
    commands, state = _offer_due(_with(state, phase="idle", reason=""), at_ms)
    return Step((*(ForgetUpdate(old, None) for old in gone), *commands), state)


def _failed(state: State, run_id: str, round_id: int, reason: str, *, logged: bool = False) -> Step:
    task = _task_at_hand(state, run_id, round_id)
    return Step((), state) if task is None else _decline(state, task, reason, logged=logged)


def _decline(state: State, task: Task, reason: str, *, logged: bool = False) -> Step:
    reason = reason[:TEXT_CHARS_MAX]
    durable = msgspec.structs.replace(
        state.durable,
        task=None,
        restarts=0,
        epochs_saved=0,
        run_id=task.run_id,
        answered_round=task.round_id,
        declined_because=reason,
    )
    note = f"round {task.round_id} is declined" + ("" if logged else f": {reason}")
    commands = (Note(note), Say(Decline(task.run_id, task.round_id, reason)))
    return Step(commands, _with(state, durable=durable, phase="idle", reason=reason))


def _judged(state: State, training: str, transfers: str, at_ms: int) -> Step:
    """Conditions begin or cease to hold: pause or go on, and let the coordinator know."""
    before = state
    state = _with(state, training_held=training, transfers_held=transfers)
    commands: list[Command] = []
    if bool(state.held) != bool(before.held) and state.connected and state.welcomed:
        state = _with(state, hello=Wait(at_ms + _share(state)))
    was = bool(before.training_held), bool(before.transfers_held)
    if was != (bool(training), bool(transfers)):
        commands.append(Adapt())
    if before.transfers_held and not transfers:  # whoever waited for it may have given up
        offers, state = _offer_due(_with(state, offers={}), at_ms)
        commands += offers
    return Step(tuple(commands), state)


def _want(state: State, digest: str, missing: tuple[Range, ...], at_ms: int) -> Step:
    """The coordinator asks for content; that of another update than `turn` says has to wait."""
    current = turn(state.durable.outbox, state.uploading, state.offers)
    ranked = () if current is None else (current, *state.durable.outbox)
    update = next((u for u in ranked if u.blob is not None and u.blob.digest == digest), None)
    if update is None:
        return Step((), state)
    if state.transfers_held:
        return Step((), state)
    # The answer came: the next offer is due only if the chunks lead to nothing.
    offers = {**state.offers, update.update_id: Wait(at_ms + OFFER_RETRY_MS)}
    if turn(state.durable.outbox, state.uploading, offers) != update:
        return Step((), _with(state, offers=offers))
    state = _with(state, offers=offers, uploading=update.update_id)
    return Step((SendBlocks(update, missing),), state)


def _lost(state: State, update_id: str, at_ms: int) -> Step:
    """It cannot be sent. The same task, should it come again, gives the same update again."""
    durable = state.durable
    update = next((u for u in durable.outbox if u.update_id == update_id), None)
    if update is None:
        return Step((), state)
    newest = (update.run_id, update.round_id) == (durable.run_id, durable.answered_round)
    state = _owe(state, tuple(u for u in durable.outbox if u != update))
    state = _keep(state, answered_round=durable.answered_round - newest)
    note = Note(f"round {update.round_id}: the update is gone or damaged on this disk")
    commands, state = _offer_due(state, at_ms)
    return Step((note, ForgetUpdate(update, None), *commands), state)


def _receipt(state: State, receipt: Receipt, at_ms: int) -> Step:
    """An update has its verdict, whichever it is: the next one may be offered."""
    update = next((u for u in state.durable.outbox if u.update_id == receipt.update_id), None)
    if update is None:
        return Step((), state)
    outbox = tuple(u for u in state.durable.outbox if u.update_id != receipt.update_id)
    commands, state = _offer_due(_owe(state, outbox), at_ms)
    return Step((ForgetUpdate(update, receipt), *commands), state)


def _time(state: State, at_ms: int) -> Step:
    commands: tuple[Command, ...] = ()
    if state.connected and state.hello is not None and state.hello.at_ms <= at_ms:
        # One hello without an answer may be a lost message; two say that nobody listens.
        answered = state.hello.tries == 0
        commands, state = _say_hello(_with(state, welcomed=state.welcomed and answered), at_ms)
    offers, state = _offer_due(state, at_ms)
    return Step((*commands, *offers), state)


def _greet(state: State, at_ms: int) -> Step:
    """Say hello; a fleet whose broker or coordinator comes back does not do so all at once."""
    state = _with(state, hello=Wait(at_ms + _share(state)))
    return Step((), state) if state.spread_ms else _say_hello(state, at_ms)


def _share(state: State) -> int:
    """Milliseconds from 0 to `spread_ms`: this device's draw for this coordinator's session."""
    text = f"{state.durable.device}/{state.coordinator_session}"
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return number * state.spread_ms >> 64


def _say_hello(state: State, at_ms: int) -> Step:
    wait = (state.hello or Wait(at_ms)).later(at_ms, HELLO_RETRY_MS)
    return Step((SayHello(),), _with(state, hello=wait, unready_said=bool(state.held)))


def _offer_due(state: State, at_ms: int) -> Step:
    """Offer what is due of the outbox, if anybody listens."""
    if not state.connected or not state.welcomed or state.transfers_held:
        return Step((), state)
    updates, offers = due(state.durable.outbox, state.uploading, state.offers, at_ms)
    return Step(tuple(Say(Offer(update)) for update in updates), _with(state, offers=offers))


def _owe(state: State, outbox: tuple[Update, ...]) -> State:
    """With this outbox. Which update is being uploaded is saved whenever others could be: now."""
    owed = {update.update_id for update in outbox}
    uploading = state.uploading if state.uploading in owed else ""
    offers = {name: wait for name, wait in state.offers.items() if name in owed}
    state = _keep(state, outbox=outbox, uploading=uploading)
    return _with(state, uploading=uploading, offers=offers)


def _keep(state: State, **changes: object) -> State:
    return _with(state, durable=msgspec.structs.replace(state.durable, **changes))


def _task_at_hand(state: State, run_id: str, round_id: int) -> Task | None:
    """The task, if this is still the one at hand."""
    task = state.durable.task
    return task if task is not None and (task.run_id, task.round_id) == (run_id, round_id) else None


def _with(state: State, **changes: object) -> State:
    return msgspec.structs.replace(state, **changes)
