"""The care of what the vault keeps: what is asked in which order, and how little of the vault's time it takes."""

import asyncio
from typing import Any

import pytest

from qkdnode.errors import VaultError
from qkdnode.node import upkeep
from qkdnode.node.upkeep import Care
from qkdnode.vault.epochs import EndEpoch, MoveDataKeys
from qkdnode.vault.readback import ReadBack, ReadBackState
from qkdnode.vault.retirement import Retired, RetireKeys
from qkdnode.vault.scrub import Scrub, ScrubState

PAGE_S = 0.004
NOTHING = Retired(0, 0, (), False)


def scrub_state(running: bool, met: tuple[str, ...] = ()) -> ScrubState:
    return ScrubState(1, running, "bundles", 0.5, 1, 1, 1, len(met), 1, None, met)


class Watched:
    """A vault of a script, a clock that its answers move, and sleeps that move it too."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, until_s: float) -> None:
        self.now_s, self.busy_s = 0.0, 0.0
        self.asked: list[str] = []
        self.alarms: list[tuple[str, str]] = []
        self.answers: dict[type[Any], list[Any]] = {
            MoveDataKeys: [], Scrub: [], EndEpoch: [], ReadBack: [], RetireKeys: [],
        }  # fmt: skip
        self._until_s = until_s
        monkeypatch.setattr(upkeep.asyncio, "sleep", self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.now_s += seconds
        if self.now_s > self._until_s:
            raise asyncio.CancelledError

    async def ask(self, request: Any) -> Any:
        self.asked.append(type(request).__name__)
        waiting = self.answers[type(request)]
        if not waiting:
            idle = {
                MoveDataKeys: False, Scrub: scrub_state(False), EndEpoch: False, ReadBack: ReadBackState(False),
                RetireKeys: NOTHING,
            }  # fmt: skip
            return idle[type(request)]
        self.now_s += PAGE_S
        self.busy_s += PAGE_S
        answer = waiting.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def run(self) -> None:
        care = Care(self.ask, lambda code, _, detail: self.alarms.append((code, detail)), lambda: self.now_s)
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(care.run())

    def retire(self) -> list[tuple[str, ...]]:
        told: list[tuple[str, ...]] = []
        work = upkeep.retire(
            self.ask, lambda code, about, _: self.alarms.append((code, about)), told.append, lambda: self.now_s
        )
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(work)
        return told


def test_keys_that_are_due_are_ended_in_a_share_of_the_vault_s_time_and_told_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(monkeypatch, 30)
    monkeypatch.setattr(upkeep, "PAUSE_S", 0.001)
    watched.answers[RetireKeys] = [VaultError("the disk is slow"), *[Retired(9, 0, ("metro",), True)] * 100_000]
    told = watched.retire()
    assert set(told) == {("metro",)}
    assert watched.busy_s / 30 == pytest.approx(upkeep.RETIRING, rel=0.1)
    assert watched.alarms == [("VAULT", "vault")]


def test_a_class_that_the_policy_has_lost_is_an_alarm_until_its_keys_have_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(monkeypatch, 600)
    watched.answers[RetireKeys] = [Retired(0, 0, (), False, ("bulk",))] * 300
    assert watched.retire() == []
    assert watched.alarms == [("POLICY", "class bulk")] * 5


def test_long_work_takes_a_bounded_share_of_the_vault_s_time(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, upkeep.SETTLED_S + 60)
    watched.answers[Scrub] = [scrub_state(True)] * 10_000
    watched.run()
    assert watched.busy_s / 60 == pytest.approx(upkeep.SHARE, rel=0.15)


def test_damage_and_what_is_not_erased_are_alarms_and_an_error_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, upkeep.SETTLED_S + 300)
    watched.answers[MoveDataKeys] = [VaultError("the disk is slow"), True]
    watched.answers[Scrub] = [scrub_state(True, ("keys/1", "keys/2"))]
    watched.answers[ReadBack] = [ReadBackState(True), ReadBackState(False, ("a trace is found",))]
    watched.run()
    assert [code for code, _ in watched.alarms].count("VAULT_DAMAGED") == 2
    assert ("NOT_ERASED", "a trace is found") in watched.alarms
    assert any(detail == "the disk is slow" for _, detail in watched.alarms)
    assert watched.asked.count("MoveDataKeys") > 10


def test_past_epochs_are_looked_for_soon_after_the_start_and_the_files_read_right_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(monkeypatch, upkeep.SETTLED_S + 4)
    watched.answers[EndEpoch] = [True, True, False]
    watched.run()
    assert watched.asked.count("EndEpoch") == 3
    assert watched.asked.index("ReadBack") > watched.asked.index("EndEpoch")
    assert watched.asked[-1] == "ReadBack"


def test_nothing_is_asked_in_the_first_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, upkeep.SETTLED_S - 1)
    watched.run()
    assert watched.asked == []
