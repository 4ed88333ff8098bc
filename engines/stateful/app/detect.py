"""Which protocol a flow speaks, by what its first bytes say and never by its port.

A :class:`Detector` keeps the first bytes of both directions until a name is found or every probe has said no. Probes
are pure functions from the bytes so far to yes, no, or not yet. The first yes of either direction decides the flow; the
client is asked first because it is fed first.

Names are Suricata's (``app-layer-protocol`` keyword). Detection of a name does not mean there is a parser for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from engines.stateful.app import ike, ldap, nfs, snmp
from engines.stateful.app.dcerpc import looks_like_pdu
from engines.stateful.app.sip import METHODS
from engines.verdict import Direction

FAILED = "failed"

# No probe needs more than a start line; longer ones are refused by every server.
MAX_PROBE = 4096
# One side said nothing known and the other nothing at all: after this many bytes it will not any more.
MAX_ONE_SIDED = 16384

_Probe = Callable[[bytes], bool | None]


class Detector:
    """Feed both directions in order; ask :attr:`name`. ``transport``: ``tcp`` or ``udp`` (one datagram per feed).
    ``port``: the server's; it only tells which kind of DNS a flow speaks that speaks DNS."""

    __slots__ = ("_buffers", "_failed", "_fed", "_local", "_probes", "_udp", "name")

    def __init__(self, transport: str = "tcp", port: int = 0) -> None:
        self.name: str | None = None  # None: not known yet; "failed": never will be
        self._udp = transport == "udp"
        probes = _UDP if self._udp else _TCP
        self._probes = [list(probes[0]), list(probes[1])]
        self._local = LOCAL_NAMES.get(port, "") if self._udp or port != 5353 else ""
        if self._local == "mdns":
            for side in self._probes:
                side.append(("dns", _multicast_dns))
        elif self._udp and port == NETBIOS_NAMES:
            self._probes = [[(name, probe) for name, probe in side if name != "dns"] for side in self._probes]
        self._buffers = [bytearray(), bytearray()]
        self._fed = [0, 0]
        self._failed = [False, False]

    @property
    def final(self) -> bool:
        """The name will not change any more."""
        return self.name is not None

    def final_for(self, direction: Direction) -> bool:
        """What this direction says cannot change the name any more (Suricata inspects ``pd_only`` rules then)."""
        return self.name is not None or self._failed[direction]

    def possible(self, direction: Direction) -> list[str]:
        """The names that what this direction has said may still turn out to begin, some of them twice."""
        return [] if self.final_for(direction) else [name for name, _ in self._probes[direction]]

    def feed(self, direction: Direction, data: bytes) -> str | None:
        """Look at the next bytes; returns :attr:`name`."""
        if self.name is not None:
            return self.name
        self._fed[direction] += len(data)
        buffer = self._buffers[direction]
        buffer += data[: max(MAX_PROBE - len(buffer), 0)]
        if not self._failed[direction] and buffer:
            self._probe(direction, bytes(buffer))
        if self.name is None and (all(self._failed) or self._fed[direction] > MAX_ONE_SIDED):
            self.name = FAILED
        return self.name

    def close(self, direction: Direction) -> str | None:
        """No more bytes will come this way."""
        self._failed[direction] = True
        if self.name is None and all(self._failed):
            self.name = FAILED
        return self.name

    def take(self, direction: Direction) -> bytes:
        """The bytes fed so far, for the parser; complete as long as :attr:`name` was None before the last feed and no
        feed had more than ``MAX_PROBE`` bytes in all. Forgets them."""
        data = bytes(self._buffers[direction])
        self._buffers[direction].clear()
        return data

    def _probe(self, direction: Direction, data: bytes) -> None:
        left: list[tuple[str, _Probe]] = []
        for name, probe in self._probes[direction]:
            answer = probe(data)
            if answer:
                self.name = self._local or name if name == "dns" else name
                return
            if answer is None and not self._udp:
                left.append((name, probe))
        self._probes[direction] = left
        if len(data) >= MAX_PROBE or not left:
            self._failed[direction] = True


def recognised(direction: Direction, udp: bool = False) -> frozenset[str]:
    """Protocols there is a probe for in what that side says."""
    return (_UDP_NAMES if udp else _TCP_NAMES)[direction]


def is_answer(data: bytes, udp: bool = False) -> bool:
    """Whether these first bytes are what only a server says. For a flow picked up in the middle: was its first sender
    the client?"""

    def says(side: Direction) -> bool:
        return any(probe(data) for _, probe in (_UDP if udp else _TCP)[side])

    return bool(data) and says(Direction.TO_CLIENT) and not says(Direction.TO_SERVER)


# --- probes ----------------------------------------------------------------------------------------------------------


