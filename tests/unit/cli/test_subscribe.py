"""`qkdnode subscribe` prints all that the node will not tell again."""

import asyncio
import json
from typing import Any, Self
from uuid import uuid4

import pytest

from qkdnode.cli import subscribe
from qkdnode.client import EndedKeys
from qkdnode.ids import Association


class EndsAtOnce:
    """A subscription that is told of keys out of use, and is over."""

    def __init__(self, ended: "asyncio.Queue[EndedKeys]", told: list[EndedKeys]) -> None:
        self._ended, self._told = ended, told

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        for its in self._told:
            self._ended.put_nowait(its)
        raise StopAsyncIteration


def test_notices_that_came_last_are_printed_before_it_ends_though_the_reader_is_slow(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscribe, "until_writable", lambda: asyncio.sleep(0.01))
    told = [EndedKeys(Association("a", "b", "line"), (uuid4(), uuid4()), "compromised", "key-compromise")] * 3

    async def run() -> int:
        ended: asyncio.Queue[EndedKeys] = asyncio.Queue()
        return await subscribe._fetch(EndsAtOnce(ended, told), 0, None, ended)  # type: ignore[arg-type]

    assert asyncio.run(run()) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [line["ended"] for line in lines] == [list(map(str, its.key_ids)) for its in told]
