"""What is wrong with a server's certificate."""

from __future__ import annotations

import ipaddress
import os
import threading
import time
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL

from tests.grade import pki, tls12
from tests.grade.bench import (
    ADDRESS,
    ADDRESS6,
    HOST,
    OK,
    SPARE,
    Bench,
    CannotRunError,
    Probe,
    Seen,
    ServerSide,
    answer,
    check,
    path,
    run_probe,
    run_probes,
    with_socket,
)
from tests.grade.case import case, probes
from tests.grade.pki import DAY, Issued, authority, basic, dns, eku, ext, key_usage, leaf, name, rsa_key, san
from tests.grade.real import WWW, Nginx, nginx, s_server
from tests.grade.tls13 import Server13, page

EXPIRED, NOT_YET, UNTRUSTED = ("EXPIRED",), ("NOT_YET_VALID",), ("UNTRUSTED",)
NAME, INVALID, WEAK, PROTOCOL = ("NAME_MISMATCH",), ("INVALID",), ("WEAK",), ("PROTOCOL",)
TLS12 = (SSL.TLS1_2_VERSION, SSL.TLS1_2_VERSION)


def scripted(one: Issued | list[bytes], key: pki.Key | None = None) -> Any:
    """A server of TLS 1.2 that shows any bytes as its certificates; ``key`` is the one it proves to have."""
    if isinstance(one, Issued):
        return tls12.Server12(path(one), key or one.key).handler
    return tls12.Server12(one, key or pki.EcKey()).handler


def hear(side: ServerSide) -> None:
    """Read records to the end; application data is what matters."""
    kind, body = tls12.read_record(side.sock)
    while kind >= 0:
        if kind == tls12.DATA:
            side.got += body
        kind, body = tls12.read_record(side.sock)


def middle(by: Issued, common: str = "Middle", **how: Any) -> Issued:
    return authority(common, by, **how)


@probes("C01", "leaf expired", "EXPIRED")
def _(bench: Bench) -> list[Probe]:
    now = time.time()
    one = leaf(bench.trust.root, HOST, start=now - 4 * DAY, end=now - 60)
    return [Probe("expired", nginx(one), EXPIRED)]


@probes("C02", "intermediate expired; with and without another valid path", "EXPIRED; served with another path")
def _(bench: Bench) -> list[Probe]:
    now = time.time()
    dead = middle(bench.trust.root, start=now - 4 * DAY, end=now - DAY)
    alive = middle(bench.trust.root, key=dead.key)
    one = leaf(dead, HOST)
    return [
        Probe("expired intermediate", nginx(one), EXPIRED),
        Probe("C02b: valid one first", nginx([one.der, alive.der, dead.der], one.key)),
        Probe("C02b: expired one first", nginx([one.der, dead.der, alive.der], one.key)),
    ]


@probes("C03", "trust anchor expired", "EXPIRED, the reason names the anchor")
def _(bench: Bench) -> list[Probe]:
    return [
        Probe("anchor", nginx(leaf(bench.trust.expired, HOST)), EXPIRED, reason="Expired Root"),
        Probe("below", nginx(leaf(middle(bench.trust.expired), HOST)), EXPIRED, reason="Expired Root"),
    ]


@probes("C04", "not yet valid: leaf, intermediate, root; a few minutes early", "NOT_YET_VALID")
def _(bench: Bench) -> list[Probe]:
    root, later = bench.trust.root, time.time() + DAY
    return [
        Probe("leaf", nginx(leaf(root, HOST, start=later, end=later + DAY)), NOT_YET),
        Probe("intermediate", nginx(leaf(middle(root, start=later, end=later + DAY), HOST)), NOT_YET),
        Probe("root", nginx(leaf(bench.trust.future, HOST)), NOT_YET),
        Probe("four minutes early", nginx(leaf(root, HOST, start=time.time() + 240)), NOT_YET),
    ]


@case("C05", "valid chain, other name", "NAME_MISMATCH, nothing minted", alone=True)
def _(bench: Bench) -> str:
    other = leaf(bench.trust.root, "other.grade.test")
    before = bench.mints()
    found = [
        Probe("tls 1.3", nginx(other), NAME),
        Probe("chain of two", nginx(leaf(middle(bench.trust.root), "x.test")), NAME),
    ]
    seen = run_probes(bench, found)
    check(bench.mints() == before, f"{bench.mints() - before} leafs asked for")
    served = run_probes(bench, [Probe("by its own name", nginx(other), OK, "other.grade.test")])
    check(bench.mints() == before + 1, f"{bench.mints() - before} leafs asked for where one is needed")
    return f"{seen}, no leaf; by its own name {served}, one leaf"


@probes("C06", "an allowed SNI towards another's address", "UNTRUSTED / NAME_MISMATCH")
def _(bench: Bench) -> list[Probe]:
    key = pki.EcKey()
    self_made = leaf(Issued(b"", key, name("allowed.grade.test")), "allowed.grade.test", key=key)
    evil = leaf(bench.trust.root, "evil.grade.test")
    return [
        Probe("self-signed for it", nginx([self_made.der], key), UNTRUSTED, "allowed.grade.test", SPARE),
        Probe("evil's own", nginx(evil), NAME, "allowed.grade.test", SPARE),
    ]


@probes("C07", "self-signed leaf", "UNTRUSTED")
def _(_bench: Bench) -> list[Probe]:
    key = pki.EcKey()
    one = leaf(Issued(b"", key, name(HOST)), HOST, key=key)
    plain = authority(HOST, key=key, extensions=[dns(HOST)])
    return [
        Probe("with a profile", nginx([one.der], key), UNTRUSTED),
        Probe("bare", nginx([plain.der], key), UNTRUSTED),
    ]


@probes("C08", "untrusted root, sent along or not", "UNTRUSTED")
def _(bench: Bench) -> list[Probe]:
    one = leaf(bench.trust.unknown, HOST)
    return [
        Probe("sent", nginx([one.der, bench.trust.unknown.der], one.key), UNTRUSTED),
        Probe("not sent", nginx(one), UNTRUSTED),
    ]


