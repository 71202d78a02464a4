"""The arrows between the packages and the bans of the house, each shown to notice a violation."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = (
    "fedtide",
    "edge_client",
    "device_installer",
    "coordinator",
    "registrar",
    "backup",
    "export",
    "simulator",
    "repro",
    "demo",
    "benchmarks",
)
MAY_IMPORT = {
    "fedtide": {"fedtide"},
    "edge_client": {"edge_client", "fedtide"},
    "device_installer": {"device_installer"},
    "coordinator": {"coordinator", "fedtide"},
    "registrar": {"registrar", "fedtide"},
    "backup": {"backup", "coordinator", "registrar", "fedtide"},
    "export": {"export", "fedtide", "edge_client"},
}
"""Packages that are not listed may import any other. Export verifies with the device's trainers."""
PURE = frozenset(
    {
        "coordinator/round_machine.py",
        "coordinator/stragglers.py",
        "coordinator/round_state.py",
        "coordinator/cohort.py",
        "coordinator/diagnosis.py",
        "coordinator/aggregation.py",
        "coordinator/local_steps.py",
        "coordinator/plans.py",
        "coordinator/vetting.py",
        "edge_client/conditions.py",
        "edge_client/durable.py",
        "edge_client/hours.py",
        "edge_client/outbox.py",
        "edge_client/session_machine.py",
        "edge_client/session_state.py",
        "fedtide/key_set.py",
        "fedtide/messages.py",
        "fedtide/onnx_calls.py",
        "fedtide/onnx_footprint.py",
        "fedtide/onnx_graph.py",
        "fedtide/onnx_operations.py",
        "fedtide/onnx_rules.py",
        "fedtide/onnx_scan.py",
        "fedtide/onnx_values.py",
        "fedtide/onnx_window_rules.py",
        "fedtide/picture.py",
        "fedtide/picture_text.py",
        "fedtide/seal.py",
        "fedtide/topics.py",
        "fedtide/vectors.py",
        "simulator/report/curves.py",
        "simulator/report/digest.py",
        "simulator/report/fairness.py",
        "simulator/report/figures.py",
        "simulator/report/summary.py",
        "simulator/report/tasks.py",
        "simulator/report/timeline.py",
        "simulator/report/verdict.py",
        "simulator/report/words.py",
    }
)
IMPURE_MODULES = {"time", "random", "os", "socket", "sqlite3", "threading", "logging", "paho"}
MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70

Finding = str
Checker = Callable[[str, ast.Module, str], Iterator[Finding]]


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of every import, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("__import__", "importlib.import_module", "import_module")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield node.lineno, str(node.args[0].value)


def check_arrows(path: str, tree: ast.Module, _source: str) -> Iterator[Finding]:
    package = path.split("/", maxsplit=1)[0]
    allowed = MAY_IMPORT.get(package)
    for line, name in imported(tree):
        top = name.split(".")[0]
        if name.startswith("."):
            yield f"{path}:{line} imports {name!r}, which is relative"
        elif allowed is not None and top in PACKAGES and top not in allowed:
            yield f"{path}:{line} {package} imports {name}"


def check_torch(path: str, tree: ast.Module, _source: str) -> Iterator[Finding]:
    if path.startswith(("export/", "benchmarks/")) or path == "demo/model.py":
        return
    for line, name in imported(tree):
        if name.split(".")[0] in ("torch", "torchvision"):
            yield f"{path}:{line} imports {name}"


def check_purity(path: str, tree: ast.Module, _source: str) -> Iterator[Finding]:
    if path not in PURE:
        return
    for line, name in imported(tree):
        if name.split(".")[0] in IMPURE_MODULES:
            yield f"{path}:{line} is pure, but imports {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("open", "print", "hash"):
            yield f"{path}:{node.lineno} is pure, but calls {ast.unparse(node.func)}"


def check_pickle(path: str, tree: ast.Module, _source: str) -> Iterator[Finding]:
    for line, name in imported(tree):
        if name.split(".")[0] in ("pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"):
            yield f"{path}:{line} imports {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and (node.arg, ast.unparse(node.value)) in (
            ("allow_pickle", "True"),
            ("weights_only", "False"),
        ):
            yield f"{path}:{node.value.lineno} {node.arg}={ast.unparse(node.value)}"


