"""Seeds of the fuzz tests: made-up bytes in tests/corpus/<protocol>/, in hexadecimal, one input a file."""

from __future__ import annotations

from pathlib import Path

_ROOT = Path(__file__).parent.parent / "corpus"


def corpus(protocol: str) -> list[bytes]:
    """Every seed of a protocol, by file name. Fails when there are none."""
    seeds = [bytes.fromhex(path.read_text()) for path in sorted((_ROOT / protocol).glob("*.hex"))]
    assert seeds, f"no seeds for {protocol}"
    return seeds
