"""What the agreement asks of its vault and says to its peer, in virtual time, with both played by the test."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any
from uuid import UUID

import msgspec
import pytest
from virtual_time import VirtualTimeLoop

from qkdnode.errors import DiskFullError, OutOfStockError
from qkdnode.ids import ALICE, Association, BatchId
from qkdnode.link import agreement
from qkdnode.link.agreement import Agreement, LocalSubscription
from qkdnode.link.surroundings import Surroundings
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault import requests as ask
from qkdnode.vault.retirement import FollowRetired
from qkdnode.vault.revocations import FollowRevoked, RevocationsUnconfirmed
from qkdnode.vault.rotations import AdvanceRotations
from qkdnode.vault.scopes import FollowCompromise
from qkdnode.wire.messages import (
    NOT_SETTLED,
    Allocate,
    Allocated,
    Compromised,
    Delivered,
    KeysRetired,
    KeysRevoked,
    Message,
    Received,
    RevocationsWaiting,
    Subscription,
)

HERE = Association("payroll", "ledger", "line")
TERMS, BINDING = bytes([1]) * 32, bytes([2]) * 32
ENTITLED = ask.Entitlement(True, "rule", "", 0, "its", TERMS, BINDING, 0, 2**31, "")


class End:
    """A link that is open, a vault that answers from a table, and what came of it, each with its moment."""

    name, role, is_open, starved = "line", ALICE, True, False

    def __init__(self) -> None:
        self.loop = VirtualTimeLoop()
        self.said: list[tuple[float, Message]] = []
        self.asked: list[tuple[float, Any]] = []
        self.alarms: list[str] = []
        self.told: list[str] = []
        self.outbox: list[ask.OutboxEntry] = []
        self.outstanding = 0
        self.entitled = ENTITLED
        self.refused: set[int] = set()
        self.answers: dict[type[Any], Callable[[Any], Any]] = {
            ask.Entitle: lambda request: msgspec.structs.replace(self.entitled, outstanding=self.outstanding),
            ask.NeighbourOutbox: lambda request: tuple(
                [entry for entry in self.outbox if entry.number > request.after][: request.limit]
            ),
            ask.AllocateKeys: self._allocate,
            ask.UnannouncedReady: lambda request: (),
            ask.PeerDelivered: lambda request: len(request.key_ids),
            ask.AllocationAnswered: lambda request: (),
            ask.OutboxCleared: self._clear,
            ask.AcceptAllocation: lambda request: "accepted",
            RevocationsUnconfirmed: lambda request: tuple(
                [entry for entry in self.outbox if isinstance(entry.message, KeysRevoked | Compromised)]
            ),
            AdvanceRotations: lambda request: (),
            FollowRevoked: lambda request: 1,
            FollowRetired: lambda request: 1,
            FollowCompromise: lambda request: None,
        }
        self.around = Surroundings(
            ask=self._ask,
            draw=SecretBuffer,
            alarm=lambda code, subject, detail: self.alarms.append(code),
            clear=lambda code, subject: None,
            record=lambda kind, subject, details: None,
            notify_supply=self.told.append,
            monotonic_ns=lambda: round(self.loop.time() * 1e9),
            log=None,
        )
        self.agreement = Agreement(self)

    def _allocate(self, request: ask.AllocateKeys) -> tuple[UUID, ...]:
        self.outstanding += request.count
        return ()

    def _clear(self, request: ask.OutboxCleared) -> None:
        self.outbox = [entry for entry in self.outbox if entry.number not in request.numbers]

    async def _ask(self, request: Any) -> Any:
        self.asked.append((self.loop.time(), request))
        await asyncio.sleep(0.001)
        message = getattr(request, "message", None)
        number = getattr(getattr(request, "allocate", request), "request", getattr(message, "notice", None))
        if number in self.refused:
            raise DiskFullError("the disk is full")
        return self.answers[type(request)](request)

    def send_soon(self, message: Message) -> None:
        self.said.append((self.loop.time(), message))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.loop.create_task(work)

    def add_segment(self, segment: ask.SegmentState) -> None: ...

    async def measure_pool(self) -> None: ...

    def play(self, seconds: float, *steps: tuple[float, Callable[[], Any]]) -> "End":
        """Run for so long; do these things at their moments."""

        async def run() -> None:
            running = asyncio.create_task(self.agreement.run())
            for at, step in steps:
                await asyncio.sleep(at - self.loop.time())
                step()
            await asyncio.sleep(seconds - self.loop.time())
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

        try:
            self.loop.run_until_complete(run())
        finally:
            self.loop.close()
        return self

    def subscribe(self, credit: int) -> None:
        self.agreement.take(Subscription("ledger", "payroll", True, 256, credit, "its", TERMS, BINDING))
        self.agreement.subscribed(LocalSubscription(HERE, True, 256, credit))

    def of(self, kind: type[Any]) -> list[tuple[float, Any]]:
        return [(at, one) for at, one in self.asked + self.said if isinstance(one, kind)]


def allocate(number: int) -> Allocate:
    return Allocate(number, "ledger", "payroll", BatchId(1, 1), 0, 256, bytes(16), "its", bytes(32))


def test_notices_that_come_together_are_journalled_together_and_answered_in_one_message() -> None:
    end = End()
    notices = [Delivered(number, "ledger", bytes(16 * number)) for number in (1, 2, 3)]
    end.play(0.5, (0.1, lambda: [end.agreement.take(notice) for notice in notices]))
    asked = end.of(ask.PeerDelivered)
    assert [(round(at, 3), len(one.key_ids)) for at, one in asked] == [(0.1, 1), (0.1, 2), (0.1, 3)]
    assert [one for _, one in end.of(Received)] == [Received((1, 2, 3))]


def test_what_one_refused_request_says_holds_up_no_other() -> None:
    end = End()
    end.refused = {2}
    end.play(0.5, (0.1, lambda: [end.agreement.take(allocate(number)) for number in (1, 2, 3)]))
    assert [one.request for _, one in end.of(Allocated)] == [1, 3]
    assert end.alarms == ["DISK_FULL"]
    assert end.told == ["payroll"]


def test_receipts_that_come_together_clear_together() -> None:
    end = End()
    end.play(0.5, (0.1, lambda: [end.agreement.take(Received((number, number + 10))) for number in (1, 2)]))
    assert [one.numbers for _, one in end.of(ask.OutboxCleared)] == [(1, 11, 2, 12)]


def test_messages_of_several_kinds_keep_their_order() -> None:
    end = End()
    messages = [allocate(1), Delivered(2, "ledger", bytes(16)), allocate(3)]
    end.play(0.5, (0.1, lambda: [end.agreement.take(message) for message in messages]))
    kinds = [type(one) for _, one in end.asked if isinstance(one, ask.AcceptAllocation | ask.PeerDelivered)]
    assert kinds == [ask.AcceptAllocation, ask.PeerDelivered, ask.AcceptAllocation]


def test_much_room_is_allocated_at_once_and_little_room_waits_for_more() -> None:
    end = End()

    def acknowledged(count: int) -> None:
        end.outstanding -= count
        end.agreement.wake()

    end.play(
        1.0,
        (0.1, lambda: end.subscribe(1024)),
        (0.3, lambda: acknowledged(20)),
        (0.315, lambda: acknowledged(5)),
        (0.5, lambda: acknowledged(agreement.TOGETHER)),
    )
    counts = [(at, one.count) for at, one in end.of(ask.AllocateKeys)]
    assert [count for _, count in counts] == [512, 25, agreement.TOGETHER]
    assert 0.3 + agreement.GATHER_S <= counts[1][0] <= 0.3 + 3 * agreement.GATHER_S


def test_half_of_what_may_be_outstanding_is_allocated_at_once_however_little_it_is() -> None:
    end = End()

    def acknowledged() -> None:
        end.outstanding -= 2
        end.agreement.wake()

    end.play(1.0, (0.1, lambda: end.subscribe(8)), (0.3, acknowledged))
    assert [(round(at, 2), one.count) for at, one in end.of(ask.AllocateKeys)] == [(0.1, 4), (0.3, 2)]


def test_little_room_without_applications_keeps_nobody_busy() -> None:
    end = End()

    def leave() -> None:
        end.outstanding -= 1
        end.agreement.wake()

    gone = LocalSubscription(HERE, False, 0, 0)
    end.play(20.0, (0.1, lambda: end.subscribe(1024)), (0.3, leave), (0.31, lambda: end.agreement.subscribed(gone)))
    assert len([at for at, _ in end.of(ask.NeighbourOutbox) if at > 1.0]) < 40


def test_an_entry_is_sent_once_and_again_after_a_while() -> None:
    end = End()
    end.outbox = [ask.OutboxEntry(number, Delivered(number, "payroll", bytes(16))) for number in range(1, 151)]
    end.play(2 * agreement.RESEND_S, (0.1, lambda: end.outbox.append(ask.OutboxEntry(200, allocate(200)))))
    sent = end.of(Delivered)
    assert [one.notice for _, one in sent[:150]] == list(range(1, 151))
    assert len(sent) == 300
    assert min(at for at, _ in sent[150:]) > agreement.RESEND_S
    assert len([at for at, one in end.of(Allocate) if at < agreement.RESEND_S]) == 1


def test_a_request_that_is_not_settled_at_the_peer_is_sent_again_soon() -> None:
    end = End()
    end.outbox = [ask.OutboxEntry(number, allocate(number)) for number in (5, 6)]
    end.play(
        3.0,
        (1.5, lambda: end.agreement.take(Allocated(5, NOT_SETTLED))),
        (1.6, lambda: end.agreement.wake()),
    )
    sent = [(at, one.request) for at, one in end.of(Allocate)]
    assert [number for _, number in sent] == [5, 6, 5]
    assert 1.5 + agreement.RETRY_S <= sent[-1][0] < 3.0


def subscription(**changes: Any) -> Subscription:
    return msgspec.structs.replace(Subscription("ledger", "payroll", True, 256, 64, "its", TERMS, BINDING), **changes)


def test_both_ends_hear_which_class_and_terms_the_other_would_cut_and_again_when_they_change() -> None:
    end = End()

    def switch() -> None:
        end.entitled = msgspec.structs.replace(ENTITLED, key_class="bulk", terms=bytes(32))
        end.agreement.wake()

    def forbid() -> None:
        end.entitled = msgspec.structs.replace(ENTITLED, allowed=False, key_class="", terms=b"", binding=b"")
        end.agreement.wake()

    end.play(3.0, (0.1, lambda: end.subscribe(64)), (0.5, switch), (1.0, forbid))
    told = [(one.key_class, one.terms, one.binding) for _, one in end.of(Subscription)]
    assert told == [("its", TERMS, BINDING), ("bulk", bytes(32), BINDING), ("", b"", b"")]


@pytest.mark.parametrize(
    ("entitled", "remote", "code"),
    [
        ({"allowed": False, "rule": "not-now", "reason": "closed"}, {}, "POLICY"),
        ({}, {"key_class": "", "terms": b"", "binding": b""}, "POLICY"),
        ({}, {"key_class": "bulk"}, "POLICY"),
        ({}, {"terms": bytes(32)}, "POLICY"),
        ({}, {"binding": bytes(32)}, "CONFIG"),
        ({}, {"size_bits": 512}, "CONFIG"),
    ],
)
def test_no_bit_is_cut_while_the_ends_do_not_agree_on_what_a_key_is(
    entitled: dict[str, Any], remote: dict[str, Any], code: str
) -> None:
    end = End()
    end.entitled = msgspec.structs.replace(ENTITLED, **entitled)

    def subscribe() -> None:
        end.agreement.take(subscription(**remote))
        end.agreement.subscribed(LocalSubscription(HERE, True, 256, 64))

    def agree() -> None:
        end.entitled = ENTITLED
        end.agreement.take(subscription())

    end.play(3.0, (0.1, subscribe), (2.0, agree))
    assert set(end.alarms) == {code}
    assert [at >= 2.0 for at, _ in end.of(ask.AllocateKeys)] == [True]


def test_a_quota_limits_what_is_cut_at_once() -> None:
    end = End()
    end.entitled = msgspec.structs.replace(ENTITLED, room=7)
    end.play(1.0, (0.1, lambda: end.subscribe(1024)))
    assert {one.count for _, one in end.of(ask.AllocateKeys)} == {7}


def test_what_the_far_end_denied_is_not_cut_again_and_again_until_it_says_something_new() -> None:
    end = End()
    end.outbox = [ask.OutboxEntry(5, allocate_here(5))]

    def denied() -> None:
        end.outbox = []
        end.outstanding = 0
        end.agreement.take(Allocated(5, "denied"))

    end.play(
        30.0,
        (0.1, lambda: end.subscribe(64)),
        (1.0, denied),
        (20.0, lambda: end.agreement.take(subscription())),
    )
    cut = [round(at) for at, _ in end.of(ask.AllocateKeys)]
    assert cut == [0, 20]
    assert end.alarms == ["POLICY"]


def test_an_end_that_denies_raises_the_alarm_too() -> None:
    end = End()
    end.answers[ask.AcceptAllocation] = lambda request: "denied"
    end.play(0.5, (0.1, lambda: end.agreement.take(allocate(1))))
    assert [one for _, one in end.of(Allocated)] == [Allocated(1, "denied")]
    assert end.alarms == ["POLICY"]
    assert end.told == []


def allocate_here(number: int) -> Allocate:
    return msgspec.structs.replace(allocate(number), local="payroll", remote="ledger")


def revoked(number: int) -> KeysRevoked:
    return KeysRevoked(number, "key-compromise", bytes(16), b"c")


def compromised(number: int) -> Compromised:
    return Compromised(number, "key-compromise", BatchId(1, 1), BatchId(1, 9), "")


def test_a_revocation_goes_out_at_once_and_before_a_long_outbox() -> None:
    end = End()

    def revoke() -> None:
        end.outbox += [ask.OutboxEntry(number, Delivered(number, "payroll", bytes(16))) for number in range(1, 1001)]
        end.outbox += [ask.OutboxEntry(2001, revoked(2001)), ask.OutboxEntry(2002, compromised(2002))]
        end.agreement.revoked()

    end.play(1.5, (0.5, revoke))
    said = [(at, message) for at, message in end.said if not isinstance(message, RevocationsWaiting)]
    assert [type(message) for _, message in said[:3]] == [KeysRevoked, Compromised, Delivered]
    assert said[0][0] < 0.51
    assert len(end.of(KeysRevoked)) == len(end.of(Compromised)) == 1


def test_a_peer_is_told_how_many_revocations_wait_for_it_and_when_none_does() -> None:
    end = End()
    end.outbox = [ask.OutboxEntry(5, revoked(5)), ask.OutboxEntry(6, compromised(6))]
    end.play(
        1.0,
        (0.1, end.agreement.session_opened),
        (0.3, lambda: end.agreement.take(Received((5,)))),
        (0.5, lambda: end.agreement.take(Received((6,)))),
    )
    assert [(round(at, 1), one.count) for at, one in end.of(RevocationsWaiting)] == [(0.1, 2), (0.3, 1), (0.5, 0)]


def test_keys_are_current_only_once_the_peer_says_in_this_session_that_nothing_waits() -> None:
    end = End()
    seen: list[bool] = []

    def look() -> None:
        seen.append(end.agreement.is_current)

    end.play(
        1.0,
        (0.1, lambda: end.subscribe(8)),
        (0.11, end.agreement.session_opened),
        (0.15, look),
        (0.2, lambda: end.agreement.take(RevocationsWaiting(1))),
        (0.25, look),
        (0.3, lambda: end.agreement.take(revoked(7))),
        (0.35, look),
        (0.4, lambda: end.agreement.take(RevocationsWaiting(0))),
        (0.45, look),
        (0.5, end.agreement.session_closed),
        (0.55, look),
    )
    assert seen == [False, False, False, True, False]
    assert end.told.count("payroll") == 1
    assert [one.notices for _, one in end.of(Received)] == [(7,)]
    assert end.alarms == ["COMPROMISED"]


def test_a_revocation_that_cannot_be_journalled_is_not_confirmed() -> None:
    end = End()
    end.refused = {7, 8}
    end.play(
        1.0, (0.1, lambda: [end.agreement.take(message) for message in (revoked(7), compromised(8), compromised(9))])
    )
    assert [one.notices for _, one in end.of(Received)] == [(9,)]
    assert end.alarms == ["DISK_FULL", "DISK_FULL", "COMPROMISED"]


def decoying(end: End, *, missing: int = 8, old: bool = False) -> End:
    """The policy asks for decoys until they are cut."""
    end.entitled = msgspec.structs.replace(ENTITLED, decoys=missing, old_decoys=old)

    def keep(request: ask.KeepDecoys) -> tuple[UUID, ...]:
        end.entitled = ENTITLED
        return ()

    end.answers[ask.KeepDecoys] = keep
    return end


def kept(end: End) -> list[Any]:
    return [request for _, request in end.asked if isinstance(request, ask.KeepDecoys)]


def test_decoys_that_are_missing_are_cut_before_keys_and_once() -> None:
    end = decoying(End())
    end.play(5.0, (0.0, lambda: end.subscribe(credit=64)))
    ((request,)) = kept(end)
    assert (request.association, request.count, request.size_bits, len(request.entropy)) == (HERE, 8, 256, 128)
    kinds = [type(request) for _, request in end.asked]
    assert kinds.index(ask.KeepDecoys) < kinds.index(ask.AllocateKeys)


def test_decoys_for_which_there_is_no_stock_hold_up_no_key_and_are_tried_again_later() -> None:
    end = decoying(End())

    def none(request: ask.KeepDecoys) -> Any:
        raise OutOfStockError("none")

    end.answers[ask.KeepDecoys] = none
    end.play(agreement.DECOYS_AGAIN_S + 5.0, (0.0, lambda: end.subscribe(credit=64)))
    assert len(kept(end)) == 2
    assert end.outstanding


def test_the_end_of_old_decoys_is_told_as_a_revocation() -> None:
    end = decoying(End(), missing=0, old=True)
    end.play(3.0, (0.0, lambda: end.subscribe(credit=64)))
    ((request,)) = kept(end)
    assert (request.count, request.entropy) == (0, b"")
    at = next(at for at, asked in end.asked if asked is request)
    assert any(at < when < at + 1.5 for when, asked in end.asked if isinstance(asked, RevocationsUnconfirmed))


def retired(number: int) -> KeysRetired:
    return KeysRetired(number, "age-at-release", bytes(16), b"z")


def test_what_timers_of_the_peer_have_ended_is_followed_and_confirmed_once_it_is_journalled() -> None:
    end = End()
    end.refused = {8}
    end.play(1.0, (0.1, lambda: [end.agreement.take(retired(number)) for number in (7, 8, 9)]))
    assert [request.message.notice for _, request in end.asked if isinstance(request, FollowRetired)] == [7, 8, 9]
    assert [one.notices for _, one in end.of(Received)] == [(7, 9)]
    assert end.alarms == ["DISK_FULL"]


def test_what_timers_have_ended_is_sent_until_it_is_confirmed_and_holds_up_no_supply() -> None:
    end = End()
    end.outbox = [ask.OutboxEntry(5, retired(5))]
    end.play(
        12.0,
        (0.1, end.agreement.session_opened),
        (0.2, lambda: end.agreement.take(RevocationsWaiting(0))),
        (9.0, lambda: end.agreement.take(Received((5,)))),
    )
    assert len(end.of(KeysRetired)) == 2
    assert {one.count for _, one in end.of(RevocationsWaiting)} == {0}
    assert end.agreement.is_current
    assert end.outbox == []
