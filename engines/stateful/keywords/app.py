"""Conditions on application protocols that are no text buffers. Source: Suricata user guide, the protocols' pages.

The bytes the buffers behind them must hold (what the application parsers produce):

=============  ===========================================================================================
dns.opcode     one byte; dns.rcode and dns.rrtype two bytes, big endian (one instance of rrtype per question)
tls.version    two bytes as on the wire (``03 03`` is TLS 1.2): the version negotiated, once it is known
ssl_version    the same, for the version the hello of each direction carries (the negotiated one, where known)
ssl_state      one instance per state reached: ``client_hello``, ``server_hello``, ``client_keyx``,
               ``server_keyx``, ``unknown``
=============  ===========================================================================================
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime

from engines.stateful.header import APP_PROTOCOLS, nearest
from engines.stateful.keywords.base import Keyword, KeywordError, Kind, int_test, required, split_list, unquote
from engines.stateful.keywords.buffers import BUFFERS
from engines.stateful.keywords.content import parse_pattern
from engines.stateful.keywords.draft import ContentDraft, RuleDraft
from engines.stateful.keywords.eventnames import APP_EVENTS, DETECTION_EVENTS
from engines.stateful.keywords.integers import number
from engines.stateful.keywords.packetevents import known_event
from engines.stateful.match import IntegerValue, OneOf, StepMatcher
from engines.stateful.signature import AppProtocolTest

_MODES = {"final", "original", "either", "to_server", "to_client", "exact"}


def _app_layer_protocol(draft: RuleDraft, value: str | None) -> None:
    parts = split_list(required(value, "the name of an application protocol, or several with | between them"))
    text = unquote(parts[0])
    negated = text.startswith("!")
    names = [name.strip().lower() for name in text.lstrip("!").split("|")]
    if len(parts) > 2 or (len(parts) == 2 and parts[1] not in _MODES):
        raise KeywordError(f"app-layer-protocol: expected one of {', '.join(sorted(_MODES))}, found {parts[1]!r}")
    for name in names:
        if name not in APP_PROTOCOLS and name not in {"failed", "unknown"}:
            raise KeywordError(f"app-layer-protocol: {name!r} is not known{nearest(name, APP_PROTOCOLS)}")
    if draft.header.app_proto and not negated:
        raise KeywordError(f"app-layer-protocol: the rule is for {draft.header.app_proto} already", in_value=False)
    mode = parts[1] if len(parts) == 2 else "final"
    for other in draft.app_layer_protocols:
        if {"final", "exact"} >= {mode, other.mode} and not (negated and other.negated):
            raise KeywordError(f"app-layer-protocol: cannot be combined with the one for {other.name}", in_value=False)
        if negated and mode == other.mode and not set(names).isdisjoint(other.names):
            raise KeywordError(f"app-layer-protocol: !{other.name} is said already", in_value=False)
    if len(set(names)) < len(names):
        raise KeywordError(f"app-layer-protocol: a protocol is given twice in {text!r}")
    draft.app_layer_protocols.append(AppProtocolTest("|".join(names), negated, mode))


def _app_layer_event(draft: RuleDraft, value: str | None) -> None:
    text = unquote(required(value, "protocol.event"))
    proto, dot, event = text.partition(".")
    if text.startswith("applayer_"):  # of protocol detection itself, not of a protocol
        proto, event = "applayer", text
        known_event(draft, "app-layer-event", text, DETECTION_EVENTS)
    elif not dot or not event:
        raise KeywordError(f"app-layer-event: expected protocol.event, found {text!r}")
    elif proto not in APP_PROTOCOLS:
        raise KeywordError(f"app-layer-event: protocol {proto!r} is not known{nearest(proto, APP_PROTOCOLS)}")
    else:
        known_event(draft, "app-layer-event", event, APP_EVENTS.get("http" if proto == "http1" else proto), f"{proto}.")
        draft.require_app("app-layer-event", _same(proto))
    draft.app_events.append((proto, event))


def _same(proto: str) -> frozenset[str]:
    return frozenset({"http", "http1"}) if proto in {"http", "http1"} else frozenset({proto})


def _into(draft: RuleDraft, keyword: str, buffer: str, matcher: StepMatcher) -> None:
    """Puts a condition on a buffer that no sticky keyword selects."""
    info = BUFFERS[buffer]
    draft.require_app(keyword, info.protos)
    draft.buffer(buffer).add(matcher)


def _number(keyword: str, high: int, names: dict[str, int] | None = None) -> Callable[[RuleDraft, str | None], None]:
    def parse(draft: RuleDraft, value: str | None) -> None:
        test = int_test(required(value, "a number"), keyword, high, names)
        _into(draft, keyword, keyword, IntegerValue(test.test))

    return parse


_RCODE_NAMES = "noerror formerr servfail nxdomain notimp refused yxdomain yxrrset nxrrset notauth notzone"
_RCODES = {name: number for number, name in enumerate(_RCODE_NAMES.split())} | {
    "badvers": 16,
    "badkey": 17,
    "badtime": 18,
}
_RRTYPES = {
    "a": 1, "ns": 2, "cname": 5, "soa": 6, "null": 10, "wks": 11, "ptr": 12, "hinfo": 13, "mx": 15, "txt": 16,
    "aaaa": 28, "srv": 33, "naptr": 35, "dname": 39, "opt": 41, "ds": 43, "sshfp": 44, "rrsig": 46, "nsec": 47,
    "dnskey": 48, "nsec3": 50, "tlsa": 52, "svcb": 64, "https": 65, "spf": 99, "ixfr": 251, "axfr": 252, "any": 255,
    "uri": 256, "caa": 257,
}  # fmt: skip

_SSL2 = b"\x00\x02"
_SSL3, _TLS10, _TLS11, _TLS12, _TLS13 = (bytes((3, minor)) for minor in range(5))
_VERSIONS = {
    "sslv2": _SSL2, "sslv3": _SSL3, "tls1.0": _TLS10, "tls1.1": _TLS11, "tls1.2": _TLS12, "tls1.3": _TLS13,
    "1.0": _TLS10, "1.1": _TLS11, "1.2": _TLS12, "1.3": _TLS13,
}  # fmt: skip


def _tls_version(draft: RuleDraft, value: str | None) -> None:
    text = unquote(required(value, 'a version like "1.2"')).lower()
    if text[:2] == "0x":
        try:
            version = bytes.fromhex(text[2:].zfill(4))
        except ValueError:
            version = b""
    else:
        version = _VERSIONS.get(text, b"") if not text.startswith(("tls", "ssl")) else b""
    if len(version) != 2:
        raise KeywordError(f"tls.version: expected 1.0, 1.1, 1.2, 1.3 or 0x and four digits, found {text!r}")
    _into(draft, "tls.version", "tls.version", OneOf(frozenset({version})))


def _ssl_version(draft: RuleDraft, value: str | None) -> None:
    names = [n.strip().lower() for n in unquote(required(value, "versions like tls1.2,!sslv3")).split(",")]
    unknown = [n for n in names if n.lstrip("!").strip() not in _VERSIONS or n.lstrip("! ")[:1].isdigit()]
    if unknown:
        raise KeywordError(f"ssl_version: expected sslv2, sslv3, tls1.0 ... tls1.3, found {unknown[0]!r}")
    wanted = frozenset(_VERSIONS[n] for n in names if not n.startswith("!"))
    unwanted = frozenset(_VERSIONS[n.lstrip("! ")] for n in names if n.startswith("!"))
    # With a negation, every version matches that is not negated (and one that is wanted matches anyway).
    matcher = OneOf(unwanted - wanted, True) if unwanted else OneOf(wanted)
    _into(draft, "ssl_version", "ssl_version", matcher)


_SSL_STATES = ("client_hello", "server_hello", "client_keyx", "server_keyx", "unknown")


def _ssl_state(draft: RuleDraft, value: str | None) -> None:
    text = unquote(required(value, "a state like client_hello"))
    words = [w.strip() for w in text.replace("|", ",").split(",")]
    negated = {w.startswith("!") for w in words}
    states = [w.lstrip("!").strip() for w in words]
    unknown = [s for s in states if s not in _SSL_STATES]
    if unknown:
        raise KeywordError(f"ssl_state: expected one of {', '.join(_SSL_STATES)}, found {unknown[0]!r}")
    if len(negated) > 1:
        raise KeywordError("ssl_state: either all states are negated or none")
    _into(draft, "ssl_state", "ssl_state", OneOf(frozenset(s.encode() for s in states), negated.pop()))


def _tls_text(keyword: str, buffer: str) -> Callable[[RuleDraft, str | None], None]:
    """tls.subject:"CN=..." and tls.issuerdn: a content on the certificate's name, in one keyword (old form)."""

    def parse(draft: RuleDraft, value: str | None) -> None:
        text = required(value, "a text in double quotes")
        negated = text.startswith("!")
        info = BUFFERS[buffer]
        draft.require_app(keyword, info.protos)
        draft.buffer(buffer).add(ContentDraft(parse_pattern(unquote(text.lstrip("! "))), negated))

    return parse


