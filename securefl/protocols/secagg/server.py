"""The server's machine: collects, closes phases, opens the sum over whoever sent an input.

Bonawitz et al. 2017, figure 4, server's side; on a sparse graph Bell et al. 2020. The driver
decides when a phase ends (``close_phase()``); a frame after that is discarded and U3 is never
reopened, because an input that came in late may have its pair masks open already. Masked inputs are
added as they arrive, so vector memory does not grow with the cohort. Every reconstructed secret is
checked against what its dealer published: from clients that follow the protocol, and with its own
frames unchanged on their way to them, the machine gives the exact sum over U3 or an error. (A frame
that was changed on the way can make two clients mask towards different peers. The transport must
authenticate the server.) In sessions against an active adversary it relays signatures; it has no
key of its own, because nothing that clients check depends on its word.
It learns the sum and who took part. It does not make the sum private.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from securefl.errors import (
    BelowThreshold,
    InvalidShare,
    InvalidSignature,
    LocalProtocolError,
    WireError,
)
from securefl.modular import RingVector, Words, reduce_in_place, ring_dtype
from securefl.primitives.channel import AgreementKey, DegenerateKey, public_key, sha256
from securefl.primitives.signing import BadSignature, IdentityDirectory
from securefl.protocols.endpoints import ServerEnd
from securefl.protocols.machine import (
    AggregateReady,
    ClientDropped,
    ClientEquivocated,
    Event,
    Outbound,
    Outbox,
    PhaseClosed,
    Reason,
    Refused,
)
from securefl.protocols.secagg.graph import Edges, NeighbourGraph, graph_of, peel
from securefl.protocols.secagg.keys import KeySchedule
from securefl.protocols.secagg.masks import sign
from securefl.protocols.secagg.messages import (
    CIPHERTEXT_BYTES,
    Abort,
    AdvertiseKeys,
    EncryptedShares,
    KeyRoster,
    NeighbourRoster,
    ProvenEntry,
    RosterEntry,
    ShareDelivery,
    SignedUnmaskRequest,
    SurvivorNotice,
    SurvivorSignature,
    UnmaskRequest,
    UnmaskShares,
    message_type,
)
from securefl.protocols.secagg.params import SIGMA, check_config, guaranteed_honest
from securefl.protocols.secagg.recovery import MaskJob, agreement_key_matches, sum_masks
from securefl.protocols.secagg.snapshot import RestartableMachine, read_server, write_server
from securefl.protocols.secagg.transitions import (
    SERVER_PHASES,
    MessageType,
    Phase,
    next_server_phase,
    server_row,
)
from securefl.protocols.secagg.unmasking import Opening, Unmasking
from securefl.protocols.snapshot import StateReader, StateWriter
from securefl.round import (
    SERVER,
    AggregateSum,
    ClientId,
    GraphSource,
    Layout,
    Protocol,
    RoundConfig,
    SurvivorSets,
)
from securefl.wire import (
    Buffer,
    add_packed,
    decode_frame,
    packed_bytes,
)

__all__ = ["SecAggServer"]


class SecAggServer(RestartableMachine):
    """The server's side of one session (sans-IO).

    Args:
        config: the round's configuration; every client must have the same.
        assume_no_corruption: allow A = 0 in the configuration.
        sigma: statistical security demanded of a random graph.
        directory: everybody's public identity keys; needed against an active adversary. The server
            drops frames with wrong signatures, which every client would refuse.
        executor: where masks are expanded at the end; processes pay off, threads do not.

    Raises:
        ConfigurationError: if the configuration is unsafe, or identities are missing.
    """

    def __init__(
        self,
        config: RoundConfig,
        *,
        assume_no_corruption: bool = False,
        sigma: int = SIGMA,
        directory: IdentityDirectory | None = None,
        executor: Executor | None = None,
    ) -> None:
        check_config(config, assume_no_corruption=assume_no_corruption, sigma=sigma)
        self._config = config
        self._end = ServerEnd(config, directory=directory)
        self._keys = KeySchedule(config.protocol)
        self._sigma = sigma
        self._own = config.layout is Layout.ALL
        self._maybe_graph: NeighbourGraph | None = None
        if config.graph_source is GraphSource.SERVER:
            self._maybe_graph = graph_of(config, config.graph_value)
        self._executor = executor
        self._beacon: bytes | None = None
        self._phase = Phase.ADVERTISE_KEYS
        self._accepted: dict[tuple[MessageType, ClientId], bytes] = {}
        self._replied: set[ClientId] = set()
        self._gone: set[ClientId] = set()
        self._U: list[tuple[ClientId, ...]] = []
        self._advertised: dict[ClientId, AdvertiseKeys] = {}
        self._signatures: dict[tuple[MessageType, ClientId], bytes] = {}
        self._public_keys: set[bytes] = set()
        self._probe: AgreementKey | None = AgreementKey(os.urandom(32))
        self._place: dict[ClientId, int] = {}
        self._edges: Edges | None = None
        self._ciphertexts: NDArray[np.uint8] | None = None
        self._survivor_bitmap = b""
        self._total: Words | None = None
        self._unmasking: Unmasking | None = None
        self._result: AggregateSum | None = None

    # -- what a driver may ask ------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """The phase it is in; DONE, ABORTED and EXPORTED are final."""
        return self._phase

    @property
    def config_digest(self) -> bytes:
        """What names the session from its first moment; 32 bytes."""
        return self._end.config_digest

    @property
    def phases(self) -> tuple[str, ...]:
        """Names of the phases of a session under this adversary, in order."""
        adversary = self._config.adversary
        return tuple(str(row.phase) for row in SERVER_PHASES if adversary in row.then)

    @property
    def final(self) -> bool:
        """Whether nothing can change any more."""
        return self._phase in (Phase.DONE, Phase.ABORTED, Phase.EXPORTED)

    @property
    def expected(self) -> tuple[ClientId, ...]:
        """Who may still send in this phase or has done so, ascending."""
        if self.final:
            return ()
        before = self._U[-1] if self._U else self._config.cohort.ids
        return tuple(u for u in before if u not in self._gone or u in self._replied)

    @property
    def ready(self) -> bool:
        """Whether every client that can still reply in this phase has done so."""
        return not self.final and self._replied.issuperset(self.expected)

    @property
    def sufficient(self) -> bool:
        """Whether closing the phase now would meet its threshold."""
        if self.final or self._maybe_graph is None:
            return False
        return self._shortage(self._members()) is None

    @property
    def survivors(self) -> SurvivorSets:
        """U1 ⊇ U2 ⊇ U3 ⊇ U4 ⊇ U5, as far as their phases are closed (semi-honest: U4 = U3)."""
        sets = [*self._U, None, None, None, None, None]
        last = 4 if self._end.active else 3
        return SurvivorSets(U1=sets[0], U2=sets[1], U3=sets[2], U4=sets[last - 1], U5=sets[last])

    @property
    def result(self) -> AggregateSum | None:
        """The opened sum, once there is one."""
        return self._result

    def set_beacon(self, value: bytes) -> None:
        """Gives the beacon's output that shapes the graph: once, before the first phase closes.

        Args:
            value: 32 bytes, the same that every client is given.

        Raises:
            LocalProtocolError: if the configuration takes no beacon, for a second call, or a value
                that is not 32 bytes.
        """
        self._usable()
        if self._config.graph_source is not GraphSource.BEACON or self._maybe_graph is not None:
            raise LocalProtocolError("this session takes no beacon, or has one already")
        if not isinstance(value, bytes) or len(value) != 32:
            raise LocalProtocolError("a beacon's output is 32 bytes")
        self._beacon = value
        self._maybe_graph = graph_of(self._config, value)

    @property
    def _graph(self) -> NeighbourGraph:
        if self._maybe_graph is None:
            raise LocalProtocolError("the graph depends on a beacon: call set_beacon first")
        return self._maybe_graph

    # -- frames in --------------------------------------------------------------------------------

    def receive(self, frame: bytes, sender: ClientId | None = None) -> list[Outbound | Event]:
        """Takes a frame of a client.

        Args:
            frame: header and body.
            sender: whom the transport authenticated; None if it does not.

        Returns:
            Events. A byte-identical repeat returns nothing; a different message of a type already
            accepted leaves the first in force (``ClientEquivocated``); bad content drops its
            sender (``ClientDropped``); a late frame is discarded (``ClientDropped``, LATE).

        Raises:
            WireError: bytes that are no frame of this library; nothing changes.
            UnexpectedMessage: a frame for another phase, round or session, or of a client that is
                not expected; nothing changes.
            InvalidSignature: a frame with a wrong signature where dropping its alleged sender is
                not due (it has replied already, or the phase collects something else); nothing
                changes.
            LocalProtocolError: the state went into a snapshot.
        """
        self._usable()
        parsed = decode_frame(frame)
        kind = message_type(parsed.type)
        before = kind in (MessageType.ADVERTISE_KEYS, MessageType.ABORT)
        u = self._end.origin(parsed, sender=sender, before_session=before, what=kind.name)
        digest = sha256(frame)
        first = self._accepted.get((kind, u))
        if first is not None and hmac.compare_digest(first, digest):
            return []
        if self._phase is Phase.ABORTED:
            raise self._end.unexpected(u, f"{kind.name} after the session was aborted")
        forged = self._end.forged(parsed, u)
        if forged is not None and not self._awaits(kind, u):
            raise InvalidSignature(f"{kind.name}: {forged}", culprits=[u])
        if first is not None and kind is not MessageType.ABORT:
            return [ClientEquivocated(client=u, phase=str(self._phase))]
        if kind is MessageType.ABORT:
            return self._on_abort(u, parsed.body, digest)
        row = server_row(self._phase)
        if self._closed(kind):
            return [ClientDropped(client=u, phase=str(self._phase), reason=Reason.LATE)]
        if row is None or kind is not row.accepts:
            raise self._end.unexpected(u, f"{kind.name} in phase {self._phase}")
        if u in self._gone or (self._U and u not in self._U[-1]):
            raise self._end.unexpected(u, f"{kind.name} of a client that was dropped before")
        try:
            if forged is not None:
                raise Refused(Reason.INVALID_SIGNATURE)
            self._handle(kind, u, parsed.body)
        except (WireError, Refused) as error:
            self._gone.add(u)
            reason = error.reason if isinstance(error, Refused) else Reason.MALFORMED
            return [ClientDropped(client=u, phase=str(self._phase), reason=reason)]
        self._accepted[kind, u] = digest
        self._replied.add(u)
        if kind is MessageType.ADVERTISE_KEYS:
            self._signatures[kind, u] = parsed.signature
        return []

    def _awaits(self, kind: MessageType, u: ClientId) -> bool:
        """Whether this phase still waits for such a message of u."""
        row = server_row(self._phase)
        waiting = row is not None and row.accepts is kind
        return waiting and u in self.expected and u not in self._replied

    def _closed(self, kind: MessageType) -> bool:
        """Whether the phase that collects this type of message is over."""
        collects = [r.accepts for r in SERVER_PHASES if self._config.adversary in r.then]
        return kind in collects[: len(self._U)]

    def _handle(self, kind: MessageType, u: ClientId, body: Buffer) -> None:
        handlers: dict[MessageType, Callable[[ClientId, Buffer], None]] = {
            MessageType.ADVERTISE_KEYS: self._on_advertise_keys,
            MessageType.ENCRYPTED_SHARES: self._on_encrypted_shares,
            MessageType.MASKED_INPUT: self._on_masked_input,
            MessageType.SURVIVOR_SIGNATURE: self._on_survivor_signature,
            MessageType.UNMASK_SHARES: self._on_unmask_shares,
        }
        handlers[kind](u, body)

    def _on_advertise_keys(self, u: ClientId, body: Buffer) -> None:
        message = AdvertiseKeys.decode(body)
        new = {message.c_pk, message.s_pk}
        if len(new) < 2 or new & self._public_keys:
            raise Refused(Reason.DUPLICATE_KEY)
        assert self._probe is not None  # noqa: S101  # dropped when this phase closes
        try:
            # Every other client would refuse the whole roster for one degenerate key in it.
            for key in new:
                self._probe.agree(public_key(key))
        except DegenerateKey:
            raise Refused(Reason.MALFORMED) from None
        self._advertised[u] = message
        self._public_keys |= new

    def _on_encrypted_shares(self, u: ClientId, body: Buffer) -> None:
        assert self._edges is not None and self._ciphertexts is not None  # noqa: S101  # set when U1 was closed
        edges = self._edges.of_dealer(self._place[u])
        peers = edges.stop - edges.start
        self._ciphertexts[edges] = EncryptedShares.decode(body, peers=peers)

    def _on_masked_input(self, u: ClientId, body: Buffer) -> None:
        expected = packed_bytes(self._config.m, self._config.b)
        if len(body) != expected:  # before memory for the sum is taken
            raise WireError(f"expected {expected} bytes of masked input, found {len(body)}")
        if self._total is None:
            self._total = RingVector.zeros(self._config.m, self._config.modulus).values
        add_packed(self._total, body, self._config.b)

    def _on_survivor_signature(self, u: ClientId, body: Buffer) -> None:
        assert self._end.directory is not None and self._end.session is not None  # noqa: S101  # active
        signature = SurvivorSignature.decode(body).signature
        statement = self._keys.survivor_statement(self._end.session, self._survivor_bitmap)
        try:
            self._end.directory.verify(u, signature, statement)
        except BadSignature:
            raise Refused(Reason.INVALID_SIGNATURE) from None
        self._signatures[MessageType.SURVIVOR_SIGNATURE, u] = signature

    def _on_unmask_shares(self, u: ClientId, body: Buffer) -> None:
        assert self._unmasking is not None  # noqa: S101  # made when U3 was closed
        Q = self._graph.peers(u, self._U[1])
        alive = np.array([v in self._unmasking.U3 for v in Q], dtype=np.bool_)
        message = UnmaskShares.decode(body, alive=alive, own=self._own)
        self._unmasking.put(u, message, alive)

    def _on_abort(self, u: ClientId, body: Buffer, digest: bytes) -> list[Outbound | Event]:
        """A client leaves. What it sent so far stays: an input that was added is in the sum."""
        try:
            Abort.decode(body)
            reason = Reason.CLIENT_ABORT
        except WireError:
            reason = Reason.MALFORMED
        if self.final or u in self._gone:
            return []
        self._accepted[MessageType.ABORT, u] = digest
        self._gone.add(u)
        return [ClientDropped(client=u, phase=str(self._phase), reason=reason)]

    # -- closing ----------------------------------------------------------------------------------

    def close_phase(self) -> Sequence[Outbound | Event]:
        """Ends the phase with whoever has replied.

        Returns:
            Frames for the next phase, and events; after UNMASKING one ``ShareMismatch`` per dealer
            whose shares contradicted each other, and at last ``AggregateReady``. Each frame is
            encoded when it is read (:class:`securefl.protocols.machine.Outbox`).

        Raises:
            LocalProtocolError: in DONE, ABORTED and EXPORTED, or without the beacon that the graph
                needs.
            BelowThreshold: too few are left; phase ABORTED, Abort frames in ``.outbound``.
            InvalidShare: reconstructed secrets do not match what their dealers published, and too
                many shares are wrong to correct them; phase ABORTED, no sum.
        """
        if self.final:
            raise LocalProtocolError(f"close_phase() was called in phase {self._phase}")
        phase = self._phase
        members = self._members()
        shortage = self._shortage(members)
        if shortage is not None:
            shortage.outbound = tuple(self._abort(Reason.BELOW_THRESHOLD))
            raise shortage
        events: list[Outbound | Event] = [
            ClientDropped(client=u, phase=str(phase), reason=Reason.NO_REPLY)
            for u in self.expected
            if u not in self._replied
        ]
        events += [
            ClientDropped(client=u, phase=str(phase), reason=Reason.TOO_FEW_HOLDERS)
            for u in sorted(self._replied - members)
        ]
        closed = tuple(sorted(members))
        close = {
            Phase.ADVERTISE_KEYS: self._close_advertise_keys,
            Phase.SHARE_KEYS: self._close_share_keys,
            Phase.MASKED_INPUT_COLLECTION: self._close_masked_input,
            Phase.CONSISTENCY_CHECK: self._close_consistency_check,
            Phase.UNMASKING: self._close_unmasking,
        }
        try:
            out = close[phase](closed)
        except InvalidShare as error:
            error.__context__ = None
            raise error.with_traceback(None) from None  # the inner frames hold secrets
        self._U.append(closed)
        self._replied = set()
        self._phase = next_server_phase(phase, self._config.adversary)
        return out.after([*events, PhaseClosed(phase=str(phase), members=closed)])

    def _members(self) -> set[ClientId]:
        """Who would be in the set if the phase closed now. Only unannounced sets are peeled."""
        if self._phase in (Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS):
            return peel(self._replied, self._graph, self._config.t)
        return set(self._replied)

    def _shortage(self, members: set[ClientId]) -> BelowThreshold | None:
        """What is missing to close this phase with these members; None if nothing is."""
        phase = str(self._phase)
        config = self._config
        if self._phase is Phase.UNMASKING:
            return self._missing_shares(members)
        if self._phase is not Phase.CONSISTENCY_CHECK and len(members) < config.n_min:
            replied = len(self._replied)
            had = replied if replied < config.n_min else len(members)
            return BelowThreshold(needed=config.n_min, had=had, phase=phase)
        if self._phase is Phase.MASKED_INPUT_COLLECTION:
            return self._missing_holders(members, members)
        if self._phase is Phase.CONSISTENCY_CHECK:
            return self._missing_holders(set(self._U[2]), members)
        return None

    def _missing_holders(self, U3: set[ClientId], left: set[ClientId]) -> BelowThreshold | None:
        """Whether some needed secret has fewer than t holders left."""
        t, count = self._config.t, self._graph.holder_count
        dropped = [d for d in self._U[1] if d not in U3 and self._graph.peers(d, U3)]
        fewest = min(count(u, left) for u in [*U3, *dropped])
        return None if fewest >= t else self._too_few(len(left), fewest, "holders")

    def _missing_shares(self, members: set[ClientId]) -> BelowThreshold | None:
        assert self._unmasking is not None  # noqa: S101  # made when U3 was closed
        fewest = self._unmasking.fewest()
        if fewest >= self._config.t:
            return None
        return self._too_few(len(members), fewest, "readable shares")

    def _too_few(self, members: int, fewest: int, what: str) -> BelowThreshold:
        t = self._config.t
        phase = str(self._phase)
        quorum = t + (self._config.layout is Layout.OTHERS)
        if members < quorum:
            return BelowThreshold(needed=quorum, had=members, phase=phase)
        return BelowThreshold(
            f"{members} clients are left in phase {phase}, but a needed secret has only {fewest} "
            f"{what}, {t} are needed: the round is lost and no sum was opened; run a new round",
            needed=t,
            had=fewest,
            phase=phase,
        )

    def _close_advertise_keys(self, U1: tuple[ClientId, ...]) -> Outbox:
        entries = [self._entry(u) for u in U1]
        raw = [entry.encode() for entry in entries]
        tree = self._keys.roster_tree(raw)
        end = self._end
        end.session = self._keys.session_id(end.config_digest, len(U1), tree.root)
        self._probe = None
        self._place = {u: i for i, u in enumerate(U1)}
        self._edges = Edges(self._graph, U1, U1)
        self._ciphertexts = np.zeros((len(self._edges), CIPHERTEXT_BYTES), dtype=np.uint8)
        if self._config.protocol is Protocol.SECAGG:
            body = KeyRoster(entries=tuple(entries)).encode()
            frame = end.frame(MessageType.KEY_ROSTER, body, session=end.config_digest)
            return Outbox((), U1, lambda _: frame)
        proven = [ProvenEntry(entry, i, tree.path(i)) for i, entry in enumerate(entries)]
        edges, place = self._edges, self._place

        def body_of(u: ClientId) -> bytes:
            neighbours = edges.holder[edges.of_dealer(place[u])].tolist()
            shown = tuple(proven[j] for j in sorted([*neighbours, place[u]]))
            return NeighbourRoster(size=len(U1), root=tree.root, entries=shown).encode()

        return self._each(MessageType.KEY_ROSTER, end.config_digest, U1, body_of)

    def _entry(self, u: ClientId) -> RosterEntry:
        published = self._advertised[u]
        entry = RosterEntry(u, published.c_pk, published.s_pk)
        if not self._end.active:
            return entry
        signature = self._signatures[MessageType.ADVERTISE_KEYS, u]
        return entry._replace(commitment=published.commitment, signature=signature)

    def _close_share_keys(self, U2: tuple[ClientId, ...]) -> Outbox:
        assert self._ciphertexts is not None and self._edges is not None  # noqa: S101  # set when U1 was closed
        assert self._end.session is not None  # noqa: S101  # set when U1 was closed
        there = set(U2)
        present = np.array([u in there for u in self._U[0]], dtype=np.bool_)
        ciphertexts, edges, place = self._ciphertexts, self._edges, self._place

        def body_of(u: ClientId) -> bytes:
            # Neighbours are symmetric: the dealers that u holds shares of are exactly P.
            rows = edges.of_holder(place[u])
            over_P = present[edges.dealer[rows]]
            message = ShareDelivery(
                present=over_P, ciphertexts=[ciphertexts[rows[over_P]].tobytes()]
            )
            return message.encode()

        self._ciphertexts = None
        return self._each(MessageType.SHARE_DELIVERY, self._end.session, U2, body_of)

    def _close_masked_input(self, U3: tuple[ClientId, ...]) -> Outbox:
        assert self._end.session is not None and self._edges is not None  # noqa: S101  # set when U1 was closed
        there = set(U3)
        self._unmasking = self._tables(U3)
        edges, place = self._edges, self._place
        self._edges = None
        if self._end.active:
            notice = SurvivorNotice(
                alive=np.array([u in there for u in self._config.cohort], dtype=np.bool_)
            )
            self._survivor_bitmap = notice.encode()
            kind, session = MessageType.SURVIVOR_NOTICE, self._end.session
            frame = self._end.frame(kind, self._survivor_bitmap, session=session)
            return Outbox((), U3, lambda _: frame)
        alive = np.array([u in there for u in self._U[0]], dtype=np.bool_)

        def body_of(u: ClientId) -> bytes:
            rows = edges.of_holder(place[u])
            return UnmaskRequest(size=len(U3), alive=alive[edges.dealer[rows]]).encode()

        return self._each(MessageType.UNMASK_REQUEST, self._end.session, U3, body_of)

    def _tables(self, U3: tuple[ClientId, ...]) -> Unmasking:
        """Room for all shares that the survivors will be asked for."""
        return Unmasking(self._graph, self._U[1], U3, own=self._own)

    def _close_consistency_check(self, U4: tuple[ClientId, ...]) -> Outbox:
        assert self._end.session is not None  # noqa: S101  # set when U1 was closed
        signed = set(U4)
        signatures, graph = self._signatures, self._graph

        def body_of(u: ClientId) -> bytes:
            # At least t signatures for everybody: t holders of b_u were just found among U4.
            message = SignedUnmaskRequest(
                signatures=tuple(
                    (v, signatures[MessageType.SURVIVOR_SIGNATURE, v])
                    for v in graph.peers(u, signed)
                )
            )
            return message.encode()

        return self._each(MessageType.UNMASK_REQUEST, self._end.session, U4, body_of)

    def _close_unmasking(self, U5: tuple[ClientId, ...]) -> Outbox:
        """Section by section: reconstruct, verify, expand, subtract."""
        assert self._total is not None  # noqa: S101  # U3 is not empty
        opened = self._recover()
        masks = sum_masks(
            self._mask_jobs(opened.seeds, opened.mask_keys),
            self._config.m,
            ring_dtype(self._config.modulus),
            self._executor,
        )
        np.add(self._total, masks, out=self._total)
        reduce_in_place(self._total, self._config.modulus)
        U3 = self._U[2]
        self._result = AggregateSum(
            vector=RingVector(self._total, self._config.modulus),
            survivors=U3,
            min_honest=guaranteed_honest(self._config, len(U3), sigma=self._sigma),
            mismatched_pairs=opened.pairs,
            verified=True,
            transcript_digest=self._end.transcript_digest(
                {key: d for key, d in self._accepted.items() if key[0] is not MessageType.ABORT}
            ),
        )
        self._wipe()
        return Outbox([*opened.mismatches, AggregateReady(aggregate=self._result)])

    def _recover(self) -> Opening:
        """b_u of every survivor and s_sk of every dropout, each checked; shares that did not fit.

        Raises:
            InvalidShare: with all (dealer, holder) pairs of secrets that could not be had, and all
                that were found wrong elsewhere. Who of dealers and holders lied cannot be told, so
                nobody is named as culprit.
        """
        assert self._unmasking is not None  # noqa: S101  # made when U3 was closed
        opened = self._unmasking.open(self._config, self._seed_matches, self._mask_key_matches)
        if opened.failed:
            outbound = self._abort(Reason.INVALID_SHARE)
            dealers = sorted({dealer for dealer, _ in opened.failed})
            raise InvalidShare(
                f"the secrets of clients {dealers[:10]} do not match what they published, and too "
                "many shares are wrong to correct them: the dealers or their share holders gave "
                "wrong values; no sum was opened, run a new round",
                culprits=(),
                pairs=sorted({*opened.failed, *opened.pairs}),
                outbound=outbound,
            )
        return opened

    def _seed_matches(self, u: ClientId, b_u: bytes) -> bool:
        published = self._advertised[u]
        commitment = self._keys.seed_commitment(self._end.config_digest, u, published.c_pk, b_u)
        return hmac.compare_digest(commitment, published.commitment)

    def _mask_key_matches(self, u: ClientId, s_sk: bytes) -> bool:
        return agreement_key_matches(s_sk, self._advertised[u].s_pk)

    def _mask_jobs(
        self, seeds: dict[ClientId, bytes], mask_keys: dict[ClientId, bytes]
    ) -> Iterator[MaskJob]:
        """What separates Σ y from Σ x: all self masks, and pair masks without a partner.

        One at a time: all D(n - D) together would outweigh the vectors.
        """
        assert self._end.session is not None  # noqa: S101  # set when U1 was closed
        session, labels = self._end.session, self._keys
        for u, b_u in seeds.items():
            yield MaskJob(-1, b_u, b"", session, labels.self_mask_info(u))
        for d, s_sk in mask_keys.items():
            for u in self._graph.peers(d, seeds.keys()):
                s_pk, info = self._advertised[u].s_pk, labels.pair_mask_info(u, d)
                yield MaskJob(-sign(u, d), s_sk, s_pk, session, info)

    @property
    def _fresh(self) -> bool:
        untouched = not self._accepted and not self._gone and not self._sequence
        return self._phase is Phase.ADVERTISE_KEYS and untouched

    @property
    def _role(self) -> ClientId:
        return SERVER

    def _write_state(self, out: StateWriter) -> None:
        write_server(self, out)

    def _read_state(self, state: StateReader) -> list[Outbound]:
        return read_server(self, state)

    # -- ends -------------------------------------------------------------------------------------

    def _each(
        self,
        kind: MessageType,
        session: bytes,
        clients: tuple[ClientId, ...],
        body_of: Callable[[ClientId], bytes],
    ) -> Outbox:
        """A frame for each client, with a body of its own."""
        return Outbox((), clients, lambda u: self._end.frame(kind, body_of(u), session=session))

    def _abort(self, reason: Reason) -> list[Outbound]:
        """Ends the session and tells those who still wait for something."""
        waiting = [u for u in self.expected if u not in self._gone]
        if self._phase is Phase.UNMASKING:
            waiting = [u for u in waiting if u not in self._replied]
        self._phase = Phase.ABORTED
        self._wipe()
        body = Abort(reason=reason).encode()
        return self._end.to_all(waiting, MessageType.ABORT, body, session=self._end.config_digest)

    def _wipe(self) -> None:
        self._ciphertexts = None
        self._edges = None
        self._total = None
        self._unmasking = None
        self._probe = None

    def __repr__(self) -> str:
        return f"SecAggServer(n={self._config.n}, phase={self._phase})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a server's machine cannot be pickled or copied: a session runs once")

    def __getstate__(self) -> NoReturn:
        self.__reduce__()
