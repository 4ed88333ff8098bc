"""Certificate policies against OpenSSL's own idea of them, on random paths, and by hand where the two differ."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID

from engines.tls.certpolicies import NOTHING, Said, fault, read
from tests.unit.tlskit import NOW, Authority

_POLICIES = ("1.3.6.1.4.1.55555.1", "1.3.6.1.4.1.55555.2", "1.3.6.1.4.1.55555.3")
_ANY = "2.5.29.32.0"
Extension = tuple[x509.ExtensionType, bool]


def stated(*policies: str) -> Extension:
    return x509.CertificatePolicies(
        [x509.PolicyInformation(x509.ObjectIdentifier(one), None) for one in policies]
    ), False


def mapped(*pairs: tuple[str, str]) -> Extension:
    """openssl(1) writes no such extension, nor does the library: tag, length, value."""

    def sequence(content: bytes) -> bytes:
        assert len(content) < 128
        return bytes((0x30, len(content))) + content

    def identifier(dotted: str) -> bytes:
        last = dotted.rpartition(".")[2]
        return bytes.fromhex("06092b0601040183b20300" if dotted != _ANY else "0604551d2000")[:-1] + bytes((int(last),))

    der = sequence(b"".join(sequence(identifier(issuer) + identifier(subject)) for issuer, subject in pairs))
    return x509.UnrecognizedExtension(ExtensionOID.POLICY_MAPPINGS, der), True


def constraints(explicit: int | None, mapping: int | None = None) -> Extension:
    return x509.PolicyConstraints(explicit, mapping), True


def random_extensions(chance: random.Random, leaf: bool) -> list[Extension]:
    said: list[Extension] = []
    named = chance.sample((*_POLICIES, _ANY), chance.randint(1, 3)) if chance.random() < 0.85 else []
    if named:
        said.append(stated(*named))
    if leaf:
        return said
    # Of policies that are named: one that is not OpenSSL takes for named where any policy is, inhibited or not.
    issuers = [one for one in named if one != _ANY]
    if chance.random() < 0.4 and issuers:
        said.append(mapped(*((issuer, chance.choice(_POLICIES)) for issuer in issuers)))
    if chance.random() < 0.5:
        mapping = chance.choice((None, None, 0, 1))
        said.append(constraints(chance.choice((0, 1, 2) if mapping is None else (None, 0, 1, 2)), mapping))
    if chance.random() < 0.3:
        said.append((x509.InhibitAnyPolicy(chance.choice((0, 1))), True))
    return said


def path(chain: Sequence[Sequence[Extension]], self_issued: int | None = None) -> list[x509.Certificate]:
    """Anchor first; ``chain`` from the anchor down; the intermediate of that number has its issuer's name."""
    issuer = Authority("Root")
    made = [issuer.certificate]
    for number, said in enumerate(chain[:-1]):
        name = issuer.name.rfc4514_string().removeprefix("CN=") if number == self_issued else f"Between {number}"
        issuer = Authority(name, issuer, extra=said)
        made.append(issuer.certificate)
    made.append(issuer.issue("a.test", extra=chain[-1])[0])
    return made


def ours(chain: Sequence[x509.Certificate]) -> str | None:
    return fault([read(one) for one in reversed(chain[1:])])


def openssls(chain: Sequence[x509.Certificate], folder: Path) -> bool:
    files = [folder / name for name in ("anchor.pem", "between.pem", "leaf.pem")]
    for file, certificates in zip(files, (chain[:1], chain[1:-1], chain[-1:]), strict=True):
        file.write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in certificates))
    command = ["openssl", "verify", "-attime", str(int(NOW)), "-policy_check", "-policy", "anyPolicy"]
    command += ["-CAfile", str(files[0]), "-untrusted", str(files[1]), str(files[2])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or "policy" in done.stderr + done.stdout, done
    return done.returncode == 0


@pytest.mark.parametrize("seed", range(8))
def test_as_openssl_on_random_paths(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    verdicts = set()
    for _ in range(16):
        length = chance.randint(1, 4)
        said = [random_extensions(chance, leaf=number == length) for number in range(length + 1)]
        chain = path(said, chance.choice((None, None, 1)))
        good = openssls(chain, tmp_path)
        assert (ours(chain) is None) is good, (said, ours(chain))
        verdicts.add(good)
    assert verdicts == {True, False}


A, B, C = _POLICIES
_NO_ANY: Extension = x509.InhibitAnyPolicy(0), True


@pytest.mark.parametrize(
    ("chain", "problem"),
    [
        ([[stated(A), constraints(0)], [stated(A)]], None),
        ([[stated(A), constraints(0)], [stated(B)]], "no explicit policy"),
        ([[stated(A), constraints(1)], [stated(A)], []], "no explicit policy"),
        ([[stated(A), constraints(5)], [stated(A)], []], None),  # demanded below the leaf
        ([[stated(A), mapped((A, B)), constraints(0)], [stated(B)]], None),
        ([[stated(A), mapped((A, B)), constraints(0)], [stated(A)]], "no explicit policy"),
        ([[stated(_ANY), mapped((A, B)), constraints(0)], [stated(B)]], None),
        ([[stated(A), mapped((A, _ANY)), constraints(5)], [stated(A)]], "a mapping of any policy"),
        ([[stated(A), constraints(0, 0)], [stated(A), mapped((A, B))], [stated(B)]], "no explicit policy"),
        ([[stated(A), _NO_ANY, constraints(0)], [stated(_ANY)]], "no explicit policy"),
        (
            [
                [stated(A), (x509.InhibitAnyPolicy(0), True), constraints(0)],
                [stated(_ANY), mapped((A, B))],
                [stated(B)],
            ],
            "no explicit policy",
        ),
        ([[], []], None),
        ([[], [constraints(0)]], "no explicit policy"),  # the leaf may demand it, too
        ([[stated(A)], [stated(A), constraints(0)]], None),
        ([[], [constraints(1)]], None),
    ],
)
def test_by_hand(chain: list[list[Extension]], problem: str | None) -> None:
    assert ours(path(chain)) == problem


def test_what_does_not_parse_is_an_error() -> None:
    junk: Extension = x509.UnrecognizedExtension(ExtensionOID.POLICY_MAPPINGS, b"\x30\x03\x06\x01"), False
    certificate, _ = Authority("Root").issue("a.test", extra=[junk])
    with pytest.raises(ValueError, match="pars"):
        read(certificate)


def test_most_certificates_say_nothing() -> None:
    certificate, _ = Authority("Root").issue("a.test")
    assert read(certificate) is NOTHING
    assert fault([NOTHING] * 3) is None
    assert fault([NOTHING, Said(explicit=0)]) == "no explicit policy"
