"""One node's side of a session: one message in, one frame out, and a record of what comes next.

Everything is read and checked, computed on a restored copy, written to the journal; only then the
context's state is assigned, once, and the frame handed back. An error anywhere before that leaves
the old record. The protocol itself is the machine's business. The server is not trusted: what it
sends is compared with the configuration's digest, and a session that contradicts itself is over.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import numpy as np
from flwr.app import ConfigRecord, Context, MetricRecord, RecordDict
from numpy.typing import NDArray

from securefl.errors import (
    BelowThreshold,
    ConfigurationError,
    DecryptionFailed,
    InvalidSignature,
    LocalProtocolError,
    PeerProtocolError,
    RosterMismatch,
    SecureFLError,
    SnapshotError,
    WireError,
)
from securefl.flower.agreement import Agreement, agreed, check_run_config, opening
from securefl.flower.errors import Code, Refusal
from securefl.flower.logs import traceback_of
from securefl.flower.plan import Kind, Plan, TrainIn, config_of
from securefl.flower.policy import Node
from securefl.flower.records import (
    ArrayLayout,
    Envelope,
    model_digest,
    only_arrays,
    read_envelope,
    reply_content,
)
from securefl.flower.state import SessionState
from securefl.modular import RingVector
from securefl.protocols.machine import Outbound
from securefl.protocols.policy import ClientPolicy
from securefl.protocols.secagg.client import SecAggClient
from securefl.protocols.secagg.transitions import Phase
from securefl.protocols.snapshot import SECRETS, read_header
from securefl.round import Adversary, ClientId, GraphSource, Protocol, RoundConfig
from securefl.wire import decode_frame

__all__ = ["AppFunction", "answer"]

logger = logging.getLogger(__name__)

AppFunction = Callable[[Kind, RecordDict], RecordDict]
"""Runs the app's own function on its usual content; the content of its reply."""

_FIRST: Final = str(Phase.ADVERTISE_KEYS)
_CHECK_IN: Final = "check_in"
"""Under Paillier; its modules are loaded by nodes that accept it only."""

_DEALS: Final = str(Phase.SHARE_KEYS)
_MASKED: Final = str(Phase.MASKED_INPUT_COLLECTION)


def answer(content: RecordDict, context: Context, node: Node, run_app: AppFunction) -> RecordDict:
    """The reply to one message of a session.

    Args:
        content: of the message.
        context: the node's; its state is changed here and nowhere else.
        node: its rules and keys.
        run_app: trains or evaluates.

    Raises:
        Refusal: with the code that the server is told. A refusal inside a running session ends it.
    """
    envelope = read_envelope(content)
    if node.decides:
        from securefl.flower.deciding import answer_envelope  # noqa: PLC0415  # deciders only

        return reply_content(answer_envelope(envelope, node))
    if node.journal.answered(envelope.attempt, envelope.phase):
        raise Refusal(Code.ANSWERED, f"phase {envelope.phase} was answered before")
    if envelope.phase in (_FIRST, _CHECK_IN):
        frame, after = _open(envelope, node, run_app, context.run_config)
    else:
        before = _stored(envelope, context)
        try:
            frame, after = _continue(envelope, before, node, run_app, context.run_config)
        except Refusal as refusal:
            if not refusal.code.about_state:
                SessionState.tombstone(before.attempt).store(context.state)
            raise
    reply = reply_content(frame)
    checked = RecordDict()
    after.store(checked)  # refuses a state that is too large, before anything is answered
    node.journal.commit(envelope.attempt, envelope.phase)
    after.store(context.state)
    return reply


def _stored(envelope: Envelope, context: Context) -> SessionState:
    """The session that this message goes on with."""
    stored = SessionState.load(context.state)
    if stored is None or stored.attempt != envelope.attempt or stored.over:
        what = "none" if stored is None else "over" if stored.over else "another one"
        raise Refusal(
            Code.STATE_LOST,
            f"a message of session {envelope.attempt.hex()[:16]}; the stored session is {what}",
        )
    if stored.phase != envelope.phase:
        raise Refusal(
            Code.WRONG_PHASE, f"a message of phase {envelope.phase}, expected {stored.phase}"
        )
    return stored


# -- the first message ----------------------------------------------------------------------------


def _open(
    envelope: Envelope, node: Node, run_app: AppFunction, run_config: Mapping[str, object]
) -> tuple[bytes, SessionState]:
    """Checks everything that was agreed, trains if it is time, and advertises fresh keys."""
    if envelope.frame is not None:
        raise Refusal(Code.MALFORMED, "the first message of a session has no frame")
    agreement = opening(envelope)
    config, plan = agreement.config, agreement.plan
    check_run_config(plan, run_config)
    if (config.protocol is Protocol.PAILLIER) is not (envelope.phase == _CHECK_IN):
        raise Refusal(Code.MALFORMED, f"a {config.protocol.name} session opens in another phase")
    u = node.own_id(config, agreement.offered)
    policy = node.check(config, plan, u)
    node.check_beacon(config)
    if envelope.phase == _CHECK_IN:
        return _check_in(envelope, agreement, u, node)
    machine = _machine(config, u, policy, node)
    node.check_budget(config, plan)
    if plan.train_in is TrainIn.FIRST:
        machine.set_input(_input(plan, envelope, agreement.model, run_app))
    elif envelope.arrays is not None:
        raise Refusal(Code.MALFORMED, "the model came before its phase")
    frame = _only_frame(machine.start())
    return frame, SessionState(
        attempt=envelope.attempt,
        phase=str(machine.phase),
        client=u,
        config=agreement.raw_config,
        plan=agreement.raw_plan,
        model=agreement.model,
        machine=machine.snapshot(node.storage_key, SECRETS),
    )


