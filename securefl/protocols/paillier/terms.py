"""What every party pins before a session: the key, the packing, and who may decide what is opened.

The terms come to a client out of band, never from the server: a server that may choose the key, or
name its own witness, reads every update. Their digest is part of the round's configuration and so
of every frame, signature and proof. This module knows no messages.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from securefl.errors import ConfigurationError
from securefl.primitives import rlwe
from securefl.primitives.paillier import PublicKey, SlotLayout
from securefl.primitives.paillier.algebra import Degree, derive
from securefl.primitives.paillier.block import HEADER_BYTES, Block, BlockMode
from securefl.primitives.paillier.encryptor import Encryptor
from securefl.primitives.paillier.threshold import MAX_PARTIES, ThresholdPublicKey
from securefl.protocols.paillier.params import check_crowd
from securefl.round import (
    SERVER,
    Adversary,
    ClientId,
    Cohort,
    Protocol,
    Ring,
    RoundConfig,
    RoundId,
    ThreatModel,
)

__all__ = ["WITHOUT_WITNESS", "PaillierTerms", "Token", "check_config", "paillier_config"]


class Token(Enum):
    """Dangerous permissions, long to write and easy to find."""

    WITHOUT_WITNESS = "the server can have any single update opened"


WITHOUT_WITNESS = Token.WITHOUT_WITNESS

_BESIDE_BLOCK = 1 << 13
"""More than header, proof and signature of a submission ever take (keys have at most 8192 bits)."""

_COUNTS = struct.Struct("<BBBBIQIIII")


@dataclass(frozen=True, slots=True, kw_only=True)
class PaillierTerms:
    """Key, packing and deciders of one deployment.

    Attributes:
        key: the Paillier key (key-holder mode) or the threshold key.
        layout: slots for the values.
        s: degree of the ciphertexts; a threshold key brings its own.
        key_holder: who has the secret key; None in threshold mode.
        share_holders: in threshold mode, holder i has share i + 1.
        witnesses: who recompute the product without a key. Needed in key-holder mode; in threshold
            mode share holders recompute it themselves unless there are witnesses.
        statements: how many witnesses must agree; their collusion with the server opens one update.
        corrupt_holders: c, most share holders that may collude with the server: c < t and
            2t > l + c, or the server could open two different sums.
        without_witness: ``WITHOUT_WITNESS`` allows key-holder mode without a witness, for
            demonstrations of the attack only.
        mode: what is encrypted: the packed vector, or (``HYBRID``, experimental) a short secret
            whose ring-LWE masks hide the vector; see :mod:`securefl.primitives.rlwe`.
        accept_experimental: must be True for ``HYBRID``.

    Raises:
        ConfigurationError: if the numbers do not protect anybody, with the numbers.
    """

    key: PublicKey | ThresholdPublicKey
    layout: SlotLayout
    s: int = 1
    key_holder: ClientId | None = None
    share_holders: tuple[ClientId, ...] = ()
    witnesses: tuple[ClientId, ...] = ()
    statements: int = 1
    corrupt_holders: int = 1
    without_witness: Token | None = None
    mode: BlockMode = BlockMode.PACKED
    accept_experimental: bool = False

    def __post_init__(self) -> None:
        if self.mode is BlockMode.HYBRID and self.accept_experimental is not True:
            raise ConfigurationError(
                "the hybrid mode is experimental: its lattice parameters have not been estimated "
                "or reviewed; say accept_experimental=True, or use the packed mode"
            )
        parties = self.deciders
        bad = [u for u in parties if not 0 <= u < SERVER]
        if bad or len(set(parties)) != len(parties):
            raise ConfigurationError(
                f"witnesses and holders need distinct ids in [0, {SERVER}), found {parties}"
            )
        if isinstance(self.key, ThresholdPublicKey):
            self._check_threshold(self.key)
        else:
            self._check_key_holder()
        if not 1 <= self.statements <= max(1, len(self.witnesses)):
            raise ConfigurationError(
                f"{self.statements} of {len(self.witnesses)} witnesses cannot be asked for"
            )
        if self.layout.max_clients >= SERVER or not 0 <= self.corrupt_holders <= MAX_PARTIES:
            raise ConfigurationError(
                f"max_clients = {self.layout.max_clients} or corrupt_holders = "
                f"{self.corrupt_holders} is no possible number"
            )
        self.block_layout.slots(self.degree)

    def _check_threshold(self, key: ThresholdPublicKey) -> None:
        t, parties, c = key.threshold, key.parties, self.corrupt_holders
        if self.key_holder is not None or len(self.share_holders) != parties:
            raise ConfigurationError(
                f"a threshold key of {parties} parties needs {parties} share holders and no key "
                f"holder, found {len(self.share_holders)} and {self.key_holder}"
            )
        if self.s != key.s:
            raise ConfigurationError(f"the threshold key has degree {key.s}, the terms {self.s}")
        if not 0 <= c < t or 2 * t <= parties + c:
            raise ConfigurationError(
                f"with c = {c} corrupt share holders, t = {t} of l = {parties} needs c < t and "
                f"2t > l + c, which is {2 * t} > {parties + c}: otherwise the server can have two "
                "different sums opened"
            )

    def _check_key_holder(self) -> None:
        if self.key_holder is None or self.share_holders:
            raise ConfigurationError("a key that is not dealt needs one key holder, and no shares")
        if not self.witnesses and self.without_witness is not WITHOUT_WITNESS:
            raise ConfigurationError(
                "a key holder without a witness opens whatever the server calls a sum: name a "
                "witness who is neither the server nor the key holder"
            )

    @property
    def public(self) -> PublicKey:
        """What clients encrypt under."""
        return self.key.public if isinstance(self.key, ThresholdPublicKey) else self.key

    @property
    def degree(self) -> Degree:
        """The numbers of the key's degree."""
        return self.public.degree(self.s)

    @property
    def deciders(self) -> tuple[ClientId, ...]:
        """Everybody beside clients and server."""
        holder = () if self.key_holder is None else (self.key_holder,)
        return (*self.witnesses, *holder, *self.share_holders)

    @property
    def openers(self) -> tuple[ClientId, ...]:
        """Who can open: the key holder, or the share holders."""
        return self.share_holders if self.key_holder is None else (self.key_holder,)

    @property
    def openers_needed(self) -> int:
        """How many of them it takes."""
        return self.key.threshold if isinstance(self.key, ThresholdPublicKey) else 1

    def encryptor(self, random_bytes: Callable[[int], bytes] = os.urandom) -> Encryptor:
        """What clients encrypt with, and what proofs are checked against."""
        return Encryptor(self.public, self.s, random_bytes=random_bytes)

    @property
    def block_layout(self) -> SlotLayout:
        """Slots of what is encrypted: the values, or the ternary secret of the hybrid mode."""
        if self.mode is BlockMode.PACKED:
            return self.layout
        return SlotLayout(bound=1, max_clients=rlwe.MOST_CLIENTS)

    def block_dimension(self, m: int) -> int:
        """How many numbers are encrypted for a vector of m values."""
        return m if self.mode is BlockMode.PACKED else rlwe.DEGREE

    def rlwe_shape(self, m: int) -> rlwe.RlweShape | None:
        """The shape of the masks in hybrid mode, else None."""
        if self.mode is BlockMode.PACKED:
            return None
        layout = self.layout
        return rlwe.RlweShape(dimension=m, bound=layout.bound, max_clients=layout.max_clients)

    def shape(self, m: int, *, terms: int = 1) -> tuple[bytes, int, int, int, int, int, int, int]:
        """The one shape that sums of so many submissions have in a round of m values."""
        layout, dimension = self.block_layout, self.block_dimension(m)
        return (
            self.key.key_id, self.mode, self.s, layout.width, layout.bound, dimension,
            layout.ciphertexts(self.degree, dimension), terms,
        )  # fmt: skip

    def block_bytes(self, m: int) -> int:
        """Bytes of a block in a round of m values."""
        count = self.block_layout.ciphertexts(self.degree, self.block_dimension(m))
        return HEADER_BYTES + count * self.degree.ciphertext_bytes

    def block_of(self, m: int, ciphertexts: Iterable[int], *, terms: int = 1) -> bytes:
        """The bytes of a block of a round of m values: a submission, or a product of ``terms``.

        Raises:
            ConfigurationError: if the slots do not hold so many terms.
        """
        key_id, _, s, width, bound, dimension, *_ = self.shape(m)
        block = Block(
            key_id=key_id,
            mode=self.mode,
            s=s,
            width=width,
            bound=bound,
            dimension=dimension,
            terms=terms,
            ciphertexts=tuple(ciphertexts),
        )
        return block.to_bytes(self.degree)

    def public_polynomials(self, config: RoundConfig) -> NDArray[np.uint64]:
        """The a_j of a hybrid round, from its configuration: nobody can choose them."""
        shape = self.rlwe_shape(config.m)
        assert shape is not None  # noqa: S101  # hybrid mode only
        seed = derive(
            "securefl/rlwe/a/v1",
            config.digest(),
            config.round_id,
            self.key.key_id,
            config.m,
            length=32,
        )
        return rlwe.public_polynomials(seed, shape.polynomials)

    def to_bytes(self) -> bytes:
        """Canonical bytes of everything above."""
        layout = self.layout
        counts = _COUNTS.pack(
            self.s,
            self.key_holder is None,
            layout.guard,
            self.mode,
            layout.max_clients,
            layout.bound,
            len(self.witnesses),
            self.statements,
            len(self.share_holders),
            self.corrupt_holders,
        )
        ids = struct.pack(f"<{len(self.deciders)}I", *self.deciders)
        return b"securefl/paillier/terms/v1" + self.key.key_id + counts + ids

    def digest(self) -> bytes:
        """SHA-256 of the canonical bytes; part of the round's configuration."""
        return hashlib.sha256(self.to_bytes()).digest()


