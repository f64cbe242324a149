"""What must hold before a session may start: the constructor's rules and the client's own policy.

So et al. 2022, section 4: N clients, any U of them open the sum of the masks, and T of them learn
nothing about a single mask; the mask is cut into K = U - T blocks of L = ⌈m/K⌉ entries. T is a hard
bound and so is U, but between them there is no wall: with s answers, T < s < U, the adversary knows
s - T linear equations about the blocks of the sum. Against a server that lies it is therefore not
enough that two survivor lists cannot both be *opened*, which holds iff 2U > N + T; an honest client
must not answer at all for a second list. That takes signatures: a client answers for the one list
that it signed, once it has seen U signatures on it, and 2U > N + T leaves room for one such list.
This module knows no keys and no messages.
"""

from __future__ import annotations

from dataclasses import dataclass

from securefl.errors import ConfigurationError
from securefl.protocols.policy import ClientPolicy, check_corruption, check_demands
from securefl.protocols.prime_field import (
    FIELD_BITS,
    check_field_config,
    check_field_sum,
    most_input_bits,
)
from securefl.round import (
    Adversary,
    Cohort,
    Protocol,
    Ring,
    RoundConfig,
    RoundId,
    ThreatModel,
)

__all__ = [
    "FIELD_BITS",
    "LightSecAggParams",
    "block_length",
    "check_config",
    "check_policy",
    "check_sum_fits",
    "guaranteed_honest",
    "most_colluders",
    "most_input_bits",
    "two_lists_possible",
]

_MAX_BODY = (1 << 32) - 1
_TAG_BYTES = 16


