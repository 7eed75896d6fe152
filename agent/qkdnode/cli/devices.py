"""`qkdnode devices`: QKD modules and QRNGs."""

from collections.abc import Iterable

import click
from rich.table import Table

from qkdnode.cli.reach import asking
from qkdnode.cli.show import console, print_json, scaled, table
from qkdnode.control.client import Client
from qkdnode.wire.control import DeviceList, Devices, DeviceStatus

HEADINGS = ("device", "kind", "link", "state", "health", "opened", "read", "stalls", "detail")


def device_table(devices: Iterable[DeviceStatus]) -> Table:
    """One row for each device."""
    return table(
        HEADINGS,
        (
            (
                device.serial,
                device.kind,
                device.link,
                device.state,
                "healthy" if device.healthy else "NOT HEALTHY",
                device.openings,
                scaled(device.bytes_read, "byte"),
                device.stalls,
                device.detail,
            )
            for device in devices
        ),
    )


@click.command(name="devices")
@asking
def command(client: Client, as_json: bool) -> None:
    """Show every QKD module and QRNG: whether it streams, and its health."""
    found: DeviceList = client.ask(Devices())
    if as_json:
        print_json(found)
    else:
        console().print(device_table(found.devices))
