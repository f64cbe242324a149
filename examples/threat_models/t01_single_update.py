"""One client's update gives its record away.

Adversary: an honest-but-curious server; nobody colludes with it.
Capability: reads what arrives, follows the protocol.
Knowledge: the model it sent out, and that the client took one step on one record.

Without secure aggregation the server has one client's gradient. Every first-layer row is a multiple
of the record, and the bias gradient is that multiple, so one division gives all 64 pixels (Phong et
al. 2018). With secure aggregation the same server, reading the same frames, has a masked vector,
and runs the same division on it. Only the single update is gone: what a *sum* tells is program t02.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from attackers.gradients import (
    closed_form,
    dimension,
    first_layer,
    fresh_net,
    record_gradients,
)
from kit import data, metrics
from kit.result import Attacker, Demo, Expected, Op, Outcome, Result, Run, Setting
from kit.transcript import plain_update, plain_vector, read_transcript, write_transcript
from kit.updates import open_sum, plain_codec

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

HIDDEN = 128
PAPER = (
    "Phong, Aono, Hayashi, Wang, Moriai 2018, Privacy-Preserving Deep Learning via Additively "
    "Homomorphic Encryption"
)
SERVER = Attacker(
    role="honest-but-curious server",
    sees="every frame of the round",
    knows="the model; one step on one record",
)


def _attack(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return closed_form(*first_layer(vector, HIDDEN))


def run(settings: Run) -> Outcome:
    """All victims, one client each, with a fresh model per seed."""
    victims = data.victims(10 if settings.quick else 50)
    count, shown = len(victims.x), slice(0, 8)
    bare: dict[str, list[float]] = {"psnr": [], "ident": []}
    masked: dict[str, list[float]] = {"psnr": [], "ident": []}
    seconds = {"bare": 0.0, "masked": 0.0}
    for seed in settings.seeds:
        net = fresh_net(HIDDEN, seed)
        updates = dict(enumerate(record_gradients(net, victims.x, victims.y), start=1))

        begin = time.perf_counter()
        path = settings.transcript("without_secagg")
        write_transcript(path, [plain_update(u, values) for u, values in updates.items()])
        found = np.array(
            [_attack(plain_vector(e).astype(np.float64)) for e in read_transcript(path)]
        )
        bare["psnr"].append(float(np.median(metrics.psnr(found, victims.x))))
        bare["ident"].append(metrics.ident(found, victims.row))
        seconds["bare"] += time.perf_counter() - begin

        begin = time.perf_counter()
        codec = plain_codec(dimension(HIDDEN), count)
        opened = open_sum(updates, codec, settings.transcript())
        blind = np.array([_attack(opened.single(u)) for u in updates])
        masked["psnr"].append(float(np.median(metrics.psnr(blind, victims.x))))
        masked["ident"].append(metrics.ident(blind, victims.row))
        seconds["masked"] += time.perf_counter() - begin

    mean = np.tile(metrics.blind_image(), (count, 1))
    baseline = {
        "psnr": float(np.median(metrics.psnr(mean, victims.x))),
        "ident": metrics.ident(mean, victims.row),
    }
    make = partial(
        Result,
        threat=settings.name,
        paper=PAPER,
        attacker=SERVER,
        attack="closed form on the first layer",
        parameters={
            "n": count,
            "hidden": HIDDEN,
            "records per client": 1,
            "ring bits": codec.spec.bits,
        },
    )
    results = []
    for setting, found_by, most in (
        (Setting.UNDEFENDED, bare, None),
        (Setting.DEFENDED, masked, 12.0),
    ):
        spent = seconds["bare" if most is None else "masked"]
        expected = {
            "psnr": Expected(op=Op.AT_LEAST, bound=80.0)
            if most is None
            else Expected(op=Op.AT_MOST, bound=most),
            "ident": Expected(op=Op.EQUAL, bound=1.0)
            if most is None
            else Expected(op=Op.AT_MOST, bound=0.05),
        }
        results += [
            make(
                setting=setting,
                metric={"psnr": "PSNR, dB (median of victims)", "ident": "identified"}[key],
                per_seed=tuple(found_by[key]),
                expected=expected[key],
                baseline=baseline[key],
                seconds=spent,
            )
            for key in ("psnr", "ident")
        ]

    def draw(figure: Figure) -> None:
        from kit import plots  # noqa: PLC0415  # matplotlib is an extra

        plots.image_rows(
            figure,
            [
                ("the records", victims.x[shown]),
                ("no secure aggregation", found[shown]),
                ("secure aggregation", blind[shown]),
                ("guess without transcript", mean[shown]),
            ],
            title=f"t01: an honest server divides single updates, n = {count} clients, 8 shown",
            captions=(
                "",
                f"{np.median(bare['psnr']):.0f} dB, {np.median(bare['ident']):.0%} identified",
                f"{np.median(masked['psnr']):.1f} dB, {np.median(masked['ident']):.0%} identified",
                f"{baseline['psnr']:.1f} dB, {baseline['ident']:.0%} identified",
            ),
        )

    notes = (
        "Secure aggregation hides the single update. It does not make the sum private: see t02.",
        "The masked row is noise that is uniform in the ring; its PSNR is below a blind guess.",
    )
    return Outcome(results=tuple(results), draw=draw, notes=notes)


DEMO = Demo(name="t01_single_update", doc=__doc__, run=run)

if __name__ == "__main__":
    raise SystemExit(DEMO.main())
