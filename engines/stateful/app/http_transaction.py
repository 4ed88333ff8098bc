"""An HTTP request and its response, and every ``http.*`` sticky buffer they have.

Shared by HTTP/1 and HTTP/2: parsers fill two :class:`Head` values and their bodies, this module knows what rules call
the pieces. Buffers of a head are computed when a rule asks and kept.

Source: Suricata user guide, "HTTP Keywords"; normalisation as libhtp does it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from engines.stateful.app.bodies import Body, decoders_for
from engines.stateful.app.digests import ALGORITHMS
from engines.stateful.app.files import Files
from engines.stateful.app.http2_frames import NAMES as FRAME_BUFFERS
from engines.stateful.app.http2_frames import FrameValues, Values
from engines.stateful.app.limits import AppLimits
from engines.stateful.app.mime import parameter
from engines.stateful.app.multipart import Form, boundary_of
from engines.stateful.app.transaction import BaseTransaction
from engines.stateful.app.uri import Target, normalise_host, parse_target
from engines.verdict import Direction

_CRLF = b"\r\n"
_COOKIES = frozenset((b"cookie", b"set-cookie"))
# A head cannot repeat one field more often than this and have every copy joined; libhtp stops at 64 as well.
_MAX_REPEATS = 64

Fields = dict[bytes, tuple[bytes, bytes]]


class Head:
    """Start line and fields of one message.

    ``fields`` maps the lower-case name to (name as first written, value); repeated fields are joined with ", " at the
    place of the first, as libhtp does. ``raw`` is the field block as sent, its empty line included.
    """

    __slots__ = ("body", "fields", "first", "line", "other", "raw", "second", "third")

    def __init__(
        self, line: bytes, parts: tuple[bytes, bytes, bytes], fields: Fields, raw: bytes, body: Body | None = None
    ) -> None:
        self.line = line  # without line end
        # Request: method, target, protocol. Response: protocol, status, reason.
        self.first, self.second, self.third = parts
        self.fields = fields
        self.raw = raw
        self.body = body
        self.other: Body | None = None  # the body as a client reads it that does not follow a doubtful framing

    def value(self, name: bytes) -> bytes | None:
        """Value of a field by its lower-case name."""
        field = self.fields.get(name)
        return None if field is None else field[1]


class HttpTransaction(BaseTransaction):
    """See :class:`engines.stateful.app.Transaction`. ``request`` or ``response`` is None until its head is complete."""

    __slots__ = (
        "_cache",
        "_form",
        "_form_fed",
        "_target",
        "authority",
        "frames",
        "inner",
        "line",
        "request",
        "response",
        "version",
    )

    def __init__(self, tx_id: int, version: bytes = b"") -> None:
        super().__init__(tx_id)
        self.request: Head | None = None
        self.response: Head | None = None
        self.line: Head | None = None  # the request line, where it is judged before the rest of the head
        self.version = version  # HTTP/2 has none on the wire
        self.authority: bytes | None = None  # HTTP/2 :authority
        self.frames: FrameValues | None = None  # HTTP/2, where rules ask
        self.inner: list[BaseTransaction | None] = [None, None]  # by direction: the DNS message inside (RFC 8484)
        self._target: Target | None = None
        self._form: Form | None = None  # the request's body read as one
        self._form_fed = 0
        self._cache: dict[tuple[str, Direction], Sequence[bytes]] = {}

    def buffer(self, name: str, direction: Direction | None = None) -> Sequence[bytes]:
        if direction is None:
            sides = BUFFERS[name][0] if name in BUFFERS else _BOTH
            return tuple(data for side in sides for data in self.buffer(name, side))
        found = _BY_SIDE[direction].get(name)
        if found is None:
            if name in FRAME_BUFFERS:
                return () if self.frames is None else self.frames.get(name, direction)
            inner = self.inner[direction]
            return () if inner is None or name in BUFFERS else tuple(inner.buffer(name, direction))
        head = self.response if direction else self.request
        if head is None:
            if self.line is None or direction or name not in _OF_LINE:
                return ()
            head = self.line
        getter, cacheable = found
        if not cacheable:
            return getter(self, head, direction)
        key = (name, direction)
        made = self._cache.get(key)
        if made is None:
            made = self._cache[key] = getter(self, head, direction)
        return made

    def end_of(self, name: str, direction: Direction, start: int) -> tuple[int, bytes] | None:
        found = _BY_SIDE[direction].get(name)
        head = self.response if direction else self.request
        if found is None or head is None or not (found[0] is _body or found[0] is _file_data):
            return None
        body = head.body
        if body is None or head.other is not None or (self._form is not None and not direction):
            return None
        data = body.since(start)
        return (start + len(data), data) if data else None

    def set_head(self, direction: Direction, head: Head) -> None:
        """The head of one side is complete."""
        if direction is Direction.TO_SERVER:
            self.request = head
        else:
            self.response = head
        self.touch(direction)

    def set_line(self, line: Head) -> None:
        """The request line is complete."""
        self.line = line
        self.touch(Direction.TO_SERVER)

    def has_begun(self, direction: Direction) -> bool:
        return (self.response if direction else self.request) is not None

    def open_body(self, direction: Direction, limits: AppLimits) -> Body:
        """Where the body of that side goes, with its content codings undone."""
        head = self.response if direction else self.request
        assert head is not None
        if head.body is None:
            head.body = self._new_body(direction, head, limits)
            boundary = boundary_of(head.value(b"content-type")) if direction is Direction.TO_SERVER else None
            if boundary is not None:
                self._form = Form(boundary, limits, self.add_event)
        return head.body

    def second_reading(self, limits: AppLimits) -> Body:
        """For a response whose framing clients read in two ways: the body they see who take it as it is."""
        head = self.response
        assert head is not None
        if head.other is None:
            head.other = self._new_body(Direction.TO_CLIENT, head, limits)
            self.touch(Direction.TO_CLIENT)
        return head.other

    def _new_body(self, direction: Direction, head: Head, limits: AppLimits) -> Body:
        codings = head.value(b"content-encoding")
        decoders, events = decoders_for(codings, limits) if codings else ([], [])
        for event in events:
            self.add_event(event)
        return Body(limits.response_body if direction else limits.request_body, decoders, limits)

    def body_changed(self, direction: Direction, body: Body) -> None:
        """The body grew or stopped growing: pass its events on."""
        if body.events:
            for event in body.events:
                self.add_event(event)
        if self._form is not None and direction is Direction.TO_SERVER and body.size > self._form_fed:
            self._form.feed(body.since(self._form_fed))
            self._form_fed = body.size
            self.touch(direction)  # files may have come to light
        else:
            self.grow(direction)

    def finish(self, direction: Direction) -> None:
        if self._form is not None and direction is Direction.TO_SERVER:
            self._form.finish()
        super().finish(direction)

    def add_frame(self, direction: Direction, values: Values) -> None:
        """A frame of the stream came."""
        if self.frames is None:
            self.frames = FrameValues()
        new, full = self.frames.add(direction, values)
        if full:
            self.add_event("too_many_frames")
        if new or full:
            self.touch(direction)

    def files(self, direction: Direction) -> Files | None:
        """The files of a form; None when the body is the file."""
        return self._form.files if self._form is not None and direction is Direction.TO_SERVER else None

    @property
    def target(self) -> Target:
        """The request target; only with a request, or its line."""
        if self._target is None:
            request = self.request or self.line
            assert request is not None
            self._target = parse_target(request.second, request.first == b"CONNECT")
        return self._target

    def raw_host(self) -> bytes | None:
        """Whom the request is for: the target's host comes first (RFC 9112, section 3.2.2), then the Host field."""
        if self.request is None:
            return None
        host = self.target.host if self.authority is None else self.authority
        return self.request.value(b"host") if host is None else host

    def log_fields(self) -> dict[str, object]:
        """EVE ``http`` object. Source: Suricata user guide, "EVE JSON format"."""
        fields: dict[str, object] = {}
        request, response = self.request or self.line, self.response
        if request is not None:
            host = self.raw_host()
            if host is not None:
                fields["hostname"] = _text(normalise_host(host))
            fields["url"] = _text(request.second)
            agent = request.value(b"user-agent")
            if agent is not None:
                fields["http_user_agent"] = _text(agent)
            referer = request.value(b"referer")
            if referer is not None:
                fields["http_refer"] = _text(referer)
            fields["http_method"] = _text(request.first)
            fields["protocol"] = _text(request.third)
        if response is not None:
            content_type = response.value(b"content-type")
            if content_type is not None:
                fields["http_content_type"] = _text(content_type.partition(b";")[0].strip())
            fields.setdefault("protocol", _text(response.first))
            if response.second.isdigit() and len(response.second) <= 3:
                fields["status"] = int(response.second)
            fields["length"] = response.body.length if response.body else 0
        return fields


