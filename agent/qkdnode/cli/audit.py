"""`qkdnode audit export | prove | verify | verify-receipt`."""

import base64
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from qkdnode.audit import receipt
from qkdnode.audit.checkpoint import LOG_KEY_BYTES
from qkdnode.audit.verifier import MAX_LINE_BYTES, Fault, Report, read_lines, verify, verify_receipt
from qkdnode.channel.identity import load_public_node
from qkdnode.cli.reach import addressed, connected, json_option
from qkdnode.cli.show import print_json
from qkdnode.config import load_config
from qkdnode.control.export import export_log, whole_file
from qkdnode.errors import AuditError, AuditUnreadableError, ConfigError
from qkdnode.vault.export_reader import export_audit
from qkdnode.wire.control import ProveEntry


@click.group(name="audit")
def command() -> None:
    """Export the audit log, and verify exports and receipts offline."""


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@addressed
@json_option
@click.option("--key", default=None, help="The node's NAME.public, or its keys in base64: verify against it.")
@click.option("--offline", is_flag=True, help="Read the vault file of --config, not through its agent.")
def export(
    file: Path,
    config_file: Path | None,
    socket_path: Path | None,
    operator_file: Path | None,
    as_json: bool,
    key: str | None,
    offline: bool,
) -> None:
    """Write the audit log of a node to FILE: whole, or not at all. The log holds no secrets.

    From a running agent, through its control socket, it is signed up to its last entry and verified before it is put
    in its place. From the vault file, if the configuration has no control socket or with --offline, it is what the file
    says, also of an agent that is stopped.
    """
    config = None if config_file is None else load_config(config_file)
    expected = None if key is None else public_key(key)
    if offline or (config is not None and config.control is None and socket_path is None):
        if config is None or config_file is None:
            raise ConfigError("whose vault? --offline needs --config NODE.toml")
        leaves = _export_offline(config_file.parent / config.node.vault, file, expected)
    else:
        with connected(config_file, socket_path, operator_file) as client:
            leaves = export_log(client, file, expected)
    if as_json:
        print_json({"file": str(file), "entries": leaves})
    else:
        click.echo(f"{file}: {leaves} entries")


def _export_offline(vault: Path, file: Path, expected: bytes | None) -> int:
    with whole_file(file) as (unfinished, out):
        leaves = export_audit(vault, out.write)
        out.flush()
        if expected is not None and not (report := verify_export(unfinished, expected)).valid:
            raise AuditError(f"what vault {vault} says does not verify: {report.first_bad}")
    return leaves


@command.command()
@click.argument("position", type=click.IntRange(min=0))
@click.argument("file", type=click.Path(path_type=Path))
@addressed
@json_option
def prove(
    position: int,
    file: Path,
    config_file: Path | None,
    socket_path: Path | None,
    operator_file: Path | None,
    as_json: bool,
) -> None:
    """Write the receipt of entry POSITION of a running node's log to FILE: whoever has it needs no more of the log.

    It is a C2SP tlog-proof, under the newest checkpoint that the neighbour has signed too, if one has the entry.
    """
    with connected(config_file, socket_path, operator_file) as client:
        text: str = client.ask(ProveEntry(position=position)).receipt
    with whole_file(file) as (_, out):
        out.write(text)
    if as_json:
        print_json({"file": str(file), "entry": position})
    else:
        click.echo(f"{file}: the receipt of entry {position}")


@command.command(name="verify")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--key", required=True, help="The node's NAME.public, or its keys in base64.")
@click.option("--witness", multiple=True, help="A neighbour's NAME.public: count what it has signed. May be repeated.")
@click.option("--receipt", "is_receipt", is_flag=True, help="FILE is the receipt of one entry.")
@json_option
def verify_command(file: Path, key: str, witness: tuple[str, ...], is_receipt: bool, as_json: bool) -> None:
    """Verify FILE against the node's public key: exit 0 valid, 1 invalid, 2 unreadable."""
    witnesses = [public_key(one) for one in witness]
    if is_receipt:
        _verify_entry(file, public_key(key), witnesses, as_json)
        return
    report = verify_export(file, public_key(key), witnesses)
    if as_json:
        print_json(report._asdict())
    else:
        click.echo(report)
    sys.exit(0 if report.valid else 1)


def _verify_entry(file: Path, key: bytes, witnesses: Sequence[bytes], as_json: bool) -> None:
    try:
        with file.open("rb") as opened:
            found = verify_receipt(opened.read(MAX_LINE_BYTES + 1), key, witnesses)
    except OSError as error:
        raise AuditUnreadableError(f"{file}: {error.strerror}") from None
    except Fault as fault:
        click.echo(f"INVALID: {fault}")
        sys.exit(1)
    if as_json:
        print_json(found._asdict())
    else:
        click.echo(found)


@command.command(name="verify-receipt")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--key", required=True, help="The node's NAME.public, or its keys in base64.")
@json_option
def verify_receipt_command(file: Path, key: str, as_json: bool) -> None:
    """Verify a destroyed key's receipt, or a Batch's provenance, in FILE: exit 0 valid, 1 invalid, 2 unreadable."""
    try:
        with file.open("rb") as opened:
            verdict = receipt.verify(opened.read(receipt.MAX_BYTES + 1), public_key(key))
    except OSError as error:
        raise AuditUnreadableError(f"{file}: {error.strerror}") from None
    if as_json:
        print_json({**dataclasses.asdict(verdict), "valid": verdict.valid})
    else:
        click.echo(receipt.show(verdict))
    sys.exit(0 if verdict.valid else 1)


def public_key(text: str) -> bytes:
    """What verifies a node's log, given as its NAME.public file or in base64: Ed25519, then ML-DSA-44."""
    if _is_file(text):
        return load_public_node(text).log_key
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError:
        raise ConfigError(f"--key {text[:80]!r} is neither a file nor base64") from None
    if len(key) != LOG_KEY_BYTES:
        raise ConfigError(f"--key holds {len(key)} bytes; the keys of a log have {LOG_KEY_BYTES}: give NAME.public")
    return key


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # longer than a path may be, or with a zero byte
        return False


def verify_export(file: Path, key: bytes, witnesses: Sequence[bytes] = ()) -> Report:
    """The verdict on an export file; AuditUnreadableError if it cannot be read."""
    try:
        with file.open("rb") as lines:
            return verify(read_lines(lines), key, witnesses)
    except OSError as error:
        raise AuditUnreadableError(f"{file}: {error.strerror}") from None
