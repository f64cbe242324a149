"""Timing of one noise draw: it follows the noise.

Adversary: whoever can time a single draw, such as another process on the client's machine.
Capability: it measures how long a draw takes; where stated, several times with the same bytes.
Knowledge: the sampler's code and its parameters; not the noise.

Samplers that count until a coin falls take longer for larger noise. The library reads its noise
from a table, by a search of fixed depth for all but the far tail, where it takes one step more; and
it reads other places of the table for other noise. So the time of a single draw may still tell tail
from bulk, a little, and differently on every machine. Not defended: never expose the time of a
draw. What a server sees is the time of a whole vector among everything else that a client does:
there the counting sampler still tells how large its noise was, and the table hardly does, which is
judged. No bound is put on a single draw of the table: its AUC was seen anywhere from .5 to 1.0,
with caches, clock and load, and an expectation would judge the machine.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from kit.metrics import Estimate, auc
from kit.result import Attacker, Demo, Expected, Op, Outcome, Result, Run, Setting
from kit.streams import RandomBytes, keyed
from numpy.typing import NDArray

from securefl.encoding.noise import Mechanism, draw, noise_table
from securefl.encoding.tables import TICKS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = (
    "Jin, McMurtry, Rubinstein, Ohrimenko 2022, Are We There Yet? Timing and Floating-Point "
    "Attacks on Differential Privacy Systems"
)
WATCHER = Attacker(
    role="process on the client's machine", sees="how long a draw takes", knows="the sampler",
    oracle_help="the same draw is timed several times, and the fastest time is kept",
)  # fmt: skip
DEVIATION = 1000  # steps
TAIL = 3.3  # standard deviations
REPEATS = 60
Floats = NDArray[np.float64]


def counting_sampler(random_bytes: RandomBytes) -> int:
    """A two-sided geometric draw by counting coins, as textbook samplers of discrete noise do."""
    stop = int(2**16 * (1 - np.exp(-1 / 40)))
    while True:
        sign, size = random_bytes(1)[0] & 1, 0
        while int.from_bytes(random_bytes(2), "little") >= stop:
            size += 1
        if size or not sign:  # -0 and 0 are one outcome
            return -size if sign else size


def table_sampler(random_bytes: RandomBytes) -> int:
    """One draw of the library's."""
    table = noise_table(Mechanism.SKELLAM, DEVIATION**2 * TICKS)
    return int(draw(table, 1, random_bytes)[0])


class _Replayed:
    """Bytes that can be given again, so that one draw can be timed several times."""

    def __init__(self, raw: bytes) -> None:
        self._raw, self._at = raw, 0

    def __call__(self, count: int) -> bytes:
        start, self._at = self._at, self._at + count
        return self._raw[start : self._at]


def timed(sampler: Callable[[RandomBytes], int], draws: list[bytes], repeats: int) -> Floats:
    """Nanoseconds of every draw: the least of several passes over all of them."""
    best = np.full(len(draws), np.inf)
    for _ in range(repeats):
        for i, raw in enumerate(draws):
            source = _Replayed(raw)
            begin = time.perf_counter_ns()
            sampler(source)
            best[i] = min(best[i], time.perf_counter_ns() - begin)
    return best


def counted(seed: int, count: int) -> tuple[Floats, Floats]:
    """Magnitudes and times of the counting sampler."""
    source = keyed(seed, "t18", "counting")
    draws = [source(8192) for _ in range(count)]
    sizes = np.array([abs(counting_sampler(_Replayed(raw))) for raw in draws], float)
    return sizes, timed(counting_sampler, draws, 3)


def looked_up(seed: int, count: int, repeats: int) -> tuple[Floats, Floats]:
    """Magnitudes and times of the library's sampler: half of them in the tail, half not."""
    source = keyed(seed, "t18", "table")
    table = noise_table(Mechanism.SKELLAM, DEVIATION**2 * TICKS)
    tail: list[bytes] = []
    bulk: list[bytes] = []
    while len(tail) < count or len(bulk) < count:
        raw = source(8 * 4096)
        values = np.abs(draw(table, 4096, _Replayed(raw)))
        words = [raw[8 * i : 8 * i + 8] for i in range(4096)]
        tail += [words[i] for i in np.flatnonzero(values >= TAIL * DEVIATION)]
        bulk += [words[i] for i in np.flatnonzero(values < TAIL * DEVIATION)[:count]]
    draws = [
        raw + bytes(64) for pair in zip(tail[:count], bulk[:count], strict=True) for raw in pair
    ]
    sizes = np.array([abs(table_sampler(_Replayed(raw))) for raw in draws], float)
    return sizes, timed(table_sampler, draws, repeats)


def whole_vectors(seed: int, count: int) -> tuple[Floats, Floats]:
    """Mean magnitude and time of draws of 4096 values at once, as an encoder makes them."""
    table = noise_table(Mechanism.SKELLAM, DEVIATION**2 * TICKS)

    def sampler(random_bytes: RandomBytes) -> int:
        return int(np.abs(draw(table, 4096, random_bytes)).sum())

    return _vectors(sampler, keyed(seed, "t18", "vectors"), count, 8 * 4096 + 64)


def counted_vectors(seed: int, count: int) -> tuple[Floats, Floats]:
    """The same for 64 values of the counting sampler."""

    def sampler(random_bytes: RandomBytes) -> int:
        return sum(abs(counting_sampler(random_bytes)) for _ in range(64))

    return _vectors(sampler, keyed(seed, "t18", "counted"), count, 1 << 16)


