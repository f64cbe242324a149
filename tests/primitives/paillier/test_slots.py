"""Packing against plain integer arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.errors import ConfigurationError
from securefl.primitives.paillier import BadPlaintext, SecretKey, SlotLayout
from securefl.primitives.paillier.algebra import Degree

layouts = st.builds(
    SlotLayout,
    bound=st.integers(1, 1 << 20),
    max_clients=st.integers(1, 300),
    guard=st.integers(0, 5),
)


def plain_pack(values: list[int], bound: int, width: int, slots: int) -> list[int]:
    rows = [values[i : i + slots] for i in range(0, len(values), slots)]
    return [sum((q + bound) << (width * k) for k, q in enumerate(row)) for row in rows]


@given(layouts, st.integers(1, 9), st.integers(0, 25), st.data())
def test_packing_equals_the_formula(
    layout: SlotLayout, slots: int, dimension: int, data: st.DataObject
) -> None:
    value = st.one_of(
        st.sampled_from([-layout.bound, 0, layout.bound]),
        st.integers(-layout.bound, layout.bound),
    )
    values = data.draw(st.lists(value, min_size=dimension, max_size=dimension))
    packed = layout.pack(np.array(values, dtype=np.int64), slots)
    assert packed == plain_pack(values, layout.bound, layout.width, slots)
    opened = layout.unpack(packed, count=1, dimension=dimension, slots=slots)
    assert opened.tolist() == values


@given(layouts, st.integers(1, 9), st.integers(1, 20), st.data())
def test_sums_of_any_number_of_clients_up_to_the_limit_are_exact(
    layout: SlotLayout, slots: int, dimension: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, layout.max_clients))
    seed = data.draw(st.integers(0, 1 << 32))
    extreme = data.draw(st.sampled_from(["low", "high", "any"]))
    rng = np.random.default_rng(seed)
    shape = (count, dimension)
    inputs = {
        "low": np.full(shape, -layout.bound),
        "high": np.full(shape, layout.bound),
        "any": rng.integers(-layout.bound, layout.bound, shape, endpoint=True),
    }[extreme]
    packed = [layout.pack(row.astype(np.int64), slots) for row in inputs]
    sums = [sum(column) for column in zip(*packed, strict=True)]
    opened = layout.unpack(sums, count=count, dimension=dimension, slots=slots)
    assert opened.tolist() == inputs.sum(axis=0).tolist()


def test_one_client_more_than_the_slots_were_sized_for_is_refused() -> None:
    layout = SlotLayout(bound=7, max_clients=4)
    packed = layout.pack(np.full(3, 7), 8)
    with pytest.raises(ConfigurationError, match="1 to 4"):
        layout.unpack([5 * m for m in packed], count=5, dimension=3, slots=8)


@pytest.mark.parametrize("sign", [-1, 1])
@given(
    st.sampled_from([1, 2, 2047, 2048, 1 << 15, (1 << 40) - 1, 1 << 40]),
    st.sampled_from([1, 2, 3, 4, 64, 127, 128, 1 << 20]),
    st.integers(0, 1),
)
def test_all_clients_at_the_bound_fit_also_where_their_sum_is_a_power_of_two(
    sign: int, bound: int, clients: int, extra: int
) -> None:
    """Also the widest slots, of 62 bits."""
    layout = SlotLayout(bound=bound, max_clients=clients)
    assert layout.width == (2 * bound * clients).bit_length()
    packed = layout.pack(np.full(5 + extra, sign * bound), 3)
    opened = layout.unpack(
        [clients * m for m in packed], count=clients, dimension=5 + extra, slots=3
    )
    assert opened.tolist() == [sign * bound * clients] * (5 + extra)


def test_the_widest_slot_is_exact_and_one_bit_more_is_refused() -> None:
    layout = SlotLayout(bound=(1 << 61) - 1, max_clients=1)
    values = np.array([layout.bound, -layout.bound, 0, 1, -1])
    assert layout.width == 62
    packed = layout.pack(values, 3)
    assert layout.unpack(packed, count=1, dimension=5, slots=3).tolist() == values.tolist()
    with pytest.raises(ConfigurationError, match="62"):
        SlotLayout(bound=1 << 61, max_clients=1)


@given(st.integers(1, 62), st.sampled_from([1, 2, 3]))
def test_full_slots_stay_below_the_plaintext_modulus_for_every_width(width: int, s: int) -> None:
    layout = SlotLayout(bound=1 << (width - 1), max_clients=1) if width < 62 else SlotLayout(
        bound=(1 << 61) - 1, max_clients=1
    )  # fmt: skip
    # A multiple of every width up to 62 is too long to try; lengths around one multiple are not.
    for bits in (8 * layout.width, 8 * layout.width + 1, 8 * layout.width - 1):
        degree = Degree((1 << (bits - 1)) + 1, s)
        count = layout.slots(degree)
        assert (1 << (layout.width * count)) - 1 < degree.plaintexts
        longer = layout.width * (count + 1)
        assert longer > int(degree.plaintexts).bit_length() - 1


@pytest.mark.parametrize(("bits", "slots"), [(3072, (133, 267, 400)), (2048, (89, 178, 267))])
def test_slots_per_plaintext_follow_the_true_length_of_its_modulus(
    bits: int, slots: tuple[int, ...]
) -> None:
    layout = SlotLayout(bound=2**15 - 1, max_clients=100)
    assert layout.width == 23
    n = (1 << bits) - 1
    assert tuple(layout.slots(Degree(n, s)) for s in (1, 2, 3)) == slots
    # The smallest modulus of that length: its square can be two bits shorter.
    low = (1 << (bits - 1)) + 1
    for s in (1, 2, 3):
        count = layout.slots(Degree(low, s))
        assert 1 << (layout.width * count) < low**s


@pytest.mark.parametrize("bad", ["tail", "slot", "top", "guard"])
def test_writing_outside_a_slot_is_noticed(bad: str) -> None:
    layout = SlotLayout(bound=5, max_clients=3, guard=2)
    slots, w = 4, layout.width
    (packed,) = layout.pack(np.array([1, -2, 3]), slots)
    wrong = {
        "tail": packed + (1 << (3 * w)),
        "slot": packed + (11 << w),
        "top": packed + (1 << (slots * w)),
        "guard": packed | 1 << (2 * w - 1),
    }[bad]
    with pytest.raises(BadPlaintext):
        layout.unpack([wrong], count=1, dimension=3, slots=slots)


@pytest.mark.parametrize(
    "values",
    [np.array([6]), np.array([-6]), np.array([1.0]), np.array([[1]]), np.array([1], np.int32)],
)
def test_values_that_do_not_fit_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ConfigurationError):
        SlotLayout(bound=5, max_clients=3).pack(values, 4)


@pytest.mark.parametrize(
    "change",
    [{"bound": 0}, {"max_clients": 0}, {"guard": -1}, {"bound": 1 << 60}, {"bound": True}],
)
def test_impossible_layouts_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError):
        SlotLayout(**{"bound": 5, "max_clients": 3, **change})


def test_a_slot_larger_than_a_plaintext_is_refused(small_key: SecretKey) -> None:
    layout = SlotLayout(bound=1 << 40, max_clients=100)
    with pytest.raises(ConfigurationError, match="does not fit"):
        layout.slots(Degree(35, 1))
    assert layout.slots(small_key.public.degree(1)) == 511 // layout.width


def test_the_number_of_plaintexts_must_fit() -> None:
    layout = SlotLayout(bound=5, max_clients=3)
    with pytest.raises(ConfigurationError, match="plaintexts"):
        layout.unpack([0, 0], count=1, dimension=3, slots=4)
