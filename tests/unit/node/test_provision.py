"""Provisioning: secret files that only their owner reads, never overwritten, and checked when they are read."""

import os
import stat
from pathlib import Path

import pytest

from qkdnode.access.identities import ApplicationIdentity, NodeIdentity
from qkdnode.channel.identity import (
    load_identity,
    load_public,
    load_public_application,
    load_public_node,
    signature_is_valid,
)
from qkdnode.channel.operator import load_operator, load_public_operator, operator_signed
from qkdnode.errors import ConfigError
from qkdnode.native.secret import equal
from qkdnode.node.provision import (
    PAIR,
    load_pair,
    provision_application,
    provision_node,
    provision_operator,
    provision_pair,
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_provisioned_node_reads_back_and_signs(tmp_path: Path) -> None:
    public = provision_node("node-a", tmp_path)
    assert isinstance(public, NodeIdentity)
    assert load_public(tmp_path / "node-a.public") == load_public_node(tmp_path / "node-a.public") == public
    with load_identity(tmp_path / "node-a.identity") as own:
        assert own.public == public
        signature = own.sign(b"message")
    assert signature_is_valid(public, signature, b"message")
    assert not signature_is_valid(public, signature, b"another")


def test_an_application_is_not_taken_for_a_node(tmp_path: Path) -> None:
    assert isinstance(provision_application("app", tmp_path), ApplicationIdentity)
    provision_node("node-a", tmp_path)
    with pytest.raises(ConfigError, match="application app; a node's is needed"):
        load_public_node(tmp_path / "app.public")
    with pytest.raises(ConfigError, match="node node-a; an application's is needed"):
        load_public_application(tmp_path / "node-a.public")


def test_modes_hold_under_any_umask(tmp_path: Path) -> None:
    for umask in (0o000, 0o077, 0o022):
        directory = tmp_path / f"{umask:o}"
        before = os.umask(umask)
        try:
            provision_node("n", directory)
            paths = provision_pair("l", "a", "b", directory, kib=1)
        finally:
            os.umask(before)
        assert mode(directory) == 0o700
        assert [mode(path) for path in (directory / "n.identity", *paths)] == [0o600] * 3
        assert mode(directory / "n.public") == 0o644


def test_the_public_file_holds_no_secret(tmp_path: Path) -> None:
    provision_node("n", tmp_path)
    with load_identity(tmp_path / "n.identity") as own, memoryview(own.curve.secret) as secret:
        assert secret.tobytes() not in (tmp_path / "n.public").read_bytes()
        assert secret.tobytes() in (tmp_path / "n.identity").read_bytes()


def test_nothing_is_overwritten_and_nothing_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "n.public").write_text("precious")
    with pytest.raises(ConfigError, match=r"n\.public is there already"):
        provision_node("n", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["n.public"]
    (tmp_path / "l.b.pair").write_text("precious")
    with pytest.raises(ConfigError, match=r"l\.b\.pair is there already"):
        provision_pair("l", "a", "b", tmp_path, kib=1)
    assert not (tmp_path / "l.a.pair").exists()


def test_a_link_in_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    (tmp_path / "n.identity").symlink_to(target)
    with pytest.raises(ConfigError, match="is there already"):
        provision_node("n", tmp_path)
    assert not target.exists()


def test_an_open_directory_is_refused_with_advice(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigError, match="chmod 700"):
        provision_node("n", tmp_path)


@pytest.mark.parametrize("name", ["", "UPPER", "a/b", "..", "x" * 32, "a b", "-a"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is no name for"):
        provision_node(name, tmp_path)
    with pytest.raises(ConfigError, match="is no name for"):
        provision_pair("l", name, "b", tmp_path)


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620])
def test_a_secret_that_others_can_reach_is_refused(tmp_path: Path, bits: int) -> None:
    provision_node("n", tmp_path)
    path, _ = provision_pair("l", "a", "b", tmp_path, kib=1)
    for secret in (tmp_path / "n.identity", path):
        secret.chmod(bits)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_identity(tmp_path / "n.identity")
    with pytest.raises(ConfigError, match="chmod 600"):
        load_pair(path)


def test_a_damaged_identity_is_refused_without_quoting_it(tmp_path: Path) -> None:
    provision_node("n", tmp_path)
    path = tmp_path / "n.identity"
    text = path.read_text()
    for damaged in (
        text[:-5],
        text.replace("curve_secret", "curve_secrets"),
        text.replace('_secret":"', '_secret":"~'),
    ):
        path.write_text(damaged)
        with pytest.raises(ConfigError, match="is not an identity") as caught:
            load_identity(path)
        assert caught.value.__suppress_context__
        assert not any(part in str(caught.value) for part in text.split('"') if len(part) > 30)


def test_both_ends_of_a_pair_get_the_same_key_once(tmp_path: Path) -> None:
    paths = provision_pair("link-1", "a", "b", tmp_path, kib=2)
    assert [path.name for path in paths] == ["link-1.a.pair", "link-1.b.pair"]
    (header, key), (other, copy) = (load_pair(path) for path in paths)
    assert header == other
    assert (header.link, header.alice, header.bob, header.key_bytes) == ("link-1", "a", "b", 2048)
    assert len(header.pair_id) == 16
    assert equal(key, copy)
    (tmp_path / "again").mkdir(mode=0o700)
    fresh, different = load_pair(provision_pair("link-1", "a", "b", tmp_path / "again", kib=2)[0])
    assert fresh.pair_id != header.pair_id
    assert not equal(key, different)


def test_a_pair_file_is_used_only_whole_and_under_its_name(tmp_path: Path) -> None:
    path, _ = provision_pair("l", "a", "b", tmp_path, kib=1)
    whole = path.read_bytes()
    for damaged, complaint in (
        (whole[:-1], "cut off"),
        (whole[:40], "not a pair file"),
        (b"X" + whole[1:], "not a pair file"),
        (whole[:8] + b"\2" + whole[9:], "version 2"),
        (whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:], "damaged"),
        (whole[:20] + b"m" + whole[21:], "damaged"),
        (whole[: PAIR.size], "cut off"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match=complaint):
            load_pair(path)
    path.write_bytes(whole)
    with pytest.raises(ConfigError, match="its name does not say"):
        load_pair(path.rename(tmp_path / "l.c.pair"))


def test_impossible_pairs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="both nodes"):
        provision_pair("l", "a", "a", tmp_path)
    for kib in (0, -1, 1 << 20):
        with pytest.raises(ConfigError, match="`kib`"):
            provision_pair("l", "a", "b", tmp_path, kib=kib)
    with pytest.raises(ConfigError, match="cannot read"):
        load_pair(tmp_path / "l.a.pair")


