"""A running agent driven through its control socket, by the commands that an operator has."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agents import Operator, Site, both_applications, keys, two_nodes, wait_for_keys
from click.testing import CliRunner, Result

from qkdnode.cli.main import group
from qkdnode.node.provision import provision_operator


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as made:
        yield made


def link(answer: Any) -> Any:
    return answer["links"][0]


def test_an_agent_is_watched_paused_reloaded_exported_and_stopped_through_its_socket(site: Site) -> None:
    two_nodes(site)
    olga = Operator(site, "alice", site.operator("olga", "alice", "operator"))
    max_ = Operator(site, "alice", site.operator("max", "alice", "maintainer"))
    anna = Operator(site, "alice", site.operator("anna", "alice", "auditor"))
    alice, bob = site.agent("alice"), site.agent("bob")
    app_a, app_b = both_applications(site)
    wait_for_keys(app_a, 20)
    wait_for_keys(app_b, 20)

    status = olga.until(lambda found: link(found)["secret_bps"], "status")
    assert (status["node"], status["state"], link(status)["state"]) == ("alice", "running", "OPEN")
    assert status["keys"]["delivered"] >= 20
    assert 0 < link(status)["qber"] < 0.05
    assert link(status)["reserve_bits"] > 0
    assert {device["serial"] for device in status["devices"]} == {"alice-line", "QRNG-alice"}
    assert all(device["healthy"] for device in status["devices"])
    assert "line" in olga.run("top", "--once")
    shown = olga.answer("keys", "list", "--limit", "3")
    assert [key["local"] for key in shown["keys"]] == ["app-a"] * 3
    assert olga.answer("keys", "show", shown["keys"][0]["key_id"]) == shown["keys"][0]

    inventory = anna.answer("inventory", "list")
    assets = {(asset["kind"], asset["name"]): asset for asset in inventory["list"]}
    assert {asset["version"] for (kind, _), asset in assets.items() if kind in ("module", "qrng")} == {"0.1.0"}
    assert len(assets["package", "qkdnode"]["digest"]) == 64
    assert inventory["unassigned"] == inventory["assets"] == len(assets)
    assert "default-deny" in max_.run("inventory", "list", status=77)
    for format_ in ("sbom", "cbom"):
        anna.run("inventory", "export", site.directory / format_, "--format", format_)
        assert json.loads((site.directory / format_).read_text())["specVersion"] == "1.6"
    assert not [alarm for alarm in olga.answer("alarms")["alarms"] if alarm["code"] == "ASSET_CHANGED"]

    olga.run("pause", "line")
    bob.wait_for("Bob paused", lambda line: line.get("links", {}).get("line", {}).get("state") == "PAUSED")
    assert link(olga.answer("links"))["paused_by"] == "olga"

    assert "default-deny" in olga.run("reload", status=77)
    site.configs["alice"]["operator"][0]["roles"] = ["auditor"]
    provision_operator("nora", site.directory)
    site.configs["alice"]["operator"].append({"name": "nora", "public": "lost.public", "roles": ["operator"]})
    site.write("alice")
    assert "lost.public" in max_.run("reload", status=1)
    assert olga.answer("resume", "line")["changed"]  # nothing has changed: she is an operator still
    assert olga.answer("pause", "line")["changed"]
    site.configs["alice"]["operator"][3]["public"] = "nora.public"
    site.configs["alice"]["link"][0]["distill"]["qber_limit"] = 0.07
    site.write("alice")
    told = max_.answer("reload")
    assert set(told["applied"]) == {"operator nora: added", "operator olga: changed"}
    assert told["needs_restart"] == ["link line: changed"]
    assert "auditors-change-nothing" in olga.run("resume", "line", status=77)
    nora = Operator(site, "alice", site.directory / "nora.operator")

    site.configs["alice"]["link"][0]["distill"]["qber_limit"] = 0.08  # as the far end has it
    alice.kill()
    alice = site.agent("alice")
    alice.wait_for_event("session open")
    assert link(nora.until(lambda found: link(found)["state"] == "PAUSED", "status"))["paused_by"] == "olga"
    assert nora.answer("resume", "line")["changed"]
    nora.until(lambda found: link(found)["state"] == "OPEN" and link(found)["sifted_bps"], "status")

    export = site.directory / "alice.export"
    entries = anna.answer("audit", "export", str(export))["entries"]
    told = subprocess.run(
        [sys.executable, "-m", "qkdnode", "audit", "verify", export, "--key", site.directory / "alice.public"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert told.startswith(f"{entries} entries, ")
    assert told.endswith(" 0 entries not yet signed\nvalid\n")
    lines = export.read_text().splitlines()
    kinds = [json.loads(json.loads(line)["leaf"])["kind"] for line in lines if line.startswith('{"leaf"')]
    assert kinds.count("link.paused") == 2
    assert "access.control" in kinds
    assert "olga" not in export.read_text()

    assert nora.run("shutdown") == "the agent stops\n"
    bob.child.terminate()  # at the same time: neither waits for the other then
    assert alice.wait() == 0, alice.shown()
    assert bob.wait() == 0, bob.shown()
    assert not (site.directory / "alice.control" / "socket").exists()
    assert "no agent listens" in nora.run("status", status=69)
    assert site.audit_is_valid("alice")


POLICY = """
format = "qkdnode-policy/1"
levels = ["open"]
[[class]]
name = "bulk"
label = "open"
purpose = "bulk-encryption"
max_age_at_release_s = 600
[[rule]]
name = "everybody"
effect = "permit"
"""


def command(site: Site, node: str, operator: Path, *arguments: str | Path) -> Result:
    """A command in this process: it starts at once."""
    options = ["--config", str(site.directory / f"{node}.toml"), "--as", str(operator)]
    return CliRunner().invoke(group, [*map(str, arguments), *options])


def test_agents_keep_serving_while_their_policy_is_switched(site: Site) -> None:
    two_nodes(site)
    people = {
        node: [
            site.operator(f"{name}-{node}", node, role) for name, role in (("o", "operator"), ("s", "security-officer"))
        ]
        for node in ("alice", "bob")
    }
    agents = [site.agent(node) for node in people]
    app_a, app_b = both_applications(site)
    wait_for_keys(app_a, 10)
    file = site.directory / "policy.toml"
    file.write_text(POLICY)
    for (node, files), agent in zip(people.items(), agents, strict=True):
        approvals = [site.directory / f"{path.stem}.approval" for path in files]
        for person, approval in zip(files, approvals, strict=True):
            assert command(site, node, person, "policy", "approve", file, "--out", approval).exit_code == 0
        given = [argument for approval in approvals for argument in ("--approval", approval)]
        assert "[too-few]" in str(command(site, node, files[0], "policy", "apply", file, *given[:2]).exception)
        applied = command(site, node, files[0], "policy", "apply", file, *given)
        assert "version 1 of the policy is in force" in applied.output
        if node == "alice":  # until bob has it too the ends do not agree, and say so
            agent.wait_for("alarm POLICY", lambda line: line.get("code") == "POLICY")
    delivered = "SELECT number FROM bundles WHERE class = 'bulk' AND policy = 1 AND delivered_ns IS NOT NULL"
    for node in people:
        site.wait_for_row(node, "key of the new class that its application has", delivered)
    wait_for_keys(app_b, 10)
    here, there = keys(app_a), keys(app_b)
    assert all(digest == there.get(key_id, digest) for key_id, digest in here.items())


def test_an_agent_does_not_start_with_what_is_disallowed_and_says_what_instead(site: Site) -> None:
    two_nodes(site)
    site.configs["alice"]["algorithms"] = {"AES-256-GCM": {"status": "disallowed", "replacement": "ChaCha20-Poly1305"}}
    alice = site.agent("alice")
    assert alice.wait() == 78, alice.shown()
    assert (
        "AES-256-GCM (keys, stock and pads at rest; keys on the way to an application) is disallowed" in alice.shown()
    )
    assert not site.vault("alice").exists()
