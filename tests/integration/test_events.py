"""Events over real sockets and a real vault: nothing is lost to who may have it, nothing is given to who may not."""

import asyncio
import resource
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio
from publishing import ANYWHERE, PATIENCE_S, TOPICS, Publishing, load_public_key, positions, until

from qkdnode.audit.events import AccessEvent, AlarmEvent, NodeEvent
from qkdnode.channel.identity import load_identity
from qkdnode.channel.publisher import MAX_SUBSCRIPTIONS, Publisher
from qkdnode.channel.socket import Limits
from qkdnode.client import Events, Missed, Occurrence, SignedCheckpoint
from qkdnode.errors import AccessDeniedError, ConfigError, SupplyError, VaultError
from qkdnode.supply.events import WAITING_REQUESTS
from qkdnode.supply.replay import NodeState, Retention
from qkdnode.vault.requests import Checkpoint, EventsAfter, LeavesAfter, Request
from qkdnode.wire.events import MAX_PAGE_BYTES, MAX_PUBLISHED_BYTES, Refused, Replay, Replayed, decode_answer, encode

SMALL = Limits(max_message_bytes=514, high_water=1)
SMALL_RECEIVER = Limits(max_message_bytes=MAX_PUBLISHED_BYTES, high_water=1)
BIG = 40  # details of 256 characters: 11 KB in each event
Test = Callable[[Publishing], Awaitable[None]]


def run(directory: Path, test: Test) -> None:
    async def all_of_it() -> None:
        await test(Publishing(directory))

    asyncio.run(all_of_it())


@asynccontextmanager
async def bare(*sockets: Any) -> AsyncIterator[Any]:
    """Close sockets at the end."""
    try:
        yield sockets
    finally:
        for socket in sockets:
            socket.close(0)


async def started(events: Events) -> None:
    """It has its baseline: what happens from here on it must give."""
    await until(lambda: events._order.up_to_date)


async def access_events(node: Publishing, outcome: str) -> list[AccessEvent]:
    found = await node.ask(EventsAfter(position=0, limit=4096))
    return [event for _, event in found if isinstance(event, AccessEvent) and event.outcome == outcome]


# --- what is lost on the wire ----------------------------------------------------------------------------------------


def test_a_naive_pub_at_default_limits_loses_more_than_a_quarter_of_a_burst_and_says_nothing() -> None:
    """The control: what happens to a subscriber that pauses, without numbers and replay."""
    context = zmq.Context()
    try:
        publisher, subscriber = context.socket(zmq.PUB), context.socket(zmq.SUB)
        port = publisher.bind_to_random_port("tcp://127.0.0.1")
        subscriber.setsockopt(zmq.SUBSCRIBE, b"")
        subscriber.setsockopt(zmq.RCVTIMEO, 5_000)
        subscriber.connect(f"tcp://127.0.0.1:{port}")
        body = bytes(1000)
        while not subscriber.poll(20):  # it is a slow joiner, too
            publisher.send(b"first")
        for _ in range(100_000):
            publisher.send(body)  # no error
        while subscriber.recv() == b"first":
            pass
        received = 1
        while subscriber.poll(500):
            received += subscriber.recv() == body
        assert 0 < received < 75_000
    finally:
        context.destroy(0)


def test_a_subscriber_that_pauses_during_a_burst_loses_nothing(tmp_path: Path) -> None:
    async def test(node: Publishing) -> None:
        async with (
            node.running(limits=SMALL),
            node.subscriber("app-a", ["node"], published_limits=SMALL_RECEIVER) as events,
        ):
            await started(events)
            assert events._receiver is not None
            events._receiver.pump.pause()
            await node.record("node", 1200, padding=BIG)
            await until(lambda: node.server.statistics().published >= 1200)
            events._receiver.pump.resume()
            found = await positions(events, 1200)
            assert found == sorted(found)
            assert len(set(found)) == 1200
            # Or the burst was too small to lose anything: one answer of the replay begins every subscription.
            assert events.statistics().repaired > 2

    run(tmp_path, test)


