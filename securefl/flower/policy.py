"""A node's own rules: ``node.toml``, which no server and no submitter of a run can change.

Flower gives a node two configurations. ``node_config`` comes from the command line of its own
SuperNode and names the file read here; ``run_config`` comes with the app from whoever submitted the
run, and nothing in this module looks at it. A run can be stricter than the floor, never weaker.
"""

from __future__ import annotations

import logging
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from securefl.errors import ConfigurationError
from securefl.flower.beacon import Beacon
from securefl.flower.errors import Code, Refusal
from securefl.flower.plan import Kind, Plan
from securefl.flower.state import Journal, MemoryJournal, SqliteJournal
from securefl.primitives.channel import sha256
from securefl.primitives.identities import Roster, load_identity, permissions_of
from securefl.primitives.signing import IdentityDirectory, IdentityKey
from securefl.protocols.policy import SIGMA, ClientPolicy, check_identities, check_membership
from securefl.protocols.secagg.params import check_policy
from securefl.round import (
    Adversary,
    ClientId,
    GraphSource,
    Protocol,
    RoundConfig,
    Usage,
    ceil_rate,
    dst,
)

if TYPE_CHECKING:
    from accounting import Event
    from securefl.flower.holder import Courier
    from securefl.flower.paillier_node import PaillierPart
    from securefl.flower.privacy import Budget
    from securefl.protocols.paillier import DeciderPolicy

__all__ = [
    "NODE_KEY",
    "SIMULATION",
    "Clear",
    "Floor",
    "Node",
    "NodeFile",
    "PaillierSection",
    "SumProtocol",
]

logger = logging.getLogger(__name__)

NODE_KEY = "securefl"
"""Key of the node file in a SuperNode's ``--node-config``."""

SIMULATION = "SECUREFL_FLOWER_SIMULATION"
"""Environment variable that lets a node without a node file take part, for simulations."""

_SCHEMA = "securefl-node/1"


class SumProtocol(StrEnum):
    """The protocols that run under Flower."""

    SECAGG = "secagg"
    SECAGG_PLUS = "secagg+"
    PAILLIER = "paillier"
    PAILLIER_THRESHOLD = "paillier-threshold"

    @property
    def wire(self) -> Protocol:
        """Its number; one for both ways to hold a Paillier key."""
        if self.encrypts:
            return Protocol.PAILLIER
        return Protocol.SECAGG if self is SumProtocol.SECAGG else Protocol.SECAGG_PLUS

    @property
    def encrypts(self) -> bool:
        """Whether inputs are encrypted under a key that somebody else opens."""
        return self in (SumProtocol.PAILLIER, SumProtocol.PAILLIER_THRESHOLD)


_ADVERSARIES = {"semi-honest": Adversary.SEMI_HONEST, "active": Adversary.ACTIVE}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PrivacyFloor(_Strict):
    """Differential privacy that the node demands; a run without it is refused."""

    unit: str = Field(pattern="^client$")
    min_noise_multiplier: float = Field(gt=0, allow_inf_nan=False)
    max_clip_norm: float = Field(gt=0, allow_inf_nan=False)
    epsilon: float = Field(gt=0, allow_inf_nan=False)
    delta: float = Field(gt=0, lt=1)


