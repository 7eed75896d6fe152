"""Key-encryption keys: data keys move to another one, and one that holds nothing is destroyed, with a proof."""

from typing import Any
from uuid import UUID

import pytest
from test_vault_keys import delivered
from vaults import LINK, End, Pair, contents

from qkdnode.errors import LocalProtocolError
from qkdnode.ids import BatchId
from qkdnode.vault import epochs
from qkdnode.vault.epochs import EndEpoch, Epochs, EpochsState, MoveDataKeys, RewrapKeys, RewrapState
from qkdnode.vault.readback import ReadBack, ReadBackState
from qkdnode.vault.requests import LogHead
from qkdnode.vault.scrub import Scrub
from qkdnode.vault.sealing import AES_256_GCM, CHACHA20_POLY1305


def kinds_of(end: End) -> list[tuple[str, str]]:
    return [(event.kind, event.outcome) for _, event in end.vault.events_after(0, 4096)]


def details_of(end: End, kind: str) -> list[dict[str, Any]]:
    return [event.details for _, event in end.vault.events_after(0, 4096) if event.kind == kind]


def moved(end: End) -> None:
    while end.call(MoveDataKeys()):
        pass


def read(end: End) -> tuple[str, ...]:
    """Read the files to their end; what is not gone."""
    state: ReadBackState = end.call(ReadBack())
    while state.running:
        state = end.call(ReadBack())
    return state.failures


def ended(end: End) -> tuple[str, ...]:
    """Destroy all epochs that can be; what failed."""
    while end.call(EndEpoch()):
        pass
    return read(end)


def keks(end: End) -> dict[str, int]:
    """The rows under the keys of each algorithm that are there."""
    state: EpochsState = end.call(Epochs())
    return {kek.algorithm: kek.rows for kek in state.keks if kek.state == "present"}


def files(end: End) -> bytes:
    return end.path.read_bytes() + end.path.with_name("vault.db-wal").read_bytes()


@pytest.fixture
def stocked(pair: Pair) -> Pair:
    pair.stock()
    pair.ready(count=5)
    return pair


@pytest.mark.parametrize("to", [CHACHA20_POLY1305, "epoch"])
def test_data_keys_move_and_all_that_they_seal_stays_as_it_was(stocked: Pair, to: str) -> None:
    end = stocked.alice
    ids = stocked.ready(count=110)
    with end.tampering() as file:
        sealed = file.execute("SELECT sealed FROM keys ORDER BY place").fetchall()
        wrapped = [row[0] for row in file.execute("SELECT wrapped FROM keys")]
    end.counter.days = 1
    begun: RewrapState = end.call(RewrapKeys(to=to, by="max"))
    assert begun.left == begun.rows > 4
    moved(end)
    state: EpochsState = end.call(Epochs())
    assert state.rewrap is not None
    assert (state.rewrap.state, state.rewrap.left) == ("finished", 0)
    assert sum(kek.rows for kek in state.keks if kek.epoch == max(k.epoch for k in state.keks)) == begun.rows
    with end.tampering() as file:
        assert file.execute("SELECT sealed FROM keys ORDER BY place").fetchall() == sealed
        assert {row[0] for row in file.execute("SELECT wrapped FROM keys")}.isdisjoint(wrapped)
    for key in (*ids[:2], ids[-1]):
        assert contents(end, key) == contents(stocked.bob, key)
    more = stocked.ready(count=2)
    assert contents(end, more[0]) == contents(stocked.bob, more[0])
    assert end.open_link().segments
    assert ("rewrap.finished", "done") in kinds_of(end)


def test_new_keys_are_of_the_algorithm_of_the_newest_order_also_after_a_restart(stocked: Pair) -> None:
    end = stocked.alice
    end.call(RewrapKeys(to=CHACHA20_POLY1305, by="max"))
    moved(end)
    end.reopen()
    stocked.stock(BatchId(1, 2))
    assert keks(end)[AES_256_GCM] == 0
    assert keks(end)[CHACHA20_POLY1305] > 4
    end.call(RewrapKeys(to=AES_256_GCM, by="max"))
    moved(end)
    assert keks(end)[CHACHA20_POLY1305] == 0


