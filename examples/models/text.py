"""Transformers over tokens x[b, t], int64."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from export import ModelSpec

VOCABULARY, LENGTH, WIDTH = 200, 16, 32


class Classifier(nn.Module):
    """Logits [b, classes] of a whole text; token 0 fills up short texts."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)
        self.places = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.02)
        layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 64, dropout=0.1, activation="gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states = self.encoder(self.tokens(x) + self.places)
        logits: torch.Tensor = self.head(states.mean(1))
        return logits


def text_classifier() -> ModelSpec:
    """4 classes."""
    example = torch.full((1, LENGTH), VOCABULARY - 1)
    return ModelSpec(Classifier(4), example, "cross_entropy")


class Block(nn.Module):
    """Causal attention and a feed-forward network, each after a normalisation."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.queries_keys_values = nn.Linear(WIDTH, 3 * WIDTH)
        self.projection = nn.Linear(WIDTH, WIDTH)
        self.feed_forward = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU("tanh"), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.queries_keys_values(self.norm1(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.projection(seen.transpose(1, 2).flatten(2))
        y: torch.Tensor = x + self.feed_forward(self.norm2(x))
        return y


class CausalModel(nn.Module):
    """Logits [b, t, vocabulary] of the token that follows each; input and output share weights."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(Block(4), Block(4))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states = self.tokens(x) + self.places(torch.arange(x.shape[1]))
        logits: torch.Tensor = self.head(self.norm(self.blocks(states)))
        return logits


def language_model() -> ModelSpec:
    """Labels are the inputs one place further; -100 where none is to be learned."""
    example = torch.full((1, LENGTH), VOCABULARY - 1)
    return ModelSpec(CausalModel(), example, "token_cross_entropy")