def _text(value: bytes) -> str:
    return value[:4096].decode("utf-8", "backslashreplace")


_FOLD = (b" ", b"\t", b"\0")  # libhtp htp_is_folding_char
_FOLDED = re.compile(rb"\n[ \t\0]")
_VALUE_SPACE = b" \t\r\x0b\x0c"


def parse_fields(block: bytes, events: list[str], side: str = "request", split_folds: bool = False) -> Fields:
    """Read the field lines of ``block`` (line ends included, the empty line at the end may be there).

    As lenient as libhtp: bare LF, folded lines (joined by one space), space before the colon, lines without a colon
    (kept under an empty name), NUL and odd bytes in names and around values. ``events`` gets what was odd, named for
    ``side``. ``split_folds``: a folded line that looks like a field is one (libhtp htp_connp_RES_HEADERS).
    """
    fields: Fields = {}
    repeats: dict[bytes, list[bytes]] = {}
    lines = block.split(b"\n")
    if _FOLDED.search(block) or block[:1] in _FOLD:
        lines = _unfold(lines, events, side, split_folds)
    odd = False
    if b"\0" in block:
        lines = [line.replace(b"\0", b"") for line in lines]  # libhtp norzero
        odd = True
    for line in lines:
        line = line.rstrip(b"\r")
        name, colon, value = line.partition(b":")
        if not colon:
            if not line.strip():
                continue
            name, value = b"", line
            if f"{side}_field_missing_colon" not in events:
                events.append(f"{side}_field_missing_colon")
        else:
            stripped = name.strip()
            odd = odd or len(stripped) != len(name) or not stripped
            name = stripped
        stripped = value.strip(b" \t\r")
        value = stripped.strip(_VALUE_SPACE)
        odd = odd or len(stripped) != len(value)
        key = name.lower()
        if key not in fields:
            fields[key] = (name, value)
        elif key == b"content-length":
            # Joined it would be no number. The first one counts; the event lets rules refuse the rest.
            if value != fields[key][1] and f"duplicate_content_length_field_in_{side}" not in events:
                events.append(f"duplicate_content_length_field_in_{side}")
        else:
            values = repeats.setdefault(key, [fields[key][1]])
            if len(values) < _MAX_REPEATS:
                values.append(value)
            elif f"{side}_header_repetition" not in events:
                events.append(f"{side}_header_repetition")
    for key, values in repeats.items():
        fields[key] = (fields[key][0], b", ".join(values))
    if odd:
        events.append(f"{side}_header_invalid")
    return fields


