"""Metadata: what the wire says about people although every vector is masked.

Adversary: anybody who sees lengths, senders and times of frames: the server, or the network.
Capability: it never decrypts and never reads a body.
Knowledge: the protocol.

Secure aggregation hides inputs. It does not hide who takes part, who vanishes and when, who
refused, how long the model is, or how many take part. That may be the secret: that a hospital has
a patient of a certain kind, or that a phone was awake at three.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from attackers.measure import ALL, measured
from attackers.stage import Case
from kit.result import Attacker, Demo, Outcome, Run, Setting
from kit.rounds import images_as_inputs, secure_round
from kit.transcript import read_transcript

from securefl.round import Adversary, ClientId
from securefl.simulation.network import Direction, Envelope
from securefl.wire import HEADER_BYTES, SIGNATURE_BYTES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N, BITS = 12, 24
PHASES = ("advertise_keys", "share_keys", "masked_input_collection")
OBSERVER = Attacker(
    role="observer of the wire", sees="lengths, senders, phases; no bodies", knows="the protocol"
)


def story(seed: int) -> dict[ClientId, int]:
    """The truth: how many of the first three messages each client sends, 0..3."""
    rng = np.random.default_rng(seed)
    fate = {ClientId(u): len(PHASES) for u in range(1, N + 1)}
    for sent, u in enumerate(rng.choice(N, size=len(PHASES), replace=False).tolist()):
        fate[ClientId(u + 1)] = sent
    return fate


def observe(envelopes: tuple[Envelope, ...]) -> tuple[dict[ClientId, int], int, int]:
    """Messages per client, entries of the vector (for 24 bits), frames in all; lengths only."""
    sent: dict[ClientId, int] = {}
    longest = 0
    for e in envelopes:
        if e.direction is Direction.UP and e.phase in PHASES:
            sent[e.sender] = sent.get(e.sender, 0) + 1
        if e.direction is Direction.UP and e.phase == PHASES[-1]:
            longest = max(longest, len(e.frame))
    entries = (longest - HEADER_BYTES - SIGNATURE_BYTES) * 8 // BITS
    return sent, entries, len(envelopes)


def profile(case: Case) -> float:
    """Fraction of facts about the round that the observer gets right.

    Facts: for each client how far it went (or that it never came), and the length of the model.
    """
    truth = story(case.seed)
    given = images_as_inputs(N, bits=BITS, seed=case.seed)
    drops = {phase: [u for u, sent in truth.items() if sent == i] for i, phase in enumerate(PHASES)}
    done = secure_round(
        given, case.path, adversary=Adversary.ACTIVE, dropped=4, corrupt=1, drops=drops
    )
    sent, entries, _ = observe(read_transcript(done.path))
    right = [sent.get(u, 0) == truth[u] for u in truth]
    return float(np.mean([*right, entries == len(next(iter(given.values())))]))


def guess(seed: int) -> float:
    """The same for somebody who saw nothing: everybody came and stayed; no idea of the length."""
    truth = story(seed)
    return sum(sent == len(PHASES) for sent in truth.values()) / (len(truth) + 1)


def run(run: Run) -> Outcome:
    """Measures."""
    result = measured(
        run, profile, name="who came, who left when, model size", paper="-",
        setting=Setting.NOT_DEFENDED, expected=ALL, attacker=OBSERVER,
        metric="fraction of facts learned", baseline=max(guess(s) for s in run.seeds),
        parameters={"n": N, "facts": N + 1},
    )  # fmt: skip

    def draw(figure: Figure) -> None:
        from kit import plots  # noqa: PLC0415  # matplotlib is an extra

        path = run.transcript("not_defended_who_came__who_left_when__model_size_0")
        envelopes = read_transcript(
            sorted(run.folder.glob("*.bin"))[0] if not path.exists() else path
        )
        sent, entries, frames = observe(envelopes)
        ax = figure.subplots()
        for u in range(1, N + 1):
            count = sent.get(ClientId(u), 0)
            colour = plots.GOOD if count == len(PHASES) else plots.BAD
            ax.plot(range(1, count + 1), [u] * count, "o-", color=colour)
            note = ("never came", "left before dealing shares", "left before its input", "")[count]
            ax.text(max(count, 0.7) + 0.12, u, note, va="center", fontsize=8, color=plots.BAD)
        ax.set_xlim(0.7, 4.4)
        ax.set_xticks([1, 2, 3], ["keys", "shares", "masked input"])
        ax.set_yticks(range(1, N + 1), [f"client {u}" for u in range(1, N + 1)])
        ax.set_title(
            f"An observer of {frames} frames' lengths and senders, n={N} clients: not defended.\n"
            f"It also reads that the model has {entries} entries; baseline: nothing known"
        )

    return Outcome(
        results=(result,),
        draw=draw,
        notes=(
            "If taking part is itself sensitive, hide it below: cover traffic, an anonymising "
            "transport, or a selection that says nothing about a person.",
        ),
    )


DEMO = Demo(name=Path(__file__).stem, doc=__doc__ or "", run=run, needs=("sklearn",))

if __name__ == "__main__":
    sys.exit(DEMO.main())
