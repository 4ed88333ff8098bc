"""What is fuzzed. A target takes any bytes; it raises when a promise of the code behind it is broken.

Several things can be in one input: a first byte says how it is cut, :data:`TURN` is where the other side goes on.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import hpack
from cryptography import x509
from hpack.exceptions import HPACKError
from hyperframe.frame import AltSvcFrame, ContinuationFrame, DataFrame, HeadersFrame

from engines.decode.defrag import FragmentPolicy
from engines.decode.layers import Layers
from engines.packet import decode, icmp_unreachable, port_unreachable, quoted, tcp_options, tcp_reset
from engines.stateful.app import AppParser
from engines.stateful.app.certificate import read_certificate
from engines.stateful.app.frames import BUFFERS as FRAMES
from engines.stateful.app.http2 import Http2Parser
from engines.stateful.app.limits import AppLimits
from engines.stateful.app.registry import PARSERS, UDP_PARSERS
from engines.stateful.inspector import FlowFacts, Inspector, Segment
from engines.stateful.keywords.buffers import BUFFERS
from engines.stateful.parser import Variables, parse_rules, rule_texts
from engines.stateful.ruleset import RuleSet, compile_ruleset
from engines.stateful.saved import load_rules, save_rules
from engines.stateful.stream import HalfStream, Status, StreamLimits
from engines.stateful.thresholdconfig import parse_threshold_config
from engines.tls import certpolicies
from engines.tls.altsvc import AltSvcMask
from engines.tls.clienthello import ClientHello, ClientHelloReader
from engines.tls.dnsjson import json_without_ech
from engines.tls.hiding import masking
from engines.tls.malformed import MALFORMED
from engines.tls.revocation import issuer_urls, pointers
from engines.tls.secondpath import SecondPath
from engines.tls.verify import ServerCertificate, certificate_facts
from engines.verdict import Direction
from engines.watch.segments import OverlapPolicy
from nfw.policy.aws.documents import is_aws, parse_file
from nfw.policy.aws.loader import load_documents
from nfw.policy.check import check_policy
from nfw.policy.errors import CODES, PolicyError, PolicyErrors, Problems
from nfw.policy.loader import load_policy_text
from nfw.watch import Watcher, WatchOptions
from tests.fuzz import browsers

CORPUS = Path(__file__).parents[1] / "corpus"
TURN = b"\n@@\n"
VARIABLES = Variables(
    {"HOME_NET": "[10.0.0.0/8,fd00::/8]", "EXTERNAL_NET": "!$HOME_NET", "SERVERS": ["10.1.0.1", "$HOME_NET"]},
    {"HTTP_PORTS": "[80,8080:8089]"},
)
_SIDES = (Direction.TO_SERVER, Direction.TO_CLIENT)
_LINKTYPES = (1, 101, 0, 113, 9, 276, 12, 50)


@dataclass(frozen=True, slots=True)
class Target:
    """``words``: what is worth putting in. ``size``: the longest input, in bytes."""

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    words: tuple[bytes, ...] = ()
    size: int = 4096


# -- policies ----------------------------------------------------------------------------------------------------------


def policy(data: bytes) -> None:
    """A policy file or an AWS document is loaded and checked, or refused with messages that have a place and advice."""
    path = Path("/nowhere/policy.yaml")
    told: list[PolicyError] = []
    errors: tuple[PolicyError, ...] = ()
    try:
        loaded = parse_file(path, data, Problems(str(path)))
        if is_aws(loaded):
            found = load_documents([loaded], Problems(str(path)), map_file=None, name="", check_key=False, now=0.0)
        else:
            found = load_policy_text(data, path, now=0.0)
        told = [*found.warnings, *check_policy(found)]
    except PolicyErrors as refused:
        errors = refused.errors
        told = [*errors, *refused.warnings]
    assert all(error.advice for error in errors)
    for problem in told:
        assert problem.file.startswith("/nowhere"), problem
        assert str(problem).isprintable(), problem
        assert problem.to_json()["code"] in CODES, problem


# -- rules -------------------------------------------------------------------------------------------------------------


def rules(data: bytes) -> None:
    """Every rule is a signature, an error or left out, each with its place; what is saved comes back."""
    text = data.decode("utf-8", "surrogateescape")
    parsed = parse_rules(text, "f.rules", VARIABLES)
    assert len(parsed.signatures) + len(parsed.errors) + len(parsed.skipped) == len(rule_texts(text))
    lines = text.count("\n") + 1
    assert all(1 <= told.line <= lines for told in (*parsed.errors, *parsed.warnings, *parsed.skipped))
    again = load_rules(save_rules(parsed, text), text, "f.rules", VARIABLES)
    assert [one.text for one in again.signatures] == [one.text for one in parsed.signatures]
    if zlib.crc32(data) % 8:  # compiling takes ten times as long as all the rest
        return
    inspector = Inspector(compile_ruleset(parsed.signatures), _FACTS, 0.0)
    for side in _SIDES:
        inspector.inspect(Segment(side, True, _TEXT, _TEXT, None, 0.0))


def thresholds(data: bytes) -> None:
    """As :func:`rules`, of threshold.config."""
    text = data.decode("utf-8", "surrogateescape")
    found = parse_threshold_config(text, "t.config", VARIABLES)
    assert all(1 <= error.line <= text.count("\n") + 1 and error.message for error in found.errors)


def regex(data: bytes) -> None:
    """An expression over a text that invites to backtrack; the driver's bound on time is what counts."""
    body = data.decode("utf-8", "surrogateescape").replace("\n", "")
    parsed = parse_rules(f'alert tcp any any -> any any (pcre:"/{body}/s"; sid:1;)', "f.rules", VARIABLES)
    if parsed.signatures:
        inspector = Inspector(compile_ruleset(parsed.signatures), _FACTS, 0.0)
        inspector.inspect(Segment(Direction.TO_SERVER, True, _REPEATING, _REPEATING, None, 0.0))


