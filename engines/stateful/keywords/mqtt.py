"""Conditions on MQTT. Source: Suricata user guide, "MQTT Keywords".

What the buffers behind them hold says :mod:`engines.stateful.app.mqtt`. That one packet fits is enough.
"""

from __future__ import annotations

from collections.abc import Callable

from engines.stateful.app.mqtt import TYPES
from engines.stateful.keywords.base import Keyword, KeywordError, Kind, int_test, required, unquote
from engines.stateful.keywords.draft import RuleDraft
from engines.stateful.keywords.integers import add_condition, number
from engines.stateful.match import IntegerValue

_PAGE = "mqtt-keywords.html"
_TYPES = {name.lower(): number for number, name in enumerate(TYPES)}
_FLAGS = {"dup": 0x8, "retain": 0x1}
_CONNECT_FLAGS = {"username": 0x80, "password": 0x40, "will_retain": 0x20, "will": 0x04, "clean_session": 0x02}
_YES = {"true": 1, "yes": 1, "false": 0, "no": 0}


def _flags(keyword: str, known: dict[str, int]) -> Callable[[RuleDraft, str | None], None]:
    """Names of flags: those that must be set and, with ``!``, those that must not; or a number."""

    def parse(draft: RuleDraft, value: str | None) -> None:
        text = unquote(required(value, f"flags of {', '.join(known)}"))
        names = [name.strip().lower() for name in text.split(",")]
        unknown = [name for name in names if name.lstrip("! ") not in known]
        if len(names) == 1 and unknown and not text.lstrip("!").isidentifier():
            add_condition(draft, keyword, IntegerValue(int_test(text, keyword, 255).test))
            return
        if unknown:
            raise KeywordError(f"{keyword}: expected flags of {', '.join(known)}, found {unknown[0]!r}")
        wanted = sum(known[name] for name in set(names) if not name.startswith("!"))
        unwanted = sum(known[name.lstrip("! ")] for name in set(names) if name.startswith("!"))
        add_condition(draft, keyword, IntegerValue(lambda flags: flags & wanted == wanted and not flags & unwanted))

    return parse


def _keyword(name: str, summary: str, parse: Callable[[RuleDraft, str | None], None]) -> Keyword:
    return Keyword(name, summary, f"{_PAGE}#{name.replace('.', '-').replace('_', '-')}", Kind.APP, parse)


KEYWORDS = [
    _keyword("mqtt.type", "the type of a packet", number("mqtt.type", 15, _TYPES)),
    _keyword("mqtt.flags", "whether a packet is repeated or to be kept", _flags("mqtt.flags", _FLAGS)),
    _keyword("mqtt.qos", "the quality of service", number("mqtt.qos", 2)),
    _keyword("mqtt.reason_code", "what an answer says", number("mqtt.reason_code", 255)),
    _keyword("mqtt.protocol_version", "3 to 5", number("mqtt.protocol_version", 255)),
    _keyword("mqtt.connect.flags", "what a client says of itself", _flags("mqtt.connect.flags", _CONNECT_FLAGS)),
    _keyword(
        "mqtt.connack.session_present",
        "whether the server knows the client",
        number("mqtt.connack.session_present", 1, _YES),
    ),
]
