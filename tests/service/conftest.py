"""The machine nfw is installed on; see `run`, which prepares what it is made of."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.machine import Machine

ROOT = os.environ.get("NFW_SERVICE_ROOT")

# Only `make test-service` has what these need.
collect_ignore_glob = [] if ROOT else ["test_*.py"]


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """A router that has booted, with nothing of nfw on it."""
    assert ROOT is not None
    with Machine(Path(ROOT), Path(os.environ["NFW_SERVICE_WHEELS"]), Path(os.environ["NFW_SERVICE_SCRATCH"])) as made:
        made.boot()
        yield made
