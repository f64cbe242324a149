"""A world in which everything between and around the machines may go wrong, and what must hold.

Real clients and a real server. Whoever drives the world decides what arrives, when, how often and
changed in which way; the world checks after every call what no schedule may break, against records
of its own and plain integers.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from securefl.errors import (
    ConfigurationError,
    LocalProtocolError,
    SecureFLError,
    SnapshotError,
    UnexpectedMessage,
    WireError,
)
from securefl.modular import RingVector, ring_dtype
from securefl.primitives.signing import IdentityDirectory, IdentityKey
from securefl.protocols.machine import MalformedMessage, Outbound
from securefl.protocols.secagg import ClientPolicy, SecAggClient, SecAggParams, SecAggServer
from securefl.protocols.secagg.keys import KeySchedule
from securefl.protocols.secagg.messages import (
    KeyRoster,
    NeighbourRoster,
    ShareDelivery,
    SignedUnmaskRequest,
    SurvivorNotice,
    UnmaskRequest,
    UnmaskShares,
)
from securefl.protocols.secagg.transitions import SERVER_PHASES, MessageType, client_row, server_row
from securefl.protocols.snapshot import SECRETS
from securefl.round import (
    SERVER,
    Adversary,
    ClientId,
    Cohort,
    GraphSource,
    Layout,
    RoundId,
    ThreatModel,
    Usage,
    dst,
)
from securefl.round import Protocol as WireProtocol
from securefl.wire import HEADER_BYTES, Frame, decode_frame, encode_frame, signed_content

CONTEXT = bytes(32)
STORAGE_KEY = bytes(range(32))
FINAL = ("done", "aborted")
POLICY = ClientPolicy(gamma=0, experimental_active_graph=True)
P = (1 << 31) - 1


def parameters(
    n: int, threat: ThreatModel, k: int | None, t: int, n_min: int, layout: Layout
) -> SecAggParams:
    if k is None:
        return SecAggParams.complete(n, threat, t=t, n_min=n_min, layout=layout)
    return SecAggParams.harary(n, threat, k=k, t=t, n_min=n_min)


@lru_cache(maxsize=1)
def variants() -> dict[tuple[int, bool, bool], list[SecAggParams]]:
    """Every set of parameters that the constructor takes, by (n, active, sparse)."""
    found: dict[tuple[int, bool, bool], list[SecAggParams]] = defaultdict(list)
    for n in range(3, 13):
        for active in (False, True):
            adversary = Adversary.ACTIVE if active else Adversary.SEMI_HONEST
            for D in range(n - 2):
                threat = ThreatModel(adversary=adversary, corrupt=1, dropped=D)
                for t in range(2, n):
                    for n_min in {t + 1, n - D}:
                        choices = [(None, layout) for layout in Layout]
                        choices += [(k, Layout.OTHERS) for k in range(2, n - 1, 2)]
                        for k, layout in choices:
                            with contextlib.suppress(ConfigurationError):
                                params = parameters(n, threat, k, t, n_min, layout)
                                found[n, active, k is not None].append(params)
    return found


@lru_cache(maxsize=1)
def identities() -> tuple[dict[ClientId, IdentityKey], IdentityDirectory]:
    keys = {ClientId(u): IdentityKey(hashlib.sha256(b"%d" % u).digest()) for u in range(100)}
    return keys, IdentityDirectory({u: key.public for u, key in keys.items()})


@dataclass(frozen=True)
class Message:
    sender: ClientId
    recipient: ClientId
    frame: bytes


def edited(frame: bytes, **changes: Any) -> bytes:
    """The frame with other header fields or another body, and with its length put right."""
    old = decode_frame(frame)
    fields = {name: getattr(old, name) for name in Frame.__slots__}
    return encode_frame(Frame(**{**fields, **changes}))


def frames_of(out: Iterable[object]) -> list[Outbound]:
    return [item for item in out if isinstance(item, Outbound)]


def state(machine: Any, who: ClientId) -> tuple[Any, ...]:
    """What a machine must not change when it refuses or ignores a frame."""
    more: tuple[Any, ...] = ()
    if who == SERVER:
        total = None if machine._total is None else machine._total.tobytes()
        more = (set(machine._gone), set(machine._replied), total, len(machine._U))
    return (str(machine.phase), dict(machine._accepted), *more)


def leaves_no_trace(error: SecureFLError | None) -> bool:
    """Whether an error says that nothing has changed."""
    if isinstance(error, WireError):
        return not isinstance(error, MalformedMessage)
    return isinstance(error, UnexpectedMessage | LocalProtocolError)


@dataclass
class World:
    """One session, and everything that ever happened in it; another protocol's world is a subclass.

    Class attributes:
        types, client_row, server_row, server_phases: the protocol's messages and tables.
    """

    types: ClassVar[Any] = MessageType
    client_row: ClassVar[Any] = staticmethod(client_row)
    server_row: ClassVar[Any] = staticmethod(server_row)
    server_phases: ClassVar[Any] = SERVER_PHASES

    params: Any
    m: int
    b: int
    seed: int
    clients: dict[ClientId, SecAggClient] = field(default_factory=dict)
    flying: list[Message] = field(default_factory=list)
    history: list[Message] = field(default_factory=list)
    faults: int = 0
    opened: bool = False
    spoiled: bool = False

    def __post_init__(self) -> None:
        n = self.params.n
        self.cohort = Cohort.of(range(2, 2 + 3 * n, 3))
        self.config = self.params.config(
            round_id=RoundId(7),
            cohort=self.cohort,
            m=self.m,
            context_digest=CONTEXT,
            server_nonce=self.seed.to_bytes(32, "little"),
            **self.ring(),
        )
        self.active = self.params.threat.adversary is Adversary.ACTIVE
        self.own = self.config.layout is Layout.ALL
        self.labels = KeySchedule(self.config.protocol)
        self.identity, self.directory = identities()
        self._sources = {u: np.random.default_rng((self.seed, u)).bytes for u in self.cohort}
        self.clients = {u: self.fresh(u) for u in self.cohort}
        self.server = self.fresh(SERVER)
        generator = np.random.default_rng(self.seed)
        dtype = ring_dtype(self.config.modulus)
        top = self.config.modulus - 1
        self.vectors = {
            u: RingVector(
                generator.integers(0, top, size=self.m, dtype=np.uint64, endpoint=True).astype(
                    dtype
                ),
                self.config.modulus,
            )
            for u in self.cohort
        }
        self.last: dict[ClientId, list[Outbound]] = defaultdict(list)
        self.emitted: dict[tuple[ClientId, int], bytes] = {}
        self.taken: dict[tuple[int, ClientId], bytes] = {}  # accepted by the server: digests
        self.read: dict[ClientId, set[bytes]] = defaultdict(set)  # accepted by anybody: digests
        self.lists: dict[ClientId, Any] = {}  # what a client signed, over the cohort
        self.believed: dict[ClientId, set[ClientId]] = {}  # U2 as a client that masked saw it
        self.released: dict[tuple[ClientId, ClientId], set[str]] = defaultdict(set)
        self.shares: dict[tuple[str, ClientId], set[ClientId]] = defaultdict(set)
        self.blobs: dict[ClientId, bytes] = {}
        self.pairs: set[tuple[str, str, str]] = set()

    def ring(self) -> dict[str, Any]:
        """What the protocol lets the configuration choose of its ring."""
        return {"b": self.b}

    def fresh(self, who: ClientId) -> Any:
        """A machine that has done nothing yet."""
        machine = self.built(who, SecAggClient, SecAggServer)
        if self.config.graph_source is GraphSource.BEACON:
            machine.set_beacon(bytes(32))
        return machine

    def built(self, who: ClientId, client: Any, server: Any) -> Any:
        """One of a protocol's two kinds of machines."""
        if who == SERVER:
            return server(self.config, directory=self.directory)
        return client(
            who,
            self.config,
            context_digest=CONTEXT,
            policy=POLICY,
            identity=self.identity[who],
            directory=self.directory,
            random_bytes=self._sources[who],
        )

    def machine(self, who: ClientId) -> Any:
        return self.server if who == SERVER else self.clients[who]

    def replace(self, who: ClientId, machine: Any) -> None:
        if who == SERVER:
            self.server = machine
        else:
            self.clients[who] = machine

    # -- what can happen ----------------------------------------------------------------------

    def deliver(self, message: Message) -> SecureFLError | None:
        """The recipient reads a frame; returns why it refused it."""
        frame = message.frame
        error = self.act(message.recipient, lambda m: m.receive(frame), frame)
        client = self.clients.get(message.recipient)
        if client is not None and client.wants_input:
            self.give_input(message.recipient)
        return error

    def give_input(self, u: ClientId) -> None:
        self.act(u, lambda m: m.set_input(self.vectors[u]))

    def start(self, u: ClientId) -> None:
        self.act(u, lambda m: m.start())

    def close(self) -> None:
        self.act(SERVER, lambda m: m.close_phase())

    def deliver_all(self, order: random.Random | None = None) -> None:
        """Everything on its way arrives, and what it causes; out of order also some of it twice."""
        while self.flying:
            place = order.randrange(len(self.flying)) if order else 0
            message = self.flying.pop(place)
            self.deliver(message)
            if order and order.random() < 0.1:
                self.deliver(message)

    def clients_read(self) -> None:
        """What is on its way to clients arrives; what they answer is still on its way."""
        down = [message for message in self.flying if message.recipient != SERVER]
        self.flying = [message for message in self.flying if message.recipient == SERVER]
        for message in down:
            self.deliver(message)

    def restart(self, who: ClientId, *, resend: bool) -> None:
        """The process ends after its state was stored, and another one goes on."""
        machine = self.machine(who)
        blob = machine.snapshot(STORAGE_KEY, SECRETS, outbound=self.last[who])
        with pytest.raises(LocalProtocolError):
            machine.receive(b"")
        fresh = self.fresh(who)
        sequence = machine._sequence + 1
        older = self.blobs.get(who)
        if older is not None:
            with pytest.raises(SnapshotError):
                self.fresh(who).restore(STORAGE_KEY, older, sequence=sequence)
        assert fresh.restore(STORAGE_KEY, blob, sequence=sequence) == self.last[who]
        self.blobs[who] = blob
        assert fresh.phase in FINAL or fresh.phase == self.phase_before_export(machine, fresh)
        self.replace(who, fresh)
        if resend:
            self.send(who, self.last[who])

    @staticmethod
    def phase_before_export(machine: Any, fresh: Any) -> str:
        assert machine.phase == "exported"
        assert machine._accepted == fresh._accepted
        return str(fresh.phase)

    def send(self, who: ClientId, frames: Iterable[Outbound]) -> None:
        for item in frames:
            message = Message(who, item.recipient, item.frame)
            self.flying.append(message)
            self.history.append(message)

    # -- what must hold -----------------------------------------------------------------------

    def act(
        self, who: ClientId, call: Callable[[Any], Iterable[object]], frame: bytes | None = None
    ) -> SecureFLError | None:
        """One call of one machine, and all that must be true of it."""
        machine = self.machine(who)
        phase, accepted, before = str(machine.phase), dict(machine._accepted), state(machine, who)
        digest = None if frame is None else hashlib.sha256(frame).digest()
        error: SecureFLError | None = None
        out: list[object] = []
        try:
            out = list(call(machine))
        except SecureFLError as caught:  # anything else ends the test
            error, out = caught, list(getattr(caught, "outbound", ()))
            assert str(caught)
        frames = frames_of(out)
        new = {key: value for key, value in machine._accepted.items() if key not in accepted}
        if phase in FINAL:
            assert not frames, "a machine that is done or aborted spoke"
            assert machine.phase == phase
        if digest is not None and digest in self.read[who]:
            assert error is None, "a byte-identical repeat was not ignored"
            assert not out
            assert state(machine, who) == before, "a repeat left a trace"
        if leaves_no_trace(error):
            assert state(machine, who) == before, "a refused call left a trace"
            assert not frames
        for key, value in new.items():
            assert digest == value
            self.read[who].add(value)
            kind, u = key if who == SERVER else (self.kind_in(key), who)
            if kind is not self.types.ABORT:
                row = self.server_row(phase) if who == SERVER else self.client_row(phase)
                assert row is not None, f"{kind.name} was accepted in phase {phase}"
                taken = (row.accepts, None if who == SERVER else row.gathers)
                assert kind in taken, f"{kind.name} was accepted in phase {phase}"
                side = "server" if who == SERVER else "client"
                self.pairs.add((side, phase, kind.name))
            if who == SERVER:
                assert key not in self.taken, "the server accepted two messages of one type"
                self.taken[kind, u] = value
        if who != SERVER:
            for item in frames:
                self.check_client_frame(who, machine, item.frame, frame)
        if frames:
            self.last[who] = frames
        self.send(who, frames)
        self.check_server()
        return error

    def kind_in(self, key: Any) -> Any:
        """The type in a key of what a client accepted."""
        return key

    def check_client_frame(
        self, u: ClientId, machine: Any, frame: bytes, cause: bytes | None
    ) -> None:
        parsed = decode_frame(frame)
        assert parsed.sender == u
        kind = self.types(parsed.type)
        first = self.emitted.setdefault((u, kind), frame)
        assert first == frame, f"client {u} sent two different {kind.name}"
        self.check_answer(u, machine, parsed, cause)

    def check_answer(self, u: ClientId, machine: Any, parsed: Frame, cause: bytes | None) -> None:
        """What a client says, and what about, once it has masked its input."""
        kind = MessageType(parsed.type)
        Q = [] if machine._in_U2 is None else [
            v for v, there in zip(machine._P, machine._in_U2, strict=True) if there
        ]  # fmt: skip
        if kind is MessageType.MASKED_INPUT:
            self.believed[u] = set(Q)
        if cause is None:
            return
        body = bytes(decode_frame(cause).body)
        if kind is MessageType.SURVIVOR_SIGNATURE:
            alive = SurvivorNotice.decode(body, n=self.config.n).alive
            self.lists[u] = {v for v, there in zip(self.cohort, alive, strict=True) if there}
        if kind is MessageType.UNMASK_SHARES:
            self.check_released(u, machine._P, Q, bytes(parsed.body), body)

    def check_released(
        self, u: ClientId, peers: Any, Q: list[ClientId], answer: bytes, request: bytes
    ) -> None:
        """P1: per peer one kind of share, ever; against an active server not enough of both."""
        if self.active:
            U3 = self.lists[u]
            shown = SignedUnmaskRequest.decode(request, most=len(peers)).signatures
            agreed = {v for v, signature in shown if self.signed(v, signature, U3) and v in peers}
        else:
            alive = UnmaskRequest.decode(request, peers=len(peers)).alive
            U3 = agreed = {v for v, there in zip(peers, alive, strict=True) if there}
        assert len(agreed) + self.own >= self.config.t, "it answered without t holders on its list"
        kinds = np.array([v in U3 for v in Q], dtype=np.bool_)
        opened = UnmaskShares.decode(answer, alive=kinds, own=self.own)
        for v, readable in zip(Q, opened.readable, strict=True):
            if readable:
                kind = "b" if v in U3 else "s"
                self.released[u, v].add(kind)
                self.shares[kind, v].add(u)
        if self.own:
            self.shares["b", u].add(u)
        for (holder, dealer), given in self.released.items():
            assert len(given) == 1, f"{holder} released both kinds of share of {dealer}"
        if self.active:
            for v in self.cohort:
                enough = [len(self.shares[kind, v]) >= self.config.t for kind in "bs"]
                assert not all(enough), f"both secrets of {v} can be opened"

    def signed(self, v: ClientId, signature: bytes, U3: set[ClientId]) -> bool:
        """Whether client v, who is on this list, really signed it."""
        frame = self.emitted.get((v, self.types.SURVIVOR_SIGNATURE))
        genuine = frame is not None and bytes(decode_frame(frame).body) == signature
        return genuine and v in U3 and self.lists[v] == U3

    def check_server(self) -> None:
        sets = [s for s in self.sets() if s is not None]
        for larger, smaller in pairwise(sets):
            assert set(smaller) <= set(larger)
        if self.server.phase == "aborted":
            assert self.server.result is None
        if self.server.result is not None and not self.opened:
            self.opened = True
            self.check_result()

    def sets(self) -> list[Any]:
        found = self.server.survivors
        return [found.U1, found.U2, found.U3, found.U4, found.U5]

    def check_result(self) -> None:
        """P26 and P27: the exact sum over U3, and a transcript that depends on no order."""
        result = self.server.result
        U3 = self.server.survivors.U3
        assert result.survivors == U3
        assert len(U3) >= self.config.n_min
        assert result.transcript_digest == self.transcript()
        self.spoiled = self.undetectable()
        if not self.spoiled:
            values = [self.vectors[u].values.tolist() for u in U3]
            plain = [sum(column) % self.config.modulus for column in zip(*values, strict=True)]
            assert result.vector.values.tolist() == plain

    def transcript(self) -> bytes:
        order = [row.accepts for row in self.server_phases]
        lines = sorted(
            (order.index(kind), u, digest)
            for (kind, u), digest in self.taken.items()
            if kind is not self.types.ABORT
        )
        label = dst(Usage.TRANSCRIPT, self.config.protocol)
        joined = b"".join(struct.pack("<BI", order[i], u) + digest for i, u, digest in lines)
        return hashlib.sha256(label + joined).digest()

    def genuine_reply(self, u: ClientId, kind: Any) -> bool:
        """Whether the server took the very frame that client u made."""
        sent = self.emitted.get((u, kind))
        return sent is not None and hashlib.sha256(sent).digest() == self.taken[kind, u]

    def undetectable(self) -> bool:
        """Two things nothing can detect: another input, and a client that was told another U2."""
        U2 = set(self.server.survivors.U2)
        return any(
            not self.genuine_reply(u, MessageType.MASKED_INPUT)
            or self.believed[u] != U2.intersection(self.clients[u]._P)
            for u in self.server.survivors.U3
        )

    # -- a server that lies -------------------------------------------------------------------

    def lie(self, u: ClientId, chance: random.Random) -> bytes | None:
        """A well-formed frame with which the server tells client u something else, if it can."""
        client = self.clients[u]
        row = client_row(client.phase)
        kind = MessageType.UNMASK_REQUEST if row is None else row.accepts
        if kind is None or (row is None and client._end.session is None):
            return None
        if (
            client._end.session is not None and chance.random() < 0.2
        ):  # out of turn, or a second time
            kind = chance.choice(
                [
                    MessageType.SHARE_DELIVERY,
                    MessageType.SURVIVOR_NOTICE,
                    MessageType.UNMASK_REQUEST,
                ]
            )
        if kind is MessageType.KEY_ROSTER:
            return self.other_roster(u, chance)
        if kind is MessageType.SHARE_DELIVERY:
            return self.other_delivery(u, chance)
        if kind is MessageType.SURVIVOR_NOTICE:
            alive = np.array([chance.random() < 0.8 for _ in self.cohort], dtype=np.bool_)
            return self.down(u, kind, SurvivorNotice(alive=alive).encode())
        if not self.active:
            peers = len(client._P)
            alive = np.array([chance.random() < 0.8 for _ in range(peers)], dtype=np.bool_)
            size = max(0, int(alive.sum()) + 1 + chance.choice([0, 0, 0, 1, -1]))
            return self.down(u, kind, UnmaskRequest(size=size, alive=alive).encode())
        peers = set(client._P)
        possible = {v for v in self.cohort if v in peers or chance.random() < 0.05}
        return self.down(u, kind, self.signatures_shown(possible, chance))

    def signatures_shown(self, possible: set[ClientId], chance: random.Random) -> bytes:
        """Some genuine signatures of these clients on the lists they saw, sometimes one twice."""
        share = chance.choice([1.0, 0.9, 0.5, 0.2])
        signatures = [
            (v, bytes(decode_frame(frame).body))
            for (v, type_), frame in sorted(self.emitted.items())
            if type_ == self.types.SURVIVOR_SIGNATURE and v in possible and chance.random() < share
        ]
        if signatures and chance.random() < 0.2:
            signatures.insert(0, chance.choice(signatures))
        return SignedUnmaskRequest(signatures=tuple(signatures)).encode()

    def down(self, u: ClientId, kind: Any, body: bytes) -> bytes:
        session = self.clients[u]._end.session or bytes(32)
        return encode_frame(
            Frame(
                protocol=self.config.protocol,
                type=kind,
                sender=SERVER,
                round_id=self.config.round_id,
                session=session,
                body=body,
            )
        )

    def genuine(self, u: ClientId, kind: Any) -> bytes | None:
        """What the server really sent this client."""
        for message in self.history:
            to_it = message.sender == SERVER and message.recipient == u
            if to_it and decode_frame(message.frame).type == kind:
                return message.frame
        return None

    def other_roster(self, u: ClientId, chance: random.Random) -> bytes | None:
        frame = self.genuine(u, self.types.KEY_ROSTER)
        if frame is None:
            return None
        body = decode_frame(frame).body
        sparse = self.config.protocol is WireProtocol.SECAGG_PLUS
        roster = self.roster_type().decode(body, most=self.config.n, signed=self.active)
        entries = list(roster.entries)
        a, b = chance.randrange(len(entries)), chance.randrange(len(entries))
        how = chance.randrange(4)
        if how == 0:
            del entries[a]
        elif how == 1:
            entries[a], entries[b] = entries[b], entries[a]
        elif how == 2:
            entries.append(entries[a])
        else:
            one, two = (entries[i].entry if sparse else entries[i] for i in (a, b))
            mixed = one._replace(c_pk=two.c_pk)
            entries[a] = entries[a]._replace(entry=mixed) if sparse else mixed
        changes: dict[str, Any] = {"entries": tuple(entries)}
        if sparse and chance.random() < 0.3:
            changes["size"] = roster.size - 1
        return edited(frame, body=replace(roster, **changes).encode())

    def roster_type(self) -> Any:
        sparse = self.config.protocol is WireProtocol.SECAGG_PLUS
        return NeighbourRoster if sparse else KeyRoster

    def other_delivery(self, u: ClientId, chance: random.Random) -> bytes | None:
        frame = self.genuine(u, MessageType.SHARE_DELIVERY)
        peers = len(self.clients[u]._P)
        if frame is None or not peers:
            return None
        delivery = ShareDelivery.decode(decode_frame(frame).body, peers=peers)
        Q = np.flatnonzero(delivery.present).tolist()
        sealed = dict(zip(Q, delivery.ciphertexts, strict=True))
        place = chance.randrange(peers)
        how = chance.randrange(3)
        if how == 0:
            sealed.pop(place, None)
        elif how == 1:
            sealed[place] = bytes(72)
        elif Q:
            sealed[chance.choice(Q)] = chance.choice(delivery.ciphertexts)
        present = np.array([i in sealed for i in range(peers)], dtype=np.bool_)
        ciphertexts = [sealed[i] for i in sorted(sealed)]
        body = ShareDelivery(present=present, ciphertexts=ciphertexts).encode()
        return edited(frame, body=body)

    # -- changed bytes ------------------------------------------------------------------------

    def mutated(self, frame: bytes, chance: random.Random) -> bytes:
        """Another frame made from this one; half of a client's are signed by their author."""
        others = self.history or [Message(SERVER, SERVER, frame)]
        changed = mutate(frame, chance.choice(others).frame, chance)
        if self.active and chance.random() < 0.5:
            try:
                content = replace(decode_frame(changed), signature=b"")
            except SecureFLError:
                return changed
            if content.sender in self.identity and content.sender != SERVER:
                statement = self.labels.frame_statement(SERVER, signed_content(content))
                signature = self.identity[content.sender].sign(statement)
                return encode_frame(replace(content, signature=signature))
        return changed


