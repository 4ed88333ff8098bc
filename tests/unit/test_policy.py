"""The policy loader: what it accepts, what it says about what it refuses, and that it does nothing else."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import os
import random
import shutil
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from nfw import ca
from nfw.policy import compile as policy_compile
from nfw.policy import dump_policy, load_policy, yamlpos
from nfw.policy.errors import MAX_PROBLEMS, PolicyErrors, Problems, suggest
from nfw.policy.loader import load_policy_text
from nfw.policy.model import Policy, RuleSource
from nfw.policy.values import parse_address_item, parse_network, parse_port_item, parse_port_range, parse_size
from nfw.policy.variables import positive_networks
from nfw.policy.yamlpos import Mapping, Scalar, Sequence, parse_yaml

GOLDEN = Path(__file__).parent.parent / "golden" / "policy"
NOW = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)
ACCEPTED = sorted(path.stem for path in GOLDEN.glob("*.ok"))
REFUSED = sorted(path.stem for path in GOLDEN.glob("*.err"))


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden files and the certificates they name, in a directory of their own."""
    directory = tmp_path_factory.mktemp("policies")
    shutil.copytree(GOLDEN, directory, dirs_exist_ok=True)
    ca.create("Test CA", directory, NOW)
    ca.create("Other CA", directory / "other", NOW)
    ca.create("Expired CA", directory / "expired", NOW - datetime.timedelta(days=20), days=10)
    shutil.copy(directory / "other" / "ca.pem", directory / "roots.pem")
    _write_leaf(directory)
    return directory


