"""The references in the repository are what the program says today, and leave no key without a word."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import reference


@pytest.mark.parametrize("path", [reference.POLICY, reference.COMMANDS], ids=lambda path: path.parent.name)
def test_it_is_current(path: Path) -> None:
    assert path.read_text() == reference.documents()[path], "run `make docs`"


def test_every_key_of_the_readme_is_there_with_its_values_and_default() -> None:
    text = reference.policy_reference()
    assert "| `on_failure` | `drop` \\| `reject` | `reject` |" in text
    assert "| `stream_depth` | size | `1mb` |" in text
    assert "| `events` | list of text | `[alert, drop, flow, tls]` |" in text


def test_a_key_nothing_is_said_about_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    part = reference.Part("x", ("new", "old"), None, "", {"old": "known"})
    monkeypatch.setattr(reference, "PARTS", (part,))
    with pytest.raises(ValueError, match=r"x: new: say in tests/reference\.py"):
        reference.policy_reference()


def test_every_command_is_there() -> None:
    text = reference.commands_reference()
    for name in ("nfw run", "nfw policy apply", "nfw ca create", "nfw rules keywords", "nfw completion"):
        assert f"\n## {name}\n" in text
