"""A server that lies about survivors: what it opens, executed with real machines and colluders.

U answers for one list open that list's sum, and T < s < U answers already give s - T linear
equations about its blocks. So the active machine must leave room for one list only, and it does
exactly if 2U > N + T; the same attacks win in configurations that break this rule, and in the
semi-honest variant, which promises nothing against this server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from securefl.errors import (
    BelowThreshold,
    ConfigurationError,
    Equivocation,
    InvalidSignature,
    SecureFLError,
)
from securefl.primitives.field import PRIME
from securefl.protocols.lightsecagg import params
from securefl.protocols.lightsecagg.coding import MaskCode, accumulate, subtract
from securefl.protocols.lightsecagg.messages import RecoveryRequest, decode_elements
from securefl.protocols.lightsecagg.transitions import MessageType
from securefl.protocols.messages import SignedUnmaskRequest, SurvivorNotice
from securefl.round import ClientId


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weakened library that takes any numbers, as those do that only document the bounds."""
    monkeypatch.setattr(params, "_check_numbers", lambda **numbers: None)


class Attacker:
    """A server in a genuine session after all masked inputs have arrived, with colluders."""

    def __init__(self, light: Any, bench: Any, colluders: Iterable[int]) -> None:
        self.light, self.bench = light, bench
        self.ids = list(bench.clients)
        self.colluders = [u for u in self.ids if u in set(colluders)]
        self.honest = [u for u in self.ids if u not in set(colluders)]
        self.config = bench.config
        self.end = bench.server._end
        self.code = MaskCode(N=self.config.n, U=self.config.k, T=self.config.t, m=self.config.m)
        self.answers: dict[frozenset[int], dict[ClientId, np.ndarray]] = {}
        self.refused: list[SecureFLError] = []

    def flags(self, alive: Iterable[int]) -> np.ndarray:
        return np.array([u in set(alive) for u in self.ids])

    def _send(self, u: ClientId, kind: MessageType, body: bytes) -> bytes | None:
        frame = self.end.frame(kind, body, session=self.end.session)
        try:
            out = self.bench.clients[u].receive(frame)
        except SecureFLError as error:
            self.refused.append(error)
            return None
        return self.light.body_of(out[-1].frame)

    def _keep(self, u: ClientId, alive: Iterable[int], body: bytes | None) -> None:
        if body is not None:
            share = decode_elements(body, count=self.code.L)
            self.answers.setdefault(frozenset(alive), {})[u] = share

    def ask(self, u: ClientId, alive: Iterable[int]) -> None:
        """A semi-honest request with this list."""
        body = RecoveryRequest(alive=self.flags(alive)).encode()
        self._keep(u, alive, self._send(u, MessageType.RECOVERY_REQUEST, body))

    def signature(self, u: ClientId, alive: Iterable[int]) -> bytes | None:
        """Has u sign this list; a colluder signs any number of them."""
        notice = SurvivorNotice(alive=self.flags(alive)).encode()
        if u in self.colluders:
            statement = self.end.keys.survivor_statement(self.end.session, notice)
            return self.bench.identities[u].sign(statement)
        return self._send(u, MessageType.SURVIVOR_NOTICE, notice)

    def ask_signed(self, shown: dict[ClientId, frozenset[int]]) -> None:
        """Each honest client is shown one list, and all signatures that could be had on it."""
        signed: dict[frozenset[int], list[tuple[ClientId, bytes]]] = {}
        for alive in set(shown.values()):
            who = [u for u in self.ids if shown.get(u) == alive or u in self.colluders]
            made = [(u, self.signature(u, alive)) for u in who if u in alive]
            signed[alive] = [(u, s) for u, s in made if s is not None]
        for u, alive in shown.items():
            signatures = tuple((v, s) for v, s in signed[alive] if v != u)
            body = SignedUnmaskRequest(signatures=signatures).encode()
            self._keep(u, alive, self._send(u, MessageType.RECOVERY_REQUEST, body))

    def known(self, alive: frozenset[int]) -> dict[ClientId, np.ndarray]:
        """All answers for this list: what came, and what the colluders compute themselves."""
        found = dict(self.answers.get(alive, {}))
        for v in self.colluders:
            total = np.zeros(self.code.L, dtype=np.uint32)
            for dealer in alive:
                accumulate(total, self.bench.clients[v]._secrets.shares[dealer])
            found[v] = total
        return found

    def masked_sum(self, alive: Iterable[int]) -> np.ndarray:
        total = np.zeros(self.config.m, dtype=np.uint32)
        for u in alive:
            body = self.light.body_of(self.bench.sent[u, "masked_input_collection"])
            accumulate(total, decode_elements(body, count=self.config.m))
        return total

    def has(self, alive: frozenset[int]) -> bool:
        """Whether it can compute the exact sum over this list."""
        answers = self.known(alive)
        if len(answers) < self.config.k:
            return False
        used = sorted(answers)[: self.config.k]
        total = self.masked_sum(alive)
        holders = [self.config.cohort.index(u) for u in used]
        subtract(total, self.code.decode(np.stack([answers[u] for u in used]), holders))
        return total.tolist() == self.bench.plain_sum(alive)


