"""Federated learning without a server: sums among peers, and gossip for comparison.

Ten peers learn to read digits; in every round three of them vanish. The same run is carried out
with a server, without one (peersum), and by gossip averaging.

Run it with:  python examples/serverless.py
"""

import tempfile
import warnings
from pathlib import Path

import numpy as np

from securefl.config import load_preset
from securefl.simulation.engine import Engine
from securefl.simulation.gossip import (
    NotPrivateWarning,
    Topology,
    contraction,
    metropolis_weights,
    train_in_clear,
)
from securefl.simulation.transports import DropPlan
from securefl.training.data import load
from securefl.training.local import FlatModel, LocalSGD, evaluate
from securefl.training.models import build
from securefl.training.partition import iid

ROUNDS, PEERS, GONE = 8, 10, 3
digits = load("digits")

# 1. With a server and without one: everything else is equal, so the models are, to the last bit.
print(f"{PEERS} peers, {ROUNDS} rounds, {GONE} vanish in each")
with tempfile.TemporaryDirectory() as folder:
    for protocol in ("secagg", "peersum"):
        config = load_preset(
            "digits",
            [
                f"aggregation.protocol={protocol}",
                f"training.rounds={ROUNDS}",
                f"simulation.dropped_per_round={GONE}",
                'sweep.modes=["none"]',
                "sweep.seeds=[0]",
                "encoding.bits=31",
            ],
        )
        run = Engine(config, config.runs()[0], Path(folder) / protocol, dataset=digits).run()
        summary = run.summary
        print(
            f"  {protocol:8} accuracy {summary['accuracy']:.3f}, model "
            f"{summary['model_sha256'][:12]}, {summary['bytes_up_per_client'] / 1e3:.0f} kB sent "
            "per peer"
        )

# 2. Gossip: every peer mixes its model with those of its two neighbours on a ring. It needs no
#    agreement and no keys, the peers never quite agree, and NEIGHBOURS SEE EACH OTHER'S MODELS.
parts = iid(len(digits.train), clients=PEERS, seed=0).indices
model = FlatModel(build("softmax", input_shape=(64,), classes=10, seed=0))
trainers = {}
for u, mine in enumerate(parts):
    records = digits.train.subset(mine)
    trainers[u] = LocalSGD(
        seed=0, learning_rate=0.5, batch_size=16, epochs=2, steps=None, momentum=0.0,
        proximal=0.0, model=model, x=records.x, y=records.y, client=u,
    )  # fmt: skip
plan = DropPlan(seed=0, per_round=GONE)
away = {r: [u for us in plan.drops(r, list(trainers)).values() for u in us] for r in range(ROUNDS)}
ring = Topology.ring(PEERS)
factor = contraction(metropolis_weights(ring))
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always", NotPrivateWarning)
    *_, last = train_in_clear(
        trainers, model.vector(), ring, rounds=ROUNDS, mixing_steps=4, gone=away
    )
print(f"gossip on a ring, 4 mixing steps per round; a step leaves {factor:.3f} of the distance")
scores = []
for own in last.models:
    model.load(own.astype(np.float32))
    scores.append(evaluate(model, digits.test.x, digits.test.y)[1])
print(
    f"  accuracy of the peers' own models {min(scores):.3f} to {max(scores):.3f}, "
    f"{4 * ROUNDS * 2 * 4 * model.dim / 1e3:.0f} kB sent per peer at most"
)
print(f"  warning: {said[0].message}")

# A sum among peers hides single updates from everybody. It does not make the model private:
# differential privacy does that, with or without a server.
