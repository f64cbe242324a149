"""Key files: what each one is, how it is written, and how a dealt share travels to its holder.

Secret files are created new, with mode 0600, and are never overwritten. A dealt share is sealed to
its holder's X25519 key (a fresh key agreement, HKDF-SHA256, AES-256-GCM), so the dealer can hand
it over through any channel; what the holder opens is checked against the public key. The dealer is
trusted: it has seen every share, and must delete what it made.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NoReturn

from securefl.errors import ConfigurationError, WireError
from securefl.primitives.channel import (
    TAG_BYTES,
    AgreementKey,
    DegenerateKey,
    PublicKey,
    Unopenable,
    derive,
    open_sealed,
    seal_once,
)
from securefl.primitives.paillier.threshold import KeyShare, ThresholdPublicKey

__all__ = [
    "FileKind",
    "describe_permissions",
    "holder_key",
    "kind_of",
    "open_share",
    "read_holder_key",
    "read_holder_public",
    "seal_share",
    "write_public",
    "write_secret",
]

_MOST_BYTES = 1 << 22
_HOLDER_SECRET, _HOLDER_PUBLIC, _SEALED = b"SFLHS\x01", b"SFLHP\x01", b"SFLX\x01"
_SEALED_HEADER = struct.Struct(">5sB32s32s")


class FileKind(StrEnum):
    """What a file is, from its first bytes."""

    PUBLIC = "public key"
    SECRET = "secret key"  # noqa: S105  # the name of a kind, no secret
    THRESHOLD = "threshold public key"
    SHARE = "share of a threshold key"
    SEALED_SHARE = "sealed share of a threshold key"
    HOLDER_PUBLIC = "holder's public key"
    HOLDER_SECRET = "holder's secret key"  # noqa: S105  # the name of a kind, no secret


_FIRST_BYTES = {
    b"SFLP\x01\x01": FileKind.PUBLIC,
    b"SFLP\x01\x02": FileKind.SECRET,
    b"SFLT\x01": FileKind.THRESHOLD,
    b"SFLS\x01": FileKind.SHARE,
    _SEALED: FileKind.SEALED_SHARE,
    _HOLDER_PUBLIC: FileKind.HOLDER_PUBLIC,
    _HOLDER_SECRET: FileKind.HOLDER_SECRET,
}

SECRET_KINDS = (FileKind.SECRET, FileKind.SHARE, FileKind.HOLDER_SECRET)


def kind_of(data: bytes) -> FileKind:
    """What these bytes are.

    Raises:
        WireError: if they are none of ours.
    """
    for first, kind in _FIRST_BYTES.items():
        if data.startswith(first):
            return kind
    raise WireError("this is no key file of SecureFL's Paillier protocols")


def label_of(data: bytes) -> tuple[int, bytes]:
    """Index and key id written on a share, sealed or not; only a label until the share is opened.

    Raises:
        WireError: if the bytes are cut short.
    """
    start = 6 if data.startswith(_SEALED) else 8
    if len(data) <= start + 32:
        raise WireError("a share is cut short")
    return data[5], data[start : start + 32]


def read(path: Path) -> bytes:
    """A key file's bytes.

    Raises:
        ConfigurationError: if it is missing, no plain file, or far too large for a key.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > _MOST_BYTES:
        raise ConfigurationError(f"{path} has more than {_MOST_BYTES} bytes: it is no key file")
    return data


