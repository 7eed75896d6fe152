"""The offline verifier: every change of an export is found and named; damage is called unreadable."""

import base64
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from signing import OTHER, SIGNING, Signing

from qkdnode.access.identities import encode_public
from qkdnode.audit import verifier
from qkdnode.audit.checkpoint import Checkpoint, cosign, parse, sign_checkpoint
from qkdnode.audit.export import write_export
from qkdnode.audit.merkle import Frontier, leaf_hash
from qkdnode.audit.verifier import Report, Tree, verify
from qkdnode.channel.identity import make_identity
from qkdnode.errors import AuditUnreadableError

Lines = list[str]


def checkpoint_line(note: str) -> str:
    return json.dumps({"checkpoint": note}, ensure_ascii=False, separators=(",", ":")) + "\n"


def test_an_untouched_export_is_valid(log: Any) -> None:
    assert verify(log.lines(), log.public_key) == Report(True, 187, 3, 7, None)
    assert verify([line.encode() for line in log.lines()], log.public_key).valid
    assert verify([line.rstrip("\n") for line in log.lines()], log.public_key).valid


def test_a_checkpoint_may_cover_no_new_entries_or_none_at_all(log: Any) -> None:
    assert verify(log.lines((0, 60, 60, 187)), log.public_key) == Report(True, 187, 4, 0, None)


def test_an_export_without_a_checkpoint_proves_nothing(log: Any) -> None:
    report = verify(log.lines(()), log.public_key)
    assert (report.valid, report.unsigned_tail) == (False, 187)
    assert report.first_bad == "no checkpoint: nothing in this export is signed"


def rewritten(log: Any, lines: Lines, position: int) -> str:
    """The entry's line with another subject, its hash and number in order."""
    return log.line_of(log.leaf_of(position, "somebody else's"))  # type: ignore[no-any-return]


TAMPERINGS: dict[str, tuple[Callable[[Any, Lines], Lines], str]] = {
    "leaf changed": (
        lambda log, x: [*x[:18], x[18].replace("key-17", "key-18"), *x[19:]],
        "entry 17: the leaf does not have the hash",
    ),
    "leaf changed in the unsigned tail": (
        lambda log, x: [*x[:-1], x[-1].replace("key-186", "key-187")],
        "entry 186: the leaf does not have the hash",
    ),
    "leaf and hash rewritten": (
        lambda log, x: [*x[:130], rewritten(log, x, 127), *x[131:]],
        "checkpoint 3 (entries 120-179): root differs",
    ),
    "entry deleted": (
        lambda log, x: x[:18] + x[19:],
        "entry 19: number 7 of topic 'node' where 6 must be",
    ),
    "last three entries of a checkpoint deleted": (
        lambda log, x: x[:58] + x[61:],
        "checkpoint 1 (entries 0-56): signed over 60 entries, but 57",
    ),
    "entry deleted before the last checkpoint and all after it": (
        lambda log, x: [*x[:182], x[183]],
        "checkpoint 3 (entries 120-178): signed over 180 entries, but 179",
    ),
    "entry inserted": (
        lambda log, x: [*x[:18], log.line_of(log.leaf_of(17, "new")), *x[18:]],
        "entry 18: number 6 of topic 'node' where 7 must be",
    ),
    "entry inserted in a topic of its own": (
        lambda log, x: [*x[:18], log.line_of(log.leaf_of(0).replace(b"link/a-b", b"own")), *x[18:]],
        "checkpoint 1 (entries 0-60): signed over 60 entries, but 61",
    ),
    "neighbours of one topic swapped": (
        lambda log, x: [*x[:10], x[13], *x[11:13], x[10], *x[14:]],
        "entry 9: number 5 of topic 'link/a-b' where 4 must be",
    ),
    "neighbours of two topics swapped": (
        lambda log, x: [*x[:10], x[11], x[10], *x[12:]],
        "checkpoint 1 (entries 0-59): root differs",
    ),
    "first checkpoint again at the end": (
        lambda log, x: [*x, x[61]],
        "checkpoint 4 (entries 180-186): signed over 60 entries, but 187 stand before it",
    ),
    "checkpoint moved down": (
        lambda log, x: [*x[:61], x[62], x[61], *x[63:]],
        "checkpoint 1 (entries 0-60): signed over 60 entries, but 61",
    ),
    "checkpoint signed with another key": (
        lambda log, x: [*x[:61], checkpoint_line(signed_by_another(log)), *x[62:]],
        "checkpoint 1 (entries 0-59): signed with another key",
    ),
    "checkpoint of another root": (
        lambda log, x: [*x[:61], checkpoint_line(log.note(60, log.leaves[::-1])), *x[62:]],
        "checkpoint 1 (entries 0-59): root differs",
    ),
    "signature of another checkpoint": (
        lambda log, x: [*x[:61], checkpoint_line(with_tail_of(log.note(60), log.note(120))), *x[62:]],
        "checkpoint 1 (entries 0-59): the Ed25519 signature does not verify",
    ),
    "checkpoint of another origin": (
        lambda log, x: [*x[:61], checkpoint_line(log.note(60).replace("node-a", "node-b")), *x[62:]],
        "checkpoint 1 (entries 0-59): origin 'node-b.audit', but this is the log of 'node-a.audit'",
    ),
    "checkpoint of another log under this one's key": (
        lambda log, x: [*x[:61], checkpoint_line(log.foreign_note(60)), *x[62:]],
        "checkpoint 1 (entries 0-59): origin 'node-b.audit', but this is the log of 'node-a.audit'",
    ),
    "header of another origin": (
        lambda log, x: [x[0].replace('"node-a', '"node-b'), *x[1:]],
        "checkpoint 1 (entries 0-59): origin 'node-a.audit', but this is the log of 'node-b.audit'",
    ),
    "header without an origin": (
        lambda log, x: [x[0].replace('"node-a.audit"', '""'), *x[1:]],
        "checkpoint 1 (entries 0-59): origin 'node-a.audit', but this is the log of ''",
    ),
    "header of another key": (
        lambda log, x: [re.sub('"public_key":"..', '"public_key":"B6', x[0]), *x[1:]],
        "header: the public key is not the one that was given",
    ),
    "a note that is none": (
        lambda log, x: [*x[:61], checkpoint_line("trust me\n"), *x[62:]],
        "checkpoint 1 (entries 0-59): not a signed checkpoint",
    ),
    "a leaf that is no event": (
        lambda log, x: [*x[:1], log.line_of(b"[1]"), *x[1:]],
        "entry 0: the leaf is not an event",
    ),
    "a leaf that is not JSON": (
        lambda log, x: [*x[:1], log.line_of(b"{"), *x[1:]],
        "entry 0: the leaf is not an event",
    ),
}


