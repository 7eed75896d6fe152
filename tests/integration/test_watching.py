"""A node that is watched: metrics and health of a running agent, and what it tells its service manager."""

import json
import os
import re
import signal
import socket
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import PATIENCE_S, Process, Site, both_applications, keys, two_nodes, wait_for_keys
from prometheus_client.parser import text_string_to_metric_families


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as made:
        yield made


class Manager:
    """A service manager's socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(PATIENCE_S)

    def wait_for(self, line: str) -> str:
        """The first message that has this line."""
        while line not in (message := self.socket.recv(4096).decode()).split("\n"):
            pass
        return message

    def heard(self, seconds: float) -> list[str]:
        """All messages of some time."""
        until, found = time.monotonic() + seconds, []
        while (left := until - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                found.append(self.socket.recv(4096).decode())
            except TimeoutError:
                break
        self.socket.settimeout(PATIENCE_S)
        return found


@pytest.fixture
def manager(site: Site) -> Iterator[Manager]:
    made = Manager(site.directory / "notify")
    yield made
    made.socket.close()


def watched(site: Site, node: str, **environment: str) -> tuple[Process, str]:
    """An agent that shows itself on a free port, and where."""
    site.configs[node]["watch"] = {"listen": "127.0.0.1:0"}
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        agent = site.agent(node)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    line = agent.wait_for_event("metrics and health are shown")
    return agent, f"http://{line['host']}:{line['port']}"


def get(address: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read().decode()


def test_metrics_of_a_working_node_name_no_application_and_no_key(site: Site) -> None:
    two_nodes(site)
    agents = {node: watched(site, node) for node in ("alice", "bob")}
    app_a, app_b = both_applications(site)
    wait_for_keys(app_a, 20)
    wait_for_keys(app_b, 20)
    time.sleep(1.1)  # figures are at most a second old
    for node, (agent, address) in agents.items():
        status, text = get(f"{address}/metrics")
        assert status == 200
        samples = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        assert samples["qkdnode_link_state", "OPEN", "line"] == 1
        assert 0 < samples["qkdnode_link_qber_ratio", "Z", "line"] < 0.05
        assert samples["qkdnode_link_sifted_bits_total", "line"] > samples["qkdnode_link_secret_bits_total", "line"] > 0
        assert samples["qkdnode_supply_keys_delivered_total",] >= 20
        assert samples["qkdnode_vault_commit_seconds_count",] > 0
        assert samples["qkdnode_vault_up",] == 1
        assert samples["qkdnode_channel_connections_total", "line"] == 1
        assert samples["qkdnode_device_streaming", f"QRNG-{node}"] == 1
        assert samples["qkdnode_device_crc_errors_total", f"QRNG-{node}"] == 0
        assert samples["process_resident_memory_bytes",] > 1e6

        assert "app-a" not in text
        assert "app-b" not in text
        assert not [key for key in keys(app_a) if key in text or key.replace("-", "") in text]
        labels = {label for name in samples for label in name}
        assert not [label for label in labels if re.search(r"[0-9a-f]{8}-?[0-9a-f]{4}|[0-9a-f]{16}", label)]

        assert get(f"{address}/healthz")[0] == 200
        status, text = get(f"{address}/readyz")
        assert (status, json.loads(text)) == (200, {"ready": True, "reasons": [], "links": {"line": "OPEN"}})
        agent.child.send_signal(signal.SIGTERM)
    for agent, _ in agents.values():
        assert agent.wait() == 0


def test_the_service_manager_hears_of_start_life_and_stop_but_not_while_the_vault_is_held_up(
    site: Site, manager: Manager
) -> None:
    site.node("alice")
    agent, address = watched(site, "alice", NOTIFY_SOCKET=str(manager.path), WATCHDOG_USEC="1000000")
    assert "STATUS=no link" in manager.wait_for("READY=1")
    manager.wait_for("WATCHDOG=1")

    other = sqlite3.connect(site.vault("alice"), isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")  # nobody else can commit
        until = time.monotonic() + PATIENCE_S
        while get(f"{address}/healthz")[0] != 503:
            assert time.monotonic() < until, "it does not notice that its vault is held up"
        manager.heard(0.6)  # what was on its way
        assert "WATCHDOG=1" not in manager.heard(1.2)
        status, text = get(f"{address}/healthz")
        assert (status, json.loads(text)["alive"]) == (503, False)
        assert "qkdnode_vault_up 0.0" in get(f"{address}/metrics")[1]
        other.execute("ROLLBACK")
    finally:
        other.close()

    manager.wait_for("WATCHDOG=1")
    assert get(f"{address}/healthz")[0] == 200
    agent.child.terminate()
    manager.wait_for("STOPPING=1")
    assert agent.wait() == 0


def test_an_address_in_use_stops_the_start_with_what_to_do(site: Site) -> None:
    site.node("alice")
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        site.configs["alice"]["watch"] = {"listen": f"127.0.0.1:{port}"}
        agent = site.agent("alice")
        assert agent.wait() == 78
    assert any(f"cannot listen on 127.0.0.1 port {port}" in word for word in agent.words)
