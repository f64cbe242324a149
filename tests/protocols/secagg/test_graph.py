"""The neighbour graph against its definition, written down a second time without cleverness."""

from __future__ import annotations

import os
from collections import Counter
from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.errors import ConfigurationError
from securefl.protocols.secagg.graph import CompleteGraph, Edges, HararyGraph, peel
from securefl.protocols.secagg.params import (
    SecAggParams,
    corrupt_neighbours,
    dropped_neighbours,
    guaranteed_honest,
    ring_stays_connected,
)
from securefl.round import Adversary, ClientId, Cohort, Layout, RoundConfig, RoundId, ThreatModel

RINGS = st.integers(4, 16).flatmap(
    lambda n: st.tuples(
        st.just(n), st.sampled_from(range(2, n - 1, 2)), st.binary(min_size=32, max_size=32)
    )
)
MANY = ThreatModel(corrupt=1, dropped=0)


def ring(n: int, k: int, seed: bytes) -> HararyGraph:
    return HararyGraph(Cohort.of(range(5, 5 + n)), k, seed)


@given(RINGS)
def test_the_ring_is_regular_symmetric_and_connected(case: tuple[int, int, bytes]) -> None:
    n, k, seed = case
    graph = ring(n, k, seed)
    ids = graph.cohort.ids
    for u in ids:
        peers = graph.peers(u, ids)
        assert len(set(peers)) == k and u not in peers and peers == sorted(peers)
        assert all(u in graph.peers(v, ids) for v in peers)
        array = np.array(ids)
        assert array[graph.positions(u, array)].tolist() == peers
        assert graph.holder_count(u, set(ids)) == k == graph.holders
    assert graph.fragments(set(ids), k) is None


def components(graph: HararyGraph, members: set[ClientId]) -> int:
    left, count = set(members), 0
    while left:
        count += 1
        stack = [left.pop()]
        while stack:
            near = set(graph.peers(stack.pop(), left))
            left -= near
            stack += near
    return count


@given(RINGS, st.data())
def test_a_survivor_list_is_whole_exactly_if_a_search_reaches_everybody(
    case: tuple[int, int, bytes], data: st.DataObject
) -> None:
    n, k, seed = case
    graph = ring(n, k, seed)
    members = data.draw(st.sets(st.sampled_from(graph.cohort.ids)))
    t = data.draw(st.integers(0, k))
    whole = (
        bool(members)
        and components(graph, members) == 1
        and min(len(graph.peers(u, members)) for u in members) >= t
    )
    assert (graph.fragments(members, t) is None) is whole


@given(RINGS, st.data())
def test_peeling_leaves_the_largest_set_in_which_everybody_has_t_neighbours(
    case: tuple[int, int, bytes], data: st.DataObject
) -> None:
    n, k, seed = case
    graph = ring(min(n, 10), min(k, 4 if n > 5 else 2), seed)
    members = data.draw(st.sets(st.sampled_from(graph.cohort.ids)))
    t = data.draw(st.integers(1, 4))
    good = [
        set(part)
        for size in range(len(members) + 1)
        for part in combinations(sorted(members), size)
        if all(len(graph.peers(u, part)) >= t for u in part)
    ]
    assert peel(members, graph, t) == max(good, key=len)


def test_another_seed_gives_another_ring_and_the_same_seed_the_same() -> None:
    seed = os.urandom(32)
    assert ring(40, 4, seed)._ring == ring(40, 4, seed)._ring
    assert ring(40, 4, seed)._ring != ring(40, 4, os.urandom(32))._ring


def test_every_client_is_a_neighbour_equally_often() -> None:
    """600 rings of 7, k = 2: each pair is joined in a third; at 5 sigma 1 false alarm in 10^5."""
    seen: Counter[tuple[int, int]] = Counter()
    for i in range(600):
        graph = ring(7, 2, i.to_bytes(32, "big"))
        seen.update((u, v) for u in graph.cohort for v in graph.peers(u, graph.cohort.ids) if u < v)
    assert len(seen) == 21
    assert all(abs(count - 200) < 5 * (600 * 2 / 9) ** 0.5 for count in seen.values())


@pytest.mark.parametrize("own", [False, True])
@given(st.data())
def test_edges_are_the_pairs_of_dealer_and_holder_from_both_ends(
    own: bool, data: st.DataObject
) -> None:
    n = data.draw(st.integers(4, 9))
    cohort = Cohort.of(range(n))
    graph = data.draw(
        st.sampled_from([CompleteGraph(cohort, Layout.OTHERS), HararyGraph(cohort, 2, b"s" * 32)])
    )
    subset = st.sets(st.sampled_from(cohort.ids)).map(sorted)
    dealers, holders = data.draw(subset), data.draw(subset)
    edges = Edges(graph, dealers, holders, own=own)
    pairs = [
        (d, h) for d in dealers for h in holders if h in graph.peers(d, holders) or (own and d == h)
    ]
    assert len(edges) == len(pairs)
    found = [(dealers[i], holders[j]) for i, j in zip(edges.dealer, edges.holder, strict=True)]
    assert found == pairs
    for i, d in enumerate(dealers):
        assert found[edges.of_dealer(i)] == [p for p in pairs if p[0] == d]
        assert edges.counts[i] == len([p for p in pairs if p[0] == d])
    for j, h in enumerate(holders):
        assert [found[e] for e in edges.of_holder(j)] == [p for p in pairs if p[1] == h]


# -- how many of a client's neighbours are bad ----------------------------------------------------


