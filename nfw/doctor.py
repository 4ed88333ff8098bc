"""Is this machine fit to run nfw? Facts are gathered here, findings made of them by :func:`examine`, which is pure.

Nothing is changed: kernel features are asked for with ``nft --check``, which the kernel answers without committing.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import datetime
import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Level = Literal["ok", "note", "warning", "error"]

# What nfw's table uses, each as a rule in a chain of its own; see hostnet.py.
FEATURES: dict[str, tuple[str, str]] = {
    "queue": ("type filter hook prerouting priority -95; queue num 0", "nft_queue"),
    "tproxy": ("type filter hook prerouting priority -90; meta l4proto tcp tproxy to :1", "nft_tproxy"),
    "socket": ("type filter hook prerouting priority -95; socket transparent 1 accept", "nft_socket"),
    "conntrack marks": ("type filter hook prerouting priority -95; ct mark set 1", "nft_ct nf_conntrack"),
    "fib": ("type filter hook prerouting priority -450; fib daddr type local accept", "nft_fib_inet"),
}
_QUEUE = "queue"  # has a substitute, see hostnet.QueueRule
_TABLE = "nfw_doctor"
_SYSCTLS = (
    "net.ipv4.ip_forward",
    "net.ipv6.conf.all.forwarding",
    "net.ipv4.conf.all.rp_filter",
    "net.netfilter.nf_conntrack_count",
    "net.netfilter.nf_conntrack_max",
    "net.bridge.bridge-nf-call-iptables",
)
_SIOCETHTOOL, _ETHTOOL_GFLAGS, _FLAG_LRO = 0x8946, 0x25, 1 << 15  # linux/sockios.h, linux/ethtool.h
_STA_UNSYNC = 0x40  # adjtimex(2)
_SUPPORTED_KERNEL = (5, 10)
OLDEST_CLOCK = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)  # the program is younger than that
_COMMAND_SECONDS = 10.0
_CONNTRACK_FULL = 0.8
_CA_DAYS = 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. ``mend`` says what to do about it, "" when there is nothing."""

    level: Level
    topic: str
    text: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Certificate:
    """The inspection CA, as far as it could be read."""

    path: str
    problem: str = ""
    subject: str = ""
    days_left: int = 0
    trusted: bool = False  # it is among the roots this machine's programs trust


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found. None: it could not be found out."""

    root: bool = True
    kernel: str = ""
    programs: Mapping[str, bool] = field(default_factory=dict)
    features: Mapping[str, bool | None] = field(default_factory=dict)  # by the names of FEATURES
    sysctls: Mapping[str, str | None] = field(default_factory=dict)
    rp_filters: Mapping[str, str] = field(default_factory=dict)  # interface -> value
    ruleset: Sequence[Mapping[str, Any]] | None = ()  # objects of `nft -j list ruleset`
    legacy_tables: Sequence[str] = ()  # of iptables-legacy
    lro: Sequence[str] = ()  # interfaces that merge what they receive
    default_routes: Mapping[int, Sequence[str]] = field(default_factory=dict)  # family -> devices or gateways
    problems: Sequence[str] = ()  # of HostNet.preflight, each with its mend after a colon
    clock_synchronised: bool | None = None
    now: datetime.datetime | None = None
    roots: int | None = None  # certificates in the system's store
    ca: Certificate | None = None
    status: Mapping[str, Any] | None = None  # of the running firewall


# -- judgement ---------------------------------------------------------------------------------------------------------


def examine(facts: Facts) -> list[Finding]:
    """Every finding, in the order of the questions."""
    return [finding for part in _PARTS for finding in part(facts)]


def failed(findings: Sequence[Finding]) -> bool:
    """Something keeps nfw from working, or from working safely."""
    return any(finding.level == "error" for finding in findings)


def _rights(facts: Facts) -> Iterator[Finding]:
    if not facts.root:
        yield Finding("note", "rights", "not root: kernel features and nftables cannot be asked", "run it with sudo")


def _kernel(facts: Facts) -> Iterator[Finding]:
    packages = {"nft": "nftables", "ip": "iproute2"}
    for name, present in facts.programs.items():
        if not present:
            yield Finding("error", "programs", f"{name} is missing", f"apt-get install {packages.get(name, name)}")
    version = tuple(int(part) for part in facts.kernel.split(".")[:2] if part.isdigit())
    if len(version) == 2 and version < _SUPPORTED_KERNEL:
        yield Finding("warning", "kernel", f"Linux {facts.kernel} is older than 5.10", "install a newer kernel")
    if facts.features.get(_QUEUE) is False:
        mend = "modprobe nft_queue, or else xt_NFQUEUE and nft_compat"
        yield Finding("note", "kernel", "nftables has no queue statement; nfw uses the NFQUEUE target instead", mend)
    missing = [name for name, present in facts.features.items() if present is False and name != _QUEUE]
    for name in missing:
        yield Finding(
            "error", "kernel", f"the kernel has no {name}", f"modprobe -a {FEATURES[name][1]}, or a kernel that has it"
        )
    if facts.features and not missing and None not in facts.features.values():
        had = [name for name, present in facts.features.items() if present]
        yield Finding("ok", "kernel", f"Linux {facts.kernel} has {', '.join(had)}")


def _sysctls(facts: Facts) -> Iterator[Finding]:
    get = facts.sysctls.get
    for name, family in (("net.ipv4.ip_forward", "IPv4"), ("net.ipv6.conf.all.forwarding", "IPv6")):
        if get(name) == "0":
            mend = f"sysctl -w {name}=1, and for good in /etc/sysctl.d/"
            yield Finding("error" if family == "IPv4" else "warning", "forwarding", f"{family} is not forwarded", mend)
        elif get(name) is not None:
            yield Finding("ok", "forwarding", f"{family} is forwarded")
    if get("net.bridge.bridge-nf-call-iptables") == "1":
        yield Finding(
            "warning",
            "bridge",
            "bridged frames go through netfilter, and so to nfw too",
            "sysctl -w net.bridge.bridge-nf-call-iptables=0, unless that is meant",
        )
    count, limit = _number(get("net.netfilter.nf_conntrack_count")), _number(get("net.netfilter.nf_conntrack_max"))
    if count is not None and limit:
        full = f"conntrack has {count} of {limit} entries"
        if count > limit * _CONNTRACK_FULL:
            mend = f"sysctl -w net.netfilter.nf_conntrack_max={limit * 4}"
            yield Finding("warning", "conntrack", f"{full}; without room new flows are dropped", mend)
        else:
            yield Finding("ok", "conntrack", full)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _routes(facts: Facts) -> Iterator[Finding]:
    # The kernel takes the higher of the two values (ip-sysctl, rp_filter).
    general = facts.sysctls.get("net.ipv4.conf.all.rp_filter") or "0"
    strict = sorted(name for name, value in facts.rp_filters.items() if max(value, general) == "1")
    several = {family: routes for family, routes in facts.default_routes.items() if len(routes) > 1}
    for family, routes in several.items():
        yield Finding(
            "warning",
            "routes",
            f"IPv{family} has {len(routes)} default routes ({', '.join(routes)}): answers may come another way than the"
            " requests went, past this machine",
            "see to it that both directions of a flow come by here; flows of which nfw sees one side do not get far",
        )
    if 4 in several and strict:
        yield Finding(
            "error",
            "rp_filter",
            f"strict reverse path filtering on {', '.join(strict)} drops what comes in by another way than it would go"
            " out",
            "sysctl -w net.ipv4.conf.all.rp_filter=2 (loose)",
        )
    elif strict:
        yield Finding("ok", "rp_filter", f"strict on {', '.join(strict)}, with one default route")


def _tables(facts: Facts) -> Iterator[Finding]:
    if facts.ruleset is None:
        return
    conflicts = list(_conflicts(facts.ruleset))
    yield from conflicts
    if facts.legacy_tables:
        yield Finding(
            "warning",
            "iptables",
            f"iptables-legacy has tables ({', '.join(facts.legacy_tables)}), whose rules nft does not show",
            "see that `iptables-legacy-save` shows no NFQUEUE, TPROXY or MARK rules for forwarded traffic",
        )
    for problem in facts.problems:
        text, _, mend = problem.partition(": ")
        if "ip rule" in text:
            yield Finding("error", "marks", text, mend)
    if not conflicts and facts.root:
        yield Finding("ok", "nftables", "no other table takes packets away from nfw")


def _conflicts(ruleset: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    chains: dict[tuple[str, str, str], Mapping[str, Any]] = {}
    for item in ruleset:
        chain = item.get("chain")
        if isinstance(chain, Mapping):
            chains[str(chain.get("family")), str(chain.get("table")), str(chain.get("name"))] = chain
    said: set[tuple[str, str]] = set()
    for item in ruleset:
        table, rule = item.get("flowtable"), item.get("rule")
        if isinstance(table, Mapping) and _foreign(table):
            name = f"flowtable {table.get('name')} of table {table.get('table')}"
            yield Finding(
                "error",
                "nftables",
                f"{name} forwards flows past all hooks, and so past nfw",
                f"nft delete flowtable {table.get('family')} {table.get('table')} {table.get('name')}, with its rules",
            )
        if isinstance(rule, Mapping) and _foreign(rule):
            where = f"{rule.get('family')} {rule.get('table')} {rule.get('chain')}"
            for kind in ("queue", "tproxy"):
                used = any(isinstance(part, Mapping) and kind in part for part in rule.get("expr") or ())
                if used and (where, kind) not in said:
                    said.add((where, kind))
                    yield Finding(
                        "error",
                        "nftables",
                        f"chain {where} has a rule with {kind}: its packets are another program's",
                        f"nft delete rule {where} handle {rule.get('handle')}, or leave that traffic to it",
                    )
    for (family, table, name), chain in chains.items():
        if not _foreign(chain) or chain.get("policy") != "drop":
            continue
        if chain.get("hook") == "input":
            yield Finding(
                "warning",
                "nftables",
                f"chain {family} {table} {name} drops by default, and TLS inspection delivers packets locally",
                "accept packets with `socket transparent 1` there, or leave TLS inspection off",
            )
        elif chain.get("hook") == "forward":
            yield Finding(
                "note",
                "nftables",
                f"chain {family} {table} {name} drops too: what nfw passes is not all that gets through",
            )


def _foreign(item: Mapping[str, Any]) -> bool:
    return (item.get("family"), item.get("table")) != ("inet", "nfw") and item.get("table") != _TABLE


def _offloads(facts: Facts) -> Iterator[Finding]:
    for name in facts.lro:
        yield Finding(
            "warning",
            "offload",
            f"{name} merges received packets for good (LRO), which must not be forwarded",
            f"ethtool -K {name} lro off",
        )


def _clock(facts: Facts) -> Iterator[Finding]:
    if facts.now is not None and facts.now < OLDEST_CLOCK:
        mend = "timedatectl set-ntp true, or set it with date"
        yield Finding("error", "clock", f"it says {facts.now:%Y-%m-%d}: every certificate will look wrong", mend)
    elif facts.clock_synchronised is False:
        yield Finding(
            "warning", "clock", "it is not synchronised; certificates are judged by it", "timedatectl set-ntp true"
        )
    elif facts.clock_synchronised:
        yield Finding("ok", "clock", "it is synchronised")


def _trust(facts: Facts) -> Iterator[Finding]:
    if facts.roots == 0:
        mend = "apt-get install ca-certificates"
        yield Finding("error", "trust", "this machine trusts no root: no server could be verified", mend)
    elif facts.roots is not None:
        yield Finding("ok", "trust", f"{facts.roots} roots in the system's store")
    ca = facts.ca
    if ca is None:
        return
    if ca.problem:
        yield Finding("error", "CA", f"{ca.path}: {ca.problem}", "nfw ca create, or nfw ca import")
        return
    if ca.days_left < 0:
        yield Finding("error", "CA", f"{ca.subject} has expired", "nfw ca create, and give it to the clients")
    elif ca.days_left < _CA_DAYS:
        yield Finding(
            "warning",
            "CA",
            f"{ca.subject} is valid for {ca.days_left} more days",
            "roll a new one out to the clients now",
        )
    if not ca.trusted:
        yield Finding(
            "warning",
            "CA",
            f"programs of this machine do not trust {ca.subject}; on a client that means TLS errors",
            f"cp {ca.path} /usr/local/share/ca-certificates/nfw.crt && update-ca-certificates"
            " (browsers and Java have stores of their own); a router needs it only for its own traffic",
        )
    elif ca.days_left >= 0:
        yield Finding("ok", "CA", f"this machine trusts {ca.subject}")


def _daemon(facts: Facts) -> Iterator[Finding]:
    status = facts.status
    if status is None:
        yield Finding("note", "daemon", "nfw is not running here", "systemctl start nfw")
        return
    if "unasked" in status:
        denied = bool(status.get("denied"))
        mend = "run it with sudo" if denied else "journalctl -u nfw; systemctl restart nfw"
        yield Finding("note" if denied else "error", "daemon", str(status["unasked"]), mend)
        return
    state = str(status.get("state"))
    if state.startswith("not filtering"):  # the processes run, and packets do not come to them
        yield Finding("error", "daemon", state, "systemctl restart nfw, and see who removes its table")
        return
    if state != "filtering":
        yield Finding(
            "error",
            "daemon",
            "no policy filters, and nothing is forwarded",
            "journalctl -u nfw says why it did not load",
        )
        return
    quiet = [
        str(one.get("name"))
        for one in status.get("processes") or ()
        if not one.get("pid") or (len(one) <= 2 and not str(one.get("name")).endswith("keyholder"))
    ]
    if quiet:
        mend = "journalctl -u nfw; a process that hangs can be killed, it is started again"
        yield Finding("error", "daemon", f"no answer from {', '.join(quiet)}", mend)
    else:
        yield Finding("ok", "daemon", f"policy {status.get('name')!r} filters, generation {status.get('generation')}")
    if status.get("mode") == "monitor":
        yield Finding(
            "warning",
            "daemon",
            f"policy {status.get('name')!r} is in mode monitor: nothing is blocked",
            "apply it without `mode: monitor` and --monitor when its records are as they should be",
        )
    queues = (status.get("kernel") or {}).get("queues") or {}
    dropped = sum(int(one.get("dropped", 0)) + int(one.get("user_dropped", 0)) for one in queues.values())
    if dropped:
        yield Finding(
            "warning",
            "queue",
            f"the kernel has dropped {dropped} packets that no worker had time for",
            "more cores or `workers`, or pass bulk traffic in stateless rules",
        )
    bugs = sum(int(one.get("bugs") or 0) for one in status.get("processes") or ())
    if bugs:
        yield Finding(
            "warning", "daemon", f"{bugs} exceptions, each of which cost a packet", "journalctl -u nfw; report it"
        )
    for sink, lines in ((status.get("log_writer") or {}).get("dropped") or {}).items():
        if lines:
            yield Finding("warning", "log", f"{sink} has lost {lines} lines", "look at the disk, or at who reads there")


_PARTS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _rights, _kernel, _sysctls, _tables, _routes, _offloads, _clock, _trust, _daemon,
)  # fmt: skip


# -- facts -------------------------------------------------------------------------------------------------------------


def gather(ca: str | None = None, status: Mapping[str, Any] | None = None) -> Facts:
    """Look at this machine. ``ca``: path of the inspection CA's certificate. Raises nothing: what cannot be is None."""
    programs = {name: shutil.which(name) is not None for name in ("nft", "ip")}
    root = os.geteuid() == 0
    asks = root and programs["nft"]
    return Facts(
        root=root,
        kernel=os.uname().release,
        programs=programs,
        features={name: _has(text) if asks else None for name, (text, _) in FEATURES.items()},
        sysctls={name: _sysctl(name) for name in _SYSCTLS},
        rp_filters=_rp_filters(),
        ruleset=_ruleset() if asks else None,
        legacy_tables=_legacy_tables(),
        lro=[name for name in interfaces() if _merges(name)],
        default_routes={family: _default_routes(family) for family in (4, 6)} if programs["ip"] else {},
        problems=_preflight() if all(programs.values()) else (),
        clock_synchronised=_synchronised(),
        now=datetime.datetime.now(datetime.UTC),
        roots=_roots(),
        ca=_certificate(ca) if ca is not None else None,
        status=status,
    )


