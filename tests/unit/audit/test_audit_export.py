"""The export: what is written is what is read, line by line."""

from collections.abc import Iterator
from typing import Any

import pytest

from qkdnode.audit.events import decode
from qkdnode.audit.export import Header, Leaf, SignedCheckpoint, read_export, write_export
from qkdnode.audit.merkle import leaf_hash
from qkdnode.errors import AuditUnreadableError


def test_what_was_written_is_read(log: Any) -> None:
    header, *items = read_export(log.lines())
    assert header == Header(log.origin, log.public_key)
    leaves = [item for item in items if isinstance(item, Leaf)]
    assert [leaf.data for leaf in leaves] == log.leaves
    assert all(leaf.hash == leaf_hash(leaf.data) for leaf in leaves)
    assert [decode(leaf.data).subject for leaf in leaves[:2]] == ["key-0", "key-1"]
    assert [item.note for item in items if isinstance(item, SignedCheckpoint)] == [log.note(n) for n in (60, 120, 180)]


def test_a_checkpoint_stands_after_its_last_leaf(log: Any) -> None:
    items = list(read_export(log.lines((0, 1, 1, 187))))
    places = [i for i, item in enumerate(items) if isinstance(item, SignedCheckpoint)]
    assert places == [1, 3, 4, len(items) - 1]


def test_a_checkpoint_over_leaves_that_are_not_given_is_left_out(log: Any) -> None:
    notes = [(60, log.note(60)), (120, log.note(120))]
    items = list(read_export(write_export(log.origin, log.public_key, log.leaves[:100], notes)))
    assert sum(isinstance(item, SignedCheckpoint) for item in items) == 1


def test_both_directions_stream(log: Any) -> None:
    """Of an endless log the first lines come at once."""

    def endless() -> Iterator[bytes]:
        while True:
            yield log.leaves[0]

    items = read_export(write_export(log.origin, log.public_key, endless(), []))
    assert [type(next(items)) for _ in range(3)] == [Header, Leaf, Leaf]


@pytest.mark.parametrize(
    "line",
    [
        '{"format":"qkdnode-audit/1","origin":"a","public_key":""}\n',
        '{"format":"qkdnode-audit/2","origin":"a","public_key":"?"}\n',
        '{"leaf":"","hash":""}\n',
        "\n",
    ],
)
def test_what_does_not_start_as_an_export_is_refused(line: str) -> None:
    with pytest.raises(AuditUnreadableError, match="line 1"):
        list(read_export([line]))


@pytest.mark.parametrize(
    "line", ['{"leaf":"","hash":"xyz"}\n', '{"other":""}\n', '{"format":"","origin":"","public_key":""}\n', "{"]
)
def test_the_first_foreign_line_is_named(log: Any, line: str) -> None:
    with pytest.raises(AuditUnreadableError, match="line 3"):
        list(read_export([*log.lines()[:2], line]))
