"""A rotation by files between two real vaults whose link is cut: lost, repeated, altered, late; and crashes."""

import itertools
import json
from typing import Any

import apsw
import msgspec
import pytest
import vaults
from approving import KEYS, PEOPLE, policy
from couriers import accept_offered, imported, signed, written
from rotating import begin, end_rows, offered, opens, state_of
from vaults import FIRST, HERE, LINK, SECOND_NS, End, Pair, contents

from qkdnode.access.approvals import Person
from qkdnode.access.rules import Role
from qkdnode.errors import ApprovalError, OutOfStockError, PolicyDeniedError, QkdnodeError, VaultError
from qkdnode.lifecycle.rotation import EXPIRES_NS, GRACE_NS, PATIENCE_NS, Phase
from qkdnode.node.shadow import carry, outbox
from qkdnode.vault import couriers
from qkdnode.vault.requests import Status
from qkdnode.vault.rotations import AdvanceRotations, GiveUpRotation
from qkdnode.vault.scopes import Compromise
from qkdnode.vault.store import Store
from qkdnode.wire import courier
from qkdnode.wire.courier import KEY_BITS, decode_file, encode_file


@pytest.fixture
def pair(pair: Pair) -> Pair:
    """Whose vaults draw different ids."""
    pair.bob.counter._numbers = itertools.count(10**6)
    return pair


def leaves(end: End, happened: str) -> list[dict[str, Any]]:
    with end.tampering() as connection:
        rows = connection.execute("SELECT leaf FROM leaves ORDER BY position").fetchall()
    told = [json.loads(leaf) for (leaf,) in rows]
    return [leaf for leaf in told if happened in leaf.values()]


def stock_bits(end: End) -> tuple[int, int]:
    its = end.call(Status())
    return its.stock_bits_own.get(LINK, 0), its.stock_bits_peer.get(LINK, 0)


def agrees(pair: Pair) -> bool:
    """Whether both ends hold the same bits of both halves."""
    (own, peer), (others, ours) = map(stock_bits, pair.ends)
    return (own, peer) == (ours, others)


def to_and_fro(pair: Pair, sender: End, most: int = 12) -> int:
    """Carry files until both ends are steady; how many it took."""
    receiver = pair.bob if sender is pair.alice else pair.alice
    its = written(sender)
    for count in range(1, most):
        done = imported(receiver, its.file)
        accept_offered(receiver)
        receiver.counter.ahead_ns += GRACE_NS
        if done.state.phase is Phase.STEADY and not done.waits:
            assert {state_of(end).phase for end in pair.ends} == {Phase.STEADY}
            return count
        sender, receiver = receiver, sender
        its = written(sender, begin=False)
    raise AssertionError("it never ends")


def same_keys(pair: Pair) -> int:
    """How many keys both applications are offered, the same at both ends; the vaults' test of all that was cut."""
    here, there = (sorted(offered(end)) for end in pair.ends)
    assert here == there
    for key_id in here:
        assert contents(pair.alice, key_id) == contents(pair.bob, key_id)
    return len(here)


@pytest.mark.parametrize(("starter", "files"), [("alice", 7), ("bob", 8)])
def test_both_ends_come_to_the_same_generation_and_the_same_keys(pair: Pair, starter: str, files: int) -> None:
    pair.stock()
    old = pair.ready(count=2)
    assert to_and_fro(pair, getattr(pair, starter)) == files
    assert {state_of(end).current for end in pair.ends} == {2}
    assert not any(opens(end, key_id) for end in pair.ends for key_id in old)
    assert same_keys(pair) == 6, "three of each end"
    assert agrees(pair), "what sealed the files is gone at both ends"


def test_both_ends_have_cut_with_the_fifth_file(pair: Pair) -> None:
    pair.stock()
    ends, phases = [pair.alice, pair.bob], []
    for _ in range(5):
        its = written(ends[0])
        imported(ends[1], its.file)
        accept_offered(ends[1])
        phases.append(tuple(str(state_of(end).phase) for end in pair.ends))
        ends.reverse()
    assert phases == [
        ("proposed", "agreed"), ("prepared", "agreed"), ("prepared", "acknowledged"), ("cut", "acknowledged"),
        ("cut", "cut"),
    ]  # fmt: skip
    assert same_keys(pair) == 6


