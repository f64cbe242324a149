"""A LightSecAgg session that tests drive by hand, one frame at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from securefl.modular import RingVector
from securefl.primitives.field import PRIME
from securefl.primitives.signing import IdentityDirectory, IdentityKey
from securefl.protocols.lightsecagg import (
    ClientPolicy,
    LightSecAggClient,
    LightSecAggParams,
    LightSecAggServer,
)
from securefl.protocols.lightsecagg.transitions import MessageType
from securefl.protocols.machine import Event, Outbound
from securefl.round import (
    SERVER,
    Adversary,
    ClientId,
    Cohort,
    RoundConfig,
    RoundId,
    ThreatModel,
)
from securefl.wire import Frame, decode_frame, encode_frame, signed_content

CONTEXT = bytes(range(32))


@dataclass
class Bench:
    """One session. ``inbox`` holds the frames of the server that a client has not read yet."""

    config: RoundConfig
    server: LightSecAggServer
    clients: dict[ClientId, LightSecAggClient]
    vectors: dict[ClientId, RingVector]
    identities: dict[ClientId, IdentityKey] = field(default_factory=dict)
    inbox: dict[ClientId, list[bytes]] = field(default_factory=dict)
    sent: dict[tuple[ClientId, str], bytes] = field(default_factory=dict)
    seen: dict[tuple[ClientId, str], list[bytes]] = field(default_factory=dict)
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
                self.inbox.setdefault(item.recipient, []).append(item.frame)
                self.seen.setdefault((item.recipient, self.server.phase), []).append(item.frame)
            else:
                self.events.append(item)

    def close(self) -> None:
        self.down(self.server.close_phase())

    def read(self, u: ClientId) -> None:
        """Client u reads all that waits for it, and gives its input when it is asked."""
        client = self.clients[u]
        for frame in self.inbox.pop(u, []):
            self.up(u, client.receive(frame))
            if client.wants_input:
                self.up(u, client.set_input(self.vectors[u]))

    def answer(self, without: Iterable[int] = ()) -> None:
        # What comes in meanwhile (coded shares) waits for the next phase, as on a network.
        for u in sorted(self.inbox):
            if u in set(without):
                self.inbox.pop(u)
        for u in sorted(self.inbox):
            self.read(u)

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
        statement = self.server._end.keys.frame_statement(SERVER, signed_content(content))
        return encode_frame(replace(content, signature=self.identities[u].sign(statement)))

    def plain_sum(self, ids: Iterable[int]) -> list[int]:
        rows = [self.vectors[ClientId(u)].values.tolist() for u in ids]
        return [sum(column) % PRIME for column in zip(*rows, strict=True)] or [0] * self.config.m


def edit(frame: bytes, **changes: object) -> bytes:
    """The frame with other header fields or another body."""
    old = decode_frame(frame)
    fields = {name: getattr(old, name) for name in Frame.__slots__}
    return encode_frame(Frame(**{**fields, **changes}))


def body_of(frame: bytes) -> bytes:
    return bytes(decode_frame(frame).body)


def kind_of(frame: bytes) -> MessageType:
    return MessageType(decode_frame(frame).type)


def identity_secret(u: int) -> bytes:
    return hashlib.sha256(b"identity of %d" % u).digest()


def make(
    n: int = 6,
    *,
    U: int | None = None,
    T: int | None = None,
    A: int = 1,
    D: int = 1,
    n_min: int | None = None,
    m: int = 5,
    active: bool = False,
    ids: Iterable[int] | None = None,
    random_of: Callable[[ClientId], Callable[[int], bytes]] | None = None,
    nonce: bytes = bytes(32),
    round_id: int = 3,
) -> Bench:
    cohort = Cohort.of(range(1, n + 1) if ids is None else ids)
    adversary = Adversary.ACTIVE if active else Adversary.SEMI_HONEST
    threat = ThreatModel(adversary=adversary, corrupt=A, dropped=D)
    params = LightSecAggParams.of(n, threat, U=U, T=T, n_min=n_min)
    config = params.config(
        round_id=RoundId(round_id),
        cohort=cohort,
        m=m,
        context_digest=CONTEXT,
        server_nonce=nonce,
    )
    identities = {u: IdentityKey(identity_secret(u)) for u in cohort} if active else {}
    directory = IdentityDirectory({u: key.public for u, key in identities.items()})
    clients = {
        u: LightSecAggClient(
            u,
            config,
            context_digest=CONTEXT,
            policy=ClientPolicy(gamma=0),
            identity=identities.get(u),
            directory=directory,
            random_bytes=os.urandom if random_of is None else random_of(u),
        )
        for u in cohort
    }
    generator = np.random.default_rng(n * 1000 + m)
    vectors = {
        u: RingVector(generator.integers(0, PRIME, size=m, dtype=np.uint32), PRIME) for u in cohort
    }
    server = LightSecAggServer(config, directory=directory)
    return Bench(
        config=config, server=server, clients=clients, vectors=vectors, identities=identities
    )


@dataclass(frozen=True)
class Tools:
    """What the tests of this folder share."""

    make: Callable[..., Any]
    edit: Callable[..., bytes]
    body_of: Callable[[bytes], bytes]
    kind_of: Callable[[bytes], MessageType]
    context: bytes


@pytest.fixture(scope="session")
def light() -> Tools:
    return Tools(make=make, edit=edit, body_of=body_of, kind_of=kind_of, context=CONTEXT)
