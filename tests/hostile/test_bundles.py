"""Bundles made to harm: what would take a device's memory or its process is refused before
onnxruntime sees it. What could end a process is tried in another one, under a memory limit."""

from __future__ import annotations

import contextlib
import importlib.util
import random
import struct
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from fedtide import limits
from fedtide.bundle import Bundle, open_bundle, open_bundle_dir, sha256_hex
from fedtide.errors import BundleError
from fedtide.manifest import parse_manifest
from fedtide.onnx_scan import scan_model
from tests.bundles import ROOT, build, export_python
from tests.onnx_bytes import (
    attribute,
    block,
    chain,
    float_tensor,
    graph,
    int64_array,
    int64_tensor,
    integer,
    integers,
    model,
    node,
    number,
    result,
    scalar,
    scan_node,
    string,
    value,
    varint,
)

ONNXRUNTIME = importlib.util.find_spec("onnxruntime") is not None
X = value("x", 1, (1,))
HUGE = (1000, 1000, 3000)
BIG = int64_tensor("big", *HUGE)
ONE = float_tensor("one", 1)
TO_INT64 = integer("to", 7)


def after(*nodes: bytes, constants: tuple[bytes, ...] = ()) -> bytes:
    """The sum of `huge`, which the nodes make."""
    return chain([*nodes, node("ReduceSum", "huge")], constants, [X])


def body(*nodes: bytes, inputs: str = "s", output: str = "t") -> bytes:
    content = b"".join(block(1, item) for item in nodes) + block(2, "body")
    content += b"".join(block(11, result(name)) for name in inputs.split())
    return content + block(12, result(output))


def window(op_type: str, more: bytes, *, weight: bool = True) -> bytes:
    constants = (float_tensor("a", 1, 1, 3, 3), float_tensor("w", 1, 1, 1, 1))
    return after(node(op_type, "a w" if weight else "a", "huge", more=more), constants=constants)


