"""A second implementation of a whole session: plain integers, hashlib, hmac, ``cryptography``.

It shares no code with the library. From the same randomness it computes every frame of every
client, byte for byte, and the opened sum.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from securefl.round import ClientId, Layout

P = 2**31 - 1


def u32(x: int) -> bytes:
    return x.to_bytes(4, "little")


def dst(usage: int) -> bytes:
    return b"SFL1" + bytes([1, 1, usage, 0])


def H(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def hkdf(ikm: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    prk = hmac.new(salt, ikm, hashlib.sha256).digest()
    return hmac.new(prk, info + b"\x01", hashlib.sha256).digest()[:length]


def dh(sk: bytes, pk: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(sk).exchange(X25519PublicKey.from_public_bytes(pk))


def public(sk: bytes) -> bytes:
    key = X25519PrivateKey.from_private_bytes(sk).public_key()
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def mth(leaves: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, literally."""
    if len(leaves) == 1:
        return H(b"\x00", leaves[0])
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return H(b"\x01", mth(leaves[:k]), mth(leaves[k:]))


def mask(key: bytes, m: int, b: int) -> list[int]:
    width = 4 if b <= 32 else 8
    ecb = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    stream = b"".join(ecb.update(i.to_bytes(16, "big")) for i in range(-(-m * width // 16)))
    return [int.from_bytes(stream[width * i : width * i + width], "little") for i in range(m)]


def words_of(secret: bytes) -> list[int]:
    count = -(-8 * len(secret) // 30)
    number = int.from_bytes(secret, "little")
    return [(number >> 30 * i) % 2**30 for i in range(count)]


def frame(kind: int, sender: int, round_id: int, session: bytes, body: bytes) -> bytes:
    head = b"SFL1" + bytes([1, 1, kind, 0]) + (1).to_bytes(2, "little") + bytes(2)
    return head + u32(sender) + round_id.to_bytes(8, "little") + session + u32(len(body)) + body


def bitmap(bits: list[bool]) -> bytes:
    number = sum(bit << i for i, bit in enumerate(bits))
    return number.to_bytes(-(-len(bits) // 8), "little")


class Stream:
    """Bytes 0, 1, 2, ... of an AES-CTR stream keyed by the client's id."""

    def __init__(self, u: int) -> None:
        self.cipher = Cipher(
            algorithms.AES(u.to_bytes(16, "big")), modes.CTR(bytes(16))
        ).encryptor()

    def __call__(self, n: int) -> bytes:
        return self.cipher.update(bytes(n))


class Party:
    def __init__(self, u: int, random: Callable[[int], bytes]) -> None:
        self.u, self.random = u, random
        self.c_sk, self.s_sk, self.b = random(32), random(32), random(16)
        self.c_pk, self.s_pk = public(self.c_sk), public(self.s_sk)

    def coefficients(self, t: int, words: int) -> list[list[int]]:
        raw = self.random(4 * (t - 1) * words)
        cells = [raw[i : i + 4] for i in range(0, len(raw), 4)]
        flat = [int.from_bytes(cell, "little") % 2**31 for cell in cells]
        assert P not in flat, "one in 2^31; this stream has none"
        return [flat[words * i : words * (i + 1)] for i in range(t - 1)]


def share_at(x: int, secret: bytes, rows: list[list[int]]) -> bytes:
    out = b""
    for j, word in enumerate(words_of(secret)):
        out += u32((word + sum(row[j] * x ** (i + 1) for i, row in enumerate(rows))) % P)
    return out


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize(("m", "b"), [(5, 13), (3, 40), (1, 64), (8, 32), (0, 7)])
def test_every_frame_of_a_session_equals_the_second_implementation(
    secagg: Any, layout: Layout, m: int, b: int
) -> None:
    ids, t, n = [2, 3, 11, 40, 41], 3, 5
    bench = secagg.make(
        n, t=t, D=1, m=m, b=b, ids=ids, layout=layout, random_of=Stream, nonce=bytes([7] * 32)
    )
    digest = H(dst(1), bench.config.encode())
    parties = {u: Party(u, Stream(u)) for u in ids}
    x = {u: 1 + i for i, u in enumerate(ids)}

    bench.start()
    for u, p in parties.items():
        commitment = H(dst(8), digest, u32(u), p.c_pk, p.b)
        body = p.c_pk + p.s_pk + commitment
        assert bench.sent[ClientId(u), "advertise_keys"] == frame(1, u, 3, digest, body)

    bench.close()
    entries = [u32(u) + p.c_pk + p.s_pk for u, p in parties.items()]
    roster = frame(2, 2**32 - 1, 3, digest, u32(n) + b"".join(entries))
    assert set(bench.inbox.values()) == {roster}
    session = H(dst(3), digest, u32(n), mth([dst(2) + e for e in entries]))

    bench.answer()
    shares: dict[tuple[int, int], tuple[bytes, bytes]] = {}
    sealed: dict[tuple[int, int], bytes] = {}
    for u, p in parties.items():
        b_rows, s_rows = p.coefficients(t, 5), p.coefficients(t, 9)
        for v in ids:
            shares[u, v] = share_at(x[v], p.b, b_rows), share_at(x[v], p.s_sk, s_rows)
        for v in ids:
            if v != u:
                pair = u32(u) + u32(v)
                key = hkdf(dh(p.c_sk, parties[v].c_pk), session, dst(6) + pair, 32)
                plain = b"".join(shares[u, v])
                sealed[u, v] = AESGCM(key).encrypt(bytes(12), plain, dst(7) + session + pair)
        body = u32(n - 1) + b"".join(sealed[u, v] for v in ids if v != u)
        assert bench.sent[ClientId(u), "share_keys"] == frame(3, u, 3, session, body)

    bench.close()
    for u in ids:
        body = bitmap([True] * 4) + b"".join(sealed[v, u] for v in ids if v != u)
        assert bench.inbox[ClientId(u)] == frame(4, 2**32 - 1, 3, session, body)

    bench.answer(without=[11])
    U3 = [u for u in ids if u != 11]
    for u in U3:
        p = parties[u]
        y = bench.vectors[ClientId(u)].values.tolist()
        own = mask(hkdf(p.b, session, dst(5) + u32(u), 16), m, b)
        y = [a + z for a, z in zip(y, own, strict=True)]
        for v in ids:
            if v == u:
                continue
            low, high = min(u, v), max(u, v)
            key = hkdf(dh(p.s_sk, parties[v].s_pk), session, dst(4) + u32(low) + u32(high), 16)
            delta = 1 if u > v else -1
            y = [a + delta * z for a, z in zip(y, mask(key, m, b), strict=True)]
        number = sum((a % 2**b) << (i * b) for i, a in enumerate(y))
        packed = number.to_bytes(-(-m * b // 8), "little")
        sent = bench.sent[ClientId(u), "masked_input_collection"]
        assert sent == frame(5, u, 3, session, packed)

    bench.close()
    for u in U3:
        body = u32(4) + bitmap([v in U3 for v in ids if v != u])
        assert bench.inbox[ClientId(u)] == frame(8, 2**32 - 1, 3, session, body)

    bench.answer()
    for u in U3:
        body = bitmap([True] * 4)
        body += shares[u, u][0] if layout is Layout.ALL else b""
        for v in ids:
            if v != u:
                body += shares[v, u][0 if v in U3 else 1]
        assert bench.sent[ClientId(u), "unmasking"] == frame(9, u, 3, session, body)

    bench.close()
    result = bench.server.result
    assert result.vector.values.tolist() == bench.plain_sum(U3)
    names = {"advertise_keys": 1, "share_keys": 3, "masked_input_collection": 5, "unmasking": 9}
    records = sorted((names[phase], u, f) for (u, phase), f in bench.sent.items())
    assert result.transcript_digest == H(
        dst(16), *(bytes([kind]) + u32(u) + H(f) for kind, u, f in records)
    )
