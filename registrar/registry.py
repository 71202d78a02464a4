"""The registry: who may take part, in an SQLite file. The truth that everything else follows from.

A device is *invited* when it is named, a *member* once it has used a claim, and *revoked* for good
until it is invited anew. A claim is a one-time permission to become one device. Certificates are
kept for good: one that is over by a clock that was ahead is not.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from cryptography import x509

from fedtide.topics import CLAIM_PREFIX, is_identifier
from registrar.database import Database
from registrar.records import (
    Certificate,
    Claim,
    Device,
    RefusedError,
    check_name,
    common_name,
)


class Registry(Database):
    """See the module. Every change is one transaction; times are in ms since 1970."""

    # --- What is known ----------------------------------------------------------------------------

    def devices(self) -> list[Device]:
        """All devices, by name."""
        return [Device(*row) for row in self._rows(f"{_DEVICE} ORDER BY name")]

    def device(self, name: str) -> Device | None:
        """The device of this name, which anybody may have typed."""
        if not is_identifier(name):
            return None
        rows = self._rows(f"{_DEVICE} WHERE name = ?", name)
        return Device(*rows[0]) if rows else None

    def device_of_key(self, key: bytes) -> Device | None:
        """The device with this public key, uint8[32]."""
        rows = self._rows(f"{_DEVICE} WHERE key = ?", key)
        return Device(*rows[0]) if rows else None

    def claim(self, claim_id: str) -> Claim | None:
        """The claim of this id, live or not."""
        rows = self._rows(f"{_CLAIM} WHERE claim_id = ?", claim_id)
        return Claim(*rows[0]) if rows else None

    def claims(self, device: str | None = None) -> list[Claim]:
        """The claims on a device, or all, oldest first."""
        if device is None:
            return [Claim(*row) for row in self._rows(f"{_CLAIM} ORDER BY rowid")]
        rows = self._rows(f"{_CLAIM} WHERE device = ? ORDER BY rowid", device)
        return [Claim(*row) for row in rows]

    def certificates(self, device: str | None = None) -> list[Certificate]:
        """The certificates of a device and of claims on it, or all, oldest first."""
        if device is None:
            return [_certificate(row) for row in self._rows(f"{_CERTIFICATE} ORDER BY rowid")]
        rows = self._rows(f"{_CERTIFICATE} WHERE device = ? ORDER BY rowid", device)
        return [_certificate(row) for row in rows]

    def refusal_of_claim(self, claim: Claim, key: bytes, now_ms: int) -> str:
        """Why the device with this key cannot use the claim; empty: it can.

        The device that has used it may come again: the answer may have been lost.
        """
        device = self.device(claim.device)
        if device is None or device.standing == "revoked":
            return f"the device {claim.device!r} has been revoked"
        if claim.used_at_ms is not None:
            if device.standing == "member" and device.key == key:
                return ""
            return "this join code has been used already"
        if now_ms >= claim.expires_at_ms:
            return "this join code has expired"
        return ""

    # --- What changes it --------------------------------------------------------------------------

    def invite(self, claim: Claim, certificate: bytes, now_ms: int) -> None:
        """Name a device, and let the claim's holder become it; an unused earlier claim ends.

        Certificates from an earlier life are revoked. `certificate`: the claim's, PEM.

        Raises:
            RefusedError: the name cannot be a device's, or is taken.
        """
        name = claim.device
        with self._change():
            found = self.device(name)
            if found is not None and found.standing == "member":
                raise RefusedError(
                    f"there is a device {name!r} already",
                    hint=f"to let another machine have this name: fedtide device revoke {name}",
                )
            self._check_free(name, name)
            self._db.execute(
                "INSERT INTO devices VALUES (?, 'invited', NULL, NULL, ?) ON CONFLICT (name)"
                " DO UPDATE SET standing = 'invited', key = NULL, changed_at_ms = ?",
                (name, now_ms, now_ms),
            )
            self._revoke_certificates("device = ?", now_ms, name)
            self._db.execute("DELETE FROM claims WHERE device = ?", (name,))
            self._db.execute(
                "INSERT INTO claims VALUES (?, ?, ?, ?, NULL)",
                (claim.claim_id, name, claim.key, claim.expires_at_ms),
            )
            self._add_certificate(name, certificate, now_ms)

    def admit(self, claim_id: str, key: bytes, certificate: bytes, now_ms: int) -> Certificate:
        """Use a claim, exactly once: its device becomes a member with this key.

        `key`: raw, uint8[32]; `certificate`: PEM, of the device's name. For the device that has
        used the claim already, its newest certificate.

        Raises:
            RefusedError: the claim is unknown, used or expired, its device revoked, or the key
                another device's.
        """
        with self._change():
            claim = self.claim(claim_id)
            if claim is None:
                raise RefusedError("this join code is unknown here, or has been replaced")
            refusal = self.refusal_of_claim(claim, key, now_ms)
            if refusal:
                raise RefusedError(refusal)
            if claim.used_at_ms is not None:
                return self._newest_certificate(claim.device)
            other = self.device_of_key(key)
            if other is not None:
                raise RefusedError(f"this key is that of the device {other.name!r}")
            self._db.execute(
                "UPDATE claims SET used_at_ms = ? WHERE claim_id = ?", (now_ms, claim_id)
            )
            self._db.execute(
                "UPDATE devices SET standing = 'member', key = ?, changed_at_ms = ? WHERE name = ?",
                (key, now_ms, claim.device),
            )
            return self._add_certificate(claim.device, certificate, now_ms)

    def renew(self, device: str, certificate: bytes, now_ms: int) -> Certificate:
        """Note a member's new certificate, PEM. If it is of the new name that was pending, the
        device is called so from now on. Earlier ones stay valid: this one may be lost on its way.

        Raises:
            RefusedError: the device is no member, or the certificate is of another name or key.
        """
        with self._change():
            found = self.device(device)
            if found is None or found.standing != "member":
                raise RefusedError(f"{device!r} is no member of this federation")
            name = common_name(x509.load_pem_x509_certificate(certificate))
            if name != device:
                if name != found.new_name:
                    raise RefusedError(f"{device!r} cannot have a certificate of {name!r}")
                self._db.execute(
                    "UPDATE devices SET name = ?, new_name = NULL, changed_at_ms = ?"
                    " WHERE name = ?",
                    (name, now_ms, device),
                )
            return self._add_certificate(name, certificate, now_ms)

    def settle(self, name: str, now_ms: int) -> None:
        """A device has spoken under this name of its, so that it has a certificate of it: those of
        its former names end, and other devices may have these names."""
        former = "device = ? AND name != ? AND name NOT LIKE ?"
        with self._change():
            self._revoke_certificates(former, now_ms, name, name, f"{CLAIM_PREFIX}%")

    def revoke(self, name: str, now_ms: int) -> Device:
        """End a device's membership, its certificates and the claims on it; what it was before.

        Raises:
            RefusedError: there is no such device.
        """
        with self._change():
            before = self.known(name)
            if before.standing != "revoked":
                self._db.execute(
                    "UPDATE devices SET standing = 'revoked', key = NULL, new_name = NULL,"
                    " changed_at_ms = ? WHERE name = ?",
                    (now_ms, name),
                )
                self._revoke_certificates("device = ?", now_ms, name)
            return before

    def rename(self, name: str, new_name: str, now_ms: int) -> Device:
        """Give a device another name: at once if it is only invited, a member from its next
        certificate on; its own name again withdraws that. What it was before.

        Raises:
            RefusedError: there is no such device, it is revoked, or the new name is taken or
                cannot be one.
        """
        with self._change():
            before = self.known(name)
            if before.standing == "revoked":
                raise RefusedError(
                    f"the device {name!r} is revoked", hint=f"fedtide device add {new_name}"
                )
            if new_name == name:
                self._db.execute("UPDATE devices SET new_name = NULL WHERE name = ?", (name,))
                return before
            self._check_free(new_name, name)
            if before.standing == "member":  # it keeps its name for now
                self._db.execute("UPDATE devices SET new_name = ? WHERE name = ?", (new_name, name))
            else:
                self._db.execute(
                    "UPDATE devices SET name = ?, changed_at_ms = ? WHERE name = ?",
                    (new_name, now_ms, name),
                )
            return before

    def add_role(self, certificate: bytes, now_ms: int) -> Certificate:
        """Note the certificate, PEM, of one of the server's own parts, beside the earlier ones."""
        with self._change():
            return self._add_certificate(None, certificate, now_ms)

    def revoke_others(self, newest: Certificate, now_ms: int) -> None:
        """Revoke the other certificates of a part of the server."""
        which = "device IS NULL AND name = ? AND serial != ?"
        with self._change():
            self._revoke_certificates(which, now_ms, newest.name, f"{newest.serial:x}")

    # --- How --------------------------------------------------------------------------------------

    def known(self, name: str) -> Device:
        """The device of this name.

        Raises:
            RefusedError: there is none.
        """
        device = self.device(name)
        if device is None:
            known = [other.name for other in self.devices()]
            near = get_close_matches(name, known, n=1)
            raise RefusedError(
                f"there is no device {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
                hint="`fedtide device list` names them all; nobody has rights by another name",
            )
        return device

    def _check_free(self, name: str, device: str) -> None:
        """Whether a device may be called so: nobody else is, will be, or still may call itself so.

        Raises:
            RefusedError: why not.
        """
        check_name(name)
        taken = "SELECT name FROM devices WHERE (name = ? OR new_name = ?) AND name != ?"
        if self._rows(taken, name, name, device):
            raise RefusedError(f"the name {name!r} is taken")
        valid = "SELECT device FROM certificates WHERE name = ? AND device != ?"
        for (holder,) in self._rows(f"{valid} AND revoked_at_ms IS NULL", name, device):
            raise RefusedError(
                f"the device {holder!r} was {name!r}, and has not come under its new name yet",
                hint="try again when it has been online, or shut it out: fedtide device revoke "
                f"{holder}",
            )

    def _add_certificate(self, device: str | None, pem: bytes, now_ms: int) -> Certificate:
        certificate = x509.load_pem_x509_certificate(pem)
        name = common_name(certificate)
        if device not in (None, name) and not name.startswith(CLAIM_PREFIX):
            raise RefusedError(f"{device!r} cannot have a certificate of {name!r}")
        not_after_ms = round(certificate.not_valid_after_utc.timestamp() * 1000)
        self._db.execute(
            "INSERT INTO certificates VALUES (?, ?, ?, ?, ?, ?, NULL)",
            (f"{certificate.serial_number:x}", name, device, pem, now_ms, not_after_ms),
        )
        return Certificate(certificate.serial_number, name, device, pem, now_ms, not_after_ms, None)

    def _newest_certificate(self, device: str) -> Certificate:
        return next(
            certificate
            for certificate in reversed(self.certificates(device))
            if not certificate.name.startswith(CLAIM_PREFIX)
        )

    def _revoke_certificates(self, which: str, now_ms: int, *values: str) -> None:
        self._db.execute(
            f"UPDATE certificates SET revoked_at_ms = ? WHERE revoked_at_ms IS NULL AND ({which})",  # noqa: S608
            (now_ms, *values),
        )


_DEVICE = "SELECT name, standing, key, new_name, changed_at_ms FROM devices"
_CLAIM = "SELECT claim_id, device, key, expires_at_ms, used_at_ms FROM claims"
_CERTIFICATE = (
    "SELECT serial, name, device, pem, issued_at_ms, not_after_ms, revoked_at_ms FROM certificates"
)


def _certificate(row: tuple[Any, ...]) -> Certificate:
    serial, *others = row
    return Certificate(int(serial, 16), *others)
