"""`make docs`: the policy's reference from the model and the readers' keys, the command line's from the commands.

Keys, values and defaults are the program's own; what a key is for is said here, and a key without a word is an error.
"""

from __future__ import annotations

import dataclasses
import enum
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from engines.tls.scope import TlsScope
from nfw.cli.app import cli
from nfw.policy import loader, model, read_log, read_stateful, read_stateless, read_tls
from nfw.policy.settings import FLOWS_KEYS
from nfw.policy.values import parse_size

ROOT = Path(__file__).resolve().parent.parent
SIZES = ("max_size", "stream_depth")  # keys that take 100mb
POLICY, COMMANDS = ROOT / "nfw/policy/REFERENCE.md", ROOT / "nfw/cli/REFERENCE.md"


@dataclass(frozen=True, slots=True)
class Part:
    """A mapping of the policy: its path, its keys, the class that holds it, what each key is for."""

    path: str
    keys: tuple[str, ...]
    held: type | None
    about: str
    texts: dict[str, str]
    fields: dict[str, str] = dataclasses.field(default_factory=dict)  # key -> field, where they differ


PARTS = (
    Part(
        "",
        loader.KEYS,
        model.Policy,
        "The file. Relative paths start from its folder.",
        {
            "name": "shown by `nfw status` and in logs; the file's name where there is none",
            "arn": "kept for conversion to AWS's documents",
            "mode": "`monitor`: what would be blocked passes, and is recorded as what it would have been",
            "variables": "lists of addresses or ports, in rules `$NAME`; `HOME_NET`, `EXTERNAL_NET` are always there",
            "stateless": "stage 1: 5-tuple rules",
            "tls": "stage 2: which connections are decrypted, and how",
            "inbound": "connections to servers of one's own, decrypted with their certificates; needs `tls`",
            "stateful": "stage 3: rules in Suricata's language",
            "open_flows": "what becomes of flows that are open at a change of policy",
            "flows": "bounds of the flow table",
            "fail_open": "`true`: without a reader packets pass, and the service opens the path when it ends",
            "workers": "packet workers, and as many TLS workers: `auto` is one for each core, or 1 to 64",
            "log": "the event log and other places for events",
        },
    ),
    Part(
        "stateless",
        read_stateless.KEYS,
        model.Stateless,
        "The first rule that matches decides.",
        {
            "default": "for packets no rule matches; `forward` is to the stages that follow",
            "default_counters": "counters (AWS's custom actions) these packets are counted under",
            "fragments": "UDP fragments; those of other protocols are always dropped",
            "fragments_counters": "counters for these",
            "rules": "the rules",
            "groups": "instead: groups of rules",
        },
    ),
    Part(
        "stateless.rules[]",
        read_stateless.RULE_KEYS,
        None,
        "Lists are OR, keys AND; a key that is not there is any.",
        {
            "priority": "1 to 65535, unique; lower goes first",
            "name": "for people",
            "action": "`pass`, `drop` or `forward`",
            "protocols": "names or numbers: `[tcp, udp, 47]`",
            "sources": "networks, addresses or `$NAME`",
            "destinations": "as `sources`",
            "source_ports": 'ports or ranges: `[53, "1024-65535"]`',
            "destination_ports": "as `source_ports`",
            "tcp_flags": "`{flags: [syn], masks: [syn, ack]}`: of `masks`, exactly `flags` are set",
            "counters": "counters these packets are counted under",
        },
    ),
    Part(
        "stateless.groups[]",
        read_stateless.GROUP_KEYS,
        model.StatelessGroup,
        "Instead of `rules`: AWS's stateless rule groups.",
        {
            "name": "unique among the groups",
            "priority": "1 to 65535, unique; the groups go by it",
            "arn": "kept for conversion",
            "capacity": "units the rules may use, as AWS counts them",
            "rules": "as `stateless.rules`",
        },
    ),
    Part(
        "tls",
        read_tls.KEYS,
        model.Tls,
        "Without this section nothing is decrypted.",
        {
            "ca": "the CA that certificates for clients are signed with; required",
            "trust": "who may vouch for servers: `system`, PEM files",
            "distrust": "keys refused in a chain: PEM files of certificates, SHA-256 of public keys in hexadecimal",
            "scopes": "which connections; required",
            "on_failure": "the end of flows that cannot be decrypted or whose server is not verified",
            "actions": "another end for single verdicts",
            "revocation": "whether certificates are checked for revocation",
            "fetch_issuers": "fetch intermediates a server leaves out from where its certificate says (AIA)",
            "resumption": "let servers resume TLS 1.3 sessions of the same client, address and name, for an hour",
            "without_sni": "what a client that names no server gets: `address` has its certificate prove the address",
            "transparency": "whether certificates below the system's roots must be public",
            "session_holding": "SNI rules decide before the server is contacted",
            "keywords": "what rules see of a decrypted session: `sni` is AWS's view",
            "bypass": "names that are not decrypted, where something proves that the destination is theirs",
            "bypass_proof": "which proofs suffice: nfw's own resolvers give the address; its certificate is the name's",
            "resolvers": "addresses of the DNS servers asked, three at most; those of `/etc/resolv.conf` without",
            "quic": "QUIC to a scope: UDP port 443, or what looks like it",
            "strip_ech": "take the keys for Encrypted ClientHello out of DNS answers",
            "debug": "keys and plaintext of chosen sessions in files",
            "inbound_upstream": "how servers of `inbound` are known: by their certificates, or by name and chain",
            "arn": "kept for conversion",
        },
    ),
    Part(
        "tls.bypass[]",
        read_tls.BYPASS_KEYS,
        TlsScope,
        "A key that is not there is any.",
        {
            "sni": "host names, or `*.` and a domain for every name below it; required",
            "sources": "networks, addresses or `$NAME`",
            "source_ports": "ports or ranges",
            "destinations": "networks, addresses or `$NAME`",
            "destination_ports": "ports or ranges",
        },
    ),
    Part(
        "tls.debug",
        read_tls.DEBUG_KEYS,
        None,
        "One of the files, and one of `sni`, `sources` and `destinations`, are required.",
        {
            "key_log": "file for session keys, in NSS's format",
            "capture": "file for plaintext, pcapng",
            "sni": "host names, or `*.` and a domain for every name below it",
            "sources": "networks, addresses or `$NAME`",
            "source_ports": "ports or ranges",
            "destinations": "networks, addresses or `$NAME`",
            "destination_ports": "ports or ranges",
            "max_size": "bytes of each file; 64 MB without",
        },
    ),
    Part(
        "tls.ca",
        ("certificate", "private_key", "arn"),
        model.CertificateAuthority,
        "`nfw ca create` makes both files.",
        {
            "certificate": "PEM file; required",
            "private_key": "PEM file without a passphrase, read by the key holder alone; required",
            "arn": "what AWS's documents call it",
        },
    ),
    Part(
        "tls.scopes[]",
        read_tls.OWN_SCOPE_KEYS,
        TlsScope,
        "A key that is not there is any. What no scope matches passes on undecrypted.",
        {
            "sources": "networks, addresses or `$NAME`",
            "source_ports": "ports or ranges",
            "destinations": "networks, addresses or `$NAME`",
            "destination_ports": "ports or ranges",
            "trust": "who may vouch for these servers; `tls.trust` without",
        },
    ),
    Part(
        "tls.revocation",
        read_tls.REVOCATION_KEYS,
        model.Revocation,
        "With the section there, `check` is on unless it says otherwise.",
        {
            "check": "ask at all",
            "revoked": "the end of a flow whose server's certificate is revoked",
            "unknown": "the end of one of which nobody says within 2 s",
            "allow": "private networks whose responders may be asked, on any port",
            "cache": "folder for what they said",
            "recheck": "ask again for open flows when the answer they rest on ends; those of the revoked are closed",
        },
    ),
    Part(
        "tls.transparency",
        read_tls.TRANSPARENCY_KEYS,
        model.Transparency,
        "Signed certificate timestamps (RFC 6962) that are part of a certificate; `nfw.sct` in the log names them.",
        {
            "logs": "PEM files of the public keys of the logs that are trusted",
            "require": "certificates without a valid timestamp of one are INVALID; needs `logs`",
        },
    ),
    Part(
        "tls.actions",
        (*read_tls.CERTIFICATE_ACTIONS, *read_tls.FLOW_ACTIONS),
        None,
        "`pass`, `drop` or `reject` for verdicts on certificates; `drop` or `reject` for the last three. Default: "
        "`tls.on_failure`.",
        {
            "expired": "a certificate of the chain has expired",
            "not_yet_valid": "one is not valid yet",
            "untrusted": "no trusted root vouches for it",
            "name_mismatch": "it is for other names",
            "invalid": "it is malformed, or breaks a rule for certificates",
            "weak": "its key or signature is too weak",
            "must_staple": "it demands a stapled response and there was none",
            "no_sni": "the client names no server",
            "protocol": "the handshake fails",
            "not_tls": "it is no TLS",
        },
    ),
    Part(
        "stateful",
        read_stateful.KEYS,
        model.Stateful,
        "Rules are Suricata's; `nfw rules keywords` lists what they can say.",
        {
            "order": "`strict`: as written, with default actions; `action`: pass, drop, reject, alert",
            "default_actions": "for flows no rule decides: `drop_strict`, `drop_established`, "
            "`drop_established_app_layer`, `drop_established_app_layer_to_server` and their `alert_` twins",
            "stream_exception": "TCP of which no handshake was seen; rules on applications match nothing of what "
            "continues",
            "stream_depth": "bytes of each direction that stream rules search; 0: all",
            "refresh": "seconds between two looks at the files of `references`, up to 86400; 0: read at an apply only",
            "rule_files": "rule files",
            "rules": "rules written here",
            "groups": "instead of both: groups of rules",
            "classification_file": "Suricata's classification.config; its own is built in",
            "reference_file": "Suricata's reference.config; its own is built in",
            "threshold_file": "Suricata's threshold.config",
            "geoip": "a MaxMind database of countries for `geoip`",
        },
        {
            "rule_files": "sources",
            "rules": "sources",
        },
    ),
    Part(
        "stateful.groups[]",
        read_stateful.GROUP_KEYS,
        model.StatefulGroup,
        "AWS's stateful rule groups, each with variables and sids of its own.",
        {
            "name": "unique among the groups",
            "priority": "1 to 65535, unique; required with `order: strict`",
            "arn": "kept for conversion",
            "capacity": "as AWS counts it",
            "drop_to_alert": "what the rules drop is only logged (AWS's override)",
            "variables": "over those of the policy",
            "references": "sets named `@NAME` in rules: `{NAME: {arn: ..., networks: [...]}}`, or `{file: ...}`",
            "rule_files": "rule files",
            "rules": "rules written here",
            "five_tuple": "the rules were written as AWS's StatefulRules",
            "domains": "a domain list that rules are generated from",
        },
        {"rule_files": "sources", "rules": "sources"},
    ),
    Part(
        "stateful.groups[].domains",
        ("action", "targets", "types"),
        model.DomainList,
        "AWS's domain list.",
        {
            "action": "`allow`: these names pass, all others of the protocols are dropped",
            "targets": "names; with a leading dot the name and all below it",
            "types": "where names are looked for",
        },
    ),
    Part(
        "open_flows",
        ("which", "action"),
        model.OpenFlows,
        "Applies to flows opened under the policy before this one.",
        {
            "which": "which of them end",
            "action": "`drop` says nothing; `reject` tells both ends at the next packet of either",
        },
    ),
    Part(
        "flows",
        FLOWS_KEYS,
        model.Flows,
        "Seconds are without a packet.",
        {
            "max_flows": "flows of each worker, 16 to 16,777,216",
            "tcp_idle": "seconds, 60 to 6000",
            "tcp_opening": "seconds for a handshake",
            "udp": "seconds",
            "icmp": "seconds",
            "other": "seconds",
            "when_full": "what happens to a new flow then",
        },
    ),
    Part(
        "log",
        read_log.KEYS,
        model.Log,
        f"Events are {', '.join(f'`{event}`' for event in model.LOG_EVENTS)}.",
        {
            "path": "the file; `/var/log/nfw/eve.json`, or what `nfw run --log` says",
            "max_size": "rotated then",
            "keep": "old files that stay",
            "events": "what goes there; with `[]` and `sinks` there is no file",
            "format": "`eve`: Suricata's EVE; `aws`: AWS Network Firewall's ALERT, FLOW and TLS records",
            "sinks": f"up to {read_log.MAX_SINKS} places more",
            "stats_interval": "seconds between `stats` records",
            "flow_interval": "seconds between records of a flow that stays open; 0: only at its end",
        },
    ),
    Part(
        "log.sinks[]",
        ("type", "events", "format", "path", "max_size", "keep", "address", "facility"),
        model.Sink,
        "Nothing waits for a sink: what it does not take is lost, said and counted.",
        {
            "type": "what it is; required",
            "events": "as `log.events`",
            "format": "as `log.format`",
            "path": "of a `file`, or of a Unix socket somebody listens at",
            "max_size": "of a `file`",
            "keep": "of a `file`",
            "address": "of `syslog`: a path (`/dev/log`), `udp://ADDRESS:PORT` or `tcp://ADDRESS:PORT`",
            "facility": "of `syslog`",
        },
        {"type": "kind"},
    ),
)


