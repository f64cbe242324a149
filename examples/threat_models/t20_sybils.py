"""Sybils: all but one of the cohort belong to the server.

Adversary: a malicious server that invites invented clients, or gets identities for them.
Capability: it runs n - 1 clients itself, exactly as the protocol wants.
Knowledge: every input but one.

No protocol hides one input among n - 1 that the adversary chose: it subtracts them. What helps is
knowing who the others are. In active mode a client takes part only if everybody in the cohort has
an identity in a directory that did not come from the server. Who fills that directory is then the
assumption: an issuer that signs invented clients undoes it.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from attackers import rosters
from attackers.measure import ALL, NONE, measured
from attackers.stage import BITS, TARGET, Case, Plan, Stage
from attackers.weakened import AnyKeys
from kit.metrics import blind_image, equal_fraction
from kit.result import Attacker, Demo, Outcome, Run, Setting
from kit.rounds import CONTEXT, as_image, images_as_inputs, plain_sum
from kit.view import Ring

from securefl.errors import ConfigurationError
from securefl.primitives.signing import IdentityDirectory, IdentityKey
from securefl.protocols.secagg import ClientPolicy, SecAggClient
from securefl.round import ClientId

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N = 8
DOUCEUR = "Douceur 2002, The Sybil Attack"
SERVER = Attacker(
    role="malicious server that runs n - 1 clients", sees="all frames",
    knows="the inputs of its own clients", colluders=N - 1,
)  # fmt: skip


def subtract(case: Case, *, active: bool) -> float:
    """A whole honest session with n - 1 fake clients, and the sum minus their inputs."""
    fakes = [ClientId(v) for v in range(2, N + 1)]
    stage = Stage.of(Plan(n=N, A=1, active=active), case=case, colluders=fakes)
    stage.play("unmasking")
    stage.answer()
    stage.save(case.path)
    # No colluder's key is needed: the sum is open to the server as to any other.
    opened = stage.view(case.path, colluders=()).sum_of(stage.ids)
    if opened is None:
        return 0.0
    mine = plain_sum(stage.inputs, fakes)
    left: Ring = (opened - mine) & np.uint64((1 << BITS) - 1)
    case.found.append(left)
    return equal_fraction(left, plain_sum(stage.inputs, [TARGET]))


def unlisted(case: Case) -> float:
    """The victim's directory lists real people; the server invites names that are not in it."""
    config = Plan(n=N).config(m=64)
    identity = IdentityKey(os.urandom(32))
    real = {ClientId(100 + i): IdentityKey(os.urandom(32)).public for i in range(N)}
    try:
        SecAggClient(
            TARGET, config, context_digest=CONTEXT, policy=ClientPolicy(gamma=0),
            identity=identity, directory=IdentityDirectory({TARGET: identity.public, **real}),
        )  # fmt: skip
    except ConfigurationError as error:
        case.refused.append((TARGET, error))
        return 0.0
    return 1.0  # it takes part in a round of fakes: the sum minus their inputs is its input


def one_identity(case: Case) -> float:
    """One real client under n - 1 names: the directory is asked to list its key n - 1 times."""
    one, target = IdentityKey(os.urandom(32)), IdentityKey(os.urandom(32))
    listed = {ClientId(u): one.public for u in range(2, N + 1)} | {TARGET: target.public}
    try:
        IdentityDirectory(listed)
    except ConfigurationError as error:
        case.refused.append((TARGET, error))
        return 0.0
    return 1.0


def run(run: Run) -> Outcome:
    """Measures."""
    pictures: dict[str, Ring] = {}
    numbers = {"n": N, "fakes": N - 1}
    results = [
        measured(
            run, partial(subtract, active=False), name="fakes, no identities", paper=DOUCEUR,
            setting=Setting.NOT_DEFENDED, expected=ALL, attacker=SERVER, parameters=numbers,
            pictures=pictures,
        ),
        measured(
            run, unlisted, name="fakes that no directory lists", paper=DOUCEUR,
            setting=Setting.DEFENDED, expected=NONE, attacker=SERVER, parameters=numbers,
            metric="victim takes part",
        ),
        measured(
            run, rosters.self_signed_keys, name="fakes under the names of real clients",
            paper=DOUCEUR, setting=Setting.UNDEFENDED, expected=ALL, attacker=SERVER,
            client=AnyKeys, parameters={"check": "_check_key_signatures"},
        ),
        measured(
            run, rosters.self_signed_keys, name="fakes under the names of real clients",
            paper=DOUCEUR, setting=Setting.DEFENDED, expected=NONE, attacker=SERVER,
            parameters={"check": "_check_key_signatures"},
        ),
        measured(
            run, one_identity, name="one identity under many names", paper=DOUCEUR,
            setting=Setting.DEFENDED, expected=NONE, attacker=SERVER, parameters=numbers,
            metric="directory accepted",
        ),
        measured(
            run, partial(subtract, active=True), name="fakes with identities: the issuer helps",
            paper=DOUCEUR, setting=Setting.NOT_DEFENDED, expected=ALL, attacker=SERVER,
            parameters=numbers, pictures=pictures,
        ),
    ]  # fmt: skip

    def draw(figure: Figure) -> None:
        from kit import plots  # noqa: PLC0415  # matplotlib is an extra

        truth = images_as_inputs(1, bits=BITS, seed=run.seeds[0])[TARGET].values
        without, signed = pictures.values()
        rows = [
            ("the victim's image", as_image(truth, BITS)),
            ("fakes, no identities", as_image(without, BITS)),
            ("fakes, real names", as_image(None, BITS)),
            ("fakes with identities", as_image(signed, BITS)),
            ("guess without transcript", blind_image()),
        ]
        captions = ["", "recovered", "victim refuses: nothing", "recovered: issuer colludes",
                    "0 of 64 entries"]  # fmt: skip
        title = f"A malicious server plays {N - 1} of n={N} clients"
        plots.image_rows(figure, rows, title=title, captions=captions)
        figure.set_size_inches(5.2, 5.2)

    return Outcome(
        results=tuple(results),
        draw=draw,
        notes=(
            "Use active mode with keys that were provisioned without the server; the library "
            "cannot judge whether the issuer of those keys is honest.",
        ),
    )


DEMO = Demo(name=Path(__file__).stem, doc=__doc__ or "", run=run, needs=("sklearn",))

if __name__ == "__main__":
    sys.exit(DEMO.main())
