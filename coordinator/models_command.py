"""`fedtide models list|export|verify`: every version is kept, deployable, and can be recomputed."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from coordinator.aggregate_job import MissingUpdateError
from coordinator.recompute import recompute
from coordinator.store import Model, Store
from fedtide.bundle import open_stored_bundle
from fedtide.errors import BundleError, ConfigError, StateError
from fedtide.files import require_place, write_atomically
from fedtide.manifest import Manifest
from fedtide.measures import Metrics
from fedtide.ownership import as_owner_of
from fedtide.safetensors import encode_safetensors
from fedtide.vectors import Vector, decode_vector, split_vector, whole_vector

_DAMAGED = "the disk or the database is damaged: restore the state folder from a backup"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare flags."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="every version, its metrics and its round")
    exporting = actions.add_parser("export", help="write one version for deployment")
    verifying = actions.add_parser(
        "verify", help="recompute models, bit for bit, from the updates that were stored"
    )
    verifying.add_argument(
        "--version", type=int, metavar="N", help="which model (default: all of them)"
    )
    for action in (listing, exporting, verifying):
        action.add_argument(
            "--state-dir", type=Path, required=True, metavar="DIR", help="of the coordinator"
        )
    exporting.add_argument(
        "--version", type=int, metavar="N", help="which model (default: the newest)"
    )
    exporting.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help=".onnx for inference, or .safetensors for the flat vector",
    )


def run(parsed: argparse.Namespace) -> int:
    """List, export or verify."""
    if parsed.action == "export":
        _require_out(parsed.out)
    with as_owner_of(parsed.state_dir):
        store = Store(parsed.state_dir, read_only=True)
        try:
            models = store.models()
            if parsed.action == "list":
                _print_models(models, _measures(store))
            elif parsed.action == "verify":
                chosen = models if parsed.version is None else [_chosen(models, parsed.version)]
                _verify(store, chosen)
            else:
                model = _chosen(models, parsed.version)
                content = _exported(store, model, parsed.out.suffix)
        finally:
            store.close()
    if parsed.action == "export":
        write_atomically(parsed.out, content)
        print(f"{parsed.out}: model {model.version}, {len(content):,} bytes")
    return 0


def _verify(store: Store, models: list[Model]) -> None:
    """One line for each version.

    Raises:
        StateError: at least one is not what its updates make, or cannot be recomputed.
    """
    wrong = []
    for model in models:
        try:
            same = recompute(store, model) == model.ref.digest
        except MissingUpdateError:
            print(f"model {model.version}: its updates are not kept any more")
            continue
        except (FileNotFoundError, StateError) as exc:
            print(f"model {model.version}: {exc}")
            wrong.append(model.version)
            continue
        made_of = f"{len(store.parts(model.round_id))} updates" if model.version else "its digest"
        print(f"model {model.version}: {'the same' if same else 'OTHER'} bits from {made_of}")
        if not same:
            wrong.append(model.version)
    if wrong:
        raise StateError(
            f"{_told(wrong)} above",
            hint=_DAMAGED,
        )


def _told(wrong: list[int]) -> str:
    if len(wrong) == 1:
        return f"model {wrong[0]} is not what its stored updates make: see its line"
    names = ", ".join(map(str, wrong))
    return f"models {names} are not what their stored updates make: see their lines"


def _chosen(models: list[Model], version: int | None) -> Model:
    wanted = models[-1].version if version is None and models else version
    for model in models:
        if model.version == wanted:
            return model
    there = f"versions 0 to {models[-1].version}" if models else "no model yet"
    raise ConfigError(f"there is no model version {wanted}; the state holds {there}")


def _measures(store: Store) -> tuple[str, ...]:
    """What the bundle measures, and the perplexity of a model of language."""
    digest = store.fact("bundle")
    if digest is None:
        return ("loss",)
    try:
        manifest = open_stored_bundle(digest, store.blobs.read).manifest
    except FileNotFoundError as exc:
        raise StateError(
            f"the bundle in {str(store.folder)!r} cannot be read: {exc}", hint=_DAMAGED
        ) from exc
    tokens = manifest.classes is not None and manifest.labels.shape
    return ("loss", *(("perplexity",) if tokens else ()), *manifest.metrics)


def _print_models(models: list[Model], measures: tuple[str, ...]) -> None:
    """A table of plain columns; "-" where nothing was measured."""
    headers = [*measures, *(f"held-out {name}" for name in measures)]
    titles = "  ".join(f"{header:>8}" for header in headers)
    print(f"{'version':>7}  {'round':>5}  {'made at':19}  {titles}  digest")
    for model in models:
        made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(model.made_at_ms / 1000))
        values = [
            _mean(part, name) for part in (model.metrics, model.held_out) for name in measures
        ]
        numbers = "  ".join(
            f"{'-' if value is None else format(value, '.4f'):>{max(8, len(header))}}"
            for value, header in zip(values, headers, strict=True)
        )
        print(
            f"{model.version:>7}  {model.round_id:>5}  {made}  {numbers}  {model.ref.digest[:12]}"
        )


def _mean(metrics: Metrics | None, name: str) -> float | None:
    if metrics is None:
        return None
    return metrics.perplexity if name == "perplexity" else metrics.mean(name)


def _require_out(out: Path) -> None:
    if out.suffix not in (".onnx", ".safetensors"):
        raise ConfigError(f"--out {str(out)!r} ends in neither .onnx nor .safetensors")
    require_place(out)


def _exported(store: Store, model: Model, suffix: str) -> bytes:
    """The file's content."""
    digest = store.fact("bundle")
    if digest is None:
        raise StateError("the state names no bundle: this coordinator has never started")
    try:
        blobs = store.blobs
        bundle = open_stored_bundle(digest, blobs.read)
        shared = decode_vector(blobs.read(model.ref.digest), "f32", bundle.manifest.shared_count)
        vector = whole_vector(shared, bundle)
    except FileNotFoundError as exc:
        raise StateError(
            f"model {model.version} cannot be read: {exc}",
            hint="`fedtide models list` names the others; --version N exports one of them",
        ) from exc
    if suffix == ".onnx":
        return _with_weights(bundle.read(bundle.manifest.inference), bundle.manifest, vector)
    return encode_safetensors(vector)


def _with_weights(inference: bytes, manifest: Manifest, vector: Vector) -> bytes:
    """The inference graph with every tensor of the manifest replaced by this model's."""
    import onnx

    graph = onnx.load_model_from_string(inference)
    tensors = split_vector(vector, manifest)
    replaced = set()
    for initializer in graph.graph.initializer:
        if initializer.name in tensors:
            value = onnx.numpy_helper.from_array(tensors[initializer.name], initializer.name)
            initializer.CopyFrom(value)
            replaced.add(initializer.name)
    unused = sorted(set(tensors) - replaced)
    if unused:
        raise BundleError(f"the bundle's inference graph has no initializer {unused[0]!r}")
    return bytes(graph.SerializeToString())
