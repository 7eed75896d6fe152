from collections.abc import Sequence
from typing import Self, final

from typing_extensions import Buffer

FAULTS: dict[str, int]

def kernels() -> tuple[str, ...]: ...

@final
class Optics:
    def __new__(
        cls,
        *,
        seed: int,
        choice_limits: Sequence[int],
        signal_limits: Sequence[int],
        click_limits: Sequence[int],
        dark_limits: Sequence[int],
        dark_only_limits: Sequence[int],
        receiver_z_limit: int,
        misaligned_limit: int,
        intercept_limit: int,
        eavesdropper_z_limit: int,
        sync_interval_slots: int,
        dead_slots: int,
        slot_units: int,
        clock_offset: int,
    ) -> Self: ...

@final
class Entropy:
    def __new__(cls, *, seed: int, one_limit: int, stuck_after: int | None = None) -> Self: ...

@final
class Device:
    def __new__(
        cls,
        personality: str,
        serial: str,
        world: Optics | Entropy,
        *,
        epoch_ns: int,
        rate_hz: int,
        capacity: int,
        intensities: int,
        config: bytes,
    ) -> Self: ...
    @property
    def kernel(self) -> str: ...
    def bulk_in(self, now_ns: int, size: int) -> bytes: ...
    def bulk_in_into(self, now_ns: int, buffer: Buffer) -> tuple[int, bool]: ...
    def control_in(
        self, now_ns: int, request_type: int, request: int, value: int, index: int, length: int
    ) -> bytes: ...
    def control_out(
        self, now_ns: int, request_type: int, request: int, value: int, index: int, payload: Buffer
    ) -> int: ...
    def interrupt_in(self) -> bytes: ...
    def clear_halt(self) -> None: ...
    def reset(self) -> None: ...
    def power_cycle(self) -> None: ...
    def inject(self, fault: str) -> None: ...
