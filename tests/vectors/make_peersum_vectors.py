"""Writes the test vectors of peersum, in the format of ``make_vectors.py``.

Run it with:  python tests/vectors/make_peersum_vectors.py
It writes the same bytes every time; a changed file is a changed wire format and belongs into the
changelog. `test_peersum_vectors.py` replays the files, and checks them with a second
implementation. Frames are listed as [recipient, frame], and the events of each call by name.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from securefl.errors import SecureFLError
from securefl.modular import RingVector
from securefl.primitives.signing import IdentityDirectory, IdentityKey
from securefl.protocols.machine import Outbound
from securefl.protocols.peersum import ClientPolicy, MemoryRegister, PeerSumParams, PeerSumPeer
from securefl.protocols.peersum.keys import KeySchedule
from securefl.protocols.peersum.messages import Confirm, RevealSum
from securefl.protocols.peersum.transitions import PHASES
from securefl.round import ClientId, Cohort, RoundConfig, RoundId
from securefl.wire import decode_frame, encode_frame, signed_content

HERE = Path(__file__).parent
_SPEC = importlib.util.spec_from_file_location("securefl_make_vectors", HERE / "make_vectors.py")
assert _SPEC is not None and _SPEC.loader is not None
MAKE = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = MAKE
_SPEC.loader.exec_module(MAKE)

LOST, ONE, TWO = ClientId(3), ClientId(1), ClientId(2)
IDS = (1, 2, 3, 700, 4_000_000_000)


def machines_of(document: dict[str, Any]) -> dict[ClientId, PeerSumPeer]:
    """Fresh machines as the document describes them."""
    config = RoundConfig.decode(bytes.fromhex(document["config"]))
    identities = {u: IdentityKey(bytes.fromhex(document["identities"][str(u)]))
                  for u in config.cohort}  # fmt: skip
    directory = IdentityDirectory({u: key.public for u, key in identities.items()})
    return {
        u: PeerSumPeer(
            u,
            config,
            context_digest=bytes.fromhex(document["context"]),
            policy=ClientPolicy(gamma=0),
            identity=identities[u],
            directory=directory,
            register=MemoryRegister(),
            random_bytes=MAKE.stream(bytes.fromhex(document["randomness"][str(u)])),
        )
        for u in config.cohort
    }


def perform(
    machines: dict[ClientId, PeerSumPeer], operation: dict[str, Any], inputs: dict[int, list[int]]
) -> dict[str, Any]:
    """Carries out one operation; what it came to, as it stands in the file."""
    u = ClientId(operation["who"])
    machine = machines[u]
    out: Any = ()
    error = None
    try:
        match operation["op"]:
            case "start":
                out = machine.start()
            case "receive":
                out = machine.receive(bytes.fromhex(operation["frame"]))
            case "set_input":
                vector = np.array(inputs[u], dtype=np.uint32)
                out = machine.set_input(RingVector(vector, 2**31 - 1))
            case _:
                out = machine.close_phase()
    except SecureFLError as caught:
        out, error = getattr(caught, "outbound", ()), type(caught).__name__
    done = {
        "emits": [[int(o.recipient), o.frame.hex()] for o in out if isinstance(o, Outbound)],
        "events": [type(o).__name__ for o in out if not isinstance(o, Outbound)],
        "phase": str(machine.phase),
        "success": error is None,
    }
    return done if error is None else {**done, "error": error}


class PeerRecorder:
    """A session whose operations are written down as they happen."""

    def __init__(self, config: RoundConfig) -> None:
        self.config = config
        self.inputs = {int(u): [(int(u) * 7 + i * 1001) % config.modulus for i in range(config.m)]
                       for u in config.cohort}  # fmt: skip
        self.document: dict[str, Any] = {
            "format": "securefl-vectors/1",
            "protocol": "peersum",
            "config": config.encode().hex(),
            "context": MAKE.CONTEXT.hex(),
            "randomness": {str(u): MAKE.secret("randomness", u, 16).hex() for u in config.cohort},
            "identities": {str(u): MAKE.secret("identity", u, 32).hex() for u in config.cohort},
            "inputs": {str(u): values for u, values in self.inputs.items()},
            "lost": int(LOST),
            "operations": [],
        }
        self.machines = machines_of(self.document)
        self.wire: list[tuple[ClientId, ClientId, bytes]] = []

    def do(self, op: str, u: ClientId, frame: bytes | None = None) -> dict[str, Any]:
        operation: dict[str, Any] = {"op": op, "who": int(u)}
        if frame is not None:
            operation["frame"] = frame.hex()
        operation |= perform(self.machines, operation, self.inputs)
        self.document["operations"].append(operation)
        for recipient, sent in operation["emits"]:
            self.wire.append((u, ClientId(recipient), bytes.fromhex(sent)))
        return operation

    def deliver(self, without: Callable[[ClientId, ClientId], bool] = lambda u, v: False) -> None:
        lost = len(self.machines[ONE]._U) > 0
        waiting, self.wire = self.wire, []
        for u, v, frame in waiting:
            if not (lost and v == LOST) and not without(u, v):
                self.do("receive", v, frame)

    def next_phase(self) -> None:
        for u in self.machines:
            if u == LOST:
                continue
            self.do("close_phase", u)
            if self.machines[u].wants_input:
                self.do("set_input", u)

    def to(self, phase: str) -> PeerRecorder:
        """Plays until this phase's messages are on the wire."""
        for u in self.machines:
            self.do("start", u)
        for _ in range(PHASES.index(phase)):
            self.deliver()
            self.next_phase()
        return self

    def finish(self) -> dict[str, Any]:
        self.to("reveal_sum").deliver()
        self.next_phase()
        result = self.machines[ONE].result
        assert result is not None
        self.document["derived"] = {"session_id": self.config.digest().hex()}
        self.document["result"] = {
            "sum": result.vector.values.tolist(),
            "survivors": [int(u) for u in result.survivors],
            "min_honest": result.min_honest,
            "transcript_digest": {
                str(u): p.result.transcript_digest.hex()
                for u, p in self.machines.items()
                if p.result is not None
            },
        }
        return self.document


