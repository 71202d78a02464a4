"""The five models of McMahan et al. 2016, "Communication-Efficient Learning of Deep Networks from
Decentralized Data", section 3.

The two recurrent ones are plain `nn.LSTM`, with two bias vectors and no peepholes, and so have
other parameter counts than the paper, whose come out only with peephole cells (three weights per
unit) and one bias vector:

- characters, vocabulary 258 (256 bytes and two marks): 258 * 8 embedding
  + [4 * 256 * (8 + 256) + 4 * 256 + 3 * 256] + [4 * 256 * (256 + 256) + 4 * 256 + 3 * 256]
  + 256 * 258 + 258 output = 866,578;
- words, vocabulary 10,000, straight from the 256 units to the words: 10,000 * 192 embedding
  + [4 * 256 * (192 + 256) + 4 * 256 + 3 * 256] + 256 * 10,000 + 10,000 output = 4,950,544.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn

from export import ModelSpec


def mnist_2nn() -> ModelSpec:
    """Two hidden layers of 200 ReLU units: 199,210 parameters. x is float32 [b, 1, 28, 28]."""
    with _seeded():
        module = nn.Sequential(
            nn.Flatten(),
            nn.Linear(784, 200),
            nn.ReLU(),
            nn.Linear(200, 200),
            nn.ReLU(),
            nn.Linear(200, 10),
        )
    return ModelSpec(module, torch.zeros(1, 1, 28, 28), "cross_entropy", "mnist_2nn")


def mnist_cnn() -> ModelSpec:
    """Two 5x5 convolutions (32, 64), each with 2x2 max pooling, 512 units: 1,663,370 parameters.

    x is float32 [b, 1, 28, 28]. The paper gives no padding; its parameter count fits SAME, as in
    TensorFlow's tutorial.
    """
    with _seeded():
        module = nn.Sequential(
            nn.Conv2d(1, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(3136, 512),
            nn.ReLU(),
            nn.Linear(512, 10),
        )
    return ModelSpec(module, torch.zeros(1, 1, 28, 28), "cross_entropy", "mnist_cnn")


def mnist_lr() -> ModelSpec:
    """Logistic regression, 7,850 parameters: not of the paper, but what simulators are timed with.

    x is float32 [b, 1, 28, 28]. It begins with zeros, as the loss is convex.
    """
    with _seeded():
        module = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return ModelSpec(module, torch.zeros(1, 1, 28, 28), "cross_entropy", "mnist_lr")


def cifar_cnn() -> ModelSpec:
    """Two 5x5 convolutions of 64, dense layers of 384 and 192: 1,068,298 parameters.

    x is float32 [b, 3, 24, 24], crops as in the paper. The layers are those of TensorFlow's
    tutorial (Krizhevsky's cuda-convnet) but for its overlapping pooling and its local response
    normalisation, which `cifar_cnn_tutorial` has.
    """

    def after() -> list[nn.Module]:
        return [nn.ReLU(), nn.MaxPool2d(2)]

    return _cifar("cifar_cnn", after, after)


def cifar_cnn_tutorial() -> ModelSpec:
    """`cifar_cnn` with 3x3 pooling of stride 2 and local response normalisation; as many
    parameters."""

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, padding=1)

    def norm() -> nn.Module:
        return nn.LocalResponseNorm(9, alpha=0.001, beta=0.75, k=1.0)

    return _cifar(
        "cifar_cnn_tutorial",
        lambda: [nn.ReLU(), pool(), norm()],
        lambda: [nn.ReLU(), norm(), pool()],
    )


def _cifar(
    name: str, first: Callable[[], list[nn.Module]], second: Callable[[], list[nn.Module]]
) -> ModelSpec:
    with _seeded():
        module = nn.Sequential(
            nn.Conv2d(3, 64, 5, padding=2),
            *first(),
            nn.Conv2d(64, 64, 5, padding=2),
            *second(),
            nn.Flatten(),
            nn.Linear(2304, 384),
            nn.ReLU(),
            nn.Linear(384, 192),
            nn.ReLU(),
            nn.Linear(192, 10),
        )
    return ModelSpec(module, torch.zeros(1, 3, 24, 24), "cross_entropy", name)


class LanguageModel(nn.Module):
    """Tokens x[b,t] -> logits [b,t,vocabulary] of the token that follows each."""

    def __init__(
        self, vocabulary: int, embedding: int, hidden: int, layers: int, projection: int | None
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, hidden, layers, batch_first=True)
        self.projection = nn.Linear(hidden, projection) if projection else nn.Identity()
        self.output = nn.Linear(projection or hidden, vocabulary)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [b,t,vocabulary]."""
        states, _ = self.lstm(self.embedding(x))
        logits: torch.Tensor = self.output(self.projection(states))
        return logits


def char_lstm() -> ModelSpec:
    """Characters, 8 dimensions each, two layers of 256 units: 822,570 parameters.

    x and the labels are int64 [b, 80], of 90 characters (those of Shakespeare's plays). See the
    module about the paper's 866,578.
    """
    with _seeded():
        module = LanguageModel(90, embedding=8, hidden=256, layers=2, projection=None)
    return ModelSpec(module, torch.full((1, 80), 89), "token_cross_entropy", "char_lstm")


def word_lstm() -> ModelSpec:
    """Words, input and output embeddings of 192 dimensions, 256 units: 4,360,144 parameters.

    x and the labels are int64 [b, 10], of 10,000 words. See the module about the paper's 4,950,544.
    """
    with _seeded():
        module = LanguageModel(10_000, embedding=192, hidden=256, layers=1, projection=192)
    return ModelSpec(module, torch.full((1, 10), 9999), "token_cross_entropy", "word_lstm")


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """The same initial weights in every export; the caller's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2016)
        yield
