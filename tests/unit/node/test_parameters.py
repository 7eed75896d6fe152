"""A module that works otherwise than its link is configured gives no key: the secret length would rest on nothing."""

import msgspec
import pytest

from qkdnode.config import LinkSection
from qkdnode.device.identity import DeviceConfig, DeviceInfo
from qkdnode.node.parameters import agreed_parameters, module_difference

LINK = msgspec.convert(
    {
        "name": "a-b",
        "role": "alice",
        "peer": "b",
        "peer_public": "b.public",
        "pair_key": "a-b.a.pair",
        "listen": "tcp://127.0.0.1:1",
        "module": {"serial": "TX", "backend": "libusb"},
    },
    LinkSection,
)
INFO = DeviceInfo(
    personality=1,
    firmware="1.0.0",
    slot_rate_hz=20_000_000,
    sync_interval_slots=200_000,
    slot_units=12_800,
    intensities=2,
    emulated=True,
    fault_injection=False,
    session=1,
    serial="TX",
    model="stub",
)
CONFIG = DeviceConfig(p_z=0.85, intensities=(0.5, 0.15), intensity_probabilities=(0.6, 0.4), dead_time_ns=50)


def test_a_module_that_agrees_is_used() -> None:
    assert module_difference(LINK, INFO, CONFIG) is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"p_z": 0.9}, "p_z"),
        ({"intensities": (0.5, 0.1)}, "intensities"),
        ({"intensity_probabilities": (0.5, 0.5)}, "intensity_probabilities"),
    ],
)
def test_a_transmitter_that_differs_is_named(change: dict[str, object], named: str) -> None:
    difference = module_difference(LINK, INFO, msgspec.structs.replace(CONFIG, **change))
    assert difference is not None
    assert f"`{named}`" in difference


def test_another_slot_rate_is_named() -> None:
    difference = module_difference(LINK, msgspec.structs.replace(INFO, slot_rate_hz=10_000_000), CONFIG)
    assert difference is not None
    assert "`slot_rate_hz`" in difference


def test_a_receiver_is_asked_for_its_dead_time_and_not_for_intensities() -> None:
    bob = msgspec.structs.replace(LINK, role="bob")
    receiver = msgspec.structs.replace(CONFIG, intensities=(), intensity_probabilities=())
    assert module_difference(bob, INFO, receiver) is None
    difference = module_difference(bob, INFO, msgspec.structs.replace(receiver, dead_time_ns=100))
    assert difference is not None
    assert "`dead_time_ns`" in difference


def test_a_module_that_says_nothing_is_not_used() -> None:
    assert module_difference(LINK, None, None) is not None


def test_dead_time_is_counted_in_whole_slots_rounded_up() -> None:
    distill = msgspec.structs.replace(LINK.distill, dead_time_ns=51)
    assert agreed_parameters(msgspec.structs.replace(LINK, distill=distill)).dead_slots == 2
