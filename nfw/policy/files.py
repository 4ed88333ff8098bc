"""Files a policy is made of: read whole, bounded, with the reason in words when that fails."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

# A list of some hundred thousand digests.
_MAX_LIST = 64 << 20


def list_reader(rule_file: str) -> Callable[[str], bytes]:
    """Reads what a rule file names (filemd5 ...), relative to the folder that file is in."""
    folder = Path(rule_file).parent
    return lambda name: read_bounded(folder / name, _MAX_LIST)


def read_bounded(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Raises ``OSError`` whose ``strerror`` is a sentence a person can act on.
    """
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
        return OSError(error.errno, "does not exist")
    if isinstance(error, PermissionError):
        return OSError(error.errno, f"cannot be read: permission denied (running as uid {os.geteuid()})")
    return OSError(error.errno, f"cannot be read: {error.strerror or error}")
