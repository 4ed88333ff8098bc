"""Conditions on HTTP/2 frames. Source: Suricata user guide, "HTTP2 Keywords".

What the buffers behind them hold says :mod:`engines.stateful.app.http2_frames`. That one instance fits is enough.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from engines.stateful.keywords.base import Keyword, KeywordError, Kind, int_test, required, unquote
from engines.stateful.keywords.draft import RuleDraft
from engines.stateful.keywords.integers import add_condition, number
from engines.stateful.match import IntegerValue

_PAGE = "http2-keywords.html"
_TYPE_NAMES = "data headers priority rststream settings pushpromise ping goaway windowupdate continuation"
_TYPES = {name: number for number, name in enumerate(_TYPE_NAMES.split())}
_ERROR_NAMES = (
    "no_error protocol_error internal_error flow_control_error settings_timeout stream_closed frame_size_error "
    "refused_stream cancel compression_error connect_error enhance_your_calm inadequate_security http_1_1_required"
)
_ERRORS = {name: number for number, name in enumerate(_ERROR_NAMES.split())}
_SETTING_NAMES = (
    "header_table_size enable_push max_concurrent_streams initial_window_size max_frame_size max_header_list_size"
)
_SETTINGS = {f"settings_{name}": number for number, name in enumerate(_SETTING_NAMES.split(), start=1)}
_SETTING = re.compile(r"\s*(\w+)\s*(.*)", re.DOTALL)
_VALUE = 0xFFFFFFFF


def _settings(draft: RuleDraft, value: str | None) -> None:
    """``NAME``, or a name and a condition on its value: ``SETTINGS_ENABLE_PUSH=0``."""
    text = unquote(required(value, "the name of a setting"))
    parts = _SETTING.fullmatch(text)
    setting = _SETTINGS.get(parts[1].lower()) if parts else None
    if parts is None or setting is None:
        raise KeywordError(f"http2.settings: expected one of {', '.join(_SETTINGS).upper()}, found {text!r}")
    allowed = int_test(parts[2], "http2.settings").test if parts[2] else None
    test = IntegerValue(lambda seen: seen >> 32 == setting and (allowed is None or allowed(seen & _VALUE)))
    add_condition(draft, "http2.settings", test)


def _keyword(name: str, summary: str, parse: Callable[[RuleDraft, str | None], None]) -> Keyword:
    return Keyword(name, summary, f"{_PAGE}#{name.replace('.', '-').replace('_', '-')}", Kind.APP, parse)


KEYWORDS = [
    _keyword("http2.frametype", "the type of a frame", number("http2.frametype", 255, _TYPES)),
    _keyword("http2.errorcode", "why a stream or the connection ends", number("http2.errorcode", _VALUE, _ERRORS)),
    _keyword("http2.priority", "the weight of a stream", number("http2.priority", 255)),
    _keyword("http2.window", "what a window grows by", number("http2.window", _VALUE)),
    _keyword("http2.size_update", "the size of the table of header fields", number("http2.size_update", _VALUE)),
    _keyword("http2.settings", "a setting of the connection", _settings),
]
