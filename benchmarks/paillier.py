"""Paillier: python-paillier, the textbook and ours side by side, in one process, CPU seconds.

    python benchmarks/paillier.py [--bits 3072] [--values 100000] [--repeats 3] [--peers] [--json]

The reference task: a client encrypts 100,000 values of 16 bits for sums of up to 100 clients. Every
row is CPU time of this process (best of the repeats), every ratio is against a baseline timed in
the same run, and every goal is printed as PASS or MISS. python-paillier encrypts 30 values drawn
from N(0, 0.01^2), scaled up, and adds two such vectors; where it is not installed one r^n per value
stands for its encryption, and the output says so. Sizes are those of the frames that are sent, with
headers, proof and signature. Rows of two processes or threads are wall-clock and need two idle
cores. All results are decrypted and checked.

Homomorphic encryption over lattices (BFV) encrypts 20 to 40 times faster than anything here; packed
Paillier wins bytes, sums of any width and threshold keys. --peers times HEU, pypaillier and TenSEAL
where they are installed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from securefl.primitives import bigint, rlwe
from securefl.primitives.paillier import Encryptor, SecretKey, SlotLayout, generate_keypair
from securefl.primitives.paillier.block import Block, BlockMode
from securefl.primitives.paillier.encryptor import Sealed
from securefl.primitives.paillier.knowledge import prove_knowledge, verify_knowledge
from securefl.primitives.paillier.table import SplitTable
from securefl.primitives.paillier.threshold import deal
from securefl.protocols.paillier.checking import multiply
from securefl.protocols.paillier.messages import MessageType, Submission
from securefl.round import ClientId, Protocol, RoundId
from securefl.wire import SIGNATURE_BYTES, Frame, encode_frame, pack_words

CLIENTS = 100
BOUND = 2**15 - 1


def cpu(task: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Fastest CPU seconds of one call, and the last result."""
    best, result = float("inf"), None
    for _ in range(repeats):
        start = time.process_time()
        result = task()
        best = min(best, time.process_time() - start)
    return best, result


def clock(task: Callable[[], Any], repeats: int = 3) -> float:
    """Shortest wall-clock seconds of one call."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        task()
        best = min(best, time.perf_counter() - start)
    return best


class Report:
    """Rows of figures and of goals."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.figures: dict[str, float] = {}
        self.goals: list[dict[str, Any]] = []

    def time(self, name: str, seconds: float, note: str = "") -> float:
        """Notes and prints a figure in seconds."""
        self.seconds[name] = seconds
        print(f"  {name:58s} {seconds:12.5f} s  {note}", file=sys.stderr)
        return seconds

    def figure(self, name: str, value: float, note: str = "") -> None:
        """Notes and prints a figure without a unit."""
        self.figures[name] = value
        print(f"  {name:58s} {value:12.5f}    {note}", file=sys.stderr)

    def goal(self, name: str, value: float, bound: float, *, least: bool) -> None:
        """Notes a figure that has a goal: at least, or at most, the bound."""
        passed = value >= bound if least else value <= bound
        self.goals.append(
            {"name": name, "value": value, "goal": bound, "least": least, "pass": passed}
        )


def phe_per_value(n: int, classic: float) -> tuple[float, str]:
    """Seconds per value of python-paillier, or of the r^n it is made of."""
    try:
        phe = importlib.import_module("phe")
    except ImportError:
        return classic, "phe is not installed: one r^n per value stands for it"
    key = phe.PaillierPublicKey(n)
    values = np.random.default_rng(1).normal(0, 0.01, 30).tolist()
    seconds, _ = cpu(lambda: [key.encrypt(x) for x in values], 1)
    return seconds / len(values), f"phe {importlib.metadata.version('phe')}, 30 values"


