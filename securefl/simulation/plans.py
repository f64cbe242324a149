"""What the clients of a private run agreed to before it began, and the noise that follows from it.

One plan per way to protect: :class:`PrivacyPlan` where each client adds all of its noise itself,
:class:`SharedPlan` where the noise of a sum is the sum of its clients' shares. A plan is calibrated
from the target epsilon and the configuration alone, never from the data, and its digest enters the
context of every round, so that clients with different plans cannot be summed.

A shared plan knows two counts of honest shares: those that carry the noise multiplier (``at`` in
the configuration) and the fewest of any sum that clients open, for which every round is reserved.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import accounting
from securefl.config import Mode, RunConfig
from securefl.config_noise import DistributedDPConfig, UserLevelDPConfig
from securefl.encoding.adaptive_clip import AdaptiveClip
from securefl.encoding.joint import SideEntry
from securefl.encoding.noisy import Contribution, Mechanism, NoisySpec
from securefl.errors import ConfigurationError
from securefl.population import SharedRelease
from securefl.simulation.schemes import Scheme
from securefl.training.qfedavg import PrivateFairAveraging, largest_h

__all__ = ["ADJACENCY", "MOST_ROUNDS", "PrivacyPlan", "SharedPlan"]

ADJACENCY = accounting.Adjacency.ZERO_OUT

MOST_EPSILON = 20.0
"""Largest target: ``NoisySpec.delta_slack`` counts the samplers' distance 1 + e^20 times."""

_NOISE_OF_H = 1 / 20
"""Wanted deviation of the noise of q-FedAvg's mean h; a client whose loss is the cap has h >= 1."""

