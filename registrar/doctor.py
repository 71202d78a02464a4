"""`fedtide doctor registrar.toml`: whether devices can join, renew and be shut out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from fedtide.broker_check import CONNECT_S, check_access
from fedtide.checkup import Finding, examine, failed, ok, problem, warning
from fedtide.config import load_config
from fedtide.errors import BrokerError, FedtideError
from fedtide.files import disk_errors_of
from fedtide.host_check import check_clock
from fedtide.identity import CERTIFICATE_NAME, load_identity, read_certificate
from fedtide.inquiry import Inquiry
from fedtide.key_set import open_key_set
from fedtide.keys import public_bytes
from fedtide.messages import KeySet
from fedtide.ownership import as_owner_of
from fedtide.topics import Topics
from registrar.broker_control import broker_process
from registrar.config import RegistrarConfig
from registrar.enforcement import read_list
from registrar.installation import hosts_of
from registrar.office import Office, now_ms, opened
from registrar.records import Device

SOON_MS = 30 * 86_400_000


def check(path: Path, seconds: float) -> Iterator[Finding]:
    """Everything that can be found out within `seconds`."""
    try:
        config = load_config(path, RegistrarConfig)
    except FedtideError as exc:
        yield failed(exc)
        return
    yield ok(f"{str(path)!r} is a registrar's configuration, of {config.federation!r}")
    # One after another: to be somebody else is a matter of the whole process.
    yield from examine([("the registrar", lambda: _checks(path, config))], seconds)


def _checks(path: Path, config: RegistrarConfig) -> Iterator[Finding]:
    with opened(path) as office:
        yield _life("the authority", office.authority.certificate.not_valid_after_utc)
        yield from check_clock(config.state_dir)
        yield from _federation(config, office)
        yield from _devices(office)
        yield from _members(office)
    yield from _broker(config)


def _federation(config: RegistrarConfig, office: Office) -> Iterator[Finding]:
    """A key set is sealed for one federation."""
    raw, authority = load_identity(config.identity).key_set(), public_bytes(office.authority.key)
    if not isinstance(open_key_set(Topics(config.federation), raw, authority), KeySet):
        yield problem(
            f"federation is {config.federation!r}, and the registrar has no key set of it",
            "correct `federation`: it is as `fedtide server init` was told; no device can join",
        )


def _devices(office: Office) -> Iterator[Finding]:
    devices = office.registry.devices()
    counts = {kind: sum(d.standing == kind for d in devices) for kind in ("member", "invited")}
    yield ok(f"{counts['member']} members, {counts['invited']} invited")
    for device in devices:
        if device.standing == "member":
            yield from _certificate(office, device)


def _certificate(office: Office, device: Device) -> Iterator[Finding]:
    """Devices renew by themselves at two thirds: one that comes near the end has not been there."""
    until_ms = max(
        (c.not_after_ms for c in office.registry.certificates(device.name) if not c.revoked_at_ms),
        default=0,
    )
    if until_ms <= now_ms():
        yield problem(
            f"the certificate of {device.name} is over",
            f"it must join anew: fedtide device revoke {device.name}, fedtide device add "
            f"{device.name}",
        )
    elif until_ms <= now_ms() + SOON_MS:
        day = f"{datetime.fromtimestamp(until_ms / 1000, UTC):%Y-%m-%d}"
        yield warning(
            f"the certificate of {device.name} ends on {day}, and it has not renewed it",
            "switch the device on, or see why it does not reach the broker",
        )


def _members(office: Office) -> Iterator[Finding]:
    config = office.config
    try:
        listed = set(json.loads(read_list(config.members) or b"{}").get("devices", {}))
    except (ValueError, TypeError, AttributeError, RecursionError):
        listed = {"(damaged)"}
    members = {d.name for d in office.registry.devices() if d.standing == "member"}
    if listed == members:
        yield ok(f"the coordinator's list of members {str(config.members)!r} is right")
    else:
        names = ", ".join(sorted(listed ^ members))
        yield problem(
            f"the list of members {str(config.members)!r} is not what the registry says: {names}",
            "restart the registrar, which writes it: systemctl restart fedtide-registrar",
        )


def _broker(config: RegistrarConfig) -> Iterator[Finding]:
    with disk_errors_of(config.broker_dir), as_owner_of(config.broker_dir):
        certificate = read_certificate(config.broker_dir / CERTIFICATE_NAME)
        process = broker_process(config.broker_dir)
        hosts = hosts_of(certificate)
        if config.host.lower() not in hosts:
            yield problem(
                f"host is {config.host!r}, which the broker's certificate is not for: no device "
                "that joins would believe it",
                f"correct `host` to one of {', '.join(sorted(hosts))}, or have another certificate "
                "signed: docs/deploy.md",
            )
        yield _life("the broker's certificate", certificate.not_valid_after_utc)
        if process is None:
            yield problem(
                f"no broker runs with the configuration in {str(config.broker_dir)!r}",
                "systemctl start fedtide-broker; journalctl -u fedtide-broker says why it ended",
            )
        access = load_identity(config.identity).broker(config.broker)
        found = list(check_access(access))
        yield from found
        if any(finding.level == "problem" for finding in found):
            return
        try:
            with Inquiry(access, "doctor") as inquiry:
                inquiry.connect(CONNECT_S)
        except BrokerError as exc:
            yield problem(
                str(exc.args[0]), "is the authority another one than the broker's ca.pem?"
            )
        else:
            yield ok("the broker lets the registrar in")


def _life(what: str, until: datetime) -> Finding:
    day = f"{until:%Y-%m-%d}"
    if until <= datetime.now(UTC):
        return problem(
            f"{what} is valid until {day}, which is over", "correct the clock if need be"
        )
    return ok(f"{what} is valid until {day}")
