"""Fragments of IPv4 and IPv6 datagrams -> datagrams, put together as the receiver's stack would.

Promises: :meth:`Defragmenter.add` never raises; a fragment costs time in proportion to what it overlaps; memory is
bounded by :class:`DefragLimits`.

Where fragments overlap, :class:`FragmentPolicy` says whose bytes count: each byte belongs to the fragment that won it
last, and a new fragment wins it or not by comparing its extent with the extent of that owner.

Sources: RFC 791 section 3.2, RFC 8200 section 4.5; Novak, "Target-Based Fragmentation Reassembly" (2005) for the
policies; Suricata's defrag settings for limits and names of events. RFC 5722 forbids overlaps in IPv6; as Suricata does
they are put together by the policy and reported, since what a receiver does with them is not known.
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

from engines.decode.checksums import ones_sum
from engines.packet import MAX_EXTENSION_HEADERS

MAX_DATAGRAM = 65535
"""Bytes; neither IPv4's total length nor IPv6's payload length can say more."""


class FragmentPolicy(enum.Enum):
    """Whose stack receives the fragments."""

    FIRST = "first"
    LAST = "last"
    BSD = "bsd"
    BSD_RIGHT = "bsd-right"
    LINUX = "linux"
    SOLARIS = "solaris"
    WINDOWS = "windows"

    @classmethod
    def parse(cls, name: str) -> FragmentPolicy:
        """The policy for a name of Suricata's ``host-os-policy``; raises ValueError."""
        name = name.lower().replace("_", "-")
        return cls(_ALIASES.get(name, name))


_ALIASES = {
    "hpux10": "bsd", "irix": "bsd",
    "old-linux": "linux",
    "old-solaris": "first", "hpux11": "first", "macos": "first",
    "windows2k3": "windows", "vista": "windows",
}  # fmt: skip


def new_wins(policy: FragmentPolicy, new: tuple[int, int], old: tuple[int, int]) -> bool:
    """Whether a fragment at ``new`` (start, end) takes the bytes it shares with an earlier one at ``old``."""
    if policy is FragmentPolicy.LAST:
        return True
    if policy is FragmentPolicy.BSD:
        return new[0] < old[0]
    if policy is FragmentPolicy.BSD_RIGHT:
        return new[0] >= old[0]
    if policy is FragmentPolicy.LINUX:
        return new[0] <= old[0]
    if policy is FragmentPolicy.SOLARIS:
        return new[0] < old[0] and new[1] >= old[1]
    if policy is FragmentPolicy.WINDOWS:
        return new[0] < old[0] and new[1] > old[1]
    return False


class Outcome(enum.Enum):
    """What became of a packet."""

    WHOLE = "whole"  # no fragment, or an atomic one (RFC 6946); or nothing that can be read
    HELD = "held"
    REBUILT = "rebuilt"  # it completed a datagram
    REFUSED = "refused"  # no valid fragment: too large, or without data
    FULL = "full"  # no room for it


@dataclass(frozen=True, slots=True)
class Defragmented:
    """``datagram``: the whole IP packet when REBUILT, without that fragment header, IPv4 checksum set. ``events``: for
    Suricata's decode-event keyword, of the packet that was added."""

    outcome: Outcome
    datagram: bytes = b""
    events: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DefragLimits:
    """The defaults are those of Suricata's stock configuration.

    ``trackers``: incomplete datagrams; the one longest without a fragment makes room. ``fragments``: of one datagram;
    ``total_bytes``: of all that is held. A fragment beyond those is not taken (FULL). ``timeout``: seconds without a
    fragment after which a datagram is given up.
    """

    trackers: int = 65535
    fragments: int = 8192
    total_bytes: int = 32 * 1024 * 1024
    timeout: float = 60.0


@dataclass(frozen=True, slots=True)
class Fragment:
    """One fragment as read. ``key`` tells datagrams apart; ``head``: what goes before the data in the datagram, its
    length and checksum not yet right; ``start``: offset of ``data`` in bytes."""

    family: int
    key: bytes
    dst: bytes
    head: bytes
    start: int
    data: bytes
    more: bool

    @property
    def end(self) -> int:
        return self.start + len(self.data)


