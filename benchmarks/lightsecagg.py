"""CPU seconds and bytes of LightSecAgg, and its planner's advice against whole measured sessions.

Run it with:  python benchmarks/lightsecagg.py [--json] [--skip-large]

Three parts. *Large*: one client and one server at N=200, U=140, T=100 and 1.2 million entries, the
real machines, but with the other parties' frames made up by this program (200 real clients would
need the memory of 200). What they send is valid, so the client's answer and the server's sum are
checked. *Dropouts*: whole sessions with 0 to 30 % of the clients leaving after they dealt their
shares; the server's time should not grow. *Advice*: four points, both protocols, whole sessions;
CPU seconds of a client and of the server plus its bytes over the bandwidth, and who was faster,
beside the advice. CPU time of this process; compare numbers from one run only.
"""

import argparse
import gc
import json
import os
import platform
import time

import numpy as np

from securefl.modular import RingVector
from securefl.primitives.channel import AgreementKey, PublicKey
from securefl.primitives.field import PRIME
from securefl.protocols.comparison import compare
from securefl.protocols.keys import SessionKeys
from securefl.protocols.lightsecagg import (
    ClientPolicy,
    LightSecAggClient,
    LightSecAggParams,
    LightSecAggServer,
)
from securefl.protocols.lightsecagg.calculator import plan_round as plan_light
from securefl.protocols.lightsecagg.coding import MaskCode, accumulate
from securefl.protocols.lightsecagg.messages import (
    EncodedShare,
    KeyRoster,
    RecoveryRequest,
    RosterEntry,
    ShareClose,
    decode_elements,
    encode_elements,
)
from securefl.protocols.lightsecagg.sizes import SessionShape, traffic
from securefl.protocols.lightsecagg.transitions import MessageType
from securefl.protocols.secagg import SecAggClient, SecAggParams, SecAggServer
from securefl.protocols.secagg.calculator import plan_round as plan_secagg
from securefl.round import SERVER, ClientId, Cohort, Protocol, RoundConfig, RoundId, ThreatModel
from securefl.simulation.network import InMemoryNetwork
from securefl.simulation.session import run_session
from securefl.wire import Frame, decode_frame, encode_frame

CONTEXT = bytes(32)
POLICY = ClientPolicy(gamma=0)
KEYS = SessionKeys(Protocol.LIGHTSECAGG)
N, U, T, M = 200, 140, 100, 1_200_000
TARGETS = {"encode": 1.0, "decode": 0.5}  # CPU seconds
# clients, corrupt, dropped (planned and real), entries, bit/s per client
POINTS = (
    (40, 2, 20, 40_000, 1e8),
    (40, 2, 20, 40_000, 1e11),
    (80, 4, 8, 100_000, 2e7),
    (80, 4, 44, 40_000, 1e11),
)


def config_of(params: LightSecAggParams, m: int) -> RoundConfig:
    return params.config(
        round_id=RoundId(1),
        cohort=Cohort.of(range(params.n)),
        m=m,
        context_digest=CONTEXT,
        server_nonce=os.urandom(32),
    )


def frame(kind: MessageType, sender: int, session: bytes, body: bytes) -> bytes:
    return encode_frame(
        Frame(
            protocol=Protocol.LIGHTSECAGG,
            type=kind,
            sender=ClientId(sender),
            round_id=RoundId(1),
            session=session,
            body=body,
        )
    )