def test_a_move_that_is_interrupted_goes_on_where_it_was(stocked: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochs, "BUNDLES_AT_ONCE", 1)
    monkeypatch.setattr(epochs, "ROWS_AT_ONCE", 1)
    end = stocked.alice
    ids = stocked.ready(count=3)
    left = end.call(RewrapKeys(to=CHACHA20_POLY1305, by="max")).left
    for _ in range(left):
        assert end.call(MoveDataKeys())
        assert end.call(Epochs()).rewrap.left == left - 1
        assert contents(end, ids[0]) == contents(stocked.bob, ids[0])
        left -= 1
        end.reopen()
    assert not end.call(MoveDataKeys())
    assert end.call(Epochs()).rewrap.state == "finished"


def test_a_data_key_that_does_not_unwrap_is_set_aside_and_the_others_move(stocked: Pair) -> None:
    end = stocked.alice
    ids = stocked.ready(count=3)
    with end.tampering() as file:
        file.execute("UPDATE keys SET wrapped = zeroblob(60) WHERE place = (SELECT max(place) FROM keys)")
        file.execute("UPDATE chunks SET wrapped = zeroblob(60) WHERE rowid = 1")
    end.call(RewrapKeys(to=CHACHA20_POLY1305, by="max"))
    moved(end)
    assert contents(end, ids[0]) == contents(stocked.bob, ids[0])
    assert kinds_of(end).count(("record.damaged", "set_aside")) == 2
    assert end.call(Epochs()).rewrap.state == "finished"


def test_a_second_order_takes_the_place_of_one_that_runs_and_the_same_one_is_no_second(stocked: Pair) -> None:
    end = stocked.alice
    first = end.call(RewrapKeys(to=CHACHA20_POLY1305, by="max"))
    assert end.call(RewrapKeys(to=CHACHA20_POLY1305, by="mia")) == first
    end.call(MoveDataKeys())
    assert end.call(RewrapKeys(to=AES_256_GCM, by="max")).number > first.number
    moved(end)
    assert keks(end)[CHACHA20_POLY1305] == 0
    assert ("rewrap.superseded", "done") in kinds_of(end)


def test_an_algorithm_that_is_not_known_is_refused_with_those_that_are(stocked: Pair) -> None:
    with pytest.raises(LocalProtocolError, match="AES-256-GCM, ChaCha20-Poly1305, or epoch"):
        stocked.alice.call(RewrapKeys(to="DES", by="max"))


def test_no_epoch_ends_that_holds_anything_or_is_not_past(stocked: Pair) -> None:
    end = stocked.alice
    end.call(RewrapKeys(to=CHACHA20_POLY1305, by="max"))
    moved(end)
    assert ended(end) == ()
    assert keks(end) == {AES_256_GCM: 0, CHACHA20_POLY1305: keks(end)[CHACHA20_POLY1305]}
    end.counter.days = 1
    ended(end)
    assert set(keks(end)) == {CHACHA20_POLY1305}
    assert contents(end, stocked.ready(count=1)[0])


def test_an_epoch_that_holds_nothing_is_destroyed_with_its_proof(stocked: Pair) -> None:
    end = stocked.alice
    with end.tampering() as file:
        ((wrapped,),) = file.execute("SELECT wrapped FROM keks").fetchall()
    assert wrapped in files(end)
    end.counter.days = 1
    end.call(RewrapKeys(to="epoch", by="max"))
    moved(end)
    assert ended(end) == ()
    (told,) = details_of(end, "epoch.destroyed")
    assert (told["method"], told["read_back"], told["searched"], told["unwrap"]) == (
        "crypto-erase", "not found", "wrapped key", "fails",
    )  # fmt: skip
    assert told["bytes_read"] >= end.path.stat().st_size
    assert wrapped not in files(end)
    assert {kek.state for kek in end.call(Epochs()).keks} == {"present", "destroyed"}
    assert end.call(ReadBack()) == ReadBackState(False)


def test_an_epoch_that_a_restart_leaves_unproven_is_proven_by_what_is_known_then(stocked: Pair) -> None:
    end = stocked.alice
    end.counter.days = 1
    end.call(RewrapKeys(to="epoch", by="max"))
    moved(end)
    end.call(EndEpoch())
    end.reopen()
    assert details_of(end, "epoch.destroyed") == []
    assert read(end) == ()
    (told,) = details_of(end, "epoch.destroyed")
    assert told["searched"] == "its nonce"


