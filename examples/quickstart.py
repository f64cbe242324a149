"""One private round, read top to bottom.

Five clients hold handwritten digits. Each trains on its own with DP-SGD, charges its own ledger,
and sends its update masked; the server learns the sum over the clients that stayed, and nothing
else. One client vanishes on the way. Run it with the extra `train`:

    python examples/quickstart.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import accounting
from securefl import CodecSpec, Participant, SecAggParams, ThreatModel, UpdateCodec, private_round
from securefl.round import ClientId
from securefl.simulation.schemes import SecAggScheme
from securefl.simulation.transports import DropPlan, ProtocolTransport
from securefl.training import data, models, partition
from securefl.training.apply import ServerOptimiser
from securefl.training.dpsgd import DPSGD, ClientBudget
from securefl.training.local import FlatModel, evaluate, limit_threads

CLIENTS, EPSILON, DELTA, SAMPLE_RATE, STEPS = 5, 8.0, 1e-5, 0.2, 40


def main() -> None:
    limit_threads()  # small models lose more to thread hand-over than they gain

    # The data: 1437 training records, dealt to five clients.
    train, test = data.load("digits")
    parts = partition.iid(len(train), clients=CLIENTS, seed=0)
    model = FlatModel(models.build("softmax", input_shape=(64,), classes=10, seed=0))

    # The privacy plan: as much noise as STEPS steps need to stay within (EPSILON, DELTA).
    def steps(noise_multiplier: float) -> accounting.Event:
        gaussian = accounting.Gaussian(noise_multiplier=noise_multiplier)
        step = accounting.Poisson(sample_rate=SAMPLE_RATE, event=gaussian)
        return accounting.Repeat(event=step, count=STEPS)

    adjacency = accounting.Adjacency.ZERO_OUT
    noise = accounting.calibrate(steps, EPSILON, DELTA, adjacency=adjacency)
    print(f"noise multiplier {noise.value:.3f} for epsilon {noise.achieved.value:.3f}")

    # The sum: at least four of five clients alive in every phase, one of them assumed corrupt.
    params = SecAggParams.complete(CLIENTS, ThreatModel(corrupt=1, dropped=1))
    codec = UpdateCodec(
        CodecSpec.plan(dimension=model.dim, clip_norm=20.0, max_clients=CLIENTS, bits=32)
    )

    with tempfile.TemporaryDirectory() as folder:
        participants = {}
        for client, indices in enumerate(parts.indices):
            ledger = accounting.Ledger.create(
                Path(folder) / f"client-{client}.sqlite",
                accounting.LedgerHeader(
                    population=f"records of client {client}",
                    unit=accounting.Unit.RECORD,
                    adjacency=adjacency,
                    epsilon=EPSILON,
                    delta=DELTA,
                    order=noise.achieved.order or 2.0,
                    plan=accounting.digest(steps(noise.value)),
                ),
            )
            participants[ClientId(client)] = Participant(
                client=ClientId(client),
                trainer=DPSGD(
                    model=model,
                    x=train.x[indices],
                    y=train.y[indices],
                    client=client,
                    noise_multiplier=noise.value,
                    clip_norm=0.5,
                    sample_rate=SAMPLE_RATE,
                    steps=STEPS,
                    learning_rate=1.0,
                ),
                budget=ClientBudget(ledger=ledger, client=client, event=steps(noise.value)),
            )

        # The round: train, clip, encode, mask, sum, recover, decode, apply, record.
        outcome = private_round(
            round_index=0,
            vector=model.vector(),
            participants=participants,
            scheme=SecAggScheme(params=params),
            codec=codec,
            optimiser=ServerOptimiser.sgd(model.dim),
            transport=ProtocolTransport(plan=DropPlan(seed=1, per_round=1)),
        )

        model.load(outcome.vector)
        print(f"survivors {outcome.survivors} of {CLIENTS} clients, round {outcome.status}")
        print(f"accuracy {evaluate(model, test.x, test.y)[1]:.1%} on {len(test)} test records")
        for client, participant in participants.items():
            assert participant.budget is not None
            spent = participant.budget.epsilon()
            print(
                f"client {client}: epsilon {spent.value:.3f} of {EPSILON} spent, "
                f"{outcome.bytes_up.get(client, 0)} bytes sent"
            )
            participant.budget.ledger.close()


if __name__ == "__main__":
    main()
