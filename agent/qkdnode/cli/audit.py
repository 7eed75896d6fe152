"""`qkdnode audit export | verify`."""

import base64
import sys
from pathlib import Path

import click

from qkdnode.audit.verifier import Report, read_lines, verify
from qkdnode.channel.identity import load_public
from qkdnode.config import load_config
from qkdnode.errors import AuditUnreadableError, ConfigError
from qkdnode.vault.export_reader import export_audit


@click.group(name="audit")
def command() -> None:
    """Export the audit log, and verify an export offline."""


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--config", "config_file", required=True, type=click.Path(path_type=Path), help="The node's TOML file.")
def export(file: Path, config_file: Path) -> None:
    """Write the audit log of a node to FILE, while its agent runs or not. The log holds no secrets."""
    config = load_config(config_file)
    with file.open("w", encoding="utf-8") as out:
        leaves = export_audit(config_file.parent / config.node.vault, out.write)
    click.echo(f"{file}: {leaves} entries")


@command.command(name="verify")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--key", required=True, help="The node's NAME.public, or its Ed25519 key in base64.")
def verify_command(file: Path, key: str) -> None:
    """Verify FILE against the node's public key: exit 0 valid, 1 invalid, 2 unreadable."""
    report = verify_export(file, public_key(key))
    click.echo(report)
    sys.exit(0 if report.valid else 1)


def public_key(text: str) -> bytes:
    """The 32 bytes of an Ed25519 key given as base64, or as a NAME.public file."""
    if _is_file(text):
        text = load_public(text).ed25519
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError:
        raise ConfigError(f"--key {text!r} is neither a file nor base64") from None
    if len(key) != 32:
        raise ConfigError(f"--key holds {len(key)} bytes; an Ed25519 key has 32")
    return key


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # longer than a path may be, or with a zero byte
        return False


def verify_export(file: Path, key: bytes) -> Report:
    """The verdict on an export file; AuditUnreadableError if it cannot be read."""
    try:
        with file.open("rb") as lines:
            return verify(read_lines(lines), key)
    except OSError as error:
        raise AuditUnreadableError(f"{file}: {error.strerror}") from None
