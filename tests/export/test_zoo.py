"""Whole models through the whole export, which verifies them against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

from export.exporting import export_bundle
from tests.export import zoo

MODELS: dict[str, Callable[[], object]] = {**zoo.VARIANTS, **zoo.examples()}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_model_exports_and_is_verified(name: str, tmp_path: Path) -> None:
    exported = export_bundle(MODELS[name](), tmp_path / "bundle", name="model", ort_training=False)
    assert exported.verified


def test_examples_are_found() -> None:
    assert len(zoo.examples()) >= 16
