"""Bridges: nothing of another library's faults comes in through them."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pytest

from accounting import (
    ZCDP,
    Adjacency,
    Compose,
    DiscreteGaussian,
    Event,
    FixedSize,
    Gaussian,
    Group,
    InvalidEvent,
    InvalidParameter,
    Laplace,
    NonPrivate,
    Poisson,
    RDPAccountant,
    Repeat,
    Select,
    Skellam,
    Tree,
    UnsupportedEvent,
    epsilon,
)
from accounting.interop.flower import BACKEND, FlowerAccountant

ADD, ZERO, REPLACE = Adjacency.ADD_REMOVE, Adjacency.ZERO_OUT, Adjacency.REPLACE_ONE
G = Gaussian(noise_multiplier=1.0)
pytestmark = pytest.mark.filterwarnings("ignore::accounting.errors.OrderAtEdgeWarning")


# --- dp-accounting ------------------------------------------------------------------------------


@pytest.fixture
def dp() -> Any:
    return pytest.importorskip("dp_accounting", reason="dp-accounting is not installed")


@pytest.fixture
def bridge(dp: Any) -> Any:
    import accounting.interop.dp_accounting as module

    return module


@pytest.mark.parametrize(
    ("event", "adjacency"),
    [
        (G, ADD),
        (Repeat(event=Poisson(sample_rate=0.1, event=G), count=9), ADD),
        (Compose(events=(Laplace(b=3.0), NonPrivate(), ZCDP(rho=0.1, adjacency=ZERO))), ZERO),
        (Tree(noise_multiplier=2.0, steps=9, participations=1, min_sep=1), ZERO),
        (Select(event=G, poisson_mean=3.0), ADD),
    ],
)
def test_events_survive_the_way_there_and_back(
    bridge: Any, event: Event, adjacency: Adjacency
) -> None:
    theirs = bridge.to_event(event, adjacency=adjacency)
    assert bridge.from_event(theirs, adjacency=adjacency) == event


@pytest.mark.parametrize(("k", "rate"), [(2, 0.05), (7, 0.3), (40, 1e-3)])
def test_a_sampled_group_is_a_mixture_there_and_comes_back(
    bridge: Any, k: int, rate: float
) -> None:
    sample = Poisson(sample_rate=rate, event=G)
    theirs = bridge.to_event(Group(k=k, event=sample), adjacency=ADD, accountant="pld")
    back = bridge.from_event(theirs, adjacency=ADD)
    assert (back.k, back.event.event) == (k, G)
    assert back.event.sample_rate == pytest.approx(rate, rel=1e-9)
    one = bridge.to_event(Group(k=1, event=sample), adjacency=ADD, accountant="pld")
    assert bridge.from_event(one, adjacency=ADD) == sample


def test_their_distribution_of_a_sampled_group_agrees_through_the_bridge(bridge: Any) -> None:
    from dp_accounting import pld

    from accounting.pld import pld_epsilon

    group = Group(k=2, event=Poisson(sample_rate=0.05, event=Gaussian(noise_multiplier=1.5)))
    theirs = pld.PLDAccountant(bridge.relation(ADD), value_discretization_interval=1e-2)
    theirs.compose(bridge.to_event(Repeat(event=group, count=20), adjacency=ADD, accountant="pld"))
    ours = pld_epsilon(Repeat(event=group, count=20), 1e-5, adjacency=ADD, width=1e-2).value
    assert theirs.get_epsilon(1e-5) == pytest.approx(ours, rel=1e-6)


def test_mixtures_that_are_no_sampled_group_are_refused(dp: Any, bridge: Any) -> None:
    mixture = dp.dp_event.MixtureOfGaussiansDpEvent
    for theirs in (
        mixture(1.0, [0.0, 1.0, 2.0], [0.5, 0.3, 0.2]),  # not binomial
        mixture(1.0, [0.0, 2.0], [0.5, 0.5]),
        mixture(1.0, [0.0], [1.0]),
        mixture(1.0, [0.0, 1.0], [0.7, 0.7]),
        mixture(1.0, [0.0, 1.0], [math.nan, 0.5]),
    ):
        with pytest.raises(UnsupportedEvent, match="binomial"):
            bridge.from_event(theirs, adjacency=ADD)
    with pytest.raises(InvalidEvent):
        bridge.from_event(mixture(math.nan, [0.0, 1.0], [0.5, 0.5]), adjacency=ADD)


def test_a_selection_comes_back_with_the_same_or_more_runs(bridge: Any) -> None:
    for eta, gamma in ((1.0, 0.2), (0.0, 0.05), (3.0, 0.5)):
        event = Select(event=G, eta=eta, gamma=gamma)
        back = bridge.from_event(bridge.to_event(event, adjacency=ADD), adjacency=ADD)
        assert back.eta == eta
        assert back.gamma == pytest.approx(gamma, rel=1e-9)


@pytest.mark.parametrize(
    ("event", "adjacency"),
    [
        (Repeat(event=Poisson(sample_rate=0.02, event=G), count=100), ADD),
        (Repeat(event=Gaussian(noise_multiplier=8.0), count=30), REPLACE),
        (
            Repeat(
                event=FixedSize(
                    population=4_000_000, cohort=20_000, event=Gaussian(noise_multiplier=0.8)
                ),
                count=2000,
            ),
            REPLACE,
        ),
        (Repeat(event=ZCDP(rho=0.01, adjacency=ADD), count=20), ADD),
        (Select(event=Gaussian(noise_multiplier=5.0), eta=1.0, gamma=0.1), ADD),
        (Select(event=Gaussian(noise_multiplier=5.0), poisson_mean=20.0), ADD),
    ],
)
def test_their_rdp_accountant_agrees_through_the_bridge(
    dp: Any, bridge: Any, event: Event, adjacency: Adjacency
) -> None:
    from dp_accounting import rdp

    theirs = rdp.RdpAccountant(neighboring_relation=bridge.relation(adjacency))
    theirs.compose(bridge.to_event(event, adjacency=adjacency, accountant="rdp"))
    expected = theirs.get_epsilon(2.5e-7)
    ours = epsilon(event, 2.5e-7, adjacency=adjacency, method="rdp").value
    assert ours <= expected * (1 + 1e-6) + 1e-9
    assert ours >= expected * 0.97


def test_their_rdp_under_replace_one_is_not_too_small_through_the_bridge(
    dp: Any, bridge: Any
) -> None:
    """Upstream: the sensitivity is not doubled, 4.73 where 9.997 is exact."""
    from dp_accounting import pld, rdp

    def by_rdp(event: Any) -> float:
        accountant = rdp.RdpAccountant(neighboring_relation=bridge.relation(REPLACE))
        return float(accountant.compose(event).get_epsilon(1e-5))

    exact = epsilon(G, 1e-5, adjacency=REPLACE).value
    direct = by_rdp(dp.dp_event.GaussianDpEvent(1.0))
    assert direct == pytest.approx(4.73, abs=0.01)  # once this fails, drop the halving
    assert by_rdp(bridge.to_event(G, adjacency=REPLACE, accountant="rdp")) >= exact
    tight = pld.PLDAccountant(bridge.relation(REPLACE))
    tight.compose(bridge.to_event(G, adjacency=REPLACE, accountant="pld"))
    assert tight.get_epsilon(1e-5) == pytest.approx(exact, rel=1e-3)


def test_a_lost_count_of_randomised_response_does_not_come_in(dp: Any, bridge: Any) -> None:
    """Upstream: 100 runs cost as much as one in the distribution."""
    from dp_accounting import pld

    event = dp.dp_event.RandomizedResponseDpEvent(0.5, 2)
    theirs = pld.PLDAccountant(bridge.relation(REPLACE)).compose(event, 100)
    assert theirs.get_epsilon(0.0) < 2
    with pytest.raises(UnsupportedEvent):
        bridge.from_event(dp.dp_event.SelfComposedDpEvent(event, 100), adjacency=REPLACE)


@pytest.mark.parametrize("noise", [math.nan, -1.0, math.inf])
def test_what_they_take_for_a_noise_multiplier_is_refused_here(
    dp: Any, bridge: Any, noise: float
) -> None:
    """Upstream: NaN noise gives epsilon 0."""
    with pytest.raises(InvalidEvent):
        bridge.from_event(dp.dp_event.GaussianDpEvent(noise), adjacency=ADD)
    assert bridge.from_event(dp.dp_event.GaussianDpEvent(0.0), adjacency=ADD) == NonPrivate()


def test_a_delta_of_two_is_refused_here() -> None:
    """Upstream: it gives epsilon 0."""
    for method in ("rdp", "pld", "exact", "auto"):
        with pytest.raises(InvalidParameter, match="delta"):
            epsilon(G, 2.0, adjacency=ADD, method=method)


def test_sampled_zcdp_is_never_handed_over(dp: Any, bridge: Any) -> None:
    """Upstream (development version): it is taken for a Gaussian there."""
    event = Poisson(sample_rate=0.1, event=ZCDP(rho=1.0, adjacency=ADD))
    for which in ("rdp", "pld"):
        found = bridge.to_event(event, adjacency=ADD, accountant=which)
        assert found == dp.dp_event.UnsupportedDpEvent()


def test_what_has_no_counterpart_is_unsupported_there_and_refused_here(
    dp: Any, bridge: Any
) -> None:
    from dp_accounting import rdp

    for event in (
        Skellam(mu=9, l2=1, l1=1),
        Poisson(sample_rate=0.1, event=Laplace(b=1)),
        DiscreteGaussian(sigma=3, l2=1),
        Tree(noise_multiplier=2.0, steps=9, participations=2, min_sep=1),
        Group(k=2, event=Poisson(sample_rate=0.1, event=G)),  # their RDP knows no mixtures
    ):
        theirs = bridge.to_event(Repeat(event=event, count=3), adjacency=ZERO)
        assert theirs.event == dp.dp_event.UnsupportedDpEvent()
        assert not rdp.RdpAccountant().supports(theirs)
    for theirs in (
        dp.dp_event.UnsupportedDpEvent(),
        dp.dp_event.NoOpDpEvent(),
        dp.dp_event.ZCDpEvent(1.0, 0.5),
        dp.dp_event.TruncatedSubsampledGaussianDpEvent(100, 0.1, 12, 1.0),
        dp.dp_event.DiscreteLaplaceDpEvent(1.0, 1),
        dp.dp_event.SampledWithReplacementDpEvent(10, 2, dp.dp_event.GaussianDpEvent(1.0)),
        "GaussianDpEvent",
    ):
        with pytest.raises(UnsupportedEvent):
            bridge.from_event(theirs, adjacency=ADD)


# --- Opacus -------------------------------------------------------------------------------------


@pytest.fixture
def opacus() -> Any:
    pytest.importorskip("opacus", reason="Opacus is not installed")
    import accounting.interop.opacus as module

    return module


def test_opacus_finds_the_accountant_by_name_and_it_agrees_with_ours(opacus: Any) -> None:
    from opacus import PrivacyEngine
    from opacus.accountants.utils import get_noise_multiplier

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about secure_mode
        engine = PrivacyEngine(accountant="securefl")
    assert isinstance(engine.accountant, opacus.SecureFLAccountant)
    for z, q, steps in ((1.1, 0.01, 100), (1.1, 0.01, 50), (2.0, 0.02, 10)):
        for _ in range(steps):
            engine.accountant.step(noise_multiplier=z, sample_rate=q)
    assert engine.accountant.history == [(1.1, 0.01, 150), (2.0, 0.02, 10)]
    assert len(engine.accountant) == 160
    ours = RDPAccountant(adjacency=ADD)
    ours.compose(Poisson(sample_rate=0.01, event=Gaussian(noise_multiplier=1.1)), 150)
    ours.compose(Poisson(sample_rate=0.02, event=Gaussian(noise_multiplier=2.0)), 10)
    assert engine.get_epsilon(1e-5) == pytest.approx(ours.epsilon(1e-5).value, rel=1e-12)
    assert engine.get_epsilon(1e-5) <= opacus.their_epsilon(
        "rdp", engine.accountant.history, 1e-5
    ) * (1 + 1e-9)
    z = get_noise_multiplier(
        target_epsilon=1.0, target_delta=1e-5, sample_rate=0.01, steps=1000, accountant="securefl"
    )
    assert z == pytest.approx(1.513, abs=0.02)


def test_opacus_rates_above_one_and_nan_are_refused(opacus: Any) -> None:
    accountant = opacus.SecureFLAccountant()
    assert accountant.get_epsilon(1e-5) == 0.0
    for z, q in ((1.0, 1.5), (1.0, math.nan), (math.nan, 0.1), (-1.0, 0.1), (1.0, 0.0)):
        with pytest.raises(InvalidEvent):
            accountant.step(noise_multiplier=z, sample_rate=q)
    assert len(accountant) == 0
    accountant.step(noise_multiplier=0.0, sample_rate=0.1)
    assert math.isinf(accountant.get_epsilon(1e-5))


def test_an_opacus_checkpoint_with_fewer_steps_is_refused(opacus: Any) -> None:
    accountant, other = opacus.SecureFLAccountant(), opacus.SecureFLAccountant()
    for one, steps in ((accountant, 5), (other, 3)):
        for _ in range(steps):
            one.step(noise_multiplier=1.0, sample_rate=0.1)
    with pytest.raises(InvalidParameter, match="already taken"):
        accountant.load_state_dict(other.state_dict())
    assert len(accountant) == 5
    other.load_state_dict(accountant.state_dict())
    assert other.history == accountant.history
    bad = {"mechanism": "securefl", "history": [(math.nan, 0.1, 9)]}
    with pytest.raises(InvalidEvent):
        accountant.load_state_dict(bad)
    with pytest.raises(ValueError, match="mechanism"):
        accountant.load_state_dict({"mechanism": "rdp", "history": []})
    assert len(accountant) == 5


# --- Flower -------------------------------------------------------------------------------------


class Relation(StrEnum):
    ADD_OR_REMOVE_ONE = "add-or-remove-one"
    REPLACE_ONE = "replace-one"


@dataclass(frozen=True)
class Config:
    """The shape of Flower's PrivacyConfig."""

    target_delta: float = 1e-5
    population_size: int = 1000
    neighboring_relation: Any = Relation.ADD_OR_REMOVE_ONE
    sampling_method: Any = "poisson"
    max_epsilon: float | None = 2.0


