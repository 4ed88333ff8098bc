"""Conditions on FTP that are no text buffers. Source: Suricata user guide, "FTP/FTP-DATA Keywords".

The bytes the buffers behind them must hold (what the application parsers produce): ``ftp.dynamic_port`` two bytes, big
endian; ``ftp.mode`` active or passive; ``ftp.reply_received`` and ``ftpbounce`` 1 or 0; ``ftpdata_command`` the command
in lower case.
"""

from __future__ import annotations

from collections.abc import Callable

from engines.stateful.app.ftp import TRANSFERS
from engines.stateful.keywords.base import Keyword, KeywordError, Kind, int_test, required, unquote
from engines.stateful.keywords.buffers import BUFFERS
from engines.stateful.keywords.draft import RuleDraft
from engines.stateful.match import IntegerValue, OneOf, StepMatcher

_PAGE = "ftp-keywords.html"
_YES_OR_NO = dict.fromkeys(("yes", "true", "on", "1"), b"1") | dict.fromkeys(("no", "false", "off", "0"), b"0")


def _into(draft: RuleDraft, keyword: str, matcher: StepMatcher) -> None:
    draft.require_app(keyword, BUFFERS[keyword].protos)
    draft.buffer(keyword).add(matcher)


def _dynamic_port(draft: RuleDraft, value: str | None) -> None:
    test = int_test(required(value, "a port"), "ftp.dynamic_port", 65535)
    _into(draft, "ftp.dynamic_port", IntegerValue(test.test))


def _choice(keyword: str, choices: dict[str, bytes]) -> Callable[[RuleDraft, str | None], None]:
    def parse(draft: RuleDraft, value: str | None) -> None:
        text = unquote(required(value, f"one of {', '.join(choices)}")).strip().lower()
        if text not in choices:
            raise KeywordError(f"{keyword}: expected one of {', '.join(sorted(choices))}, found {value!r}")
        draft.once(keyword)
        _into(draft, keyword, OneOf(frozenset({choices[text]})))

    return parse


def _bounce(draft: RuleDraft, value: str | None) -> None:
    _into(draft, "ftpbounce", OneOf(frozenset({b"1"})))


_MODES = {"active": b"active", "passive": b"passive"}
_COMMANDS = {command.decode().lower(): command.lower() for command in TRANSFERS}
KEYWORDS = [
    Keyword("ftp.dynamic_port", "the port of the next transfer", f"{_PAGE}#ftp-dynamic-port", Kind.APP, _dynamic_port),
    Keyword("ftp.mode", "who opens the next transfer", f"{_PAGE}#ftp-mode", Kind.APP, _choice("ftp.mode", _MODES)),
    Keyword(
        "ftp.reply_received",
        "whether a command was answered",
        f"{_PAGE}#ftp-reply-received",
        Kind.APP,
        _choice("ftp.reply_received", _YES_OR_NO),
    ),
    Keyword("ftpbounce", "PORT names another host", f"{_PAGE}#ftpbounce", Kind.APP, _bounce, False),
    Keyword(
        "ftpdata_command",
        "the command a transfer belongs to",
        f"{_PAGE}#ftpdata-command",
        Kind.APP,
        _choice("ftpdata_command", _COMMANDS),
    ),
]
