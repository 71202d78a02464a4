"""What is learned in a simulation: a bundle whose graphs are never run, and deltas by formula.

Training is modelled because only its time and its result matter here: the result is a function of
the device, its installation and the global model, so that doing a task again gives the same bits.
"""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np

from fedtide.bundle import Bundle, open_bundle, sha256_hex
from fedtide.manifest import (
    MANIFEST_NAME,
    Array,
    File,
    Manifest,
    PortableRuntime,
    Runtimes,
    Tensor,
    encode_manifest,
)
from fedtide.measures import Measure, Metrics
from fedtide.vectors import Vector

ELEMENTS = 50_000
"""Three chunks of float32."""
HELD_OUT = Metrics(4, {"loss": Measure(2.0, 4.0), "accuracy": Measure(3.0, 4.0)})


@cache
def fake_bundle(elements: int = ELEMENTS, local: int = 0) -> Bundle:
    """A bundle whose graphs are never run; `local` values do not travel, and are 0.5."""
    contents = {name: name.encode() for name in ("train", "evaluate", "initial", "inference")}
    tensors = [Tensor("w", (elements,), 0, "parameter", shared=True)]
    if local:
        tensors.append(Tensor("own", (local,), elements, "parameter", shared=False))
        contents["rest"] = np.full(local, 0.5, "<f4").tobytes()
    manifest = Manifest(
        format_version=2,
        name="fake",
        tensors=tuple(tensors),
        inputs=Array((2,), "float32"),
        labels=Array((), "int64"),
        classes=2,
        ignored_label=None,
        loss="cross_entropy",
        metrics=("accuracy",),
        optimizers=("sgd", "adamw"),
        additive=True,
        random=False,
        opset=18,
        runtimes=Runtimes(PortableRuntime("train", "evaluate")),
        initial_model="initial",
        rest="rest" if local else None,
        inference="inference",
        files={name: File(len(raw), sha256_hex(raw)) for name, raw in contents.items()},
    )
    raw = encode_manifest(manifest)
    contents[MANIFEST_NAME] = raw
    return open_bundle(raw, contents.__getitem__)


def initial_model(elements: int) -> Vector:
    """float32[elements], where every federation begins."""
    return np.linspace(-1, 1, elements).astype(np.float32)


def learn(name: str, model_bytes: bytes, elements: int) -> Vector:
    """float32[elements]: what `name` learns from a global model, always the same."""
    seed = hashlib.sha256(name.encode() + hashlib.sha256(model_bytes).digest()).digest()
    rng = np.random.Generator(np.random.Philox(key=int.from_bytes(seed[:8], "big")))
    model = np.frombuffer(model_bytes, "<f4")
    noise = rng.random(elements, dtype=np.float32) - np.float32(0.5)
    return (noise * 0.02 - model * 0.1).astype(np.float32)
