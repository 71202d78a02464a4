"""Cross-entropy, embeddings and linear layers as rewritten, against PyTorch's autograd."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from export import ModelSpec  # noqa: E402
from export.rewrites import cross_entropy, embedding, linear  # noqa: E402
from tests.export.rewriting import assert_same_in_eager, assert_same_step  # noqa: E402

CLASSES = 7
WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 3.0, 0.0, 1.5, 1.0])


class Loss(nn.Module):
    """Logits [b,classes,4,2] or, last, [b*8,classes], of a linear layer; one loss with options."""

    weights: Any

    def __init__(self, inputs: int, last: bool, weighted: bool, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(inputs, CLASSES)
        self.last = last
        self.options = options
        self.register_buffer("weights", WEIGHTS if weighted else None)

    def forward(self, x: Any, y: Any) -> Any:
        logits = self.layer(x)
        if self.last:
            logits, y = logits.reshape(-1, CLASSES), y.reshape(-1)
        else:
            logits = logits.permute(0, 3, 1, 2)
        loss = F.cross_entropy(logits, y, self.weights, **self.options)
        return loss if loss.dim() == 0 else loss.sin().sum()


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize("form", ["class first", "rows", "rows of a narrow layer"])
@pytest.mark.parametrize("more", ["ignored", "weighted", "smoothed"])
def test_cross_entropy(reduction: str, form: str, more: str) -> None:
    inputs = 3 if "narrow" in form else 20
    options: dict[str, Any] = {"reduction": reduction, "ignore_index": 2}
    if more == "smoothed":
        options["label_smoothing"] = 0.1
    module = Loss(inputs, form != "class first", more == "weighted", **options)
    x, y = torch.randn(5, 4, 2, inputs), torch.randint(0, CLASSES, (5, 4, 2))
    y[:, 0, 0] = torch.tensor([0, 1, 3, 5, 6])
    y[:, 1, 0] = 2
    code = assert_same_in_eager(module, [x, y], [cross_entropy.rewrite])
    # The narrow layer is part of the loss; the wide one stays where it was.
    assert ("linear_cross_entropy" in code) == ("narrow" in form)


class Nll(nn.Module):
    """Log-softmax and NLL as two functions."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.layer = nn.Linear(20, CLASSES)
        self.axis = axis

    def forward(self, x: Any, y: Any) -> Any:
        logits = self.layer(x)
        return F.nll_loss(F.log_softmax(logits, self.axis), y, reduction="sum")


@pytest.mark.parametrize("axis", [1, -1])
def test_log_softmax_and_nll(axis: int) -> None:
    inputs = torch.randn(5, 20), torch.randint(0, CLASSES, (5,))
    code = assert_same_in_eager(Nll(axis), inputs, [cross_entropy.rewrite])
    assert "nll" not in code


@pytest.mark.parametrize("scale", [1.0, 200.0])
def test_hopeless_logits_give_finite_losses(scale: float) -> None:
    logits = (torch.randn(6, CLASSES) * scale).requires_grad_()
    labels = logits.argmin(1)
    loss = cross_entropy.cross_entropy(logits, labels, None, 2, -100, 0.0)
    expected = F.cross_entropy(logits, labels, reduction="sum")
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0])


class Uncovered(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, logits: Any, y: Any) -> Any:
        return F.cross_entropy(logits, y, **self.options)


def test_probabilities_and_weighted_smoothing_are_left_alone() -> None:
    logits = torch.randn(5, CLASSES)
    for module, y in (
        (Uncovered(), logits.softmax(1)),
        (Uncovered(weight=WEIGHTS, label_smoothing=0.1), torch.randint(0, CLASSES, (5,))),
    ):
        program = torch.export.export(module, (logits, y), strict=False)
        assert cross_entropy.rewrite(program.graph_module.graph) == 0


class Language(nn.Module):
    """Tokens [b,6] -> logits [b,6,tokens]; with a weight of both ends where tied."""

    def __init__(self, tokens: int, width: int, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.table = nn.Embedding(tokens, width, padding_idx=3)
        self.middle = nn.Linear(width, width)
        self.last = nn.Linear(width, tokens)
        if tied:
            self.last.weight = self.table.weight

    def forward(self, tokens: Any) -> Any:
        return self.last(self.middle(self.table(tokens)).sin())


class LanguageLoss(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.model = Language(**options)

    def forward(self, x: Any, y: Any) -> Any:
        logits = self.model(x)
        return F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum")


REWRITES = [cross_entropy.rewrite, embedding.rewrite, linear.rewrite]


@pytest.mark.parametrize("tied", [False, True])
def test_language_model_in_eager(tied: bool) -> None:
    x, y = torch.randint(0, 6, (5, 6)), torch.randint(0, 11, (5, 6))
    x[0] = 3
    module = LanguageLoss(tokens=11, width=4, tied=tied)
    code = assert_same_in_eager(module, [x, y], REWRITES)
    assert "aten.embedding" not in code


@pytest.mark.parametrize("tied", [False, True])
def test_rows_of_a_large_table_are_added_to_the_base(tied: bool) -> None:
    x = torch.randint(0, 1200, (5, 6))
    x[0], x[1] = 3, 7
    spec = ModelSpec(Language(1200, 60, tied), x, "token_cross_entropy")
    graph = assert_same_step(spec, REWRITES, opset=18).graph
    sources = {name: node for node in graph.node for name in node.output}
    update = sources["new.table.weight"]
    assert update.op_type == "ScatterElements"
    if tied:
        assert sources[update.input[0]].op_type == "Gemm"
    else:
        assert update.input[0] == "base.table.weight"
    # No product reads a matrix that was transposed before it.
    transposed = {node.output[0] for node in graph.node if node.op_type == "Transpose"}
    assert not any(
        transposed.intersection(node.input) for node in graph.node if node.op_type == "Gemm"
    )


def test_rows_of_a_small_table_are_summed_first() -> None:
    spec = ModelSpec(Language(11, 4, False), torch.randint(0, 11, (5, 6)), "token_cross_entropy")
    graph = assert_same_step(spec, REWRITES, opset=21).graph
    update = next(node for node in graph.node if "new.table.weight" in node.output)
    assert update.op_type == "Add"
