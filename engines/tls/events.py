"""What a session says to its owner, in the order the owner must act on it.

Not to be changed, but not frozen either: making a frozen one takes three times as long, and there are twenty for the
shortest connection. Directions are those of data: ``TO_SERVER`` is what the client sent. "Way" in the docstrings: one
direction.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from cryptography import x509

from engines.tls.clienthello import ClientHello
from engines.tls.leaf import LeafKey, LeafRequest
from engines.tls.revocation import Conclusion, Question
from engines.tls.status import FailAction, Status
from engines.tls.verify import ServerChain
from engines.verdict import Direction


class Close(enum.Enum):
    """How a TCP connection ends. None of them adds or invents a TLS alert."""

    FIN = "fin"  # send what is queued, then shut down our sending side; the peer may go on sending
    SILENT = "silent"  # drop: forget what is queued, FIN, discard what still arrives
    RESET = "reset"  # RST; what is queued may be lost


@dataclass(slots=True)
class Leg:
    """What was negotiated with one side. Names are OpenSSL's (``TLSv1.3``, ``X25519MLKEM768``); ``alpn`` "" is none."""

    version: str
    cipher: str
    group: str
    alpn: str


@dataclass(slots=True)
class SessionInfo:
    """What is known of a session so far, for the log. Filled in as it goes on; the owner only reads it."""

    hello: ClientHello | None = None
    sni: str | None = None
    client: Leg | None = None
    server: Leg | None = None
    chain: ServerChain | None = None
    resumed: bool = False  # by the server, so ``chain`` is what it proved then
    leaf: LeafRequest | None = None
    revocation: Conclusion | None = None
    questions: tuple[Question, ...] = ()  # that were asked about revocation
    revocation_action: str = ""  # pass, drop or reject
    passed: list[str] = field(default_factory=list)  # statuses the policy let pass
    certificate_requested: bool = False
    would_be: str = ""  # only watching: how the policy would have ended an open session
    remarks: list[str] = field(default_factory=list)  # odd, but no reason to refuse; short stable tokens
    plaintext: list[int] = field(default_factory=lambda: [0, 0])  # bytes decrypted, by Direction
    forwarded: list[int] = field(default_factory=lambda: [0, 0])  # bytes let through, by Direction
    truncated: list[bool] = field(default_factory=lambda: [False, False])  # way ended without close_notify
    established: bool = False
    inbound: bool = False  # to a server of one's own, whose certificate the client sees
    server_names: tuple[str, ...] = ()  # of the certificate, where it is not for the name asked for
    client_alert: str = ""  # with which the client refused our handshake; OpenSSL's name of it
    bypass: str = ""  # what proved that the destination is the exempted name's: dns, certificate
    bypass_refused: str = ""  # the policy exempts the name, but nothing proved that this is it: why


@dataclass(slots=True)
class Hello:
    """The ClientHello is in and names a server. Answer with ``proceed()`` or ``end()``."""

    hello: ClientHello


@dataclass(frozen=True, slots=True)
class PassOn:
    """Only asked to watch, the session ends here: for ``status`` the policy would have ended the connection by
    ``action``, and the client has not heard a byte. Close the connection to the server and hand ``data``, what the
    client has sent so far, on as it is."""

    status: Status
    reason: str
    detail: str
    action: FailAction
    data: bytes


@dataclass(slots=True)
class Proven:
    """Only asked for proof, the session ends here: the server has shown a certificate for the name, good by every
    check, and that it, or whoever it handed our handshake on to, has the key. The client has not heard a byte. Close
    the connection to the server."""


@dataclass(slots=True)
class ConnectUpstream:
    """Connect to the original destination; answer ``upstream_connected()`` or ``upstream_failed()``. ``sni`` is the
    name the server has to prove, or the address, where the client asked for no name and the policy allows that."""

    sni: str


@dataclass(slots=True)
class NeedIssuers:
    """The server left out certificates of its chain. Fetch what issued ``certificate``, and what issued that; answer
    ``issuers_found()``."""

    certificate: x509.Certificate


@dataclass(slots=True)
class NeedRevocation:
    """The server is verified. Find out whether these certificates are revoked; answer each with
    ``revocation_found()``."""

    questions: tuple[Question, ...]


@dataclass(slots=True)
class NeedLeaf:
    """The server is verified. Mint a leaf or take it from the cache; answer ``leaf_ready()`` or ``leaf_failed()``."""

    request: LeafRequest
    key: LeafKey


@dataclass(slots=True)
class Established:
    """Both handshakes are done; plaintext may follow."""

    info: SessionInfo


@dataclass(slots=True)
class Plaintext:
    """Decrypted bytes. Nothing goes on by itself: answer, now or later, with ``forward()``, in whatever pieces."""

    direction: Direction
    data: bytes


@dataclass(slots=True)
class Eof:
    """No more plaintext this way. When all that may go on was forwarded, answer ``forward_eof()``.

    ``clean``: by close_notify; else the stream was cut and will be seen cut by the other side.
    """

    direction: Direction
    clean: bool


@dataclass(slots=True)
class SendClient:
    data: bytes


@dataclass(slots=True)
class SendUpstream:
    data: bytes


@dataclass(slots=True)
class CloseClient:
    """``last``: bytes to be sent before, in one packet with the FIN where they fit."""

    how: Close
    last: bytes = b""


@dataclass(slots=True)
class CloseUpstream:
    """As above. Also ends a connection attempt that is still under way."""

    how: Close
    last: bytes = b""


@dataclass(slots=True)
class Finished:
    """The last event. Release both sockets once what the Close events asked for is done.

    ``reason`` is a short stable token, ``detail`` a sentence for people.
    """

    status: Status
    reason: str
    detail: str
    info: SessionInfo


Event = (
    Hello
    | PassOn
    | Proven
    | ConnectUpstream
    | NeedIssuers
    | NeedRevocation
    | NeedLeaf
    | Established
    | Plaintext
    | Eof
    | SendClient
    | SendUpstream
    | CloseClient
    | CloseUpstream
    | Finished
)
