"""`secure_sum` with Paillier: the same interface, the same sums; what does not apply is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefl import secure_sum
from securefl.errors import BelowThreshold, ConfigurationError
from securefl.wire import decode_frame

PROTOCOLS = ["paillier", "paillier-threshold"]


pytestmark = pytest.mark.usefixtures("small_keys")


@given(st.data())
@settings(max_examples=30)
def test_the_sum_is_the_plain_sum_over_those_whose_vector_was_sent(data: st.DataObject) -> None:
    n = data.draw(st.integers(3, 8))
    bits = data.draw(st.integers(1, 62 - n.bit_length()))
    m = data.draw(st.sampled_from([0, 1, 2, 7, 31]))
    values = st.integers(0, (1 << bits) - 1)
    vectors = {10 * u: data.draw(st.lists(values, min_size=m, max_size=m)) for u in range(n)}
    phase = data.draw(st.sampled_from(["check_in", "masked_input_collection", "opening"]))
    gone = data.draw(st.lists(st.sampled_from(sorted(vectors)), max_size=3, unique=True))
    protocol = data.draw(st.sampled_from(PROTOCOLS))
    left = n - len(gone) if phase != "opening" else n
    call = lambda: secure_sum(  # noqa: E731  # called in two branches
        vectors, protocol=protocol, drop={phase: gone}, threshold=3, bits=bits
    )
    if left < 3:
        with pytest.raises(BelowThreshold):
            call()
        return
    result = call()
    inside = [u for u in sorted(vectors) if u not in gone or phase == "opening"]
    assert result.survivors == tuple(inside)
    expected = [sum(vectors[u][i] for u in inside) % (1 << bits) for i in range(m)]
    assert result.sum.tolist() == expected


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_server_never_receives_a_vector_in_clear(protocol: str) -> None:
    secret = [123456789, 987654321]
    result = secure_sum({1: secret, 2: [5, 6], 3: [7, 8], 4: [9, 1]}, protocol=protocol)
    for record in result.transcript:
        body = bytes(decode_frame(record.frame).body)
        for value in secret:
            assert value.to_bytes(4, "little") not in body
            assert value.to_bytes(4, "big") not in body


def test_no_message_to_the_key_holder_carries_a_single_submission() -> None:
    result = secure_sum({u: [u, u] for u in range(1, 6)}, protocol="paillier")
    submissions = [
        bytes(decode_frame(r.frame).body)
        for r in result.transcript
        if r.phase == "masked_input_collection" and r.direction == "up"
    ]
    assert len(submissions) == 5
    to_holder = [r for r in result.transcript if r.recipient == "key holder 1"]
    assert to_holder
    for record in to_holder:
        body = bytes(decode_frame(record.frame).body)
        for submission in submissions:
            assert submission[100:200] not in body


def test_parties_are_named_in_the_transcript() -> None:
    result = secure_sum({u: [u] for u in range(1, 6)}, protocol="paillier-threshold")
    senders = {r.sender for r in result.transcript if r.direction == "up"}
    assert senders == {1, 2, 3, 4, 5, *(f"share holder {i}" for i in range(1, 6))}
    assert set(result.bytes_up) == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "change",
    [{"degree": 2}, {"processes": 2}, {"bits": 62}, {"bits": 64}, {"threshold": 2}],
)
def test_what_does_not_apply_is_refused(protocol: str, change: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError):
        secure_sum({u: [u] for u in range(5)}, protocol=protocol, **change)


@pytest.mark.parametrize(("n", "most"), [(3, 60), (4, 59), (7, 59), (8, 58), (10, 58)])
def test_the_widest_entries_that_fit_a_slot_sum_exactly_and_one_more_bit_is_refused(
    n: int, most: int
) -> None:
    half, largest = 1 << (most - 1), (1 << most) - 1  # the smallest signed value, and minus one
    vectors = {u: [half, half - 1, largest] for u in range(n)}
    result = secure_sum(vectors, protocol="paillier", bits=most)
    assert result.sum.tolist() == [n * x % (1 << most) for x in vectors[0]]
    with pytest.raises(ConfigurationError, match=rf"bits can be at most {most} with Paillier"):
        secure_sum(vectors, protocol="paillier", bits=most + 1)
