"""An export of a running agent's audit log: whole, verified, or not there."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from qkdnode.audit.export import header_line, page_lines
from qkdnode.audit.verifier import read_lines, verify
from qkdnode.control.client import Client
from qkdnode.errors import AuditError, ControlError
from qkdnode.wire.control import ExportBegin, LogHead


@contextmanager
def whole_file(file: Path) -> Iterator[tuple[Path, TextIO]]:
    """A file beside `file` that takes its place, synced, if the block ends well, and is removed if not."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    except OSError as error:
        raise ControlError(f"cannot write beside {file}: {error.strerror}") from None
    unfinished = Path(name)
    try:
        with open(descriptor, "w", encoding="utf-8") as out:
            yield unfinished, out
            out.flush()
            os.fsync(out.fileno())
        os.replace(unfinished, file)
    except OSError as error:
        raise ControlError(f"cannot write {file}: {error.strerror}") from None
    finally:
        unfinished.unlink(missing_ok=True)


def export_log(client: Client, file: Path, key: bytes | None = None) -> int:
    """Write the log up to a checkpoint signed for this export, verify it, and put it in its place; how many leaves.

    `key` verifies; without it the one that the agent names. AuditError or ControlError, and no file,
    if anything is missing or does not verify. A file that is there is replaced only by a whole export.
    """
    head: LogHead = client.ask(ExportBegin())
    with whole_file(file) as (unfinished, out):
        out.write(header_line(head.origin, head.public_key))
        for page in client.log_pages(head):
            out.writelines(page_lines(page.position, page.leaves, page.checkpoints))
        out.flush()
        with unfinished.open("rb") as lines:
            report = verify(read_lines(lines), key or head.public_key)
        if not report.valid:
            raise AuditError(f"what the agent exported does not verify ({report.first_bad}): keep its vault")
        if (report.leaves, report.unsigned_tail) != (head.size, 0):
            raise AuditError(
                f"the export has {report.leaves} entries, {report.unsigned_tail} of them unsigned, where the agent "
                f"signed {head.size}: it is not whole"
            )
    return head.size
