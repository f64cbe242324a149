"""Wrong shares are corrected or end the round, and are named: against plain integers."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.errors import InvalidShare
from securefl.protocols.machine import ClientDropped, Reason, ShareMismatch
from securefl.protocols.secagg import reconstruction
from securefl.protocols.secagg.graph import CompleteGraph, Edges, HararyGraph
from securefl.protocols.secagg.messages import UnmaskShares
from securefl.protocols.secagg.reconstruction import Opened, ShareTable, Weights, open_secrets
from securefl.round import ClientId, Cohort, Layout

P = 2**31 - 1
Share = tuple[int, ...]


# -- an oracle in plain integers -------------------------------------------------------------------


def words_of(secret: bytes) -> list[int]:
    number = int.from_bytes(secret, "little")
    return [(number >> 30 * i) % 2**30 for i in range(-(-8 * len(secret) // 30))]


def secret_of(words: list[int], size: int) -> bytes | None:
    if any(w >= 2**30 for w in words):
        return None
    number = sum(w << 30 * i for i, w in enumerate(words))
    return number.to_bytes(size, "little") if number < 2 ** (8 * size) else None


def value_at(x: int, known: list[tuple[int, int]]) -> int:
    """The polynomial through these points, at x (Lagrange)."""
    total = 0
    for i, (xi, yi) in enumerate(known):
        term = yi
        for j, (xj, _) in enumerate(known):
            if i != j:
                term = term * (x - xj) * pow(xi - xj, -1, P) % P
        total += term
    return total % P


def through(known: dict[int, Share], x: int) -> list[int]:
    words = len(next(iter(known.values())))
    return [value_at(x, [(xi, share[w]) for xi, share in known.items()]) for w in range(words)]


def nearest(shares: dict[int, Share], t: int) -> tuple[list[int], set[int]] | None:
    """Words at zero and wrong points, if all but floor((M-t)/2) points lie on one polynomial."""
    radius = (len(shares) - t) // 2
    for chosen in itertools.combinations(sorted(shares), t):
        known = {x: shares[x] for x in chosen}
        wrong = {x for x in shares if x not in known and through(known, x) != list(shares[x])}
        if len(wrong) <= radius:
            return through(known, 0), wrong
    return None


@dataclass
class Expected:
    secrets: dict[int, bytes] = field(default_factory=dict)
    wrong: dict[int, tuple[int, ...]] = field(default_factory=dict)
    unclear: list[int] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)


def oracle(given_: list[dict[int, Share]], published: list[bytes], t: int) -> Expected:
    """What the shares of each dealer, by point, have to give."""
    expected = Expected()
    for d, (shares, secret) in enumerate(zip(given_, published, strict=True)):
        lowest = {x: shares[x] for x in sorted(shares)[:t]}
        plain = secret_of(through(lowest, 0), len(secret)) == secret
        found = nearest(shares, t)
        corrected = found is not None and secret_of(found[0], len(secret)) == secret
        if plain or corrected:
            expected.secrets[d] = secret
        else:
            expected.failed.append(d)
        if corrected and found is not None and found[1]:
            expected.wrong[d] = tuple(sorted(found[1]))
        elif plain and not corrected:
            expected.unclear.append(d)
    return expected


# -- shares with lies in them ----------------------------------------------------------------------


@dataclass
class Case:
    table: ShareTable
    points: list[int]
    given: list[dict[int, Share]]
    published: list[bytes]
    t: int

    def open(self, **more: Any) -> Opened:
        return open_secrets(
            self.table,
            np.ones(len(self.published), dtype=np.bool_),
            points=np.array(self.points, dtype=np.uint64),
            t=self.t,
            check=lambda d, secret: secret == self.published[d],
            **more,
        )

    def check(self, opened: Opened) -> None:
        expected = oracle(self.given, self.published, self.t)
        place = {x: i for i, x in enumerate(self.points)}
        wrong = {d: tuple(place[x] for x in who) for d, who in expected.wrong.items()}
        assert opened.wrong == wrong
        assert opened.secrets == expected.secrets
        assert sorted(opened.unclear) == expected.unclear
        assert sorted(opened.failed) == expected.failed


@st.composite
def cases(draw: st.DrawFn) -> Case:
    n = draw(st.integers(3, 7))
    size = draw(st.sampled_from([16, 32]))
    own = draw(st.booleans())
    t = draw(st.integers(2, max(2, n - 2)))
    points = sorted(draw(st.sets(st.integers(1, 40), min_size=n, max_size=n)))
    cohort = Cohort.of(range(n))
    graph: Any = CompleteGraph(cohort, Layout.OTHERS)
    if n >= 5 and not own and draw(st.booleans()):
        graph, t = HararyGraph(cohort, 4, bytes(32)), min(t, 3)
    edges = Edges(graph, cohort.ids, cohort.ids, own=own)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = len(words_of(bytes(size)))
    table = ShareTable(edges, words=count, secret_bytes=size)
    published, given_ = [], []
    liars = draw(st.sets(st.integers(0, n - 1), max_size=3))
    twisters = draw(st.sets(st.integers(0, n - 1), max_size=2))
    silent = draw(st.sets(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=4))
    for d in range(n):
        shared = rng.bytes(size)
        published.append(rng.bytes(size) if d in twisters and rng.random() < 0.5 else shared)
        rows = [[int(c) for c in rng.integers(0, P, count)] for _ in range(t - 1)]
        mine: dict[int, Share] = {}
        holders = edges.holder[edges.of_dealer(d)].tolist()
        spare = len(holders) - t
        for e, h in zip(range(*edges.of_dealer(d).indices(len(edges))), holders, strict=True):
            if (d, h) in silent and spare > 0:
                spare -= 1
                continue
            x = points[h]
            share = [
                (w + sum(row[i] * x ** (j + 1) for j, row in enumerate(rows))) % P
                for i, w in enumerate(words_of(shared))
            ]
            if (h in liars and rng.random() < 0.8) or (d in twisters and rng.random() < 0.3):
                share[int(rng.integers(count))] = int(rng.integers(P))
            mine[x] = tuple(share)
            table.put(np.array([e]), np.array([share], dtype=np.uint32))
        given_.append(mine)
    return Case(table, points, given_, published, t)


@given(cases())
def test_secrets_and_blame_are_those_of_a_brute_force_over_all_subsets(case: Case) -> None:
    case.check(case.open())


@given(cases(), st.sets(st.integers(0, 2)))
def test_suspicion_changes_nothing(case: Case, suspected: set[int]) -> None:
    """Also a false suspicion: it only decides where to look first."""
    case.check(case.open(suspected=suspected))


def lying(n: int, t: int, liars: set[int], *, all_words: bool = False) -> Case:
    """Everybody deals to everybody else; the liars are wrong about all dealers."""
    cohort = Cohort.of(range(n))
    edges = Edges(CompleteGraph(cohort, Layout.OTHERS), cohort.ids, cohort.ids)
    table = ShareTable(edges, words=5, secret_bytes=16)
    rng = np.random.default_rng(n * 100 + t)
    published, given_ = [], []
    for d in range(n):
        secret = rng.bytes(16)
        rows = [[int(c) for c in rng.integers(0, P, 5)] for _ in range(t - 1)]
        mine = {}
        for e in range(*edges.of_dealer(d).indices(len(edges))):
            h = int(edges.holder[e])
            share = [
                (w + sum(row[i] * (h + 1) ** (j + 1) for j, row in enumerate(rows))) % P
                for i, w in enumerate(words_of(secret))
            ]
            if h in liars:
                share = [(y + 1) % P if all_words or i == d % 5 else y for i, y in enumerate(share)]
            mine[h + 1] = tuple(share)
            table.put(np.array([e]), np.array([share], dtype=np.uint32))
        published.append(secret)
        given_.append(mine)
    return Case(table, list(range(1, n + 1)), given_, published, t)


@pytest.mark.parametrize("liars", [{0}, {9}, {0, 4}, {8, 9}])
def test_liars_cost_one_decoding_and_not_one_per_dealer(
    liars: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counting(*arguments: Any, **named: Any) -> Any:
        calls.append(named)
        return decode(*arguments, **named)

    decode = reconstruction.decode
    monkeypatch.setattr(reconstruction, "decode", counting)
    case = lying(10, 5, liars)
    opened = case.open()
    case.check(opened)
    assert opened.wrong == {d: tuple(sorted(liars - {d})) for d in range(10) if liars - {d}}
    assert len(calls) <= 1 + len(liars)  # a liar is no holder of its own secret


def test_a_coalition_that_is_named_one_by_one_does_not_have_all_shares_examined_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Holder d lies about dealer d - 1 alone, so every decoding names one more liar."""
    examined = []

    class Counting(Weights):
        def __init__(self, *arguments: Any) -> None:
            examined.append(arguments)
            super().__init__(*arguments)

    most = 3
    monkeypatch.setattr(reconstruction, "Weights", Counting)
    monkeypatch.setattr(reconstruction, "MOST_SET_ASIDE", most, raising=False)
    case = lying(16, 4, set())
    for d in range(15):
        (row,) = (
            r for r in case.table.rows(d, case.table.present) if case.table.edges.holder[r] == d + 1
        )
        wrong = case.table.words[row].copy()
        wrong[d % 5] = (int(wrong[d % 5]) + 1) % P
        case.table.put(np.array([row]), wrong.reshape(1, -1))
        case.given[d][d + 2] = tuple(wrong.tolist())
    opened = case.open()
    case.check(opened)
    assert opened.wrong == {d: (d + 1,) for d in range(15)}
    # Once at first, then for 1, 2, ..., ``most`` liars: without them, and with each of them.
    assert len(examined) <= 1 + sum(1 + named for named in range(1, most + 1))


