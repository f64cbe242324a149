"""A page with every figure of one run: what was required, what was measured, on which seeds.

Written by ``run_all.py`` from the programs' ``result.json``; nothing on it is typed by hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["is_judged", "required", "results_page"]

Record = Mapping[str, Any]

_HEAD = """# Figures of one run

Written by `python examples/threat_models/run_all.py` into `out/results.md`: all figures of one
run. Seeds {seeds}; {count} programs, {judged} judged figures, {failed} of them failed.
Versions: {versions}.

*Required* is what makes a program exit with 1 if it does not hold, for every seed unless it says
median. *Shown* figures are not judged: weaker second attacks, and what moves with the machine. A
*cap* is the most that theory allows; exceeding it fails too.

{overview}
"""


def results_page(records: Sequence[Record]) -> str:
    """Markdown of all programs.

    Args:
        records: ``result.json`` of each program, in the order of the page.
    """
    rows = [result for record in records for result in record["results"]]
    versions: dict[str, str] = {}
    for result in rows:
        versions |= result["versions"]
    head = _HEAD.format(
        seeds=", ".join(map(str, records[0]["seeds"])) if records else "-",
        count=len(records),
        judged=sum(map(is_judged, rows)),
        failed=sum(not result["passed"] for result in rows),
        versions=", ".join(f"{name} {version}" for name, version in sorted(versions.items())),
        overview=_overview(records),
    )
    return "\n".join([head, *map(_section, records)])


def is_judged(result: Record) -> bool:
    """Whether anything is required of this figure; if not, it is only shown."""
    return result["expected"] is not None or result["cap"] is not None


def _overview(records: Sequence[Record]) -> str:
    lines = ["| program | judged figures | as required |", "|---|---|---|"]
    for record in records:
        judged = [result for result in record["results"] if is_judged(result)]
        held = sum(result["passed"] for result in judged)
        name = record["threat"]
        lines.append(f"| [{name}](#{name}) | {len(judged)} | {held} |")
    return "\n".join(lines)


def required(result: Record) -> str:
    """What makes the program fail, in words."""
    expected = result["expected"]
    if expected is not None:
        return f"{expected['op']} {_number(expected['bound'])}"
    return "at most the cap" if is_judged(result) else "shown"


def _section(record: Record) -> str:
    name = record["threat"]
    lines = [
        f"## {name}",
        "",
        f"{record['title']}.",
        "",
        "| setting | attack | figure | required | measured, by seed | baseline | cap | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in record["results"]:
        verdict = "-"
        if is_judged(result):
            verdict = "holds" if result["passed"] else "**FAILS**"
        cells = [
            result["setting"],
            result["attack"],
            result["metric"],
            required(result),
            ", ".join(map(_number, result["per_seed"])),
            _number(result["baseline"]),
            _number(result["cap"]),
            verdict,
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def _number(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)
