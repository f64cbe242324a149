"""Encrypted floats whose exponent travels in clear.

Adversary: an honest-but-curious server, or whoever sees ciphertexts on the way.
Capability: it reads what stands beside each ciphertext.
Knowledge: the public key, the encoding of python-paillier; no secret key.

python-paillier writes a float as an integer times 16 to an exponent, encrypts the integer and sends
the exponent as it is. Small numbers have small exponents, so that everybody learns every number's
magnitude, which of a model's gradients are near zero among them. One fixed precision for all
numbers closes it: integers, as the library encrypts, or one declared exponent.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from kit.result import Attacker, Demo, Expected, Op, Outcome, Result, Run, Setting
from numpy.typing import NDArray

from securefl.errors import ConfigurationError
from securefl.primitives.paillier import SecretKey, generate_keypair
from securefl.primitives.phe_interop import from_phe, to_phe, to_phe_public_key

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = (
    "Paillier 1999, Public-Key Cryptosystems Based on Composite Degree Residuosity Classes; "
    "python-paillier 1.5, class EncodedNumber"
)
READER = Attacker(
    role="honest-but-curious server",
    sees="ciphertexts and the exponent beside each",
    knows="the public key",
)
KEY_BITS = 1024  # nothing here depends on the key's length; phe's own 2048 take longer
SHOWN = (1e-9, 1e-3, 0.5, 1.0, 1000.0, 1e9)
PRECISION = 1e-6


def values_of(seed: int, count: int) -> NDArray[np.float64]:
    """Magnitudes spread evenly over 18 decades, signs at random."""
    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 2, count) * 2 - 1
    found: NDArray[np.float64] = signs * 10.0 ** rng.uniform(-9, 9, count)
    return found


def as_floats(key: Any, values: NDArray[np.float64]) -> list[Any]:
    """Phe's default: every float with its own exponent."""
    return [key.encrypt(float(v)) for v in values]


def fixed_precision(key: Any, values: NDArray[np.float64]) -> list[Any]:
    """Phe with one precision for all numbers."""
    return [key.encrypt(float(v), precision=PRECISION) for v in values]


def exponents(numbers: list[Any]) -> NDArray[np.int64]:
    """What the attacker reads: the only line of this file that it needs."""
    return np.array([int(x.exponent) for x in numbers])


def decades_from(seen: NDArray[np.int64], learnt: dict[int, float]) -> NDArray[np.float64]:
    """The attacker's guess of log10 |v| from the exponent, 0 where it knows nothing."""
    return np.array([learnt.get(int(e), 0.0) for e in seen])


def hit_rate(key: Any, encrypt: Callable[..., list[Any]], seed: int, count: int) -> float:
    """How many numbers' magnitude is guessed to within one decade.

    The attacker learns the table exponent -> magnitude from numbers that it encrypts itself.
    """
    own = values_of(10_000 + seed, 2 * count)
    table: dict[int, list[float]] = {}
    for e, v in zip(exponents(encrypt(key, own)).tolist(), own, strict=True):
        table.setdefault(e, []).append(float(np.log10(abs(v))))
    learnt = {e: float(np.mean(found)) for e, found in table.items()}
    victims = values_of(seed, count)
    guess = decades_from(exponents(encrypt(key, victims)), learnt)
    return float(np.mean(np.abs(guess - np.log10(np.abs(victims))) <= 1.0))


def library_ciphertexts(
    secret: SecretKey, key: Any, values: NDArray[np.float64], *, precision: float = PRECISION
) -> list[Any]:
    """What the library takes from phe and gives to it: integers, one declared exponent."""
    numbers = fixed_precision(key, values) if precision else as_floats(key, values)
    declared = int(numbers[0].exponent)
    return to_phe(secret.public, from_phe(secret.public, numbers, exponent=declared))


def refuses_mixed(secret: SecretKey, key: Any, values: NDArray[np.float64]) -> bool:
    """Whether numbers with exponents of their own come in."""
    try:
        library_ciphertexts(secret, key, values, precision=0.0)
    except ConfigurationError:
        return True
    return False


