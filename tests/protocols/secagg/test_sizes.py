"""The size model against real frames, and against the published communication figures."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefl.errors import ConfigurationError
from securefl.modular import RingVector
from securefl.protocols.secagg.calculator import modulus_bits
from securefl.protocols.secagg.sizes import (
    SessionShape,
    Traffic,
    audit_path_length,
    expansion,
    traffic,
)
from securefl.protocols.secagg.transitions import MessageType
from securefl.round import Adversary, ClientId, Layout
from securefl.simulation.network import Direction, InMemoryNetwork
from securefl.simulation.session import SessionResult, run_session
from securefl.wire import decode_frame

ACTIVE = Adversary.ACTIVE
NAMES = {
    MessageType.ADVERTISE_KEYS: "AdvertiseKeys",
    MessageType.KEY_ROSTER: "KeyRoster",
    MessageType.ENCRYPTED_SHARES: "EncryptedShares",
    MessageType.SHARE_DELIVERY: "ShareDelivery",
    MessageType.MASKED_INPUT: "MaskedInput",
    MessageType.SURVIVOR_NOTICE: "SurvivorNotice",
    MessageType.SURVIVOR_SIGNATURE: "SurvivorSignature",
    MessageType.UNMASK_REQUEST: "UnmaskRequest",
    MessageType.UNMASK_SHARES: "UnmaskShares",
}


def played(bench: Any, b: int, gone: tuple[ClientId, ...]) -> SessionResult:
    """A real session over the in-memory network; ``gone`` vanish before their masked input."""
    return run_session(
        bench.server,
        bench.clients,
        {u: RingVector(v.values, 1 << b) for u, v in bench.vectors.items()},
        network=InMemoryNetwork(),
        drops={"masked_input_collection": gone},
    )


def assert_frames(result: SessionResult, u: ClientId, model: Traffic) -> None:
    """Every frame that u sent and received is as long as the model says, and no other came."""
    for direction, expected in ((Direction.UP, model.upload), (Direction.DOWN, model.download)):
        frames = [e for e in result.transcript if e.client == u and e.direction is direction]
        sent = {NAMES[MessageType(decode_frame(e.frame).type)]: len(e.frame) for e in frames}
        assert len(sent) == len(frames)
        assert sent == dict(expected)
    assert result.bytes_up[u] == model.upload_bytes
    assert result.bytes_down[u] == model.download_bytes


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(4, 20),
    m=st.integers(0, 40),
    b=st.integers(1, 64),
    layout=st.sampled_from(Layout),
    active=st.booleans(),
    data=st.data(),
)
def test_the_model_is_the_length_of_every_frame_of_a_real_session(
    secagg, n: int, m: int, b: int, layout: Layout, active: bool, data: st.DataObject
) -> None:
    # Against an active server t > (h + 1)/2 holders must be left.
    most = (n - 4) // 2 if active else n - 4
    dropped = data.draw(st.integers(0, max(0, most)))
    D = max(dropped, 0 if active else 1)
    bench = secagg.make(n, m=m, b=b, D=D, layout=layout, active=active)
    gone = tuple(bench.config.cohort.ids[:dropped])
    result = played(bench, b, gone)
    adversary = bench.config.adversary
    shape = SessionShape(n=n, k=n - 1, m=m, b=b, layout=layout, adversary=adversary)
    model = traffic(shape, dropped=dropped)
    assert tuple(bench.config.cohort.ids[dropped:]) == result.survivors.U5
    for u in result.survivors.U5:
        assert_frames(result, u, model)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(8, 24),
    m=st.integers(0, 40),
    b=st.integers(1, 64),
    active=st.booleans(),
    data=st.data(),
)
def test_the_model_is_the_length_of_every_frame_on_a_ring_too(
    secagg, n: int, m: int, b: int, active: bool, data: st.DataObject
) -> None:
    """Each client with the audit paths of its own neighbourhood."""
    dropped = data.draw(st.integers(0, 1))
    k = 2 * data.draw(st.integers(3, (n - 2) // 2))
    bench = secagg.make(n, m=m, b=b, k=k, D=1, active=active)
    ids = list(bench.config.cohort.ids)
    gone = tuple(data.draw(st.permutations(ids))[:dropped])
    result = played(bench, b, gone)
    shape = SessionShape(n=n, k=k, m=m, b=b, adversary=bench.config.adversary)
    for u in result.survivors.U5 or ():
        near = bench.server._graph.peers(u, ids)
        paths = tuple(audit_path_length(ids.index(v), n) for v in (u, *near))
        missing = sum(v in gone for v in near)
        assert_frames(result, u, traffic(shape, dropped=missing, path_lengths=paths))


@pytest.mark.parametrize(
    ("n", "m", "k", "adversary", "figure", "target"),
    [
        (2**10, 2**20, None, Adversary.SEMI_HONEST, "1.7386", 1.74),
        (2**14, 2**24, None, Adversary.SEMI_HONEST, "1.9885", 1.99),
        (2**14, 2**20, None, Adversary.SEMI_HONEST, "3.6906", 3.70),
        (2**10, 2**20, 72, Adversary.SEMI_HONEST, "1.6446", 1.65),
        (2**10, 2**20, None, ACTIVE, "1.8189", 1.82),
        (2**14, 2**24, None, ACTIVE, "2.0686", 2.07),
        (2**14, 2**20, None, ACTIVE, "4.9721", 4.98),
    ],
)
def test_communication_expansion_for_16_bit_inputs(
    n: int, m: int, k: int | None, adversary: Adversary, figure: str, target: float
) -> None:
    shape = SessionShape(
        n=n, k=k if k is not None else n - 1, m=m, b=modulus_bits(n, 16), adversary=adversary
    )
    found = expansion(traffic(shape), length=m, input_bits=16)
    assert f"{found:.4f}" == figure
    assert found <= target


@given(st.integers(3, 3000), st.integers(0, 10**6), st.integers(1, 64))
def test_the_closed_form_of_the_complete_graph(n: int, m: int, b: int) -> None:
    P = n - 1
    both = traffic(SessionShape(n=n, k=P, m=m, b=b))
    assert both.upload_bytes == 340 + 92 * P + -(-m * b // 8) + -(-P // 8)
    assert both.download_bytes == 188 + 68 * n + 72 * P + 2 * -(-P // 8)


@given(st.integers(4, 2000), st.data())
def test_the_table_of_message_sizes_for_the_other_variants(n: int, data: st.DataObject) -> None:
    """Body lengths as the wire format states them, written down a second time."""
    k = 2 * data.draw(st.integers(1, (n - 2) // 2))
    d = data.draw(st.integers(0, k))
    paths = tuple(data.draw(st.integers(0, 11)) for _ in range(3))
    paths += (0,) * (k + 1 - 3)
    semi = traffic(SessionShape(n=n, k=k, m=9, b=7), dropped=d, path_lengths=paths)
    assert semi.download["KeyRoster"] == 60 + 40 + 73 * (k + 1) + 32 * sum(paths)
    assert semi.download["UnmaskRequest"] == 60 + 4 + -(-k // 8)
    assert semi.upload["UnmaskShares"] == 60 + -(-k // 8) + 20 * (k - d) + 36 * d
    active = traffic(
        SessionShape(n=n, k=k, m=9, b=7, adversary=ACTIVE), dropped=d, path_lengths=paths
    )
    assert active.download["KeyRoster"] == 60 + 40 + 169 * (k + 1) + 32 * sum(paths)
    assert active.download["SurvivorNotice"] == 60 + -(-n // 8)
    assert active.download["UnmaskRequest"] == 60 + 4 + 68 * (k - d)
    assert active.upload["SurvivorSignature"] == 60 + 64 + 64
    assert active.upload_bytes == semi.upload_bytes + 4 * 64 + 60 + 64 + 64
    whole = traffic(SessionShape(n=n, k=n - 1, m=9, b=7, adversary=ACTIVE))
    assert whole.download["KeyRoster"] == 60 + 4 + 164 * n


def paths_by_building_the_tree(leaves: list[bytes]) -> tuple[bytes, list[int]]:
    """RFC 6962, section 2.1, with the tree really hashed: root and each leaf's path length."""
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest(), [0]
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    left, a = paths_by_building_the_tree(leaves[:half])
    right, b = paths_by_building_the_tree(leaves[half:])
    return hashlib.sha256(b"\1" + left + right).digest(), [x + 1 for x in a + b]