def _prefix(*patterns: bytes, at: int = 0) -> _Probe:
    """Literal bytes at a fixed place."""

    def probe(data: bytes) -> bool | None:
        undecided = False
        for pattern in patterns:
            seen = data[at : at + len(pattern)]
            if seen == pattern:
                return True
            undecided = undecided or (len(seen) < len(pattern) and pattern.startswith(seen))
        return None if undecided else False

    return probe


def _command(*words: bytes) -> _Probe:
    """The first words of a dialogue in lines, in any case; ``words`` in upper case."""
    probe = _prefix(*words)
    return lambda data: probe(data[:64].upper())


_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# Methods nobody else's protocol begins with; those shared with RTSP or SIP need the whole line.
_METHOD = re.compile(rb"(?:GET|POST|HEAD|PUT|DELETE|PATCH|TRACE|CONNECT|PROPFIND|REPORT|MKCOL|LOCK|UNLOCK|COPY|MOVE) ")
# RFC 9110, section 5.6.2, without %: what encodes a method no server takes for one, nor does Suricata.
_TOKEN = re.compile(rb"[!#$&'*+\-.^_`|~0-9A-Za-z]{1,32}")
_HTTP_LINE = re.compile(rb"[!#$&'*+\-.^_`|~0-9A-Za-z]{1,32}[ \t]+[^\r\n]*[ \t]HTTP/[0-9]")


def _http_request(data: bytes) -> bool | None:
    data = data.lstrip(b"\r\n")
    if not data:
        return None
    if _METHOD.match(data):
        return True
    token = _TOKEN.match(data)
    if token is None:
        return False
    rest = data[token.end() :]
    if not rest:
        return None if len(data) <= 32 else False
    if rest[:1] not in {b" ", b"\t"}:
        return False
    line, newline, _ = data.partition(b"\n")
    if _HTTP_LINE.match(line):
        return None if _HTTP2_PREFACE.startswith(data) else True
    return False if newline else None


def _tls_record(*types: int) -> _Probe:
    """RFC 8446, section 5.1: type, 3, minor version; ``types`` is what a side may begin with."""

    def probe(data: bytes) -> bool | None:
        if data[0] not in types or (len(data) > 1 and data[1] != 3):
            return False
        return None if len(data) < 3 else data[2] <= 4

    return probe


def _sslv2_hello(data: bytes) -> bool | None:
    """RFC 5246, appendix E.2: a long-gone format that still announces TLS."""
    if not data[0] & 0x80 or data[2:4] != b"\1\3"[: len(data[2:4])]:
        return False
    return None if len(data) < 5 else data[4] <= 3


def dns_message(data: bytes, response: bool, whole: bool) -> bool | None:
    """Whether these bytes can begin a DNS message (RFC 1035, section 4.1). ``whole``: no more bytes will come."""
    short = False if whole else None
    if len(data) > 2 and data[2] >> 7 != response:
        return False
    if len(data) < 12:
        return short
    questions, answers, authorities, additionals = (int.from_bytes(data[at : at + 2], "big") for at in (4, 6, 8, 10))
    if questions > 4096 or answers > 1024 or authorities > 256 or additionals > 256:
        return False
    if whole and 2 * (questions + answers + authorities + additionals) > len(data):
        return False
    if not questions:
        # Only answers to nonsense and follow-up messages of a zone transfer come without; they say too little.
        return response and len(data) == 12 and not answers
    at = 12
    while True:
        if at >= len(data):
            return short
        size = data[at]
        if size & 0xC0:
            return False  # the first name has nothing to point back to
        if at > 12 + 1025:
            return True  # this many labels are no chance; too long a name is an event of the parser, not a way past it
        at += 1 + size
        if not size:
            break
    if at + 4 > len(data):
        return short
    # IN, CS, CH, HS, NONE, ANY; the top bit is a flag in multicast DNS.
    return (int.from_bytes(data[at + 2 : at + 4], "big") & 0x7FFF) in {1, 2, 3, 4, 254, 255}


def _multicast_dns(data: bytes) -> bool | None:
    """A message of either kind on the port of multicast DNS (RFC 6762, section 18)."""
    counts = [int.from_bytes(data[at : at + 2], "big") for at in (4, 6, 8, 10)]
    return len(data) > 12 and 0 < sum(counts) <= 4096 and data[12] < 64


# Ports on which DNS is another protocol, with rules of its own.
LOCAL_NAMES = {5353: "mdns", 5355: "llmnr"}
NETBIOS_NAMES = 137
"""UDP port of a name service that has the header of DNS, and nothing else of it (RFC 1002, section 4.2)."""


def _dns_tcp(response: bool) -> _Probe:
    def probe(data: bytes) -> bool | None:
        if len(data) < 2:
            return None
        size = int.from_bytes(data[:2], "big")
        if size < 12:
            return False
        return dns_message(data[2 : 2 + size], response, len(data) >= 2 + size)

    return probe


