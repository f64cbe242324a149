"""What others say, written into a log so that it stays one line of bounded length.

A message's type, the names of its records, the keys of its model and the text of a plan come from a
server that may send anything. In a log they could start lines of their own ("INFO: key verified"),
move the cursor of whoever reads it, or fill the disk. Flower's own lines about a message are made
before SecureFL sees it, and are not covered. This module knows nothing of Flower.
"""

from __future__ import annotations

import traceback

__all__ = ["printable", "traceback_of"]

_MOST_CHARACTERS = 1000
_MOST_FRAMES = 30
_MOST_CAUSES = 8


def printable(text: object, most: int = _MOST_CHARACTERS) -> str:
    r"""One line: what cannot be printed is escaped, and what is too long is cut.

    Args:
        text: an object with a text.
        most: characters that are kept.

    >>> printable("train.x\nINFO: all is well\x1b[2J")
    'train.x\\nINFO: all is well\\x1b[2J'
    >>> printable("a" * 9, most=4)
    'aaaa... (9 characters)'
    """
    try:
        whole = str(text)
    except Exception:  # an exception class of the app's; its text must not stop the reply
        return f"<{type(text).__name__} without a text>"
    kept = "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in whole[:most]
    )
    return kept if len(whole) <= most else f"{kept}... ({len(whole)} characters)"


def traceback_of(error: BaseException) -> str:
    """An exception with its causes: as Python prints it, but each text is :func:`printable`.

    The lines of a traceback are made of this machine's files; only the texts can come from
    elsewhere.
    """
    parts: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen and len(parts) < _MOST_CAUSES:
        seen.add(id(current))
        frames = "".join(traceback.format_tb(current.__traceback__, limit=-_MOST_FRAMES))
        parts.append(f"{frames}{printable(type(current).__name__)}: {printable(current)}")
        hidden = current.__suppress_context__
        current = current.__cause__ or (None if hidden else current.__context__)
    return "\ncaused by:\n".join(parts)
