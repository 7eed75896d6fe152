"""The documents say what the code does: every message, alarm, error and key of the configuration stands in them."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from qkdnode import config
from qkdnode.config import AuthenticationSection, DistillSection, Section, decode_config
from qkdnode.device.alarms import AlarmCode as DeviceAlarmCode
from qkdnode.watch.alarms import KINDS as ALARM_KINDS
from qkdnode.watch.alarms import AlarmCode, Clearing
from qkdnode.wire import events as wire_events
from qkdnode.wire import supply
from qkdnode.wire.messages import KINDS, Kind, Parameters

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("hil/*.md")})
README = (ROOT / "README.md").read_text()
PROTOCOL = (ROOT / "docs/protocol.md").read_text()
KINDS_TABLE = PROTOCOL.split("\n### All kinds\n")[1].split("\n## ")[0]
SUPPLY = PROTOCOL.split("\n## 10 Supply\n")[1].split("\n## ")[0]
EVENTS = PROTOCOL.split("\n## 12 Events\n")[1]
OPERATIONS = (ROOT / "docs/operations.md").read_text()

FOLDERS = ("agent", "ext", "firmware_stubs", "hil", "tests", "docs", "distill", "authentication", "link")
INSIDE_PACKAGE = ("distill", "authentication", "link")
SAMPLE = (ROOT / "agent/qkdnode/packaging/sample.toml").read_text()
KIB = 1 << 10
ENDS = {
    Clearing.SIGNAL: "ends with its cause",
    Clearing.QUIET: "ends by quiet",
    Clearing.PERSON: "ends by a person",
}


def example() -> str:
    """The TOML of the README."""
    (block,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    return block


def sections() -> set[type[Section]]:
    """Every table that a configuration can have."""
    return {value for value in vars(config).values() if isinstance(value, type) and issubclass(value, Section)}


def error_codes() -> set[str]:
    """`code = "..."` of every error class, found in the source."""
    found = set()
    for path in (ROOT / "agent").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ClassDef) or not node.name.endswith("Error"):
                continue
            for line in node.body:
                if isinstance(line, ast.Assign) and isinstance(line.value, ast.Constant):
                    found |= {line.value.value for name in line.targets if getattr(name, "id", "") == "code"}
    return found


def row_of(text: str, first_cell: str) -> str:
    """The row of a table that begins with this cell."""
    rows = [line for line in text.splitlines() if line.startswith(f"| {first_cell} |")]
    assert rows, f"no row of a table begins with {first_cell!r}"
    return rows[0]


def mentioned_paths(text: str) -> Iterator[str]:
    """What a document calls a file or folder of the repository, in code or as the target of a link."""
    for quoted in re.findall(r"`([^`\s]+)`", text):
        if quoted.split("/")[0] in FOLDERS and "/" in quoted:
            yield quoted
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http:", "https:", "#")):
            yield target.partition("#")[0]


def anchors(text: str) -> set[str]:
    """The anchors that a hosting page makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_there_are_documents_to_test() -> None:
    assert len(DOCUMENTS) > 12


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.body.__name__)
def test_the_protocol_describes_every_message_with_its_code_sender_and_limit(kind: Kind) -> None:
    name = kind.body.__name__
    assert f"\n### {name} (code {kind.code})\n" in PROTOCOL
    cells = [cell.strip() for cell in row_of(KINDS_TABLE, str(kind.code)).split("|")[1:-1]]
    whole_mib = kind.max_bytes >= 1 << 20
    size = f"{kind.max_bytes >> 20} MiB" if whole_mib else f"{kind.max_bytes // KIB} KiB"
    sender = "either" if len(kind.senders) == 2 else kind.senders[0].capitalize()
    assert (cells[1], cells[2], cells[4]) == (f"`{name}`", sender, size)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.body.__name__)
def test_the_protocol_names_every_field_of_every_message(kind: Kind) -> None:
    section = PROTOCOL.split(f"\n### {kind.body.__name__} (code")[1].split("\n### ")[0].split("\n## ")[0]
    missing = [
        field.name for field in msgspec.structs.fields(kind.body) if not re.search(rf"\b{field.name}\b", section)
    ]
    assert not missing


