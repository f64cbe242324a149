"""What must hold before a session may start: the constructor's rules and a peer's own policy.

n peers, of whom at most A do anything they like. t sums of shares open the sum and A < t learn
nothing; q signatures on one survivor list let it be opened. A list with q signatures has at least
q - A honest signers, an honest peer signs one list, and so **2q > n + A** leaves room for one list
with q signatures. This module knows no keys and no messages.
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
    "PeerSumParams",
    "check_config",
    "check_policy",
    "check_sum_fits",
    "guaranteed_honest",
    "least_quorum",
    "most_corrupt",
    "most_input_bits",
    "two_lists_possible",
]

_MAX_BODY = (1 << 32) - 1


def two_lists_possible(n: int, q: int, c: int) -> bool:
    """Whether c peers that sign everything can bring two lists to q signatures each.

    Each list needs q - c honest signatures, and every honest peer signs once.
    """
    honest_signatures = 2 * max(0, q - c)
    return honest_signatures <= n - c


def least_quorum(n: int, c: int) -> int:
    """The smallest q with 2q > n + c.

    >>> least_quorum(10, 1), least_quorum(10, 3)
    (6, 7)
    """
    return (n + c) // 2 + 1


def most_corrupt(n: int, alive: int) -> int:
    """The largest A that a session bears of which this many stay; below 1 there is none.

    >>> most_corrupt(10, 7), most_corrupt(3, 3)
    (3, 1)
    """
    return min(2 * alive - n - 1, alive - 2)


def check_sum_fits(n: int, input_bits: int) -> None:
    """See :func:`~securefl.protocols.prime_field.check_field_sum`."""
    check_field_sum("peersum", n, input_bits)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSumParams:
    """The numbers of one session.

    Attributes:
        n: cohort size.
        q: signatures that a survivor list needs before anybody reveals anything for it.
        t: sums of shares that open the sum; t - 1 peers that only listen learn nothing.
        n_min: fewest survivors a peer accepts.
        threat: A, the peers that may do anything, and D. The adversary is always active.
    """

    n: int
    q: int
    t: int
    n_min: int
    threat: ThreatModel

    @property
    def min_honest(self) -> int:
        """Fewest honest inputs in any sum that is opened; see :func:`guaranteed_honest`."""
        return self.n_min - self.threat.corrupt

    @classmethod
    def of(
        cls,
        n: int,
        *,
        corrupt: int,
        dropped: int,
        t: int | None = None,
        q: int | None = None,
        n_min: int | None = None,
        assume_no_corruption: bool = False,
    ) -> PeerSumParams:
        """Parameters for A corrupt peers and D dropouts; the most secret ones unless told.

        Args:
            n: cohort size, at least 3.
            corrupt: A, peers that may do anything.
            dropped: D, peers that may be missing at the end.
            t: default n - D, the most that D dropouts leave: then t - 1 peers that only pool what
                they have seen learn nothing. Smaller values leave room to correct wrong sums of
                shares: a sum counts as verified if t + A of them fit.
            q: default max(t, ⌊(n + A)/2⌋ + 1).
            n_min: default n - D.
            assume_no_corruption: allow A = 0.

        Raises:
            ConfigurationError: if the numbers contradict each other; the message has them.

        >>> params = PeerSumParams.of(10, corrupt=1, dropped=3)
        >>> params.q, params.t, params.n_min, params.min_honest
        (7, 7, 7, 6)
        """
        threat = ThreatModel(
            adversary=Adversary.ACTIVE,
            corrupt=corrupt,
            dropped=dropped,
            assume_no_corruption=assume_no_corruption,
        )
        if t is None:
            t = n - dropped
        params = cls(
            n=n,
            q=max(t, least_quorum(n, corrupt)) if q is None else q,
            t=t,
            n_min=n - dropped if n_min is None else n_min,
            threat=threat,
        )
        _check_numbers(n=n, q=params.q, t=t, A=corrupt, D=dropped, n_min=params.n_min)
        return params

    def check_length(self, m: int) -> None:
        """Refuses a vector of m entries that fits no frame (ConfigurationError)."""
        _check_frames(self.n, m)

    def config(
        self,
        *,
        round_id: RoundId,
        cohort: Cohort,
        m: int,
        context_digest: bytes,
        nonce: bytes,
    ) -> RoundConfig:
        """The session's configuration; the ring is GF(2^31-1).

        Args:
            round_id: the training round.
            cohort: must have n members.
            m: vector length.
            context_digest: 32 bytes; see :class:`~securefl.round.RoundConfig`.
            nonce: 32 fresh random bytes, from whichever peer proposes the session. The digest of
                the result names the session, and no peer enters one twice.

        Raises:
            ConfigurationError: if the cohort has another size, a field is out of range, or a
                vector fits no frame.
        """
        if len(cohort) != self.n:
            raise ConfigurationError(
                f"these parameters are for {self.n} peers, the cohort has {len(cohort)}"
            )
        self.check_length(m)
        return RoundConfig(
            protocol=Protocol.PEERSUM,
            adversary=Adversary.ACTIVE,
            round_id=round_id,
            cohort=cohort,
            k=self.q,
            t=self.t,
            A=self.threat.corrupt,
            D=self.threat.dropped,
            n_min=self.n_min,
            m=m,
            ring=Ring.PRIME_FIELD,
            b=FIELD_BITS,
            context_digest=context_digest,
            server_nonce=nonce,
        )


def _check_numbers(*, n: int, q: int, t: int, A: int, D: int, n_min: int) -> None:
    """The constructor's rules."""
    given = f"n={n}, q={q}, t={t}, A={A}, D={D}, n_min={n_min}"
    if n < 3:
        raise ConfigurationError(f"a cohort has at least 3 peers, found {n}")
    if t < 2 or t <= A:
        raise ConfigurationError(
            f"t must be at least 2 and exceed A: t peers together open any single input ({given})"
        )
    if t > q:
        raise ConfigurationError(
            f"t must not exceed q: with fewer than t peers left nothing can be opened ({given})"
        )
    if two_lists_possible(n, q, A):
        raise ConfigurationError(
            f"2q must exceed n + A = {n + A}: lying peers could have two survivor lists signed and "
            f"their difference opened, found 2q={2 * q}, least q={least_quorum(n, A)} ({given})"
        )
    if n - D < q:
        raise ConfigurationError(
            f"after {D} dropouts only {n - D} peers are left to sign, q must not exceed that "
            f"({given}); plan for fewer dropouts or fewer corrupt peers"
        )
    if not n_min <= n - D:
        raise ConfigurationError(
            f"n_min must be at most n - D = {n - D}, or planned dropouts end every round ({given})"
        )
    if n_min - A < 2:
        raise ConfigurationError(
            f"n_min must leave at least two honest inputs in the sum, n_min - A >= 2 ({given})"
        )


