"""Texts of `coordinator.toml` and `registrar.toml` as `fedtide server init` writes them."""

from __future__ import annotations

from fedtide.config import toml_string
from registrar.broker_files import LOOPBACK
from registrar.layout import Layout, Role


def coordinator_toml(layout: Layout, federation: str, local_port: int) -> str:
    """Ready to run, and to be edited."""
    return f"""\
# The coordinator of {federation}; every key: docs/configuration.md. After a change:
#   {_again(layout, "coordinator")}
federation = {toml_string(federation)}
bundle = {toml_string(layout.bundle)}      # what `fedtide export` wrote
state_dir = {toml_string(layout.home("coordinator") / "state")}
identity = {toml_string(layout.identity("coordinator"))}
members = {toml_string(layout.members)}      # the registrar writes it
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
#   {_again(layout, "registrar")}
federation = {toml_string(federation)}
host = {toml_string(host)}      # where devices reach the broker: join codes carry it
port = {port}
identity = {toml_string(layout.identity("registrar"))}
state_dir = {toml_string(layout.home("registrar"))}
members = {toml_string(layout.members)}
broker_dir = {toml_string(layout.broker_dir)}

[broker]
host = "{LOOPBACK}"
port = {local_port}                     # the broker's port for this machine's own services
"""


def _again(layout: Layout, role: Role) -> str:
    """How a service takes a change in; below another root there are none."""
    return f"sudo systemctl restart fedtide-{role}" if layout.system else "start it again"
