"""Bytes in memory: counted whoever holds them, bounded in sum, and never a reason to wait for each other."""

from __future__ import annotations

import asyncio

import pytest

from mcp_sidecar.waiting.budget import FREE_BYTES, Budget, Claim, Queue

MIB = 1024 * 1024


async def settled() -> None:
    """Let everything go on that can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def hold(queue: Queue, sizes: list[int], release: asyncio.Event, held: list[Claim]) -> None:
    """Grow by each of these sizes, and hold all of it until released."""
    with queue.claim() as claim:
        for size in sizes:
            await claim.grow(size)
        held.append(claim)
        await release.wait()


async def test_the_sum_stays_within_the_limit_but_for_one() -> None:
    """Three hundred bodies of a MiB, announced as such: as many as the limit allows, and one more."""
    budget, peak, done = Budget(64 * MIB), 0, 0

    async def post() -> None:
        nonlocal peak, done
        with budget.requests.claim() as claim:
            await claim.grow(MIB)
            peak = max(peak, budget.used)
            await asyncio.sleep(0)
            done += 1

    await asyncio.gather(*(post() for _ in range(300)))
    assert (done, budget.used) == (300, 0)
    assert peak <= 65 * MIB


async def test_those_that_grow_all_come_to_an_end() -> None:
    """Bodies of unknown length that each have a part do not wait for each other for ever."""
    budget, peak = Budget(4 * MIB), 0

    async def post() -> None:
        nonlocal peak
        with budget.requests.claim() as claim:
            for _ in range(16):
                await claim.grow(64 * 1024)
                peak = max(peak, budget.used)
                await asyncio.sleep(0)

    async with asyncio.timeout(30):
        await asyncio.gather(*(post() for _ in range(100)))
    assert budget.used == 0
    assert peak <= 4 * MIB + MIB + 100 * FREE_BYTES


async def test_answers_come_while_requests_hold_everything() -> None:
    """A request waits for its answer, so an answer must not wait for the requests."""
    budget, over, held = Budget(MIB), asyncio.Event(), list[Claim]()
    requests = [asyncio.create_task(hold(budget.requests, [MIB], over, held)) for _ in range(3)]
    await settled()
    assert len(held) == 2
    assert len(budget.requests) == 1
    answers = list[Claim]()
    reading = [asyncio.create_task(hold(budget.answers, [MIB], over, answers)) for _ in range(2)]
    await settled()
    assert len(answers) == 1
    over.set()
    await asyncio.gather(*requests, *reading)
    assert budget.used == 0


async def test_small_ones_never_wait() -> None:
    """A ping passes however full it is."""
    budget = Budget(MIB)
    with budget.requests.claim() as first, budget.requests.claim() as ahead, budget.requests.claim() as small:
        await first.grow(MIB)
        await ahead.grow(MIB)
        await small.grow(FREE_BYTES)
        assert budget.used == 2 * MIB + FREE_BYTES


async def test_who_gives_up_takes_nothing() -> None:
    """A client that leaves while it waits holds nothing and stands in nobody's way."""
    budget, over, held = Budget(MIB), asyncio.Event(), list[Claim]()
    tasks = [asyncio.create_task(hold(budget.requests, [MIB], over, held)) for _ in range(4)]
    await settled()
    tasks[2].cancel()
    await settled()
    over.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results].count(asyncio.CancelledError) == 1
    assert (len(held), budget.used, len(budget.requests)) == (3, 0, 0)


async def test_who_gives_up_lets_those_behind_it_go_on() -> None:
    """There may be room for the next one where there was none for it."""
    budget = Budget(10 * MIB)
    first, ahead, large, small = (budget.requests.claim() for _ in range(4))
    await first.grow(5 * MIB)
    await ahead.grow(6 * MIB)
    await first.resize(MIB)
    waiting = asyncio.create_task(large.grow(8 * MIB))
    behind = asyncio.create_task(small.grow(2 * MIB))
    await settled()
    assert not behind.done()
    waiting.cancel()
    await settled()
    assert behind.done()


async def test_one_that_is_cancelled_as_it_may_go_on_gives_it_back() -> None:
    """The room that was given in the same turn in which its client left is not lost."""
    budget = Budget(MIB)
    first, ahead, late = (budget.requests.claim() for _ in range(3))
    await first.grow(MIB)
    await ahead.grow(MIB)
    waiting = asyncio.create_task(late.grow(MIB))
    await settled()
    ahead.release()
    first.release()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    late.release()
    assert budget.used == 0


async def test_a_claim_ends_with_its_holder() -> None:
    """Nothing is counted for an object that is gone, whoever forgot to say so."""
    budget = Budget(MIB)
    claim = budget.answers.claim()
    claim.count(100)
    assert budget.used == 100
    del claim
    assert budget.used == 0