def signed_by_another(log: Any) -> str:
    root = Frontier(leaf_hash(leaf) for leaf in log.leaves[:60]).root()
    return sign_checkpoint(Checkpoint(log.origin, 60, root), OTHER)


def with_tail_of(note: str, other: str) -> str:
    return note.partition("\n\n")[0] + "\n\n" + other.partition("\n\n")[2]


@pytest.mark.parametrize(("tamper", "found"), TAMPERINGS.values(), ids=TAMPERINGS.keys())
def test_tampering_is_found_and_named(log: Any, tamper: Callable[[Any, Lines], Lines], found: str) -> None:
    lines = log.lines()
    tampered = tamper(log, lines)
    assert tampered != lines
    report = verify(tampered, log.public_key)
    assert not report.valid
    assert report.first_bad is not None
    assert report.first_bad.startswith(found)
    assert verify([line.encode() for line in tampered], log.public_key) == report


def test_a_foreign_log_that_is_sound_in_itself_is_refused(log: Any) -> None:
    report = verify(log.lines(), OTHER.log_key)
    assert report == Report(False, 0, 0, 0, "header: the public key is not the one that was given")


DAMAGES: dict[str, Callable[[Lines], list[str | bytes]]] = {
    "empty": lambda x: [],
    "no header": lambda x: [*x[1:]],
    "another format": lambda x: [x[0].replace("audit/2", "audit/1"), *x[1:]],
    "two headers": lambda x: [x[0], *x],
    "blank line": lambda x: [*x[:5], "\n", *x[5:]],
    "line cut": lambda x: [*x[:5], x[5][:40]],
    "two lines in one": lambda x: [*x[:5], x[5].rstrip("\n") + x[6], *x[7:]],
    "spaces": lambda x: [*x[:5], x[5].replace(":", ": ", 1), *x[6:]],
    "carriage return": lambda x: [*x[:5], x[5].replace("\n", "\r\n"), *x[6:]],
    "other escape": lambda x: [*x[:5], x[5].replace("key-4", "\\u006bey-4"), *x[6:]],
    "name twice": lambda x: [*x[:5], '{"leaf":"","leaf":"","hash":""}\n', *x[5:]],
    "unknown name": lambda x: [*x[:5], '{"note":""}\n', *x[5:]],
    "names in another order": lambda x: [*x[:5], '{"hash":"","leaf":""}\n', *x[5:]],
    "not strings": lambda x: [*x[:5], '{"leaf":1,"hash":""}\n', *x[5:]],
    "not an object": lambda x: [*x[:5], "[]\n", *x[5:]],
    "not UTF-8": lambda x: [*x[:5], b"\xff\n", *x[5:]],
    "lone surrogate": lambda x: [*x[:5], '{"leaf":"\\ud800","hash":""}\n', *x[5:]],
    "endless line": lambda x: [*x[:5], '{"leaf":"' + "x" * 200_000 + '","hash":""}\n', *x[5:]],
    "deep nesting": lambda x: [*x[:5], "[" * 100_000 + "\n", *x[5:]],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_what_is_not_of_the_format_is_unreadable_and_the_line_is_named(
    log: Any, damage: Callable[[Lines], list[str | bytes]]
) -> None:
    with pytest.raises(AuditUnreadableError, match=r"^line \d+: "):
        verify(damage(log.lines()), log.public_key)


def test_an_endless_line_is_not_read_whole(tmp_path: Path) -> None:
    (tmp_path / "endless").write_bytes(b"x" * 1_000_000)
    with (tmp_path / "endless").open("rb") as file:
        assert len(next(verifier.read_lines(file))) == verifier.MAX_LINE_BYTES + 2


def test_the_verifiers_own_tree_is_the_logs_tree(log: Any) -> None:
    tree, frontier = Tree(), Frontier()
    assert tree.root() == frontier.root()
    for leaf in log.leaves:
        tree.append(leaf_hash(leaf))
        frontier.append(leaf_hash(leaf))
        assert (tree.size, tree.root()) == (frontier.size, frontier.root())


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        (lambda text: text, 0, "187 entries, 3 checkpoints, 7 entries not yet signed\nvalid\n"),
        (lambda text: text.replace("key-17", "key-18", 1), 1, "INVALID: entry 17: "),
        (lambda text: text.replace("{", "[", 1), 2, "unreadable: line 1: "),
    ],
    ids=["valid", "invalid", "unreadable"],
)
def test_the_file_alone_is_a_tool(
    log: Any, tmp_path: Path, change: Callable[[str], str], status: int, said: str
) -> None:
    """A stranger copies one file; qkdnode is out of its reach."""
    shutil.copy(verifier.__file__, tmp_path / "verifier.py")
    (tmp_path / "qkdnode.py").write_text("raise ImportError('out of reach')\n")
    (tmp_path / "export").write_text(change("".join(log.lines())), "utf-8")
    key = json.loads(log.lines()[0])["public_key"]
    run = subprocess.run(
        [sys.executable, "verifier.py", "export", "--key", key],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={},
        check=False,
    )
    assert run.returncode == status
    assert said in run.stdout + run.stderr


