"""Runs an attack on every seed and puts what it recovered into a :class:`kit.result.Result`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from kit.result import Attacker, Expected, Op, Result, Run, Setting
from kit.view import Ring

from attackers.stage import Case
from attackers.weakened import Guard
from securefl.protocols.secagg import SecAggClient

__all__ = ["ALL", "BONAWITZ", "NONE", "RECOVERED", "both_sides", "measured"]

BONAWITZ = (
    "Bonawitz et al. 2017, Practical Secure Aggregation for Privacy-Preserving Machine Learning"
)
RECOVERED = "fraction of ring elements recovered"
ALL = Expected(op=Op.EQUAL, bound=1.0)
NONE = Expected(op=Op.EQUAL, bound=0.0)


def measured(
    run: Run,
    attack: Callable[[Case], float],
    *,
    name: str,
    setting: Setting,
    expected: Expected | None,
    attacker: Attacker,
    client: type[SecAggClient] = SecAggClient,
    paper: str = BONAWITZ,
    metric: str = RECOVERED,
    baseline: float | None = 0.0,
    cap: float | None = None,
    cap_formula: str = "",
    parameters: Mapping[str, Any] | None = None,
    pictures: dict[str, Ring] | None = None,
) -> Result:
    """One attack in one setting, on all seeds of the run; each leaves its own transcript.

    The baseline of an exact recovery is 0: inputs carry random low bits that nobody guesses. Who
    refused, and with which error, is added to the parameters; what the first seed's attack has
    in hands goes to ``pictures`` under the name of setting and attack.
    """
    begin = time.perf_counter()
    values, refusals = [], Counter[str]()
    label = "".join(c if c.isalnum() else "_" for c in f"{setting}_{name}")
    for seed in run.seeds:
        case = Case(client=client, seed=seed, path=run.transcript(f"{label}_{seed}"))
        values.append(attack(case))
        refusals.update(type(error).__name__ for _, error in case.refused)
        if pictures is not None and case.found and label not in pictures:
            pictures[label] = case.found[-1]
    return Result(
        threat=run.name,
        paper=paper,
        attacker=attacker,
        setting=setting,
        attack=name,
        metric=metric,
        per_seed=tuple(values),
        expected=expected,
        baseline=baseline,
        cap=cap,
        cap_formula=cap_formula,
        parameters={**(parameters or {}), "refused_with": dict(refusals)},
        seconds=time.perf_counter() - begin,
    )


def both_sides(
    run: Run, guard: Guard, attacker: Attacker, *, pictures: dict[str, Ring] | None = None
) -> list[Result]:
    """A guard's attack on the client without the check, and on the library's."""
    return [
        measured(
            run,
            guard.attack,
            name=guard.refuses,
            setting=setting,
            expected=expected,
            attacker=attacker,
            client=client,
            parameters={"check": guard.method},
            pictures=pictures,
        )
        for setting, client, expected in (
            (Setting.UNDEFENDED, guard.without, ALL),
            (Setting.DEFENDED, SecAggClient, NONE),
        )
    ]
