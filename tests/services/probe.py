"""Run inside a service's sandbox in place of its programme: what it can do, as one JSON object.

    probe.py WRITABLE READABLE

Each attempt is "done", or the name of what refused it.
"""

import ctypes
import errno
import json
import mmap
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

CLONE_NEWUSER = 0x10000000
CLOCK = 0


def listen(kind: int, family: int = socket.AF_INET) -> None:
    """A port that others can reach."""
    with socket.socket(family, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            sock.listen(1)


def libc(name: str, *arguments: object) -> None:
    """Call it; its errno is raised."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    if function(*arguments) in (-1, ctypes.c_void_p(-1).value):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def execute_what_was_written() -> None:
    """As a payload would."""
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def set_user_id_file(folder: Path) -> None:
    """A programme that others would run with this user's rights."""
    path = folder / "probe-suid"
    path.touch()
    try:
        path.chmod(0o4755)
    finally:
        path.unlink()


def own_file(folder: Path) -> None:
    """Private from the first byte."""
    path = folder / "probe"
    with path.open("w") as file:
        file.write("x")
    mode = path.stat().st_mode & 0o777
    path.unlink()
    if mode != 0o600:
        raise OSError(errno.EPERM, f"it has mode {mode:o}")


def see_others() -> None:
    """Processes of other users."""
    Path("/proc/1/cmdline").stat()


def attempts(writable: Path, readable: Path) -> dict[str, Callable[[], object]]:
    """By name."""
    return {
        "write in its own folder": lambda: own_file(writable),
        "read what it was given": readable.read_bytes,
        "write what it was given": lambda: readable.open("ab"),
        "write in the parent of its folder": (writable.parent / "x").touch,
        "write in /etc": lambda: Path("/etc/probe").touch(),
        "write in /var/tmp of all": lambda: Path("/var/tmp/probe").touch(),
        "write in /dev/shm": lambda: Path("/dev/shm/probe").touch(),
        "read the diary": lambda: Path("/home/pi/diary.txt").read_bytes(),
        "read the passwords": lambda: Path("/etc/shadow").read_bytes(),
        "write the configuration": lambda: Path("/etc/fedtide/client.toml").open("ab"),
        "open a disk": lambda: os.open("/dev/vda", os.O_RDONLY),
        "listen on TCP": lambda: listen(socket.SOCK_STREAM),
        "listen on UDP": lambda: listen(socket.SOCK_DGRAM),
        "send raw packets": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close(),
        "send on the wire": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
        "execute what was written": execute_what_was_written,
        "make a set-user-id programme": lambda: set_user_id_file(writable),
        "mount": lambda: libc("mount", b"tmpfs", str(writable).encode(), b"tmpfs", 0, 0),
        "set the clock": lambda: libc("clock_settime", CLOCK, (ctypes.c_long * 2)(0, 0)),
        "trace a process": lambda: libc("ptrace", 0, 0, 0, 0),
        "see others' processes": see_others,
        "write kernel settings": lambda: Path("/proc/sys/kernel/hostname").write_text("x"),
        "write in the control groups": lambda: Path("/sys/fs/cgroup/memory/x").mkdir(),
        "use real-time scheduling": lambda: os.sched_setscheduler(
            0, os.SCHED_FIFO, os.sched_param(1)
        ),
        # The last: in it, root is root no more.
        "become root": lambda: os.setuid(0),
        "begin a user namespace": lambda: libc("unshare", CLONE_NEWUSER),
    }


def outcome(attempt: Callable[[], object]) -> str:
    """What became of it."""
    try:
        attempt()
    except OSError as exc:
        return errno.errorcode.get(exc.errno or 0, "unknown")
    return "done"


if __name__ == "__main__":
    found = attempts(Path(sys.argv[1]), Path(sys.argv[2]))
    print(json.dumps({name: outcome(attempt) for name, attempt in found.items()}))
