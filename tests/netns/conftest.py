"""Labs for the tests in this folder, all of which need root and real packets.

A lab takes a fifth of a second to build, so each test module has its own; what a test puts into a lab's router it
takes out again.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Lab


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder `netns`."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.netns)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab with a plain router."""
    with Lab() as built:
        yield built


@pytest.fixture(scope="module")
def masquerading_lab() -> Iterator[Lab]:
    """A lab whose router masquerades."""
    with Lab(masquerade=True) as built:
        yield built


@pytest.fixture(scope="module", params=["plain", "masquerading"])
def any_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Both kinds of lab, one after the other."""
    with Lab(masquerade=request.param == "masquerading") as built:
        yield built
