"""Malformed frames in the attackers' harness: whatever a client is sent, no share leaves it.

Active sessions: everything in a roster and in an unmask request is bound by signatures, so any
change at all must be refused; of a survivor notice another list may come out, which is signed.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from hypothesis import given, settings
from hypothesis import strategies as st

from securefl.protocols.secagg.transitions import MessageType, Phase
from securefl.wire import decode_frame

Program = Callable[[str], ModuleType]
N = 10
MAY_LEAVE = {
    "share_keys": {MessageType.ABORT},
    "consistency_check": {MessageType.ABORT, MessageType.SURVIVOR_SIGNATURE},
    "unmasking": {MessageType.ABORT},
}


def flip(frame: bytes, at: int, bit: int) -> bytes:
    changed = bytearray(frame)
    changed[at % len(frame)] ^= 1 << bit
    return bytes(changed)


changes = st.one_of(
    st.builds(lambda at, bit: lambda f: flip(f, at, bit), st.integers(0, 5000), st.integers(0, 7)),
    st.builds(lambda cut: lambda f: f[: cut % len(f)], st.integers(0, 5000)),
    st.binary(min_size=1, max_size=40).map(lambda extra: lambda f: f + extra),
    st.binary(max_size=200).map(lambda raw: lambda f: raw),
    st.just(lambda f: pickle.dumps({"alive": f})),
    st.just(lambda f: f * 2),
)


@given(
    phase=st.sampled_from(sorted(MAY_LEAVE)),
    each=st.lists(changes, min_size=N, max_size=N),
)
@settings(max_examples=10, deadline=None)
def test_no_share_leaves_a_client_that_was_sent_a_changed_frame(
    program: Program, phase: str, each: list[Callable[[bytes], bytes]]
) -> None:
    stage_module = program("attackers.stage")
    with tempfile.TemporaryDirectory() as folder:
        case = stage_module.Case(seed=0, path=Path(folder) / "t.bin")
        stage = stage_module.Stage.of(stage_module.Plan(n=N, t=7, D=2), case=case)
        stage.play(phase)
        for u, change in zip(stage.ids, each, strict=True):
            genuine = stage.inbox[u]
            sent = change(genuine)
            if sent == genuine:
                continue
            refused = len(stage.refused)
            answers = stage.deliver(u, sent)
            left = {decode_frame(frame).type for frame in answers}
            assert left <= MAY_LEAVE[phase]
            assert len(stage.refused) > refused or left == {MessageType.SURVIVOR_SIGNATURE}
            if MessageType.ABORT in left:
                assert stage.clients[u].phase is Phase.ABORTED
                assert not stage.deliver(u, genuine), "an aborted client answers nothing"


def test_frames_of_another_round_change_nothing(program: Program, tmp_path: Path) -> None:
    stage_module = program("attackers.stage")
    case = stage_module.Case(seed=0, path=tmp_path / "t.bin")
    plan = stage_module.Plan(n=6, t=4, D=1)
    old = stage_module.Stage.of(plan, case=case).play("unmasking")
    new = stage_module.Stage.of(plan, case=case, round_id=1).play("unmasking")
    for u in new.ids:
        before = new.clients[u].phase
        assert not new.deliver(u, old.inbox[u])
        assert new.clients[u].phase is before
        assert new.deliver(u, new.inbox[u]), "the genuine request is still answered"
