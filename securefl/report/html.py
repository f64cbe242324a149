"""One HTML page about a run: opens without a network, on a phone or a screen, light or dark.

The template lies beside this module and is filled with values that are escaped on the way in
(names in the files of a run are not trusted), under a content security policy that allows neither
scripts nor anything loaded from elsewhere. The module knows how to lay out and to format;
sentences of privacy come from :mod:`securefl.report.statements`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from securefl.report import statements
from securefl.report.plots import plot_png, plot_svgs
from securefl.report.tree import RunRecord, RunTree, read_tree

__all__ = ["render", "write_report"]


def write_report(out_dir: Path) -> Path:
    """Writes ``report.html`` and ``plot.png`` into a run directory.

    Args:
        out_dir: the folder that ``securefl train --out`` wrote; only its JSON files are read.

    Returns:
        The path of ``report.html``.

    Raises:
        ConfigurationError: if a file or a figure is missing or makes no sense; the message names
            it, and neither file is written.
    """
    tree = read_tree(out_dir)
    page, picture = render(tree), plot_png(tree)
    _replace(out_dir / "plot.png", picture)
    _replace(out_dir / "report.html", page.encode("utf-8"))
    return out_dir / "report.html"


def render(tree: RunTree) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("securefl.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        bytes=statements.bytes_text,
        delta=statements.delta_text,
        epsilon=statements.epsilon_text,
        percent=statements.percent_text,
        seconds=_seconds_text,
        real=_real_text,
        dropped=_dropped_text,
    )
    said = [statements.statement(row, tree) for row in tree.rows]
    return environment.get_template("report.html.j2").render(
        tree=tree,
        headline=statements.headline(tree),
        fidelity=statements.fidelity_sentence(tree.fidelity),
        smallest_sum=statements.smallest_sum(tree),
        statements=said,
        shared_limits=statements.shared_limits(said),
        row_label=statements.row_label,
        view_label=statements.view_label,
        no_dp_sentence=statements.NO_DP_SENTENCE,
        has_open_rows=statements.composition(tree).open_runs > 0,
        composition=statements.composition(tree),
        # Drawn by this package from checked numbers and plain labels, not read from a file.
        panels={name: Markup(svg) for name, svg in plot_svgs(tree).items()},  # noqa: S704 - above
        stages=_stages,
        lost_rounds=_lost_rounds,
    )


def _stages(run: RunRecord) -> list[str]:
    """Names of the stages that were timed, in the order of the pipeline where it is known."""
    order = ["ledger", "train", "encode", "protocol", "apply", "evaluate"]
    seen = {stage for record in run.rounds for stage in record.seconds}
    return [stage for stage in order if stage in seen] + sorted(seen - set(order))


def _lost_rounds(runs: Iterable[RunRecord]) -> int:
    return sum(record.status != "ok" for run in runs for record in run.rounds)


def _seconds_text(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"


def _real_text(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _dropped_text(dropped: dict[str, int]) -> str:
    parts = [f"{phase.replace('_', ' ')}: {count}" for phase, count in dropped.items() if count]
    return ", ".join(parts) or "–"


def _replace(path: Path, content: bytes) -> None:
    """Writes the whole file or leaves the old one: a reader never sees half a page."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
