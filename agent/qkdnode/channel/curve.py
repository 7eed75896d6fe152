"""CURVE on a socket: outer access control, without weight in the security claim."""

from typing import NamedTuple

import zmq

from qkdnode.native.secret import SecretBuffer


class CurveKeys(NamedTuple):
    """One side's key pair: the public half in Z85, the secret half in Z85 in locked memory, not owned."""

    public: str
    secret: SecretBuffer


def libzmq_version() -> str:
    """The version of the library that computes CURVE."""
    return zmq.zmq_version()


def curve_keypair() -> CurveKeys:
    """A new key pair. libzmq's own copy of it is beyond wiping."""
    public, secret = zmq.curve_keypair()
    return CurveKeys(public.decode(), SecretBuffer.copy_of(secret))


def curve_public(secret: SecretBuffer) -> str:
    """The public key of a secret key; ValueError if that is not 32 bytes in Z85."""
    with memoryview(secret) as view:
        try:
            return zmq.curve_public(view.tobytes()).decode()
        except zmq.ZMQError:
            raise ValueError("a CURVE secret key is 32 bytes in Z85") from None


def secure_server(socket: "zmq.Socket[bytes]", keys: CurveKeys, domain: str) -> None:
    """Make a socket accept only CURVE clients that the Gate of `domain` lets in."""
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt_string(zmq.ZAP_DOMAIN, domain)
    # Without this, libzmq lets everybody in when no handler answers for the domain.
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    _set_keys(socket, keys)


def secure_client(socket: "zmq.Socket[bytes]", keys: CurveKeys, server: str) -> None:
    """Make a socket connect only to the holder of the public key `server`."""
    socket.setsockopt_string(zmq.CURVE_SERVERKEY, server)
    _set_keys(socket, keys)


def _set_keys(socket: "zmq.Socket[bytes]", keys: CurveKeys) -> None:
    socket.setsockopt_string(zmq.CURVE_PUBLICKEY, keys.public)
    with memoryview(keys.secret) as view:
        socket.setsockopt(zmq.CURVE_SECRETKEY, view.tobytes())
