"""The deciders: a witness without a key, a key holder, share holders. Each one refuses.

Adversary: the server, who asks. A decider opens (or vouches for) one contributor list per session
and never a second one, also after a restart: its round book is written before it answers. It
recomputes what it can see, enforces its *own* minimum of clients, and gives away nothing but a
reason code when it refuses. The key holder sees products only: a message that carries submissions
is refused, because whoever holds the key and single ciphertexts reads updates.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from securefl.errors import ConfigurationError, DecryptionRefused, WireError
from securefl.primitives import bigint
from securefl.primitives.channel import sha256
from securefl.primitives.paillier import BadPlaintext, SecretKey
from securefl.primitives.paillier.threshold import KeyShare, ThresholdPublicKey
from securefl.primitives.signing import BadSignature, IdentityDirectory, IdentityKey
from securefl.protocols.endpoints import ClientEnd
from securefl.protocols.keys import SessionKeys
from securefl.protocols.machine import Event, Outbound
from securefl.protocols.paillier.book import RoundBook
from securefl.protocols.paillier.checking import BadSubmission, SubmissionCheck
from securefl.protocols.paillier.messages import (
    CheckRequest,
    Contributor,
    MessageType,
    Opened,
    OpenRequest,
    Partials,
    ProductStatement,
    Refusal,
    RefusalReason,
    list_digest,
    message_type,
    product_digest,
)
from securefl.protocols.paillier.terms import PaillierTerms, check_config
from securefl.round import SERVER, ClientId, RoundConfig
from securefl.wire import Frame, decode_frame, signed_content

__all__ = ["DeciderPolicy", "KeyHolder", "ShareHolder", "Witness"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeciderPolicy:
    """What a decider demands, whatever the server proposes.

    Attributes:
        min_clients: fewest contributors of a sum it helps to open.
        max_colluding_clients: how many of them may belong to the server.

    Raises:
        ConfigurationError: unless min_clients >= max_colluding_clients + 2: two honest inputs must
            hide each other.
    """

    min_clients: int = 3
    max_colluding_clients: int = 1

    def __post_init__(self) -> None:
        if self.max_colluding_clients < 0 or self.min_clients < self.max_colluding_clients + 2:
            raise ConfigurationError(
                f"min_clients = {self.min_clients} must be at least max_colluding_clients + 2 = "
                f"{self.max_colluding_clients + 2}: two honest inputs hide each other"
            )


class _No(Exception):
    """A decision against. Stays inside this module."""

    def __init__(self, reason: RefusalReason) -> None:
        super().__init__(reason.name)
        self.reason = reason


class _Decider(ABC):
    """What all deciders share: origin, policy, book, one answer per session."""

    _ACCEPTS: MessageType

    def __init__(
        self,
        party: ClientId,
        config: RoundConfig,
        *,
        terms: PaillierTerms,
        identity: IdentityKey,
        directory: IdentityDirectory,
        book: RoundBook,
        policy: DeciderPolicy,
    ) -> None:
        check_config(config, terms, assume_no_corruption=True)
        unknown = [u for u in (*config.cohort, *terms.deciders) if u not in directory]
        if unknown:
            raise ConfigurationError(
                f"{len(unknown)} clients or deciders have no identity in the directory, first "
                f"{unknown[:3]}"
            )
        if directory.public(party) != identity.public:
            raise ConfigurationError(f"the directory lists another identity key for {party}")
        self._end = ClientEnd(party, config, identity=identity, directory=directory)
        self._config, self._terms, self._directory = config, terms, directory
        self._keys = SessionKeys(config.protocol)
        self._book, self._policy = book, policy
        self._check = SubmissionCheck(config, terms, directory)
        self._answers: dict[bytes, list[Outbound | Event]] = {}
        self._bound: bytes | None = None
        self._answered = False
        self._aborted = False

    # -- the surface that drivers know of clients ---------------------------------------------

    @property
    def client_id(self) -> ClientId:
        """Whose side this is."""
        return self._end.u

    @property
    def phase(self) -> str:
        """``unseen``, ``answered`` or ``aborted``."""
        return "answered" if self._answered else "aborted" if self._aborted else "unseen"

    @property
    def wants_input(self) -> bool:
        """A decider has no input."""
        return False

    @property
    def masked_input_emitted(self) -> bool:
        """A decider has no input."""
        return False

    def start(self) -> list[Outbound | Event]:
        """A decider waits to be asked."""
        return []

    def set_input(self, vector: object) -> list[Outbound | Event]:
        """A decider has no input."""
        raise ConfigurationError("a decider has no input")

    def abort(self) -> list[Outbound | Event]:
        """Agrees to nothing from now on; what was answered can still be asked for again."""
        self._aborted = not self._answered
        return []

    def receive(self, frame: bytes, sender: ClientId | None = None) -> list[Outbound | Event]:
        """Takes a request of the server.

        Returns:
            The signed answer. The identical request gets the identical answer again.

        Raises:
            DecryptionRefused: the request is not one this party agrees to; the refusal to send is
                in ``.outbound``.
            WireError, UnexpectedMessage: a frame that is not for this session; nothing changes.
        """
        parsed = decode_frame(frame)
        kind = message_type(parsed.type)
        self._end.check_origin(parsed, sender=sender, before_session=True)
        if kind is MessageType.ABORT:
            return self.abort()
        digest = sha256(frame)
        if digest in self._answers:
            return list(self._answers[digest])
        if self._aborted:
            raise self._end.unexpected(f"{kind.name} after the session was aborted")
        try:
            if kind is not self._ACCEPTS:
                # Also what a key holder answers to a message that carries submissions.
                raise _No(RefusalReason.BAD_FRAME)
            out = self._decide(bytes(parsed.body))
        except _No as no:
            raise self._refusal(no.reason) from None
        except WireError:
            raise self._refusal(RefusalReason.BAD_FRAME) from None
        self._answers[digest] = out
        self._answered = True
        return list(out)

    def _refusal(self, reason: RefusalReason) -> DecryptionRefused:
        out = self._send(MessageType.REFUSAL, Refusal(reason=reason).encode())
        return DecryptionRefused(
            f"decider {self._end.u} refused what the server asked for: {reason.name}",
            reason=reason.name,
            culprits=[SERVER],
            outbound=[out],
        )

    def _send(self, kind: MessageType, body: bytes) -> Outbound:
        return self._end.outbound(kind, body, session=self._end.config_digest)[0]

    @abstractmethod
    def _decide(self, body: bytes) -> list[Outbound | Event]:
        """The answer to a request's body, or ``_No``."""

    # -- parts of a decision, in the order in which they are made ---------------------------------

    def _admit(self, contributors: Sequence[Contributor]) -> bytes:
        """The list's digest, if the list is well formed and large enough."""
        ids = [c.client for c in contributors]
        if any(a >= b for a, b in pairwise(ids)) or not all(u in self._config.cohort for u in ids):
            raise _No(RefusalReason.BAD_LIST)
        if len(ids) < max(self._policy.min_clients, self._config.n_min):
            raise _No(RefusalReason.TOO_FEW)
        if len(ids) > self._terms.layout.max_clients:
            raise _No(RefusalReason.TOO_MANY)
        return list_digest(self._end.config_digest, contributors)

    def _recompute(self, request: CheckRequest) -> tuple[list[Contributor], bytes]:
        """Checks every submission; gives the contributors and the product block."""
        frames = []
        for data in request.submissions:
            try:
                frames.append(decode_frame(data))
            except WireError:
                raise _No(RefusalReason.BAD_FRAME) from None
        contributors = [
            Contributor(f.sender, sha256(d))
            for f, d in zip(frames, request.submissions, strict=True)
        ]
        self._admit(contributors)  # the cheap checks before the expensive ones
        total = None
        for data in request.submissions:
            try:
                total = self._check.multiply(total, self._check.frame(data).ciphertexts)
            except BadSubmission as error:
                raise _No(error.reason) from None
        block = self._check.product_block(total or [], terms=len(contributors))
        if product_digest(block) != request.product_digest:
            raise _No(RefusalReason.PRODUCT_MISMATCH)
        return contributors, block

    def _bind(self, digest: bytes) -> None:
        """Durably, before any answer."""
        if not self._book.bind(self._end.config_digest, self._config.round_id, digest):
            raise _No(RefusalReason.ROUND_BOUND)
        self._bound = digest

    def _check_statements(self, request: OpenRequest, listed: bytes) -> None:
        """Enough different witnesses signed this list with this product."""
        product, agreed = product_digest(request.block), set()
        for data in request.statements:
            try:
                frame = decode_frame(data)
                self._verify_witness(frame)
                statement = ProductStatement.decode(frame.body)
            except (WireError, BadSignature):
                raise _No(RefusalReason.BAD_SIGNATURE) from None
            if statement.list_digest == listed and statement.count == len(request.contributors):
                if statement.product_digest != product:
                    raise _No(RefusalReason.PRODUCT_MISMATCH)
                agreed.add(frame.sender)
        needed = self._terms.statements if self._terms.witnesses else 0
        if len(agreed) < needed:
            raise _No(RefusalReason.NO_WITNESS)

    def _verify_witness(self, frame: Frame) -> None:
        config = self._config
        fits = (
            frame.protocol is config.protocol
            and frame.type == MessageType.PRODUCT_STATEMENT
            and frame.round_id == config.round_id
            and frame.session == self._end.config_digest
            and frame.sender in self._terms.witnesses
        )
        if not fits:
            raise BadSignature("not a statement of a witness of this session")
        statement = self._keys.frame_statement(SERVER, signed_content(frame))
        self._directory.verify(frame.sender, frame.signature, statement)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._end.u}, {self.phase})"

    def __reduce__(self) -> str:
        raise TypeError("a decider cannot be pickled or copied")


