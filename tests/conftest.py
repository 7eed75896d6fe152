"""Its place puts tests/ on the import path, for what several test folders share; property tests are deterministic."""

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")

# What starts agents or other processes that must keep up: one worker of a parallel run has them all.
HERE = Path(__file__).parent
WITH_PROCESSES = (HERE / "integration", HERE / "crash")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests that start agents from running beside one another."""
    for item in items:
        if any(item.path.is_relative_to(folder) for folder in WITH_PROCESSES):
            item.add_marker(pytest.mark.xdist_group("agents"))
