"""Paillier: who changes a ciphertext without a key, and who asks for a single one.

Adversary: a malicious server; for a changed submission, somebody between a client and the server.
Capability: it multiplies ciphertexts, asks the deciders for openings, makes lists of its own.
Knowledge: the public key, every frame of the session; no secret key and no identity of a client.

Anybody can add to what is inside of a Paillier ciphertext, and whoever opens ciphertexts on request
opens single updates. The library signs and proves every submission, and its key holder opens
only what a witness without a key has recomputed, one list per session. Server and all required
witnesses together, or the server with the key holder, still read every update: that is where this
protocol's trust is placed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from attackers import paillier
from attackers.paillier import ADDED, BITS, VICTIM, Ring, Stage
from kit.metrics import blind_image, equal_fraction
from kit.result import Attacker, Demo, Expected, Op, Outcome, Result, Run, Setting
from kit.rounds import as_image

from securefl.primitives.paillier import Encryptor
from securefl.protocols.paillier import KeyHolder, Witness

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = (
    "Paillier 1999, Public-Key Cryptosystems Based on Composite Degree Residuosity Classes; "
    "Damgard, Jurik 2001, A Generalisation, a Simplification and Some Applications of Paillier's "
    "Probabilistic Public-Key System"
)
SERVER = Attacker(role="malicious server", sees="all frames", knows="the public key")
BETWEEN = Attacker(
    role="between a client and the server", sees="all frames", knows="the public key"
)
STEPS = 1_000_000  # integers per 1.0


def bare_ciphertext(stage: Stage) -> tuple[float, float]:
    """0.6 under the bare cryptosystem, after +1000 and after a change of sign without a key."""
    encryptor = Encryptor(stage.terms.public, window=4)
    n2, n = int(encryptor.degree.modulus), int(stage.terms.public.n)
    secret = paillier._key()
    (c,) = encryptor.encrypt([round(0.6 * STEPS)]).ciphertexts
    moved = secret.decrypt(c * int(encryptor.degree.one_plus_n(1000 * STEPS)) % n2)
    turned = secret.decrypt(pow(c, -1, n2))
    return moved / STEPS, (turned - n) / STEPS


def single_updates(run: Run, pictures: dict[str, Ring | None]) -> list[Result]:
    """Three ways to have one client's update opened, each with and without its check."""
    plans: tuple[tuple[str, Callable[[Stage], Ring | None], str, dict[str, Any]], ...] = (
        ("a list of one client", paillier.one_client_list, "_admit",
         {"holder": paillier.AnyList, "witness": paillier.AnyListWitness}),
        ("a false product for a long list", paillier.false_list, "_check_statements",
         {"holder": paillier.AnyProduct}),
        ("two lists that differ in one client", paillier.two_lists, "_bind",
         {"holder": paillier.Forgetful, "witness": paillier.ForgetfulWitness}),
    )  # fmt: skip
    rows = []
    for name, attack, check, weakened in plans:
        for setting, deciders in ((Setting.UNDEFENDED, weakened), (Setting.DEFENDED, {})):
            begin, values = time.perf_counter(), []
            for seed in run.seeds:
                stage = Stage(seed, run.transcript(), **deciders)
                found = attack(stage)
                values.append(equal_fraction(found, stage.truth(VICTIM)))
                pictures.setdefault(f"{name}, {setting}", found)
            wanted = 1.0 if setting is Setting.UNDEFENDED else 0.0
            rows.append(
                Result(
                    threat=run.name, paper=PAPER, attacker=SERVER, setting=setting, attack=name,
                    metric="ring elements of one update read", per_seed=tuple(values),
                    baseline=0.0, expected=Expected(op=Op.EQUAL, bound=wanted),
                    parameters={"n": paillier.N, "min_clients": paillier.ALIVE, "check": check,
                                "key_bits": paillier.KEY_BITS},
                    seconds=time.perf_counter() - begin,
                )
            )  # fmt: skip
    return rows


def changed_sums(run: Run) -> list[Result]:
    """A thousand added to one entry without any key."""
    rows = []

    def row(attack: str, attacker: Attacker, setting: Setting, check: str,
            shift: Callable[[int], float]) -> None:  # fmt: skip
        begin = time.perf_counter()
        wanted = float(ADDED) if setting is Setting.UNDEFENDED else 0.0
        values = tuple(shift(seed) for seed in run.seeds)
        rows.append(
            Result(
                threat=run.name, paper=PAPER, attacker=attacker, setting=setting, attack=attack,
                metric="first entry of the opened sum moved by", per_seed=values, baseline=0.0,
                expected=Expected(op=Op.EQUAL, bound=wanted),
                parameters={"added": ADDED, "check": check},
                seconds=time.perf_counter() - begin,
            )
        )  # fmt: skip

    def stage(seed: int, holder: type[KeyHolder] = KeyHolder) -> Stage:
        return Stage(seed, run.transcript(), holder=holder, witness=Witness)

    row("a ciphertext by itself", BETWEEN, Setting.UNDEFENDED, "none: the bare cryptosystem",
        lambda seed: round(bare_ciphertext(stage(seed))[0] - 0.6, 9))  # fmt: skip
    row("a submission changed on its way", BETWEEN, Setting.DEFENDED,
        "signature and proof of knowledge",
        lambda seed: paillier.altered_submission(stage(seed)))  # fmt: skip
    row("the product changed before it is opened", SERVER, Setting.UNDEFENDED,
        "_check_statements",
        lambda seed: paillier.altered_product(stage(seed, paillier.AnyProduct)))  # fmt: skip
    row("the product changed before it is opened", SERVER, Setting.DEFENDED, "_check_statements",
        lambda seed: paillier.altered_product(stage(seed)))  # fmt: skip
    return rows


def run(run: Run) -> Outcome:
    """Measures."""
    pictures: dict[str, Ring | None] = {}
    results = [*single_updates(run, pictures), *changed_sums(run)]
    moved, turned = bare_ciphertext(Stage(run.seeds[0], run.transcript()))
    truth = Stage(run.seeds[0], run.transcript()).truth(VICTIM)

    def draw(figure: Figure) -> None:
        from kit import plots  # noqa: PLC0415  # matplotlib is an extra

        def shown(found: Ring | None) -> Any:
            return as_image(None if found is None else found.astype(np.uint64), BITS)

        names = list(dict.fromkeys(key.rsplit(",", 1)[0] for key in pictures))
        rows: list[tuple[str, Any]] = [("the client's image", [shown(truth)])]
        captions = [""]
        for name in names:
            rows.append((name, [shown(pictures[f"{name}, {s}"])
                                for s in (Setting.UNDEFENDED, Setting.DEFENDED)]))  # fmt: skip
            captions.append("left: check removed; right: refused")
        rows.append(("guess without transcript", [blind_image()]))
        captions.append("0 of 64 entries")
        plots.image_rows(
            figure, [(label, np.stack(images)) for label, images in rows],
            title="A malicious server asks the key holder for one update, n=6",
            captions=captions,
        )  # fmt: skip
        figure.set_size_inches(5.2, 5.0)

    notes = (
        f"0.6 becomes {moved:g} or {turned:g} without any key where a ciphertext stands alone.",
        "Not defended: the server together with the key holder, or with every required witness, "
        "reads single updates; the key holder can lie about the sum.",
    )
    return Outcome(results=tuple(results), draw=draw, notes=notes)


DEMO = Demo(name=Path(__file__).stem, doc=__doc__ or "", run=run, needs=("sklearn",))

if __name__ == "__main__":
    sys.exit(DEMO.main())