class Floor(_Strict):
    """The least that a run must promise.

    Attributes:
        adversary: the lowest accepted; "semi-honest" accepts both kinds of session.
        protocols: the accepted ones. Those with a key stand here only if somebody writes them:
            whoever trusts holders should have decided to.
        min_cohort: fewest inputs in an opened sum; at least 3.
        max_corrupt: how many clients must be assumed to help the server: a number or, as text, a
            rate. 0 assumes that nobody ever does.
        security_bits: statistical security of SecAgg+'s random graph.
        experimental_active_graph: accepts SecAgg+ against a server that may lie, for which there is
            no published proof; needs a beacon.
        max_examples: more examples than this the node never reports. A run that weighs by examples
            and allows fewer is refused before anything is trained. Without it such a run is refused
            only if the true number is too large, and that refusal tells the number to a server
            that asks again and again.
        weight_key: the one metric that may be this node's weight. A server that names another
            would learn from the refusal whether that one is a whole number in range.
        privacy: None demands no differential privacy.
    """

    adversary: str = Field(default="active", pattern="^(semi-honest|active)$")
    protocols: tuple[Annotated[SumProtocol, Field(strict=False)], ...] = Field(
        default=(SumProtocol.SECAGG, SumProtocol.SECAGG_PLUS), strict=False, min_length=1
    )
    min_cohort: int = Field(default=3, ge=3)
    max_corrupt: int | str = "1/20"
    security_bits: int = Field(default=SIGMA, ge=1)
    experimental_active_graph: bool = False
    max_examples: int | None = Field(default=None, ge=1)
    weight_key: str = Field(default="num-examples", min_length=1)
    privacy: PrivacyFloor | None = None

    @field_validator("max_corrupt")
    @classmethod
    def _rate(cls, value: int | str) -> int | str:
        if isinstance(value, int):
            if value < 0:
                raise ValueError(f"max_corrupt must be at least 0, found {value}")
        else:
            ceil_rate(value, 1)
        return value

    def least_corrupt(self, n: int) -> int:
        """How many of n clients a configuration must assume corrupt at least."""
        if isinstance(self.max_corrupt, int):
            return self.max_corrupt
        return ceil_rate(self.max_corrupt, n)

    def client_policy(self, n: int) -> ClientPolicy:
        """What the machine of a session of n clients demands in every phase."""
        least = min(self.least_corrupt(n), n)
        return ClientPolicy(
            adversary=_ADVERSARIES[self.adversary],
            gamma=Fraction(least, n),
            n_min=self.min_cohort,
            assume_no_corruption=self.max_corrupt == 0,
            sigma=self.security_bits,
            experimental_active_graph=self.experimental_active_graph,
        )


class Clear(_Strict):
    """What may be answered without any protection; by default nothing.

    Attributes:
        evaluate: the app's evaluation functions, metrics in clear.
        query: names of the app's query functions.
    """

    evaluate: bool = False
    query: tuple[str, ...] = Field(default=(), strict=False)


class PaillierSection(_Strict):
    """Which key and deciders the node trusts, and what it holds itself.

    Attributes:
        setup: the file with key and deciders (:mod:`securefl.flower.paillier_setup`).
        secret: the whole key; at the key holder only, and only in a process of its own.
        share: an opened share; at a share holder only.
        in_app: "whoever may submit runs decides in its place" lets a share holder or witness answer
            in the SuperNode's app; without it they are processes of their own, too.
        book: what this decider has agreed to; never to be deleted or restored.
        socket: where the holder's own process listens; then nothing else stands in the node file.
    """

    setup: str | None = None
    secret: str | None = None
    share: str | None = None
    in_app: Literal["whoever may submit runs decides in its place"] | None = None
    book: str | None = None
    socket: str | None = None


