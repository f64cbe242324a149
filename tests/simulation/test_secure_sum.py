"""``secure_sum`` against plain big-integer sums, a count of who is alive, and misuse."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.errors import BelowThreshold, ConfigurationError
from securefl.round import Adversary
from securefl.simulation.secure_sum import default_threshold, secure_sum
from securefl.wire import HEADER_BYTES, decode_frame

PHASES = ["advertise_keys", "share_keys", "masked_input_collection", "unmasking"]
THREE = {1: [1], 2: [2], 3: [3]}


@st.composite
def sums(draw: st.DrawFn) -> dict[str, Any]:
    bits = draw(st.integers(1, 64))
    n = draw(st.integers(3, 12))
    ids = draw(st.lists(st.integers(-(10**20), 10**20), min_size=n, max_size=n, unique=True))
    m = draw(st.sampled_from([0, 1, 2, 5]))
    top = (1 << bits) - 1
    entry = st.one_of(st.sampled_from([0, top]), st.integers(0, top))
    vectors = {c: draw(st.lists(entry, min_size=m, max_size=m)) for c in ids}
    gone = draw(st.lists(st.sampled_from(ids), unique=True, max_size=n // 3 + 1))
    when = {c: draw(st.sampled_from(PHASES)) for c in gone}
    threshold = draw(st.one_of(st.none(), st.integers(3, n)))
    return {"bits": bits, "vectors": vectors, "when": when, "threshold": threshold}


@given(sums())
def test_the_sum_is_the_plain_sum_over_those_who_stayed_or_below_threshold(case: Any) -> None:
    vectors, when, bits = case["vectors"], case["when"], case["bits"]
    n = len(vectors)
    threshold = case["threshold"] or 2 * n // 3 + 1
    left, lost, stayed = set(vectors), None, set()
    for phase in PHASES:
        left = {c for c in left if when.get(c) != phase}
        if len(left) < threshold and lost is None:
            lost = (phase, len(left))
        if phase == "masked_input_collection":
            stayed = set(left)
    drop = {p: [c for c, w in when.items() if w == p] for p in PHASES}
    try:
        result = secure_sum(vectors, drop=drop, threshold=case["threshold"], bits=bits)
    except BelowThreshold as error:
        assert (error.phase, error.had) == lost
        assert error.needed == threshold
        return
    assert lost is None
    plain = [
        sum(column) % (1 << bits) for column in zip(*(vectors[c] for c in stayed), strict=True)
    ]
    assert result.sum.dtype == np.uint64
    assert result.sum.tolist() == plain
    assert result.survivors == tuple(sorted(stayed))
    assert set(result.bytes_up) == set(result.bytes_down) == set(vectors)
    assert result.total_bytes_up == sum(result.bytes_up.values())
    assert result.total_bytes_down == sum(result.bytes_down.values())


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda v: np.array(v, dtype=np.int8)])
def test_lists_tuples_and_arrays_are_equal(kind: Any) -> None:
    result = secure_sum({c: kind([c, 2 * c]) for c in (1, 2, 3)}, bits=8)
    assert result.sum.tolist() == [6, 12]


def test_numpy_scalars_are_integers() -> None:
    result = secure_sum({np.int64(c): [np.uint8(c)] for c in (1, 2, 3)})
    assert result.sum.tolist() == [6]


@given(st.data())
def test_all_variants_give_the_plain_sum_or_below_threshold(data: st.DataObject) -> None:
    n = data.draw(st.integers(4, 14))
    protocol = data.draw(st.sampled_from(["secagg", "secagg+"]))
    adversary = data.draw(st.sampled_from(["semi-honest", "active"]))
    vectors = {c: [c, 3 * c + 1] for c in range(n)}
    phases = [*PHASES[:3], *["consistency_check"] * (adversary == "active"), PHASES[3]]
    gone = data.draw(st.lists(st.sampled_from(range(n)), unique=True, max_size=n // 3))
    when = {c: data.draw(st.sampled_from(phases)) for c in gone}
    threshold = data.draw(st.integers(max(3, -(-(n + 3) // 2)), n))
    drop = {p: [c for c, w in when.items() if w == p] for p in phases}
    alive = {p: n - sum(phases.index(w) <= i for w in when.values()) for i, p in enumerate(phases)}
    try:
        result = secure_sum(
            vectors, protocol=protocol, adversary=adversary, drop=drop, threshold=threshold,
            bits=16, experimental_active_graph=True,
        )  # fmt: skip
    except BelowThreshold as error:
        # After the vectors are in, a sparse graph needs enough neighbours: too few of them may be
        # left although there are enough clients.
        late = protocol == "secagg+" and phases.index(error.phase) >= 2
        assert late or alive[error.phase] < threshold
        return
    except ConfigurationError as error:
        assert protocol == "secagg+" and "no neighbour graph" in str(error)
        return
    stayed = [c for c in vectors if c not in when or phases.index(when[c]) > 2]
    assert result.survivors == tuple(stayed)
    assert result.sum.tolist() == [sum(vectors[c][i] for c in stayed) % 2**16 for i in (0, 1)]
    assert {r.phase for r in result.transcript} == set(phases)
    up = {c: sum(len(r.frame) for r in result.transcript if r.sender == c) for c in vectors}
    assert up == result.bytes_up


def test_sparse_and_active_sums_of_many_clients() -> None:
    vectors = {c: [c] for c in range(100)}
    gone = list(range(0, 100, 10))
    result = secure_sum(
        vectors, protocol="secagg+", drop={"masked_input_collection": gone}, threshold=90
    )
    assert result.sum.tolist() == [sum(range(100)) - sum(gone)]
    dense = secure_sum(vectors, threshold=90)
    assert result.total_bytes_up < dense.total_bytes_up / 3
    few = {c: [c] for c in range(30)}
    active = secure_sum(few, adversary="active", drop={"consistency_check": [0, 10, 20]})
    assert active.sum.tolist() == [sum(range(30))]


def test_the_default_threshold_is_two_thirds_and_one() -> None:
    assert [default_threshold(n) for n in (3, 4, 5, 6, 10, 100)] == [3, 3, 4, 5, 7, 67]


def test_the_server_never_sees_an_input_or_the_sum_of_a_part() -> None:
    """The same inputs twice: the masked inputs share no word, and are not the inputs."""
    vectors = {c: [7] * 64 for c in range(4)}
    seen = []
    for _ in range(2):
        result = secure_sum(vectors)
        bodies = [
            bytes(decode_frame(r.frame).body)
            for r in result.transcript
            if r.phase == "masked_input_collection" and r.direction == "up"
        ]
        assert len(bodies) == 4
        seen += [body[i : i + 4] for body in bodies for i in range(0, 256, 4)]
    assert len(set(seen)) >= len(seen) - 1  # 512 random words: two equal ones once in 30000 runs
    assert (7).to_bytes(4, "little") not in seen


def test_the_transcript_tells_who_sent_what_in_the_callers_ids() -> None:
    result = secure_sum({-4: [1], 70: [2], 10**12: [3]})
    up = [r for r in result.transcript if r.direction == "up"]
    down = [r for r in result.transcript if r.direction == "down"]
    assert {r.sender for r in up} == {-4, 70, 10**12} == {r.recipient for r in down}
    assert {r.recipient for r in up} == {"server"} == {r.sender for r in down}
    assert len(up) == 12
    assert len(down) == 9
    assert {r.phase for r in result.transcript} == set(PHASES)
    for client in (-4, 70, 10**12):
        assert result.bytes_up[client] == sum(len(r.frame) for r in up if r.sender == client)
        assert result.bytes_down[client] == sum(len(r.frame) for r in down if r.recipient == client)
    assert all(len(r.frame) >= HEADER_BYTES for r in result.transcript)


@pytest.mark.parametrize(
    ("vectors", "arguments", "what"),
    [
        ({1: [1], 2: [1.0], 3: [1]}, {}, "client 2, index 0: expected an integer, found 1.0"),
        ({1: [1], 2: [0, True], 3: [1]}, {}, "client 2, index 1: expected an integer, found True"),
        (
            {1: [1], 2: [4], 3: [1]},
            {"bits": 2},
            r"client 2, index 0: value 4 is not in 0\.\.2\^2-1",
        ),
        ({1: [1], 2: [-1], 3: [1]}, {}, "client 2, index 0: value -1"),
        ({1: [1], 2: np.array([0, -1]), 3: [1]}, {}, "client 2, index 1: value -1"),
        ({1: [1], 2: np.array([0, 9]), 3: [1]}, {"bits": 3}, "client 2, index 1: value 9"),
        ({1: [1], 2: np.array([1.0]), 3: [1]}, {}, "client 2: expected a one-dimensional array"),
        ({1: [1], 2: np.array([True]), 3: [1]}, {}, "client 2: expected a one-dimensional array"),
        ({1: [1], 2: np.array([[1]]), 3: [1]}, {}, "client 2: expected a one-dimensional array"),
        ({1: [1], 2: "1", 3: [1]}, {}, "client 2: expected a list, tuple or array"),
        ({1: [1], 2: {1}, 3: [1]}, {}, "client 2: expected a list, tuple or array"),
        ({1: [1], 2: [1, 2], 3: [1]}, {}, "client 1 has 1 entries, client 2 has 2"),
        ({1: [1], 2: [1]}, {}, "at least 3 clients, found 2"),
        ({}, {}, "at least 3 clients, found 0"),
        ([[1], [2], [3]], {}, "expected a mapping|must be a mapping"),
        ({"a": [1], 2: [1], 3: [1]}, {}, "client ids must be integers, found 'a'"),
        ({True: [1], 2: [1], 3: [1]}, {}, "client ids must be integers, found True"),
        (THREE, {"bits": 0}, r"bits must be an integer in 1\.\.64, found 0"),
        (THREE, {"bits": 65}, "bits"),
        (THREE, {"bits": 8.0}, "bits"),
        (THREE, {"threshold": 2}, r"threshold must be an integer in 3\.\.3, found 2"),
        (THREE, {"threshold": 4}, "threshold"),
        (THREE, {"protocol": "magic"}, "protocols .*'secagg'.*found 'magic'"),
        ({c: [1] for c in range(5)}, {"adversary": "active", "threshold": 3}, r"in 4\.\.5 against"),
        (THREE, {"protocol": "secagg+"}, "no neighbour graph on 3 clients"),
        (THREE, {"degree": 2}, 'belongs to protocol "secagg\\+"'),
        ({c: [1] for c in range(9)}, {"protocol": "secagg+", "degree": 3}, "even number"),
        ({c: [1] for c in range(9)}, {"protocol": "secagg+", "degree": True}, "even integer"),
        ({c: [1] for c in range(9)}, {"protocol": "secagg+", "degree": 2}, "could cut a ring"),
        (
            {c: [1] for c in range(12)},
            {"protocol": "secagg+", "adversary": "active", "threshold": 11},
            "no published proof",
        ),
        (THREE, {"adversary": "nobody"}, "semi-honest"),
        (THREE, {"drop": {"lunch": [1]}}, "unknown phase 'lunch'; possible are .*unmasking"),
        (THREE, {"drop": {"consistency_check": [1]}}, "unknown phase"),
        (THREE, {"drop": {"unmasking": [9]}}, r"clients \[9\].*clients are \[1, 2, 3\]"),
    ],
)
def test_misuse_is_refused_with_the_client_the_index_and_the_value(
    vectors: Any, arguments: dict[str, Any], what: str
) -> None:
    with pytest.raises(ConfigurationError, match=what):
        secure_sum(vectors, **arguments)


def test_a_lost_round_names_the_phase_and_the_numbers() -> None:
    vectors = {c: [c] for c in range(10)}
    with pytest.raises(BelowThreshold) as caught:
        secure_sum(vectors, drop={"share_keys": [0, 1], "unmasking": [2, 3]})
    assert (caught.value.needed, caught.value.had, caught.value.phase) == (7, 6, "unmasking")
    assert "no sum was opened" in str(caught.value)


def test_it_loads_neither_torch_nor_anything_of_training() -> None:
    code = (
        "import sys\n"
        "from securefl.simulation.secure_sum import secure_sum\n"
        "secure_sum({1: [1], 2: [2], 3: [3]})\n"
        "bad = {'torch', 'opacus', 'flwr', 'scipy', 'securefl.training', 'securefl.encoding',\n"
        "       'accounting', 'pydantic'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
def test_a_hundred_clients_leave_whenever_they_like(seed: int) -> None:
    schedule = np.random.default_rng(seed)
    n, m, bits = 100, 1000, int(schedule.integers(1, 65))
    top = (1 << bits) - 1
    vectors = {c: [int(x) & top for x in schedule.integers(0, 1 << 62, size=m)] for c in range(n)}
    gone = [int(c) for c in schedule.permutation(n)[:33]]
    cuts = sorted(int(x) for x in schedule.integers(0, 34, size=3))
    pieces = [gone[a:b] for a, b in zip([0, *cuts], [*cuts, 33], strict=True)]
    result = secure_sum(vectors, drop=dict(zip(PHASES, pieces, strict=True)), bits=bits)
    stayed = set(range(n)) - set(gone[: cuts[2]])
    assert result.survivors == tuple(sorted(stayed))
    plain = [sum(vectors[c][i] for c in stayed) % (1 << bits) for i in range(m)]
    assert result.sum.tolist() == plain


@pytest.mark.parametrize("n", [3, 20, 21, 45])
def test_every_threshold_from_three_to_everybody_is_allowed(n: int) -> None:
    for threshold in (3, n // 2, n):
        if threshold >= 3:
            result = secure_sum({i: [i] for i in range(n)}, threshold=threshold)
            assert result.sum.tolist() == [n * (n - 1) // 2]


def test_the_threshold_decides_how_many_may_collude() -> None:
    # Every t - 1 clients together know nothing; that is the strongest t for this threshold.
    assert secure_sum_params(10, None) == (7, 6, 5)
    assert secure_sum_params(10, 9) == (9, 8, 7)


def secure_sum_params(n: int, threshold: int | None) -> tuple[int, int, int]:
    from securefl.simulation.secure_sum import _params

    params = _params(n, "secagg", Adversary.SEMI_HONEST, threshold, None)
    return params.n_min, params.t, params.threat.corrupt


def test_a_masked_array_is_refused_because_its_holes_would_go_unmasked() -> None:
    vectors = {i: np.ma.array([1, 9], mask=[0, 1]) for i in range(3)}
    with pytest.raises(ConfigurationError, match="client 0: a masked array"):
        secure_sum(vectors)


def test_drop_takes_any_iterable_of_ids_and_generators_only_once() -> None:
    vectors = {i: [i] for i in range(6)}
    for ids in ([4, 5], (4, 5), {4, 5}, iter([4, 5]), (c for c in (4, 5)), np.array([4, 5])):
        result = secure_sum(vectors, drop={"masked_input_collection": ids}, threshold=4)
        assert result.survivors == (0, 1, 2, 3)
    with pytest.raises(BelowThreshold):
        secure_sum(vectors, drop={"masked_input_collection": iter([1, 2, 3])}, threshold=4)


@pytest.mark.parametrize(
    "drop", [{"unmasking": 1}, {"unmasking": None}, {"unmasking": "1"}, [1], 7]
)
def test_a_drop_that_is_no_collection_of_ids_is_a_clear_error(drop: Any) -> None:
    with pytest.raises(ConfigurationError, match="drop"):
        secure_sum(THREE, drop=drop)


@pytest.mark.parametrize("who", [[True], [1.0], [[1]], [4]])
def test_a_drop_names_clients_by_their_own_ids_only(who: Any) -> None:
    with pytest.raises(ConfigurationError, match="who have no vector"):
        secure_sum(THREE, drop={"unmasking": who})


def test_numpy_integers_are_integers_everywhere() -> None:
    result = secure_sum(
        {np.int64(i): np.array([i], dtype=np.int8) for i in range(3)},
        threshold=np.int64(3),
        bits=np.uint8(8),
    )
    assert result.sum.tolist() == [3]


@pytest.mark.parametrize("kind", ["m8[s]", "f8", "bool", "O", "U1"])
def test_arrays_that_hold_no_integers_are_refused(kind: str) -> None:
    with pytest.raises(ConfigurationError, match="client 0"):
        secure_sum({i: np.zeros(2).astype(kind) for i in range(3)})


def test_the_result_prints_short_and_compares_by_identity() -> None:
    result = secure_sum({i: [i] for i in range(10)})
    assert len(repr(result)) < 2000
    assert result == result  # arrays inside must not be compared
    assert hash(result) == hash(result)


def test_worker_processes_change_nothing_but_the_time() -> None:
    vectors = {u: [u, 7 * u, 2**31 + u] for u in range(8)}
    drop = {"masked_input_collection": [0, 1]}
    found = secure_sum(vectors, drop=drop, processes=2)
    assert found.sum.tolist() == secure_sum(vectors, drop=drop).sum.tolist()
    assert found.survivors == (2, 3, 4, 5, 6, 7)
    assert multiprocessing.active_children() == []
    for wrong in (0, -1, 2.0, True):
        with pytest.raises(ConfigurationError, match=r"processes must be an integer in 1\.\.256"):
            secure_sum(vectors, processes=wrong)  # type: ignore[arg-type]  # that is the test
