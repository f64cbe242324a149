"""The client's machine: one encrypted vector, under a key and to deciders that it pinned itself.

Adversary: a server that lies, with up to A clients. The client refuses any configuration that is
not of its own terms (key, packing, witnesses, share holders), of another context, or weaker than
its policy; it encrypts once, proves that it knows what it encrypts, and signs the whole frame.
What it sends can be opened by the key holder (or t share holders) if they misbehave: the terms are
where that trust is placed.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from securefl.errors import (
    ConfigurationError,
    Equivocation,
    LocalProtocolError,
    PeerProtocolError,
    WireError,
)
from securefl.modular import RingVector
from securefl.primitives import rlwe
from securefl.primitives.channel import sha256
from securefl.primitives.paillier import Encryptor, PublicKey, RandomizerPool, Randomness
from securefl.primitives.paillier.block import BlockMode
from securefl.primitives.paillier.knowledge import KnowledgeProof, prove_knowledge
from securefl.primitives.signing import IdentityDirectory, IdentityKey
from securefl.protocols.endpoints import ClientEnd
from securefl.protocols.machine import Aborted, Event, MalformedMessage, Outbound, Reason
from securefl.protocols.messages import Abort
from securefl.protocols.paillier.checking import knowledge_context
from securefl.protocols.paillier.messages import MessageType, Phase, Submission, message_type
from securefl.protocols.paillier.terms import PaillierTerms, check_config
from securefl.protocols.policy import ClientPolicy, check_demands, check_identities
from securefl.round import SERVER, ClientId, RoundConfig
from securefl.wire import decode_frame, pack_words

__all__ = ["PaillierClient"]

_DEFAULT_POLICY = ClientPolicy()


def _of_one_kind(encryptor: Encryptor) -> tuple[PublicKey, int, Randomness]:
    """What client and checkers must agree on."""
    return encryptor.public, encryptor.degree.s, encryptor.randomness


class PaillierClient:
    """One client's side of one session (sans-IO). Use it once: a second submission could be mixed
    with the first into two overlapping sums.

    Args:
        client_id: who this is.
        config: the round's configuration, as the server proposed it.
        terms: key, packing and deciders, from out of band.
        context_digest: what this client computed from the model and the codec it received.
        identity: its long-term key.
        directory: everybody's public identity keys, deciders included.
        policy: what it demands of every configuration.
        pool: blinding prepared beforehand under the same key and degree.
        random_bytes: source of secret randomness; only tests and vectors give another one.

    Raises:
        ConfigurationError: if the configuration is not of these terms, of another context, unsafe,
            or weaker than the policy. Nothing was emitted.
    """

    def __init__(
        self,
        client_id: ClientId,
        config: RoundConfig,
        *,
        terms: PaillierTerms,
        context_digest: bytes,
        identity: IdentityKey,
        directory: IdentityDirectory,
        policy: ClientPolicy = _DEFAULT_POLICY,
        pool: RandomizerPool | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        if client_id not in config.cohort:
            raise ConfigurationError(f"client {client_id} is not in the cohort")
        check_config(config, terms, assume_no_corruption=policy.assume_no_corruption)
        check_demands(config, policy)
        check_identities(client_id, config, identity, directory)
        unknown = [u for u in terms.deciders if u not in directory]
        if unknown:
            raise ConfigurationError(f"deciders {unknown} have no identity in the directory")
        if config.context_digest != context_digest:
            raise ConfigurationError(
                "the configuration is for another model, codec or privacy plan than this client "
                "received: its update would be summed with something else"
            )
        self._end = ClientEnd(client_id, config, identity=identity, directory=directory)
        self._config = config
        self._terms = terms
        own = terms.encryptor(random_bytes)
        self._encryptor = own if pool is None else pool.encryptor
        if _of_one_kind(self._encryptor) != _of_one_kind(own):
            raise ConfigurationError(
                "the pool of blinding is for another key, degree or length of exponents than the "
                "terms: nobody would accept its proofs"
            )
        self._pool = pool
        self._random_bytes = random_bytes
        self._phase = Phase.CHECK_IN
        self._opened: bytes | None = None
        self._input: RingVector | None = None
        self._given = False
        self._emitted = False

    @property
    def client_id(self) -> ClientId:
        """Whose side this is."""
        return self._end.u

    @property
    def phase(self) -> Phase:
        """The phase it is in; DONE and ABORTED are final."""
        return self._phase

    @property
    def wants_input(self) -> bool:
        """Whether the session now waits for :meth:`set_input` and for nothing else."""
        waiting = self._phase is Phase.MASKED_INPUT_COLLECTION
        return waiting and self._opened is not None and not self._given

    @property
    def masked_input_emitted(self) -> bool:
        """Whether the encrypted input was handed out for sending (stays True afterwards)."""
        return self._emitted

    def start(self) -> list[Outbound | Event]:
        """Checks in. Raises LocalProtocolError unless it is the first call."""
        if self._phase is not Phase.CHECK_IN:
            raise LocalProtocolError(f"start() was called in phase {self._phase}")
        self._phase = Phase.MASKED_INPUT_COLLECTION
        return [self._send(MessageType.CHECK_IN, b"")]

    def receive(self, frame: bytes, sender: ClientId | None = None) -> list[Outbound | Event]:
        """Takes a frame of the server: RoundOpen once, or an Abort.

        Raises:
            WireError, UnexpectedMessage: a frame that is not for this machine; nothing changes.
            Equivocation: a second, different RoundOpen; phase ABORTED.
            MalformedMessage: RoundOpen of other terms; phase ABORTED.
        """
        parsed = decode_frame(frame)
        kind = message_type(parsed.type)
        self._end.check_origin(parsed, sender=sender, before_session=True)
        digest = sha256(frame)
        if kind is MessageType.ABORT:
            return self._on_abort(bytes(parsed.body))
        if kind is not MessageType.ROUND_OPEN:
            raise self._end.unexpected(f"{kind.name} in phase {self._phase}")
        if self._opened is not None and hmac.compare_digest(self._opened, digest):
            return []
        if self._phase is Phase.ABORTED or self._phase is Phase.CHECK_IN:
            raise self._end.unexpected(f"{kind.name} in phase {self._phase}")
        if self._opened is not None:
            raise self._fail(
                Equivocation(f"client {self._end.u} got two RoundOpen", culprits=[SERVER])
            )
        if bytes(parsed.body) != self._terms.digest():
            # The frame names our configuration and other terms: its author contradicts itself.
            raise self._fail(
                MalformedMessage(
                    f"client {self._end.u} got a RoundOpen of other terms", culprits=[SERVER]
                )
            )
        self._opened = digest
        return self._submit()

    def set_input(self, vector: RingVector) -> list[Outbound | Event]:
        """Gives the input, once; it leaves when the round is open.

        Raises:
            LocalProtocolError: for a second call, a wrong length or modulus, or after the end.
        """
        if self._phase in (Phase.DONE, Phase.ABORTED) or self._given:
            raise LocalProtocolError(f"set_input() was called twice or in phase {self._phase}")
        if not isinstance(vector, RingVector):
            raise LocalProtocolError(f"the input is a RingVector, found {type(vector).__name__}")
        if vector.modulus != self._config.modulus or len(vector) != self._config.m:
            raise LocalProtocolError(
                f"the round sums {self._config.m} entries modulo {self._config.modulus}, found "
                f"{len(vector)} modulo {vector.modulus}"
            )
        self._input, self._given = vector, True
        return self._submit()

    def abort(self) -> list[Outbound | Event]:
        """Gives up and forgets the input."""
        if self._phase in (Phase.DONE, Phase.ABORTED):
            return []
        self._wipe()
        return [
            self._send(MessageType.ABORT, Abort(reason=Reason.CLIENT_ABORT).encode()),
            Aborted(reason=Reason.CLIENT_ABORT, by=self._end.u),
        ]

    def _submit(self) -> list[Outbound | Event]:
        if self._opened is None or self._input is None:
            return []
        terms, layout = self._terms, self._terms.block_layout
        signed = self._input.centred().astype(np.int64)
        body = b""
        if terms.mode is BlockMode.HYBRID:
            signed, body = self._masked(signed)
        plain = layout.pack(signed, layout.slots(terms.degree))
        sealed = self._encryptor.encrypt(plain, pool=self._pool)
        block = terms.block_of(self._config.m, sealed.ciphertexts)
        body_digest = sha256(body) if body else b""
        proof = KnowledgeProof(seed=bytes(32), z=0, zeta=0)
        if plain:
            proof = prove_knowledge(
                self._encryptor,
                plain,
                sealed,
                knowledge_context(self._end.config_digest, self._end.u, block, body_digest),
                random_bytes=self._random_bytes,
            )
        submission = Submission(block=block, proof=proof, body_digest=body_digest)
        out = [self._send(MessageType.SUBMISSION, submission.encode())]
        if body:
            out.append(self._send(MessageType.MASKED_BODY, body))
        self._phase, self._emitted, self._input = Phase.DONE, True, None
        return [*out]

    def _masked(self, values: NDArray[np.int64]) -> tuple[NDArray[np.int64], bytes]:
        """A fresh secret, and the vector under its masks (hybrid mode)."""
        shape = self._terms.rlwe_shape(self._config.m)
        assert shape is not None  # noqa: S101  # hybrid mode
        a = self._terms.public_polynomials(self._config)
        secret = rlwe.secret(self._random_bytes)
        masked = rlwe.mask(values, shape, a, secret, self._random_bytes)
        return secret, pack_words(masked, rlwe.MODULUS_BITS)

    def _send(self, kind: MessageType, body: bytes) -> Outbound:
        return self._end.outbound(kind, body, session=self._end.config_digest)[0]

    def _on_abort(self, body: bytes) -> list[Outbound | Event]:
        if self._phase in (Phase.DONE, Phase.ABORTED):
            return []
        try:
            reason = Abort.decode(body).reason
        except WireError:
            reason = Reason.MALFORMED
        self._wipe()
        return [Aborted(reason=reason, by=SERVER)]

    def _fail(self, error: PeerProtocolError) -> PeerProtocolError:
        if self._phase is not Phase.DONE:
            self._wipe()
            abort = Abort(reason=Reason.EQUIVOCATION).encode()
            error.outbound = (self._send(MessageType.ABORT, abort),)
        return error

    def _wipe(self) -> None:
        self._phase, self._input, self._pool = Phase.ABORTED, None, None

    def __repr__(self) -> str:
        return f"PaillierClient({self._end.u}, {self._phase})"

    def __reduce__(self) -> str:
        raise TypeError("a machine with secrets cannot be pickled or copied")
