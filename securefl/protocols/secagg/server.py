"""The server's machine: collects, closes phases, opens the sum over whoever sent an input.

Bonawitz et al. 2017, figure 4, server's side. The driver decides when a phase ends
(``close_phase()``); a frame after that is discarded and U3 is never reopened, because an input
that came in late may have its pair masks open already. Masked inputs are added as they arrive, so
vector memory does not grow with the cohort. Every reconstructed secret is checked against what
its dealer published: from clients that follow the protocol, and with its own frames unchanged on
their way to them, the machine gives the exact sum over U3 or an error. (A frame that was changed
on the way can make two clients mask towards different peers. The transport must authenticate the
server.)
It learns the sum and who took part. It does not make the sum private.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from securefl.errors import (
    BelowThreshold,
    InvalidShare,
    LocalProtocolError,
    UnexpectedMessage,
    WireError,
)
from securefl.modular import RingVector, Words, reduce_in_place, ring_dtype
from securefl.primitives.channel import AgreementKey, DegenerateKey, PublicKey, sha256
from securefl.protocols.machine import (
    AggregateReady,
    ClientDropped,
    ClientEquivocated,
    Event,
    Outbound,
    PhaseClosed,
    Reason,
)
from securefl.protocols.secagg import keys
from securefl.protocols.secagg.graph import CompleteGraph, peel
from securefl.protocols.secagg.masks import sign
from securefl.protocols.secagg.messages import (
    B_WORDS,
    CIPHERTEXT_BYTES,
    S_WORDS,
    Abort,
    AdvertiseKeys,
    EncryptedShares,
    KeyRoster,
    RosterEntry,
    ShareDelivery,
    UnmaskRequest,
    UnmaskShares,
    message_type,
)
from securefl.protocols.secagg.params import check_config
from securefl.protocols.secagg.recovery import (
    MaskJob,
    Responders,
    ShareTable,
    agreement_key_matches,
    sum_masks,
)
from securefl.protocols.secagg.transitions import (
    SERVER_PHASES,
    MessageType,
    Phase,
    next_server_phase,
    server_row,
)
from securefl.round import (
    SERVER,
    AggregateSum,
    ClientId,
    Layout,
    RoundConfig,
    SurvivorSets,
    Usage,
    dst,
)
from securefl.wire import Buffer, Frame, add_packed, decode_frame, encode_frame, packed_bytes

__all__ = ["SecAggServer"]

_ORDER = {row.accepts: i for i, row in enumerate(SERVER_PHASES)}


class _Refused(Exception):
    """Content that costs its sender the place in the session."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.name)
        self.reason = reason


@dataclass(slots=True, repr=False)
class _Unmasking:
    """Shares as they come in: rows and columns are positions in U3, or in U2 \\ U3."""

    rows: dict[ClientId, int]
    b: ShareTable
    s: ShareTable