def _unfold(lines: list[bytes], events: list[str], side: str, split: bool) -> list[bytes]:
    """Obsolete line folding (RFC 9112, section 5.2)."""
    out: list[list[bytes]] = []
    for line in lines:
        if line[:1] not in _FOLD:
            out.append([line.rstrip(b"\r")])
            continue
        if f"invalid_{side}_field_folding" not in events:
            events.append(f"invalid_{side}_field_folding")
        stripped = line.strip(b" \t\r\0")
        if not out or not out[-1][0] or (split and b":" in stripped and any(b":" in part for part in out[-1])):
            out.append([stripped])
        elif stripped:
            out[-1].append(stripped)
    return [b" ".join(parts) for parts in out]


# --- buffers ---------------------------------------------------------------------------------------------------------

Getter = Callable[[HttpTransaction, Head, Direction], Sequence[bytes]]

_REQUEST = (Direction.TO_SERVER,)
_RESPONSE = (Direction.TO_CLIENT,)
_BOTH = (Direction.TO_SERVER, Direction.TO_CLIENT)


def _field(name: bytes) -> Getter:
    def get(_tx: HttpTransaction, head: Head, _direction: Direction) -> Sequence[bytes]:
        field = head.fields.get(name)
        return () if field is None else (field[1],)

    return get


