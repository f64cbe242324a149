"""What runs at each site."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from securefl.flower import SecureClientApp as ClientApp

from digits_app import task

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Trains the model on this site's records."""
    state, examples, loss = task.train(
        task.state_of(msg.content["arrays"]),
        int(context.node_config["partition-id"]),
        int(context.node_config["num-partitions"]),
        int(msg.content["config"]["server-round"]),
    )
    metrics = MetricRecord({"num-examples": examples, "train-loss": loss})
    return Message(RecordDict({"arrays": ArrayRecord(state), "metrics": metrics}), reply_to=msg)