def _write_leaf(directory: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "leaf")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - datetime.timedelta(days=1))
        .not_valid_after(NOW + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    (directory / "leaf.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (directory / "leaf.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (directory / "leaf.key").chmod(0o600)


def read(text: str | bytes, path: Path = Path("policy.yaml")) -> Policy:
    return load_policy_text(text.encode() if isinstance(text, str) else text, path, now=NOW.timestamp())


def refusal(text: str | bytes, path: Path = Path("policy.yaml")) -> list[str]:
    """The messages a text is refused with, without the file's name."""
    with pytest.raises(PolicyErrors) as caught:
        read(text, path)
    return [str(error).removeprefix(f"{path}:").strip() for error in caught.value]


def without_places(policy: Policy) -> Policy:
    rules = tuple(dataclasses.replace(rule, file="", line=0) for rule in policy.stateless.rules)
    sources = tuple(
        dataclasses.replace(source, file="") if source.inline else source for source in policy.stateful.sources
    )
    return dataclasses.replace(
        policy,
        stateless=dataclasses.replace(policy.stateless, rules=rules),
        stateful=dataclasses.replace(policy.stateful, sources=sources),
    )


# -- golden files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name: str, policies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NAME.yaml loads, prints as NAME.ok, and what was printed loads to an equal policy and prints the same again."""
    monkeypatch.chdir(policies)
    policy = load_policy(f"{name}.yaml", check_key=True, now=NOW.timestamp())
    assert dump_policy(policy) == (GOLDEN / f"{name}.ok").read_text()
    assert policy.warnings == ()
    again = read(dump_policy(policy), Path("again.yaml"))
    assert without_places(again) == without_places(policy)
    assert dump_policy(again) == dump_policy(policy)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, policies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NAME.yaml is refused with exactly the lines of NAME.err."""
    monkeypatch.chdir(policies)
    with pytest.raises(PolicyErrors) as caught:
        load_policy(f"{name}.yaml", check_key=True, now=NOW.timestamp())
    assert str(caught.value) + "\n" == (GOLDEN / f"{name}.err").read_text()


def test_every_golden_policy_is_expected_one_way() -> None:
    assert sorted(path.stem for path in GOLDEN.glob("*.yaml")) == sorted(ACCEPTED + REFUSED)


# -- files ---------------------------------------------------------------------------------------------------------


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PolicyErrors, match=r"nope\.yaml: policy file does not exist$"):
        load_policy(tmp_path / "nope.yaml")
    with pytest.raises(PolicyErrors, match=r"does not exist \(neither does its directory"):
        load_policy(tmp_path / "a" / "nope.yaml")


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(PolicyErrors, match="folder cannot be read: Permission denied"):
        load_policy(tmp_path)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            ["one"],
            "one: no document of AWS Network Firewall in this folder; one/own.yaml is a policy of nfw's own: name",
        ),
        (["two"], "folder; two/a.yaml, two/b.yaml are policies of nfw's own, loaded one at a time: name one"),
        (["none"], "none: no document of AWS Network Firewall in this folder; expected a key such as RuleGroup, "),
        (["lists"], "this is what list-rule-groups prints, names alone; expected what describe-rule-group for each"),
        (["two/a.yaml", "two/b.yaml"], "among these 2 files; two/a.yaml, two/b.yaml are policies of nfw's own"),
        (["many"], "many/4.yaml ... are policies"),
    ],
)
def test_folders_and_files_without_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], told: str
) -> None:
    """What is there is said, and what to give instead."""
    files = {"one/own.yaml": "name: own", "two/a.yaml": "name: a", "two/b.yaml": "name: b", "none/x.yaml": "key: 1"}
    files |= {f"many/{number}.yaml": "name: n" for number in range(7)} | {"lists/l.json": '{"RuleGroups": []}'}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PolicyErrors) as caught:
        load_policy(*given)
    assert told in str(caught.value)


def test_directory_and_pipe(tmp_path: Path) -> None:
    """Neither hangs."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PolicyErrors, match="no document in this folder; expected files named"):
        load_policy(tmp_path)
    with pytest.raises(PolicyErrors, match="is not a regular file"):
        load_policy(tmp_path / "pipe")


def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "secret.yaml"
    path.write_text("name: a")
    path.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(PolicyErrors, match="permission denied"):
            load_policy(path)
    finally:
        if root:
            os.seteuid(0)


def test_too_large_file(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:
        file.truncate(yamlpos.MAX_BYTES + 1)
    with pytest.raises(PolicyErrors, match="is larger than"):
        load_policy(path)


def test_relative_paths_start_at_the_policy(policies: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    policy = load_policy(policies / "issue.yaml", now=NOW.timestamp())
    assert policy.tls is not None
    assert policy.tls.ca.certificate == policies / "ca.pem"
    assert [source.file for source in policy.stateful.sources] == [str(policies / "egress.rules")]


def test_public_bytes_are_held(policies: Path) -> None:
    """Every process works on what was checked; the private key is only named."""
    policy = load_policy(policies / "everything.yaml", now=NOW.timestamp())
    assert policy.tls is not None
    assert policy.tls.ca.certificate_pem == (policies / "ca.pem").read_bytes()
    assert policy.tls.trust.pem == (policies / "roots.pem").read_bytes()
    assert b"PRIVATE" not in repr(policy).encode()


def test_key_is_not_read_unless_asked(policies: Path, tmp_path: Path) -> None:
    shutil.copytree(policies, tmp_path, dirs_exist_ok=True)
    (tmp_path / "ca.key").unlink()
    load_policy(tmp_path / "issue.yaml", now=NOW.timestamp())
    with pytest.raises(PolicyErrors, match=r"CA key .* does not exist"):
        load_policy(tmp_path / "issue.yaml", check_key=True, now=NOW.timestamp())


def test_key_others_can_read_is_a_warning(policies: Path, tmp_path: Path) -> None:
    shutil.copytree(policies, tmp_path, dirs_exist_ok=True)
    (tmp_path / "ca.key").chmod(0o640)
    policy = load_policy(tmp_path / "issue.yaml", check_key=True, now=NOW.timestamp())
    assert [warning.message for warning in policy.warnings] == [
        f"CA key {tmp_path / 'ca.key'} has mode 0640, so others can read it; expected 0600"
    ]


# -- YAML ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-7", -7),
        ("0x1f", 31),
        ("0o17", 15),
        ("010", 10),
        ("true", True),
        ("False", False),
        ("~", None),
        ("1.5", 1.5),
        ("yes", "yes"),
        ("6000-6063", "6000-6063"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("12:30", "12:30"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("!!str 1", "1"),
        ("9" * 40, "9" * 40),
    ],
)
def test_scalars(text: str, value: object) -> None:
    node = parse_yaml(text.encode(), Problems("f"))
    assert isinstance(node, Scalar)
    assert node.value == value
    assert type(node.value) is type(value)


def test_places_count_from_one() -> None:
    node = parse_yaml(b"\xef\xbb\xbfa: [1,\n  {b: c}]\n", Problems("f"))
    assert isinstance(node, Mapping)
    ((key, value),) = node.entries
    assert (key.line, key.column) == (1, 1)
    assert isinstance(value, Sequence)
    assert (value.line, value.column) == (1, 4)
    assert [(item.line, item.column) for item in value.items] == [(1, 5), (2, 3)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested more than 32 levels deep"),
        ("- " * 100, "nested more than 32 levels deep"),
        ("a: &a [" + "x," * 50 + "]\n" + "".join(f"b{i}: &b{i} [{'*a,' * 50}]\n" for i in range(3)), ""),
        (
            "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
            + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)),
            "more than 2000000 values",
        ),
    ],
)
def test_bounds(text: str, message: str) -> None:
    """Nothing in a small file makes a large tree, or a deep one."""
    problems = Problems("f")
    node = parse_yaml(text.encode(), problems)
    if message:
        assert node is None
        assert message in problems.errors[0].message
    else:
        assert node is not None
        assert not problems.errors


def test_number_of_errors_is_bounded() -> None:
    count = MAX_PROBLEMS + 500
    lines = refusal("".join(f"unknown{i}: 1\n" for i in range(count)))
    assert len(lines) == MAX_PROBLEMS + 1
    assert lines[-1] == "and 500 more errors"


# -- values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("192.0.2.1", "192.0.2.1/32"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("2001:DB8:0::1", "2001:db8::1/128"),
        ("0.0.0.0/0", "0.0.0.0/0"),
    ],
)
def test_networks(text: str, network: str) -> None:
    assert str(parse_network(text)) == network


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("10.1.2.3/8", "the network is 10.0.0.0/8, the single address is 10.1.2.3/32"),
        ("2001:db8::1/32", "the network is 2001:db8::/32"),
        ("10.0.0.0/255.255.0.0", "did you mean 10.0.0.0/16?"),
        ("10.0.0.0/33", "expected a prefix length from 0 to 32"),
        ("::/129", "expected a prefix length from 0 to 128"),
        ("10.0.0.0/", "expected a prefix length"),
        ("10.0.0.256", "each part of an IPv4 address is 0 to 255"),
        ("10.01.0.0", "must not begin with 0"),
        ("10.0.0", "expected one such as"),
        ("", "expected one such as"),
        ("fe80::1%eth0", "has a zone"),
    ],
)
def test_bad_networks(text: str, hint: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_network(text)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("value", "ports"),
    [(443, (443, 443)), ("6000-6063", (6000, 6063)), ("1:2", (1, 2)), ("0 - 65535", (0, 65535)), ("7", (7, 7))],
)
def test_ports(value: object, ports: tuple[int, int]) -> None:
    assert parse_port_range(value) == ports