def run(run: Run) -> Outcome:
    """Measures."""
    count = 30 if run.quick else 40
    secret = generate_keypair(KEY_BITS, min_bits=KEY_BITS)
    key = to_phe_public_key(secret.public)
    chosen = np.array(SHOWN)
    in_clear = exponents(as_floats(key, chosen)).tolist()
    results = []
    blind = float(np.mean([abs(np.log10(abs(v))) <= 1 for v in values_of(0, 4000)]))

    def row(attack: str, metric: str, setting: Setting, values: list[float], wanted: Expected,
            baseline: float, begin: float) -> None:  # fmt: skip
        results.append(
            Result(
                threat=run.name, paper=PAPER, attacker=READER, setting=setting, attack=attack,
                metric=metric, per_seed=tuple(values), expected=wanted, baseline=baseline,
                parameters={"numbers": count, "key_bits": KEY_BITS, "shown": list(SHOWN),
                            "exponents": in_clear},
                seconds=time.perf_counter() - begin,
            )
        )  # fmt: skip

    begin = time.perf_counter()
    row("phe floats", "magnitude right to a decade", Setting.UNDEFENDED,
        [hit_rate(key, as_floats, s, count) for s in run.seeds],
        Expected(op=Op.AT_LEAST, bound=0.75), blind, begin)  # fmt: skip
    begin = time.perf_counter()
    row("phe floats", "different exponents on the wire", Setting.UNDEFENDED,
        [len(set(exponents(as_floats(key, values_of(s, count))))) for s in run.seeds],
        Expected(op=Op.AT_LEAST, bound=6), 1.0, begin)  # fmt: skip
    begin = time.perf_counter()
    taken = [library_ciphertexts(secret, key, values_of(s, count)) for s in run.seeds]
    row("one precision, through the library", "different exponents on the wire", Setting.DEFENDED,
        [len(set(exponents(numbers))) for numbers in taken],
        Expected(op=Op.EQUAL, bound=1), 1.0, begin)  # fmt: skip
    begin = time.perf_counter()
    row("one precision", "magnitude right to a decade", Setting.DEFENDED,
        [hit_rate(key, fixed_precision, s, count) for s in run.seeds],
        Expected(op=Op.AT_MOST, bound=blind + 0.25), blind, begin)  # fmt: skip
    begin = time.perf_counter()
    row("mixed exponents handed to the library", "accepted", Setting.DEFENDED,
        [not refuses_mixed(secret, key, values_of(s, count)) for s in run.seeds],
        Expected(op=Op.EQUAL, bound=0), 0.0, begin)  # fmt: skip

    wide = values_of(run.seeds[0], 3 * count)
    seen = exponents(as_floats(key, wide))

    def draw(figure: Figure) -> None:
        from kit import plots  # noqa: PLC0415  # matplotlib is an extra

        ax = figure.subplots()
        size = np.log10(np.abs(wide))
        ax.plot(size, seen, "o", color=plots.BAD, ms=4, label="phe floats: the exponent in clear")
        ax.plot(size, np.full(len(wide), exponents(taken[0])[0]), "s", color=plots.GOOD, ms=3,
                label="integers of one precision: one exponent")  # fmt: skip
        ax.axhline(0, color=plots.NEUTRAL, ls=":", lw=1.2, label="baseline: nothing to read")
        ax.set_xlabel("log10 of the encrypted number's magnitude (secret)")
        ax.set_ylabel("exponent on the wire")
        ax.set_title("Server without any key: what it reads beside each of n=120 ciphertexts")
        ax.legend(fontsize=8)

    note = "exponents of " + ", ".join(f"{v:g}: {e}" for v, e in zip(SHOWN, in_clear, strict=True))
    return Outcome(results=tuple(results), draw=draw, notes=(note,))


DEMO = Demo(name=Path(__file__).stem, doc=__doc__ or "", run=run, needs=("phe",), extra="phe")

if __name__ == "__main__":
    sys.exit(DEMO.main())
