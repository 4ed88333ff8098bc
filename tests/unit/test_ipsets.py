"""IP sets in files that change while their policy runs: what is read, what the rules' address fields become."""

from __future__ import annotations

import ipaddress
import os
import time
from pathlib import Path

import pytest

from engines.stateful.header import AddressTest
from nfw.ipsets import PIECE_BYTES, SetTaker, SetWatch, pieces
from nfw.policy import dump_policy
from nfw.policy.aws.write import write_template
from nfw.policy.compile import compile_policy
from nfw.policy.errors import PolicyErrors
from nfw.policy.loader import load_policy

POLICY = """\
name: sets
stateful:
  order: action
  refresh: 5
  groups:
    - name: one
      references: {PARTNERS: {file: partners.txt}, OTHERS: {arn: "arn:x", networks: [203.0.113.0/24]}}
      variables: {WEB: [10.1.0.0/16, "@PARTNERS"], PLAIN: [10.0.0.0/8]}
      rules: |
        drop ip $PLAIN any -> @PARTNERS any (sid:1;)
        drop ip @OTHERS any -> $WEB any (sid:2;)
        pass ipv4 any any -> [10.9.0.0/16,!@PARTNERS] any (sid:3;)
    - name: two
      references: {PARTNERS: {file: others.json}}
      rules: 'drop ip any any -> @PARTNERS any (sid:1;)'
"""


def matches(test: AddressTest, address: str) -> bool:
    return test(ipaddress.ip_address(address).packed)


class Sets:
    """A policy's fields as the leader has them and as a worker has, forked before anything changed."""

    def __init__(self, folder: Path) -> None:
        self.partners, self.others = folder / "partners.txt", folder / "others.json"
        self.partners.write_text("198.51.100.0/24\n")
        self.others.write_text('{"Entries": [{"Cidr": "192.0.2.0/24"}]}')
        (folder / "policy.yaml").write_text(POLICY)
        self.policy = load_policy(folder / "policy.yaml")
        self.leaders = compile_policy(self.policy).changing
        self.workers = compile_policy(self.policy).changing
        self.told: list[str] = []
        self.watch = SetWatch(self.leaders, 5.0, self.told.append, 0.0)
        self.taker = SetTaker(self.workers)
        self.look()

    def look(self) -> list[str]:
        """One look at files that were written a while ago: what was to be read."""
        paths = self.watch.changed(0.0, time.time() + 60.0)
        if paths:
            for piece in pieces(self.watch.take(self.watch.read(paths), 1000.0)):
                assert self.taker.take(piece) is ("apply" in piece)
        return sorted(Path(path).name for path in paths)

    def verdicts(self, address: str) -> dict[str, bool]:
        """By expression; of the second group with a "2" behind it."""
        found: dict[str, bool] = {}
        for leader, worker in zip(self.leaders, self.workers, strict=True):
            assert matches(leader, address) is matches(worker, address)
            found[leader.text + ("2" if leader.text in found else "")] = matches(worker, address)
        return found


def test_only_what_may_change_is_watched(tmp_path: Path) -> None:
    sets = Sets(tmp_path)
    assert sorted(test.text for test in sets.leaders) == ["$WEB", "@PARTNERS", "@PARTNERS", "[10.9.0.0/16,!@PARTNERS]"]
    assert sets.policy.stateful.refresh == 5
    assert (sets.told, sets.look()) == ([], [])


def test_a_file_stays_one_when_its_policy_is_converted(tmp_path: Path) -> None:
    policy = Sets(tmp_path).policy
    (tmp_path / "again.yaml").write_text(dump_policy(policy))
    (tmp_path / "again.template").write_text(write_template(policy))
    for name in ("again.yaml", "again.template"):
        found = load_policy(tmp_path / name)
        assert found.stateful.refresh == 5
        for group, former in zip(found.stateful.groups, policy.stateful.groups, strict=True):
            assert group.references == former.references
        files = [group.references["PARTNERS"].file for group in found.stateful.groups]
        assert files == [tmp_path / "partners.txt", tmp_path / "others.json"]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("{file: absent.txt}", "absent.txt does not exist"),
        ("{file: policy.yaml, networks: [10.0.0.0/8]}", "expected either networks or a file that holds them, not both"),
        ("{file: policy.yaml}", "policy.yaml:1:1: "),
    ],
)
def test_wrong_files(tmp_path: Path, reference: str, message: str) -> None:
    group = f"{{name: g, references: {{A: {reference}}}, rules: 'drop ip @A any -> any any (sid:1;)'}}"
    (tmp_path / "policy.yaml").write_text(f"name: wrong\nstateful: {{groups: [{group}]}}\n")
    with pytest.raises(PolicyErrors) as caught:
        load_policy(tmp_path / "policy.yaml")
    told = [str(error) for error in caught.value.errors]
    assert any(message in text for text in told), told
    assert not any("address:" in text for text in told), told  # the rule that names the set is not wrong by that


