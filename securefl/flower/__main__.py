"""``python -m securefl.flower hold NODE.toml --socket PATH``: a holder's own process.

It is no command of ``securefl``, which knows nothing of Flower.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from pathlib import Path

from securefl.errors import SecureFLError
from securefl.flower.holder import hold

_FAILED = 2


def main(arguments: list[str] | None = None) -> int:
    """Runs until it is interrupted; the exit code is 2 if it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m securefl.flower")
    commands = parser.add_subparsers(required=True)
    holder = commands.add_parser(
        "hold", help="open sums for a SuperNode that has no key; runs until it is interrupted"
    )
    holder.add_argument("node", type=Path, help="the holder's node.toml")
    holder.add_argument(
        "--socket", type=Path, required=True, help="where the SuperNode's app asks; made, removed"
    )
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the socket is removed then, too
    try:
        hold(
            given.node,
            given.socket,
            ready=lambda who: print(f"{who}, listening at {given.socket}", flush=True),  # noqa: T201  # a command's answer
        )
    except SecureFLError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  # a command's answer
        return _FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
