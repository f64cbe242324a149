"""``secure_sum(protocol="lightsecagg")``: the exact integer sum, or an error that says why not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefl import secure_sum
from securefl.errors import BelowThreshold, ConfigurationError

FOUR = ["advertise_keys", "share_masks", "masked_input_collection", "recovery"]


@settings(max_examples=settings.default.max_examples // 2)
@given(st.data())
def test_the_sum_is_the_plain_sum_over_those_who_stayed_or_below_threshold(
    data: st.DataObject,
) -> None:
    n = data.draw(st.integers(3, 12))
    active = data.draw(st.booleans())
    phases = [*FOUR[:3], *["consistency_check"] * active, FOUR[3]]
    least = (n + 1) // 2 + 1 if active else 3
    threshold = data.draw(st.integers(max(3, least), n))
    top = (2**31 - 2) // n
    bits = data.draw(st.one_of(st.none(), st.integers(1, (top + 1).bit_length() - 1)))
    high = 2 ** ((top + 1).bit_length() - 1 if bits is None else bits) - 1
    entry = st.one_of(st.just(high), st.integers(0, high))
    vectors = {10 * c: data.draw(st.lists(entry, min_size=3, max_size=3)) for c in range(n)}
    gone = data.draw(st.lists(st.sampled_from(sorted(vectors)), unique=True, max_size=n // 2))
    when = {c: data.draw(st.sampled_from(phases)) for c in gone}
    drop = {p: [c for c, w in when.items() if w == p] for p in phases}
    alive = {p: n - sum(phases.index(w) <= i for w in when.values()) for i, p in enumerate(phases)}
    try:
        result = secure_sum(
            vectors, protocol="lightsecagg", adversary="active" if active else "semi-honest",
            drop=drop, threshold=threshold, bits=bits,
        )  # fmt: skip
    except BelowThreshold as error:
        assert alive[error.phase] < threshold
        assert error.had == alive[error.phase]
        return
    assert min(alive.values()) >= threshold
    stayed = tuple(c for c in vectors if c not in when or phases.index(when[c]) > 2)
    assert result.survivors == stayed
    assert result.sum.tolist() == [sum(vectors[c][i] for c in stayed) for i in range(3)]
    assert {r.phase for r in result.transcript} == set(phases)
    up = {c: sum(len(r.frame) for r in result.transcript if r.sender == c) for c in vectors}
    assert up == result.bytes_up


@pytest.mark.parametrize("adversary", ["semi-honest", "active"])
def test_no_input_shows_in_what_the_server_sees(adversary: str) -> None:
    marker = [0x01020304 % (1 << 27), 0x00ABCDEF, 0x01234567, 0x02345678]
    vectors = {1: marker, 2: [1, 2, 3, 4], 3: [5, 6, 7, 8], 4: [9, 10, 11, 12]}
    result = secure_sum(vectors, protocol="lightsecagg", adversary=adversary, bits=26 + 1)
    assert result.sum.tolist() == [sum(column) for column in zip(*vectors.values(), strict=True)]
    seen = b"".join(record.frame for record in result.transcript)
    for value in marker:
        assert value.to_bytes(4, "little") not in seen


def test_what_could_wrap_around_the_field_is_refused() -> None:
    vectors = {c: [1] for c in range(10)}
    with pytest.raises(ConfigurationError, match=r"10 inputs of 28 bits .* use 1 to 27 bits"):
        secure_sum(vectors, protocol="lightsecagg", bits=28)
    with pytest.raises(ConfigurationError, match=r"client 3, index 0: value 134217728 is not in"):
        secure_sum(vectors | {3: [1 << 27]}, protocol="lightsecagg")
    largest = {c: [(1 << 27) - 1] for c in range(10)}
    assert secure_sum(largest, protocol="lightsecagg").sum.tolist() == [10 * ((1 << 27) - 1)]


def test_parameters_of_other_protocols_and_impossible_thresholds_are_refused() -> None:
    vectors = {c: [1] for c in range(10)}
    for changes, message in (
        ({"degree": 4}, 'belongs to protocol "secagg\\+"; "lightsecagg" joins everybody'),
        ({"threshold": 2}, "threshold must be an integer in 3..10"),
        ({"threshold": 5, "adversary": "active"}, "in 6..10 against an active server"),
        ({"drop": {"unmasking": [1]}}, "unknown phase 'unmasking'"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            secure_sum(vectors, protocol="lightsecagg", **changes)
