"""The deployment file: what somebody says a federated deployment does, as strict TOML.

Two questions are kept apart. *Can the file be read?* Syntax, unknown keys, wrong types and unknown
words are errors (:class:`InvalidDeployment`), with the file, the line or key, and the nearest known
word: there is no verdict on a file that nobody can read. *Does it describe a possible deployment?*
Values out of range and a missing adjacency are read without complaint and become findings of the
audit (lints A18 and A02, see :func:`impossible_values`).

The file is a declaration. Nothing here looks at a running system, and nothing here knows a cost:
see :mod:`accounting.audit`.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from accounting.errors import InvalidDeployment
from accounting.events import MAX_COUNT
from accounting.file_keys import KeyInfo, Span, Words, explain, keys_of

if TYPE_CHECKING:
    from accounting.audit.report import AuditReport
    from accounting.entries import Head

__all__ = [
    "SCHEMA",
    "Accounting",
    "Aggregation",
    "Clip",
    "Correlated",
    "Deployment",
    "Empirical",
    "Guarantee",
    "Impossible",
    "KeyInfo",
    "Local",
    "Mechanism",
    "Noise",
    "Phase",
    "Population",
    "Release",
    "Sampling",
    "Span",
    "Trust",
    "Tuning",
    "impossible_values",
    "known_keys",
]

SCHEMA = "securefl-deployment/1"
_MAX_BYTES = 1 << 20


# Further out, squares and reciprocals of what is computed leave the range of floats.
_POSITIVE = Span(low=1e-30, high=1e30)
_COUNT = Span(low=1, high=MAX_COUNT)
_RATE = Span(low_open=True, high=1)
_OPEN = Span(low_open=True, high=1, high_open=True)
_DELTA = Span(low=1e-100, high=1, high_open=True)
_SHARE = Span(high=1, high_open=True)

Positive = Annotated[float, _POSITIVE]
MaybePositive = Annotated[float | None, _POSITIVE]
Count = Annotated[int, _COUNT]
MaybeCount = Annotated[int | None, _COUNT]
MaybeRate = Annotated[float | None, _RATE]
MaybeShare = Annotated[float | None, _SHARE]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Population(_Section):
    """``[population]``: whose data."""

    size: Count = Field(description="units in the population, N")
    unit: Literal["user", "client", "record"] = Field(description="what one unit of protection is")
    clients: MaybeCount = Field(
        default=None,
        description="clients that hold the records; for unit `record` with client sampling",
    )
    smallest_eligible: MaybeCount = Field(
        default=None,
        description="fewest units that were ever eligible in a round; the rate follows it",
    )
    max_devices_per_unit: Count = Field(
        default=1, description="devices with which one unit can take part"
    )
    disjoint_from: tuple[Words, ...] = Field(
        default=(), description="other populations that are assumed to share no unit with this one"
    )
    public_data: bool = Field(default=False, description="whether some of the data used is public")


class Guarantee(_Section):
    """``[guarantee]``: what is promised."""

    epsilon: Positive = Field(description="the promise, the target of the audit")
    delta: Annotated[float, _DELTA] = Field(description="the promise's delta")
    adjacency: Literal["add-remove", "zero-out", "replace-one"] | None = Field(
        default=None,
        description="the neighbour relation; missing is a finding (A02), there is no default",
    )
    claim_by: Literal["auto", "rdp", "pld", "exact"] = Field(
        default="auto",
        description="the method whose number decides; `auto` takes the smallest valid one",
    )
    covers: tuple[Words, ...] = Field(
        default=(), description="names of the phases and releases the promise covers; empty: all"
    )
    plan: Literal["fixed", "adaptive"] = Field(
        default="fixed",
        description="`adaptive`: noise, cohort or stopping may depend on earlier outputs",
    )
    accountant: Literal["fixed-plan", "filter"] = Field(
        default="fixed-plan", description="what the system's accountant proves; see `plan`"
    )
    orders: tuple[float, ...] = Field(
        default=(),
        description="RDP orders of the system's accountant; empty: the default grid, refined",
    )


class Trust(_Section):
    """``[trust]``: against whom."""

    model: Literal["central", "local", "distributed"] = Field(
        description="who may see a single contribution: the server, nobody, nobody but its client"
    )
    server: Literal["honest-but-curious", "malicious"] = Field(
        default="honest-but-curious", description="what the server may do"
    )
    max_colluding: MaybeShare = Field(
        default=None,
        description="clients that pool their views with the adversary, of the planned cohort",
    )


class Sampling(_Section):
    """``[phase.sampling]``: who takes part in a round."""

    kind: Literal["poisson", "fixed", "shuffle", "cyclic", "all"] = Field(
        description="what the system does: a coin each, a fixed number, a shuffled order, a fixed "
        "order, everybody"
    )
    cohort: MaybeCount = Field(
        default=None,
        description="units per round (clients, where `phase.local` is given); not for `all`",
    )
    account_as: Literal["poisson", "fixed", "shuffle", "cyclic", "all", "product"] | None = Field(
        default=None, description="what the system's accountant assumes; none: the same as `kind`"
    )
    coins: Literal["server", "secret"] = Field(
        default="server", description="`secret`: the server does not learn who takes part"
    )
    available: MaybeCount = Field(
        default=None,
        description="fewest units available in a round; none: `smallest_eligible`, or all",
    )
    reshuffle: bool = Field(default=True, description="for `shuffle`: a new order each epoch")
    empty: Literal["noise", "skip"] = Field(
        default="noise",
        description="what happens in a round without a cohort: a noised step, or none",
    )
    realised_rate: MaybeRate = Field(
        default=None, description="largest participation rate seen in a round, if it was measured"
    )


class Local(_Section):
    """``[phase.local]``: record-level steps inside of a client. The unit is one record."""

    rate: Annotated[float, _RATE] = Field(description="coin of one record in one local step")
    steps: Count = Field(default=1, description="local steps of a client in one round")


class Clip(_Section):
    """``[phase.clip]``: what bounds one contribution."""

    norm: Positive = Field(description="L2 bound C on one unit's contribution to the sum")
    enforced: Literal["client", "server", "none"] = Field(
        default="client", description="who makes sure, on exactly what is summed"
    )
    weights: Literal["uniform", "examples"] = Field(
        default="uniform", description="`examples`: contributions are multiplied by example counts"
    )
    weighted: Literal["before-clip", "after-clip"] = Field(
        default="after-clip", description="where the weight is applied"
    )
    max_weight: Positive = Field(default=1.0, description="largest weight of one contribution")
    denominator: Literal["fixed", "realised"] = Field(
        default="fixed",
        description="what the sum is divided by: a number fixed before, or who came",
    )
    per: Literal["unit", "record"] = Field(
        default="unit",
        description="what the norm bounds: a unit's whole contribution, or one record's",
    )
    microbatch: Count = Field(
        default=1, description="records averaged before they are clipped together"
    )
    rounding: Literal["conditional", "stochastic"] = Field(
        default="conditional",
        description="to integers: `conditional` is repeated until the norm holds again",
    )
    adaptive: bool = Field(
        default=False, description="the norm follows a private quantile of the norms"
    )
    count_noise: MaybePositive = Field(
        default=None,
        description="deviation of the noise on that quantile's count of clients, per round",
    )


class Noise(_Section):
    """``[phase.noise]``: the noise in the sum of one round."""

    kind: Literal["gaussian", "skellam", "discrete-gaussian", "laplace", "none"] = Field(
        description="its distribution"
    )
    multiplier: Annotated[float | None, _POSITIVE] = Field(
        default=None, description="deviation (laplace: scale) over `clip.norm`; not for `none`"
    )
    where: Literal["client-shares", "server", "client"] = Field(
        description="shares of clients that add up, the server, or each client all of it"
    )
    at: Literal["minimum", "planned"] = Field(
        default="minimum",
        description="when shares add up to `multiplier`: fewest survivors, or all",
    )
    sized_for: MaybeCount = Field(
        default=None,
        description="survivors at which they do; none: the threshold, or the planned cohort",
    )
    level: Literal["fixed", "cohort"] = Field(
        default="cohort", description="`fixed`: the noise does not follow who was sampled"
    )
    scale: MaybePositive = Field(
        default=None, description="grid points per unit; for integer noise"
    )
    sampler: Literal["integer", "float"] = Field(
        default="float", description="arithmetic of the sampler"
    )
    rng: Literal["csprng", "seeded", "weak"] = Field(
        default="csprng", description="source of the coins"
    )
    missing: Literal["accepted", "re-added"] = Field(
        default="accepted", description="what the server does about noise of clients that vanished"
    )


class Correlated(_Section):
    """``[phase.correlated]``: noise that is correlated over the rounds."""

    kind: Literal["tree", "banded"] = Field(description="a binary tree, or a banded factorisation")
    participations: Count = Field(description="most rounds in which one unit takes part")
    min_sep: Count = Field(default=1, description="fewest rounds between two of them")
    bands: MaybeCount = Field(default=None, description="for `banded`: non-zero diagonals")
    restart: MaybeCount = Field(
        default=None, description="for `tree`: rounds after which a new one begins"
    )
    enforced: Literal["client", "server", "none"] = Field(
        default="none", description="who makes sure of participations and separation"
    )


class Aggregation(_Section):
    """``[phase.aggregation]``: how contributions are summed."""

    protocol: Literal[
        "none", "secagg", "secagg+", "lightsecagg", "paillier", "peersum", "other"
    ] = Field(default="none", description="the secure aggregation protocol")
    planned: MaybeCount = Field(default=None, description="planned cohort; none: `sampling.cohort`")
    threshold: MaybeCount = Field(
        default=None, description="fewest survivors that the protocol accepts"
    )
    max_dropout: MaybeShare = Field(
        default=None, description="clients that vanish, of the planned cohort"
    )
    modulus_bits: Annotated[int | None, Span(low=1, high=4096)] = Field(
        default=None, description="bits of one coordinate of the modular sum"
    )
    adversary: Literal["semi-honest", "active"] = Field(
        default="semi-honest", description="what the protocol withstands"
    )


class Accounting(_Section):
    """``[phase.accounting]``: what the system's own accountant is told."""

    method: Literal["rdp", "pld", "exact", "classic"] | None = Field(
        default=None, description="`classic`: the formula sqrt(2 ln(1.25/delta))/epsilon"
    )
    rate: MaybeRate = Field(default=None, description="the sampling rate it is given")
    population: MaybeCount = Field(default=None, description="the population it is given")
    steps: MaybeCount = Field(default=None, description="the number of releases it is given")
    sensitivity: MaybePositive = Field(
        default=None, description="the sensitivity it assumes, in multiples of `clip.norm`"
    )


