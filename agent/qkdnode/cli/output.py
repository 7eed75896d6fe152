"""Lines on standard output, from an event loop."""

import asyncio
import select
import sys


def is_writable(timeout_s: float = 0.0) -> bool:
    """Whether a line can be written without waiting for a reader."""
    return bool(select.select([], [sys.stdout.fileno()], [], timeout_s)[1])


async def until_writable() -> None:
    """Wait until a line can be written: a reader that stands still keeps neither the loop nor a stop waiting."""
    loop, descriptor = asyncio.get_running_loop(), sys.stdout.fileno()
    while not is_writable():
        writable = asyncio.Event()
        loop.add_writer(descriptor, writable.set)
        try:
            await writable.wait()
        finally:
            loop.remove_writer(descriptor)
