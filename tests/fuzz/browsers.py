"""What browsers take for offers of HTTP/3 on a connection of HTTP/1, as leniently as they read.

After Chromium's net/http (http_util.cc, http_response_headers.cc, http_stream_parser.cc, http_chunked_decoder.cc) and
Firefox's netwerk/protocol/http (nsHttpTransaction.cpp, nsHttpResponseHead.cpp, nsHttpChunkedDecoder.cpp). Where a
browser gives a connection up, reading ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

OFFER = re.compile(rb"(?i)(?:^|[\s,])(?:h3|hq|quic)[\w.-]*\s*=")
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_END = re.compile(rb"\n\r?\n")


def offers(methods: list[bytes], said: bytes) -> Iterator[bytes]:
    """Values of Alt-Svc that offer QUIC, as either browser sees them in the answers to such requests."""
    for values in (_chromium(methods, said), _firefox(methods, said)):
        yield from (value for value in values if OFFER.search(value))


def _chromium(methods: list[bytes], said: bytes) -> Iterator[bytes]:
    at = 0
    for method in methods:
        while True:
            begin = said[at : at + 8].lower().find(b"http")
            end = _END.search(said, at + max(begin, 0))
            if not 0 <= begin <= 4 or end is None:
                return
            status_line, headers = _chromium_head(said[at + begin : end.end()])
            at = end.end()
            yield from headers.get(b"alt-svc", [])
            found = re.match(rb"(?i)http/(\d)\.(\d)", status_line)
            modern = found is not None and (int(found[1]), int(found[2])) >= (1, 1)
            code = re.match(rb"[^ ]* +(\d+)", status_line)
            status = int(code[1][:9]) if code else 200
            if status // 100 != 1:
                break
        codings = [one.strip().lower() for value in headers.get(b"transfer-encoding", []) for one in value.split(b",")]
        lengths = [one.strip() for value in headers.get(b"content-length", []) for one in value.split(b",")]
        if status in (204, 205, 304) or method == b"HEAD":
            continue
        if not codings and len(set(lengths)) > 1:
            return
        if b"chunked" in codings and modern:
            if (after := _chunks(said, at, _chromium_size)) is None:
                return
            at = after
        elif lengths and re.fullmatch(rb"\d{1,40}", lengths[0]):
            at += int(lengths[0])
        else:
            return


def _chromium_head(head: bytes) -> tuple[bytes, dict[bytes, list[bytes]]]:
    lines = re.split(rb"[\r\n]+", head.replace(b"\0", b""))
    joined: list[bytes] = []
    continuable = False
    for line in lines[1:]:
        if continuable and line[:1] in (b" ", b"\t"):
            joined[-1] += b" " + line.strip(b" \t")
        elif line:
            joined.append(line)
            name = line.partition(b":")
            continuable = bool(name[1] and name[0]) and line[:1] not in (b" ", b"\t")
    headers: dict[bytes, list[bytes]] = {}
    for line in joined:
        name, colon, value = line.partition(b":")
        if colon and line[:1] not in (b" ", b"\t"):
            headers.setdefault(name.strip(b" \t").lower(), []).append(value.strip(b" \t"))
    return lines[0], headers


def _chromium_size(line: bytes) -> int | None:
    size = line.split(b";")[0].rstrip(b" ")
    return int(size, 16) if re.fullmatch(rb"[0-9A-Fa-f]+", size) and len(line) < 16384 else None


def _firefox(methods: list[bytes], said: bytes) -> Iterator[bytes]:
    at, forgiving = 0, False
    for method in methods:
        while True:
            begin = said.lower().find(b"http/1.", at) if forgiving else said[at : at + 18].lower().find(b"http/1.")
            begin += 0 if forgiving else at
            end = _END.search(said, begin) if begin >= at else None
            if end is None:
                return
            lines: list[bytes] = []
            for line in said[begin : end.end()].split(b"\n"):
                text = line.removesuffix(b"\r")
                if lines and text[:1] in (b" ", b"\t"):
                    lines[-1] += text
                else:
                    lines.append(text)
            at = end.end()
            headers: dict[bytes, list[bytes]] = {}
            for line in lines[1:]:
                name, _, value = line.partition(b":")
                if _TOKEN.fullmatch(name):
                    headers.setdefault(name.lower(), []).append(value.strip(b" \t"))
            yield from headers.get(b"alt-svc", [])
            code = re.match(rb"[^ ]* +(\d+)", lines[0])
            status = int(code[1][:9]) if code else 200
            forgiving = True
            if status // 100 != 1 or status == 101:
                break
        if status in (101, 204, 205, 304) or method == b"HEAD":
            continue
        forgiving = False
        codings = b",".join(headers.get(b"transfer-encoding", [])).lower().replace(b" ", b"").split(b",")
        length = re.match(rb"\d+", b"".join(headers.get(b"content-length", [])[:1]))
        if b"chunked" in codings:
            if (after := _chunks(said, at, _firefox_size)) is None:
                return
            at = after
        elif length:
            at += int(length[0][:40])
        else:
            return


def _firefox_size(line: bytes) -> int | None:
    size = re.match(rb"\s*[+]?(?:0[xX](?=[0-9A-Fa-f]))?([0-9A-Fa-f]+)", line.split(b";")[0])
    return int(size[1], 16) if size and int(size[1], 16) < 1 << 32 else None


def _chunks(said: bytes, at: int, size_of: Callable[[bytes], int | None]) -> int | None:
    """Where the body ends that begins there; None: nowhere that a browser would go on from."""
    last = False
    while True:
        end = said.find(b"\n", at)
        if end < 0:
            return None
        line = said[at:end].removesuffix(b"\r")
        at = end + 1
        if last and not line:
            return at
        if last:
            continue
        size = size_of(line)
        if size is None:
            return None
        last = not size
        at += size
        if size:
            end = said.find(b"\n", at)
            if end < 0 or said[at:end].removesuffix(b"\r"):
                return None
            at = end + 1
