"""The models of the FedAvg paper: parameter counts and their arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

from export import ModelSpec  # noqa: E402
from export.inspection import inspect_model  # noqa: E402
from export.models import fedavg  # noqa: E402


@pytest.mark.parametrize(
    ("function", "count"),
    [
        (fedavg.mnist_lr, 7_850),
        (fedavg.mnist_2nn, 199_210),
        (fedavg.mnist_cnn, 1_663_370),
        (fedavg.cifar_cnn, 1_068_298),
        (fedavg.cifar_cnn_tutorial, 1_068_298),
        (fedavg.char_lstm, 822_570),
        (fedavg.word_lstm, 4_360_144),
    ],
)
def test_parameter_counts(function: Callable[[], ModelSpec], count: int) -> None:
    spec = function()
    assert sum(p.numel() for p in spec.module.parameters()) == count
    assert f"{count:,}" in (function.__doc__ or "") or function is fedavg.cifar_cnn_tutorial
    model = inspect_model(spec, "name")
    assert model.name == function.__name__
    assert sum(tensor.size for tensor in model.tensors) == count


def test_the_initial_weights_are_always_the_same() -> None:
    state = torch.random.get_rng_state()
    first, second = (fedavg.char_lstm().module.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(state, torch.random.get_rng_state())


def _peephole_lstm(inputs: int, hidden: int) -> int:
    """Four gates with one bias; three of them look at the cell's state."""
    return 4 * hidden * (inputs + hidden) + 4 * hidden + 3 * hidden


def test_the_papers_counts_need_peepholes() -> None:
    words, characters = 10_000, 258
    lstm = _peephole_lstm(8, 256) + _peephole_lstm(256, 256)
    assert characters * 8 + lstm + 256 * characters + characters == 866_578
    assert words * 192 + _peephole_lstm(192, 256) + 256 * words + words == 4_950_544
