"""Alarms: what an operator should know, counted always, told and stored at a bounded rate.

An alarm is a code about a subject. From its first occurrence until it is over it is one episode, which its `first_ns`
names; the next occurrence after that begins a new one. What is stored here and not yet in the vault is kept until the
vault takes it: there are at most `MOST` alarms, so that a flood costs counts and no memory.
"""

from collections.abc import Callable, Iterable
from enum import StrEnum

import msgspec
from msgspec.structs import replace

REPEAT_NS = 10 * 10**9  # the same alarm is told, and written, again after this time at the earliest
QUIET_NS = 600 * 10**9  # after this time without an occurrence an alarm that nobody ends is over
MOST = 1024
OTHERS = "others"  # the subject of a code's alarms once there are MOST
SUBJECT_CHARACTERS, DETAIL_CHARACTERS, NAME_CHARACTERS = 90, 200, 64


class AlarmCode(StrEnum):
    """The codes that a node raises."""

    QBER_HIGH = "QBER_HIGH"
    QBER_RISEN = "QBER_RISEN"
    BIT_BIAS = "BIT_BIAS"
    BASIS_BIAS = "BASIS_BIAS"
    STATE_ASYMMETRY = "STATE_ASYMMETRY"
    CLICKS = "CLICKS"
    CLICK_RATE = "CLICK_RATE"
    DOUBLE_CLICKS = "DOUBLE_CLICKS"
    PHOTOCURRENT = "PHOTOCURRENT"
    LASER_POWER = "LASER_POWER"
    BIAS_VOLTAGE = "BIAS_VOLTAGE"
    TEMPERATURE = "TEMPERATURE"
    LINK_DOWN = "LINK_DOWN"
    NO_ENTROPY = "NO_ENTROPY"
    AUTH_STARVED = "AUTH_STARVED"
    AUTH_RESERVE = "AUTH_RESERVE"
    AUTH_FAILED = "AUTH_FAILED"
    DEVICE_LOST = "DEVICE_LOST"
    DEVICE_GAP = "DEVICE_GAP"
    DEVICE_CLOCK = "DEVICE_CLOCK"
    DEVICE_UNHEALTHY = "DEVICE_UNHEALTHY"
    DEVICE_UNUSABLE = "DEVICE_UNUSABLE"
    DEVICE_PROTOCOL = "DEVICE_PROTOCOL"
    AUDIT_STOPPED = "AUDIT_STOPPED"
    AUDIT_FORK = "AUDIT_FORK"
    AUDIT_ROLLBACK = "AUDIT_ROLLBACK"
    INVENTORY = "INVENTORY"
    DISK_LOW = "DISK_LOW"
    DISK_FULL = "DISK_FULL"
    VAULT = "VAULT"
    VAULT_DAMAGED = "VAULT_DAMAGED"
    NOT_ERASED = "NOT_ERASED"
    COMPROMISED = "COMPROMISED"
    DECOY = "DECOY"
    CLOCK_STEP = "CLOCK_STEP"
    CLOCK = "CLOCK"
    CONFIG = "CONFIG"
    POLICY = "POLICY"
    ROTATION = "ROTATION"
    PROTOCOL = "PROTOCOL"
    ALGORITHM_DEPRECATED = "ALGORITHM_DEPRECATED"
    ALGORITHM_DISALLOWED = "ALGORITHM_DISALLOWED"
    ASSET_CHANGED = "ASSET_CHANGED"


# Who is told: only roles that may know, and never the one who asked.
CONFIDENTIAL = frozenset({AlarmCode.DECOY})


class Severity(StrEnum):
    """How urgent an alarm is, after X.733."""

    CRITICAL = "critical"  # keys may be exposed, or none are made or given: now
    MAJOR = "major"  # a link or device has failed, or something is wrong that an attack would look like: today
    MINOR = "minor"  # it still works: soon
    WARNING = "warning"  # to know


class Clearing(StrEnum):
    """What ends an alarm."""

    SIGNAL = "signal"  # whoever raised it, once it is right again
    QUIET = "quiet"  # ten minutes without an occurrence
    PERSON = "person"  # an operator's acknowledgement; what may have been an attack does not go away by itself


class AlarmState(StrEnum):
    """How far an alarm's episode is."""

    RAISED = "raised"
    ACKNOWLEDGED = "acknowledged"
    CLEARED = "cleared"


