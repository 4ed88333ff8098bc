"""The keywords of the rule language: one small module per family, one table of them all.

Adding a keyword touches the module of its family and its test; the list of keywords is printed from ``KEYWORDS``.
"""

from __future__ import annotations

from engines.stateful.keywords import (
    action,
    app,
    buffers,
    byteops,
    content,
    dcerpc,
    files,
    flow,
    frame,
    ftp,
    geoip,
    headers,
    http2,
    ike,
    krb5,
    ldap,
    meta,
    mqtt,
    nfs,
    ntp,
    packetbuffers,
    packetevents,
    regex,
    rfb,
    sizes,
    smb,
    snmp,
    transforms,
    unparsed,
)
from engines.stateful.keywords.base import Keyword
from engines.stateful.keywords.unsupported import UNSUPPORTED

__all__ = ["KEYWORDS", "UNSUPPORTED", "Keyword"]

_FAMILIES = (
    meta,
    flow,
    content,
    dcerpc,
    regex,
    sizes,
    smb,
    byteops,
    buffers,
    transforms,
    app,
    files,
    frame,
    ftp,
    headers,
    http2,
    ike,
    krb5,
    ldap,
    mqtt,
    nfs,
    ntp,
    rfb,
    snmp,
    geoip,
    packetbuffers,
    packetevents,
    action,
    unparsed,
)

KEYWORDS: dict[str, Keyword] = {row.name: row for family in _FAMILIES for row in family.KEYWORDS}
assert len(KEYWORDS) == sum(len(family.KEYWORDS) for family in _FAMILIES), "a keyword is in the table twice"