_FACTS = FlowFacts(1, 6, b"\x0a\0\0\1", b"\x0a\1\0\1", 40000, 80)
_TEXT = b"GET /a/b.php?x=1 HTTP/1.1\r\nHost: example.org\r\nUser-Agent: abc\r\n\r\n" + bytes(range(64))
_REPEATING = b"a" * 3000 + b"ab" * 500 + b"!" + b"/a" * 200


# -- protocols ---------------------------------------------------------------------------------------------------------


def _script(data: bytes) -> Iterator[tuple[Direction, bytes]]:
    """Pieces of at most as many bytes as the first one says (0: whole), the client's first."""
    cut, rest = data[:1], data[1:]
    for turn, part in enumerate(rest.split(TURN)):
        step = (cut[0] if cut else 0) or len(part) or 1
        for at in range(0, len(part), step):
            yield _SIDES[turn % 2], part[at : at + step]


def protocol(make: Callable[[AppLimits, bool], AppParser], prefix: str, data: bytes) -> None:
    """A parser never raises, holds only what it was fed, and every buffer can be asked for at any time."""
    parser = make(AppLimits(), bool(data[:1]) and data[0] % 2 == 1)
    fed = [0, 0]
    names = [name for name in BUFFERS if name.startswith(prefix) or name == "file.data"]
    for side, piece in _script(data):
        parser.feed(side, piece)
        fed[side] += len(piece)
        assert 0 <= parser.held(side) <= fed[side]
    for tx in parser.transactions:
        for name in names:
            for direction in (None, *_SIDES):
                assert all(isinstance(value, bytes) for value in tx.buffer(name, direction))
        tx.log_fields()
        assert all(tx.progress(side) >= 0 for side in _SIDES)
    for side in _SIDES:
        parser.close(side)
        parser.unparsed(side)
    for tx in parser.transactions:
        tx.log_fields()


def _with_frames(make: Callable[[AppLimits, bool], AppParser], limits: AppLimits, hold_body: bool) -> AppParser:
    return make(replace(limits, frames=frozenset(FRAMES)), hold_body)


def _http2_with_frames(limits: AppLimits, hold_body: bool) -> AppParser:
    return Http2Parser(replace(limits, http2_frames=True), hold_body)


@cache
def _ruleset() -> RuleSet:
    text = "".join(path.read_text() + "\n" for path in sorted((CORPUS / "rules").glob("*.rules")))
    return compile_ruleset(parse_rules(text, "f.rules", VARIABLES).signatures)


