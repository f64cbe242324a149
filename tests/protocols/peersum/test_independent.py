"""Peersum once more, with plain integers and ``cryptography`` only: every frame, byte by byte.

Nothing of the library is used below the line that compares; the wire format's page is enough.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

P = 2**31 - 1


def dst(usage: int) -> bytes:
    return b"SFL1" + bytes((1, 5, usage, 0))


def ids(*us: int) -> bytes:
    return struct.pack(f"<{len(us)}I", *us)


def stream(key: bytes, size: int) -> bytes:
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(size))


def hkdf(ikm: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=salt, info=info).derive(ikm)


def bitmap(cohort: list[int], members: Iterable[int]) -> bytes:
    bits = sum(1 << i for i, u in enumerate(cohort) if u in set(members))
    return bits.to_bytes(-(-len(cohort) // 8), "little")


def elements(values: list[int]) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


class Second:
    """One whole session: ``lost`` sends its key and nothing else; everything else arrives.

    Args:
        config: canonical bytes.
        keys: per peer the key of its stream of randomness.
        inputs: per peer m field elements.
        identities: per peer its Ed25519 seed.
        lost: who vanishes before it shares its input, or None.
    """

    def __init__(
        self,
        config: bytes,
        *,
        keys: dict[int, bytes],
        inputs: dict[int, list[int]],
        identities: dict[int, bytes],
        lost: int | None,
    ) -> None:
        (self.round,) = struct.unpack_from("<Q", config, 8)
        (n,) = struct.unpack_from("<I", config, 16)
        self.cohort = list(struct.unpack_from(f"<{n}I", config, 20))
        _, self.t, _, _, _, self.m = struct.unpack_from("<IIIIIQ", config, 20 + 4 * n)
        self.session = hashlib.sha256(dst(1) + config).digest()
        self.signing = {u: Ed25519PrivateKey.from_private_bytes(s) for u, s in identities.items()}
        self.frames: dict[tuple[int, int, int], bytes] = {}
        random = {u: stream(keys[u], 48) for u in self.cohort}
        self.secret = {u: X25519PrivateKey.from_private_bytes(r[:32]) for u, r in random.items()}
        self.public = {u: k.public_key().public_bytes_raw() for u, k in self.secret.items()}
        alive = [u for u in self.cohort if u != lost]
        for u in self.cohort:
            self.send(u, 1, lambda v, u=u: self.public[u], self.cohort)
        shares = {u: self.deal(random[u][32:], u, inputs[u]) for u in alive}
        for u in alive:
            self.send(u, 2, lambda v, u=u: self.seal(u, v, 6, 7, elements(shares[u][v])),
                      self.cohort)  # fmt: skip
        survivors = bitmap(self.cohort, alive)
        statement = dst(9) + self.session + survivors + b"".join(self.public[u] for u in alive)
        votes = {u: self.signing[u].sign(statement) for u in alive}
        signed = survivors + b"".join(votes[u] for u in alive)
        sums = {
            v: [sum(column) % P for column in zip(*(shares[u][v] for u in alive), strict=True)]
            for v in alive
        }
        for u in alive:
            self.send(u, 3, lambda v: survivors, self.cohort)
            self.send(u, 4, lambda v, u=u: survivors + votes[u], self.cohort)
            self.send(
                u, 5,
                lambda v, u=u: survivors + signed
                + self.seal(u, v, 15, 15, elements(sums[u]), survivors),
                self.cohort,
            )  # fmt: skip
        self.survivors = alive
        self.total = [sum(inputs[u][i] for u in alive) % P for i in range(self.m)]

    def deal(self, seed: bytes, u: int, secret: list[int]) -> dict[int, list[int]]:
        key = hkdf(seed, self.session, dst(14) + ids(u), 16)
        count = (self.t - 1) * self.m
        words = struct.unpack(f"<{count + 64}I", stream(key, 4 * (count + 64)))
        drawn = [w & P for w in words]
        spare = iter(drawn[count:])
        rows = [w if w != P else next(x for x in spare if x != P) for w in drawn[:count]]
        found = {}
        for index, v in enumerate(self.cohort):
            x = 1 + index
            found[v] = [
                (secret[i] + sum(rows[j * self.m + i] * x ** (j + 1) for j in range(self.t - 1)))
                % P
                for i in range(self.m)
            ]
        return found

    def seal(self, u: int, v: int, key: int, data: int, plain: bytes, what: bytes = b"") -> bytes:
        agreed = self.secret[u].exchange(X25519PublicKey.from_public_bytes(self.public[v]))
        info = dst(key) + ids(u, v) + self.public[u] + self.public[v]
        aad = dst(data) + self.session + ids(u, v) + what
        return AESGCM(hkdf(agreed, self.session, info, 32)).encrypt(bytes(12), plain, aad)

    def send(self, u: int, kind: int, body_for: Any, recipients: list[int]) -> None:
        for v in recipients:
            if v == u:
                continue
            body = body_for(v)
            head = struct.pack(
                "<4sBBBBHHIQ32sI", b"SFL1", 1, 5, kind, 1, 1, 0, u, self.round, self.session,
                len(body),
            )  # fmt: skip
            signature = self.signing[u].sign(dst(10) + ids(v) + head + body)
            self.frames[u, v, kind] = head + body + signature

    def transcript(self, v: int) -> bytes:
        """Digest of what v accepted."""
        accepted = sorted((k, u, f) for (u, w, k), f in self.frames.items() if w == v)
        lines = (bytes([k]) + ids(u) + hashlib.sha256(f).digest() for k, u, f in accepted)
        return hashlib.sha256(dst(16) + b"".join(lines)).digest()


@pytest.mark.parametrize(("n", "t", "m", "lost"), [(3, 2, 0, None), (5, 4, 3, 2), (9, 3, 5, 9)])
def test_every_frame_is_what_the_second_implementation_says(
    kit: Any, n: int, t: int, m: int, lost: int | None
) -> None:
    keys = {u: hashlib.sha256(b"stream %d" % u).digest()[:16] for u in range(1, n + 1)}

    def random_of(u: int) -> Any:
        cipher = Cipher(algorithms.AES(keys[u]), modes.CTR(bytes(16))).encryptor()
        return lambda size: cipher.update(bytes(size))

    bench = kit.make(n, D=int(lost is not None), t=t, m=m, random_of=random_of)
    bench.start()
    bench.deliver()
    bench.gone = {lost} if lost else set()
    bench.close()
    bench.finish()
    second = Second(
        bench.config.encode(),
        keys=keys,
        inputs={u: v.values.tolist() for u, v in bench.vectors.items()},
        identities={u: hashlib.sha256(b"identity of peer %d" % u).digest() for u in bench.peers},
        lost=lost,
    )
    assert bench.sent == second.frames
    assert bench.opened() == dict.fromkeys(second.survivors, second.total)
    for u in second.survivors:
        assert bench.peers[u].result.transcript_digest == second.transcript(u)
