"""What a round is: who takes part, under which parameters, and what comes out.

A :class:`RoundConfig` is the one agreement of a session. Its canonical bytes are hashed into every
key, so two parties with different configurations (another cohort, threshold, model or codec)
derive unrelated masks and can never be summed by accident. This module knows no protocol and no
message; it knows the usage labels (:func:`dst`) because the configuration digest is the first
labelled derivation.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from fractions import Fraction
from functools import cache
from itertools import pairwise
from typing import NewType

from securefl.errors import ConfigurationError, WireError
from securefl.modular import RingVector

__all__ = [
    "MAX_COHORT",
    "SERVER",
    "SUITE",
    "WIRE_VERSION",
    "Adversary",
    "AggregateSum",
    "ClientId",
    "Cohort",
    "GraphSource",
    "Layout",
    "Protocol",
    "Ring",
    "RoundConfig",
    "RoundId",
    "SurvivorSets",
    "ThreatModel",
    "Usage",
    "ceil_rate",
    "dst",
]

ClientId = NewType("ClientId", int)
RoundId = NewType("RoundId", int)

SERVER = ClientId(0xFFFFFFFF)
"""The server's reserved id; no client may have it."""

MAX_COHORT = 1 << 20
"""Most clients in one cohort: bounds what a parsed configuration can make us allocate."""

WIRE_VERSION = 1
SUITE = 1
"""Cipher suite 1: X25519, HKDF-SHA256, AES-128-CTR, AES-256-GCM, Ed25519, Shamir mod 2^31-1."""


class Protocol(IntEnum):
    """Wire numbers of the protocols (header and configuration)."""

    SECAGG = 1
    SECAGG_PLUS = 2
    LIGHTSECAGG = 3
    PAILLIER = 4
    PEERSUM = 5


class Adversary(IntEnum):
    """What the server may do: follow the protocol, or tell each client something else."""

    SEMI_HONEST = 0
    ACTIVE = 1


class Layout(IntEnum):
    """Who holds shares of a client's secrets: the others only, or all including itself."""

    OTHERS = 0
    ALL = 1


class GraphSource(IntEnum):
    """Where the value comes from that shapes a sparse neighbour graph."""

    SERVER = 0
    BEACON = 1


class Ring(IntEnum):
    """The ring of the sum: Z_{2^b} or the field GF(2^31-1)."""

    POWER_OF_TWO = 0
    PRIME_FIELD = 1


class Usage(IntEnum):
    """One number per derivation, so that no output of one can serve as another."""

    CONFIG_DIGEST = 1
    ROSTER_LEAF = 2
    SESSION_ID = 3
    PAIR_MASK = 4
    SELF_MASK = 5
    CHANNEL_KEY = 6
    CHANNEL_DATA = 7
    SEED_COMMITMENT = 8
    SURVIVOR_SIGNATURE = 9
    FRAME_SIGNATURE = 10
    GRAPH_SEED = 11
    RING_RANK = 12
    STATE_EXPORT = 13
    LOCAL_EXPANSION = 14
    PEERSUM_REVEAL = 15
    TRANSCRIPT = 16
    FLOWER_HELLO = 17


@cache
def dst(usage: Usage, protocol: Protocol) -> bytes:
    """The 8-byte domain separation tag: "SFL1", wire version, protocol, usage, 0x00."""
    return b"SFL1" + bytes((WIRE_VERSION, protocol, usage, 0))


