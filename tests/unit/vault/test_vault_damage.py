"""Somebody writes to the vault's file: what was altered or put back is named and never used, the rest serves on."""

from collections.abc import Callable
from functools import partial
from typing import Any

import apsw
import msgspec
import pytest
from vaults import EVERYWHERE, FIRST, HERE, LINK, End, Pair, contents, waiting

from qkdnode.errors import QkdnodeError, VaultDamagedError
from qkdnode.ids import BatchId
from qkdnode.vault import records
from qkdnode.vault.export_reader import export_audit
from qkdnode.vault.requests import (
    AcceptAllocation,
    AllocationAnswered,
    ApplicationOutbox,
    NeighbourOutbox,
    NextSession,
    OpenKey,
    OpenKeys,
    Outstanding,
    PadsLeft,
    ReservePads,
    SettlePending,
    Status,
)


def columns_of(record: type[records.Record]) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(record)] + ["mac"]


def altered(value: Any) -> Any:
    if isinstance(value, bytes):
        return bytes([value[0] ^ 1]) + value[1:] if value else b"x"
    if isinstance(value, str):
        return b"\xff" + value.encode()
    return 1 if value is None else value + 1


def alter(file: apsw.Connection, table: str, column: str, row: int) -> None:
    """Change one column of the row, text into what is not even UTF-8."""
    (value,) = file.execute(f"SELECT {column} FROM {table} WHERE rowid = ?", (row,)).fetchall()[0]
    new = altered(value)
    slot = "CAST(? AS TEXT)" if isinstance(value, str) else "?"
    file.execute("PRAGMA foreign_keys = OFF")
    file.execute(f"UPDATE {table} SET {column} = {slot} WHERE rowid = ?", (new, row))


def newest_kind(end: End) -> str:
    return end.vault.events_after(end.call(Status()).leaves - 1)[-1][1].kind


@pytest.mark.parametrize("column", columns_of(records.Bundle))
def test_a_bundle_with_any_column_altered_opens_none_of_its_keys_and_the_others_serve(pair: Pair, column: str) -> None:
    pair.stock()
    ids, others = pair.ready(), pair.ready()
    with pair.alice.tampering() as file:
        (first,) = file.execute("SELECT min(number) FROM bundles").fetchone()
        alter(file, "bundles", column, first)
    for _ in range(2):
        for key in ids:
            with pytest.raises(QkdnodeError):
                contents(pair.alice, key)
    for key in others:
        assert contents(pair.alice, key) == contents(pair.bob, key)
    listed = {row.key_id for row in pair.alice.call(ApplicationOutbox(application="payroll"))}
    assert listed == set(others)


def test_a_damaged_bundle_is_named_set_aside_and_journalled(pair: Pair) -> None:
    pair.stock()
    ids = pair.ready()
    with pair.alice.tampering() as file:
        file.execute("UPDATE bundles SET states = x'727272', mac = zeroblob(32)")
    with pytest.raises(VaultDamagedError, match=r"record bundles/\d+ of the vault fails its authentication"):
        contents(pair.alice, ids[0])
    assert newest_kind(pair.alice) == "record.damaged"
    for key in ids:
        with pytest.raises(QkdnodeError, match="no usable key"):
            contents(pair.alice, key)
    assert pair.alice.call(Status()).keys == {"damaged": 3}
    assert pair.alice.call(Outstanding(association=HERE)) == 0


@pytest.mark.parametrize(
    "tampering", ["sealed = zeroblob(48)", "wrapped = x'00'", "sealed = x''", "place = place + 128"]
)
def test_one_damaged_key_is_set_aside_alone_and_journalled(pair: Pair, tampering: str) -> None:
    pair.stock()
    ids = pair.ready()
    with pair.alice.tampering() as file:
        file.execute(f"UPDATE keys SET {tampering} WHERE place = (SELECT min(place) + 1 FROM keys)")
    with pytest.raises(VaultDamagedError, match=r"record keys/[0-9a-f]{32} of the vault does not unseal"):
        pair.alice.call(OpenKeys(key_ids=ids, application="payroll"))
    kinds = [event.kind for _, event in pair.alice.vault.events_after(pair.alice.call(Status()).leaves - 2)]
    assert kinds == ["key.damaged", "record.damaged"]
    with pytest.raises(QkdnodeError, match="no usable key"):
        contents(pair.alice, ids[1])
    opened = pair.alice.call(OpenKeys(key_ids=ids, application="payroll"))
    opened.material.release()
    assert opened.key_ids == (ids[0], ids[2])
    assert pair.alice.call(Status()).keys == {"ready": 2, "damaged": 1}
    assert pair.alice.call(Outstanding(association=HERE)) == 2


