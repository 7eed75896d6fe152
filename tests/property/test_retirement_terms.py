"""What a timer looks for by index is what is due, key by key, whatever the terms are."""

import hypothesis.strategies as st
from hypothesis import given, settings

from qkdnode.lifecycle.policy.document import SECOND_NS, KeyClass, Purpose
from qkdnode.lifecycle.retirement import GRACE_NS, LOST_NS, Terms, Timer, due, next_times
from qkdnode.lifecycle.states import LETTERS, Stage
from qkdnode.vault.retirement import _Group, _latest

NOW_S = 1_700_000_000
seconds = st.none() | st.integers(1, 10**9)
classes = st.builds(
    lambda age, lifetime, after, key, record, hold: KeyClass(
        name="its", label="open", purpose=Purpose.SESSION, max_age_at_release_s=age, lifetime_s=lifetime,
        not_after=None if after is None else (NOW_S + after) * SECOND_NS, retain_key_s=key, retain_metadata_s=record,
        legal_hold=hold,
    ),
    seconds, seconds, st.none() | st.integers(-1000, 1000), st.integers(0, 10**9), seconds, st.booleans(),
)  # fmt: skip
terms = st.builds(
    Terms, st.none() | classes, st.none() | st.integers(-10_000, 100).map(lambda s: (NOW_S + s) * SECOND_NS)
)  # fmt: skip


@given(terms, st.sampled_from(Timer), st.booleans(), st.integers(-(10**9), 0), st.integers(-200, 200))
@settings(max_examples=400, deadline=None, derandomize=True)
def test_the_rows_that_a_look_finds_are_those_that_are_due(
    its: Terms, timer: Timer, own: bool, age_s: int, beside_s: int
) -> None:
    now_ns = NOW_S * SECOND_NS
    latest = _latest(its, _Group(timer, "its", int(own), 0), now_ns)
    near = [] if latest is None else [latest, latest + 1, latest + beside_s * SECOND_NS]
    for since_ns in (now_ns + age_s * SECOND_NS, now_ns, *(since for since in near if since <= now_ns)):
        when = due(its, timer, since_ns, own=own)
        is_due = when is not None and when.at_ns <= now_ns
        assert is_due == (latest is not None and since_ns <= latest), (timer, since_ns, latest, when)


@given(terms, st.sampled_from(Timer), st.booleans(), st.integers(-(10**9), 0))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_nothing_that_is_on_hold_is_destroyed_and_nothing_acts_before_a_grace(
    its: Terms, timer: Timer, own: bool, age_s: int
) -> None:
    since_ns = (NOW_S + age_s) * SECOND_NS
    when = due(its, timer, since_ns, own=own)
    if its.held:
        assert when is None or timer in (Timer.PRE_ACTIVE, Timer.ACTIVE)
    if when is not None and timer is Timer.PRE_ACTIVE:
        known, ends = its.known, list[int]()
        if its.lost_ns is not None:
            ends.append(its.lost_ns + LOST_NS)
        elif known is not None:
            ends += [] if known.max_age_at_release_s is None else [since_ns + known.max_age_at_release_s * SECOND_NS]
            ends += [] if known.not_after is None else [known.not_after]
        assert when.at_ns == min(ends) + (GRACE_NS if own else 2 * GRACE_NS)


@given(st.lists(st.sampled_from(Stage), min_size=1, max_size=8), st.sampled_from([None, *Timer]))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_bundle_has_the_times_of_what_its_keys_are(stages: list[Stage], begins: Timer | None) -> None:
    before: dict[Timer, int | None] = dict.fromkeys(Timer)
    before[Timer.PRE_ACTIVE] = 5
    states = bytes(LETTERS[stage] for stage in stages)
    times = next_times(before, states, 9, begins=begins)
    unused = {Stage.ALLOCATED, Stage.READY, Stage.QUARANTINED}
    assert times["waits_ns"] == (5 if unused & {*stages} else None)
    assert (times["used_ns"] is not None) == bool({Stage.DELIVERED, Stage.SUSPENDED} & {*stages})
    assert (times["kept_ns"] is not None) == (Stage.DEACTIVATED in stages)
    ended = {Stage.BURNT, Stage.DESTROYED, Stage.DESTROYED_COMPROMISED}
    assert (times["over_ns"] is not None) == ({*stages} <= ended)
    assert times["held_ns"] is None
