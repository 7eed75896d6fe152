"""`qkdnode install`, and what it installs: a unit that systemd takes, a rule for our devices, a configuration."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from qkdnode.cli.install import PIECES, command, state_of, text_of
from qkdnode.config import decode_config, load_config
from qkdnode.device.transport import PRODUCT_ID, VENDOR_ID
from qkdnode.errors import ConfigError

PROGRAM = "/opt/qkdnode/bin/qkdnode"
EXPOSURE = 12  # tenths, as `systemd-analyze security` rates it; a bare unit has 96


def piece(source: str) -> str:
    return text_of(next(one for one in PIECES if one.source == source), PROGRAM)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(command, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_dry_run_names_everything_and_writes_nothing(tmp_path: Path) -> None:
    said = run("--root", str(tmp_path), "--program", PROGRAM, "--dry-run")
    assert said.count("new ") == len(PIECES)
    assert "Nothing was written" in said
    assert list(tmp_path.iterdir()) == []


def test_files_are_written_once_and_replaced_when_they_change(tmp_path: Path) -> None:
    said = run("--root", str(tmp_path), "--program", PROGRAM)
    assert "systemctl enable --now qkdnode@NAME" in said
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {one.target for one in PIECES}
    assert all((tmp_path / name).stat().st_mode & 0o777 == 0o644 for name in written)
    assert run("--root", str(tmp_path), "--program", PROGRAM).count("unchanged") == len(PIECES)

    rule = tmp_path / "etc/udev/rules.d/70-qkdnode.rules"
    rule.write_text("of an older version")
    said = run("--root", str(tmp_path), "--program", PROGRAM)
    assert (said.count("changed   "), said.count("unchanged")) == (1, len(PIECES) - 1)
    assert rule.read_text() == piece("70-qkdnode.rules")


def test_the_unit_starts_the_program_of_this_installation(tmp_path: Path) -> None:
    run("--root", str(tmp_path))
    unit = (tmp_path / "etc/systemd/system/qkdnode@.service").read_text()
    (program,) = re.findall(r"^ExecStart=(\S+) run --config /etc/qkdnode/%i.toml", unit, re.MULTILINE)
    assert Path(program).is_absolute()
    assert "@QKDNODE@" not in unit


def test_a_program_that_the_unit_hides_from_itself_is_said(tmp_path: Path) -> None:
    assert "hides from itself" in run("--root", str(tmp_path), "--program", "/home/ann/venv/bin/qkdnode")
    assert "hides from itself" not in run("--root", str(tmp_path), "--program", PROGRAM)


@pytest.mark.parametrize("program", ["qkdnode", "/opt/my node/qkdnode", "/opt/%h/qkdnode", '/opt/"x"'])
def test_a_program_that_the_unit_cannot_start_is_refused(tmp_path: Path, program: str) -> None:
    with pytest.raises(ConfigError, match="absolute path"):
        run("--root", str(tmp_path), "--program", program)
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_written_the_error_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("a file in the way")
    with pytest.raises(ConfigError, match=r"cannot write .*: run it as root, or give --root"):
        run("--root", str(tmp_path), "--program", PROGRAM)


def test_a_file_that_is_no_text_counts_as_changed(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    assert state_of(tmp_path / "x", "") == "changed"


def test_the_sample_configuration_decodes_as_it_is_installed(tmp_path: Path) -> None:
    run("--root", str(tmp_path), "--program", PROGRAM)
    config = load_config(tmp_path / "etc/qkdnode/sample.toml")
    assert config.node.root_key.credential == "root"
    assert {one.backend for one in config.qrng} | {one.module.backend for one in config.link} == {"libusb"}
    assert config.watch is not None
    for comment in ("#", "# "):  # and with what is commented there is no table of another name
        assert decode_config(f"{comment}\n{piece('sample.toml')}") == config


def test_the_unit_fits_the_sample_configuration() -> None:
    """Where the unit puts the credential and the state is where the configuration looks."""
    unit, config = piece("qkdnode@.service"), decode_config(piece("sample.toml"))
    assert f"\nLoadCredential={config.node.root_key.credential}:/etc/qkdnode/%i.root\n" in unit
    assert "\nStateDirectory=qkdnode/%i\n" in unit
    assert config.node.vault.startswith(f"/var/lib/qkdnode/{config.node.name}/")


def test_the_rule_is_for_our_devices_and_the_units_group() -> None:
    rule = piece("70-qkdnode.rules")
    assert f'ATTR{{idVendor}}=="{VENDOR_ID:04x}", ATTR{{idProduct}}=="{PRODUCT_ID:04x}"' in rule
    assert 'GROUP="qkdnode", MODE="0660"' in rule
    assert "\nGroup=qkdnode\n" in piece("qkdnode@.service")
    assert "\nu qkdnode " in piece("qkdnode.sysusers")


def analysed(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "qkdnode@alice.service"
    unit.write_text(text_of(PIECES[0], shutil.which("true") or "/bin/true"))
    return subprocess.run(
        ["systemd-analyze", *arguments, str(unit)], capture_output=True, text=True, timeout=60, check=False
    )


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    result = analysed(tmp_path, "verify", "--man=no")
    assert (result.returncode, result.stderr.strip()) == (0, "")


def test_the_unit_is_as_exposed_as_is_said(tmp_path: Path) -> None:
    result = analysed(tmp_path, "security", "--offline=yes", "--no-pager", f"--threshold={EXPOSURE}")
    if "unrecognized option" in result.stderr:
        pytest.skip("systemd-analyze cannot rate a unit offline: it is older than 250")
    assert result.returncode == 0, result.stdout[-300:]
    bare = tmp_path / "bare.service"
    bare.write_text("[Service]\nExecStart=/bin/true\n")
    control = ["systemd-analyze", "security", "--offline=yes", "--no-pager", f"--threshold={EXPOSURE}", str(bare)]
    assert subprocess.run(control, capture_output=True, timeout=60, check=False).returncode != 0
