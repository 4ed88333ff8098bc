"""Where the settings of a policy file are written: for reports about what is no rule and so knows no line."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from pathlib import Path
from typing import NamedTuple

from nfw.policy.errors import Problems
from nfw.policy.yamlpos import MAX_BYTES, Mapping, Node, Sequence, parse_yaml

_DEPTH = 4


class Place(NamedTuple):
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


def places(file: Path) -> Dict[str, Place]:
    """``stateful.default_actions`` -> its place, ``tls.scopes.1`` -> that of the first scope,
    ``inbound.1.scopes.1`` likewise. Empty for what is not a
    policy in YAML, or is not there (any more)."""
    try:
        if file.is_dir() or file.stat().st_size > MAX_BYTES:
            return {}
        data = file.read_bytes()
    except OSError:
        return {}
    root = parse_yaml(data, Problems(str(file)), local_tags=True)
    found: dict[str, Place] = {}
    if isinstance(root, Mapping):
        _collect(root, "", str(file), _DEPTH, found)
    return found


def _collect(node: Node, path: str, file: str, depth: int, found: dict[str, Place]) -> None:
    if depth == 0:
        return
    if isinstance(node, Mapping):
        for key, value in node.entries:
            below = f"{path}.{key.text}" if path else key.text
            found[below] = Place(file, key.line)
            _collect(value, below, file, depth - 1, found)
    elif isinstance(node, Sequence):
        for number, item in enumerate(node.items, 1):
            found[f"{path}.{number}"] = Place(file, item.line)
            _collect(item, f"{path}.{number}", file, depth - 1, found)
