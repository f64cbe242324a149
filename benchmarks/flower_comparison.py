"""Flower's secure aggregation beside ours: same process, same cohort, same vectors' length.

Called by ``secure_aggregation.py`` where ``flwr`` is installed. Nothing of Flower is changed: its
``SecAggWorkflow`` (SecAgg+ with every client a neighbour of every other) drives its ``secagg_mod``
on every client, through a grid that passes messages on in memory. What is measured, and how the
comparison is kept fair to the peer:

* CPU time of the process, all threads, without the garbage collector. Theirs: the workflow's four
  stages less the time in the grid (server), all calls of the mod (clients). Ours: the machines.
* Left out on their side: quantisation, its inverse, conversion of results between Flower's record
  types, the strategy. Left out on both: training, the network, and serialisation of messages for
  it. (Ours packs its vectors into wire frames in this time; theirs keeps 8-byte integers.)
* "masks": expanding, adding and subtracting masks and masked vectors, both at the server.
* Both lose the round below the same number of living clients. Their server interpolates through
  all shares that arrived, ours through the threshold's number; that is how each works.
* Their mask generator is no cryptographic one (NumPy's Mersenne Twister from a seed of 32 bits),
  and their clients check no survivor list: they do less. Ours here is the semi-honest variant, the
  nearest to theirs.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from importlib import import_module, metadata, util
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]
RATIO_TARGETS = {"server": 80.0, "masks": 4.0, "client": 5.0}
WEIGHT = 1000  # Flower's default for the largest weight: a ratio of one


def installed() -> str | None:
    """Flower's version; None where it is not installed."""
    return metadata.version("flwr") if util.find_spec("flwr") else None


class Clock:
    """CPU seconds per name; functions are wrapped where they are looked up, and put back."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Counts the body under a name."""
        begin = time.process_time()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - begin

    def __getitem__(self, name: str) -> float:
        return self.seconds.get(name, 0.0)

    @contextmanager
    def watching(self, where: Any, names: Iterable[str], under: str) -> Iterator[None]:
        """Counts the time in these attributes of a module; they are called as they are."""
        originals = {name: getattr(where, name) for name in names}

        def timed(function: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(function)
            def call(*args: Any, **kwargs: Any) -> Any:
                with self.on(under):
                    return function(*args, **kwargs)

            return call

        for name, function in originals.items():
            setattr(where, name, timed(function))
        try:
            yield
        finally:
            for name, function in originals.items():
                setattr(where, name, function)


def ours(session: Callable[[], Row]) -> Row:
    """One session of ours; ``session`` runs it and returns its CPU seconds."""
    from securefl.protocols.secagg import recovery, server

    clock = Clock()
    with ExitStack() as stack:
        stack.enter_context(clock.watching(recovery, ("add_mask", "subtract_mask"), "masks"))
        stack.enter_context(clock.watching(server, ("add_packed", "reduce_in_place"), "masks"))
        row = session()
    return {
        "server": row["server_cpu_s"],
        "masks": clock["masks"],
        "client": row["client_cpu_s"],
        "bytes_up": row.get("bytes_up_per_client", 0),
    }


class Grid:
    """Flower's grid, as far as the workflow uses it: every client answers at once, in memory."""

    def __init__(self, clock: Clock, contexts: dict[int, Any], dropped: set[int], app: Any) -> None:
        self.clock, self.contexts, self.dropped, self.app = clock, contexts, dropped, app
        self.memory = Memory()
        self.up = dict.fromkeys(contexts, 0)

    def send_and_receive(
        self, messages: Iterable[Any], *, timeout: float | None = None
    ) -> list[Any]:
        """The clients' replies; an error for each that has vanished."""
        del timeout
        given = list(messages)
        uploads = any(self._stage(message) == "collect_masked_vectors" for message in given)
        if uploads:
            self.memory.begin()
        with self.clock.on("grid"):
            replies = [self._answer(message) for message in given]
        if uploads:
            self.memory.forget_peak()
        return replies

    @staticmethod
    def _stage(message: Any) -> str:
        from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key

        return str(message.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE])

    def _answer(self, message: Any) -> Any:
        from flwr.app import Error, Message
        from flwr.client.mod import secagg_mod
        from flwr.common.secure_aggregation.secaggplus_constants import Stage

        node = message.metadata.dst_node_id
        stage = self._stage(message)
        late = stage in (Stage.COLLECT_MASKED_VECTORS, Stage.UNMASK)
        if late and node in self.dropped:
            return Message(Error(0), reply_to=message)
        # The setup message is one object for all clients, and the mod takes the stage out of it.
        if stage == Stage.SETUP:
            message = self._own_copy(message)
        with self.clock.on("client"):
            reply = secagg_mod(message, self.contexts[node], self.app)
        self.up[node] += payload(reply.content)
        return reply

    @staticmethod
    def _own_copy(message: Any) -> Any:
        from flwr.app import ConfigRecord, Message, RecordDict

        records = {k: ConfigRecord(dict(v)) for k, v in message.content.config_records.items()}
        return Message(
            RecordDict(records),
            dst_node_id=message.metadata.dst_node_id,
            message_type=message.metadata.message_type,
            group_id=message.metadata.group_id,
        )


