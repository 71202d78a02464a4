"""The way of an update from its offer to its verdict.

Checked before a byte is asked for: does it belong to the open round (`vetting.admit`), does its
header fit (`vetting.misfit`). Then its blocks are collected, its content is checked
(`vetting.defect`), and only content that counts is kept on disk.
"""

from __future__ import annotations

import logging

from coordinator.ledger import Commands, Ledger
from coordinator.store import Store
from coordinator.uploads import Uploads
from coordinator.vetting import admit, defect, misfit
from coordinator.voice import Voice
from fedtide.failpoints import reach
from fedtide.messages import Chunk, Receipt, Update, Want

_log = logging.getLogger(__name__)


class Intake:
    """See the module. Every method returns the commands that its commit led to."""

    def __init__(self, shared_count: int, store: Store, ledger: Ledger, voice: Voice) -> None:
        self._shared_count = shared_count
        self._store = store
        self._ledger = ledger
        self._voice = voice
        self._uploads = Uploads(store.blobs)

    def begin_round(self, round_id: int) -> None:
        """Forget what was on its way in an earlier round."""
        self._uploads.begin_round(round_id)

    def offer(self, device_id: str, update: Update, at_ms: int) -> Commands:
        """A device has an update: say what is missing of it, or the verdict."""
        known = self._store.receipt(update.update_id, device_id)
        if known is not None:
            self._voice.say(device_id, known)  # what followed from it was committed with it
            return ()
        verdict = admit(update, device_id, self._ledger.state, self._ledger.run_id)
        if verdict is None:
            model, terms = self._ledger.newest_model().ref, self._ledger.terms()
            state, elements = self._ledger.state, self._shared_count
            reason = misfit(update, state, model.digest, terms.encoding, elements)
            if reason is not None:
                verdict = Receipt(update.update_id, "rejected", reason)
            elif update.blob is None:
                verdict = Receipt(update.update_id, "accepted")
        if verdict is not None:
            return self._conclude(device_id, update, verdict, at_ms)
        if self._ask(device_id, update):
            return ()
        return self._complete(device_id, update, at_ms)

    def chunk(self, device_id: str, chunk: Chunk, at_ms: int) -> Commands | str:
        """Blocks of an update came; a text says why they are unusable."""
        result = self._uploads.arrived(device_id, chunk)
        reach("coordinator: chunk stored")
        if result is None or isinstance(result, str):
            return result or ()
        late = admit(result, device_id, self._ledger.state, self._ledger.run_id)
        if late is not None:
            return self._conclude(device_id, result, late, at_ms)
        return self._complete(device_id, result, at_ms)

    def _ask(self, device_id: str, update: Update) -> bool:
        """Say which blocks are missing; False: none."""
        assert update.blob is not None
        missing = self._uploads.expect(device_id, update)
        if missing:
            self._voice.say(device_id, Want(update.blob.digest, tuple(missing)))
        return bool(missing)

    def _complete(self, device_id: str, update: Update, at_ms: int) -> Commands:
        """All blocks of an update are here: check it, and say so."""
        content = self._uploads.content(device_id, update)
        if content is None:  # damaged on the way: all of it again
            self._ask(device_id, update)
            return ()
        reason = content if isinstance(content, str) else None
        if isinstance(content, bytes):
            reason = defect(content, update, self._shared_count)
        if reason is None:
            self._uploads.keep(device_id)
            reach("coordinator: update kept")
            verdict = Receipt(update.update_id, "accepted")
        else:
            self._uploads.reject(update)
            verdict = Receipt(update.update_id, "rejected", reason)
        return self._conclude(device_id, update, verdict, at_ms)

    def _conclude(self, device_id: str, update: Update, receipt: Receipt, at_ms: int) -> Commands:
        """Commit a verdict, then tell the device; accepted updates enter the round."""
        if receipt.verdict != "accepted":
            what = f"{device_id}: update of round {update.round_id} {receipt.verdict}"
            _log.warning("%s: %s", what, receipt.reason)
        commands = self._ledger.conclude(update, device_id, receipt, at_ms)
        reach("coordinator: verdict committed")
        self._voice.say(device_id, receipt)
        reach("coordinator: receipt said")
        return commands
