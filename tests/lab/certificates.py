"""The lab's certificate authorities and the certificate of each site."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.lab.sites import Proof, Site

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_DAY = timedelta(days=1)
# Under the 398 days that browsers accept of a leaf.
_LEAF_LIFE = 90 * _DAY
_CA_LIFE = 3650 * _DAY


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate with its key, and the PEM of what a server would send (the leaf first)."""

    certificate: x509.Certificate
    key: Key
    chain_pem: bytes

    @property
    def key_pem(self) -> bytes:
        """The private key as unencrypted PKCS #8."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """`certificate` as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


class Authorities:
    """The trusted root, an intermediate below it, and a root that nobody trusts."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)
        self.root = self._authority("nfw lab root")
        self.intermediate = self._authority("nfw lab intermediate", self.root)
        self.unknown = self._authority("nfw lab root nobody knows")

    def site(self, site: Site) -> Issued:
        """The certificate `site` shows, faults included."""
        key: Key = _rsa_key() if site.proof is Proof.GOOD_RSA else _ec_key()
        start, end = self.now - _DAY, self.now + _LEAF_LIFE
        if site.proof is Proof.EXPIRED:
            start, end = self.now - 30 * _DAY, self.now - _DAY
        elif site.proof is Proof.NOT_YET_VALID:
            start, end = self.now + _DAY, self.now + _LEAF_LIFE
        issuer: Issued | None = self.root
        if site.proof in (Proof.INTERMEDIATE, Proof.NO_INTERMEDIATE):
            issuer = self.intermediate
        elif site.proof is Proof.UNKNOWN_CA:
            issuer = self.unknown
        elif site.proof is Proof.SELF_SIGNED:
            issuer = None
        certificate = _sign(
            site.certificate_names[0], key, issuer, start, end, names=site.certificate_names, crl_url=site.crl_url
        )
        chain = certificate_pem(certificate)
        if site.proof is Proof.INTERMEDIATE:
            chain += certificate_pem(self.intermediate.certificate)
        return Issued(certificate, key, chain)

    def write(self, sites: Sequence[Site], folder: Path) -> None:
        """Write root.pem and, for every site, NAME.pem and NAME.key into `folder`."""
        folder.mkdir(mode=0o700)
        (folder / "root.pem").write_bytes(self.root.chain_pem)
        (folder / "unknown-root.pem").write_bytes(self.unknown.chain_pem)
        for site in sites:
            issued = self.site(site)
            (folder / f"{site.name}.pem").write_bytes(issued.chain_pem)
            (folder / f"{site.name}.key").write_bytes(issued.key_pem)

    def crl(self) -> bytes:
        """The root's revocation list (RFC 5280, 5), DER, good for a day: nothing is on it."""
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.root.certificate.subject)
        builder = builder.last_update(self.now - _DAY).next_update(self.now + _DAY)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.root.key.public_key())
        builder = builder.add_extension(x509.CRLNumber(1), critical=False).add_extension(issuer, critical=False)
        return builder.sign(self.root.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)

    def _authority(self, name: str, issuer: Issued | None = None) -> Issued:
        key = _ec_key()
        certificate = _sign(name, key, issuer, self.now - _DAY, self.now + _CA_LIFE, names=())
        return Issued(certificate, key, certificate_pem(certificate))


def _ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _sign(
    name: str,
    key: Key,
    issuer: Issued | None,
    start: datetime,
    end: datetime,
    names: Sequence[str],
    crl_url: str | None = None,
) -> x509.Certificate:
    """A certificate for `key`: a leaf for DNS `names`, or an authority where there are none (RFC 5280, 4.2.1)."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    authority = not names
    issuer_key: Key = issuer.key if issuer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                content_commitment=False,
                key_encipherment=isinstance(key, rsa.RSAPrivateKey),
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=authority,
                crl_sign=authority,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName(entry) for entry in names]), critical=False
        ).add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    if crl_url is not None:
        point = x509.DistributionPoint([x509.UniformResourceIdentifier(crl_url)], None, None, None)
        builder = builder.add_extension(x509.CRLDistributionPoints([point]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())
