"""A session that tests drive by hand, one frame at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import pytest

from securefl.modular import RingVector
from securefl.primitives.signing import IdentityDirectory, IdentityKey
from securefl.protocols.machine import Event, Outbound
from securefl.protocols.secagg import ClientPolicy, SecAggClient, SecAggParams, SecAggServer
from securefl.protocols.secagg.keys import KeySchedule
from securefl.round import (
    SERVER,
    Adversary,
    ClientId,
    Cohort,
    GraphSource,
    Layout,
    RoundConfig,
    RoundId,
    ThreatModel,
)
from securefl.wire import Frame, decode_frame, encode_frame, signed_content

CONTEXT = bytes(range(32))
M = TypeVar("M", SecAggClient, SecAggServer)


@dataclass
class Bench:
    """One session. ``inbox`` holds the frames of the server that a client has not read yet."""

    config: RoundConfig
    server: SecAggServer
    clients: dict[ClientId, SecAggClient]
    vectors: dict[ClientId, RingVector]
    fresh_client: Callable[[ClientId], SecAggClient]
    fresh_server: Callable[[], SecAggServer]
    identities: dict[ClientId, IdentityKey] = field(default_factory=dict)
    inbox: dict[ClientId, bytes] = field(default_factory=dict)
    sent: dict[tuple[ClientId, str], bytes] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def start(self, without: Iterable[int] = ()) -> None:
        for u, client in self.clients.items():
            if u not in set(without):
                self.up(u, client.start())

    def up(self, u: ClientId, out: list[Outbound | Event]) -> None:
        for item in out:
            if isinstance(item, Outbound):
                self.sent[u, self.server.phase] = item.frame
                self.down(self.server.receive(item.frame, u))
            else:
                self.events.append(item)

    def down(self, out: list[Outbound | Event]) -> None:
        for item in out:
            if isinstance(item, Outbound):
                self.inbox[item.recipient] = item.frame
            else:
                self.events.append(item)

    def close(self) -> None:
        self.inbox = {}
        self.down(self.server.close_phase())

    def answer(self, without: Iterable[int] = ()) -> None:
        for u in sorted(self.inbox):
            if u in set(without):
                continue
            client = self.clients[u]
            self.up(u, client.receive(self.inbox[u]))
            if client.wants_input:
                self.up(u, client.set_input(self.vectors[u]))

    def to(self, phase: str, without: Iterable[int] = ()) -> Bench:
        """Plays until the server's frames that open ``phase`` lie in the inbox."""
        self.start(without)
        while True:
            self.close()
            if self.server.phase == phase:
                return self
            self.answer(without)

    def finish(self, without: Iterable[int] = ()) -> RingVector:
        """Plays on from the inbox to the sum."""
        while not self.server.final:
            self.answer(without)
            self.close()
        assert self.server.result is not None
        return self.server.result.vector

    def signed(self, u: ClientId, frame: bytes) -> bytes:
        """The frame under a fresh, valid signature of u."""
        content = replace(decode_frame(frame), signature=b"")
        keys = KeySchedule(self.config.protocol)
        statement = keys.frame_statement(SERVER, signed_content(content))
        return encode_frame(replace(content, signature=self.identities[u].sign(statement)))

    def plain_sum(self, ids: Iterable[int]) -> list[int]:
        total = [0] * self.config.m
        for u in ids:
            values = self.vectors[ClientId(u)].values.tolist()
            total = [(a + x) % self.config.modulus for a, x in zip(total, values, strict=True)]
        return total


def edit(frame: bytes, **changes: object) -> bytes:
    """The frame with other header fields or another body."""
    old = decode_frame(frame)
    fields = {name: getattr(old, name) for name in Frame.__slots__}
    return encode_frame(Frame(**{**fields, **changes}))


def body_of(frame: bytes) -> bytes:
    return bytes(decode_frame(frame).body)


@dataclass(frozen=True)
class Tools:
    """What the tests of this folder share."""

    make: Callable[..., Bench]
    edit: Callable[..., bytes]
    body_of: Callable[[bytes], bytes]
    context: bytes


def identity_secret(u: int) -> bytes:
    return hashlib.sha256(b"identity of %d" % u).digest()


def make(
    n: int = 5,
    *,
    t: int | None = None,
    A: int = 1,
    D: int = 1,
    n_min: int | None = None,
    m: int = 4,
    b: int = 20,
    layout: Layout = Layout.OTHERS,
    k: int | None = None,
    active: bool = False,
    source: GraphSource | None = None,
    beacon: bytes | None = b"beacon..beacon..beacon..beacon..",
    ids: Iterable[int] | None = None,
    random_of: Callable[[ClientId], Callable[[int], bytes]] | None = None,
    nonce: bytes = bytes(32),
    round_id: int = 3,
) -> Bench:
    cohort = Cohort.of(range(1, n + 1) if ids is None else ids)
    adversary = Adversary.ACTIVE if active else Adversary.SEMI_HONEST
    threat = ThreatModel(adversary=adversary, corrupt=A, dropped=D)
    if k is None:
        params = SecAggParams.complete(n, threat, t=t, n_min=n_min, layout=layout)
    else:
        params = SecAggParams.harary(n, threat, k=k, t=t, n_min=n_min, graph_source=source)
    config = params.config(
        round_id=RoundId(round_id),
        cohort=cohort,
        m=m,
        b=b,
        context_digest=CONTEXT,
        server_nonce=nonce,
    )
    policy = ClientPolicy(gamma=0, experimental_active_graph=True)
    identities = {u: IdentityKey(identity_secret(u)) for u in cohort} if active else {}
    directory = IdentityDirectory({u: key.public for u, key in identities.items()})
    sources = {u: os.urandom if random_of is None else random_of(u) for u in cohort}

    def with_beacon(machine: M) -> M:
        if config.graph_source is GraphSource.BEACON and beacon is not None:
            machine.set_beacon(beacon)
        return machine

    def fresh_client(u: ClientId) -> SecAggClient:
        return with_beacon(
            SecAggClient(
                u,
                config,
                context_digest=CONTEXT,
                policy=policy,
                identity=identities.get(u),
                directory=directory,
                random_bytes=sources[u],
            )
        )

    def fresh_server() -> SecAggServer:
        return with_beacon(SecAggServer(config, directory=directory))

    generator = np.random.default_rng(n * 1000 + m)
    high = (1 << b) - 1
    vectors = {
        u: RingVector(
            generator.integers(0, high, size=m, dtype=np.uint64, endpoint=True).astype(
                np.uint32 if b <= 32 else np.uint64
            ),
            1 << b,
        )
        for u in cohort
    }
    return Bench(
        config=config,
        server=fresh_server(),
        clients={u: fresh_client(u) for u in cohort},
        vectors=vectors,
        fresh_client=fresh_client,
        fresh_server=fresh_server,
        identities=identities,
    )


@pytest.fixture(scope="session")
def secagg() -> Tools:
    return Tools(make=make, edit=edit, body_of=body_of, context=CONTEXT)
