"""The `client.toml` of a device that has joined: ready to run, and ready to be changed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_client.membership.layout import Layout
from fedtide.config import load_config, toml_string
from fedtide.errors import ConfigError
from fedtide.files import make_folder, write_public
from fedtide.join_code import JoinCode

_TEMPLATE = """\
# Written by `fedtide device join`. Yours to change; every key: docs/configuration.md
# After a change: {after}
federation = {federation}
identity = {identity}      # key and certificate: who this device is
state_dir = {state_dir}

[broker]
host = {host}
port = {port}
give_up_ms = 0             # the server may be away for as long as it likes
# keepalive_s = 60         # longer where each byte of the link is paid for
{data}
# [training]
# threads = 1
# cpu_share = 1.0          # 0.5 rests as long as it works
"""
_DATA = """
[data]
path = {path}              # never leaves this device
held_out_fraction = 0.2    # this part judges each global model, and is not trained on; 0: none
"""
_NO_DATA = """
# [data]                   # the client does not run without
# path = "/srv/my-data.npz"
# held_out_fraction = 0.2  # kept apart, to judge the global model
"""


def write_configuration(layout: Layout, code: JoinCode, data: Path | None) -> bool:
    """Write it, unless there is one for this identity already, which is kept as it is but for
    data that it lacks; whether it names data.

    Raises:
        ConfigError: there is one of something else.
        StateError: the disk is full or failing.
    """
    if layout.config.exists():
        return _complete(layout, data)
    text = _TEMPLATE.format(
        after="systemctl restart fedtide-client" if layout.user else "start the client again",
        federation=toml_string(code.federation),
        identity=toml_string(layout.in_config(layout.identity)),
        state_dir=toml_string(layout.in_config(layout.state)),
        host=toml_string(code.host),
        port=code.port,
        data=_data(layout, data),
    )
    if layout.user is None:
        make_folder(layout.config.parent)
    write_public(layout.config, text.encode())
    return data is not None


def _complete(layout: Layout, data: Path | None) -> bool:
    found: dict[str, Any] = load_config(layout.config, dict)
    if "data" in found:
        path = found["data"].get("path") if isinstance(found["data"], dict) else None
        if data is not None and layout.in_config(data) != path:
            raise ConfigError(
                f"{str(layout.config)!r} names other data already: {path!r}",
                hint="correct [data] in that file, or leave out --data",
            )
        return True
    if data is None:
        return False
    text = layout.config.read_text(encoding="utf-8")
    if _NO_DATA not in text:
        raise ConfigError(
            f"{str(layout.config)!r} has no [data] and was changed by hand",
            hint=f"add to it: [data] and path = {toml_string(str(data))}",
        )
    write_public(layout.config, text.replace(_NO_DATA, _data(layout, data)).encode())
    return True


def require_ours(layout: Layout) -> None:
    """Make sure that no configuration of something else is in the place of ours.

    Raises:
        ConfigError: there is one.
    """
    if not layout.config.exists():
        return
    found: dict[str, Any] = load_config(layout.config, dict)
    if found.get("identity") != layout.in_config(layout.identity):
        raise ConfigError(
            f"there is a configuration at {str(layout.config)!r} already, of a client with another "
            "identity or with none",
            hint="move it away, or join in a place of its own: --folder DIR",
        )


def _data(layout: Layout, data: Path | None) -> str:
    return _NO_DATA if data is None else _DATA.format(path=toml_string(layout.in_config(data)))
