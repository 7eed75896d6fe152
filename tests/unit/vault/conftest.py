"""Pairs of vaults in a private directory."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from comparing import HOUR_S, World
from vaults import Pair

from qkdnode.link import comparison
from qkdnode.vault import doubts


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory: these tests are about what is written, and the disk would only cost time."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="qkdnode-vault-", dir=memory if memory.is_dir() else None) as directory:
        yield Path(directory)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    tmp_path.chmod(0o700)
    made = Pair(tmp_path)
    yield made
    made.close()


@pytest.fixture
def few_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What two ends compare each hour they compare every six: a day of waiting is over sooner."""
    monkeypatch.setattr(comparison, "HOURLY_S", 6 * HOUR_S)
    monkeypatch.setattr(doubts, "KEPT_LOOKS", 4)


@pytest.fixture
def world(pair: Pair) -> Iterator[World]:
    """Two ends that compare what they hold."""
    pair.stock()
    made = World(pair)
    yield made
    made.loop.close()