MOST_ROUNDS = 4
"""Rounds of a run that trains until its budget is used up, at most, over the planned ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyPlan:
    """What every client of a run under local differential privacy agreed to.

    Attributes:
        epsilon, delta: the guarantee for one record of one client, for the whole run.
        round_event: what one client's update of one round releases.
        noise_multiplier: of every step.
        order: the order at which the ledgers count.
        planned: digest (hex) of the event of the whole run.
        digest: 32 bytes; part of every round's context.
    """

    epsilon: float
    delta: float
    round_event: accounting.Event
    noise_multiplier: float
    order: float
    planned: str
    digest: bytes

    @classmethod
    def calibrate(cls, config: RunConfig, epsilon: float) -> PrivacyPlan:
        """The least noise with which all rounds of ``config`` fit (epsilon, delta)."""
        dp = config.local_dp

        def steps(noise_multiplier: float, count: int) -> accounting.Event:
            gaussian = accounting.Gaussian(noise_multiplier=noise_multiplier)
            step = accounting.Poisson(sample_rate=dp.sample_rate, event=gaussian)
            return accounting.Repeat(event=step, count=count)

        total = dp.steps_per_round * config.training.rounds
        found = accounting.calibrate(
            lambda z: steps(z, total),
            epsilon,
            dp.delta,
            adjacency=ADJACENCY,
        )
        event = steps(found.value, dp.steps_per_round)
        planned = accounting.digest(steps(found.value, total))
        promise = {
            "epsilon": epsilon,
            "delta": dp.delta,
            "adjacency": ADJACENCY.value,
            "unit": accounting.Unit.RECORD.value,
            "planned": planned,
            "clip_norm": dp.clip_norm,
        }
        return cls(
            epsilon=epsilon,
            delta=dp.delta,
            round_event=event,
            noise_multiplier=found.value,
            order=_order(found, epsilon),
            planned=planned,
            digest=_digest(promise),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPlan:
    """What every client of a run with shared noise agreed to.

    Attributes:
        mode: distributed record-level or user-level differential privacy.
        epsilon, delta: the guarantee for one unit, for the whole run, against the server and
            ``colluding`` clients.
        delta_reserve: the part of delta for rounding and sampler, for all rounds there may be.
        spec: the codec: noise, range and ring of one sum.
        sample_rate: q, of a unit's secret coin; 1 where the server draws the cohort.
        steps: rounds that the noise was calibrated for; with a cohort, those of one client.
        cohort: clients that the server draws for a round; None if all take part.
        most_rounds: rounds after which the run ends in any case.
        fewest: fewest survivors of a sum that clients open.
        colluding: A, clients assumed to help the server.
        denominator: what a sum is divided by, public.
        adaptive: how the clipping norm follows the updates; None where it is fixed.
        fair: how losses bend the mean (q-FedAvg); None for FedAvg.
        side: the entry beside the update that ``fair`` needs; None without it.
        order: the order at which the ledger counts.
        planned: digest (hex) of the event of the whole run.
        digest: 32 bytes; part of every round's context.
    """

    mode: Mode
    epsilon: float
    delta: float
    delta_reserve: float
    spec: NoisySpec
    sample_rate: float
    steps: int
    cohort: int | None
    most_rounds: int
    fewest: int
    colluding: int
    denominator: float
    adaptive: AdaptiveClip | None
    fair: PrivateFairAveraging | None
    side: SideEntry | None
    order: float
    planned: str
    digest: bytes

    @property
    def unit(self) -> accounting.Unit:
        """Whom the guarantee protects."""
        distributed = self.mode is Mode.DISTRIBUTED_DP
        return accounting.Unit.RECORD if distributed else accounting.Unit.CLIENT

    @property
    def release(self) -> SharedRelease:
        """What one round releases."""
        return SharedRelease(
            mechanism=self.spec.event,
            sample_rate=self.sample_rate,
            delta_slack=self.spec.delta_slack,
            fewest=self.fewest,
            colluding=self.colluding,
        )

    def header(
        self, population: str, *, randomness: accounting.Randomness
    ) -> accounting.LedgerHeader:
        """The declaration of a ledger that counts for this plan."""
        return accounting.LedgerHeader(
            population=population,
            unit=self.unit,
            adjacency=ADJACENCY,
            epsilon=self.epsilon,
            delta=self.delta,
            delta_reserve=self.delta_reserve,
            order=self.order,
            plan=self.planned,
            randomness=randomness,
        )

    @classmethod
    def calibrate(
        cls,
        config: RunConfig,
        mode: Mode,
        epsilon: float,
        *,
        dimension: int,
        records: int,
        classes: int,
        scheme: Scheme,
    ) -> SharedPlan:
        """The least noise with which the planned steps fit (epsilon, delta).

        Args:
            config: of the sweep.
            mode: one whose noise is shared.
            epsilon: the target.
            dimension: d, parameters of the model.
            records: training records of all clients together, public.
            classes: labels that the model tells apart.
            scheme: how sums are formed: fewest survivors, colluders, ring.

        Raises:
            ConfigurationError: if the protocol's ring is too small, no order attains epsilon, or
                epsilon is above 20: what is set aside for the samplers does not cover that.
            accounting.CalibrationError: if no noise does.
        """
        if not epsilon <= MOST_EPSILON:
            raise ConfigurationError(
                f"{mode.value}: a target epsilon of at most {MOST_EPSILON:g} is supported where "
                f"noise is shared, found {epsilon:g}: the delta that is set aside for the "
                "samplers covers no more; lower the target"
            )
        wanted = _Wanted.of(
            config, mode, dimension=dimension, records=records, classes=classes, scheme=scheme
        )
        dp = wanted.section
        steps = wanted.steps
        goes_on = dp.stop == "budget" and config.cohort(mode) is None
        most_rounds = dp.steps * (MOST_ROUNDS if goes_on else 1)

        def repeated(release: accounting.Event) -> accounting.Event:
            sampled = accounting.Poisson(sample_rate=wanted.sample_rate, event=release)
            return accounting.Repeat(event=sampled, count=steps)

        def whole(noise_multiplier: float) -> accounting.Event:
            spec = wanted.codec(noise_multiplier).spec
            reserve = accounting.ApproxDP(
                epsilon=0.0, delta=_reserve(spec, most_rounds), adjacency=ADJACENCY
            )
            release = spec.event(wanted.honest)
            return accounting.Compose(events=(repeated(release), reserve))

        def probed(noise_multiplier: float) -> accounting.Event:
            """The search looks far to both sides of its answer, where no codec may exist."""
            try:
                return whole(noise_multiplier)
            except ConfigurationError:
                return repeated(accounting.Gaussian(noise_multiplier=noise_multiplier))

        found = accounting.calibrate(probed, epsilon, dp.delta, adjacency=ADJACENCY)
        codec = wanted.codec(found.value)
        spec, fair = codec.spec, codec.fair
        planned = accounting.digest(whole(found.value))
        promise = {
            "epsilon": epsilon,
            "delta": dp.delta,
            "adjacency": ADJACENCY.value,
            "mode": mode.value,
            "planned": planned,
            "fewest": scheme.n_min,
            "colluding": wanted.colluding,
            "denominator": wanted.denominator,
            "codec": spec.digest().hex(),
            **wanted.counting(),
            "fair": None if fair is None else asdict(fair),
        }
        return cls(
            mode=mode,
            epsilon=epsilon,
            delta=dp.delta,
            delta_reserve=_reserve(spec, most_rounds),
            spec=spec,
            sample_rate=wanted.sample_rate,
            steps=steps,
            cohort=config.cohort(mode),
            most_rounds=most_rounds,
            fewest=scheme.n_min,
            colluding=wanted.colluding,
            denominator=wanted.denominator,
            adaptive=codec.adaptive,
            fair=fair,
            side=codec.side,
            order=_order(found, epsilon),
            planned=planned,
            digest=_digest(promise),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Codec:
    """What carries a round's vectors for one noise multiplier, and what rides beside updates."""

    spec: NoisySpec
    adaptive: AdaptiveClip | None = None
    fair: PrivateFairAveraging | None = None
    side: SideEntry | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """The configuration of a shared plan, before the noise is known."""

    section: DistributedDPConfig | UserLevelDPConfig
    contribution: Contribution
    dimension: int
    clients: int
    honest: int
    colluding: int
    units: float
    denominator: float
    sample_rate: float
    steps: int
    most_bits: int
    classes: int
    scheme: Scheme

    @classmethod
    def of(
        cls,
        config: RunConfig,
        mode: Mode,
        *,
        dimension: int,
        records: int,
        classes: int,
        scheme: Scheme,
    ) -> _Wanted:
        section: DistributedDPConfig | UserLevelDPConfig = config.noise_shares(mode)
        cohort, steps, rate = config.cohort(mode), section.steps, section.sample_rate
        clients = cohort or config.partition.clients
        if isinstance(section, UserLevelDPConfig):
            contribution, population = Contribution.CLIENT, clients
            if cohort is not None:
                # Drawn by the server, who knows it: no coin of the unit's own is left.
                rate, steps = 1.0, section.most_participations(config.partition.clients)
        else:
            contribution, population = Contribution.RECORDS, records
        expected = rate * population
        colluding = config.summed(mode).assumed_corrupt
        planned = clients - section.planned_dropouts
        return cls(
            section=section,
            contribution=contribution,
            dimension=dimension,
            clients=clients,
            honest=(planned if section.at == "planned" else scheme.n_min) - colluding,
            colluding=colluding,
            # Six standard deviations of a Poisson sample; beyond it accuracy suffers, not privacy.
            units=max(1.0, min(float(population), expected + 6 * math.sqrt(expected))),
            denominator=float(expected),
            sample_rate=rate,
            steps=steps,
            most_bits=config.summed(mode).most_bits,
            classes=classes,
            scheme=scheme,
        )

    def counting(self) -> dict[str, Any]:
        """How much one client's update counts, for the digest of the plan."""
        if not isinstance(self.section, UserLevelDPConfig):
            return {}
        return {
            "weighting": self.section.weighting.value,
            "example_cap": self.section.example_cap,
        }

    def codec(self, noise_multiplier: float) -> _Codec:
        """The codec for a noise multiplier."""
        section = self.section
        if isinstance(section, UserLevelDPConfig) and section.clipping == "adaptive":
            adaptive = AdaptiveClip.plan(
                start=section.clip_norm,
                noise_multiplier=noise_multiplier,
                expected=self.denominator,
                target_quantile=section.target_quantile,
                rate=section.clip_rate,
            )
            spec = self._spec(noise_multiplier, self.dimension + 1, adaptive.norm)
            return _Codec(spec=spec, adaptive=adaptive)
        if isinstance(section, UserLevelDPConfig) and section.fairness:
            return self._fair_codec(noise_multiplier, section)
        return _Codec(spec=self._spec(noise_multiplier, self.dimension, section.clip_norm))

    def _fair_codec(self, noise_multiplier: float, section: UserLevelDPConfig) -> _Codec:
        """One vector of update and h, both in units of C; one noise for both."""
        q, C, rate = section.fairness, section.clip_norm, section.local_learning_rate
        cap = section.loss_cap or 2.0 * math.log(self.classes)
        room = largest_h(q, cap, C, rate)
        side = SideEntry.plan(
            noise_multiplier=noise_multiplier,
            expected=self.denominator,
            noise=_NOISE_OF_H / room,
        )
        noise = side.noise(noise_multiplier=noise_multiplier, expected=self.denominator)
        fair = PrivateFairAveraging(
            q=q, loss_cap=cap, clip_norm=C, learning_rate=rate, floor=noise * room
        )
        spec = self._spec(noise_multiplier, fair.payload(self.dimension), side.norm)
        return _Codec(spec=spec, fair=fair, side=side)

    def _spec(self, noise_multiplier: float, dimension: int, clip_norm: float) -> NoisySpec:
        fields: dict[str, Any] = {
            "dimension": dimension,
            "clip_norm": clip_norm,
            "noise_multiplier": noise_multiplier,
            "honest_shares": self.honest,
            "max_clients": self.clients,
            "contribution": self.contribution,
            "units": self.units,
            "mechanism": Mechanism(self.section.mechanism),
        }
        bits = self.section.bits
        if bits is not None:
            spec = NoisySpec.plan(**fields, modulus=self.scheme.modulus(bits))
        else:
            spec = NoisySpec.plan(**fields)
            bits = spec.bits
            if not self.scheme.adds_residues:
                bits = max(bits, (2 * spec.reach).bit_length())
            spec = replace(spec, modulus=self.scheme.modulus(bits))
        if bits > self.most_bits:
            raise ConfigurationError(
                f"sums of this noise take {bits} bits, the protocol carries {self.most_bits}: take "
                "fewer bits per entry, or another protocol"
            )
        if not self.scheme.adds_residues and 2 * spec.reach >= spec.modulus:
            # Whoever opens the sum of plain numbers would see that somebody's entry wrapped.
            raise ConfigurationError(
                f"{self.scheme.name} adds numbers and not residues: a client's entry may reach "
                f"{spec.reach}, which {spec.bits} bits do not hold; leave the section's bits out"
            )
        return spec


def _reserve(spec: NoisySpec, rounds: int) -> float:
    """Delta for rounding and sampler: of all rounds, and as many again that may be cut off."""
    return math.nextafter(2 * rounds * spec.delta_slack, 1.0)


def _order(found: accounting.Calibration, epsilon: float) -> float:
    if found.achieved.order is None:
        raise ConfigurationError(f"no order of the accountant attains epsilon {epsilon:g}")
    return found.achieved.order


def _digest(promise: dict[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(promise, sort_keys=True).encode()).digest()
