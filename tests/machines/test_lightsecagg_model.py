"""Any schedule, any lie: what no session of LightSecAgg may ever do.

The state machine of ``conftest.py`` plays scheduler, wire and server against LightSecAgg's real
machines; the rules below are this protocol's share of what the world checks after every call. There
are no restarts: these machines have no snapshots. The same model runs a short time by default and
20,000 examples in `make long`.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections import defaultdict
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from securefl.errors import ConfigurationError, SecureFLError
from securefl.protocols.lightsecagg import (
    LightSecAggClient,
    LightSecAggParams,
    LightSecAggServer,
)
from securefl.protocols.lightsecagg.messages import (
    EncodedShare,
    KeyRoster,
    RecoveryRequest,
    ShareClose,
)
from securefl.protocols.lightsecagg.transitions import (
    SERVER_PHASES,
    MessageType,
    client_row,
    server_row,
)
from securefl.protocols.messages import SignedUnmaskRequest, SurvivorNotice
from securefl.round import SERVER, Adversary, ClientId, ThreatModel, Usage, dst
from securefl.wire import Frame, decode_frame, encode_frame, signed_content

LISTS = {
    MessageType.SHARE_CLOSE: ShareClose,
    MessageType.SURVIVOR_NOTICE: SurvivorNotice,
    MessageType.RECOVERY_REQUEST: RecoveryRequest,
}


@lru_cache(maxsize=1)
def variants() -> dict[tuple[int, bool, bool], list[LightSecAggParams]]:
    """Every (U, T) that the constructor takes, by (n, active, False); few answers needed: often."""
    found: dict[tuple[int, bool, bool], list[LightSecAggParams]] = defaultdict(list)
    for n in range(3, 10):
        for adversary in Adversary:
            for U in range(2, n + 1):
                for T in range(1, U):
                    for n_min in (U, U + 1):
                        threat = ThreatModel(adversary=adversary, corrupt=1, dropped=n - U)
                        with contextlib.suppress(ConfigurationError):
                            params = LightSecAggParams.of(n, threat, U=U, T=T, n_min=n_min)
                            found[n, adversary is Adversary.ACTIVE, False] += [params] * (n - U + 1)
    return found


class LightSecAggRules:
    """What another protocol's world does otherwise; mixed into ``World``."""

    types = MessageType
    client_row = staticmethod(client_row)
    server_row = staticmethod(server_row)
    server_phases = SERVER_PHASES

    def __post_init__(self) -> None:
        super().__post_init__()
        self.frames: dict[bytes, bytes] = {}  # all that ever arrived, by digest
        self.answered: dict[ClientId, frozenset[ClientId]] = {}  # the list a client answered for

    def ring(self) -> dict[str, Any]:
        return {}  # always the field

    def fresh(self, who: ClientId) -> Any:
        return self.built(who, LightSecAggClient, LightSecAggServer)

    def act(self, who: ClientId, call: Any, frame: bytes | None = None) -> SecureFLError | None:
        if frame is not None:
            self.frames[hashlib.sha256(frame).digest()] = frame
        before, phase = self.inputs_taken(), self.server.phase
        error = super().act(who, call, frame)
        if phase == "masked_input_collection" or self.server.final:
            return error
        assert self.inputs_taken() == before, "an input was added in another phase"
        return error

    def inputs_taken(self) -> bytes | None:
        total = self.server._total
        return None if total is None else total.tobytes()

    # -- what must hold -----------------------------------------------------------------------

    def kind_in(self, key: Any) -> MessageType:
        """Clients accept one coded share of each dealer, and one message of each other type."""
        return key[0]

    def members(self, alive: Any) -> frozenset[ClientId]:
        return frozenset(v for v, there in zip(self.cohort, alive, strict=True) if there)

    def check_client_frame(
        self, u: ClientId, machine: Any, frame: bytes, cause: bytes | None
    ) -> None:
        kind = MessageType(decode_frame(frame).type)
        assert (u, kind) not in self.emitted, f"client {u} sent a second {kind.name}"
        super().check_client_frame(u, machine, frame, cause)

    def check_answer(self, u: ClientId, machine: Any, parsed: Frame, cause: bytes | None) -> None:
        """One list per client; one list per session if it is active, signed by U who are on it."""
        kind, n = MessageType(parsed.type), self.config.n
        if kind is MessageType.SURVIVOR_SIGNATURE:
            self.lists[u] = self.members(SurvivorNotice.decode(decode_frame(cause).body, n=n).alive)
        if kind is not MessageType.AGGREGATE_SHARE:
            return
        body = decode_frame(cause).body
        if self.active:
            U3 = self.lists[u]
            signers = {v for v in self.cohort if v != u and self.shown(v, bytes(body), U3)}
            assert len(signers) + 1 >= self.params.U, "it answered without U signers of its list"
        else:
            U3 = self.members(RecoveryRequest.decode(body, n=n).alive)
        assert u in U3
        assert len(U3) >= max(self.params.U, self.params.n_min)
        assert u not in self.answered, f"client {u} answered twice"
        self.answered[u] = U3
        if self.active:
            assert len(set(self.answered.values())) == 1, "two lists were answered"

    def shown(self, v: ClientId, request: bytes, U3: frozenset[ClientId]) -> bool:
        """Whether the request has what client v really signed for this list."""
        frame = self.emitted.get((v, MessageType.SURVIVOR_SIGNATURE))
        if frame is None:
            return False
        signature = bytes(decode_frame(frame).body)
        return signature in request and self.signed(v, signature, U3)

    def check_server(self) -> None:
        """Also that the sets are nested in the cohort, and their members have really replied."""
        super().check_server()
        sets = [set(closed) for closed in self.server._U]
        for larger, smaller in pairwise([set(self.cohort), *sets]):
            assert smaller <= larger
        for row, members in zip(self.phases(), sets, strict=False):
            assert members <= {u for kind, u in self.taken if kind is row.accepts}

    def phases(self) -> list[Any]:
        return [row for row in SERVER_PHASES if self.params.threat.adversary in row.then]

    def transcript(self) -> bytes:
        lines = sorted((key, d) for key, d in self.taken.items() if key[0] is not MessageType.ABORT)
        joined = b"".join(bytes([k]) + int(u).to_bytes(4, "little") + d for (k, u), d in lines)
        return hashlib.sha256(dst(Usage.TRANSCRIPT, self.config.protocol) + joined).digest()

    def undetectable(self) -> bool:
        """Another input, or more wrong answers than the surplus of answers corrects."""
        result, U3 = self.server.result, self.server.survivors.U3
        U5 = self.server.survivors.U5
        assert result.min_honest == len(U3) - self.params.T
        wrong = {u for u in U5 if self.wrong_answer(u)}
        named = {holder for _, holder in result.mismatched_pairs}
        corrected = (len(U5) - self.params.U) // 2
        if len(wrong) > corrected:
            # Two polynomials of degree below U agree in at most U - 1 answers.
            seen = len(wrong) + corrected <= len(U5) - self.params.U
            assert not seen, "a sum was opened from answers that do not fit together"
            return True
        assert named == wrong, "it does not name those whose answers are wrong"
        surplus = len(U5) - len(wrong) - self.params.U
        assert result.verified == (surplus >= self.config.A)
        return not all(self.genuine_reply(u, MessageType.MASKED_INPUT) for u in U3)

    def wrong_answer(self, u: ClientId) -> bool:
        """Whether what the server took of u differs from u's share of the sum over U3."""
        if self.m == 0:
            return False  # there is nothing to be wrong about
        sent = self.emitted.get((u, MessageType.AGGREGATE_SHARE))
        if sent is None or self.answered[u] != frozenset(self.server.survivors.U3):
            return True
        taken = self.frames[self.taken[MessageType.AGGREGATE_SHARE, u]]
        return bytes(decode_frame(taken).body) != bytes(decode_frame(sent).body)

    def mutated(self, frame: bytes, chance: random.Random) -> bytes:
        """Also a well-formed wrong answer, signed by whoever gives it."""
        try:
            parsed = decode_frame(frame)
        except SecureFLError:
            return super().mutated(frame, chance)
        if parsed.type != MessageType.AGGREGATE_SHARE or not self.m or chance.random() < 0.3:
            return super().mutated(frame, chance)
        body = np.frombuffer(bytes(parsed.body), dtype="<u4").copy()
        place = chance.randrange(len(body))
        body[place] = (int(body[place]) + 1) % self.config.modulus
        content = replace(parsed, body=body.tobytes(), signature=b"")
        if self.active:
            statement = self.labels.frame_statement(SERVER, signed_content(content))
            signature = self.identity[parsed.sender].sign(statement)
            content = replace(content, signature=signature)
        return encode_frame(content)

    # -- a server that lies -------------------------------------------------------------------

    def lie(self, u: ClientId, chance: random.Random) -> bytes | None:
        """A well-formed frame with which the server tells client u something else, if it can."""
        client = self.clients[u]
        row = client_row(client.phase)
        kind = MessageType.RECOVERY_REQUEST if row is None else row.accepts
        if kind is None or (client._end.session is None and kind is not MessageType.KEY_ROSTER):
            return None
        if client._end.session is not None and chance.random() < 0.2:  # out of turn, or again
            kind = chance.choice([MessageType.ENCODED_SHARE, *LISTS])
        if kind is MessageType.KEY_ROSTER:
            return self.other_roster(u, chance)
        if kind is MessageType.SHARE_CLOSE and chance.random() < 0.5:
            kind = MessageType.ENCODED_SHARE
        if kind is MessageType.ENCODED_SHARE:
            return self.other_share(u, chance)
        if kind is MessageType.RECOVERY_REQUEST and self.active:
            agreed = {v for v in client._P if self.lists.get(v) == self.lists.get(u)}
            if chance.random() < 0.3:
                return self.down(u, kind, self.forged_signatures(u))
            possible = agreed if chance.random() < 0.7 else set(client._P)
            return self.down(u, kind, self.signatures_shown(possible, chance))
        return self.down(u, kind, LISTS[kind](alive=self.other_list(u, chance)).encode())

    def roster_type(self) -> Any:
        return KeyRoster

    def forged_signatures(self, u: ClientId) -> bytes:
        """As if everybody on u's list had signed it: what they signed instead, or zeros."""
        shown = []
        for v in sorted(self.lists.get(u, frozenset()) - {u}):
            frame = self.emitted.get((v, MessageType.SURVIVOR_SIGNATURE))
            shown.append((v, bytes(64) if frame is None else bytes(decode_frame(frame).body)))
        return SignedUnmaskRequest(signatures=tuple(shown)).encode()

    def other_list(self, u: ClientId, chance: random.Random) -> Any:
        """A list that is near the true one (the same for all who are lied to but them), or any."""
        closed = self.server._U or [self.cohort.ids]
        near = set(chance.choice([closed[-1], closed[0]]))
        near ^= {chance.choice(list(self.cohort))}
        any_ = {u for u in self.cohort if chance.random() < 0.8}
        told = near if chance.random() < 0.7 else any_
        told |= {u} if chance.random() < 0.8 else set()  # or it refuses at once
        return np.array([u in told for u in self.cohort], dtype=np.bool_)

    def other_share(self, u: ClientId, chance: random.Random) -> bytes | None:
        """A share of another dealer, of another holder, or none at all."""
        shares = [
            message.frame
            for message in self.history
            if decode_frame(message.frame).type == MessageType.ENCODED_SHARE
        ]
        if not shares:
            return None
        size = self.clients[u]._code.L
        share = EncodedShare.decode(decode_frame(chance.choice(shares)).body, L=size)
        how = chance.randrange(3)
        if how == 0:
            share = replace(share, dealer=chance.choice(list(self.cohort)))
        elif how == 1:
            share = replace(share, ciphertext=bytes(len(share.ciphertext)))
        return self.down(u, MessageType.ENCODED_SHARE, share.encode())


