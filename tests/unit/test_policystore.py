"""What is kept of policies: content by hash, entries, what waits; damage is told and goes no further."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nfw.change import AGAIN_SECONDS, Changes, Wish
from nfw.policy.dump import dump_policy
from nfw.policy.files import as_kept, noting
from nfw.policy.loader import load_policy
from nfw.policystore import Entry, PolicyStore, State, StoreError, content_hash, digest_of, unchanged
from nfw.settings import GenerationReady, PolicySource
from tests.unit import awskit


@pytest.fixture
def store(tmp_path: Path) -> PolicyStore:
    made = PolicyStore(tmp_path / "state" / "policies", keep=3, keep_failed=2)
    made.prepare()
    return made


def entry(number: int, **fields: object) -> Entry:
    source = PolicySource(f"/etc/p{number}.yaml", files={f"/etc/p{number}.yaml": "ab"})
    return Entry(number, 1000.0 + number, 0, "apply", **{"source": source, "name": f"p{number}", **fields})  # type: ignore[arg-type]


def test_content_comes_back_or_not_at_all(store: PolicyStore) -> None:
    name = store.put(b"content")
    assert store.put(b"content") == name
    assert store.get(name) == b"content"
    path = store.directory / "objects" / name
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(b"contend")
    assert store.get(name) is None
    path.unlink()
    assert store.get(name) is None
    assert store.get("../state.json") is None


def test_a_lost_copy_is_made_good_by_an_unchanged_file(store: PolicyStore, tmp_path: Path) -> None:
    file = tmp_path / "a.rules"
    file.write_bytes(b"rules")
    name = store.put(b"rules")
    read = store.reader({str(file): name})
    (store.directory / "objects" / name).unlink()
    assert read(str(file)) == b"rules"
    file.write_bytes(b"other")
    with pytest.raises(OSError, match="missing or damaged"):
        read(str(file))
    with pytest.raises(OSError, match="not among what was kept"):
        read("/etc/passwd")


def test_entries_are_listed_and_the_oldest_go(store: PolicyStore) -> None:
    kept = store.put(b"needed"), store.put(b"old")
    for number in range(1, 7):
        failed = number in (2, 3)
        files = {"/p": kept[0] if number == 6 else kept[1]}
        source = PolicySource("/p", files=None if failed else files)
        store.write(entry(number, source=source, result="failed" if failed else "applied"))
    store.write(entry(7, result="failed", source=PolicySource("/p")))
    for name in kept:
        os.utime(store.directory / "objects" / name, (1, 1))
    store.prune(needed=[])
    assert [one.number for one in store.listing().entries] == [3, 4, 5, 6, 7]
    assert store.get(kept[1]) == b"old"
    store.write(entry(8))
    store.write(entry(9))
    store.write(entry(10))
    os.utime(store.directory / "objects" / kept[1], (1, 1))
    store.prune(needed=[6])
    assert [one.number for one in store.listing().entries] == [3, 6, 7, 8, 9, 10]
    assert (store.get(kept[0]), store.get(kept[1])) == (b"needed", None)
    assert store.next_number() == 11


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"version": 2}',
        b'{"version": 1}',
        *(
            json.dumps({"version": 1, **good}).encode()
            for good in (
                {"number": 3},
                {"result": "?"},
                {"source": {"file": 3, "more": [], "map_file": "", "name": "", "monitor": False, "files": None}},
                {"source": {"file": "/p", "more": [], "map_file": "", "name": "", "monitor": False, "files": {"a": 1}}},
                {"uid": "root"},
                {"unknown": 1},
            )
        ),
    ],
)
def test_a_damaged_entry_is_told_and_left_out(store: PolicyStore, damage: bytes) -> None:
    store.write(entry(1))
    path = store.directory / "entries" / "2.json"
    store.write(entry(2))
    try:
        broken = (
            {**json.loads(path.read_bytes()), **json.loads(damage)} if damage.startswith(b'{"version": 1,') else None
        )
    except ValueError:
        broken = None
    path.write_bytes(damage if broken is None else json.dumps(broken).encode())
    listing = store.listing()
    assert [one.number for one in listing.entries] == [1]
    assert len(listing.problems) == 1
    assert "entry 2 of the history is damaged" in listing.problems[0]
    with pytest.raises(StoreError, match="entry 2 of the history is damaged"):
        store.entry(2)
    assert store.next_number() == 3
    store.prune(needed=[])


def test_state(store: PolicyStore) -> None:
    assert store.state() == State()
    state = State(3, 2, (1, 4), 5)
    store.write_state(state)
    assert store.state() == state
    for damage in ("", "{}", '{"waiting": -1, "former": 0, "withdrawn": [], "standing": 0}', "[]"):
        (store.directory / "state.json").write_text(damage)
        with pytest.raises(StoreError, match=r"state\.json is damaged"):
            store.state()


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(StoreError, match="can be written by others"):
        PolicyStore(tmp_path / "open").prepare()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        PolicyStore(tmp_path / "file").prepare()


# -- what a policy was made of -----------------------------------------------------------------------------------------


def keep(store: PolicyStore, *files: Path, map_file: Path | None = None) -> dict[str, str]:
    noted: dict[str, str] = {}

    def note(path: str, data: bytes) -> None:
        noted[path] = store.put(data)

    with noting(note):
        load_policy(*files, map_file=map_file)
    return noted


def native(folder: Path) -> tuple[Path, ...]:
    (folder / "lists").mkdir()
    (folder / "lists" / "hashes").write_text("0" * 32 + "\n")
    (folder / "a.rules").write_text('drop http any any -> any any (msg:"x"; filemd5:lists/hashes; sid:1;)\n')
    (folder / "t.config").write_text("suppress gen_id 1, sig_id 1\n")
    (folder / "p.yaml").write_text("name: p\nstateful: {rule_files: [a.rules], threshold_file: t.config}\n")
    return (folder / "p.yaml",)


def documents(folder: Path) -> tuple[Path, ...]:
    (folder / "docs").mkdir()
    for number, found in enumerate((awskit.policy(groups=("g",)), awskit.group("g", awskit.stateful()))):
        (folder / "docs" / f"{number}.json").write_text(json.dumps(found))
    return (folder / "docs",)


@pytest.mark.parametrize("write", [native, documents])
def test_a_policy_is_made_of_what_was_kept(
    store: PolicyStore, tmp_path: Path, write: Callable[[Path], tuple[Path, ...]]
) -> None:
    """Whatever has become of its files; and it can be told that they have changed."""
    files = write(tmp_path)
    before = load_policy(*files)
    noted = keep(store, *files)
    assert unchanged(noted)
    for path in noted:
        if not path.endswith("/"):
            Path(path).write_text("nothing of use\n")
    assert not unchanged(noted)
    with as_kept(store.reader(noted)):
        after = load_policy(*files)
    assert after == before
    assert [one.text for one in after.stateful.signatures] == [one.text for one in before.stateful.signatures]
    assert dump_policy(after) == dump_policy(before)
    for path in noted:
        if not path.endswith("/"):
            Path(path).unlink()
    with as_kept(store.reader(noted)):
        assert load_policy(*files) == before


def test_the_files_of_a_folder_are_noted(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    name = str(tmp_path) + "/"
    before = content_hash(name)
    (tmp_path / "b").write_text("")
    assert content_hash(name) != before
    assert content_hash(str(tmp_path / "none") + "/") == ""


# -- changes -----------------------------------------------------------------------------------------------------------


class Bench:
    """A daemon's changes with a clock by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now, self.said = folder, 100.0, list[str]()
        self.addresses = folder / "addresses.txt"  # an IP set the policy refers to
        self.addresses.write_text("192.0.2.0/24")
        self.start()

    def start(self) -> None:
        self.changes = Changes(self.folder / "state", self.said.append, lambda: self.now, lambda: self.now + 1e9)

    def source(self, name: str) -> PolicySource:
        """The one policy file, with that content."""
        file = self.folder / "p.yaml"
        file.write_text(name)
        return PolicySource(str(file))

    def run(self, source: PolicySource, wish: Wish) -> Entry:
        """As the supervisor does it."""
        files = source.files
        if files is None:
            store = self.changes.opened()
            files = {file: store.put(Path(file).read_bytes()) for file in (source.file, str(self.addresses))}
        read = self.changes.opened().reader(files)
        ready = GenerationReady(
            read(source.file).decode(),
            1,
            1,
            None,
            "drop",
            False,
            "all",
            "drop",
            "drop",
            files=files,
            lists=[str(self.addresses)],
        )
        entry = self.changes.prepare(wish, source, ready)
        self.changes.took_effect(wish, entry)
        assert self.changes.current is not None
        return self.changes.current

    def apply(self, name: str, confirm: float = 0.0) -> Entry:
        source, wish = self.source(name), Wish(7, "apply", confirm)
        assert self.changes.refusal(wish) is None
        return self.run(source, wish)

    def begin(self) -> str:
        """A new daemon; the policy it starts with."""
        self.start()
        source = self.changes.at_start(PolicySource(str(self.folder / "p.yaml")))
        return self.run(source, Wish(0, "start")).name

    def back(self) -> str:
        return self.run(*self.changes.back()).name

    def results(self) -> list[str]:
        return [f"{one.name}: {one.result}" for one in self.changes.opened().listing().entries]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    made.source("one")
    assert made.begin() == "one"
    return made


