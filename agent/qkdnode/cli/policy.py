"""`qkdnode policy check | diff | explain | approve | apply | rollback | show`: what keys may be used for."""

import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from qkdnode.access.approvals import approve as sign
from qkdnode.access.approvals import encode_approval
from qkdnode.channel.operator import load_operator
from qkdnode.cli.reach import addressed, asking, connected, json_option
from qkdnode.cli.show import console, moment, print_json, table
from qkdnode.control.client import Client
from qkdnode.errors import ConfigError, PolicyError
from qkdnode.lifecycle.algorithms import Status, status_of
from qkdnode.lifecycle.policy.check import Finding
from qkdnode.lifecycle.policy.check import check as findings_of
from qkdnode.lifecycle.policy.decision import document_digest
from qkdnode.lifecycle.policy.difference import difference
from qkdnode.lifecycle.policy.document import MAX_DOCUMENT_BYTES, Document, parse
from qkdnode.node.algorithms import day_of
from qkdnode.node.policy import ALGORITHMS
from qkdnode.vault.policies import guarded_request
from qkdnode.wire.control import PolicyApply, PolicyExplain, PolicyExplained, PolicyShow, PolicyShown

VALID_HOURS = 24.0
NS = 10**9
_file = click.argument("file", type=click.Path(path_type=Path))
_approvals = click.option(
    "--approval",
    "approvals",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A file of `policy approve`; two at least.",
)


@click.group(name="policy")
def command() -> None:
    """Look at, approve and change the policy: what keys are for, how long, and for whom."""


@command.command()
@_file
@json_option
def check(file: Path, as_json: bool) -> None:
    """Look for everything that is wrong with FILE, without an agent. Exit status 1 if it could not be applied."""
    data = _read(file)
    try:
        found = _findings(parse(data, str(file)))
    except PolicyError as error:
        if not as_json:
            raise
        print_json({"sound": False, "digest": document_digest(data).hex(), "findings": [], "unreadable": str(error)})
        sys.exit(1)
    sound = not any(finding.error for finding in found)
    if as_json:
        print_json({"sound": sound, "digest": document_digest(data).hex(), "findings": found, "unreadable": None})
    else:
        for finding in found:
            click.echo(str(finding))
        click.echo(
            f"{file}: {'can be applied' if sound else 'cannot be applied'}, digest {document_digest(data).hex()}"
        )
    if not sound:
        sys.exit(1)


def _findings(document: Document) -> tuple[Finding, ...]:
    """By the registry of this software today; a node's configuration may be stricter."""
    today = day_of(time.time_ns())
    standing = {name: status_of(name, today) for name in ALGORITHMS}
    disallowed, deprecated = (
        [name for name, its in standing.items() if its is status] for status in (Status.DISALLOWED, Status.DEPRECATED)
    )
    return findings_of(document, frozenset(ALGORITHMS), disallowed, deprecated)


@command.command()
@click.argument("new")
@click.argument("old", required=False)
@addressed
@json_option
def diff(
    new: str,
    old: str | None,
    config_file: Path | None,
    socket_path: Path | None,
    operator_file: Path | None,
    as_json: bool,
) -> None:
    """Show what changes if NEW takes the place of OLD: each a file or the number of a version; OLD: the one in force.

    An agent is asked only for versions by number.
    """
    with ExitStack() as stack:
        reached: list[Client] = []

        def client() -> Client:
            if not reached:
                reached.append(stack.enter_context(connected(config_file, socket_path, operator_file)))
            return reached[0]

        def document(named: str | None) -> Document:
            if named is None or named.isdigit():
                number = None if named is None else int(named)
                shown: PolicyShown = client().ask(PolicyShow(number=number))
                return parse(shown.document.encode(), f"version {shown.number}")
            return parse(_read(Path(named)), named)

        found = difference(document(old), document(new))
    if as_json:
        print_json({"changes": found})
    elif found:
        console().print(
            table(("change", "about", "before", "after"), ((c.kind, c.about, c.before, c.after) for c in found))
        )
    else:
        click.echo("nothing changes")


@command.command()
@click.option("--application", required=True, help="The application here.")
@click.option("--remote", required=True, help="The application at the far end.")
@click.option("--link", required=True)
@click.option("--class", "key_class", default=None, help="Keys of this class; else of the first that is allowed.")
@click.option("--size", "size_bits", default=256, show_default=True, type=click.IntRange(8, 65536), help="In bits.")
@asking
def explain(
    client: Client, application: str, remote: str, link: str, key_class: str | None, size_bits: int, as_json: bool
) -> None:
    """Show which rule decides on a case now, and all terms. Exit status 0 whether it is allowed or denied."""
    if size_bits % 8:
        raise click.BadParameter("a key has whole bytes: a multiple of 8", param_hint="--size")
    found: PolicyExplained = client.ask(
        PolicyExplain(application=application, remote=remote, link=link, key_class=key_class, size_bits=size_bits)
    )
    if as_json:
        print_json(found)
        return
    rows: list[tuple[str, object]] = [
        ("decision", "allowed" if found.allowed else "denied"),
        ("rule", found.rule),
        ("reason", found.reason),
        ("policy", found.policy),
        ("class", found.key_class),
        ("clearance", found.clearance),
        ("configured", "yes" if found.configured else "no: without an [[association]] there is no key either"),
        *_terms("term", found.terms),
        *_terms("quota", found.quotas),
    ]
    console().print(table(("", ""), rows))


