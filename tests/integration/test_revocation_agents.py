"""Revocation and compromise between running agents: told at once, followed at the far end, and nothing released."""

import signal
import time
from collections.abc import Iterator

import pytest
from agents import KEYS, PATIENCE_S, Operator, Process, Site, both_applications, keys, two_nodes, wait_for_keys

READY = f"SELECT id FROM {KEYS} WHERE state = 'ready' ORDER BY id"


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as made:
        two_nodes(made)
        yield made


def started(site: Site) -> tuple[Process, Process, Operator, Operator]:
    olga = {node: site.operator(f"olga-{node}", node, "operator") for node in ("alice", "bob")}
    alice, bob = site.agent("alice"), site.agent("bob")
    alice.wait_for_event("session open")
    bob.wait_for_event("session open")
    return alice, bob, Operator(site, "alice", olga["alice"]), Operator(site, "bob", olga["bob"])


def wait_until(site: Site, what: str, node: str, query: str, wanted: object) -> None:
    until = time.monotonic() + PATIENCE_S
    while (found := site.rows(node, query)) != wanted:
        assert time.monotonic() < until, f"{node}: {what}: {found[:5]}"
        time.sleep(0.05)


def test_a_compromised_link_gives_nothing_more_at_either_end_until_it_is_in_a_new_session(site: Site) -> None:
    alice, bob, at_alice, at_bob = started(site)
    app_a, app_b = both_applications(site)
    for application in (app_a, app_b):
        wait_for_keys(application, 20)
        application.child.send_signal(signal.SIGSTOP)  # keys wait for it, and stay where they are
    for node in ("alice", "bob"):
        site.wait_for_row(node, "key that waits", READY)
    answer = at_alice.answer("compromise", "--scope", "link", "line")
    assert answer["steps"][0].startswith("`qkdnode pause LINK`")
    alarm = bob.wait_for_event("alarm", code="COMPROMISED", subject="line")
    assert "others may know" in alarm["detail"]
    for operator in (at_alice, at_bob):
        scopes = operator.until(lambda a: [s["moving"] for s in a["scopes"]] == [False], "compromise")["scopes"]
        assert scopes[0]["keys"] > 20
    assert at_alice.until(lambda a: a["scopes"][0]["confirmed"], "compromise")
    reached = "batch <= (SELECT last FROM scopes)"
    states = {
        node: site.rows(node, f"SELECT id, state FROM {KEYS} WHERE batch <= (SELECT hex(last) FROM scopes) ORDER BY id")
        for node in ("alice", "bob")
    }
    for node, rows in states.items():
        assert {state for _, state in rows} <= {"compromised", "burnt"}
        sealed = f"SELECT count(*) FROM keys JOIN bundles ON number = place / 128 WHERE {reached}"
        assert site.rows(node, sealed) == [0]
        # One that is not settled yet has its stock until then: the link goes on.
        stock = f"SELECT coalesce(sum(bits), 0) FROM chunks JOIN batches USING (link, batch) WHERE usable AND {reached}"
        assert site.rows(node, stock) == [0]
    assert set(states["alice"]) & set(states["bob"])
    for process in (app_a, app_b):
        process.kill()
    for agent in (alice, bob):
        agent.child.terminate()
    assert alice.wait() == bob.wait() == 0
    before = {node: {row for row, _ in rows} for node, rows in states.items()}
    alice, bob = site.agent("alice"), site.agent("bob")
    app_a, app_b = both_applications(site)
    for application in (app_a, app_b):  # Batches of a new session are not reached
        wait_for_keys(application, 20)
    for node, application in (("alice", app_a), ("bob", app_b)):
        assert not {key.replace("-", "").upper() for key in keys(application)} & before[node]
    for node in ("alice", "bob"):
        assert site.audit_is_valid(node)


def test_a_revoked_key_is_out_of_use_at_both_ends_and_the_far_end_hears_after_a_restart(site: Site) -> None:
    alice, bob, at_alice, _ = started(site)
    app_a, app_b = both_applications(site)
    wait_for_keys(app_a, 1)
    wait_for_keys(app_b, 1)
    for application in (app_a, app_b):
        application.child.send_signal(signal.SIGSTOP)
    site.wait_for_row("alice", "key that waits", READY)
    waiting = site.rows("alice", READY)
    bob.kill()
    alice.wait_for_event("session closed")
    key = waiting[0]
    answer = at_alice.answer("keys", "revoke", key.lower(), "--reason", "key-compromise")
    assert [one.replace("-", "").upper() for one in answer["revoked"]] == [key]
    for application in (app_a, app_b):
        application.kill()
    bob = site.agent("bob")
    app_b = site.application("bob", "app-b", "app-a", "line")
    app_a = site.application("alice", "app-a", "app-b", "line")
    for application in (app_a, app_b):
        wait_for_keys(application, 5)
        assert key not in {one.replace("-", "").upper() for one in keys(application)}
    state = f"SELECT state FROM {KEYS} WHERE id = '{key}'"
    for node in ("alice", "bob"):
        wait_until(site, "the revoked key", node, state, ["compromised"])


def test_no_key_is_supplied_while_the_neighbour_cannot_be_heard(site: Site) -> None:
    alice, bob, _, _ = started(site)
    app_a, app_b = both_applications(site)
    wait_for_keys(app_a, 1)
    app_a.child.send_signal(signal.SIGSTOP)
    site.wait_for_row("alice", "key that waits", READY)
    bob.kill()
    alice.wait_for_event("session closed")
    app_a.kill()
    alone = site.application("alice", "app-a", "app-b", "line")
    subscribed = """SELECT 1 FROM leaves WHERE leaf LIKE '%"kind":"access.subscribe"%' LIMIT 1 OFFSET 1"""
    site.wait_for_row("alice", "subscription", subscribed)
    for _ in range(4):  # two seconds in which it would have had them
        alice.wait_for_event("statistics", after=len(alice.lines))
    assert keys(alone) == {}
    site.agent("bob")
    wait_for_keys(alone, 5)
    app_b.kill()