def test_events_come_as_typed_objects_in_order_and_with_their_numbers(tmp_path: Path) -> None:
    async def test(node: Publishing) -> None:
        async with node.running(), node.subscriber("app-a", ["alarm", "node"]) as events:
            await started(events)
            for topic in ("alarm", "node", "alarm", "keys.a-b", "node"):
                await node.record(topic)
            async with asyncio.timeout(PATIENCE_S):
                items = [await anext(events) for _ in range(4)]
            found = [item for item in items if isinstance(item, Occurrence)]
            assert [type(item.event) for item in found] == [AlarmEvent, NodeEvent, AlarmEvent, NodeEvent]
            assert [item.event.topic_sequence for item in found] == [1, 1, 2, 2]
            assert [item.position for item in found] == sorted(item.position for item in found)

    run(tmp_path, test)


def test_a_subscriber_that_was_away_misses_nothing(tmp_path: Path) -> None:
    async def test(node: Publishing) -> None:
        async with node.running():
            async with node.subscriber("app-a", ["node", "link.*"]) as events:
                await started(events)
                await node.record("node", 3)
                last = (await positions(events, 3))[-1]
            first = await node.record("node")
            await node.record("node", 699)
            await node.record("alarm", 5)
            end = await node.record("link.metro", 700)
            async with node.subscriber("app-a", ["node", "link.*"], after=last) as events:
                found = await positions(events, 1400)
                assert len(set(found)) == 1400
                assert (found[0], found[-1]) == (first, end)
                again = await node.record("node")
                assert await positions(events, 1) == [again]

    run(tmp_path, test)


def test_the_last_event_before_silence_is_not_lost(tmp_path: Path) -> None:
    async def test(node: Publishing) -> None:
        async with node.running(limits=SMALL), node.subscriber("app-a", ["node"]) as events:
            await started(events)
            publisher = node.server._publisher
            assert publisher is not None
            send, publisher.send = publisher.send, lambda *_: None  # type: ignore[method-assign]
            last = await node.record("node", 2)
            await until(lambda: node.server.statistics().published >= 2)
            publisher.send = send  # type: ignore[method-assign]
            assert await positions(events, 2) == [last - 1, last]

    run(tmp_path, test)


def test_a_restart_of_the_node_in_between_loses_and_repeats_nothing(tmp_path: Path) -> None:
    async def test(node: Publishing) -> None:
        async with AsyncExitStack() as stack:
            async with node.running():
                events = await stack.enter_async_context(node.subscriber("app-a", ["node", "vault"]))
                await started(events)
                await node.record("node", 10)
                found = await positions(events, 10)
                stream = events._order._stream
            async with node.running():
                await node.record("node", 10)
                found += await positions(events, 12)  # `vault.closed` and `vault.opened` were not published
                await node.record("node", 10)
                found += await positions(events, 10)
                entries = await node.ask(EventsAfter(position=found[0], limit=4096))
                assert found == [at for at, event in entries if event.topic in ("node", "vault")]
                assert events._order._stream != stream

    run(tmp_path, test)


def test_before_the_retention_the_answer_says_what_is_kept_and_gives_the_snapshot(tmp_path: Path) -> None:
    async def test(node: Publishing) -> None:
        node.state = NodeState(alarms=({"code": "CLICKS"},), links=({"link": "metro", "state": "OPEN"},))
        async with node.running(Retention(events=50, hours=1.0)):
            last = await node.record("node", 200)
            await until(lambda: node.server.statistics().published >= 200)
            async with node.subscriber("app-a", ["node"], after=3) as events:
                async with asyncio.timeout(PATIENCE_S):
                    missed = await anext(events)
                assert isinstance(missed, Missed)
                assert missed.first == 4
                assert last - 60 < missed.oldest <= last - 40
                assert missed.snapshot.alarms == ({"code": "CLICKS"},)
                assert missed.snapshot.links == ({"link": "metro", "state": "OPEN"},)
                kept = await positions(events, last - missed.oldest + 1)
                assert kept == list(range(missed.oldest, last + 1))

    run(tmp_path, test)


