"""Notices of keys that are out of use, over the network: each once to the program, until noted, and to no other."""

import asyncio

import pytest
from supply_site import ASSOCIATION, Site, site, until_delivered

from qkdnode.client import AsyncSubscription, EndedKeys
from qkdnode.errors import SupplyError
from qkdnode.ids import KeyId

RESEND_S = 0.1


async def took(here: Site, keys: AsyncSubscription, count: int) -> list[KeyId]:
    """Keys that the application has acknowledged."""
    ids = []
    for _ in range(count):
        key = await keys.next()
        key.material.release()
        key.acknowledge()
        ids.append(key.id)
    await until_delivered(here.vault, count)
    return ids


async def until(what: object, seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not what():  # type: ignore[operator]
            await asyncio.sleep(0.005)


def test_the_program_is_told_once_and_the_node_until_it_is_noted() -> None:
    async def demand() -> None:
        told: list[EndedKeys] = []
        async with site(resend_s=RESEND_S) as here, here.subscription(pushed=True, on_ended=told.append) as keys:
            here.vault.add(ASSOCIATION, 2)
            here.server.notify("app")
            first, _ = await took(here, keys, 2)
            here.vault.revoke(first)
            await until(lambda: told and not here.vault.ended)
            assert told == [EndedKeys(ASSOCIATION, (first,), "compromised", "key-compromise")]

    asyncio.run(demand())


def test_without_a_callback_the_notice_waits_for_a_program_that_listens() -> None:
    async def demand() -> None:
        told: list[EndedKeys] = []
        async with site(resend_s=RESEND_S) as here:
            here.vault.add(ASSOCIATION, 1)
            async with here.subscription(pushed=True) as keys:
                (key_id,) = await took(here, keys, 1)
                here.vault.revoke(key_id)
                await until(lambda: here.server.statistics().endings_told >= 2)
            assert len(here.vault.ended) == 1
            async with here.subscription(pushed=True, on_ended=told.append):
                await until(lambda: not here.vault.ended)
            assert [ended.key_ids for ended in told] == [(key_id,)]

    asyncio.run(demand())


def test_a_program_that_fails_to_take_a_notice_is_stopped_and_told_again_when_it_comes_back() -> None:
    async def demand() -> None:
        told: list[EndedKeys] = []

        def fail(ended: EndedKeys) -> None:
            raise ValueError("not now")

        async with site(resend_s=RESEND_S) as here:
            here.vault.add(ASSOCIATION, 1)
            async with here.subscription(pushed=True, on_ended=fail) as keys:
                (key_id,) = await took(here, keys, 1)
                here.vault.revoke(key_id)
                with pytest.raises(SupplyError, match="not now"):
                    await keys.next()
            assert len(here.vault.ended) == 1
            async with here.subscription(pushed=True, on_ended=told.append):
                await until(lambda: not here.vault.ended)
            assert len(told) == 1

    asyncio.run(demand())


def test_a_key_that_was_sent_and_not_acknowledged_is_told_of_and_not_handed_out_any_more() -> None:
    async def demand() -> None:
        told: list[EndedKeys] = []
        async with site(resend_s=RESEND_S) as here, here.subscription(pushed=True, on_ended=told.append) as keys:
            ids = here.vault.add(ASSOCIATION, 3)
            here.server.notify("app")
            held = await keys.next()
            held.material.release()
            await until(lambda: keys.statistics().waiting == 2)
            here.vault.revoke(*ids[:2])
            await until(lambda: len(told) == 2 and not here.vault.ended)
            assert {key_id for ended in told for key_id in ended.key_ids} == set(ids[:2])
            assert (await keys.next()).id == ids[2]
            assert keys.statistics().waiting == 0

    asyncio.run(demand())


def test_an_application_that_never_had_a_key_hears_nothing() -> None:
    async def demand() -> None:
        told: list[EndedKeys] = []
        async with site(resend_s=RESEND_S) as here, here.subscription(pushed=False, on_ended=told.append) as keys:
            ids = here.vault.add(ASSOCIATION, 2)
            await until(lambda: keys.statistics().subscribed)
            here.vault.revoke(*ids)
            await asyncio.sleep(4 * RESEND_S)
            assert told == []
            assert here.server.statistics().endings_told == 0

    asyncio.run(demand())