def _check_in(
    envelope: Envelope, agreement: Agreement, u: ClientId, node: Node
) -> tuple[bytes, SessionState]:
    """Opens a session in which this node will encrypt; there is no secret to keep until then."""
    from securefl.flower import paillier_node  # noqa: PLC0415  # big integers load late

    config, plan = agreement.config, agreement.plan
    node.check_budget(config, plan)
    if plan.train_in is not TrainIn.MASKED or envelope.arrays is not None:
        raise Refusal(Code.MALFORMED, "under Paillier clients train just before they encrypt")
    return paillier_node.check_in(config, plan, u, node), SessionState(
        attempt=envelope.attempt,
        phase=paillier_node.INPUT_PHASE,
        client=u,
        config=agreement.raw_config,
        plan=agreement.raw_plan,
        model=agreement.model,
    )


def _machine(config: RoundConfig, u: ClientId, policy: ClientPolicy, node: Node) -> SecAggClient:
    try:
        return SecAggClient(
            u,
            config,
            context_digest=config.context_digest,  # compared with plan and model by the callers
            policy=policy,
            identity=node.identity,
            directory=node.directory,
        )
    except ConfigurationError as error:
        raise Refusal(Code.THRESHOLD, str(error)) from None


# -- every later message --------------------------------------------------------------------------


def _continue(
    envelope: Envelope,
    stored: SessionState,
    node: Node,
    run_app: AppFunction,
    run_config: Mapping[str, object],
) -> tuple[bytes, SessionState]:
    """One step of the machine."""
    config = stored.round_config()
    _, plan = agreed(stored.config, stored.plan)
    check_run_config(plan, run_config)
    u = node.own_id(config, stored.client)
    if config.protocol is Protocol.PAILLIER:
        return _submit(envelope, stored, config, plan, node, run_app)
    machine = _machine(config, u, node.check(config, plan, u), node)
    try:
        machine.restore(
            node.storage_key, stored.machine, sequence=read_header(stored.machine).sequence
        )
    except SnapshotError as error:
        raise Refusal(Code.STATE_LOST, str(error)) from None
    if envelope.frame is None or envelope.config is not None:
        raise Refusal(Code.MALFORMED, "a message inside a session has a frame and no configuration")
    if envelope.phase == _DEALS and config.graph_source is GraphSource.BEACON:
        machine.set_beacon(node.beacon_output(config))
    masks_now = plan.train_in is TrainIn.MASKED and envelope.phase == _MASKED
    if masks_now:
        _guarded(lambda: machine.set_input(_input(plan, envelope, stored.model, run_app)))
    elif envelope.arrays is not None:
        raise Refusal(Code.MALFORMED, "a model outside its phase")
    received = envelope.frame
    frame = _only_frame(_guarded(lambda: machine.receive(received)))
    survivors = stored.survivors or _survivors(envelope.phase, config, received)
    if envelope.phase == _MASKED:
        node.reserve(config, plan, stored.attempt)
    elif machine.phase is Phase.DONE:
        node.settle(config, plan, stored.attempt, survivors)
    if machine.phase is Phase.DONE:
        return frame, SessionState.tombstone(stored.attempt)
    return frame, SessionState(
        attempt=stored.attempt,
        phase=str(machine.phase),
        client=u,
        config=stored.config,
        plan=stored.plan,
        model=stored.model,
        machine=machine.snapshot(node.storage_key, SECRETS),
        survivors=survivors,
    )


def _submit(
    envelope: Envelope,
    stored: SessionState,
    config: RoundConfig,
    plan: Plan,
    node: Node,
    run_app: AppFunction,
) -> tuple[bytes, SessionState]:
    """Trains, encrypts, and forgets: the only step of a Paillier session after its first."""
    from securefl.flower import paillier_node  # noqa: PLC0415  # big integers load late

    u = node.own_id(config, stored.client)
    node.check(config, plan, u)
    frame = envelope.frame
    if frame is None or envelope.config is not None:
        raise Refusal(Code.MALFORMED, "a message inside a session has a frame and no configuration")
    found = _only_frame(
        _guarded(
            lambda: paillier_node.submit(
                config,
                plan,
                u,
                node,
                frame=frame,
                vector=lambda: _input(plan, envelope, stored.model, run_app),
            )
        )
    )
    # Nobody tells this node who was in the sum: it stays charged for the fewest that may be.
    node.reserve(config, plan, stored.attempt)
    return found, SessionState.tombstone(stored.attempt)


