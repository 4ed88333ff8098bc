"""Policies that were applied, kept on disk so that one can be gone back to whatever has become of its files.

::

    DIRECTORY/objects/SHA256       content of a file that a policy was read from, named by its hash
    DIRECTORY/entries/NUMBER.json  one change: when, by whom, from which files (path -> hash), what came of it
    DIRECTORY/state.json           what waits for confirmation, and what was gone back from

The daemon writes, root reads. Files are replaced whole (written beside, synchronised, renamed) and only their owner can
read them; an entry that is damaged is reported and left out, a file whose content does not fit its name is never used.
The CA's certificate and key are the machine's, not the policy's: they are never kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from nfw.settings import PolicySource

KEEP = 30  # changes that took effect
KEEP_FAILED = 20  # policies that were refused: a broken script must not push out what one may want to go back to
_STALE_SECONDS = 3600.0  # content that nothing refers to: a policy being loaded may be about to
_RESULTS = ("applied", "waiting", "confirmed", "not confirmed", "failed")


class StoreError(Exception):
    """The directory cannot be used, or what was asked for is not in it; the text is for the operator."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One change of policy. ``at``: Unix seconds; ``uid``: who asked, by the kernel's word; ``action``: start, apply or
    rollback; ``of``: the entry a rollback went back to, else 0; ``detail``: why it failed, who took it back.
    ``digest``: of all that the policy was read from, but ``lists``: files that may become others under the same policy
    (:mod:`nfw.ipsets`)."""

    number: int
    at: float
    uid: int
    action: str
    source: PolicySource
    digest: str = ""
    name: str = ""
    mode: str = ""
    result: str = "applied"
    detail: str = ""
    of: int = 0
    lists: tuple[str, ...] = ()

    @property
    def fixed(self) -> dict[str, str]:
        """The files whose change makes it another policy."""
        return {path: name for path, name in (self.source.files or {}).items() if path not in self.lists}

    @property
    def took_effect(self) -> bool:
        return self.result != "failed"

    @property
    def origin(self) -> int:
        """The entry that had this policy first."""
        return self.of or self.number

    def to_json(self) -> dict[str, Any]:
        """Without the files' hashes."""
        files = {"file": self.source.file, "more": list(self.source.more), "map": self.source.map_file}
        return {
            "number": self.number,
            "at": self.at,
            "uid": self.uid,
            "action": self.action,
            "name": self.name,
            "mode": self.mode,
            "digest": self.digest,
            "result": self.result,
            "detail": self.detail,
            "of": self.of,
            "restorable": self.source.files is not None,
            **files,
        }


@dataclass(frozen=True, slots=True)
class State:
    """``waiting``: the entry that waits for confirmation, 0 for none; ``former``: the one that comes back without it.
    ``withdrawn``: entries that were gone back from; as long as their files are what they were then, a start takes
    ``standing`` instead."""

    waiting: int = 0
    former: int = 0
    withdrawn: tuple[int, ...] = ()
    standing: int = 0


@dataclass(frozen=True, slots=True)
class Listing:
    entries: tuple[Entry, ...]  # by number
    problems: tuple[str, ...] = ()
    by_number: Mapping[int, Entry] = field(default_factory=dict)


