"""The policies and rules the rows run under. Seeded: the same in every run."""

from __future__ import annotations

import json
import random
import string
from ipaddress import IPv4Network
from pathlib import Path

from engines.stateless.rule import StatelessAction, StatelessRule
from tests.lab import SITES

RULES = 1000
LARGE = 10_000
FEW = 10

# The default stream depth of 1 MiB: what is beyond it no stream rule can match, and the kernel forwards it.
PACKETS = """\
name: packets
stateless: {default: forward}
stateful: {order: action, rule_files: [bench.rules]}
"""

# Every byte searched: what inspection itself costs.
WHOLE = """\
name: whole
stateless: {default: forward}
stateful: {order: action, stream_depth: 0, rule_files: [bench.rules]}
"""

TLS = """\
name: tls
stateless: {default: forward}
tls:
  ca: {certificate: ca.pem, private_key: ca.key}
  trust: [lab-root.pem]
  scopes: [{destination_ports: [443]}]
stateful: {order: action, rule_files: [bench.rules]}
"""

# As above, and no server that is revoked, or of which nobody knows whether it is.
CHECKED = TLS.replace("name: tls", "name: checked").replace(
    "  scopes:",
    f"""\
  revocation: {{check: true, allow: [{SITES["listed.test"].ipv4}]}}
  scopes:""",
)


def stateful_rules(count: int = RULES) -> str:
    """Stream rules as real sets have them, a word and a binary pattern each, none of which occurs in the traffic."""
    chance = random.Random(1)
    lines = []
    for sid in range(1, count + 1):
        word = "".join(chance.choices(string.ascii_letters, k=chance.randint(6, 16)))
        binary = chance.randbytes(chance.randint(4, 8)).hex(" ")
        nocase = " nocase;" if chance.random() < 0.5 else ""
        lines.append(
            f'alert tcp any any -> any any (msg:"bench {sid}"; flow:established; content:"{word}";{nocase} '
            f'content:"|{binary}|"; distance:0; sid:{sid}; rev:1;)\n'
        )
    return "".join(lines)


# Variables that Emerging Threats rules use beyond those a policy has by itself.
_ETOPEN = """\
name: etopen
variables:
  HTTP_SERVERS: [$HOME_NET]
  SMTP_SERVERS: [$HOME_NET]
  SQL_SERVERS: [$HOME_NET]
  DNS_SERVERS: [$HOME_NET]
  TELNET_SERVERS: [$HOME_NET]
  AIM_SERVERS: [$EXTERNAL_NET]
  DC_SERVERS: [$HOME_NET]
  HTTP_PORTS: [80]
  SHELLCODE_PORTS: ["!80"]
  ORACLE_PORTS: [1521]
  SSH_PORTS: [22]
  FTP_PORTS: [21]
  FILE_DATA_PORTS: [$HTTP_PORTS, 110, 143]
stateless: {{default: forward}}
stateful:
  order: action
  rule_files: {files}
"""


def etopen_policy(folder: Path) -> str:
    """A policy of all rule files in ``folder``."""
    return _ETOPEN.format(files=json.dumps([str(path.resolve()) for path in sorted(folder.glob("*.rules"))]))


def few_policy(folder: Path) -> str:
    """A policy of ten stream rules, which are written to ``folder``."""
    (folder / "bench.rules").write_text(stateful_rules(FEW))
    return PACKETS


def large_policy(folder: Path, count: int = LARGE) -> str:
    """A policy of ``count`` stateless and ``count`` stateful rules. The latter, which are written to ``folder``, are of
    all kinds: stream rules, names, blocks of addresses."""
    chance = random.Random(5)
    lines = [stateful_rules(count // 2)]
    for sid in range(count // 2 + 1, count + 1):
        if sid % 2:
            name = "".join(chance.choices(string.ascii_lowercase, k=12))
            options = f'tls.sni; content:"{name}.example"; nocase; endswith; flow:to_server;'
            lines.append(f"drop tls $HOME_NET any -> $EXTERNAL_NET any ({options} sid:{sid};)\n")
        else:
            block = IPv4Network((chance.getrandbits(32) & 0xFFFFFF00, 24))
            lines.append(f"drop ip {block} any -> $HOME_NET any (sid:{sid};)\n")
    (folder / "large.rules").write_text("".join(lines))
    rules = "".join(f"    - {rule}\n" for rule in stateless_rules(count))
    return f"name: large\nstateless:\n  default: forward\n  rules:\n{rules}stateful: {{rule_files: [large.rules]}}\n"


def stateless_rules(count: int) -> list[StatelessRule]:
    """Rules that differ in addresses and ports. TCP and ports 1 to 20,000, so that many flows meet none of them."""
    chance = random.Random(2)
    made = []
    for priority in range(1, count + 1):
        low = chance.randint(1, 20_000)
        made.append(
            StatelessRule(
                priority,
                chance.choice((StatelessAction.PASS, StatelessAction.DROP)),
                protocols=(6,),
                sources=(IPv4Network((chance.randint(10 << 24, 11 << 24) & 0xFFFFFF00, 24)),),
                destinations=(IPv4Network((chance.getrandbits(32) & 0xFFFF0000, 16)),),
                destination_ports=((low, low + chance.randint(0, 100)),),
            )
        )
    return made


def nested_stateless_rules(count: int) -> list[StatelessRule]:
    """Harder ones: prefixes within each other, or ports alone, so that many rules allow what a packet has."""
    chance = random.Random(4)
    made = []
    for priority in range(1, count + 1):
        low = chance.randint(1, 60_000)
        prefix = IPv4Network((10 << 24 | chance.getrandbits(24), chance.randint(12, 30)), strict=False)
        ports = ((low, low + chance.randint(0, 20)),)
        sources = (prefix,) if chance.random() < 0.5 else ()
        made.append(
            StatelessRule(
                priority,
                chance.choice((StatelessAction.PASS, StatelessAction.DROP)),
                protocols=(chance.choice((6, 17)),),
                sources=sources,
                destination_ports=ports,
            )
        )
    return made
