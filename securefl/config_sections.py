"""Sections of a configuration: data, model, encoding, secure sum and sweep; and the name of a run.

:mod:`securefl.config` puts the sections together and says what they must agree on. This module
opens nothing and knows no other section.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, model_validator

from securefl.config_noise import (
    LearningRate,
    Momentum,
    PositiveFloat,
    PositiveInt,
    Section,
    SeedInt,
)

__all__ = [
    "AggregationConfig",
    "DataConfig",
    "EncodingConfig",
    "Fidelity",
    "LocalDPConfig",
    "Mode",
    "ModelConfig",
    "PartitionConfig",
    "RunSpec",
    "SweepConfig",
]


class Mode(StrEnum):
    """What protects the released model of a run."""

    NONE = "none"
    """No differential privacy: single updates are hidden, the sum and the model are not."""
    LOCAL_DP = "local-dp"
    """Record-level DP-SGD on every client: each update is private by itself, from everyone."""
    DISTRIBUTED_DP = "distributed-dp"
    """Record-level DP-SGD by all clients together: the noise is the sum of their shares."""
    USER_LEVEL_DP = "user-level-dp"
    """DP-FedAvg: a client's whole data, with the noise as the sum of all clients' shares."""

    @property
    def private(self) -> bool:
        """Whether its runs have a target epsilon and ledgers."""
        return self is not Mode.NONE

    @property
    def shares_noise(self) -> bool:
        """Whether the noise of its guarantee is the sum of shares, and one ledger counts."""
        return self in (Mode.DISTRIBUTED_DP, Mode.USER_LEVEL_DP)


class Fidelity(StrEnum):
    """How much of the real system a simulated sum goes through."""

    PROTOCOL = "protocol"
    """The real machines over real wire bytes."""
    ENCODED = "encoded"
    """The real codec, then a plain modular sum of the same integers: same bits, no protocol."""
    AGGREGATE = "aggregate"
    """As ``encoded``, but with one draw of the summed noise in place of one share per client: the
    same distribution, for sweeps. Modes with noise shares only."""
    FLOAT = "float"
    """A floating-point sum of the raw updates: the baseline that shows what encoding costs."""


class DataConfig(Section):
    """``[data]``: which records, and how many are held out for the test set."""

    name: Literal["digits", "breast-cancer", "mnist", "heart-disease", "leaf"]
    path: str | None = None
    """For ``leaf``: the data set's folder, below the data folder."""
    shape: tuple[PositiveInt, ...] | None = None
    """For ``leaf``: shape of one record, if it is stored flat."""
    classes: Annotated[int, Field(ge=2)] | None = None
    """For ``leaf``: number of labels; default the largest label and one more."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of records held out; ignored by data sets that come with a test set (mnist)."""
    split_seed: SeedInt | None = None
    """Seed of the train/test split; default: the run's own seed, so that the mean over seeds is
    also one over splits (a single small test set can be two points too easy or too hard)."""
    standardise: Literal["public", "federated"] = "public"
    """``public``: features are scaled by public bounds only. ``federated``: then also by their mean
    and variance over all clients' training records, from one secure sum without noise; mode
    ``none`` only, and data sets with named features."""

    @model_validator(mode="after")
    def _leaf_alone_has_a_path(self) -> DataConfig:
        given = [key for key in ("path", "shape", "classes") if getattr(self, key) is not None]
        if self.name != "leaf" and given:
            raise ValueError(f'{", ".join(given)}: for name = "leaf" only, found "{self.name}"')
        if self.name == "leaf" and self.path is None:
            raise ValueError('name = "leaf" needs path, a folder below the data folder')
        return self

    @property
    def label(self) -> str:
        """The data set's name, for records and reports."""
        return self.name if self.path is None else f"{self.name}:{self.path}"


class PartitionConfig(Section):
    """``[partition]``: which client holds which records."""

    kind: Literal["iid", "dirichlet", "shards", "quantity", "natural"] = "iid"
    clients: Annotated[int, Field(ge=3)] = 10
    alpha: PositiveFloat = 0.5
    """Concentration of ``dirichlet`` (labels) and ``quantity`` (sizes): smaller is more skewed."""
    shards_per_client: PositiveInt = 2
    """For ``shards``: label-sorted shards given to each client."""
    minimum: PositiveInt = 1
    """Fewest records a client may hold."""


class ModelConfig(Section):
    """``[model]``: the network that is trained."""

    name: Literal["softmax", "mlp", "cnn26k", "cnn1m6", "scattering_linear"] = "softmax"
    activation: Literal["relu", "tanh"] = "relu"


class LocalDPConfig(Section):
    """``[local_dp]``: record-level DP-SGD on every client. Weights are always equal here.

    The noise multiplier is calibrated from the target epsilon of the run, ``delta``,
    ``sample_rate`` and ``rounds * steps_per_round``.
    """

    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    sample_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Chance of each record to be in a step's batch; public, the same for every client."""
    steps_per_round: PositiveInt = 8
    clip_norm: PositiveFloat = 1.0
    """Bound on one record's gradient (L2)."""
    learning_rate: LearningRate = 0.5
    momentum: Momentum = 0.0
    activation: Literal["relu", "tanh"] = "tanh"


