"""What a bundle holds, as data (`fedtide inspect --json`) and as text for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_client.arithmetic import Speed
from edge_client.tables import duration, size, table
from fedtide.logs import escaped
from fedtide.manifest import Array, Manifest
from fedtide.onnx_scan import Scan

BATCHES = (1, 10, 50)
Description = dict[str, Any]
_ALLOCATOR = 1.3
"""onnxruntime's allocator took 1.1 to 1.5 times what is alive, for five models and batches of 10
to 200 (1.31, x86-64)."""
_PROCESS_BYTES = 70_000_000
"""Python, numpy, onnxruntime and a loaded graph."""
_WEIGHT_PASSES = 4
"""How often a step reads or writes each weight in memory: forward, backward, update (twice)."""
_NODE_S = 1e-6
"""To start a node of the graph takes about that, however small it is."""


def describe(
    manifest: Manifest,
    digest: str,
    scans: Mapping[str, Scan],
    installed: tuple[str, ...],
    speed: Speed | None,
) -> Description:
    """Everything that `fedtide inspect` tells; `installed` are the runtimes of this machine."""
    ort = manifest.runtimes.ort_training
    return {
        "name": manifest.name,
        "digest": digest,
        "format_version": manifest.format_version,
        "opset": manifest.opset,
        "values": _values(manifest),
        "travels_bytes": {"down": manifest.shared_bytes, "up": manifest.shared_bytes},
        "inputs": _array(manifest.inputs),
        "labels": _array(manifest.labels),
        "classes": manifest.classes,
        "ignored_label": manifest.ignored_label,
        "loss": manifest.loss,
        "metrics": list(manifest.metrics),
        "optimizers": list(manifest.optimizers),
        "additive": manifest.additive,
        "random": manifest.random,
        "runtimes": {
            "portable": {"offered": True, "because": None, "installed": "portable" in installed},
            "ort_training": {
                "offered": ort is not None,
                "because": manifest.runtimes.ort_training_absent_because,
                "installed": "ort_training" in installed,
            },
        },
        "graphs": {
            path: {
                "nodes": scan.nodes,
                "operators": {
                    f"{domain}.{kind}" if domain else kind: count
                    for (domain, kind), count in sorted(
                        scan.operators.items(), key=lambda item: (-item[1], item[0])
                    )
                },
            }
            for path, scan in scans.items()
        },
        "files": {
            path: {"bytes": entry.size_bytes, "sha256": entry.sha256}
            for path, entry in sorted(manifest.files.items())
        },
        "estimates": _estimates(manifest, scans, speed),
    }


def _array(array: Array) -> Description:
    return {"shape": list(array.shape), "dtype": array.dtype, "below": array.below}


def _values(manifest: Manifest) -> Description:
    def count(kind: str, *, shared: bool) -> int:
        return sum(t.size for t in manifest.tensors if (t.kind, t.shared) == (kind, shared))

    trained = manifest.trained
    return {
        "all": manifest.elements_count,
        "tensors": len(manifest.tensors),
        "trained": trained.stop - trained.start,
        "statistics": count("statistic", shared=True) + count("statistic", shared=False),
        "local": manifest.local.stop - manifest.local.start,
        "frozen": count("frozen", shared=False),
        "shared": manifest.shared_count,
    }


def _estimates(
    manifest: Manifest, scans: Mapping[str, Scan], speed: Speed | None
) -> Description | None:
    costs = manifest.estimates
    if costs is None:
        return None
    nodes = scans[manifest.runtimes.portable.train].nodes
    values = _values(manifest)
    # The portable trainer reads one vector and writes another; what is frozen exists once.
    model_bytes = 4 * (2 * values["all"] - values["frozen"])
    batches = {}
    for batch in BATCHES:
        step_bytes = costs.memory_fixed_bytes + batch * costs.memory_per_example_bytes
        seconds = None
        if speed is not None:
            seconds = batch * costs.flops_per_example / speed.flops_per_second
            seconds += _WEIGHT_PASSES * 4 * values["trained"] / speed.bytes_per_second
            seconds += _NODE_S * nodes
        batches[str(batch)] = {
            "step_bytes": step_bytes,
            "process_bytes": int(_PROCESS_BYTES + model_bytes + _ALLOCATOR * step_bytes),
            "step_s": seconds,
        }
    return {
        "flops_per_example": costs.flops_per_example,
        "memory_fixed_bytes": costs.memory_fixed_bytes,
        "memory_per_example_bytes": costs.memory_per_example_bytes,
        "model_bytes": model_bytes,
        "machine": None if speed is None else speed._asdict(),
        "batches": batches,
    }


def as_text(told: Description) -> str:
    """The description for a person."""
    values = told["values"]
    parts = [
        f"{escaped(told['name'])}  bundle {told['digest'][:12]}, "
        f"format {told['format_version']}, opset {told['opset']}",
        "",
        "Model",
        table(
            [
                ("values", f"{values['all']:,} in {values['tensors']:,} tensors"),
                ("trained", f"{values['trained']:,}"),
                ("statistics", _few(values["statistics"], "every step computes anew")),
                ("local", _few(values["local"], "stay on each device, never averaged")),
                ("frozen", _few(values["frozen"], "never change")),
                ("a round", f"{size(told['travels_bytes']['down'])} down, the same up, as float32"),
            ]
        ),
        "",
        "Data",
        table(
            [
                ("inputs", _array_text(told["inputs"])),
                ("labels", f"{_array_text(told['labels'])}{_classes(told)}"),
                ("loss", escaped(told["loss"])),
                ("metrics", ", ".join(told["metrics"]) or "none"),
            ]
        ),
        "",
        "Training",
        table(
            [
                ("optimizers", ", ".join(told["optimizers"])),
                ("batches", _batches(told["additive"])),
                ("dropout", "yes, seeded: the same on every runtime" if told["random"] else "none"),
            ]
        ),
        "",
        "Runtimes",
        table([(name, _runtime(name, entry)) for name, entry in told["runtimes"].items()]),
        "",
        "Graphs",
        *(_graph(path, graph) for path, graph in told["graphs"].items()),
        "",
        "Files, every SHA-256 checked",
        table(
            [(escaped(path), size(entry["bytes"])) for path, entry in told["files"].items()]
            + [("together", size(sum(entry["bytes"] for entry in told["files"].values())))],
            right=1,
        ),
        "",
        *_costs(told["estimates"]),
    ]
    return "\n".join(parts)


def _few(count: int, meaning: str) -> str:
    return f"{count:,} values that {meaning}" if count else "none"


def _array_text(array: Mapping[str, Any]) -> str:
    what = "one value" if not array["shape"] else f"{array['shape']}"
    values = "" if array["below"] is None else f": 0 to {array['below'] - 1}"
    return f"{array['dtype']}, {what} for each example{values}"


def _classes(told: Description) -> str:
    if told["classes"] is None:
        return ""
    ignored = told["ignored_label"]
    also = "" if ignored is None else f", or {ignored} for none"
    return f": classes 0 to {told['classes'] - 1}{also}"


def _batches(additive: bool) -> str:
    if additive:
        return "of any size; large ones are computed in parts, with the same result"
    return (
        "examples of a batch see each other (batch normalisation): computed whole, never in parts"
    )


def _runtime(name: str, entry: Mapping[str, Any]) -> str:
    if not entry["offered"]:
        return f"not offered: {escaped(entry['because'] or 'it was not exported')}"
    here = "installed here" if entry["installed"] else "not installed here"
    return f"{'any onnxruntime' if name == 'portable' else 'onnxruntime.training'}; {here}"


def _graph(path: str, graph: Mapping[str, Any]) -> str:
    words = [f"{count} {name}" for name, count in graph["operators"].items()]
    lines = [f"  {escaped(path)}: {graph['nodes']:,} nodes"]
    line = "   "
    for word in words:
        if len(line) + len(word) > 96:
            lines.append(line)
            line = "   "
        line += f" {word},"
    return "\n".join([*lines, line.rstrip(",")])


def _costs(estimates: Description | None) -> list[str]:
    if estimates is None:
        return ["Cost of a step: the bundle has no estimates"]
    batches = estimates["batches"]
    rows = [
        ("examples in a batch", *batches),
        ("memory of the step", *(size(entry["step_bytes"]) for entry in batches.values())),
        ("of the process", *(size(entry["process_bytes"]) for entry in batches.values())),
    ]
    machine = estimates["machine"]
    if machine is not None:
        rows.append(("time here, one thread", *(duration(e["step_s"]) for e in batches.values())))
    notes = [
        "Memory of the step: results alive at once, counted in its graph. Of the process: "
        f"{_ALLOCATOR} times",
        f"that, {size(estimates['model_bytes'])} for the model before and after the step, "
        f"{size(_PROCESS_BYTES)} for Python and its packages.",
    ]
    if machine is not None:
        notes += [
            f"Time: {estimates['flops_per_example'] / 1e6:.3g} million operations an example, "
            f"{machine['flops_per_second'] / 1e9:.3g} GFLOP/s in numpy, and the weights 4 times",
            f"through memory at {machine['bytes_per_second'] / 1e9:.3g} GB/s, 1 µs a node. "
            "It may take twice as long; `fedtide client benchmark` measures.",
        ]
    return ["Cost of a step, estimated", table(rows, right=1), *(f"  {note}" for note in notes)]
