"""A server's files, made one after another. What is there is left alone, whoever has edited it:
repeated, nothing changes, and what was cut short goes on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtide.bundle import open_bundle_dir
from fedtide.errors import ConfigError
from fedtide.files import (
    disk_errors_of,
    locked,
    make_folder,
    read_regular,
    sync_folder,
    write_atomically,
    write_public,
)
from fedtide.identity import (
    CA_NAME,
    CERTIFICATE_NAME,
    KEY_NAME,
    KEY_SET_NAME,
    read_certificate,
    write_identity,
)
from fedtide.key_set import open_key_set, seal_key_set
from fedtide.keys import load_key, new_key, public_bytes, save_key
from fedtide.manifest import MANIFEST_NAME
from fedtide.messages import KeySet
from fedtide.ownership import as_owner_of
from fedtide.topics import Topics
from registrar.authority import Authority
from registrar.broker_files import LOOPBACK, BrokerSettings, broker_configuration
from registrar.enforcement import ACL_NAME, read_list, write_access, write_members
from registrar.layout import Layout, Role
from registrar.office import now_ms
from registrar.registry import Registry
from registrar.server_files import coordinator_toml, registrar_toml


class Wanted(NamedTuple):
    """What the operator asks for."""

    federation: str
    hosts: Sequence[str]
    """Names and addresses at which devices reach the broker; join codes carry the first."""
    port: int
    local_port: int
    bind: str | None
    bundle: Path | None


class Installation:
    """See the module. `made` is what was not there before, `lost` who has no rights any more."""

    def __init__(self, layout: Layout, wanted: Wanted) -> None:
        self._layout = layout
        self._wanted = wanted
        self.made: list[Path] = []
        self.lost: list[str] = []

    def make(self) -> None:
        """Everything.

        Raises:
            ConfigError: what is there does not fit what is wanted, or is damaged.
            StateError: the disk refuses, or another is at it.
        """
        # Where the root lies in somebody's own folder, all of it is theirs.
        with as_owner_of(self._layout.root), self._alone():
            self._make()

    def _make(self) -> None:
        layout = self._layout
        self.make_folders()
        with as_owner_of(layout.home("registrar")):
            authority = self._authority()
            registry = Registry(layout.home("registrar"))
        try:
            key_set = self._coordinator(authority, registry)
            self._identity("registrar", authority, registry, key_set)
            self._identity("observer", authority, registry, key_set)
            self._broker(authority)
            self._texts()
            with as_owner_of(layout.home("registrar")):
                write_members(registry, layout.members)
                with as_owner_of(layout.broker_dir):
                    self._access(authority, registry)
        finally:
            with as_owner_of(layout.home("registrar")):
                registry.close()
        if self._wanted.bundle is not None:
            self._bundle(self._wanted.bundle)

    def make_folders(self) -> None:
        """Each with its owner, and empty.

        Raises:
            StateError: the disk refuses.
        """
        layout = self._layout
        with as_owner_of(layout.root):
            self._folder(layout.etc, 0o755)
            self._folder(layout.var, 0o755)
            self._folder(layout.broker_dir, 0o750, group="broker")
            for role in ("broker", "coordinator", "registrar"):
                self._folder(layout.home(role), 0o700, owner=role, group=role)
            self._folder(layout.members.parent, 0o755, owner="registrar", group="registrar")
            self._folder(layout.identity("observer").parent, 0o700)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Of two at once, one is told of the other."""
        run = self._layout.root / "run"
        with disk_errors_of(run):
            run.mkdir(parents=True, exist_ok=True)  # everybody may look into it
        with locked(run / "fedtide-server-init", "`fedtide server init`, which is at work"):
            yield

    def _folder(
        self, path: Path, mode: int, *, owner: Role | None = None, group: Role | None = None
    ) -> None:
        if path.is_dir():
            return
        with disk_errors_of(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_name(f".{path.name}.new")  # it gets its name with its owner
            if beside.exists():
                beside.rmdir()
            beside.mkdir(mode=0o700)
            if self._layout.system:
                user = self._layout.user(owner) if owner else "root"
                shutil.chown(beside, user, self._layout.user(group) if group else "root")
            beside.chmod(mode)
            beside.rename(path)
            sync_folder(path.parent)
        self.made.append(path)

    def _authority(self) -> Authority:
        folder = self._layout.home("registrar") / "authority"
        if Authority.exists(folder):
            return Authority.open(folder)
        self.made.append(folder)
        return Authority.make(folder, self._wanted.federation, datetime.now(UTC))

    def _coordinator(self, authority: Authority, registry: Registry) -> bytes:
        """The coordinator's identity; the sealed key set that names its key."""
        folder = self._layout.identity("coordinator")
        known = _read(folder.parent, folder / KEY_SET_NAME)
        if known and _read(folder.parent, folder / CERTIFICATE_NAME):
            return known
        topics, key = Topics(self._wanted.federation), new_key()
        # Devices that knew an earlier one believe a higher version only.
        registrar = self._layout.home("registrar")
        earlier = known or _read(registrar, self._layout.identity("registrar") / KEY_SET_NAME)
        before = open_key_set(topics, earlier, public_bytes(authority.key))
        version = before.version + 1 if isinstance(before, KeySet) else 1
        key_set = seal_key_set(topics, KeySet(version, (public_bytes(key),)), authority.key)
        self._identity("coordinator", authority, registry, key_set, key)
        return key_set

    def _identity(
        self,
        role: Role | Literal["observer"],
        authority: Authority,
        registry: Registry,
        key_set: bytes,
        key: Ed25519PrivateKey | None = None,
    ) -> None:
        folder = self._layout.identity(role)
        if _read(folder.parent, folder / CERTIFICATE_NAME):
            return
        key = key or new_key()
        certificate = authority.sign_role(role, key.public_key())
        with as_owner_of(self._layout.home("registrar")):
            registry.revoke_others(registry.add_role(certificate, now_ms()), now_ms())
        with as_owner_of(folder.parent):
            write_identity(folder, key, certificate, authority.certificate_pem, key_set)
        self.made.append(folder)

    def _broker(self, authority: Authority) -> None:
        """The broker's certificate, key and configuration."""
        folder, wanted = self._layout.broker_dir, self._wanted
        hosts = list(dict.fromkeys((*wanted.hosts, LOOPBACK, "localhost")))
        path = folder / CERTIFICATE_NAME
        if path.exists():
            missing = sorted(set(wanted.hosts) - hosts_of(read_certificate(path)))
            if missing:
                raise ConfigError(
                    f"the broker's certificate {str(path)!r} is not for {', '.join(missing)}",
                    hint=f"to have one signed for other names: rm {path}, and repeat this with all "
                    "names; then restart the broker",
                )
        else:
            key_path = folder / KEY_NAME
            if not key_path.exists():
                save_key(key_path, new_key())
                if self._layout.system:  # it is closed to all others before and after
                    user = self._layout.user("broker")
                    shutil.chown(key_path, user, user)
            key = load_key(key_path).public_key()
            write_public(folder / CA_NAME, authority.certificate_pem)
            write_public(path, authority.sign_server("broker", key, hosts))
            self.made.append(path)
        settings = BrokerSettings(
            folder,
            self._layout.home("broker"),
            self._layout.user("broker"),
            wanted.port,
            wanted.local_port,
            wanted.bind,
        )
        self._text(self._layout.mosquitto_conf, broker_configuration(settings))

    def _access(self, authority: Authority, registry: Registry) -> None:
        """An older fedtide may have written it by other rules."""
        folder = self._layout.broker_dir
        before = read_list(folder / ACL_NAME)
        federation = self._wanted.federation
        self.lost = write_access(registry, authority, folder, federation, now_ms())
        if read_list(folder / ACL_NAME) != before:
            self.made.append(folder / ACL_NAME)

    def _texts(self) -> None:
        layout, wanted = self._layout, self._wanted
        self._text(
            layout.coordinator_toml,
            coordinator_toml(layout, wanted.federation, wanted.local_port),
        )
        self._text(
            layout.registrar_toml,
            registrar_toml(
                layout, wanted.federation, wanted.hosts[0], wanted.port, wanted.local_port
            ),
        )

    def _text(self, path: Path, text: str) -> None:
        if not path.exists():
            write_public(path, text.encode())
            self.made.append(path)

    def _bundle(self, given: Path) -> None:
        """A copy that the coordinator can read, whole or not at all."""
        bundle = open_bundle_dir(given)
        there = self._layout.bundle
        with as_owner_of(there.parent):
            if there.exists():
                digest = open_bundle_dir(there).digest
                if digest != bundle.digest:
                    raise ConfigError(
                        f"the coordinator has another bundle, {digest[:12]}, than {str(given)!r}, "
                        f"{bundle.digest[:12]}: a federation trains one model",
                        hint="for a new model: a federation of its own",
                    )
                return
        # Root reads what the coordinator's user may not, and that one writes.
        files = {name: bundle.read(name) for name in bundle.manifest.files}
        files[MANIFEST_NAME] = (given / MANIFEST_NAME).read_bytes()
        beside = there.with_name(f".{there.name}.new")
        with as_owner_of(there.parent), disk_errors_of(there.parent):
            if beside.exists():
                shutil.rmtree(beside)
            for name, content in files.items():
                make_folder((beside / name).parent)
                write_atomically(beside / name, content)
            beside.rename(there)
            sync_folder(there.parent)
        self.made.append(there)


def hosts_of(certificate: x509.Certificate) -> set[str]:
    """The names and addresses that a TLS server's certificate is for."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {
        *names.get_values_for_type(x509.DNSName),
        *map(str, names.get_values_for_type(x509.IPAddress)),
    }


def _read(owned: Path, path: Path) -> bytes:
    """The file's content, read as the owner of `owned`; empty: there is no such file."""
    with as_owner_of(owned), disk_errors_of(path):
        return read_regular(path) if path.exists() else b""
