"""`qkdnode events`: what happens at a node, for a configured subscriber."""

import asyncio
import datetime
import json
import signal
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from qkdnode.cli.output import until_writable
from qkdnode.client import Events, Missed, Occurrence, SignedCheckpoint
from qkdnode.client.order import Item


@click.command(name="events")
@click.option("--publish", required=True, help="Where the node publishes, such as tcp://127.0.0.1:5611.")
@click.option("--replay", required=True, help="Where the node replays, such as tcp://127.0.0.1:5612.")
@click.option("--identity", required=True, type=click.Path(path_type=Path), help="The subscriber's NAME.identity.")
@click.option("--node", required=True, type=click.Path(path_type=Path), help="The node's NAME.public.")
@click.option("--topic", "topics", multiple=True, help="A topic, a family such as 'link.*', or '*' (default: alarm).")
@click.option(
    "--after", type=int, default=None, help="Position of the last event known, -1 for all (default: from now on)."
)
@click.option("--follow", is_flag=True, help="Go on; without it, stop once what was there at the start is shown.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def command(
    publish: str,
    replay: str,
    identity: Path,
    node: Path,
    topics: tuple[str, ...],
    after: int | None,
    follow: bool,
    as_json: bool,
) -> None:
    """Show the events of a node in the order of its audit log.

    What the network loses is fetched again by itself. The position at the start of a line is what to give as --after.
    """
    if not follow and after is None:
        raise click.UsageError("give --follow, or --after POSITION to see what happened since")
    asyncio.run(
        _show(
            Events(identity, node, publish=publish, replay=replay, topics=topics or ("alarm",), after=after),
            follow,
            as_json,
        )
    )


async def _show(events: Events, follow: bool, as_json: bool) -> None:
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        async with events:
            while (item := await (anext(events) if follow else events.next_known())) is not None:
                await until_writable()
                sys.stdout.write((_as_json(item) if as_json else _as_text(item)) + "\n")
                sys.stdout.flush()
    except asyncio.CancelledError:
        pass  # the person has seen enough
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _as_json(item: Item) -> str:
    line: dict[str, Any]
    match item:
        case Occurrence(position, event):
            line = {"position": position, "event": msgspec.to_builtins(event)}
        case SignedCheckpoint(number, checkpoint, note):
            line = {"checkpoint": number, "size": checkpoint.size, "note": note}
        case Missed(first, oldest, oldest_time_ns, snapshot):
            line = {
                "missed": {"first": first, "oldest": oldest, "oldest_time_ns": oldest_time_ns},
                "alarms": snapshot.alarms,
                "links": snapshot.links,
                "devices": snapshot.devices,
            }
    return json.dumps(line)


def _as_text(item: Item) -> str:
    match item:
        case Occurrence(position, event):
            details = " ".join(f"{name}={value}" for name, value in event.details.items())
            time = click.style(_clock(event.time_ns), dim=True)
            return f"{position} {time} {event.topic} {event.kind} {event.subject} {event.outcome} {details}".rstrip()
        case SignedCheckpoint(_, checkpoint, _):
            return f"{checkpoint.size - 1} checkpoint of {checkpoint.size} entries, signed by {checkpoint.origin}"
        case Missed(first, oldest, oldest_time_ns, _):
            return (
                f"positions {first} to {oldest - 1} are not replayed any more; {oldest} is of {_clock(oldest_time_ns)}"
            )


def _clock(time_ns: int) -> str:
    return datetime.datetime.fromtimestamp(time_ns / 1e9, datetime.UTC).isoformat(timespec="milliseconds")