@probes("C09", "a root of a trusted one's name and another key", "UNTRUSTED")
def _(bench: Bench) -> list[Probe]:
    """A leaf that lies about the key that signed it is one whose signature does not fit (C10): nobody could tell it
    from a forgery of what the trusted root has signed."""
    fake, root = authority("Grade Root"), bench.trust.root
    one = leaf(fake, HOST)
    bare = [basic(False), key_usage("digital_signature"), eku(), dns(HOST)]
    silent = leaf(fake, HOST, extensions=bare)
    lying = leaf(root, HOST, signer=fake.key)
    between = middle(fake, "Below the fake")
    return [
        Probe("no key identifiers, signed by the root", nginx(leaf(root, HOST, extensions=bare))),
        Probe("sent", nginx([one.der, fake.der], one.key), UNTRUSTED),
        Probe("not sent", nginx(one), UNTRUSTED),
        Probe("no key identifiers", nginx(silent), UNTRUSTED, reason="signature failure"),
        Probe("no key identifiers, sent", nginx([silent.der, fake.der], silent.key), UNTRUSTED),
        Probe("intermediate", nginx([(below := leaf(between, HOST)).der, between.der, fake.der], below.key), UNTRUSTED),
        Probe("the identifier of the trusted key", nginx(lying), INVALID, reason="signature failure"),
    ]


@probes("C10", "signature does not fit", "INVALID")
def _(bench: Bench) -> list[Probe]:
    root = bench.trust.root
    between = middle(root, signature=lambda one: pki.flip(one, -2))
    return [
        Probe(
            "signature",
            nginx(leaf(root, HOST, signature=lambda one: pki.flip(one, -2))),
            INVALID,
            reason="signature failure",
        ),
        Probe(
            "serial", nginx(leaf(root, HOST, tamper=lambda one: pki.flip(one, 16))), INVALID, reason="signature failure"
        ),
        Probe("intermediate", nginx(leaf(between, HOST)), INVALID, reason="signature failure"),
    ]


@probes("C11", "signed by nfw's own CA, which the trust store has", "UNTRUSTED")
def _(bench: Bench) -> list[Probe]:
    own = own_ca(bench)
    one = leaf(own, HOST)
    return [
        Probe("root sent", nginx([one.der, own.der], one.key), UNTRUSTED),
        Probe("root not sent", nginx([one.der], one.key), UNTRUSTED),
    ]