ONES = float_tensor("row", 1, 200_000)
TYPED = number(1, 3) + number(2, 7) + block(8, "big") + block(7, b"".join(map(varint, HUGE)))
BOMBS = {
    "ConstantOfShape": after(node("ConstantOfShape", "big", "huge"), constants=(BIG,)),
    "typed content": after(node("ConstantOfShape", "big", "huge"), constants=(TYPED,)),
    "Constant": after(
        node("Constant", "", "s", more=attribute(5, BIG)), node("Expand", "x s", "huge")
    ),
    "Constant of integers": after(
        node("Constant", "", "s", more=integers("value_ints", *HUGE)),
        node("ConstantOfShape", "s", "huge"),
    ),
    "Tile": after(node("Tile", "x n", "huge"), constants=(int64_tensor("n", 1 << 32),)),
    "Pad": after(node("Pad", "x p", "huge"), constants=(int64_tensor("p", 0, 1 << 40),)),
    "Range": after(
        node("Range", "a b c", "huge"),
        constants=(scalar("a", 0), scalar("b", 1 << 32), scalar("c", 1)),
    ),
    "OneHot": after(
        node("OneHot", "i d v", "huge"),
        constants=(int64_tensor("i", 0), scalar("d", 1 << 40), float_tensor("v", 2)),
    ),
    "Resize": after(
        node("Resize", "a  s", "huge", more=string("mode", "nearest")).replace(
            block(1, "a") + block(1, "s"), block(1, "a") + block(1, "") + block(1, "s")
        ),
        constants=(float_tensor("a", 1, 1, 9, 9), float_tensor("s", 4, content=3e4)),
    ),
    "concatenated": after(
        node("Concat", "k k k", "s", more=integer("axis", 0)),
        node("ConstantOfShape", "s", "huge"),
        constants=(int64_tensor("k", 2000),),
    ),
    "multiplied": after(
        node("Mul", "k k", "s"), node("ConstantOfShape", "s", "huge"),
        constants=(int64_tensor("k", 1 << 16),),
    ),
    "through floats": after(
        node("Cast", "f", "g", more=TO_INT64), node("ConstantOfShape", "g", "huge"),
        constants=(float_tensor("f", 1, content=2.0**33),),
    ),
    "shape of a shape": after(
        node("Expand", "one k", "a"), node("Shape", "a", "n"), node("Mul", "n n", "s"),
        node("ConstantOfShape", "s", "huge"), constants=(ONE, int64_tensor("k", 1 << 17)),
    ),
    "chain": after(
        *(node("Concat", f"c{i} c{i}", f"c{i + 1}", more=integer("axis", 0)) for i in range(31)),
        node("Identity", "c31", "huge"), constants=(float_tensor("c0", 1),),
    ),
    "many at one time": after(
        *(node("Expand", f"{'x' if not i else f'e{i - 1}'} k", f"e{i}") for i in range(40)),
        node("Sum", " ".join(f"e{i}" for i in range(40)), "huge"),
        constants=(int64_tensor("k", 1 << 24),),
    ),
    "MatMul": after(
        node("Transpose", "row", "column"), node("MatMul", "column row", "huge"), constants=(ONES,)
    ),
    "Einsum": after(
        node("Einsum", "row row", "huge", more=string("equation", "ai,bj->ij")), constants=(ONES,)
    ),
    "between Einsum's operands": after(
        node("Einsum", "row row row", "huge", more=string("equation", "ai,bj,ci->j")),
        constants=(ONES,),
    ),
    "Add": after(
        node("Transpose", "row", "column"), node("Add", "column row", "huge"), constants=(ONES,)
    ),
    "Gather": after(
        node("Expand", "i k", "many"), node("Gather", "row many", "huge"),
        constants=(ONES, scalar("i", 0), int64_tensor("k", 1 << 20)),
    ),
    "pads of a Conv": window("Conv", integers("pads", 1 << 20, 1 << 20, 0, 0)),
    "pads of a pool": window(
        "MaxPool", integers("kernel_shape", 1, 1) + integers("pads", 1 << 20, 1 << 20, 0, 0),
        weight=False,
    ),
    "output_padding": window("ConvTranspose", integers("output_padding", 1 << 20, 1 << 20)),
    "strides": window("ConvTranspose", integers("strides", 1 << 20, 1 << 20)),
    "dilations": window("ConvTranspose", integers("output_shape", 1 << 20, 1 << 20)),
    "negative pads": window("ConvTranspose", integers("pads", *[-(1 << 20)] * 4)),
    "DepthToSpace and back": after(
        node("Expand", "one k", "a"), node("MatMul", "a at", "huge"),
        node("Transpose", "a", "at"), constants=(ONE, int64_tensor("k", 1 << 17, 1)),
    ),
    "stacked by a Scan": after(
        scan_node(body(node("Expand", "s k", "t")), "row", "huge"),
        constants=(float_tensor("row", 5000), int64_tensor("k", 1 << 17)),
    ),
    "Scan in a Scan": after(
        node("Expand", "one k", "rows"),
        scan_node(body(scan_node(body(node("Neg", "s", "t")), "rows", "u"),
                       node("ReduceMax", "u", "t", more=integer("keepdims", 0))), "rows", "v"),
        scan_node(body(scan_node(body(scan_node(body(node("Neg", "s", "t")), "rows", "u"),
                                      node("ReduceMax", "u", "t", more=integer("keepdims", 0))),
                                 "rows", "u"),
                       node("ReduceMax", "u", "t", more=integer("keepdims", 0))), "rows", "huge"),
        constants=(ONE, int64_tensor("k", 1 << 16)),
    ),
    "from values of the data": after(
        node("Cast", "x", "s", more=TO_INT64), node("ConstantOfShape", "s", "huge")
    ),
    "from data by way of Resize": after(
        node("Cast", "x", "s", more=TO_INT64), node("Expand", "one s", "huge"), constants=(ONE,)
    ),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_memory_bombs_are_refused(bomb: str) -> None:
    assert len(BOMBS[bomb]) < 850_000
    with pytest.raises(BundleError):
        scan_model(BOMBS[bomb])


def test_128_bytes_that_ask_for_12_gigabytes() -> None:
    """A session of it builds; it fails, or takes the memory, only when it is run."""
    bomb = model(graph(node("ConstantOfShape", "s"), more=block(5, int64_tensor("s", *HUGE))))
    assert len(bomb) < 160
    with pytest.raises(BundleError, match="12,000,000,000 bytes"):
        scan_model(bomb)
    small = bomb.replace(struct.pack("<q", 3000), struct.pack("<q", 3))
    assert scan_model(small).footprint.peak_bytes == 12_000_000


SIDE = 8192
SQUARE = int64_tensor("square", SIDE, SIDE)
SLICES = (float_tensor("none", 1, 0), int64_tensor("many", 1 << 40, 0))
"""Of no elements, and many."""
HOURS = {
    # 2 x 8192^3 operations each, and never more than three matrices of 268 MB.
    "products": after(
        node("Expand", "x square", "m0"),
        *(node("MatMul", f"m{i} m{i}", f"m{i + 1}") for i in range(10)),
        node("ReduceMax", "m10", "huge"), constants=(SQUARE,),
    ),
    "products in a Scan": after(
        node("Expand", "x square", "m"),
        scan_node(
            body(node("MatMul", "m m", "p"), node("ReduceMax", "p", "t")), "x1000", "huge"
        ),
        constants=(SQUARE, float_tensor("x1000", 1000)),
    ),
    "iterations over nothing": after(
        node("Expand", "none many", "slices"),
        scan_node(body(node("Neg", "s", "t")), "slices", "all"),
        node("Shape", "all", "n"), node("Cast", "n", "huge", more=integer("to", 1)),
        constants=SLICES,
    ),
    "a state passed through, over nothing": after(
        node("Expand", "none many", "slices"),
        scan_node(body(inputs="h s", output="h"), "x slices", "huge"), constants=SLICES,
    ),
    "nothing passed through": after(
        node("Expand", "none many", "slices"),
        scan_node(body(output="s"), "slices", "all"),
        node("Shape", "all", "n"), node("Cast", "n", "huge", more=integer("to", 1)),
        constants=SLICES,
    ),
    # Never more than 512 MB, and 2 x 2^26 elements each time.
    "elements in a Scan": after(
        node("Expand", "x many", "m"),
        scan_node(body(node("Atanh", "m", "p"), node("ReduceMax", "p", "t")), "x5000", "huge"),
        constants=(int64_tensor("many", 1 << 26), float_tensor("x5000", 5000)),
    ),
    "a large window": after(
        node("Expand", "a side", "image"), node("MaxPool", "image", "huge", more=integers(
            "kernel_shape", 2048, 2048)),
        constants=(float_tensor("a", 1, 1, 1, 1), int64_tensor("side", 1, 1, 5000, 5000)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("bomb", HOURS)
def test_graphs_that_would_compute_for_hours_are_refused(bomb: str) -> None:
    with pytest.raises(BundleError, match="operations, at most 10,000,000,000,000 are accepted"):
        scan_model(HOURS[bomb])


def test_a_bomb_that_waits_for_a_batch() -> None:
    """Nothing with one example; the power of the batch that is wanted of it otherwise."""
    batch = block(1, "x") + block(2, block(1, number(1, 1) + block(2, block(1, block(2, "n")))))
    nodes = [node("Shape", "x", "n"), node("Concat", "n " * 6, "s", more=integer("axis", 0))]
    with pytest.raises(BundleError, match="batch of 64"):
        scan_model(chain([*nodes, node("ConstantOfShape", "s", "y")], inputs=[batch]))


A3 = float_tensor("a", 1, 1, 3, 3)
INDEX = int64_array("i", [1, 1, 1], (1 << 40) - 1)
CRASHERS = {
    "5 / 0": chain([node("Div", "a z")], [int64_tensor("a", 5), int64_tensor("z", 0)]),
    "x / (x - x)": chain([node("Sub", "x x", "z"), node("Div", "x z")], (), [value("x", 7)]),
    "x % (x - x)": chain([node("Sub", "x x", "z"), node("Mod", "x z")], (), [value("x", 7)]),
    "x / (batch - 1)": chain(
        [node("Shape", "x", "n"), node("Sub", "n k", "z"), node("Div", "x z")],
        [int64_tensor("k", 1)], [value("x", 7)],
    ),
    "least / -1": chain(
        [node("Div", "a m")], [int64_tensor("a", -(1 << 63)), int64_tensor("m", -1)]
    ),
    "Conv, stride 0": window("Conv", integers("strides", 0, 0)),
    "Conv, group 0": window("Conv", integer("group", 0)),
    "ConvTranspose, group 0": window("ConvTranspose", integer("group", 0)),
    "MaxPool, stride 0": window(
        "MaxPool", integers("kernel_shape", 1, 1) + integers("strides", 0, 0), weight=False
    ),
    "Col2Im, block 0": chain(
        [node("Col2Im", "a s b", more=integers("strides", 0, 0))],
        [float_tensor("a", 1, 1, 9), int64_tensor("s", 3, 3), int64_tensor("b", 0, 0)],
    ),
    "GroupNormalization, 0 groups": chain(
        [node("GroupNormalization", "a w w", more=integer("num_groups", 0))],
        [float_tensor("a", 1, 1, 3), float_tensor("w", 1)],
    ),
    "Trilu, least offset": chain([node("Trilu", "a k")], [float_tensor("a", 3, 3), scalar(
        "k", -(1 << 63))]),
    "Einsum of nothing": chain(
        [node("Einsum", "a b", more=string("equation", "i,j->ji"))],
        [float_tensor("a", 2), float_tensor("b", 0)],
    ),
    "TopK of nothing": chain(
        [node("TopK", "a k")], [float_tensor("a", 0, 4), int64_tensor("k", 2)]
    ),
    "LSTM of nothing": chain(
        [node("LSTM", "x w r", more=integer("hidden_size", 4))],
        [float_tensor("x", 5, 2, 3), float_tensor("w", 1, 16, 0), float_tensor("r", 1, 16, 4)],
    ),
    "LpNormalization of nothing": chain([node("LpNormalization", "a")], [float_tensor("a", 3, 0)]),
    "Col2Im of nothing": chain(
        [node("Col2Im", "a s b")],
        [float_tensor("a", 2, 12, 0), int64_tensor("s", 5, 6), int64_tensor("b", 2, 3)],
    ),
    "GatherND, other batch": chain(
        [node("GatherND", "a i", more=integer("batch_dims", 1))],
        [float_tensor("a", 4, 3), int64_array("i", [2, 1], 0, 0)],
    ),
    "MaxUnpool writes elsewhere": chain(
        [node("MaxUnpool", "a i", more=integers("kernel_shape", 2))],
        [float_tensor("a", 1, 1, 1), INDEX],
    ),
}  # fmt: skip
"""Each ends the process with a signal in some onnxruntime from 1.20 to 1.31."""

LOAD_AND_RUN = textwrap.dedent(
    """
    import resource, sys
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))
    import numpy as np
    from fedtide.errors import BundleError
    from fedtide.runtime import import_onnxruntime, load_session, session_options
    ort = import_onnxruntime()
    names = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
    for path in sys.argv[2:]:
        raw = open(path, "rb").read()
        try:
            if sys.argv[1] == "scanned":
                session = load_session(raw)
            else:
                session = ort.InferenceSession(
                    raw, session_options(1), providers=["CPUExecutionProvider"]
                )
            feeds = {
                item.name: np.ones([n if isinstance(n, int) else 3 for n in item.shape],
                                   names[item.type])
                for item in session.get_inputs()
            }
            session.run(None, feeds)
            print("ran", path, flush=True)
        except BundleError:
            print("refused", path, flush=True)
        except Exception as exc:
            print("failed", path, str(exc)[:200].replace("\\n", " "), flush=True)
    """
)


def in_another_process(how: str, files: list[Path]) -> list[str]:
    """What became of each file: "refused", "failed" or "ran"."""
    if not ONNXRUNTIME:
        pytest.skip("no onnxruntime in this environment")
    command = [sys.executable, "-c", LOAD_AND_RUN, how, *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    at = f"at {files[len(lines)]}" if len(lines) < len(files) else ""
    assert done.returncode == 0, f"signal {-done.returncode} {at}\n{done.stderr[-2000:]}"
    return [line.split()[0] for line in lines]


def write(folder: Path, models: list[bytes]) -> list[Path]:
    files = [folder / f"{index}.onnx" for index in range(len(models))]
    for file, raw in zip(files, models, strict=True):
        file.write_bytes(raw)
    return files


def test_what_ends_the_process_never_reaches_onnxruntime(tmp_path: Path) -> None:
    for raw in CRASHERS.values():
        with pytest.raises(BundleError):
            scan_model(raw)
    files = write(tmp_path, list(CRASHERS.values()))
    assert set(in_another_process("scanned", files)) == {"refused"}


@pytest.mark.slow
def test_a_memory_limit_stops_what_the_scan_would_miss(tmp_path: Path) -> None:
    """The second line of defence, alone: an error, and neither a killed process nor a full one."""
    greedy = ["ConstantOfShape", "Tile", "MatMul", "Add", "chain"]
    outcomes = in_another_process("unscanned", write(tmp_path, [BOMBS[name] for name in greedy]))
    assert set(outcomes) == {"failed"}


def real_bundle() -> Bundle:
    try:
        return open_bundle_dir(build("tiny_mlp"))
    except RuntimeError as exc:
        if export_python() is None:
            pytest.skip(str(exc))
        raise


def mutations(raw: bytes, count: int) -> list[bytes]:
    generator = random.Random(7)
    found: list[bytes] = []
    for _ in range(count):
        changed = bytearray(raw)
        for _ in range(generator.choice((1, 1, 2, 5))):
            at = generator.randrange(len(changed))
            kind = generator.randrange(5)
            if kind == 0:
                changed[at] = generator.randrange(256)
            elif kind == 1:
                changed[at] ^= 1 << generator.randrange(8)
            elif kind == 2:
                del changed[at : at + generator.randrange(1, 9)]
            elif kind == 3:
                start = generator.randrange(len(changed))
                changed[at:at] = changed[start : start + generator.randrange(1, 40)]
            else:
                del changed[max(1, at) :]
        found.append(bytes(changed))
    return found


def test_a_damaged_step_is_refused_or_harmless(tmp_path: Path) -> None:
    """Whatever happens to the bytes: an error of ours, or a graph that onnxruntime survives."""
    bundle = real_bundle()
    raw = bundle.read(bundle.manifest.runtimes.portable.train)
    scan_model(raw)
    survivors = []
    for changed in mutations(raw, 500):
        with contextlib.suppress(BundleError):
            scan_model(changed)
            survivors.append(changed)
    assert 10 < len(survivors) < 350
    in_another_process("scanned", write(tmp_path, survivors[:100]))


def with_manifest(bundle: Bundle, **changes: Any) -> Bundle:
    """The bundle with another manifest, which is otherwise in order."""
    manifest = msgspec.to_builtins(bundle.manifest)
    for path, content in changes.items():
        *parents, last = path.split("__")
        place = manifest
        for parent in parents:
            place = place[int(parent) if parent.isdigit() else parent]
        place[int(last) if last.isdigit() else last] = content
    return open_bundle(msgspec.json.encode(manifest), bundle.fetch)


def with_graph(bundle: Bundle, raw: bytes) -> Bundle:
    """The bundle with another training step, and a manifest that vouches for it."""
    path = bundle.manifest.runtimes.portable.train
    entry = {"size_bytes": len(raw), "sha256": sha256_hex(raw)}
    manifest = msgspec.to_builtins(bundle.manifest)
    manifest["files"][path] = entry
    return open_bundle(
        msgspec.json.encode(manifest), lambda name: raw if name == path else bundle.fetch(name)
    )


def open_step(bundle: Bundle) -> None:
    if not ONNXRUNTIME:
        pytest.skip("no onnxruntime in this environment")
    from edge_client.trainers.portable import PortableTrainer

    PortableTrainer(bundle).close()


def test_a_manifest_that_lies_about_shapes_is_found_out() -> None:
    bundle = real_bundle()
    open_step(bundle)
    first = bundle.manifest.tensors[0]
    assert len(first.shape) == 2
    lies: list[dict[str, Any]] = [
        {"tensors__0__shape": first.shape[::-1]},
        {"tensors__0__shape": [first.size]},
        {"tensors__0__name": "other"},
        {"inputs__shape": [9]},
        {"inputs__dtype": "int64"},
        {"labels__shape": [1]},
        {"labels__dtype": "float32"},
    ]
    for lie in lies:
        with pytest.raises(BundleError, match=r"manifest"):
            open_step(with_manifest(bundle, **lie))


def test_a_manifest_that_lies_about_sizes_is_found_out() -> None:
    bundle = real_bundle()
    path = bundle.manifest.runtimes.portable.train
    entry = bundle.manifest.files[path]
    for size in (entry.size_bytes - 1, entry.size_bytes + 1, limits.BLOB_BYTES_MAX):
        lie = {"size_bytes": size, "sha256": entry.sha256}
        with pytest.raises(BundleError, match="damaged"):
            open_step(with_manifest(bundle, files={**files_of(bundle), path: lie}))
    for size in (0, limits.BLOB_BYTES_MAX + 1, 1 << 70):
        lie = {"size_bytes": size, "sha256": entry.sha256}
        with pytest.raises(BundleError, match=r"manifest\.json"):
            with_manifest(bundle, files={**files_of(bundle), path: lie})
    for shape in ([1 << 20, 1 << 20], [0], [-1], [1 << 70], [1] * 9):
        with pytest.raises(BundleError):
            with_manifest(bundle, tensors__0__shape=shape)


def files_of(bundle: Bundle) -> dict[str, Any]:
    files: dict[str, Any] = msgspec.to_builtins(bundle.manifest.files)
    return files


HARMFUL_STEPS = {
    "bomb": BOMBS["ConstantOfShape"],
    "crash": CRASHERS["5 / 0"],
    "not this manifest's": BOMBS["ConstantOfShape"].replace(
        struct.pack("<q", 3000), struct.pack("<q", 3)
    ),
    "onnxruntime's own format": b"\x0c\0\0\0ORTM" + bytes(64),
    "nothing": b"\0",
}


@pytest.mark.parametrize("step", HARMFUL_STEPS)
def test_a_harmful_step_under_a_manifest_that_vouches_for_it(step: str) -> None:
    with pytest.raises(BundleError):
        open_step(with_graph(real_bundle(), HARMFUL_STEPS[step]))


@pytest.mark.parametrize("hidden", [False, True])
def test_a_result_larger_than_it_declares_is_not_written(hidden: bool) -> None:
    """The trainer binds memory of the declared size; onnxruntime must not write beyond it."""
    if not ONNXRUNTIME:
        pytest.skip("no onnxruntime in this environment")
    from fedtide.runtime import import_onnxruntime, session_options

    ort = import_onnxruntime()
    nodes = [node("Expand", "x k")]
    if hidden:
        nodes = [node("Cast", "x", "s", more=TO_INT64), node("ConstantOfShape", "s")]
    raw = chain(nodes, [int64_tensor("k", 1 << 20)], [X], [value("y", 1, (1,))])
    session = ort.InferenceSession(raw, session_options(1), providers=["CPUExecutionProvider"])
    x, y = np.full(1, 1 << 20, np.float32), np.zeros(1, np.float32)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(x))
    binding.bind_ortvalue_output("y", ort.OrtValue.ortvalue_from_numpy(y))
    with pytest.raises(RuntimeError, match="shape"):
        session.run_with_iobinding(binding)


def test_manifests_of_junk_are_refused() -> None:
    for junk in (b"", b"{}", b"[]", b"\xff", b'{"format_version": 2}', b"{" * 10_000):
        with pytest.raises(BundleError):
            parse_manifest(junk)