def _run(command: Sequence[str], text: str = "") -> str | None:
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout if done.returncode == 0 else None


def _has(text: str) -> bool:
    chain, _, rule = text.partition("; ")
    lines = (
        f"add table inet {_TABLE}",
        f"add chain inet {_TABLE} c {{ {chain}; policy accept; }}",
        f"add rule inet {_TABLE} c {rule}",
    )
    return _run(["nft", "--check", "-f", "-"], "".join(f"{line}\n" for line in lines)) is not None


def _sysctl(name: str) -> str | None:
    # An interface may have a dot in its name; none of those asked for here has.
    with contextlib.suppress(OSError):
        return Path("/proc/sys", *name.split(".")).read_text().strip()
    return None


def interfaces() -> list[str]:
    """Every interface but loopback."""
    with contextlib.suppress(OSError):
        return sorted(name for name in os.listdir("/sys/class/net") if name != "lo")
    return []


def _rp_filters() -> dict[str, str]:
    found = {}
    for name in interfaces():
        with contextlib.suppress(OSError):
            found[name] = Path("/proc/sys/net/ipv4/conf", name, "rp_filter").read_text().strip()
    return found


def _ruleset() -> list[Mapping[str, Any]] | None:
    text = _run(["nft", "-j", "list", "ruleset"])
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return list(json.loads(text or "")["nftables"])
    return None


