"""Bodies of the messages, one frozen class each, with one encoding each; and their phases.

Decoders raise WireError for everything that the encoder does not write. This module knows no keys
and makes no decisions.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum

import numpy as np
from numpy.typing import NDArray

from securefl.errors import WireError
from securefl.primitives.channel import sha256
from securefl.primitives.paillier.knowledge import KnowledgeProof
from securefl.primitives.paillier.threshold import PartialProof
from securefl.round import ClientId
from securefl.wire import Buffer, Reader, pack_words, packed_bytes, unpack_words

__all__ = [
    "CheckRequest",
    "Contributor",
    "MessageType",
    "OpenRequest",
    "Opened",
    "Partials",
    "Phase",
    "ProductStatement",
    "Refusal",
    "RefusalReason",
    "Submission",
    "list_digest",
    "message_type",
    "product_digest",
]

_U32 = struct.Struct("<I")
_MOST_PARTIES = 255


class MessageType(IntEnum):
    """Type numbers in the frame header."""

    CHECK_IN = 1
    ROUND_OPEN = 2
    SUBMISSION = 3
    CHECK_REQUEST = 4
    PRODUCT_STATEMENT = 5
    OPEN_REQUEST = 6
    OPENED = 7
    PARTIALS = 8
    REFUSAL = 9
    MASKED_BODY = 10
    ABORT = 255


class Phase(StrEnum):
    """Steps of the protocol; the value is the lower-case name that errors and drivers use."""

    CHECK_IN = "check_in"
    MASKED_INPUT_COLLECTION = "masked_input_collection"
    CHECKING = "checking"
    OPENING = "opening"
    DONE = "done"
    ABORTED = "aborted"


class RefusalReason(IntEnum):
    """Why a decider opens nothing; only this number leaves it."""

    BAD_FRAME = 1
    ROUND_BOUND = 2
    BAD_LIST = 3
    TOO_FEW = 4
    TOO_MANY = 5
    BAD_SIGNATURE = 6
    BAD_CIPHERTEXT = 7
    BAD_PROOF = 8
    PRODUCT_MISMATCH = 9
    NO_WITNESS = 10
    BAD_PLAINTEXT = 11


def message_type(number: int) -> MessageType:
    """The type with this number. Raises WireError if there is none."""
    try:
        return MessageType(number)
    except ValueError:
        raise WireError(f"unknown message type {number}") from None


@dataclass(frozen=True, slots=True)
class Contributor:
    """One entry of a contributor list: who, and the SHA-256 of the frame that was signed."""

    client: ClientId
    digest: bytes


def list_digest(session: bytes, contributors: Sequence[Contributor]) -> bytes:
    """SHA-256 over the session and the list; what witnesses sign and deciders are bound to."""
    entries = b"".join(_U32.pack(c.client) + c.digest for c in contributors)
    return sha256(b"securefl/paillier/list/v1", session, _U32.pack(len(contributors)), entries)


def _sized(data: bytes) -> bytes:
    return _U32.pack(len(data)) + data


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """Client to server: a block of ciphertexts and the proof that the client knows what is inside.

    Attributes:
        block: bytes of a :class:`~securefl.primitives.paillier.block.Block`.
        proof: its proof of plaintext knowledge.
        body_digest: SHA-256 of the masked body that travels beside it; empty in packed mode.
    """

    block: bytes
    proof: KnowledgeProof
    body_digest: bytes = b""

    def encode(self) -> bytes:
        """The body's digest if there is one, 4 bytes, the block, the proof."""
        return self.body_digest + _sized(self.block) + self.proof.to_bytes()

    @classmethod
    def decode(cls, body: Buffer, *, block_bytes: int, hybrid: bool = False) -> Submission:
        """Inverse of encode for blocks of exactly this size; else WireError."""
        reader = Reader(body)
        digest = bytes(reader.take(32)) if hybrid else b""
        size = reader.u32()
        if size != block_bytes:
            raise WireError(f"a block of this round has {block_bytes} bytes, announced are {size}")
        block = bytes(reader.take(size))
        proof = KnowledgeProof.from_bytes(reader.take(reader.left))
        return cls(block=block, proof=proof, body_digest=digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRequest:
    """Server to a decider that recomputes the product.

    Attributes:
        submissions: the clients' signed frames, sorted by sender.
        product_digest: SHA-256 of the product block, as the server computed it.
    """

    submissions: tuple[bytes, ...]
    product_digest: bytes

    def encode(self) -> bytes:
        """Digest, count, then the frames with their lengths."""
        frames = b"".join(map(_sized, self.submissions))
        return self.product_digest + _U32.pack(len(self.submissions)) + frames

    @classmethod
    def decode(cls, body: Buffer, *, most: int) -> CheckRequest:
        """Inverse of encode; WireError for more than ``most`` frames or another length."""
        reader = Reader(body)
        digest, count = bytes(reader.take(32)), reader.u32()
        if count > most:
            raise WireError(f"{count} submissions, at most {most} are possible")
        frames = tuple(bytes(reader.take(reader.u32())) for _ in range(count))
        reader.finish()
        return cls(submissions=frames, product_digest=digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductStatement:
    """Witness to the openers, through the server: this list has this product."""

    list_digest: bytes
    product_digest: bytes
    count: int

    def encode(self) -> bytes:
        """68 bytes."""
        return self.list_digest + self.product_digest + _U32.pack(self.count)

    @classmethod
    def decode(cls, body: Buffer) -> ProductStatement:
        """Inverse of encode; WireError on any other length."""
        reader = Reader(body)
        first, second, count = bytes(reader.take(32)), bytes(reader.take(32)), reader.u32()
        reader.finish()
        return cls(list_digest=first, product_digest=second, count=count)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRequest:
    """Server to an opener: the product, who is in it, and the witnesses' signed statements.

    It has no place for a single client's ciphertexts.
    """

    contributors: tuple[Contributor, ...]
    statements: tuple[bytes, ...]
    block: bytes

    def encode(self) -> bytes:
        """Both counts, the contributors, the statements, the block."""
        entries = b"".join(_U32.pack(c.client) + c.digest for c in self.contributors)
        counts = _U32.pack(len(self.contributors)) + _U32.pack(len(self.statements))
        return counts + entries + b"".join(map(_sized, self.statements)) + self.block

    @classmethod
    def decode(cls, body: Buffer, *, most: int) -> OpenRequest:
        """Inverse of encode; WireError for more than ``most`` contributors or cut bytes."""
        reader = Reader(body)
        count, statements = reader.u32(), reader.u32()
        if count > most or statements > _MOST_PARTIES:
            raise WireError(f"{count} contributors and {statements} statements are too many")
        contributors = tuple(
            Contributor(ClientId(reader.u32()), bytes(reader.take(32))) for _ in range(count)
        )
        frames = tuple(bytes(reader.take(reader.u32())) for _ in range(statements))
        return cls(
            contributors=contributors, statements=frames, block=bytes(reader.take(reader.left))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """Key holder to server: the sums, still with the offset of every contributor.

    Attributes:
        list_digest: whose sum it is.
        count: K.
        slots: uint64[m], slot sums below 2^width.
    """

    list_digest: bytes
    count: int
    slots: NDArray[np.uint64]

    def encode(self, width: int) -> bytes:
        """36 + ⌈m width / 8⌉ bytes."""
        return self.list_digest + _U32.pack(self.count) + pack_words(self.slots, width)

    @classmethod
    def decode(cls, body: Buffer, *, m: int, width: int) -> Opened:
        """Inverse of encode; WireError on any other length."""
        reader = Reader(body)
        digest, count = bytes(reader.take(32)), reader.u32()
        words = reader.take(packed_bytes(m, width))
        reader.finish()
        slots = unpack_words(words, m, width).astype(np.uint64)
        return cls(list_digest=digest, count=count, slots=slots)


@dataclass(frozen=True, slots=True, kw_only=True)
class Partials:
    """Share holder to server: its partial decryptions and the proof that they are right.

    The proof is None for an empty vector, of which there is nothing to prove.
    """

    list_digest: bytes
    partials: tuple[int, ...]
    proof: PartialProof | None

    def encode(self, width: int) -> bytes:
        """Digest, then partials of ``width`` bytes each, big-endian, then the proof."""
        numbers = b"".join(x.to_bytes(width, "big") for x in self.partials)
        return self.list_digest + numbers + (self.proof.to_bytes() if self.proof else b"")

    @classmethod
    def decode(cls, body: Buffer, *, count: int, width: int) -> Partials:
        """Inverse of encode for this many partials; else WireError."""
        reader = Reader(body)
        digest = bytes(reader.take(32))
        numbers = tuple(int.from_bytes(reader.take(width), "big") for _ in range(count))
        proof = PartialProof.from_bytes(reader.take(reader.left)) if count else None
        reader.finish()
        return cls(list_digest=digest, partials=numbers, proof=proof)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Decider to server: nothing is opened, for this reason."""

    reason: RefusalReason

    def encode(self) -> bytes:
        """1 byte."""
        return bytes([self.reason])

    @classmethod
    def decode(cls, body: Buffer) -> Refusal:
        """Inverse of encode; WireError for an unknown reason."""
        reader = Reader(body)
        (number,) = bytes(reader.take(1))
        reader.finish()
        try:
            return cls(reason=RefusalReason(number))
        except ValueError:
            raise WireError(f"unknown refusal reason {number}") from None


def product_digest(block: bytes) -> bytes:
    """SHA-256 of the bytes of a product block."""
    return sha256(b"securefl/paillier/product/v1", block)
