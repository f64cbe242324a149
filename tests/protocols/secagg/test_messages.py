"""Bodies: decoding undoes encoding, and nothing else decodes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.errors import WireError
from securefl.primitives.sharing import PRIME
from securefl.protocols.machine import Reason
from securefl.protocols.secagg.messages import (
    Abort,
    AdvertiseKeys,
    EncryptedShares,
    KeyRoster,
    RosterEntry,
    ShareDelivery,
    UnmaskRequest,
    UnmaskShares,
    message_type,
)
from securefl.protocols.secagg.transitions import MessageType
from securefl.round import ClientId

KEY = st.binary(min_size=32, max_size=32)
FLAGS = st.lists(st.booleans(), max_size=20).map(lambda f: np.array(f, dtype=np.bool_))
CIPHERTEXT = st.binary(min_size=72, max_size=72)


@given(KEY, KEY, KEY)
def test_advertise_keys(c_pk: bytes, s_pk: bytes, commitment: bytes) -> None:
    message = AdvertiseKeys(c_pk=c_pk, s_pk=s_pk, commitment=commitment)
    assert len(message.encode()) == 96
    assert AdvertiseKeys.decode(message.encode()) == message


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1).map(ClientId), KEY, KEY), max_size=6))
def test_key_roster(entries: list[tuple[ClientId, bytes, bytes]]) -> None:
    message = KeyRoster(entries=tuple(RosterEntry(*entry) for entry in entries))
    assert len(message.encode()) == 4 + 68 * len(entries)
    assert KeyRoster.decode(message.encode(), most=6) == message


@given(st.lists(CIPHERTEXT, max_size=6))
def test_encrypted_shares(ciphertexts: list[bytes]) -> None:
    raw = EncryptedShares(ciphertexts=tuple(ciphertexts)).encode()
    assert len(raw) == 4 + 72 * len(ciphertexts)
    decoded = EncryptedShares.decode(raw, peers=len(ciphertexts))
    assert [row.tobytes() for row in decoded] == ciphertexts
    with pytest.raises(WireError, match="expected 7"):
        EncryptedShares.decode(raw, peers=7)


@given(FLAGS, st.data())
def test_share_delivery(present: np.ndarray, data: st.DataObject) -> None:
    ciphertexts = [data.draw(CIPHERTEXT) for _ in range(int(present.sum()))]
    raw = ShareDelivery(present=present, ciphertexts=ciphertexts).encode()
    assert len(raw) == -(-len(present) // 8) + 72 * len(ciphertexts)
    decoded = ShareDelivery.decode(raw, peers=len(present))
    assert decoded.present.tolist() == present.tolist()
    assert decoded.ciphertexts == ciphertexts


@given(st.integers(0, 2**32 - 1), FLAGS)
def test_unmask_request(size: int, alive: np.ndarray) -> None:
    raw = UnmaskRequest(size=size, alive=alive).encode()
    assert len(raw) == 4 + -(-len(alive) // 8)
    decoded = UnmaskRequest.decode(raw, peers=len(alive))
    assert (decoded.size, decoded.alive.tolist()) == (size, alive.tolist())


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=20), st.booleans(), st.data())
def test_unmask_shares(flags: list[tuple[bool, bool]], own: bool, data: st.DataObject) -> None:
    readable = np.array([r for r, _ in flags], dtype=np.bool_)
    alive = np.array([a for _, a in flags], dtype=np.bool_)
    source = np.random.default_rng(data.draw(st.integers(0, 2**32)))

    def shares(count: int, words: int) -> np.ndarray:
        return source.integers(0, PRIME, size=(count, words), dtype=np.uint32)

    message = UnmaskShares(
        readable=readable,
        own=shares(1, 5)[0] if own else None,
        b_shares=shares(int((readable & alive).sum()), 5),
        s_shares=shares(int((readable & ~alive).sum()), 9),
    )
    raw = message.encode(alive=alive)
    a, d = len(message.b_shares), len(message.s_shares)
    assert len(raw) == -(-len(flags) // 8) + 20 * a + 36 * d + 20 * own
    # The same bytes by hand: one share after the other, in the order of Q.
    expected = b""
    b_rows, s_rows = iter(message.b_shares), iter(message.s_shares)
    for r, alive_here in flags:
        if r:
            row = next(b_rows) if alive_here else next(s_rows)
            expected += b"".join(int(w).to_bytes(4, "little") for w in row)
    assert raw.endswith(expected)
    decoded = UnmaskShares.decode(raw, alive=alive, own=own)
    assert decoded.readable.tolist() == readable.tolist()
    assert np.array_equal(decoded.b_shares, message.b_shares)
    assert np.array_equal(decoded.s_shares, message.s_shares)
    assert (decoded.own is None) is not own
    assert "secret" in repr(message) and "[" not in repr(message)
    with pytest.raises(WireError):
        UnmaskShares.decode(raw, alive=alive, own=not own)


def test_a_share_that_is_no_field_element_is_refused() -> None:
    alive = np.ones(1, dtype=np.bool_)
    raw = b"\1" + bytes(16) + PRIME.to_bytes(4, "little")
    with pytest.raises(WireError, match="not below"):
        UnmaskShares.decode(raw, alive=alive, own=False)


@pytest.mark.parametrize("reason", list(Reason))
def test_abort(reason: Reason) -> None:
    assert Abort.decode(Abort(reason=reason).encode()) == Abort(reason=reason)


def test_reason_numbers_are_fixed() -> None:
    names = (
        "NO_REPLY MALFORMED INVALID_SIGNATURE DUPLICATE_KEY TOO_FEW_HOLDERS INVALID_SHARE LATE "
        "CLIENT_ABORT ROSTER_MISMATCH DECRYPTION_FAILED EQUIVOCATION BELOW_THRESHOLD"
    )
    assert [reason.name for reason in Reason] == names.split()
    assert [int(reason) for reason in Reason] == list(range(1, 13))


ALIVE = np.array([1, 0, 1, 1, 0, 1, 1, 1, 0], dtype=np.bool_)
DECODERS: dict[str, Callable[[bytes], object]] = {
    "AdvertiseKeys": AdvertiseKeys.decode,
    "KeyRoster": lambda raw: KeyRoster.decode(raw, most=9),
    "EncryptedShares": lambda raw: EncryptedShares.decode(raw, peers=9),
    "ShareDelivery": lambda raw: ShareDelivery.decode(raw, peers=9),
    "UnmaskRequest": lambda raw: UnmaskRequest.decode(raw, peers=9),
    "UnmaskShares": lambda raw: UnmaskShares.decode(raw, alive=ALIVE, own=False),
    "Abort": Abort.decode,
}


@pytest.mark.parametrize("name", list(DECODERS))
@given(raw=st.binary(max_size=400))
def test_random_bytes_raise_wire_errors_only(name: str, raw: bytes) -> None:
    try:
        decoded = DECODERS[name](raw)
    except WireError:
        return
    if name == "UnmaskShares":
        assert decoded.encode(alive=ALIVE) == raw
    elif name != "EncryptedShares":
        assert decoded.encode() == raw


@pytest.mark.parametrize("name", list(DECODERS))
def test_the_empty_body_is_refused(name: str) -> None:
    with pytest.raises(WireError):
        DECODERS[name](b"")


def test_unknown_types_are_refused() -> None:
    assert message_type(255) is MessageType.ABORT
    with pytest.raises(WireError, match="unknown message type 10"):
        message_type(10)
