"""Cohorts, threat models, survivor sets, and the canonical configuration."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.errors import ConfigurationError, WireError
from securefl.round import (
    SERVER,
    Adversary,
    ClientId,
    Cohort,
    GraphSource,
    Layout,
    Protocol,
    Ring,
    RoundConfig,
    RoundId,
    SurvivorSets,
    ThreatModel,
    Usage,
    ceil_rate,
    dst,
)

U32 = st.integers(0, (1 << 32) - 1)
DIGEST = st.binary(min_size=32, max_size=32)
CONFIGS = st.builds(
    RoundConfig,
    protocol=st.sampled_from(Protocol),
    adversary=st.sampled_from(Adversary),
    layout=st.sampled_from(Layout),
    graph_source=st.sampled_from(GraphSource),
    round_id=st.integers(0, (1 << 64) - 1).map(RoundId),
    cohort=st.sets(st.integers(0, SERVER - 1), min_size=3, max_size=9).map(Cohort.of),
    k=U32,
    t=U32,
    A=U32,
    D=U32,
    n_min=U32,
    m=st.integers(0, (1 << 64) - 1),
    ring=st.sampled_from(Ring),
    b=st.integers(1, 64),
    context_digest=DIGEST,
    server_nonce=DIGEST,
    graph_value=DIGEST,
)


def config() -> RoundConfig:
    return RoundConfig(
        protocol=Protocol.SECAGG,
        adversary=Adversary.SEMI_HONEST,
        round_id=RoundId(7),
        cohort=Cohort.of([1, 2, 5]),
        k=2,
        t=2,
        A=1,
        D=0,
        n_min=3,
        m=4,
        b=20,
        context_digest=bytes(range(32)),
        server_nonce=bytes(32),
    )


@given(CONFIGS)
def test_decoding_undoes_encoding(original: RoundConfig) -> None:
    assert RoundConfig.decode(original.encode()) == original


def test_the_canonical_bytes_are_the_documented_layout() -> None:
    little = [
        (1, 1), (0, 1), (0, 1), (0, 1), (1, 2), (0, 2), (7, 8), (3, 4), (1, 4), (2, 4), (5, 4),
        (2, 4), (2, 4), (1, 4), (0, 4), (3, 4), (4, 8), (0, 1), (20, 1), (0, 2),
    ]  # fmt: skip
    expected = b"".join(value.to_bytes(size, "little") for value, size in little)
    expected += bytes(range(32)) + bytes(64)
    assert config().encode() == expected
    assert config().digest() == hashlib.sha256(b"SFL1\x01\x01\x01\x00" + expected).digest()


@pytest.mark.parametrize("name", ["protocol", "adversary", "layout", "graph_source", "ring"])
def test_a_bare_number_is_no_choice(name: str) -> None:
    """It would encode as ACTIVE and run as semi-honest."""
    with pytest.raises(ConfigurationError, match=f"{name} must be a"):
        replace(config(), **{name: 1})


@given(CONFIGS, st.data())
def test_a_changed_configuration_is_an_error_or_another_digest(
    original: RoundConfig, data: st.DataObject
) -> None:
    raw = bytearray(original.encode())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    try:
        changed = RoundConfig.decode(bytes(raw))
    except WireError:
        return
    assert changed.encode() == bytes(raw)
    assert changed.digest() != original.digest()


@given(st.binary(max_size=300))
def test_random_bytes_are_no_configuration(raw: bytes) -> None:
    with pytest.raises(WireError):
        RoundConfig.decode(raw)


def test_left_over_and_missing_bytes_are_refused() -> None:
    raw = config().encode()
    for wrong in (raw + b"\0", raw[:-1], raw[:10], b""):
        with pytest.raises(WireError):
            RoundConfig.decode(wrong)


def test_an_announced_cohort_of_billions_allocates_nothing() -> None:
    raw = bytearray(config().encode())
    raw[16:20] = b"\xff\xff\xff\x7f"
    with pytest.raises(WireError, match="clients has"):
        RoundConfig.decode(bytes(raw))


@pytest.mark.parametrize(
    "ids", [[], [1], [1, 2], [1, 2, 2], [1, 2, SERVER], [1, 2, -1], [True, 2, 3]]
)
def test_an_impossible_cohort_is_refused(ids: list[int]) -> None:
    with pytest.raises(ConfigurationError):
        Cohort.of(ids)


def test_a_cohort_must_be_given_ascending_to_the_constructor() -> None:
    with pytest.raises(ConfigurationError, match="ascending"):
        Cohort((ClientId(3), ClientId(2), ClientId(5)))
    cohort = Cohort.of([3, 2, 5])
    assert list(cohort) == [2, 3, 5]
    assert [cohort.index(u) for u in cohort] == [0, 1, 2]
    assert 4 not in cohort and 5 in cohort


@pytest.mark.parametrize(
    ("field", "value"),
    [("b", 0), ("b", 65), ("t", -1), ("m", 1 << 64), ("A", True), ("server_nonce", b"short")],
)
def test_a_field_that_does_not_fit_its_format_is_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=field):
        replace(config(), **{field: value})


def test_the_modulus_follows_the_ring() -> None:
    assert config().modulus == 1 << 20
    assert replace(config(), ring=Ring.PRIME_FIELD).modulus == (1 << 31) - 1


@given(st.integers(1, 10**6), st.integers(1, 10**4))
def test_a_rate_is_rounded_up_exactly(n: int, parts: int) -> None:
    rate = Fraction(parts, 10**4)
    found = ceil_rate(rate, n)
    assert found - 1 < rate * n <= found
    assert ceil_rate(float(rate), n) == found
    assert found >= 1


@pytest.mark.parametrize("rate", [-0.1, 1.1, "x", float("nan"), float("inf"), "1/0"])
def test_an_impossible_rate_is_refused(rate: float | str) -> None:
    with pytest.raises(ConfigurationError):
        ceil_rate(rate, 10)


def test_assuming_no_corruption_must_be_said_aloud() -> None:
    with pytest.raises(ConfigurationError, match="assume_no_corruption"):
        ThreatModel(corrupt=0, dropped=1)
    assert ThreatModel(corrupt=0, dropped=1, assume_no_corruption=True).corrupt == 0
    with pytest.raises(ConfigurationError, match="at least 0"):
        ThreatModel(corrupt=1, dropped=-1)


def test_rates_become_ceilings() -> None:
    threat = ThreatModel.from_rates(100, gamma=0.07, delta="1/3")
    assert (threat.corrupt, threat.dropped) == (7, 34)
    assert ThreatModel.from_rates(3, gamma=0.01, delta=0).corrupt == 1


def test_survivor_sets_only_shrink() -> None:
    one, two = ClientId(1), ClientId(2)
    SurvivorSets(U1=(one, two), U2=(one,))
    with pytest.raises(ConfigurationError, match="U2 is not contained in U1"):
        SurvivorSets(U1=(one,), U2=(one, two))
    with pytest.raises(ConfigurationError, match="U3 is not contained in U2"):
        SurvivorSets(U1=(one,), U3=(one,))


def test_usage_labels_are_distinct() -> None:
    labels = {dst(usage, protocol) for usage in Usage for protocol in Protocol}
    assert len(labels) == len(Usage) * len(Protocol)
    assert all(len(label) == 8 for label in labels)
    assert [int(usage) for usage in Usage] == list(range(1, 18))
