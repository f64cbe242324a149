"""A second implementation of a whole session: plain integers, hashlib, hmac, ``cryptography``.

It shares no code with the library. From the same randomness it computes every frame of every
client, byte for byte, and the opened sum: both graphs, both adversaries, both layouts.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from securefl.round import GraphSource, Layout

P = 2**31 - 1


def u32(x: int) -> bytes:
    return x.to_bytes(4, "little")


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


def audit_path(index: int, leaves: list[bytes]) -> list[bytes]:
    """RFC 6962, section 2.1.1, literally."""
    if len(leaves) == 1:
        return []
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if index < k:
        return [*audit_path(index, leaves[:k]), mth(leaves[k:])]
    return [*audit_path(index - k, leaves[k:]), mth(leaves[:k])]


class Wire:
    """Labels, frames and signatures of one session's protocol and adversary."""

    def __init__(
        self, protocol: int, active: bool, round_id: int, identities: dict[int, bytes]
    ) -> None:
        self.protocol, self.active, self.round_id = protocol, active, round_id
        self.identities = identities

    def dst(self, usage: int) -> bytes:
        return b"SFL1" + bytes([1, self.protocol, usage, 0])

    def frame(self, kind: int, sender: int, session: bytes, body: bytes) -> bytes:
        signed = self.active and sender != 2**32 - 1
        head = b"SFL1" + bytes([1, self.protocol, kind, signed]) + (1).to_bytes(2, "little")
        head += bytes(2) + u32(sender) + self.round_id.to_bytes(8, "little")
        content = head + session + u32(len(body)) + body
        if not signed:
            return content
        return content + self.sign(sender, self.dst(10) + u32(2**32 - 1) + content)

    def sign(self, u: int, message: bytes) -> bytes:
        return Ed25519PrivateKey.from_private_bytes(self.identities[u]).sign(message)


def ring(w: Wire, ids: list[int], k: int, digest: bytes, value: bytes) -> dict[int, list[int]]:
    """Neighbours on the ring, or everybody if k = n - 1."""
    if k == len(ids) - 1:
        return {u: [v for v in ids if v != u] for u in ids}
    seed = H(w.dst(11), digest, value)
    order = sorted(ids, key=lambda u: H(w.dst(12), seed, u32(u)))
    near: dict[int, list[int]] = {}
    for i, u in enumerate(order):
        steps = [(j - i) % len(ids) for j in range(len(ids))]
        near[u] = sorted(
            v for v, s in zip(order, steps, strict=True) if 0 < min(s, len(ids) - s) <= k // 2
        )
    return near


