"""Whatever is done to the bytes of an export, the verifier does not call it valid."""

import functools
import io
import re

from hypothesis import given, settings
from hypothesis import strategies as st
from signing import PUBLIC, SIGNING

from qkdnode.audit.checkpoint import Checkpoint, sign_checkpoint
from qkdnode.audit.events import LinkEvent, encode
from qkdnode.audit.export import write_export
from qkdnode.audit.merkle import Frontier, leaf_hash
from qkdnode.audit.verifier import read_lines, verify
from qkdnode.errors import AuditUnreadableError


@functools.cache
def export() -> bytes:
    """Four entries in two topics, checkpoints after two and three, one unsigned."""
    leaves = [
        encode(
            LinkEvent(
                time_ns=i, node="a", topic=f"t{i % 2}", topic_sequence=i // 2 + 1, kind="link.opened", subject="ä\x1f\\"
            )
        )
        for i in range(4)
    ]
    notes = []
    for size in (2, 3):
        root = Frontier(map(leaf_hash, leaves[:size])).root()
        notes.append((size, sign_checkpoint(Checkpoint("a.audit", size, root, size), SIGNING)))
    return "".join(write_export("a.audit", PUBLIC, leaves, notes)).encode()


def accepted(data: bytes) -> bool:
    try:
        return verify(read_lines(io.BytesIO(data)), PUBLIC).valid
    except AuditUnreadableError:
        return False


def test_the_export_itself_is_accepted() -> None:
    assert accepted(export())


def test_no_single_bit_can_be_flipped() -> None:
    """One bit of each byte of keys and signatures, which are long; every bit of all else."""
    good = export()
    blobs = {i for found in re.finditer(rb"[0-9A-Za-z+/]{65,}", good) for i in range(found.start(), found.end() - 4)}
    for i in range(len(good)):
        for bit in {i % 8} if i in blobs else range(8):
            data = bytearray(good)
            data[i] ^= 1 << bit
            assert not accepted(bytes(data)), f"bit {bit} of byte {i}"


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_no_run_of_bytes_can_be_replaced(data: st.DataObject) -> None:
    good = export()
    start = data.draw(st.integers(0, len(good) - 1))
    end = data.draw(st.integers(start, min(len(good), start + 200)))
    changed = good[:start] + data.draw(st.binary(max_size=40)) + good[end:]
    if changed.rstrip(b"\n") != good.rstrip(b"\n") and not signed_prefix(changed):
        assert not accepted(changed)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.permutations(range(7)), st.integers(0, 7))
def test_no_other_choice_or_order_of_lines_is_valid(order: list[int], count: int) -> None:
    lines = export().splitlines(keepends=True)
    changed = b"".join(lines[i] for i in order[:count])
    assert accepted(changed) == signed_prefix(changed)


def signed_prefix(data: bytes) -> bool:
    """What a log legitimately looked like before: it ends at or after a checkpoint; or lacks an earlier checkpoint."""
    lines = export().splitlines()
    shapes = [lines[:end] for end in range(4, len(lines) + 1)]
    shapes += [[line for line in shape if line != lines[3]] for shape in shapes if len(shape) >= 6]
    return data.split(b"\n")[: -1 if data.endswith(b"\n") else None] in shapes
