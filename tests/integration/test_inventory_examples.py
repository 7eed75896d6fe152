"""docs/inventory.md by its word: its commands run and show what it says, and its table is the registry."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from console import CONFIG, Shell, blocks, demand_shown, examples, site_of_alice
from control_node import ControlNode
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from msgspec.structs import replace

from qkdnode.config import decode_config
from qkdnode.lifecycle.algorithms import ROWS, Algorithm, Need
from qkdnode.node.algorithms import registry_of
from qkdnode.wire.control import Asset

PAGE = (Path(__file__).resolve().parents[2] / "docs/inventory.md").read_text()


def documented(row: Algorithm) -> str:
    """The row of the page's table."""
    uses = [f"{use.what} ({use.need})" if use.need is not Need.ALWAYS else use.what for use in row.uses]
    keys = f"yes, {' or '.join(map(str, row.key_bits))} bits" if row.key_bits else "yes"
    days = row.deprecated_from or "-", row.disallowed_from or "-", row.replacement or "-"
    cells = (f"`{row.id}`", row.parameters, *days, "; ".join(uses) or "-", keys if row.for_keys else "-")
    return f"| {' | '.join(cells)} |"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ControlNode]:
    with site_of_alice(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def shell(site: ControlNode) -> Shell:
    made = Shell()
    made.environment = {"QKDNODE_OPERATOR": "site/anna.operator"}
    return made


def test_every_command_of_the_page_shows_what_the_page_says(site: ControlNode) -> None:
    shell = Shell()
    for command, wanted in examples(PAGE):
        demand_shown(command, wanted, shell.run(command))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(Path("alice.sbom.json").read_text()) is None
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(Path("alice.cbom.json").read_text()) is None
    told = {(outcome, action) for outcome, action, _ in site.told()}
    assert told >= {("allowed", "inventory.read"), ("refused", "inventory.read")}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_the_page_has_every_algorithm_as_the_registry_has_it(row: Algorithm) -> None:
    assert documented(row) in PAGE.splitlines()


def test_the_page_has_no_algorithm_that_the_registry_has_not() -> None:
    table = PAGE.split("\n## Algorithms\n")[1].split("\n## ")[0]
    assert len([line for line in table.splitlines() if line.startswith("| `")]) == len(ROWS)


def test_the_configuration_of_the_page_is_one() -> None:
    (text,) = blocks(PAGE, "toml")
    config = decode_config(CONFIG + text)
    assert {its.owner for its in config.asset} == {"optics", "operations"}
    assert registry_of(config)["X25519"].disallowed_from == "2035-01-01"


def test_the_same_serial_and_time_give_the_same_file(shell: Shell) -> None:
    for name in ("first", "second"):
        shell.run(
            f"qkdnode inventory export {name} --format sbom --config site/alice.toml "
            "--serial 01234567-89ab-4cde-8f01-23456789abcd --time 2026-02-02T02:40:00Z"
        )
    assert Path("first").read_bytes() == Path("second").read_bytes()
    shell.run("qkdnode inventory export third --format sbom --config site/alice.toml")
    assert Path("third").read_bytes() != Path("first").read_bytes()


@pytest.mark.parametrize("format_", ["sbom", "cbom"])
def test_a_file_that_cannot_be_written_is_told_and_nothing_is_left(shell: Shell, format_: str) -> None:
    Path("folder").mkdir()
    Path("folder/kept").write_text("kept")
    Path("readable").write_text("kept")
    for file, told in (
        ("folder", "cannot write folder"),
        ("nowhere/file", "cannot write beside nowhere/file: No such file"),
        ("readable/file", "cannot write beside readable/file: Not a directory"),
        ("x" * 300, "File name too long"),
    ):
        got = shell.run(f"qkdnode inventory export {file} --format {format_} --config site/alice.toml")
        assert told in got
        assert shell.status == 1
    assert sorted(path.name for path in Path().rglob("*") if "site" not in path.parts) == [
        "folder", "kept", "readable",
    ]  # fmt: skip


def test_a_file_that_is_there_is_replaced_by_a_whole_one_or_kept(shell: Shell, site: ControlNode) -> None:
    Path("bom").write_text("before")
    command = "qkdnode inventory export bom --format cbom --config site/alice.toml"
    site.stop()
    shell.run(command)
    assert shell.status == 69
    assert Path("bom").read_text() == "before"


def test_an_export_over_a_file_is_whole(shell: Shell) -> None:
    Path("bom").write_text("before" * 100_000)
    made = json.loads(shell.run("qkdnode inventory export bom --format cbom --json --config site/alice.toml"))
    assert made["format"] == "cbom"
    assert len(Path("bom").read_bytes()) == made["bytes"]
    assert json.loads(Path("bom").read_text())["serialNumber"] == f"urn:uuid:{made['serial']}"


def test_a_time_that_is_none_is_refused_before_anything_is_asked(shell: Shell) -> None:
    got = shell.run("qkdnode inventory export bom --format sbom --time soon --config site/alice.toml")
    assert "'soon' is no time" in got
    assert shell.status == 2
    assert not Path("bom").exists()


def test_long_inventories_come_in_pages_and_whole(
    shell: Shell, site: ControlNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = tuple(
        Asset(kind="package", name=f"p{i:04}", version="1", details={"requires": "x" * 2000}) for i in range(700)
    )

    async def everything() -> tuple[tuple[Asset, ...], tuple[str, ...]]:
        return many, ()

    monkeypatch.setattr(site.desk, "_port", replace(site.agent.port(), assets=everything))
    listed = json.loads(shell.run("qkdnode inventory list --json --config site/alice.toml"))
    assert [asset["name"] for asset in listed["list"]] == [asset.name for asset in many]
    assert (listed["assets"], listed["unassigned"]) == (700, 700)
