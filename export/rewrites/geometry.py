"""The places that a convolution reads and writes, as tables for `export.operators.rows`."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes

Pair = tuple[int, int]
Sources = tuple[torch.Tensor, ...]
"""The tables of `export.operators.rows.add_rows`."""


class Geometry(NamedTuple):
    """A convolution or pooling of an image, and how the places of its output are ordered.

    `window` (1, 1) leaves rows of the image one after the other. Otherwise all windows' first
    places come first, then all second ones, ...; what no window covers is left out.
    """

    size: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    output: Pair
    """Height and width of the result, before windows leave anything out."""
    window: Pair = (1, 1)

    @property
    def pooled(self) -> Pair:
        """Number of whole windows, vertically and horizontally."""
        return self.output[0] // self.window[0], self.output[1] // self.window[1]

    @property
    def places_in(self) -> int:
        """Places of the input."""
        return self.size[0] * self.size[1]

    @property
    def places_out(self) -> int:
        """Places of the output that are computed."""
        return self.pooled[0] * self.pooled[1] * self.window[0] * self.window[1]


@functools.lru_cache(maxsize=1024)
def kernel_table(geometry: Geometry, kernel_first: bool = False) -> torch.Tensor:
    """[places_out, kernel], or transposed: the input places under the kernel."""
    table = _kernel_places(geometry)
    return _table(table.T if kernel_first else table)


@functools.lru_cache(maxsize=1024)
def kernel_sources(geometry: Geometry, kernel_first: bool = False) -> Sources:
    """Where in `kernel_table` each input place is."""
    table = _kernel_places(geometry)
    return _sources(table.T if kernel_first else table, geometry.places_in)


def _kernel_places(geometry: Geometry) -> np.ndarray:
    inputs = _input_places(geometry)
    kernel = geometry.kernel[0] * geometry.kernel[1]
    places: np.ndarray = inputs.reshape(-1, kernel)[_order(geometry)]
    return places


@functools.lru_cache(maxsize=1024)
def row_table(geometry: Geometry) -> torch.Tensor:
    """[height * out_width + 1, kernel_w]: input places under a row of the kernel; last, zeros."""
    return _table(_then_zeros(_row_places(geometry), geometry.places_in))


@functools.lru_cache(maxsize=1024)
def row_sources(geometry: Geometry) -> Sources:
    """Where in `row_table` each input place is."""
    return _sources(_row_places(geometry), geometry.places_in)


@functools.lru_cache(maxsize=1024)
def stack_table(geometry: Geometry) -> torch.Tensor:
    """[places_out, kernel_h]: the rows of `row_table` that are one column of each output place."""
    height, out_width = geometry.size[0], geometry.output[1]
    rows = _reach(geometry, 0)[:, None]
    inside = (rows >= 0) & (rows < height)
    places = np.where(inside, rows * out_width + _across(out_width)[0], height * out_width)
    return _table(places.reshape(-1, geometry.kernel[0])[_order(geometry)])


@functools.lru_cache(maxsize=1024)
def column_table(geometry: Geometry) -> torch.Tensor:
    """[height * out_width + 1, kernel_h]: output places that a row is part of; last, zeros."""
    return _table(_then_zeros(_column_places(geometry), geometry.places_out))


@functools.lru_cache(maxsize=1024)
def column_sources(geometry: Geometry) -> Sources:
    """Where in `column_table` each output place is."""
    return _sources(_column_places(geometry), geometry.places_out)


def _row_places(geometry: Geometry) -> np.ndarray:
    width, columns = geometry.size[1], _reach(geometry, 1)
    rows = np.arange(geometry.size[0])[:, None, None]
    inside = (columns >= 0) & (columns < width)
    return np.where(inside, rows * width + columns, geometry.places_in)


def _column_places(geometry: Geometry) -> np.ndarray:
    out_height, out_width = geometry.output
    kernel, padding, dilation = geometry.kernel[0], geometry.padding[0], geometry.dilation[0]
    rows = np.arange(geometry.size[0])[:, None] + padding - dilation * np.arange(kernel)
    inside = ((rows >= 0) & (rows < out_height))[:, None]
    ordered = _ordered(geometry)[np.clip(rows, 0, out_height - 1)[:, None], _across(out_width)]
    return np.where(inside, ordered, geometry.places_out)


def _then_zeros(places: np.ndarray, outside: int) -> np.ndarray:
    """Rows of places [..., kernel], flat, and behind them one that reads zeros."""
    return np.append(places, np.full(places.shape[-1], outside))


def _sources(table: np.ndarray, places: int) -> Sources:
    """The inverse of a table of places: [places] each, the first, second, ... index of each place.

    A place that is there fewer times than others gets the index behind the table's end.
    """
    found = table.reshape(-1)
    order = np.argsort(found, kind="stable")[: np.count_nonzero(found < places)]
    ordered = found[order]
    nth = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    sources = np.full((nth.max(initial=0) + 1, places), found.size)
    sources[nth, ordered] = order
    return tuple(_table(row) for row in sources)


def _table(places: np.ndarray) -> torch.Tensor:
    """A real tensor even while tracing: the same object is the same constant of the graph."""
    with _disable_current_modes():
        return torch.from_numpy(np.ascontiguousarray(places.reshape(-1)))


def _across(width: int) -> np.ndarray:
    return np.arange(width)[None, :, None]


def _reach(geometry: Geometry, axis: int) -> np.ndarray:
    """[output, kernel]: input coordinates along one axis; outside the image they are no places."""
    start = np.arange(geometry.output[axis])[:, None] * geometry.stride[axis]
    steps = np.arange(geometry.kernel[axis]) * geometry.dilation[axis]
    return np.asarray(start + steps - geometry.padding[axis], np.int64)


def _input_places(geometry: Geometry) -> np.ndarray:
    """[out_height, out_width, kernel_h, kernel_w]: input places, `places_in` for outside."""
    height, width = geometry.size
    rows = _reach(geometry, 0)[:, None, :, None]
    columns = _reach(geometry, 1)[None, :, None, :]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return np.where(inside, rows * width + columns, geometry.places_in)


def _order(geometry: Geometry) -> np.ndarray:
    """[places_out]: the output places as they are stored, numbered row by row."""
    order = np.argsort(_ordered(geometry).reshape(-1), kind="stable")
    return order[: geometry.places_out]


def _ordered(geometry: Geometry) -> np.ndarray:
    """[out_height, out_width]: where each output place is stored; `places_out` if nowhere."""
    (down, across), (high, wide) = geometry.pooled, geometry.window
    rows = np.arange(geometry.output[0])[:, None]
    columns = np.arange(geometry.output[1])[None, :]
    inside = (rows < down * high) & (columns < across * wide)
    phase = (rows % high) * wide + columns % wide
    place = (phase * down + rows // high) * across + columns // wide
    return np.where(inside, place, geometry.places_out)
