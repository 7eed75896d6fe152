"""docs/policy.md by its word: its documents are sound, its commands show what the page says, its tables are whole."""

import doctest
import re
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from console import MATCHED, Shell, site_of_alice
from control_node import NOW_NS, ControlNode

from qkdnode.access.approvals import Refusal
from qkdnode.config import ApplicationSection, AssociationSection
from qkdnode.lifecycle.policy.check import check
from qkdnode.lifecycle.policy.decision import RESERVED_NAMES
from qkdnode.lifecycle.policy.document import Application, Custodians, Document, KeyClass, Rule, parse
from qkdnode.node.policy import ALGORITHMS

PAGE = (Path(__file__).resolve().parents[2] / "docs/policy.md").read_text()
TOML = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
LONG, SHORT, CONFIGURATION = TOML


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ControlNode]:
    with site_of_alice(tmp_path, monkeypatch, policy=LONG, short=SHORT) as made:
        monkeypatch.setenv("QKDNODE_OPERATOR", "site/olga.operator")
        monkeypatch.setattr(time, "time_ns", lambda: NOW_NS)  # approvals are given at the time of the node
        yield made


@pytest.mark.parametrize("text", [LONG, SHORT])
def test_the_documents_of_the_page_have_no_findings(text: str) -> None:
    assert check(parse(text.encode()), ALGORITHMS) == ()


def test_every_command_of_the_page_shows_what_the_page_says(site: ControlNode) -> None:
    shell, checker = Shell(), doctest.OutputChecker()
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL):
        for example in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, wanted = example.partition("\n")
            got = shell.run(command)
            wanted, got = ("\n".join(map(str.rstrip, text.strip().splitlines())) + "\n" for text in (wanted, got))
            assert checker.check_output(wanted, got, MATCHED), f"$ {command}\nshows\n{got}\nand not\n{wanted}"


def test_the_page_shows_and_lists_every_key_of_every_table() -> None:
    shown = {its.split(" ")[0] for its in re.findall(r"^[a-z_]+ =", LONG, re.MULTILINE)} | {*tomllib.loads(LONG)}
    tables: dict[str, type[msgspec.Struct]] = {
        "document": Document, "class": KeyClass, "custodian": Custodians, "application": Application, "rule": Rule,
    }  # fmt: skip
    for name, table in tables.items():
        keys = {field.encode_name for field in msgspec.structs.fields(table)}
        (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| {name} |")]
        assert set(re.findall(r"`([a-z_]+)`", row)) == keys
        inline = set(re.findall(r"([a-z_]+) = ", LONG))
        assert keys <= shown | inline | {"min_bits"}


def test_the_page_names_every_built_in_rule_that_decides_on_a_case_and_every_refusal_of_an_approval() -> None:
    quotas = {name for name in RESERVED_NAMES if name.startswith(("quota", "reserve"))}
    for name in RESERVED_NAMES - quotas:
        assert f"`{name}`" in PAGE
    table = PAGE.split("What makes one not count:")[1].split("## ")[0]
    assert set(re.findall(r"[a-z-]+", " ".join(line.split("|")[1] for line in table.splitlines() if "|" in line))) >= {
        str(refusal) for refusal in Refusal
    }


def test_the_page_s_part_of_a_configuration_is_one() -> None:
    raw = tomllib.loads(CONFIGURATION)
    msgspec.convert(raw["application"], list[ApplicationSection])
    msgspec.convert(raw["association"], list[AssociationSection])