def phe_addition(n: int, count: int) -> tuple[float, float] | None:
    """Seconds python-paillier needs to add ``count`` encrypted values to as many others.

    Twice: for two vectors from N(0, 0.01^2), as two clients would send them, and for its best case.
    Numbers of unequal exponents are brought to one exponent first, by a power of the ciphertext;
    in the best case all exponents are equal, which a fixed ``precision`` for everybody would give.
    """
    try:
        phe = importlib.import_module("phe")
    except ImportError:
        return None
    key = phe.PaillierPublicKey(n)
    rng = np.random.default_rng(1)
    a, b = ([key.encrypt(x) for x in rng.normal(0, 0.01, 30).tolist()] for _ in range(2))
    # Decreasing an exponent blinds nothing anew, so the same numbers can be added again.
    drawn, _ = cpu(lambda: [x + y for x, y in zip(a, b, strict=True)], 3)
    equal, _ = cpu(lambda: [x + x for x in (*a, *b)], 3)
    return drawn / len(a) * count, equal / (2 * len(a)) * count


def sent(block: Block, encryptor: Encryptor, plain: list[int], sealed: Sealed) -> bytes:
    """The frame of a submission, as a client sends it (the signature's bytes are zeros)."""
    proof = prove_knowledge(encryptor, plain, sealed, b"")
    hybrid = block.mode is BlockMode.HYBRID
    body = Submission(
        block=block.to_bytes(encryptor.degree),
        proof=proof,
        body_digest=bytes(32) if hybrid else b"",
    )
    return framed(MessageType.SUBMISSION, body.encode())


def framed(kind: MessageType, body: bytes) -> bytes:
    frame = Frame(
        protocol=Protocol.PAILLIER,
        type=kind,
        sender=ClientId(1),
        round_id=RoundId(1),
        session=bytes(32),
        body=body,
        signature=bytes(SIGNATURE_BYTES),
    )
    return encode_frame(frame)


