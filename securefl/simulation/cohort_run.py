"""A run in which the server draws a cohort for each round, and each client pays for itself.

The members bring shares of the noise, the server knows who they are, and so a client's guarantee is
that of its own participations, none of them amplified: one ledger per client, which refuses what
does not fit. Whoever sees nothing but the models does not know the cohorts; against that onlooker a
cohort of fixed size drawn without replacement amplifies (Wang, Balle, Kasiviswanathan 2019,
*Subsampled Renyi differential privacy and analytical moments accountant*, theorem 27), and both
figures are recorded.

The draw comes from a seed: it is the server's, public, and no guarantee here counts on it. (The
figure for the models does: a server that publishes its seed has none.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import accounting
from securefl.config import RunConfig
from securefl.errors import CheckpointError, ConfigurationError
from securefl.pipeline import Participant
from securefl.population import (
    ParticipationBudget,
    PopulationBudget,
    Realised,
    compose_counted,
)
from securefl.round import ClientId
from securefl.simulation.insecure import InsecureRandomness
from securefl.simulation.plans import ADJACENCY, SharedPlan
from securefl.simulation.shared import SharedRun, views
from securefl.training.dpsgd import open_ledger

__all__ = ["CohortRun"]

_NOTHING = Realised(opened=Counter(), charged=0)


class CohortRun(SharedRun):
    """A shared run with cohorts; see :class:`~securefl.simulation.shared.SharedRun`.

    Args:
        config: of the sweep.
        plan: what the clients agreed to; it has a cohort.
        clients: the population.
        seed: of the server's draws.
        insecure: repeatable coins, for tests; marks the run.
    """

    def __init__(
        self,
        config: RunConfig,
        plan: SharedPlan,
        *,
        clients: Sequence[ClientId],
        seed: int,
        insecure: InsecureRandomness | None = None,
    ) -> None:
        super().__init__(config, plan, insecure=insecure)
        self._clients, self._seed = tuple(clients), seed
        self._folder = Path()
        self._heads: dict[str, str] = {}
        self._epsilons: dict[ClientId, float] = {}
        self._realised: dict[ClientId, Realised] = {}

    def draw(self, round_index: int) -> tuple[ClientId, ...]:
        """The cohort of a round, whoever has budget left: ascending, without replacement."""
        generator = np.random.default_rng((self._seed, round_index, 0xC040))
        size = self.plan.cohort or len(self._clients)
        chosen = generator.choice(len(self._clients), size=size, replace=False)
        return tuple(self._clients[i] for i in sorted(chosen))

    @contextmanager
    def paying(
        self, participants: Mapping[ClientId, Participant], round_index: int
    ) -> Iterator[tuple[Mapping[ClientId, Participant], PopulationBudget | None]]:
        """The cohort, each member with its own ledger open for this round."""
        with ExitStack() as stack:
            members = {}
            for client in self.draw(round_index):
                budget = self._budget_of(client)
                stack.callback(self._close, client, budget)
                members[client] = replace(participants[client], budget=budget)
            yield members, None

    def open(self, folder: Path, heads: Mapping[str, str], stack: ExitStack) -> None:
        """Reads the ledgers that exist; those of clients that were never drawn do not."""
        del stack
        self._folder, self._heads = folder, dict(heads)
        for client in self._clients:
            if str(client) in heads or self._path(client).exists():
                self._close(client, self._budget_of(client))

    def heads(self) -> dict[str, str]:
        """The head of every client's ledger that exists, for the checkpoint."""
        return dict(self._heads)

    def views(self) -> dict[str, float]:
        """Epsilon so far, by onlooker, for the client that each of them can tell most about."""
        distinct = {(tuple(sorted(r.opened.items())), r.charged): r for r in self._by_client()}
        found = [views(one, self.plan.release, self.plan.delta) for one in distinct.values()]
        largest = {name: max(one[name] for one in found) for name in found[0]}
        return largest | {"models": self._models(largest["server"])}

    def epsilon(self) -> float:
        """The largest that any client's own ledger charges."""
        return max(self._epsilons.values(), default=0.0)

    def rounds_charged(self) -> int:
        """The most rounds that one client has paid for."""
        return max(one.rounds for one in self._by_client())

    def ledgers(self) -> list[dict[str, Any]]:
        """One per client that was ever drawn."""
        return [
            {
                "client_index": client,
                "path": f"ledgers/{self._path(client).name}",
                "head": self._heads[str(client)],
                "spent_epsilon": epsilon,
            }
            for client, epsilon in sorted(self._epsilons.items())
        ]

    def _models(self, unamplified: float) -> float:
        """All rounds, each on a fixed-size cohort that the onlooker does not know."""
        # Every survivor of a round paid for it: entries of all clients with s survivors are s for
        # each such round. Rounds without an opened sum released no model.
        paid: Counter[int] = Counter()
        for one in self._realised.values():
            paid += one.opened
        rounds = {s: -(-count // s) for s, count in paid.items()}
        size = self.plan.cohort or len(self._clients)
        whole = compose_counted(
            {
                accounting.FixedSize(
                    population=len(self._clients),
                    cohort=size,
                    event=self.plan.spec.event(survivors),
                ): count
                for survivors, count in rounds.items()
            }
        )
        if whole is None:
            return 0.0
        reserve = accounting.ApproxDP(
            epsilon=0.0, delta=self.plan.delta_reserve, adjacency=ADJACENCY
        )
        event = accounting.Compose(events=(whole, reserve))
        bound = accounting.epsilon(event, self.plan.delta, adjacency=ADJACENCY, method="rdp").value
        # Not knowing the cohort cannot tell more than knowing it.
        return min(bound, unamplified)

    def _by_client(self) -> Sequence[Realised]:
        return tuple(self._realised.values()) or (_NOTHING,)

    def _path(self, client: ClientId) -> Path:
        return self._folder / f"client-{client}.sqlite"

    def _budget_of(self, client: ClientId) -> ParticipationBudget:
        head = self._heads.get(str(client))
        try:
            ledger = open_ledger(
                self._path(client),
                header=self.header(f"client-{client}"),
                expect_head=None if head is None else accounting.Head.parse(head),
            )
        except ConfigurationError as error:
            raise CheckpointError(str(error)) from error
        return ParticipationBudget(ledger=ledger, client=client, release=self.plan.release)

    def _close(self, client: ClientId, budget: ParticipationBudget) -> None:
        self._heads[str(client)] = str(budget.ledger.head)
        self._epsilons[client] = budget.epsilon().value
        self._realised[client] = budget.realised()
        budget.close()