class Witness(_Decider):
    """Recomputes the product from the clients' signed submissions and signs what it saw.

    It has no key: alone it learns nothing, with the server it learns nothing more than the server.
    Server and all required witnesses together can have one client's ciphertext opened.
    """

    _ACCEPTS = MessageType.CHECK_REQUEST

    def __init__(
        self,
        party: ClientId,
        config: RoundConfig,
        *,
        terms: PaillierTerms,
        identity: IdentityKey,
        directory: IdentityDirectory,
        book: RoundBook,
        policy: DeciderPolicy | None = None,
    ) -> None:
        if party not in terms.witnesses:
            raise ConfigurationError(f"{party} is no witness in these terms")
        super().__init__(
            party,
            config,
            terms=terms,
            identity=identity,
            directory=directory,
            book=book,
            policy=policy or DeciderPolicy(),
        )

    def _decide(self, body: bytes) -> list[Outbound | Event]:
        request = CheckRequest.decode(body, most=self._config.n)
        contributors, block = self._recompute(request)
        listed = list_digest(self._end.config_digest, contributors)
        self._bind(listed)
        statement = ProductStatement(
            list_digest=listed, product_digest=product_digest(block), count=len(contributors)
        )
        return [self._send(MessageType.PRODUCT_STATEMENT, statement.encode())]


