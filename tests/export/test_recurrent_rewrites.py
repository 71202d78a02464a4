"""Recurrent layers as Scans: weights', inputs' and initial states' gradients against PyTorch."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from export import ModelSpec  # noqa: E402
from export.quiet import quiet  # noqa: E402
from export.rewrites import recurrent  # noqa: E402
from tests.export.rewriting import assert_same_in_eager, assert_same_step  # noqa: E402

STEPS, INPUTS, HIDDEN = 6, 3, 4

KINDS: dict[str, Any] = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "tanh": nn.RNN,
    "relu": lambda *args, **options: nn.RNN(*args, nonlinearity="relu", **options),
}


class Recurrent(nn.Module):
    """x[b,t,i] -> [b,5], of all steps' outputs and all last states, from trained first states.

    A linear layer before makes the inputs' gradient matter.
    """

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.before = nn.Linear(INPUTS, INPUTS)
        self.layer = KINDS[kind](INPUTS, HIDDEN, **options)
        directions = 2 if self.layer.bidirectional else 1
        states = (2 if kind == "lstm" else 1, self.layer.num_layers * directions, 1, HIDDEN)
        self.first = nn.Parameter(torch.randn(states))
        size = STEPS * HIDDEN * directions + states[0] * states[1] * HIDDEN
        self.after = nn.Linear(size, 5)

    def forward(self, x: Any) -> Any:
        x = self.before(x)
        first = [state.expand(-1, x.shape[0], -1).contiguous() for state in self.first]
        if not self.layer.batch_first:
            x = x.transpose(0, 1)
        y, last = self.layer(x, tuple(first) if len(first) == 2 else first[0])
        if not self.layer.batch_first:
            y = y.transpose(0, 1)
        lasts = last if len(first) == 2 else (last,)
        parts = [y.flatten(1), *(state.transpose(0, 1).flatten(1) for state in lasts)]
        return self.after(torch.cat(parts, 1))


class Summed(nn.Module):
    """A scalar of which every output's gradient differs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Any) -> Any:
        return self.module(x).sin().sum()


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch first": {"batch_first": True},
    "without bias": {"bias": False},
    "stacked, both directions": {"num_layers": 2, "bidirectional": True, "batch_first": True},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS)
def test_gradients_in_eager(kind: str, options: str) -> None:
    module = Summed(Recurrent(kind, **OPTIONS[options]))
    x = torch.randn(5, STEPS, INPUTS)
    assert_same_in_eager(module, [x], [recurrent.rewrite])


@pytest.mark.parametrize("kind", KINDS)
def test_one_scan_forward_and_one_backward_for_each_direction(kind: str) -> None:
    options = {"bidirectional": True, "batch_first": True}
    spec = ModelSpec(Recurrent(kind, **options), torch.zeros(1, STEPS, INPUTS), "cross_entropy")
    graph = assert_same_step(spec, [recurrent.rewrite], opset=18)
    assert sum(node.op_type == "Scan" for node in graph.graph.node) == 4


class LastState(nn.Module):
    """Zero first states, and only the last state of h is used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.table = nn.Embedding(11, INPUTS)
        self.layer = nn.LSTM(INPUTS, HIDDEN, batch_first=True)
        self.after = nn.Linear(HIDDEN, 5)

    def forward(self, x: Any) -> Any:
        return self.after(self.layer(self.table(x))[1][0][-1])


def test_what_nobody_uses_is_not_computed() -> None:
    x = torch.arange(11).repeat(1, 2)[:, :STEPS] + 5
    spec = ModelSpec(LastState(), x, "cross_entropy")
    graph = assert_same_step(spec, [recurrent.rewrite], opset=21)
    scans = [node for node in graph.graph.node if node.op_type == "Scan"]
    bodies = [a.g for node in scans for a in node.attribute if a.name == "body"]
    # h and c; the h before, three factors; not the outputs of all steps.
    assert [len(body.output) for body in bodies] == [6, 3]


def traced(layer: nn.Module) -> Any:
    with quiet():
        program = torch.export.export(layer, (torch.randn(STEPS, 5, INPUTS),), strict=False)
    return program.graph_module.graph


def test_dropout_between_layers_stays_dropout() -> None:
    layer = nn.LSTM(INPUTS, HIDDEN, num_layers=3, dropout=0.5)
    for training, count in ((True, 2), (False, 0)):
        graph = traced(layer.train(training))
        assert recurrent.rewrite(graph) == 1
        targets = [node.target for node in graph.nodes]
        assert targets.count(torch.ops.aten.dropout.default) == count


def test_projections_are_left_alone() -> None:
    layer = nn.LSTM(INPUTS, HIDDEN, proj_size=2)
    assert recurrent.rewrite(traced(layer)) == 0


class Transposed(nn.Module):
    """An LSTM whose recurrent weight is kept the other way round."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.inputs = nn.Parameter(torch.randn(4 * HIDDEN, INPUTS))
        self.across = nn.Parameter(torch.randn(HIDDEN, 4 * HIDDEN))
        self.after = nn.Linear(HIDDEN, 5)

    def forward(self, x: Any) -> Any:
        zero = x.new_zeros(1, x.shape[0], HIDDEN)
        weights = [self.inputs, self.across.t()]
        y, _, _ = torch.lstm(x, [zero, zero], weights, False, 1, 0.0, True, False, True)
        return self.after(y[:, -1])


def test_a_transpose_that_a_scan_reads_stays() -> None:
    spec = ModelSpec(Transposed(), torch.zeros(1, STEPS, INPUTS), "cross_entropy")
    assert_same_step(spec, [recurrent.rewrite], opset=18)
