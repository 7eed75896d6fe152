"""What a vault signs of the neighbour's log, and what it keeps of the neighbour's signatures on its own."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from signing import OTHER, PUBLIC, SIGNING
from vaults import ALICE, BOB, LINK, End, Pair

from qkdnode.audit import verifier
from qkdnode.audit.checkpoint import parse
from qkdnode.audit.events import LinkEvent
from qkdnode.errors import LocalProtocolError, VaultDamagedError
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault.export_reader import export_audit
from qkdnode.vault.proofs import ProveEntry
from qkdnode.vault.requests import ProvisionLink, RecordEvents
from qkdnode.vault.segments import GREETING_PADS
from qkdnode.vault.witnessing import Deposition, Growth, KeepCosignature, NextCheckpoint, Witness

EVENT = LinkEvent(time_ns=1, node="a", topic="link.metro", kind="link.tried", subject="metro")


def grow(end: End, count: int = 3) -> None:
    end.call(RecordEvents(events=(EVENT,) * count))


def next_of(end: End, old_size: int | None = None) -> Growth | None:
    peer = "b" if end.role == ALICE else "a"
    growth: Growth | None = end.call(NextCheckpoint(witness=f"{peer}.witness", old_size=old_size))
    return growth


def shown(witness: End, growth: Growth | None, **changes: Any) -> Deposition:
    assert growth is not None
    peer = "b" if witness.role == ALICE else "a"
    fields = {"old_size": growth.old_size, "proof": growth.proof, "note": growth.note, **changes}
    request = {"link": LINK, "origin": f"{peer}.audit", "log_key": PUBLIC, **fields}
    deposition: Deposition = witness.call(Witness(**request))
    return deposition


def keep(end: End, deposition: Deposition, **changes: Any) -> bool:
    peer = "b" if end.role == ALICE else "a"
    fields = {"witness": f"{peer}.witness", "log_key": PUBLIC, "size": deposition.size, "line": deposition.line}
    kept: bool = end.call(KeepCosignature(**{**fields, **changes}))
    return kept


def leaves_of(end: End, kind: str) -> list[Any]:
    return [event for _, event in end.vault.events_after(0, 4096) if event.kind == kind]


def test_what_the_neighbour_signs_is_exported_and_counted_offline(pair: Pair) -> None:
    for _ in range(3):
        grow(pair.alice)
        deposition = shown(pair.bob, next_of(pair.alice))
        assert deposition.refused == ""
        assert keep(pair.alice, deposition)
    assert next_of(pair.alice) is None  # nothing has happened since
    grow(pair.alice)
    lines: list[str] = []
    export_audit(pair.alice.path, lines.append)
    report = verifier.verify(lines, PUBLIC, [OTHER.log_key])
    assert (report.valid, report.witnessed) == (True, 0)
    report = verifier.verify(lines, PUBLIC, [PUBLIC])  # the two ends of these tests have the same keys
    assert report.valid
    cosigned = [event.details["size"] for event in leaves_of(pair.bob, "log.cosigned")]
    assert len(cosigned) == 3
    assert sum("b.witness" in line for line in lines) == 3
    receipt = pair.alice.call(ProveEntry(position=1))
    assert f"\n{cosigned[-1]}\n" in receipt
    assert "— b.witness " in receipt
    assert verifier.verify_receipt(receipt.encode(), PUBLIC).entry == 1


def test_the_witness_remembers_over_a_restart_before_it_answers(pair: Pair) -> None:
    older = next_of(pair.alice)
    grow(pair.alice)
    newer = next_of(pair.alice)
    signed = shown(pair.bob, newer)
    assert signed.refused == ""
    pair.bob.reopen()
    assert older is not None
    assert newer is not None
    assert shown(pair.bob, older).refused == "rollback"
    again = shown(pair.bob, newer)
    assert (again.refused, again.size) == ("", newer.size)
    assert len(leaves_of(pair.bob, "log.cosigned")) == 1


def test_a_proof_from_elsewhere_is_answered_with_where_to_prove_from(pair: Pair) -> None:
    first = shown(pair.bob, next_of(pair.alice))
    grow(pair.alice, 40)
    lost = shown(pair.bob, next_of(pair.alice))  # Alice has not kept the first answer: she proves from nothing
    assert (lost.refused, lost.cosigned) == ("size", first.size)
    assert shown(pair.bob, next_of(pair.alice, lost.cosigned)).refused == ""


def copy_of(end: End, place: Path) -> End:
    """The same node's vault, as a copy of it goes on."""
    end.vault.close()
    shutil.copytree(end.directory, place / end.directory.name)
    end.open()
    twin = object.__new__(End)
    twin.role, twin.directory, twin.counter = end.role, place / end.directory.name, end.counter
    twin.path, twin.association = twin.directory / "vault.db", end.association
    twin.open()
    return twin


