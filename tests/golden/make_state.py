"""Writes tests/golden/state_N.sql and .json for this tree's schema N: a federation in the middle of
round 2, of which one device has answered, one has its update in the outbox, and one is training.

Run it before `SCHEMA_VERSION` is raised, so that the next version is tested on the state of this:
`python -m tests.golden.make_state`.
"""

from __future__ import annotations

import base64
import json
import sqlite3
import tempfile
import zlib
from contextlib import closing
from pathlib import Path

from simulator.faults.fake_learning import fake_bundle
from tests import federation as of_tests

ELEMENTS = 8
HERE = Path(__file__).parent
ROUNDS = {"count": 3, "cohort_size": 3, "devices_min": 3, "quorum": 3, "collect_ms": 60_000}


def main() -> None:
    """Run the federation, and write it down."""
    vars(of_tests).update(ELEMENTS=ELEMENTS, fake_bundle=lambda local: fake_bundle(ELEMENTS, local))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        federation = of_tests.Federation(folder, local=0, plan=None, **ROUNDS)
        federation.add("alpha", "beta", "gamma")
        beta, gamma = (federation.devices[name].runner for name in ("beta", "gamma"))
        beta.held = gamma.held = True
        federation.run(lambda: len(federation.store.updates(1)) == 1)
        beta.finish()
        gamma.finish()
        federation.run(lambda: len(federation.store.updates(2)) == 1)
        federation.kill_coordinator()
        beta.finish()
        federation.settle()
        bundle, now_ms = federation.bundle, federation.now_ms
        with closing(sqlite3.connect(folder / "coordinator" / "coordinator.db")) as database:
            version = int(database.execute("PRAGMA user_version").fetchone()[0])
            sql = "\n".join([*database.iterdump(), f"PRAGMA user_version = {version};", ""])
        files = {
            path.relative_to(folder).as_posix(): base64.b64encode(
                zlib.compress(path.read_bytes(), 9)
            ).decode()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.name.startswith("coordinator.db")
        }
    contents = {name: bundle.fetch(name).decode() for name in bundle.manifest.files}
    contents["manifest.json"] = bundle.fetch("manifest.json").decode()
    told = {"now_ms": now_ms, "files": files, "bundle": contents}
    (HERE / f"state_{version}.sql").write_text(sql)
    (HERE / f"state_{version}.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
