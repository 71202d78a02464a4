"""What is said when the files of a data set are not there."""

from __future__ import annotations

from pathlib import Path

from fedtide.errors import DataError


def missing(name: str, path: Path, data_dir: Path) -> DataError:
    """The error for a file that a data set needs and `data_dir` does not have."""
    return DataError(
        f"data set {name!r} needs {str(path)!r}, which does not exist",
        hint=f"python -m simulator.learning.datasets {name} --data-dir {data_dir} --download\n"
        "fetches it; or name the folder that has it with --data-dir or FEDTIDE_DATA",
    )
