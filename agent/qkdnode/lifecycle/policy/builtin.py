"""The policy of a node to which none was applied, version 0: what the configuration's associations name, no more."""

from collections.abc import Iterable
from typing import Any

import msgspec

from qkdnode.lifecycle.policy.document import FORMAT, Document, Effect, KeyClass, Rule

VERSION = 0
LEVEL = "open"


class Configured(msgspec.Struct, frozen=True):
    """An association with the class and purpose that its keys have as long as no policy says otherwise."""

    application: str
    remote: str
    link: str
    key_class: str
    purpose: str


def default_document(configured: Iterable[Configured]) -> Document:
    """Each association may have keys of its class in any size, for ever and at any age."""
    classes: dict[str, KeyClass] = {}
    rules = []
    for number, its in enumerate(configured, 1):
        purpose: Any = its.purpose
        terms = KeyClass(name=its.key_class, label=LEVEL, purpose=purpose)
        classes.setdefault(its.key_class, terms)
        rules.append(
            Rule(
                name=f"association-{number}",
                effect=Effect.PERMIT,
                reason="the configuration names this association, and no policy was applied",
                applications=(its.application,),
                remotes=(its.remote,),
                links=(its.link,),
                classes=(its.key_class,),
            )
        )
    return Document(
        format=FORMAT,
        title="built in: the associations of the configuration",
        levels=(LEVEL,),
        classes=tuple(classes.values()),
        rules=tuple(rules),
    )
