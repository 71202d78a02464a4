"""What a device needs and fetches: the bundle ahead of any task, a model when a task names it.

Who is not invited would fetch the model for nothing: there is a newer one before its turn comes.
"""

from __future__ import annotations

import logging

from edge_client.fetching import Fetching
from edge_client.holdings import discard_unneeded, held_bundle, is_intact, needed_blobs
from edge_client.session_events import TaskFailed, TaskPrepared
from edge_client.session_state import State
from edge_client.task_runner import TaskRunner
from fedtide.blobs import BlobStore
from fedtide.errors import BundleError
from fedtide.messages import BlobRef, Task, Welcome

_log = logging.getLogger(__name__)


class Supplies:
    """See the module. `want` what a message names, then `pursue` it, again with each new blob."""

    def __init__(self, blobs: BlobStore, fetching: Fetching, runner: TaskRunner) -> None:
        self._blobs = blobs
        self._fetching = fetching
        self._runner = runner
        self._named: Welcome | Task | None = None
        self._checked: BlobRef | None = None

    def want(self, named: Welcome | Task) -> None:
        """Its bundle, and the model of a task, are needed from now on."""
        self._named = named

    def held(self) -> list[str]:
        """Digests of the bundle and the model named last, as far as they are here."""
        named = () if self._named is None else (self._named.bundle, self._named.model)
        return [ref.digest for ref in named if self._blobs.has(ref.digest)]

    def pursue(self, state: State, at_ms: int) -> TaskPrepared | TaskFailed | None:
        """Fetch what is missing; what that means for the task that waits for it.

        Raises:
            StateError: the disk is failing.
        """
        task = state.durable.task if state.phase == "fetching" else None
        while self._named is not None:
            try:
                missing = self._missing(self._named, task)
                if state.phase == "idle":
                    self._look_at_bundle(self._named, state)
            except BundleError as exc:
                self._fetching.want((), self._named.chunk_blocks)
                if task is not None:
                    return TaskFailed(task.run_id, task.round_id, str(exc))
                _log.warning("the bundle cannot be used: %s", exc)
                return None
            if task is not None and not missing:
                return TaskPrepared(task.run_id, task.round_id)
            wanted = () if state.transfers_held else missing
            self._fetching.want(wanted, self._named.chunk_blocks)
            if not (state.connected and self._fetching.start(at_ms)):
                return None
        return None

    def _missing(self, named: Welcome | Task, task: Task | None) -> list[BlobRef]:
        model = None if task is None else task.model
        needed = needed_blobs(self._blobs, named.bundle, model, self._runner.runtimes)
        missing = [ref for ref in needed if not self._blobs.has(ref.digest)]
        if task is not None and not missing:
            missing = [ref for ref in needed if not is_intact(self._blobs, ref)]
        return missing

    def _look_at_bundle(self, named: Welcome | Task, state: State) -> None:
        """Once the manifest is here: make room, and see whether the data fit."""
        if not self._blobs.has(named.bundle.digest):
            return
        bundle = held_bundle(self._blobs, named.bundle)
        discard_unneeded(self._blobs, named.model, bundle, state.durable.outbox)
        if named.bundle != self._checked:
            self._checked = named.bundle
            self._runner.check(bundle)
