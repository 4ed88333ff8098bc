"""engines/ decides, nfw/ acts: the import order that keeps it so, read from the sources without running them."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]

# The standard library's ways to a file, a socket, a process, a clock, a thread or a log.
IO_MODULES: Final = frozenset(
    """
    aifc asyncio asyncore concurrent ctypes curses dbm faulthandler fcntl fileinput ftplib getpass glob http
    imaplib importlib linecache logging mmap multiprocessing nntplib os pathlib pickle platform poplib posix pty
    pwd queue readline resource runpy sched select selectors shelve shutil signal site smtplib socket socketserver
    sqlite3 ssl subprocess syslog tarfile telnetlib tempfile termios threading _thread time tkinter tty urllib venv
    warnings webbrowser xmlrpc zipfile
    """.split()  # noqa: SIM905  a list of quoted words would be three times as long
)
# Pure parts of modules that otherwise are not.
PURE_PARTS: Final = frozenset({"urllib.parse"})
IO_CALLS: Final = frozenset({"breakpoint", "compile", "eval", "exec", "exit", "input", "open", "print", "__import__"})
# Modules of pure functions (decompressors, StringIO) that also have an open() of their own.
OPENERS: Final = frozenset({"bz2", "codecs", "gzip", "io", "lzma"})
CLOCK_CALLS: Final = frozenset({"now", "today", "utcnow"})

# Libraries that compute and touch nothing. Keys of `ONLY_IN` are engines' or nfw's folders and files.
PURE_LIBRARIES: Final = frozenset({"brotli", "dnslib", "hpack", "hyperframe", "hyperscan", "pcre2", "publicsuffixlist"})
ONLY_IN: Final = {
    "OpenSSL": ("engines/tls/", "nfw/"),
    "cryptography": ("engines/tls/", "engines/stateful/app/certificate.py", "nfw/"),
    "netfilterqueue": ("nfw/nfqueue.py",),
    "pyroute2": ("nfw/hostnet.py", "nfw/conntrack.py"),
}


def modules_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported; for `from a import b` both a and a.b, since b may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "." * node.level
            elif node.module:
                yield node.lineno, node.module
                for alias in node.names:
                    yield node.lineno, f"{node.module}.{alias.name}"


def is_pure_part(module: str) -> bool:
    return any(module == part or module.startswith(f"{part}.") for part in PURE_PARTS)


def offences(path: str, source: str) -> list[str]:
    """What `source`, as file `path` of engines/ or nfw/, must not do, one line each."""
    tree = ast.parse(source, path)
    engine = path.startswith("engines/")
    imported = list(modules_of(tree))
    pure_lines = {line for line, module in imported if is_pure_part(module)}
    found = []
    for line, module in imported:
        top = module.split(".")[0]
        allowed = ONLY_IN.get(top)
        if not top:
            found.append(f"{path}:{line}: relative import; write the whole name")
        elif allowed and not any(path.startswith(place) for place in allowed):
            found.append(f"{path}:{line}: {top} belongs in {' and '.join(allowed)} only")
        elif engine and top in ("nfw", "tests"):
            found.append(f"{path}:{line}: engines must not know {top}")
        elif engine and top in IO_MODULES and line not in pure_lines:
            found.append(f"{path}:{line}: {top} does I/O, waits or reads a clock")
        elif engine and top not in {"engines", *sys.stdlib_module_names, *PURE_LIBRARIES, *ONLY_IN}:
            found.append(f"{path}:{line}: {top} is not among the libraries engines may use")
        elif top == "tests":
            found.append(f"{path}:{line}: product code must not import tests")
    if engine:
        found += [f"{path}:{line}: {call}" for line, call in impure_calls(tree)]
    return list(dict.fromkeys(found))


def impure_calls(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of calls that reach outside without an import of their own."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Name) and function.id in IO_CALLS:
            yield node.lineno, f"{function.id}() is I/O"
        if isinstance(function, ast.Attribute):
            owner = ast.unparse(function.value)
            if function.attr == "open" and owner in OPENERS:
                yield node.lineno, f"{owner}.open() is I/O"
            if function.attr in CLOCK_CALLS and owner.split(".")[-1] in ("datetime", "date"):
                yield node.lineno, f"{owner}.{function.attr}() reads the clock; take `now` as an argument"


SOURCES: Final = sorted(
    str(path.relative_to(ROOT)) for top in ("engines", "nfw") for path in (ROOT / top).rglob("*.py")
)


@pytest.mark.parametrize("path", SOURCES)
def test_imports_point_one_way(path: str) -> None:
    assert offences(path, (ROOT / path).read_text()) == []


def test_there_is_something_to_check() -> None:
    assert {"engines/verdict.py", "nfw/__init__.py"} <= set(SOURCES)


@pytest.mark.parametrize(
    ("path", "source", "word"),
    [
        ("engines/x.py", "import nfw.cli", "must not know nfw"),
        ("engines/x.py", "from nfw import cli", "must not know nfw"),
        ("engines/x.py", "def f():\n    import socket", "x.py:2: socket does I/O"),
        ("engines/x.py", "from os import urandom", "os does I/O"),
        ("engines/x.py", "import os.path as p", "os does I/O"),
        ("engines/x.py", "from time import monotonic", "clock"),
        ("engines/x.py", "import urllib.request", "urllib"),
        ("engines/x.py", "from urllib import request", "urllib"),
        ("engines/x.py", "from . import y", "relative"),
        ("engines/x.py", "import requests", "not among"),
        ("engines/x.py", "import scapy.all", "not among"),
        ("engines/x.py", "import OpenSSL", "engines/tls/"),
        ("engines/tls/x.py", "import pyroute2", "pyroute2 belongs"),
        ("engines/x.py", "x = open('y')", "open()"),
        ("engines/x.py", "import lzma\nx = lzma.open('y')", "lzma.open()"),
        ("engines/x.py", "print(1)", "print()"),
        ("engines/x.py", "import datetime\nx = datetime.datetime.now()", "clock"),
        ("engines/x.py", "from datetime import date\nx = date.today()", "clock"),
        ("nfw/cli.py", "import netfilterqueue", "nfw/nfqueue.py"),
        ("nfw/cli.py", "from pyroute2 import IPRoute", "nfw/hostnet.py"),
        ("nfw/cli.py", "import tests.lab", "tests"),
    ],
)
def test_breaches_are_seen(path: str, source: str, word: str) -> None:
    found = offences(path, source)
    assert len(found) == 1
    assert word in found[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("engines/x.py", "import re, struct, bisect, zlib, hyperscan\nfrom engines.verdict import Decision"),
        ("engines/x.py", "import lzma\nx = lzma.LZMADecompressor()"),
        ("engines/x.py", "from urllib.parse import unquote\nimport urllib.parse"),
        ("engines/x.py", "def f(opener, now):\n    return opener.open(now), now.now()"),
        ("engines/tls/x.py", "from OpenSSL import SSL\nfrom cryptography import x509"),
        ("nfw/nfqueue.py", "import netfilterqueue"),
        ("nfw/hostnet.py", "from pyroute2 import IPRoute"),
        ("nfw/tlsworker.py", "import socket, time\nfrom engines.tls import session"),
    ],
)
def test_what_is_allowed(path: str, source: str) -> None:
    assert offences(path, source) == []
