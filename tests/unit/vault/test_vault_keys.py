"""Keys: allocated by one end, accepted by the other, opened and delivered by both."""

from vaults import Pair, contents


def test_both_ends_open_the_same_keys_and_no_two_are_equal(pair: Pair) -> None:
    pair.stock()
    ids = pair.ready(pair.alice, 20) + pair.ready(pair.bob, 20)
    at_alice, at_bob = ([contents(end, i) for i in ids] for end in pair.ends)
    assert at_alice == at_bob
    assert len(set(at_alice)) == 40
    assert {i.version for i in ids} == {4}
