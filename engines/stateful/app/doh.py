"""DNS over HTTPS: the DNS message a request or a response carries, so that dns.* rules see it (Suricata: ``doh2``).

Source: RFC 8484, sections 4.1 and 6.
"""

from __future__ import annotations

import binascii
import re
from base64 import urlsafe_b64decode

from engines.stateful.app.dns import DnsTransaction, parse_message
from engines.stateful.app.http_transaction import Head
from engines.stateful.app.limits import AppLimits
from engines.verdict import Direction

MEDIA_TYPE = b"application/dns-message"
MAX_MESSAGE = 65535
"""Bytes of a DNS message; a longer body is none."""
_PARAMETER = re.compile(rb"[?&]dns=([^&#]*)")


def carries_message(head: Head) -> bool:
    """Whether the body of this message is DNS."""
    value = head.value(b"content-type") or b""
    return value.partition(b";")[0].strip().lower() == MEDIA_TYPE


def message_in_target(head: Head) -> bytes | None:
    """The message in the target of a GET request that accepts DNS for an answer; None when there is none."""
    found = _PARAMETER.search(head.second)
    if found is None or MEDIA_TYPE not in (head.value(b"accept") or b"").lower():
        return None
    encoded = found[1].rstrip(b"=")
    try:
        return urlsafe_b64decode(encoded + b"=" * (-len(encoded) % 4))
    except (binascii.Error, ValueError):
        return None


def read_message(data: bytes, direction: Direction, limits: AppLimits) -> DnsTransaction:
    """Never raises; what is wrong with the message is in its events."""
    tx = DnsTransaction(0, direction)
    parse_message(tx, data, limits)
    return tx