def block_length(m: int, *, U: int, T: int) -> int:
    """L = ⌈m/K⌉, K = U - T: entries of one share of a mask for a vector of m entries."""
    return -(-m // (U - T))


def two_lists_possible(N: int, U: int, c: int) -> bool:
    """Whether a lying server with c colluders can gather U answers for each of two lists.

    Each list needs U - c honest answers and every honest client answers once.
    """
    honest_answers = 2 * (U - c)
    return honest_answers <= N - c


def most_colluders(n: int, U: int, adversary: Adversary) -> int:
    """The T that hides most and still lets any U answers open a sum with two honest inputs in it.

    At most half of the cohort: beyond, shares grow and nothing is won against a minority. Below 1
    there is none.

    >>> most_colluders(10, 7, Adversary.SEMI_HONEST), most_colluders(10, 7, Adversary.ACTIVE)
    (5, 3)
    """
    T = min(n // 2, U - 2)
    return T if adversary is Adversary.SEMI_HONEST else min(T, 2 * U - n - 1)


def check_sum_fits(n: int, input_bits: int) -> None:
    """See :func:`~securefl.protocols.prime_field.check_field_sum`."""
    check_field_sum("LightSecAgg", n, input_bits)


@dataclass(frozen=True, slots=True, kw_only=True)
class LightSecAggParams:
    """The numbers of one session.

    Attributes:
        n: N, cohort size.
        U: answers that open the sum of the masks, and fewest clients in it.
        T: clients that together learn nothing about anybody's mask.
        n_min: fewest survivors a client accepts, and fewest that open a sum; at least U.
        threat: adversary, A and D.
    """

    n: int
    U: int
    T: int
    n_min: int
    threat: ThreatModel

    @property
    def blocks(self) -> int:
        """K: blocks that a mask is cut into."""
        return self.U - self.T

    @property
    def min_honest(self) -> int:
        """Fewest honest inputs in any sum that is opened; see :func:`guaranteed_honest`."""
        return self.n_min - self.T

    @classmethod
    def of(
        cls,
        n: int,
        threat: ThreatModel,
        *,
        U: int | None = None,
        T: int | None = None,
        n_min: int | None = None,
    ) -> LightSecAggParams:
        """Parameters for a threat model, the cheapest unless said otherwise.

        Args:
            n: cohort size, at least 3.
            threat: A and D are what the session must survive.
            U: default n - D, the most that D dropouts leave; more blocks, so less to send.
            T: default A.
            n_min: default U.

        Raises:
            ConfigurationError: if the numbers contradict each other; the message has them.
        """
        if U is None:
            U = n - threat.dropped
        params = cls(
            n=n,
            U=U,
            T=threat.corrupt if T is None else T,
            n_min=U if n_min is None else n_min,
            threat=threat,
        )
        _check_numbers(
            n=n,
            U=params.U,
            T=params.T,
            A=threat.corrupt,
            D=threat.dropped,
            n_min=params.n_min,
            adversary=threat.adversary,
        )
        return params

    def config(
        self,
        *,
        round_id: RoundId,
        cohort: Cohort,
        m: int,
        context_digest: bytes,
        server_nonce: bytes,
    ) -> RoundConfig:
        """The session's configuration; the ring is GF(2^31-1).

        Args:
            round_id: the training round.
            cohort: must have n members.
            m: vector length.
            context_digest: 32 bytes; see :class:`~securefl.round.RoundConfig`.
            server_nonce: 32 fresh random bytes.

        Raises:
            ConfigurationError: if the cohort has another size, a field is out of range, or the
                shares fit no frame.
        """
        if len(cohort) != self.n:
            raise ConfigurationError(
                f"these parameters are for {self.n} clients, the cohort has {len(cohort)}"
            )
        _check_frames(self.n, self.U, self.T, m)
        return RoundConfig(
            protocol=Protocol.LIGHTSECAGG,
            adversary=self.threat.adversary,
            round_id=round_id,
            cohort=cohort,
            k=self.U,
            t=self.T,
            A=self.threat.corrupt,
            D=self.threat.dropped,
            n_min=self.n_min,
            m=m,
            ring=Ring.PRIME_FIELD,
            b=FIELD_BITS,
            context_digest=context_digest,
            server_nonce=server_nonce,
        )


def _check_numbers(
    *, n: int, U: int, T: int, A: int, D: int, n_min: int, adversary: Adversary
) -> None:
    """The constructor's rules."""
    given = f"N={n}, U={U}, T={T}, A={A}, D={D}, n_min={n_min}"
    if n < 3:
        raise ConfigurationError(f"a cohort has at least 3 clients, found {n}")
    if T < 1:
        raise ConfigurationError(f"T must be at least 1, or one client opens another ({given})")
    if T < A:
        raise ConfigurationError(
            f"T must be at least A: T + 1 corrupt clients know something of every mask ({given})"
        )
    if U <= T:
        raise ConfigurationError(f"U must exceed T: K = U - T blocks carry the mask ({given})")
    if n - D < U:
        raise ConfigurationError(
            f"after {D} dropouts only {n - D} clients are left to answer, U must not exceed that "
            f"({given}); lower U or plan for fewer dropouts"
        )
    if adversary is Adversary.ACTIVE and two_lists_possible(n, U, T):
        raise ConfigurationError(
            f"against an active server 2U must exceed N + T = {n} + {T}: a lying server could have "
            f"two survivor lists answered, found 2U={2 * U}, least U={(n + T) // 2 + 1} ({given})"
        )
    if not U <= n_min <= n:
        raise ConfigurationError(f"n_min must be in {U}..{n} ({given})")
    if n_min - T < 2:
        raise ConfigurationError(
            f"n_min must leave at least two honest inputs in the sum, n_min - T >= 2 ({given})"
        )


def _check_frames(n: int, U: int, T: int, m: int) -> None:
    L = block_length(m, U=U, T=T)
    body = 4 + (n - 1) * (4 * L + _TAG_BYTES)
    if max(body, 4 * m) > _MAX_BODY:
        raise ConfigurationError(
            f"m={m} entries do not fit: the shares for {n - 1} clients of L={L} entries take "
            f"{body} bytes, a frame has at most {_MAX_BODY}; raise U - T = {U - T} or cut the "
            "vector into several sessions"
        )


def check_config(config: RoundConfig, *, assume_no_corruption: bool = False) -> None:
    """Refuses a configuration that cannot be run safely.

    Args:
        config: as built by the server or received by a client.
        assume_no_corruption: allow A = 0.

    Raises:
        ConfigurationError: with the numbers.
    """
    if config.protocol is not Protocol.LIGHTSECAGG:
        raise ConfigurationError(f"this machine runs LIGHTSECAGG, not {config.protocol.name}")
    check_field_config(config)
    check_corruption(config, assume_no_corruption=assume_no_corruption)
    _check_numbers(
        n=config.n,
        U=config.k,
        T=config.t,
        A=config.A,
        D=config.D,
        n_min=config.n_min,
        adversary=config.adversary,
    )
    _check_frames(config.n, config.k, config.t, config.m)


def check_policy(config: RoundConfig, policy: ClientPolicy) -> None:
    """A client's own check, before it emits anything.

    Raises:
        ConfigurationError: if the configuration is unsafe or weaker than the policy.
    """
    check_config(config, assume_no_corruption=policy.assume_no_corruption)
    check_demands(config, policy)


def guaranteed_honest(config: RoundConfig, survivors: int) -> int:
    """#U3 - T (before the round n_min - T): honest inputs that an opened sum has at least."""
    return survivors - config.t
