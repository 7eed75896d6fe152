"""An export from a running agent is whole and verified, or it is not there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from control_node import ControlNode
from signing import OTHER, PUBLIC

from qkdnode.audit.verifier import read_lines, verify
from qkdnode.channel.operator import load_operator
from qkdnode.control import desk
from qkdnode.control.client import Client
from qkdnode.control.export import export_log
from qkdnode.errors import AuditError, ControlError, QkdnodeError
from qkdnode.vault import extract
from qkdnode.wire import control as wire


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ControlNode]:
    with ControlNode(tmp_path) as made:
        yield made


@pytest.fixture
def client(node: ControlNode) -> Iterator[Client]:
    with load_operator(node.operators["anna"]) as operator, Client(node.path, operator) as made:
        yield made


def test_an_export_in_many_pages_is_what_the_vault_signed(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "LOG_PAGE_BYTES", 700)
    file = tmp_path / "alice.export"
    entries = export_log(client, file, PUBLIC)
    with file.open("rb") as lines:
        report = verify(read_lines(lines), PUBLIC)
    assert (report.valid, report.leaves, report.unsigned_tail) == (True, entries, 0)
    assert client._counter > 5


def page_of(request: wire.ExportPage, leaves: tuple[str, ...]) -> wire.LogPage:
    return wire.LogPage(position=request.position, leaves=leaves, checkpoints=())


async def _cut(self: desk.Desk, request: wire.ExportPage, _: Any) -> wire.Answer:
    if request.position:
        raise ControlError("the disk is gone")
    page = await self._ask(extract.LogPage(position=0, size=request.size, max_bytes=1))
    return page_of(request, page.leaves)


async def _nothing(self: desk.Desk, request: wire.ExportPage, _: Any) -> wire.Answer:
    return page_of(request, ())


async def _too_much(self: desk.Desk, request: wire.ExportPage, _: Any) -> wire.Answer:
    return page_of(request, ("{}",) * (request.size + 1))


async def _altered(self: desk.Desk, request: wire.ExportPage, _: Any) -> wire.Answer:
    page = await self._ask(extract.LogPage(position=request.position, size=request.size, max_bytes=10**6))
    changed = tuple(leaf.replace('"outcome":"done"', '"outcome":"lost"') for leaf in page.leaves)
    return wire.LogPage(position=request.position, leaves=changed, checkpoints=page.checkpoints)


async def _unsigned(self: desk.Desk, request: wire.ExportPage, _: Any) -> wire.Answer:
    page = await self._ask(extract.LogPage(position=request.position, size=request.size, max_bytes=10**6))
    return page_of(request, page.leaves)


async def _closes(self: desk.Desk, request: wire.ExportPage, _: Any) -> wire.Answer:
    raise ConnectionResetError


@pytest.mark.parametrize("lie", [_cut, _nothing, _too_much, _altered, _unsigned, _closes], ids=lambda lie: lie.__name__)
@pytest.mark.parametrize("before", [None, "an earlier export"])
def test_an_export_that_is_cut_or_altered_is_noticed_and_leaves_no_half_file(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: Any, before: str | None
) -> None:
    monkeypatch.setitem(desk.HANDLERS, wire.ExportPage, lie)
    place = tmp_path / "exports"
    place.mkdir()
    file = place / "alice.export"
    if before is not None:
        file.write_text(before)
    with pytest.raises(QkdnodeError):
        export_log(client, file)
    assert [path.name for path in place.iterdir()] == ([] if before is None else ["alice.export"])
    assert before is None or file.read_text() == before


def test_another_node_s_key_does_not_verify_it(client: Client, tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="does not verify"):
        export_log(client, tmp_path / "alice.export", OTHER.log_key)
    assert not (tmp_path / "alice.export").exists()


def test_a_place_that_cannot_be_written_is_named(client: Client, tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="cannot write beside"):
        export_log(client, tmp_path / "nowhere" / "alice.export")
