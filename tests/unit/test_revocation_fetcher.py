"""The revocation fetcher: one fetch for all who wait, within the budget, and a cache that lasts and is not trusted."""

from __future__ import annotations

import functools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509 import ocsp

from engines.tls import revocation
from engines.tls.revocation import Finding, Question, Revocation
from nfw import revocationfetcher
from nfw.httpfetch import FetchError
from nfw.revocationdesk import RevocationDesk
from nfw.revocationfetcher import Fetcher, Store, decode_answer, encode_answer, encode_question
from tests.unit.revocationkit import CRL_URL, HOUR, OCSP_URL, crl, ocsp_response, pointing
from tests.unit.test_tls_revocation import produced_when_judged  # noqa: F401 - a fixture used by itself
from tests.unit.tlskit import DAY, NOW, Authority

ROOT = Authority()
REVOKED, UNKNOWN = ocsp.OCSPCertStatus.REVOKED, ocsp.OCSPCertStatus.UNKNOWN
Net = dict[str, Callable[[], bytes]]


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def failing(why: str) -> Callable[[], bytes]:
    def answer() -> bytes:
        raise FetchError(why)

    return answer


class Bench:
    """A fetcher with a network of functions, one per URL."""

    def __init__(self, net: Net, folder: Path | None = None) -> None:
        self.net = net
        self.fetched: list[str] = []
        self.woken = threading.Event()
        self.at = NOW
        fd = None if folder is None else os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self.fd = fd
        self.store = Store(fd)
        self.fetcher = Fetcher(self.store, self.get, self.woken.set, lambda: self.at)
        self.answers: list[tuple[int, Finding]] = []

    def get(self, url: str, body: bytes | None, limit: int, seconds: float) -> bytes:
        self.fetched.append(url)
        data = self.net[url]()
        if len(data) > limit:
            raise FetchError("too_large")
        return data

    def ask(self, certificate: x509.Certificate, number: int = 1, issuer: Authority = ROOT) -> None:
        message = encode_question(number, der(certificate), der(issuer.certificate))
        self.fetcher.ask(message, lambda data: self.answers.append(decode_answer(data)), time.monotonic())

    def settle(self, wanted: int = 1) -> list[Finding]:
        until = time.monotonic() + 30
        while len(self.answers) < wanted and time.monotonic() < until:
            self.woken.wait(0.05)
            self.woken.clear()
            self.fetcher.settle(time.monotonic())
        assert len(self.answers) == wanted
        return [finding for _, finding in self.answers]

    def find(self, certificate: x509.Certificate, issuer: Authority = ROOT) -> Finding:
        self.ask(certificate, issuer=issuer)
        finding = self.settle()[0]
        self.answers.clear()
        return finding

    def close(self) -> None:
        self.fetcher.close()
        if self.fd is not None:
            os.close(self.fd)


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(net: Net, folder: Path | None = None) -> Bench:
        made.append(Bench(net, folder))
        return made[-1]

    yield make
    for one in made:
        one.close()


BOTH, _ = pointing(ROOT, "both.test", crl_urls=(CRL_URL,))
ONLY_OCSP, _ = pointing(ROOT, "ocsp.test")
ONLY_CRL, _ = pointing(ROOT, "crl.test", ocsp_urls=(), crl_urls=(CRL_URL,))
ALSO_CRL, _ = pointing(ROOT, "crl2.test", ocsp_urls=(), crl_urls=(CRL_URL,))