class KeyHolder(_Decider):
    """Opens one witnessed product per session, and refuses everything else.

    With the server (or a witness) it reads every update: it must be somebody else. It never accepts
    a message that carries single submissions. ``threads`` open ciphertexts side by side; None: one
    per processor.
    """

    _ACCEPTS = MessageType.OPEN_REQUEST

    def __init__(
        self,
        party: ClientId,
        config: RoundConfig,
        *,
        terms: PaillierTerms,
        secret: SecretKey,
        identity: IdentityKey,
        directory: IdentityDirectory,
        book: RoundBook,
        policy: DeciderPolicy | None = None,
        threads: int | None = None,
    ) -> None:
        if party != terms.key_holder:
            raise ConfigurationError(f"{party} is not the key holder of these terms")
        if secret.public != terms.public:
            raise ConfigurationError("the secret key does not belong to the terms' public key")
        self._secret, self._threads = secret, bigint.usable_threads(threads)
        super().__init__(
            party,
            config,
            terms=terms,
            identity=identity,
            directory=directory,
            book=book,
            policy=policy or DeciderPolicy(),
        )

    def _decide(self, body: bytes) -> list[Outbound | Event]:
        request = OpenRequest.decode(body, most=self._config.n)
        listed = self._admit(request.contributors)
        self._check_statements(request, listed)
        try:
            ciphertexts = self._check.block(request.block, terms=len(request.contributors))
        except BadSubmission as error:
            raise _No(error.reason) from None
        self._bind(sha256(listed, product_digest(request.block)))
        terms, count = self._terms, len(request.contributors)
        layout = terms.block_layout
        try:
            sums = layout.unpack(
                self._secret.decrypt_all(ciphertexts, terms.s, threads=self._threads),
                count=count,
                dimension=terms.block_dimension(self._config.m),
                slots=layout.slots(terms.degree),
            )
        except BadPlaintext:
            raise _No(RefusalReason.BAD_PLAINTEXT) from None
        slots = (sums + count * layout.bound).astype(np.uint64)
        opened = Opened(list_digest=listed, count=count, slots=slots)
        return [self._send(MessageType.OPENED, opened.encode(layout.width))]


