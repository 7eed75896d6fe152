"""What a device says about itself over its control endpoint: info, health, configuration; without I/O."""

import struct
from enum import IntEnum, IntFlag

import msgspec

from qkdnode.errors import DeviceError, DeviceProtocolError, DeviceUnhealthyError

MAGIC = 0x4B51
VERSION = 1
RECORD_BYTES = 64  # of info, health and configuration alike

_INFO = struct.Struct("<HBBIQQIBBH16s16s")
_HEALTH = struct.Struct("<IIIiiiIIQQQQ")
_CONFIG = struct.Struct("<II3I3II28x")
_UNIT_NS = 256  # times are in 1/256 ns


class Personality(IntEnum):
    """Which kind of device."""

    TRANSMITTER = 1
    RECEIVER = 2
    QRNG = 3


PERSONALITY_NAMES = {Personality.TRANSMITTER: "a QKD-Tx", Personality.RECEIVER: "a QKD-Rx", Personality.QRNG: "a QRNG"}


class Alarms(IntFlag):
    """Latched alarm bits."""

    OVERFLOW = 1 << 0
    REPETITION = 1 << 1
    PROPORTION = 1 << 2
    TEMPERATURE = 1 << 3
    BIAS_VOLTAGE = 1 << 4
    TAMPER = 1 << 5
    STREAM_FAULT = 1 << 6


# They say that data was lost, which the stream itself tells; everything else needs a person.
ABOUT_THE_STREAM = Alarms.OVERFLOW | Alarms.STREAM_FAULT


class DeviceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Identity and time base."""

    personality: int
    firmware: str
    slot_rate_hz: int
    sync_interval_slots: int
    slot_units: int  # length of a slot in 1/256 ns
    intensities: int
    emulated: bool
    fault_injection: bool
    session: int
    serial: str
    model: str


class DeviceHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Counters and sensors since power-up; alarms are latched."""

    streaming: bool
    failed: bool
    alarms: Alarms
    boot_count: int
    temperature_mc: int
    bias_voltage_mv: int
    photocurrent_na: int
    rct_failures: int
    apt_failures: int
    packets: int
    overflows: int
    missed: int

    @property
    def grave_alarms(self) -> Alarms:
        """Those that forbid using the device until a person has acknowledged them."""
        return self.alarms & ~ABOUT_THE_STREAM


class DeviceConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a QKD module is set to; a receiver has no intensities."""

    p_z: float
    intensities: tuple[float, ...]  # mean photon numbers
    intensity_probabilities: tuple[float, ...]
    dead_time_ns: int


def _text(field: bytes) -> str:
    return field.rstrip(b"\0").decode("ascii", "replace")


def _sized(serial: str, record: bytes) -> bytes:
    if len(record) != RECORD_BYTES:
        raise DeviceProtocolError(
            f"device {serial} answers {len(record)} bytes where {RECORD_BYTES} are due: update its firmware"
        )
    return record


def decode_info(serial: str, record: bytes) -> DeviceInfo:
    """DeviceProtocolError where this is not our protocol, in this version."""
    magic, version, personality, firmware, rate, sync, units, levels, flags, session, own, model = _INFO.unpack(
        _sized(serial, record)
    )
    if magic != MAGIC:
        raise DeviceProtocolError(f"device {serial} does not speak the device protocol: is it a QKD module or QRNG?")
    if version != VERSION:
        raise DeviceProtocolError(
            f"device {serial} speaks version {version} of the device protocol, the agent version {VERSION}: "
            "update the older of the two"
        )
    info = DeviceInfo(
        personality=personality,
        firmware=f"{firmware >> 16}.{firmware >> 8 & 255}.{firmware & 255}",
        slot_rate_hz=rate,
        sync_interval_slots=sync,
        slot_units=units,
        intensities=levels,
        emulated=bool(flags & 1),
        fault_injection=bool(flags & 2),
        session=session,
        serial=_text(own),
        model=_text(model),
    )
    has_slots = personality in (Personality.TRANSMITTER, Personality.RECEIVER)
    if has_slots and (not sync or not rate or units * rate != _UNIT_NS * 10**9):
        raise DeviceProtocolError(
            f"device {serial} reports {rate} slots/s of {units}/256 ns and a sync every {sync} slots, "
            "which do not fit together: correct its configuration"
        )
    return info


def decode_health(serial: str, record: bytes) -> DeviceHealth:
    state, alarms, boots, temperature, bias, current, rct, apt, packets, overflows, missed, _ = _HEALTH.unpack(
        _sized(serial, record)
    )
    return DeviceHealth(
        streaming=state == 1,
        failed=state == 2,
        alarms=Alarms(alarms),
        boot_count=boots,
        temperature_mc=temperature,
        bias_voltage_mv=bias,
        photocurrent_na=current,
        rct_failures=rct,
        apt_failures=apt,
        packets=packets,
        overflows=overflows,
        missed=missed,
    )


def decode_config(serial: str, record: bytes) -> DeviceConfig:
    p_z, levels, *rest = _CONFIG.unpack(_sized(serial, record))
    if levels > 3:
        raise DeviceProtocolError(f"device {serial} reports {levels} intensities: at most three are known")
    return DeviceConfig(
        p_z=p_z / 2**32,
        intensities=tuple(mean / 1e6 for mean in rest[:levels]),
        intensity_probabilities=tuple(probability / 2**32 for probability in rest[3 : 3 + levels]),
        dead_time_ns=rest[6],
    )


def check_identity(serial: str, wanted: Personality, info: DeviceInfo) -> None:
    """DeviceError where another device answers than the configuration means."""
    if info.serial != serial:
        raise DeviceError(
            f"device {serial} calls itself {info.serial} in its info: its serial number is not consistent"
        )
    if info.personality != wanted:
        kind = PERSONALITY_NAMES.get(Personality(info.personality)) if info.personality in tuple(Personality) else None
        raise DeviceError(
            f"device {serial} is {kind or 'of an unknown kind'}, not {PERSONALITY_NAMES[wanted]}: "
            "correct the serial in the configuration"
        )


def check_health(serial: str, health: DeviceHealth) -> None:
    """DeviceUnhealthyError where an alarm is latched that a person has to look at."""
    if health.grave_alarms or health.failed:
        names = ", ".join(str(alarm.name).lower().replace("_", " ") for alarm in health.grave_alarms) or "failed state"
        raise DeviceUnhealthyError(
            f"device {serial} has latched: {names}; look at the device, then acknowledge the alarm"
        )
