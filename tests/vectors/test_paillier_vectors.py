"""The vectors of Paillier: replayed by the machines, checked by an implementation in plain ints.

The second implementation shares no code with the library: Python's ``pow``, hashes, AES and Ed25519
of ``cryptography``, textbook decryption, Lagrange coefficients as fractions.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import struct
import sys
from fractions import Fraction
from itertools import combinations
from math import factorial, prod
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("paillier/*.json"))
GOOD = [path for path in FILES if not path.name.startswith("bad_")]


def load(path: Path) -> ModuleType:
    name = f"securefl_vectors_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


VECTORS = load(HERE / "make_paillier_vectors.py")


def test_there_are_vectors_of_both_modes_and_of_every_lie() -> None:
    assert [path.stem for path in GOOD] == ["key_holder", "threshold"]
    assert len(FILES) == 60
    assert all(json.loads(path.read_text())["warning"] == VECTORS.WARNING for path in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_machines_do_what_the_vectors_of_paillier_say(path: Path) -> None:
    document = json.loads(path.read_text())
    machines = VECTORS.machines_of(document)
    for i, operation in enumerate(document["operations"]):
        frames, dropped, error = VECTORS.perform(machines, operation, document)
        assert [[u, f.hex()] for u, f in frames] == operation["emits"], i
        assert dropped == operation["dropped"], i
        assert str(machines[operation["who"]].phase) == operation["phase"], i
        assert (error is None and not dropped) is operation["success"], i
        assert (type(error).__name__ if error else None) == operation.get("error"), i
        assert getattr(error, "reason", None) == operation.get("reason"), i
    assert document["operations"][-1]["success"] is (path in GOOD)
    assert ("result" in document) is (path in GOOD)


def test_the_vectors_of_paillier_are_those_that_the_generator_writes() -> None:
    written = {str(path.relative_to(HERE)): path.read_text() for path in FILES}
    expected = {path: VECTORS.MAKE.text(document) for path, document in VECTORS.files().items()}
    assert written == expected


# -- the second implementation -------------------------------------------------------------------


def sha(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def u32(x: int) -> bytes:
    return x.to_bytes(4, "little")


def shortest(x: int) -> bytes:
    return x.to_bytes((x.bit_length() + 7) // 8, "big")


def derive(tag: str, *fields: bytes | int, length: int) -> bytes:
    pieces = [tag.encode(), *(shortest(x) if isinstance(x, int) else x for x in fields)]
    return hashlib.shake_256(
        b"".join(len(piece).to_bytes(8, "big") + piece for piece in pieces)
    ).digest(length)


def blocks_of_16(data: bytes) -> list[int]:
    return [int.from_bytes(data[i : i + 16], "big") for i in range(0, len(data), 16)]


class Stream:
    """AES-128-CTR from the start, and uniform numbers from it."""

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.AES128(key), modes.CTR(bytes(16))).encryptor()

    def take(self, count: int) -> bytes:
        return self._cipher.update(bytes(count))

    def bits(self, count: int) -> int:
        size = (count + 7) // 8
        return int.from_bytes(self.take(size), "big") >> (8 * size - count)

    def below(self, limit: int) -> int:
        while True:
            found = self.bits((limit - 1).bit_length())
            if found < limit:
                return found

    def digits(self) -> int:
        """256 bits in digits of 1 to 16."""
        return sum(((x & 15) + 1) << (4 * i) for i, x in enumerate(self.take(64)))


class Second:
    """One session of degree 1, computed from its document."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document, self.threshold = document, document["mode"] == "threshold"
        public = bytes.fromhex(document["public"])
        self.key_id = sha(public)
        start = 11 if self.threshold else 8
        self.n = int.from_bytes(public[start : start + 64], "big")
        self.N, self.W = self.n**2, 128
        self.plain_key = b"SFLP\1\1" + (64).to_bytes(2, "big") + public[start : start + 64]
        rest = public[start + 64 :]
        self.v, *self.v_i = [
            int.from_bytes(rest[i : i + self.W], "big") for i in range(0, len(rest), self.W)
        ] or [0]
        config = bytes.fromhex(document["config"])
        self.round = config[8:16]
        self.session = sha(b"SFL1\1\4\1\0", config)
        self.frames: set[bytes] = set()
        self.accepted: dict[tuple[int, int], bytes] = {}
        self.B, self.m = document["bound"], len(document["inputs"]["1"])
        self.w = (2 * self.B * document["max_clients"]).bit_length()
        self.L = (self.n.bit_length() - 1) // self.w
        y = int.from_bytes(derive("securefl/paillier/base/v1", self.n, length=80), "big")
        self.hs = pow(y * y % self.n, self.n, self.N)
        assert config[-32:] == self.terms()
        self.run()

    def terms(self) -> bytes:
        holders = [910, 911, 912, 913] if self.threshold else []
        deciders = holders or [900, 901]
        most, witnesses = self.document["max_clients"], 0 if self.threshold else 1
        numbers = (1, self.threshold, 0, 1, most, self.B, witnesses, 1, len(holders), 1)
        return sha(
            b"securefl/paillier/terms/v1",
            self.key_id,
            struct.pack("<BBBBIQIIII", *numbers),
            b"".join(map(u32, deciders)),
        )

    def frame(self, kind: int, sender: int | None, body: bytes) -> bytes:
        header = b"SFL1\1\4" + bytes([kind, sender is not None]) + b"\1\0\0\0"
        header += u32(0xFFFFFFFF if sender is None else sender)
        header += self.round + self.session + u32(len(body))
        signature = b""
        if sender is not None:
            secret = bytes.fromhex(self.document["identities"][str(sender)])
            statement = b"SFL1\1\4\12\0" + b"\xff\xff\xff\xff" + header + body
            signature = Ed25519PrivateKey.from_private_bytes(secret).sign(statement)
            self.accepted[kind, sender] = sha(header, body, signature)
        self.frames.add(header + body + signature)
        return header + body + signature

    def block(self, ciphertexts: list[int], terms: int = 1) -> bytes:
        head = self.key_id + bytes([1, 1, self.w]) + self.B.to_bytes(8, "big")
        head += self.m.to_bytes(4, "big") + len(ciphertexts).to_bytes(4, "big")
        head += terms.to_bytes(4, "big")
        return head + b"".join(c.to_bytes(self.W, "big") for c in ciphertexts)

    def submission(self, u: int) -> tuple[list[int], bytes]:
        n, N, random = self.n, self.N, Stream(bytes.fromhex(self.document["randomness"][str(u)]))
        half = 1 << 11
        values = [(x + half) % (1 << 12) - half + self.B for x in self.document["inputs"][str(u)]]
        plain = [
            sum(x << (self.w * i) for i, x in enumerate(values[start : start + self.L]))
            for start in range(0, self.m, self.L)
        ]
        a = [random.digits() for _ in plain]
        c = [(1 + m * n) * pow(self.hs, e, N) % N for m, e in zip(plain, a, strict=True)]
        block, k = self.block(c), len(c)
        y = random.below(n)
        alpha = random.digits() + ((1 + random.bits(257 + k.bit_length())) << 256)
        U = (1 + y * n) * pow(self.hs, alpha, N) % N
        seed = derive(
            "securefl/paillier/knowledge/v1",
            self.plain_key,
            1,
            b"half",
            self.session + u32(u) + block[: -k * self.W],
            block[-k * self.W :],
            U.to_bytes(self.W, "big"),
            length=32,
        )
        e = blocks_of_16(derive("securefl/paillier/challenge/v1", seed, length=16 * k))
        z = shortest((y + sum(x * m for x, m in zip(e, plain, strict=True))) % n)
        zeta = shortest(alpha + sum(x * y for x, y in zip(e, a, strict=True)))
        proof = seed + len(z).to_bytes(2, "big") + len(zeta).to_bytes(2, "big") + z + zeta
        return c, self.frame(3, u, u32(len(block)) + block + proof)

    def run(self) -> None:
        document = self.document
        everybody = sorted(map(int, document["inputs"]))
        for u in everybody:
            self.frame(1, u, b"")
        self.frame(2, None, self.terms())
        self.U3 = [u for u in everybody if u != document["lost"]]
        sent = {u: self.submission(u) for u in self.U3}
        self.product = [
            prod(column) % self.N for column in zip(*(c for c, _ in sent.values()), strict=True)
        ]
        block = self.block(self.product, len(self.U3))
        entries = b"".join(u32(u) + sha(frame) for u, (_, frame) in sent.items())
        count = u32(len(self.U3))
        self.listed = sha(b"securefl/paillier/list/v1", self.session, count, entries)
        self.digest = sha(b"securefl/paillier/product/v1", block)
        sized = b"".join(u32(len(frame)) + frame for _, frame in sent.values())
        self.frame(4, None, self.digest + count + sized)
        if self.threshold:
            self.partials = [self.partial(i) for i in range(1, 5)]
            return
        statement = self.frame(5, 900, self.listed + self.digest + count)
        self.frame(
            6, None, count + u32(1) + entries + u32(len(statement)) + statement + block
        )  # fmt: skip
        p, q = (int(document["secret"][name], 16) for name in "pq")
        order = (p - 1) * (q - 1)
        opened = [
            (pow(c, order, self.N) - 1) // self.n * pow(order, -1, self.n) % self.n
            for c in self.product
        ]
        slots = self.slots(opened)
        words = sum(x << (self.w * i) for i, x in enumerate(slots))
        size = (self.m * self.w + 7) // 8
        self.frame(7, 901, self.listed + count + words.to_bytes(size, "little"))
        self.total = self.decode(slots)

    def partial(self, i: int) -> list[int]:
        share = bytes.fromhex(self.document["shares"][i - 1])
        s_i, delta, N = int.from_bytes(share[40:], "big"), factorial(4), self.N
        assert share[5] == i
        assert share[8:40] == self.key_id
        assert pow(self.v, delta * s_i, N) == self.v_i[i - 1]
        parts = [pow(c, 2 * delta * s_i, N) for c in self.product]
        wide = [b"".join(x.to_bytes(self.W, "big") for x in row) for row in (self.product, parts)]
        bound = sha(self.listed, self.digest)
        context = sha(b"securefl/paillier/partials/v1", self.session, bound)
        batch = "securefl/paillier/partial-batch/v1"
        seed = derive(batch, self.key_id, i, context, *wide, length=32)
        rho = blocks_of_16(
            derive("securefl/paillier/partial-rho/v1", seed, length=16 * len(parts))
        )  # fmt: skip
        C = pow(prod(pow(c, r, N) for c, r in zip(self.product, rho, strict=True)), 4, N)
        P = pow(prod(pow(c, r, N) for c, r in zip(parts, rho, strict=True)), 2, N)
        random = Stream(bytes.fromhex(self.document["randomness"][str(909 + i)]))
        r = 1 + random.bits(2 * 512 + delta.bit_length() + 256)
        numbers = (C, P, pow(C, r, N), pow(self.v, r, N))
        challenge = derive(
            "securefl/paillier/partial-proof/v1",
            seed,
            *(x.to_bytes(self.W, "big") for x in numbers),
            length=16,
        )
        response = r + int.from_bytes(challenge, "big") * delta * s_i
        self.frame(8, 909 + i, self.listed + wide[1] + challenge + shortest(response))
        return parts

    def opened_by(self, chosen: tuple[int, ...]) -> list[int]:
        """The sums, by Shamir's interpolation in the exponent; coefficients are fractions."""
        delta, numbers = factorial(4), []
        for j in range(len(self.product)):
            total = 1
            for i in chosen:
                weight = delta * prod(Fraction(-k, i - k) for k in chosen if k != i)
                assert weight.denominator == 1
                total = total * pow(self.partials[i - 1][j], 2 * int(weight), self.N) % self.N
            assert total % self.n == 1
            numbers.append((total - 1) // self.n * pow(4 * delta * delta, -1, self.n) % self.n)
        return self.decode(self.slots(numbers))

    def slots(self, numbers: list[int]) -> list[int]:
        cut = [x >> (self.w * i) & ((1 << self.w) - 1) for x in numbers for i in range(self.L)]
        return cut[: self.m]

    def decode(self, slots: list[int]) -> list[int]:
        return [(x - len(self.U3) * self.B) % (1 << 12) for x in slots]


@pytest.mark.parametrize("path", GOOD, ids=lambda p: p.stem)
def test_the_second_implementation_computes_every_frame_of_the_vectors_of_paillier(
    path: Path,
) -> None:
    document = json.loads(path.read_text())
    second = Second(document)
    emitted = {frame for operation in document["operations"] for _, frame in operation["emits"]}
    assert {frame.hex() for frame in second.frames} == emitted
    result, inputs = document["result"], document["inputs"]
    plain = [sum(inputs[str(u)][i] for u in second.U3) % (1 << 12) for i in range(second.m)]
    assert result["sum"] == plain
    sums = [second.opened_by(x) for x in combinations(range(1, 5), 3)] if second.threshold else [
        second.total
    ]  # fmt: skip
    assert all(found == plain for found in sums)
    assert result["survivors"] == second.U3
    assert result["min_honest"] == len(second.U3) - 1
    entries = sorted(second.accepted.items())
    digest = sha(
        b"SFL1\1\4\20\0", *(bytes([kind]) + u32(u) + found for (kind, u), found in entries)
    )  # fmt: skip
    # Every honest answer was accepted, the fourth share holder's too.
    assert result["transcript_digest"] == digest.hex()
