"""Key files: modes, sizes, and sealed shares against a second implementation of their format."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from securefl.errors import ConfigurationError, WireError
from securefl.primitives.paillier import files
from securefl.primitives.paillier.files import FileKind
from securefl.primitives.paillier.threshold import KeyShare, ThresholdPublicKey, deal

Dealt = tuple[ThresholdPublicKey, list[KeyShare]]


@pytest.fixture
def mask() -> Iterator[None]:
    """Gives the process its umask back."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777])
def test_the_mode_of_a_key_file_does_not_depend_on_the_umask(
    tmp_path: Path, mask: None, umask: int
) -> None:
    os.umask(umask)
    files.write_secret(tmp_path / "secret", b"secret")
    files.write_public(tmp_path / "public", b"public")
    assert mode(tmp_path / "secret") == 0o600
    assert mode(tmp_path / "public") == 0o644


def test_a_secret_is_never_readable_by_others_not_even_before_its_mode_is_set(
    tmp_path: Path, mask: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.umask(0)
    seen: list[int] = []

    def look(descriptor: int, wanted: int) -> None:
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))

    monkeypatch.setattr(files.os, "fchmod", look)
    files.write_secret(tmp_path / "secret", b"secret")
    assert seen == [0o600]


@pytest.mark.parametrize("kind", FileKind)
@pytest.mark.parametrize("bits", [0o600, 0o400, 0o640, 0o620, 0o610, 0o604, 0o602, 0o601])
def test_a_secret_that_anybody_else_can_touch_is_warned_of(
    tmp_path: Path, kind: FileKind, bits: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    path.chmod(bits)
    warning = files.describe_permissions(path, kind)
    secret = kind in (FileKind.SECRET, FileKind.SHARE, FileKind.HOLDER_SECRET)
    assert (warning is None) == (not secret or bits in (0o600, 0o400))
    if warning is not None:
        assert f"{bits:04o}" in warning
        assert "chmod 600" in warning


def test_a_file_too_large_for_a_key_is_not_read_as_one(tmp_path: Path) -> None:
    path = tmp_path / "film"
    path.write_bytes(bytes(1 << 22))
    assert len(files.read(path)) == 1 << 22
    path.write_bytes(bytes((1 << 22) + 1))
    with pytest.raises(ConfigurationError, match="more than 4194304 bytes"):
        files.read(path)
    with pytest.raises(ConfigurationError, match="cannot read"):
        files.read(tmp_path)


@pytest.mark.parametrize("kind", ["secret", "public"])
def test_a_file_that_is_there_is_never_opened_for_writing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"the only copy")
    with pytest.raises(ConfigurationError, match="never overwritten"):
        getattr(files, f"write_{kind}")(path, b"another")
    assert path.read_bytes() == b"the only copy"


def seal(index: int, key_id: bytes, content: bytes, holder: bytes, *, aad: bool = True) -> bytes:
    """A sealed share as the documentation describes it, by another implementation."""
    fresh = X25519PrivateKey.from_private_bytes(bytes(range(32)))
    header = b"SFLX\1" + bytes([index]) + key_id + fresh.public_key().public_bytes_raw()
    shared = fresh.exchange(X25519PublicKey.from_public_bytes(holder))
    info = b"securefl/paillier/share/v1" + header + holder
    key = HKDF(algorithm=SHA256(), length=32, salt=b"", info=info).derive(shared)
    return header + AESGCM(key).encrypt(bytes(12), content, header if aad else b"")


def unseal(data: bytes, holder: bytes) -> bytes:
    secret = X25519PrivateKey.from_private_bytes(holder)
    header, sealed = data[:70], data[70:]
    shared = secret.exchange(X25519PublicKey.from_public_bytes(header[38:]))
    info = b"securefl/paillier/share/v1" + header + secret.public_key().public_bytes_raw()
    key = HKDF(algorithm=SHA256(), length=32, salt=b"", info=info).derive(shared)
    return AESGCM(key).decrypt(bytes(12), sealed, header)


