"""What all tests share: tests marked `netns` need root, and say so where they cannot run."""

import os

import pytest
from hypothesis import HealthCheck, settings

# What a test computed is nobody's to find later; tests of the cache have one of their own.
os.environ["NFW_CACHE"] = "off"
# How long an example takes says how busy the machine is; what must not take long has a test that says so.
settings.register_profile("nfw", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("nfw")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `netns` tests for an ordinary user. As root they run, and fail where the kernel lacks something."""
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="builds network namespaces: needs root (sudo make test)")
    for item in items:
        if item.get_closest_marker("netns"):
            item.add_marker(skip)
