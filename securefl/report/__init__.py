"""What a run did and what it promises: plots and one HTML page, from the run's files alone.

:mod:`securefl.report.tree` reads and checks the files that ``securefl train`` wrote,
:mod:`securefl.report.statements` turns them into sentences a person may rely on,
:mod:`securefl.report.plots` draws, and :mod:`securefl.report.html` puts all of it on one page that
opens without a network. Nothing here trains, aggregates or accounts; a figure that the run did not
write down is not in the report.

Importing this package needs the extra ``report`` (matplotlib, jinja2) and raises
``ModuleNotFoundError`` without it; ``import securefl`` never imports it.
"""

from __future__ import annotations

from securefl.report.html import write_report

__all__ = ["write_report"]
