"""The authentication-key pool shared with one peer."""

from collections import deque

import msgspec

from qkdnode.errors import AuthenticationError, LocalProtocolError
from qkdnode.ids import ALICE, BatchId, PadAddress
from qkdnode.native.secret import SecretBuffer
from qkdnode.wire.messages import PadSpan

PAD_BYTES = 16


class Segment(msgspec.Struct):
    """One Batch's refill: Alice's half, then Bob's, in locked memory."""

    name: BatchId
    pads_per_direction: int
    material: SecretBuffer
    sending: int  # first pad of our half that is not yet reserved
    seen: int  # after the highest pad accepted from the peer


class AuthKeyPool:
    """Authentication key shared with one peer, spent once and never twice.

    Pads of our half come only from `grant`: the peer has granted them since this agent started, and the vault has moved
    its durable mark over them. Pads of the peer's half are accepted in rising order within a segment, so a replayed tag
    finds its pad behind the mark.
    """

    def __init__(self, role: str) -> None:
        self._role = role
        self._segments: dict[BatchId, Segment] = {}
        self._granted: deque[PadAddress] = deque()
        self._allowed: list[PadSpan] = []  # what the peer has granted; never kept over a start of either end
        self._granter = b""  # the start of the peer that granted them

    def add(self, segment: Segment) -> None:
        """Make a segment's material available for verification; the vault decides which may be used to send."""
        if self._segments.setdefault(segment.name, segment) is not segment:
            segment.material.release()

    def admit(self, start: bytes) -> None:
        """What another run of the peer has granted no longer holds: the vault of this one may not know of it."""
        if start != self._granter:
            self._granter = start
            self._allowed.clear()

    def allow(self, spans: tuple[PadSpan, ...]) -> None:
        """The peer's vault has granted these pads of our half: they may be reserved."""
        for span in spans:
            last = self._allowed[-1] if self._allowed else None
            if last is not None and (last.segment, last.end) == (span.segment, span.first):
                self._allowed[-1] = PadSpan(span.segment, last.first, span.end)
            else:
                self._allowed.append(span)

    def allowed(self) -> tuple[PadSpan, ...]:
        """What of the granted pads is not yet reserved."""
        left = []
        for span in self._allowed:
            segment = self._segments.get(span.segment)
            first = span.first if segment is None else max(span.first, segment.sending)
            if segment is not None and first < span.end:
                left.append(PadSpan(span.segment, first, span.end))
        self._allowed = left
        return tuple(left)

    def lacks(self, count: int, granter: bytes) -> int:
        """How many consecutive pads that run of the peer must grant before `count` can be had; 0 or `count`."""
        spans = self.allowed() if granter == self._granter else ()
        return 0 if self._run(count) or any(span.end - span.first >= count for span in spans) else count

    def grant(self, addresses: tuple[PadAddress, ...]) -> None:
        """Take over pads that the vault has durably reserved for sending."""
        for address in addresses:
            self.reserved(address)
        self._granted.extend(addresses)

    def reserved(self, address: PadAddress) -> None:
        """The vault has reserved this pad; it will not come from `take`."""
        segment = self._find(address.segment)
        segment.sending = max(segment.sending, address.index + 1)

    @property
    def granted(self) -> int:
        """Reserved pads not yet used."""
        return len(self._granted)

    def take(self) -> PadAddress:
        """The next reserved pad; it is never given out again."""
        if not self._granted:
            raise LocalProtocolError("a tag was asked for without a reserved pad")
        return self._granted.popleft()

    def take_run(self, count: int) -> tuple[PadAddress, ...]:
        """The next `count` reserved pads if they are consecutive; else none, and what was reserved is given up.

        A Hello under pads that are reserved later would make the peer take those before it for replayed.
        """
        run = self._run(count)
        if run:
            for _ in run:
                self._granted.popleft()
            return run
        self._granted.clear()
        return ()

    def material(self, address: PadAddress, sender: str, pads: int = 1) -> memoryview:
        """The bytes of `pads` pads from `address` in the sender's half; the caller releases the view."""
        segment = self._find(address.segment)
        if not 0 <= address.index <= segment.pads_per_direction - pads:
            raise AuthenticationError(f"pad {address.index} lies outside segment {segment.name}")
        start = (address.index + (0 if sender == ALICE else segment.pads_per_direction)) * PAD_BYTES
        return memoryview(segment.material)[start : start + pads * PAD_BYTES]

    def accept(self, address: PadAddress) -> None:
        """Move the peer's mark over a pad whose tag has verified; it never moves back."""
        segment = self._find(address.segment)
        segment.seen = max(segment.seen, address.index + 1)

    def is_fresh(self, address: PadAddress) -> bool:
        """Whether the peer's pad lies beyond everything accepted in its segment."""
        segment = self._segments.get(address.segment)
        return segment is not None and segment.seen <= address.index < segment.pads_per_direction

    def close(self) -> None:
        """Wipe the material."""
        for segment in self._segments.values():
            segment.material.release()
        self._segments.clear()
        self._granted.clear()
        self._allowed.clear()

    def _run(self, count: int) -> tuple[PadAddress, ...]:
        run = tuple(self._granted)[:count]
        consecutive = len(run) == count and run[-1] == PadAddress(run[0].segment, run[0].index + count - 1)
        return run if consecutive else ()

    def _find(self, name: BatchId) -> Segment:
        try:
            return self._segments[name]
        except KeyError:
            raise AuthenticationError(f"no authentication key of segment {name} is held for this link") from None
