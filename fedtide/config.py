"""Configuration files: TOML, typed, every unknown key refused by name.

Relative paths in a file are relative to that file.
"""

from __future__ import annotations

import errno
import json
import logging
import re
import ssl
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta, Struct

from fedtide.errors import ConfigError, denied
from fedtide.limits import BLOCK_BYTES, CHUNK_HEADER_BYTES_MAX

T = TypeVar("T")
_IDENTIFIER_RULE = "a name of letters, digits, '.', '_' or '-', at most 64"
_HINT = "docs/configuration.md lists every key and its meaning"
_BYTES_MAX = 1_000_000
_VALUE_CHARS_MAX = 60
"""Of a value that a message quotes."""
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "array": "a list",
    "object": "a table",
}
_BOUNDS = {">=": "at least", "<=": "at most", ">": "above", "<": "below"}
_log = logging.getLogger(__name__)

Positive = Annotated[int, Meta(ge=1, lt=2**53)]
"""No more than every party to a message can hold."""


class BrokerConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """How to reach the broker."""

    host: Annotated[str, Meta(min_length=1)] = "localhost"
    port: Annotated[int, Meta(ge=1, le=65535)] = 1883
    protocol: Literal["auto", "5", "3.1.1"] = "auto"
    username: str | None = None
    password_file: Path | None = None
    """File whose first line is the password; readable by its owner only."""
    ca_file: Path | None = None
    """PEM file of the authority that signed the broker's certificate; turns TLS on."""
    certificate_file: Path | None = None
    """PEM file with our own certificate, for a broker that asks for one; needs `ca_file`."""
    key_file: Path | None = None
    """PEM file with its private key; readable by its owner only."""
    keepalive_s: Annotated[int, Meta(ge=5, le=3600)] = 60
    packet_bytes_max: (
        Annotated[int, Meta(ge=BLOCK_BYTES + CHUNK_HEADER_BYTES_MAX, lt=2**53)] | None
    ) = None
    """Largest packet that the broker takes, where it does not say so itself (MQTT 3.1.1)."""
    reconnect_ms_max: Annotated[int, Meta(ge=500, lt=2**53)] = 60_000
    """Longest pause between two attempts to connect."""
    give_up_ms: Annotated[int, Meta(ge=0, lt=2**53)] = 60_000
    """Stop with exit code 6 if the first connection takes longer; 0: try for ever."""

    def __post_init__(self) -> None:
        """A certificate and its key, over TLS."""
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("give both broker.certificate_file and broker.key_file, or neither")
        if self.certificate_file is not None and self.ca_file is None:
            raise ValueError("broker.certificate_file needs broker.ca_file: without it, no TLS")

    @property
    def refused_hint(self) -> str:
        """What to look at when the broker does not let us in."""
        if self.certificate_file is not None:
            return (
                "is its certificate revoked or over, or is this another federation's broker? "
                "On the server: fedtide device show NAME, journalctl -u fedtide-broker"
            )
        return "check broker.username and broker.password_file, and the broker's accounts"

    def password(self) -> str | None:
        """First line of `password_file`.

        Raises:
            ConfigError: the file cannot be read.
        """
        if self.password_file is None:
            return None
        where = f"broker.password_file {str(self.password_file)!r}"
        try:
            lines = self.password_file.read_text().splitlines()
            if self.password_file.stat().st_mode & 0o077:
                _log.warning("%s can be read by others: chmod 600", where)
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"{where} cannot be read: {exc}") from exc
        if not lines or not lines[0]:
            raise ConfigError(f"{where} is empty", hint="its first line is the password")
        return lines[0]

    def tls(self) -> ssl.SSLContext | None:
        """What trusts `ca_file`, and shows our certificate if we have one; None: no TLS.

        Raises:
            ConfigError: a file cannot be used.
        """
        if self.ca_file is None:
            return None
        context = self._trusting(self.ca_file)
        if self.certificate_file is not None and self.key_file is not None:
            self._showing(context, self.certificate_file, self.key_file)
        return context

    def _trusting(self, ca_file: Path) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=str(ca_file))
        except (OSError, ssl.SSLError) as exc:
            raise ConfigError(
                f"broker.ca_file {str(ca_file)!r} cannot be used: {exc}",
                hint="it must be a PEM file with the certificate of an authority",
            ) from exc

    def _showing(self, context: ssl.SSLContext, certificate: Path, key: Path) -> None:
        def passphrase() -> str:  # else OpenSSL asks for it on the terminal
            raise ValueError("the key has a passphrase")

        try:
            context.load_cert_chain(str(certificate), str(key), passphrase)
        except (OSError, ssl.SSLError, ValueError) as exc:
            raise ConfigError(
                f"broker.certificate_file {str(certificate)!r} with broker.key_file {str(key)!r} "
                f"cannot be used: {exc}",
                hint="they must be PEM files, and the key the certificate's own",
            ) from exc


def load_config(path: Path, kind: type[T], *, hint: str = _HINT) -> T:
    """Read `path` as a `kind`; `hint` says where its keys are explained.

    Raises:
        ConfigError: no such file, not TOML, an unknown or missing key, a wrong value; the message
            names the key.
    """
    try:
        raw = tomllib.loads(_read(path))
    except PermissionError as exc:
        raise denied(exc) from exc
    except OSError as exc:
        raise ConfigError(
            f"cannot read {str(path)!r}: {exc.strerror}",
            hint=hint
            if path.is_absolute()
            else f"a relative path begins in the current folder; {hint}",
        ) from exc
    except (ValueError, RecursionError) as exc:  # TOMLDecodeError is not all it raises
        raise ConfigError(f"{str(path)!r} is not TOML: {exc}", hint=hint) from exc
    return convert_config(raw, kind, repr(str(path)), folder=path.parent, hint=hint)


