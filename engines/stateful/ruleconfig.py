"""What rules refer to besides variables: ``classification.config``, ``reference.config``, countries of addresses.

Source: Suricata user guide, "Meta keywords", classtype and reference. One entry a line::

    config classification: web-application-attack,Web Application Attack,1
    config reference: cve https://cve.mitre.org/cgi-bin/cvename.cgi?name=

Names are case-insensitive; of an entry given twice the first counts. Without a file what Suricata installs holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from engines.stateful.signature import RuleError

DEFAULT_PRIORITY = 3
MAX_PRIORITY = 255
MAX_LINE = 8192  # characters, as of a rule


class RuleClass(NamedTuple):
    """What a classtype stands for. Priority 1 is the most important."""

    description: str
    priority: int


CLASSES: Mapping[str, RuleClass] = {
    "attempted-admin": RuleClass("Attempted Administrator Privilege Gain", 1),
    "attempted-dos": RuleClass("Attempted Denial of Service", 2),
    "attempted-recon": RuleClass("Attempted Information Leak", 2),
    "attempted-user": RuleClass("Attempted User Privilege Gain", 1),
    "bad-unknown": RuleClass("Potentially Bad Traffic", 2),
    "coin-mining": RuleClass("Crypto Currency Mining Activity Detected", 2),
    "command-and-control": RuleClass("Malware Command and Control Activity Detected", 1),
    "credential-theft": RuleClass("Successful Credential Theft Detected", 1),
    "default-login-attempt": RuleClass("Attempt to login by a default username and password", 2),
    "denial-of-service": RuleClass("Detection of a Denial of Service Attack", 2),
    "domain-c2": RuleClass("Domain Observed Used for C2 Detected", 1),
    "exploit-kit": RuleClass("Exploit Kit Activity Detected", 1),
    "external-ip-check": RuleClass("Device Retrieving External IP Address Detected", 2),
    "icmp-event": RuleClass("Generic ICMP event", 3),
    "misc-activity": RuleClass("Misc activity", 3),
    "misc-attack": RuleClass("Misc Attack", 2),
    "network-scan": RuleClass("Detection of a Network Scan", 3),
    "non-standard-protocol": RuleClass("Detection of a non-standard protocol or event", 2),
    "not-suspicious": RuleClass("Not Suspicious Traffic", 3),
    "policy-violation": RuleClass("Potential Corporate Privacy Violation", 1),
    "protocol-command-decode": RuleClass("Generic Protocol Command Decode", 3),
    "pup-activity": RuleClass("Possibly Unwanted Program Detected", 2),
    "rpc-portmap-decode": RuleClass("Decode of an RPC Query", 2),
    "shellcode-detect": RuleClass("Executable code was detected", 1),
    "social-engineering": RuleClass("Possible Social Engineering Attempted", 2),
    "string-detect": RuleClass("A suspicious string was detected", 3),
    "successful-admin": RuleClass("Successful Administrator Privilege Gain", 1),
    "successful-dos": RuleClass("Denial of Service", 2),
    "successful-recon-largescale": RuleClass("Large Scale Information Leak", 2),
    "successful-recon-limited": RuleClass("Information Leak", 2),
    "successful-user": RuleClass("Successful User Privilege Gain", 1),
    "suspicious-filename-detect": RuleClass("A suspicious filename was detected", 2),
    "suspicious-login": RuleClass("An attempted login using a suspicious username was detected", 2),
    "system-call-detect": RuleClass("A system call was detected", 2),
    "targeted-activity": RuleClass("Targeted Malicious Activity was Detected", 1),
    "tcp-connection": RuleClass("A TCP connection was detected", 4),
    "trojan-activity": RuleClass("A Network Trojan was detected", 1),
    "unknown": RuleClass("Unknown Traffic", 3),
    "unsuccessful-user": RuleClass("Unsuccessful User Privilege Gain", 1),
    "unusual-client-port-connection": RuleClass("A client was using an unusual port", 2),
    "web-application-activity": RuleClass("access to a potentially vulnerable web application", 2),
    "web-application-attack": RuleClass("Web Application Attack", 1),
}

# System -> what goes before the reference's text to make a URL of it.
REFERENCES: Mapping[str, str] = {
    "arachnids": "https://www.whitehats.com/info/IDS",
    "bid": "https://www.securityfocus.com/bid/",
    "bugtraq": "https://www.securityfocus.com/bid/",
    "cve": "https://cve.mitre.org/cgi-bin/cvename.cgi?name=",
    "mcafee": "https://vil.nai.com/vil/content/v_",
    "md5": "https://www.threatexpert.com/report.aspx?md5=",
    "nessus": "https://www.tenable.com/plugins/nessus/",
    "secunia": "https://www.secunia.com/advisories/",
    "url": "https://",
}


@dataclass(frozen=True, slots=True)
class RuleConfig:
    """``classes`` and ``references`` by name in lower case. ``country``: two letters for a packed address, "" where
    the database has none; None: there is no database. ``read_list``: the content of a file that a rule names (filemd5),
    or OSError with a ``strerror``; None: such rules are refused. ``action_scopes``: ``drop:packet`` and the like are
    actions (Suricata 8; not in AWS Network Firewall)."""

    classes: Mapping[str, RuleClass] = field(default_factory=lambda: CLASSES)
    references: Mapping[str, str] = field(default_factory=lambda: REFERENCES)
    country: Callable[[bytes], str] | None = None
    read_list: Callable[[str], bytes] | None = None
    action_scopes: bool = False


DEFAULT_CONFIG = RuleConfig()

_CLASS = re.compile(r"\s*config\s*classification\s*:\s*([A-Za-z][\w-]*)\s*,(.*\S.*),\s*(\d{1,9})\s*$")
_REFERENCE = re.compile(r"\s*config\s+reference\s*:\s*([A-Za-z][\w-]*)\s+(\S+)\s*$")


def read_classifications(text: str, file: str) -> tuple[dict[str, RuleClass], list[RuleError]]:
    """The classes of a ``classification.config``, and the lines that are none."""
    found: dict[str, RuleClass] = {}
    errors: list[RuleError] = []
    for number, line in _lines(text):
        row = _CLASS.match(line) if len(line) <= MAX_LINE else None
        if row is None:
            errors.append(RuleError(file, number, 1, "expected config classification: name,description,priority"))
        elif not 0 < int(row[3]) <= MAX_PRIORITY:
            errors.append(RuleError(file, number, row.start(3) + 1, f"priority is 1 to {MAX_PRIORITY}, not {row[3]}"))
        else:
            found.setdefault(row[1].lower(), RuleClass(row[2].strip(), int(row[3])))
    return found, errors


def read_references(text: str, file: str) -> tuple[dict[str, str], list[RuleError]]:
    """The systems of a ``reference.config`` with their URL prefixes, and the lines that are none."""
    found: dict[str, str] = {}
    errors: list[RuleError] = []
    for number, line in _lines(text):
        row = _REFERENCE.match(line) if len(line) <= MAX_LINE else None
        if row is None:
            errors.append(RuleError(file, number, 1, "expected config reference: system URL"))
        else:
            found.setdefault(row[1].lower(), row[2])
    return found, errors


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Numbered, without comments and empty lines."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line
