"""EVE records as lines for a person, and a file of them that is followed. Formatting is pure.

What the network said is in those records, so nothing that a terminal would obey reaches it: control characters and
what text can be turned round with are written as escapes.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

PLAIN, DIM, RED, YELLOW, GREEN, BOLD = "", "2", "31", "33", "32", "1"
_COLOURS = {"alert": YELLOW, "drop": RED, "tls": GREEN, "log_dropped": RED}
LINE_BYTES: Final = 1 << 20  # a longer one is no record of ours
CHUNK_BYTES: Final = 1 << 16


def clean(value: object) -> str:
    """Text of ``value`` in which every character is printed as itself or as an escape."""
    text = value if isinstance(value, str) else str(value)
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    if character.isprintable() and unicodedata.category(character) not in ("Cf", "Co", "Cs"):
        return character
    return character.encode("unicode_escape").decode("ascii")


def parse(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None for what is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def wanted(event: Mapping[str, Any], kinds: Collection[str], text: str) -> bool:
    """``kinds``: event types, none is all. ``text``: occurs in the line a person sees, whatever the case."""
    if kinds and event.get("event_type") not in kinds:
        return False
    return not text or text.lower() in describe(event).lower()


def describe(event: Mapping[str, Any], *, colour: bool = False, brief: bool = False) -> str:
    """One line: time, kind, who with whom, what. ``brief``: for a narrow screen, seconds and no source port."""
    kind = clean(event.get("event_type", "?"))
    time = clean(event.get("timestamp", ""))[11 : 19 if brief else 23] or "-"
    words = [time, f"{kind:<6}"]
    if "src_ip" in event:
        source = clean(event["src_ip"]) if brief else endpoint(event, "src")
        words.append(f"{clean(event.get('proto', ''))} {source} > {endpoint(event, 'dest')}")
    words += [word for word in _details(kind, event) if word]
    line = "  ".join(words)
    code = _COLOURS.get(kind, PLAIN)
    return f"\x1b[{code}m{line}\x1b[0m" if colour and code else line


def endpoint(event: Mapping[str, Any], side: str) -> str:
    """``192.0.2.1:443`` or ``[2001:db8::1]:443`` of ``src`` or ``dest``."""
    address, port = clean(event.get(f"{side}_ip", "?")), event.get(f"{side}_port")
    if port is None:
        return address
    return f"[{address}]:{clean(port)}" if ":" in address else f"{address}:{clean(port)}"


def _details(kind: str, event: Mapping[str, Any]) -> Iterator[str]:
    ours = _part(event, "nfw")
    verdict = clean(_part(event, "verdict").get("action", ""))
    if "would_be" in _part(event, "verdict"):  # mode monitor
        verdict = f"would {clean(_part(event, 'verdict')['would_be'])}"
    if kind == "alert":
        alert = _part(event, "alert")
        rule = f"{clean(alert.get('gid', 1))}:{clean(alert.get('signature_id', '?'))}"
        yield f"[{rule}] {clean(alert.get('signature', ''))}"
        yield verdict or clean(alert.get("action", ""))
    elif kind == "drop":
        yield f"{verdict or 'drop'}: {clean(ours.get('reason') or _part(event, 'drop').get('reason', '?'))}"
        yield clean(ours.get("rule", ""))
    elif kind == "flow":
        flow = _part(event, "flow")
        yield f"{size(flow.get('bytes_toserver', 0))} out, {size(flow.get('bytes_toclient', 0))} in"
        yield f"{clean(flow.get('age', 0))} s"
        yield clean(flow.get("reason", ""))
        yield clean(event.get("app_proto", ""))
    elif kind == "stats":
        decoder, ips = _part(_part(event, "stats"), "decoder"), _part(_part(event, "stats"), "ips")
        yield f"{clean(decoder.get('pkts', 0))} packets, {clean(ips.get('blocked', 0))} blocked"
    elif kind == "log_dropped":
        yield f"{clean(ours.get('lines', '?'))} lines lost" + (f" by {clean(ours['sink'])}" if "sink" in ours else "")
    if kind == "tls":
        yield clean(ours.get("status", "")) + (f", {verdict}" if verdict.startswith("would ") else "")
        yield clean(ours.get("detail") or ours.get("reason", "")) if ours.get("status") != "OK" else ""
    name = name_of(event)
    if name:
        yield name


def name_of(event: Mapping[str, Any]) -> str:
    """The server's name as far as the record tells: HTTP host and URL, SNI or what was asked of DNS."""
    http, tls, dns = _part(event, "http"), _part(event, "tls"), _part(event, "dns")
    if http:
        method, status = clean(http.get("http_method", "")), http.get("status")
        text = f"{method} {clean(http.get('hostname', '-'))}{clean(http.get('url', ''))[:200]}".strip()
        return f"{text} {clean(status)}" if status is not None else text
    if tls:
        return clean(tls.get("sni") or "-")
    queries = dns.get("queries")
    if isinstance(queries, list) and queries and isinstance(queries[0], dict):
        asked = f"{clean(queries[0].get('rrname', '?'))} {clean(queries[0].get('rrtype', ''))}"
        answers = dns.get("answers")
        data = [clean(one["rdata"]) for one in answers if "rdata" in one] if isinstance(answers, list) else []
        return f"{asked} {clean(dns.get('rcode', ''))} {', '.join(data[:3])}".rstrip()
    return ""


def size(count: object) -> str:
    """``1.2 MB``; at most seven columns."""
    value = float(count) if isinstance(count, (int, float)) else 0.0
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _part(event: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = event.get(name)
    return value if isinstance(value, Mapping) else {}


class Tail:
    """The lines of a file from near its end on, through rotation and truncation. Nothing waits.

    Raises OSError when the file cannot be opened; later it may go and come as it likes.
    """

    def __init__(self, path: str, lines: int) -> None:
        """``lines`` that are there already are given first."""
        self.path = path
        self._rest = b""
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        os.lseek(self._fd, self._start(lines), os.SEEK_SET)

    def read(self) -> list[bytes]:
        """Complete lines that are new; at most a few thousand, so that whoever shows them can keep up."""
        found: list[bytes] = []
        while len(found) < 2000:
            data = os.read(self._fd, CHUNK_BYTES)
            if not data:
                if not self._replaced():
                    break
                continue
            *whole, self._rest = (self._rest + data).split(b"\n")
            found += whole
            if len(self._rest) > LINE_BYTES:
                self._rest = b""
        return found

    def close(self) -> None:
        os.close(self._fd)

    def _replaced(self) -> bool:
        """Open the file that has taken the place of the one that was read to its end; True when there is one."""
        here = os.fstat(self._fd)
        try:
            there = os.stat(self.path)
            if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
                fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                os.close(self._fd)
                self._fd, self._rest = fd, b""
                return True
        except OSError:
            return False
        if here.st_size < os.lseek(self._fd, 0, os.SEEK_CUR):
            os.lseek(self._fd, 0, os.SEEK_SET)
            self._rest = b""
            return here.st_size > 0
        return False

    def _start(self, lines: int) -> int:
        end = os.lseek(self._fd, 0, os.SEEK_END)
        at, seen = end, 0
        while at > 0 and end - at < 64 * LINE_BYTES:
            step = min(CHUNK_BYTES, at)
            data = os.pread(self._fd, step, at - step)
            for place in range(len(data) - 1, -1, -1):
                if data[place] == 10 and at - step + place != end - 1:
                    seen += 1
                    if seen == lines:
                        return at - step + place + 1
            at -= step
        return 0 if lines and at <= 0 else end if not lines else at