class Kind(msgspec.Struct, frozen=True):
    """All that depends on the code alone."""

    severity: Severity
    clearing: Clearing
    advice: str


_CRITICAL, _MAJOR, _MINOR, _WARNING = Severity
_SIGNAL, _QUIET, _PERSON = Clearing

KINDS: dict[AlarmCode, Kind] = {
    AlarmCode.QBER_HIGH: Kind(
        _CRITICAL, _PERSON, "no key is made: check alignment and the fibre, and think of an eavesdropper"
    ),
    AlarmCode.QBER_RISEN: Kind(
        _MAJOR, _PERSON, "errors rose against what is usual: check alignment and the fibre, think of an eavesdropper"
    ),
    AlarmCode.BIT_BIAS: Kind(
        _MAJOR, _PERSON, "one bit value comes too often: compare the two detectors of the basis, and the modulator"
    ),
    AlarmCode.BASIS_BIAS: Kind(
        _MAJOR, _PERSON, "one basis is detected too often: check the basis choice and the receiver's optics"
    ),
    AlarmCode.STATE_ASYMMETRY: Kind(
        _MAJOR, _PERSON, "the detectors' shares changed: check each detector; think of an attack on their efficiencies"
    ),
    AlarmCode.CLICKS: Kind(
        _MAJOR, _PERSON, "detectors click together too often: look for bright light on the fibre, and at the detectors"
    ),
    AlarmCode.CLICK_RATE: Kind(
        _MAJOR, _QUIET, "the rate of detections changed: check the fibre's loss, the laser, and for light from outside"
    ),
    AlarmCode.DOUBLE_CLICKS: Kind(
        _MAJOR, _PERSON, "double clicks are not as usual: too many mean bright light, too few detectors held by light"
    ),
    AlarmCode.PHOTOCURRENT: Kind(
        _CRITICAL, _PERSON, "current flows in the detectors: look for bright light on the fibre; treat it as blinding"
    ),
    AlarmCode.LASER_POWER: Kind(
        _MAJOR, _PERSON, "the laser's power changed: the key rests on it; stop the link, calibrate the transmitter"
    ),
    AlarmCode.BIAS_VOLTAGE: Kind(
        _MAJOR, _PERSON, "the bias voltage changed: check the supply; a drop goes with blinding of detectors"
    ),
    AlarmCode.TEMPERATURE: Kind(
        _MINOR, _QUIET, "the device is not at its usual temperature: check cooling and the room"
    ),
    AlarmCode.LINK_DOWN: Kind(
        _MAJOR, _SIGNAL, "no key is made: check that the neighbour's agent runs and that the network reaches it"
    ),
    AlarmCode.NO_ENTROPY: Kind(
        _CRITICAL, _SIGNAL, "the link has stopped: check the QRNG; power it off and on if it latched, restart the agent"
    ),
    AlarmCode.AUTH_STARVED: Kind(
        _MAJOR, _SIGNAL, "all new key refills the authentication pool; if it stays, provision the pair anew"
    ),
    AlarmCode.AUTH_RESERVE: Kind(
        _MINOR, _SIGNAL, "authentication key is spent faster than it is refilled: see why little key is made"
    ),
    AlarmCode.AUTH_FAILED: Kind(
        _CRITICAL, _PERSON, "a message was not authentic: treat it as an attack until it is explained"
    ),
    AlarmCode.DEVICE_LOST: Kind(
        _MAJOR, _SIGNAL, "check the device's cable, power and hub; the agent reconnects by itself"
    ),
    AlarmCode.DEVICE_GAP: Kind(
        _MINOR, _QUIET, "data of the device was lost and its Windows dropped: check USB load and cable"
    ),
    AlarmCode.DEVICE_CLOCK: Kind(
        _MAJOR, _QUIET, "the receiver lost the sync pulses: check the synchronisation channel"
    ),
    AlarmCode.DEVICE_UNHEALTHY: Kind(
        _CRITICAL, _PERSON, "the device reports a failure: inspect it before it is acknowledged"
    ),
    AlarmCode.DEVICE_UNUSABLE: Kind(
        _MAJOR, _SIGNAL, "the device is there but cannot be opened: check rights, other programs, its kind"
    ),
    AlarmCode.DEVICE_PROTOCOL: Kind(
        _MAJOR, _QUIET, "the device speaks another protocol or went back in time: check its firmware"
    ),
    AlarmCode.AUDIT_STOPPED: Kind(
        _CRITICAL, _SIGNAL, "the audit log cannot be written, so nothing is released: free the disk"
    ),
    AlarmCode.AUDIT_FORK: Kind(
        _CRITICAL, _PERSON, "two histories of one audit log: export both ends' logs, keep both vaults, find who wrote"
    ),
    AlarmCode.AUDIT_ROLLBACK: Kind(
        _CRITICAL, _PERSON, "an audit log has lost entries: an older copy of the vault was put back, or it was cut"
    ),
    AlarmCode.INVENTORY: Kind(
        _MAJOR, _SIGNAL, "the two ends hold different keys or stock: see `qkdnode inventory reconcile`, find the cause"
    ),
    AlarmCode.DISK_LOW: Kind(
        _MINOR, _SIGNAL, "the vault's disk is filling up: make room before nothing is released any more"
    ),
    AlarmCode.DISK_FULL: Kind(_CRITICAL, _SIGNAL, "the vault's disk is full, so nothing is released: free space"),
    AlarmCode.VAULT: Kind(_MAJOR, _QUIET, "the vault refused a change: see the log"),
    AlarmCode.VAULT_DAMAGED: Kind(
        _CRITICAL, _PERSON, "a stored record is damaged and set aside: check the disk, restore nothing by hand"
    ),
    AlarmCode.NOT_ERASED: Kind(
        _CRITICAL, _PERSON, "what was deleted is still in the vault's file: keep copies of it from others; report it"
    ),
    AlarmCode.COMPROMISED: Kind(
        _CRITICAL, _PERSON, "others may know keys: see `qkdnode compromise`, stop what rests on them"
    ),
    AlarmCode.DECOY: Kind(
        _CRITICAL,
        _PERSON,
        "somebody asked for a key that nobody was given: they know ids that they have no business with; find out from "
        "where before they are told, and think of revoking what they can reach",
    ),
    AlarmCode.CLOCK_STEP: Kind(
        _WARNING, _PERSON, "the wall clock was set: times in the log jump there; check time synchronisation"
    ),
    AlarmCode.CLOCK: Kind(
        _MAJOR, _SIGNAL, "timers of keys do not follow the wall clock: `qkdnode clock show`; set it right or confirm it"
    ),
    AlarmCode.CONFIG: Kind(
        _MAJOR, _QUIET, "the configurations of both ends differ: make them equal and restart"
    ),
    AlarmCode.POLICY: Kind(
        _MAJOR, _QUIET, "the policies of both ends do not let keys be made: `qkdnode policy explain` at both says why"
    ),
    AlarmCode.ROTATION: Kind(
        _WARNING, _SIGNAL, "a rotation waits: see `qkdnode rotate`, bring the application back or give the rotation up"
    ),
    AlarmCode.PROTOCOL: Kind(
        _MINOR, _QUIET, "the peer broke a rule of the protocol: compare the software versions of both ends"
    ),
    AlarmCode.ALGORITHM_DEPRECATED: Kind(
        _MINOR, _SIGNAL, "plan its replacement before it is disallowed: see `qkdnode inventory algorithms`"
    ),
    AlarmCode.ALGORITHM_DISALLOWED: Kind(
        _CRITICAL, _SIGNAL, "the node will not start again: install software that does without it, then restart"
    ),
    AlarmCode.ASSET_CHANGED: Kind(
        _MAJOR, _PERSON, "firmware or software is not what it was: find who changed it; if nobody did, stop the node"
    ),
}  # fmt: skip
SEVERITY = {code: kind.severity for code, kind in KINDS.items()}


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """One alarm: a code about a subject (a link, a device, the node). Times are the wall clock's, in nanoseconds."""

    code: AlarmCode
    subject: str
    severity: Severity
    detail: str  # the cause, of the last occurrence
    first_ns: int
    last_ns: int
    count: int = 1  # occurrences in this episode
    count_of_run: int = 1  # occurrences since the agent's start, over all episodes: it never falls
    state: AlarmState = AlarmState.RAISED
    acknowledged_by: str | None = None
    acknowledged_ns: int | None = None
    cleared_ns: int | None = None
    advice: str

    @property
    def active(self) -> bool:
        """Whether it is not over."""
        return self.state is not AlarmState.CLEARED

    @property
    def over(self) -> bool:
        """Whether the next occurrence begins a new episode: cleared, or answered by a person who alone ends it."""
        answered = self.state is AlarmState.ACKNOWLEDGED and KINDS[self.code].clearing is Clearing.PERSON
        return answered or not self.active


