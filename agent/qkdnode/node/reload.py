"""A configuration read anew: what of it can take effect in a running agent, and what has to wait for a restart."""

from pathlib import Path
from typing import Any

import msgspec

from qkdnode.access.allowlist import AllowList
from qkdnode.access.identities import ApplicationIdentity
from qkdnode.access.rules import Role
from qkdnode.channel.identity import load_public_application
from qkdnode.channel.operator import load_public_operator
from qkdnode.config import ApplicationSection, AssociationSection, Config
from qkdnode.control.conversation import Operator, Operators
from qkdnode.errors import ConfigError
from qkdnode.node.algorithms import registry_of


class Reading(msgspec.Struct, frozen=True):
    """What a reload does: the configuration in force after it, and what to say."""

    config: Config
    operators: tuple[Operator, ...]
    applications: AllowList[ApplicationIdentity]
    new_associations: tuple[AssociationSection, ...]
    applied: tuple[str, ...]
    needs_restart: tuple[str, ...]


def load_operators(config: Config, base: Path) -> tuple[Operator, ...]:
    """The operators that a configuration names. ConfigError if a file is not what it says, or two share a key."""
    found = []
    for section in config.operator:
        identity = load_public_operator(base / section.public)
        if identity.name != section.name:
            raise ConfigError(f"operator {section.name!r}: {section.public} is of operator {identity.name!r}")
        found.append(Operator(identity, frozenset(Role(role) for role in section.roles)))
    Operators(found)
    return tuple(found)


def load_applications(config: Config, base: Path) -> AllowList[ApplicationIdentity]:
    """The applications that a configuration names. ConfigError if a file is not what it says, or two share a key."""
    return AllowList([_load_application(section, base) for section in config.application])


def compare(
    running: Config, read: Config, base: Path, known: AllowList[ApplicationIdentity], operators: Operators
) -> Reading:
    """What changes from the running configuration to the one that was read. ConfigError, and nothing changes, if not
    all that it names can be had."""
    registry_of(read)
    new_operators, applications = load_operators(read, base), load_applications(read, base)
    applied = [*_changes("operator", _by_name(running.operator), _by_name(read.operator))]
    applied += [
        f"operator {operator.name}: new key"
        for operator in new_operators
        if (before := operators.named(operator.name)) is not None and before.identity != operator.identity
    ]
    waiting = [
        name
        for name in ("node", "supply", "events", "watch", "alarms", "algorithms")
        if getattr(running, name) != getattr(read, name)
    ]
    waiting += _changes("qrng", _by_serial(running.qrng), _by_serial(read.qrng))
    waiting += _changes("link", _by_name(running.link), _by_name(read.link))
    waiting += _changes("subscriber", _by_name(running.subscriber), _by_name(read.subscriber))
    control = running.control
    if read.control is None or control is None or read.control.socket != control.socket:
        waiting += ["control.socket"] if read.control != control else []
    elif read.control != control:
        applied.append("control.uids")
        control = read.control
    links = {link.name for link in running.link}
    changed: dict[str, Any] = {"operator": read.operator, "control": control, "asset": read.asset}
    applied += ["asset"] if running.asset != read.asset else []
    if running.supply is None:
        waiting += [name for name in ("application", "association") if getattr(running, name) != getattr(read, name)]
        applications = known
    else:
        changed |= {"application": read.application}
        changed |= {"association": tuple(entry for entry in read.association if entry.link in links)}
        applied += _changes("application", _by_name(running.application), _by_name(read.application))
        applied += [
            f"application {section.name}: new key"
            for section in read.application
            if (held := known.named(section.name)) is not None and held != applications.named(section.name)
        ]
        applied += _changes("association", _by_pair(running.association), _by_pair(changed["association"]))
        waiting += [f"association {_pair(entry)}" for entry in read.association if entry.link not in links]
    config = msgspec.structs.replace(running, **changed)
    services = {its.name: its.services for its in running.application}
    known_otherwise = {its.name for its in config.application if services.get(its.name) != its.services}
    new = tuple(
        entry for entry in config.association if entry not in running.association or entry.local in known_otherwise
    )
    return Reading(config, new_operators, applications, new, tuple(applied), tuple(waiting))


def _load_application(section: ApplicationSection, base: Path) -> ApplicationIdentity:
    identity = load_public_application(base / section.public)
    if identity.name != section.name:
        raise ConfigError(f"application {section.name!r}: {section.public} is of application {identity.name!r}")
    return identity


def _changes(what: str, before: dict[str, object], after: dict[str, object]) -> list[str]:
    told = [f"{what} {name}: added" for name in after if name not in before]
    told += [f"{what} {name}: removed" for name in before if name not in after]
    return told + [f"{what} {name}: changed" for name in after if name in before and before[name] != after[name]]


def _by_name(sections: tuple[object, ...]) -> dict[str, object]:
    return {section.name: section for section in sections}  # type: ignore[attr-defined]


def _by_serial(sections: tuple[object, ...]) -> dict[str, object]:
    return {section.serial: section for section in sections}  # type: ignore[attr-defined]


def _by_pair(sections: tuple[AssociationSection, ...]) -> dict[str, object]:
    return {_pair(section): section for section in sections}


def _pair(section: AssociationSection) -> str:
    return f"{section.local}<->{section.remote} over {section.link}"
