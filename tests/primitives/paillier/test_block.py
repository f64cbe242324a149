"""The bytes of ciphertext vectors, and what is refused as a ciphertext."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.errors import ConfigurationError, WireError
from securefl.primitives.paillier import Encryptor, SecretKey, SlotLayout
from securefl.primitives.paillier.block import HEADER_BYTES, Block, BlockMode, are_ciphertexts


def block(key: SecretKey, s: int, values: list[int]) -> Block:
    import numpy as np

    layout = SlotLayout(bound=127, max_clients=4)
    encryptor = Encryptor(key.public, s, window=4)
    packed = layout.pack(np.array(values, dtype=np.int64), layout.slots(encryptor.degree))
    return Block(
        key_id=key.public.key_id,
        mode=BlockMode.PACKED,
        s=s,
        width=layout.width,
        bound=127,
        dimension=len(values),
        terms=1,
        ciphertexts=encryptor.encrypt(packed).ciphertexts,
    )


@given(st.integers(1, 3), st.lists(st.integers(-127, 127), min_size=1, max_size=120))
def test_a_block_survives_its_bytes(small_key: SecretKey, s: int, values: list[int]) -> None:
    made, degree = block(small_key, s, values), small_key.public.degree(s)
    data = made.to_bytes(degree)
    assert len(data) == HEADER_BYTES + len(made.ciphertexts) * degree.ciphertext_bytes
    assert Block.from_bytes(data, degree) == made


@given(
    st.lists(st.integers(-127, 127), min_size=70, max_size=70),
    st.lists(st.integers(-127, 127), min_size=70, max_size=70),
)
def test_two_blocks_of_one_shape_have_equal_headers_and_lengths(
    small_key: SecretKey, a: list[int], b: list[int]
) -> None:
    degree = small_key.public.degree(1)
    first, second = (block(small_key, 1, x).to_bytes(degree) for x in (a, b))
    assert first[:HEADER_BYTES] == second[:HEADER_BYTES]
    assert len(first) == len(second)


def test_a_number_that_is_no_ciphertext_is_refused_without_showing_it(
    small_key: SecretKey,
) -> None:
    degree = small_key.public.degree(1)
    p, q = small_key.primes()
    n = p * q
    good = block(small_key, 1, [1])
    for bad in (0, n, p, q * 7, n * n, n * n + 1, n * n - n):
        assert not are_ciphertexts([*good.ciphertexts, bad], degree)
        data = good.to_bytes(degree)[:HEADER_BYTES] + bad.to_bytes(degree.ciphertext_bytes, "big")
        with pytest.raises(WireError) as caught:
            Block.from_bytes(data, degree)
        assert str(bad) not in str(caught.value) or bad == 0
    assert are_ciphertexts(good.ciphertexts, degree)


@given(st.data())
def test_malformed_blocks_are_refused(small_key: SecretKey, data: st.DataObject) -> None:
    degree = small_key.public.degree(1)
    good = bytearray(block(small_key, 1, [1, 2, 3]).to_bytes(degree))
    kind = data.draw(st.sampled_from(["cut", "extend", "flip"]))
    if kind == "cut":
        good = good[: data.draw(st.integers(0, len(good) - 1))]
    elif kind == "extend":
        good += data.draw(st.binary(min_size=1, max_size=200))
    else:
        good[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = Block.from_bytes(bytes(good), degree)
    except WireError:
        return
    assert found.to_bytes(degree) == bytes(good)
    assert kind == "flip"


@pytest.mark.parametrize("mode", [0, 3, 255])
def test_a_block_of_an_unknown_mode_is_refused(small_key: SecretKey, mode: int) -> None:
    degree = small_key.public.degree(1)
    data = bytearray(block(small_key, 1, [1]).to_bytes(degree))
    data[32] = mode
    with pytest.raises(WireError, match=f"unknown block mode {mode}"):
        Block.from_bytes(bytes(data), degree)


def test_a_block_of_another_degree_is_refused(small_key: SecretKey) -> None:
    made = block(small_key, 2, [1])
    data = made.to_bytes(small_key.public.degree(2))
    with pytest.raises(WireError, match="degree"):
        Block.from_bytes(data, small_key.public.degree(1))


@given(st.integers(1, 1 << 20), st.integers(1, 300), st.integers(0, 3), st.data())
def test_a_header_announces_as_many_terms_as_its_slots_hold_and_no_more(
    small_key: SecretKey, bound: int, most: int, guard: int, data: st.DataObject
) -> None:
    layout = SlotLayout(bound=bound, max_clients=most, guard=guard)
    degree = small_key.public.degree(1)
    one = Block(
        key_id=bytes(32),
        mode=BlockMode.PACKED,
        s=1,
        width=layout.width,
        bound=bound,
        dimension=0,
        terms=data.draw(st.integers(1, most)),
        ciphertexts=(),
    )
    written = one.to_bytes(degree)
    assert written[-4:] == one.terms.to_bytes(4, "big")
    assert Block.from_bytes(written, degree) == one
    full = ((1 << layout.width) - 1) // (2 * bound)
    assert full >= most
    dataclasses.replace(one, terms=full)
    for wrong in (0, full + 1, (1 << 32) - 1):
        with pytest.raises(ConfigurationError, match=f"sums of 1 to {full} values"):
            dataclasses.replace(one, terms=wrong)
        with pytest.raises(WireError, match="impossible sum"):
            Block.from_bytes(written[:-4] + wrong.to_bytes(4, "big"), degree)
