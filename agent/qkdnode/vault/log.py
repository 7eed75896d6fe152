"""The audit log as it is asked for: foreign events, reading, checkpoints, and the counts of Status."""

from functools import partial
from uuid import UUID

import msgspec

from qkdnode.audit.events import MAX_DETAIL_CHARACTERS, AccessEvent, AnyEvent
from qkdnode.errors import VaultDamagedError
from qkdnode.ids import other_role
from qkdnode.lifecycle.states import Stage
from qkdnode.vault import decoys, scrub, segments, stock
from qkdnode.vault.records import Link
from qkdnode.vault.requests import (
    Alive,
    Checkpoint,
    CheckpointsAfter,
    EventsAfter,
    LeavesAfter,
    LogHead,
    LogState,
    RecordEvent,
    RecordEvents,
    Status,
    VaultStatus,
    VerifyLog,
)
from qkdnode.vault.rows import read_rows
from qkdnode.vault.store import DELIVERED_BOTH, Aftermath, Store

MAX_EVENTS = 4096
_COUNTS = "SELECT name, value FROM counts"
# As bytes: a state that somebody wrote there is shown as it is, and keeps no other from being counted.
_BATCHES = "SELECT ifnull(CAST(state AS BLOB), x''), count(*) FROM batches GROUP BY 1"
NAMES = ("to", "local", "remote")  # details of access events that name applications


def record_event(store: Store, request: RecordEvent) -> int:
    """RecordEvent. Who asked, and for what, is told under the names' pseudonyms, as in leaves of keys.

    The subject of an access event is an application's name, or KIND/NAME of another that asks.
    """
    return _record(store, request.event)


def record_events(store: Store, request: RecordEvents) -> int:
    """RecordEvents."""
    positions = [_record(store, event) for event in request.events]
    return positions[0]


def _record(store: Store, event: AnyEvent) -> int:
    if isinstance(event, AccessEvent):
        pseudonym = store.sealing.pseudonym
        named = {name: pseudonym(str(event.details[name]).encode()) for name in NAMES if name in event.details}
        if "key" in event.details:
            named["key"] = pseudonym(UUID(str(event.details["key"])).bytes)
        kind, _, name = event.subject.rpartition("/")
        subject = f"{kind or 'application'}/{pseudonym(name.encode())}"
        event = msgspec.structs.replace(event, subject=subject, details={**event.details, **named})
    return store.journal.record_foreign(event)


def events_after(store: Store, request: EventsAfter) -> tuple[tuple[int, AnyEvent], ...]:
    """EventsAfter."""
    return store.journal.after(request.position, min(request.limit, MAX_EVENTS))


def leaves_after(store: Store, request: LeavesAfter) -> tuple[tuple[int, str], ...]:
    """LeavesAfter."""
    return store.journal.leaves_after(request.position, min(request.limit, MAX_EVENTS))


def log_head(store: Store, request: LogHead) -> LogState:
    """LogHead."""
    number, size, note = store.journal.newest_checkpoint()
    return LogState(store.journal.size, store.journal.topics(), number, size, note)


def checkpoints_after(store: Store, request: CheckpointsAfter) -> tuple[tuple[int, int, str], ...]:
    """CheckpointsAfter."""
    return store.journal.checkpoints_after(request.size, min(request.limit, MAX_EVENTS))


def verify_log(store: Store, request: VerifyLog) -> tuple[int, int]:
    """VerifyLog. What is wrong is journalled too, so that nobody misses it."""
    try:
        return store.journal.verify(min(request.limit, MAX_EVENTS))
    except VaultDamagedError as error:
        raise Aftermath(error, partial(_journal_damage, reason=str(error))) from None


def _journal_damage(store: Store, reason: str) -> None:
    store.alarm("log.damaged", "log", "found", reason=reason[:MAX_DETAIL_CHARACTERS])


def checkpoint(store: Store, request: Checkpoint) -> str:
    """Checkpoint."""
    return store.journal.checkpoint()


def status(store: Store, request: Status) -> VaultStatus:
    """Status."""
    counts = dict(read_rows(store.connection, (str, int), "a count of keys in the vault", _COUNTS))
    links = store.find_sound(Link, "true ORDER BY link")
    passed = scrub.progress(store, scrub.ScrubProgress())
    return VaultStatus(
        keys_delivered_both=counts.pop(DELIVERED_BOTH, 0),
        keys={stage.value: n for stage in Stage if (n := counts.get(stage.value))},
        stock_bits_own={link.link: stock.usable_bits(store, link.link, link.role) for link in links},
        stock_bits_peer={link.link: stock.usable_bits(store, link.link, other_role(link.role)) for link in links},
        batches={
            state.decode("utf-8", "replace"): count
            for state, count in read_rows(store.connection, (bytes, int), "a state of Batches in the vault", _BATCHES)
        },
        pads={link.link: segments.pads_left(store, link.link) for link in links},
        application_outbox=max(0, counts.get(Stage.READY.value, 0) - decoys.waiting(store)),
        neighbour_outbox=store.scalar("SELECT count(*) FROM outbox"),
        leaves=store.journal.size,
        commits=store.commits,
        scrub_running=int(passed.running),
        scrub_rows=passed.rows,
        scrub_damaged=passed.damaged,
        erasures_waiting=store.erasures.waiting,
    )


def alive(store: Store, request: Alive) -> None:
    """Alive. Reads from the file, as a vault whose disk hangs does not answer for the disk."""
    store.scalar("PRAGMA schema_version")


HANDLERS = {
    RecordEvent: record_event,
    RecordEvents: record_events,
    EventsAfter: events_after,
    LeavesAfter: leaves_after,
    LogHead: log_head,
    CheckpointsAfter: checkpoints_after,
    VerifyLog: verify_log,
    Checkpoint: checkpoint,
    Status: status,
    Alive: alive,
}
