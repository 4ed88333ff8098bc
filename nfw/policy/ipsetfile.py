"""Files that hold a set of addresses: what an IP set reference stands for."""

from __future__ import annotations

from pathlib import Path

from nfw.policy.errors import Problems
from nfw.policy.files import read_bounded
from nfw.policy.jsonpos import parse_json
from nfw.policy.values import parse_address_item
from nfw.policy.yamlpos import Mapping, Node, Scalar, Sequence, decode_utf8

MAX_IP_SET_BYTES = 64 << 20  # AWS's million of blocks
# What a set stands for of which an error was told: the rules that name it are not wrong, too. No such policy loads.
UNREAD = ("any",)


def read_ip_set(path: Path, place: Node | None, problems: Problems) -> tuple[str, ...]:
    """A file with one address or block a line, ``#`` for comments; or what ``aws ec2 get-managed-prefix-list-entries``
    prints. What is wrong with its lines is said with their place in it; that it cannot be read, with ``place``."""
    try:
        data = read_bounded(path, MAX_IP_SET_BYTES)
    except OSError as error:
        problems.error(place, f"ip_sets: {path} {error.strerror}{_remedy(place)}", code="missing-reference")
        return ()
    inside = Problems(str(path))
    items: list[Scalar] = []
    if data.lstrip()[:1] == b"{":
        for root in parse_json(data, inside):
            entries = next((value for key, value in _of(root) if key.text == "Entries"), None)
            for each in entries.items if isinstance(entries, Sequence) else ():
                items += [value for key, value in _of(each) if key.text == "Cidr" and isinstance(value, Scalar)]
    else:
        text = decode_utf8(data, inside)
        for number, line in enumerate((text or "").splitlines(), 1):
            bare = line.partition("#")[0].strip()
            if bare:
                items.append(Scalar(bare, bare, number, 1))
    networks: list[str] = []
    for item in items:
        try:
            networks.append(parse_address_item(item.text))
        except ValueError as error:
            inside.error(item, str(error))
    if not networks and not inside.errors:
        inside.error(None, "no address in this file; expected one address or block a line")
    problems.merge(inside)
    return tuple(networks)


def _remedy(place: Node | None) -> str:
    """For one address, given where a file's name or a list is expected."""
    try:
        return f"; for an address write a list, [{parse_address_item(place.text)}]" if isinstance(place, Scalar) else ""
    except ValueError:
        return ""


def _of(node: Node) -> tuple[tuple[Scalar, Node], ...]:
    return node.entries if isinstance(node, Mapping) else ()