def ceil_rate(rate: Fraction | str | float, n: int) -> int:
    """⌈rate · n⌉, exactly.

    Args:
        rate: a share of n in [0, 1]. A float means the decimal it prints as: ``0.07`` of 100 is 7,
            although the binary number behind it is a little above.
        n: a count, at least 0.

    Raises:
        ConfigurationError: if the rate is no number in [0, 1].

    >>> ceil_rate(0.07, 100), ceil_rate("1/3", 10)
    (7, 4)
    """
    try:
        exact = Fraction(str(rate)) if isinstance(rate, float) else Fraction(rate)
    except (ValueError, TypeError, ZeroDivisionError, OverflowError):
        raise ConfigurationError(f"a rate must be a number in [0, 1], found {rate!r}") from None
    if not 0 <= exact <= 1:
        raise ConfigurationError(f"a rate must be in [0, 1], found {rate!r}")
    return -((-exact.numerator * n) // exact.denominator)


@dataclass(frozen=True, slots=True)
class Cohort:
    """The clients selected for one round, ascending and frozen.

    Attributes:
        ids: at least 3 distinct ids, ascending, each in [0, 0xFFFFFFFF).

    Raises:
        ConfigurationError: if an id is out of range or twice there, or there are fewer than 3:
            with two clients each learns the other's input from the sum, whatever the masks.

    >>> Cohort.of([30, 10, 20]).ids
    (10, 20, 30)
    """

    ids: tuple[ClientId, ...]
    _index: dict[ClientId, int] = field(init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        given: tuple[object, ...] = self.ids  # what arrives at run time may be anything
        for u in given:
            if isinstance(u, bool) or not isinstance(u, int) or not 0 <= u < SERVER:
                raise ConfigurationError(
                    f"client ids must be integers in [0, {SERVER}), found {u!r}"
                )
        if any(a >= b for a, b in pairwise(self.ids)):
            raise ConfigurationError("client ids must be distinct and ascending; use Cohort.of")
        if not 3 <= len(self.ids) <= MAX_COHORT:
            raise ConfigurationError(
                f"a cohort has 3 to {MAX_COHORT} clients, found {len(self.ids)}; "
                "with two clients the sum tells each the other's input"
            )
        object.__setattr__(self, "_index", {u: i for i, u in enumerate(self.ids)})

    @classmethod
    def of(cls, ids: Iterable[int]) -> Cohort:
        """The cohort of these ids, sorted. Raises like the constructor."""
        return cls(tuple(ClientId(u) for u in sorted(ids)))

    def index(self, u: ClientId) -> int:
        """Position of u, from 0. Raises KeyError if u is not a member."""
        return self._index[u]

    def __contains__(self, u: object) -> bool:
        return u in self._index

    def __iter__(self) -> Iterator[ClientId]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreatModel:
    """Whom the round must survive; degree, threshold and phases follow from it.

    Attributes:
        adversary: what the server may do.
        corrupt: A, the most clients that hand everything they know to the adversary.
        dropped: D, the most cohort members that may be missing at the end, whenever they left.
        assume_no_corruption: must be True to allow ``corrupt=0``. Then the first client that
            talks to the server may be enough to open another one.

    Raises:
        ConfigurationError: for negative numbers, or A = 0 without ``assume_no_corruption``.
    """

    adversary: Adversary = Adversary.SEMI_HONEST
    corrupt: int
    dropped: int
    assume_no_corruption: bool = False

    def __post_init__(self) -> None:
        if self.corrupt < 0 or self.dropped < 0:
            raise ConfigurationError(
                f"corrupt and dropped must be at least 0, found {self.corrupt}, {self.dropped}"
            )
        if self.corrupt == 0 and not self.assume_no_corruption:
            raise ConfigurationError(
                "corrupt=0 assumes that no client ever colludes with the server; "
                "give the most that may, or set assume_no_corruption=True"
            )

    @classmethod
    def from_rates(
        cls,
        n: int,
        *,
        gamma: Fraction | str | float,
        delta: Fraction | str | float,
        adversary: Adversary = Adversary.SEMI_HONEST,
    ) -> ThreatModel:
        """A = ⌈γn⌉ and D = ⌈δn⌉: ceilings, so that a positive rate never becomes zero.

        Raises:
            ConfigurationError: for a rate outside [0, 1], or γ = 0.
        """
        return cls(adversary=adversary, corrupt=ceil_rate(gamma, n), dropped=ceil_rate(delta, n))


@dataclass(frozen=True, slots=True, kw_only=True)
class SurvivorSets:
    """Who was still there, one set per closed phase: U1 ⊇ U2 ⊇ U3 ⊇ U4 ⊇ U5, each ascending.

    A phase that is not closed yet has None.

    Attributes:
        U1: their AdvertiseKeys was accepted.
        U2: their EncryptedShares too; masks exist only towards U2.
        U3: their MaskedInput too: **whose inputs are in the sum**.
        U4: their SurvivorSignature too (semi-honest: equal to U3).
        U5: their UnmaskShares too.

    Raises:
        ConfigurationError: if a set is not contained in the one before, or set after a gap.
    """

    U1: tuple[ClientId, ...] | None = None
    U2: tuple[ClientId, ...] | None = None
    U3: tuple[ClientId, ...] | None = None
    U4: tuple[ClientId, ...] | None = None
    U5: tuple[ClientId, ...] | None = None

    def __post_init__(self) -> None:
        sets = [self.U1, self.U2, self.U3, self.U4, self.U5]
        for i, (larger, smaller) in enumerate(pairwise(sets), start=1):
            if smaller is None:
                continue
            if larger is None or not set(smaller) <= set(larger):
                raise ConfigurationError(f"U{i + 1} is not contained in U{i}")


_FIXED = struct.Struct("<BBBBHHQ")
_COUNTS = struct.Struct("<IIIIIQBBH")
_DIGESTS = 3 * 32
_CHOICES: dict[str, type[IntEnum]] = {
    "protocol": Protocol,
    "adversary": Adversary,
    "layout": Layout,
    "graph_source": GraphSource,
    "ring": Ring,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundConfig:
    """Everything the parties of one session must agree on.

    Attributes:
        protocol, adversary, layout, graph_source: see the enums.
        round_id: the training round, u64.
        cohort: who was selected.
        k: neighbours per client; n - 1 is the complete graph.
        t: shares that reconstruct a secret.
        A: most corrupt clients.
        D: most cohort members missing at the end.
        n_min: fewest survivors a client accepts.
        m: entries of the vector.
        ring, b: Z_{2^b} with 1 <= b <= 64, or the prime field.
        context_digest: 32 bytes, SHA-256 over what gives the numbers their meaning (model, codec
            specification, privacy plan). Every client computes it from what it received itself.
        server_nonce: 32 bytes chosen by the server, new for every session.
        graph_value: 32 bytes, the server's seed or the beacon's id; zeros for the complete graph.

    Raises:
        ConfigurationError: if a field does not fit its wire format, or a choice is a bare number.
            Whether the numbers are *safe* is the protocol's question
            (``securefl.protocols.secagg.params``).
    """

    protocol: Protocol
    adversary: Adversary
    layout: Layout = Layout.OTHERS
    graph_source: GraphSource = GraphSource.SERVER
    round_id: RoundId
    cohort: Cohort
    k: int
    t: int
    A: int
    D: int
    n_min: int
    m: int
    ring: Ring = Ring.POWER_OF_TWO
    b: int
    context_digest: bytes
    server_nonce: bytes
    graph_value: bytes = bytes(32)

    def __post_init__(self) -> None:
        for name, kind in _CHOICES.items():
            # A bare number would encode like the choice it stands for and compare unlike it.
            if not isinstance(getattr(self, name), kind):
                raise ConfigurationError(
                    f"{name} must be a {kind.__name__}, found {getattr(self, name)!r}"
                )
        bounds = {"round_id": 64, "k": 32, "t": 32, "A": 32, "D": 32, "n_min": 32, "m": 64}
        for name, bits in bounds.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << bits:
                raise ConfigurationError(f"{name} must be an integer of {bits} bits, found {value}")
        if not 1 <= self.b <= 64:
            raise ConfigurationError(f"b must be in 1..64, found {self.b}")
        for name in ("context_digest", "server_nonce", "graph_value"):
            value = getattr(self, name)
            if not isinstance(value, bytes) or len(value) != 32:
                raise ConfigurationError(f"{name} must be 32 bytes")

    @property
    def n(self) -> int:
        """Cohort size."""
        return len(self.cohort)

    @property
    def modulus(self) -> int:
        """Size of the ring."""
        return 1 << self.b if self.ring is Ring.POWER_OF_TWO else (1 << 31) - 1

    def encode(self) -> bytes:
        """The canonical bytes: equal configurations and only they have equal bytes."""
        return b"".join(
            (
                _FIXED.pack(
                    self.protocol,
                    self.adversary,
                    self.layout,
                    self.graph_source,
                    SUITE,
                    0,
                    self.round_id,
                ),
                struct.pack(f"<I{self.n}I", self.n, *self.cohort.ids),
                _COUNTS.pack(
                    self.k, self.t, self.A, self.D, self.n_min, self.m, self.ring, self.b, 0
                ),
                self.context_digest,
                self.server_nonce,
                self.graph_value,
            )
        )

    @classmethod
    def decode(cls, data: bytes) -> RoundConfig:
        """Inverse of :meth:`encode`.

        Raises:
            WireError: for anything that :meth:`encode` does not write.
        """
        head = _FIXED.size + 4
        if len(data) < head:
            raise WireError(f"a configuration has at least {head} bytes, found {len(data)}")
        protocol, adversary, layout, source, suite, zero, round_id = _FIXED.unpack_from(data)
        (n,) = struct.unpack_from("<I", data, _FIXED.size)
        size = head + 4 * n + _COUNTS.size + _DIGESTS
        if n > MAX_COHORT or len(data) != size:
            raise WireError(f"a configuration of {n} clients has {size} bytes, found {len(data)}")
        ids = struct.unpack_from(f"<{n}I", data, head)
        k, t, A, D, n_min, m, ring, b, pad = _COUNTS.unpack_from(data, head + 4 * n)
        if suite != SUITE or zero or pad:
            raise WireError(f"unknown suite {suite} or a reserved field is not zero")
        tail = head + 4 * n + _COUNTS.size
        digests = [data[tail + 32 * i : tail + 32 * (i + 1)] for i in range(3)]
        try:
            return cls(
                protocol=Protocol(protocol),
                adversary=Adversary(adversary),
                layout=Layout(layout),
                graph_source=GraphSource(source),
                round_id=RoundId(round_id),
                cohort=Cohort(tuple(map(ClientId, ids))),
                k=k,
                t=t,
                A=A,
                D=D,
                n_min=n_min,
                m=m,
                ring=Ring(ring),
                b=b,
                context_digest=digests[0],
                server_nonce=digests[1],
                graph_value=digests[2],
            )
        except ValueError as error:  # an unknown enum number, or a ConfigurationError
            raise WireError(f"not a configuration: {error}") from None

    def digest(self) -> bytes:
        """config_digest = SHA-256(dst(1), canonical bytes); 32 bytes."""
        return hashlib.sha256(dst(Usage.CONFIG_DIGEST, self.protocol) + self.encode()).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregateSum:
    """The opened sum of one session. It is exact, and by itself it is **not** private.

    Attributes:
        vector: sum of the survivors' inputs mod m.
        survivors: U3, ascending: whose inputs are in the sum.
        min_honest: how many of them are honest under the threat model.
        mismatched_pairs: (dealer, holder) pairs whose shares did not fit and were corrected.
        verified: every reconstructed secret matched what its dealer committed to.
        transcript_digest: SHA-256 over the accepted frames in (phase, sender) order; 32 bytes.
    """

    vector: RingVector
    survivors: tuple[ClientId, ...]
    min_honest: int
    mismatched_pairs: tuple[tuple[ClientId, ClientId], ...] = ()
    verified: bool = True
    transcript_digest: bytes = b""