def attacked(light: Any, n: int, U: int, T: int, *, active: bool, colluders: int) -> Attacker:
    """All inputs are in, and the colluders keep what they were sent."""
    last = "consistency_check" if active else "recovery"
    bench = light.make(n, U=U, T=T, A=T, D=n - U, m=3, active=active).to(last)
    bench.inbox = {}
    return Attacker(light, bench, range(n - colluders + 1, n + 1))


def split(attacker: Attacker, first: int, lists: tuple[frozenset[int], frozenset[int]]) -> None:
    """Shows one list to the first honest clients, the other to the rest, where they are on it."""
    shown = {}
    for place, u in enumerate(attacker.honest):
        alive = lists[place >= first]
        if u in alive:
            shown[u] = alive
    if attacker.config.adversary.name == "ACTIVE":
        attacker.ask_signed(shown)
        return
    for u, alive in shown.items():
        attacker.ask(u, alive)


def two_lists_opened(light: Any, n: int, U: int, T: int, *, active: bool = True) -> bool:
    """All ways to split honest clients between two lists, with T colluders; checks what follows."""
    everybody = frozenset(range(1, n + 1))
    honest = n - T
    pairs = [(everybody, everybody - {1}), (everybody - {honest}, everybody - {1})]
    won = False
    for lists in pairs:
        for first in range(honest + 1):
            attacker = attacked(light, n, U, T, active=active, colluders=T)
            split(attacker, first, lists)
            both = all(attacker.has(alive) for alive in lists)
            if active and n + T < 2 * U:
                # More than "not both opened": a second list does not get a single honest answer.
                assert len(attacker.answers) <= 1
            won |= both
    return won


def numbers(n: int) -> list[tuple[int, int]]:
    """(U, T) with room for a second list, and two honest inputs in every sum."""
    return [(U, T) for T in range(1, n) for U in range(T + 2, n)]


@pytest.mark.parametrize("n", [4, 5, 6])
def test_two_lists_are_both_opened_exactly_if_the_bound_is_broken(
    light: Any, unchecked: None, n: int
) -> None:
    for U, T in numbers(n):
        assert two_lists_opened(light, n, U, T) == (n + T >= 2 * U), (n, U, T)


@pytest.mark.long
@pytest.mark.parametrize("n", [7, 8])
def test_two_lists_are_both_opened_exactly_if_the_bound_is_broken_for_more_clients(
    light: Any, unchecked: None, n: int
) -> None:
    for U, T in numbers(n):
        assert two_lists_opened(light, n, U, T) == (n + T >= 2 * U), (n, U, T)


@pytest.mark.parametrize("n", range(3, 9))
def test_the_constructor_takes_no_active_session_with_room_for_two_lists(
    light: Any, n: int
) -> None:
    for U, T in [*numbers(n), *((n, T) for T in range(1, n - 1))]:
        try:
            light.make(n, U=U, T=T, A=T, D=n - U, active=True)
        except ConfigurationError as error:
            assert n + T >= 2 * U
            assert "2U must exceed N + T" in str(error)
        else:
            assert n + T < 2 * U


