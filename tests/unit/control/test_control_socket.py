"""Where a control socket may be: nowhere that others can reach, in nobody's place, and only its own is removed."""

import os
import socket
import stat
from pathlib import Path

import pytest
from control_node import ControlNode

from qkdnode.control.socket import MAX_PATH_BYTES, bind_private, peer_credentials, remove
from qkdnode.errors import ConfigError


@pytest.fixture
def private(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


def test_the_socket_is_private_and_tells_who_connected(private: Path) -> None:
    bound = bind_private(private / "new" / "socket")
    assert stat.S_IMODE(os.lstat(bound.path).st_mode) == 0o600
    assert stat.S_IMODE(os.lstat(bound.path.parent).st_mode) == 0o700
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(os.fspath(bound.path))
        accepted, _ = bound.listening.accept()
        with accepted:
            who = peer_credentials(accepted)
    assert (who.pid, who.uid, who.gid) == (os.getpid(), os.geteuid(), os.getegid())
    remove(bound)
    assert not bound.path.exists()


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701, 0o777])
def test_a_directory_that_is_open_to_others_is_refused(private: Path, mode: int) -> None:
    (private / "open").mkdir()
    (private / "open").chmod(mode)
    with pytest.raises(ConfigError, match="open to others: chmod 700"):
        bind_private(private / "open" / "socket")
    assert not (private / "open" / "socket").exists()


def test_a_directory_below_one_where_others_may_rename_is_refused(private: Path) -> None:
    (private / "shared" / "mine").mkdir(parents=True)
    (private / "shared" / "mine").chmod(0o700)
    (private / "shared").chmod(0o777)
    with pytest.raises(ConfigError, match="others may rename"):
        bind_private(private / "shared" / "mine" / "socket")
    (private / "shared").chmod(0o1777)  # as /tmp is
    remove(bind_private(private / "shared" / "mine" / "socket"))


def test_a_link_in_place_of_the_directory_or_a_file_in_place_of_the_socket_is_refused(private: Path) -> None:
    (private / "real").mkdir(mode=0o700)
    (private / "link").symlink_to(private / "real")
    with pytest.raises(ConfigError, match="no directory"):
        bind_private(private / "link" / "socket")
    precious = private / "precious"
    precious.write_text("data")
    with pytest.raises(ConfigError, match="is no socket: it is not overwritten"):
        bind_private(precious)
    (private / "dangling").symlink_to(private / "nowhere")
    with pytest.raises(ConfigError, match="is no socket"):
        bind_private(private / "dangling")
    assert precious.read_text() == "data"


def test_a_path_that_is_too_long_is_refused_by_its_length(private: Path) -> None:
    with pytest.raises(ConfigError, match=f"{MAX_PATH_BYTES} are possible"):
        bind_private(private / ("x" * 120))


def test_a_socket_that_was_left_behind_is_removed_and_one_in_use_is_not(private: Path) -> None:
    left = bind_private(private / "socket")
    left.listening.close()  # as a crash does
    again = bind_private(private / "socket")
    with pytest.raises(ConfigError, match="another agent listens"):
        bind_private(private / "socket")
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(os.fspath(again.path))
    remove(again)


def test_a_socket_that_took_its_place_is_not_removed(private: Path) -> None:
    first = bind_private(private / "socket")
    first.path.rename(private / "aside")  # so that its inode is not given to the next
    second = bind_private(private / "socket")
    remove(first)
    assert second.path.exists()
    remove(second)
    remove(second)  # what is gone is gone


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a directory of another user")
def test_a_directory_of_another_user_is_refused(private: Path) -> None:
    (private / "theirs").mkdir(mode=0o700)
    os.chown(private / "theirs", 4242, 4242)
    with pytest.raises(ConfigError, match="belongs to user 4242"):
        bind_private(private / "theirs" / "socket")


def test_a_server_on_an_unsafe_path_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "control").mkdir(mode=0o755)
    (tmp_path / "control").chmod(0o755)
    with pytest.raises(ConfigError, match="open to others"), ControlNode(tmp_path):
        pass


def test_a_server_that_is_closed_leaves_no_socket(tmp_path: Path) -> None:
    with ControlNode(tmp_path) as node:
        caller = node.caller()
        assert node.path.exists()
    assert not node.path.exists()
    assert caller.is_ended()
    caller.socket.close()
