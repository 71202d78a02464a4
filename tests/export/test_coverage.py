"""What people build models of exports, and its gradient is PyTorch's.

The tables are in `tests/export/cases.py`; cases of one group share a graph. The groups that take
longest are for `make test-slow`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from fedtide.errors import ExportError  # noqa: E402
from tests.export.cases import GROUPS, SLOW  # noqa: E402
from tests.export.coverage import TOLERANCE, Case, Values, errors  # noqa: E402


def _parameters() -> list[Any]:
    return [
        pytest.param(
            group, case, id=f"{group}-{case.name}", marks=[pytest.mark.slow] * (group in SLOW)
        )
        for group, cases in GROUPS.items()
        for case in cases
    ]


@pytest.mark.parametrize(("group", "case"), _parameters())
def test_gradients_are_pytorchs(group: str, case: Case) -> None:
    try:
        error = errors(GROUPS[group])[case.name]
    except Exception:
        error = math.inf
    if not error <= TOLERANCE:  # another case's fault, perhaps
        error = errors((case,))[case.name]
    assert error <= TOLERANCE


def test_case_names_differ() -> None:
    for cases in GROUPS.values():
        assert len({case.name for case in cases}) == len(cases)


def test_the_comparison_notices_a_wrong_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("sine", torch.sin, (Values((4,)),))
    assert errors((case,))["sine"] <= TOLERANCE
    wrong = Case("sine", torch.cosh, (Values((4,)),))
    monkeypatch.setattr("tests.export.coverage._expected", _expectation_of(wrong))
    errors.cache_clear()
    assert errors((case,))["sine"] > TOLERANCE
    errors.cache_clear()


def _expectation_of(case: Case) -> Callable[..., Any]:
    """What another function's gradients would be."""

    def expected(model: Any, x: Any) -> dict[str, Any]:
        offset = torch.zeros(4, requires_grad=True)
        rows = case.make(x + offset) @ torch.cos(torch.arange(4.0) + 0.3)
        (gradient,) = torch.autograd.grad(rows.sum(), [offset])
        return {"parts.0.offsets.0": gradient.numpy()}

    return expected


REFUSED: list[tuple[str, Callable[..., Any], str]] = [
    ("rrelu", nn.RReLU(), "rrelu"),
    ("fractional pooling", lambda x: F.fractional_max_pool2d(x[:, None], 2, 2), "rand"),
    ("noise", lambda x: x + torch.randn_like(x), "rand"),
    ("multinomial", lambda x: x * torch.multinomial(x[:, 0].softmax(1), 2).sum(), "multinomial"),
    ("eigenvalues", torch.linalg.svdvals, "svd"),
    ("fourier transform", lambda x: torch.fft.rfft(x).abs(), "fft"),
    (
        "ctc",
        lambda x: F.ctc_loss(
            x.transpose(0, 1).log_softmax(2),
            torch.ones(x.shape[0], 2, dtype=torch.long),
            torch.full((x.shape[0],), 4),
            torch.full((x.shape[0],), 2),
        ),
        "ctc_loss",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "function", "operator"), REFUSED, ids=[r[0] for r in REFUSED])
def test_what_cannot_be_exported_is_refused_by_name(
    name: str, function: Callable[..., Any], operator: str
) -> None:
    with pytest.raises(ExportError, match=operator):
        errors((Case(name, function, (Values((4, 4)),)),))