def test_the_retention_is_one_of_time_too(tmp_path: Path) -> None:
    async def test(node: Publishing) -> None:
        async with node.running(Retention(events=10_000, hours=2.0)):
            old = await node.record("node", 100, time_ns=10**18)
            await node.record("node", 100)
            await until(lambda: node.server.statistics().published >= 200)
            async with node.subscriber("app-a", ["node"], after=old - 50) as events:
                async with asyncio.timeout(PATIENCE_S):
                    missed = await anext(events)
                assert isinstance(missed, Missed)
                assert (missed.first, missed.oldest) == (old - 49, old + 1)
                assert await positions(events, 100) == list(range(old + 1, old + 101))

    run(tmp_path, test)


def test_a_position_that_the_log_does_not_have_is_an_error_that_says_so(tmp_path: Path) -> None:
    async def test(node: Publishing) -> None:
        async with node.running(), node.subscriber("app-a", ["node"], after=1_000_000) as events:
            async with asyncio.timeout(PATIENCE_S):
                with pytest.raises(SupplyError, match=r"node a: the log has .* the vault is another or older"):
                    await anext(events)

    run(tmp_path, test)


def test_checkpoints_are_published_and_replayed_and_verify(tmp_path: Path) -> None:
    async def test(node: Publishing) -> None:
        async with node.running(), node.subscriber("node-c", ["checkpoint"]) as events:
            await started(events)
            sizes = []
            for _ in range(2):
                last = await node.record("node", 5)
                await node.ask(Checkpoint())
                node.server.grew()
                async with asyncio.timeout(PATIENCE_S):
                    item = await anext(events)
                assert isinstance(item, SignedCheckpoint)
                assert item.checkpoint.size > last
                sizes.append(item.checkpoint.size)
            async with node.subscriber("node-c", ["checkpoint"], after=-1) as late, asyncio.timeout(PATIENCE_S):
                replayed = [await anext(late) for _ in (0, *sizes)]
            assert [item.checkpoint.size for item in replayed if isinstance(item, SignedCheckpoint)] == [1, *sizes]

    run(tmp_path, test)


def test_a_vault_that_cannot_be_read_for_a_while_delays_events_and_loses_none(tmp_path: Path) -> None:
    async def test(node: Publishing) -> None:
        async def fail(request: Request) -> None:
            if isinstance(request, LeavesAfter):
                raise VaultError("the disk does not answer")

        async with node.running(heartbeat_s=0.05), node.subscriber("app-a", ["node"]) as events:
            await started(events)
            node.delay = fail
            last = await node.record("node", 5)
            await until(lambda: node.faults)
            node.delay = None
            assert await positions(events, 5) == list(range(last - 4, last + 1))

    run(tmp_path, test)


# --- who may have what -----------------------------------------------------------------------------------------------


def test_topics_are_decided_by_identity(tmp_path: Path) -> None:
    async def test(node: Publishing) -> None:
        context = zmq.asyncio.Context()
        async with node.running(), node.subscriber("app-a", ["*"]) as events:
            await started(events)
            async with bare(node.socket(context, zmq.SUB, "app-b")) as (spy,):
                for prefix in (
                    b"",
                    b"+",
                    b"+al",
                    b"+alarm",
                    b"+alarm\0",
                    b"+keys.",
                    b"=app-a\0",
                    b"+link.",
                    b"+keys.a-b\0",
                ):
                    spy.setsockopt(zmq.SUBSCRIBE, prefix)
                await until(lambda: node.server.statistics().granted >= 3)  # `*` of app-a, and its own two
                await until(lambda: node.server.statistics().refused >= 6)
                for topic in ("alarm", "keys.a-b", "keys.a-c", "link", "link.a-b", "node"):
                    await node.record(topic, 3)
                async with asyncio.timeout(PATIENCE_S):
                    firsts = [(await spy.recv_multipart())[0] for _ in range(2)]
                assert firsts == [b"+keys.a-b\0", b"+link.a-b\0"]
                assert not await spy.poll(400)  # longer than two heartbeats
            refused = await access_events(node, "refused")
            rules = {str(event.details["rule"]) for event in refused}
            assert "subscriber app-b: nothing allows alarm" in rules
            assert "subscriber app-b: nothing allows *" in rules
        context.destroy(0)

    run(tmp_path, test)


