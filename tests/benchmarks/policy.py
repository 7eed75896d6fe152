"""What the policy costs: a decision, the examination of a document, the chain at the start, an answer of the vault.

.venv/bin/python tests/benchmarks/policy.py
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "unit" / "vault")]

from approving import policy  # noqa: E402
from vaults import Pair  # noqa: E402

from qkdnode.lifecycle.policy.check import check  # noqa: E402
from qkdnode.lifecycle.policy.decision import Case, standing  # noqa: E402
from qkdnode.lifecycle.policy.document import parse  # noqa: E402
from qkdnode.lifecycle.policy.space import Space  # noqa: E402
from qkdnode.vault.requests import CurrentPolicy, Entitle, OpenKeys  # noqa: E402

VERSIONS = 100


def seconds(what: Callable[[], object], times: int) -> float:
    """The median."""
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        what()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def large() -> bytes:
    """A document with about as many cases as are looked at, and 60 rules."""
    named = (("applications", 24), ("remotes", 24), ("links", 12))
    rules = "".join(
        f'[[rule]]\nname = "{kind}-{i}"\neffect = "permit"\n{kind} = ["n{i}"]\n' for kind, n in named for i in range(n)
    )
    classes = "".join(
        f'[[class]]\nname = "c{i}"\nlabel = "open"\npurpose = "session"\nsizes_bits = [256]\n' for i in range(2)
    )
    return f'format = "qkdnode-policy/1"\nlevels = ["open"]\n{classes}{rules}'.encode()


def main() -> None:
    """Print one line for each."""
    document = parse(large())
    case = Case("n1", "n2", "n3", "c1", 256)
    print(
        f"a decision that was not made before, 60 rules: {seconds(lambda: standing(document, case), 2000) * 1e6:.1f} us"
    )
    print(f"the examination of {len(Space([document]))} cases: {seconds(lambda: check(document, ()), 5) * 1e3:.0f} ms")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o700)
        pair = Pair(directory)
        pair.stock(bits_out=200_000)
        keys = pair.ready(pair.alice, count=128)
        ask = Entitle(association=pair.alice.association, size_bits=256)

        def opened() -> None:
            pair.alice.call(OpenKeys(key_ids=keys, application="payroll")).material.release()

        without = seconds(opened, 300)
        for number in range(VERSIONS):
            for end in pair.ends:
                end.apply(policy(f"lifetime_s = {number + 1}", name="qkd", purpose="session"))
        pair.alice.reopen()
        begun = time.perf_counter()
        pair.alice.call(CurrentPolicy())
        print(f"the chain of {VERSIONS} versions at the start: {(time.perf_counter() - begun) * 1e3:.0f} ms")
        print(f"what an association may have now: {seconds(lambda: pair.alice.call(ask), 500) * 1e6:.0f} us")
        now = seconds(opened, 300)
        print(f"opening 128 keys: {without * 1e6:.0f} us under version 0, {now * 1e6:.0f} us under {VERSIONS}")
        pair.close()


main()
