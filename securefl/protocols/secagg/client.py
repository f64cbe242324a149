"""The client's machine: one session, one input, one answer.

Bonawitz et al. 2017, figure 4, users' side; on a sparse graph Bell et al. 2020. **Use once:** a
second answer to a second unmask request could open this client's peers, and a second input under
the same masks would give away the difference of the two. Two adversaries, chosen by the
configuration. *Semi-honest*: a server that follows the protocol and sees everything it receives,
with up to c < t colluding holders of any secret. *Active*: a server that may also tell each client
something else; then keys are signed by identities from a directory that the server cannot change,
a client answers for the one survivor list that it signed, and only when t holders signed the same
list. Either learns the sum over U3 and who took part.
The machine knows no floats and no model: it masks integers. The sum it helps to open is not
differentially private by itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from securefl.errors import (
    BelowThreshold,
    DecryptionFailed,
    Equivocation,
    InvalidSignature,
    LocalProtocolError,
    PeerProtocolError,
    RosterMismatch,
    WireError,
)
from securefl.modular import RingVector, Words
from securefl.primitives.channel import AgreementKey, DegenerateKey, Unopenable, public_key, sha256
from securefl.primitives.sharing import PRIME, share
from securefl.primitives.signing import IdentityDirectory, IdentityKey
from securefl.protocols.endpoints import ClientEnd
from securefl.protocols.machine import (
    Aborted,
    Event,
    MalformedMessage,
    Outbound,
    Reason,
    ShareUnreadable,
    abort_reason,
)
from securefl.protocols.policy import ClientPolicy, check_identities, check_membership
from securefl.protocols.secagg.graph import NeighbourGraph, graph_of
from securefl.protocols.secagg.keys import SEED_BYTES, KeySchedule, audit_root
from securefl.protocols.secagg.masks import mask_in_place
from securefl.protocols.secagg.messages import (
    B_WORDS,
    SHARES_BYTES,
    Abort,
    AdvertiseKeys,
    EncryptedShares,
    KeyRoster,
    NeighbourRoster,
    RosterEntry,
    ShareDelivery,
    SignedUnmaskRequest,
    SurvivorNotice,
    SurvivorSignature,
    UnmaskRequest,
    UnmaskShares,
    message_type,
)
from securefl.protocols.secagg.params import check_policy
from securefl.protocols.secagg.snapshot import RestartableMachine, read_client, write_client
from securefl.protocols.secagg.transitions import (
    MessageType,
    Phase,
    client_row,
    next_client_phase,
)
from securefl.protocols.snapshot import StateReader, StateWriter
from securefl.round import (
    SERVER,
    Adversary,
    ClientId,
    GraphSource,
    Layout,
    Protocol,
    RoundConfig,
)
from securefl.wire import (
    Buffer,
    decode_frame,
    pack_bitmap,
    pack_words,
)

__all__ = ["SecAggClient"]

_Failure = PeerProtocolError | BelowThreshold
_F = TypeVar("_F", bound=_Failure)


@dataclass(slots=True, kw_only=True, repr=False)
class _Secrets:
    """Everything that must be gone when the session is over. Fields empty as soon as possible."""

    c: AgreementKey | None = None
    s: AgreementKey | None = None
    s_sk: bytes | None = None
    b: bytes | None = None
    pair_keys: dict[ClientId, bytes] = field(default_factory=dict)
    channel_keys: dict[ClientId, bytes] = field(default_factory=dict)
    words: Words | None = None
    own_b_share: NDArray[np.uint32] | None = None
    b_shares: NDArray[np.uint32] | None = None
    s_shares: NDArray[np.uint32] | None = None

    def empty(self) -> None:
        """Forgets everything."""
        self.__init__()  # type: ignore[misc]  # all fields have an empty default


class SecAggClient(RestartableMachine):
    """One client's side of one session (sans-IO).

    Args:
        client_id: who this is; a member of the cohort.
        config: the round's configuration, as received.
        context_digest: 32 bytes, computed by this client from the model, codec and plan it
            received itself. It must equal the configuration's.
        policy: what this client demands of any configuration.
        identity: this client's long-term key; needed against an active server.
        directory: everybody's public identity keys, obtained without the server; needed then too.
        random_bytes: source of secrets. The default asks the operating system. Anything else is
            for tests and vectors. Read in this order: c_sk 32, s_sk 32, b_u 16 by ``start()``;
            coefficients of b's shares, then of s's, on the roster.

    Raises:
        ConfigurationError: if the configuration is unsafe, weaker than the policy, of another
            context, or without this client; against an active server also if identity or
            directory is missing, or a cohort member has no identity in it. Nothing has been
            emitted then.
    """

    def __init__(
        self,
        client_id: ClientId,
        config: RoundConfig,
        *,
        context_digest: bytes,
        policy: ClientPolicy | None = None,
        identity: IdentityKey | None = None,
        directory: IdentityDirectory | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        check_policy(config, policy if policy is not None else ClientPolicy())
        check_membership(client_id, config, context_digest)
        self._active = config.adversary is Adversary.ACTIVE
        if self._active:
            check_identities(client_id, config, identity, directory)
        self._u = client_id
        self._config = config
        self._end = ClientEnd(client_id, config, identity=identity, directory=directory)
        self._keys = KeySchedule(config.protocol)
        self._graph: NeighbourGraph | None = None
        if config.graph_source is GraphSource.SERVER:
            self._graph = graph_of(config, config.graph_value)
        self._own_share = config.layout is Layout.ALL
        self._random_bytes = random_bytes
        self._beacon: bytes | None = None
        self._phase = Phase.ADVERTISE_KEYS
        self._accepted: dict[MessageType, bytes] = {}
        self._own_entry: RosterEntry | None = None
        self._P: tuple[ClientId, ...] = ()
        self._in_U2: NDArray[np.bool_] | None = None
        self._in_U3: NDArray[np.bool_] | None = None
        self._survivors: bytes | None = None
        self._readable: NDArray[np.bool_] | None = None
        self._input_given = False
        self._emitted_input = False
        self._secrets: _Secrets | None = _Secrets()

    # -- what a driver may ask ------------------------------------------------------------------

    @property
    def client_id(self) -> ClientId:
        """Whose side this is."""
        return self._u

    @property
    def phase(self) -> Phase:
        """The phase it is in; DONE, ABORTED and EXPORTED are final."""
        return self._phase

    @property
    def config_digest(self) -> bytes:
        """What names the session from its first moment; 32 bytes."""
        return self._end.config_digest

    @property
    def wants_input(self) -> bool:
        """Whether the shares are delivered and only :meth:`set_input` is missing."""
        delivered = MessageType.SHARE_DELIVERY in self._accepted
        waiting = self._phase is Phase.MASKED_INPUT_COLLECTION
        return waiting and delivered and not self._input_given

    @property
    def masked_input_emitted(self) -> bool:
        """Whether the masked input was handed out for sending (stays True afterwards)."""
        return self._emitted_input

    # -- calls ------------------------------------------------------------------------------------

    def set_beacon(self, value: bytes) -> None:
        """Gives the beacon's output that shapes the graph: once, before the key roster.

        Args:
            value: 32 bytes that nobody could predict when the configuration was made, the same for
                all parties.

        Raises:
            LocalProtocolError: if the configuration takes no beacon, for a second or a late call,
                or a value that is not 32 bytes.
        """
        if self._config.graph_source is not GraphSource.BEACON or self._graph is not None:
            raise LocalProtocolError("this session takes no beacon, or has one already")
        if self._phase not in (Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS):
            raise LocalProtocolError(f"no beacon is taken in phase {self._phase}")
        if not isinstance(value, bytes) or len(value) != 32:
            raise LocalProtocolError("a beacon's output is 32 bytes")
        self._beacon = value
        self._graph = graph_of(self._config, value)

    def start(self) -> list[Outbound | Event]:
        """Makes fresh keys and advertises them.

        Raises:
            LocalProtocolError: if called twice or after an abort.
        """
        if self._phase is not Phase.ADVERTISE_KEYS or self._secrets is None:
            raise LocalProtocolError(f"start() was called in phase {self._phase}; it opens it once")
        secrets = self._secrets
        secrets.c = AgreementKey(self._random_bytes(32))
        secrets.s_sk = self._random_bytes(32)
        secrets.s = AgreementKey(secrets.s_sk)
        secrets.b = self._random_bytes(SEED_BYTES)
        commitment = self._keys.seed_commitment(
            self._end.config_digest, self._u, secrets.c.public, secrets.b
        )
        message = AdvertiseKeys(c_pk=secrets.c.public, s_pk=secrets.s.public, commitment=commitment)
        out = self._emit(message.encode(), session=self._end.config_digest)
        self._own_entry = RosterEntry(self._u, secrets.c.public, secrets.s.public)
        if self._active:
            signature = decode_frame(out.frame).signature
            self._own_entry = self._own_entry._replace(commitment=commitment, signature=signature)
        return [out]

    def set_input(self, vector: RingVector) -> list[Outbound | Event]:
        """Gives the input: once, at any time until it is needed.

        Args:
            vector: m entries modulo 2^b. It is copied.

        Returns:
            The MaskedInput frame if the shares were delivered already, else nothing.

        Raises:
            LocalProtocolError: for a second input, a wrong length or modulus, or a phase in which
                no input is taken. Nothing changes then.
        """
        if self._input_given:
            raise LocalProtocolError(
                "the input was given already; masking two inputs would give away their difference"
            )
        if self._secrets is None or self._phase in (Phase.CONSISTENCY_CHECK, Phase.UNMASKING):
            raise LocalProtocolError(f"no input is taken in phase {self._phase}")
        if vector.modulus != self._config.modulus or len(vector) != self._config.m:
            raise LocalProtocolError(
                f"expected {self._config.m} entries modulo {self._config.modulus}, "
                f"found {len(vector)} modulo {vector.modulus}"
            )
        self._secrets.words = vector.values.copy()
        self._input_given = True
        return self._mask_if_complete()

    def abort(self) -> list[Outbound | Event]:
        """Gives up and forgets all secrets. Does nothing in DONE and ABORTED."""
        self._usable()
        if self._secrets is None:
            return []
        return [
            *self._give_up(Reason.CLIENT_ABORT),
            Aborted(reason=Reason.CLIENT_ABORT, by=self._u),
        ]

    def receive(self, frame: bytes, sender: ClientId | None = None) -> list[Outbound | Event]:
        """Takes a frame of the server.

        Args:
            frame: header and body.
            sender: whom the transport authenticated; None if it does not.

        Returns:
            What to send and to know. A byte-identical repeat of an accepted frame returns nothing.

        Raises:
            WireError: bytes that are no frame; nothing changes.
            UnexpectedMessage: a frame for another phase, sender, round or session; nothing changes.
            LocalProtocolError: the roster came before :meth:`set_beacon`, or the state went into a
                snapshot; nothing changes.
            MalformedMessage, RosterMismatch, DecryptionFailed, Equivocation, InvalidSignature,
                BelowThreshold: the session is over for this client: secrets wiped, phase ABORTED,
                the Abort frame to send in ``.outbound``.
        """
        self._usable()
        parsed = decode_frame(frame)
        kind = message_type(parsed.type)
        before = kind in (MessageType.KEY_ROSTER, MessageType.ABORT)
        self._end.check_origin(parsed, sender=sender, before_session=before, what=kind.name)
        digest = sha256(frame)
        if self._accepted.get(kind) == digest:
            return []
        row = client_row(self._phase)
        over = self._secrets is None
        if over and (kind is MessageType.ABORT or kind not in self._accepted):
            raise self._end.unexpected(f"{kind.name} after the session ended ({self._phase})")
        if kind is MessageType.ABORT:
            return self._on_abort(parsed.body, digest)
        if kind in self._accepted:
            # Two different messages of one type: the server tells two stories.
            raise self._fail(
                Equivocation(f"a second, different {kind.name} arrived", culprits=[SERVER])
            )
        if row is None or row.accepts is not kind:
            raise self._end.unexpected(f"{kind.name} in phase {self._phase}")
        if self._graph is None:
            raise LocalProtocolError("the roster came before the beacon: call set_beacon first")
        try:
            out = self._handle(kind, parsed.body)
        except WireError as error:
            malformed = MalformedMessage(f"{kind.name}: {error}", culprits=[SERVER])
            raise self._fail(malformed) from error.with_traceback(None)
        except (PeerProtocolError, BelowThreshold) as error:
            raise self._fail(error) from None
        self._accepted[kind] = digest
        return [*out, *self._mask_if_complete()]

    @property
    def _fresh(self) -> bool:
        return self._phase is Phase.ADVERTISE_KEYS and not self._input_given and not self._sequence

    @property
    def _role(self) -> ClientId:
        return self._u

    def _write_state(self, out: StateWriter) -> None:
        write_client(self, out)

    def _read_state(self, state: StateReader) -> list[Outbound]:
        return read_client(self, state)

    # -- frames -----------------------------------------------------------------------------------

    def _handle(self, kind: MessageType, body: Buffer) -> list[Outbound | Event]:
        handlers = {
            MessageType.KEY_ROSTER: self._on_key_roster,
            MessageType.SHARE_DELIVERY: self._on_share_delivery,
            MessageType.SURVIVOR_NOTICE: self._on_survivor_notice,
            MessageType.UNMASK_REQUEST: (
                self._on_signed_request if self._active else self._on_unmask_request
            ),
        }
        return handlers[kind](body)

    def _emit(self, body: bytes, *, session: bytes) -> Outbound:
        """The frame of this phase's row; moves on to the next phase."""
        row = client_row(self._phase)
        assert row is not None  # noqa: S101  # DONE and ABORTED emit nothing: callers checked
        self._phase = next_client_phase(self._phase, self._config.adversary)
        return self._end.outbound(row.emits, body, session=session)[0]

    # -- phases -----------------------------------------------------------------------------------

    def _on_key_roster(self, body: Buffer) -> list[Outbound | Event]:
        """Checks U1, agrees with every peer, and deals the shares of b_u and s_sk."""
        secrets = self._live()
        read = self._read_roster if self._complete else self._read_neighbours
        size, root, entries = read(body)
        peers = [entry for entry in entries if entry.client != self._u]
        self._enough_inputs(size)
        self._enough_holders(len(peers))
        session = self._keys.session_id(self._end.config_digest, size, root)
        agreed = {entry.client: self._agree(entry) for entry in peers}
        P = tuple(entry.client for entry in peers)
        rows, own_b_share = self._deal(P)
        ciphertexts = tuple(
            self._keys.seal_shares(agreed[v][0], session, self._u, v, row.tobytes())
            for v, row in zip(P, rows, strict=True)
        )
        secrets.own_b_share = own_b_share
        for v, (channel, masks) in agreed.items():
            secrets.channel_keys[v] = self._keys.channel_key(channel, session, v, self._u)
            secrets.pair_keys[v] = self._keys.pair_mask_key(masks, session, self._u, v)
        secrets.c = secrets.s = secrets.s_sk = None  # all that they were for is derived
        self._end.session, self._P = session, P
        return [self._emit(EncryptedShares(ciphertexts=ciphertexts).encode(), session=session)]

    def _read_roster(self, body: Buffer) -> tuple[int, bytes, tuple[RosterEntry, ...]]:
        """Size, root and entries of a roster that shows everybody."""
        entries = KeyRoster.decode(body, most=self._config.n, signed=self._active).entries
        self._check_entries(entries)
        root = self._keys.roster_tree([e.encode() for e in entries]).root
        return len(entries), root, entries

    def _read_neighbours(self, body: Buffer) -> tuple[int, bytes, tuple[RosterEntry, ...]]:
        """Size, root and entries of a roster that shows the neighbours, with proofs."""
        most = self._config.k + 1
        roster = NeighbourRoster.decode(body, most=most, signed=self._active)
        entries = tuple(proven.entry for proven in roster.entries)
        if roster.size > self._config.n:
            raise RosterMismatch(
                f"a roster of {roster.size} in a cohort of {self._config.n}", culprits=[SERVER]
            )
        places = [-1, *(proven.place for proven in roster.entries), roster.size]
        if any(a >= b for a, b in pairwise(places)):
            raise RosterMismatch("the roster's places are not ascending", culprits=[SERVER])
        for proven in roster.entries:
            leaf = self._keys.roster_leaf(proven.entry.encode())
            if audit_root(leaf, proven.place, roster.size, proven.path) != roster.root:
                raise RosterMismatch(
                    f"client {proven.entry.client} is not in the roster with this root",
                    culprits=[SERVER],
                )
        self._check_entries(entries)
        return roster.size, roster.root, entries

    def _check_entries(self, entries: tuple[RosterEntry, ...]) -> None:
        """All checks of a roster's content, one named method each."""
        self._check_members([entry.client for entry in entries])
        self._check_own_entry(entries)
        self._check_distinct_keys(entries)
        self._check_key_signatures(entries)

    def _check_members(self, ids: Sequence[ClientId]) -> None:
        """Everybody once, and nobody who does not belong there."""
        if any(a >= b for a, b in pairwise(ids)):
            raise RosterMismatch("the roster's ids are not ascending", culprits=[SERVER])
        possible = {*self._neighbours_in(self._config.cohort.ids), self._u}
        strangers = [u for u in ids if u not in possible]
        if strangers:
            who = "the cohort" if self._complete else "this client's neighbourhood"
            raise RosterMismatch(
                f"the roster has {strangers[:3]}, who are not in {who}", culprits=[SERVER]
            )

    def _check_own_entry(self, entries: tuple[RosterEntry, ...]) -> None:
        if self._own_entry not in entries:
            raise RosterMismatch(
                "the roster does not show this client's own keys as it sent them", culprits=[SERVER]
            )

    def _check_distinct_keys(self, entries: tuple[RosterEntry, ...]) -> None:
        """One key pair under several names would hold several shares of one secret."""
        public = {key for entry in entries for key in (entry.c_pk, entry.s_pk)}
        if len(public) != 2 * len(entries):
            raise RosterMismatch("one public key appears twice in the roster", culprits=[SERVER])

    def _check_key_signatures(self, entries: tuple[RosterEntry, ...]) -> None:
        """Active: the keys are those that the clients themselves advertised."""
        if not self._active:
            return
        for entry in entries:
            message = AdvertiseKeys(c_pk=entry.c_pk, s_pk=entry.s_pk, commitment=entry.commitment)
            self._end.verify_advertised(
                entry.client,
                entry.signature,
                kind=MessageType.ADVERTISE_KEYS,
                body=message.encode(),
            )

    @property
    def _complete(self) -> bool:
        return self._config.protocol is Protocol.SECAGG

    def _neighbours_in(self, members: Sequence[ClientId]) -> list[ClientId]:
        assert self._graph is not None  # noqa: S101  # receive() refuses frames before the beacon
        return self._graph.peers(self._u, members)

    def _enough_holders(self, peers: int) -> None:
        """At least t holders of this client's secrets must be there."""
        if peers + self._own_share < self._config.t:
            raise self._below(self._config.t + 1 - self._own_share, peers + 1)

    def _agree(self, entry: RosterEntry) -> tuple[bytes, bytes]:
        """X25519 with one peer's channel key and mask key: once each, then never again."""
        secrets = self._live()
        assert secrets.c is not None and secrets.s is not None  # noqa: S101  # set by start()
        try:
            return (
                secrets.c.agree(public_key(entry.c_pk)),
                secrets.s.agree(public_key(entry.s_pk)),
            )
        except DegenerateKey as error:
            raise RosterMismatch(
                f"client {entry.client} has a degenerate key: {error}", culprits=[entry.client]
            ) from None

    def _deal(self, P: Sequence[ClientId]) -> tuple[NDArray[np.uint32], NDArray[np.uint32] | None]:
        """Shares of b_u and s_sk, one row of 5 + 9 words per member of P, and the own b-share."""
        secrets = self._live()
        assert secrets.b is not None and secrets.s_sk is not None  # noqa: S101  # set by start()
        holders = [*P, self._u] if self._own_share else P
        points = np.array([1 + self._config.cohort.index(v) for v in holders], dtype=np.uint64)
        t = self._config.t
        b_rows = share(secrets.b, t=t, points=points, random_bytes=self._random_bytes)
        s_rows = share(secrets.s_sk, t=t, points=points, random_bytes=self._random_bytes)
        rows = np.concatenate([b_rows, s_rows], axis=1).astype("<u4", copy=False)
        return rows[: len(P)], b_rows[-1].copy() if self._own_share else None

    def _on_share_delivery(self, body: Buffer) -> list[Outbound | Event]:
        """Learns U2 and opens the peers' shares; one bad peer cannot stop the round."""
        secrets = self._live()
        delivery = ShareDelivery.decode(body, peers=len(self._P))
        Q = [v for v, there in zip(self._P, delivery.present, strict=True) if there]
        self._enough_holders(len(Q))
        opened = np.zeros((len(Q), SHARES_BYTES), dtype=np.uint8)
        readable = np.zeros(len(Q), dtype=np.bool_)
        for i, (v, ciphertext) in enumerate(zip(Q, delivery.ciphertexts, strict=True)):
            try:
                opened[i] = np.frombuffer(self._open(v, ciphertext), dtype=np.uint8)
            except Unopenable:
                continue
            readable[i] = True
        words = opened.view("<u4").astype(np.uint32, copy=False)
        # A dealer whose shares are no field elements has dealt none; all dealers in one pass.
        readable &= (words < PRIME).all(axis=1)
        words[~readable] = 0
        b_shares, s_shares = words[:, :B_WORDS].copy(), words[:, B_WORDS:].copy()
        if int(readable.sum()) + self._own_share < self._config.t:
            bad = [v for v, good in zip(Q, readable, strict=True) if not good]
            raise DecryptionFailed(
                f"only {int(readable.sum())} of {len(Q)} shares could be opened, "
                f"{self._config.t} are needed",
                culprits=bad,
            )
        secrets.b_shares, secrets.s_shares = b_shares, s_shares
        secrets.pair_keys = {v: secrets.pair_keys[v] for v in Q}
        secrets.channel_keys = {}
        self._in_U2, self._readable = delivery.present, readable
        return [ShareUnreadable(dealer=v) for v, g in zip(Q, readable, strict=True) if not g]

    def _open(self, v: ClientId, ciphertext: bytes) -> bytes:
        session, key = self._end.session, self._live().channel_keys[v]
        assert session is not None  # noqa: S101  # set on the roster
        return self._keys.open_shares(key, session, v, self._u, ciphertext)

    def _mask_if_complete(self) -> list[Outbound | Event]:
        """Emits y_u once both the shares and the input are there."""
        secrets = self._secrets
        delivered = MessageType.SHARE_DELIVERY in self._accepted
        if (
            self._phase is not Phase.MASKED_INPUT_COLLECTION
            or not delivered
            or secrets is None
            or secrets.words is None
            or secrets.b is None
            or self._end.session is None
        ):
            return []
        mask_in_place(
            secrets.words,
            u=self._u,
            self_key=self._self_mask_key(secrets.b, self._end.session),
            pair_keys=secrets.pair_keys,
            modulus=self._config.modulus,
        )
        body = pack_words(secrets.words, self._config.b)
        secrets.words = secrets.b = None
        secrets.pair_keys = {}
        self._emitted_input = True
        return [self._emit(body, session=self._end.session)]

    def _self_mask_key(self, b: bytes, session: bytes) -> bytes:
        """Of the mask that stays when all pair masks are known: a late input is still hidden."""
        return self._keys.self_mask_key(b, session, self._u)

    def _on_survivor_notice(self, body: Buffer) -> list[Outbound | Event]:
        """Signs the one survivor list that it will answer for."""
        assert self._end.session is not None  # noqa: S101  # set on the roster
        assert self._graph is not None and self._end.identity is not None  # noqa: S101  # checked by receive() and __init__()
        notice = SurvivorNotice.decode(body, n=self._config.n)
        cohort = self._config.cohort
        U3 = {u for u, there in zip(cohort.ids, notice.alive, strict=True) if there}
        if self._u not in U3:
            raise Equivocation("the survivor list leaves this client out", culprits=[SERVER])
        # The neighbourhood is that of the cohort: names without keys would only pad the list.
        alive = self._graph.peers(self._u, U3)
        self._check_dealt(alive)
        self._enough_survivors(len(U3), len(alive))
        self._check_one_piece(U3)
        survivors = pack_bitmap(notice.alive)
        statement = self._keys.survivor_statement(self._end.session, survivors)
        self._survivors = survivors
        self._in_U3 = np.array([v in U3 for v in self._P], dtype=np.bool_)
        message = SurvivorSignature(signature=self._end.identity.sign(statement))
        return [self._emit(message.encode(), session=self._end.session)]

    def _check_dealt(self, alive: Sequence[ClientId]) -> None:
        """Whoever is said to have survived must have been in U2; others only pad the list."""
        assert self._in_U2 is not None  # noqa: S101  # set by the share delivery
        Q = {v for v, there in zip(self._P, self._in_U2, strict=True) if there}
        if not Q.issuperset(alive):
            raise Equivocation(
                "the survivor list has clients who were not in U2", culprits=[SERVER]
            )

    def _check_one_piece(self, U3: AbstractSet[ClientId]) -> None:
        """On a sparse graph one list can open the sums of several parts."""
        assert self._graph is not None  # noqa: S101  # receive() refuses frames before the beacon
        broken = self._graph.fragments(U3, self._config.t)
        if broken is not None:
            raise BelowThreshold(
                f"{broken}: opening this list would open sums of a few clients; nothing is signed",
                needed=self._config.n_min,
                had=len(U3),
                phase=str(self._phase),
            )

    def _on_signed_request(self, body: Buffer) -> list[Outbound | Event]:
        """Active: answers for the list it signed, once t holders are seen to have signed it too."""
        assert self._in_U3 is not None  # noqa: S101  # set by the survivor notice
        request = SignedUnmaskRequest.decode(body, most=len(self._P))
        signers = [v for v, _ in request.signatures]
        self._check_signers_differ(signers)
        self._check_signers_hold_shares(signers)
        self._check_list_signatures(request)
        self._enough_signatures(len(signers))
        return self._open_shares(self._in_U3)

    def _check_signers_differ(self, signers: Sequence[ClientId]) -> None:
        if any(a >= b for a, b in pairwise(signers)):
            raise InvalidSignature(
                "the signers are not ascending: one could count twice", culprits=[SERVER]
            )

    def _check_signers_hold_shares(self, signers: Sequence[ClientId]) -> None:
        """Only surviving holders count: not this client itself, nobody from elsewhere."""
        assert self._in_U3 is not None  # noqa: S101  # set by the survivor notice
        allowed = {v for v, there in zip(self._P, self._in_U3, strict=True) if there}
        strangers = [v for v in signers if v not in allowed]
        if strangers:
            raise InvalidSignature(
                f"signatures of {strangers[:3]}, who hold no share of this client's secrets or are "
                "not on the list",
                culprits=[SERVER],
            )

    def _check_list_signatures(self, request: SignedUnmaskRequest) -> None:
        """Each signature must be over the very list that this client signed."""
        assert self._end.session is not None and self._survivors is not None  # noqa: S101  # set by roster and notice
        statement = self._keys.survivor_statement(self._end.session, self._survivors)
        for v, signature in request.signatures:
            self._end.verify(v, signature, statement, "the list of survivors")

    def _enough_signatures(self, signers: int) -> None:
        if signers + self._own_share < self._config.t:
            raise self._below(self._config.t, signers + self._own_share)

    def _on_unmask_request(self, body: Buffer) -> list[Outbound | Event]:
        """Semi-honest: answers for the list in the request."""
        request = UnmaskRequest.decode(body, peers=len(self._P))
        survivors = int(request.alive.sum())
        self._check_dealt([v for v, there in zip(self._P, request.alive, strict=True) if there])
        self._check_size(request.size, survivors)
        self._enough_survivors(request.size, survivors)
        return self._open_shares(request.alive)

    def _check_size(self, size: int, survivors: int) -> None:
        """The claimed size of U3 must fit the part of it that this client sees."""
        # On a sparse graph the client sees its neighbours only and must believe the rest.
        most = survivors + 1 + (0 if self._complete else self._config.n - 1 - len(self._P))
        if not survivors + 1 <= size <= most:
            raise Equivocation(
                f"the survivor list shows {survivors} peers and this client, "
                f"but claims {size} survivors",
                culprits=[SERVER],
            )

    def _enough_survivors(self, size: int, peers: int) -> None:
        """At least n_min inputs in the sum, and t surviving holders."""
        self._enough_inputs(size)
        self._enough_holders(peers)

    def _enough_inputs(self, size: int) -> None:
        if size < self._config.n_min:
            raise self._below(self._config.n_min, size)

    def _open_shares(self, in_U3: NDArray[np.bool_]) -> list[Outbound | Event]:
        """Opens, per peer, the self-mask seed of a survivor or the mask key of a dropout."""
        secrets = self._live()
        assert self._in_U2 is not None and self._readable is not None  # noqa: S101  # set by the share delivery
        assert secrets.b_shares is not None and secrets.s_shares is not None  # noqa: S101  # as above
        assert self._end.session is not None  # noqa: S101  # set on the roster
        alive = in_U3[self._in_U2]
        answer = UnmaskShares(
            readable=self._readable,
            own=secrets.own_b_share,
            b_shares=secrets.b_shares[self._readable & alive],
            s_shares=secrets.s_shares[self._readable & ~alive],
        )
        out = self._emit(answer.encode(alive=alive), session=self._end.session)
        self._wipe()
        return [out]

    def _on_abort(self, body: Buffer, digest: bytes) -> list[Outbound | Event]:
        try:
            reason = Abort.decode(body).reason
        except WireError as error:
            raise self._fail(MalformedMessage(f"ABORT: {error}", culprits=[SERVER])) from error
        self._accepted[MessageType.ABORT] = digest
        self._phase = Phase.ABORTED
        self._wipe()
        return [Aborted(reason=reason, by=SERVER)]

    # -- ends -------------------------------------------------------------------------------------

    def _below(self, needed: int, had: int) -> BelowThreshold:
        return BelowThreshold(needed=needed, had=had, phase=str(self._phase))

    def _live(self) -> _Secrets:
        if self._secrets is None:
            raise LocalProtocolError(f"the session is over ({self._phase})")
        return self._secrets

    def _fail(self, error: _F) -> _F:
        """Ends the session with this error; DONE stays DONE, and nothing is sent any more.

        The traceback up to here goes: its frames hold secrets, and errors are kept and logged.
        """
        if self._secrets is not None:
            error.outbound = tuple(self._give_up(abort_reason(error)))
        error.__context__ = error.__traceback__ = None
        return error

    def _give_up(self, reason: Reason) -> list[Outbound]:
        self._phase = Phase.ABORTED
        self._wipe()
        # The configuration digest names the session also for a server that has no roster yet.
        body = Abort(reason=reason).encode()
        return [self._end.outbound(MessageType.ABORT, body, session=self._end.config_digest)[0]]

    def _wipe(self) -> None:
        """Drops every secret; what Python cannot overwrite is left to the garbage collector.

        Emptied as well as dropped: a frame or a closure may still hold the container.
        """
        if self._secrets is not None:
            self._secrets.empty()
        self._secrets = None

    def __repr__(self) -> str:
        return f"SecAggClient(client_id={self._u}, phase={self._phase}, <secrets>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a client's machine cannot be pickled or copied: it would answer twice")

    def __getstate__(self) -> NoReturn:
        self.__reduce__()
