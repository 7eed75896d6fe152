"""A real agent and `qkdnode events`: what is journalled is shown, over a restart, to who may have it."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from agents import Process, Site

from qkdnode.node.provision import provision_application


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as made:
        config = made.node("alice")
        provision_application("watcher", made.directory)
        config["events"] = {
            "publish": f"ipc://{made.directory}/events",
            "replay": f"ipc://{made.directory}/replay",
        }
        config["subscriber"] = [
            {"name": "watcher", "public": "watcher.public", "topics": ["node", "vault", "link.*"]},
        ]
        yield made


def options(site: Site) -> list[str]:
    directory = site.directory
    return [
        *("--publish", f"ipc://{directory}/events", "--replay", f"ipc://{directory}/replay"),
        *("--identity", f"{directory}/watcher.identity", "--node", f"{directory}/alice.public"),
    ]


def events(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qkdnode", "events", *options(site), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def is_event(kind: str) -> Any:
    return lambda line: line.get("event", {}).get("kind") == kind


def test_events_of_an_agent_are_followed_over_its_restart(site: Site) -> None:
    agent = site.agent("alice")
    agent.wait_for_event("started")
    follow = ["--follow", "--topic", "node", "--topic", "vault", "--after", "-1", "--json"]
    watcher = Process("watcher", ["events", *options(site), *follow], "stdout")
    site.processes.append(watcher)
    watcher.wait_for("start", is_event("node.started"))
    assert agent.stop() == 0
    watcher.wait_for("stop", is_event("node.stopped"))
    seen = len(watcher.lines)
    agent = site.agent("alice")
    watcher.wait_for("second start", is_event("node.started"), after=seen)
    assert watcher.stop() == 0
    kinds = [line["event"]["kind"] for line in watcher.lines]
    assert kinds == [
        *("vault.opened", "node.started", "node.stopped", "vault.closed"),
        *("vault.opened", "node.started"),
    ]
    positions = [line["position"] for line in watcher.lines]
    assert positions == sorted(set(positions))

    shown = events(site, "--topic", "vault", "--after", str(positions[0]))
    assert (shown.returncode, shown.stderr) == (0, "")
    assert [line.split()[3] for line in shown.stdout.splitlines()] == ["vault.closed", "vault.opened"]
    denied = events(site, "--topic", "alarm", "--follow")
    assert denied.returncode == 77
    assert denied.stderr == "qkdnode: node alice: subscriber watcher: nothing allows alarm\n"
    assert agent.stop() == 0