def policy_reference() -> str:
    """Markdown. Raises ValueError for a key nothing is said about, and for one that is no more."""
    lines = [
        "# Policy reference",
        "",
        "Made by `make docs` from `model.py` and the readers beside it. The README has an example and the reasons;",
        "`nfw policy check FILE` says what is wrong with a file.",
        "Sizes are bytes, or `64kb`, `100mb`, `2gb`.",
        "",
    ]
    for part in PARTS:
        for keys, what in (
            (set(part.keys) - set(part.texts), "say in tests/reference.py what this key is for"),
            (set(part.texts) - set(part.keys), "no such key any more"),
        ):
            if keys:
                raise ValueError(f"{part.path or 'policy'}: {', '.join(sorted(keys))}: {what}")
        lines += [f"## {f'`{part.path}`' if part.path else 'The policy'}", "", part.about, ""]
        lines += ["| key | values | default | |", "|---|---|---|---|"]
        held = _fields(part.held)
        for key in part.keys:
            annotation, default = held.get(part.fields.get(key, key), (None, None))
            cells = (f"`{key}`", _values(annotation, key), _default(key, default), part.texts[key])
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _fields(held: type | None) -> dict[str, tuple[Any, Any]]:
    """name -> (type, default; MISSING where it is required)."""
    if held is None:
        return {}
    hints = typing.get_type_hints(held)
    return {field.name: (hints[field.name], field.default) for field in dataclasses.fields(held)}


