"""`Lab`: the whole lab as one context manager."""

import fcntl
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Final, Literal, Self

from cryptography import x509

from tests.lab import addresses, nginx
from tests.lab.certificates import Authorities
from tests.lab.content import sha256_of, write_content
from tests.lab.namespace import ETC_NETNS, RUN_NETNS, Namespace, remove_by_name, write_etc
from tests.lab.network import connect
from tests.lab.sites import SITES, Site

Role = Literal["client", "router", "server"]

_ROLES: Final[tuple[Role, ...]] = ("client", "router", "server")
# nfw-<pid of the maker>-<serial number in that process>[-<role>]
_NAME: Final = re.compile(r"nfw-(\d+)-\d+(-client|-router|-server)?")
_START_SECONDS: Final = 30.0


class Lab(AbstractContextManager["Lab"]):
    """Client, router and server in namespaces, with servers running; see the package's docstring for the picture.

    Attributes: `client`, `router`, `server` (Namespace), `dir` (a scratch folder that goes with the lab), `sites` (by
    name), `authorities` (keys and certificates), `root_ca_pem` (bytes) and `root_ca_path` (the same as a file).
    """

    _serial: ClassVar = itertools.count(1)
    _alive: ClassVar[set[str]] = set()

    client: Namespace
    router: Namespace
    server: Namespace

    def __init__(self, masquerade: bool = False) -> None:
        self.masquerade = masquerade
        self.name = f"nfw-{os.getpid()}-{next(self._serial)}"
        self.dir = _scratch() / self.name
        self.sites: dict[str, Site] = dict(SITES)
        self._namespaces: list[Namespace] = []

    def __enter__(self) -> Self:
        self.sweep()
        self._alive.add(self.name)
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop every process of the lab and remove all of it. Closing twice is harmless."""
        with ExitStack() as last_steps:  # run backwards, all of them, whatever one of them raises
            last_steps.callback(self._alive.discard, self.name)
            last_steps.callback(shutil.rmtree, self.dir, ignore_errors=True)
            for namespace in self._namespaces:
                last_steps.callback(namespace.remove)
            self._namespaces.clear()

    @classmethod
    def sweep(cls) -> list[str]:
        """Remove what labs of processes that no longer exist left behind; returns the names of what was removed."""
        removed = []
        with SWEEPING:
            for folder, remove in ((RUN_NETNS, remove_by_name), (ETC_NETNS, remove_by_name), (_scratch(), _remove_dir)):
                for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
                    if cls._is_left_over(entry.name):
                        remove(entry.name)
                        removed.append(entry.name)
        return list(dict.fromkeys(removed))

    def namespace(self, role: Role) -> Namespace:
        """The namespace of that role."""
        return {"client": self.client, "router": self.router, "server": self.server}[role]

    def in_namespace(self, role: Role) -> AbstractContextManager[None]:
        """Within it, the calling thread makes its sockets and processes in that namespace; see Namespace.entered."""
        return self.namespace(role).entered()

    def curl(
        self, url: str, *options: str, timeout: float = 15.0, cacert: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """curl from the client, trusting the lab's root (or `cacert`); its exit code is the caller's to judge."""
        command = ["curl", "-sS", "--noproxy", "*", "--max-time", f"{timeout:g}"]
        command += ["--cacert", str(cacert or self.root_ca_path), *options, url]
        return self.client.run(command, timeout=timeout + 5.0, check=False)

    def peer_certificate(
        self, address: str, sni: str | None = None, port: int = 443, timeout: float = 10.0
    ) -> x509.Certificate | None:
        """The leaf that the client is shown, unverified; None where no handshake came about. `sni` None sends none."""
        target = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        name = ["-servername", sni] if sni is not None else ["-noservername"]
        try:
            done = self.client.run(["openssl", "s_client", "-connect", target, *name], timeout, check=False)
        except subprocess.TimeoutExpired:
            return None
        found = re.search(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", done.stdout, re.DOTALL)
        return x509.load_pem_x509_certificate(found[0].encode()) if found else None

    def requests(self, site: str | None = None) -> list[dict[str, str]]:
        """The requests nginx has answered, oldest first, all of them or those that reached `site`.

        Keys as in nginx.py's log_format. A request is logged when its answer has been sent, so it may be missing for
        a moment after the client has everything.
        """
        records = _json_lines(self.dir / "nginx/access.log")
        return [record for record in records if site in (None, record["site"])]

    def connections(self, port: int | None = None) -> list[dict[str, Any]]:
        """The finished TCP connections to the small services (services.py), oldest first, all or those to `port`."""
        records = _json_lines(self.dir / "services.log")
        return [record for record in records if port in (None, record["port"])]

    @property
    def www(self) -> Path:
        """The folder nginx serves: NAME/ for each site, and shared/ (big, small, repo.git, upload/) for all."""
        return self.dir / "www"

    @cached_property
    def big_sha256(self) -> str:
        """The checksum of /shared/big."""
        return sha256_of(self.www / "shared/big")

    def _build(self) -> None:
        self.dir.mkdir(parents=True)
        home = self.dir / "home"
        home.mkdir()
        self.client, self.router, self.server = (self._new_namespace(role, home) for role in _ROLES)
        connect(self.client, self.router, self.server, self.masquerade)

        certificates = self.dir / "certificates"
        self.authorities = Authorities()
        self.authorities.write(list(self.sites.values()), certificates)
        self.root_ca_path = certificates / "root.pem"
        self.root_ca_pem = self.root_ca_path.read_bytes()
        write_content(self.www)
        for site in self.sites.values():
            if site.crl_url is not None:
                (self.www / site.name / "root.crl").write_bytes(self.authorities.crl())

        configuration = nginx.write_configuration(self.sites.values(), self.dir / "nginx", certificates, self.www)
        services = self._start_services()
        # SIGTERM: the master then ends its worker, which would outlive a killed one.
        web = self._start("nginx", nginx.command(configuration), death_signal="TERM")
        self._await_ready(services)
        self._await_listening(web, self.sites["site-a.test"].ipv4, 443)

    def _new_namespace(self, role: Role, home: Path) -> Namespace:
        name = f"{self.name}-{role}"
        namespace = Namespace(name, home)
        self._namespaces.append(namespace)
        write_etc(name, {"hosts": self._hosts(role), "resolv.conf": self._resolver(), "nsswitch.conf": _NSSWITCH})
        return namespace

    def _hosts(self, role: Role) -> str:
        lines = ["127.0.0.1 localhost", f"127.0.1.1 {role}", "::1 localhost"]
        for site in self.sites.values():
            lines += [f"{address} {site.name}" for address in site.addresses]
        return "\n".join(lines) + "\n"

    def _resolver(self) -> str:
        first = addresses.server_v4(addresses.SERVER_HOSTS[0])
        return f"nameserver {first}\noptions timeout:2 attempts:1\n"

    def _start_services(self) -> subprocess.Popen[Any]:
        names = {site.name: list(site.addresses) for site in self.sites.values()}
        settings = {
            "log": str(self.dir / "services.log"),
            "names": names,
            "addresses": sorted({address for site in self.sites.values() for address in site.addresses}),
            "echo_ports": addresses.ECHO_PORTS,
            "discard_port": addresses.DISCARD_PORT,
            "chargen_port": addresses.CHARGEN_PORT,
            "dns_port": addresses.DNS_PORT,
        }
        path = self.dir / "services.json"
        path.write_text(json.dumps(settings))
        program = str(Path(__file__).with_name("services.py"))
        return self._start("services", [sys.executable, "-I", program, str(path)], stdout=subprocess.PIPE)

    def _start(self, label: str, command: list[str], **options: Any) -> subprocess.Popen[Any]:
        # A session of its own, so that Ctrl-C on the terminal reaches the caller and not the servers.
        with (self.dir / f"{label}.stderr").open("wb") as stderr:
            return self.server.popen(
                command, stdin=subprocess.DEVNULL, stderr=stderr, start_new_session=True, **options
            )

    def _await_ready(self, services: subprocess.Popen[Any]) -> None:
        assert services.stdout is not None
        if services.stdout.readline() != b"ready\n":
            raise RuntimeError(f"the lab's services did not start:\n{(self.dir / 'services.stderr').read_text()}")

    def _await_listening(self, process: subprocess.Popen[Any], address: str, port: int) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with self.server.entered(), suppress(ConnectionRefusedError):
                socket.create_connection((address, port), timeout=1.0).close()
                return
            if process.poll() is not None or time.monotonic() > deadline:
                log = self.dir / "nginx/error.log"
                raise RuntimeError(f"nginx did not start:\n{log.read_text() if log.exists() else ''}")
            time.sleep(0.005)

    @classmethod
    def _is_left_over(cls, name: str) -> bool:
        match = _NAME.fullmatch(name)
        if match is None:
            return False
        pid = int(match[1])
        if pid == os.getpid():
            # Ours, or of an earlier process that had our number.
            return not any(name == alive or name.startswith(f"{alive}-") for alive in cls._alive)
        return not Path(f"/proc/{pid}").exists()


# Files and the lab's own DNS, and none of the machine's resolver daemons.
_NSSWITCH: Final = "passwd: files\ngroup: files\nhosts: files dns\n"


def _scratch() -> Path:
    """Where labs keep their files: on disk and not in memory, since a test may upload a gigabyte."""
    return Path(os.environ.get("TMPDIR", "/var/tmp"))


class _Turn:
    """What one process of the machine at a time does; within it, it may be entered again."""

    def __init__(self, name: str) -> None:
        self._path = _scratch() / name
        self._lock = -1  # a descriptor
        self._depth = 0

    def __enter__(self) -> None:
        if self._depth == 0:
            lock = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._lock = lock
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            os.close(self._lock)


SWEEPING: Final = _Turn("nfw-labs-are-swept")


def _remove_dir(name: str) -> None:
    shutil.rmtree(_scratch() / name, ignore_errors=True)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    written, _, _ = path.read_bytes().rpartition(b"\n") if path.exists() else (b"", b"", b"")  # without half a line
    return [json.loads(line) for line in written.splitlines()]
