"""The server's machine: multiplies ciphertexts, asks the deciders, gives out the opened sum.

It has no key. A client whose submission is malformed, unsigned, no ciphertext or not proved is
excluded by name and the round goes on without it; a share holder whose partials are wrong is named
likewise. The driver decides when a phase ends. It learns the sum and who took part; it does not
make the sum private.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from securefl.errors import (
    BelowThreshold,
    ConfigurationError,
    DecryptionRefused,
    LocalProtocolError,
    PeerProtocolError,
    WireError,
)
from securefl.modular import RingVector, ring_dtype
from securefl.primitives import rlwe
from securefl.primitives.bigint import Integer
from securefl.primitives.channel import sha256
from securefl.primitives.paillier import BadPlaintext
from securefl.primitives.paillier.block import BlockMode
from securefl.primitives.paillier.threshold import NotAPlaintext, ThresholdPublicKey
from securefl.primitives.signing import IdentityDirectory
from securefl.protocols.endpoints import ServerEnd
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
from securefl.protocols.messages import Abort
from securefl.protocols.paillier.checking import BadSubmission, SubmissionCheck
from securefl.protocols.paillier.decryptor import partial_context
from securefl.protocols.paillier.messages import (
    CheckRequest,
    Contributor,
    MessageType,
    Opened,
    OpenRequest,
    Partials,
    Phase,
    ProductStatement,
    Refusal,
    RefusalReason,
    list_digest,
    message_type,
    product_digest,
)
from securefl.protocols.paillier.terms import PaillierTerms, check_config
from securefl.round import SERVER, AggregateSum, ClientId, RoundConfig, SurvivorSets
from securefl.wire import Frame, add_packed, decode_frame, packed_bytes

__all__ = ["PaillierServer"]

_BY_REASON = {
    RefusalReason.BAD_SIGNATURE: Reason.INVALID_SIGNATURE,
    RefusalReason.BAD_PROOF: Reason.INVALID_SHARE,
}


class PaillierServer:
    """The server's side of one session (sans-IO).

    Args:
        config: the round's configuration; every party must have the same.
        terms: key, packing and deciders.
        directory: everybody's public identity keys, deciders included.
        assume_no_corruption: allow A = 0 in the configuration.

    Raises:
        ConfigurationError: if the configuration is unsafe, or identities are missing.
    """

    def __init__(
        self,
        config: RoundConfig,
        *,
        terms: PaillierTerms,
        directory: IdentityDirectory,
        assume_no_corruption: bool = False,
    ) -> None:
        check_config(config, terms, assume_no_corruption=assume_no_corruption)
        unknown = [u for u in terms.deciders if u not in directory]
        if unknown:
            raise ConfigurationError(f"deciders {unknown} have no identity in the directory")
        self._config, self._terms = config, terms
        self._end = ServerEnd(config, directory=directory)
        self._check = SubmissionCheck(config, terms, directory)
        self._phase = Phase.CHECK_IN
        self._accepted: dict[tuple[MessageType, ClientId], bytes] = {}
        self._replied: set[ClientId] = set()
        self._gone: set[ClientId] = set()
        self._U1: tuple[ClientId, ...] | None = None
        self._U3: tuple[ClientId, ...] | None = None
        self._frames: dict[ClientId, bytes] = {}
        self._waiting: dict[ClientId, tuple[tuple[int, ...], bytes]] = {}
        self._bodies: dict[ClientId, bytes] = {}
        self._total: NDArray[np.uint64] | None = None
        self._product: list[Integer] | None = None
        self._block = b""
        self._contributors: tuple[Contributor, ...] = ()
        self._listed = b""
        self._statements: dict[ClientId, bytes] = {}
        self._partials: dict[int, tuple[int, ...]] = {}
        self._slots: Opened | None = None
        self._refusals: dict[ClientId, RefusalReason] = {}
        self._result: AggregateSum | None = None

    # -- what a driver may ask ------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """The phase it is in; DONE and ABORTED are final."""
        return self._phase

    @property
    def phases(self) -> tuple[str, ...]:
        """Names of the phases of a session under these terms, in order."""
        return tuple(map(str, self._order))

    @property
    def _order(self) -> tuple[Phase, ...]:
        checking = (Phase.CHECKING,) if self._terms.witnesses else ()
        return (Phase.CHECK_IN, Phase.MASKED_INPUT_COLLECTION, *checking, Phase.OPENING)

    @property
    def final(self) -> bool:
        """Whether nothing can change any more."""
        return self._phase in (Phase.DONE, Phase.ABORTED)

    @property
    def expected(self) -> tuple[ClientId, ...]:
        """Who may still send in this phase or has done so."""
        if self.final:
            return ()
        everybody = {
            Phase.CHECK_IN: self._config.cohort.ids,
            Phase.MASKED_INPUT_COLLECTION: self._U1 or (),
            Phase.CHECKING: self._terms.witnesses,
            Phase.OPENING: self._terms.openers,
        }[self._phase]
        return tuple(u for u in everybody if u not in self._gone or u in self._replied)

    @property
    def ready(self) -> bool:
        """Whether everybody who can still reply in this phase has done so."""
        return not self.final and self._replied.issuperset(self.expected)

    @property
    def sufficient(self) -> bool:
        """Whether closing the phase now would meet its threshold."""
        return not self.final and len(self._replied) >= self._needed

    @property
    def _needed(self) -> int:
        if self._phase is Phase.CHECKING:
            return self._terms.statements
        if self._phase is Phase.OPENING:
            return self._terms.openers_needed
        return self._config.n_min

    @property
    def survivors(self) -> SurvivorSets:
        """Who checked in (U1 = U2) and whose inputs are in the sum (U3 = U4 = U5)."""
        U1, U3 = self._U1, self._U3
        return SurvivorSets(U1=U1, U2=U1, U3=U3, U4=U3, U5=U3)

    @property
    def result(self) -> AggregateSum | None:
        """The opened sum, once there is one."""
        return self._result

    # -- frames in --------------------------------------------------------------------------------

    def receive(self, frame: bytes, sender: ClientId | None = None) -> list[Outbound | Event]:
        """Takes a frame of a client or a decider.

        Returns:
            Events. A byte-identical repeat returns nothing; another message of a type already
            accepted leaves the first in force (``ClientEquivocated``); bad content drops its
            sender (``ClientDropped``); a late frame is discarded (``ClientDropped``, LATE).

        Raises:
            WireError: bytes that are no frame of this library; nothing changes.
            UnexpectedMessage: a frame for another phase, round or session; nothing changes.
        """
        parsed = decode_frame(frame)
        kind = message_type(parsed.type)
        u = self._origin(parsed, sender)
        digest = sha256(frame)
        first = self._accepted.get((kind, u))
        if first is not None and hmac.compare_digest(first, digest):
            return []
        if self._phase is Phase.ABORTED:
            raise self._end.unexpected(u, f"{kind.name} after the session was aborted")
        if self._end.forged(parsed, u) is not None:
            # Nobody loses a place for a frame that somebody else may have written.
            raise self._end.unexpected(u, f"{kind.name} with a wrong signature")
        if first is not None and kind is not MessageType.ABORT:
            return [ClientEquivocated(client=u, phase=str(self._phase))]
        if kind is MessageType.ABORT:
            return self._on_abort(u, digest)
        if self._closed(kind):
            return [ClientDropped(client=u, phase=str(self._phase), reason=Reason.LATE)]
        if kind not in self._collects or u not in self.expected:
            raise self._end.unexpected(u, f"{kind.name} in phase {self._phase}")
        try:
            counted = self._handle(kind, u, parsed, frame)
        except (WireError, Refused) as error:
            self._gone.add(u)
            reason = error.reason if isinstance(error, Refused) else Reason.MALFORMED
            return [ClientDropped(client=u, phase=str(self._phase), reason=reason)]
        self._accepted[kind, u] = digest
        if kind is MessageType.REFUSAL:
            self._gone.add(u)
            return [ClientDropped(client=u, phase=str(self._phase), reason=Reason.CLIENT_ABORT)]
        if counted:
            self._replied.add(u)
        return []

    def _origin(self, frame: Frame, sender: ClientId | None) -> ClientId:
        u, config = frame.sender, self._config
        if sender is not None and sender != u:
            raise self._end.unexpected(sender, f"a frame that claims to come from {u}")
        if u not in config.cohort and u not in self._terms.deciders:
            raise self._end.unexpected(u, "a frame of somebody who takes no part")
        if frame.protocol is not config.protocol or frame.round_id != config.round_id:
            raise self._end.unexpected(u, f"protocol {frame.protocol.name} round {frame.round_id}")
        if not frame.signature:
            raise self._end.unexpected(u, "an unsigned frame")
        if frame.session != self._end.config_digest:
            raise self._end.unexpected(u, "a frame of another session")
        return u

    @property
    def _collects(self) -> tuple[MessageType, ...]:
        answer = MessageType.PARTIALS if self._terms.key_holder is None else MessageType.OPENED
        return {
            Phase.CHECK_IN: (MessageType.CHECK_IN,),
            Phase.MASKED_INPUT_COLLECTION: (MessageType.SUBMISSION, *self._with_body),
            Phase.CHECKING: (MessageType.PRODUCT_STATEMENT, MessageType.REFUSAL),
            Phase.OPENING: (answer, MessageType.REFUSAL),
        }.get(self._phase, ())

    @property
    def _with_body(self) -> tuple[MessageType, ...]:
        hybrid = self._terms.mode is BlockMode.HYBRID
        return (MessageType.MASKED_BODY,) if hybrid else ()

    def _closed(self, kind: MessageType) -> bool:
        """Whether the phase that collects this type of message is over."""
        when = {
            MessageType.CHECK_IN: Phase.CHECK_IN,
            MessageType.SUBMISSION: Phase.MASKED_INPUT_COLLECTION,
            MessageType.MASKED_BODY: Phase.MASKED_INPUT_COLLECTION,
            MessageType.PRODUCT_STATEMENT: Phase.CHECKING,
            MessageType.PARTIALS: Phase.OPENING,
            MessageType.OPENED: Phase.OPENING,
        }.get(kind)
        if when is None or when not in self._order:
            return False
        order = self._order
        now = len(order) if self._phase is Phase.DONE else order.index(self._phase)
        return order.index(when) < now

    def _handle(self, kind: MessageType, u: ClientId, frame: Frame, data: bytes) -> bool:
        body = bytes(frame.body)
        handlers: dict[MessageType, Callable[[], bool]] = {
            MessageType.CHECK_IN: lambda: self._on_check_in(body),
            MessageType.SUBMISSION: lambda: self._on_submission(u, body, data),
            MessageType.MASKED_BODY: lambda: self._on_masked_body(u, body),
            MessageType.PRODUCT_STATEMENT: lambda: self._on_statement(u, body, data),
            MessageType.OPENED: lambda: self._on_opened(body),
            MessageType.PARTIALS: lambda: self._on_partials(u, body),
            MessageType.REFUSAL: lambda: self._on_refusal(u, body),
        }
        return handlers[kind]()

    def _on_check_in(self, body: bytes) -> bool:
        if body:
            raise WireError(f"a check-in is empty, found {len(body)} bytes")
        return True

    def _on_submission(self, u: ClientId, body: bytes, data: bytes) -> bool:
        try:
            ciphertexts = self._check.content(u, body)
        except BadSubmission as error:
            raise Refused(_BY_REASON.get(error.reason, Reason.MALFORMED)) from None
        if not self._with_body:
            return self._add(u, ciphertexts, data)
        self._waiting[u] = (ciphertexts, data)
        return self._join(u)

    def _on_masked_body(self, u: ClientId, body: bytes) -> bool:
        if len(body) != packed_bytes(self._config.m, rlwe.MODULUS_BITS):
            raise WireError(f"a masked body of {len(body)} bytes")
        self._bodies[u] = body
        return self._join(u)

    def _join(self, u: ClientId) -> bool:
        """Counts a client once both of its frames are here and belong together."""
        if u not in self._waiting or u not in self._bodies:
            return False
        ciphertexts, data = self._waiting.pop(u)
        body = self._bodies.pop(u)
        if sha256(body) != self._check.parse(bytes(decode_frame(data).body)).body_digest:
            raise Refused(Reason.EQUIVOCATION)
        if self._total is None:
            self._total = np.zeros(self._config.m, dtype=np.uint64)
        add_packed(self._total, body, rlwe.MODULUS_BITS)
        return self._add(u, ciphertexts, data)

    def _add(self, u: ClientId, ciphertexts: tuple[int, ...], data: bytes) -> bool:
        self._product = self._check.multiply(self._product, ciphertexts)
        self._frames[u] = data
        return True

    def _on_statement(self, u: ClientId, body: bytes, data: bytes) -> bool:
        found = ProductStatement.decode(body)
        mine = (self._listed, product_digest(self._block), len(self._contributors))
        if (found.list_digest, found.product_digest, found.count) != mine:
            raise Refused(Reason.EQUIVOCATION)
        self._statements[u] = data
        return True

    def _on_opened(self, body: bytes) -> bool:
        layout = self._terms.block_layout
        dimension = self._terms.block_dimension(self._config.m)
        opened = Opened.decode(body, m=dimension, width=layout.width)
        if opened.list_digest != self._listed or opened.count != len(self._contributors):
            raise Refused(Reason.EQUIVOCATION)
        most = 2 * layout.bound * opened.count
        if opened.slots.size and int(opened.slots.max()) > most:
            raise Refused(Reason.MALFORMED)
        self._slots = opened
        return True

    def _on_partials(self, u: ClientId, body: bytes) -> bool:
        key, degree = self._terms.key, self._terms.degree
        assert isinstance(key, ThresholdPublicKey)  # noqa: S101  # only then is it collected
        product = [] if self._product is None else [int(c) for c in self._product]
        found = Partials.decode(body, count=len(product), width=degree.ciphertext_bytes)
        if found.list_digest != self._listed:
            raise Refused(Reason.EQUIVOCATION)
        index = self._terms.share_holders.index(u) + 1
        if found.proof is not None:
            bound = sha256(self._listed, product_digest(self._block))
            context = partial_context(self._end.config_digest, bound)
            if not key.verify(index, product, found.partials, found.proof, context):
                raise Refused(Reason.INVALID_SHARE)
        self._partials[index] = found.partials
        return True

    def _on_refusal(self, u: ClientId, body: bytes) -> bool:
        self._refusals[u] = Refusal.decode(body).reason
        return False

    def _on_abort(self, u: ClientId, digest: bytes) -> list[Outbound | Event]:
        """Somebody leaves. An input that was added stays in the sum."""
        if self.final or u in self._gone:
            return []
        self._accepted[MessageType.ABORT, u] = digest
        self._gone.add(u)
        return [ClientDropped(client=u, phase=str(self._phase), reason=Reason.CLIENT_ABORT)]

    # -- closing ----------------------------------------------------------------------------------

    def close_phase(self) -> list[Outbound | Event]:
        """Ends the phase with whoever has replied.

        Returns:
            Frames for the next phase, and events; after OPENING the event ``AggregateReady``.

        Raises:
            LocalProtocolError: in DONE and ABORTED.
            BelowThreshold: too few are left; phase ABORTED, Abort frames in ``.outbound``.
            DecryptionRefused: deciders refused, or the opened sum cannot be one of honest
                submissions; phase ABORTED, no sum.
        """
        if self.final:
            raise LocalProtocolError(f"close_phase() was called in phase {self._phase}")
        phase = self._phase
        if not self.sufficient:
            raise self._shortage(phase)
        events: list[Outbound | Event] = [
            ClientDropped(client=u, phase=str(phase), reason=Reason.NO_REPLY)
            for u in self.expected
            if u not in self._replied
        ]
        members = tuple(sorted(self._replied))
        out = {
            Phase.CHECK_IN: self._close_check_in,
            Phase.MASKED_INPUT_COLLECTION: self._close_collection,
            Phase.CHECKING: self._ask_openers,
            Phase.OPENING: self._open,
        }[phase](members)
        self._replied = set()
        order = self._order
        following = order.index(phase) + 1
        self._phase = order[following] if following < len(order) else Phase.DONE
        return [*events, PhaseClosed(phase=str(phase), members=members), *out]

    def _shortage(self, phase: Phase) -> PeerProtocolError | BelowThreshold:
        refused = {u: r for u, r in self._refusals.items() if u in self._gone}
        error: PeerProtocolError | BelowThreshold
        if refused and phase in (Phase.CHECKING, Phase.OPENING):
            names = ", ".join(f"{u}: {r.name}" for u, r in sorted(refused.items()))
            error = DecryptionRefused(
                f"{self._needed} deciders must agree in phase {phase}, {len(self._replied)} did; "
                f"refusals: {names}",
                reason=next(iter(refused.values())).name,
                culprits=[SERVER],
            )
        else:
            error = BelowThreshold(needed=self._needed, had=len(self._replied), phase=str(phase))
        error.outbound = tuple(self._abort(Reason.BELOW_THRESHOLD))
        return error

    def _abort(self, reason: Reason) -> list[Outbound]:
        parties = (*self._config.cohort.ids, *self._terms.deciders)
        alive = [u for u in parties if u not in self._gone]
        self._phase, self._product, self._frames = Phase.ABORTED, None, {}
        return self._end.to_all(
            alive,
            MessageType.ABORT,
            Abort(reason=reason).encode(),
            session=self._end.config_digest,
        )

    def _close_check_in(self, members: tuple[ClientId, ...]) -> list[Outbound | Event]:
        self._U1 = members
        return self._to(members, MessageType.ROUND_OPEN, self._terms.digest())

    def _close_collection(self, members: tuple[ClientId, ...]) -> list[Outbound | Event]:
        self._U3 = members
        self._contributors = tuple(Contributor(u, sha256(self._frames[u])) for u in members)
        self._listed = list_digest(self._end.config_digest, self._contributors)
        self._block = self._check.product_block(self._product or [], terms=len(members))
        first = self._terms.witnesses or (
            self._terms.share_holders if self._terms.key_holder is None else ()
        )
        if not first:  # key-holder mode without a witness, permitted by its token only
            return self._ask_openers(members)
        request = CheckRequest(
            submissions=tuple(self._frames[u] for u in members),
            product_digest=product_digest(self._block),
        )
        self._frames = {}
        return self._to(first, MessageType.CHECK_REQUEST, request.encode())

    def _ask_openers(self, members: tuple[ClientId, ...]) -> list[Outbound | Event]:
        del members
        request = OpenRequest(
            contributors=self._contributors,
            statements=tuple(self._statements[u] for u in sorted(self._statements)),
            block=self._block,
        )
        self._frames = {}
        return self._to(self._terms.openers, MessageType.OPEN_REQUEST, request.encode())

    def _open(self, members: tuple[ClientId, ...]) -> list[Outbound | Event]:
        del members
        layout, config, count = self._terms.block_layout, self._config, len(self._contributors)
        if self._slots is not None:
            sums = self._slots.slots.astype(np.int64) - count * layout.bound
        else:
            try:
                sums = layout.unpack(
                    self._combine(),
                    count=count,
                    dimension=self._terms.block_dimension(config.m),
                    slots=layout.slots(self._terms.degree),
                )
            except (BadPlaintext, NotAPlaintext):
                error = DecryptionRefused(
                    "the opened number is no sum of honest submissions: somebody wrote across "
                    "slots; no sum is given out",
                    reason=RefusalReason.BAD_PLAINTEXT.name,
                    culprits=[],
                )
                error.outbound = tuple(self._abort(Reason.MALFORMED))
                raise error from None
        shape = self._terms.rlwe_shape(config.m)
        if shape is not None and self._total is not None:
            a = self._terms.public_polynomials(config)
            sums = rlwe.unmask(self._total, shape, a, sums, count=count)
        self._result = AggregateSum(
            vector=RingVector(
                (sums & np.int64(config.modulus - 1)).astype(ring_dtype(config.modulus)),
                config.modulus,
            ),
            survivors=self._U3 or (),
            min_honest=count - config.A,
            transcript_digest=self._end.transcript_digest(
                {(int(kind), u): digest for (kind, u), digest in self._accepted.items()}
            ),
        )
        self._product = None
        return [AggregateReady(aggregate=self._result)]

    def _combine(self) -> list[int]:
        key = self._terms.key
        assert isinstance(key, ThresholdPublicKey)  # noqa: S101  # or the key holder had answered
        return key.combine(self._partials) if self._product else []

    def _to(
        self, recipients: tuple[ClientId, ...], kind: MessageType, body: bytes
    ) -> list[Outbound | Event]:
        return [*self._end.to_all(recipients, kind, body, session=self._end.config_digest)]

    def __repr__(self) -> str:
        return f"PaillierServer({self._phase})"
