"""Time that timers of keys may be held to: elapsed time that neither a wall clock set forward nor one set back moves.

Two clocks are read together: the wall clock, which may be set, and a monotonic one, which does not step but stands
still while the node is off and counts from an unknown start. Trusted time follows the monotonic clock while the node
runs, and leans to a wall clock that is ahead by a thousandth of what elapses, as clocks are slewed. What passed while
the node was off only the wall clock tells: it is believed up to `believed_ns`; the rest waits until so much has elapsed
by the monotonic clock, or a person confirms it. What was not believed in one run is not believed in the next: setting
the clock forward and starting again gains nothing. The trusted time that was stored last bounds it from below: trusted
time never goes back. docs/lifecycle.md has the table.
"""

from enum import StrEnum

import msgspec

DAY_NS = 86_400 * 10**9
SLEW = 1000  # of what elapses, one part is given to a wall clock that is ahead


class Limits(msgspec.Struct, frozen=True):
    """How far the wall clock is believed without more."""

    believed_ns: int = 7 * DAY_NS  # that a node is off, at most, before somebody has to confirm it
    stepped_ns: int = 10 * 10**9  # by which the clocks may differ in a run before it is told

    def __post_init__(self) -> None:
        if self.believed_ns < 0 or self.stepped_ns < 0:
            raise ValueError("the limits of a clock are not below zero")


class Doubt(StrEnum):
    """Why the wall clock is not followed: each is an alarm."""

    AHEAD_AT_START = "ahead at start"  # the node was off for longer than is believed, or the clock was set forward
    BEHIND_AT_START = "behind at start"  # the clock is before what was known already
    SET_FORWARD = "set forward"
    SET_BACK = "set back"


class Reading(msgspec.Struct, frozen=True):
    """Both clocks, read together."""

    wall_ns: int
    monotonic_ns: int


class Standing(msgspec.Struct, frozen=True):
    """What is trusted now. `withheld_ns`: so far the wall clock is ahead of that, and not believed."""

    trusted_ns: int
    withheld_ns: int
    doubt: Doubt | None  # that has begun with this reading
    behind_ns: int = 0  # so far the wall clock is behind


class ClockGuard:
    """Trusted time of one run of a node, from its first reading on."""

    def __init__(
        self,
        reading: Reading,
        *,
        known_ns: int,
        withheld_ns: int = 0,
        limits: Limits = Limits(),  # noqa: B008
    ) -> None:
        """`known_ns` is the trusted time that was stored last; `withheld_ns`: so far the wall clock was ahead then."""
        self._limits = limits
        self._monotonic_ns = reading.monotonic_ns
        gone = reading.wall_ns - known_ns
        if gone >= withheld_ns:  # it has run on from where it was; else it was set back since, and is looked at anew
            gone -= withheld_ns
        self._trusted_ns = known_ns + max(0, min(gone, limits.believed_ns))
        self._ahead_ns = reading.wall_ns - self._trusted_ns  # of the wall clock, as it was read last
        self._told_ns = self._ahead_ns  # as it was when a step was told last
        self._began: Doubt | None = None
        if gone > limits.believed_ns or self._ahead_ns > limits.stepped_ns:
            self._began = Doubt.AHEAD_AT_START
        elif gone < -limits.stepped_ns:
            self._began = Doubt.BEHIND_AT_START

    @property
    def start(self) -> Standing:
        """What is trusted at the first reading."""
        return self._standing(self._began)

    def read(self, reading: Reading) -> Standing:
        """What is trusted now. A monotonic clock that goes back is no monotonic clock: ValueError."""
        elapsed = reading.monotonic_ns - self._monotonic_ns
        if elapsed < 0:
            raise ValueError("the monotonic clock has gone back")
        self._monotonic_ns = reading.monotonic_ns
        ahead = reading.wall_ns - self._trusted_ns - elapsed
        leaning = min(max(0, ahead), elapsed // SLEW)
        self._trusted_ns += elapsed + leaning
        self._told_less(leaning)
        self._ahead_ns = ahead - leaning
        step = self._ahead_ns - self._told_ns
        if abs(step) <= self._limits.stepped_ns:  # many small ones add up
            return self._standing(None)
        self._told_ns = self._ahead_ns
        return self._standing(Doubt.SET_FORWARD if step > 0 else Doubt.SET_BACK)

    def confirm(self, until_ns: int) -> Standing:
        """A person says that the wall clock is right up to this time: what was withheld up to it is trusted."""
        given = max(0, min(self._ahead_ns, until_ns - self._trusted_ns))
        self._trusted_ns += given
        self._ahead_ns -= given
        self._told_less(given)
        return self._standing(None)

    def _told_less(self, given_ns: int) -> None:
        """So much of what was told of is trusted now."""
        if self._told_ns > 0:
            self._told_ns = max(0, self._told_ns - given_ns)

    def _standing(self, doubt: Doubt | None) -> Standing:
        return Standing(self._trusted_ns, max(0, self._ahead_ns), doubt, max(0, -self._ahead_ns))
