"""A graph whose inputs or outputs are not those of its manifest is refused, whatever differs."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import pytest

from fedtide.errors import BundleError
from fedtide.manifest import Array, Manifest, Tensor
from fedtide.ports import check_evaluation_ports, check_train_ports
from simulator.faults.fake_learning import fake_bundle

MANIFEST = msgspec.structs.replace(
    fake_bundle(8).manifest,
    tensors=(
        Tensor("mean", (2,), 0, "statistic", shared=True),
        Tensor("w", (2, 3), 2, "parameter", shared=True),
        Tensor("fixed", (), 8, "frozen", shared=False),
    ),
    inputs=Array((4,), "float32"),
    labels=Array((5,), "int64"),
    random=True,
)
F32, I64 = "tensor(float)", "tensor(int64)"


class Node(NamedTuple):
    name: str
    type: str
    shape: list[Any]


class Session:
    """What of an `InferenceSession` is looked at."""

    def __init__(self, inputs: list[Node], outputs: list[Node]) -> None:
        self.inputs, self.outputs = inputs, outputs

    def get_inputs(self) -> list[Node]:
        return self.inputs

    def get_outputs(self) -> list[Node]:
        return self.outputs


DATA = [Node("x", F32, ["batch", 4]), Node("y", I64, [None, 5])]
TENSORS = [
    Node("tensor.mean", F32, [2]),
    Node("tensor.w", F32, [2, 3]),
    Node("tensor.fixed", F32, []),
]
TRAIN = Session(
    [
        *DATA,
        Node("scale", F32, []),
        Node("denominator", F32, []),
        Node("seed", I64, []),
        *TENSORS,
        Node("base.w", F32, [2, 3]),
    ],
    [
        Node("loss", F32, []),
        Node("weight", F32, []),
        Node("new.w", F32, [2, 3]),
        Node("new.mean", F32, [2]),
    ],
)
EVALUATE = Session(
    [*DATA, *TENSORS],
    [Node(name, F32, []) for name in ("loss", "loss.weight", "accuracy", "accuracy.weight")],
)


def check(session: Session, graph: str, manifest: Manifest = MANIFEST) -> None:
    {"train": check_train_ports, "evaluate": check_evaluation_ports}[graph](session, manifest)


def changed(nodes: list[Node]) -> list[list[Node]]:
    """Every way to get one of them wrong."""
    variants = [[*nodes, Node("more", F32, [])]]
    for index, node in enumerate(nodes):
        before, after = nodes[:index], nodes[index + 1 :]
        others = [
            node._replace(type=I64 if node.type == F32 else F32),
            node._replace(type="tensor(double)"),
            node._replace(shape=[*node.shape, 1]),
            node._replace(shape=[*node.shape, "more"]),
            node._replace(shape=[7, *node.shape[1:]] if node.shape else [1]),
            node._replace(name=f"{node.name}2"),
        ]
        if node.shape:
            others.append(node._replace(shape=node.shape[:-1]))
            others.append(node._replace(shape=[*node.shape[:-1], "any"]))
        variants += [[*before, *after], *([*before, other, *after] for other in others)]
    return variants


@pytest.mark.parametrize(("graph", "session"), [("train", TRAIN), ("evaluate", EVALUATE)])
def test_graphs_are_compared_with_the_manifest(graph: str, session: Session) -> None:
    check(session, graph)
    for inputs in changed(session.inputs):
        with pytest.raises(BundleError, match="graph"):
            check(Session(inputs, session.outputs), graph)
    for outputs in changed(session.outputs):
        with pytest.raises(BundleError, match="graph"):
            check(Session(session.inputs, outputs), graph)


def test_a_graph_without_random_numbers_has_no_seed() -> None:
    manifest = msgspec.structs.replace(MANIFEST, random=False)
    with pytest.raises(BundleError, match="'seed'"):
        check(TRAIN, "train", manifest)
    inputs = [node for node in TRAIN.inputs if node.name != "seed"]
    check(Session(inputs, TRAIN.outputs), "train", manifest)
    with pytest.raises(BundleError, match="'seed'"):
        check(Session(inputs, TRAIN.outputs), "train")
