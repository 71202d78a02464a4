"""`fedtide device add|list|show|revoke|rename`, on the server: who may take part."""

from __future__ import annotations

import argparse
import re
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fedtide.errors import ConfigError
from fedtide.files import require_place, write_secret
from fedtide.join_code import JoinCode, write_join_code
from fedtide.keys import new_key, public_bytes
from fedtide.ownership import as_owner_of
from fedtide.topics import CLAIM_PREFIX
from registrar.enforcement import names_of
from registrar.office import Office, now_ms, opened
from registrar.records import Claim, Device, check_name

DEFAULT_CONFIG = Path("/etc/fedtide/registrar.toml")
EXPIRES_MIN, EXPIRES_MAX = timedelta(minutes=1), timedelta(days=30)
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def add_actions(actions: Any) -> None:
    """Declare the actions of `fedtide device` that belong to the server."""
    adding = actions.add_parser("add", help="server: let one new device join, once")
    adding.add_argument("name", metavar="NAME", help="what the device will be called")
    adding.add_argument(
        "--expires",
        type=_duration,
        default=timedelta(hours=1),
        metavar="TIME",
        help="how long the join code is good for: 30m, 1h, 7d; 1m to 30d (default: 1h)",
    )
    adding.add_argument(
        "--out", type=Path, metavar="FILE", help="write the join code to FILE, for its owner only"
    )
    listing = actions.add_parser("list", help="server: every device and its standing")
    showing = actions.add_parser("show", help="server: one device, its key and certificates")
    revoking = actions.add_parser(
        "revoke", help="server: shut a device out, at once, on open connections too"
    )
    renaming = actions.add_parser(
        "rename", help="server: give a device another name, with its next certificate"
    )
    showing.add_argument("name", metavar="NAME")
    revoking.add_argument("name", metavar="NAME")
    renaming.add_argument("name", metavar="OLD")
    renaming.add_argument("new_name", metavar="NEW")
    for action, perform in (
        (adding, _add),
        (listing, _list),
        (showing, _show),
        (revoking, _revoke),
        (renaming, _rename),
    ):
        action.add_argument(
            "--config",
            type=Path,
            default=DEFAULT_CONFIG,
            metavar="FILE",
            help=f"registrar.toml (default: {DEFAULT_CONFIG})",
        )
        action.add_argument("--json", action="store_true", help="print one JSON object")
        action.set_defaults(perform=perform)


def _add(parsed: argparse.Namespace) -> int:
    check_name(parsed.name)
    out: Path | None = parsed.out
    if out is not None and out.exists():
        raise ConfigError(f"--out {str(out)!r} is there already", hint="remove it, or name another")
    if out is not None:
        require_place(out)
    with opened(parsed.config) as office:
        claim_id = f"{CLAIM_PREFIX}{secrets.token_hex(4)}"
        key, now = new_key(), datetime.now(UTC)
        expires = now + parsed.expires
        pem = office.authority.sign_claim(claim_id, key.public_key(), now, expires)
        expires_at_ms = round(expires.timestamp() * 1000)
        claim = Claim(claim_id, parsed.name, public_bytes(key), expires_at_ms, None)
        # Also of a name that is new: who had it before may still be connected by it.
        earlier = names_of(office.registry, parsed.name)
        office.registry.invite(claim, pem, now_ms())
        undone = office.enforce(gone=earlier)
        config = office.config
        code = write_join_code(
            JoinCode(
                config.federation,
                config.host,
                config.port,
                office.authority.certificate.public_bytes(Encoding.DER),
                x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER),
                key.private_bytes_raw(),
            )
        )
    if out is not None:
        with as_owner_of(out.absolute().parent):
            write_secret(out, f"{code}\n".encode())
    if parsed.json:
        told = {"device": claim.device, "claim": claim_id, "expires_at_ms": expires_at_ms}
        _print_json(told | ({"code": code} if out is None else {"file": str(out)}), undone)
        return 0
    given = code if out is None else out.name
    where = "" if out is None else f", in a copy of {str(out)!r} there"
    print(f"{claim.device} may join until {_date(expires_at_ms)}, once. On the device{where}:\n")
    print(f"  sudo fedtide device join {given}\n")
    print("Whoever has the code first can join in the device's name: hand it over privately.")
    _print_undone(undone)
    return 0


