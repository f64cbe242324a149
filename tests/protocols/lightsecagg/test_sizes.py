"""The size model against real frames, and against the formula of the design."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefl.errors import ConfigurationError
from securefl.protocols.lightsecagg.sizes import SessionShape, traffic
from securefl.round import Adversary
from securefl.simulation.network import Direction, InMemoryNetwork
from securefl.simulation.session import run_session


@settings(max_examples=15)
@given(n=st.integers(4, 12), m=st.integers(0, 60), active=st.booleans(), data=st.data())
def test_the_model_is_the_length_of_every_frame_of_a_real_session(
    light: Any, n: int, m: int, active: bool, data: st.DataObject
) -> None:
    U = data.draw(st.integers(n // 2 + 2, n))
    T = data.draw(st.integers(1, min(U - 2, 2 * U - n - 1)))
    dropped = data.draw(st.integers(0, n - U))
    bench = light.make(n, U=U, T=T, D=n - U, m=m, active=active)
    result = run_session(
        bench.server,
        bench.clients,
        bench.vectors,
        network=InMemoryNetwork(),
        drops={"masked_input_collection": bench.config.cohort.ids[:dropped]},
    )
    adversary = Adversary.ACTIVE if active else Adversary.SEMI_HONEST
    model = traffic(SessionShape(n=n, U=U, T=T, m=m, adversary=adversary), dropped=dropped)
    for u in result.survivors.U5 or ():
        for direction, expected in (
            (Direction.UP, model.upload),
            (Direction.DOWN, model.download),
        ):
            sent: Counter[str] = Counter()
            for e in result.transcript:
                if e.client == u and e.direction is direction:
                    name = light.kind_of(e.frame).name.title().replace("_", "")
                    sent[name] += len(e.frame)
            assert sent == dict(expected)
        assert result.bytes_up[u] == model.upload_bytes
        assert result.bytes_down[u] == model.download_bytes


@given(st.integers(3, 400), st.integers(0, 10**6), st.data())
def test_the_closed_form(n: int, m: int, data: st.DataObject) -> None:
    U = data.draw(st.integers(2, n))
    T = data.draw(st.integers(1, U - 1))
    L = -(-m // (U - T))
    both = traffic(SessionShape(n=n, U=U, T=T, m=m))
    assert both.upload_bytes == 4 * 60 + 32 + 4 + (n - 1) * (4 * L + 16) + 4 * m + 4 * L
    down = 3 * 60 + 4 + 36 * n + 2 * -(-n // 8) + (n - 1) * (60 + 4 + 4 * L + 16)
    assert both.download_bytes == down
    whole = traffic(SessionShape(n=n, U=U, T=T, m=m, adversary=Adversary.ACTIVE))
    assert whole.upload_bytes == both.upload_bytes + 4 * 64 + 60 + 64 + 64


def test_dropouts_cost_a_client_nothing() -> None:
    for adversary in Adversary:
        shape = SessionShape(n=50, U=30, T=10, m=1000, adversary=adversary)
        assert traffic(shape, dropped=20).upload_bytes == traffic(shape).upload_bytes
        assert traffic(shape, dropped=20).download_bytes <= traffic(shape).download_bytes


def test_impossible_shapes_are_refused() -> None:
    for n, U, T, m in ((2, 2, 1, 1), (5, 6, 1, 1), (5, 4, 4, 1), (5, 4, 0, 1), (5, 4, 1, -1)):
        with pytest.raises(ConfigurationError, match="1 <= T < U <= n"):
            SessionShape(n=n, U=U, T=T, m=m)
    with pytest.raises(ConfigurationError, match="need a frame of"):
        SessionShape(n=200, U=101, T=100, m=10**7)
    with pytest.raises(ConfigurationError, match="do not leave the U=4"):
        traffic(SessionShape(n=5, U=4, T=1, m=1), dropped=2)
