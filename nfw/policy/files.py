"""Files a policy is made of: read whole, bounded, with the reason in words when that fails.

Who loads a policy can have noted what it was made of (:func:`noting`), and have it made of the same again later,
whatever has become of the files since (:func:`as_kept`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

Note = Callable[[str, bytes], None]  # absolute path, content; of a folder: path and "/", names between zero bytes
Kept = Callable[[str], bytes]  # raises OSError whose ``strerror`` is a sentence, as read_bounded does

_note: ContextVar[Note | None] = ContextVar("note", default=None)
_kept: ContextVar[Kept | None] = ContextVar("kept", default=None)

# A list of some hundred thousand digests.
_MAX_LIST = 64 << 20


def list_reader(rule_file: str) -> Callable[[str], bytes]:
    """Reads what a rule file names (filemd5 ...), relative to the folder that file is in."""
    folder = Path(rule_file).parent
    return lambda name: read_bounded(folder / name, _MAX_LIST)


@contextmanager
def noting(note: Note) -> Iterator[None]:
    """Tell ``note`` of every file and folder that is read within."""
    token = _note.set(note)
    try:
        yield
    finally:
        _note.reset(token)


@contextmanager
def as_kept(kept: Kept) -> Iterator[None]:
    """Within, files and folders have the content that ``kept`` gives for the names :func:`noting` told."""
    token = _kept.set(kept)
    try:
        yield
    finally:
        _kept.reset(token)


def read_bounded(path: Path, limit: int, *, machine: bool = False) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    ``machine``: the file belongs to this machine (certificates with their keys) rather than to the policy: always as
    it is now.
    Raises ``OSError`` whose ``strerror`` is a sentence a person can act on.
    """
    kept = _kept.get()
    if kept is not None and not machine:
        return kept(os.path.abspath(path))
    data = _read(path, limit)
    note = _note.get()
    if note is not None and not machine:
        note(os.path.abspath(path), data)
    return data


def is_folder(path: Path) -> bool:
    """Whether ``path`` is a folder; unlike Path.is_dir never an exception."""
    kept = _kept.get()
    if kept is None:
        return os.path.isdir(path)
    try:
        kept(os.path.abspath(path) + "/")
    except OSError:
        return False
    return True


def files_in(folder: Path) -> list[Path]:
    """The regular files in a folder, sorted. Raises OSError."""
    name = os.path.abspath(folder) + "/"
    kept = _kept.get()
    if kept is not None:
        return [folder / entry for entry in os.fsdecode(kept(name)).split("\0") if entry]
    found = sorted(entry for entry in folder.iterdir() if entry.is_file())
    note = _note.get()
    if note is not None:
        note(name, os.fsencode("\0".join(entry.name for entry in found)))
    return found


def _read(path: Path, limit: int) -> bytes:
    try:
        # Not blocking: opening a FIFO nobody writes to would otherwise hang the daemon.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _explained(error, path) from None
    except ValueError:
        raise OSError(0, "is not a possible file name (it holds a zero byte)") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(0, "is a directory; expected a file" if stat.S_ISDIR(mode) else "is not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise _explained(error, path) from None
    if len(data) > limit:
        raise OSError(0, f"is larger than {limit} bytes, the limit for this kind of file")
    return data


def too_open(path: Path) -> str | None:
    """The mode of a secret's file when others than its owner can read it (``0644``), else None."""
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except OSError:
        return None
    return f"{mode:04o}" if mode & 0o077 else None


def _explained(error: OSError, path: Path) -> OSError:
    if isinstance(error, FileNotFoundError):
        parent = path.parent
        if not parent.is_dir():
            return OSError(error.errno, f"does not exist (neither does its directory {parent})")
        if str(path) == "-":
            return OSError(error.errno, "does not exist (standard input is not read; expected a file)")
        return OSError(error.errno, "does not exist")
    if isinstance(error, PermissionError):
        return OSError(error.errno, f"cannot be read: permission denied (running as uid {os.geteuid()})")
    return OSError(error.errno, f"cannot be read: {error.strerror or error}")
