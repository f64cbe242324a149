"""The client's machine: one session, one input, one answer.

So et al. 2022, algorithm 1, clients' side. **Use once:** an answer for a second survivor list would
tell the server about the difference of two sums, and a second input under the same mask would give
away the difference of the two. Coded shares travel encrypted from client to client. Two
adversaries, chosen by the configuration. *Semi-honest*: a server that follows the protocol and sees
everything it receives, with up to T colluding clients. *Active*: a server that may also tell each
client something else; then keys are signed by identities from a directory that the server cannot
change, and a client answers for the one survivor list that it signed, once it has seen U signatures
on it, its own included. Either learns the sum over U3 and who took part.
The machine knows no floats and no model: it masks field elements. The sum it helps to open is not
differentially private by itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
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
from securefl.modular import RingVector
from securefl.primitives.channel import AgreementKey, DegenerateKey, Unopenable, public_key, sha256
from securefl.primitives.signing import IdentityDirectory, IdentityKey
from securefl.protocols.endpoints import ClientEnd
from securefl.protocols.lightsecagg.coding import MaskCode, accumulate
from securefl.protocols.lightsecagg.keys import SEED_BYTES, KeySchedule
from securefl.protocols.lightsecagg.messages import (
    AdvertiseKeys,
    EncodedShare,
    EncodedShares,
    KeyRoster,
    RecoveryRequest,
    RosterEntry,
    ShareClose,
    decode_elements,
    encode_elements,
    message_type,
)
from securefl.protocols.lightsecagg.params import check_policy
from securefl.protocols.lightsecagg.transitions import (
    MessageType,
    Phase,
    client_row,
    next_client_phase,
)
from securefl.protocols.machine import (
    Aborted,
    Event,
    MalformedMessage,
    Outbound,
    Reason,
    ShareUnreadable,
    abort_reason,
)
from securefl.protocols.messages import (
    Abort,
    SignedUnmaskRequest,
    SurvivorNotice,
    SurvivorSignature,
)
from securefl.protocols.policy import ClientPolicy, check_identities, check_membership
from securefl.round import SERVER, Adversary, ClientId, RoundConfig
from securefl.wire import Buffer, Frame, decode_frame, pack_bitmap

__all__ = ["LightSecAggClient"]

_Failure = PeerProtocolError | BelowThreshold
_F = TypeVar("_F", bound=_Failure)
_Slot = tuple[MessageType, int]


@dataclass(slots=True, kw_only=True, repr=False)
class _Secrets:
    """Everything that must be gone when the session is over. Fields empty as soon as possible.

    Attributes:
        c: the session's channel key.
        mask: z_u, uint32[m].
        words: the input, uint32[m].
        channel_keys: of the shares that are still to come, by dealer.
        shares: what arrived and opened, uint32[L] by dealer; the own share among them.
    """

    c: AgreementKey | None = None
    mask: NDArray[np.uint32] | None = None
    words: NDArray[np.uint32] | None = None
    channel_keys: dict[ClientId, bytes] = field(default_factory=dict)
    shares: dict[ClientId, NDArray[np.uint32]] = field(default_factory=dict)

    def empty(self) -> None:
        """Forgets everything."""
        self.__init__()  # type: ignore[misc]  # all fields have an empty default


class LightSecAggClient:
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
            for tests and vectors. Read in this order: c_sk 32 by ``start()``; the seed 16 on the
            roster.

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
        self._code = MaskCode(N=config.n, U=config.k, T=config.t, m=config.m)
        self._random_bytes = random_bytes
        self._phase = Phase.ADVERTISE_KEYS
        self._accepted: dict[_Slot, bytes] = {}
        self._own_entry: RosterEntry | None = None
        self._P: tuple[ClientId, ...] = ()
        self._U2: frozenset[ClientId] = frozenset()
        self._survivors: NDArray[np.bool_] | None = None
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
        """The phase it is in; DONE and ABORTED are final."""
        return self._phase

    @property
    def wants_input(self) -> bool:
        """Whether the shares are in and only :meth:`set_input` is missing."""
        waiting = self._phase is Phase.MASKED_INPUT_COLLECTION
        return waiting and self._shares_closed and not self._input_given

    @property
    def masked_input_emitted(self) -> bool:
        """Whether the masked input was handed out for sending (stays True afterwards)."""
        return self._emitted_input

    @property
    def _shares_closed(self) -> bool:
        return (MessageType.SHARE_CLOSE, 0) in self._accepted

    # -- calls ------------------------------------------------------------------------------------

    def start(self) -> list[Outbound | Event]:
        """Makes a fresh channel key and advertises it.

        Raises:
            LocalProtocolError: if called twice or after an abort.
        """
        if self._phase is not Phase.ADVERTISE_KEYS or self._secrets is None:
            raise LocalProtocolError(f"start() was called in phase {self._phase}; it opens it once")
        c = self._secrets.c = AgreementKey(self._random_bytes(32))
        out, signature = self._emit(
            AdvertiseKeys(c_pk=c.public).encode(), session=self._end.config_digest
        )
        self._own_entry = RosterEntry(self._u, c.public, signature)
        return [out]

    def set_input(self, vector: RingVector) -> list[Outbound | Event]:
        """Gives the input: once, at any time until it is needed.

        Args:
            vector: m entries modulo 2^31 - 1. It is copied. The sum wraps around this modulus;
                that it cannot is the business of whoever encodes.

        Returns:
            The MaskedInput frame if the shares were closed already, else nothing.

        Raises:
            LocalProtocolError: for a second input, a wrong length or modulus, or a phase in which
                no input is taken. Nothing changes then.
        """
        if self._input_given:
            raise LocalProtocolError(
                "the input was given already; masking two inputs would give away their difference"
            )
        if self._secrets is None or self._phase in (Phase.CONSISTENCY_CHECK, Phase.RECOVERY):
            raise LocalProtocolError(f"no input is taken in phase {self._phase}")
        if vector.modulus != self._config.modulus or len(vector) != self._config.m:
            raise LocalProtocolError(
                f"expected {self._config.m} entries modulo {self._config.modulus}, "
                f"found {len(vector)} modulo {vector.modulus}"
            )
        self._secrets.words = vector.values.astype(np.uint32)  # a copy
        self._input_given = True
        return self._mask_if_complete()

    def abort(self) -> list[Outbound | Event]:
        """Gives up and forgets all secrets. Does nothing in DONE and ABORTED."""
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
            MalformedMessage, RosterMismatch, DecryptionFailed, Equivocation, InvalidSignature,
                BelowThreshold: the session is over for this client: secrets wiped, phase ABORTED,
                the Abort frame to send in ``.outbound``.
        """
        parsed = decode_frame(frame)
        kind = message_type(parsed.type)
        before = kind in (MessageType.KEY_ROSTER, MessageType.ABORT)
        self._end.check_origin(parsed, sender=sender, before_session=before)
        slot = _slot(kind, parsed)
        digest = sha256(frame)
        if self._accepted.get(slot) == digest:
            return []
        over = self._secrets is None
        if over and (kind is MessageType.ABORT or slot not in self._accepted):
            raise self._end.unexpected(f"{kind.name} after the session ended ({self._phase})")
        if kind is MessageType.ABORT:
            return self._on_abort(parsed.body, digest)
        if slot in self._accepted:
            # Two different messages of one type: the server tells two stories.
            raise self._fail(
                Equivocation(f"a second, different {kind.name} arrived", culprits=[SERVER])
            )
        if not self._awaits(kind):
            raise self._end.unexpected(f"{kind.name} in phase {self._phase}")
        try:
            out = self._handle(kind, parsed.body)
        except WireError as error:
            malformed = MalformedMessage(f"{kind.name}: {error}", culprits=[SERVER])
            raise self._fail(malformed) from error.with_traceback(None)
        except (PeerProtocolError, BelowThreshold) as error:
            raise self._fail(error) from None
        self._accepted[slot] = digest
        return [*out, *self._mask_if_complete()]

    # -- frames -----------------------------------------------------------------------------------

    def _awaits(self, kind: MessageType) -> bool:
        """Whether this phase takes such a message now: no share after the shares were closed."""
        row = client_row(self._phase)
        if row is None or (self._shares_closed and row.accepts is MessageType.SHARE_CLOSE):
            return False
        return kind in (row.accepts, row.gathers)

    def _handle(self, kind: MessageType, body: Buffer) -> list[Outbound | Event]:
        handlers = {
            MessageType.KEY_ROSTER: self._on_key_roster,
            MessageType.ENCODED_SHARE: self._on_encoded_share,
            MessageType.SHARE_CLOSE: self._on_share_close,
            MessageType.SURVIVOR_NOTICE: self._on_survivor_notice,
            MessageType.RECOVERY_REQUEST: (
                self._on_signed_request if self._active else self._on_request
            ),
        }
        return handlers[kind](body)

    def _emit(self, body: Buffer, *, session: bytes) -> tuple[Outbound, bytes]:
        """The frame of this phase's row and its signature; moves on to the next phase."""
        row = client_row(self._phase)
        assert row is not None  # noqa: S101  # DONE and ABORTED emit nothing: callers checked
        self._phase = next_client_phase(self._phase, self._config.adversary)
        return self._end.outbound(row.emits, body, session=session)

    # -- phases -----------------------------------------------------------------------------------

    def _on_key_roster(self, body: Buffer) -> list[Outbound | Event]:
        """Checks U1, draws the mask, and deals its coded shares, one to each peer."""
        secrets = self._live()
        entries = KeyRoster.decode(body, most=self._config.n, signed=self._active).entries
        self._check_entries(entries)
        if len(entries) < self._config.n_min:
            raise self._below(self._config.n_min, len(entries))
        root = self._keys.roster_tree([e.encode() for e in entries]).root
        session = self._keys.session_id(self._end.config_digest, len(entries), root)
        agreed = {e.client: self._agree(e) for e in entries if e.client != self._u}
        shares = self._deal(session, [*agreed, self._u])
        ciphertexts = [
            self._keys.seal_shares(agreed[v], session, self._u, v, encode_elements(share))
            for v, share in zip(agreed, shares, strict=False)
        ]
        secrets.shares[self._u] = shares[-1].copy()
        for v, secret in agreed.items():
            secrets.channel_keys[v] = self._keys.channel_key(secret, session, v, self._u)
        secrets.c = None  # all that it was for is derived
        self._end.session, self._P = session, tuple(agreed)
        return [self._emit(EncodedShares(ciphertexts=ciphertexts).encode(), session=session)[0]]

    def _check_entries(self, entries: tuple[RosterEntry, ...]) -> None:
        ids = [entry.client for entry in entries]
        if any(a >= b for a, b in pairwise(ids)):
            raise RosterMismatch("the roster's ids are not ascending", culprits=[SERVER])
        strangers = [u for u in ids if u not in self._config.cohort]
        if strangers:
            raise RosterMismatch(
                f"the roster has {strangers[:3]}, who are not in the cohort", culprits=[SERVER]
            )
        if self._own_entry not in entries:
            raise RosterMismatch(
                "the roster does not show this client's own key as it sent it", culprits=[SERVER]
            )
        if len({entry.c_pk for entry in entries}) != len(entries):
            raise RosterMismatch("one public key appears twice in the roster", culprits=[SERVER])
        if self._active:
            for entry in entries:
                self._end.verify_advertised(
                    entry.client,
                    entry.signature,
                    kind=MessageType.ADVERTISE_KEYS,
                    body=AdvertiseKeys(c_pk=entry.c_pk).encode(),
                )

    def _agree(self, entry: RosterEntry) -> bytes:
        """X25519 with one peer's channel key: once, then never again."""
        c = self._live().c
        assert c is not None  # noqa: S101  # set by start()
        try:
            return c.agree(public_key(entry.c_pk))
        except DegenerateKey as error:
            raise RosterMismatch(
                f"client {entry.client} has a degenerate key: {error}", culprits=[entry.client]
            ) from None

    def _deal(self, session: bytes, holders: Sequence[ClientId]) -> NDArray[np.uint32]:
        """Draws z_u and the noise; one coded share per holder, uint32[#holders, L]."""
        seed = self._random_bytes(SEED_BYTES)
        blocks = self._code.blocks(self._keys.expansion_key(seed, session, self._u))
        self._live().mask = self._code.mask(blocks)
        return self._code.encode(blocks, [self._config.cohort.index(v) for v in holders])

    def _on_encoded_share(self, body: Buffer) -> list[Outbound | Event]:
        """Opens one peer's share; one that does not open is missing later, if its dealer stays."""
        secrets = self._live()
        message = EncodedShare.decode(body, L=self._code.L)
        v = message.dealer
        if v not in self._P:
            raise WireError(f"a share of {v}, who is no peer of this client")
        assert self._end.session is not None  # noqa: S101  # set on the roster
        key = secrets.channel_keys.pop(v)  # it opens one message
        try:
            plain = self._keys.open_shares(
                key, self._end.session, v, self._u, bytes(message.ciphertext)
            )
            secrets.shares[v] = decode_elements(plain, count=self._code.L)
        except (Unopenable, WireError):
            return [ShareUnreadable(dealer=v)]
        return []

    def _on_share_close(self, body: Buffer) -> list[Outbound | Event]:
        """Learns U2: whose shares were dealt in time."""
        U2 = self._members(ShareClose.decode(body, n=self._config.n).alive)
        if self._u not in U2 or not {*self._P, self._u} >= U2:
            raise Equivocation(
                "the list of dealers leaves this client out, or has clients without keys",
                culprits=[SERVER],
            )
        if len(U2) < self._config.n_min:
            raise self._below(self._config.n_min, len(U2))
        secrets = self._live()
        secrets.channel_keys = {}
        secrets.shares = {v: share for v, share in secrets.shares.items() if v in U2}
        self._U2 = U2
        return []

    def _mask_if_complete(self) -> list[Outbound | Event]:
        """Emits y_u = x_u + z_u once both the shares and the input are there."""
        secrets = self._secrets
        if (
            self._phase is not Phase.MASKED_INPUT_COLLECTION
            or not self._shares_closed
            or secrets is None
            or secrets.words is None
            or secrets.mask is None
            or self._end.session is None
        ):
            return []
        accumulate(secrets.words, secrets.mask)
        body = encode_elements(secrets.words)
        secrets.words = secrets.mask = None
        self._emitted_input = True
        return [self._emit(body, session=self._end.session)[0]]

    def _on_survivor_notice(self, body: Buffer) -> list[Outbound | Event]:
        """Signs the one survivor list that it will answer for."""
        assert self._end.session is not None and self._end.identity is not None  # noqa: S101  # after the roster; active only
        alive = SurvivorNotice.decode(body, n=self._config.n).alive
        self._check_survivors(alive)
        statement = self._keys.survivor_statement(self._end.session, pack_bitmap(alive))
        self._survivors = alive
        message = SurvivorSignature(signature=self._end.identity.sign(statement))
        return [self._emit(message.encode(), session=self._end.session)[0]]

    def _on_signed_request(self, body: Buffer) -> list[Outbound | Event]:
        """Active: answers for the list it signed, once U are seen to have signed it."""
        assert self._survivors is not None and self._end.session is not None  # noqa: S101  # set by notice and roster
        signatures = SignedUnmaskRequest.decode(body, most=len(self._P)).signatures
        signers = [v for v, _ in signatures]
        if any(a >= b for a, b in pairwise(signers)):
            raise InvalidSignature(
                "the signers are not ascending: one could count twice", culprits=[SERVER]
            )
        strangers = set(signers) - (self._members(self._survivors) - {self._u})
        if strangers:
            raise InvalidSignature(
                f"signatures of {sorted(strangers)[:3]}, who are not on the list besides this "
                "client",
                culprits=[SERVER],
            )
        statement = self._keys.survivor_statement(self._end.session, pack_bitmap(self._survivors))
        for v, signature in signatures:
            self._end.verify(v, signature, statement, "the list of survivors")
        if len(signers) + 1 < self._config.k:  # its own signature counts
            raise self._below(self._config.k, len(signers) + 1)
        return self._answer(self._survivors)

    def _on_request(self, body: Buffer) -> list[Outbound | Event]:
        """Semi-honest: answers for the list in the request."""
        alive = RecoveryRequest.decode(body, n=self._config.n).alive
        self._check_survivors(alive)
        return self._answer(alive)

    def _check_survivors(self, alive: NDArray[np.bool_]) -> None:
        """A list that this client is on, of dealers whose shares it holds, and long enough."""
        U3 = self._members(alive)
        if self._u not in U3:
            raise Equivocation("the survivor list leaves this client out", culprits=[SERVER])
        if not U3 <= self._U2:
            raise Equivocation(
                "the survivor list has clients who were not in U2", culprits=[SERVER]
            )
        needed = max(self._config.k, self._config.n_min)
        if len(U3) < needed:
            raise self._below(needed, len(U3))
        missing = sorted(U3 - self._live().shares.keys())
        if missing:
            raise DecryptionFailed(
                f"the shares of {len(missing)} survivors never came or did not open, first "
                f"{missing[:3]}: this client cannot answer for the list",
                culprits=missing,
            )

    def _answer(self, alive: NDArray[np.bool_]) -> list[Outbound | Event]:
        """S_u = Σ f_i(α_u) over U3: once, then every share is gone."""
        assert self._end.session is not None  # noqa: S101  # set on the roster
        shares = self._live().shares
        total = np.zeros(self._code.L, dtype=np.uint32)
        for v in self._members(alive):
            accumulate(total, shares[v])
        out, _ = self._emit(encode_elements(total), session=self._end.session)
        self._wipe()
        return [out]

    def _members(self, present: NDArray[np.bool_]) -> frozenset[ClientId]:
        cohort = self._config.cohort.ids
        return frozenset(u for u, there in zip(cohort, present, strict=True) if there)

    def _on_abort(self, body: Buffer, digest: bytes) -> list[Outbound | Event]:
        try:
            reason = Abort.decode(body).reason
        except WireError as error:
            raise self._fail(MalformedMessage(f"ABORT: {error}", culprits=[SERVER])) from error
        self._accepted[MessageType.ABORT, 0] = digest
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
        return f"LightSecAggClient(client_id={self._u}, phase={self._phase}, <secrets>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a client's machine cannot be pickled or copied: it would answer twice")

    def __getstate__(self) -> NoReturn:
        self.__reduce__()


def _slot(kind: MessageType, frame: Frame) -> _Slot:
    """What may come once: a message of each type, and a coded share of each dealer."""
    if kind is MessageType.ENCODED_SHARE and len(frame.body) >= 4:
        return kind, int.from_bytes(frame.body[:4], "little")
    return kind, 0