def _dns_udp(response: bool) -> _Probe:
    return lambda data: dns_message(data, response, True)


def _http2_server(data: bytes) -> bool | None:
    """The first frame of a server is SETTINGS on stream 0 (RFC 9113, section 3.4)."""
    if data[0] or (len(data) > 1 and data[1]) or (len(data) > 3 and data[3] != 4):
        return False
    if len(data) < 9:
        return None
    return data[2] % 6 == 0 and data[4] in {0, 1} and not any(data[5:9])


def _greeting(word: re.Pattern[bytes]) -> _Probe:
    """A ``220`` greeting that names its protocol; without a name the client's first command decides."""

    def probe(data: bytes) -> bool | None:
        if not data.startswith(b"220"[: len(data)]):
            return False
        if word.search(data[:512]):
            return True
        return None if b"\n" not in data else False

    return probe


def looks_like_quic(data: bytes) -> bool | None:
    """RFC 9000, section 17.2: long header, a version in use, first flight padded to 1200 bytes."""
    version = data[1:5]
    known = version in {b"\0\0\0\1", b"\x6b\x33\x43\xcf"} or version.startswith(b"\xff\0\0")
    return len(data) >= 1200 and data[0] & 0xC0 == 0xC0 and known


def _ntp(data: bytes) -> bool | None:
    """RFC 5905, figure 8: version 1 to 4, a mode in use."""
    return len(data) in {48, 68, 72} and 1 <= (data[0] >> 3 & 7) <= 4 and 1 <= data[0] & 7 <= 5


def _krb5(data: bytes) -> bool | None:
    """RFC 4120, section 5: an application type that is a sequence, and as long as it says. A datagram."""
    if len(data) < 6 or data[0] not in _KRB5_TAGS:
        return False
    more = data[1] & 0x7F if data[1] & 0x80 else 0
    size = int.from_bytes(data[2 : 2 + more], "big") if more else data[1]
    return more <= 3 and 2 + more + size == len(data) and data[2 + more] == 0x30


def _krb5_tcp(data: bytes) -> bool | None:
    """The same behind its length (RFC 4120, section 7.2.2)."""
    if data[0] or (len(data) > 1 and data[1]):
        return False
    if len(data) < 9:
        return None if len(data) < 5 or data[4] in _KRB5_TAGS else False
    size = int.from_bytes(data[:4], "big")
    more = data[5] & 0x7F if data[5] & 0x80 else 0
    if data[4] not in _KRB5_TAGS or more > 2:
        return False
    inner = int.from_bytes(data[6 : 6 + more], "big") if more else data[5]
    return 2 + more + inner == size and data[6 + more] == 0x30


_KRB5_TAGS = frozenset({0x6A, 0x6B, 0x6C, 0x6D, 0x7E})


def _mqtt_answer(data: bytes) -> bool | None:
    """CONNACK (MQTT 5.0, section 3.2), and nothing behind it: the client waits for it."""
    if data[0] != 0x20 or (len(data) > 1 and not 2 <= data[1] < 0x80) or (len(data) > 2 and data[2] > 1):
        return False
    return None if len(data) < 4 or len(data) < 2 + data[1] else len(data) == 2 + data[1]


def _ldap(tags: frozenset[int], whole: bool = False) -> _Probe:
    """RFC 4511, section 4.1.1: an identifier and an operation of that side; not a message of SNMP."""
    return lambda data: ldap.looks_like_message(data, tags, whole)


def _ike(response: bool) -> _Probe:
    return lambda data: ike.looks_like_message(data, response)


def _nfs_record(data: bytes) -> bool | None:
    """A call behind the mark of its record (RFC 5531, section 11)."""
    size = int.from_bytes(data[:4].ljust(4, b"\xff"), "big") & 0x7FFFFFFF
    if size < 40 or (len(data) >= 4 and size > 4 << 20):
        return False
    return nfs.looks_like_call(data[4:])


_PGSQL_START = _prefix(b"\0\3\0\0", b"\0\3\0\2", b"\4\xd2\x16\x2e", b"\4\xd2\x16\x2f", b"\4\xd2\x16\x30", at=4)


def _pgsql(data: bytes) -> bool | None:
    """A start of a session, a request for encryption, or the start of a version that nobody has, by which servers are
    looked for: a length that includes itself, and nothing behind it, for the client waits."""
    if data[:2] != bytes(len(data[:2])):
        return False
    answer = _PGSQL_START(data)
    if answer is not False or data[:5] != b"\0\0\0\x08\0":
        return answer
    return None if len(data) < 8 else len(data) == 8


_SIP_MESSAGE = re.compile(rb"\s*(?:[A-Z]{3,16} [^\r\n]{1,1024} SIP/\d|SIP/\d\.\d \d{3})")
_SIP_REQUEST = _prefix(*(method + scheme for method in METHODS for scheme in (b" sip:", b" sips:")))


