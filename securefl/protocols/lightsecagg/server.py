"""The server's machine: passes shares on, collects, closes phases, opens the sum in one step.

So et al. 2022, algorithm 1, server's side. The driver decides when a phase ends
(``close_phase()``); a frame after that is discarded and U3 is never reopened. Coded shares are
passed on as they arrive and masked inputs are added as they arrive, so memory does not grow with
the cohort but for one answer of L entries per survivor at the end. Wrong answers are found and left
out as long as there are enough right ones; with exactly U answers nothing can be checked, and the
sum says so (``verified``). In sessions against an active adversary the machine relays signatures;
it has no key of its own, because nothing that clients check depends on its word.
It learns the sum and who took part. It does not make the sum private.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable
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
from securefl.modular import RingVector
from securefl.primitives.channel import AgreementKey, DegenerateKey, public_key, sha256
from securefl.primitives.reed_solomon import TooManyErrors
from securefl.primitives.signing import BadSignature, IdentityDirectory
from securefl.protocols.endpoints import ServerEnd
from securefl.protocols.lightsecagg.coding import MaskCode, accumulate, subtract
from securefl.protocols.lightsecagg.messages import (
    AdvertiseKeys,
    EncodedShare,
    EncodedShares,
    KeyRoster,
    RecoveryRequest,
    RosterEntry,
    ShareClose,
    decode_elements,
    message_type,
)
from securefl.protocols.lightsecagg.params import check_config, guaranteed_honest
from securefl.protocols.lightsecagg.transitions import (
    SERVER_PHASES,
    MessageType,
    Phase,
    next_server_phase,
    server_row,
)
from securefl.protocols.machine import (
    AggregateReady,
    ClientDropped,
    ClientEquivocated,
    Event,
    Outbound,
    PhaseClosed,
    Reason,
    Refused,
)
from securefl.protocols.messages import (
    Abort,
    SignedUnmaskRequest,
    SurvivorNotice,
    SurvivorSignature,
)
from securefl.round import AggregateSum, ClientId, RoundConfig, SurvivorSets
from securefl.wire import Buffer, decode_frame

__all__ = ["LightSecAggServer"]


class LightSecAggServer:
    """The server's side of one session (sans-IO).

    Args:
        config: the round's configuration; every client must have the same.
        assume_no_corruption: allow A = 0 in the configuration.
        directory: everybody's public identity keys; needed against an active adversary. The server
            drops frames with wrong signatures, which every client would refuse.

    Raises:
        ConfigurationError: if the configuration is unsafe, or identities are missing.
    """

    def __init__(
        self,
        config: RoundConfig,
        *,
        assume_no_corruption: bool = False,
        directory: IdentityDirectory | None = None,
    ) -> None:
        check_config(config, assume_no_corruption=assume_no_corruption)
        self._config = config
        self._end = ServerEnd(config, directory=directory)
        self._code = MaskCode(N=config.n, U=config.k, T=config.t, m=config.m)
        self._phase = Phase.ADVERTISE_KEYS
        self._accepted: dict[tuple[MessageType, ClientId], bytes] = {}
        self._replied: set[ClientId] = set()
        self._gone: set[ClientId] = set()
        self._U: list[tuple[ClientId, ...]] = []
        self._entries: dict[ClientId, RosterEntry] = {}
        self._probe: AgreementKey | None = AgreementKey(os.urandom(32))
        self._survivors = b""
        self._signatures: dict[ClientId, bytes] = {}
        self._total: NDArray[np.uint32] | None = None
        self._answers: dict[ClientId, NDArray[np.uint32]] = {}
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
        return not self.final and len(self._replied) >= self._needed

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

    @property
    def _needed(self) -> int:
        """Replies that this phase needs: U where answers are counted, else n_min, which is more."""
        counting = (Phase.CONSISTENCY_CHECK, Phase.RECOVERY)
        return self._config.k if self._phase in counting else self._config.n_min

    # -- frames in --------------------------------------------------------------------------------

    def receive(self, frame: bytes, sender: ClientId | None = None) -> list[Outbound | Event]:
        """Takes a frame of a client.

        Args:
            frame: header and body.
            sender: whom the transport authenticated; None if it does not.

        Returns:
            For coded shares, the frames that pass them on; else events. A byte-identical repeat
            returns nothing; a different message of a type already accepted leaves the first in
            force (``ClientEquivocated``); bad content drops its sender (``ClientDropped``); a late
            frame is discarded (``ClientDropped``, LATE).

        Raises:
            WireError: bytes that are no frame of this library; nothing changes.
            UnexpectedMessage: a frame for another phase, round or session, or of a client that is
                not expected; nothing changes.
            InvalidSignature: a frame with a wrong signature where dropping its alleged sender is
                not due (it has replied already, or the phase collects something else); nothing
                changes.
        """
        parsed = decode_frame(frame)
        kind = message_type(parsed.type)
        before = kind in (MessageType.ADVERTISE_KEYS, MessageType.ABORT)
        u = self._end.origin(parsed, sender=sender, before_session=before)
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
            out = self._handle(kind, u, parsed.body)
        except (WireError, Refused) as error:
            self._gone.add(u)
            reason = error.reason if isinstance(error, Refused) else Reason.MALFORMED
            return [ClientDropped(client=u, phase=str(self._phase), reason=reason)]
        self._accepted[kind, u] = digest
        self._replied.add(u)
        if kind is MessageType.ADVERTISE_KEYS:
            self._entries[u] = self._entries[u]._replace(signature=parsed.signature)
        return out

    def _awaits(self, kind: MessageType, u: ClientId) -> bool:
        """Whether this phase still waits for such a message of u."""
        row = server_row(self._phase)
        waiting = row is not None and row.accepts is kind
        return waiting and u in self.expected and u not in self._replied

    def _closed(self, kind: MessageType) -> bool:
        """Whether the phase that collects this type of message is over."""
        collects = [r.accepts for r in SERVER_PHASES if self._config.adversary in r.then]
        return kind in collects[: len(self._U)]

    def _handle(self, kind: MessageType, u: ClientId, body: Buffer) -> list[Outbound | Event]:
        handlers: dict[MessageType, Callable[[ClientId, Buffer], list[Outbound | Event]]] = {
            MessageType.ADVERTISE_KEYS: self._on_advertise_keys,
            MessageType.ENCODED_SHARES: self._on_encoded_shares,
            MessageType.MASKED_INPUT: self._on_masked_input,
            MessageType.SURVIVOR_SIGNATURE: self._on_survivor_signature,
            MessageType.AGGREGATE_SHARE: self._on_aggregate_share,
        }
        return handlers[kind](u, body)

    def _on_advertise_keys(self, u: ClientId, body: Buffer) -> list[Outbound | Event]:
        c_pk = AdvertiseKeys.decode(body).c_pk
        if any(c_pk == entry.c_pk for entry in self._entries.values()):
            raise Refused(Reason.DUPLICATE_KEY)
        assert self._probe is not None  # noqa: S101  # dropped when this phase closes
        try:
            # Every other client would refuse the whole roster for one degenerate key in it.
            self._probe.agree(public_key(c_pk))
        except DegenerateKey:
            raise Refused(Reason.MALFORMED) from None
        self._entries[u] = RosterEntry(u, c_pk)
        return []

    def _on_encoded_shares(self, u: ClientId, body: Buffer) -> list[Outbound | Event]:
        """Passes each share on to its holder; keeps none."""
        assert self._end.session is not None  # noqa: S101  # set when U1 was closed
        peers = [v for v in self._U[0] if v != u]
        message = EncodedShares.decode(body, peers=len(peers), L=self._code.L)
        out: list[Outbound | Event] = []
        for v, ciphertext in zip(peers, message.ciphertexts, strict=True):
            if v not in self._gone:
                share = EncodedShare(dealer=u, ciphertext=ciphertext).encode()
                out += self._end.to_all(
                    [v], MessageType.ENCODED_SHARE, share, session=self._end.session
                )
        return out

    def _on_masked_input(self, u: ClientId, body: Buffer) -> list[Outbound | Event]:
        masked = decode_elements(body, count=self._config.m)
        if self._total is None:
            self._total = masked.copy()
        else:
            accumulate(self._total, masked)
        return []

    def _on_survivor_signature(self, u: ClientId, body: Buffer) -> list[Outbound | Event]:
        end = self._end
        assert end.directory is not None and end.session is not None  # noqa: S101  # active
        signature = SurvivorSignature.decode(body).signature
        statement = end.keys.survivor_statement(end.session, self._survivors)
        try:
            end.directory.verify(u, signature, statement)
        except BadSignature:
            raise Refused(Reason.INVALID_SIGNATURE) from None
        self._signatures[u] = signature
        return []

    def _on_aggregate_share(self, u: ClientId, body: Buffer) -> list[Outbound | Event]:
        self._answers[u] = decode_elements(body, count=self._code.L).copy()
        return []

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
            Frames for the next phase, and events; after RECOVERY the event ``AggregateReady``.

        Raises:
            LocalProtocolError: in DONE and ABORTED.
            BelowThreshold: too few are left; phase ABORTED, Abort frames in ``.outbound``.
            InvalidShare: the answers do not fit together and too many are wrong to tell which;
                phase ABORTED, no sum.
        """
        if self.final:
            raise LocalProtocolError(f"close_phase() was called in phase {self._phase}")
        phase = self._phase
        if not self.sufficient:
            shortage = BelowThreshold(needed=self._needed, had=len(self._replied), phase=str(phase))
            shortage.outbound = tuple(self._abort(Reason.BELOW_THRESHOLD))
            raise shortage
        events: list[Outbound | Event] = [
            ClientDropped(client=u, phase=str(phase), reason=Reason.NO_REPLY)
            for u in self.expected
            if u not in self._replied
        ]
        closed = tuple(sorted(self._replied))
        close = {
            Phase.ADVERTISE_KEYS: self._close_advertise_keys,
            Phase.SHARE_MASKS: self._close_share_masks,
            Phase.MASKED_INPUT_COLLECTION: self._close_masked_input,
            Phase.CONSISTENCY_CHECK: self._close_consistency_check,
            Phase.RECOVERY: self._close_recovery,
        }
        out = close[phase](closed)
        self._U.append(closed)
        self._replied = set()
        self._phase = next_server_phase(phase, self._config.adversary)
        return [*events, PhaseClosed(phase=str(phase), members=closed), *out]

    def _close_advertise_keys(self, U1: tuple[ClientId, ...]) -> list[Outbound | Event]:
        end = self._end
        entries = tuple(self._entries[u] for u in U1)
        root = end.keys.roster_tree([entry.encode() for entry in entries]).root
        end.session = end.keys.session_id(end.config_digest, len(U1), root)
        self._probe = None
        body = KeyRoster(entries=entries).encode()
        return [*end.to_all(U1, MessageType.KEY_ROSTER, body, session=end.config_digest)]

    def _close_share_masks(self, U2: tuple[ClientId, ...]) -> list[Outbound | Event]:
        body = ShareClose(alive=self._flags(U2)).encode()
        return self._to_members(U2, MessageType.SHARE_CLOSE, body)

    def _close_masked_input(self, U3: tuple[ClientId, ...]) -> list[Outbound | Event]:
        alive = self._flags(U3)
        if not self._end.active:
            body = RecoveryRequest(alive=alive).encode()
            return self._to_members(U3, MessageType.RECOVERY_REQUEST, body)
        self._survivors = SurvivorNotice(alive=alive).encode()
        return self._to_members(U3, MessageType.SURVIVOR_NOTICE, self._survivors)

    def _close_consistency_check(self, U4: tuple[ClientId, ...]) -> list[Outbound | Event]:
        out: list[Outbound | Event] = []
        for u in U4:
            others = tuple((v, self._signatures[v]) for v in U4 if v != u)
            body = SignedUnmaskRequest(signatures=others).encode()
            out += self._to_members((u,), MessageType.RECOVERY_REQUEST, body)
        return out

    def _close_recovery(self, U5: tuple[ClientId, ...]) -> list[Outbound | Event]:
        """Leaves out wrong answers, interpolates the sum of the masks, subtracts it."""
        assert self._total is not None  # noqa: S101  # U3 is not empty
        config, U3 = self._config, self._U[2]
        holders = [config.cohort.index(u) for u in U5]
        answers = np.stack([self._answers[u] for u in U5])
        wrong = self._wrong_answers(answers, holders)
        right = [row for row in range(len(U5)) if row not in wrong]
        mask = self._code.decode(answers[right[: config.k]], [holders[row] for row in right])
        subtract(self._total, mask)
        self._result = AggregateSum(
            vector=RingVector(self._total, config.modulus),
            survivors=U3,
            min_honest=guaranteed_honest(config, len(U3)),
            mismatched_pairs=tuple((u, U5[row]) for u in U3 for row in wrong),
            # A colluders can add a polynomial of degree below U that is zero at every honest
            # answer, unless there are U honest ones beside them.
            verified=len(right) >= config.k + config.A,
            transcript_digest=self._end.transcript_digest(
                {key: d for key, d in self._accepted.items() if key[0] is not MessageType.ABORT}
            ),
        )
        self._wipe()
        return [AggregateReady(aggregate=self._result)]

    def _wrong_answers(self, answers: NDArray[np.uint32], holders: list[int]) -> tuple[int, ...]:
        try:
            return self._code.wrong_answers(answers, holders, os.urandom)
        except TooManyErrors as error:
            outbound = self._abort(Reason.INVALID_SHARE)
            raise InvalidShare(
                f"the answers of {len(holders)} survivors do not fit together: {error}; survivors "
                "or dealers gave wrong values, no sum was opened, run a new round",
                culprits=(),
                outbound=outbound,
            ) from None

    def _flags(self, members: tuple[ClientId, ...]) -> NDArray[np.bool_]:
        there = set(members)
        return np.array([u in there for u in self._config.cohort], dtype=np.bool_)

    def _to_members(
        self, recipients: tuple[ClientId, ...], kind: MessageType, body: bytes
    ) -> list[Outbound | Event]:
        assert self._end.session is not None  # noqa: S101  # set when U1 was closed
        return [*self._end.to_all(recipients, kind, body, session=self._end.session)]

    # -- ends -------------------------------------------------------------------------------------

    def _abort(self, reason: Reason) -> list[Outbound]:
        """Ends the session and tells those who still wait for something."""
        waiting = [u for u in self.expected if u not in self._gone]
        if self._phase is Phase.RECOVERY:
            waiting = [u for u in waiting if u not in self._replied]
        self._phase = Phase.ABORTED
        self._wipe()
        body = Abort(reason=reason).encode()
        return self._end.to_all(waiting, MessageType.ABORT, body, session=self._end.config_digest)

    def _wipe(self) -> None:
        self._total = None
        self._answers = {}
        self._probe = None

    def __repr__(self) -> str:
        return f"LightSecAggServer(n={self._config.n}, phase={self._phase})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a server's machine cannot be pickled or copied: a session runs once")

    def __getstate__(self) -> NoReturn:
        self.__reduce__()
