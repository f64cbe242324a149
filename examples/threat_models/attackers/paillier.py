"""Servers that lie to the deciders of a Paillier session, and deciders without one check each.

The malicious server is this module's own code: it opens the round, collects what the real clients
send, and asks the real witness and the real key holder for what suits it. Every frame goes into a
transcript, and what was learnt is read from that file. It holds no secret key.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from kit.rounds import CONTEXT, images_as_inputs
from kit.transcript import read_transcript, write_transcript
from numpy.typing import NDArray

from securefl.errors import DecryptionRefused
from securefl.primitives.channel import sha256
from securefl.primitives.paillier import Encryptor, SecretKey, SlotLayout, generate_keypair
from securefl.primitives.paillier.block import Block
from securefl.primitives.signing import IdentityDirectory, IdentityKey
from securefl.protocols.machine import Outbound
from securefl.protocols.paillier import (
    DeciderPolicy,
    KeyHolder,
    MemoryRoundBook,
    PaillierClient,
    PaillierServer,
    PaillierTerms,
    Witness,
    paillier_config,
)
from securefl.protocols.paillier.messages import (
    CheckRequest,
    Contributor,
    MessageType,
    Opened,
    OpenRequest,
    Submission,
    product_digest,
)
from securefl.protocols.policy import ClientPolicy
from securefl.round import SERVER, ClientId, Cohort, RoundId, ThreatModel
from securefl.simulation.network import Delivery, Direction, Envelope, InMemoryNetwork
from securefl.simulation.session import run_session
from securefl.wire import Frame, decode_frame, encode_frame

__all__ = [
    "ADDED",
    "AnyList",
    "AnyListWitness",
    "AnyProduct",
    "Forgetful",
    "ForgetfulWitness",
    "Stage",
    "altered_product",
    "altered_submission",
    "false_list",
    "one_client_list",
    "two_lists",
]

N, ALIVE, BITS, ENTRIES = 6, 4, 24, 64
KEY_BITS = 2048
VICTIM = ClientId(1)
ADDED = 1000
"""What a changed ciphertext adds to the first entry."""
_WITNESS, _HOLDER = ClientId(900), ClientId(901)
Ring = NDArray[np.int64]


# -- deciders without one check ----------------------------------------------------------------


class AnyList(KeyHolder):
    """Opens lists of any length."""

    def _admit(self, contributors: Sequence[Contributor]) -> bytes:
        return _digest_only(self, contributors)


class AnyListWitness(Witness):
    """Vouches for lists of any length."""

    def _admit(self, contributors: Sequence[Contributor]) -> bytes:
        return _digest_only(self, contributors)


class AnyProduct(KeyHolder):
    """Opens a product that no witness has seen."""

    def _check_statements(self, request: OpenRequest, listed: bytes) -> None:
        pass


class Forgetful(KeyHolder):
    """Opens a second list in the same session."""

    def _bind(self, digest: bytes) -> None:
        pass


class ForgetfulWitness(Witness):
    """Vouches for a second list in the same session."""

    def _bind(self, digest: bytes) -> None:
        pass


def _digest_only(decider: KeyHolder | Witness, contributors: Sequence[Contributor]) -> bytes:
    from securefl.protocols.paillier.messages import list_digest  # noqa: PLC0415  # only here

    return list_digest(decider._end.config_digest, contributors)


@lru_cache(maxsize=1)
def _key() -> SecretKey:
    """One key for all sessions of a program: making it takes longer than everything else."""
    return generate_keypair(KEY_BITS)


class Stage:
    """One session: real clients, witness and key holder, and a server that does what it likes.

    Args:
        seed: of the inputs.
        path: of the transcript.
        holder, witness: the library's, or without one check.
    """

    def __init__(
        self,
        seed: int,
        path: Path,
        *,
        holder: type[KeyHolder] = KeyHolder,
        witness: type[Witness] = Witness,
    ) -> None:
        self.path = path
        self.cohort = Cohort.of(range(1, N + 1))
        self.inputs = images_as_inputs(N, bits=BITS, seed=seed)
        secret = _key()
        layout = SlotLayout(bound=1 << (BITS - 1), max_clients=N)
        self.terms = PaillierTerms(
            key=secret.public, layout=layout, key_holder=_HOLDER, witnesses=(_WITNESS,)
        )
        self.config = paillier_config(
            self.terms,
            round_id=RoundId(seed),
            cohort=self.cohort,
            threat=ThreatModel(corrupt=1, dropped=N - ALIVE),
            m=ENTRIES,
            b=BITS,
            context_digest=CONTEXT,
            server_nonce=os.urandom(32),
        )
        names = (*self.cohort.ids, *self.terms.deciders)
        identities = {u: IdentityKey(os.urandom(32)) for u in names}
        self.directory = IdentityDirectory({u: key.public for u, key in identities.items()})
        demands = DeciderPolicy(min_clients=ALIVE, max_colluding_clients=1)
        self.clients = {
            u: PaillierClient(
                u, self.config, terms=self.terms, context_digest=CONTEXT,
                identity=identities[u], directory=self.directory, policy=ClientPolicy(gamma=0),
            )
            for u in self.cohort
        }  # fmt: skip
        self.witness = witness(
            _WITNESS, self.config, terms=self.terms, identity=identities[_WITNESS],
            directory=self.directory, book=MemoryRoundBook(), policy=demands,
        )  # fmt: skip
        self.holder = holder(
            _HOLDER, self.config, terms=self.terms, secret=secret, identity=identities[_HOLDER],
            directory=self.directory, book=MemoryRoundBook(), policy=demands,
        )  # fmt: skip
        self.seen: list[Envelope] = []

    # -- the malicious server's hands ---------------------------------------------------------

    def send(self, kind: MessageType, body: bytes, machine: PaillierClient | KeyHolder | Witness
             ) -> list[bytes]:  # fmt: skip
        """Sends a frame of the server's making; gives the answers. A refusal is an empty list."""
        frame = encode_frame(
            Frame(
                protocol=self.config.protocol, type=kind, sender=SERVER,
                round_id=self.config.round_id, session=self.config.digest(), body=body,
            )
        )  # fmt: skip
        u = machine.client_id
        self._record(Direction.DOWN, SERVER, u, frame)
        try:
            out = machine.receive(frame, SERVER)
        except DecryptionRefused as refused:
            out = [*refused.outbound]
        answers = [bytes(item.frame) for item in out if isinstance(item, Outbound)]
        for answer in answers:
            self._record(Direction.UP, u, SERVER, answer)
        refusals = [a for a in answers if decode_frame(a).type == MessageType.REFUSAL]
        return [] if refusals else answers

    def _record(self, direction: Direction, sender: ClientId, to: ClientId, frame: bytes) -> None:
        self.seen.append(
            Envelope(phase="session", direction=direction, sender=sender, recipient=to, frame=frame)
        )

    def collect(self) -> list[bytes]:
        """Opens the round towards every client; gives their submissions, ascending."""
        for u, client in self.clients.items():
            for item in client.start():
                if isinstance(item, Outbound):
                    self._record(Direction.UP, u, SERVER, item.frame)
            self.send(MessageType.ROUND_OPEN, self.terms.digest(), client)
            for item in client.set_input(self.inputs[u]):
                if isinstance(item, Outbound):
                    self._record(Direction.UP, u, SERVER, item.frame)
        return [
            e.frame for e in self.seen
            if e.direction is Direction.UP and decode_frame(e.frame).type == MessageType.SUBMISSION
        ]  # fmt: skip

    def ciphertexts(self, frame: bytes) -> tuple[int, ...]:
        """What is in a submission."""
        size = self.terms.block_bytes(ENTRIES)
        body = Submission.decode(decode_frame(frame).body, block_bytes=size)
        return Block.from_bytes(body.block, self.terms.degree).ciphertexts

    def product(self, parts: Iterable[Sequence[int]], *, terms: int) -> bytes:
        """The block of a product: anybody can multiply ciphertexts."""
        N2 = int(self.terms.degree.modulus)
        total = [1] * len(self.added(0))
        for part in parts:
            total = [a * b % N2 for a, b in zip(total, part, strict=True)]
        return self.terms.block_of(ENTRIES, total, terms=terms)

    def added(self, amount: int) -> list[int]:
        """Factors that add an amount to the first entry of whatever they are multiplied with."""
        degree, layout = self.terms.degree, self.terms.layout
        zeros, step = np.zeros(ENTRIES, np.int64), np.zeros(ENTRIES, np.int64)
        step[0] = amount
        slots = layout.slots(degree)
        return [
            int(degree.one_plus_n(a - b))
            for a, b in zip(layout.pack(step, slots), layout.pack(zeros, slots), strict=True)
        ]

    def zeros(self) -> tuple[int, ...]:
        """A fresh encryption of the zero vector, by the public key."""
        layout = self.terms.layout
        plain = layout.pack(np.zeros(ENTRIES, np.int64), layout.slots(self.terms.degree))
        return Encryptor(self.terms.public, window=4).encrypt(plain).ciphertexts

    def vouched(self, frames: Sequence[bytes]) -> list[bytes]:
        """The witness's statement about these submissions and their product."""
        parts = [self.ciphertexts(f) for f in frames]
        digest = product_digest(self.product(parts, terms=len(frames)))
        body = CheckRequest(submissions=tuple(frames), product_digest=digest).encode()
        return self.send(MessageType.CHECK_REQUEST, body, self.witness)

    def open(self, frames: Sequence[bytes], statements: Sequence[bytes], block: bytes) -> None:
        """Asks the key holder to open a block in the name of these submissions."""
        listed = tuple(Contributor(decode_frame(f).sender, sha256(f)) for f in frames)
        body = OpenRequest(contributors=listed, statements=tuple(statements), block=block).encode()
        self.send(MessageType.OPEN_REQUEST, body, self.holder)

    def opened(self) -> list[Ring]:
        """Every sum that the transcript holds, signed, in its order."""
        write_transcript(self.path, self.seen)
        layout, sums = self.terms.layout, []
        for e in read_transcript(self.path):
            frame = decode_frame(e.frame)
            if e.direction is Direction.UP and frame.type == MessageType.OPENED:
                found = Opened.decode(frame.body, m=ENTRIES, width=layout.width)
                sums.append(found.slots.astype(np.int64) - found.count * layout.bound)
        return sums

    def truth(self, *who: ClientId) -> Ring:
        """The sum over these clients, for comparison; no attack is given it."""
        total = np.zeros(ENTRIES, np.int64)
        for u in who:
            total += self.inputs[u].centred().astype(np.int64)
        return total


