"""Functions and layers that exported models may consist of, in groups that share a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from tests.export import function_cases as functions
from tests.export.coverage import Case, Values


def case(name: str, make: Callable[..., Any], *shapes: tuple[int, ...] | Values) -> Case:
    """Shapes are of real inputs."""
    inputs = tuple(s if isinstance(s, Values) else Values(s) for s in shapes)
    return Case(name, make, inputs)


def _convolutions() -> list[Case]:
    image = (4, 7, 6)
    found = [
        case("conv1d stride", nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 9)),
        case("conv2d groups dilation", nn.Conv2d(4, 6, 3, 2, 1, 2, groups=2), (4, 9, 8)),
        case("conv2d depthwise", nn.Conv2d(4, 8, 3, groups=4, padding=1), image),
        case("conv2d same even", nn.Conv2d(4, 3, 4, padding="same"), image),
        case("conv3d", nn.Conv3d(2, 3, 2, padding=1), (2, 4, 5, 4)),
        case("weight norm", weight_norm(nn.Conv2d(4, 3, 3)), image),
    ]
    for rank, layer in ((1, nn.ConvTranspose1d), (2, nn.ConvTranspose2d), (3, nn.ConvTranspose3d)):
        shape = (4, 5, 4, 3)[: rank + 1]
        name = f"transposed{rank}d"
        options: dict[str, Any] = {"stride": 2, "padding": 1, "output_padding": 1}
        found += [
            case(name, layer(4, 3, 3, **options), shape),
            case(f"{name} groups", layer(4, 6, 3, groups=2, dilation=2, **options), shape),
        ]
    found += [
        case("transposed gaps", nn.ConvTranspose2d(4, 3, 2, stride=3), image),
        case("transposed depthwise", nn.ConvTranspose2d(4, 4, 2, 2, groups=4, bias=False), image),
    ]
    return found


def _padding() -> list[Case]:
    found = [
        case(f"conv2d {mode}", nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode), (2, 5, 6))
        for mode in ("reflect", "replicate", "circular")
    ]
    for mode in ("reflect", "replicate", "circular", "constant"):
        found.append(case(f"{mode} uneven", lambda x, m=mode: F.pad(x, (1, 2, 0, 3), m), (2, 5, 6)))
        found.append(case(f"{mode} 1d", lambda x, m=mode: F.pad(x, (2, 1), m), (2, 5)))
        found.append(
            case(f"{mode} 3d", lambda x, m=mode: F.pad(x, (1, 1, 2, 0, 1, 1), m), (2, 3, 4, 3))
        )
    found.append(case("crop", lambda x: F.pad(x, (-1, 2, 1, -2)), (3, 5, 6)))
    return found


def _average_pools() -> list[Case]:
    found = []
    for rank, pool in ((1, nn.AvgPool1d), (2, nn.AvgPool2d), (3, nn.AvgPool3d)):
        shape = (2, 9, 8, 7)[: rank + 1]
        found += [
            case(f"average{rank}d", pool(2), shape),
            case(f"average{rank}d overlap", pool(3, 2, 1), shape),
            case(f"average{rank}d ceil", pool(3, 2, 1, ceil_mode=True), shape),
            case(
                f"average{rank}d border not counted",
                pool(3, 2, 1, ceil_mode=True, count_include_pad=False),
                shape,
            ),
        ]
    adaptive = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
    for rank, layer in enumerate(adaptive, 1):
        shape = (2, 6, 8, 7)[: rank + 1]
        found += [case(f"adaptive{rank}d to {size}", layer(size), shape) for size in (1, 3, 5)]
    found += [
        case("divisor", nn.AvgPool2d(3, 2, 1, divisor_override=5), (2, 9, 8)),
        case("adaptive one axis", nn.AdaptiveAvgPool2d((None, 3)), (2, 6, 7)),
        case("adaptive larger", nn.AdaptiveAvgPool2d((8, 7)), (2, 6, 5)),
        case("power average", nn.LPPool2d(2, 2), Values((2, 6, 6), positive=True)),
    ]
    return found


def _max_pools() -> list[Case]:
    found = []
    for rank, pool in ((1, nn.MaxPool1d), (2, nn.MaxPool2d), (3, nn.MaxPool3d)):
        shape = (2, 9, 8, 5)[: rank + 1]
        found += [
            case(f"max{rank}d", pool(2), shape),
            case(f"max{rank}d overlap", pool(3, 2, 1), shape),
            case(f"max{rank}d ceil", pool(3, 2, 1, ceil_mode=True), shape),
            case(f"max{rank}d dilation", pool(2, 1, dilation=2), shape),
            case(f"max{rank}d gaps", pool(2, 3), shape),
        ]
    adaptive = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
    for rank, layer in enumerate(adaptive, 1):
        shape = (2, 6, 8, 4)[: rank + 1]
        found += [case(f"adaptive max{rank}d to {size}", layer(size), shape) for size in (1, 2, 3)]
    return found


def _interpolations() -> list[Case]:
    found = []
    modes = {1: ("nearest", "linear"), 2: ("nearest", "nearest-exact", "bilinear", "bicubic")}
    modes[3] = ("nearest", "trilinear")
    for rank, names in modes.items():
        shape, size = (2, 5, 6, 4)[: rank + 1], (7, 4, 6)[:rank]
        for mode in names:
            corners = (False, True) if "linear" in mode or "cubic" in mode else (None,)
            for aligned in corners:
                name = f"{mode}{rank}d{' corners' if aligned else ''}"
                for what, options in (
                    ("x2", {"scale_factor": 2}),
                    ("x1.7", {"scale_factor": 1.7}),
                    ("size", {"size": size}),
                ):
                    layer = nn.Upsample(mode=mode, align_corners=aligned, **options)
                    found.append(case(f"{name} {what}", layer, shape))

    def smooth(x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, size=(3, 4), mode="bilinear", antialias=True)

    return [*found, case("antialias", smooth, (2, 7, 6))]


def _normalizations() -> list[Case]:
    image = (4, 5, 3)
    return [
        # PyTorch refuses a batch of one: two rows for each example.
        case("batch norm of rows", nn.Sequential(nn.Flatten(0, 1), nn.BatchNorm1d(3)), (2, 3)),
        case("batch norm 1d", nn.BatchNorm1d(3), (3, 6)),
        case("batch norm 2d", nn.BatchNorm2d(4), image),
        case("batch norm 3d", nn.BatchNorm3d(2), (2, 3, 4, 3)),
        case("batch norm not affine", nn.BatchNorm2d(4, affine=False), image),
        case("batch norm without statistics", nn.BatchNorm2d(4, track_running_stats=False), image),
        case("group norm", nn.GroupNorm(2, 4), image),
        case("layer norm", nn.LayerNorm(6), (4, 6)),
        case("layer norm of two axes", nn.LayerNorm((4, 6), bias=False), (4, 6)),
        case("layer norm not affine", nn.LayerNorm(6, elementwise_affine=False), (4, 6)),
        case("instance norm", nn.InstanceNorm2d(4), image),
        case("instance norm affine", nn.InstanceNorm1d(3, affine=True), (3, 6)),
        case("root mean square", nn.RMSNorm(6), (4, 6)),
        case("local response", nn.LocalResponseNorm(3), (5, 4, 4)),
        case("unit vectors", lambda x: F.normalize(x, dim=1), (5, 4)),
    ]


def _activations() -> list[Case]:
    names = """ReLU ReLU6 SiLU Mish Hardswish Hardsigmoid Hardtanh ELU CELU SELU LeakyReLU Softplus
    LogSigmoid GELU Sigmoid Tanh Softsign Tanhshrink PReLU"""
    found = [case(name, getattr(nn, name)(), (3, 4)) for name in names.split()]
    in_place = nn.Sequential(
        nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.SiLU(inplace=True),
        nn.Linear(4, 4), nn.Hardswish(inplace=True), nn.Linear(4, 4), nn.ELU(inplace=True),
    )  # fmt: skip
    return [
        *found,
        case("GELU tanh", nn.GELU("tanh"), (3, 4)),
        case("PReLU of channels", nn.PReLU(3), (3, 4)),
        case("Softplus beta", nn.Softplus(2, 1.0), (3, 4)),
        case("Threshold", nn.Threshold(0.1, 20.0), (3, 4)),
        case("GLU", nn.GLU(1), (4, 3)),
        case("Softmax", nn.Softmax(1), (4, 3)),
        case("LogSoftmax", nn.LogSoftmax(-1), (4, 3)),
        case("in place", in_place, (4,)),
        case("no dropout", nn.Dropout(0.0), (4,)),
    ]


GROUPS: dict[str, tuple[Case, ...]] = {}
SLOW: set[str] = set()


def _register(name: str, cases: list[Case], *, slow: bool = False, size: int = 16) -> None:
    """Groups of at most `size` cases, of about as many nodes as a small model."""
    for index in range(0, len(cases), size):
        key = name if len(cases) <= size else f"{name} {index // size + 1}"
        GROUPS[key] = tuple(cases[index : index + size])
        if slow:
            SLOW.add(key)


with torch.random.fork_rng(devices=[]):
    torch.manual_seed(1)
    _register("convolution", _convolutions())
    _register("padding", _padding(), slow=True)
    _register("average pooling", _average_pools(), slow=True)
    _register("max pooling", _max_pools(), slow=True)
    _register("interpolation", _interpolations(), slow=True)
    _register("normalization", _normalizations())
    _register("activation", _activations())
    _register("in place", functions.written_in_place())
    _register("reduction", functions.reductions(), slow=True)
    _register("indexing", functions.indexing(), slow=True)
    _register("arithmetic", functions.arithmetic(), slow=True)
    _register("algebra", functions.algebra(), slow=True)
    _register("attention", functions.attention(), slow=True)
    _register("loss", functions.losses(), slow=True)