class Update(msgspec.Struct, frozen=True):
    """What the vault is to learn of an alarm: so many more occurrences, then that it was acknowledged, or cleared."""

    alarm: Alarm
    occurrences: int
    acknowledged: bool
    cleared: bool


class _Entry:
    """An alarm, and what of it is not stored yet. Times here are monotonic."""

    def __init__(self, alarm: Alarm, seen_ns: int) -> None:
        self.alarm, self.seen_ns = alarm, seen_ns
        self.told_ns: int | None = None
        self.tried_ns: int | None = None  # when the vault was asked last
        self.occurrences = 0
        self.acknowledged = self.cleared = self.urgent = False
        self.restored = False  # of an earlier run, and not seen in this one

    @property
    def waits(self) -> bool:
        """Whether there is anything to store."""
        return bool(self.occurrences) or self.acknowledged or self.cleared

    def due(self, now_ns: int) -> bool:
        """Whether it is to be stored now."""
        return self.waits and (self.urgent or self.tried_ns is None or now_ns - self.tried_ns >= REPEAT_NS)


class Alarms:
    """The alarms of a node.

    `report` is called for a new alarm, and for a repeated one at most every ten seconds. Whoever stores them calls
    `take`, and `put_back` for what could not be stored.
    """

    def __init__(
        self, report: Callable[[Alarm], None], clock_ns: Callable[[], int], monotonic_ns: Callable[[], int]
    ) -> None:
        self._report, self._clock_ns, self._monotonic_ns = report, clock_ns, monotonic_ns
        self._entries: dict[tuple[AlarmCode, str], _Entry] = {}

    def raise_(self, code: str, subject: str, detail: str) -> bool:
        """Count an occurrence; whether it is to be stored at once. ValueError for a code that there is not."""
        known, now = AlarmCode(code), self._monotonic_ns()
        subject, detail = _text(subject, SUBJECT_CHARACTERS), _text(detail, DETAIL_CHARACTERS)
        if (known, subject) not in self._entries and len(self._entries) >= MOST:
            subject = OTHERS
        entry = self._entries.get((known, subject))
        if entry is None:
            entry = self._entries[known, subject] = _Entry(self._new(known, subject, detail, self._clock_ns()), now)
        else:
            self._occurred(entry, detail)
        entry.occurrences += 1
        entry.seen_ns, entry.restored = now, False
        if entry.told_ns is None or now - entry.told_ns >= REPEAT_NS:
            entry.told_ns = now
            self._report(entry.alarm)
        return entry.due(now)

    def clear(self, code: str, subject: str | None = None, *, quiet_ns: int = 0) -> bool:
        """It is right again, about one subject or all, as far as it was quiet for so long; whether to store it now."""
        now, due = self._monotonic_ns(), False
        for (known, about), entry in self._entries.items():
            is_meant = known == code and subject in (None, about) and now - entry.seen_ns >= quiet_ns
            if is_meant and entry.alarm.active:
                self._clear(entry)
                due = due or entry.due(now)
        return due

    def acknowledge(self, code: str, subject: str, by: str) -> bool:
        """Note who has seen an alarm; False if it was noted already, or is over. KeyError if there is no such alarm."""
        entry = self._entries[AlarmCode(code), subject] if code in AlarmCode.__members__ else None
        if entry is None:
            raise KeyError(code)
        if entry.alarm.state is not AlarmState.RAISED:
            return False
        entry.alarm = replace(
            entry.alarm,
            state=AlarmState.ACKNOWLEDGED,
            acknowledged_by=by[:NAME_CHARACTERS],
            acknowledged_ns=self._clock_ns(),
        )
        entry.acknowledged = entry.urgent = True
        return True

    def all(self, *, confidential: bool = False) -> tuple[Alarm, ...]:
        """Every alarm that is known, cleared ones included, by the time of their first occurrence; confidential ones
        if asked for."""
        shown = (
            entry.alarm for entry in self._entries.values() if confidential or entry.alarm.code not in CONFIDENTIAL
        )
        return tuple(sorted(shown, key=lambda alarm: alarm.first_ns))

    def of_this_run(self) -> tuple[Alarm, ...]:
        """Those that occurred since the start."""
        return tuple(
            its.alarm for its in self._entries.values() if not its.restored and its.alarm.code not in CONFIDENTIAL
        )

    def is_active(self, code: str, subject: str | None = None) -> bool:
        """Whether an alarm of this code, about this subject or any, is not over."""
        return any(
            known == code and subject in (None, about) and entry.alarm.active
            for (known, about), entry in self._entries.items()
        )

    def look(self) -> None:
        """Time passes: end what has been quiet, and what is left of an earlier run and did not come again."""
        now = self._monotonic_ns()
        for (code, _), entry in self._entries.items():
            ends = KINDS[code].clearing is Clearing.QUIET or (
                entry.restored and KINDS[code].clearing is Clearing.SIGNAL
            )
            if ends and entry.alarm.active and now - entry.seen_ns >= QUIET_NS:
                self._clear(entry)

    # --- storing ---------------------------------------------------------------------------------------------------

    def restore(self, stored: Iterable[Alarm]) -> None:
        """Take in what an earlier run has stored. What occurred in this one already belongs to the same episode."""
        now = self._monotonic_ns()
        for alarm in stored:
            entry = self._entries.get((alarm.code, alarm.subject))
            if entry is None:
                entry = self._entries[alarm.code, alarm.subject] = _Entry(replace(alarm, count_of_run=0), now)
                entry.restored = True
            elif not alarm.over:
                entry.alarm = replace(
                    alarm,
                    detail=entry.alarm.detail,
                    last_ns=entry.alarm.last_ns,
                    count=alarm.count + entry.alarm.count,
                    count_of_run=entry.alarm.count_of_run,
                    state=entry.alarm.state if entry.alarm.state is not AlarmState.RAISED else alarm.state,
                    cleared_ns=entry.alarm.cleared_ns,
                )

    def take(self, everything: bool = False) -> tuple[Update, ...]:
        """What is to be stored now; `everything` does not wait for the repetition time."""
        now, taken = self._monotonic_ns(), []
        for entry in self._entries.values():
            if entry.due(now) or (everything and entry.waits):
                taken.append(Update(entry.alarm, entry.occurrences, entry.acknowledged, entry.cleared))
                entry.occurrences, entry.tried_ns = 0, now
                entry.acknowledged = entry.cleared = entry.urgent = False
        return tuple(taken)

    def put_back(self, update: Update) -> None:
        """It could not be stored: keep it for the next time."""
        entry = self._entries[update.alarm.code, update.alarm.subject]
        entry.occurrences += update.occurrences
        if entry.alarm.first_ns == update.alarm.first_ns:
            entry.acknowledged = entry.acknowledged or (update.acknowledged and entry.alarm.acknowledged_ns is not None)
            entry.cleared = entry.cleared or (update.cleared and not entry.alarm.active)
        else:
            entry.alarm = replace(entry.alarm, count=entry.alarm.count + update.occurrences)

    # --- small things ----------------------------------------------------------------------------------------------

    def _occurred(self, entry: _Entry, detail: str) -> None:
        now = self._clock_ns()
        if not entry.alarm.over:
            entry.alarm = replace(
                entry.alarm,
                detail=detail,
                last_ns=now,
                count=entry.alarm.count + 1,
                count_of_run=entry.alarm.count_of_run + 1,
            )
            return
        first_ns = max(now, entry.alarm.first_ns + 1)  # it names the episode: new even where the clock was set back
        unstored = entry.occurrences
        entry.alarm = replace(
            self._new(entry.alarm.code, entry.alarm.subject, detail, first_ns),
            count=1 + unstored,
            count_of_run=entry.alarm.count_of_run + 1,
        )
        entry.acknowledged = entry.cleared = entry.urgent = False

    def _clear(self, entry: _Entry) -> None:
        entry.alarm = replace(entry.alarm, state=AlarmState.CLEARED, cleared_ns=self._clock_ns())
        entry.cleared = True

    @staticmethod
    def _new(code: AlarmCode, subject: str, detail: str, first_ns: int) -> Alarm:
        kind = KINDS[code]
        return Alarm(
            code=code,
            subject=subject,
            severity=kind.severity,
            detail=detail,
            first_ns=first_ns,
            last_ns=first_ns,
            advice=kind.advice,
        )


def _text(text: str, most: int) -> str:
    """What a leaf can hold: bounded, and without what is no character (file names may have it)."""
    return text[:most].encode("utf-8", "replace").decode()
