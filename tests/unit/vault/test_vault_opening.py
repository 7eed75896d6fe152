"""Opening, closing, crashing, filling the disk; what reaches the files."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from signing import OTHER, PUBLIC, SIGNING
from vaults import (
    EVERYWHERE,
    FIRST,
    HERE,
    LINK,
    Counter,
    End,
    Pair,
    contents,
    material_of,
    waiting,
)

from qkdnode.audit.events import AccessEvent, AlarmEvent, LinkEvent
from qkdnode.audit.verifier import verify
from qkdnode.errors import (
    AuditError,
    DiskFullError,
    LocalProtocolError,
    NoEntropyError,
    VaultDamagedError,
    VaultError,
    VaultLockedError,
)
from qkdnode.ids import ALICE
from qkdnode.vault import root, service
from qkdnode.vault.export_reader import export_audit
from qkdnode.vault.requests import Checkpoint, RecordEvent, Request, ReservePads, Status
from qkdnode.vault.root import CredentialFile, PassphraseFile, RootParameters
from qkdnode.vault.service import Vault


@pytest.fixture
def end(tmp_path: Path) -> Iterator[End]:
    made = End(tmp_path, ALICE)
    yield made
    made.vault.close()


def alarm(subject: str = "metro", **details: Any) -> RecordEvent:
    event = AlarmEvent(time_ns=5, node="a", topic="link.metro", kind="link.qber_high", subject=subject, details=details)
    return RecordEvent(event=event)


def passphrase(directory: Path, text: bytes = b"correct horse\n", mode: int = 0o600) -> PassphraseFile:
    file = directory / "passphrase"
    file.write_bytes(text)
    file.chmod(mode)
    return PassphraseFile(file, memory_kib=1024, iterations=1, lanes=1)


def opened(path: Path, source: root.RootSource, *, create: bool = False) -> Vault:
    counter = Counter()
    return Vault.open(
        path,
        root=source,
        node="a",
        draw_into=counter.draw_into,
        signer=SIGNING,
        clock_ns=counter.clock_ns,
        create=create,
    )


@pytest.mark.parametrize(
    "parameters",
    [
        RootParameters("argon2id", bytes(16), 0, 1, 1024),
        RootParameters("argon2id", bytes(16), 1, 4, 1),
        RootParameters("argon2id", b"", 1, 1, 1024),
        RootParameters("scrypt", bytes(16), 0, 1, 1000),
        RootParameters("scrypt", bytes(16), 0, 0, 1024),
    ],
)
def test_a_derivation_that_cannot_be_is_damage(tmp_path: Path, parameters: RootParameters) -> None:
    with pytest.raises(VaultDamagedError, match="cannot be derived as the vault says"):
        passphrase(tmp_path).unlock(parameters)


@pytest.mark.parametrize(
    ("name", "value"),
    [("memory_kib", 2**40), ("iterations", 2**31), ("lanes", 2**20), ("memory_kib", -1), ("salt", "AAAA")],
)
def test_a_vault_cannot_ask_for_more_memory_or_time_than_any_derivation_takes(
    tmp_path: Path, name: str, value: object
) -> None:
    path = tmp_path / "v" / "vault.db"
    opened(path, passphrase(tmp_path), create=True).close()
    connection = apsw.Connection(str(path))
    ((stored,),) = connection.execute("SELECT value FROM meta WHERE name = 'root parameters'").fetchall()
    changed = msgspec.json.encode({**msgspec.json.decode(stored), name: value})
    connection.execute("UPDATE meta SET value = ? WHERE name = 'root parameters'", (changed,))
    connection.close()
    with pytest.raises(VaultDamagedError, match="does not say how its root key is derived"):
        opened(path, passphrase(tmp_path))


def test_a_passphrase_opens_the_vault_it_made_and_no_other_does(tmp_path: Path) -> None:
    path = tmp_path / "v" / "vault.db"
    opened(path, passphrase(tmp_path), create=True).close()
    opened(path, passphrase(tmp_path, b"correct horse")).close()
    opened(path, passphrase(tmp_path, b"correct horse\r\nsecond line\n")).close()
    for wrong in (b"wrong\n", b"correct horse \n"):
        with pytest.raises(VaultLockedError, match="does not open vault"):
            opened(path, passphrase(tmp_path, wrong))
    (tmp_path / "credential").write_bytes(bytes(32))
    with pytest.raises(VaultLockedError, match="argon2id"):
        opened(path, CredentialFile("credential", tmp_path))


def test_scrypt_serves_where_argon2id_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(**_: object) -> None:
        raise UnsupportedAlgorithm("no Argon2id")

    here, there = tmp_path / "here" / "vault.db", tmp_path / "there" / "vault.db"
    opened(there, passphrase(tmp_path), create=True).close()
    monkeypatch.setattr(root, "Argon2id", missing)
    opened(here, passphrase(tmp_path), create=True).close()
    opened(here, passphrase(tmp_path)).close()
    with pytest.raises(VaultLockedError, match="needs Argon2id"):
        opened(there, passphrase(tmp_path))
    with pytest.raises(VaultLockedError, match="does not open"):
        opened(here, passphrase(tmp_path, b"wrong"))


@pytest.mark.parametrize(
    ("text", "mode", "advice"),
    [(b"x", 0o640, "chmod 600"), (b"x", 0o604, "chmod 600"), (b"\nx", 0o600, "empty line"), (b"", 0o600, "0 bytes")],
)
def test_an_unfit_passphrase_file_is_refused(tmp_path: Path, text: bytes, mode: int, advice: str) -> None:
    with pytest.raises(VaultError, match=advice):
        opened(tmp_path / "v" / "vault.db", passphrase(tmp_path, text, mode), create=True)


def test_only_a_regular_file_holds_a_passphrase(tmp_path: Path) -> None:
    passphrase(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "passphrase")
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("link", "pipe", "absent"):
        with pytest.raises(VaultError, match=name):
            PassphraseFile(tmp_path / name).unlock(RootParameters("argon2id", bytes(16), 1, 1, 1024))


def test_a_credential_is_found_where_systemd_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "v" / "vault.db"
    (tmp_path / "vault-key").write_bytes(bytes(range(32)))
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(VaultError, match="LoadCredential"):
        opened(path, CredentialFile("vault-key"), create=True)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    opened(path, CredentialFile("vault-key"), create=True).close()
    opened(path, CredentialFile("vault-key", tmp_path)).close()
    (tmp_path / "vault-key").write_bytes(bytes(15))
    with pytest.raises(VaultError, match="at least 16"):
        opened(path, CredentialFile("vault-key"))
    for name in ("", "a/b", "..", "."):
        with pytest.raises(VaultError, match="no name"):
            CredentialFile(name)


def test_a_vault_is_made_only_when_asked_and_only_once(end: End) -> None:
    with pytest.raises(VaultError, match="there is no vault"):
        opened(end.path.with_name("other.db"), end.root())
    leaves = end.call(Status()).leaves
    end.vault.close()
    end.open(create=True)
    assert end.call(Status()).leaves == leaves + 2


def test_files_are_the_owners_alone(end: End) -> None:
    end.call(alarm())
    assert end.directory.stat().st_mode & 0o777 == 0o700
    names = {file.name for file in end.directory.glob("vault.db*")}
    assert {"vault.db", "vault.db-wal", "vault.db.lock"} <= names
    assert all(file.stat().st_mode & 0o077 == 0 for file in end.directory.glob("vault.db*"))
    end.vault.close()
    for path, advice in ((end.directory, "chmod 700"), (end.path, "chmod 600")):
        path.chmod(0o755)
        with pytest.raises(VaultError, match=advice):
            end.open()
        path.chmod(0o700)


def test_a_second_opener_is_turned_away(end: End) -> None:
    with pytest.raises(VaultError, match="open in another agent"):
        opened(end.path, end.root())
    assert end.call(Status()).leaves


def test_a_vault_of_another_node_or_key_or_a_foreign_file_is_refused(end: End) -> None:
    end.vault.close()
    with pytest.raises(VaultError, match="belongs to node 'a'"):
        end.open(node="z")
    with pytest.raises(VaultError, match="another key"):
        end.open(signer=OTHER)
    with end.tampering() as file:
        file.execute("PRAGMA user_version = 99")
    with pytest.raises(VaultError, match="format 99"):
        end.open()
    end.path.write_bytes(b"not a database" * 100)
    with pytest.raises(VaultDamagedError, match="not a database"):
        end.open()


def test_no_answer_comes_after_closing(end: End) -> None:
    last = end.vault.ask(Status())
    end.vault.close()
    end.vault.close()
    assert last.result().leaves
    with pytest.raises(VaultError, match="closed"):
        end.vault.ask(Status())
    assert not end.path.with_name("vault.db-wal").exists()


def test_an_unknown_request_and_a_cancelled_one_do_no_harm(end: End) -> None:
    class Unknown(Request, frozen=True):
        pass

    with pytest.raises(LocalProtocolError, match="Unknown"):
        end.call(Unknown())
    cancelled: Future[Any] = Future()
    cancelled.cancel()
    end.vault._queue.put(service.Asked(alarm(), cancelled))
    leaves = end.call(Status()).leaves
    end.call(alarm())
    assert end.call(Status()).leaves == leaves + 1
    with pytest.raises(CancelledError):
        cancelled.result()


def test_requests_of_one_group_are_committed_together_and_fail_alone(pair: Pair) -> None:
    ask = pair.alice.vault.ask
    answers = [ask(ReservePads(link=LINK, within=EVERYWHERE, count=1 + 999 * (i % 2))) for i in range(40)]
    taken = [pad for answer in answers[::2] for pad in answer.result()]
    assert [pad.index for pad in taken] == list(range(20))
    assert all(answer.exception() is not None for answer in answers[1::2])


def test_without_entropy_nothing_is_sealed_and_nothing_changes(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def dry(_: object) -> None:
        raise NoEntropyError("no healthy QRNG")

    pair.stock()
    leaves = pair.alice.call(Status()).leaves
    monkeypatch.setattr(pair.alice.vault._core._store.sealing, "_draw_into", dry)
    with pytest.raises(NoEntropyError):
        pair.allocate(pair.alice)
    monkeypatch.undo()
    assert pair.alice.call(Status()).leaves == leaves
    assert pair.ready()


def test_a_full_disk_changes_nothing_and_the_vault_recovers(pair: Pair) -> None:
    pair.stock()
    connection = pair.alice.vault._core._connection
    before = pair.alice.call(Status())
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}").fetchall()
    done = 0

    def fill() -> None:
        nonlocal done
        for _ in range(200):
            pair.allocate(pair.alice, 2)
            done += 1

    with pytest.raises(DiskFullError, match="make room"):
        fill()
    full = pair.alice.call(Status())
    assert full.keys.get("allocated", 0) == 2 * done
    assert full.stock_bits_own[LINK] == before.stock_bits_own[LINK] - 512 * done
    assert len(waiting(pair.alice)) == done
    connection.execute("PRAGMA max_page_count = 1000000").fetchall()
    ids = pair.ready()
    assert contents(pair.alice, ids[0]) == contents(pair.bob, ids[0])
    pair.alice.reopen()


def test_a_group_fails_whole_on_a_full_disk(pair: Pair) -> None:
    connection = pair.alice.vault._core._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}").fetchall()
    leaves = pair.alice.call(Status()).leaves
    answers = [pair.alice.vault.ask(alarm(text="x" * 200)) for _ in range(400)]
    durable = sum(answer.exception() is None for answer in answers)
    assert durable < 400
    assert all(isinstance(answer.exception(), DiskFullError | None) for answer in answers)
    connection.execute("PRAGMA max_page_count = 1000000").fetchall()
    assert pair.alice.call(Status()).leaves == leaves + durable
    pair.alice.reopen()


def test_an_event_that_cannot_be_a_leaf_is_refused(end: End) -> None:
    leaves = end.call(Status()).leaves
    with pytest.raises(AuditError):
        end.call(alarm(text="x" * 300))
    with pytest.raises(LocalProtocolError, match="is the vault's"):
        end.call(alarm(subject="key/0123"))
    assert end.call(Status()).leaves == leaves


def test_events_are_numbered_in_their_topic_over_restarts(end: End) -> None:
    positions = [end.call(alarm()), end.call(alarm())]
    end.reopen()
    positions.append(end.call(alarm()))
    event = LinkEvent(time_ns=1, node="a", topic="link.other", kind="link.up", subject="other")
    end.call(RecordEvent(event=event))
    found = dict(end.vault.events_after(positions[0]))
    assert [found[position].topic_sequence for position in positions] == [1, 2, 3]
    assert end.vault.events_after(positions[-1], 1) == ((positions[-1], found[positions[-1]]),)


def exported(end: End) -> list[str]:
    lines: list[str] = []
    assert export_audit(end.path, lines.append) == sum(line.startswith('{"leaf"') for line in lines)
    return lines


def test_the_log_is_exported_from_a_running_and_a_closed_vault_and_verifies(pair: Pair) -> None:
    pair.stock()
    pair.ready()
    note = pair.alice.call(Checkpoint())
    assert pair.alice.call(Checkpoint()) == note
    report = verify(exported(pair.alice), PUBLIC)
    assert (report.valid, report.checkpoints, report.unsigned_tail) == (True, 2, 0)  # one at the first commit
    pair.alice.call(alarm())
    assert verify(exported(pair.alice), PUBLIC).unsigned_tail == 1
    pair.alice.vault.close()
    report = verify(exported(pair.alice), PUBLIC)
    assert (report.valid, report.checkpoints, report.unsigned_tail) == (True, 3, 0)
    with pair.alice.tampering() as file:
        file.execute("UPDATE leaves SET leaf = replace(leaf, 'metro', 'retro') WHERE position = 3")
    assert not verify(exported(pair.alice), PUBLIC).valid
    with pytest.raises(VaultError, match="no vault"):
        export_audit(pair.alice.path.with_name("absent"), print)


def test_a_checkpoint_is_signed_every_thousand_leaves(end: End) -> None:
    for answer in [end.vault.ask(alarm()) for _ in range(2100)]:
        answer.result()
    report = verify(exported(end), PUBLIC)
    assert report.valid
    assert report.checkpoints in (2, 3)  # one at the first commit, of however many requests that is
    assert report.unsigned_tail < 1100


def test_names_of_keys_and_applications_stay_out_of_the_log(pair: Pair) -> None:
    pair.stock()
    ids = pair.ready()
    pair.alice.call(Checkpoint())
    text = "".join(exported(pair.alice))
    for name in (str(ids[0]), ids[0].hex, HERE.local, HERE.remote):
        assert name not in text


def test_no_key_material_reaches_the_files(pair: Pair) -> None:
    pair.stock()
    ids = pair.ready()
    material = material_of(FIRST, 70_000)
    markers = [material[i : i + 16] for i in range(0, len(material) - 16, 16)]
    for end in pair.ends:
        markers += [contents(end, i)[:16] for i in ids]
        everything = b"".join(file.read_bytes() for file in end.directory.iterdir() if file.name.startswith("vault.db"))
        assert len(everything) > 70_000 // 8
        assert not [marker for marker in markers if marker in everything]
        assert ids[0].bytes in everything  # the scan does find what is there


WORKER = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from vaults import *
from qkdnode.vault.requests import ReservePads
end = End(Path(sys.argv[1]), ALICE)
end.provision(4096)
end.open_link()
while True:
    pads = end.call(ReservePads(link=LINK, within=EVERYWHERE, count=1))
    print(pads[0].index, flush=True)
"""


