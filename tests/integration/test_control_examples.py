"""docs/control.md by its word: every command in it is run, and shows what the page says that it shows."""

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from console import Shell, blocks, demand_shown, examples, site_of_alice
from control_node import ControlNode

from qkdnode.access.rules import RULES, Action, Role
from qkdnode.cli.main import COMMANDS
from qkdnode.control.desk import ACTIONS
from qkdnode.wire import control as wire

PAGE = (Path(__file__).resolve().parents[2] / "docs/control.md").read_text()
OVER_CONTROL = {
    "status", "links", "devices", "alarms", "keys", "compromise", "rotate", "pause", "resume", "shutdown", "reload",
    "top", "audit", "policy",
}  # fmt: skip


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ControlNode]:
    with site_of_alice(tmp_path, monkeypatch) as made:
        yield made


def test_every_command_of_the_page_shows_what_the_page_says(site: ControlNode) -> None:
    shell = Shell()
    for command, wanted in examples(PAGE):
        if command.startswith("qkdnode top") and "--once" not in command:
            continue  # it does not end
        demand_shown(command, wanted, shell.run(command))
    assert [done[0] for done in site.agent.done].count("shutdown") == 1


def test_the_page_shows_every_command_that_reaches_an_agent() -> None:
    shown = {shlex.split(command)[1] for command, _ in examples(PAGE) if command.startswith("qkdnode ")}
    assert shown >= OVER_CONTROL
    assert set(COMMANDS) >= OVER_CONTROL


def test_the_program_of_the_page_runs(site: ControlNode) -> None:
    (program,) = blocks(PAGE, "python")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(program, "docs/control.md", "exec"), {})
    assert "alice-bob" in out.getvalue()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_page_has_every_rule_with_its_roles_and_actions(rule: object) -> None:
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| {rule.name} |")]  # type: ignore[attr-defined]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[1] == rule.effect  # type: ignore[attr-defined]
    actions = set(Action) if cells[2] == "all" else set(re.findall(r"[a-z]+\.[a-z]+", cells[2]))
    assert actions == set(rule.actions)  # type: ignore[attr-defined]
    roles = {role.value for role in Role} if cells[3] == "all" else set(re.findall(r"[a-z-]+", cells[3]))
    assert roles == set(rule.roles)  # type: ignore[attr-defined]


@pytest.mark.parametrize("request_", wire.REQUESTS, ids=lambda kind: kind.__name__)
def test_the_page_has_every_request_with_its_fields_its_answer_and_its_action(request_: type[wire.Request]) -> None:
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{request_.__struct_config__.tag}` |")]
    assert f"`{wire.ANSWERS[request_].__name__}`" in row
    assert ACTIONS[request_].value in row
    for field in msgspec.structs.fields(request_):
        assert f"`{field.name}`" in row


@pytest.mark.parametrize(
    "answer",
    sorted({*wire.ANSWERS.values(), wire.LinkStatus, wire.DeviceStatus, wire.Asset, wire.AlgorithmEntry}, key=repr),
)
def test_the_page_names_every_field_of_every_answer(answer: type[wire.Answer]) -> None:
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{answer.__name__}` |")]
    assert not [field.name for field in msgspec.structs.fields(answer) if f"`{field.name}`" not in row]


@pytest.mark.parametrize("message", [wire.Challenge, wire.Signed, wire.Done, wire.Refused, wire.Closed])
def test_the_page_has_every_message_under_its_tag(message: type[msgspec.Struct]) -> None:
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| {message.__struct_config__.tag} |")]
    assert f"`{message.__name__}`" in row
    assert not [field.name for field in msgspec.structs.fields(message) if f"`{field.name}`" not in row]
