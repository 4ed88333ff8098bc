"""Conditions on SNMP. Source: Suricata user guide, "SNMP Keywords"."""

from __future__ import annotations

from engines.stateful.app.snmp import PDU_TYPES, TRAP_TYPES
from engines.stateful.keywords.base import Keyword, Kind
from engines.stateful.keywords.integers import number

_PAGE = "snmp-keywords.html"
_PDUS = {name: value for value, name in enumerate(PDU_TYPES)}
_TRAPS = {name: value for value, name in enumerate(TRAP_TYPES)}

KEYWORDS = [
    Keyword("snmp.version", "1, 2 or 3", f"{_PAGE}#snmp-version", Kind.APP, number("snmp.version")),
    Keyword("snmp.pdu_type", "what is asked", f"{_PAGE}#snmp-pdu-type", Kind.APP, number("snmp.pdu_type", names=_PDUS)),
    Keyword(
        "snmp.trap_type",
        "the generic trap of version 1",
        f"{_PAGE}#snmp-trap-type",
        Kind.APP,
        number("snmp.trap_type", 255, _TRAPS),
    ),
]
