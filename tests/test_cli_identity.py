"""`securefl identity` and `securefl roster`: keys that stay, rosters that people compare."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from securefl.cli import app
from securefl.errors import ConfigurationError
from securefl.primitives.identities import (
    Member,
    PublicIdentity,
    Roster,
    create_identity,
    fingerprint,
    load_identity,
    load_public,
)
from securefl.primitives.signing import IdentityKey
from securefl.round import ClientId


def run(*words: object) -> tuple[int, str, BaseException | None]:
    done = CliRunner().invoke(app, list(map(str, words)))
    return done.exit_code, done.stdout, done.exception


@pytest.fixture
def parties(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / name for name in ("north", "east", "south")]
    for folder in folders:
        assert run("identity", "new", folder)[0] == 0
    return folders


def test_a_new_identity_signs_what_its_public_line_verifies(tmp_path: Path) -> None:
    code, output, _ = run("identity", "new", tmp_path / "site", "--name", "Site-1", "--json")
    assert code == 0
    found = json.loads(output)
    assert stat.S_IMODE(Path(found["secret"]).stat().st_mode) == 0o600
    public = load_public(Path(found["public"]))
    assert (public.name, public.key.hex()) == ("Site-1", found["key"])
    signature = load_identity(Path(found["secret"])).sign(b"message")
    Ed25519PublicKey.from_public_bytes(public.key).verify(signature, b"message")


def test_an_identity_is_never_overwritten(tmp_path: Path) -> None:
    create_identity(tmp_path, name="a")
    before = (tmp_path / "identity.pem").read_bytes()
    _, _, error = run("identity", "new", tmp_path, "--name", "a")
    assert isinstance(error, ConfigurationError)
    assert "never overwritten" in str(error)
    assert (tmp_path / "identity.pem").read_bytes() == before


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    create_identity(tmp_path, name="a")
    (tmp_path / "identity.pem").chmod(0o640)
    with pytest.raises(ConfigurationError, match="mode is 0640"):
        load_identity(tmp_path / "identity.pem")


def test_show_prints_the_public_half_only(parties: list[Path]) -> None:
    for target in (parties[0], parties[0] / "identity.pem", parties[0] / "identity.pub"):
        code, output, _ = run("identity", "show", target, "--json")
        assert code == 0
        found = json.loads(output)
        assert found["key"] == load_public(parties[0] / "identity.pub").key.hex()
        assert found["fingerprint"] == fingerprint(bytes.fromhex(found["key"]))
        secret = (parties[0] / "identity.pem").read_text().splitlines()[1]
        assert secret not in output


def test_a_roster_is_sorted_by_name_and_read_back(parties: list[Path], tmp_path: Path) -> None:
    code, output, _ = run("roster", "build", *(folder / "identity.pub" for folder in parties))
    assert code == 0
    roster = Roster.from_json(json.loads(output))
    assert [member.name for member in roster.members] == ["east", "north", "south"]
    path = tmp_path / "roster.json"
    path.write_text(output)
    digest = roster.digest().hex()
    code, output, _ = run(
        "roster", "verify", path, "--digest", digest, "--identity", parties[0] / "identity.pem",
        "--pub", parties[1] / "identity.pub", "--json",
    )  # fmt: skip
    assert code == 0
    assert json.loads(output)["you"] == {"id": 2, "name": "north"}


def test_verify_refuses_another_digest_and_strangers(parties: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "roster.json"
    pubs = [folder / "identity.pub" for folder in parties[:2]]
    assert run("roster", "build", *pubs, "--out", path)[0] == 0
    _, _, error = run("roster", "verify", path, "--digest", "00" * 32)
    assert isinstance(error, ConfigurationError)
    assert "another roster" in str(error)
    for option, file in (("--identity", "identity.pem"), ("--pub", "identity.pub")):
        _, _, error = run("roster", "verify", path, option, parties[2] / file)
        assert isinstance(error, ConfigurationError), option


def test_a_roster_file_is_not_overwritten(parties: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "roster.json"
    path.write_text("kept")
    _, _, error = run("roster", "build", parties[0] / "identity.pub", "--out", path)
    assert isinstance(error, ConfigurationError)
    assert path.read_text() == "kept"


def _public(name: str, number: int) -> PublicIdentity:
    return PublicIdentity(name=name, key=IdentityKey(bytes([number]) * 32).public)


def test_a_later_roster_keeps_ids_and_refuses_a_changed_key() -> None:
    first = Roster.build([_public("b", 1), _public("c", 2)])
    later = Roster.build([_public("a", 3), _public("c", 2)], previous=first)
    assert {m.name: int(m.client) for m in later.members} == {"c": 2, "a": 3}
    with pytest.raises(ConfigurationError, match="has changed"):
        Roster.build([_public("b", 9)], previous=first)


def test_a_roster_file_of_brackets_is_no_roster(tmp_path: Path) -> None:
    path = tmp_path / "roster.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ConfigurationError, match="is no roster"):
        Roster.load(path)


def test_one_key_or_name_twice_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="one identity key"):
        Roster.build([_public("a", 1), _public("b", 1)])
    with pytest.raises(ConfigurationError, match="two public identities"):
        Roster.build([_public("a", 1), _public("a", 2)])
    with pytest.raises(ConfigurationError, match="twice"):
        Roster((
            Member(client=ClientId(1), name="a", key=_public("a", 1).key),
            Member(client=ClientId(2), name="a", key=_public("a", 2).key),
        ))  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.update(schema="securefl-roster/2"),
        lambda raw: raw.update(more=1),
        lambda raw: raw["members"][0].update(id=True),
        lambda raw: raw["members"][0].update(id=-1),
        lambda raw: raw["members"][0].update(id="1"),
        lambda raw: raw["members"][0].update(key="AA" * 32),
        lambda raw: raw["members"][0].update(key=None),
        lambda raw: raw["members"][0].update(name="../x"),
        lambda raw: raw["members"].reverse(),
        lambda raw: raw["members"].clear(),
        lambda raw: raw["members"].append(7),
    ],
)
def test_a_file_that_is_no_roster_is_refused(
    change: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    raw = Roster.build([_public("a", 1), _public("b", 2)]).to_json()
    change(raw)
    path = tmp_path / "roster.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(ConfigurationError):
        Roster.load(path)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=6))
def test_two_rosters_have_one_digest_iff_they_list_the_same(pairs: list[tuple[int, int]]) -> None:
    names = {f"p{a}": b for a, b in pairs}
    if len(set(names.values())) != len(names):
        return
    roster = Roster.build([_public(name, number) for name, number in names.items()])
    again = Roster.from_json(json.loads(json.dumps(roster.to_json())))
    assert again == roster
    assert again.digest() == roster.digest()
    other = Roster.build([
        _public(name, number + 60) if i == 0 else _public(name, number)
        for i, (name, number) in enumerate(names.items())
    ])  # fmt: skip
    assert other.digest() != roster.digest()


def test_an_identity_derives_storage_keys_that_differ_by_label() -> None:
    key = IdentityKey(bytes(32))
    assert key.derived_key(b"a") == IdentityKey(bytes(32)).derived_key(b"a")
    assert key.derived_key(b"a") != key.derived_key(b"b")
    assert len(key.derived_key(b"a")) == 32
