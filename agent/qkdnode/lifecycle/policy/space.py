"""Every case that documents can tell apart, each once: names that no rule and no clearance tells apart are one group.

So a document is examined in full, and two are compared in full, by looking at a few thousand cases at most.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise, product

import msgspec

from qkdnode.errors import PolicyError
from qkdnode.lifecycle.policy.document import SIZES_BITS, Document, Rule

ANYBODY = "*"  # a name that no document mentions; it can be nobody's
MAX_CASES = 20_000


class Group(msgspec.Struct, frozen=True):
    """Names that the documents do not tell apart."""

    names: tuple[str, ...]

    @property
    def first(self) -> str:
        """One of them, which stands for all."""
        return self.names[0]

    def __str__(self) -> str:
        return ", ".join("any other" if name == ANYBODY else name for name in self.names)


class Sizes(msgspec.Struct, frozen=True):
    """Sizes from `low` to `high` that the documents do not tell apart."""

    key_class: str
    low: int
    high: int


class Space:
    """All cases of some documents. PolicyError if there are more than can be looked at."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self.applications = _groups(
            documents,
            lambda rule: rule.applications,
            [its.name for document in documents for its in document.applications],
            lambda document, name: document.clearance(name),
        )
        self.remotes = _groups(documents, lambda rule: rule.remotes)
        self.links = _groups(documents, lambda rule: rule.links)
        names = dict.fromkeys(its.name for document in documents for its in document.classes)
        self.sizes = tuple(sizes for name in names for sizes in _sizes(documents, name))
        count = len(self)
        if count > MAX_CASES:
            raise PolicyError(
                f"the policy has {count} cases, {MAX_CASES} are looked at: name fewer applications, remotes, links "
                "and sizes one by one"
            )

    def __len__(self) -> int:
        return len(self.applications) * len(self.remotes) * len(self.links) * len(self.sizes)

    def __iter__(self) -> Iterator[tuple[Group, Group, Group, Sizes]]:
        return iter(product(self.applications, self.remotes, self.links, self.sizes))


def _groups(
    documents: Sequence[Document],
    named: Callable[[Rule], tuple[str, ...] | None],
    more: Iterable[str] = (),
    told_by: Callable[[Document, str], str] = lambda document, name: "",
) -> tuple[Group, ...]:
    lists = [(document, [set(named(rule) or ()) for rule in document.rules]) for document in documents]
    names = dict.fromkeys([*more, *(n for d in documents for rule in d.rules for n in named(rule) or ()), ANYBODY])
    groups: dict[object, list[str]] = {}
    for name in names:
        signature = tuple((told_by(d, name), tuple(name in wanted for wanted in its)) for d, its in lists)
        groups.setdefault(signature, []).append(name)
    return tuple(Group(tuple(members)) for members in groups.values())


def _sizes(documents: Sequence[Document], name: str) -> list[Sizes]:
    classes = [its for its in (document.key_class(name) for document in documents) if its is not None]
    listed = {size for its in classes for size in its.sizes_bits or ()}
    if all(its.sizes_bits is not None for its in classes):
        return [Sizes(name, size, size) for size in sorted(listed)]
    starts = {SIZES_BITS.start, *listed, *(size + 8 for size in listed)}
    starts |= {8 * its.byte_limit + 8 for its in classes if its.byte_limit is not None}
    for document in documents:
        starts |= {rule.min_bits for rule in document.rules if rule.min_bits is not None}
        starts |= {rule.max_bits + 8 for rule in document.rules if rule.max_bits is not None}
    cuts = [*sorted(start for start in starts if start in SIZES_BITS), SIZES_BITS.stop + 7]
    return [Sizes(name, low, high - 8) for low, high in pairwise(cuts)]
