"""`securefl paillier`: key files that say what they are and are never overwritten."""

from __future__ import annotations

import copy
import json
import pickle
import stat
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from securefl.cli import app
from securefl.errors import ConfigurationError, SecureFLError, WireError
from securefl.primitives import paillier as scheme
from securefl.primitives.paillier import Encryptor, SecretKey, files, generate_keypair, threshold

P_2048 = generate_keypair(2048, primes="blum", random_bytes=np.random.default_rng(7).bytes)


@pytest.fixture(scope="module")
def dealt() -> tuple[threshold.ThresholdPublicKey, list[threshold.KeyShare]]:
    return threshold.deal(
        threshold=2, parties=3, bits=2048, random_bytes=np.random.default_rng(8).bytes
    )


def run(*words: object) -> tuple[int, str, BaseException | None]:
    done = CliRunner().invoke(app, ["paillier", *map(str, words)])
    return done.exit_code, done.output, done.exception


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_keygen_writes_a_secret_only_its_owner_reads_and_never_overwrites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheme, "generate_keypair", lambda bits, primes: P_2048)
    code, output, _ = run("keygen", "--out", tmp_path, "--bits", 2048, "--json")
    assert code == 0
    found = json.loads(output)
    secret, public = Path(found["secret"]), Path(found["public"])
    assert mode(secret) == 0o600
    assert mode(public) == 0o644
    key = SecretKey.from_bytes(secret.read_bytes())
    assert found["key_id"] == key.public.key_id.hex()
    before = secret.read_bytes()
    _, _, error = run("keygen", "--out", tmp_path, "--bits", 2048)
    assert isinstance(error, ConfigurationError)
    assert "never overwritten" in str(error)
    assert secret.read_bytes() == before


def test_a_lax_umask_and_a_readable_secret_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "paillier.secret"
    files.write_secret(path, P_2048.to_secret_bytes())
    _, output, _ = run("inspect", path, "--json")
    assert json.loads(output)["warning"] is None
    path.chmod(0o644)
    _, output, _ = run("inspect", path)
    assert "WARNING" in output
    assert "SECRET" in output
    for number in P_2048.primes():
        assert str(number) not in output
        assert f"{number:x}" not in output