def test_the_client_is_told_the_rule_that_refuses_a_topic(tmp_path: Path) -> None:
    async def test(node: Publishing) -> None:
        for after in (None, 0):
            async with node.running(), node.subscriber("app-b", ["keys.a-b", "alarm"], after=after) as events:
                async with asyncio.timeout(PATIENCE_S):
                    with pytest.raises(AccessDeniedError, match="node a: subscriber app-b: nothing allows alarm"):
                        await anext(events)

    run(tmp_path, test)


def test_an_identity_that_is_no_subscriber_gets_nothing(tmp_path: Path) -> None:
    async def test(node: Publishing) -> None:
        async with node.running():
            publish, replay = node.endpoints
            identity = tmp_path / "a.identity"  # genuine, but on no list
            async with Events(identity, tmp_path / "a.public", publish=publish, replay=replay, topics=["*"]) as events:
                async with asyncio.timeout(PATIENCE_S):
                    with pytest.raises(AccessDeniedError, match="make it a `subscriber`"):
                        await anext(events)
            assert await access_events(node, "refused")

    run(tmp_path, test)


def test_a_snapshot_shows_each_what_it_may_know(tmp_path: Path) -> None:
    async def test(node: Publishing) -> None:
        node.state = NodeState(
            alarms=({"code": "CLICKS"},), links=({"link": "metro", "state": "OPEN"},), devices=({"serial": "Q"},)
        )
        async with (
            node.running(),
            node.subscriber("app-b", ["keys.a-b"]) as some,
            node.subscriber("app-a", ["*"]) as everything,
        ):
            await started(some)
            await started(everything)
            assert some.snapshot is not None
            assert (some.snapshot.alarms, some.snapshot.devices) == ((), ())
            assert some.snapshot.links == ({"link": "metro", "state": "OPEN"},)  # by `link.*`
            assert everything.snapshot is not None
            assert everything.snapshot.alarms == ({"code": "CLICKS"},)
            assert "vault" in dict(everything.snapshot.sequences)
            assert "vault" not in dict(some.snapshot.sequences)

    run(tmp_path, test)


def test_another_ones_routing_id_gets_nothing_of_what_the_other_asked_for(tmp_path: Path) -> None:
    async def test(node: Publishing) -> None:
        context = zmq.asyncio.Context()
        ready = asyncio.Event()

        async def hold(request: Request) -> None:
            if isinstance(request, LeavesAfter) and request.position == 2:
                await ready.wait()

        async with node.running():
            await node.record("alarm", 10)
            await until(lambda: node.server.statistics().published >= 10)
            victim = node.socket(context, zmq.DEALER, "app-a", routing_id=b"victim")
            # The victim is known to be there before the thief comes.
            await victim.send(encode(Replay(9, 3, 0, ("alarm",))))
            await victim.recv()
            thief = node.socket(context, zmq.DEALER, "app-b", routing_id=b"victim")
            async with bare(victim, thief):
                node.delay = hold
                # Both are there: the one that came second is not heard.
                await victim.send(encode(Replay(1, 2, 0, ("alarm",))))
                await asyncio.sleep(0.3)
                await thief.send(encode(Replay(2, 3, 0, ("alarm",))))
                assert not await thief.poll(200)
                # The first leaves while its answer is being made, and a new connection takes over its id.
                victim.close(0)
                async with bare(node.socket(context, zmq.DEALER, "app-b", routing_id=b"victim")) as (heir,):
                    for socket in (heir, thief):
                        for _ in range(3):
                            await socket.send(encode(Replay(3, 3, 0, ("alarm",))))
                            await asyncio.sleep(0.05)
                    ready.set()
                    answers = []
                    for socket in (heir, thief):
                        while await socket.poll(300):
                            answers.append(decode_answer(await socket.recv()))
                for _ in range(20):  # on a busy machine the node sees late that the id is free
                    if answers:
                        break
                    async with bare(node.socket(context, zmq.DEALER, "app-b", routing_id=b"victim")) as (late,):
                        await late.send(encode(Replay(4, 3, 0, ("alarm",))))
                        if await late.poll(500):
                            answers.append(decode_answer(await late.recv()))
            assert all(isinstance(answer, Refused) and answer.code == "denied" for answer in answers), answers
            assert answers  # the heir is heard under its own name
        context.destroy(0)

    run(tmp_path, test)


