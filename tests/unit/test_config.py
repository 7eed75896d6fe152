"""The configuration is decoded strictly: what is wrong is named."""

from pathlib import Path

import pytest

from qkdnode.config import Config, decode_config, load_config
from qkdnode.errors import ConfigError

GOOD = """
[node]
name = "alice"
identity = "alice.identity"
vault = "alice.vault"
root_key = { passphrase_file = "passphrase" }

[supply]
listen = "tcp://127.0.0.1:5601"

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


def test_a_good_configuration_is_decoded() -> None:
    config = decode_config(GOOD)
    assert isinstance(config, Config)
    assert config.link[0].distill.method == "rusca2018/1"
    assert config.qrng[0].min_entropy_per_byte == 6.0


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('name = "alice"', 'nmae = "alice"', "nmae"),
        ('name = "alice"\nidentity', 'name = "Alice!"\nidentity', "name"),
        ('serial = "QRNG-1"', "serial = 7", "serial"),
        ('role = "alice"', 'role = "eve"', "role"),
        ('listen = "tcp://0.0.0.0:5600"', 'listen = "udp://x"', "listen"),
        ('listen = "tcp://0.0.0.0:5600"', "", "connect"),
        ('backend = "libusb" }', 'backend = "emulated" }', "emulated"),
        ('link = "alice-bob"\n', 'link = "other"\n', "other"),
        ('local = "app-a"', 'local = "app-x"', "app-x"),
        ('[[qrng]]\nserial = "QRNG-1"\nbackend = "libusb"', "", "qrng"),
        ('passphrase_file = "passphrase"', 'passphrase_file = "p", credential = "c"', "root_key"),
        ('listen = "tcp://127.0.0.1:5601"', 'listen = "tcp://127.0.0.1:5601"\nport = 1', "port"),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, named: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError, match=named):
        decode_config(GOOD.replace(old, new, 1))


@pytest.mark.parametrize(
    ("distill", "named"),
    [
        ("qber_limit = 0.4", "qber_limit"),
        ("window_slots = 1025", "window_slots"),
        ("batch_bits = 5_000_000\nbatch_max_bits = 4_000_000", "batch_max_bits"),
        ('method = "lim2014/1"', "method"),
        ("intensity_probabilities = [0.5, 0.3, 0.2]", "intensity_probabilities"),
        ("slots = 3", "slots"),
    ],
)
def test_what_is_wrong_in_distillation_is_named(distill: str, named: str) -> None:
    text = GOOD.replace("[[association]]", f"[link.distill]\n{distill}\n\n[[association]]")
    with pytest.raises(ConfigError, match=named):
        decode_config(text)


def test_a_name_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="'QRNG-1' is there twice"):
        decode_config(GOOD.replace("[[link]]", '[[qrng]]\nserial = "QRNG-1"\nbackend = "libusb"\n\n[[link]]'))


def test_a_node_with_two_links_is_a_list() -> None:
    second = GOOD[GOOD.index("[[link]]") : GOOD.index("[[association]]")]
    second = second.replace('"alice-bob"', '"alice-carol"').replace("TX-1", "TX-2").replace("5600", "5602")
    assert len(decode_config(GOOD.replace("[[association]]", f"{second}\n[[association]]")).link) == 2


def test_text_that_is_not_toml_and_files_that_are_not_there_are_errors_that_name_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not TOML"):
        decode_config("[node")
    with pytest.raises(ConfigError, match=r"missing\.toml"):
        load_config(tmp_path / "missing.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_config(binary)
