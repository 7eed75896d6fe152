"""The pass over all records: it meets every damage, and goes on where it was."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from test_vault_keys import delivered
from vaults import LINK, End, Pair, contents

from qkdnode.errors import QkdnodeError
from qkdnode.ids import ALICE
from qkdnode.vault import scrub
from qkdnode.vault.requests import LogHead, NextSession, OpenKeys, Status
from qkdnode.vault.scrub import Scrub, ScrubProgress, ScrubState


def scrubbed(end: End) -> tuple[ScrubState, list[str]]:
    """A whole pass; its end, and what it met."""
    state: ScrubState = end.call(Scrub(now=True))
    met = list(state.met)
    while state.running:
        state = end.call(Scrub())
        met += state.met
    return state, met


def stocked(pair: Pair) -> tuple[End, list[bytes]]:
    pair.stock()
    for _ in range(3):
        pair.ready(count=5)
    delivered(pair.alice, pair.ready(count=2))
    with pair.alice.tampering() as file:
        return pair.alice, [row[0] for row in file.execute("SELECT key_ids FROM bundles ORDER BY number")]


def test_a_sound_vault_passes_and_each_pass_is_told_with_its_counts(pair: Pair) -> None:
    end, _ = stocked(pair)
    state, met = scrubbed(end)
    assert met == []
    assert (state.keys, state.damaged) == (17, 0)
    with end.tampering() as file:
        chunks = file.execute("SELECT count(*) FROM chunks").fetchall()[0][0]
        segments = file.execute("SELECT count(*) FROM segments WHERE wrapped IS NOT NULL").fetchall()[0][0]
    assert state.ciphertexts == 15 + chunks + segments
    (_, event), *_ = end.vault.events_after(end.call(Status()).leaves - 1)
    assert (event.kind, event.outcome, event.subject) == ("scrub.finished", "done", f"scrub/{state.number}")
    told = {name: event.details[name] for name in ("rows", "keys", "ciphertexts", "damaged")}
    assert told == {"rows": state.rows, "keys": 17, "ciphertexts": state.ciphertexts, "damaged": 0}


DAMAGES = [
    ("UPDATE keys SET sealed = zeroblob(48) WHERE place = (SELECT min(place) FROM keys)", "keys/"),
    ("UPDATE keys SET wrapped = zeroblob(60) WHERE place = (SELECT max(place) FROM keys)", "keys/"),
    ("DELETE FROM keys WHERE place = (SELECT min(place) + 2 FROM keys)", "keys/"),
    ("UPDATE bundles SET size_bits = 128 WHERE number = (SELECT max(number) FROM bundles)", "bundles/"),
    ("DELETE FROM bundles WHERE number = (SELECT min(number) FROM bundles)", "bundles/"),
    ("DELETE FROM key_heads WHERE head = (SELECT min(head) FROM key_heads)", "key_heads/"),
    ("INSERT INTO key_heads SELECT 77, number FROM bundles LIMIT 1", "key_heads/"),
    ("UPDATE chunks SET sealed = zeroblob(1000) WHERE rowid = 1", "chunks/"),
    ("UPDATE segments SET wrapped = zeroblob(60) WHERE rowid = 1", "segments/"),
    ("UPDATE links SET session_counter = 0", "links/"),
    ("UPDATE associations SET purpose = 'x'", "associations/"),
    ("UPDATE batches SET half_bits = half_bits + 8", "batches/"),
    ("DELETE FROM outbox WHERE false; UPDATE outbox SET body = x'00'", "outbox/"),
    ("UPDATE keks SET wrapped = zeroblob(60)", "keks/"),
    ("UPDATE keks SET algorithm = 'ChaCha20-Poly1305'", "keks/"),
    ("INSERT INTO keys SELECT max(number) * 128 + 100, zeroblob(48), zeroblob(60) FROM bundles", "keys/"),
]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed vault with a bit of everything, to be copied."""
    directory = tmp_path_factory.mktemp("kept")
    directory.chmod(0o700)
    pair = Pair(directory)
    end, _ = stocked(pair)
    end.call(NextSession(link=LINK))
    pair.allocate(end)  # so that something waits for the neighbour
    pair.close()
    return directory


@pytest.mark.parametrize(("statement", "named"), DAMAGES, ids=[statement for statement, _ in DAMAGES])
def test_every_damage_is_met_by_one_pass_and_told_in_a_leaf(
    kept: Path, tmp_path: Path, statement: str, named: str
) -> None:
    shutil.copytree(kept / "a", tmp_path / "a")
    end = End(tmp_path, ALICE)
    with end.tampering() as file:
        file.execute("PRAGMA foreign_keys = OFF")
        file.execute(statement)
    leaves = end.call(LogHead()).size
    state, met = scrubbed(end)
    kinds = [event.kind for _, event in end.vault.events_after(leaves)]
    end.vault.close()
    assert len(met) == state.damaged >= 1
    assert all(name.startswith(named) for name in met)
    assert {"scrub.begun", "record.damaged", "scrub.finished"} <= set(kinds)