@dataclass(frozen=True)
class Round:
    """The shape of Flower's GaussianPrivacyEvent."""

    noise_multiplier: float = 1.0
    sample_size: int = 50
    population_size: int = 1000


def test_flowers_protocol_is_answered_with_our_costs() -> None:
    accountant = FlowerAccountant(Config())
    accountant.compose(Round(), 20)
    accountant.compose(Round(noise_multiplier=2.0))
    expected = RDPAccountant(adjacency=ADD)
    expected.compose(Poisson(sample_rate=0.05, event=G), 20)
    expected.compose(Poisson(sample_rate=0.05, event=Gaussian(noise_multiplier=2.0)))
    bound = expected.epsilon(1e-5)
    assert accountant.num_releases == 21
    assert accountant.get_epsilon(1e-5) == bound.value
    assert accountant.get_delta(2.0) == expected.delta(2.0).delta
    spent = accountant.get_privacy_spent()
    assert (spent.epsilon, spent.delta, spent.num_releases) == (bound.value, 1e-5, 21)
    assert spent.optimal_order == bound.order
    limit = accountant.get_epsilon(1e-5)
    assert accountant.would_exceed(Round(), limit)
    assert not accountant.would_exceed(Round(), limit + 1)
    assert accountant.num_releases == 21


def test_under_replace_one_the_sensitivity_is_doubled_for_flower_too() -> None:
    config = Config(neighboring_relation="replace-one", sampling_method="without-replacement")
    accountant = FlowerAccountant(config)
    accountant.compose(Round(noise_multiplier=4.0), 3)
    event = FixedSize(population=1000, cohort=50, event=Gaussian(noise_multiplier=4.0))
    expected = epsilon(Repeat(event=event, count=3), 1e-5, adjacency=REPLACE, method="rdp")
    assert accountant.get_epsilon(1e-5) == expected.value
    plain = FlowerAccountant(Config(sampling_method="no-amplification"))
    plain.compose(Round(noise_multiplier=4.0), 3)
    expected = epsilon(
        Repeat(event=Gaussian(noise_multiplier=4.0), count=3), 1e-5, adjacency=ADD, method="rdp"
    )
    assert plain.get_epsilon(1e-5) == expected.value