def _survivors(phase: str, config: RoundConfig, frame: bytes) -> int:
    """How many inputs are in the sum, from the first frame that says so; 0 if this one does not.

    The machine has accepted the frame: its length is right, and against an active server the list
    is the one that this node signs.
    """
    if phase == str(Phase.CONSISTENCY_CHECK):
        return int.from_bytes(decode_frame(frame).body, "little").bit_count()
    if phase == str(Phase.UNMASKING) and config.adversary is Adversary.SEMI_HONEST:
        return int.from_bytes(decode_frame(frame).body[:4], "little")
    return 0


_CODES: tuple[tuple[tuple[type[SecureFLError], ...], Code], ...] = (
    ((InvalidSignature, RosterMismatch), Code.IDENTITY),
    ((BelowThreshold, DecryptionFailed), Code.THRESHOLD),
    ((PeerProtocolError, WireError), Code.MALFORMED),
)


def _guarded(step: Callable[[], Iterable[object]]) -> Iterable[object]:
    """A call of the machine; what it refuses gets a code."""
    try:
        return step()
    except LocalProtocolError:
        raise  # this module drove the machine wrongly: nobody else's fault
    except SecureFLError as error:
        for kinds, code in _CODES:
            if isinstance(error, kinds):
                raise Refusal(code, f"{type(error).__name__}: {error}") from None
        raise


def _only_frame(out: Iterable[object]) -> bytes:
    frames = [item.frame for item in out if isinstance(item, Outbound)]
    if len(frames) != 1:
        raise Refusal(Code.INTERNAL, f"one message makes one frame, found {len(frames)}")
    return frames[0]


# -- the app's own function -----------------------------------------------------------------------


def _input(plan: Plan, envelope: Envelope, model: bytes, run_app: AppFunction) -> RingVector:
    """Runs the app on the model and encodes what it came to."""
    arrays = envelope.arrays
    if arrays is None:
        raise Refusal(Code.MALFORMED, "the message that asks for training brings no model")
    try:
        layout = ArrayLayout(arrays)
        before = layout.vector(arrays)
        digest = model_digest(arrays)
    except (ConfigurationError, ValueError, TypeError) as error:
        raise Refusal(Code.MALFORMED, f"the model: {error}") from None
    if digest != model:
        raise Refusal(Code.MALFORMED, "the model is not the one that the configuration names")
    if plan.codec is not None and plan.codec.dimension != layout.length:
        raise Refusal(
            Code.MALFORMED,
            f"the model has {layout.length} numbers, the plan {plan.codec.dimension}",
        )
    content = RecordDict(
        {plan.arrays_key: arrays, plan.config_key: ConfigRecord(config_of(plan.train_config))}
    )
    try:
        reply = run_app(plan.kind, content)
    except Refusal as refusal:
        if plan.privacy is None or refusal.code is not Code.TRAINING:
            raise
        # Whether it raises may follow from the records, and a refusal is no release that is paid
        # for: a server could ask again and again, with models of its choice.
        logger.error("training failed; zeros and noise go in its place:\n%s", traceback_of(refusal))
        return plan.encode(
            np.zeros(layout.length), weight=1, metrics={}, round_seed=envelope.attempt
        )
    update = None if plan.codec is None else _update(plan, layout, reply, before)
    reported = _reported(reply)
    try:
        weight = _weight(plan, reported)
        return plan.encode(update, weight=weight, metrics=reported, round_seed=envelope.attempt)
    except ConfigurationError as error:
        raise Refusal(Code.METRICS, str(error)) from None


def _update(
    plan: Plan, layout: ArrayLayout, reply: RecordDict, before: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Local less global model, float64[length]; zeros for a NaN under differential privacy.

    There a refusal would be a release without noise: a model on which some records lead to a NaN
    and others do not would ask about them, for nothing.
    """
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            update = layout.vector(only_arrays(reply), finite=False) - before
    except ConfigurationError as error:
        raise Refusal(Code.INVALID_UPDATE, str(error)) from None
    if np.isfinite(update).all():
        return update
    if plan.privacy is None:
        raise Refusal(Code.INVALID_UPDATE, "the update holds a NaN or an infinite number")
    logger.warning("the update holds a NaN or an infinite number: zeros and noise go in its place")
    return np.zeros_like(update)


def _reported(reply: RecordDict) -> dict[str, float]:
    """The numbers in the reply's metrics; lists are no metric that can be averaged."""
    found: dict[str, float] = {}
    for record in reply.metric_records.values():
        assert isinstance(record, MetricRecord)  # noqa: S101  # by Flower's own type
        found |= {k: v for k, v in record.items() if isinstance(v, int | float)}
    return found


def _weight(plan: Plan, reported: dict[str, float]) -> int:
    if not plan.weighted:
        return 1
    weight = reported.get(plan.weight_key)
    if weight is None or not math.isfinite(weight) or weight != int(weight):
        raise ConfigurationError(
            f"the function must report a whole number under {plan.weight_key!r}, found {weight}"
        )
    return int(weight)
