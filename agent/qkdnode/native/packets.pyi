from typing import Final, Self, final

from typing_extensions import Buffer

PACKET_BYTES: Final[int]
SLOTS_PER_PACKET: Final[int]
TAGS_PER_PACKET: Final[int]
PAYLOAD_BYTES: Final[int]
PIECES_PER_PACKET: Final[int]
PIECE_BYTES: Final[int]

TAGS: Final[int]
CHOICES: Final[int]
RAW: Final[int]
CONDITIONED: Final[int]
SYNC: Final[int]
GAP: Final[int]

GAP_LOST: Final[int]
GAP_REPORTED: Final[int]
GAP_REGRESSED: Final[int]
GAP_CONFLICT: Final[int]

@final
class PacketScanner:
    def __new__(cls, types: int) -> Self: ...
    def expect(self, session: int) -> None: ...
    def feed(
        self,
        data: Buffer,
        pieces: Buffer,
        *,
        payload: Buffer | None = None,
        times: Buffer | None = None,
        patterns: Buffer | None = None,
    ) -> int: ...
    @property
    def pending_bytes(self) -> int: ...
    @property
    def counters(self) -> dict[str, int]: ...