def test_a_threshold_key_goes_from_dealer_to_holders_and_opens_a_sum(
    tmp_path: Path,
    dealt: tuple[threshold.ThresholdPublicKey, list[threshold.KeyShare]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threshold, "deal", lambda **_: dealt)
    for name in "abc":
        code, output, _ = run("holder-key", "--out", tmp_path, "--name", name)
        assert code == 0, output
        assert mode(tmp_path / f"{name}.holder.secret") == 0o600
    given = [w for name in "abc" for w in ("--holder", tmp_path / f"{name}.holder.public")]
    code, output, error = run("deal", *given, "--threshold", 2, "--out", tmp_path / "dealt")
    assert code == 0, (output, error)
    written = sorted(path.name for path in (tmp_path / "dealt").iterdir())
    assert written == [
        "share-001.sealed",
        "share-002.sealed",
        "share-003.sealed",
        "threshold.public",
    ]
    # Nothing that the dealer wrote is secret.
    values = [int(x._value) for x in dealt[1]]
    for path in (tmp_path / "dealt").iterdir():
        for value in values:
            assert value.to_bytes(-(-value.bit_length() // 8), "big") not in path.read_bytes()
    public_path = tmp_path / "dealt" / "threshold.public"
    shares = []
    public = threshold.ThresholdPublicKey.from_bytes(public_path.read_bytes())
    for i, name in ((1, "a"), (3, "c")):
        out = tmp_path / f"{name}.share"
        code, output, error = run(
            "open-share",
            tmp_path / "dealt" / f"share-{i:03d}.sealed",
            "--key",
            tmp_path / f"{name}.holder.secret",
            "--public",
            public_path,
            "--out",
            out,
        )
        assert code == 0, (output, error)
        assert mode(out) == 0o600
        shares.append(threshold.KeyShare.from_bytes(out.read_bytes(), public))
    sealed = Encryptor(public.public, window=4).encrypt([41]).ciphertexts
    assert public.combine({x.index: x.partial(sealed) for x in shares}) == [41]
    # Every kind of file can be inspected.
    for path in [*tmp_path.glob("*.*"), *(tmp_path / "dealt").iterdir()]:
        if path.is_file():
            code, output, error = run("inspect", path, "--json")
            assert code == 0, (path, output, error)
            assert json.loads(output)["secret"] == (mode(path) == 0o600)


def test_a_share_opens_for_its_holder_only(
    dealt: tuple[threshold.ThresholdPublicKey, list[threshold.KeyShare]],
) -> None:
    public, shares = dealt
    mine, theirs = files.holder_key(), files.holder_key()
    sealed = files.seal_share(shares[0], files.read_holder_public(mine.public))
    opened = files.open_share(sealed, files.read_holder_key(mine.secret), public)
    assert opened.index == 1
    with pytest.raises(ConfigurationError, match="another holder"):
        files.open_share(sealed, files.read_holder_key(theirs.secret), public)
    for position in (5, 20, 50, len(sealed) - 1):
        altered = bytearray(sealed)
        altered[position] ^= 1
        with pytest.raises((ConfigurationError, WireError)):
            files.open_share(bytes(altered), files.read_holder_key(mine.secret), public)
    assert "secret" in repr(mine)
    assert mine.secret.hex() not in repr(mine)


def test_a_holder_cannot_be_counted_twice(tmp_path: Path) -> None:
    run("holder-key", "--out", tmp_path)
    twice = ["--holder", tmp_path / "holder.holder.public"] * 2
    _, _, error = run("deal", *twice, "--out", tmp_path / "d")
    assert isinstance(error, ConfigurationError)
    assert "twice" in str(error)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("data", [b"", b"hello", b"SFLX\x01", b"SFLS\x01\x01", b"SFLHP\x01ab"])
def test_inspecting_something_else_is_a_clear_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    code, _, error = run("inspect", path)
    assert code != 0
    assert isinstance(error, SecureFLError)
    _, _, error = run("inspect", tmp_path / "missing")
    assert isinstance(error, ConfigurationError)
    assert "cannot read" in str(error)


def test_a_degenerate_holder_key_is_refused(
    dealt: tuple[threshold.ThresholdPublicKey, list[threshold.KeyShare]],
) -> None:
    zero = files.read_holder_public(b"SFLHP\x01" + bytes(32))
    with pytest.raises(ConfigurationError, match="small order"):
        files.seal_share(dealt[1][0], zero)


def test_a_file_that_cannot_be_written_to_its_end_does_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    target = tmp_path / "half.secret"
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(ConfigurationError, match="No space left"):
            files.write_secret(target, b"secret")
    assert not target.exists()
    files.write_secret(target, b"secret")
    assert target.read_bytes() == b"secret"


def test_a_link_in_the_way_is_neither_followed_nor_replaced(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    for kept in (None, b"mine"):
        link = tmp_path / f"link-{kept is None}"
        if kept is not None:
            elsewhere.write_bytes(kept)
        link.symlink_to(elsewhere)
        with pytest.raises(ConfigurationError, match="never overwritten"):
            files.write_secret(link, b"secret")
        assert (elsewhere.read_bytes() if elsewhere.exists() else None) == kept


def test_a_holder_key_shows_and_copies_nothing() -> None:
    made = files.holder_key(lambda n: bytes(range(n)))
    assert "1f" not in repr(made)
    for spread in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="HolderKey"):
            spread(made)


def test_a_bad_holders_key_leaves_no_half_dealt_set(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dealt: tuple[threshold.ThresholdPublicKey, list[threshold.KeyShare]],
) -> None:
    monkeypatch.setattr(threshold, "deal", lambda **_: dealt)
    words: list[object] = []
    for i in range(2):
        run("holder-key", "--out", tmp_path, "--name", i)
        words += ["--holder", tmp_path / f"{i}.holder.public"]
    (tmp_path / "zero").write_bytes(b"SFLHP\x01" + bytes(32))
    words += ["--holder", tmp_path / "zero", "--threshold", 2]
    _, _, error = run("deal", *words, "--out", tmp_path / "dealt")
    assert isinstance(error, ConfigurationError)
    assert "small order" in str(error)
    assert list((tmp_path / "dealt").iterdir()) == []


@pytest.mark.parametrize("taken", ["paillier.public", "paillier.secret"])
def test_half_of_a_key_pair_in_the_way_is_noticed_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: str
) -> None:
    made: list[int] = []
    monkeypatch.setattr(scheme, "generate_keypair", lambda bits, primes: made.append(bits))
    (tmp_path / taken).write_bytes(b"old")
    _, _, error = run("keygen", "--out", tmp_path)
    assert isinstance(error, ConfigurationError)
    assert "never overwritten" in str(error)
    assert made == []
    assert [path.name for path in tmp_path.iterdir()] == [taken]


@pytest.mark.parametrize("taken", ["share-003.sealed", "threshold.public"])
def test_one_file_of_an_older_dealing_stops_a_new_one_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: str
) -> None:
    dealt: list[object] = []
    monkeypatch.setattr(threshold, "deal", lambda **numbers: dealt.append(numbers))
    words = holders(tmp_path, 3)
    (tmp_path / "dealt").mkdir()
    (tmp_path / "dealt" / taken).write_bytes(b"old")
    _, _, error = run("deal", *words, "--out", tmp_path / "dealt")
    assert isinstance(error, ConfigurationError)
    assert f"{taken} exists" in str(error)
    assert dealt == []
    assert [path.name for path in (tmp_path / "dealt").iterdir()] == [taken]


def holders(folder: Path, count: int) -> list[object]:
    words: list[object] = []
    for i in range(count):
        run("holder-key", "--out", folder, "--name", i)
        words += ["--holder", folder / f"{i}.holder.public"]
    return words


@pytest.mark.parametrize("wrong", [1, 2, 3])
def test_a_dealing_that_does_not_open_its_test_message_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dealt: tuple[threshold.ThresholdPublicKey, list[threshold.KeyShare]],
    wrong: int,
) -> None:
    """Whichever holder's share is the bad one: both sets together have everybody in them."""
    partial = threshold.KeyShare.partial
    n = dealt[0].public.n

    def shifted(self: threshold.KeyShare, ciphertexts: list[int]) -> tuple[int, ...]:
        right = partial(self, ciphertexts)
        return tuple(c * (1 + n) % n**2 for c in right) if self.index == wrong else right

    monkeypatch.setattr(threshold, "deal", lambda **_: dealt)
    monkeypatch.setattr(threshold.KeyShare, "partial", shifted)
    words = holders(tmp_path, 3)
    _, _, error = run("deal", *words, "--threshold", 2, "--out", tmp_path / "dealt")
    assert isinstance(error, ConfigurationError)
    assert "do not open a test message" in str(error)
    assert list((tmp_path / "dealt").iterdir()) == []
