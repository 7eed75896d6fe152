"""A demanded kernel runs or fails: it is never replaced by another."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from qkdnode.errors import KernelError
from qkdnode.native import polyval, toeplitz
from qkdnode.native.kernel import State, chosen, runnable
from qkdnode.native.polyval import Polyval
from qkdnode.native.toeplitz import Toeplitz

WIDE_LACKING = {"wide": State.CPU_LACKS, "narrow": State.RUNS, "tbl": State.NOT_BUILT, "portable": State.RUNS}

FAMILIES: list[tuple[tuple[str, ...], Callable[[], str]]] = [
    (polyval.KERNELS, lambda: Polyval(bytes(16)).kernel),
    (toeplitz.KERNELS, lambda: Toeplitz(bits_in=8, bits_out=4).kernel),
]


@pytest.mark.parametrize(
    ("demand", "kernel"),
    [
        (None, "narrow"),
        ("", "narrow"),
        (" , ", "narrow"),
        ("portable", "portable"),
        ("narrow", "narrow"),
        ("other,portable", "portable"),
        (" other , narrow,portable", "narrow"),
        ("portable,wide", "portable"),
    ],
)
def test_the_first_known_name_is_taken_and_without_a_demand_the_fastest(demand: str | None, kernel: str) -> None:
    assert chosen("family", WIDE_LACKING, demand) == kernel


@pytest.mark.parametrize(
    ("demand", "message"),
    [
        ("other", "names no kernel of family, which knows wide, narrow, tbl, portable"),
        ("WIDE", "names no kernel"),
        ("wide", "kernel wide of family needs instructions that this CPU"),
        ("wide,portable", "kernel wide of family needs instructions"),
        ("other,tbl", "kernel tbl is not built into this family"),
    ],
)
def test_a_demand_that_cannot_be_met_is_an_error(demand: str, message: str) -> None:
    with pytest.raises(KernelError, match=message) as caught:
        chosen("family", WIDE_LACKING, demand)
    assert f"QKDNODE_KERNEL={demand}" in str(caught.value)
    assert "narrow, portable" in str(caught.value)


def test_only_kernels_that_run_here_are_listed() -> None:
    assert runnable(WIDE_LACKING) == ("narrow", "portable")


@pytest.mark.parametrize(
    ("kernels", "name", "flags"),
    [
        (polyval.KERNELS, "clmul", {"pclmulqdq", "avx2"}),
        (toeplitz.KERNELS, "clmul", {"pclmulqdq", "avx2"}),
        (toeplitz.KERNELS, "vpclmul", {"vpclmulqdq", "avx512f", "avx512vl"}),
    ],
)
def test_features_are_those_that_the_system_reports(kernels: tuple[str, ...], name: str, flags: set[str]) -> None:
    line = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    if line is None:
        pytest.skip("no x86 CPU")
    assert (name in kernels) == (flags <= set(line[1].split()))


@pytest.mark.parametrize(("kernels", "construct"), FAMILIES)
def test_each_construction_reads_the_environment(
    kernels: tuple[str, ...], construct: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kernels[-1] == "portable"
    for name in kernels:
        monkeypatch.setenv("QKDNODE_KERNEL", f"nonesuch,{name},portable")
        assert construct() == name
    monkeypatch.delenv("QKDNODE_KERNEL")
    assert construct() == kernels[0]
    monkeypatch.setenv("QKDNODE_KERNEL", "nonesuch")
    with pytest.raises(KernelError, match="names no kernel"):
        construct()