def _store(draft: RuleDraft, value: str | None) -> None:
    if value:
        raise KeywordError("tls.store takes no value")
    draft.require_app("tls.store", BUFFERS["tls.certs"].protos)
    draft.warnings.append("tls.store: the rule matches, and the certificate is not stored")


_DATES = ("%Y", "%Y-%m", "%Y-%m-%d", "%Y-%m-%d %H", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S")


def _date(text: str, keyword: str) -> int:
    """Seconds since the epoch, UTC."""
    for form in _DATES:
        with contextlib.suppress(ValueError):
            return int(datetime.strptime(text.strip().replace("T", " "), form).replace(tzinfo=UTC).timestamp())
    raise KeywordError(f"{keyword}: expected a date like 2025-12-31 or 2025-12-31T23:59:59, found {text.strip()!r}")


def _tls_date(keyword: str, buffer: str) -> Callable[[RuleDraft, str | None], None]:
    """``date``, ``<date``, ``>date``, ``date<>date``; the ends count in, as in Suricata."""

    def parse(draft: RuleDraft, value: str | None) -> None:
        text = unquote(required(value, "a date, with < or > or two of them with <> between"))
        first, between, second = text.partition("<>")
        low: float = 0
        high: float = float("inf")
        if between:
            low, high = _date(first, keyword), _date(second, keyword)
            if low >= high:
                raise KeywordError(f"{keyword}: {second.strip()!r} is not after {first.strip()!r}")
        elif text.startswith("<"):
            high = _date(text[1:], keyword)
        elif text.startswith(">"):
            low = _date(text[1:], keyword)
        else:
            low = high = _date(text, keyword)
        _into(draft, keyword, buffer, IntegerValue(lambda seconds: low <= seconds <= high))

    return parse


_WS_FLAGS = {"fin": 0x80, "comp": 0x40}


def _websocket_flags(draft: RuleDraft, value: str | None) -> None:
    """A number, or names of flags: those that must be set and, with ``!``, those that must not."""
    text = unquote(required(value, "a number or flags like fin,!comp"))
    names = [name.strip().lower() for name in text.split(",")]
    if all(name.lstrip("! ") in _WS_FLAGS for name in names):
        wanted = sum(_WS_FLAGS[name] for name in set(names) if not name.startswith("!"))
        unwanted = sum(_WS_FLAGS[name.lstrip("! ")] for name in set(names) if name.startswith("!"))
        test = IntegerValue(lambda flags: flags & wanted == wanted and not flags & unwanted)
    else:
        test = IntegerValue(int_test(text, "websocket.flags", 255).test)
    _into(draft, "websocket.flags", "websocket.flags", test)


_WS_OPCODES = {"continuation": 0, "text": 1, "binary": 2, "connection_close": 8, "ping": 9, "pong": 10}
_WS = "websocket-keywords.html"
_TLS, _DNS = "tls-keywords.html", "dns-keywords.html"
KEYWORDS = [
    Keyword("app-layer-protocol", "the protocol that was detected", "app-layer.html", Kind.APP, _app_layer_protocol),
    Keyword("app-layer-event", "an oddity a parser reported", "app-layer.html", Kind.APP, _app_layer_event),
    Keyword("dns.opcode", "the DNS header's opcode", f"{_DNS}#dns-opcode", Kind.APP, _number("dns.opcode", 15)),
    Keyword("dns.rcode", "the DNS answer's code", f"{_DNS}#dns-rcode", Kind.APP, _number("dns.rcode", 65535, _RCODES)),
    Keyword("dns.rrtype", "the type asked", f"{_DNS}#dns-rrtype", Kind.APP, number("dns.rrtype", 65535, _RRTYPES)),
    Keyword("tls.version", "the version negotiated", f"{_TLS}#tls-version", Kind.APP, _tls_version),
    Keyword("ssl_version", "the version of a hello", f"{_TLS}#ssl-version", Kind.APP, _ssl_version),
    Keyword("ssl_state", "how far the handshake is", f"{_TLS}#ssl-state", Kind.APP, _ssl_state),
    Keyword("websocket.flags", "flags of a frame", f"{_WS}#websocket-flags", Kind.APP, _websocket_flags),
    Keyword(
        "websocket.opcode",
        "the kind of a frame",
        f"{_WS}#websocket-opcode",
        Kind.APP,
        _number("websocket.opcode", 15, _WS_OPCODES),
    ),
    Keyword(
        "websocket.mask",
        "the masking key of a frame",
        f"{_WS}#websocket-mask",
        Kind.APP,
        _number("websocket.mask", 0xFFFFFFFF),
    ),
    Keyword(
        "tls.cert_chain_len",
        "the number of certificates sent",
        f"{_TLS}#tls-cert-chain-len",
        Kind.APP,
        _number("tls.cert_chain_len", 0xFFFFFFFF),
    ),
    Keyword(
        "tls_cert_notbefore",
        "the certificate's first day",
        f"{_TLS}#tls-cert-notbefore",
        Kind.APP,
        _tls_date("tls_cert_notbefore", "tls.cert_notbefore"),
    ),
    Keyword(
        "tls_cert_notafter",
        "the certificate's last day",
        f"{_TLS}#tls-cert-notafter",
        Kind.APP,
        _tls_date("tls_cert_notafter", "tls.cert_notafter"),
    ),
    Keyword(
        "tls.subject",
        "text in the certificate's subject (old form)",
        f"{_TLS}#tls-subject",
        Kind.APP,
        _tls_text("tls.subject", "tls.cert_subject"),
    ),
    Keyword(
        "tls.fingerprint",
        "the certificate's SHA-1 (old form)",
        f"{_TLS}#tls-fingerprint",
        Kind.APP,
        _tls_text("tls.fingerprint", "tls.cert_fingerprint"),
    ),
    Keyword("tls.store", "there is a certificate (which is not stored)", f"{_TLS}#tls-store", Kind.APP, _store, None),
    Keyword(
        "tls.issuerdn",
        "text in the certificate's issuer (old form)",
        f"{_TLS}#tls-issuerdn",
        Kind.APP,
        _tls_text("tls.issuerdn", "tls.cert_issuer"),
    ),
]