def _list(parsed: argparse.Namespace) -> int:
    with opened(parsed.config) as office:
        devices = [_told(office, device) for device in office.registry.devices()]
    if parsed.json:
        _print_json({"devices": devices})
        return 0
    if not devices:
        print("no devices yet; the first one: fedtide device add NAME")
        return 0
    rows = [("NAME", "STANDING", "SINCE", "CERTIFICATE UNTIL", "NOTE")]
    for device in devices:
        until = _date(device["certificate_until_ms"])
        since = _date(device["changed_at_ms"])
        rows.append((device["name"], device["standing"], since, until, _note(device)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    return 0


def _show(parsed: argparse.Namespace) -> int:
    with opened(parsed.config) as office:
        device = office.registry.known(parsed.name)
        told = _told(office, device)
        certificates: list[dict[str, Any]] = [
            {
                "name": c.name,
                "serial": f"{c.serial:x}",
                "issued_at_ms": c.issued_at_ms,
                "until_ms": c.not_after_ms,
                "revoked_at_ms": c.revoked_at_ms,
            }
            for c in office.registry.certificates(device.name)
        ]
    if parsed.json:
        _print_json(told | {"certificates": certificates})
        return 0
    print(f"{device.name}: {device.standing} since {_date(device.changed_at_ms)}")
    for line in filter(None, (_note(told), f"key {told['key']}" if told["key"] else "")):
        print(f"  {line}")
    for certificate in certificates:
        print(f"  {_certificate_told(certificate)}")
    return 0


def _revoke(parsed: argparse.Namespace) -> int:
    with opened(parsed.config) as office:
        before = office.registry.revoke(parsed.name, now_ms())
        undone = office.enforce(gone=names_of(office.registry, parsed.name))
    again = before.standing == "revoked"
    if parsed.json:
        _print_json(
            {"device": parsed.name, "standing": "revoked", "before": before.standing}, undone
        )
    else:
        print(f"{parsed.name} {'was revoked already; done again' if again else 'is revoked'}")
        _print_undone(undone)
    return 0


def _rename(parsed: argparse.Namespace) -> int:
    with opened(parsed.config) as office:
        before = office.registry.rename(parsed.name, parsed.new_name, now_ms())
        stays = parsed.new_name == parsed.name
        # Who had the name before may still be connected by it.
        undone = office.enforce(gone=[] if stays else [parsed.new_name])
    waits = before.standing == "member" and not stays
    if parsed.json:
        told = {"device": parsed.name, "new_name": parsed.new_name, "pending": waits}
        _print_json(told, undone)
        return 0
    if waits:
        print(f"{parsed.name} will be {parsed.new_name} once it has fetched its new certificate")
    elif stays:
        print(f"{parsed.name} keeps its name")
    else:
        print(f"{parsed.name} is {parsed.new_name}")
    _print_undone(undone)
    return 0


def _told(office: Office, device: Device) -> dict[str, Any]:
    """A device as the commands tell it."""
    now = now_ms()
    valid = [
        c.not_after_ms
        for c in office.registry.certificates(device.name)
        if c.revoked_at_ms is None and not c.name.startswith(CLAIM_PREFIX)
    ]
    claims = [c for c in office.registry.claims(device.name) if c.used_at_ms is None]
    invited = device.standing == "invited" and bool(claims)
    return {
        "name": device.name,
        "standing": device.standing,
        "changed_at_ms": device.changed_at_ms,
        "key": device.key.hex() if device.key else None,
        "new_name": device.new_name,
        "certificate_until_ms": max(valid, default=None),
        "certificate_is_over": bool(valid) and max(valid) <= now,
        "may_join_until_ms": claims[-1].expires_at_ms if invited else None,
        "join_code_is_over": invited and claims[-1].expires_at_ms <= now,
    }


def _certificate_told(certificate: dict[str, Any]) -> str:
    """A device's, or that of a join code on it, whose serial number nobody ever asks for."""
    name, revoked_at_ms = certificate["name"], certificate["revoked_at_ms"]
    of_claim = name.startswith(CLAIM_PREFIX)
    what = f"join code {name}" if of_claim else f"certificate of {name}"
    until = f"from {_date(certificate['issued_at_ms'])} until {_date(certificate['until_ms'])}"
    revoked = f", revoked {_date(revoked_at_ms)}" if revoked_at_ms else ""
    return f"{what}, {until}{revoked}" + ("" if of_claim else f"; serial {certificate['serial']}")


def _note(device: dict[str, Any]) -> str:
    name = device["name"]
    if device["standing"] == "revoked":
        return f"to take it in again: fedtide device add {name}"
    if device["join_code_is_over"]:
        return f"its join code has expired; a new one: fedtide device add {name}"
    if device["may_join_until_ms"] is not None:
        return f"may join until {_date(device['may_join_until_ms'])}"
    if device["certificate_is_over"]:
        return f"its certificate is over; to join anew: fedtide device revoke {name}, then add"
    if device["new_name"]:
        return f"will be {device['new_name']}"
    return ""


def _duration(text: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,6})([mhd])", text)
    length = timedelta(**{_UNITS[match[2]]: int(match[1])}) if match else timedelta()
    if not EXPIRES_MIN <= length <= EXPIRES_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is no time from 1m to 30d, such as 30m, 1h, 7d")
    return length


def _date(at_ms: int | None) -> str:
    if at_ms is None:
        return "-"
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"


def _print_json(told: dict[str, Any], undone: list[str] | None = None) -> None:
    more = {} if undone is None else {"undone": undone}
    print(msgspec.json.encode(told | more).decode())


def _print_undone(undone: list[str]) -> None:
    for what in undone:
        print(f"BUT {what}")