class Phase(_Section):
    """``[[phase]]``: one training or analysis run over many rounds."""

    name: Words = Field(description="its name", min_length=1, max_length=100)
    rounds: Count = Field(description="rounds planned, T")
    released: Literal["every round", "checkpoints", "final model"] = Field(
        default="every round", description="what leaves the aggregator"
    )
    dimension: MaybeCount = Field(
        default=None, description="coordinates; needed for integer and laplace noise"
    )
    sampling: Sampling = Field(description="who takes part")
    local: Local | None = Field(default=None, description="record-level steps inside of a client")
    clip: Clip = Field(description="what bounds a contribution")
    noise: Noise = Field(description="the noise")
    correlated: Correlated | None = Field(default=None, description="correlation over the rounds")
    aggregation: Aggregation = Field(default=Aggregation(), description="how it is summed")
    accounting: Accounting = Field(
        default=Accounting(), description="what the system's accountant is told"
    )

    @model_validator(mode="after")
    def _complete(self) -> Phase:
        """Keys that are needed because of the value of another one."""
        if self.sampling.kind != "all" and self.sampling.cohort is None:
            raise ValueError(f"sampling.cohort is needed for sampling of kind {self.sampling.kind}")
        if self.noise.kind != "none" and self.noise.multiplier is None:
            raise ValueError(f"noise.multiplier is needed for {self.noise.kind} noise")
        if self.noise.kind in {"skellam", "discrete-gaussian"}:
            for key, value in (("dimension", self.dimension), ("noise.scale", self.noise.scale)):
                if value is None:
                    raise ValueError(f"{key} is needed for {self.noise.kind} noise")
        if self.noise.kind == "laplace":
            if self.dimension is None:
                raise ValueError(
                    "dimension is needed for laplace noise: clip.norm bounds L2, not L1"
                )
            if self.clip.adaptive:
                raise ValueError(
                    "an adaptive norm with laplace noise is not described by this file"
                )
        if self.noise.where == "client-shares" and self.planned is None:
            raise ValueError("aggregation.planned is needed for client-shares of everybody")
        if self.correlated is not None:
            if self.noise.kind != "gaussian":
                raise ValueError(f"correlated noise is gaussian here, found {self.noise.kind}")
            if self.correlated.kind == "banded" and self.correlated.bands is None:
                raise ValueError("correlated.bands is needed for kind banded")
            if self.local is not None:
                raise ValueError("correlated noise with local steps is not described by this file")
        return self

    @property
    def planned(self) -> int | None:
        """Clients planned for a round; None only where everybody takes part and none is given."""
        return self.aggregation.planned or self.sampling.cohort


