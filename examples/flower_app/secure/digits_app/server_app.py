"""What runs beside the SuperLink."""

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from securefl.flower import SecAggConfig, SecureGrid

from digits_app import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Averages the sites' models."""
    run = context.run_config
    nodes = int(run["min-nodes"])
    fedavg = FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)
    grid = SecureGrid(grid, fedavg, SecAggConfig.from_run_config(run, clip_norm=9, max_weight=500))
    models = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        models.append({key: array.numpy() for key, array in arrays.items()})
        return MetricRecord({"accuracy": task.accuracy(task.state_of(arrays))})

    fedavg.start(
        grid=grid,
        initial_arrays=ArrayRecord(task.make_model().state_dict()),
        num_rounds=int(run["num-server-rounds"]),
        evaluate_fn=evaluate,
    )
    if run["out"]:
        rounds = enumerate(models)
        np.savez(run["out"], **{f"{i} {k}": v for i, model in rounds for k, v in model.items()})
