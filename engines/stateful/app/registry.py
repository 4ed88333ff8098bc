"""Which parser reads which protocol. Protocols that are only recognised by name have none and stay raw streams."""

from __future__ import annotations

from collections.abc import Callable

from engines.stateful.app import AppParser
from engines.stateful.app.dcerpc import DcerpcParser
from engines.stateful.app.dns import DnsParser
from engines.stateful.app.ftp import FtpDataParser, FtpParser
from engines.stateful.app.http1 import Http1Parser
from engines.stateful.app.http2 import Http2Parser
from engines.stateful.app.ike import IkeParser
from engines.stateful.app.krb5 import Krb5Parser
from engines.stateful.app.ldap import LdapParser
from engines.stateful.app.limits import AppLimits
from engines.stateful.app.mqtt import MqttParser
from engines.stateful.app.nfs import NfsParser
from engines.stateful.app.ntp import NtpParser
from engines.stateful.app.pgsql import PgsqlParser
from engines.stateful.app.quic import QuicParser
from engines.stateful.app.rfb import RfbParser
from engines.stateful.app.sip import SipParser
from engines.stateful.app.smb import SmbParser
from engines.stateful.app.smtp import SmtpParser
from engines.stateful.app.snmp import SnmpParser
from engines.stateful.app.ssh import SshParser
from engines.stateful.app.tls import TlsParser
from engines.stateful.app.websocket import WebSocketParser

Factory = Callable[[AppLimits, bool], AppParser]


def _dns_datagrams(limits: AppLimits, hold_body: bool) -> AppParser:
    return DnsParser(limits, hold_body, udp=True)


def _local_names(name: str, udp: bool) -> Factory:
    return lambda limits, hold_body: DnsParser(limits, hold_body, udp, name)


def _krb5_datagrams(limits: AppLimits, hold_body: bool) -> AppParser:
    return Krb5Parser(limits, hold_body, udp=True)


def _ldap_datagrams(limits: AppLimits, hold_body: bool) -> AppParser:
    return LdapParser(limits, hold_body, udp=True)


def _nfs_datagrams(limits: AppLimits, hold_body: bool) -> AppParser:
    return NfsParser(limits, hold_body, udp=True)


def _sip_datagrams(limits: AppLimits, hold_body: bool) -> AppParser:
    return SipParser(limits, hold_body, udp=True)


# Over TCP, and over the plaintext of a decrypted TLS session.
PARSERS: dict[str, Factory] = {
    "http": Http1Parser,
    "http2": Http2Parser,
    "dns": DnsParser,
    "tls": TlsParser,
    "ssh": SshParser,
    "sip": SipParser,
    "smb": SmbParser,
    "smtp": SmtpParser,
    "dcerpc": DcerpcParser,
    "ftp": FtpParser,
    "ftp-data": FtpDataParser,
    "websocket": WebSocketParser,
    "mqtt": MqttParser,
    "krb5": Krb5Parser,
    "ldap": LdapParser,
    "nfs": NfsParser,
    "pgsql": PgsqlParser,
    "rfb": RfbParser,
    "llmnr": _local_names("llmnr", False),
}

# Over UDP: one feed is one datagram.
UDP_PARSERS: dict[str, Factory] = {
    "dns": _dns_datagrams,
    "llmnr": _local_names("llmnr", True),
    "mdns": _local_names("mdns", True),
    "krb5": _krb5_datagrams,
    "ldap": _ldap_datagrams,
    "ike": IkeParser,
    "nfs": _nfs_datagrams,
    "snmp": SnmpParser,
    "ntp": NtpParser,
    "quic": QuicParser,
    "sip": _sip_datagrams,
}
