"""What the vault has to do in its own time, a page at a time: rows that follow a compromise."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from qkdnode.errors import VaultError
from qkdnode.vault.scopes import MoveRows

IDLE_S = 1.0
PAUSE_S = 0.02  # between pages, so that others are served: a page takes some milliseconds


async def move_rows(ask: Callable[[Any], Awaitable[Any]], alarm: Callable[[str, str, str], None]) -> None:
    """Move rows behind the scopes of compromises for as long as the node runs."""
    while True:
        try:
            some_are_left: bool = await ask(MoveRows())
        except VaultError as error:
            alarm(error.code, "vault", str(error))
            some_are_left = False
        await asyncio.sleep(PAUSE_S if some_are_left else IDLE_S)