def inspector(ip_protocol: int, data: bytes) -> None:
    """All of a flow: detection, parsers, rules of every kind. What is held was fed, and is judged at the end."""
    facts = FlowFacts(1, ip_protocol, b"\x0a\0\0\1", b"\x0a\1\0\1", 40000, 80)
    flow = Inspector(_ruleset(), facts, 0.0)
    fed = [0, 0]
    for side, piece in _script(data):
        flow.inspect(Segment(side, True, piece, piece, decode(_packet(side, 0, 0, 0x18, piece)), 0.0))
        fed[side] += len(piece)
        assert all(0 <= flow.held[one] <= fed[one] for one in _SIDES)
    flow.hold_expired(1.0)
    for side in _SIDES:
        flow.close(side, 2.0)
    assert flow.held == [0, 0]


def certificate(data: bytes) -> None:
    """A certificate: facts, or None."""
    facts = read_certificate(data)
    assert facts is None or isinstance(facts.subject, bytes)


_ROOT = x509.load_der_x509_certificate(bytes.fromhex((CORPUS / "chain/root.hex").read_text()))
_UNIX_TIME = 1_800_000_000.0


def chain(data: bytes) -> None:
    """Certificates of a server, as one is verified: facts or a refusal, and a second opinion in words."""
    path: list[ServerCertificate] = []
    for der in data.split(TURN)[:4]:
        try:
            certificate = x509.load_der_x509_certificate(der)
            facts = certificate_facts(certificate)
        except MALFORMED:
            continue
        assert all(character.isprintable() for character in facts.subject + facts.issuer)
        about = pointers(certificate)
        assert all(url.lower().startswith("http://") for url in (*about.ocsp, *about.crl, *issuer_urls(certificate)))
        path.append(facts)
    assert certpolicies.fault([one.policies for one in path]) in (
        *(None, "no explicit policy"),
        "a mapping of any policy",
    )
    if path:
        others = [one.certificate for one in path[1:] if one.certificate is not None]
        opinion = SecondPath([_ROOT], 20).judge([*path, certificate_facts(_ROOT)], others, "a.test", _UNIX_TIME)
        assert opinion.refusal != ""


def hello(data: bytes) -> None:
    """A ClientHello: the same answer however it is cut, and everything about it can be asked."""
    cut = (data[0] if data else 0) or 1
    data = data[1:]
    whole, pieces = ClientHelloReader(), ClientHelloReader()
    answer = whole.feed(data)
    said = None
    for at in range(0, len(data), cut):
        said = pieces.feed(data[at : at + cut])
        if said is not None:
            break
    assert type(answer) is type(said)
    if isinstance(answer, ClientHello):
        assert isinstance(said, ClientHello)
        assert (answer.ja3, answer.ja4) == (said.ja3, said.ja4)
        assert answer.has_ech in (True, False)


_ASKED = {
    71: b"GET / HTTP/1.1\r\n\r\n", 72: b"HEAD / HTTP/1.1\r\n\r\n", 85: b"GET / HTTP/1.1\r\nUpgrade: x\r\n\r\n",
    80: b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 76: b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n",
}  # fmt: skip


def offering(data: bytes) -> None:
    """HTTP/1: no browser sees an offer of HTTP/3, however leniently it reads. First what is asked, then what is said to
    each, or, by the first byte's highest bit, before each."""
    first = data[0] if data else 0
    requests, *parts = data[1:].split(TURN)
    asked = [byte for byte in requests[:8] if byte in _ASKED]
    said, early = b"".join(parts), first >= 128
    methods = [_ASKED[byte].split(b" ")[0] for byte in asked]
    methods = methods[: asked.index(85)] if 85 in asked else methods  # behind an upgrade nothing is HTTP
    outcomes = []
    for cut in (len(said), first % 128):
        mask, out = AltSvcMask("http/1.1", keys=True), b""
        for number in range(max(len(parts), len(asked))):
            ask, part = _ASKED[asked[number]] if number < len(asked) else b"", b"".join(parts[number : number + 1])
            if not early:
                mask.feed(Direction.TO_SERVER, ask)
            step = cut or len(part) or 1
            out += b"".join(mask.feed(Direction.TO_CLIENT, part[at : at + step]) for at in range(0, len(part), step))
            if early:
                mask.feed(Direction.TO_SERVER, ask)
        out += mask.rest(Direction.TO_CLIENT)
        assert len(out) == len(said) or mask.refused
        for value in browsers.offers(methods, out):
            raise AssertionError(f"offered: {value!r}")
        outcomes.append((out, mask.refused))
    if len(said) < 250:
        assert outcomes[0] == outcomes[1], "as it is cut"