def test_a_second_implementation_opens_and_seals_the_same_shares(dealt: Dealt) -> None:
    public, shares = dealt
    made = files.holder_key(np.random.default_rng(3).bytes)
    holder, mine = files.read_holder_public(made.public), files.read_holder_key(made.secret)
    raw = made.secret[6:]
    for share in shares:
        sealed = files.seal_share(share, holder)
        assert sealed[:38] == b"SFLX\1" + bytes([share.index]) + public.key_id
        assert unseal(sealed, raw) == share.to_secret_bytes()
        assert share.to_secret_bytes()[-40:] not in sealed
        again = seal(share.index, public.key_id, share.to_secret_bytes(), holder.raw)
        opened = files.open_share(again, mine, public)
        assert (opened.index, opened.to_secret_bytes()) == (share.index, share.to_secret_bytes())
    loose = seal(1, public.key_id, shares[0].to_secret_bytes(), holder.raw, aad=False)
    with pytest.raises(ConfigurationError, match="another holder, or was altered"):
        files.open_share(loose, mine, public)


def test_two_sealings_of_one_share_have_nothing_in_common(dealt: Dealt) -> None:
    """A fresh agreement each time, so that no key ever seals twice under the constant nonce."""
    _, shares = dealt
    holder = files.read_holder_public(files.holder_key().public)
    one, two = (files.seal_share(shares[0], holder) for _ in range(2))
    assert one[38:70] != two[38:70]
    assert one[70:102] != two[70:102]


def test_a_share_under_the_label_of_another_share_or_key_is_refused(dealt: Dealt) -> None:
    """What is inside is a true share of this key; the label, which people sort by, is not."""
    public, shares = dealt
    made = files.holder_key(np.random.default_rng(4).bytes)
    holder, mine = files.read_holder_public(made.public), files.read_holder_key(made.secret)
    content = shares[0].to_secret_bytes()
    with pytest.raises(WireError, match="labelled 2 is share 1"):
        files.open_share(seal(2, public.key_id, content, holder.raw), mine, public)
    with pytest.raises(ConfigurationError, match="another threshold key"):
        files.open_share(seal(1, bytes(32), content, holder.raw), mine, public)


def test_a_share_of_another_key_is_refused_whatever_its_label_says(dealt: Dealt) -> None:
    public, _ = dealt
    random_bytes = np.random.default_rng(9).bytes
    _, others = deal(
        threshold=3, parties=5, bits=512, s=public.s, random_bytes=random_bytes, min_bits=512
    )
    made = files.holder_key(np.random.default_rng(5).bytes)
    holder, mine = files.read_holder_public(made.public), files.read_holder_key(made.secret)
    sealed = seal(1, public.key_id, others[0].to_secret_bytes(), holder.raw)
    with pytest.raises(ConfigurationError, match="another threshold key"):
        files.open_share(sealed, mine, public)


def test_every_changed_byte_and_every_cut_of_a_sealed_share_is_refused(dealt: Dealt) -> None:
    public, shares = dealt
    made = files.holder_key(np.random.default_rng(6).bytes)
    holder, mine = files.read_holder_public(made.public), files.read_holder_key(made.secret)
    sealed = files.seal_share(shares[0], holder)
    for place in range(0, len(sealed)):
        altered = bytearray(sealed)
        altered[place] ^= 128 if place != 69 else 1  # X25519 ignores the highest bit of a key
        with pytest.raises((ConfigurationError, WireError)):
            files.open_share(bytes(altered), mine, public)
    for length in range(0, len(sealed), 7):
        with pytest.raises((ConfigurationError, WireError)):
            files.open_share(sealed[:length], mine, public)
    with pytest.raises(InvalidTag):
        unseal(sealed[:-1] + bytes([sealed[-1] ^ 1]), made.secret[6:])
