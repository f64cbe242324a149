"""What must hold before a session may start: the constructor's rules and the client's own policy.

h clients hold shares of one secret and c of them collude: on the complete graph h = n - 1 and
c = A, on a Harary graph h = k and c = c*, the most colluders that fall among one client's k random
neighbours except with probability 2^-(sigma+1)/n (Bell et al. 2020). With a server that follows the
protocol single inputs stay hidden iff c < t; a server that lies can show two survivor lists, and
both could be opened iff 2t <= h + c (Bonawitz et al. 2017, section 6). These bounds, that enough
holders stay, and that at least two honest inputs are in every sum, are checked here on both sides
from the numbers in the configuration alone. This module knows no keys and no messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import comb, perm

from securefl.errors import ConfigurationError
from securefl.protocols.policy import SIGMA, ClientPolicy, check_corruption, check_demands
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
)
from securefl.wire import packed_bytes

__all__ = [
    "ETA",
    "SIGMA",
    "ClientPolicy",
    "SecAggParams",
    "check_config",
    "check_policy",
    "corrupt_neighbours",
    "dropped_neighbours",
    "guaranteed_honest",
    "ring_stays_connected",
]

ETA = 20
"""Correctness of a random graph: D dropouts lose the round with probability 2^-ETA at most."""

_MAX_BODY = (1 << 32) - 1


@lru_cache(maxsize=1024)
def _upper_quantile(n: int, marked: int, k: int, exponent: int) -> int:
    """min{x: Pr[X > x] <= 2^-exponent / n}, X ~ Hypergeom(n - 1, marked, k), in whole numbers."""
    others = n - 1
    total = comb(others, k)
    x = min(marked, k)
    term = comb(marked, x) * comb(others - marked, k - x)
    tail = 0
    # Invariant: tail counts the draws with more than x marked ones.
    while x > 0 and ((tail + term) * n << exponent) <= total:
        tail += term
        term = term * x * (others - marked - k + x) // ((marked - x + 1) * (k - x + 1))
        x -= 1
    return x


def corrupt_neighbours(n: int, k: int, A: int, *, sigma: int = SIGMA) -> int:
    """c*: the most of A corrupt clients among the k random neighbours of any honest one.

    Except with probability 2^-(sigma+1) over the graph, for all clients together.
    """
    return _upper_quantile(n, min(A, n - 1), k, sigma + 1)


def dropped_neighbours(n: int, k: int, D: int, *, eta: int = ETA) -> int:
    """The most of D dropouts among the k random neighbours of any client, except with 2^-eta."""
    return _upper_quantile(n, min(D, n - 1), k, eta)


def ring_stays_connected(n: int, k: int, missing: int, *, sigma: int = SIGMA) -> bool:
    """Whether the honest survivors of a random Harary ring stay in one piece.

    Args:
        n: cohort size.
        k: neighbours per client.
        missing: corrupt clients and dropouts together.
        sigma: they fall apart with probability below 2^-(sigma+1): a union bound over two runs of
            k/2 missing clients (Bell et al. 2020).
    """
    if k > missing:
        return True
    return n * (n - k - 1) * perm(missing, k) << sigma < perm(n, k)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecAggParams:
    """The numbers of one session.

    Attributes:
        n: cohort size.
        k: neighbours per client; n - 1 is the complete graph (SecAgg), less is SecAgg+.
        t: shares that reconstruct one secret.
        n_min: fewest survivors a client accepts, and fewest that open a sum.
        threat: adversary, A and D.
        layout: who holds shares.
        graph_source: where the value comes from that shapes the graph of SecAgg+.
    """

    n: int
    k: int
    t: int
    n_min: int
    threat: ThreatModel
    layout: Layout = Layout.OTHERS
    graph_source: GraphSource = GraphSource.SERVER

    @property
    def protocol(self) -> Protocol:
        """SecAgg on the complete graph, else SecAgg+."""
        return Protocol.SECAGG if self.k == self.n - 1 else Protocol.SECAGG_PLUS

    @property
    def min_honest(self) -> int:
        """Fewest honest inputs in any sum that is opened; see :func:`guaranteed_honest`."""
        return _honest(self, self.threat.adversary, A=self.threat.corrupt, survivors=self.n_min)

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
        params._check(sigma=SIGMA)
        return params

    @classmethod
    def harary(
        cls,
        n: int,
        threat: ThreatModel,
        *,
        k: int,
        t: int | None = None,
        n_min: int | None = None,
        graph_source: GraphSource | None = None,
        sigma: int = SIGMA,
        eta: int = ETA,
    ) -> SecAggParams:
        """SecAgg+: k neighbours each, on a random ring (Bell et al. 2020).

        Args:
            n: cohort size, at least 4.
            threat: A and D are what the session must survive.
            k: even, 2 <= k <= n - 2.
            t: default the largest that D dropouts leave reachable in every neighbourhood, except
                with probability 2^-eta.
            n_min: default n - D.
            graph_source: default the server's value; against an active server, a beacon.
            sigma: statistical security, see :data:`SIGMA`.
            eta: correctness, see :data:`ETA`.

        Raises:
            ConfigurationError: if the numbers contradict each other; the message has them.
        """
        _check_degree(n, k)
        reachable = k - dropped_neighbours(n, k, threat.dropped, eta=eta)
        active = threat.adversary is Adversary.ACTIVE
        default_source = GraphSource.BEACON if active else GraphSource.SERVER
        params = cls(
            n=n,
            k=k,
            t=reachable if t is None else t,
            n_min=n - threat.dropped if n_min is None else n_min,
            threat=threat,
            graph_source=default_source if graph_source is None else graph_source,
        )
        if params.t > reachable:
            raise ConfigurationError(
                f"{threat.dropped} dropouts among {n} can leave a client with only {reachable} of "
                f"its {k} neighbours (except with probability 2^-{eta}), found t={params.t}; "
                "lower t, raise k or plan for fewer dropouts"
            )
        params._check(sigma=sigma)
        return params

    def _check(self, *, sigma: int) -> None:
        _check_numbers(
            n=self.n,
            k=self.k,
            t=self.t,
            A=self.threat.corrupt,
            D=self.threat.dropped,
            n_min=self.n_min,
            layout=self.layout,
            adversary=self.threat.adversary,
            sigma=sigma,
        )

    def config(
        self,
        *,
        round_id: RoundId,
        cohort: Cohort,
        m: int,
        b: int,
        context_digest: bytes,
        server_nonce: bytes,
        graph_value: bytes = bytes(32),
    ) -> RoundConfig:
        """The session's configuration.

        Args:
            round_id: the training round.
            cohort: must have n members.
            m: vector length.
            b: bits per entry, 1..64.
            context_digest: 32 bytes; see :class:`~securefl.round.RoundConfig`.
            server_nonce: 32 fresh random bytes.
            graph_value: 32 bytes, the server's seed or the beacon's id; zeros for SecAgg.

        Raises:
            ConfigurationError: if the cohort has another size, or a field is out of range.
        """
        if len(cohort) != self.n:
            raise ConfigurationError(
                f"these parameters are for {self.n} clients, the cohort has {len(cohort)}"
            )
        return RoundConfig(
            protocol=self.protocol,
            adversary=self.threat.adversary,
            layout=self.layout,
            graph_source=self.graph_source,
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
            graph_value=graph_value,
        )


def _check_degree(n: int, k: int) -> None:
    if n < 4 or k % 2 or not 2 <= k <= n - 2:
        raise ConfigurationError(
            f"SecAgg+ needs an even number of neighbours in 2..n-2, found k={k}, n={n}; "
            "with k = n - 1 use the complete graph (SecAgg)"
        )


def _check_numbers(
    *,
    n: int,
    k: int,
    t: int,
    A: int,
    D: int,
    n_min: int,
    layout: Layout,
    adversary: Adversary,
    sigma: int,
) -> None:
    """The constructor's rules."""
    given = f"n={n}, k={k}, t={t}, A={A}, D={D}, n_min={n_min}, layout {layout.name}"
    if n < 3:
        raise ConfigurationError(f"a cohort has at least 3 clients, found {n}")
    if k == n - 1:
        c, h, who = A, n - (layout is Layout.OTHERS), "corrupt clients"
        reachable = n - D - (layout is Layout.OTHERS)
    else:
        c = _check_ring(n=n, k=k, A=A, D=D, layout=layout, sigma=sigma, given=given)
        h, reachable, who = k, k, f"corrupt clients among {k} neighbours (c*={c}, sigma={sigma})"
    if t < 2:
        raise ConfigurationError(f"t must be at least 2, or one client alone can unmask ({given})")
    if t <= c:
        raise ConfigurationError(f"t must exceed the number of {who}, or they can unmask ({given})")
    if adversary is Adversary.ACTIVE and 2 * t <= h + c:
        raise ConfigurationError(
            f"against an active server 2t must exceed h + c = {h} + {c}: a lying server could have "
            f"two survivor lists unmasked, found 2t={2 * t}, least t={(h + c) // 2 + 1} ({given})"
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


def _check_ring(*, n: int, k: int, A: int, D: int, layout: Layout, sigma: int, given: str) -> int:
    """The rules that only a sparse graph has. Returns c*."""
    _check_degree(n, k)
    if layout is not Layout.OTHERS:
        raise ConfigurationError(f"own shares exist on the complete graph only ({given})")
    if not ring_stays_connected(n, k, A + D, sigma=sigma):
        raise ConfigurationError(
            f"{A} corrupt clients and {D} dropouts could cut a ring of degree k={k} into parts "
            f"whose sums would be seen one by one (sigma={sigma}, {given}); raise k"
        )
    return corrupt_neighbours(n, k, A, sigma=sigma)


def check_config(
    config: RoundConfig, *, assume_no_corruption: bool = False, sigma: int = SIGMA
) -> None:
    """Refuses a configuration that cannot be run safely.

    Args:
        config: as built by the server or received by a client.
        assume_no_corruption: allow A = 0.
        sigma: statistical security demanded of a random graph.

    Raises:
        ConfigurationError: with the numbers.
    """
    if config.protocol not in (Protocol.SECAGG, Protocol.SECAGG_PLUS):
        raise ConfigurationError(
            f"this machine runs SECAGG and SECAGG_PLUS, not {config.protocol.name}"
        )
    complete = config.k == config.n - 1
    if complete is not (config.protocol is Protocol.SECAGG):
        raise ConfigurationError(
            f"SECAGG is the complete graph, k = n - 1 = {config.n - 1}, SECAGG_PLUS a sparser one; "
            f"found {config.protocol.name} with k={config.k}"
        )
    if complete and config.graph_source is not GraphSource.SERVER:
        raise ConfigurationError("the complete graph takes no beacon: graph source must be SERVER")
    active = config.adversary is Adversary.ACTIVE
    if active and not complete and config.graph_source is not GraphSource.BEACON:
        raise ConfigurationError(
            "SecAgg+ against an active server needs a graph from a public beacon: a server that "
            f"chooses the graph surrounds its target; found source {config.graph_source.name}"
        )
    if config.ring is not Ring.POWER_OF_TWO:
        raise ConfigurationError(
            f"{config.protocol.name} sums in Z_(2^b), found ring {config.ring.name}"
        )
    if packed_bytes(config.m, config.b) > _MAX_BODY:
        raise ConfigurationError(
            f"m={config.m} entries of b={config.b} bits do not fit one frame of {_MAX_BODY} bytes"
        )
    check_corruption(config, assume_no_corruption=assume_no_corruption)
    _check_numbers(
        n=config.n,
        k=config.k,
        t=config.t,
        A=config.A,
        D=config.D,
        n_min=config.n_min,
        layout=config.layout,
        adversary=config.adversary,
        sigma=sigma,
    )


def guaranteed_honest(config: RoundConfig, survivors: int, *, sigma: int = SIGMA) -> int:
    """How many honest inputs are in an opened sum at least.

    Args:
        config: of the session.
        survivors: #U3, or n_min before the round.
        sigma: statistical security of the random graph.

    Returns:
        #U3 - A. SecAgg+ against an active server promises t + 1 - c* only, because a lying server
        may have left out whom it liked (the argument is local to one neighbourhood).
    """
    return _honest(config, config.adversary, A=config.A, survivors=survivors, sigma=sigma)


def _honest(
    numbers: SecAggParams | RoundConfig,
    adversary: Adversary,
    *,
    A: int,
    survivors: int,
    sigma: int = SIGMA,
) -> int:
    if numbers.protocol is Protocol.SECAGG_PLUS and adversary is Adversary.ACTIVE:
        return numbers.t + 1 - corrupt_neighbours(numbers.n, numbers.k, A, sigma=sigma)
    return survivors - A


def check_policy(config: RoundConfig, policy: ClientPolicy) -> None:
    """A client's own check, before it emits anything.

    Raises:
        ConfigurationError: if the configuration is unsafe or weaker than the policy.
    """
    check_config(config, assume_no_corruption=policy.assume_no_corruption, sigma=policy.sigma)
    active = config.adversary is Adversary.ACTIVE
    sparse = config.protocol is Protocol.SECAGG_PLUS
    if active and sparse and not policy.experimental_active_graph:
        raise ConfigurationError(
            "SecAgg+ against an active server has no published proof; a client takes part only "
            "with experimental_active_graph=True in its policy"
        )
    check_demands(config, policy)
