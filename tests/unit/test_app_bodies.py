"""Bodies: content codings undone, leniently and within bounds."""

from __future__ import annotations

import gzip
import lzma
import random
import zlib
from dataclasses import replace

import brotli
import pytest

from engines.stateful.app.bodies import Body, decoders_for, gzip_header_size
from engines.stateful.app.limits import AppLimits

TEXT = b"The quick brown fox jumps over the lazy dog. " * 20
LIMITS = AppLimits()


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def body(codings: bytes, limit: int = 1 << 16, limits: AppLimits = LIMITS) -> Body:
    return Body(limit, decoders_for(codings, limits)[0], limits)


def decode(codings: bytes, data: bytes, cut: int = 0, limit: int = 1 << 16, limits: AppLimits = LIMITS) -> Body:
    subject = body(codings, limit, limits)
    for at in range(0, len(data), cut or len(data) or 1):
        subject.feed(data[at : at + (cut or len(data))])
    subject.finish()
    return subject


GZIP = gzip.compress(TEXT, mtime=0)
NAMED = b"\x1f\x8b\x08\x1e\0\0\0\0\0\3\4\0ABCDname\0comment\0\1\2" + raw_deflate(TEXT)


@pytest.mark.parametrize("cut", [0, 1, 7])
@pytest.mark.parametrize(
    ("codings", "data"),
    [
        (b"", TEXT),
        (b"identity", TEXT),
        (b"gzip", GZIP),
        (b"x-gzip", GZIP),
        (b" GZip ", GZIP),
        (b"gzip", NAMED),
        (b"gzip", GZIP[:-8]),  # no checksum
        (b"gzip", GZIP[:-8] + b"\0" * 8),  # a wrong one
        (b"gzip", zlib.compress(TEXT)),
        (b"gzip", raw_deflate(TEXT)),
        (b"deflate", zlib.compress(TEXT)),
        (b"deflate", raw_deflate(TEXT)),
        (b"deflate", GZIP),
        (b"br", brotli.compress(TEXT)),
        (b"deflate, gzip", gzip.compress(zlib.compress(TEXT))),
        (b"gzip,gzip", gzip.compress(GZIP)),
        (b"gzip, identity", GZIP),
        (b"gzip", TEXT),  # not coded at all
        (b"br", TEXT),
        (b"deflate", b"x"),
        (b"gzip", b"\x1f"),
        (b"gzip", b"\x1f\x8b\x08\x08\0\0\0\0\0\3" + raw_deflate(TEXT)),  # a name that is not there
        (b"gzip", b"\x1f\x8b\x08\x04\0\0\0\0\0\3\0\0" + raw_deflate(TEXT)),  # an empty extra field
        (b"gzip", b"\x1f\x8b\x08\xe0\0\0\0\0\0\3" + raw_deflate(TEXT)),  # reserved flags
        (b"gzip, x gzip,", GZIP),  # once instead of twice
        (b"deflate, gzip", TEXT),
        (b"gzip;", GZIP),
        (b"\xa0gzip", GZIP),
        (b"gzip", gzip.compress(TEXT[:100]) + gzip.compress(TEXT[100:])),
        (b"gzip", GZIP + b"junk"),
    ],
)
def test_decodes(codings: bytes, data: bytes, cut: int) -> None:
    expected = data if len(data) < 2 else TEXT
    subject = decode(codings, data, cut)
    assert subject.view() == expected
    assert subject.length == len(data)


@pytest.mark.parametrize("coding", [b"gzip", b"deflate"])
@pytest.mark.parametrize(
    "text", [b'{"version": 11026, "package": "com.example"}', b"sKC" * 30, b"+," * 90, b"c\0" * 50]
)
def test_plain_text_that_decodes_for_a_while(coding: bytes, text: bytes) -> None:
    """Not coded at all, but its first bytes pass for raw deflate: rules see it, whatever else they see."""
    views = {decode(coding, text, cut).view() for cut in (0, 1, 2, 7)}
    assert len(views) == 1
    assert views.pop().endswith(text)


