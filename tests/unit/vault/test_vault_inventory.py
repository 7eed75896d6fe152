"""What the vault shows of itself: keys without their bits, its log in pages, and links that are paused."""

import pytest
from vaults import HERE, LINK, Pair

from qkdnode.audit.events import AccessEvent
from qkdnode.errors import LocalProtocolError, VaultDamagedError, VaultError
from qkdnode.ids import Association
from qkdnode.vault import inventory
from qkdnode.vault.extract import LogHead, LogPage
from qkdnode.vault.inventory import ListKeys, ShowKey
from qkdnode.vault.pauses import PauseLink, Pauses, ResumeLink
from qkdnode.vault.requests import AllocateKeys, EventsAfter, KeysDelivered, RecordEvent, Status

OTHER = Association("billing", "ledger", LINK)


@pytest.fixture
def stocked(pair: Pair) -> Pair:
    """Ten keys ready and one delivered of one association, two allocated of another."""
    pair.stock()
    ids = pair.ready(count=11)
    pair.alice.call(KeysDelivered(application="payroll", key_ids=ids[:1], details={}))
    pair.alice.associate(OTHER)
    pair.alice.call(AllocateKeys(association=OTHER, count=2, size_bits=512, entropy=bytes(range(32))))
    return pair


def test_keys_are_listed_in_order_and_in_pages(stocked: Pair) -> None:
    pages, after = [], 0
    while True:
        page = stocked.alice.call(ListKeys(after=after, limit=5))
        pages.append(page.keys)
        if page.next is None:
            break
        after = page.next
    assert [len(page) for page in pages] == [5, 5, 3]
    numbers = [key.number for page in pages for key in page]
    assert numbers == sorted(set(numbers))
    assert len({key.key_id for page in pages for key in page}) == 13


def test_a_listed_key_says_all_that_is_known_and_no_bit_of_it(stocked: Pair) -> None:
    first = stocked.alice.call(ListKeys(limit=1)).keys[0]
    assert (first.state, first.association, first.link, first.size_bits) == ("delivered", HERE, LINK, 256)
    assert first.delivered_ns is not None
    assert first.delivered_remote_ns is None
    assert stocked.alice.call(ShowKey(key_id=first.key_id)) == first
    assert not any(isinstance(getattr(first, name), bytes) for name in first.__struct_fields__)


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ({"state": "ready"}, 10),
        ({"state": "delivered"}, 1),
        ({"local": "billing"}, 2),
        ({"remote": "ledger"}, 13),
        ({"local": "billing", "state": "ready"}, 0),
        ({"local": "nobody"}, 0),
        ({"link": LINK}, 13),
        ({"link": "another"}, 0),
    ],
)
def test_filters_let_through_what_they_name(stocked: Pair, filters: dict[str, str], count: int) -> None:
    page = stocked.alice.call(ListKeys(**filters))
    assert (len(page.keys), page.next) == (count, None)


def test_a_request_looks_at_so_many_rows_only_and_says_where_to_go_on(
    stocked: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "SCANNED_BUNDLES", 1)
    page = stocked.alice.call(ListKeys(state="delivered"))
    assert page.next is not None
    pages, found, after = 0, [], 0
    while after is not None:
        page = stocked.alice.call(ListKeys(after=after))
        pages, found, after = pages + 1, [*found, *page.keys], page.next
    assert pages > 2
    assert len({key.key_id for key in found}) == len(found) == 13


def test_an_unknown_key_or_state_is_an_error(stocked: Pair) -> None:
    unknown = stocked.bob.call(ListKeys()).keys[0].key_id
    assert stocked.alice.call(ShowKey(key_id=unknown)).key_id == unknown
    with pytest.raises(VaultError, match="holds no key"):
        stocked.bob.call(ShowKey(key_id=stocked.alice.call(ListKeys(local="billing")).keys[0].key_id))
    with pytest.raises(LocalProtocolError, match="no stage of a key"):
        stocked.alice.call(ListKeys(state="stolen"))


def test_a_damaged_key_is_set_aside_and_the_others_are_listed(stocked: Pair) -> None:
    with stocked.alice.tampering() as file:
        file.execute("UPDATE bundles SET application = 'eve' WHERE number = (SELECT min(number) FROM bundles)")
    listed = len(stocked.alice.call(ListKeys()).keys)
    assert 0 < listed < 13
    assert stocked.alice.call(Status()).keys["damaged"] == 13 - listed


def test_the_log_is_handed_out_under_one_signed_head(stocked: Pair) -> None:
    head = stocked.alice.call(LogHead())
    leaves, notes, position = [], {}, 0
    while position < head.size:
        page = stocked.alice.call(LogPage(position=position, size=head.size, max_bytes=2000))
        assert page.leaves
        leaves += page.leaves
        notes |= dict(page.checkpoints)
        position += len(page.leaves)
    assert len(leaves) == head.size
    assert notes[head.size] == head.note
    assert stocked.alice.call(LogPage(position=head.size, size=head.size, max_bytes=2000)).leaves == ()
    events = stocked.alice.call(EventsAfter(position=0, limit=4096))
    assert len(events) == head.size


def test_a_pause_outlives_a_restart_and_is_journalled_once(pair: Pair) -> None:
    assert pair.alice.call(PauseLink(link=LINK, by="olga"))
    assert not pair.alice.call(PauseLink(link=LINK, by="sven"))
    pair.alice.reopen()
    (pause,) = pair.alice.call(Pauses())
    assert (pause.link, pause.by) == (LINK, "olga")
    assert pair.alice.call(ResumeLink(link=LINK, by="sven"))
    assert not pair.alice.call(ResumeLink(link=LINK, by="sven"))
    assert not pair.alice.call(ResumeLink(link="never paused", by="sven"))
    assert pair.alice.call(Pauses()) == ()
    assert pair.alice.call(PauseLink(link=LINK, by="sven"))
    kinds = [event.kind for _, event in pair.alice.call(EventsAfter(position=0, limit=4096))]
    assert [kind for kind in kinds if kind in ("link.paused", "link.resumed")] == [
        "link.paused", "link.resumed", "link.paused",
    ]  # fmt: skip


def test_a_pause_that_was_undone_in_the_file_is_not_believed(pair: Pair) -> None:
    pair.alice.call(PauseLink(link=LINK, by="olga"))
    pair.alice.call(ResumeLink(link=LINK, by="olga"))
    with pair.alice.tampering() as file:
        old = file.execute("SELECT * FROM pauses").fetchone()
    pair.alice.call(PauseLink(link=LINK, by="olga"))
    with pair.alice.tampering() as file:  # an old row, whose MAC is right, put back
        file.execute("DELETE FROM pauses")
        file.execute(f"INSERT INTO pauses VALUES ({', '.join('?' * len(old))})", old)
    with pytest.raises(VaultDamagedError, match="pauses/metro"):
        pair.alice.call(PauseLink(link=LINK, by="olga"))


def test_who_asks_stands_in_the_log_under_their_kind_and_pseudonym(pair: Pair) -> None:
    for subject in ("payroll", "operator/olga"):
        event = AccessEvent(
            time_ns=1, node="a", topic="access", kind="access.test", subject=subject, details={"to": "ledger"}
        )
        pair.alice.call(RecordEvent(event=event))
    found = [event for _, event in pair.alice.call(EventsAfter(position=0, limit=999)) if event.kind == "access.test"]
    assert [event.subject.partition("/")[0] for event in found] == ["application", "operator"]
    assert "olga" not in str(found)
    assert "payroll" not in str(found)
