"""A witness: it signs what a log grows to, and finds every rewrite, fork and rollback of it."""

import random
from collections.abc import Callable

import pytest
from merkle_proofs import consistency_proof

from qkdnode.audit.checkpoint import Checkpoint
from qkdnode.audit.merkle import EMPTY_ROOT, root_of
from qkdnode.audit.witness import NOTHING, Finding, Seen, judge

Log = list[bytes]


def leaves(draws: random.Random, count: int) -> Log:
    return [draws.randbytes(32) for _ in range(count)]


def shown(seen: Seen, log: Log, old_size: int | None = None, proof: tuple[bytes, ...] | None = None) -> Finding:
    """What a witness that has seen one checkpoint finds of this log."""
    start = seen.size if old_size is None else old_size
    if proof is None:
        proof = consistency_proof(log, start) if start <= len(log) else ()
    return judge(seen, start, proof, Checkpoint("a.audit", len(log), root_of(log)))


def test_a_log_that_only_grows_is_signed_at_every_size() -> None:
    draws = random.Random(1)
    log, seen = leaves(draws, 0), NOTHING
    for _ in range(150):
        log += leaves(draws, draws.choice((0, 1, 2, 7, 31)))
        assert shown(seen, log) is Finding.GOES_ON
        seen = Seen(len(log), root_of(log))


def rewritten(log: Log, draws: random.Random) -> Log:
    """One entry that was signed is another now, and the log goes on."""
    changed = list(log)
    changed[draws.randrange(len(log))] = draws.randbytes(32)
    return changed + leaves(draws, draws.randrange(40))


def forked(log: Log, draws: random.Random) -> Log:
    """From somewhere on it is another log, at least as long."""
    kept = draws.randrange(len(log))
    return log[:kept] + leaves(draws, len(log) - kept + draws.randrange(40))


def rolled_back(log: Log, draws: random.Random) -> Log:
    """Its end is gone."""
    return log[: draws.randrange(len(log))]


def rolled_back_and_gone_on(log: Log, draws: random.Random) -> Log:
    """Its end is gone, and it has grown beyond that again."""
    kept = draws.randrange(len(log))
    return log[:kept] + leaves(draws, len(log) - kept + 1 + draws.randrange(40))


def with_two_swapped(log: Log, draws: random.Random) -> Log:
    """Two entries have changed places."""
    changed, (i, j) = list(log), draws.sample(range(len(log)), 2)
    changed[i], changed[j] = changed[j], changed[i]
    return changed + leaves(draws, draws.randrange(3))


ATTACKS: tuple[Callable[[Log, random.Random], Log], ...] = (
    rewritten, forked, rolled_back, rolled_back_and_gone_on, with_two_swapped,
)  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_no_attack_on_a_log_is_signed(attack: Callable[[Log, random.Random], Log]) -> None:
    """200 drawn cases each, and whatever proof goes with it: the liar's own, the honest one, a drawn one, none."""
    for case in range(200):
        draws = random.Random(case)
        honest = leaves(draws, draws.randrange(2, 60))
        seen = Seen(len(honest), root_of(honest))
        lie = attack(honest, draws)
        grown = honest + lie[len(honest) :]
        proofs: list[tuple[bytes, ...] | None] = [None, (), tuple(leaves(draws, draws.randrange(8)))]
        proofs += [consistency_proof(grown, seen.size)] if len(grown) >= seen.size else []
        wanted = Finding.ROLLBACK if len(lie) < len(honest) else Finding.FORK
        for proof in proofs:
            assert shown(seen, lie, seen.size, proof) is wanted, case
        for old_size in draws.choices(range(min(len(lie), len(honest)) + 1), k=2):
            assert shown(seen, lie, old_size) in (wanted, Finding.SIZE), case


def test_a_proof_from_elsewhere_is_asked_for_again_and_a_repeat_is_signed_again() -> None:
    log = leaves(random.Random(2), 40)
    seen = Seen(25, root_of(log[:25]))
    assert shown(seen, log, 0) is Finding.SIZE
    assert shown(seen, log, 24) is Finding.SIZE
    assert shown(seen, log, 30) is Finding.SIZE
    assert shown(seen, log[:25], 0) is Finding.GOES_ON


def test_a_first_checkpoint_needs_no_proof_and_may_have_none() -> None:
    log = leaves(random.Random(3), 9)
    assert shown(NOTHING, log, 0, ()) is Finding.GOES_ON
    assert shown(NOTHING, log, 0, (bytes(32),)) is Finding.FORK
    assert judge(NOTHING, 0, (), Checkpoint("a.audit", 0, EMPTY_ROOT)) is Finding.GOES_ON
    assert judge(NOTHING, 0, (), Checkpoint("a.audit", 0, bytes(32))) is Finding.FORK
