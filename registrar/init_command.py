"""`fedtide server init HOST --federation NAME`: a server, ready for its first device."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import shlex
from pathlib import Path

from fedtide import units
from fedtide.bundle import open_bundle_dir
from fedtide.config import load_config
from fedtide.errors import ConfigError
from fedtide.files import disk_errors_of
from fedtide.ownership import as_owner_of
from fedtide.system_user import make_user
from fedtide.topics import is_identifier
from registrar.broker_control import broker_process
from registrar.broker_files import LOOPBACK
from registrar.config import RegistrarConfig
from registrar.installation import Installation, Wanted
from registrar.layout import ROLES, STAGING_NAME, Layout, Role
from registrar.office import opened

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare flags."""
    parser.add_argument(
        "hosts",
        nargs="+",
        metavar="HOST",
        help="name or address at which devices reach this server; join codes carry the first",
    )
    parser.add_argument("--federation", required=True, metavar="NAME", help="its name")
    parser.add_argument(
        "--bundle", type=Path, metavar="FOLDER", help="what `fedtide export` wrote; also later"
    )
    parser.add_argument(
        "--port", type=_port, default=8883, metavar="N", help="for devices (default: 8883)"
    )
    parser.add_argument(
        "--local-port",
        type=_port,
        default=8884,
        metavar="N",
        help=f"for the services of this machine, on {LOOPBACK} only (default: 8884)",
    )
    parser.add_argument(
        "--bind",
        metavar="ADDRESS",
        help="listen for devices at this address only (default: at every one of this machine)",
    )
    parser.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="write the same tree under DIR: no users, no services (containers, trying out)",
    )


def run(parsed: argparse.Namespace) -> int:
    """Make what is missing, start what does not run, and say what is left to do."""
    layout = Layout((parsed.root or Path("/")).absolute(), system=parsed.root is None)
    wanted = _wanted(parsed)
    _check(layout, wanted)
    if layout.system:
        for role in ROLES:
            make_user(layout.user(role), layout.home(role))
        if units.systemd_runs():
            units.check_reachable(layout.user("registrar"))
    installation = Installation(layout, wanted)
    installation.make()
    for path in installation.made:
        print(f"made     {path}")
    started = _start(layout) if layout.system and units.systemd_runs() else []
    for role in started:
        print(f"started  {units.unit_name(role)}")
    if not installation.made and not started:
        print("everything is there already, and was left as it is")
    for what in _enforced(layout, installation.lost):
        print(f"BUT {what}")
    print(_listening(layout, wanted))
    print(_to_do(layout, wanted, runs=layout.system and units.systemd_runs()))
    return 0


def _wanted(parsed: argparse.Namespace) -> Wanted:
    if not is_identifier(parsed.federation):
        raise ConfigError(
            f"--federation {parsed.federation!r} cannot be a federation's name",
            hint="a name of letters, digits, '.', '_' or '-', at most 64",
        )
    if parsed.bind is not None and not _is_address(parsed.bind):
        raise ConfigError(
            f"--bind {parsed.bind!r} is no address", hint="an IP address of this machine"
        )
    if parsed.port == parsed.local_port:
        raise ConfigError(
            f"--port and --local-port are both {parsed.port}", hint="devices need one of their own"
        )
    hosts = tuple(dict.fromkeys(_host(text) for text in parsed.hosts))
    return Wanted(
        parsed.federation, hosts, parsed.port, parsed.local_port, parsed.bind, parsed.bundle
    )


def _check(layout: Layout, wanted: Wanted) -> None:
    """What can be seen to fail before anything is done.

    Raises:
        BundleError: there is no bundle where one is said to be.
        ConfigError: this user may not, a path cannot stand in Mosquitto's configuration, Mosquitto
            is missing, a restoration was cut short, or there is another federation.
    """
    if not str(layout.root).isprintable():
        raise ConfigError(f"--root {str(layout.root)!r} has characters that do not print")
    if layout.system and os.geteuid() != 0:
        raise ConfigError(
            "a server's users and services are made by root",
            hint="put sudo before the command; without users and services: --root DIR",
        )
    if layout.system and not units.MOSQUITTO.exists():
        raise ConfigError(
            f"the broker is not installed: there is no {units.MOSQUITTO}",
            hint="apt install mosquitto && systemctl disable --now mosquitto: fedtide runs its own",
        )
    _check_restored(layout)
    if wanted.bundle is not None:
        open_bundle_dir(wanted.bundle)
    if not layout.registrar_toml.exists():
        return
    known = load_config(layout.registrar_toml, RegistrarConfig)
    for what, there, asked in (
        ("federation", known.federation, wanted.federation),
        ("port", known.port, wanted.port),
        ("local port", known.broker.port, wanted.local_port),
    ):
        if there != asked:
            raise ConfigError(
                f"this server's {what} is {there}, not {asked}, as "
                f"{str(layout.registrar_toml)!r} says",
                hint="repeat the command as it was; ports are changed in the files of "
                f"{str(layout.etc)!r}; one server has one federation",
            )