class Memory:
    """The resident set from the upload of masked vectors on; nothing where the system is mute.

    Both in one process would make the clients' memory the server's: the peak is forgotten once the
    last reply is there, and what the replies themselves take is in it from then on.
    """

    STATUS = Path("/proc/self/status")
    FORGET = Path("/proc/self/clear_refs")

    def __init__(self) -> None:
        self.baseline = 0

    def _now(self, field: str) -> int:
        if not self.STATUS.exists():
            return 0
        (line,) = [x for x in self.STATUS.read_text().splitlines() if x.startswith(field + ":")]
        return int(line.split()[1]) * 1024

    def begin(self) -> None:
        """From here on memory counts."""
        gc.collect()
        self.baseline = self._now("VmRSS")

    def forget_peak(self) -> None:
        """Starts the system's record of the peak anew."""
        gc.collect()
        if self.FORGET.exists():
            self.FORGET.write_text("5")

    def peak(self) -> int:
        """Bytes above the baseline at the most, since the last reply."""
        return self._now("VmHWM") - self.baseline


def payload(content: Any) -> int:
    """Bytes of values in a message's content; numbers count 8."""

    def size(value: Any) -> int:
        if isinstance(value, list):
            return sum(size(one) for one in value)
        return len(value) if isinstance(value, bytes | str) else 8

    total = sum(record.count_bytes() for record in content.array_records.values())
    for record in content.config_records.values():
        total += sum(size(value) for value in record.values())
    return int(total)


class Strategy:
    """Selects all clients and keeps the mean that comes out."""

    def __init__(self, nodes: list[int]) -> None:
        self.nodes = nodes
        self.mean: np.ndarray | None = None

    def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> list[Any]:
        """All clients, with an empty model: distributing it is no part of the protocol."""
        from flwr.common import FitIns, Parameters

        del server_round, parameters, client_manager
        nothing = Parameters(tensors=[], tensor_type="numpy.ndarray")
        return [(Proxy(node), FitIns(nothing, {})) for node in self.nodes]

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> tuple[None, dict]:
        """Keeps the mean, which the workflow put into every result."""
        from flwr.common import parameters_to_ndarrays

        del server_round, failures
        (self.mean,) = parameters_to_ndarrays(results[0][1].parameters)
        return None, {}

    def num_available(self) -> int:
        """For a line in Flower's log."""
        return len(self.nodes)


class Proxy:
    """A client as the workflow sees it: a number."""

    def __init__(self, node_id: int) -> None:
        self.node_id = node_id


