"""FedAvg in Flower's simulation engine: the other side of `simulation_speed`.

It runs with the Python of an environment that has `flwr[simulation]` and torch, and imports nothing
of fedtide. As Flower's documentation shows it (ServerApp with the FedAvg strategy, ClientApp,
`run_simulation`), and tuned: one core a client, so that all cores work; one torch thread in a
client; data mapped once a process; batches cut from one shuffled tensor instead of a DataLoader;
the model made once a process; replies looked for every 5 ms instead of every 100.

    FLOWER_TASK=TASK.json python -c 'from benchmarks.flower_fedavg import main; main()'

prints one line of JSON: when each evaluated model was measured (time.time()), and its accuracy.
"""

from __future__ import annotations

import functools
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn

PULL_S = 0.005


@functools.cache
def task() -> dict[str, Any]:
    """What `simulation_speed` says, in a variable that children inherit."""
    content: dict[str, Any] = json.loads(Path(os.environ["FLOWER_TASK"]).read_text())
    return content


@functools.cache
def network() -> nn.Module:
    """The 2NN of the FedAvg paper, or logistic regression."""
    torch.manual_seed(2016)
    if task()["model"] == "mnist_lr":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    layers = [nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)]
    return nn.Sequential(nn.Flatten(), *layers)


@functools.cache
def stored(name: str) -> Any:
    """An array of the task, mapped."""
    return np.load(Path(task()["folder"]) / f"{name}.npy", mmap_mode="r")


def tensors(x: str, y: str, chosen: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Images in 0..1 and labels."""
    images = torch.from_numpy(np.asarray(stored(x)[chosen])).float().div_(255)
    return images, torch.from_numpy(np.asarray(stored(y)[chosen]))


def train(message: Message, context: Context) -> Message:
    """E epochs of SGD on the node's part."""
    torch.set_num_threads(1)
    device = int(context.node_config["partition-id"])
    bounds = stored("bounds")
    x, y = tensors("x", "y", stored("order")[bounds[device] : bounds[device + 1]])
    model, settings = network(), task()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=settings["learning_rate"])
    loss_function = nn.CrossEntropyLoss()
    for _ in range(settings["epochs"]):
        order = torch.randperm(len(x))
        x_shuffled, y_shuffled = x[order], y[order]
        size = settings["batch_size"]
        batches = zip(torch.split(x_shuffled, size), torch.split(y_shuffled, size), strict=True)
        for x_batch, y_batch in batches:
            optimizer.zero_grad()
            loss_function(model(x_batch), y_batch).backward()
            optimizer.step()
    content = {
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord({"num-examples": len(x)}),
    }
    return Message(content=RecordDict(content), reply_to=message)


reached: list[dict[str, float]] = []


def serve(grid: Grid, _context: Context) -> None:
    """The rounds, each model evaluated on the whole test set."""
    settings = task()
    grid.pull_interval = PULL_S
    strategy = FedAvg(
        fraction_train=settings["cohort"] / settings["devices"],
        fraction_evaluate=0.0,
        min_train_nodes=settings["cohort"],
        min_available_nodes=settings["devices"],
    )
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(network().state_dict()),
        num_rounds=settings["rounds"],
        evaluate_fn=evaluate,
    )


def evaluate(round_number: int, arrays: ArrayRecord) -> MetricRecord | None:
    """Accuracy on the test set, every so many rounds."""
    if round_number % task()["evaluate_every"]:
        return None
    x, y = tensors("x_test", "y_test", slice(None))
    model = network()
    model.load_state_dict(arrays.to_torch_state_dict())
    with torch.no_grad():
        accuracy = float((model(x).argmax(1) == y).float().mean())
    reached.append({"round": round_number, "at_s": time.time(), "accuracy": accuracy})
    return MetricRecord({"accuracy": accuracy})


client_app = ClientApp()
client_app.train()(train)
server_app = ServerApp()
server_app.main()(serve)


def main() -> None:
    """Run the task."""
    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=task()["devices"],
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    print(json.dumps({"reached": reached}))
