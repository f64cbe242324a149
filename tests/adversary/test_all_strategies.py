"""Every strategy of a lying server in the smallest cohorts, and the bound that is left.

The server wants both secrets of one honest client, the target. All that it can choose per honest
client is the survivor list that it is asked about, once. For n = 4 and 5 all of them are tried: for
every client, every list and every set of signatures the answer of the real machine is recorded
(from one session, whose machines are put back after each answer), and the server may combine these
answers as it likes. Bonawitz et al. 2017, section 6; the bounds without own shares are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from itertools import chain, combinations, product
from typing import Any

import pytest

from securefl.round import ClientId, Layout

OTHERS, ALL = Layout.OTHERS, Layout.ALL
TARGET = ClientId(1)

List = frozenset[ClientId]


def subsets(ids: Iterable[ClientId]) -> list[List]:
    items = list(ids)
    sizes = range(len(items) + 1)
    return [frozenset(s) for s in chain.from_iterable(combinations(items, r) for r in sizes)]


class Oracle:
    """What the real machines of one session answer, whatever they are asked."""

    def __init__(self, kit: Any, n: int, t: int, layout: Layout, *, active: bool) -> None:
        phase = "consistency_check" if active else "unmasking"
        n_min = max(3, t + (layout is OTHERS))
        bench = kit.make(n, t=t, D=0, n_min=n_min, m=1, b=8, layout=layout, active=active)
        self.server = kit.attacker(bench.to(phase))
        self.ids, self.layout, self.t = self.server.ids, layout, t
        self._states = {u: self._state(u) for u in self.ids}
        self._signatures: dict[tuple[ClientId, List], bytes | None] = {}
        self._answers: dict[tuple[ClientId, List, List], bool] = {}

    def _state(self, u: ClientId) -> tuple[dict[str, Any], dict[str, Any]]:
        machine = self.server.bench.clients[u]
        secrets = machine._secrets
        return dict(vars(machine)), {f.name: getattr(secrets, f.name) for f in fields(secrets)}

    def _back(self, u: ClientId) -> None:
        """The machine as it was before it was asked."""
        machine = self.server.bench.clients[u]
        attributes, secrets = self._states[u]
        vars(machine).update(attributes)
        machine._accepted = dict(attributes["_accepted"])
        for name, value in secrets.items():
            setattr(machine._secrets, name, value)

    def signs(self, u: ClientId, alive: List) -> bool:
        if (u, alive) not in self._signatures:
            self._back(u)
            self._signatures[u, alive] = self.server.get_signature(u, alive)
        return self._signatures[u, alive] is not None

    def answers_signed(self, u: ClientId, alive: List, signers: List) -> bool:
        """Whether u opens shares for this list with these signatures over it."""
        if (u, alive, signers) not in self._answers:
            found = False
            if self.signs(u, alive):
                self._back(u)
                self.server.get_signature(u, alive)
                usable = [(v, self._signature(v, alive)) for v in sorted(signers)]
                found = self._opened(lambda: self.server.ask_signed(u, alive, usable))
            self._answers[u, alive, signers] = found
        return self._answers[u, alive, signers]

    def _signature(self, v: ClientId, alive: List) -> bytes:
        return self._signatures.get((v, alive)) or self.server.collude(v, alive)

    def answers(self, u: ClientId, alive: List) -> bool:
        """Whether u opens shares for this list if nothing has to be signed."""
        if (u, alive, alive) not in self._answers:
            self._back(u)
            self._answers[u, alive, alive] = self._opened(lambda: self.server.ask(u, alive))
        return self._answers[u, alive, alive]

    def _opened(self, ask: Any) -> bool:
        before = len(self.server.refused)
        ask()
        return len(self.server.refused) == before


def both_opened(oracle: Oracle, c: int, seeds: set[ClientId], keys: set[ClientId]) -> bool:
    """Whether these answers and the colluders' shares rebuild both secrets of the target."""
    own = oracle.layout is ALL and TARGET in seeds
    b_shares = len(seeds - {TARGET}) + c + own
    return b_shares >= oracle.t and len(keys - {TARGET}) + c >= oracle.t


def wins_unsigned(oracle: Oracle, c: int) -> bool:
    """A list of its own for every honest client."""
    honest = oracle.ids[: len(oracle.ids) - c]
    lists = subsets(oracle.ids)
    seeds = {u for u in honest if any(TARGET in L and oracle.answers(u, L | {u}) for L in lists)}
    keys = {
        u
        for u in honest
        if u != TARGET and any(TARGET not in L and oracle.answers(u, L | {u}) for L in lists)
    }
    # Each client answers once: the target's neighbours are divided between the two kinds.
    both = sorted(seeds & keys)
    for kinds in product((True, False), repeat=len(both)):
        chosen = {u for u, kind in zip(both, kinds, strict=True) if kind}
        if both_opened(oracle, c, (seeds - keys) | chosen, keys - chosen):
            return True
    return False


def divisions(honest: list[ClientId]) -> Iterator[tuple[List, List]]:
    """Who is shown the list with the target, and who the one without; all ways."""
    for sides in product((True, False), repeat=len(honest)):
        yield (
            frozenset(u for u, first in zip(honest, sides, strict=True) if first),
            frozenset(u for u, first in zip(honest, sides, strict=True) if not first),
        )


def wins_signed(oracle: Oracle, c: int) -> bool:
    """All pairs of lists, all divisions of the honest clients, all signatures there are."""
    honest = oracle.ids[: len(oracle.ids) - c]
    colluders = frozenset(oracle.ids[len(oracle.ids) - c :])

    def open_for(alive: List, asked: List) -> set[ClientId]:
        signed = frozenset(u for u in asked if oracle.signs(u, alive)) | (colluders & alive)
        return {u for u in asked if oracle.answers_signed(u, alive, signed - {u})}

    lists = subsets(oracle.ids)
    opened = {
        (alive, asked): open_for(alive, asked) for alive in lists for asked in subsets(honest)
    }
    return any(
        both_opened(oracle, c, opened[with_it, first], opened[without, second])
        for with_it in lists
        if TARGET in with_it
        for without in lists
        if TARGET not in without
        for first, second in divisions(honest)
    )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("n", [4, 5])
def test_no_choice_of_unsigned_lists_beats_the_bound(kit: Any, n: int, layout: Layout) -> None:
    h = n - (layout is OTHERS)
    for t in range(2, h + 1):
        if max(3, t + (layout is OTHERS)) > n:
            continue
        oracle = Oracle(kit, n, t, layout, active=False)
        for c in range(n - 1):
            assert wins_unsigned(oracle, c) is (2 * t <= h + c), (t, c)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("n", [4, 5])
def test_no_pair_of_signed_lists_beats_the_bound(kit: Any, n: int, layout: Layout) -> None:
    """One list per client and t signatures on each: without own shares the bound is n - 2 + c."""
    room = n if layout is ALL else n - 2
    for t in range(2, n + (layout is ALL)):
        oracle = Oracle(kit, n, t, layout, active=True)
        for c in range(n - 1):
            assert wins_signed(oracle, c) is (2 * t <= room + c), (t, c)
