"""The protocols that the suite runs over. A new protocol adds one entry and passes all tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from securefl.modular import RingVector, ring_dtype
from securefl.protocols.machine import ClientMachine, ServerMachine
from securefl.protocols.secagg import ClientPolicy, SecAggClient, SecAggParams, SecAggServer
from securefl.round import ClientId, Cohort, Layout, RoundId, ThreatModel
from securefl.wire import Frame, decode_frame, encode_frame

N, ALIVE = 7, 5


@dataclass
class Instance:
    """One fresh session of a protocol: 7 clients, 5 of whom must stay."""

    server: ServerMachine
    clients: dict[ClientId, ClientMachine]
    modulus: int
    m: int

    def vector(self, values: list[int]) -> RingVector:
        return RingVector(np.array(values, dtype=ring_dtype(self.modulus)), self.modulus)


def edited(frame: bytes, **changes: object) -> bytes:
    old = decode_frame(frame)
    fields = {name: getattr(old, name) for name in Frame.__slots__}
    return encode_frame(Frame(**{**fields, **changes}))


def secagg(layout: Layout) -> Callable[[], Instance]:
    def build() -> Instance:
        params = SecAggParams.complete(N, ThreatModel(corrupt=1, dropped=N - ALIVE), layout=layout)
        config = params.config(
            round_id=RoundId(9),
            cohort=Cohort.of(range(1, N + 1)),
            m=3,
            b=24,
            context_digest=bytes(32),
            server_nonce=os.urandom(32),
        )
        clients = {
            u: SecAggClient(u, config, context_digest=bytes(32), policy=ClientPolicy(gamma=0))
            for u in config.cohort
        }
        return Instance(SecAggServer(config), dict(clients), config.modulus, config.m)

    return build


PROTOCOLS = {"secagg": secagg(Layout.OTHERS), "secagg-own-share": secagg(Layout.ALL)}


@pytest.fixture(params=list(PROTOCOLS))
def protocol(request: pytest.FixtureRequest) -> Callable[[], Instance]:
    return PROTOCOLS[request.param]


@pytest.fixture
def edit() -> Callable[..., bytes]:
    return edited