def _part(attribute: str) -> Getter:
    def get(_tx: HttpTransaction, head: Head, _direction: Direction) -> Sequence[bytes]:
        value: bytes = getattr(head, attribute)
        return (value,) if value else ()

    return get


def _line(tx: HttpTransaction, head: Head, _direction: Direction) -> Sequence[bytes]:
    # The line made up for HTTP/2 has its end, that of HTTP/1 has not (as in Suricata).
    line = head.line + _CRLF if tx.version and head.line else head.line
    return (line,) if line else ()


def _reason(tx: HttpTransaction, head: Head, _direction: Direction) -> Sequence[bytes]:
    # HTTP/2 has none, which is a buffer all the same (as in Suricata).
    return (head.third,) if head.third or tx.version else ()


def _uri(tx: HttpTransaction, _head: Head, _direction: Direction) -> Sequence[bytes]:
    return (tx.target.normalised,)


def _host(tx: HttpTransaction, _head: Head, _direction: Direction) -> Sequence[bytes]:
    host = tx.raw_host()
    return () if host is None else (normalise_host(host),)


def _host_raw(tx: HttpTransaction, _head: Head, _direction: Direction) -> Sequence[bytes]:
    host = tx.raw_host()
    return () if host is None else (host,)


def _protocol(tx: HttpTransaction, head: Head, direction: Direction) -> Sequence[bytes]:
    value = tx.version or (head.first if direction else head.third)
    return (value,) if value else ()