@pytest.mark.parametrize("arguments", [[], ["export"], ["--key", "AAAA"], ["export", "AAAA"]])
def test_a_call_without_what_is_needed_is_told_how_to(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        verifier.main(arguments)
    assert ended.value.code == 2
    assert "usage: verifier.py" in capsys.readouterr().err


KEY = base64.b64encode(bytes(1344)).decode()


@pytest.mark.parametrize(
    ("file", "key"), [("export", "AAAA"), ("export", "?"), ("export", KEY[:-4]), ("missing", KEY), ("export", "export")]
)
def test_a_call_that_cannot_be_is_told_so(
    file: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "export").write_text("{}\n")
    assert verifier.main([file, "--key", key]) == 2
    assert capsys.readouterr().err.startswith("unreadable: ")


def test_the_key_may_be_given_as_the_nodes_public_file(
    log: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with make_identity("node", "node-a") as own:
        note = sign_checkpoint(Checkpoint(log.origin, 187, Frontier(map(leaf_hash, log.leaves)).root(), 5), own)
        (tmp_path / "export").write_text("".join(write_export(log.origin, own.log_key, log.leaves, [(187, note)])))
        (tmp_path / "a.public").write_bytes(encode_public(own.public))
    assert verifier.main([str(tmp_path / "export"), "--key", str(tmp_path / "a.public")]) == 0
    assert capsys.readouterr().out == "187 entries, 1 checkpoints, 0 entries not yet signed\nvalid\n"


TIME_S = 1_700_000_000


def witnessed(log: Any, size: int, signer: Signing = OTHER, name: str = "node-b.witness") -> str:
    note = log.note(size)
    return str(note + cosign(name, TIME_S, parse(note).checkpoint, signer))


def test_checkpoints_that_a_witness_has_signed_are_counted(log: Any) -> None:
    notes = [(60, witnessed(log, 60)), (120, witnessed(log, 120)), (180, log.note(180))]
    lines = list(write_export(log.origin, log.public_key, log.leaves, notes))
    assert verify(lines, log.public_key) == Report(True, 187, 3, 7, None)
    assert verify(lines, log.public_key, [OTHER.log_key]) == Report(True, 187, 3, 7, None, 2, 120)
    another = Signing(b"a third node").log_key
    assert verify(lines, log.public_key, [another]).witnessed == 0
    assert verify(lines, log.public_key, [another, OTHER.log_key]).witnessed == 2


def test_a_witness_that_has_not_signed_this_is_refused(log: Any) -> None:
    stolen = log.note(60) + witnessed(log, 120).splitlines(keepends=True)[-1]
    lines = list(write_export(log.origin, log.public_key, log.leaves, [(60, stolen)]))
    assert verify(lines, log.public_key).valid
    report = verify(lines, log.public_key, [OTHER.log_key])
    assert report.first_bad is not None
    assert report.first_bad.endswith("the ML-DSA-44 signature of 'node-b.witness' does not verify")


def test_a_nodes_signature_under_another_name_makes_it_no_witness(log: Any) -> None:
    lines = list(write_export(log.origin, log.public_key, log.leaves, [(60, witnessed(log, 60, SIGNING))]))
    assert verify(lines, log.public_key, [OTHER.log_key]) == Report(True, 187, 1, 127, None)


QUOTED = st.text(st.sampled_from('ab"\\\n\x01é\u2028{}[]:,0 '), max_size=12)


@settings(max_examples=300)
@given(
    parts=st.lists(QUOTED | st.just('"keys":["aa"]') | st.just("keys"), min_size=1, max_size=3),
    keys=st.none() | st.lists(st.text("0aF") | st.text('0aF",]'), max_size=4) | st.just("aa"),
    topic=st.sampled_from(["node", 'no"de', "no\\de"]),
    number=st.integers(1, 3),
    spaced=st.booleans(),
    changed=st.integers(-1, 400),
)
def test_the_quick_reading_of_a_line_is_the_slow_one(
    parts: list[str], keys: Any, topic: str, number: int, spaced: bool, changed: int
) -> None:
    """Wherever the quick one has an opinion the slow one has the same, and leaves the same behind."""
    event = {"details": parts, "keys": keys, "topic": topic, "topic_sequence": number}
    leaf = json.dumps(event, ensure_ascii=False)
    leaf = leaf if spaced else leaf.replace(": ", ":").replace(", ", ",")
    line = bytearray(verifier.write_line({"leaf": leaf, "hash": leaf_hash(leaf.encode()).hex()}).encode())
    if 0 <= changed < len(line):
        line[changed] ^= 0x22
    quick = verifier.quick_entry(bytes(line))
    if quick is not None:
        assert quick == verifier.read_entry(**verifier.read_line(1, bytes(line)))
        assert verifier.quick_entry(bytes(line).decode()) is None  # only bytes are looked at so


def test_lines_as_a_node_writes_them_are_read_quickly(log: Any) -> None:
    lines = [line.encode() for line in log.lines(())[1:]]
    plain = [line for line in lines if b"\\\\" not in line]
    assert len(plain) == 187 - len([line for line in lines if b"\\\\" in line])
    assert None not in [verifier.quick_entry(line) for line in plain]


def test_lines_that_are_looked_at_ahead_give_the_same_verdict(log: Any) -> None:
    """The order in which a pool of processes hands back what it has found is that of the lines."""
    lines = [line.encode() for line in log.lines()]
    with ThreadPoolExecutor(2) as pool:
        assert verify(lines, log.public_key, look=pool.map) == verify(lines, log.public_key)
        bad = [*lines[:90], lines[91], lines[90], *lines[92:]]
        assert verify(bad, log.public_key, look=pool.map) == verify(bad, log.public_key)
        assert not verify(bad, log.public_key).valid
