"""The protocols that the suite runs over. A new protocol adds one entry and passes all tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import pytest

from securefl.modular import RingVector, ring_dtype
from securefl.primitives.paillier import SecretKey, generate_keypair
from securefl.primitives.paillier.threshold import KeyShare, ThresholdPublicKey, deal
from securefl.primitives.signing import IdentityDirectory, IdentityKey
from securefl.protocols.lightsecagg import (
    LightSecAggClient,
    LightSecAggParams,
    LightSecAggServer,
)
from securefl.protocols.machine import ClientMachine, ServerMachine
from securefl.protocols.secagg import ClientPolicy, SecAggClient, SecAggParams, SecAggServer
from securefl.round import (
    SERVER,
    Adversary,
    ClientId,
    Cohort,
    GraphSource,
    Layout,
    RoundId,
    ThreatModel,
)
from securefl.simulation.paillier import Trust, paillier_session
from securefl.simulation.session import SessionResult, run_session
from securefl.wire import Frame, decode_frame, encode_frame

N, ALIVE = 7, 5


@dataclass
class Instance:
    """One fresh session of a protocol: 7 clients, ``alive`` of whom must stay.

    A sparse graph counts neighbourhoods: once inputs are in, more may leave if they leave the
    right ones, so the threshold is exact only before.
    """

    server: ServerMachine
    clients: dict[ClientId, ClientMachine]
    modulus: int
    m: int
    alive: int = ALIVE
    sparse: bool = False
    identities: dict[ClientId, IdentityKey] = field(default_factory=dict)
    parties: dict[ClientId, ClientMachine] = field(default_factory=dict)

    def machine(self, u: ClientId) -> ServerMachine | ClientMachine:
        return self.server if u == SERVER else {**self.clients, **self.parties}[u]

    def run(self, inputs: dict[ClientId, RingVector], **how: object) -> SessionResult:
        return run_session(self.server, self.clients, inputs, parties=self.parties, **how)

    def vector(self, values: list[int]) -> RingVector:
        return RingVector(np.array(values, dtype=ring_dtype(self.modulus)), self.modulus)


def edited(frame: bytes, **changes: object) -> bytes:
    old = decode_frame(frame)
    fields = {name: getattr(old, name) for name in Frame.__slots__}
    return encode_frame(Frame(**{**fields, **changes}))


def secagg(
    *,
    layout: Layout = Layout.OTHERS,
    active: bool = False,
    k: int | None = None,
    alive: int = ALIVE,
) -> Callable[[], Instance]:
    def build() -> Instance:
        adversary = Adversary.ACTIVE if active else Adversary.SEMI_HONEST
        threat = ThreatModel(adversary=adversary, corrupt=1, dropped=N - alive)
        if k is None:
            params = SecAggParams.complete(N, threat, layout=layout)
        else:
            params = SecAggParams.harary(N, threat, k=k)
        config = params.config(
            round_id=RoundId(9),
            cohort=Cohort.of(range(1, N + 1)),
            m=3,
            b=24,
            context_digest=bytes(32),
            server_nonce=os.urandom(32),
        )
        policy = ClientPolicy(gamma=0, experimental_active_graph=True)
        identities = {u: IdentityKey(os.urandom(32)) for u in config.cohort}
        directory = IdentityDirectory({u: key.public for u, key in identities.items()})
        clients = {
            u: SecAggClient(
                u,
                config,
                context_digest=bytes(32),
                policy=policy,
                identity=identities[u],
                directory=directory,
            )
            for u in config.cohort
        }
        server = SecAggServer(config, directory=directory)
        if config.graph_source is GraphSource.BEACON:
            beacon = os.urandom(32)
            for machine in (server, *clients.values()):
                machine.set_beacon(beacon)
        sparse = k is not None
        return Instance(server, dict(clients), config.modulus, config.m, alive, sparse, identities)

    return build


def lightsecagg(*, active: bool = False) -> Callable[[], Instance]:
    def build() -> Instance:
        adversary = Adversary.ACTIVE if active else Adversary.SEMI_HONEST
        params = LightSecAggParams.of(
            N, ThreatModel(adversary=adversary, corrupt=1, dropped=N - ALIVE), T=2
        )
        config = params.config(
            round_id=RoundId(9),
            cohort=Cohort.of(range(1, N + 1)),
            m=3,
            context_digest=bytes(32),
            server_nonce=os.urandom(32),
        )
        identities = {u: IdentityKey(os.urandom(32)) for u in config.cohort}
        directory = IdentityDirectory({u: key.public for u, key in identities.items()})
        clients = {
            u: LightSecAggClient(
                u,
                config,
                context_digest=bytes(32),
                policy=ClientPolicy(gamma=0),
                identity=identities[u],
                directory=directory,
            )
            for u in config.cohort
        }
        server = LightSecAggServer(config, directory=directory)
        return Instance(server, dict(clients), config.modulus, config.m, identities=identities)

    return build


def paillier(trust: Trust, *, hybrid: bool = False) -> Callable[[], Instance]:
    @lru_cache(maxsize=1)
    def keys() -> SecretKey | tuple[ThresholdPublicKey, tuple[KeyShare, ...]]:
        random_bytes = np.random.default_rng(5).bytes
        if trust is Trust.KEY_HOLDER:
            return generate_keypair(512, random_bytes=random_bytes, min_bits=512)
        public, shares = deal(
            threshold=3, parties=4, bits=512, random_bytes=random_bytes, min_bits=512
        )
        return public, tuple(shares)

    def build() -> Instance:
        made = paillier_session(
            trust,
            Cohort.of(range(1, N + 1)),
            round_id=RoundId(9),
            alive=ALIVE,
            m=3,
            b=20,
            context_digest=bytes(32),
            policy=ClientPolicy(gamma=0),
            keys=keys(),
            experimental_hybrid=hybrid,
        )
        return Instance(
            made.server,
            dict(made.clients),
            made.config.modulus,
            made.config.m,
            # Clients are not needed once their inputs are in.
            sparse=True,
            parties=dict(made.parties),
        )

    return build


PROTOCOLS = {
    "secagg": secagg(),
    "secagg-own-share": secagg(layout=Layout.ALL),
    "secagg-active": secagg(active=True),
    "secagg-own-share-active": secagg(layout=Layout.ALL, active=True),
    "secagg+": secagg(k=4),
    "secagg+-active": secagg(k=4, active=True, alive=6),
    "lightsecagg": lightsecagg(),
    "lightsecagg-active": lightsecagg(active=True),
    "paillier": paillier(Trust.KEY_HOLDER),
    "paillier-threshold": paillier(Trust.THRESHOLD),
    "paillier-hybrid-experimental": paillier(Trust.KEY_HOLDER, hybrid=True),
    "paillier-threshold-hybrid-experimental": paillier(Trust.THRESHOLD, hybrid=True),
}


@pytest.fixture(params=list(PROTOCOLS))
def protocol(request: pytest.FixtureRequest) -> Callable[[], Instance]:
    return PROTOCOLS[request.param]


@pytest.fixture
def edit() -> Callable[..., bytes]:
    return edited