def theirs(n: int, m: int, threshold: int, dropped: int, neighbours: int = 0) -> Row:
    """One session of Flower's workflow, its result checked against the mean of the inputs.

    Args:
        n: clients.
        m: entries.
        threshold: shares that open a secret; a client's own counts.
        dropped: clients that vanish before their masked input.
        neighbours: of SecAgg+, without the client itself; 0 for SecAgg.
    """
    from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
    from flwr.compat.common import recorddict_compat
    from flwr.server.compat.legacy_context import LegacyContext
    from flwr.server.workflow import SecAggPlusWorkflow, SecAggWorkflow
    from flwr.server.workflow.secure_aggregation import (
        secaggplus_workflow as workflow,
    )
    from flwr.supercore.task_identity import TaskIdentity

    # The package has a function of the module's name.
    mod = import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    # What Flower's runtime tells a process about itself before it runs a server.
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1 << 40, 1
    values = np.random.default_rng(0).uniform(-1, 1, size=m).astype(np.float32)  # public inputs
    clock = Clock()

    def train(message: Any, context: Any) -> Any:
        from flwr.app import Message

        del context
        result = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([values]), WEIGHT, {})
        return Message(recorddict_compat.fitres_to_recorddict(result, False), reply_to=message)

    def app(message: Any, context: Any) -> Any:
        with clock.on("client encoding"):
            return train(message, context)

    def context(node: int) -> Any:
        return Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})

    nodes = list(range(1, n + 1))
    strategy = Strategy(nodes)
    state = context(0)
    state.state.config_records["config"] = ConfigRecord({"current_round": 1})
    state.state.array_records["parameters"] = ArrayRecord()
    server = LegacyContext(state, strategy=strategy, client_manager=strategy)
    grid = Grid(clock, {node: context(node) for node in nodes}, set(nodes[:dropped]), app)
    vectors = ("pseudo_rand_gen", "parameters_addition", "parameters_subtraction", "parameters_mod")
    with ExitStack() as stack:
        watch = stack.enter_context
        watch(clock.watching(workflow, (*vectors, "bytes_to_ndarray"), "masks"))
        watch(clock.watching(workflow, ("combine_shares",), "reconstruction"))
        watch(clock.watching(workflow, ("dequantize", "ndarrays_to_parameters"), "decoding"))
        watch(clock.watching(strategy, ("configure_fit", "aggregate_fit"), "decoding"))
        watch(clock.watching(mod, ("quantize", "parameters_multiply"), "client encoding"))
        watch(clock.watching(mod, ("parameters_to_ndarrays",), "client encoding"))
        watch(clock.watching(recorddict_compat, ("recorddict_to_fitres",), "conversion"))
        with clock.on("workflow"):
            if neighbours:
                SecAggPlusWorkflow(neighbours + 1, threshold, max_weight=float(WEIGHT))(
                    grid, server
                )
            else:
                SecAggWorkflow(threshold, max_weight=float(WEIGHT))(grid, server)
    assert strategy.mean is not None, "Flower's workflow halted"
    # Stochastic rounding to 2^22 steps over [-8, 8], and a weight per client.
    assert np.abs(strategy.mean - values).max() < 1e-4
    # Conversion happens once per client in the mod and once in the workflow. Where it costs
    # anything is the mod, which still has the parameters; so it is taken off there, in full.
    encoding = clock["client encoding"] + clock["conversion"]
    return {
        "server": clock["workflow"] - clock["grid"] - clock["decoding"],
        "masks": clock["masks"],
        "reconstruction": clock["reconstruction"],
        "client": (clock["client"] - encoding) / (n - dropped),
        "bytes_up": grid.up[nodes[-1]],
        "server_peak_bytes": grid.memory.peak(),
    }


def compare(session: Callable[[], Row], *, n: int, m: int, percent: int, pairs: int) -> Row:
    """Pairs of one session of ours and one of theirs, and the ratios of their mean CPU times.

    Args:
        session: runs one of ours with these numbers and returns its row.
        n: clients; everybody shares masks with everybody.
        m: entries.
        percent: of the clients that vanish before their masked input.
        pairs: how many pairs to run; ours and theirs take turns.
    """
    dropped = percent * n // 100
    rows: list[Row] = []
    for _ in range(pairs):
        gc.collect()
        gc.disable()
        try:
            row = session()
            mine = ours(session)
            alive = row["t"] + 1  # ours holds no share of its own: t others and the client
            rows.append({"ours": mine, "flower": theirs(n, m, alive, dropped)})
        finally:
            gc.enable()

    def mean(who: str, what: str) -> float:
        return sum(row[who][what] for row in rows) / len(rows)

    ratios = {what: mean("flower", what) / mean("ours", what) for what in RATIO_TARGETS}
    return {
        "flwr": installed(),
        "n": n,
        "m": m,
        "dropped": dropped,
        "alive_needed": alive,
        "pairs": rows,
        "ratios": ratios,
        "targets": RATIO_TARGETS,
        "met": {what: ratios[what] >= target for what, target in RATIO_TARGETS.items()},
    }


def lines(found: Row) -> list[str]:
    """The comparison as a table, with what is and what is not in it."""
    text = [
        f"Flower {found['flwr']}, unmodified SecAggWorkflow: n={found['n']}, m={found['m']:,}, "
        f"{found['dropped']} dropped, all-to-all, {found['alive_needed']} must stay; CPU s",
        "                       ours      Flower    ratio   target",
    ]
    names = {"server": "server, total", "masks": "server, masks", "client": "client (mean)"}
    for what, name in names.items():
        mine, other = (
            sum(pair[who][what] for pair in found["pairs"]) / len(found["pairs"])
            for who in ("ours", "flower")
        )
        verdict = "met" if found["met"][what] else "MISSED"
        text.append(
            f"{name:16} {mine:10.4f}  {other:10.3f}   {found['ratios'][what]:6.1f}"
            f"   {found['targets'][what]:6.0f}   {verdict}"
        )
    text.append(
        "without: training, network, serialisation for it (both); quantisation, record "
        "conversion, strategy (Flower)"
    )
    return text