class PolicyStore:
    """See the module's text. Every method raises :class:`StoreError` unless it says otherwise."""

    def __init__(self, directory: str | Path, *, keep: int = KEEP, keep_failed: int = KEEP_FAILED) -> None:
        self.directory = Path(directory)
        self._keep, self._keep_failed = keep, keep_failed
        self._objects = self.directory / "objects"
        self._entries = self.directory / "entries"

    def prepare(self) -> None:
        """Make the directory, and see that nobody else can write to it."""
        try:
            for folder in (self.directory, self._objects, self._entries):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                found = os.stat(folder, follow_symlinks=False)
                if not stat.S_ISDIR(found.st_mode):
                    raise StoreError(f"{folder} is not a directory")
                if found.st_uid != os.geteuid():
                    raise StoreError(f"{folder} belongs to user {found.st_uid}, not to {os.geteuid()}")
                if found.st_mode & 0o022:
                    raise StoreError(f"{folder} can be written by others (mode {stat.S_IMODE(found.st_mode):04o})")
        except OSError as error:
            raise StoreError(f"{error.filename or self.directory}: {error.strerror}") from None

    # -- content -------------------------------------------------------------------------------------------------------

    def put(self, data: bytes) -> str:
        """Keep ``data``; the name it has from now on."""
        name = hashlib.sha256(data).hexdigest()
        path = self._objects / name
        try:
            if path.exists():
                os.utime(path)  # it is about to be referred to
            else:
                _replace(path, data)
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from None
        return name

    def get(self, name: str) -> bytes | None:
        """What :meth:`put` was given; None when it is gone or damaged."""
        with contextlib.suppress(OSError, ValueError):
            data = _read(self._objects / name)
            if hashlib.sha256(data).hexdigest() == name:
                return data
        return None

    def reader(self, files: Mapping[str, str]) -> Callable[[str], bytes]:
        """For :func:`nfw.policy.files.as_kept`. A copy that is lost may be replaced by the file itself, if that has not
        changed."""

        def read(path: str) -> bytes:
            name = files.get(path)
            if name is None:
                raise OSError(0, "is not among what was kept with this policy")
            data = self.get(name)
            if data is None and content_hash(path) == name:
                data = content_of(path)
            if data is None:
                raise OSError(0, f"was kept in {self._objects / name}, which is missing or damaged")
            return data

        return read

    # -- entries -------------------------------------------------------------------------------------------------------

    def listing(self) -> Listing:
        """All entries, and what is wrong with those that cannot be read."""
        entries, problems = [], []
        try:
            names = os.listdir(self._entries)
        except OSError as error:
            raise StoreError(f"{self._entries}: {error.strerror}") from None
        for name in names:
            number = name.removesuffix(".json")
            if not number.isdigit() or number == name:
                continue
            try:
                entries.append(_entry(int(number), _read(self._entries / name)))
            except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
                problems.append(f"entry {number} of the history is damaged and left out: {error}")
        entries.sort(key=lambda entry: entry.number)
        return Listing(tuple(entries), tuple(sorted(problems)), {entry.number: entry for entry in entries})

    def entry(self, number: int) -> Entry:
        try:
            return _entry(number, _read(self._entries / f"{number}.json"))
        except FileNotFoundError:
            known = [str(entry.number) for entry in self.listing().entries]
            raise StoreError(f"no entry {number} in the history; there are: {', '.join(known) or 'none'}") from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise StoreError(f"entry {number} of the history is damaged: {error}") from None

    def next_number(self) -> int:
        """Higher than all there ever were, damaged ones included."""
        try:
            numbers = [int(name[:-5]) for name in os.listdir(self._entries) if name[:-5].isdigit()]
        except OSError as error:
            raise StoreError(f"{self._entries}: {error.strerror}") from None
        return max(numbers, default=0) + 1

    def write(self, entry: Entry) -> None:
        path = self._entries / f"{entry.number}.json"
        try:
            body = {"version": 1, **asdict(entry)}
            if not entry.lists:
                del body["lists"]  # older releases do not know it
            _replace(path, json.dumps(body, indent=1).encode())
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from None

    def remove(self, number: int) -> None:
        path = self._entries / f"{number}.json"
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from None

    def state(self) -> State:
        """What :meth:`write_state` was given last."""
        path = self.directory / "state.json"
        try:
            value = json.loads(_read(path))
            state = State(value["waiting"], value["former"], tuple(value["withdrawn"]), value["standing"])
            numbers = (state.waiting, state.former, state.standing, *state.withdrawn)
            if not all(type(number) is int and number >= 0 for number in numbers):
                raise ValueError("expected numbers of entries")
            return state
        except FileNotFoundError:
            return State()
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise StoreError(f"{path} is damaged: {error}") from None

    def write_state(self, state: State) -> None:
        path = self.directory / "state.json"
        try:
            _replace(path, json.dumps(asdict(state)).encode())
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from None

    def prune(self, needed: Iterable[int]) -> None:
        """Remove the oldest entries beyond the bounds, but those ``needed``, and content that none refers to."""
        listing, needed = self.listing(), set(needed)
        good = [entry for entry in listing.entries if entry.took_effect]
        failed = [entry for entry in listing.entries if not entry.took_effect]
        old = good[: max(0, len(good) - self._keep)] + failed[: max(0, len(failed) - self._keep_failed)]
        gone = {entry.number for entry in old} - needed
        used = {
            name
            for entry in listing.entries
            if entry.number not in gone
            for name in (entry.source.files or {}).values()
        }
        try:
            for number in gone:
                (self._entries / f"{number}.json").unlink(missing_ok=True)
            if listing.problems:
                return  # what a damaged entry refers to is not known
            before = time.time() - _STALE_SECONDS
            for found in os.scandir(self._objects):
                if found.name not in used and found.stat(follow_symlinks=False).st_mtime < before:
                    os.unlink(found.path)
        except OSError as error:
            raise StoreError(f"{error.filename}: {error.strerror}") from None


