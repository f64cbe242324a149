"""The vectors of peersum: replayed by the machines, checked by an implementation of its own.

The second implementation is the one of ``tests/protocols/peersum/test_independent.py``.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("peersum/*.json"))
GOOD = [path for path in FILES if "_bad_" not in path.name]
BAD = [path for path in FILES if "_bad_" in path.name]


def load(path: Path) -> ModuleType:
    name = f"securefl_vectors_{path.parent.name}_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


PEERS = load(HERE / "make_peersum_vectors.py")
SECOND = load(HERE.parent / "protocols" / "peersum" / "test_independent.py")
CHANGES_NOTHING = {"FrameIgnored", "ClientDropped", "ClientEquivocated", "ShareUnreadable",
                   "SignedTwice"}  # fmt: skip


def test_there_are_vectors_of_every_variant_and_the_files_are_what_the_program_writes() -> None:
    assert {path.stem for path in GOOD} == set(PEERS.VARIANTS)
    assert len(BAD) >= 20
    written = PEERS.files()
    assert {path.relative_to(HERE).as_posix() for path in FILES} == set(written)
    for path in FILES:
        assert json.loads(path.read_text()) == written[path.relative_to(HERE).as_posix()]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_machines_do_what_the_vectors_of_peersum_say(path: Path) -> None:
    document = json.loads(path.read_text())
    machines = PEERS.machines_of(document)
    inputs = {int(u): values for u, values in document["inputs"].items()}
    for i, operation in enumerate(document["operations"]):
        done = PEERS.perform(machines, operation, inputs)
        assert {key: operation.get(key) for key in done} == done, i
    last = document["operations"][-1]
    if "_bad_" in path.name:
        refused = not last["success"] or set(last["events"]) & CHANGES_NOTHING
        assert refused and "result" not in document
    else:
        assert last["success"] and last["events"] == ["PhaseClosed", "AggregateReady"]


@pytest.mark.parametrize("path", GOOD, ids=lambda p: p.stem)
def test_the_second_implementation_computes_every_frame_of_the_vectors_of_peersum(
    path: Path,
) -> None:
    document = json.loads(path.read_text())

    def by_peer(what: str) -> dict[int, bytes]:
        return {int(u): bytes.fromhex(value) for u, value in document[what].items()}

    second = SECOND.Second(
        bytes.fromhex(document["config"]),
        keys=by_peer("randomness"),
        inputs={int(u): values for u, values in document["inputs"].items()},
        identities=by_peer("identities"),
        lost=document["lost"],
    )
    found = {
        frame: recipient
        for operation in document["operations"]
        for recipient, frame in operation["emits"]
    }
    assert found == {frame.hex(): v for (_, v, _), frame in second.frames.items()}
    result = document["result"]
    assert document["derived"]["session_id"] == second.session.hex()
    assert result["sum"] == second.total
    assert result["survivors"] == second.survivors
    assert result["min_honest"] == len(second.survivors) - 1
    for u, digest in result["transcript_digest"].items():
        assert digest == second.transcript(int(u)).hex()
