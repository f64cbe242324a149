"""Small keys for tests: 512-bit safe primes hide nothing but have every algebraic property."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from securefl.primitives import bigint
from securefl.primitives.paillier import SecretKey, generate_keypair
from securefl.primitives.paillier.threshold import KeyShare, ThresholdPublicKey, deal


def stream(seed: int) -> Callable[[int], bytes]:
    return np.random.default_rng(seed).bytes


@pytest.fixture(scope="session")
def small_key() -> SecretKey:
    return generate_keypair(512, random_bytes=stream(1), min_bits=512)


@pytest.fixture(scope="session")
def other_key() -> SecretKey:
    return generate_keypair(512, random_bytes=stream(2), min_bits=512)


@pytest.fixture(scope="session")
def blum_key() -> SecretKey:
    return generate_keypair(512, primes="blum", random_bytes=stream(3), min_bits=512)


@pytest.fixture(scope="session", params=[1, 2])
def dealt(request: pytest.FixtureRequest) -> tuple[ThresholdPublicKey, list[KeyShare]]:
    return deal(
        threshold=3, parties=5, bits=512, s=request.param, random_bytes=stream(4), min_bits=512
    )


@pytest.fixture(params=bigint.available())
def backend(request: pytest.FixtureRequest) -> object:
    with bigint.using(request.param):
        yield request.param
