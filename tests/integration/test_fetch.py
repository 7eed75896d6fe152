"""Keys fetched by their ids, over the network: by the client, by the command, and what strangers and floods get."""

import asyncio
import json
import sys
from uuid import uuid4

import pytest
from supply_site import ASSOCIATION, site, until_delivered

from qkdnode.client import KeyRefusedError, NoKeyError
from qkdnode.errors import SupplyError
from qkdnode.ids import Association
from qkdnode.supply import server as supply


def test_only_what_is_fetched_comes_and_is_gone_once_it_is_acknowledged() -> None:
    async def demand() -> None:
        async with site() as here, here.subscription() as keys:
            ids = here.vault.add(ASSOCIATION, 5)
            here.server.notify("app")
            key = await keys.fetch(ids[3])
            with key, memoryview(key.material) as view:
                assert view.tobytes() == here.vault.material[ids[3]]
            assert here.vault.opened == {ids[3]: 1}
            with pytest.raises(SupplyError, match="was given to this program"):
                await keys.fetch(ids[3])
            key.acknowledge()
            await until_delivered(here.vault, 1)
            with pytest.raises(KeyRefusedError, match=str(ids[3])):
                await keys.fetch(ids[3])
            assert here.vault.opened == {ids[3]: 1}
            assert here.server.statistics().keys_fetched == 1

    asyncio.run(demand())


def test_several_are_asked_for_together_and_the_rest_is_refused() -> None:
    async def demand() -> None:
        async with site() as here, here.subscription(credit=256) as keys:
            ids = here.vault.add(ASSOCIATION, 70)
            gone = [uuid4() for _ in range(2)]
            found, refused = await keys.fetch_some([gone[0], *ids, gone[1]])
            assert [key.id for key in found] == ids
            assert refused == gone
            for key in found:
                key.material.release()
            told = here.told("fetch")
            assert sum(details["ids"] for details in told) == 2
            assert all(details["fingerprint"] != "unknown" for details in told)
            assert " ".join(details["names"] for details in told) == " ".join(f"name of {key_id}" for key_id in gone)

    asyncio.run(demand())


def test_a_key_that_was_pushed_is_given_to_who_fetches_it() -> None:
    async def demand() -> None:
        async with site() as here, here.subscription(pushed=True) as keys:
            ids = here.vault.add(ASSOCIATION, 3)
            await keys.wait()
            while keys.statistics().waiting < 3:
                await asyncio.sleep(0.005)
            key = await keys.fetch(ids[1])
            key.material.release()
            assert [(await keys.next()).id for _ in range(2)] == [ids[0], ids[2]]

    asyncio.run(demand())


@pytest.mark.parametrize("why", ["unknown", "of another application", "of another size", "withheld", "a decoy"])
def test_every_refusal_has_one_size_and_comes_after_one_time(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def demand() -> None:
        async with site() as here, here.subscription() as keys:
            here.vault.add(ASSOCIATION, 2)
            cases = {
                "unknown": uuid4(),
                "of another application": here.vault.add(Association("app", "other", "line"), 1)[0],
                "of another size": here.vault.add(ASSOCIATION, 1, size_bits=128)[0],
                "withheld": here.vault.add(ASSOCIATION, 1)[0],
                "a decoy": uuid4(),
            }
            here.vault.decoys = {cases["a decoy"]}
            here.releases = why != "withheld"
            pauses: list[float] = []
            sleep = asyncio.sleep

            async def slept(seconds: float) -> None:
                pauses.append(seconds)
                await sleep(0)

            while not keys.statistics().subscribed:
                await sleep(0.005)
            monkeypatch.setattr(supply, "REFUSED_AFTER_S", 1000.0)  # whoever forgets the wait answers at once
            monkeypatch.setattr(asyncio, "sleep", slept)
            sent: list[bytes] = []
            send = here.server._send
            monkeypatch.setattr(
                here.server, "_send", lambda connection, frame: sent.append(frame) or send(connection, frame)
            )
            with pytest.raises(KeyRefusedError):
                await keys.fetch(cases[why])
            monkeypatch.undo()
            assert [len(frame) for frame in sent] == [55]
            assert [round(pause) for pause in pauses if pause > 900] == [1000]
            assert [subject for subject, _ in here.alarmed] == ["application/app"] * (why == "a decoy")

    asyncio.run(demand())


def test_who_asks_too_often_is_put_off_and_the_log_stays_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supply, "REFUSED_AFTER_S", 0.0)

    async def demand() -> None:
        async with site() as here, here.subscription() as keys:
            while not keys.statistics().subscribed:
                await asyncio.sleep(0.005)
            asked = [keys.fetch(uuid4(), timeout=0.5) for _ in range(90)]
            came = await asyncio.gather(*asked, return_exceptions=True)
            refused = sum(isinstance(error, KeyRefusedError) for error in came)
            assert {type(error) for error in came} == {KeyRefusedError, NoKeyError}
            assert supply.FETCHES_BURST <= refused < 90
            assert here.server.statistics().fetches_put_off >= 90 - refused
            assert len(here.told("fetch")) <= 12

    asyncio.run(demand())


def test_a_vault_that_fails_refuses_as_if_there_were_no_key() -> None:
    async def demand() -> None:
        from qkdnode.vault.fetches import FetchKeys

        async with site() as here, here.subscription() as keys:
            (key_id,) = here.vault.add(ASSOCIATION, 1)
            here.vault.failing.add(FetchKeys)
            with pytest.raises(KeyRefusedError):
                await keys.fetch(key_id)
            here.vault.failing.clear()
            (await keys.fetch(key_id)).material.release()

    asyncio.run(demand())


def test_who_acknowledges_a_decoy_is_told_of_and_hears_nothing() -> None:
    async def demand() -> None:
        async with site() as here, here.subscription(pushed=True) as keys:
            here.vault.decoys = {uuid4(), uuid4()}
            here.vault.add(ASSOCIATION, 1)
            here.server.notify("app")
            key = await keys.next()
            key.material.release()
            for strange in (uuid4(), *here.vault.decoys):
                keys.acknowledge(strange)
            key.acknowledge()
            await until_delivered(here.vault, 1)
            while len(here.alarmed) < 1:
                await asyncio.sleep(0.005)
            ((subject, detail),) = here.alarmed
            assert subject == "application/app"
            assert detail.startswith("acknowledgement of 2, such as name of ")
            assert "fingerprint unknown" not in detail
            assert {details["reason"] for details in here.told("message")} == {
                "an acknowledgement of keys that were not sent"
            }

    asyncio.run(demand())


def test_the_command_fetches_by_id_and_says_what_it_was_refused() -> None:
    async def demand() -> None:
        async with site() as here:
            ids, gone = here.vault.add(ASSOCIATION, 3), uuid4()
            command = [sys.executable, "-m", "qkdnode", "fetch", "--endpoint", here.server.endpoint, "--json"]
            command += ["--identity", str(here.directory / "app.identity"), "--salt", "00"]
            command += ["--node", str(here.directory / "node.public"), "--remote", "far", "--link", "line"]
            process = await asyncio.create_subprocess_exec(
                *command, str(ids[1]), str(gone), stdout=asyncio.subprocess.PIPE
            )
            output, _ = await process.communicate()
            first, second = (json.loads(line) for line in output.splitlines())
            assert (first["key"], first["bits"], len(first["digest"])) == (str(ids[1]), 256, 32)
            assert second == {"refused": str(gone)}
            assert process.returncode == 1
            await until_delivered(here.vault, 1)
            assert set(here.vault.delivered) == {ids[1]}

    asyncio.run(demand())
