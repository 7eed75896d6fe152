"""The policy document: TOML, decoded strictly into frozen structs, and written back.

A label is a level and compartments, `secret` or `secret:blue,red`. One dominates another if its level is not lower and
it has every compartment of the other. Times are UTC wall clock in nanoseconds, spans are whole seconds. docs/policy.md
is the description for people.
"""

import tomllib
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from qkdnode.config import Name
from qkdnode.errors import PolicyError

FORMAT: Literal["qkdnode-policy/1"] = "qkdnode-policy/1"
MAX_DOCUMENT_BYTES = 48 * 1024
MAX_TABLES = 256  # of each kind
SIZES_BITS = range(8, 65536 + 1, 8)
SECOND_NS = 10**9
_YEARS_100_S = 3_155_760_000

LabelText = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,30}(:[a-z0-9-]{1,31}(,[a-z0-9-]{1,31}){0,15})?\Z")]
AlgorithmText = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+/-]{0,47}\Z")]
Bits = Annotated[int, Meta(ge=8, le=65536, multiple_of=8)]
Seconds = Annotated[int, Meta(ge=1, le=_YEARS_100_S)]
TimeNs = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Count = Annotated[int, Meta(ge=1, le=2**53)]
Names = Annotated[tuple[Name, ...], Meta(min_length=1, max_length=MAX_TABLES)]
Custodian = Literal["operator", "security-officer", "maintainer"]  # never an auditor: they change nothing


class Purpose(StrEnum):
    """What a key is for."""

    BULK_ENCRYPTION = "bulk-encryption"
    SESSION = "session"
    AUTHENTICATION = "authentication"
    SIGNATURE_SEED = "signature-seed"


class Effect(StrEnum):
    """What a rule does with the cases that it is about."""

    PERMIT = "permit"
    FORBID = "forbid"


