"""What a node writes down about itself: audit leaves, alarms and log lines."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from msgspec.structs import replace

from qkdnode.audit.events import AccessEvent, DeviceEvent, LinkEvent, NodeEvent
from qkdnode.device.alarms import AlarmCode as DeviceAlarmCode
from qkdnode.device.alarms import DeviceAlarm
from qkdnode.errors import (
    AccessDeniedError,
    AuditError,
    DiskFullError,
    EntropyShortError,
    LocalProtocolError,
    MemoryLockError,
    OutOfStockError,
    VaultDamagedError,
    VaultError,
    VaultLockedError,
    VaultUnansweredError,
)
from qkdnode.vault import requests as ask
from qkdnode.watch.alarms import CONFIDENTIAL, KINDS, Alarm, AlarmCode, Alarms, AlarmState, Update

LOOK_S = 1.0
DETAIL_CHARACTERS = 200
# Errors that are no alarm of their own, under the alarm that an operator looks for.
ALARM_OF_ERROR = {
    error.code: AlarmCode.VAULT
    for error in (VaultLockedError, OutOfStockError, AccessDeniedError, LocalProtocolError, MemoryLockError)
} | {
    AuditError.code: AlarmCode.AUDIT_STOPPED,
    VaultUnansweredError.code: AlarmCode.AUDIT_STOPPED,
    EntropyShortError.code: AlarmCode.NO_ENTROPY,
}
# What a device does seldom, and peers follow, is journalled each time; the rest only as alarms, whose rate is bounded.
JOURNALLED = frozenset(DeviceAlarmCode) - {
    DeviceAlarmCode.DEVICE_GAP,
    DeviceAlarmCode.DEVICE_CLOCK,
    DeviceAlarmCode.PHOTOCURRENT,
    DeviceAlarmCode.LASER_POWER,
    DeviceAlarmCode.BIAS_VOLTAGE,
    DeviceAlarmCode.TEMPERATURE,
}
# What is over once the device streams again.
ENDED_BY_STREAMING = (AlarmCode.DEVICE_LOST, AlarmCode.DEVICE_UNUSABLE)
ALARM_OF_WRITING = ((DiskFullError, AlarmCode.DISK_FULL), (VaultDamagedError, AlarmCode.VAULT_DAMAGED))
ENDED_BY_WRITING = (AlarmCode.AUDIT_STOPPED, AlarmCode.DISK_FULL)


class Recorder:
    """Journals events through `ask` (the vault), in the background where nobody waits; raises and reports alarms."""

    def __init__(
        self,
        node: str,
        *,
        ask: Callable[[Any], Awaitable[Any]],
        clock_ns: Callable[[], int],
        monotonic_ns: Callable[[], int],
        log: Any,
    ) -> None:
        self._node, self._ask, self._clock_ns, self._log = node, ask, clock_ns, log
        self._tasks: set[asyncio.Task[Any]] = set()
        self._news = asyncio.Event()  # an alarm is to be stored at once
        self._storing = asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None
        self._is_open = False  # whether there is a vault to journal in
        self._is_ending = False
        self._has_failed = False  # to write, and has not written since
        self.alarms = Alarms(self._report, clock_ns, monotonic_ns)

    async def open(self) -> None:
        """The vault is open: take over the alarms of earlier runs, and journal from here on, until `finish`."""
        self.alarms.restore(filter(None, map(_restored, await self._ask(ask.Alarms()))))
        self._is_open = True
        self._news.set()
        self._keeper = asyncio.create_task(self._keep_alarms(), name="alarms")

    @property
    def keeper(self) -> asyncio.Task[None] | None:
        """The task that stores alarms, for whoever watches that it does not fail."""
        return self._keeper

    async def _keep_alarms(self) -> None:
        """Store alarms as they come, and end those that are over by themselves."""
        while not self._is_ending:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._news.wait()
            self._news.clear()
            self.alarms.look()
            await self.store_alarms()

    async def store_alarms(self, everything: bool = False) -> None:
        """Write what is due into the vault. What it does not take stays due, for a later time."""
        if not self._is_open:
            return
        async with self._storing:  # the changes of one alarm reach the vault in their order
            await asyncio.gather(*(self._store(update) for update in self.alarms.take(everything)))

    def alarm(self, code: str, subject: str, detail: str) -> None:
        """Raise an alarm under its own code or that of an error."""
        known = ALARM_OF_ERROR.get(code, code)
        self._has_failed = self._has_failed or known in ENDED_BY_WRITING
        # A confidential one waits for the next look: the time of its leaf tells nobody what they have asked for.
        if self.alarms.raise_(known, subject, detail) and known not in CONFIDENTIAL:
            self._news.set()

    def clear(self, code: str, subject: str | None = None, *, quiet_ns: int = 0) -> None:
        """What an alarm was raised for is right again, about one subject or all, where it was quiet for so long."""
        if self.alarms.clear(code, subject, quiet_ns=quiet_ns):
            self._news.set()

    async def acknowledge(self, code: str, subject: str, by: str) -> bool:
        """Note who has seen an alarm, durably where the vault takes it; False if that is not new.

        KeyError if there is no such alarm.
        """
        is_new = self.alarms.acknowledge(code, subject, by)
        await self.store_alarms()
        return is_new

    def device_alarm(self, alarm: DeviceAlarm) -> None:
        """Journal and raise what a device reported."""
        if alarm.code in JOURNALLED:
            self._spawn(DeviceEvent, f"device.{alarm.code.lower()}", alarm.serial, {"detail": _short(alarm.detail)})
        if alarm.code is DeviceAlarmCode.DEVICE_RESTORED:
            self._log.warning("device", code=alarm.code, serial=alarm.serial, detail=alarm.detail)
            for code in ENDED_BY_STREAMING:
                self.clear(code, alarm.serial)
        else:
            self.alarm(alarm.code, alarm.serial, alarm.detail)

    def record(self, kind: str, subject: str, details: dict[str, Any]) -> None:
        """Journal an event of the node or of a link, without waiting."""
        self._spawn(NodeEvent if kind.startswith("node.") else LinkEvent, kind, subject, details)

    async def record_access(self, kind: str, subject: str, outcome: str, details: dict[str, Any]) -> None:
        """Journal who asked for what, and what came of it."""
        await self._journal(AccessEvent(**self._leaf(f"access.{kind}", subject, self._by(details), outcome)))

    async def demand_access(self, kind: str, subject: str, outcome: str, details: dict[str, Any]) -> None:
        """As `record_access`, but VaultError or AuditError if it is not journalled."""
        leaf = self._leaf(f"access.{kind}", subject, self._by(details), outcome)
        await self._ask(ask.RecordEvent(event=AccessEvent(**leaf)))

    async def record_stop(self) -> None:
        """The last leaf of this run. VaultError if it cannot be written."""
        await self._ask(ask.RecordEvent(event=NodeEvent(**self._leaf("node.stopped", self._node))))

    async def finish(self) -> None:
        """Wait until all that was recorded without waiting is journalled."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._is_ending = True
        self._news.set()
        if self._keeper is not None:
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self.store_alarms(everything=True)

    def _report(self, alarm: Alarm) -> None:
        if alarm.code in CONFIDENTIAL:
            return
        self._log.warning(
            "alarm",
            code=alarm.code,
            severity=alarm.severity,
            subject=alarm.subject,
            detail=alarm.detail,
            count=alarm.count,
            advice=alarm.advice,
        )

    async def _store(self, update: Update) -> None:
        """Ask for one alarm's changes in their order; those that the vault did not take are put back."""
        left = update
        try:
            if update.occurrences:
                await self._ask(_raised(update))
                left = replace(left, occurrences=0)
            if update.acknowledged:
                await self._ask(_acknowledged(update.alarm))
                left = replace(left, acknowledged=False)
            if update.cleared:
                await self._ask(_cleared(update.alarm))
                if update.alarm.code not in CONFIDENTIAL:
                    self._log.info("alarm cleared", code=update.alarm.code, subject=update.alarm.subject)
        except (VaultError, AuditError) as error:
            self.alarms.put_back(left)
            shown = "" if update.alarm.code in CONFIDENTIAL else f" {update.alarm.code}"
            self._failed(f"alarm{shown}", error)
        else:
            self._wrote()

    def _failed(self, what: str, error: Exception) -> None:
        """An alarm about the log is counted, and stored once the log takes it: it never asks the log from here."""
        self._log.error("audit leaf not written", kind=what, reason=str(error))
        code = next((code for kind, code in ALARM_OF_WRITING if isinstance(error, kind)), AlarmCode.AUDIT_STOPPED)
        self._has_failed = True
        self.alarms.raise_(code, self._node, str(error))

    def _wrote(self) -> None:
        if self._has_failed:
            self._has_failed = False
            for code in ENDED_BY_WRITING:
                self.clear(code)

    def _by(self, details: dict[str, Any]) -> dict[str, Any]:
        """Every leaf of access names the key of who asked, from where, and at which device."""
        return {"fingerprint": "unknown", "source": "unknown", "device": self._node, **details}

    def _leaf(
        self, kind: str, subject: str, details: dict[str, Any] | None = None, outcome: str = "done"
    ) -> dict[str, Any]:
        return {
            "time_ns": self._clock_ns(),
            "node": self._node,
            "topic": kind.partition(".")[0],
            "kind": kind,
            "subject": subject,
            "outcome": outcome,
            "details": details or {},
        }

    def _spawn(self, event: Any, kind: str, subject: str, details: dict[str, Any]) -> None:
        if not self._is_open:
            return
        task = asyncio.ensure_future(self._journal(event(**self._leaf(kind, subject, details))))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _journal(self, event: Any) -> None:
        try:
            await self._ask(ask.RecordEvent(event=event))
        except (VaultError, AuditError) as error:
            self._failed(event.kind, error)
        else:
            self._wrote()


