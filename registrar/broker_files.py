"""The broker's files: its configuration, and who may read and write which topics.

Limits and rules are those of `deploy/mosquitto`, which is also part of this package; added are the
listeners, and what the registry says of single names.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from msgspec import Struct

LOOPBACK = "127.0.0.1"
_SITE_ENDS = "# --- Who may do what"
"""In the shared configuration: what stands above is about a site with passwords."""
_HEAD_OF_RULES = "# Who may do what; written by `fedtide server init` and `fedtide device ...`."
_OF_CLAIMS = ("/enrol/%u", "/enrolled/%u")
"""What a claim may use of what any device may."""


class BrokerSettings(Struct, frozen=True):
    """What differs between servers."""

    folder: Path
    """Of the configuration, certificates and lists."""
    state_dir: Path
    """Folder for retained messages and the process id, the broker's own."""
    user: str
    port: int
    """For devices."""
    local_port: int
    """For the server's own services, on the loopback only."""
    bind: str | None = None
    """Address at which devices are listened for; None: at every address of this machine."""


def broker_configuration(settings: BrokerSettings) -> str:
    """Text of `mosquitto.conf`."""
    shared = _shared("mosquitto.conf")
    folder, state = settings.folder, settings.state_dir
    tls = f"""\
cafile {folder}/ca.pem
certfile {folder}/certificate.pem
keyfile {folder}/key.pem
crlfile {folder}/revoked.pem
tls_version tlsv1.2
require_certificate true
use_identity_as_username true"""
    where = f" {settings.bind}" if settings.bind else ""
    return f"""\
# Mosquitto for fedtide, written by `fedtide server init`, which leaves an edited file alone.

# --- Who gets in ----------------------------------------------------------------------------------

# Devices: by a certificate of the federation's own authority, TLS 1.2 or newer. The name in it is
# the user's name and the client's id, so nobody can take another's place.
listener {settings.port}{where}
{tls}
use_username_as_clientid true

# The services of this machine, likewise, but each may have several connections.
listener {settings.local_port} {LOOPBACK}
{tls}

# Written by `fedtide device ...` when devices come and go, and read anew at SIGHUP.
acl_file {folder}/acl

user {settings.user}
pid_file {state}/broker.pid
persistence_location {state}/
log_dest stderr

{shared[shared.index(_SITE_ENDS) :]}"""


def pid_file(configuration: str) -> Path | None:
    """Where the broker writes its process id, as its configuration says."""
    for line in configuration.splitlines():
        key, _, value = line.strip().partition(" ")
        if key == "pid_file":
            return Path(value.strip())
    return None


def access_list(federation: str, devices: Iterable[str], claims: Iterable[str]) -> str:
    """Text of the ACL: `devices` may do what any device may, `claims` nothing but join.

    No rule is for everybody: another name, whatever certificate it has, can say and hear nothing.
    """
    shared = _shared("mosquitto.acl").replace("/1/+/", f"/1/{federation}/").splitlines()
    rules = [line for line in shared if line and not line.startswith("#")]
    of_roles = [rule for rule in rules if not rule.startswith("pattern ")]
    of_devices = [rule.replace("pattern", "topic", 1) for rule in rules if rule not in of_roles]
    of_claims = [rule for rule in of_devices if rule.endswith(_OF_CLAIMS)]
    blocks = [
        "\n".join((f"user {name}", *(rule.replace("%u", name) for rule in allowed)))
        for names, allowed in ((devices, of_devices), (claims, of_claims))
        for name in sorted(names)
    ]
    return "\n".join((_HEAD_OF_RULES, *of_roles, *blocks, ""))


def _shared(name: str) -> str:
    return (files("registrar") / name).read_text(encoding="utf-8")