CASES = {
    "ocsp good": (BOTH, lambda: ocsp_response(BOTH, ROOT), failing("x"), "GOOD", "ocsp", "good", [OCSP_URL]),
    "ocsp revoked": (BOTH, lambda: ocsp_response(BOTH, ROOT, REVOKED), failing("x"), "REVOKED", "ocsp", "revoked", 1),
    "ocsp does not know": (
        BOTH,
        lambda: ocsp_response(BOTH, ROOT, UNKNOWN),
        lambda: crl(ROOT),
        "UNKNOWN",
        "ocsp",
        "responder_unknown",
        1,
    ),
    "refused, then the crl": (BOTH, failing("unreachable"), lambda: crl(ROOT, BOTH), "REVOKED", "crl", "revoked", 2),
    "a page, then the crl": (BOTH, lambda: b"<html>", lambda: crl(ROOT), "GOOD", "crl", "good", 2),
    "both dead": (BOTH, failing("no_address"), failing("http_500"), "UNKNOWN", "crl", "http_500", 2),
    "crl only": (ONLY_CRL, failing("x"), lambda: crl(ROOT, ONLY_CRL), "REVOKED", "crl", "revoked", [CRL_URL]),
    "crl of another": (ONLY_CRL, failing("x"), lambda: crl(Authority("X")), "UNKNOWN", "crl", "other_issuer", 1),
    "ocsp only, dead": (ONLY_OCSP, failing("http_404"), failing("x"), "UNKNOWN", "ocsp", "http_404", 1),
}


@pytest.mark.parametrize("case", CASES)
def test_where_it_looks(bench, case: str) -> None:
    certificate, responder, point, status, method, reason, fetched = CASES[case]
    place = bench({OCSP_URL: responder, CRL_URL: point})
    finding = place.find(certificate)
    assert (finding.status.value, finding.method, finding.reason) == (status, method, reason)
    assert finding.source == (OCSP_URL if method == "ocsp" else CRL_URL)
    assert place.fetched == fetched if isinstance(fetched, list) else len(place.fetched) == fetched


def test_a_thousand_wait_for_one_fetch(bench) -> None:
    gate = threading.Event()

    def answer() -> bytes:
        gate.wait(60)
        return ocsp_response(ONLY_OCSP, ROOT)

    place = bench({OCSP_URL: answer})
    for number in range(1000):
        place.ask(ONLY_OCSP, number)
    gate.set()
    assert {finding.status for finding in place.settle(1000)} == {Revocation.GOOD}
    assert sorted(number for number, _ in place.answers) == list(range(1000))
    place.ask(ONLY_OCSP, 1000)
    assert len(place.settle(1001)) == 1001
    assert place.fetched == [OCSP_URL]


def test_a_crl_is_renewed_before_it_ends(bench) -> None:
    """In the background, while the old one serves; a failure leaves the old one, and is not repeated at once."""
    place = bench({CRL_URL: lambda: crl(ROOT, next_update=HOUR)})  # one of two hours is over
    assert place.find(ONLY_CRL).status is Revocation.GOOD
    place.fetcher.settle(time.monotonic())
    assert place.fetched == [CRL_URL]

    def until(fetches: int) -> None:
        deadline = time.monotonic() + 30
        while (len(place.fetched) < fetches or place.fetcher._shelf._coming) and time.monotonic() < deadline:
            place.fetcher.settle(time.monotonic())
            time.sleep(0.01)
        assert len(place.fetched) == fetches

    place.net[CRL_URL] = failing("unreachable")
    place.at = NOW + HOUR - 600  # less than a tenth of its life is left
    until(2)
    for _ in range(3):
        place.fetcher.settle(time.monotonic())
    assert len(place.fetched) == 2
    assert place.find(ALSO_CRL).status is Revocation.GOOD
    place.net[CRL_URL] = lambda: crl(ROOT, BOTH, at=place.at)
    place.at += revocationfetcher.NEGATIVE_SECONDS
    until(3)
    place.net[CRL_URL] = failing("unreachable")
    place.at = NOW + 2 * HOUR  # the first one has ended
    assert place.find(ONLY_CRL).status is Revocation.GOOD
    assert len(place.fetched) == 3


def test_a_crl_nobody_asks_for_is_not_renewed(bench) -> None:
    place = bench({CRL_URL: lambda: crl(ROOT, next_update=3 * DAY)})
    place.find(ONLY_CRL)
    place.at = NOW + revocationfetcher.REFRESH_WITHIN
    place.fetcher.settle(time.monotonic())
    assert not place.fetcher._shelf._coming