def _values(annotation: Any, key: str = "") -> str:
    """In the words of the file, where the type says it."""
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return " | ".join(f"`{member.value}`" for member in annotation)
    if annotation is bool:
        return "`true` | `false`"
    if annotation is int:
        return "size" if key in SIZES else "number"
    if annotation is Path:
        return "path"
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        found = [_values(one) for one in arguments if one is not type(None)]
        return " | ".join(one for one in found if one)
    if typing.get_origin(annotation) is typing.Literal:
        return " | ".join(f"`{one}`" for one in arguments)
    if typing.get_origin(annotation) is tuple and arguments:
        inner = _values(arguments[0])
        if typing.get_origin(arguments[0]) is tuple:
            return ""
        return f"list of {inner}" if inner else "list"
    return "text" if annotation is str else ""


def _default(key: str, default: Any) -> str:
    if isinstance(default, enum.Enum):
        return f"`{default.value}`"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, int):
        return f"`{_size(default)}`" if key in SIZES else f"`{default}`"
    if isinstance(default, tuple) and default and all(isinstance(one, str) for one in default):
        return f"`[{', '.join(default)}]`"
    return f"`{default}`" if isinstance(default, (str, Path)) and str(default) else ""


def _size(count: int) -> str:
    for text in (f"{count >> 20}mb", f"{count >> 10}kb"):
        if parse_size(text) == count:
            return text
    return str(count)


def commands_reference() -> str:
    """Markdown: the help of every command, as it prints it."""
    lines = ["# Command reference", "", "Made by `make docs`: what `--help` says of each command.", ""]
    for path, command in _commands(("nfw",), cli):
        settings = {**cli.context_settings, "max_content_width": 100, "terminal_width": 100}
        context = click.Context(command, info_name=" ".join(path), **settings)
        lines += [f"## {' '.join(path)}", "", "```", command.get_help(context).rstrip(), "```", ""]
    return "\n".join(lines)


def _commands(path: Sequence[str], command: click.Command) -> Iterator[tuple[Sequence[str], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path[-1])
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from _commands((*path, name), found)


def documents() -> dict[Path, str]:
    """Each file with what is to be in it."""
    return {POLICY: policy_reference(), COMMANDS: commands_reference()}


def main() -> int:
    """Write them."""
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
