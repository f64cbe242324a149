"""What a cheating server does with what it has: real machines, forged frames, opened shares."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from securefl.errors import SecureFLError
from securefl.modular import ring_dtype
from securefl.primitives.channel import AgreementKey, PublicKey
from securefl.primitives.prg import expand
from securefl.primitives.sharing import Unreconstructable, lagrange_at_zero, reconstruct
from securefl.protocols.secagg import params
from securefl.protocols.secagg.keys import KeySchedule
from securefl.protocols.secagg.masks import sign
from securefl.protocols.secagg.messages import (
    SignedUnmaskRequest,
    SurvivorNotice,
    UnmaskRequest,
    UnmaskShares,
)
from securefl.round import ClientId, Layout
from securefl.wire import decode_frame, unpack_words

_PATH = Path(__file__).parents[1] / "protocols" / "conftest.py"
_SPEC = importlib.util.spec_from_file_location("securefl_protocol_bench", _PATH)
assert _SPEC is not None and _SPEC.loader is not None
_BENCH = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = _BENCH
_SPEC.loader.exec_module(_BENCH)

Kinds = dict[ClientId, dict[ClientId, np.ndarray]]  # dealer -> holder -> share


class Attacker:
    """A server in the middle of a genuine session, after all masked inputs have arrived.

    It saw every frame, it knows what colluders know, and it asks each honest client whatever it
    likes, once. What it opens lands in ``b`` and ``s``.
    """

    def __init__(self, bench: Any, colluders: Iterable[int] = ()) -> None:
        self.bench = bench
        self.ids = list(bench.clients)
        self.honest = [u for u in self.ids if u not in set(colluders)]
        self.colluders = [u for u in self.ids if u in set(colluders)]
        self.session = bench.server._end.session
        self.keys = KeySchedule(bench.config.protocol)
        self.refused: list[SecureFLError] = []
        self.b: Kinds = {u: {} for u in self.ids}
        self.s: Kinds = {u: {} for u in self.ids}
        for v in self.colluders:
            machine = bench.clients[v]
            for i, dealer in enumerate(machine._P):
                self.b[dealer][v] = machine._secrets.b_shares[i]
                self.s[dealer][v] = machine._secrets.s_shares[i]

    def _send(self, u: ClientId, body: bytes, kind: int) -> bytes | None:
        frame = _BENCH.edit(self.bench.inbox[u], body=body, type=kind)
        try:
            out = self.bench.clients[u].receive(frame)
        except SecureFLError as error:
            self.refused.append(error)
            return None
        return bytes(decode_frame(out[-1].frame).body) if out else None

    def ask(self, u: ClientId, alive: Iterable[ClientId]) -> None:
        """A semi-honest request with this list; u itself is always on it."""
        there, P = {*alive, u}, self.bench.clients[u]._P
        flags = np.array([v in there for v in P])
        body = UnmaskRequest(size=len(there), alive=flags).encode()
        self._keep(u, self._send(u, body, 8), flags)

    def get_signature(self, u: ClientId, alive: Iterable[ClientId]) -> bytes | None:
        """Has u sign this list."""
        flags = np.array([v in {*alive, u} for v in self.ids])
        return self._send(u, SurvivorNotice(alive=flags).encode(), 6)

    def collude(self, v: ClientId, alive: Iterable[ClientId]) -> bytes:
        """A colluder's signature over any list."""
        bits = SurvivorNotice(alive=np.array([w in set(alive) for w in self.ids])).encode()
        statement = self.keys.survivor_statement(self.session, bits)
        return self.bench.identities[v].sign(statement)

    def ask_signed(
        self, u: ClientId, alive: Iterable[ClientId], signatures: list[tuple[ClientId, bytes]]
    ) -> None:
        """An active request; ``alive`` is the list that u signed."""
        flags = np.array([v in set(alive) for v in self.bench.clients[u]._P])
        body = SignedUnmaskRequest(signatures=tuple(signatures)).encode()
        self._keep(u, self._send(u, body, 8), flags)

    def _keep(self, u: ClientId, body: bytes | None, alive: np.ndarray) -> None:
        if body is None:
            return
        own = self.bench.config.layout is Layout.ALL
        answer = UnmaskShares.decode(body, alive=alive, own=own)
        b_rows, s_rows = iter(answer.b_shares), iter(answer.s_shares)
        for dealer, there in zip(self.bench.clients[u]._P, alive, strict=True):
            (self.b if there else self.s)[dealer][u] = next(b_rows if there else s_rows)
        if answer.own is not None:
            self.b[u][u] = answer.own

    def _secret(self, kinds: Kinds, u: ClientId, size: int) -> bytes | None:
        t, cohort = self.bench.config.t, self.bench.config.cohort
        holders = sorted(kinds[u])[:t]
        if len(holders) < t:
            return None
        points = tuple(1 + cohort.index(v) for v in holders)
        rows = np.array([kinds[u][v] for v in holders], dtype=np.uint32)
        try:
            return reconstruct(rows, lagrange_at_zero(points), size)
        except Unreconstructable:
            return None

    def masked(self, u: ClientId) -> np.ndarray:
        config = self.bench.config
        body = _BENCH.body_of(self.bench.sent[u, "masked_input_collection"])
        return unpack_words(body, config.m, config.b).astype(np.uint64)

    def pair_mask(self, u: ClientId, v: ClientId, s_sk: bytes) -> np.ndarray:
        """The mask between u and v from u's opened key and v's public one."""
        s_pk = self.bench.server._advertised[v].s_pk
        agreed = AgreementKey(s_sk).agree(PublicKey(s_pk))
        return self.expand(self.keys.pair_mask_key(agreed, self.session, u, v))

    def expand(self, key: bytes) -> np.ndarray:
        config = self.bench.config
        return expand(key, config.m, ring_dtype(config.modulus)).astype(np.uint64)

    def sum_of(self, chosen: Iterable[ClientId]) -> list[int] | None:
        """The sum over these clients alone, or None if a secret for it is missing."""
        S = set(chosen)
        total = np.zeros(self.bench.config.m, dtype=np.uint64)
        graph = self.bench.server._graph
        for u in S:
            seed = self._secret(self.b, u, 16)
            if seed is None:
                return None
            total += self.masked(u) - self.expand(self.keys.self_mask_key(seed, self.session, u))
            for v in graph.peers(u, set(self.ids) - S):
                s_sk = self._secret(self.s, v, 32)
                other = (v, u) if s_sk is not None else (u, v)
                s_sk = s_sk if s_sk is not None else self._secret(self.s, u, 32)
                if s_sk is None:
                    return None
                mask = self.pair_mask(*other, s_sk)
                total += -mask if sign(u, v) > 0 else mask
        return [int(x) % self.bench.config.modulus for x in total]

    def has(self, chosen: Iterable[ClientId]) -> bool:
        """Whether it can compute the exact sum over these clients alone."""
        S = list(chosen)
        return self.sum_of(S) == self.bench.plain_sum(S)


@dataclass(frozen=True)
class Kit:
    make: Callable[..., Any]
    edit: Callable[..., bytes]
    body_of: Callable[[bytes], bytes]
    context: bytes
    attacker: type[Attacker]


@pytest.fixture
def kit() -> Kit:
    return Kit(_BENCH.make, _BENCH.edit, _BENCH.body_of, _BENCH.CONTEXT, Attacker)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weakened library that takes any numbers, as those do that only document the bounds."""
    monkeypatch.setattr(params, "_check_numbers", lambda **numbers: None)