def _legacy_tables() -> list[str]:
    names = []
    for file in ("ip_tables_names", "ip6_tables_names"):
        with contextlib.suppress(OSError):
            names += Path("/proc/net", file).read_text().split()
    return sorted(set(names))


def _merges(name: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError, OverflowError):
        value = array.array("I", [_ETHTOOL_GFLAGS, 0])
        request = struct.pack("16sP", name.encode()[:15], value.buffer_info()[0])
        fcntl.ioctl(sock, _SIOCETHTOOL, request)
        return bool(value[1] & _FLAG_LRO)
    return False


def _default_routes(family: int) -> list[str]:
    text = _run(["ip", f"-{family}", "-json", "route", "show", "default"])
    found = []
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        for route in json.loads(text or "[]"):
            hops = route.get("nexthops") or [route]
            found += [f"{hop.get('gateway', 'on link')} dev {hop.get('dev', '?')}" for hop in hops]
    return found


def _preflight() -> list[str]:
    from nfw.hostnet import HostNet, HostNetError
    from nfw.marks import MarkLayout

    try:
        return HostNet(MarkLayout()).preflight()
    except (HostNetError, OSError):
        return []


def _synchronised() -> bool | None:
    """adjtimex(2) without setting anything; None where it is not allowed."""
    buffer = ctypes.create_string_buffer(512)  # struct timex has 208 bytes
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.adjtimex(buffer) < 0:
        return None
    status = ctypes.c_int.from_buffer(buffer, 5 * ctypes.sizeof(ctypes.c_long)).value  # modes, offset, freq, two errors
    return not status & _STA_UNSYNC


def _roots() -> int:
    from nfw.tlsworker import system_roots

    return system_roots().count(b"-----BEGIN CERTIFICATE-----")


def _certificate(path: str) -> Certificate:
    from cryptography import x509

    from engines.tls.malformed import MALFORMED
    from nfw.policy.files import read_bounded
    from nfw.tlsworker import system_roots

    try:
        certificate = x509.load_pem_x509_certificate(read_bounded(Path(path), 1 << 20))
    except OSError as error:
        return Certificate(path, str(error.strerror))
    except MALFORMED:
        return Certificate(path, "is no PEM certificate")
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    text = certificate.public_bytes(_pem()).strip()
    return Certificate(path, "", certificate.subject.rfc4514_string(), left.days, text in system_roots())


def _pem() -> Any:
    from cryptography.hazmat.primitives.serialization import Encoding

    return Encoding.PEM
