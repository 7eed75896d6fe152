"""Pairs of vaults in a private directory."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from vaults import Pair


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    tmp_path.chmod(0o700)
    made = Pair(tmp_path)
    yield made
    made.close()
