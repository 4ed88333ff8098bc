"""Helpers for the tests of the rule language."""

from __future__ import annotations

from engines.stateful.parser import ParsedRules, Variables, parse_rules
from engines.stateful.signature import Signature

VARIABLES = Variables(
    addresses={"HOME_NET": "[10.0.0.0/8,fd00::/8]", "EXTERNAL_NET": "!$HOME_NET", "SERVERS": ["10.1.0.1", "$HOME_NET"]},
    ports={"HTTP_PORTS": "[80,8080:8089]"},
)


def parse(text: str) -> ParsedRules:
    return parse_rules(text, "t.rules", VARIABLES)


def rule(options: str, header: str = "alert tcp any any -> any any") -> Signature:
    """The one signature of a rule with these options (sid 1 added)."""
    found = parse(f"{header} ({options} sid:1;)")
    assert not found.errors, [str(e) for e in found.errors]
    (signature,) = found.signatures
    return signature


def refusal(options: str, header: str = "alert tcp any any -> any any") -> str:
    """Why a rule with these options is refused."""
    found = parse(f"{header} ({options} sid:1;)")
    assert not found.signatures, "the rule was accepted"
    (error,) = found.errors
    return error.message