class Secrecy(StrEnum):
    """What the secrecy of a key on its way rests on: information theory, or the cost of a computation."""

    ITS = "its"
    COMPUTATIONAL = "computational"


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every table of the document."""


class Custodians(Table, frozen=True):
    """The role that answers for a key in each stage of its life (SP 800-57 part 1, section 7)."""

    pre_operational: Custodian = "operator"
    operational: Custodian = "operator"
    post_operational: Custodian = "security-officer"
    destroyed: Custodian = "security-officer"


class Rotation(Table, frozen=True):
    """When keys of a class go over to their next generation by themselves; what is left out begins no rotation."""

    every_s: Seconds | None = None  # a generation is supplied
    keys: Count | None = None  # that were cut of a generation
    bytes: Count | None = None
    at: TimeNs | None = None  # once, at a date
    on_deprecated: bool = False  # an algorithm of the class, or the one that seals its keys, has become deprecated
    on_degraded: bool = False  # a device of the link alarms, or the link gives less key than its configuration wants


class KeyClass(Table, frozen=True):
    """The terms of keys of one class. What is left out sets no limit, but for a forgotten neighbour: see the last."""

    name: Name
    label: LabelText
    purpose: Purpose
    algorithms: Annotated[tuple[AlgorithmText, ...], Meta(min_length=1, max_length=64)] | None = None
    sizes_bits: Annotated[tuple[Bits, ...], Meta(min_length=1, max_length=64)] | None = None
    secrecy: Secrecy = Secrecy.ITS  # at least this is required of the path
    not_before: TimeNs | None = None
    not_after: TimeNs | None = None
    lifetime_s: Seconds | None = None  # from release
    max_age_at_release_s: Seconds | None = None  # from allocation
    use_limit: Count | None = None
    byte_limit: Count | None = None
    retain_key_s: Annotated[int, Meta(ge=0, le=_YEARS_100_S)] = 0  # after the end of its use
    retain_metadata_s: Seconds | None = None
    legal_hold: bool = False
    release_when_peer_unreachable: bool = False
    rotate_without_acknowledgement: bool = False  # of an application that is away
    rotation: Rotation | None = None
    custodian: Custodians = Custodians()
    decoys: Annotated[int, Meta(ge=0, le=128)] = 0  # for each association


class Application(Table, frozen=True):
    """What an application is cleared for, and how much it may have. One without a table has the lowest clearance."""

    name: Name
    clearance: LabelText
    bits_per_s: Count | None = None
    burst_bits: Count | None = None
    stock_share: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    outstanding_keys: Count | None = None
    reserve_bits: Annotated[int, Meta(ge=0, le=2**53)] = 0


class Rule(Table, frozen=True):
    """A rule is about every case that fits all of what it names; what it leaves out fits any."""

    name: Name
    effect: Effect
    reason: Annotated[str, Meta(max_length=200)] = ""
    applications: Names | None = None
    remotes: Names | None = None
    links: Names | None = None
    classes: Names | None = None
    purposes: Annotated[tuple[Purpose, ...], Meta(min_length=1, max_length=4)] | None = None
    min_bits: Bits | None = None
    max_bits: Bits | None = None
    cleared_for: LabelText | None = None  # applications whose clearance dominates this label
    not_cleared_for: LabelText | None = None  # applications whose clearance does not


class Document(Table, frozen=True):
    """The whole document."""

    format: Literal["qkdnode-policy/1"]
    levels: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=32)]  # lowest first
    title: Annotated[str, Meta(max_length=200)] = ""
    compartments: Annotated[tuple[Name, ...], Meta(max_length=64)] = ()
    classes: Annotated[tuple[KeyClass, ...], Meta(max_length=MAX_TABLES)] = msgspec.field(name="class", default=())
    applications: Annotated[tuple[Application, ...], Meta(max_length=MAX_TABLES)] = msgspec.field(
        name="application", default=()
    )
    rules: Annotated[tuple[Rule, ...], Meta(max_length=MAX_TABLES)] = msgspec.field(name="rule", default=())

    def key_class(self, name: str) -> KeyClass | None:
        """The class of that name."""
        return next((its for its in self.classes if its.name == name), None)

    def application(self, name: str) -> Application | None:
        """The table of an application, if it has one."""
        return next((its for its in self.applications if its.name == name), None)

    def clearance(self, application: str) -> str:
        """What an application is cleared for: the lowest level, if the document does not say."""
        known = self.application(application)
        return self.levels[0] if known is None else known.clearance

    def dominates(self, higher: str, lower: str) -> bool:
        """Whether a label dominates another; an unknown level dominates nothing and is dominated by nothing."""
        (level, own), (wanted, compartments) = split_label(higher), split_label(lower)
        if level not in self.levels or wanted not in self.levels:
            return False
        return self.levels.index(level) >= self.levels.index(wanted) and own >= compartments


def split_label(label: str) -> tuple[str, frozenset[str]]:
    """Level and compartments."""
    level, _, rest = label.partition(":")
    return level, frozenset(rest.split(",")) if rest else frozenset()


def parse(data: bytes, where: str = "policy") -> Document:
    """The document in a TOML text; PolicyError names the first thing that cannot be read, with its place."""
    if len(data) > MAX_DOCUMENT_BYTES:
        raise PolicyError(f"{where}: {len(data)} bytes are over the limit of {MAX_DOCUMENT_BYTES}")
    try:
        raw = tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise PolicyError(f"{where}: not UTF-8: {error.reason}") from None
    except ValueError as error:  # of tomllib, or of an integer with too many digits
        raise PolicyError(f"{where}: not TOML: {error}") from None
    except RecursionError:
        raise PolicyError(f"{where}: arrays or tables nested too deep") from None
    try:
        return msgspec.convert(_with_times(raw, where), Document)
    except msgspec.ValidationError as error:
        raise PolicyError(f"{where}: {_named(str(error), raw)}") from None


def render(document: Document) -> bytes:
    """The document as TOML; `parse` gives the same one."""
    lines = [f"format = {_value(document.format)}"]
    if document.title:
        lines.append(f"title = {_value(document.title)}")
    lines.append(f"levels = {_value(document.levels)}")
    if document.compartments:
        lines.append(f"compartments = {_value(document.compartments)}")
    tables: tuple[tuple[str, Iterable[Table]], ...] = (
        ("class", document.classes), ("application", document.applications), ("rule", document.rules),
    )  # fmt: skip
    for name, found in tables:
        for table in found:
            lines += ["", f"[[{name}]]"]
            for field in msgspec.structs.fields(table):
                value = getattr(table, field.name)
                if value != field.default:
                    shown = _moment(value) if field.name in _TIMES else _value(value)
                    lines.append(f"{field.encode_name} = {shown}")
    return ("\n".join(lines) + "\n").encode()


_TIMES = ("not_before", "not_after")


def _with_times(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """With the dates of classes as nanoseconds. A date without an offset would mean another time on each machine."""
    classes = raw.get("class")
    if not isinstance(classes, list):
        return raw
    made = []
    for table in classes:
        if isinstance(table, dict):
            table = dict(table)
            place = f"{where}: class {table.get('name')!r}"
            for name in _TIMES:
                if name in table:
                    table[name] = _nanoseconds(table[name], f"{place}: `{name}`")
            rotation = table.get("rotation")
            if isinstance(rotation, dict) and "at" in rotation:
                table["rotation"] = {**rotation, "at": _nanoseconds(rotation["at"], f"{place}: `rotation.at`")}
        made.append(table)
    return {**raw, "class": made}


def _nanoseconds(value: Any, place: str) -> int:
    if getattr(value, "tzinfo", None) is None or not hasattr(value, "timestamp"):
        raise PolicyError(f"{place} needs a date and time with its offset, such as 2027-01-01T00:00:00Z")
    try:
        seconds = value.timestamp()
    except (OverflowError, ValueError):
        raise PolicyError(f"{place} is no time that can be") from None
    if seconds != int(seconds) or not 0 <= seconds < 2**33:
        raise PolicyError(f"{place} needs whole seconds, from 1970 to 2242")
    return int(seconds) * SECOND_NS


def _named(message: str, raw: dict[str, Any]) -> str:
    """With the name of the table beside its place in an array: `$.rule[3]` says little."""
    for kind in ("class", "application", "rule"):
        _, found, rest = message.partition(f"$.{kind}[")
        number, closed, _ = rest.partition("]")
        if found and closed and number.isdigit():
            tables = raw.get(kind)
            table = tables[int(number)] if isinstance(tables, list) and int(number) < len(tables) else None
            if isinstance(table, dict) and isinstance(table.get("name"), str):
                return f"{message} ({kind} {table['name'][:31]!r})"
    return message


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float) and not isinstance(value, StrEnum):
        return repr(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, msgspec.Struct):
        pairs = (
            (field.encode_name, _moment(its) if isinstance(value, Rotation) and field.name == "at" else _value(its))
            for field in msgspec.structs.fields(value)
            if (its := getattr(value, field.name)) is not None
        )
        return f"{{ {', '.join(f'{name} = {shown}' for name, shown in pairs)} }}"
    return _quoted(str(value))


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'


def _moment(ns: int) -> str:
    """UTC, by the civil calendar (days from 1970, Gregorian): what reads clocks and calendars is not for this row."""
    days, second = divmod(ns // SECOND_NS, 86_400)
    era, of_era = divmod(days + 719_468, 146_097)
    year_of_era = (of_era - of_era // 1_460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    month_from_march = (5 * of_year + 2) // 153
    day = of_year - (153 * month_from_march + 2) // 5 + 1
    month = month_from_march + 3 if month_from_march < 10 else month_from_march - 9
    year = year_of_era + 400 * era + (month <= 2)
    clock = f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
    return f"{year:04}-{month:02}-{day:02}T{clock}Z"