def paillier_config(
    terms: PaillierTerms,
    *,
    round_id: RoundId,
    cohort: Cohort,
    threat: ThreatModel,
    m: int,
    b: int,
    context_digest: bytes,
    server_nonce: bytes,
    n_min: int | None = None,
) -> RoundConfig:
    """The configuration of one round under these terms.

    Args:
        terms: key, packing, deciders.
        round_id: the training round.
        cohort: who was selected; at most ``terms.layout.max_clients``.
        threat: A corrupt clients, D that may be missing. The server may always lie here.
        m: entries of the vector.
        b: inputs are in Z_{2^b}, read as signed: 2^(b-1) must not exceed the layout's bound.
        context_digest: 32 bytes, what gives the numbers their meaning.
        server_nonce: 32 fresh bytes.
        n_min: fewest contributors; default n - D.

    Raises:
        ConfigurationError: if a slot could overflow or too few honest inputs would hide each other.
    """
    config = RoundConfig(
        protocol=Protocol.PAILLIER,
        adversary=Adversary.ACTIVE,
        round_id=round_id,
        cohort=cohort,
        k=len(terms.openers),
        t=terms.openers_needed,
        A=threat.corrupt,
        D=threat.dropped,
        n_min=len(cohort) - threat.dropped if n_min is None else n_min,
        m=m,
        b=b,
        context_digest=context_digest,
        server_nonce=server_nonce,
        graph_value=terms.digest(),
    )
    check_config(config, terms, assume_no_corruption=threat.assume_no_corruption)
    return config


