"""Writes the test vectors: sessions of real machines with injected randomness, as operations.

Run it with:  python tests/vectors/make_vectors.py
It writes the same bytes every time; a changed file is a changed wire format and belongs into the
changelog. `test_vectors.py` replays the files, and checks them with a second implementation.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from securefl.errors import SecureFLError
from securefl.modular import RingVector
from securefl.primitives.signing import IdentityDirectory, IdentityKey
from securefl.protocols.machine import Outbound
from securefl.protocols.secagg import ClientPolicy, SecAggClient, SecAggParams, SecAggServer
from securefl.protocols.secagg.keys import KeySchedule
from securefl.protocols.secagg.messages import (
    KeyRoster,
    ShareDelivery,
    SignedUnmaskRequest,
    SurvivorNotice,
    UnmaskRequest,
)
from securefl.round import (
    SERVER,
    Adversary,
    ClientId,
    Cohort,
    GraphSource,
    Layout,
    RoundConfig,
    RoundId,
    ThreatModel,
)
from securefl.wire import decode_frame, encode_frame, signed_content

HERE = Path(__file__).parent
CONTEXT = hashlib.sha256(b"context of the vectors").digest()
BEACON = hashlib.sha256(b"beacon of the vectors").digest()
LOST = ClientId(3)
IDS = (1, 2, 3, 5, 8, 13)
MANY = (1, 2, 3, 5, 8, 13, 21, 34)


def stream(key: bytes) -> Any:
    """Randomness of one client: the AES-128-CTR key stream of this key, from the start."""
    cipher = Cipher(algorithms.AES128(key), modes.CTR(bytes(16))).encryptor()
    return lambda count: cipher.update(bytes(count))


def secret(what: str, u: int, size: int) -> bytes:
    return hashlib.sha256(f"{what} of {u}".encode()).digest()[:size]


class Recorder:
    """A session whose operations are written down as they happen."""

    def __init__(self, config: RoundConfig, lost: ClientId | None = LOST) -> None:
        self.config = config
        self.lost = lost
        self.inputs = {u: [(int(u) * 7 + i * 1001) % config.modulus for i in range(config.m)]
                       for u in config.cohort}  # fmt: skip
        self.operations: list[dict[str, Any]] = []
        self.sent: dict[tuple[ClientId, str], bytes] = {}
        self.inbox: dict[ClientId, bytes] = {}
        self.machines = machines_of(self.document())

    def document(self) -> dict[str, Any]:
        config = self.config
        document: dict[str, Any] = {
            "format": "securefl-vectors/1",
            "protocol": config.protocol.name.lower(),
            "config": config.encode().hex(),
            "context": CONTEXT.hex(),
            "beacon": BEACON.hex(),
            "randomness": {str(u): secret("randomness", u, 16).hex() for u in config.cohort},
            "identities": {str(u): secret("identity", u, 32).hex() for u in config.cohort},
            "inputs": {str(u): values for u, values in self.inputs.items()},
            "lost": None if self.lost is None else int(self.lost),
            "operations": self.operations,
        }
        server = self.machines["server"] if hasattr(self, "machines") else None
        if server is not None and server.result is not None:
            document["derived"] = {"session_id": server._end.session.hex()}
            document["result"] = {
                "sum": [int(x) for x in server.result.vector.values],
                "survivors": [int(u) for u in server.result.survivors],
                "min_honest": server.result.min_honest,
                "transcript_digest": server.result.transcript_digest.hex(),
            }
            if server.result.mismatched_pairs:
                document["result"]["mismatched_pairs"] = [
                    [int(u) for u in pair] for pair in server.result.mismatched_pairs
                ]
        return document

    def do(self, op: str, who: ClientId | str, frame: bytes | None = None) -> list[Outbound]:
        operation: dict[str, Any] = {"op": op, "who": who if who == "server" else int(who)}
        if frame is not None:
            operation["frame"] = frame.hex()
        out, error = perform(self.machines, operation, self.inputs, self.config)
        operation |= {
            "emits": [o.frame.hex() for o in out],
            "phase": str(self.machines[str(who)].phase),
            "success": error is None,
        }
        if error is not None:
            operation["error"] = type(error).__name__
        self.operations.append(operation)
        return out

    def up(self, u: ClientId, out: list[Outbound]) -> None:
        for item in out:
            self.sent[u, str(self.machines["server"].phase)] = item.frame
            self.do("receive", "server", item.frame)

    def close(self) -> None:
        self.inbox = {o.recipient: o.frame for o in self.do("close_phase", "server")}

    def start(self) -> None:
        for u in self.config.cohort:
            self.up(u, self.do("start", u))
        self.close()

    def answer(self) -> None:
        phase = str(self.machines["server"].phase)
        for u, frame in sorted(self.inbox.items()):
            if u == self.lost and phase == "masked_input_collection":
                continue
            self.up(u, self.do("receive", u, frame))
            if phase == "masked_input_collection":
                self.up(u, self.do("set_input", u))
        self.close()

    def to(self, phase: str) -> Recorder:
        self.start()
        while str(self.machines["server"].phase) != phase:
            self.answer()
        return self

    def finish(self) -> dict[str, Any]:
        self.start()
        while not self.machines["server"].final:
            self.answer()
        return self.document()

    def must_fail(self, u: ClientId | str, frame: bytes) -> dict[str, Any]:
        self.do("receive", u, frame)
        assert not self.operations[-1]["success"]
        return self.document()


def machines_of(document: dict[str, Any]) -> dict[str, Any]:
    """Fresh machines as the document describes them."""
    config = RoundConfig.decode(bytes.fromhex(document["config"]))
    identities = {u: IdentityKey(bytes.fromhex(document["identities"][str(u)]))
                  for u in config.cohort}  # fmt: skip
    directory = IdentityDirectory({u: key.public for u, key in identities.items()})
    machines: dict[str, Any] = {"server": SecAggServer(config, directory=directory)}
    for u in config.cohort:
        machines[str(u)] = SecAggClient(
            u,
            config,
            context_digest=bytes.fromhex(document["context"]),
            policy=ClientPolicy(gamma=0, experimental_active_graph=True),
            identity=identities[u],
            directory=directory,
            random_bytes=stream(bytes.fromhex(document["randomness"][str(u)])),
        )
    if config.graph_source is GraphSource.BEACON:
        for machine in machines.values():
            machine.set_beacon(bytes.fromhex(document["beacon"]))
    return machines


def perform(
    machines: dict[str, Any],
    operation: dict[str, Any],
    inputs: dict[Any, list[int]],
    config: RoundConfig,
) -> tuple[list[Outbound], SecureFLError | None]:
    """One operation; what it emits, and the error it raised (whose Abort frames are emitted)."""
    machine = machines[str(operation["who"])]
    try:
        if operation["op"] == "receive":
            out = machine.receive(bytes.fromhex(operation["frame"]))
        elif operation["op"] == "set_input":
            values = inputs[machine.client_id]
            dtype = np.uint32 if config.b <= 32 else np.uint64
            out = machine.set_input(RingVector(np.array(values, dtype=dtype), config.modulus))
        else:
            out = getattr(machine, operation["op"])()
    except SecureFLError as error:
        return list(getattr(error, "outbound", ())), error
    return [o for o in out if isinstance(o, Outbound)], None


def config_of(
    *,
    k: int | None,
    active: bool,
    layout: Layout,
    b: int,
    ids: tuple[int, ...] = IDS,
    t: int | None = None,
) -> RoundConfig:
    adversary = Adversary.ACTIVE if active else Adversary.SEMI_HONEST
    threat = ThreatModel(adversary=adversary, corrupt=1, dropped=1)
    if k is None:
        params = SecAggParams.complete(len(ids), threat, t=t, layout=layout)
    else:
        params = SecAggParams.harary(len(ids), threat, k=k, t=t)
    return params.config(
        round_id=RoundId(2**40 + 5),
        cohort=Cohort.of(ids),
        m=3,
        b=b,
        context_digest=CONTEXT,
        server_nonce=hashlib.sha256(b"nonce of the vectors").digest(),
        graph_value=bytes(32) if k is None else hashlib.sha256(b"ring").digest(),
    )


VARIANTS = {
    "complete": {"k": None, "active": False, "layout": Layout.OTHERS, "b": 20},
    "complete_own_share": {"k": None, "active": False, "layout": Layout.ALL, "b": 64},
    "complete_active": {"k": None, "active": True, "layout": Layout.OTHERS, "b": 32},
    "complete_own_share_active": {"k": None, "active": True, "layout": Layout.ALL, "b": 7},
    "ring": {"k": 4, "active": False, "layout": Layout.OTHERS, "b": 33},
    "ring_active": {"k": 4, "active": True, "layout": Layout.OTHERS, "b": 16},
}


def edited(frame: bytes, **changes: Any) -> bytes:
    return encode_frame(replace(decode_frame(frame), **changes))


def resigned(config: RoundConfig, frame: bytes) -> bytes:
    """The frame under a valid signature of its sender."""
    content = replace(decode_frame(frame), signature=b"")
    statement = KeySchedule(config.protocol).frame_statement(SERVER, signed_content(content))
    key = IdentityKey(secret("identity", content.sender, 32))
    return encode_frame(replace(content, signature=key.sign(statement)))


def bad_twins(config: RoundConfig) -> dict[str, dict[str, Any]]:
    """Sessions on the complete graph whose last operation must fail, by what is wrong in it."""
    active = config.adversary is Adversary.ACTIVE
    one, n = ClientId(1), config.n
    twins: dict[str, dict[str, Any]] = {}

    def at(phase: str) -> tuple[Recorder, bytes]:
        recorder = Recorder(config).to(phase)
        return recorder, recorder.inbox[one]

    def roster(name: str, change: Any) -> None:
        recorder, frame = at("share_keys")
        body = decode_frame(frame).body
        entries = list(KeyRoster.decode(body, most=n, signed=active).entries)
        forged = KeyRoster(entries=tuple(change(entries))).encode()
        twins[name] = recorder.must_fail(one, edited(frame, body=forged))

    roster("roster_entry_missing", lambda e: e[1:])
    roster("roster_entries_swapped", lambda e: [e[1], e[0], *e[2:]])
    roster("roster_key_twice", lambda e: [*e[:4], e[4]._replace(s_pk=e[5].s_pk), e[5]])
    roster("roster_key_replaced", lambda e: [e[0]._replace(c_pk=bytes(31) + b"\x09"), *e[1:]])

    recorder, frame = at("share_keys")
    twins["frame_short"] = recorder.must_fail(one, frame[:-1])
    recorder, frame = at("share_keys")
    twins["frame_long"] = recorder.must_fail(one, frame + b"\0")
    recorder, frame = at("share_keys")
    twins["frame_of_another_round"] = recorder.must_fail(one, edited(frame, round_id=RoundId(1)))

    recorder, frame = at("masked_input_collection")
    delivery = ShareDelivery.decode(decode_frame(frame).body, peers=n - 1)
    turned = [*delivery.ciphertexts[1:], delivery.ciphertexts[0]]
    body = ShareDelivery(present=delivery.present, ciphertexts=turned).encode()
    twins["shares_of_another_sender"] = recorder.must_fail(one, edited(frame, body=body))
    recorder, frame = at("masked_input_collection")
    raw = bytearray(decode_frame(frame).body)
    raw[0] |= 0x80  # five peers: bit 7 is padding
    twins["padding_bit_set"] = recorder.must_fail(one, edited(frame, body=bytes(raw)))

    if active:
        recorder, frame = at("consistency_check")
        bits = np.array([u != 1 for u in config.cohort])
        twins["list_without_oneself"] = recorder.must_fail(
            one, edited(frame, body=SurvivorNotice(alive=bits).encode())
        )

        def request(name: str, change: Any) -> None:
            recorder, frame = at("unmasking")
            good = SignedUnmaskRequest.decode(decode_frame(frame).body, most=n)
            body = SignedUnmaskRequest(signatures=tuple(change(good.signatures))).encode()
            twins[name] = recorder.must_fail(one, edited(frame, body=body))

        request("one_signature_short", lambda s: s[: config.t - 1])
        request("signature_twice", lambda s: (s[0], s[0], *s[2:]))
        request("signature_of_another", lambda s: ((s[0][0], s[1][1]), *s[1:]))
        statement = KeySchedule(config.protocol).survivor_statement(bytes(32), b"\x3f")
        elsewhere = IdentityKey(secret("identity", 2, 32)).sign(statement)
        request("signature_on_another_list", lambda s: ((s[0][0], elsewhere), *s[1:]))
    else:
        recorder, frame = at("unmasking")
        request_body = UnmaskRequest.decode(decode_frame(frame).body, peers=n - 1)
        wrong = UnmaskRequest(size=request_body.size + 1, alive=request_body.alive).encode()
        twins["survivor_count_wrong"] = recorder.must_fail(one, edited(frame, body=wrong))
        recorder, frame = at("unmasking")
        recorder.do("receive", one, frame)
        other = UnmaskRequest(size=n, alive=np.ones(n - 1, dtype=np.bool_)).encode()
        twins["second_request"] = recorder.must_fail(one, edited(frame, body=other))
    return twins


def wrong_shares(name: str, *liars: int) -> dict[str, Any]:
    """Eight clients, nobody lost; each liar's share of its highest neighbour's seed is wrong.

    With one liar that is corrected. Two about the same dealer are one too many.
    """
    what = {**VARIANTS[name], "ids": MANY, "t": 5 if VARIANTS[name]["active"] else 4}
    if what["k"] is not None:
        what |= {"k": 6, "t": 4}
    config = config_of(**what)
    recorder = Recorder(config, lost=None).to("unmasking")
    for u, frame in sorted(recorder.inbox.items()):
        for item in recorder.do("receive", u, frame):
            sent = item.frame
            if u in liars:
                raw = bytearray(decode_frame(sent).body)
                raw[-20 + 4] ^= 1  # a bit of the second word of the highest neighbour's share
                sent = edited(sent, body=bytes(raw))
                sent = resigned(config, sent) if what["active"] else sent
            recorder.do("receive", "server", sent)
    recorder.do("close_phase", "server")
    assert recorder.operations[-1]["success"] is (len(liars) == 1)
    return recorder.document()


def files() -> dict[str, dict[str, Any]]:
    """All documents by path."""
    found: dict[str, dict[str, Any]] = {}
    for name in VARIANTS:
        found[f"secagg/{name}_wrong_share.json"] = wrong_shares(name, 1)
    for name, liars in {"complete": (1, 2), "complete_active": (1, 2), "ring": (1, 3)}.items():
        found[f"secagg/{name}_bad_two_wrong_shares.json"] = wrong_shares(name, *liars)
    for name, what in VARIANTS.items():
        found[f"secagg/{name}.json"] = Recorder(config_of(**what)).finish()
    for name in ("complete", "complete_active"):
        for wrong, document in bad_twins(config_of(**VARIANTS[name])).items():
            found[f"secagg/{name}_bad_{wrong}.json"] = document
    return found


def text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    for path, document in files().items():
        (HERE / path).write_text(text(document))