class Stopwatch:
    """CPU seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, call, *arguments):
        """Calls, and adds what it took to the seconds of this name."""
        begin = time.process_time()
        result = call(*arguments)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - begin
        return result


def large_client(config: RoundConfig) -> dict[str, object]:
    """One real client among made-up peers who follow the protocol; its answer is checked."""
    watch, code = Stopwatch(), MaskCode(N=N, U=U, T=T, m=M)
    client = LightSecAggClient(ClientId(0), config, context_digest=CONTEXT, policy=POLICY)
    sent = [watch("start", client.start)[0].frame]
    peers = {u: AgreementKey(os.urandom(32)) for u in range(1, N)}
    own = bytes(decode_frame(sent[0]).body)
    entries = [RosterEntry(ClientId(0), own)]
    entries += [RosterEntry(ClientId(u), key.public) for u, key in peers.items()]
    roster = KeyRoster(entries=tuple(entries)).encode()
    digest = config.digest()
    down = [frame(MessageType.KEY_ROSTER, SERVER, digest, roster)]
    sent.append(watch("encode", client.receive, down[0])[0].frame)
    root = KEYS.roster_tree([entry.encode() for entry in entries]).root
    session = KEYS.session_id(digest, N, root)

    generator = np.random.default_rng(0)  # public test inputs
    expected = np.zeros(code.L, dtype=np.uint32)
    for u, key in peers.items():
        share = generator.integers(0, PRIME, code.L, dtype=np.uint32)
        accumulate(expected, share)
        sealed = KEYS.seal_shares(
            key.agree(PublicKey(own)), session, u, ClientId(0), encode_elements(share)
        )
        body = EncodedShare(dealer=ClientId(u), ciphertext=sealed).encode()
        down.append(frame(MessageType.ENCODED_SHARE, SERVER, session, body))
        assert watch("shares", client.receive, down[-1]) == []
    accumulate(expected, client._secrets.shares[ClientId(0)])
    everybody = np.ones(N, dtype=np.bool_)
    body = ShareClose(alive=everybody).encode()
    down.append(frame(MessageType.SHARE_CLOSE, SERVER, session, body))
    watch("mask", client.receive, down[-1])
    vector = RingVector(generator.integers(0, 1 << 23, M, dtype=np.uint32), PRIME)
    sent.append(watch("mask", client.set_input, vector)[0].frame)
    body = RecoveryRequest(alive=everybody).encode()
    down.append(frame(MessageType.RECOVERY_REQUEST, SERVER, session, body))
    sent.append(watch("answer", client.receive, down[-1])[0].frame)
    answer = decode_elements(decode_frame(sent[-1]).body, count=code.L)
    assert np.array_equal(answer, expected)
    model = traffic(SessionShape(n=N, U=U, T=T, m=M))
    assert sum(map(len, sent)) == model.upload_bytes
    assert sum(map(len, down)) == model.download_bytes
    return {
        "seconds": watch.seconds,
        "upload_bytes": model.upload_bytes,
        "download_bytes": model.download_bytes,
        "shares_over_vector": model.upload["EncodedShares"] / (4 * M),
    }


def large_server(config: RoundConfig, percent: int) -> dict[str, float]:
    """The real server, made-up clients with one codeword for all masks; the sum is checked."""
    watch, server = Stopwatch(), LightSecAggServer(config)
    gone = percent * N // 100
    alive = list(range(gone, N))
    code = MaskCode(N=N, U=U, T=T, m=M)
    blocks = code.blocks(b"benchmark's mask")
    answers, mask = code.encode(blocks, range(N)), code.mask(blocks)
    vector = np.random.default_rng(1).integers(0, PRIME // N, M, dtype=np.uint32)
    masked = vector.copy()
    accumulate(masked, mask)
    for u in range(N):
        key = AgreementKey(os.urandom(32)).public
        sent = frame(MessageType.ADVERTISE_KEYS, u, config.digest(), key)
        watch("keys", server.receive, sent)
    session_of_frames = [o for o in watch("keys", server.close_phase) if hasattr(o, "frame")]
    assert len(session_of_frames) == N
    session = server._end.session
    shares = (N - 1).to_bytes(4, "little") + os.urandom((N - 1) * (4 * code.L + 16))
    for u in range(N):
        sent = frame(MessageType.ENCODED_SHARES, u, session, shares)
        assert len(watch("pass_on", server.receive, sent)) == N - 1
    watch("pass_on", server.close_phase)
    for u in alive:
        words = masked if u == alive[0] else vector
        sent = frame(MessageType.MASKED_INPUT, u, session, encode_elements(words))
        watch("add", server.receive, sent)
    watch("add", server.close_phase)
    for u in alive:
        body = encode_elements(answers[u])
        watch("decode", server.receive, frame(MessageType.AGGREGATE_SHARE, u, session, body))
    watch("decode", server.close_phase)
    total = vector.astype(np.uint64) * np.uint64(len(alive)) % np.uint64(PRIME)
    assert np.array_equal(server.result.vector.values, total)
    return {"percent": percent, **watch.seconds, "total": sum(watch.seconds.values())}


def session(config: RoundConfig, server, client_type, gone: int) -> dict[str, float]:
    """A whole session in which ``gone`` clients leave after they dealt their shares."""
    clients = {
        u: client_type(u, config, context_digest=CONTEXT, policy=POLICY) for u in config.cohort
    }
    gc.collect()  # not in the next session's time
    m = config.m
    base = np.random.default_rng(2).integers(0, 1 << 16, m, dtype=np.uint32)
    result = run_session(
        server,
        clients,
        lambda u: RingVector(base, config.modulus),
        network=InMemoryNetwork(keep_transcript=False),
        drops={"masked_input_collection": config.cohort.ids[:gone]},
    )
    survivors = config.n - gone
    assert np.array_equal(
        result.aggregate.vector.values.astype(np.uint64), base.astype(np.uint64) * survivors
    )
    last = config.cohort.ids[-1]
    return {
        # Every client does everything but for those that leave before their input.
        "client": sum(result.client_seconds.values()) / config.n,
        "server": sum(result.server_seconds.values()),
        "bytes": result.bytes_up[last] + result.bytes_down[last],
    }


def advice(n: int, A: int, D: int, m: int, bandwidth: float) -> dict[str, object]:
    """The planner's advice at one point beside what both protocols really took."""
    threat = ThreatModel(corrupt=A, dropped=D)
    secagg = plan_secagg(n, threat, length=m, input_bits=16)
    light = plan_light(n, threat, length=m, input_bits=16)
    found = compare(secagg, light, bandwidth=bandwidth)
    chosen = secagg.parameters
    if chosen.k == n - 1:
        params = SecAggParams.complete(n, threat, t=chosen.t)
    else:
        params = SecAggParams.harary(n, threat, k=chosen.k, t=chosen.t)
    pairwise = params.config(
        round_id=RoundId(1),
        cohort=Cohort.of(range(n)),
        m=m,
        b=secagg.modulus_bits,
        context_digest=CONTEXT,
        server_nonce=os.urandom(32),
    )
    coded = config_of(light.params, m)
    taken = {
        "secagg": session(pairwise, SecAggServer(pairwise), SecAggClient, D),
        "lightsecagg": session(coded, LightSecAggServer(coded), LightSecAggClient, D),
    }
    seconds = {
        name: t["client"] + t["server"] + 8 * t["bytes"] / bandwidth for name, t in taken.items()
    }
    return {
        "n": n,
        "corrupt": A,
        "dropped": D,
        "m": m,
        "bandwidth": bandwidth,
        "advised": "lightsecagg" if found.light_is_faster else "secagg",
        "measured": min(seconds, key=seconds.__getitem__),
        "estimated_seconds": {"secagg": found.secagg.total, "lightsecagg": found.light.total},
        "measured_seconds": seconds,
    }


