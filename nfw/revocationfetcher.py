"""The revocation fetcher: the one process that asks OCSP responders and fetches CRLs and missing intermediates.

It runs without privileges, holds no key and sees no plaintext. Over one socket per TLS worker it is asked about a
certificate and its issuer, fetches what the certificate points to, has :mod:`engines.tls.revocation` judge it and
answers with the finding, within :data:`BUDGET`. However many flows wait for one certificate, it is fetched once, and a
CRL once for all certificates it covers.

What it fetches is kept in memory and in a directory, as it came: it is judged again whenever it is used, so a damaged
or planted file is worth nothing.

Messages are msgpack maps, one per sequenced packet: ``{id, certificate: DER, issuer: DER}`` ->
``{id, status, method, reason, this_update, until, source}``, and ``{id, issuers_of: DER}`` -> ``{id, issuers: [DER]}``.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import hashlib
import ipaddress
import os
import pwd
import queue
import select
import signal
import socket
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from pathlib import Path

import msgpack
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from engines.tls import revocation
from engines.tls.revocation import CrlIndex, Finding, Revocation
from engines.tls.verify import spki_sha256
from nfw import process
from nfw.httpfetch import FetchError, Network, fetch
from nfw.settings import pack, unpack

BUDGET = 2.0
"""Seconds a flow waits at most. What comes later is kept for the next one."""
OCSP_SHARE = 0.6
"""Of the budget, when there is a CRL to turn to if the responder is dead."""
CRL_SECONDS = 30.0  # for the fetch itself; a list of 12 MB takes longer than anybody is let wait
OCSP_BYTES = 64 << 10
CRL_BYTES = 32 << 20
THREADS = 32  # questions answered at the same time
CRL_THREADS = 4
ISSUER_SECONDS = 3.0  # for all intermediates a server left out
ISSUER_NESTING = 3
ISSUER_FETCHES = 10
ISSUER_THREADS = 8  # apart: anybody can ask for issuers, with a certificate nobody has signed
ISSUER_JOBS = 128
MAX_JOBS = 1024  # open at the same time; more are answered UNKNOWN at once
MAX_WAITING = 65_536  # per certificate
MAX_FINDINGS = 16_384
REFRESH_SHARE = 0.1  # of its life before the end of a CRL, the next one is fetched
REFRESH_WITHIN = 86400.0  # seconds since anybody has asked for it
MAX_CRLS = 64  # indexes in memory, at most this many
MAX_SERIALS = 4_000_000  # and of this many entries together, some 400 MB
NEGATIVE_SECONDS = 20.0  # a responder that failed is left alone as long
MESSAGE_BYTES = 256 * 1024
USERS = ("nfw", "nobody")
_NO_NEW_PRIVS = 38


Answer = Finding | tuple[bytes, ...]
"""What is known of a certificate's revocation, or the certificates above it (DER)."""


def encode_question(number: int, certificate: bytes, issuer: bytes) -> bytes:
    """One question, both DER."""
    packed: bytes = msgpack.packb({"id": number, "certificate": certificate, "issuer": issuer})
    return packed


def encode_issuers_question(number: int, certificate: bytes) -> bytes:
    """One question for the certificates (DER) between this one (DER) and a root."""
    packed: bytes = msgpack.packb({"id": number, "issuers_of": certificate})
    return packed


def encode_answer(number: int, finding: Answer) -> bytes:
    """One answer, to either question."""
    if isinstance(finding, tuple):
        issuers: bytes = msgpack.packb({"id": number, "issuers": finding})
        return issuers
    packed: bytes = msgpack.packb(
        {
            "id": number,
            "status": finding.status.value,
            "method": finding.method,
            "reason": finding.reason,
            "this_update": finding.this_update,
            "until": finding.until,
            "source": finding.source,
        }
    )
    return packed