def _lines(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join([b"%b: %b\r\n" % field for field in fields])


def _header(_tx: HttpTransaction, head: Head, _direction: Direction) -> Sequence[bytes]:
    lines = _lines(field for key, field in head.fields.items() if key not in _COOKIES)
    return (lines,) if lines else ()


def _header_raw(_tx: HttpTransaction, head: Head, _direction: Direction) -> Sequence[bytes]:
    return (head.raw,) if head.raw else ()


def _header_names(_tx: HttpTransaction, head: Head, _direction: Direction) -> Sequence[bytes]:
    if not head.fields:
        return ()
    return (b"\r\n%b\r\n\r\n" % _CRLF.join([name for name, _ in head.fields.values()]),)


def _each_header(_tx: HttpTransaction, head: Head, _direction: Direction) -> Sequence[bytes]:
    return [b"%b: %b" % field for field in head.fields.values()]


def _names(_tx: HttpTransaction, head: Head, _direction: Direction) -> Sequence[bytes]:
    return [name for name, _ in head.fields.values()]


def _start(_tx: HttpTransaction, head: Head, _direction: Direction) -> Sequence[bytes]:
    return (head.line + _CRLF + _lines(head.fields.values()) + _CRLF,)


def _cookie(_tx: HttpTransaction, head: Head, direction: Direction) -> Sequence[bytes]:
    value = head.value(b"set-cookie" if direction else b"cookie")
    return () if value is None else (value,)


def _body(_tx: HttpTransaction, head: Head, _direction: Direction) -> Sequence[bytes]:
    body, other = head.body, head.other
    seen = (body.view(),) if body is not None and body.size else ()
    if other is None or not other.size or (seen and other.view() == seen[0]):
        return seen
    return (*seen, other.view())


def _file_data(tx: HttpTransaction, head: Head, direction: Direction) -> Sequence[bytes]:
    files = tx.files(direction)
    return _body(tx, head, direction) if files is None else files.data()


def _file_name(tx: HttpTransaction, head: Head, direction: Direction) -> Sequence[bytes]:
    """What a form or Content-Disposition says, else the path asked for."""
    files = tx.files(direction)
    if files is not None:
        return files.names
    if not any(body is not None and body.size for body in (head.body, head.other)):
        return ()
    name = parameter(head.value(b"content-disposition") or b"", b"filename") if direction else None
    if not name and tx.request is not None:
        name = tx.target.path
    return (name,) if name else ()


def _digest(name: str) -> Getter:
    def get(tx: HttpTransaction, head: Head, direction: Direction) -> Sequence[bytes]:
        files = tx.files(direction)
        if files is not None:
            return files.buffer(name)
        digest = head.body.digest(name) if head.body is not None and head.body.length else None
        return () if digest is None else (digest,)

    return get


# Name -> (sides that have it, getter, whether it stays as it is once the head is there).
BUFFERS: dict[str, tuple[tuple[Direction, ...], Getter, bool]] = {
    "http.method": (_REQUEST, _part("first"), False),
    "http.uri": (_REQUEST, _uri, True),
    "http.uri.raw": (_REQUEST, _part("second"), False),
    "http.protocol": (_BOTH, _protocol, False),
    "http.request_line": (_REQUEST, _line, False),
    "http.response_line": (_RESPONSE, _line, False),
    "http.stat_code": (_RESPONSE, _part("second"), False),
    "http.stat_msg": (_RESPONSE, _reason, False),
    "http.host": (_REQUEST, _host, True),
    "http.host.raw": (_REQUEST, _host_raw, False),
    "http.header": (_BOTH, _header, True),
    "http.header.raw": (_BOTH, _header_raw, False),
    "http.header_names": (_BOTH, _header_names, True),
    "http.request_header": (_REQUEST, _each_header, True),
    "http.response_header": (_RESPONSE, _each_header, True),
    "http.start": (_BOTH, _start, True),
    "http2.header_name": (_BOTH, _names, True),
    "http2.header": (_BOTH, _each_header, True),
    "http.cookie": (_BOTH, _cookie, False),
    "http.user_agent": (_REQUEST, _field(b"user-agent"), False),
    "http.accept": (_REQUEST, _field(b"accept"), False),
    "http.accept_enc": (_REQUEST, _field(b"accept-encoding"), False),
    "http.accept_lang": (_REQUEST, _field(b"accept-language"), False),
    "http.referer": (_REQUEST, _field(b"referer"), False),
    "http.connection": (_BOTH, _field(b"connection"), False),
    "http.content_type": (_BOTH, _field(b"content-type"), False),
    "http.content_len": (_BOTH, _field(b"content-length"), False),
    "http.server": (_RESPONSE, _field(b"server"), False),
    "http.location": (_RESPONSE, _field(b"location"), False),
    "http.request_body": (_REQUEST, _body, False),
    "http.response_body": (_RESPONSE, _body, False),
    "file.data": (_BOTH, _file_data, False),
    "file_data": (_BOTH, _file_data, False),
    "file.name": (_BOTH, _file_name, False),
    **{name: (_BOTH, _digest(name), False) for name in ALGORITHMS},
}
# What the request line alone says.
_OF_LINE = frozenset({"http.method", "http.uri", "http.uri.raw", "http.protocol", "http.request_line"})
_BY_SIDE = tuple(
    {name: (getter, cacheable) for name, (sides, getter, cacheable) in BUFFERS.items() if side in sides}
    for side in _BOTH
)
