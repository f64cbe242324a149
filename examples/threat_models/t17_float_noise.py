"""Noise in floating point: the last bits tell which input was possible.

Adversary: whoever sees a released number; it follows the protocol.
Capability: it looks at all bits of the number.
Knowledge: the two inputs that are possible, 0 and 1, and the mechanism.

x + N(0, 1) in floats is not the mechanism that was accounted for: a value near 0 that needs finer
bits than 2^-53 can come from x = 0 and never from x = 1. On integers both inputs have the same
outputs. That one event does not occur proves nothing about others; the proof is that rounding,
clipping and noise all happen in integers, and decoding is the same function for both inputs.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from kit.aggregator import ADJACENCY, claim_of, spec_of
from kit.metrics import DELTA, gaussian_epsilon
from kit.result import Attacker, Demo, Epsilon, Expected, Op, Outcome, Result, Run, Setting
from kit.streams import RandomBytes, keyed
from numpy.typing import NDArray

from accounting.empirical import ErrorCounts, clopper_pearson
from securefl.encoding.noisy import NoisyCodec
from securefl.round import AggregateSum, ClientId
from securefl.training.randomness import standard_normal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = (
    "Mironov 2012, On Significance of the Least Significant Bits for Differential Privacy; "
    "Haney et al. 2022, Precision-Based Attacks and Interval Refining"
)
READER = Attacker(
    role="honest-but-curious server",
    sees="the released number, all bits",
    knows="the two possible inputs, the mechanism",
    oracle_help="worst case: all other inputs are known",
)
Floats = NDArray[Any]
Releases = Callable[[float, int, int], Floats]
"""``f(x, seed, count)``: so many independent releases of the input x."""
Z = 1.0
EXACT_GRID = "integer noise, grid 2^-10"
BINS = 10  # low bits of the significand that the learned attack looks at


def float64(x: float, seed: int, count: int) -> Floats:
    """The library's own normal draws, added in float64."""
    return x + Z * standard_normal(count, keyed(seed, "t17", x))


def float32(x: float, seed: int, count: int) -> Floats:
    """The same draws as float32, added in float32."""
    noise = standard_normal(count, keyed(seed, "t17", "single", x)).astype(np.float32)
    return np.float32(x) + np.float32(Z) * noise


def numpy_float64(x: float, seed: int, count: int) -> Floats:
    """NumPy's normal draws."""
    return x + Z * np.random.default_rng([seed, int(x)]).standard_normal(count)


def opacus_secure_mode(x: float, seed: int, count: int) -> Floats:
    """Opacus' noise with ``secure_mode=True``, added to a float32 tensor."""
    import torch  # noqa: PLC0415  # an extra
    from opacus.optimizers.optimizer import _generate_noise  # noqa: PLC0415  # an extra

    generator = torch.Generator().manual_seed(2 * seed + int(x))
    inputs = torch.full((count,), float(x))
    noise = _generate_noise(Z, inputs, generator=generator, secure_mode=True)
    found: Floats = (inputs + noise).numpy()
    return found


def integers(codec: NoisyCodec) -> Releases:
    """The library's noisy codec: one client, one coordinate, clip norm 1."""

    def releases(x: float, seed: int, count: int) -> Floats:
        random_bytes: RandomBytes = keyed(seed, "t17", "integers", x)
        update, public = np.array([x]), bytes(16)
        found = np.empty(count)
        for i in range(count):
            vector = codec.encode(update, round_seed=public, random_bytes=random_bytes)
            opened = AggregateSum(vector=vector, survivors=(ClientId(1),), min_honest=1)
            found[i] = codec.decode(opened, round_seed=public).mean[0]
        return found

    return releases


# -- two attacks: each says for which releases it guesses "x was 0" -------------------------------


def too_fine(y: Floats) -> NDArray[np.bool_]:
    """Near 0, and no multiple of the spacing of numbers in [1/2, 1)."""
    bits = 24 if y.dtype == np.float32 else 53
    scaled = np.ldexp(y.astype(np.float64), bits)
    return (np.abs(y) < 0.5) & (scaled != np.rint(scaled))