@pytest.fixture(scope="module")
def lightsecagg(universe: Any) -> Any:
    return replace(
        universe,
        World=type("LightSecAggWorld", (LightSecAggRules, universe.World), {}),
        variants=variants,
        sizes=[3, 4, 4, 5, 5, 6, 6, 7, 8, 9],
        restarts=False,
    )


ROWS = {
    ("server", "advertise_keys", "ADVERTISE_KEYS"),
    ("server", "share_masks", "ENCODED_SHARES"),
    ("server", "masked_input_collection", "MASKED_INPUT"),
    ("server", "consistency_check", "SURVIVOR_SIGNATURE"),
    ("server", "recovery", "AGGREGATE_SHARE"),
    ("client", "share_masks", "KEY_ROSTER"),
    ("client", "masked_input_collection", "ENCODED_SHARE"),
    ("client", "masked_input_collection", "SHARE_CLOSE"),
    ("client", "consistency_check", "SURVIVOR_NOTICE"),
    ("client", "recovery", "RECOVERY_REQUEST"),
}


def test_no_short_schedule_breaks_a_session_of_lightsecagg(lightsecagg: Any) -> None:
    seen, pairs = lightsecagg.play(max_examples=250, stateful_step_count=12, derandomize=True)
    assert seen["examples"] >= 250
    assert pairs == ROWS
    for what in ("lost", "held back", "repeated", "misdelivered", "changed", "lied"):
        assert seen[what] > 10, seen
    assert seen["exact sum after a fault"] > 20, seen
    assert seen["aborted"] > 20, seen


@pytest.mark.long
def test_no_schedule_of_twenty_thousand_breaks_a_session_of_lightsecagg(lightsecagg: Any) -> None:
    seen, pairs = lightsecagg.play(max_examples=20_000, stateful_step_count=20)
    print(dict(seen))
    assert seen["examples"] >= 20_000
    assert pairs == ROWS
    assert seen["exact sum after a fault"] > 1000, seen
    assert seen["aborted"] > 500, seen


def test_an_undisturbed_lightsecagg_world_opens_its_sum(lightsecagg: Any) -> None:
    """The control: without faults every kind of variant comes to its end."""
    for (n, active, _), choices in variants().items():
        for params in {choices[0], choices[-1]}:
            world = lightsecagg.World(params, 3, 31, n)
            for u in world.cohort:
                world.start(u)
            while not world.server.final:
                world.deliver_all()
                world.close()
            assert world.opened, (n, active, params)
            assert not world.spoiled
