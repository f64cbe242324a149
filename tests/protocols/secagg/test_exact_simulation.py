"""Privacy counted, not argued: every outcome of the masks on tiny rings.

Each PRG output is replaced by a variable that runs through all its values; "one entry of the
vector" is one assignment of all variables, so the real masking code works on all of them at once.
The adversary's view is everything it holds: all masked inputs that arrived (late ones too), opened
seeds, opened pair masks of dropped clients, and everything of corrupt clients. Two inputs are
indistinguishable iff the multisets of views over all assignments are equal. They must be equal
exactly when the corrupt inputs and the sum over the honest survivors are.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest

from securefl.protocols.secagg import masks
from securefl.round import ClientId

Pair = tuple[int, int]


class Setting:
    """A graph, its mask variables, and who dropped or is corrupt."""

    def __init__(
        self,
        n: int,
        b: int,
        *,
        edges: Iterable[Pair] | None = None,
        dropped: Iterable[int] = (),
        corrupt: Iterable[int] = (),
        self_masks: bool = True,
        both_secrets: bool = False,
    ) -> None:
        self.n, self.R = n, 1 << b
        self.edges = list(itertools.combinations(range(n), 2)) if edges is None else list(edges)
        self.dropped, self.corrupt = set(dropped), set(corrupt)
        self.self_masks, self.both_secrets = self_masks, both_secrets
        names = [("self", u) for u in range(n)] + [("pair", e) for e in self.edges]
        grid = np.indices((self.R,) * len(names), dtype=np.uint32).reshape(len(names), -1)
        self.variable = {
            repr(name).encode(): values for name, values in zip(names, grid, strict=True)
        }
        if not self_masks:
            for u in range(n):
                self.variable[repr(("self", u)).encode()] = np.zeros_like(grid[0])

    def view(self, inputs: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> bytes:
        def add(total: np.ndarray, key: bytes) -> None:
            total += self.variable[key]

        def subtract(total: np.ndarray, key: bytes) -> None:
            total -= self.variable[key]

        monkeypatch.setattr(masks, "add_mask", add)
        monkeypatch.setattr(masks, "subtract_mask", subtract)
        seen = []
        count = len(next(iter(self.variable.values())))
        for u in range(self.n):
            y = np.full(count, inputs[u], dtype=np.uint32)
            pairs = {
                v: repr(("pair", e)).encode() for e in self.edges for v in e if u in e and v != u
            }
            masks.mask_in_place(
                y,
                u=ClientId(u),
                self_key=repr(("self", u)).encode(),
                pair_keys={ClientId(v): key for v, key in pairs.items()},
                modulus=self.R,
            )
            seen.append(y)
        for u in range(self.n):
            opened = u not in self.dropped or u in self.corrupt or self.both_secrets
            if opened:
                seen.append(self.variable[repr(("self", u)).encode()])
        seen += [
            self.variable[repr(("pair", e)).encode()]
            for e in self.edges
            if set(e) & (self.dropped | self.corrupt)
        ]
        code = np.zeros(count, dtype=np.uint64)
        for column in seen:
            code = code * np.uint64(self.R) + column.astype(np.uint64)
        known = bytes(inputs[u] for u in sorted(self.corrupt))
        return known + np.sort(code).tobytes()

    def honest_sum(self, inputs: tuple[int, ...]) -> tuple[int, ...]:
        survivors = set(range(self.n)) - self.dropped - self.corrupt
        return (
            sum(inputs[u] for u in survivors) % self.R,
            *(inputs[u] for u in sorted(self.corrupt)),
        )

    def leaks(self, monkeypatch: pytest.MonkeyPatch) -> bool:
        """Whether some view says more (or less) than corrupt inputs and honest sum."""
        views: dict[tuple[int, ...], Counter[bytes]] = {}
        for inputs in itertools.product(range(self.R), repeat=self.n):
            key = self.honest_sum(inputs)
            views.setdefault(key, Counter())[self.view(inputs, monkeypatch)] += 1
        one_view_each = all(len(seen) == 1 for seen in views.values())
        different = len({next(iter(seen)) for seen in views.values()}) == len(views)
        return not (one_view_each and different)


HOLDS = {
    "n=3, R=4, nobody dropped": Setting(3, 2),
    "n=3, R=4, one dropped, its input arrives late": Setting(3, 2, dropped=[1]),
    "n=3, R=2, one corrupt": Setting(3, 1, corrupt=[0]),
    "n=4, R=2, one dropped, one corrupt": Setting(4, 1, dropped=[3], corrupt=[1]),
    "ring of four, R=2, one dropped": Setting(
        4, 1, edges=[(0, 1), (1, 2), (2, 3), (0, 3)], dropped=[1]
    ),
}
FAILS = {
    "no self masks, a late input": Setting(3, 1, dropped=[1], self_masks=False),
    "both secrets of the dropped client": Setting(3, 1, dropped=[1], both_secrets=True),
    "ring of four, two opposite nodes dropped": Setting(
        4, 1, edges=[(0, 1), (1, 2), (2, 3), (0, 3)], dropped=[1, 3]
    ),
}


@pytest.mark.parametrize("name", list(HOLDS))
def test_the_view_depends_on_the_honest_sum_only(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not HOLDS[name].leaks(monkeypatch)


@pytest.mark.parametrize("name", list(FAILS))
def test_the_count_shows_a_leak_where_there_is_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert FAILS[name].leaks(monkeypatch)
