"""64-bit Arm, emulated: `make test-arm64`, on any Linux machine.

As the core of a Raspberry Pi 4 and of a Raspberry Pi 5: the trainers' contract, then the whole life
of a device (`arm64_life.py`). `results/arm64.json` has durations, of an emulation, and sizes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from benchmarks.measurement import RESULTS, save
from tests.everywhere import arm64_life
from tests.everywhere.emulation import CORES, PACKAGES, Core, Userland, make_userland, missing_tools
from tests.everywhere.requirements import ROOT

TESTS = ["tests/contract/test_trainers.py"]
OPTIONS = ["-q", "-m", "not slow", "-p", "no:cacheprovider", "--durations=5"]


def main(arguments: list[str]) -> int:
    """Run the tests natively, which exports their bundles, then emulated; then the lives."""
    parser = argparse.ArgumentParser(prog="test-arm64")
    parser.add_argument("--core", choices=[core.name for core in CORES], help="this one only")
    parser.add_argument("--only", choices=("contract", "life"), help="this part only")
    parser.add_argument("tests", nargs="*", default=TESTS, help="instead of the trainers' contract")
    parsed = parser.parse_args(arguments)
    if missing := missing_tools():
        print(f"test-arm64: install {' '.join(missing)} (Debian's names)", file=sys.stderr)
        return 1
    make_userland()
    cores = [core for core in CORES if parsed.core in (None, core.name)]
    if parsed.only != "life":
        command = [sys.executable, "-m", "pytest", "-q", *parsed.tests]
        codes = [subprocess.run(command, cwd=ROOT, check=False).returncode]
        codes += [run_emulated(core, parsed.tests) for core in cores if not any(codes)]
        if any(codes):
            return max(codes)
    if parsed.only == "contract" or parsed.tests != TESTS:
        return 0
    for core in cores:
        keep(core, arm64_life.live(core))
    return 0


def keep(core: Core, figures: dict[str, Any]) -> None:
    """Write a life's figures beside those of the other core."""
    path = RESULTS / "arm64.json"
    known = json.loads(path.read_text())["figures"] if path.exists() else {}
    save("arm64", {**known, core.name: figures}, {})


def run_emulated(core: Core, tests: list[str]) -> int:
    """Exit status of the tests in the userland.

    proot reports success of whatever was ended by a signal, so pytest's own word is needed.
    """
    print(f"test-arm64: {core.name} ({core.board})", flush=True)
    build = (ROOT / "build").resolve()  # it may be a link
    binds = [f"{ROOT}:/fedtide", f"{build}:/fedtide/build", f"{PACKAGES}:/opt/packages"]
    userland = Userland(make_userland(), core, binds)
    status = userland.root / "tmp" / "status"
    status.unlink(missing_ok=True)
    code = (
        "import pathlib, pytest, sys; status = int(pytest.main(sys.argv[1:]));"
        "pathlib.Path('/tmp/status').write_text(str(status))"
    )
    environment = {
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": "/opt/packages",
        # Exists and exports nothing: a bundle that is missing is an error, not a skipped test.
        "FEDTIDE_EXPORT_PYTHON": "/usr/bin/false",
    }
    words = ["/usr/bin/python3", "-c", code, *OPTIONS, *tests]
    subprocess.run(
        userland.command(*words, folder="/fedtide", environment=environment), check=False
    )
    if not status.is_file():
        print("test-arm64: the emulated Python did not come to its end", file=sys.stderr)
        return 1
    code_of_tests = int(status.read_text())
    status.unlink()
    return code_of_tests


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
