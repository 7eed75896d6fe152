"""What the node tells the vault of what it cannot know: deprecated algorithms, and links that are degraded."""

import asyncio
from types import SimpleNamespace
from typing import Any

from qkdnode.ids import Association
from qkdnode.lifecycle.algorithms import ALGORITHMS, Status, status_of
from qkdnode.link.statistics import LinkStatistics
from qkdnode.node import rotations
from qkdnode.node.rotations import DEGRADING, RotationWatch
from qkdnode.vault.rotations import RotateDue
from qkdnode.watch.alarms import AlarmCode

SECOND_NS = 10**9


class Node:
    """Links `a` and `b`, alarms as they are set, and a vault that begins a rotation if it is told to."""

    def __init__(self, day: str = "2026-01-01") -> None:
        self.now_ns = 1000 * SECOND_NS
        self.alarms: list[Any] = []
        self.asked: list[RotateDue] = []
        self.begun: tuple[Association, ...] = ()
        self.woken: list[str] = []
        self.links: dict[str, Any] = {name: self.link(name) for name in ("a", "b")}
        self.watch = RotationWatch(
            world=SimpleNamespace(monotonic_ns=lambda: self.now_ns, wall_ns=lambda: self.now_ns),  # type: ignore[arg-type]
            recorder=SimpleNamespace(alarms=SimpleNamespace(all=lambda: self.alarms)),  # type: ignore[arg-type]
            links=self.links,
            algorithms=SimpleNamespace(registry=ALGORITHMS, day=day),  # type: ignore[arg-type]
            qrngs=lambda: ("QRNG-1",),
            ask=self.ask,
        )

    def link(self, name: str, least: float | None = None) -> Any:
        agreement = SimpleNamespace(rotated=lambda: self.woken.append(name))
        return SimpleNamespace(
            module=SimpleNamespace(serial=f"TX-{name}"),
            section=SimpleNamespace(limits=SimpleNamespace(least_secret_bps=least)),
            link=SimpleNamespace(statistics=LinkStatistics(), agreement=agreement),
        )

    async def ask(self, request: RotateDue) -> tuple[Association, ...]:
        self.asked.append(request)
        return self.begun

    def alarm(self, code: AlarmCode, subject: str, first_ns: int, *, active: bool = True) -> None:
        self.alarms.append(SimpleNamespace(code=code, subject=subject, first_ns=first_ns, active=active))


def test_a_link_is_degraded_by_an_alarm_about_it_or_its_devices_for_as_long_as_it_lasts() -> None:
    node = Node()
    assert node.watch.degraded() == {}
    node.alarm(AlarmCode.QBER_RISEN, "a", 5)
    node.alarm(AlarmCode.DEVICE_UNHEALTHY, "TX-b", 6)
    node.alarm(AlarmCode.TEMPERATURE, "TX-a", 7, active=False)
    node.alarm(AlarmCode.POLICY, "a", 8)
    node.alarm(AlarmCode.DEVICE_UNHEALTHY, "TX-elsewhere", 9)
    assert node.watch.degraded() == {"a": 5, "b": 6}
    node.alarm(AlarmCode.DEVICE_UNHEALTHY, "QRNG-1", 10)
    assert node.watch.degraded() == {"a": 10, "b": 10}, "every link draws from the node's QRNGs"


def test_a_link_that_gives_less_key_than_it_should_is_degraded_since_that_was_seen() -> None:
    node = Node()
    node.links["a"] = node.link("a", least=1000.0)
    statistics = node.links["a"].link.statistics
    for expected in ({}, {}, {}, {"a": 1030 * SECOND_NS}, {"a": 1030 * SECOND_NS}):
        assert node.watch.degraded() == expected, node.now_ns
        node.now_ns += 10 * SECOND_NS
        statistics.secret_bits += 20_000 if node.now_ns == 1010 * SECOND_NS else 0
    statistics.secret_bits += 10**9
    assert node.watch.degraded() == {}


def test_what_is_deprecated_on_the_day_that_counts_is_told_with_its_first_moment() -> None:
    assert Node(day="2026-01-01").watch.deprecated() == {
        row.id: rotations_ns
        for row in ALGORITHMS.values()
        if status_of(row.id, "2026-01-01") is not Status.APPROVED and row.deprecated_from is not None
        for rotations_ns in [_ns(row.deprecated_from)]
    }
    later = Node(day="2200-01-01").watch.deprecated()
    assert later
    for name, moment_ns in later.items():
        assert moment_ns == _ns(str(ALGORITHMS[name].deprecated_from))


def _ns(day: str) -> int:
    from datetime import UTC, date, datetime

    return (date.fromisoformat(day) - datetime.fromtimestamp(0, UTC).date()).days * 86_400 * SECOND_NS


def test_links_are_woken_when_the_vault_has_begun_a_rotation(monkeypatch: Any) -> None:
    node = Node()
    monkeypatch.setattr(rotations, "LOOK_S", 0.0)

    async def look(until: int) -> None:
        task = asyncio.create_task(node.watch.run())
        while len(node.asked) < until:
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(look(2))
    assert node.woken == []
    node.begun = (Association("x", "y", "a"),)
    asyncio.run(look(4))
    assert {"a", "b"} <= set(node.woken)
    assert AlarmCode.DEVICE_UNHEALTHY in DEGRADING
