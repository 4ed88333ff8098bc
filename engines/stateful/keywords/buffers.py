"""Sticky buffers, the old content modifiers that became them, and what each buffer accepts.

``BUFFERS`` is the table everything else reads: the canonical name, the protocols that have the buffer, the direction
it exists in, whether it has several instances, and how well it serves as a fast pattern.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engines.stateful.app import frames, http2_frames
from engines.stateful.keywords.base import Keyword, KeywordError, Kind
from engines.stateful.keywords.draft import BASE64_DATA, PAYLOAD, ContentDraft, RuleDraft
from engines.stateful.match import Base64Decode
from engines.verdict import Direction

TO_SERVER, TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT

HTTP = frozenset({"http", "http1", "http2", "doh2"})
HTTP1 = frozenset({"http", "http1"})
TLS = frozenset({"tls"})
QUIC = frozenset({"quic"})
HTTP2 = frozenset({"http2", "doh2"})
DNS = frozenset({"dns", "doh2", "mdns", "llmnr"})
SSH = frozenset({"ssh"})
SMTP = frozenset({"smtp"})
FTP = frozenset({"ftp"})
DCERPC = frozenset({"dcerpc", "smb"})
SMB = frozenset({"smb"})
SIP = frozenset({"sip"})
KRB5 = frozenset({"krb5"})
LDAP = frozenset({"ldap"})
PGSQL = frozenset({"pgsql"})
SNMP = frozenset({"snmp"})
IKE = frozenset({"ike", "ikev2"})
NFS = frozenset({"nfs"})
MQTT = frozenset({"mqtt"})
NTP = frozenset({"ntp"})
RFB = frozenset({"rfb"})
JA3 = frozenset({"tls", "quic"})
FILES = frozenset({"http", "http1", "http2", "doh2", "smtp", "ftp", "ftp-data", "smb", "nfs"})


@dataclass(frozen=True, slots=True)
class BufferInfo:
    """One sticky buffer. ``rank``: lower is preferred for the fast pattern (Suricata's mpm priorities).

    ``refuses`` says why a content on it can never match, or "". ``direction`` None: both.
    """

    name: str
    protos: frozenset[str]
    direction: Direction | None
    page: str
    rank: int = 2
    multiple: bool = False
    aliases: tuple[str, ...] = ()
    modifier: str = ""  # the old keyword that moved a content here
    refuses: Callable[[ContentDraft], str] | None = None
    canonical: Callable[[bytes], bytes] | None = None  # the case the buffer's text always has


def _host(content: ContentDraft) -> str:
    if content.nocase:
        return "http.host is always lower case: leave out nocase"
    if content.pattern.lower() != content.pattern:
        return "http.host is always lower case: a pattern with upper case letters can never match"
    return ""


def _method(content: ContentDraft) -> str:
    if not content.negated and (content.pattern[:1] in b" \t" or content.pattern[-1:] in b" \t\r\n"):
        return "http.method has no spaces or line ends around it"
    return ""


def _no_line_end(content: ContentDraft) -> str:
    return "the buffer never contains a line end" if content.pattern[-1:] in b"\r\n" and not content.negated else ""


def _ja3(content: ContentDraft) -> str:
    return "a JA3 hash has 32 hexadecimal digits" if len(content.pattern) != 32 else ""


def _fingerprint(content: ContentDraft) -> str:
    if len(content.pattern) != 59 or content.pattern.count(b":") != 19:
        return "a fingerprint is 20 hexadecimal bytes separated by colons"
    return ""


_H, _T, _D, _S, _F = "http-keywords.html", "tls-keywords.html", "dns-keywords.html", "ssh-keywords.html", "file.html"
_I = "sip-keywords.html"
_L = "ldap-keywords.html"
_J, _Q, _M, _P = "ja-keywords.html", "quic-keywords.html", "email-keywords.html", "ftp-keywords.html"

_TABLE: tuple[BufferInfo, ...] = (
    BufferInfo("http.uri", HTTP, TO_SERVER, _H, modifier="http_uri"),
    BufferInfo("http.uri.raw", HTTP, TO_SERVER, _H, modifier="http_raw_uri"),
    BufferInfo("http.method", HTTP, TO_SERVER, _H, 4, modifier="http_method", refuses=_method),
    BufferInfo("http.protocol", HTTP, None, _H, aliases=("http_protocol",)),
    BufferInfo("http.request_line", HTTP, TO_SERVER, _H, aliases=("http_request_line",)),
    BufferInfo("http.request_header", HTTP, TO_SERVER, _H, multiple=True),
    BufferInfo("http.header", HTTP, None, _H, modifier="http_header"),
    BufferInfo("http.header.raw", HTTP, None, _H, modifier="http_raw_header"),
    BufferInfo("http.header_names", HTTP, None, _H, aliases=("http_header_names",)),
    BufferInfo("http.cookie", HTTP, None, _H, modifier="http_cookie"),
    BufferInfo("http.user_agent", HTTP, TO_SERVER, _H, modifier="http_user_agent", refuses=_no_line_end),
    BufferInfo("http.host", HTTP, TO_SERVER, _H, modifier="http_host", refuses=_host),
    BufferInfo("http.host.raw", HTTP, TO_SERVER, _H, modifier="http_raw_host"),
    BufferInfo("http.accept", HTTP, TO_SERVER, _H, aliases=("http_accept",)),
    BufferInfo("http.accept_enc", HTTP, TO_SERVER, _H, aliases=("http_accept_enc",)),
    BufferInfo("http.accept_lang", HTTP, TO_SERVER, _H, aliases=("http_accept_lang",)),
    BufferInfo("http.referer", HTTP, TO_SERVER, _H, aliases=("http_referer",)),
    BufferInfo("http.connection", HTTP, None, _H, aliases=("http_connection",)),
    BufferInfo("http.content_type", HTTP, None, _H, aliases=("http_content_type",)),
    BufferInfo("http.content_len", HTTP, None, _H, aliases=("http_content_len",)),
    BufferInfo("http.start", HTTP, None, _H, aliases=("http_start",)),
    BufferInfo("http.request_body", HTTP, TO_SERVER, _H, modifier="http_client_body"),
    BufferInfo("http.response_body", HTTP, TO_CLIENT, _H, modifier="http_server_body"),
    BufferInfo("http.stat_code", HTTP, TO_CLIENT, _H, 4, modifier="http_stat_code"),
    BufferInfo("http.stat_msg", HTTP, TO_CLIENT, _H, 3, modifier="http_stat_msg"),
    BufferInfo("http.response_line", HTTP, TO_CLIENT, _H, aliases=("http_response_line",)),
    BufferInfo("http.response_header", HTTP, TO_CLIENT, _H, multiple=True),
    BufferInfo("http.server", HTTP, TO_CLIENT, _H),
    BufferInfo("http.location", HTTP, TO_CLIENT, _H),
    BufferInfo("http2.header_name", HTTP2, None, "http2-keywords.html", multiple=True),
    BufferInfo("http2.header", HTTP2, None, "http2-keywords.html", multiple=True),
    BufferInfo("file.data", FILES, None, _F, multiple=True, aliases=("file_data",)),
    BufferInfo("file.name", FILES, None, _F, multiple=True),
    BufferInfo("tls.sni", TLS, TO_SERVER, _T, aliases=("tls_sni",)),
    BufferInfo("tls.cert_subject", TLS, None, _T, aliases=("tls_cert_subject",)),
    BufferInfo("tls.cert_issuer", TLS, None, _T, aliases=("tls_cert_issuer",)),
    BufferInfo("tls.cert_serial", TLS, None, _T, aliases=("tls_cert_serial",), canonical=bytes.upper),
    BufferInfo(
        "tls.cert_fingerprint",
        TLS,
        None,
        _T,
        aliases=("tls_cert_fingerprint",),
        refuses=_fingerprint,
        canonical=bytes.lower,
    ),
    BufferInfo("tls.certs", TLS, None, _T, multiple=True),
    BufferInfo("tls.subjectaltname", TLS, None, _T, multiple=True),
    BufferInfo("tls.alpn", TLS, None, _T, multiple=True),
    BufferInfo("tls.random", TLS, None, _T),
    BufferInfo("tls.random_time", TLS, None, _T),
    BufferInfo("tls.random_bytes", TLS, None, _T),
    BufferInfo("ja3.hash", JA3, TO_SERVER, _J, aliases=("ja3_hash",), refuses=_ja3, canonical=bytes.lower),
    BufferInfo("ja3.string", JA3, TO_SERVER, _J, aliases=("ja3_string",)),
    BufferInfo("ja3s.hash", JA3, TO_CLIENT, _J, refuses=_ja3, canonical=bytes.lower),
    BufferInfo("ja3s.string", JA3, TO_CLIENT, _J),
    BufferInfo("ja4.hash", JA3, TO_SERVER, _J, aliases=("ja4_hash",)),
    BufferInfo("quic.sni", QUIC, TO_SERVER, _Q),
    BufferInfo("quic.version", QUIC, None, _Q),
    BufferInfo("websocket.payload", frozenset({"websocket"}), None, "websocket-keywords.html"),
    BufferInfo("dns.query", DNS, TO_SERVER, _D, multiple=True, aliases=("dns_query",)),
    BufferInfo("dns.queries.rrname", DNS, None, _D, multiple=True),
    BufferInfo("dns.answers.rrname", DNS, TO_CLIENT, _D, multiple=True, aliases=("dns.answer.name",)),
    BufferInfo("dns.authorities.rrname", DNS, TO_CLIENT, _D, multiple=True),
    BufferInfo("dns.additionals.rrname", DNS, None, _D, multiple=True),
    BufferInfo("dns.response.rrname", DNS, TO_CLIENT, _D, multiple=True),
    *(
        BufferInfo(f"{proto}.{name}.rrname", frozenset({proto}), None, page, multiple=True)
        for proto, page in (("mdns", "mdns-keywords.html"), ("llmnr", "index.html"))
        for name in ("queries", "answers", "authorities", "additionals", "response")
    ),
    BufferInfo("ssh.proto", SSH, None, _S, aliases=("ssh_proto",)),
    BufferInfo("ssh.software", SSH, None, _S, aliases=("ssh_software",)),
    BufferInfo("ssh.hassh", SSH, TO_SERVER, _S),
    BufferInfo("ssh.hassh.string", SSH, TO_SERVER, _S),
    BufferInfo("ssh.hassh.server", SSH, TO_CLIENT, _S),
    BufferInfo("ssh.hassh.server.string", SSH, TO_CLIENT, _S),
    BufferInfo("smtp.helo", SMTP, TO_SERVER, "smtp-keywords.html"),
    BufferInfo("smtp.mail_from", SMTP, TO_SERVER, "smtp-keywords.html"),
    BufferInfo("smtp.rcpt_to", SMTP, TO_SERVER, "smtp-keywords.html", multiple=True),
    BufferInfo("dcerpc.stub_data", DCERPC, None, "dcerpc-keywords.html", aliases=("dce_stub_data",)),
    BufferInfo("sip.method", SIP, TO_SERVER, _I),
    BufferInfo("sip.uri", SIP, TO_SERVER, _I),
    BufferInfo("sip.request_line", SIP, TO_SERVER, _I),
    BufferInfo("sip.response_line", SIP, TO_CLIENT, _I),
    BufferInfo("sip.stat_code", SIP, TO_CLIENT, _I),
    BufferInfo("sip.stat_msg", SIP, TO_CLIENT, _I),
    BufferInfo("sip.protocol", SIP, None, _I),
    BufferInfo("sip.from", SIP, None, _I, multiple=True),
    BufferInfo("sip.to", SIP, None, _I, multiple=True),
    BufferInfo("sip.via", SIP, None, _I, multiple=True),
    BufferInfo("sip.user_agent", SIP, None, _I, multiple=True),
    BufferInfo("sip.content_type", SIP, None, _I, multiple=True),
    BufferInfo("sip.content_length", SIP, None, _I, multiple=True),
    *(
        BufferInfo(f"mqtt.{name}", MQTT, None, "mqtt-keywords.html", multiple=True)
        for name in (
            "connect.clientid",
            "connect.username",
            "connect.password",
            "connect.willtopic",
            "connect.willmessage",
            "connect.protocol_string",
            "publish.topic",
            "publish.message",
            "subscribe.topic",
            "unsubscribe.topic",
        )
    ),
    BufferInfo("krb5.cname", KRB5, TO_CLIENT, "kerberos-keywords.html", multiple=True, aliases=("krb5_cname",)),
    BufferInfo("krb5.sname", KRB5, TO_CLIENT, "kerberos-keywords.html", multiple=True, aliases=("krb5_sname",)),
    *(
        BufferInfo(f"ldap.{name}", LDAP, TO_SERVER if name.startswith("request") else TO_CLIENT, _L, multiple=True)
        for name in (
            "request.dn",
            "request.attribute_type",
            "request.attributes",
            "responses.dn",
            "responses.message",
            "responses.attribute_type",
            "responses.attributes",
        )
    ),
    BufferInfo("pgsql.query", PGSQL, TO_SERVER, "pgsql-keywords.html"),
    BufferInfo("snmp.community", SNMP, None, "snmp-keywords.html"),
    BufferInfo("snmp.usm", SNMP, None, "snmp-keywords.html"),
    BufferInfo("ike.init_spi", IKE, TO_SERVER, "ike-keywords.html"),
    BufferInfo("ike.resp_spi", IKE, TO_CLIENT, "ike-keywords.html"),
    BufferInfo("ike.vendor", IKE, TO_SERVER, "ike-keywords.html", multiple=True),
    BufferInfo("ike.key_exchange_payload", IKE, None, "ike-keywords.html"),
    BufferInfo("ike.nonce_payload", IKE, None, "ike-keywords.html"),
    BufferInfo("rfb.name", RFB, TO_CLIENT, "rfb-keywords.html"),
    BufferInfo("ntp.reference_id", NTP, None, "ntp-keywords.html"),
    BufferInfo("smb.named_pipe", SMB, TO_SERVER, "smb-keywords.html", aliases=("smb_named_pipe",)),
    BufferInfo("smb.share", SMB, TO_SERVER, "smb-keywords.html", aliases=("smb_share",)),
    BufferInfo("smb.ntlmssp_user", SMB, TO_SERVER, "smb-keywords.html"),
    BufferInfo("smb.ntlmssp_domain", SMB, TO_SERVER, "smb-keywords.html"),
    BufferInfo("ftp.command", FTP, TO_SERVER, _P),
    BufferInfo("ftp.command_data", FTP, TO_SERVER, _P),
    BufferInfo("ftp.reply", FTP, TO_CLIENT, _P, multiple=True),
    BufferInfo("ftp.completion_code", FTP, TO_CLIENT, _P, multiple=True),
    BufferInfo("email.from", SMTP, TO_SERVER, _M),
    BufferInfo("email.to", SMTP, TO_SERVER, _M),
    BufferInfo("email.cc", SMTP, TO_SERVER, _M),
    BufferInfo("email.subject", SMTP, TO_SERVER, _M),
    BufferInfo("email.date", SMTP, TO_SERVER, _M),
    BufferInfo("email.message_id", SMTP, TO_SERVER, _M),
    BufferInfo("email.x_mailer", SMTP, TO_SERVER, _M),
    BufferInfo("email.url", SMTP, TO_SERVER, _M, multiple=True),
    BufferInfo("email.received", SMTP, TO_SERVER, _M, multiple=True),
)

# Not selected by a keyword of their own, but filled by one with a value (see keywords.app).
_VALUES: tuple[BufferInfo, ...] = (
    BufferInfo("dns.opcode", DNS, None, _D),
    BufferInfo("dns.rcode", DNS, None, _D),
    BufferInfo("dns.rrtype", DNS, None, _D, multiple=True),
    BufferInfo("tls.version", TLS, None, _T),
    BufferInfo("tls.cert_notbefore", TLS, None, _T),
    BufferInfo("tls.cert_notafter", TLS, None, _T),
    BufferInfo("tls.cert_chain_len", TLS, None, _T),
    BufferInfo("websocket.opcode", frozenset({"websocket"}), None, "websocket-keywords.html"),
    BufferInfo("websocket.flags", frozenset({"websocket"}), None, "websocket-keywords.html"),
    BufferInfo("websocket.mask", frozenset({"websocket"}), None, "websocket-keywords.html"),
    BufferInfo("dcerpc.iface", DCERPC, None, "dcerpc-keywords.html"),
    BufferInfo("dcerpc.opnum", DCERPC, None, "dcerpc-keywords.html"),
    BufferInfo("file.md5", FILES, None, _F, multiple=True),
    BufferInfo("file.sha1", FILES, None, _F, multiple=True),
    BufferInfo("file.sha256", FILES, None, _F, multiple=True),
    *(
        BufferInfo(f"mqtt.{name}", MQTT, None, "mqtt-keywords.html", multiple=True)
        for name in (
            "type",
            "flags",
            "qos",
            "reason_code",
            "protocol_version",
            "connect.flags",
            "connack.session_present",
        )
    ),
    *(
        BufferInfo(name, KRB5, None, "kerberos-keywords.html")
        for name in ("krb5_msg_type", "krb5_err_code", "krb5.ticket_encryption")
    ),
    BufferInfo("ldap.request.operation", LDAP, TO_SERVER, _L),
    *(
        BufferInfo(f"ldap.responses.{name}", LDAP, TO_CLIENT, _L, multiple=True)
        for name in ("operation", "count", "result_code")
    ),
    *(BufferInfo(f"snmp.{name}", SNMP, None, "snmp-keywords.html") for name in ("version", "pdu_type", "trap_type")),
    BufferInfo("ike.chosen_sa_attribute", IKE, TO_CLIENT, "ike-keywords.html", multiple=True),
    *(
        BufferInfo(f"ike.{name}", IKE, None, "ike-keywords.html")
        for name in ("exchtype", "key_exchange_payload_length", "nonce_payload_length")
    ),
    BufferInfo("nfs_procedure", NFS, TO_SERVER, "nfs-keywords.html", multiple=True),
    BufferInfo("nfs_version", NFS, TO_SERVER, "nfs-keywords.html"),
    BufferInfo("rfb.sectype", RFB, TO_SERVER, "rfb-keywords.html"),
    BufferInfo("rfb.secresult", RFB, TO_CLIENT, "rfb-keywords.html"),
    *(BufferInfo(f"ntp.{name}", NTP, None, "ntp-keywords.html") for name in ("version", "mode", "stratum")),
    BufferInfo("smb.version", SMB, None, "smb-keywords.html"),
    BufferInfo("ftp.dynamic_port", FTP, None, _P),
    BufferInfo("ftp.mode", FTP, None, _P),
    BufferInfo("ftp.reply_received", FTP, TO_CLIENT, _P),
    BufferInfo("ftpbounce", FTP, TO_SERVER, _P),
    BufferInfo("ftpdata_command", frozenset({"ftp-data"}), None, _P),
    BufferInfo("ssl_version", TLS, None, _T),
    BufferInfo("ssl_state", TLS, None, _T, multiple=True),
    *(
        BufferInfo(name, HTTP1 if proto == "http1" else frozenset({proto}), None, "intro.html", multiple=True)
        for name, proto in frames.BUFFERS.items()
    ),
    *(BufferInfo(name, HTTP2, None, "http2-keywords.html", multiple=True) for name in sorted(http2_frames.NAMES)),
)

BUFFERS: dict[str, BufferInfo] = {info.name: info for info in (*_TABLE, *_VALUES)}
PAYLOAD_RANK = 3


def rank(buffer: str) -> int:
    """How late a buffer comes in the choice of the fast pattern."""
    return BUFFERS[buffer].rank if buffer in BUFFERS else PAYLOAD_RANK


def _select(info: BufferInfo, keyword: str) -> Callable[[RuleDraft, str | None], None]:
    def parse(draft: RuleDraft, value: str | None) -> None:
        draft.require_app(keyword, info.protos)
        draft.select(info.name, multiple=info.multiple)

    return parse


def _modify(info: BufferInfo, keyword: str) -> Callable[[RuleDraft, str | None], None]:
    def parse(draft: RuleDraft, value: str | None) -> None:
        draft.require_app(keyword, info.protos)
        draft.move_last(keyword, info.name)

    return parse


def _pkt_data(draft: RuleDraft, value: str | None) -> None:
    draft.select(PAYLOAD, multiple=False)


def _base64_data(draft: RuleDraft, value: str | None) -> None:
    if not any(isinstance(item, Base64Decode) for buffer in draft.buffers for item in buffer.items):
        raise KeywordError("base64_data needs a base64_decode before it", in_value=False)
    draft.select(BASE64_DATA, multiple=False)


def _keywords() -> list[Keyword]:
    table = [
        Keyword(
            "pkt_data", "back to the packet payload and stream", "payload-keywords.html", Kind.BUFFER, _pkt_data, False
        ),
        Keyword(
            "base64_data",
            "the bytes base64_decode made",
            "base64-keywords.html#base64-data",
            Kind.BUFFER,
            _base64_data,
            False,
        ),
    ]
    for info in _TABLE:
        anchor = info.page + "#" + info.name.replace(".", "-").replace("_", "-")
        for name in (info.name, *info.aliases):
            summary = f"the buffer {info.name}" + ("" if name == info.name else " (old name)")
            table.append(Keyword(name, summary, anchor, Kind.BUFFER, _select(info, name), False))
        if info.modifier:
            summary = f"moves the content before it to {info.name} (old form)"
            table.append(Keyword(info.modifier, summary, anchor, Kind.MODIFIER, _modify(info, info.modifier), False))
    return table


KEYWORDS = _keywords()
