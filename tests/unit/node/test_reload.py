"""A configuration read anew: all of it can be had, or nothing changes; what cannot change at once is named."""

from pathlib import Path
from typing import Any

import pytest

from qkdnode.access.rules import Role
from qkdnode.config import Config, decode_config
from qkdnode.control.conversation import Operators
from qkdnode.errors import ConfigError
from qkdnode.node.provision import provision_application, provision_operator
from qkdnode.node.reload import Reading, compare, load_applications, load_operators

TEXT = """
[node]
name = "alice"
identity = "alice.identity"
vault = "alice.vault"
root_key = { passphrase_file = "passphrase" }

[supply]
listen = "tcp://127.0.0.1:5601"

[control]
socket = "control/socket"

[[operator]]
name = "olga"
public = "olga.public"
roles = ["operator"]

[[application]]
name = "app-a"
public = "app-a.public"

[[qrng]]
serial = "QRNG-1"
backend = "libusb"

[[link]]
name = "alice-bob"
role = "alice"
peer = "bob"
peer_public = "bob.public"
pair_key = "alice-bob.alice.pair"
listen = "tcp://0.0.0.0:5600"
module = { serial = "TX-1", backend = "libusb" }

[[association]]
local = "app-a"
remote = "app-b"
link = "alice-bob"
"""
SVEN = '[[operator]]\nname = "sven"\npublic = "sven.public"\nroles = ["security-officer", "maintainer"]\n\n'
APP_C = '[[application]]\nname = "app-c"\npublic = "app-c.public"\n\n'
TO_C = '\n[[association]]\nlocal = "app-c"\nremote = "app-d"\nlink = "alice-bob"\n'


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    for name in ("olga", "sven"):
        provision_operator(name, tmp_path)
    for name in ("app-a", "app-c"):
        provision_application(name, tmp_path)
    return tmp_path


def read(base: Path, text: str, running: str = TEXT) -> Reading:
    config = decode_config(running)
    known, operators = load_applications(config, base), Operators(load_operators(config, base))
    return compare(config, decode_config(text), base, known, operators)


def test_the_same_file_changes_nothing(base: Path) -> None:
    reading = read(base, TEXT)
    assert (reading.applied, reading.needs_restart, reading.new_associations) == ((), (), ())
    assert reading.config == decode_config(TEXT)


@pytest.mark.parametrize(
    ("old", "new", "applied"),
    [
        ("[[application]]", f"{SVEN}[[application]]", ("operator sven: added",)),
        ('roles = ["operator"]', 'roles = ["operator", "maintainer"]', ("operator olga: changed",)),
        ("[[qrng]]", f"{APP_C}[[qrng]]", ("application app-c: added",)),
        ('socket = "control/socket"', 'socket = "control/socket"\nuids = [0]', ("control.uids",)),
        ("[[qrng]]", '[[asset]]\nowner = "optics"\n\n[[qrng]]', ("asset",)),
    ],
)
def test_what_can_change_at_once_is_told_and_taken_over(base: Path, old: str, new: str, applied: tuple[str]) -> None:
    changed = TEXT.replace(old, new, 1)
    reading = read(base, changed)
    assert (reading.applied, reading.needs_restart) == (applied, ())
    assert reading.config == decode_config(changed)


def test_a_new_association_is_made_and_an_old_one_goes(base: Path) -> None:
    reading = read(base, TEXT.replace("[[qrng]]", f"{APP_C}[[qrng]]") + TO_C)
    assert [entry.local for entry in reading.new_associations] == ["app-c"]
    assert "association app-c<->app-d over alice-bob: added" in reading.applied
    without = TEXT[: TEXT.index("[[association]]")]
    assert read(base, without).applied == ("association app-a<->app-b over alice-bob: removed",)
    assert read(base, without).config.association == ()