# --- bad input -------------------------------------------------------------------------------------------------------


def test_malformed_requests_are_answered_counted_and_journalled_and_hurt_nobody(tmp_path: Path) -> None:
    async def test(node: Publishing) -> None:
        context = zmq.asyncio.Context()
        good = encode(Replay(7, 0, 0, ("node",)))
        bad = [
            b"x",
            b"\xc1" * 50,
            good[:-1],
            good + b"\0",
            msgspec.msgpack.encode([17, 7, -1, 0, ["node"]]),
            msgspec.msgpack.encode([17, 7, 0, 0, []]),
            msgspec.msgpack.encode([17, 7, 0, 0, ["n" * 200]]),
            msgspec.msgpack.encode([17, 7, 0, 0, ["node"] * 65]),
            msgspec.msgpack.encode([17, 7, 0, 0, ["al*"]]),
            msgspec.msgpack.encode([99, 7]),
        ]
        async with node.running(), bare(node.socket(context, zmq.DEALER, "app-a")) as (asker,):
            await node.record("node", 5)
            await until(lambda: node.server.statistics().published >= 5)
            for frame in bad:
                await asker.send(frame)
                answer = decode_answer(await asyncio.wait_for(asker.recv(), PATIENCE_S))
                assert isinstance(answer, Refused)
                assert answer.code == "malformed"
                assert answer.reason
            assert node.server.statistics().malformed == len(bad)
            await asker.send(good)
            answer = decode_answer(await asyncio.wait_for(asker.recv(), PATIENCE_S))
            assert isinstance(answer, Replayed)
            assert answer.complete
            assert sum(len(page.leaves) for page in answer.pages) == 5
            assert await access_events(node, "malformed")
            for _ in range(200):  # then it is not heard any more
                await asker.send(b"x")
            await until(lambda: node.server.statistics().malformed == len(bad) + 200)
            answers = 0
            while await asker.poll(200):
                await asker.recv()
                answers += 1
            assert answers < 64
        context.destroy(0)

    run(tmp_path, test)


def test_requests_in_a_flood_are_refused_beyond_a_few(tmp_path: Path) -> None:
    async def test(node: Publishing) -> None:
        context = zmq.asyncio.Context()
        over = asyncio.Event()

        async def hold(request: Request) -> None:
            if isinstance(request, LeavesAfter) and request.position == 0:
                await over.wait()  # no answer is made while the flood comes

        def taken() -> int:
            return 300 - node.server.statistics().refused_replays

        async with node.running(), bare(node.socket(context, zmq.DEALER, "app-a")) as (asker,):
            node.delay = hold
            for number in range(300):
                await asker.send(encode(Replay(number, 0, 0, ("node",))))
            await until(lambda: taken() <= WAITING_REQUESTS + 1)  # one more is being answered
            over.set()
            await until(lambda: node.server.statistics().replays == taken())
            await asker.send(encode(Replay(1000, 0, 0, ("node",))))
            answers: list[Any] = []
            while not answers or answers[-1].request != 1000:
                answers.append(decode_answer(await asyncio.wait_for(asker.recv(), PATIENCE_S)))
            *flood, last = answers
            assert isinstance(last, Replayed)
            assert {answer.code for answer in flood if isinstance(answer, Refused)} == {"busy"}
            assert 4 <= sum(isinstance(answer, Replayed) for answer in flood) == taken() <= WAITING_REQUESTS + 1
        context.destroy(0)

    run(tmp_path, test)


