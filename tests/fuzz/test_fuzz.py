"""A short form of `make fuzz`: seeds, regressions, a few hundred mutations, and planted bugs that must be found."""

import importlib
import inspect
import pkgutil
import shutil
import sys
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

import qkdnode.wire
from fuzz import __main__ as command
from fuzz import controls, sanitized
from fuzz.engine import Finding, Target, replay, search
from fuzz.targets import TARGET_OF_NAME, TARGETS

REGRESSIONS = sorted((Path(__file__).parent / "regressions").iterdir())
QUICK = [control for control in controls.CONTROLS if control.what != "a long note takes seconds"]
INPUTS = 300  # of a target of cost 1
SEED = 20


def every_decoder_of_the_wire() -> set[str]:
    """The public functions of wire/ that take bytes apart, as "module.function" under qkdnode."""
    found = set()
    for module in pkgutil.iter_modules(qkdnode.wire.__path__):
        place = importlib.import_module(f"qkdnode.wire.{module.name}")
        for name, value in vars(place).items():
            if (
                inspect.isfunction(value)
                and value.__module__ == place.__name__
                and name.startswith(("decode", "unpack"))
            ):
                found.add(f"wire.{module.name}.{name}")
    return found


def code_of(decoder: str) -> CodeType:
    module, name = f"qkdnode.{decoder}", ""
    parts = []
    while not name:
        module, _, part = module.rpartition(".")
        parts.insert(0, part)
        try:
            value: Any = importlib.import_module(module)
        except ModuleNotFoundError:
            continue
        name = module
    for part in parts:
        value = getattr(value, part)
    return getattr(value, "__func__", value).__code__


def test_every_decoder_of_the_wire_has_a_target() -> None:
    known = {decoder for target in TARGETS for decoder in target.decoders}
    assert every_decoder_of_the_wire() >= {"wire.codec.decode", "wire.supply.decode_outer"}
    assert every_decoder_of_the_wire() <= known, "a row of tests/fuzz/targets.py is missing"


def test_names_of_targets_are_not_each_others_beginning_in_a_file_name() -> None:
    assert len(TARGET_OF_NAME) == len(TARGETS)
    for target in TARGETS:
        assert command.target_of(Path(Finding(target.name, "", b"x").file_name)) is target


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_the_seeds_reach_what_the_target_is_for_and_are_in_order(target: Target) -> None:
    wanted = {code_of(decoder) for decoder in target.decoders}
    entered: set[CodeType] = set()

    def enter(frame: FrameType, event: str, _: Any) -> None:
        entered.add(frame.f_code)

    for data in target.seeds():
        threading.settrace(enter)
        sys.settrace(enter)
        try:
            target.run(data)
        except target.allowed:
            pass
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]
    assert not {code.co_qualname for code in wanted - entered}
    assert [finding for data in target.seeds() if (finding := replay(target, data))] == []


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_short_search_finds_nothing(target: Target) -> None:
    _, findings = search(target, seed=SEED, inputs=max(10, int(INPUTS / target.cost)))
    assert [(finding.what, finding.input) for finding in findings] == []


@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: path.stem)
def test_a_mended_bug_stays_mended(path: Path) -> None:
    assert replay(command.target_of(path), path.read_bytes()) is None


@pytest.mark.parametrize("control", QUICK, ids=lambda control: control.what)
def test_a_planted_bug_is_found(control: controls.Control) -> None:
    assert controls.caught(control, 1) is not None


def test_a_control_that_no_longer_fits_its_source_is_an_error() -> None:
    first = controls.CONTROLS[0]
    stale = controls.Control(
        what="?", target=first.target, owner=first.owner, name=first.name, old="no such text", new=""
    )
    with pytest.raises(LookupError, match="up to date"):
        controls.caught(stale, 1)


def test_one_seed_gives_one_search() -> None:
    target = TARGET_OF_NAME["wire/frame"]
    runs: list[list[bytes]] = []
    for seed in (5, 5, 6):
        kept: list[bytes] = []
        search(target, seed=seed, inputs=400, kept=kept)
        runs.append(kept)
    assert runs[0] == runs[1] != runs[2]


def test_a_finding_is_saved_and_its_command_shows_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    control = controls.CONTROLS[0]
    finding = controls.caught(control, 1)
    assert finding is not None
    command.save(finding, tmp_path)
    told = capsys.readouterr().err
    path = tmp_path / finding.file_name
    assert f"--replay {path}" in told
    monkeypatch.setattr(sys, "argv", ["fuzz", "--replay", str(path)])
    with controls.planted(control):
        assert command.main() == 1
    assert command.main() == 0


def test_an_input_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzz.engine.RUNAWAY_S", 0.2)

    def run(data: bytes) -> None:
        while data:
            pass

    endless = Target(
        name="x", run=run, seeds=lambda: [b"x"], mutators=(), allowed=(Exception,), modules=(), decoders=()
    )
    finding = replay(endless, b"x")
    assert finding is not None
    assert "no end" in finding.what


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc: the C core is fuzzed without sanitizers")
def test_the_sanitizers_find_a_check_taken_out_of_a_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitized, "BUILD", tmp_path)
    parser = next(parser for parser in sanitized.PARSERS if parser.name == "sifting")
    assert sanitized.hunt(parser, sanitized.build(parser), SEED, 300)[1] is None
    _, data, words = sanitized.hunt(parser, sanitized.build(parser, parser.bugs[0]), SEED, 300)
    assert data is not None
    assert "AddressSanitizer" in words
