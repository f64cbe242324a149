"""Lying peers against real machines: every pair of lists, and where a second sum begins to open.

Liars may tell each honest peer another report and sign every list. The honest peers are the real
machines; what they reveal is opened here with the liars' own shares, in plain integers.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from securefl.primitives.field import PRIME
from securefl.protocols.peersum import params
from securefl.protocols.peersum.messages import Confirm, Report
from securefl.protocols.peersum.transitions import MessageType
from securefl.round import ClientId
from securefl.wire import pack_bitmap

_PATH = Path(__file__).parents[1] / "protocols" / "peersum" / "conftest.py"
_SPEC = importlib.util.spec_from_file_location("securefl_peersum_bench", _PATH)
assert _SPEC is not None and _SPEC.loader is not None
_BENCH = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = _BENCH
_SPEC.loader.exec_module(_BENCH)

TARGET = ClientId(1)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weakened library that takes any numbers."""
    monkeypatch.setattr(params, "_check_numbers", lambda **numbers: None)


def flags(ids: Iterable[int], members: Iterable[int]) -> np.ndarray:
    there = set(members)
    return np.array([u in there for u in ids])


class Liars:
    """The last c peers of a session of n, who want the sum with and without the target."""

    def __init__(self, n: int, c: int, **numbers: int) -> None:
        self.bench = _BENCH.make(n, m=2, **numbers)
        self.ids = list(self.bench.peers)
        self.honest, self.liars = self.ids[: n - c], self.ids[n - c :]
        self.full = frozenset(self.ids)
        self.without = self.full - {TARGET}

    def attack(self, first: Iterable[ClientId]) -> dict[frozenset[int], set[ClientId]]:
        """Who reveals for which list if ``first`` are led to the list without the target.

        An honest report has everybody, so a liar's report is what makes the difference.
        """
        first = set(first)
        told = {v: self.without if v in first else self.full for v in self.honest}
        bench = self.bench.to("report")
        bench.deliver(
            lambda u, v, f: (
                bench.forged(u, v, MessageType.REPORT, Report(
                    dealers=flags(self.ids, told[v])).encode())
                if u in self.liars and v in told
                else f
            )
        )  # fmt: skip
        bench.close(self.honest)
        bench.deliver(lambda u, v, f: None if self.across(u, v, first) else f)
        for v in self.honest:
            for u in self.liars:
                frame = bench.forged(u, v, MessageType.CONFIRM, self.vote(u, told[v]))
                bench.peers[v].receive(frame, u)
        bench.close(self.honest)
        revealed: dict[frozenset[int], set[ClientId]] = {self.full: set(), self.without: set()}
        for v in self.honest:
            chosen = bench.peers[v]._list
            for members, who in revealed.items():
                if chosen == pack_bitmap(flags(self.ids, members)):
                    who.add(v)
        return revealed

    def across(self, u: ClientId, v: ClientId, first: set[ClientId]) -> bool:
        """Whether the liars hold this frame back: between the two halves."""
        return u in self.honest and v in self.honest and (u in first) != (v in first)

    def vote(self, u: ClientId, members: Iterable[int]) -> bytes:
        alive = flags(self.ids, members)
        statement = self.bench.peers[TARGET]._ballots.statement(alive)
        signature = self.bench.identities[u].sign(statement)
        return Confirm(alive=alive, signature=signature).encode()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("n", [4, 5, 6])
def test_a_second_list_is_revealed_for_exactly_where_the_quorum_bound_is_broken(n: int) -> None:
    for c in range(1, n - 1):
        for q in range(c + 1, n + 1):
            won = False
            for size in range(n - c + 1):
                liars = Liars(n, c, A=1, D=0, q=q, t=2, n_min=3)
                revealed = liars.attack(range(1, size + 1))
                won |= all(revealed.values())
            assert won is (2 * q <= n + c), (n, c, q)


def test_with_numbers_that_the_library_takes_no_division_of_the_peers_opens_two_lists() -> None:
    for n, c in ((5, 1), (7, 2)):
        q = params.least_quorum(n, c)
        for size in range(n - c + 1):
            for first in combinations(range(1, n - c + 1), size):
                liars = Liars(n, c, A=c, D=n - q, q=q, t=c + 1, n_min=c + 2)
                revealed = liars.attack(map(ClientId, first))
                assert sum(bool(who) for who in revealed.values()) <= 1


def lagrange(shares: dict[int, int]) -> int:
    """The polynomial through these points at zero, in plain integers."""
    total = 0
    for x, y in shares.items():
        weight = y
        for other in shares:
            if other != x:
                weight = weight * other * pow(other - x, -1, PRIME) % PRIME
        total += weight
    return total % PRIME


@pytest.mark.parametrize("c", [1, 2, 3])
def test_t_colluders_open_a_single_input_and_t_minus_1_do_not(c: int) -> None:
    """Why t must exceed the number of colluders: they pool their shares of one dealer."""
    bench = _BENCH.make(8, A=1, D=1, t=3, m=1)
    bench.to("report")
    bench.deliver()
    pooled = {
        int(v): int(bench.peers[ClientId(v)]._secrets.shares[TARGET][0]) for v in range(2, 2 + c)
    }
    found = lagrange(pooled)
    assert (found == int(bench.vectors[TARGET].values[0])) is (c >= 3)


def test_a_peer_signs_and_reveals_once_whatever_it_is_told() -> None:
    bench = _BENCH.make(6, A=1, D=1)
    bench.start()
    bench.finish()
    one = bench.peers[TARGET]
    sent = [key for key in bench.sent if key[0] == TARGET]
    assert len(sent) == 5 * 5  # five messages to five peers, no second one to anybody
    for (u, v, _), frame in bench.sent.items():
        if v == TARGET:
            assert one.receive(frame, u) == []
    lie = Confirm(alive=np.array([True] * 5 + [False]), signature=bytes(64)).encode()
    frame = bench.forged(ClientId(2), TARGET, MessageType.CONFIRM, lie)
    assert not any(hasattr(item, "frame") for item in one.receive(frame, ClientId(2)))


def test_a_dealer_without_a_polynomial_makes_peers_open_different_sums_or_none() -> None:
    """What is not promised: dealers are not verified. The driver notices, a lone peer may not."""
    from securefl.errors import InvalidShare
    from securefl.simulation.peers import run_peers

    bench = _BENCH.make(6, A=1, D=0, t=6)
    liar = bench.peers[ClientId(6)]
    real = liar._deal_if_complete

    def crooked() -> list[Any]:
        out = real()
        if out:
            share = liar._secrets.shares[ClientId(6)]
            liar._secrets.shares[ClientId(6)] = (share + np.uint32(1)) % np.uint32(PRIME)
        return out

    liar._deal_if_complete = crooked
    try:
        result = run_peers(bench.peers, bench.vectors)
    except InvalidShare:
        return
    assert result.aggregate.vector.values.tolist() != bench.plain_sum(range(1, 7))
    assert not result.aggregate.verified
