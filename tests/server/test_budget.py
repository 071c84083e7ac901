"""So much at a time, in order, and nothing is lost when who waits leaves."""

import asyncio

import pytest

from server.budget import Budget


async def hold(budget, amount, release):
    async with budget.take(amount):
        await release.wait()


async def turns():
    for _ in range(3):
        await asyncio.sleep(0)


async def test_what_does_not_fit_waits_and_nothing_passes_it():
    budget, events = Budget(10), [asyncio.Event() for _ in range(4)]
    tasks = [asyncio.create_task(hold(budget, n, e)) for n, e in zip((6, 5, 4, 99), events, strict=True)]
    await turns()
    events[1].set()
    events[2].set()
    await turns()
    assert [task.done() for task in tasks] == [False] * 4  # 4 would fit beside 6, but 5 came first
    events[0].set()
    await turns()
    assert [task.done() for task in tasks] == [True, True, True, False]  # more than all takes all
    events[3].set()
    await asyncio.gather(*tasks)


@pytest.mark.parametrize("moment", ["while it waits", "at its turn"])
async def test_who_leaves_takes_nothing_along(moment):
    budget, first, others = Budget(1), asyncio.Event(), asyncio.Event()
    holding = asyncio.create_task(hold(budget, 1, first))
    await turns()
    leaving, last = asyncio.create_task(hold(budget, 1, others)), asyncio.create_task(hold(budget, 1, others))
    await turns()
    if moment == "at its turn":
        first.set()
        await holding
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    first.set()
    others.set()
    await asyncio.wait_for(asyncio.gather(holding, last), 10)
    async with budget.take(1):
        pass