class NodeFile(_Strict):
    """``node.toml``; see docs/how-to/flower.md."""

    schema_: str = Field(alias="schema", pattern=f"^{_SCHEMA}$")
    identity: str | None = None
    roster: str | None = None
    journal: str | None = None
    ledger: str | None = None
    beacon: str | None = None
    floor: Floor = Floor()
    clear: Clear = Clear()
    paillier: PaillierSection | None = None

    @model_validator(mode="after")
    def _budget_covers_all(self) -> Self:
        open_doors = [*(["evaluate"] if self.clear.evaluate else []), *self.clear.query]
        if self.floor.privacy is not None and open_doors:
            raise ValueError(
                f"[floor.privacy] promises epsilon {self.floor.privacy.epsilon} for all that "
                f"leaves this node, and [clear] lets {', '.join(open_doors)} leave outside of it; "
                "take them out of [clear], or give up the floor"
            )
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node's rules and keys, loaded anew for every message.

    Attributes:
        floor, clear: see there.
        identity: long-term key; None on nodes that accept a semi-honest server only.
        roster: who is who; None likewise.
        journal: what was answered.
        storage_key: seals the state between two messages; 32 bytes.
        budget: this node's ledger; None where it demands no privacy.
        paillier: the key it trusts and its part in opening; None where it accepts no such session.
        courier: the way to the holder's own process; None where this process answers itself.
        beacon: what shapes the graph of SecAgg+ against a server that may lie; None where the node
            accepts no such session.
    """

    floor: Floor
    clear: Clear
    identity: IdentityKey | None
    roster: Roster | None
    journal: Journal
    storage_key: bytes
    budget: Budget | None = None
    paillier: PaillierPart | None = None
    courier: Courier | None = None
    beacon: Beacon | None = None

    def __repr__(self) -> str:
        return f"Node(floor={self.floor!r}, clear={self.clear!r}, <secrets>)"

    @classmethod
    def of(cls, node_config: Mapping[str, Any], *, node_id: int) -> Self:
        """The node that a SuperNode was started as.

        Args:
            node_config: what stands after ``--node-config``.
            node_id: Flower's; tells the nodes of a simulation apart, which share processes.

        Raises:
            Refusal: IDENTITY, if there is no node file and this is no simulation, or the file or
                what it names cannot be used.
        """
        path = node_config.get(NODE_KEY)
        try:
            if path is None:
                return cls._simulated(node_id)
            if not isinstance(path, str):
                raise ConfigurationError(f"{NODE_KEY} in --node-config must be a path")
            node = cls.load(Path(path))
            if node.paillier is not None:
                node.paillier.refuse_in_app()
            return node
        except ConfigurationError as error:
            raise Refusal(Code.IDENTITY, str(error)) from None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads ``node.toml``. Relative paths in it start at its own folder.

        Raises:
            ConfigurationError: if the file, or one that it names, is missing or malformed; or if a
                floor against an active server comes without identity, roster and journal.
        """
        try:
            raw = tomllib.loads(path.read_text())
        except OSError as error:
            raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{path} is no TOML: {error}") from None
        try:
            file = NodeFile(**raw)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file as a whole"
            raise ConfigurationError(f"{path}, {where}: {first['msg']}") from None
        if file.paillier is not None and file.paillier.socket is not None:
            return cls._of_courier(file, path)
        missing = [n for n in ("identity", "roster", "journal") if getattr(file, n) is None]
        if file.floor.adversary == "active" and missing:
            raise ConfigurationError(
                f'{path}: a floor of adversary = "active" (the default) needs identity, roster and '
                f"journal; missing: {', '.join(missing)}"
            )
        return cls._of_file(file, path.parent)

    @classmethod
    def _of_file(cls, file: NodeFile, folder: Path) -> Self:
        identity = None if file.identity is None else load_identity(folder / file.identity)
        roster = None if file.roster is None else Roster.load(folder / file.roster)
        if identity is not None and roster is not None:
            own = roster.member_of(identity.public)
            if own is None:
                raise ConfigurationError(
                    f"the roster {file.roster} does not list this node's identity {file.identity}"
                )
        journal: Journal = MemoryJournal()
        if file.journal is not None:
            journal = SqliteJournal(folder / file.journal)
        if identity is not None:
            storage_key = identity.derived_key(dst(Usage.STATE_EXPORT, _LABEL) + b"flower state")
        elif file.journal is not None:
            storage_key = _storage_key(folder / (file.journal + ".key"))
        else:
            raise ConfigurationError(
                "a node file names an identity or a journal, so that the state between two "
                "messages can be sealed; found neither"
            )
        budget = None
        if file.floor.privacy is not None:
            if file.ledger is None or file.journal is None:
                raise ConfigurationError(
                    "a floor of privacy needs ledger and journal: what was spent must outlive the "
                    "process"
                )
            from securefl.flower.privacy import Budget  # noqa: PLC0415  # keeps scipy out

            budget = Budget(
                folder / file.ledger,
                population="this node",
                epsilon=file.floor.privacy.epsilon,
                delta=file.floor.privacy.delta,
            )
        node = cls(
            floor=file.floor,
            clear=file.clear,
            identity=identity,
            roster=roster,
            journal=journal,
            storage_key=storage_key,
            budget=budget,
            beacon=None if file.beacon is None else Beacon.load(folder / file.beacon),
        )
        if node.floor.experimental_active_graph and node.beacon is None:
            raise ConfigurationError(
                "a floor with experimental_active_graph needs beacon, the path of beacon.toml: the "
                "graph must come from a number that the server cannot choose"
            )
        accepted = [protocol for protocol in file.floor.protocols if protocol.encrypts]
        if file.paillier is None and not accepted:
            return node
        from securefl.flower.paillier_node import PaillierPart  # noqa: PLC0415  # big integers load late

        part = PaillierPart.load(file.paillier, folder, roster=roster, identity=identity)
        kind = SumProtocol.PAILLIER_THRESHOLD if part.setup.threshold else SumProtocol.PAILLIER
        if kind not in accepted:
            raise ConfigurationError(
                f"the setup is for protocol {kind.value!r}, the floor accepts "
                f"{[protocol.value for protocol in file.floor.protocols]}: write it there, or "
                "leave [paillier] out"
            )
        return replace(node, paillier=part)

    @classmethod
    def _of_courier(cls, file: NodeFile, path: Path) -> Self:
        """A node that carries messages to its holder's process and knows nothing else."""
        from securefl.flower.holder import Courier  # noqa: PLC0415  # where it is needed only

        given = sorted(file.model_fields_set - {"schema_", "paillier"})
        assert file.paillier is not None  # noqa: S101  # the caller looked
        given += sorted(file.paillier.model_fields_set - {"socket"})
        if given:
            raise ConfigurationError(
                f"{path} names a holder's socket and {given}: identity, keys, floor and files of a "
                "holder belong into the file of its own process, out of the app's reach"
            )
        assert file.paillier.socket is not None  # noqa: S101  # the caller looked
        return cls(
            floor=file.floor,
            clear=file.clear,
            identity=None,
            roster=None,
            journal=MemoryJournal(),
            storage_key=os.urandom(32),
            courier=Courier(path.parent / file.paillier.socket),
        )

    @classmethod
    def _simulated(cls, node_id: int) -> Self:
        if os.environ.get(SIMULATION) != "1":
            raise ConfigurationError(
                f"this node has no policy: start the SuperNode with --node-config "
                f"'{NODE_KEY}=\"/path/to/node.toml\"' (docs/how-to/flower.md)"
            )
        logger.warning("SIMULATION (%s=1): no identity, no floor, nothing is protected", SIMULATION)
        return cls(
            floor=Floor(adversary="semi-honest", max_corrupt=0),
            clear=Clear(),
            identity=None,
            roster=None,
            journal=_SIMULATED.setdefault(node_id, MemoryJournal()),
            # Actors of a simulation hand their states to each other: one key for all.
            storage_key=sha256(b"securefl flower simulation"),
        )

    # -- the floors -------------------------------------------------------------------------------

    def own_id(self, config: RoundConfig, offered: int) -> ClientId:
        """This node's id in a session: the roster's against a server that may lie.

        Raises:
            Refusal: IDENTITY, if such a session finds no identity here.
        """
        if config.adversary is not Adversary.ACTIVE:
            return ClientId(offered)
        if self.identity is None or self.roster is None:
            raise Refusal(
                Code.IDENTITY, "a session against an active server needs identity and roster"
            )
        member = self.roster.member_of(self.identity.public)
        if member is None:
            raise Refusal(Code.IDENTITY, "the roster does not list this node's identity")
        return member.client

    def check(self, config: RoundConfig, plan: Plan, u: ClientId) -> ClientPolicy:
        """Whether a configuration meets the floors; what the machine is to demand.

        Raises:
            Refusal: with the code of the first floor that is not met.
        """
        floor = self.floor
        self._check_floor(config, plan)
        if plan.weighted:
            _check_weights(plan, floor)
        policy = floor.client_policy(config.n)
        if config.protocol is Protocol.PAILLIER:
            from securefl.flower.paillier_node import check_numbers  # noqa: PLC0415  # big integers load late

            check_numbers(config, plan, self, policy)
        else:
            _refuse(Code.THRESHOLD, lambda: check_policy(config, policy))
        _refuse(Code.COHORT, lambda: check_membership(u, config, config.context_digest))
        if config.adversary is Adversary.ACTIVE:
            _refuse(
                Code.IDENTITY, lambda: check_identities(u, config, self.identity, self.directory)
            )
        return policy

    def check_beacon(self, config: RoundConfig) -> None:
        """Whether nobody can know yet what will shape the graph; before anything is trained.

        Raises:
            Refusal: BEACON.
        """
        if config.graph_source is GraphSource.BEACON:
            beacon = self._known_beacon()
            _refuse(Code.BEACON, lambda: beacon.check_future(beacon.round_of(config.graph_value)))

    def beacon_output(self, config: RoundConfig) -> bytes:
        """What shapes the graph; waits a little for this site's copy of it.

        Raises:
            Refusal: BEACON, if it is not there.
        """
        beacon = self._known_beacon()
        try:
            number = beacon.round_of(config.graph_value)
            # From now, whatever the round's time: a server that asks early is not waited for.
            found = beacon.awaited(number, seconds=_BEACON_SECONDS)
        except ConfigurationError as error:
            raise Refusal(Code.BEACON, str(error)) from None
        return found

    def _known_beacon(self) -> Beacon:
        if self.beacon is None:
            raise Refusal(Code.BEACON, "a beacon shapes the graph, and the node file names none")
        return self.beacon

    def check_opening(self, config: RoundConfig, plan: Plan) -> DeciderPolicy:
        """Whether a decider's floor is met by a configuration; what its machine is to demand.

        Raises:
            Refusal: with the code of the first floor that is not met.
        """
        from securefl.protocols.paillier import DeciderPolicy  # noqa: PLC0415  # deciders only

        self._check_floor(config, plan)
        corrupt = self.floor.least_corrupt(config.n)
        return DeciderPolicy(
            min_clients=max(self.floor.min_cohort, corrupt + 2), max_colluding_clients=corrupt
        )

    def _check_floor(self, config: RoundConfig, plan: Plan) -> None:
        """What nodes with data and deciders demand alike."""
        floor = self.floor
        if config.protocol not in {protocol.wire for protocol in floor.protocols}:
            raise Refusal(
                Code.ADVERSARY,
                f"protocol {config.protocol.name} is not among the node's {list(floor.protocols)}",
            )
        if config.adversary < _ADVERSARIES[floor.adversary]:
            raise Refusal(
                Code.ADVERSARY,
                f"the node demands protection against an {floor.adversary} server, the "
                f"configuration offers {config.adversary.name}",
            )
        if config.adversary is Adversary.ACTIVE and not self.journal.durable:
            raise Refusal(
                Code.STATE_LOST, "without a journal on the disk only semi-honest sessions run"
            )
        if config.n_min < floor.min_cohort:
            raise Refusal(
                Code.COHORT,
                f"the node hides among at least {floor.min_cohort} inputs, the configuration "
                f"allows {config.n_min}",
            )
        self._check_privacy(config, plan)
        if floor.least_corrupt(config.n) > config.A:
            raise Refusal(
                Code.THRESHOLD,
                f"the node assumes at least {floor.least_corrupt(config.n)} corrupt clients among "
                f"{config.n}, the configuration {config.A}",
            )

    def _check_privacy(self, config: RoundConfig, plan: Plan) -> None:
        """Noise, clip norm and what they rest on."""
        terms, floor = plan.privacy, self.floor.privacy
        if terms is not None and terms.honest_shares > config.n_min - config.A:
            raise Refusal(
                Code.PRIVACY,
                f"the noise needs {terms.honest_shares} honest shares, the configuration leaves "
                f"{config.n_min} - {config.A}",
            )
        if floor is None:
            return
        if terms is None or plan.codec is None:
            raise Refusal(
                Code.PRIVACY,
                f"the node demands differential privacy (epsilon {floor.epsilon}), this "
                f"{plan.kind} has none",
            )
        if terms.noise_multiplier < floor.min_noise_multiplier:
            raise Refusal(
                Code.PRIVACY,
                f"the node demands a noise multiplier of {floor.min_noise_multiplier}, the plan "
                f"has {terms.noise_multiplier}",
            )
        if plan.codec.clip_norm > floor.max_clip_norm:
            raise Refusal(
                Code.PRIVACY,
                f"the node's updates may be {floor.max_clip_norm} long, the plan allows "
                f"{plan.codec.clip_norm}",
            )

    # -- the node's own budget --------------------------------------------------------------------

    def check_budget(self, config: RoundConfig, plan: Plan) -> None:
        """Whether the node's ledger covers this session, before anything is trained.

        Raises:
            Refusal: PRIVACY.
        """
        if self.budget is not None and not self.budget.fits(_worst(config, plan)):
            raise Refusal(Code.PRIVACY, "the node's own budget does not cover this session")

    def reserve(self, config: RoundConfig, plan: Plan, attempt: bytes) -> None:
        """Charges the worst sum that may be opened, before the masked vector leaves.

        Raises:
            Refusal: PRIVACY, if it does not fit.
        """
        if self.budget is None:
            return
        from accounting import AccountingError  # noqa: PLC0415  # keeps scipy out

        try:
            self.budget.reserve(_worst(config, plan), number=config.round_id, key=attempt.hex())
        except AccountingError as error:
            raise Refusal(Code.PRIVACY, str(error)) from None

    def settle(self, config: RoundConfig, plan: Plan, attempt: bytes, survivors: int) -> None:
        """Charges what the survivors make of it, before this node helps to open the sum.

        Raises:
            Refusal: PRIVACY, if that is more than was reserved; the reservation stays.
        """
        if self.budget is None:
            return
        from accounting import AccountingError, Evidence  # noqa: PLC0415  # keeps scipy out

        evidence = Evidence(
            planned=config.n,
            survivors=survivors,
            colluding_assumed=config.A,
            protocol=config.protocol.name.lower(),
            transcript=attempt.hex(),
            modulus=config.modulus,
        )
        try:
            event = plan.event(survivors, config.A)
            self.budget.settle(event, key=attempt.hex(), evidence=evidence)
        except (AccountingError, ConfigurationError) as error:
            raise Refusal(Code.PRIVACY, str(error)) from None

    @property
    def directory(self) -> IdentityDirectory | None:
        """Everybody's keys."""
        return None if self.roster is None else self.roster.directory()

    @property
    def decides(self) -> bool:
        """Whether this node opens or vouches, and has no data."""
        return self.courier is not None or (self.paillier is not None and self.paillier.decides)

    def allows_clear(self, kind: str, action: str) -> bool:
        """Whether the app's own function may answer unprotected."""
        if self.decides:
            return False
        if kind == Kind.EVALUATE:
            return self.clear.evaluate
        return kind == "query" and action in self.clear.query


