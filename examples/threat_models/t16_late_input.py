"""Late input: a masked vector arrives after its sender was declared dropped.

Adversary: a server that follows the protocol, with a slow network; then one that asks again.
Capability: the target's mask key was opened, so its pair masks are known; then its vector comes.
Knowledge: every frame; no input of anybody honest.

With pair masks alone, the late vector would be an open book: this is why every client adds a second
mask of its own. The late vector is refused by the server's machine, the sum over the survivors is
right, and what is left of the vector without its pair masks is uniform.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from attackers import inputs as attacks
from attackers.measure import ALL, BONAWITZ, NONE, measured
from attackers.stage import BITS, TARGET, Case
from attackers.weakened import ForgetsItsAnswer, NoSelfMask
from kit.metrics import blind_image, equal_fraction
from kit.result import Attacker, Demo, Expected, Op, Outcome, Result, Run, Setting
from kit.rounds import as_image, images_as_inputs, plain_sum, ring
from kit.view import Ring
from scipy.special import chdtrc

from securefl.round import ClientId

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SERVER = Attacker(role="server that follows the protocol", sees="all frames", knows="nothing else")
ASKS_AGAIN = Attacker(role="malicious server", sees="all frames", knows="nothing else")
ENTRIES, SMALL_BITS = 1 << 14, 8
ALARM = 1e-6
"""False-alarm rate of the uniformity test, per seed."""


def survivors_sum(case: Case) -> float:
    """Fraction of entries of the survivors' sum that are not exact; the late vector is out."""
    stage, view = attacks.late_vector(case)
    rest = stage.ids[1:]
    return 1.0 - equal_fraction(view.sum_of(rest), plain_sum(stage.inputs, rest))


def uniformity(case: Case) -> float:
    """P-value, Pearson's chi-square over the 256 values, of an all-zero input that came late.

    The input is all zeros, so every trace of it would be a deviation from uniform.
    """
    zeros = {ClientId(u): ring(np.zeros(ENTRIES, dtype=np.int64), SMALL_BITS) for u in range(1, 7)}
    _, view = attacks.late_vector(case, bits=SMALL_BITS, inputs=zeros)
    stripped = attacks.strip_pair_masks(view, TARGET)
    if stripped is None:
        return 0.0
    counts = np.bincount(stripped.astype(np.int64), minlength=1 << SMALL_BITS)
    expected = ENTRIES / (1 << SMALL_BITS)
    statistic = float(np.square(counts - expected).sum() / expected)
    return float(chdtrc((1 << SMALL_BITS) - 1, statistic))


def run(run: Run) -> Outcome:
    """Measures."""
    pictures: dict[str, Ring] = {}

    begin = time.perf_counter()
    p_values = tuple(
        uniformity(Case(seed=seed, path=run.transcript(f"uniform_{seed}"))) for seed in run.seeds
    )
    seconds = time.perf_counter() - begin
    exact = Expected(op=Op.EQUAL, bound=0.0)
    results = [
        measured(
            run, attacks.late_input, name="pair masks only", setting=Setting.UNDEFENDED,
            expected=ALL, attacker=SERVER, client=NoSelfMask, pictures=pictures,
            parameters={"n": 6, "t": 3, "check": "_self_mask_key"},
        ),
        measured(
            run, attacks.late_input, name="both masks", setting=Setting.DEFENDED, expected=NONE,
            attacker=SERVER, pictures=pictures, parameters={"n": 6, "t": 3},
        ),
        measured(
            run, attacks.late_and_asked_again, name="both masks, everybody asked again",
            setting=Setting.UNDEFENDED, expected=ALL, attacker=ASKS_AGAIN,
            client=ForgetsItsAnswer, parameters={"check": "receive"},
        ),
        measured(
            run, attacks.late_and_asked_again, name="both masks, everybody asked again",
            setting=Setting.DEFENDED, expected=NONE, attacker=ASKS_AGAIN,
            parameters={"check": "receive"},
        ),
        measured(
            run, survivors_sum, name="sum over the survivors", setting=Setting.DEFENDED,
            expected=exact, attacker=SERVER, metric="fraction of wrong entries", baseline=None,
        ),
        Result(
            threat=run.name, paper=BONAWITZ, attacker=SERVER, setting=Setting.DEFENDED,
            attack="what is left of the late vector", metric="p-value of uniformity",
            per_seed=p_values, expected=Expected(op=Op.AT_LEAST, bound=ALARM),
            parameters={"entries": ENTRIES, "modulus": 1 << SMALL_BITS, "false alarms": ALARM},
            seconds=seconds,
        ),
    ]  # fmt: skip

    def draw(figure: Figure) -> None:
        from kit import plots  # noqa: PLC0415  # matplotlib is an extra

        truth = images_as_inputs(1, bits=BITS, seed=run.seeds[0])[TARGET].values
        shown = list(pictures.values())
        rows = [
            ("the late image", as_image(truth, BITS)),
            ("pair masks only", as_image(shown[0], BITS)),
            ("both masks", as_image(shown[1], BITS)),
            ("guess without transcript", blind_image()),
        ]
        captions = ["", "recovered exactly", "uniform: nothing recovered", "0 of 64 entries"]
        title = "An honest server gets a vector after it opened its mask key, n=6"
        plots.image_rows(figure, rows, title=title, captions=captions)
        figure.set_size_inches(5.2, 4.4)

    return Outcome(results=tuple(results), draw=draw)


DEMO = Demo(name=Path(__file__).stem, doc=__doc__ or "", run=run, needs=("sklearn",))

if __name__ == "__main__":
    sys.exit(DEMO.main())
