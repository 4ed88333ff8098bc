"""The lab itself, without a firewall: everything the other tests take for granted."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.firewall import PATIENCE
from tests.lab import CommandFailed, Lab, Site, addresses
from tests.lab.content import BIG_SIZE, sha256_of, write_big_file
from tests.lab.lab import SWEEPING
from tests.lab.namespace import ETC_NETNS, RUN_NETNS
from tests.lab.sites import Proof

pytestmark = pytest.mark.netns

ROOT = Path(__file__).parents[2]
FAMILIES = {"IPv4": "-4", "IPv6": "-6"}
CAREFUL = (Proof.GOOD, Proof.GOOD_RSA, Proof.LISTED, Proof.INTERMEDIATE)


def traces(name: str) -> list[str]:
    """Everything on the machine that carries the lab's name."""
    places = (RUN_NETNS, ETC_NETNS, Path(os.environ.get("TMPDIR", "/var/tmp")))
    found = [str(entry) for place in places if place.is_dir() for entry in place.iterdir() if name in entry.name]
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                command = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if name.encode() in command:
                found.append(f"{process.name}: {command!r}")
    return found


def eventually(condition: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Whether `condition` comes true within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


class TestWeb:
    @pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
    @pytest.mark.parametrize(("option", "protocol"), [("--http1.1", "HTTP/1.1"), ("--http2", "HTTP/2.0")])
    def test_https_through_either_router(self, any_lab: Lab, family: str, option: str, protocol: str) -> None:
        done = any_lab.curl("https://site-a.test/whoami", family, option)
        assert done.returncode == 0, done.stderr
        seen = json.loads(done.stdout)
        client, router = addresses.CLIENT[family == "-6"], addresses.ROUTER_WAN[family == "-6"]
        assert seen["site"] == seen["sni"] == "site-a.test"
        assert seen["protocol"] == protocol
        assert seen["peer"] == str(router.ip if any_lab.masquerade else client.ip)

    @pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
    def test_plain_http(self, any_lab: Lab, family: str) -> None:
        assert any_lab.curl("http://site-b.test/", family).stdout == "this is site-b.test\n"

    def test_sites_are_as_good_or_bad_as_they_claim(self, lab: Lab) -> None:
        def works(site: Site) -> bool:
            return lab.curl(f"https://{site.name}/").stdout == f"this is {site.name}\n"

        assert {site.name: works(site) for site in lab.sites.values()} == {
            site.name: site.proof in CAREFUL for site in lab.sites.values()
        }

    def test_nobody_trusts_the_root_unasked(self, lab: Lab) -> None:
        assert lab.curl("https://site-a.test/", cacert=lab.dir / "certificates/unknown-root.pem").returncode == 60

    def test_tls_and_http_versions_of_the_odd_sites(self, lab: Lab) -> None:
        assert json.loads(lab.curl("https://tls12.test/whoami").stdout)["tls"] == "TLSv1.2"
        assert json.loads(lab.curl("https://http1.test/whoami", "--http2").stdout)["protocol"] == "HTTP/1.1"

    def test_certificate_shown_to_the_client(self, lab: Lab) -> None:
        """By name, and the address's first site where no name is sent."""
        site = lab.sites["site-b.test"]
        for address in site.addresses:
            by_name = lab.peer_certificate(address, "site-b.test")
            assert by_name is not None
            assert by_name.issuer == lab.authorities.root.certificate.subject
            assert by_name.subject.rfc4514_string() == "CN=site-b.test"
            nameless = lab.peer_certificate(address)
            assert nameless is not None
            assert nameless.subject.rfc4514_string() == "CN=site-a.test"
        assert lab.peer_certificate(site.ipv4, "site-b.test", port=80) is None

    def test_upload_and_download_keep_every_byte(self, lab: Lab, tmp_path: Path) -> None:
        sent, received = tmp_path / "sent", tmp_path / "received"
        write_big_file(sent, 5_000_001)
        for option in ("--http1.1", "--http2"):
            url = f"https://site-a.test/upload/test{option}"
            assert lab.curl(url, option, "-f", "-T", str(sent)).returncode == 0
            assert lab.curl(url.replace("/upload/", "/shared/upload/"), "-f", "-o", str(received)).returncode == 0
            assert sha256_of(received) == sha256_of(sent)
            assert lab.curl(url, "-f", "-X", "DELETE").returncode == 0
        assert not list((lab.www / "shared/upload").iterdir())

    def test_big_file_is_a_gibibyte(self, lab: Lab) -> None:
        head = lab.curl("https://site-a.test/shared/big", "-I", "--http1.1").stdout
        assert f"Content-Length: {BIG_SIZE}" in head

    def test_git_clone(self, lab: Lab, tmp_path: Path) -> None:
        command = ["git", "-c", f"http.sslCAInfo={lab.root_ca_path}", "clone", "-q"]
        lab.client.run([*command, "https://site-a.test/shared/repo.git", str(tmp_path / "clone")])
        assert (tmp_path / "clone/README").read_text() == "served again by nginx"

    def test_request_log(self, lab: Lab) -> None:
        lab.curl("https://allowed.test/status/403?from=log")
        assert eventually(lambda: any(seen["uri"] == "/status/403?from=log" for seen in lab.requests("allowed.test")))
        assert not [seen for seen in lab.requests("site-a.test") if "from=log" in seen["uri"]]


class TestServices:
    SERVER = (str(addresses.server_v4(10)), str(addresses.server_v6(12)))

    @pytest.mark.parametrize("address", SERVER)
    @pytest.mark.parametrize("port", addresses.ECHO_PORTS)
    def test_tcp_echo(self, any_lab: Lab, address: str, port: int) -> None:
        with any_lab.in_namespace("client"), socket.create_connection((address, port), timeout=PATIENCE) as connection:
            connection.sendall(b"hello")
            connection.shutdown(socket.SHUT_WR)
            assert connection.makefile("rb").read() == b"hello"

    @pytest.mark.parametrize("address", SERVER)
    def test_udp_echo_answers_from_the_address_asked(self, any_lab: Lab, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with any_lab.in_namespace("client"), socket.socket(family, socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE)
            client.connect((address, 7))
            client.send(b"ping" * 100)
            assert client.recv(2048) == b"ping" * 100

    def test_discard_logs_what_it_got(self, lab: Lab) -> None:
        with lab.in_namespace("client"), socket.create_connection((self.SERVER[0], 9), timeout=PATIENCE) as connection:
            connection.sendall(b"x" * 100_000)
            name = connection.getsockname()
        assert eventually(lambda: bool(lab.connections(9)))
        (record,) = lab.connections(9)
        assert (record["peer"], record["peer_port"]) == name
        assert (record["bytes"], record["end"], record["head"]) == (100_000, "closed", "x" * 4096)

    def test_chargen_sends_without_end(self, lab: Lab) -> None:
        with lab.in_namespace("client"), socket.create_connection((self.SERVER[1], 19), timeout=PATIENCE) as connection:
            wanted = 10_000_000
            while wanted > 0:
                wanted -= len(connection.recv(1 << 20))

    def test_names_resolve_from_hosts_and_from_dns(self, lab: Lab) -> None:
        program = (
            "import socket, sys; print(sorted({entry[4][0] for entry in socket.getaddrinfo(sys.argv[1], 443)}), end='')"
        )
        site = lab.sites["evil.test"]
        assert lab.client.run([sys.executable, "-c", program, site.name]).stdout == str(sorted(site.addresses))
        assert lab.client.run([sys.executable, "-c", program, "no.such.test"], check=False).returncode == 1
        assert "evil.test" not in Path("/etc/hosts").read_text()

    @pytest.mark.parametrize(
        ("name", "kind", "answers", "code"),
        [
            ("evil.test", 1, [addresses.server_v4(12).packed], 0),
            ("evil.test", 28, [addresses.server_v6(12).packed], 0),
            ("evil.test", 16, [], 0),
            ("no.such.test", 1, [], 3),
        ],
    )
    def test_dns_over_udp_and_tcp(self, lab: Lab, name: str, kind: int, answers: list[bytes], code: int) -> None:
        labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
        query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + labels + b"\0" + bytes([0, kind, 0, 1])
        with lab.in_namespace("client"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE)
            client.sendto(query, (self.SERVER[0], 53))
            reply = client.recv(512)
        with lab.in_namespace("client"), socket.create_connection((self.SERVER[1], 53), timeout=PATIENCE) as connection:
            connection.sendall(len(query).to_bytes(2, "big") + query)
            connection.shutdown(socket.SHUT_WR)
            assert connection.makefile("rb").read() == len(reply).to_bytes(2, "big") + reply
        assert reply[:2] == query[:2]
        assert reply[3] & 0x0F == code
        assert int.from_bytes(reply[6:8], "big") == len(answers)
        assert all(reply.endswith(answer) for answer in answers)


class TestCommands:
    def test_failure_shows_what_was_printed(self, lab: Lab) -> None:
        with pytest.raises(CommandFailed, match="no such luck"):
            lab.router.run(["sh", "-c", "echo no such luck >&2; exit 3"])
        assert lab.router.run(["sh", "-c", "exit 3"], check=False).returncode == 3

    def test_timeout_ends_the_whole_session_of_the_command(self, lab: Lab) -> None:
        before = lab.client.pids()
        with pytest.raises(subprocess.TimeoutExpired):
            lab.client.run(["sh", "-c", "sleep 60 & sleep 60"], timeout=0.2)
        assert eventually(lambda: lab.client.pids() == before)

    def test_in_namespace_comes_back(self, lab: Lab) -> None:
        def here() -> str:
            return os.readlink("/proc/thread-self/ns/net")

        def fail_inside() -> None:
            with lab.in_namespace("server"):
                assert here() != outside
                raise ZeroDivisionError

        outside = here()
        with pytest.raises(ZeroDivisionError):
            fail_inside()
        assert here() == outside

    def test_callers_settings_stay_outside(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
        monkeypatch.setenv("CURL_CA_BUNDLE", "/nowhere")
        assert lab.curl("https://site-a.test/").returncode == 0


class TestRouter:
    def test_offloads_are_on(self, lab: Lab) -> None:
        """A firewall meets packets of 64 KB and unfilled checksums; the lab must not hide that."""
        shown = lab.router.run(["ip", "-d", "link", "show", "wan"]).stdout
        assert "gso_max_size 65536" in shown
        with lab.in_namespace("router"), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0003) as tap:
            tap.bind(("lan", 0x0003))
            tap.settimeout(PATIENCE)
            with lab.in_namespace("client"), socket.create_connection(("203.0.113.10", 9), PATIENCE) as connection:
                connection.sendall(b"y" * 1_000_000)
                while len(tap.recv(1 << 17)) <= 1514:
                    continue

    def test_server_cannot_reach_behind_a_masquerading_router(self, masquerading_lab: Lab, lab: Lab) -> None:
        for address in ("10.1.0.2", "fd00:1::2"):
            assert "via" in lab.server.run(["ip", "route", "get", address]).stdout
            assert masquerading_lab.server.run(["ip", "route", "get", address], check=False).returncode == 2

    def test_addresses_are_usable_at_once(self, lab: Lab) -> None:
        for role in ("client", "router", "server"):
            shown = lab.router.run(["ip", "-n", f"{lab.name}-{role}", "-6", "address"]).stdout
            assert "tentative" not in shown
            assert "dadfailed" not in shown


class TestRemoval:
    def test_nothing_is_left(self) -> None:
        """Not even of a command that hid in a session of its own and ignores SIGTERM."""
        with Lab() as lab:
            name = lab.name
            lab.router.run(["sh", "-c", "trap '' TERM; setsid sleep 1234 >/dev/null 2>&1 &"])
            (hidden,) = lab.router.pids()
            servers = lab.server.pids()
            assert len(servers) == 3  # nginx's master and worker, and the small services
            assert len(traces(name)) >= 9
        assert traces(name) == []
        # Killed before Lab returned; init may take a moment to collect the one that had lost its parent.
        assert eventually(lambda: not [pid for pid in (hidden, *servers) if Path(f"/proc/{pid}").exists()])

    def test_an_error_while_building_leaves_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tests.lab.nginx.command", lambda _: ["nginx", "-c", "/nonexistent", "-e", "/dev/null"])
        broken = Lab()
        with pytest.raises(RuntimeError, match="nginx did not start"), broken:
            pass
        assert traces(broken.name) == []

    def test_sweep_leaves_living_labs_alone(self, lab: Lab) -> None:
        assert not [name for name in Lab.sweep() if name.startswith(lab.name)]
        assert lab.curl("https://site-a.test/").returncode == 0

    def test_kill_ends_the_servers_and_the_next_lab_sweeps(self) -> None:
        """The servers die with their maker, at once; what a dead process cannot remove goes when the next lab comes."""
        holder = subprocess.Popen(
            [sys.executable, "-m", "tests.lab", "keep"], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        with holder:
            assert holder.stdout is not None
            name = holder.stdout.readline().split()[1].rstrip(",")
            running = [trace for trace in traces(name) if "nginx" in trace or "services" in trace]
            assert len(running) >= 2
            with SWEEPING:  # nobody else's lab comes now
                holder.kill()
                holder.wait()
                assert eventually(lambda: not [trace for trace in traces(name) if ": b'" in trace])
                assert RUN_NETNS / f"{name}-client" in RUN_NETNS.iterdir()
                removed = Lab.sweep()
        assert {name, f"{name}-client", f"{name}-router", f"{name}-server"} <= set(removed)
        assert traces(name) == []
        assert not [entry for entry in Lab.sweep() if entry.startswith(name)]

    def test_terminated_lab_removes_itself(self) -> None:
        with subprocess.Popen(
            [sys.executable, "-m", "tests.lab", "keep", "--masquerade"], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as holder:
            assert holder.stdout is not None
            name = holder.stdout.readline().split()[1].rstrip(",")
            holder.terminate()
            assert holder.wait(PATIENCE) == 0
        assert traces(name) == []
