"""Writes the test vectors of LightSecAgg, in the way and format of ``make_vectors.py``.

Run it with:  python tests/vectors/make_lightsecagg_vectors.py
It writes the same bytes every time; a changed file is a changed wire format and belongs into the
changelog. `test_lightsecagg_vectors.py` replays the files, and checks them with a second
implementation.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np

from securefl.primitives.signing import IdentityDirectory, IdentityKey
from securefl.protocols.lightsecagg import (
    ClientPolicy,
    LightSecAggClient,
    LightSecAggParams,
    LightSecAggServer,
    messages,
)
from securefl.protocols.lightsecagg.keys import KeySchedule
from securefl.protocols.lightsecagg.transitions import MessageType
from securefl.protocols.machine import Outbound
from securefl.protocols.messages import SignedUnmaskRequest
from securefl.round import Adversary, ClientId, Cohort, RoundConfig, RoundId, ThreatModel
from securefl.wire import decode_frame

HERE = Path(__file__).parent
_SPEC = importlib.util.spec_from_file_location("securefl_make_vectors", HERE / "make_vectors.py")
assert _SPEC is not None and _SPEC.loader is not None
MAKE = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = MAKE
_SPEC.loader.exec_module(MAKE)

LOST = ClientId(3)


def machines_of(document: dict[str, Any]) -> dict[str, Any]:
    """Fresh machines as the document describes them."""
    config = RoundConfig.decode(bytes.fromhex(document["config"]))
    identities = {u: IdentityKey(bytes.fromhex(document["identities"][str(u)]))
                  for u in config.cohort}  # fmt: skip
    directory = IdentityDirectory({u: key.public for u, key in identities.items()})
    machines: dict[str, Any] = {"server": LightSecAggServer(config, directory=directory)}
    for u in config.cohort:
        machines[str(u)] = LightSecAggClient(
            u,
            config,
            context_digest=bytes.fromhex(document["context"]),
            policy=ClientPolicy(gamma=0),
            identity=identities[u],
            directory=directory,
            random_bytes=MAKE.stream(bytes.fromhex(document["randomness"][str(u)])),
        )
    return machines


class LightRecorder(MAKE.Recorder):  # type: ignore[misc, name-defined]  # loaded by its path
    """A LightSecAgg session: the server passes shares on, so a client reads several frames."""

    def __init__(self, config: RoundConfig) -> None:
        self.config = config
        self.inputs = {u: [(int(u) * 7 + i * 1001) % config.modulus for i in range(config.m)]
                       for u in config.cohort}  # fmt: skip
        self.operations: list[dict[str, Any]] = []
        self.sent: dict[tuple[ClientId, str], bytes] = {}
        self.waiting: dict[ClientId, list[bytes]] = {}
        self.machines: dict[str, Any] = {}
        self.machines = machines_of(self.document())

    def document(self) -> dict[str, Any]:
        config, secret = self.config, MAKE.secret
        document: dict[str, Any] = {
            "format": "securefl-vectors/1",
            "protocol": config.protocol.name.lower(),
            "config": config.encode().hex(),
            "context": MAKE.CONTEXT.hex(),
            "randomness": {str(u): secret("randomness", u, 16).hex() for u in config.cohort},
            "identities": {str(u): secret("identity", u, 32).hex() for u in config.cohort},
            "inputs": {str(u): values for u, values in self.inputs.items()},
            "lost": int(LOST),
            "operations": self.operations,
        }
        server = self.machines.get("server")
        if server is not None and server.result is not None:
            document["derived"] = {"session_id": server._end.session.hex()}
            document["result"] = {
                "sum": [int(x) for x in server.result.vector.values],
                "survivors": [int(u) for u in server.result.survivors],
                "min_honest": server.result.min_honest,
                "transcript_digest": server.result.transcript_digest.hex(),
            }
        return document

    def deliver(self, out: list[Outbound]) -> None:
        for item in out:
            self.waiting.setdefault(item.recipient, []).append(item.frame)

    def up(self, u: ClientId, out: list[Outbound]) -> None:
        for item in out:
            self.sent[u, str(self.machines["server"].phase)] = item.frame
            self.deliver(self.do("receive", "server", item.frame))

    def close(self) -> None:
        self.deliver(self.do("close_phase", "server"))

    def answer(self) -> None:
        phase = str(self.machines["server"].phase)
        for u in sorted(self.waiting):
            frames = self.waiting.pop(u)
            if u == LOST and phase == "masked_input_collection":
                continue
            for frame in frames:
                self.up(u, self.do("receive", u, frame))
            if phase == "masked_input_collection":
                self.up(u, self.do("set_input", u))
        self.close()

    def next_for(self, u: ClientId, kind: MessageType) -> bytes:
        """Client u reads what waits for it up to the frame of this type, which is given back."""
        for frame in self.waiting[u]:
            if decode_frame(frame).type == kind:
                return frame
            self.up(u, self.do("receive", u, frame))
        raise AssertionError(f"no {kind.name} waits for {u}")


def config_of(*, active: bool, U: int, T: int, m: int) -> RoundConfig:
    adversary = Adversary.ACTIVE if active else Adversary.SEMI_HONEST
    threat = ThreatModel(adversary=adversary, corrupt=1, dropped=len(MAKE.IDS) - U)
    return LightSecAggParams.of(len(MAKE.IDS), threat, U=U, T=T).config(
        round_id=RoundId(2**40 + 5),
        cohort=Cohort.of(MAKE.IDS),
        m=m,
        context_digest=MAKE.CONTEXT,
        server_nonce=hashlib.sha256(b"nonce of the vectors").digest(),
    )


VARIANTS = {
    "light": {"active": False, "U": 5, "T": 2, "m": 7},
    "light_one_block": {"active": False, "U": 4, "T": 2, "m": 3},
    "light_active": {"active": True, "U": 5, "T": 2, "m": 4},
}


def bad_twins(config: RoundConfig) -> dict[str, dict[str, Any]]:
    """Sessions whose last operation must fail, by what is wrong in it."""
    active = config.adversary is Adversary.ACTIVE
    one, n = ClientId(1), config.n
    everybody = np.ones(n, dtype=np.bool_)
    twins: dict[str, dict[str, Any]] = {}

    def bad(name: str, phase: str, kind: MessageType, change: Any) -> None:
        recorder = LightRecorder(config).to(phase)
        frame = recorder.next_for(one, kind)
        twins[name] = recorder.must_fail(one, change(frame))

    def with_body(change: Any) -> Any:
        return lambda frame: MAKE.edited(frame, body=change(decode_frame(frame).body))

    def roster(name: str, change: Any) -> None:
        def changed(body: Any) -> bytes:
            entries = list(messages.KeyRoster.decode(body, most=n, signed=active).entries)
            return messages.KeyRoster(entries=tuple(change(entries))).encode()

        bad(name, "share_masks", MessageType.KEY_ROSTER, with_body(changed))

    roster("roster_entry_missing", lambda e: e[1:])
    roster("roster_entries_swapped", lambda e: [e[1], e[0], *e[2:]])
    roster("roster_key_twice", lambda e: [*e[:4], e[4]._replace(c_pk=e[5].c_pk), e[5]])
    roster("roster_key_replaced", lambda e: [e[0]._replace(c_pk=bytes(31) + b"\x09"), *e[1:]])
    bad("frame_short", "share_masks", MessageType.KEY_ROSTER, lambda f: f[:-1])
    bad("frame_long", "share_masks", MessageType.KEY_ROSTER, lambda f: f + b"\0")
    bad("frame_of_another_round", "share_masks", MessageType.KEY_ROSTER,
        lambda f: MAKE.edited(f, round_id=RoundId(1)))  # fmt: skip

    collecting = "masked_input_collection"
    share, close = MessageType.ENCODED_SHARE, MessageType.SHARE_CLOSE
    bad("share_of_a_stranger", collecting, share, with_body(lambda b: b"\x63" + bytes(b[1:])))
    bad("share_short", collecting, share, with_body(lambda b: bytes(b[:-1])))
    bad("padding_bit_set", collecting, close, with_body(lambda b: bytes([b[0] | 0x80])))
    bad("dealers_without_oneself", collecting, close, with_body(lambda b: bytes([b[0] & 0xFE])))

    recorder = LightRecorder(config).to(collecting)
    first = recorder.next_for(one, share)
    recorder.do("receive", one, first)
    body = bytes(decode_frame(first).body)
    again = MAKE.edited(first, body=body[:-1] + bytes([body[-1] ^ 1]))
    twins["second_share_of_one_dealer"] = recorder.must_fail(one, again)

    # Two of its coded shares exchanged: neither opens, and it cannot answer for their dealers.
    recorder = LightRecorder(config).to(collecting)
    one_share, other, *rest = recorder.waiting[one]
    bodies = [bytes(decode_frame(f).body) for f in (one_share, other)]
    recorder.waiting[one] = [
        MAKE.edited(one_share, body=bodies[0][:4] + bodies[1][4:]),
        MAKE.edited(other, body=bodies[1][:4] + bodies[0][4:]),
        *rest,
    ]
    recorder.answer()
    kind = MessageType.SURVIVOR_NOTICE if active else MessageType.RECOVERY_REQUEST
    twins["shares_exchanged"] = recorder.must_fail(one, recorder.next_for(one, kind))

    if active:
        checking, notice = "consistency_check", MessageType.SURVIVOR_NOTICE
    else:
        checking, notice = "recovery", MessageType.RECOVERY_REQUEST

    def listed(present: list[int]) -> Any:
        bits = np.array([u in present for u in config.cohort])
        return with_body(lambda _: messages.RecoveryRequest(alive=bits).encode())

    bad("list_without_oneself", checking, notice, listed([2, 3, 5, 8, 13]))
    bad("list_too_short", checking, notice, listed([1, 2, 3, 5, 8][: config.k - 1]))
    recorder = LightRecorder(config).to(checking)
    frame = recorder.next_for(one, notice)
    recorder.do("receive", one, frame)
    second = MAKE.edited(frame, body=messages.RecoveryRequest(alive=everybody).encode())
    twins["second_list"] = recorder.must_fail(one, second)

    if active:

        def request(name: str, change: Any) -> None:
            def changed(body: Any) -> bytes:
                good = SignedUnmaskRequest.decode(body, most=n).signatures
                return SignedUnmaskRequest(signatures=tuple(change(good))).encode()

            bad(name, "recovery", MessageType.RECOVERY_REQUEST, with_body(changed))

        request("one_signature_short", lambda s: s[: config.k - 2])
        request("signature_twice", lambda s: (s[0], s[0], *s[2:]))
        request("signature_of_another", lambda s: ((s[0][0], s[1][1]), *s[1:]))
        statement = KeySchedule(config.protocol).survivor_statement(bytes(32), b"\x3f")
        elsewhere = IdentityKey(MAKE.secret("identity", 2, 32)).sign(statement)
        request("signature_on_another_list", lambda s: ((s[0][0], elsewhere), *s[1:]))
    return twins


def files() -> dict[str, dict[str, Any]]:
    """All documents by path."""
    found: dict[str, dict[str, Any]] = {}
    for name, what in VARIANTS.items():
        found[f"lightsecagg/{name}.json"] = LightRecorder(config_of(**what)).finish()
    for name in ("light", "light_active"):
        for wrong, document in bad_twins(config_of(**VARIANTS[name])).items():
            found[f"lightsecagg/{name}_bad_{wrong}.json"] = document
    return found


if __name__ == "__main__":
    for path, document in files().items():
        (HERE / path).write_text(MAKE.text(document))
