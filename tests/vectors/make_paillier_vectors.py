"""Writes the test vectors of Paillier aggregation. Keys of 512 bits: for tests only.

Such keys hide nothing.

Run it with:  python tests/vectors/make_paillier_vectors.py
It writes the same bytes every time; a changed file is a changed wire format and belongs into the
changelog. `test_paillier_vectors.py` replays the files, and checks them with another implementation
in plain integers.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from securefl.errors import SecureFLError
from securefl.modular import RingVector, ring_dtype
from securefl.primitives.paillier import SecretKey, SlotLayout, generate_keypair
from securefl.primitives.paillier.threshold import KeyShare, ThresholdPublicKey, deal
from securefl.primitives.signing import IdentityDirectory, IdentityKey
from securefl.protocols.machine import ClientDropped, Outbound
from securefl.protocols.paillier import (
    DeciderPolicy,
    KeyHolder,
    MemoryRoundBook,
    PaillierClient,
    PaillierServer,
    PaillierTerms,
    ShareHolder,
    Witness,
    paillier_config,
)
from securefl.protocols.paillier.messages import (
    CheckRequest,
    MessageType,
    Opened,
    OpenRequest,
    product_digest,
)
from securefl.protocols.policy import ClientPolicy
from securefl.round import SERVER, ClientId, Cohort, RoundConfig, RoundId, ThreatModel
from securefl.wire import Frame, decode_frame, encode_frame

HERE = Path(__file__).parent
_SPEC = importlib.util.spec_from_file_location("securefl_make_vectors", HERE / "make_vectors.py")
assert _SPEC is not None and _SPEC.loader is not None
MAKE = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = MAKE
_SPEC.loader.exec_module(MAKE)

IDS, LOST = (1, 2, 3, 5, 8), ClientId(3)
WITNESS, HOLDER, FIRST = 900, 901, 910
BOUND, MOST, BITS, LENGTH = 1 << 11, 5, 12, 45
WARNING = "512-bit keys for tests only: anybody can factor them"


@lru_cache(maxsize=1)
def secret_key() -> SecretKey:
    random = MAKE.stream(MAKE.secret("paillier key", 0, 16))
    return generate_keypair(512, random_bytes=random, min_bits=512)


@lru_cache(maxsize=1)
def threshold_key() -> tuple[ThresholdPublicKey, list[KeyShare]]:
    random = MAKE.stream(MAKE.secret("threshold key", 0, 16))
    return deal(threshold=3, parties=4, bits=512, random_bytes=random, min_bits=512)


def terms_of(document: dict[str, Any]) -> PaillierTerms:
    layout = SlotLayout(bound=document["bound"], max_clients=document["max_clients"])
    if document["mode"] == "key holder":
        p, q = (int(document["secret"][name], 16) for name in "pq")
        return PaillierTerms(
            key=SecretKey.from_numbers(p, q, min_bits=512).public,
            layout=layout,
            key_holder=ClientId(HOLDER),
            witnesses=(ClientId(WITNESS),),
        )
    key = ThresholdPublicKey.from_bytes(bytes.fromhex(document["public"]), min_bits=512)
    holders = tuple(ClientId(FIRST + i) for i in range(key.parties))
    return PaillierTerms(key=key, layout=layout, share_holders=holders)


def machines_of(document: dict[str, Any]) -> dict[str, Any]:
    """Fresh machines as the document describes them."""
    config = RoundConfig.decode(bytes.fromhex(document["config"]))
    terms = terms_of(document)
    keys = {int(u): IdentityKey(bytes.fromhex(x)) for u, x in document["identities"].items()}
    directory = IdentityDirectory({ClientId(u): key.public for u, key in keys.items()})
    random = {
        u: MAKE.stream(bytes.fromhex(x)) for u, x in document["randomness"].items()
    }  # fmt: skip
    machines: dict[str, Any] = {"server": PaillierServer(config, terms=terms, directory=directory)}
    for u in config.cohort:
        machines[str(u)] = PaillierClient(
            u,
            config,
            terms=terms,
            context_digest=bytes.fromhex(document["context"]),
            identity=keys[u],
            directory=directory,
            policy=ClientPolicy(gamma=0),
            random_bytes=random[str(u)],
        )
    for u in terms.deciders:
        common: dict[str, Any] = {
            "terms": terms, "identity": keys[u], "directory": directory,
            "book": MemoryRoundBook(), "policy": DeciderPolicy(min_clients=config.n_min),
        }  # fmt: skip
        if u in terms.witnesses:
            machines[str(u)] = Witness(u, config, **common)
        elif u == terms.key_holder:
            p, q = (int(document["secret"][name], 16) for name in "pq")
            secret = SecretKey.from_numbers(p, q, min_bits=512)
            machines[str(u)] = KeyHolder(u, config, secret=secret, **common)
        else:
            data = bytes.fromhex(document["shares"][terms.share_holders.index(u)])
            share = KeyShare.from_bytes(data, terms.key)
            machines[str(u)] = ShareHolder(
                u, config, share=share, random_bytes=random[str(u)], **common
            )
    return machines


def perform(machines: dict[str, Any], operation: dict[str, Any], document: dict[str, Any]) -> Any:
    """One operation: frames out, who lost a place and why, and the error."""
    machine = machines[str(operation["who"])]
    error: SecureFLError | None = None
    try:
        if operation["op"] == "receive":
            out = machine.receive(bytes.fromhex(operation["frame"]))
        elif operation["op"] == "set_input":
            values = np.array(document["inputs"][str(operation["who"])], ring_dtype(1 << BITS))
            out = machine.set_input(RingVector(values, 1 << BITS))
        else:
            out = getattr(machine, operation["op"])()
    except SecureFLError as caught:
        error, out = caught, list(getattr(caught, "outbound", ()))
    frames = [(str(o.recipient), o.frame) for o in out if isinstance(o, Outbound)]
    dropped = [[int(e.client), e.reason.name] for e in out if isinstance(e, ClientDropped)]
    return frames, dropped, error


class Recorder:
    """A session whose operations are written down as they happen."""

    def __init__(self, mode: str) -> None:
        key = secret_key().public if mode == "key holder" else threshold_key()[0]
        deciders = [WITNESS, HOLDER] if mode == "key holder" else [FIRST + i for i in range(4)]
        who = [*IDS, *deciders]
        self.document: dict[str, Any] = {
            "format": "securefl-vectors/1",
            "protocol": "paillier",
            "warning": WARNING,
            "mode": mode,
            "bound": BOUND,
            "max_clients": MOST,
            "public": key.to_bytes().hex(),
            "context": MAKE.CONTEXT.hex(),
            "randomness": {str(u): MAKE.secret("randomness", u, 16).hex() for u in who},
            "identities": {str(u): MAKE.secret("identity", u, 32).hex() for u in who},
            "inputs": {
                str(u): [(u * 977 + i * 1409) % (1 << BITS) for i in range(LENGTH)] for u in IDS
            },
            "lost": int(LOST),
            "operations": [],
        }
        if mode == "key holder":
            p, q = secret_key().primes()
            self.document["secret"] = {"p": f"{p:x}", "q": f"{q:x}"}
        else:
            self.document["shares"] = [x.to_secret_bytes().hex() for x in threshold_key()[1]]
        self.config = paillier_config(
            terms_of(self.document),
            round_id=RoundId(2**40 + 6),
            cohort=Cohort.of(IDS),
            threat=ThreatModel(corrupt=1, dropped=2),
            m=LENGTH,
            b=BITS,
            context_digest=MAKE.CONTEXT,
            server_nonce=hashlib.sha256(b"nonce of the vectors").digest(),
        )
        self.document["config"] = self.config.encode().hex()
        self.machines = machines_of(self.document)
        self.submissions: dict[str, bytes] = {}
        self.requests: dict[str, bytes] = {}
        self.answers: dict[str, bytes] = {}

    def do(self, op: str, who: Any, frame: bytes | None = None) -> list[tuple[str, bytes]]:
        operation: dict[str, Any] = {"op": op, "who": str(who)}
        if frame is not None:
            operation["frame"] = frame.hex()
        frames, dropped, error = perform(self.machines, operation, self.document)
        operation["emits"] = [[u, f.hex()] for u, f in frames]
        operation["dropped"] = dropped
        operation["phase"] = str(self.machines[str(who)].phase)
        operation["success"] = error is None and not dropped
        if error is not None:
            operation["error"] = type(error).__name__
            if hasattr(error, "reason"):
                operation["reason"] = error.reason
        self.document["operations"].append(operation)
        return frames

    def collect(self, *, hand_in: bool = True) -> Recorder:
        for u in IDS:
            for _, frame in self.do("start", u):
                self.do("receive", "server", frame)
        for u, frame in self.do("close_phase", "server"):
            self.requests[u] = frame
            if int(u) != LOST:
                self.do("set_input", u)
                ((_, self.submissions[u]),) = self.do("receive", u, frame)
        for frame in self.submissions.values() if hand_in else ():
            self.do("receive", "server", frame)
        return self

    def ask(self, *, hand_in: bool = True) -> Recorder:
        """Closes the phase, asks the deciders and hands their answers in."""
        self.answers = {}
        for u, frame in self.do("close_phase", "server"):
            self.requests[u] = frame
            for _, answer in self.do("receive", u, frame):
                self.answers[u] = answer
        for frame in self.answers.values() if hand_in else ():
            self.do("receive", "server", frame)
        return self

    def finish(self) -> dict[str, Any]:
        self.collect().ask()
        if self.document["mode"] == "key holder":
            self.ask()
        self.do("close_phase", "server")
        result = self.machines["server"].result
        self.document["result"] = {
            "sum": result.vector.values.tolist(),
            "survivors": [int(u) for u in result.survivors],
            "min_honest": result.min_honest,
            "transcript_digest": result.transcript_digest.hex(),
        }
        return self.document

    def must_fail(self, who: Any, frame: bytes) -> dict[str, Any]:
        self.do("receive", who, frame)
        assert not self.document["operations"][-1]["success"]
        return self.document

    # -- what liars send --------------------------------------------------------------------------

    def signed(self, u: Any, kind: MessageType, body: bytes) -> bytes:
        end = self.machines[str(u)]._end
        frame: bytes = end.outbound(kind, body, session=end.config_digest)[0].frame
        return frame

    def served(self, kind: MessageType, body: bytes) -> bytes:
        config = self.config
        return encode_frame(
            Frame(
                protocol=config.protocol,
                type=kind,
                sender=SERVER,
                round_id=config.round_id,
                session=config.digest(),
                body=body,
            )
        )


def submission_twins() -> dict[str, dict[str, Any]]:
    """Submissions that cost their sender the place: client 1 is the liar."""
    honest = Recorder("key holder").collect(hand_in=False)
    terms = terms_of(honest.document)
    n, N, W = terms.public.n, int(terms.degree.modulus), terms.degree.ciphertext_bytes
    size = terms.block_bytes(LENGTH)
    body = bytes(decode_frame(honest.submissions["1"]).body)
    block, proof = body[4 : 4 + size], body[4 + size :]
    sized = size.to_bytes(4, "little")
    last = len(block) - W

    def numbered(number: int) -> bytes:
        return sized + block[:last] + number.to_bytes(W, "big") + proof

    def flipped(place: int) -> bytes:
        return body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]

    lies = {
        "ciphertext_zero": numbered(0),
        "ciphertext_n": numbered(n),
        "ciphertext_a_factor": numbered(secret_key().primes()[0]),
        "ciphertext_modulus": numbered(N),
        "ciphertext_of_another": numbered(
            int.from_bytes(honest.submissions["2"][64 + 4 + last : 64 + 4 + size], "big")
        ),
        "ciphertext_mauled": numbered(pow(int.from_bytes(block[last:], "big"), 2, N)),
        "key_of_another": flipped(4),
        "mode_of_another": flipped(4 + 32),
        "degree_of_another": flipped(4 + 33),
        "width_of_another": flipped(4 + 34),
        "bound_of_another": flipped(4 + 42),
        "dimension_of_another": flipped(4 + 46),
        "block_short": (size - 1).to_bytes(4, "little") + block[:-1] + proof,
        "proof_seed": flipped(4 + size),
        "proof_z": flipped(4 + size + 36 + 10),
        "proof_zeta": flipped(len(body) - 1),
        "proof_long": body + b"\0",
        "proof_missing": body[: 4 + size],
        "proof_of_another": sized
        + block
        + bytes(decode_frame(honest.submissions["2"]).body)[4 + size :],
        "everything_of_another": bytes(decode_frame(honest.submissions["2"]).body),
    }
    twins = {}
    for name, lie in lies.items():
        recorder = Recorder("key holder").collect(hand_in=False)
        twins[name] = recorder.must_fail("server", recorder.signed(1, MessageType.SUBMISSION, lie))
    recorder = Recorder("key holder").collect(hand_in=False)
    raw = bytearray(recorder.submissions["1"])
    raw[-1] ^= 1
    twins["submission_signature"] = recorder.must_fail("server", bytes(raw))
    return twins


def decider_twins() -> dict[str, dict[str, Any]]:
    """Requests that deciders refuse, answers that the server refuses."""
    twins: dict[str, dict[str, Any]] = {}
    check, opening = MessageType.CHECK_REQUEST, MessageType.OPEN_REQUEST

    def witness(name: str, change: Any) -> None:
        for mode, who in (("key holder", WITNESS), ("threshold", FIRST)):
            recorder = Recorder(mode).collect()
            frames = list(recorder.submissions.values())
            frame = dict(recorder.do("close_phase", "server"))[str(who)]
            digest = CheckRequest.decode(decode_frame(frame).body, most=5).product_digest
            body = CheckRequest(**change(frames, digest)).encode()
            label = "witness" if who == WITNESS else "share_holder"
            twins[f"{label}_{name}"] = recorder.must_fail(who, recorder.served(check, body))

    def both(f: Any, d: bytes) -> dict[str, Any]:
        return {"submissions": tuple(f), "product_digest": d}

    witness("list_too_short", lambda f, d: both(f[:2], d))
    witness("list_unsorted", lambda f, d: both(f[::-1], d))
    witness("list_with_one_twice", lambda f, d: both([f[0], *f], d))
    witness("product_wrong", lambda f, d: both(f, bytes(32)))
    witness("product_of_fewer", lambda f, d: both(f[1:], d))
    witness("submission_altered", lambda f, d: both([f[0][:-1] + bytes([f[0][-1] ^ 1]), *f[1:]], d))
    witness("submission_cut", lambda f, d: both([f[0][:-1], *f[1:]], d))

    recorder = Recorder("threshold").collect()
    honest = dict(recorder.do("close_phase", "server"))[str(FIRST)]
    recorder.do("receive", FIRST, honest)
    fewer = list(recorder.submissions.values())[1:]
    product = _product(recorder, fewer)
    body = CheckRequest(submissions=tuple(fewer), product_digest=product_digest(product)).encode()
    twins["share_holder_second_set"] = recorder.must_fail(FIRST, recorder.served(check, body))

    def holder(name: str, change: Any, kind: MessageType = opening) -> None:
        recorder = Recorder("key holder").collect().ask()
        frame = dict(recorder.do("close_phase", "server"))[str(HOLDER)]
        request = OpenRequest.decode(decode_frame(frame).body, most=5)
        body = change(recorder, request)
        twins[f"key_holder_{name}"] = recorder.must_fail(HOLDER, recorder.served(kind, body))

    def with_(**changes: Any) -> Any:
        def changed(recorder: Recorder, request: OpenRequest) -> bytes:
            fields = {
                name: getattr(request, name) for name in ("contributors", "statements", "block")
            }
            made = {k: v(recorder, request) if callable(v) else v for k, v in changes.items()}
            return OpenRequest(**{**fields, **made}).encode()

        return changed

    holder("without_a_statement", with_(statements=()))
    holder("statement_altered", with_(statements=lambda _, r: (
        r.statements[0][:-1] + bytes([r.statements[0][-1] ^ 1]),)))  # fmt: skip
    holder("statement_of_a_client", with_(statements=lambda rec, r: (
        rec.signed(1, MessageType.PRODUCT_STATEMENT, bytes(decode_frame(r.statements[0]).body)),
    )))  # fmt: skip
    holder("another_message_as_statement", with_(statements=lambda rec, r: (
        rec.signed(WITNESS, MessageType.REFUSAL, bytes(decode_frame(r.statements[0]).body)),
    )))  # fmt: skip
    holder("one_clients_block", with_(block=lambda rec, _: _product(
        rec, list(rec.submissions.values())[:1])))  # fmt: skip
    holder("list_of_fewer", with_(contributors=lambda _, r: r.contributors[1:]))
    holder("list_too_short", with_(contributors=lambda _, r: r.contributors[:2]))
    holder("list_unsorted", with_(contributors=lambda _, r: r.contributors[::-1]))
    holder("block_cut", with_(block=lambda _, r: r.block[:-1]))
    holder("submissions", lambda rec, r: CheckRequest(
        submissions=tuple(rec.submissions.values()), product_digest=product_digest(r.block),
    ).encode(), check)  # fmt: skip

    def answered(name: str, mode: str, who: int, change: Any) -> None:
        recorder = Recorder(mode).collect()
        recorder = recorder.ask().ask(hand_in=False) if who == HOLDER else recorder.ask(
            hand_in=False
        )  # fmt: skip
        frame = decode_frame(recorder.answers[str(who)])
        body = change(bytes(frame.body), recorder)
        lie = recorder.signed(who, MessageType(frame.type), body)
        twins[name] = recorder.must_fail("server", lie)

    width = SlotLayout(bound=BOUND, max_clients=MOST).width

    def too_large(body: bytes, _: Recorder) -> bytes:
        found = Opened.decode(body, m=LENGTH, width=width)
        slots = found.slots.copy()
        slots[0] = 2 * BOUND * found.count + 1
        return Opened(list_digest=found.list_digest, count=found.count, slots=slots).encode(width)

    answered("opened_of_another_list", "key holder", HOLDER, lambda b, _: bytes(32) + b[32:])
    answered("opened_of_another_count", "key holder", HOLDER, lambda b, _: b[:32] + b"\3" + b[33:])
    answered("opened_slot_too_large", "key holder", HOLDER, too_large)
    n = threshold_key()[0].public.n
    N = n * n
    W = threshold_key()[0].degree.ciphertext_bytes

    def partial(change: Any) -> Any:
        return lambda b, _: (
            b[:32] + change(int.from_bytes(b[32 : 32 + W], "big")).to_bytes(W, "big") + b[32 + W :]
        )

    answered("partial_shifted", "threshold", FIRST, partial(lambda c: c * (1 + n) % N))
    answered("partial_zero", "threshold", FIRST, partial(lambda _: 0))
    answered("partial_n", "threshold", FIRST, partial(lambda _: n))
    answered("partials_of_another_list", "threshold", FIRST, lambda b, _: bytes(32) + b[32:])
    answered("partials_of_another_holder", "threshold", FIRST,
             lambda _, rec: bytes(decode_frame(rec.answers[str(FIRST + 1)]).body))  # fmt: skip
    answered("partials_without_proof", "threshold", FIRST, lambda b, _: b[: -len(b) // 2])
    answered("partials_proof_altered", "threshold", FIRST,
             lambda b, _: b[:-1] + bytes([b[-1] ^ 1]))  # fmt: skip

    recorder = Recorder("key holder")
    recorder.do("start", 1)
    lie = recorder.served(MessageType.ROUND_OPEN, bytes(32))
    twins["round_of_other_terms"] = recorder.must_fail(1, lie)
    recorder = Recorder("key holder").collect(hand_in=False)
    twins["second_round_open"] = recorder.must_fail(1, lie)
    return twins


def _product(recorder: Recorder, frames: list[bytes]) -> bytes:
    """The product block of these submissions."""
    check = recorder.machines["server"]._check
    total = None
    for frame in frames:
        total = check.multiply(total, check.frame(frame).ciphertexts)
    block: bytes = check.product_block(total, terms=len(frames))
    return block


def files() -> dict[str, dict[str, Any]]:
    """All documents by path."""
    found = {
        "paillier/key_holder.json": Recorder("key holder").finish(),
        "paillier/threshold.json": Recorder("threshold").finish(),
    }
    for wrong, document in {**submission_twins(), **decider_twins()}.items():
        found[f"paillier/bad_{wrong}.json"] = document
    return found


if __name__ == "__main__":
    for path, document in files().items():
        (HERE / path).write_text(MAKE.text(document))
