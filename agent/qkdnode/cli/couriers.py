"""`qkdnode rotate --offline | approve | import`: rotations over a link that is cut, by files that a courier carries."""

import os
import time
from pathlib import Path
from typing import Any

import click

from qkdnode.access.approvals import MAX_APPROVAL_BYTES, encode_approval
from qkdnode.access.approvals import approve as sign
from qkdnode.channel.operator import load_operator
from qkdnode.cli.reach import asking, json_option
from qkdnode.cli.show import moment, print_json
from qkdnode.control.client import Client
from qkdnode.errors import ConfigError
from qkdnode.vault.couriers import file_digest, guarded_request
from qkdnode.wire.control import CarriedIn, CarryIn, CarryOut, CourierFile, RotationEntry, Rotations
from qkdnode.wire.courier import MAX_FILE_BYTES, decode_file

STEADY = "steady"
WAITING = frozenset({"offered", "cut"})  # what ends by itself in seconds, if the application here is there
LOOK_S = 0.2
NS = 10**9
_file = click.argument("file", type=click.Path(path_type=Path))


class WithParts(click.Command):
    """`rotate` takes an association, or one of these words."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """As that of the part that the first word names."""
        part = PARTS.get(args[0]) if args else None
        if part is None:
            return super().make_context(info_name, args, parent, **extra)
        return part.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)


def write_file(
    client: Client,
    chosen: list[RotationEntry],
    out: Path,
    keys: int,
    size_bits: int,
    *,
    again: bool,
    as_json: bool,
) -> None:
    """Have the file of one association written."""
    if len(chosen) != 1:
        raise click.UsageError(f"--offline is about one association, not {len(chosen)}: give LOCAL:REMOTE and --link")
    _demand_whole_bytes(size_bits)
    _demand_new(out)
    its = chosen[0]
    made = client.ask(
        CarryOut(local=its.local, remote=its.remote, link=its.link, keys=keys, size_bits=size_bits, again=again)
    )
    _keep(out, made)
    if as_json:
        print_json(_shown(made, out))
    else:
        _tell(made, out)


@click.command()
@_file
@click.option("--as", "operator_file", envvar="QKDNODE_OPERATOR", type=click.Path(path_type=Path), help="Who approves.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Where to write the approval.")
@click.option("--valid-hours", default=24.0, show_default=True, type=click.FloatRange(0, 168, min_open=True))
@json_option
def approve(file: Path, operator_file: Path | None, out: Path, valid_hours: float, as_json: bool) -> None:
    """Approve that FILE is imported at the node that it is for, as the person of --as. No agent is asked.

    What is shown is what FILE says of itself; whether that is true only the import can tell. Compare the digest with
    that of whoever else approves, and ask the other site whether it sent the file.
    """
    data = _read(file, MAX_FILE_BYTES)
    request = guarded_request(data)
    if operator_file is None:
        raise ConfigError("who approves? Give --as NAME.operator")
    expires_ns = time.time_ns() + int(valid_hours * 3600 * NS)
    with load_operator(operator_file) as operator:
        approval, who = sign(request, operator.name, expires_ns, operator.sign), operator.name
    out.write_bytes(encode_approval(approval))
    if as_json:
        print_json(approval)
        return
    its = decode_file(data).heading
    click.echo(
        f"{out}: {who} approves that {its.receiver} imports file {its.number} of {its.sender}, about generation "
        f"{its.generation} of {its.remote}:{its.local} over {its.link}, until {moment(expires_ns)}"
    )
    click.echo(f"digest {file_digest(data)}: compare it with that of whoever else approves")


@click.command(name="import")
@_file
@click.option(
    "--approval", "approvals", multiple=True, type=click.Path(path_type=Path), help="A file of `rotate approve`; two."
)
@click.option("--answer", type=click.Path(path_type=Path), default=None, help="Write what goes back. It must be new.")
@click.option("--keys", default=32, show_default=True, type=click.IntRange(1, 256), help="First keys, if none are cut.")
@click.option("--size", "size_bits", default=256, show_default=True, type=click.IntRange(8, 65536), help="Of these.")
@click.option("--wait", "wait_s", default=15.0, show_default=True, help="With --answer: for the application here.")
@asking
def import_(
    client: Client,
    file: Path,
    approvals: tuple[Path, ...],
    answer: Path | None,
    keys: int,
    size_bits: int,
    wait_s: float,
    as_json: bool,
) -> None:
    """Import FILE of the other end of a link that is cut, as the people of the approvals want."""
    _demand_whole_bytes(size_bits)
    if answer is not None:
        _demand_new(answer)
    signed = tuple(_read(path, MAX_APPROVAL_BYTES) for path in approvals)
    done: CarriedIn = client.ask(CarryIn(file=_read(file, MAX_FILE_BYTES), approvals=signed))
    entry, made = done.rotation, None
    if answer is not None:
        entry = _settled(client, entry, wait_s)
        if entry.phase != STEADY or done.waits:
            made = client.ask(
                CarryOut(
                    local=entry.local,
                    remote=entry.remote,
                    link=entry.link,
                    keys=keys,
                    size_bits=size_bits,
                    begin=False,
                )
            )
            _keep(answer, made)
            entry = made.rotation
    if as_json:
        answered = None if made is None or answer is None else _shown(made, answer)
        print_json({"imported": done, "answer": answered})
        return
    what = "was imported already" if done.again else f"is imported, {done.messages} messages followed"
    click.echo(f"{file}: number {done.number} {what}{f', {done.left} left until another' * bool(done.left)}")
    if made is not None and answer is not None:
        _tell(made, answer)
        return
    click.echo(f"{entry.local}:{entry.remote} over {entry.link} is {entry.phase}, generation {entry.generation}")
    if answer is not None:
        click.echo("no answer is needed: nothing waits for the other end")


PARTS: dict[str, click.Command] = {"approve": approve, "import": import_}


def _settled(client: Client, entry: RotationEntry, wait_s: float) -> RotationEntry:
    """How it stands once the application here has accepted, or the wait is over."""
    until = time.monotonic() + wait_s
    while entry.phase in WAITING and time.monotonic() < until:
        time.sleep(LOOK_S)
        (entry,) = client.ask(Rotations(local=entry.local, remote=entry.remote, link=entry.link)).rotations
    return entry


def _tell(made: CourierFile, out: Path) -> None:
    its = made.rotation
    click.echo(
        f"{out}: number {made.number} for the other end of {its.local}:{its.remote} over {its.link}, {made.messages} "
        f"messages, {made.cut} keys cut; {its.phase}, from generation {its.generation} to {its.number or 'the next'}"
    )
    click.echo(f"digest {file_digest(made.file)}: tell it to the other site by another way")


def _shown(made: CourierFile, out: Path) -> dict[str, object]:
    return {
        "file": str(out),
        "digest": file_digest(made.file),
        "number": made.number,
        "messages": made.messages,
        "cut": made.cut,
        "rotation": made.rotation,
    }


def _demand_whole_bytes(size_bits: int) -> None:
    if size_bits % 8:
        raise click.BadParameter("a key has whole bytes: a multiple of 8", param_hint="--size")


def _demand_new(path: Path) -> None:
    """Before anything is done for a file that could not be written."""
    if path.exists():
        raise ConfigError(f"{path} is there already: name a new file")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"cannot write into {path.parent}")


def _keep(path: Path, made: CourierFile) -> None:
    """The vault has the file whatever becomes of this one."""
    its = made.rotation
    try:
        with open(path, "xb") as file:
            file.write(made.file)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror}; the node has the file: `qkdnode rotate {its.local}:{its.remote} "
            f"--link {its.link} --offline --again --out FILE` writes it again"
        ) from None


def _read(path: Path, most: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