def worst(n: int, k: int, bad: int, bound: Fraction) -> int:
    """Straight from the definition, in fractions."""
    total = comb(n - 1, k)

    def more_than(x: int) -> Fraction:
        return Fraction(
            sum(comb(bad, i) * comb(n - 1 - bad, k - i) for i in range(x + 1, k + 1)), total
        )

    return next(x for x in range(k + 1) if more_than(x) <= bound)


@given(st.data())
def test_bad_neighbours_equal_the_definition_in_fractions(data: st.DataObject) -> None:
    n = data.draw(st.integers(4, 30))
    k = data.draw(st.sampled_from(range(2, n - 1, 2)))
    bad, exponent = data.draw(st.integers(0, n - 1)), data.draw(st.integers(1, 45))
    bound = Fraction(1, n << exponent)
    assert dropped_neighbours(n, k, bad, eta=exponent) == worst(n, k, bad, bound)
    assert corrupt_neighbours(n, k, bad, sigma=exponent - 1) == worst(n, k, bad, bound)


def test_the_union_bound_of_connectivity_equals_the_definition_in_fractions() -> None:
    for n in range(4, 25):
        for k in range(2, n - 1, 2):
            for missing in range(n):
                runs = Fraction(comb(n - k, n - missing), comb(n, missing)) if missing >= k else 0
                safe = missing < k or n * (n - k - 1) * runs / 2 < Fraction(1, 1 << 11)
                assert ring_stays_connected(n, k, missing, sigma=10) is safe


@pytest.mark.parametrize(
    ("n", "A", "D", "k", "c", "t_max"),
    [
        (100, 5, 10, 16, 5, 7), (100, 5, 33, 28, 5, 7), (100, 20, 10, 32, 20, 22),
        (100, 33, 33, 68, 33, 35), (100, 10, 10, 32, 10, 22), (100, 5, 33, 72, 5, 39),
        (1000, 50, 100, 36, 18, 19), (1000, 50, 330, 72, 23, 24), (1000, 200, 100, 68, 43, 44),
        (1000, 330, 330, 286, 149, 151), (1000, 50, 50, 52, 20, 37),
        (1000, 100, 100, 96, 37, 67), (1000, 50, 330, 398, 46, 223),
    ],
)  # fmt: skip
def test_rows_that_were_worked_out_by_hand(
    n: int, A: int, D: int, k: int, c: int, t_max: int
) -> None:
    assert corrupt_neighbours(n, k, A) == c
    assert k - dropped_neighbours(n, k, D) == t_max
    assert ring_stays_connected(n, k, A + D)
    params = SecAggParams.harary(n, ThreatModel(corrupt=A, dropped=D), k=k)
    assert params.t == t_max


# -- what the constructor refuses -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "k", "A", "D", "t", "what"),
    [
        (20, 7, 1, 1, None, "even number"),
        (20, 20, 1, 1, None, "even number"),
        (20, 0, 1, 1, None, "even number"),
        (3, 2, 1, 0, None, "even number"),
        (20, 6, 2, 1, 2, r"t must exceed .* 6 neighbours \(c\*=2"),
        (20, 6, 1, 2, 5, "only 4 of its 6 neighbours"),
        (20, 6, 3, 3, None, "could cut a ring of degree k=6"),
        (20, 6, 1, 4, 2, None),
    ],
)
def test_a_ring_that_is_unsafe_is_refused(
    n: int, k: int, A: int, D: int, t: int | None, what: str | None
) -> None:
    threat = ThreatModel(corrupt=A, dropped=D)
    if what is None:
        assert SecAggParams.harary(n, threat, k=k, t=t).t == 2
        return
    with pytest.raises(ConfigurationError, match=what):
        SecAggParams.harary(n, threat, k=k, t=t)


def test_against_an_active_server_2t_must_exceed_h_plus_c_and_a_self_share_counts() -> None:
    """n=100, k=72, c*=5: 2t = 78 is enough for 72 holders and would not be for 73."""
    threat = ThreatModel(adversary=Adversary.ACTIVE, corrupt=5, dropped=33)
    assert SecAggParams.harary(100, threat, k=72, t=39).t == 39
    with pytest.raises(ConfigurationError, match=r"2t must exceed h \+ c = 72 \+ 5.*2t=76"):
        SecAggParams.harary(100, threat, k=72, t=38)
    small = ThreatModel(adversary=Adversary.ACTIVE, corrupt=2, dropped=1)
    assert SecAggParams.complete(9, small, t=6).t == 6
    with pytest.raises(ConfigurationError, match=r"h \+ c = 8 \+ 2: .* least t=6"):
        SecAggParams.complete(9, small, t=5)
    with pytest.raises(ConfigurationError, match=r"h \+ c = 9 \+ 3"):
        own = ThreatModel(adversary=Adversary.ACTIVE, corrupt=3, dropped=1)
        SecAggParams.complete(9, own, t=6, layout=Layout.ALL)


def test_honest_inputs_that_are_promised() -> None:
    def config_of(params: SecAggParams) -> RoundConfig:
        return params.config(
            round_id=RoundId(0), cohort=Cohort.of(range(params.n)), m=1, b=8,
            context_digest=bytes(32), server_nonce=bytes(32),
        )  # fmt: skip

    semi, active = (
        ThreatModel(adversary=adversary, corrupt=5, dropped=5) for adversary in Adversary
    )
    assert guaranteed_honest(config_of(SecAggParams.harary(100, semi, k=16)), 95) == 90
    assert guaranteed_honest(config_of(SecAggParams.complete(100, active)), 95) == 90
    ring_active = SecAggParams.harary(100, active, k=16)
    assert ring_active.t == 11
    assert guaranteed_honest(config_of(ring_active), 95) == 11 + 1 - 5