def put_back(end: End, table: str, change: Callable[[], object]) -> None:
    """Keep the table's rows, let the vault change them, write the old rows over the new."""
    with end.tampering() as file:
        before = file.execute(f"SELECT rowid, * FROM {table}").fetchall()
    change()
    with end.tampering() as file:
        file.execute("PRAGMA foreign_keys = OFF")
        slots = ", ".join("?" * len(before[0][1:]))
        for rowid, *values in before:
            file.execute(f"DELETE FROM {table} WHERE rowid = ?", (rowid,))
            file.execute(f"INSERT INTO {table} VALUES ({slots})", values)


@pytest.mark.parametrize("tables", [("bundles", "keys"), ("bundles",), ("keys",)])
def test_a_delivered_key_put_back_is_not_supplied_again(pair: Pair, tables: tuple[str, ...]) -> None:
    from test_vault_keys import delivered

    pair.stock()
    ids = pair.ready()

    def deliver() -> None:
        delivered(pair.alice, ids)

    change = deliver
    for table in tables:
        change = partial(put_back, pair.alice, table, change)
    change()
    assert pair.alice.call(ApplicationOutbox(application="payroll")) == ()
    with pytest.raises(QkdnodeError):
        contents(pair.alice, ids[0])


@pytest.mark.parametrize("restarted", [False, True])
def test_stock_put_back_is_not_cut_again(pair: Pair, restarted: bool) -> None:
    pair.stock(bits_out=20_000)
    first = pair.alice.association
    put_back(pair.alice, "chunks", lambda: pair.allocate(pair.alice))
    if restarted:
        pair.alice.reopen()
    assert first == HERE
    with pytest.raises(VaultDamagedError, match="an old state put back"):
        pair.allocate(pair.alice)


def test_pads_put_back_are_not_reserved_again(pair: Pair) -> None:
    reserve = ReservePads(link=LINK, within=EVERYWHERE, count=5)
    put_back(pair.alice, "segments", lambda: pair.alice.call(reserve))
    with pytest.raises(VaultDamagedError, match=r"segments/metro/.* an old state put back"):
        pair.alice.call(reserve)
    assert pair.alice.call(PadsLeft(link=LINK)) == 0


def test_a_session_counter_put_back_is_seen(pair: Pair) -> None:
    put_back(pair.alice, "links", lambda: pair.alice.call(NextSession(link=LINK)))
    with pytest.raises(VaultDamagedError, match="links/metro"):
        pair.alice.call(NextSession(link=LINK))


@pytest.mark.parametrize("column", [c for c in columns_of(records.Chunk) if c not in records.Chunk.key])
def test_an_altered_chunk_is_set_aside_and_the_others_serve(pair: Pair, column: str) -> None:
    pair.stock(bits_out=300_000)
    with pair.alice.tampering() as file:
        alter(file, "chunks", column, 1)
    for _ in range(2):
        try:
            pair.allocate(pair.alice)
        except QkdnodeError:
            continue
    pair.exchange()
    ready = pair.alice.call(ApplicationOutbox(application="payroll"))
    assert ready
    for row in ready:
        assert contents(pair.alice, row.key_id) == contents(pair.bob, row.key_id)


@pytest.mark.parametrize("column", [c for c in columns_of(records.Segment) if c not in records.Segment.key])
def test_an_altered_segment_is_not_used(pair: Pair, column: str) -> None:
    pair.stock()
    with pair.alice.tampering() as file:
        alter(file, "segments", column, 1)
    taken = []
    for _ in range(2):
        try:
            taken = pair.alice.call(ReservePads(link=LINK, within=EVERYWHERE, count=1))
        except QkdnodeError:
            continue
    assert [pad.segment for pad in taken] == [FIRST]
    assert [state.segment for state in pair.alice.open_link().segments] == [FIRST]