def test_a_changed_file_is_the_content_from_then_on(tmp_path: Path) -> None:
    sets = Sets(tmp_path)
    sets.partners.write_text("10.9.1.0/24  # new\n2001:db8::/32\n")
    assert not sets.verdicts("10.9.1.1")["@PARTNERS"]
    assert sets.look() == ["partners.txt"]
    assert sets.told == [f"IP set {sets.partners} was read again: 2 entries, before 1"]
    new = {"@PARTNERS": True, "$WEB": True, "[10.9.0.0/16,!@PARTNERS]": False, "@PARTNERS2": False}
    assert sets.verdicts("10.9.1.1") == new
    assert sets.verdicts("2001:db8::1") == new
    assert sets.verdicts("10.9.2.1")["[10.9.0.0/16,!@PARTNERS]"]
    assert sets.verdicts("10.1.0.1")["$WEB"]
    assert not sets.verdicts("198.51.100.1")["$WEB"]
    (status,) = (one for one in sets.watch.status() if one["file"] == str(sets.partners))
    assert status == {"file": str(sets.partners), "entries": 2, "refreshed": 1000.0, "problem": ""}
    sets.others.write_text('{"Entries": [{"Cidr": "0.0.0.0/0"}, {"Cidr": "::/0"}]}')
    assert sets.look() == ["others.json"]
    assert sets.verdicts("10.9.1.1") == {**new, "@PARTNERS2": True}


def test_a_set_of_every_address_may_become_smaller(tmp_path: Path) -> None:
    sets = Sets(tmp_path)
    for text, inside in (("0.0.0.0/0\n::/0\n", True), ("192.0.2.1\n", False)):
        sets.partners.write_text(text)
        sets.look()
        assert sets.verdicts("10.9.1.1")["@PARTNERS"] is inside
        assert sets.verdicts("10.9.1.1")["[10.9.0.0/16,!@PARTNERS]"] is not inside


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "does not exist"),
        ("198.51.100.0/24\nten\n", ":2:1: "),
        ("", "no address in this file"),
        ("\udcff", "is not valid UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_changes_nothing(tmp_path: Path, content: str | None, problem: str) -> None:
    sets = Sets(tmp_path)
    before = sets.verdicts("198.51.100.1")
    if content is None:
        sets.partners.unlink()
    else:
        sets.partners.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert sets.look() == ["partners.txt"]
    assert sets.look() == []
    (line,) = sets.told
    assert line.startswith(f"warning: IP set {sets.partners} stays what it was, with 1 entry: ")
    assert problem in line
    assert any(problem in one["problem"] for one in sets.watch.status())
    assert sets.verdicts("198.51.100.1") == before
    sets.partners.write_text("198.51.100.0/24\n")
    assert sets.look() == ["partners.txt"]
    assert sets.told[1:] == [f"IP set {sets.partners} can be read again, and is what it was"]
    assert not any(one["problem"] for one in sets.watch.status())


def test_what_changed_before_the_policy_was_up_is_noticed(tmp_path: Path) -> None:
    sets = Sets(tmp_path)
    compiled = compile_policy(sets.policy)
    sets.partners.write_text("192.0.2.0/24\n")
    watch = SetWatch(compiled.changing, 5.0, lambda _: None, 0.0)
    assert len(watch.changed(0.0, time.time() + 60.0)) == 2
    assert len(watch.take(watch.read([str(sets.partners)]), 1.0)) == 3


def test_a_file_that_is_being_written_is_left_for_a_second(tmp_path: Path) -> None:
    sets = Sets(tmp_path)
    sets.partners.write_text("192.0.2.0/24\n")
    assert sets.watch.changed(10.0, time.time()) == []
    assert sets.watch.due == 11.0
    old = time.time() - 3600.0
    os.utime(sets.partners, (old, old))  # as rsync and cp -p do
    assert sets.watch.changed(11.0, time.time()) == [str(sets.partners)]
    assert sets.watch.due == 16.0


def test_a_reader_that_dies_changes_nothing(tmp_path: Path) -> None:
    sets = Sets(tmp_path)
    sets.partners.write_text("192.0.2.0/24\n")
    data = sets.watch.read([str(sets.partners)])
    before = sets.verdicts("192.0.2.1")
    for cut in (0, len(data) // 2, len(data) - 1):
        assert sets.watch.take(data[:cut], 1.0) == []
    assert sets.verdicts("192.0.2.1") == before
    assert len(sets.told) == 3


def test_a_large_set_comes_in_pieces_and_at_once(tmp_path: Path) -> None:
    sets = Sets(tmp_path)
    addresses = [str(ipaddress.ip_address((10 << 24) + 2 * number)) for number in range(PIECE_BYTES // 4)]
    sets.partners.write_text("\n".join(addresses))
    paths = sets.watch.changed(0.0, time.time() + 60.0)
    messages = list(pieces(sets.watch.take(sets.watch.read(paths), 1.0)))
    assert len(messages) > 4
    for message in messages[:-1]:
        assert len(message["data"]) <= PIECE_BYTES
        sets.taker.take(message)
        assert not matches(sets.workers[0], addresses[-1])
    sets.taker.take(messages[-1])
    assert sets.verdicts(addresses[-1])["@PARTNERS"]
    assert not sets.verdicts("10.0.0.1")["@PARTNERS"]
