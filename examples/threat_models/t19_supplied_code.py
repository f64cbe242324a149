"""Client code that the server supplies.

Adversary: a malicious server whose framework ships the client's program.
Capability: it writes the code that clients run; the protocol and its server are the library's own.
Knowledge: every frame that reaches it.

Every check of this library runs on the client. Where the server may replace the client's code, it
may replace the checks: here one method, and the raw update leaves beside the masked one. No library
can defend against its own replacement. What a client's owner can do is to run approved code only:
below, code is run if the digest of its text is on the owner's list.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from kit.metrics import blind_image, equal_fraction
from kit.result import Attacker, Demo, Expected, Op, Outcome, Result, Run, Setting
from kit.rounds import CONTEXT, as_image, images_as_inputs
from kit.transcript import read_transcript, write_transcript
from kit.view import Ring

from securefl.errors import WireError
from securefl.primitives.signing import IdentityKey
from securefl.protocols.machine import ClientMachine
from securefl.protocols.secagg import ClientPolicy, SecAggParams
from securefl.protocols.secagg.parties import make_parties
from securefl.round import Adversary, ClientId, Cohort, RoundId, ThreatModel
from securefl.simulation.network import Direction
from securefl.simulation.session import run_session
from securefl.wire import decode_frame

if TYPE_CHECKING:
    from collections.abc import Collection

    from matplotlib.figure import Figure

PAPER = "a property of frameworks in which the server distributes the clients' code"
SERVER_ROLE = Attacker(
    role="malicious server", sees="all frames", knows="nothing else",
    oracle_help="its framework runs whatever it ships",
)  # fmt: skip
N, BITS, VICTIM = 6, 24, ClientId(1)

PLAIN_CODE = """
def client(machine):
    return machine
"""
CURIOUS_CODE = """
from securefl.protocols.machine import Outbound
from securefl.round import SERVER


class Client:
    def __init__(self, machine):
        self._machine = machine

    def __getattr__(self, name):
        return getattr(self._machine, name)

    def set_input(self, vector):
        raw = vector.values.astype("<u8").tobytes()
        return [Outbound(recipient=SERVER, frame=raw), *self._machine.set_input(vector)]


def client(machine):
    return Client(machine)
"""


class NotApproved(Exception):
    """The owner has not approved this code."""


def digest_of(code: str) -> str:
    """What an owner puts on the list after reading the code."""
    return hashlib.sha256(code.encode()).hexdigest()


def installed(code: str, machine: ClientMachine, approved: Collection[str] | None) -> ClientMachine:
    """What a framework does with shipped code: it runs it around the client.

    Args:
        code: from the server.
        machine: the library's.
        approved: digests that the client's owner approved; None runs everything.
    """
    if approved is not None and digest_of(code) not in approved:
        raise NotApproved(f"code with digest {digest_of(code)[:16]}... was not approved")
    space: dict[str, Any] = {}
    exec(code, space)  # noqa: S102  # the threat of this program: code comes from the server
    made: ClientMachine = space["client"](machine)
    return made


def session(run: Run, seed: int, code: str, approved: Collection[str] | None) -> Path | None:
    """A whole session against an active server, with shipped client code. Gives the transcript."""
    inputs = images_as_inputs(N, bits=BITS, seed=seed)
    cohort = Cohort.of(inputs)
    threat = ThreatModel(adversary=Adversary.ACTIVE, corrupt=1, dropped=0)
    config = SecAggParams.complete(N, threat).config(
        round_id=RoundId(seed), cohort=cohort, m=64, b=BITS, context_digest=CONTEXT,
        server_nonce=os.urandom(32),
    )  # fmt: skip
    server, clients = make_parties(
        config, cohort.ids, context_digest=CONTEXT, policy=ClientPolicy(gamma=0),
        identities={u: IdentityKey(os.urandom(32)) for u in cohort}, beacon=os.urandom(32),
    )  # fmt: skip
    try:
        running = {u: installed(code, machine, approved) for u, machine in clients.items()}
    except NotApproved:
        return None
    result = run_session(server, running, inputs)
    return write_transcript(run.transcript(), result.transcript)


def read_raw(path: Path | None) -> Ring | None:
    """The first frame of the victim's that is no message of the protocol, as a vector."""
    if path is None:
        return None
    for e in read_transcript(path):
        if e.direction is not Direction.UP or e.sender != VICTIM:
            continue
        try:
            decode_frame(e.frame)
        except WireError:
            found: Ring = np.frombuffer(e.frame, dtype="<u8").astype(np.uint64)
            return found if len(found) == 64 else None
    return None


def run(run: Run) -> Outcome:
    """Measures."""
    approved = {digest_of(PLAIN_CODE)}
    plans = (
        ("shipped code, run as it comes", Setting.NOT_DEFENDED, CURIOUS_CODE, None, 1.0),
        ("the same, owner approves code by digest", Setting.DEFENDED, CURIOUS_CODE, approved, 0.0),
        ("approved code", Setting.DEFENDED, PLAIN_CODE, approved, 0.0),
    )
    results, pictures = [], []
    for name, setting, code, allowed, wanted in plans:
        begin, values = time.perf_counter(), []
        for seed in run.seeds:
            found = read_raw(session(run, seed, code, allowed))
            truth = images_as_inputs(N, bits=BITS, seed=seed)[VICTIM].values
            values.append(equal_fraction(found, truth))
            if seed == run.seeds[0]:
                pictures.append((name, as_image(found, BITS)))
        results.append(
            Result(
                threat=run.name, paper=PAPER, attacker=SERVER_ROLE, setting=setting, attack=name,
                metric="ring elements of one update read", per_seed=tuple(values), baseline=0.0,
                expected=Expected(op=Op.EQUAL, bound=wanted),
                parameters={"n": N, "approved": allowed is not None},
                seconds=time.perf_counter() - begin,
            )
        )  # fmt: skip

    def draw(figure: Figure) -> None:
        from kit import plots  # noqa: PLC0415  # matplotlib is an extra

        truth = images_as_inputs(1, bits=BITS, seed=run.seeds[0])[VICTIM].values
        plots.image_rows(
            figure,
            [("the client's image", as_image(truth, BITS)), *pictures,
             ("guess without transcript", blind_image())],
            title="A malicious server ships the client's code,\nsecure aggregation is on, n=6",
            captions=["", "read from one extra frame", "not run", "runs: masked vectors only",
                      "0 of 64 entries"],
        )  # fmt: skip
        figure.set_size_inches(5.4, 4.6)

    note = (
        "The list of approved digests is the owner's, not the library's: nothing here enforces it."
    )
    return Outcome(results=tuple(results), draw=draw, notes=(note,))


DEMO = Demo(name=Path(__file__).stem, doc=__doc__ or "", run=run, needs=("sklearn",))

if __name__ == "__main__":
    sys.exit(DEMO.main())
