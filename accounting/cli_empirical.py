"""The command ``python -m accounting audit-mechanism``: attack a noisy sum and say what was found.

Exit codes: 0 NOT_REFUTED, 1 REFUTED, 3 INCONCLUSIVE; 2 usage, or a mechanism that cannot be run.
``cli`` registers it; errors become exit codes there. This module decides nothing itself.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from accounting.choice import Choice
from accounting.empirical import (
    CanaryResult,
    Claim,
    Mechanism,
    MechanismAudit,
    Noise,
    Verdict,
    audit,
    from_aggregator,
)
from accounting.empirical.bounds import shown_down
from accounting.errors import AccountingError, InvalidParameter
from accounting.events import Adjacency

__all__ = ["audit_mechanism"]

_EXIT = {Verdict.NOT_REFUTED: 0, Verdict.REFUTED: 1, Verdict.INCONCLUSIVE: 3}


class Form(Choice):
    """What kind of function is audited."""

    AGGREGATOR = "aggregator"
    MECHANISM = "mechanism"


def audit_mechanism(
    target: Annotated[
        str, typer.Argument(metavar="MODULE:FUNCTION", help="What to audit; it is imported.")
    ],
    epsilon: Annotated[float, typer.Option(help="Claimed epsilon, of all rounds together.")],
    delta: Annotated[float, typer.Option(help="Claimed delta; 0 with --noise any.")],
    adjacency: Annotated[
        str, typer.Option(help="zero-out, add-remove or replace-one.")
    ] = "zero-out",
    noise: Annotated[
        str,
        typer.Option(help="gaussian: also discrete Gaussian, Skellam; any: nothing is assumed."),
    ] = "gaussian",
    form: Annotated[
        str,
        typer.Option(
            help="aggregator: (list of updates) -> noisy sum, called once per round; mechanism: "
            "(updates[rounds, clients, dimension], rng) -> released[rounds, dimension]."
        ),
    ] = "aggregator",
    rounds: Annotated[int, typer.Option(help="Rounds that the claim covers.")] = 1,
    clients: Annotated[int, typer.Option(help="Clients in every round.")] = 3,
    dimension: Annotated[int, typer.Option(help="Entries of an update.")] = 40,
    clip: Annotated[float, typer.Option(help="The norm that one update is clipped to.")] = 1.0,
    excess: Annotated[
        float,
        typer.Option(help="Norm of the canaries over the clip; 1 if clients clip themselves."),
    ] = 10.0,
    trials: Annotated[int, typer.Option(help="Runs per canary, half of them with it.")] = 8000,
    alpha: Annotated[float, typer.Option(help="Probability of refuting a true claim.")] = 0.05,
    seed: Annotated[
        int | None, typer.Option(help="Coins of the audit, for tests; by default secret.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Attack an aggregator's claim of privacy: REFUTED, NOT_REFUTED or INCONCLUSIVE.

    An audit can only refute. The function is called many thousand times with known updates.
    """
    claim = Claim(
        epsilon=epsilon, delta=delta, adjacency=Adjacency.of(adjacency), noise=Noise.of(noise)
    )
    function = _load(target)
    mechanism: Mechanism = (
        from_aggregator(function) if Form.of(form) is Form.AGGREGATOR else function
    )
    try:
        found = audit(
            mechanism,
            claim,
            n_trials=trials,
            alpha=alpha,
            rounds=rounds,
            clients=clients,
            dimension=dimension,
            clip=clip,
            excess=excess,
            seed=seed,
        )
    except AccountingError:
        raise
    except (Exception, SystemExit) as error:  # of somebody else; its exit code is no verdict
        raise InvalidParameter(f"{target} failed: {type(error).__name__}: {error}") from error
    if as_json:
        typer.echo(json.dumps(_fields(target, found), allow_nan=False))
    else:
        _print(found)
    raise typer.Exit(_EXIT[found.verdict])


def _load(target: str) -> Callable[..., Any]:
    """The function, imported with the current folder first, as ``python -m`` does."""
    module, colon, name = target.partition(":")
    if not (module and colon and name):
        raise InvalidParameter(f"expected MODULE:FUNCTION, such as mine:noisy_sum; found {target}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function: Any = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
    except (Exception, SystemExit) as error:  # somebody else's module runs here
        raise InvalidParameter(
            f"{target} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not callable(function):
        raise InvalidParameter(f"{target} is no function but {type(function).__name__}")
    loaded: Callable[..., Any] = function
    return loaded


def _print(found: MechanismAudit) -> None:
    typer.echo(str(found))
    typer.echo(f"{'canary':>12}  {'score':<10}  {'any noise':>9}  {'gaussian':>9}  missed  raised")
    for one in found.canaries:
        plain = shown_down(one.clopper_pearson)
        gaussian = "-" if one.gaussian is None else shown_down(one.gaussian)
        typer.echo(
            f"{one.canary:>12}  {one.score:<10}  {plain:>9}  {gaussian:>9}  "
            f"{one.counts.false_negatives / one.counts.trials_in:6.1%}  "
            f"{one.counts.false_positives / one.counts.trials_out:6.1%}"
        )
    typer.echo(f"  these runs could have shown at most {shown_down(found.ceiling)}")
    if found.seed is not None:
        typer.echo(f"  seed {found.seed}: whoever could choose it can choose the answer")


def _fields(target: str, found: MechanismAudit) -> dict[str, Any]:
    return {
        "mechanism": target,
        "verdict": found.verdict.value,
        "epsilon": found.claim.epsilon,
        "delta": found.claim.delta,
        "adjacency": found.claim.adjacency.value,
        "noise": found.claim.noise.value,
        "bound": found.bound,
        "ceiling": found.ceiling,
        "alpha": found.alpha,
        "trials": found.trials,
        "runs": found.runs,
        "seed": found.seed,
        "canaries": [_canary(one) for one in found.canaries],
    }


def _canary(one: CanaryResult) -> dict[str, Any]:
    return {
        "canary": one.canary,
        "score": one.score,
        "clopper_pearson": one.clopper_pearson,
        "gaussian": one.gaussian,
        "false_negatives": one.counts.false_negatives,
        "trials_in": one.counts.trials_in,
        "false_positives": one.counts.false_positives,
        "trials_out": one.counts.trials_out,
    }
