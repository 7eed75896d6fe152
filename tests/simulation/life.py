"""Processes of the simulation: everything that one starts, however deep, ends with it."""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

from virtual_time import VirtualTimeLoop

from qkdnode.errors import QkdnodeError

LIFE: contextvars.ContextVar["Life | None"] = contextvars.ContextVar("LIFE", default=None)


class Life:
    """One run of one process, from its start to its end."""

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop, on_fault: Callable[[str], None]) -> None:
        self.name, self.loop, self._on_fault = name, loop, on_fault
        self.alive = True
        self.tasks: list[asyncio.Task[Any]] = []
        self.context = contextvars.Context()
        self.context.run(LIFE.set, self)
        self.at_end: list[Callable[[], None]] = []  # what the system takes back

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine that ends with this life."""
        return self.loop.create_task(work, context=self.context)

    def end(self) -> None:
        """Stop between two steps; nothing that this life holds does anything any more."""
        if not self.alive:
            return
        self.alive = False
        for task in self.tasks:
            task.cancel()
        for give_back in self.at_end:
            give_back()

    async def bury(self) -> None:
        """Wait until its tasks have noticed."""
        while waiting := [task for task in self.tasks if not task.done()]:
            for task in waiting:
                task.cancel()
            await asyncio.sleep(0)

    async def while_alive(self) -> None:
        """Returns to the living only."""
        if not self.alive:
            await self.loop.create_future()

    def watch(self, task: asyncio.Task[Any]) -> None:
        if self.alive and not task.cancelled() and task.exception() is not None:
            fault = task.exception()
            if not isinstance(fault, QkdnodeError | BaseExceptionGroup):
                self._on_fault(f"{self.name}: {fault!r} in {task.get_name()}")


def present() -> Life:
    """The process that runs now."""
    life = LIFE.get()
    assert life is not None, "outside of every process"
    return life


class SimulationLoop(VirtualTimeLoop):
    """Virtual time; what would run in a thread runs at once; timers that fire are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.timers = 0
        self.set_task_factory(_owned)

    def call_at(self, when: float, callback: Any, *arguments: Any, context: Any = None) -> asyncio.TimerHandle:
        self.timers += 1
        return super().call_at(when, callback, *arguments, context=context)

    def run_in_executor(self, executor: Any, function: Any, *arguments: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        done: asyncio.Future[Any] = self.create_future()
        try:
            done.set_result(function(*arguments))
        except BaseException as error:
            done.set_exception(error)
        return done


def _owned(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **options)
    life = options["context"].get(LIFE) if "context" in options else LIFE.get()
    if life is not None:
        life.tasks = [known for known in life.tasks if not known.done()] if len(life.tasks) > 200 else life.tasks
        life.tasks.append(task)
        task.add_done_callback(life.watch)
        if not life.alive:
            task.cancel()
    return task
