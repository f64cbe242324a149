"""What a wire carried: a recording proxy, and a search for updates in what it heard.

The search knows no message format. It reads the recorded bytes at every offset as a row of integers
and as a row of floating-point numbers, and correlates each window with what it looks for. So it
also finds an update that was scaled, rounded, weighted or added to something smaller.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from securefl.wire import unpack_words

LIMIT = 0.6
"""A window of at least 600 numbers that correlates by more than this is an alarm.

Masked vectors are uniform. For n uniform numbers x on [-1, 1] and unit vectors a (what is looked
for, centred) and e (constant), rho^2 = (a.x)^2 / (|x|^2 - (e.x)^2). Each product is sub-Gaussian
with variance 1/3: above s with probability below 2 exp(-3 s^2 / 2). And |x|^2 < 0.17 n has
probability below exp(-0.0667 n) (Bernstein, with E x^4 = 1/5). For n = 600 all three together allow
|rho| > 0.6 with a probability below 1e-16 per window: below 1e-7 for 10^9 windows.
"""

LEAST = 600
_BLOCK = 1 << 14
_FORMS = {"<i4": 4, "<i8": 8, "<f4": 4, "<f8": 8}


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, and that no outgoing connection will be given.

    Systems take the ports of outgoing connections, and those of ``bind`` to port 0, from above.
    """
    for _ in range(1000):
        port = 20_000 + secrets.randbelow(10_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port between 20000 and 30000")


class Recorder:
    """Passes connections on to a port of 127.0.0.1 and keeps what went through."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._up: list[bytearray] = []
        self._down: list[bytearray] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            try:
                link = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            with self._lock:
                self._sockets |= {client, link}
            for ends in ((client, link, self._up), (link, client, self._down)):
                threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, kept: list[bytearray]) -> None:
        stream = bytearray()
        with self._lock:
            kept.append(stream)
        try:
            while chunk := source.recv(1 << 16):
                with self._lock:
                    stream += chunk
                sink.sendall(chunk)
        except OSError:
            pass
        finally:
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def up(self) -> list[bytes]:
        """What nodes sent, one entry per connection."""
        with self._lock:
            return [bytes(stream) for stream in self._up]

    def down(self) -> list[bytes]:
        """What nodes got, one entry per connection."""
        with self._lock:
            return [bytes(stream) for stream in self._down]

    def traffic(self) -> list[bytes]:
        """Both."""
        return self.up() + self.down()

    def totals(self) -> tuple[int, int]:
        """Bytes from the nodes, bytes to them."""
        with self._lock:
            return sum(map(len, self._up)), sum(map(len, self._down))

    def clear(self) -> None:
        """Forgets what was heard so far; connections go on."""
        with self._lock:
            for stream in (*self._up, *self._down):
                stream.clear()

    def close(self) -> None:
        """Ends all connections."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        with self._lock:
            for one in self._sockets:
                one.close()


# -- what stands in it ----------------------------------------------------------------------------


def holds(streams: Iterable[bytes], secret: NDArray[np.floating], *, piece: int = 8) -> bool:
    """Whether consecutive numbers of an update stand there as they are, in single or double."""
    found = [
        np.ascontiguousarray(secret[start : start + piece], dtype=form).tobytes()
        for form in ("<f4", "<f8")
        for start in range(0, len(secret) - piece + 1, max(1, len(secret) // 8))
    ]
    return any(one in stream for stream in streams for one in found)


def without(streams: Iterable[bytes], known: Sequence[bytes]) -> list[bytes]:
    """The streams with zeros in place of what is public."""
    found = list(streams)
    for one in known:
        found = [stream.replace(one, bytes(len(one))) for stream in found]
    return found


def masked_vectors(streams: Iterable[bytes], *, length: int) -> list[NDArray[np.float64]]:
    """The first ``length`` entries of every MaskedInput frame, centred in their ring.

    A frame of this size stands inside one HTTP body, so its bytes are together. Its header is 60
    bytes: magic, version, protocol, type 5 (masked input), ..., body length in the last four. After
    the update's entries comes the weight.
    """
    found = []
    for stream in streams:
        for match in re.finditer(rb"SFL1\x01[\x01\x02]\x05", stream):
            start = match.start()
            size = int.from_bytes(stream[start + 56 : start + 60], "little")
            body = stream[start + 60 : start + 60 + size]
            bits = size * 8 // (length + 1)
            if len(body) < size or not bits:
                continue
            words = unpack_words(body, length + 1, bits).astype(np.float64)
            found.append(words[:-1] - (1 << (bits - 1)))
    return found


def correlations(streams: Sequence[bytes], wanted: NDArray[np.floating]) -> NDArray[np.float64]:
    """The largest correlation of any window with each of these; float64[k].

    Args:
        streams: recorded bytes.
        wanted: float[k, n] with n >= LEAST.
    """
    n = wanted.shape[1]
    if n < LEAST:
        raise ValueError(f"LIMIT is for at least {LEAST} numbers, found {n}")
    best = np.zeros(len(wanted))
    for form, size in _FORMS.items():
        read = _ordered(wanted.astype(form), size) if form[1] == "f" else wanted
        spectra = np.fft.rfft(_centred(read)[:, ::-1], 2 * _BLOCK)
        for stream in streams:
            for offset in range(size):
                for row in _rows(stream, form, size, offset, n):
                    np.maximum(best, _strongest(row, spectra, n), out=best)
    return best


def _ordered(values: NDArray[np.floating], size: int) -> NDArray[np.float64]:
    """Floats as integers in the same order: any bytes are bounded then, and random ones uniform."""
    bits = values.view(f"<i{size}")
    least = np.array(np.iinfo(bits.dtype).min, dtype=bits.dtype)
    return np.where(bits < 0, least - bits - 1, bits).astype(np.float64)


def _centred(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    centred = rows.astype(np.float64) - rows.mean(axis=1, keepdims=True, dtype=np.float64)
    return np.asarray(centred / np.linalg.norm(centred, axis=1, keepdims=True))


def _rows(
    stream: bytes, form: str, size: int, offset: int, n: int
) -> Iterator[NDArray[np.float64]]:
    """Blocks that overlap by n - 1 numbers, so that each window is whole in one of them."""
    count = (len(stream) - offset) // size
    if count < n:
        return
    values = np.frombuffer(stream, dtype=form, count=count, offset=offset)
    for start in range(0, count - n + 1, _BLOCK - n + 1):
        part = values[start : start + _BLOCK]
        row = _ordered(part.copy(), size) if form[1] == "f" else part.astype(np.float64)
        yield row / 2.0 ** (8 * size - 1)


def _strongest(
    row: NDArray[np.float64], spectra: NDArray[np.complex128], n: int
) -> NDArray[np.float64]:
    """max |rho| over the row's windows of n, per vector; constant windows count for nothing."""
    row = row - row.mean()
    sums = np.cumsum(np.concatenate([[0.0], row]))
    squares = np.cumsum(np.concatenate([[0.0], row**2]))
    total, square = sums[n:] - sums[:-n], squares[n:] - squares[:-n]
    norm2 = square - total**2 / n
    # Rounding errors of the sums over the block: windows below them are constant in this reading.
    usable = norm2 > 1e-11 * n * float((row**2).max())
    if not usable.any():
        return np.zeros(len(spectra))
    found = np.fft.irfft(np.fft.rfft(row, 2 * _BLOCK) * spectra, 2 * _BLOCK)
    products = found[:, n - 1 : n - 1 + len(norm2)]
    return np.asarray((np.abs(products) / np.sqrt(np.where(usable, norm2, np.inf))).max(axis=1))
