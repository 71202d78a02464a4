"""The scan of ONNX files, and hostile ones. Files are encoded by hand: a device has no onnx."""

from __future__ import annotations

import contextlib
import importlib.util

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtide.errors import BundleError
from fedtide.onnx_scan import ORT_TRAINING_OPERATORS, scan_model
from fedtide.runtime import load_session, session_options
from tests.onnx_bytes import (
    EXTERNAL,
    attribute,
    block,
    graph,
    int64_array,
    int64_tensor,
    model,
    node,
    number,
    scan_node,
    value,
    varint,
)

GOOD = model(
    graph(
        node("Relu", output="r"),
        node("Add", "r w"),
        more=block(5, number(1, 1) + number(2, 1) + block(8, "w") + block(9, b"\0\0\x80?")),
    )
)


def test_good_model_is_described() -> None:
    scan = scan_model(GOOD)
    assert scan.nodes == 2
    assert scan.initializer_elements == 1
    assert scan.operators == {("", "Relu"): 1, ("", "Add"): 1}


def test_good_model_loads() -> None:
    if importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("no onnxruntime in this environment")
    session = load_session(GOOD)
    assert [item.name for item in session.get_outputs()] == ["y"]


WITH_EXTERNAL = {
    "initializer": graph(node("Relu"), more=block(5, EXTERNAL)),
    "initializer before the nodes": block(5, EXTERNAL) + graph(node("Relu")),
    "attribute": graph(node("Constant", "", more=attribute(5, EXTERNAL))),
    "body": graph(scan_node(graph(node("Relu"), more=block(5, EXTERNAL)))),
    "attribute in a body": graph(
        scan_node(graph(node("Constant", "", more=attribute(5, EXTERNAL))))
    ),
    "location only": graph(node("Relu"), more=block(5, block(13, block(1, "location")))),
    "flag only": graph(node("Relu"), more=block(5, number(14, 1))),
}


@pytest.mark.parametrize("place", WITH_EXTERNAL)
def test_external_data_is_refused_everywhere(place: str) -> None:
    with pytest.raises(BundleError, match="outside the file"):
        scan_model(model(WITH_EXTERNAL[place]))


SPARSE = block(1, int64_tensor("v", 0)) + block(2, int64_tensor("i", 0)) + number(3, 1)
NEVER = {
    "sparse initializer": model(graph(node("Relu"), more=block(15, SPARSE))),
    "sparse attribute": model(graph(node("Constant", "", more=attribute(22, SPARSE)))),
    "sparse attributes": model(graph(node("Constant", "", more=attribute(23, SPARSE)))),
    "list of tensors": model(graph(node("Constant", "", more=attribute(10, EXTERNAL)))),
    "list of graphs": model(graph(node("Relu", more=attribute(11, graph())))),
    "function": model(graph(node("Relu")), block(25, block(1, "Relu") + block(7, node("Neg")))),
    "training_info": model(graph(node("Relu")), block(20, block(1, graph()))),
}


@pytest.mark.parametrize("place", NEVER)
def test_what_no_bundle_needs_is_refused(place: str) -> None:
    with pytest.raises(BundleError, match="not accepted"):
        scan_model(NEVER[place])


def test_foreign_operators_are_refused_by_name() -> None:
    for op_type in ("If", "Loop", "RandomNormal", "StringNormalizer", "NoSuchOperator"):
        with pytest.raises(BundleError, match=op_type):
            scan_model(model(graph(node(op_type))))
    with pytest.raises(BundleError, match="evil"):
        scan_model(model(graph(node("Relu", domain="evil"))))
    gradient = model(graph(node("ReluGrad", domain="com.microsoft")))
    with pytest.raises(BundleError, match=r"com\.microsoft"):
        scan_model(gradient)
    scan_model(gradient, extra_domains=ORT_TRAINING_OPERATORS)
    with pytest.raises(BundleError, match="PyOp"):
        scan_model(
            model(graph(node("PyOp", domain="com.microsoft"))),
            extra_domains=ORT_TRAINING_OPERATORS,
        )


@pytest.mark.parametrize("op_type", ["If", "Loop", "RandomUniformLike"])
def test_bodies_are_scanned_like_graphs(op_type: str) -> None:
    scan_model(model(graph(scan_node(graph(node("Relu"))))))
    inner = graph(scan_node(graph(node(op_type))))
    with pytest.raises(BundleError, match=op_type):
        scan_model(model(graph(scan_node(inner))))