@pytest.mark.parametrize("column", [c for c in columns_of(records.Batch) if c not in records.Batch.key])
def test_an_altered_batch_is_not_settled(pair: Pair, column: str) -> None:
    pair.journal()
    with pair.alice.tampering() as file:
        alter(file, "batches", column, 1)
    with pytest.raises(VaultDamagedError, match="batches/metro"):
        pair.alice.call(SettlePending(link=LINK, batch=FIRST, ready=True))


@pytest.mark.parametrize("column", [c for c in columns_of(records.Notice) if c not in ("link", "number")])
def test_an_altered_message_is_not_sent(pair: Pair, column: str) -> None:
    pair.stock()
    pair.allocate(pair.alice)
    pair.allocate(pair.alice)
    good = waiting(pair.alice)[1]
    with pair.alice.tampering() as file:
        alter(file, "outbox", column, 1)
    assert waiting(pair.alice) == [good]
    assert len(pair.alice.call(NeighbourOutbox(link=LINK))) == 1


@pytest.mark.parametrize("column", [c for c in columns_of(records.KnownAssociation) if c != "number"])
def test_an_altered_association_gets_no_keys(pair: Pair, column: str) -> None:
    pair.stock()
    pair.alice.reopen()
    with pair.alice.tampering() as file:
        alter(file, "associations", column, 1)
    with pytest.raises(QkdnodeError):
        pair.allocate(pair.alice)


def test_an_altered_answer_to_the_peer_is_not_given(pair: Pair) -> None:
    pair.stock()
    pair.allocate(pair.alice)
    (allocate,) = waiting(pair.alice)
    request = AcceptAllocation(link=LINK, allocate=allocate)
    pair.bob.call(request)
    with pair.bob.tampering() as file:
        alter(file, "requests", "outcome", 1)
    with pytest.raises(VaultDamagedError, match="requests/metro"):
        pair.bob.call(request)


def test_a_row_of_another_key_is_not_opened_in_its_place(pair: Pair) -> None:
    pair.stock()
    first, _, _ = pair.ready()
    with pair.alice.tampering() as file:
        (place,) = file.execute("SELECT min(place) FROM keys").fetchone()
        file.execute("DELETE FROM keys WHERE place = ?", (place,))
        file.execute("UPDATE keys SET place = ? WHERE place = ?", (place, place + 1))
    with pytest.raises(VaultDamagedError):
        contents(pair.alice, first)


def test_an_id_led_to_another_bundle_finds_no_key(pair: Pair) -> None:
    pair.stock()
    first, second = pair.ready(count=1), pair.ready(count=1)
    with pair.alice.tampering() as file:
        numbers = dict(file.execute("SELECT key_ids, number FROM bundles"))
        head = int.from_bytes(first[0].bytes[:8], "big", signed=True)
        file.execute("UPDATE key_heads SET bundle = ? WHERE head = ?", (numbers[second[0].bytes], head))
    with pytest.raises(QkdnodeError, match="no usable key"):
        contents(pair.alice, first[0])
    assert contents(pair.alice, second[0])


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("UPDATE leaves SET leaf = replace(leaf, 'metro', 'retro') WHERE position = 2", "audit log"),
        ("UPDATE leaves SET leaf = leaf || ' ' WHERE position = 2", "entry 2 .* canonical"),
        ("DELETE FROM leaves WHERE position = 2", "entry 3"),
        ("DELETE FROM leaves WHERE position = (SELECT max(position) FROM leaves)", "was changed"),
        ("UPDATE checkpoints SET note = replace(note, 'a.audit', 'b.audit')", "checkpoint"),
        ("UPDATE meta SET value = x'00' WHERE name = 'log head'", "head"),
        ("UPDATE meta SET value = x'00' WHERE name = 'identity'", "whose"),
        ("UPDATE meta SET value = x'00' WHERE name = 'row MAC key'", "row MAC key"),
        ("DELETE FROM meta WHERE name = 'pseudonym salt'", "pseudonym salt"),
        ("DELETE FROM meta WHERE name = 'root parameters'", "root key"),
    ],
)
def test_an_altered_log_or_node_key_keeps_the_vault_shut(pair: Pair, statement: str, what: str) -> None:
    end = pair.alice
    end.vault.close()
    with end.tampering() as file:
        file.execute(statement)
    with pytest.raises(VaultDamagedError, match=what):
        end.open()


