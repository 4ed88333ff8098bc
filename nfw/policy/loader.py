"""A policy file to a :class:`nfw.policy.model.Policy`, or to every error in it at once.

``nfw policy check`` and the daemon call the same function. Nothing outside the process changes; what is read is the
policy file, the rule files, certificates and trust files it names and, when asked, the CA's key.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from nfw.cache import Cache
from nfw.policy.errors import Problems
from nfw.policy.fields import Section, describe, open_section
from nfw.policy.files import read_bounded
from nfw.policy.model import (
    Flows,
    OpenFlows,
    OpenFlowsOf,
    Policy,
    Refusal,
    WhenFull,
)
from nfw.policy.read_log import read_log
from nfw.policy.read_stateful import read_stateful
from nfw.policy.read_stateless import read_stateless
from nfw.policy.read_tls import read_tls
from nfw.policy.variables import read_variables
from nfw.policy.yamlpos import MAX_BYTES, Scalar, parse_yaml

KEYS = (
    "name",
    "variables",
    "stateless",
    "tls",
    "stateful",
    "open_flows",
    "flows",
    "fail_open",
    "workers",
    "log",
)
FLOWS_KEYS = ("max_flows", "tcp_idle", "tcp_opening", "udp", "icmp", "other", "when_full")
MAX_WORKERS = 64  # queues of one generation; a router with more cores than that is not this program's
MAX_FLOWS = 1 << 24
MAX_TIMEOUT = 86_400  # seconds; a longer idle flow is better forgotten


def load_policy(
    path: str | Path, *, check_key: bool = False, now: float | None = None, cache: Cache | None = None
) -> Policy:
    """The policy in the YAML file at ``path``. Relative paths in it start from the directory of the file.

    ``check_key``: also read the CA's private key and see that it matches (never in the daemon, whose key holder alone
    reads it). ``now``: Unix seconds certificates are judged by; the clock's when None. ``cache``: where rules parsed
    earlier may be found.

    Raises :class:`nfw.policy.errors.PolicyErrors` with everything that is wrong; warnings are in ``Policy.warnings``.
    """
    path = Path(path)
    problems = Problems(str(path))
    try:
        data = read_bounded(path, MAX_BYTES)
    except OSError as error:
        problems.error(None, f"policy file {error.strerror}")
        data = b""
    problems.raise_if_any()
    with paused_gc():
        return load_policy_text(data, path, problems, check_key=check_key, now=now, cache=cache)


def load_policy_text(
    data: bytes,
    path: Path,
    problems: Problems | None = None,
    *,
    check_key: bool = False,
    now: float | None = None,
    cache: Cache | None = None,
) -> Policy:
    """As :func:`load_policy`, for the file's content already at hand."""
    problems = problems or Problems(str(path))
    now = time.time() if now is None else now
    root = parse_yaml(data, problems)
    section = None
    if root is not None:
        section = open_section(root, "policy", KEYS, "{name: egress, stateless: {default: forward}}", problems)
    if section is None:
        problems.raise_if_any()
        raise AssertionError("a file without a policy yields an error")
    section.where = ""
    variables = read_variables(section.get("variables"), problems)
    text = data.decode("utf-8-sig")
    policy = Policy(
        name=section.text("name", "a text", default=path.stem),
        file=path,
        variables=variables,
        stateless=read_stateless(section.get("stateless"), variables, problems),
        tls=read_tls(section.get("tls"), variables, path.parent, problems, check_key=check_key, now=now),
        stateful=read_stateful(section.get("stateful"), variables, path.parent, text, problems, cache),
        open_flows=_read_open_flows(section),
        flows=_read_flows(section),
        fail_open=section.flag("fail_open", False),
        workers=_read_workers(section),
        log=read_log(section, path.parent),
        warnings=tuple(problems.warnings),
    )
    problems.raise_if_any()
    return policy


def _read_open_flows(section: Section) -> OpenFlows:
    part = section.section("open_flows", ("which", "action"), "{which: all, action: drop}")
    if part is None:
        return OpenFlows()
    return OpenFlows(part.choice("which", OpenFlowsOf.ALL), part.choice("action", Refusal.DROP))


def _read_flows(section: Section) -> Flows:
    part = section.section("flows", FLOWS_KEYS, "{max_flows: 100000, tcp_idle: 350}")
    default = Flows()
    if part is None:
        return default
    return Flows(
        max_flows=part.integer("max_flows", 16, MAX_FLOWS, default.max_flows),
        tcp_idle=part.integer("tcp_idle", 60, 6000, default.tcp_idle),
        tcp_opening=part.integer("tcp_opening", 1, MAX_TIMEOUT, default.tcp_opening),
        udp=part.integer("udp", 1, MAX_TIMEOUT, default.udp),
        icmp=part.integer("icmp", 1, MAX_TIMEOUT, default.icmp),
        other=part.integer("other", 1, MAX_TIMEOUT, default.other),
        when_full=part.choice("when_full", WhenFull.EVICT_OLDEST),
    )


def _read_workers(section: Section) -> int | Literal["auto"]:
    node = section.get("workers")
    if node is None or (isinstance(node, Scalar) and node.value == "auto"):
        return "auto"
    if isinstance(node, Scalar) and type(node.value) is int and 1 <= node.value <= MAX_WORKERS:
        return node.value
    section.error(node, f"workers: expected auto or a number from 1 to {MAX_WORKERS}, got {describe(node)}")
    return "auto"


@contextmanager
def paused_gc() -> Iterator[None]:
    """Ten thousand rules are a million objects that all stay: a third of the time would go to looking for garbage."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