def mutate(frame: bytes, other: bytes, chance: random.Random) -> bytes:
    """Another frame made from this one (and another genuine one)."""
    return chance.choice(MUTATIONS)(bytearray(frame), other, chance)


def flip_bits(raw: bytearray, other: bytes, chance: random.Random) -> bytes:
    for _ in range(chance.choice([1, 1, 1, 2, 8])):
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    return bytes(raw)


def flip_in_body(raw: bytearray, other: bytes, chance: random.Random) -> bytes:
    if len(raw) > HEADER_BYTES:
        raw[chance.randrange(HEADER_BYTES, len(raw))] ^= 1 << chance.randrange(8)
    return bytes(raw)


def truncate(raw: bytearray, other: bytes, chance: random.Random) -> bytes:
    return bytes(raw[: chance.randrange(len(raw))])


def extend(raw: bytearray, other: bytes, chance: random.Random) -> bytes:
    return bytes(raw) + chance.randbytes(chance.choice([1, 4, 64, 72]))


def splice(raw: bytearray, other: bytes, chance: random.Random) -> bytes:
    return bytes(raw[: chance.randrange(len(raw))]) + other[chance.randrange(len(other)) :]


def announced_length(raw: bytearray, other: bytes, chance: random.Random) -> bytes:
    struct.pack_into("<I", raw, 56, chance.choice([0, 1, len(raw), 0x7FFFFFFF, 0xFFFFFFFF]))
    return bytes(raw)


