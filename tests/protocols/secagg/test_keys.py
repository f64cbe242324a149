"""The key schedule: nothing repeats, nothing serves two purposes."""

from __future__ import annotations

import hashlib
import itertools
import os
from typing import Any

import numpy as np
import pytest

from securefl.primitives.channel import AgreementKey, PublicKey, Unopenable
from securefl.protocols.secagg.keys import KeySchedule, MerkleTree, audit_root
from securefl.protocols.secagg.messages import ShareDelivery
from securefl.round import ClientId, Protocol

ONE, TWO = ClientId(1), ClientId(2)
keys = KeySchedule(Protocol.SECAGG)


def recording(secrets: dict[ClientId, list[bytes]], *, fixed: bool = False) -> Any:
    def random_of(u: ClientId) -> Any:
        source = np.random.default_rng(u).bytes if fixed else os.urandom

        def random_bytes(n: int) -> bytes:
            secrets.setdefault(u, []).append(source(n))
            return secrets[u][-1]

        return random_bytes

    return random_of


def all_keys(secrets: dict[ClientId, list[bytes]], session: bytes) -> list[bytes]:
    """Every key of a session, computed from the clients' randomness (c_sk, s_sk, b_u)."""
    found = []
    for u, v in itertools.permutations(secrets, 2):
        c, s = secrets[u][:2]
        agreed = AgreementKey(c).agree(PublicKey(AgreementKey(secrets[v][0]).public))
        found.append(keys.channel_key(agreed, session, u, v))
        if u < v:
            masks = AgreementKey(s).agree(PublicKey(AgreementKey(secrets[v][1]).public))
            found.append(keys.pair_mask_key(masks, session, u, v))
            assert keys.pair_mask_key(masks, session, v, u) == found[-1]
    found += [keys.self_mask_key(secrets[u][2], session, u) for u in secrets]
    return found


def test_two_sessions_share_no_key_even_with_the_same_randomness(secagg: Any) -> None:
    """A server that could make two sessions share a mask would subtract one from the other."""
    everything: list[bytes] = []
    variants = [
        {},
        {"nonce": bytes([1] * 32)},
        {"round_id": 4},
        {"m": 5},
        {"b": 21},
        {"t": 2},
        {"without": [5]},  # another roster
    ]
    for variant in variants:
        without = variant.pop("without", [])
        secrets: dict[ClientId, list[bytes]] = {}
        bench = secagg.make(random_of=recording(secrets, fixed=True), **variant)
        bench.to("share_keys", without=without)
        everything += all_keys(secrets, bench.server._end.session)
    per_session = 5 * 4 + 10 + 5
    assert len(everything) == 6 * per_session + (4 * 3 + 6 + 4)
    assert len({k[:16] for k in everything}) == len(everything)