@command.command()
@_file
@addressed
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Where to write the approval.")
@click.option("--valid-hours", default=VALID_HOURS, show_default=True, type=click.FloatRange(0, 168, min_open=True))
@click.option("--node", default=None, help="Without an agent: the node that it is for.")
@click.option("--number", default=None, type=click.IntRange(1), help="Without an agent: the version that it becomes.")
@click.option("--predecessor", default=None, help="Without an agent: the digest of the version before, as shown.")
@json_option
def approve(
    file: Path,
    config_file: Path | None,
    socket_path: Path | None,
    operator_file: Path | None,
    out: Path,
    valid_hours: float,
    node: str | None,
    number: int | None,
    predecessor: str | None,
    as_json: bool,
) -> None:
    """Approve FILE as the next version of a node's policy, as the person of --as.

    Number and predecessor are asked of the agent, or given with --node, --number and --predecessor: then the key needs
    not be near the node. Read FILE and its `policy diff` first: you answer for it.
    """
    data = _read(file)
    errors = [finding for finding in _findings(parse(data, str(file))) if finding.error]
    if errors:
        raise PolicyError(f"{file} could not be applied: {errors[0]}; see `qkdnode policy check`")
    given = (node, number, predecessor)
    if any(value is not None for value in given):
        if node is None or number is None or predecessor is None:
            raise ConfigError("--node, --number and --predecessor go together")
        name, becomes, before = node, number, _digest(predecessor)
    else:
        with connected(config_file, socket_path, operator_file) as client:
            shown: PolicyShown = client.ask(PolicyShow())
        name, becomes, before = shown.node, shown.newest + 1, bytes.fromhex(shown.newest_digest)
    if operator_file is None:
        raise ConfigError("who approves? Give --as NAME.operator")
    expires_ns = time.time_ns() + int(valid_hours * 3600 * NS)
    with load_operator(operator_file) as operator:
        approval = sign(guarded_request(name, becomes, before, data), operator.name, expires_ns, operator.sign)
        who = operator.name
    out.write_bytes(encode_approval(approval))
    if as_json:
        print_json(approval)
        return
    click.echo(f"{out}: {who} approves {file} as version {becomes} of the policy of {name}, until {moment(expires_ns)}")
    click.echo(f"digest {document_digest(data).hex()}: compare it with that of whoever else approves")


@command.command()
@_file
@_approvals
@asking
def apply(client: Client, file: Path, approvals: tuple[Path, ...], as_json: bool) -> None:
    """Make FILE the policy, as the people of the approvals want. It is in force at once; nothing is restarted."""
    files = tuple(map(_read, approvals))
    _applied(client.ask(PolicyApply(document=_read(file), approvals=files)), as_json)


@command.command()
@click.argument("number", type=click.IntRange(1))
@_approvals
@asking
def rollback(client: Client, number: int, approvals: tuple[Path, ...], as_json: bool) -> None:
    """Make the document of version NUMBER the policy again, as a new version that people have approved.

    They approve what `policy show NUMBER --document` prints.
    """
    files = tuple(map(_read, approvals))
    _applied(client.ask(PolicyApply(repeats=number, approvals=files)), as_json)


@command.command()
@click.argument("number", required=False, type=click.IntRange(0))
@click.option("--document", "only_document", is_flag=True, help="Print the document alone, to the byte.")
@asking
def show(client: Client, number: int | None, only_document: bool, as_json: bool) -> None:
    """Show version NUMBER of the policy, or the one in force; version 0 is what holds before any was applied."""
    shown: PolicyShown = client.ask(PolicyShow(number=number))
    if only_document:
        click.echo(shown.document, nl=False)
        return
    if as_json:
        print_json(shown)
        return
    approved = ", ".join(f"{one.operator} as {one.role}" for one in shown.approvals)
    rows: list[tuple[str, object]] = [
        (
            "version",
            f"{shown.number}{' (in force)' if shown.in_force else ''}{' (built in)' if not shown.number else ''}",
        ),
        ("digest", shown.digest),
        ("previous", shown.previous),
        ("document", shown.document_digest),
        ("repeats", shown.repeats),
        ("applied", moment(shown.applied_ns)),
        ("by", shown.applied_by),
        ("approved by", approved),
        ("withheld", ", ".join(f"{rule} {keys}" for rule, keys in sorted(shown.withheld.items()))),
        ("the next one", f"number {shown.newest + 1}, predecessor {shown.newest_digest}"),
    ]
    console().print(table(("", ""), rows))
    click.echo()
    click.echo(shown.document, nl=False)


def _applied(shown: PolicyShown, as_json: bool) -> None:
    if as_json:
        print_json(shown)
        return
    what = "" if shown.repeats is None else f", the document of version {shown.repeats}"
    who = " and ".join(f"{one.operator} ({one.role})" for one in shown.approvals)
    click.echo(f"version {shown.number} of the policy is in force{what}; approved by {who}")
    click.echo(f"the next one: number {shown.newest + 1}, predecessor {shown.newest_digest}")


def _terms(kind: str, values: Mapping[str, Any] | None) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for name, value in (values or {}).items():
        if name == "name" or value is None:
            continue
        if name in ("not_before", "not_after"):
            value = moment(value)
        elif isinstance(value, Mapping):
            value = ", ".join(f"{stage}: {role}" for stage, role in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        rows.append((f"{kind}: {name}", "yes" if value is True else "no" if value is False else value))
    return rows


def _digest(text: str) -> bytes:
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise ConfigError("--predecessor is a digest of 64 hexadecimal digits, as `qkdnode policy show` shows it")
    return digest


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
