"""What the export can tell of integer inputs; never more than holds."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import tests.models as models  # noqa: E402
from export import ModelSpec  # noqa: E402
from export.inspection import inspect_model  # noqa: E402


class Columns(nn.Module):
    """x[b, 4] by `look_up`, which has embeddings of 7 and 12 rows."""

    def __init__(self, look_up: Any) -> None:
        super().__init__()
        self.small, self.large = nn.Embedding(7, 2), nn.Embedding(12, 2)
        self.look_up = look_up
        self.out = nn.Linear(2, 3)

    def forward(self, x: Any) -> Any:
        return self.out(self.look_up(self, x).mean(1))


def bag(_: Columns, x: Any) -> Any:
    return torch.nn.functional.embedding_bag(x, torch.ones(9, 2), mode="mean")[:, None]


CASES: dict[str, tuple[Any, int | None]] = {
    "whole": (lambda m, x: m.large(x), 12),
    "both": (lambda m, x: m.large(x) + m.small(x), 7),
    "views": (lambda m, x: m.large(x.reshape(-1, 2).t()).reshape(len(x), -1, 2), 12),
    "columns": (
        lambda m, x: torch.cat(
            [m.small(x[:, :2]), m.large(x[:, 2]).unsqueeze(1), m.small(x[:, 3:])], 1
        ),
        12,
    ),
    "read elsewhere too": (lambda m, x: m.large(x) * (x != 0)[..., None], 12),
    "a bag": (bag, 9),
    "one column is a number": (lambda m, x: m.large(x[:, :3]) * x[:, 3:, None], None),
    "clamped": (lambda m, x: m.large(x.clamp(0, 11)), None),
    "clamped in place": (lambda m, x: m.large(x.clone().clamp_(0, 11)), None),
    "written to": (lambda m, x: m.large(x.clamp_(0, 11)), None),
    "shifted": (lambda m, x: m.large(x + 1), None),
    "hashed": (lambda m, x: m.large(x % 12), None),
    "masked": (lambda m, x: m.large(torch.where(x < 0, 0, x)), None),
    "negative indices": (lambda m, x: m.large.weight[x], None),
    "no embedding": (lambda m, x: x[..., None].float().expand(-1, -1, 2), None),
    "of something else": (lambda m, x: m.large(torch.zeros_like(x)), None),
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_only_what_goes_straight_into_an_embedding_has_a_limit(case: str) -> None:
    look_up, below = CASES[case]
    model = inspect_model(ModelSpec(Columns(look_up), torch.full((1, 4), 3), "cross_entropy"), "m")
    assert model.inputs.below == below


def test_a_vocabulary_and_a_picture() -> None:
    assert inspect_model(models.tiny_tokens(), "m").inputs.below == 12
    assert inspect_model(models.tiny_mlp(), "m").inputs.below is None
