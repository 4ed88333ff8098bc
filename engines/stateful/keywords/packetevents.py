"""Oddities found while a packet is decoded or put into its stream, and its checksums.

Source: Suricata user guide, "Decoder events" and "Header keywords" (csum). Event names are those of its event rules:
``ipv4.trunc_pkt`` for ``decode-event``, ``pkt_invalid_ack`` for ``stream-event``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from engines.nearest import nearest_word
from engines.stateful.keywords.base import Keyword, KeywordError, Kind, required, unquote
from engines.stateful.keywords.draft import RuleDraft
from engines.stateful.keywords.eventnames import DECODE_EVENTS, STREAM_EVENTS, WITHOUT_DECODER
from engines.stateful.signature import PacketView

_DECODERS = {
    "ipv4", "ipv6", "icmpv4", "icmpv6", "igmp", "tcp", "udp", "sctp", "esp", "gre", "ppp", "pppoe", "sll", "sll2",
    "ethernet", "arp", "vlan", "ieee8021ah", "ipraw", "ltnull", "mpls", "vxlan", "geneve", "erspan", "dce", "chdlc",
    "vntag", "nsh", "afp",
}  # fmt: skip
_EVENT = re.compile(r"[a-z0-9_]+$")
_PAGE = "header-keywords.html"


def known_event(draft: RuleDraft, keyword: str, event: str, known: tuple[str, ...] | None, prefix: str = "") -> None:
    """Warns where ``event`` is none of ``known``; None: nothing is known of them. Suricata refuses such a rule, but its
    names change with its versions."""
    if known is None or event in known:
        return
    near = nearest_word(event, known)
    hint = f" (did you mean {prefix}{near}?)" if near else ""
    draft.warnings.append(f"{keyword}: there is no event {prefix + event!r}{hint}, so the rule never matches")


def _has(draft: RuleDraft, keyword: str, event: str) -> None:
    draft.packet_events.append(event)
    draft.packet(keyword, lambda view: event in view.events)


def _decode_event(draft: RuleDraft, value: str | None) -> None:
    text = unquote(required(value, "decoder.event like ipv4.trunc_pkt"))
    decoder, _, event = text.partition(".")
    if text in WITHOUT_DECODER:
        _has(draft, "decode-event", f"decoder.{text}")
        return
    if decoder not in _DECODERS or not _EVENT.match(event):
        raise KeywordError(f"decode-event: expected decoder.event like ipv4.trunc_pkt, found {text!r}")
    known_event(draft, "decode-event", event, DECODE_EVENTS.get(decoder), f"{decoder}.")
    _has(draft, "decode-event", f"decoder.{text}")


def _stream_event(draft: RuleDraft, value: str | None) -> None:
    text = unquote(required(value, "an event like pkt_invalid_ack"))
    if not _EVENT.match(text):
        raise KeywordError(f"stream-event: expected a name like pkt_invalid_ack, found {text!r}")
    known_event(draft, "stream-event", text, STREAM_EVENTS)
    draft.in_captures("on the packet path a segment with a stream-event is dropped and logged by itself")
    _has(draft, "stream-event", f"stream.{text}")


def _engine_event(draft: RuleDraft, value: str | None) -> None:
    """The name both had before."""
    text = unquote(required(value, "stream.event or decoder.event"))
    if text.startswith("stream."):
        _stream_event(draft, text.removeprefix("stream."))
    else:
        _decode_event(draft, text.removeprefix("decoder."))


def internet_checksum(data: bytes) -> int:
    """The one's complement sum of 16-bit words (RFC 1071), complemented: 0 for data that carries its right checksum."""
    if len(data) % 2:
        data += b"\0"
    total = int.from_bytes(data, "big") % 0xFFFF  # 2**16 is 1 modulo 65535, so this is the sum of the words
    return 0 if total == 0 and any(data) else 0xFFFF - total


def _pseudo_header(packet: Any, length: int) -> bytes:
    """RFC 9293 section 3.1 and RFC 8200 section 8.1."""
    if packet.family == 4:
        return bytes(packet.src + packet.dst + bytes((0, packet.protocol)) + length.to_bytes(2, "big"))
    return bytes(packet.src + packet.dst + length.to_bytes(4, "big") + bytes((0, 0, 0, packet.protocol)))


def checksum_holds(packet: Any, family: int, protocol: int) -> bool | None:
    """Is the checksum right? ``protocol`` 0: the IPv4 header's. None: the packet has no such checksum."""
    if packet.family != family or packet.problem:
        return None
    data: bytes = packet.data
    if not protocol:
        return internet_checksum(data[: (data[0] & 0x0F) * 4]) == 0
    if packet.protocol != protocol or packet.fragment:
        return None
    body = data[packet.l4_offset : packet.end]
    if len(body) < _SMALLEST[protocol]:
        return None
    if protocol == _UDP and not any(body[6:8]):
        return None  # the sender did not calculate one (RFC 768)
    pseudo = b"" if protocol in {_ICMP, _IGMP} else _pseudo_header(packet, len(body))
    return internet_checksum(pseudo + body) == 0


_ICMP, _IGMP, _TCP, _UDP, _ICMP6 = 1, 2, 6, 17, 58
_SMALLEST = {_ICMP: 4, _IGMP: 8, _TCP: 20, _UDP: 8, _ICMP6: 4}


def _checksum(name: str, family: int, protocol: int) -> Callable[[RuleDraft, str | None], None]:
    def parse(draft: RuleDraft, value: str | None) -> None:
        text = unquote(required(value, "valid or invalid")).lower()
        if text not in {"valid", "invalid"}:
            raise KeywordError(f"{name}: expected valid or invalid, found {text!r}")
        wanted = text == "valid"

        def matches(view: PacketView) -> bool:
            return view.packet is not None and checksum_holds(view.packet, family, protocol) is wanted

        draft.packet(name, matches)

    return parse


KEYWORDS = [
    Keyword("decode-event", "an oddity found in a packet's headers", "decode-events.html", Kind.PACKET, _decode_event),
    Keyword("stream-event", "an oddity found in a TCP stream", "decode-events.html", Kind.PACKET, _stream_event),
    Keyword("engine-event", "either of both (old name)", "decode-events.html", Kind.PACKET, _engine_event),
    *(
        Keyword(name, summary, f"{_PAGE}#csum", Kind.PACKET, _checksum(name, family, protocol))
        for name, summary, family, protocol in (
            ("ipv4-csum", "the IPv4 header's checksum", 4, 0),
            ("tcpv4-csum", "the TCP checksum over IPv4", 4, _TCP),
            ("tcpv6-csum", "the TCP checksum over IPv6", 6, _TCP),
            ("udpv4-csum", "the UDP checksum over IPv4", 4, _UDP),
            ("udpv6-csum", "the UDP checksum over IPv6", 6, _UDP),
            ("icmpv4-csum", "the ICMP checksum", 4, _ICMP),
            ("icmpv6-csum", "the ICMPv6 checksum", 6, _ICMP6),
            ("igmp-csum", "the IGMP checksum", 4, _IGMP),
        )
    ),
]
