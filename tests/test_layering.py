"""The folder list is the architecture: a package imports only from rows below its own."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "agent" / "qkdnode"

ROWS = (
    {"__main__"},
    {"cli"},
    {"node"},
    {"link", "supply", "control", "watch", "client"},
    {"device", "channel", "vault", "workers"},
    {"distill", "authentication", "lifecycle", "access"},
    {"wire", "secrecy", "audit"},
    {"native", "config", "ids", "errors", "__init__"},
)
ROW_OF = {name: row for row, names in enumerate(ROWS) for name in names}

# Sans-IO rows: time, randomness and the results of computation arrive as events.
PURE = ROWS[5] | ROWS[6] | {"native"}
IMPURE_MODULES = {
    "asyncio", "zmq", "usb", "socket", "threading", "time", "random", "secrets", "os", "logging", "structlog",
    "datetime", "subprocess", "sqlite3", "apsw", "select", "queue", "multiprocessing", "signal", "tempfile",
    "concurrent",
}  # fmt: skip

# Programs that strangers run: what they do as such is theirs.
PROGRAMS = {"audit/verifier.py": {"concurrent"}}

# Where third parties may be imported; all others are free.
HOMES = {
    "usb": {"device"},
    "zmq": {"channel", "supply", "client"},
    "cryptography": {"vault", "channel", "supply", "client", "node", "audit", "device"},
    "apsw": {"vault"},
    "sqlite3": set(),
}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py")) + sorted(ROOT.rglob("*.pyi"))


def place(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[str]:
    package = ["qkdnode", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            if base == "qkdnode":
                yield from (f"qkdnode.{alias.name}" for alias in node.names)
            else:
                yield base


def breaches(path: Path) -> list[str]:
    here = place(path)
    found = []
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "qkdnode":
            there = rest.split(".")[0] or "__init__"
            if there == "__version__":
                continue
            if there not in ROW_OF:
                found.append(f"{path}: imports {name}, which is in no row")
            elif ROW_OF[there] < ROW_OF[here] or (
                ROW_OF[there] == ROW_OF[here] and there != here and ROW_OF[here] != len(ROWS) - 1
            ):
                found.append(f"{path}: {here} (row {ROW_OF[here]}) imports {name} (row {ROW_OF[there]})")
        if here in PURE and top in IMPURE_MODULES - PROGRAMS.get(str(path.relative_to(ROOT)), set()):
            found.append(f"{path}: {here} is sans-IO and imports {name}")
        if top in HOMES and here not in HOMES[top]:
            found.append(f"{path}: {name} has its home in {sorted(HOMES[top])}")
    return found


def test_every_package_has_a_row() -> None:
    assert {place(path) for path in modules()} <= set(ROW_OF)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_layers(path: Path) -> None:
    assert breaches(path) == []


def test_a_breach_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the walker sees absolute, relative and third-party breaches."""
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "wire").mkdir()
    bad = tmp_path / "wire" / "bad.py"
    bad.write_text("import time\nfrom ..vault import store\nfrom qkdnode import supply\nimport zmq\n")
    assert len(breaches(bad)) == 5