@pytest.mark.parametrize("size", [*range(1, 40), 64, 100, 127, 128, 129])
def test_audit_paths_are_as_long_as_in_the_tree_itself(size: int) -> None:
    _, expected = paths_by_building_the_tree([bytes([i % 256]) for i in range(size)])
    found = [audit_path_length(i, size) for i in range(size)]
    assert found == expected
    assert max(found) == (size - 1).bit_length()
    if size & (size - 1) == 0:
        assert set(found) == {size.bit_length() - 1}


def test_the_default_path_lengths_are_never_too_small() -> None:
    shape = SessionShape(n=100, k=16, m=1, b=8)
    lengths = sorted((audit_path_length(i, 100) for i in range(100)), reverse=True)
    longest = traffic(shape, path_lengths=tuple(lengths[:17]))
    assert traffic(shape).download_bytes == longest.download_bytes
    assert traffic(shape, path_lengths=tuple(lengths[-17:])).download_bytes < longest.download_bytes


def test_impossible_shapes_are_refused() -> None:
    for n, k in ((2, 1), (10, 10), (10, 1)):
        with pytest.raises(ConfigurationError, match="2 to n-1 neighbours"):
            SessionShape(n=n, k=k, m=1, b=8)
    with pytest.raises(ConfigurationError, match="layout ALL needs the complete graph"):
        SessionShape(n=10, k=4, m=1, b=8, layout=Layout.ALL)
    for m, b in ((-1, 8), (1, 0), (1, 65)):
        with pytest.raises(ConfigurationError, match="1 to 64 bits"):
            SessionShape(n=10, k=4, m=m, b=b)
    with pytest.raises(ConfigurationError, match="do not fit one frame"):
        SessionShape(n=10, k=4, m=1 << 31, b=32)
    shape = SessionShape(n=10, k=4, m=1, b=8)
    with pytest.raises(ConfigurationError, match="5 of 4 neighbours"):
        traffic(shape, dropped=5)
    with pytest.raises(ConfigurationError, match="as many audit paths, found 4"):
        traffic(shape, path_lengths=(4, 4, 4, 4))
    with pytest.raises(ConfigurationError, match="no leaf 3"):
        audit_path_length(3, 3)
