"""engines.decode.defrag: fragments against scapy, a table of overlaps, and a twin that keeps each byte by itself."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.compat import raw
from scapy.layers.inet import ICMP, IP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, fragment6

from engines.decode import link
from engines.decode.checksums import ipv4_header_checksum_ok
from engines.decode.defrag import (
    DefragLimits,
    Defragmenter,
    FragmentPolicy,
    Outcome,
    new_wins,
    read_fragment,
)
from engines.decode.layers import Layers
from engines.packet import decode

SRC, DST = "192.0.2.1", "192.0.2.2"
P = FragmentPolicy


def defragmenter(policy: FragmentPolicy = P.BSD, **limits) -> Defragmenter:
    return Defragmenter(lambda address: policy, DefragLimits(**limits))


def v4(start: int, data: bytes, *, more: bool = True, number: int = 7, proto: int = 17) -> bytes:
    return raw(IP(src=SRC, dst=DST, id=number, proto=proto, flags="MF" if more else 0, frag=start // 8) / data)


def v6(start: int, data: bytes, *, more: bool = True, number: int = 7) -> bytes:
    header = IPv6ExtHdrFragment(nh=17, offset=start // 8, m=int(more), id=number)
    return raw(IPv6(src="fd00::1", dst="fd00::2") / header / data)


WHOLE6 = IPv6(src="fd00::1", dst="fd00::2") / UDP(sport=5, dport=6) / (bytes(range(256)) * 8)


@pytest.mark.parametrize("order", ["forth", "back", "shuffled"])
@pytest.mark.parametrize("family", [4, 6])
def test_fragments_in_any_order_add_up_to_the_datagram(family, order):
    if family == 4:
        whole = raw(IP(src=SRC, dst=DST, id=9) / UDP(sport=5, dport=6) / (bytes(range(256)) * 4))
        pieces = [raw(piece) for piece in fragment(IP(whole), fragsize=136)]
    else:
        whole = raw(WHOLE6)
        pieces = [
            raw(p) for p in fragment6(IPv6(src="fd00::1", dst="fd00::2") / IPv6ExtHdrFragment(id=3) / WHOLE6[UDP], 1280)
        ]
        assert len(pieces) == 2
    if order == "back":
        pieces.reverse()
    elif order == "shuffled":
        random.Random(1).shuffle(pieces)
    tracker = defragmenter()
    results = [tracker.add(piece, 0.0) for piece in pieces]
    assert [result.outcome for result in results[:-1]] == [Outcome.HELD] * (len(pieces) - 1)
    assert results[-1].outcome is Outcome.REBUILT
    assert results[-1].datagram == whole
    assert ipv4_header_checksum_ok(decode(results[-1].datagram))
    assert not any(result.events for result in results)
    assert (len(tracker), tracker.held_bytes) == (0, 0)


def test_extension_headers_before_the_fragment_header_stay():
    tracker = defragmenter()
    for start, more in ((0, 1), (8, 0)):
        header = IPv6ExtHdrDestOpt(nh=44) / IPv6ExtHdrFragment(nh=58, offset=start // 8, m=more, id=1)
        result = tracker.add(raw(IPv6(dst="fd00::2") / header / b"abcdefgh"), 0.0)
    packet = decode(result.datagram)
    assert (packet.protocol, packet.fragment, packet.l4_offset) == (58, False, 48)
    assert packet.data[48:] == b"abcdefgh" * 2


@pytest.mark.parametrize(
    "data",
    [
        raw(IP() / UDP()),
        raw(IPv6() / UDP()),
        raw(IPv6() / IPv6ExtHdrFragment(offset=0, m=0) / UDP()),
        raw(IP(flags="MF") / b"12345678")[:-1],
        raw(IPv6() / IPv6ExtHdrFragment(m=1) / b"12345678")[:-1],
        b"",
        b"\x45",
    ],
    ids=["v4", "v6", "atomic", "cut v4", "cut v6", "empty", "short"],
)
def test_what_is_no_fragment_is_left_alone(data):
    tracker = defragmenter()
    assert tracker.add(data, 0.0).outcome is Outcome.WHOLE
    assert len(tracker) == 0


# Old fragment at [8, 24), new one somewhere around it: the policies whose receivers take the new bytes.
OVERLAPS = [
    ("before, into it", (0, 16), {P.LAST, P.BSD, P.LINUX}),
    ("before, to its end", (0, 24), {P.LAST, P.BSD, P.LINUX, P.SOLARIS}),
    ("around it", (0, 32), {P.LAST, P.BSD, P.LINUX, P.SOLARIS, P.WINDOWS}),
    ("same start, shorter", (8, 16), {P.LAST, P.LINUX, P.BSD_RIGHT}),
    ("the same", (8, 24), {P.LAST, P.LINUX, P.BSD_RIGHT}),
    ("same start, longer", (8, 32), {P.LAST, P.LINUX, P.BSD_RIGHT}),
    ("inside", (16, 24), {P.LAST, P.BSD_RIGHT}),
    ("from inside on", (16, 32), {P.LAST, P.BSD_RIGHT}),
]


@pytest.mark.parametrize("policy", P, ids=[p.value for p in P])
@pytest.mark.parametrize(("name", "new", "winners"), OVERLAPS, ids=[row[0] for row in OVERLAPS])
@pytest.mark.parametrize("make", [v4, v6], ids=["v4", "v6"])
def test_who_wins_where_two_fragments_overlap(make, name, new, winners, policy):
    tracker = defragmenter(policy)
    tracker.add(make(8, b"o" * 16), 0.0)
    result = tracker.add(make(new[0], b"n" * (new[1] - new[0])), 0.0)
    assert [event.partition(".")[2] for event in result.events] == ["frag_overlap"]
    if new[0]:
        tracker.add(make(0, b"-" * 8), 0.0)
    final = tracker.add(make(max(24, new[1]), b"-" * 8, more=False), 0.0)
    assert final.outcome is Outcome.REBUILT
    body = final.datagram[20 if make is v4 else 40 :]
    shared = body[max(8, new[0]) : min(24, new[1])]
    assert shared == (b"n" if policy in winners else b"o") * len(shared)


class Bytewise:
    """The twin: for each byte the value and the extent of the fragment that won it."""

    def __init__(self, policy: FragmentPolicy) -> None:
        self.policy = policy
        self.bytes: dict[int, tuple[int, tuple[int, int]]] = {}
        self.last_came = False

    def add(self, start: int, data: bytes, more: bool) -> tuple[bytes | None, bool]:
        extent, overlapped = (start, start + len(data)), False
        for at, value in enumerate(data, start):
            if at in self.bytes:
                overlapped = True
                if not new_wins(self.policy, extent, self.bytes[at][1]):
                    continue
            self.bytes[at] = (value, extent)
        self.last_came |= not more
        if self.last_came and sorted(self.bytes) == list(range(max(self.bytes) + 1)):
            return bytes(self.bytes[at][0] for at in range(len(self.bytes))), overlapped
        return None, overlapped


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(list(P)),
    st.sampled_from([v4, v6]),
    st.lists(st.tuples(st.integers(0, 8), st.integers(1, 40), st.booleans()), min_size=1, max_size=14),
)
def test_random_fragments_add_up_as_the_twin_says(policy, make, fragments):
    tracker, twin = defragmenter(policy), Bytewise(policy)
    for number, (unit, size, wants_more) in enumerate(fragments):
        more = wants_more or unit == 0  # else it would be no fragment
        data = bytes(65 + (number * 7 + at) % 60 for at in range(size))
        result = tracker.add(make(unit * 8, data, more=more), 0.0)
        body, overlapped = twin.add(unit * 8, data, more)
        assert any(event.endswith("frag_overlap") for event in result.events) == overlapped
        assert (result.outcome is Outcome.REBUILT) == (body is not None)
        if body is not None:
            assert result.datagram[20 if make is v4 else 40 :] == body
            assert tracker.held_bytes == 0
            twin = Bytewise(policy)
        else:
            assert tracker.held_bytes == len(twin.bytes)


@pytest.mark.parametrize("make", [v4, v6], ids=["v4", "v6"])
def test_what_no_length_field_can_say_is_refused(make):
    family = "ipv4" if make is v4 else "ipv6"
    tracker = defragmenter()
    result = tracker.add(make(65528, b"12345678", more=False), 0.0)
    assert (result.outcome, result.events) == (Outcome.REFUSED, (f"{family}.frag_pkt_too_large",))
    assert tracker.add(make(8, b""), 0.0).outcome is Outcome.REFUSED
    assert len(tracker) == 0


@pytest.mark.parametrize(
    ("second", "vlans"),
    [(v4(8, b"x", more=False), (1,)), (v4(8, b"x", more=False, number=8), ()), (v4(8, b"x", more=False, proto=6), ())],
    ids=["vlan", "identification", "protocol"],
)
def test_other_datagrams_are_kept_apart(second, vlans):
    tracker = defragmenter()
    tracker.add(v4(0, b"12345678"), 0.0)
    assert tracker.add(second, 0.0, vlans).outcome is Outcome.HELD
    assert len(tracker) == 2


def test_a_datagram_is_given_up_after_a_while_without_a_fragment():
    tracker = defragmenter(timeout=60.0)
    tracker.add(v4(0, b"12345678"), 0.0)
    tracker.add(v4(8, b"12345678"), 50.0)
    tracker.tick(110.0)
    assert len(tracker) == 1
    assert tracker.add(v4(16, b"x", more=False), 110.5).outcome is Outcome.HELD
    assert (tracker.expired, len(tracker), tracker.held_bytes) == (1, 1, 1)


def test_the_table_is_bounded_and_the_oldest_makes_room():
    tracker = defragmenter(trackers=3)
    for number in range(5):
        tracker.add(v4(0, b"12345678", number=number), 0.0)
    assert (len(tracker), tracker.evicted, tracker.held_bytes) == (3, 2, 24)
    assert tracker.add(v4(8, b"x", more=False, number=4), 0.0).outcome is Outcome.REBUILT
    assert tracker.add(v4(8, b"x", more=False, number=0), 0.0).outcome is Outcome.HELD


def test_fragments_and_bytes_are_bounded():
    tracker = defragmenter(fragments=2)
    outcomes = [tracker.add(v4(at, b"12345678"), 0.0) for at in (0, 8, 16)]
    assert [result.outcome for result in outcomes] == [Outcome.HELD, Outcome.HELD, Outcome.FULL]
    assert outcomes[2].events == ("ipv4.frag_ignored",)
    tracker = defragmenter(total_bytes=20)
    assert tracker.add(v6(0, bytes(16)), 0.0).outcome is Outcome.HELD
    assert tracker.add(v6(0, bytes(8), number=8), 0.0).events == ("ipv6.frag_ignored",)
    assert len(tracker) == 1


def test_the_policy_is_that_of_the_receiver():
    asked = []
    tracker = Defragmenter(lambda address: asked.append(address) or P.LAST)
    tracker.add(v4(0, b"12345678"), 0.0)
    assert asked == [bytes((192, 0, 2, 2))]


@pytest.mark.parametrize(("name", "policy"), [("vista", P.WINDOWS), ("old_linux", P.LINUX), ("bsd-right", P.BSD_RIGHT)])
def test_names_of_the_host_os_policy(name, policy):
    assert FragmentPolicy.parse(name) is policy


def test_fragments_of_a_tunnelled_packet_and_of_its_carrier_are_both_put_together():
    inner = raw(IP(src="10.0.0.1", dst="10.0.0.2", id=4) / ICMP() / (b"x" * 100))
    layers = Layers()
    seen = []
    for piece in fragment(IP(inner), fragsize=64):
        outer = IP(src=SRC, dst=DST, id=len(seen) + 1) / piece
        parts = fragment(IP(raw(outer)), fragsize=48)
        seen += [layers.read(link.RAW, raw(part), 0.0) for part in parts]
    last = seen[-1]
    assert [layer.rebuilt for layer in last] == [False, True, False, True]
    assert last[-1].packet.data == inner
    assert last[-1].packet.problem is None


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=4), st.sampled_from([b"\x45", b"\x60", b"\x4f"]))
def test_no_bytes_make_it_raise(packets, first):
    tracker = defragmenter(P.LINUX)
    for packet in packets:
        data = first + packet
        read_fragment(data)
        assert tracker.add(data, 0.0).outcome in Outcome
