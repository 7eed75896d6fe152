"""Strangers who knock fill no disk with what the log says of them."""

import asyncio
from io import StringIO
from pathlib import Path

from qkdnode.config import decode_config
from qkdnode.node.agent import Agent
from qkdnode.node.world import World
from qkdnode.watch import log

NODE = '[node]\nname = "a"\nidentity = "i"\nvault = "v"\nroot_key = {credential = "c"}\n'


def test_a_thousand_refused_handshakes_are_a_few_lines_of_log() -> None:
    lines = StringIO()
    logger = log.configure(lines)
    agent = Agent(decode_config(NODE), Path(), logger, statistics_s=60.0, drain_s=1.0, world=World())

    async def knock() -> None:
        for number in range(1000):
            agent._refused("a-b", f"the CURVE key {number} is not allowed")

    asyncio.run(knock())
    assert 0 < lines.getvalue().count("handshake refused") <= 20