def test_default_domain_has_two_names() -> None:
    scan_model(model(graph(node("Relu", domain="ai.onnx"))))


def test_limits_hold() -> None:
    with pytest.raises(BundleError, match="bytes"):
        scan_model(GOOD, bytes_max=len(GOOD) - 1)
    with pytest.raises(BundleError, match="elements"):
        scan_model(GOOD, elements_max=0)
    tensor = number(1, 1 << 20) + number(1, 1 << 20) + block(8, "w")
    with pytest.raises(BundleError, match="elements"):
        scan_model(model(graph(node("Relu"), more=block(5, tensor))))
    with pytest.raises(BundleError, match="impossible"):
        scan_model(model(graph(node("Relu"), more=block(5, number(1, -4)))))


def test_nesting_is_bounded() -> None:
    inner = graph(node("Relu"))
    for _ in range(200):
        inner = graph(scan_node(inner))
    with pytest.raises(BundleError, match="nested"):
        scan_model(model(inner))


def test_fields_that_two_parsers_would_read_differently_are_refused() -> None:
    with pytest.raises(BundleError, match="twice"):
        scan_model(GOOD + block(7, graph(node("Loop"))))
    with pytest.raises(BundleError, match="twice"):
        scan_model(model(graph(node("Relu") + block(4, "Loop"))))
    with pytest.raises(BundleError, match="wire type"):
        scan_model(model(graph(node("Relu"))) + varint(7 << 3 | 3))


def test_bytes_that_are_also_a_file_in_onnxruntimes_own_format_are_refused() -> None:
    """Valid protobuf whose unknown field 9 puts the mark of the other format at byte 4."""
    polyglot = number(9, 0) + b"\xcd\x00ORTM" + GOOD
    assert polyglot[4:8] == b"ORTM"
    with pytest.raises(BundleError, match="own format"):
        scan_model(polyglot)
    scan_model(polyglot.replace(b"ORTM", b"ORTN"))


def test_onnxruntime_does_not_guess_the_format() -> None:
    if importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("no onnxruntime in this environment")
    options = session_options(1)
    assert options.get_session_config_entry("session.load_model_format") == "ONNX"


def test_truncation_anywhere_is_an_error_of_ours_or_a_smaller_model() -> None:
    for end in range(len(GOOD)):
        try:
            scan_model(GOOD[:end])
        except BundleError:
            continue
        # A cut between two fields of the model leaves a whole graph without what follows it.
        assert end >= len(GOOD) - len(block(8, number(2, 18)))


def test_an_integer_without_content_is_an_error_of_ours() -> None:
    empty_axis = block(5, block(1, "axis") + number(20, 2) + block(3, b""))
    shape = block(1, block(1, b""))
    empty_extent = block(1, "x") + block(2, block(1, number(1, 1) + block(2, shape)))
    for wrong in (
        graph(node("Relu", more=empty_axis)),
        block(1, node("Relu")) + block(2, "g") + block(11, empty_extent) + block(12, value("y")),
    ):
        with pytest.raises(BundleError, match="holds no integer"):
            scan_model(model(wrong))


def test_nothing_is_no_model() -> None:
    for raw in (b"", number(1, 8), b"not a model", b"\xff" * 64):
        with pytest.raises(BundleError):
            scan_model(raw)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_random_bytes_raise_nothing_else(raw: bytes) -> None:
    with contextlib.suppress(BundleError):
        scan_model(raw)


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
@settings(max_examples=300, deadline=None)
def test_one_changed_byte_raises_nothing_else(at: int, byte: int) -> None:
    changed = bytearray(GOOD)
    changed[at] = byte
    with contextlib.suppress(BundleError):
        scan_model(bytes(changed))


def test_a_graph_whose_additions_may_collide_gets_one_thread() -> None:
    """onnxruntime's ScatterND adds from several threads without a lock, and loses some."""
    index = block(5, int64_array("index", [1, 1], 0))
    scatters = node("ScatterND", "x index x", more=attribute(4, b"add", "reduction"))
    for raw, threads in ((model(graph(scatters, more=index)), 1), (model(graph(node("Relu"))), 3)):
        session = load_session(raw, threads=3)
        assert session.get_session_options().intra_op_num_threads == threads