def _read(path: Path) -> str:
    """A device or a pipe may never end, and what is no configuration may be of any size."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(None, "it is no regular file")
    with path.open("rb") as file:
        raw = file.read(_BYTES_MAX + 1)
    if len(raw) > _BYTES_MAX:
        raise OSError(None, f"it is longer than {_BYTES_MAX:,} bytes")
    return raw.decode()


def convert_config(
    raw: dict[str, Any], kind: type[T], where: str, *, folder: Path = Path(), hint: str = _HINT
) -> T:
    """`raw` as a `kind`; relative paths are relative to `folder`, `where` begins the message.

    Raises:
        ConfigError: an unknown or missing key, a wrong value; the message names the key.
    """

    def decode(wanted: type, value: Any) -> Any:
        if wanted is Path and isinstance(value, str):
            return given_path(value, folder)
        raise ValueError("Expected a path")

    try:
        return msgspec.convert(raw, kind, dec_hook=decode)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"{where}: {explained(str(exc), raw, kind)}", hint=hint) from exc


def given_path(text: str, folder: Path) -> Path:
    """The absolute path that `text` means in a file in `folder`; `~` is somebody's home.

    Raises:
        ValueError: no path could be that.
    """
    if not text:
        raise ValueError("Expected a path")
    try:
        path = (folder / Path(text).expanduser()).resolve()
        path.lstat()
    except OSError as exc:
        if exc.errno == errno.ENAMETOOLONG:
            raise ValueError(f"Expected a path: {exc.strerror}") from exc
    except (RuntimeError, ValueError) as exc:  # nobody's home, links in a circle, a zero byte
        raise ValueError(f"Expected a path: {exc}") from exc
    return path


def toml_string(value: str | Path) -> str:
    """A basic string of TOML, which writes what has to be escaped as JSON does."""
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def explained(text: str, raw: Any, kind: Any) -> str:
    """What msgspec says is wrong, after the key and its value; of some words, all of them.

    Tables of an array are counted from 1: `fleet.group 2: share is 3: expected ...`.
    """
    text, _, place = text.partition(" - at `$")
    text = re.sub(r"`?str`? matching regex .*", _IDENTIFIER_RULE, text)
    told, text = text, _in_words(text)
    name, value, wanted = place.strip(".`"), raw, kind
    keys = re.findall(r"[^.[\]]+", name)
    name = re.sub(r"\[(\d+)\](\.?)", _counted, name)
    for key in keys:
        if isinstance(value, list):
            value = value[int(key)]
        elif key in value:
            value, wanted = value[key], _keys(wanted).get(key)
        else:  # in a table with names of the user's own, which msgspec does not tell
            return f"{name}: {text}"
    choices = _choices(wanted)
    if choices and told.startswith(
        ("Invalid enum value", "Expected `str`, ", "Expected `int | str`")
    ):
        text = f"expected {' or '.join(choices)}"
    if isinstance(value, dict) and (known := _keys(wanted)):
        text = re.sub(r"^Object contains unknown field `(.*)`$", _unknown(known), text)
        return f"{name}: {text}" if name else text
    if "password" in name:
        return f"{name} is wrong: {text[0].lower()}{text[1:]}"
    return f"{name} is {shortened(value)}: {text[0].lower()}{text[1:]}"


def shortened(value: Any) -> str:
    """A value for a message."""
    shown = repr(value)
    return shown if len(shown) <= _VALUE_CHARS_MAX else shown[:_VALUE_CHARS_MAX] + "…"


def _counted(place: re.Match[str]) -> str:
    number, goes_on = place.groups()
    return f" {int(number) + 1}" + (": " if goes_on else "")


def _in_words(text: str) -> str:
    """A programmer's words in a person's."""
    text = re.sub(
        r"^Object missing required field `(.*?)`", r"the required key `\1` is missing", text
    )
    text = re.sub(r"^Expected `(\w+)` ([<>]=?) (\S+)$", _bound, text)
    text = re.sub(r"(?<= of length )[<>]=", lambda told: _BOUNDS[told[0]], text)
    return re.sub(r"^Expected `(\w+(?: \| \w+)*)`(, got `.*`$)?", _kinds, text)


def _kinds(expected: re.Match[str]) -> str:
    kinds = expected.group(1).split(" | ")
    kept = [k for k in kinds if k != "null" and not (k == "int" and "float" in kinds)]
    return f"Expected {' or '.join(_KINDS.get(kind, kind) for kind in kept)}"


def _bound(expected: re.Match[str]) -> str:
    kind, relation, bound = expected.groups()
    return f"Expected {_KINDS.get(kind, kind)}, {_BOUNDS[relation]} {bound.removesuffix('.0')}"


def _unknown(known: dict[str, Any]) -> Callable[[re.Match[str]], str]:
    def told(unknown: re.Match[str]) -> str:
        from difflib import get_close_matches

        name = unknown.group(1)
        near = get_close_matches(name, known, n=1)
        expected = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        return f"unknown key {name!r}; {expected}"

    return told


def _keys(wanted: Any) -> dict[str, Any]:
    """Types by key, if a table is or may be wanted, alone or in an array."""
    if isinstance(wanted, type) and issubclass(wanted, Struct):
        return {field.encode_name: field.type for field in msgspec.structs.fields(wanted)}
    return {key: kind for part in get_args(wanted) for key, kind in _keys(part).items()}


def _choices(wanted: Any) -> list[str]:
    """The words that a type allows; any text or number is one of them where it may be one."""
    if get_origin(wanted) is Literal:
        return [repr(choice) for choice in get_args(wanted)]
    if wanted in (int, float, str):
        return ["text" if wanted is str else "a number"]
    return [choice for part in get_args(wanted) for choice in _choices(part)]
