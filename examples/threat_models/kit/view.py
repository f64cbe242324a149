"""What somebody can compute from a transcript of SecAgg or SecAgg+ and a few secret keys.

The other side of the library's machines, written for the attacker: it reads frames, opens what it
has keys for, rebuilds every secret of which enough shares were given away, and takes masks off. It
holds no machine and no input. An honest server's knowledge is the transcript alone; colluders add
their secret keys and self-mask seeds. Bonawitz et al. 2017, "Practical Secure Aggregation for
Privacy-Preserving Machine Learning", figure 4, read backwards.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from securefl.errors import WireError
from securefl.modular import ring_dtype
from securefl.primitives.channel import AgreementKey, PublicKey, Unopenable
from securefl.primitives.prg import expand
from securefl.primitives.sharing import (
    Unreconstructable,
    lagrange_at_zero,
    parse_share_words,
    reconstruct,
)
from securefl.protocols.secagg.keys import KeySchedule
from securefl.protocols.secagg.masks import sign
from securefl.protocols.secagg.messages import (
    B_WORDS,
    AdvertiseKeys,
    EncryptedShares,
    KeyRoster,
    NeighbourRoster,
    RosterEntry,
    ShareDelivery,
    SurvivorNotice,
    UnmaskRequest,
    UnmaskShares,
    message_type,
)
from securefl.protocols.secagg.transitions import MessageType
from securefl.round import Adversary, ClientId, Layout, Protocol, RoundConfig
from securefl.simulation.network import Direction, Envelope
from securefl.wire import Frame, decode_frame, unpack_words

__all__ = ["LOW_ORDER", "Ring", "View"]

Ring = NDArray[np.uint64]
"""Entries modulo 2^b."""

_P = 2**255 - 19
LOW_ORDER = {
    u.to_bytes(32, "little"): bytes(32)
    for u in (
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        _P - 1,
    )
}
"""The X25519 keys with which every agreement is 32 zero bytes (RFC 7748, section 6.1)."""

Rows = dict[ClientId, NDArray[np.uint32]]  # holder -> share


@dataclass
class _Seen:
    """What the server saw of one client."""

    advertised: AdvertiseKeys | None = None
    roster: dict[ClientId, RosterEntry] = field(default_factory=dict)
    session: bytes = b""
    partners: list[ClientId] = field(default_factory=list)
    masked: list[Ring] = field(default_factory=list)
    asked: NDArray[np.bool_] | None = None
    b: Rows = field(default_factory=dict)
    s: Rows = field(default_factory=dict)

    @property
    def peers(self) -> list[ClientId]:
        return list(self.roster)


class View:
    """Everything that follows from these frames.

    Args:
        config: of the session; the server made it.
        envelopes: the transcript, in its order.
        secret_keys: 32-byte X25519 keys that the attacker knows: colluders' and its own.
        seeds: self-mask seeds b_u of colluders.
        keys: the key schedule; another one only to attack a library that derives otherwise.
    """

    def __init__(
        self,
        config: RoundConfig,
        envelopes: Iterable[Envelope],
        *,
        secret_keys: Iterable[bytes] = (),
        seeds: Mapping[ClientId, bytes] | None = None,
        keys: KeySchedule | None = None,
    ) -> None:
        self.config = config
        self.keys = KeySchedule(config.protocol) if keys is None else keys
        self._secret = {k.public: k for k in (AgreementKey(raw) for raw in secret_keys)}
        self._seeds = dict(seeds or {})
        self._seen: dict[ClientId, _Seen] = defaultdict(_Seen)
        for envelope in envelopes:
            try:
                frame = decode_frame(envelope.frame)
            except WireError:
                continue
            self._take(envelope, frame)

    @property
    def clients(self) -> list[ClientId]:
        """Whose masked input arrived, ascending."""
        return sorted(u for u, seen in self._seen.items() if seen.masked)

    def peers(self, u: ClientId) -> list[ClientId]:
        """Whom u was shown in its roster, in that order."""
        return self._seen[u].peers

    def partners(self, u: ClientId) -> list[ClientId]:
        """Those of them whose shares were delivered to u: towards whom it masked."""
        return list(self._seen[u].partners)

    def session_of(self, u: ClientId) -> bytes:
        """The session id that u computed from the roster it was shown."""
        return self._seen[u].session

    # -- reading --------------------------------------------------------------------------------

    def _take(self, envelope: Envelope, frame: Frame) -> None:
        u, body = envelope.client, bytes(frame.body)
        kind = message_type(frame.type)
        seen = self._seen[u]
        if envelope.direction is Direction.UP:
            match kind:
                case MessageType.ADVERTISE_KEYS:
                    seen.advertised = AdvertiseKeys.decode(body)
                case MessageType.ENCRYPTED_SHARES:
                    self._read_dealt(u, body)
                case MessageType.MASKED_INPUT:
                    words = unpack_words(body, self.config.m, self.config.b)
                    seen.masked.append(words.astype(np.uint64))
                case MessageType.UNMASK_SHARES:
                    self._read_answer(u, body)
                case _:
                    pass
            return
        match kind:
            case MessageType.KEY_ROSTER:
                self._read_roster(u, body)
            case MessageType.SHARE_DELIVERY:
                try:
                    delivery = ShareDelivery.decode(body, peers=len(seen.peers))
                except WireError:
                    return
                there = zip(seen.peers, delivery.present, strict=True)
                seen.partners = [v for v, present in there if present]
            case MessageType.SURVIVOR_NOTICE:
                alive = SurvivorNotice.decode(body, n=self.config.n).alive
                cohort = self.config.cohort
                seen.asked = np.array([alive[cohort.index(v)] for v in seen.peers], dtype=np.bool_)
            case MessageType.UNMASK_REQUEST:
                self._read_request(u, body)
            case _:
                pass

    @property
    def _active(self) -> bool:
        return self.config.adversary is Adversary.ACTIVE

    def _read_roster(self, u: ClientId, body: bytes) -> None:
        most = self.config.n
        try:
            if self.config.protocol is Protocol.SECAGG:
                # A client without its checks may be shown more entries than the cohort has.
                entries = KeyRoster.decode(body, most=2 * most, signed=self._active).entries
                tree = self.keys.roster_tree([e.encode() for e in entries])
                size, root = len(entries), tree.root
            else:
                near = NeighbourRoster.decode(body, most=most, signed=self._active)
                entries = tuple(proven.entry for proven in near.entries)
                size, root = near.size, near.root
        except WireError:
            return
        seen = self._seen[u]
        seen.roster = {e.client: e for e in entries if e.client != u}
        seen.session = self.keys.session_id(self.config.digest(), size, root)

    def _read_dealt(self, u: ClientId, body: bytes) -> None:
        """The shares that u dealt to somebody whose key is known."""
        seen = self._seen[u]
        try:
            dealt = EncryptedShares.decode(body, peers=len(seen.peers))
        except WireError:
            return
        assert seen.advertised is not None
        for v, ciphertext in zip(seen.peers, dealt, strict=True):
            shown = seen.roster[v].c_pk
            agreed = LOW_ORDER.get(shown)
            if shown in self._secret:
                agreed = self._secret[shown].agree(PublicKey(seen.advertised.c_pk))
            if agreed is None:
                continue
            key = self.keys.channel_key(agreed, seen.session, u, v)
            try:
                raw = self.keys.open_shares(key, seen.session, u, v, ciphertext.tobytes())
                words = parse_share_words(raw)
            except (Unopenable, WireError):
                continue
            seen.b[v], seen.s[v] = words[:B_WORDS], words[B_WORDS:]

    def _read_request(self, u: ClientId, body: bytes) -> None:
        if self._active:
            return  # only signatures: the list is that of the notice
        seen = self._seen[u]
        try:
            seen.asked = UnmaskRequest.decode(body, peers=len(seen.peers)).alive
        except WireError:
            seen.asked = None

    def _read_answer(self, u: ClientId, body: bytes) -> None:
        seen = self._seen[u]
        if seen.asked is None:
            return
        asked = dict(zip(seen.peers, seen.asked, strict=True))
        alive = np.array([asked[v] for v in seen.partners], dtype=np.bool_)
        own = self.config.layout is Layout.ALL
        try:
            answer = UnmaskShares.decode(body, alive=alive, own=own)
        except WireError:
            return
        readable = [v for v, good in zip(seen.partners, answer.readable, strict=True) if good]
        b_rows, s_rows = iter(answer.b_shares), iter(answer.s_shares)
        for v in readable:
            if asked[v]:
                self._seen[v].b[u] = next(b_rows)
            else:
                self._seen[v].s[u] = next(s_rows)
        if answer.own is not None:
            seen.b[u] = answer.own

    def add_shares(
        self,
        dealer: ClientId,
        holder: ClientId,
        *,
        b: NDArray[np.uint32] | None = None,
        s: NDArray[np.uint32] | None = None,
    ) -> None:
        """Shares that an attack read out of an answer in another format."""
        if b is not None:
            self._seen[dealer].b[holder] = b
        if s is not None:
            self._seen[dealer].s[holder] = s

    def shares(self, u: ClientId) -> tuple[int, int]:
        """How many shares of u's seed and of u's mask key are in the attacker's hands."""
        return len(self._seen[u].b), len(self._seen[u].s)

    # -- opening ----------------------------------------------------------------------------------

    def _rebuild(self, rows: Rows, size: int) -> bytes | None:
        t = self.config.t
        holders = sorted(rows)[:t]
        if len(holders) < t:
            return None
        points = tuple(1 + self.config.cohort.index(v) for v in holders)
        words = np.array([rows[v] for v in holders], dtype=np.uint32)
        try:
            return reconstruct(words, lagrange_at_zero(points), size)
        except Unreconstructable:
            return None

    def seed(self, u: ClientId) -> bytes | None:
        """b_u, if it is known or t shares of it are."""
        return self._seeds.get(u) or self._rebuild(self._seen[u].b, 16)

    def mask_key(self, u: ClientId) -> AgreementKey | None:
        """The secret key behind u's advertised mask key, checked against the public one."""
        public = self._advertised(u).s_pk
        if public in self._secret:
            return self._secret[public]
        raw = self._rebuild(self._seen[u].s, 32)
        key = None if raw is None else AgreementKey(raw)
        return key if key is not None and key.public == public else None

    def _advertised(self, u: ClientId) -> AdvertiseKeys:
        found = self._seen[u].advertised
        assert found is not None, f"client {u} advertised no keys in this transcript"
        return found

    def masked(self, u: ClientId) -> Ring:
        """The first masked input of u, as it came."""
        return self._seen[u].masked[0]

    def every_masked(self, u: ClientId) -> list[Ring]:
        """All masked inputs that u sent; a client of the library sends one."""
        return list(self._seen[u].masked)

    def expand(self, key: bytes) -> Ring:
        """The mask of a key, uint64[m] before reduction."""
        return expand(key, self.config.m, ring_dtype(self.config.modulus)).astype(np.uint64)

    def self_mask(self, u: ClientId) -> Ring | None:
        """The mask from u's seed."""
        b = self.seed(u)
        if b is None:
            return None
        return self.expand(self.keys.self_mask_key(b, self._seen[u].session, u))

    def pair_mask(self, u: ClientId, v: ClientId) -> Ring | None:
        """The mask that u added towards v, whoever of the two is open."""
        shown = self._seen[u].roster[v].s_pk
        agreed = LOW_ORDER.get(shown)
        mine = self.mask_key(u)
        if agreed is None and mine is not None:
            agreed = mine.agree(PublicKey(shown))
        if agreed is None:
            theirs = self._secret.get(shown)
            if theirs is None and v in self._seen and self._advertised(v).s_pk == shown:
                theirs = self.mask_key(v)
            if theirs is not None:
                agreed = theirs.agree(PublicKey(self._advertised(u).s_pk))
        if agreed is None:
            return None
        return self.expand(self.keys.pair_mask_key(agreed, self._seen[u].session, u, v))

    def best_of(self, chosen: Iterable[ClientId]) -> Ring | None:
        """The sum of their masked inputs with every mask taken off that is known.

        What an attacker is left with where :meth:`sum_of` gives None; for a picture.
        """
        members = {u for u in chosen if u in self._seen and self._seen[u].masked}
        if not members:
            return None
        total = np.zeros(self.config.m, dtype=np.uint64)
        for u in sorted(members):
            own = self.self_mask(u)
            total += self.masked(u) if own is None else self.masked(u) - own
            for v in self._seen[u].partners:
                mask = None if v in members else self.pair_mask(u, v)
                if mask is not None:
                    total += -mask if sign(u, v) > 0 else mask
        result: Ring = total & np.uint64(self.config.modulus - 1)
        return result

    def sum_of(self, chosen: Iterable[ClientId]) -> Ring | None:
        """The sum over these clients alone; None if a secret for it is missing."""
        members = set(chosen)
        total = np.zeros(self.config.m, dtype=np.uint64)
        for u in sorted(members):
            own = self.self_mask(u)
            if own is None or not self._seen[u].masked:
                return None
            total += self.masked(u) - own
            for v in self._seen[u].partners:
                if v in members:
                    continue
                mask = self.pair_mask(u, v)
                if mask is None:
                    return None
                total += -mask if sign(u, v) > 0 else mask
        result: Ring = total & np.uint64(self.config.modulus - 1)
        return result