def _vectors(
    sampler: Callable[[RandomBytes], int], source: RandomBytes, count: int, size: int
) -> tuple[Floats, Floats]:
    draws = [source(size) for _ in range(count)]
    sizes = np.array([sampler(_Replayed(raw)) for raw in draws], float)
    return sizes, timed(sampler, draws, 3)


def told_apart(sizes: Floats, times: Floats, limit: float) -> Estimate:
    """AUC of the time, with its interval, for draws at or above a size against those below.

    Whether large draws are the slow or the fast ones depends on caches: the attacker learns it from
    the first half of the draws, and the second half counts.
    """
    half = len(sizes) // 2
    large = sizes[:half] >= limit
    slower = np.median(times[:half][large]) >= np.median(times[:half][~large])
    seen, large = times[half:] if slower else -times[half:], sizes[half:] >= limit
    return auc(seen[large], seen[~large])


def _together(found: list[Estimate]) -> tuple[float, float]:
    """A 95 % interval for the mean area over the seeds, which are independent."""
    half = float(np.sqrt(sum(((e.high - e.low) / 2) ** 2 for e in found))) / len(found)
    middle = float(np.mean([e.value for e in found]))
    return middle - half, middle + half


def run(run: Run) -> Outcome:
    """Measures."""
    few, many, whole = (60, 60, 200) if run.quick else (100, 300, 300)
    results = []

    def row(attack: str, setting: Setting, found: list[Estimate], wanted: Expected | None,
            begin: float, **parameters: object) -> None:  # fmt: skip
        results.append(
            Result(
                threat=run.name, paper=PAPER, attacker=WATCHER, setting=setting, attack=attack,
                metric="AUC of the time", per_seed=tuple(e.value for e in found),
                ci95=_together(found), baseline=0.5, expected=wanted,
                parameters=parameters, seconds=time.perf_counter() - begin,
            )
        )  # fmt: skip

    begin = time.perf_counter()
    slow = [counted(seed, many) for seed in run.seeds]
    row("counting sampler: above its median", Setting.UNDEFENDED,
        [told_apart(s, t, float(np.median(s))) for s, t in slow],
        Expected(op=Op.AT_LEAST, bound=0.9), begin, draws=many, repeats=3)  # fmt: skip
    begin = time.perf_counter()
    fast = [looked_up(seed, few, REPEATS) for seed in run.seeds]
    row(
        f"library's table, one draw: beyond {TAIL:g} deviations",
        Setting.NOT_DEFENDED,
        [told_apart(s, t, TAIL * DEVIATION) for s, t in fast],
        None,
        begin,
        draws=2 * few,
        repeats=REPEATS,
    )
    begin = time.perf_counter()
    once = [looked_up(seed, few, 1) for seed in run.seeds]
    row(
        "the same, timed once",
        Setting.NOT_DEFENDED,
        [told_apart(s, t, TAIL * DEVIATION) for s, t in once],
        None,
        begin,
        draws=2 * few,
    )
    # On an idle machine the table's is about .6: a little is told. From 150 (quick: 100) scored
    # draws, an AUC of .62 is seen above .75 with probability .003 (.01) in one seed; two of three
    # seeds have to be.
    for attack, setting, measure, wanted in (
        ("counting sampler, 64 draws at once: above its median", Setting.UNDEFENDED,
         counted_vectors, Expected(op=Op.MEDIAN_AT_LEAST, bound=0.8)),
        ("library's table, 4096 draws at once: above its median", Setting.DEFENDED,
         whole_vectors, Expected(op=Op.MEDIAN_AT_MOST, bound=0.75)),
    ):  # fmt: skip
        begin = time.perf_counter()
        vectors = [measure(seed, whole) for seed in run.seeds]
        found = [told_apart(s, t, float(np.median(s))) for s, t in vectors]
        row(attack, setting, found, wanted, begin, vectors=whole, repeats=3)

    def draw_picture(figure: Figure) -> None:
        from kit import plots  # noqa: PLC0415  # matplotlib is an extra

        left, right = figure.subplots(1, 2)
        sizes, times = slow[0]
        left.plot(sizes, times / 1000, ".", color=plots.BAD, ms=3)
        left.set_title(f"counting sampler: AUC {results[0].median:.2f}")
        sizes, times = fast[0]
        right.plot(sizes / DEVIATION, times / 1000, ".", color=plots.BAD, ms=4)
        right.axvline(TAIL, color=plots.NEUTRAL, ls=":", lw=1.2)
        right.set_title(f"library's table: AUC {results[1].median:.2f} beyond 3.3", fontsize=10)
        left.set_xlabel("size of the noise")
        right.set_xlabel("size of the noise, in standard deviations")
        left.set_ylabel("microseconds of one draw (fastest of several)")
        figure.suptitle("Who times one draw of noise learns about it; n=1, baseline AUC 0.5")

    notes = (
        "Not covered by any epsilon. Do not expose the time of a single draw or encoding.",
        "Single draws of the library's table are shown and not judged: they move with the machine.",
    )
    return Outcome(results=tuple(results), draw=draw_picture, notes=notes)


DEMO = Demo(name=Path(__file__).stem, doc=__doc__ or "", run=run)

if __name__ == "__main__":
    sys.exit(DEMO.main())