def check_config(
    config: RoundConfig, terms: PaillierTerms, *, assume_no_corruption: bool = False
) -> None:
    """Whether the configuration is one of these terms, and safe.

    Raises:
        ConfigurationError: if not, with the numbers.
    """
    if config.protocol is not Protocol.PAILLIER or config.adversary is not Adversary.ACTIVE:
        raise ConfigurationError(
            f"expected PAILLIER against an ACTIVE server, found {config.protocol.name} against "
            f"{config.adversary.name}"
        )
    if config.graph_value != terms.digest():
        raise ConfigurationError(
            "the configuration is for other terms (key, packing or deciders) than the ones pinned "
            "here: refuse it, or bring the new terms out of band"
        )
    if (config.k, config.t) != (len(terms.openers), terms.openers_needed):
        raise ConfigurationError("the configuration names other numbers of openers than the terms")
    strangers = set(terms.deciders) & set(config.cohort.ids)
    if strangers:
        raise ConfigurationError(
            f"{sorted(strangers)} are clients and decide what is opened: use separate ids"
        )
    _check_numbers(config, terms, assume_no_corruption=assume_no_corruption)


def _check_numbers(
    config: RoundConfig, terms: PaillierTerms, *, assume_no_corruption: bool
) -> None:
    layout = terms.layout
    if config.ring is not Ring.POWER_OF_TWO:
        raise ConfigurationError("Paillier sums integers modulo a power of two")
    if 1 << (config.b - 1) > layout.bound:
        raise ConfigurationError(
            f"inputs of {config.b} bits reach 2^{config.b - 1}, a slot holds values up to "
            f"{layout.bound}: choose fewer bits or a larger bound"
        )
    if config.n > layout.max_clients:
        raise ConfigurationError(
            f"slots are sized for {layout.max_clients} clients, the cohort has {config.n}"
        )
    if config.m >= 1 << 32:
        raise ConfigurationError(f"a block holds up to 2^32 values, found {config.m}")
    # One frame carries all submissions to whoever recomputes the product.
    if config.n * (terms.block_bytes(config.m) + _BESIDE_BLOCK) >= 1 << 32:
        raise ConfigurationError(
            f"{config.n} submissions of {terms.block_bytes(config.m)} bytes do not fit one frame "
            "of 2^32: choose fewer clients, a shorter vector or the hybrid mode"
        )
    terms.rlwe_shape(config.m)  # refuses what the hybrid mode cannot sum
    if config.A == 0 and not assume_no_corruption:
        raise ConfigurationError("A = 0 assumes that no client ever colludes with the server")
    check_crowd(config.n, config.n_min, config.A)
