"""What a run did and what it promises: plots and one HTML page, from the run's files alone.

:mod:`securefl.report.tree` reads and checks the files that ``securefl train`` wrote,
:mod:`securefl.report.statements` turns them into sentences a person may rely on,
:mod:`securefl.report.plots` draws, and :mod:`securefl.report.html` puts all of it on one page that
opens without a network. Nothing here trains, aggregates or accounts; a figure that the run did not
write down is not in the report. Needs the extra ``report`` (matplotlib, jinja2).
"""

from __future__ import annotations

from pathlib import Path

from securefl.errors import ConfigurationError

__all__ = ["write_report"]


def write_report(out_dir: Path) -> Path:
    """Writes ``report.html`` and ``plot.png`` into ``out_dir`` and returns the page's path.

    Args:
        out_dir: the folder that ``securefl train --out`` wrote; only its JSON files are read.

    Returns:
        The path of ``report.html``.

    Raises:
        ConfigurationError: if a file or a figure is missing or makes no sense (the message names
            it), or if the extra ``report`` is not installed.
    """
    try:
        from securefl.report import html  # noqa: PLC0415 - loads matplotlib, only when asked for
    except ModuleNotFoundError as missing:
        if missing.name not in {"jinja2", "matplotlib"}:
            raise
        raise ConfigurationError(
            f"a report needs the package {missing.name}, which is not installed: "
            "install the extra with pip install 'securefl[report]'"
        ) from missing
    return html.write_page(out_dir)
