"""Alarms: what an operator should know, counted always, reported at a bounded rate."""

from collections.abc import Callable
from enum import StrEnum

import msgspec

REPEAT_NS = 10 * 10**9  # the same alarm is reported again after this time at the earliest


class AlarmCode(StrEnum):
    """The codes that a node raises; each has advice."""

    QBER_HIGH = "QBER_HIGH"
    CLICKS = "CLICKS"
    LINK_DOWN = "LINK_DOWN"
    NO_ENTROPY = "NO_ENTROPY"
    AUTH_STARVED = "AUTH_STARVED"
    AUTH_FAILED = "AUTH_FAILED"
    DEVICE_LOST = "DEVICE_LOST"
    DEVICE_GAP = "DEVICE_GAP"
    DEVICE_CLOCK = "DEVICE_CLOCK"
    DEVICE_UNHEALTHY = "DEVICE_UNHEALTHY"
    DEVICE_UNUSABLE = "DEVICE_UNUSABLE"
    DEVICE_PROTOCOL = "DEVICE_PROTOCOL"
    AUDIT_STOPPED = "AUDIT_STOPPED"
    DISK_FULL = "DISK_FULL"
    VAULT = "VAULT"
    VAULT_DAMAGED = "VAULT_DAMAGED"
    CONFIG = "CONFIG"
    PROTOCOL = "PROTOCOL"


ADVICE = {
    AlarmCode.QBER_HIGH: "no key is made: check alignment and the fibre, and think of an eavesdropper",
    AlarmCode.CLICKS: "detectors click together too often: look for bright light on the fibre, and at the detectors",
    AlarmCode.LINK_DOWN: "no key is made: check that the neighbour's agent runs and that the network reaches it",
    AlarmCode.NO_ENTROPY: "the link has stopped: check the QRNG; power it off and on if it latched, restart the agent",
    AlarmCode.AUTH_STARVED: "all new key refills the authentication pool; if it stays, provision the pair anew",
    AlarmCode.AUTH_FAILED: "a message was not authentic: treat it as an attack until it is explained",
    AlarmCode.DEVICE_LOST: "check the device's cable, power and hub; the agent reconnects by itself",
    AlarmCode.DEVICE_GAP: "data of the device was lost and its Windows dropped: check USB load and cable",
    AlarmCode.DEVICE_CLOCK: "the receiver lost the sync pulses: check the synchronisation channel",
    AlarmCode.DEVICE_UNHEALTHY: "the device reports a failure: inspect it before it is acknowledged",
    AlarmCode.DEVICE_UNUSABLE: "the device is there but cannot be opened: check rights, other programs, its kind",
    AlarmCode.DEVICE_PROTOCOL: "the device speaks another protocol or went back in time: check its firmware",
    AlarmCode.AUDIT_STOPPED: "the audit log cannot be written, so nothing is released: free the disk",
    AlarmCode.DISK_FULL: "the vault's disk is full, so nothing is released: free space",
    AlarmCode.VAULT: "the vault refused a change: see the log",
    AlarmCode.VAULT_DAMAGED: "a stored record is damaged and set aside: check the disk, restore nothing by hand",
    AlarmCode.CONFIG: "the configurations of both ends differ: make them equal and restart",
    AlarmCode.PROTOCOL: "the peer broke a rule of the protocol: compare the software versions of both ends",
}


SEVERITY = {
    AlarmCode.QBER_HIGH: "critical",
    AlarmCode.CLICKS: "major",
    AlarmCode.LINK_DOWN: "major",
    AlarmCode.NO_ENTROPY: "critical",
    AlarmCode.AUTH_STARVED: "major",
    AlarmCode.AUTH_FAILED: "critical",
    AlarmCode.DEVICE_LOST: "major",
    AlarmCode.DEVICE_GAP: "minor",
    AlarmCode.DEVICE_CLOCK: "major",
    AlarmCode.DEVICE_UNHEALTHY: "critical",
    AlarmCode.DEVICE_UNUSABLE: "major",
    AlarmCode.DEVICE_PROTOCOL: "major",
    AlarmCode.AUDIT_STOPPED: "critical",
    AlarmCode.DISK_FULL: "critical",
    AlarmCode.VAULT: "major",
    AlarmCode.VAULT_DAMAGED: "critical",
    AlarmCode.CONFIG: "major",
    AlarmCode.PROTOCOL: "minor",
}


class Alarm(msgspec.Struct):
    """One alarm: a code about a subject (a link, a device, the node)."""

    code: AlarmCode
    subject: str
    detail: str
    first_ns: int
    last_ns: int
    count: int = 1
    reported_ns: int = 0
    acknowledged_by: str | None = None  # the operator who has seen it; raised again after that, it is new to them
    acknowledged_ns: int | None = None


class Alarms:
    """The alarms of a node. `report` is called for a new alarm, and for a repeated one at most every ten seconds."""

    def __init__(self, report: Callable[[Alarm], None], clock_ns: Callable[[], int]) -> None:
        self._report, self._clock_ns = report, clock_ns
        self._alarms: dict[tuple[AlarmCode, str], Alarm] = {}

    def raise_(self, code: str, subject: str, detail: str) -> None:
        """Count an occurrence."""
        now, known = self._clock_ns(), AlarmCode(code)
        alarm = self._alarms.get((known, subject))
        if alarm is None:
            alarm = self._alarms[known, subject] = Alarm(known, subject, detail, now, now, reported_ns=now)
            self._report(alarm)
            return
        alarm.count += 1
        alarm.last_ns, alarm.detail = now, detail
        alarm.acknowledged_by = alarm.acknowledged_ns = None
        if now - alarm.reported_ns >= REPEAT_NS:
            alarm.reported_ns = now
            self._report(alarm)

    def acknowledge(self, code: str, subject: str, by: str) -> bool:
        """Note who has seen an alarm; False if it was noted already. KeyError if there is no such alarm."""
        alarm = self._alarms[AlarmCode(code), subject] if code in AlarmCode.__members__ else None
        if alarm is None:
            raise KeyError(code)
        if alarm.acknowledged_by is not None:
            return False
        alarm.acknowledged_by, alarm.acknowledged_ns = by, self._clock_ns()
        return True

    def all(self) -> tuple[Alarm, ...]:
        """Every alarm since the start, oldest first."""
        return tuple(self._alarms.values())
