"""A server in the middle of real machines: it plays along as long as it likes, then it lies.

Every frame of either direction goes through the library's in-memory network and so into the
transcript. Clients are the library's, or weakened by one method. A colluder runs the library's
client too, on randomness that the attacker knows: its secrets are the first bytes it asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
from kit.rounds import CONTEXT, images_as_inputs
from kit.transcript import read_transcript, write_transcript
from kit.view import Ring, View
from numpy.typing import NDArray

from securefl.errors import SecureFLError
from securefl.modular import RingVector
from securefl.primitives.signing import IdentityDirectory, IdentityKey
from securefl.protocols.machine import Event, Outbound
from securefl.protocols.secagg import ClientPolicy, SecAggClient, SecAggParams, SecAggServer, params
from securefl.protocols.secagg.graph import NeighbourGraph, graph_of
from securefl.protocols.secagg.keys import KeySchedule
from securefl.protocols.secagg.messages import (
    EncryptedShares,
    ShareDelivery,
    SignedUnmaskRequest,
    SurvivorNotice,
    UnmaskRequest,
)
from securefl.protocols.secagg.transitions import MessageType
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
from securefl.simulation.network import Direction, InMemoryNetwork
from securefl.wire import Frame, decode_frame, encode_frame

__all__ = ["BITS", "TARGET", "Case", "Plan", "Stage", "Tape", "any_numbers"]

TARGET = ClientId(1)
"""The client whose input is wanted, fixed before any run."""
BITS = 24

Ids = Iterable[ClientId]

_ANY = ClientPolicy(gamma=0, experimental_active_graph=True)


def any_numbers() -> AbstractContextManager[object]:
    """A library whose thresholds are only documented: every number is accepted inside."""
    return mock.patch.object(params, "_check_numbers", lambda **_: None)


class Tape:
    """Randomness from the operating system, remembered: what a colluder hands over.

    A client reads its two X25519 keys and its self-mask seed first, in this order.
    """

    def __init__(self) -> None:
        self.read: list[bytes] = []

    def __call__(self, size: int) -> bytes:
        """The next bytes."""
        self.read.append(os.urandom(size))
        return self.read[-1]

    @property
    def keys(self) -> list[bytes]:
        """c_sk and s_sk."""
        return self.read[:2]

    @property
    def seed(self) -> bytes:
        """b_u."""
        return self.read[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The numbers of a session, as in :class:`securefl.protocols.secagg.SecAggParams`.

    Attributes:
        n: clients 1..n.
        t: threshold; None for the library's default.
        A: the plan's most colluders; what the attacker really has may differ.
        D: most dropouts.
        n_min: fewest inputs; None for the default.
        k: neighbours; None for the complete graph.
        layout: who holds shares.
        active: whether the session protects against a server that lies.
        checked: whether the constructor's rules hold; without, any numbers are accepted.
        policy: what the clients demand.
        bits: of the ring.
    """

    n: int
    t: int | None = None
    A: int = 1
    D: int = 0
    n_min: int | None = None
    k: int | None = None
    layout: Layout = Layout.OTHERS
    active: bool = True
    checked: bool = True
    policy: ClientPolicy = _ANY
    bits: int = BITS

    def rules(self) -> AbstractContextManager[object]:
        """The constructor's rules, or their absence."""
        return nullcontext() if self.checked else any_numbers()

    def config(self, *, m: int, round_id: int = 0, nonce: bytes | None = None) -> RoundConfig:
        """A fresh configuration. Raises ConfigurationError if ``checked`` and unsafe."""
        adversary = Adversary.ACTIVE if self.active else Adversary.SEMI_HONEST
        threat = ThreatModel(
            adversary=adversary, corrupt=self.A, dropped=self.D, assume_no_corruption=self.A == 0
        )
        with self.rules():
            made = (
                SecAggParams.complete(
                    self.n, threat, t=self.t, n_min=self.n_min, layout=self.layout
                )
                if self.k is None
                else SecAggParams.harary(self.n, threat, k=self.k, t=self.t, n_min=self.n_min)
            )
        return made.config(
            round_id=RoundId(round_id),
            cohort=Cohort.of(range(1, self.n + 1)),
            m=m,
            b=self.bits,
            context_digest=CONTEXT,
            server_nonce=os.urandom(32) if nonce is None else nonce,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run of an attack: whom it meets, and where the recording goes.

    Attributes:
        client: the honest clients' class; the library's, or one of ``attackers.weakened``.
        seed: of the inputs.
        path: of the transcript.
        refused: filled by the attack: who refused a frame, and why.
        found: filled by the attack: the best it has of what it wanted, recovered or not.
    """

    client: type[SecAggClient] = SecAggClient
    seed: int
    path: Path
    refused: list[tuple[ClientId, SecureFLError]] = field(default_factory=list)
    found: list[Ring] = field(default_factory=list)


@dataclass(kw_only=True)
class Stage:
    """One session that the attacker's server leads.

    Attributes:
        tapes: of the colluders.
        identities: of everybody; the attacker may use those of colluders.
        inbox: frames of the real server that wait for a client.
        refused: what honest clients answered to lies.
    """

    config: RoundConfig
    server: SecAggServer
    clients: dict[ClientId, SecAggClient]
    inputs: dict[ClientId, RingVector]
    tapes: dict[ClientId, Tape]
    identities: Mapping[ClientId, IdentityKey]
    graph: NeighbourGraph
    network: InMemoryNetwork = field(default_factory=InMemoryNetwork)
    inbox: dict[ClientId, bytes] = field(default_factory=dict)
    refused: list[tuple[ClientId, SecureFLError]] = field(default_factory=list)
    found: list[Ring] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    sessions: dict[ClientId, bytes] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        plan: Plan,
        *,
        case: Case,
        colluders: Ids = (),
        absent: Ids = (),
        inputs: dict[ClientId, RingVector] | None = None,
        round_id: int = 0,
        identities: Mapping[ClientId, IdentityKey] | None = None,
        random_of: Callable[[ClientId], Callable[[int], bytes]] = lambda _: os.urandom,
    ) -> Stage:
        """Fresh machines.

        Args:
            plan: the numbers.
            case: seed of the inputs, class of the honest clients, where refusals are noted.
            colluders: they run the library's client on a tape.
            absent: cohort members of whom no machine is made.
            inputs: by client; default digits with random low bits.
            round_id: of training.
            identities: default fresh ones for everybody.
            random_of: randomness of an honest client; tests of reused keys change it.
        """
        vectors = (
            images_as_inputs(plan.n, bits=plan.bits, seed=case.seed) if inputs is None else inputs
        )
        config = plan.config(m=len(next(iter(vectors.values()))), round_id=round_id)
        cohort, missing = config.cohort, set(absent)
        known = identities or (
            {u: IdentityKey(os.urandom(32)) for u in cohort} if plan.active else {}
        )
        directory = IdentityDirectory({u: key.public for u, key in known.items()})
        tapes = {u: Tape() for u in sorted(set(colluders))}
        clients: dict[ClientId, SecAggClient] = {}
        with plan.rules():
            for u in cohort:
                if u in missing:
                    continue
                clients[u] = (SecAggClient if u in tapes else case.client)(
                    u,
                    config,
                    context_digest=CONTEXT,
                    policy=plan.policy,
                    identity=known.get(u),
                    directory=directory,
                    random_bytes=tapes[u] if u in tapes else random_of(u),
                )
            server = SecAggServer(
                config,
                directory=directory,
                assume_no_corruption=plan.policy.assume_no_corruption,
            )
        shape = config.graph_value
        if config.graph_source is GraphSource.BEACON:
            shape = beacon = os.urandom(32)
            server.set_beacon(beacon)
            for machine in clients.values():
                machine.set_beacon(beacon)
        return cls(
            config=config,
            server=server,
            clients=clients,
            inputs=vectors,
            tapes=tapes,
            identities=known,
            graph=graph_of(config, shape),
            refused=case.refused,
            found=case.found,
        )

    # -- playing along ------------------------------------------------------------------------

    @property
    def ids(self) -> list[ClientId]:
        """Everybody with a machine."""
        return sorted(self.clients)

    @property
    def honest(self) -> list[ClientId]:
        """Those who do not collude."""
        return [u for u in self.ids if u not in self.tapes]

    @property
    def colluders(self) -> list[ClientId]:
        """Those who do."""
        return sorted(self.tapes)

    def up(self, u: ClientId, out: Sequence[Outbound | Event]) -> list[bytes]:
        """Client u's frames reach the server's end of the wire (and the transcript)."""
        frames = []
        for item in out:
            if isinstance(item, Outbound):
                self.network.send(u, SERVER, item.frame, phase=self.server.phase)
                frames += [e.frame for e in self.network.deliver(SERVER)]
            else:
                self.events.append(item)
        return frames

    def hand_in(self, frames: Iterable[bytes]) -> None:
        """The real server's machine takes frames; refusals are its business."""
        for frame in frames:
            try:
                self._keep(self.server.receive(frame))
            except SecureFLError as error:
                self.refused.append((SERVER, error))

    def _keep(self, out: Sequence[Outbound | Event]) -> None:
        for item in out:
            if isinstance(item, Outbound):
                self.inbox[item.recipient] = item.frame
            else:
                self.events.append(item)

    def start(self, *, without: Ids = ()) -> None:
        """Everybody advertises keys."""
        skipped = set(without)
        for u in self.ids:
            if u not in skipped:
                self.hand_in(self.up(u, self.clients[u].start()))

    def close(self) -> None:
        """The real server ends its phase; what it sends waits in the inbox."""
        self.inbox = {}
        self._keep(self.server.close_phase())

    def answer(self, *, without: Ids = ()) -> None:
        """Clients read the inbox and answer, inputs included."""
        skipped = set(without)
        for u in sorted(self.inbox):
            if u not in skipped:
                self.hand_in(self.deliver(u, self.inbox[u]))

    def play(self, phase: str, *, without: Ids = ()) -> Stage:
        """Plays along until the frames that open ``phase`` wait in the inbox."""
        skipped = list(without)
        self.start(without=skipped)
        while True:
            self.close()
            if self.server.phase == phase:
                return self
            self.answer(without=skipped)

    # -- lying --------------------------------------------------------------------------------

    def deliver(self, u: ClientId, frame: bytes) -> list[bytes]:
        """Sends a frame to client u; what it answers, or nothing if it refused."""
        self.network.send(SERVER, u, frame, phase=self.server.phase)
        answers: list[bytes] = []
        machine = self.clients[u]
        for envelope in self.network.deliver(u):
            try:
                answers += self.up(u, machine.receive(envelope.frame, SERVER))
            except SecureFLError as error:
                self.refused.append((u, error))
                answers += self.up(u, getattr(error, "outbound", ()))
                continue
            if machine.wants_input:
                answers += self.up(u, machine.set_input(self.inputs[u]))
        return answers

    def frame(self, u: ClientId, kind: MessageType, body: bytes) -> bytes:
        """A frame of the server for u, in the session that u believes to be in."""
        session = self.sessions.get(u)
        if session is None:
            session = decode_frame(self.inbox[u]).session if u in self.inbox else b""
            self.sessions[u] = session
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

    def tell(self, u: ClientId, kind: MessageType, body: bytes) -> list[bytes]:
        """Forges a message; what u answers, Abort frames left out."""
        answers = self.deliver(u, self.frame(u, kind, body))
        return [f for f in answers if decode_frame(f).type != MessageType.ABORT]

    def peers(self, u: ClientId) -> list[ClientId]:
        """U's neighbours among those who advertised keys, in the order of its roster."""
        return self.graph.peers(u, self.sent_up(MessageType.ADVERTISE_KEYS))

    # -- survivor lists -----------------------------------------------------------------------

    def flags(self, of: Sequence[ClientId], alive: Ids) -> NDArray[np.bool_]:
        """Who of them is alive."""
        there = set(alive)
        return np.array([v in there for v in of], dtype=np.bool_)

    def ask(self, u: ClientId, alive: Ids, *, peers: Sequence[ClientId]) -> bool:
        """A semi-honest request with this list, u always on it; whether u answered."""
        there = {*alive, u}
        request = UnmaskRequest(size=len(there), alive=self.flags(peers, there))
        return bool(self.tell(u, MessageType.UNMASK_REQUEST, request.encode()))

    def signature(self, u: ClientId, alive: Ids) -> bytes | None:
        """Has u sign this list (a colluder signs anything); None if it refused."""
        notice = SurvivorNotice(alive=self.flags(self.config.cohort.ids, alive)).encode()
        if u in self.tapes:
            keys = KeySchedule(self.config.protocol)
            session = self.server_session
            return self.identities[u].sign(keys.survivor_statement(session, notice))
        answers = self.tell(u, MessageType.SURVIVOR_NOTICE, notice)
        return bytes(decode_frame(answers[-1]).body) if answers else None

    @property
    def server_session(self) -> bytes:
        """The session id of those who were shown the real roster."""
        return decode_frame(next(iter(self.inbox.values()))).session

    def ask_signed(self, u: ClientId, signatures: Iterable[tuple[ClientId, bytes | None]]) -> bool:
        """An active request for the list that u signed; whether u answered."""
        usable = tuple((v, s) for v, s in signatures if s is not None)
        body = SignedUnmaskRequest(signatures=usable).encode()
        return bool(self.tell(u, MessageType.UNMASK_REQUEST, body))

    # -- shares -----------------------------------------------------------------------------------

    def deliveries(self, there: Sequence[ClientId]) -> dict[ClientId, bytes]:
        """What a server that says "these were in U2" sends to each of them; sets their sessions."""
        view = View(self.config, self.network.transcript)
        dealt = {
            u: EncryptedShares.decode(body, peers=len(self.peers(u)))
            for u, body in self.sent_up(MessageType.ENCRYPTED_SHARES).items()
        }
        bodies = {}
        for u in there:
            self.sessions[u] = view.session_of(u)
            peers = self.peers(u)
            sealed = [dealt[v][self.peers(v).index(u)].tobytes() for v in peers if v in set(there)]
            present = self.flags(peers, there)
            bodies[u] = ShareDelivery(present=present, ciphertexts=sealed).encode()
        return bodies

    # -- the end --------------------------------------------------------------------------------

    def save(self, path: Path) -> Path:
        """Writes everything that was sent."""
        return write_transcript(path, self.network.transcript)

    def view(
        self,
        path: Path,
        *,
        colluders: Ids | None = None,
        extra_keys: Iterable[bytes] = (),
        keys: KeySchedule | None = None,
    ) -> View:
        """What the file and the colluders' tapes (default: all of them) say."""
        helpers = self.colluders if colluders is None else list(colluders)
        return View(
            self.config,
            read_transcript(path),
            secret_keys=[*(k for v in helpers for k in self.tapes[v].keys), *extra_keys],
            seeds={v: self.tapes[v].seed for v in helpers},
            keys=keys,
        )

    def sent_up(self, kind: MessageType) -> dict[ClientId, bytes]:
        """Bodies of the clients' messages of this type, the last one of each client."""
        found = {}
        for e in self.network.transcript:
            if e.direction is Direction.UP:
                frame = decode_frame(e.frame)
                if frame.type == kind:
                    found[e.sender] = bytes(frame.body)
        return found
