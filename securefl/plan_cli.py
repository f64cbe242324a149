"""The command ``securefl plan``: from a threat model to parameters, ring and bytes of a protocol.

It turns words and rates into the calculator's numbers and prints what comes back, as sentences or
as JSON. ``cli`` registers it; errors become exit codes there. This module decides nothing itself.
"""

from __future__ import annotations

import json
from enum import StrEnum
from fractions import Fraction
from typing import Annotated

import typer

from securefl.errors import ConfigurationError
from securefl.round import Adversary, ThreatModel, ceil_rate

__all__ = ["plan"]


class _Server(StrEnum):
    SEMI_HONEST = "semi-honest"
    ACTIVE = "active"


class _Protocol(StrEnum):
    SECAGG = "secagg"
    LIGHTSECAGG = "lightsecagg"
    PEERSUM = "peersum"


class _Graph(StrEnum):
    AUTO = "auto"
    COMPLETE = "complete"
    HARARY = "harary"


def plan(
    *,
    clients: Annotated[int, typer.Option(help="Clients selected for a round, 3 to 2^20.")],
    corrupt: Annotated[
        str,
        typer.Option(
            help="Most that collude: a whole number of clients, or a rate: 0.05, 1/20, 5%."
        ),
    ],
    dropout: Annotated[
        str, typer.Option(help="Most that vanish in a round, whenever they do; like --corrupt.")
    ],
    adversary: Annotated[
        _Server,
        typer.Option(help="What the server may do. peersum has none, its peers may always lie."),
    ],
    length: Annotated[int, typer.Option(help="Entries of the vector.")] = 100_000,
    input_bits: Annotated[int, typer.Option(help="Bits of one client's entry.")] = 16,
    sigma: Annotated[int, typer.Option(help="Privacy fails with at most 2^-sigma.")] = 40,
    eta: Annotated[int, typer.Option(help="A round is lost with at most 2^-eta.")] = 20,
    protocol: Annotated[
        _Protocol,
        typer.Option(help="secagg (or SecAgg+); lightsecagg, compared with it; peersum."),
    ] = _Protocol.SECAGG,
    bandwidth: Annotated[
        float, typer.Option(help="lightsecagg: Mbit/s of one client's link, each direction.")
    ] = 100.0,
    graph: Annotated[
        _Graph, typer.Option(help="Take this graph; auto: the fewest neighbours that are safe.")
    ] = _Graph.AUTO,
    no_corruption: Annotated[
        bool, typer.Option("--assume-no-corruption", help="Allow --corrupt 0.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Choose the parameters of a secure sum from a threat model, and say why."""
    from securefl.protocols.secagg import calculator  # noqa: PLC0415  # numpy, ciphers: load late

    A, D = _count("--corrupt", corrupt, clients), _count("--dropout", dropout, clients)
    if A == 0 and not no_corruption:
        raise ConfigurationError(
            "--corrupt 0 assumes that no client ever colludes with the server; "
            "give the most that may, or say --assume-no-corruption"
        )
    threat = ThreatModel(
        adversary=Adversary.ACTIVE if adversary is _Server.ACTIVE else Adversary.SEMI_HONEST,
        corrupt=A,
        dropped=D,
        assume_no_corruption=no_corruption,
    )
    if protocol is _Protocol.PEERSUM:
        from securefl.protocols.peersum import calculator as peers  # noqa: PLC0415  # as above

        session = peers.plan_round(clients, threat, length=length, input_bits=input_bits)
        _print(session.explain(), {**session.summary()}, as_json=as_json)
        return
    light = None
    if protocol is _Protocol.LIGHTSECAGG:
        from securefl.protocols.lightsecagg import calculator as coded  # noqa: PLC0415  # as above

        light = coded.plan_round(clients, threat, length=length, input_bits=input_bits)
    found = calculator.plan_round(
        clients,
        threat,
        length=length,
        input_bits=input_bits,
        sigma=sigma,
        eta=eta,
        graph=None if graph is _Graph.AUTO else calculator.GraphKind(graph.value),
    )
    summary: dict[str, str | int | float | None] = {**found.summary()}
    text = found.explain()
    if light is not None:
        from securefl.protocols.comparison import compare  # noqa: PLC0415  # as above

        comparison = compare(found, light, bandwidth=bandwidth * 1e6)
        summary = {**light.summary(), **comparison.summary()}
        text = f"{light.explain()}\n{comparison.explain()}"
    _print(text, summary, as_json=as_json)


def _print(text: str, summary: dict[str, str | int | float | None], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
        return
    typer.echo(text)
    typer.echo("The sum itself is exact, not private: that takes differential privacy.")


def _count(option: str, text: str, n: int) -> int:
    """A number of clients as it is, a rate rounded up. A bare 1 is one client; all are 100%."""
    if text.isdecimal():
        return int(text)
    try:
        rate = Fraction(text[:-1]) / 100 if text.endswith("%") else Fraction(text)
        return ceil_rate(rate, n)
    except (ValueError, ZeroDivisionError):  # a ConfigurationError is a ValueError
        raise ConfigurationError(
            f"{option} takes a whole number of clients, or a rate such as 0.05, 1/20 or 5% in "
            f"[0, 1], found {text!r}"
        ) from None
