"""Keywords of protocols and files that no parser here reads: taken, checked for their shape, and said to never match.

A rule that uses one loads with a warning, ``never matches: ...``, and is left out when rules are compiled. So a rule
file meant for a larger installation loads whole, and nobody believes such a rule to be at work.
Source: Suricata user guide, the pages of the protocols.
"""

from __future__ import annotations

from collections.abc import Callable

from engines.stateful.keywords.base import Keyword, Kind
from engines.stateful.keywords.draft import RuleDraft

# What each protocol's keywords are; a buffer takes contents after it.
_BUFFERS: dict[str, str] = {
    "dnp3": "dnp3_data dnp3.data",
    "enip": "enip.product_name enip.service_name enip.capabilities",
    "quic": "quic.ua quic.cyu.hash quic.cyu.string",
    "sip": "sdp.session_name sdp.session_info sdp.origin sdp.uri sdp.email sdp.phone_number sdp.connection_data "
    "sdp.bandwidth sdp.time sdp.repeat_time sdp.timezone sdp.encryption_key sdp.attribute sdp.media.media "
    "sdp.media.media_info sdp.media.connection_data sdp.media.encryption_key",
}
_VALUES: dict[str, str] = {
    "dnp3": "dnp3_func dnp3_ind dnp3_obj dnp3.func dnp3.ind dnp3.obj",
    "dhcp": "dhcp.leasetime dhcp.rebinding_time dhcp.renewal_time",
    "enip": "cip_service enip_command enip.command enip.status enip.protocol_version enip.cip_status "
    "enip.cip_attribute enip.cip_instance enip.cip_class enip.cip_extendedstatus enip.revision enip.identity_status "
    "enip.state enip.serial enip.product_code enip.device_type enip.vendor_id",
    "modbus": "modbus",
    "tls": "tls_cert_valid tls_cert_expired",
}


def _buffer(name: str, proto: str) -> Callable[[RuleDraft, str | None], None]:
    def parse(draft: RuleDraft, value: str | None) -> None:
        draft.require_app(name, frozenset({proto}))
        draft.never(f"no parser for {name}")
        draft.select(name, multiple=True)

    return parse


def _value(name: str, proto: str) -> Callable[[RuleDraft, str | None], None]:
    def parse(draft: RuleDraft, value: str | None) -> None:
        draft.require_app(name, frozenset({proto}))
        draft.never(f"no parser for {name}")

    return parse


def _page(proto: str) -> str:
    return f"{proto}-keywords.html"


_NEVER = "{}; loads, but never matches: no parser for it"
KEYWORDS = [
    *(
        Keyword(name, _NEVER.format(f"a buffer of {proto}"), _page(proto), Kind.BUFFER, _buffer(name, proto), False)
        for proto, names in _BUFFERS.items()
        for name in names.split()
    ),
    *(
        Keyword(name, _NEVER.format(f"a value of {proto}"), _page(proto), Kind.APP, _value(name, proto), None)
        for proto, names in _VALUES.items()
        for name in names.split()
    ),
]
NAMES = frozenset(row.name for row in KEYWORDS)
