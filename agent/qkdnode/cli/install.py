"""`qkdnode install`: the systemd unit, the udev rule, the user and the sample configuration, where the system looks."""

import importlib.resources
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import click
import msgspec

from qkdnode.errors import ConfigError

PLACEHOLDER = "@QKDNODE@"
# Hidden from the unit, or its own.
HIDDEN = tuple(f"/{place}/" for place in ("home", "root", "run/user", "tmp", "var/tmp"))


class Piece(msgspec.Struct, frozen=True):
    """One file: its name in qkdnode/packaging, where it goes below the root, and what it is."""

    source: str
    target: str
    what: str


PIECES = (
    Piece("qkdnode@.service", "etc/systemd/system/qkdnode@.service", "unit of an agent"),
    Piece("70-qkdnode.rules", "etc/udev/rules.d/70-qkdnode.rules", "rights on the devices"),
    Piece("qkdnode.sysusers", "etc/sysusers.d/qkdnode.conf", "user and group of the agents"),
    Piece("sample.toml", "etc/qkdnode/sample.toml", "configuration to copy"),
)

NEXT = """\
Next, as root:
  systemd-sysusers && systemctl daemon-reload
  udevadm control --reload && udevadm trigger --subsystem-match=usb
  qkdnode provision node NAME --directory /etc/qkdnode/NAME.d        (and application, pair: see the README)
  chown -R qkdnode: /etc/qkdnode/NAME.d
  cp /etc/qkdnode/sample.toml /etc/qkdnode/NAME.toml                 (and change it)
  (umask 077; head -c 32 /dev/urandom | base64 > /etc/qkdnode/NAME.root)
  qkdnode doctor --config /etc/qkdnode/NAME.toml
  systemctl enable --now qkdnode@NAME
"""


def text_of(piece: Piece, program: str) -> str:
    """What the file will say, with the program that the unit starts."""
    packaged = importlib.resources.files("qkdnode") / "packaging" / piece.source
    return packaged.read_text(encoding="utf-8").replace(PLACEHOLDER, program)


def program_path() -> str:
    """The `qkdnode` of this installation. ConfigError if it was started in another way and has none."""
    beside = Path(sys.executable).parent / "qkdnode"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("qkdnode")
    if found is None:
        raise ConfigError(
            f"there is no `qkdnode` beside {sys.executable} or on PATH: install the package, or --program"
        )
    return os.path.abspath(found)


def state_of(path: Path, text: str) -> str:
    """What is to be done for a file: `new`, `changed` or `unchanged`."""
    if not path.exists():
        return "new"
    try:
        return "unchanged" if path.read_text(encoding="utf-8") == text else "changed"
    except (OSError, UnicodeDecodeError):
        return "changed"


def put(path: Path, text: str) -> None:
    """Write a file whole, or leave what was there."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        fresh.write_text(text, encoding="utf-8")
        fresh.chmod(0o644)
        fresh.replace(path)
    except OSError as error:
        with suppress(OSError):
            fresh.unlink()
        raise ConfigError(f"cannot write {path}: {error.strerror}: run it as root, or give --root") from None


@click.command(name="install")
@click.option(
    "--root", default="/", show_default=True, type=click.Path(path_type=Path, file_okay=False), help="Below it."
)
@click.option("--program", default=None, help="The `qkdnode` that the unit starts; this one if left out.")
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
def command(root: Path, program: str | None, dry_run: bool) -> None:
    """Install the systemd unit qkdnode@.service, the udev rule, the user qkdnode and a sample configuration.

    Files of an older version are replaced; changes of your own belong into drop-ins. Nothing is started.
    """
    started = program if program is not None else program_path()
    if not started.startswith("/") or any(sign.isspace() or sign in "%\"'\\$" for sign in started):
        raise ConfigError(
            f"the unit cannot start {started!r}: give --program an absolute path without blanks or quotes"
        )
    for piece in PIECES:
        text, path = text_of(piece, started), root / piece.target
        state = state_of(path, text)
        if not dry_run and state != "unchanged":
            put(path, text)
        click.echo(f"{state:10}{path}  {piece.what}")
    if started.startswith(HIDDEN):
        click.echo(
            f"\nThe unit starts {started}, which it hides from itself: install the package elsewhere, "
            "for instance in a venv at /opt/qkdnode, and run `qkdnode install` of there."
        )
    click.echo("\nNothing was written." if dry_run else f"\n{NEXT}", nl=dry_run)