@pytest.mark.parametrize("value", [-1, 65536, "9-8", "1-", "-", "", "http", True, None, 1.5, "1-2-3", "٤"])
def test_bad_ports(value: object) -> None:
    with pytest.raises(ValueError):
        parse_port_range(value)


@pytest.mark.parametrize(
    ("value", "size"), [(5, 5), ("5", 5), ("64kb", 65536), ("1 MiB", 1 << 20), ("2G", 2 << 30), ("0b", 0)]
)
def test_sizes(value: object, size: int) -> None:
    assert parse_size(value) == size


@pytest.mark.parametrize("value", [-1, "1tb", "", "kb", 1.5, None, True, "1 000"])
def test_bad_sizes(value: object) -> None:
    with pytest.raises(ValueError):
        parse_size(value)


def test_variable_items() -> None:
    assert parse_address_item("!10.0.0.0/8") == "!10.0.0.0/8"
    assert parse_address_item("192.0.2.1/32") == "192.0.2.1"
    assert parse_address_item("ANY") == "any"
    assert parse_address_item("192.0.2.1 - 192.0.2.9") == "192.0.2.1-192.0.2.9"
    assert parse_port_item(80) == "80"
    assert parse_port_item("!1024-") == "!1024:65535"
    assert parse_port_item(":1024") == "0:1024"
    with pytest.raises(ValueError, match="runs upwards"):
        parse_address_item("192.0.2.9-192.0.2.1")


def test_external_net_is_the_negation_of_home_net() -> None:
    variables = read("variables: {HOME_NET: [192.0.2.0/24]}").variables
    assert variables.addresses == {"HOME_NET": ("192.0.2.0/24",), "EXTERNAL_NET": ("!$HOME_NET",)}
    assert [str(network) for network in positive_networks("HOME_NET", variables)] == ["192.0.2.0/24"]
    with pytest.raises(ValueError, match="negation"):
        positive_networks("EXTERNAL_NET", variables)


def test_suggest() -> None:
    assert suggest("Protocol", ["protocols", "sources"]) == 'did you mean "protocols"?'
    assert suggest("zzz", ["a", "b"]) == "known: a, b"


# -- rules in the policy ---------------------------------------------------------------------------------------------


def test_inline_rules_keep_their_place() -> None:
    """The parser sees every rule at the line and column it has in the policy."""
    text = "name: a\nstateful:\n  rules: |\n    # comment\n    pass tcp any any -> any any (sid:1;)\n"
    (source,) = read(text).stateful.sources
    assert (source.line, source.column) == (4, 5)
    lines = source.positioned_text().split("\n")
    for number, line in enumerate(text.split("\n"), 1):
        if number >= 4:
            assert lines[number - 1] == line
    assert read(text).stateful.signatures[0].ref.line == 5


def test_positioned_text_of_a_file_is_the_text() -> None:
    assert RuleSource("f", "a\n\nb").positioned_text() == "a\n\nb"