def flat(n: int, m: int) -> list[dict[str, float]]:
    params = LightSecAggParams.of(n, ThreatModel(corrupt=n // 5, dropped=3 * n // 10))
    rows = []
    for percent in (0, 10, 20, 30):
        config = config_of(params, m)
        row = session(config, LightSecAggServer(config), LightSecAggClient, percent * n // 100)
        rows.append({"percent": percent, **row})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--skip-large", action="store_true", help="leave out N=200, 1.2M entries")
    given = parser.parse_args()
    report: dict[str, object] = {"machine": platform.processor() or platform.machine()}
    if not given.skip_large:
        params = LightSecAggParams.of(N, ThreatModel(corrupt=T, dropped=N - U))
        report["client"] = large_client(config_of(params, M))
        report["server"] = [large_server(config_of(params, M), p) for p in (0, 10, 30)]
    report["dropouts"] = flat(60, 20_000)
    report["advice"] = [advice(*point) for point in POINTS]
    if given.json:
        print(json.dumps(report, indent=2))
        return
    if not given.skip_large:
        print(f"N={N}, U={U}, T={T}, m={M}; one client, CPU seconds (targets {TARGETS}):")
        for name, seconds in report["client"]["seconds"].items():
            print(f"  {name:8} {seconds:7.3f}")
        up, down = report["client"]["upload_bytes"], report["client"]["download_bytes"]
        ratio = report["client"]["shares_over_vector"]
        print(f"  bytes up {up:,}, down {down:,}; shares are {ratio:.2f} times the vector")
        print("server, CPU seconds:  dropped   pass on    add  decode   total")
        for row in report["server"]:
            print(
                f"{row['percent']:27} % {row['pass_on']:9.3f} {row['add']:6.3f} "
                f"{row['decode']:7.3f} {row['total']:7.3f}"
            )
    print("whole sessions, n=60, 20,000 entries: dropped, server ms, client ms")
    for row in report["dropouts"]:
        print(f"{row['percent']:5} % {1e3 * row['server']:8.1f} {1e3 * row['client']:8.2f}")
    print("advice against measured totals, seconds (SecAgg+ / LightSecAgg)")
    for row in report["advice"]:
        estimated, measured = row["estimated_seconds"], row["measured_seconds"]
        print(
            f"  n={row['n']} D={row['dropped']} m={row['m']} {row['bandwidth']:.0e} bit/s: "
            f"estimated {estimated['secagg']:.3f} / {estimated['lightsecagg']:.3f}, "
            f"measured {measured['secagg']:.3f} / {measured['lightsecagg']:.3f}; "
            f"advised {row['advised']}, faster {row['measured']}"
        )


if __name__ == "__main__":
    main()
