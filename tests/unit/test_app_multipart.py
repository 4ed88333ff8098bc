"""Files in HTTP forms: read as they come, and as the buffers of a request."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.stateful.app.http1 import Http1Parser
from engines.stateful.app.limits import AppLimits
from engines.stateful.app.multipart import Form, boundary_of
from tests.unit.app_feeding import C, S, every_way
from tests.unit.corpus import corpus

LIMITS = AppLimits()


def read(body: bytes, cut: int, boundary: bytes = b"b") -> tuple[list[tuple[bytes, bytes]], set[str]]:
    events: set[str] = set()
    form = Form(boundary, LIMITS, events.add)
    for at in range(0, len(body), cut or len(body) or 1):
        form.feed(body[at : at + (cut or len(body))])
    form.finish()
    assert all(file.closed for file in form.files.files)
    return [(file.name, file.view()) for file in form.files.files], events


PART = b"--b\r\nContent-Disposition: form-data; name=x; filename=%b\r\nContent-Type: a/b\r\n\r\n"


@pytest.mark.parametrize("cut", [0, 1, 2, 5])
@pytest.mark.parametrize(
    ("body", "files", "events"),
    [
        (PART % b"f" + b"one\r\n--b--\r\n", [(b"f", b"one")], set()),
        (PART % b"f" + b"one\n--b--\r\n", [(b"f", b"one")], set()),
        (
            PART % b"f" + b"one\r\n--b\r\n\r\nfield\r\n" + PART % b"g" + b"two\r\n--b--",
            [(b"f", b"one"), (b"g", b"two")],
            set(),
        ),
        (b"preamble\r\n" + PART % b'"a \\"b"' + b"one\r\n--b--\r\n", [(b'a "b', b"one")], set()),
        (PART % b"f" + b"\r\n-\r\n--\r\n--a\r\r\n\r\n--b--\r\n", [(b"f", b"\r\n-\r\n--\r\n--a\r\r\n")], set()),
        (PART % b"f" + b"never ended\r\n--", [(b"f", b"never ended\r\n--")], set()),
        (PART % b"f" + b"--b--\r\n", [(b"f", b"")], {"multipart_no_filedata"}),
        (PART % b"f" + b"\r\n--b--\r\n", [(b"f", b"")], set()),
        (b"--b\r\nContent-Disposition: x;\r\n filename=f\r\n\r\none\r\n--b--\r\n", [(b"f", b"one")], set()),
        (b"--b\r\nno field\r\n\r\none\r\n--b--\r\n", [], {"multipart_invalid_header"}),
        (b"--b\r\nA:\r\n\r\none\r\n--b--\r\n", [], {"multipart_invalid_header"}),
        (b"--b\r\nContent-Disposition: x; filename=\r\n\r\none\r\n--b--\r\n", [], set()),
        (b"no part at all", [], set()),
    ],
)
def test_form(cut: int, body: bytes, files: list[tuple[bytes, bytes]], events: set[str]) -> None:
    assert read(body, cut) == (files, events)


@given(st.binary(max_size=300) | st.sampled_from(corpus("multipart")), st.integers(1, 40))
@settings(max_examples=300, deadline=None)
def test_any_bytes(body: bytes, cut: int) -> None:
    """Never raises, and cutting changes nothing."""
    for start in (b"", PART % b"f"):
        assert read(start + body, 0) == read(start + body, cut)


@given(st.lists(st.tuples(st.text("abc.", min_size=1), st.binary(max_size=40)), max_size=5), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_what_was_put_in_comes_out(parts: list[tuple[str, bytes]], cut: int) -> None:
    boundary = b"0123456789abcdef-0123456789"
    body = b"".join(
        b"--%b\r\nContent-Disposition: form-data; filename=%b\r\n\r\n%b\r\n" % (boundary, name.encode(), data)
        for name, data in parts
    )
    files, _ = read(body + b"--" + boundary + b"--\r\n", cut, boundary)
    assert files == [(name.encode(), data) for name, data in parts]


@pytest.mark.parametrize(
    ("value", "boundary"),
    [
        (b"multipart/form-data; boundary=b", b"b"),
        (b'multipart/form-data; charset=x; boundary="a b"', b"a b"),
        (b"multipart/form-data; boundary=" + b"b" * 255, b"b" * 255),
        (b"multipart/form-data; boundary=" + b"b" * 256, None),
        (b"multipart/form-data; boundary=", None),
        (b"multipart/form-data", None),
        (None, None),
    ],
)
def test_boundary(value: bytes | None, boundary: bytes | None) -> None:
    assert boundary_of(value) == boundary


def post(body: bytes, content_type: bytes) -> bytes:
    head = b"POST /a/../up%%6coad?x=y HTTP/1.1\r\nHost: h\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
    return head % (content_type, len(body)) + body


def test_buffers_of_a_request() -> None:
    body = PART % b"one.txt" + b"1\r\n" + PART % b"two.txt" + b"2\r\n--b--\r\n"
    for _, (tx,) in every_way(Http1Parser, [(C, post(body, b"multipart/form-data; boundary=b"))]):
        assert list(tx.buffer("file.name", C)) == [b"one.txt", b"two.txt"]
        assert list(tx.buffer("file.data", C)) == [b"1", b"2"]
        assert list(tx.buffer("http.request_body", C)) == [body]
        assert tx.is_complete(C)
    for _, (tx,) in every_way(Http1Parser, [(C, post(b"plain", b"text/plain"))]):
        assert list(tx.buffer("file.name", C)) == [b"/upload"]
        assert list(tx.buffer("file.data", C)) == [b"plain"]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        (b"", b"/dir/file.pdf"),
        (b'Content-Disposition: attachment; filename="x.exe"\r\n', b"x.exe"),
        (b"Content-Disposition: inline\r\n", b"/dir/file.pdf"),
    ],
)
def test_name_of_a_response(fields: bytes, name: bytes) -> None:
    script = [
        (C, b"GET http://h/dir/file.pdf?a=b HTTP/1.1\r\nHost: h\r\n\r\n"),
        (S, b"HTTP/1.1 200 OK\r\n" + fields + b"Content-Length: 3\r\n\r\nabc"),
    ]
    for _, (tx,) in every_way(Http1Parser, script):
        assert list(tx.buffer("file.name", S)) == [name]
        assert list(tx.buffer("file.name", C)) == []
    for _, (tx,) in every_way(Http1Parser, [script[0], (S, b"HTTP/1.1 204 No Content\r\n\r\n")]):
        assert list(tx.buffer("file.name", S)) == []