class EncodingConfig(Section):
    """``[encoding]``: from floats to integers of ``bits`` bits.

    ``bits`` says how fine the integers are: as many steps as sums modulo 2^bits have room for.
    """

    clip_norm: PositiveFloat = 10.0
    """Bound on one client's update (L2). A bound of the encoding, not a privacy guarantee."""
    bits: Annotated[int, Field(ge=2, le=64)] | None = None
    """Default 32, or the most that the protocol carries if that is less: see
    :attr:`RunConfig.bits`."""
    max_weight: PositiveInt | None = None
    """Largest weight a client may bring (public); default: the number of training records."""
    rounding: Literal["nearest", "stochastic"] = "nearest"


class AggregationConfig(Section):
    """``[aggregation]``: the secure sum."""

    protocol: Literal[
        "secagg", "secagg+", "lightsecagg", "paillier", "paillier-threshold", "peersum"
    ] = "secagg"
    """``secagg``: every client shares masks with every other; ``secagg+``: with ``degree`` others
    on a random ring; ``lightsecagg``: coded shares of one mask per client; ``paillier``: encrypted
    for a key holder with a witness; ``paillier-threshold``: for share holders, 4 of 5 open;
    ``peersum``: no server, every peer shares its vector with every other."""
    adversary: Literal["semi-honest", "active"] = "semi-honest"
    """``active``: the server may also lie, to each client in another way. With Paillier it always
    may, and in peersum the peers always may, whatever stands here."""
    threshold: Annotated[int, Field(ge=3)] | None = None
    """Fewest clients alive in every phase; default floor(2n/3)+1, or what the adversary needs."""
    degree: Annotated[int, Field(ge=2)] | None = None
    """Neighbours per client, even, ``secagg+`` only; default the smallest that is safe."""
    experimental_active_graph: bool = False
    """Needed for ``secagg+`` against an active server, for which there is no published proof."""
    experimental_hybrid: bool = False
    """Paillier only: encrypt short secrets of ring-LWE masks in place of the vectors. The lattice
    parameters have been neither estimated nor reviewed."""
    opening_threads: Annotated[int, Field(ge=1, le=256)] | None = None
    """Paillier only: threads in which every holder opens; default one per processor. The sums are
    the same."""
    fidelity: Fidelity = Fidelity.PROTOCOL

    @property
    def encrypted(self) -> bool:
        """Whether sums are opened by holders of a Paillier key."""
        return self.protocol in ("paillier", "paillier-threshold")

    @model_validator(mode="after")
    def _by_name(self) -> AggregationConfig:
        if self.experimental_hybrid and not self.encrypted:
            raise ValueError(
                'experimental_hybrid = true belongs to protocols "paillier" and '
                f'"paillier-threshold", found "{self.protocol}"'
            )
        if self.opening_threads is not None and not self.encrypted:
            raise ValueError(
                f'opening_threads = {self.opening_threads} belongs to protocols "paillier" and '
                f'"paillier-threshold", found "{self.protocol}"'
            )
        unjoined = self.encrypted or self.protocol in ("lightsecagg", "peersum")
        if self.degree is not None and unjoined:
            raise ValueError(
                f'degree = {self.degree} belongs to protocol "secagg+"; "{self.protocol}" has no '
                "neighbour graph"
            )
        active_ring = self.protocol == "secagg+" and self.adversary == "active"
        if active_ring and not self.experimental_active_graph:
            raise ValueError(
                'protocol "secagg+" with adversary "active" has no published proof: '
                "set experimental_active_graph = true to run it all the same"
            )
        return self


class SweepConfig(Section):
    """``[sweep]``: one run per mode, target epsilon (private modes only) and seed."""

    modes: Annotated[tuple[Mode, ...], Field(min_length=1)] = (Mode.NONE,)
    epsilons: tuple[PositiveFloat, ...] = ()
    seeds: Annotated[tuple[SeedInt, ...], Field(min_length=1)] = (0,)

    @model_validator(mode="after")
    def _distinct(self) -> SweepConfig:
        for name, values in (
            ("modes", self.modes),
            ("epsilons", self.epsilons),
            ("seeds", self.seeds),
        ):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} has a value twice: {list(values)}")
        private = [mode.value for mode in self.modes if mode.private]
        if private and not self.epsilons:
            raise ValueError(f"mode {private[0]} needs at least one target in epsilons")
        return self


class RunSpec(Section):
    """One run of a sweep: a deployment of its own, with ledgers of its own."""

    mode: Mode
    target_epsilon: float | None
    seed: int

    @property
    def name(self) -> str:
        """The folder of the run: ``<mode>-<epsilon>-s<seed>``."""
        target = self.target_epsilon
        # Every digit: two targets never share a folder, and with it their ledgers.
        epsilon = "inf" if target is None else repr(target).removesuffix(".0")
        return f"{self.mode.value}-{epsilon}-s{self.seed}"
