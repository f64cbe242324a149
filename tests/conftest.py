"""Fixtures and profiles shared by all tests.

`SECUREFL_PROFILE=long` (set by `make long`) runs many more hypothesis examples.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default",
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile(
    "long",
    max_examples=2000,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile(os.environ.get("SECUREFL_PROFILE", "default"))

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")


def data_folder() -> Path:
    """The directory with mnist/ and heart_disease/; skips where there is none."""
    value = os.environ.get("SECUREFL_DATA")
    if not value:
        pytest.skip("SECUREFL_DATA is not set: it names the folder with mnist/ and heart_disease/")
    path = Path(value)
    if not path.is_dir():
        pytest.fail(f"SECUREFL_DATA names {path}, which is not a folder")
    return path


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """As :func:`data_folder`."""
    return data_folder()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests of real data skip without it, also those that find the folder by themselves."""
    if item.get_closest_marker("data") is not None:
        data_folder()
