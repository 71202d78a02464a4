"""One run of the demo from the first file to the last."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from demo.brokers import (
    COORDINATOR,
    Broker,
    Kind,
    child_environment,
    find_broker,
    mosquitto_version,
)
from demo.data import DEVICES, Part, Split, split_digits
from demo.faults import FaultPlan, plan_faults
from demo.federation import Federation
from demo.outcome import Outcome, accuracy_by_round, fates, read_models, read_rounds
from demo.prepare import (
    QUORUM,
    Runtime,
    Settings,
    choose_runtimes,
    export_model,
    write_data,
)
from demo.processes import Child, ProcessError
from demo.report import write_report
from demo.scene import DeviceScene, Scene
from demo.view import View, open_view
from fedtide import __version__
from fedtide.bundle import open_bundle_dir
from fedtide.errors import ConfigError
from fedtide.launch import module_command
from fedtide.runtime import load_session

BASELINES_S = 120.0
MODELS_S = 60.0
_RUN_FOLDER = "demo-run"
_PACKAGES = ("onnxruntime", "onnxruntime-training-cpu", "torch", "paho-mqtt", "numpy")
_DEVICE_PACKAGES = ("onnxruntime", "onnxruntime-training-cpu", "paho-mqtt", "numpy")
_ASK_VERSIONS = """
import importlib.metadata, json, platform, sys
found = {"python": platform.python_version()}
for package in sys.argv[1:]:
    try:
        found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Options:
    """The command line."""

    seed: int
    rounds: int
    out: Path
    broker: str
    device_python: str
    plain: bool
    faults: bool


def run_demo(options: Options) -> Outcome:
    """Run it, and write `demo.json`, `demo.html` and `inference.onnx`.

    Raises:
        ConfigError: no broker, or the results cannot be written where they should.
        BrokerError, ProcessError: a part of the federation failed; with the end of its log.
    """
    started_s = time.monotonic()
    kind = find_broker(options.broker)
    folder = _fresh_folder(options.out)
    settings = Settings(options.seed, options.rounds, folder, options.device_python, options.faults)
    split = split_digits(options.seed)
    write_data(folder, split)
    devices = {name: DeviceScene(name, part.digits(), "") for name, part in split.devices.items()}
    scene = Scene(devices, options.rounds, kind, QUORUM)
    with open_view(scene, plain=options.plain) as view:
        _step(scene, view, "exporting the PyTorch model to ONNX, and checking it against PyTorch")
        runtimes = choose_runtimes(export_model(settings))
        kills = _perform(settings, kind, split, runtimes, scene, view)
        _step(scene, view, "exporting the final model, and running it")
        exported = _export_final(folder, options.out / "inference.onnx", split.test)
        scene.step = ""
    records, models = read_rounds(folder / "coordinator"), read_models(folder / "coordinator")
    curve = accuracy_by_round(models, len(records))
    singles = json.loads((folder / "baselines.json").read_text())
    manifest = open_bundle_dir(folder / "bundle").manifest
    outcome = Outcome(
        accuracy=curve[-1],
        central_accuracy=singles["central"],
        best_single_accuracy=max(singles["alone"].values()),
        rounds=sum(record.outcome == "done" for record in records),
        abandoned=sum(record.abandoned for record in records),
        dropouts=kills,
        late=sum(len(record.late) for record in records),
        seconds=round(time.monotonic() - started_s, 1),
        seed=options.seed,
        broker=kind,
        faults=options.faults,
        test_examples=len(split.test.y),
        parameters=manifest.elements_count,
        upload_bytes=sum(record.upload_bytes for record in records),
        inference_accuracy=exported,
        accuracy_by_round=curve,
        single_accuracies=singles["alone"],
        runtimes=dict(runtimes),
        digits={name: part.digits() for name, part in split.devices.items()},
        versions=_versions(kind, options.device_python),
    )
    outcome.write(options.out / "demo.json")
    table = fates(records, scene)
    write_report(options.out / "demo.html", outcome, records, models, table, scene)
    _check_export(outcome)
    return outcome


