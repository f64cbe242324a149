"""One client adds half the ring to its vector.

Adversary: one malicious client of five; the server is honest.
Capability: sends any ring elements in place of its encoded update.
Knowledge: the encoder, as every client.

Secure aggregation hides the vectors, so nobody can check that they are encodings: there is no range
proof. What the library can check is the sum. A sum that honest encoders cannot reach is refused,
which costs the round and names nobody; that check sees the shift only if the ring has room to
spare, and never a shift that stays within reach of the honest.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
from kit.result import Attacker, Demo, Expected, Op, Outcome, Result, Run, Setting
from kit.rounds import secure_round
from kit.updates import FINE, Opened

from securefl.encoding import CodecSpec, UpdateCodec, from_steps
from securefl.errors import PeerProtocolError
from securefl.modular import RingVector, ring_dtype
from securefl.round import Adversary, ClientId

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

CLIENTS, DIMENSION = 5, 64
PAPER = (
    "Bell, Gascon, Lepoint, Li, Meiklejohn, Raykova, Yun 2023, ACORN: Input Validation for Secure "
    "Aggregation (what a protocol with range proofs looks like)"
)
CLIENT = Attacker(
    role="malicious client",
    sees="nothing but its own part of the protocol",
    knows="the encoder",
)


def _codec(*, spare: int) -> UpdateCodec:
    """A ring with ``spare`` bits more than the sum needs; with 0, one filled to the brim."""
    if not spare:
        return UpdateCodec(
            CodecSpec.plan(dimension=DIMENSION, clip_norm=1.0, max_clients=CLIENTS, bits=16)
        )
    needed = (2 * CLIENTS * FINE + 1).bit_length()
    spec = CodecSpec.plan(
        dimension=DIMENSION,
        clip_norm=1.0,
        max_clients=CLIENTS,
        bits=needed + spare,
        resolution=FINE,
    )
    return UpdateCodec(spec)


def _shifted(vector: RingVector, by: int) -> RingVector:
    """The vector plus a constant in every entry."""
    dtype = ring_dtype(vector.modulus)
    steps = (vector.values.astype(np.uint64) + np.uint64(by)) & np.uint64(vector.modulus - 1)
    return RingVector(steps.astype(dtype), vector.modulus)


def _unchecked(opened: Opened, codec: UpdateCodec) -> NDArray[np.float64]:
    """Decoding without the check: what a server gets that trusts its clients."""
    total = opened.recorded.view().sum_of(opened.recorded.view().clients)
    assert total is not None
    vector = RingVector(total.astype(ring_dtype(codec.modulus)), codec.modulus)
    spec = codec.spec
    return from_steps(vector.centred(), clip_norm=spec.clip_norm, resolution=spec.resolution)


def play(settings: Run, seed: int, codec: UpdateCodec, by: int, *, checked: bool) -> float:
    """How far one session's mean is from the honest one, in clip norms; 0 if it was refused."""
    rng = np.random.default_rng(seed)
    updates = rng.normal(size=(CLIENTS, DIMENSION))
    updates /= np.linalg.norm(updates, axis=1, keepdims=True)
    inputs = {ClientId(u + 1): codec.encode(values) for u, values in enumerate(updates)}
    inputs[ClientId(1)] = _shifted(inputs[ClientId(1)], by)
    recorded = secure_round(inputs, settings.transcript(), adversary=Adversary.SEMI_HONEST)
    opened = Opened(recorded=recorded, codec=codec, seed=b"")
    try:
        total = opened.total() if checked else _unchecked(opened, codec)
    except PeerProtocolError:
        return 0.0  # refused: no model is changed, and the round is lost
    return float(np.abs(total / CLIENTS - updates.mean(axis=0)).max())


def run(settings: Run) -> Outcome:
    """The largest shift without and with the check, then the shifts that the check cannot see."""
    roomy, full = _codec(spare=2), _codec(spare=0)
    wild, mild = Expected(op=Op.AT_LEAST, bound=1.0), Expected(op=Op.AT_LEAST, bound=0.4)
    gone = Expected(op=Op.AT_MOST, bound=0.0)
    half_step = (CLIENTS * FINE) // 2
    half, brim = roomy.modulus // 2, full.modulus // 2
    cases = [
        ("half the ring, nothing checked", roomy, half, False, Setting.UNDEFENDED, wild),
        ("half the ring, the library's check", roomy, half, True, Setting.DEFENDED, gone),
        ("half the ring, full to the brim", full, brim, True, Setting.NOT_DEFENDED, mild),
        ("a shift within reach", roomy, half_step, True, Setting.NOT_DEFENDED, mild),
    ]
    results = []
    for name, codec, by, checked, setting, expected in cases:
        begin = time.perf_counter()
        moved = [play(settings, seed, codec, by, checked=checked) for seed in settings.seeds]
        results.append(
            Result(
                threat=settings.name,
                paper=PAPER,
                attacker=CLIENT,
                setting=setting,
                attack=name,
                metric="how far the mean moved, in clip norms",
                per_seed=tuple(moved),
                expected=expected,
                baseline=0.0,
                parameters={
                    "n": CLIENTS,
                    "ring bits": codec.spec.bits,
                    "resolution": codec.spec.resolution,
                    "shift": by,
                },
                seconds=time.perf_counter() - begin,
            )
        )  # fmt: skip

    def draw(figure: Figure) -> None:
        from kit import plots  # noqa: PLC0415  # matplotlib is an extra

        figure.set_size_inches(7.5, 2.6)
        plots.bars(
            figure.subplots(),
            [
                (r.attack, r.median, plots.GOOD if r.setting is Setting.DEFENDED else plots.BAD)
                for r in results
            ],
            xlabel="how far the mean moved, in clip norms (an honest client: 1/5)",
            title=f"t13b: one malicious client of n = {CLIENTS} adds a constant in the ring",
            baseline=1 / CLIENTS,
        )  # fmt: skip

    notes = (
        "A refused sum is a lost round, and the sum hides whose fault it was.",
        "Two bits of room in the ring make the check see a shift by half the ring; nothing in the "
        "library sees one within what honest clients can reach.",
    )
    return Outcome(results=tuple(results), draw=draw, notes=notes)


DEMO = Demo(name="t13b_outside_the_range", doc=__doc__, run=run)

if __name__ == "__main__":
    raise SystemExit(DEMO.main())
