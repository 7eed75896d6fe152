"""Planted bugs that the harness must find every time. One that it does not find fails the run.

A bug is planted into the product's modules in the process under test. A name that is no longer there raises: a control
that cannot be planted proves nothing.
"""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from qkdnode.lifecycle.states import Stage
from qkdnode.vault import allocations, bundles, core, epochs, keys, outbox, receipts, scrub
from qkdnode.vault import requests as ask
from qkdnode.vault.core import HANDLERS, Outcome, VaultCore, storage_error
from qkdnode.vault.journal import Journal
from qkdnode.vault.store import Store

TRIAL, POWER_LOSS, LEAK_SCAN = "faults", "power loss", "leak scan"


class Control(msgspec.Struct, frozen=True):
    """One bug: what it is, and which part must find it by what."""

    name: str
    part: str
    found_as: str  # a piece of the violation that it must cause
    plant: Callable[[], None]
    scenario: str = ""


def plant(name: str) -> None:
    """Plant a bug into this process."""
    BY_NAME[name].plant()


def _replace(owner: Any, name: str, planted: Any) -> None:
    if not hasattr(owner, name):
        raise LookupError(f"{owner.__name__} has no {name} any more: plant the bug elsewhere")
    setattr(owner, name, planted)


def _handle(request: type[ask.Request], wrap: Callable[[Any], Any]) -> None:
    HANDLERS[request] = wrap(HANDLERS[request])


def _answer_before_commit() -> None:
    """The answers of a group go out while its transaction is still open."""
    right = VaultCore.finish

    def complete(self: VaultCore) -> None:
        if self._connection.in_transaction:
            self._connection.execute("COMMIT")

    def group(self: VaultCore, requests: Iterable[ask.Request]) -> list[Outcome]:
        mark = self._store.journal.mark()
        try:
            complete(self)
            self._connection.execute("BEGIN IMMEDIATE")
            outcomes = [self._execute(request) for request in requests]
            self._store.journal.write_head()
        except core.apsw.Error as error:
            self._undo(mark)
            return [Outcome(error=storage_error(error, self.path))]
        return outcomes

    def finish(self: VaultCore) -> None:
        complete(self)
        right(self)

    _replace(VaultCore, "group", group)
    _replace(VaultCore, "finish", finish)


def _record_before_journal() -> None:
    """An acknowledgement is confirmed at once and journalled with the next request."""
    owed: list[Any] = []
    right_execute = VaultCore._execute

    def execute(self: VaultCore, request: Any) -> Outcome:
        if isinstance(request, ask.KeysDelivered):
            owed.append(request)
            return Outcome(len(request.key_ids))
        while owed and not isinstance(request, ask.LeavesAfter | ask.ApplicationOutbox | ask.OpenKey):
            right_execute(self, owed.pop())
        return right_execute(self, request)

    _replace(VaultCore, "_execute", execute)


def _synchronous_normal() -> None:
    _replace(core.schema, "PRAGMAS", tuple(p.replace("= FULL", "= NORMAL") for p in core.schema.PRAGMAS))
    if not any("synchronous = NORMAL" in pragma for pragma in core.schema.PRAGMAS):
        raise LookupError("the vault no longer says synchronous = FULL: plant the bug elsewhere")


def _directory_not_synced() -> None:
    """Names are never synced. The recording is altered, not the vault: SQLite syncs its directory by itself."""


def _forget(request: type[ask.Request]) -> None:
    """The answer is as it should be, the change is undone."""

    def wrap(right: Any) -> Any:
        def forget(store: Store, request: Any) -> Any:
            mark = store.journal.mark()
            store.connection.execute("SAVEPOINT forgotten")
            answer = right(store, request)
            store.connection.execute("ROLLBACK TO forgotten")
            store.connection.execute("RELEASE forgotten")
            store.journal.rewind(mark)
            store.forget()
            return answer

        return forget

    _handle(request, wrap)


def _pads_rewind() -> None:
    """Neither the end that tags nor the one that grants pads keeps its mark: either alone would do."""
    _forget(ask.ReservePads)
    _forget(ask.GrantPads)


