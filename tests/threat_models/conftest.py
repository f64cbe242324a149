"""The threat-model programs as modules: their folder is on the path while these tests run."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "threat_models"


@pytest.fixture(scope="session", autouse=True)
def programs_on_path() -> Iterator[None]:
    """`kit`, `attackers` and the programs can be imported as they import each other."""
    sys.path.insert(0, str(FOLDER))
    before = set(sys.modules)
    try:
        yield
    finally:
        sys.path.remove(str(FOLDER))
        for name in set(sys.modules) - before:
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(FOLDER)):
                del sys.modules[name]


@pytest.fixture(scope="session")
def program(programs_on_path: None) -> Callable[[str], ModuleType]:
    """`program("t05_survivor_lists")`: one program, or `program("kit.metrics")`."""
    return importlib.import_module
