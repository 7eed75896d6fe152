"""What a device driver raises to whoever watches."""

from collections.abc import Callable
from enum import StrEnum

import msgspec


class AlarmCode(StrEnum):
    """Kinds of device alarm."""

    DEVICE_LOST = "DEVICE_LOST"
    DEVICE_UNUSABLE = "DEVICE_UNUSABLE"  # there, but not to be opened: rights, another process, wrong kind
    DEVICE_UNHEALTHY = "DEVICE_UNHEALTHY"
    DEVICE_PROTOCOL = "DEVICE_PROTOCOL"
    DEVICE_GAP = "DEVICE_GAP"
    DEVICE_CLOCK = "DEVICE_CLOCK"
    PHOTOCURRENT = "PHOTOCURRENT"  # of a receiver: its detectors
    LASER_POWER = "LASER_POWER"  # of a transmitter, by the photocurrent of its monitor
    BIAS_VOLTAGE = "BIAS_VOLTAGE"
    TEMPERATURE = "TEMPERATURE"
    DEVICE_RESTORED = "DEVICE_RESTORED"


class DeviceAlarm(msgspec.Struct, frozen=True):
    """One alarm of one device."""

    code: AlarmCode
    serial: str
    detail: str


OnAlarm = Callable[[DeviceAlarm], None]