def decode_answer(data: bytes) -> tuple[int, Answer]:
    """(number, finding or issuers). Raises ValueError, KeyError or TypeError for what is none."""
    reply = msgpack.unpackb(data)
    if "issuers" in reply:
        return int(reply["id"]), tuple(bytes(issuer) for issuer in reply["issuers"])
    return int(reply["id"]), Finding(
        Revocation(reply["status"]),
        str(reply["method"]),
        str(reply["reason"]),
        int(reply["this_update"]),
        int(reply["until"]),
        str(reply["source"]),
    )


class Store:
    """Responses and CRLs on disk, each a file named after what it answers. Nothing here fails: a cache may be lost.

    ``folder`` is a descriptor, opened while the process was still privileged; None keeps nothing.
    """

    FILES = 4096
    BYTES = 256 << 20

    def __init__(self, folder: int | None) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] = OrderedDict()  # oldest first
        self._total = 0
        self._serial = 0
        if folder is not None:
            self._scan(folder)

    def __len__(self) -> int:
        return len(self._sizes)

    def get(self, name: str, limit: int) -> bytes | None:
        """The content, or None."""
        if self._folder is None or name not in self._sizes:
            return None
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)
            with os.fdopen(fd, "rb") as file:
                data = file.read(limit + 1)
        except OSError:
            return None
        return data if 0 < len(data) <= limit else None

    def put(self, name: str, data: bytes) -> None:
        """Replace ``name`` at once or not at all."""
        if self._folder is None or len(data) > self.BYTES:
            return
        with self._lock:
            self._serial += 1
            temporary = f"{os.getpid()}-{self._serial}.tmp"
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=self._folder), "wb") as file:
                    file.write(data)
                os.replace(temporary, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            except OSError:
                self._unlink(temporary)
                return
            self._total += len(data) - self._sizes.pop(name, 0)
            self._sizes[name] = len(data)
            self._bound()

    def _scan(self, folder: int) -> None:
        found = []
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                with contextlib.suppress(OSError):
                    info = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    found.append((info.st_mtime, name, info.st_size))
        for _, name, size in sorted(found):
            if name.endswith(".tmp"):
                self._unlink(name)
            else:
                self._sizes[name] = size
                self._total += size
        self._bound()

    def _bound(self) -> None:
        while self._sizes and (len(self._sizes) > self.FILES or self._total > self.BYTES):
            name, size = self._sizes.popitem(last=False)
            self._total -= size
            self._unlink(name)

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self._folder)


@dataclass(slots=True)
class _Known:
    """A CRL that is there: where from, whose, when its successor is due, when somebody asked for it last."""

    url: str
    issuer: x509.Certificate
    refresh_at: float
    used: float


