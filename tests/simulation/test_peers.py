"""Sums without a server, driven: ``run_peers``, ``secure_sum(protocol="peersum")`` and training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import accounting
from securefl import secure_sum
from securefl.config import RunConfig, load_preset
from securefl.errors import BelowThreshold, ConfigurationError
from securefl.modular import RingVector
from securefl.protocols.machine import SignedTwice
from securefl.protocols.peersum import ClientPolicy, PeerSumParams, check_signed_twice
from securefl.protocols.peersum.messages import Confirm
from securefl.protocols.peersum.sizes import SessionShape, traffic
from securefl.protocols.peersum.transitions import PHASES, MessageType
from securefl.round import ClientId, Cohort, RoundId
from securefl.simulation.engine import Engine, read_metrics
from securefl.simulation.network import Delivery, Direction, Envelope, InMemoryNetwork, drop
from securefl.simulation.peers import fresh_peers, run_peers
from securefl.simulation.schemes import PeerSumScheme, scheme_of
from securefl.simulation.transports import PHASES as MOMENTS
from securefl.simulation.transports import DropPlan, ProtocolTransport, phases_of_peers
from securefl.training.data import TrainTest, load
from securefl.wire import decode_frame

PRIME = 2**31 - 1


def session(n: int = 10, corrupt: int = 1, dropped: int = 3, m: int = 4) -> Any:
    params = PeerSumParams.of(n, corrupt=corrupt, dropped=dropped)
    _, peers = fresh_peers(
        params, Cohort.of(range(n)), m=m, context_digest=bytes(32), policy=ClientPolicy(gamma=0)
    )
    return peers


def inputs_of(peers: Any, m: int = 4) -> dict[ClientId, RingVector]:
    return {u: RingVector(np.full(m, u + 1, dtype=np.uint32), PRIME) for u in peers}


# -- secure_sum ---------------------------------------------------------------------------------


@settings(max_examples=settings.default.max_examples // 2)
@given(st.data())
def test_every_peers_sum_is_the_plain_sum_over_those_who_shared_or_below_threshold(
    data: st.DataObject,
) -> None:
    n = data.draw(st.integers(3, 10))
    threshold = data.draw(st.integers((n + 1) // 2 + 1, n))
    if min(2 * threshold - n - 1, threshold - 2) < 1:
        return
    top = ((2**31 - 2) // n + 1).bit_length() - 1
    bits = data.draw(st.one_of(st.none(), st.integers(1, top)))
    high = 2 ** (top if bits is None else bits) - 1
    entry = st.one_of(st.just(high), st.integers(0, high))
    vectors = {10 * c: data.draw(st.lists(entry, min_size=3, max_size=3)) for c in range(n)}
    gone = data.draw(st.lists(st.sampled_from(sorted(vectors)), unique=True, max_size=n // 2))
    when = {c: data.draw(st.sampled_from(PHASES)) for c in gone}
    drops = {p: [c for c, w in when.items() if w == p] for p in PHASES}
    alive = {p: n - sum(PHASES.index(w) <= i for w in when.values()) for i, p in enumerate(PHASES)}
    try:
        result = secure_sum(vectors, protocol="peersum", drop=drops, threshold=threshold, bits=bits)
    except BelowThreshold as error:
        assert alive[error.phase] < threshold
        assert error.had == alive[error.phase]
        return
    assert min(alive.values()) >= threshold
    stayed = tuple(c for c in vectors if c not in when or PHASES.index(when[c]) > 1)
    assert result.survivors == stayed
    assert result.sum.tolist() == [sum(vectors[c][i] for c in stayed) for i in range(3)]
    assert {r.phase for r in result.transcript} == set(PHASES)
    assert {r.direction for r in result.transcript} == {Direction.ACROSS}
    up = {c: sum(len(r.frame) for r in result.transcript if r.sender == c) for c in vectors}
    down = {c: sum(len(r.frame) for r in result.transcript if r.recipient == c) for c in vectors}
    assert (result.bytes_up, result.bytes_down) == (up, down)


def test_a_third_of_the_peers_may_vanish_in_every_phase() -> None:
    vectors = {c: [c, c * c, 7] for c in range(10)}
    for phase in PHASES:
        result = secure_sum(vectors, protocol="peersum", drop={phase: [2, 5, 9]})
        inside = [
            c for c in vectors if c not in (2, 5, 9) or phase in ("report", "confirm", "reveal_sum")
        ]
        assert result.survivors == tuple(inside)
        assert result.sum.tolist() == [sum(vectors[c][i] for c in inside) for i in range(3)]


def test_the_bytes_are_those_of_the_size_model() -> None:
    result = secure_sum({c: [1] * 50 for c in range(6)}, protocol="peersum")
    expected = traffic(SessionShape(n=6, m=50))
    assert set(result.bytes_up.values()) == {expected.upload_bytes}
    assert set(result.bytes_down.values()) == {expected.download_bytes}


def test_what_peersum_cannot_do_is_refused_with_the_numbers() -> None:
    vectors = {c: [c] for c in range(6)}
    for how, text in (
        ({"degree": 4}, "joins everybody"),
        ({"processes": 2}, "processes must be 1"),
        ({"threshold": 3}, r"in 4\.\.6 among 6 peers"),
        ({"threshold": 7}, r"threshold must be an integer in 3\.\.6"),
        ({"bits": 29}, "use 1 to 28 bits"),
        ({"drop": {"unmasking": [1]}}, "unknown phase 'unmasking'"),
    ):
        with pytest.raises(ConfigurationError, match=text):
            secure_sum(vectors, protocol="peersum", **how)


# -- the driver ---------------------------------------------------------------------------------


def test_every_peer_has_the_same_sum_or_a_reason() -> None:
    peers = session()

    def lost(envelope: Envelope) -> bool:
        return envelope.recipient == 4 and envelope.phase == "report"

    result = run_peers(peers, inputs_of(peers), network=InMemoryNetwork(policies=[drop(lost)]))
    assert set(result.aggregates) == set(range(10)) - {4}
    assert isinstance(result.failures[ClientId(4)], BelowThreshold)
    assert len({a.vector.values.tobytes() for a in result.aggregates.values()}) == 1
    assert {a.survivors for a in result.aggregates.values()} == {tuple(range(10))}
    assert result.sent_input == set(range(10))
    assert set(result.client_seconds) == set(PHASES)


def test_two_lists_signed_by_one_peer_come_to_light_in_the_events() -> None:
    peers = session(6, dropped=1)
    liar, victim = ClientId(5), ClientId(0)
    identity = peers[liar]._end.identity

    def two_faced(envelope: Envelope) -> tuple[Delivery, ...] | None:
        if (envelope.sender, envelope.recipient) != (liar, victim):
            return None
        if decode_frame(envelope.frame).type != MessageType.CONFIRM:
            return None
        other = np.array([True] * 5 + [False])
        signature = identity.sign(peers[liar]._ballots.statement(other))
        body = Confirm(alive=other, signature=signature).encode()
        forged = peers[liar]._end.outbound(MessageType.CONFIRM, body, victim)
        return (Delivery(frame=forged.frame),)

    result = run_peers(peers, inputs_of(peers), network=InMemoryNetwork(policies=[two_faced]))
    (proof,) = [e for e in result.events_of[victim] if isinstance(e, SignedTwice)]
    check_signed_twice(proof, peers[victim]._end.directory)
    assert proof.client == liar
    assert set(result.aggregates) == set(range(6))


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"drops": {"unmasking": [1]}}, "unknown phases"),
        ({"drops": {"report": [77]}}, "who take no part"),
        ({"inputs": {}}, "no input for peers"),
        ({"peers": {}}, "needs peers"),
    ],
)
def test_the_driver_refuses_what_cannot_run(how: dict[str, Any], text: str) -> None:
    peers = session(4, dropped=0)
    given_: dict[str, Any] = {"peers": peers, "inputs": inputs_of(peers), **how}
    with pytest.raises(ConfigurationError, match=text):
        run_peers(given_.pop("peers"), given_.pop("inputs"), **given_)


def test_a_machine_under_another_id_is_refused() -> None:
    peers = session(4, dropped=0)
    peers[ClientId(0)], peers[ClientId(1)] = peers[ClientId(1)], peers[ClientId(0)]
    with pytest.raises(ConfigurationError, match="belongs to 1"):
        run_peers(peers, inputs_of(peers))


def test_if_everybody_vanishes_the_session_is_below_threshold() -> None:
    peers = session(4, dropped=0)
    with pytest.raises(BelowThreshold):
        run_peers(peers, inputs_of(peers), drops={"report": list(peers)})
    assert all(p.final for p in peers.values())


# -- training -----------------------------------------------------------------------------------

SERVERLESS = (
    "training.rounds=3",
    "training.local_epochs=1",
    "partition.clients=10",
    "simulation.dropped_per_round=3",
    'sweep.modes=["none"]',
    "sweep.seeds=[0]",
    "encoding.bits=31",
)


@pytest.fixture(scope="module")
def digits() -> TrainTest:
    return load("digits")


def config(*others: str) -> RunConfig:
    return load_preset("digits", [*SERVERLESS, *others])


def run(settings_: RunConfig, folder: Path, digits: TrainTest) -> dict[str, Any]:
    return dict(Engine(settings_, settings_.runs()[0], folder, dataset=digits).run().summary)


def test_without_a_server_and_with_a_third_gone_the_model_has_the_same_bits(
    tmp_path: Path, digits: TrainTest
) -> None:
    summaries, rounds = {}, {}
    for protocol in ("secagg", "peersum"):
        folder = tmp_path / protocol
        summaries[protocol] = run(config(f"aggregation.protocol={protocol}"), folder, digits)
        rounds[protocol] = [(x["dropped"], x["survivors"], x["status"])
                            for x in read_metrics(folder)]  # fmt: skip
    with_server, without = summaries["secagg"], summaries["peersum"]
    assert without["model_sha256"] == with_server["model_sha256"]
    assert without["accuracy"] == with_server["accuracy"]
    assert rounds["peersum"] == rounds["secagg"]
    assert without["dropped"] == 9 and without["rounds_lost"] == 0
    assert (without["protocol"], without["opened_by"]) == ("peersum", "peers")
    assert (without["shares"], without["threshold"], without["min_honest"]) == (7, 7, 6)
    assert without["codec"]["modulus"] == PRIME
    assert without["bytes_down_per_client"] > with_server["bytes_down_per_client"]
    encoded = run(
        config("aggregation.protocol=peersum", "aggregation.fidelity=encoded"),
        tmp_path / "encoded",
        digits,
    )
    assert encoded["model_sha256"] == without["model_sha256"]


def test_a_private_run_without_a_server_says_in_its_ledgers_how_it_was_summed(
    tmp_path: Path, digits: TrainTest
) -> None:
    private = (
        "aggregation.protocol=peersum", 'sweep.modes=["local-dp"]', "sweep.epsilons=[8.0]",
        "training.rounds=1", "local_dp.steps_per_round=1",
    )  # fmt: skip
    summary = run(config(*private), tmp_path / "run", digits)
    assert 0 < summary["epsilon"] <= 8.0
    plan = DropPlan(seed=0, per_round=3)
    senders = plan.senders(0, tuple(map(ClientId, range(10))))
    for ledger in summary["ledgers"]:
        with accounting.Ledger.open(tmp_path / "run" / ledger["path"]) as led:
            evidence = [e.evidence for e in led.entries() if getattr(e, "evidence", None)]
        assert len(evidence) == (ledger["client_index"] in senders)
        for one in evidence:
            assert (one.protocol, one.modulus) == ("peersum", PRIME)


def test_the_configuration_checks_the_numbers_of_peersum() -> None:
    good = config("aggregation.protocol=peersum")
    assert isinstance(good.sum_params(), PeerSumParams)
    assert isinstance(scheme_of(good), PeerSumScheme)
    assert load_preset("digits", ["aggregation.protocol=peersum"]).bits == 31
    for wrong, text in (
        ("aggregation.degree=4", "belongs to protocol"),
        ("encoding.bits=32", "at most 31 bits"),
        ("aggregation.threshold=5", "only 5 peers are left to sign.*q=6"),
    ):
        with pytest.raises(ConfigurationError, match=text):
            config("aggregation.protocol=peersum", "simulation.dropped_per_round=0", wrong)


def test_moments_of_a_schedule_fall_in_the_phases_of_peers() -> None:
    peers = session(4, dropped=0)
    moments = phases_of_peers(peers[ClientId(0)])
    assert tuple(moments) == MOMENTS
    assert list(moments.values()) == ["advertise_keys", "share_input", "share_input", "reveal_sum"]


def test_the_transport_carries_a_session_of_peers_and_a_lost_one() -> None:
    scheme = scheme_of(config("aggregation.protocol=peersum"))
    from securefl.primitives.signing import IdentityKey

    cohort = Cohort.of(range(10))
    for per_round in (3, 5):
        machines = scheme.machines(
            round_id=RoundId(0), cohort=cohort, present=cohort.ids, length=2, modulus=PRIME,
            context_digest=bytes(32),
            identities={u: IdentityKey(bytes([u + 1]) * 32) for u in cohort},
        )  # fmt: skip
        plan = DropPlan(seed=1, per_round=per_round)
        report = ProtocolTransport(plan=plan).carry(
            machines, lambda c: RingVector.from_signed([c, -c], PRIME), round_index=0
        )
        senders = plan.senders(0, cohort.ids)
        assert (report.aggregate is None) is (per_round == 5)
        if report.aggregate is not None:
            assert report.aggregate.vector.centred().tolist() == [sum(senders), -sum(senders)]
        assert set(report.bytes_up) == set(cohort)
    with pytest.raises(ConfigurationError, match="modulo"):
        scheme.machines(
            round_id=RoundId(0), cohort=cohort, present=cohort.ids, length=2, modulus=2**31,
            context_digest=bytes(32), identities={},
        )  # fmt: skip


def test_the_report_and_the_command_speak_of_no_server(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from securefl.cli import app

    report = pytest.importorskip("securefl.report", reason="the report is an extra of its own")
    overrides = [f"--set={x}" for x in (*SERVERLESS[1:], "aggregation.protocol=peersum",
                                        "training.rounds=1")]  # fmt: skip
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["train", "--preset", "digits", "--out", str(out), *overrides])
    assert done.exit_code == 0
    assert "no server" in done.output
    page = report.write_report(tmp_path / "out").read_text()
    assert "There was no server" in page
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["opened_by"] == "peers"
