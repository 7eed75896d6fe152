"""Pairs of vaults in a private directory."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from vaults import Pair


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
