"""Whole agents, each a process on emulated devices: what they deliver, what they survive, and what they refuse."""

import json
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from agents import KEYS, PATIENCE_S, Process, Site, both_applications, keys, two_nodes, wait_for_keys

from qkdnode.client import Subscription, subscribe
from qkdnode.errors import AccessDeniedError
from qkdnode.node.provision import provision_node

DELIVERED = f"SELECT id FROM {KEYS} WHERE state = 'delivered' ORDER BY id"
UNDELIVERED = f"SELECT id FROM {KEYS} WHERE state IN ('allocated', 'ready')"
READY_BATCHES = "SELECT hex(batch) FROM batches WHERE state = 'ready' ORDER BY batch"
PENDING_BATCHES = "SELECT hex(batch) FROM batches WHERE state = 'pending'"

DEMONSTRATION = {
    "seconds": float,
    "first_key_seconds": float,
    "sifted_bits": int,
    "sifted_mbps": float,
    "secret_bits": int,
    "keys_alice": int,
    "keys_bob": int,
    "keys_delivered": int,
    "keys_matched": int,
    "keys_mismatched": int,
    "qber": float,
    "efficiency": float,
    "auth_spent_bits": int,
    "auth_refilled_bits": int,
    "alarms": list,
    "audit_verified": bool,
    "rss_mib": dict,
}
ALARMS = {
    "QBER_HIGH",
    "NO_ENTROPY",
    "AUTH_STARVED",
    "AUTH_FAILED",
    "DEVICE_LOST",
    "DEVICE_GAP",
    "AUDIT_STOPPED",
    "DISK_FULL",
}


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as made:
        yield made


