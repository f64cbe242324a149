"""The ways to sum that ``securefl train`` offers, behind one surface: numbers in, machines out.

The pipeline asks a scheme for the machines of a round and knows no protocol; the engine asks it for
the ring, the name and the facts of the record. The machines are the real ones. Here one process
makes everybody's, keys and identities included, which separates nobody from anybody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from securefl import pipeline
from securefl.config import RunConfig
from securefl.errors import ConfigurationError
from securefl.pipeline import Machines, Peers
from securefl.primitives.field import PRIME
from securefl.primitives.prg import SecureRandom
from securefl.primitives.signing import IdentityKey
from securefl.protocols.lightsecagg.params import LightSecAggParams
from securefl.protocols.lightsecagg.parties import make_parties as make_coded_parties
from securefl.protocols.paillier.params import PaillierParams
from securefl.protocols.peersum.params import PeerSumParams
from securefl.protocols.peersum.parties import make_peers
from securefl.protocols.policy import ClientPolicy
from securefl.protocols.secagg.params import SecAggParams
from securefl.protocols.secagg.parties import make_parties
from securefl.round import Adversary, ClientId, Cohort, RoundId
from securefl.round import Protocol as Wire
from securefl.simulation.paillier import Trust, paillier_session

__all__ = [
    "LightSecAggScheme",
    "PaillierScheme",
    "PeerSumScheme",
    "Scheme",
    "SecAggScheme",
    "scheme_of",
    "secure_sum_facts",
]

_ANY_SERVER = ClientPolicy()


class Scheme(pipeline.Scheme, Protocol):
    """A scheme of the pipeline, and what a simulation records about it."""

    @property
    def name(self) -> str:
        """What hides the inputs, for evidence and records."""

    @property
    def adversary(self) -> Adversary:
        """What the server may do."""

    @property
    def clients_open(self) -> bool:
        """Whether clients are needed after their input: too few of them then lose the round."""

    @property
    def adds_residues(self) -> bool:
        """Whether sums are taken modulo the ring's modulus, and nobody sees them unreduced."""

    def modulus(self, bits: int) -> int:
        """The ring in which integers of ``bits`` bits are summed."""

    def facts(self) -> dict[str, Any]:
        """See :func:`secure_sum_facts`."""


P = TypeVar("P", SecAggParams, LightSecAggParams, PeerSumParams, PaillierParams)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Among(Generic[P]):
    """What follows from a protocol's parameters alike, whichever protocol it is.

    Clients open the sum themselves and add residues; where it is otherwise a scheme says so.
    """

    params: P
    policy: ClientPolicy = _ANY_SERVER

    @property
    def n_min(self) -> int:
        """See :class:`securefl.pipeline.Scheme`."""
        return self.params.n_min

    @property
    def adversary(self) -> Adversary:
        """See :class:`Scheme`."""
        return self.params.threat.adversary

    @property
    def clients_open(self) -> bool:
        """See :class:`Scheme`."""
        return True

    @property
    def adds_residues(self) -> bool:
        """See :class:`Scheme`."""
        return True

    def modulus(self, bits: int) -> int:
        """See :class:`Scheme`."""
        return 1 << bits