# -- a single update --------------------------------------------------------------------------


def one_client_list(stage: Stage) -> Ring | None:
    """Asks openly: witness and key holder get a list with one name."""
    victim = stage.collect()[:1]
    block = stage.product([stage.ciphertexts(victim[0])], terms=1)
    stage.open(victim, stage.vouched(victim), block)
    return _first(stage.opened())


def false_list(stage: Stage) -> Ring | None:
    """A list of enough names, and a product of one client's ciphertext and encrypted zeros."""
    frames = stage.collect()[:ALIVE]
    parts = [stage.ciphertexts(frames[0]), *(stage.zeros() for _ in frames[1:])]
    stage.open(frames, stage.vouched(frames), stage.product(parts, terms=len(frames)))
    return _first(stage.opened())


def two_lists(stage: Stage) -> Ring | None:
    """Everybody, and then everybody but one: the difference is one update."""
    frames = stage.collect()
    for chosen in (frames, frames[1:]):
        block = stage.product([stage.ciphertexts(f) for f in chosen], terms=len(chosen))
        stage.open(chosen, stage.vouched(chosen), block)
    sums = stage.opened()
    return sums[0] - sums[1] if len(sums) == 2 else None


def _first(sums: list[Ring]) -> Ring | None:
    return sums[0] if sums else None


