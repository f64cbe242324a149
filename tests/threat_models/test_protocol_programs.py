"""Attacks on the protocol: each works on a client without one check and fails on the library's.

Every recovery is bit-exact over 64 entries with 12 random low bits each: chance gives one entry in
4096, so a false alarm has probability below 2^-700.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from securefl.protocols.secagg import SecAggClient
from securefl.round import Layout

Program = Callable[[str], ModuleType]
FOLDER = Path(__file__).parents[2] / "examples" / "threat_models"

sys.path.insert(0, str(FOLDER))
try:
    GUARDS = importlib.import_module("attackers.weakened").GUARDS
finally:
    sys.path.remove(str(FOLDER))


@pytest.mark.parametrize("guard", GUARDS, ids=lambda g: g.method)
def test_the_attack_works_without_the_check_and_is_refused_with_it(
    program: Program, tmp_path: Path, guard: object
) -> None:
    case = program("attackers.stage").Case
    guard = next(g for g in program("attackers.weakened").GUARDS if g.method == guard.method)
    path = tmp_path / "transcript.bin"
    assert guard.attack(case(client=guard.without, seed=5, path=path)) == 1.0
    shipped = case(seed=5, path=path)
    assert guard.attack(shipped) == 0.0
    by_design = {"_self_mask_key", "start"}  # nobody refuses: there is nothing to be had
    assert bool(shipped.refused) is (guard.method not in by_design)


@pytest.mark.parametrize("guard", GUARDS, ids=lambda g: g.method)
def test_a_weakened_client_differs_in_exactly_one_method(guard: object) -> None:
    own = {name for name, value in vars(guard.without).items() if inspect.isfunction(value)}
    assert own == {guard.method}
    assert guard.without.__mro__[1] is SecAggClient


def test_every_check_of_the_client_has_a_program_or_a_reason(program: Program) -> None:
    weakened = program("attackers.weakened")
    checks = {n for n in vars(SecAggClient) if n.startswith(("_check_", "_enough_"))}
    assert len(checks) >= 15
    with_attack = {guard.method for guard in weakened.GUARDS}
    assert checks <= with_attack | set(weakened.OTHERS)
    assert not with_attack & set(weakened.OTHERS)
    assert with_attack | set(weakened.OTHERS) <= set(dir(SecAggClient))
    for guard in weakened.GUARDS:
        assert (FOLDER / f"{guard.program}.py").exists()


@pytest.mark.parametrize(
    "name",
    [
        "t04_collusion",
        "t06_key_substitution",
        "t14_overflow",
        "t16_late_input",
        "t20_sybils",
        "t21_chosen_neighbourhood",
        "t22_metadata",
        "t23_denial_of_service",
        pytest.param("t05_survivor_lists", marks=pytest.mark.long),
        pytest.param("t08_differencing", marks=pytest.mark.long),
    ],
)
def test_the_program_holds(program: Program, tmp_path: Path, name: str) -> None:
    demo = program(name).DEMO
    assert demo.main(["--quick", "--out", str(tmp_path)]) == 0
    picture = tmp_path / name / "picture.png"
    assert picture.stat().st_size < 60_000


def test_the_bounds_of_the_split_view_are_met_to_the_single_t(
    program: Program, tmp_path: Path
) -> None:
    lists, case = program("attackers.lists"), program("attackers.stage").Case
    top = program("t05_survivor_lists").highest
    for layout in Layout:
        for signed, c in ((False, 0), (True, 3)):
            for t, won in (
                (top(layout, c, signed=signed), 1.0),
                (top(layout, c, signed=signed) + 1, 0.0),
            ):
                here = case(seed=0, path=tmp_path / "t.bin")
                assert lists.split_view(here, n=12, t=t, c=c, layout=layout, signed=signed) == won


@pytest.mark.parametrize("c", [0, 1, 2])
@pytest.mark.parametrize("layout", list(Layout))
def test_a_shrunk_sum_with_colluders_has_the_size_of_the_formula(
    program: Program, tmp_path: Path, layout: Layout, c: int
) -> None:
    """Where the division comes out even enough for lists to exist; never below the formula."""
    lists, case = program("attackers.lists"), program("attackers.stage").Case
    smallest = lists.smallest_sum(10, 7, c, layout)
    assert lists.shrink_lists(10, 7, c, layout, smallest - 1) is None
    if lists.shrink_lists(10, 7, c, layout, smallest) is None:
        pytest.skip("no lists of whole names reach the bound for these numbers")
    here = case(seed=1, path=tmp_path / "t.bin")
    assert lists.shrink(here, n=10, t=7, c=c, layout=layout) == 1.0


def test_the_view_of_an_honest_round_has_the_sum_and_no_part_of_it(
    program: Program, tmp_path: Path
) -> None:
    rounds = program("kit.rounds")
    given = rounds.images_as_inputs(6, bits=24, seed=3)
    view = rounds.secure_round(given, tmp_path / "t.bin").view()
    assert (view.sum_of(given) == rounds.plain_sum(given, given)).all()
    for u in given:
        assert view.sum_of([u]) is None
        assert view.shares(u)[1] == 0, "nobody opened a mask key: nobody dropped out"


def test_run_all_lists_every_program_and_a_failure_is_its_exit_code(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_all = program("run_all")
    names = run_all.programs()
    assert {"t04_collusion", "t05_survivor_lists", "t23_denial_of_service"} <= set(names)
    codes = {"t04_collusion": 0, "t14_overflow": 1, "t22_metadata": 2}

    def pretend(name: str, **_: object) -> object:
        return run_all.Ran(name=name, code=codes[name], seconds=1.0, record=None, said="<b>")

    monkeypatch.setattr(run_all, "run_one", pretend)
    out = ["--out", str(tmp_path), "--only"]
    assert run_all.main([*out, "t04", "t22"]) == 0
    assert run_all.main([*out, "t04", "t22", "--strict"]) == 1
    assert run_all.main([*out, "t04", "t14"]) == 1
    assert run_all.main([*out, "t99"]) == 2
    page = (tmp_path / "gallery.html").read_text()
    assert "t14_overflow: FAILS" in page
    assert "&lt;b&gt;" in page
    assert "http" not in page, "the gallery needs no network"
