"""Which first bytes wait while nobody knows what they begin, and that none leave which a rule would have dropped."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

import pytest

from engines.stateful.app.detect import Detector
from engines.stateful.holding import Holding
from engines.stateful.inspector import FlowFacts, Inspector, Segment
from engines.stateful.limits import StatefulLimits
from engines.stateful.parser import Variables, parse_rules
from engines.stateful.ruleset import RuleSet, compile_ruleset
from engines.verdict import Direction, Verdict

UP, DOWN = Direction.TO_SERVER, Direction.TO_CLIENT
ANY = "any any -> any any"
HTTP = f'drop http {ANY} (http.host; content:"evil"; sid:1;)'
TLS = f'drop tls {ANY} (tls.sni; content:"evil"; sid:1;)'
ANSWER = f'drop http {ANY} (http.stat_code; content:"404"; sid:1;)'
NAME = f"drop tcp {ANY} (app-layer-protocol:ssh; sid:1;)"
PASS = f'pass http {ANY} (http.host; content:"good"; sid:1;)'


def compiled(text: str, defaults: Sequence[str] = ()) -> RuleSet:
    parsed = parse_rules(text, "test.rules", Variables())
    assert not parsed.errors, [str(error) for error in parsed.errors]
    return compile_ruleset(parsed.signatures, "strict", defaults, StatefulLimits())


def begun(rules: RuleSet, decrypted: bool = False) -> Inspector:
    facts = FlowFacts(1, 6, b"\x0a\x00\x00\x01", b"\xc6\x33\x64\x07", 40000, 80)
    inspector = Inspector(rules, facts, 0.0, decrypted)
    for direction in (UP, DOWN, UP):
        inspector.inspect(Segment(direction, False, b"", b"", None, 0.0))
    return inspector


def say(inspector: Inspector, direction: Direction, data: bytes) -> bool:
    """Whether the flow goes on."""
    outcome = inspector.inspect(Segment(direction, True, data, data, None, 0.0))
    return outcome.decision.verdict is Verdict.ACCEPT


@pytest.mark.parametrize("decrypted", [False, True])
@pytest.mark.parametrize(
    ("rules", "direction", "start", "waits"),
    [
        # What may begin a protocol that a rule could drop waits.
        (HTTP, UP, b"G", True),
        (HTTP, UP, b"GET", True),
        (HTTP, UP, b"hello", True),  # may be a method of somebody's own
        (HTTP, UP, b"\r\n", True),
        (HTTP, UP, b"PRI * HT", True),  # http rules are about HTTP/2, too
        (TLS, UP, b"\x16", True),
        (TLS, UP, b"\x16\x03", True),
        (TLS, UP, b"\x80\x2e\x01", True),
        (NAME, UP, b"SSH", True),
        (NAME, DOWN, b"S", True),
        (ANSWER, DOWN, b"HTT", True),
        (f'drop dns {ANY} (dns.query; content:"evil"; sid:1;)', UP, b"PRI * HT", True),  # DNS over HTTPS
        (f'drop tcp {ANY} (http.uri; content:"evil"; sid:1;)', UP, b"GE", True),
        (f"reject http {ANY} (sid:1;)", DOWN, b"H", True),
        # What cannot goes on at once, though detection goes on.
        (HTTP, UP, b"\0", False),
        (HTTP, UP, b"\0\0\0\1x", False),
        (HTTP, UP, b"\x16", False),
        (HTTP, UP, b"\xff", False),
        (HTTP, UP, b"a:b", False),
        (TLS, UP, b"GET", False),
        (TLS, UP, b"hello", False),
        (TLS, UP, b"\x16\x02", False),
        (TLS, UP, b"\x80\x2e\x02", False),
        (NAME, UP, b"GET", False),
        (NAME, UP, b"SX", False),
        # A server's greeting waits for the rules of what it may begin, whichever side they look at.
        (HTTP, DOWN, b"2", False),
        (HTTP, DOWN, b"H", True),
        (TLS, DOWN, b"*", False),
        (ANSWER, DOWN, b"2", False),
        (ANSWER, DOWN, b"\x16", False),
        (ANSWER, UP, b"GET", True),
        # Rules that cannot drop this flow.
        ("", UP, b"G", False),
        (HTTP.replace("drop", "alert"), UP, b"G", False),
        (PASS, UP, b"G", False),
        ('drop http any any -> any 81 (http.host; content:"evil"; sid:1;)', UP, b"G", False),
        (f'drop udp {ANY} (app-layer-protocol:dns; content:"evil"; sid:1;)', UP, b"\0", False),
        # What a flow is not is known when detection has come to an end.
        (f"drop tcp {ANY} (app-layer-protocol:!http; sid:1;)", UP, b"\0", True),
        (f"drop tcp {ANY} (app-layer-protocol:failed; sid:1;)", UP, b"\x16", True),
        (f"drop tcp {ANY} (app-layer-protocol:http,either; sid:1;)", UP, b"\0", True),
        # The client of a protocol that only its server gives away.
        (f"drop imap {ANY} (sid:1;)", UP, b"a", True),
        # A rule that only remembers counts where a rule that drops may ask for it.
        (f"{TLS}\nalert http {ANY} (flowbits:set,b; sid:2;)", UP, b"G", False),
        (
            f"{TLS}\nalert http {ANY} (flowbits:set,b; sid:2;)\ndrop tcp {ANY} (flowbits:isset,b; sid:3;)",
            UP,
            b"G",
            True,
        ),
    ],
)
def test_what_first_bytes_wait_for(
    rules: str, direction: Direction, start: bytes, waits: bool, decrypted: bool
) -> None:
    inspector = begun(compiled(rules), decrypted)
    assert say(inspector, direction, start)
    held = [0, 0]
    held[direction] = len(start) if waits else 0
    assert list(inspector.held) == held


@pytest.mark.parametrize(
    ("name", "direction", "decrypted", "waits"),
    [
        ("drop_established_app_layer", UP, False, True),
        ("drop_established_app_layer", DOWN, False, True),
        ("drop_established_app_layer_to_server", UP, False, True),
        ("drop_established_app_layer_to_server", DOWN, False, True),
        ("drop_established", UP, True, True),
        ("drop_established", DOWN, True, True),
        ("drop_established", DOWN, False, True),
        ("alert_established_app_layer", UP, False, False),
    ],
)
def test_default_actions_wait_for_every_protocol(name: str, direction: Direction, decrypted: bool, waits: bool) -> None:
    inspector = begun(compiled(PASS, [name]), decrypted)
    assert say(inspector, direction, b"\0")
    assert inspector.held[direction] == int(waits)


def test_what_was_let_go_is_judged_with_the_rest() -> None:
    """The other side tells what it is after all."""
    inspector = begun(compiled(f"drop ssh {ANY} (sid:1;)"))
    assert say(inspector, UP, b"\0\1")
    assert inspector.held[UP] == 0
    assert not say(inspector, DOWN, b"SSH-2.0-x\r\n")


# -- against the judgement of the whole ------------------------------------------------------------------------------


def hello(name: bytes) -> bytes:
    """A ClientHello with a server name."""
    sni = struct.pack("!HHHBH", 0, len(name) + 5, len(name) + 3, 0, len(name)) + name
    body = b"\3\3" + bytes(32) + b"\0" + b"\0\2\x13\1" + b"\1\0" + struct.pack("!H", len(sni)) + sni
    message = b"\1" + len(body).to_bytes(3, "big") + body
    return b"\x16\3\1" + struct.pack("!H", len(message)) + message


CLIENTS = [
    b"GET /evil HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    b"GET /fine HTTP/1.1\r\nHost: good.example\r\n\r\n",
    b"BREW /evil HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    b"\r\nGET /evil HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    hello(b"evil.example"),
    hello(b"good.example"),
    b"\x80\x2e\1\3\1" + bytes(45),
    b"SSH-2.0-evil\r\n",
    b"EHLO evil\r\n",
    b"USER evil\r\n",
    b"CAPA\r\n",
    b"\0\0\0\x08\4\xd2\x16\x2f",
    b"\0\x1d\x12\x34\1\0\0\1\0\0\0\0\0\0\4evil\7example\0\0\1\0\1",
    b"\5\0\x0b\3\x10\0\0\0\x48\0\0\0\1\0\0\0" + bytes(56),
    b"\x10\x10\0\4MQTT\4\2\0\x3c\0\4evil",
    b"hello evil\n",
    b"\xff\xfb\1",
    b"\0" * 40,
    b"\xfe evil",
    b"",
]
SERVERS = [
    b"HTTP/1.1 404 evil\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 good\r\nContent-Length: 0\r\n\r\n",
    b"SSH-2.0-evil\r\n",
    b"220 evil ESMTP ready\r\n",
    b"220 evil FTP server\r\n",
    b"+OK evil\r\n",
    b"* OK evil\r\n",
    b"RFB 003.008\n",
    b"\x15\3\3\0\2\2\x28",
    b"\0\0\6\4\0\0\0\0\0\0\4\0\0\xff\xff",
    b"\x20\2\0\0",
    b"?",
    b"",
]
RULES = [
    'http ANY (http.host; content:"evil";',
    'http ANY (http.uri; content:"evil";',
    'http ANY (http.stat_code; content:"404";',
    'http1 ANY (http.method; content:"BREW";',
    "http2 ANY (",
    "http ANY (flow:to_client;",
    "http ANY (",
    'tls ANY (tls.sni; content:"evil";',
    "tls ANY (",
    'ssh ANY (ssh.software; content:"evil";',
    "ssh ANY (flow:to_server;",
    "smtp ANY (",
    "ftp ANY (",
    "pop3 ANY (",
    "imap ANY (",
    "rfb ANY (",
    "mqtt ANY (",
    "pgsql ANY (",
    "telnet ANY (",
    'dns ANY (dns.query; content:"evil";',
    "dcerpc ANY (",
    "tcp ANY (app-layer-protocol:ssh;",
    "tcp ANY (app-layer-protocol:!http;",
    "tcp ANY (app-layer-protocol:!tls; flow:to_server;",
    "tcp ANY (app-layer-protocol:failed;",
    "tcp ANY (app-layer-protocol:smtp,to_client;",
    "tcp ANY (app-layer-protocol:http,either;",
    'tcp ANY (http.uri; content:"evil";',
    "http any any -> any 81 (",
    "http any any -> any 80 (",
    "tls any 40000 -> any any (",
    "ssh any 80 -> any any (",
]
DEFAULTS: list[list[str]] = [
    [],
    [],
    [],
    ["drop_established_app_layer"],
    ["drop_established_app_layer_to_server"],
    ["drop_established"],
]


def pieces(rng: random.Random, data: bytes) -> list[bytes]:
    if rng.random() < 0.3:
        return [data[at : at + 1] for at in range(len(data))]
    cuts = sorted(rng.sample(range(1, len(data)), min(len(data) - 1, rng.randint(0, 4))))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


class Patient(Holding):
    """Lets nothing out before detection has come to an end, whatever the rules are."""

    def _at_stake(self, detector: Detector, side: Direction) -> bool:
        return not detector.final_for(side)


@pytest.mark.parametrize("decrypted", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_no_byte_leaves_that_the_whole_would_not_let_go(
    seed: int, decrypted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each side says first is judged in one piece by one inspector, in random pieces by a second and by a third
    that waits for the end of detection. All say the same in the end, and of what the first drops the second has let
    nothing out, or what the third has, too: empty lines before a request, lines of a dialogue."""
    rng = random.Random(seed)
    dropped = sooner = 0
    for _ in range(16):
        text = "\n".join(
            f"{rng.choice(['drop', 'drop', 'reject', 'alert', 'pass'])} {rule.replace('ANY', ANY)} sid:{sid};)"
            for sid, rule in enumerate(rng.sample(RULES, rng.randint(1, 4)), 1)
        )
        rules = compiled(text, rng.choice(DEFAULTS))
        for _ in range(8):
            turns = [(UP, rng.choice(CLIENTS)), (DOWN, rng.choice(SERVERS))]
            if rng.random() < 0.4:
                turns.reverse()
            whole, cut = begun(rules, decrypted), begun(rules, decrypted)
            with monkeypatch.context() as patched:
                patched.setattr("engines.stateful.inspector.Holding", Patient)
                patient = begun(rules, decrypted)
            for direction, data in turns:
                if not data:
                    continue
                goes_on = say(whole, direction, data)
                left, sizes = [0, 0], 0
                for piece in pieces(rng, data):
                    sizes += len(piece)
                    went = [say(one, direction, piece) for one in (cut, patient)]
                    assert went[0] == went[1], (text, turns, direction)
                    if not went[0]:
                        break
                    for number, one in enumerate((cut, patient)):
                        left[number] = max(left[number], sizes - one.held[direction])
                    sooner += cut.held[direction] < patient.held[direction]
                if not goes_on:
                    dropped += 1
                    assert left[0] <= left[1], (text, rules.defaults, turns, direction, left)
                    break
                if cut.decision is not None:
                    break
    assert dropped > 5
    assert sooner > 5