def combination_free_of_noise(code: MaskCode, holders: list[int]) -> list[int]:
    """λ with Σ λ_j W_{jk} = 0 for every noise block k, not all zero: T + 1 holders have one.

    Cramer's rule on the T×(T+1) noise part, minors by plain integer expansion.
    """

    def determinant(rows: list[list[int]]) -> int:
        if not rows:
            return 1
        return sum(
            (-1) ** c * rows[0][c] * determinant([r[:c] + r[c + 1 :] for r in rows[1:]])
            for c in range(len(rows))
        )

    noise = [[int(w) for w in code.matrix[j][code.K :]] for j in holders]
    columns = [[row[k] for row in noise] for k in range(code.T)]
    return [
        (-1) ** i * determinant([c[:i] + c[i + 1 :] for c in columns]) % PRIME
        for i in range(len(holders))
    ]


def equations_about(attacker: Attacker, alive: frozenset[int]) -> bool:
    """Whether the answers for this list give a right, non-trivial equation about its inputs."""
    code, answers = attacker.code, attacker.known(alive)
    if len(answers) <= code.T:
        return False
    used = sorted(answers)[: code.T + 1]
    holders = [attacker.config.cohort.index(u) for u in used]
    weights = combination_free_of_noise(code, holders)
    mixed = [
        sum(w * int(answers[u][i]) for w, u in zip(weights, used, strict=True)) % PRIME
        for i in range(code.L)
    ]
    of_block = [
        sum(w * int(code.matrix[j][k]) for w, j in zip(weights, holders, strict=True)) % PRIME
        for k in range(code.K)
    ]

    def combined(vector: list[int]) -> list[int]:
        padded = vector + [0] * (code.K * code.L - len(vector))
        rows = [padded[k * code.L : (k + 1) * code.L] for k in range(code.K)]
        return [sum(c * r[i] for c, r in zip(of_block, rows, strict=True)) % PRIME
                for i in range(code.L)]  # fmt: skip

    assert any(of_block)
    masked = combined(attacker.masked_sum(alive).tolist())
    # The last blocks hold padding, whose masks no input meets: whole blocks only.
    whole = range(code.L) if attacker.config.m == code.K * code.L else range(0)
    learned = [(masked[i] - mixed[i]) % PRIME for i in whole]
    expected = combined(attacker.bench.plain_sum(alive))
    return bool(learned) and learned == [expected[i] for i in whole]


def test_without_signatures_a_second_list_leaks_equations_although_it_is_not_opened(
    light: Any,
) -> None:
    """N = 6, U = 5, T = 2, so 2U > N + T: only one list can be opened. The server asks four honest
    clients nothing and two for another list: with a colluder that is T + 1 answers, and an equation
    about the sum without client 1. In the active variant it gets no answer.
    """
    everybody = frozenset(range(1, 7))
    others = everybody - {ClientId(1)}
    attacker = attacked(light, 6, 5, 2, active=False, colluders=1)
    attacker.ask(ClientId(2), others)
    attacker.ask(ClientId(3), others)
    assert not attacker.has(others)
    assert equations_about(attacker, others)

    attacker = attacked(light, 6, 5, 2, active=True, colluders=1)
    attacker.ask_signed({ClientId(2): others, ClientId(3): others, ClientId(4): everybody})
    assert attacker.answers == {}
    assert all(isinstance(error, BelowThreshold) for error in attacker.refused)
    assert not equations_about(attacker, others)


@pytest.mark.parametrize("c", [0, 1, 2])
def test_colluders_up_to_t_know_too_few_shares_for_an_equation_and_t_plus_one_have_one(
    light: Any, c: int
) -> None:
    """One client's own mask: T shares are not enough; T + 1 are, which is why T >= A."""
    n, U, T = 5, 4, 1
    attacker = attacked(light, n, U, T, active=False, colluders=c)
    assert equations_about(attacker, frozenset({ClientId(1)})) == (c > T)


