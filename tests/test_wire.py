"""The frame header, strict reading, bitmaps and bit packing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.errors import WireError
from securefl.round import ClientId, Protocol, RoundId
from securefl.wire import (
    HEADER_BYTES,
    Frame,
    Reader,
    add_packed,
    decode_frame,
    encode_frame,
    pack_bitmap,
    pack_words,
    packed_bytes,
    unpack_words,
)

FRAMES = st.builds(
    Frame,
    protocol=st.sampled_from(Protocol),
    type=st.integers(0, 255),
    sender=st.integers(0, (1 << 32) - 1).map(ClientId),
    round_id=st.integers(0, (1 << 64) - 1).map(RoundId),
    session=st.binary(min_size=32, max_size=32),
    body=st.binary(max_size=40),
    signature=st.sampled_from([b"", bytes(range(64))]),
)


@given(FRAMES)
def test_decoding_undoes_encoding(frame: Frame) -> None:
    raw = encode_frame(frame)
    assert len(raw) == HEADER_BYTES + len(frame.body) + len(frame.signature)
    assert decode_frame(raw) == frame


def test_the_header_is_the_documented_sixty_bytes() -> None:
    frame = Frame(
        protocol=Protocol.SECAGG,
        type=5,
        sender=ClientId(0x01020304),
        round_id=RoundId(9),
        session=bytes(range(32)),
        body=b"ab",
    )
    expected = b"SFL1" + bytes([1, 1, 5, 0, 1, 0, 0, 0, 4, 3, 2, 1]) + (9).to_bytes(8, "little")
    assert encode_frame(frame) == expected + bytes(range(32)) + b"\2\0\0\0ab"


@given(st.binary(max_size=200))
def test_random_bytes_are_no_frame(raw: bytes) -> None:
    with pytest.raises(WireError):
        decode_frame(raw)


@given(FRAMES, st.data())
def test_a_mutated_frame_is_refused_or_means_something_else(
    frame: Frame, data: st.DataObject
) -> None:
    raw = bytearray(encode_frame(frame))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    try:
        other = decode_frame(bytes(raw))
    except WireError:
        return
    assert other != frame
    assert encode_frame(other) == bytes(raw)


@given(FRAMES, st.binary(min_size=1, max_size=70))
def test_left_over_and_missing_bytes_are_refused(frame: Frame, more: bytes) -> None:
    raw = encode_frame(frame)
    with pytest.raises(WireError):
        decode_frame(raw + more)
    with pytest.raises(WireError):
        decode_frame(raw[: -len(more)])


@pytest.mark.parametrize(
    ("place", "what"),
    [(0, "magic"), (4, "wire version"), (5, "protocol"), (7, "flags"), (8, "suite"), (10, "suite")],
)
def test_each_fixed_field_is_checked(place: int, what: str) -> None:
    frame = Frame(
        protocol=Protocol.SECAGG,
        type=1,
        sender=ClientId(0),
        round_id=RoundId(0),
        session=bytes(32),
        body=b"",
    )
    raw = bytearray(encode_frame(frame))
    raw[place] = 0xEE
    with pytest.raises(WireError, match=what):
        decode_frame(bytes(raw))


def test_a_reader_neither_runs_past_the_end_nor_stops_before_it() -> None:
    reader = Reader(b"\1\0\2\0\0\0\7")
    assert (reader.u16(), reader.u32()) == (1, 2)
    with pytest.raises(WireError, match="1 bytes are left over"):
        reader.finish()
    with pytest.raises(WireError, match="announced"):
        reader.u16()
    assert bytes(reader.take(1)) == b"\7"
    reader.finish()


@given(st.lists(st.booleans(), max_size=70))
def test_bitmaps_are_least_significant_bit_first(bits: list[bool]) -> None:
    raw = pack_bitmap(np.array(bits, dtype=np.bool_))
    assert int.from_bytes(raw, "little") == sum(bit << i for i, bit in enumerate(bits))
    reader = Reader(raw)
    assert reader.bitmap(len(bits)).tolist() == bits
    reader.finish()


@given(st.integers(1, 70), st.data())
def test_a_padding_bit_in_a_bitmap_is_refused(bits: int, data: st.DataObject) -> None:
    raw = bytearray(-(-bits // 8))
    if bits % 8 == 0:
        return
    place = data.draw(st.integers(bits % 8, 7))
    raw[-1] |= 1 << place
    with pytest.raises(WireError, match="padding"):
        Reader(bytes(raw)).bitmap(bits)


def words(values: list[int], b: int) -> np.ndarray:
    return np.array(values, dtype=np.uint32 if b <= 32 else np.uint64)


@given(st.integers(1, 64), st.data())
def test_packing_is_the_documented_bit_order(b: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(0, (1 << b) - 1), max_size=150))
    raw = pack_words(words(values, b), b)
    assert len(raw) == packed_bytes(len(values), b)
    assert int.from_bytes(raw, "little") == sum(x << (i * b) for i, x in enumerate(values))
    assert unpack_words(raw, len(values), b).tolist() == values


@pytest.mark.parametrize("b", range(1, 65))
def test_packing_is_that_of_single_bits_also_across_blocks(b: int) -> None:
    count = (1 << 15) + 77
    values = (np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(
        64 - b
    )
    bits = (values[:, None] >> np.arange(b, dtype=np.uint64)) & np.uint64(1)
    values = values.astype(np.uint32 if b <= 32 else np.uint64)
    raw = pack_words(values, b)
    assert raw == np.packbits(bits.astype(np.uint8), bitorder="little").tobytes()
    assert np.array_equal(unpack_words(raw, count, b), values)
    total = values.copy()
    add_packed(total, raw, b)
    assert np.array_equal(total, values + values)


@given(st.integers(1, 64), st.integers(1, 20), st.data())
def test_a_packed_vector_of_the_wrong_length_or_with_padding_bits_changes_nothing(
    b: int, count: int, data: st.DataObject
) -> None:
    total = words([1] * count, b)
    raw = bytes(packed_bytes(count, b))
    wrong = [raw + b"\0", raw[:-1]]
    used = count * b % 8
    if used:
        wrong.append(raw[:-1] + bytes([1 << data.draw(st.integers(used, 7))]))
    for bad in wrong:
        with pytest.raises(WireError):
            add_packed(total, bad, b)
        with pytest.raises(WireError):
            unpack_words(bad, count, b)
    assert total.tolist() == [1] * count


def test_a_huge_announced_vector_is_refused_before_it_is_allocated() -> None:
    with pytest.raises(WireError, match="1152921504606846976 elements"):
        unpack_words(b"abc", 1 << 60, 32)
