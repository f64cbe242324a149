"""What a SecureGrid has to know about each protocol, and nothing about vectors.

One session needs numbers (how many must be in the sum, who may be corrupt), a configuration, a
server's machine, and the answer to three questions about a phase: who is asked, do clients train in
it, may it end before everybody has answered. SecAgg's numbers come from its own modules; here are
Paillier's, where some of those asked are not clients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from securefl.flower.plan import TrainIn
from securefl.protocols.paillier import PaillierServer, PaillierTerms, paillier_config
from securefl.protocols.paillier.messages import Phase as PaillierPhase
from securefl.protocols.paillier.params import check_crowd, check_sum_fits
from securefl.protocols.secagg.params import SecAggParams
from securefl.protocols.secagg.server import SecAggServer
from securefl.protocols.secagg.transitions import Phase
from securefl.round import (
    ClientId,
    Cohort,
    RoundConfig,
    RoundId,
    ThreatModel,
)

if TYPE_CHECKING:
    from securefl.flower.paillier_setup import PaillierSetup
    from securefl.primitives.identities import Roster
    from securefl.protocols.machine import ServerMachine

__all__ = ["PaillierNumbers", "decider_nodes", "opens", "server_of", "trains_in"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PaillierNumbers:
    """Of a session under Paillier.

    Attributes:
        setup: key and deciders.
        n: cohort size.
        n_min: fewest inputs in the sum.
        threat: A and D.

    Raises:
        ConfigurationError: unless two honest inputs hide each other in every sum.
    """

    setup: PaillierSetup
    n: int
    n_min: int
    threat: ThreatModel

    def __post_init__(self) -> None:
        check_crowd(self.n, self.n_min, self.threat.corrupt)

    def terms(self, bits: int) -> PaillierTerms:
        """What every party pins, from its own copy of the setup."""
        check_sum_fits(self.n, bits)
        return self.setup.terms(bits=bits, clients=self.n)

    def config(
        self,
        *,
        round_id: RoundId,
        cohort: Cohort,
        m: int,
        b: int,
        context_digest: bytes,
        server_nonce: bytes,
    ) -> RoundConfig:
        """The configuration of one session, as SecAgg's numbers make theirs."""
        return paillier_config(
            self.terms(b),
            round_id=round_id,
            cohort=cohort,
            threat=self.threat,
            m=m,
            b=b,
            context_digest=context_digest,
            server_nonce=server_nonce,
            n_min=self.n_min,
        )


def server_of(
    numbers: SecAggParams | PaillierNumbers, config: RoundConfig, roster: Roster | None
) -> ServerMachine:
    """The server's machine of a session.

    Raises:
        ConfigurationError: if the configuration is unsafe, or identities are missing.
    """
    directory = None if roster is None else roster.directory()
    if isinstance(numbers, SecAggParams):
        return SecAggServer(config, directory=directory)
    assert directory is not None  # noqa: S101  # SecAggConfig demands a roster with a setup
    return PaillierServer(config, terms=numbers.terms(config.b), directory=directory)


def trains_in(phase: str, when: TrainIn) -> bool:
    """Whether clients train in this phase."""
    first = (str(Phase.ADVERTISE_KEYS), str(PaillierPhase.CHECK_IN))
    return phase in (first if when is TrainIn.FIRST else (str(Phase.MASKED_INPUT_COLLECTION),))


def opens(phase: str) -> bool:
    """Whether this phase may end as soon as enough have answered: nobody else adds anything."""
    return phase in (str(Phase.UNMASKING), str(PaillierPhase.CHECKING), str(PaillierPhase.OPENING))


def decider_nodes(
    connected: Iterable[int], members: Mapping[int, ClientId], deciders: Iterable[ClientId]
) -> dict[int, ClientId]:
    """Which connected node is which decider.

    Of two nodes that proved to be one decider the one that was met last counts: a SuperNode that
    was started again has another node id, and the old one is listed for a while.
    """
    wanted, alive = set(deciders), set(connected)
    latest = {client: node for node, client in members.items() if node in alive}
    return {node: client for client, node in latest.items() if client in wanted}
