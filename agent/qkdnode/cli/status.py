"""`qkdnode status`: the node at a glance."""

import click
from rich.console import Group, RenderableType
from rich.text import Text

from qkdnode.cli.alarms import alarm_table
from qkdnode.cli.devices import device_table
from qkdnode.cli.links import link_table
from qkdnode.cli.reach import asking
from qkdnode.cli.show import console, print_json, span
from qkdnode.control.client import Client
from qkdnode.wire.control import NodeStatus, Status


def render(status: NodeStatus) -> Group:
    """A status as it is shown."""
    keys = "the vault does not answer"
    if status.keys is not None:
        counts = ", ".join(f"{count} {state}" for state, count in sorted(status.keys.items()) if count) or "none"
        keys = f"{counts}; {status.keys_delivered_both} at both ends"
    head = [
        f"node {status.node}  {status.state} for {span((status.now_ns - status.started_ns) / 1e9)}  "
        f"version {status.version}  memory {status.memory}  "
        f"random numbers {'healthy' if status.entropy_healthy else 'NOT HEALTHY'}",
        f"keys {keys}  audit leaves {'-' if status.leaves is None else status.leaves}",
    ]
    parts: list[RenderableType] = [Text("\n".join(head)), ""]
    parts += [link_table(status.links), "", device_table(status.devices), ""]
    if status.alarms:
        parts.append(alarm_table(status.alarms, title="alarms to be looked at"))
    else:
        parts.append(Text("no alarm is open"))
    return Group(*parts)


@click.command(name="status")
@asking
def command(client: Client, as_json: bool) -> None:
    """Show links, devices, open alarms, keys, and how long authentication key lasts."""
    status: NodeStatus = client.ask(Status())
    if as_json:
        print_json(status)
    else:
        console().print(render(status))