def offering_http2(data: bytes) -> None:
    """No header block that a client can decode has an offer, with one table for all, and no frame is one."""
    mask = AltSvcMask("h2", keys=True)
    out = mask.feed(Direction.TO_CLIENT, data) + mask.rest(Direction.TO_CLIENT)
    assert len(out) == len(data) or mask.refused
    decoder, block, at = hpack.Decoder(1 << 20), b"", 0
    while at + 9 <= len(out):
        length, kind, flags = int.from_bytes(out[at : at + 3], "big"), out[at + 3], out[at + 4]
        payload = out[at + 9 : at + 9 + length]
        at += 9 + length
        assert kind != 10
        if at > len(out) or kind not in (1, 5, 9):
            continue
        padding = payload[0] if kind != 9 and flags & 8 else 0
        skipped = (flags >> 3 & 1 if kind != 9 else 0) + (5 if kind == 1 and flags & 0x20 else 4 if kind == 5 else 0)
        block = (block if kind == 9 else b"") + payload[skipped : len(payload) - padding]
        if not flags & 4:
            continue
        try:
            fields = decoder.decode(block, raw=True)
        except HPACKError:
            return
        values = [bytes(value) for name, value in fields if bytes(name) == b"alt-svc"]
        assert not any(browsers.OFFER.search(value) for value in values), values


def hidden(data: bytes) -> None:
    """DNS answers and header blocks: no byte is lost or made up, and the same goes on however it is cut."""
    kinds = ("h2", "", "dot", "http/1.1")
    alpn, cut, rest = kinds[data[0] % 4 if data else 0], (data[1] if len(data) > 1 else 0) or 1, data[2:]
    requests, _, said = rest.partition(TURN)
    outcomes = []
    for step in (len(said) or 1, cut):
        mask = masking(alpn, 443, offers=True, keys=True)
        assert mask is not None
        assert mask.feed(Direction.TO_SERVER, requests) == requests
        out = b"".join(mask.feed(Direction.TO_CLIENT, said[at : at + step]) for at in range(0, len(said), step))
        out += mask.rest(Direction.TO_CLIENT)
        assert len(out) == len(said) or mask.refused
        outcomes.append((out, mask.refused))
    if len(said) < 250:
        assert outcomes[0] == outcomes[1], "as it is cut"


def dns_json(data: bytes) -> None:
    """No byte is lost or made up, what is changed is changed once."""
    changed = json_without_ech(data)
    assert len(changed) == len(data)
    assert json_without_ech(changed) == changed


# -- packets and streams -----------------------------------------------------------------------------------------------


def frames(data: bytes) -> None:
    """Frames of a capture, one after the other: link layers, fragments, tunnels, packets and answers to them."""
    layers = Layers(lambda address: FragmentPolicy.LINUX)
    for number, part in enumerate(data[1:].split(TURN)):
        linktype = _LINKTYPES[(data or b"\0")[0] % len(_LINKTYPES)]
        found = layers.read(linktype, part, float(number))
        assert found
        for layer in found:
            if layer.packet is not None:
                _ask(layer.packet)
    layers.defragmenter.tick(1e6)
    assert len(layers.defragmenter) == 0
    _ask(decode(data[1:]))


def _ask(packet: Any) -> None:
    list(tcp_options(packet))
    quote = quoted(packet)
    for one in (packet, quote) if quote is not None else (packet,):
        assert isinstance(one.payload, bytes | memoryview)
        repr(one)
        _ = (one.ttl, one.is_icmp_error, one.is_icmp_reply)
    if packet.problem is None and packet.key:
        if packet.protocol == 6:
            tcp_reset(packet)
        icmp_unreachable(packet)
        if packet.protocol == 17:
            port_unreachable(packet)


