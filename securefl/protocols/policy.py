"""What a client demands before it takes part, whatever the protocol and whatever the server says.

Each protocol checks its own numbers in its ``params``; here are the demands that all of them share,
and against an active server the question whether everybody in the cohort is somebody known.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from fractions import Fraction

from securefl.errors import ConfigurationError
from securefl.primitives.signing import IdentityDirectory, IdentityKey
from securefl.round import Adversary, ClientId, RoundConfig, ceil_rate

__all__ = [
    "SIGMA",
    "ClientPolicy",
    "check_corruption",
    "check_demands",
    "check_identities",
    "check_membership",
]

SIGMA = 40
"""Statistical security of a random graph: what it promises fails with probability 2^-SIGMA."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPolicy:
    """What a client demands of every configuration, whatever the server proposes.

    Attributes:
        adversary: the weakest server it is willing to face unprotected: ``SEMI_HONEST`` accepts
            both kinds of session, ``ACTIVE`` refuses semi-honest ones.
        gamma: at least ⌈γn⌉ clients must be assumed corrupt; in [0, 1].
        n_min: fewest inputs it wants to be hidden among, at least 3.
        assume_no_corruption: accept A = 0 (then γ must be 0).
        sigma: statistical security demanded of a random neighbour graph, at least 1.
        experimental_active_graph: accept SecAgg+ against an active server, for which there is an
            argument and no published proof.

    Raises:
        ConfigurationError: if γ is no rate, n_min is below 3 or sigma below 1.
    """

    adversary: Adversary = Adversary.SEMI_HONEST
    gamma: Fraction | str | float = field(default=Fraction(1, 20))
    n_min: int = 3
    assume_no_corruption: bool = False
    sigma: int = SIGMA
    experimental_active_graph: bool = False

    def __post_init__(self) -> None:
        ceil_rate(self.gamma, 1)
        if self.sigma < 1:
            raise ConfigurationError(f"a policy's sigma must be at least 1, found {self.sigma}")
        if self.n_min < 3:
            raise ConfigurationError(f"a policy's n_min must be at least 3, found {self.n_min}")


def check_corruption(config: RoundConfig, *, assume_no_corruption: bool) -> None:
    """A = 0 is a decision and no default.

    Raises:
        ConfigurationError: if the configuration has it and nobody decided it.
    """
    if config.A == 0 and not assume_no_corruption:
        raise ConfigurationError(
            "A=0 assumes that no client ever colludes with the server; "
            "raise A, or set assume_no_corruption=True on both sides"
        )


def check_membership(u: ClientId, config: RoundConfig, context_digest: bytes) -> None:
    """The client must be in the cohort, and mean by the sum what the configuration means.

    Args:
        u: the client.
        config: as received.
        context_digest: 32 bytes, as the client computed it from what it received itself.

    Raises:
        ConfigurationError: if not.
    """
    if u not in config.cohort:
        raise ConfigurationError(f"client {u} is not in the cohort of this round")
    if not hmac.compare_digest(context_digest, config.context_digest):
        raise ConfigurationError(
            f"client {u} works on another context (model, codec or plan) than the "
            "configuration says: nothing is sent, because sums of different things mean nothing"
        )


def check_demands(config: RoundConfig, policy: ClientPolicy) -> None:
    """Whether the configuration promises what the policy demands.

    Raises:
        ConfigurationError: if it is weaker than the policy.
    """
    if config.adversary < policy.adversary:
        raise ConfigurationError(
            f"the policy demands protection against an {policy.adversary.name} server, "
            f"the configuration offers {config.adversary.name}"
        )
    least = ceil_rate(policy.gamma, config.n)
    if least > config.A:
        raise ConfigurationError(
            f"the policy assumes at least {least} corrupt clients among {config.n} "
            f"(gamma={policy.gamma}), the configuration A={config.A}"
        )
    if config.n_min < policy.n_min:
        raise ConfigurationError(
            f"the policy hides among at least {policy.n_min} inputs, "
            f"the configuration allows n_min={config.n_min}"
        )


def check_identities(
    u: ClientId,
    config: RoundConfig,
    identity: IdentityKey | None,
    directory: IdentityDirectory | None,
) -> None:
    """Everybody in the cohort, and this client with its own key, must be somebody known.

    Raises:
        ConfigurationError: if not.
    """
    if identity is None or directory is None:
        raise ConfigurationError(
            "against an active server a client needs its identity key and the directory of "
            "everybody's identities; give identity= and directory="
        )
    unknown = [v for v in config.cohort if v not in directory]
    if unknown:
        raise ConfigurationError(
            f"{len(unknown)} of the cohort have no identity in the directory, first {unknown[:3]}: "
            "the server may have invented them"
        )
    if directory.public(u) != identity.public:
        raise ConfigurationError(f"the directory lists another identity key for client {u}")