def test_no_key_bits_are_on_the_media_and_each_file_has_its_own_key(pair: Pair) -> None:
    pair.stock()
    spots, files = set(), []
    ends = [pair.alice, pair.bob]
    for _ in range(5):
        its = written(ends[0])
        files.append(its.file)
        spots.add((ends[0].role, decode_file(its.file).heading.spot.offset_bits))
        imported(ends[1], its.file)
        accept_offered(ends[1])
        ends.reverse()
    assert len(spots) == 5
    for key_id in offered(pair.alice):
        key = contents(pair.alice, key_id)
        assert not any(key in file or key_id.bytes in file for file in files)


def test_lost_files_are_made_up_for_and_what_sealed_them_is_burnt_at_both_ends(pair: Pair) -> None:
    pair.stock()
    lost = [written(pair.alice) for _ in range(3)]
    assert not agrees(pair)
    its = written(pair.alice)
    assert (its.number, its.cut, lost[0].cut) == (4, 0, 3)
    imported(pair.bob, its.file)
    for late in lost:
        with pytest.raises(VaultError, match="it is an old one"):
            imported(pair.bob, late.file)
    assert to_and_fro(pair, pair.bob) == 6
    assert same_keys(pair) == 6
    assert agrees(pair)


def test_a_file_twice_changes_nothing_and_has_the_same_outcome(pair: Pair) -> None:
    pair.stock()
    its = written(pair.alice)
    first = imported(pair.bob, its.file)
    before = stock_bits(pair.bob), outbox(LINK, pair.bob.call), state_of(pair.bob).phase
    again = imported(pair.bob, its.file)
    assert (first.again, again.again, again.number, again.waits) == (False, True, 1, first.waits)
    assert (stock_bits(pair.bob), outbox(LINK, pair.bob.call), state_of(pair.bob).phase) == before


def test_the_link_may_take_over_at_any_file_and_files_after_it(pair: Pair) -> None:
    """What came by hand comes again by wire, and the other way round."""
    for count in range(1, 6):
        pair.stock(msgspec.structs.replace(FIRST, number=count)) if count > 1 else pair.stock()
        ends = [pair.alice, pair.bob]
        for _ in range(count):
            its = written(ends[0], begin=False) if _ else written(ends[0])
            imported(ends[1], its.file)
            accept_offered(ends[1])
            ends.reverse()
        carry(LINK, pair.alice.call, pair.bob.call)
        to_and_fro(pair, pair.alice)
        carry(LINK, pair.alice.call, pair.bob.call)
        assert {state_of(end).current for end in pair.ends} == {count + 1}
        assert {state_of(end).phase for end in pair.ends} == {Phase.STEADY}
        assert agrees(pair)
        same_keys(pair)


def test_every_byte_that_is_altered_and_every_cut_is_refused_and_nothing_is_lost(pair: Pair) -> None:
    pair.stock()
    its = written(pair.alice)
    approvals = signed(pair.bob, its.file)
    before, size = stock_bits(pair.bob), len(its.file)
    for place in [*range(0, size, 7), *range(size - 20, size)]:
        altered = bytearray(its.file)
        altered[place] ^= 1
        with pytest.raises(QkdnodeError):
            imported(pair.bob, bytes(altered), approvals)
        try:  # and if two people were made to approve just that
            approved = signed(pair.bob, bytes(altered))
        except QkdnodeError:
            continue
        with pytest.raises(QkdnodeError):
            imported(pair.bob, bytes(altered), approved)
    for length in (0, 1, 25, 100, size - 1):
        with pytest.raises(QkdnodeError):
            imported(pair.bob, its.file[:length], approvals)
    with pytest.raises(QkdnodeError, match="longer than"):
        imported(pair.bob, its.file + bytes(courier.MAX_FILE_BYTES), approvals)
    assert stock_bits(pair.bob) == before
    assert state_of(pair.bob).phase is Phase.STEADY
    assert len(leaves(pair.bob, "rotation.import_refused")) > 20
    assert imported(pair.bob, its.file).state.phase is Phase.AGREED


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sender": "c"}, "leads to 'a'"),
        ({"receiver": "c"}, "carried astray"),
        ({"link": "other"}, "does not have"),
        ({"local": "payroll2"}, "unknown"),
        ({"remote": "ledger2"}, "unknown"),
        ({"generation": 3}, "does not open"),
        ({"number": 2}, "does not open"),
    ],
)
def test_a_heading_that_is_not_what_was_sealed_is_refused(pair: Pair, changes: dict[str, Any], words: str) -> None:
    pair.stock()
    file = decode_file(written(pair.alice).file)
    changed = encode_file(msgspec.structs.replace(file, heading=msgspec.structs.replace(file.heading, **changes)))
    before = stock_bits(pair.bob)
    with pytest.raises(VaultError, match=words):
        imported(pair.bob, changed)
    assert stock_bits(pair.bob) == before
    assert leaves(pair.bob, "rotation.import_refused")