def low_bits(y: Floats) -> NDArray[np.int64]:
    """Exponent and the lowest bits of the significand, as one number."""
    if y.dtype == np.float32:
        raw = y.view(np.uint32).astype(np.uint64)
        exponent = (raw >> np.uint64(23)) & np.uint64(0xFF)
    else:
        raw = y.astype(np.float64).view(np.uint64)
        exponent = (raw >> np.uint64(52)) & np.uint64(0x7FF)
    low = raw & np.uint64((1 << BINS) - 1)
    return ((exponent << np.uint64(BINS)) | low).astype(np.int64)


def learned(zero: Floats, one: Floats) -> Callable[[Floats], NDArray[np.bool_]]:
    """Patterns of low bits that the learning half saw clearly more often with x = 0."""
    size = 1 << (11 + BINS)
    a = np.bincount(low_bits(zero), minlength=size)
    b = np.bincount(low_bits(one), minlength=size)
    chosen = a > 4 * b + 2
    return lambda y: np.asarray(chosen[low_bits(y)], dtype=np.bool_)


def bound(zero: Floats, one: Floats, guess: Callable[[Floats], NDArray[np.bool_]]) -> float:
    """95 % lower bound on epsilon at delta from guesses that these releases did not shape."""
    hits, alarms = int(guess(zero).sum()), int(guess(one).sum())
    counts = ErrorCounts(
        false_negatives=len(zero) - hits, trials_in=len(zero),
        false_positives=alarms, trials_out=len(one),
    )  # fmt: skip
    return clopper_pearson(counts, DELTA, alpha=0.05, canaries=2)  # two attacks


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One way to draw noise, with the claim that is made for it."""

    name: str
    setting: Setting
    releases: Releases
    claim: float
    draws: tuple[int, int]
    parameters: dict[str, Any]


def kinds() -> list[Kind]:
    """All of them; Opacus' only where it is installed."""
    floats, claim = (200_000, 30_000), gaussian_epsilon(1 / Z)
    found = [
        Kind(name="NumPy, float64", setting=Setting.UNDEFENDED, releases=numpy_float64,
             claim=claim, draws=floats, parameters={"noise": "numpy"}),
        Kind(name="float32", setting=Setting.UNDEFENDED, releases=float32, claim=claim,
             draws=floats, parameters={"noise": "training.randomness, float32"}),
        Kind(name="local-dp's noise, bare", setting=Setting.NOT_DEFENDED, releases=float64,
             claim=claim, draws=floats, parameters={"noise": "training.randomness"}),
    ]  # fmt: skip
    if importlib.util.find_spec("opacus") is not None:
        found.append(
            Kind(name="Opacus, secure_mode", setting=Setting.NOT_DEFENDED,
                 releases=opacus_secure_mode, claim=claim, draws=floats,
                 parameters={"noise": "opacus, secure_mode=True, float32"})
        )  # fmt: skip
    for name, resolution in ((EXACT_GRID, 1024.0), ("integer noise, own grid", None)):
        spec = spec_of(z=Z, clients=1, dimension=1, resolution=resolution)
        codec = NoisyCodec(spec)
        found.append(
            Kind(name=name, setting=Setting.DEFENDED, releases=integers(codec),
                 claim=claim_of(codec.event(1)).epsilon, draws=(10_000, 3_000),
                 parameters={"resolution": spec.resolution, "mechanism": str(spec.mechanism)})
        )  # fmt: skip
    return found


