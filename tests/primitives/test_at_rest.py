"""Secrets on a disk: opened by their key, unchanged and in their place, or not at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.errors import ConfigurationError
from securefl.primitives.at_rest import OVERHEAD_BYTES, open_stored, seal_stored
from securefl.primitives.channel import Unopenable

KEY = bytes(range(32))


@given(st.binary(max_size=200), st.binary(max_size=50), st.data())
def test_stored_bytes_open_only_unchanged(
    plaintext: bytes, aad: bytes, data: st.DataObject
) -> None:
    sealed = seal_stored(KEY, plaintext, aad)
    assert len(sealed) == len(plaintext) + OVERHEAD_BYTES
    assert open_stored(KEY, sealed, aad) == plaintext
    changed = bytearray(sealed)
    changed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    cut = sealed[: data.draw(st.integers(0, len(sealed) - 1))]
    for key, blob, context in [
        (KEY, bytes(changed), aad),
        (KEY, cut, aad),
        (KEY, sealed, aad + b"\0"),
        (bytes(32), sealed, aad),
    ]:
        with pytest.raises(Unopenable):
            open_stored(key, blob, context)


def test_two_stored_copies_of_one_secret_share_no_nonce() -> None:
    nonces = {seal_stored(KEY, b"secret", b"")[:12] for _ in range(1000)}
    assert len(nonces) == 1000


@pytest.mark.parametrize("key", [b"", bytes(16), bytes(33), "k" * 32, bytearray(32), None])
def test_a_storage_key_is_32_bytes(key: object) -> None:
    with pytest.raises(ConfigurationError, match="32"):
        seal_stored(key, b"secret", b"")
    with pytest.raises(ConfigurationError, match="32"):
        open_stored(key, bytes(40), b"")
