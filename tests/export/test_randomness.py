"""Dropout's masks: uniform, independent, a function of the seed, and PyTorch's own scale."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from export.randomness import SeededRandomness, kept  # noqa: E402


def mask(seed: int, draw: int, count: int, keep: float = 0.5) -> Any:
    return kept(torch.tensor(seed), draw, torch.zeros(count), keep)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1, 2**53 - 1])
def test_masks_keep_their_share(keep: float, seed: int) -> None:
    count = 100_000
    share = mask(seed, 3, count, keep).float().mean().item()
    assert abs(share - keep) < 5 * (keep * (1 - keep) / count) ** 0.5


def test_neighbours_seeds_and_draws_are_independent() -> None:
    count = 100_000
    one = mask(7, 0, count).float() - 0.5
    others = [
        *(one.roll(lag) for lag in (1, 2, 3, 4, 8, 10, 28, 64, 784)),
        *(mask(seed, 0, count).float() - 0.5 for seed in (6, 8, 9, 7 + 2**20)),
        *(mask(7, draw, count).float() - 0.5 for draw in (1, 2, 3)),
    ]
    for other in others:
        correlation = 4 * (one * other).mean().item()
        assert abs(correlation) < 5 / count**0.5


def test_elements_are_independent_of_each_other_over_seeds() -> None:
    masks = torch.stack([mask(seed, 0, 64).float() for seed in range(4_000)])
    correlations = torch.corrcoef(masks.T) - torch.eye(64)
    assert masks.mean(0).sub(0.5).abs().max() < 5 * 0.5 / 4_000**0.5
    assert correlations.abs().max() < 5.5 / 4_000**0.5


@pytest.mark.parametrize(
    "layer", [nn.Dropout(0.3), nn.Dropout2d(0.3), nn.AlphaDropout(0.3), nn.FeatureAlphaDropout(0.3)]
)
def test_layers_draw_from_the_seed(layer: nn.Module) -> None:
    x = torch.randn(64, 16, 4, 4)

    def run(seed: int) -> Any:
        with SeededRandomness(torch.tensor(seed)) as randomness:
            output = layer(x)
        assert randomness.draws == 1
        return output

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    if not isinstance(layer, nn.AlphaDropout | nn.FeatureAlphaDropout):
        kept_values = run(1) != 0
        torch.testing.assert_close(run(1)[kept_values], (x / 0.7)[kept_values])


def test_without_a_seed_everything_is_kept() -> None:
    x = torch.randn(8, 8)
    with SeededRandomness(None):
        torch.testing.assert_close(nn.Dropout(0.5)(x), 2 * x)
