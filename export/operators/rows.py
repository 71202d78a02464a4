"""Moving whole rows [n, channels] by tables of places that are known at export.

Places are counted inside one example; the place after the last one is "outside": it reads zero,
and what is added there is lost. So padding, stride and dilation are matters of the tables alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def take_rows(x: torch.Tensor, table: torch.Tensor, outside: float = 0.0) -> torch.Tensor:
    """x[b,n,c] and places table[m] in 0..n -> [b,m,c]; n reads `outside`."""
    border = x.new_full((x.shape[0], 1, x.shape[2]), outside)
    return torch.cat([x, border], 1).index_select(1, table)


def add_rows(parts: Sequence[tuple[torch.Tensor, torch.Tensor]], places: int) -> torch.Tensor:
    """The sum of rows[b,m,c] at table[m] in 0..places, over all parts -> [b,places,c].

    With one part the transpose of `take_rows`.
    """
    batch, _, channels = parts[0][0].shape
    first = torch.arange(batch, device=parts[0][0].device) * (places + 1)
    sums = parts[0][0].new_zeros((batch * (places + 1), channels))
    for rows, table in parts:
        index = (first.unsqueeze(1) + table).reshape(-1)
        # Becomes ScatterND with reduction=add, several times faster than a transposed convolution.
        sums = sums.index_put([index], rows.reshape(-1, channels), accumulate=True)
    return sums.reshape(-1, places + 1, channels).narrow(1, 0, places)
