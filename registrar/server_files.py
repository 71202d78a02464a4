"""Texts of `coordinator.toml` and `registrar.toml` as `fedtide server init` writes them."""

from __future__ import annotations

import json
from pathlib import Path

from registrar.broker_files import LOOPBACK
from registrar.layout import Layout


def coordinator_toml(layout: Layout, federation: str, local_port: int) -> str:
    """Ready to run, and to be edited."""
    return f"""\
# The coordinator of {federation}; every key: docs/configuration.md. After a change:
#   sudo systemctl restart fedtide-coordinator
federation = {_quoted(federation)}
bundle = {_quoted(layout.bundle)}      # what `fedtide export` wrote
state_dir = {_quoted(layout.home("coordinator") / "state")}
identity = {_quoted(layout.identity("coordinator"))}
members = {_quoted(layout.members)}      # the registrar writes it
# encoding = "f16"              # half as many bytes for each update

[broker]
host = "{LOOPBACK}"
port = {local_port}                     # the broker's port for this machine's own services

[rounds]
count = 100                     # raise it and start again to go on
cohort_fraction = 1.0           # C: everybody who is online
quorum = 1                      # least updates that make a round count
devices_min = 1                 # wait for this many before a round opens
collect_ms = 60_000             # from the invitation to the deadline

[plan]
epochs = 2                      # E
batch_size = 10                 # B; "all" is the whole local set as one batch
learning_rate = 0.05

# [evaluation]
# data = "{layout.home("coordinator")}/test.npz"      # judge every model on a test set of your own

# [metrics]
# listen = "127.0.0.1:9464"     # for Prometheus; without it nothing listens
"""  # noqa: S608 - no SQL


def registrar_toml(layout: Layout, federation: str, host: str, port: int, local_port: int) -> str:
    """What the registrar's service and `fedtide device ...` read."""
    return f"""\
# The registrar of {federation}; every key: docs/configuration.md. After a change:
#   sudo systemctl restart fedtide-registrar
federation = {_quoted(federation)}
host = {_quoted(host)}      # where devices reach the broker: join codes carry it
port = {port}
identity = {_quoted(layout.identity("registrar"))}
state_dir = {_quoted(layout.home("registrar"))}
members = {_quoted(layout.members)}
broker_dir = {_quoted(layout.broker_dir)}

[broker]
host = "{LOOPBACK}"
port = {local_port}                     # the broker's port for this machine's own services
"""


def _quoted(value: str | Path) -> str:
    """As a basic string of TOML, whose escapes are JSON's."""
    return json.dumps(str(value), ensure_ascii=False)