def _perform(
    settings: Settings,
    kind: Kind,
    split: Split,
    runtimes: dict[str, Runtime],
    scene: Scene,
    view: View,
) -> int:
    """The federation, and beside it what it is compared with; how often a device was killed."""
    for name, runtime in runtimes.items():
        scene.devices[name].runtime = runtime
    plan = FaultPlan()
    if settings.faults:
        plan = plan_faults(settings.seed, DEVICES, settings.rounds, QUORUM)
    _step(scene, view, f"starting {kind}, the coordinator and {len(DEVICES)} devices")
    folder = settings.folder
    baselines = Child("baselines", _baselines_command(folder), folder / "baselines.log")
    results = folder / "baselines.json"

    def refresh() -> None:
        if scene.central is None and baselines.exit_code() == 0:
            _compare(scene, results)
        baselines.check(may_end=True)
        view.refresh()

    try:
        with (
            Broker(kind, folder / "broker", (COORDINATOR, *DEVICES)) as broker,
            Federation(settings, broker, split, runtimes, plan, scene) as federation,
        ):
            baselines.start()
            federation.run(refresh)
        _step(scene, view, "training on all data in one place, to compare")
        baselines.wait(BASELINES_S)
        refresh()
    finally:
        baselines.stop()
    return federation.kills_count


def _step(scene: Scene, view: View, text: str) -> None:
    scene.step = text
    view.refresh()


def _compare(scene: Scene, results: Path) -> None:
    singles = json.loads(results.read_text())
    scene.central, scene.best_single = singles["central"], max(singles["alone"].values())


def _baselines_command(folder: Path) -> list[str]:
    return module_command(
        "demo.baselines",
        *("--bundle", str(folder / "bundle")),
        *("--data", str(folder / "data")),
        *("--out", str(folder / "baselines.json")),
    )


def _fresh_folder(out: Path) -> Path:
    """The run's own folder inside `out`; the last run's is removed."""
    folder = out / _RUN_FOLDER
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True, mode=0o700)
    except OSError as exc:
        raise ConfigError(f"--out: cannot write in {str(out)!r}: {exc.strerror or exc}") from exc
    return folder


def _export_final(folder: Path, path: Path, test: Part) -> float:
    """Run `fedtide models export`; the accuracy of the file on the test set in onnxruntime."""
    words = ("--state-dir", str(folder / "coordinator"), "--out", str(path))
    done = subprocess.run(
        module_command("fedtide", "models", "export", *words),
        env=child_environment(),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=MODELS_S,
        check=False,
    )
    if done.returncode != 0:
        raise ProcessError(f"fedtide models export failed:\n{done.stdout}{done.stderr}")
    session = load_session(path.read_bytes())
    (name,) = (entry.name for entry in session.get_inputs())
    logits = session.run(None, {name: test.x})[0]
    return float(np.mean(np.argmax(logits, axis=1) == test.y))


def _check_export(outcome: Outcome) -> None:
    """The exported file must be the model that the coordinator measured."""
    difference = abs(outcome.inference_accuracy - outcome.accuracy)
    if difference > 1.5 / outcome.test_examples:  # one image may lie on the fence
        raise ProcessError(
            f"inference.onnx reads {outcome.inference_accuracy:.2%} of the test set, "
            f"but the coordinator measured {outcome.accuracy:.2%}"
        )


def _versions(kind: Kind, device_python: str) -> dict[str, str]:
    """Of what this ran on; where the devices' Python has something else, with their name to it."""
    versions = {"fedtide": __version__, **_ask_versions(sys.executable, _PACKAGES)}
    for name, version in _ask_versions(device_python, _DEVICE_PACKAGES).items():
        if versions.setdefault(name, version) != version:
            versions[f"{name} (devices)"] = version
    if kind == "mosquitto":
        versions[kind] = mosquitto_version()
    else:
        versions[kind] = importlib.metadata.version(kind)
    return versions


def _ask_versions(python: str, packages: tuple[str, ...]) -> dict[str, str]:
    """What a Python has of these packages."""
    done = subprocess.run(
        [python, "-P", "-c", _ASK_VERSIONS, *packages],
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=MODELS_S,
        check=False,
    )
    if done.returncode != 0:
        raise ProcessError(f"{python} does not say what is installed:\n{done.stderr}")
    found: dict[str, str] = json.loads(done.stdout)
    return found