NO_TEXT = "CAST(x'61ff' AS TEXT)"


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("UPDATE meta SET value = 7 WHERE name = 'root parameters'", "root parameters .* holds text, a number where"),
        ("UPDATE meta SET value = 'x' WHERE name = 'identity'", "identity .* text, text where text, bytes belongs"),
        (f"UPDATE meta SET value = {NO_TEXT} WHERE name = 'log head'", "log head .* not UTF-8"),
        ("UPDATE meta SET value = 0.5 WHERE name = 'pseudonym salt'", "pseudonym salt .* a fraction"),
        ("UPDATE leaves SET leaf = CAST(leaf AS BLOB) WHERE position = 2", "entry of the audit log .* bytes"),
        ("UPDATE checkpoints SET note = CAST(note AS BLOB)", "checkpoint .* bytes"),
        (f"UPDATE checkpoints SET note = {NO_TEXT}", "checkpoint .* not UTF-8"),
    ],
)
def test_a_value_of_another_type_keeps_the_vault_shut_and_says_what_it_is(
    pair: Pair, statement: str, what: str
) -> None:
    end = pair.alice
    end.vault.close()
    with end.tampering() as file:
        file.execute(statement)
    with pytest.raises(VaultDamagedError, match=what):
        end.open()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE meta SET value = 7 WHERE name = 'identity'",
        "UPDATE meta SET value = CAST(value AS TEXT) WHERE name = 'identity'",
        "UPDATE leaves SET leaf = CAST(leaf AS BLOB) WHERE position = 2",
        "UPDATE checkpoints SET note = CAST(note AS BLOB)",
        f"UPDATE checkpoints SET note = {NO_TEXT}",
    ],
)
def test_an_export_ends_in_words_over_a_value_of_another_type(pair: Pair, statement: str) -> None:
    with pair.alice.tampering() as file:
        file.execute(statement)
    with pytest.raises(VaultDamagedError, match="is damaged: the file holds"):
        export_audit(pair.alice.path, lambda line: None)


def test_a_state_of_a_batch_that_is_no_text_is_shown_and_keeps_no_other_from_being_counted(pair: Pair) -> None:
    pair.stock()
    pair.journal(BatchId(1, 2))
    with pair.alice.tampering() as file:
        file.execute(f"UPDATE batches SET state = {NO_TEXT} WHERE state = 'pending'")
    assert pair.alice.call(Status()).batches == {"ready": 1, "a\ufffd": 1}


def test_a_count_of_another_type_is_named_and_no_key_depends_on_it(pair: Pair) -> None:
    pair.stock()
    (key,) = pair.ready(count=1)
    with pair.alice.tampering() as file:
        file.execute("UPDATE counts SET value = x'00'")
    with pytest.raises(VaultDamagedError, match="a count of keys in the vault is damaged"):
        pair.alice.call(Status())
    assert contents(pair.alice, key) == contents(pair.bob, key)


def test_a_lost_kek_makes_its_keys_useless_and_no_others(pair: Pair) -> None:
    pair.stock()
    ids = pair.ready()
    pair.alice.reopen()
    with pair.alice.tampering() as file:
        file.execute("UPDATE keks SET wrapped = zeroblob(60) WHERE link = ?", (LINK,))
    with pytest.raises(VaultDamagedError, match="key-encryption key of link 'metro'"):
        pair.alice.call(OpenKey(key_id=ids[0], application="payroll"))


def test_an_answer_for_a_damaged_bundle_is_taken_once_it_is_set_aside(pair: Pair) -> None:
    pair.stock()
    pair.allocate(pair.alice)
    (allocate,) = waiting(pair.alice)
    with pair.alice.tampering() as file:
        alter(file, "bundles", "mac", allocate.request)
    answer = AllocationAnswered(link=LINK, request=allocate.request, outcome="accepted")
    with pytest.raises(VaultDamagedError):
        pair.alice.call(answer)
    assert pair.alice.call(answer) == ()
    assert waiting(pair.alice) == []
