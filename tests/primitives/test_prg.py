"""The mask generator against AES in single-block mode, and the stream of secret randomness."""

from __future__ import annotations

import ast
import copy
import os
import pickle
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

import securefl
from securefl.primitives.prg import CHUNK_WORDS, SecureRandom, add_mask, expand, subtract_mask

KEYS = st.binary(min_size=16, max_size=16)
DTYPES = st.sampled_from([np.uint32, np.uint64])


def oracle(key: bytes, length: int, width: int) -> list[int]:
    """Each counter block encrypted alone; words cut from the joined bytes."""
    blocks = -(-length * width // 16)
    ecb = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    stream = b"".join(ecb.update(i.to_bytes(16, "big")) for i in range(blocks))
    return [int.from_bytes(stream[width * i : width * (i + 1)], "little") for i in range(length)]


@given(KEYS, DTYPES, st.integers(0, 70))
def test_masks_are_the_counter_blocks_in_order(key: bytes, dtype: type, length: int) -> None:
    expected = oracle(key, length, np.dtype(dtype).itemsize)
    assert expand(key, length, dtype).tolist() == expected


def test_the_first_block_is_the_known_answer_of_aes() -> None:
    # AES-128 of the all-zero block under the all-zero key.
    assert expand(bytes(16), 4, np.uint32).tobytes().hex() == "66e94bd4ef8a2c3b884cfa59ca342b2e"


@given(KEYS, DTYPES, st.integers(0, 40), st.integers(0, 40))
def test_any_place_of_a_mask_can_be_reached(
    key: bytes, dtype: type, start: int, length: int
) -> None:
    whole = expand(key, start + length, dtype)
    assert np.array_equal(expand(key, length, dtype, start=start), whole[start:])


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_the_output_does_not_depend_on_chunking(dtype: type) -> None:
    key = bytes(range(16))
    whole = expand(key, 2 * CHUNK_WORDS + 5, dtype)
    pieces = [expand(key, 1000, dtype, start=s) for s in range(0, 2 * CHUNK_WORDS, 1000)]
    joined = np.concatenate(pieces)
    assert np.array_equal(whole[: len(joined)][: 2 * CHUNK_WORDS], joined[: 2 * CHUNK_WORDS])


@given(KEYS, DTYPES, st.integers(0, 60))
def test_subtracting_undoes_adding_in_place(key: bytes, dtype: type, length: int) -> None:
    total = np.arange(length, dtype=dtype)
    add_mask(total, key)
    expected = [
        (i + w) % (1 << 8 * total.dtype.itemsize)
        for i, w in enumerate(oracle(key, length, total.dtype.itemsize))
    ]
    assert total.tolist() == expected
    subtract_mask(total, key)
    assert total.tolist() == list(range(length))


@pytest.mark.parametrize("modulus", range(4, 17))
def test_residues_are_uniform_and_all_reached(modulus: int) -> None:
    # One fixed key, so the verdict never changes. With fresh keys the bound of six standard
    # deviations above the mean would raise a false alarm less than once in 10^4 runs.
    count = 1 << 16
    residues = np.bincount(expand(b"k" * 16, count, np.uint32) % modulus, minlength=modulus)
    expected = count / modulus
    chi_square = float(((residues - expected) ** 2 / expected).sum())
    freedom = modulus - 1
    assert (residues > 0).all()
    assert chi_square < freedom + 6 * (2 * freedom) ** 0.5


def test_a_key_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes, found 15"):
        expand(bytes(15), 1, np.uint32)


def test_secure_random_gives_every_byte_once() -> None:
    random = SecureRandom()
    sizes = [0, 1, 15, 16, 1000, 65535, 65536, 65537, 200000, 3]
    pieces = [random.random_bytes(size) for size in sizes]
    assert [len(piece) for piece in pieces] == sizes
    joined = b"".join(pieces)
    blocks = [joined[i : i + 16] for i in range(0, len(joined) - 15, 16)]
    assert len(set(blocks)) == len(blocks)
    assert SecureRandom().random_bytes(16) != SecureRandom().random_bytes(16)
    with pytest.raises(ValueError, match="-1"):
        random.random_bytes(-1)


def test_secure_random_is_one_stream_whatever_the_request_sizes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("securefl.primitives.prg.os.urandom", lambda n: bytes(range(n)))
    whole = SecureRandom().random_bytes(300000)
    random = SecureRandom()
    sizes = [5, 65530, 100000, 1, 7]
    assert b"".join(random.random_bytes(size) for size in sizes) == whole[: sum(sizes)]
    assert whole == expand(bytes(range(16)), 75000, np.uint32).tobytes()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_never_repeats_the_parents_randomness() -> None:
    random = SecureRandom()
    random.random_bytes(7)
    read, write = os.pipe()
    if not (child := os.fork()):  # pragma: no cover  # another process
        os.write(write, random.random_bytes(64))
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(read, 64)
    os.close(read)
    os.close(write)
    assert len(theirs) == 64
    assert theirs != random.random_bytes(64)


def test_threads_never_get_the_same_bytes() -> None:
    """Both threads meet at the moment when the buffer is used up and the cipher is asked."""
    random = SecureRandom()
    random.random_bytes(16)

    class Slow:
        def __init__(self, stream: object) -> None:
            self.stream = stream

        def update(self, data: bytes) -> bytes:
            time.sleep(0.05)
            return self.stream.update(data)

    random._stream = Slow(random._stream)
    found: list[bytes] = []
    start = threading.Barrier(2)

    def take() -> None:
        start.wait()
        found.append(random.random_bytes(70_000))

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    blocks = [piece[i : i + 16] for piece in found for i in range(0, 70_000 - 15, 16)]
    assert len(set(blocks)) == len(blocks)


def test_secure_random_can_be_neither_shown_nor_copied() -> None:
    random = SecureRandom()
    assert repr(random) == "SecureRandom(<secret>)"
    for copier in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            copier(random)


def test_no_weak_generator_and_no_pickle_near_secrets() -> None:
    root = Path(securefl.__file__).parent
    files = [root / "round.py", root / "wire.py", root / "modular.py"]
    files += [*(root / "primitives").rglob("*.py"), *(root / "protocols").rglob("*.py")]
    assert len(files) > 15
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Attribute):
                names = [f"{ast.unparse(node.value)}.{node.attr}"]
            for name in names:
                assert name.split(".")[0] not in {"random", "pickle", "marshal"}, (file, name)
                assert not name.startswith(("np.random", "numpy.random")), (file, name)
