"""The printed list of keywords is the parser's table."""

from __future__ import annotations

from engines.stateful.keywords import KEYWORDS, UNSUPPORTED
from engines.stateful.keywords.reference import KeywordRow, keyword_rows, markdown_page


def test_every_keyword_is_listed_once_with_its_status() -> None:
    rows = {row.name: row for row in keyword_rows()}
    assert len(rows) == len(keyword_rows())
    assert rows.keys() == KEYWORDS.keys() | UNSUPPORTED.keys()
    assert [rows[name].status for name in ("content", "enip.status", "lua")] == ["works", "never matches", "refused"]
    assert rows["content"].to_json() == {
        "name": "content",
        "kind": "content",
        "summary": "bytes that must (or with ! must not) occur",
        "value": "required",
        "status": "works",
        "doc": "https://docs.suricata.io/en/latest/rules/payload-keywords.html#content",
    }


def test_the_page_has_every_keyword_and_sound_tables() -> None:
    rows = [*keyword_rows(), KeywordRow("odd", "", "a|b", "", "refused", "")]
    page = markdown_page(rows)
    for row in rows:
        assert page.count(f"`{row.name}`") == 1 + (row.name == "nfw rules check"), row.name
    assert "| `odd` | a\\|b |" in page
    assert all(line.startswith(("#", "|", "Printed", "`nfw")) for line in page.splitlines() if line)
