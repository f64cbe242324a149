"""Who opens sums under Paillier: one public file, the same at every site and beside the ServerApp.

Like the roster it comes to each site out of band, never through the server: a server that may
choose the key, or name its own witness, reads every update. Every party makes the session's terms
from its own copy; their digest is in the session's configuration, so two copies that differ make no
session. The file names the deciders as the roster does, and no secret: a ServerApp that is given
one refuses to start. That the same people do not run the server and the key holder is nothing that
a program can see. This module knows no messages and no Flower.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from securefl.errors import ConfigurationError, WireError
from securefl.primitives.channel import sha256
from securefl.primitives.identities import Roster
from securefl.primitives.paillier import PublicKey, SlotLayout
from securefl.primitives.paillier import files as key_files
from securefl.primitives.paillier.threshold import ThresholdPublicKey
from securefl.protocols.paillier import PaillierTerms
from securefl.round import ClientId

__all__ = ["SETUP_SCHEMA", "PaillierSetup", "SetupFile"]

SETUP_SCHEMA = "securefl-paillier/1"


class SetupFile(BaseModel):
    """``paillier.toml``; see docs/how-to/flower.md."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    schema_: str = Field(alias="schema", pattern=f"^{SETUP_SCHEMA}$")
    key: str
    degree: int | None = Field(default=None, ge=1, le=3)
    key_holder: str | None = None
    share_holders: tuple[str, ...] = Field(default=(), strict=False)
    corrupt_holders: int = Field(default=1, ge=1)
    witnesses: tuple[str, ...] = Field(default=(), strict=False)
    statements: int = Field(default=1, ge=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaillierSetup:
    """Key and deciders of one deployment.

    Attributes:
        key: the Paillier key (one key holder) or the threshold key.
        degree: of the ciphertexts.
        key_holder: who has the secret key; None with a threshold key.
        share_holders: with a threshold key; holder i has share i + 1.
        corrupt_holders: most share holders that may help the server.
        witnesses: who recompute the product without a key.
        statements: how many of them must agree.

    Raises:
        ConfigurationError: by :meth:`load` and :meth:`terms`, if the parties protect nobody.
    """

    key: PublicKey | ThresholdPublicKey
    degree: int
    key_holder: ClientId | None
    share_holders: tuple[ClientId, ...]
    corrupt_holders: int
    witnesses: tuple[ClientId, ...]
    statements: int

    @classmethod
    def load(cls, path: Path, roster: Roster) -> Self:
        """Reads the file and the key that it names, and looks up everybody in the roster.

        Raises:
            ConfigurationError: for anything missing, unknown or unsafe, and for a secret key where
                the public one belongs.
        """
        file = _read(path)
        key = _public_key(path.parent / file.key)
        ids = {member.name: member.client for member in roster.members}

        def known(names: tuple[str, ...]) -> tuple[ClientId, ...]:
            missing = [name for name in names if name not in ids]
            if missing:
                raise ConfigurationError(f"{path}: the roster does not list {missing}")
            return tuple(ids[name] for name in names)

        if isinstance(key, ThresholdPublicKey) and file.degree not in (None, key.s):
            raise ConfigurationError(
                f"{path}: the threshold key has degree {key.s}, the file says {file.degree}"
            )
        setup = cls(
            key=key,
            degree=key.s if isinstance(key, ThresholdPublicKey) else file.degree or 1,
            key_holder=None if file.key_holder is None else known((file.key_holder,))[0],
            share_holders=known(file.share_holders),
            corrupt_holders=file.corrupt_holders,
            witnesses=known(file.witnesses),
            statements=file.statements,
        )
        try:
            setup.terms(bits=32, clients=3)
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {error}") from None
        return setup

    @property
    def threshold(self) -> bool:
        """Whether holders of shares open, and no single holder."""
        return isinstance(self.key, ThresholdPublicKey)

    @property
    def deciders(self) -> tuple[ClientId, ...]:
        """Everybody beside clients and server."""
        holder = () if self.key_holder is None else (self.key_holder,)
        return (*self.witnesses, *holder, *self.share_holders)

    def needs(self) -> tuple[tuple[int, tuple[ClientId, ...], str], ...]:
        """Without whom no sum is opened: how many, of whom, and what they are."""
        openers = self.share_holders if self.key_holder is None else (self.key_holder,)
        opening = (1, openers, "key holders")
        if isinstance(self.key, ThresholdPublicKey):
            opening = (self.key.threshold, openers, "share holders")
        if not self.witnesses:
            return (opening,)
        return ((self.statements, self.witnesses, "witnesses"), opening)

    def terms(self, *, bits: int, clients: int) -> PaillierTerms:
        """What is pinned in a session of so many clients with inputs of so many bits.

        Raises:
            ConfigurationError: if a slot cannot hold the sum, or the parties protect nobody.
        """
        return PaillierTerms(
            key=self.key,
            layout=SlotLayout(bound=1 << (bits - 1), max_clients=clients),
            s=self.degree,
            key_holder=self.key_holder,
            share_holders=self.share_holders,
            witnesses=self.witnesses,
            statements=self.statements,
            corrupt_holders=self.corrupt_holders,
        )

    def digest(self) -> bytes:
        """What people compare: SHA-256 over key and deciders; 32 bytes."""
        return sha256(b"securefl/flower/paillier/v1", self.terms(bits=32, clients=3).to_bytes())

    def refuse_secrets_beside(self, path: Path) -> None:
        """Refuses a folder in which a secret of this very key lies: for the ServerApp's machine.

        It finds the accident, not the intention: whoever runs the server can keep a key elsewhere.

        Args:
            path: the setup file.

        Raises:
            ConfigurationError: with the file's name.
        """
        for other in sorted(path.resolve().parent.iterdir()):
            if other.is_file() and _is_secret_of(other, self.key.key_id):
                raise ConfigurationError(
                    f"{other} is a secret of the key that clients encrypt under, and this is the "
                    "ServerApp's machine: server and holder together read every update. Keep it "
                    "with the holder only, and if it was ever here, make a new key"
                )


def _read(path: Path) -> SetupFile:
    try:
        return SetupFile(**tomllib.loads(path.read_text()))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is no TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigurationError(f"{path}, {where}: {first['msg']}") from None


def _public_key(path: Path) -> PublicKey | ThresholdPublicKey:
    data = key_files.read(path)
    try:
        kind = key_files.kind_of(data)
        if kind is key_files.FileKind.PUBLIC:
            return PublicKey.from_bytes(data)
        if kind is key_files.FileKind.THRESHOLD:
            return ThresholdPublicKey.from_bytes(data)
    except WireError as error:
        raise ConfigurationError(f"{path}: {error}") from None
    raise ConfigurationError(
        f"{path} is a {kind}; the setup names the public key, and secrets stay with their holders"
    )


def _is_secret_of(path: Path, key_id: bytes) -> bool:
    """Whether a file is the secret key or an opened share of this key."""
    from securefl.primitives.paillier import SecretKey  # noqa: PLC0415  # where it is needed only

    try:
        data = key_files.read(path)
        kind = key_files.kind_of(data)
        if kind is key_files.FileKind.SECRET:
            return SecretKey.from_bytes(data).public.key_id == key_id
        return kind is key_files.FileKind.SHARE and key_files.label_of(data)[1] == key_id
    except (ConfigurationError, WireError):
        return False  # another file, or one that cannot be read