def _short(detail: str) -> str:
    return detail[:DETAIL_CHARACTERS]


def _raised(update: Update) -> ask.RaiseAlarm:
    alarm = update.alarm
    return ask.RaiseAlarm(
        code=str(alarm.code),
        about=alarm.subject,
        severity=str(alarm.severity),
        detail=alarm.detail,
        first_ns=alarm.first_ns,
        last_ns=alarm.last_ns,
        occurrences=update.occurrences,
    )


def _acknowledged(alarm: Alarm) -> ask.AcknowledgeAlarm:
    assert alarm.acknowledged_by is not None
    assert alarm.acknowledged_ns is not None
    return ask.AcknowledgeAlarm(
        code=str(alarm.code),
        about=alarm.subject,
        first_ns=alarm.first_ns,
        by=alarm.acknowledged_by,
        at_ns=alarm.acknowledged_ns,
    )


def _cleared(alarm: Alarm) -> ask.ClearAlarm:
    assert alarm.cleared_ns is not None
    return ask.ClearAlarm(code=str(alarm.code), about=alarm.subject, first_ns=alarm.first_ns, at_ns=alarm.cleared_ns)


def _restored(stored: ask.StoredAlarm) -> Alarm | None:
    """As it was stored, with what this software says of its code; None for a code that it does not know."""
    if stored.code not in AlarmCode.__members__:
        return None
    code = AlarmCode(stored.code)
    return Alarm(
        code=code,
        subject=stored.about,
        severity=KINDS[code].severity,
        detail=stored.detail,
        first_ns=stored.first_ns,
        last_ns=stored.last_ns,
        count=stored.count,
        state=AlarmState(stored.state),
        acknowledged_by=stored.acknowledged_by,
        acknowledged_ns=stored.acknowledged_ns,
        cleared_ns=stored.cleared_ns,
        advice=KINDS[code].advice,
    )
