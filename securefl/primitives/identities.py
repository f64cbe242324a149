"""Identity files: a party's Ed25519 key on its disk, its public line, and the roster of all.

Against a server that lies, clients must know each other without its help (Bonawitz et al. 2017,
section 6.2). Each party makes a key, hands its public line to whoever keeps the roster, and gets
the roster back by a way in which the server has no hand: a file on a stick, a configuration
repository, a meeting. What must be compared by voice is the roster's digest. A key that arrives
through the server, even signed with itself, proves nothing and has no place here. This module does
not know what is signed.
"""

from __future__ import annotations

import json
import os
import re
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from securefl.errors import ConfigurationError
from securefl.primitives.channel import sha256
from securefl.primitives.signing import IdentityDirectory, IdentityKey
from securefl.round import SERVER, ClientId

__all__ = [
    "ROSTER_SCHEMA",
    "Member",
    "PublicIdentity",
    "Roster",
    "create_identity",
    "fingerprint",
    "load_identity",
    "load_public",
    "permissions_of",
]

ROSTER_SCHEMA = "securefl-roster/1"
_LINE = "securefl-identity/1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY = re.compile(r"[0-9a-f]{64}")
_MOST_BYTES = 1 << 26
_MEMBER = struct.Struct("<IH")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicIdentity:
    """What a party tells the others about itself.

    Attributes:
        name: 1 to 64 letters, digits, dots, hyphens and underscores; starts with a letter or digit.
        key: Ed25519 public key, 32 bytes.

    Raises:
        ConfigurationError: for another name or another length.
    """

    name: str
    key: bytes

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ConfigurationError(
                "a party's name has 1 to 64 letters, digits, '.', '-' or '_' and starts with a "
                f"letter or digit, found {self.name!r}"
            )
        if not isinstance(self.key, bytes) or len(self.key) != 32:
            raise ConfigurationError(f"the public key of {self.name} must be 32 bytes")

    def line(self) -> str:
        """One line for a ``.pub`` file: schema, name, key in hexadecimal digits."""
        return f"{_LINE} {self.name} {self.key.hex()}"

    @classmethod
    def parse(cls, line: str, *, source: object = "this line") -> PublicIdentity:
        """Inverse of :meth:`line`.

        Raises:
            ConfigurationError: for anything else; ``source`` is named in it.
        """
        words = line.split()
        if len(words) != 3 or words[0] != _LINE or not _KEY.fullmatch(words[2]):
            raise ConfigurationError(
                f"{source} is no public identity: expected '{_LINE} NAME KEY' with a key of 64 "
                "lower-case hexadecimal digits; make one with securefl identity new"
            )
        return cls(name=words[1], key=bytes.fromhex(words[2]))


def fingerprint(key: bytes) -> str:
    """A key in the short form that people read to each other: 32 hexadecimal digits in groups.

    The first 128 bits of its SHA-256.
    """
    digits = sha256(key).hex()[:32]
    return " ".join(digits[i : i + 4] for i in range(0, 32, 4))


# -- files ----------------------------------------------------------------------------------------


def create_identity(folder: Path, *, name: str) -> PublicIdentity:
    """Makes a fresh key: ``identity.pem`` (PKCS #8, mode 0600) and ``identity.pub`` in a folder.

    Args:
        folder: made, mode 0700, if it does not exist.
        name: what the roster will call the party.

    Raises:
        ConfigurationError: if one of the files exists, or cannot be written. Nothing is
            overwritten.
    """
    seed = os.urandom(32)
    public = PublicIdentity(name=name, key=IdentityKey(seed).public)
    pem = Ed25519PrivateKey.from_private_bytes(seed).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigurationError(f"cannot make the folder {folder}: {error.strerror}") from None
    secret_path, public_path = folder / "identity.pem", folder / "identity.pub"
    for path in (secret_path, public_path):
        if path.exists():
            raise ConfigurationError(f"{path} exists: identities are never overwritten")
    _create(secret_path, pem, 0o600)
    _create(public_path, f"{public.line()}\n".encode(), 0o644)
    return public


def load_identity(path: Path) -> IdentityKey:
    """The private key in a PEM file that only its owner may read.

    Raises:
        ConfigurationError: if it is missing, readable by others, or no Ed25519 key in PKCS #8.
    """
    complaint = permissions_of(path)
    if complaint is not None:
        raise ConfigurationError(complaint)
    try:
        key = load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigurationError(
            f"{path} is no unencrypted private key in PEM (PKCS #8); make one with "
            "securefl identity new"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"{path} holds a key of another kind; identities are Ed25519")
    return IdentityKey(key.private_bytes_raw())


def load_public(path: Path) -> PublicIdentity:
    """The public identity in a ``.pub`` file.

    Raises:
        ConfigurationError: if it is missing or holds anything else.
    """
    return PublicIdentity.parse(_text(path).strip(), source=path)


def permissions_of(path: Path) -> str | None:
    """What is wrong with who may read this secret file; None if only its owner may.

    Raises:
        ConfigurationError: if it does not exist.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    if os.name == "posix" and mode & 0o077:
        return (
            f"{path} holds a private key and its mode is {mode:04o}: others on this machine may "
            "have read it. Run chmod 600 on it, and if they could have, make a new identity"
        )
    return None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > _MOST_BYTES:
        raise ConfigurationError(f"{path} has more than {_MOST_BYTES} bytes")
    return data


def _text(path: Path) -> str:
    try:
        return _read(path).decode()
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is no text in UTF-8") from None


def _create(path: Path, data: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from None


# -- the roster -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One line of a roster.

    Attributes:
        client: its id in every session, u32.
        name: see :class:`PublicIdentity`.
        key: 32 bytes.
    """

    client: ClientId
    name: str
    key: bytes


