"""Negative control of `uses.py`: each marked line is an error to both type checkers, or its mark is one."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from qkdnode.client import AsyncSubscription, Key, subscribe
from qkdnode.config import Config
from qkdnode.native.secret import SecretBuffer


def misused(key: Key, config: Config, buffer: SecretBuffer) -> None:
    """What nobody should write."""
    subscribe("tcp://h:1", identity="i", node="n", remote="b")  # type: ignore[call-arg]
    subscribe("tcp://h:1", "i", node="n", remote="b", link="l")  # type: ignore[call-arg]
    subscribe("tcp://h:1", identity=b"i", node="n", remote="b", link="l")  # type: ignore[arg-type]
    subscribe("tcp://h:1", identity="i", node="n", remote="b", link="l", size_bits="256")  # type: ignore[arg-type]
    key.material + b""  # type: ignore[operator]
    print(key.secret)  # type: ignore[attr-defined]
    print(config.watch.listen)  # type: ignore[union-attr]
    config.node.name = "other"  # type: ignore[misc]
    SecretBuffer()  # type: ignore[call-arg]
    buffer.decode()  # type: ignore[attr-defined]


async def misused_in_a_loop(keys: AsyncSubscription) -> None:
    """What nobody should write either."""
    for _ in keys:  # type: ignore[attr-defined]
        pass
    keys.take().acknowledge()  # type: ignore[attr-defined]


class Other(SecretBuffer):  # type: ignore[misc]
    """It is final."""