def test_a_lie_that_leaves_the_secret_alone_is_named() -> None:
    """Among the lowest t, and in the kernel of their weights: only the other shares can tell."""
    case = lying(8, 3, set())
    table, d = case.table, 7
    rows = table.rows(d, table.present)[:3]
    w = [1, 1, 1]
    for i, xi in enumerate((1, 2, 3)):
        for xj in (1, 2, 3):
            w[i] = w[i] * (xj * pow(xj - xi, -1, P) if xi != xj else 1) % P
    a, b = (int(table.words[rows[i], 0]) for i in (0, 1))
    table.words[rows[0], 0] = (a + w[1]) % P
    table.words[rows[1], 0] = (b - w[0]) % P
    for row, x in ((rows[0], 1), (rows[1], 2)):
        case.given[d][x] = tuple(int(v) for v in table.words[row])
    opened = case.open()
    case.check(opened)
    assert opened.wrong == {7: (0, 1)}


def test_shares_of_many_sizes_and_sets_get_the_weights_of_each() -> None:
    """One point left out, none left out, and sets that fit no pattern; t and all shares."""
    points = np.array([2, 3, 5, 8, 13, 21, 34], dtype=np.uint64)
    answered = np.array([0, 1, 2, 4, 5, 6], dtype=np.uint16)
    for t, sets in ((3, [[0, 1, 2], [0, 1, 4], [1, 2, 4], [2, 5, 6]]), (5, [[0, 1, 2, 4, 5]])):
        weights = Weights(points, answered, t, os.urandom)
        found = weights.at_zero(np.array(sets, dtype=np.uint16))
        for chosen, row in zip(sets, found.tolist(), strict=True):
            xs = [int(points[i]) for i in chosen]
            for i, x in enumerate(xs):
                unit = [(xj, int(i == j)) for j, xj in enumerate(xs)]
                assert row[i] == value_at(0, unit), (chosen, x)
    weights = Weights(points, answered, 3, os.urandom)
    for chosen in ([0, 1, 2, 4, 5, 6], [0, 1, 4, 5, 6], [1, 2, 5, 6]):
        (row,) = weights.parity(np.array([chosen], dtype=np.uint16)).tolist()
        for degree in range(3):
            assert (
                sum(w * int(points[i]) ** degree for w, i in zip(row, chosen, strict=True)) % P == 0
            )
        assert sum(w * int(points[i]) ** 3 for w, i in zip(row, chosen, strict=True)) % P


