"""The priorities of rule classes that every Suricata installation has, and a reader for a file of one's own.

Source: Suricata user guide, "Meta keywords", classtype. 1 is the most important.
"""

from __future__ import annotations

import re

_BY_PRIORITY: dict[int, str] = {
    1: "attempted-user unsuccessful-user successful-user attempted-admin successful-admin shellcode-detect "
    "trojan-activity web-application-attack policy-violation targeted-activity exploit-kit domain-c2 "
    "credential-theft command-and-control",
    2: "bad-unknown attempted-recon successful-recon-limited successful-recon-largescale attempted-dos "
    "successful-dos rpc-portmap-decode suspicious-filename-detect suspicious-login system-call-detect "
    "unusual-client-port-connection denial-of-service non-standard-protocol web-application-activity misc-attack "
    "default-login-attempt external-ip-check pup-activity social-engineering coin-mining",
    3: "not-suspicious unknown string-detect network-scan protocol-command-decode misc-activity icmp-event",
    4: "tcp-connection",
}
DEFAULT_PRIORITY = 3
PRIORITIES: dict[str, int] = {name: number for number, names in _BY_PRIORITY.items() for name in names.split()}

_LINE = re.compile(r"\s*config\s+classification\s*:\s*([A-Za-z][\w-]*)\s*,(.*),\s*(\d+)\s*$")


def read_classifications(text: str) -> dict[str, int]:
    """``config classification: name,description,priority`` lines -> name to priority. ValueError names the line."""
    found: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        row = _LINE.match(line)
        if not row:
            raise ValueError(f"line {number}: expected config classification: name,description,priority")
        found[row.group(1)] = int(row.group(3))
    return found
