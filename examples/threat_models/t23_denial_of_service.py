"""Denial of service: one client wastes everybody's round.

Adversary: one malicious client.
Capability: it takes part as usual and answers the last request with wrong shares, or not at all.
Knowledge: its own state.

The library promises a right sum or none, and no round in particular. With no share to spare one
liar costs the round; the error names the pairs of dealer and holder that do not fit. With spare
shares the sum is opened and the liar is named. What must never happen is a wrong sum: secrets are
checked against what their dealers published before they are used.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
from attackers.measure import ALL, NONE, measured
from attackers.stage import TARGET, Case, Plan, Stage
from kit.result import Attacker, Demo, Outcome, Run, Setting
from kit.rounds import plain_sum
from numpy.typing import NDArray

from securefl.errors import InvalidShare
from securefl.primitives.sharing import PRIME, lagrange_at_zero
from securefl.protocols.machine import ShareMismatch
from securefl.protocols.secagg import SecAggClient, SecAggServer
from securefl.round import ClientId

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from securefl.protocols.machine import Event, Outbound

N = 8
LIAR = ClientId(N)
CLIENT = Attacker(
    role="malicious client", sees="its own frames", knows="its own state", colluders=1
)


class Liar(SecAggClient):
    """Changes its share of the target's seed, so that the seed comes out as another one.

    It adds 1 / w to the first word, w its own Lagrange weight among all holders: the first word of
    the seed grows by one, which no format check notices.
    """

    def _open_shares(self, in_U3: NDArray[np.bool_]) -> list[Outbound | Event]:
        secrets = self._live()
        assert secrets.b_shares is not None and secrets.s_shares is not None
        weights = lagrange_at_zero(tuple(range(2, N + 1)))
        step = pow(int(weights[-1]), -1, PRIME)
        place = self._P.index(TARGET)
        secrets.b_shares[place, 0] = (int(secrets.b_shares[place, 0]) + step) % PRIME
        return super()._open_shares(in_U3)


def lie(case: Case, *, spare: int) -> tuple[bool, bool, bool]:
    """One round with one liar and so many shares more than t.

    Returns:
        Whether a sum came out, whether it was wrong, whether the liar and nobody else was named.
    """
    plan = Plan(n=N, t=N - 1 - spare, D=0, active=False)
    stage = Stage.of(plan, case=case)
    liar = Liar(LIAR, stage.config, context_digest=stage.config.context_digest, policy=plan.policy)
    stage.clients[LIAR] = liar
    stage.play("unmasking")
    stage.answer()
    stage.save(case.path)
    try:
        stage.close()
    except InvalidShare as error:
        stage.refused.append((TARGET, error))
        holders = {holder for _, holder in error.pairs}
        return False, False, holders == {LIAR}
    result = stage.server.result
    assert result is not None
    wrong = result.vector.values.tolist() != plain_sum(stage.inputs, stage.ids).tolist()
    named = {h for e in stage.events if isinstance(e, ShareMismatch) for h in e.holders}
    return True, wrong, named == {LIAR}


def lost(case: Case, *, spare: int) -> float:
    """1 if the round gave no sum."""
    return float(not lie(case, spare=spare)[0])


def wrong_sum(case: Case, *, checked: bool) -> float:
    """1 if a wrong sum came out; ``checked``: secrets are compared with what was published."""
    if checked:
        return float(lie(case, spare=0)[1])
    believe = mock.patch.multiple(
        SecAggServer, _seed_matches=lambda *_: True, _mask_key_matches=lambda *_: True
    )
    with believe:
        return float(lie(case, spare=0)[1])


def unnamed(case: Case) -> float:
    """1 if the liar was not found out, or somebody else was blamed."""
    return float(not lie(case, spare=2)[2])


def run(run: Run) -> Outcome:
    """Measures."""
    results = [
        measured(
            run, partial(lost, spare=0), name="one liar, no share to spare",
            setting=Setting.NOT_DEFENDED, expected=ALL, attacker=CLIENT, metric="rounds lost",
            parameters={"n": N, "t": N - 1},
        ),
        measured(
            run, partial(lost, spare=2), name="one liar, two shares to spare",
            setting=Setting.DEFENDED, expected=NONE, attacker=CLIENT, metric="rounds lost",
            parameters={"n": N, "t": N - 3},
        ),
        measured(
            run, unnamed, name="one liar, two shares to spare", setting=Setting.DEFENDED,
            expected=NONE, attacker=CLIENT, metric="liar not named",
            parameters={"n": N, "t": N - 3},
        ),
        measured(
            run, partial(wrong_sum, checked=False), name="secrets not compared",
            setting=Setting.UNDEFENDED, expected=ALL, attacker=CLIENT, metric="wrong sums",
            parameters={"n": N, "t": N - 1},
        ),
        measured(
            run, partial(wrong_sum, checked=True), name="secrets compared",
            setting=Setting.DEFENDED, expected=NONE, attacker=CLIENT, metric="wrong sums",
            parameters={"n": N, "t": N - 1},
        ),
    ]  # fmt: skip

    def draw(figure: Figure) -> None:
        from kit import plots  # noqa: PLC0415  # matplotlib is an extra

        rows = [
            ("no check: wrong sum", results[3].median, plots.BAD),
            ("library: wrong sum", results[4].median, plots.GOOD),
            ("no spare share: round lost", results[0].median, plots.BAD),
            ("two spare shares: round lost", results[1].median, plots.GOOD),
        ]
        plots.bars(figure.subplots(), rows, xlabel="fraction of rounds", most=1.0,
                   title=f"One malicious client of n={N} gives back wrong shares")  # fmt: skip

    return Outcome(
        results=tuple(results),
        draw=draw,
        notes=("Plan for spare shares, and retry without whoever was named.",),
    )


DEMO = Demo(name=Path(__file__).stem, doc=__doc__ or "", run=run, needs=("sklearn",))

if __name__ == "__main__":
    sys.exit(DEMO.main())