def test_ten_thousand_mask_keys_are_distinct() -> None:
    agreed, session = os.urandom(32), os.urandom(32)
    found = {
        keys.pair_mask_key(agreed, session, ClientId(u), ClientId(v))
        for u, v in itertools.combinations(range(100), 2)
    }
    found |= {
        keys.pair_mask_key(agreed, hashlib.sha256(bytes([i // 256, i % 256])).digest(), ONE, TWO)
        for i in range(4950)
    }
    found |= {keys.self_mask_key(agreed, session, ClientId(u)) for u in range(500)}
    assert len(found) == 4950 + 4950 + 500


def test_known_answers_of_the_key_schedule() -> None:
    """Computed once with hmac and hashlib alone; a changed label or order shows here."""
    import hmac

    def hkdf(ikm: bytes, salt: bytes, info: bytes, length: int) -> bytes:
        prk = hmac.digest(salt, ikm, "sha256")
        return hmac.digest(prk, info + b"\1", "sha256")[:length]

    ikm, session = bytes(range(32)), bytes(range(32, 64))
    one_two = b"\1\0\0\0\2\0\0\0"
    assert keys.pair_mask_key(ikm, session, TWO, ONE) == hkdf(
        ikm, session, b"SFL1\x01\x01\x04\x00" + one_two, 16
    )
    assert keys.self_mask_key(ikm[:16], session, TWO) == hkdf(
        ikm[:16], session, b"SFL1\x01\x01\x05\x00\2\0\0\0", 16
    )
    assert keys.channel_key(ikm, session, ONE, TWO) == hkdf(
        ikm, session, b"SFL1\x01\x01\x06\x00" + one_two, 32
    )
    assert (
        keys.seed_commitment(session, ONE, ikm, bytes(16))
        == hashlib.sha256(
            b"SFL1\x01\x01\x08\x00" + session + b"\1\0\0\0" + ikm + bytes(16)
        ).digest()
    )


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7, 8, 9, 13, 16, 17])
def test_the_merkle_root_is_that_of_rfc_6962(size: int) -> None:
    def mth(leaves: list[bytes]) -> bytes:
        if len(leaves) == 1:
            return hashlib.sha256(b"\0" + leaves[0]).digest()
        k = 1 << ((len(leaves) - 1).bit_length() - 1)
        return hashlib.sha256(b"\1" + mth(leaves[:k]) + mth(leaves[k:])).digest()

    leaves = [bytes([i]) * i for i in range(size)]
    tree = MerkleTree(leaves)
    assert tree.root == mth(leaves)
    assert MerkleTree([]).root == hashlib.sha256(b"").digest()

    def path(index: int, part: list[bytes]) -> list[bytes]:
        """PATH(m, D[n]) of RFC 6962, section 2.1.1, word for word."""
        if len(part) == 1:
            return []
        k = 1 << ((len(part) - 1).bit_length() - 1)
        if index < k:
            return [*path(index, part[:k]), mth(part[k:])]
        return [*path(index - k, part[k:]), mth(part[:k])]

    for i, leaf in enumerate(leaves):
        assert list(tree.path(i)) == path(i, leaves)
        assert audit_root(leaf, i, size, tree.path(i)) == tree.root


@pytest.mark.parametrize("size", [1, 2, 3, 6, 11])
def test_an_audit_path_proves_one_leaf_at_one_place(size: int) -> None:
    leaves = [bytes([i]) for i in range(size)]
    tree = MerkleTree(leaves)
    for i in range(size):
        path = list(tree.path(i))
        assert audit_root(b"other", i, size, path) != tree.root
        assert audit_root(leaves[i], i, size, [*path, bytes(32)]) is None
        for wrong in range(size):
            if wrong != i:
                assert audit_root(leaves[i], wrong, size, path) != tree.root
        for j in range(len(path)):
            assert audit_root(leaves[i], i, size, path[:j] + path[j + 1 :]) != tree.root
            changed = [*path[:j], bytes(32), *path[j + 1 :]]
            assert audit_root(leaves[i], i, size, changed) != tree.root


def test_no_mask_key_opens_a_ciphertext(secagg: Any) -> None:
    """Two key pairs for two uses: a dropout's opened s_sk must not read the shares sent to it."""
    secrets: dict[ClientId, list[bytes]] = {}
    bench = secagg.make(random_of=recording(secrets)).to("masked_input_collection")
    session = bench.server._end.session
    ids = list(bench.clients)
    for u in ids:
        delivery = ShareDelivery.decode(secagg.body_of(bench.inbox[u]), peers=4)
        for v, ciphertext in zip([w for w in ids if w != u], delivery.ciphertexts, strict=True):
            s_u, s_v = AgreementKey(secrets[u][1]), AgreementKey(secrets[v][1])
            c_u, c_v = AgreementKey(secrets[u][0]), AgreementKey(secrets[v][0])
            right = c_u.agree(PublicKey(c_v.public))
            key = keys.channel_key(right, session, v, u)
            assert len(keys.open_shares(key, session, v, u, ciphertext)) == 56
            for agreed in (
                s_u.agree(PublicKey(s_v.public)),
                s_u.agree(PublicKey(c_v.public)),
                s_v.agree(PublicKey(c_u.public)),
            ):
                with pytest.raises(Unopenable):
                    key = keys.channel_key(agreed, session, v, u)
                    keys.open_shares(key, session, v, u, ciphertext)
