"""What a node writes down about itself: audit leaves, alarms and log lines."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from qkdnode.audit.events import AccessEvent, AlarmEvent, DeviceEvent, LinkEvent, NodeEvent
from qkdnode.device.alarms import DeviceAlarm
from qkdnode.errors import (
    AccessDeniedError,
    AuditError,
    EntropyShortError,
    LocalProtocolError,
    MemoryLockError,
    OutOfStockError,
    VaultError,
    VaultLockedError,
)
from qkdnode.vault import requests as ask
from qkdnode.watch.alarms import ADVICE, Alarm, AlarmCode, Alarms

DETAIL_CHARACTERS = 200
# Errors that are no alarm of their own, under the alarm that an operator looks for.
ALARM_OF_ERROR = {
    error.code: AlarmCode.VAULT
    for error in (VaultLockedError, OutOfStockError, AccessDeniedError, LocalProtocolError, MemoryLockError)
} | {AuditError.code: AlarmCode.AUDIT_STOPPED, EntropyShortError.code: AlarmCode.NO_ENTROPY}


class Recorder:
    """Journals events through `ask` (the vault), in the background where nobody waits; raises and reports alarms."""

    def __init__(
        self, node: str, *, ask: Callable[[Any], Awaitable[Any]], clock_ns: Callable[[], int], log: Any
    ) -> None:
        self._node, self._ask, self._clock_ns, self._log = node, ask, clock_ns, log
        self._tasks: set[asyncio.Task[Any]] = set()
        self.is_open = False  # whether there is a vault to journal in
        self.alarms = Alarms(self._report, clock_ns)

    def alarm(self, code: str, subject: str, detail: str) -> None:
        """Raise an alarm under its own code or that of an error."""
        self.alarms.raise_(ALARM_OF_ERROR.get(code, code), subject, detail)

    def device_alarm(self, alarm: DeviceAlarm) -> None:
        """Journal and raise what a device reported."""
        self._spawn(DeviceEvent, f"device.{alarm.code.lower()}", alarm.serial, {"detail": _short(alarm.detail)})
        if alarm.code in AlarmCode.__members__:
            self.alarms.raise_(alarm.code, alarm.serial, alarm.detail)
        else:
            self._log.warning("device", code=alarm.code, serial=alarm.serial, detail=alarm.detail)

    def record(self, kind: str, subject: str, details: dict[str, Any]) -> None:
        """Journal an event of the node or of a link, without waiting."""
        self._spawn(NodeEvent if kind.startswith("node.") else LinkEvent, kind, subject, details)

    async def record_access(self, kind: str, subject: str, outcome: str, details: dict[str, Any]) -> None:
        """Journal who asked for what, and what came of it."""
        await self._journal(AccessEvent(**self._leaf(f"access.{kind}", subject, details, outcome)))

    async def demand_access(self, kind: str, subject: str, outcome: str, details: dict[str, Any]) -> None:
        """As `record_access`, but VaultError or AuditError if it is not journalled."""
        await self._ask(ask.RecordEvent(event=AccessEvent(**self._leaf(f"access.{kind}", subject, details, outcome))))

    async def record_stop(self) -> None:
        """The last leaf of this run. VaultError if it cannot be written."""
        await self._ask(ask.RecordEvent(event=NodeEvent(**self._leaf("node.stopped", self._node))))

    async def finish(self) -> None:
        """Wait until all that was recorded without waiting is journalled."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _report(self, alarm: Alarm) -> None:
        self._log.warning(
            "alarm",
            code=alarm.code,
            subject=alarm.subject,
            detail=alarm.detail,
            count=alarm.count,
            advice=ADVICE[alarm.code],
        )
        details = {"detail": _short(alarm.detail), "count": alarm.count}
        self._spawn(AlarmEvent, f"alarm.{alarm.code.lower()}", alarm.subject, details)

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
        if not self.is_open:
            return
        task = asyncio.ensure_future(self._journal(event(**self._leaf(kind, subject, details))))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _journal(self, event: Any) -> None:
        try:
            await self._ask(ask.RecordEvent(event=event))
        except (VaultError, AuditError) as error:
            # An alarm about the log must not ask the log again.
            self._log.error("audit leaf not written", kind=event.kind, reason=str(error))
            if not isinstance(event, AlarmEvent):
                self.alarms.raise_(AlarmCode.AUDIT_STOPPED, self._node, str(error))


def _short(detail: str) -> str:
    return detail[:DETAIL_CHARACTERS]