def test_rules_as_a_list() -> None:
    rules = ["pass tcp any any -> any any (sid:1;)", "'drop udp any any -> any any (sid:2;)'"]
    text = "stateful:\n  rules:\n" + "".join(f"    - {rule}\n" for rule in rules)
    assert [signature.ref.line for signature in read(text).stateful.signatures] == [3, 4]


def test_duplicate_sid_names_the_other_place(tmp_path: Path) -> None:
    (tmp_path / "a.rules").write_text("pass tcp any any -> any any (sid:1;)\n")
    (tmp_path / "b.rules").write_text("\npass tcp any any -> any any (sid:1;)\n")
    lines = refusal("stateful: {rule_files: [a.rules, b.rules]}", tmp_path / "policy.yaml")
    assert len(lines) == 1
    assert lines[0].startswith(f"{tmp_path / 'b.rules'}:2")
    assert f"{tmp_path / 'a.rules'}:1" in lines[0]


# -- the whole -------------------------------------------------------------------------------------------------------


def test_compile(policies: Path) -> None:
    policy = load_policy(policies / "issue.yaml", now=NOW.timestamp())
    compiled = policy_compile.compile_policy(policy)
    assert compiled.policy is policy
    assert compiled.scopes is not None
    assert compiled.timeouts.tcp_idle == 350
    assert compiled.limits.stream_depth == 1 << 20


def test_mangled_policies_are_refused_in_words(policies: Path) -> None:
    """Parse or refuse with messages, never raise anything else: cut, doubled, swapped and garbled golden files."""
    rng = random.Random(7)
    texts = [path.read_bytes() for path in sorted(policies.glob("*.yaml"))]
    pieces = [
        b"[",
        b"]",
        b"{",
        b"}",
        b": ",
        b"- ",
        b"&a ",
        b"*a",
        b"!",
        b"|",
        b"\n",
        b"\t",
        b"\x00",
        b"\xff",
        b"'",
        b'"',
    ]
    for _ in range(1500):
        data = bytearray(rng.choice(texts))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data) + 1)
            match rng.randrange(4):
                case 0:
                    del data[at:]
                case 1:
                    data[at:at] = rng.choice(pieces)
                case 2:
                    other = rng.choice(texts)
                    data[at:at] = other[: rng.randrange(len(other) + 1)]
                case 3:
                    del data[at : at + rng.randint(1, 8)]
        with contextlib.suppress(PolicyErrors):
            read(bytes(data), policies / "mangled.yaml")
            continue
        with pytest.raises(PolicyErrors) as caught:
            read(bytes(data), policies / "mangled.yaml")
        assert caught.value.errors
        assert all(error.message and "\n" not in error.message for error in caught.value)


def test_a_threshold_file_changes_the_rules_it_names(tmp_path: Path) -> None:
    (tmp_path / "t.config").write_text("suppress gen_id 1, sig_id 1\nsuppress gen_id 1, sig_id 7\n")
    rules = "[alert tcp any any -> any any (sid:1;), alert tcp any any -> any any (sid:2;)]"
    policy = read(f"stateful: {{threshold_file: t.config, rules: {rules}}}", tmp_path / "p.yaml")
    assert [len(signature.suppressions) for signature in policy.stateful.signatures] == [1, 0]
    assert [str(warning) for warning in policy.warnings] == [
        f"{tmp_path / 't.config'}:2: there is no rule with gid 1 and sid 7"
    ]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("nope.config", "threshold_file: nope.config does not exist"),
        ("[a]", "threshold_file: expected a file name such as threshold.config, got a list"),
        (".", "threshold_file: . is a directory; expected a file"),
    ],
)
def test_a_threshold_file_that_is_none(value: str, says: str) -> None:
    assert refusal(f"stateful: {{threshold_file: {value}}}") == [f"1:28: {says}"]


def test_classes_and_references_of_a_policy(tmp_path: Path) -> None:
    (tmp_path / "c.config").write_text("config classification: ours,Our own,1\n")
    (tmp_path / "r.config").write_text("config reference: wiki https://wiki.example/\n")
    rules = "['alert tcp any any -> any any (classtype:ours; reference:wiki,x; sid:1;)']"
    text = f"stateful: {{classification_file: c.config, reference_file: r.config, rules: {rules}}}"
    policy = read(text, tmp_path / "p.yaml")
    (signature,) = policy.stateful.signatures
    assert (signature.priority, signature.category, signature.references) == (1, "Our own", ("https://wiki.example/x",))
    assert policy.warnings == ()
    (tmp_path / "c.config").write_text("config classification: ours\n")
    (tmp_path / "r.config").write_text("\nnonsense\n")
    with pytest.raises(PolicyErrors) as caught:
        read(text, tmp_path / "p.yaml")
    assert [str(error) for error in caught.value] == [
        f"{tmp_path}/c.config:1:1: expected config classification: name,description,priority",
        f"{tmp_path}/r.config:2:1: expected config reference: system URL",
    ]
