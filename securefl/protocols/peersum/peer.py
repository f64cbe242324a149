"""The peer's machine: one session, one input, one list signed, one sum of shares revealed.

A sum among n peers without any server: Shamir-shared inputs added up share by share (the linear
part of Ben-Or, Goldwasser and Wigderson 1988, "Completeness Theorems for Non-Cryptographic
Fault-Tolerant Distributed Computation", STOC), and before anything is opened an agreement on whose
inputs are in the sum, by signatures as in Bonawitz et al. 2017, section 6. *Adversary:* up to A
peers that may do anything, and whoever taps the wire; for privacy any t - 1 peers that follow the
protocol and pool what they saw are harmless too. They learn the sum over the survivors and who took
part. Peers may crash at any moment. Not promised: a sum. A malicious peer can end a session, leave
dealers out before any sum is known, share nonsense, or send a wrong sum of shares; with fewer than
t + A sums of shares that fit the result says ``verified=False``.

**Use once:** an honest peer signs one survivor list and reveals for the one list that has q
signatures. The machine never enters a session that its register knows. It knows no floats and no
model: it shares field elements. The sum it helps to open is not differentially private by itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from securefl.errors import (
    BelowThreshold,
    ConfigurationError,
    InvalidShare,
    LocalProtocolError,
    PeerProtocolError,
    WireError,
)
from securefl.modular import RingVector
from securefl.primitives.channel import AgreementKey, DegenerateKey, Unopenable, public_key, sha256
from securefl.primitives.reed_solomon import TooManyErrors
from securefl.primitives.signing import IdentityDirectory, IdentityKey
from securefl.protocols.machine import (
    Aborted,
    AggregateReady,
    ClientDropped,
    ClientEquivocated,
    Event,
    FrameIgnored,
    Outbound,
    PhaseClosed,
    Reason,
    Refused,
    ShareUnreadable,
)
from securefl.protocols.messages import Abort
from securefl.protocols.peersum.agreement import Ballots, NoVote
from securefl.protocols.peersum.ends import PeerEnd
from securefl.protocols.peersum.keys import SEED_BYTES, Channel, KeySchedule
from securefl.protocols.peersum.messages import (
    AdvertiseKeys,
    Confirm,
    Message,
    Report,
    RevealSum,
    ShareInput,
    decode_elements,
    decode_message,
    encode_elements,
    message_type,
)
from securefl.protocols.peersum.params import check_policy, guaranteed_honest
from securefl.protocols.peersum.polynomials import (
    accumulate,
    coefficients,
    deal,
    open_sum,
    wrong_rows,
)
from securefl.protocols.peersum.sessions import SessionRegister
from securefl.protocols.peersum.transitions import (
    PEER,
    PHASES,
    MessageType,
    Phase,
    next_phase,
    row_of,
)
from securefl.protocols.policy import ClientPolicy, check_identities, check_membership
from securefl.round import AggregateSum, ClientId, RoundConfig, SurvivorSets
from securefl.wire import Buffer, decode_frame, pack_bitmap

__all__ = ["PeerSumPeer"]

_F = TypeVar("_F", bound=BelowThreshold | PeerProtocolError)
_ORDER = [row.message for row in PEER]


@dataclass(slots=True, kw_only=True, repr=False)
class _Secrets:
    """Everything that must be gone when the session is over.

    Attributes:
        c: the session's channel key.
        agreed: what it agrees on with each peer that advertised a key.
        words: the input, uint32[m], until it is dealt.
        shares: of the dealers' inputs, uint32[m] each; the own one among them.
        sums: sums of shares over the agreed list, by holder; the own one among them.
    """

    c: AgreementKey | None = None
    agreed: dict[ClientId, bytes] = field(default_factory=dict)
    words: NDArray[np.uint32] | None = None
    shares: dict[ClientId, NDArray[np.uint32]] = field(default_factory=dict)
    sums: dict[ClientId, NDArray[np.uint32]] = field(default_factory=dict)

    def empty(self) -> None:
        """Forgets everything."""
        self.__init__()  # type: ignore[misc]  # all fields have an empty default


class PeerSumPeer:
    """One peer's side of one session (sans-IO).

    The caller delivers frames, decides how long to wait in each phase, and then calls
    :meth:`close_phase`. Safety does not depend on its timing.

    Args:
        client_id: who this is; a member of the cohort.
        config: the session's configuration, as proposed.
        context_digest: 32 bytes, computed by this peer from the model, codec and plan it has
            itself. It must equal the configuration's.
        identity: this peer's long-term key.
        directory: everybody's public identity keys, obtained from no peer of this session alone.
        register: which sessions this peer has entered; see
            :class:`~securefl.protocols.peersum.sessions.FolderRegister`.
        policy: what this peer demands of any configuration.
        random_bytes: source of secrets. The default asks the operating system. Anything else is
            for tests and vectors. Read in this order: c_sk 32 by ``start()``; the seed 16 when the
            input is dealt.

    Raises:
        ConfigurationError: if the configuration is unsafe, weaker than the policy, of another
            context, or without this peer; or if a cohort member has no identity in the directory.
            Nothing has been emitted then.
    """

    def __init__(
        self,
        client_id: ClientId,
        config: RoundConfig,
        *,
        context_digest: bytes,
        identity: IdentityKey | None,
        directory: IdentityDirectory | None,
        register: SessionRegister,
        policy: ClientPolicy | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        check_policy(config, policy if policy is not None else ClientPolicy())
        check_membership(client_id, config, context_digest)
        check_identities(client_id, config, identity, directory)
        assert identity is not None and directory is not None  # noqa: S101  # checked just now
        self._u = client_id
        self._config = config
        self._end = PeerEnd(client_id, config, identity=identity, directory=directory)
        self._register = register
        self._random_bytes = random_bytes
        self._phase: Phase | None = None
        self._accepted: dict[tuple[int, ClientId], bytes] = {}
        self._ahead: list[tuple[MessageType, ClientId, Message]] = []
        self._gone: set[ClientId] = set()
        self._c_pk: dict[ClientId, bytes] = {}
        self._reports: dict[ClientId, NDArray[np.bool_]] = {}
        self._ballots = Ballots(config, directory=directory, c_pk=self._c_pk)
        self._learned: list[Event] = []
        self._list: bytes | None = None
        self._U: list[tuple[ClientId, ...]] = []
        self._input_given = False
        self._dealt = False
        self._secrets: _Secrets | None = _Secrets()
        self._result: AggregateSum | None = None

    # -- what a driver may ask ------------------------------------------------------------------

    @property
    def client_id(self) -> ClientId:
        """Whose side this is."""
        return self._u

    @property
    def phase(self) -> Phase:
        """The phase it is in; DONE and ABORTED are final."""
        return self._phase if self._phase is not None else Phase.ADVERTISE_KEYS

    @property
    def phases(self) -> tuple[str, ...]:
        """Names of the phases that a session goes through, in order."""
        return PHASES

    @property
    def final(self) -> bool:
        """Whether nothing can change any more."""
        return self._phase in (Phase.DONE, Phase.ABORTED)

    @property
    def wants_input(self) -> bool:
        """Whether the keys are in and only :meth:`set_input` is missing."""
        return self._phase is Phase.SHARE_INPUT and not self._input_given

    @property
    def masked_input_emitted(self) -> bool:
        """Whether shares of the input were handed out for sending (stays True afterwards)."""
        return self._dealt

    @property
    def ready(self) -> bool:
        """Whether every peer that can still reply in this phase has done so."""
        row = row_of(self.phase)
        if row is None or self._phase is None:
            return False
        may = self._cohort() if row.message is MessageType.ADVERTISE_KEYS else self._c_pk.keys()
        waiting = (v for v in may if v != self._u and v not in self._gone)
        return all((row.message, v) in self._accepted for v in waiting)

    @property
    def sufficient(self) -> bool:
        """Whether closing the phase now would meet its threshold."""
        if self._phase is None or self.final or self.wants_input:
            return False
        return all(had >= needed for needed, had in self._counts())

    @property
    def survivors(self) -> SurvivorSets:
        """U1 ⊇ U2 ⊇ U3: keys, shares and the agreed list, as far as their phases are closed.

        Who signed and who revealed need not be on the list, so U4 and U5 stay empty.
        """
        closed: list[tuple[ClientId, ...] | None] = [*self._U[:2], None, None]
        if self._list is None:
            return SurvivorSets(U1=closed[0], U2=closed[1])
        agreed = self._members(self._list)
        # Others may hold shares that this peer never got, and sign a list with their dealers.
        return SurvivorSets(U1=closed[0], U2=tuple(sorted({*self._U[1], *agreed})), U3=agreed)

    @property
    def result(self) -> AggregateSum | None:
        """The opened sum, once there is one."""
        return self._result

    # -- calls ------------------------------------------------------------------------------------

    def start(self) -> list[Outbound | Event]:
        """Enters the session: makes a fresh channel key and advertises it to every peer.

        Raises:
            LocalProtocolError: if called twice or after an abort.
            ConfigurationError: if this peer entered the session before; nothing was sent.
        """
        if self._phase is not None:
            raise LocalProtocolError(f"start() was called in phase {self._phase}; it opens it once")
        if not self._register.enter(self._end.session):
            raise ConfigurationError(
                f"peer {self._u} has entered this session before, perhaps before a crash: entering "
                "it twice could get two survivor lists signed; propose a session with a new nonce"
            )
        secrets = self._live()
        c = secrets.c = AgreementKey(self._random_bytes(32))
        self._c_pk[self._u] = c.public
        self._phase = Phase.ADVERTISE_KEYS
        others = [v for v in self._cohort() if v != self._u]
        out = self._to(others, MessageType.ADVERTISE_KEYS, AdvertiseKeys(c_pk=c.public).encode())
        return [*out, *self._catch_up()]

    def set_input(self, vector: RingVector) -> list[Outbound | Event]:
        """Gives the input: once, at any time until it is needed.

        Args:
            vector: m entries modulo 2^31 - 1. It is copied. The sum wraps around this modulus;
                that it cannot is the business of whoever encodes.

        Returns:
            The shares, if the keys are in already; else nothing.

        Raises:
            LocalProtocolError: for a second input, a wrong length or modulus, or a phase in which
                no input is taken. Nothing changes then.
        """
        if self._input_given:
            raise LocalProtocolError("the input was given already; a session sums one per peer")
        if self._phase not in (None, Phase.ADVERTISE_KEYS, Phase.SHARE_INPUT):
            raise LocalProtocolError(f"no input is taken in phase {self._phase}")
        secrets = self._live()
        if vector.modulus != self._config.modulus or len(vector) != self._config.m:
            raise LocalProtocolError(
                f"expected {self._config.m} entries modulo {self._config.modulus}, "
                f"found {len(vector)} modulo {vector.modulus}"
            )
        secrets.words = vector.values.astype(np.uint32)  # a copy
        self._input_given = True
        return self._deal_if_complete()

    def abort(self) -> list[Outbound | Event]:
        """Gives up and forgets all secrets. Does nothing in DONE and ABORTED."""
        if self._secrets is None:
            return []
        return [
            *self._give_up(Reason.CLIENT_ABORT),
            Aborted(reason=Reason.CLIENT_ABORT, by=self._u),
        ]

    def receive(self, frame: bytes, sender: ClientId | None = None) -> list[Outbound | Event]:
        """Takes a frame of another peer.

        A frame ahead of this peer's phase is kept until it gets there.

        Args:
            frame: header, body and signature.
            sender: whom the transport authenticated; None if it does not.

        Returns:
            Events. A byte-identical repeat returns nothing; a different message of a type already
            accepted leaves the first in force (``ClientEquivocated``); bad content drops its sender
            (``ClientDropped``); a late or forged frame is ignored (``FrameIgnored``).

        Raises:
            WireError: bytes that are no frame of this library; nothing changes.
            UnexpectedMessage: a frame for another round or session, of somebody that is no peer or
                was dropped, or after the session ended; nothing changes.
        """
        parsed = decode_frame(frame)
        kind = message_type(parsed.type)
        v = self._end.origin(parsed, sender=sender)
        digest = sha256(frame)
        if self._accepted.get((kind, v)) == digest:
            return []
        if self._phase is Phase.ABORTED:
            if kind is MessageType.ABORT:  # whoever gives up together tells each other
                return []
            what = f"{kind.name} after the session was aborted"
            raise self._end.unexpected(v, what, known=sender is not None)
        if not self._end.signed_by(parsed, v):
            return [self._ignored(v, Reason.INVALID_SIGNATURE)]
        if kind is MessageType.ABORT:
            return self._on_abort(v, parsed.body, digest)
        if v in self._gone:
            what = f"{kind.name} of a peer that was dropped before"
            raise self._end.unexpected(v, what, known=True)
        try:
            message = decode_message(kind, parsed.body, n=self._config.n, m=self._config.m)
        except WireError:
            return self._drop(v, Reason.MALFORMED)
        if (kind, v) in self._accepted:
            proof = self._lies(v, message)
            return [ClientEquivocated(client=v, phase=str(self.phase)), *proof]
        if self._closed(kind):
            return [self._ignored(v, Reason.LATE), *self._lies(v, message)]
        self._accepted[kind, v] = digest
        if not self._collects(kind):
            self._ahead.append((kind, v, message))
            return []
        return self._take(v, message)

    def close_phase(self) -> list[Outbound | Event]:
        """Ends the phase with whoever has replied, and sends the next phase's message.

        Returns:
            Frames for the next phase, and events; after REVEAL_SUM the event ``AggregateReady``.

        Raises:
            LocalProtocolError: before ``start()``, while the input is missing, in DONE and ABORTED;
                nothing changes.
            BelowThreshold: too few are left, or too few agree; phase ABORTED, Abort frames in
                ``.outbound``. No sum was opened by this peer.
            InvalidShare: the sums of shares do not fit together and too many are wrong to tell
                which; phase ABORTED, no sum.
        """
        if self._phase is None or self.final:
            raise LocalProtocolError(
                f"close_phase() was called in phase {self._phase or 'before start()'}"
            )
        if self.wants_input:
            raise LocalProtocolError("the input is missing: give it, or abort")
        phase = self._phase
        for needed, had in self._counts():
            if had < needed:
                shortage = BelowThreshold(needed=needed, had=had, phase=str(phase))
                raise self._fail(shortage, Reason.BELOW_THRESHOLD)
        members = self._present()
        out = {
            Phase.ADVERTISE_KEYS: self._close_advertise_keys,
            Phase.SHARE_INPUT: self._close_share_input,
            Phase.REPORT: self._close_report,
            Phase.CONFIRM: self._close_confirm,
            Phase.REVEAL_SUM: self._close_reveal_sum,
        }[phase]()
        self._U.append(members)
        return [PhaseClosed(phase=str(phase), members=members), *out]

    # -- frames -----------------------------------------------------------------------------------

    def _collects(self, kind: MessageType) -> bool:
        row = row_of(self._phase) if self._phase is not None else None
        return row is not None and row.message is kind

    def _closed(self, kind: MessageType) -> bool:
        """Whether the phase that collects this type of message is over."""
        return kind in _ORDER[: len(self._U)]

    def _take(self, v: ClientId, message: Message) -> list[Outbound | Event]:
        """What a message of this phase changes; bad content drops its sender."""
        try:
            match message:
                case AdvertiseKeys():
                    return self._on_advertise_keys(v, message)
                case ShareInput():
                    return self._on_share_input(v, message)
                case Report():
                    self._reports[v] = message.dealers
                    return []
                case Confirm():
                    return self._on_confirm(v, message)
                case RevealSum():
                    return self._on_reveal_sum(v, message)
        except Refused as refused:
            return self._drop(v, refused.reason)

    def _catch_up(self) -> list[Outbound | Event]:
        """Takes what came ahead of this phase."""
        here = [entry for entry in self._ahead if self._collects(entry[0])]
        self._ahead = [entry for entry in self._ahead if not self._collects(entry[0])]
        out: list[Outbound | Event] = []
        for _, v, message in here:
            if v not in self._gone:
                out += self._take(v, message)
        return out

    def _on_advertise_keys(self, v: ClientId, message: AdvertiseKeys) -> list[Outbound | Event]:
        secrets = self._live()
        assert secrets.c is not None  # noqa: S101  # made by start()
        try:
            secrets.agreed[v] = secrets.c.agree(public_key(message.c_pk))
        except DegenerateKey:
            raise Refused(Reason.MALFORMED) from None
        self._c_pk[v] = message.c_pk
        return []

    def _on_share_input(self, v: ClientId, message: ShareInput) -> list[Outbound | Event]:
        secrets = self._live()
        if v not in secrets.agreed:
            return [self._ignored(v, Reason.LATE)]  # its key never came, or too late
        try:
            share = self._channel(v, self._u).open_share(secrets.agreed[v], message.ciphertext)
            secrets.shares[v] = decode_elements(share)
        except (Unopenable, WireError):
            return [ShareUnreadable(dealer=v)]
        return []

    def _on_confirm(self, v: ClientId, message: Confirm) -> list[Outbound | Event]:
        events: list[Event] = []
        self._vote(v, message.alive, message.signature, events)
        return [*events]

    def _on_reveal_sum(self, v: ClientId, message: RevealSum) -> list[Outbound | Event]:
        secrets = self._live()
        events = self._count_certificate(message)
        survivors = pack_bitmap(message.alive)
        if survivors != self._list or v not in secrets.agreed:
            return [*events, self._ignored(v, Reason.EQUIVOCATION)]
        channel = self._channel(v, self._u)
        try:
            total = channel.open_sum(secrets.agreed[v], message.ciphertext, survivors)
            secrets.sums[v] = decode_elements(total)
        except (Unopenable, WireError):
            return [*events, ShareUnreadable(dealer=v)]
        return [*events]

    def _on_abort(self, v: ClientId, body: Buffer, digest: bytes) -> list[Outbound | Event]:
        """A peer leaves. What it sent so far stays: an input on the agreed list is in the sum."""
        if self.final or v in self._gone:
            return []
        try:
            Abort.decode(body)
            reason = Reason.CLIENT_ABORT
        except WireError:
            reason = Reason.MALFORMED
        self._accepted[MessageType.ABORT, v] = digest
        return self._drop(v, reason)

    # -- the agreement ----------------------------------------------------------------------------

    def _vote(
        self, v: ClientId, alive: NDArray[np.bool_], signature: bytes, events: list[Event]
    ) -> None:
        """Counts v's signature on a list, if it is one that this peer could open."""
        try:
            proof = self._ballots.vote(v, alive, signature)
        except NoVote as error:
            events.append(self._ignored(v, error.reason))
            return
        if proof is not None:
            events.append(proof)

    def _count_certificate(self, message: RevealSum) -> list[Event]:
        """The signatures that somebody else collected; one that does not verify does not count.

        Returns:
            Proofs against those who are now known to have signed two lists.
        """
        events: list[Event] = []
        signers = [v for v, there in zip(self._cohort(), message.signers, strict=True) if there]
        for v, signature in zip(signers, message.signatures, strict=True):
            self._vote(v, message.alive, signature, events)
        return [event for event in events if not isinstance(event, FrameIgnored)]

    def _lies(self, v: ClientId, message: Message) -> list[Event]:
        """Proof that somebody signed two lists, from a message that counts for nothing else."""
        if isinstance(message, RevealSum):
            return self._count_certificate(message)
        events: list[Event] = []
        if isinstance(message, Confirm):
            self._vote(v, message.alive, message.signature, events)
        return [event for event in events if not isinstance(event, FrameIgnored)]

    # -- closing ----------------------------------------------------------------------------------

    def _present(self) -> tuple[ClientId, ...]:
        """Whose message of this phase counts, own included, ascending."""
        secrets = self._live()
        found: set[ClientId] = set()
        match self._phase:
            case Phase.ADVERTISE_KEYS:
                found = set(self._c_pk)
            case Phase.SHARE_INPUT:
                found = set(secrets.shares)
            case Phase.REPORT:
                found = set(self._reports)
            case Phase.CONFIRM:
                found = set(self._ballots.most()[1])
            case Phase.REVEAL_SUM:
                found = set(secrets.sums)
        return tuple(sorted(found))

    def _counts(self) -> list[tuple[int, int]]:
        """What closing this phase needs and what is there."""
        config, had = self._config, len(self._present())
        match self._phase:
            case Phase.ADVERTISE_KEYS:
                return [(max(config.k, config.n_min), had)]
            case Phase.SHARE_INPUT:
                return [(config.n_min, had)]
            case Phase.REPORT:
                common = int(self._common_dealers().sum()) if had else 0
                return [(config.k, had), (config.n_min, common)]
            case Phase.CONFIRM:
                self._learn_ahead()
                return [(config.k, len(self._present()))]
            case _:
                return [(config.t, had)]

    def _learn_ahead(self) -> None:
        """Signatures in the frames of peers who are a phase ahead count as well."""
        for _, v, message in self._ahead:
            if isinstance(message, RevealSum) and v not in self._gone:
                self._learned += self._count_certificate(message)

    def _common_dealers(self) -> NDArray[np.bool_]:
        """A_v = ∩ D_r over all reports: dealers whose shares every reporter holds."""
        common: NDArray[np.bool_] = np.logical_and.reduce(list(self._reports.values()))
        return common

    def _close_advertise_keys(self) -> list[Outbound | Event]:
        self._enter()
        return [*self._deal_if_complete(), *self._catch_up()]

    def _deal_if_complete(self) -> list[Outbound | Event]:
        """Deals the input, one share to each peer, once keys and input are there."""
        secrets = self._live()
        if self._phase is not Phase.SHARE_INPUT or secrets.words is None:
            return []
        words, secrets.words = secrets.words, None
        key = KeySchedule.expansion_key(self._random_bytes(SEED_BYTES), self._end.session, self._u)
        noise = coefficients(key, t=self._config.t, m=self._config.m)
        out: list[Outbound | Event] = []
        members = sorted(self._c_pk)
        shares = deal(words, noise, [self._config.cohort.index(v) for v in members])
        for v, share in zip(members, shares, strict=True):
            if v == self._u:
                secrets.shares[v] = share
                continue
            if v not in self._gone:
                channel = self._channel(self._u, v)
                sealed = channel.seal_share(secrets.agreed[v], encode_elements(share))
                body = ShareInput(ciphertext=sealed).encode()
                out.append(self._end.outbound(MessageType.SHARE_INPUT, body, v))
        self._dealt = True
        return out

    def _close_share_input(self) -> list[Outbound | Event]:
        dealers = self._flags(self._present())
        self._enter()
        self._reports[self._u] = dealers
        return self._send_all(MessageType.REPORT, Report(dealers=dealers).encode())

    def _close_report(self) -> list[Outbound | Event]:
        alive = self._common_dealers()
        statement = self._ballots.statement(alive)
        assert statement is not None  # noqa: S101  # own shares came from peers with keys
        signature = self._end.identity.sign(statement)
        self._enter()
        self._ballots.vote(self._u, alive, signature)
        body = Confirm(alive=alive, signature=signature).encode()
        return self._send_all(MessageType.CONFIRM, body)

    def _close_confirm(self) -> list[Outbound | Event]:
        """Reveals for the list that has q signatures, also if this peer signed another one."""
        secrets, learned = self._live(), self._learned
        survivors, votes = self._ballots.most()
        self._list = survivors
        members = self._members(survivors)
        missing = [v for v in members if v not in secrets.shares]
        if missing:  # it cannot reveal, and can still learn the sum from t others
            self._enter()
            return [*learned, *(ShareUnreadable(dealer=v) for v in missing), *self._catch_up()]
        total = np.zeros(self._config.m, dtype=np.uint32)
        for v in members:
            accumulate(total, secrets.shares[v])
        secrets.shares = {}
        secrets.sums[self._u] = total
        self._enter()
        signers = tuple(sorted(votes))
        out: list[Outbound | Event] = [*learned]
        for v in self._others():
            channel = self._channel(self._u, v)
            body = RevealSum(
                alive=self._flags(members),
                signers=self._flags(signers),
                signatures=tuple(votes[w] for w in signers),
                ciphertext=channel.seal_sum(secrets.agreed[v], encode_elements(total), survivors),
            ).encode()
            out.append(self._end.outbound(MessageType.REVEAL_SUM, body, v))
        return [*out, *self._catch_up()]

    def _close_reveal_sum(self) -> list[Outbound | Event]:
        """Leaves out wrong sums of shares and interpolates at zero."""
        config, secrets = self._config, self._live()
        assert self._list is not None  # noqa: S101  # agreed on when CONFIRM closed
        survivors, holders = self._members(self._list), self._present()
        positions = [config.cohort.index(v) for v in holders]
        sums = np.stack([secrets.sums[v] for v in holders])
        wrong = self._wrong(sums, positions)
        right = [row for row in range(len(holders)) if row not in wrong]
        vector = open_sum(sums[right], [positions[row] for row in right], config.t)
        # A corrupt peers can add a polynomial of degree below t that is zero at every honest
        # peer, unless there are t honest ones beside them.
        verified = len(right) >= config.t + config.A
        self._result = AggregateSum(
            vector=RingVector(vector, config.modulus),
            survivors=survivors,
            min_honest=guaranteed_honest(config, len(survivors)),
            mismatched_pairs=(
                tuple((u, holders[row]) for u in survivors for row in wrong) if verified else ()
            ),
            verified=verified,
            transcript_digest=self._end.transcript_digest(
                {key: d for key, d in self._accepted.items() if key[0] != MessageType.ABORT}
            ),
        )
        self._phase = Phase.DONE
        self._wipe()
        return [AggregateReady(aggregate=self._result)]

    def _wrong(self, sums: NDArray[np.uint32], positions: list[int]) -> tuple[int, ...]:
        try:
            return wrong_rows(sums, positions, self._config.t, os.urandom)
        except TooManyErrors as error:
            raise self._fail(
                InvalidShare(
                    f"the sums of shares of {len(positions)} peers do not fit together: {error}; "
                    "peers gave wrong sums or dealers wrong shares, no sum was opened, run a new "
                    "session",
                    culprits=(),
                ),
                Reason.INVALID_SHARE,
            ) from None

    def _enter(self) -> None:
        """Moves on to the next phase."""
        self._phase = next_phase(self.phase)

    # -- parts ------------------------------------------------------------------------------------

    def _cohort(self) -> tuple[ClientId, ...]:
        return self._config.cohort.ids

    def _others(self) -> list[ClientId]:
        """Peers that can be talked to: they advertised a key and are not gone."""
        return [v for v in sorted(self._c_pk) if v != self._u and v not in self._gone]

    def _flags(self, members: tuple[ClientId, ...]) -> NDArray[np.bool_]:
        there = set(members)
        return np.array([v in there for v in self._cohort()], dtype=np.bool_)

    def _members(self, survivors: bytes) -> tuple[ClientId, ...]:
        alive = Report.decode(survivors, n=self._config.n).dealers
        return tuple(v for v, there in zip(self._cohort(), alive, strict=True) if there)

    def _channel(self, sender: ClientId, recipient: ClientId) -> Channel:
        return Channel(
            session=self._end.session,
            sender=sender,
            recipient=recipient,
            sender_key=self._c_pk[sender],
            recipient_key=self._c_pk[recipient],
        )

    def _to(
        self, recipients: list[ClientId], kind: MessageType, body: Buffer
    ) -> list[Outbound | Event]:
        return [self._end.outbound(kind, body, v) for v in recipients]

    def _send_all(self, kind: MessageType, body: Buffer) -> list[Outbound | Event]:
        return [*self._to(self._others(), kind, body), *self._catch_up()]

    def _ignored(self, v: ClientId, reason: Reason) -> FrameIgnored:
        return FrameIgnored(sender=v, phase=str(self.phase), reason=reason)

    def _drop(self, v: ClientId, reason: Reason) -> list[Outbound | Event]:
        self._gone.add(v)
        return [ClientDropped(client=v, phase=str(self.phase), reason=reason)]

    # -- ends -------------------------------------------------------------------------------------

    def _live(self) -> _Secrets:
        if self._secrets is None:
            raise LocalProtocolError(f"the session is over ({self._phase})")
        return self._secrets

    def _fail(self, error: _F, reason: Reason) -> _F:
        """Ends the session with this error.

        The traceback up to here goes: its frames hold secrets, and errors are kept and logged.
        """
        error.outbound = tuple(self._give_up(reason))
        error.__context__ = error.__traceback__ = None
        return error

    def _give_up(self, reason: Reason) -> list[Outbound | Event]:
        started = self._phase is not None
        self._phase = Phase.ABORTED
        self._wipe()
        others = [v for v in self._cohort() if v != self._u and v not in self._gone]
        body = Abort(reason=reason).encode()
        return self._to(others, MessageType.ABORT, body) if started else []

    def _wipe(self) -> None:
        """Drops every secret; what Python cannot overwrite is left to the garbage collector.

        Emptied as well as dropped: a frame or a closure may still hold the container.
        """
        if self._secrets is not None:
            self._secrets.empty()
        self._secrets = None
        self._ahead = []

    def __repr__(self) -> str:
        return f"PeerSumPeer(client_id={self._u}, phase={self.phase}, <secrets>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a peer's machine cannot be pickled or copied: it would sign twice")

    def __getstate__(self) -> NoReturn:
        self.__reduce__()
