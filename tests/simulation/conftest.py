"""Small Paillier keys for whatever is summed under keys that a process makes for itself."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from securefl.primitives.paillier import generate_keypair
from securefl.primitives.paillier.threshold import deal
from securefl.simulation import paillier


@pytest.fixture(scope="module")
def small_keys() -> Iterator[None]:
    """Keys of 512 bits: everything but the hiding."""
    source = np.random.default_rng(3).bytes
    secret = generate_keypair(512, random_bytes=source, min_bits=512)
    public, shares = deal(threshold=4, parties=5, bits=512, random_bytes=source, min_bits=512)
    patch = pytest.MonkeyPatch()
    patch.setattr(paillier, "_key_holder_key", lambda: secret)
    patch.setattr(paillier, "_threshold_key", lambda: (public, tuple(shares)))
    yield
    patch.undo()
