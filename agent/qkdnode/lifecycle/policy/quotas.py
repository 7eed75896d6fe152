"""How much of an application's quota is left. Counted where keys are allocated: each end from its own half."""

import msgspec

from qkdnode.lifecycle.policy.decision import OUTSTANDING, RATE, RESERVE, SHARE
from qkdnode.lifecycle.policy.document import SECOND_NS, Application

UNLIMITED = 2**31


class Held(msgspec.Struct, frozen=True):
    """What an application has, and what is there. Bits and keys of its own allocation, not yet at both applications."""

    keys: int
    bits: int
    stock_bits: int  # usable in this end's half
    reserved_bits: int  # of that, for other applications


class Room(msgspec.Struct, frozen=True):
    """How many more keys may be allocated now, and the rule that sets the limit; no rule: nothing limits."""

    keys: int
    rule: str = ""


class Allowance:
    """Bits at a rate, up to a burst. It starts empty: a restart gives nobody a burst."""

    def __init__(self, now_ns: int) -> None:
        self._bits, self._at_ns = 0, now_ns
        self._left = 0  # of a bit, in bit-nanoseconds: no fraction is lost

    def available(self, now_ns: int, bits_per_s: int, burst_bits: int) -> int:
        """Bits that may be taken now. A clock that goes back gives nothing, and takes nothing away."""
        whole, self._left = divmod(max(0, now_ns - self._at_ns) * bits_per_s + self._left, SECOND_NS)
        self._bits, self._at_ns = min(burst_bits, self._bits + whole), now_ns
        return self._bits

    def take(self, bits: int) -> None:
        """Use some."""
        self._bits -= bits


def room(its: Application | None, held: Held, size_bits: int, allowance_bits: int | None) -> Room:
    """How many more keys of a size an application may have. `allowance_bits`: what its rate allows; None: no rate."""
    limits = [(max(0, held.stock_bits - held.reserved_bits) // size_bits, RESERVE)] if held.reserved_bits else []
    if allowance_bits is not None:
        limits.append((allowance_bits // size_bits, RATE))
    if its is not None and its.outstanding_keys is not None:
        limits.append((its.outstanding_keys - held.keys, OUTSTANDING))
    if its is not None and its.stock_share is not None:
        may_hold = int(its.stock_share * (held.stock_bits + held.bits))
        limits.append(((may_hold - held.bits) // size_bits, SHARE))
    if not limits:
        return Room(UNLIMITED)
    keys, rule = min(limits)
    return Room(max(0, keys), rule)