def test_u_minus_one_answers_open_nothing_and_u_open_the_sum(light: Any) -> None:
    for n, U, T in ((5, 4, 1), (6, 4, 2), (6, 6, 3)):
        everybody = frozenset(range(1, n + 1))
        for answering in (U - 1, U):
            attacker = attacked(light, n, U, T, active=False, colluders=0)
            for u in attacker.ids[:answering]:
                attacker.ask(u, everybody)
            assert attacker.has(everybody) == (answering == U)


def test_a_client_answers_once_and_never_for_a_list_without_itself_or_too_short(
    light: Any,
) -> None:
    n, U = 6, 5
    everybody = frozenset(range(1, n + 1))
    one = ClientId(1)
    attacker = attacked(light, n, U, 1, active=False, colluders=0)
    attacker.ask(one, everybody)
    attacker.ask(one, everybody - {ClientId(2)})
    (error,) = attacker.refused
    assert isinstance(error, Equivocation)
    assert list(attacker.answers) == [everybody]
    for alive, expected in (
        (everybody - {one}, Equivocation),
        *((frozenset({one, *rest}), BelowThreshold) for rest in combinations(range(2, 7), 3)),
    ):
        attacker = attacked(light, n, U, 1, active=False, colluders=0)
        attacker.ask(one, alive)
        assert isinstance(attacker.refused[0], expected)
        assert attacker.answers == {}
        assert attacker.bench.clients[one].phase == "aborted"


def test_n_min_above_u_binds_the_client(light: Any) -> None:
    bench = light.make(6, U=4, T=1, D=2, n_min=5, m=3).to("recovery")
    bench.inbox = {}
    attacker = Attacker(light, bench, [])
    attacker.ask(ClientId(1), range(1, 5))
    (error,) = attacker.refused
    assert isinstance(error, BelowThreshold)
    assert (error.needed, error.had) == (5, 4)


def test_an_active_client_signs_one_list_and_wants_u_signatures_on_that_one(light: Any) -> None:
    n, U = 6, 5
    everybody = frozenset(range(1, n + 1))
    one = ClientId(1)

    def request(change: Callable[[list[tuple[ClientId, bytes]]], Any]) -> SecureFLError | None:
        attacker = attacked(light, n, U, 1, active=True, colluders=0)
        made = [(u, attacker.signature(u, everybody)) for u in attacker.ids]
        others = [(u, s) for u, s in made if u != one]
        body = SignedUnmaskRequest(signatures=tuple(change(others))).encode()
        attacker._send(one, MessageType.RECOVERY_REQUEST, body)
        return attacker.refused[0] if attacker.refused else None

    elsewhere = attacked(light, n, U, 1, active=True, colluders=0)
    foreign = elsewhere.signature(ClientId(2), everybody)
    other_list = attacked(light, n, U, 1, active=True, colluders=n)
    wrong_list = other_list.signature(ClientId(2), everybody - {ClientId(3)})
    assert request(lambda s: s) is None
    assert request(lambda s: s[: U - 1]) is None  # its own is the U-th
    error = request(lambda s: s[: U - 2])
    assert isinstance(error, BelowThreshold)
    assert (error.needed, error.had) == (U, U - 1)
    for change in (
        lambda s: [s[0], s[0], *s[2:]],
        lambda s: s[::-1],
        lambda s: [(s[0][0], s[1][1]), *s[1:]],
        lambda s: [(s[0][0], foreign), *s[1:]],
        lambda s: [(s[0][0], wrong_list), *s[1:]],
        lambda s: [(one, s[0][1]), *s[1:]],
        lambda s: [*s[:-1], (ClientId(99), s[-1][1])],
    ):
        assert isinstance(request(change), InvalidSignature)


def test_an_active_client_takes_no_second_notice(light: Any) -> None:
    everybody = frozenset(range(1, 7))
    attacker = attacked(light, 6, 5, 1, active=True, colluders=0)
    assert attacker.signature(ClientId(1), everybody) is not None
    assert attacker.signature(ClientId(1), everybody - {ClientId(2)}) is None
    assert isinstance(attacker.refused[0], Equivocation)
