"""Inversion by optimisation, where no division works.

Adversary: an honest-but-curious server; nobody colludes with it.
Capability: reads what arrives, follows the protocol.
Knowledge: the model it sent out, and that the client took one step on one record.

A convolutional network has no row that is a multiple of the record. The server reads the label off
the last bias gradient (Zhao et al. 2020) and looks for an image with the same gradient: by L-BFGS
on the squared distance (Zhu et al. 2019), and by signed Adam on the cosine distance with a penalty
on total variation (Geiping et al. 2020). A clipped gradient with a little noise (z = .001) breaks
the first attack and not the second: clipping hides the length, which the cosine never asks for.
What noise with an epsilon does is program t03.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from attackers import optimise
from kit import data, metrics
from kit.result import Attacker, Demo, Expected, Op, Outcome, Result, Run, Setting
from kit.transcript import plain_update, plain_vector, read_transcript, write_transcript
from kit.updates import client_claim, noisy_codec, open_sum, plain_codec, release

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

PAPER = (
    "Zhu, Liu, Han 2019, Deep Leakage from Gradients; Zhao, Mopuri, Bilen 2020, iDLG: Improved "
    "Deep Leakage from Gradients; Geiping, Bauermeister, Droege, Moeller 2020, Inverting Gradients"
)
SERVER = Attacker(
    role="honest-but-curious server",
    sees="every frame of the round",
    knows="the model; one step on one record",
)
Z = 0.001
CLIP = 16.0
"""No gradient here reaches it: clipping must not be taken for the work of the masks."""


def run(settings: Run) -> Outcome:
    """Two victims per seed, six in all, with a fresh model per seed."""
    each = 1 if settings.quick else 2
    images = data.victims(each * len(settings.seeds))
    found: dict[str, list[NDArray[np.float64]]] = {}
    seconds: dict[str, float] = {}
    for s, seed in enumerate(settings.seeds):
        chosen = images.take(range(each * s, each * (s + 1)))
        net = optimise.fresh_convnet(seed)
        grads = optimise.record_gradients(net, chosen.x, chosen.y)
        for name, vectors in _observed(settings, grads).items():
            for attack in ("L-BFGS", "cosine + TV"):
                if name == "no secure aggregation" and attack != "L-BFGS":
                    continue  # the first attack is exact already
                begin = time.perf_counter()
                for k, vector in enumerate(vectors):
                    start = [seed, s, k]
                    image = (
                        optimise.lbfgs(net, vector, start)
                        if attack == "L-BFGS"
                        else optimise.cosine(
                            net, vector, start, steps=200 if settings.quick else 400
                        )
                    )
                    found.setdefault(f"{attack}: {name}", []).append(image)
                key = f"{attack}: {name}"
                seconds[key] = seconds.get(key, 0.0) + time.perf_counter() - begin
    return _report(settings, images, each, found, seconds)


def _observed(settings: Run, grads: NDArray[np.float64]) -> dict[str, list[NDArray[np.float64]]]:
    """What reaches the server of each client: in clear, clipped with noise, and masked."""
    d = grads.shape[1]
    path = settings.transcript("without_secagg")
    write_transcript(path, [plain_update(u, g) for u, g in enumerate(grads, start=1)])
    clear = [plain_vector(e).astype(np.float64) for e in read_transcript(path)]
    noisy = noisy_codec(d, 1, Z)
    single = [release(noisy, [noisy.encode(g, round_seed=bytes(32))]) for g in grads]
    codec = plain_codec(d, 3, clip_norm=CLIP)
    rng = np.random.default_rng(0)
    masked = []
    for g in grads:
        updates = {1: g, 2: rng.normal(size=d), 3: rng.normal(size=d)}
        masked.append(open_sum(updates, codec, settings.transcript()).single(1))
    return {
        "no secure aggregation": clear,
        "clip 1, z = .001": single,
        "secure aggregation": masked,
    }


def _report(
    settings: Run,
    images: data.Images,
    each: int,
    found: dict[str, list[NDArray[np.float64]]],
    seconds: dict[str, float],
) -> Outcome:
    blind = float(
        np.median(metrics.psnr(np.tile(metrics.blind_image(), (len(images.x), 1)), images.x))
    )
    works, half = Expected(op=Op.AT_LEAST, bound=40.0), Expected(op=Op.AT_MOST, bound=12.0)
    always, never = Expected(op=Op.AT_LEAST, bound=0.95), Expected(op=Op.AT_MOST, bound=0.0)
    judged = {
        "L-BFGS: no secure aggregation": (Setting.UNDEFENDED, works, always),
        "L-BFGS: clip 1, z = .001": (Setting.NOT_DEFENDED, None, None),
        "cosine + TV: clip 1, z = .001": (
            Setting.NOT_DEFENDED,
            Expected(op=Op.MEDIAN_AT_LEAST, bound=20.0),
            Expected(op=Op.MEDIAN_AT_LEAST, bound=0.95),
        ),
        "L-BFGS: secure aggregation": (Setting.DEFENDED, half, never),
        "cosine + TV: secure aggregation": (Setting.DEFENDED, half, never),
    }  # fmt: skip
    results: list[Result] = []
    captions = [""]
    for name, (setting, decibels, identified) in judged.items():
        shown = np.array(found[name])
        psnr = metrics.psnr(shown, images.x).reshape(-1, each)
        ident = [
            metrics.ident(shown[i : i + each], images.row[i : i + each])
            for i in range(0, len(shown), each)
        ]
        row = partial(
            Result,
            threat=settings.name,
            paper=PAPER,
            attacker=SERVER,
            setting=setting,
            attack=name,
            parameters={"victims per seed": each, "z": Z if "z =" in name else 0},
            epsilon=client_claim(Z) if "z =" in name else None,
            seconds=seconds[name],
        )
        results += [
            row(metric="PSNR, dB (median of victims)", per_seed=tuple(np.median(psnr, axis=1)),
                expected=decibels, baseline=blind),
            row(metric="identified", per_seed=tuple(ident), expected=identified, baseline=0.0),
        ]  # fmt: skip
        cost = f", eps {client_claim(Z).value:,.0f}" if "z =" in name else ""
        captions.append(f"{np.median(psnr):.1f} dB, {np.mean(ident):.0%} identified{cost}")

    def draw(figure: Figure) -> None:
        from kit import plots  # noqa: PLC0415  # matplotlib is an extra

        plots.image_rows(
            figure,
            [
                ("the records", images.x),
                *((name, np.array(found[name])) for name in judged),
                ("guess without transcript", np.tile(metrics.blind_image(), (len(images.x), 1))),
            ],
            captions=[*captions, f"{blind:.1f} dB, 0 % identified"],
            title="t01b: an honest server inverts single updates of a convolutional network,\n"
            f"n = {len(images.x)} clients; last row: the baseline",
        )

    notes = (
        "z = .001 on a single update is epsilon above 500,000, which nobody should call privacy.",
        "Secure aggregation hides the single update, not the sum: see t01c and t02.",
    )
    return Outcome(results=tuple(results), draw=draw, notes=notes)


DEMO = Demo(name="t01b_iterative_inversion", doc=__doc__, run=run, needs=("torch",))

if __name__ == "__main__":
    raise SystemExit(DEMO.main())