@dataclass(frozen=True, slots=True)
class Roster:
    """Who takes part: ids, names and keys, ascending by id; each name and key once.

    Attributes:
        members: at least one.

    Raises:
        ConfigurationError: if ids, names or keys are not distinct, or out of their range.
    """

    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        if not self.members:
            raise ConfigurationError("a roster has at least one member")
        names: set[str] = set()
        last = -1
        for member in self.members:
            PublicIdentity(name=member.name, key=member.key)
            given: object = member.client  # what a file holds may be anything
            if isinstance(given, bool) or not isinstance(given, int):
                raise ConfigurationError(f"a roster's id must be an int, found {given!r}")
            if not last < member.client < SERVER:
                raise ConfigurationError(
                    f"a roster's ids must ascend and be below {SERVER}, found {member.client} "
                    f"after {last}"
                )
            if member.name in names:
                raise ConfigurationError(f"the roster names {member.name} twice")
            last = member.client
            names.add(member.name)
        self.directory()

    @classmethod
    def build(
        cls, identities: Iterable[PublicIdentity], *, previous: Roster | None = None
    ) -> Roster:
        """A roster of these parties, sorted by name; new ids are given in that order, from 1.

        Args:
            identities: everybody who is to be in it.
            previous: the roster so far; whoever stays keeps its id, and no other party gets an id
                that is in it. Who left before it was made is not known here.

        Raises:
            ConfigurationError: for one name or key twice, or a name whose key in ``previous`` is
                another one: give the party a new name, so that nobody can slip a key in.
        """
        old = {} if previous is None else {member.name: member for member in previous.members}
        free = 1 + max((member.client for member in old.values()), default=0)
        members: list[Member] = []
        seen: set[str] = set()
        for identity in sorted(identities, key=lambda one: one.name):
            if identity.name in seen:
                raise ConfigurationError(f"two public identities are called {identity.name}")
            seen.add(identity.name)
            known = old.get(identity.name)
            if known is not None and known.key != identity.key:
                raise ConfigurationError(
                    f"the key of {identity.name} has changed from {fingerprint(known.key)} to "
                    f"{fingerprint(identity.key)}; if that is meant, give the party a new name"
                )
            if known is None:
                members.append(Member(client=ClientId(free), name=identity.name, key=identity.key))
                free += 1
            else:
                members.append(known)
        return cls(tuple(sorted(members, key=lambda member: member.client)))

    @classmethod
    def load(cls, path: Path) -> Roster:
        """Reads a roster file.

        Raises:
            ConfigurationError: if it is missing or no roster.
        """
        try:
            raw = json.loads(_text(path), object_pairs_hook=_no_duplicates)
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(f"{path} is no roster: {error}") from None
        return cls.from_json(raw, source=path)

    @classmethod
    def from_json(cls, raw: Any, *, source: object = "the roster") -> Roster:
        """Inverse of :meth:`to_json`.

        Raises:
            ConfigurationError: for anything that :meth:`to_json` does not make.
        """
        if not isinstance(raw, dict) or set(raw) != {"schema", "members"}:
            raise ConfigurationError(f"{source}: expected an object with schema and members")
        if raw["schema"] != ROSTER_SCHEMA:
            raise ConfigurationError(
                f"{source}: expected schema {ROSTER_SCHEMA!r}, found {raw['schema']!r}"
            )
        if not isinstance(raw["members"], list):
            raise ConfigurationError(f"{source}: members must be a list")
        members = []
        for entry in raw["members"]:
            if not isinstance(entry, dict) or set(entry) != {"id", "name", "key"}:
                raise ConfigurationError(f"{source}: a member has id, name and key, found {entry}")
            if not isinstance(entry["key"], str) or not _KEY.fullmatch(entry["key"]):
                raise ConfigurationError(
                    f"{source}: the key of {entry['name']!r} must be 64 lower-case hexadecimal "
                    "digits"
                )
            members.append(
                Member(client=entry["id"], name=entry["name"], key=bytes.fromhex(entry["key"]))
            )
        return cls(tuple(members))

    def to_json(self) -> dict[str, Any]:
        """For a file: one object per member."""
        return {
            "schema": ROSTER_SCHEMA,
            "members": [
                {"id": int(member.client), "name": member.name, "key": member.key.hex()}
                for member in self.members
            ],
        }

    def digest(self) -> bytes:
        """What people compare: SHA-256 over schema, then u32 id, u16 length, name, key of each."""
        return sha256(
            ROSTER_SCHEMA.encode() + b"\0",
            *(
                _MEMBER.pack(member.client, len(member.name)) + member.name.encode() + member.key
                for member in self.members
            ),
        )

    def directory(self) -> IdentityDirectory:
        """The keys by id, as machines want them."""
        return IdentityDirectory({member.client: member.key for member in self.members})

    def member_of(self, key: bytes) -> Member | None:
        """Who has this public key; None if nobody."""
        return next((member for member in self.members if member.key == key), None)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found