def test_one_crl_for_all_its_certificates(bench) -> None:
    gate = threading.Event()

    def answer() -> bytes:
        gate.wait(60)
        return crl(ROOT, ALSO_CRL)

    place = bench({CRL_URL: answer})
    place.ask(ONLY_CRL, 1)
    place.ask(ALSO_CRL, 2)
    gate.set()
    place.settle(2)
    found = {number: finding.status for number, finding in place.answers}
    assert found == {1: Revocation.GOOD, 2: Revocation.REVOKED}
    assert place.fetched == [CRL_URL]


def test_whoever_waits_too_long_is_told_and_the_next_one_knows(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revocationfetcher, "BUDGET", 0.1)
    gate = threading.Event()

    def answer() -> bytes:
        gate.wait(60)
        return ocsp_response(ONLY_OCSP, ROOT)

    place = bench({OCSP_URL: answer})
    began = time.monotonic()
    place.ask(ONLY_OCSP)
    assert place.fetcher.next_deadline() is not None
    assert place.settle()[0].reason == "timeout"
    assert time.monotonic() - began < 40, "before there is an answer"
    place.ask(ONLY_OCSP, 2)
    assert place.settle(2)[1].reason == "timeout", "at once, while it is still being fetched"
    gate.set()
    until = time.monotonic() + 30
    while place.fetcher._jobs and time.monotonic() < until:
        place.fetcher.settle(time.monotonic())
        time.sleep(0.01)
    place.ask(ONLY_OCSP, 3)
    assert place.settle(3)[2].status is Revocation.GOOD
    assert place.fetched == [OCSP_URL]


def test_a_failure_is_remembered_for_a_short_time(bench) -> None:
    place = bench({OCSP_URL: failing("unreachable")})
    for _ in range(3):
        assert place.find(ONLY_OCSP).status is Revocation.UNKNOWN
    assert len(place.fetched) == 1
    place.at += revocationfetcher.NEGATIVE_SECONDS + 1
    place.net[OCSP_URL] = lambda: ocsp_response(ONLY_OCSP, ROOT, at=place.at)
    assert place.find(ONLY_OCSP).status is Revocation.GOOD


def test_an_answer_is_asked_for_again_when_it_ends(bench) -> None:
    place = bench({OCSP_URL: lambda: ocsp_response(ONLY_OCSP, ROOT, next_update=60)})
    assert place.find(ONLY_OCSP).status is Revocation.GOOD
    place.at += 61
    assert place.find(ONLY_OCSP).reason == "stale"
    assert len(place.fetched) == 2


def test_too_many_questions(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revocationfetcher, "MAX_JOBS", 1)
    gate = threading.Event()

    def answer() -> bytes:
        gate.wait(60)
        return b""

    place = bench({OCSP_URL: answer, CRL_URL: answer})
    place.ask(ONLY_OCSP, 1)
    place.ask(ONLY_CRL, 2)
    assert [(number, finding.reason) for number, finding in place.answers] == [(2, "busy")]
    gate.set()
    place.settle(2)


@pytest.mark.parametrize("message", [b"", b"\xc1", b"\x80", b"\x93\x01\x02\x03", b"\x81\xa2id\xa1x"])
def test_malformed_questions_are_counted(bench, message: bytes) -> None:
    place = bench({})
    place.fetcher.ask(message, lambda _: None, 0.0)
    assert place.fetcher.counts == {"malformed": 1}


def test_certificates_that_do_not_parse_are_unknown(bench, capsys: pytest.CaptureFixture[str]) -> None:
    place = bench({})
    message = encode_question(1, b"rubbish", b"rubbish")
    place.fetcher.ask(message, lambda data: place.answers.append(decode_answer(data)), time.monotonic())
    assert place.settle()[0].reason == "internal"
    assert "revocation: ValueError" in capsys.readouterr().err


# -- issuers ---------------------------------------------------------------------------------------------------------

ABOVE = "http://aia.example.test/"


def chain_of(levels: int) -> tuple[x509.Certificate, Net, list[Authority]]:
    """A leaf below ``levels`` intermediates, each saying where the one above is."""
    authorities = [ROOT]
    net: Net = {}
    extra: tuple = ()
    for number in range(levels):
        authority = Authority(f"Level {number}", authorities[-1], extra=extra)
        authorities.append(authority)
        url = f"{ABOVE}{number}"
        net[url] = functools.partial(der, authority.certificate)
        pointer, _ = pointing(ROOT, "x", ocsp_urls=(), issuer_urls=(url,))
        extra = ((pointer.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value, False),)
    certificate, _ = authorities[-1].issue("a.test", extra=extra)
    return certificate, net, authorities


