"""The benchmark of the emulated devices runs each personality and reports what it measured."""

import pytest

from qkdnode.cli.bench.emulation import emulation
from qkdnode.native.stub import kernels


@pytest.mark.parametrize("personality", ["tx", "rx", "qrng"])
def test_the_benchmark_reports_a_rate(personality: str) -> None:
    figures = emulation(personality=personality, seconds=0.02)
    assert figures["personality"] == personality
    assert figures["kernel"] in kernels()
    assert isinstance(figures["mbytes_per_s"], float)
    assert figures["mbytes_per_s"] > 0
    assert (figures["mslots_per_s"] is None) == (personality == "qrng")


def test_the_benchmark_refuses_an_unknown_personality() -> None:
    with pytest.raises(ValueError, match="toaster"):
        emulation(personality="toaster", seconds=0.02)