def announced_count(raw: bytearray, other: bytes, chance: random.Random) -> bytes:
    if len(raw) >= HEADER_BYTES + 4:
        place = HEADER_BYTES + 4 * chance.randrange((len(raw) - HEADER_BYTES) // 4)
        place = chance.choice([HEADER_BYTES, place])
        (old,) = struct.unpack_from("<I", raw, place)
        values = [0, old ^ 1, (old + 1) & 0xFFFFFFFF, P, P - 1, 1 << 20, 0xFFFFFFFF]
        struct.pack_into("<I", raw, place, chance.choice(values))
    return bytes(raw)


def header_field(raw: bytearray, other: bytes, chance: random.Random) -> bytes:
    start, size = chance.choice(
        [(0, 4), (4, 1), (5, 1), (6, 1), (7, 1), (8, 2), (10, 2), (12, 4), (16, 8), (24, 32)]
    )
    value = chance.choice([other[start : start + size], chance.randbytes(size), bytes(size)])
    raw[start : start + size] = value
    return bytes(raw)


def other_type(raw: bytearray, other: bytes, chance: random.Random) -> bytes:
    raw[6] = chance.choice([*range(1, 11), MessageType.ABORT])
    return bytes(raw)


def other_body(raw: bytearray, other: bytes, chance: random.Random) -> bytes:
    return edited(bytes(raw), body=bytes(decode_frame(other).body))


def other_header(raw: bytearray, other: bytes, chance: random.Random) -> bytes:
    return edited(other, body=bytes(decode_frame(bytes(raw)).body))


def cut_inside(raw: bytearray, other: bytes, chance: random.Random) -> bytes:
    """Without, or with twice, a piece of the body; the length is right."""
    body = bytearray(decode_frame(bytes(raw)).body)
    size = chance.choice([1, 4, 20, 36, 64, 68, 72, 164])
    start = chance.randrange(len(body) + 1)
    piece = body[start : start + size]
    if chance.random() < 0.5:
        body[start:start] = piece
    else:
        del body[start : start + size]
    return edited(bytes(raw), body=bytes(body))


def overwrite(raw: bytearray, other: bytes, chance: random.Random) -> bytes:
    """A piece of the body becomes zeros, ones, or another piece; the length is right."""
    body = bytearray(decode_frame(bytes(raw)).body)
    if body:
        size = min(len(body), chance.choice([1, 4, 16, 20, 32, 36, 64, 72]))
        start, source = (chance.randrange(len(body) - size + 1) for _ in range(2))
        pieces = [bytes(size), b"\xff" * size, bytes(body[source : source + size])]
        body[start : start + size] = chance.choice(pieces)
    return edited(bytes(raw), body=bytes(body))


def last_byte(raw: bytearray, other: bytes, chance: random.Random) -> bytes:
    """Padding bits live in the last byte of bitmaps and vectors."""
    body = bytearray(decode_frame(bytes(raw)).body)
    if body:
        body[chance.choice([0, -1])] |= 0x80 >> chance.randrange(8)
    return edited(bytes(raw), body=bytes(body))


def noise(raw: bytearray, other: bytes, chance: random.Random) -> bytes:
    return chance.randbytes(chance.choice([0, 1, 59, 60, 61, 200]))


MUTATIONS = [
    flip_bits, flip_in_body, truncate, extend, splice, announced_length, announced_count,
    header_field, other_type, other_body, other_header, cut_inside, overwrite, last_byte, noise,
]  # fmt: skip


@dataclass(frozen=True)
class Universe:
    """What the tests of this folder share."""

    World: type[World]
    Message: type[Message]
    variants: Callable[[], dict[tuple[int, bool, bool], list[Any]]]
    mutations: list[Any]
    state: Callable[[Any, ClientId], tuple[Any, ...]]
    leaves_no_trace: Callable[[SecureFLError | None], bool]
    sizes: list[int]
    restarts: bool = True

    def play(self, **options: Any) -> tuple[Counter[str], set[tuple[str, str, str]]]:
        """Runs the model; what happened, and which (side, phase, message) were accepted."""
        seen: Counter[str] = Counter()
        pairs: set[tuple[str, str, str]] = set()
        run_state_machine_as_test(
            model(self, seen, pairs),
            settings=settings(
                deadline=None, suppress_health_check=list(HealthCheck), database=None, **options
            ),
        )
        return seen, pairs


TROUBLE = ["nothing", "answers", "late", "changed", "lied", "split", "wrong answer"]
SEEDS = st.integers(0, 2**16 - 1)
INDEX = st.integers(0, 2**10)
SELDOM = st.sampled_from([True, False, False, False, False, False])


def model(universe: Universe, seen: Counter[str], pairs: set[tuple[str, str, str]]) -> Any:
    """The state machine; what happened is counted in ``seen``."""

    class Session(RuleBasedStateMachine):
        world: Any = None

        @initialize(
            n=st.sampled_from(universe.sizes),
            active=st.booleans(),
            sparse=st.booleans(),
            which=INDEX,
            m=st.sampled_from([0, 1, 3, 7]),
            b=st.integers(1, 64),
            seed=SEEDS,
            absent=st.sampled_from([0, 0, 1, 2]),
            quiet=st.sampled_from([0, 1, 2, 2, 3, 3, 4, 4]),
            first=st.sampled_from(TROUBLE),
        )
        def begin(
            self, n: int, active: bool, sparse: bool, which: int, m: int, b: int, seed: int,
            absent: int, quiet: int, first: str,
        ) -> None:  # fmt: skip
            """Some phases pass in quiet, so that trouble begins everywhere."""
            choices = universe.variants()
            found = choices.get((n, active, sparse)) or choices[n, active, False]
            self.world = universe.World(found[which % len(found)], m, b, seed)
            self.ids = list(self.world.cohort)
            self.late: list[Any] = []
            for u in self.ids[absent:]:
                self.world.start(u)
            for _ in range(quiet):
                self.next_phase(seed)
            self.begin_trouble(first, which, seed)

        def begin_trouble(self, first: str, which: int, seed: int) -> None:
            while (
                first == "wrong answer" and self.world.server.phase in self.world.server.phases[:-1]
            ):
                self.next_phase(seed)
            if first == "split":
                self.lies(seed, self.ids[::2])
            if first != "nothing":
                self.world.clients_read()
            if first == "late" and self.world.flying:
                self.lies(seed, [self.one_is_late(which)])
            if first in ("changed", "wrong answer") and self.world.flying:
                self.one_is_changed(which, seed, keep=False)
            if first in ("lied", "split"):
                self.lies(seed, self.ids)

        def lies(self, seed: int, victims: list[Any]) -> None:
            """The same chances for all."""
            for u in victims:
                frame = self.world.lie(u, random.Random(seed))
                if frame is not None:
                    self.fault("lied")
                    self.world.deliver(universe.Message(SERVER, u, frame))

        def next_phase(self, seed: int) -> None:
            self.world.deliver_all(random.Random(seed))
            if not self.world.server.final:
                self.world.close()

        def some(self, which: int) -> Any:
            return self.ids[which % len(self.ids)]

        def anybody(self, which: int) -> Any:
            return [SERVER, *self.ids][which % (len(self.ids) + 1)]

        def fault(self, what: str) -> None:
            self.world.faults += 1
            seen[what] += 1

        @rule(seed=SEEDS)
        def everything_arrives_and_the_phase_closes(self, seed: int) -> None:
            self.next_phase(seed)

        @rule(seed=SEEDS)
        def everything_arrives(self, seed: int) -> None:
            self.world.deliver_all(random.Random(seed))

        @rule()
        def the_clients_answer(self) -> None:
            self.world.clients_read()

        @precondition(lambda self: self.world.flying)
        @rule(which=INDEX)
        def a_client_is_late_for_a_phase(self, which: int) -> None:
            self.one_is_late(which)

        def one_is_late(self, which: int) -> Any:
            """All that is on its way from one of them comes when the phase is over."""
            self.fault("late")
            u = self.world.flying[which % len(self.world.flying)].sender
            late = [message for message in self.world.flying if message.sender == u]
            self.world.flying = [item for item in self.world.flying if item.sender != u]
            self.next_phase(which)
            for message in late:
                self.world.deliver(message)
            return u if u in self.ids else self.some(which)

        @rule(rashly=SELDOM)
        def the_phase_closes(self, rashly: bool) -> None:
            if rashly or self.world.server.sufficient:
                self.world.close()

        @precondition(lambda self: self.world.flying)
        @rule(which=INDEX)
        def one_frame_arrives(self, which: int) -> None:
            self.world.deliver(self.world.flying.pop(which % len(self.world.flying)))

        @precondition(lambda self: self.world.flying)
        @rule(which=INDEX)
        def one_frame_is_lost(self, which: int) -> None:
            self.fault("lost")
            del self.world.flying[which % len(self.world.flying)]

        @precondition(lambda self: self.world.flying)
        @rule(which=INDEX)
        def one_frame_is_held_back(self, which: int) -> None:
            self.fault("held back")
            self.late.append(self.world.flying.pop(which % len(self.world.flying)))

        @precondition(lambda self: self.late)
        @rule()
        def what_was_held_back_arrives(self) -> None:
            self.what_is_late()

        def what_is_late(self) -> None:
            for message in self.late:
                self.world.deliver(message)
            self.late = []

        @precondition(lambda self: self.world.history)
        @rule(which=INDEX)
        def an_old_frame_arrives_again(self, which: int) -> None:
            """Duplicates, and frames that are late by any number of phases."""
            self.fault("repeated")
            self.world.deliver(self.world.history[which % len(self.world.history)])

        @precondition(lambda self: self.world.history)
        @rule(which=INDEX, who=INDEX)
        def a_frame_arrives_elsewhere(self, which: int, who: int) -> None:
            self.fault("misdelivered")
            old = self.world.history[which % len(self.world.history)]
            self.world.deliver(universe.Message(old.sender, self.anybody(who), old.frame))

        @precondition(lambda self: self.world.flying)
        @rule(which=INDEX, seed=SEEDS, keep=st.booleans())
        def one_frame_is_changed(self, which: int, seed: int, keep: bool) -> None:
            self.one_is_changed(which, seed, keep=keep)

        def one_is_changed(self, which: int, seed: int, *, keep: bool) -> None:
            self.fault("changed")
            place = which % len(self.world.flying)
            old = self.world.flying[place] if keep else self.world.flying.pop(place)
            changed = self.world.mutated(old.frame, random.Random(seed))
            self.world.deliver(universe.Message(old.sender, old.recipient, changed))

        @rule(which=INDEX, seed=SEEDS)
        def the_server_lies_to_one(self, which: int, seed: int) -> None:
            self.lies(seed, [self.some(which)])

        @rule(seed=SEEDS, really=SELDOM)
        def the_server_lies_to_half_of_them(self, seed: int, really: bool) -> None:
            """A split view."""
            self.lies(seed, self.ids[:: 1 + seed % 2] if really else [])

        if universe.restarts:

            @rule(which=INDEX, resend=st.booleans())
            def a_process_restarts(self, which: int, resend: bool) -> None:
                seen["restarted"] += 1
                self.world.restart(self.anybody(which), resend=resend)

        @rule(which=INDEX, really=SELDOM)
        def a_client_gives_up(self, which: int, really: bool) -> None:
            if really:
                self.fault("gave up")
                self.world.act(self.some(which), lambda machine: machine.abort())

        @rule(which=INDEX)
        def an_input_comes_early_or_twice(self, which: int) -> None:
            self.world.give_input(self.some(which))

        @rule(which=INDEX)
        def a_client_starts_late_or_twice(self, which: int) -> None:
            self.world.start(self.some(which))

        def teardown(self) -> None:
            if self.world is None:
                return
            for _ in range(5):  # whatever happened, the session goes on to its end
                self.next_phase(len(self.world.history))
                self.what_is_late()
            seen["examples"] += 1
            pairs.update(self.world.pairs)
            end = str(self.world.server.phase)
            if self.world.opened:
                end = "spoiled sum" if self.world.spoiled else "exact sum"
                seen["exact sum after a fault"] += not self.world.spoiled and self.world.faults > 0
            seen[end] += 1

    return Session


@pytest.fixture(scope="session")
def universe() -> Universe:
    sizes = [3, 4, 4, 5, 5, 6, 6, 7, 8, 9, 10, 11, 12]
    return Universe(World, Message, variants, MUTATIONS, state, leaves_no_trace, sizes)
