"""Reads and deletes entries of the kernel's connection tracking table by mark.

Filtering happens in the kernel (CTA_MARK and CTA_MARK_MASK, linux/netfilter/nfnetlink_conntrack.h), so forgetting the
flows of one generation is a single message however many flows there are. IPv4 and IPv6 go together. A mask of zero
would mean "everything", which is never wanted here and refused.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from typing import Any

from pyroute2 import NFCTSocket
from pyroute2.netlink import NLM_F_DUMP, NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import IPCTNL_MSG_CT_GET, NFCTAttrTuple, nfct_msg

from nfw.marks import MarkLayout

_ICMP, _ICMPV6 = 1, 58
_TCP_STATES = ("", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE")


@dataclass(frozen=True, slots=True)
class Entry:
    """One tracked flow, original direction, with the addresses a queue after destination NAT shows.

    ``client`` and ``server`` are packed (4 or 16 bytes). ``server`` is where the packets go after destination NAT;
    ``sent_to`` and ``sent_to_port`` what the client wrote on them. Ports are 0 for protocols without. ``timeout`` in
    seconds. ``tcp_state`` is the kernel's name or empty.
    """

    family: int
    protocol: int
    client: bytes
    client_port: int
    server: bytes
    server_port: int
    sent_to: bytes
    sent_to_port: int
    mark: int
    timeout: int
    tcp_state: str = ""
    icmp: tuple[int, int, int] | None = None  # id, type, code


class Conntrack:
    """A fresh netlink socket for each call: calls are rare, and nothing is left open in forked workers."""

    def flush_marked(self, value: int, mask: int) -> None:
        """Delete every entry with ``mark & mask == value``, both families. Raises ValueError for an empty mask."""
        _check(value, mask)
        with _socket(socket.AF_UNSPEC) as netlink:
            netlink.flush(mark=value, mark_mask=mask)

    def flush_generation(self, layout: MarkLayout, generation: int) -> None:
        """Delete every entry of a generation whatever its disposition."""
        self.flush_marked(layout.compose(generation, 0), layout.generation_mask)

    def flush_marked_any(self, mask: int) -> None:
        """Delete every entry that has any bit of ``mask`` set. One message for each bit."""
        _check(0, mask)
        for bit in range(32):
            if mask >> bit & 1:
                self.flush_marked(1 << bit, 1 << bit)

    def entries(self, mark: int = 0, mask: int = 0) -> list[Entry]:
        """Entries with ``entry.mark & mask == mark``; mask 0: all. Raises ValueError for mark bits outside mask."""
        if mark & ~mask:
            raise ValueError(f"mark {mark:#x} has bits outside mask {mask:#x}")
        found = []
        for family in (socket.AF_INET, socket.AF_INET6):
            with _socket(family) as netlink:
                message = nfct_msg.create_from(mark=mark, mark_mask=mask) if mask else nfct_msg.create_from()
                for answer in netlink.request(message, IPCTNL_MSG_CT_GET, msg_flags=NLM_F_REQUEST | NLM_F_DUMP):
                    entry = _entry(family, answer)
                    if entry is not None and entry.mark & mask == mark:  # old kernels ignore a mark of zero
                        found.append(entry)
        return found

    def delete(self, entry: Entry) -> bool:
        """Delete one entry. False when it was gone already."""
        family = entry.family
        port = (entry.client_port, entry.sent_to_port) if entry.icmp is None else (None, None)
        icmp = entry.icmp or (None, None, None)
        original = NFCTAttrTuple(
            family=family,
            saddr=socket.inet_ntop(family, entry.client),
            daddr=socket.inet_ntop(family, entry.sent_to),
            proto=entry.protocol,
            sport=port[0],
            dport=port[1],
            icmp_id=icmp[0],
            icmp_type=icmp[1],
            icmp_code=icmp[2],
        )
        try:
            with _socket(family) as netlink:
                netlink.entry("del", tuple_orig=original)
        except NetlinkError as error:
            if error.code == errno.ENOENT:
                return False
            raise
        return True

    def count(self) -> int:
        """How many flows the kernel tracks, of both families."""
        with _socket(socket.AF_UNSPEC) as netlink:
            answer = next(iter(netlink.count()), None)
        return int(answer.get_attr("CTA_STATS_GLOBAL_ENTRIES") or 0) if answer is not None else 0


class _socket:  # noqa: N801 - used like a function
    """Opens and closes a conntrack netlink socket of one family."""

    def __init__(self, family: int) -> None:
        self._netlink = NFCTSocket(nfgen_family=family)

    def __enter__(self) -> Any:
        return self._netlink

    def __exit__(self, *_: object) -> None:
        self._netlink.close()


def _check(value: int, mask: int) -> None:
    if not mask or value & ~mask:
        raise ValueError(f"mark {value:#x} under mask {mask:#x} does not select anything")


def _entry(family: int, answer: Any) -> Entry | None:
    original, reply = answer.get_attr("CTA_TUPLE_ORIG"), answer.get_attr("CTA_TUPLE_REPLY")
    if original is None or reply is None:
        return None
    source, sent_to, protocol, sport, dport, icmp = _tuple(family, original)
    server, _, _, server_port, _, _ = _tuple(family, reply)
    return Entry(
        family=family,
        protocol=protocol,
        client=source,
        client_port=sport,
        server=server,
        server_port=server_port,
        sent_to=sent_to,
        sent_to_port=dport,
        mark=answer.get_attr("CTA_MARK") or 0,
        timeout=answer.get_attr("CTA_TIMEOUT") or 0,
        tcp_state=_tcp_state(answer),
        icmp=icmp,
    )


def _tuple(family: int, attributes: Any) -> tuple[bytes, bytes, int, int, int, tuple[int, int, int] | None]:
    addresses, proto = attributes.get_attr("CTA_TUPLE_IP"), attributes.get_attr("CTA_TUPLE_PROTO")
    prefix = "CTA_IP_V4" if family == socket.AF_INET else "CTA_IP_V6"
    protocol = proto.get_attr("CTA_PROTO_NUM") or 0
    icmp: tuple[int, int, int] | None = None
    if protocol in (_ICMP, _ICMPV6):
        name = "CTA_PROTO_ICMP" if protocol == _ICMP else "CTA_PROTO_ICMPV6"
        number, kind, code = (proto.get_attr(f"{name}_{part}") or 0 for part in ("ID", "TYPE", "CODE"))
        icmp = (number, kind, code)
    return (
        socket.inet_pton(family, addresses.get_attr(f"{prefix}_SRC")),
        socket.inet_pton(family, addresses.get_attr(f"{prefix}_DST")),
        protocol,
        proto.get_attr("CTA_PROTO_SRC_PORT") or 0,
        proto.get_attr("CTA_PROTO_DST_PORT") or 0,
        icmp,
    )


def _tcp_state(answer: Any) -> str:
    info = answer.get_attr("CTA_PROTOINFO")
    tcp = info.get_attr("CTA_PROTOINFO_TCP") if info is not None else None
    state = tcp.get_attr("CTA_PROTOINFO_TCP_STATE") if tcp is not None else None
    return _TCP_STATES[state] if state is not None and state < len(_TCP_STATES) else ""