def test_an_operator_is_provisioned_with_a_private_secret_that_signs(tmp_path: Path) -> None:
    public = provision_operator("olga", tmp_path / "people")
    assert mode(tmp_path / "people") == 0o700
    assert mode(tmp_path / "people" / "olga.operator") == 0o600
    assert load_public_operator(tmp_path / "people" / "olga.public") == public
    with load_operator(tmp_path / "people" / "olga.operator") as own:
        assert own.public == public
        signature = own.sign(b"message")
    assert operator_signed(public, signature, b"message")
    assert not operator_signed(public, signature, b"another")
    secret = (tmp_path / "people" / "olga.operator").read_bytes()
    with pytest.raises(ConfigError, match="is there already"):
        provision_operator("olga", tmp_path / "people")
    assert (tmp_path / "people" / "olga.operator").read_bytes() == secret
    with pytest.raises(ConfigError, match="no name for a operator"):
        provision_operator("../olga", tmp_path)


def test_an_operator_is_not_taken_for_another_kind_nor_another_kind_for_an_operator(tmp_path: Path) -> None:
    provision_operator("olga", tmp_path)
    provision_node("node-a", tmp_path)
    with pytest.raises(ConfigError, match="node node-a; an operator's is needed"):
        load_public_operator(tmp_path / "node-a.public")
    with pytest.raises(ConfigError, match="not a public identity"):
        load_public(tmp_path / "olga.public")
    with pytest.raises(ConfigError, match="is no operator"):
        load_operator(tmp_path / "node-a.identity")


@pytest.mark.parametrize("content", [b"{}", b"\xff\xfe", b'{"kind": "operator", "name": "olga"}', b"x" * 5000])
def test_a_file_that_is_no_operator_is_refused_without_its_content(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "olga.operator"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError) as refused:
        load_operator(path)
    assert content.decode("latin-1")[:10] not in str(refused.value)