def test_time_runs_from_the_switch_and_the_former_comes_back(bench: Bench) -> None:
    bench.apply("two", 30)
    assert bench.changes.status()["waiting"]["seconds_left"] == 30
    assert "waits for confirmation, 30 s left" in str(bench.changes.refusal(Wish(0, "apply")))
    bench.now += 29.5
    assert not bench.changes.due()
    bench.now += 0.5
    assert bench.changes.due()
    with pytest.raises(StoreError, match="too late"):
        bench.changes.confirm(0)
    assert bench.back() == "one"
    assert bench.results() == ["one: applied", "two: not confirmed", "one: applied"]
    assert bench.changes.opened().entry(2).detail == "not confirmed within 30 s"
    assert bench.changes.waiting is None


def test_a_former_policy_that_does_not_start_is_tried_again(bench: Bench) -> None:
    bench.apply("two", 30)
    bench.now += 30
    bench.changes.not_back(["no memory"])
    assert not bench.changes.due()
    assert bench.changes.status()["waiting"]["overdue"] == "no memory"
    bench.now += AGAIN_SECONDS
    assert bench.changes.due()
    assert bench.back() == "one"


def test_confirmed(bench: Bench) -> None:
    bench.apply("two", 30)
    bench.now += 10
    assert bench.changes.confirm(1000) == {"entry": 2, "name": "two"}
    assert bench.changes.opened().entry(2).detail == "by uid 1000, 20 s left"
    with pytest.raises(StoreError, match="no policy waits"):
        bench.changes.confirm(1000)
    assert bench.begin() == "two"
    assert bench.results() == ["one: applied", "two: confirmed"]


