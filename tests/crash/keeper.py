"""A node that keeps and supplies keys known to whoever started it: a real vault and supply, without link or devices.

The known keys come through a pipe straight into locked memory, so that whatever is found of them elsewhere is a leak.
`python -m crash.keeper DIRECTORY CONTROL SOCKET PIPE`: commands come over the socket, one at a time.
"""

import asyncio
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from crash import controls
from qkdnode.access.allowlist import AllowList
from qkdnode.channel.identity import load_identity, load_public_application
from qkdnode.errors import QkdnodeError
from qkdnode.ids import ALICE, Association, BatchId
from qkdnode.native.secret import SecretBuffer, locked_mode
from qkdnode.supply.server import SupplyServer
from qkdnode.vault import requests as ask
from qkdnode.vault.root import CredentialFile
from qkdnode.vault.service import Vault
from qkdnode.wire.messages import Allocate

LINK, NODE, PEER = "line", "node", "peer"
HERE, OTHER = Association("app", "far", LINK), Association("other", "far", LINK)
REFILL_BITS, KEY_BITS = 1024, 256
MAX_COMMAND = 64 * 1024


def read_into_locked(pipe: int, size: int) -> SecretBuffer:
    """So many bytes of a pipe, from the kernel into locked memory."""
    key = SecretBuffer(size)
    with memoryview(key) as view:
        at = 0
        while at < size:
            with view[at:] as rest:
                count = os.readv(pipe, [rest])
            if not count:
                raise EOFError("the pipe ended in the middle of a key")
            at += count
    return key


def draw_into(buffer: Any) -> None:
    """From the system: nobody knows these."""
    with memoryview(buffer) as view, view.cast("B") as octets:
        at = 0
        while at < len(octets):
            with open("/dev/urandom", "rb", buffering=0) as source, octets[at:] as rest:
                at += source.readinto(rest)


class Keeper:
    """Commands in, answers out."""

    def __init__(self, directory: Path, pipe: int) -> None:
        self._directory, self._pipe = directory, pipe
        self._identity = load_identity(directory / f"{NODE}.identity")
        place = directory / "vault"
        self.vault = Vault.open(
            place / "vault.db",
            root=CredentialFile("credential", directory),
            node=NODE,
            draw_into=draw_into,
            signer=self._identity,
            clock_ns=time.time_ns,
            create=not (place / "vault.db").exists(),
        )
        self._held: list[SecretBuffer] = []
        self._server: SupplyServer | None = None

    async def ask(self, request: ask.Request) -> Any:
        return await asyncio.wrap_future(self.vault.ask(request))

    async def do_pair(self, size: int) -> None:
        """Import the pair's first key, whose pads nobody uses."""
        material = read_into_locked(self._pipe, size)
        await self.ask(ask.OpenLink(link=LINK, role=ALICE, peer=PEER))
        await self.ask(ask.ProvisionLink(link=LINK, role=ALICE, peer=PEER, pair=b"pair", material=material))
        for association in (HERE, OTHER):
            await self.ask(
                ask.Associate(association=association, nodes=(NODE, PEER), link=LINK, purpose="t", key_class="qkd")
            )

    async def do_stock(self, number: int, size: int) -> None:
        """Store a Batch and settle it."""
        record = ask.BatchRecord(
            batch=BatchId(1, number), bits_in=8 * size, bits_out=8 * size, refill_bits=REFILL_BITS, method="m",
            booking="both", family="f", eps_sec=1e-10, eps_cor=1e-15, qber_z=0.02, disclosed_bits=5, devices=(),
            details={},
        )  # fmt: skip
        key = read_into_locked(self._pipe, size)
        await self.ask(ask.StorePending(link=LINK, record=record, key=key, commit=b"commit"))
        settled = await self.ask(ask.SettlePending(link=LINK, batch=record.batch, ready=True))
        settled.segment.material.release()

    async def do_allocate(self, count: int, outcome: str) -> list[bytes]:
        """Cut keys, and let the peer answer."""
        request = ask.AllocateKeys(association=HERE, count=count, size_bits=KEY_BITS, entropy=os.urandom(16 * count))
        ids = await self.ask(request)
        for entry in await self.ask(ask.NeighbourOutbox(link=LINK)):
            if isinstance(entry.message, Allocate):
                await self.ask(ask.AllocationAnswered(link=LINK, request=entry.number, outcome=outcome))
        if self._server is not None:
            self._server.notify(HERE.local)
        return [key_id.bytes for key_id in ids]

    async def do_hold(self, raw: bytes) -> None:
        """Keep a key open, as while it is sent."""
        self._held.append(await self.ask(ask.OpenKey(key_id=UUID(bytes=raw), application=HERE.local)))

    async def do_refuse(self, raw: bytes) -> bool:
        """Whether another application is refused."""
        try:
            (await self.ask(ask.OpenKey(key_id=UUID(bytes=raw), application=OTHER.local))).release()
        except QkdnodeError as error:
            print(f"refused: {error}", flush=True)
            return True
        return False

    async def do_fail(self, size: int) -> bool:
        """Whether requests that make no sense fail: a Batch that is known with other content, a wrong length."""
        record = ask.BatchRecord(
            batch=BatchId(1, 1), bits_in=8, bits_out=8 * size, refill_bits=REFILL_BITS, method="m", booking="both",
            family="f", eps_sec=1e-10, eps_cor=1e-15, qber_z=0.02, disclosed_bits=5, devices=(), details={},
        )  # fmt: skip
        failed = 0
        for wrong in (record, msgspec.structs.replace(record, bits_out=8 * size - 64)):
            with read_into_locked(self._pipe, size) as key:
                try:
                    await self.ask(ask.StorePending(link=LINK, record=wrong, key=key, commit=b"other"))
                except QkdnodeError as error:
                    failed += 1
                    print(f"failed: {error}", flush=True)
        return failed == 2

    async def do_serve(self, endpoint: str) -> str:
        """Supply keys; where."""

        async def record(*_: object) -> None: ...

        self._server = SupplyServer(
            self._identity,
            AllowList([load_public_application(self._directory / f"{HERE.local}.public")]),
            ask=self.ask,
            draw_into=draw_into,
            decide=lambda association, size_bits: None,
            on_subscription=lambda state: None,
            record=record,
            key_class="its",
            resend_s=0.5,
        )
        await self._server.start(endpoint)
        return self._server.endpoint

    async def do_waiting(self) -> int:
        """How many keys the application has not acknowledged."""
        return len(await self.ask(ask.ApplicationOutbox(application=HERE.local)))

    async def do_stop(self) -> None:
        """End in order."""
        if self._server is not None:
            await self._server.close()
        for key in self._held:
            key.release()
        self.vault.close()

    async def run(self, wire: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        wire.setblocking(False)
        await loop.sock_sendall(wire, msgspec.msgpack.encode(locked_mode()))
        while data := await loop.sock_recv(wire, MAX_COMMAND):
            name, *arguments = msgspec.msgpack.decode(data)
            answer = await getattr(self, f"do_{name}")(*arguments)
            await loop.sock_sendall(wire, msgspec.msgpack.encode(answer))
            if name == "stop":
                return


def main(directory: str, control: str, wire: str, pipe: str) -> None:
    """Keep."""
    if control:
        controls.plant(control)
    keeper = Keeper(Path(directory), int(pipe))
    asyncio.run(keeper.run(socket.socket(fileno=int(wire))))


if __name__ == "__main__":
    main(*sys.argv[1:])