class CrlShelf:
    """CRLs by URL and issuer, each fetched and indexed once for everybody who needs it."""

    def __init__(self, store: Store, get: Callable[[str, float], bytes], clock: Callable[[], float]) -> None:
        """``get(url, seconds)`` fetches a CRL or raises FetchError; ``clock`` tells Unix seconds."""
        self._store = store
        self._get = get
        self._clock = clock
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(CRL_THREADS, thread_name_prefix="crl")
        self._coming: dict[str, Future[CrlIndex | Finding]] = {}
        self._indexes: OrderedDict[str, tuple[CrlIndex | Finding, float]] = OrderedDict()  # and until when
        self._known: dict[str, _Known] = {}  # what is in _indexes, and how to get its successor

    def index(self, url: str, issuer: x509.Certificate, seconds: float) -> CrlIndex | Finding:
        """The CRL at ``url`` as the issuer's, or why there is none within ``seconds``."""
        key = hashlib.sha256(url.encode() + b"\0" + spki_sha256(issuer)).hexdigest() + ".crl"
        with self._lock:
            known = self._indexes.get(key)
            if known is not None and known[1] > self._clock():
                self._indexes.move_to_end(key)
                if key in self._known:
                    self._known[key].used = self._clock()
                return known[0]
            future = self._coming.get(key)
            if future is None:
                if len(self._coming) >= MAX_CRLS:
                    return _unknown("crl", "busy", url)
                future = self._coming[key] = self._pool.submit(self._load, key, url, issuer)
        try:
            return future.result(max(0.0, seconds))
        except FutureTimeoutError:
            return _unknown("crl", "timeout", url)

    def refresh(self) -> None:
        """Fetch the successors of those CRLs that end soon and are in use."""
        now = self._clock()
        with self._lock:
            for key, known in self._known.items():
                due = now >= known.refresh_at and now - known.used < REFRESH_WITHIN
                if due and key not in self._coming and len(self._coming) < MAX_CRLS:
                    known.refresh_at = now + NEGATIVE_SECONDS
                    self._coming[key] = self._pool.submit(self._renew, key, known)

    def _renew(self, key: str, known: _Known) -> CrlIndex | Finding:
        """As :meth:`_load`, but what there is stays until there is something newer."""
        found: CrlIndex | Finding = _unknown("crl", "internal", known.url)
        try:
            data = self._get(known.url, CRL_SECONDS)
            now = self._clock()
            found = revocation.read_crl(data, known.issuer, now)
            if isinstance(found, CrlIndex):
                self._store.put(key, data)
        except FetchError as error:
            found = _unknown("crl", error.reason, known.url)
        finally:
            with self._lock:
                self._coming.pop(key, None)
                if isinstance(found, CrlIndex):
                    self._keep(key, found, min(found.next_update, now + revocation.MAX_AGE), known.url, known.issuer)
        return found

    def _keep(self, key: str, found: CrlIndex | Finding, until: float, url: str, issuer: x509.Certificate) -> None:
        """With the lock held."""
        now = self._clock()
        self._indexes[key] = found, until
        self._indexes.move_to_end(key)
        self._known.pop(key, None)
        if isinstance(found, CrlIndex):
            life = until - max(found.this_update, until - revocation.MAX_AGE)
            self._known[key] = _Known(url, issuer, until - life * REFRESH_SHARE, now)
        self._bound()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _load(self, key: str, url: str, issuer: x509.Certificate) -> CrlIndex | Finding:
        found: CrlIndex | Finding = _unknown("crl", "internal", url)
        now = self._clock()
        until = now + NEGATIVE_SECONDS
        try:
            stored = self._store.get(key, CRL_BYTES)
            kept = revocation.read_crl(stored, issuer, now) if stored is not None else None
            if isinstance(kept, CrlIndex) and kept.this_update + revocation.MAX_AGE > now:
                found = kept
                until = min(found.next_update, found.this_update + revocation.MAX_AGE)
                return found
            try:
                data = self._get(url, CRL_SECONDS)
            except FetchError as error:
                found = _unknown("crl", error.reason, url)
            else:
                now = self._clock()
                found = revocation.read_crl(data, issuer, now)
                if isinstance(found, CrlIndex):
                    self._store.put(key, data)
                    until = min(found.next_update, now + revocation.MAX_AGE)
            if isinstance(kept, CrlIndex) and not isinstance(found, CrlIndex):
                found = kept  # old, but what its issuer allows is more than nothing
            return found
        finally:
            with self._lock:
                self._coming.pop(key, None)
                self._keep(key, found, until, url, issuer)

    def _bound(self) -> None:
        def entries() -> int:
            return sum(len(one.serials) for one, _ in self._indexes.values() if isinstance(one, CrlIndex))

        while len(self._indexes) > 1 and (len(self._indexes) > MAX_CRLS or entries() > MAX_SERIALS):
            key, _ = self._indexes.popitem(last=False)
            self._known.pop(key, None)


@dataclass(slots=True)
class _Job:
    """A certificate being asked about."""

    deadline: float
    late: Answer  # what those are told who have waited long enough
    waiting: list[tuple[Callable[[bytes], None], int]] = field(default_factory=list)
    answered: bool = False