def test_deflate_that_breaks_late_is_not_plain() -> None:
    rng = random.Random(3)
    packed = raw_deflate(rng.randbytes(9000))[:-9]
    for cut in (0, 1000):
        view = decode(b"deflate", packed + b"\xff" * 50, cut, 1 << 20).view()
        assert len(view) < 9001


def test_lzma_only_when_asked() -> None:
    packed = lzma.compress(TEXT, format=lzma.FORMAT_ALONE, preset=0)
    assert decode(b"lzma", packed).view() == packed
    on = replace(LIMITS, lzma=True)
    for cut in (0, 1, 7):
        assert decode(b"lzma", packed, cut, limits=on).view() == TEXT
    assert decode(b"lzma", b"nonsense" * 9, limits=on).events == ["gzip_decompression_failed"]
    assert decode(b"lzma", b"short", limits=on).view() == b"short"


@pytest.mark.parametrize(
    ("memory", "whole"),
    [
        (1 << 20, True),
        (16 << 10, True),
        (4 << 10, False),  # the second copy is further back than the dictionary reaches
    ],
)
def test_an_lzma_dictionary_is_never_larger_than_allowed(memory: int, whole: bool) -> None:
    """Its header may ask for more (8 MiB here): what matters is how far back the data reaches."""
    text = random.Random(1).randbytes(10_000)
    packed = lzma.compress(text * 2, format=lzma.FORMAT_ALONE, preset=6)
    subject = decode(b"lzma", packed, limits=replace(LIMITS, lzma=True, lzma_memory=memory))
    assert (subject.view() == text * 2) is whole
    assert subject.events == ([] if whole else ["gzip_decompression_failed"])


def test_broken_in_the_middle_keeps_what_came_before() -> None:
    broken = raw_deflate(TEXT[:200])[:-2] + b"\xff" * 50
    subject = decode(b"deflate", broken)
    assert subject.view().startswith(TEXT[:40])
    assert subject.events == ["gzip_decompression_failed"]


def test_limit() -> None:
    subject = body(b"gzip", limit=100)
    assert subject.feed(GZIP)
    assert subject.view() == TEXT[:100]
    subject.skip(50)
    assert subject.length == len(GZIP) + 50
    assert not subject.feed(b"") or subject.full


def test_bombs_cost_no_more_than_the_limits() -> None:
    zeros = bytes(50_000_000)
    for codings, data in [
        (b"gzip", gzip.compress(zeros, 9)),
        (b"br", brotli.compress(zeros, quality=1)),
        (b"gzip, gzip", gzip.compress(gzip.compress(zeros, 9), 9)),
    ]:
        subject = decode(codings, data, limit=1000)
        assert subject.full
        assert subject.size <= 1000


def test_bomb_in_an_inner_layer() -> None:
    """The second coding never gets to see what the first one blows up to."""
    limits = replace(LIMITS, decoded_inner=10_000)
    subject = decode(b"gzip, gzip", gzip.compress(bytes(1_000_000)), limits=limits)
    assert subject.full
    assert "compression_bomb" in subject.events


def test_layers_are_counted() -> None:
    decoders, events = decoders_for(b"gzip, gzip, gzip", LIMITS)
    assert (len(decoders), events) == (2, ["too_many_encoding_layers"])
    assert decoders_for(b"rot13", LIMITS) == ([], ["abnormal_ce_header"])


def test_gzip_header_sizes() -> None:
    assert gzip_header_size(GZIP) == 10
    assert gzip_header_size(b"PK") == 0
    header = len(NAMED) - len(raw_deflate(TEXT))
    assert gzip_header_size(NAMED) == header
    assert all(gzip_header_size(NAMED[:size]) is None for size in range(header))


@pytest.mark.parametrize("codings", [b"gzip", b"deflate", b"br", b"gzip, deflate"])
def test_mutations(codings: bytes) -> None:
    """Any bytes give a bounded body and no exception."""
    rng = random.Random(7)
    seeds = [GZIP, zlib.compress(TEXT), raw_deflate(TEXT), brotli.compress(TEXT), NAMED, gzip.compress(GZIP)]
    for _ in range(400):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        subject = decode(codings, bytes(data[: rng.randrange(len(data) + 1)]), rng.choice([0, 1, 13]), limit=500)
        assert subject.size <= 500
