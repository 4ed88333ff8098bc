"""What the web sites serve: an index page per site, a large file, a git repository, and room for uploads."""

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Final

from tests.lab.sites import SITES

BIG_SIZE: Final = 1 << 30

# A marker in every MiB, so that a part that is missing, doubled or moved changes the checksum. Between markers the
# file is a hole and takes neither time nor disk.
_MARKER_STRIDE: Final = 1 << 20

_GIT_STREAM: Final = b"""\
commit refs/heads/main
committer nfw lab <lab@nfw.test> 1700000000 +0000
data 6
first
M 100644 inline README
data 15
served by nginx
M 100644 inline data/numbers
data 8
1 2 3 4
commit refs/heads/main
committer nfw lab <lab@nfw.test> 1700000001 +0000
data 7
second
M 100644 inline README
data 21
served again by nginx
"""


def write_content(www: Path) -> None:
    """Fill `www`: NAME/index.html for each site, and shared/ with what they all serve."""
    for name in SITES:
        (www / name).mkdir(parents=True)
        (www / name / "index.html").write_text(f"this is {name}\n")
    shared = www / "shared"
    (shared / "upload").mkdir(parents=True)
    write_big_file(shared / "big")
    (shared / "small").write_bytes(bytes(range(256)) * 16)
    _git_repository(shared / "repo.git")


def write_big_file(path: Path, size: int = BIG_SIZE) -> None:
    """A sparse file of `size` bytes whose checksum depends on the order of its parts."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset in range(0, size, _MARKER_STRIDE):
            os.pwrite(file.fileno(), offset.to_bytes(8, "big") + b" nfw lab", offset)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_repository(path: Path) -> None:
    """A repository that any web server can serve: git's "dumb" protocol is plain files and two index files."""
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(path),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_DIR": str(path),
    }
    for command, stdin in (
        (["init", "--quiet", "--bare", "--initial-branch=main", str(path)], b""),
        (["fast-import", "--quiet"], _GIT_STREAM),
        (["update-server-info"], b""),
    ):
        subprocess.run(["git", *command], input=stdin, env=environment, check=True, capture_output=True)
