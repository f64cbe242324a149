"""A second implementation of a whole LightSecAgg session: plain integers and ``cryptography``.

It shares no code with the library; hashes, labels, frames and signatures are those of the second
implementation of SecAgg. From the same randomness it computes every frame of every client and of
the server, byte for byte, and the opened sum.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

P = 2**31 - 1
SERVER = 2**32 - 1


def load(path: Path) -> ModuleType:
    name = f"securefl_second_{path.parent.name}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


S = load(Path(__file__).parents[1] / "secagg" / "test_independent.py")


def field_stream(key: bytes, count: int) -> list[int]:
    """The first words of AES-128-CTR from counter 0, masked to 31 bits."""
    ecb = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    stream = b"".join(ecb.update(i.to_bytes(16, "big")) for i in range(-(-count // 4)))
    words = [int.from_bytes(stream[4 * i : 4 * i + 4], "little") % 2**31 for i in range(count)]
    assert P not in words, "one in 2^31; this stream has none"
    return words


def lagrange(x: int, nodes: list[int], values: list[int]) -> int:
    total = 0
    for i, node in enumerate(nodes):
        term = values[i]
        for other in nodes[:i] + nodes[i + 1 :]:
            term = term * (x - other) * pow(node - other, -1, P) % P
        total += term
    return total % P


class Second:
    """A whole session from its configuration, computed; one client may leave before its input.

    Attributes:
        up, down: the clients' frames and the server's, by client and the server's phase when sent.
        total, transcript, session: the sum, the transcript digest, the session id.
    """

    def __init__(
        self,
        config: bytes,
        *,
        random_of: Callable[[int], Callable[[int], bytes]],
        inputs: dict[int, list[int]],
        lost: int,
        identities: dict[int, bytes],
    ) -> None:
        number, u32, H = int.from_bytes, S.u32, S.H
        protocol, active = config[0], config[1]
        n = number(config[16:20], "little")
        ids = [number(config[20 + 4 * i : 24 + 4 * i], "little") for i in range(n)]
        rest = config[20 + 4 * n :]
        U, T = number(rest[:4], "little"), number(rest[4:8], "little")
        m = number(rest[20:28], "little")
        K, L = U - T, -(-m // (U - T))
        w = S.Wire(protocol, bool(active), number(config[8:16], "little"), identities)
        self.up: dict[tuple[int, str], bytes] = {}
        self.down: dict[tuple[int, str], list[bytes]] = {}
        digest = H(w.dst(1), config)

        def down(u: int, phase: str, kind: int, session: bytes, body: bytes) -> None:
            self.down.setdefault((u, phase), []).append(w.frame(kind, SERVER, session, body))

        c_sk, c_pk, seed, entries = {}, {}, {}, []
        for u in ids:
            random = random_of(u)
            c_sk[u], seed[u] = random(32), random(16)
            c_pk[u] = S.public(c_sk[u])
            self.up[u, "advertise_keys"] = sent = w.frame(1, u, digest, c_pk[u])
            entries.append(u32(u) + c_pk[u] + (sent[-64:] if active else b""))
        self.session = session = H(
            w.dst(3), digest, u32(n), S.mth([w.dst(2) + entry for entry in entries])
        )
        for u in ids:
            down(u, "share_masks", 2, digest, u32(n) + b"".join(entries))

        betas, alpha = list(range(n + 1, n + U + 1)), {u: 1 + i for i, u in enumerate(ids)}
        mask: dict[int, list[int]] = {}
        share: dict[tuple[int, int], list[int]] = {}
        for u in ids:
            key = S.hkdf(seed[u], session, w.dst(14) + u32(u), 16)
            flat = field_stream(key, U * L)
            blocks = [flat[k * L : (k + 1) * L] for k in range(U)]
            mask[u] = [x for block in blocks[:K] for x in block][:m]
            for v in ids:
                share[u, v] = [
                    lagrange(alpha[v], betas, [block[i] for block in blocks]) for i in range(L)
                ]
            body = u32(n - 1)
            for v in ids:
                if v == u:
                    continue
                pair = u32(u) + u32(v)
                agreed = S.dh(c_sk[u], c_pk[v])
                channel = S.hkdf(agreed, session, w.dst(6) + pair, 32)
                plain = b"".join(map(u32, share[u, v]))
                sealed = AESGCM(channel).encrypt(bytes(12), plain, w.dst(7) + session + pair)
                body += sealed
                down(v, "share_masks", 4, session, u32(u) + sealed)
            self.up[u, "share_masks"] = w.frame(3, u, session, body)
        for u in ids:
            down(u, "masked_input_collection", 10, session, S.bitmap([True] * n))

        U3 = [u for u in ids if u != lost]
        alive = S.bitmap([u in U3 for u in ids])
        for u in U3:
            y = [(a + z) % P for a, z in zip(inputs[u], mask[u], strict=True)]
            sent = w.frame(5, u, session, b"".join(map(u32, y)))
            self.up[u, "masked_input_collection"] = sent
        for u in U3:
            body = alive
            if active:
                down(u, "consistency_check", 6, session, alive)
                agreed = {v: w.sign(v, w.dst(9) + session + alive) for v in U3}
                self.up[u, "consistency_check"] = w.frame(7, u, session, agreed[u])
                others = [v for v in U3 if v != u]
                body = u32(len(others)) + b"".join(u32(v) + agreed[v] for v in others)
            down(u, "recovery", 8, session, body)
            answer = [sum(share[v, u][i] for v in U3) % P for i in range(L)]
            self.up[u, "recovery"] = w.frame(9, u, session, b"".join(map(u32, answer)))

        self.total = [sum(inputs[u][i] for u in U3) % P for i in range(m)]
        order = ["advertise_keys", "share_masks", "masked_input_collection", "consistency_check"]
        kinds = dict(zip([*order, "recovery"], [1, 3, 5, 7, 9], strict=True))
        records = sorted((kinds[phase], u, f) for (u, phase), f in self.up.items())
        self.transcript = H(w.dst(16), *(bytes([kind]) + u32(u) + H(f) for kind, u, f in records))


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize(("U", "T", "m"), [(6, 2, 5), (5, 1, 8), (6, 4, 1), (5, 2, 0)])
def test_every_frame_of_a_session_equals_the_second_implementation(
    light: Any, active: bool, U: int, T: int, m: int
) -> None:
    ids, lost = [2, 3, 11, 40, 41, 50, 77], 11
    u32 = S.u32
    bench = light.make(
        7, U=U, T=T, D=7 - U, m=m, ids=ids, active=active, random_of=S.Stream, nonce=bytes([7] * 32)
    )  # fmt: skip
    config = bytes([3, active, 0, 0]) + b"\1\0\0\0" + (3).to_bytes(8, "little")
    config += u32(7) + b"".join(map(u32, ids))
    config += u32(U) + u32(T) + u32(1) + u32(7 - U) + u32(U) + m.to_bytes(8, "little")
    config += bytes([1, 31, 0, 0]) + bytes(range(32)) + bytes([7] * 32) + bytes(32)
    assert bench.config.encode() == config
    second = Second(
        config,
        random_of=S.Stream,
        inputs={int(u): v.values.tolist() for u, v in bench.vectors.items()},
        lost=lost,
        identities={u: hashlib.sha256(b"identity of %d" % u).digest() for u in ids},
    )
    bench.start()
    while not bench.server.final:
        bench.close()
        late = bench.server.phase == "masked_input_collection"
        bench.answer(without=[lost] if late else [])
    assert bench.seen == second.down
    assert bench.sent == second.up
    assert bench.server.result.vector.values.tolist() == second.total
    assert bench.server.result.transcript_digest == second.transcript
    assert bench.plain_sum(u for u in ids if u != lost) == second.total