# -- whole sessions --------------------------------------------------------------------------------


VARIANTS: dict[str, dict[str, Any]] = {
    "complete": {"t": 4},
    "own share": {"t": 4, "layout": Layout.ALL},
    "complete, active": {"t": 6, "active": True},
    "own share, active": {"t": 6, "layout": Layout.ALL, "active": True},
    "ring": {"t": 3, "k": 8},
    "ring, active": {"t": 5, "k": 8, "active": True},
}
LOST = ClientId(3)


@dataclass
class Round:
    """A session in which everybody's shares have arrived but those of the liars."""

    secagg: Any
    bench: Any
    liars: list[ClientId]
    truth: dict[ClientId, tuple[list[ClientId], UnmaskShares]] = field(default_factory=dict)

    @classmethod
    def play(cls, secagg: Any, variant: str, liars: list[int]) -> Round:
        bench = secagg.make(10, D=1, **VARIANTS[variant]).to("masked_input_collection", [])
        bench.answer(without=[LOST])
        bench.close()
        if bench.server.phase == "consistency_check":
            bench.answer()
            bench.close()
        found = cls(secagg, bench, [ClientId(u) for u in liars])
        bench.answer(without=liars)
        return found

    def lie(self, u: ClientId, about: set[int] | None = None) -> set[tuple[int, int]]:
        """Has u send its shares, those of these dealers wrong in one word; which they are."""
        bench = self.bench
        (out,) = bench.clients[u].receive(bench.inbox[u])
        Q = bench.server._graph.peers(u, bench.server.survivors.U2)
        alive = np.array([v != LOST for v in Q])
        own = bench.config.layout is Layout.ALL
        true = UnmaskShares.decode(self.secagg.body_of(out.frame), alive=alive, own=own)
        b, s = true.b_shares.copy(), true.s_shares.copy()
        pairs = set()
        kinds = ((b, [v for v in Q if v != LOST]), (s, [v for v in Q if v == LOST]))
        for shares, dealers in kinds:
            for i, v in enumerate(dealers):
                if about is None or v in about:
                    shares[i, (u + v) % shares.shape[1]] ^= 1 << (u % 20)
                    pairs.add((int(v), int(u)))
        wrong = UnmaskShares(readable=true.readable, own=true.own, b_shares=b, s_shares=s)
        frame = self.secagg.edit(out.frame, body=wrong.encode(alive=alive))
        if bench.identities:
            frame = bench.signed(u, frame)
        assert bench.server.receive(frame, u) == []
        return pairs


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("liar", [1, 6, 10])
def test_one_liar_about_everybody_is_corrected_and_named(
    secagg: Any, variant: str, liar: int
) -> None:
    play = Round.play(secagg, variant, [liar])
    pairs = play.lie(ClientId(liar))
    play.bench.close()
    result = play.bench.server.result
    assert set(result.mismatched_pairs) == pairs
    assert list(result.mismatched_pairs) == sorted(pairs)
    assert (LOST, liar) in pairs or "ring" in variant
    assert result.vector.values.tolist() == play.bench.plain_sum(
        u for u in play.bench.clients if u != LOST
    )
    told = [e for e in play.bench.events if isinstance(e, ShareMismatch)]
    assert {(e.dealer, h) for e in told for h in e.holders} == pairs
    assert all(e.located for e in told)


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_more_liars_than_can_be_corrected_end_the_round(secagg: Any, variant: str) -> None:
    """One more than floor((M-t)/2) among the lowest holders of one dealer."""
    bench = secagg.make(10, D=1, **VARIANTS[variant])
    t, dealer = bench.config.t, ClientId(10)
    probe = Round.play(secagg, variant, [])
    holders = probe.bench.server._graph.peers(dealer, [u for u in range(1, 10) if u != LOST])
    M = len(holders) + (bench.config.layout is Layout.ALL)
    liars = holders[: (M - t) // 2 + 1]
    play = Round.play(secagg, variant, liars)
    for u in liars:
        play.lie(u, about={dealer})
    with pytest.raises(InvalidShare, match="no sum was opened") as caught:
        play.bench.server.close_phase()
    own = [dealer] if bench.config.layout is Layout.ALL else []
    assert caught.value.pairs == tuple((dealer, h) for h in [*holders, *own])
    assert caught.value.culprits == ()
    assert play.bench.server.phase == "aborted"
    assert play.bench.server.result is None


def test_a_verified_secret_is_used_though_too_many_others_contradict_it(secagg: Any) -> None:
    """The four lowest holders are honest, so the sum is right; who lied of the rest is open."""
    play = Round.play(secagg, "complete", [7, 8, 9])
    for u in (7, 8, 9):
        play.lie(ClientId(u), about={10})
    play.bench.close()
    result = play.bench.server.result
    assert result.vector.values.tolist() == play.bench.plain_sum([1, 2, 4, 5, 6, 7, 8, 9, 10])
    assert result.mismatched_pairs == ()
    told = [e for e in play.bench.events if isinstance(e, ShareMismatch)]
    assert told == [
        ShareMismatch(dealer=ClientId(10), holders=(1, 2, 4, 5, 6, 7, 8, 9), located=False)
    ]


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("kind", ["seed", "mask key"])
def test_a_bad_dealer_is_the_only_dealer_in_the_pairs(secagg: Any, variant: str, kind: str) -> None:
    """Honest holders, consistent shares of something else; for a mask key of a dropped client."""
    bench = secagg.make(10, D=1, **VARIANTS[variant]).to("share_keys")
    cheat = bench.clients[LOST]
    genuine = cheat._secrets.b
    if kind == "seed":
        cheat._secrets.b = os.urandom(16)
    else:
        cheat._secrets.s_sk = os.urandom(32)
    bench.up(LOST, cheat.receive(bench.inbox[LOST]))
    if kind == "seed":
        cheat._secrets.b = genuine
    bench.answer(without=[LOST])
    bench.close()
    bench.answer(without=[LOST] if kind == "mask key" else [])
    bench.close()
    with pytest.raises(InvalidShare) as caught:
        bench.finish()
    assert {dealer for dealer, _ in caught.value.pairs} == {LOST}
    graph, U3 = bench.server._graph, set(bench.server.survivors.U3)
    own = kind == "seed" and bench.config.layout is Layout.ALL
    assert len(caught.value.pairs) == len(graph.peers(LOST, U3)) + own
    assert bench.server.result is None


def test_a_dealer_that_dealt_one_wrong_share_is_named_with_that_holder(secagg: Any) -> None:
    """Looks exactly like a lying holder: hence pairs."""
    bench = secagg.make(8, t=3, D=1).to("unmasking")
    bench.answer()
    table = bench.server._unmasking.b
    table.words[table.rows(4, table.present)[2], 1] ^= 5
    bench.close()
    assert bench.server.result.mismatched_pairs == ((5, 3),)
    assert bench.server.result.vector.values.tolist() == bench.plain_sum(bench.clients)


def test_liars_and_a_bad_dealer_together_end_the_round_with_both_named(secagg: Any) -> None:
    bench = secagg.make(9, t=3, D=1).to("unmasking")
    bench.answer()
    table = bench.server._unmasking.b
    for dealer in range(9):  # holder 2 lies about everybody; dealer 7's seed is another one
        rows = table.rows(dealer, table.present)
        table.words[rows[table.edges.holder[rows] == 1], 2] ^= 3
    rows = table.rows(6, table.present)
    table.words[rows, 0] = (table.words[rows, 0].astype(np.uint64) + 1) % P
    with pytest.raises(InvalidShare) as caught:
        bench.server.close_phase()
    honest = {(d, 2) for d in range(1, 10) if d not in (2, 7)}
    assert set(caught.value.pairs) == honest | {(7, h) for h in range(1, 10) if h != 7}


def test_a_share_that_is_no_field_element_drops_its_sender_and_is_no_wrong_share(
    secagg: Any,
) -> None:
    play = Round.play(secagg, "complete", [1])
    bench = play.bench
    (out,) = bench.clients[ClientId(1)].receive(bench.inbox[ClientId(1)])
    body = secagg.body_of(out.frame)
    wrong = secagg.edit(out.frame, body=body[:-4] + P.to_bytes(4, "little"))
    assert bench.server.receive(wrong) == [
        ClientDropped(client=ClientId(1), phase="unmasking", reason=Reason.MALFORMED)
    ]
    bench.close()
    assert bench.server.result.mismatched_pairs == ()
    assert bench.server.result.vector.values.tolist() == bench.plain_sum(
        u for u in bench.clients if u != LOST
    )


@given(data=st.data())
def test_up_to_half_of_the_spare_shares_may_be_wrong_whoever_holds_them(
    secagg: Any, data: st.DataObject
) -> None:
    """P18: the right sum and exactly the wrong pairs, dealer by dealer."""
    t = data.draw(st.integers(2, 6))
    bench = secagg.make(9, t=t, D=1).to("unmasking")
    bench.answer()
    table = bench.server._unmasking.b
    pairs = set()
    for dealer in range(9):
        rows = table.rows(dealer, table.present)
        most = (len(rows) - t) // 2
        for i in data.draw(st.sets(st.integers(0, len(rows) - 1), max_size=most)):
            word = data.draw(st.integers(0, 4))
            change = data.draw(st.integers(1, P - 1))
            table.words[rows[i], word] = (int(table.words[rows[i], word]) + change) % P
            pairs.add((dealer + 1, int(table.edges.holder[rows[i]]) + 1))
    bench.close()
    assert set(bench.server.result.mismatched_pairs) == pairs
    assert bench.server.result.vector.values.tolist() == bench.plain_sum(bench.clients)
