"""The vectors of LightSecAgg: replayed by the machines, checked by an implementation of its own.

The second implementation is the one of ``tests/protocols/lightsecagg/test_independent.py``.
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
FILES = sorted(HERE.glob("lightsecagg/*.json"))
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


LIGHT = load(HERE / "make_lightsecagg_vectors.py")
SECOND = load(HERE.parent / "protocols" / "lightsecagg" / "test_independent.py")


def test_there_are_vectors_of_every_variant() -> None:
    assert {path.stem for path in GOOD} == set(LIGHT.VARIANTS)
    assert len(BAD) >= 35


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_machines_do_what_the_vectors_of_lightsecagg_say(path: Path) -> None:
    document = json.loads(path.read_text())
    machines = LIGHT.machines_of(document)
    config = machines["server"]._config
    inputs = {int(u): values for u, values in document["inputs"].items()}
    for i, operation in enumerate(document["operations"]):
        out, error = LIGHT.MAKE.perform(machines, operation, inputs, config)
        assert [o.frame.hex() for o in out] == operation["emits"], i
        assert str(machines[str(operation["who"])].phase) == operation["phase"], i
        assert (error is None) is operation["success"], i
        assert (type(error).__name__ if error else None) == operation.get("error"), i
    assert document["operations"][-1]["success"] is ("_bad_" not in path.name)
    assert ("result" in document) is ("_bad_" not in path.name)


@pytest.mark.parametrize("path", GOOD, ids=lambda p: p.stem)
def test_the_second_implementation_computes_every_frame_of_the_vectors_of_lightsecagg(
    path: Path,
) -> None:
    document = json.loads(path.read_text())
    keys = {int(u): bytes.fromhex(key) for u, key in document["randomness"].items()}
    second = SECOND.Second(
        bytes.fromhex(document["config"]),
        random_of=lambda u: SECOND.S.Stream(int.from_bytes(keys[u], "big")),
        inputs={int(u): values for u, values in document["inputs"].items()},
        lost=document["lost"],
        identities={int(u): bytes.fromhex(key) for u, key in document["identities"].items()},
    )
    down = [frame for frames in second.down.values() for frame in frames]
    expected = {frame.hex() for frame in [*second.up.values(), *down]}
    operations: list[dict[str, Any]] = document["operations"]
    assert {frame for operation in operations for frame in operation["emits"]} == expected
    assert document["derived"]["session_id"] == second.session.hex()
    assert document["result"]["sum"] == second.total
    assert document["result"]["transcript_digest"] == second.transcript.hex()
    survivors = sorted(int(u) for u in document["inputs"] if int(u) != document["lost"])
    assert document["result"]["survivors"] == survivors
    assert document["result"]["min_honest"] == len(survivors) - 2  # T of every variant


def test_the_vectors_of_lightsecagg_are_those_that_the_generator_writes() -> None:
    written = {str(path.relative_to(HERE)): path.read_text() for path in FILES}
    expected = {path: LIGHT.MAKE.text(document) for path, document in LIGHT.files().items()}
    assert written == expected