def _session_counter_stays() -> None:
    def stays(store: Store, request: ask.NextSession) -> int:
        return core.batches.known_link(store, request.link).session_counter + 1

    _handle(ask.NextSession, lambda right: stays)


def _outbox_cleared_when_read() -> None:
    def wrap(right: Any) -> Any:
        def read(store: Store, request: ask.NeighbourOutbox) -> Any:
            entries = right(store, request)
            for entry in entries:
                outbox.clear(store, request.link, entry.number)
            return entries

        return read

    _handle(ask.NeighbourOutbox, wrap)


def _event_dropped() -> None:
    _replace(Journal, "record_foreign", lambda self, event: self.size)


def _any_application() -> None:
    _replace(keys, "_demand_application", lambda chosen, application: None)


def _refused_bits_stay() -> None:
    _replace(allocations, "_burn", lambda *_: 0)


def _ready_before_the_peer() -> None:
    right = bundles.make

    def make(store: Store, association: Any, cut: Any, stage: Stage, material: Any, *, own: bool) -> Any:
        return right(store, association, cut, Stage.READY, material, own=own)

    _replace(bundles, "make", make)


def _delivered_key_comes_again() -> None:
    """A delivery is forgotten."""
    _forget(ask.KeysDelivered)


def _macs_unchecked() -> None:
    """A row is believed as it stands, old or altered."""

    def believe(self: Store, record: Any, row: tuple[Any, ...]) -> Any:
        return record(*row[:-1])

    _replace(Store, "_genuine", believe)
    _replace(Journal, "newest_of", lambda self, subjects: _Any())
    _replace(Store, "_verified", believe)


class _Any(dict[str, Any]):
    """Says of every position that it is the newest."""

    def get(self, name: str, default: Any = None) -> Any:
        return _Same()


class _Same:
    def __ne__(self, other: object) -> bool:
        return False


def _with_opened(do: Callable[[memoryview], None]) -> None:
    """Do something with all key material that is opened for an application."""

    def wrap(right: Any) -> Any:
        def opened(store: Store, request: Any) -> Any:
            answer = right(store, request)
            with memoryview(getattr(answer, "material", answer)) as view:
                do(view)
            return answer

        return opened

    _handle(ask.OpenKey, wrap)
    _handle(ask.OpenKeys, wrap)


def _key_in_bytes() -> None:
    """An opened key is left in an ordinary object that lives on."""
    kept: list[bytes] = []
    _with_opened(lambda view: kept.append(bytes(view)))


def _key_logged() -> None:
    """An opened key is written to the log, in hexadecimal, and forgotten."""
    _with_opened(lambda view: print(f"opened {view.hex()}", flush=True))


def _key_in_an_error() -> None:
    """What a key is, in the leaf about an application that was refused it."""

    def denial(key_id: Any, application: str) -> Callable[[Store], None]:
        def journal(store: Store) -> None:
            with keys.bundles.unseal(store, keys.bundles.choose(store, [key_id.bytes])) as material:
                shown = memoryview(material).hex()
            store.alarm("key.denied", f"key/{shown[:64]}", "refused")

        return journal

    _replace(keys, "_denial", denial)


def _stock_in_the_clear() -> None:
    """A Batch's key is kept beside its record in the file."""

    def wrap(right: Any) -> Any:
        def keep(store: Store, request: Any) -> Any:
            store.connection.execute(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)", ("debug", bytes(memoryview(request.key)[256:512]))
            )
            return right(store, request)

        return keep

    _handle(ask.StorePending, wrap)
    _handle(ask.StoreReady, wrap)


def _data_keys_lost_on_the_way() -> None:
    """A re-wrap deletes the old data keys of a Bundle, and what should write the new ones does not come to it."""
    right = epochs._move_bundle

    def move(store: Store, bundle: Any, new: int) -> None:
        right(store, bundle, new)
        store.connection.execute("UPDATE keys SET wrapped = zeroblob(60) WHERE place / 128 = ?", (bundle.number,))

    _replace(epochs, "_move_bundle", move)


