"""CPU milliseconds of encoding one update with noise, by stage, beside the obvious NumPy way.

Run it with:  python benchmarks/encoding.py [--dimensions 32768 106496] [--repeat 30] [--json]

Ours: clip, rotate in blocks (Kronecker factors), round with a norm test in exact integers, one
share of exact Skellam noise from AES-128 in counter mode, reduce. The alternative does the same
with what NumPy offers: a butterfly loop over the next power of two, uniform coins, and the
difference of two of NumPy's Poisson draws. That is no private alternative: its generator is
predictable, its Poisson sampler works in floating point, and it makes no norm test. It is the yard
stick for speed only.

Both run in this process, in turn; the least of the repetitions counts. CPU time: set
OMP_NUM_THREADS=1, or a matrix product on two threads counts twice. A part of both is the memory
that is asked from the operating system again in every call; in a process that also holds a model
it is usually kept, and both are faster.
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np

from securefl.encoding import Contribution, NoisyCodec, NoisySpec, clip_by_norm, noise, noisy
from securefl.encoding.rotation import Rotation
from securefl.encoding.tables import noise_table
from securefl.primitives.prg import SecureRandom

SEED = bytes(range(32))
TARGET_MS = {32_768: 3.0}
CLIENTS = 100


def milliseconds(function: Callable[[], object], repeat: int) -> float:
    """The least CPU time of ``repeat`` calls."""
    best = float("inf")
    for _ in range(repeat):
        start = time.process_time()
        function()
        best = min(best, time.process_time() - start)
    return 1e3 * best


def hadamard_loop(values: np.ndarray) -> np.ndarray:
    """The textbook butterfly: log2(D) passes over the vector."""
    size, half = len(values), 1
    while half < size:
        pairs = values.reshape(-1, 2, half)
        values = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1)
        half *= 2
    return values.reshape(size) / np.sqrt(size)


def plain_numpy(update: np.ndarray, spec: NoisySpec, generator: np.random.Generator) -> np.ndarray:
    """Clip, pad to a power of two, sign, butterfly, round, Poisson minus Poisson, reduce."""
    size = 1 << (len(update) - 1).bit_length()
    padded = np.zeros(size)
    padded[: len(update)] = update * min(1.0, spec.clip_norm / np.linalg.norm(update))
    padded *= generator.choice((-1.0, 1.0), size)
    turned = hadamard_loop(padded) * (spec.resolution / spec.clip_norm)
    integers = np.floor(turned + generator.random(size)).astype(np.int64)
    half = spec.mu_share / 2
    integers += generator.poisson(half, size) - generator.poisson(half, size)
    return np.mod(integers, spec.modulus).astype(np.uint32)


def measure(dimension: int, repeat: int) -> dict[str, object]:
    spec = NoisySpec.plan(
        dimension=dimension,
        clip_norm=1.0,
        noise_multiplier=1.0,
        honest_shares=CLIENTS,
        max_clients=CLIENTS,
        units=CLIENTS,
        contribution=Contribution.CLIENT,
    )
    codec, rotation = NoisyCodec(spec), Rotation(dimension=dimension)
    source = SecureRandom().random_bytes
    generator = np.random.default_rng(0)
    update = generator.normal(size=dimension).astype(np.float32)
    start = time.process_time()
    table = noise_table(spec.mechanism, spec.share_ticks)
    built = 1e3 * (time.process_time() - start)

    bounded = clip_by_norm(update, spec.clip_norm).values * spec.resolution
    turned = rotation.apply(bounded, round_seed=SEED)
    integers = noisy._round(turned, source)
    stages = {
        "clip": lambda: clip_by_norm(update, spec.clip_norm),
        "rotate": lambda: rotation.apply(bounded, round_seed=SEED),
        "round and test": lambda: codec._round_until_short(turned, source),
        "noise": lambda: noise.draw(table, spec.padded, source),
        "reduce": lambda: noisy._reduced(integers, spec.modulus),
    }
    ours = milliseconds(lambda: codec.encode(update, round_seed=SEED, random_bytes=source), repeat)
    theirs = milliseconds(lambda: plain_numpy(update, spec, generator), repeat)
    return {
        "dimension": dimension,
        "padded": spec.padded,
        "bits": spec.bits,
        "share_std": spec.share_std,
        "stages_ms": {name: milliseconds(stage, repeat) for name, stage in stages.items()},
        "encode_ms": ours,
        "with_os_urandom_ms": milliseconds(lambda: codec.encode(update, round_seed=SEED), repeat),
        "plain_numpy_ms": theirs,
        "plain_numpy_over_ours": theirs / ours,
        "table_built_once_ms": built,
        "target_ms": TARGET_MS.get(dimension),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[32_768, 106_496])
    parser.add_argument("--repeat", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [measure(dimension, arguments.repeat) for dimension in arguments.dimensions]
    if arguments.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(
            f"{row['dimension']:,} coordinates (padded {row['padded']:,}), {row['bits']} bits, "
            f"share std {row['share_std']:.0f}: encode {row['encode_ms']:.2f} ms CPU"
            + (f" (target {row['target_ms']:.1f})" if row["target_ms"] else "")
        )
        for name, value in row["stages_ms"].items():
            print(f"    {name:<16} {value:7.3f}")
        print(f"    {'from os.urandom':<16} {row['with_os_urandom_ms']:7.3f}  (whole encode)")
        print(f"    {'plain NumPy':<16} {row['plain_numpy_ms']:7.3f}  (whole encode)")
        print(f"    {'plain / ours':<16} {row['plain_numpy_over_ours']:7.2f}")
        print(f"    {'noise table':<16} {row['table_built_once_ms']:7.3f}  (once per run)")


if __name__ == "__main__":
    main()
