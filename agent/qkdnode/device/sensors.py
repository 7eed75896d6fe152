"""What a device's sensors show, against the operator's limits or what they showed at first."""

import msgspec

from qkdnode.device.alarms import AlarmCode
from qkdnode.device.identity import DeviceHealth, Personality
from qkdnode.distill.quality.sensor import Sensor, Tolerance


class SensorLimits(msgspec.Struct, frozen=True):
    """Lowest and highest reading of each sensor; None: learnt."""

    photocurrent_na: tuple[float, float] | None = None
    bias_voltage_mv: tuple[float, float] | None = None
    temperature_mc: tuple[float, float] | None = None


class Watched(msgspec.Struct, frozen=True):
    """One field of DeviceHealth: what it is called, its unit, how far it may move by itself."""

    field: str
    name: str
    unit: str
    tolerance: Tolerance


WATCHED = (
    Watched("photocurrent_na", "photocurrent", "nA", Tolerance(0.1, 20.0)),
    Watched("bias_voltage_mv", "bias voltage", "mV", Tolerance(0.02, 20.0)),
    Watched("temperature_mc", "temperature", "millidegrees C", Tolerance(0.0, 3000.0)),
)
CODES = {
    "photocurrent_na": AlarmCode.PHOTOCURRENT,
    "bias_voltage_mv": AlarmCode.BIAS_VOLTAGE,
    "temperature_mc": AlarmCode.TEMPERATURE,
}
# In a transmitter, and in an optical QRNG, the current is that of a diode that monitors the light source.
CODE_OF_LIGHT_SOURCE = {Personality.TRANSMITTER: AlarmCode.LASER_POWER, Personality.QRNG: AlarmCode.LASER_POWER}


class Sensors:
    """The sensors of one device, from one power-up of the agent to the next."""

    def __init__(self, kind: Personality, limits: SensorLimits) -> None:
        self._codes = dict(CODES)
        self._codes["photocurrent_na"] = CODE_OF_LIGHT_SOURCE.get(kind, AlarmCode.PHOTOCURRENT)
        self._sensors = {
            watched.field: Sensor(watched.tolerance, getattr(limits, watched.field)) for watched in WATCHED
        }

    def judge(self, health: DeviceHealth) -> list[tuple[AlarmCode, str]]:
        """What is out of its limits in a reading: the alarm, and what was read."""
        found = []
        for watched in WATCHED:
            sensor, reading = self._sensors[watched.field], getattr(health, watched.field)
            if sensor.judge(reading) and sensor.limits is not None:
                low, high = sensor.limits
                detail = f"{watched.name} {reading} {watched.unit} is not within {low:.0f} to {high:.0f}"
                found.append((self._codes[watched.field], detail))
        return found
