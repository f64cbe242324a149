"""The claim of a deployment in one full sentence: who, what, against whom, assuming what.

Words only; every number is one of the file's. This module knows no verdict.
"""

from __future__ import annotations

from accounting.audit.events import colluders, fewest_survivors, share_count
from accounting.audit.wording import percent, plain
from accounting.deployment import Deployment, Phase, Release

__all__ = ["claim_sentence", "relevant_defaults"]

_ADJACENCY = {
    "add-remove": "is absent altogether",
    "zero-out": "contributes zero instead",
    "replace-one": "contributes anything else instead",
}
_SAMPLING = {
    "poisson": "drawn by independent coins",
    "fixed": "drawn as a cohort of fixed size",
    "shuffle": "taken in shuffled order",
    "cyclic": "taken in a fixed order",
    "all": "",
}


def claim_sentence(deployment: Deployment) -> str:
    """The claim, such as it stands in the file; it says nothing about whether it is true."""
    guarantee, population = deployment.guarantee, deployment.population
    parts = [_phase(deployment, phase) for phase in deployment.phase]
    parts += [_release(one) for one in deployment.release]
    who = _who(deployment)
    neighbours = (
        "with a neighbour relation that the file does not name"
        if guarantee.adjacency is None
        else f"where a neighbouring data set is one in which the {population.unit} "
        f"{_ADJACENCY[guarantee.adjacency]} ({guarantee.adjacency} adjacency)"
    )
    return (
        f"For each {population.unit} of {_count(population.size)}, {who} learns at most what "
        f"({plain(guarantee.epsilon)}, {guarantee.delta:g})-differential privacy allows, "
        f"{neighbours}, from {'; and from '.join(parts)}{_assuming(deployment)}."
    )


def _who(deployment: Deployment) -> str:
    """Against whom the number holds: amplification needs an observer who sees no cohort."""
    hidden = any(
        phase.sampling.coins == "server" and phase.sampling.kind in {"poisson", "fixed", "shuffle"}
        for phase in deployment.phase
    )
    if deployment.trust.model == "local":
        return "the server and everybody else"
    if deployment.trust.model == "central":
        return "whoever sees what the server releases" + (", but not who took part," * hidden)
    server = f"{deployment.trust.server} server"
    if hidden:
        return (
            "whoever sees what the server releases, but not who took part (of which the "
            f"{server} knows more: see its own view),"
        )
    return f"the {server} and whoever sees what it releases"


def _phase(deployment: Deployment, phase: Phase) -> str:
    noise = phase.noise
    what = "clients" if phase.local is not None else f"{deployment.population.unit}s"
    cohort = "" if phase.sampling.cohort is None else f"{_count(phase.sampling.cohort)} "
    drawn = f"{cohort}{what} a round, {_SAMPLING[phase.sampling.kind]}"
    if phase.sampling.kind == "all":
        drawn = f"all {what} in every round"
    if phase.local is not None:
        drawn += (
            f", each making {phase.local.steps} local steps on its records with a coin of "
            f"{plain(phase.local.rate)} for each"
        )
    if noise.kind == "none" or noise.multiplier is None:
        hidden = "no noise"
    else:
        whose = {
            "client-shares": "the clients' shares add up to",
            "server": "the server adds",
            "client": "every client adds",
        }[noise.where]
        hidden = (
            f"{whose} {noise.kind} noise of {plain(noise.multiplier)} times the norm bound "
            f"{plain(phase.clip.norm)}"
        )
    seen = {
        "every round": "every round's sum",
        "checkpoints": "checkpoints",
        "final model": "the final model",
    }[phase.released]
    return f"{seen} of {phase.name!r} ({_count(phase.rounds)} rounds, {drawn}; {hidden})"


def _release(release: Release) -> str:
    return f"{release.name!r} ({release.mechanism.kind}, {release.times} times)"


def _assuming(deployment: Deployment) -> str:
    """What a round must look like for the noise to be there."""
    said = []
    for phase in deployment.phase:
        if phase.noise.where != "client-shares":
            continue
        planned = _count(phase.planned or 0)
        threshold = phase.aggregation.threshold
        kept = f"at least {_count(fewest_survivors(phase))} of {planned} clients stay"
        if threshold is not None:
            kept += " (smaller sums are not opened)"
        colluding = deployment.trust.max_colluding
        together = (
            "nobody colludes"
            if colluding is None
            else f"at most {percent(colluding)} of them ({colluders(deployment, phase)}) collude"
        )
        level = "is sized for" if phase.noise.at == "minimum" else "is planned for"
        said.append(
            f"assuming that in {phase.name!r} {kept}, {together}, and the noise {level} "
            f"{_count(max(0, share_count(deployment, phase)))} honest shares"
        )
    return f", {', and '.join(said)}" if said else ""


def _count(value: int) -> str:
    return f"{value:,}"


def relevant_defaults(deployment: Deployment) -> tuple[tuple[str, object], ...]:
    """The defaults that the audit assumed and that matter for this deployment."""
    found = []
    by_name = {phase.name: phase for phase in deployment.phase}
    for key, value in deployment.assumed():
        phase = by_name.get(key[key.find("[") + 1 : key.find("]")])
        if phase is None or _matters(key.rpartition("].")[2], phase):
            found.append((key, value))
    return tuple(found)


def _matters(key: str, phase: Phase) -> bool:
    if key in {"clip.weighted", "clip.max_weight"}:
        return phase.clip.weights == "examples"
    if key == "clip.rounding":
        return phase.noise.kind in {"skellam", "discrete-gaussian"}
    if key == "sampling.reshuffle":
        return phase.sampling.kind == "shuffle"
    if key == "sampling.empty":
        return phase.sampling.kind == "poisson"
    if key in {"noise.at", "noise.level", "noise.missing"}:
        return phase.noise.where == "client-shares"
    if key == "aggregation.adversary":
        return phase.aggregation.protocol != "none"
    return True
