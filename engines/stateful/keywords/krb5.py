"""Conditions on Kerberos 5. Source: Suricata user guide, "Kerberos Keywords"."""

from __future__ import annotations

import re

from engines.stateful.app.krb5 import STRONG
from engines.stateful.keywords.base import Keyword, KeywordError, Kind, integer, required, unquote
from engines.stateful.keywords.draft import RuleDraft
from engines.stateful.keywords.integers import add_condition, number
from engines.stateful.match import IntegerValue

_PAGE = "kerberos-keywords.html"
# RFC 3961 section 8 and what came after it.
_ENCRYPTIONS = {
    "des-cbc-crc": 1, "des-cbc-md4": 2, "des-cbc-md5": 3, "des3-cbc-md5": 5, "des3-cbc-sha1": 7,
    "dsawithsha1-cmsoid": 9, "md5withrsaencryption-cmsoid": 10, "sha1withrsaencryption-cmsoid": 11, "rc2cbc-envoid": 12,
    "rsaencryption-envoid": 13, "rsaes-oaep-env-oid": 14, "des-ede3-cbc-env-oid": 15, "des3-cbc-sha1-kd": 16,
    "aes128-cts-hmac-sha1-96": 17, "aes256-cts-hmac-sha1-96": 18, "aes128-cts-hmac-sha256-128": 19,
    "aes256-cts-hmac-sha384-192": 20, "rc4-hmac": 23, "rc4-hmac-exp": 24, "camellia128-cts-cmac": 25,
    "camellia256-cts-cmac": 26, "subkey-keymaterial": 65,
}  # fmt: skip
_NONE = 0xFFFFFFFF


def _encryption(draft: RuleDraft, value: str | None) -> None:
    """``weak``, or names and numbers with commas or spaces between; ``!`` before it all turns it round."""
    text = unquote(required(value, "weak, or names of encryption types")).lower()
    negated = text.startswith("!")
    text = text.lstrip("! ")
    if text == "weak":
        add_condition(draft, "krb5.ticket_encryption", IntegerValue(lambda kind: (kind in STRONG) == negated))
        return
    kinds = set()
    for name in re.split(r"[,\s]+", text):
        if name in _ENCRYPTIONS:
            kinds.add(_ENCRYPTIONS[name])
        elif name.lstrip("-").isdigit():
            kinds.add(integer(name, "krb5.ticket_encryption", -(1 << 31), (1 << 31) - 1) & _NONE)
        else:
            raise KeywordError(f"krb5.ticket_encryption: expected weak, a number or a name, found {name!r}")
    add_condition(draft, "krb5.ticket_encryption", IntegerValue(lambda kind: (kind in kinds) != negated))


KEYWORDS = [
    Keyword("krb5_msg_type", "the type of a message", f"{_PAGE}#krb5-msg-type", Kind.APP, number("krb5_msg_type", 255)),
    Keyword("krb5_err_code", "why something was refused", f"{_PAGE}#krb5-err-code", Kind.APP, number("krb5_err_code")),
    Keyword(
        "krb5.ticket_encryption",
        "how a ticket is encrypted",
        f"{_PAGE}#krb5-ticket-encryption",
        Kind.APP,
        _encryption,
    ),
]
