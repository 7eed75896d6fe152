"""Keys for an application, and events: what a subscribing peer imports.

    from qkdnode.client import subscribe

    with subscribe(
        "tcp://node-a:5570",
        identity="app-1.identity",     # made by `qkdnode provision`, known to the node by its app-1.public
        node="node-a.public",          # the node that must answer
        remote="app-2",                # who holds the same keys
        link="a-b",                    # the QKD link they come from
        timeout=30.0,
    ) as keys:
        for key in keys:
            with key:                  # wipes key.material at the end
                use(key.id, memoryview(key.material))

Asking for the next key acknowledges the last one: the node then destroys its copy and never sends it again. A key that
was not acknowledged when the application ends is sent to its next subscription. The connection is made anew by itself,
and no key comes twice. `AsyncSubscription` is the same for asyncio.

What happens at the node comes as typed events, in the order of its audit log and each once, to a configured subscriber:

    async with Events(
        "app-1.identity",
        "node-a.public",
        publish="tcp://node-a:5580",
        replay="tcp://node-a:5581",
        topics=["alarm", "keys.a-b"],
        after=known,                   # position of the last event known; None: from now on
    ) as events:
        async for item in events:
            if isinstance(item, Occurrence):
                use(item.position, item.event)
"""

from qkdnode.client.events import Events, EventsStatistics
from qkdnode.client.order import Missed, Occurrence, SignedCheckpoint
from qkdnode.client.subscriber import GenerationChange
from qkdnode.client.subscription import (
    AsyncSubscription,
    EndedKeys,
    Key,
    KeyRefusedError,
    NoKeyError,
    Subscription,
    SubscriptionStatistics,
    subscribe,
)

__all__ = [
    "AsyncSubscription",
    "EndedKeys",
    "Events",
    "EventsStatistics",
    "GenerationChange",
    "Key",
    "KeyRefusedError",
    "Missed",
    "NoKeyError",
    "Occurrence",
    "SignedCheckpoint",
    "Subscription",
    "SubscriptionStatistics",
    "subscribe",
]