def _check_restored(layout: Layout) -> None:
    """Beside half of an old server no new authority is made."""
    for folder in layout.restored:
        with disk_errors_of(folder):
            unfinished = (folder / STAGING_NAME).exists()
        if unfinished:
            raise ConfigError(
                f"a restoration was cut short: {str(folder / STAGING_NAME)!r} is there",
                hint="repeat `fedtide server restore`; if it says that something is there already, "
                f"move {str(layout.etc)!r} and {str(layout.var)!r} away first",
            )


def _start(layout: Layout) -> list[Role]:
    """Services whose unit is new or that do not run; which ones."""
    writable = {
        "broker": [layout.home("broker")],
        "registrar": [layout.home("registrar"), layout.members.parent],
        "coordinator": [layout.home("coordinator")],
    }
    configs = {
        "broker": layout.mosquitto_conf,
        "registrar": layout.registrar_toml,
        "coordinator": layout.coordinator_toml,
    }
    started: list[Role] = []
    for role in ROLES:
        user = layout.user(role)
        text = units.render(role, user=user, config=configs[role], writable=writable[role])
        path = units.FOLDER / units.unit_name(role)
        is_new = not path.exists() or path.read_text() != text
        if is_new:
            units.install(role, text)
        if role == "coordinator" and not layout.bundle.exists():
            continue
        if is_new or not units.is_running(role):
            units.start(role)
            started.append(role)
    return started


def _enforced(layout: Layout, lost: list[str]) -> list[str]:
    """Let a broker that runs take in what was written; what could not be done."""
    with opened(layout.registrar_toml) as office:
        with disk_errors_of(layout.broker_dir), as_owner_of(layout.broker_dir):
            runs = broker_process(layout.broker_dir) is not None
        return office.enforce(gone=lost) if runs else []


def _listening(layout: Layout, wanted: Wanted) -> str:
    where = wanted.bind or "every address of this machine"
    spare = layout.system and units.debians_broker_is_on()
    other = (
        "\nDebian's own broker is on, and fedtide does not use it. If nobody else does:\n"
        "  sudo systemctl disable --now mosquitto"
    )
    return f"""
This server listens, and nobody gets in without a certificate of this federation:
  port {wanted.port} at {where}: devices, by MQTT over TLS
  port {wanted.local_port} at {LOOPBACK}: its own services, likewise
fedtide opens no other port. Let port {wanted.port} through the firewall.{other * spare}"""


def _to_do(layout: Layout, wanted: Wanted, *, runs: bool) -> str:
    more = "" if layout.system else f" --config {shlex.quote(str(layout.registrar_toml))}"
    sudo = "sudo " if layout.system else ""
    which = "" if layout.system else f" --config {shlex.quote(str(layout.coordinator_toml))}"
    which += more.replace("--config", "--registrar")
    steps = []
    if not layout.bundle.exists():
        again = ["fedtide", "server", "init", *wanted.hosts, "--federation", wanted.federation]
        for flag, value in (
            ("--port", wanted.port if wanted.port != 8883 else None),
            ("--local-port", wanted.local_port if wanted.local_port != 8884 else None),
            ("--bind", wanted.bind),
            ("--root", None if layout.system else layout.root),
        ):
            again += [flag, str(value)] if value is not None else []
        command = f"{sudo}{shlex.join([*again, '--bundle', 'FOLDER'])}"
        steps.append(f"give the coordinator its model (fedtide export):\n     {command}")
    if not runs:
        steps.append(
            "start the services, each for itself:\n"
            f"     mosquitto -c {layout.mosquitto_conf}\n"
            f"     fedtide registrar --config {layout.registrar_toml}\n"
            f"     fedtide coordinator --config {layout.coordinator_toml}"
        )
    steps.append(f"let the first device join:\n     {sudo}fedtide device add NAME{more}")
    steps.append(
        "take a backup, now and every day, and keep it elsewhere and secret: without the\n"
        "     authority in it no device can join or stay, and whoever else has it can be anybody:\n"
        f"     {sudo}fedtide server backup{which} --out FILE"
    )
    lines = [f"  {number}. {step}" for number, step in enumerate(steps, 1)]
    return "\n".join(("\nWhat is left to do:", *lines))


def _host(text: str) -> str:
    """A DNS name or address, as it stands in a certificate.

    Raises:
        ConfigError: it is neither.
    """
    if _is_address(text):
        return str(ipaddress.ip_address(text))
    number = text.rpartition(".")[2].isdecimal()  # RFC 1123, 2.1: then it could but be an address
    if number or len(text) > 253 or not re.fullmatch(rf"{_LABEL}(\.{_LABEL})*", text):
        raise ConfigError(
            f"{text!r} is neither a host name nor an address",
            hint="what devices will call this server, such as fed.example.org or 192.168.1.10; "
            "no scheme, no port",
        )
    return text.lower()


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _port(text: str) -> int:
    if not re.fullmatch(r"\d{1,5}", text) or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: expected 1 to 65535")
    return int(text)
