"""What everybody checks in a submission, and how the product is made.

The server uses it to exclude a client by name; witnesses and share holders use it again, because
the server is the suspect. This module keeps no state and decides nothing about a round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from securefl.errors import WireError
from securefl.primitives import bigint
from securefl.primitives.channel import sha256
from securefl.primitives.paillier.block import HEADER_BYTES, Block, BlockMode
from securefl.primitives.paillier.knowledge import verify_knowledge
from securefl.primitives.signing import BadSignature, IdentityDirectory
from securefl.protocols.keys import SessionKeys
from securefl.protocols.paillier.messages import (
    Contributor,
    MessageType,
    RefusalReason,
    Submission,
)
from securefl.protocols.paillier.terms import PaillierTerms
from securefl.round import SERVER, ClientId, RoundConfig
from securefl.wire import Frame, decode_frame, signed_content

__all__ = ["BadSubmission", "Checked", "SubmissionCheck", "knowledge_context"]


class BadSubmission(Exception):
    """A submission that does not count.

    Attributes:
        reason: why.
    """

    def __init__(self, reason: RefusalReason) -> None:
        super().__init__(reason.name)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Checked:
    """A submission that passed: whose, its ciphertexts, and the frame's SHA-256."""

    contributor: Contributor
    ciphertexts: tuple[int, ...]


def knowledge_context(
    config_digest: bytes, client: ClientId, block: bytes, body_digest: bytes = b""
) -> bytes:
    """What a knowledge proof is bound to: session, client, the block's header, the masked body.

    The ciphertexts themselves are hashed by the proof; the round, cohort, terms and model are in
    the configuration's digest.
    """
    return config_digest + client.to_bytes(4, "little") + block[:HEADER_BYTES] + body_digest


def multiply(
    a: Sequence[bigint.Integer], b: Sequence[bigint.Integer], N: bigint.Integer
) -> list[bigint.Integer]:
    """Products modulo N, place by place: the addition of what is inside."""
    return [x * y % N for x, y in zip(a, b, strict=True)]


class SubmissionCheck:
    """Checks submissions of one round.

    Args:
        config: the round's configuration.
        terms: what is pinned.
        directory: everybody's identities.
    """

    def __init__(
        self, config: RoundConfig, terms: PaillierTerms, directory: IdentityDirectory
    ) -> None:
        self._config = config
        self._digest = config.digest()
        self._terms = terms
        self._directory = directory
        self._keys = SessionKeys(config.protocol)
        self._encryptor = terms.encryptor()

    def frame(self, data: bytes) -> Checked:
        """Checks a client's whole frame: form, origin, signature, ciphertexts, proof.

        Raises:
            BadSubmission: with the reason.
        """
        try:
            frame = decode_frame(data)
        except WireError:
            raise BadSubmission(RefusalReason.BAD_FRAME) from None
        config = self._config
        fits = (
            frame.protocol is config.protocol
            and frame.type == MessageType.SUBMISSION
            and frame.round_id == config.round_id
            and frame.session == self._digest
            and frame.sender in config.cohort
        )
        if not fits:
            raise BadSubmission(RefusalReason.BAD_FRAME)
        self.signature(frame)
        ciphertexts = self.content(frame.sender, bytes(frame.body))
        return Checked(Contributor(frame.sender, sha256(data)), ciphertexts)

    def signature(self, frame: Frame) -> None:
        """Whether the sender signed this frame for the server.

        Raises:
            BadSubmission: if not.
        """
        statement = self._keys.frame_statement(SERVER, signed_content(frame))
        try:
            self._directory.verify(frame.sender, frame.signature, statement)
        except BadSignature:
            raise BadSubmission(RefusalReason.BAD_SIGNATURE) from None

    def content(self, client: ClientId, body: bytes) -> tuple[int, ...]:
        """Checks block and proof; gives the ciphertexts.

        The masked body of the hybrid mode travels in a frame of its own; its digest is signed here.

        Raises:
            BadSubmission: with the reason.
        """
        try:
            submission = self.parse(body)
        except WireError:
            raise BadSubmission(RefusalReason.BAD_FRAME) from None
        ciphertexts = self.block(submission.block)
        if not ciphertexts:  # an empty vector has nothing to know
            return ciphertexts
        context = knowledge_context(self._digest, client, submission.block, submission.body_digest)
        if not verify_knowledge(self._encryptor, ciphertexts, submission.proof, context):
            raise BadSubmission(RefusalReason.BAD_PROOF)
        return ciphertexts

    def parse(self, body: bytes) -> Submission:
        """A submission's body of this round's sizes; else WireError."""
        terms = self._terms
        return Submission.decode(
            body,
            block_bytes=terms.block_bytes(self._config.m),
            hybrid=terms.mode is BlockMode.HYBRID,
        )

    def block(self, data: bytes, *, terms: int = 1) -> tuple[int, ...]:
        """The ciphertexts of a block of this round's one shape.

        Args:
            data: its bytes.
            terms: how many submissions it must announce: 1 in a client's, in a product as many as
                the contributor list names.

        Raises:
            BadSubmission: if it has another shape or holds a number that is no ciphertext.
        """
        try:
            block = Block.from_bytes(data, self._terms.degree)
        except WireError:
            raise BadSubmission(RefusalReason.BAD_CIPHERTEXT) from None
        if block.shape != self._terms.shape(self._config.m, terms=terms):
            raise BadSubmission(RefusalReason.BAD_CIPHERTEXT)
        return block.ciphertexts

    def product_block(self, products: Sequence[bigint.Integer], *, terms: int) -> bytes:
        """The bytes of a product of so many submissions, with the round's shape."""
        return self._terms.block_of(self._config.m, map(int, products), terms=terms)

    def multiply(
        self, total: list[bigint.Integer] | None, ciphertexts: Sequence[int]
    ) -> list[bigint.Integer]:
        """The product so far times one more submission."""
        numbers = [bigint.integer(c) for c in ciphertexts]
        return numbers if total is None else multiply(total, numbers, self._terms.degree.modulus)
