"""A decider in a process of its own: the app beside it only carries messages.

Flower executes on a SuperNode whatever app was submitted, so an app that can read a key file hands
the key to whoever submits the right app; with a witness's identity it signs what that one wants.
Here the files are read by a process that its owner starts
with the owner's code, under an account that the SuperNode's app cannot read; it listens on a socket
in the file system. The app sends it the server's messages and returns its answers, all of which are
signed or refused inside. What it can do without the process is nothing; through it, no more than
the server: the process has its own floor, round book and journal.

A request is a few fields with their lengths, on a connection of its own, and so is the answer.
This module knows frames and nothing of what is in them.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from securefl.errors import ConfigurationError
from securefl.flower.errors import Code, Refusal
from securefl.flower.logs import printable, traceback_of

__all__ = ["Courier", "Request", "hold", "listening", "read_fields", "serve"]

logger = logging.getLogger(__name__)

Request = tuple[bytes, ...]
"""What is asked: b"hello" or b"decide", and its fields."""

_LENGTH = struct.Struct("<I")
_MOST_BYTES: Final = 1 << 31
_MOST_FIELDS: Final = 16
_IDLE_SECONDS: Final = 30.0
_REQUEST_SECONDS: Final = 120.0
"""How long a whole request, or its answer, may be on the way: an app that hangs in the middle, or
sends a byte now and then, keeps the next one waiting no longer."""


class Courier:
    """The app's end: asks the holder's process.

    Args:
        path: of its socket.
        seconds: how long an answer may take.
    """

    def __init__(self, path: Path, *, seconds: float = 3600.0) -> None:
        self._path, self._seconds = path, seconds

    def ask(self, *fields: bytes) -> bytes:
        """The holder's answer.

        Raises:
            Refusal: the one that the holder's process gives; INTERNAL if it is not there.
        """
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
                link.settimeout(self._seconds)
                link.connect(str(self._path))
                _send(link, fields)
                answer = read_fields(link)
        except (OSError, ConfigurationError) as error:
            raise Refusal(
                Code.INTERNAL, f"the holder's process at {self._path} does not answer: {error}"
            ) from None
        if len(answer) == 2 and answer[0] == b"frame":
            return answer[1]
        if len(answer) == 2 and answer[0] == b"code" and answer[1] in _CODES:
            raise Refusal(_CODES[answer[1]], "refused by the holder's process; its log says why")
        raise Refusal(Code.INTERNAL, "the holder's process answers something else")


_CODES = {code.value.encode(): code for code in Code}


def serve(listener: socket.socket, *, node_file: Path) -> None:
    """Answers requests one after the other until the listener is closed.

    Args:
        listener: see :func:`listening`.
        node_file: the holder's ``node.toml``, read anew for each request.
    """
    while True:
        try:
            link, _ = listener.accept()
        except OSError:
            return
        with link:
            try:
                link.settimeout(_IDLE_SECONDS)
                request = read_fields(link, seconds=_REQUEST_SECONDS)
                answer = _answer(request, node_file)
                # For all of it: whoever asks and does not read keeps nobody else waiting.
                link.settimeout(_REQUEST_SECONDS)
                _send(link, answer)
            except (OSError, ConfigurationError) as error:
                logger.warning("a connection ended without an answer: %s", printable(error))


def hold(node_file: Path, path: Path, *, ready: Callable[[str], None]) -> None:
    """Runs a holder's process until it is interrupted.

    Args:
        node_file: the holder's ``node.toml``.
        path: of the socket.
        ready: told once what this node is, when it listens.

    Raises:
        ConfigurationError: if the node file is no decider's, or the socket cannot be made.
    """
    from securefl.flower.deciding import part_of  # noqa: PLC0415  # it imports this module

    part = part_of(node_file)
    with listening(path) as listener:
        ready(part)
        with suppress(KeyboardInterrupt):
            serve(listener, node_file=node_file)


def _answer(request: Request, node_file: Path) -> Request:
    """The frame, or the code of a refusal; nothing else leaves the process."""
    from securefl.flower.deciding import answer_request  # noqa: PLC0415  # it imports this package

    try:
        return b"frame", answer_request(request, node_file)
    except Refusal as refusal:
        code = refusal.code
        logger.warning("refused (%s, %s): %s", code, code.meaning, printable(refusal))
        return b"code", code.value.encode()
    except Exception as error:
        logger.error("error while answering a request:\n%s", traceback_of(error))
        return b"code", Code.INTERNAL.value.encode()


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A listener at this path, mode 0660: its owner and one group may ask.

    Raises:
        ConfigurationError: if the path is taken or cannot be made.
    """
    _remove_dead(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            before = os.umask(0o117)
            try:
                listener.bind(str(path))
            finally:
                os.umask(before)
            listener.listen()
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen at {path}: {error.strerror or error}"
            ) from None
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)
    finally:
        listener.close()


def _remove_dead(path: Path) -> None:
    """Removes a socket at which nobody listens: what a process that was killed leaves behind."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError:
            pass  # whatever it is, the bind says it better


def _send(link: socket.socket, fields: Request) -> None:
    parts = [_LENGTH.pack(len(fields))]
    for field in fields:
        parts += [_LENGTH.pack(len(field)), field]
    link.sendall(b"".join(parts))


def read_fields(link: socket.socket, *, seconds: float = math.inf) -> Request:
    """The fields of one request or answer.

    Args:
        link: a connection; its own timeout is for each piece.
        seconds: how long all pieces together may take.

    Raises:
        ConfigurationError: if they are cut short, too many, too long or too late.
        OSError: of the connection.
    """
    end = time.monotonic() + seconds
    (count,) = _LENGTH.unpack(_exactly(link, _LENGTH.size, end))
    if count > _MOST_FIELDS:
        raise ConfigurationError(f"{count} fields, at most {_MOST_FIELDS} are possible")
    found: list[bytes] = []
    left = _MOST_BYTES
    for _ in range(count):
        (size,) = _LENGTH.unpack(_exactly(link, _LENGTH.size, end))
        left -= size
        if left < 0:
            raise ConfigurationError(f"more than {_MOST_BYTES} bytes")
        found.append(_exactly(link, size, end))
    return tuple(found)


def _exactly(link: socket.socket, size: int, end: float) -> bytes:
    found = bytearray()
    while len(found) < size:
        if time.monotonic() > end:
            raise ConfigurationError(f"not all there in time: {len(found)} of {size} bytes")
        chunk = link.recv(min(1 << 20, size - len(found)))
        if not chunk:
            raise ConfigurationError(f"cut short after {len(found)} of {size} bytes")
        found += chunk
    return bytes(found)
