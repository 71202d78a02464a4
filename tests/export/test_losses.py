"""Sums and weights of losses: their quotient is PyTorch's mean, and parts add up."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from export import ModelSpec  # noqa: E402
from export.inspection import inspect_model  # noqa: E402
from export.losses import NAMED, accuracy, resolve_loss  # noqa: E402
from export.reference import is_additive  # noqa: E402

LOGITS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([0, 3, 1, 1, 2, 0])
TARGETS = torch.rand(6, 4, generator=torch.Generator().manual_seed(1))
WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 3.0])

CASES: dict[str, tuple[Any, Any, Any, Any]] = {
    "cross_entropy": ("cross_entropy", LOGITS, CLASSES, F.cross_entropy(LOGITS, CLASSES)),
    "token_cross_entropy": (
        "token_cross_entropy", LOGITS.reshape(2, 3, 4), CLASSES.reshape(2, 3),
        F.cross_entropy(LOGITS, CLASSES),
    ),
    "nll": ("nll", LOGITS.log_softmax(1), CLASSES, F.cross_entropy(LOGITS, CLASSES)),
    "mse": ("mse", LOGITS, TARGETS, F.mse_loss(LOGITS, TARGETS)),
    "l1": ("l1", LOGITS, TARGETS, F.l1_loss(LOGITS, TARGETS)),
    "smooth_l1": ("smooth_l1", LOGITS, TARGETS, F.smooth_l1_loss(LOGITS, TARGETS)),
    "huber": ("huber", LOGITS, TARGETS, F.huber_loss(LOGITS, TARGETS)),
    "bce_with_logits": (
        "bce_with_logits", LOGITS, TARGETS, F.binary_cross_entropy_with_logits(LOGITS, TARGETS),
    ),
    "weighted": (
        nn.CrossEntropyLoss(WEIGHTS, label_smoothing=0.1), LOGITS, CLASSES,
        F.cross_entropy(LOGITS, CLASSES, WEIGHTS, label_smoothing=0.1),
    ),
    "ignored": (
        nn.CrossEntropyLoss(ignore_index=1), LOGITS, CLASSES,
        F.cross_entropy(LOGITS, CLASSES, ignore_index=1),
    ),
    "probabilities": (
        nn.CrossEntropyLoss(), LOGITS, TARGETS, F.cross_entropy(LOGITS, TARGETS),
    ),
    "one target": ("mse", LOGITS[:, 0], TARGETS[:, 0], F.mse_loss(LOGITS[:, 0], TARGETS[:, 0])),
    "ignored beyond the classes": (
        nn.CrossEntropyLoss(WEIGHTS, ignore_index=255), LOGITS, torch.tensor([0, 3, 255, 1, 2, 0]),
        F.cross_entropy(LOGITS, torch.tensor([0, 3, 255, 1, 2, 0]), WEIGHTS, ignore_index=255),
    ),
    "weighted nll": (
        nn.NLLLoss(WEIGHTS, ignore_index=2), LOGITS, CLASSES,
        F.nll_loss(LOGITS, CLASSES, WEIGHTS, ignore_index=2),
    ),
    "pixels": (
        "cross_entropy", LOGITS.reshape(1, 6, 4).permute(0, 2, 1), CLASSES.reshape(1, 6),
        F.cross_entropy(LOGITS, CLASSES),
    ),
    "poisson": (nn.PoissonNLLLoss(), LOGITS, TARGETS, F.poisson_nll_loss(LOGITS, TARGETS)),
    "each": (nn.MSELoss(reduction="none"), LOGITS, TARGETS, F.mse_loss(LOGITS, TARGETS)),
    "function": (lambda o, y: (o - y).abs().mean(1), LOGITS, TARGETS, F.l1_loss(LOGITS, TARGETS)),
    "mean": (lambda o, y: (o - y).abs().mean(), LOGITS, TARGETS, F.l1_loss(LOGITS, TARGETS)),
    "pair": (
        lambda o, y: ((o - y).abs().sum(), torch.tensor(24.0)), LOGITS, TARGETS,
        F.l1_loss(LOGITS, TARGETS),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_sum_over_weight_is_the_mean_of_pytorch(case: str) -> None:
    loss, output, y, expected = CASES[case]
    total, weight = resolve_loss(loss).measure(output, y)
    torch.testing.assert_close(total / weight, expected)


@pytest.mark.parametrize("case", [name for name in CASES if name not in ("pair", "pixels")])
def test_parts_add_up(case: str) -> None:
    loss, output, y, _ = CASES[case]
    measure = resolve_loss(loss).measure
    whole = measure(output, y)
    parts = [measure(output[at], y[at]) for at in (slice(0, 1), slice(1, None))]
    for index in (0, 1):
        torch.testing.assert_close(parts[0][index] + parts[1][index], whole[index])


def test_accuracy_leaves_out_what_is_ignored() -> None:
    output = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [5.0, 4.0]]])
    y = torch.tensor([[0, 0, -100]])
    total, weight = accuracy(output, y, NAMED["token_cross_entropy"])
    assert (total.item(), weight.item()) == (1.0, 2.0)


class Coupled(nn.Module):
    """Examples of a batch see each other, but not at the initial value of `gain`."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(5))

    def forward(self, x: Any) -> Any:
        return x + self.gain * (x - x.mean(0))


@pytest.mark.parametrize(
    ("module", "loss", "additive"),
    [
        (nn.Linear(5, 4), "cross_entropy", True),
        (nn.Linear(5, 4), nn.CrossEntropyLoss(WEIGHTS), True),
        (nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 4)), "cross_entropy", True),
        (nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 4)), "cross_entropy", False),
        (nn.Sequential(Coupled(), nn.Linear(5, 4)), "cross_entropy", False),
        (nn.Linear(5, 4), F.cross_entropy, False),
        (nn.Linear(5, 4), lambda o, y: F.cross_entropy(o, y, reduction="none"), True),
        (nn.Linear(5, 4), nn.MSELoss(reduction="sum"), False),
    ],
)
def test_what_can_be_accumulated_is_found_out(module: Any, loss: Any, additive: bool) -> None:
    spec = ModelSpec(module, torch.zeros(1, 5), loss, example_labels=torch.tensor([0, 3, 1, 2]))
    if isinstance(loss, nn.MSELoss):
        spec = ModelSpec(module, torch.zeros(1, 5), loss)
    assert is_additive(inspect_model(spec, "model")) is additive


class Focal(nn.CrossEntropyLoss):
    """Its own forward pass, under the name of a well-known base."""

    def forward(self, output: Any, y: Any) -> Any:
        p = output.softmax(1).gather(1, y[:, None])
        return (-((1 - p) ** 2) * p.log()).mean()


def test_a_subclass_of_a_loss_is_what_it_computes() -> None:
    total, weight = resolve_loss(Focal()).measure(LOGITS, CLASSES)
    torch.testing.assert_close(total / weight, Focal()(LOGITS, CLASSES))
    assert not torch.isclose(total / weight, F.cross_entropy(LOGITS, CLASSES))
