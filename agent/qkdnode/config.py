"""The configuration of a node: one TOML file, decoded strictly into frozen structs.

Relative paths are relative to the file. Unknown keys, wrong types and values out of range are ConfigErrors that name
the key.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9.-]{0,30}$")]
Serial = Annotated[str, Meta(min_length=1, max_length=16)]
Endpoint = Annotated[str, Meta(pattern=r"^(tcp://[^\s]+:[0-9]+|ipc://[^\s]+)$")]
Probability = Annotated[float, Meta(ge=0.0, le=1.0)]
Positive = Annotated[float, Meta(gt=0.0)]
Backend = Literal["emulated", "libusb"]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every table of the file."""


class EmulatedOptics(Section, frozen=True):
    """The world that emulated QKD modules share: seed, time and physics of one quantum channel.

    Both ends of an emulated link carry the same values. Only device/ reads them; the protocol never does.
    """

    seed: Annotated[int, Meta(ge=0, lt=2**63)]
    epoch_ns: Annotated[int, Meta(ge=0)]  # wall clock at slot 0
    slot_rate_hz: Annotated[int, Meta(ge=1_000, le=100_000_000)] = 20_000_000
    p_z: Probability = 0.85  # transmitter
    receiver_p_z: Probability = 0.85
    intensities: tuple[Positive, ...] = (0.5, 0.15)  # mean photon number, falling; 2 (one decoy) or 3 (two decoys)
    intensity_probabilities: tuple[Probability, ...] = (0.6, 0.4)
    loss_db: Annotated[float, Meta(ge=0.0, le=60.0)] = 5.5  # channel and detectors together
    misalignment: Probability = 0.015  # error probability of a detected signal photon
    dark_probability: Probability = 1e-6  # per detector and slot
    dead_time_ns: Annotated[int, Meta(ge=0)] = 50
    clock_offset_ns: int = 0  # receiver clock minus transmitter clock
    eavesdrop: Probability = 0.0  # share of slots intercepted and resent
    eavesdrop_p_z: Probability | None = None  # Eve's probability of measuring the key basis; None: p_z

    def __post_init__(self) -> None:
        if len(self.intensities) not in (2, 3) or len(self.intensities) != len(self.intensity_probabilities):
            raise ValueError("`intensities` and `intensity_probabilities` need two or three values each")
        if abs(sum(self.intensity_probabilities) - 1) > 1e-9:
            raise ValueError("`intensity_probabilities` must sum to 1")
        if any(a <= b for a, b in zip(self.intensities, self.intensities[1:], strict=False)):
            raise ValueError("`intensities` must fall")


class EmulatedEntropy(Section, frozen=True):
    """An emulated QRNG: its seed and the defects of its raw stream."""

    seed: Annotated[int, Meta(ge=0, lt=2**63)]
    epoch_ns: Annotated[int, Meta(ge=0)]
    bytes_per_second: Annotated[int, Meta(ge=1_000, le=100_000_000)] = 1_000_000
    bias: Annotated[float, Meta(ge=-0.5, le=0.5)] = 0.01  # P(bit = 1) - 1/2
    stuck_after_bytes: Annotated[int, Meta(ge=0)] | None = None  # from there on the raw stream repeats one byte
