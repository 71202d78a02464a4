"""What devices fetch: the bundle's files, the newest model, and those that some are at work on."""

from __future__ import annotations

from coordinator.config import RoundsConfig
from coordinator.ledger import Ledger
from coordinator.publishing import Publisher
from coordinator.store import Model, Store
from fedtide.bundle import Bundle
from fedtide.errors import BundleError
from fedtide.manifest import MANIFEST_NAME, device_files

PAST_MODELS = 3
"""Beside those that devices were at work on: a few connections that ended before it was cleared."""


class Supply:
    """See the module."""

    def __init__(
        self,
        bundle: Bundle,
        store: Store,
        ledger: Ledger,
        publisher: Publisher,
        rounds: RoundsConfig,
    ) -> None:
        """Puts the bundle's files where devices can fetch them.

        Raises:
            BundleError: the bundle changes while it is read.
        """
        self._store = store
        self._ledger = ledger
        self._publisher = publisher
        self._rounds = rounds
        put, read = store.blobs.put, bundle.read
        self.bundle_ref = put(bundle.fetch(MANIFEST_NAME))
        """The bundle's manifest, which names all the rest of it."""
        if self.bundle_ref.digest != bundle.digest:
            raise BundleError("the bundle's manifest changed while it was being read")
        files = device_files(bundle.manifest)
        self._bundle_blobs = [self.bundle_ref, *(put(read(path)) for path in files)]
        inference = put(read(bundle.manifest.inference))  # for `fedtide models export`
        self._lasting = {ref.digest for ref in (*self._bundle_blobs, inference)}

    def offer(self) -> None:
        """The bundle, the newest model, and those that devices at work may still be fetching."""
        state = self._ledger.state
        versions = {state.model_version, *(member.version for member in state.at_work())}
        models = [self._ledger.model(version).ref for version in sorted(versions)]
        self._publisher.offer([*self._bundle_blobs, *models])

    def withdraw_past(self) -> None:
        """Clear what the broker may still hold of earlier models."""
        self._publisher.withdraw(model.ref for model in self.past_models())

    def past_models(self) -> list[Model]:
        """Those that may lie at the broker still, withdrawn without a link or before a crash."""
        buffered = self._ledger.state.buffered or self._rounds.mode == "buffered"
        # In a synchronous round all are at work on the newest, and without a link none follows it.
        behind = self._rounds.staleness_max if buffered else 0
        return self._store.models()[-1 - PAST_MODELS - behind : -1]

    def discard_old(self, rounds_kept: int) -> None:
        """Forget updates of older rounds, and what nobody fetches any more."""
        # None is between its blob and its commit now: this is their thread.
        kept = self._store.digests_kept(rounds_kept)
        self._store.blobs.keep_finished(kept | self._lasting)