# -- a changed sum ----------------------------------------------------------------------------


def altered_product(stage: Stage) -> float:
    """The server multiplies the vouched product by (1+n)^1000. Gives what the sum moved by."""
    frames = stage.collect()
    parts = [stage.ciphertexts(f) for f in frames]
    changed = stage.product([*parts, stage.added(ADDED)], terms=len(frames))
    stage.open(frames, stage.vouched(frames), changed)
    sums = stage.opened()
    return float(sums[0][0] - stage.truth(*stage.cohort)[0]) if sums else 0.0


def altered_submission(stage: Stage) -> float:
    """Somebody on the way changes one client's ciphertext; the server is honest here."""

    def change(envelope: Envelope) -> tuple[Delivery, ...] | None:
        if envelope.sender != VICTIM or envelope.direction is not Direction.UP:
            return None
        frame = decode_frame(envelope.frame)
        if frame.type != MessageType.SUBMISSION:
            return None
        size = stage.terms.block_bytes(ENTRIES)
        body = Submission.decode(frame.body, block_bytes=size)
        mixed = stage.product([stage.ciphertexts(envelope.frame), stage.added(ADDED)], terms=1)
        changed = replace(frame, body=replace(body, block=mixed).encode())
        return (Delivery(frame=encode_frame(changed)),)

    result = run_session(
        PaillierServer(stage.config, terms=stage.terms, directory=stage.directory),
        stage.clients,
        stage.inputs,
        parties={_WITNESS: stage.witness, _HOLDER: stage.holder},
        network=InMemoryNetwork(policies=[change]),
    )
    stage.seen += result.transcript
    sums = stage.opened()
    return float(sums[0][0] - stage.truth(*result.aggregate.survivors)[0])