_OPERATION = struct.Struct("!hBB")


def _operations(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(signed offset, length, flags), four bytes each."""
    return _OPERATION.iter_unpack(data[: len(data) // 4 * 4])


def stream(data: bytes) -> None:
    """Reassembly inline: every offset is delivered once, in order, as it came first; memory stays within the bounds."""
    limits = StreamLimits(pending_bytes=2000, history_bytes=1500, pending_segments=8)
    half = HalfStream(limits, isn=(data[0] << 24 if data else 0) - 1 & 0xFFFFFFFF)
    base = data[0] << 24 if data else 0
    delivered = b""
    for offset, length, flags in _operations(data[1:]):
        at = len(delivered) + offset // 16
        # Most copies agree; now and then one says something else.
        other = 1 if flags & 0xF0 == 0xF0 else 0
        payload = bytes((at + n + other) & 0xFF for n in range(length))
        before = half.delivered
        added = half.add((base + at) & 0xFFFFFFFF, payload, fin=flags & 7 == 7)
        assert half.delivered == before + len(added.data)
        if added.status in (Status.CONFLICT, Status.UNVERIFIABLE, Status.OUT_OF_WINDOW, Status.FULL):
            assert not added.data
        delivered += added.data
        assert half.pending_bytes <= limits.pending_bytes
        if flags & 8:
            half.acked((base + len(delivered) - (flags >> 4)) & 0xFFFFFFFF)
    assert len(delivered) == half.delivered


def watched(data: bytes) -> None:
    """A bystander's reassembly and all behind it: packets with any flags, sequence numbers and overlaps."""
    seen: list[dict[str, Any]] = []
    policies = list(OverlapPolicy)
    policy = policies[data[0] % len(policies)] if data else policies[0]
    watcher = Watcher(_ruleset(), seen.append, WatchOptions(os_policy=lambda address: policy))
    sent = [1000, 5000]
    now = 0.0
    for number, (offset, length, flags) in enumerate(_operations(data[1:]), 1):
        side = _SIDES[flags & 1]
        payload = (_TEXT * 4)[max(offset, 0) % 64 :][:length]
        tcp_flags = (0x02, 0x12, 0x10, 0x18, 0x11, 0x14, 0x18, 0x04)[flags >> 1 & 7]
        seq = sent[side] + (offset // 8 if flags & 0x10 else 0)
        raw = _packet(side, seq, sent[1 - side] - (flags >> 6), tcp_flags, payload)
        if not flags & 0x10:
            sent[side] += len(payload) + (tcp_flags & 3 != 0)
        now += 0.01
        watcher.packet(number, decode(raw), now)
    watcher.finish(now)


def _packet(side: Direction, seq: int, ack: int, flags: int, payload: bytes) -> bytes:
    ends = [(0x0A000001, 40000), (0x0A010001, 80)]
    (source, sport), (destination, dport) = ends if side is Direction.TO_SERVER else reversed(ends)
    head = struct.pack("!BBHHHBBHII", 0x45, 0, 40 + len(payload), 0, 0, 64, 6, 0, source, destination)
    numbers = seq & 0xFFFFFFFF, ack & 0xFFFFFFFF
    return head + struct.pack("!HHIIBBHHH", sport, dport, *numbers, 0x50, flags, 65535, 0, 0) + payload


# -- seeds -------------------------------------------------------------------------------------------------------------


def _hex(folder: str, *, prefix: bytes = b"\0") -> list[bytes]:
    return [prefix + bytes.fromhex(path.read_text()) for path in sorted((CORPUS / folder).glob("*.hex"))]


def _chains() -> list[bytes]:
    each = _hex("chain", prefix=b"")
    return [*each, TURN.join(reversed(each)), *_hex("certificate", prefix=b"")]


def _policies() -> list[bytes]:
    folder = Path(__file__).parents[1] / "golden"
    files = [*(folder / "policy").glob("*.yaml"), *(folder / "aws").glob("*.json")]
    return [file.read_bytes() for file in sorted(files) if file.stat().st_size < 8000]


def _rules() -> list[bytes]:
    files = sorted((CORPUS / "rules").glob("*.rules"))
    return [rule.text.encode("utf-8", "surrogateescape") for path in files for rule in rule_texts(path.read_text())]


def _thresholds() -> list[bytes]:
    return [
        b"event_filter gen_id 1, sig_id 2, type limit, track by_src, count 1, seconds 60",
        b"suppress gen_id 1, sig_id 2, track by_either, ip [$HOME_NET,!10.0.0.1]",
        b"rate_filter gen_id 1, sig_id 2, track by_src, count 5, seconds 60, new_action drop, timeout 30",
    ]


def _expressions() -> list[bytes]:
    return [rb"(a+)+$", rb"^(a|aa)*b", rb"(?:a*)*c", rb"(.*a){9}", rb"(?=(a+))\1{3}!", rb"a.*b.*c.*d", rb"\/a[^\/]{2,}"]


def _framed_dns() -> list[bytes]:
    return [b"\0" + len(seed[1:]).to_bytes(2, "big") + seed[1:] for seed in _hex("dns")]


def _operations_of() -> list[bytes]:
    steps = [(0, 40, 8), (160, 30, 0), (-80, 60, 0xF8), (0, 0, 7), (320, 90, 0x10)]
    return [b"\0" + b"".join(_OPERATION.pack(*step) for step in steps), b"\xff" + _OPERATION.pack(0, 9, 0) * 9]


def _packets() -> list[bytes]:
    steps = [
        (0, 0, 0),
        (0, 0, 3),
        (0, 0, 4),
        (0, 200, 6),
        (-16, 90, 0x16),
        (0, 150, 7),
        (0, 0, 8),
        (0, 0, 9),
        (0, 0, 10),
    ]
    return [bytes([policy]) + b"".join(_OPERATION.pack(*step) for step in steps) for policy in range(4)]


def _flows() -> list[bytes]:
    names = ("http1", *sorted(PARSERS.keys() - {"dns", "http"}))
    return _framed_dns() + [seed for name in names for seed in _hex(name)]


_HTTP_WORDS = (
    b"\r\n", b"\r\n\r\n", b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", b"HTTP/1.1", b"0\r\n\r\n", b"GET ",
    b"Content-Encoding: gzip\r\n", b"CONNECT ", b"Upgrade: websocket\r\n", b"100", b"\t", b"\0", b"%u0041", TURN,
)  # fmt: skip
_RULE_WORDS = tuple(
    b'; |content:"|pcre:"/|/R";|byte_test:4,>,1,0,relative;|distance:0;|within:9;|http.uri;|[|]|!|$HOME_NET|any|->|<>|('
    b"|)|\\;|sid:1;|isdataat:9,relative;|base64_decode:|flowbits:set,|xor:|bsize:|4294967296|-1|\n|\\\n|0x".split(b"|")
)
_REGEX_WORDS = (
    b"(a+)+",
    b"*",
    b"+?",
    b"{9}",
    b"{0,99}",
    b"|",
    b"(?:",
    b")",
    b"[^a]",
    b"\\1",
    b"$",
    b"(?=",
    b".*",
    b"(?R)",
)


_MAIL_WORDS = (
    TURN, b"\r\n", b"DATA\r\n", b"MAIL FROM:<", b"BDAT 9 LAST\r\n", b"--b\r\n", b"STARTTLS\r\n",
    b"Content-Type: multipart/mixed; boundary=b\r\n",
    b"Content-Transfer-Encoding: base64\r\n", b"\r\n.\r\n", b"354 go\r\n", b"250 ok\r\n",
)  # fmt: skip


_OFFER = b'Alt-Svc: h3=":443"\r\n'
_HEAD = b"HTTP/1.1 200 OK\r\n"
_OFFER_WORDS = (
    _OFFER, _OFFER, _HEAD, _HEAD + _OFFER + b"\r\n", _HEAD + _OFFER + b"\r\n", b"\r", b"\n", b"\0", b" ", b"\t", b":",
    b"Content-Length: 0\r\n", b"Content-Length: 62\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\n\r\n", b"0\r\n\r\n",
    b"HTTP/1.1 101 S\r\n", b"HTTP/1.1 205 R\r\n", b"HTTP/1.1 100 C\r\n\r\n", b"HTTP/1.0 ", b"http", b"+", b"0x",
    b"Content-Type: application/dns-message\r\n", b"Content-Type: application/json\r\n", b"gzip", b"3e\r\n", b";", b",",
)  # fmt: skip
_KEYED = bytes.fromhex(
    "000081800001000100000000016104746573740000410001c00c004100010000003c0016000100"
    "00010003026832000500080008fe0d00046162"
)
_RECORDS = (
    b'{"Status":0,"TC":false,"Question":[{"name":"a.test.","type":65}],"Answer":[{"name":"a.test.","type":65,'
    b'"TTL":300,"data":"1 . alpn=h2,h3 mandatory=alpn,ech ech=\\"AEX+DQ==\\""},{"type":65,"data":"\\\\# 22 00 01 00 '
    b'00 01 00 03 02 68 32 00 05 00 08 00 08 fe 0d 00 04 61 62"}]}'
)


def _offers() -> list[bytes]:
    fronts = (
        b"", b"junk", _HEAD + b"Content-Length: 5\r\n\r\nhello", b"HTTP/1.1 204 No\r\n\r\n", b"HTTP/1.1 101 S\r\n\r\n",
        _HEAD + b"Transfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\nX: y\r\n\r\n", b"HTTP/1.1 100 C\r\n\r\n",
        b"HTTP/1.1 205 R\r\nContent-Length: 5\r\n\r\n", b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    )  # fmt: skip
    last = _HEAD + b'X: y\r\nAlt-Svc: h2=":1",\r\n h3=":443"; ma=9\r\nContent-Length: 0\r\n\r\n'
    asked = (b"GGG", b"HGG", b"PLG", b"GUG", b"GHG")
    whole = [b"\7" + one + TURN + front + last * 2 for one in asked for front in fronts]
    return whole + [
        begin + one + TURN + _HEAD + b"Content-Length: 5\r\n\r\nhello" + TURN + front + TURN + last
        for begin in (b"\7", b"\x87", b"\x80")
        for one in asked
        for front in fronts
    ]


def _answers() -> list[bytes]:
    get, sized = b"GET / HTTP/1.1\r\n\r\n" * 2, b"Content-Length: %d\r\n\r\n"
    frame = len(_KEYED).to_bytes(3, "big") + b"\0\1\0\0\0\1" + _KEYED
    kind = b"\x0f\x10\x17application/dns-message"
    blocks = (b"\x88" + kind, b"\x88", b"\x88\x0f\x10\x10application/json", b'\x40\x07alt-svc\x09h3=":443"')
    heads = [len(block).to_bytes(3, "big") + b"\1\4\0\0\0\1" + block for block in blocks]
    types = (b"Content-Type: application/dns-message\r\n", b"", b"Content-Type: application/dns-json\r\n")
    bodies = [one for kind in types for one in (_HEAD + kind + sized % len(_KEYED) + _KEYED, _HEAD + kind + b"\r\n")]
    dns = len(_KEYED).to_bytes(2, "big") + _KEYED
    query = b"\0\x18\0\1\1\0\0\1" + bytes(6) + b"\1a\4test\0\0\x41\0\1"
    return [
        *(b"\0\5" + TURN + head + frame for head in heads),
        *(b"\3\5" + get + TURN + body for body in bodies),
        b"\3\5" + get + TURN + _HEAD + b"Content-Type: application/json\r\n\r\n" + _RECORDS,
        b"\2\5" + TURN + dns * 2,
        b"\1\5" + query + TURN + dns * 2,
    ]


def _blocks() -> list[bytes]:
    encoder, found = hpack.Encoder(), []
    for number, huffman in enumerate((False, True, False, True)):
        fields = [(":status", "200"), ("alt-svc", f'h3=":{443 + number // 2}"; ma=9'), ("x-a", "b" * number)]
        block = encoder.encode(fields, huffman)
        found.append(HeadersFrame(2 * number + 1, block, flags=["END_HEADERS"]).serialize())
        found.append(DataFrame(2 * number + 1, b"text").serialize())
    last = encoder.encode([(":status", "200"), ("alt-svc", 'h3=":443"')])
    found.append(HeadersFrame(9, last[:3], flags=["PADDED", "PRIORITY"], pad_length=3).serialize())
    found.append(ContinuationFrame(9, last[3:], flags=["END_HEADERS"]).serialize())
    found.append(AltSvcFrame(0, b"https://a.test", b'h3=":443"').serialize())
    return [b"".join(found), *found]


def _json_answers() -> list[bytes]:
    return [_RECORDS, _RECORDS.replace(b"65", b'"HTTPS"')]


_POLICY_WORDS = (
    *(
        b"&a ",
        b"*a",
        b"<<: ",
        b"!Ref ",
        b"!!str ",
        b"{",
        b"}",
        b"[",
        b"]",
        b": ",
        b"- ",
        b"\n",
        b"\0",
        b"\xef\xbb\xbf",
        b"\xff",
    ),
    *(b"null", b".nan", b"1e999", b"-1", b"9" * 40, b"$HOME_NET", b"!any", b'{"Fn::Sub": "', b'"Resources": {', b"\t"),
)


def _all() -> Iterator[Target]:
    yield Target("policy", policy, _policies, _POLICY_WORDS, 8000)
    yield Target("rules", rules, _rules, _RULE_WORDS, 9000)
    yield Target("thresholds", thresholds, _thresholds, (b", ", b"track by_src", b"ip ", b"[", b"!", b"\n", b"\\\n"))
    yield Target("regex", regex, _expressions, _REGEX_WORDS, 300)
    words = {"http": _HTTP_WORDS, "smtp": _MAIL_WORDS}
    for name, make in PARSERS.items():
        prefix = {"http2": "http"}.get(name, name)
        run = partial(protocol, make, prefix)
        folder = {"http": "http1", "ftp-data": "mime"}.get(name, name)
        seeds = _framed_dns if name in {"dns", "llmnr"} else partial(_hex, folder)
        yield Target(name, run, seeds, words.get(name, (TURN, b"\r\n", b"\xff\xff")), 20_000)
    yield Target("http2-frames", partial(protocol, _http2_with_frames, "http"), partial(_hex, "http2"), (TURN,))
    for name in ("http", "dns", "sip", "smb", "websocket"):
        folder = {"http": "http1"}.get(name, name)
        run = partial(protocol, partial(_with_frames, PARSERS[name]), "frame.")
        yield Target(f"{name}-pieces", run, _framed_dns if name == "dns" else partial(_hex, folder), (TURN,), 20_000)
    for name, make in UDP_PARSERS.items():
        folder = "dns" if name in {"mdns", "llmnr"} else name
        yield Target(f"{name}-udp", partial(protocol, make, name), partial(_hex, folder), (TURN,))
    yield Target("flow-tcp", partial(inspector, 6), _flows, _HTTP_WORDS, 20_000)
    yield Target("flow-udp", partial(inspector, 17), partial(_hex, "dns"), (TURN,))
    yield Target("certificate", certificate, partial(_hex, "certificate", prefix=b""))
    yield Target("chain", chain, _chains, (TURN, b"\x06\x03\x55\x1d", b"\x01\x01\xff"), 8000)
    yield Target("hello", hello, partial(_hex, "tls"), (b"\x16\x03\x01", b"\0\0", b"\xfe\x0d"))
    yield Target("offering", offering, _offers, _OFFER_WORDS, 6000)
    yield Target(
        "offers-http2", offering_http2, _blocks, (b"\x40\x07alt-svc", b'\x09h3=":443"', b"\xbe", b"\x3f\xe1\x1f")
    )
    yield Target("hidden", hidden, _answers, (*_OFFER_WORDS, _KEYED, b"\0\0\4\0\1\0\0\0\1"), 6000)
    yield Target("dns-json", dns_json, _json_answers, (b'"', b"\\", b"{", b"}", b"ech=", b"mandatory=", b"\\# ", b","))
    yield Target(
        "frames", frames, partial(_hex, "frames"), (TURN, b"\x08\0", b"\x81\0", b"\x86\xdd", b"\x20\0", b"\x45")
    )
    yield Target("stream", stream, _operations_of)
    yield Target("watched", watched, _packets)


TARGETS = {target.name: target for target in _all()}