def test_flower_states_are_read_and_written_and_never_shrink() -> None:
    accountant, other = FlowerAccountant(Config()), FlowerAccountant(Config())
    accountant.compose(Round(), 5)
    state = json.loads(json.dumps(accountant.state_dict()))
    assert (state["schema_version"], state["backend"]) == (1, BACKEND)
    other.load_state_dict(state)
    assert other.get_epsilon(1e-5) == accountant.get_epsilon(1e-5)
    other.load_state_dict({**state, "backend": "rdp", "orders": [2.0, 3.0]})
    accountant.compose(Round())
    for bad in (
        state,  # fewer releases
        {**state, "backend": "other"},
        {**state, "schema_version": 2},
        {**state, "config": {**state["config"], "population_size": 5}},
        {**state, "compositions": [{"event": {"noise_multiplier": 1.0}, "count": 9}]},
        {**state, "compositions": 3},
    ):
        with pytest.raises(InvalidParameter):
            accountant.load_state_dict(bad)
    assert accountant.num_releases == 6


def test_impossible_flower_configurations_and_events_are_refused() -> None:
    for config in (
        Config(sampling_method="shuffle"),
        Config(neighboring_relation="any"),
        Config(neighboring_relation="replace-one"),
        Config(target_delta=0.0),
    ):
        with pytest.raises(InvalidParameter):
            FlowerAccountant(config)
    accountant = FlowerAccountant(Config(max_epsilon=None, sampling_method="no-amplification"))
    for event in (Round(noise_multiplier=math.nan), Round(sample_size=2000), Round(sample_size=0)):
        with pytest.raises(InvalidEvent):
            accountant.compose(event)
    with pytest.raises(InvalidParameter, match="population"):
        accountant.compose(Round(population_size=999))
    with pytest.raises(InvalidParameter, match="max_epsilon"):
        accountant.would_exceed(Round())
    assert accountant.num_releases == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert accountant.get_epsilon(1e-5) == 0.0
