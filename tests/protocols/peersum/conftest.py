"""A session of peersum in slow motion: every frame lies on the wire until a test delivers it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from securefl.errors import BelowThreshold, PeerProtocolError
from securefl.modular import RingVector
from securefl.primitives.field import PRIME
from securefl.primitives.signing import IdentityDirectory, IdentityKey
from securefl.protocols.machine import Event, Outbound
from securefl.protocols.peersum import ClientPolicy, MemoryRegister, PeerSumParams, PeerSumPeer
from securefl.protocols.peersum.keys import KeySchedule
from securefl.protocols.peersum.transitions import PHASES, MessageType
from securefl.round import ClientId, Cohort, RoundConfig, RoundId
from securefl.wire import Frame, decode_frame, encode_frame, signed_content

CONTEXT = bytes(range(32))
Change = Callable[[ClientId, ClientId, bytes], bytes | None]


@dataclass
class Bench:
    """One session. ``wire`` holds (sender, recipient, frame); ``sent`` every frame by type."""

    config: RoundConfig
    peers: dict[ClientId, PeerSumPeer]
    vectors: dict[ClientId, RingVector]
    identities: dict[ClientId, IdentityKey]
    directory: IdentityDirectory
    wire: list[tuple[ClientId, ClientId, bytes]] = field(default_factory=list)
    sent: dict[tuple[ClientId, ClientId, MessageType], bytes] = field(default_factory=dict)
    events: dict[ClientId, list[Event]] = field(default_factory=dict)
    errors: dict[ClientId, Exception] = field(default_factory=dict)
    refused: list[tuple[ClientId, Exception]] = field(default_factory=list)
    gone: set[ClientId] = field(default_factory=set)

    def emit(self, u: ClientId, out: Iterable[Any]) -> None:
        for item in out:
            if isinstance(item, Outbound):
                kind = MessageType(decode_frame(item.frame).type)
                self.sent[u, item.recipient, kind] = item.frame
                self.wire.append((u, item.recipient, item.frame))
            else:
                self.events.setdefault(u, []).append(item)

    def deliver(self, change: Change = lambda u, v, frame: frame) -> None:
        """All that lies on the wire, through ``change``; frames for who is gone are lost."""
        while self.wire:
            u, v, frame = self.wire.pop(0)
            changed = change(u, v, frame)
            if changed is None or v in self.gone:
                continue
            try:
                out = self.peers[v].receive(changed, u)
            except PeerProtocolError as error:
                self.refused.append((v, error))
            else:
                self.emit(v, out)

    def live(self) -> list[ClientId]:
        return [u for u, p in self.peers.items() if u not in self.gone and not p.final]

    def start(self) -> None:
        for u in self.live():
            self.emit(u, self.peers[u].start())

    def close(self, only: Collection[int] | None = None) -> None:
        """Everybody (or those named) ends the phase; errors are kept by peer."""
        for u in self.live() if only is None else only:
            try:
                self.emit(u, self.peers[u].close_phase())
                if self.peers[u].wants_input:
                    self.emit(u, self.peers[u].set_input(self.vectors[u]))
            except (BelowThreshold, PeerProtocolError) as error:
                self.errors[u] = error
                self.emit(u, error.outbound)

    def to(self, phase: str, change: Change = lambda u, v, frame: frame) -> Bench:
        """Plays until this phase's messages lie on the wire."""
        self.start()
        for _ in range(PHASES.index(phase)):
            self.deliver(change)
            self.close()
        return self

    def finish(self, change: Change = lambda u, v, frame: frame) -> Bench:
        """Plays on from the wire to the end."""
        while self.live():
            self.deliver(change)
            self.close()
        self.deliver()
        return self

    def leave(self, *ids: int) -> None:
        """These vanish; what they sent last is lost too."""
        self.gone |= {ClientId(u) for u in ids}
        self.wire = [entry for entry in self.wire if entry[0] not in self.gone]

    def signed(self, u: ClientId, v: ClientId, frame: bytes) -> bytes:
        """The frame under a fresh, valid signature of u for v."""
        content = replace(decode_frame(frame), signature=b"", sender=u)
        statement = KeySchedule.frame_statement(v, signed_content(content))
        return encode_frame(replace(content, signature=self.identities[u].sign(statement)))

    def forged(self, u: ClientId, v: ClientId, kind: MessageType, body: bytes) -> bytes:
        """A frame of u for v with this body, signed by u."""
        first = self.sent[u, v, MessageType.ADVERTISE_KEYS]
        return self.signed(u, v, edit(first, type=kind, body=body, signature=b""))

    def opened(self) -> dict[ClientId, list[int]]:
        return {
            u: p.result.vector.values.tolist()
            for u, p in self.peers.items()
            if p.result is not None
        }

    def plain_sum(self, ids: Iterable[int]) -> list[int]:
        rows = [self.vectors[ClientId(u)].values.tolist() for u in ids]
        return [sum(column) % PRIME for column in zip(*rows, strict=True)] or [0] * self.config.m


def edit(frame: bytes, **changes: object) -> bytes:
    """The frame with other header fields or another body."""
    old = decode_frame(frame)
    fields = {name: getattr(old, name) for name in Frame.__slots__}
    return encode_frame(Frame(**{**fields, **changes}))


def kind_of(frame: bytes) -> MessageType:
    return MessageType(decode_frame(frame).type)


def identity_secret(u: int) -> bytes:
    return hashlib.sha256(b"identity of peer %d" % u).digest()


def make(
    n: int = 6,
    *,
    A: int = 1,
    D: int = 1,
    t: int | None = None,
    q: int | None = None,
    n_min: int | None = None,
    m: int = 4,
    ids: Iterable[int] | None = None,
    random_of: Callable[[ClientId], Callable[[int], bytes]] | None = None,
    nonce: bytes = bytes(32),
    round_id: int = 3,
) -> Bench:
    cohort = Cohort.of(range(1, n + 1) if ids is None else ids)
    params = PeerSumParams.of(n, corrupt=A, dropped=D, t=t, q=q, n_min=n_min)
    config = params.config(
        round_id=RoundId(round_id), cohort=cohort, m=m, context_digest=CONTEXT, nonce=nonce
    )
    identities = {u: IdentityKey(identity_secret(u)) for u in cohort}
    directory = IdentityDirectory({u: key.public for u, key in identities.items()})
    peers = {
        u: PeerSumPeer(
            u,
            config,
            context_digest=CONTEXT,
            policy=ClientPolicy(gamma=0),
            identity=identities[u],
            directory=directory,
            register=MemoryRegister(),
            random_bytes=os.urandom if random_of is None else random_of(u),
        )
        for u in cohort
    }
    generator = np.random.default_rng(n * 1000 + m)
    vectors = {
        u: RingVector(generator.integers(0, PRIME, size=m, dtype=np.uint32), PRIME) for u in cohort
    }
    return Bench(
        config=config, peers=peers, vectors=vectors, identities=identities, directory=directory
    )


@dataclass(frozen=True)
class Tools:
    """What the tests of this folder share."""

    make: Callable[..., Any]
    edit: Callable[..., bytes]
    kind_of: Callable[[bytes], MessageType]
    context: bytes


@pytest.fixture(scope="session")
def kit() -> Tools:
    return Tools(make=make, edit=edit, kind_of=kind_of, context=CONTEXT)
