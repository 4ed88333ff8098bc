"""The cache: what comes out is what was put in by this user, or nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.stateful.parser import Variables
from engines.stateful.prefilter import PatternSet
from engines.stateful.ruleconfig import RuleConfig
from nfw.cache import Cache, default_cache, parse_rules_cached
from nfw.policy.compile import compile_policy
from nfw.policy.loader import load_policy

RULES = 'alert tcp any any -> any any (msg:"one"; content:"needle"; sid:1;)\n'
NO_VARIABLES = Variables({}, {})


class Said(list[str]):
    """What was reported."""

    def __call__(self, text: str) -> None:
        self.append(text)


def entries(directory: Path) -> list[Path]:
    return sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime_ns)


def test_what_is_put_is_there_for_the_next_process(tmp_path: Path) -> None:
    said = Said()
    Cache(tmp_path / "deep" / "c", said).put(b"key", b"data")
    again = Cache(tmp_path / "deep" / "c", said)
    assert again.get(b"key") == b"data"
    assert again.get(b"other") is None
    again.put(b"key", b"newer")
    assert again.get(b"key") == b"newer"
    assert said == []
    assert (tmp_path / "deep" / "c").stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in entries(tmp_path / "deep" / "c")] == [0o600]


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _link(path: Path) -> None:
    target = path.with_name("elsewhere")
    path.rename(target)
    path.symlink_to(target)


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("harm", "word"),
    [
        (_truncate, "damaged"),
        (_flip, "damaged"),
        (lambda path: path.write_bytes(b""), "not an entry"),
        (lambda path: path.write_bytes(b"something else altogether" * 9), "not an entry"),
        (lambda path: path.chmod(0o620), "written by others"),
        (lambda path: path.chmod(0o602), "written by others"),
        (_link, "cannot be read"),
        (_fifo, "not what it should be"),
        (_directory, "cannot be read"),
    ],
)
def test_an_entry_with_something_wrong_is_ignored_and_told_once(
    tmp_path: Path, harm: Callable[[Path], object], word: str
) -> None:
    said = Said()
    cache = Cache(tmp_path, said)
    cache.put(b"key", b"data")
    harm(entries(tmp_path)[0])
    assert cache.get(b"key") is None
    assert cache.get(b"key") is None
    assert len(said) == 1
    assert word in said[0]


def test_an_entry_under_the_name_of_another_is_ignored(tmp_path: Path) -> None:
    said = Said()
    cache = Cache(tmp_path, said)
    cache.put(b"one", b"1")
    (first,) = entries(tmp_path)
    cache.put(b"two", b"2")
    (second,) = set(entries(tmp_path)) - {first}
    first.replace(second)
    assert cache.get(b"two") is None
    assert "damaged" in said[0]


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o720])
def test_a_directory_that_others_can_write_is_not_used(tmp_path: Path, mode: int) -> None:
    said = Said()
    Cache(tmp_path, said).put(b"key", b"data")
    tmp_path.chmod(mode)
    cache = Cache(tmp_path, said)
    assert cache.get(b"key") is None
    cache.put(b"new", b"data")
    assert len(entries(tmp_path)) == 1
    assert len(said) == 1
    assert "can be written by others" in said[0]


def test_what_belongs_to_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = Said()
    cache = Cache(tmp_path, said)
    cache.put(b"key", b"data")
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    assert cache.get(b"key") is None
    assert Cache(tmp_path, said).get(b"key") is None
    assert all("belongs to user" in text for text in said)
    assert len(said) == 2


@pytest.mark.parametrize("make", [lambda path: path.write_text("file"), lambda path: path.symlink_to("/tmp")])
def test_what_is_no_directory_is_not_used(tmp_path: Path, make: Callable[[Path], object]) -> None:
    said = Said()
    make(tmp_path / "c")
    cache = Cache(tmp_path / "c", said)
    cache.put(b"key", b"data")
    assert cache.get(b"key") is None
    assert len(said) == 1


def test_what_cannot_be_written_is_told_and_no_error(tmp_path: Path) -> None:
    said = Said()
    cache = Cache(tmp_path / "c", said)
    (tmp_path / "c").rmdir()
    cache.put(b"key", b"data")
    cache.put(b"key", b"data")
    assert len(said) == 1
    assert "cannot be written" in said[0]


@pytest.mark.parametrize(("limits", "left"), [({"max_bytes": 20_000}, 15), ({"max_entries": 8}, 6)])
def test_the_directory_stays_within_its_bound(tmp_path: Path, limits: dict[str, int], left: int) -> None:
    said = Said()
    cache = Cache(tmp_path, said, **limits)
    for number in range(40):
        cache.put(b"%d" % number, bytes(950))
        for path in tmp_path.iterdir():  # age all that is there
            found = path.stat()
            os.utime(path, (found.st_atime - 10, found.st_mtime - 10))
        size = sum(path.stat().st_size for path in tmp_path.iterdir())
        count = len(list(tmp_path.iterdir()))
        assert size <= limits.get("max_bytes", size)
        assert count <= limits.get("max_entries", count)
        assert cache.get(b"0") == bytes(950), "used all the time, so never the oldest"
    assert len(list(tmp_path.iterdir())) >= left
    assert said == []


def test_an_entry_larger_than_half_the_bound_is_not_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path, Said(), max_bytes=1000)
    cache.put(b"key", bytes(600))
    assert entries(tmp_path) == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    old, young = tmp_path / "new-1", tmp_path / "new-2"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    Cache(tmp_path, Said()).put(b"key", b"data")
    assert not old.exists()
    assert young.exists()


@pytest.mark.parametrize(
    ("environment", "uid", "expected"),
    [
        ({"NFW_CACHE": "off"}, 0, None),
        ({"NFW_CACHE": "/{tmp}/own"}, 0, "own"),
        ({"NFW_CACHE": "", "CACHE_DIRECTORY": "/{tmp}/unit:/other"}, 0, "unit"),
        ({"NFW_CACHE": "", "XDG_CACHE_HOME": "/{tmp}/xdg"}, 1000, "xdg/nfw"),
        ({"NFW_CACHE": "", "XDG_CACHE_HOME": "relative", "HOME": "/{tmp}/home"}, 1000, "home/.cache/nfw"),
        ({"NFW_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/{tmp}/home"}, 1000, "home/.cache/nfw"),
    ],
)
def test_where_the_cache_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], uid: int, expected: str | None
) -> None:
    for name in ("NFW_CACHE", "CACHE_DIRECTORY", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.replace("/{tmp}", str(tmp_path)))
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    cache = default_cache(Said())
    assert (cache is None) == (expected is None)
    if expected is not None:
        assert (tmp_path / expected).is_dir()


def test_rules_are_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = Said()
    first = parse_rules_cached(Cache(tmp_path, said), RULES, "f", NO_VARIABLES)
    monkeypatch.setattr("nfw.cache.parse_rules", None)
    again = parse_rules_cached(Cache(tmp_path, said), RULES, "f", NO_VARIABLES)
    assert [signature.text for signature in again.signatures] == [signature.text for signature in first.signatures]
    assert said == []


def test_rules_that_name_a_file_of_their_own_are_parsed_each_time(tmp_path: Path) -> None:
    lists = {"bad.md5": b"0" * 32}
    config = RuleConfig(read_list=lists.__getitem__)
    rule = "alert http any any -> any any (filemd5:bad.md5; sid:1;)"
    for _ in range(2):
        assert not parse_rules_cached(Cache(tmp_path, Said()), rule, "f", NO_VARIABLES, config=config).errors
    assert entries(tmp_path) == []
    lists["bad.md5"] = b"no digest"
    assert parse_rules_cached(Cache(tmp_path, Said()), rule, "f", NO_VARIABLES, config=config).errors


@pytest.mark.parametrize(
    ("text", "file", "variables", "known"),
    [
        (RULES + "\n", "f", NO_VARIABLES, set()),
        (RULES, "g", NO_VARIABLES, set()),
        (RULES, "f", Variables({"A": "any"}, {}), set()),
        (RULES, "f", Variables({}, {"A": "any"}), set()),
        (RULES, "f", NO_VARIABLES, {(1, 1)}),
    ],
)
def test_other_input_is_another_entry(
    tmp_path: Path, text: str, file: str, variables: Variables, known: set[tuple[int, int]]
) -> None:
    parse_rules_cached(Cache(tmp_path, Said()), RULES, "f", NO_VARIABLES, known_sids=set())
    parsed = parse_rules_cached(Cache(tmp_path, Said()), text, file, variables, known_sids=known)
    assert len(entries(tmp_path)) == 2
    assert bool(parsed.errors) == ((1, 1) in known and not parsed.signatures)


def test_rules_that_read_lists_are_parsed_each_time(tmp_path: Path) -> None:
    """A list may be another one by then, or not be there."""
    lists: dict[str, bytes] = {}

    def read(name: str) -> bytes:
        if name not in lists:
            raise OSError(0, "does not exist")
        return lists[name]

    rules, config = "alert http any any -> any any (filemd5:bad; sid:1;)\n", RuleConfig(read_list=read)
    for content, refused in ((b"", True), (b"0" * 32, False), (b"x", True), (b"1" * 32, False)):
        lists["bad"] = content
        parsed = parse_rules_cached(Cache(tmp_path, Said()), rules, "f", NO_VARIABLES, config=config)
        assert bool(parsed.errors) == refused
    assert entries(tmp_path) == []
    parse_rules_cached(Cache(tmp_path, Said()), RULES, "f", NO_VARIABLES, config=config)
    assert len(entries(tmp_path)) == 1


def test_sids_of_cached_rules_are_taken(tmp_path: Path) -> None:
    for _ in range(2):
        known: set[tuple[int, int]] = set()
        parse_rules_cached(Cache(tmp_path, Said()), RULES, "f", NO_VARIABLES, known_sids=known)
        assert known == {(1, 1)}
        assert parse_rules_cached(Cache(tmp_path, Said()), RULES, "g", NO_VARIABLES, known_sids=known).errors


def test_other_versions_have_entries_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Cache(tmp_path, Said()).put(b"key", b"data")
    monkeypatch.setattr("nfw.cache._surroundings", lambda: b"another CPU, or a newer Hyperscan")
    assert Cache(tmp_path, Said()).get(b"key") is None


WORDS = [(b"word%d" % number, number % 2 == 0, number) for number in range(50)]


def test_a_database_from_the_cache_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = Said()
    made = PatternSet(WORDS, Cache(tmp_path, said))
    monkeypatch.setattr("engines.stateful.prefilter._compile", None)
    found = PatternSet(WORDS, Cache(tmp_path, said))
    for data in (b"", b"nothing", b"WORD7 word8 WORD18 word49", b"x" * 10_000 + b"word1"):
        assert sorted(found.scan(data)) == sorted(made.scan(data))
    assert sorted(found.scan(b"word3 WORD4 WORD5")) == [3, 4]
    assert found.memory() == made.memory()
    assert said == []


@pytest.mark.parametrize("data", [b"", b"no database", b"BDSH" * 100])
def test_what_is_no_database_is_compiled_again(tmp_path: Path, data: bytes) -> None:
    class Liar(Cache):
        def get(self, key: bytes) -> bytes | None:
            return data

    said = Said()
    assert PatternSet(WORDS, Liar(tmp_path, said)).scan(b"word9") == [9]
    assert len(said) == 1
    assert "Hyperscan" in said[0]


def test_a_policy_comes_whole_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = "".join(f'alert http any any -> any any (http.uri; content:"/w{n}"; sid:{n};)\n' for n in range(1, 30))
    (tmp_path / "a.rules").write_text(rules)
    (tmp_path / "p.yaml").write_text("stateful: {order: action, rule_files: [a.rules]}\n")
    said = Said()

    def compiled() -> list[str]:
        cache = Cache(tmp_path / "c", said)
        ruleset = compile_policy(load_policy(tmp_path / "p.yaml", cache=cache), cache).ruleset
        assert ruleset.memory()
        return [rule.signature.text for rule in ruleset.rules]

    first = compiled()
    monkeypatch.setattr("nfw.cache.parse_rules", None)
    monkeypatch.setattr("engines.stateful.prefilter._compile", None)
    assert compiled() == first
    assert said == []
