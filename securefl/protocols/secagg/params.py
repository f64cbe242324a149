"""What must hold before a session may start: the constructor's rules and the client's own policy.

With c colluding clients and a server that follows the protocol, single inputs stay hidden iff
c < t (Bonawitz et al. 2017, section 6.2); a result exists iff enough share holders stay. Both
bounds, and that at least two honest inputs are in every sum, are checked here on both sides, from
the numbers in the configuration alone. This module knows no keys and no messages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from securefl.errors import ConfigurationError
from securefl.round import (
    Adversary,
    Cohort,
    GraphSource,
    Layout,
    Protocol,
    Ring,
    RoundConfig,
    RoundId,
    ThreatModel,
    ceil_rate,
)
from securefl.wire import packed_bytes

__all__ = ["ClientPolicy", "SecAggParams", "check_config", "check_policy"]

_MAX_BODY = (1 << 32) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SecAggParams:
    """The numbers of one session.

    Attributes:
        n: cohort size.
        k: neighbours per client.
        t: shares that reconstruct one secret.
        n_min: fewest survivors a client accepts, and fewest that open a sum.
        threat: adversary, A and D.
        layout: who holds shares.
    """

    n: int
    k: int
    t: int
    n_min: int
    threat: ThreatModel
    layout: Layout = Layout.OTHERS

    @classmethod
    def complete(
        cls,
        n: int,
        threat: ThreatModel,
        *,
        t: int | None = None,
        n_min: int | None = None,
        layout: Layout = Layout.OTHERS,
    ) -> SecAggParams:
        """The complete graph with the strongest threshold that still survives D dropouts.

        Args:
            n: cohort size, at least 3.
            threat: A and D are what the session must survive.
            t: default n - 1 - D (``ALL``: n - D), the largest that D dropouts leave reachable.
            n_min: default n - D.
            layout: default: a client holds no share of its own.

        Raises:
            ConfigurationError: if the numbers contradict each other; the message has them.
        """
        reachable = n - threat.dropped - (layout is Layout.OTHERS)
        params = cls(
            n=n,
            k=n - 1,
            t=reachable if t is None else t,
            n_min=n - threat.dropped if n_min is None else n_min,
            threat=threat,
            layout=layout,
        )
        _check_numbers(
            n=n, t=params.t, A=threat.corrupt, D=threat.dropped, n_min=params.n_min, layout=layout
        )
        return params

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
        """The session's configuration.

        Args:
            round_id: the training round.
            cohort: must have n members.
            m: vector length.
            b: bits per entry, 1..64.
            context_digest: 32 bytes; see :class:`~securefl.round.RoundConfig`.
            server_nonce: 32 fresh random bytes.

        Raises:
            ConfigurationError: if the cohort has another size, or a field is out of range.
        """
        if len(cohort) != self.n:
            raise ConfigurationError(
                f"these parameters are for {self.n} clients, the cohort has {len(cohort)}"
            )
        return RoundConfig(
            protocol=Protocol.SECAGG,
            adversary=self.threat.adversary,
            layout=self.layout,
            round_id=round_id,
            cohort=cohort,
            k=self.k,
            t=self.t,
            A=self.threat.corrupt,
            D=self.threat.dropped,
            n_min=self.n_min,
            m=m,
            b=b,
            context_digest=context_digest,
            server_nonce=server_nonce,
        )


def _check_numbers(*, n: int, t: int, A: int, D: int, n_min: int, layout: Layout) -> None:
    """The constructor's rules for the complete graph and a semi-honest server."""
    reachable = n - D - (layout is Layout.OTHERS)
    given = f"n={n}, t={t}, A={A}, D={D}, n_min={n_min}, layout {layout.name}"
    if n < 3:
        raise ConfigurationError(f"a cohort has at least 3 clients, found {n}")
    if t < 2:
        raise ConfigurationError(f"t must be at least 2, or one client alone can unmask ({given})")
    if t <= A:
        raise ConfigurationError(
            f"t must exceed the number of corrupt clients, or they can unmask ({given})"
        )
    if t > reachable:
        raise ConfigurationError(
            f"after {D} dropouts only {reachable} holders of a secret are left, t must not exceed "
            f"that ({given}); lower t or plan for fewer dropouts"
        )
    least = t + (layout is Layout.OTHERS)
    if not least <= n_min <= n:
        raise ConfigurationError(f"n_min must be in {least}..{n} ({given})")
    if n_min - A < 2:
        raise ConfigurationError(
            f"n_min must leave at least two honest inputs in the sum, n_min - A >= 2 ({given})"
        )


def check_config(config: RoundConfig, *, assume_no_corruption: bool = False) -> None:
    """Refuses a configuration that this version cannot run safely.

    Args:
        config: as built by the server or received by a client.
        assume_no_corruption: allow A = 0.

    Raises:
        ConfigurationError: with the numbers.
    """
    if config.protocol is not Protocol.SECAGG:
        raise ConfigurationError(f"this machine runs SECAGG, not {config.protocol.name}")
    if config.adversary is not Adversary.SEMI_HONEST:
        raise ConfigurationError(
            "this version implements the semi-honest adversary only: a server that follows the "
            f"protocol; found {config.adversary.name}"
        )
    if config.k != config.n - 1 or config.graph_source is not GraphSource.SERVER:
        raise ConfigurationError(
            f"this version implements the complete graph only, k = n - 1 = {config.n - 1}; "
            f"found k={config.k}, graph source {config.graph_source.name}"
        )
    if config.ring is not Ring.POWER_OF_TWO:
        raise ConfigurationError(f"SECAGG sums in Z_(2^b), found ring {config.ring.name}")
    if packed_bytes(config.m, config.b) > _MAX_BODY:
        raise ConfigurationError(
            f"m={config.m} entries of b={config.b} bits do not fit one frame of {_MAX_BODY} bytes"
        )
    if config.A == 0 and not assume_no_corruption:
        raise ConfigurationError(
            "A=0 assumes that no client ever colludes with the server; "
            "raise A, or set assume_no_corruption=True on both sides"
        )
    _check_numbers(
        n=config.n, t=config.t, A=config.A, D=config.D, n_min=config.n_min, layout=config.layout
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPolicy:
    """What a client demands of every configuration, whatever the server proposes.

    Attributes:
        adversary: the weakest server it is willing to face unprotected: ``SEMI_HONEST`` accepts
            both kinds of session, ``ACTIVE`` refuses semi-honest ones.
        gamma: at least ⌈γn⌉ clients must be assumed corrupt; in [0, 1].
        n_min: fewest inputs it wants to be hidden among, at least 3.
        assume_no_corruption: accept A = 0 (then γ must be 0).

    Raises:
        ConfigurationError: if γ is no rate or n_min is below 3.
    """

    adversary: Adversary = Adversary.SEMI_HONEST
    gamma: Fraction | str | float = field(default=Fraction(1, 20))
    n_min: int = 3
    assume_no_corruption: bool = False

    def __post_init__(self) -> None:
        ceil_rate(self.gamma, 1)
        if self.n_min < 3:
            raise ConfigurationError(f"a policy's n_min must be at least 3, found {self.n_min}")


def check_policy(config: RoundConfig, policy: ClientPolicy) -> None:
    """A client's own check, before it emits anything.

    Raises:
        ConfigurationError: if the configuration is unsafe or weaker than the policy.
    """
    if config.adversary < policy.adversary:
        raise ConfigurationError(
            f"the policy demands protection against an {policy.adversary.name} server, "
            f"the configuration offers {config.adversary.name}"
        )
    check_config(config, assume_no_corruption=policy.assume_no_corruption)
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
