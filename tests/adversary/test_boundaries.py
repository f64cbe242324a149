"""Where a lying server begins to win, found by execution: the bounds are exact in both layouts.

n = 12 real machines, c colluders that hand over everything, and a library that was told to accept
any threshold. Bonawitz et al. 2017, section 6, gives the bounds for holders that include oneself.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import pytest

from securefl.errors import BelowThreshold
from securefl.round import ClientId, Layout

N = 12
OTHERS, ALL = Layout.OTHERS, Layout.ALL
TARGET = ClientId(1)


def play(kit: Any, n: int, t: int, layout: Layout, phase: str, active: bool) -> Any:
    n_min = max(3, t + (layout is OTHERS))
    return kit.make(n, t=t, D=0, n_min=n_min, m=1, b=16, layout=layout, active=active).to(phase)


def split_view(kit: Any, t: int, c: int, layout: Layout) -> bool:
    """Half of the honest clients hear that the target dropped out, the others that it did not."""
    bench = play(kit, N, t, layout, "unmasking", active=False)
    server = kit.attacker(bench, range(N - c + 1, N + 1))
    others = [u for u in server.honest if u != TARGET]
    first = max(0, t - c)
    for u in others[:first]:
        server.ask(u, [v for v in server.ids if v != TARGET])
    for u in [*others[first:], TARGET]:
        server.ask(u, server.ids)
    return server.has([TARGET])


def signed_split_view(kit: Any, t: int, c: int, layout: Layout) -> bool:
    """The same where every client wants t signatures over its list; colluders sign both."""
    bench = play(kit, N, t, layout, "consistency_check", active=True)
    server = kit.attacker(bench, range(N - c + 1, N + 1))
    others = [u for u in server.honest if u != TARGET]
    first = min(len(others), max(0, t + (layout is OTHERS) - c))
    everybody, without = server.ids, [v for v in server.ids if v != TARGET]
    for group, alive in ((others[:first], without), ([*others[first:], TARGET], everybody)):
        signed = {u: server.get_signature(u, alive) for u in group}
        signed |= {v: server.collude(v, alive) for v in server.colluders}
        for u in group:
            usable = [(v, s) for v, s in sorted(signed.items()) if v != u and s is not None]
            server.ask_signed(u, alive, usable)
    return server.has([TARGET])


ATTACKS = {
    ("unsigned", ALL): (split_view, lambda c: (N + c) // 2),
    ("unsigned", OTHERS): (split_view, lambda c: (N - 1 + c) // 2),
    ("signed", ALL): (signed_split_view, lambda c: (N + c) // 2),
    ("signed", OTHERS): (signed_split_view, lambda c: (N - 2 + c) // 2),
}
CASES = [(what, layout) for what, layout in ATTACKS]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("c", [1, 2, 5, 8])
@pytest.mark.parametrize(("what", "layout"), CASES)
def test_the_split_view_wins_exactly_up_to_its_bound(
    kit: Any, what: str, layout: Layout, c: int
) -> None:
    attack, highest = ATTACKS[what, layout]
    assert attack(kit, highest(c), c, layout)
    assert not attack(kit, highest(c) + 1, c, layout)


@pytest.mark.long
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("c", range(1, N - 1))
@pytest.mark.parametrize(("what", "layout"), CASES)
def test_the_whole_map_of_the_split_view(kit: Any, what: str, layout: Layout, c: int) -> None:
    attack, highest = ATTACKS[what, layout]
    for t in range(2, N - 1):
        assert attack(kit, t, c, layout) is (t <= highest(c)), (t, c)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("t", range(2, N))
def test_a_server_that_asks_nothing_wins_exactly_with_t_colluders(
    kit: Any, layout: Layout, t: int
) -> None:
    """The whole map: every t, and in its session every number of colluders."""
    bench = play(kit, N, t, layout, "unmasking", active=False)
    for c in range(N - 1):
        server = kit.attacker(bench, range(N - c + 1, N + 1))
        assert server.has([TARGET]) is (t <= c), c


def shrink_lists(n: int, t: int, layout: Layout, kept: int) -> dict[int, set[int]] | None:
    """Lists of clients 1..n that open the sum of the first ``kept`` alone; None if impossible.

    Everybody outside is left out of t lists of others, as evenly as possible, and each list keeps
    as many names as its owner checks for.
    """
    room = n - t - (layout is OTHERS)
    left_out: dict[int, set[int]] = {i: set() for i in range(1, n + 1)}
    for outside in range(kept + 1, n + 1):
        free = sorted((i for i in left_out if i != outside), key=lambda i: (len(left_out[i]), -i))
        for i in free[:t]:
            left_out[i].add(outside)
    if max(map(len, left_out.values())) > room:
        return None
    return {i: set(left_out) - out for i, out in left_out.items()}


SHRINK = [
    (10, 6, 4, 5),
    (10, 7, 6, 8),
    (10, 8, 8, 9),
    (30, 16, 4, 6),
    (30, 21, 18, 19),
    (50, 26, 4, 6),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize(("n", "t", "with_own", "without"), SHRINK)
def test_without_a_signed_list_sums_shrink_exactly_to_their_bound(
    kit: Any, n: int, t: int, with_own: int, without: int, layout: Layout
) -> None:
    """No colluders, 2t > h, every client sees a list that passes all its checks."""
    h = n - (layout is OTHERS)
    smallest = ceil(n * (2 * t - h) / t)
    assert smallest == (with_own if layout is ALL else without)
    # Fewer is impossible by counting: each list has room for n_min - 1 others at the least.
    assert (n - smallest + 1) * t > n * (h - t)
    lists = shrink_lists(n, t, layout, smallest)
    assert lists is not None
    bench = play(kit, n, t, layout, "unmasking", active=False)
    server = kit.attacker(bench)
    for u in server.ids:
        server.ask(u, [ClientId(v) for v in lists[u]])
    assert not server.refused
    assert server.has(server.ids[:smallest])


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize(("n", "t", "with_own", "without"), SHRINK)
def test_with_a_signed_list_nobody_answers_for_a_list_of_its_own(
    kit: Any, n: int, t: int, with_own: int, without: int, layout: Layout
) -> None:
    smallest = with_own if layout is ALL else without
    lists = shrink_lists(n, t, layout, smallest)
    assert lists is not None
    bench = play(kit, n, t, layout, "consistency_check", active=True)
    server = kit.attacker(bench)
    signed = {u: server.get_signature(u, [ClientId(v) for v in lists[u]]) for u in server.ids}
    assert None not in signed.values()
    for u in server.ids:
        same = [(v, signed[v]) for v in server.ids if v != u and lists[v] == lists[u]]
        server.ask_signed(u, [ClientId(v) for v in lists[u]], same)
    assert len(server.refused) == n
    assert all(isinstance(error, BelowThreshold) for error in server.refused)
    assert not server.has(server.ids[:smallest])


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize(("n", "t"), [row[:2] for row in SHRINK])
def test_the_smallest_sum_behind_one_signed_list_has_every_signer_in_it(
    kit: Any, n: int, t: int, layout: Layout
) -> None:
    """t inputs where one's own share counts, else t + 1; n_min is as low as it may be."""
    least = t + (layout is OTHERS)
    for kept in (least, least - 1):
        bench = play(kit, n, t, layout, "consistency_check", active=True)
        server = kit.attacker(bench)
        alive = server.ids[:kept]
        signed = {u: server.get_signature(u, alive) for u in alive}
        for u in alive:
            usable = [(v, s) for v, s in signed.items() if v != u and s is not None]
            server.ask_signed(u, alive, usable)
        assert server.has(alive) is (kept == least)
        if kept < least:
            assert set(signed.values()) == {None}
            assert all(isinstance(error, BelowThreshold) for error in server.refused[:kept])
