"""Makes ``flower_world`` importable, and nodes with real files for the tests beside this one."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

if importlib.util.find_spec("flwr") is not None:
    _SPEC = importlib.util.spec_from_file_location(
        "flower_world", Path(__file__).with_name("world.py")
    )
    assert _SPEC is not None
    assert _SPEC.loader is not None
    _MODULE = importlib.util.module_from_spec(_SPEC)
    sys.modules["flower_world"] = _MODULE
    _SPEC.loader.exec_module(_MODULE)


@pytest.fixture(scope="session")
def quick_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in memory where there is one: journals wait for the disk at every message."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path_factory.mktemp("quick")
        return
    with TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def site(quick_folder: Path, request: pytest.FixtureRequest) -> Any:
    """Six nodes with identities, one roster and the strictest default floor."""
    from flower_world import Site

    return Site(quick_folder / request.module.__name__.rpartition(".")[2])
