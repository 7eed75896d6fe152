"""`qkdnode rotate --offline | approve | import` at alice's agent, with a vault of bob's at the far end."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from console import Shell, site_of_alice
from control_node import BITS, LINK, NOW_NS, ControlNode
from couriers import accept_offered, imported, written
from signing import SIGNING

from qkdnode.ids import BOB, Association, BatchId
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault import requests as ask
from qkdnode.vault.root import CredentialFile
from qkdnode.vault.rotations import GenerationAcknowledged, ShowRotation
from qkdnode.vault.service import Vault

HERE = Association("app-a", "app-b", LINK)
CONFIG = "--config site/alice.toml"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ControlNode]:
    with site_of_alice(tmp_path, monkeypatch) as made:
        monkeypatch.setenv("QKDNODE_OPERATOR", "site/olga.operator")
        monkeypatch.setattr("time.time_ns", lambda: NOW_NS)  # of who approves; the agent's stands still
        yield made


@pytest.fixture
def bob(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """The far end: it has what control_node gives alice."""
    place = tmp_path / "bob"
    place.mkdir(mode=0o700)
    (place / "credential").write_bytes(b"0123456789abcdef")
    numbers = iter(range(10**6, 10**9))

    def draw_into(buffer: SecretBuffer) -> None:
        with memoryview(buffer) as view:
            for at in range(0, len(view), 8):
                view[at : at + 8] = next(numbers).to_bytes(8, "little")[: len(view) - at]

    end = SimpleNamespace(association=HERE.mirrored(), now_ns=NOW_NS, ahead_ns=0)
    vault = Vault.open(
        place / "vault.db",
        root=CredentialFile("credential", place),
        node="bob",
        draw_into=draw_into,
        signer=SIGNING,
        clock_ns=lambda: NOW_NS + end.ahead_ns,
        create=True,
    )
    end.call = vault.call
    material = SecretBuffer.copy_of(bytes(range(256)) * 16)
    vault.call(ask.ProvisionLink(link=LINK, role=BOB, peer="alice", pair=b"pair", material=material))
    for segment in vault.call(ask.OpenLink(link=LINK, role=BOB, peer="alice")).segments:
        segment.material.release()
    nodes = ("bob", "alice")
    vault.call(ask.Associate(association=end.association, nodes=nodes, link=LINK, purpose="session", key_class="its"))
    record = ask.BatchRecord(
        batch=BatchId(1, 1), bits_in=3 * BITS, bits_out=BITS, refill_bits=4096, method="rusca2018/1", booking="both",
        family="modified", eps_sec=1e-9, eps_cor=1e-15, qber_z=0.015, disclosed_bits=BITS, devices=("QKD-A",),
        details={},
    )  # fmt: skip
    key = SecretBuffer.copy_of(bytes(i % 251 for i in range(BITS // 8)))
    vault.call(ask.StoreReady(link=LINK, record=record, key=key, answer=b"answer"))
    for state in vault.call(ask.PeerReady(link=LINK, batches=(BatchId(1, 1),))):
        state.material.release()
    yield end
    vault.close()


def test_a_rotation_by_commands_comes_to_the_cut_at_both_ends(site: ControlNode, bob: SimpleNamespace) -> None:
    shell = Shell()
    said = shell.run(f"qkdnode rotate app-a:app-b --offline --out 1.bundle --keys 2 {CONFIG}")
    assert "number 1" in said
    assert "2 keys cut; proposed, from generation 1 to 2" in said
    file = Path("1.bundle").read_bytes()
    imported(bob, file)
    for number in (1, 2):
        Path("back.bundle").write_bytes(written(bob, begin=False, keys=2).file)
        for name in ("olga", "sven"):
            told = shell.run(f"qkdnode rotate approve back.bundle --as site/{name}.operator --out {name}.{number}")
            assert f"{name} approves that alice imports file {number} of bob" in told, told
        one = shell.run(f"qkdnode rotate import back.bundle --approval olga.{number} {CONFIG}")
        assert "only olga approved it" in one
        both = f"--approval olga.{number} --approval sven.{number}"
        said = shell.run(f"qkdnode rotate import back.bundle {both} --answer a{number}.bundle --wait 0 {CONFIG} --json")
        answer = json.loads(said)
        assert answer["imported"]["again"] is False
        again = shell.run(f"qkdnode rotate import back.bundle {both} {CONFIG}")
        assert f"number {number} was imported already" in again
        if answer["answer"]["rotation"]["phase"] == "offered":  # as her application does
            site.vault.call(GenerationAcknowledged(association=HERE, number=2))
            shell.run(f"qkdnode rotate app-a:app-b --offline --out late.bundle {CONFIG}")
            imported(bob, Path("late.bundle").read_bytes())
        else:
            imported(bob, Path(f"a{number}.bundle").read_bytes())
        accept_offered(bob)
    here, there = (
        call(ShowRotation(association=its)) for call, its in ((site.vault.call, HERE), (bob.call, HERE.mirrored()))
    )
    assert (str(here.phase), str(there.phase)) == ("cut", "cut")
    assert here.number == there.number == 2


def test_files_are_never_written_over_and_can_be_written_again(site: ControlNode) -> None:
    shell = Shell()
    Path("old.bundle").write_text("precious")
    said = shell.run(f"qkdnode rotate app-a:app-b --offline --out old.bundle {CONFIG}")
    assert "is there already" in said
    assert Path("old.bundle").read_text() == "precious"
    assert str(site.vault.call(ShowRotation(association=HERE)).phase) == "steady", "nothing was done for it"
    shell.run(f"qkdnode rotate app-a:app-b --offline --out new.bundle --keys 2 {CONFIG}")
    shown = json.loads(shell.run(f"qkdnode rotate app-a:app-b --offline --again --out copy.bundle --json {CONFIG}"))
    assert shown["number"] == 1
    assert Path("copy.bundle").read_bytes() == Path("new.bundle").read_bytes()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("rotate --offline --out x", "goes with an association"),
        ("rotate app-a --offline", "goes with an association"),
        ("rotate app-a --again", "go with --offline"),
        ("rotate app-a --offline --out x --size 9", "whole bytes"),
        ("rotate app-x --offline --out x", "no association of this node"),
    ],
)
def test_what_makes_no_sense_is_said_so(site: ControlNode, command: str, words: str) -> None:
    assert words in Shell().run(f"qkdnode {command} {CONFIG}")
    assert not Path("x").exists()


def test_other_files_are_neither_approved_nor_imported(site: ControlNode) -> None:
    shell = Shell()
    Path("x.bundle").write_bytes(b"something else")
    for command in ("approve x.bundle --as site/sven.operator --out y", f"import x.bundle {CONFIG}"):
        assert "it is no courier's bundle" in shell.run(f"qkdnode rotate {command}")
    assert not Path("y").exists()
