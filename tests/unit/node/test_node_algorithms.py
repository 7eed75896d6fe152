"""A node and its algorithms: what it refuses to start with, what it alarms, and which day counts."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from signing import SIGNING
from virtual_time import VirtualTimeLoop

from qkdnode.config import Config, decode_config
from qkdnode.errors import AlgorithmDisallowedError, ConfigError, DiskFullError, VaultDamagedError, VaultError
from qkdnode.lifecycle.algorithms import Need
from qkdnode.native.secret import SecretBuffer
from qkdnode.node.algorithms import AlgorithmWatch, day_of, demand_approved, needs_of, registry_of
from qkdnode.node.recorder import Recorder
from qkdnode.vault import requests
from qkdnode.vault.agility import LatestDay, RootMethod, SeeDay, WrapAlgorithms
from qkdnode.vault.core import VaultCore
from qkdnode.vault.epochs import RewrapKeys
from qkdnode.vault.root import CREDENTIAL, CredentialFile, PassphraseFile

DAY_S = 86_400
START_S = 1_796_256_000  # 2026-12-03
NODE = """
[node]
name = "a"
identity = "a.identity"
vault = "a.vault"
root_key = { credential = "root" }
"""


class Log:
    """Nobody reads it."""

    def info(self, event: str, **fields: Any) -> None: ...

    warning = error = info


class Node:
    """A watch over a real vault, under clocks that a test sets."""

    def __init__(self, directory: Path) -> None:
        directory.chmod(0o700)
        (directory / "root").write_bytes(b"0123456789abcdef")
        self.path, self.root = directory / "vault.db", CredentialFile("root", directory)
        self.loop = VirtualTimeLoop()
        self.set_s = 0
        self.disk_full = False
        self.open()

    def open(self) -> None:
        self.core = VaultCore.open(
            self.path, root=self.root, node="a", draw_into=draw_into, signer=SIGNING,
            clock_ns=self.wall_ns, create=not self.path.exists(),
        )  # fmt: skip

    def restart(self) -> None:
        self.core.close()
        self.open()

    def monotonic_ns(self) -> int:
        return round(self.loop.time() * 1e9)

    def wall_ns(self) -> int:
        return (START_S + self.set_s) * 10**9 + self.monotonic_ns()

    async def ask(self, request: Any) -> Any:
        if self.disk_full:
            raise DiskFullError("full")
        return self.call(request)

    def call(self, request: Any) -> Any:
        (outcome,) = self.core.group([request])
        if outcome.error is not None:
            raise outcome.error
        return outcome.value

    def watch(self, text: str = "") -> AlgorithmWatch:
        self.recorder = Recorder("a", ask=self.ask, clock_ns=self.wall_ns, monotonic_ns=self.monotonic_ns, log=Log())
        world: Any = self
        return AlgorithmWatch(config(text), world=world, recorder=self.recorder, ask=self.ask)

    def start(self, text: str = "") -> AlgorithmWatch:
        watch = self.watch(text)
        self.loop.run_until_complete(watch.start())
        return watch

    def run(self, watch: AlgorithmWatch, seconds: float) -> None:
        async def for_a_while() -> None:
            running = asyncio.create_task(watch.run())
            await asyncio.sleep(seconds)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

        self.loop.run_until_complete(for_a_while())

    def alarms(self) -> dict[tuple[str, str], str]:
        return {(alarm.code, alarm.subject): alarm.detail for alarm in self.recorder.alarms.all() if alarm.active}

    def days(self) -> list[tuple[str, str]]:
        events = self.call(requests.EventsAfter(position=0, limit=4096))
        return [(event.kind, event.details["day"]) for _, event in events if event.kind.startswith("day.")]


@pytest.fixture
def node(tmp_path: Path) -> Any:
    made = Node(tmp_path)
    yield made
    made.core.close()
    made.loop.close()


def draw_into(buffer: SecretBuffer) -> None:
    with memoryview(buffer) as view:
        view[:] = bytes(range(len(view)))


def config(text: str) -> Config:
    return decode_config(NODE.replace("[node]\n", f"[node]\n{text}\n") if "\n[" not in text else NODE + text)


def day(days: int) -> str:
    return day_of((START_S + days * DAY_S) * 10**9)


def disallow(id_: str, since: str) -> str:
    return f"\n[algorithms.{id_}]\ndisallowed_from = {since}\n"


def test_a_node_with_what_is_approved_starts_without_a_word(node: Node) -> None:
    node.start()
    assert node.alarms() == {}
    assert node.call(RootMethod()) == CREDENTIAL


def test_a_node_does_not_start_on_a_day_on_which_it_needs_what_is_disallowed(node: Node) -> None:
    text = "\n[algorithms.AES-256-GCM]\ndisallowed_from = 2026-12-03\nreplacement = 'ChaCha20-Poly1305'\n"
    for refuse in (lambda: demand_approved(config(text), day(0)), lambda: node.start(text)):
        with pytest.raises(AlgorithmDisallowedError) as refused:
            refuse()
        told = str(refused.value)
        assert "node a does not start on 2026-12-03: AES-256-GCM (keys, stock and pads at rest) is disallowed" in told
        assert "its replacement is ChaCha20-Poly1305" in told
        assert refused.value.exit_status == 78
    assert ("ALGORITHM_DISALLOWED", "AES-256-GCM") in node.alarms()
    assert demand_approved(config(text), day(-1)) == ()


def test_what_the_node_does_not_need_does_not_keep_it_from_starting(node: Node) -> None:
    node.start(disallow("X25519", day(0)) + disallow("OTP", day(0)) + disallow("Argon2id", day(0)))
    assert node.alarms() == {}


@pytest.mark.parametrize(("method", "id_"), [("argon2id", "Argon2id"), ("scrypt", "scrypt")])
def test_how_the_root_key_is_derived_counts_as_the_vault_says(method: str, id_: str) -> None:
    text = disallow(id_, day(0))
    assert demand_approved(config(text), day(0)) == ()
    with pytest.raises(AlgorithmDisallowedError, match=id_):
        demand_approved(config(text), day(0), method)


def test_an_algorithm_counts_from_when_data_keys_are_wrapped_by_it(node: Node) -> None:
    text = disallow("ChaCha20-Poly1305", day(1))
    watch = node.start(text)
    assert node.call(WrapAlgorithms()) == ("AES-256-GCM",)
    node.call(RewrapKeys(to="ChaCha20-Poly1305", by="olga"))
    node.run(watch, 120)
    assert node.alarms() == {}
    node.set_s += 86_400
    node.run(watch, 120)
    assert set(node.alarms()) == {("ALGORITHM_DISALLOWED", "ChaCha20-Poly1305")}
    for to in ("ChaCha20-Poly1305", "epoch"):
        with pytest.raises(VaultError, match=r"ChaCha20-Poly1305 is disallowed today.*allowed: AES-256-GCM"):
            node.call(RewrapKeys(to=to, by="olga"))
    node.restart()
    with pytest.raises(AlgorithmDisallowedError, match="wrapping of data keys at rest"):
        node.start(text)


def test_a_vault_of_a_passphrase_says_so(tmp_path: Path) -> None:
    made = Node.__new__(Node)
    tmp_path.chmod(0o700)
    (tmp_path / "passphrase").write_text("correct horse")
    (tmp_path / "passphrase").chmod(0o600)
    made.path, made.root = tmp_path / "vault.db", PassphraseFile(tmp_path / "passphrase", memory_kib=64, iterations=1)  # type: ignore[assignment]
    made.loop, made.set_s = VirtualTimeLoop(), 0
    made.open()
    assert made.call(RootMethod()) in ("argon2id", "scrypt")
    made.core.close()
    made.loop.close()


def test_needs_follow_the_configuration() -> None:
    assert needs_of(config("")) == frozenset()
    whole = config(
        '\n[supply]\nlisten = "tcp://127.0.0.1:1"\n[control]\nsocket = "s"\n'
        '[events]\npublish = "tcp://127.0.0.1:2"\nreplay = "tcp://127.0.0.1:3"\n'
    )
    assert needs_of(whole, CREDENTIAL) == {Need.SUPPLY, Need.CONTROL, Need.EVENTS, Need.CREDENTIAL}


def test_what_is_deprecated_is_an_alarm_with_its_last_day_and_its_replacement(node: Node) -> None:
    node.set_s = (7 * 365) * DAY_S
    node.start()
    assert set(node.alarms()) == {("ALGORITHM_DEPRECATED", "Ed25519")}
    assert (
        "disallowed from 2036-01-01; its replacement is ML-DSA-65" in node.alarms()["ALGORITHM_DEPRECATED", "Ed25519"]
    )


def test_a_running_node_alarms_on_the_day_and_goes_on(node: Node) -> None:
    watch = node.start(f"\n[algorithms.SHA-256]\ndeprecated_from = {day(1)}\ndisallowed_from = {day(2)}\n")
    assert node.alarms() == {}
    node.run(watch, DAY_S + 120)
    assert set(node.alarms()) == {("ALGORITHM_DEPRECATED", "SHA-256")}
    node.run(watch, DAY_S)
    assert set(node.alarms()) == {("ALGORITHM_DISALLOWED", "SHA-256")}


def test_a_clock_that_is_set_back_loosens_nothing_while_the_node_runs(node: Node) -> None:
    watch = node.start(disallow("SHA-256", day(2)))
    node.set_s = 3 * DAY_S
    node.run(watch, 120)
    assert ("ALGORITHM_DISALLOWED", "SHA-256") in node.alarms()
    node.set_s = 0
    node.run(watch, 120)
    assert watch.day == day(3)
    assert ("ALGORITHM_DISALLOWED", "SHA-256") in node.alarms()


def test_a_day_on_which_the_clock_was_even_for_an_hour_outlives_a_restart(node: Node) -> None:
    node.run(node.start(), 2 * DAY_S)
    assert node.days() == [("day.seen", day(0)), ("day.seen", day(1)), ("day.seen", day(2))][: len(node.days())]
    assert node.call(LatestDay()) >= day(1)
    seen = node.call(LatestDay())
    node.restart()
    node.set_s = -10 * DAY_S
    with pytest.raises(AlgorithmDisallowedError, match=f"does not start on {seen}"):
        node.start(disallow("SHA-256", seen))


def test_a_clock_that_jumps_for_a_while_leaves_no_trace_in_the_vault(node: Node) -> None:
    watch = node.start()
    node.run(watch, 3700)
    node.set_s = 9000 * DAY_S
    node.run(watch, 3500)
    node.set_s = 0
    node.run(watch, 3500)
    assert node.days() == [("day.seen", day(0))]


def test_days_after_a_mistake_of_the_clock_are_taken_back_by_the_configuration_and_that_is_told(node: Node) -> None:
    assert node.call(SeeDay(day="2099-01-01")) == "2099-01-01"
    with pytest.raises(AlgorithmDisallowedError, match="2099-01-01"):
        node.start()
    node.restart()
    watch = node.start("clock_was_wrong_after = 2026-12-01")
    assert watch.day == day(0)
    assert node.days()[-1] == ("day.taken_back", day(0))
    node.restart()
    assert node.start().day == day(0)


def test_a_date_of_the_configuration_takes_no_right_day_back(node: Node) -> None:
    node.call(SeeDay(day=day(5)))
    assert node.start(f"clock_was_wrong_after = {day(9)}").day == day(5)
    assert node.days() == [("day.seen", day(5))]


def test_an_earlier_day_changes_nothing_unless_it_is_taken_back(node: Node) -> None:
    node.call(SeeDay(day=day(5)))
    assert node.call(SeeDay(day=day(5))) == day(5)
    assert node.call(SeeDay(day=day(4))) == day(5)
    assert len(node.days()) == 1


def test_while_the_vault_takes_no_day_the_node_goes_on_and_notes_it_later(node: Node) -> None:
    watch = node.start()
    node.disk_full = True
    node.run(watch, 4000)
    assert [code for code, _ in node.alarms()] == ["DISK_FULL"]
    node.disk_full = False
    node.run(watch, 120)
    assert node.days() == [("day.seen", day(0))]


@pytest.mark.parametrize("written", ['"soon"', "7", "null"])
def test_a_day_that_somebody_wrote_into_the_log_is_not_believed(node: Node, written: str) -> None:
    node.call(SeeDay(day=day(5)))
    statement = "UPDATE leaves SET leaf = replace(leaf, ?, ?)"
    node.core._connection.execute(statement, (f'"day":"{day(5)}"', f'"day":{written}'))
    with pytest.raises(VaultDamagedError, match="tells no day"):
        node.start()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (disallow("X25519", "2036-01-02"), "later than 2036-01-01"),
        (disallow("X25518", "2030-01-01"), "did you mean X25519"),
        ("\n[algorithms.OTP]\nstatus = 'approved'\n", "algorithms"),
        ("\n[algorithms.OTP]\ndisallowed_from = 'soon'\n", "algorithms"),
        ("\n[algorithms.OTP]\nuse = true\n", "algorithms"),
        ("\n[algorithms.OTP]\nreplacement = 'ROT-13'\n", "no 'ROT-13'"),
    ],
)
def test_a_configuration_that_loosens_or_names_nothing_is_refused(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        registry_of(config(text))
