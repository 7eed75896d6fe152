"""Alarms as the vault keeps them: a row for each, changed with its leaf, so that a restart forgets none."""

from typing import Any

from qkdnode.audit.events import Detail
from qkdnode.vault.records import KnownAlarm
from qkdnode.vault.requests import AcknowledgeAlarm, Alarms, ClearAlarm, RaiseAlarm, StoredAlarm
from qkdnode.vault.store import Store

RAISED, ACKNOWLEDGED, CLEARED = "raised", "acknowledged", "cleared"
MOST = 4096  # more than a node ever has


def raise_alarm(store: Store, request: RaiseAlarm) -> None:
    """RaiseAlarm. Occurrences of the episode that is stored are added to it; another `first_ns` begins a new one."""
    row = store.get(KnownAlarm, request.code, request.about)
    known = row is not None and row.first_ns == request.first_ns
    count = request.occurrences + (row.count if row is not None and known else 0)
    details: dict[str, Detail] = {"code": request.code, "about": request.about, "severity": request.severity}
    details |= {"count": count, "cause": request.detail, "first_ns": request.first_ns}
    if row is None:
        fresh = KnownAlarm(
            code=request.code,
            about=request.about,
            severity=request.severity,
            detail=request.detail,
            first_ns=request.first_ns,
            last_ns=request.last_ns,
            count=count,
            state=RAISED,
            acknowledged_by=None,
            acknowledged_ns=None,
            cleared_ns=None,
        )
        store.create(fresh, "alarm.raised", **details)
        return
    changes: dict[str, Any] = {
        "severity": request.severity,
        "detail": request.detail,
        "last_ns": request.last_ns,
        "count": count,
    }
    if not known:
        changes |= {"first_ns": request.first_ns, "state": RAISED}
        changes |= {"acknowledged_by": None, "acknowledged_ns": None, "cleared_ns": None}
    store.change(row, "alarm.raised", details, **changes)


def acknowledge_alarm(store: Store, request: AcknowledgeAlarm) -> bool:
    """AcknowledgeAlarm. Who did is told in the log under the name's pseudonym, as in leaves about access."""
    row = store.get(KnownAlarm, request.code, request.about)
    if row is None or row.first_ns != request.first_ns or row.state != RAISED:
        return False
    details = {**_of(row), "by": store.sealing.pseudonym(request.by.encode())}
    store.change(
        row,
        "alarm.acknowledged",
        details,
        state=ACKNOWLEDGED,
        acknowledged_by=request.by,
        acknowledged_ns=request.at_ns,
    )
    return True


def clear_alarm(store: Store, request: ClearAlarm) -> bool:
    """ClearAlarm."""
    row = store.get(KnownAlarm, request.code, request.about)
    if row is None or row.first_ns != request.first_ns or row.state == CLEARED:
        return False
    store.change(row, "alarm.cleared", _of(row), state=CLEARED, cleared_ns=request.at_ns)
    return True


def alarms(store: Store, request: Alarms) -> tuple[StoredAlarm, ...]:
    """Alarms."""
    rows = store.find_sound(KnownAlarm, "true ORDER BY first_ns, code, about LIMIT ?", MOST)
    names = StoredAlarm.__struct_fields__
    return tuple(StoredAlarm(**{name: getattr(row, name) for name in names}) for row in rows)


def _of(row: KnownAlarm) -> dict[str, Detail]:
    """What leaves about an alarm say of it."""
    return {name: getattr(row, name) for name in ("code", "about", "severity", "count", "first_ns")}


HANDLERS = {
    RaiseAlarm: raise_alarm,
    AcknowledgeAlarm: acknowledge_alarm,
    ClearAlarm: clear_alarm,
    Alarms: alarms,
}
