"""What a peer says right before it leaves is heard, whatever this end tries to send meanwhile."""

import asyncio
import tempfile
import threading
import time
from pathlib import Path

from qkdnode.channel.dialler import Dialler
from qkdnode.channel.identity import load_identity
from qkdnode.channel.listener import Listener, Peer
from qkdnode.channel.socket import Limits
from qkdnode.errors import ChannelError
from qkdnode.node.provision import provision_application, provision_node

LIMITS = Limits(max_message_bytes=1024)


def test_a_peer_that_is_gone_is_heard_out_before_it_is_forgotten() -> None:
    with tempfile.TemporaryDirectory(prefix="qkd-") as directory:
        asyncio.run(demand_last_words(Path(directory)))


def refusal(listener: Listener, peer: Peer) -> str:
    """Why a message to a peer is refused, once ZeroMQ knows that it is gone."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            listener.send(peer, b"are you there?")
        except ChannelError as error:
            return str(error)
        time.sleep(0.01)
    return "not refused"


async def demand_last_words(directory: Path) -> None:
    node = provision_node("node", directory)
    application = provision_application("app", directory)
    heard: list[bytes | str] = []
    peers: list[Peer] = []
    spoke, joined, gone = asyncio.Event(), threading.Event(), threading.Event()

    def receive(_: Peer, frame: bytes) -> None:
        heard.append(frame)
        spoke.set()

    async def speak_and_leave() -> None:
        there = asyncio.Event()
        with load_identity(directory / "app.identity") as identity:
            dialler = Dialler(
                listener.endpoint,
                identity.curve,
                node.curve,
                LIMITS,
                joined=there.set,
                left=lambda: None,
                received=lambda _: None,
                failed=lambda _: None,
                malformed=lambda: None,
            )
            await there.wait()
            assert dialler.send(b"first")
            await asyncio.to_thread(joined.wait, 20)
            assert dialler.send(b"last")
            await dialler.close()
        gone.set()

    with load_identity(directory / "node.identity") as identity:
        listener = Listener(
            f"ipc://{directory}/socket",
            identity.curve,
            LIMITS,
            domain="test",
            admit=lambda curve: "app" if curve == application.curve else None,
            joined=peers.append,
            left=lambda _: heard.append("left"),
            received=receive,
            refused=lambda _: None,
            malformed=lambda: heard.append("malformed"),
        )
        speaker = threading.Thread(target=lambda: asyncio.run(speak_and_leave()))
        speaker.start()
        async with asyncio.timeout(20):
            await spoke.wait()
            joined.set()
            gone.wait(20)  # this loop stands still: what the peer said last waits in the socket
            assert "app is no longer connected" in refusal(listener, peers[0])
            while "left" not in heard:
                await asyncio.sleep(0.01)
        speaker.join(20)
        await listener.close()
    assert heard == [b"first", b"last", "left"]