def issuers(place: Bench, certificate: x509.Certificate) -> tuple[bytes, ...]:
    message = revocationfetcher.encode_issuers_question(5, der(certificate))
    place.fetcher.ask(message, lambda data: place.answers.append(decode_answer(data)), time.monotonic())
    found = place.settle()[0]
    place.answers.clear()
    assert isinstance(found, tuple)
    return found


@pytest.mark.parametrize(("levels", "found"), [(1, 1), (2, 2), (3, 3), (4, 3)])
def test_issuers_are_climbed_to(bench, levels: int, found: int) -> None:
    certificate, net, authorities = chain_of(levels)
    place = bench(net)
    wanted = tuple(der(one.certificate) for one in reversed(authorities[1:]))[:found]
    assert issuers(place, certificate) == wanted
    assert issuers(place, certificate) == wanted
    assert len(place.fetched) == found, "asked once"


@pytest.mark.parametrize("form", ["PEM", "PKCS #7", "bundle"])
def test_forms_of_issuers(bench, form: str) -> None:
    certificate, _, authorities = chain_of(1)
    other, ours = Authority("Other").certificate, authorities[1].certificate
    pem, der_form = serialization.Encoding.PEM, serialization.Encoding.DER
    data = {
        "PEM": ours.public_bytes(pem),
        "PKCS #7": pkcs7.serialize_certificates([other, ours], der_form),
        "bundle": other.public_bytes(pem) + ours.public_bytes(pem),
    }[form]
    assert issuers(bench({ABOVE + "0": lambda: data}), certificate) == (der(ours),)


@pytest.mark.parametrize(
    "answer",
    [
        failing("forbidden_address"),
        lambda: b"",
        lambda: b"<html>",
        lambda: der(ROOT.certificate),
        lambda: der(Authority("Level 0").certificate),
    ],
)
def test_issuers_that_are_none(bench, answer: Callable[[], bytes]) -> None:
    certificate, _, _ = chain_of(1)
    place = bench({ABOVE + "0": answer})
    assert issuers(place, certificate) == ()
    assert issuers(place, certificate) == ()
    assert len(place.fetched) == 1


