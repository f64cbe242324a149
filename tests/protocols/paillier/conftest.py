"""A Paillier session that tests drive by hand, with small keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from securefl.modular import RingVector, ring_dtype
from securefl.primitives.paillier import SecretKey, generate_keypair
from securefl.primitives.paillier.threshold import KeyShare, ThresholdPublicKey, deal
from securefl.protocols.machine import Outbound
from securefl.protocols.policy import ClientPolicy
from securefl.round import SERVER, ClientId, Cohort, RoundId
from securefl.simulation.paillier import PaillierParties, Trust, paillier_session

N, ALIVE, M, B = 6, 4, 5, 16


@pytest.fixture(scope="session")
def secret_key() -> SecretKey:
    return generate_keypair(512, random_bytes=np.random.default_rng(21).bytes, min_bits=512)


@pytest.fixture(scope="session")
def dealt_key() -> tuple[ThresholdPublicKey, tuple[KeyShare, ...]]:
    public, shares = deal(
        threshold=4,
        parties=5,
        bits=512,
        random_bytes=np.random.default_rng(22).bytes,
        min_bits=512,
    )
    return public, tuple(shares)


@dataclass
class Bench:
    """One session, played by hand.

    Attributes:
        made: the machines.
        inputs: by client.
    """

    made: PaillierParties
    inputs: dict[ClientId, RingVector]

    def submissions(self, *who: int) -> dict[ClientId, bytes]:
        """Runs check-in and collects the submissions of these clients (all, if none is named)."""
        server, clients = self.made.server, self.made.clients
        for u, client in clients.items():
            for item in client.start():
                server.receive(item.frame, u)
        found = {}
        for item in server.close_phase():
            if isinstance(item, Outbound) and (not who or item.recipient in who):
                client = clients[item.recipient]
                client.receive(item.frame, SERVER)
                (out,) = client.set_input(self.inputs[item.recipient])
                found[item.recipient] = out.frame
        return found

    def ask(self, *frames: Outbound) -> list[bytes]:
        """Hands frames to the deciders they are for; gives the answers."""
        return [
            out.frame
            for item in frames
            for out in self.made.parties[item.recipient].receive(item.frame, SERVER)
            if isinstance(out, Outbound)
        ]

    def expected(self, *who: int) -> list[int]:
        total = sum(self.inputs[ClientId(u)].values.astype(np.int64) for u in who)
        return (total % (1 << B)).tolist()


@pytest.fixture
def bench(
    secret_key: SecretKey, dealt_key: tuple[ThresholdPublicKey, tuple[KeyShare, ...]]
) -> Callable[..., Bench]:
    def build(trust: Trust = Trust.KEY_HOLDER, *, m: int = M, alive: int = ALIVE) -> Bench:
        made = paillier_session(
            trust,
            Cohort.of(range(1, N + 1)),
            round_id=RoundId(4),
            alive=alive,
            m=m,
            b=B,
            context_digest=bytes(32),
            policy=ClientPolicy(gamma=0),
            keys=secret_key if trust is Trust.KEY_HOLDER else dealt_key,
        )
        rng = np.random.default_rng(1)
        inputs = {
            u: RingVector(rng.integers(0, 1 << B, m).astype(ring_dtype(1 << B)), 1 << B)
            for u in made.config.cohort
        }
        return Bench(made, inputs)

    return build