def check_sleep(path: str, tree: ast.Module, _source: str) -> Iterator[Finding]:
    if path.startswith(("demo/", "benchmarks/")):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.sleep", "sleep"):
            yield f"{path}:{node.lineno} sleeps"


def check_sizes(path: str, tree: ast.Module, source: str) -> Iterator[Finding]:
    count = source.count("\n")
    if count > MODULE_LINES_MAX:
        yield f"{path} has {count} lines, at most {MODULE_LINES_MAX}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > FUNCTION_LINES_MAX:
                yield f"{path}:{node.lineno} {node.name} has {length} lines"


CHECKERS: dict[str, Checker] = {
    "arrows": check_arrows,
    "torch": check_torch,
    "purity": check_purity,
    "pickle": check_pickle,
    "sleep": check_sleep,
    "sizes": check_sizes,
}


def modules() -> Iterator[tuple[str, ast.Module, str]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            source = path.read_text()
            yield path.relative_to(ROOT).as_posix(), ast.parse(source), source


@pytest.mark.parametrize("name", sorted(CHECKERS))
def test_the_code_keeps(name: str) -> None:
    findings = [finding for module in modules() for finding in CHECKERS[name](*module)]
    assert findings == []


def test_the_pure_modules_exist() -> None:
    assert sorted(PURE) == sorted(path for path, _, _ in modules() if path in PURE)


@pytest.mark.parametrize(
    ("name", "path", "source"),
    [
        ("arrows", "fedtide/x.py", "import coordinator.store"),
        ("arrows", "fedtide/x.py", "def f():\n    from edge_client import session"),
        ("arrows", "edge_client/x.py", "from coordinator.store import Store"),
        ("arrows", "coordinator/x.py", "import edge_client"),
        ("arrows", "registrar/x.py", "import coordinator.store"),
        ("arrows", "device_installer/x.py", "from fedtide.errors import FedtideError"),
        ("arrows", "coordinator/x.py", "from . import store"),
        ("arrows", "export/x.py", "import coordinator"),
        ("arrows", "fedtide/x.py", "import importlib\nimportlib.import_module('coordinator')"),
        ("torch", "edge_client/x.py", "def f():\n    import torch.nn"),
        ("torch", "demo/command.py", "from torch import nn"),
        ("purity", "coordinator/cohort.py", "import random"),
        ("purity", "fedtide/messages.py", "import os.path"),
        ("purity", "edge_client/session_machine.py", "import logging"),
        ("purity", "coordinator/vetting.py", "open('x')"),
        ("purity", "coordinator/cohort.py", "hash('x')"),
        ("pickle", "coordinator/x.py", "import pickle"),
        ("pickle", "coordinator/x.py", "numpy.load(path, allow_pickle=True)"),
        ("pickle", "export/x.py", "torch.load(path, weights_only=False)"),
        ("sleep", "fedtide/x.py", "import time\ntime.sleep(1)"),
        ("sizes", "fedtide/x.py", "x = 1\n" * (MODULE_LINES_MAX + 1)),
        ("sizes", "fedtide/x.py", "def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX),
    ],
)
def test_each_checker_notices_a_planted_violation(name: str, path: str, source: str) -> None:
    assert list(CHECKERS[name](path, ast.parse(source), source))


def test_a_checker_leaves_alone_what_is_allowed() -> None:
    source = "import torch\nimport fedtide.blobs\nx = load(p, allow_pickle=False)\n"
    for name, check in CHECKERS.items():
        assert list(check("export/x.py", ast.parse(source), source)) == [], name


def test_the_installer_needs_nothing_but_python() -> None:
    foreign = {
        name.split(".")[0]
        for path, tree, _ in modules()
        if path.startswith("device_installer/")
        for _, name in imported(tree)
    }
    assert foreign - {"device_installer"} - set(sys.stdlib_module_names) == set()


def test_the_device_needs_nothing_but_its_five_packages() -> None:
    """What `edge_client` and `fedtide` import: the standard library and the declared five."""
    allowed = {"numpy", "paho", "msgspec", "onnxruntime", "cryptography", "edge_client", "fedtide"}
    lazily = {"rich", "PIL"}
    foreign = {
        name.split(".")[0]
        for path, tree, _ in modules()
        if path.startswith(("edge_client/", "fedtide/"))
        for _, name in imported(tree)
    }
    assert foreign - allowed - lazily - set(sys.stdlib_module_names) == set()
