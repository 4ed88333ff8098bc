"""The layout of the mark: what goes in comes out, foreign bits stay, impossible masks are refused."""

from __future__ import annotations

import random

import pytest

from nfw.marks import DEFAULT_MASK, Disposition, MarkLayout


@pytest.mark.parametrize(
    ("mask", "shift", "generations", "disposition_mask", "generation_mask"),
    [
        (DEFAULT_MASK, 20, 255, 0x00F00000, 0xFF000000),
        (0x0000FF00, 8, 15, 0x00000F00, 0x0000F000),
        (0x0000003F, 0, 3, 0x0000000F, 0x00000030),
        (0xFFFFFFFF, 0, 0x0FFFFFFF, 0x0000000F, 0xFFFFFFF0),
    ],
)
def test_layout(mask: int, shift: int, generations: int, disposition_mask: int, generation_mask: int) -> None:
    layout = MarkLayout(mask)
    assert (layout.shift, layout.max_generation) == (shift, generations)
    assert (layout.disposition_mask, layout.generation_mask) == (disposition_mask, generation_mask)
    assert layout.foreign_mask ^ layout.mask == 0xFFFFFFFF
    assert layout.next_generation(0) == 1
    assert layout.next_generation(generations) == 1


@pytest.mark.parametrize("mask", [0, 0xF0F00000, 0x0000001F, 0x80000001, 0x1FFFFFFFF, -1, 0x80000000])
def test_impossible_masks(mask: int) -> None:
    with pytest.raises(ValueError, match="mark mask"):
        MarkLayout(mask)


def test_compose_and_split_are_inverse_and_merge_keeps_foreign_bits() -> None:
    chance = random.Random(1)
    for _ in range(2000):
        low = chance.randrange(27)
        layout = MarkLayout(((1 << chance.randrange(6, 33 - low)) - 1) << low)
        generation, disposition = chance.randint(0, layout.max_generation), chance.choice(list(Disposition))
        field = layout.compose(generation, disposition)
        old = chance.getrandbits(32)
        mark = layout.merge(old, field)
        assert not field & layout.foreign_mask
        assert layout.split(mark) == (generation, disposition)
        assert mark & layout.foreign_mask == old & layout.foreign_mask


@pytest.mark.parametrize("generation", [-1, 256])
def test_a_number_that_does_not_fit(generation: int) -> None:
    with pytest.raises(ValueError, match="not within 0-255"):
        MarkLayout().compose(generation, Disposition.PASS)