class ShareHolder(_Decider):
    """Gives partial decryptions of one product per session, with a proof that they are right.

    t share holders read every ciphertext that they hold. Without witnesses in the terms a share
    holder sees the submissions and recomputes the product itself; with witnesses it sees the
    product only. ``threads`` work on ciphertexts side by side; None: one per processor.
    """

    def __init__(
        self,
        party: ClientId,
        config: RoundConfig,
        *,
        terms: PaillierTerms,
        share: KeyShare,
        identity: IdentityKey,
        directory: IdentityDirectory,
        book: RoundBook,
        policy: DeciderPolicy | None = None,
        threads: int | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        if party not in terms.share_holders:
            raise ConfigurationError(f"{party} is no share holder in these terms")
        if not isinstance(terms.key, ThresholdPublicKey) or share.public != terms.key:
            raise ConfigurationError("the share does not belong to the terms' threshold key")
        if terms.share_holders.index(party) + 1 != share.index:
            raise ConfigurationError(
                f"{party} holds share {share.index}, the terms say "
                f"{terms.share_holders.index(party) + 1}"
            )
        self._share, self._random_bytes = share, random_bytes
        self._threads = bigint.usable_threads(threads)
        self._ACCEPTS = MessageType.OPEN_REQUEST if terms.witnesses else MessageType.CHECK_REQUEST
        super().__init__(
            party,
            config,
            terms=terms,
            identity=identity,
            directory=directory,
            book=book,
            policy=policy or DeciderPolicy(),
        )

    def _decide(self, body: bytes) -> list[Outbound | Event]:
        if self._ACCEPTS is MessageType.CHECK_REQUEST:
            check = CheckRequest.decode(body, most=self._config.n)
            contributors, block = self._recompute(check)
            listed = list_digest(self._end.config_digest, contributors)
        else:
            request = OpenRequest.decode(body, most=self._config.n)
            contributors, block = list(request.contributors), request.block
            listed = self._admit(contributors)
            self._check_statements(request, listed)
        try:
            ciphertexts = self._check.block(block, terms=len(contributors))
        except BadSubmission as error:
            raise _No(error.reason) from None
        bound = sha256(listed, product_digest(block))
        self._bind(bound)
        answer = Partials(list_digest=listed, partials=(), proof=None)
        if ciphertexts:
            partials, proof = self._share.partial_with_proof(
                ciphertexts,
                partial_context(self._end.config_digest, bound),
                threads=self._threads,
                random_bytes=self._random_bytes,
            )
            answer = Partials(list_digest=listed, partials=partials, proof=proof)
        body_out = answer.encode(self._terms.degree.ciphertext_bytes)
        return [self._send(MessageType.PARTIALS, body_out)]


def partial_context(config_digest: bytes, bound: bytes) -> bytes:
    """What the proof of correct partials is bound to: the session and the list with its product."""
    return sha256(b"securefl/paillier/partials/v1", config_digest, bound)
