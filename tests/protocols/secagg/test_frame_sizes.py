"""Bytes on the wire: the formulas of the documentation, tied to real frames."""

from __future__ import annotations

from math import ceil
from typing import Any

import pytest

from securefl.round import ClientId
from securefl.wire import HEADER_BYTES, SIGNATURE_BYTES


def path_bytes(index: int, size: int) -> int:
    """32 bytes per sibling that exists on the way up."""
    total = 0
    while size > 1:
        total += 32 * ((index ^ 1) < size)
        index, size = index >> 1, (size + 1) >> 1
    return total


def formula(n: int, k: int, m: int, b: int, active: bool, places: list[int]) -> tuple[int, int]:
    """(up, down) per client without dropouts; ``places``: indices of the roster's entries in U1."""
    complete = k == n - 1
    entry = 164 if active else 68
    up = [96, 4 + 72 * k, ceil(m * b / 8), *[64] * active, ceil(k / 8) + 20 * k]
    roster = 4 + entry * n
    if not complete:
        roster = 40 + sum(entry + 5 + path_bytes(i, n) for i in places)
    request = 4 + 68 * k if active else 4 + ceil(k / 8)
    down = [roster, ceil(k / 8) + 72 * k, *[ceil(n / 8)] * active, request]
    extra = HEADER_BYTES + SIGNATURE_BYTES * active
    return sum(up) + extra * len(up), sum(down) + HEADER_BYTES * len(down)


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize(("n", "k"), [(7, 6), (9, 8), (9, 4), (20, 6)])
@pytest.mark.parametrize(("m", "b"), [(0, 1), (11, 26), (8, 64)])
def test_frames_have_the_sizes_of_the_formulas(
    secagg: Any, n: int, k: int, active: bool, m: int, b: int
) -> None:
    bench = secagg.make(n, k=None if k == n - 1 else k, D=1, m=m, b=b, active=active)
    up, down = dict.fromkeys(bench.clients, 0), dict.fromkeys(bench.clients, 0)
    bench.start()
    while not bench.server.final:
        bench.close()
        for u, frame in bench.inbox.items():
            down[u] += len(frame)
        bench.answer()
    for (u, _), frame in bench.sent.items():
        up[u] += len(frame)
    ids = list(bench.clients)
    for u in ids:
        places = [ids.index(v) for v in [u, *bench.clients[u]._graph.peers(u, ids)]]
        assert (up[u], down[u]) == formula(n, k, m, b, active, places)
    if k == n - 1 and not active:
        P = n - 1
        assert up[ClientId(1)] == 340 + 92 * P + ceil(m * b / 8) + ceil(P / 8)
        assert down[ClientId(1)] == 188 + 68 * n + 72 * P + 2 * ceil(P / 8)


@pytest.mark.parametrize(
    ("n", "m", "k", "active", "most", "figure"),
    [
        (2**10, 2**20, None, False, 1.74, 1.7386),
        (2**14, 2**24, None, False, 1.99, 1.9885),
        (2**14, 2**20, None, False, 3.70, 3.6906),
        (2**10, 2**20, 72, False, 1.65, 1.6446),
        (2**10, 2**20, None, True, 1.82, 1.8189),
        (2**14, 2**24, None, True, 2.07, 2.0686),
        (2**14, 2**20, None, True, 4.98, 4.9721),
    ],
)
def test_communication_expands_16_bit_inputs_by_no_more_than(
    n: int, m: int, k: int | None, active: bool, most: float, figure: float
) -> None:
    """(up + down) / 2m; the 2017 paper has 1.73, 1.98 and 3.62 for its semi-honest variant."""
    b = 16 + (n - 1).bit_length()
    places = [] if k is None else list(range(k + 1))  # a power of two: all paths are equally long
    up, down = formula(n, n - 1 if k is None else k, m, b, active, places)
    assert (up + down) / (2 * m) == pytest.approx(figure, abs=6e-5)
    assert (up + down) / (2 * m) <= most
