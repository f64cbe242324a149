"""What a node reads in the message that opens a session, whatever the protocol and the node's part.

Configuration, plan and model come from the server, who may lie. They must belong together and to
the session that they name; whether they are what this node wants is decided elsewhere
(:mod:`securefl.flower.policy`). This module knows no keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from securefl.errors import ConfigurationError, WireError
from securefl.flower.errors import Code, Refusal
from securefl.flower.plan import Plan, run_config_digest, session_context
from securefl.flower.records import Envelope
from securefl.round import RoundConfig

__all__ = ["Agreement", "agreed", "check_run_config", "opening"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """A configuration and a plan that belong together, and the bytes that they were read from.

    Attributes:
        offered: the receiver's id, as the server says.
        config, plan: decoded.
        raw_config, raw_plan, model: as they came.
    """

    offered: int
    config: RoundConfig
    plan: Plan
    raw_config: bytes
    raw_plan: bytes
    model: bytes


def opening(envelope: Envelope) -> Agreement:
    """Reads everything that a session's opening message has to say.

    Raises:
        Refusal: MALFORMED, if a part is missing or contradicts another.
    """
    given = (envelope.client, envelope.config, envelope.plan, envelope.model)
    client, raw_config, raw_plan, model = given
    if client is None or raw_config is None or raw_plan is None or model is None:
        raise Refusal(Code.MALFORMED, "the first message of a session lacks a part")
    config, plan = agreed(raw_config, raw_plan)
    if config.digest() != envelope.attempt:
        raise Refusal(Code.MALFORMED, "the configuration is not the one that names the session")
    if session_context(raw_plan, model) != config.context_digest:
        raise Refusal(Code.MALFORMED, "plan and model are not what the configuration says")
    return Agreement(
        offered=client,
        config=config,
        plan=plan,
        raw_config=raw_config,
        raw_plan=raw_plan,
        model=model,
    )


def agreed(raw_config: bytes, raw_plan: bytes) -> tuple[RoundConfig, Plan]:
    """Configuration and plan of one shape.

    Raises:
        Refusal: MALFORMED.
    """
    try:
        config, plan = RoundConfig.decode(raw_config), Plan.parse(raw_plan)
    except (WireError, ConfigurationError) as error:
        raise Refusal(Code.MALFORMED, str(error)) from None
    if (config.m, config.modulus) != (plan.length, plan.modulus) or config.n > plan.clients:
        raise Refusal(
            Code.MALFORMED,
            f"the configuration sums {config.m} entries mod {config.modulus} of {config.n} "
            f"clients, the plan {plan.length} mod {plan.modulus} of at most {plan.clients}",
        )
    return config, plan


def check_run_config(plan: Plan, run_config: Mapping[str, object]) -> None:
    """Whether a node with data was told the same run configuration as the ServerApp.

    Raises:
        Refusal: MALFORMED.
    """
    try:
        own = run_config_digest(run_config)
    except ConfigurationError as error:
        raise Refusal(Code.MALFORMED, str(error)) from None
    if own != plan.run_config:
        raise Refusal(
            Code.MALFORMED,
            f"this node's run_config has the digest {own[:16]}, the plan names "
            f"{plan.run_config[:16]}: the app would run under another one here than elsewhere; the "
            "ServerApp gives its own with SecAggConfig(run_config=context.run_config)",
        )