def test_a_damaged_key_is_set_aside_alone_as_on_access(pair: Pair) -> None:
    pair.stock()
    ids = pair.ready()
    with pair.alice.tampering() as file:
        file.execute("UPDATE keys SET sealed = zeroblob(48) WHERE place = (SELECT min(place) + 1 FROM keys)")
    scrubbed(pair.alice)
    with pytest.raises(QkdnodeError, match="no usable key"):
        contents(pair.alice, ids[1])
    opened = pair.alice.call(OpenKeys(key_ids=ids, application="payroll"))
    opened.material.release()
    assert opened.key_ids == (ids[0], ids[2])
    _, met = scrubbed(pair.alice)
    assert met == []


def test_ids_that_lead_nowhere_are_led_to_their_bundle_again(pair: Pair) -> None:
    pair.stock()
    ids = pair.ready()
    with pair.alice.tampering() as file:
        file.execute("DELETE FROM key_heads")
    with pytest.raises(QkdnodeError):
        contents(pair.alice, ids[0])
    scrubbed(pair.alice)
    assert contents(pair.alice, ids[0]) == contents(pair.bob, ids[0])


def test_the_ciphertext_of_a_delivered_key_put_back_is_deleted(pair: Pair) -> None:
    pair.stock()
    ids = pair.ready()
    with pair.alice.tampering() as file:
        before = file.execute("SELECT * FROM keys").fetchall()
    delivered(pair.alice, ids[:1])
    with pair.alice.tampering() as file:
        file.execute("INSERT INTO keys VALUES (?, ?, ?)", before[0])
    _, met = scrubbed(pair.alice)
    assert met == [f"keys/{before[0][0]}"]
    with pair.alice.tampering() as file:
        assert file.execute("SELECT place FROM keys").fetchall() == [(row[0],) for row in before[1:]]


def test_a_pass_that_a_restart_interrupts_goes_on_and_misses_nothing(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("ROWS", "CHUNKS", "SEGMENTS", "HEADS", "BUNDLES"):
        monkeypatch.setattr(scrub, limit, 1)
    monkeypatch.setattr(scrub, "PAGES_PER_MARK", 3)
    end, _ = stocked(pair)
    whole, _ = scrubbed(end)
    with end.tampering() as file:
        file.execute("UPDATE keys SET sealed = zeroblob(48) WHERE place = (SELECT max(place) FROM keys)")
    state: ScrubState = end.call(Scrub(now=True))
    steps = 0
    while state.running:
        for _ in range(4):
            state = end.call(Scrub()) if state.running else state
        end.reopen()
        before, state = state, end.call(ScrubProgress())
        assert state.number == before.number
        assert state.rows <= before.rows
        steps += 1
    assert steps > 5
    assert state.damaged == 1
    assert state.keys == whole.keys
    assert state.ciphertexts == whole.ciphertexts - 1


def test_an_end_of_a_pass_put_back_or_forged_ends_no_pass(pair: Pair) -> None:
    end, _ = stocked(pair)
    scrubbed(end)
    with end.tampering() as file:
        old = file.execute("SELECT * FROM scrubs").fetchall()
    begun: ScrubState = end.call(Scrub(now=True))
    with end.tampering() as file:
        file.execute("DELETE FROM scrubs")
        file.execute(f"INSERT INTO scrubs VALUES ({', '.join('?' * len(old[0]))})", old[0])
    end.reopen()
    state: ScrubState = end.call(Scrub())
    assert state.running or state.number < begun.number
    assert end.call(Scrub(period_ns=0)).running


@pytest.mark.parametrize("late", [False, True])
def test_a_pass_begins_when_the_last_one_is_old_enough(pair: Pair, late: bool) -> None:
    end, _ = stocked(pair)
    scrubbed(end)
    end.counter.days = 2 if late else 0
    assert end.call(Scrub()).running is late


def test_a_page_looks_at_no_more_than_it_may(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.stock(bits_out=400_000)
    for _ in range(3):
        pair.ready(count=128)
    looked: list[int] = []
    right: Callable[..., list[int]] = pair.alice.vault._core._store.sealing.try_unseal

    def counted(kek: int | None, pieces: list[tuple[object, bytes, bytes]]) -> list[int]:
        looked.append(len(pieces))
        return right(kek, pieces)

    monkeypatch.setattr(pair.alice.vault._core._store.sealing, "try_unseal", counted)
    state: ScrubState = pair.alice.call(Scrub(now=True))
    most = 0
    while state.running:
        looked.clear()
        state = pair.alice.call(Scrub())
        most = max(most, sum(looked))
    assert 128 <= most <= scrub.WORK