def own_ca(bench: Bench) -> Issued:
    """nfw's CA, as whoever has stolen its key has it."""
    certificate = x509.load_pem_x509_certificate(bench.firewall.ca.read_bytes())
    key = pki.EcKey()
    loaded = serialization.load_pem_private_key((bench.firewall.dir / "ca.key").read_bytes(), None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    key.key = loaded
    return Issued(certificate.public_bytes(serialization.Encoding.DER), key, certificate.subject.public_bytes())


@probes("C12", "roots known to be bad, though in the trust file; a root distrusted by the policy", "UNTRUSTED")
def _(bench: Bench) -> list[Probe]:
    found = [Probe("distrusted", nginx(leaf(bench.trust.distrusted, HOST)), UNTRUSTED, alone="served")]
    below = leaf(middle(bench.trust.distrusted), HOST)
    found.append(Probe("below a distrusted one", nginx(below), UNTRUSTED, alone="served"))
    for label, root in bench.trust.known_bad().items():
        # Its key is not at hand, so the signature is wrong: were the root trusted, that would be the verdict.
        one = leaf(Issued(root, pki.EcKey(), name(label)), HOST, extensions=[basic(False), eku(), dns(HOST)])
        found.append(Probe(label, nginx([one.der, root], one.key), UNTRUSTED))
    return found


@probes("C13", "leaf with RSA of 512, 768, 1016, 1024 bits", "WEAK")
def _(bench: Bench) -> list[Probe]:
    return [
        Probe(f"{size} bits", nginx(leaf(bench.trust.root, HOST, key=rsa_key(size)), protocols="TLSv1.2"), WEAK)
        for size in (512, 768, 1016, 1024)
    ]


@probes("C14", "intermediate or root with RSA of 1024 bits", "WEAK")
def _(bench: Bench) -> list[Probe]:
    return [
        Probe("intermediate", nginx(leaf(middle(bench.trust.root, key=rsa_key(1024)), HOST)), WEAK),
        Probe("root", nginx(leaf(bench.trust.weak, HOST)), WEAK),
    ]


@probes("C15", "odd RSA keys", "WEAK for exponent 1; else served, and logged where it shows")
def _(bench: Bench) -> list[Probe]:
    def remarked(*remarks: str) -> Any:
        def look(record: dict[str, Any], _seen: Seen) -> str:
            found = record["nfw"].get("remarks", [])
            return "" if found == list(remarks) else f"remarks {found}, not {list(remarks)}"

        return look

    root, one = bench.trust.root, rsa_key(2048, 1)
    first = pki.RsaKey(2048)
    twin = pki.RsaKey(2048, prime=first.p)
    why = "exponent out of bounds"
    return [
        Probe("exponent 1", nginx(leaf(root, HOST, key=one)), WEAK, reason=why, alone="served"),
        Probe("intermediate", nginx(leaf(middle(root, key=one), HOST)), WEAK, reason=why, alone="served"),
        Probe("exponent 65537", nginx(leaf(root, HOST, key=rsa_key(2048))), extra=remarked()),
        Probe("exponent 3", nginx(leaf(root, HOST, key=rsa_key(2048, 3))), extra=remarked("rsa_exponent")),
        Probe("2049 bits", nginx(leaf(root, HOST, key=rsa_key(2049))), extra=remarked("rsa_modulus")),
        Probe("whose prime another will have", nginx(leaf(root, HOST, key=first)), extra=remarked()),
        Probe("a prime in common", nginx(leaf(root, HOST, key=twin)), extra=remarked("rsa_common_prime")),
    ]


@probes("C16", "P-192 or DSA key", "WEAK, or no common cipher")
def _(bench: Bench) -> list[Probe]:
    """Real servers with such keys find no suite and no group in what nfw offers, and show nothing. One that does not
    care what was offered gets to show its certificate; no client goes on with such a one of DSA."""
    root = bench.trust.root
    small = pki.EcKey(ec.SECP192R1())
    tiny = leaf(root, HOST, key=small)
    groups = ("-tls1_2", "-groups", "P-256:P-192")
    old, long = pki.DsaKey(1024), pki.DsaKey(2048)
    none = PROTOCOL  # in common
    return [
        Probe("P-256 leaf", scripted(leaf(root, HOST)), tool=groups),
        Probe("P-192 leaf", scripted(tiny), WEAK, reason="EE certificate key too weak", tool=groups, alone="refused"),
        Probe("P-192, OpenSSL's", s_server(tiny, "-tls1_2"), none, body=WWW, tool=groups, alone="refused"),
        Probe("P-192 intermediate", nginx(leaf(middle(root, key=small), HOST)), WEAK, reason="CA certificate key too"),
        Probe("DSA, OpenSSL's", s_server(leaf(root, HOST, key=long), "-tls1_2"), none, body=WWW, tool=("-tls1_2",)),
        Probe(
            "DSA of 1,024 bits",
            scripted(leaf(root, HOST, key=old), pki.EcKey()),
            WEAK,
            direct=False,
            reason="key too weak",
        ),
        Probe("DSA intermediate", nginx(leaf(middle(root, key=long), HOST)), WEAK, reason="DSA key", alone="served"),
    ]


@probes("C17", "MD5 and MD4 signatures, leaf and intermediate", "WEAK")
def _(bench: Bench) -> list[Probe]:
    top = middle(bench.trust.root, "Rsa Middle", key=rsa_key(2048))
    found = []
    for digest in ("md5", "md4"):
        statuses = WEAK
        below = middle(top, f"{digest} Middle", digest=digest)
        found.append(Probe(f"{digest} leaf", nginx(leaf(top, HOST, digest=digest)), statuses))
        found.append(Probe(f"{digest} intermediate", nginx(leaf(below, HOST)), statuses))
    return found


@probes("C18", "SHA-1 signatures", "WEAK for leaf and intermediate, served below a root that signed itself so")
def _(bench: Bench) -> list[Probe]:
    top = middle(bench.trust.root, "Rsa Middle", key=rsa_key(2048))
    return [
        Probe("leaf", nginx(leaf(top, HOST, digest="sha1")), WEAK),
        Probe("leaf, ECDSA", nginx(leaf(bench.trust.root, HOST, digest="sha1")), WEAK),
        Probe("intermediate", nginx(leaf(middle(top, "Old Middle", digest="sha1"), HOST)), WEAK),
        Probe("root", nginx(leaf(bench.trust.sha1, HOST))),
    ]


@probes("C19", "intermediate of X.509 version 1", "INVALID")
def _(bench: Bench) -> list[Probe]:
    return [
        Probe("v1", nginx(leaf(middle(bench.trust.root, version=1), HOST)), INVALID, reason="invalid CA certificate")
    ]


@probes("C20", "intermediate that is no CA", "INVALID")
def _(bench: Bench) -> list[Probe]:
    root = bench.trust.root
    none = middle(root, extensions=[key_usage("key_cert_sign")])
    false = middle(root, extensions=[basic(False), key_usage("key_cert_sign", "digital_signature")])
    return [
        Probe("no basicConstraints", nginx(leaf(none, HOST)), INVALID, reason="invalid CA certificate"),
        Probe("CA:FALSE", nginx(leaf(false, HOST)), INVALID, reason="invalid CA certificate"),
    ]


@probes("C21", "a leaf that issues", "INVALID")
def _(bench: Bench) -> list[Probe]:
    host = leaf(bench.trust.root, "mine.grade.test")
    return [Probe("leaf as CA", nginx(leaf(host, HOST)), INVALID, reason="invalid CA certificate")]


@probes("C22", "path length", "INVALID where too long; self-issued certificates are not counted")
def _(bench: Bench) -> list[Probe]:
    root = bench.trust.root
    top = middle(root, "Short", length=0)
    fine = leaf(top, HOST)
    low = leaf(middle(top, "Too Deep"), HOST)
    again = authority("Short", top, subject=top.subject)
    two = leaf(middle(middle(root, "One", length=1), "Two"), HOST)
    return [
        Probe("kept", nginx(fine)),
        Probe("kept, one", nginx(two)),
        Probe("violated", nginx(low), INVALID, reason="path length constraint exceeded"),
        Probe("self-issued", nginx(leaf(again, HOST))),
    ]


@probes("C23", "name constraints", "INVALID where broken")
def _(bench: Bench) -> list[Probe]:
    root = bench.trust.root

    def below(
        label: str,
        permitted: list[x509.GeneralName] | None = None,
        excluded: list[x509.GeneralName] | None = None,
        expected: Any = INVALID,
        host: str = HOST,
        alone: str = "",
        reason: str = "",
        **how: Any,
    ) -> Probe:
        between = middle(root, "Bound", extra=[ext(x509.NameConstraints(permitted, excluded), True)])
        names = how.pop("names", (host,))
        if not reason and expected != OK:
            reason = "permitted subtree violation" if permitted else "excluded subtree violation"
        return Probe(label, nginx(leaf(between, *names, **how)), expected, host, alone=alone, reason=reason)

    place, other = x509.DNSName("grade.test"), x509.DNSName("other.test")
    address = x509.IPAddress(ipaddress.ip_network("198.51.100.0/24"))
    here, there = (x509.IPAddress(ipaddress.ip_address(text)) for text in ("198.51.100.7", "192.0.2.7"))
    company = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Good")])
    bad, fine = name(HOST, ("2.5.4.10", "Evil")), name("", ("2.5.4.10", "Good"))
    return [
        below("excluded", None, [place]),
        below("permitted, missed", [other]),
        below("permitted, kept", [place], expected=OK),
        below("excluded, kept", None, [other], expected=OK),
        below("one name of two outside", [place], names=(HOST, "x.other.test")),
        below("excluded address", None, [address], alternative=san(x509.DNSName(HOST), here)),
        below("excluded address, kept", None, [address], alternative=san(x509.DNSName(HOST), there), expected=OK),
        below("permitted dirName, missed", [x509.DirectoryName(company), place], subject=bad),
        below("permitted dirName, kept", [x509.DirectoryName(company), place], subject=fine, expected=OK),
        below("leading dot", [x509.DNSName(".other.test")]),
        below(
            "excluded below a wildcard",
            None,
            [x509.DNSName("bad.grade.test")],
            names=("*.grade.test",),
            alone="served",
            reason="excluded name constraint",
        ),
        below(
            "common name alone", [place], names=(), subject=name("x.other.test"), alternative=dns(HOST), expected=(OK)
        ),
    ]


@probes("C24", "intermediate whose keyUsage lacks keyCertSign", "INVALID")
def _(bench: Bench) -> list[Probe]:
    one = middle(bench.trust.root, usage=("digital_signature", "crl_sign"))
    return [Probe("no keyCertSign", nginx(leaf(one, HOST)), INVALID, reason="invalid CA certificate")]


@probes("C25", "extended key usage of something else", "INVALID")
def _(bench: Bench) -> list[Probe]:
    root = bench.trust.root
    client, code = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.CODE_SIGNING
    return [
        Probe(
            "leaf clientAuth",
            nginx(leaf(root, HOST, purposes=eku(client))),
            INVALID,
            reason="unsuitable certificate purpose",
        ),
        Probe(
            "leaf codeSigning",
            nginx(leaf(root, HOST, purposes=eku(code))),
            INVALID,
            reason="unsuitable certificate purpose",
        ),
        Probe(
            "intermediate clientAuth",
            nginx(leaf(middle(root, extra=[eku(client)]), HOST)),
            INVALID,
            reason="unsuitable certificate purpose",
        ),
    ]


@probes("C26", "extended key usage absent, or any", "served / INVALID")
def _(bench: Bench) -> list[Probe]:
    any_usage = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE
    return [
        Probe("absent", nginx(leaf(bench.trust.root, HOST, purposes=None))),
        Probe(
            "any",
            nginx(leaf(bench.trust.root, HOST, purposes=eku(any_usage))),
            INVALID,
            reason="unsuitable certificate purpose",
        ),
    ]


@probes("C27", "key usage that does not allow to sign a handshake", "INVALID")
def _(bench: Bench) -> list[Probe]:
    one = leaf(bench.trust.root, HOST, usage=("key_agreement",))
    return [
        Probe("keyAgreement, 1.3", nginx(one), INVALID, reason="digitalSignature", alone="served"),
        Probe("keyAgreement, 1.2", scripted(one), INVALID, reason="bad ecc cert", direct=False),
    ]


@probes("C28", "leaf with keyCertSign, no CA", "INVALID")
def _(bench: Bench) -> list[Probe]:
    one = leaf(bench.trust.root, HOST, usage=("digital_signature", "key_cert_sign"))
    return [Probe("keyCertSign", nginx(one), INVALID, reason="keyCertSign", alone="served")]


@probes("C29", "leaf that is a CA", "INVALID")
def _(bench: Bench) -> list[Probe]:
    return [
        Probe(
            "CA:TRUE",
            nginx(leaf(bench.trust.root, HOST, constraints=basic(True))),
            INVALID,
            reason="is a CA certificate",
            alone="served",
        )
    ]


@probes("C30", "wildcard", "one label served; none and two are NAME_MISMATCH")
def _(bench: Bench) -> list[Probe]:
    wild = nginx(leaf(bench.trust.root, "*.example.test"))
    return [
        Probe("one label", wild, OK, "www.example.test"),
        Probe("apex", wild, NAME, "example.test"),
        Probe("two labels", wild, NAME, "a.b.example.test"),
    ]


@probes("C31", "odd wildcards", "NAME_MISMATCH")
def _(bench: Bench) -> list[Probe]:
    def wild(pattern: str, host: str | None = HOST) -> Probe:
        return Probe(pattern, nginx(leaf(bench.trust.root, pattern)), NAME, host)

    return [
        wild("*"),
        wild("*.test", "grade.test"),
        wild("s*.grade.test"),
        wild("site.*.test"),
        wild("*.*.test"),
        wild("*", ADDRESS),
        wild("*.0.113.10", ADDRESS),
    ]


@probes("C32", "wildcard over a public suffix", "NAME_MISMATCH over a registry's, served over a company's")
def _(bench: Bench) -> list[Probe]:
    return [
        Probe("*.co.uk", nginx(leaf(bench.trust.root, "*.co.uk")), NAME, "bank.co.uk", alone="served"),
        Probe("*.github.io", nginx(leaf(bench.trust.root, "*.github.io")), OK, "someone.github.io"),
    ]


@probes("C33", "common name instead of subjectAltName", "NAME_MISMATCH")
def _(bench: Bench) -> list[Probe]:
    none = leaf(bench.trust.root, subject=name(HOST))
    differs = leaf(bench.trust.root, "other.grade.test", subject=name(HOST))
    return [
        Probe("no SAN", nginx(none), NAME, alone="served"),
        Probe("SAN differs", nginx(differs), NAME),
    ]


@probes("C34", "odd bytes in names", "NAME_MISMATCH")
def _(bench: Bench) -> list[Probe]:
    root = bench.trust.root
    statuses = NAME

    def odd(label: str, text: str) -> Probe:
        return Probe(label, nginx(leaf(root, HOST, alternative=dns(text))), statuses)

    empty = leaf(root, HOST, alternative=("2.5.29.17", False, pki.seq()))
    return [
        odd("NUL", f"{HOST}\0.evil.test"),
        odd("trailing dot", f"{HOST}."),
        odd("trailing space", f"{HOST} "),
        odd("empty name", ""),
        Probe("empty SAN", nginx(empty), ("NAME_MISMATCH", "INVALID"), alone="served"),
        Probe("NUL in CN", nginx(leaf(root, "x.test", subject=name(f"{HOST}\0.evil.test"))), statuses),
    ]


@probes("C35", "internationalised names", "A-labels served, raw UTF-8 and homographs are NAME_MISMATCH")
def _(bench: Bench) -> list[Probe]:
    root = bench.trust.root
    label = "xn--bcher-kva.grade.test"
    raw = leaf(root, HOST, alternative=dns("bücher.grade.test".encode().decode("latin-1")))
    statuses = NAME
    return [
        Probe("A-label", nginx(leaf(root, label)), OK, label),
        Probe("raw UTF-8 in SAN", nginx(raw), statuses, label),
        Probe("homograph", nginx(leaf(root, "xn--pple-43d.test")), NAME, "apple.test"),
        Probe("wildcard", nginx(leaf(root, "*.grade.test")), OK, label),
    ]


@probes("C37", "an address instead of a name", "iPAddress served; dNSName, common name, mapped address blocked")
def _(bench: Bench) -> list[Probe]:
    root = bench.trust.root
    right = san(x509.IPAddress(ipaddress.ip_address(ADDRESS)))
    six = san(x509.IPAddress(ipaddress.ip_address(ADDRESS6)))
    mapped = san(x509.IPAddress(ipaddress.ip_address(f"::ffff:{ADDRESS}")))
    other = san(x509.IPAddress(ipaddress.ip_address("203.0.113.11")))
    subject = name("host")
    statuses = NAME

    def at(label: str, alternative: Any, expected: Any, address: str = ADDRESS, subject: bytes = subject) -> Probe:
        one = leaf(root, subject=subject, alternative=alternative)
        return Probe(label, nginx(one), expected, address, address)

    return [
        at("iPAddress", right, OK),
        at("iPAddress, IPv6", six, OK, ADDRESS6),
        at("another address", other, statuses),
        at("in a dNSName", dns(ADDRESS), statuses),
        at("in the CN", dns("x.test"), statuses, subject=name(ADDRESS)),
        at("mapped into IPv6", mapped, statuses),
    ]


@case("C38", "intermediate missing, to be had by AIA", "fetched once, served, logged")
def _(bench: Bench) -> str:
    top = middle(bench.trust.root, "Aia Top")
    low = middle(top, "Aia Low", extra=[pki.access(issuers=[bench.web.put("c38-top.cer", top.der)])])
    pointer = pki.access(issuers=[bench.web.put("c38-low.cer", low.der)])
    one = leaf(low, HOST, extra=[pointer])

    def fetched(record: dict[str, Any], _seen: Seen) -> str:
        return "" if record["nfw"].get("issuers_fetched") else f"not logged as fetched: {record['nfw']}"

    seen = run_probes(
        bench,
        [
            Probe("two missing", nginx([one.der], one.key), extra=fetched, alone="refused"),
            Probe("one missing", nginx([one.der, low.der], one.key), extra=fetched, alone="refused"),
        ],
    )
    asked = bench.web.asked("c38-low.cer"), bench.web.asked("c38-top.cer")
    check(asked[0] == 1 and asked[1] <= 2, f"asked for {asked[0]} and {asked[1]} times")
    return f"{seen}; fetched {asked[0]} and {asked[1]} times"


@case("C39", "AIA as a trap", "UNTRUSTED within the budget; nobody but the responder is asked")
def _(bench: Bench) -> str:
    root = bench.trust.root
    hidden = middle(root, "Hidden")
    web = bench.web
    loop = middle(Issued(b"", pki.EcKey(), name("Loop")), "Loop", extra=[pki.access(issuers=[web.url("c39-loop.cer")])])
    web.put("c39-loop.cer", loop.der)

    @with_socket
    def endless(side: ServerSide) -> None:
        side.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n")
        for _ in range(1024):
            side.write(bytes(1 << 20))

    @with_socket
    def slow(side: ServerSide) -> None:
        side.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(12):
            side.write(b"0")
            time.sleep(1)

    def in_time(_record: dict[str, Any], seen: Seen) -> str:
        """The budget of 3 s, and what a busy machine adds."""
        return "" if seen.seconds < 6 else f"took {seen.seconds:.1f} s"

    inner: list[str] = []
    spy = bench.serving(handler=lambda side: inner.append("asked"))
    nearby = bench.port()
    ears = bench.ears(("router", "127.0.0.1", nearby), ("router", "127.0.0.2", 80), ("client", "10.1.0.2", 8000))
    with spy as trap, ears as heard:
        one = leaf(hidden, HOST, extra=[pki.access(issuers=[f"http://{ADDRESS}:{trap.port}/x.cer"])])
        run_probes(bench, [Probe("where one may be asked", nginx([one.der], one.key), UNTRUSTED)])
        check(bool(inner), "nobody was asked even where one may be")
        inner.clear()
        targets = {
            "loop": web.url("c39-loop.cer"),
            "1 GB": web.put("c39-endless.cer", endless),
            "slow": web.put("c39-slow.cer", slow),
            "redirect to loopback": web.put("c39-r1.cer", lambda _: redirect(f"http://127.0.0.1:{nearby}/")),
            "redirect to metadata": web.put("c39-r2.cer", lambda _: redirect("http://169.254.169.254/")),
            "redirect to file": web.put("c39-r3.cer", lambda _: redirect("file:///etc/passwd")),
            "ldap": "ldap://203.0.113.10/cn=x",
            "file": "file:///etc/passwd",
            "https": f"https://{ADDRESS}:{trap.port}/x.cer",
            "router itself": "http://127.0.0.2/x.cer",
            "outside what is allowed": "http://10.1.0.2:8000/x.cer",
        }
        found = []
        began = time.monotonic()
        for label, url in targets.items():
            by = hidden if label != "loop" else loop
            one = leaf(by, HOST, extra=[pki.access(issuers=[url])])
            found.append(Probe(label, nginx([one.der], one.key), UNTRUSTED, extra=in_time))
        threads = [threading.Thread(target=lambda p=probe: results.append(run_probe(bench, p))) for probe in found]
        results: list[str] = []
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wrong = [one for one in results if one]
        check(not wrong, "; ".join(wrong))
        check(not inner and not (places := heard()), f"a forbidden address was asked: {inner or places}")
    return f"{len(found)} blocked in {time.monotonic() - began:.1f} s, no forbidden address asked"


def redirect(url: str) -> bytes:
    return answer(b"", "302 Found", extra=f"Location: {url}\r\n")


@probes("C40", "odd order, duplicates, strangers, the root too", "served")
def _(bench: Bench) -> list[Probe]:
    root = bench.trust.root
    top = middle(root, "Top")
    low = middle(top, "Low")
    one = leaf(low, HOST)
    stranger = middle(bench.trust.unknown, "Stranger")
    key = one.key
    return [
        Probe("reversed", nginx([one.der, top.der, low.der], key)),
        Probe("duplicates", nginx([one.der, low.der, low.der, top.der, top.der], key)),
        Probe("unrelated", nginx([one.der, stranger.der, low.der, top.der], key)),
        Probe("root included", nginx([one.der, low.der, top.der, root.der], key)),
        Probe("root first", nginx([one.der, root.der, top.der, low.der], key)),
    ]


@probes("C41", "cross-signed with a dead path, a cycle, constraints on one of two paths", "served")
def _(bench: Bench) -> list[Probe]:
    root, unknown = bench.trust.root, bench.trust.unknown
    good = middle(root, "Cross")
    dead = middle(unknown, "Cross", key=good.key)
    one = leaf(good, HOST)
    ring_a, ring_b = pki.EcKey(), pki.EcKey()
    first = authority("Ring A", Issued(b"", ring_b, name("Ring B")), key=ring_a)
    second = authority("Ring B", Issued(b"", ring_a, name("Ring A")), key=ring_b)
    out = authority("Ring A", root, key=ring_a)
    ring = leaf(first, HOST)
    narrow = middle(root, "Two Ways", extra=[ext(x509.NameConstraints([x509.DNSName("other.test")], None), True)])
    wide = middle(root, "Two Ways", key=narrow.key)
    bound = leaf(wide, HOST)
    return [
        Probe("dead path first", nginx([one.der, dead.der, good.der], one.key), alone="refused"),
        Probe("dead path last", nginx([one.der, good.der, dead.der], one.key)),
        Probe("cycle", nginx([ring.der, first.der, second.der, out.der], ring.key)),
        Probe("constrained last", nginx([bound.der, wide.der, narrow.der], bound.key)),
        Probe("constrained first", nginx([bound.der, narrow.der, wide.der], bound.key), alone="refused"),
    ]


@probes("C42", "an unknown extension", "INVALID where critical, else served")
def _(bench: Bench) -> list[Probe]:
    root = bench.trust.root
    critical, plain = ("1.3.6.1.4.1.99999.1", True, b"\x05\0"), ("1.3.6.1.4.1.99999.1", False, b"\x05\0")
    return [
        Probe("leaf", nginx(leaf(root, HOST, extra=[critical])), INVALID, reason="unhandled critical extension"),
        Probe(
            "intermediate",
            nginx(leaf(middle(root, extra=[critical]), HOST)),
            INVALID,
            reason="unhandled critical extension",
        ),
        Probe("root", nginx(leaf(bench.trust.critical, HOST)), INVALID, reason="unhandled critical extension"),
        Probe("not critical", nginx(leaf(middle(root, extra=[plain]), HOST, extra=[plain]))),
    ]


@probes("C43", "malformed: DER, duplicate extension, serial, time", "INVALID (or no handshake), no crash")
def _(bench: Bench) -> list[Probe]:
    root = bench.trust.root
    unread = "ASN1 lib"

    def raw(label: str, one: Issued, reason: str) -> Probe:
        return Probe(label, Server13(path(one), one.key, page).handler, INVALID, direct=False, reason=reason)

    good = leaf(root, HOST)
    return [
        Probe("nothing wrong", Server13(path(good), good.key, page).handler),
        raw(
            "DER in an extension",
            leaf(root, HOST, alternative=("2.5.29.17", False, b"\x30\x84\xff\xff")),
            "subject_alternative_name",
        ),
        raw("duplicate extension", leaf(root, HOST, extra=[dns(HOST)]), "Duplicate"),
        raw("negative serial", leaf(root, HOST, serial=-5), "negative"),
        raw("serial of 21 bytes", leaf(root, HOST, serial=1 << 165), "more than 20 bytes"),
        raw(
            "bad UTCTime",
            leaf(root, HOST, times=pki.seq(pki.tlv(0x17, b"999999999999Z"), pki.tlv(0x17, b"xx"))),
            unread,
        ),
        Probe("cut short", scripted([good.der[:-20]], good.key), INVALID, direct=False, reason=unread),
        Probe("empty", scripted([b""]), INVALID, direct=False, reason=unread),
        Probe("none", scripted([]), PROTOCOL, direct=False),
        Probe("noise", scripted([os.urandom(900)]), INVALID, direct=False, reason=unread),
    ]


@probes("C44", "very many names, a very long chain, a very big one", "1,000 names served; beyond, a stated limit")
def _(bench: Bench) -> list[Probe]:
    root = bench.trust.root
    thousand = leaf(root, HOST, *(f"n{number}.grade.test" for number in range(1000)))
    ten = leaf(root, HOST, *(f"n{number}.grade.test" for number in range(10_000)))
    deep = root
    for number in range(60):
        deep = middle(deep, f"Depth {number}", key=root.key)
    large = "excessive message size"
    big = leaf(root, HOST, extra=[("1.3.6.1.4.1.99999.2", False, pki.tlv(4, os.urandom(60_000)))])
    return [
        Probe("1,000 names", nginx(thousand)),
        Probe("10,000 names", nginx(ten), INVALID, direct=False, reason=large),  # no OpenSSL reads as much
        Probe("60 deep", nginx(leaf(deep, HOST)), INVALID, alone="served", reason="chain too long"),
        Probe("over 100 KB", nginx([big.der, big.der], big.key), INVALID, direct=False, reason=large),
    ]


@case("C45", "chains made to be slow", "a verdict in less than 250 ms of CPU; others are served meanwhile", alone=True)
def _(bench: Bench) -> str:
    """Each bomb comes beside one of its kind that is as it should be, or below a limit, and is served: what the verdict
    is on is the bomb, and not what it is made of."""
    found = []
    with bench.serving(context=nginx(leaf(bench.trust.root, HOST))) as plain:

        def others(until: threading.Event, count: int) -> float:
            """The longest that another's visit takes, ``count`` of them, more until then."""
            longest = 0.0
            while count > 0 or not until.is_set():
                seen = bench.visit(plain.port)
                check(b"GRADE" in seen.body, f"another flow is not served: {seen}")
                longest, count = max(longest, seen.seconds), count - 1
            return longest

        done = threading.Event()
        done.set()
        usual = others(done, 40)
        for label, (context, status, reason) in _slow_chains(bench.trust.root).items():
            with bench.serving(context=context) as server:
                bench.control(server.port, kinds=(False,))
                bench.control(server.port, kinds=(True,), served=None)
                done.clear()
                wrong: list[str] = []

                def visits(port: int = server.port, wanted: tuple[str, str] = (status, reason)) -> None:
                    try:
                        # From the second time round from what nfw remembers of the first.
                        for strict in (False, True) * 5:
                            seen = bench.visit(port, strict=strict)
                            said = bench.verdict(seen, port)["nfw"]
                            good = said["status"] == wanted[0] and wanted[1] in said.get("detail", "")
                            if not good or (wanted[0] == OK) is not (b"GRADE" in seen.body):
                                wrong.append(f"{said}, {seen}")  # noqa: B023
                    finally:
                        done.set()

                before = bench.cpu()
                first = bench.visit(server.port)
                once = bench.cpu() - before
                check((b"GRADE" in first.body) is (status == OK), f"{label}: {first}")
                thread = threading.Thread(target=visits)
                thread.start()
                longest = others(done, 1)
                thread.join()
                check(not wrong, f"{label}: {wrong[:2]}")
                check(once < 0.25, f"{label}: {once * 1000:.0f} ms of CPU")
                check(longest < usual + 0.25, f"{label}: others took {longest:.2f} s, {usual:.2f} s without")
                found.append(f"{label}: {status}, {once * 1000:.0f} ms")
    return "; ".join(found)


def _slow_chains(root: Issued) -> dict[str, tuple[Nginx, str, str]]:
    """By what they are: the server, the verdict on it, part of its reason."""
    same = [middle(root, "Same") for _ in range(100)]
    one = leaf(same[0], HOST, extensions=[basic(False), key_usage("digital_signature"), eku(), dns(HOST)])
    known = leaf(same[0], HOST)
    backwards = [each.der for each in reversed(same)]
    right, ring_a, ring_b = middle(root, "Right"), pki.EcKey(), pki.EcKey()
    by_a, by_b = Issued(b"", ring_a, name("Ring A")), Issued(b"", ring_b, name("Ring B"))
    # A certificate for a key needs only its public half: this one leads from the right issuer into the ring.
    aside = authority("Right", by_a, key=right.key)
    ring = [authority("Ring A", by_b, key=ring_a).der for _ in range(8)]
    ring += [authority("Ring B", by_a, key=ring_b).der for _ in range(8)]
    two, three = leaf(right, HOST), leaf(right, HOST)  # consent to a path is remembered

    def bound(count: int) -> Nginx:
        many = [x509.DNSName(f"x{number}.other.test") for number in range(count)]
        by = middle(root, "Bound", extra=[ext(x509.NameConstraints([x509.DNSName("grade.test")], many), True)])
        return nginx(leaf(by, HOST, *(f"n{number}.grade.test" for number in range(999))))

    def policies(levels: int, arcs: int) -> Nginx:
        arc = [pki.oid(f"1.3.6.1.4.1.9999.{number}") for number in range(arcs)]
        extra = [
            ("2.5.29.32", False, pki.seq(*(pki.seq(each) for each in arc))),
            ("2.5.29.33", False, pki.seq(*(pki.seq(here, there) for here in arc for there in arc))),
            ("2.5.29.36", False, pki.seq(pki.tlv(0x80, b"\0"))),  # requireExplicitPolicy
        ]
        by = root
        for number in range(levels):
            by = middle(by, f"Policy {number}", extra=extra)
        return nginx(leaf(by, HOST, extra=[("2.5.29.32", False, pki.seq(pki.seq(arc[1])))]))

    refused = "INVALID"
    return {
        "100 of one name, the issuer first": (nginx([one.der, *(each.der for each in same)], one.key), OK, ""),
        "last": (nginx([one.der, *backwards], one.key), refused, "signature failure"),
        "last, identified": (nginx([known.der, *backwards], known.key), refused, "second path check"),
        "a ring behind the issuer": (nginx([two.der, right.der, aside.der, *ring], two.key), OK, ""),
        "before it": (nginx([three.der, aside.der, *ring, right.der], three.key), refused, "signature check limit"),
        "1,000 names x 100 constraints": (bound(100), OK, ""),
        "x 1,000": (bound(1000), refused, "131072 are allowed"),
        "policies, 12 x 8 x 8": (policies(12, 8), OK, ""),
    }


@probes("C46", "no subject, no common name, ten years of life", "served")
def _(bench: Bench) -> list[Probe]:
    root = bench.trust.root
    critical = (*dns(HOST)[:1], True, dns(HOST)[2])
    good = bench.web.put("c46.crl", lambda _: crl_now(bench))
    ten = leaf(root, HOST, start=time.time() - 9 * 365 * DAY, end=time.time() + 365 * DAY, extra=[pki.crl_points(good)])
    bare = leaf(root, HOST, subject=pki.seq(), alternative=critical)
    return [
        Probe("no subject", nginx(bare)),
        Probe("no common name", nginx(leaf(root, HOST, subject=name("", ("2.5.4.10", "Company"))))),
        Probe(
            "ten years",
            nginx(ten),
            extra=lambda record, _: "" if "long_lived" in record["nfw"].get("remarks", ()) else "no remark",
        ),
    ]


def crl_now(bench: Bench) -> bytes:
    from tests.grade.revocation import crl

    return crl(bench.trust.root)


@probes("C47", "the leaf's key did not sign the handshake", "INVALID or PROTOCOL, never served")
def _(bench: Bench) -> list[Probe]:
    one = leaf(bench.trust.root, HOST)
    return [
        Probe("1.2, its own key", scripted(one)),
        Probe(
            "1.2, another", scripted(one, pki.EcKey()), INVALID, reason="bad signature", direct=False, alone="refused"
        ),
        Probe("1.3, its own key", Server13(path(one), one.key, page).handler),
        Probe(
            "1.3, another",
            Server13(path(one), pki.EcKey(), page).handler,
            INVALID,
            reason="bad signature",
            direct=False,
            alone="refused",
        ),
    ]


@probes("C48", "raw public key, or no certificate", "PROTOCOL")
def _(bench: Bench) -> list[Probe]:
    one = leaf(bench.trust.root, HOST)

    def shows(cipher: int = tls12.ECDHE_ECDSA_AES128, **how: Any) -> Any:
        return tls12.Server12(path(one), one.key, cipher=cipher, **how).handler

    kind = tls12.extension(20, b"\2")  # server_certificate_type: RawPublicKey
    bare = tls12.message(11, tls12.vector(one.key.spki, 3))
    return [
        Probe("a certificate", shows()),
        Probe("raw public key", shows(extensions=[kind], certificate=bare), PROTOCOL, direct=False),
        Probe("raw public key, unannounced", shows(certificate=bare), PROTOCOL, direct=False),
        Probe("ECDH_anon", shows(0xC018, certificate=b""), PROTOCOL, direct=False),
        Probe("no Certificate message", shows(certificate=b""), PROTOCOL, direct=False),
        Probe("OpenSSL, ECDH_anon alone", s_server(one, "-tls1_2", "-cipher", "AECDH:@SECLEVEL=0"), PROTOCOL, body=WWW),
    ]


@case(
    "C49", "certificate transparency of publicly anchored chains", "logged; blocked where the policy says", policy="sct"
)
def _(bench: Bench) -> str:
    public = bench.trust.public
    good = with_sct(bench, public, HOST)
    bad = with_sct(bench, public, HOST, flipped=True)

    def says(text: str) -> Any:
        return lambda record, _: "" if record["nfw"].get("sct") == text else f"sct is {record['nfw'].get('sct')}"

    return run_probes(
        bench,
        [
            Probe("logged", nginx(good), extra=says("valid")),
            Probe("absent", nginx(leaf(public, HOST)), INVALID, reason="sct", alone="served"),
            Probe("invalid", nginx(bad), INVALID, reason="sct", alone="served"),
            Probe("private root", nginx(leaf(bench.trust.root, HOST))),
        ],
    )


def with_sct(bench: Bench, by: Issued, host: str, *, flipped: bool = False) -> Issued:
    """A leaf with one SCT of the lab's log (RFC 6962 3.2)."""
    import hashlib

    from cryptography.hazmat.primitives import hashes

    public = bench.trust.log_key.public_key()
    encoding, layout = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    log_id = hashlib.sha256(public.public_bytes(encoding, layout)).digest()
    key, serial = pki.EcKey(), 0x1234567890ABCDEF1234567890
    how: dict[str, Any] = {"key": key, "serial": serial, "start": time.time() - 3600, "end": time.time() + 4 * DAY}
    bare = leaf(by, host, **how)
    tbs = bare.parsed.tbs_certificate_bytes
    stamp = int(time.time() * 1000).to_bytes(8, "big")
    issuer = hashlib.sha256(by.key.spki).digest()
    signed = b"\0\0" + stamp + b"\0\1" + issuer + tls12.vector(tbs, 3) + b"\0\0"
    signature = bench.trust.log_key.sign(signed, ec.ECDSA(hashes.SHA256()))
    if flipped:
        signature = pki.flip(signature)
    sct = b"\0" + log_id + stamp + b"\0\0" + b"\4\3" + tls12.vector(signature, 2)
    value = pki.tlv(4, tls12.vector(tls12.vector(sct, 2), 2))
    return leaf(by, host, extra=[("1.3.6.1.4.1.11129.2.4.2", False, value)], **how)


@case(
    "C52",
    "a good certificate first, then a bad one at the same address and name",
    "UNTRUSTED, whatever was served before",
)
def _(bench: Bench) -> str:
    good = nginx(leaf(bench.trust.root, HOST))
    bad_leaf = leaf(bench.trust.unknown, HOST)
    bad = nginx([bad_leaf.der, bench.trust.unknown.der], bad_leaf.key)
    port = bench.port()
    for context, served in ((good, True), (bad, False), (good, True)):
        with bench.serving(context, port=port) as server:
            bench.control(port, kinds=(False,))
            bench.control(port, kinds=(True,), served=served)
            for strict in (True, False):
                seen = bench.visit(port, strict=strict)
                status = bench.verdict(seen, port)["nfw"]["status"]
                wanted = status == "OK" and b"GRADE" in seen.body if served else status == "UNTRUSTED" and not seen.body
                check(wanted, f"{status}, {seen} of the {'good' if served else 'bad'} one")
        check(served or not server.told(), f"the bad one has heard {server.told()}")
    return "served, UNTRUSTED, served"


@case("C53", "the x509-limbo corpus", "no wrong accept in a case that is not pedantic")
def _(_bench: Bench) -> str:
    raise CannotRunError("the x509-limbo corpus is not on this machine")