_BEACON_SECONDS = 20.0
"""How long a node waits for its site's copy of an output that the server has."""

_LABEL = Protocol.SECAGG
"""The protocol in labels of what belongs to the node and to no session."""

_SIMULATED: dict[int, Journal] = {}
"""Of the nodes that this process has played; it ends with the simulation."""


def _worst(config: RoundConfig, plan: Plan) -> Event:
    """The dearest sum of a session: with the fewest survivors that anybody opens."""
    return plan.event(config.n_min, config.A)


def _check_weights(plan: Plan, floor: Floor) -> None:
    if plan.weight_key != floor.weight_key:
        raise Refusal(
            Code.METRICS,
            f"the node weighs by {floor.weight_key!r}, the plan by {plan.weight_key!r}",
        )
    most = floor.max_examples
    if most is not None and plan.max_weight < most:
        raise Refusal(
            Code.METRICS,
            f"the node has up to {most} examples, the plan allows {plan.max_weight}: whether they "
            "fit would tell how many there are",
        )


def _refuse(code: Code, check: Any) -> None:
    try:
        check()
    except ConfigurationError as error:
        raise Refusal(code, str(error)) from None


def _storage_key(path: Path) -> bytes:
    """A random key beside the journal, for nodes without an identity; made at the first use."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(os.urandom(32))
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        pass
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from None
    complaint = permissions_of(path)
    if complaint is not None:
        raise ConfigurationError(complaint)
    key = path.read_bytes()
    if len(key) != 32:
        raise ConfigurationError(f"{path} must hold 32 bytes, found {len(key)}; delete it")
    return key