@pytest.mark.parametrize(
    ("old", "new", "waiting"),
    [
        ('vault = "alice.vault"', 'vault = "other.vault"', ("node",)),
        ("127.0.0.1:5601", "127.0.0.1:5611", ("supply",)),
        ('serial = "QRNG-1"', 'serial = "QRNG-2"', ("qrng QRNG-2: added", "qrng QRNG-1: removed")),
        ("0.0.0.0:5600", "0.0.0.0:5610", ("link alice-bob: changed",)),
        ("control/socket", "control/other", ("control.socket",)),
        ("[supply]", "[watch]\n[supply]", ("watch",)),
        ("[supply]", '[algorithms.OTP]\nstatus = "deprecated"\n[supply]', ("algorithms",)),
    ],
)
def test_what_needs_a_restart_is_named_and_not_taken_over(base: Path, old: str, new: str, waiting: Any) -> None:
    reading = read(base, TEXT.replace(old, new, 1))
    assert (reading.applied, reading.needs_restart) == ((), waiting)
    assert reading.config == decode_config(TEXT)


def test_an_association_of_a_link_that_is_not_running_waits(base: Path) -> None:
    second = TEXT[TEXT.index("[[link]]") : TEXT.index("[[association]]")]
    second = second.replace('"alice-bob"', '"alice-carol"').replace("TX-1", "TX-2").replace("5600", "5602")
    over_carol = TO_C.replace("alice-bob", "alice-carol").replace("app-c", "app-a")
    text = TEXT.replace("[[association]]", f"{second}[[association]]") + over_carol
    reading = read(base, text)
    assert reading.needs_restart == ("link alice-carol: added", "association app-a<->app-d over alice-carol")
    assert reading.config == decode_config(TEXT)


def test_an_operator_s_new_key_and_an_application_s_are_taken_over(base: Path) -> None:
    config = decode_config(TEXT)
    known, operators = load_applications(config, base), Operators(load_operators(config, base))
    for path in (*base.glob("olga.*"), *base.glob("app-a.*")):
        path.unlink()
    provision_operator("olga", base)
    provision_application("app-a", base)
    reading = compare(config, config, base, known, operators)
    assert reading.applied == ("operator olga: new key", "application app-a: new key")
    assert reading.applications.named("app-a") != known.named("app-a")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (TEXT.replace('public = "olga.public"', 'public = "nobody.public"'), r"nobody\.public"),
        (TEXT.replace('public = "olga.public"', 'public = "app-a.public"'), "an operator's is needed"),
        (TEXT.replace('public = "olga.public"', 'public = "sven.public"'), "is of operator 'sven'"),
        (TEXT.replace('public = "app-a.public"', 'public = "app-c.public"'), "is of application 'app-c'"),
        (TEXT.replace('public = "app-a.public"', 'public = "olga.public"'), "not a public identity"),
    ],
)
def test_a_file_that_is_not_what_the_configuration_says_stops_the_reload(base: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        read(base, text)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('roles = ["operator"]', 'roles = ["king"]', "roles"),
        ('roles = ["operator"]', "roles = []", "roles"),
        ('roles = ["operator"]', 'roles = ["auditor", "auditor"]', "names a role twice"),
        ('[control]\nsocket = "control/socket"\n', "", "`operator` needs a `control`"),
        ('socket = "control/socket"', 'socket = "control/socket"\nuids = [-1]', "uids"),
        ("[[application]]", f"{SVEN}{SVEN}[[application]]", "'sven' is there twice"),
    ],
)
def test_an_error_in_the_file_is_named(old: str, new: str, named: str) -> None:
    assert old in TEXT
    with pytest.raises(ConfigError, match=named):
        decode_config(TEXT.replace(old, new, 1))


def test_operators_have_the_roles_that_the_file_gives_them(base: Path) -> None:
    config: Config = decode_config(TEXT.replace("[[application]]", f"{SVEN}[[application]]", 1))
    roles = {operator.name: operator.roles for operator in load_operators(config, base)}
    assert roles == {"olga": {Role.OPERATOR}, "sven": {Role.SECURITY_OFFICER, Role.MAINTAINER}}


def test_a_file_that_loosens_an_algorithm_is_refused(base: Path) -> None:
    with pytest.raises(ConfigError, match="can only move it earlier"):
        read(base, f"{TEXT}\n[algorithms.X25519]\ndisallowed_from = 2040-01-01\n")
