"""A policy file to a :class:`nfw.policy.model.Policy`, or to every error in it at once.

``nfw policy check`` and the daemon call the same function. Nothing outside the process changes; what is read is the
policy file, the rule files, certificates and trust files it names and, when asked, the CA's key.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nfw.cache import Cache
from nfw.policy.errors import PolicyError, PolicyErrors, Problems
from nfw.policy.fields import open_section
from nfw.policy.files import is_folder
from nfw.policy.model import Mode, Policy
from nfw.policy.read_log import read_log
from nfw.policy.read_stateful import read_stateful
from nfw.policy.read_stateless import read_stateless
from nfw.policy.read_tls import read_inbound, read_tls
from nfw.policy.settings import read_flows, read_open_flows, read_workers
from nfw.policy.variables import read_variables
from nfw.policy.yamlpos import Mapping, Node, parse_yaml

if TYPE_CHECKING:
    from nfw.policy.aws.documents import Loaded

_NAMED = 5  # files named in a message
KEYS = (
    "name",
    "arn",
    "mode",
    "variables",
    "stateless",
    "tls",
    "inbound",
    "stateful",
    "open_flows",
    "flows",
    "fail_open",
    "workers",
    "log",
)


def load_policy(
    path: str | Path,
    *more: str | Path,
    map_file: str | Path | None = None,
    name: str = "",
    check_key: bool = False,
    now: float | None = None,
    cache: Cache | None = None,
) -> Policy:
    """The policy in the file at ``path``: nfw's own YAML, or documents of AWS Network Firewall.

    AWS documents may be in several files and folders (``more``); ``map_file`` says what they refer to but do not hold,
    ``name`` which policy is meant when they hold several. Relative paths in a file start from the file's directory.
    ``check_key``: also read the CA's private key and see that it matches (never in the daemon, whose key holder alone
    reads it). ``now``: Unix seconds certificates are judged by; the clock's when None. ``cache``: where rules parsed
    earlier may be found.

    Raises :class:`nfw.policy.errors.PolicyErrors` with everything that is wrong; warnings are in ``Policy.warnings``.
    """
    from nfw.policy.aws.documents import expand, is_aws, is_policy, read_file

    first = Path(path)
    now = time.time() if now is None else now
    problems = Problems(str(first))
    mapped = Path(map_file) if map_file is not None else None
    with paused_gc():
        files = [read_file(each) for each in expand([first, *map(Path, more)], problems, mapped)]
        ours = [each for each in files if each.roots and not is_aws(each)]
        if len(files) == 1 and ours and mapped is None and not is_folder(first):
            found = ours[0]
            if not is_policy(found.roots[0], KEYS, found.problems):
                found.problems.raise_if_any()
            mine = _native(found.roots[0], found.text, first, found.problems, check_key=check_key, now=now, cache=cache)
            if name and mine.name != name:
                raise PolicyErrors([PolicyError(str(first), 0, 0, f"no policy {name} here; given: {mine.name}")])
            return mine
        if not any(is_aws(each) for each in files):
            for each in files:
                problems.merge(each.problems)
            if not problems.errors:
                problems.error(None, _no_documents(first, ours, mapped is not None), code="wrong-kind")
            problems.raise_if_any()
        from nfw.policy.aws.loader import load_documents

        return load_documents(files, problems, map_file=mapped, name=name, check_key=check_key, now=now, cache=cache)


def _no_documents(first: Path, files: Sequence[Loaded], mapped: bool) -> str:
    """What is wrong with ``files``, none of which holds a document of AWS."""
    from nfw.policy.aws.documents import no_document

    policies = [each.path for each in files if _looks_native(each.roots[0])]
    if mapped and policies:
        which = "this" if policies[0] == first else policies[0]
        return f"{which} is a policy of nfw's own, and a map file goes with AWS documents; leave the map out"
    inside = "in this folder" if is_folder(first) else f"among these {len(files)} files" if len(files) > 1 else "here"
    missing = f"no document of AWS Network Firewall {inside}"
    if not policies:
        return f"{missing}; {no_document(files[0].roots[0])}"
    several = len(policies) > 1
    names = ", ".join(str(path) for path in policies[:_NAMED]) + (" ..." if len(policies) > _NAMED else "")
    kind = "policies of nfw's own, loaded one at a time" if several else "a policy of nfw's own"
    return f"{missing}; {names} {'are' if several else 'is'} {kind}: name {'one' if several else 'that file alone'}"


def is_policy_file(path: Path, data: bytes) -> bool:
    """Whether a file named as one holds a policy, or documents of AWS, however wrong. For messages."""
    from nfw.policy.aws.documents import SUFFIXES, is_aws, parse_file

    if path.suffix.lower() not in SUFFIXES:
        return False
    loaded = parse_file(path, data, Problems(str(path)))
    return bool(loaded.roots) and (_looks_native(loaded.roots[0]) or is_aws(loaded))


def is_own(path: Path) -> bool:
    """Whether a policy of nfw's own is there: a map file, which goes with documents of AWS, is not for it."""
    from nfw.policy.aws.documents import is_aws, read_file

    loaded = read_file(path)
    return bool(loaded.roots) and _looks_native(loaded.roots[0]) and not is_aws(loaded)


def _looks_native(root: Node) -> bool:
    return isinstance(root, Mapping) and any(key.text in KEYS for key, _ in root.entries)


def load_policy_text(
    data: bytes,
    path: Path,
    problems: Problems | None = None,
    *,
    check_key: bool = False,
    now: float | None = None,
    cache: Cache | None = None,
) -> Policy:
    """A policy of nfw's own whose content is ``data``, as though it were the file at ``path``."""
    problems = problems or Problems(str(path))
    now = time.time() if now is None else now
    root = parse_yaml(data, problems)
    if root is None:
        problems.raise_if_any()
        raise AssertionError("a file without a policy yields an error")
    return _native(root, data.decode("utf-8-sig"), path, problems, check_key=check_key, now=now, cache=cache)


def _native(
    root: Node, text: str, path: Path, problems: Problems, *, check_key: bool, now: float, cache: Cache | None
) -> Policy:
    section = open_section(root, "policy", KEYS, "{name: egress, stateless: {default: forward}}", problems)
    if section is None:
        problems.raise_if_any()
        raise AssertionError("a file without a policy yields an error")
    section.where = ""
    variables = read_variables(section.get("variables"), problems)
    policy = Policy(
        name=section.text("name", "a text", default=path.stem),
        file=path,
        variables=variables,
        stateless=read_stateless(section.get("stateless"), variables, problems),
        tls=read_tls(section.get("tls"), variables, path.parent, problems, check_key=check_key, now=now),
        inbound=read_inbound(
            section.get("inbound"),
            variables,
            path.parent,
            problems,
            check_key=check_key,
            outbound=section.get("tls") is not None,
        ),
        stateful=read_stateful(section.get("stateful"), variables, path.parent, text, problems, cache),
        arn=section.text("arn", "a text"),
        open_flows=read_open_flows(section),
        flows=read_flows(section),
        mode=section.choice("mode", Mode.ENFORCE),
        fail_open=section.flag("fail_open", False),
        workers=read_workers(section),
        log=read_log(section, path.parent),
        warnings=tuple(problems.warnings),
    )
    problems.raise_if_any()
    return policy


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
