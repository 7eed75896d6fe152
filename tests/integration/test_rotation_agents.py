"""A rotation between running agents and their applications: begun by one operator, and nobody goes without a key."""

import signal
from collections.abc import Iterator

import pytest
from agents import KEYS, Operator, Process, Site, both_applications, keys, two_nodes, wait_for_keys


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as made:
        two_nodes(made)
        yield made


def generations(application: Process) -> list[int]:
    """The generation of each key, in the order in which they came."""
    return [line["generation"] for line in list(application.lines) if "key" in line]


def test_both_applications_go_over_to_the_next_generation_while_keys_flow_and_the_old_one_ends(site: Site) -> None:
    olga = site.operator("olga", "bob", "operator")
    sven = site.operator("sven", "alice", "security-officer")
    alice, bob = site.agent("alice"), site.agent("bob")
    for agent in (alice, bob):
        agent.wait_for_event("session open")
    at_bob, at_alice = Operator(site, "bob", olga), Operator(site, "alice", sven)
    applications = both_applications(site)
    for application in applications:
        wait_for_keys(application, 20)
    rehearsed = at_alice.answer("rotate", "--all", "--rehearse", "--rounds", "1")
    assert rehearsed["would_succeed"]
    assert rehearsed["associations"][0]["load_taken"] > 20
    assert set(rehearsed["steps"]) == {"agreed", "prepared", "cut", "first_key", "closed", "ended"}
    applications[1].child.send_signal(signal.SIGSTOP)  # it does not accept: the rotation waits
    at_bob.answer("rotate", "app-b:app-a", "--reason", "test")
    offered = at_alice.until(lambda a: a["rotations"][0]["phase"] == "acknowledged", "rotate")["rotations"][0]
    assert (offered["generation"], offered["number"]) == (1, 2)
    assert at_alice.answer("rotate", "--all", "--give-up")["rotations"][0]["phase"] == "steady"
    at_bob.until(lambda a: a["rotations"][0]["result"] == "operator", "rotate")
    assert {*generations(applications[0]), *generations(applications[1])} == {1}
    applications[0].wait_for("the end of the offer", lambda line: line.get("is") == "withdrawn")
    applications[1].child.send_signal(signal.SIGCONT)
    over = at_bob.answer("rotate", "--link", "line", "--wait", "60")["rotations"][0]
    assert (over["generation"], over["phase"], over["result"]) == (3, "steady", "done")
    for application in applications:
        wait_for_keys(application, 20)
        application.wait_for("the new generation", lambda line: line.get("is") == "current" and line["generation"] == 3)
        seen = generations(application)
        assert set(seen) == {1, 3}
        told = [line for line in application.lines if "is" in line or "key" in line]
        at = next(i for i, line in enumerate(told) if line.get("is") == "current")
        assert all(line.get("generation") == 3 for line in told[at:] if "key" in line)
        assert any(line.get("is") == "offered" and line["generation"] == 3 for line in told[:at])
    at_alice.until(lambda a: a["rotations"][0]["ended"] > 0 and not a["rotations"][0]["moving"], "rotate")
    at_bob.until(lambda a: not a["rotations"][0]["moving"], "rotate")
    for process in (*applications, alice, bob):
        process.child.send_signal(signal.SIGTERM)
    for process in (*applications, alice, bob):
        assert process.wait() == 0
    same = keys(applications[0]).items() & keys(applications[1]).items()
    assert len(same) > 60
    states = {
        node: dict(
            site.rows(node, f"SELECT id, state FROM {KEYS} WHERE place / 128 IN "
                      "(SELECT number FROM bundles WHERE key_generation < 3)")
        )
        for node in ("alice", "bob")
    }  # fmt: skip
    for node, its in states.items():
        assert set(its.values()) <= {"deactivated", "destroyed", "burnt"}, node
        assert site.audit_is_valid(node)
    both = states["alice"].keys() & states["bob"].keys()
    assert len(both) > 40
    assert {key for key in both if states["alice"][key] != states["bob"][key]} == set()
    assert not {"AUTH_FAILED", "PROTOCOL", "VAULT", "VAULT_DAMAGED"} & (alice.alarms() | bob.alarms())
