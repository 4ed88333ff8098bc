"""What all tests share: tests marked `netns` need root, and say so where they cannot run."""

import os

import pytest

# What a test computed is nobody's to find later; tests of the cache have one of their own.
os.environ["NFW_CACHE"] = "off"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `netns` tests for an ordinary user. As root they run, and fail where the kernel lacks something."""
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="builds network namespaces: needs root (sudo make test)")
    for item in items:
        if item.get_closest_marker("netns"):
            item.add_marker(skip)
