"""Two lanes per link: a short one for work of milliseconds, a long one for hashing whole Batches."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol


class Job(Protocol):
    """Work without shared state."""

    def run(self) -> Any: ...


class Lanes:
    """Runs jobs in threads and reports each result, or the exception, in the event loop.

    A lane is one thread, so its results come back in the order of its jobs.
    """

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._short = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-short")
        self._long = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-long")
        self.running = 0

    def submit(self, job: Job, long: bool, done: Callable[[Any, Any], None]) -> None:
        """Run `job`; later call done(job, result) in the loop."""
        self.running += 1
        lane = self._long if long else self._short
        lane.submit(self._run, job, done)

    def _run(self, job: Job, done: Callable[[Any, Any], None]) -> None:
        try:
            result: Any = job.run()
        except Exception as error:
            result = error
        self._loop.call_soon_threadsafe(self._done, job, result, done)

    def _done(self, job: Job, result: Any, done: Callable[[Any, Any], None]) -> None:
        self.running -= 1
        done(job, result)

    def close(self) -> None:
        """Finish what runs, drop what waits."""
        self._short.shutdown(wait=True, cancel_futures=True)
        self._long.shutdown(wait=True, cancel_futures=True)
