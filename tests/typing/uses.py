"""A program that uses the public API as documented: both type checkers must take it, and see these types."""

from pathlib import Path
from typing import assert_type
from uuid import UUID

from qkdnode.client import (
    AsyncSubscription,
    Events,
    Key,
    Missed,
    NoKeyError,
    Occurrence,
    SignedCheckpoint,
    Subscription,
    subscribe,
)
from qkdnode.config import Config, load_config
from qkdnode.errors import AccessDeniedError, QkdnodeError, SupplyError
from qkdnode.ids import Association
from qkdnode.native.secret import SecretBuffer


def fetch(endpoint: str) -> list[UUID]:
    """The blocking form."""
    ids = []
    with subscribe(endpoint, identity=Path("app.identity"), node="node.public", remote="b", link="l") as keys:
        assert_type(keys, Subscription)
        for key in keys:
            assert_type(key, Key)
            with key:
                assert_type(key.material, SecretBuffer)
                assert_type(len(key.material), int)
                with memoryview(key.material) as view:
                    assert_type(view[0], int)
            assert_type(key.association, Association)
            assert_type(key.key_class, str)
            ids.append(key.id)
        assert_type(keys.fetch(ids[0], timeout=1.0), Key)
        assert_type(keys.statistics().subscribed, bool)
        try:
            keys.next(timeout=1.0).acknowledge()
        except NoKeyError as error:
            assert_type(error.code, str)
        except (AccessDeniedError, SupplyError):
            raise
    return list(ids)


async def fetch_in_a_loop(endpoint: str) -> None:
    """The form for asyncio."""
    async with AsyncSubscription(
        endpoint, identity="app.identity", node="node.public", remote="b", link="l", size_bits=512, credit=8, timeout=5
    ) as keys:
        assert_type(keys, AsyncSubscription)
        async for key in keys:
            assert_type(key, Key)
        await keys.wait(1.0)
        assert_type(keys.take(), list[Key])


async def follow(publish: str, replay: str) -> int | None:
    """Events."""
    last = None
    async with Events("a.identity", "n.public", publish=publish, replay=replay, topics=["alarm"], after=-1) as events:
        async for item in events:
            assert_type(item, Occurrence | SignedCheckpoint | Missed)
            if isinstance(item, Occurrence):
                assert_type(item.event.kind, str)
                last = item.position
            elif isinstance(item, Missed):
                assert_type(item.oldest, int)
        assert_type(events.statistics().repaired, int)
    return last


def configured(path: Path) -> str | None:
    """Configuration and errors."""
    try:
        config = load_config(path)
    except QkdnodeError as error:
        return error.code
    assert_type(config, Config)
    assert_type(config.watch.address if config.watch else None, tuple[str, int] | None)
    return config.supply.listen if config.supply else None