class Fetcher:
    """Answers questions. Threads fetch and judge; everything else happens in the thread that calls the methods.

    ``get(url, body, limit, seconds)`` is :func:`nfw.httpfetch.fetch` or a test's; ``wake`` is called, by any thread,
    when :meth:`settle` has something to do.
    """

    def __init__(
        self,
        store: Store,
        get: Callable[[str, bytes | None, int, float], bytes],
        wake: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._get = get
        self._wake = wake
        self._clock = clock
        self._shelf = CrlShelf(store, lambda url, seconds: get(url, None, CRL_BYTES, seconds), clock)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="ask")
        self._climbers = ThreadPoolExecutor(ISSUER_THREADS, thread_name_prefix="climb")
        self._climbing = 0
        self._done: queue.SimpleQueue[tuple[bytes, Answer]] = queue.SimpleQueue()
        self._jobs: OrderedDict[bytes, _Job] = OrderedDict()
        self._findings: OrderedDict[bytes, tuple[Answer, float]] = OrderedDict()
        self.counts: dict[str, int] = {}

    def ask(self, message: bytes, reply: Callable[[bytes], None], now: float) -> None:
        """A worker's question; ``reply`` is called with the answer, now or from :meth:`settle`. ``now`` is steady."""
        try:
            question = msgpack.unpackb(message)
            number = int(question["id"])
            below = bytes(question["issuers_of"]) if "issuers_of" in question else None
            certificate = bytes(question["certificate"]) if below is None else below
            issuer = bytes(question["issuer"]) if below is None else b""
        except (ValueError, KeyError, TypeError, msgpack.UnpackException):
            self._count("malformed")
            return
        key = hashlib.sha256(hashlib.sha256(certificate).digest() + hashlib.sha256(issuer).digest()).digest()
        known = self._findings.get(key)
        if known is not None and known[1] > self._clock():
            self._findings.move_to_end(key)
            reply(encode_answer(number, known[0]))
            return
        job = self._jobs.get(key)
        if job is None:
            if len(self._jobs) >= MAX_JOBS or (below is not None and self._climbing >= ISSUER_JOBS):
                self._count("busy")
                reply(encode_answer(number, _unknown("none", "busy") if below is None else ()))
                return
            late: Answer = _unknown("none", "timeout") if below is None else ()
            job = self._jobs[key] = _Job(now + (BUDGET if below is None else ISSUER_SECONDS), late)
            if below is None:
                self._pool.submit(self._work, key, certificate, issuer)
            else:
                self._climbing += 1
                self._climbers.submit(self._work_issuers, key, certificate)
        if job.answered:
            reply(encode_answer(number, job.late))
        elif len(job.waiting) < MAX_WAITING:
            job.waiting.append((reply, number))

    def settle(self, now: float) -> None:
        """Give the answers that have come, and UNKNOWN to those who have waited long enough."""
        self._shelf.refresh()
        while True:
            try:
                key, finding = self._done.get_nowait()
            except queue.Empty:
                break
            job = self._jobs.pop(key)
            until = self._keep_until(finding)
            self._findings[key] = finding, until
            self._findings.move_to_end(key)
            if len(self._findings) > MAX_FINDINGS:
                self._findings.popitem(last=False)
            if isinstance(finding, tuple):
                self._climbing -= 1
                self._count("issuers_found" if finding else "issuers_missing")
            else:
                self._count(f"{finding.method}_{finding.status.value.lower()}")
            for reply, number in job.waiting:
                reply(encode_answer(number, finding))
        for job in self._jobs.values():
            if now >= job.deadline and not job.answered:
                job.answered = True
                self._count("timeout")
                for reply, number in job.waiting:
                    reply(encode_answer(number, job.late))
                job.waiting.clear()

    def next_deadline(self) -> float | None:
        """When :meth:`settle` is due at the latest."""
        return min((job.deadline for job in self._jobs.values() if not job.answered), default=None)

    def close(self) -> None:
        """Start nothing more."""
        for pool in (self._pool, self._climbers):
            pool.shutdown(wait=False, cancel_futures=True)
        self._shelf.close()

    def _keep_until(self, answer: Answer) -> float:
        now = self._clock()
        if isinstance(answer, tuple):
            return now + (revocation.MAX_AGE if answer else NEGATIVE_SECONDS)
        if answer.settled:
            return answer.until
        on_its_way = (answer.method, answer.reason) == ("crl", "timeout")
        return now + (1.0 if on_its_way else NEGATIVE_SECONDS)

    def _count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1

    # -- in a thread -----------------------------------------------------------------------------------------------

    def _work(self, key: bytes, certificate: bytes, issuer: bytes) -> None:
        finding = _unknown("none", "internal")
        try:
            finding = self._find(
                x509.load_der_x509_certificate(certificate),
                x509.load_der_x509_certificate(issuer),
                key.hex() + ".ocsp",
                time.monotonic() + BUDGET,  # from now on: it may have waited for a thread
            )
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one certificate, the next one is asked about
            print(f"nfw: revocation: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            self._done.put((key, finding))
            self._wake()

    def _work_issuers(self, key: bytes, certificate: bytes) -> None:
        found: list[bytes] = []
        try:
            self._climb(x509.load_der_x509_certificate(certificate), found, time.monotonic() + ISSUER_SECONDS)
        except Exception as error:  # noqa: BLE001 - as above
            print(f"nfw: issuers: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            self._done.put((key, tuple(found)))
            self._wake()

    def _climb(self, certificate: x509.Certificate, found: list[bytes], deadline: float) -> None:
        """Certificates above ``certificate``, each fetched from where the one below says it is."""
        fetches = 0
        while len(found) < ISSUER_NESTING:
            above = None
            for url in revocation.issuer_urls(certificate):
                fetches += 1
                if fetches > ISSUER_FETCHES:
                    return
                with contextlib.suppress(FetchError):
                    data = self._get(url, None, OCSP_BYTES, deadline - time.monotonic())
                    above = revocation.issuer_in(data, certificate)
                if above is not None:
                    break
            if above is None or above.subject == above.issuer:
                return  # a root is trusted by being known, not by being sent
            found.append(above.public_bytes(serialization.Encoding.DER))
            certificate = above

    def _find(self, certificate: x509.Certificate, issuer: x509.Certificate, name: str, deadline: float) -> Finding:
        about = revocation.pointers(certificate)
        finding = _unknown("none", "no_pointer")
        stored = self._store.get(name, OCSP_BYTES) if about.ocsp else None
        kept: Finding | None = None
        if stored is not None:
            kept = revocation.from_source(
                revocation.judge_ocsp(stored, certificate, issuer, self._clock()), about.ocsp[0]
            )
            # Not older than it may get in memory: what was good a week ago may be long revoked.
            if kept.settled and kept.this_update + revocation.MAX_AGE > self._clock():
                return kept
        share = OCSP_SHARE if about.crl else 1.0
        ocsp_deadline = deadline - BUDGET * (1 - share)
        for url in about.ocsp:
            finding = self._ask_responder(url, certificate, issuer, name, ocsp_deadline)
            if finding.settled or finding.reason == "responder_unknown":
                return finding
        for url in about.crl:
            index = self._shelf.index(url, issuer, deadline - time.monotonic())
            if isinstance(index, CrlIndex):
                index = revocation.judge_crl(index, certificate, issuer, about.crl, self._clock())
            finding = revocation.from_source(index, url)
            if finding.settled:
                return finding
        return kept if kept is not None and kept.settled else finding

    def _ask_responder(
        self, url: str, certificate: x509.Certificate, issuer: x509.Certificate, name: str, deadline: float
    ) -> Finding:
        try:
            request = revocation.ocsp_request(certificate, issuer)
            data = self._get(url, request, OCSP_BYTES, deadline - time.monotonic())
        except FetchError as error:
            return _unknown("ocsp", error.reason, url)
        finding = revocation.judge_ocsp(data, certificate, issuer, self._clock())
        if finding.settled:
            self._store.put(name, data)
        return revocation.from_source(finding, url)


def _unknown(method: str, reason: str, source: str = "") -> Finding:
    return Finding(Revocation.UNKNOWN, method, reason, source=source)


# -- the process -----------------------------------------------------------------------------------------------------


def open_folder(path: Path, uid: int, gid: int) -> int | None:
    """The cache's directory, made where missing, for this user alone; None, with a word to the operator, if not."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        os.fchmod(folder, 0o700)
        if os.fstat(folder).st_uid != uid:
            os.fchown(folder, uid, gid)
    except OSError as error:
        print(f"nfw: revocation answers are not kept: {path}: {error.strerror}", file=sys.stderr, flush=True)
        return None
    return folder


def user() -> tuple[int, int]:
    """(uid, gid) to run as: ``nfw`` where there is such a user, else ``nobody``; ourselves when we are not root."""
    if os.geteuid() == 0:
        for name in USERS:
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                return entry.pw_uid, entry.pw_gid
    return os.geteuid(), os.getegid()


def become(uid: int, gid: int) -> None:
    """Give up every privilege for good. Raises OSError when that is not possible."""
    parent = os.getppid()
    if os.geteuid() != uid:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        process.die_with_parent(parent)  # a change of user forgets it
    process.prctl(_NO_NEW_PRIVS, 1)
    process.no_dumps()


def main() -> None:
    """``python -m nfw.revocationfetcher PARENT_PID FOLDER NETWORKS LEADER_FD SIDE_FD...``; :func:`run` executes it."""
    parent, folder, networks, leader, *sides = sys.argv[1:]
    process.die_with_parent(int(parent))
    process.name("nfw fetcher")
    allow = [ipaddress.ip_network(network) for network in networks.split(",") if network]
    run([socket.socket(fileno=int(side)) for side in sides], Path(folder), allow, socket.socket(fileno=int(leader)))


def run(sides: Sequence[socket.socket], folder: Path, allow: Sequence[Network], leader: socket.socket) -> None:
    """The process. Tells the leader ``ok`` or ``error: text``, then serves until SIGTERM or the leader's end."""
    networks = ",".join(str(network) for network in allow)
    process.begin_anew("nfw.revocationfetcher", [str(folder), networks], (leader, *sides))
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    for codec in ("idna", "ascii", "latin-1", "iso-8859-1", "utf-8"):
        codecs.lookup(codec)  # loaded when first needed, from where only root may be able to read
    try:
        uid, gid = user()
        kept = open_folder(folder, uid, gid)
        become(uid, gid)
    except OSError as error:
        leader.sendall(f"error: the revocation fetcher cannot give up its privileges: {error.strerror}".encode())
        sys.exit(1)
    wake_in, wake_out = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def wake() -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(wake_out, b"x")

    def get(url: str, body: bytes | None, limit: int, seconds: float) -> bytes:
        return fetch(url, body, limit, seconds, allow)

    fetcher = Fetcher(Store(kept), get, wake)
    leader.sendall(b"ok")
    poll = select.poll()
    by_fd = {side.fileno(): side for side in sides}
    for fd in (*by_fd, wake_in, leader.fileno()):
        poll.register(fd, select.POLLIN)
    while not stopping:
        due = fetcher.next_deadline()
        wait = 1.0 if due is None else max(0.0, min(1.0, due - time.monotonic()))
        for fd, _ in poll.poll(wait * 1000 + 1):
            if fd in by_fd:
                _hear(fetcher, by_fd[fd])
            elif fd == wake_in:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake_in, 65536)
            elif not _command(fetcher, leader):
                stopping.append(0)
        fetcher.settle(time.monotonic())
    fetcher.close()
    os._exit(0)  # threads may be waiting for a responder


def _hear(fetcher: Fetcher, side: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError, ConnectionError):
        data = side.recv(MESSAGE_BYTES, socket.MSG_DONTWAIT)
        if data:
            fetcher.ask(data, functools.partial(_reply, side), time.monotonic())


def _reply(side: socket.socket, message: bytes) -> None:
    with contextlib.suppress(OSError):  # full: the worker asks again
        side.send(message, socket.MSG_DONTWAIT)


def _command(fetcher: Fetcher, leader: socket.socket) -> bool:
    """False: the generation ends."""
    try:
        data = leader.recv(MESSAGE_BYTES)
    except OSError:
        data = b""
    if not data:
        return False
    kind, _ = unpack(data)
    with contextlib.suppress(OSError):
        leader.send(pack(kind, {"counts": dict(fetcher.counts)} if kind == "stats" else None))
    return kind != "end"


if __name__ == "__main__":
    main()
