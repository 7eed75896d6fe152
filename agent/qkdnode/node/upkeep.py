"""What the vault has to do in its own time, a page at a time: rows that follow a compromise, and the care of what it
keeps: all records verified, data keys wrapped anew, past epochs ended, the files read for what was deleted.

Of the time that the vault takes to answer, waiting included, a share is asked for at most: a busy vault is asked less.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from qkdnode.errors import VaultError
from qkdnode.vault.epochs import EndEpoch, MoveDataKeys
from qkdnode.vault.readback import ReadBack, ReadBackState
from qkdnode.vault.retirement import Retired, RetireKeys
from qkdnode.vault.rotations import EndGenerations
from qkdnode.vault.scopes import MoveRows
from qkdnode.vault.scrub import Scrub, ScrubState
from qkdnode.watch.alarms import AlarmCode

IDLE_S = 1.0
SHARE = 0.1  # of the vault's time
SETTLED_S = 30.0  # after the start, before anything of this is begun
EPOCHS_S = 600.0  # between looks for epochs that are past; the first one is the catch-up after a stop
RETIRING = 0.25  # the share for keys that are due
LOST_S = 60.0  # between alarms that a class of keys is lost
READ_BACK_S = 60.0  # between readings of the files; all of them are read for a few deleted keys as for many
LOOK_S = 5.0  # between looks for something to do
PAUSE_S = 0.02  # between pages, so that others are served: a page takes some milliseconds


async def move_rows(ask: Callable[[Any], Awaitable[Any]], alarm: Callable[[str, str, str], None]) -> None:
    """Move rows behind the scopes of compromises and behind generations that are over, for as long as the node runs."""
    while True:
        try:
            some_are_left: bool = await ask(MoveRows())
            some_are_left = await ask(EndGenerations()) or some_are_left
        except VaultError as error:
            alarm(error.code, "vault", str(error))
            some_are_left = False
        await asyncio.sleep(PAUSE_S if some_are_left else IDLE_S)


async def retire(
    ask: Callable[[Any], Awaitable[Any]],
    alarm: Callable[[str, str, str], None],
    ended: Callable[[tuple[str, ...]], None],
    clock_s: Callable[[], float],
) -> None:
    """End keys that are due by the terms of their class for as long as the node runs, what was due at the start first.

    `ended` is told the links whose neighbours are to hear of it. No key is released past its end meanwhile: that is
    decided at each release, by the same time.
    """
    told_s = dict[str, float]()
    while True:
        begun_s, done = clock_s(), Retired(0, 0, (), False)
        try:
            done = await ask(RetireKeys())
        except VaultError as error:
            alarm(error.code, "vault", str(error))
        if done.links:
            ended(done.links)
        for name in done.lost:
            if begun_s - told_s.get(name, -LOST_S) >= LOST_S:
                told_s[name] = begun_s
                told = f"the policy has lost class {name!r}: its keys end within an hour, unless it is mended"
                alarm(AlarmCode.POLICY, f"class {name}", told)
        took_s = clock_s() - begun_s
        await asyncio.sleep(max(PAUSE_S, took_s * (1 / RETIRING - 1)) if done.more else IDLE_S)


class Care:
    """The vault's pages of upkeep, one after another. `clock_s` is any clock that does not step."""

    def __init__(
        self,
        ask: Callable[[Any], Awaitable[Any]],
        alarm: Callable[[str, str, str], None],
        clock_s: Callable[[], float],
    ) -> None:
        self._ask, self._alarm, self._clock_s = ask, alarm, clock_s
        self._look_for_epochs_s = self._read_back_s = 0.0
        self._reading = False

    async def run(self) -> None:
        """For as long as the node runs."""
        await asyncio.sleep(SETTLED_S)
        while True:
            begun_s = self._clock_s()
            some_are_left = False
            for page in (self._move, self._scrub, self._end_epochs, self._read_back):
                try:
                    some_are_left = await page() or some_are_left
                except VaultError as error:
                    self._alarm(error.code, "vault", str(error))
            took_s = self._clock_s() - begun_s
            await asyncio.sleep(max(PAUSE_S, took_s * (1 / SHARE - 1)) if some_are_left else LOOK_S)

    async def _move(self) -> bool:
        return bool(await self._ask(MoveDataKeys()))

    async def _scrub(self) -> bool:
        state: ScrubState = await self._ask(Scrub())
        for name in state.met:
            self._alarm(AlarmCode.VAULT_DAMAGED, "vault", f"record {name} is damaged: met by the pass over all records")
        return state.running

    async def _end_epochs(self) -> bool:
        if self._clock_s() < self._look_for_epochs_s:
            return False
        more = bool(await self._ask(EndEpoch()))
        if not more:
            self._look_for_epochs_s = self._clock_s() + EPOCHS_S
            self._read_back_s = 0.0  # what ended is to be proven
        return more

    async def _read_back(self) -> bool:
        if not self._reading and self._clock_s() < self._read_back_s:
            return False
        state: ReadBackState = await self._ask(ReadBack())
        for failure in state.failures:
            self._alarm(AlarmCode.NOT_ERASED, "vault", failure)
        self._reading = state.running
        if not state.running:
            self._read_back_s = self._clock_s() + READ_BACK_S
        return state.running