def read_fragment(data: bytes) -> Fragment | None:
    """The fragment in an IP packet; None when it is whole, or nothing that can be read as one."""
    version = data[0] >> 4 if data else 0
    if version == 4:
        return _read_ipv4(data)
    return _read_ipv6(data) if version == 6 else None


def _read_ipv4(data: bytes) -> Fragment | None:
    if len(data) < 20:
        return None
    field_ = _word(data, 6)
    header, total = (data[0] & 0x0F) * 4, _word(data, 2)
    if not field_ & 0x3FFF or header < 20 or total < header or total > len(data):
        return None
    key = b"4" + data[9:10] + data[4:6] + data[12:20]
    start = (field_ & 0x1FFF) * 8
    return Fragment(4, key, data[16:20], data[:header], start, data[header:total], bool(field_ & 0x2000))


def _read_ipv6(data: bytes) -> Fragment | None:
    """Walks the extension headers up to the fragment header; those are not part of what was fragmented."""
    if len(data) < 40:
        return None
    end = 40 + _word(data, 4)
    if end > len(data):
        return None
    before, at, following = 6, 40, data[6]  # where the number of the next header stands; where that header is
    for _ in range(MAX_EXTENSION_HEADERS + 1):
        if at + 8 > end:
            return None
        if following == 44:
            field_ = _word(data, at + 2)
            if not field_ & 0xFFF9:
                return None
            head = bytearray(data[:at])
            head[before] = data[at]
            key = b"6" + data[at + 4 : at + 8] + data[8:40]
            return Fragment(6, key, data[24:40], bytes(head), field_ & 0xFFF8, data[at + 8 : end], bool(field_ & 1))
        if following not in (0, 43, 51, 60, 135, 139, 140):
            return None
        # RFC 4302 section 2.2: AH counts in 4-byte units, minus 2; all others in 8-byte units, minus 1.
        size = (data[at + 1] + 2) * 4 if following == 51 else (data[at + 1] + 1) * 8
        before, following = at, data[at]
        at += size
    return None


@dataclass(frozen=True, slots=True)
class _Piece:
    """Bytes [start, end) of a datagram, won by a fragment whose extent is ``owner``."""

    start: int
    end: int
    owner: tuple[int, int]
    data: bytes

    def cut(self, start: int, end: int) -> _Piece:
        return _Piece(start, end, self.owner, self.data[start - self.start : end - self.start])


def _start(piece: _Piece) -> int:
    return piece.start


@dataclass(slots=True)
class _Tracker:
    """One incomplete datagram."""

    policy: FragmentPolicy
    last_seen: float
    head: bytes = b""
    pieces: list[_Piece] = field(default_factory=list)  # sorted, disjoint
    held: int = 0  # bytes in pieces
    count: int = 0
    last_came: bool = False

    def add(self, fragment: Fragment) -> bool:
        """True when it overlapped what was there."""
        self.count += 1
        start, end, pieces = fragment.start, fragment.end, self.pieces
        extent = (start, end)
        new = _Piece(start, end, extent, fragment.data)
        low = bisect_right(pieces, start, key=_start)
        if low and pieces[low - 1].end > start:
            low -= 1
        wins_first_byte = start == 0 and (
            not pieces or pieces[0].start > 0 or new_wins(self.policy, extent, pieces[0].owner)
        )
        high, at, merged, tail = low, start, list[_Piece](), list[_Piece]()
        while high < len(pieces) and pieces[high].start < end:
            old = pieces[high]
            high += 1
            if new_wins(self.policy, extent, old.owner):
                if old.start < start:
                    merged.append(old.cut(old.start, start))
                if old.end > end:
                    tail.append(old.cut(end, old.end))
                continue
            if at < old.start:
                merged.append(new.cut(at, old.start))
            merged.append(old)
            at = old.end
        if at < end:
            merged.append(new.cut(at, end))
        merged += tail
        self.held += sum(piece.end - piece.start for piece in merged)
        self.held -= sum(piece.end - piece.start for piece in pieces[low:high])
        overlapped = high > low
        pieces[low:high] = merged
        if wins_first_byte:
            self.head = fragment.head
        self.last_came = self.last_came or not fragment.more
        return overlapped

    @property
    def complete(self) -> bool:
        """All from the first byte to the highest is there, and so was a last fragment."""
        return self.last_came and bool(self.head) and self.held == self.pieces[-1].end


