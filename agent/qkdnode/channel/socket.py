"""What every socket between agents and applications sets: liveness, bounds, and a context of its own."""

import asyncio

import msgspec
import zmq

# Room for CURVE's nonce, flags and tag on top of a message.
CURVE_OVERHEAD_BYTES = 64


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of a socket. Times in milliseconds, marks in messages per connection."""

    max_message_bytes: int
    high_water: int = 256
    heartbeat_ms: int = 2_000
    silence_ms: int = 8_000  # without any traffic the connection counts as lost
    handshake_ms: int = 5_000
    linger_ms: int = 500
    reconnect_ms: int = 100
    reconnect_max_ms: int = 5_000


Context = zmq.Context["zmq.Socket[bytes]"]


def open_socket(context: Context, kind: zmq.SocketType, limits: Limits) -> "zmq.Socket[bytes]":
    """A socket with its bounds set, neither bound nor connected."""
    socket = context.socket(kind)
    for option, value in (
        (zmq.HEARTBEAT_IVL, limits.heartbeat_ms),
        (zmq.HEARTBEAT_TIMEOUT, limits.silence_ms),
        (zmq.HEARTBEAT_TTL, limits.silence_ms),
        (zmq.HANDSHAKE_IVL, limits.handshake_ms),
        (zmq.MAXMSGSIZE, limits.max_message_bytes + CURVE_OVERHEAD_BYTES),
        (zmq.SNDHWM, limits.high_water),
        (zmq.RCVHWM, limits.high_water),
        (zmq.LINGER, limits.linger_ms),
        (zmq.IMMEDIATE, 1),
        (zmq.RECONNECT_IVL, limits.reconnect_ms),
        (zmq.RECONNECT_IVL_MAX, limits.reconnect_max_ms),
        (zmq.IPV6, 1),
    ):
        socket.setsockopt(option, value)
    return socket


def library() -> tuple[tuple[int, ...], bool]:
    """The version of libzmq, and whether it can CURVE."""
    return zmq.zmq_version_info(), zmq.has("curve")


async def end_context(context: Context) -> None:
    """Wait until lingering messages are out, at most the linger time of each socket."""
    await asyncio.to_thread(context.term)