def _create(path: Path, data: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise ConfigurationError(
            f"{path} exists: key files are never overwritten; move it away or name another"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            # The umask can only have taken bits away; the mode is set again for a stricter reader.
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)  # half a key would block the name and help nobody
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from None


def write_secret(path: Path, data: bytes) -> None:
    """Creates a file that only its owner can read (mode 0600).

    Raises:
        ConfigurationError: if it exists or cannot be written.
    """
    _create(path, data, 0o600)


def write_public(path: Path, data: bytes) -> None:
    """Creates a file that everybody may read (mode 0644); it is not overwritten either.

    Raises:
        ConfigurationError: if it exists or cannot be written.
    """
    _create(path, data, 0o644)


def describe_permissions(path: Path, kind: FileKind) -> str | None:
    """A warning if a secret file can be read by others; None if all is well."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if kind in SECRET_KINDS and mode & 0o077:
        return (
            f"{path} is a {kind} and its mode is {mode:04o}: others on this machine may have read "
            "it. Run chmod 600 on it, and if they could have, make new keys"
        )
    return None


@dataclass(frozen=True, slots=True)
class HolderKey:
    """The X25519 key to which a share is sealed.

    Attributes:
        public: file contents to give to the dealer.
        secret: file contents to keep.
    """

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return "HolderKey(<secret>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a HolderKey cannot be pickled or copied")


def holder_key(random_bytes: Callable[[int], bytes] = os.urandom) -> HolderKey:
    """A fresh key pair for receiving a share."""
    raw = random_bytes(32)
    return HolderKey(public=_HOLDER_PUBLIC + AgreementKey(raw).public, secret=_HOLDER_SECRET + raw)


def _after(data: bytes, prefix: bytes, name: str) -> bytes:
    if not data.startswith(prefix) or len(data) != len(prefix) + 32:
        raise WireError(f"this is not a {name}")
    return data[len(prefix) :]


def read_holder_public(data: bytes) -> PublicKey:
    """Reads the public half of :func:`holder_key`. WireError on anything else."""
    return PublicKey(_after(data, _HOLDER_PUBLIC, FileKind.HOLDER_PUBLIC))


def read_holder_key(data: bytes) -> AgreementKey:
    """Reads the secret half of :func:`holder_key`. WireError on anything else."""
    return AgreementKey(_after(data, _HOLDER_SECRET, FileKind.HOLDER_SECRET))


def _sealing_key(shared: bytes, header: bytes) -> bytes:
    return derive(shared, salt=b"", info=b"securefl/paillier/share/v1" + header, length=32)


def seal_share(
    share: KeyShare,
    holder: PublicKey,
    *,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> bytes:
    """The share, readable by the holder only.

    Raises:
        ConfigurationError: if the holder's key has small order.
    """
    fresh = AgreementKey(random_bytes(32))
    header = _SEALED_HEADER.pack(_SEALED, share.index, share.public.key_id, fresh.public)
    try:
        key = _sealing_key(fresh.agree(holder), header + holder.raw)
    except DegenerateKey:
        raise ConfigurationError("a holder's key has small order: it seals nothing") from None
    # The key is fresh for every share, so the constant nonce of seal_once is used once.
    return header + seal_once(key, share.to_secret_bytes(), header)


def open_share(data: bytes, holder: AgreementKey, public: ThresholdPublicKey) -> KeyShare:
    """Opens a sealed share and checks it against the public key.

    Raises:
        WireError: on malformed bytes.
        ConfigurationError: if it is sealed to somebody else, for another key, or wrong.
    """
    if len(data) < _SEALED_HEADER.size + TAG_BYTES or not data.startswith(_SEALED):
        raise WireError(f"this is not a {FileKind.SEALED_SHARE}")
    header, sealed = data[: _SEALED_HEADER.size], data[_SEALED_HEADER.size :]
    _, index, key_id, fresh = _SEALED_HEADER.unpack(header)
    if key_id != public.key_id:
        raise ConfigurationError("this share belongs to another threshold key")
    try:
        key = _sealing_key(holder.agree(PublicKey(fresh)), header + holder.public)
        share = KeyShare.from_bytes(open_sealed(key, sealed, header), public)
    except (DegenerateKey, Unopenable):
        raise ConfigurationError(
            f"share {index} is sealed to another holder, or was altered: ask the dealer again"
        ) from None
    if share.index != index:
        raise WireError(f"a share labelled {index} is share {share.index}")
    return share