def test_a_start_before_the_confirmation(bench: Bench) -> None:
    bench.apply("two", 30)
    assert bench.begin() == "one"
    assert bench.begin() == "one", "the file has not been changed since"
    bench.source("three")
    assert bench.begin() == "three"
    bench.source("two")
    assert bench.begin() == "one"
    bench.apply("two")
    assert bench.begin() == "two", "somebody meant it"


def test_an_ip_set_that_changes_makes_no_other_policy(bench: Bench) -> None:
    bench.apply("two", 30)
    assert bench.begin() == "one"
    bench.addresses.write_text("198.51.100.0/24")
    assert bench.begin() == "one", "that its list is another one does not make what was gone back from the policy"
    entries = bench.changes.opened().listing().entries
    assert [one.lists for one in entries] == [(str(bench.addresses),)] * len(entries)
    bench.apply("three")
    known = len(bench.changes.opened().listing().entries)
    bench.addresses.write_text("203.0.113.0/24")
    assert bench.begin() == "three"
    assert len(bench.changes.opened().listing().entries) == known


def test_going_back_step_by_step(bench: Bench) -> None:
    for name in ("two", "two", "three"):
        bench.apply(name)
    names = []
    for _ in range(2):
        target = bench.changes.target(None)
        names.append(bench.run(target.source, Wish(7, "rollback", of=target.origin)).name)
    assert names == ["two", "one"]
    with pytest.raises(StoreError, match="no policy before the running one"):
        bench.changes.target(None)
    assert bench.begin() == "one", "what was gone back from does not come with a restart"
    target = bench.changes.target(4)
    assert bench.run(target.source, Wish(7, "rollback", of=target.origin)).name == "three"
    assert bench.begin() == "three"