def _sip(data: bytes) -> bool | None:
    """Either side sends requests and responses (RFC 3261, section 7)."""
    return _SIP_MESSAGE.match(data) is not None


_TFTP = re.compile(rb"\0[\1\2][^\0]+\0(?:octet|netascii|mail)\0", re.IGNORECASE)


def _tftp(data: bytes) -> bool | None:
    """RFC 1350, section 5: a request to read or write."""
    return _TFTP.match(data) is not None


# RFC 854: the first two bytes of an option negotiation.
_TELNET = _prefix(b"\xff\xfb", b"\xff\xfc", b"\xff\xfd", b"\xff\xfe")

_TO_SERVER: list[tuple[str, _Probe]] = [
    ("http2", _prefix(_HTTP2_PREFACE)),
    ("http", _http_request),
    ("tls", _tls_record(22)),
    ("tls", _sslv2_hello),
    ("ssh", _prefix(b"SSH-")),
    ("smtp", _command(b"EHLO", b"HELO")),
    (
        "ftp",
        _command(b"USER ", b"PASS ", b"PORT ", b"FEAT\r\n", b"AUTH TLS\r\n", b"AUTH SSL\r\n", b"SYST\r\n", b"PASV\r\n"),
    ),
    ("pop3", _command(b"CAPA\r\n")),
    ("telnet", _TELNET),
    ("smb", _prefix(b"\xffSMB", b"\xfeSMB", b"\xfdSMB", at=4)),
    ("dcerpc", looks_like_pdu),
    ("rdp", lambda data: False if data[0] != 3 else None if len(data) < 6 else data[1] == 0 and data[5] == 0xE0),
    ("mqtt", lambda data: False if data[0] != 0x10 else None if len(data) < 10 else b"MQ" in data[2:8]),
    ("pgsql", _pgsql),
    ("sip", _SIP_REQUEST),
    ("krb5", _krb5_tcp),
    ("ldap", _ldap(ldap.REQUEST_TAGS)),
    ("nfs", _nfs_record),
    ("dns", _dns_tcp(False)),
]
_TO_CLIENT: list[tuple[str, _Probe]] = [
    ("http", _prefix(b"HTTP/0", b"HTTP/1")),
    ("tls", _tls_record(22, 21)),
    ("ssh", _prefix(b"SSH-")),
    # The name of the host says nothing.
    ("smtp", _greeting(re.compile(rb"(?i)\bE?SMTP(?=[^\w.]|\.\W)"))),
    ("ftp", _greeting(re.compile(rb"(?i)ftp[\w-]*(?=[^\w.-]|\.\W)"))),
    ("pop3", _prefix(b"+OK ", b"+OK\r\n", b"-ERR ")),
    ("imap", _prefix(b"* OK", b"* PREAUTH", b"* BYE")),
    ("rfb", _prefix(b"RFB 003.")),
    ("telnet", _TELNET),
    ("smb", _prefix(b"\xffSMB", b"\xfeSMB", b"\xfdSMB", at=4)),
    ("dcerpc", looks_like_pdu),
    ("sip", _prefix(b"SIP/2.0")),
    ("http2", _http2_server),
    ("mqtt", _mqtt_answer),
    ("krb5", _krb5_tcp),
    ("ldap", _ldap(ldap.RESPONSE_TAGS)),
    ("dns", _dns_tcp(True)),
]
_UDP_TO_SERVER: list[tuple[str, _Probe]] = [
    ("quic", looks_like_quic),
    ("dns", _dns_udp(False)),
    ("ntp", _ntp),
    ("krb5", _krb5),
    ("ldap", _ldap(ldap.REQUEST_TAGS, True)),
    ("snmp", snmp.looks_like_message),
    ("ike", _ike(False)),
    ("nfs", lambda data: bool(nfs.looks_like_call(data))),
    ("tftp", _tftp),
    ("dhcp", _prefix(b"\x63\x82\x53\x63", at=236)),
    ("sip", _sip),
]
_UDP_TO_CLIENT: list[tuple[str, _Probe]] = [
    ("quic", looks_like_quic),
    ("dns", _dns_udp(True)),
    ("ntp", _ntp),
    ("krb5", _krb5),
    ("ldap", _ldap(ldap.RESPONSE_TAGS, True)),
    ("snmp", snmp.looks_like_message),
    ("ike", _ike(True)),
    ("dhcp", _prefix(b"\x63\x82\x53\x63", at=236)),
    ("sip", _sip),
]
_TCP = (_TO_SERVER, _TO_CLIENT)
_UDP = (_UDP_TO_SERVER, _UDP_TO_CLIENT)
_TCP_NAMES, _UDP_NAMES = (
    tuple(frozenset(name for name, _ in side) for side in transport) for transport in (_TCP, _UDP)
)
