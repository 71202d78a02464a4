"""A simulated coordinator: the production service and store on their folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.aggregate_job import AggregateJob, JobResult, run_aggregate_job
from coordinator.config import CoordinatorConfig
from coordinator.ledger import begin_run
from coordinator.service import Service
from coordinator.store import Store
from fedtide.messages import Beacon, encode
from fedtide.transport import LinkEvent, Will
from fedtide.vectors import encode_vector
from simulator.faults.fake_learning import fake_bundle, initial_model
from simulator.faults.link import Speed
from simulator.faults.process import Process

if TYPE_CHECKING:
    from simulator.faults.world import World

LATE_MS = 70_000
"""Of an aggregation that takes longer than any deadline for it."""


class Coordinator(Process):
    """See the module."""

    def __init__(
        self, world: World, name: str, config: CoordinatorConfig, folder: Path, speed: Speed
    ) -> None:
        super().__init__(world, name, "simulated//coordinator", folder, speed)
        self.config = config
        self.elements = world.settings.elements
        self.bundle = fake_bundle(self.elements)
        self.job_ms = world.settings.job_ms
        self.jobs_lost = 0.0
        self.finished = ""
        """The reason it gave."""
        self.succeeded = False
        self.store: Store | None = None
        self.service: Service

    def _start(self) -> None:
        self.store = store = Store(self.folder)
        initial = store.blobs.put(encode_vector(initial_model(self.elements), "f32"))
        begin_run(store, self.bundle, self.config.federation, initial, self.now_ms())
        session = f"{self.name}-{self.life}"
        gone = encode(Beacon(online=False, session=session), "will")
        self.link.will = Will(self.world.topics.beacon, gone)
        self.service = Service(self.config, self.bundle, store, self.link, self._job, session)
        self.service.start(self.now_ms())

    def _link_event(self, event: LinkEvent, at_ms: int) -> None:
        self.service.link_event(event, at_ms)

    def _time_reached(self, at_ms: int) -> None:
        self.service.time_reached(at_ms)

    def _next_deadline_at_ms(self) -> int | None:
        return self.service.next_deadline_at_ms()

    def _job(self, job: AggregateJob) -> None:
        if self.rng.random() < self.jobs_lost:
            self.world.happened("aggregation job lost or late")
            if self.rng.random() < 0.5:
                return
            delay_ms = LATE_MS
        else:
            delay_ms = self.job_ms
        self.world.agenda.after(delay_ms, self.enter, self.life, self._work, job)

    def _work(self, job: AggregateJob) -> None:
        assert self.store is not None
        result = run_aggregate_job(job, self.store.blobs, None)
        self.world.agenda.after(1, self.enter, self.life, self._job_done, result)

    def _job_done(self, result: JobResult) -> None:
        self.service.job_done(result, self.now_ms())

    def _stopped(self) -> None:
        """Closing the connection rolls back what was not committed, as the kernel would."""
        store, self.store = self.store, None
        if store is not None:
            store._db.close()  # `close` would commit counters, a killed one cannot

    def _goodbye(self, why: str) -> None:
        if self.store is not None and hasattr(self, "service"):
            self.service.goodbye()
        super()._goodbye(why)

    def _observed(self) -> None:
        if self.alive:
            finish = self.service.finished
            if finish is not None:
                self.finished, self.succeeded = finish.reason, finish.succeeded
                self.service.goodbye()
                self.end(f"finished: {finish.reason}")
                return
        self.world.checks.coordinator_looked_at(self)
