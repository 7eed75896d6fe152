"""The two ends of a link as each other's witnesses: each has its newest checkpoint signed by the other.

Beside the agreement, and without a hold on it: a checkpoint that is not signed ends no session and holds up no key.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from qkdnode.access.pace import Pace
from qkdnode.errors import QkdnodeError
from qkdnode.link.surroundings import Link
from qkdnode.vault import requests as ask
from qkdnode.vault.witnessing import Deposition, Growth, KeepCosignature, NextCheckpoint, Witness
from qkdnode.wire.messages import Cosigned, CosignWanted, Message, NotCosigned

LOOK_S = 5.0  # how often to see whether the log has grown
GROWN_S, GROWN_LEAVES = 60.0, 100  # a log that has grown so much is shown again after so long
LATEST_S = 900.0  # one that has grown at all: the two ends' own leaves about this would else keep both awake
SESSION_S = 10.0  # in a new session it is shown sooner; an answer that has not come within GROWN_S is not waited for
BURST, PER_S = 8, 0.5  # checkpoints of the peer that are looked at
INBOX = 32

FOUND = {
    "fork": ("AUDIT_FORK", "is not what its log of {cosigned} entries has grown to"),
    "rollback": ("AUDIT_ROLLBACK", "has fewer entries than the {cosigned} that were signed before"),
    "invalid": ("PROTOCOL", "is not signed by both of its keys, or not its own"),
}


class Cosigning:
    """Runs the exchange of checkpoints of one link. `log_key` verifies what the peer signs."""

    def __init__(self, link: Link, log_key: bytes) -> None:
        self._link, self._log_key = link, log_key
        self._inbox: asyncio.Queue[Message | None] = asyncio.Queue(INBOX)
        self._pace = Pace(burst=BURST, per_s=PER_S)
        self._wanted: Growth | None = None  # sent, and not answered yet
        self._shown_ns: int | None = None  # when it, or the last one, was sent
        self._shown_size = 0
        self._session_is_new = False
        self._signed_from: int | None = None  # what the witness says that it has signed last

    def take(self, message: Message) -> None:
        """An authenticated message of the peer; one too many is dropped, as if it was not answered."""
        with suppress(asyncio.QueueFull):
            self._inbox.put_nowait(message)

    def session_opened(self) -> None:
        """Show what the log has become."""
        self._wanted = self._signed_from = None
        self._session_is_new = True
        with suppress(asyncio.QueueFull):
            self._inbox.put_nowait(None)

    async def run(self) -> None:
        """Answer the peer, and show it this end's log as it grows."""
        while True:
            message: Message | None = None
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    message = await self._inbox.get()
            try:
                if message is not None:
                    await HANDLERS[type(message)](self, message)
                elif self._link.is_open:
                    await self._show()
            except QkdnodeError as error:
                self._link.around.alarm(error.code, self._link.name, str(error))

    # --- this end's log --------------------------------------------------------------------------------------------

    async def _show(self) -> None:
        """Have the newest checkpoint signed, if it is time."""
        now, since = self._link.around.monotonic_ns(), self._shown_ns
        if since is not None:
            waited_s = (now - since) / 1e9
            if waited_s < (SESSION_S if self._session_is_new else GROWN_S):
                return
            if waited_s < LATEST_S and not self._session_is_new and self._wanted is None:
                state: ask.LogState = await self._ask(ask.LogHead())
                if state.size < self._shown_size + GROWN_LEAVES:
                    return
        self._session_is_new = False
        await self._send_next()

    async def _send_next(self) -> None:
        request = NextCheckpoint(witness=self._witness, old_size=self._signed_from)
        growth: Growth | None = await self._ask(request)
        self._shown_ns, self._wanted = self._link.around.monotonic_ns(), growth
        if growth is not None and self._link.is_open:
            self._shown_size = growth.size
            self._link.send_soon(CosignWanted(growth.old_size, growth.proof, growth.note))

    async def _on_cosigned(self, message: Cosigned) -> None:
        wanted, self._wanted = self._wanted, None
        if wanted is None or wanted.size != message.size:
            return  # late, of an end that was restarted meanwhile: the next one will do
        kept = await self._ask(
            KeepCosignature(witness=self._witness, log_key=self._log_key, size=message.size, line=message.line)
        )
        if kept:
            self._signed_from = message.size
            return
        told = f"what {self._link.peer!r} answers is not its signature on this node's checkpoint"
        self._link.around.alarm("PROTOCOL", self._link.name, told)

    async def _on_not_cosigned(self, message: NotCosigned) -> None:
        wanted, self._wanted = self._wanted, None
        if wanted is None or wanted.size != message.size:
            return
        if message.reason == "size" and message.cosigned <= wanted.size and wanted.old_size != message.cosigned:
            self._signed_from = message.cosigned
            await self._send_next()
        elif message.reason in FOUND:
            code, what = FOUND[message.reason]
            what = what.format(cosigned=message.cosigned)
            told = f"{self._link.peer!r} does not sign this node's checkpoint of {message.size} entries: it {what}"
            self._link.around.alarm(code, self._link.name, told)

    # --- the peer's log --------------------------------------------------------------------------------------------

    async def _on_wanted(self, message: CosignWanted) -> None:
        peer, name = self._link.peer, self._link.name
        if self._pace.step(self._link.around.monotonic_ns() / 1e9):
            self._link.send_soon(NotCosigned(_size_in(message.note), 0, "busy"))
            return
        try:
            said: Deposition = await self._ask(
                Witness(
                    link=name,
                    origin=f"{peer}.audit",
                    log_key=self._log_key,
                    old_size=message.old_size,
                    proof=message.proof,
                    note=message.note,
                )
            )
        except QkdnodeError:
            self._link.send_soon(NotCosigned(_size_in(message.note), 0, "failed"))
            raise
        if not said.refused:
            self._link.send_soon(Cosigned(said.size, said.line))
            return
        size = said.size or _size_in(message.note)
        self._link.send_soon(NotCosigned(size, said.cosigned, said.refused))  # type: ignore[arg-type]
        if said.refused in FOUND:
            code, what = FOUND[said.refused]
            told = (
                f"a checkpoint of {size} entries that {peer!r} shows of its log {what.format(cosigned=said.cosigned)}"
            )
            self._link.around.alarm(code, name, told)

    @property
    def _witness(self) -> str:
        return f"{self._link.peer}.witness"

    async def _ask(self, request: Any) -> Any:
        return await self._link.around.ask(request)


def _size_in(note: str) -> int:
    """What a checkpoint says of its size, so that who sent it knows which one is meant; 0 if it says none."""
    lines = note.split("\n", 2)
    text = lines[1] if len(lines) == 3 else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else 0


HANDLERS: dict[type[Message], Callable[[Cosigning, Any], Awaitable[None]]] = {
    CosignWanted: Cosigning._on_wanted,
    Cosigned: Cosigning._on_cosigned,
    NotCosigned: Cosigning._on_not_cosigned,
}