def test_pads_answered_before_a_kill_are_never_reserved_again(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORKER, str(tmp_path), str(Path(__file__).parent), str(Path(__file__).parents[2])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        reserved = [int(worker.stdout.readline()) for _ in range(20)]
        os.kill(worker.pid, signal.SIGKILL)
        reserved += [int(line) for line in worker.stdout.read().split()]
    end = object.__new__(End)
    end.role, end.directory, end.counter = ALICE, tmp_path / "a", Counter()
    end.path = end.directory / "vault.db"
    end.open()
    (state,) = end.open_link().segments
    assert state.sending >= reserved[-1] + 1
    (pad,) = end.call(ReservePads(link=LINK, within=EVERYWHERE, count=1))
    assert pad.index not in reserved
    end.vault.close()


def test_a_vault_half_made_is_made_again(tmp_path: Path) -> None:
    directory = tmp_path / "v"
    directory.mkdir(mode=0o700)
    (directory / "vault.db.new").write_bytes(b"half")
    opened(directory / "vault.db", passphrase(tmp_path), create=True).close()
    assert not (directory / "vault.db.new").exists()


def test_who_asked_for_access_stays_out_of_the_log_too(end: End) -> None:
    fields = {"time_ns": 1, "node": "node", "topic": "access", "kind": "access.subscribe", "outcome": "refused"}
    event = AccessEvent(**fields, subject="app-secret-name", details={"to": "app-secret-name<->app-far over metro"})
    end.call(RecordEvent(event=event))
    end.call(RecordEvent(event=event))
    text = "".join(exported(end))
    assert "app-secret-name" not in text
    assert "app-far" not in text
    leaves = [event for _, event in end.vault.events_after(0, 4096) if event.kind == "access.subscribe"]
    assert len({leaf.subject for leaf in leaves}) == 1
    assert len(leaves) == 2