def test_refused_policies_are_noted_without_content(bench: Bench) -> None:
    bench.changes.failed(Wish(7, "apply"), bench.source("bad"), ["p.yaml:1:1: wrong", "p.yaml:2:1: wrong"])
    entry = bench.changes.opened().entry(2)
    assert (entry.result, entry.detail) == ("failed", "p.yaml:1:1: wrong (and 1 more)")
    with pytest.raises(StoreError, match="entry 2 of the history was not kept"):
        bench.changes.target(2)


def test_what_was_promised_is_on_disk_before_the_switch(bench: Bench) -> None:
    source, wish = bench.source("two"), Wish(0, "apply", 30)
    files = {source.file: bench.changes.opened().put(b"two")}
    ready = GenerationReady("two", 1, 1, None, "drop", False, "all", "drop", "drop", files=files)
    entry = bench.changes.prepare(wish, source, ready)
    assert bench.changes.opened().state().waiting == entry.number
    bench.changes.abandoned(entry)
    assert bench.changes.opened().state() == State()
    assert bench.results() == ["one: applied"]
    bench.changes.failed(wish, source, ["nftables: no"])
    assert bench.results() == ["one: applied", ": failed"], "told once"
    unkept = GenerationReady("two", 1, 1, None, "drop", False, "all", "drop", "drop", not_kept="disk full")
    with pytest.raises(StoreError, match="cannot promise to go back: disk full"):
        bench.changes.prepare(wish, source, unkept)


def test_a_policy_that_could_not_be_written_down(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It filters all the same; but nobody may rely on coming back to it."""

    def full(*_: object) -> None:
        raise StoreError("no space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(PolicyStore, "write", full)
        assert bench.apply("two").number == 0
    assert any("cannot be written: no space left on device" in line for line in bench.said)
    assert "cannot promise to go back" in str(bench.changes.refusal(Wish(0, "apply", 10)))
    assert bench.apply("three").number == 2


def test_a_damaged_state_is_told(bench: Bench) -> None:
    bench.apply("two", 30)
    (bench.folder / "state" / "state.json").write_text("{")
    assert bench.begin() == "two"
    assert any("cannot tell whether a policy was gone back from" in line for line in bench.said)


def test_without_a_directory(tmp_path: Path) -> None:
    changes = Changes(None, print)
    asked = PolicySource("/p")
    assert changes.at_start(asked) == asked
    ready = GenerationReady("one", 1, 1, None, "drop", False, "all", "drop", "drop")
    changes.took_effect(Wish(0, "start"), changes.prepare(Wish(0, "start"), asked, ready))
    assert changes.refusal(Wish(0, "apply")) is None
    assert "cannot promise" in str(changes.refusal(Wish(0, "apply", 10)))
    with pytest.raises(StoreError, match="not kept"):
        changes.history()


def test_a_digest_is_of_everything() -> None:
    source = PolicySource("/p")
    assert digest_of(source, {"/p": "1"}) == digest_of(PolicySource("/p", files={}), {"/p": "1"})
    assert digest_of(source, {"/p": "1"}) != digest_of(source, {"/p": "2"})
    assert digest_of(source, {"/p": "1"}) != digest_of(PolicySource("/p", monitor=True), {"/p": "1"})
