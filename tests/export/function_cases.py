"""Functions of tensors, attention and losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.export.coverage import Case, Values

Function = Callable[..., Any]


def _of(shape: tuple[int, ...], **functions: Function) -> list[Case]:
    return [
        Case(name.replace("_", " "), function, (Values(shape),))
        for name, function in functions.items()
    ]


def reductions() -> list[Case]:
    """Sums, products, extremes, norms, cumulative ones."""
    return _of(
        (3, 4),
        prod=lambda x: x.prod(1),
        prod_with_zeros=lambda x: (x * (x.abs() > 0.6)).prod(1),
        cumsum=lambda x: x.cumsum(1),
        amax=lambda x: x.amax(1),
        amin=lambda x: x.amin((1, 2)),
        max=lambda x: x.max(1)[0],
        min=lambda x: x.min(2)[0],
        var=lambda x: x.var(1),
        biased_var=lambda x: x.var((1, 2), unbiased=False),
        std=lambda x: x.std(2),
        var_mean=lambda x: torch.stack(torch.var_mean(x, 1), 1),
        norm=lambda x: x.norm(dim=1),
        norm_1=lambda x: x.norm(p=1, dim=1),
        norm_3=lambda x: x.norm(p=3, dim=1),
        norm_inf=lambda x: x.norm(p=float("inf"), dim=1),
        logsumexp=lambda x: x.logsumexp(1),
        mean=lambda x: x.mean((1, 2)),
        topk=lambda x: x.topk(2, 1)[0],
        sort=lambda x: x.sort(1)[0],
        cosine=lambda x: F.cosine_similarity(x, x.roll(1, 1), dim=2),
    )


def written_in_place() -> list[Case]:
    """What is written to, or looks equal to what is written to later."""

    def written(x: torch.Tensor) -> torch.Tensor:
        y = x * 1
        y[:, 0] = y[:, 1] * 2
        y[:, :, 1:2] += 1
        y.view(-1, 12).mul_(2)
        return y

    def same_start(x: torch.Tensor) -> torch.Tensor:
        """Equal values that are written to separately must stay separate."""
        y, z = torch.zeros_like(x), torch.zeros_like(x)
        before = x.sin()
        y.add_(x)
        z[:, 1:] = x[:, :2] * 3
        w = x * 1
        w.add_(1)
        return y * 2 + z + before * w.sin() + x.sin()

    def put(x: torch.Tensor) -> torch.Tensor:
        y = torch.zeros_like(x)
        y[:, torch.tensor([0, 2])] = x[:, :2]
        return y

    return _of((3, 4), written=written, same_start=same_start, index_put=put)


def indexing() -> list[Case]:
    """Parts of tensors, moved, repeated, added where indices say."""
    table = torch.tensor([1, 1, 2, 3])
    return _of(
        (3, 4),
        index=lambda x: x[:, [0, 2, 1, 0]],
        negative_index=lambda x: x[:, -1],
        negative_slice=lambda x: x[:, :, -3:-1],
        step=lambda x: x[:, :, ::2],
        index_select=lambda x: x.index_select(2, torch.tensor([3, 0, 0])),
        gather=lambda x: x.gather(1, x.argmax(1, keepdim=True)),
        scatter_add=lambda x: torch.zeros_like(x).scatter_add(2, table.expand(x.shape), x),
        index_add=lambda x: torch.zeros_like(x).index_add(2, table, x),
        masked_fill=lambda x: x.masked_fill(x > 0.5, 0.3),
        where=lambda x: torch.where(x > 0, x, x * x),
        roll=lambda x: x.roll((1, -2), (1, 2)),
        flip=lambda x: x.flip(1, 2),
        windows=lambda x: x.unfold(2, 2, 1),
        windows_step=lambda x: x.flatten(1).unfold(1, 5, 3),
        repeat=lambda x: x.repeat(1, 2, 1),
        repeat_interleave=lambda x: x.repeat_interleave(2, 1),
        chunk=lambda x: torch.cat([a * (i + 1) for i, a in enumerate(x.chunk(2, 2))], 1),
        unbind=lambda x: sum((i + 1) * a for i, a in enumerate(x.unbind(1))),
        tril=lambda x: x.tril(),
        pixel_shuffle=lambda x: F.pixel_shuffle(x.reshape(-1, 4, 1, 3), 2),
        pixel_unshuffle=lambda x: F.pixel_unshuffle(x.reshape(-1, 1, 6, 2), 2),
        channel_shuffle=lambda x: F.channel_shuffle(x.reshape(-1, 6, 2, 1), 2),
        image_to_columns=lambda x: F.unfold(x[:, None], 2, padding=1, stride=2),
        columns_to_image=lambda x: F.fold(x.reshape(-1, 4, 3), (4, 2), 2),
    )


def arithmetic() -> list[Case]:
    """Functions of elements; dtypes, rounding; what depends on the other examples."""
    integers = torch.arange(4)
    return _of(
        (3, 4),
        pow=lambda x: x.pow(3),
        root=lambda x: (x.abs() + 0.1).pow(0.5),
        power_of_tensor=lambda x: (x.abs() + 0.1) ** x,
        rsqrt=lambda x: (x.abs() + 0.1).rsqrt(),
        exponential=lambda x: 2**x + torch.expm1(x) + x.exp(),
        logarithms=lambda x: (x.abs() + 0.1).log2() + x.abs().log1p() + (x.abs() + 1).log10(),
        trigonometry=lambda x: x.sin() + x.atan() * x.cos() + (x * 0.2).asin(),
        hyperbolic=lambda x: x.sinh() + x.asinh() + (x * 0.2).atanh(),
        erf=torch.erf,
        clamp=lambda x: x.clamp(-0.5, 0.5) + x.clamp(min=0.5) * 2,
        rounding=lambda x: x * (x.round() + x.floor() + x.ceil() + x.sign()),
        remainder=lambda x: x.remainder(0.7) + x.fmod(0.7),
        integer_division=lambda x: x * (integers // 3),
        negative_division=lambda x: x * ((integers - 2) // 3),
        true_division=lambda x: x * (integers / 3),
        negative_remainder=lambda x: x * ((integers - 2) % 3),
        negative_fmod=lambda x: x * torch.fmod(integers - 2, 3),
        truncated_division=lambda x: x * torch.div(integers - 3, 2, rounding_mode="trunc"),
        promotion=lambda x: x * integers + (x > 0) + torch.tensor(2),
        double=lambda x: (x.double() ** 2).float(),
        through_integers=lambda x: x * x.long(),
        logic=lambda x: x * ((x > 0) & (x < 1) | ~(x > -1)),
        counted=lambda x: x * (x > 0).sum(1, keepdim=True),
        two_tensors=lambda x: torch.maximum(x, x.roll(1, 2)) + torch.minimum(x, x * x),
        detached=lambda x: x * x.detach(),
        batch_mean=lambda x: x - x.mean(0, keepdim=True),
        batch_size=lambda x: x / x.shape[0],
        batch_product=lambda x: x.flatten(1) @ x.flatten(1).T @ x.flatten(1),
        batch_flipped=lambda x: x.flip(0) * x,
    )


def algebra() -> list[Case]:
    """Products, distances, layers of two inputs."""
    one = _of(
        (3, 4),
        bmm=lambda x: torch.bmm(x, x.transpose(1, 2)),
        baddbmm=lambda x: torch.baddbmm(x[:, :, :3], x, x.transpose(1, 2), beta=0.5, alpha=2),
        broadcast_matmul=lambda x: x @ torch.ones(4, 2),
        einsum=lambda x: torch.einsum("bij,bkj->bik", x, x),
        einsum_outer=lambda x: torch.einsum("bi,bj->bij", x[:, 0], x[:, 1]),
        tensordot=lambda x: torch.tensordot(x, torch.ones(4, 3, 2) * 0.1, ([2, 1], [0, 1])),
        one_hot=lambda x: x @ F.one_hot(torch.arange(4), 4).float(),
    )
    pair = (Values((5, 4)), Values((3, 4)))
    rows = (Values((4,)), Values((4,)))
    return [
        *one,
        *(
            Case(f"cdist {p}", lambda x, y, p=p: torch.cdist(x, y, p=p), pair)
            for p in (1.0, 2.0, 3.0, float("inf"))
        ),
        Case("bilinear", nn.Bilinear(4, 4, 2), rows),
        Case("cosine similarity", nn.CosineSimilarity(1), rows),
        Case("pairwise distance", nn.PairwiseDistance(), rows),
        Case("embedding", nn.Embedding(7, 3), (Values((4,), below=7),)),
        Case("embedding padding", nn.Embedding(7, 3, padding_idx=0), (Values((4,), below=7),)),
    ]


class _Attention(nn.Module):
    def __init__(self, *, weights: bool = False, causal: bool = False, **options: Any) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.weights = weights
        self.mask = torch.ones(5, 5, dtype=torch.bool).triu(1) if causal else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(x, x, x, need_weights=self.weights, attn_mask=self.mask)[
            0
        ]
        return result


def attention() -> list[Case]:
    """Attention with masks and without, layers of transformers."""
    three = (Values((2, 4, 6)),) * 3
    mask = torch.ones(4, 4)
    layer: dict[str, Any] = {"dropout": 0.0, "batch_first": True}

    def attend(**options: Any) -> Function:
        return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options)

    return [
        Case("attention", attend(), three),
        Case("causal attention", attend(is_causal=True), three),
        Case("masked attention", attend(attn_mask=mask.bool().tril()), three),
        Case("biased attention", attend(attn_mask=mask.tril(), scale=0.3), three),
        Case("multi-head", _Attention(), (Values((5, 8)),)),
        Case("multi-head weights", _Attention(weights=True, bias=False), (Values((5, 8)),)),
        Case("multi-head causal", _Attention(causal=True), (Values((5, 8)),)),
        Case("encoder layer", nn.TransformerEncoderLayer(8, 2, 16, **layer), (Values((5, 8)),)),
        Case(
            "encoder layer norm first",
            nn.TransformerEncoderLayer(8, 2, 16, norm_first=True, activation="gelu", **layer),
            (Values((5, 8)),),
        ),
        Case(
            "decoder layer",
            nn.TransformerDecoderLayer(8, 2, 16, **layer),
            (Values((5, 8)), Values((4, 8))),
        ),
    ]


def losses() -> list[Case]:
    """Each with all three reductions."""
    weights = torch.tensor([0.5, 2.0, 1.3, 0.2])
    logits, label = Values((4,)), Values((), below=4)
    pixels, map_ = Values((4, 3, 2)), Values((3, 2), below=4)
    binary = Values((4,), binary=True)
    sign = Values((), binary=True)
    found: list[Case] = []

    def add(name: str, function: Function, *inputs: Values, **options: Any) -> None:
        def reduced(*tensors: torch.Tensor) -> torch.Tensor:
            every = function(*tensors, reduction="none", **options)
            # PyTorch warns of the plain mean of this one.
            averaged = "batchmean" if name == "kl" else "mean"
            mean = function(*tensors, reduction=averaged, **options)
            total = function(*tensors, reduction="sum", **options)
            result: torch.Tensor = mean + 0.1 * total + (every * every).sum()
            return result

        found.append(Case(name, reduced, inputs))

    def smoothed(x: torch.Tensor, y: torch.Tensor, **options: Any) -> Any:
        return F.cross_entropy(x, y.softmax(1), **options)

    def nll(x: torch.Tensor, y: torch.Tensor, **options: Any) -> Any:
        return F.nll_loss(x.log_softmax(1), y, **options)

    add("cross entropy", F.cross_entropy, logits, label)
    add("cross entropy weights", F.cross_entropy, logits, label, weight=weights)
    add("cross entropy smoothing", F.cross_entropy, logits, label, label_smoothing=0.1)
    add("cross entropy all", F.cross_entropy, pixels, map_, weight=weights, label_smoothing=0.1,
        ignore_index=2)  # fmt: skip
    add("cross entropy of pixels", F.cross_entropy, pixels, map_)
    add("cross entropy probabilities", smoothed, logits, logits, weight=weights)
    add("nll", nll, pixels, map_, weight=weights, ignore_index=1)
    add("mse", F.mse_loss, logits, logits)
    add("l1", F.l1_loss, logits, logits)
    add("smooth l1", F.smooth_l1_loss, logits, logits, beta=0.5)
    add("huber", F.huber_loss, logits, logits, delta=0.5)
    add("bce", lambda x, y, **o: F.binary_cross_entropy(x.sigmoid(), y, **o), logits, binary)
    add("bce logits", F.binary_cross_entropy_with_logits, logits, binary, weight=weights,
        pos_weight=2 * weights)  # fmt: skip
    add("kl", lambda x, y, **o: F.kl_div(x.log_softmax(1), y.softmax(1), **o), logits, logits)
    add("poisson", F.poisson_nll_loss, logits, binary, full=True)
    add("hinge embedding", lambda x, y, **o: F.hinge_embedding_loss(x, 2 * y - 1, **o), logits,
        binary)  # fmt: skip
    add("margin ranking", lambda a, b, y, **o: F.margin_ranking_loss(a, b, 2 * y - 1, 0.2, **o),
        Values(()), Values(()), sign)  # fmt: skip
    add("multi margin", F.multi_margin_loss, logits, label)
    add("multi margin squared", F.multi_margin_loss, logits, label, p=2, margin=0.7, weight=weights)
    add("multi label margin",
        lambda x, y, **o: F.multilabel_margin_loss(x, F.pad(y, (0, 2), value=-1), **o),
        logits, Values((2,), below=4))  # fmt: skip
    add("soft margin", lambda x, y, **o: F.soft_margin_loss(x, 2 * y - 1, **o), logits, binary)
    add("multi label soft margin", F.multilabel_soft_margin_loss, logits, binary, weight=weights)
    add("cosine embedding",
        lambda a, b, y, **o: F.cosine_embedding_loss(a, b, 2 * y - 1, 0.1, **o),
        logits, logits, sign)  # fmt: skip
    add("triplet", F.triplet_margin_loss, logits, logits, logits, swap=True)
    return found