def qkdnode(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "qkdnode", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def start(site: Site) -> tuple[Process, Process]:
    """Both agents, with a session between them."""
    alice, bob = site.agent("alice"), site.agent("bob")
    alice.wait_for_event("session open")
    bob.wait_for_event("session open")
    return alice, bob


def stop(*processes: Process) -> None:
    """Ask all to end at the same time; all do, in order."""
    for process in processes:
        process.child.terminate()
    for process in processes:
        assert process.wait() == 0, process.shown()


def demand_equal_ends(site: Site, app_a: Process, app_b: Process) -> None:
    """Nothing is left undone, and both ends have the same."""
    assert keys(app_a)
    assert keys(app_a) == keys(app_b)
    for node in ("alice", "bob"):
        assert site.rows(node, UNDELIVERED) == []
        assert site.rows(node, PENDING_BATCHES) == []
        assert site.rows(node, "SELECT count(*) FROM outbox") == [0]
        assert site.audit_is_valid(node)
    assert site.rows("alice", DELIVERED) == site.rows("bob", DELIVERED)
    assert {key.replace("-", "").upper() for key in keys(app_a)} == set(site.rows("alice", DELIVERED))
    assert site.rows("alice", READY_BATCHES) == site.rows("bob", READY_BATCHES)


def test_killed_agents_lose_no_key_and_give_none_twice(site: Site) -> None:
    two_nodes(site)
    app_a, app_b = both_applications(site)
    alice, bob = start(site)

    site.wait_for_row("alice", "pending Batch", PENDING_BATCHES)
    alice.kill()
    bob.kill()

    alice, bob = start(site)
    wait_for_keys(app_b, 1)
    bob.kill()
    alice.kill()

    alice, bob = start(site)
    bob.wait_for_event("batch ready")
    alice.kill()
    seen = len(bob.lines)
    alice = site.agent("alice")
    bob.wait_for_event("session open", after=seen)

    wait_for_keys(app_a, 200)
    bob.kill()
    seen = len(alice.lines)
    bob = site.agent("bob")
    alice.wait_for_event("session open", after=seen)

    wait_for_keys(app_a, 200)
    wait_for_keys(app_b, 200)
    stop(alice, bob)
    stop(app_a, app_b)
    demand_equal_ends(site, app_a, app_b)


def test_a_stop_leaves_nothing_undelivered_and_the_log_can_be_exported_before_and_after(site: Site) -> None:
    two_nodes(site)
    app_a, app_b = both_applications(site)
    alice, bob = start(site)
    wait_for_keys(app_a, 100)

    site.wait_for_row("alice", "checkpoint", "SELECT size FROM checkpoints")
    export, public = site.directory / "alice.export", site.directory / "alice.public"
    assert qkdnode("audit", "export", export, "--config", site.directory / "alice.toml").returncode == 0
    assert qkdnode("audit", "verify", export, "--key", public).returncode == 0
    lines = export.read_text(encoding="utf-8").splitlines(keepends=True)
    changed = site.directory / "changed.export"
    changed.write_text("".join([*lines[:3], *lines[4:]]), encoding="utf-8")
    verdict = qkdnode("audit", "verify", changed, "--key", public)
    assert verdict.returncode == 1
    assert "entry" in verdict.stdout
    assert qkdnode("audit", "verify", export, "--key", site.directory / "bob.public").returncode == 1
    changed.write_text("no export\n", encoding="utf-8")
    assert qkdnode("audit", "verify", changed, "--key", public).returncode == 2

    stop(alice, bob)
    stop(app_a, app_b)
    for agent in (alice, bob):
        final = agent.events("stopped")[-1]
        assert final["keys_present"] == len(keys(app_a))
        assert final["alarms"] == []
        assert not [line for line in agent.lines if "not everything was delivered" in line["event"]]
    demand_equal_ends(site, app_a, app_b)


def test_a_stop_does_not_wait_for_an_application_that_has_left(site: Site) -> None:
    two_nodes(site)
    site.pair_of_applications("line", {"alice": "gone-a", "bob": "gone-b"})
    app_a, app_b = both_applications(site)
    agents = start(site)
    with (
        subscription(site, "alice", "gone-a", "gone-b", "line") as gone_a,
        subscription(site, "bob", "gone-b", "gone-a", "line") as gone_b,
    ):
        gone_a.next()
        gone_b.next()
    wait_for_keys(app_a, 1)
    stop(*agents)
    stop(app_a, app_b)
    for agent in agents:
        assert site.rows(agent.name, f"SELECT DISTINCT application FROM {KEYS} WHERE state = 'ready'")
        assert not [line for line in agent.lines if "not everything was delivered" in line["event"]], agent.shown()
    assert keys(app_a) == keys(app_b)


def test_the_log_of_an_agent_that_has_just_started_verifies(site: Site) -> None:
    site.node("solo")
    agent = site.agent("solo")
    agent.wait_for_event("started")
    export = site.directory / "solo.export"
    assert qkdnode("audit", "export", export, "--config", site.directory / "solo.toml").returncode == 0
    verdict = qkdnode("audit", "verify", export, "--key", site.directory / "solo.public")
    assert verdict.returncode == 0, verdict.stdout


def test_a_node_with_two_links_makes_keys_on_both(site: Site) -> None:
    for name in ("left", "middle", "right"):
        site.node(name)
    site.link("west", "left", "middle", slot_rate_hz=5_000_000)
    site.link("east", "middle", "right", slot_rate_hz=5_000_000)
    site.pair_of_applications("west", {"left": "app-l", "middle": "app-w"})
    site.pair_of_applications("east", {"middle": "app-e", "right": "app-r"})
    agents = [site.agent(name) for name in site.configs]
    west = (
        site.application("left", "app-l", "app-w", "west"),
        site.application("middle", "app-w", "app-l", "west"),
    )
    east = (
        site.application("middle", "app-e", "app-r", "east"),
        site.application("right", "app-r", "app-e", "east"),
    )
    for link in ("west", "east"):
        agents[1].wait_for_event("session open", link=link)
    with (
        subscription(site, "middle", "app-e", "app-l", "west") as stranger,
        pytest.raises(AccessDeniedError, match="no association"),
    ):
        stranger.next()
    for application in (*west, *east):
        wait_for_keys(application, 20)
    stop(*agents)
    stop(*west, *east)
    for pair in (west, east):
        assert keys(pair[0]) == keys(pair[1])
    assert not keys(west[0]).keys() & keys(east[0]).keys()
    assert all(site.audit_is_valid(node) for node in site.configs)


def subscription(site: Site, node: str, local: str, remote: str, link: str) -> Subscription:
    """What an application has that imports the client."""
    return subscribe(
        site.supply(node),
        identity=site.directory / f"{local}.identity",
        node=site.directory / f"{node}.public",
        remote=remote,
        link=link,
        timeout=PATIENCE_S,
    )


def test_with_an_eavesdropper_on_every_slot_there_is_an_alarm_and_no_key(site: Site) -> None:
    two_nodes(site, eavesdrop=1.0)
    app_a, app_b = both_applications(site)
    alice, bob = start(site)
    bob.wait_for_event("alarm", code="QBER_HIGH", subject="line")
    stop(alice, bob)
    stop(app_a, app_b)
    for agent in (alice, bob):
        final = agent.events("stopped")[-1]
        assert final["keys_present"] == 0
        assert final["links"]["line"]["secret_bits"] == 0
    assert keys(app_a) == keys(app_b) == {}


def test_ends_that_are_configured_differently_name_the_difference_and_make_no_key(site: Site) -> None:
    two_nodes(site)
    site.configs["bob"]["link"][0]["distill"]["eps_sec"] = 1e-8
    alice, bob = site.agent("alice"), site.agent("bob")
    for agent in (alice, bob):
        assert "eps_sec" in agent.wait_for_event("alarm", code="CONFIG", subject="line")["detail"]
    stop(alice, bob)
    for agent in (alice, bob):
        assert agent.events("session open") == []
        assert agent.events("stopped")[-1]["links"]["line"]["secret_bits"] == 0


def test_a_peer_with_another_identity_is_not_talked_to(site: Site) -> None:
    two_nodes(site)
    impostor = site.directory / "impostor"
    provision_node("bob", impostor)
    (impostor / "bob.identity").replace(site.directory / "bob.identity")
    alice, bob = site.agent("alice"), site.agent("bob")
    assert "not allowed" in alice.wait_for_event("handshake refused", link="line")["reason"]
    assert "refused" in bob.wait_for_event("handshake refused", link="line")["reason"]
    stop(alice, bob)
    for agent in (alice, bob):
        assert agent.events("session open") == []
        assert site.rows(agent.name, "SELECT session_counter FROM links") == [0]


def test_a_qrng_that_sticks_stops_the_link_and_nothing_is_drawn_afterwards(site: Site) -> None:
    two_nodes(site)
    qrng = site.configs["bob"]["qrng"][0]["emulated"]
    qrng["epoch_ns"] = time.time_ns()
    qrng["stuck_after_bytes"] = 10 * 1_000_000
    alice, bob = start(site)
    bob.wait_for_event("alarm", code="NO_ENTROPY", subject="line")
    seen = len(bob.lines)
    closed = bob.wait_for_event("session closed", link="line")
    assert "NO_ENTROPY" in closed["reason"]
    bob.wait_for_event("statistics", after=seen)
    assert bob.child.poll() is None
    stop(alice, bob)
    assert "DEVICE_UNHEALTHY" in bob.alarms()
    assert site.rows("alice", READY_BATCHES) == site.rows("bob", READY_BATCHES)


@pytest.fixture(scope="module", autouse=True)
def agent_without_entropy() -> Iterator[Process]:
    """An agent whose QRNG never passes its start-up test; it gives up after a while, meanwhile others are tested."""
    with Site() as site:
        site.node("deaf", stuck_after_bytes=0)
        yield site.agent("deaf")


def test_a_damaged_key_is_set_aside_and_all_others_are_delivered(site: Site) -> None:
    two_nodes(site)
    app_a, app_b = both_applications(site)
    alice, bob = start(site)
    gone = [app_a]
    while not (waiting := keys_in_nobodys_hands(site, gone)):  # seldom: it had them all in its hands
        gone.append(site.application("alice", "app-a", "app-b", "line"))
    alice.kill()
    damaged, place = waiting[0]
    with closing(sqlite3.connect(site.vault("alice"))) as vault, vault:
        vault.execute("UPDATE keys SET sealed = zeroblob(length(sealed)) WHERE place = ?", (place,))

    alice = site.agent("alice")
    again = site.application("alice", "app-a", "app-b", "line")
    wait_for_keys(again, 100)
    stop(alice, bob)
    stop(again, app_b)
    ours, theirs = {key: digest for one in (*gone, again) for key, digest in keys(one).items()}, keys(app_b)
    assert {key.replace("-", "").upper() for key in theirs.keys() - ours.keys()} == {damaged}
    assert all(theirs[key] == digest for key, digest in ours.items())
    assert site.rows("alice", f"SELECT state FROM {KEYS} WHERE id = '{damaged}'") == ["damaged"]
    assert site.rows("alice", "SELECT count(*) FROM leaves WHERE leaf LIKE '%record.damaged%'") == [1]
    assert site.audit_is_valid("alice")


def keys_in_nobodys_hands(site: Site, applications: list[Process]) -> list[tuple[str, int]]:
    """End the last of alice's applications while keys wait for it; ids and places of those that none was ever given."""
    last = applications[-1]
    wait_for_keys(last, 1)
    last.child.send_signal(signal.SIGSTOP)
    ready = f"SELECT id, place FROM {KEYS} WHERE state = 'ready' ORDER BY delivery DESC, place DESC"
    site.wait_for_row("alice", "key that waits for an application that hangs", ready)
    last.kill()  # only now is all that it printed known
    seen = {key.replace("-", "").upper() for one in applications for key in keys(one)}
    return [row for row in site.rows("alice", ready) if row[0] not in seen]


def test_a_wrong_passphrase_is_named_in_one_line(site: Site) -> None:
    site.node("solo")
    agent = site.agent("solo")
    agent.wait_for_event("started")
    stop(agent)
    site.passphrase("solo").write_text("another passphrase")
    locked = site.agent("solo")
    assert locked.wait() == 1
    assert len(locked.words) == 1, locked.shown()
    assert "the root key does not open vault" in locked.words[0]


def test_a_disk_that_takes_no_more_is_alarmed_and_loses_nothing(site: Site) -> None:
    two_nodes(site)
    app_a, app_b = both_applications(site)
    alice, bob = start(site)
    wait_for_keys(app_a, 1)
    fill_the_disk_of(alice)
    alice.kill()
    bob.kill()
    alice, bob = start(site)
    for application in (app_a, app_b):
        wait_for_keys(application, 200)
    stop(alice, bob)
    stop(app_a, app_b)
    demand_equal_ends(site, app_a, app_b)


def test_keys_flow_again_when_the_disk_takes_more(site: Site) -> None:
    two_nodes(site)
    app_a, app_b = both_applications(site)
    alice, bob = start(site)
    wait_for_keys(app_a, 1)
    usual = fill_the_disk_of(alice)
    for _ in range(4):
        bob.wait_for_event("statistics", after=len(bob.lines))
    resource.prlimit(alice.child.pid, resource.RLIMIT_FSIZE, usual)
    for application in (app_a, app_b):
        wait_for_keys(application, 200)
    stop(alice, bob)
    stop(app_a, app_b)
    demand_equal_ends(site, app_a, app_b)


def fill_the_disk_of(agent: Process) -> tuple[int, int]:
    """Let the agent's files grow no further, until it says that they do not; the limit that it had.

    Locked memory counts as a file and must still be had, so the limit is above what the agent asks for at once.
    """
    usual = resource.prlimit(agent.child.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(agent.child.pid, resource.RLIMIT_FSIZE, (512 * 1024, usual[1]))
    agent.wait_for("alarm about its vault", lambda line: line.get("code") in ("DISK_FULL", "VAULT", "AUDIT_STOPPED"))
    return usual


def test_a_configuration_with_an_unknown_or_missing_part_is_named_and_not_run(site: Site) -> None:
    two_nodes(site)
    good = qkdnode("config", "check", site.write("alice"))
    assert good.returncode == 0, good.stderr
    assert "1 links" in good.stdout
    config = site.configs["alice"]
    config["link"][0]["distill"]["batch_bitz"] = 1
    for command in (["run", "--config"], ["config", "check"]):
        refused = qkdnode(*command, site.write("alice"))
        assert refused.returncode == 78
        assert "batch_bitz" in refused.stderr
        assert "Traceback" not in refused.stderr
    del config["link"][0]["distill"]["batch_bitz"]
    config["qrng"] = []
    refused = qkdnode("run", "--config", site.write("alice"))
    assert refused.returncode == 78
    assert "qrng" in refused.stderr


def test_the_benchmarks_are_listed() -> None:
    listed = qkdnode("bench", "--list")
    assert listed.returncode == 0
    assert {"reconcile", "amplify"} <= {line.split()[0] for line in listed.stdout.splitlines()}


def test_the_demonstration_keeps_its_contract() -> None:
    run = qkdnode("demo", "--seconds", "20", "--seed", "1", "--json")
    assert run.returncode == 0, run.stdout + run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert {name: type(value) for name, value in result.items()} == DEMONSTRATION
    assert result["keys_alice"] == result["keys_bob"]
    assert result["keys_matched"] == result["keys_delivered"] > 0
    assert result["keys_mismatched"] == 0
    assert result["audit_verified"] is True
    assert result["sifted_bits"] > result["secret_bits"] > 0
    assert 0 < result["first_key_seconds"] <= result["seconds"]
    assert 0 < result["qber"] < 0.05
    assert result["efficiency"] >= 1
    assert set(result["alarms"]) <= ALARMS
    assert len(result["rss_mib"]) == 4
    assert all(isinstance(mib, float) and mib > 0 for mib in result["rss_mib"].values())


def test_an_agent_without_a_healthy_qrng_does_not_start(agent_without_entropy: Process) -> None:
    assert agent_without_entropy.wait() == 1
    assert "no QRNG delivered healthy random numbers" in agent_without_entropy.words[-1]
    assert agent_without_entropy.events("started") == []
