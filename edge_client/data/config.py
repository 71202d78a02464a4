"""Which data of this device are used, and how much of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from fedtide.config import Positive

Kind = Literal["npz"]


class DataConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Local data; they never leave the device. What is given tells their `kind`."""

    path: Path
    divisor: Annotated[float, Meta(gt=0)] | None = None
    """What bytes are divided by where the model takes float32."""
    held_out_fraction: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Part of the examples kept for evaluation, where the data name none."""
    examples_max: Positive | None = None
    """Most that are used, the held-out ones included."""
    choice: Literal["newest", "sample"] = "newest"
    """Which of them, if there are more."""

    @property
    def kind(self) -> Kind:
        """Where the examples come from."""
        return "npz"

    @property
    def where(self) -> str:
        """Its source, for messages."""
        return repr(str(self.path))
