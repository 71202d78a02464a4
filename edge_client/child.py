"""Graphs of a command run in a process of its own: a crash of onnxruntime, or the kernel that ends
a process for its memory, becomes a message.

`ask` is the command's side, `answer` that of the module which the new process runs. (Training has
a thread instead, and the client as a whole something that starts it again: ADR 5.)
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from fedtide.errors import FedtideError
from fedtide.launch import module_command, module_environment
from fedtide.memory_limit import limit_memory

Answer = dict[str, Any]


def ask(module: str, words: Sequence[str], seconds_max: float) -> Answer:
    """What `python -m MODULE WORDS` answers, or {"error": text}."""
    try:
        done = subprocess.run(
            module_command(module, *words),
            env=module_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=seconds_max,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"it took longer than {seconds_max:g} s"}
    if done.returncode < 0:
        return {"error": _signal_text(-done.returncode)}
    try:
        result: Answer = json.loads(done.stdout)
    except ValueError:
        return {"error": f"its process ended with code {done.returncode} and without an answer"}
    return result


def _signal_text(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = "unknown"
    why = "perhaps memory ran out" if name == "SIGKILL" else "onnxruntime crashed in it"
    return f"signal {number} ({name}) ended its process: {why}"


def answer(function: Callable[[], Answer]) -> int:
    """Print what `function` returns as one JSON object, or its failure; the exit code.

    A number that is infinite or NaN, of which JSON has neither, becomes null.
    """
    limit_memory()
    try:
        result = function()
    except (FedtideError, MemoryError) as exc:
        result = {"error": str(exc) or "out of memory"}
    except KeyboardInterrupt:  # said to the command, too
        return 130
    print(json.dumps({key: None if _is_odd(value) else value for key, value in result.items()}))
    return 0


def _is_odd(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
