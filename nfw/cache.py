"""What a start computed, for the next one: parsed rules and pattern databases.

A directory of files, each named by the hash of everything its content depends on: the input, nfw's own sources, the
versions of Python and of the libraries, the CPU's features. Nothing has to be invalidated; what nobody uses any more is
removed when the directory grows beyond its bound. Losing it costs time only.

A pattern database is given to Hyperscan, which trusts it. So nothing is read that another user could have written: the
directory and the file must be this user's and writable by nobody else, and what is in a file is never code.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import secrets
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import msgpack

import engines
from engines.stateful.parser import ParsedRules, Variables, parse_rules
from engines.stateful.ruleconfig import DEFAULT_CONFIG, RuleConfig
from engines.stateful.saved import load_rules, save_rules
from nfw import __version__

ENVIRONMENT = "NFW_CACHE"  # a directory, or "off"
SYSTEM_DIRECTORY = "/var/cache/nfw"
# Everything for a set of ten thousand rules takes about 10 MB.
MAX_BYTES = 256 << 20
MAX_ENTRIES = 4096
_MAGIC = b"nfw cache 1\n"
_DIGEST = 32
_TEMPORARY = "new-"
_STALE_SECONDS = 3600.0  # a file that was not finished by then never will be


class Cache:
    """Entries in ``directory``, which is made if it is not there. Never raises; ``report`` is told, once, what is wrong
    with it, and then everything is a miss.

    One process uses an instance; many processes may use the directory.
    """

    def __init__(
        self,
        directory: str | Path,
        report: Callable[[str], None],
        *,
        max_bytes: int = MAX_BYTES,
        max_entries: int = MAX_ENTRIES,
    ) -> None:
        self._directory = Path(directory)
        self._report = report
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self._told = False
        self._known: tuple[int, int] | None = None  # entries and bytes, counted before the first is added
        self._usable = self._prepare()

    def get(self, key: bytes) -> bytes | None:
        """What was put under ``key`` (any bytes), or None."""
        if not self._usable:
            return None
        path = self._path(key)
        try:
            # Not blocking, in case somebody put a FIFO there.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._ignored(path, f"cannot be read: {error.strerror}")
            return None
        try:
            with open(descriptor, "rb") as file:
                found = os.fstat(descriptor)
                problem = _unsafe(found, stat.S_ISREG)
                if problem is None and found.st_size > self._max_bytes:
                    problem = "is too large"
                content = file.read() if problem is None else b""
            with contextlib.suppress(OSError):
                os.utime(path, follow_symlinks=False)  # it was used
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
        if problem is None:
            data = content[len(_MAGIC) + _DIGEST :]
            if not content.startswith(_MAGIC):
                problem = "is not an entry of this cache"
            elif _seal(path, data) != content[len(_MAGIC) : len(_MAGIC) + _DIGEST]:
                problem = "is damaged"
            else:
                return data
        self._ignored(path, problem)
        return None

    def put(self, key: bytes, data: bytes) -> None:
        """Keep ``data`` under ``key``, whole or not at all."""
        size = len(_MAGIC) + _DIGEST + len(data)
        if not self._usable or size > self._max_bytes // 2:
            return
        path = self._path(key)
        temporary = self._directory / f"{_TEMPORARY}{secrets.token_hex(8)}"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                with open(descriptor, "wb") as file:
                    file.write(_MAGIC + _seal(path, data) + data)
                temporary.replace(path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
            self._bound(path, size)
        except OSError as error:
            self._problem(f"cannot be written: {error.strerror}")

    def refuse(self, key: bytes, reason: str) -> None:
        """The entry of ``key`` turned out to be of no use."""
        self._ignored(self._path(key), reason)

    def _path(self, key: bytes) -> Path:
        return self._directory / hashlib.sha256(_surroundings() + key).hexdigest()

    def _prepare(self) -> bool:
        """The directory is there and safe."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            problem = _unsafe(os.stat(self._directory, follow_symlinks=False), stat.S_ISDIR)
        except OSError as error:
            problem = f"cannot be used: {error.strerror}"
        if problem is not None:
            self._problem(problem)
        return problem is None

    def _bound(self, made: Path, size: int) -> None:
        """Remove what was not used for longest when there is too much."""
        if self._known is not None:
            self._known = (self._known[0] + 1, self._known[1] + size)
        if self._known is not None and self._known[0] <= self._max_entries and self._known[1] <= self._max_bytes:
            return
        entries: list[tuple[float, int, Path]] = []
        for entry in os.scandir(self._directory):
            with contextlib.suppress(OSError):
                found = entry.stat(follow_symlinks=False)
                if entry.name.startswith(_TEMPORARY):
                    if found.st_mtime < time.time() - _STALE_SECONDS:
                        os.unlink(entry.path)
                elif stat.S_ISREG(found.st_mode):
                    entries.append((found.st_mtime, found.st_size, Path(entry.path)))
        count, total = len(entries), sum(entry[1] for entry in entries)
        if count > self._max_entries or total > self._max_bytes:
            # To three quarters, so that the directory is not read again for every entry that follows.
            for _, used, path in sorted(entries):
                if count <= self._max_entries * 3 // 4 and total <= self._max_bytes * 3 // 4:
                    break
                if path == made:
                    continue
                with contextlib.suppress(OSError):
                    path.unlink()
                count, total = count - 1, total - used
        self._known = (count, total)

    def _ignored(self, path: Path, problem: str) -> None:
        self._problem(f"entry {path.name[:16]} {problem}; it is ignored, as others may be")

    def _problem(self, problem: str) -> None:
        if not self._told:
            self._told = True
            self._report(f"cache {self._directory}: {problem}")