def test_the_protocol_names_every_agreed_parameter() -> None:
    hello = PROTOCOL.split("\n### Hello (code")[1].split("\n## ")[0]
    assert not [name for name in Parameters.__struct_fields__ if not re.search(rf"\b{name}\b", hello)]


def test_the_protocol_lists_every_supply_message_under_its_tag() -> None:
    messages = [
        value
        for value in vars(supply).values()
        if isinstance(value, type) and issubclass(value, msgspec.Struct) and value.__struct_config__.tag is not None
    ]
    assert len(messages) == 24
    for message in messages:
        assert f"| `{message.__name__}` |" in row_of(SUPPLY, str(message.__struct_config__.tag))


def test_the_protocol_lists_every_message_about_events_with_its_fields() -> None:
    messages = [
        value
        for value in vars(wire_events).values()
        if isinstance(value, type) and issubclass(value, msgspec.Struct) and value.__struct_config__.tag is not None
    ]
    assert len(messages) == 7
    for message in messages:
        row = row_of(EVENTS, str(message.__struct_config__.tag))
        assert f"| `{message.__name__}` |" in row
        assert not [name for name in message.__struct_fields__ if not re.search(rf"\b{name}\b", row)]


@pytest.mark.parametrize("code", list(AlarmCode), ids=str)
def test_every_alarm_has_its_row_in_the_operators_table(code: AlarmCode) -> None:
    row = row_of(OPERATIONS.split("## Alarms")[1], code)
    assert row.count("|") == 4
    assert f"| *{ALARM_KINDS[code].severity}, {ENDS[ALARM_KINDS[code].clearing]}:* " in row


@pytest.mark.parametrize("code", list(DeviceAlarmCode), ids=str)
def test_every_code_of_a_device_driver_is_explained(code: DeviceAlarmCode) -> None:
    assert re.search(rf"\b{code}\b", OPERATIONS)


def test_every_error_code_has_its_row() -> None:
    codes = error_codes()
    assert {"ERROR", "NO_KEY", "AUDIT_UNREADABLE"} <= codes
    for code in codes:
        row_of(OPERATIONS.split("## Errors")[1], code)


def test_the_example_configuration_decodes_and_shows_the_defaults() -> None:
    decoded = decode_config(example())
    (link,) = decoded.link
    assert link.distill == DistillSection()
    assert link.authentication == AuthenticationSection()
    assert link.module.emulated is not None
    (qrng,) = decoded.qrng
    assert qrng.emulated is not None
    for shown in (link.module.emulated, qrng.emulated):
        required = {"seed": shown.seed, "epoch_ns": shown.epoch_ns}
        assert shown == type(shown)(**required)


def test_the_examples_of_configurations_show_every_key_that_there_is() -> None:
    shown = f"{example()}\n{SAMPLE}"
    keys = set(re.findall(r"\b([a-z_]+)(?= =|\]|\.)", shown)) | {*tomllib.loads(example()), *tomllib.loads(SAMPLE)}
    for section in sections():
        missing = [name for name in section.__struct_fields__ if name not in keys]
        assert not missing, f"{section.__name__} has {missing}, which neither the README nor the sample shows"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_that_a_document_mentions_exists(document: Path) -> None:
    for path in mentioned_paths(document.read_text()):
        places = [document.parent / path, ROOT / path]
        if path.split("/")[0] in INSIDE_PACKAGE:
            places.append(ROOT / "agent/qkdnode" / path)
        if path.startswith("hil/stations/"):
            continue  # a pattern: stations come with the first rig
        assert any(place.exists() for place in places), path


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_within_a_document_has_its_heading(document: Path) -> None:
    text = document.read_text()
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors(text)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_document_holds_a_path_of_somebodys_machine(document: Path) -> None:
    assert not re.search(r"(?<![\w.])/(home|Users|tmp)/|[A-Z]:\\", document.read_text())
