"""What a device is told when it comes, and asked when a round wants it.

Both name what it has to fetch: the bundle, a model, and in which chunks they lie at the broker.
"""

from __future__ import annotations

from coordinator.fleet import Fleet
from coordinator.ledger import Ledger
from coordinator.publishing import Publisher
from coordinator.round_machine import Member
from coordinator.supply import Supply
from coordinator.voice import Voice
from fedtide.failpoints import reach
from fedtide.messages import Task, Welcome


class Invitations:
    """See the module."""

    def __init__(
        self, ledger: Ledger, supply: Supply, publisher: Publisher, fleet: Fleet, voice: Voice
    ) -> None:
        self._ledger = ledger
        self._supply = supply
        self._publisher = publisher
        self._fleet = fleet
        self._voice = voice

    def welcome(self, device_id: str, notice: str) -> None:
        """To one device: what there is, when to speak, and as `notice` why it gets no tasks."""
        model = self._ledger.newest_model()
        self._voice.say(
            device_id,
            Welcome(
                bundle=self._supply.bundle_ref,
                model=model.ref,
                model_version=model.version,
                chunk_blocks=self._publisher.chunk_blocks,
                hello_ms=self._fleet.hello_ms(device_id),
                spread_ms=self._fleet.spread_ms(),
                notice=notice,
            ),
        )

    def invite(self, device_ids: tuple[str, ...], at_ms: int) -> None:
        """To each its task: of the open round, or of the one that it is still at work on."""
        tasks: dict[int, Task] = {}
        at_work = {member.device_id: member for member in self._ledger.state.at_work()}
        for device_id in device_ids:
            member = at_work.get(device_id)
            if member is None:
                continue
            if member.round_id not in tasks:
                tasks[member.round_id] = self._task(member, at_ms)
            self._voice.say(device_id, tasks[member.round_id])
            reach("coordinator: task said")

    def _task(self, member: Member, at_ms: int) -> Task:
        state, terms = self._ledger.state, self._ledger.terms(member.round_id)
        model = self._ledger.model(terms.base_version)
        deadline_at_ms = member.deadline_at_ms or state.deadline_at_ms or at_ms
        return Task(
            run_id=self._ledger.run_id,
            round_id=member.round_id,
            kind=terms.kind,
            bundle=self._supply.bundle_ref,
            model=model.ref,
            model_version=model.version,
            chunk_blocks=self._publisher.chunk_blocks,
            plan=terms.plan,
            encoding=terms.encoding,
            deadline_ms=max(0, deadline_at_ms - at_ms),
        )