class SecAggServer:
    """The server's side of one session (sans-IO).

    Args:
        config: the round's configuration; every client must have the same.
        assume_no_corruption: allow A = 0 in the configuration.
        executor: where masks are expanded at the end; processes pay off, threads do not.

    Raises:
        ConfigurationError: if the configuration is unsafe, or more than this version has.
    """

    def __init__(
        self,
        config: RoundConfig,
        *,
        assume_no_corruption: bool = False,
        executor: Executor | None = None,
    ) -> None:
        check_config(config, assume_no_corruption=assume_no_corruption)
        self._config = config
        self._config_digest = config.digest()
        self._graph = CompleteGraph(config.cohort, config.layout)
        self._executor = executor
        self._phase = Phase.ADVERTISE_KEYS
        self._session: bytes | None = None
        self._accepted: dict[tuple[MessageType, ClientId], bytes] = {}
        self._replied: set[ClientId] = set()
        self._gone: set[ClientId] = set()
        self._U: list[tuple[ClientId, ...]] = []
        self._keys: dict[ClientId, AdvertiseKeys] = {}
        self._public_keys: set[bytes] = set()
        self._probe: AgreementKey | None = AgreementKey(os.urandom(32))
        self._ciphertexts: NDArray[np.uint8] | None = None
        self._total: Words | None = None
        self._unmasking: _Unmasking | None = None
        self._result: AggregateSum | None = None

    # -- what a driver may ask ------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """The phase it is in; DONE and ABORTED are final."""
        return self._phase

    @property
    def phases(self) -> tuple[str, ...]:
        """Names of the phases of a session under this adversary, in order."""
        adversary = self._config.adversary
        return tuple(str(row.phase) for row in SERVER_PHASES if adversary in row.then)

    @property
    def final(self) -> bool:
        """Whether nothing can change any more."""
        return self._phase in (Phase.DONE, Phase.ABORTED)

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
        return not self.final and self._shortage(self._members()) is None

    @property
    def survivors(self) -> SurvivorSets:
        """U1 ⊇ U2 ⊇ U3 = U4 ⊇ U5, as far as their phases are closed."""
        sets = [*self._U, None, None, None, None]
        return SurvivorSets(U1=sets[0], U2=sets[1], U3=sets[2], U4=sets[2], U5=sets[3])

    @property
    def result(self) -> AggregateSum | None:
        """The opened sum, once there is one."""
        return self._result

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
        """
        parsed = decode_frame(frame)
        kind = message_type(parsed.type)
        u = self._attribute(parsed, kind, sender)
        digest = sha256(frame)
        first = self._accepted.get((kind, u))
        if first is not None and hmac.compare_digest(first, digest):
            return []
        if self._phase is Phase.ABORTED:
            raise self._unexpected(u, f"{kind.name} after the session was aborted")
        if first is not None and kind is not MessageType.ABORT:
            return [ClientEquivocated(client=u, phase=str(self._phase))]
        if kind is MessageType.ABORT:
            return self._on_abort(u, parsed.body, digest)
        row = server_row(self._phase)
        if self._closed(kind):
            return [ClientDropped(client=u, phase=str(self._phase), reason=Reason.LATE)]
        if row is None or kind is not row.accepts:
            raise self._unexpected(u, f"{kind.name} in phase {self._phase}")
        if u in self._gone or (self._U and u not in self._U[-1]):
            raise self._unexpected(u, f"{kind.name} of a client that was dropped before")
        try:
            self._handle(kind, u, parsed.body)
        except (WireError, _Refused) as error:
            self._gone.add(u)
            reason = error.reason if isinstance(error, _Refused) else Reason.MALFORMED
            return [ClientDropped(client=u, phase=str(self._phase), reason=reason)]
        self._accepted[kind, u] = digest
        self._replied.add(u)
        return []

    def _closed(self, kind: MessageType) -> bool:
        """Whether the phase that collects this type of message is over."""
        collects = [r.accepts for r in SERVER_PHASES if self._config.adversary in r.then]
        return kind in collects[: len(self._U)]

    def _attribute(self, frame: Frame, kind: MessageType, sender: ClientId | None) -> ClientId:
        """The client whose frame of this session it is."""
        u = frame.sender
        if sender is not None and sender != u:
            raise self._unexpected(sender, f"a frame that claims to come from {u}")
        if u not in self._config.cohort:
            raise self._unexpected(u, "a frame of a client that is not in the cohort")
        config = self._config
        if frame.protocol is not config.protocol or frame.round_id != config.round_id:
            raise self._unexpected(u, f"protocol {frame.protocol.name} round {frame.round_id}")
        if frame.signature:
            raise self._unexpected(u, "a signed frame in a session without signatures")
        before = kind in (MessageType.ADVERTISE_KEYS, MessageType.ABORT)
        if frame.session != (self._config_digest if before else self._session):
            raise self._unexpected(u, f"{kind.name} of another session")
        return u

    def _handle(self, kind: MessageType, u: ClientId, body: Buffer) -> None:
        handlers: dict[MessageType, Callable[[ClientId, Buffer], None]] = {
            MessageType.ADVERTISE_KEYS: self._on_advertise_keys,
            MessageType.ENCRYPTED_SHARES: self._on_encrypted_shares,
            MessageType.MASKED_INPUT: self._on_masked_input,
            MessageType.UNMASK_SHARES: self._on_unmask_shares,
        }
        handlers[kind](u, body)

    def _on_advertise_keys(self, u: ClientId, body: Buffer) -> None:
        message = AdvertiseKeys.decode(body)
        new = {message.c_pk, message.s_pk}
        if len(new) < 2 or new & self._public_keys:
            raise _Refused(Reason.DUPLICATE_KEY)
        assert self._probe is not None  # noqa: S101  # dropped when this phase closes
        try:
            # Every other client would refuse the whole roster for one degenerate key in it.
            for key in new:
                self._probe.agree(PublicKey(key))
        except DegenerateKey:
            raise _Refused(Reason.MALFORMED) from None
        self._keys[u] = message
        self._public_keys |= new

    def _on_encrypted_shares(self, u: ClientId, body: Buffer) -> None:
        U1 = self._U[0]
        ciphertexts = EncryptedShares.decode(body, peers=len(U1) - 1)
        if self._ciphertexts is None:
            self._ciphertexts = np.zeros((len(U1), len(U1), CIPHERTEXT_BYTES), dtype=np.uint8)
        i = U1.index(u)
        self._ciphertexts[i, :i] = ciphertexts[:i]
        self._ciphertexts[i, i + 1 :] = ciphertexts[i:]

    def _on_masked_input(self, u: ClientId, body: Buffer) -> None:
        expected = packed_bytes(self._config.m, self._config.b)
        if len(body) != expected:  # before memory for the sum is taken
            raise WireError(f"expected {expected} bytes of masked input, found {len(body)}")
        if self._total is None:
            self._total = RingVector.zeros(self._config.m, self._config.modulus).values
        add_packed(self._total, body, self._config.b)

    def _on_unmask_shares(self, u: ClientId, body: Buffer) -> None:
        assert self._unmasking is not None  # noqa: S101  # made when U3 was closed
        table = self._unmasking
        Q = [v for v in self._U[1] if v != u]
        U3 = table.rows
        alive = np.array([v in U3 for v in Q], dtype=np.bool_)
        own = self._config.layout is Layout.ALL
        message = UnmaskShares.decode(body, alive=alive, own=own)
        row = U3[u]
        others = np.arange(len(U3)) != row
        columns = np.flatnonzero(others)[message.readable[alive]]
        table.b.words[row, columns] = message.b_shares
        table.b.present[row, columns] = True
        if message.own is not None:
            table.b.words[row, row] = message.own
            table.b.present[row, row] = True
        table.s.words[row, message.readable[~alive]] = message.s_shares
        table.s.present[row] = message.readable[~alive]

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

    def close_phase(self) -> list[Outbound | Event]:
        """Ends the phase with whoever has replied.

        Returns:
            Frames for the next phase, and events; after UNMASKING the event ``AggregateReady``.

        Raises:
            LocalProtocolError: in DONE and ABORTED.
            BelowThreshold: too few are left; phase ABORTED, Abort frames in ``.outbound``.
            InvalidShare: reconstructed secrets do not match what their dealers published; phase
                ABORTED, no sum.
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
        return [*events, PhaseClosed(phase=str(phase), members=closed), *out]

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
        if len(members) < config.n_min:
            replied = len(self._replied)
            had = replied if replied < config.n_min else len(members)
            return BelowThreshold(needed=config.n_min, had=had, phase=phase)
        # On the complete graph n_min > t (params) leaves t holders of every needed secret.
        return None

    def _missing_shares(self, members: set[ClientId]) -> BelowThreshold | None:
        assert self._unmasking is not None  # noqa: S101  # made when U3 was closed
        t = self._config.t
        table = self._unmasking
        fewest = min(c for c in (table.b.fewest(), table.s.fewest()) if c is not None)
        if fewest >= t:
            return None
        quorum = t + (self._config.layout is Layout.OTHERS)
        if len(members) < quorum:
            return BelowThreshold(needed=quorum, had=len(members), phase=str(self._phase))
        return BelowThreshold(
            f"{len(members)} clients answered, but a needed secret has only {fewest} readable "
            f"shares, {t} are needed: the round is lost and no sum was opened; run a new round",
            needed=t,
            had=fewest,
            phase=str(self._phase),
        )

    def _close_advertise_keys(self, U1: tuple[ClientId, ...]) -> list[Outbound | Event]:
        entries = tuple(RosterEntry(u, self._keys[u].c_pk, self._keys[u].s_pk) for u in U1)
        self._session = keys.session_id(self._config_digest, [e.encode() for e in entries])
        self._probe = None
        body = KeyRoster(entries=entries).encode()
        frame = self._frame(MessageType.KEY_ROSTER, body, self._config_digest)
        return [Outbound(recipient=u, frame=frame) for u in U1]

    def _close_share_keys(self, U2: tuple[ClientId, ...]) -> list[Outbound | Event]:
        assert self._ciphertexts is not None and self._session is not None  # noqa: S101  # U2 is not empty
        U1 = self._U[0]
        there = set(U2)
        present = np.array([u in there for u in U1], dtype=np.bool_)
        out: list[Outbound | Event] = []
        for u in U2:
            column = U1.index(u)
            others = np.arange(len(U1)) != column
            message = ShareDelivery(
                present=present[others],
                ciphertexts=[self._ciphertexts[others & present, column].tobytes()],
            )
            frame = self._frame(MessageType.SHARE_DELIVERY, message.encode(), self._session)
            out.append(Outbound(recipient=u, frame=frame))
        self._ciphertexts = None
        return out

    def _close_masked_input(self, U3: tuple[ClientId, ...]) -> list[Outbound | Event]:
        assert self._session is not None  # noqa: S101  # set when U1 was closed
        U1, U2 = self._U
        there = set(U3)
        alive = np.array([u in there for u in U1], dtype=np.bool_)
        self._unmasking = _Unmasking(
            rows={u: i for i, u in enumerate(U3)},
            b=ShareTable(holders=len(U3), dealers=len(U3), words=B_WORDS, secret_bytes=16),
            s=ShareTable(
                holders=len(U3), dealers=len(U2) - len(U3), words=S_WORDS, secret_bytes=32
            ),
        )
        out: list[Outbound | Event] = []
        for u in U3:
            others = np.array(U1) != u
            message = UnmaskRequest(size=len(U3), alive=alive[others])
            frame = self._frame(MessageType.UNMASK_REQUEST, message.encode(), self._session)
            out.append(Outbound(recipient=u, frame=frame))
        return out

    def _close_unmasking(self, U5: tuple[ClientId, ...]) -> list[Outbound | Event]:
        """Section by section: reconstruct, verify, expand, subtract."""
        assert self._total is not None  # noqa: S101  # U3 is not empty
        seeds, mask_keys = self._recover()
        masks = sum_masks(
            self._mask_jobs(seeds, mask_keys),
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
            min_honest=len(U3) - self._config.A,
            verified=True,
            transcript_digest=self._transcript_digest(),
        )
        self._wipe()
        return [AggregateReady(aggregate=self._result)]

    def _recover(self) -> tuple[dict[ClientId, bytes], dict[ClientId, bytes]]:
        """b_u of every survivor and s_sk of every dropout, each checked.

        Raises:
            InvalidShare: with all (dealer, holder) pairs that were used for a secret that failed.
                Who of dealer and holders lied cannot be told, so nobody is named as culprit.
        """
        assert self._unmasking is not None  # noqa: S101  # made when U3 was closed
        table = self._unmasking
        U3 = self._U[2]
        dropped = [u for u in self._U[1] if u not in table.rows]
        points = tuple(1 + self._config.cohort.index(u) for u in U3)
        answered = np.flatnonzero(table.b.present.any(axis=1) | table.s.present.any(axis=1))
        responders = _compact(table, answered, points, self._config.t)
        holders = [U3[i] for i in answered]
        seeds: dict[ClientId, bytes] = {}
        mask_keys: dict[ClientId, bytes] = {}
        pairs: list[tuple[ClientId, ClientId]] = []
        for shares, dealers, check, secrets in (
            (table.b, U3, self._seed_matches, seeds),
            (table.s, dropped, self._mask_key_matches, mask_keys),
        ):
            for column, dealer in enumerate(dealers):
                secret = shares.secret(column, responders)
                if secret is None or not check(dealer, secret):
                    rows = shares.used_rows(column, self._config.t)
                    pairs += [(dealer, holders[i]) for i in rows]
                else:
                    secrets[dealer] = secret
        if pairs:
            dealers_failed = sorted({dealer for dealer, _ in pairs})
            outbound = self._abort(Reason.INVALID_SHARE)
            raise InvalidShare(
                f"the secrets of clients {dealers_failed[:10]} do not match what they published: "
                "the dealer or one of the share holders gave wrong values; no sum was opened, "
                "run a new round",
                culprits=(),
                pairs=pairs,
                outbound=outbound,
            )
        return seeds, mask_keys

    def _seed_matches(self, u: ClientId, b_u: bytes) -> bool:
        published = self._keys[u]
        commitment = keys.seed_commitment(self._config_digest, u, published.c_pk, b_u)
        return hmac.compare_digest(commitment, published.commitment)

    def _mask_key_matches(self, u: ClientId, s_sk: bytes) -> bool:
        return agreement_key_matches(s_sk, self._keys[u].s_pk)

    def _mask_jobs(
        self, seeds: dict[ClientId, bytes], mask_keys: dict[ClientId, bytes]
    ) -> list[MaskJob]:
        """What separates Σ y from Σ x: all self masks, and pair masks without a partner."""
        assert self._session is not None  # noqa: S101  # set when U1 was closed
        session = self._session
        jobs = [MaskJob(-1, b_u, b"", session, keys.self_mask_info(u)) for u, b_u in seeds.items()]
        jobs += [
            MaskJob(-sign(u, d), s_sk, self._keys[u].s_pk, session, keys.pair_mask_info(u, d))
            for d, s_sk in mask_keys.items()
            for u in seeds
        ]
        return jobs

    def _transcript_digest(self) -> bytes:
        """SHA-256(dst(16), then per accepted frame: u8 type, u32 sender, SHA-256 of the frame)."""
        frames = sorted(
            (_ORDER[kind], u, digest)
            for (kind, u), digest in self._accepted.items()
            if kind is not MessageType.ABORT
        )
        return sha256(
            dst(Usage.TRANSCRIPT, self._config.protocol),
            *(
                bytes([SERVER_PHASES[i].accepts]) + int(u).to_bytes(4, "little") + digest
                for i, u, digest in frames
            ),
        )

    # -- ends -------------------------------------------------------------------------------------

    def _frame(self, kind: MessageType, body: bytes, session: bytes) -> bytes:
        return encode_frame(
            Frame(
                protocol=self._config.protocol,
                type=kind,
                sender=SERVER,
                round_id=self._config.round_id,
                session=session,
                body=body,
            )
        )

    def _abort(self, reason: Reason) -> list[Outbound]:
        """Ends the session and tells those who still wait for something."""
        waiting = [u for u in self.expected if u not in self._gone]
        if self._phase is Phase.UNMASKING:
            waiting = [u for u in waiting if u not in self._replied]
        frame = self._frame(MessageType.ABORT, Abort(reason=reason).encode(), self._config_digest)
        self._phase = Phase.ABORTED
        self._wipe()
        return [Outbound(recipient=u, frame=frame) for u in waiting]

    def _wipe(self) -> None:
        self._ciphertexts = None
        self._total = None
        self._unmasking = None
        self._probe = None

    def _unexpected(self, u: ClientId, what: str) -> UnexpectedMessage:
        return UnexpectedMessage(f"the server got {what} from {u}", culprits=[u])

    def __repr__(self) -> str:
        return f"SecAggServer(n={self._config.n}, phase={self._phase})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a server's machine cannot be pickled or copied: a session runs once")

    def __getstate__(self) -> NoReturn:
        self.__reduce__()


def _compact(
    table: _Unmasking, answered: NDArray[np.intp], points: tuple[int, ...], t: int
) -> Responders:
    """Keeps the rows of those who answered, so that interpolation weights repeat."""
    for shares in (table.b, table.s):
        shares.words = shares.words[answered]
        shares.present = shares.present[answered]
    return Responders(tuple(points[i] for i in answered), t)
