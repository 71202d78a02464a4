"""Bundles for tests, exported once and kept in `build/bundles/`.

The device's environment has no torch, so another environment's Python makes them:
`FEDTIDE_EXPORT_PYTHON`, by default `.venv/export/bin/python`. Beside each bundle lies
`expected.npz`: what PyTorch computed for a few steps.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "build" / "bundles"


def build(spec_name: str) -> Path:
    """Directory of the bundle of `tests/models.py:spec_name`, exported if it is not cached."""
    folder = CACHE / f"{spec_name}-{_key()}"
    if not (folder / "expected.npz").is_file():
        python = export_python()
        if python is None:
            raise RuntimeError(
                f"bundle {spec_name!r} is not built and there is no environment to export it: "
                "run make test, or set FEDTIDE_EXPORT_PYTHON"
            )
        CACHE.mkdir(parents=True, exist_ok=True)
        _export(python, spec_name, folder)
    return folder / "bundle"


def export_python() -> Path | None:
    """Python of an environment with torch, None if there is none."""
    default = ROOT / ".venv" / "export" / "bin" / "python"
    python = Path(os.environ.get("FEDTIDE_EXPORT_PYTHON", default))
    return python if python.is_file() else None


def _key() -> str:
    """Changes with whatever decides the content of a bundle."""
    digest = hashlib.sha256()
    sources = [
        *sorted((ROOT / "export").rglob("*.py")),
        ROOT / "fedtide" / "manifest.py",
        ROOT / "tests" / "models.py",
        ROOT / "tests" / "expected.py",
        ROOT / "tests" / "plans.py",
        ROOT / "edge_client" / "training.py",
    ]
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _export(python: Path, spec_name: str, folder: Path) -> None:
    # The system gives the lock back when its process ends, however that ends.
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "expected.npz").is_file():
            return
        shutil.rmtree(folder, ignore_errors=True)
        target = f"{ROOT / 'tests' / 'models.py'}:{spec_name}"
        _run(python, "-m", "fedtide", "export", target, "--out", str(folder / "bundle"))
        _run(python, "-m", "tests.expected", spec_name, str(folder / "expected.npz"))


def _run(python: Path, *arguments: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [str(python), *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-4000:]}")
