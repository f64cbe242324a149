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


def _load(name: str, path: Path) -> None:
    """Test folders are no packages; helpers that several files share are loaded by path."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


if importlib.util.find_spec("flwr") is not None:
    _load("flower_world", Path(__file__).with_name("world.py"))
    _load("flower_traffic", Path(__file__).with_name("traffic.py"))
    _load("flower_holders", Path(__file__).with_name("holders.py"))
    _load("flower_cluster", Path(__file__).with_name("cluster.py"))


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
