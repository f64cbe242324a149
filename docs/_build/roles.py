"""A hook of the documentation build: cross-reference roles in docstrings become plain code.

Docstrings write ``:class:`Name``` so that editors can follow them; the site's generator prints the
role as text. This removes the role and the leading ``~``, nothing else.
"""

from __future__ import annotations

import re
from typing import Any

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc|ref):(<code>)(?:~(?:\w+\.)*)?")


def on_page_content(html: str, **_: Any) -> str:
    """Called by the build for every page's HTML."""
    return _ROLE.sub(r"\1", html)