class Mechanism(_Section):
    """``[release.mechanism]``: one release that is described by its guarantee or its noise."""

    kind: Literal["laplace", "gaussian", "pure", "approximate", "zcdp", "none"] = Field(
        description="which parameter follows"
    )
    b: MaybePositive = Field(default=None, description="laplace: scale over the L1 sensitivity")
    multiplier: MaybePositive = Field(
        default=None, description="gaussian: deviation over L2 sensitivity"
    )
    epsilon: MaybePositive = Field(default=None, description="pure, approximate: its epsilon")
    delta: MaybeShare = Field(default=None, description="approximate: its delta")
    rho: MaybePositive = Field(default=None, description="zcdp: its rho")

    @model_validator(mode="after")
    def _complete(self) -> Mechanism:
        needed = {
            "laplace": ("b",),
            "gaussian": ("multiplier",),
            "pure": ("epsilon",),
            "approximate": ("epsilon", "delta"),
            "zcdp": ("rho",),
            "none": (),
        }[self.kind]
        given = {name for name, value in self if name != "kind" and value is not None}
        if given != set(needed):
            wanted = ", ".join(needed) or "no parameter"
            raise ValueError(f"a {self.kind} mechanism takes {wanted}, found {sorted(given)}")
        return self


class Release(_Section):
    """``[[release]]``: something else that is released from the same population's data."""

    name: Words = Field(description="its name", min_length=1, max_length=100)
    times: Count = Field(default=1, description="how often")
    mechanism: Mechanism = Field(description="what protects it")