def digest_of(source: PolicySource, files: Mapping[str, str]) -> str:
    """One hash over everything a policy was read from, and how."""
    given = [list(source.more), source.map_file, source.name, source.monitor, sorted(files.items())]
    return hashlib.sha256(json.dumps([source.file, *given]).encode("utf-8", "surrogateescape")).hexdigest()


def unchanged(files: Mapping[str, str]) -> bool:
    """Whether files and folders are now what they were when they were noted. Never raises."""
    return all(content_hash(path) == name for path, name in files.items())


def content_hash(path: str) -> str:
    """Of a file, or of a folder's list of files (with "/" at the end); "" when it cannot be read. Never raises."""
    data = content_of(path)
    return hashlib.sha256(data).hexdigest() if data is not None else ""


def content_of(path: str) -> bytes | None:
    from nfw.policy.files import files_in, read_bounded

    try:
        if path.endswith("/"):
            return os.fsencode("\0".join(entry.name for entry in files_in(Path(path))))
        return read_bounded(Path(path), 1 << 30)
    except OSError:
        return None


def without_files(source: PolicySource) -> PolicySource:
    """``source`` as it was asked for."""
    return replace(source, files=None)


def _entry(number: int, data: bytes) -> Entry:
    value = json.loads(data)
    if not isinstance(value, dict) or value.pop("version", None) != 1:
        raise ValueError("not an entry of this version")
    source = value.pop("source")
    files = source.pop("files")
    if files is not None and not all(isinstance(part, str) for pair in files.items() for part in pair):
        raise ValueError("files: expected names and hashes")
    source = PolicySource(**{**source, "more": tuple(source["more"]), "files": files})
    entry = Entry(source=source, lists=tuple(value.pop("lists", ())), **value)
    texts = (entry.action, entry.digest, entry.name, entry.mode, entry.detail, entry.source.file, entry.source.name)
    if not all(isinstance(text, str) for text in (*texts, *entry.source.more, entry.source.map_file, *entry.lists)):
        raise ValueError("expected texts")
    if entry.number != number or entry.result not in _RESULTS or type(entry.of) is not int:
        raise ValueError("number or result are not what they can be")
    if not isinstance(entry.at, (int, float)) or type(entry.uid) is not int or type(entry.source.monitor) is not bool:
        raise ValueError("time, user or mode are not what they can be")
    return entry


def _read(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("not a regular file")
        return file.read()


def _replace(path: Path, data: bytes) -> None:
    """The file has its old content or the new one, whatever happens meanwhile."""
    temporary = path.with_name(f".{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