def default_cache(report: Callable[[str], None]) -> Cache | None:
    """The cache of this user; None when the environment says there is none."""
    chosen = os.environ.get(ENVIRONMENT, "")
    if chosen == "off":
        return None
    if not chosen:
        chosen = os.environ.get("CACHE_DIRECTORY", "").partition(":")[0]  # systemd: CacheDirectory=
    if not chosen and os.geteuid() == 0:
        chosen = SYSTEM_DIRECTORY
    if not chosen:
        base = os.environ.get("XDG_CACHE_HOME", "")
        if not os.path.isabs(base):  # to be ignored, says the XDG Base Directory Specification
            base = os.path.expanduser("~/.cache")
        if not os.path.isabs(base):
            return None  # nobody's home
        chosen = os.path.join(base, "nfw")
    return Cache(chosen, report)


def parse_rules_cached(
    cached: Cache | None,
    text: str,
    file: str,
    variables: Variables,
    *,
    config: RuleConfig = DEFAULT_CONFIG,
    known_sids: set[tuple[int, int]] | None = None,
) -> ParsedRules:
    """As :func:`engines.stateful.parser.parse_rules`, from the cache if it was done before. Rules that name files of
    their own are parsed each time: those may have changed."""
    if cached is None:
        return parse_rules(text, file, variables, config=config, known_sids=known_sids)
    digest = hashlib.sha256(b"rules")
    given = (
        file,
        sorted(variables.addresses.items()),
        sorted(variables.ports.items()),
        sorted(config.classes.items()),
        sorted(config.references.items()),
        config.country is not None,  # what a database says is asked when packets come
        config.read_list is not None,
        config.action_scopes,
        sorted(known_sids or ()),
    )
    for part in (repr(given), text):
        data = part.encode("utf-8", "surrogateescape")
        digest.update(b"%d " % len(data) + data)
    key = digest.digest()
    saved = cached.get(key)
    if saved is not None:
        try:
            value = msgpack.unpackb(saved, unicode_errors="surrogateescape", strict_map_key=True)
            parsed = load_rules(value, text, file, variables, config=config)
        except (ValueError, msgpack.UnpackException) as problem:
            cached.refuse(key, f"does not hold rules: {problem}")
        else:
            if known_sids is not None:
                known_sids.update((signature.ref.gid, signature.ref.id) for signature in parsed.signatures)
            return parsed
    named: list[str] = []
    noting = config if config.read_list is None else replace(config, read_list=_noting(config.read_list, named))
    parsed = parse_rules(text, file, variables, config=noting, known_sids=known_sids)
    if named:
        return parsed
    cached.put(key, msgpack.packb(save_rules(parsed, text), unicode_errors="surrogateescape"))
    return parsed


def _noting(read: Callable[[str], bytes], named: list[str]) -> Callable[[str], bytes]:
    def read_and_note(name: str) -> bytes:
        named.append(name)
        return read(name)

    return read_and_note


def _seal(path: Path, data: bytes) -> bytes:
    """Tells an entry that was damaged, or moved to the name of another one."""
    return hashlib.sha256(path.name.encode() + data).digest()


def _unsafe(found: os.stat_result, is_kind: Callable[[int], bool]) -> str | None:
    """Why what is in a file or directory may not be this user's own doing."""
    if not is_kind(found.st_mode):
        return "is not what it should be"
    if found.st_uid != os.geteuid():
        return f"belongs to user {found.st_uid}, not to {os.geteuid()}"
    if found.st_mode & 0o022:
        return f"can be written by others (mode {stat.S_IMODE(found.st_mode):04o})"
    return None


@cache
def _surroundings() -> bytes:
    """A hash of everything but the input that decides what comes out."""
    import hyperscan

    digest = hashlib.sha256()
    versions = (__version__, sys.version, getattr(hyperscan, "__version__", ""), msgpack.version)
    for part in (*map(str, versions), platform.machine(), _cpu_features()):
        digest.update(part.encode() + b"\0")
    for source in sorted(Path(engines.__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    return digest.digest()


def _cpu_features() -> str:
    """What the kernel says the first CPU can do."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return " ".join(sorted(value.split()))
    return ""
