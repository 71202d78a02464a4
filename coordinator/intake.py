"""The way of an update from its offer to its verdict.

Checked before a byte is asked for: could it still count (`vetting.admit`), does its header fit
(`vetting.misfit`), was its content accepted before. Then its blocks are collected, its content is
checked (`vetting.examine`), and only content that counts is kept on disk.
"""

from __future__ import annotations

import logging
import math

from coordinator.config import CoordinatorConfig
from coordinator.ledger import Commands, Ledger
from coordinator.store import Store
from coordinator.uploads import Uploads
from coordinator.vetting import Verdict, admit, examine, misfit
from coordinator.voice import Voice
from fedtide.failpoints import reach
from fedtide.messages import Chunk, Update, Want

_log = logging.getLogger(__name__)


class Intake:
    """See the module. Every method returns the commands that its commit led to."""

    def __init__(
        self,
        config: CoordinatorConfig,
        shared_count: int,
        store: Store,
        ledger: Ledger,
        voice: Voice,
    ) -> None:
        self._config = config
        self._shared_count = shared_count
        self._store = store
        self._ledger = ledger
        self._voice = voice
        self._uploads = Uploads(store.blobs)

    def begin_round(self, round_id: int) -> None:
        """Forget what was on its way and cannot count any more."""
        self._uploads.begin_round(round_id, self._welcome)

    def _welcome(self, device_id: str, update: Update) -> bool:
        return self._admit(device_id, update) is None

    def _admit(self, device_id: str, update: Update) -> Verdict | None:
        if update.run_id != self._ledger.run_id:
            reason = "it belongs to another run of this federation"
            return Verdict("discarded", "foreign", reason)
        known = self._ledger.known(update, device_id)
        return admit(update, device_id, self._ledger.state, self._config, known)

    def _vet(self, device_id: str, update: Update) -> Verdict | None:
        """The verdict that needs no content. None: it does need it."""
        verdict = self._admit(device_id, update)
        if verdict is not None:
            return verdict
        terms = self._ledger.terms(update.round_id)
        model = self._ledger.model(terms.base_version).ref
        verdict = misfit(update, terms, model.digest, self._shared_count, self._config.vetting)
        if verdict is not None:
            return verdict
        if update.blob is None:
            return Verdict("accepted", "in time")
        replayed = self._store.replayed(update, device_id)
        if replayed == "stolen":
            reason = "the same content was accepted before, as learned from another model"
            return Verdict("rejected", "replay", reason)
        if replayed == "own":
            return Verdict(
                "discarded", "repeated", "the same content of this device counts already"
            )
        return None

    def offer(self, device_id: str, update: Update, at_ms: int) -> Commands:
        """A device has an update: say what is missing of it, or the verdict."""
        known = self._store.receipt(update.update_id, device_id)
        if known is not None:
            self._voice.say(device_id, known)  # what followed from it was committed with it
            return ()
        verdict = self._vet(device_id, update)
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
        verdict = self._vet(device_id, result)
        if verdict is not None:
            self._uploads.forget(device_id)
            return self._conclude(device_id, result, verdict, at_ms)
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
        if isinstance(content, str):
            verdict = Verdict("rejected", "digest", content)
        else:
            terms = self._ledger.terms(update.round_id)
            verdict = examine(content, update, self._shared_count, terms)
        if verdict.verdict == "accepted":
            self._uploads.keep(device_id)
            reach("coordinator: update kept")
        else:
            self._uploads.reject(update)
        return self._conclude(device_id, update, verdict, at_ms)

    def _conclude(self, device_id: str, update: Update, verdict: Verdict, at_ms: int) -> Commands:
        """Commit a verdict, then tell the device; accepted updates enter their round."""
        if verdict.verdict == "accepted":
            verdict = self._with_weight(device_id, update, verdict)
        else:
            thing = "update" if update.kind == "train" else "evaluation"
            what = f"{device_id}: {thing} of round {update.round_id} {verdict.verdict}"
            _log.warning("%s: %s", what, verdict.reason)
        self._store.count(f"{verdict.verdict}: {verdict.name}")
        receipt, commands = self._ledger.conclude(update, device_id, verdict, at_ms)
        reach("coordinator: verdict committed")
        self._voice.say(device_id, receipt)
        reach("coordinator: receipt said")
        return commands

    def _with_weight(self, device_id: str, update: Update, verdict: Verdict) -> Verdict:
        """Say what an update counts for that is late, or behind."""
        state = self._ledger.state
        behind = state.model_version - self._ledger.terms(update.round_id).base_version
        if state.phase == "collecting" and state.member(device_id, update.round_id) is not None:
            if behind == 0:
                return verdict
            begin = f"{behind} models behind"
        else:
            behind += state.phase == "aggregating"
            begin = f"late and {behind} models behind"
        share = f"{1 / math.sqrt(1 + behind):.0%} of its examples"
        return verdict._replace(name="late", reason=f"{begin}: it counts with {share}")