class Tuning(_Section):
    """``[tuning]``: runs that chose the settings."""

    runs: Count = Field(default=1, description="runs tried; 1: none but the one described")
    data: Literal["none", "public", "private"] = Field(default="none", description="on whose data")
    poisson_mean: MaybePositive = Field(
        default=None, description="the number of runs was drawn from a Poisson law of this mean"
    )
    eta: Annotated[float | None, Span(low=-1, low_open=True)] = Field(
        default=None,
        description="or from a truncated negative binomial law of this shape, with `gamma`",
    )
    gamma: MaybeRate = Field(default=None, description="and this parameter")

    @model_validator(mode="after")
    def _one_law(self) -> Tuning:
        given = (self.eta is not None, self.gamma is not None, self.poisson_mean is not None)
        if given not in {(False, False, False), (True, True, False), (False, False, True)}:
            raise ValueError("give poisson_mean, or eta and gamma, or none of them")
        return self


class Empirical(_Section):
    """``[[empirical]]``: a lower bound that somebody measured on the running mechanism."""

    name: Words = Field(description="its name", min_length=1, max_length=100)
    lower: Annotated[float, Span()] = Field(description="lower bound on epsilon")
    delta: Annotated[float, _SHARE] = Field(description="the delta it was measured at")
    confidence: Annotated[float, _OPEN] = Field(description="of the bound, such as .95")


