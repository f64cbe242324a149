"""``secure_sum(protocol="lightsecagg")``: the exact integer sum, or an error that says why not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefl import secure_sum
from securefl.encoding import CodecSpec, UpdateCodec, Weighting, sum_encoded
from securefl.errors import BelowThreshold, ConfigurationError
from securefl.protocols.lightsecagg import ClientPolicy, LightSecAggParams
from securefl.protocols.lightsecagg.parties import make_parties
from securefl.round import AggregateSum, ClientId, Cohort, RoundId, ThreatModel
from securefl.simulation.session import run_session

FOUR = ["advertise_keys", "share_masks", "masked_input_collection", "recovery"]


@settings(max_examples=settings.default.max_examples // 2)
@given(st.data())
def test_the_sum_is_the_plain_sum_over_those_who_stayed_or_below_threshold(
    data: st.DataObject,
) -> None:
    n = data.draw(st.integers(3, 12))
    active = data.draw(st.booleans())
    phases = [*FOUR[:3], *["consistency_check"] * active, FOUR[3]]
    least = (n + 1) // 2 + 1 if active else 3
    threshold = data.draw(st.integers(max(3, least), n))
    top = (2**31 - 2) // n
    bits = data.draw(st.one_of(st.none(), st.integers(1, (top + 1).bit_length() - 1)))
    high = 2 ** ((top + 1).bit_length() - 1 if bits is None else bits) - 1
    entry = st.one_of(st.just(high), st.integers(0, high))
    vectors = {10 * c: data.draw(st.lists(entry, min_size=3, max_size=3)) for c in range(n)}
    gone = data.draw(st.lists(st.sampled_from(sorted(vectors)), unique=True, max_size=n // 2))
    when = {c: data.draw(st.sampled_from(phases)) for c in gone}
    drop = {p: [c for c, w in when.items() if w == p] for p in phases}
    alive = {p: n - sum(phases.index(w) <= i for w in when.values()) for i, p in enumerate(phases)}
    try:
        result = secure_sum(
            vectors, protocol="lightsecagg", adversary="active" if active else "semi-honest",
            drop=drop, threshold=threshold, bits=bits,
        )  # fmt: skip
    except BelowThreshold as error:
        assert alive[error.phase] < threshold
        assert error.had == alive[error.phase]
        return
    assert min(alive.values()) >= threshold
    stayed = tuple(c for c in vectors if c not in when or phases.index(when[c]) > 2)
    assert result.survivors == stayed
    assert result.sum.tolist() == [sum(vectors[c][i] for c in stayed) for i in range(3)]
    assert {r.phase for r in result.transcript} == set(phases)
    up = {c: sum(len(r.frame) for r in result.transcript if r.sender == c) for c in vectors}
    assert up == result.bytes_up


@pytest.mark.parametrize("adversary", ["semi-honest", "active"])
def test_no_input_shows_in_what_the_server_sees(adversary: str) -> None:
    marker = [0x01020304 % (1 << 27), 0x00ABCDEF, 0x01234567, 0x02345678]
    vectors = {1: marker, 2: [1, 2, 3, 4], 3: [5, 6, 7, 8], 4: [9, 10, 11, 12]}
    result = secure_sum(vectors, protocol="lightsecagg", adversary=adversary, bits=26 + 1)
    assert result.sum.tolist() == [sum(column) for column in zip(*vectors.values(), strict=True)]
    seen = b"".join(record.frame for record in result.transcript)
    for value in marker:
        assert value.to_bytes(4, "little") not in seen


def test_what_could_wrap_around_the_field_is_refused() -> None:
    vectors = {c: [1] for c in range(10)}
    with pytest.raises(ConfigurationError, match=r"10 inputs of 28 bits .* use 1 to 27 bits"):
        secure_sum(vectors, protocol="lightsecagg", bits=28)
    with pytest.raises(ConfigurationError, match=r"client 3, index 0: value 134217728 is not in"):
        secure_sum(vectors | {3: [1 << 27]}, protocol="lightsecagg")
    largest = {c: [(1 << 27) - 1] for c in range(10)}
    assert secure_sum(largest, protocol="lightsecagg").sum.tolist() == [10 * ((1 << 27) - 1)]


@pytest.mark.parametrize(
    ("protocol", "modulus"),
    [("lightsecagg", 2**31 - 1), ("peersum", 2**31 - 1), ("secagg", 1 << 20), ("secagg+", 1 << 64)],
)
def test_residues_of_the_protocols_own_ring_are_summed_modulo_it(
    protocol: str, modulus: int
) -> None:
    """Entries up to the modulus, of which hardly two fit a sum of plain numbers."""
    rng = np.random.default_rng(1)
    vectors = {c: [modulus - 1, int(rng.integers(modulus, dtype=np.uint64)), 0] for c in range(12)}
    found = secure_sum(vectors, protocol=protocol, modulus=modulus)
    plain = [sum(v[i] for v in vectors.values()) % modulus for i in range(3)]
    assert found.sum.tolist() == plain


def test_a_modulus_that_is_not_the_protocols_is_refused() -> None:
    vectors = {c: [c] for c in range(4)}
    for arguments, message in (
        ({"protocol": "lightsecagg", "modulus": 1 << 31}, "sums modulo 2147483647"),
        ({"protocol": "peersum", "modulus": 7}, "sums modulo 2147483647"),
        ({"protocol": "secagg", "modulus": 2**31 - 1}, "a power of two"),
        ({"protocol": "paillier", "modulus": 1000}, "a power of two"),
        ({"modulus": 1 << 20, "bits": 20}, "bits or modulus, not both"),
        ({"modulus": 1}, "modulus must be an integer"),
        ({"modulus": True}, "modulus must be an integer"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            secure_sum(vectors, **arguments)
    with pytest.raises(ConfigurationError, match=r"client 2, index 0: value \d+ is not in 0\.\."):
        secure_sum(vectors | {2: [2**31 - 1]}, protocol="peersum", modulus=2**31 - 1)


def test_parameters_of_other_protocols_and_impossible_thresholds_are_refused() -> None:
    vectors = {c: [1] for c in range(10)}
    for changes, message in (
        ({"degree": 4}, 'belongs to protocol "secagg\\+"; "lightsecagg" joins everybody'),
        ({"threshold": 2}, "threshold must be an integer in 3..10"),
        ({"threshold": 5, "adversary": "active"}, "in 6..10 against an active server"),
        ({"drop": {"unmasking": [1]}}, "unknown phase 'unmasking'"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            secure_sum(vectors, protocol="lightsecagg", **changes)


@pytest.mark.parametrize("weighting", list(Weighting))
def test_updates_encoded_for_the_field_decode_to_the_mean_of_the_survivors(
    weighting: Weighting,
) -> None:
    """Signed steps modulo 2^31 - 1 through the machines: the same bits as a plain sum of them."""
    n, weighted = 6, weighting is Weighting.WEIGHTED
    spec = CodecSpec.plan(
        dimension=5,
        clip_norm=1.0,
        max_clients=n,
        modulus=2**31 - 1,
        weighting=weighting,
        max_weight=9 if weighted else 1,
    )
    codec = UpdateCodec(spec)
    generator = np.random.default_rng(3)
    threat = ThreatModel(corrupt=1, dropped=2)
    config = LightSecAggParams.of(n, threat).config(
        round_id=RoundId(0),
        cohort=Cohort.of(range(n)),
        m=spec.length,
        context_digest=bytes(32),
        server_nonce=bytes(32),
    )
    policy = ClientPolicy(gamma=0)
    server, clients = make_parties(
        config, config.cohort.ids, context_digest=bytes(32), policy=policy, identities={}
    )
    vectors = {
        u: codec.encode(generator.normal(size=5), weight=1 + 2 * u if weighted and u < 5 else 1)
        for u in config.cohort
    }
    drops = {"masked_input_collection": [ClientId(2)]}
    aggregate = run_session(server, clients, vectors, drops=drops).aggregate
    plain = sum_encoded([vectors[u] for u in aggregate.survivors])
    assert aggregate.survivors == tuple(u for u in range(n) if u != 2)
    assert aggregate.vector == plain
    assert min(x for v in vectors.values() for x in v.centred().tolist()) < 0
    found = codec.decode(aggregate)
    again = codec.decode(AggregateSum(vector=plain, survivors=aggregate.survivors, min_honest=4))
    assert found.mean.tolist() == again.mean.tolist()