def judged(run: Run, kind: Kind) -> tuple[list[Result], tuple[float, float], list[int]]:
    """Both attacks on one kind of noise; rates of the event with x = 0 and 1; counts per seed."""
    begin = time.perf_counter()
    count = kind.draws[run.quick]
    precise, trained = [], []
    found = []
    for seed in run.seeds:
        zero, one = kind.releases(0.0, seed, count), kind.releases(1.0, seed, count)
        found.append((int(too_fine(zero).sum()), int(too_fine(one).sum())))
        precise.append(bound(zero, one, too_fine))
        half = count // 2
        trained.append(bound(zero[half:], one[half:], learned(zero[:half], one[:half])))
    seconds = time.perf_counter() - begin
    rates = np.mean(found, axis=0) / count
    rows = []
    wanted = Expected(op=Op.AT_LEAST, bound=kind.claim)
    if kind.setting is Setting.DEFENDED:
        wanted = Expected(op=Op.AT_MOST, bound=kind.claim)
    for attack, values in (("precision event", precise), ("learned low bits", trained)):
        defended = kind.setting is Setting.DEFENDED
        rows.append(
            Result(
                threat=run.name, paper=PAPER, attacker=READER, setting=kind.setting,
                attack=f"{kind.name}: {attack}",
                metric=f"lower bound on epsilon, claim {kind.claim:.2f}",
                per_seed=tuple(values), baseline=0.0,
                expected=wanted if defended or values is precise else None,
                cap=kind.claim if defended else None,
                cap_formula="the claim, that is the accountant's epsilon" if defended else "",
                parameters=kind.parameters
                | {"z": Z, "draws_per_input": count, "event_rate_x0": rates[0],
                   "event_rate_x1": rates[1]},
                epsilon=Epsilon(value=kind.claim, delta=DELTA, adjacency=ADJACENCY, rounds=1,
                                participation="full"),
                seconds=seconds,
            )
        )  # fmt: skip
    return rows, (float(rates[0]), float(rates[1])), [sum(one) for one in found]


def event_never(run: Run, events: list[int], draws: int) -> Result:
    """The precision event itself: on a grid of 2^-10 it cannot occur, for neither input."""
    return Result(
        threat=run.name, paper=PAPER, attacker=READER, setting=Setting.DEFENDED,
        attack=EXACT_GRID, metric="releases with the precision event",
        per_seed=tuple(events), baseline=0.0, expected=Expected(op=Op.EQUAL, bound=0.0),
        parameters={"draws": draws},
    )  # fmt: skip


def run(run: Run) -> Outcome:
    """Measures."""
    results, rates = [], {}
    chosen = kinds()
    for kind in chosen:
        rows, rates[kind.name], events = judged(run, kind)
        results += rows
        if kind.name == EXACT_GRID:
            results.append(event_never(run, events, 2 * kind.draws[run.quick]))
    claims = {k.name: k.claim for k in chosen}

    def draw(figure: Figure) -> None:
        from kit import plots  # noqa: PLC0415  # matplotlib is an extra

        figure.set_size_inches(7.5, 3.6)
        ax = figure.subplots()
        for place, kind in enumerate(chosen):
            found = [r for r in results if r.attack.startswith(kind.name + ":")]
            best = max(found, key=lambda r: r.median)
            colour = plots.GOOD if kind.setting is Setting.DEFENDED else plots.BAD
            ax.barh(place, best.median, height=0.55, color=colour, alpha=0.75)
            ax.plot(best.per_seed, [place] * len(best.per_seed), "|", color="black", ms=8)
            ax.plot([claims[kind.name]] * 2, [place - 0.38, place + 0.38], color="black", lw=1.5)
            zero, one = rates[kind.name]
            ax.text(
                max(best.max, claims[kind.name]) + 0.15,
                place,
                f"event: {zero:.3f} if x=0, {one:.3f} if x=1",
                va="center",
                fontsize=8,
            )
        ax.set_yticks(range(len(chosen)), [k.name for k in chosen])
        ax.invert_yaxis()
        ax.set_xlim(0, 16.5)
        ax.axvline(0.0, color=plots.NEUTRAL, ls=":", lw=1.2)
        ax.set_xlabel("proved lower bound on epsilon (95 %); black line: the claim; baseline 0")
        ax.set_title("Who reads the last bits of x + noise, x = 0 or 1 (n=1, z=1, delta 1e-5)")

    notes = (
        "Quantise first, clip there, add integer noise, account for that mechanism; decoding is "
        "post-processing. Passing these two attacks is no proof.",
        "In a training run more operations stand between local-dp's noise and what the server "
        "sees; no attack on that whole path is known to us, and no proof either.",
    )
    return Outcome(results=tuple(results), draw=draw, notes=notes)


DEMO = Demo(name=Path(__file__).stem, doc=__doc__ or "", run=run)

if __name__ == "__main__":
    sys.exit(DEMO.main())
