"""The vectors in JSON: replayed by the machines, and checked by an implementation of its own.

The second implementation is the one of ``tests/protocols/secagg/test_independent.py``: plain
integers and ``cryptography``. It gets the configuration, randomness, identities and inputs of a
file and computes all frames and the sum.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("secagg/*.json"))
WRONG = [path for path in FILES if path.stem.endswith("_wrong_share")]
GOOD = [path for path in FILES if "_bad_" not in path.name and path not in WRONG]
BAD = [path for path in FILES if "_bad_" in path.name]


def load(path: Path) -> ModuleType:
    name = f"securefl_vectors_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


MAKE = load(HERE / "make_vectors.py")
SECOND = load(HERE.parent / "protocols" / "secagg" / "test_independent.py")


def test_there_are_vectors_of_every_variant() -> None:
    assert {path.stem for path in GOOD} == set(MAKE.VARIANTS)
    assert {path.stem.removesuffix("_wrong_share") for path in WRONG} == set(MAKE.VARIANTS)
    assert len(BAD) >= 27


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_machines_do_what_the_vectors_say(path: Path) -> None:
    document = json.loads(path.read_text())
    machines = MAKE.machines_of(document)
    config = machines["server"]._config
    inputs = {int(u): values for u, values in document["inputs"].items()}
    for i, operation in enumerate(document["operations"]):
        out, error = MAKE.perform(machines, operation, inputs, config)
        assert [o.frame.hex() for o in out] == operation["emits"], i
        assert str(machines[str(operation["who"])].phase) == operation["phase"], i
        assert (error is None) is operation["success"], i
        assert (type(error).__name__ if error else None) == operation.get("error"), i
    last = document["operations"][-1]
    assert last["success"] is ("_bad_" not in path.name)
    if "result" in document:
        result = machines["server"].result
        assert result.vector.values.tolist() == document["result"]["sum"]
        assert [int(u) for u in result.survivors] == document["result"]["survivors"]
        assert result.min_honest == document["result"]["min_honest"]
        pairs = [list(pair) for pair in result.mismatched_pairs]
        assert pairs == document["result"].get("mismatched_pairs", [])


def frames_of(document: dict[str, Any]) -> set[str]:
    return {frame for operation in document["operations"] for frame in operation["emits"]}


def second_of(document: dict[str, Any]) -> Any:
    """The second implementation of a document's session."""
    keys = {int(u): bytes.fromhex(key) for u, key in document["randomness"].items()}
    return SECOND.Second(
        bytes.fromhex(document["config"]),
        random_of=lambda u: SECOND.Stream(int.from_bytes(keys[u], "big")),
        inputs={int(u): values for u, values in document["inputs"].items()},
        lost=document["lost"],
        beacon=bytes.fromhex(document["beacon"]),
        identities={int(u): bytes.fromhex(key) for u, key in document["identities"].items()},
    )


@pytest.mark.parametrize("path", GOOD, ids=lambda p: p.stem)
def test_the_second_implementation_computes_every_frame_of_the_vectors(path: Path) -> None:
    document = json.loads(path.read_text())
    second = second_of(document)
    expected = {frame.hex() for frame in [*second.up.values(), *second.down.values()]}
    assert frames_of(document) == expected
    assert document["derived"]["session_id"] == second.session.hex()
    assert document["result"]["sum"] == second.total
    assert document["result"]["transcript_digest"] == second.transcript.hex()
    assert document["result"]["survivors"] == sorted(
        int(u) for u in document["inputs"] if int(u) != document["lost"]
    )


def given_shares(frame: bytes, second: Any) -> dict[tuple[int, int], bytes]:
    """The seed shares in an UnmaskShares frame of a session without dropouts, by hand."""
    u = int.from_bytes(frame[12:16], "little")
    body = frame[60 : 60 + int.from_bytes(frame[56:60], "little")]
    near = second.near[u]
    dealers = [u] if (u, u) in second.shares and len(body) == 1 + 20 * (len(near) + 1) else []
    dealers += near
    assert len(body) == 1 + 20 * len(dealers)
    return {(v, u): body[1 + 20 * i : 21 + 20 * i] for i, v in enumerate(dealers)}


@pytest.mark.parametrize(
    "path", [*WRONG, *(p for p in BAD if "two_wrong_shares" in p.stem)], ids=lambda p: p.stem
)
def test_the_second_implementation_knows_which_shares_are_wrong(path: Path) -> None:
    document = json.loads(path.read_text())
    second = second_of(document)
    expected = {frame.hex() for frame in [*second.up.values(), *second.down.values()]}
    assert frames_of(document) == expected
    up = dict(second.up)
    wrong = []
    for operation in document["operations"]:
        frame = bytes.fromhex(operation.get("frame", ""))
        if operation["who"] == "server" and frame[6:7] == b"\x09":
            up[int.from_bytes(frame[12:16], "little"), "unmasking"] = frame
            given = given_shares(frame, second)
            wrong += [pair for pair, share in given.items() if second.shares[pair][0] != share]
    last = document["operations"][-1]
    if "result" not in document:
        assert len(wrong) == 2
        assert len({dealer for dealer, _ in wrong}) == 1
        assert last["error"] == "InvalidShare"
        return
    assert document["result"]["mismatched_pairs"] == sorted(map(list, wrong))
    assert len(wrong) == 1
    assert document["result"]["sum"] == second.total
    assert document["result"]["transcript_digest"] == second.transcript_of(up).hex()


def test_the_vectors_are_those_that_the_generator_writes() -> None:
    written = {str(path.relative_to(HERE)): path.read_text() for path in FILES}
    assert written == {path: MAKE.text(document) for path, document in MAKE.files().items()}
