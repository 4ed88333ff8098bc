"""What the READMEs show works as printed: policies, maps, tests, and every command line."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from nfw import ca
from nfw.cli.app import call, cli
from nfw.policy.loader import load_policy
from nfw.testfile import load_tests
from tests.unit.awskit import NOW

ROOT = Path(__file__).parents[2]
GUIDES = ("README.md", "systemd/README.md", "vagrant/README.md", "rules/README.md", "monitoring/README.md")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(nfw [^`\n]+)`")


def blocks(guide: str, language: str) -> list[str]:
    return [text for kind, text in _BLOCK.findall((ROOT / guide).read_text()) if kind == language]


def yaml_with(key: str) -> str:
    (found,) = (text for text in blocks("README.md", "yaml") if re.search(rf"^{key}:", text, re.MULTILINE))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the examples name."""
    ca.create("Example egress CA", tmp_path, NOW)
    for name in ("www", "mail"):
        ca.create(name, tmp_path / name, NOW)
        (tmp_path / name / "ca.pem").rename(tmp_path / f"{name}.pem")
        (tmp_path / name / "ca.key").rename(tmp_path / f"{name}.key")
    (tmp_path / "egress.rules").write_text(
        'pass tls any any -> any any (ssl_state:client_hello; tls.sni; content:"debian.org"; endswith; sid:1200020;)\n'
    )
    (tmp_path / "partners.txt").write_text("192.0.2.0/24\n")
    (tmp_path / "malware.rules").write_text("drop ip 192.0.2.1 any -> any any (sid:1;)\n")
    return tmp_path


def test_the_policies_load(folder: Path) -> None:
    (folder / "egress.yaml").write_text(yaml_with("name"))
    policy = load_policy(folder / "egress.yaml", now=NOW.timestamp())
    assert (policy.name, len(policy.stateless.rules), len(policy.stateful.signatures)) == ("egress", 2, 1)
    (folder / "log.yaml").write_text(yaml_with("name") + yaml_with("log"))
    assert len(load_policy(folder / "log.yaml", now=NOW.timestamp()).log.sinks) == 4


def test_servers_of_ones_own_are_read(folder: Path) -> None:
    (folder / "full.yaml").write_text(yaml_with("name") + yaml_with("inbound"))
    (inbound,) = load_policy(folder / "full.yaml", now=NOW.timestamp()).inbound
    assert len(inbound.certificates) == 2


def test_the_map_file_goes_with_documents(folder: Path) -> None:
    (folder / "map.yaml").write_text(yaml_with("home_net"))
    (folder / "policy.json").write_text(
        '{"FirewallPolicy": {"StatelessDefaultActions": ["aws:pass"], "StatelessFragmentDefaultActions": ["aws:drop"]}}'
    )
    policy = load_policy(folder / "policy.json", map_file=folder / "map.yaml", now=NOW.timestamp())
    assert policy.variables.addresses["HOME_NET"] == ("10.20.0.0/16",)


def test_the_tests_pass_on_the_policy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "egress.yaml").write_text(yaml_with("name"))
    described, capture = yaml_with("tests").split("  - name: what came in on Monday")
    (folder / "tests.yaml").write_text(described)
    assert len(load_tests([str(folder / "tests.yaml")])[0].tests) == 1
    (folder / "all.yaml").write_text(described + "  - name: what came in on Monday" + capture)
    assert call(["policy", "test", str(folder / "all.yaml")]) == 1
    assert capsys.readouterr().err.count("monday.pcap does not exist") == 1  # and nothing else is wrong


def command_lines() -> list[tuple[str, str]]:
    found = []
    for guide in GUIDES:
        for language in ("", "sh"):
            for text in blocks(guide, language):
                found += [(guide, line) for line in text.splitlines()]
        found += [(guide, line) for line in _INLINE.findall((ROOT / guide).read_text())]
    lines = []
    for guide, line in found:
        for part in line.partition(" #")[0].split(";"):
            bare = part.strip().removeprefix("sudo ")
            if bare.startswith("nfw ") and "..." not in bare and "…" not in bare:
                lines.append((guide, bare))
    return lines


@pytest.mark.parametrize(("guide", "line"), command_lines())
def test_commands_are_spelled_as_the_program_takes_them(guide: str, line: str) -> None:
    """Names of commands and options, and how many arguments; nothing is run."""
    bare = re.sub(r"\[([A-Z]+)\]", "1", line.replace("create\\|import\\|show", "show"))
    bare = re.sub(r"\[(--[a-z-]+)\]", r"\1", re.sub(r"\[(--[a-z-]+ [A-Z]+)\]", r"\1", bare))
    words = shlex.split(bare.replace("\\|", "|").replace("aws|yaml", "aws").replace("bash|zsh|fish", "bash"))[1:]
    words = ["5" if word in ("SECONDS", "N") else word for word in words]
    command: click.Command = cli
    context = click.Context(cli, info_name="nfw")
    while isinstance(command, click.Group) and words:
        name = words.pop(0)
        child = command.get_command(context, name) if not name.startswith("-") else None
        if child is None and "list" in getattr(command, "commands", {}):  # nfw flows --app tls
            words.insert(0, name)
            child = command.get_command(context, "list")
        if name.startswith("-") and child is None:
            return  # an option of the group, such as --help
        assert child is not None, f"{guide}: {line}"
        command, context = child, click.Context(child, parent=context, info_name=name)
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if word.startswith("-") and word != "-":
            assert word.partition("=")[0] in known, f"{guide}: {line}: {word}"
    arguments = [parameter for parameter in command.params if isinstance(parameter, click.Argument)]
    assert arguments or all(word.startswith("-") or words[at - 1].startswith("-") for at, word in enumerate(words)), (
        line
    )


def test_there_are_command_lines() -> None:
    assert len(command_lines()) > 60