def test_issuers_take_no_room_from_revocation(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody can make a certificate that points somewhere slow."""
    monkeypatch.setattr(revocationfetcher, "ISSUER_JOBS", 12)
    gate = threading.Event()

    def slow() -> bytes:
        gate.wait(60)
        return b""

    place = bench({ABOVE: slow, OCSP_URL: lambda: ocsp_response(ONLY_OCSP, ROOT)})
    stranger = Authority("Stranger")
    for number in range(13):
        certificate, _ = pointing(stranger, "a.test", ocsp_urls=(), issuer_urls=(ABOVE,))
        message = revocationfetcher.encode_issuers_question(number, der(certificate))
        place.fetcher.ask(message, lambda data: place.answers.append(decode_answer(data)), time.monotonic())
    assert place.answers == [(12, ())], "one too many"
    place.ask(ONLY_OCSP, 99)
    assert place.settle(2)[1].status is Revocation.GOOD
    gate.set()
    place.settle(14)
    assert place.fetcher._climbing == 0


def test_a_loop_of_issuers_ends(bench) -> None:
    """Two authorities that certify each other, each saying the other is above it."""
    pointers = []
    for number in range(2):
        pointer, _ = pointing(ROOT, "x", ocsp_urls=(), issuer_urls=(f"{ABOVE}{number}",))
        found = pointer.extensions.get_extension_for_class(x509.AuthorityInformationAccess)
        pointers.append(((found.value, False),))
    one, two = Authority("One"), Authority("Two")
    above_one = two.sign(subject=one.name, key=one.key, ca=True, eku=None, extra=pointers[1])
    above_two = one.sign(subject=two.name, key=two.key, ca=True, eku=None, extra=pointers[0])
    place = bench({ABOVE + "0": lambda: der(above_one), ABOVE + "1": lambda: der(above_two)})
    certificate, _ = one.issue("a.test", extra=pointers[0])
    assert len(issuers(place, certificate)) == revocationfetcher.ISSUER_NESTING
    assert len(place.fetched) == revocationfetcher.ISSUER_NESTING


# -- what is kept ----------------------------------------------------------------------------------------------------


def test_answers_outlive_the_process(bench, tmp_path: Path) -> None:
    first = bench({OCSP_URL: lambda: ocsp_response(ONLY_OCSP, ROOT, REVOKED), CRL_URL: lambda: crl(ROOT)}, tmp_path)
    assert first.find(ONLY_OCSP).status is Revocation.REVOKED
    assert first.find(ONLY_CRL).status is Revocation.GOOD
    files = sorted(path.suffix for path in tmp_path.iterdir())
    assert files == [".crl", ".ocsp"]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in tmp_path.iterdir())
    second = bench({}, tmp_path)
    assert second.find(ONLY_OCSP).status is Revocation.REVOKED
    assert second.find(ONLY_CRL).status is Revocation.GOOD
    assert second.fetched == []


def test_kept_answers_grow_old(bench, tmp_path: Path) -> None:
    """After a day they are asked for again, and serve once more when nobody answers."""
    net: Net = {
        OCSP_URL: lambda: ocsp_response(ONLY_OCSP, ROOT, next_update=9 * DAY),
        CRL_URL: lambda: crl(ROOT, next_update=9 * DAY),
    }
    first = bench(net, tmp_path)
    assert (first.find(ONLY_OCSP).status, first.find(ONLY_CRL).status) == (Revocation.GOOD, Revocation.GOOD)
    second = bench({OCSP_URL: failing("unreachable"), CRL_URL: failing("unreachable")}, tmp_path)
    second.at += 2 * DAY
    assert (second.find(ONLY_OCSP).status, second.find(ONLY_CRL).status) == (Revocation.GOOD, Revocation.GOOD)
    assert sorted(second.fetched) == [CRL_URL, OCSP_URL]
    third = bench({OCSP_URL: failing("unreachable"), CRL_URL: failing("unreachable")}, tmp_path)
    third.at += 10 * DAY
    assert (third.find(ONLY_OCSP).status, third.find(ONLY_CRL).status) == (Revocation.UNKNOWN, Revocation.UNKNOWN)


@pytest.mark.parametrize("damage", [b"", b"rubbish", None])
def test_damaged_files_are_ignored(bench, tmp_path: Path, damage: bytes | None) -> None:
    net: Net = {OCSP_URL: lambda: ocsp_response(ONLY_OCSP, ROOT), CRL_URL: lambda: crl(ROOT)}
    first = bench(net, tmp_path)
    first.find(ONLY_OCSP)
    first.find(ONLY_CRL)
    for path in tmp_path.iterdir():
        # Without damage of its own: what another authority of the same name would have said.
        forged = Authority("Lab Root")
        planted = crl(forged, ONLY_CRL) if path.suffix == ".crl" else ocsp_response(ONLY_OCSP, forged, REVOKED)
        path.write_bytes(planted if damage is None else damage)
    second = bench(net, tmp_path)
    assert (second.find(ONLY_OCSP).status, second.find(ONLY_CRL).status) == (Revocation.GOOD, Revocation.GOOD)
    assert len(second.fetched) == 2


def test_links_are_not_followed(bench, tmp_path: Path) -> None:
    net: Net = {OCSP_URL: lambda: ocsp_response(ONLY_OCSP, ROOT)}
    kept = tmp_path / "kept"
    kept.mkdir()
    bench(net, kept).find(ONLY_OCSP)
    (path,) = kept.iterdir()
    outside = tmp_path / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    second = bench(net, kept)
    second.find(ONLY_OCSP)
    assert second.fetched == [OCSP_URL]
    assert not path.is_symlink(), "replaced"


def test_the_folder_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "FILES", 3)
    monkeypatch.setattr(Store, "BYTES", 100)
    (tmp_path / "1-1.tmp").write_bytes(b"left over")
    folder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    store = Store(folder)
    for number in range(5):
        store.put(f"{number}.ocsp", bytes(10))
    assert sorted(os.listdir(tmp_path)) == ["2.ocsp", "3.ocsp", "4.ocsp"]
    store.put("big.crl", bytes(95))
    assert os.listdir(tmp_path) == ["big.crl"]
    store.put("bigger.crl", bytes(101))
    assert len(store) == 1
    (tmp_path / "more.ocsp").write_bytes(bytes(10))
    assert len(Store(folder)) == 1, "what is found is bounded too"
    os.close(folder)


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_cache(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    os.rmdir(tmp_path)
    store = Store(folder)
    store.put("a.ocsp", b"x")
    assert store.get("a.ocsp", 10) is None
    os.close(folder)
    assert Store(None).get("a", 1) is None


def test_folder_is_for_this_user_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "a" / "b"
    folder = revocationfetcher.open_folder(place, os.geteuid(), os.getegid())
    assert folder is not None
    assert place.stat().st_mode & 0o777 == 0o700
    os.close(folder)
    place.chmod(0o755)
    folder = revocationfetcher.open_folder(place, os.geteuid(), os.getegid())
    assert folder is not None
    assert place.stat().st_mode & 0o777 == 0o700
    os.close(folder)
    (tmp_path / "link").symlink_to(place)
    assert revocationfetcher.open_folder(tmp_path / "link", os.geteuid(), os.getegid()) is None
    assert "are not kept" in capsys.readouterr().err


def test_the_process(tmp_path: Path) -> None:
    """As it is executed: it says ok, asks over a real socket, keeps the answer, and ends with its leader."""
    import ipaddress
    import subprocess
    import sys

    from nfw.settings import pack, unpack
    from tests.unit.test_httpfetch import OK, Server, answering

    authority = Authority("Now")
    offset = (time.time() - NOW) / DAY
    server = Server(lambda sock, body: answering(OK + str(len(response)), response)(sock, body))
    certificate, _ = pointing(authority, "a.test", ocsp_urls=(server.url,), days=(offset - 1, offset + 60))
    response = ocsp_response(certificate, authority, REVOKED, at=time.time())
    leader, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    asking, side = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    folder = tmp_path / "answers"
    network = str(ipaddress.ip_network("127.0.0.0/8"))
    command = [sys.executable, "-m", "nfw.revocationfetcher", str(os.getpid()), str(folder), network]
    command += [str(control.fileno()), str(side.fileno())]
    with leader, asking:
        fetcher = subprocess.Popen(command, pass_fds=(control.fileno(), side.fileno()))
        control.close()
        side.close()
        leader.settimeout(20)
        asking.settimeout(30)
        assert leader.recv(1000) == b"ok"
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{fetcher.pid}/status").read_text().splitlines())
        assert (int(status["CapPrm"], 16), status["NoNewPrivs"]) == (0, "1")
        asking.send(encode_question(3, der(certificate), der(authority.certificate)))
        number, finding = decode_answer(asking.recv(1 << 16))
        assert (number, finding.status, finding.source) == (3, Revocation.REVOKED, server.url)
        leader.send(pack("stats", None))
        assert unpack(leader.recv(1 << 16)) == ("stats", {"counts": {"ocsp_revoked": 1}})
        assert len(list(folder.iterdir())) == 1
        leader.close()
        assert fetcher.wait(30) == 0
    server.close()


# -- the worker's side -----------------------------------------------------------------------------------------------

GOOD = Finding(Revocation.GOOD, "ocsp", "good", int(NOW), int(NOW) + 60, OCSP_URL)


@pytest.fixture
def desk() -> Iterator[tuple[socket.socket, RevocationDesk[str]]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.settimeout(30)
    with ours, theirs:
        yield theirs, RevocationDesk(ours)


def number_of(message: bytes) -> int:
    import msgpack

    return int(msgpack.unpackb(message)["id"])


QUESTION = Question(0, ONLY_OCSP, ROOT.certificate)


def test_one_question_for_all_who_wait(desk) -> None:
    fetcher, asking = desk
    assert asking.ask(QUESTION, "a", 0.0, NOW) is None
    assert asking.ask(QUESTION, "b", 0.015, NOW) is None
    fetcher.send(encode_answer(number_of(fetcher.recv(1 << 18)), GOOD))
    assert list(asking.answers(0.02)) == [("a", 0, GOOD), ("b", 0, GOOD)]
    assert asking.ask(QUESTION, "c", 0.0, NOW) == GOOD
    assert asking.ask(QUESTION, "d", 0.0, NOW + 61) is None, "it has ended"
    assert (asking.open_questions, len(asking)) == (1, 1)
    stats = asking.stats()
    assert (stats["hits"], stats["misses"]) == (1, 3)
    waited = dict(zip(stats["waits"]["bounds"], stats["waits"]["buckets"], strict=False))
    assert {bound: count for bound, count in waited.items() if count} == {0.01: 1, 0.025: 1}  # 5 ms and 20
    assert stats["waits"]["seconds"] == pytest.approx(0.025)


def test_issuers_are_asked_for_once(desk) -> None:
    fetcher, asking = desk
    assert asking.ask_issuers(ONLY_OCSP, "a", 0.0) is None
    assert asking.ask_issuers(ONLY_OCSP, "b", 0.0) is None
    fetcher.send(encode_answer(number_of(fetcher.recv(1 << 18)), (b"one", b"two")))
    assert list(asking.answers(0.02)) == [("a", 0, (b"one", b"two")), ("b", 0, (b"one", b"two"))]
    assert asking.ask_issuers(ONLY_OCSP, "c", 0.0) == (b"one", b"two")
    asking.ask_issuers(ONLY_CRL, "d", 0.0)
    fetcher.send(encode_answer(number_of(fetcher.recv(1 << 18)), ()))
    assert list(asking.answers(0.02)) == [("d", 0, ())]
    assert asking.ask_issuers(ONLY_CRL, "e", 0.0) is None, "none is not remembered"


def test_unknown_is_not_remembered(desk) -> None:
    fetcher, asking = desk
    asking.ask(QUESTION, "a", 0.0, NOW)
    unknown = Finding(Revocation.UNKNOWN, "none", "timeout")
    fetcher.send(encode_answer(number_of(fetcher.recv(1 << 18)), unknown))
    assert list(asking.answers(0.02)) == [("a", 0, unknown)]
    assert asking.ask(QUESTION, "b", 0.0, NOW) is None


def test_lost_questions_are_put_again_while_somebody_waits(desk) -> None:
    fetcher, asking = desk
    asking.ask(QUESTION, "a", 0.0, NOW)
    first = fetcher.recv(1 << 18)
    asking.ask_again(0.5, lambda _: True)
    asking.ask_again(1.5, lambda _: True)
    assert fetcher.recv(1 << 18) == first
    asking.ask_again(3.0, lambda _: False)
    assert asking.open_questions == 0


def test_answers_that_are_none_are_ignored(desk) -> None:
    fetcher, asking = desk
    asking.ask(QUESTION, "a", 0.0, NOW)
    for data in (b"\xc1", b"\x80", encode_answer(7, GOOD), b"\x01"):
        fetcher.send(data)
    assert list(asking.answers(0.02)) == []
    fetcher.recv(1 << 18)
    fetcher.close()
    with pytest.raises(EOFError):
        list(asking.answers(0.02))


def test_questions_are_bounded(desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from nfw import revocationdesk

    monkeypatch.setattr(revocationdesk, "MAX_QUESTIONS", 2)
    _, asking = desk
    for certificate in (ONLY_OCSP, ONLY_CRL, BOTH):
        asking.ask(Question(0, certificate, ROOT.certificate), "a", 0.0, NOW)
    assert asking.open_questions == 2


def test_answers_cross_the_socket_unchanged() -> None:
    assert decode_answer(encode_answer(5, GOOD)) == (5, GOOD)
    assert (
        revocation.Finding(Revocation.GOOD, "a", "b")
        == decode_answer(encode_answer(1, Finding(Revocation.GOOD, "a", "b")))[1]
    )
