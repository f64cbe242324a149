"""The numbers that must hold, and what is refused with which words."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from securefl.errors import ConfigurationError
from securefl.protocols.secagg.graph import CompleteGraph, peel
from securefl.protocols.secagg.params import ClientPolicy, SecAggParams, check_config
from securefl.round import ClientId, Cohort, Layout, RoundId, ThreatModel


@given(
    st.integers(3, 40),
    st.integers(1, 40),
    st.integers(0, 40),
    st.integers(0, 41),
    st.integers(0, 41),
    st.sampled_from(Layout),
)
def test_parameters_are_accepted_exactly_when_the_rules_hold(
    n: int, A: int, D: int, t: int, n_min: int, layout: Layout
) -> None:
    """The rules of the constructor, written down a second time as holders and inputs."""
    holders_left = n - D - (1 if layout is Layout.OTHERS else 0)
    safe = t >= 2 and t > A
    opens = t <= holders_left
    accepts = (t + 1 if layout is Layout.OTHERS else t) <= n_min <= n
    hidden = n_min - A >= 2
    threat = ThreatModel(corrupt=A, dropped=D)
    try:
        params = SecAggParams.complete(n, threat, t=t, n_min=n_min, layout=layout)
    except ConfigurationError as error:
        assert not (safe and opens and accepts and hidden)
        assert str(t) in str(error)
        return
    assert safe and opens and accepts and hidden
    config = params.config(
        round_id=RoundId(0),
        cohort=Cohort.of(range(n)),
        m=1,
        b=8,
        context_digest=bytes(32),
        server_nonce=bytes(32),
    )
    check_config(config)
    assert (config.n, config.k, config.t, config.n_min) == (n, n - 1, t, n_min)


@given(st.integers(3, 200), st.integers(1, 60), st.integers(0, 60), st.sampled_from(Layout))
def test_the_default_threshold_is_the_largest_that_survives_the_dropouts(
    n: int, A: int, D: int, layout: Layout
) -> None:
    threat = ThreatModel(corrupt=A, dropped=D)
    try:
        params = SecAggParams.complete(n, threat, layout=layout)
    except ConfigurationError:
        return
    assert params.n_min == n - D
    with pytest.raises(ConfigurationError, match="holders of a secret are left"):
        SecAggParams.complete(n, threat, t=params.t + 1, layout=layout)


def test_parameters_fit_their_cohort_only() -> None:
    params = SecAggParams.complete(5, ThreatModel(corrupt=1, dropped=1))
    with pytest.raises(ConfigurationError, match="for 5 clients, the cohort has 4"):
        params.config(
            round_id=RoundId(0),
            cohort=Cohort.of(range(4)),
            m=1,
            b=8,
            context_digest=bytes(32),
            server_nonce=bytes(32),
        )
    with pytest.raises(ConfigurationError, match="at least 3 clients"):
        SecAggParams.complete(2, ThreatModel(corrupt=1, dropped=0))


@given(st.sets(st.integers(1, 12), max_size=12), st.integers(1, 12), st.sampled_from(Layout))
def test_peeling_leaves_the_largest_set_in_which_everybody_has_t_holders(
    members: set[int], t: int, layout: Layout
) -> None:
    graph = CompleteGraph(Cohort.of(range(1, 13)), layout)
    left = peel([ClientId(u) for u in members], graph, t)
    holders = len(members) - (1 if layout is Layout.OTHERS else 0)
    assert left == (members if holders >= t else set())


@given(st.sets(st.integers(1, 12), min_size=1), st.integers(1, 12), st.sampled_from(Layout))
def test_neighbours_are_symmetric_and_holders_are_counted_right(
    members: set[int], one: int, layout: Layout
) -> None:
    graph = CompleteGraph(Cohort.of(range(1, 13)), layout)
    u = ClientId(one)
    inside = {ClientId(v) for v in members}
    peers = graph.peers(u, inside)
    assert peers == sorted(peers) and u not in peers
    assert all(u in graph.peers(v, {*inside, u}) for v in peers)
    own = 1 if layout is Layout.ALL and u in inside else 0
    assert graph.holder_count(u, inside) == len(peers) + own


def test_a_policy_of_fewer_than_three_inputs_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least 3, found 2"):
        ClientPolicy(n_min=2)
    with pytest.raises(ConfigurationError, match="rate"):
        ClientPolicy(gamma=2)


@given(st.integers(3, 30), st.integers(0, 10))
def test_no_corruption_is_accepted_only_when_said_on_both_sides(n: int, D: int) -> None:
    assume(n - D - 1 >= 2)
    threat = ThreatModel(corrupt=0, dropped=D, assume_no_corruption=True)
    config = SecAggParams.complete(n, threat).config(
        round_id=RoundId(0),
        cohort=Cohort.of(range(n)),
        m=1,
        b=8,
        context_digest=bytes(32),
        server_nonce=bytes(32),
    )
    with pytest.raises(ConfigurationError, match="assume_no_corruption"):
        check_config(config)
    check_config(config, assume_no_corruption=True)


def test_at_least_two_honest_inputs_are_in_every_sum() -> None:
    """Only with own shares can n_min = t = A + 1 happen: a single honest input would be opened."""
    threat = ThreatModel(corrupt=2, dropped=2)
    with pytest.raises(ConfigurationError, match="two honest inputs"):
        SecAggParams.complete(5, threat, t=3, n_min=3, layout=Layout.ALL)
    assert SecAggParams.complete(5, threat, t=3, n_min=4, layout=Layout.ALL).n_min == 4
