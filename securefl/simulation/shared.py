"""A run whose noise is shared: its codec, its one ledger, and what each onlooker can learn.

The engine asks this module for everything in which such a run differs from others: the clients'
training, the codec of the next round, the population's budget and the figures of the record.

Four views of one run, each an epsilon for one unit of privacy:

* ``models``: whoever sees the released models and nothing else;
* ``server``: the server that follows the protocol: it also sees each opened sum, which is what the
  models are computed from;
* ``server_and_colluders``: together with the clients assumed corrupt, who know their own shares of
  the noise. This is what the ledger charges and what the target epsilon is for;
* ``aggregation_broken``: somebody who opened every client's own vector. What is left is the noise
  of that client's own share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import accounting
from securefl.config import Fidelity, Mode, RunConfig
from securefl.encoding.adaptive_clip import AdaptiveCodec
from securefl.encoding.joint import SideEntryCodec
from securefl.encoding.noisy import NoisyCodec
from securefl.encoding.summed_noise import SummedNoiseCodec
from securefl.errors import CheckpointError, ConfigurationError
from securefl.modular import RingVector
from securefl.pipeline import Participant
from securefl.population import PopulationBudget, Realised, SharedRelease
from securefl.primitives.prg import SecureRandom
from securefl.round import ClientId
from securefl.simulation.insecure import InsecureRandomness
from securefl.simulation.plans import ADJACENCY, SharedPlan
from securefl.training.apply import ServerOptimiser, ServerStep
from securefl.training.data import Dataset
from securefl.training.local import FlatModel, LocalSGD, Trainer
from securefl.training.shared import RecordSum, RoundRandomness, SecretParticipation
from securefl.training.weighting import CappedTrainer

__all__ = ["POPULATION_LEDGER", "VIEWS", "SharedRun", "views"]

POPULATION_LEDGER = "population.sqlite"
VIEWS = ("models", "server", "server_and_colluders", "aggregation_broken")

_CLIP_NORM = "shared/clip_norm"


def views(realised: Realised, release: SharedRelease, delta: float) -> dict[str, float]:
    """Epsilon of everything charged so far, by onlooker; 0 before the first round.

    Args:
        realised: what the ledger says about the rounds.
        release: what a round costs.
        delta: of every epsilon.
    """
    alone = accounting.Repeat(event=release.event(1, 0), count=max(1, realised.rounds))
    events = {
        "models": realised.event(release, 0),
        # The server knows no client's share and no coin: it learns what the models tell.
        "server": realised.event(release, 0),
        "server_and_colluders": realised.event(release, release.colluding),
        "aggregation_broken": alone if realised.rounds else None,
    }
    return {
        view: 0.0
        if event is None
        else accounting.epsilon(event, delta, adjacency=ADJACENCY, method="rdp").value
        for view, event in events.items()
    }


class SharedRun:
    """What one run with shared noise consists of besides model, optimiser and transport.

    Args:
        config: of the sweep.
        plan: what the clients agreed to.
        insecure: repeatable coins, for tests; marks the run.
    """

    def __init__(
        self, config: RunConfig, plan: SharedPlan, *, insecure: InsecureRandomness | None = None
    ) -> None:
        self.config, self.plan, self.insecure = config, plan, insecure
        self._aggregate = config.aggregation.fidelity is Fidelity.AGGREGATE
        self._noise = (SummedNoiseCodec if self._aggregate else NoisyCodec)(plan.spec)
        self.clip_norm = float(config.noise_shares(plan.mode).clip_norm)
        self._budget: PopulationBudget | None = None

    # -- rounds ----------------------------------------------------------------------------------

    @property
    def codec(self) -> NoisyCodec | AdaptiveCodec | SideEntryCodec:
        """The codec of the next round."""
        if self.plan.adaptive is not None:
            return AdaptiveCodec(self._noise, clip=self.plan.adaptive, clip_norm=self.clip_norm)
        if self.plan.side is not None:
            return SideEntryCodec(self._noise, side=self.plan.side, clip_norm=self.clip_norm)
        return self._noise

    def server(self, optimiser: ServerOptimiser) -> ServerStep:
        """The server's step."""
        return optimiser if self.plan.fair is None else self.plan.fair.server(optimiser)

    def advance(self, codec: NoisyCodec | AdaptiveCodec | SideEntryCodec) -> None:
        """Takes over what a round's opened sum told about the norm."""
        if isinstance(codec, AdaptiveCodec):
            self.clip_norm = codec.next_clip_norm

    def noise_source(self, client: ClientId, round_index: int) -> Callable[[int], bytes]:
        """Secret coins of one client's encoding."""
        if self.insecure is not None:
            return self.insecure.stream(client, round_index, "encoding")
        return SecureRandom().random_bytes

    def finish(self, total: RingVector, survivors: int, round_index: int) -> RingVector:
        """One draw of the summed noise, where that takes the place of the shares."""
        if not isinstance(self._noise, SummedNoiseCodec):
            return total
        if self.insecure is not None:
            source = self.insecure.stream(-1, round_index, "noise of the sum")
        else:
            source = SecureRandom().random_bytes
        return self._noise.add_noise(total, survivors, source)

    @contextmanager
    def paying(
        self, participants: Mapping[ClientId, Participant], round_index: int
    ) -> Iterator[tuple[Mapping[ClientId, Participant], PopulationBudget | None]]:
        """Who is in the round, and the budget that pays for all of them (None: each for itself)."""
        del round_index
        yield participants, self.budget

    def trainer(self, client: ClientId, records: Dataset, model: FlatModel, seed: int) -> Trainer:
        """The training of one client."""
        coins = self._coins(client)
        if self.plan.mode is Mode.DISTRIBUTED_DP:
            distributed = self.config.distributed_dp
            return RecordSum(
                model=model,
                x=records.x,
                y=records.y,
                client=client,
                clip_norm=distributed.clip_norm,
                sample_rate=distributed.sample_rate,
                randomness=coins,
            )
        user = self.config.user_level_dp
        local = LocalSGD(
            model=model,
            x=records.x,
            y=records.y,
            client=client,
            seed=seed,
            learning_rate=user.local_learning_rate,
            batch_size=user.batch_size,
            epochs=user.local_epochs,
            momentum=user.local_momentum,
            weight=1,
        )
        trainer: Trainer = local if self.plan.fair is None else self.plan.fair.trainer(local)
        if user.example_cap is not None:
            trainer = CappedTrainer(trainer=trainer, cap=user.example_cap)
        # Also where the server draws the cohort (the rate is 1 then): training that diverges must
        # become a zero, or one client's data would decide whether the run goes on.
        return SecretParticipation(
            trainer=trainer,
            dimension=self.codec.dimension,
            client=client,
            sample_rate=self.plan.sample_rate,
            randomness=coins,
        )

    def _coins(self, client: ClientId) -> RoundRandomness:
        insecure = self.insecure
        if insecure is None:
            source = SecureRandom().random_bytes
            return lambda round_index: source
        return lambda round_index: insecure.stream(client, round_index, "participation")

    # -- the ledger ------------------------------------------------------------------------------

    @property
    def budget(self) -> PopulationBudget:
        """The population's budget."""
        if self._budget is None:
            raise ConfigurationError("open the population's ledger before the first round")
        return self._budget

    def open(self, folder: Path, heads: Mapping[str, str], stack: ExitStack) -> None:
        """Opens the population's ledger, which stands for the equal copies of all clients.

        Raises:
            CheckpointError: if the file belongs to another plan.
            accounting.LedgerRolledBack: if it is older than the checkpoint, or gone.
        """
        head = heads.get("population")
        header = self.header("population")
        try:
            self._budget = PopulationBudget.open(
                folder / POPULATION_LEDGER,
                header=header,
                release=self.plan.release,
                expect_head=None if head is None else accounting.Head.parse(head),
            )
        except ConfigurationError as error:
            raise CheckpointError(str(error)) from error
        stack.callback(self._budget.close)

    def header(self, whose: str) -> accounting.LedgerHeader:
        """The declaration of a ledger of this run."""
        system = self.insecure is None
        return self.plan.header(
            f"{self.config.data.name}/{whose}",
            randomness=accounting.Randomness.SYSTEM if system else accounting.Randomness.INJECTED,
        )

    def heads(self) -> dict[str, str]:
        """The ledger's head, for the checkpoint."""
        return {"population": str(self.budget.ledger.head)}

    # -- the record ------------------------------------------------------------------------------

    def views(self) -> dict[str, float]:
        """Epsilon so far, by onlooker."""
        return views(self.budget.realised(), self.plan.release, self.plan.delta)

    def epsilon(self) -> float:
        """What the ledger charges: the view of the server with the assumed colluders."""
        return self.budget.epsilon().value

    def metrics(self) -> dict[str, Any]:
        """What a round's line says besides the usual."""
        line: dict[str, Any] = {"epsilon_by_view": self.views()}
        if self.plan.adaptive is not None:
            line["clip_norm"] = self.clip_norm
        return line

    def summary(self) -> dict[str, Any]:
        """What the run's summary says besides the usual."""
        plan, spec = self.plan, self.plan.spec
        return {
            "delta": plan.delta,
            "adjacency": ADJACENCY.value,
            "unit": plan.unit.value,
            "noise_multiplier": spec.noise_multiplier,
            "sample_rate": plan.sample_rate,
            "steps_per_round": 1,
            "clip_norm": self.clip_norm,
            "mechanism": spec.mechanism.value,
            "randomness": ("system" if self.insecure is None else "injected"),
            "honest_shares": spec.honest_shares,
            "fewest_survivors": plan.fewest,
            "colluding": plan.colluding,
            "planned_steps": plan.steps,
            "denominator": plan.denominator,
            "rounds_charged": self.rounds_charged(),
            "epsilon_by_view": self.views(),
            "ledgers": self.ledgers(),
            **self._counting(),
        }

    def _counting(self) -> dict[str, Any]:
        """How much one client counts, where the unit is the client."""
        if self.plan.mode is not Mode.USER_LEVEL_DP:
            return {}
        user = self.config.user_level_dp
        facts: dict[str, Any] = {
            "algorithm": user.algorithm,
            "weighting": user.weighting.value,
            "example_cap": user.example_cap,
        }
        if self.plan.fair is not None:
            facts |= {"q": self.plan.fair.q, "loss_cap": self.plan.fair.loss_cap}
        return facts

    def rounds_charged(self) -> int:
        """Rounds that were paid for, lost and cut off ones included."""
        return self.budget.realised().rounds

    def ledgers(self) -> list[dict[str, Any]]:
        """Where the ledgers lie and what they charge."""
        return [
            {
                "client_index": None,
                "path": f"ledgers/{POPULATION_LEDGER}",
                "head": str(self.budget.ledger.head),
                "spent_epsilon": self.epsilon(),
            }
        ]

    def codec_facts(self) -> dict[str, Any]:
        """The codec, as the summary states it."""
        spec = self.plan.spec
        return {
            "bits": spec.bits,
            "modulus": spec.modulus,
            "steps_per_clip_norm": spec.resolution,
            "inflation": spec.inflation,
            "padded": spec.padded,
            "digest": spec.digest().hex(),
        }

    # -- checkpoints -----------------------------------------------------------------------------

    def state(self) -> dict[str, NDArray[Any]]:
        """What a checkpoint must hold besides model, optimiser and the ledger's head."""
        return {_CLIP_NORM: np.array(self.clip_norm)}

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Takes its part out of a checkpoint's arrays."""
        if _CLIP_NORM not in arrays:
            raise CheckpointError(
                f"the checkpoint lacks {_CLIP_NORM}: it is of another kind of run"
            )
        self.clip_norm = float(arrays.pop(_CLIP_NORM))