class Deployment(_Section):
    """One deployment as declared. Read it with :meth:`load`, judge it with :meth:`audit`."""

    schema_: Literal["securefl-deployment/1"] = Field(alias="schema", description="always this")
    title: Words = Field(default="", description="a name for the report", max_length=200)
    population: Population = Field(description="whose data")
    guarantee: Guarantee = Field(description="what is promised")
    trust: Trust = Field(description="against whom")
    phase: tuple[Phase, ...] = Field(default=(), description="training or analysis runs")
    release: tuple[Release, ...] = Field(
        default=(), description="other releases from the same data"
    )
    tuning: Tuning = Field(default=Tuning(), description="runs that chose the settings")
    empirical: tuple[Empirical, ...] = Field(default=(), description="measured lower bounds")

    @model_validator(mode="after")
    def _consistent(self) -> Deployment:
        names = [*(part.name for part in self.phase), *(part.name for part in self.release)]
        if not names:
            raise ValueError("at least one [[phase]] or [[release]] is needed")
        if len(set(names)) != len(names):
            raise ValueError(f"names of phases and releases must differ, found {names}")
        for name in self.guarantee.covers:
            if name not in names:
                raise ValueError(f"guarantee.covers names {name!r}, found only {names}")
        for phase in self.phase:
            if phase.local is not None and self.population.unit != "record":
                raise ValueError(
                    f"phase {phase.name!r} has local steps on records, so population.unit must be "
                    f"record, found {self.population.unit}"
                )
            needs = phase.local is not None and phase.sampling.kind != "all"
            if needs and self.population.clients is None:
                raise ValueError(
                    "population.clients is needed where clients are sampled and records are local"
                )
        return self

    @classmethod
    def load(cls, path: str | Path) -> Deployment:
        """Reads a deployment file.

        Raises:
            InvalidDeployment: if it cannot be read: no such file, no TOML, unknown keys, wrong
                types, unknown words, missing keys. The message names the file, the line or the
                key, and what was expected.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:  # a device has no size to ask for
                raw = file.read(_MAX_BYTES + 1)
            if len(raw) > _MAX_BYTES:
                raise InvalidDeployment(
                    f"{path}: a deployment file may have {_MAX_BYTES} bytes, found more"
                )
            text = raw.decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidDeployment(f"cannot read the deployment file {path}: {error}") from None
        return cls.parse(text, source=str(path))

    @classmethod
    def parse(cls, text: str, *, source: str = "deployment") -> Deployment:
        """Reads a deployment from TOML text; ``source`` is what messages call it.

        Raises:
            InvalidDeployment: as :meth:`load`.
        """
        try:
            tree = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
            raise InvalidDeployment(f"{source}: not valid TOML: {error}") from None
        return cls.parse_tree(tree, source=source)

    @classmethod
    def parse_tree(cls, tree: dict[str, Any], *, source: str = "deployment") -> Deployment:
        """Reads a deployment from what TOML text parses to.

        Raises:
            InvalidDeployment: as :meth:`load`.
        """
        try:
            # JSON mode: strict about numbers and words, yet arrays become tuples.
            return cls.model_validate_json(json.dumps(tree, default=str))
        except ValidationError as error:
            raise InvalidDeployment(explain(error, source, cls)) from None
        except (RecursionError, ValueError) as error:
            raise InvalidDeployment(f"{source}: cannot be read: {error}") from None

    def audit(
        self, ledger: str | Path | None = None, *, expect_head: Head | None = None
    ) -> AuditReport:
        """Judges the deployment: lints, bounds, verdict; see :func:`accounting.audit.audit`."""
        from accounting.audit.report import audit  # noqa: PLC0415  # it stands on this module

        return audit(self, ledger=ledger, expect_head=expect_head)

    def digest(self) -> str:
        """SHA-256 (hex) of the complete declaration, defaults included."""
        body = self.model_dump(mode="python", by_alias=True)
        # Impossible values stay part of what was audited; repr tells NaN and infinities apart.
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def assumed(self) -> tuple[tuple[str, object], ...]:
        """Keys that the file left out and whose default the audit assumed, with the value."""
        return tuple(_assumed(self, ""))


# --- values out of range ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Impossible:
    """One value that no deployment can have.

    Attributes:
        key: where, such as ``phase[train].noise.multiplier``.
        found: what stands there.
        expected: what could.
    """

    key: str
    found: object
    expected: str


def impossible_values(deployment: Deployment) -> tuple[Impossible, ...]:
    """Every value out of range, each by itself and against each other; empty if all is possible."""
    found = list(_out_of_span(deployment, ""))
    found += [
        Impossible(key="guarantee.orders", found=order, expected="in [1.01, 65536]")
        for order in deployment.guarantee.orders
        if not Span(low=1.01, high=65536).holds(order)
    ]
    if not found:  # relations between numbers that are possible by themselves
        found = [one for phase in deployment.phase for one in _unrelated(deployment, phase)]
        orders = deployment.guarantee.orders
        if list(orders) != sorted(set(orders)):
            found.append(
                Impossible(
                    key="guarantee.orders", found=list(orders), expected="strictly increasing"
                )
            )
    return tuple(found)


def _out_of_span(model: BaseModel, where: str) -> Iterator[Impossible]:
    for name, info in type(model).model_fields.items():
        value, key = getattr(model, name), f"{where}{name}"
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, BaseModel):
                label = f"[{part.name}]" if isinstance(part, Phase | Release | Empirical) else ""
                yield from _out_of_span(part, f"{key}{label}.")
        for span in info.metadata:
            if isinstance(span, Span) and value is not None and not span.holds(value):
                yield Impossible(key=key, found=value, expected=str(span))


def _unrelated(deployment: Deployment, phase: Phase) -> Iterator[Impossible]:
    where = f"phase[{phase.name}]."
    size, cohort = deployment.population.size, phase.sampling.cohort
    inside = deployment.population.clients if phase.local is not None else size
    if cohort is not None and inside is not None and cohort > inside:
        yield Impossible(
            key=f"{where}sampling.cohort",
            found=cohort,
            expected=f"at most the {inside} there are: a rate of {cohort / inside:.3g} is above 1",
        )
    available = phase.sampling.available
    few = [n for n in (available, deployment.population.smallest_eligible) if n is not None]
    if few and cohort is not None and cohort > min(few):
        yield Impossible(
            key=f"{where}sampling.cohort",
            found=cohort,
            expected=f"at most the {min(few)} that are eligible in the smallest round",
        )
    if available is not None and inside is not None and available > inside:
        yield Impossible(
            key=f"{where}sampling.available",
            found=available,
            expected=f"at most the {inside} there are",
        )
    yield from _shares_of_nobody(phase, inside)
    planned, threshold = phase.planned, phase.aggregation.threshold
    if planned is not None and threshold is not None and threshold > planned:
        yield Impossible(
            key=f"{where}aggregation.threshold",
            found=threshold,
            expected=f"at most the planned cohort of {planned}",
        )
    correlated = phase.correlated
    if correlated is not None:
        steps = correlated.restart or phase.rounds
        apart = (correlated.bands if correlated.kind == "banded" else None) or correlated.min_sep
        most = (min(steps, phase.rounds) - 1) // apart + 1
        if correlated.participations > most:
            yield Impossible(
                key=f"{where}correlated.participations",
                found=correlated.participations,
                expected=f"at most {most} in {steps} rounds at least {apart} apart",
            )
        elif correlated.enforced == "none" and inside is not None:
            yield from _oftener(phase, inside=min([inside, *few]), steps=min(steps, phase.rounds))


def _shares_of_nobody(phase: Phase, inside: int | None) -> Iterator[Impossible]:
    """More shares planned than clients that can send one, so that fewer survive than assumed."""
    planned, sampling = phase.planned, phase.sampling
    most, who = inside, "there are"
    refused = phase.aggregation.threshold is not None  # sums of fewer are not opened at all
    if sampling.cohort is not None and sampling.coins == "server" and not refused:
        most, who = sampling.cohort, "in a cohort: nobody else sends a share"
    shared = phase.noise.where == "client-shares"
    if shared and planned is not None and most is not None and planned > most:
        yield Impossible(
            key=f"phase[{phase.name}].aggregation.planned",
            found=planned,
            expected=f"at most the {most} {who}",
        )


def _oftener(phase: Phase, *, inside: int, steps: int) -> Iterator[Impossible]:
    """Participations that nobody limits and that the sampling itself exceeds."""
    correlated, cohort = phase.correlated, phase.sampling.cohort
    if correlated is None or phase.sampling.kind in {"poisson", "fixed"}:
        return  # left to chance: A20 says that nobody makes sure
    batches = 1 if cohort is None else max(1, inside // cohort)
    often = -(-steps // batches)
    if correlated.participations < often:
        yield Impossible(
            key=f"phase[{phase.name}].correlated.participations",
            found=correlated.participations,
            expected=f"at least {often}: sampling of kind {phase.sampling.kind} takes some units "
            f"that often in {steps} rounds, and correlated.enforced names nobody who stops it",
        )


def known_keys() -> tuple[KeyInfo, ...]:
    """Every key, in the order of the file; the schema page is made of it."""
    return keys_of(Deployment)


def _assumed(model: BaseModel, where: str) -> Iterator[tuple[str, object]]:
    for name in type(model).model_fields:
        value, key = getattr(model, name), f"{where}{name}"
        if isinstance(value, BaseModel) and name in model.model_fields_set:
            yield from _assumed(value, f"{key}.")
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            for part in value:
                yield from _assumed(part, f"{key}[{part.name}].")
        elif name not in model.model_fields_set and value not in (None, (), ""):
            yield from _assumed_default(value, key)


def _assumed_default(value: object, key: str) -> Iterator[tuple[str, object]]:
    """A section that was left out as a whole: only its defaults that say something."""
    if not isinstance(value, BaseModel):
        yield key, value
        return
    for name in type(value).model_fields:
        inner = getattr(value, name)
        if inner not in (None, (), ""):
            yield f"{key}.{name}", inner
