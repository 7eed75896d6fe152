"""An event loop whose time stands still while anything runs and jumps when all wait: hours pass in milliseconds."""

import asyncio
import selectors
from typing import Any


class JumpingSelector(selectors.SelectSelector):
    """Never sleeps: what the loop would have waited is added to its clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise AssertionError("everything waits for something that will never happen")
            self.now_s += max(timeout, 0.0)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop in virtual time. Deterministic as long as no other thread calls into it."""

    def __init__(self) -> None:
        self._virtual = JumpingSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now_s
