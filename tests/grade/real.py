"""Real servers of the grade: nginx, and openssl's ``s_server`` for protocols nginx would not be asked for.

Both run in the lab's server namespace, one process for each case's address and port. OpenSSL's security level is 0 for
them: they show and speak whatever they are given, which is what a badly run server does.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.grade import pki
from tests.grade.pki import Issued
from tests.lab import Lab, addresses
from tests.lab.nginx import command as nginx_command

WWW = b"HTTP/1.0 200"  # what s_server answers with
START_SECONDS = 10.0
STOP_SECONDS = 5.0
_number = itertools.count()
SERVERS = {str(made(host)) for host in addresses.SERVER_HOSTS for made in (addresses.server_v4, addresses.server_v6)}
"""Addresses that those who come directly have."""
ANY_LEVEL = b"""\
openssl_conf = grade
[grade]
ssl_conf = levels
[levels]
system_default = none
[none]
CipherString = ALL:@SECLEVEL=0
"""
_NGINX = """\
daemon off;
user root;
worker_processes 1;
worker_rlimit_nofile 65536;
pid {folder}/pid;
error_log {folder}/error.log info;
events {{ worker_connections 30000; }}
http {{
    log_format grade '$remote_addr $request_length $status';
    access_log {folder}/access.log grade;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen {listen} ssl backlog=4096;
        ssl_certificate {folder}/chain.pem;
        ssl_certificate_key {folder}/key.pem;
        ssl_protocols {protocols};
        ssl_ciphers ALL:@SECLEVEL=0;
        {more}
        location / {{ return 200 "GRADE\\n"; }}
    }}
}}
"""


@dataclass(frozen=True)
class Nginx:
    """What an nginx serves: ``chain`` in DER, leaf first; ``protocols`` in its words; ``more`` lines of its server
    block; ``staple`` an OCSP response in DER."""

    chain: tuple[bytes, ...]
    key: bytes
    protocols: str
    staple: bytes
    more: str


@dataclass(frozen=True)
class SServer:
    """What ``openssl s_server -www`` serves, with more of its options. At most TLS 1.2: what it was told is found in
    the clear heads of records."""

    chain: tuple[bytes, ...]
    key: bytes
    options: tuple[str, ...]


def nginx(
    chain: Sequence[bytes] | Issued,
    key: pki.Key | None = None,
    *,
    protocols: str = "TLSv1.2 TLSv1.3",
    staple: bytes = b"",
    more: str = "keepalive_timeout 0;",
) -> Nginx:
    """``chain``: DER, leaf first, or a certificate with all intermediates above it."""
    return Nginx(*_shown(chain, key), protocols, staple, more)


def s_server(chain: Sequence[bytes] | Issued, *options: str, key: pki.Key | None = None) -> SServer:
    """``chain`` as for :func:`nginx`."""
    return SServer(*_shown(chain, key), options)


def _shown(chain: Sequence[bytes] | Issued, key: pki.Key | None) -> tuple[tuple[bytes, ...], bytes]:
    if isinstance(chain, Issued):
        key = key or chain.key
        chain = pki.path(chain)
    assert key is not None
    return tuple(chain), key.pem


class RealServer:
    """One process. ``got`` is what clients have said after the handshake, as its log has it; nfw's part of it where
    :meth:`heard_directly` was called after the others. As much of :class:`tests.grade.bench.Server` as probes need."""

    end_signal = signal.SIGTERM

    def __init__(self, lab: Lab, spec: Nginx | SServer, address: str, port: int) -> None:
        self.address, self.port = address, port
        self.folder = lab.dir / "grade" / f"{next(_number)}"
        self.folder.mkdir(parents=True)
        self._seen = self._direct = 0
        for name, data in (
            ("chain.pem", b"".join(map(pki.pem, spec.chain))),
            ("key.pem", spec.key),
            ("openssl.cnf", ANY_LEVEL),
        ):
            (self.folder / name).write_bytes(data)
        with (self.folder / "output.txt").open("wb") as output:
            self.process = lab.server.popen(
                self.line(spec),
                env={"OPENSSL_CONF": str(self.folder / "openssl.cnf")},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self.ready(lab):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise RuntimeError(f"{type(self).__name__} does not serve: {self.errors}")
            time.sleep(0.01)

    def line(self, spec: Any) -> list[str]:
        """The command."""
        raise NotImplementedError

    def ready(self, lab: Lab) -> bool:
        raise NotImplementedError

    def heard(self) -> list[bytes]:
        """A piece of evidence for each time a client has said something, whole requests or not."""
        raise NotImplementedError

    def told(self) -> list[bytes]:
        """What of that came through nfw."""
        return self.heard()[self._direct :]

    def heard_directly(self) -> None:
        """Nobody has come through nfw yet."""
        self._direct = len(self.heard())

    @property
    def got(self) -> bytes:
        return b"\n".join(self.told()[self._seen :])

    @property
    def errors(self) -> list[str]:
        """The last of what it complains about."""
        files = (self.folder / name for name in ("output.txt", "error.log"))
        return [line for file in files if file.exists() for line in file.read_text(errors="replace").splitlines()[-3:]]

    def forget(self) -> None:
        self._seen = len(self.told())

    def close(self) -> None:
        """Let it finish what it does, write what it knows, and end."""
        if self.process.poll() is None:
            self.process.send_signal(self.end_signal)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class NginxServer(RealServer):
    """A request, be it a byte of one, is in its access log once it is over."""

    end_signal = signal.SIGQUIT  # open requests are finished, and logged

    def line(self, spec: Nginx) -> list[str]:
        more = spec.more
        if spec.staple:
            (self.folder / "staple.der").write_bytes(spec.staple)
            more += f" ssl_stapling on; ssl_stapling_file {self.folder}/staple.der;"
        address = f"[{self.address}]" if ":" in self.address else self.address
        configuration = self.folder / "nginx.conf"
        configuration.write_text(
            _NGINX.format(folder=self.folder, listen=f"{address}:{self.port}", protocols=spec.protocols, more=more)
        )
        return nginx_command(configuration)

    def ready(self, lab: Lab) -> bool:
        with lab.in_namespace("server"), contextlib.suppress(OSError):
            socket.create_connection((self.address, self.port), 1.0).close()
            return True
        return False

    def heard(self) -> list[bytes]:
        file = self.folder / "access.log"
        return file.read_bytes().splitlines() if file.exists() else []

    def told(self) -> list[bytes]:
        # By address: a request made directly is logged a moment after its answer has arrived.
        return [line for line in self.heard() if line.split(b" ")[0].decode() not in SERVERS]


class SServerServer(RealServer):
    """With ``-msg`` it prints the head of every record it reads."""

    def line(self, spec: SServer) -> list[str]:
        where = ["-accept", f"{self.address}:{self.port}", "-key", "key.pem", "-cert", "chain.pem"]
        return ["openssl", "s_server", *where, "-cert_chain", "chain.pem", "-www", "-msg", *spec.options]

    def ready(self, lab: Lab) -> bool:
        return b"ACCEPT" in (self.folder / "output.txt").read_bytes()

    def heard(self) -> list[bytes]:
        output = (self.folder / "output.txt").read_bytes()
        return re.findall(rb"<<< [^\n]*RecordHeader[^\n]*\n +17 03 [^\n]*", output)


def start(lab: Lab, spec: Nginx | SServer, address: str, port: int) -> RealServer:
    """Returns when it listens. Raises RuntimeError with what it says where it does not."""
    return (NginxServer if isinstance(spec, Nginx) else SServerServer)(lab, spec, address, port)
