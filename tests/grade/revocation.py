"""Whether a certificate has been revoked, and who may say so."""

from __future__ import annotations

import datetime
import gzip
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.grade import pki
from tests.grade.bench import (
    ADDRESS,
    HOST,
    OK,
    REQUEST,
    Bench,
    Probe,
    ServerSide,
    answer,
    check,
    run_probe,
    run_probes,
    server_context,
    with_socket,
)
from tests.grade.case import case
from tests.grade.certificates import TLS12, middle, redirect
from tests.grade.pki import DAY, EcKey, Issued, eku, leaf
from tests.grade.real import nginx

REVOKED, UNKNOWN, MUST_STAPLE = ("REVOKED",), ("UNKNOWN",), ("MUST_STAPLE",)
LONG = {"end": 0.0}
GOOD, BAD, NOBODY = ocsp.OCSPCertStatus.GOOD, ocsp.OCSPCertStatus.REVOKED, ocsp.OCSPCertStatus.UNKNOWN
HOUR = 3600.0


def moment(unix: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(unix), datetime.UTC)


def lasting(by: Issued, host: str = HOST, **how: Any) -> Issued:
    """A leaf of sixty days, which somebody has to vouch for."""
    return leaf(by, host, end=time.time() + 60 * DAY, **how)


def crl(
    by: Issued,
    *revoked: Issued,
    this: float = -HOUR,
    following: float = DAY,
    number: bool = True,
    key: EcKey | None = None,
    subject: x509.Name | None = None,
    extra: tuple[tuple[x509.ExtensionType, bool], ...] = (),
    serials: tuple[int, ...] = (),
) -> bytes:
    """A CRL of ``by``, DER. Times in seconds from now."""
    now = time.time()
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(subject or by.parsed.subject)
        .last_update(moment(now + this))
        .next_update(moment(now + following))
    )
    for serial in (*(one.serial for one in revoked), *serials):
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(moment(now - 2 * HOUR))
        builder = builder.add_revoked_certificate(entry.build())
    if number:
        builder = builder.add_extension(x509.CRLNumber(7), critical=False)
    for extension, critical in extra:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign((key or by.key).key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def response(
    about: Issued,
    by: Issued | None = None,
    status: ocsp.OCSPCertStatus = GOOD,
    *,
    this: float = -HOUR,
    following: float | None = DAY,
    signer: Issued | None = None,
    include: bool = True,
    by_name: bool = False,
    nonce: bytes | None = None,
) -> bytes:
    """An OCSP response, DER. ``by`` is who has issued ``about``, ``signer`` who signs for it."""
    by = by or about.issuer
    assert by is not None
    now = time.time()
    revoked = status is BAD
    builder = (
        ocsp.OCSPResponseBuilder()
        .add_response(
            cert=about.parsed,
            issuer=by.parsed,
            algorithm=hashes.SHA1(),
            cert_status=status,
            this_update=moment(now + this),
            next_update=None if following is None else moment(now + following),
            revocation_time=moment(now - 2 * HOUR) if revoked else None,
            revocation_reason=None,
        )
        .responder_id(
            ocsp.OCSPResponderEncoding.NAME if by_name else ocsp.OCSPResponderEncoding.HASH, (signer or by).parsed
        )
    )
    if signer is not None and include:
        builder = builder.certificates([signer.parsed])
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    made = builder.sign((signer or by).key.key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.DER)


_serial = iter(range(10**6))


def asked(
    bench: Bench,
    label: str,
    say: Callable[[Issued], Any],
    expected: Any,
    *,
    by: Issued | None = None,
    list_says: Callable[[Issued], Any] | None = None,
    staple: Callable[[Issued], bytes] | None = None,
    reason: str = "",
    method: str = "",
    **how: Any,
) -> Probe:
    """A server whose leaf points to a responder that answers what ``say`` makes of the leaf (bytes or a page), and to a
    list, if ``list_says`` makes one."""
    by = by or bench.trust.root
    number = next(_serial)
    extra = [pki.access(ocsp=[bench.web.url(f"ocsp-{number}")])]
    if list_says is not None:
        extra.append(pki.crl_points(bench.web.url(f"crl-{number}")))
    one = lasting(by, extra=extra)
    bench.web.put(f"ocsp-{number}", _page(say(one)))
    if list_says is not None:
        bench.web.put(f"crl-{number}", _page(list_says(one)))
    context = nginx(one, staple=staple(one) if staple is not None else b"")
    blocked = expected != OK and expected != MUST_STAPLE
    return Probe(label, context, expected, reason=reason, method=method, after=blocked, page=f"ocsp-{number}", **how)


def was_resumed(side: ServerSide) -> bool:
    """Whether the handshake used an earlier session; pyOpenSSL has no call for it."""
    from OpenSSL._util import lib

    return side.tls is not None and bool(lib.SSL_session_reused(side.tls._ssl))


def _page(said: Any) -> Any:
    return (lambda _: said) if isinstance(said, bytes) else said


def listed(
    bench: Bench, label: str, make: Callable[[Issued], Any], expected: Any, *, by: Issued | None = None, **how: Any
) -> Probe:
    """A server whose leaf points to a CRL alone."""
    number = next(_serial)
    one = lasting(by or bench.trust.root, extra=[pki.crl_points(bench.web.url(f"list-{number}"))])
    bench.web.put(f"list-{number}", _page(make(one)))
    return Probe(label, nginx(one), expected, after=expected != OK, page=f"list-{number}", **how)


def together(bench: Bench, found: list[Probe]) -> str:
    """Probes that wait, at the same time."""
    results: list[str] = []
    threads = [threading.Thread(target=lambda p=probe: results.append(run_probe(bench, p))) for probe in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wrong = [one for one in results if one]
    check(not wrong, "; ".join(wrong))
    blocked = sum(probe.expected != OK for probe in found)
    return ", ".join(
        [*([f"{blocked} blocked"] if blocked else []), *([f"{len(found) - blocked} served"] * (blocked < len(found)))]
    )


@case("R01", "OCSP says good", "served, asked once and remembered")
def _(bench: Bench) -> str:
    probe = asked(bench, "good", response, OK, method="ocsp")
    seen = run_probes(bench, [probe])
    check(bench.web.asked(probe.page) == 1, f"asked {bench.web.asked(probe.page)} times")
    return f"{seen}; asked once for two clients"


def revoked(one: Issued) -> bytes:
    return response(one, None, BAD)


@case("R02", "OCSP says revoked", "REVOKED, logged as AWS does")
def _(bench: Bench) -> str:
    def logged(record: dict[str, Any], _seen: Any) -> str:
        found = record["revocation_check"]
        missing = {"leaf_cert_fpr", "status", "action"} - set(found)
        return f"{missing} missing" if missing else "" if found["action"] == "REJECT" else f"action {found['action']}"

    return run_probes(
        bench, [asked(bench, "revoked", lambda one: response(one, None, BAD), REVOKED, method="ocsp", extra=logged)]
    )


@case("R03", "a staple says revoked while the responder is down", "REVOKED, nobody asked")
def _(bench: Bench) -> str:
    probe = asked(
        bench, "staple", lambda _: dead, REVOKED, staple=lambda one: response(one, None, BAD), method="staple"
    )
    seen = run_probes(bench, [probe])
    check(bench.web.asked(probe.page) == 0, "the responder was asked")
    return f"{seen}, nobody asked"


@with_socket
def dead(side: ServerSide) -> None:
    side.reset()


@case("R04", "a good staple, but the responder or the list says revoked since", "REVOKED: what is fresher counts")
def _(bench: Bench) -> str:
    def old(one: Issued) -> bytes:
        return response(one, this=-20 * HOUR)

    return run_probes(
        bench,
        [
            asked(bench, "responder", lambda one: response(one, None, BAD), REVOKED, staple=old, method="ocsp"),
            asked(bench, "list", lambda _: dead, REVOKED, staple=old, list_says=lambda one: crl(bench.trust.root, one)),
        ],
    )


@case("R05", "on the CRL, and the certificate names no responder", "REVOKED by the CRL")
def _(bench: Bench) -> str:
    root = bench.trust.root
    return run_probes(
        bench,
        [
            listed(bench, "revoked", lambda one: crl(root, one), REVOKED, method="crl"),
            listed(bench, "not on it", lambda _: crl(root), OK, method="crl"),
        ],
    )


@case("R06", "intermediate revoked", "REVOKED, with its depth")
def _(bench: Bench) -> str:
    root, number = bench.trust.root, next(_serial)
    end, web = time.time() + 60 * DAY, bench.web
    by_crl = middle(root, "Listed", end=end, extra=[pki.crl_points(web.url(f"mid-{number}"))])
    bench.web.put(f"mid-{number}", crl(root, by_crl))
    by_ocsp = middle(
        root, "Asked", end=time.time() + 60 * DAY, extra=[pki.access(ocsp=[bench.web.url(f"mido-{number}")])]
    )
    bench.web.put(f"mido-{number}", response(by_ocsp, root, BAD))

    def depth(record: dict[str, Any], _seen: Any) -> str:
        return "" if record["revocation_check"]["depth"] == 1 else f"{record['revocation_check']}"

    return run_probes(
        bench,
        [
            Probe("by CRL", nginx(leaf(by_crl, HOST)), REVOKED, after=True, extra=depth),
            Probe("by OCSP", nginx(leaf(by_ocsp, HOST)), REVOKED, after=True, extra=depth),
        ],
    )


def must(
    bench: Bench,
    label: str,
    expected: Any,
    staple: Callable[[Issued], bytes] | None = None,
    make: Callable[..., Any] = nginx,
    **how: Any,
) -> Probe:
    number = next(_serial)
    one = lasting(bench.trust.root, extra=[pki.access(ocsp=[bench.web.url(f"must-{number}")]), pki.MUST_STAPLE])
    bench.web.put(f"must-{number}", response(one))
    return Probe(label, make(one, staple=staple(one) if staple else b"", **how), expected)


@case("R07", "must-staple without a good staple", "MUST_STAPLE before the client hears a byte")
def _(bench: Bench) -> str:
    def stale(one: Issued) -> bytes:
        return response(one, this=-9 * DAY, following=-DAY)

    return run_probes(
        bench,
        [
            must(bench, "none", MUST_STAPLE),
            must(bench, "stale", MUST_STAPLE, stale),
            must(bench, "noise", MUST_STAPLE, lambda _: b"noise", server_context),  # nginx takes no such staple
            must(bench, "none, 1.2", MUST_STAPLE, protocols="TLSv1.2"),
            must(bench, "good", OK, response),
        ],
    )


@case("R08", "must-staple and a server that would resume", "served every time, never resumed")
def _(bench: Bench) -> str:
    for versions in (TLS12, None):
        number = next(_serial)
        one = lasting(bench.trust.root, extra=[pki.access(ocsp=[bench.web.url(f"r08-{number}")]), pki.MUST_STAPLE])
        bench.web.put(f"r08-{number}", response(one))
        reused: list[bool] = []

        def handler(side: ServerSide) -> None:
            reused.append(was_resumed(side))  # noqa: B023
            side.read_until(b"\r\n\r\n")
            side.write(b"GRADE")

        how: dict[str, Any] = {"versions": versions} if versions else {}
        context = server_context(one, staple=response(one), **how)
        context.set_session_id(b"grade")
        with bench.serving(context=context, handler=handler) as server:
            bench.check_resumes(server.port, b"GRADE")
            reused.clear()
            for strict in (True, True, False, False):
                seen = bench.visit(server.port, strict=strict)
                check(seen.body == b"GRADE", f"not served: {seen}")
            check(not any(reused), "a session was resumed")
    return "served 8 times, 0 resumed"


@case("R09", "nobody to ask, but it lives for seven days at most", "served, NOT_REQUIRED")
def _(bench: Bench) -> str:
    def required(record: dict[str, Any], _seen: Any) -> str:
        status = record["revocation_check"]["status"]
        return "" if status == "NOT_REQUIRED" else f"status {status}"

    one = leaf(bench.trust.root, HOST, start=time.time() - 60, end=time.time() + 6.9 * DAY)
    return run_probes(bench, [Probe("short-lived", nginx(one), extra=required)])


@case("R10", "nobody to ask, and it lives long", "UNKNOWN")
def _(bench: Bench) -> str:
    one = lasting(bench.trust.root)
    return run_probes(bench, [Probe("silent", nginx(one), UNKNOWN, after=True)])


@with_socket
def black_hole(side: ServerSide) -> None:
    time.sleep(6)


@case("R11", "responder down: refused, no such name, silent", "the CRL where there is one, else UNKNOWN within 2 s")
def _(bench: Bench) -> str:
    root = bench.trust.root
    found = []
    for label, url in {
        "refused": f"http://{ADDRESS}:2599/",
        "no such name": "http://nowhere.grade.test:2560/",
        "no route": "http://203.0.113.200:2560/",
    }.items():
        number = next(_serial)
        alone = lasting(root, extra=[pki.access(ocsp=[url])])
        both = lasting(root, extra=[pki.access(ocsp=[url]), pki.crl_points(bench.web.url(f"r11-{number}"))])
        bench.web.put(f"r11-{number}", crl(root, both))
        found.append(Probe(label, nginx(alone), UNKNOWN, after=True, extra=within(4.0)))
        found.append(Probe(f"{label}, CRL", nginx(both), REVOKED, after=True, method="crl", extra=within(4.0)))
    found.append(asked(bench, "silent", lambda _: black_hole, UNKNOWN, extra=within(4.0)))
    found.append(
        asked(
            bench,
            "silent, CRL",
            lambda _: black_hole,
            OK,
            list_says=lambda _: crl(root),
            method="crl",
            extra=within(4.0),
        )
    )
    return together(bench, found)


def within(seconds: float) -> Any:
    """The budget of 2 s, and what a busy machine adds."""
    return lambda _record, seen: "" if seen.seconds < seconds else f"took {seen.seconds:.1f} s"


@with_socket
def drip(side: ServerSide) -> None:
    side.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
    for _ in range(8):
        side.write(b"0")
        time.sleep(1)


@with_socket
def endless_head(side: ServerSide) -> None:
    side.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(80):
        side.write(f"X-{number}: y\r\n".encode())
        time.sleep(0.1)


@with_socket
def late(side: ServerSide) -> None:
    side.read_until(b"\r\n\r\n")
    time.sleep(8)
    side.write(answer(b"too late"))


@case(
    "R12",
    "responder slow: a byte a second, endless headers, a late first byte",
    "UNKNOWN within 2 s, others not delayed",
)
def _(bench: Bench) -> str:
    pages = {"a byte a second": drip, "endless headers": endless_head, "late": late}
    found = [asked(bench, label, lambda _, p=page: p, UNKNOWN, extra=within(4.0)) for label, page in pages.items()]
    found.append(asked(bench, "another", response, OK, extra=within(2.0)))
    return together(bench, found)


@case("R13", "responder answers nonsense", "as if it were down")
def _(bench: Bench) -> str:
    here = bench.web.put("r13-loop", lambda _: redirect(bench.web.url("r13-loop")))
    pages: dict[str, Any] = {
        "500": lambda _: answer(b"", "500 Internal Server Error"),
        "404": lambda _: answer(b"", "404 Not Found"),
        "HTML": lambda _: answer(b"<html>no</html>", kind="text/html"),
        "redirects for ever": lambda _: redirect(here),
        "huge": lambda _: answer(bytes(1 << 20)),
        "empty": lambda _: answer(b""),
        "no HTTP": with_socket(lambda side: side.write(b"\0" * 100)),
    }
    found = [asked(bench, label, lambda _, p=page: p, UNKNOWN) for label, page in pages.items()]
    number = next(_serial)
    one = lasting(bench.trust.root, extra=[pki.access(ocsp=[bench.web.url(f"r13-{number}")])])
    target = bench.web.put(f"r13-there-{number}", response(one))
    bench.web.put(f"r13-{number}", lambda _: redirect(target))
    found.append(Probe("one redirect", nginx(one)))
    return together(bench, found)


@case("R15", "responder says unknown", "UNKNOWN")
def _(bench: Bench) -> str:
    root = bench.trust.root

    def nobody(one: Issued) -> bytes:
        return response(one, None, NOBODY)

    return run_probes(
        bench,
        [
            asked(bench, "unknown", lambda one: response(one, None, NOBODY), UNKNOWN),
            asked(
                bench,
                "unknown, whatever a list says",
                lambda one: response(one, None, NOBODY),
                UNKNOWN,
                list_says=lambda _: crl(root),
            ),
        ],
    )


@case("R16", "response with a wrong signature", "UNKNOWN")
def _(bench: Bench) -> str:
    twin = pki.authority("Grade Root")

    def forged(one: Issued) -> bytes:
        return response(one, signer=twin, include=False, by_name=True)

    return run_probes(
        bench,
        [
            asked(bench, "another key", forged, UNKNOWN, reason="signature"),
            asked(bench, "flipped", lambda one: pki.flip(response(one), -3), UNKNOWN),
        ],
    )


def delegate(by: Issued, *, purposes: Any = None, nocheck: bool = False, **how: Any) -> Issued:
    purposes = eku(ExtendedKeyUsageOID.OCSP_SIGNING) if purposes is None else purposes
    extra = [("1.3.6.1.5.5.7.48.1.5", False, pki.NULL)] if nocheck else []
    return leaf(by, subject=pki.name("Delegate"), purposes=purposes, extra=extra, **how)


@case("R17", "response signed by who may not", "UNKNOWN")
def _(bench: Bench) -> str:
    root, now = bench.trust.root, time.time()
    between = middle(root, "Between")

    def by(signer: Issued) -> Callable[[Issued], bytes]:
        return lambda one: response(one, signer=signer)

    return run_probes(
        bench,
        [
            asked(bench, "unrelated CA", by(bench.trust.unknown), UNKNOWN),
            asked(bench, "a leaf of the issuer", by(leaf(root, "x.test")), UNKNOWN),
            asked(bench, "delegate without OCSPSigning", by(delegate(root, purposes=eku())), UNKNOWN),
            asked(bench, "delegate of an intermediate", by(delegate(between)), UNKNOWN),
            asked(bench, "delegate expired", by(delegate(root, start=now - 4 * DAY, end=now - DAY)), UNKNOWN),
            asked(bench, "delegate of a stranger", by(delegate(bench.trust.unknown)), UNKNOWN),
        ],
    )


@case("R18", "response signed by a delegate", "served")
def _(bench: Bench) -> str:
    one, other = delegate(bench.trust.root), delegate(bench.trust.root, nocheck=True)
    return run_probes(
        bench,
        [
            asked(bench, "plain", lambda about: response(about, signer=one), OK, method="ocsp"),
            asked(bench, "ocsp-nocheck", lambda about: response(about, signer=other), OK, method="ocsp"),
        ],
    )


@case("R19", "response about something else; several in one", "UNKNOWN; ours is found")
def _(bench: Bench) -> str:
    root = bench.trust.root
    twin = pki.authority("Grade Root")
    probe = asked(bench, "openssl, ours last", several(bench), OK, method="ocsp")
    return run_probes(
        bench,
        [
            asked(bench, "another serial", lambda _: response(lasting(root)), UNKNOWN),
            asked(bench, "another issuer of that name", lambda one: response(one, twin), UNKNOWN),
            asked(bench, "another issuer, signed by ours", lambda one: response(one, twin, signer=root), UNKNOWN),
            probe,
        ],
    )


def several(bench: Bench) -> Callable[[Issued], bytes]:
    """`openssl ocsp` answers one request for three certificates; the library cannot make such a response."""

    def make(one: Issued) -> bytes:
        folder = bench.firewall.dir / f"several-{one.serial:x}"
        folder.mkdir()
        root = bench.trust.root
        (folder / "root.pem").write_bytes(pki.pem(root.der))
        (folder / "root.key").write_bytes(root.key.pem)
        others = [lasting(root), lasting(root)]
        command = ["openssl", "ocsp", "-no_nonce", "-issuer", "root.pem"]
        index = ""
        for number, other in enumerate((*others, one)):
            (folder / f"{number}.pem").write_bytes(pki.pem(other.der))
            command += ["-cert", f"{number}.pem"]
            serial = f"{other.serial:X}"
            serial = serial.zfill(len(serial) + len(serial) % 2)
            end = time.strftime("%y%m%d%H%M%SZ", time.gmtime(time.time() + DAY))
            index += f"V\t{end}\t\t{serial}\tunknown\t/CN=x{number}\n"
        (folder / "index.txt").write_text(index)
        run = {"cwd": folder, "check": True, "capture_output": True}
        subprocess.run([*command, "-reqout", "request.der"], **run)
        command = [
            "openssl",
            "ocsp",
            "-index",
            "index.txt",
            "-CA",
            "root.pem",
            "-rsigner",
            "root.pem",
            "-rkey",
            "root.key",
        ]
        subprocess.run([*command, "-reqin", "request.der", "-respout", "response.der", "-ndays", "1"], **run)
        return (folder / "response.der").read_bytes()

    return make


@case("R20", "response stale, without an end, from the future", "UNKNOWN; without an end good for 24 hours")
def _(bench: Bench) -> str:
    def at(this: float, following: float | None) -> Callable[[Issued], bytes]:
        return lambda one: response(one, this=this, following=following)

    return run_probes(
        bench,
        [
            asked(bench, "nextUpdate passed", at(-DAY, -60), UNKNOWN),
            asked(bench, "no nextUpdate, 2 h old", at(-2 * HOUR, None), OK),
            asked(bench, "no nextUpdate, 2 d old", at(-2 * DAY, None), UNKNOWN),
            asked(bench, "thisUpdate in 10 minutes", at(600, DAY), UNKNOWN),
            asked(bench, "thisUpdate in 2 minutes", at(120, DAY), OK),
        ],
    )


@case("R21", "nonces", "UNKNOWN where it is not the one asked with; served without one")
def _(bench: Bench) -> str:
    probe = asked(bench, "none", response, OK)
    seen = run_probes(
        bench, [probe, asked(bench, "one nobody sent", lambda one: response(one, nonce=os.urandom(16)), UNKNOWN)]
    )
    request = ocsp.load_der_ocsp_request(bench.web.bodies[f"/{probe.page}"])
    check(not list(request.extensions), "the request has extensions, though it was to be answered by a cache")
    return f"{seen}; requests carry none"


@case(
    "R22",
    "an old good response replayed after the revocation",
    "served until it ends, remembered no longer than 24 hours",
)
def _(bench: Bench) -> str:
    old: dict[str, bytes] = {}

    def say(one: Issued) -> Any:
        old["good"] = response(one, this=-20 * HOUR, following=6 * DAY)
        old["fresh"] = response(one, None, BAD)
        return lambda _: old["good"]

    probe = asked(bench, "replayed", say, OK, method="ocsp")
    expired = asked(bench, "beyond its end", lambda one: response(one, this=-8 * DAY, following=-60), UNKNOWN)
    seen = run_probes(bench, [probe, expired])
    from engines.tls.revocation import MAX_AGE

    check(MAX_AGE <= DAY, f"remembered for {MAX_AGE} s")
    return f"{seen}; remembered for {MAX_AGE // 3600} hours at most"


@case("R24", "CRLs that must not count", "UNKNOWN")
def _(bench: Bench) -> str:
    root = bench.trust.root
    mute = middle(root, "Mute", usage=("key_cert_sign", "digital_signature"))

    def scope(**how: Any) -> Any:
        fields: dict[str, Any] = {
            "full_name": None,
            "relative_name": None,
            "only_contains_user_certs": False,
            "only_contains_ca_certs": False,
            "only_some_reasons": None,
            "indirect_crl": False,
            "only_contains_attribute_certs": False,
        }
        return x509.IssuingDistributionPoint(**(fields | how))

    def extended(extension: Any, critical: bool = True) -> Callable[[Issued], bytes]:
        return lambda _: crl(root, extra=((extension, critical),))

    elsewhere = [x509.UniformResourceIdentifier("http://other.test/crl")]
    strange = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.3"), b"\x05\0")
    some = frozenset([x509.ReasonFlags.key_compromise])
    return run_probes(
        bench,
        [
            listed(bench, "expired", lambda _: crl(root, this=-2 * DAY, following=-60), UNKNOWN),
            listed(bench, "from the future", lambda _: crl(root, this=HOUR), UNKNOWN),
            listed(bench, "bad signature", lambda _: crl(root, key=EcKey()), UNKNOWN),
            listed(bench, "another issuer", lambda _: crl(bench.trust.unknown), UNKNOWN),
            listed(bench, "issuer without cRLSign", lambda _: crl(mute), UNKNOWN, by=mute),
            listed(bench, "no cRLNumber", lambda _: crl(root, number=False), UNKNOWN),
            listed(bench, "critical extension", extended(strange), UNKNOWN),
            listed(bench, "authorities only", extended(scope(only_contains_ca_certs=True)), UNKNOWN),
            listed(bench, "users only, fits", extended(scope(only_contains_user_certs=True)), OK),
            listed(bench, "attributes only", extended(scope(only_contains_attribute_certs=True)), UNKNOWN),
            listed(bench, "another distribution point", extended(scope(full_name=elsewhere)), UNKNOWN),
            listed(bench, "some reasons", extended(scope(only_some_reasons=some)), UNKNOWN),
            listed(bench, "indirect", extended(scope(indirect_crl=True)), UNKNOWN),
            listed(bench, "delta", extended(x509.DeltaCRLIndicator(1)), UNKNOWN),
            listed(bench, "noise", lambda _: os.urandom(500), UNKNOWN),
        ],
    )


@case(
    "R25",
    "the serial is on the list of another authority of the same name",
    "not revoked by it; UNKNOWN without its own",
)
def _(bench: Bench) -> str:
    twin = pki.authority("Grade Root")
    root = bench.trust.root
    number = next(_serial)
    urls = [bench.web.url(f"r25-a-{number}"), bench.web.url(f"r25-b-{number}")]
    one = lasting(root, extra=[pki.crl_points(*urls)])
    bench.web.put(f"r25-a-{number}", crl(twin, one))
    bench.web.put(f"r25-b-{number}", crl(root))
    return run_probes(
        bench,
        [
            listed(bench, "the twin's alone", lambda one: crl(twin, one), UNKNOWN),
            Probe("the twin's and its own", nginx(one), method="crl"),
        ],
    )


@case(
    "R27", "a CRL of 400,000 entries", "one fetch for all, UNKNOWN until it is read, then an answer at once", alone=True
)
def _(bench: Bench) -> str:
    root, number = bench.trust.root, next(_serial)
    url = bench.web.url(f"r27-{number}")
    one, good = lasting(root, extra=[pki.crl_points(url)]), lasting(root, extra=[pki.crl_points(url)])
    data = big_crl(root, one)
    bench.web.put(f"r27-{number}", data)
    with bench.serving(context=nginx(one)) as first, bench.serving(context=nginx(good)) as second:
        bench.control(first.port)
        seen = [bench.visit(first.port), bench.visit(second.port)]
        deadline = time.monotonic() + 40
        while True:
            status = bench.verdict(seen[0], first.port)["nfw"]["status"]
            check(status in ("UNKNOWN", "REVOKED") and not seen[0].body, f"{status} {seen[0]}")
            if status == "REVOKED":
                break
            check(time.monotonic() < deadline, "never read")
            time.sleep(0.5)
            seen[0] = bench.visit(first.port)
        began = time.monotonic()
        last = bench.visit(second.port)
        check(b"GRADE" in last.body, f"the good one is not served: {last}")
        took = time.monotonic() - began
        careless = bench.visit(first.port, strict=False)
        check(not careless.body, f"the revoked one to a careless client: {careless}")
        check(took < 1.0, f"{took:.2f} s once it was read")
    check(bench.web.asked(f"r27-{number}") == 1, f"fetched {bench.web.asked(f'r27-{number}')} times")
    return f"{len(data) / 1e6:.1f} MB fetched once, then {took * 1000:.0f} ms"


def big_crl(by: Issued, revoked: Issued, entries: int = 400_000) -> bytes:
    """DER by hand: the library's builder takes minutes for as many."""
    when = pki.moment(time.time() - DAY)
    base = 1 << 118
    rows = bytearray()
    for number in range(entries):
        rows += b"\x30\x20\x02\x0f" + (base + number).to_bytes(15, "big") + when
    rows += pki.seq(pki.integer(revoked.serial), when)
    now = time.time()
    number = pki.tlv(0xA0, pki.seq(pki.seq(pki.oid("2.5.29.20"), pki.tlv(4, pki.integer(9)))))
    algorithm = by.key.algorithm("sha256")
    dates = pki.moment(now - HOUR) + pki.moment(now + DAY)
    tbs = pki.seq(pki.integer(1), algorithm, by.subject, dates, pki.seq(bytes(rows)), number)
    return pki.seq(tbs, algorithm, pki.bits(by.key.sign(tbs, "sha256")))


@case("R28", "a CRL beyond the cap, a gzip bomb, one without end", "UNKNOWN, memory flat", alone=True)
def _(bench: Bench) -> str:
    from tests.firewall import pids_named

    @with_socket
    def endless(side: ServerSide) -> None:
        side.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(3000):
            side.write(b"10000\r\n" + bytes(65536) + b"\r\n")

    @with_socket
    def huge(side: ServerSide) -> None:
        side.write(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n")
        for _ in range(100):
            side.write(bytes(1 << 20))

    bomb = gzip.compress(bytes(64 << 20))
    pages = {
        "chunks without end": endless,
        "too long": huge,
        "gzip bomb": lambda _: answer(bomb, extra="Content-Encoding: gzip\r\n"),
    }
    (fetcher,) = pids_named(bench.firewall.pid(), "nfw fetcher")

    def peak() -> int:
        status = Path(f"/proc/{fetcher}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) // 1024

    before = peak()
    found = [listed(bench, label, lambda _, p=page: p, UNKNOWN, seconds=15.0) for label, page in pages.items()]
    seen = together(bench, found)
    time.sleep(1)
    grown = peak() - before
    check(grown < 160, f"the fetcher grew by {grown} MB")
    return f"{seen}; the fetcher grew by {grown} MB at most"


@case("R29", "pointers that lead elsewhere", "UNKNOWN, nobody asked")
def _(bench: Bench) -> str:
    inner: list[str] = []
    ears = bench.ears(("router", "127.0.0.1", 80), ("client", "10.1.0.2", 80))
    with bench.serving(handler=lambda side: inner.append("asked")) as trap, ears as heard:
        one = lasting(bench.trust.root, extra=[pki.access(ocsp=[f"http://{ADDRESS}:{trap.port}/x"])])
        run_probes(bench, [Probe("where one may be asked", nginx(one), UNKNOWN, after=True)])
        check(bool(inner), "nobody was asked even where one may be")
        inner.clear()
        found = []
        for label, url in {
            "https": f"https://{ADDRESS}:{trap.port}/x",
            "ldap": "ldap://203.0.113.10/cn=x",
            "file": "file:///etc/passwd",
            "ftp": f"ftp://{ADDRESS}:{trap.port}/x",
            "loopback": "http://127.0.0.1/x",
            "loopback by name": "http://localhost/x",
            "private": "http://10.1.0.2/x",
            "metadata": "http://169.254.169.254/x",
            "mapped": "http://[::ffff:127.0.0.1]/x",
            "another port of a public address": "http://198.51.100.1:8080/x",
            "credentials": f"http://user:pass@{ADDRESS}:{trap.port}/x",
        }.items():
            one = lasting(bench.trust.root, extra=[pki.access(ocsp=[url])])
            other = lasting(bench.trust.root, extra=[pki.crl_points(url)])
            found += [
                Probe(f"OCSP {label}", nginx(one), UNKNOWN, after=True),
                Probe(f"CRL {label}", nginx(other), UNKNOWN, after=True),
            ]
        seen = run_probes(bench, found)
        check(not inner and not (places := heard()), f"somebody was asked: {inner or places}")
    return f"{seen}, nobody asked"


@case("R30", "many flows at once, one cold certificate", "one OCSP request and one CRL fetch", alone=True)
def _(bench: Bench) -> str:
    number, flows = next(_serial), bench.size(1000, 300)
    pointers = [pki.access(ocsp=[bench.web.url(f"r30-{number}")]), pki.crl_points(bench.web.url(f"r30-l-{number}"))]
    one = lasting(bench.trust.root, extra=pointers)

    @with_socket
    def slow_failure(side: ServerSide) -> None:
        time.sleep(0.7)
        side.write(answer(b"", "503 Service Unavailable"))

    bench.web.put(f"r30-{number}", slow_failure)
    bench.web.put(f"r30-l-{number}", crl(bench.trust.root))
    served: list[bool] = []
    with bench.serving(context=nginx(one)) as server:
        bench.control(server.port)
        context = bench.client_context(strict=True)

        def client() -> None:
            served.append(b"GRADE" in bench.visit(server.port, context=context, seconds=30).body)

        threads = [threading.Thread(target=client) for _ in range(flows)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    asked_ = bench.web.asked(f"r30-{number}"), bench.web.asked(f"r30-l-{number}")
    check(asked_ == (1, 1), f"{asked_[0]} OCSP requests, {asked_[1]} CRL fetches")
    check(sum(served) == flows, f"{sum(served)} of {flows} served")
    return f"{flows} flows served, 1 OCSP request, 1 CRL fetch"


@case(
    "R31",
    "the responder is away for less time than its last answer lasts",
    "nobody notices; lists are fetched before they end",
)
def _(bench: Bench) -> str:
    root, number = bench.trust.root, next(_serial)
    url = bench.web.url(f"r31-{number}")
    one, two = lasting(root, extra=[pki.crl_points(url)]), lasting(root, extra=[pki.crl_points(url)])
    # Nine tenths of its life are over: whoever uses it now should also fetch the next one.
    bench.web.put(f"r31-{number}", crl(root, this=-900.0, following=100.0))
    seen = run_probes(bench, [Probe("first", nginx(one), method="crl")])
    bench.web.put(f"r31-{number}", crl(root, this=-1.0, following=DAY))
    bench.visit_all(nginx(one))
    deadline = time.monotonic() + 5
    while bench.web.asked(f"r31-{number}") < 2:
        check(time.monotonic() < deadline, "not fetched again before its end")
        time.sleep(0.05)
    time.sleep(0.5)
    bench.web.put(f"r31-{number}", dead)
    check(run_probe(bench, Probe("away", nginx(two), method="crl")) == "", "an outage was noticed")
    return f"{seen}; fetched again before its end, outage not noticed"


def _matrix(bench: Bench, action: str) -> str:
    root = bench.trust.root
    found = [
        asked(bench, "revoked", lambda one: response(one, None, BAD), REVOKED if action != "pass" else OK),
        Probe("unknown", nginx(lasting(root)), UNKNOWN if action != "pass" else OK, after=action != "pass"),
    ]
    if action == "drop":
        found.append(Probe("expired", nginx(leaf(root, HOST, end=time.time() - 60)), ("EXPIRED",)))
        found.append(Probe("other name", nginx(leaf(root, "other.test")), ("NAME_MISMATCH",)))
    return run_probes(bench, found)


@case(
    "R32",
    "REVOKED and UNKNOWN under reject, drop and pass",
    "reset; close without a reset; the page; never a part of it",
    alone=True,
)
def _(bench: Bench) -> str:
    found = []
    for policy, action in (("main", "reject"), ("drop", "drop"), ("pass", "pass")):
        bench.use(policy)
        found.append(f"{action}: {_matrix(bench, action)}")
    return "; ".join(found)


@case("R34", "revoked while a flow is open", "asked again when the answer ends, the flow closed", policy="recheck")
def _(bench: Bench) -> str:
    number = next(_serial)
    one = lasting(bench.trust.root, extra=[pki.access(ocsp=[bench.web.url(f"r34-{number}")])])
    bench.web.put(f"r34-{number}", lambda _: response(one, following=4.0))

    def handler(side: ServerSide) -> None:
        while b"\r\n\r\n" in side.read_until(b"\r\n\r\n"):
            side.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nmore")
            side.got.clear()

    with bench.serving(context=server_context(one), handler=handler) as server:
        client, alone = bench.open(server.port), bench.open(server.port, direct=True)
        for one_of_them in (client, alone):
            one_of_them.send(REQUEST)
            check(one_of_them.receive(42).endswith(b"more"), "not served")
        bench.web.put(f"r34-{number}", lambda _: response(one, None, BAD))
        began = time.monotonic()
        end = client.read_end(15)
        took = time.monotonic() - began
        check(end == "reset", f"the flow ended with {end} after {took:.1f} s")
        record = bench.log.wait(client.port, server.port, "tls")
        check(record["nfw"]["status"] == "REVOKED", str(record["nfw"]))
        alone.send(REQUEST)
        check(alone.receive(42).endswith(b"more"), "the flow without nfw has ended, too")
        bench.directly("validating client", "served on")
        alone.close()
    return f"reset after {took:.1f} s, REVOKED"
