"""The trainers' contract on the oldest and the newest runtimes: `make test-runtimes`.

Each has an environment of its own in `build/runtimes/`: the oldest Python and the oldest release of
every dependency that `pyproject.toml` admits, and Python 3.13 with the newest ones. Last,
onnxruntime-web (`web.py`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.everywhere.requirements import ROOT, device_requirements

FOLDER = ROOT / "build" / "runtimes"
TESTS = [
    "tests/contract/test_trainers.py",
    "tests/unit/test_onnx_scan.py",
    "tests/hostile/test_bundles.py",
]


def main(arguments: list[str]) -> int:
    """Run the tests, or those named by `arguments`, everywhere; 0 if all passed."""
    failed = []
    tests = [path for path in arguments or TESTS if (ROOT / path).exists()]
    for version, oldest in (("3.11", True), ("3.13", False)):
        name = f"Python {version}, {'oldest' if oldest else 'newest'} packages"
        base = find_python(version)
        if base is None:
            print(f"test-runtimes: {name}: SKIPPED, there is no Python {version} here", flush=True)
            continue
        python = environment(base, version, device_requirements(oldest=oldest))
        print(f"test-runtimes: {name}: {describe(python)}", flush=True)
        if pytest(python, *tests):
            failed.append(name)
    print("test-runtimes: onnxruntime-web", flush=True)
    if pytest(Path(sys.executable), "tests/everywhere/web.py"):
        failed.append("onnxruntime-web")
    for name in failed:
        print(f"test-runtimes: {name}: FAILED")
    return 1 if failed else 0


def find_python(version: str) -> Path | None:
    """A Python of this version that works; pyenv's need not be on the path."""
    command = shutil.which(f"python{version}")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = sorted(pyenv.glob(f"{version}.*/bin/python{version}"))
    for python in ([Path(command)] if command else []) + found:
        # One of pyenv's commands may stand for a version that is not chosen, and fails.
        if not subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode:
            return python
    return None


def environment(base: Path, version: str, requirements: list[str]) -> Path:
    """Python of an environment with `requirements`, made if it is not there."""
    folder = FOLDER / version
    stamp, wanted = folder / "ready", "\n".join(requirements)
    if not stamp.is_file() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([base, "-m", "venv", folder], check=True)
        pip = [str(folder / "bin/python"), "-m", "pip", "--disable-pip-version-check", "install"]
        subprocess.run([*pip, "--quiet", *requirements], check=True)
        stamp.write_text(wanted)
    return folder / "bin/python"


def describe(python: Path) -> str:
    """Versions of what matters."""
    code = (
        "import platform, numpy, onnxruntime as o;"
        "print(platform.python_version(), 'onnxruntime', o.__version__, 'numpy', numpy.__version__)"
    )
    return subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def pytest(python: Path, *tests: str) -> int:
    """Exit status of the tests under `python`."""
    command = [
        str(python),
        "-m",
        "pytest",
        "-q",
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
        *tests,
    ]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
