"""What is wrong with a policy, told to a person: by how bad it is, each group with a heading and a count."""

from __future__ import annotations

from collections.abc import Iterable

from nfw.cli.app import tell

# By level (nfw.policy.errors.Level), mildest first: what matters most stands last, next to the prompt.
_HEADINGS = {
    "warning": ("warning", "warnings"),
    "aws-refuses": ("aws-refuses (loads here, but AWS would not take it)",) * 2,
    "error": ("error", "errors"),
}


def tell_problems(problems: Iterable[tuple[str, str]]) -> None:
    """``problems``: (level, ``file:line:column: text``)."""
    by_level: dict[str, list[str]] = {level: [] for level in _HEADINGS}
    for level, text in problems:
        by_level.setdefault(level, []).append(text)
    for level, found in by_level.items():
        if found:
            one, several = _HEADINGS.get(level, (level, level))
            tell(f"{len(found)} {one if len(found) == 1 else several}:")
            for text in found:
                tell(text)


def counted(number: int, what: str) -> str:
    """``1 rule``, ``2 rules``."""
    return f"{number} {what}{'' if number == 1 else 's'}"
