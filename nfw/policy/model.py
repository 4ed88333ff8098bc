"""The policy: what the operator wants, as one frozen value.

The YAML file is one way to write it (:mod:`nfw.policy.loader`); :func:`nfw.policy.dump.dump_policy` writes it back.
Names are the file's. Engine values (stateless rules, TLS scopes, signatures) are held as the engines define them.
Files are named here, and the public ones (certificates, rule text) also held, so that every process of a generation
works on the same bytes; the CA's private key is only ever named: the key holder alone reads it.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from engines.stateful.signature import Signature
from engines.stateless.rule import StatelessAction, StatelessRule
from engines.tls.bypass import Exemption, Proof
from engines.tls.scope import TlsScope
from nfw.policy.errors import PolicyError
from nfw.settings import DEFAULT_LOG_EVENTS

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Mode(enum.StrEnum):
    """Whether the policy acts."""

    ENFORCE = "enforce"
    MONITOR = "monitor"  # what would be blocked is let through and recorded


class RuleOrder(enum.StrEnum):
    """Order in which stateful rules are tried (AWS ``RuleOrder``)."""

    STRICT = "strict"  # as written; default actions apply
    ACTION = "action"  # pass, drop, reject, alert, then by priority


class Refusal(enum.StrEnum):
    """How a flow is ended."""

    DROP = "drop"  # silently
    REJECT = "reject"  # with a TCP reset


class TlsAction(enum.StrEnum):
    """What a verdict on an intercepted connection leads to."""

    PASS = "pass"  # noqa: S105 - goes on, and is logged
    DROP = "drop"
    REJECT = "reject"


class StreamException(enum.StrEnum):
    """What meets TCP of which no handshake was seen (AWS ``StreamExceptionPolicy``)."""

    DROP = "drop"
    REJECT = "reject"
    CONTINUE = "continue"


class TlsKeywords(enum.StrEnum):
    """What rules see of the TLS sessions that are decrypted."""

    ALL = "all"  # the client's hello and the server's certificate
    SNI = "sni"  # the server's name only, as in AWS Network Firewall


class OpenFlowsOf(enum.StrEnum):
    """Which flows opened under the former policy end when this one is applied."""

    ALL = "all"
    TLS_SCOPE = "tls_scope"
    NONE = "none"


class WhenFull(enum.StrEnum):
    """What happens to a new flow when the flow table is full."""

    EVICT_OLDEST = "evict_oldest"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Variables:
    """Names used by rules as ``$NAME``; items are in Suricata's syntax (``10.0.0.0/8``, ``!25``, ``$OTHER``)."""

    addresses: Mapping[str, tuple[str, ...]]
    ports: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


# RFC 1918 and RFC 4193: what an operator who says nothing most likely calls home.
DEFAULT_HOME_NET = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
DEFAULT_VARIABLES = Variables({"HOME_NET": DEFAULT_HOME_NET, "EXTERNAL_NET": ("!$HOME_NET",)})


@dataclass(frozen=True, slots=True)
class StatelessGroup:
    """Stateless rules that belong together (AWS stateless rule group). The rules name it in ``StatelessRule.group``.

    ``capacity``: the units it may use (:func:`nfw.policy.capacity.stateless_units`), None for no bound.
    """

    name: str
    priority: int  # 1..65535, unique: groups go by it, their rules by theirs
    arn: str = ""
    capacity: int | None = None


