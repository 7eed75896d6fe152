"""A node watches itself: disk, wall clock, authentication key, random numbers; under fake clocks and disks."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from virtual_time import VirtualTimeLoop

from qkdnode.authentication.reserve import Forecast
from qkdnode.config import AlarmsSection, AuthenticationSection
from qkdnode.errors import VaultError
from qkdnode.node.recorder import Recorder
from qkdnode.node.vigil import Vigil
from qkdnode.watch.alarms import AlarmState
from qkdnode.watch.clock import ClockWatch

SECOND = 10**9
MINUTE, HOUR = 60 * SECOND, 3600 * SECOND
WALL_NS = 1_700_000_000 * SECOND
TARGET, RESERVE = 270_336, 65_536


class World:
    """Virtual time, a wall clock that can be set, a disk that fills."""

    def __init__(self) -> None:
        self.loop = VirtualTimeLoop()
        self.set_ns = 0
        self.free: int | OSError = 10**12
        self.reserve_bits = TARGET
        self.has_entropy = True
        self.recorder = Recorder(
            "a", ask=self.refuse, clock_ns=self.wall_ns, monotonic_ns=self.monotonic_ns, log=SimpleNamespace(
                warning=lambda *_, **__: None, error=lambda *_, **__: None, info=lambda *_, **__: None
            )
        )  # fmt: skip
        link: Any = SimpleNamespace(section=SimpleNamespace(authentication=AuthenticationSection()), link=self)
        self.vigil = Vigil(
            "a",
            AlarmsSection(disk_free_bytes=1 << 30),
            Path(),
            world=self,  # type: ignore[arg-type]
            recorder=self.recorder,
            links={"metro": link},
            has_entropy=lambda: self.has_entropy,
        )

    async def refuse(self, request: Any) -> Any:
        raise VaultError("there is no vault here")

    def monotonic_ns(self) -> int:
        return round(self.loop.time() * SECOND)

    def wall_ns(self) -> int:
        return WALL_NS + self.monotonic_ns() + self.set_ns

    async def free_bytes(self, directory: Path) -> int:
        if isinstance(self.free, OSError):
            raise self.free
        return self.free

    def pass_(self, seconds: float) -> None:
        async def look() -> None:
            await asyncio.sleep(seconds)

        if not hasattr(self, "task"):
            self.task = self.loop.create_task(self.vigil.run())
        self.loop.run_until_complete(look())

    def states(self) -> dict[str, tuple[str, int]]:
        return {alarm.code: (str(alarm.state), alarm.count) for alarm in self.recorder.alarms.all()}

    def close(self) -> None:
        self.task.cancel()
        self.loop.run_until_complete(asyncio.gather(self.task, return_exceptions=True))
        self.loop.close()


@pytest.fixture
def world() -> Any:
    made = World()
    yield made
    made.close()


def test_a_healthy_node_raises_nothing_for_hours(world: World) -> None:
    world.pass_(4 * 3600)
    assert world.states() == {}


def test_little_room_on_the_disk_is_told_before_there_is_none_and_ends_with_some_margin(world: World) -> None:
    world.pass_(60)
    world.free = (1 << 30) - 1
    world.pass_(11)
    assert world.states()["DISK_LOW"] == ("raised", 1)
    world.free = 1 << 30
    world.pass_(60)
    assert world.states()["DISK_LOW"][0] == "raised"
    world.free = int(1.2 * (1 << 30))
    world.pass_(11)
    assert world.states()["DISK_LOW"][0] == "cleared"


def test_a_disk_that_cannot_be_asked_is_an_alarm_too(world: World) -> None:
    world.free = OSError(5, "Input/output error")
    world.pass_(1)
    (alarm,) = world.recorder.alarms.all()
    assert (alarm.code, alarm.detail) == ("DISK_LOW", "cannot tell how full the disk is: Input/output error")


@pytest.mark.parametrize("step_s", [3600.0, -3600.0, 0.7])
def test_a_wall_clock_that_is_set_is_one_alarm_for_each_time(world: World, step_s: float) -> None:
    world.pass_(30)
    world.set_ns += round(step_s * SECOND)
    world.pass_(30)
    assert world.states() == {"CLOCK_STEP": ("raised", 1)}
    assert f"{step_s:+.3f} s" in world.recorder.alarms.all()[0].detail


def test_a_small_correction_of_the_wall_clock_is_none(world: World) -> None:
    for _ in range(60):
        world.set_ns += 400_000_000
        world.pass_(1.5)
    assert world.states() == {}


def test_no_entropy_ends_when_random_numbers_were_enough_for_a_while(world: World) -> None:
    world.recorder.alarm("NO_ENTROPY", "metro", "too slow")
    world.pass_(20)
    assert world.states()["NO_ENTROPY"] == ("raised", 1)
    world.recorder.alarm("NO_ENTROPY", "metro", "too slow")
    world.pass_(20)
    assert world.states()["NO_ENTROPY"] == ("raised", 2)
    world.pass_(20)
    assert world.states()["NO_ENTROPY"][0] == "cleared"


def test_no_entropy_stays_while_no_qrng_is_healthy(world: World) -> None:
    world.recorder.alarm("NO_ENTROPY", "entropy pool", "none")
    world.has_entropy = False
    world.pass_(3600)
    assert world.states()["NO_ENTROPY"][0] == "raised"


def test_a_reserve_that_runs_out_is_told_days_before_and_ends_when_it_is_refilled(world: World) -> None:
    world.pass_(1800)
    for _ in range(60):
        world.reserve_bits -= 500
        world.pass_(60)
    (alarm,) = world.recorder.alarms.all()
    assert (alarm.code, alarm.subject, alarm.count) == ("AUTH_RESERVE", "metro", 1)
    assert "days" in alarm.detail
    world.reserve_bits = TARGET
    world.pass_(1800)
    assert world.recorder.alarms.all()[0].state is AlarmState.CLEARED


# --- the machines ----------------------------------------------------------------------------------------------------


def test_a_reading_that_took_long_says_nothing() -> None:
    watch = ClockWatch(limit_ns=SECOND)
    assert watch.look(0, WALL_NS, 1) is None
    assert watch.look(10 * SECOND, WALL_NS + 12 * SECOND, 12 * SECOND) is None
    assert watch.look(20 * SECOND, WALL_NS + 20 * SECOND, 20 * SECOND) is None
    assert watch.look(30 * SECOND, WALL_NS + 40 * SECOND, 30 * SECOND) == 10 * SECOND


def forecast_of(levels: list[int], every_ns: int = MINUTE) -> float | None:
    forecast = Forecast(TARGET, RESERVE)
    for number, left in enumerate(levels):
        forecast.take(number * every_ns, left)
    return forecast.days_left()


@pytest.mark.parametrize(
    ("levels", "days"),
    [
        ([], None),
        ([200_000 - 100 * i for i in range(20)], None),  # too early
        ([200_000] * 61, None),  # not falling
        ([150_000 + 100 * i for i in range(61)], None),  # rising
        ([900_000 - 1000 * i for i in range(61)], None),  # as provisioned: Batches refill only below the target
        ([250_000 - 3_000 * (i % 15) for i in range(61)], None),  # spent and refilled each quarter of an hour
        ([200_000 - 1_000 * i for i in range(61)], (169_000 - RESERVE) / 1000 / 1440),
        ([70_000 - 100 * i for i in range(61)], 1_300 / 100 / 1440),
        ([60_000 - 100 * i for i in range(61)], 0.0),
    ],
    ids=["nothing", "early", "still", "rising", "provisioned", "sawtooth", "falling", "nearly spent", "below"],
)
def test_the_forecast_of_authentication_key(levels: list[int], days: float | None) -> None:
    found = forecast_of(levels)
    if days is None:
        assert found is None
    else:
        assert found == pytest.approx(days, rel=0.05)


def test_the_forecast_keeps_an_hour_however_often_it_is_asked() -> None:
    forecast = Forecast(TARGET, RESERVE)
    for second in range(20_000):
        forecast.take(second * SECOND, 100_000)
    assert len(forecast._levels) <= 61
