"""What a peer remembers between sessions: which ones it has entered, so that it enters none twice.

Without a server there is no roster that names a run; the configuration's digest is the session's
name. A peer that entered one twice, say after a crash, would sign two survivor lists under one
name, and the count of signatures that rules out a second list would no longer be true.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from securefl.errors import ConfigurationError
from securefl.storage import sync_folder

__all__ = ["FolderRegister", "MemoryRegister", "SessionRegister"]


class SessionRegister(Protocol):
    """What a peer needs."""

    def enter(self, session: bytes) -> bool:
        """Notes a session, durably, before returning.

        Args:
            session: 32 bytes, the configuration's digest.

        Returns:
            True if it is new; False if it was entered before.
        """


class MemoryRegister:
    """A register that dies with its process: for simulations, where every peer does."""

    def __init__(self) -> None:
        self._entered: set[bytes] = set()

    def enter(self, session: bytes) -> bool:
        """See :class:`SessionRegister`."""
        if session in self._entered:
            return False
        self._entered.add(session)
        return True


class FolderRegister:
    """A register on disk: one empty file per session, on a local disk, one folder per peer.

    Restoring an old copy of the folder makes it forget; that cannot be detected from inside.

    Args:
        folder: made with mode 0700 if it does not exist.

    Raises:
        ConfigurationError: if it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigurationError(f"cannot make the register {folder}: {error}") from None
        self._folder = folder

    def enter(self, session: bytes) -> bool:
        """See :class:`SessionRegister`. Of two processes with one folder one gets True.

        Raises:
            ConfigurationError: if the folder cannot be written; then nothing may be sent.
        """
        try:
            descriptor = os.open(
                self._folder / session.hex(), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600
            )
            os.close(descriptor)
            sync_folder(self._folder)
        except FileExistsError:
            return False
        except OSError as error:
            raise ConfigurationError(
                f"the register {self._folder} cannot be written ({error}): nothing was sent; "
                "repair the disk and propose a new session"
            ) from None
        return True
