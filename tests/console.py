"""Pages of the documentation by their word: the commands that they show, and a shell that runs them."""

import base64
import doctest
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from control_node import ControlNode
from signing import PUBLIC

from qkdnode.access.identities import NodeIdentity, encode_public
from qkdnode.cli.main import group
from qkdnode.errors import QkdnodeError

CONFIG = """
[node]
name = "alice"
identity = "alice.identity"
vault = "alice.vault"
root_key = { passphrase_file = "passphrase" }
[control]
socket = "control/socket"
"""
ALICE = NodeIdentity(
    name="alice",
    curve="0" * 40,
    ed25519=base64.b64encode(PUBLIC[:32]).decode(),
    mldsa44=base64.b64encode(PUBLIC[32:]).decode(),
)
MATCHED = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@contextmanager
def site_of_alice(place: Path, monkeypatch: pytest.MonkeyPatch, **files: str) -> Iterator[ControlNode]:
    """The folder `site` of the pages in a working directory, with these files (NAME.toml), and alice's agent."""
    (place / "site").mkdir()
    for name, text in {"alice": CONFIG, **files}.items():
        (place / f"site/{name}.toml").write_text(text)
    (place / "site/alice.public").write_bytes(encode_public(ALICE))
    monkeypatch.chdir(place)
    monkeypatch.delenv("QKDNODE_OPERATOR", raising=False)
    with ControlNode(place / "site") as made:
        yield made


def blocks(page: str, kind: str) -> list[str]:
    """The blocks of code of one kind."""
    return re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL)


def examples(page: str) -> list[tuple[str, str]]:
    """Every command of a page with what it shows."""
    found = []
    for block in blocks(page, "console"):
        for example in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = example.partition("\n")
            found.append((command, shown))
    return found


def demand_shown(command: str, wanted: str, got: str) -> None:
    """AssertionError unless a command showed what a page says, of which `...` stands for anything."""
    if wanted.strip() != "...":
        wanted = "\n".join(line.rstrip() for line in wanted.splitlines()).strip("\n") + "\n"
    got = "\n".join(line.rstrip() for line in got.splitlines()).strip("\n") + "\n"
    matches = doctest.OutputChecker().check_output(wanted, got, MATCHED)
    assert matches, f"$ {command}\nshows\n{got}\nand not\n{wanted}"


class Shell:
    """As much of a shell as the pages need."""

    def __init__(self) -> None:
        self.environment: dict[str, str] = {}
        self.status = 0

    def run(self, command: str) -> str:
        program, *arguments = shlex.split(command)
        if program == "export":
            name, _, value = arguments[0].partition("=")
            self.environment[name] = value
            return ""
        if program == "echo":
            assert arguments == ["$?"]
            return f"{self.status}\n"
        assert program == "qkdnode"
        result = CliRunner().invoke(group, arguments, env=self.environment, prog_name="qkdnode")
        if isinstance(result.exception, QkdnodeError):
            self.status = result.exception.exit_status
            return f"{result.output}qkdnode: {result.exception}\n"
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        self.status = result.exit_code
        return result.output
