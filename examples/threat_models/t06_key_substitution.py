"""Key substitution: the server plays all of a client's peers.

Adversary: a malicious server that sits between all clients.
Capability: it replaces public keys in the roster by its own, by one colluder's, by weak ones.
Knowledge: every frame and its own keys; one colluder's keys where stated; no identity key of
anybody else.

Who knows the keys under which the target deals its shares has the shares, and with them its input.
Against such a server keys must be signed by identities that the server cannot change: the library
signs (round, both keys, cohort). A semi-honest session does not, and is not defended.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from attackers import rosters
from attackers.measure import ALL, NONE, both_sides, measured
from attackers.stage import BITS, TARGET
from attackers.weakened import GUARDS, AnyKeys
from kit.metrics import blind_image
from kit.result import Attacker, Demo, Outcome, Run, Setting
from kit.rounds import as_image, images_as_inputs
from kit.view import Ring

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SERVER = Attacker(role="malicious server", sees="all frames", knows="keys that it made itself")


def run(run: Run) -> Outcome:
    """Measures."""
    pictures: dict[str, Ring] = {}
    results = [
        measured(
            run, partial(rosters.substituted_keys, active=False), name="own keys, semi-honest mode",
            setting=Setting.NOT_DEFENDED, expected=ALL, attacker=SERVER,
            parameters={"n": 6, "t": 4},
        ),
        measured(
            run, rosters.self_signed_keys, name="own keys, signed by the server itself",
            setting=Setting.UNDEFENDED, expected=ALL, attacker=SERVER, client=AnyKeys,
            parameters={"n": 6, "t": 4, "check": "_check_key_signatures"},
        ),
        measured(
            run, rosters.self_signed_keys, name="own keys, signed by the server itself",
            setting=Setting.DEFENDED, expected=NONE, attacker=SERVER,
            parameters={"n": 6, "t": 4, "check": "_check_key_signatures"},
        ),
    ]  # fmt: skip
    for guard in GUARDS:
        if guard.program == run.name:
            shown = pictures if guard.without is AnyKeys else None
            results += both_sides(run, guard, SERVER, pictures=shown)

    def draw(figure: Figure) -> None:
        from kit import plots  # noqa: PLC0415  # matplotlib is an extra

        truth = images_as_inputs(1, bits=BITS, seed=run.seeds[0])[TARGET].values
        blank = as_image(None, BITS)
        shown = [as_image(v, BITS) for v in pictures.values()]
        rows = [
            ("the client's image", as_image(truth, BITS)),
            ("keys believed", shown[0] if shown else blank),
            ("keys signed", shown[1] if len(shown) > 1 else blank),
            ("guess without transcript", blind_image()),
        ]
        plots.image_rows(
            figure, rows, title="A malicious server swaps all public keys, n=6, t=4",
            captions=["", "all 64 entries recovered", "client aborts: no vector is ever sent",
                      "0 of 64 entries"],
        )  # fmt: skip
        figure.set_size_inches(5.2, 4.4)

    return Outcome(
        results=tuple(results),
        draw=draw,
        notes=("Semi-honest mode trusts the server with the roster: use active mode.",),
    )


DEMO = Demo(name=Path(__file__).stem, doc=__doc__ or "", run=run, needs=("sklearn",))

if __name__ == "__main__":
    sys.exit(DEMO.main())
