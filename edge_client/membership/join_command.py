"""`fedtide device join CODE`: from a join code to a client that runs.

    key and certificate -> configuration -> self-test -> service

Each step leaves something whole behind, or nothing that the next attempt would stumble over: cut
short anywhere, the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime

from cryptography.hazmat.primitives.serialization import Encoding

from edge_client.membership.configuration import require_ours, write_configuration
from edge_client.membership.former_name import hand_over
from edge_client.membership.joining import enrol
from edge_client.membership.layout import Layout, layout_of
from edge_client.membership.remains import require_free
from edge_client.membership.self_test import self_test
from edge_client.membership.service import make_service_user, start_service, unit_of
from fedtide.errors import ConfigError, DataError
from fedtide.failpoints import reach
from fedtide.files import (
    disk_errors_of,
    locked,
    make_folder,
    read_regular,
    remove_tree,
    write_atomically,
)
from fedtide.identity import CA_NAME, CERTIFICATE_NAME, Identity, load_identity, read_certificate
from fedtide.join_code import PREFIX, JoinCode, clock_trouble, read_join_code
from fedtide.logs import escaped
from fedtide.ownership import as_owner_of

_JOINED_BY = "joined_by"
"""File in the identity's folder: the claim that was used."""


def join(parsed: argparse.Namespace) -> int:
    """Join, or go on with it; the exit code.

    Raises:
        ConfigError: the code is unusable or refused, or this machine is another device already.
        BrokerError: nobody answered within the time.
        DataError: there are no such data.
        StateError: the disk is full or failing.
        FedtideError: the service does not start.
    """
    if len(parsed.code) > 1 and not parsed.code[0].startswith(PREFIX):
        raise ConfigError(
            f"a device joins by one join code, and these are {len(parsed.code)} arguments",
            hint="give one join file",
        )
    code = read_join_code("".join(parsed.code))
    data = None if parsed.data is None else parsed.data.expanduser().absolute()
    if data is not None and not data.exists():
        raise DataError(f"there are no data at {str(data)!r}", hint="correct --data")
    layout = layout_of(parsed)
    require_ours(layout)
    require_free(layout)
    if layout.user is not None:
        make_service_user(layout)
    else:
        make_folder(layout.home)
    with _as_owner(layout), locked(layout.home, "join"):
        identity = _member(layout, code, parsed.wait)
        hand_over(identity, layout.state)
    _tell(f"this machine is device {identity.name!r} of federation {code.federation!r}")
    has_data = write_configuration(layout, code, data)
    reach("join: configuration written")
    _tell(f"its configuration: {str(layout.config)!r}")
    if not has_data:
        _tell("it has no data yet, so the client does not start; name them, then once more:")
        _tell(f"    fedtide device join {_again(parsed)} --data PATH")
        return 0
    if layout.user is None:
        problems = self_test(layout, _tell)
        reach("join: tested")
        first = "Correct what is a PROBLEM above; then, to" if problems else "To"
        _tell(f"joined; nothing was started. {first} run the client:")
        _tell(f"    fedtide client --config {layout.config}")
        return 0
    unit = unit_of(layout, data)
    self_test(layout, _tell, unit)
    reach("join: tested")
    start_service(unit)
    _tell("joined; the client runs, now and after each start of this machine")
    _tell("    systemctl status fedtide-client; journalctl -fu fedtide-client")
    return 0


def _member(layout: Layout, code: JoinCode, wait_s: int) -> Identity:
    identity = _existing(layout, code)
    if identity is not None:
        remove_tree(layout.joining)
        return identity
    trouble = clock_trouble(code)
    if trouble is not None:
        _tell(f"{trouble}; the server will judge the join code")
    _tell(f"joining federation {code.federation!r} at {code.host}:{code.port}")
    enrol(code, layout.joining, layout.identity, wait_s, _tell)
    write_atomically(layout.identity / _JOINED_BY, code.claim.encode())
    return load_identity(layout.identity)


def _existing(layout: Layout, code: JoinCode) -> Identity | None:
    """What an earlier attempt, or an earlier life, has left; None: nothing that can be used.

    Nothing is removed here: one that is over stays until there is another.

    Raises:
        ConfigError: it has nothing to do with this join code, or is over and was made with it.
    """
    folder = layout.identity
    if not (folder / CERTIFICATE_NAME).exists():
        return None
    identity = load_identity(folder)
    leave = "to become another device: fedtide device leave, then join again"
    ca = read_certificate(folder / CA_NAME)
    if ca.public_bytes(Encoding.DER) != code.ca:
        raise ConfigError(
            f"this machine is device {identity.name!r} of another server's federation already",
            hint=leave,
        )
    over_at, claim = identity.over_at, folder / _JOINED_BY
    over = over_at <= datetime.now(UTC)
    with disk_errors_of(folder):
        used = read_regular(claim).decode(errors="replace") if claim.exists() else None
    if over and used == code.claim:
        # Asked with a new key, the server would have to think that the code was stolen.
        raise ConfigError(
            f"this machine is device {identity.name!r} by this join code, and its certificate was "
            f"valid until {over_at:%Y-%m-%d %H:%M} UTC",
            hint="check this machine's clock; if it is right, join by a new code. On the server: "
            f"fedtide device revoke {identity.name}, then add it again",
        )
    if over:
        _tell(f"the certificate of {identity.name!r} is over; joining anew")
        return None
    if used not in (None, code.claim):
        raise ConfigError(
            f"this machine is device {identity.name!r} already, by another join code; this one "
            "was not used",
            hint=leave,
        )
    return identity


def _as_owner(layout: Layout) -> AbstractContextManager[None]:
    return as_owner_of(layout.home) if layout.user is not None else nullcontext()


def _again(parsed: argparse.Namespace) -> str:
    """The same command's words, without the code itself, which is a secret."""
    place = "" if parsed.folder is None else f" --folder {parsed.folder}"
    return ("CODE" if len(parsed.code[0]) > 60 else parsed.code[0]) + place


def _tell(text: str) -> None:
    print(escaped(text), file=sys.stderr, flush=True)
