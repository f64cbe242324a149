"""A public beacon that every site reads for itself: it shapes the graph of SecAgg+.

A server that may lie must not choose who is whose neighbour: it would surround its target with its
friends (Bell et al. 2020, section 4 has the graph from the server, which then follows the rules).
So the graph comes from a number that nobody could know when the session's configuration was made,
and that no server of ours can influence: the output of a beacon that publishes 32 bytes at known
times, as drand does. Two files at each site:

* ``beacon.toml``, the same everywhere: which beacon, when its first round was, seconds between two.
* the outputs, one JSON object per line with ``round`` and ``randomness`` (64 hexadecimal digits)
  as drand's interface returns them; other keys are left alone. Whatever fetches a round must verify
  the beacon's signature before it appends the line. Nothing here uses the network.

The server names a round to come. A node goes on only if that round's time is still ahead by its own
clock and its file does not have it yet. Who controls a site's clock or file chooses its graph; two
sites with different graphs produce noise and no sum. The outputs need not be secret.

There is no published proof for SecAgg+ against a lying server; both sides must ask for it by name
(``experimental_active_graph``). This module knows neither graphs nor Flower.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from securefl.errors import ConfigurationError

__all__ = ["Beacon", "unix_time"]

_SCHEMA = "securefl-beacon/1"
_LABEL = b"securefl flower beacon 1\x00"
_ID_BYTES, _ROUND_BYTES = 24, 8
_POLL, _TAIL = 0.5, 1 << 20


def unix_time() -> float:
    """Seconds since 1970, by this machine's clock."""
    return time.time()


class _File(BaseModel):
    """``beacon.toml``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    schema_: str = Field(alias="schema", pattern=f"^{_SCHEMA}$")
    chain: str = Field(min_length=1)
    genesis: int = Field(ge=0)
    period: int = Field(ge=1)
    outputs: str = Field(min_length=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beacon:
    """Which beacon, and where its outputs are.

    Attributes:
        chain: the beacon's name, e.g. drand's chain hash.
        genesis: time of round 1 in seconds since 1970.
        period: seconds between two rounds.
        outputs: the file that this site appends to.
    """

    chain: str
    genesis: int
    period: int
    outputs: Path

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads ``beacon.toml``; a relative ``outputs`` starts at its own folder.

        Raises:
            ConfigurationError: if the file is missing or malformed.
        """
        try:
            file = _File(**tomllib.loads(path.read_text()))
        except OSError as error:
            raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{path} is no TOML: {error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file as a whole"
            raise ConfigurationError(f"{path}, {where}: {first['msg']}") from None
        return cls(
            chain=file.chain,
            genesis=file.genesis,
            period=file.period,
            outputs=path.parent / file.outputs,
        )

    # -- rounds -----------------------------------------------------------------------------------

    def time_of(self, number: int) -> int:
        """When this round is published, in seconds since 1970; the first round is 1."""
        return self.genesis + (number - 1) * self.period

    def round_ahead(self, seconds: float) -> int:
        """The first round that is published more than so many seconds from now."""
        moment = unix_time() + seconds
        return max(1, int((moment - self.genesis) // self.period) + 2)

    def graph_value(self, number: int) -> bytes:
        """What a configuration says: this beacon and this round; 32 bytes."""
        return self._id() + number.to_bytes(_ROUND_BYTES, "big")

    def round_of(self, graph_value: bytes) -> int:
        """Inverse of :meth:`graph_value`.

        Raises:
            ConfigurationError: for another beacon, or a round before the first.
        """
        number = int.from_bytes(graph_value[_ID_BYTES:], "big")
        if graph_value[:_ID_BYTES] != self._id() or number < 1:
            raise ConfigurationError(
                f"the configuration names another beacon than {self.chain!r} of beacon.toml, or "
                "other times of its rounds"
            )
        return number

    def _id(self) -> bytes:
        fields = json.dumps([self.chain, self.genesis, self.period]).encode()
        return hashlib.sha256(_LABEL + fields).digest()[:_ID_BYTES]

    def seconds_until(self, number: int) -> float:
        """How long until this round is published; 0 if it was."""
        return max(0.0, self.time_of(number) - unix_time())

    def check_future(self, number: int) -> None:
        """Refuses a round that somebody could know already.

        Raises:
            ConfigurationError: if its time has come, or the output is there.
        """
        now = unix_time()
        if self.time_of(number) <= now or self.output(number) is not None:
            raise ConfigurationError(
                f"round {number} of the beacon is {now - self.time_of(number):.0f} s old by this "
                "machine's clock, or in its file: whoever made the configuration could have known "
                "the graph"
            )

    def awaited(
        self, number: int, *, seconds: float, sleep: Callable[[float], None] = time.sleep
    ) -> bytes:
        """The output of a round, as soon as the file has it.

        Args:
            number: the round.
            seconds: how long to wait at most, from now.
            sleep: waits.

        Raises:
            ConfigurationError: if it is not there then, or the file is none.
        """
        end = unix_time() + seconds
        while (found := self.output(number)) is None:
            late = unix_time() - self.time_of(number)
            if unix_time() >= end:
                raise ConfigurationError(
                    f"round {number} of the beacon is not in {self.outputs} {late:.0f} s after its "
                    "time: is whatever appends to that file still running?"
                )
            sleep(_POLL)
        return found

    def output(self, number: int) -> bytes | None:
        """What the beacon said in this round, 32 bytes; None if the file does not have it.

        Looks at the last mebibyte, some thousand rounds: the one in question is recent. A last line
        without its end is being written and does not count.

        Raises:
            ConfigurationError: if the file cannot be read, a line is no output, or two lines
                contradict each other.
        """
        try:
            lines = self._tail().split(b"\n")[:-1]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigurationError(f"cannot read {self.outputs}: {error.strerror}") from None
        found: bytes | None = None
        for line in lines:
            if not line.strip():
                continue
            try:
                which, randomness = _parsed(json.loads(line))
            except (ValueError, KeyError, TypeError, RecursionError):
                raise ConfigurationError(
                    f'{self.outputs}: expected lines of the form {{"round": 1, "randomness": '
                    f'"<64 hexadecimal digits>"}}, found {line[:80]!r}'
                ) from None
            if which != number:
                continue
            if found is not None and found != randomness:
                raise ConfigurationError(f"{self.outputs} has two outputs of round {number}")
            found = randomness
        return found

    def _tail(self) -> bytes:
        """The end of the file, from the start of a line on."""
        with self.outputs.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            if size > _TAIL:
                file.readline()
            return file.read()


def _parsed(line: Any) -> tuple[int, bytes]:
    """Round and output; ValueError, KeyError or TypeError if it is none."""
    which, randomness = line["round"], bytes.fromhex(line["randomness"])
    if isinstance(which, bool) or not isinstance(which, int) or len(randomness) != 32:
        raise ValueError(which)
    return which, randomness