def config_of(*, t: int, m: int, dropped: int = 1) -> RoundConfig:
    return PeerSumParams.of(len(IDS), corrupt=1, dropped=dropped, t=t).config(
        round_id=RoundId(2**40 + 5),
        cohort=Cohort.of(IDS),
        m=m,
        context_digest=MAKE.CONTEXT,
        nonce=hashlib.sha256(b"nonce of the vectors").digest(),
    )


VARIANTS = {"peers": {"t": 4, "m": 5}, "peers_two_open": {"t": 2, "m": 3}}


def signed(frame: bytes, u: ClientId, v: ClientId) -> bytes:
    """The frame under a valid signature of u for v."""
    content = replace(decode_frame(frame), signature=b"")
    statement = KeySchedule.frame_statement(v, signed_content(content))
    key = IdentityKey(MAKE.secret("identity", u, 32))
    return encode_frame(replace(content, signature=key.sign(statement)))


def bad_twins(config: RoundConfig) -> dict[str, dict[str, Any]]:
    """Sessions whose last operation changes nothing, drops its sender or fails."""
    twins: dict[str, dict[str, Any]] = {}

    def bad(
        name: str, phase: str, change: Callable[[bytes], bytes], *, after: bool = False
    ) -> None:
        recorder = PeerRecorder(config).to(phase)
        frame = next(f for u, v, f in recorder.wire if (u, v) == (TWO, ONE))
        if after:
            recorder.deliver()
        recorder.do("receive", ONE, change(frame))
        twins[name] = recorder.document

    def with_body(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
        return lambda f: signed(MAKE.edited(f, body=change(bytes(decode_frame(f).body))), TWO, ONE)

    n = config.n
    bad("frame_short", "advertise_keys", lambda f: f[:-1])
    bad("frame_long", "advertise_keys", lambda f: f + b"\0")
    bad("frame_of_another_round", "advertise_keys", lambda f: MAKE.edited(f, round_id=RoundId(1)))
    bad("frame_of_another_session", "advertise_keys", lambda f: MAKE.edited(f, session=bytes(32)))
    bad("frame_unsigned", "advertise_keys", lambda f: MAKE.edited(f, signature=b""))
    bad("frame_reflected", "advertise_keys", lambda f: MAKE.edited(f, sender=ONE))
    bad("signed_for_somebody_else", "advertise_keys", lambda f: signed(f, TWO, LOST))
    bad("key_of_small_order", "advertise_keys", with_body(lambda b: bytes(32)))
    bad("key_not_reduced", "advertise_keys", with_body(lambda b: b"\xff" * 32))
    bad("second_key", "advertise_keys", with_body(lambda b: b"\x09" + bytes(31)), after=True)
    bad("share_changed", "share_input", with_body(lambda b: bytes([b[0] ^ 1]) + b[1:]))
    bad("share_short", "share_input", with_body(lambda b: b[:-1]))
    bad("report_padding", "report", with_body(lambda b: bytes([b[0] | 0x80])))
    bad("confirm_signature", "confirm", with_body(lambda b: b[:-1] + bytes([b[-1] ^ 1])))
    bad("confirm_too_short_a_list", "confirm", with_body(lambda b: b"\x03" + b[1:]))

    def other_list(body: bytes) -> bytes:
        alive = np.array([True] * n)
        keys = [MAKE.stream(MAKE.secret("randomness", u, 16))(32) for u in config.cohort]
        from securefl.primitives.channel import AgreementKey

        public = [AgreementKey(key).public for key in keys]
        statement = KeySchedule.survivor_statement(config.digest(), b"\x1f", public)
        signature = IdentityKey(MAKE.secret("identity", TWO, 32)).sign(statement)
        return Confirm(alive=alive, signature=signature).encode()

    bad("two_lists_signed", "confirm", with_body(other_list), after=True)

    def revealed(change: Callable[[RevealSum], RevealSum]) -> Callable[[bytes], bytes]:
        return with_body(lambda b: change(RevealSum.decode(b, n=n, m=config.m)).encode())

    bad("sum_of_another_list", "reveal_sum",
        revealed(lambda r: replace(r, alive=np.array([True] * n))))  # fmt: skip
    bad("sum_changed", "reveal_sum",
        revealed(lambda r: replace(r, ciphertext=r.ciphertext[:-1] + bytes(1))))  # fmt: skip

    recorder = PeerRecorder(config).to("confirm")
    recorder.deliver(lambda u, v: v == ONE and u == TWO)
    recorder.do("close_phase", ONE)
    twins["one_signature_short"] = recorder.document
    recorder = PeerRecorder(config).to("advertise_keys")
    late = next(f for u, v, f in recorder.wire if (u, v) == (TWO, ONE))
    recorder.deliver(lambda u, v: (u, v) == (TWO, ONE))
    recorder.do("close_phase", ONE)
    recorder.do("receive", ONE, late)
    twins["key_late"] = recorder.document
    return twins


def files() -> dict[str, dict[str, Any]]:
    """All documents by path."""
    found: dict[str, dict[str, Any]] = {}
    for name, what in VARIANTS.items():
        found[f"peersum/{name}.json"] = PeerRecorder(config_of(**what)).finish()
    for wrong, document in bad_twins(config_of(t=4, m=2)).items():
        found[f"peersum/peers_bad_{wrong}.json"] = document
    return found


if __name__ == "__main__":
    for path, document in files().items():
        (HERE / path).write_text(MAKE.text(document))