def _epoch_ended_too_early() -> None:
    """A past epoch's key is deleted, whatever is under it; nothing was moved before."""
    _replace(epochs, "_PAST", "SELECT number FROM keks WHERE epoch < ? ORDER BY number LIMIT 2")
    _handle(epochs.MoveDataKeys, lambda right: lambda store, request: False)


def _page_skipped() -> None:
    """The pass over all records goes on behind a page that it has not looked at."""
    right, looked = scrub.STAGES["bundles"], list[int]()

    def skip(store: Store, place: Any) -> Any:
        looked.append(1)
        if len(looked) % 2 or scrub.BUNDLES > 1:
            scrub.BUNDLES = 1
            place = store.scalar("SELECT coalesce(min(number), 0) FROM bundles WHERE number > ?", place)
        return right(store, place)

    scrub.STAGES["bundles"] = skip


def _receipt_of_any_key() -> None:
    """The first entry that names a key counts as its destruction, wherever the key is."""
    _replace(receipts, "HOLDING", frozenset())
    _replace(receipts, "CRYPTO_ERASE", None)


def _kek_left_in_the_file() -> None:
    """Deleted cells are not overwritten."""
    _replace(core.schema, "PRAGMAS", tuple(p for p in core.schema.PRAGMAS if "secure_delete" not in p))
    right = VaultCore.open

    def open_(*arguments: Any, **named: Any) -> VaultCore:
        opened = right(*arguments, **named)
        opened._connection.execute("PRAGMA secure_delete = OFF").fetchall()
        return opened

    _replace(VaultCore, "open", open_)


CONTROLS = (
    Control("an answer before the commit", TRIAL, "supplied again", _answer_before_commit, "kills"),
    Control("an acknowledgement before its journal", TRIAL, "supplied again", _record_before_journal, "kills"),
    Control("an outbox row cleared when it is read", TRIAL, "left over", _outbox_cleared_when_read, "kills"),
    Control("a pad mark that rewinds", TRIAL, "two different messages", _pads_rewind),
    Control("a session counter that stays", TRIAL, "uses session", _session_counter_stays),
    Control("an event dropped from the log", TRIAL, "is not in the log", _event_dropped),
    Control("a key opened for another application", TRIAL, "was opened for", _any_application),
    Control("refused bits that stay in stock", TRIAL, "half holds", _refused_bits_stay),
    Control("a key supplied before the peer has it", TRIAL, "before both ends have it", _ready_before_the_peer),
    Control("a delivery that is forgotten", TRIAL, "supplied again", _delivered_key_comes_again),
    Control("rows believed without their MAC", TRIAL, "two different messages", _macs_unchecked, "rollback"),
    Control("a re-wrap that deletes before it writes", TRIAL, "is damaged", _data_keys_lost_on_the_way, "keeping"),
    Control("an epoch ended over what it holds", TRIAL, "is damaged", _epoch_ended_too_early, "keeping"),
    Control("a pass that skips a page", TRIAL, "the pass looked at", _page_skipped, "keeping"),
    Control("a receipt of a key that is here", TRIAL, "has a receipt", _receipt_of_any_key, "keeping"),
    Control("deleted keys left in the file", TRIAL, "still in the file", _kek_left_in_the_file, "keeping"),
    Control("synchronous=NORMAL", POWER_LOSS, "entries were acknowledged", _synchronous_normal),
    Control("a directory that is not synced", POWER_LOSS, "vault is gone", _directory_not_synced, "unsynced names"),
    Control("a key left in bytes", LEAK_SCAN, "heap", _key_in_bytes),
    Control("a logged key", LEAK_SCAN, "log", _key_logged),
    Control("a key in the text of an error", LEAK_SCAN, "file", _key_in_an_error),
    Control("stock in the clear in the file", LEAK_SCAN, "file", _stock_in_the_clear),
)
BY_NAME = {control.name: control for control in CONTROLS}