def _check_frames(n: int, m: int) -> None:
    body = 2 * -(-n // 8) + 64 * n + 4 * m + 16
    if body > _MAX_BODY:
        raise ConfigurationError(
            f"m={m} entries do not fit: a frame would have {body} bytes, the most is {_MAX_BODY}; "
            "cut the vector into several sessions"
        )


def check_config(config: RoundConfig, *, assume_no_corruption: bool = False) -> None:
    """Refuses a configuration that cannot be run safely.

    Args:
        config: as built or received by a peer.
        assume_no_corruption: allow A = 0.

    Raises:
        ConfigurationError: with the numbers.
    """
    if config.protocol is not Protocol.PEERSUM:
        raise ConfigurationError(f"this machine runs PEERSUM, not {config.protocol.name}")
    if config.adversary is not Adversary.ACTIVE:
        raise ConfigurationError(
            "PEERSUM always signs: its adversary is ACTIVE, found "
            f"{config.adversary.name}; build configurations with PeerSumParams"
        )
    check_field_config(config)
    check_corruption(config, assume_no_corruption=assume_no_corruption)
    _check_numbers(n=config.n, q=config.k, t=config.t, A=config.A, D=config.D, n_min=config.n_min)
    _check_frames(config.n, config.m)


def check_policy(config: RoundConfig, policy: ClientPolicy) -> None:
    """A peer's own check, before it emits anything.

    Raises:
        ConfigurationError: if the configuration is unsafe or weaker than the policy.
    """
    check_config(config, assume_no_corruption=policy.assume_no_corruption)
    check_demands(config, policy)


def guaranteed_honest(config: RoundConfig, survivors: int) -> int:
    """Survivors less A (before the round n_min - A): honest inputs that an opened sum has."""
    return survivors - config.A
