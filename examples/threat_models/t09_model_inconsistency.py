"""A server that sends one client another model than the rest.

Adversary: a malicious server; nobody colludes with it.
Capability: chooses which model and which configuration each client gets, forges nothing.
Knowledge: both models, and that each client took one step on one record.

All clients but the victim get a first layer whose neurons never fire: their gradients are zero
there, so the "sum" is the victim's update alone (Pasquini, Francati, Ateniese 2022). The library's
clients compute a digest of the model they received and bind it to everything they send: to the
configuration, which a client with another model refuses, and through the session to every key, so
that a server with one configuration per model cannot add the two halves. With n = 50 clients the
same attack on *consistent* models finds one blend; at n = 10 it would find most of the record, and
inconsistency would get the credit.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from attackers import gradients
from kit import data, metrics
from kit.result import Attacker, Demo, Expected, Op, Outcome, Result, Run, Setting
from kit.rounds import Recorded
from kit.transcript import write_transcript
from kit.updates import Opened, plain_codec

from securefl.errors import ConfigurationError, ProtocolError
from securefl.pipeline import context_digest
from securefl.primitives.signing import IdentityKey
from securefl.protocols.secagg import ClientPolicy, SecAggParams
from securefl.protocols.secagg.client import SecAggClient
from securefl.protocols.secagg.parties import make_parties
from securefl.round import Adversary, ClientId, Cohort, RoundConfig, RoundId, ThreatModel
from securefl.simulation.session import SessionRecord, run_session

if TYPE_CHECKING:
    from attackers.gradients import Net
    from kit.updates import Codec
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from securefl.modular import RingVector

    Nets = Mapping[int, Net]
    Digests = Mapping[int, bytes]

HIDDEN, VICTIM = 128, ClientId(1)
PAPER = (
    "Pasquini, Francati, Ateniese 2022, Eluding Secure Aggregation in Federated Learning via Model "
    "Inconsistency"
)
SERVER = Attacker(
    role="malicious server",
    sees="the transcript, so every sum that it can open",
    knows="both models; one step on one record each",
)


def context_of(net: Net, codec: Codec) -> bytes:
    """What a client of the library binds: the model it received, and the codec."""
    flat = np.concatenate([a.ravel() for a in (net.W1, net.b1, net.W2, net.b2)])
    return context_digest(flat.astype(np.float32), codec.digest())


def dead(net: Net) -> Net:
    """The same model with a first layer that no image in [0, 1] activates."""
    return net._replace(b1=net.b1 - 1000.0)


def _updates(nets: Mapping[int, Net], truth: data.Images) -> dict[int, NDArray[np.float64]]:
    return {
        u: gradients.record_gradients(net, truth.x[u - 1 : u], truth.y[u - 1 : u])[0]
        for u, net in nets.items()
    }


def play(
    nets: Mapping[int, Net],
    configured: Mapping[int, bytes],
    bound: Mapping[int, bytes],
    truth: data.Images,
    codec: Codec,
    path: Path,
    *,
    adversary: Adversary,
) -> NDArray[np.float64]:
    """One session in which the server may treat clients differently; what it makes of it, [64].

    Args:
        nets: which model each client got.
        configured: which context digest stands in the configuration that it got.
        bound: which context digest it computed itself.
        truth: the clients' records.
        codec: of all of them.
        path: of the transcript.
        adversary: against whom the session protects.
    """
    cohort = Cohort.of(ClientId(u) for u in nets)
    threat = ThreatModel(adversary=adversary, corrupt=1, dropped=1)
    params = SecAggParams.complete(len(cohort), threat)
    nonce, beacon = os.urandom(32), os.urandom(32)
    identities = {u: IdentityKey(os.urandom(32)) for u in cohort}

    def configuration(context: bytes) -> RoundConfig:
        return params.config(
            round_id=RoundId(0), cohort=cohort, m=codec.length,
            b=codec.modulus.bit_length() - 1, context_digest=context, server_nonce=nonce,
        )  # fmt: skip

    ours = configuration(configured[max(nets)])
    inputs: dict[ClientId, RingVector] = {}
    clients: dict[ClientId, SecAggClient] = {}
    everybody = _updates(nets, truth)
    for told, computed in sorted({(configured[u], bound[u]) for u in nets}):
        members = [ClientId(u) for u in nets if (configured[u], bound[u]) == (told, computed)]
        try:
            _, made = make_parties(
                configuration(told), members, context_digest=computed,
                policy=ClientPolicy(gamma=0), identities=identities, beacon=beacon,
            )  # fmt: skip
        except ConfigurationError:
            continue  # these clients refused the configuration and take no part
        clients |= made
        inputs |= {u: codec.encode(everybody[u]) for u in members}
    server, _ = make_parties(
        ours, [], context_digest=ours.context_digest, policy=ClientPolicy(gamma=0),
        identities=identities, beacon=beacon,
    )  # fmt: skip
    record = SessionRecord()
    with contextlib.suppress(ProtocolError):  # no sum was opened; the transcript stays
        run_session(server, clients, inputs, record=record)
    write_transcript(path, record.transcript)
    opened = Opened(recorded=Recorded(config=ours, path=path), codec=codec, seed=b"")
    return best_guess(opened)


def best_guess(opened: Opened) -> NDArray[np.float64]:
    """The closed form on the opened sum; on a masked vector of the victim if no sum opens."""
    try:
        total = opened.total()
    except ValueError:
        arrived = VICTIM in opened.recorded.view().clients
        total = opened.single(VICTIM) if arrived else np.zeros(opened.codec.dimension)
    guess = gradients.closed_form(*gradients.first_layer(total, HIDDEN))
    return guess if np.isfinite(guess).all() else metrics.blind_image()


SAME = "the same model for all"
LOOSE = "two models, nothing bound"
ONE = "two models, library, one configuration"
TWO = "two models, library, two configurations"
WORKS, NOTHING = Expected(op=Op.AT_LEAST, bound=80.0), Expected(op=Op.EQUAL, bound=0.0)
"""A blind guess reaches 9 to 16 dB, by how much the victim looks like the mean image: where the
attack must fail, what counts is what it adds to that."""
JUDGED = {
    SAME: (None, Setting.NOT_DEFENDED),
    LOOSE: (WORKS, Setting.UNDEFENDED),
    ONE: (None, Setting.DEFENDED),
    TWO: (None, Setting.DEFENDED),
}


def _cases(n: int, seed: int, codec: Codec) -> dict[str, tuple[Nets, Digests, Digests]]:
    """Per case: the models, the digests in the configurations, the digests of the clients."""
    honest = gradients.fresh_net(HIDDEN, seed)
    other = dead(honest)
    everybody = range(1, n + 1)
    same = dict.fromkeys(everybody, honest)
    split = {u: honest if u == VICTIM else other for u in everybody}
    true = {u: context_of(net, codec) for u, net in split.items()}
    one = dict.fromkeys(everybody, context_of(other, codec))
    return {
        SAME: (same, one, one),
        LOOSE: (split, one, one),
        ONE: (split, one, true),
        TWO: (split, true, true),
    }


def run(settings: Run) -> Outcome:
    """Consistent and inconsistent models, without and with the binding, for n = 50 and 100."""
    results: list[Result] = []
    pictures: dict[str, list[NDArray[np.float64]]] = {"the victims": []}
    for n, names in ((50, (SAME, LOOSE, ONE, TWO)), (100, () if settings.quick else (LOOSE,))):
        codec = plain_codec(gradients.dimension(HIDDEN), n)
        for name in names:
            begin = time.perf_counter()
            scores, blind = [], []
            for seed in settings.seeds:
                rng = np.random.default_rng([seed, n])
                chosen = rng.choice(np.array(data.PRIVATE), size=n, replace=False)
                truth = data.digits().take(chosen)
                case = _cases(n, seed, codec)[name]
                # One model for all is no lie: the cheaper session opens the same sum.
                mode = Adversary.SEMI_HONEST if name == SAME else Adversary.ACTIVE
                found = play(*case, truth, codec, settings.transcript(), adversary=mode)
                scores.append(float(metrics.psnr(found, truth.x[0])[0]))
                blind.append(float(metrics.psnr(metrics.blind_image(), truth.x[0])[0]))
                if n == 50:
                    pictures.setdefault(name, []).append(found)
                    if name == SAME:
                        pictures["the victims"].append(truth.x[0])
            expected, setting = JUDGED[name]
            row = partial(
                Result,
                threat=settings.name,
                paper=PAPER,
                attacker=SERVER,
                setting=setting,
                attack=f"closed form, {name}, n = {n}",
                parameters={"n": n, "hidden": HIDDEN, "ring bits": codec.spec.bits},
                seconds=time.perf_counter() - begin,
            )
            results.append(
                row(
                    metric="PSNR of the victim's record, dB",
                    per_seed=tuple(scores),
                    expected=expected,
                    baseline=float(np.median(blind)),
                )
            )
            if setting is Setting.DEFENDED:
                gain = (max(0.0, a - b) for a, b in zip(scores, blind, strict=True))
                results.append(
                    row(
                        metric="dB above a blind guess",
                        per_seed=tuple(gain),
                        expected=NOTHING,
                        baseline=0.0,
                    )
                )

    def draw(figure: Figure) -> None:
        from kit import plots  # noqa: PLC0415  # matplotlib is an extra

        blind = [metrics.blind_image()] * len(settings.seeds)
        decibels = {r.attack: f"{r.median:.1f} dB" for r in results if "PSNR" in r.metric}
        captions = ["", *(decibels.get(f"closed form, {name}, n = 50", "") for name in JUDGED)]
        plots.image_rows(
            figure,
            [
                *((name, images) for name, images in pictures.items()),
                ("guess without transcript", blind),
            ],
            captions=[*captions, f"{results[0].baseline:.1f} dB"],
            title="t09: a malicious server with two models,\nn = 50",
        )

    notes = (
        "With the binding the victim never sends an input; what is drawn is the blind guess.",
        "The same model for all: a larger model, or t02's attack, finds more.",
    )
    return Outcome(results=tuple(results), draw=draw, notes=notes)


DEMO = Demo(name="t09_model_inconsistency", doc=__doc__, run=run)

if __name__ == "__main__":
    raise SystemExit(DEMO.main())