def test_a_log_that_goes_on_twice_is_a_fork_and_both_words_of_it_are_kept(pair: Pair, tmp_path: Path) -> None:
    twin = copy_of(pair.alice, tmp_path / "twin")
    grow(pair.alice, 5)
    true = next_of(pair.alice)
    assert shown(pair.bob, true).refused == ""
    assert true is not None
    for count in (5, 1, 1):
        grow(twin, count)
        told = next_of(twin, true.size)
        assert told is not None
        assert shown(pair.bob, told).refused == "fork"
    with pair.bob.tampering() as file:
        ((note, contradiction),) = file.execute("SELECT note, contradiction FROM witnessed").fetchall()
    assert note == true.note
    assert parse(contradiction).checkpoint.origin == "a.audit"
    assert len(leaves_of(pair.bob, "log.contradicted")) == 1  # others within ten minutes are not told again
    pair.bob.counter.ahead_ns += 601 * 10**9
    grow(twin)
    assert shown(pair.bob, next_of(twin, true.size)).refused == "fork"
    (first, second) = leaves_of(pair.bob, "log.contradicted")
    assert (first.outcome, second.outcome, first.details["cosigned"]) == ("fork", "fork", true.size)
    grow(pair.alice)
    assert shown(pair.bob, next_of(pair.alice, true.size)).refused == ""  # the log that was signed may go on
    twin.vault.close()


def test_an_older_copy_of_a_log_is_a_rollback(pair: Pair, tmp_path: Path) -> None:
    twin = copy_of(pair.alice, tmp_path / "twin")
    grow(pair.alice, 9)
    assert shown(pair.bob, next_of(pair.alice)).refused == ""
    assert shown(pair.bob, next_of(twin)).refused == "rollback"
    assert [event.outcome for event in leaves_of(pair.bob, "log.contradicted")] == ["rollback"]
    twin.vault.close()


def strip(note: str, line: int) -> str:
    lines = note.splitlines(keepends=True)
    del lines[line]
    return "".join(lines)


INVALID: dict[str, Any] = {
    "without its Ed25519 line": lambda growth: {"note": strip(growth.note, -2)},
    "without its ML-DSA-44 line": lambda growth: {"note": strip(growth.note, -1)},
    "of another key": lambda growth: {"log_key": OTHER.log_key},
    "of another log": lambda growth: {"origin": "c.audit"},
    "no note": lambda growth: {"note": "hello"},
    "with a proof from nothing that is none": lambda growth: {"old_size": 0, "proof": (bytes(32),)},
}


@pytest.mark.parametrize("change", INVALID.values(), ids=INVALID)
def test_what_is_no_checkpoint_of_the_neighbour_is_not_signed(pair: Pair, change: Any) -> None:
    growth = next_of(pair.alice)
    assert growth is not None
    assert shown(pair.bob, growth, **change(growth)).refused == "invalid"
    assert not leaves_of(pair.bob, "log.cosigned")
    assert shown(pair.bob, growth).refused == ""


def test_only_the_witness_s_signature_on_this_log_is_kept(pair: Pair) -> None:
    growth = next_of(pair.alice)
    signed = shown(pair.bob, growth)
    for changes in (
        {"line": signed.line[:-8] + "\n"},
        {"line": signed.line.replace("b.witness", "c.witness")},
        {"witness": "c.witness"},
        {"log_key": OTHER.log_key},
        {"size": signed.size + 1},
        {"size": 0},
        {"line": ""},
    ):
        assert not keep(pair.alice, signed, **changes)
    assert keep(pair.alice, signed)
    assert keep(pair.alice, signed)  # told twice


TAMPERINGS = {
    "deleted": ("DELETE FROM witnessed", "lacks what this node has signed last"),
    "set back by hand": ("UPDATE witnessed SET size = 1", "fails its authentication"),
    "put back": ("UPDATE witnessed SET {old}", "is an old state put back"),
}


@pytest.mark.parametrize(("statement", "found"), TAMPERINGS.values(), ids=TAMPERINGS)
def test_a_witness_whose_memory_was_touched_signs_nothing_more(pair: Pair, statement: str, found: str) -> None:
    assert keep(pair.alice, shown(pair.bob, next_of(pair.alice)))
    columns = "size, root, note, signed_ns, generation, leaf, mac"
    with pair.bob.tampering() as file:
        (old,) = file.execute(f"SELECT {columns} FROM witnessed").fetchall()
    grow(pair.alice)
    assert keep(pair.alice, shown(pair.bob, next_of(pair.alice)))
    grow(pair.alice)
    with pair.bob.tampering() as file:
        values = old if "{old}" in statement else ()
        file.execute(statement.format(old=", ".join(f"{name} = ?" for name in columns.split(", "))), values)
    for _ in range(2):
        growth = next_of(pair.alice)
        with pytest.raises(VaultDamagedError, match=found):
            shown(pair.bob, growth)


def test_a_pair_that_is_provisioned_anew_may_begin_a_new_log(pair: Pair, tmp_path: Path) -> None:
    grow(pair.alice, 20)
    assert shown(pair.bob, next_of(pair.alice)).refused == ""
    (tmp_path / "fresh").mkdir(mode=0o700)
    fresh = End(tmp_path / "fresh", ALICE)
    assert shown(pair.bob, next_of(fresh)).refused == "rollback"
    material = SecretBuffer.copy_of(bytes(32 * (256 + GREETING_PADS)))
    pair.bob.call(ProvisionLink(link=LINK, role=BOB, peer="a", pair=b"another", material=material))
    assert shown(pair.bob, next_of(fresh)).refused == ""
    fresh.vault.close()


def test_what_cannot_be_asked_is_told_so(pair: Pair) -> None:
    with pytest.raises(LocalProtocolError, match="cannot go on from"):
        next_of(pair.alice, 1 << 40)
    growth = next_of(pair.alice)
    assert growth is not None
    with pytest.raises(LocalProtocolError, match="is not known"):
        pair.bob.call(
            Witness(
                link="nowhere",
                origin="a.audit",
                log_key=SIGNING.log_key,
                old_size=0,
                proof=(),
                note=growth.note,
            )
        )
