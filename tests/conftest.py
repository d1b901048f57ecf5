"""What holds for all tests."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("no deadline", deadline=None)  # how long an example takes says how busy the machine is
settings.load_profile("no deadline")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Tests run side by side, but for those that measure the machine's memory: these run alone."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", "single")
    alone = item.get_closest_marker("alone") is not None
    with (Path(tempfile.gettempdir()) / f"ciuic_dist-tests-{run}").open("w") as turns:
        fcntl.flock(turns, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        return (yield)
