"""Worker processes that train and encode for the clients of a simulated run.

Training is where a simulated round spends its time, and clients do not depend on each other: so
processes share them out, while the engine's own process runs the machines, the ledgers and the
server. Every worker has one model. Records, the global model and the results lie in memory that all
processes see; what is sent from one to the other per client are a few numbers. Processes are
spawned, never forked: torch does not survive a fork with its threads.

Work is handed out before it is asked for, to whoever is free, at most :data:`MOST_SLOTS` clients
ahead. A client's result does not depend on which worker made it, but for its secret coins: each
worker draws its own from the operating system. All this isolates no client from another, as little
as one process would.

A worker that dies ends the run with :class:`~securefl.errors.WorkerLost`. The round's reservations
then stay charged, as after any crash.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Lock
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from securefl.config import RunConfig, RunSpec
from securefl.encoding.codec import Codec, CodecSpec, UpdateCodec
from securefl.errors import ConfigurationError, WorkerLost
from securefl.modular import RingVector, ring_dtype
from securefl.pipeline import Prepared, RoundWork, encode_update
from securefl.primitives.prg import SecureRandom
from securefl.round import ClientId
from securefl.simulation.client_work import make_model, make_trainer
from securefl.simulation.insecure import InsecureRandomness
from securefl.simulation.plain import PlainRun
from securefl.simulation.plans import PrivacyPlan, SharedPlan
from securefl.simulation.shared import SharedRun
from securefl.training.data import Dataset
from securefl.training.local import ModelUpdate, Trainer, TrainingDiverged, limit_threads
from securefl.training.partition import Partition

__all__ = ["MOST_SLOTS", "ElsewhereTrainer", "WorkerPool"]

MOST_SLOTS = 128
"""Results that may wait to be asked for. Their announcements fit into a pipe that nobody reads."""

_RESULT_BYTES = 64 << 20  # at most for all slots together, if that leaves a few per worker
_SLOTS_PER_WORKER = 4
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

Senders = Callable[[int, Sequence[ClientId]], Sequence[ClientId]]
"""Who of the clients of a round will be asked for an input, as far as that is known before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ElsewhereTrainer:
    """Stands for a client whose training is a worker's; it holds no records."""

    client: ClientId

    def train(self, start: NDArray[np.float32], *, round_index: int) -> ModelUpdate:
        """Refuses."""
        raise ConfigurationError(
            f"client {self.client} trains in a worker process (simulation.workers), not in this "
            f"one: round {round_index} was begun without them"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Blueprint:
    """What crosses into a worker once: everything but the arrays."""

    config: RunConfig
    spec: RunSpec
    plan: PrivacyPlan | SharedPlan | None
    insecure: InsecureRandomness | None
    codec: CodecSpec
    records: Mapping[str, Any]  # fields of the data set besides its arrays
    shape: tuple[int, ...]
    counts: tuple[int, ...]
    partition: Mapping[str, Any]
    start_length: int
    slots: int
    values_length: int
    entries: int
    modulus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shared:
    """Memory that all processes see: plain bytes, which have no name that could be left behind."""

    x: Any
    y: Any
    start: Any
    values: Any
    words: Any

    def arrays(self, plan: _Blueprint) -> _Arrays:
        """The same as arrays."""
        records = (sum(plan.counts), *plan.shape)
        word = ring_dtype(plan.modulus)
        return _Arrays(
            x=np.frombuffer(self.x, dtype=np.float32, count=int(np.prod(records))).reshape(records),
            y=np.frombuffer(self.y, dtype=np.int64, count=records[0]),
            start=np.frombuffer(self.start, dtype=np.float32, count=plan.start_length),
            # Sums of clipped gradients have eight bytes per entry, other updates use half of them.
            values=np.frombuffer(self.values, dtype=np.float64).reshape(plan.slots, -1),
            words=np.frombuffer(self.words, dtype=word).reshape(plan.slots, -1),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arrays:
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    start: NDArray[np.float32]
    values: NDArray[np.float64]
    words: NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """One client's part of a round."""

    client: ClientId
    slot: int
    round_index: int
    encodes: bool
    clip_norm: float | None
    codec_digest: bytes
    round_seed: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Done:
    """What lies in a slot now."""

    client: ClientId
    slot: int
    seconds: Mapping[str, float]
    weight: int
    share: float
    examples: int
    steps: int
    metrics: Mapping[str, float]
    length: int
    dtype: str
    blank: bool  # all zeros: nothing was written


@dataclass(frozen=True, slots=True, kw_only=True)
class _Diverged:
    """Training left the finite numbers."""

    client: ClientId
    slot: int
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failed:
    """Anything else went wrong; the last slot is -1 if nothing was begun."""

    client: ClientId
    slot: int
    refused: bool  # a ConfigurationError
    message: str
    trace: str


_READY = "ready"
_Result = _Done | _Diverged | _Failed


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _ByOwner(Dataset):
    """Records in the order of their owners: what belongs to one client is a view, no copy."""

    def subset(self, indices: NDArray[np.int64]) -> Dataset:
        """The records at ``indices``; a view where these are consecutive."""
        if not len(indices) or not bool((np.diff(indices) == 1).all()):
            # The plain super() does not work in a class with slots.
            return Dataset.subset(self, indices)
        part = slice(int(indices[0]), int(indices[-1]) + 1)
        return Dataset(name=self.name, x=self.x[part], y=self.y[part], classes=self.classes)


# -- the worker's side ----------------------------------------------------------------------------


class _Worker:
    """One process' part: a model, and the trainers of the clients it has met so far."""

    def __init__(self, plan: _Blueprint, arrays: _Arrays) -> None:
        self._plan, self._arrays = plan, arrays
        train = _ByOwner(x=arrays.x, y=arrays.y, **plan.records)
        self._train = train
        ends = np.cumsum(plan.counts)
        self._partition = Partition(
            indices=tuple(
                np.arange(end - count, end) for end, count in zip(ends, plan.counts, strict=True)
            ),
            **plan.partition,
        )
        config, spec, agreed = plan.config, plan.spec, plan.plan
        self._model = make_model(config, spec, train)
        self._shared = (
            SharedRun(config, agreed, insecure=plan.insecure)
            if isinstance(agreed, SharedPlan)
            else None
        )
        self._plain = (
            PlainRun(config, self._model, train, self._partition, seed=spec.seed)
            if agreed is None
            else None
        )
        self._codec = UpdateCodec(plan.codec)
        self._trainers: dict[ClientId, Trainer] = {}

    def do(self, task: _Task) -> _Result:
        """One client's part, into its slot."""
        try:
            return self._do(task)
        except TrainingDiverged as error:
            return _Diverged(client=task.client, slot=task.slot, what=error.what)
        except Exception as error:  # told to the engine, which raises it there
            return _failed(error, task.client, task.slot)

    def _do(self, task: _Task) -> _Done:
        arrays, seconds = self._arrays, {}
        begin = time.process_time()
        start = arrays.start[:]
        start.flags.writeable = False
        update = self._trainer(task.client).train(start, round_index=task.round_index)
        seconds["train"] = time.process_time() - begin
        if task.encodes:
            begin = time.process_time()
            vector = encode_update(
                self._codec_of(task),
                update,
                round_seed=task.round_seed,
                random_bytes=self._coins(task),
            )
            arrays.words[task.slot][:] = vector.values
            seconds["encode"] = time.process_time() - begin
        blank = update.weight == 0 and not update.values.any()
        if not blank:
            _view(arrays.values[task.slot], update.values.dtype, len(update.values))[:] = (
                update.values
            )
        return _Done(
            client=task.client,
            slot=task.slot,
            seconds=seconds,
            weight=update.weight,
            share=update.share,
            examples=update.examples,
            steps=update.steps,
            metrics=dict(update.metrics),
            length=len(update.values),
            dtype=update.values.dtype.str,
            blank=blank,
        )

    def _trainer(self, client: ClientId) -> Trainer:
        # Records are views, so a trainer is small; what it checks once need not be checked again.
        if client not in self._trainers:
            agreed = self._plan.plan
            self._trainers[client] = make_trainer(
                client,
                config=self._plan.config,
                seed=self._plan.spec.seed,
                model=self._model,
                train=self._train,
                partition=self._partition,
                plan=agreed if isinstance(agreed, PrivacyPlan) else None,
                plain=self._plain,
                shared=self._shared,
            )
        return self._trainers[client]

    def _codec_of(self, task: _Task) -> Codec:
        codec: Codec = self._codec
        if self._shared is not None:
            if task.clip_norm is not None:
                self._shared.clip_norm = task.clip_norm
            codec = self._shared.codec
        if codec.digest() != task.codec_digest:
            raise ConfigurationError(
                "a worker has another codec than the round: do not change the engine's codec or "
                "plan while it runs with simulation.workers > 1"
            )
        return codec

    def _coins(self, task: _Task) -> Callable[[int], bytes]:
        if self._shared is not None:
            return self._shared.noise_source(task.client, task.round_index)
        return SecureRandom().random_bytes


def _serve(
    plan: _Blueprint, shared: _Shared, tasks: Connection, turn: Lock, answers: Connection
) -> None:
    """A worker's life: it ends when the engine closes the queue of tasks, or is gone."""
    # Ctrl-C goes to all processes of a terminal; what becomes of the round is for the engine.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limit_threads()
    try:
        worker = _Worker(plan, shared.arrays(plan))
    except Exception as error:  # told to the engine, which raises it there
        answers.send(_failed(error, ClientId(-1), -1))
        return
    answers.send(_READY)
    try:
        while True:
            with turn:
                task = tasks.recv()
            answers.send(worker.do(task))
    except (EOFError, OSError):
        return


def _failed(error: Exception, client: ClientId, slot: int) -> _Failed:
    return _Failed(
        client=client,
        slot=slot,
        refused=isinstance(error, ConfigurationError),
        message=f"{error}" if isinstance(error, ConfigurationError) else repr(error),
        trace=traceback.format_exc(),
    )


def _view(slot: NDArray[np.float64], dtype: Any, length: int) -> NDArray[Any]:
    viewed: NDArray[Any] = slot.view(dtype)
    return viewed[:length]


# -- the engine's side ----------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _Round:
    """Where a round's work stands."""

    work: RoundWork
    codec_digest: bytes
    clip_norm: float | None
    pending: deque[ClientId]
    free: list[int]
    running: set[ClientId] = field(default_factory=set)
    ready: dict[ClientId, _Result] = field(default_factory=dict)
    spilled: dict[ClientId, Prepared] = field(default_factory=dict)
    asked: set[ClientId] = field(default_factory=set)


class WorkerPool:
    """Processes for the clients of one run. Close it, or use it in a ``with``.

    Args:
        config: of the sweep; ``simulation.workers`` says how many processes.
        spec: which run of it.
        plan: what the clients agreed to; None without differential privacy.
        insecure: repeatable coins, for tests.
        codec: of runs whose clients share no noise.
        train: all training records.
        partition: who holds which of them.
        start_length: entries of what clients start from.
        values_length: entries of an update.
        entries: of an encoded vector.
        modulus: of its ring.
        senders: who will be asked; others are served too, but only once they are asked for.

    Raises:
        WorkerLost: if a process does not come up. A program that starts a run must be importable
            without starting one: ``if __name__ == "__main__":``.
    """

    def __init__(
        self,
        config: RunConfig,
        spec: RunSpec,
        *,
        plan: PrivacyPlan | SharedPlan | None,
        insecure: InsecureRandomness | None,
        codec: CodecSpec,
        train: Dataset,
        partition: Partition,
        start_length: int,
        values_length: int,
        entries: int,
        modulus: int,
        senders: Senders = lambda _round, clients: clients,
    ) -> None:
        self._senders = senders
        workers = config.simulation.workers
        row = 8 * values_length + ring_dtype(modulus)().itemsize * entries
        self._slots = slots = min(
            MOST_SLOTS, max(_SLOTS_PER_WORKER * workers, _RESULT_BYTES // row)
        )
        order = np.concatenate(partition.indices)
        self._blueprint = _Blueprint(
            config=config,
            spec=spec,
            plan=plan,
            insecure=insecure,
            codec=codec,
            records={"name": train.name, "classes": train.classes},
            shape=train.input_shape,
            counts=tuple(len(part) for part in partition.indices),
            partition={"kind": partition.kind, "seed": partition.seed},
            start_length=start_length,
            slots=slots,
            values_length=values_length,
            entries=entries,
            modulus=modulus,
        )
        self._context = get_context("spawn")
        self._memory = _Shared(
            x=self._bytes(train.x.nbytes),
            y=self._bytes(train.y.nbytes),
            start=self._bytes(4 * start_length),
            values=self._bytes(8 * values_length * slots),
            words=self._bytes(ring_dtype(modulus)().itemsize * entries * slots),
        )
        self._arrays = self._memory.arrays(self._blueprint)
        np.take(train.x, order, axis=0, out=self._arrays.x)
        np.take(train.y, order, out=self._arrays.y)
        self._round: _Round | None = None
        self._broken = False
        self._start(workers)

    def _bytes(self, count: int) -> Any:
        return self._context.RawArray(ctypes.c_ubyte, max(8, -(-count // 8) * 8))

    def _start(self, workers: int) -> None:
        tasks, self._tasks = self._context.Pipe(duplex=False)
        turn = self._context.Lock()
        self._answers: list[Connection] = []
        self._processes: list[SpawnProcess] = []
        try:
            for _ in range(workers):
                mine, theirs = self._context.Pipe(duplex=False)
                process = self._context.Process(
                    target=_serve,
                    args=(self._blueprint, self._memory, tasks, turn, theirs),
                    daemon=True,
                )
                with _quiet_start():
                    process.start()
                theirs.close()
                self._answers.append(mine)
                self._processes.append(process)
            tasks.close()
            for answers in self._answers:
                self._await_ready(answers)
        except BaseException:
            self.close()
            raise

    def _await_ready(self, answers: Connection) -> None:
        try:
            told = answers.recv()
        except (EOFError, OSError):
            raise self._lost("did not come up") from None
        if isinstance(told, _Failed):
            raise self._error_of(told)

    # -- rounds ----------------------------------------------------------------------------------

    @contextmanager
    def prepare(
        self, work: RoundWork, *, clip_norm: float | None = None
    ) -> Iterator[Callable[[ClientId], Prepared]]:
        """Begins a round's work; the function waits for one client's part, once per client.

        Args:
            work: what is to be done; see :data:`securefl.pipeline.Prepare`.
            clip_norm: of the round, where it moves.

        Raises:
            TrainingDiverged, ConfigurationError: what a client's own work raised, when that client
                is asked for.
            WorkerLost: a process died, or an earlier round ended in the middle.
        """
        if self._broken or self._round is not None:
            raise WorkerLost("the worker processes are in the middle of another round; start anew")
        if self._dead():
            raise self._lost("ended between two rounds")
        self._arrays.start[:] = work.vector
        self._round = current = _Round(
            work=work,
            codec_digest=b"" if work.codec is None else work.codec.digest(),
            clip_norm=clip_norm,
            pending=deque(self._senders(work.round_index, work.clients)),
            free=list(range(self._slots)),
        )
        self._broken = True  # until the round has ended in order
        self._hand_out(current)
        try:
            yield lambda client: self._of(current, client)
        except Exception:
            if not self._dead():
                self._drain(current)
            raise
        self._drain(current)

    def _of(self, current: _Round, client: ClientId) -> Prepared:
        if client not in current.work.clients or client in current.asked:
            raise ConfigurationError(
                f"client {client} takes no part in round {current.work.round_index}, or was asked "
                "before: an encoded update is used once"
            )
        current.asked.add(client)
        if client in current.spilled:
            return current.spilled.pop(client)
        if client not in current.running and client not in current.ready:
            self._first(current, client)
        while client not in current.ready:
            self._collect(current)
        made = self._take(current, client)
        self._hand_out(current)
        return made

    def _first(self, current: _Round, client: ClientId) -> None:
        """A client that was not expected yet goes first; a result that waits makes room for it."""
        if client in current.pending:
            current.pending.remove(client)
        current.pending.appendleft(client)
        while not current.free:
            waiting = [c for c, result in current.ready.items() if isinstance(result, _Done)]
            if waiting:
                current.spilled[waiting[0]] = self._take(current, waiting[0])
            else:
                self._collect(current)
        self._hand_out(current)

    def _hand_out(self, current: _Round) -> None:
        """Fills the queue of tasks as far as there is room for results."""
        work = current.work
        while current.free and current.pending:
            client = current.pending.popleft()
            current.running.add(client)
            task = _Task(
                client=client,
                slot=current.free.pop(),
                round_index=work.round_index,
                encodes=work.codec is not None,
                clip_norm=current.clip_norm,
                codec_digest=current.codec_digest,
                round_seed=work.round_seed,
            )
            try:
                self._tasks.send(task)
            except OSError:
                raise self._lost("ended") from None

    def _collect(self, current: _Round) -> None:
        """Waits for news from any worker and takes note of all there are."""
        news = wait([*self._answers, *(process.sentinel for process in self._processes)])
        found = False
        for answers in self._answers:
            if answers in news:
                try:
                    result = answers.recv()
                except (EOFError, OSError):
                    continue
                found = True
                current.running.discard(result.client)
                current.ready[result.client] = result
                if not isinstance(result, _Done):
                    # Nothing lies in its slot: kept until somebody asks, it could be the last one.
                    current.free.append(result.slot)
        if not found:
            raise self._lost("ended")

    def _take(self, current: _Round, client: ClientId) -> Prepared:
        """A finished client's result, out of its slot."""
        result = current.ready.pop(client)
        if isinstance(result, _Diverged):
            raise TrainingDiverged(
                client=client, round_index=current.work.round_index, what=result.what
            )
        if isinstance(result, _Failed):
            raise self._error_of(result)
        current.free.append(result.slot)
        if result.blank:
            values = np.zeros(result.length, dtype=result.dtype)
        else:
            values = _view(
                self._arrays.values[result.slot], np.dtype(result.dtype), result.length
            ).copy()
        vector = None
        if current.work.codec is not None:
            words = self._arrays.words[result.slot].copy()
            vector = RingVector(words, self._blueprint.modulus)
        update = ModelUpdate(
            values=values,
            weight=result.weight,
            share=result.share,
            examples=result.examples,
            steps=result.steps,
            metrics=result.metrics,
        )
        return Prepared(update=update, vector=vector, seconds=result.seconds)

    def _drain(self, current: _Round) -> None:
        """Waits for what is under way; results that nobody asked for are forgotten."""
        current.pending.clear()
        while current.running:
            self._collect(current)
        self._round, self._broken = None, False

    # -- the end ---------------------------------------------------------------------------------

    def _dead(self) -> list[SpawnProcess]:
        return [process for process in self._processes if not process.is_alive()]

    def _lost(self, how: str) -> WorkerLost:
        for process in self._processes:
            process.join(0.5)  # a pipe is closed a moment before its process is gone
        codes = [process.exitcode for process in self._dead()]
        return WorkerLost(
            f"a worker process {how}: {len(codes)} of {len(self._processes)} are gone, exit codes "
            f"{codes}; -9 is often a lack of memory (fewer simulation.workers need less), 1 a "
            'program that starts its run without if __name__ == "__main__". What was reserved for '
            "the round stays charged; the run can be resumed"
        )

    def _error_of(self, failed: _Failed) -> Exception:
        if failed.refused:
            return ConfigurationError(failed.message)
        return WorkerLost(
            f"a worker process failed at client {failed.client}: {failed.message}\n{failed.trace}"
        )

    def close(self) -> None:
        """Ends the processes, whatever they are doing: they keep nothing that is needed later."""
        self._broken = True
        self._tasks.close()
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()
        for answers in self._answers:
            answers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@contextmanager
def _quiet_start() -> Iterator[None]:
    """A child that starts in here has one thread per library, and Ctrl-C blocked from the start."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    masks = hasattr(signal, "pthread_sigmask")
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if masks else set()
    try:
        yield
    finally:
        if masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