def peer(name: str) -> Any:
    """Another library, installed; this file is called as one of them, so its folder is left out."""
    here, path = Path(__file__).resolve().parent, sys.path[:]
    sys.path[:] = [x for x in path if Path(x).resolve() != here]
    try:
        return importlib.import_module(name)
    finally:
        sys.path[:] = path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, default=3072)
    parser.add_argument("--values", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peers", action="store_true", help="also other libraries, if installed")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    report = Report()
    run(report, options)
    context = {
        "bits": options.bits,
        "values": options.values,
        "backend": bigint.backend_name(),
        "versions": versions("gmpy2", "phe", "sf-heu", "pypaillier", "tenseal"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "load": os.getloadavg()[0],
    }
    if options.json:
        figures = {"seconds": report.seconds, "figures": report.figures, "goals": report.goals}
        print(json.dumps({**context, **figures}, indent=2))
        return
    print(f"\n{context}")
    for row in report.goals:
        sign = ">=" if row["least"] else "<="
        word = "PASS" if row["pass"] else "MISS"
        print(f"{word}  {row['name']:62s} {row['value']:10.3f}  goal {sign} {row['goal']}")


def versions(*names: str) -> dict[str, str]:
    """Versions of those of these distributions that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def run(report: Report, options: argparse.Namespace) -> None:
    repeats, values = options.repeats, options.values
    key = generate_keypair(options.bits)
    public, n = key.public, bigint.integer(key.public.n)
    N = n * n
    rng = np.random.default_rng(0)
    vector = rng.integers(-BOUND, BOUND, values, endpoint=True)
    layout = SlotLayout(bound=BOUND, max_clients=CLIENTS)
    r = bigint.random_below(n, os.urandom)

    rn, _ = cpu(lambda: bigint.powmod(r, n, N), max(3, repeats))
    report.time("one classic power r^n", rn)
    per_value, note = phe_per_value(public.n, rn)
    report.time("phe, one value per ciphertext, whole task", per_value * values, note)

    times: dict[tuple[int, bool], float] = {}
    for s in (1, 2, 3):
        encryptor = Encryptor(public, s)
        slots = layout.slots(encryptor.degree)
        packed = layout.pack(vector, slots)
        for split in (False, True):
            chosen = Encryptor(public, s, split=split, window=8)
            start = time.process_time()
            table = chosen.table(len(packed))
            built = time.process_time() - start
            kind = "split" if split else "plain"
            report.time(f"s={s}, {kind} table, build", built)
            if s == 1 and split:
                report.goal("split table build, in r^n", built / rn, 50, least=False)
            seconds, sealed = cpu(lambda e=chosen, p=packed: e.encrypt(p), repeats)
            times[s, split] = seconds
            rate = f"{values / seconds:,.0f} values/s"
            report.time(f"s={s}, {kind} table, encrypt {len(packed)} ciphertexts", seconds, rate)
            if s == 1 and split:
                assert isinstance(table, SplitTable)
                opened = [key.decrypt(c) for c in sealed.ciphertexts[:5]]
                assert opened == packed[:5]
        block = Block(
            key_id=public.key_id,
            mode=BlockMode.PACKED,
            s=s,
            width=layout.width,
            bound=layout.bound,
            dimension=values,
            terms=1,
            ciphertexts=sealed.ciphertexts,
        )
        size = len(sent(block, chosen, packed, sealed))
        report.figure(f"s={s}, bytes of a submission", size, "with all framing")
        if s < 3:
            name, goal = f"expansion of a submission, s={s}", (1.46, 1.10)[s - 1]
            report.goal(name, size / (4 * values), goal, least=False)

    one = Encryptor(public, 1)
    slots = layout.slots(one.degree)
    packed = layout.pack(vector, slots)
    sealed = one.encrypt(packed)
    split = times[1, True]
    classic = Encryptor(public, 1, randomness="classic")
    few, _ = cpu(lambda: classic.encrypt(packed[:8]), 1)
    packed_classic = report.time("packed, classic randomness, whole task", few / 8 * len(packed))
    report.goal("encryption against phe, per value", per_value * values / split, 2500, least=True)
    report.goal("encryption against packed classic", packed_classic / split, 20, least=True)
    report.goal("s=2 against s=1, split tables", split / times[2, True], 1.35, least=True)
    report.goal("split against plain table, s=1", times[1, False] / split, 1.25, least=True)

    digits = one.table(len(packed)).digits.count
    big = [bigint.integer(c) for c in sealed.ciphertexts]
    half = [c % n for c in big]

    def products() -> None:
        total = bigint.integer(1)
        for _ in range(20):
            for x in half[:digits]:
                total = total * x % N

    raw, _ = cpu(products, repeats)
    bound = report.time("the bound: one full by half product per digit", raw / 20 * len(packed))
    report.goal("share of the raw bound", bound / split, 0.60, least=True)

    other = [bigint.integer(c) for c in one.encrypt(packed).ciphertexts]
    added, total = cpu(lambda: [a * b % N for a, b in zip(big, other, strict=True)], repeats)
    report.time("server, add one client", added)
    ours, _ = cpu(lambda: multiply(big, other, N), repeats)
    report.time("server, add one client, as its machine does", ours)
    report.goal("server addition, in raw products", ours / added, 1.15, least=False)
    phe_added = phe_addition(public.n, values)
    if phe_added is not None:
        drawn, equal = phe_added
        report.time("phe, add one client", drawn, "30 pairs from N(0, 0.01^2)")
        report.time("phe, add one client, all exponents equal", equal, f"{equal / ours:.0f}x ours")
        report.goal("server addition against phe", drawn / ours, 200, least=True)

    count = 8
    opened_time, opened = cpu(lambda: [key.decrypt(int(c)) for c in total[:count]], repeats)
    p, q = key.primes()

    def raw_powers() -> None:
        for c in total[:count]:
            for prime in (p, q):
                bigint.powmod_secret(c % (prime * prime), prime - 1, prime * prime)

    raw_open, _ = cpu(raw_powers, repeats)
    report.time("key holder, open the task", opened_time / count * len(packed))
    report.goal("opening, in raw powers", opened_time / raw_open, 1.1, least=False)
    sums = layout.unpack(opened, count=2, dimension=slots * count, slots=slots)
    assert sums.tolist() == (2 * vector[: slots * count]).tolist()

    wall = {}
    for threads in (1, 2):
        wall[threads] = clock(lambda t=threads: key.decrypt_all(total[:64], threads=t))
        report.time(f"open 64 ciphertexts, {threads} threads (wall)", wall[threads])
    report.goal("opening, two threads against one, wall-clock", wall[1] / wall[2], 1.8, least=True)
    knowledge(report, one, packed, rn, repeats)
    hybrid(report, key, vector, rn, repeats)
    threshold(report, options, rn)
    processes(report, one, packed, split)
    if options.peers:
        heu(report, options.bits, packed, split)
        pypaillier(report, options.bits, packed, split)
        tenseal(report, vector)


def knowledge(report: Report, one: Encryptor, packed: list[int], rn: float, repeats: int) -> None:
    for part, goal in ((packed, 6.0), (packed[:6], 0.5)):
        sealed = one.encrypt(part)
        seconds, proof = cpu(lambda s=sealed, p=part: prove_knowledge(one, p, s, b""), repeats)
        report.time(f"knowledge proof, {len(part)} ciphertexts, prove", seconds)
        seconds, valid = cpu(
            lambda s=sealed, x=proof: verify_knowledge(one, s.ciphertexts, x, b""), repeats
        )
        assert valid
        report.time(f"knowledge proof, {len(part)} ciphertexts, verify", seconds)
        report.goal(
            f"knowledge proof verify, k={len(part)}, in r^n", seconds / rn, goal, least=False
        )


def hybrid(report: Report, key: SecretKey, vector: Any, rn: float, repeats: int) -> None:
    shape = rlwe.RlweShape(dimension=len(vector), bound=BOUND, max_clients=CLIENTS)
    keys = SlotLayout(bound=1, max_clients=rlwe.MOST_CLIENTS)
    encryptor = Encryptor(key.public, 1)
    encryptor.table(1000)
    slots = keys.slots(encryptor.degree)

    def client() -> tuple[Any, list[int], Sealed]:
        a = rlwe.public_polynomials(bytes(32), shape.polynomials)
        s = rlwe.secret(os.urandom)
        plain = keys.pack(s, slots)
        sealed = encryptor.encrypt(plain)
        prove_knowledge(encryptor, plain, sealed, b"")
        return rlwe.mask(vector, shape, a, s, os.urandom), plain, sealed

    seconds, (masked, plain, sealed) = cpu(client, repeats)
    report.time("hybrid (experimental), client with public polynomials and proof", seconds)
    report.goal("hybrid client, in r^n", seconds / rn, 1.4, least=False)

    def opening() -> Any:
        a = rlwe.public_polynomials(bytes(32), shape.polynomials)
        numbers = key.decrypt_all(sealed.ciphertexts)
        secret = keys.unpack(numbers, count=1, dimension=rlwe.DEGREE, slots=slots)
        return rlwe.unmask(masked, shape, a, secret, count=1)

    seconds, opened = cpu(opening, repeats)
    assert opened.tolist() == vector.tolist()
    report.time("hybrid (experimental), open and unmask", seconds)
    report.goal("hybrid, open and unmask, in r^n", seconds / rn, 2.8, least=False)
    block = Block(
        key_id=key.public.key_id,
        mode=BlockMode.HYBRID,
        s=1,
        width=keys.width,
        bound=keys.bound,
        dimension=rlwe.DEGREE,
        terms=1,
        ciphertexts=sealed.ciphertexts,
    )
    body = framed(MessageType.MASKED_BODY, pack_words(masked, rlwe.MODULUS_BITS))
    size = len(body) + len(sent(block, encryptor, plain, sealed))
    report.figure("hybrid (experimental), bytes of a submission", size, "both frames")
    report.goal("expansion of a hybrid submission", size / (4 * len(vector)), 1.08, least=False)


def threshold(report: Report, options: argparse.Namespace, rn: float) -> None:
    key, shares = deal(threshold=7, parties=10, bits=options.bits)
    sealed = Encryptor(key.public).encrypt(list(range(6)))
    N, share = key.degree.modulus, shares[0]
    seconds, partials = cpu(lambda: share.partial(sealed.ciphertexts), 2)
    exponent = 2 * key.delta * share._value
    raw, _ = cpu(lambda: [bigint.powmod_secret(c, exponent, N) for c in sealed.ciphertexts], 2)
    report.time("threshold 7 of 10, partial, per ciphertext", seconds / 6)
    report.goal("partial decryption, in raw powers", seconds / raw, 1.1, least=False)
    seconds, (partials, proof) = cpu(lambda: share.partial_with_proof(sealed.ciphertexts, b""), 2)
    report.goal("hybrid share holder, partials and proof, in r^n", seconds / rn, 26, least=False)
    seconds, valid = cpu(lambda: key.verify(1, sealed.ciphertexts, partials, proof, b""), 2)
    assert valid
    report.time("threshold, verify one party's six partials", seconds)
    everyone = {x.index: x.partial(sealed.ciphertexts) for x in shares[:7]}
    seconds, opened = cpu(lambda: key.combine(everyone), 2)
    assert opened == list(range(6))
    report.time("threshold, combine, per ciphertext", seconds / 6)


def processes(report: Report, one: Encryptor, packed: list[int], split: float) -> None:
    wall = {}
    for workers in (1, 2):
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as executor:
            one.encrypt(packed * 2, executor=executor)  # every worker builds its table
            best = float("inf")
            for _ in range(3):
                start = time.perf_counter()
                one.encrypt(packed * 2, executor=executor)
                best = min(best, time.perf_counter() - start)
        wall[workers] = report.time(f"s=1, split, two clients, {workers} processes (wall)", best)
    report.goal("two processes against one, wall-clock", wall[1] / wall[2], 1.7, least=True)


def heu(report: Report, bits: int, packed: list[int], split: float) -> None:
    """SecretFlow's C++ library, our packed integers under a key of its own."""
    try:
        module = peer("heu.phe")
    except ImportError:
        print("  HEU (sf-heu) is not installed", file=sys.stderr)
        return
    kit = module.setup(module.SchemaType.ZPaillier, bits)
    encoder, encryptor = kit.bigint_encoder(), kit.encryptor()
    encoded = [encoder.encode(m) for m in packed]
    seconds, _ = cpu(lambda: [encryptor.encrypt(x) for x in encoded], 2)
    report.time("HEU ZPaillier, our packing, whole task", seconds)
    report.goal("encryption against HEU, same integers", seconds / split, 1.2, least=True)


def pypaillier(report: Report, bits: int, packed: list[int], split: float) -> None:
    """A Rust library, our packed integers under a key of its own.

    It keeps the highest 21 bits free for sums, so the integers are cut to fit: as many of them, and
    an encryption costs the same for any plaintext.
    """
    try:
        module = peer("paillier")
    except ImportError:
        print("  pypaillier is not installed", file=sys.stderr)
        return
    public, _ = module.generate_keypair(bits)
    room = (1 << (bits - 24)) - 1
    seconds, _ = cpu(lambda: module.encrypt_integers(public, [m & room for m in packed]), 2)
    report.time("pypaillier, our packing, whole task", seconds)
    report.goal("encryption against pypaillier, same integers", seconds / split, 1.5, least=True)


def tenseal(report: Report, vector: Any) -> None:
    try:
        ts = peer("tenseal")
    except ImportError:
        print("  TenSEAL is not installed", file=sys.stderr)
        return
    context = ts.context(ts.SCHEME_TYPE.BFV, poly_modulus_degree=4096, plain_modulus=8519681)
    parts = [vector[i : i + 4096].tolist() for i in range(0, len(vector), 4096)]
    seconds, sealed = cpu(lambda: [ts.bfv_vector(context, part) for part in parts], 3)
    report.time("TenSEAL BFV N=4096, whole task", seconds)
    size = sum(len(x.serialize()) for x in sealed)
    report.figure("TenSEAL BFV N=4096, expansion", size / (4 * len(vector)))


if __name__ == "__main__":
    main()
