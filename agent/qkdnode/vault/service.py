"""The vault as others see it: one thread that executes requests in order and commits them in groups."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

import msgspec

from qkdnode.audit.checkpoint import Signer
from qkdnode.audit.events import AnyEvent
from qkdnode.errors import VaultError
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault.core import Outcome, TrustedFrom, VaultCore
from qkdnode.vault.disk import DISK, Disk
from qkdnode.vault.requests import EventsAfter, ProvisionLink, Request, StorePending, StoreReady
from qkdnode.vault.root import RootSource

GROUP_NS = 5_000_000
GROUP_REQUESTS = 128

# Requests whose buffer the vault takes over.
_MATERIAL: dict[type[Request], str] = {ProvisionLink: "material", StorePending: "key", StoreReady: "key"}


class Asked(msgspec.Struct, frozen=True):
    """A request and where its answer goes."""

    request: Request
    answer: Future[Any]


class Vault:
    """One open vault file. `ask` from any thread; requests are executed one by one, in the order asked.

    A group of requests is committed when no more wait, after 5 ms or after 128; answers come after the sync.
    """

    def __init__(self, core: VaultCore) -> None:
        self._core = core
        self._queue: SimpleQueue[Asked | None] = SimpleQueue()
        self._gate = threading.Lock()
        self._closed = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="vault", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        root: RootSource,
        node: str,
        draw_into: Callable[[SecretBuffer], None],
        signer: Signer,
        clock_ns: Callable[[], int],
        create: bool = False,
        disk: Disk = DISK,
        trusted_from: TrustedFrom | None = None,
    ) -> "Vault":
        """Open a vault, or make one, as VaultCore.open does."""
        return cls(
            VaultCore.open(
                path,
                root=root,
                node=node,
                draw_into=draw_into,
                signer=signer,
                clock_ns=clock_ns,
                create=create,
                disk=disk,
                trusted_from=trusted_from,
            )
        )

    def ask(self, request: Request) -> "Future[Any]":
        """Queue a request; the future has its answer once it is durable."""
        answer: Future[Any] = Future()
        with self._gate:
            if self._closed:
                raise VaultError("the vault is closed")
            self._queue.put(Asked(request, answer))
        return answer

    def call(self, request: Request) -> Any:
        """Ask and wait."""
        return self.ask(request).result()

    def events_after(self, position: int, limit: int = 256) -> tuple[tuple[int, AnyEvent], ...]:
        """Events of the audit log from a position on, each with its position."""
        events: tuple[tuple[int, AnyEvent], ...] = self.call(EventsAfter(position, limit))
        return events

    def close(self) -> None:
        """Answer what was asked, sign a last checkpoint, empty the write-ahead log, wipe the keys. Idempotent."""
        with self._gate:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        try:
            while (first := self._queue.get()) is not None:
                if not self._group(first):
                    break
            self._core.finish()
        except BaseException as error:
            self._failure = error
        finally:
            self._core.close()
            self._refuse_the_rest()

    def _refuse_the_rest(self) -> None:
        with self._gate:
            self._closed = True
        while not self._queue.empty():
            asked = self._queue.get_nowait()
            if asked is not None and asked.answer.set_running_or_notify_cancel():
                asked.answer.set_exception(VaultError(f"vault {self._core.path} has stopped: {self._failure}"))

    def _group(self, first: Asked) -> bool:
        """Execute and commit one group; False once the vault is to close."""
        taken: list[Asked] = []
        closing = False

        def waiting() -> Iterator[Request]:
            nonlocal closing
            asked: Asked | None = first
            until = time.monotonic_ns() + GROUP_NS
            while asked is not None:
                if asked.answer.set_running_or_notify_cancel():
                    taken.append(asked)
                    yield asked.request
                if len(taken) == GROUP_REQUESTS or time.monotonic_ns() > until:
                    return
                try:
                    asked = self._queue.get_nowait()
                except Empty:
                    return
            closing = True

        outcomes = self._core.group(waiting())
        for asked, outcome in zip(taken, outcomes, strict=True):
            _deliver(asked, outcome)
        return not closing


def takes_over(request: Request) -> bool:
    """Whether the vault takes over key material with a request, once it is done."""
    return type(request) in _MATERIAL


def secrets_in(answer: Any) -> Iterator[SecretBuffer]:
    """The key material in an answer."""
    if isinstance(answer, SecretBuffer):
        yield answer
    elif isinstance(answer, msgspec.Struct):
        for value in msgspec.structs.astuple(answer):
            yield from secrets_in(value)
    elif isinstance(answer, tuple | list):
        for value in answer:
            yield from secrets_in(value)


def _deliver(asked: Asked, outcome: Outcome) -> None:
    if outcome.error is not None:
        asked.answer.set_exception(outcome.error)
        return
    taken_over = _MATERIAL.get(type(asked.request))
    if taken_over is not None:
        getattr(asked.request, taken_over).release()
    asked.answer.set_result(outcome.value)
