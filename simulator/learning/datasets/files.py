"""Reading files that may be missing, compressed, damaged or much larger than they say."""

from __future__ import annotations

import zlib
from pathlib import Path

from fedtide.errors import DataError

AGAIN = "get it again: delete it and use --download"


def read_compressed(path: Path, bytes_max: int) -> bytes:
    """What is in a file compressed by gzip, all of it and whole.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it cannot be read, is damaged, or holds more than `bytes_max`.
    """
    stream = zlib.decompressobj(wbits=31)  # gzip, with its checksum
    try:
        content = stream.decompress(path.read_bytes(), bytes_max + 1)
    except zlib.error as exc:
        raise DataError(f"{str(path)!r} is damaged: {exc}", hint=AGAIN) from exc
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise unreadable(path, exc) from exc
    if len(content) > bytes_max:
        raise DataError(f"{str(path)!r} holds more than {bytes_max:,} bytes", hint=AGAIN)
    if not stream.eof:
        raise DataError(f"{str(path)!r} is damaged: the end is missing", hint=AGAIN)
    if stream.unused_data:
        raise DataError(
            f"{str(path)!r} is damaged: {len(stream.unused_data):,} bytes follow its end",
            hint=AGAIN,
        )
    return content


def missing(name: str, path: Path, data_dir: Path) -> DataError:
    """The error for a file that a data set needs and `data_dir` does not have."""
    return DataError(
        f"data set {name!r} needs {str(path)!r}, which does not exist",
        hint=f"python -m simulator.learning.datasets {name} --data-dir {data_dir} --download\n"
        "fetches it; or name the folder that has it with FEDTIDE_DATA, with learning.data_dir in "
        "a scenario, or with this command's and fedtide repro's --data-dir",
    )


def unreadable(path: Path, exc: OSError) -> DataError:
    """The error for a file that is there and cannot be read."""
    return DataError(f"{str(path)!r} cannot be read: {exc}")
