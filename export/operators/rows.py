"""Moving whole rows [n, channels] by tables of places that are known at export.

Places are counted inside one example; the place after the last one is "outside" and reads zero.
So padding, stride and dilation are matters of the tables alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def take_rows(x: torch.Tensor, table: torch.Tensor, outside: float = 0.0) -> torch.Tensor:
    """x[b,n,c] and places table[m] in 0..n -> [b,m,c]; n reads `outside`."""
    return with_border(x, outside).index_select(1, table)


def add_rows(x: torch.Tensor, sources: Sequence[torch.Tensor]) -> torch.Tensor:
    """x[b,n,c] and places[m] in 0..n-1, one table for each term of the sums -> [b,m,c].

    A sum of fewer terms takes a row of zeros for the others. Adding rows to where they belong
    (ScatterND) is as fast, but onnxruntime loses some when several threads do it.
    """
    total = x.index_select(1, sources[0])
    for places in sources[1:]:
        total = total + x.index_select(1, places)
    return total


def with_border(x: torch.Tensor, outside: float = 0.0) -> torch.Tensor:
    """x[b,n,c] -> [b,n+1,c]: behind the last row one that reads `outside`."""
    return torch.cat([x, x.new_full((x.shape[0], 1, x.shape[2]), outside)], 1)
