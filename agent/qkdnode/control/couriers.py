"""Files of couriers as operators ask for them."""

from collections.abc import Awaitable, Callable
from typing import Any

from qkdnode.access.approvals import Person
from qkdnode.control.rotations import entry_of
from qkdnode.ids import Association
from qkdnode.vault import couriers
from qkdnode.wire import control as wire

Ask = Callable[[Any], Awaitable[Any]]


async def carry_out(ask: Ask, request: wire.CarryOut, by: str) -> wire.CourierFile:
    """Have a file written."""
    made: couriers.Exported = await ask(
        couriers.ExportBundle(
            association=Association(request.local, request.remote, request.link),
            by=by,
            keys=request.keys,
            size_bits=request.size_bits,
            begin=request.begin,
            again=request.again,
        )
    )
    return wire.CourierFile(
        file=made.file, number=made.number, messages=made.messages, cut=made.cut, rotation=entry_of(made.state)
    )


async def carry_in(ask: Ask, request: wire.CarryIn, people: tuple[Person, ...], by: str) -> wire.CarriedIn:
    """Have a file imported."""
    done: couriers.Imported = await ask(
        couriers.ImportBundle(file=request.file, approvals=request.approvals, people=people, by=by)
    )
    return wire.CarriedIn(
        number=done.number,
        again=done.again,
        messages=done.messages,
        left=done.left,
        waits=done.waits,
        rotation=entry_of(done.state),
    )