class Second:
    """A whole session from its configuration, computed; one client may leave before its input.

    Attributes:
        up: every client's frames, by (client, phase).
        down: the server's, by (client, phase that they open).
        total, transcript: the sum and the transcript digest.
        shares: by (dealer, holder), of b and of s.
        near: everybody's neighbours, ascending.
        session: the session id.
    """

    def __init__(
        self,
        config: bytes,
        *,
        random_of: Callable[[int], Callable[[int], bytes]],
        inputs: dict[int, list[int]],
        lost: int,
        beacon: bytes,
        identities: dict[int, bytes],
    ) -> None:
        number = int.from_bytes
        protocol, active, own_share, from_beacon = config[:4]
        n = number(config[16:20], "little")
        ids = [number(config[20 + 4 * i : 24 + 4 * i], "little") for i in range(n)]
        rest = config[20 + 4 * n :]
        k, t = number(rest[:4], "little"), number(rest[4:8], "little")
        m, b = number(rest[20:28], "little"), rest[29]
        value = beacon if from_beacon else rest[-32:]
        w = Wire(protocol, bool(active), number(config[8:16], "little"), identities)
        self.up: dict[tuple[int, str], bytes] = {}
        self.down: dict[tuple[int, str], bytes] = {}
        server = 2**32 - 1
        digest = H(w.dst(1), config)
        near = ring(w, ids, k, digest, value)
        parties = {u: Party(u, random_of(u)) for u in ids}
        x = {u: 1 + i for i, u in enumerate(ids)}

        entries = []
        for u, p in parties.items():
            commitment = H(w.dst(8), digest, u32(u), p.c_pk, p.b)
            sent = w.frame(1, u, digest, p.c_pk + p.s_pk + commitment)
            self.up[u, "advertise_keys"] = sent
            extra = commitment + sent[-64:] if active else b""
            entries.append(u32(u) + p.c_pk + p.s_pk + extra)

        leaves = [w.dst(2) + e for e in entries]
        for u in ids:
            body = u32(n) + b"".join(entries)
            if k < n - 1:
                body = u32(n) + mth(leaves) + u32(k + 1)
                for i in [i for i, v in enumerate(ids) if v == u or v in near[u]]:
                    path = audit_path(i, leaves)
                    body += entries[i] + u32(i) + bytes([len(path)]) + b"".join(path)
            self.down[u, "share_keys"] = w.frame(2, server, digest, body)
        self.session = session = H(w.dst(3), digest, u32(n), mth(leaves))

        self.near, self.wire = near, w
        self.shares = shares = dict[tuple[int, int], tuple[bytes, bytes]]()
        sealed: dict[tuple[int, int], bytes] = {}
        for u, p in parties.items():
            b_rows, s_rows = p.coefficients(t, 5), p.coefficients(t, 9)
            for v in ids:
                shares[u, v] = share_at(x[v], p.b, b_rows), share_at(x[v], p.s_sk, s_rows)
            for v in near[u]:
                pair = u32(u) + u32(v)
                key = hkdf(dh(p.c_sk, parties[v].c_pk), session, w.dst(6) + pair, 32)
                plain = b"".join(shares[u, v])
                sealed[u, v] = AESGCM(key).encrypt(bytes(12), plain, w.dst(7) + session + pair)
            body = u32(k) + b"".join(sealed[u, v] for v in near[u])
            self.up[u, "share_keys"] = w.frame(3, u, session, body)
        for u in ids:
            body = bitmap([True] * k) + b"".join(sealed[v, u] for v in near[u])
            self.down[u, "masked_input_collection"] = w.frame(4, server, session, body)

        U3 = [u for u in ids if u != lost]
        self.pair_keys: dict[str, bytes] = {}
        for u in U3:
            p = parties[u]
            own = mask(hkdf(p.b, session, w.dst(5) + u32(u), 16), m, b)
            y = [a + z for a, z in zip(inputs[u], own, strict=True)]
            for v in near[u]:
                low, high = min(u, v), max(u, v)
                info = w.dst(4) + u32(low) + u32(high)
                key = hkdf(dh(p.s_sk, parties[v].s_pk), session, info, 16)
                self.pair_keys[f"{low}-{high}"] = key
                delta = 1 if u > v else -1
                y = [a + delta * z for a, z in zip(y, mask(key, m, b), strict=True)]
            total = sum((a % 2**b) << (i * b) for i, a in enumerate(y))
            packed = total.to_bytes(-(-m * b // 8), "little")
            self.up[u, "masked_input_collection"] = w.frame(5, u, session, packed)

        if active:
            survivors = bitmap([u in U3 for u in ids])
            agreed = {u: w.sign(u, w.dst(9) + session + survivors) for u in U3}
            for u in U3:
                self.down[u, "consistency_check"] = w.frame(6, server, session, survivors)
                self.up[u, "consistency_check"] = w.frame(7, u, session, agreed[u])
        for u in U3:
            body = u32(len(U3)) + bitmap([v in U3 for v in near[u]])
            if active:
                signers = [v for v in near[u] if v in U3]
                body = u32(len(signers)) + b"".join(u32(v) + agreed[v] for v in signers)
            self.down[u, "unmasking"] = w.frame(8, server, session, body)
            body = bitmap([True] * k)
            body += shares[u, u][0] if own_share else b""
            for v in near[u]:
                body += shares[v, u][0 if v in U3 else 1]
            self.up[u, "unmasking"] = w.frame(9, u, session, body)

        self.total = [sum(inputs[u][i] for u in U3) % 2**b for i in range(m)]
        self.transcript = self.transcript_of(self.up)

    def transcript_of(self, up: dict[tuple[int, str], bytes]) -> bytes:
        """The digest over these frames of the clients."""
        w = self.wire
        order = ["advertise_keys", "share_keys", "masked_input_collection", "consistency_check"]
        kinds = dict(zip([*order, "unmasking"], [1, 3, 5, 7, 9], strict=True))
        records = sorted((kinds[phase], u, f) for (u, phase), f in up.items())
        return H(w.dst(16), *(bytes([kind]) + u32(u) + H(f) for kind, u, f in records))


VARIANTS = {
    "complete": {},
    "own share": {"layout": Layout.ALL},
    "complete, active": {"active": True},
    "own share, active": {"layout": Layout.ALL, "active": True},
    "ring": {"k": 4},
    "ring from a beacon": {"k": 4, "source": GraphSource.BEACON},
    "ring, active": {"k": 4, "active": True},
}


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize(("m", "b"), [(5, 13), (3, 40), (1, 64), (8, 32), (0, 7)])
def test_every_frame_of_a_session_equals_the_second_implementation(
    secagg: Any, variant: str, m: int, b: int
) -> None:
    what: dict[str, Any] = VARIANTS[variant]
    active, own_share = what.get("active", False), what.get("layout") is Layout.ALL
    ids, lost, beacon = [2, 3, 11, 40, 41, 50, 77], 11, bytes(range(100, 132))
    n, k = len(ids), what.get("k", len(ids) - 1)
    t = {True: 5, False: 4}[active] if k == n - 1 else 3
    bench = secagg.make(
        n, t=t, D=1, m=m, b=b, ids=ids, random_of=Stream, nonce=bytes([7] * 32), beacon=beacon,
        **what,
    )  # fmt: skip
    from_beacon = bool(what.get("source")) or (active and k < n - 1)
    config = bytes([1 if k == n - 1 else 2, active, own_share, from_beacon]) + b"\1\0\0\0"
    config += (3).to_bytes(8, "little") + u32(n) + b"".join(map(u32, ids))
    config += u32(k) + u32(t) + u32(1) + u32(1) + u32(n - 1)
    config += m.to_bytes(8, "little") + bytes([0, b, 0, 0])
    config += bytes(range(32)) + bytes([7] * 32) + bytes(32)
    assert bench.config.encode() == config
    second = Second(
        config,
        random_of=Stream,
        inputs={int(u): v.values.tolist() for u, v in bench.vectors.items()},
        lost=lost,
        beacon=beacon,
        identities={u: hashlib.sha256(b"identity of %d" % u).digest() for u in ids},
    )
    down: dict[tuple[int, str], bytes] = {}
    bench.start()
    while not bench.server.final:
        bench.close()
        down |= {(u, str(bench.server.phase)): frame for u, frame in bench.inbox.items()}
        late = bench.server.phase == "masked_input_collection"
        bench.answer(without=[lost] if late else [])
    assert down == second.down
    assert bench.sent == second.up
    assert bench.server.result.vector.values.tolist() == second.total
    assert bench.server.result.transcript_digest == second.transcript
    assert bench.plain_sum(u for u in ids if u != lost) == second.total
