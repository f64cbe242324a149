"""The examples as modules: their folders come first on the path while these tests run."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def example() -> Iterator[Callable[[str], ModuleType]]:
    """`example("convergence")`: the program as a module, imported as it imports itself."""
    folders = [str(ROOT / "examples" / name) for name in ("", "common_mistakes", "embed_asyncio")]
    sys.path[:0] = folders
    before = set(sys.modules)
    try:
        yield importlib.import_module
    finally:
        for folder in folders:
            sys.path.remove(folder)
        for name in set(sys.modules) - before:
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(folders[0]):
                del sys.modules[name]