def test_a_generation_that_is_over_is_refused(pair: Pair) -> None:
    pair.stock()
    to_and_fro(pair, pair.alice)
    carry(LINK, pair.alice.call, pair.bob.call)
    file = decode_file(written(pair.alice).file)
    old = msgspec.structs.replace(file.heading, generation=1)
    with pytest.raises(VaultError, match="generation 2 is supplied"):
        imported(pair.bob, encode_file(msgspec.structs.replace(file, heading=old)))


def test_a_file_back_at_its_writer_or_of_another_pair_is_refused(
    pair: Pair, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.stock()
    its = written(pair.alice)
    with pytest.raises(VaultError, match="carried astray"):
        imported(pair.alice, its.file)
    directory = tmp_path / "others"
    directory.mkdir(mode=0o700)
    others = Pair(directory)
    others.stock(msgspec.structs.replace(FIRST, session=2))
    with pytest.raises(VaultError, match="not in stock here"):
        imported(others.bob, its.file)
    others.close()
    directory = tmp_path / "more"
    directory.mkdir(mode=0o700)
    more = Pair(directory)
    monkeypatch.setattr(vaults, "material_of", lambda batch, bits: bytes(9 for _ in range((bits + 7) // 8)))
    more.stock()  # a Batch of the same name with other bits
    with pytest.raises(VaultError, match="does not open"):
        imported(more.bob, its.file)
    assert state_of(more.bob).phase is Phase.STEADY
    more.close()


@pytest.mark.parametrize(
    ("by", "words"),
    [((), "nobody"), (("olga",), "only olga"), (("olga", "olga"), "olga approved it twice")],
)
def test_without_two_people_nothing_is_imported(pair: Pair, by: tuple[str, ...], words: str) -> None:
    pair.stock()
    its = written(pair.alice)
    before = stock_bits(pair.bob)
    with pytest.raises(ApprovalError, match=words):
        imported(pair.bob, its.file, signed(pair.bob, its.file, by))
    assert stock_bits(pair.bob) == before
    assert leaves(pair.bob, "rotation.import_refused")


def test_approvals_count_for_one_file_at_one_node_and_for_different_roles(pair: Pair) -> None:
    pair.stock()
    first = written(pair.alice)
    approvals = signed(pair.bob, first.file)
    second = written(pair.alice)
    with pytest.raises(ApprovalError, match="replayed"):
        imported(pair.bob, second.file, approvals)
    with pytest.raises(ApprovalError, match="other-request"):
        imported(pair.bob, first.file, signed(pair.bob, second.file))
    same = tuple(Person(one.name, one.ed25519, (Role.OPERATOR,)) for one in PEOPLE)
    with pytest.raises(ApprovalError, match="same-role"):
        imported(pair.bob, first.file, approvals, people=same)
    pair.bob.counter.ahead_ns += 2 * 3600 * SECOND_NS
    with pytest.raises(ApprovalError, match="expired"):
        imported(pair.bob, first.file, approvals)
    assert set(KEYS) == {"olga", "sven"}
    done = imported(pair.bob, first.file)
    assert done.state.phase is Phase.AGREED
    (leaf,) = leaves(pair.bob, "rotation.imported")
    assert {"approved_by_1", "approved_by_2", "file", "number"} <= set(leaf["details"])


def test_compromised_stock_seals_nothing_and_opens_nothing(pair: Pair) -> None:
    pair.stock()
    its = written(pair.alice)
    for end in pair.ends:
        end.call(Compromise(kind="link", value=LINK, reason="key-compromise", by="sven"))
    with pytest.raises(VaultError, match="compromised"):
        imported(pair.bob, its.file)
    with pytest.raises(OutOfStockError, match="to seal a file with"):
        written(pair.alice)


def test_a_policy_that_forbids_begins_no_rotation(pair: Pair) -> None:
    pair.stock()
    forbids = '[[rule]]\nname = "nobody"\neffect = "forbid"\nlinks = ["metro"]\n'
    for end in pair.ends:
        end.apply(policy(rules=forbids))
    with pytest.raises(PolicyDeniedError, match="nobody"):
        written(pair.alice)
    assert state_of(pair.alice).phase is Phase.STEADY
    assert stock_bits(pair.alice) == stock_bits(pair.bob)[::-1]


def test_a_policy_that_forbids_at_the_other_end_burns_the_same_there(pair: Pair) -> None:
    pair.stock()
    its = written(pair.alice)
    pair.bob.apply(policy(rules='[[rule]]\nname = "nobody"\neffect = "forbid"\nlinks = ["metro"]\n'))
    done = imported(pair.bob, its.file)
    assert (done.state.phase, done.left) == (Phase.AGREED, 0)
    imported(pair.alice, written(pair.bob).file)
    assert offered(pair.alice) == []
    assert agrees(pair)


def test_nothing_is_lost_by_a_crash_between_the_commit_and_the_file(pair: Pair) -> None:
    """The vault has the file: it is written again, to the byte."""
    pair.stock()
    its = written(pair.alice)
    pair.alice.reopen()
    again = written(pair.alice, again=True)
    assert (again.file, again.number) == (its.file, 1)
    imported(pair.bob, again.file)
    pair.bob.reopen()
    assert imported(pair.bob, again.file).again
    assert to_and_fro(pair, pair.bob) == 6
    assert same_keys(pair) == 6


@pytest.mark.parametrize("end", ["alice", "bob"])
def test_a_crash_in_the_middle_leaves_all_or_nothing(pair: Pair, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit fails: nothing was sealed, nothing burnt, nothing imported; and it works the next time."""
    pair.stock()
    its = written(pair.alice)
    before = stock_bits(pair.alice), stock_bits(pair.bob)
    write = Store.write

    def breaks(*arguments: Any, **changes: Any) -> Any:
        write(*arguments, **changes)
        raise apsw.FullError("the disk is full")

    monkeypatch.setattr(Store, "write", breaks)
    with pytest.raises(VaultError):
        written(pair.alice) if end == "alice" else imported(pair.bob, its.file)
    monkeypatch.undo()
    getattr(pair, end).reopen()
    assert (stock_bits(pair.alice), stock_bits(pair.bob)) == before
    assert state_of(pair.bob).phase is Phase.STEADY
    newest = its if end == "bob" else written(pair.alice)
    assert newest.number == (1 if end == "bob" else 2)
    assert imported(pair.bob, newest.file).state.phase is Phase.AGREED


def test_a_row_that_is_put_back_or_taken_away_stops_files(pair: Pair) -> None:
    pair.stock()
    written(pair.alice)
    with pair.alice.tampering() as connection:
        old = connection.execute("SELECT sent, file, spent, generation, leaf, mac FROM couriers").fetchall()
    written(pair.alice)
    pair.alice.vault.close()
    with pair.alice.tampering() as connection:
        connection.execute("UPDATE couriers SET sent=?, file=?, spent=?, generation=?, leaf=?, mac=?", old[0])
    pair.alice.open()
    with pytest.raises(VaultError):
        written(pair.alice)
    pair.alice.vault.close()
    with pair.alice.tampering() as connection:
        connection.execute("DELETE FROM couriers")
    pair.alice.open()
    with pytest.raises(VaultError):
        written(pair.alice)


def test_an_older_copy_of_a_vault_is_noticed_by_what_the_other_end_has_imported(pair: Pair) -> None:
    pair.stock()
    imported(pair.bob, written(pair.alice).file)
    pair.alice.vault.close()
    copy = pair.alice.path.read_bytes()
    pair.alice.open()
    imported(pair.bob, written(pair.alice).file)
    answer = written(pair.bob)
    pair.alice.vault.close()
    for path in pair.alice.directory.glob("vault.db*"):
        path.unlink()
    pair.alice.path.write_bytes(copy)
    pair.alice.path.chmod(0o600)
    pair.alice.open()
    with pytest.raises(VaultError, match="older copy"):
        imported(pair.alice, answer.file)


def test_nothing_is_written_where_nothing_waits_and_no_rotation_is_wanted(pair: Pair) -> None:
    pair.stock()
    with pytest.raises(VaultError, match="nothing waits"):
        written(pair.alice, begin=False)
    with pytest.raises(VaultError, match="no file was ever written"):
        written(pair.alice, again=True)
    assert leaves(pair.alice, "rotation.exported") == []


def test_a_message_about_another_association_or_of_another_kind_refuses_the_file(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has the stock may still not say by file what no courier carries."""
    pair.stock()
    begin(pair.alice)
    (proposed,) = outbox(LINK, pair.alice.call)
    other = msgspec.structs.replace(proposed, local="x")
    monkeypatch.setattr(couriers, "_waiting", lambda store, known: [other])
    its = written(pair.alice)
    monkeypatch.undo()
    with pytest.raises(QkdnodeError, match="a message about"):
        imported(pair.bob, its.file)
    piece = courier.Piece(1, b"\x90")
    monkeypatch.setattr(couriers, "_bounded", lambda pieces: [piece])
    its = written(pair.alice)
    monkeypatch.undo()
    with pytest.raises(QkdnodeError, match="no courier carries that"):
        imported(pair.bob, its.file)
    assert state_of(pair.bob).phase is Phase.STEADY


def test_what_seals_a_file_is_out_of_stock_before_anybody_has_the_file(pair: Pair) -> None:
    pair.stock()
    own = stock_bits(pair.alice)[0]
    its = written(pair.alice, keys=1)
    assert own - stock_bits(pair.alice)[0] == KEY_BITS + 256
    start = decode_file(its.file).heading.spot.offset_bits
    with pair.alice.tampering() as connection:
        rows = connection.execute("SELECT spans FROM chunks WHERE half = ?", (pair.alice.role,)).fetchall()
    spans = [span for (packed,) in rows for span in json.loads(packed)]
    assert spans
    assert not any(a < start + KEY_BITS and b > start for a, b in spans)


@pytest.mark.parametrize("heard", [True, False])
def test_what_alice_cut_ahead_is_gone_at_both_ends_if_she_gives_up(pair: Pair, heard: bool) -> None:
    """Whether Bob has had her proposal or hears of it when it is over."""
    pair.stock()
    old = pair.ready(count=1)
    first = written(pair.alice)
    if heard:
        imported(pair.bob, first.file)
    pair.alice.call(GiveUpRotation(association=HERE, reason="operator"))
    end_rows(pair.alice)
    imported(pair.bob, written(pair.alice, begin=False).file)
    end_rows(pair.bob)
    carry(LINK, pair.alice.call, pair.bob.call)
    assert {(str(state_of(end).phase), state_of(end).current) for end in pair.ends} == {("steady", 1)}
    assert offered(pair.alice) == offered(pair.bob) == list(old)
    to_and_fro(pair, pair.alice)
    assert {state_of(end).current for end in pair.ends} == {3}, "the number is never used again"
    assert same_keys(pair) == 6
    assert agrees(pair)


def test_nothing_expires_and_first_keys_are_waited_for_while_the_link_is_cut(pair: Pair) -> None:
    document = policy("rotate_without_acknowledgement = true", name="qkd")
    for end in pair.ends:
        end.apply(document)
    pair.stock()
    pair.ready(count=1)
    imported(pair.bob, written(pair.alice).file)
    for end in pair.ends:
        end.counter.ahead_ns += 2 * EXPIRES_NS
        end.call(AdvanceRotations(link=LINK, cut=True))
    assert [str(state_of(end).phase) for end in pair.ends] == ["proposed", "agreed"]
    imported(pair.alice, written(pair.bob).file)
    imported(pair.bob, written(pair.alice).file)
    assert state_of(pair.bob).phase is Phase.OFFERED
    pair.bob.counter.ahead_ns += PATIENCE_NS
    pair.bob.call(AdvanceRotations(link=LINK, cut=True))
    assert state_of(pair.bob).phase is Phase.ACKNOWLEDGED, "as its class says"
    pair.alice.call(AdvanceRotations(link=LINK))
    assert state_of(pair.alice).phase is Phase.STEADY, "given up once the link is back"


def test_allocations_that_waited_go_with_the_first_file(pair: Pair) -> None:
    """The link was cut while keys of the old generation were agreed."""
    pair.stock()
    pair.allocate(pair.alice, 2)
    pair.allocate(pair.bob, 1)
    its = written(pair.alice)
    assert its.state.phase is Phase.PROPOSED
    imported(pair.bob, its.file)
    imported(pair.alice, written(pair.bob).file)
    imported(pair.bob, written(pair.alice).file)
    assert sorted(offered(pair.alice)) == sorted(offered(pair.bob))
    assert len(offered(pair.alice)) == 3
    accept_offered(pair.bob)
    to_and_fro(pair, pair.bob)
    assert same_keys(pair) == 6