class Defragmenter:
    """Holds fragments until their datagram is complete. ``policy``: for a receiver's packed address."""

    def __init__(self, policy: Callable[[bytes], FragmentPolicy], limits: DefragLimits | None = None) -> None:
        self._policy = policy
        self._limits = limits or DefragLimits()
        self._trackers: dict[tuple[bytes, tuple[int, ...]], _Tracker] = {}  # longest without a fragment first
        self._held = 0
        self.evicted = 0
        """Incomplete datagrams that made room for others."""
        self.expired = 0

    def __len__(self) -> int:
        return len(self._trackers)

    @property
    def held_bytes(self) -> int:
        return self._held

    def add(self, data: bytes, now: float, vlans: tuple[int, ...] = ()) -> Defragmented:
        """Take one IP packet; ``now`` in seconds, ``vlans`` as part of what tells datagrams apart."""
        fragment = read_fragment(data)
        if fragment is None:
            return Defragmented(Outcome.WHOLE)
        prefix = f"ipv{fragment.family}.frag_"
        # IPv6 counts from behind the first 40 bytes; extension headers before the fragment header count too.
        fixed = 20 if fragment.family == 4 else max(len(fragment.head) - 40, 0)
        if fixed + fragment.end > MAX_DATAGRAM:
            return Defragmented(Outcome.REFUSED, events=(prefix + "pkt_too_large",))
        if not fragment.data:
            return Defragmented(Outcome.REFUSED, events=(prefix + "ignored",))
        self.tick(now)
        key = (fragment.key, vlans)
        tracker = self._trackers.pop(key, None)
        if tracker is None:
            tracker = self._make(fragment, now)
        self._trackers[key] = tracker
        if tracker.count >= self._limits.fragments or self._held + len(fragment.data) > self._limits.total_bytes:
            if not tracker.count:
                del self._trackers[key]
            return Defragmented(Outcome.FULL, events=(prefix + "ignored",))
        tracker.last_seen = max(now, tracker.last_seen)
        before = tracker.held
        events = (prefix + "overlap",) if tracker.add(fragment) else ()
        self._held += tracker.held - before
        if not tracker.complete:
            return Defragmented(Outcome.HELD, events=events)
        self._forget(key)
        datagram = _datagram(fragment.family, tracker)
        if not datagram:
            return Defragmented(Outcome.REFUSED, events=(*events, prefix + "pkt_too_large"))
        return Defragmented(Outcome.REBUILT, datagram, events)

    def discard(self, data: bytes, vlans: tuple[int, ...] = ()) -> None:
        """Forget the incomplete datagram that this fragment belongs to."""
        fragment = read_fragment(data)
        if fragment is not None and (fragment.key, vlans) in self._trackers:
            self._forget((fragment.key, vlans))

    def tick(self, now: float) -> None:
        """Give up the datagrams whose time is over."""
        while self._trackers:
            key = next(iter(self._trackers))
            if now - self._trackers[key].last_seen <= self._limits.timeout:
                return
            self._forget(key)
            self.expired += 1

    def _make(self, fragment: Fragment, now: float) -> _Tracker:
        while self._trackers and len(self._trackers) >= self._limits.trackers:
            self._forget(next(iter(self._trackers)))
            self.evicted += 1
        return _Tracker(self._policy(fragment.dst), now)

    def _forget(self, key: tuple[bytes, tuple[int, ...]]) -> None:
        self._held -= self._trackers.pop(key).held


def _datagram(family: int, tracker: _Tracker) -> bytes:
    """The whole packet; empty when its length cannot be written down (head and data of different fragments)."""
    body = b"".join(piece.data for piece in tracker.pieces)
    head = bytearray(tracker.head)
    length = len(head) + len(body) - (0 if family == 4 else 40)
    if length > MAX_DATAGRAM:
        return b""
    if family == 6:
        head[4:6] = length.to_bytes(2, "big")
        return bytes(head) + body
    head[2:4] = length.to_bytes(2, "big")
    head[6] &= 0x40  # Don't Fragment stays
    head[7] = 0
    head[10:12] = b"\0\0"
    head[10:12] = (~ones_sum(bytes(head)) & 0xFFFF).to_bytes(2, "big")
    return bytes(head) + body


def _word(data: bytes, at: int) -> int:
    return data[at] << 8 | data[at + 1]
