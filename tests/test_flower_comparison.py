"""The comparison with Flower, as far as it goes without Flower: what is timed, what is printed."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).parents[1] / "benchmarks" / "flower_comparison.py"


@pytest.fixture(scope="module")
def comparison() -> Any:
    spec = importlib.util.spec_from_file_location("securefl_flower_comparison", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_watched_functions_do_what_they_did_and_are_put_back(
    comparison: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(100))
    monkeypatch.setattr(comparison.time, "process_time", lambda: float(next(ticks)))
    where = types.SimpleNamespace(double=lambda x: 2 * x, boom=lambda: 1 // 0)
    before = dict(vars(where))
    clock = comparison.Clock()
    with clock.watching(where, ("double", "boom"), "work"):
        assert where.double(21) == 42
        with pytest.raises(ZeroDivisionError):
            where.boom()
    assert vars(where) == before
    assert clock["work"] == 2.0  # one tick per call, also of the one that failed
    assert clock["other"] == 0.0


def test_the_masks_of_a_session_of_ours_are_timed_apart(comparison: Any) -> None:
    from securefl import secure_sum

    def session() -> dict[str, Any]:
        assert secure_sum({u: [u] * 50_000 for u in range(4)}).sum[0] == 6
        return {"server_cpu_s": 7.0, "client_cpu_s": 3.0, "t": 2}

    found = comparison.ours(session)
    assert (found["server"], found["client"]) == (7.0, 3.0)
    assert found["masks"] > 0


def test_a_missed_target_is_called_missed(comparison: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def session() -> dict[str, Any]:
        return {"server_cpu_s": 1.0, "client_cpu_s": 1.0, "t": 69}

    asked: list[tuple[int, int, int, int]] = []

    def theirs(n: int, m: int, threshold: int, dropped: int) -> dict[str, float]:
        asked.append((n, m, threshold, dropped))
        return {"server": 80.0, "masks": 3.9, "client": 5.1}

    monkeypatch.setattr(comparison, "theirs", theirs)
    monkeypatch.setattr(comparison, "ours", lambda session: {"server": 1, "masks": 1, "client": 1})
    monkeypatch.setattr(comparison, "installed", lambda: "1.41.0")
    found = comparison.compare(session, n=100, m=10, percent=10, pairs=2)
    assert asked == [(100, 10, 70, 10)] * 2
    assert found["met"] == {"server": True, "masks": False, "client": True}
    text = comparison.lines(found)
    assert [line.split()[-1] for line in text[2:5]] == ["met", "MISSED", "met"]
