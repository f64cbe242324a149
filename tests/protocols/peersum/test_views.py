"""What a coalition sees depends on the honest inputs through their sum only: counted exactly.

Two ways. In small fields every choice of coefficients is enumerated, with the library's own share
matrix, and the multisets of views are compared. In the field of the wire the view is a linear map
of inputs and coefficients, whose matrix is read off the library's functions column by column: the
view is independent of the inputs given their sum exactly if every column that changes inputs and
keeps their sum lies in the span of the columns of the coefficients.
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest

from securefl.primitives.field import PRIME
from securefl.protocols.peersum.messages import ShareInput
from securefl.protocols.peersum.polynomials import accumulate, deal, share_matrix
from securefl.protocols.peersum.transitions import MessageType
from securefl.round import ClientId
from securefl.wire import decode_frame


def views(
    inputs: tuple[int, ...], *, p: int, t: int, coalition: tuple[int, ...], sums: bool = True
) -> Counter[tuple[int, ...]]:
    """How often the coalition sees what, over all coefficients of the honest peers.

    It sees its shares of every honest input, and the sum of the shares of everybody. Its own inputs
    it knows, so they are 0 here.
    """
    n = len(inputs)
    honest = [u for u in range(n) if u not in coalition]
    V = share_matrix(range(n), t).tolist()
    seen: Counter[tuple[int, ...]] = Counter()
    for drawn in product(range(p), repeat=len(honest) * (t - 1)):
        rows = {
            u: (inputs[u], *drawn[k * (t - 1) : (k + 1) * (t - 1)]) for k, u in enumerate(honest)
        }
        share = {
            u: [sum(a * v for a, v in zip(rows[u], V[h], strict=True)) % p for h in range(n)]
            for u in honest
        }
        own = tuple(share[u][h] for u in honest for h in coalition)
        total = tuple(sum(share[u][h] for u in honest) % p for h in range(n))
        seen[own + (total if sums else tuple(tuple(share[u]) for u in honest))] += 1
    return seen


@pytest.mark.parametrize(
    ("p", "n", "t", "coalition"),
    [(5, 3, 2, ()), (5, 3, 2, (0,)), (5, 3, 3, (0,)), (5, 4, 2, (3,)), (5, 4, 3, (1, 3))],
)
def test_the_view_depends_on_the_honest_sum_only_in_small_fields(
    p: int, n: int, t: int, coalition: tuple[int, ...]
) -> None:
    honest = [u for u in range(n) if u not in coalition]
    by_sum: dict[int, list[Counter[tuple[int, ...]]]] = {}
    for values in product((0, 1, 3), repeat=len(honest)):
        inputs = [0] * n
        for u, x in zip(honest, values, strict=True):
            inputs[u] = x
        by_sum.setdefault(sum(values) % p, []).append(
            views(tuple(inputs), p=p, t=t, coalition=coalition)
        )
    assert len(by_sum) > 1
    for same in by_sum.values():
        assert all(found == same[0] for found in same)
    different = [found[0] for found in by_sum.values()]
    assert all(a != b for a, b in combinations(different, 2))


@pytest.mark.parametrize("broken", ["t peers collude", "single shares are revealed"])
def test_the_count_shows_a_leak_between_peers_where_there_is_one(broken: str) -> None:
    coalition = (0, 1) if broken == "t peers collude" else ()
    sums = broken == "t peers collude"
    one, other = (
        views(inputs, p=5, t=2, coalition=coalition, sums=sums)
        for inputs in ((0, 0, 1, 2), (0, 0, 2, 1))
    )
    assert one != other


# -- the field of the wire ------------------------------------------------------------------------


def rank(rows: list[list[int]]) -> int:
    """Rank over GF(p), by elimination in plain integers."""
    rows = [row[:] for row in rows]
    found = 0
    for column in range(len(rows[0]) if rows else 0):
        pivot = next((r for r in range(found, len(rows)) if rows[r][column] % PRIME), None)
        if pivot is None:
            continue
        rows[found], rows[pivot] = rows[pivot], rows[found]
        inverse = pow(rows[found][column], -1, PRIME)
        rows[found] = [x * inverse % PRIME for x in rows[found]]
        for r in range(len(rows)):
            if r != found and rows[r][column]:
                factor = rows[r][column]
                rows[r] = [(x - factor * y) % PRIME for x, y in zip(rows[r], rows[found],
                                                                   strict=True)]  # fmt: skip
        found += 1
    return found


def columns(n: int, t: int, coalition: tuple[int, ...]) -> tuple[list[list[int]], list[list[int]]]:
    """The view's columns: of the honest inputs, and of the honest coefficients; real functions."""
    honest = [u for u in range(n) if u not in coalition]
    of_inputs, of_coefficients = [], []
    for u in honest:
        for j in range(t):
            unit = np.zeros((t, 1), dtype=np.uint32)
            unit[j] = 1
            shares = deal(unit[0], unit[1:], list(range(n)))
            total = np.zeros(n, dtype=np.uint32)
            accumulate(total, shares[:, 0])
            own = [int(shares[h, 0]) if v == u else 0 for v in honest for h in coalition]
            (of_inputs if j == 0 else of_coefficients).append([*own, *map(int, total)])
    return of_inputs, of_coefficients


def leaks(n: int, t: int, coalition: tuple[int, ...]) -> bool:
    of_inputs, span = columns(n, t, coalition)
    moves = [
        [(a - b) % PRIME for a, b in zip(of_inputs[0], other, strict=True)]
        for other in of_inputs[1:]
    ]
    return rank(span + moves) > rank(span)


@pytest.mark.parametrize("n", [3, 4, 5, 6, 7])
def test_any_t_minus_1_peers_learn_the_sum_only_and_any_t_learn_more(n: int) -> None:
    for t in range(2, n + 1):
        for size in range(n - 1):  # with n - 1 colluders the sum is the input
            for coalition in combinations(range(n), size):
                assert leaks(n, t, coalition) is (size >= t), (t, coalition)


def test_no_input_and_no_share_lies_readable_on_the_wire(kit: Any) -> None:
    bench = kit.make(5, m=8)
    bench.start()
    shares: dict[tuple[ClientId, ClientId], bytes] = {}
    bench.deliver()
    bench.close()
    bench.deliver()
    for v, peer in bench.peers.items():
        for u, words in peer._secrets.shares.items():
            shares[u, v] = words.astype("<u4").tobytes()
    bench.finish()
    frames = b"".join(bench.sent.values())
    for u, vector in bench.vectors.items():
        assert vector.values.astype("<u4").tobytes()[:16] not in frames
        assert all(shares[u, v][:16] not in frames for v in bench.peers)
    total = bench.peers[ClientId(1)].result.vector.values.astype("<u4").tobytes()
    assert total[:16] not in frames


def test_every_dealing_is_fresh(kit: Any) -> None:
    """One input, two sessions: nobody's ciphertexts or shares are alike."""
    first, second = kit.make(5), kit.make(5, nonce=b"\1" * 32)
    for bench in (first, second):
        bench.start()
        bench.finish()
    for key, frame in first.sent.items():
        if key[2] is MessageType.SHARE_INPUT:
            bodies = [
                ShareInput.decode(decode_frame(f).body, m=4).ciphertext
                for f in (frame, second.sent[key])
            ]
            assert bodies[0] != bodies[1]
