"""Events: what can be built, what can be written, and what is refused."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting import (
    ZCDP,
    AccountingError,
    Adjacency,
    ApproxDP,
    BandedMF,
    Compose,
    DiscreteGaussian,
    DistributedDiscreteGaussian,
    Event,
    FixedSize,
    Gaussian,
    Group,
    Hierarchical,
    InvalidEvent,
    InvalidParameter,
    Laplace,
    NoiseShares,
    NonPrivate,
    Over,
    Poisson,
    PureDP,
    RDPAccountant,
    Repeat,
    Select,
    Shuffled,
    Skellam,
    Tree,
    calibrate,
    digest,
    dump,
    epsilon,
    interval,
    intervals,
    parse,
    pld,
    rounded_sensitivity,
)
from accounting.events import MAX_DEPTH, MAX_NODES, from_json, leaves, to_json
from accounting.pld import pld_supports

positive = st.floats(min_value=5e-324, max_value=1.7e308, allow_subnormal=True)
rates = st.floats(min_value=0, max_value=1, exclude_min=True)
counts = st.integers(1, 1 << 53)


adjacencies = st.sampled_from(list(Adjacency))
small_counts = st.integers(1, 1000)


def _wider(children: st.SearchStrategy[Event]) -> st.SearchStrategy[Event]:
    return st.one_of(
        st.builds(Group, k=counts, event=children),
        st.builds(Hierarchical, p_client=rates, steps=counts, event=children),
        st.builds(
            FixedSize,
            population=st.integers(100, 1 << 53),
            cohort=st.integers(1, 100),
            event=children,
        ),
        st.builds(
            NoiseShares,
            planned=counts,
            survivors=st.integers(11, 1 << 53),
            colluding=st.integers(0, 10),
            event=children,
        ),
        st.builds(Select, eta=st.floats(-0.9, 1e3), gamma=rates, event=children),
        st.builds(Select, poisson_mean=positive, event=children),
        st.builds(Shuffled, batches=counts, epochs=counts, reshuffle=st.booleans(), event=children),
        st.builds(Poisson, sample_rate=rates, event=children),
        st.builds(Repeat, event=children, count=counts),
        st.builds(Compose, events=st.lists(children, min_size=1, max_size=4).map(tuple)),
    )


events = st.recursive(
    st.one_of(
        st.builds(Gaussian, noise_multiplier=positive),
        st.builds(NonPrivate),
        st.builds(Laplace, b=positive),
        st.builds(PureDP, epsilon=positive, adjacency=adjacencies),
        st.builds(ZCDP, rho=positive, adjacency=adjacencies),
        st.builds(ApproxDP, epsilon=positive, delta=st.floats(0, 0.999), adjacency=adjacencies),
        st.builds(DiscreteGaussian, sigma=positive, l2=positive),
        st.builds(Skellam, mu=positive, l2=positive, l1=positive),
        st.builds(
            DistributedDiscreteGaussian,
            sigma_share=positive,
            shares=counts,
            l2=positive,
            l1=positive,
            dim=counts,
        ),
        st.builds(
            Tree,
            noise_multiplier=positive,
            steps=st.integers(1000, 1 << 53),
            participations=st.integers(1, 10),
            min_sep=st.integers(1, 100),
        ),
        st.builds(
            BandedMF,
            noise_multiplier=positive,
            bands=st.integers(1, 100),
            steps=st.integers(1000, 1 << 53),
            participations=st.integers(1, 10),
            sample_rate=st.none() | rates,
        ),
    ),
    _wider,
    max_leaves=12,
)


@given(events)
def test_parse_inverts_dump(event: Event) -> None:
    text = dump(event)
    assert parse(text) == event
    assert dump(parse(text)) == text
    assert parse(text.encode()) == event


@settings(max_examples=100, deadline=None)
@given(
    events,
    adjacencies,
    st.one_of(st.floats(), st.integers(), st.sampled_from([5e-324, 1e-5, 0.5, 1 - 2**-53])),
    st.one_of(st.floats(), st.sampled_from([0, 10**400, 1.0])),
    st.sampled_from([1, 3, 1 << 53, 10**400]),
)
@pytest.mark.filterwarnings("ignore::accounting.errors.OrderAtEdgeWarning")
def test_whatever_is_asked_the_answer_is_a_number_or_our_error(
    event: Event, adjacency: Adjacency, delta: float, value: float, count: int
) -> None:
    def answers(ask: Callable[[], float]) -> None:
        try:
            assert ask() >= 0  # and so no NaN
        except AccountingError:
            return

    accountant = RDPAccountant(adjacency=adjacency)
    try:
        accountant.compose(event, count)
    except AccountingError:
        assert accountant.events == ()
    answers(lambda: epsilon(event, delta, adjacency=adjacency, method="rdp").value)
    answers(lambda: epsilon(event, delta, adjacency=adjacency, method="exact").value)
    answers(lambda: accountant.epsilon(delta).value)
    answers(lambda: accountant.delta(value).delta)
    answers(lambda: accountant.epsilon_at(value, delta).value)
    answers(lambda: float(pld_supports(event, adjacency)))


gaussians = st.builds(Gaussian, noise_multiplier=positive)
sampled = st.builds(Poisson, sample_rate=rates, event=gaussians)
with_intervals = st.one_of(
    st.builds(Shuffled, batches=counts, epochs=counts, reshuffle=st.booleans(), event=gaussians),
    st.builds(
        Repeat,
        count=counts,
        event=st.one_of(
            gaussians,
            st.builds(Hierarchical, p_client=rates, steps=counts, event=gaussians | sampled),
            st.builds(
                FixedSize,
                population=st.integers(100, 1 << 53),
                cohort=st.integers(1, 100),
                event=gaussians,
            ),
        ),
    ),
)
with_distributions = st.builds(
    Repeat,
    count=counts,
    event=st.one_of(
        sampled,
        st.builds(Poisson, sample_rate=rates, event=st.builds(Laplace, b=positive)),
        st.builds(DiscreteGaussian, sigma=positive, l2=st.floats(0.5, 1.4)),
        st.builds(Group, k=counts, event=sampled),
    ),
)


@settings(max_examples=100, deadline=None)
@given(
    events | with_intervals,
    adjacencies,
    st.one_of(st.floats(), st.sampled_from([5e-324, 1e-5, 0.5, 1 - 2**-53])),
)
@pytest.mark.filterwarnings("ignore::accounting.errors.OrderAtEdgeWarning")
def test_whatever_is_asked_both_ends_of_an_interval_are_numbers_in_order(
    event: Event, adjacency: Adjacency, delta: float
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "_MAX_CELLS", 1 << 12)  # the refusal of larger grids, but sooner
        try:
            found = interval(event, delta, adjacency=adjacency)
        except AccountingError:
            return
    assert 0 <= found.lower.value <= found.upper.value


@settings(max_examples=60, deadline=None)
@given(
    events | with_distributions,
    adjacencies,
    st.one_of(st.floats(), st.sampled_from([5e-324, 1e-5, 0.5])),
)
def test_whatever_is_asked_a_distribution_gives_a_number_or_our_error(
    event: Event, adjacency: Adjacency, delta: float
) -> None:
    pytest.importorskip("dp_accounting", reason="dp-accounting (extra pld) is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pld, "MAX_CELLS", 20_000)  # the refusal of larger grids, but sooner
        try:
            found = pld.pld_epsilon(event, delta, adjacency=adjacency, width=1e-1)
        except AccountingError:
            return
    assert found.value >= 0


@settings(max_examples=60, deadline=None)
@given(
    events,
    adjacencies,
    st.one_of(st.floats(), st.sampled_from([1e-300, 1.0, 1e6])),
    st.one_of(st.floats(), st.sampled_from([5e-324, 1e-5, 0.5])),
    st.sampled_from(list(Over)),
)
@pytest.mark.filterwarnings("ignore::accounting.errors.OrderAtEdgeWarning")
def test_whatever_is_calibrated_the_target_is_met_or_refused(
    event: Event, adjacency: Adjacency, target: float, delta: float, over: Over
) -> None:
    makers: dict[Over, Callable[[Any], Event]] = {
        Over.NOISE_MULTIPLIER: lambda z: Compose(events=(event, Gaussian(noise_multiplier=z))),
        Over.STEPS: lambda n: Repeat(event=event, count=n),
        Over.SAMPLE_RATE: lambda q: Poisson(sample_rate=q, event=event),
        Over.COHORT: lambda m: FixedSize(population=1000, cohort=m, event=event),
    }
    try:
        found = calibrate(makers[over], target, delta, adjacency=adjacency, over=over)
    except AccountingError:
        return
    assert found.achieved.value <= target
    again = epsilon(makers[over](found.value), delta, adjacency=adjacency, method="rdp")
    assert again.value <= target


@given(events, adjacencies, st.sampled_from(["rdp", "pld"]))
def test_whatever_crosses_the_bridge_comes_back_or_is_refused(
    event: Event, adjacency: Adjacency, accountant: Literal["rdp", "pld"]
) -> None:
    pytest.importorskip("dp_accounting", reason="dp-accounting (extra pld) is not installed")
    from accounting.interop.dp_accounting import from_event, to_event

    theirs = to_event(event, adjacency=adjacency, accountant=accountant)
    try:
        back = from_event(theirs, adjacency=adjacency)
    except AccountingError:
        return
    assert parse(dump(back)) == back


anything = st.one_of(
    st.floats(),
    st.integers(),
    st.sampled_from([10**400, -(10**400), 5e-324, 1e308, None, "1", True, 1j, Decimal(1), 2.5]),
)


@settings(max_examples=200)
@given(anything, anything, anything)
def test_whatever_is_rounded_its_norms_are_numbers_or_refused(
    clip: Any, scale: Any, dim: Any
) -> None:
    try:
        l2, l1 = rounded_sensitivity(clip, scale, dim)
    except InvalidParameter:
        return
    assert isinstance(dim, int)
    assert 0 < l2 < math.inf
    assert 0 < l1 < math.inf
    assert l2 >= clip * scale


@given(events)
def test_the_digest_is_sha256_of_sorted_spaceless_json(event: Event) -> None:
    again = json.dumps(json.loads(dump(event)), sort_keys=True, separators=(",", ":"))
    assert digest(event) == hashlib.sha256(again.encode()).hexdigest()


def test_the_json_spells_fields_as_opacus_does() -> None:
    event = Repeat(event=Poisson(sample_rate=0.01, event=Gaussian(noise_multiplier=1.1)), count=100)
    assert json.loads(dump(event)) == {
        "type": "repeat",
        "count": 100,
        "event": {
            "type": "poisson",
            "sample_rate": 0.01,
            "event": {"type": "gaussian", "noise_multiplier": 1.1},
        },
    }


def test_equal_values_give_equal_events_whatever_number_type_they_came_in() -> None:
    event = Gaussian(noise_multiplier=2.0)
    for value in (2, np.float64(2), np.float32(2), np.int64(2), Fraction(2)):
        assert Gaussian(noise_multiplier=value) == event  # type: ignore[arg-type]  # numpy numbers are allowed at run time
        assert type(Gaussian(noise_multiplier=value).noise_multiplier) is float  # type: ignore[arg-type]  # as above
    assert type(Repeat(event=event, count=np.int64(3)).count) is int  # type: ignore[arg-type]  # as above


@pytest.mark.parametrize(
    "value",
    [0, -1.0, math.nan, math.inf, -math.inf, True, "1", None, 1j, Decimal(1), 10**400, [1.0]],
)
def test_impossible_noise_multipliers_are_refused(value: object) -> None:
    with pytest.raises(InvalidEvent):
        Gaussian(noise_multiplier=value)  # type: ignore[arg-type]  # that is the test


BAD_NUMBERS = [math.nan, math.inf, -math.inf, -1.0, True, "1", None, 1j, Decimal(1), [1.0]]
SOUND = {
    Laplace: {"b": 1.0},
    PureDP: {"epsilon": 1.0, "adjacency": "zero-out"},
    ZCDP: {"rho": 1.0, "adjacency": "zero-out"},
    ApproxDP: {"epsilon": 1.0, "delta": 1e-6, "adjacency": "zero-out"},
    DiscreteGaussian: {"sigma": 1.0, "l2": 1.0},
    Skellam: {"mu": 1.0, "l2": 1.0, "l1": 1.0},
    DistributedDiscreteGaussian: {
        "sigma_share": 1.0,
        "shares": 3,
        "l2": 1.0,
        "l1": 1.0,
        "dim": 3,
    },
    Tree: {"noise_multiplier": 1.0, "steps": 9, "participations": 2, "min_sep": 2},
    BandedMF: {"noise_multiplier": 1.0, "bands": 2, "steps": 9, "participations": 2},
    FixedSize: {"population": 9, "cohort": 3, "event": NonPrivate()},
    Hierarchical: {"p_client": 0.5, "steps": 3, "event": NonPrivate()},
    Shuffled: {"batches": 3, "epochs": 2, "event": NonPrivate(), "reshuffle": True},
    Group: {"k": 2, "event": NonPrivate()},
    NoiseShares: {"planned": 5, "survivors": 4, "colluding": 1, "event": NonPrivate()},
    Select: {"poisson_mean": 2.0, "event": NonPrivate()},
}


SAMPLES: dict[type[Event], Event] = {
    Gaussian: Gaussian(noise_multiplier=1.0),
    Poisson: Poisson(sample_rate=0.5, event=NonPrivate()),
    Repeat: Repeat(event=NonPrivate(), count=2),
    Compose: Compose(events=(NonPrivate(),)),
}


@pytest.mark.parametrize("cls", SOUND)
def test_every_field_of_every_event_refuses_what_is_no_value_of_it(cls: type[Event]) -> None:
    cls(**SOUND[cls])
    for name, value in SOUND[cls].items():
        for bad in BAD_NUMBERS:
            if value is bad or (value is True and bad is True):
                continue
            with pytest.raises(InvalidEvent, match=name):
                cls(**{**SOUND[cls], name: bad})
        if isinstance(value, int) and not isinstance(value, bool):
            with pytest.raises(InvalidEvent, match=name):
                cls(**{**SOUND[cls], name: (1 << 53) + 1})


@pytest.mark.parametrize("cls", [Gaussian, Poisson, Repeat, Compose, *SOUND])
def test_no_key_may_be_left_out_of_the_json_even_if_its_field_has_a_default(
    cls: type[Event],
) -> None:
    """A claim that is silent about colluders would be read as one without any."""
    body = to_json(SAMPLES.get(cls) or cls(**SOUND[cls]))
    assert from_json(body) == from_json(json.loads(json.dumps(body)))
    free = {"eta", "gamma"} if cls is Select else set()  # the sample has poisson_mean
    for name in body.keys() - free:
        less = {key: value for key, value in body.items() if key != name}
        with pytest.raises(InvalidEvent):
            from_json(less)
    for name in free:
        assert from_json({key: v for key, v in body.items() if key != name}) == from_json(body)


@pytest.mark.parametrize("value", [0, -0.1, 1.0000001, 2, math.nan, math.inf, True, "0.5", None])
def test_impossible_sample_rates_are_refused(value: object) -> None:
    with pytest.raises(InvalidEvent):
        Poisson(sample_rate=value, event=NonPrivate())  # type: ignore[arg-type]  # that is the test


@pytest.mark.parametrize("value", [0, -1, 1.0, 2.5, True, "3", None, (1 << 53) + 1])
def test_impossible_counts_are_refused(value: object) -> None:
    with pytest.raises(InvalidEvent):
        Repeat(event=NonPrivate(), count=value)  # type: ignore[arg-type]  # that is the test


@pytest.mark.parametrize("value", [(), None, NonPrivate(), (NonPrivate(), 3), "ab", {1: 2}])
def test_a_composition_needs_at_least_one_event_and_only_events(value: object) -> None:
    with pytest.raises(InvalidEvent):
        Compose(events=value)  # type: ignore[arg-type]  # that is the test


@pytest.mark.parametrize("inner", [None, 1.0, "gaussian", Gaussian, {"type": "non-private"}])
def test_only_events_go_into_events(inner: object) -> None:
    with pytest.raises(InvalidEvent):
        Poisson(sample_rate=0.5, event=inner)  # type: ignore[arg-type]  # that is the test


def test_a_subclass_of_an_event_is_not_an_event() -> None:
    class Cheaper(Gaussian):
        pass

    with pytest.raises(InvalidEvent, match="known cost"):
        Cheaper(noise_multiplier=1.0)


def test_events_cannot_be_changed_after_they_were_checked() -> None:
    event = Gaussian(noise_multiplier=1.0)
    with pytest.raises(AttributeError):
        event.noise_multiplier = 100.0  # type: ignore[misc]  # that is the test
    with pytest.raises((AttributeError, TypeError)):
        event.label = "x"  # type: ignore[attr-defined]  # slots: no room for anything else


G = '{"type":"gaussian","noise_multiplier":1.0}'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "3",
        '"gaussian"',
        "{}",
        '{"type":"gaussian"}',
        '{"noise_multiplier":1.0}',
        '{"type":"laplace","scale":1.0}',
        '{"type":"noise-shares","event":' + G + ',"planned":3,"survivors":2,"colluding":2}',
        '{"type":"noise-shares","event":' + G + ',"planned":3,"survivors":2,"colluding":0.0}',
        '{"type":"fixed-size","event":' + G + ',"population":3,"cohort":4}',
        '{"type":"shuffled","event":' + G + ',"batches":3,"epochs":4,"reshuffle":1}',
        '{"type":"pure-dp","epsilon":1.0,"adjacency":"any"}',
        '{"type":"pure-dp","epsilon":1.0,"adjacency":["zero-out"]}',
        '{"type":"pure-dp","epsilon":1.0}',
        '{"type":"approx-dp","epsilon":1.0,"delta":1.0,"adjacency":"zero-out"}',
        '{"type":"select","event":' + G + ',"eta":1.0}',
        '{"type":"select","event":' + G + ',"eta":-1.0,"gamma":0.5}',
        '{"type":"select","event":' + G + ',"eta":1.0,"gamma":0.5,"poisson_mean":2.0}',
        '{"type":"tree","noise_multiplier":1.0,"steps":5,"participations":3,"min_sep":3}',
        '{"type":"banded-mf","noise_multiplier":1.0,"bands":3,"steps":5,"participations":3}',
        '{"type":["gaussian"],"noise_multiplier":1.0}',
        '{"type":null}',
        '{"type":"gaussian","noise_multiplier":NaN}',
        '{"type":"gaussian","noise_multiplier":Infinity}',
        '{"type":"gaussian","noise_multiplier":-Infinity}',
        '{"type":"gaussian","noise_multiplier":1e999}',
        '{"type":"gaussian","noise_multiplier":0}',
        '{"type":"gaussian","noise_multiplier":true}',
        '{"type":"gaussian","noise_multiplier":"1.0"}',
        '{"type":"gaussian","noise_multiplier":null}',
        '{"type":"gaussian","noise_multiplier":1.0,"noise_multiplier":9.0}',
        '{"type":"gaussian","noise_multiplier":1.0,"comment":"x"}',
        '{"type":"gaussian","noise_multiplier":1.0} ' + G,
        '{"type":"gaussian","noise_multiplier":1.0,}',
        '{"type":"repeat","event":' + G + ',"count":1.0}',
        '{"type":"repeat","event":' + G + ',"count":0}',
        '{"type":"repeat","event":' + G + ',"count":1' + "0" * 5000 + "}",
        '{"type":"repeat","event":[' + G + '],"count":2}',
        '{"type":"compose","events":[]}',
        '{"type":"compose","events":' + G + "}",
        '{"type":"compose","events":[null]}',
        '{"type":"poisson","sample_rate":1.5,"event":' + G + "}",
        "[" * 100_000,
        '{"type":"repeat","count":1,"event":' * 5000,
    ],
)
def test_text_that_is_not_exactly_one_event_is_refused(text: str) -> None:
    with pytest.raises(InvalidEvent):
        parse(text)


@given(
    st.one_of(
        st.text(),
        st.binary(),
        st.recursive(st.none() | st.floats() | st.text(), st.lists).map(json.dumps),
    )
)
def test_arbitrary_text_is_refused_with_our_error_and_no_other(text: str | bytes) -> None:
    with pytest.raises(InvalidEvent):
        parse(text)


@given(events, st.data())
def test_one_changed_character_is_another_event_or_refused(
    event: Event, data: st.DataObject
) -> None:
    text = dump(event)
    position = data.draw(st.integers(0, len(text) - 1))
    changed = text[:position] + data.draw(st.characters(codec="utf-8")) + text[position + 1 :]
    try:
        found = parse(changed)
    except InvalidEvent:
        return
    assert parse(dump(found)) == found


def test_depth_is_limited_when_building_and_when_reading() -> None:
    event: Event = Gaussian(noise_multiplier=1.0)
    for _ in range(MAX_DEPTH - 1):
        event = Repeat(event=event, count=1)
    assert parse(dump(event)) == event
    with pytest.raises(InvalidEvent, match="deep"):
        Repeat(event=event, count=1)
    with pytest.raises(InvalidEvent, match="goes beyond"):  # while reading, not after
        parse('{"type":"repeat","count":1,"event":' + dump(event) + "}")


def test_size_is_limited_when_building_and_when_reading() -> None:
    leaf = Gaussian(noise_multiplier=1.0)
    fits = Compose(events=(leaf,) * (MAX_NODES - 1))
    assert parse(dump(fits)) == fits
    with pytest.raises(InvalidEvent, match="nodes"):
        Compose(events=(leaf,) * MAX_NODES)
    with pytest.raises(InvalidEvent, match="goes beyond"):  # while reading, not after
        parse('{"type":"compose","events":[' + ",".join([G] * MAX_NODES) + "]}")


def test_leaves_multiply_counts_and_merge_equal_events() -> None:
    g, h = Gaussian(noise_multiplier=1.0), Gaussian(noise_multiplier=2.0)
    tree = Compose(
        events=(g, Repeat(event=Compose(events=(g, h)), count=3), Repeat(event=h, count=2))
    )
    assert dict(leaves(Repeat(event=tree, count=5))) == {g: 20, h: 25}


def test_a_poisson_sample_at_rate_one_is_everybody() -> None:
    g = Gaussian(noise_multiplier=1.0)
    assert leaves(Poisson(sample_rate=1, event=g)) == ((g, 1),)


def test_adjacency_has_three_names_and_no_default() -> None:
    assert {a.value for a in Adjacency} == {"add-remove", "zero-out", "replace-one"}
    with pytest.raises(InvalidParameter):
        Adjacency.of("neighbouring")


def test_every_error_has_the_packages_root() -> None:
    import accounting.errors as errors

    for name in errors.__all__:
        cls = getattr(errors, name)
        assert issubclass(cls, AccountingError | UserWarning)