@dataclass(frozen=True, slots=True, kw_only=True)
class _InField(_Among[P]):
    """A scheme that sums in GF(2^31-1)."""

    def modulus(self, bits: int) -> int:
        """See :class:`Scheme`; the field, whatever the bits (31 at most)."""
        del bits
        return PRIME

    def check_modulus(self, modulus: int) -> None:
        """Refuses a codec of another ring (ConfigurationError)."""
        if modulus != PRIME:
            protocol = type(self).__name__.removesuffix("Scheme")
            raise ConfigurationError(f"{protocol} sums modulo {PRIME}, the codec modulo {modulus}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SecAggScheme(_Among[SecAggParams]):
    """SecAgg and SecAgg+: pairwise masks.

    Attributes:
        params: graph, thresholds and threat model.
        policy: what every client demands; the default accepts both adversaries.
    """

    @property
    def name(self) -> str:
        """See :class:`Scheme`."""
        return _named("secagg" if self._complete else "secagg+", self.adversary)

    @property
    def _complete(self) -> bool:
        return self.params.protocol is Wire.SECAGG

    def facts(self) -> dict[str, Any]:
        """See :func:`secure_sum_facts`."""
        return _facts(
            self.params,
            graph="complete" if self._complete else "harary",
            degree=self.params.k,
            shares=self.params.t,
        )

    def machines(
        self,
        *,
        round_id: RoundId,
        cohort: Cohort,
        present: Sequence[ClientId],
        length: int,
        modulus: int,
        context_digest: bytes,
        identities: Mapping[ClientId, IdentityKey],
    ) -> Machines:
        """See :class:`securefl.pipeline.Scheme`."""
        config = self.params.config(
            round_id=round_id,
            cohort=cohort,
            m=length,
            b=_bits(modulus),
            context_digest=context_digest,
            server_nonce=SecureRandom().random_bytes(32),
        )
        server, clients = make_parties(
            config,
            present,
            context_digest=context_digest,
            policy=self.policy,
            identities=identities,
            # Drawn after the configuration is fixed, like the public beacon it stands for.
            beacon=SecureRandom().random_bytes(32),
        )
        return Machines(server=server, clients=clients)


@dataclass(frozen=True, slots=True, kw_only=True)
class LightSecAggScheme(_InField[LightSecAggParams]):
    """LightSecAgg: one mask per client, recovered in one step from coded shares.

    Attributes:
        params: U, T and the threat model.
        policy: what every client demands; the default accepts both adversaries.
    """

    @property
    def name(self) -> str:
        """See :class:`Scheme`."""
        return _named("lightsecagg", self.adversary)

    def facts(self) -> dict[str, Any]:
        """See :func:`secure_sum_facts`."""
        return _facts(self.params, shares=self.params.U)

    def machines(
        self,
        *,
        round_id: RoundId,
        cohort: Cohort,
        present: Sequence[ClientId],
        length: int,
        modulus: int,
        context_digest: bytes,
        identities: Mapping[ClientId, IdentityKey],
    ) -> Machines:
        """See :class:`securefl.pipeline.Scheme`."""
        self.check_modulus(modulus)
        config = self.params.config(
            round_id=round_id,
            cohort=cohort,
            m=length,
            context_digest=context_digest,
            server_nonce=SecureRandom().random_bytes(32),
        )
        server, clients = make_coded_parties(
            config,
            present,
            context_digest=context_digest,
            policy=self.policy,
            identities=identities,
        )
        return Machines(server=server, clients=clients)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSumScheme(_InField[PeerSumParams]):
    """Peersum: no server; peers share inputs, agree on a list and reveal sums of shares.

    Attributes:
        params: q, t and the threat model.
        policy: what every peer demands.
    """

    @property
    def name(self) -> str:
        """See :class:`Scheme`."""
        return "peersum"

    def facts(self) -> dict[str, Any]:
        """See :func:`secure_sum_facts`."""
        return _facts(self.params, shares=self.params.t, opened_by="peers")

    def machines(
        self,
        *,
        round_id: RoundId,
        cohort: Cohort,
        present: Sequence[ClientId],
        length: int,
        modulus: int,
        context_digest: bytes,
        identities: Mapping[ClientId, IdentityKey],
    ) -> Peers:
        """See :class:`securefl.pipeline.Scheme`."""
        self.check_modulus(modulus)
        config = self.params.config(
            round_id=round_id,
            cohort=cohort,
            m=length,
            context_digest=context_digest,
            nonce=SecureRandom().random_bytes(32),
        )
        peers = make_peers(
            config,
            present,
            context_digest=context_digest,
            policy=self.policy,
            identities=identities,
        )
        return Peers(clients=peers)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaillierScheme(_Among[PaillierParams]):
    """Paillier: ciphertexts that the server multiplies and others open, under this process's key.

    Attributes:
        trust: who opens.
        params: the crowd and the threat model.
        policy: what every client demands; the default accepts both adversaries.
        threads: in which every holder opens; None: one per processor.
    """

    trust: Trust
    threads: int | None = None

    @property
    def name(self) -> str:
        """See :class:`Scheme`."""
        hybrid = ", experimental hybrid" if self.params.hybrid else ""
        return _named(f"{self.trust}{hybrid}", self.adversary)

    @property
    def clients_open(self) -> bool:
        """See :class:`Scheme`."""
        return False

    @property
    def adds_residues(self) -> bool:
        """See :class:`Scheme`; slots of a ciphertext hold plain numbers."""
        return False

    def facts(self) -> dict[str, Any]:
        """See :func:`secure_sum_facts`."""
        needed, openers = self.trust.openers
        holders = f"{needed} of {openers} share holders"
        return _facts(
            self.params,
            shares=needed,
            opened_by="the key holder" if self.trust is Trust.KEY_HOLDER else holders,
            experimental="hybrid masks of unreviewed lattice parameters"
            if self.params.hybrid
            else "",
        )

    def machines(
        self,
        *,
        round_id: RoundId,
        cohort: Cohort,
        present: Sequence[ClientId],
        length: int,
        modulus: int,
        context_digest: bytes,
        identities: Mapping[ClientId, IdentityKey],
    ) -> Machines:
        """See :class:`securefl.pipeline.Scheme`."""
        made = paillier_session(
            self.trust,
            cohort,
            round_id=round_id,
            alive=self.params.n_min,
            corrupt=self.params.threat.corrupt,
            m=length,
            b=_bits(modulus),
            context_digest=context_digest,
            policy=self.policy,
            experimental_hybrid=self.params.hybrid,
            present=present,
            identities=identities,
            threads=self.threads,
        )
        return Machines(server=made.server, clients=made.clients, parties=made.parties)


def scheme_of(config: RunConfig) -> Scheme:
    """The scheme that a configuration asks for; its clients refuse a server that offers less.

    Raises:
        ConfigurationError: if no safe parameters exist for its numbers.
    """
    params = config.sum_params()
    policy = ClientPolicy(
        adversary=params.threat.adversary,
        experimental_active_graph=config.aggregation.experimental_active_graph,
    )
    match params:
        case SecAggParams():
            return SecAggScheme(params=params, policy=policy)
        case LightSecAggParams():
            return LightSecAggScheme(params=params, policy=policy)
        case PeerSumParams():
            return PeerSumScheme(params=params, policy=policy)
        case PaillierParams():
            return PaillierScheme(
                trust=Trust(config.aggregation.protocol),
                params=params,
                policy=policy,
                threads=config.aggregation.opening_threads,
            )


def secure_sum_facts(config: RunConfig) -> dict[str, Any]:
    """What the secure sum of a run is configured for, for its records.

    Keys: ``adversary``; ``threshold``, the fewest clients alive in every phase; ``graph`` and
    ``degree``, who shares masks with whom ("none" and None where nobody does); ``shares``, how many
    rebuild a secret or open the sum; ``opened_by``, whom that takes besides the server, or "peers"
    where there is none;
    ``assumed_corrupt``, A; ``min_honest``, the fewest honest updates in any opened sum;
    ``experimental``, what about it nobody has proved or reviewed, or an empty text.
    """
    return scheme_of(config).facts()


def _facts(
    params: SecAggParams | LightSecAggParams | PaillierParams | PeerSumParams,
    *,
    shares: int,
    graph: str = "none",
    degree: int | None = None,
    opened_by: str = "clients",
    experimental: str = "",
) -> dict[str, Any]:
    active = params.threat.adversary is Adversary.ACTIVE
    return {
        "adversary": "active" if active else "semi-honest",
        "threshold": params.n_min,
        "graph": graph,
        "degree": degree,
        "shares": shares,
        "opened_by": opened_by,
        "assumed_corrupt": params.threat.corrupt,
        "min_honest": params.min_honest,
        "experimental": experimental,
    }


def _named(protocol: str, adversary: Adversary) -> str:
    """Name of the protocol in evidence and records; the adversary shows if it is the stronger."""
    return protocol + (", active server" if adversary is Adversary.ACTIVE else "")


def _bits(modulus: int) -> int:
    """The b of a ring Z_{2^b}."""
    if modulus & (modulus - 1):
        raise ConfigurationError(f"this protocol sums modulo a power of two, found {modulus}")
    return modulus.bit_length() - 1
