"""Conditions on SNMP. Source: Suricata user guide, "SNMP Keywords"."""

from __future__ import annotations

from engines.stateful.app.snmp import PDU_TYPES, TRAP_TYPES
from engines.stateful.keywords.base import Keyword, Kind
from engines.stateful.keywords.integers import number

_PAGE = "snmp-keywords.html"

KEYWORDS = [
    Keyword("snmp.version", "1 to 3", f"{_PAGE}#snmp-version", Kind.APP, number("snmp.version")),
    Keyword(
        "snmp.pdu_type",
        "what a message asks or says",
        f"{_PAGE}#snmp-pdu-type",
        Kind.APP,
        number("snmp.pdu_type", 255, PDU_TYPES),
    ),
    Keyword(
        "snmp.trap_type",
        "what a trap of version 1 is about",
        f"{_PAGE}#snmp-trap-type",
        Kind.APP,
        number("snmp.trap_type", 255, TRAP_TYPES),
    ),
]