@dataclass(frozen=True, slots=True)
class Stateless:
    """Stage 1. ``rules`` in the order they are tried: by priority of their group, then by their own. ``fragments`` is
    for UDP fragments; others are dropped and counted."""

    rules: tuple[StatelessRule, ...] = ()
    groups: tuple[StatelessGroup, ...] = ()  # by priority; empty: the rules are in none
    default: StatelessAction = StatelessAction.FORWARD
    default_counters: tuple[str, ...] = ()
    fragments: StatelessAction = StatelessAction.DROP
    fragments_counters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """The operator's CA. ``certificate_pem`` is the content of ``certificate``; the key stays in its file."""

    certificate: Path
    private_key: Path
    arn: str = ""  # what an AWS document calls it
    certificate_pem: bytes = field(default=b"", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Trust:
    """Roots an upstream server's chain may end in: the system's store, PEM files, or both."""

    system: bool = True
    files: tuple[Path, ...] = ()
    pem: bytes = field(default=b"", compare=False, repr=False)  # the files' contents, one after the other


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """The certificate and key of an inspected server; None where an AWS document names only its ``arn``.
    ``certificate_pem`` is the content of ``certificate``; the key stays in its file."""

    certificate: Path | None = None
    private_key: Path | None = None
    arn: str = ""
    certificate_pem: bytes = field(default=b"", compare=False, repr=False)


class Upstream(enum.StrEnum):
    """By what an inspected server of one's own is known."""

    PINNED = "pinned"  # it shows one of the certificates given here
    VERIFIED = "verified"  # as any server: by name and chain


@dataclass(frozen=True, slots=True)
class InboundTls:
    """Connections to servers of one's own, decrypted with the servers' certificates (AWS ``ServerCertificates``)."""

    certificates: tuple[ServerCertificate, ...]
    scopes: tuple[TlsScope, ...]

    @property
    def files(self) -> tuple[tuple[Path, Path], ...] | None:
        """Certificates and keys; None when some are not at hand, so that nothing can be decrypted."""
        found = tuple(
            (one.certificate, one.private_key)
            for one in self.certificates
            if one.certificate is not None and one.private_key is not None
        )
        return found if found and len(found) == len(self.certificates) else None


@dataclass(frozen=True, slots=True)
class Distrust:
    """Keys refused in a server's chain: SHA-256 of public keys (hex), and those of the certificates in ``files``."""

    keys: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    pem: bytes = field(default=b"", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Revocation:
    """Whether servers' certificates are checked for revocation, and what becomes of a flow whose server's is revoked or
    of which nobody says (AWS ``CheckCertificateRevocationStatus``). ``allow``: networks that may be asked although they
    are private, and on any port; ``cache``: directory that keeps what they said."""

    check: bool = False
    revoked: TlsAction = TlsAction.REJECT
    unknown: TlsAction = TlsAction.REJECT
    allow: tuple[Network, ...] = ()
    cache: Path = Path("/var/lib/nfw/revocation")
    recheck: bool = False  # open flows, whenever the answer they rest on ends; those of the revoked are closed


class WithoutSni(enum.Enum):
    """What a client that names no server gets: nothing, or a server whose certificate has the address."""

    REFUSE = "refuse"
    ADDRESS = "address"


@dataclass(frozen=True, slots=True)
class Transparency:
    """Certificate transparency of chains that end in one of the system's roots. ``logs``: files of the public keys
    (PEM) of trusted logs, ``pem`` what is in them; ``require``: refuse certificates without a valid timestamp."""

    logs: tuple[Path, ...] = ()
    require: bool = False
    pem: bytes = field(default=b"", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class TlsDebug:
    """Sessions whose keys and plaintext are written to files: those to ``sni`` (any, if empty) within ``scope``."""

    key_log: Path | None = None
    capture: Path | None = None
    sni: tuple[str, ...] = ()
    scope: TlsScope = field(default_factory=TlsScope)
    max_size: int = 64 << 20  # bytes, of each file


@dataclass(frozen=True, slots=True)
class Tls:
    """Stage 2. Flows in a scope are decrypted; ``on_failure`` ends those that cannot be, unless ``actions`` names
    another end for the status (:class:`engines.tls.status.Status`, in small letters)."""

    ca: CertificateAuthority
    scopes: tuple[TlsScope, ...]
    trust: Trust = Trust()
    scope_trust: tuple[Trust | None, ...] = ()  # of scopes that have their own, by their place among ``scopes``
    on_failure: Refusal = Refusal.REJECT
    session_holding: bool = False  # AWS EnableTLSSessionHolding: no packet to the server before the SNI rules passed
    arn: str = ""
    keywords: TlsKeywords = TlsKeywords.ALL
    actions: tuple[tuple[str, TlsAction], ...] = ()
    distrust: Distrust = Distrust()
    revocation: Revocation = Revocation()
    bypass: tuple[Exemption, ...] = ()  # names whose flows are not decrypted, where something proves it is they
    bypass_proof: tuple[Proof, ...] = (Proof.RESOLVER,)  # one of these suffices
    resolvers: tuple[str, ...] = ()  # addresses of who is asked; none: those of /etc/resolv.conf
    quic: TlsAction = TlsAction.DROP  # QUIC to a scope, which cannot be decrypted
    inbound_upstream: Upstream = Upstream.PINNED
    debug: TlsDebug | None = None
    strip_ech: bool = True  # keys for Encrypted ClientHello are taken out of DNS answers
    without_sni: WithoutSni = WithoutSni.REFUSE
    transparency: Transparency = Transparency()
    resumption: bool = True  # servers may resume TLS 1.3 sessions of the same client with the same name
    fetch_issuers: bool = False  # intermediates a server left out, from where its certificate says they are (AIA)

    def trust_of(self, scope: int | None) -> Trust:
        """Who may vouch for the servers of the scope at that place; of None: of those in no scope of their own."""
        own = self.scope_trust[scope] if scope is not None and scope < len(self.scope_trust) else None
        return own or self.trust

    @property
    def asks_resolvers(self) -> bool:
        """Where the exempted names are."""
        return bool(self.bypass) and Proof.RESOLVER in self.bypass_proof


# What AWS's TLS inspection does that is not nfw's own way: it drops what is no TLS, and servers that are not who the
# client asked for; QUIC to a scope is left to the rules (developer guide, considerations for TLS inspection).
AWS_TLS_ACTIONS = (("name_mismatch", TlsAction.DROP), ("not_tls", TlsAction.DROP))
AWS_QUIC = TlsAction.PASS


@dataclass(frozen=True, slots=True)
class RuleSource:
    """Rule text and where it starts: a rule file (``file`` is its path) or rules written inside the policy.

    ``place`` maps (line, column) within ``text``, both from 1, to the place in ``file``; without it the text stands
    there as it is, from ``line`` and ``column`` on.
    """

    file: str
    text: str = field(repr=False)
    inline: bool = False
    line: int = field(default=1, compare=False)
    column: int = field(default=1, compare=False)
    place: Callable[[int, int], tuple[int, int]] | None = field(default=None, compare=False, repr=False)

    def positioned_text(self) -> str:
        """``text`` moved to where it stands in its file, so that a parser counting lines and columns counts right."""
        if self.line == 1 and self.column == 1:
            return self.text
        indent = " " * (self.column - 1)
        moved = "\n".join(indent + line if line else "" for line in self.text.split("\n"))
        return "\n" * (self.line - 1) + moved


class DomainAction(enum.StrEnum):
    """What a domain list is for (AWS ``GeneratedRulesType``)."""

    ALLOW = "allow"  # these names pass, all others of the protocol are dropped
    DENY = "deny"
    REJECT = "reject"
    ALERT = "alert"


class DomainType(enum.StrEnum):
    """Where a domain list looks for names (AWS ``TargetTypes``)."""

    TLS_SNI = "tls_sni"
    HTTP_HOST = "http_host"


@dataclass(frozen=True, slots=True)
class DomainList:
    """Names that rules are generated for (AWS ``RulesSourceList``). A leading dot: the name and all below it."""

    action: DomainAction
    targets: tuple[str, ...]
    types: tuple[DomainType, ...]


@dataclass(frozen=True, slots=True)
class IpSetReference:
    """A set kept elsewhere (AWS ``IPSetReferences``: prefix list, resource group), named in rules as ``@NAME``."""

    arn: str
    networks: tuple[str, ...]  # as the items of a variable
    file: Path | None = field(default=None, compare=False)  # where they were read from, and are again when it changes


@dataclass(frozen=True, slots=True)
class StatefulGroup:
    """Stateful rules that belong together (AWS stateful rule group), with variables and a sid space of their own.

    What the rules are is in ``sources``, ``domains`` or both empty (a managed group whose rules are not at hand).
    """

    name: str
    priority: int = 0  # 1..65535, unique, in strict order; 0 in action order
    arn: str = ""
    capacity: int | None = None
    drop_to_alert: bool = False  # AWS Override: what the rules drop is only logged
    variables: Variables = Variables({})
    references: Mapping[str, IpSetReference] = field(default_factory=dict)
    sources: tuple[RuleSource, ...] = ()
    domains: DomainList | None = None
    five_tuple: bool = False  # written as AWS StatefulRules; ``sources`` is their text
    file: str = field(default="", compare=False)  # where the group is written
    line: int = field(default=0, compare=False)

    @property
    def managed(self) -> bool:
        """AWS writes its rules."""
        return ":aws-managed:" in self.arn


@dataclass(frozen=True, slots=True)
class Stateful:
    """Stage 3. ``signatures`` is what ``sources`` or ``groups`` (in the order they are tried) say, parsed."""

    order: RuleOrder = RuleOrder.STRICT
    default_actions: tuple[str, ...] = ()  # tokens of AWS StatefulDefaultActions without "aws:"; none is pass
    stream_exception: StreamException = StreamException.DROP
    stream_depth: int = 1 << 20  # bytes of each direction inspected, 0 without end; Suricata's stream.reassembly.depth
    refresh: int = 10  # seconds between two looks at the files of IP set references, 0: none
    sources: tuple[RuleSource, ...] = ()
    groups: tuple[StatefulGroup, ...] = ()
    classification_file: RuleSource | None = None  # classification.config: what the classes of the rules are
    reference_file: RuleSource | None = None  # reference.config: what makes URLs of their references
    geoip: Path | None = None  # a database of countries (MaxMind DB)
    threshold_file: RuleSource | None = None  # threshold.config, applied to the signatures
    signatures: tuple[Signature, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class OpenFlows:
    """Fate, at the switch, of flows opened under the former policy."""

    which: OpenFlowsOf = OpenFlowsOf.ALL
    action: Refusal = Refusal.DROP


@dataclass(frozen=True, slots=True)
class Flows:
    """Bounds of the flow table. Timeouts are seconds without a packet; 350 and 120 are AWS's."""

    max_flows: int = 262_144  # per worker; Linux's own conntrack default on a router of a few GB
    tcp_idle: int = 350
    tcp_opening: int = 60  # handshake not finished
    udp: int = 120
    icmp: int = 30
    other: int = 120
    when_full: WhenFull = WhenFull.EVICT_OLDEST


LOG_EVENTS = ("alert", "drop", "flow", "tls", "http", "dns", "stats")  # values of EVE's event_type


class LogFormat(enum.StrEnum):
    """How a record is written."""

    EVE = "eve"  # Suricata's EVE JSON
    AWS = "aws"  # AWS Network Firewall's ALERT, FLOW and TLS logs; what these do not have is left out


class SinkKind(enum.StrEnum):
    """Where records go. The two Unix sockets are Suricata's ``filetype``: nfw connects to whoever listens."""

    FILE = "file"
    JOURNALD = "journald"
    SYSLOG = "syslog"
    UNIX_STREAM = "unix_stream"
    UNIX_DGRAM = "unix_dgram"


@dataclass(frozen=True, slots=True)
class Sink:
    """One more destination of events. ``path``: of a file or Unix socket; ``address`` and ``facility``: of syslog."""

    kind: SinkKind
    events: tuple[str, ...] = DEFAULT_LOG_EVENTS
    format: LogFormat = LogFormat.EVE
    path: Path | None = None
    max_size: int = 100 << 20
    keep: int = 4
    address: str = ""  # "" is /dev/log; a path; udp://ADDRESS:PORT or tcp://ADDRESS:PORT
    facility: str = "daemon"


@dataclass(frozen=True, slots=True)
class Log:
    """Event log. ``path`` None is the daemon's own choice; at ``max_size`` bytes it is rotated;
    ``keep`` old files stay. Without ``events`` there is no file, only the ``sinks``."""

    path: Path | None = None
    max_size: int = 100 << 20
    keep: int = 4
    events: tuple[str, ...] = DEFAULT_LOG_EVENTS
    format: LogFormat = LogFormat.EVE
    sinks: tuple[Sink, ...] = ()
    flow_interval: int = 0  # seconds between ``flow`` records of a flow that stays open, 0: only when it is over
    stats_interval: int = 60  # seconds between ``stats`` records; Suricata's stats.interval

    @property
    def wanted(self) -> tuple[str, ...]:
        """Events that any destination takes."""
        asked = {*self.events, *(event for sink in self.sinks for event in sink.events)}
        return tuple(event for event in LOG_EVENTS if event in asked)


@dataclass(frozen=True, slots=True)
class Label:
    """What an AWS document says of its resource beside what it does, by field, and where."""

    values: Mapping[str, object] = field(compare=False)
    file: str = field(default="", compare=False)
    line: int = field(default=0, compare=False)
    column: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything one generation runs by."""

    name: str
    file: Path = field(compare=False)
    variables: Variables = DEFAULT_VARIABLES
    stateless: Stateless = Stateless()
    tls: Tls | None = None
    inbound: tuple[InboundTls, ...] = ()
    stateful: Stateful = Stateful()
    open_flows: OpenFlows = OpenFlows()
    flows: Flows = Flows()
    mode: Mode = Mode.ENFORCE
    fail_open: bool = False  # True: without a reader the kernel lets packets through
    workers: int | Literal["auto"] = "auto"
    log: Log = Log()
    arn: str = ""
    warnings: tuple[PolicyError, ...] = field(default=(), compare=False)
    labels: Mapping[tuple[str, str], Label] = field(default_factory=dict, compare=False)  # nfw.policy.aws.labels

    @property
    def inspected_inbound(self) -> tuple[InboundTls, ...]:
        """What of ``inbound`` is decrypted: that with keys, beside a ``tls`` section."""
        return tuple(one for one in self.inbound if one.files is not None) if self.tls is not None else ()