@pytest.mark.parametrize("restarted", [False, True])
def test_a_kek_whose_bytes_are_still_in_the_file_is_not_destroyed(stocked: Pair, restarted: bool) -> None:
    end = stocked.alice
    with end.tampering() as file:
        file.execute("INSERT INTO meta SELECT 'copy', wrapped FROM keks")
    end.counter.days = 1
    end.call(RewrapKeys(to="epoch", by="max"))
    moved(end)
    end.call(EndEpoch())
    if restarted:
        end.reopen()
    (failure,) = read(end)
    assert "its trace is found" in failure
    assert details_of(end, "epoch.destroyed") == []
    (told,) = details_of(end, "epoch.not_destroyed")
    assert told["read_back"] == "found"
    with end.tampering() as file:
        file.execute("DELETE FROM meta WHERE name = 'copy'")
    # `secure_delete` is a connection's own: the copy was not deleted by ours.
    assert len(read(end)) == 1
    assert {kek.state for kek in end.call(Epochs()).keks} == {"present", "deleted"}


def test_a_kek_that_is_still_in_memory_is_not_destroyed(stocked: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    end = stocked.alice
    sealing = end.vault._core._store.sealing
    end.counter.days = 1
    end.call(RewrapKeys(to="epoch", by="max"))
    moved(end)
    right = sealing._drop
    monkeypatch.setattr(sealing, "_drop", lambda number: None)
    failures = ended(end)
    monkeypatch.setattr(sealing, "_drop", right)
    assert len(failures) == 1
    (told,) = details_of(end, "epoch.not_destroyed")
    assert (told["read_back"], told["unwrap"]) == ("not found", "opens")


def test_deleted_data_keys_are_searched_for_and_not_found(stocked: Pair) -> None:
    end = stocked.alice
    with end.tampering() as file:
        wrapped = [row[0] for row in file.execute("SELECT wrapped FROM keys")]
    ids = stocked.ready(count=4)
    read(end)
    first = end.call(LogHead()).size
    delivered(end, ids)
    last = end.call(LogHead()).size - 1
    assert read(end) == ()
    told = details_of(end, "erasure.read_back")[-1]
    assert (told["first"], told["last"]) == (first, last)
    assert (told["deleted"], told["searched"], told["found"]) == (4, 4, 0)
    assert all(blob in files(end) for blob in wrapped)
    assert end.call(ReadBack()) == ReadBackState(False)


def test_a_deleted_data_key_that_is_still_in_the_file_is_found(stocked: Pair) -> None:
    end = stocked.alice
    with end.tampering() as file:
        last = "SELECT 'copy', substr(wrapped, 30) FROM keys WHERE place = (SELECT max(place) FROM keys)"
        file.execute(f"INSERT INTO meta {last}")
        ids = [row[0] for row in file.execute("SELECT key_ids FROM bundles")]
    delivered(end, tuple(UUID(bytes=ids[0][i : i + 16]) for i in range(0, len(ids[0]), 16)))
    (failure,) = read(end)
    assert "still in the file" in failure
    assert ("erasure.read_back", "found") in kinds_of(end)


def test_nothing_is_read_for_fewer_deletions_than_asked(stocked: Pair) -> None:
    end = stocked.alice
    read(end)
    delivered(end, stocked.ready(count=3))
    assert end.call(ReadBack(at_least=100)) == ReadBackState(False)
    assert end.call(ReadBack(at_least=3)).running


def test_a_reader_of_the_file_delays_the_search_and_does_not_hold_up_the_vault(stocked: Pair) -> None:
    end = stocked.alice
    delivered(end, stocked.ready(count=3))
    with end.tampering() as file:
        file.execute("SELECT * FROM leaves").fetchone()
        stocked.ready(count=1)
        assert all(end.call(ReadBack()).running for _ in range(5))
        assert ("erasure.read_back", "done") not in kinds_of(end)
    assert read(end) == ()
    assert ("erasure.read_back", "done") in kinds_of(end)


def test_a_pass_over_all_records_is_clean_after_a_move(stocked: Pair) -> None:
    end = stocked.alice
    end.counter.days = 1
    end.call(RewrapKeys(to=CHACHA20_POLY1305, by="max"))
    moved(end)
    assert ended(end) == ()
    state = end.call(Scrub(now=True))
    while state.running:
        state = end.call(Scrub())
    assert state.damaged == 0
    assert LINK in {kek.link for kek in end.call(Epochs()).keks}