def test_a_connection_that_subscribes_without_end_is_cut_off_and_others_go_on(tmp_path: Path) -> None:
    async def test(node: Publishing) -> None:
        context = zmq.asyncio.Context()
        async with node.running(), node.subscriber("app-a", ["node"]) as events:
            await started(events)
            async with bare(node.socket(context, zmq.SUB, "app-b")) as (greedy,):
                for number in range(MAX_SUBSCRIPTIONS + 20):
                    greedy.setsockopt(zmq.SUBSCRIBE, b"+link.%d\0" % number)
                await until(lambda: node.server.statistics().cut)
                publisher = node.server._publisher
                assert publisher is not None
                await until(lambda: publisher.connections == 1)
                await node.record("node", 3)
                await positions(events, 3)
                await until(lambda: node.server.statistics().refused_connections)  # it came back too soon
            assert await access_events(node, "cut_off")
        context.destroy(0)

    run(tmp_path, test)


def test_a_subscriber_that_never_reads_costs_its_queue_and_holds_up_nobody(tmp_path: Path) -> None:
    async def test(node: Publishing) -> None:
        context = zmq.asyncio.Context()
        keys = {load_identity(tmp_path / f"{name}.identity").public.curve: name for name in TOPICS}
        publisher = Publisher(
            ANYWHERE,
            node.identity.curve,
            Limits(max_message_bytes=514, high_water=128),
            domain="qkdnode.events",
            admit=keys.get,
            wanted=lambda name, prefix: True,
            refused=lambda reason: None,
            cut=lambda name: None,
        )
        node.endpoints = (publisher.endpoint, "")
        body = bytes(MAX_PAGE_BYTES)
        deaf, reader = node.socket(context, zmq.SUB, "app-b"), node.socket(context, zmq.SUB, "app-a")
        async with bare(deaf, reader):
            deaf.setsockopt(zmq.RCVHWM, 1)
            for socket in (deaf, reader):
                socket.setsockopt(zmq.SUBSCRIBE, b"+")
            await until(lambda: publisher.connections == 2)
            before = resident_bytes()
            received = 0
            for number in range(1600):
                publisher.send(b"+node\0", body)
                if number % 32 == 31:
                    async with asyncio.timeout(PATIENCE_S):
                        for _ in range(32):
                            await reader.recv_multipart(copy=False)
                            received += 1
            assert received == 1600
            assert resident_bytes() - before < 48 * 1024 * 1024  # of 100 MiB that the deaf one did not read
        await publisher.close()
        context.destroy(0)

    run(tmp_path, test)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.parametrize(
    ("topics", "after", "words"),
    [
        ([], None, "0 topics"),
        (["Alarm"], None, "'Alarm' is no topic"),
        (["al*"], None, "'al\\*' is no topic"),
        (["node"] * 3 + [f"t{i}" for i in range(64)], None, "65 topics"),
        (["node"], -2, "`after` is -2"),
    ],
)
def test_what_the_client_cannot_ask_for_is_an_error_that_names_it(
    tmp_path: Path, topics: list[str], after: int | None, words: str
) -> None:
    node = Publishing(tmp_path)
    assert len(load_public_key(node.identity)) == 1344
    with pytest.raises(ConfigError, match=words):
        node.subscriber("app-a", topics, after=after)
