"""Which of Flower's strategies can run on a sum, and why the others cannot.

A secure round hands the strategy one reply: the weighted mean. A strategy that only ever takes the
weighted mean computes the same from it. Most others do not fail on a single reply, they return a
wrong model without a word; so they are refused by the class that aggregates, not by trying.
"""

from __future__ import annotations

from flwr.serverapp import strategy as flower

from securefl.errors import ConfigurationError

__all__ = ["ACCEPTED", "REFUSED", "check_strategy"]

ACCEPTED: tuple[type[flower.Strategy], ...] = (
    flower.FedAvg,
    flower.FedAvgM,
    flower.FedProx,
    flower.FedAdam,
    flower.FedYogi,
    flower.FedAdagrad,
)
"""Their aggregation is a function of the weighted mean."""

_DISTANCES = "it needs distances between single updates"
_ORDER = "it needs order statistics of single updates"
_SERVER_CLIPS = "it clips single updates on the server; SecureFL clips on the clients"
_CLIENT_CLIPS = "it counts replies and adds noise to a sum that is already open"
_TREES = "it exchanges trees as bytes, which have no sum"

REFUSED: dict[type[flower.Strategy], str] = {
    flower.Krum: _DISTANCES,
    flower.MultiKrum: _DISTANCES,
    flower.Bulyan: _DISTANCES,
    flower.FedMedian: _ORDER,
    flower.FedTrimmedAvg: _ORDER,
    flower.QFedAvg: "it needs each client's loss and update",
    flower.DifferentialPrivacyServerSideFixedClipping: _SERVER_CLIPS,
    flower.DifferentialPrivacyServerSideAdaptiveClipping: _SERVER_CLIPS,
    flower.DifferentialPrivacyClientSideFixedClipping: _CLIENT_CLIPS,
    flower.DifferentialPrivacyClientSideAdaptiveClipping: _CLIENT_CLIPS,
    flower.FedXgbBagging: _TREES,
    flower.FedXgbCyclic: _TREES,
}


def check_strategy(strategy: flower.Strategy) -> None:
    """Accepts a strategy whose aggregation is an accepted class's own.

    What decides is the first class in its method resolution order that defines ``aggregate_train``:
    a subclass that overrides it is refused, one that only configures messages is not.

    Raises:
        ConfigurationError: for any other strategy, with the reason.
    """
    kind = type(strategy)
    why = next((why for refused, why in REFUSED.items() if isinstance(strategy, refused)), None)
    if why is not None:
        raise ConfigurationError(
            f"{kind.__name__} cannot run on a secure sum: {why}. On one reply it would return a "
            "wrong model without an error"
        )
    for method in ("aggregate_train", "aggregate_evaluate"):
        decider = next((base for base in kind.__mro__ if method in vars(base)), None)
        if method in getattr(strategy, "__dict__", {}) or decider not in ACCEPTED:
            raise ConfigurationError(
                f"{kind.__name__} brings its own {method}; only the aggregation of "
                f"{', '.join(one.__name__ for one in ACCEPTED)} is known to need nothing but the "
                "mean. If yours does too, say so with SecureGrid.with_custom_strategy(...)"
            )
